"""Encoder and decoder of a VQ-VAE of pictures: convolutions, and residual blocks where the codes are. No quantiser, no losses.

The network of van den Oord et al. 2017, section 4.1, with the widths of its later public form (128 hidden, blocks of 32). Parameters of that form for
32 x 32 x 3 pictures and 64 numbers a code, the codebook apart: encoder 372,416, decoder 290,307.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vae_jax.layers.convolutions import Conv, Up


class Residual(nn.Module):
    """x [b, h, w, c] plus what a 3x3 and a 1x1 convolution make of it."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc):
        y = Conv(self.hidden, 3, dtype=self.dtype)(nn.relu(x_bhwc))
        return x_bhwc + Conv(x_bhwc.shape[-1], 1, dtype=self.dtype)(nn.relu(y))


class Encoder(nn.Module):
    """x [b, h, w, c] in 0..1 -> z [b, h / 2^downs, w / 2^downs, dims], float32."""

    hidden: int
    residual: int
    blocks: int
    downs: int
    dims: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc):
        x = x_bhwc.astype(self.dtype) - 0.5
        for i in range(self.downs):
            x = nn.relu(Conv(self.hidden if i == self.downs - 1 else self.hidden // 2, 4, 2, self.dtype)(x))
        x = Conv(self.hidden, 3, dtype=self.dtype)(x)
        for _ in range(self.blocks):
            x = Residual(self.residual, self.dtype)(x)
        return Conv(self.dims, 1, dtype=self.dtype, name="out")(nn.relu(x)).astype(jnp.float32)


class Decoder(nn.Module):
    """z_q [b, h, w, dims], condition [b, k] or None -> outputs [b, h 2^ups, w 2^ups, channels], float32.

    `head`: the last upsampling gives hidden / 2 channels and a 1x1 convolution the outputs, for likelihoods with hundreds of them a pixel.
    """

    hidden: int
    residual: int
    blocks: int
    ups: int
    channels: int
    head: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z_bhwd, condition=None):
        x = Conv(self.hidden, 3, dtype=self.dtype)(z_bhwd.astype(self.dtype))
        if condition is not None:
            x += nn.Dense(self.hidden, use_bias=False, dtype=self.dtype, name="condition")(condition.astype(self.dtype))[:, None, None]
        for _ in range(self.blocks):
            x = Residual(self.residual, self.dtype)(x)
        x = nn.relu(x)
        for _ in range(self.ups - 1):
            x = nn.relu(Up(self.hidden // 2, self.dtype)(x))
        if self.head:
            return Conv(self.channels, 1, dtype=self.dtype, name="out")(nn.relu(Up(self.hidden // 2, self.dtype)(x))).astype(jnp.float32)
        return Up(self.channels, self.dtype, name="out")(x).astype(jnp.float32)
