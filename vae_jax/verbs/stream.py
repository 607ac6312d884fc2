"""stream: a sound file through a model of the wave block by block, as one would play it live, and how fast that is.

    python -m vae_jax stream --workdir=runs/rave --wav=mine.wav
    python -m vae_jax stream --workdir=runs/rave --wav=mine.wav --block=4096 --fidelity=0.95      only the directions that matter, after `analyse`
    taskset -c 0 python -m vae_jax stream --workdir=runs/rave --wav=mine.wav                      on one core, as one thread of other programs

Writes WORKDIR/streams/NAME-BLOCK.wav, NAME from the file: what comes out, at the model's rate, without the delay, as long as what went in. Prints
the median time of a block, the worst beside the time that a block lasts, and the latency: what the model and the filter bank are late, and the block
that must be gathered first. A time holds everything from samples in the host's memory to samples in the host's memory; compiling is apart. With
--fidelity the directions of WORKDIR/analysis.npz that are left out stay at their mean. A file of any length, rate and number of channels.
"""

import pathlib
import time

from absl import flags

from vae_jax.config import UserError
from vae_jax.verbs import trained

WAV = flags.DEFINE_string("wav", "", "A sound file (WAV, AIFF, FLAC, Ogg, MP3).")
BLOCK = flags.DEFINE_integer("block", 2048, "Samples that go in at once, a multiple of the model's hop.", lower_bound=1)
FIDELITY = flags.DEFINE_float("fidelity", None, "Keep the first directions, as many as have this share of all singular values; 0.95, say.")


def main(started: float) -> int:
    import jax
    import numpy as np

    from vae_jax import analysis, recordings, session, streaming
    from vae_jax import mesh as meshes
    from vae_jax.media import sounds
    from vae_jax.tasks import rave

    if not WAV.value:
        raise UserError("give a sound file: --wav=mine.wav.")
    run = trained.open_run_of_waves()
    live, rate, block = rave.live(run.config, run.spec), run.task.front.rate, BLOCK.value
    streaming.check_block(live, block)
    cut = {} if FIDELITY.value is None else streaming.directions(*analysis.directions(run, FIDELITY.value, None))
    wave = recordings.read(run, WAV.value, "wav")
    params, variables = jax.device_put((run.params, {**run.variables, **cut}), jax.local_devices()[0])
    blocks = np.pad(wave, ((0, -(len(wave) + live.latency) % block + live.latency), (0, 0))).reshape(-1, 1, block, wave.shape[1])
    begun = time.perf_counter()
    step = jax.jit(live.model.step, donate_argnums=2).lower(params, variables, live.model.start(), blocks[0]).compile()
    compiled = time.perf_counter() - begun
    state = live.model.start()
    jax.block_until_ready(step(params, variables, live.model.start(), blocks[0]))  # the first call also prepares the device
    made, seconds = [], []
    with session.Leaving() as leaving:
        for x in blocks:
            begun = time.perf_counter()
            state, y = step(params, variables, state, x)
            made.append(np.asarray(y[0]))
            seconds.append(time.perf_counter() - begun)
            if leaving.now():
                trained.left(True)
                return 0
    if not meshes.is_main():
        return 0
    wave = np.concatenate(made)[live.latency:live.latency + len(wave)]
    folder = run.workdir / "streams"
    folder.mkdir(parents=True, exist_ok=True)
    kept = "" if FIDELITY.value is None else f"-fidelity{FIDELITY.value:g}"
    path = folder / f"{pathlib.Path(WAV.value).stem}-{block}{kept}.wav"
    factor = min(1.0, sounds.gain(wave))
    path.write_bytes(sounds.wav(wave, rate, factor))
    lasts, median, worst = block / rate, float(np.median(seconds)), max(seconds)
    late = sum(s > lasts for s in seconds)
    print(f"{len(wave) / rate:.2f} s in {len(blocks)} blocks of {block} samples, compiled in {compiled:.1f} s")
    print(f"a block lasts {1e3 * lasts:.2f} ms and takes {1e3 * median:.2f} ms (median), {lasts / median:.1f} times real time; the worst took "
          f"{1e3 * worst:.2f} ms, {late or 'none'} took longer than a block lasts")
    shown = " + ".join(f"{n:,} ({1e3 * n / rate:.1f} ms) {what}" for n, what in ((live.latency, "of the model"), (block, "of the block")))
    print(f"latency {live.latency + block:,} samples, {1e3 * (live.latency + block) / rate:.1f} ms: {shown}")
    print(f"{path}, gain {factor:.3g}")
    return 0
