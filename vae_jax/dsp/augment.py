"""Random changes of training sound on the device: pitch, phase, dynamics, level, silence and the noise of 16 bits. Never used in evaluation.

Each example of a batch has draws of its own; its channels are changed alike. What is off costs nothing.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vae_jax.config import UserError

LSB = 2.0**-15  # step of 16-bit sound at full scale 1
STEPS = 128  # of pitch: resampling ratios are whole 128ths, near 1 these are 13 cents apart
CROSSINGS, ROLLOFF, KAISER = 32, 0.94, 8.0  # zero crossings a side of the resampling kernel, its cutoff over Nyquist, its window (-80 dB)
BLOCK = 32  # samples that the all-pass filter takes at once, a power of two
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
    if not 0 < s.allpass_radius < 1:
        raise UserError(f"augment.allpass_radius is {s.allpass_radius}; a stable pole has a radius between 0 and 1.")
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
    """Sound [t, c] through the all-pass filter with poles r exp(+-iw), w = 2 pi hz / rate: every magnitude stays, phases turn around hz.

    H = (r^2 - 2 r cos(w) z + z^2) / (1 - 2 r cos(w) z + r^2 z^2), z a delay by one sample, as a normalised lattice (Gray and Markel 1975): the
    matrix of (state, input) -> (next state, output) is a rotation, so nothing grows before it cancels, as it does in the plain recursion.
    BLOCK samples at a time are one product with the response's table; the two states at the blocks' starts come in log2(blocks) steps. Products
    and not an FFT, three times its speed on a CPU, since devices that share a batch would gather all of it to transform it.
    """
    t, square, angle = len(x_tc), radius * radius, 2 * jnp.pi * hz / rate
    outer, inner = math.sqrt(1 - square**2), -2 * radius * jnp.cos(angle) / (1 + square)
    across = jnp.sqrt((1 - square) ** 2 + 4 * square * jnp.sin(angle) ** 2) / (1 + square)  # sqrt(1 - inner^2), of which near 0 Hz nothing is left
    step = jnp.stack([jnp.stack([-inner * square, across]), jnp.stack([-across * square, -inner])])
    powers = jnp.eye(2)[None]  # of step
    while len(powers) < BLOCK:
        powers, step = jnp.concatenate([powers, _sum("nij,jk->nik", powers, step)]), _sum("ij,jk->ik", step, step)
    driven, seen = _sum("nij,j->ni", powers, outer * jnp.stack([inner, across])), outer * powers[:, 0]
    lag = np.arange(BLOCK)[:, None] - np.arange(BLOCK)
    table = jnp.where(lag > 0, outer * driven[np.maximum(lag - 1, 0), 0], square * (lag == 0))
    blocks = jnp.pad(x_tc, [(0, -t % BLOCK), (0, 0)]).reshape(-1, BLOCK, x_tc.shape[1])
    states, reach = jnp.pad(_sum("nlc,ls->ncs", blocks, driven[::-1]), [(1, 0), (0, 0), (0, 0)])[:-1], 1
    while reach < len(states):  # a state holds what came in the `reach` blocks before
        states = states + jnp.pad(_sum("ncs,rs->ncr", states, step), [(reach, 0), (0, 0), (0, 0)])[:-reach]
        reach, step = 2 * reach, _sum("ij,jk->ik", step, step)
    return (_sum("ml,nlc->nmc", table, blocks) + _sum("ms,ncs->nmc", seen, states)).reshape(-1, x_tc.shape[1])[:t]


def _sum(*terms):
    return jnp.einsum(*terms, precision=lax.Precision.HIGHEST)  # accelerators round factors to 8 or 11 bits otherwise


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
    return _sum("bwc,sw->bsc", pieces, kernel).reshape(blocks * STEPS, -1)[:samples]


def _reach(semitones):
    """Most samples that STEPS samples can take, and samples needed either side of a place."""
    ratio = 2 ** (semitones / 12)
    return round(STEPS * ratio), math.ceil(CROSSINGS * round(STEPS * ratio) / STEPS)


def detune(key, x_btc, semitones: float):
    """(sounds [b, t', c], ratio [b]): x played ratio times as fast, each example by a ratio of its own, up or down by at most `semitones`.

    ratio is drawn evenly in pitch; what lay at t lies at t / ratio. t' is long enough for the slowest; silence lies behind a sound.
    """
    most, margin = _reach(semitones)
    samples = -(-x_btc.shape[1] * most // STEPS)
    steps = jnp.round(STEPS * 2 ** (jax.random.uniform(key, (len(x_btc),), minval=-semitones, maxval=semitones) / 12)).clip(max=most)
    x = jnp.pad(x_btc, ((0, 0), (margin, -(-samples // STEPS) * most + margin), (0, 0)))
    return jax.vmap(lambda x, steps: resample(x, steps, semitones, samples))(x, steps), steps / STEPS


def in_place(frames_bnd, ratio_b, count: int):
    """Of frames [b, n, d] of sounds that `detune` played `ratio` times as fast, those [b, count, d] that hear what the sounds' own frames would."""
    places = jnp.int32((jnp.arange(count) + 0.5) / ratio_b[:, None]).clip(max=frames_bnd.shape[1] - 1)
    return jnp.take_along_axis(frames_bnd, places[..., None], 1)


def dither(key, x_tc):
    """Sound [t, c] plus white noise, even over one 16-bit step (-101 dB RMS of full scale), each channel its own.

    Even, since that is how the rounding to 16 bits has spread what was recorded: adding it undoes the grid. A triangle twice as wide is for
    rounding again, which does not happen here. A byte a sample, 256 levels to the step, a quarter of the cost of whole words.
    """
    words = jax.random.bits(key, (-(-x_tc.size // 4),), jnp.uint32)
    levels = lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[: x_tc.size].reshape(x_tc.shape)
    return x_tc + (levels.astype(jnp.float32) - 127.5) * (LSB / 256)
