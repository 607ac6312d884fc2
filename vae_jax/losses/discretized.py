"""Distributions over integers 0..levels-1, each number on its own: log-probabilities in nats, and draws. For nets that give one a position.

`likelihoods.py` has those of whole examples in [0, 1], with bits_per_dim and the mixture of logistics whose channels of a pixel feed each other.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from vae_jax.config import UserError
from vae_jax.losses.likelihoods import logistic_bin, soft_floor


def softmax_log_prob(logits, x):
    """logits [..., levels], x integers [...] -> [...]."""
    logits = logits.astype(jnp.float32)
    return jnp.take_along_axis(logits, x[..., None], -1)[..., 0] - jax.nn.logsumexp(logits, -1)


def softmax_draw(uniform, logits, temperature=1.0, top_k: int | None = None):
    """int32 [...] from softmax(logits / temperature), logits [..., levels]; of the `top_k` likeliest levels alone if given.

    uniform [...]: one random number in [0, 1) a draw, which is found in the cumulative probabilities: a tenth of the time of Gumbel noise for each
    level, and a loop can have them all made beforehand. temperature: a number, or an array that broadcasts against [...]; 0 takes the likeliest.
    Raises UserError for a top_k that is not from 1 to levels.
    """
    levels = logits.shape[-1]
    if top_k is not None and not 1 <= top_k <= levels:
        raise UserError(f"top_k is {top_k}: choose a number from 1 to {levels}, the number of levels.")
    logits, candidates = lax.top_k(logits.astype(jnp.float32), top_k) if top_k else (logits.astype(jnp.float32), None)
    coldness = 1.0 / jnp.maximum(jnp.asarray(temperature, jnp.float32), 1e-20)[..., None]
    weights = jnp.exp((logits - logits.max(-1, keepdims=True)) * coldness)
    # Rounding may make a cumulative sum grow by a level of no weight, so such levels are taken out of the search
    cumulative = jnp.where(weights > 0, jnp.cumsum(weights, -1), 0.0)
    found = jnp.argmax(cumulative > uniform[..., None] * cumulative.max(-1, keepdims=True), -1)
    return (found if candidates is None else jnp.take_along_axis(candidates, found[..., None], -1)[..., 0]).astype(jnp.int32)


def unit(x, levels: int):
    """Integers 0..levels-1 as floats in -1..1."""
    return x.astype(jnp.float32) * (2.0 / (levels - 1)) - 1.0


def logistic_log_prob(outputs, x, levels: int):
    """Mixture of M logistics over levels in -1..1: outputs [..., 3 M] (M logits, M means, M log scales), x integers [...] -> [...].

    The first and the last level own the tails; scales are floored smoothly at an eighth of a level. Finite, as are its gradients, however far x is
    from the means. Salimans et al. 2017 (PixelCNN++, arXiv:1701.05517), section 2.1.
    """
    logits, means, log_scales = _parts(outputs, levels)
    level = x.reshape(-1)
    offset = (unit(level, levels) - means) * jnp.exp(-log_scales)
    log_level = logistic_bin(offset, math.log(2.0 / (levels - 1)) - log_scales, level == 0, level == levels - 1)
    return jax.nn.logsumexp(log_level + jax.nn.log_softmax(logits, 0), 0).reshape(x.shape)


def logistic_draw(uniform, outputs, levels: int, temperature=1.0):
    """int32 [...] from the mixture of `logistic_log_prob`; temperature divides the logits and multiplies the scales.

    uniform [..., 2]: random numbers in [0, 1), for the component and for the value.
    """
    logits, means, log_scales = _parts(outputs, levels)
    pick, at = uniform.reshape(-1, 2).T
    temperature = jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), outputs.shape[:-1]).reshape(-1)
    chosen = softmax_draw(pick, logits.T, temperature) == jnp.arange(len(logits))[:, None]
    mean, log_scale = (jnp.sum(jnp.where(chosen, v, 0.0), 0) for v in (means, log_scales))
    at = jnp.maximum(at, 1e-7)  # the logistic's quantile of 0 is not finite
    value = mean + temperature * jnp.exp(log_scale) * (jnp.log(at) - jnp.log1p(-at))
    level = jnp.round((0.5 + 0.5 * jnp.clip(value, -1.0, 1.0)) * (levels - 1))
    return level.astype(jnp.int32).reshape(outputs.shape[:-1])


def _parts(outputs, levels):
    """Logits, means and log scales, each [M, positions] in float32.

    Positions last, and kept so by the barrier: XLA on CPU takes exp and log element by element along a short last axis.
    """
    parts = lax.optimization_barrier(outputs.astype(jnp.float32).reshape(-1, outputs.shape[-1]).T)
    logits, means, log_scales = jnp.split(parts, 3)
    return logits, means, soft_floor(log_scales, math.log(0.25 / (levels - 1)))
