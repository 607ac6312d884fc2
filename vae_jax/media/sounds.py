"""Sounds for ears and eyes: waves as WAV files, spectrograms in one colour scale, and the numbers that say what a resynthesis lost.

Spectrograms are those of `fronts`: x [n, bins, frames, 1] in 0..1, low frequencies first, `range_db` decibels from 0 to 1. Where a clip has a
level of its own, x is relative to it and `level` [n] says where its white lies; None stands for the same white everywhere.
"""

import io
import math
import wave

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vae_jax.dsp import griffin_lim, stft
from vae_jax.media import images

PEAK = 0.9  # of full scale: the loudest sample of a set of files
MAX_GAIN = 100.0  # 40 dB: sets down to -41 dB still come up to PEAK, and where all is silence the rounding of 16 bits stays below -56 dB
COLOURS = np.round(255 * matplotlib.colormaps["magma"](np.arange(256))[:, :3]).astype(np.uint8)  # even steps for the eye, in grey print too
BLOCK = 1 << 20  # samples of a file that are converted at once
FADE_SECONDS = 0.05  # of the passage from one resynthesised stretch of a long sound to the next


def gain(*sets) -> float:
    """The one factor that brings the loudest sample of all these waves to PEAK, at most MAX_GAIN; 1 for silence. Sounds to be compared share it."""
    loudest = max(float(np.abs(np.nan_to_num(waves)).max(initial=0.0)) for waves in sets)
    return min(PEAK / loudest, MAX_GAIN) if loudest > 0 else 1.0


def wav(wave_n, rate: int, factor: float = 1.0) -> bytes:
    """A wave [n] or [n, channels], full scale 1, times `factor`, as a 16-bit WAV file. What exceeds full scale is limited; not finite is silence."""
    out, wave_n = io.BytesIO(), np.asarray(wave_n)
    with wave.open(out, "wb") as file:
        file.setnchannels(1 if wave_n.ndim == 1 else wave_n.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        for start in range(0, len(wave_n), BLOCK):
            values = np.nan_to_num(wave_n[start:start + BLOCK].astype(np.float64) * factor, nan=0.0, posinf=0.0, neginf=0.0)
            file.writeframesraw(np.clip(np.rint(values * 32768), -32768, 32767).astype("<i2").tobytes())
    return out.getvalue()


def show(x) -> np.ndarray:
    """Spectrograms as pictures for eyes, uint8 [n, bins, frames, 3]: low frequencies at the bottom, the same colour for the same value."""
    return COLOURS[images.to_uint8(np.asarray(x)[:, ::-1, :, 0])]


def spectrograms(sets, rate: int, range_db: float = 80.0, rows: int = 256, columns: int = 1600) -> list[np.ndarray]:
    """Spectrograms [n, rows, at most about `columns` frames, 1] in 0..1 of sets of waves [n, samples, channels], all in one scale: 1 is the loudest
    level of the first set, 0 is range_db below. Linear frequency, levels of neighbouring bins and of channels are those of their mean power.
    """
    n_fft = max(2 * rows, 2 ** round(math.log2(0.043 * rate)))
    hop = max(n_fft // 4, -(-sets[0].shape[1] // columns))
    levels = []
    for waves in sets:
        power = np.square(np.stack([stft.magnitude(stft.stft(wave.T, n_fft, hop)) for wave in waves]) / stft.full_scale(n_fft)).mean(1)
        power = power[..., :-1].reshape(*power.shape[:2], rows, -1).mean(-1)
        levels.append(10 * np.log10(np.maximum(power, 1e-20)).swapaxes(1, 2)[..., None])
    return [np.clip(1 + (db - levels[0].max()) / range_db, 0.0, 1.0) for db in levels]


def side_by_side(sets, captions, columns: int) -> np.ndarray:
    """Cells for `images.grid`: the i-th picture of every set [n, h, w, 3], left to right, over a strip with its caption.

    columns: of the sheet to come; every picture is enlarged or reduced to fit it.
    """
    parts = [images.resize(pictures, columns * len(sets)) for pictures in sets]
    n, h, w, _ = parts[0].shape
    size = max(11, min(26, w // 3))
    cells = np.full((n, h + size + 6, len(parts) * (w + 2) - 2, 3), images.INK, np.uint8)
    for i, part in enumerate(parts):
        cells[:, :h, i * (w + 2):i * (w + 2) + w] = part
    font = ImageFont.load_default(size)
    for cell, caption in zip(cells, captions):
        strip = Image.new("RGB", (cell.shape[1], size + 6), "#161a22")
        ImageDraw.Draw(strip).text((cell.shape[1] / 2, size / 2 + 2), caption, "#e6e9ef", font, anchor="mm")
        cell[h:] = np.asarray(strip)
    return cells


def decibels(x, level, range_db: float) -> np.ndarray:
    """Spectrograms x, with their levels, in dB below white [n, bins, frames]."""
    db = range_db * (np.asarray(x, np.float64)[..., 0] - 1)
    return db if level is None else db + range_db * (np.asarray(level, np.float64)[:, None, None] - 1)


def squared_db(first, second) -> np.ndarray:
    """Mean squared difference [n], in dB^2, of two sets of spectrograms in dB; nothing counts below the first one's floor, its least value."""
    floor = first.min((1, 2), keepdims=True)
    return ((first - np.maximum(second, floor)) ** 2).mean((1, 2))


def convergence(first, second) -> np.ndarray:
    """Spectral convergence [n] of spectrograms in dB, the first being the target."""
    return griffin_lim.spectral_convergence(*(10 ** (db / 20) for db in (first, second)))


def starts(length: int, samples: int, step: int) -> np.ndarray:
    """Where pieces of `samples` begin, `step` apart, that together cover a sound of `length`; the last may reach beyond its end."""
    return np.arange(1 + max(0, -(-(length - samples) // step))) * step


def stitch(pieces_nfk, step: int, numpy=np):
    """One spectrogram [(n - 1) * step + frames, k] of overlapping pieces [n, frames, k], `step` frames apart.

    Weighted mean where they overlap; a piece counts less towards its ends, where it was analysed without its neighbours. numpy: the module to
    compute with. step must not exceed frames.
    """
    n, frames, k = pieces_nfk.shape
    weight = np.minimum(np.arange(1, frames + 1), np.arange(frames, 0, -1)).astype(np.float32)
    parts = -(-frames // step)
    padded = numpy.pad(pieces_nfk * weight[:, None], [(0, 0), (0, parts * step - frames), (0, 0)]).reshape(n, parts, step, k)
    blocks = sum(numpy.pad(padded[:, i], [(i, parts - 1 - i), (0, 0), (0, 0)]) for i in range(parts))
    share = np.pad(weight, (0, parts * step - frames)).reshape(parts, step)
    total = sum(np.pad(np.broadcast_to(share[i], (n, step)), [(i, parts - 1 - i), (0, 0)]) for i in range(parts))
    length = (n - 1) * step + frames
    return blocks.reshape(-1, k)[:length] / total.reshape(-1, 1)[:length]


def crossfade(stretches: list, overlap: int, fade: int) -> np.ndarray:
    """One wave, float32, of stretches [t] of which each begins `overlap` samples before the end of the one before.

    Phases found apart do not agree, so each passage takes the `fade` samples of the overlap where least power would be lost, with the polarity of
    the next stretch that fits better there, and weights that keep the power at the correlation found.
    """
    fade, t = min(fade, overlap), len(stretches[0])
    out = np.zeros(len(stretches) * (t - overlap) + overlap, np.float32)
    out[:t] = stretches[0]
    for i, stretch in enumerate(stretches[1:], 1):
        start = i * (t - overlap)
        before, after = out[start:start + overlap].astype(np.float64), np.asarray(stretch[:overlap], np.float64)
        sums = (np.cumsum(np.append(0.0, product)) for product in (before**2, after**2, before * after))
        own, other, shared = (total[fade:] - total[:-fade] for total in sums)  # of the `fade` samples from each place on
        at = int(np.argmin(own + other - 2 * np.abs(shared)))
        polarity, energy = (-1.0 if shared[at] < 0 else 1.0), np.sqrt(max(own[at] * other[at], 0.0))
        angle = np.pi / 2 * (np.arange(fade) + 0.5) / fade
        kept = 1 / np.sqrt(1 + np.sin(2 * angle) * (min(1.0, abs(shared[at]) / energy) if energy > 0 else 0.0))
        out[start + at:start + t] = polarity * np.asarray(stretch[at:])
        out[start + at:start + at + fade] *= np.sin(angle) * kept
        out[start + at:start + at + fade] += np.cos(angle) * kept * before[at:at + fade]
    return out
