"""Whole-split figures of a model of waves beside what silence, and the mean spectrum of the training sounds, would reach."""

import jax
import numpy as np

from vae_jax import evaluate
from vae_jax.losses import spectral


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
        return spectral.from_spectra(x.swapaxes(1, 2).reshape(-1, x.shape[1]), spectra, m.distance).reshape(len(x), -1).mean(1)

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
    """{window: mean magnitude spectrum [window // 2 + 1], float64} over frames, channels and crops of a split; None if interrupted."""
    windows, front, total, count = tuple(run.config.model.windows), run.task.front, 0.0, 0

    def spectra(params, variables, batch):
        x = front.analyse(batch)
        rows = x.swapaxes(1, 2).reshape(-1, x.shape[1])
        return [spectral.magnitude(rows, window).mean(1).reshape(len(x), front.shape[1], -1).mean(1) for window in windows]

    for part in evaluate.batches(spectra, {}, {}, source, run.mesh, run.config.eval.batch, examples):
        total = jax.tree.map(lambda a, b: a + b.sum(0, dtype=np.float64), total, part) if count else [a.sum(0, dtype=np.float64) for a in part]
        count += len(part[0])
        if interrupted():
            return None
    return {window: sums / count for window, sums in zip(windows, total)}
