"""Ways through a latent space: interpolation, a map of its plane, one direction at a time, and measures of smoothness in pixel space."""

from typing import NamedTuple

import numpy as np
import scipy.stats

from vae_jax.latents import pca as pcas


def lerp(start_d, stop_d, count: int) -> np.ndarray:
    """Straight path [count, d] from start to stop, both included."""
    t = np.linspace(0, 1, count)[:, None]
    return (1 - t) * np.asarray(start_d, np.float64) + t * np.asarray(stop_d, np.float64)


def slerp(start_d, stop_d, count: int) -> np.ndarray:
    """Path [count, d] along the great circle of the two directions (Shoemake 1985; for latent codes White 2016).

    The straight path where no single great circle exists: codes at the origin, parallel or exactly opposite, or d = 1.
    """
    start, stop = np.asarray(start_d, np.float64), np.asarray(stop_d, np.float64)
    norms = np.linalg.norm(start) * np.linalg.norm(stop)
    if norms == 0 or start.size == 1:
        return lerp(start, stop, count)
    angle = np.arccos(np.clip(start @ stop / norms, -1, 1))
    if np.sin(angle) < 1e-6:
        return lerp(start, stop, count)
    t = np.linspace(0, 1, count)[:, None]
    return (np.sin((1 - t) * angle) * start + np.sin(t * angle) * stop) / np.sin(angle)


def step_ratio(images) -> float:
    """Largest step over median step along a path of pictures [count, ...], Euclidean in pixel space; 1 = even, row A9 asks <= 3.

    A path on which at least half the steps change nothing has an infinite ratio, a path that never changes has 1.
    """
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    steps = np.linalg.norm(np.diff(flat, axis=0), axis=1)
    largest, median = steps.max(), np.median(steps)
    return float(largest / median) if median > 0 else (1.0 if largest == 0 else float("inf"))


class Plane(NamedTuple):
    """A plane through a latent space: a unit Gaussian on it has its centre at origin_d and its standard deviations along axes_md (m = 1 or 2)."""

    origin: np.ndarray
    axes: np.ndarray
    name: str  # for captions


def plane(means_nd, prior: bool = True) -> Plane:
    """The plane to map. With d <= 2 and a standard-normal prior, the prior's own axes; else the two principal directions of the means,
    each scaled to the means' standard deviation along it."""
    d = means_nd.shape[1]
    if prior and d <= 2:
        return Plane(np.zeros(d), np.eye(d), "the two latent axes" if d == 2 else "the latent axis")
    fitted = pcas.fit(means_nd, 2)
    deviation = fitted.singular_values / np.sqrt(fitted.count - 1)
    name = "the latent axis, centred and scaled to the codes" if d == 1 else "the two principal directions of the posterior means"
    return Plane(fitted.mean, fitted.components * deviation[:, None], name)


def manifold(where: Plane, cells: int, low: float = 0.05, high: float = 0.95) -> np.ndarray:
    """Codes [rows * cells, d] of a square map, row by row from the top left: equal steps of probability low..high on each axis, through the
    inverse normal CDF. The first axis runs right, the second up; a plane with one axis gives a single row.
    """
    z = scipy.stats.norm.ppf(np.linspace(low, high, cells))
    if len(where.axes) == 1:
        return where.origin + z[:, None] * where.axes[0]
    up, right = np.meshgrid(z[::-1], z, indexing="ij")
    return where.origin + right.reshape(-1, 1) * where.axes[0] + up.reshape(-1, 1) * where.axes[1]


def neighbour_ratio(images, columns: int) -> float:
    """Mean distance of adjacent cells (right and below) over that of all pairs of cells, Euclidean in pixel space.

    images: [rows * columns, ...] in row order. Row B5 asks < 0.5; 1 = a map without order; NaN where all cells are equal.
    """
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    cells = flat.reshape(-1, columns, flat.shape[1])
    near = [np.linalg.norm(np.diff(cells, axis=axis), axis=-1).ravel() for axis in (0, 1)]
    centred = flat - flat.mean(0)  # the Gram form loses digits when all pictures share a large mean
    norms = (centred**2).sum(1)
    squared = norms[:, None] + norms[None] - 2 * centred @ centred.T
    far = np.sqrt(np.maximum(squared[np.triu_indices(len(flat), 1)], 0)).mean()
    return float(np.concatenate(near).mean() / far) if far > 0 else float("nan")


def traversals(origin_d, deviations_d, dimensions, steps: int, reach: float = 3.0) -> np.ndarray:
    """Codes [len(dimensions) * steps, d]: each listed dimension in turn goes from -reach to +reach deviations, the others rest."""
    offsets = np.linspace(-reach, reach, steps)
    codes = np.tile(np.asarray(origin_d, np.float64), (len(dimensions), steps, 1))
    for row, dimension in enumerate(dimensions):
        codes[row, :, dimension] += offsets * deviations_d[dimension]
    return codes.reshape(-1, codes.shape[-1])
