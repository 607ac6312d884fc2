"""bench: compiles an experiment's training step, runs it on its real data, and prints one JSON object.

    python -m vae_jax bench --config=experiments/peers.py:mlp --steps=200

Step time is the median over single steps, each waited for; `input_wait_share` is the share of wall time spent waiting for
batches. `peak_flops` is what one large matrix product reaches here in the same dtype, measured, not a data sheet.
"""

import json
import resource
import statistics
import time

from absl import flags
from ml_collections import config_flags

from vae_jax.verbs import common

CONFIG = config_flags.DEFINE_config_file("config", None, common.CONFIG_HELP)
STEPS = flags.DEFINE_integer("steps", 100, "Steps that are timed.", lower_bound=1)


def main(started: float) -> int:
    config = common.config_of(CONFIG)
    common.compile_cache(config.run.compile_cache)
    print(json.dumps(bench(config, STEPS.value, started)), flush=True)
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
    source = datas.Source(config.data.dir, config.data.train, config.data.memory_mb)
    task = tasks.get(config, records.open_folder(config.data.dir))
    batches = datas.train_batches(source, mesh, config.seed, 0, config.data.batch)
    batch, moves = next(batches), task.schedule(0)
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
        "name": config.name, "device": device.device_kind, "devices": mesh.size, "jax": jax.__version__, "dtype": config.dtype,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)), "batch": config.data.batch, "step_ms": round(step * 1e3, 3),
        "examples_per_sec": round(config.data.batch / step, 1), "input_wait_share": round(sum(waits) / sum(times), 4),
        "compile_s": round(compile_s, 2), "command_to_first_step_s": round(first_step_s, 2), "flops_per_step": flops,
        "flops_per_sec": round(flops / step), "peak_flops": round(peak), "peak_share": round(flops / step / peak, 3),
        "step_memory_mb": round((memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20, 1) if memory else None,
        "peak_memory_mb": round(stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**20, 1),
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
