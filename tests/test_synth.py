"""The synthesiser: pitches by Fourier transform, lengths, levels, and a SoundFont made here."""

import math
import struct
import sys

import numpy as np
import pytest

from vae_jax.config import UserError
from vae_jax.media import synth
from vae_jax.rolls import Note

RATE = 22050


def strongest(wave, rate):
    """Hz, by the parabola through the three bins of a windowed transform around the largest."""
    level = np.log(np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) + 1e-12)
    i = int(level.argmax())
    return (i + 0.5 * (level[i - 1] - level[i + 1]) / (level[i - 1] - 2 * level[i] + level[i + 1])) * rate / len(wave)


@pytest.mark.parametrize("pitch", [28, 45, 60, 69, 84, 101, 117])
def test_pitch(pitch):
    wave = synth.render([Note(0, 2, pitch)], 120.0)
    expected = 440 * 2 ** ((pitch - 69) / 12)
    assert abs(1200 * math.log2(strongest(wave[:RATE], RATE) / expected)) < 2  # cents


def test_harmonics_are_those_of_the_sum():
    """The closed form against the sum of the harmonics themselves; none lies above half the rate."""
    pitch, samples = 57, 4000
    t = np.arange(samples + int(synth.RELEASE * RATE)) / RATE
    r = synth.BRIGHTNESS * np.exp(-synth.DULLING * t)
    summed = sum(r**k * np.sin(2 * np.pi * 220 * k * t) for k in range(1, int(0.45 * RATE / 220) + 1))
    envelope = np.exp(-t / (synth.DECAY * 0.6**-0.25)) * np.minimum(1, t / synth.ATTACK)
    fade = 1 - np.clip((t - samples / RATE) / synth.RELEASE, 0, 1)
    assert np.abs(synth._tone(pitch, samples, RATE) - summed * envelope * fade**2).max() < 1e-5


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_length_and_silence_around_notes(rate):
    wave = synth.render([Note(1, 2, 60)], 90.0, rate)
    assert wave.dtype == np.float32 and len(wave) == math.ceil((2 * 60 / 90 + synth.TAIL) * rate)
    start, end = round(rate * 60 / 90), round(2 * rate * 60 / 90)
    assert not wave[:start].any() and not wave[end + math.ceil(synth.RELEASE * rate) + 1:].any()
    assert np.abs(wave[start:start + rate // 20]).max() > 0.02 and np.abs(np.diff(wave)).max() < 0.1
    assert not synth.render([], 120.0, rate).any() and len(synth.render([], 120.0, rate)) == math.ceil(synth.TAIL * rate)


def test_never_clipped_and_quiet_where_few_play():
    crowd = [Note(i % 3 / 8, 4, 36 + i, 127) for i in range(60)] + [Note(0, 0.25, drum, 127, True) for drum in range(35, 82)]
    assert np.abs(synth.render(crowd, 120.0)).max() == pytest.approx(synth.PEAK, abs=1e-6)
    alone = [np.abs(synth.render([Note(0, 1, 60, velocity)], 120.0)).max() for velocity in (20, 60, 127)]
    assert alone[0] < alone[1] < alone[2] <= synth.LEVEL * 1.01
    assert np.abs(synth.render([Note(0, 1, pitch, 127) for pitch in (48, 64, 67, 72)], 120.0)).max() < synth.PEAK


def test_notes_add_up():
    notes = [Note(0, 1, 60), Note(0.5, 2, 64), Note(1, 1.5, 38, 90, True)]
    whole = synth.render(notes, 100.0)
    parts = [synth.render([note], 100.0) for note in notes]
    assert np.abs(whole - sum(np.pad(part, (0, len(whole)))[:len(whole)] for part in parts)).max() < 1e-6
    assert np.array_equal(whole, synth.render(notes, 100.0))


def test_drums():
    """Kicks are low, hats are high and short, cymbals ring on."""
    kick, hat, cymbal, snare = (synth.render([Note(0, 0.25, key, 100, True)], 60.0)[:RATE // 2] for key in (36, 42, 49, 38))
    assert 40 < strongest(kick, RATE) < 130
    share = [np.square(np.abs(np.fft.rfft(wave))[len(wave) // 8:]).sum() / np.square(np.abs(np.fft.rfft(wave))).sum() for wave in (kick, hat)]
    assert share[0] < 0.05 and share[1] > 0.7
    late = [np.abs(wave[RATE // 4:]).max() / np.abs(wave).max() for wave in (hat, snare, cymbal)]
    assert late[0] < 0.01 < late[1] < 0.2 < late[2]


def soundfont(frequency=441.0, rate=44100) -> bytes:
    """A SoundFont 2 file with one preset, a sine of two seconds that sounds at its own pitch for key 69."""
    def chunk(name, data):
        return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    def name(text):
        return text.encode().ljust(20, b"\0")

    samples = np.rint(20000 * np.sin(2 * np.pi * frequency * np.arange(2 * rate) / rate)).astype("<i2")
    info = chunk(b"ifil", struct.pack("<HH", 2, 1)) + chunk(b"isng", b"EMU8000\0") + chunk(b"INAM", b"sine\0\0")
    table = [(b"phdr", name("sine") + struct.pack("<HHHIII", 0, 0, 0, 0, 0, 0) + name("EOP") + struct.pack("<HHHIII", 0, 0, 1, 0, 0, 0)),
             (b"pbag", struct.pack("<HHHH", 0, 0, 1, 0)), (b"pmod", bytes(10)), (b"pgen", struct.pack("<HHHH", 41, 0, 0, 0)),
             (b"inst", name("sine") + struct.pack("<H", 0) + name("EOI") + struct.pack("<H", 1)),
             (b"ibag", struct.pack("<HHHH", 0, 0, 1, 0)), (b"imod", bytes(10)), (b"igen", struct.pack("<HHHH", 53, 0, 0, 0)),
             (b"shdr", name("sine") + struct.pack("<IIIIIBbHH", 0, 2 * rate, 8, 2 * rate - 8, rate, 69, 0, 0, 1)
              + name("EOS") + struct.pack("<IIIIIBbHH", *[0] * 9))]
    lists = [(b"INFO", info), (b"sdta", chunk(b"smpl", samples.tobytes() + bytes(92))), (b"pdta", b"".join(chunk(*row) for row in table))]
    return chunk(b"RIFF", b"sfbk" + b"".join(chunk(b"LIST", kind + data) for kind, data in lists))


def test_soundfont(tmp_path):
    pytest.importorskip("midirenderer", reason="the optional package midirenderer is not installed")
    (tmp_path / "sine.sf2").write_bytes(soundfont())
    wave, rate = synth.soundfont([Note(0, 2, 69, 127)], 120.0, tmp_path / "sine.sf2")
    assert wave.dtype == np.float32 and wave.shape == (round((1 + synth.TAIL) * rate), 2)
    assert strongest(wave[:rate, 0], rate) == pytest.approx(441, abs=0.5) and 0.01 < np.abs(wave).max() <= synth.PEAK + 1e-6
    wave, _ = synth.soundfont([Note(0, 2, 81, 127)], 120.0, tmp_path / "sine.sf2")
    assert strongest(wave[:rate, 0], rate) == pytest.approx(882, abs=1)
    (tmp_path / "bad.sf2").write_bytes(b"RIFF" + bytes(100))
    with pytest.raises(UserError, match="bad.sf2 is not a SoundFont 2 file"):
        synth.soundfont([Note(0, 1, 60)], 120.0, tmp_path / "bad.sf2")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        synth.soundfont([Note(0, 1, 60)], 120.0, tmp_path / "none.sf2")


def test_without_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "midirenderer", None)
    with pytest.raises(UserError, match="pip install midirenderer"):
        synth.soundfont([Note(0, 1, 60)], 120.0, tmp_path / "any.sf2")
