"""reproduce: trains an experiment that carries targets, evaluates it, and prints target beside ours.

    python -m vae_jax reproduce --config=experiments/mnist_likelihood.py:c1 --workdir=runs/c1

Resumes an interrupted run. Writes experiments/results/NAME.json, NAME the experiment's name.
"""

import json
import pathlib
import platform
import re
import time

from ml_collections import config_flags

from vae_jax.config import Target, UserError
from vae_jax.verbs import common, trained

CONFIG = config_flags.DEFINE_config_file("config", None, common.CONFIG_HELP)
RESULTS = pathlib.Path("experiments/results")


def main(started: float) -> int:
    config, workdir = common.config_of(CONFIG), common.new_workdir()
    if not re.fullmatch(r"[\w.-]+", config.name):
        raise UserError(f"config.name={config.name!r} should be letters, digits, '.', '-' or '_': `reproduce` names its result file after it.")
    for target in config.targets:
        met(target, 0.0)
    common.compile_cache(config.run.compile_cache)
    from vae_jax import assess, metrics, session, train
    from vae_jax import mesh as meshes

    if train.train(config, workdir, started) is None:
        print("the run is not complete; the same command goes on with it")
        return 0
    run, begin = session.open_run(workdir, trained.CHECKPOINT.value), time.monotonic()
    with session.Leaving() as leaving:
        found = assess.assess(run, list(config.measures.items()), interrupted=leaving.now)
    if found is None or not meshes.is_main():
        trained.left(found is None)
        return 0
    row = result(config, run.step, found, round(metrics.training_seconds(workdir)), round(time.monotonic() - begin))
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{config.name}.json"
    path.write_text(json.dumps(row, indent=1) + "\n")
    for target in row["targets"]:
        print(f"{config.name}: {target['metric']} {target['ours']}, target {target['goal']} {target['value']} ({target['source']}): "
              f"{'met' if target['met'] else 'NOT MET'}")
    print(f"seed {row['seed']}, {row['steps']} steps, {row['train']} -> {row['test']} of {row['data']}, "
          f"{row['training_seconds']} s of training, {row['evaluation_seconds']} s of evaluation\n{path}")
    return 0


def result(config, step: int, found: dict, seconds: int, evaluation_seconds: int) -> dict:
    """The stored row: our figures beside the targets (None for one that was not measured), and how they came about."""
    import jax

    return {
        "name": config.name, "seed": config.seed, "steps": config.run.steps, "checkpoint": step, "data": config.data.dir,
        "train": config.data.train, "test": config.data.test, "training_seconds": seconds, "evaluation_seconds": evaluation_seconds,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}",
        "targets": [{"metric": t.metric, "goal": t.goal, "value": t.value, "tolerance": t.tolerance, "source": t.source,
                     "ours": found.get(t.metric), "met": t.metric in found and met(t, found[t.metric])} for t in config.targets],
        "results": {k: v for k, v in found.items() if "kl_per_dimension/" not in k},
    }


def met(target: Target, ours: float) -> bool:
    """Whether a figure reaches its target. Raises UserError for a goal that is none."""
    if target.goal not in ("<=", ">=", "+-"):
        raise UserError(f"a target's goal is <=, >= or +-, not {target.goal!r}.")
    return {"<=": ours <= target.value, ">=": ours >= target.value, "+-": abs(ours - target.value) <= target.tolerance}[target.goal]
