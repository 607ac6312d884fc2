"""Whole-split figures of a trained run beyond what training logs: dear measures, linear baselines, information, factors, a judge's verdict.

Every function takes an opened run and returns {path: value} with paths like those of metrics.jsonl.
"""

import math
import time

import jax
import numpy as np
import soxr

from vae_jax import assess_codes, assess_rolls, assess_waves, evaluate, fronts, session, tasks
from vae_jax import data as datas
from vae_jax.config import UserError
from vae_jax.dsp import stft
from vae_jax.latents import classes, pca, probes, statistics
from vae_jax.media import measures as picture_measures
from vae_jax.media import sounds
from vae_jax.models import priors

ENCODED = 10_000  # examples of a split that are encoded for information, factors and baselines
COMPARED = 500  # samples, and held-out examples, whose nearest training example is looked for
HEARD, HEARD_RATE = 300, 8000  # held-out sounds that are made into waves again, and the rate, in Hz, at which these are compared
NARROWER = (16, 32, 64)  # widths of linear baselines, where the code is wider
JUDGED, JUDGED_BATCH = 2_000, 250  # prior samples shown to a judge, and at once
PRESENT = 0.01  # share of the samples from which on a class counts as present


def assess(run: session.Session, measures=(), measure_batch: int = 100, judge: str = "", interrupted=lambda: False) -> dict | None:
    """All figures of a run; None if interrupted. measures: (name, amount) pairs of `Task.measures`, over the whole test split."""
    waves = run.task.front is not None and run.task.front.kind == "wave"
    coded = waves and run.task.front.hop > 0
    if judge:
        session.open_run(judge)  # a mistake is found now, and not after minutes
    sources = session.sources(run)
    sources = assess_codes.wholes(run, sources) if coded else sources
    found = evaluate.splits(run, sources, interrupted)
    if found is None:
        return None
    others = (codes_and_pictures, resynthesised, assess_rolls.figures)
    for figures in (assess_codes.figures,) if coded else (assess_waves.baselines,) if waves else others:
        values = figures(run, sources, interrupted)
        if values is None:
            return None
        found |= values
    found |= assess_waves.ratios(found)
    if judge:
        verdict = (assess_codes.judged if coded else assess_waves.judged if waves else judged)(run, judge, sources, interrupted)
        if verdict is None:
            return None
        found |= verdict
    for name, amount in measures:
        if "test" not in sources:
            raise UserError(f"{run.workdir} has no test split (config.data.test is empty), so {name!r} cannot be measured.")
        values = measure(run, sources["test"], name, amount, measure_batch, interrupted)
        if values is None:
            return None
        found |= values
    return found


def measure(run, source: datas.Source, name: str, amount: int, batch: int, interrupted=lambda: False) -> dict | None:
    """One of the task's dear measures over a whole split, with standard error, amount and seconds. Raises UserError if there is none such."""
    if not run.task.measures:
        raise UserError(f"this run of the task {run.config.task!r} has no measures, so {name!r} cannot be measured: leave --measure out.")
    if name not in run.task.measures:
        raise UserError(f"{name!r} is not among this task's measures: {', '.join(run.task.measures)}.")
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


def codes_and_pictures(run, sources: dict, interrupted=lambda: False) -> dict | None:
    """Held out, beside PCA (as wide as the code, and narrower) and the mean training picture: squared error and overlap at threshold 0.5. Of the
    codes: information about the picture in nats (it cannot exceed log n), and how well directions follow the factors stored with the data.
    Of indices of a codebook: the squared error, beside that of the mean picture, alone."""
    if run.task.encode is None or run.task.decode is None or "test" not in sources or run.task.front.kind not in run.spec.fields:
        return {}

    def rebuild(params, variables, batch):
        code, made = tasks.rebuild(run.task, params, variables, batch)
        return {**code, "made": made["image"], "image": run.task.front.analyse(batch)}

    held = evaluate.collect(rebuild, run.params, run.variables, sources["test"], run.mesh, run.config.eval.batch, ENCODED, interrupted)
    if held is None:
        return None
    if "mean" not in held:
        flat = pca.fit(session.seen(run, sources["train"], session.baseline(run)), 0)
        return {"eval/test/model_mse": float(picture_measures.mse(held["image"], held["made"]).mean()),
                "eval/test/mean_picture_mse": float(pca.errors(flat, held["image"], 0).mean())}
    width = held["mean"].shape[1]
    linear = pca.fit(session.seen(run, sources["train"], session.baseline(run)), width)
    squared = {f"pca_{k}": pca.errors(linear, held["image"], k) for k in (*(k for k in NARROWER if k < width), width)}
    squared |= {"model": picture_measures.mse(held["image"], held["made"]), "mean_picture": pca.errors(linear, held["image"], 0)}
    found = {f"eval/test/{name}_mse": values.mean() for name, values in squared.items()}
    if run.task.front.kind == "audio":
        found |= {f"eval/test/{name}_rmse_db": run.task.front.range_db * math.sqrt(values.mean()) for name, values in squared.items()}
    else:
        shape = held["image"].shape
        overlaps = {"model": held["made"], f"pca_{width}": pca.reconstruct(linear, pca.project(linear, held["image"])).reshape(shape),
                    "mean_picture": np.broadcast_to(linear.mean.reshape(shape[1:]), shape)}
        found |= {f"eval/test/{name}_iou": picture_measures.iou(held["image"], pictures).mean() for name, pictures in overlaps.items()}
    if run.task.front.kind == "roll":
        found |= assess_rolls.baselines(run, sources, linear)
    prior = mixture(run)
    if prior is not None:
        share = priors.shares(prior, statistics.draw(held["mean"], held["logvar"]) if "logvar" in held else held["mean"])
        found |= {"eval/test/components_used": (share > priors.USED).sum(), "eval/test/components_least_share": share.min()}
    if "logvar" in held:
        information, error = statistics.mutual_information(held["mean"], held["logvar"])
        found |= {"eval/test/mutual_information": information, "eval/test/mutual_information_error": error,
                  "eval/test/mutual_information_limit": math.log(len(held["mean"]))}
        moments = statistics.moments(statistics.draw(held["mean"], held["logvar"]))
        found |= {f"eval/test/aggregate_{name}/{i:03d}": v for name, values in moments.items() for i, v in enumerate(values)}
    return {k: float(v) for k, v in (found | _followed(run, sources)).items()}


def mixture(run):
    """The run's prior where it is a mixture (models.priors), else None."""
    m = run.config.model
    if getattr(m, "prior", "") != "mixture":
        return None
    return priors.get(m.prior, m.latent, m.components, m.covariance).dist(run.params["prior"])


def resynthesised(run, sources: dict, interrupted=lambda: False) -> dict | None:
    """How far held-out sounds are, as heard, from what the vocoder alone and model and vocoder make of them: log-spectral RMSE in dB at one rate
    and with one window whatever the front, so that fronts can be compared. 80 dB below each recording's peak is the floor."""
    front = run.task.front
    if front.kind != "audio" or run.task.decode is None or "test" not in sources:
        return {}

    def hear(params, variables, batch):
        made = tasks.rebuild(run.task, params, variables, batch)[1]
        level, key = front.level and front.level(batch), jax.random.key(0)
        return {"original": fronts.wave(batch), "vocoder": front.sound(front.analyse(batch), level, key),
                "heard": front.sound(made["image"], made.get("level"), key)}

    rows = evaluate.collect(hear, run.params, run.variables, sources["test"], run.mesh, min(50, run.config.eval.batch), HEARD, interrupted)
    if rows is None:
        return None
    spectra = {}
    for name, waves in rows.items():
        if front.rate != HEARD_RATE:
            waves = np.stack([soxr.resample(np.asarray(w, np.float32), front.rate, HEARD_RATE) for w in waves])
        spectra[name] = np.asarray(stft.to_db(stft.magnitude(stft.stft(waves, 256, 64)) / stft.full_scale(256), -200.0))
    original = np.maximum(spectra["original"], spectra["original"].max((1, 2), keepdims=True) - 80.0)
    return {f"eval/test/{name}_rmse_db": math.sqrt(sounds.squared_db(original, spectra[name]).mean()) for name in ("vocoder", "heard")}


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
        kept = source.texts(datas.spaced(len(source), ENCODED), ["group", "source"])
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


def judged(run, judge: str, sources: dict, interrupted=lambda: False) -> dict | None:
    """What a classifier trained on real data says of prior samples: classes present, confidence and its histogram; its own held-out accuracy; and
    how often it agrees with the class that was asked for: of a conditional model, or by the Gaussians of each class's training codes. Beside it,
    over the samples' pictures: distance to the nearest training picture and diversity, both over those of held-out pictures. None if interrupted."""
    other = session.open_run(judge)
    if other.config.task != "classifier":
        raise UserError(f"{judge} is no classifier (its task is {other.config.task!r}); train experiments/judge.py.")
    if run.task.sample is None:
        raise UserError(f"the task {run.config.task!r} has no samples for a judge to look at.")
    kind, labels = run.task.front.kind, run.spec.fields["label"].labels if "label" in run.spec.fields else ()
    stored = kind in run.spec.fields
    shape = run.spec.fields[kind].shape if stored else run.task.front.shape  # a prior's data may be codes of pictures alone
    if (not other.config.data.test or kind not in other.spec.fields or tuple(other.spec.fields[kind].shape) != tuple(shape)
            or any(other.spec.facts.get(name) != run.spec.facts.get(name) for name in ("rate", "low", "steps_per_quarter"))):
        raise UserError(f"{judge} cannot judge this run: it needs a test split, and {kind} of the same shape and sample rate (of rolls lowest pitch, "
                        "steps a quarter) as this run's.")
    request = {"temperature": np.ones(JUDGED, np.float32)}
    if run.task.condition:
        request["label"] = (np.arange(JUDGED) % len(labels)).astype(np.int32)
    answer = _verdicts(run, other, run.task.sample, request, interrupted)
    own = evaluate.splits(other, session.sources(other, ("test",)), interrupted)
    if answer is None or own is None:
        return None
    chance, pictures = answer
    share, sure = np.bincount(chance.argmax(-1), minlength=chance.shape[-1]) / JUDGED, chance.max(-1)
    found = {"judge/classes": int((share >= PRESENT).sum()), "judge/confidence": float(sure.mean()), "judge/accuracy": own["eval/test/accuracy"]}
    found |= {f"judge/confidence_{i / 10:.1f}": float(n) / JUDGED for i, n in enumerate(np.histogram(sure, 10, (0, 1))[0])}
    if "test" in sources and stored:
        among, real = session.seen(run, sources["train"], session.baseline(run)), session.seen(run, sources["test"], COMPARED)
        far, real_far = (float(np.median(picture_measures.nearest(x, among)[0])) for x in (pictures[:COMPARED], real))
        found |= {"judge/nearest": far / real_far, "judge/diversity": picture_measures.diversity(pictures) / picture_measures.diversity(real)}
    if not labels or other.config.model.label != "label" or labels != other.spec.fields["label"].labels:
        return found  # it tells other classes apart than this run's data has
    if run.task.condition:
        agreed = chance.argmax(-1) == request["label"]
        return found | {"judge/agreement": float(agreed.mean()),
                        "judge/agreement_least": min(float(agreed[request["label"] == c].mean()) for c in range(len(labels)))}
    if run.task.encode is None or run.task.decode is None or run.config.task == "code_prior":
        return found  # no Gaussians of codes
    gaussians = class_gaussians(run, interrupted)
    if gaussians is None:
        return None
    each = JUDGED // len(gaussians.label)
    asked = np.repeat(gaussians.label, each)
    for name, spread in (("", None), ("_spread0.5", 0.5)):
        codes = np.concatenate([classes.draw(gaussians, c, each, spread) for c in gaussians.label]).astype(np.float32)
        answer = _verdicts(run, other, from_codes(run.task), {"code": codes}, interrupted)
        if answer is None:
            return None
        agreed = answer[0].argmax(-1) == asked
        found |= {f"judge/class{name}_agreement": float(agreed.mean()),
                  f"judge/class{name}_agreement_least": min(float(agreed[asked == c].mean()) for c in gaussians.label)}
    return found


def _verdicts(run, other, sample, request, interrupted):
    """A judge's probabilities [n, classes] of what `sample`, a `Task.sample`, makes, and its pictures; None if interrupted."""
    kind = run.task.front.kind
    cut = assess_rolls.threshold(run, interrupted) if kind == "roll" else 0.0
    if cut is None:
        return None
    make, verdict = jax.jit(sample), jax.jit(lambda own, rows: jax.nn.softmax(other.task.encode(*own, rows)["logits"]))
    n, key, found = len(jax.tree.leaves(request)[0]), jax.random.key(run.config.seed + 3), []
    for i, start in enumerate(range(0, n, JUDGED_BATCH)):
        part = {k: v[start:start + JUDGED_BATCH] for k, v in request.items()}
        made = jax.device_get(make(run.params, run.variables, jax.random.fold_in(key, i), part))
        # A judge of sounds hears the wave, one of rolls what is played
        rows = assess_rolls.heard(run, made, cut) if kind == "roll" else made["image/mean"] if kind == "image" else made["audio/mean"][..., None]
        pictures = session.stored(run, {kind: rows}) if kind == "roll" else made["image/mean"]
        found.append((jax.device_get(verdict((other.params, other.variables), {kind: rows})), pictures))
        if interrupted():
            return None
    return tuple(np.concatenate(parts) for parts in zip(*found))


def class_gaussians(run, interrupted=lambda: False) -> classes.Classes | None:
    """Gaussians of the codes of every class of the training split; None if interrupted. Raises UserError where the data is gone or other data."""
    try:
        source = session.sources(run, ("train",))["train"]
    except UserError as error:
        raise UserError(f"the data this run was trained on is needed: its codes say where a class lies. {error}") from None

    def encode(params, variables, batch):
        code = run.task.encode(params, variables, batch)
        return {name: code[name] for name in ("mean", "logvar") if name in code} | {"label": batch["label"]}

    rows = evaluate.collect(encode, run.params, run.variables, source, run.mesh, run.config.eval.batch, interrupted=interrupted)
    return None if rows is None else classes.fit(rows["mean"], rows.get("logvar"), rows["label"])


def from_codes(task):
    """A `Task.sample` whose request holds the codes, {'code': [n, d]}."""

    def sample(params, variables, key, request):
        made = task.decode(params, variables, request["code"], None)
        if task.front.kind == "roll":
            return {"roll/mean": task.front.columns(made["image"])}
        found = {"image/mean": made["image"]}
        return found | ({"audio/mean": task.front.sound(made["image"], made.get("level"), key)} if task.front.kind == "audio" else {})

    return sample
