"""Numbers that stand beside pictures: overlap, sharpness, diversity, distance to the nearest training picture.

Pictures are [n, h, w, c], uint8 or floats in 0..1; distances are root mean squares over pixel values, in units of black to white.
"""

import numpy as np

_CHUNK_BYTES = 1 << 26


def unit(images) -> np.ndarray:
    """Pictures as float32 in 0..1."""
    images = np.asarray(images)
    return images.astype(np.float32) / 255 if images.dtype == np.uint8 else images.astype(np.float32)


def mse(first_nhwc, second_nhwc) -> np.ndarray:
    """Mean squared pixel difference [n]."""
    difference = unit(first_nhwc) - unit(second_nhwc)
    return (difference**2).reshape(len(difference), -1).mean(1, dtype=np.float64)


def iou(first_nhwc, second_nhwc, threshold: float = 0.5) -> np.ndarray:
    """Intersection over union [n] of the pixels above the threshold; two empty pictures agree, 1."""
    first, second = ((unit(x) > threshold).reshape(len(x), -1) for x in (first_nhwc, second_nhwc))
    union = (first | second).sum(1)
    return np.where(union > 0, (first & second).sum(1) / np.maximum(union, 1), 1.0)


def sharpness(images_nhwc) -> np.ndarray:
    """Variance [n] of the four-neighbour Laplacian inside each picture, channels averaged first (Pech-Pacheco et al. 2000)."""
    x = unit(images_nhwc).mean(-1)
    laplacian = x[:, 2:, 1:-1] + x[:, :-2, 1:-1] + x[:, 1:-1, 2:] + x[:, 1:-1, :-2] - 4 * x[:, 1:-1, 1:-1]
    return laplacian.reshape(len(x), -1).var(1, dtype=np.float64)


def diversity(images_nhwc) -> float:
    """Mean distance of two of the pictures, over neighbours in a fixed random order."""
    flat = unit(images_nhwc).reshape(len(images_nhwc), -1)[np.random.default_rng(0).permutation(len(images_nhwc))]
    return float(np.sqrt(((flat - np.roll(flat, 1, 0)) ** 2).mean(1)).mean())


def nearest(images_nhwc, among_mhwc) -> tuple[np.ndarray, np.ndarray]:
    """Distance [n] to, and index [n] of, the nearest picture among others. A distance of 0 is a copy."""
    images = unit(images_nhwc).reshape(len(images_nhwc), -1)
    best, index = np.full(len(images), np.inf), np.zeros(len(images), np.int64)
    rows = max(1, _CHUNK_BYTES // (4 * images.shape[1]))
    for start in range(0, len(among_mhwc), rows):
        part = unit(among_mhwc[start : start + rows]).reshape(-1, images.shape[1])
        squared = (part**2).sum(1) - 2 * images @ part.T  # less each picture's own square, which does not change the order
        found = squared.argmin(1)
        exact = ((images - part[found]) ** 2).mean(1, dtype=np.float64)  # the product form alone loses small distances
        nearer = exact < best
        best[nearer], index[nearer] = exact[nearer], start + found[nearer]
    return np.sqrt(best), index
