"""RAVE: a convolutional autoencoder of sound on the sub-bands of a PQMF bank, after Caillon and Esling (2021, arXiv:2111.05011).

Everything maps Signals to Signals (layers/streaming.py): the same modules train on whole crops and play block by block. Version 1 is the paper's
network, version 2 the wider one of later years, with gated bands in place of a loudness. No layer has a bias, none is weight-normalised.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.dsp import pqmf
from vae_jax.layers.streaming import Align, Conv, Signal, Up, Wait

DILATIONS = {1: ((1, 3, 5),) * 4, 2: ((1, 3, 9), (1, 3, 9), (1, 3, 9), (1, 3))}  # of the residual units, by stage from the sub-bands inwards


class Rave(nn.Module):
    """Encoder and decoder between frames of samples [b, n, bands * channels] (see `frames_of`) and latents [b, n / prod(ratios), latent].

    `analyse` and `synthesise` are the filter bank, which has no parameters. outputs: values that an encoder gives a latent frame; groups: of version
    1's last layer, which look at a part of the channels each; extra: channels of noise beside the latents; amplitudes: frequencies at which the noise
    filter of a band is set, 0 = no noise branch.
    """

    version: int = 1
    capacity: int = 64
    outputs: int = 256
    groups: int = 2
    ratios: tuple[int, ...] = (4, 4, 4, 2)
    bands: int = 16
    channels: int = 1
    attenuation_db: float = 100.0
    causal: bool = False
    snake: bool = False
    amplitudes: int = 5
    noise_ratios: tuple[int, ...] = (4, 4, 4)
    noise_hidden: int = 64
    extra: int = 0
    dtype: Any = jnp.float32

    def setup(self):
        bank = (self.bands, self.attenuation_db, self.causal)
        self.analysis, self.synthesis = pqmf.Analysis(*bank), pqmf.Synthesis(*bank)
        self.frame_grid = Wait(math.prod(self.ratios))
        common = dict(capacity=self.capacity, ratios=self.ratios, causal=self.causal, dtype=self.dtype)
        kernels = tuple(3 if self.version == 1 else 2 * ratio for ratio in self.noise_ratios)
        branch = (self.amplitudes, self.noise_ratios, kernels, self.noise_hidden) if self.amplitudes else None
        encoder, decoder = (functools.partial(Encoder1, groups=self.groups), Decoder1) if self.version == 1 else (Encoder2, Decoder2)
        self.encoder = encoder(outputs=self.outputs, snake=self.snake, **common)
        self.decoder = decoder(outputs=self.bands * self.channels, branch=branch, snake=self.snake, **common)

    def analyse(self, s: Signal) -> Signal:
        """Frames of samples -> sub-bands, both [b, n, channels * bands], channel by channel."""
        return self._each_channel(self.analysis, s)

    def synthesise(self, s: Signal) -> Signal:
        return self._each_channel(self.synthesis, s)

    def encode(self, s: Signal, train: bool = False) -> Signal:
        """Sub-bands [b, n, channels * bands] -> statistics of the latents [b, n / prod(ratios), outputs]."""
        return self.encoder(s, train)

    def decode(self, z: Signal, key=None, noise=None) -> Signal:
        """Latents -> sub-bands. noise: weight of the noise branch, a scalar; None leaves it out. key: of all draws, which depend on it and on a
        frame's number alone."""
        if self.extra:
            noise_tbe = draws(key, z.frames(), (z.x.shape[0], self.extra), jax.random.normal)
            z = z.map(lambda x: jnp.concatenate([x, noise_tbe.swapaxes(0, 1)], -1))
        return self.decoder(z, key, noise)

    def play(self, z: Signal, key=None, noise=None) -> Signal:
        """Latents -> frames of samples, late by a multiple of the hop."""
        return self.frame_grid(self.synthesise(self.decode(z, key, noise)))

    def __call__(self, s: Signal, latent: int, key) -> Signal:
        """Touches every parameter; for `init`."""
        z = self.encode(self.analyse(s), True).map(lambda x: x[..., :latent])
        return self.play(z, key, jnp.float32(1.0))

    def _each_channel(self, layer, s):
        b, n, _ = s.x.shape
        apart = s.map(lambda x: x.reshape(b, n, self.channels, -1).swapaxes(1, 2).reshape(b * self.channels, n, -1))
        return layer(apart).map(lambda x: x.reshape(b, self.channels, n, -1).swapaxes(1, 2).reshape(b, n, -1))


def frames_of(x_btc, bands: int):
    """Samples [b, t, c] -> frames of samples [b, t / bands, c * bands], channel by channel."""
    b, t, c = x_btc.shape
    return x_btc.reshape(b, t // bands, bands, c).swapaxes(2, 3).reshape(b, t // bands, c * bands)


def samples_of(frames_bnk, channels: int):
    """The inverse of `frames_of`."""
    b, n, k = frames_bnk.shape
    return frames_bnk.reshape(b, n, channels, k // channels).swapaxes(2, 3).reshape(b, -1, channels)


class Encoder1(nn.Module):
    """Sub-bands [b, n, bands] -> [b, n / prod(ratios), outputs]: strided convolutions behind batch normalisation."""

    capacity: int
    ratios: tuple[int, ...]
    outputs: int
    groups: int
    causal: bool
    snake: bool
    dtype: Any

    @nn.compact
    def __call__(self, s: Signal, train: bool) -> Signal:
        conv, act = _layers(self, Conv)
        s, width = conv(self.capacity, 7)(s), self.capacity
        for ratio in self.ratios:
            norm, width = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=jnp.float32), 2 * width
            s = conv(width, 2 * ratio + 1, ratio)(s.map(norm).map(act()))
        return conv(self.outputs, 5, groups=self.groups)(s.map(act()))


class Decoder1(nn.Module):
    """Latents [b, n, d] -> sub-bands [b, n prod(ratios), outputs]: dilated residual stacks; a wave times a loudness common to all bands; noise."""

    capacity: int
    ratios: tuple[int, ...]
    outputs: int
    branch: tuple | None  # of noise
    causal: bool
    snake: bool
    dtype: Any

    @nn.compact
    def __call__(self, z: Signal, key, noise) -> Signal:
        conv, up, act = _layers(self, Conv, Up)
        width = self.capacity * 2 ** len(self.ratios)
        s = conv(width, 7)(z)
        for ratio, dilations in zip(self.ratios, DILATIONS[1]):
            width //= 2
            s = up(width, ratio)(s.map(act()))
            for dilation in dilations:
                h = conv(width, 3, dilation=dilation)(s.map(act()))
                s = _sum(s, conv(width, 3)(h.map(act())))
        branches = [conv(self.outputs, 7, name="wave")(s), conv(1, 3, name="loudness")(s), *_noise(self, s, key, noise)]
        wave, loudness, *rest = Align()(*branches)
        y = jnp.tanh(wave.x.astype(jnp.float32)) * level(loudness.x)
        return wave.replace(x=y + noise * rest[0].x if rest else y)


class Encoder2(nn.Module):
    """Sub-bands [b, n, bands] -> [b, n / prod(ratios), outputs]: residual units before each strided convolution, no normalisation."""

    capacity: int
    ratios: tuple[int, ...]
    outputs: int
    causal: bool
    snake: bool
    dtype: Any

    @nn.compact
    def __call__(self, s: Signal, train: bool) -> Signal:
        conv, act = _layers(self, Conv)
        s, width = conv(self.capacity, 7)(s), self.capacity
        for ratio, dilations in zip(self.ratios, DILATIONS[2]):
            for dilation in dilations:
                s = _unit(self, s, dilation)
            width *= 2
            s = conv(width, 2 * ratio, ratio)(s.map(act()))
        return conv(self.outputs, 3)(s.map(act()))


class Decoder2(nn.Module):
    """Latents [b, n, d] -> sub-bands [b, n prod(ratios), outputs]: Encoder2 mirrored, a gate for every band, and noise."""

    capacity: int
    ratios: tuple[int, ...]
    outputs: int
    branch: tuple | None  # of noise
    causal: bool
    snake: bool
    dtype: Any

    @nn.compact
    def __call__(self, z: Signal, key, noise) -> Signal:
        conv, up, act = _layers(self, Conv, Up)
        width = self.capacity * 2 ** len(self.ratios)
        s = conv(width, 3)(z)
        for ratio, dilations in reversed(list(zip(self.ratios, DILATIONS[2]))):
            width //= 2
            s = up(width, ratio)(s.map(act()))
            for dilation in dilations:
                s = _unit(self, s, dilation)
        wave, *rest = Align()(conv(2 * self.outputs, 7, name="wave")(s.map(act())), *_noise(self, s, key, noise))
        x, gate = jnp.split(wave.x.astype(jnp.float32), 2, -1)
        y = x * jax.nn.sigmoid(gate)
        return wave.replace(x=jnp.tanh(y + noise * rest[0].x if rest else y))


class Noise(nn.Module):
    """Noise filtered as the network says: for each frame of prod(ratios) sub-band samples a zero-phase filter from its amplitudes at `amplitudes`
    frequencies (as in DDSP, Engel et al. 2020, arXiv:2001.04643, section 3), Hann windowed. s [b, n, c] -> [b, n, bands].

    The filters change from frame to frame, the noise goes on through them.
    """

    amplitudes: int
    ratios: tuple[int, ...]
    kernels: tuple[int, ...]
    hidden: int
    bands: int
    causal: bool
    snake: bool
    dtype: Any

    @nn.compact
    def __call__(self, s: Signal, key) -> Signal:
        conv, act = _layers(self, Conv)
        widths = [self.hidden] * (len(self.ratios) - 1) + [self.bands * self.amplitudes]
        for i, sizes in enumerate(zip(widths, self.kernels, self.ratios)):
            s = conv(*sizes)(s.map(act()) if i else s)
        b, n, _ = s.x.shape
        frame, taps = math.prod(self.ratios), 2 * (self.amplitudes - 1)
        size_bnma = level(s.x - 5.0).reshape(b, n, self.bands, self.amplitudes)
        filters_knbm = jnp.einsum("bnma,ak->knbm", size_bnma, jnp.float32(_responses(self.amplitudes)))
        around = -(-taps // 2 // frame)  # frames of noise that a filter reaches into on each side
        numbers = s.frames()[0] - around + jnp.arange(n + 2 * around, dtype=jnp.int32)
        uniform = lambda key, shape: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
        noise = draws(key, numbers, (frame, b, self.bands), uniform).reshape(-1, b, self.bands)[around * frame - taps // 2:]
        made = sum(noise[k:k + n * frame].reshape(n, frame, b, self.bands) * filters_knbm[k][:, None] for k in range(taps))
        made = made.transpose(2, 0, 1, 3).reshape(b, n * frame, self.bands)
        return Signal(made, None if s.position is None else s.position * frame, s.delay * frame, s.first * frame)


class Snake(nn.Module):
    """x + sin(a x)^2 / a with a slope a of every channel (Ziyin et al. 2020, arXiv:2006.08195, equation 3)."""

    @nn.compact
    def __call__(self, x):
        slope = self.param("slope", nn.initializers.ones, (x.shape[-1],)).astype(x.dtype)
        return x + jnp.square(jnp.sin(slope * x)) / (slope + 1e-9)


def level(x):
    """A positive loudness or amplitude, 2 sigmoid(x)^2.3 + 1e-7 in float32 (Engel et al. 2020, equation 5, with base 10)."""
    return 2.0 * jax.nn.sigmoid(x.astype(jnp.float32)) ** 2.3 + 1e-7


def draws(key, numbers_t, shape, sampler):
    """[t, *shape]: a draw for each frame that depends on the key and the frame's number alone, whatever blocks the frames come in."""
    return jax.vmap(lambda number: sampler(jax.random.fold_in(key, number), shape))(numbers_t.astype(jnp.uint32))


def _responses(amplitudes: int) -> np.ndarray:
    """[amplitudes, taps]: zero-phase impulse responses of unit amplitude at one frequency each, windowed; tap taps // 2 stands at time 0."""
    taps = 2 * (amplitudes - 1)
    around_zero = np.roll(np.fft.irfft(np.eye(amplitudes), taps, axis=-1), taps // 2, axis=-1)
    return around_zero * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(taps) / taps))


def _layers(module, *kinds):
    """The kinds of layer with the module's causality and precision, and its activation (a new one at each call, since a Snake has parameters)."""
    made = [functools.partial(kind, causal=module.causal, dtype=module.dtype) for kind in kinds]
    return *made, Snake if module.snake else lambda: functools.partial(nn.leaky_relu, negative_slope=0.2)


def _unit(module, s: Signal, dilation: int) -> Signal:
    """s plus a dilated convolution and a mix of its channels."""
    conv, act = _layers(module, Conv)
    width = s.x.shape[-1]
    return _sum(s, conv(width, 1)(conv(width, 3, dilation=dilation)(s.map(act())).map(act())))


def _sum(first: Signal, second: Signal) -> Signal:
    first, second = Align()(first, second)
    return first.replace(x=first.x + second.x)


def _noise(module, s: Signal, key, weight) -> list[Signal]:
    if module.branch is None or weight is None:
        return []
    return [Noise(*module.branch, module.outputs, module.causal, module.snake, module.dtype, name="noise")(s, key)]
