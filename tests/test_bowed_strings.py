"""Synthesised strings: pitch, harmonics, vibrato and ring against closed forms and librosa, nothing aliased, scores in one key, and records."""

import csv
import os
import pathlib

import librosa
import numpy as np
import pytest
import scipy.signal
import soundfile

from data_prep import bowed_strings, waveforms
from data_prep.bowed_strings import BASS, CELLO, CORNERS, KINDS, VIOLA, VIOLIN, Touch
from vae_jax import records
from vae_jax.config import UserError

RATE = 48000
HISS = np.random.default_rng(9).standard_normal(10 * RATE).astype(np.float32)
MACHINE = Touch(attack=0.05, bright=0.7, bow=0.1, noise=0.0, came_from=0.0, settle=0.03, vibrato=0.0, vibrato_hz=6.0, onset=0.3, wander=0.0, ring=0.5)


def run(module, **values):
    module.FLAGS.unparse_flags()
    module.FLAGS([module.__name__, *(f"--{name}={value}" for name, value in values.items())])
    module.main()


def tone(instrument, hz, seconds, rate=RATE, **touch):
    wave, _ = bowed_strings.tone(np.random.default_rng(0), instrument, hz, round(seconds * rate), MACHINE._replace(**touch), HISS, rate)
    return wave


def spectrum(wave, rate):
    """(Hz, amplitude of each bin as that of a sine there); side lobes are 92 dB down."""
    window = scipy.signal.get_window("blackmanharris", len(wave))
    return np.fft.rfftfreq(len(wave), 1 / rate), np.abs(np.fft.rfft(wave * window)) / (window.sum() / 2)


def beside_harmonics(wave, hz, rate):
    """The strongest bin that belongs to no harmonic below half the rate, beside the strongest that does, in dB."""
    at, level = spectrum(wave, rate)
    harmonic = (np.abs(at - hz * np.round(at / hz)) < 6 * rate / len(wave)) & (np.round(at / hz) > 0) & (np.round(at / hz) * hz < rate / 2)
    return 20 * np.log10(level[~harmonic].max() / level[harmonic].max())


def cents(found, hz):
    return 1200 * np.log2(found / hz)


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
@pytest.mark.parametrize("instrument, hz", [(BASS, 41.7), (CELLO, 149.3), (VIOLIN, 440.0), (VIOLIN, 1713.7)])
def test_nothing_lies_between_the_harmonics(instrument, hz, rate):
    """Of a sawtooth that is not band-limited it does."""
    wave = tone(instrument, hz, 1.2, rate)[rate // 5:rate // 5 + rate]
    assert beside_harmonics(wave, hz, rate) < -80
    if hz > 1000:
        assert beside_harmonics(scipy.signal.sawtooth(2 * np.pi * hz * np.arange(rate) / rate), hz, rate) > -50


@pytest.mark.parametrize("bright, corner", [(0.0, CORNERS[0]), (1.0, CORNERS[1])])
def test_harmonics_of_the_bow(bright, corner):
    """A sawtooth with its corner rounded, less 0.8 of one that is a bow's distance later; dips where the bow is at a node."""
    hz, n = 220.0, np.arange(1, 61)
    at, level = spectrum(tone(VIOLA, hz, 1.3, bright=bright, bow=0.125)[RATE // 5:RATE // 5 + RATE], RATE)
    found = np.array([level[np.abs(at - k * hz) < 5].max() for k in n])
    expected = np.sqrt(1.64 - 1.6 * np.cos(2 * np.pi * n / 8)) / n / (1 + (n * hz / (corner * VIOLA.hill)) ** 2)
    assert np.abs(20 * np.log10(found / expected)).max() < 0.3
    assert all(found[k - 1] < 0.35 * np.sqrt(found[k - 2] * found[k]) for k in (8, 16, 24))


@pytest.mark.parametrize("instrument", [VIOLIN, VIOLA, CELLO, BASS])
def test_pitch_of_played_notes(instrument):
    """With vibrato, noise, drift and the body, from the lowest to the highest note."""
    rng = np.random.default_rng(3)
    for pitch in (instrument.strings[0], instrument.strings[2] + 3, instrument.top):
        hz = 440 * 2 ** ((pitch - 69) / 12)
        wave = tone(instrument, hz, 2.0, noise=0.03, came_from=-20.0, vibrato=20.0, wander=1.0)[:2 * RATE]
        wave = scipy.signal.fftconvolve(wave, bowed_strings.body(rng, instrument, RATE))[:2 * RATE]
        found = librosa.yin(wave, fmin=0.7 * hz, fmax=1.5 * hz, sr=RATE, frame_length=8192, hop_length=1920, trough_threshold=0.3)
        assert abs(np.median(cents(found[5:-5], hz))) < 10


def test_vibrato_begins_late_and_the_pitch_comes_from_below():
    hz = 440.0
    wave = tone(VIOLIN, hz, 2.5, came_from=-40.0, settle=0.05, vibrato=25.0, vibrato_hz=6.0, onset=0.5)
    first = scipy.signal.sosfiltfilt(scipy.signal.butter(4, [350, 550], "bandpass", fs=RATE, output="sos"), wave)
    found = np.diff(np.unwrap(np.angle(scipy.signal.hilbert(first)))) * RATE / (2 * np.pi)
    t = (np.arange(len(found)) + 0.5) / RATE
    before = (t > 0.1) & (t < 0.45)
    assert np.abs(cents(found[before], hz) + 40 * np.exp(-t[before] / 0.05)).max() < 2
    full = (t > 1.0) & (t < 2.4)
    wheel = np.stack([np.cos(2 * np.pi * 6 * t[full]), np.sin(2 * np.pi * 6 * t[full])], 1)
    fit = np.linalg.lstsq(wheel, cents(found[full], hz), rcond=None)[0]
    assert np.hypot(*fit) == pytest.approx(25, abs=0.5) and np.abs(cents(found[full], hz) - wheel @ fit).max() < 1


def test_the_string_rings_when_the_bow_has_left():
    """60 dB in `ring` seconds, and less bright meanwhile."""
    wave = tone(CELLO, 110.0, 1.0, ring=0.8, noise=0.02)
    assert len(wave) == round(1.8 * RATE)
    level = [10 * np.log10(np.mean(wave[int(s * RATE):int((s + 0.1) * RATE)] ** 2)) for s in (0.8, 1.3, 1.6)]
    assert level[2] - level[1] == pytest.approx(-60 / 0.8 * 0.3, abs=1) and level[1] < level[0] - 20
    high = [s[at > 3000].max() / s.max() for at, s in (spectrum(wave[a:a + 4800], RATE) for a in (40000, 62400))]
    assert high[1] < high[0] / 4


def test_slurred_notes_are_one_wave():
    """Where a note goes on from another, the phase does too."""
    _, phase = bowed_strings.tone(np.random.default_rng(0), VIOLA, 300.25, RATE, MACHINE, HISS, RATE)
    assert phase == pytest.approx(0.25, abs=1e-9)
    rest, _ = bowed_strings.tone(np.random.default_rng(0), VIOLA, 300.25, RATE // 2, MACHINE, HISS, RATE, phase)
    assert np.abs(tone(VIOLA, 300.25, 1.5)[RATE + 4800:RATE * 3 // 2] - rest[4800:RATE // 2]).max() < 1e-4


@pytest.mark.parametrize("seed", range(12))
def test_scores_keep_to_one_key_their_ranges_and_their_time(seed):
    ranges = [(60, 84), (48, 70), (28, 48)][:1 + seed % 3]
    parts = bowed_strings.compose(np.random.default_rng(seed), 45.0, ranges)
    assert len({note.pitch % 12 for notes in parts for note in notes}) <= 7
    for notes, (low, high) in zip(parts, ranges, strict=True):
        assert all(low <= note.pitch <= high and note.start >= 0 and 0.05 < note.seconds < 5 for note in notes)
        assert 40 < max(note.start + note.seconds for note in notes) <= 45 - bowed_strings.END + 1e-9
        for before, note in zip(notes, notes[1:]):
            assert not note.slurred or (before.start + before.seconds == pytest.approx(note.start) and before.pitch != note.pitch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two recordings of each kind, of 4.5 s."""
    path = tmp_path_factory.mktemp("bowed") / "strings"
    run(bowed_strings, out=path, hours=0.005, workers=2, seed=4)
    return path


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path, capsys):
    run(bowed_strings, out=tmp_path / "again", hours=0.005, workers=1, seed=4)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    assert names == ["ensemble/000.wav", "ensemble/001.wav", "notes.tsv", "solo/000.wav", "solo/001.wav"]
    assert all((folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)
    assert "2 solo and 2 ensemble recordings of 4.5 s at 48000 Hz, 0.3 minutes of sound in" in capsys.readouterr().out
    heard = [bowed_strings.record(seed, kind, number, 4.5, RATE)[0] for seed, kind, number in ((4, "solo", 1), (5, "solo", 1), (4, "ensemble", 1))]
    assert np.array_equal(heard[0], soundfile.read(folder / "solo/001.wav", dtype="int16")[0])
    assert not np.array_equal(heard[0], heard[1]) and not np.array_equal(heard[0], heard[2])


def test_recordings_are_what_notes_tsv_says(folder):
    """Levels, lengths, and the fundamentals of solo notes by librosa."""
    rows = list(csv.DictReader((folder / "notes.tsv").read_text().splitlines(), delimiter="\t"))
    assert {len({row["instrument"] for row in rows if row["file"] == f"{kind}/000.wav"}) >= 3 for kind in KINDS} == {True, False}
    for name in {row["file"] for row in rows}:
        info = soundfile.info(folder / name)
        assert (info.samplerate, info.channels, info.subtype, info.frames) == (RATE, 1, "PCM_16", round(4.5 * RATE))
        assert 0.83 < np.abs(soundfile.read(folder / name)[0]).max() < 10 ** (-1 / 20)
    wave, played = bowed_strings.record(2, "solo", 1, 20.0, RATE)
    alone = [row for row in played if sum(abs(row[1] - other[1]) < 1e-6 for other in played) == 1 and row[2] - row[1] > 0.25]
    errors = []
    for _, start, end, hz in alone:
        part = wave[int((start + 0.1) * RATE):int(end * RATE)] / 32768
        if len(part) > 8192:
            found = librosa.yin(part, fmin=max(30, hz / 3), fmax=3 * hz, sr=RATE, frame_length=8192, hop_length=1024, center=False)
            errors.append(np.median(cents(found, hz)))
    assert len(errors) > 10 and np.median(np.abs(errors)) < 10 and np.mean(np.abs(errors) < 30) > 0.9


def test_recordings_become_records(folder, tmp_path):
    run(waveforms, source=folder, out=tmp_path / "set", rate=RATE, split="train:0.5,test:0.5", workers=1)
    spec = records.open_folder(tmp_path / "set")
    assert spec.fields["label"].labels == ("ensemble", "solo") and spec.facts["rate"] == RATE and spec.facts["channels"] == 1
    for split in ("train", "test"):
        got = records.open_split(tmp_path / "set", split).read_all()
        assert sorted(got["label"].tolist()) == [0, 1]
        for source, audio in zip(got["source"], got["audio"]):
            assert np.array_equal(audio[:, 0], soundfile.read(folder / source, dtype="int16")[0])


def test_a_folder_with_something_in_it_is_left_alone(folder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    for name in ("full", "file"):
        with pytest.raises(UserError, match="exists and is not an empty folder: choose another --out"):
            run(bowed_strings, out=tmp_path / name, hours=0.005)
    with pytest.raises(UserError, match="--out is missing"):
        run(bowed_strings)
    assert sorted(os.listdir(tmp_path)) == ["file", "full"] and os.listdir(tmp_path / "full") == ["x"]
    assert not [path for path in pathlib.Path(folder).parent.iterdir() if "preparing" in path.name]
