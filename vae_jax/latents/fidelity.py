"""How many directions a continuous code needs: principal axes of posterior means, fidelity, and codes cut down to the directions that matter.

RAVE's latent analysis (Caillon and Esling 2021, arXiv:2111.05011, section 3.2 and appendix A). What does not depend on the input is, in a VAE,
noise of the prior; the axes are rotated so that it comes last. The number r of axes kept is chosen when the code is used, not when it is analysed.
"""

import io
import zipfile
import zlib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from etils import epath
from jax import lax

from vae_jax.config import UserError
from vae_jax.latents import pca

KINDS = ("singular", "variance")


class Analysis(NamedTuple):
    """mean_d; a full orthonormal basis components_dd, a direction a row, strongest first; singular_values_d of the `count` centred frames.

    All float64, on the host. A singular value that float32 codes cannot tell from 0, below 1e-7 of the codes' own root mean square, is 0.
    step: the checkpoint whose encoder made the codes, -1 where that is not known. correlation_d: of a direction's successive frames.
    """

    mean: np.ndarray
    components: np.ndarray
    singular_values: np.ndarray
    count: int
    step: int = -1
    correlation: np.ndarray | float = 0.0


def fit(means) -> Analysis:
    """Analysis of posterior means: an iterable of arrays [..., d], or one array. Any number of frames; none but one chunk is held.

    Means and scatter of chunks are combined in float64 (Chan, Golub and LeVeque 1983). Where there are fewer frames than dimensions, directions
    without variance complete the basis. Raises UserError for no frames, values that are not finite and chunks of different width.
    """
    count, mean, scatter = 0, 0.0, 0.0
    for chunk in [means] if hasattr(means, "shape") else means:
        width = np.shape(chunk)[-1]
        if count and width != mean.size:
            raise UserError(f"posterior means of {mean.size} and of {width} dimensions cannot be analysed together; take one model's.")
        for _, part in pca.chunks(np.reshape(chunk, (-1, width))):
            own = part.mean(0)
            part -= own
            apart, together = own - mean, count + len(part)
            scatter = scatter + part.T @ part + np.outer(apart, apart) * (count * len(part) / together)
            mean, count = mean + apart * (len(part) / together), together
    if not count:
        raise UserError("there are no posterior means to analyse; give at least one frame.")
    if not np.isfinite(scatter).all():
        raise UserError("the posterior means hold values that are not finite: the model or its input is broken, take an earlier checkpoint.")
    values, vectors = scipy.linalg.eigh(scatter)
    singular = np.sqrt(np.maximum(values[::-1], 0))
    singular[singular <= 1e-7 * np.sqrt(singular[0] ** 2 + count * mean @ mean)] = 0
    return Analysis(mean, pca.signed(vectors.T[::-1]), singular, count)


def _as_pca(analysis: Analysis) -> pca.PCA:
    return pca.PCA(analysis.mean, analysis.components, analysis.singular_values, float((analysis.singular_values**2).sum()), analysis.count)


def rank(analysis: Analysis) -> int:
    """Number of directions along which the posterior means vary at all, 0 for a single frame."""
    return pca.rank(_as_pca(analysis))


def curve(analysis: Analysis, kind: str = "singular") -> np.ndarray:
    """Fidelity [d] of keeping the first r = 1..d directions, rising to 1; all 0 where nothing varies.

    kind 'singular': share of the sum of singular values, the paper's; 'variance': of their squares, what RAVE's public code computes, so it
    keeps fewer directions for the same f. Raises UserError for another kind.
    """
    if kind not in KINDS:
        raise UserError(f"fidelity {kind!r} is not known; choose one of {', '.join(KINDS)}.")
    return pca.fidelity(_as_pca(analysis), kind)


def dims_for(analysis: Analysis, f: float, kind: str = "singular") -> int:
    """Least number r of directions, at least 1, whose fidelity reaches f in 0..1; f = 1 asks for every direction that varies.

    RAVE's public code gives an index, one less than this count. Raises UserError for an f outside 0..1 and an unknown kind.
    """
    if not 0 < f <= 1:
        raise UserError(f"a fidelity of {f} was asked for; give more than 0 and at most 1, for example 0.95.")
    levels = curve(analysis, kind)
    return max(1, rank(analysis)) if f == 1 else pca.dimensions(levels, f)


def crop(analysis: Analysis, z_btd, r, fill=None):
    """Codes [..., d] with their first r directions kept and the others replaced, float32. r may be traced, or an array that broadcasts.

    fill: what stands in the others, in rotated and centred coordinates: None for 0, the mean code, or standard-normal noise [..., d] (its
    first r columns are not used), as in the paper. r = d gives z back.
    """
    rotated = _product(z_btd - jnp.float32(analysis.mean), jnp.float32(analysis.components).T)
    kept = jnp.where(jnp.arange(rotated.shape[-1]) < r, rotated, 0.0 if fill is None else fill)
    return _product(kept, jnp.float32(analysis.components)) + jnp.float32(analysis.mean)


def compress(analysis: Analysis, z_btd, r: int):
    """Coordinates [..., r] of codes on the first r directions, float32; r static."""
    return _product(z_btd - jnp.float32(analysis.mean), jnp.float32(analysis.components)[:r].T)


def expand(analysis: Analysis, c_btr, noise=None):
    """Codes [..., d] of coordinates on the first r directions; the others are 0 (None) or standard-normal noise [..., d], as `crop` fills them."""
    r, d = c_btr.shape[-1], analysis.mean.shape[-1]
    rest = jnp.zeros((*c_btr.shape[:-1], d - r), jnp.float32) if noise is None else noise[..., r:]
    return _product(jnp.concatenate([c_btr, rest], -1), jnp.float32(analysis.components)) + jnp.float32(analysis.mean)


def _product(x, matrix):
    return jnp.matmul(x, matrix, precision=lax.Precision.HIGHEST)  # accelerators round to 8 or 11 bits otherwise, and r = d would not give z back


def to_bytes(analysis: Analysis) -> bytes:
    """The analysis as the content of an `analysis.npz`."""
    data = io.BytesIO()
    np.savez(data, **analysis._asdict())
    return data.getvalue()


def from_bytes(data: bytes, name: str = "analysis.npz") -> Analysis:
    """The analysis in such content. Raises UserError, with the file's name, where it is damaged or something else."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            found = {field: file[field] for field in file.files}
        if found.keys() != set(Analysis._fields):
            raise ValueError("other arrays are in it")
        mean, components, singular, count, step, correlation = (np.asarray(found[field], np.float64) for field in Analysis._fields)
        right = mean.ndim == 1 and components.shape == (mean.size, mean.size) and singular.shape == mean.shape and count.shape == () and count >= 1
        right = right and np.isfinite(mean).all() and (singular >= 0).all() and (np.diff(singular) <= 0).all()
        right = right and step.shape == () and correlation.shape in ((), mean.shape) and (np.abs(correlation) <= 1).all()
        if not right or not np.allclose(components @ components.T, np.eye(mean.size), atol=1e-6):
            raise ValueError("its arrays do not fit together")
    except (ValueError, TypeError, KeyError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{name} is damaged or no latent analysis ({error}): write it again with `analyse`.") from None
    return Analysis(mean, components, singular, int(count), int(step), correlation)


def save(analysis: Analysis, path) -> None:
    """Writes an `analysis.npz` whole or not at all, on any file system."""
    path = epath.Path(path)
    partial = path.parent / f"{path.name}.partial"
    partial.write_bytes(to_bytes(analysis))
    partial.replace(path)


def load(path) -> Analysis:
    """The analysis in a file. Raises UserError where it is missing, damaged or something else."""
    path = epath.Path(path)
    if not path.exists():
        raise UserError(f"there is no {path}: write it with `analyse`.")
    return from_bytes(path.read_bytes(), str(path))
