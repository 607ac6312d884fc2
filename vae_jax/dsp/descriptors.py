"""Measures of a sound on the host, by frame and by clip: pitch, loudness, spectral centroid; the Fréchet distance of two sets.

Signals are mono, full scale 1. All measures of a sound share the frames of `grid`: frame i is centred on sample i * hop, zeros lie outside.
Levels are in dB of a full-scale sine, as in dsp.stft; A-weighted ones of such a sine at 1 kHz.
"""

import math

import numpy as np
import scipy.fft

from vae_jax.config import UserError
from vae_jax.dsp import stft

WINDOW_SECONDS = 0.043  # of a spectrum; the nearest power of two samples is taken: 2048 at 44.1 and 48 kHz
QUIET_DB = -80.0  # frames below have neither pitch nor centroid; the dither of 16 bits lies at -98
LEAST_DB = -120.0  # nothing is measured below
DIP, VOICED = 0.1, 0.2  # YIN: the first dip below DIP is taken, else the deepest; voiced where it is below VOICED
YIN_SECONDS = 0.025  # window over which a signal is compared with itself one period later
CENTRED_SECONDS = 0.005  # period of the pitch, 200 Hz, whose frames lie evenly around their centres
FRAMES_AT_ONCE = 1024


def grid(rate: int) -> tuple[int, int]:
    """Window and hop in samples at a rate in Hz; the hop is a quarter of the window."""
    n_fft = max(8, 2 ** round(math.log2(WINDOW_SECONDS * rate)))
    return n_fft, n_fft // 4


def pitch(x_t, rate: int, low_hz: float = 40.0, high_hz: float = 2000.0) -> tuple[np.ndarray, np.ndarray]:
    """Fundamental in Hz [f], and whether the frame is voiced [f], by YIN (de Cheveigné and Kawahara 2002, steps 2 to 5).

    Where a frame is not voiced its pitch is the best guess. No pitch above a sixteenth of the rate is looked for: the dips of a bright sound with
    fewer samples a period fall between samples, and an octave below wins. Raises UserError for an empty range and for a signal without samples.
    """
    least, most = (math.floor(rate / hz) for hz in (min(high_hz, rate / 16), low_hz))
    if most <= least:
        raise UserError(f"No pitch between {low_hz:g} and {high_hz:g} Hz can be told at a sample rate of {rate} Hz; widen the range.")
    x, hop, window = _mono(x_t), grid(rate)[1], max(most, round(YIN_SECONDS * rate))
    size = window + most + 1
    count = 1 + len(x) // hop
    padded = np.pad(x, ((window + round(CENTRED_SECONDS * rate)) // 2, size))  # the sound compared with itself spans window + period
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop][:count]
    parts = [_yin(frames[i : i + FRAMES_AT_ONCE], window, least, most) for i in range(0, count, FRAMES_AT_ONCE)]
    period, aperiodicity, power = (np.concatenate(values) for values in zip(*parts))
    return rate / period, (aperiodicity < VOICED) & (2 * power > 10 ** (QUIET_DB / 10))


def _yin(frames_fn, window, least, most):
    """Period in samples, aperiodicity (cumulative mean normalised difference there) and mean square, each [f]."""
    difference = _difference(frames_fn, window, most + 1)
    total = np.cumsum(difference[:, 1:], 1)
    normalised = np.ones_like(difference)
    np.divide(difference[:, 1:] * np.arange(1, most + 2), total, out=normalised[:, 1:], where=total > 0)
    inner = normalised[:, least : most + 1]
    dips = (inner < DIP) & (inner <= normalised[:, least - 1 : most]) & (inner <= normalised[:, least + 1 : most + 2])
    lag = least + np.where(dips.any(1), dips.argmax(1), inner.argmin(1))
    rows = np.arange(len(lag))
    # The parabola is laid through the difference itself: the normalised one leans to one side, which biases the period.
    left, middle, right = (difference[rows, lag + i] for i in (-1, 0, 1))
    bend = left - 2 * middle + right
    shift = np.divide(left - right, 2 * bend, out=np.zeros_like(bend), where=bend > 0)
    return lag + np.clip(shift, -1, 1), normalised[rows, lag], np.mean(frames_fn**2, 1)


def _difference(frames_fn, window, lags):
    """Sum over the window's samples j of (x[j] - x[j + lag])^2, [f, lags + 1], lags 0..lags."""
    size = scipy.fft.next_fast_len(window + lags, real=True)
    spectrum = scipy.fft.rfft(frames_fn, size)
    product = scipy.fft.irfft(spectrum * scipy.fft.rfft(frames_fn[:, :window], size).conj(), size)[:, : lags + 1]
    sums = np.pad(np.cumsum(frames_fn**2, 1), ((0, 0), (1, 0)))
    energy = sums[:, window : window + lags + 1] - sums[:, : lags + 1]
    return np.maximum(energy[:, :1] + energy - 2 * product, 0)


def loudness(x_t, rate: int) -> np.ndarray:
    """A-weighted level in dB [f], at least LEAST_DB: root mean square under the Hann window, 0 for a full-scale sine at 1 kHz.

    The weighting follows the ear's at low level (IEC 61672-1:2013, annex E); unlike a plain level it does not rise with inaudible bass.
    """
    n_fft, hop = grid(rate)
    power = np.square(_magnitude(_mono(x_t), rate) * a_weighting(np.linspace(0, rate / 2, n_fft // 2 + 1)))
    power[:, 1:-1] *= 2  # the bins that stand for two
    return 10 * np.log10(np.maximum(2 * power.sum(1) / (n_fft * np.square(stft.hann(None, n_fft, hop)).sum()), 10 ** (LEAST_DB / 10)))


def a_weighting(hz) -> np.ndarray:
    """A-weighting as a factor of amplitudes, 1 at 1 kHz (IEC 61672-1:2013, equation E.6)."""
    squared = np.square(np.asarray(hz, np.float64))
    shape = lambda s: 12194.22**2 * s**2 / ((s + 20.6**2) * np.sqrt((s + 107.65**2) * (s + 737.86**2)) * (s + 12194.22**2))
    return shape(squared) / shape(1e6)


def centroid(x_t, rate: int) -> np.ndarray:
    """Spectral centroid in Hz [f], the mean frequency weighted by magnitude; NaN in frames below QUIET_DB."""
    n_fft, _ = grid(rate)
    magnitude = _magnitude(_mono(x_t), rate)
    total = magnitude.sum(1)
    found = magnitude @ np.linspace(0, rate / 2, n_fft // 2 + 1) / total
    return np.where(magnitude.max(1) > stft.full_scale(n_fft) * 10 ** (QUIET_DB / 20), found, np.nan)


def of_clip(x_t, rate: int) -> dict[str, float]:
    """One figure of each kind for a whole sound: pitch_hz (median over voiced frames), voiced (their share), loudness_db (of the mean power),
    centroid_hz (mean over frames that are not quiet). NaN where no frame has one."""
    hz, voiced = pitch(x_t, rate)
    level, middle = loudness(x_t, rate), centroid(x_t, rate)
    heard = np.isfinite(middle)
    return {"pitch_hz": float(np.median(hz[voiced])) if voiced.any() else math.nan, "voiced": float(voiced.mean()),
            "loudness_db": float(10 * np.log10(np.mean(10 ** (level / 10)))), "centroid_hz": float(middle[heard].mean()) if heard.any() else math.nan}


def _mono(x_t):
    x = np.asarray(x_t, np.float64)
    if x.ndim != 1 or not x.size:
        raise UserError(f"A sound of shape {list(x.shape)} was to be measured; give one channel with at least one sample.")
    return x


def _magnitude(x_bt, rate):
    return np.asarray(stft.magnitude(stft.stft(x_bt, *grid(rate))), np.float64)


def frechet(a_nd, b_nd) -> float:
    """Fréchet distance, squared as is usual, of two Gaussians with the means and covariances of feature rows (Dowson and Landau 1982).

    |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), float64. The last trace is the sum of the singular values of A^1/2 B^1/2: roots are taken of
    symmetric matrices only, by eigenvalues, none negative, so rows that span few dimensions do no harm. Raises ValueError for fewer than two rows.
    """
    (mean, root), (other, other_root) = _moments(a_nd), _moments(b_nd)
    traces = np.square(root).sum() + np.square(other_root).sum() - 2 * np.linalg.svd(root @ other_root, compute_uv=False).sum()
    return float(np.square(mean - other).sum() + max(traces, 0.0))


def _moments(rows_nd):
    """Mean [d], and the symmetric root [d, d] of the covariance."""
    rows = np.asarray(rows_nd, np.float64)
    if len(rows) < 2:
        raise ValueError(f"a covariance needs at least two rows, not {len(rows)}")
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(rows, rowvar=False)))
    return rows.mean(0), (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
