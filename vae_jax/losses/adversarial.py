"""Losses of critics and of the generators that face them: hinge, least squares, feature matching.

A critic D gives scores without bound at many positions, high for what it takes as real. Critics come as lists of arrays of any shapes; a loss is
the mean over all positions of a critic and all examples, averaged over the critics. (RAVE's public code sums over critics: its adversarial weight
of 1 with 8 of them is 8 here.) What must not learn from a loss is for the caller to stop: a critic's loss sees the generator's output only
through `stop_gradient`, a generator's loss is differentiated for the generator alone.
"""

import jax
import jax.numpy as jnp

from vae_jax.config import UserError

DEFINITIONS = ("absolute", "relative")
SILENT = 1e-6  # mean absolute real feature below which a layer counts as that strong


def hinge_critic(real, fake):
    """mean max(0, 1 - D(x)) + mean max(0, 1 + D(G(z))). No gradient from D(x) > 1 nor D(G(z)) < -1. Lim and Ye 2017, Geometric GAN."""
    return _over_critics(lambda r, f: jnp.mean(jax.nn.relu(1 - r)) + jnp.mean(jax.nn.relu(1 + f)), real, fake)


def hinge_generator(fake):
    """-mean D(G(z)): against a hinge critic. Unbounded below. Lim and Ye 2017."""
    return _over_critics(lambda f: -jnp.mean(f), fake)


def least_squares_critic(real, fake):
    """mean (D(x) - 1)^2 + mean D(G(z))^2. Mao et al. 2017, Least squares GANs, targets 0 and 1, without its halves."""
    return _over_critics(lambda r, f: jnp.mean(jnp.square(r - 1)) + jnp.mean(jnp.square(f)), real, fake)


def least_squares_generator(fake):
    """mean (D(G(z)) - 1)^2. Mao et al. 2017, without its half."""
    return _over_critics(lambda f: jnp.mean(jnp.square(f - 1)), fake)


def feature_matching(real, fake, definition: str = "absolute"):
    """Distance of the features of made sounds from those of real ones: lists (critics) of lists (layers) of arrays, the real ones constants.

    absolute: mean over critics and layers l of mean |D_l(x) - D_l(G(z))| (Kumar et al. 2019, MelGAN, who sum over both; after Larsen et al. 2016,
    Autoencoding beyond pixels, whose distance is squared); relative: each layer's divided by mean |D_l(x)|, so that a strong layer counts no more
    than a weak one, the first layer of each critic left out. Means are over examples, positions and channels. Raises UserError for another name.
    """
    if definition not in DEFINITIONS:
        raise UserError(f"feature matching {definition!r} is not known; choose one of {', '.join(DEFINITIONS)}.")

    def layer(r, f):
        r, f = jax.lax.stop_gradient(r.astype(jnp.float32)), f.astype(jnp.float32)
        distance = jnp.mean(jnp.abs(r - f))
        return distance / jnp.maximum(jnp.mean(jnp.abs(r)), SILENT) if definition == "relative" else distance

    first = 1 if definition == "relative" else 0
    return _mean([_mean([layer(r, f) for r, f in zip(rs[first:], fs[first:], strict=True)]) for rs, fs in zip(real, fake, strict=True)])


def _over_critics(loss, *scores):
    return _mean([loss(*(s.astype(jnp.float32) for s in of_one)) for of_one in zip(*scores, strict=True)])


def _mean(values):
    return sum(values) / len(values)
