"""Critics of waveforms: convolutional nets on several rates, several periods and several spectra. Scores without bound, high for real; no losses.

Parameters, here and (in brackets) with the gains of weight normalisation that RAVE's public code trains and these nets do not have:
    3 scales, capacity 64 (RAVE v1)                 7,748,739 (7,751,619)
    3 scales, capacity 96                          17,429,187 (17,433,507)
    periods 2, 3, 5, 7, 11, capacity 96             9,690,245 (9,697,445); with the 3 scales RAVE v2's 27,119,432 (27,130,952)
    3 scales, capacity 16 (RAVE raspberry)            485,667 (486,387)
    spectra of 5 windows, 32 channels                 471,685 (472,490)
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax

from vae_jax.config import UserError
from vae_jax.dsp import stft
from vae_jax.layers import convolutions_1d
from vae_jax.layers.convolutions import NHWC
from vae_jax.layers.convolutions_1d import bound

WIDTHS = (1, 2, 4, 8)  # channels of the layers of a net, in capacities
STRIDE = 4
SPECTRAL = (  # kernel, stride and dilation of each layer over (frames, bins)
    ((3, 9), (1, 1), (1, 1)),
    ((3, 9), (1, 2), (1, 1)),
    ((3, 9), (1, 2), (2, 1)),
    ((3, 9), (1, 2), (4, 1)),
    ((3, 3), (1, 1), (1, 1)),
    ((3, 3), (1, 1), (1, 1)),
)


class Critics(nn.Module):
    """The chosen critics of waveforms x [b, t, c] float32 -> (scores, features), one entry a net, in the order of the fields.

    scores: arrays whose first axis is the example, the others positions. features: of each net the list of its layers' results before the
    activation, first axis the example, channels last, the last one being the scores. Real and made sounds belong in one batch.

    scales: that many nets, each reading the mean of pairs of what the one before read (Kumar et al. 2019, MelGAN, section 2.2; here with plain
    layers of 15 taps). periods: a net each, reading every period-th sample, with the same weights at every phase (Kong et al. 2020, HiFi-GAN,
    section 2.3). resolutions: a net each on the complex spectrum of that window (Defossez et al. 2022, EnCodec, section 3.4), of 32 channels whatever
    the capacity. Raises UserError where no critic is chosen or a window is longer than the signal.
    """

    scales: int = 3
    periods: tuple[int, ...] = ()
    resolutions: tuple[int, ...] = ()
    capacity: int = 64
    dtype: Any = jnp.float32  # of the activations; parameters stay float32

    @nn.compact
    def __call__(self, x_btc):
        if not self.scales and not self.periods and not self.resolutions:
            raise UserError("an adversarial stage without a critic was asked for: choose scales, periods or resolutions.")
        features, pooled = [], x_btc
        for i in range(self.scales):
            pooled = _halve(pooled) if i else pooled
            features.append(Strided(self.capacity, 15, self.dtype, name=f"scale_{i}")(pooled))
        for period in self.periods:
            features.append(Periodic(period, self.capacity, self.dtype, name=f"period_{period}")(x_btc))
        for window in self.resolutions:
            features.append(Spectral(window, dtype=self.dtype, name=f"window_{window}")(x_btc))
        return [layers[-1] for layers in features], features


class Strided(nn.Module):
    """x [b, t, c] -> layers [b, ceil(t / 4^i), channels]: four convolutions of stride 4, then one of 1 tap for the scores."""

    capacity: int
    kernel: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_btc):
        x, layers, around = x_btc.astype(self.dtype), [], (self.kernel - 1) // 2
        for i, width in enumerate(WIDTHS):
            kernel, bias = _parameters(self, i, (self.kernel, x.shape[-1], width * self.capacity))
            x = jnp.pad(x, ((0, 0), (around, around), (0, 0)))
            layers.append(convolutions_1d.conv(x, kernel, STRIDE) + bias)
            x = nn.leaky_relu(layers[-1], 0.2)
        kernel, bias = _parameters(self, len(WIDTHS), (1, x.shape[-1], 1))
        return [*layers, convolutions_1d.conv(x, kernel) + bias]


class Periodic(nn.Module):
    """x [b, t, c] -> layers [b, period, ceil(t / period / 4^i), channels]: `Strided` of 5 taps on each phase; zeros fill up the last period."""

    period: int
    capacity: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_btc):
        b, t, c = x_btc.shape
        x = jnp.pad(x_btc, ((0, 0), (0, -t % self.period), (0, 0))).reshape(b, -1, self.period, c)
        layers = Strided(self.capacity, 5, self.dtype, name="net")(x.swapaxes(1, 2).reshape(b * self.period, -1, c))
        return [y.reshape(b, self.period, *y.shape[1:]) for y in layers]


class Spectral(nn.Module):
    """x [b, t, c] -> layers [b, frames, bins, channels]: two-dimensional convolutions of real and imaginary parts, hop a quarter of the window.

    The spectrum has the variance of white noise that is read; frames do not reach over the ends.
    """

    window: int
    channels: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_btc):
        t, hop = x_btc.shape[1], self.window // 4
        if t < self.window:
            raise UserError(f"a critic's spectral window of {self.window} samples is longer than the {t} samples it reads: take longer crops.")
        hann = stft.hann(None, self.window, hop)
        frames = stft.frame(x_btc.swapaxes(1, 2).astype(jnp.float32), self.window, hop, 1 + (t - self.window) // hop)
        spectrum = jnp.fft.rfft(frames * jnp.float32(hann / np.sqrt(np.sum(hann**2))))
        x = jnp.concatenate([spectrum.real, spectrum.imag], 1).transpose(0, 2, 3, 1).astype(self.dtype)
        layers = []
        for i, (taps, stride, dilation) in enumerate(SPECTRAL):
            kernel, bias = _parameters(self, i, (*taps, x.shape[-1], self.channels if i < len(SPECTRAL) - 1 else 1))
            rows, columns = ((k - 1) // 2 * d for k, d in zip(taps, dilation))
            x = jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
            layers.append(lax.conv_general_dilated(x, kernel, stride, "VALID", rhs_dilation=dilation, dimension_numbers=NHWC) + bias)
            x = nn.leaky_relu(layers[-1], 0.2)
        return layers


def _parameters(module, i, shape):
    fan = math.prod(shape[:-1])
    kernel, bias = module.param(f"kernel_{i}", bound(fan), shape), module.param(f"bias_{i}", bound(fan), shape[-1:])
    return kernel.astype(module.dtype), bias.astype(module.dtype)


def _halve(x_btc):
    b, t, c = x_btc.shape
    return x_btc[:, : t // 2 * 2].reshape(b, t // 2, 2, c).mean(2)
