"""bench: compiles an experiment's training step, runs it on its real data, and prints one JSON object.

    python -m vae_jax bench --config=experiments/peers.py:mlp --steps=200
    python -m vae_jax bench --config=experiments/rave.py:v1 --step=1000001       a step of a later stage
    python -m vae_jax bench --config=experiments/genres.py --griffin_lim=100
    taskset -c 0 python -m vae_jax bench --config=experiments/rave.py:v2 --play=2048            on one core, 2,048 samples at a time
    python -m vae_jax bench --config=experiments/code_prior.py:photos --generate=64             maps of codes, also by full passes
    python -m vae_jax bench --config=experiments/peers.py:wavenet --generate=16

Step time is the median over single steps, each waited for; `input_wait_share` is the share of wall time spent waiting for
batches. `peak_flops` is what one large matrix product reaches here in the same dtype, measured, not a data sheet.

--griffin_lim=N instead resynthesises N clips of the test split, evenly over it, from the magnitudes of their whole length with n_fft, hop and
iterations of config.model.sound: by our Griffin-Lim and by librosa's, all clips in one call, in turns. Times are medians of three; compilation
(quick where the compile cache holds it) is apart. `convergence` is the spectral convergence, averaged over clips, where 0 is perfect.

--play=BLOCK instead times a model of the wave of that size, untrained, at the rate of the data set: ten seconds of noise through its encoder, their
latents through its decoder (medians of five), and STEPS blocks through both as `stream` plays them. `_times` are times as fast as the sound lasts.

--generate=COUNT instead draws COUNT maps of codes, or COUNT seconds of sound side by side, with the cached step of an untrained autoregressive net:
median of three. Of maps, full passes at every position are timed in turns with it.
"""

import functools
import json
import resource
import statistics
import sys
import time

from absl import flags
from ml_collections import config_flags

from vae_jax.config import UserError
from vae_jax.verbs import common

CONFIG = config_flags.DEFINE_config_file("config", None, common.CONFIG_HELP)
STEPS = flags.DEFINE_integer("steps", 100, "Steps that are timed.", lower_bound=1)
STEP = flags.DEFINE_integer("step", 0, "Number of the training step whose moves are timed, over and over.", lower_bound=0)
GRIFFIN_LIM = flags.DEFINE_integer("griffin_lim", 0, "Clips of the test split on which Griffin-Lim is timed instead of the step.", lower_bound=0)
PLAY = flags.DEFINE_integer("play", 0, "Samples of a block with which a model of the wave is timed as it is played, "
                            "instead of the step.", lower_bound=0)
GENERATE = flags.DEFINE_integer("generate", 0, "Maps of codes, or sounds, that an autoregressive net draws side by side, "
                                "instead of the step.", lower_bound=0)


def main(started: float) -> int:
    config = common.config_of(CONFIG)
    common.compile_cache(config.run.compile_cache)
    if GENERATE.value:
        from vae_jax.verbs import bench_generate

        figures = bench_generate.main(config, GENERATE.value)
    elif PLAY.value:
        figures = play(config, PLAY.value, STEPS.value)
    else:
        figures = griffin_lim(config, GRIFFIN_LIM.value) if GRIFFIN_LIM.value else bench(config, STEPS.value, started)
    print(json.dumps(figures), flush=True)
    return 0


def bench(config, steps: int, started: float) -> dict:
    """Figures of `steps` training steps after two that are not counted."""
    import jax

    from vae_jax import config as configs
    from vae_jax import data as datas
    from vae_jax import mesh as meshes
    from vae_jax import records, tasks
    from vae_jax import update as updates

    mesh = meshes.make(config.run.devices)
    configs.check(config, mesh.size, jax.default_backend())
    source = datas.open_source(config.data, "train")
    task = tasks.get(config, datas.cropped(records.open_folder(config.data.dir), config.data.crop))
    batches = datas.train_batches(source, mesh, config.seed, 0, config.data.batch)
    batch, moves = next(batches), task.schedule(STEP.value)
    config.optim.decay_steps = config.optim.decay_steps or config.run.steps
    state = jax.jit(lambda b: updates.init_state(task, config, b), out_shardings=meshes.replicated(mesh))(batch)

    begin = time.perf_counter()
    compiled = updates.make_update(task, config, mesh).lower(state, batch, moves).compile()
    compile_s = time.perf_counter() - begin
    flops = (compiled.cost_analysis() or {}).get("flops", 0.0)
    memory = compiled.memory_analysis()

    times, waits = [], []
    for i in range(steps + 2):
        begin = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter()
        state, values = compiled(state, batch)
        jax.block_until_ready(values)
        if i == 0:
            first_step_s = time.monotonic() - started
        if i >= 2:
            times.append(time.perf_counter() - begin)
            waits.append(waited - begin)
    batches.close()
    step, peak = statistics.median(times), _peak(config.dtype)
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    return {
        "name": config.name, "moves": "+".join(moves), "device": device.device_kind, "devices": mesh.size, "jax": jax.__version__,
        "dtype": config.dtype, "parameters": sum(x.size for x in jax.tree.leaves(state.params)), "batch": config.data.batch,
        "step_ms": round(step * 1e3, 3), "examples_per_sec": round(config.data.batch / step, 1),
        "input_wait_share": round(sum(waits) / sum(times), 4), "compile_s": round(compile_s, 2), "command_to_first_step_s": round(first_step_s, 2),
        "flops_per_step": flops, "flops_per_sec": round(flops / step), "peak_flops": round(peak), "peak_share": round(flops / step / peak, 3),
        "step_memory_mb": round((memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20, 1) if memory else None,
        "peak_memory_mb": round(stats.get("peak_bytes_in_use", _most_memory()) / 2**20, 1),
    }


def _peak(dtype: str) -> float:
    """FLOP/s of a matrix product of 2,048 (CPU) or 8,192 squared, the best of five."""
    import jax
    import jax.numpy as jnp

    n = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((n, n), jnp.dtype(dtype))
    product = jax.jit(lambda a: a @ a)
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        jax.block_until_ready(product(x))
        times.append(time.perf_counter() - begin)
    return 2 * n**3 / min(times[1:])


def play(config, block: int, steps: int) -> dict:
    """Figures of an untrained model of the wave, of whole sounds and of blocks. Raises UserError for another task or a block that is no multiple."""
    import jax
    import jax.numpy as jnp

    from vae_jax import config as configs
    from vae_jax import data as datas
    from vae_jax import records, streaming, tasks
    from vae_jax.tasks import rave

    if config.task != "rave":
        raise UserError(f"--play times models of the wave, and {config.name} is of the task {config.task!r}; give experiments/rave.py:v2, say.")
    configs.check(config, 1, jax.default_backend())
    spec = datas.cropped(records.open_folder(config.data.dir), config.data.crop)
    task, live, rate, channels = tasks.get(config, spec), rave.live(config, spec), spec.facts["rate"], spec.fields["audio"].shape[-1]
    streaming.check_block(live, block)

    def noise(samples):
        return jax.random.uniform(jax.random.key(1), (1, samples, channels), minval=-0.5, maxval=0.5)

    params, variables = jax.jit(task.init)(jax.random.key(0), {"audio": noise(config.data.crop)})
    variables["decoder"]["noise"] = jnp.float32(1.0)  # as in stage 2
    long = {"audio": noise(10 * rate // live.hop * live.hop)}
    encode, decode = jax.jit(lambda p, v, x: task.encode(p, v, x)["mean"]), jax.jit(task.decode)
    code, x, state = encode(params, variables, long), noise(block), live.model.start()
    step = jax.jit(live.model.step, donate_argnums=2)

    def timed(function, count):
        times = []
        for _ in range(count + 2):
            begin = time.perf_counter()
            jax.block_until_ready(function())
            times.append(time.perf_counter() - begin)
        return times[2:]

    def advance():
        nonlocal state
        state, y = step(params, variables, state, x)
        return y

    seconds, lasts = long["audio"].shape[1] / rate, block / rate
    coding, decoding = (statistics.median(timed(f, 5)) for f in (lambda: encode(params, variables, long), lambda: decode(params, variables, code)))
    blocks = timed(advance, steps)
    device = jax.devices()[0]
    return {
        "name": config.name, "causal": config.model.causal, "device": device.device_kind, "jax": jax.__version__, "dtype": config.dtype, "rate": rate,
        "parameters": sum(x.size for player in ("encoder", "decoder") for x in jax.tree.leaves(params[player])), "latency": live.latency,
        "encode_times": round(seconds / coding, 1), "decode_times": round(seconds / decoding, 1), "block": block,
        "block_lasts_ms": round(lasts * 1e3, 2), "block_ms": round(statistics.median(blocks) * 1e3, 2), "worst_block_ms": round(max(blocks) * 1e3, 2),
        "stream_times": round(lasts / statistics.median(blocks), 2), "worst_stream_times": round(lasts / max(blocks), 2),
    }


def griffin_lim(config, clips: int) -> dict:
    """Figures of our Griffin-Lim and librosa's on the same magnitudes. Raises UserError for data without sounds or with fewer clips."""
    import jax
    import numpy as np

    from vae_jax import data as datas
    from vae_jax import fronts, records
    from vae_jax.dsp import griffin_lim as vocoder
    from vae_jax.dsp import stft

    spec, sound = records.open_folder(config.data.dir), config.model.sound
    if "audio" not in spec.fields:
        raise UserError(f"--griffin_lim times the way back to sound, and the data set {spec.name} holds none; give an experiment on sounds.")
    source = datas.open_source(config.data, "test")
    if len(source) < clips:
        raise UserError(f"--griffin_lim={clips} asks for more clips than the {len(source)} of {config.data.test!r} in {config.data.dir}.")
    import librosa  # after the refusals: it takes a second to load

    waves = fronts.wave(source.read(datas.spaced(len(source), clips)))
    length, momentum = waves.shape[-1], 0.99
    magnitudes = jax.jit(lambda x: stft.magnitude(stft.stft(x, sound.n_fft, sound.hop)))
    target, key = magnitudes(waves), jax.random.key(config.seed)

    begin = time.perf_counter()
    ours = jax.jit(lambda m, k: vocoder.griffin_lim(m, sound.hop, length, sound.iterations, momentum, k)).lower(target, key).compile()
    compile_s = time.perf_counter() - begin
    settings = {"hop_length": sound.hop, "n_fft": sound.n_fft, "length": length, "momentum": momentum, "random_state": config.seed}
    theirs = functools.partial(librosa.griffinlim, np.ascontiguousarray(np.asarray(target).swapaxes(1, 2)), **settings)

    theirs(n_iter=1)  # librosa compiles its overlap-add at its first call
    runs = {"ours": lambda: jax.block_until_ready(ours(target, key)), "librosa": lambda: theirs(n_iter=sound.iterations)}
    times, losses = {name: [] for name in runs}, {}
    for _ in range(3):
        for name, run in runs.items():
            begin = time.perf_counter()
            found = run()
            times[name].append(time.perf_counter() - begin)
            losses[name] = float(vocoder.spectral_convergence(target, magnitudes(found)).mean())
    ours_s, librosa_s = (statistics.median(times[name]) for name in runs)
    return {
        "name": config.name, "device": jax.devices()[0].device_kind, "clips": clips, "seconds": round(clips * length / spec.facts["rate"], 2),
        "n_fft": sound.n_fft, "hop": sound.hop, "iterations": sound.iterations, "ours_s": round(ours_s, 3), "librosa_s": round(librosa_s, 3),
        "ratio": round(librosa_s / ours_s, 2), "ours_convergence": round(losses["ours"], 4), "librosa_convergence": round(losses["librosa"], 4),
        "compile_s": round(compile_s, 2),
    }


def _most_memory() -> int:
    """Bytes this process held at most: Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
