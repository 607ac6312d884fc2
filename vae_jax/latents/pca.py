"""Principal components of codes and of whole picture sets: the linear baseline of an autoencoder, and the fidelity of a latent space.

Rows are examples; any trailing shape is flattened. Whole-number pictures (uint8) are read as x/255, so errors are in units of a 0..1 pixel.
Sums are float64, chunk by chunk: 60,000 x 784 uint8 is never held as floats.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg

_EXACT = 4096  # up to this many columns (or rows) the decomposition is exact
_CHUNK_BYTES = 1 << 26


class PCA(NamedTuple):
    """mean_d; orthonormal components_kd, strongest first; singular_values_k of the centred rows; `total` = sum of all their squares; `count` rows."""

    mean: np.ndarray
    components: np.ndarray
    singular_values: np.ndarray
    total: float
    count: int


def chunks(x):
    """Row number and float64 rows [m, d] of each part of x [n, ...] that fits in 64 MB; uint8 is divided by 255."""
    rows = max(1, _CHUNK_BYTES // (8 * max(1, int(np.prod(x.shape[1:])))))
    for start in range(0, len(x), rows):
        part = np.asarray(x[start : start + rows])
        scale = 1 / 255 if part.dtype == np.uint8 else 1.0
        yield start, part.reshape(len(part), -1) * np.float64(scale)


def fit(x, k: int | None = None, seed: int = 0) -> PCA:
    """Principal components of the rows of x [n, ...]; k = how many (None: all min(n - 1, d)).

    Exact by the scatter or Gram matrix where n or d is at most 4096, otherwise by randomised subspace iteration with a fixed seed
    (Halko, Martinsson and Tropp 2011, algorithms 4.4 and 5.1). The largest entry of each component is positive, so signs repeat.
    Raises ValueError for fewer than two rows or values that are not finite.
    """
    n, d = len(x), int(np.prod(x.shape[1:]))
    if n < 2:
        raise ValueError(f"PCA needs at least two rows, not {n}")
    mean = sum(part.sum(0) for _, part in chunks(x)) / n
    if not np.isfinite(mean).all():
        raise ValueError("PCA got values that are not finite")
    total = float(sum(((part - mean) ** 2).sum() for _, part in chunks(x)))
    k = min(n - 1, d) if k is None else min(k, n - 1, d)
    if k == 0:
        components, singular = np.zeros((0, d)), np.zeros(0)
    elif d <= _EXACT:
        scatter = np.zeros((d, d))
        for _, part in chunks(x):
            part -= mean
            scatter += part.T @ part
        values, vectors = scipy.linalg.eigh(scatter, subset_by_index=(d - k, d - 1))
        components, singular = vectors.T[::-1], np.sqrt(np.maximum(values[::-1], 0))
    elif n <= _EXACT:
        centred = np.concatenate([part - mean for _, part in chunks(x)])
        values, left = scipy.linalg.eigh(centred @ centred.T, subset_by_index=(n - k, n - 1))
        kept = values[::-1] > values[-1] * n * np.finfo(np.float64).eps  # a direction without variance has no component here
        left, singular = left[:, ::-1][:, kept], np.sqrt(values[::-1][kept])
        components = (left / singular).T @ centred
    else:
        components, singular = _randomised(x, mean, k, seed)
    return PCA(mean, signed(components), singular, total, n)


def signed(components_kd) -> np.ndarray:
    """Directions turned so that the largest entry of each is positive: otherwise which way a direction points changes from fit to fit."""
    if not len(components_kd):
        return components_kd
    return components_kd * np.sign(np.take_along_axis(components_kd, np.abs(components_kd).argmax(1)[:, None], 1))


def _randomised(x, mean, k, seed, oversample=12, rounds=4):
    """Top k components and singular values by subspace iteration over chunks of rows."""
    basis = np.random.default_rng(seed).standard_normal((mean.size, min(k + oversample, mean.size)))
    for _ in range(rounds):
        image = np.zeros_like(basis)
        for _, part in chunks(x):
            part -= mean
            image += part.T @ (part @ basis)
        basis = np.linalg.qr(image)[0]
    gram = np.zeros((basis.shape[1],) * 2)
    for _, part in chunks(x):
        projected = (part - mean) @ basis
        gram += projected.T @ projected
    values, vectors = np.linalg.eigh(gram)
    return (basis @ vectors[:, ::-1][:, :k]).T, np.sqrt(np.maximum(values[::-1][:k], 0))


def project(pca: PCA, x, k: int | None = None) -> np.ndarray:
    """Coordinates [n, k] of the rows of x on the first k components (None: all fitted)."""
    basis = pca.components[:k].T
    return np.concatenate([(part - pca.mean) @ basis for _, part in chunks(x)])


def reconstruct(pca: PCA, code_nk: np.ndarray) -> np.ndarray:
    """Rows [n, d] with the given coordinates; [n, 0] gives the mean row."""
    return pca.mean + code_nk @ pca.components[: code_nk.shape[1]]


def errors(pca: PCA, x, k: int | None = None) -> np.ndarray:
    """Mean squared error [n] of each row after projection on the first k components, over its d values. k=0 is the mean-row baseline."""
    found = []
    for _, part in chunks(x):
        part -= pca.mean
        code = part @ pca.components[:k].T
        found.append(((part - code @ pca.components[: code.shape[1]]) ** 2).mean(1))
    return np.concatenate(found)


def explained(pca: PCA) -> np.ndarray:
    """Share [k] of the total variance on each component."""
    return pca.singular_values**2 / max(pca.total, np.finfo(np.float64).tiny)


def fidelity(pca: PCA, kind: str = "variance") -> np.ndarray:
    """Fidelity [d] of keeping the first r = 1..d directions.

    kind 'variance': sum of s_i^2 over the first r divided by that over all, the explained variance (RAVE's published code).
    kind 'singular': the same ratio of s_i, not squared (the RAVE paper may mean this, Caillon and Esling 2021). Needs a fit of all components.
    """
    if kind not in ("variance", "singular"):
        raise ValueError(f"fidelity kind {kind!r}: 'variance' or 'singular'")
    if kind == "variance":
        return np.cumsum(explained(pca))
    if len(pca.singular_values) < min(pca.mean.size, pca.count - 1):
        raise ValueError("the ratio of singular values needs all of them: fit with k=None")
    return np.cumsum(pca.singular_values) / max(pca.singular_values.sum(), np.finfo(np.float64).tiny)


def dimensions(curve_d: np.ndarray, f: float) -> int:
    """Smallest number of directions (a count, from 1) whose fidelity reaches f, up to rounding."""
    return int(np.argmax(curve_d >= min(f, curve_d[-1]) - 1e-9)) + 1


def rank(pca: PCA) -> int:
    """Number of directions that carry variance: singular values above 1e-7 of the largest, the resolution of a squared matrix in float64."""
    return int((pca.singular_values > 1e-7 * pca.singular_values.max(initial=0.0)).sum())


def angles(first_kd: np.ndarray, second_jd: np.ndarray) -> np.ndarray:
    """Principal angles in degrees, largest first, between the spans of two sets of rows (Bjorck and Golub 1973)."""
    return np.degrees(scipy.linalg.subspace_angles(np.asarray(first_kd, np.float64).T, np.asarray(second_jd, np.float64).T))
