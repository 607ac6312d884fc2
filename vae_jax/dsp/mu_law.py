"""mu-law: sound as a few classes whose widths grow with its level (ITU-T G.711's curve; van den Oord et al. 2016, arXiv:1609.03499, section 2.2)."""

import jax.numpy as jnp


def encode(x, classes: int = 256):
    """Samples in -1..1 (beyond: clipped) -> int32 in 0..classes-1, by rounding sign(x) ln(1 + mu |x|) / ln(1 + mu), mu = classes - 1."""
    mu = classes - 1
    x = jnp.clip(x, -1.0, 1.0)
    squeezed = jnp.sign(x) * jnp.log1p(mu * jnp.abs(x)) / jnp.log1p(mu)
    return jnp.round(0.5 * mu * (squeezed + 1.0)).astype(jnp.int32)


def decode(codes, classes: int = 256):
    """The centres of the classes in -1..1, float32; `encode` gives each its own class again."""
    mu = classes - 1
    squeezed = 2.0 * codes.astype(jnp.float32) / mu - 1.0
    return jnp.sign(squeezed) * jnp.expm1(jnp.abs(squeezed) * jnp.log1p(mu)) / mu
