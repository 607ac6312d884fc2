"""Encoder of a VQ-VAE of raw sound, what its decoder, a WaveNet (models/wavenet.py), is told of the codes, and a spectrum made of them.

No quantiser, no losses.
The encoder is that of van den Oord et al. 2017, section 4.3: strided convolutions of kernel 4, one for each halving of the rate; behind them residual
blocks, which let a code hear its neighbours.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class Conv(nn.Module):
    """x [b, t, c] -> [b, t / stride, features], zeros around x."""

    features: int
    kernel: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_btc):
        around = self.kernel - self.stride
        x = jnp.pad(x_btc.astype(self.dtype), ((0, 0), (around // 2, around - around // 2), (0, 0)))
        return nn.Conv(self.features, (self.kernel,), (self.stride,), "VALID", dtype=self.dtype, kernel_init=nn.initializers.he_normal())(x)


class Residual(nn.Module):
    """x [b, n, c] plus what two convolutions, of kernels 3 and 1, make of it."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_bnc):
        y = Conv(x_bnc.shape[-1], 3, dtype=self.dtype)(nn.relu(x_bnc))
        return x_bnc + Conv(x_bnc.shape[-1], 1, dtype=self.dtype)(nn.relu(y))


class Encoder(nn.Module):
    """x [b, t, c] in -1..1, real bool [b, t / 2^downs] -> z [b, t / 2^downs, dims], float32, of mean 0 and variance 1 over the real positions of each
    example and channel.

    That is instance normalisation: what stays the same throughout a recording, such as its level and much of its voice, is taken from the codes.
    It also keeps them apart at the beginning: while the decoder does not listen yet, the commitment term alone draws all of z to one place.
    """

    hidden: int
    blocks: int
    downs: int
    dims: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_btc, real_bn):
        x = x_btc
        for _ in range(self.downs):
            x = nn.relu(Conv(self.hidden, 4, 2, self.dtype)(x))
        for _ in range(self.blocks):
            x = Residual(self.dtype)(x)
        z = Conv(self.dims, 1, dtype=self.dtype, name="out")(nn.relu(x)).astype(jnp.float32)
        mean, variance = (f(z, 1, keepdims=True, where=real_bn[..., None]) for f in (jnp.mean, jnp.var))
        return (z - mean) / jnp.sqrt(variance + 1e-5)


class Context(nn.Module):
    """The codes' vectors [b, n, dims] -> [b, n, hidden], a row for each code, which has heard two neighbours on either side."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z_bnd):
        x = nn.relu(Conv(self.hidden, 3, dtype=self.dtype)(z_bnd))
        return nn.relu(Conv(self.hidden, 3, dtype=self.dtype)(x))


class Spectrum(nn.Module):
    """What Context gives [b, n, hidden], and the voice [b, g] or None -> levels [b, n, bands] of the sound's spectrum at each code."""

    hidden: int
    bands: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, told_bnh, condition_bg=None):
        x = nn.Dense(self.hidden, dtype=self.dtype)(told_bnh)
        if condition_bg is not None:
            x += nn.Dense(self.hidden, use_bias=False, dtype=self.dtype)(condition_bg.astype(self.dtype))[:, None]
        return nn.Dense(self.bands, dtype=self.dtype, name="out")(nn.relu(x)).astype(jnp.float32)


class Eavesdropper(nn.Module):
    """Codes' vectors [b, n, dims] -> logits [b, n, classes]: whose voice it is, by a code and four neighbours on either side."""

    classes: int
    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z_bnd):
        x = nn.relu(Conv(self.hidden, 5, dtype=self.dtype)(z_bnd))
        x = nn.relu(Conv(self.hidden, 5, dtype=self.dtype)(x))
        return Conv(self.classes, 1, dtype=self.dtype, name="out")(x).astype(jnp.float32)


def receptive_field(encoder: Encoder) -> int:
    """Samples that the convolutions behind a code hear; the normalisation hears the whole sound."""
    hop = 2**encoder.downs
    return 3 * hop - 2 + 2 * encoder.blocks * hop
