"""Notes to sound: a small additive synthesiser that is always there, and any SoundFont through an optional package."""

import io
import math
import os
import pathlib
import wave
from collections.abc import Sequence

import numpy as np

from vae_jax.config import UserError
from vae_jax.media import midi
from vae_jax.rolls import Note

RATE = 22050  # samples a second
TAIL = 0.5  # seconds after the end of the last note, in which it dies away
PEAK = 0.9  # of full scale: the loudest sample of what would exceed it
LEVEL = 0.16  # of full scale: the loudest a single note becomes, so that a few together stay below PEAK
ATTACK, RELEASE = 0.006, 0.08  # seconds
BRIGHTNESS, DULLING = 0.62, 1.5  # each harmonic's share of the one below at the onset, and how fast that falls (1 / s)
DECAY = 1.6  # seconds in which middle C falls to 1 / e; an octave up takes 0.6 of it
SWEEPS = {35: 55, 36: 55, 41: 80, 43: 95, 45: 115, 47: 135, 48: 160, 50: 185}  # Hz: kicks and toms, which have a pitch
KNOCK = 0.16  # seconds in which they fall to 1 / e
RATTLES = {38: 0.09, 40: 0.09, 39: 0.06, 46: 0.22, 49: 0.5, 51: 0.3, 52: 0.5, 53: 0.3, 55: 0.4, 57: 0.5, 59: 0.3}  # seconds: snares, clap, cymbals
TICK = 0.03  # seconds: closed hats and everything else


def render(notes: Sequence[Note], tempo: float, rate: int = RATE) -> np.ndarray:
    """The notes as a wave, float32 [samples] within -PEAK..PEAK. tempo: quarter notes a minute; rate: samples a second.

    It lasts to the end of the last note and TAIL more. The same notes give the same samples.
    """
    second = 60 / tempo  # of a quarter note
    out = np.zeros(math.ceil((max((note.end for note in notes), default=0) * second + TAIL) * rate), np.float32)
    made = {}
    for note in notes:
        key = note.pitch, note.drum, 0 if note.drum else round((note.end - note.start) * second * rate)
        if key not in made:
            made[key] = _drum(note.pitch, rate) if note.drum else _tone(note.pitch, key[2], rate)
        start = round(note.start * second * rate)
        part = made[key][:len(out) - start]
        out[start:start + len(part)] += LEVEL * (note.velocity / 127) ** 1.5 * part
    loudest = np.abs(out).max(initial=0)
    return out * np.float32(PEAK / loudest) if loudest > PEAK else out


def _tone(pitch, samples, rate):
    """A plucked tone whose harmonics below half the rate fall off geometrically, ever faster: sum of r^k sin(k x) for k = 1..n, in closed form."""
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    t = np.arange(samples + int(RELEASE * rate)) / rate
    n = max(1, int(0.45 * rate / frequency))
    x, r = 2 * np.pi * frequency * t, BRIGHTNESS * np.exp(-DULLING * t)
    tone = (r * np.sin(x) - r ** (n + 1) * np.sin((n + 1) * x) + r ** (n + 2) * np.sin(n * x)) / (1 - 2 * r * np.cos(x) + r**2)
    envelope = np.exp(-t / (DECAY * 0.6 ** ((pitch - 60) / 12))) * np.minimum(1, t / ATTACK)
    fade = 1 - np.clip((t - samples / rate) / RELEASE, 0, 1)
    return (tone * envelope * fade**2).astype(np.float32)


def _drum(key, rate):
    """A burst: a falling tone for kicks and toms, noise without its low end for the others."""
    decay = KNOCK if key in SWEEPS else RATTLES.get(key, TICK)
    t = np.arange(int(6 * decay * rate)) / rate
    envelope = np.exp(-t / decay) * np.minimum(1, t / 0.001)
    if key in SWEEPS:
        phase = SWEEPS[key] * (t + 0.03 * (1 - np.exp(-t / 0.03)))  # begins an octave up
        return (1.5 * np.sin(2 * np.pi * phase) * envelope).astype(np.float32)
    noise = np.random.Generator(np.random.Philox(key=key)).uniform(-1, 1, len(t) + 1)
    return (0.5 * np.diff(noise) * envelope).astype(np.float32)


def soundfont(notes: Sequence[Note], tempo: float, path: str | os.PathLike, program: int = 0) -> tuple[np.ndarray, int]:
    """(float32 [samples, 2], samples a second): the notes, played by an instrument (General MIDI program 0..127) and the drums of a SoundFont 2 file.

    Lasts as `render` does; louder than PEAK is scaled down to it. Needs the package midirenderer. Raises UserError without it or a good file.
    """
    try:
        import midirenderer
    except ImportError:
        raise UserError("a SoundFont needs the package midirenderer: run `pip install midirenderer`, or leave the SoundFont out for the built-in "
                        "synthesiser.") from None
    try:
        font = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"the SoundFont {path} cannot be read: {error.strerror}.") from None
    try:
        made = midirenderer.render_wave_from(font, midi.write(notes, tempo, program, TAIL * tempo / 60))
    except Exception as error:  # it raises RuntimeError for whatever is wrong
        raise UserError(f"{path} is not a SoundFont 2 file that midirenderer can play ({error}).") from None
    with wave.open(io.BytesIO(made)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels()).astype(np.float32) / 32768
        rate = file.getframerate()
    return samples * np.float32(PEAK / max(PEAK, np.abs(samples).max(initial=0))), rate
