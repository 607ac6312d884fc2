"""Pseudo-QMF bank: a signal as M bands at 1 / M of its rate, and back nearly perfectly, for any M.

Cosine-modulated filters h_k(t) = 2 h(t) cos((2k + 1) pi t / (2M) + (-1)^k pi / 4), t = -L..L, of one prototype h, and their mirror images for the
way back (Nguyen 1994, Near-perfect-reconstruction pseudo-QMF banks). h is found as in Lin and Vaidyanathan 1998, A Kaiser window approach, but with
three numbers free where they have the cut-off: at 100 dB noise comes back with 84.8 dB SNR instead of 60.8, from filters of the same length.
A sine keeps its amplitude in its band. A decimated odd band lies upside down; it is multiplied by (-1)^n, so that rising pitch rises in every band.

Everything runs at the low rate: M samples make a frame, and a filter is one dense convolution of frames, [b, n, M] -> [b, n, M], in float32.
Centred: band frame n stands at sample n M + M // 2 and a round trip is not late, but the L samples at each end lack a neighbour. Causal: frame n
reads samples up to its own last one, synthesis reads band frames up to its own, and a round trip is 2L + 1 - M samples late.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.signal

from vae_jax.config import UserError
from vae_jax.layers.streaming import Signal, convolve

ATTENUATION_DB = 100.0  # of the prototype's stop band: 377 taps for 16 bands; 70 dB: 255 taps, round trip 67 dB


class Bank(NamedTuple):
    """analysis float32 [K, sample of frame, band], synthesis float32 [K, band, sample of frame], delay: samples by which a round trip is late."""

    analysis: np.ndarray
    synthesis: np.ndarray
    delay: int
    bands: int


@functools.lru_cache
def bank(bands: int, attenuation_db: float = ATTENUATION_DB, causal: bool = False) -> Bank:
    """Kernels of frames; K is odd where centred. One band is the identity. Raises UserError for impossible sizes."""
    _check(bands, attenuation_db)
    if bands == 1:
        one = np.ones((1, 1, 1), np.float32)
        return Bank(one, one, 0, 1)
    h_t = prototype(bands, attenuation_db)
    m, last = bands, len(h_t) // 2
    k, t = np.arange(m), np.arange(-last, last + 1)[:, None]
    h_tk = 2 * h_t[:, None] * np.cos((2 * k + 1) * np.pi / (2 * m) * t + (-1.0) ** k * np.pi / 4)
    if causal:
        from_sample, to_sample = m - 1 - last, last  # where in its own frame a band frame stands, to the analysis and to the synthesis
        frames = np.arange(-(2 * last // m), 1)
    else:
        from_sample = to_sample = m // 2
        half = (last + m // 2) // m
        frames = np.arange(-half, half + 1)
    ahead = m * frames[:, None] + np.arange(m) - from_sample  # [K, sample]: of samples read, from where the band frame stands
    behind = -m * frames[:, None] + np.arange(m) - to_sample  # of samples written, from where each band frame that is read stands
    analysis = _taps(h_tk, -ahead)
    synthesis = _taps(h_tk, -behind).transpose(0, 2, 1) * (m / np.sum(h_tk**2))  # the mean gain of a round trip is 1
    for kernel in (analysis, synthesis):
        kernel.setflags(write=False)
    return Bank(analysis, synthesis, to_sample - from_sample, m)


@functools.lru_cache
def prototype(bands: int, attenuation_db: float = ATTENUATION_DB) -> np.ndarray:
    """Low-pass of sum 1, float64, odd length: under -attenuation_db from pi / bands on, where bands that are no neighbours begin.

    The mean of two ideal low-passes under a Kaiser window, as long as Kaiser's rule asks for a transition of 0.547 pi / bands. Their cut-offs and the
    window's shape make the largest autocorrelation at non-zero multiples of 2 bands (0 for power-complementary bands) as small as the stop band lets.
    """
    _check(bands, attenuation_db)
    length, beta = scipy.signal.kaiserord(attenuation_db, 0.547 / bands)
    length |= 1
    t = np.arange(length) - length // 2
    stop = np.cos(np.pi / bands * np.linspace(1, 2, 65)[:, None] * t)
    tolerance = 10 ** (-attenuation_db / 20)

    def low_pass(settings):
        cutoff, apart, shape = settings
        h = np.sinc(cutoff / bands * t) * np.cos(np.pi * apart / bands * t) * np.kaiser(length, shape)
        return h / h.sum()

    def worst(settings):
        h = low_pass(settings)
        largest = max(abs(h[:-lag] @ h[lag:]) for lag in range(2 * bands, length, 2 * bands))
        return largest / (h @ h) * max(1.0, np.max(np.abs(stop @ h)) / tolerance)

    found = np.array([0.57, 0.07, 1.39 * beta])
    for _ in range(3):  # a simplex that has shrunk in a crease of the largest value gets out of it when it starts anew
        found = scipy.optimize.minimize(worst, found, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9}).x
    return low_pass(found)


class Analysis(nn.Module):
    """Frames of samples [b, n, bands] -> bands [b, n, bands]. A centred stream is (K - 1) / 2 frames late, a causal one is not."""

    bands: int
    attenuation_db: float = ATTENUATION_DB
    causal: bool = False

    @nn.compact
    def __call__(self, s: Signal) -> Signal:
        return _upright(_exact(self, s, bank(self.bands, self.attenuation_db, self.causal).analysis, self.causal))


class Synthesis(nn.Module):
    """Bands [b, n, bands] -> frames of samples [b, n, bands]; see Analysis."""

    bands: int
    attenuation_db: float = ATTENUATION_DB
    causal: bool = False

    @nn.compact
    def __call__(self, s: Signal) -> Signal:
        return _exact(self, _upright(s), bank(self.bands, self.attenuation_db, self.causal).synthesis, self.causal)


def analyse(x_bt, bands: int, attenuation_db: float = ATTENUATION_DB, causal: bool = False):
    """Bands [b, t / bands, bands] of whole signals. Raises UserError where t is no multiple of the bands."""
    _check(bands, attenuation_db)
    b, t = x_bt.shape
    if t % bands:
        raise UserError(f"a signal of {t} samples cannot be split into {bands} bands: give it a length that is a multiple of {bands}.")
    return Analysis(bands, attenuation_db, causal).apply({}, Signal(jnp.reshape(x_bt, (b, t // bands, bands)))).x


def synthesise(x_bnm, attenuation_db: float = ATTENUATION_DB, causal: bool = False):
    """Whole signals [b, n bands] of their bands, late by bank(...).delay samples."""
    b, n, bands = x_bnm.shape
    return Synthesis(bands, attenuation_db, causal).apply({}, Signal(x_bnm)).x.reshape(b, n * bands)


def _check(bands, attenuation_db):
    if bands != int(bands) or not 1 <= bands <= 1024:
        raise UserError(f"a filter bank of {bands} bands cannot be made: give a whole number from 1 to 1024.")
    if not 50 <= attenuation_db <= 120:
        raise UserError(f"a filter bank with {attenuation_db} dB of attenuation cannot be made: give 50 to 120, 100 as a rule.")


def _taps(h_tk, time):
    """h_k at the given times, 0 outside the filters: float32 [*time, k]."""
    last = len(h_tk) // 2
    inside = np.abs(time) <= last
    return np.where(inside[..., None], h_tk[np.where(inside, time, 0) + last], 0).astype(np.float32)


def _upright(s):
    odd = (s.frames()[:, None] & 1) * (jnp.arange(s.x.shape[-1]) & 1)
    return s.map(lambda x: x * (1 - 2 * odd).astype(x.dtype))


def _exact(module, s, kernel, causal):
    with jax.default_matmul_precision("highest"):  # accelerators would round the samples to 8 or 11 bits, which is under the bank's own 60 dB
        return convolve(module, s, jnp.asarray(kernel), causal=causal)
