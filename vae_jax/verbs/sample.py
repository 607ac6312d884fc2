"""sample: new pictures from the prior, as one sheet and as arrays.

    python -m vae_jax sample --workdir=runs/mnist --count=64
    python -m vae_jax sample --workdir=runs/mnist_label --count=10 --label=7      a conditional model

Writes WORKDIR/samples/NAME.png and NAME.npz (the same pictures, floats 0..1), NAME from count, class, temperature and seed.
"""

import math

from absl import flags

from vae_jax.config import UserError
from vae_jax.verbs import trained

COUNT = flags.DEFINE_integer("count", 64, "How many.", lower_bound=1, upper_bound=100_000)
LABEL = flags.DEFINE_string("label", "", "Class name, for a conditional model; '' = all classes in turn.")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Scales the code's distance from 0.", lower_bound=0.0)
SEED = flags.DEFINE_integer("seed", 0, "Same seed, same pictures.")
BATCH = 256  # pictures decoded at once


def main(started: float) -> int:
    import jax
    import numpy as np

    from vae_jax import mesh as meshes
    from vae_jax import session
    from vae_jax.media import images

    run = trained.open_run()
    if run.task.sample is None:
        raise UserError(f"the task {run.config.task!r} has no samples.")
    request = {"temperature": np.full(COUNT.value, TEMPERATURE.value, np.float32)}
    if run.task.condition:
        request["label"] = _labels(run.spec.fields["label"].labels, COUNT.value)
    elif LABEL.value:
        raise UserError("--label needs a conditional model: train with --config.model.condition=label.")
    sample, parts = jax.jit(run.task.sample), []
    with session.Leaving() as leaving:
        for start in range(0, COUNT.value, BATCH):
            rows = np.minimum(np.arange(start, start + min(BATCH, COUNT.value)), COUNT.value - 1)
            key = jax.random.fold_in(jax.random.key(SEED.value), start)
            made = jax.device_get(sample(run.params, run.variables, key, {k: v[rows] for k, v in request.items()}))
            parts.append({k: v[: COUNT.value - start] for k, v in made.items()})
            if leaving.now():
                trained.left(True)
                return 0
    if not meshes.is_main():
        return 0
    folder = run.workdir / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    label = f"-class{request['label'][0]}" if LABEL.value else ""  # its number: a class name may be no file name
    name = f"count{COUNT.value}{label}-temperature{TEMPERATURE.value:g}-seed{SEED.value}"
    arrays = {k.removeprefix("image/"): np.concatenate([p[k] for p in parts]) for k in parts[0]}
    session.write_npz(folder / f"{name}.npz", arrays)
    shown = images.resize(arrays["mean"][:400], columns := math.isqrt(min(COUNT.value, 400) - 1) + 1)
    (folder / f"{name}.png").write_bytes(images.png(images.grid(shown, columns)))
    print(folder / f"{name}.png")
    return 0


def _labels(names, count):
    import numpy as np

    if not LABEL.value:
        return (np.arange(count) % len(names)).astype(np.int32)
    if LABEL.value not in names:
        raise UserError(f"--label={LABEL.value} is not a class of this data; classes are {', '.join(names[:20])}.")
    return np.full(count, names.index(LABEL.value), np.int32)
