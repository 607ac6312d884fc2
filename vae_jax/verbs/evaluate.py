"""evaluate: whole-split figures of a trained run, with standard errors, baselines and importance-weighted likelihood.

    python -m vae_jax evaluate --workdir=runs/mnist --measure=nll:5000 --judge=runs/judge

Prints a table and writes WORKDIR/evaluation.json.
"""

from absl import flags

from vae_jax.config import UserError
from vae_jax.verbs import trained

MEASURE = flags.DEFINE_multi_string("measure", [], "NAME:AMOUNT, a dearer figure of the task on the test split; nll:5000 = 5,000 importance samples.")
MEASURE_BATCH = flags.DEFINE_integer("measure_batch", 100, "Examples a batch of --measure.", lower_bound=1)
JUDGE = flags.DEFINE_string("judge", "", "Run folder of a classifier (experiments/judge.py) that looks at prior samples.")


def main(started: float) -> int:
    from vae_jax import assess, session
    from vae_jax import mesh as meshes

    measures = [_parse(text) for text in MEASURE.value]
    run = trained.open_run()
    with session.Leaving() as leaving:
        found = assess.assess(run, measures, MEASURE_BATCH.value, JUDGE.value, leaving.now)
    if found is None or not meshes.is_main():
        trained.left(found is None)
        return 0
    for name, value in found.items():
        if "kl_per_dimension/" not in name:
            print(f"{name:42s} {value:14.6g}")
    path = run.workdir / "evaluation.json"
    session.write_json(path, {"checkpoint": run.step, "seed": run.config.seed, "results": found})
    print(path)
    return 0


def _parse(text: str) -> tuple[str, int]:
    name, _, amount = text.partition(":")
    if not amount.isdigit() or int(amount) < 1:
        raise UserError(f"--measure={text} should be NAME:AMOUNT, e.g. nll:5000.")
    return name, int(amount)
