"""reconstruct: held-out pictures, or one's own, above what the model makes of them (posterior mean, no draw).

    python -m vae_jax reconstruct --workdir=runs/mnist
    python -m data_prep.images --source=my_pictures --out=datasets/mine --size=28 --colour=grey
    python -m vae_jax reconstruct --workdir=runs/mnist --data=datasets/mine --split=train

Writes WORKDIR/reconstructions/NAME.png and NAME.npz (original, reconstruction, mse), NAME from data set and split.
"""

from absl import flags

from vae_jax.config import UserError
from vae_jax.verbs import trained

DATA = flags.DEFINE_string("data", "", "Folder written by data_prep; '' = the run's own data.")
SPLIT = flags.DEFINE_string("split", "", "Split, or part of one such as test[:100]; '' = the run's test split.")
COUNT = flags.DEFINE_integer("count", 64, "At most so many pictures, from the first.", lower_bound=1)
SHOWN = 80  # pictures on the sheet


def main(started: float) -> int:
    from vae_jax import data, evaluate, records, session
    from vae_jax import mesh as meshes
    from vae_jax.media import images, measures

    run = trained.open_run()
    if run.task.encode is None or run.task.decode is None:
        raise UserError(f"the task {run.config.task!r} rebuilds nothing.")
    origin = DATA.value or run.config.data.dir
    source = data.Source(origin, SPLIT.value or run.config.data.test, run.config.data.memory_mb)
    wanted, given = run.spec.fields["image"].shape, source.split.fields["image"].shape if "image" in source.split.fields else None
    if given != wanted:
        raise UserError(f"the model takes pictures of {' x '.join(map(str, wanted))}, but {origin} has "
                        f"{'none' if given is None else ' x '.join(map(str, given))}; prepare it with --size={wanted[0]},{wanted[1]} "
                        f"--colour={'grey' if wanted[2] == 1 else 'rgb'}.")
    if run.task.condition and "label" not in source.fields:
        raise UserError(f"the model is conditional, but {origin} has no labels; prepare it from sub-folders named by class.")

    def rebuild(params, variables, batch):
        code = run.task.encode(params, variables, batch)["mean"]
        return {"image": batch["image"], "made": run.task.decode(params, variables, code, run.task.condition and run.task.condition(batch))["image"]}

    with session.Leaving() as leaving:
        rows = evaluate.collect(rebuild, run.params, run.variables, source, run.mesh, run.config.eval.batch, COUNT.value, leaving.now)
    if rows is None or not meshes.is_main():
        trained.left(rows is None)
        return 0
    errors = measures.mse(rows["image"], rows["made"])
    folder = run.workdir / "reconstructions"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{records.open_folder(origin).name}-{source.split.name}"
    session.write_npz(folder / f"{name}.npz", {"original": rows["image"], "reconstruction": rows["made"], "mse": errors})
    columns = min(16, len(errors))
    pairs = images.bands([images.resize(rows[k][:SHOWN], columns) for k in ("image", "made")], columns)
    (folder / f"{name}.png").write_bytes(images.png(images.grid(pairs, columns, band=2)))
    print(f"{len(errors)} pictures, mean squared error {errors.mean():.5f} (worst {errors.max():.5f}) in units of black to white")
    print(folder / f"{name}.png")
    return 0
