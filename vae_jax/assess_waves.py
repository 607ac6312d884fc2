"""Whole-split figures of a model of waves beside what silence, and the mean spectrum of the training sounds, would reach; and a judge's view."""

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import evaluate, session
from vae_jax.config import UserError
from vae_jax.dsp import descriptors
from vae_jax.losses import spectral

JUDGED = 400  # crops of a split, evenly spaced, that a judge hears


def baselines(run, sources: dict, interrupted=lambda: False, examples: int = 0) -> dict | None:
    """{path: spectral distance} of every held-out split from the training split's mean spectrum in all frames; None if interrupted.

    examples: of each split, evenly spaced; 0 = all. Silence is among the task's own figures.
    """
    spectra = mean_spectra(run, sources["train"], interrupted, examples)
    if spectra is None:
        return None
    m, front, found = run.config.model, run.task.front, {}
    spectra = {window: np.float32(spectrum) for window, spectrum in spectra.items()}

    def far(params, variables, batch):
        x = front.analyse(batch)
        valid = jnp.repeat(batch["valid"], x.shape[2])
        return spectral.from_spectra(spectral.rows(x), spectra, m.distance, valid).reshape(len(x), -1).mean(1)

    for role in (r for r in sources if r != "train" or len(sources) == 1):
        distance = evaluate.collect(far, {}, {}, sources[role], run.mesh, run.config.eval.batch, examples, interrupted)
        if distance is None:
            return None
        found[f"eval/{role}/mean_spectrum_distance"] = float(distance.mean())
    return found


def ratios(figures: dict) -> dict:
    """{path: our spectral distance over that of the better of silence and mean spectrum}, of splits whose baselines are among the figures."""
    roles = [path.split("/")[1] for path in figures if path.endswith("/mean_spectrum_distance")]
    better = {role: min(figures[f"eval/{role}/{name}_distance"] for name in ("silence", "mean_spectrum")) for role in roles}
    return {f"eval/{role}/distance_ratio": figures[f"eval/{role}/loss"] / better[role] for role in roles}


def mean_spectra(run, source, interrupted=lambda: False, examples: int = 0) -> dict | None:
    """{window: mean magnitude spectrum [window // 2 + 1], float64} over the frames, those that count in `spectral.distance`, channels and crops of a
    split; None if interrupted."""
    windows, front, total, count = tuple(run.config.model.windows), run.task.front, 0.0, 0

    def spectra(params, variables, batch):
        x = front.analyse(batch)
        found, valid = {window: spectral.magnitude(spectral.rows(x), window) for window in windows}, jnp.repeat(batch["valid"], x.shape[2])
        means = [s.mean(1, where=spectral.real_frames(s, window, valid)) for window, s in found.items()]
        return [mean.reshape(len(x), x.shape[2], -1).mean(1) for mean in means]

    for part in evaluate.batches(spectra, {}, {}, source, run.mesh, run.config.eval.batch, examples):
        total = jax.tree.map(lambda a, b: a + b.sum(0, dtype=np.float64), total, part) if count else [a.sum(0, dtype=np.float64) for a in part]
        count += len(part[0])
        if interrupted():
            return None
    return {window: sums / count for window, sums in zip(windows, total)}


def judged(run, judge: str, sources: dict, interrupted=lambda: False) -> dict | None:
    """Frechet distance, squared, of a classifier's features of what the model makes of held-out sounds from those of the sounds themselves, in pieces
    as long as the classifier's examples, those that begin before a recording ends; beside it that of training sounds from held-out ones, which no
    model need go below; the classifier's own held-out accuracy, and how often its verdict on a piece stays the same. None if interrupted. Raises
    UserError for a judge that cannot hear it."""
    other, role = session.open_run(judge), next((r for r in ("test", "validation") if r in sources), None)
    if other.config.task != "classifier" or other.task.front.kind != "audio" or not other.config.data.test:
        raise UserError(f"{judge} is no judge of sounds with a test split of its own: train experiments/judge.py:voices, say.")
    samples, crop = other.spec.fields["audio"].shape[0], run.task.front.shape[0]
    if role is None or other.spec.facts["rate"] != run.task.front.rate or samples > crop - run.task.front.delay:
        raise UserError(f"{judge} judges {samples} samples at {other.spec.facts['rate']} Hz; this run must have a held-out split and crops of at "
                        f"least as many at that rate, but has {crop} at {run.task.front.rate} Hz.")

    def hear(params, variables, batch):
        x, late = run.task.front.analyse(batch), run.task.front.delay
        code = run.task.encode(params, variables, batch)["mean"]
        made = run.task.decode(params, variables, code, None)["audio"]
        count = (crop - late) // samples
        found = {"heard": spectral.in_sound(batch["valid"], count, samples)[..., 0]}
        for name, wave in zip(("real", "made"), spectral.aligned(x, made, late)):
            pieces = wave.mean(-1)[:, :count * samples].reshape(-1, samples, 1)
            seen = other.task.encode(other.params, other.variables, {"audio": pieces})
            found[name] = seen["mean"].reshape(len(x), count, -1)
            found[name + "_class"] = seen["logits"].argmax(-1).reshape(len(x), count)
        return found

    parts = {}
    for part in (role, "train"):
        parts[part] = evaluate.collect(hear, run.params, run.variables, sources[part], run.mesh, run.config.eval.batch, JUDGED, interrupted)
        if parts[part] is None:
            return None
    own = evaluate.splits(other, session.sources(other, ("test",)), interrupted)
    if own is None:
        return None
    pieces = {part: {name: values[found["heard"]] for name, values in found.items()} for part, found in parts.items()}
    held, frechet = pieces[role], descriptors.frechet
    return {"judge/frechet": frechet(held["made"], held["real"]), "judge/frechet_of_training": frechet(pieces["train"]["real"], held["real"]),
            "judge/same_verdict": float(np.mean(held["made_class"] == held["real_class"])), "judge/pieces": len(held["real"]),
            "judge/accuracy": own["eval/test/accuracy"]}
