"""Encoder and decoder of every VAE here: dense, convolutional, LSTM and hierarchical families under one interface. No losses inside.

    Encoder: x [b, h, w, c] in [0, 1], condition [b, k] or None -> mean [b, d], logvar [b, d]
    Decoder: z [b, d], condition, x (only an autoregressive one looks at it) -> {'x': [b, h, w, channels], ...}

`hidden` is read from the picture to the code: widths of dense layers, channels of stride-2 convolutions, LSTM units, of the hierarchical family those
of either direction.
The decoder reads it backwards. `shortcut` adds a linear path to both sides of any but an autoregressive model: what PCA can do, it need not learn
slowly.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vae_jax.layers.convolutions import Conv, ToImage, ToVector, Up
from vae_jax.layers.recurrent import Lstm
from vae_jax.models.rows import BarDecoder, BarEncoder, RowDecoder

FAMILIES = ("dense", "conv", "lstm", "hierarchical")
ROWS = FAMILIES[2:]  # those that go through a picture row by row
ACTIVATIONS = ("relu", "tanh", "gelu", "linear")
# e^-12 .. e^12: far outside what a trained posterior uses, but exp stays finite in float32.
LOGVAR_LIMIT = 12.0
# Of the linear path: its zero, between the means of our spectrograms, 0.13 and 0.28 (the exact mean picture was hardly better), and the number of
# pixels above which a picture counts as so many. Spectrograms of 24,576 pixels still trained with it at 8,192, and leapt at 24,576.
GREY, PIXELS = 0.25, 4096


class Gated(nn.Module):
    """Linear x sigmoid(linear) (Tomczak & Welling 2018, VampPrior), as one matrix product."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        a, b = jnp.split(nn.Dense(2 * self.features, dtype=self.dtype)(x), 2, axis=-1)
        return a * jax.nn.sigmoid(b)


def dense_layers(x, widths, activation: str, dtype):
    for width in widths:
        x = Gated(width, dtype)(x) if activation == "gated" else act(activation)(nn.Dense(width, dtype=dtype)(x))
    return x


def act(name: str):
    return dict(zip(ACTIVATIONS, (nn.relu, nn.tanh, nn.gelu, lambda x: x)))[name]


def join(x, condition):
    """Appends the condition to the last axis, at every step of a sequence."""
    if condition is None:
        return x
    c = condition.reshape(condition.shape[:1] + (1,) * (x.ndim - 2) + condition.shape[1:])
    return jnp.concatenate([x, jnp.broadcast_to(c, x.shape[:-1] + c.shape[-1:]).astype(x.dtype)], axis=-1)


class Encoder(nn.Module):
    family: str
    hidden: tuple[int, ...]
    latent: int
    activation: str = "relu"
    shortcut: bool = False
    bar: int = 16  # hierarchical: rows a bar
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bhwc, condition=None):
        x = x_bhwc.astype(self.dtype)
        flat = x.reshape(x.shape[0], -1)
        if self.family == "conv":
            for channels in self.hidden:
                x = act(self.activation)(Conv(channels, stride=2, dtype=self.dtype)(x))
            moments = ToVector(2 * self.latent, name="moments")(x)
            if condition is not None:  # the same as appending the condition to the flat picture
                moments += nn.Dense(2 * self.latent, use_bias=False, name="condition")(condition)
        else:
            if self.family == "lstm":
                x = join(x.reshape(*x.shape[:2], -1), condition)
                for units in self.hidden:
                    x = Lstm(units, self.dtype)(x)
                x = x[:, -1]
            elif self.family == "hierarchical":
                x = BarEncoder(self.hidden, self.bar, self.dtype, name="bars")(join(x.reshape(*x.shape[:2], -1), condition))
            else:
                x = dense_layers(join(flat, condition), self.hidden, self.activation, self.dtype)
            moments = nn.Dense(2 * self.latent, name="moments")(x.astype(jnp.float32))
        if self.shortcut:
            # Adam moves the n weights of a code number alike, so that a step moves the number by n times the mean grey, and training
            # leaps: with that grey near 0, and n held at PIXELS, one learning rate serves all sizes
            n = flat.shape[1]
            gain = min(1.0, PIXELS / n)
            start = nn.initializers.normal(n**-0.5 / gain)
            moments += nn.Dense(2 * self.latent, use_bias=False, dtype=self.dtype, kernel_init=start, name="shortcut")(gain * (flat - GREY))
        return _moments(moments)


def _moments(x):
    """[b, 2d] -> mean, logvar in float32: the KL and the draw need the precision, and they are small."""
    mean, logvar = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(logvar, -LOGVAR_LIMIT, LOGVAR_LIMIT)


class Decoder(nn.Module):
    """`shape` is (h, w, channels the likelihood asks for). `learned_sigma` adds one scalar noise level, as 'log_sigma'; `level` one number
    of the whole example beside its picture, as 'level' [b] with 'level_logvar'."""

    family: str
    hidden: tuple[int, ...]
    shape: tuple[int, int, int]
    activation: str = "relu"
    learned_sigma: bool = False
    autoregressive: bool = False
    level: bool = False
    shortcut: bool = False
    bar: int = 16  # hierarchical: rows a bar
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z_bd, condition=None, x_bhwc=None, feedback=None):
        """An autoregressive decoder reads the true rows of `x_bhwc`, or its own: feedback(outputs {'x': [n, 1, w, channels]}, t) -> [n, 1, w, c]: n
        examples, and t counts their rows, or with bars n bars of all examples, and t counts the rows of a bar."""
        h, w, c = self.shape
        z = join(z_bd, condition).astype(self.dtype)
        noise = {"log_sigma": self.param("log_sigma", nn.initializers.zeros, ())} if self.learned_sigma else {}
        if self.family == "conv":
            n = len(self.hidden)
            y = act(self.activation)(ToImage((h >> n, w >> n, self.hidden[-1]), dtype=self.dtype)(z))
            for channels in self.hidden[-2::-1]:
                y = act(self.activation)(Up(channels, dtype=self.dtype)(y))
            y = Up(c, dtype=self.dtype, name="out")(y)
        elif self.family in ROWS:
            settings = dict(hidden=self.hidden, width=w, channels=c, autoregressive=self.autoregressive, steps=h, dtype=self.dtype, name="rows")
            rows = BarDecoder(bar=self.bar, **settings) if self.family == "hierarchical" else RowDecoder(**settings)
            if feedback is None:
                y = rows(z, x_bhwc.reshape(*x_bhwc.shape[:2], -1) if self.autoregressive else None)
            else:
                next_row = lambda y_nc, t: feedback({"x": y_nc.reshape(-1, 1, w, c).astype(jnp.float32), **noise}, t).reshape(y_nc.shape[0], -1)
                y = rows.generate(z, next_row)
        else:
            y = dense_layers(z, self.hidden[::-1], self.activation, self.dtype)
            y = nn.Dense(h * w * c, dtype=self.dtype, name="out")(y)
        if self.shortcut:
            y = y.reshape(-1, h * w * c) + nn.Dense(h * w * c, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="shortcut")(z)
        if self.level:
            noise |= {"level": nn.Dense(1, name="level")(z.astype(jnp.float32))[:, 0],
                      "level_logvar": jnp.clip(self.param("level_logvar", nn.initializers.constant(-4.0), (1,)), -LOGVAR_LIMIT, 0.0)}
        return {"x": y.reshape(-1, h, w, c).astype(jnp.float32), **noise}
