"""encode_codes: a data set of pictures as a data set of their codes, on which a prior trains without the encoder at every step.

    python -m vae_jax encode_codes --workdir=runs/vq_photos --out=datasets/photos_codes
    python -m vae_jax train --config=experiments/code_prior.py:photos --config.data.dir=datasets/photos_codes ...

Every split of the run's data, whole and in its order: `codes` int32 [h, w, c], and the labels. The weights that made them are remembered: a prior
starts from these alone.
"""

from absl import flags

from vae_jax.config import UserError
from vae_jax.verbs import trained

OUT = flags.DEFINE_string("out", "", "Folder of the data set that is written.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a data set that is there.")


def main(started: float) -> int:
    import pathlib
    import re

    import jax

    from vae_jax import data, evaluate, records, session

    if not OUT.value:
        raise UserError("name the folder that is to be written: --out=datasets/NAME.")
    if jax.process_count() > 1:
        raise UserError(f"encode_codes writes one data set from one process, and these are {jax.process_count()}: start it without --coordinator.")
    run = trained.open_run()
    if run.config.task != "vqvae":
        raise UserError(f"{run.workdir} is a run of the task {run.config.task!r}; codes come from a run of vqvae.")
    session.sources(run, ("train",))  # says so where the data is gone, or other data
    labels = {name: field for name, field in run.spec.fields.items() if name == "label"}

    def encode(params, variables, batch):
        return {"codes": run.task.encode(params, variables, batch)["indices"]} | {name: batch[name] for name in labels}

    name = re.sub(r"\W", "_", pathlib.Path(OUT.value).name.lower())
    with session.Leaving() as leaving, records.Writer(OUT.value, name, OVERWRITE.value) as writer:
        for split in run.spec.splits:
            source = data.Source(run.config.data.dir, split, run.config.data.memory_mb)
            for rows in evaluate.batches(encode, run.params, run.variables, source, run.mesh, run.config.eval.batch):
                shape = rows["codes"].shape[1:]
                fields = {"codes": records.Field(shape, "int32"), **labels}
                for i in range(len(rows["codes"])):
                    writer.add(split, records.encode(fields, {name: values[i] for name, values in rows.items()}))
                if leaving.now():
                    trained.left(True)
                    return 0
        players = {name: session.digest(run.params[name], run.variables.get(name, {})) for name in ("encoder", "quantizer")}
        spec = writer.finish(fields, {"made_by": "encode_codes"}, {"image": list(run.task.front.shape), "players": players})
    counts = ", ".join(f"{split} {n:,}" for split, n in spec.splits.items())
    print(f"{OUT.value}: {counts}; codes {' x '.join(map(str, shape))} of {' x '.join(map(str, run.task.front.shape))} pictures")
    return 0
