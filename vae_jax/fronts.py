"""What a model sees of a record: pictures as they are, sounds as spectrograms in dB, rolls as held and struck cells, all as [b, h, w, c] in 0..1, and
the way back.

A `Front` is made once from the configuration and the data's description; its functions are pure and run on the device.
"""

import dataclasses
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp

from vae_jax import rolls
from vae_jax.config import UserError
from vae_jax.dsp import griffin_lim, stft

NORMALISATIONS = ("fixed", "peak")
BLACK = 0.005  # grey up to which a spectrogram is silent: a sigmoid never reaches 0, and left hiss where a recording is silent


@dataclasses.dataclass
class Sound:
    """A spectrogram's settings; only sounds use them."""

    n_fft: int = 512  # samples a window (Hann)
    hop: int = 256  # samples between windows
    range_db: float = 80.0  # from black to white
    normalise: str = "fixed"  # fixed: white is the loudest level of the training data; peak: that of each clip, which is then modelled as a number
    mel: int = 0  # mel bands; 0 = the n_fft / 2 linear bins below Nyquist
    iterations: int = 60  # of Griffin-Lim, from a spectrogram back to sound


class Front(NamedTuple):
    """analyse(batch) -> x [b, h, w, c] in 0..1;  level(batch) -> [b] in about 0..1, or None where every example has the same white
    sound(x, level, key) -> waves [b, samples] in -1..1; None for pictures. rate: samples a second. kind: 'image', 'roll', 'audio' (spectrograms),
    or 'wave': a model of the wave itself, shape (samples, channels), which analyse gives; what it makes of a sound comes `delay` samples late. hop:
    of one that makes sounds, sample by sample, of codes alone (wave_vqvae), the samples that a code stands for; 0 elsewhere.
    columns(x [.., steps, pitches, 2]) -> [.., steps, columns] as records have them; None but for rolls"""

    kind: str
    shape: tuple[int, ...]
    analyse: Callable[[dict], jax.Array]
    level: Callable[[dict], jax.Array] | None = None
    sound: Callable[..., jax.Array] | None = None
    rate: int = 0
    range_db: float = 0.0
    delay: int = 0
    hop: int = 0
    columns: Callable[[jax.Array], jax.Array] | None = None


def get(spec, settings: Sound, multiple: int = 1) -> Front:
    """The front of a data set. `multiple`: height and width of a spectrogram are multiples of it (silence is appended); pictures and rolls must be
    already."""
    if "image" in spec.fields:
        return Front("image", tuple(spec.fields["image"].shape), pixels)
    if "audio" in spec.fields:
        return _spectrogram(spec, settings, multiple)
    if "roll" in spec.fields:
        return _roll(spec, multiple)
    raise UserError(f"the data set {spec.name} holds neither pictures nor sounds nor rolls (its fields are {', '.join(spec.fields)}).")


def pixels(batch) -> jax.Array:
    """Pictures in [0, 1]: stored uint8 ones are scaled here, on the device; generated ones already are."""
    x = batch["image"]
    return x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x


def wave(batch) -> jax.Array:
    """Mono sound [b, samples] in -1..1."""
    return jnp.mean(waves(batch), -1)


def waves(batch) -> jax.Array:
    """Sound [b, samples, channels] in -1..1: stored int16 is scaled here, on the device; generated sound already is."""
    audio_btc = batch["audio"]
    return audio_btc.astype(jnp.float32) / 32768 if audio_btc.dtype == jnp.int16 else audio_btc


def _spectrogram(spec, s: Sound, multiple: int) -> Front:
    if s.normalise not in NORMALISATIONS:
        raise UserError(f"config.model.sound.normalise={s.normalise!r} is not one of {', '.join(NORMALISATIONS)}.")
    if s.n_fft < 2 or s.n_fft % 2 or not 1 <= s.hop <= s.n_fft or s.range_db <= 0 or s.mel < 0 or s.iterations < 0:
        raise UserError(f"config.model.sound: n_fft={s.n_fft} must be even, hop={s.hop} lie in 1..n_fft, range_db={s.range_db} be above 0, "
                        f"mel={s.mel} and iterations={s.iterations} not be negative.")
    bins = s.mel or s.n_fft // 2
    if bins % multiple:
        raise UserError(f"a spectrogram of {bins} rows does not halve {multiple.bit_length() - 1} times: take another config.model.sound.n_fft or "
                        "mel, or fewer config.model.hidden.")
    rate, white = spec.facts["rate"], spec.facts["reference_db"]
    black, samples = white - s.range_db, spec.fields["audio"].shape[0]
    frames = -(-(1 + samples // s.hop) // multiple) * multiple
    padded = max(samples, (frames - 1) * s.hop)
    filters = None
    if s.mel:
        filters = stft.mel_filters(rate, s.n_fft, s.mel, 0.0, rate / 2)
        filters = filters / filters.sum(0)  # means over bins, as loud as these: white is the same level for both

    def decibels(batch):
        """[b, frames, bins], a sine at full scale having 0 dB; nowhere further below black than black is below white."""
        spectrum = stft.stft(jnp.pad(wave(batch), ((0, 0), (0, padded - samples))), s.n_fft, s.hop)
        amplitude = stft.magnitude(spectrum) / stft.full_scale(s.n_fft)
        return stft.to_db(stft.mel(amplitude, filters) if s.mel else amplitude[..., :bins], black - s.range_db)

    def level(batch):
        return jnp.maximum(_share(jnp.max(decibels(batch), (1, 2)), black, s.range_db), 0.0)

    def analyse(batch):
        db_btf = decibels(batch)
        # A clip quieter than black has no white of its own: it is black, as `level` says
        low = jnp.maximum(jnp.max(db_btf, (1, 2), keepdims=True), black) - s.range_db if s.normalise == "peak" else black
        return jnp.swapaxes(jnp.clip(_share(db_btf, low, s.range_db), 0.0, 1.0), 1, 2)[..., None]

    def sound(x, level_b, key):
        x_btf = jnp.swapaxes(x[..., 0], 1, 2)
        low = black + s.range_db * (level_b[:, None, None] - 1.0) if s.normalise == "peak" else black
        # Black is the floor of the picture, not a sound 80 dB down: it comes back as silence
        amplitude = jnp.where(x_btf > BLACK, stft.from_db(low + s.range_db * x_btf), 0.0) * stft.full_scale(s.n_fft)
        if s.mel:
            amplitude = stft.mel_inverse(amplitude, filters)
        else:
            amplitude = jnp.pad(amplitude, ((0, 0), (0, 0), (0, 1)))  # the row at Nyquist, which the picture leaves out
        return griffin_lim.griffin_lim(amplitude, s.hop, padded, s.iterations, key=key)[:, :samples]

    return Front("audio", (bins, frames, 1), analyse, level if s.normalise == "peak" else None, sound, rate, s.range_db)


def cells(roll, pitches: int, numpy=jnp):
    """[.., steps, columns] of a record as [.., steps, pitches and drums, (held, struck)], values as they are. A drum is held as long as it is struck.
    numpy: the module to compute with."""
    held, struck, drums = roll[..., :pitches], roll[..., pitches:2 * pitches], roll[..., 2 * pitches:]
    return numpy.stack([numpy.concatenate([held, drums], -1), numpy.concatenate([struck, drums], -1)], -1)


def _roll(spec, multiple: int) -> Front:
    grid, (steps, columns) = rolls.grid(spec.facts), spec.fields["roll"].shape
    pitches = rolls.pitches(grid)
    width = columns - pitches  # struck drums stand beside the pitches
    if steps % multiple or width % multiple:
        more, less = -width % multiple, width % multiple
        wider = (f"--high={grid.high + more}" if grid.high + more <= 127 else f"--low={grid.low - more}" if grid.low >= more else
                 f"--high={grid.high - less}")
        raise UserError(f"a roll of {steps} steps and {width} pitches{' and drums' * grid.drums} does not halve {multiple.bit_length() - 1} times: "
                        f"prepare it with --steps={steps + -steps % multiple} {wider}, or give fewer config.model.hidden.")

    def analyse(batch):
        roll = batch["roll"]
        return cells(roll.astype(jnp.float32) / 255 if roll.dtype == jnp.uint8 else roll, pitches)

    def back(x):
        return jnp.concatenate([x[..., :pitches, 0], x[..., 1]], -1)

    return Front("roll", (steps, width, 2), analyse, columns=back)


def _share(db, low, span):
    return (db - low) / span
