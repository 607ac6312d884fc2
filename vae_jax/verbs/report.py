"""report: one page about a trained run, WORKDIR/report/index.html, with a number beside each picture.

    python -m vae_jax report --workdir=runs/mnist
    python -m vae_jax report --workdir=runs/mnist --animate      also the codes at every kept checkpoint (config.run.keep), as a GIF
"""

from absl import flags

from vae_jax.config import UserError
from vae_jax.verbs import common, trained

ANIMATE = flags.DEFINE_bool("animate", False, "Draw the codes of held-out pictures at every kept checkpoint.")
FRAME_CODES = 2_000  # held-out pictures in the animation


def main(started: float) -> int:
    import jax
    import numpy as np

    from vae_jax import mesh as meshes
    from vae_jax import assess, metrics, report, session

    run = trained.open_run()
    if run.task.encode is None or run.task.decode is None:
        raise UserError(f"a report shows what a model rebuilds, and the task {run.config.task!r} rebuilds nothing; use evaluate.")
    splits = {}
    for role, source in session.sources(run).items():
        splits[role] = source.read(np.arange(min(len(source), assess.BASELINE)))
    device = jax.devices()[0]
    info = {"name": run.config.name or run.config.task, "command": f"python -m vae_jax report --workdir={common.WORKDIR.value}",
            "task": run.config.task, "seed": run.config.seed, "checkpoint": f"step {run.step:,}", "data": run.spec.name,
            "machine": f"{run.mesh.size} x {device.device_kind}, jax {jax.__version__}"}
    labels = run.spec.fields["label"].labels if "label" in run.spec.fields else ()
    standard = getattr(run.config.model, "prior", "") == "standard"
    made = report.build(run.task, run.params, run.variables, splits, metrics.read(run.workdir), info, jax.random.key(run.config.seed + 2),
                        labels, run.task.condition, standard, frames=_frames(run) if ANIMATE.value else None)
    if meshes.is_main():
        print(f"report: {report.write(run.workdir, made)}")
    return 0


def _frames(run) -> dict:
    """{step: posterior means of the first held-out pictures} at every kept checkpoint."""
    import jax

    from vae_jax import checkpoint, evaluate, session

    role = next(role for role in ("test", "validation", "train") if getattr(run.config.data, role))
    source = session.sources(run, (role,))[role]
    encode = jax.jit(lambda params, variables, batch: {"mean": run.task.encode(params, variables, batch)["mean"]})
    found = {}
    for step in checkpoint.Checkpoints(run.workdir / "checkpoints").steps():
        then = session.open_run(run.workdir, str(step))
        found[step] = evaluate.collect(encode, then.params, then.variables, source, run.mesh, run.config.eval.batch, FRAME_CODES)["mean"]
    return found
