"""Signals from magnitudes alone: phases predicted from the magnitudes, then the fast Griffin-Lim algorithm, in one loop on the device."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vae_jax.config import UserError
from vae_jax.dsp.stft import hann, istft, stft


def griffin_lim(
    magnitude_btf,
    hop: int,
    length: int,
    iterations: int = 60,
    momentum: float = 0.99,
    key=None,
    phases=None,
    window_length: int | None = None,
    form: str = "rfft",
    least: float = 0.05,
):
    """Signals [..., length] whose STFT magnitudes come near the given ones [..., 1 + length // hop, n_fft // 2 + 1].

    Starts from given `phases` (radians, shape of the magnitudes) or from `predicted_phases` drawn with `key`: exactly one of the two.
    window_length and form are those of `stft`. Magnitudes of any scale give the same signal at that scale. Perraudin, Balazs and Sondergaard
    2013, A fast Griffin-Lim algorithm, alpha = momentum; momentum 0 is Griffin and Lim 1984. Raises UserError for a frame count that does not fit
    the length.

    least: that of `istft`. 0 is the paper's exact inverse and, from given phases, gives librosa's signal; but where one window's tail alone lies on
    the last samples (half overlap, length % hop near hop) it puts clicks there, of hundreds of times the clip's peak at length % hop = hop - 1. The
    default damps samples whose sum of squared windows is under 5 % of the largest: at n_fft 512, hop 256 there are some where length % hop > 176.
    Such signals differ from librosa's by up to their own peak at the end, the last 8 windows after 60 iterations; other lengths are untouched.
    """
    frames = magnitude_btf.shape[-2]
    if hop < 1 or length < 1 or frames != 1 + length // hop:
        raise UserError(f"{frames} frames at hop {hop} do not fit {length} samples; give the length that was analysed: frames = 1 + length // hop.")
    if (key is None) == (phases is None):
        raise UserError("Griffin-Lim starts from phases drawn with a key or from given phases; pass exactly one of the two.")
    magnitude_btf = jnp.asarray(magnitude_btf, jnp.float32)
    if phases is None:
        phases = _predict(magnitude_btf, key, hop, window_length)
    return _descend(magnitude_btf, phases, momentum, hop, length, iterations, window_length, form, least)


def predicted_phases(magnitude_btf, key, hop: int, window_length: int | None = None):
    """Phases [..., frames, bins], radians, that fit the magnitudes: the first frame's at random, the others follow from it.

    In a Gaussian window the phase's slopes are those of the log-magnitude with the axes exchanged; a Hann window is close to the Gaussian of spread
    0.256 window_length^2 (Prusa, Balazs and Sondergaard 2017, A noniterative method). Each local peak of a frame goes on from the
    frame before by its slope in time; the bins around it follow the peak by their slopes in frequency (phase locking, Laroche and Dolson 1999),
    in place of the heap of the 2017 paper, which no accelerator runs well.
    """
    bins = magnitude_btf.shape[-1]
    n_fft = 2 * (bins - 1)
    hann(window_length, n_fft, hop)
    spread = 0.25645 * (window_length or n_fft) ** 2 / (hop * n_fft)
    peak = jnp.max(magnitude_btf, (-2, -1), keepdims=True)
    log = jnp.log(jnp.maximum(magnitude_btf / jnp.where(peak > 0, peak, 1.0), 1e-7))
    lead = [(0, 0)] * (log.ndim - 2)
    beside = jnp.pad(log, [*lead, (0, 0), (1, 1)], mode="reflect")
    around = jnp.pad(log, [*lead, (1, 1), (0, 0)], mode="edge")

    centre = np.float32(2.0 * np.pi / n_fft * (np.arange(bins) * hop % n_fft))
    in_time = centre + (beside[..., 2:] - beside[..., :-2]) * (0.5 / spread)
    in_time = jnp.pad(0.5 * (in_time[..., 1:, :] + in_time[..., :-1, :]), [*lead, (1, 0), (0, 0)])
    in_frequency = (around[..., 2:, :] - around[..., :-2, :]) * (-0.5 * spread)
    in_frequency = 0.5 * (in_frequency[..., 1:] + in_frequency[..., :-1])
    profile = jnp.cumsum(jnp.pad(in_frequency, [*lead, (0, 0), (1, 0)]), -1) + np.float32(np.pi * (np.arange(bins) % 2))
    owner = _summits(log)

    def step(phase, this):
        advance, profile, owner = this
        phase = (jnp.take_along_axis(phase + advance - profile, owner, -1) + profile) % (2.0 * jnp.pi)
        return phase, phase

    first = jax.random.uniform(key, log.shape[:-2] + (bins,), maxval=2.0 * jnp.pi)
    frames_first = [jnp.moveaxis(part, -2, 0) for part in (in_time, profile, owner)]
    return jnp.moveaxis(lax.scan(step, first, tuple(frames_first))[1], 0, -2)


def _summits(x):
    """Index of the local maximum that each entry of the last axis reaches by climbing."""
    axis, index = x.ndim - 1, lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    lead = [(0, 0)] * axis
    left = jnp.pad(x[..., :-1], [*lead, (1, 0)], constant_values=-jnp.inf)
    right = jnp.pad(x[..., 1:], [*lead, (0, 1)], constant_values=-jnp.inf)
    top = (x >= left) & (x >= right)
    before = lax.cummax(jnp.where(top, index, 0), axis)
    behind = lax.cummin(jnp.where(top, index, x.shape[-1] - 1), axis, reverse=True)
    return jnp.where(right > left, behind, before)


def _fast_griffin_lim(target, phases, momentum, hop, length, iterations, window_length, form, least):
    peak = jnp.max(target, (-2, -1), keepdims=True)
    target = target / jnp.where(peak > 0, peak, 1.0)  # so that one small constant guards the division for clips of any level
    n_fft = 2 * (target.shape[-1] - 1)

    def signal(spectrum):
        return istft(spectrum, hop, length, window_length, form, least)

    def step(_, carry):
        spectrum, previous = carry
        rebuilt = stft(signal(spectrum), n_fft, hop, window_length, form)
        # The direction of rebuilt + momentum * (rebuilt - previous); in this form the first step, without a previous, needs no case of its own
        ahead = rebuilt - momentum / (1.0 + momentum) * previous
        return ahead * (target * lax.rsqrt(jnp.square(ahead.real) + jnp.square(ahead.imag) + 1e-30)), rebuilt

    start = target * lax.complex(jnp.cos(phases), jnp.sin(phases))
    spectrum, _ = lax.fori_loop(0, iterations, step, (start, jnp.zeros_like(start)))
    return signal(spectrum) * peak[..., 0]


_descend = jax.jit(_fast_griffin_lim, static_argnums=(3, 4, 6, 7, 8))
_predict = jax.jit(predicted_phases, static_argnums=(2, 3))


def spectral_convergence(target_btf, found_btf):
    """||found - target|| / ||target|| [...] of magnitudes, NumPy's or JAX's; 0 is perfect (Sturmel and Daudet 2011)."""
    return (((found_btf - target_btf) ** 2).sum((-2, -1)) / (target_btf**2).sum((-2, -1))) ** 0.5
