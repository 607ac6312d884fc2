"""Where each class lies in the latent space: Gaussians fitted to the aggregate posterior of its examples, and draws from them."""

from typing import NamedTuple

import numpy as np


class Classes(NamedTuple):
    """Class k has label_k, mean_kd and covariance_kdd of its codes, and count_k examples."""

    label: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    count: np.ndarray


def fit(mean_nd, logvar_nd, label_n) -> Classes:
    """Mean and full covariance of the mixture of a class's posteriors N(mean_i, diag exp(logvar_i)), exactly.

    Law of total variance: covariance of the posterior means plus the mean of the posterior variances. logvar None: a plain autoencoder, whose
    codes have no variance of their own. The limit of the mean and covariance of ever more sampled codes.
    """
    mean, label = np.asarray(mean_nd, np.float64), np.asarray(label_n)
    variance = np.zeros_like(mean) if logvar_nd is None else np.exp(np.asarray(logvar_nd, np.float64))
    found = np.unique(label)
    parts = [(mean[label == c], variance[label == c]) for c in found]
    centres = np.stack([m.mean(0) for m, _ in parts])
    covariance = np.stack([(m - m.mean(0)).T @ (m - m.mean(0)) / len(m) + np.diag(v.mean(0)) for m, v in parts])
    return Classes(found, centres, covariance, np.array([len(m) for m, _ in parts]))


def draw(classes: Classes, label: int, count: int, spread: float | None = None, temperature: float = 1.0, seed: int = 0) -> np.ndarray:
    """`count` codes [count, d] of one class: N(mean, covariance), or N(mean, spread^2 I); `temperature` scales their distance from the mean.

    Raises ValueError for a class that had no examples.
    """
    if label not in classes.label:
        raise ValueError(f"class {label} had no examples")
    k = int(np.flatnonzero(classes.label == label)[0])
    noise = np.random.default_rng([seed, int(label)]).standard_normal((count, classes.mean.shape[1]))
    if spread is None:
        values, vectors = np.linalg.eigh(classes.covariance[k])  # a Cholesky factor would not take a plain autoencoder's singular covariance
        noise = noise * np.sqrt(np.maximum(values, 0)) @ vectors.T
    else:
        noise = spread * noise
    return classes.mean[k] + temperature * noise
