"""Whole-split figures of a trained run beyond what training logs: dear measures, linear baselines, information, factors, a judge's verdict.

Every function takes an opened run and returns {path: value} with paths like those of metrics.jsonl.
"""

import math
import time

import jax
import numpy as np

from vae_jax import data as datas
from vae_jax import evaluate, session
from vae_jax.config import UserError
from vae_jax.latents import classes, pca, probes, statistics
from vae_jax.media import measures as picture_measures

ENCODED = 10_000  # examples of a split that are encoded for information, factors and baselines
NARROWER = (16, 32, 64)  # widths of linear baselines, where the code is wider
BASELINE = 60_000  # training examples that linear baselines are fitted on
JUDGED, JUDGED_BATCH = 2_000, 250  # prior samples shown to a judge, and at once
PRESENT = 0.01  # share of the samples from which on a class counts as present


def assess(run: session.Session, measures=(), measure_batch: int = 100, judge: str = "", interrupted=lambda: False) -> dict | None:
    """All figures of a run; None if interrupted. measures: (name, amount) pairs of `Task.measures`, over the whole test split."""
    sources = session.sources(run)
    found = splits(run, sources, interrupted)
    if found is None:
        return None
    found |= codes_and_pictures(run, sources)
    if judge:
        found |= judged(run, judge)
    for name, amount in measures:
        if "test" not in sources:
            raise UserError(f"{run.workdir} has no test split (config.data.test is empty), so {name!r} cannot be measured.")
        values = measure(run, sources["test"], name, amount, measure_batch, interrupted)
        if values is None:
            return None
        found |= values
    return found


def splits(run, sources: dict, interrupted=lambda: False) -> dict | None:
    """The task's own summary over every whole split, as training reports it."""
    found, key = {}, jax.random.key(run.config.seed + 1)
    sums = evaluate.make_sums(run.task.metrics, run.mesh)
    for role, source in sources.items():
        values = evaluate.evaluate(sums, run.task.summary, run.params, run.variables, source, run.mesh, run.config.eval.batch, key, 0, interrupted)
        if values is None:
            return None
        found |= {f"eval/{role}/{name}": v for name, v in values.items()}
    return found


def measure(run, source: datas.Source, name: str, amount: int, batch: int, interrupted=lambda: False) -> dict | None:
    """One of the task's dear measures over a whole split, with standard error, amount and seconds. Raises UserError if there is none such."""
    if name not in run.task.measures:
        raise UserError(f"{name!r} is not among this task's measures: {', '.join(run.task.measures) or 'it has none'}.")
    begin = time.monotonic()
    sums = evaluate.make_sums(lambda p, v, b, k: run.task.measures[name](p, v, b, k, amount), run.mesh)

    def summary(sums, squares, count):
        return {k: v / count for k, v in sums.items()} | {f"{k}_error": evaluate.standard_error(v, squares[k], count) for k, v in sums.items()}

    key = jax.random.key(run.config.seed + 1)
    values = evaluate.evaluate(sums, summary, run.params, run.variables, source, run.mesh, batch, key, 0, interrupted)
    if values is None:
        return None
    found = {f"eval/test/{k}": v for k, v in values.items()}
    return found | {f"eval/test/{name}_samples": amount, f"perf/{name}_seconds": time.monotonic() - begin}


def codes_and_pictures(run, sources: dict) -> dict:
    """Held out, beside PCA (as wide as the code, and narrower) and the mean training picture: squared error and overlap at threshold 0.5. Of the
    codes: information about the picture in nats (it cannot exceed log n), and how well directions follow the factors stored with the data."""
    if run.task.encode is None or run.task.decode is None or "test" not in sources:
        return {}

    def rebuild(params, variables, batch):
        code = run.task.encode(params, variables, batch)
        made = run.task.decode(params, variables, code["mean"], run.task.condition and run.task.condition(batch))
        return {**code, "made": made["image"], "image": run.task.front.analyse(batch)}

    held = evaluate.collect(rebuild, run.params, run.variables, sources["test"], run.mesh, run.config.eval.batch, ENCODED)
    width = held["mean"].shape[1]
    train = session.seen(run, sources["train"], BASELINE)
    linear, shape = pca.fit(train, width), held["image"].shape
    made = {"model": held["made"], "mean_picture": np.broadcast_to(linear.mean.reshape(shape[1:]), shape)}
    for kept in [k for k in NARROWER if k < width] + [width]:
        made[f"pca_{kept}"] = pca.reconstruct(linear, pca.project(linear, held["image"], kept)).reshape(shape)
    found = {}
    for name, pictures in made.items():
        found[f"eval/test/{name}_mse"] = mse = picture_measures.mse(held["image"], pictures).mean()
        if run.task.front.kind == "audio":
            found[f"eval/test/{name}_rmse_db"] = run.task.front.range_db * math.sqrt(mse)
        else:
            found[f"eval/test/{name}_iou"] = picture_measures.iou(held["image"], pictures).mean()
    if "logvar" in held:
        information, error = statistics.mutual_information(held["mean"], held["logvar"])
        found |= {"eval/test/mutual_information": information, "eval/test/mutual_information_error": error,
                  "eval/test/mutual_information_limit": math.log(len(held["mean"]))}
        moments = statistics.moments(statistics.draw(held["mean"], held["logvar"]))
        found |= {f"eval/test/aggregate_{name}/{i:03d}": v for name, values in moments.items() for i, v in enumerate(values)}
    return {k: float(v) for k, v in (found | _followed(run, sources)).items()}


def _factors(run) -> list[str]:
    """Known factors stored with the pictures: float fields."""
    return [name for name, f in run.spec.fields.items() if f.dtype == "float32"]


def _followed(run, sources) -> dict:
    """Correlation of each stored factor with its best direction of the code, in the first of test and train where factors vary.

    factor_NAME_i: one direction for all, fitted on four fifths of the groups of sources, scored on the others. factor_NAME_i_within: for the
    median source a direction of its own, fitted on every other of its versions, scored on the rest (a curved map turns from source to source).
    """
    names = _factors(run)
    for role in ("test", "train"):
        source = sources.get(role)
        if not names or source is None:
            continue
        rows = evaluate.collect(lambda p, v, b: {"mean": run.task.encode(p, v, b)["mean"], **{k: b[k] for k in names}},
                                run.params, run.variables, source, run.mesh, run.config.eval.batch, ENCODED)
        kept = source.split.read(np.arange(len(rows["mean"])), ["group", "source"])
        groups, origins = np.asarray(kept["group"]), np.asarray(kept["source"])
        distinct = np.unique(groups)
        fit = np.isin(groups, distinct[: max(1, int(0.8 * len(distinct)))])
        varied = [name for name in names if np.any(rows[name] != rows[name][:1])]
        if not varied or fit.all():
            continue
        own, found = [origins == origin for origin in np.unique(origins)], {}
        for name in varied:
            factor = rows[name].reshape(len(rows[name]), -1)
            correlation, _ = probes.factor_correlation(rows["mean"][fit], factor[fit], rows["mean"][~fit], factor[~fit])
            halves = [(rows["mean"][k][::2], factor[k][::2], rows["mean"][k][1::2], factor[k][1::2]) for k in own if k.sum() >= 20]
            within = np.median([probes.factor_correlation(*half)[0] for half in halves], 0) if halves else []
            found |= {f"eval/{role}/factor_{name}_{i}": abs(c) for i, c in enumerate(correlation)}
            found |= {f"eval/{role}/factor_{name}_{i}_within": c for i, c in enumerate(within)}
        return found
    return {}


def judged(run, judge: str) -> dict:
    """What a classifier trained on real data says of prior samples: classes present, confidence and its histogram; its own held-out accuracy; and
    how often it agrees with the class that was asked for: of a conditional model, or by the Gaussians of each class's training codes."""
    other = session.open_run(judge)
    if other.config.task != "classifier":
        raise UserError(f"{judge} is no classifier (its task is {other.config.task!r}); train experiments/judge.py.")
    if run.task.sample is None:
        raise UserError(f"the task {run.config.task!r} has no samples for a judge to look at.")
    kind, labels = run.task.front.kind, run.spec.fields["label"].labels if "label" in run.spec.fields else ()
    if not other.config.data.test or kind not in other.spec.fields or other.spec.fields[kind].shape != run.spec.fields[kind].shape:
        raise UserError(f"{judge} cannot judge this run: it needs a test split, and {kind} of the same shape as this run's.")
    request = {"temperature": np.ones(JUDGED, np.float32)}
    if run.task.condition:
        request["label"] = (np.arange(JUDGED) % len(labels)).astype(np.int32)
    chance = _verdicts(run, other, run.task.sample, request)
    share, sure = np.bincount(chance.argmax(-1), minlength=chance.shape[-1]) / JUDGED, chance.max(-1)
    accuracy = splits(other, session.sources(other, ("test",)))["eval/test/accuracy"]
    found = {"judge/classes": int((share >= PRESENT).sum()), "judge/confidence": float(sure.mean()), "judge/accuracy": accuracy}
    found |= {f"judge/confidence_{i / 10:.1f}": float(n) / JUDGED for i, n in enumerate(np.histogram(sure, 10, (0, 1))[0])}
    if run.task.condition:
        found["judge/agreement"] = float(np.mean(chance.argmax(-1) == request["label"]))
    elif run.task.encode and run.task.decode and labels == other.spec.fields["label"].labels and other.config.model.label == "label":
        gaussians = class_gaussians(run)
        asked = np.repeat(gaussians.label, JUDGED // len(gaussians.label))
        for name, spread in (("", None), ("_spread0.5", 0.5)):
            codes = np.concatenate([classes.draw(gaussians, c, JUDGED // len(gaussians.label), spread) for c in gaussians.label]).astype(np.float32)
            agreed = _verdicts(run, other, from_codes(run.task), {"code": codes}).argmax(-1) == asked
            by_class = [float(agreed[asked == c].mean()) for c in gaussians.label]
            found |= {f"judge/class{name}_agreement": float(agreed.mean()), f"judge/class{name}_agreement_least": min(by_class)}
    return found


def _verdicts(run, other, sample, request) -> np.ndarray:
    """A judge's probabilities [n, classes] of what `sample`, a `Task.sample`, makes."""
    kind = run.task.front.kind

    @jax.jit
    def verdict(weights, own, key, request):
        made = sample(*weights, key, request)[f"{kind}/mean"]
        rows = {kind: made if kind == "image" else made[..., None]}  # a judge of sounds hears the wave, not the spectrogram it was made from
        return jax.nn.softmax(other.task.encode(*own, rows)["logits"])

    n, key = len(jax.tree.leaves(request)[0]), jax.random.key(run.config.seed + 3)
    parts = [{k: v[i:i + JUDGED_BATCH] for k, v in request.items()} for i in range(0, n, JUDGED_BATCH)]
    return np.concatenate([np.asarray(verdict((run.params, run.variables), (other.params, other.variables), jax.random.fold_in(key, i), part)) for i, part in enumerate(parts)])


def class_gaussians(run, interrupted=lambda: False) -> classes.Classes | None:
    """Gaussians of the codes of every class of the training split; None if interrupted. Raises UserError where the data is gone or other data."""
    try:
        source = session.sources(run, ("train",))["train"]
    except UserError as error:
        raise UserError(f"the data this run was trained on is needed: its codes say where a class lies. {error}") from None
    if source.split.digest != run.spec.digest:
        raise UserError(f"the data this run was trained on is needed, and {run.config.data.dir} holds other data now.")

    def encode(params, variables, batch):
        code = run.task.encode(params, variables, batch)
        return {name: code[name] for name in ("mean", "logvar") if name in code} | {"label": batch["label"]}

    rows = evaluate.collect(encode, run.params, run.variables, source, run.mesh, run.config.eval.batch, interrupted=interrupted)
    return None if rows is None else classes.fit(rows["mean"], rows.get("logvar"), rows["label"])


def from_codes(task):
    """A `Task.sample` whose request holds the codes, {'code': [n, d]}."""

    def sample(params, variables, key, request):
        made = task.decode(params, variables, request["code"], None)
        found = {"image/mean": made["image"]}
        return found | ({"audio/mean": task.front.sound(made["image"], made.get("level"), key)} if task.front.kind == "audio" else {})

    return sample
