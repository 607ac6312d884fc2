"""report: one page about a trained run, WORKDIR/report/index.html, with a number beside each picture; of sounds and music, with players.

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

    from vae_jax import assess, assess_rolls, metrics, report, session
    from vae_jax import mesh as meshes

    run = trained.open_run()
    if run.task.encode is None or run.task.decode is None:
        raise UserError(f"a report shows what a model rebuilds, and the task {run.config.task!r} rebuilds nothing; use evaluate.")
    device = jax.devices()[0]
    command = " ".join(["python -m vae_jax report", f"--workdir={common.WORKDIR.value}", *_given()])
    info = {"name": run.config.name or run.config.task, "command": command, "task": run.config.task,
            "seed": run.config.seed, "checkpoint": f"step {run.step:,}", "data": run.spec.name,
            "machine": f"{run.mesh.size} x {device.device_kind}, jax {jax.__version__}"}
    splits, front = {}, run.task.front
    book = "quantizer" in run.params and front.kind == "image"  # codes are indices
    if front.kind == "wave" or book:
        from vae_jax import report_codes, report_spoken, report_waves

        if ANIMATE.value:
            raise UserError("--animate draws one code an example, and this model has many: leave it out.")
        if "codes" in run.spec.fields:
            raise UserError(f"a report shows what codes stand for, and {run.config.data.dir} holds codes alone; use evaluate.")
        draw = report_codes if book else report_spoken if front.hop else report_waves
        made = draw.build(run, session.sources(run), metrics.read(run.workdir), info)
        if meshes.is_main():
            print(f"report: {report.write(run.workdir, made)}")
        return 0
    held, measured = report.capacity(front.shape, 4 if front.kind == "audio" else 1)
    for role, source in session.sources(run).items():
        rows = np.arange(len(source))
        if len(rows) > measured:  # a split may be stored class by class, and the first ones are what is measured
            rows = np.random.default_rng(0).permutation(len(rows))
        rows = rows[:min(session.baseline(run), held)]
        splits[role] = source.read(rows) | source.texts(rows, [name for name in ("group",) if name in source.split.fields])
    names, prior = {name: field.labels for name, field in run.spec.fields.items() if field.labels}, getattr(run.config.model, "prior", "")
    frames = _frames(run, splits) if ANIMATE.value else None
    music = _music(run, assess_rolls.threshold(run)) if front.kind == "roll" else None
    made = report.build(run.task, run.params, run.variables, splits, metrics.read(run.workdir), info, jax.random.key(run.config.seed + 2),
                        names, run.task.condition, prior == "standard", frames=frames, mixture=assess.mixture(run), music=music)
    if meshes.is_main():
        print(f"report: {report.write(run.workdir, made)}")
    return 0


def _given() -> list[str]:
    """The flags, besides the folder, that shape the page."""
    return ["--animate"] * ANIMATE.value + [f"--checkpoint={trained.CHECKPOINT.value}"] * trained.CHECKPOINT.present


def _music(run, cut: float):
    """How a model of rolls is seen and heard."""
    import numpy as np

    from vae_jax import assess_rolls, attribute_vectors, rolls, scores, session
    from vae_jax.media import sections

    found, sources = attribute_vectors.load(run), session.sources(run)
    plain = lambda linear: assess_rolls.baselines(run, sources, linear) if "test" in sources else {}
    return sections.Music(rolls.grid(run.spec.facts), cut, lambda x: np.asarray(run.task.front.columns(x)), lambda x: scores.cells(run, x),
                          lambda made: assess_rolls.heard(run, made, cut), found and found[1], plain)


def _frames(run, splits) -> dict:
    """{step: posterior means of the first held-out examples} at every kept checkpoint."""
    import jax
    import numpy as np

    from vae_jax import checkpoint, report, session

    held = splits[next(role for role in ("test", "validation", "train") if role in splits)]
    batch = {name: values[:FRAME_CODES] for name, values in held.items() if np.asarray(values).dtype.kind in "biuf"}
    encode = jax.jit(lambda params, variables, rows: run.task.encode(params, variables, rows)["mean"])
    found = {}
    for step in checkpoint.Checkpoints(run.workdir / "checkpoints").steps():
        then = session.open_run(run.workdir, str(step))
        found[step] = report.chunks(lambda i, rows: encode(then.params, then.variables, rows), batch, run.config.eval.batch)
    return found
