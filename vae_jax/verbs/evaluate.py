"""evaluate: whole-split figures of a trained run, with standard errors, baselines and importance-weighted likelihood.

    python -m vae_jax evaluate --workdir=runs/mnist --measure=nll:5000 --judge=runs/judge
    python -m vae_jax evaluate --workdir=runs/bottles --split=test      another split of the data than the run's own test split

Prints a table and writes WORKDIR/evaluation.json (with --split, evaluation-SPLIT.json), which also has the figures of every single dimension. Dear
figures that an earlier call measured at the same checkpoint, such as the likelihood, stay in the file. Of models of the wave (RAVE) the spectral
distance stands beside those of silence and of the mean training spectrum, and `distance_ratio` is ours over the better one's; a judge hears what is
rebuilt of held-out sounds. Of models that tell sounds by codes (wave_vqvae) there is what these give away of class and speaker; a judge hears copies,
and copies with another voice.

    python -m vae_jax evaluate --workdir=runs/wave_vqvae --judge=runs/judge_speaker      and with --judge=runs/judge_fsdd: both stay in the file
"""

import json
import re

from absl import flags

from vae_jax.config import UserError
from vae_jax.verbs import trained

SPLIT = flags.DEFINE_string("split", "", "Split, or part of one such as test[:100], in place of the run's test split.")
MEASURE = flags.DEFINE_multi_string("measure", [], "NAME:AMOUNT, a dearer figure of the task on the test split; nll:5000 = 5,000 importance samples.")
MEASURE_BATCH = flags.DEFINE_integer("measure_batch", 100, "Examples a batch of --measure.", lower_bound=1)
JUDGE = flags.DEFINE_string("judge", "", "Run folder of a classifier (experiments/judge.py) that looks at samples, or listens to copies.")


def main(started: float) -> int:
    from vae_jax import assess, session
    from vae_jax import mesh as meshes

    measures = [_parse(text) for text in MEASURE.value]
    run = trained.open_run()
    run.config.data.test = SPLIT.value or run.config.data.test
    with session.Leaving() as leaving:
        found = assess.assess(run, measures, MEASURE_BATCH.value, JUDGE.value, leaving.now)
    if found is None or not meshes.is_main():
        trained.left(found is None)
        return 0
    for name, value in found.items():
        if not re.search(r"/\d+$", name):
            print(f"{name:42s} {value:14.6g}")
    path = run.workdir / (f"evaluation-{re.sub(r'[^0-9A-Za-z_]+', '_', SPLIT.value)}.json" if SPLIT.value else "evaluation.json")
    before, judges = _before(path, run.step)
    judges = ", ".join(dict.fromkeys([name for name in (*judges.split(", "), JUDGE.value) if name]))  # whose figures stay in the file
    session.write_json(path, {"checkpoint": run.step, "seed": run.config.seed, "judge": judges, "results": before | found})
    print(path)
    return 0


def _before(path, step: int) -> tuple[dict, str]:
    """What the file holds of the same checkpoint, and the judges that said it."""
    try:
        stored = json.loads(path.read_text())
        return (dict(stored["results"]), str(stored["judge"])) if stored["checkpoint"] == step else ({}, "")
    except (OSError, ValueError, KeyError, TypeError):
        return {}, ""


def _parse(text: str) -> tuple[str, int]:
    name, _, amount = text.partition(":")
    if not amount.isdigit() or int(amount) < 1:
        raise UserError(f"--measure={text} should be NAME:AMOUNT, e.g. nll:5000.")
    return name, int(amount)
