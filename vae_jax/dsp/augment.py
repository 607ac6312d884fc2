"""Random changes of training sound on the device: pitch, phase, dynamics, level, silence and the noise of 16 bits. Never used in evaluation.

Each example of a batch has draws of its own; its channels are changed alike. What is off costs nothing.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jax import lax

from vae_jax.config import UserError

LSB = 2.0**-15  # step of 16-bit sound at full scale 1
STEPS = 128  # of pitch: resampling ratios are whole 128ths, near 1 these are 13 cents apart
CROSSINGS, ROLLOFF, KAISER = 32, 0.94, 8.0  # zero crossings a side of the resampling kernel, its cutoff over Nyquist, its window (-80 dB)
ENVELOPE_SECONDS, ENVELOPE_BLOCKS = 0.005, 8  # the compressor looks at the mean square of 8 blocks of 5 ms, under a Hann window
KNEE_DB = 3.0  # over which the compressor sets in


@dataclasses.dataclass
class Augment:
    """What is done to training sound, in the order of the fields. Each is drawn anew for every example of every step."""

    pitch: float = 0.0  # probability of resampling, which changes pitch and speed together; needs longer crops, see `source_samples`
    pitch_semitones: float = 3.0  # up or down at most, evenly drawn
    allpass: float = 0.8  # probability of a filter that changes phases only
    allpass_low_hz: float = 20.0  # of its pole, drawn evenly in log frequency
    allpass_high_hz: float = 2000.0
    allpass_radius: float = 0.99  # of its pole
    compress: float = 0.0  # probability of less difference between loud and soft; the peak stays
    compress_ratio: float = 4.0  # dB in for a dB out above the threshold, at most; drawn evenly in log ratio from 1
    compress_depth_db: float = 30.0  # of the threshold below the loudest moment, at most; evenly drawn
    gain: float = 0.0  # probability of another level
    gain_low_db: float = -12.0  # evenly drawn; no gain above 0 dB takes the peak beyond full scale
    gain_high_db: float = 6.0
    mute: float = 0.0  # probability of silence
    dither: bool = True  # add noise of one 16-bit step, always


def check(settings: Augment, rate: int) -> None:
    """Raises UserError naming the field that makes no augmentation at this sample rate, in Hz."""
    s = settings
    for name in ("pitch", "allpass", "compress", "gain", "mute"):
        if not 0 <= getattr(s, name) <= 1:
            raise UserError(f"augment.{name} is {getattr(s, name)}; a probability lies in 0..1.")
    if not 0 <= s.pitch_semitones <= 24:
        raise UserError(f"augment.pitch_semitones is {s.pitch_semitones}; give 0 to 24.")
    if not 0 < s.allpass_low_hz <= s.allpass_high_hz < rate / 2:
        raise UserError(f"augment.allpass_low_hz={s.allpass_low_hz} and allpass_high_hz={s.allpass_high_hz} should rise within 0..{rate / 2:g} Hz, "
                        "half the sample rate.")
    if not 0 < s.allpass_radius <= 0.9999:
        raise UserError(f"augment.allpass_radius is {s.allpass_radius}; a stable pole that dies away within a crop has 0 < radius <= 0.9999.")
    if s.compress_ratio < 1 or s.compress_depth_db < 0:
        raise UserError(f"augment.compress_ratio={s.compress_ratio} must be at least 1, compress_depth_db={s.compress_depth_db} not negative.")
    if s.gain_low_db > s.gain_high_db:
        raise UserError(f"augment.gain_low_db={s.gain_low_db} exceeds gain_high_db={s.gain_high_db}.")


def source_samples(settings: Augment, samples: int) -> int:
    """How long a crop must be for `augment` to make `samples` of it: a pitch raised by 3 semitones uses up 1.19 times as much sound."""
    if not settings.pitch:
        return samples
    most, margin = _reach(settings.pitch_semitones)
    return -(-samples // STEPS) * most + 2 * margin


def augment(key, x_btc, rate: int, settings: Augment, samples: int | None = None):
    """Augmented sound float32 [b, samples, c] of crops x [b, t, c], full scale 1, at `rate` Hz; jit with rate, settings and samples static.

    samples: None for t. With pitch, t must be at least `source_samples(settings, samples)`: sound that a crop does not hold is not made up by
    wrapping or stretching. Order: pitch, all-pass, compression, gain, mute, dither; the noise comes last, so that a muted example is the
    silence of a 16-bit recording. Raises UserError for settings out of range and crops too short.
    """
    samples = x_btc.shape[1] if samples is None else samples
    check(settings, rate)
    if x_btc.shape[1] < source_samples(settings, samples):
        raise UserError(f"A crop of {x_btc.shape[1]} samples is too short to make {samples} augmented ones; "
                        f"{source_samples(settings, samples)} are needed, or augment.pitch=0.")
    return jax.vmap(lambda k, x: _one(k, x, rate, settings, samples))(jax.random.split(key, len(x_btc)), jnp.asarray(x_btc, jnp.float32))


def _one(key, x, rate, s, samples):
    def drawn(order, probability, change, x):
        """The first samples of x, or with the probability given what `change` makes of a key and x."""
        chance, own = jax.random.split(jax.random.fold_in(key, order))
        return jnp.where(jax.random.uniform(chance) < probability, change(own, x), x[:samples]) if probability else x[:samples]

    def between(key, low, high):
        return jax.random.uniform(key, minval=low, maxval=high)

    def repitch(key, x):
        ratio = 2 ** (between(key, -s.pitch_semitones, s.pitch_semitones) / 12)
        return resample(x, jnp.minimum(jnp.round(STEPS * ratio), _reach(s.pitch_semitones)[0]), s.pitch_semitones, samples)

    def rotate(key, x):
        return allpass(x, jnp.exp(between(key, math.log(s.allpass_low_hz), math.log(s.allpass_high_hz))), rate, s.allpass_radius)

    def squeeze(key, x):
        first, second = jax.random.split(key)
        return compress(x, rate, jnp.exp(between(first, 0.0, math.log(s.compress_ratio))), between(second, 0.0, s.compress_depth_db))

    def amplify(key, x):
        factor = 10 ** (between(key, s.gain_low_db, s.gain_high_db) / 20)
        return x * jnp.minimum(factor, jnp.maximum(1.0, 1.0 / jnp.maximum(jnp.abs(x).max(), LSB)))

    x = drawn(0, s.pitch, repitch, x)
    x = drawn(1, s.allpass, rotate, x)
    x = drawn(2, s.compress, squeeze, x)
    x = drawn(3, s.gain, amplify, x)
    x = drawn(4, s.mute, lambda _, x: jnp.zeros_like(x), x)
    return dither(jax.random.fold_in(key, 5), x) if s.dither else x


def allpass(x_tc, hz, rate: int, radius: float):
    """Sound [t, c] through the all-pass filter with poles radius exp(+-2 pi i hz / rate): every magnitude stays, phases turn around hz.

    H = (r^2 - 2 r cos(w) z + z^2) / A, A = 1 - 2 r cos(w) z + r^2 z^2, z a delay by one sample; on the unit circle H = z^2 conj(A) / A.
    Applied by FFT with zeros behind, as long as the response takes to die away to 1e-7, so the circle does not show.
    Each factor of A, 1 - r exp(-i d), is taken as (1 - r) + 2 r sin(d/2)^2 + i r sin(d): the plain sum loses four digits near the pole.
    """
    t = len(x_tc)
    size = 2 * scipy.fft.next_fast_len(-(-(t + math.ceil(math.log(1e-7) / math.log(radius))) // 2), real=True)
    half = np.pi * np.arange(size // 2 + 1) / size  # half the frequency of each bin, in radians a sample
    sine, cosine, turn = np.float32(np.sin(half)), np.float32(np.cos(half)), np.complex64(np.exp(-4j * half))
    pole = jnp.pi * hz / rate

    def factor(sign):
        s = sine * jnp.cos(pole) - sign * cosine * jnp.sin(pole)
        c = cosine * jnp.cos(pole) + sign * sine * jnp.sin(pole)
        return lax.complex((1 - radius) + 2 * radius * s * s, 2 * radius * s * c)

    denominator = factor(1) * factor(-1)
    response = turn * jnp.square(jnp.conj(denominator)) / (jnp.square(denominator.real) + jnp.square(denominator.imag))
    return jnp.fft.irfft(jnp.fft.rfft(x_tc, size, axis=0) * response[:, None], size, axis=0)[:t]


def compress(x_tc, rate: int, ratio, depth_db):
    """Sound [t, c] whose levels above a threshold, depth_db below its loudest moment, are `ratio` times closer to it; then as high a peak as before.

    With the level L in dB (mean square of all channels over 40 ms, centred, so attack and release are equal and nothing overshoots), threshold T and
    k = KNEE_DB, the gain is -(1 - 1 / ratio) k log(1 + exp((L - T) / k)) dB: a static curve with a soft knee, straight lines between blocks.
    """
    t = len(x_tc)
    hop = max(1, round(rate * ENVELOPE_SECONDS))
    blocks = -(-t // hop)
    around = ENVELOPE_BLOCKS // 2
    padded = jnp.pad(x_tc, [(0, blocks * hop - t), (0, 0)]).reshape(blocks, hop, -1)
    inside = np.clip(t - np.arange(blocks) * hop, 0, hop)
    window = np.hanning(ENVELOPE_BLOCKS + 2)[1:-1]
    power = jnp.convolve(jnp.pad(jnp.square(padded).mean(-1).sum(-1), around), np.float32(window), "valid")  # at the edges of the blocks
    level = 10 * jnp.log10(power / np.float32(np.convolve(np.pad(inside, around), window, "valid")) + 1e-12)
    gain = 10 ** (-(1 - 1 / ratio) * KNEE_DB * jax.nn.softplus((level - level.max() + depth_db) / KNEE_DB) / 20)
    ramp = np.float32((np.arange(hop) + 0.5) / hop)
    made = padded * (gain[:-1, None] + ramp * (gain[1:] - gain[:-1])[:, None])[:, :, None]
    peak = jnp.abs(made).max()
    return (made * (jnp.abs(x_tc).max() / jnp.where(peak > 0, peak, 1.0))).reshape(blocks * hop, -1)[:t]


def resample(x_tc, steps, semitones: float, samples: int):
    """The first `samples` of sound [t, c] played steps / STEPS times as fast, band-limited; steps (traced) is whole, within +-semitones of STEPS.

    STEPS samples out take exactly `steps` in, so one table [STEPS, window] of a Kaiser-windowed sinc serves every block of STEPS samples: a
    matrix product. Faster playing lowers the cutoff (Smith 1984, digital audio resampling). Sample 0 is at `margin` of x, see `_reach`.
    """
    most, margin = _reach(semitones)
    window, blocks = most + 2 * margin, -(-samples // STEPS)
    steps = jnp.asarray(steps, jnp.int32)
    cutoff = ROLLOFF * jnp.minimum(1.0, STEPS / steps)
    distance = np.arange(window) - margin - np.arange(STEPS, dtype=np.int32)[:, None] * steps / STEPS
    inside = jnp.sqrt(jnp.maximum(0.0, 1 - jnp.square(distance * cutoff / (ROLLOFF * CROSSINGS))))
    kernel = jnp.where(inside > 0, jnp.sinc(cutoff * distance) * jnp.i0(KAISER * inside), 0.0)
    kernel = kernel / kernel.sum(1, keepdims=True)
    pieces = x_tc[jnp.arange(blocks)[:, None] * steps + np.arange(window)]
    return jnp.einsum("bwc,sw->bsc", pieces, kernel, precision=lax.Precision.HIGHEST).reshape(blocks * STEPS, -1)[:samples]


def _reach(semitones):
    """Most samples that STEPS samples can take, and samples needed either side of a place."""
    ratio = 2 ** (semitones / 12)
    return round(STEPS * ratio), math.ceil(CROSSINGS * round(STEPS * ratio) / STEPS)


def dither(key, x_tc):
    """Sound [t, c] plus white noise, even over one 16-bit step (-101 dB RMS of full scale), each channel its own.

    Even, since that is how the rounding to 16 bits has spread what was recorded: adding it undoes the grid. A triangle twice as wide is for
    rounding again, which does not happen here. A byte a sample, 256 levels to the step, a quarter of the cost of whole words.
    """
    words = jax.random.bits(key, (-(-x_tc.size // 4),), jnp.uint32)
    levels = lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[: x_tc.size].reshape(x_tc.shape)
    return x_tc + (levels.astype(jnp.float32) - 127.5) * (LSB / 256)
