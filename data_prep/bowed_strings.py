"""Bowed strings synthesised: solo and ensemble recordings as WAV files, ready for data_prep.waveforms, and the notes that are in them.

  python -m data_prep.bowed_strings --out=strings --hours=1
  python -m data_prep.waveforms --source=strings --out=datasets/strings --rate=48000

OUT/solo/NNN.wav is a violin, viola, cello or double bass alone, now and then in double stops; OUT/ensemble/NNN.wav are three to five parts in one
key with two to four players each. Half of the time is solo. notes.tsv lists what is played: file, instrument, start and end in seconds, Hz. Files
are 16-bit mono of at most a minute, with a peak of -1.5 dB of full scale; of each kind there are two at least, so that both divide into splits.

A string in Helmholtz motion (Cremer, The Physics of the Violin, 1984, part I) drives the bridge with a sawtooth. Its corner is rounder under a
light bow, and what runs between bow and bridge leaves dips at the harmonics that have a node under the bow. A note reads a period of that,
band-limited for its own highest pitch, at a phase that glides, wanders and vibrates. The body is a sum of its modes, the room a few echoes and a
tail. A recording is a function of (seed, kind, number, length, rate) alone: on one machine the same flags give the same bytes, with any number of
workers.
"""

import concurrent.futures
import multiprocessing
import os
import pathlib
import shutil
import signal
import time
from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.signal
from absl import flags

from data_prep import script, sounds
from data_prep.intake import printable
from vae_jax.config import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("out", None, "folder to write; it must not be there yet, or be empty", flag_values=FLAGS)
flags.DEFINE_float("hours", 1.0, "of sound in all; 0.35 GB each at 48 kHz", 0.005, 1000.0, flag_values=FLAGS)
flags.DEFINE_integer("rate", 48_000, "samples a second", 8000, 192_000, flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "of all that is drawn", 0, flag_values=FLAGS)
flags.DEFINE_integer("workers", min(256, script.usable_cpus()), "processes", 1, 256, flag_values=FLAGS)

KINDS = ("solo", "ensemble")
SECONDS = 60  # of a recording, at most
PEAK = 10 ** (-1.5 / 20)
END = 1.2  # s kept for the last note to ring
PERIOD = 8192  # samples of a period's table: linear interpolation then stays 90 dB below the note
GATE = (0.3 + 1.9 * (0.5 + 0.5 * np.cos(2 * np.pi * np.arange(PERIOD) / PERIOD)) ** 3).astype(np.float32)  # the bow's noise is loudest at the slip
CONTROL = 500  # values a second of pitch, level, brightness and noise, with straight lines between
CORNERS = 0.6, 4.0  # times the bridge's hill: Hz beyond which the lightest and the heaviest bow lose 12 dB an octave
SCALES = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 3, 5, 7, 9, 10)  # major, minor, Dorian
FOLLOWERS = (3, 4, 5, 1), (4, 4, 6), (5, 3), (0, 4, 1), (0, 0, 5), (3, 1, 4), (0, 2)  # degrees that may follow a chord on each degree
RHYTHMS = ((4,), (2, 2), (1, 1, 2), (3, 1), (2, 1, 1), (1.5, 0.5, 2), (1, 1, 1, 1), (1.5, 0.5, 1, 1), (0.5, 0.5, 1, 2), (1, 0.5, 0.5, 1, 1),
           (0.5,) * 8)  # beats of a bar, from calm to busy
BOWINGS = (0.75, 1.0), (0.0, 0.92), (0.0, 0.5)  # share of slurred notes, share of a note that is bowed: legato, detached, short


class Instrument(NamedTuple):
    """strings, top: MIDI numbers; modes: (Hz, Q, dB) of the air and the first ones of the wood; hill: Hz at which the bridge passes most; attack and
    ring (once the bow has left): s; vibrato: Hz. Round numbers near those in Fletcher and Rossing, The Physics of Musical Instruments, ch. 10.
    """

    name: str
    strings: tuple[int, ...]
    top: int
    modes: tuple[tuple[float, float, float], ...]
    hill: float
    attack: float
    ring: float
    vibrato: float


VIOLIN = Instrument("violin", (55, 62, 69, 76), 91, ((275, 14, -3), (405, 25, -10), (470, 30, 0), (540, 30, 0)), 2400, 0.05, 0.4, 6.0)
VIOLA = Instrument("viola", (48, 55, 62, 69), 79, ((225, 14, -3), (310, 25, -8), (370, 30, 0), (440, 30, 0)), 1800, 0.06, 0.5, 5.7)
CELLO = Instrument("cello", (36, 43, 50, 57), 69, ((100, 14, -2), (145, 22, -6), (180, 26, 0), (220, 26, 0)), 1200, 0.07, 0.8, 5.4)
BASS = Instrument("bass", (28, 33, 38, 43), 55, ((62, 12, -2), (98, 20, -2), (112, 22, 0), (150, 22, -3)), 700, 0.09, 1.2, 5.0)
SOLOISTS = VIOLIN, CELLO, VIOLA, BASS, VIOLIN, CELLO  # in turn
PARTS = (VIOLIN, 67, 89), (VIOLIN, 60, 81), (VIOLA, 52, 74), (CELLO, 36, 60), (BASS, 28, 48)  # with their lowest and highest note
ENSEMBLES = (0, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3, 4)


class Note(NamedTuple):
    """start, seconds: of the bowed part, without the ring; slurred: the bow goes on from the note before, which ends where this one starts."""

    start: float
    seconds: float
    pitch: int
    level: float  # dB
    slurred: bool


class Touch(NamedTuple):
    """How a note is bowed and fingered."""

    attack: float  # s
    bright: float  # 0 to 1: from the lightest bow to the heaviest
    bow: float  # its distance from the bridge, as a share of the string
    noise: float  # level of the bow's noise beside a sawtooth from -pi / 2 to pi / 2
    came_from: float  # cents from where the pitch comes
    settle: float  # s in which that falls to a third
    vibrato: float  # cents to each side
    vibrato_hz: float
    onset: float  # s until it begins
    wander: float  # 1 = a player's unsteadiness, 0 = a machine's
    ring: float  # s to -60 dB after the bow has left


def compose(rng: np.random.Generator, seconds: float, ranges: list[tuple[int, int]]) -> list[list[Note]]:
    """The notes of each part, in its range of MIDI numbers: phrases of two to four bars over chords of one key, with breaths between; they end END
    before `seconds`.
    """
    scale = (np.array(SCALES[rng.integers(len(SCALES))]) + rng.integers(12)) % 12
    beats, bars, degree, wanted = 0.0, [], 0, (seconds - END) * rng.uniform(54, 132) / 60
    while beats < wanted:
        level, length = rng.uniform(-9, 0), rng.integers(2, 5)
        for i in range(length):
            ends = i == length - 1 or beats + 4 >= wanted
            bars.append((beats, scale[(degree + np.array([0, 2, 4])) % 7], level, i == 0, ends, RHYTHMS[rng.binomial(len(RHYTHMS) - 1, 0.35)]))
            degree, beats = rng.choice(FOLLOWERS[degree]), beats + 4
            if ends:
                break
        beats += rng.choice([0, 1, 2], p=[0.3, 0.4, 0.3]) if beats < wanted else 0
    beat, together, doubling = (seconds - END) / beats, rng.random() < 0.4, 0.25 * (len(ranges) == 1 and rng.random() < 0.4)
    written = []
    for number, (low, high) in enumerate(ranges):
        ladder = np.array([m for m in range(low, high + 1) if m % 12 in scale])
        place, step, busy, notes, doubles = rng.integers(len(ladder) // 4, 3 * len(ladder) // 4), 1, rng.uniform(0.3, 0.9), [], []
        for start, chord, level, begins, ends, shared in bars:
            if begins:
                slurs, bowed = BOWINGS[rng.choice(3, p=[0.5, 0.3, 0.2])]
            own = RHYTHMS[rng.integers(3) if ends else rng.binomial(len(RHYTHMS) - 1, busy)]
            at = 0.0
            for length in shared if together else own:
                if abs(step) > 2:  # a leap turns back, a step tends to go on
                    step = -np.sign(step) * rng.integers(1, 3)
                else:
                    step = np.sign(step) * rng.choice([1, 1, -1]) * rng.choice([1, 1, 1, 2, 2, 3, 5])
                place = np.clip(place + step, 0, len(ladder) - 1)
                step = -step if place in (0, len(ladder) - 1) else step
                if at % 2 == 0:  # on strong beats a note of the chord; the lowest part begins bars with its root
                    tones = np.flatnonzero(np.isin(ladder % 12, chord[:1] if at == 0 and number == len(ranges) - 1 > 0 else chord))
                    place = tones[np.argmin(np.abs(tones - place))]
                slurred = not (begins and at == 0) and ladder[place] != notes[-1].pitch and rng.random() < slurs
                if slurred:
                    notes[-1] = notes[-1]._replace(seconds=(start + at) * beat - notes[-1].start)
                share = max(bowed, 0.92 * (length >= 2)) if slurs == 0 else 0.97
                accent = level + rng.normal(0, 1) + (1.5 if at == 0 else 0)
                notes.append(Note((start + at) * beat, share * length * beat, int(ladder[place]), accent, slurred))
                if length >= 1 and place + 5 < len(ladder) and rng.random() < doubling:
                    doubles.append(notes[-1]._replace(pitch=int(ladder[place + rng.choice([2, 5])]), slurred=False))
                at += length
        written.append(notes + doubles)
    return written


def period(hz: float, highest: float, bow: float, cutoff: float, rate: int) -> np.ndarray:
    """One period of the force at the bridge, float32 [PERIOD]; no harmonic of `highest` Hz reaches half the rate."""
    n = np.arange(1, 1 + min(PERIOD // 4, int(np.ceil(rate / 2 / highest)) - 1))
    dips = 1 - 0.8 * np.exp(-2j * np.pi * n * bow)
    spectrum = np.zeros(PERIOD // 2 + 1, np.complex64)
    spectrum[1:1 + len(n)] = -0.5j * PERIOD * dips / n / (1 + (n * hz / cutoff) ** 2)
    return scipy.fft.irfft(spectrum)


def drift(rng: np.random.Generator, t: np.ndarray, hertz: float) -> np.ndarray:
    """A slow random curve of deviation 1 that turns about `hertz` times a second."""
    points = np.arange(0, t[-1] + 2 / hertz, 0.5 / hertz)
    return 1.2 * np.interp(t, points - rng.random() * 0.5 / hertz, rng.standard_normal(len(points)))


def lines(control: np.ndarray, hop: int, total: int) -> np.ndarray:
    """Straight lines through values `hop` samples apart, of their type [total]."""
    steps = np.arange(hop, dtype=control.dtype) / control.dtype.type(hop)
    return (control[:-1, None] + np.diff(control)[:, None] * steps).reshape(-1)[:total]


def tone(rng: np.random.Generator, instrument: Instrument, hz: float, held: int, touch: Touch, hiss: np.ndarray, rate: int,
         phase: float = 0.0) -> tuple[np.ndarray, float]:
    """One note before the body: (float32 [held + ring], the phase, in periods, at its sample `held`); phase: where the string was before it.

    hiss: noise of unit level, longer than the note.
    """
    total, hop = held + round(touch.ring * rate), max(1, rate // CONTROL)
    t = np.arange(-(-total // hop) + 1) * (hop / rate)
    after = np.maximum(0, t - held / rate)
    vibrato = np.cumsum(touch.vibrato_hz * (1 + 0.06 * touch.wander * drift(rng, t, 1.0))) * (hop / rate)
    depth = touch.vibrato * np.clip((t - touch.onset) / 0.35, 0, 1) * (1 + 0.2 * touch.wander * drift(rng, t, 1.5))
    cents = touch.came_from * np.exp(-t / touch.settle) + depth * np.sin(2 * np.pi * vibrato)
    cents += touch.wander * (2 * drift(rng, t, 2) + drift(rng, t, 12))
    pace = hz / rate * np.exp2(cents / 1200)
    swell = touch.wander * (1.2 * drift(rng, t, 0.8) + 0.4 * drift(rng, t, 8)) - 60 * after / touch.ring
    rise = np.clip(t / touch.attack, 0, 1)
    level = rise * rise * (3 - 2 * rise) * 10 ** (swell / 20)
    bright = np.clip(touch.bright + 0.1 * touch.wander * drift(rng, t, 2) + 0.05 * swell * (after == 0), 0, 1) * np.exp(-5 * after / touch.ring)
    scratch = touch.noise * level * (1 + 5 * np.exp(-t / 0.025)) * (1 + 0.3 * touch.wander * drift(rng, t, 6)) * np.exp(-after / 0.004)

    turns = phase + np.cumsum(lines(pace, hop, total))
    at = (turns - np.floor(turns)) * PERIOD
    index = at.astype(np.int32)
    between = (at - index).astype(np.float32)
    level, bright, scratch = (lines(control.astype(np.float32), hop, total) for control in (level, bright, scratch))
    light, heavy = (period(hz, pace.max() * rate, touch.bow, instrument.hill * of, rate) for of in CORNERS)
    heavier = heavy - light
    wave = light[index] + between * (np.roll(light, -1) - light)[index]
    wave += bright * (heavier[index] + between * (np.roll(heavier, -1) - heavier)[index])
    begin = rng.integers(len(hiss) - total)
    wave = level * wave + scratch * GATE[index] * hiss[begin:begin + total]
    return wave, turns[held - 1] % 1.0


def perform(rng: np.random.Generator, instrument: Instrument, notes: list[Note], tuning: float, apart: float, hiss: np.ndarray, samples: int,
            rate: int) -> np.ndarray:
    """What one player makes of a part, float32 [samples]. tuning: Hz of A4; apart: 0 for a soloist, 1 in a section, where nobody agrees on pitch and
    time.
    """
    wave, phase = np.zeros(samples, np.float32), 0.0
    out_of_tune, late, heavy, bow = rng.normal(0, 6) * apart, rng.normal(0, 0.012) * apart, rng.normal(0.65, 0.1), rng.uniform(0.06, 0.16)
    starts = [max(0.0, note.start + late + rng.normal(0, 0.005 + 0.006 * apart)) for note in notes]
    for i, note in enumerate(notes):
        joined = i + 1 < len(notes) and notes[i + 1].slurred
        begin, end = round(starts[i] * rate), round((starts[i + 1] if joined else starts[i] + note.seconds) * rate)
        leap = 100 * (notes[i - 1].pitch - note.pitch) if note.slurred else 0
        is_open = note.pitch in instrument.strings and rng.random() < 0.7
        touch = Touch(
            attack=min(0.03 if note.slurred else instrument.attack * rng.uniform(0.6, 1.6), note.seconds / 3),
            bright=heavy + 0.04 * note.level + rng.normal(0, 0.06), bow=bow * rng.uniform(0.85, 1.15), noise=10 ** (rng.uniform(-37, -29) / 20),
            came_from=leap if 0 < abs(leap) <= 400 else -rng.uniform(5, 30), settle=rng.uniform(0.008, 0.02) if 0 < abs(leap) <= 400 else 0.03,
            vibrato=0.0 if is_open else rng.uniform(8, 28), vibrato_hz=instrument.vibrato * rng.uniform(0.9, 1.1), onset=rng.uniform(0.08, 0.35),
            wander=1.0, ring=0.06 if joined else instrument.ring * rng.uniform(0.7, 1.3) * (2 if is_open else 1))
        hz = tuning * 2 ** ((note.pitch - 69) / 12 + (out_of_tune + rng.normal(0, 3)) / 1200)
        heard, phase = tone(rng, instrument, hz, end - begin, touch, hiss, rate, phase if note.slurred else rng.random())
        heard = heard[:samples - begin]
        wave[begin:begin + len(heard)] += np.float32(10 ** (note.level / 20)) * heard
    return wave


def body(rng: np.random.Generator, instrument: Instrument, rate: int) -> np.ndarray:
    """The impulse response of one such instrument, float64 [half a second]: the named modes, and eleven an octave above them."""
    first, last = 1.2 * instrument.modes[-1][0], min(12_000, 0.45 * rate)
    count = int(11 * np.log2(last / first))
    high = first * (last / first) ** ((np.arange(count) + rng.random(count)) / count)
    over = np.log2(high / instrument.hill)
    gains = 6 * np.exp(-(over / 0.6) ** 2) - 6 - 5 * np.maximum(0, over - 0.5) + rng.normal(0, 3, count)
    response = np.zeros(rate // 2)
    for hz, q, gain in [*instrument.modes, *zip(high, rng.uniform(12, 30, count), gains)]:
        hz *= rng.uniform(0.96, 1.04)
        damping = np.pi * hz / q
        t = np.arange(min(len(response), int(9 / damping * rate))) / rate
        response[:len(t)] += rng.choice([-1, 1]) * 10 ** (gain / 20) * 2 * damping / rate * np.exp(-damping * t) * np.cos(2 * np.pi * hz * t)
    return response


def record(seed: int, kind: str, number: int, seconds: float, rate: int) -> tuple[np.ndarray, list[tuple[str, float, float, float]]]:
    """A recording: (int16 [samples], what is played: instrument, start, end, Hz)."""
    rng = np.random.default_rng([seed, KINDS.index(kind), number])
    soloist = SOLOISTS[number % len(SOLOISTS)]
    parts = [(soloist, soloist.strings[0], soloist.top)] if kind == "solo" else [PARTS[i] for i in ENSEMBLES[rng.integers(len(ENSEMBLES))]]
    samples, tuning, rows = round(seconds * rate), 440 * 2 ** (rng.normal(0, 4) / 1200), []
    band = scipy.signal.butter(2, [700, min(9000, 0.4 * rate)], "bandpass", fs=rate, output="sos")
    hiss = scipy.signal.sosfilt(band, rng.standard_normal(10 * rate))  # no note is longer
    hiss = (hiss / hiss.std()).astype(np.float32)
    mix = np.zeros(samples, np.float32)
    for (instrument, _, _), notes in zip(parts, compose(rng, seconds, [part[1:] for part in parts])):
        players = 1 if kind == "solo" else rng.integers(2, 5)
        section = sum(perform(rng, instrument, notes, tuning, float(kind == "ensemble"), hiss, samples, rate) for _ in range(players))
        echoes = np.zeros(rate // 20)
        echoes[0] = 1
        echoes[rng.integers(rate // 300, len(echoes), 6)] += rng.uniform(0.1, 0.4, 6) * rng.choice([-1, 1], 6)
        heard = scipy.signal.oaconvolve(section, body(rng, instrument, rate).astype(np.float32))[:samples]
        heard = scipy.signal.oaconvolve(heard, echoes.astype(np.float32))[:samples]
        mix += heard * np.float32(10 ** (rng.normal(0, 1.5) / 20) / heard.std())
        rows += [(instrument.name, note.start, note.start + note.seconds, tuning * 2 ** ((note.pitch - 69) / 12)) for note in notes]
    lasts = rng.uniform(0.5, 1.5)  # s to -60 dB; treble a third of that
    t = np.arange(round(lasts * rate)) / rate
    noise = rng.standard_normal(len(t))
    dull = scipy.signal.lfilter(*scipy.signal.butter(1, 1500, fs=rate), noise)
    tail = (dull * 10 ** (-3 * t / lasts) + (noise - dull) * 10 ** (-9 * t / lasts)) * np.clip(t / 0.02, 0, 1)
    tail *= 10 ** (rng.uniform(-16, -8) / 20) / np.sqrt(np.sum(tail ** 2))
    mix += scipy.signal.oaconvolve(mix, tail.astype(np.float32))[:samples]
    values, clipped = sounds.quantise(mix * (PEAK / np.abs(mix).max()))
    assert not clipped
    return values, sorted(rows, key=lambda row: row[1])


def write_recording(job: tuple[pathlib.Path, str, int, str, float, int, int]) -> list[str]:
    """Writes one recording; its lines of notes.tsv."""
    folder, kind, number, name, seconds, rate, seed = job
    values, rows = record(seed, kind, number, seconds, rate)
    (folder / name).write_bytes(sounds.as_wav(values, rate))
    return [f"{name}\t{instrument}\t{start:.3f}\t{end:.3f}\t{hz:.2f}" for instrument, start, end, hz in rows]


def main() -> None:
    script.require(FLAGS, "out")
    target, begun = pathlib.Path(os.path.abspath(FLAGS.out)), time.monotonic()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{printable(FLAGS.out)} exists and is not an empty folder: choose another --out.")
    count = max(2, int(np.ceil(FLAGS.hours * 1800 / SECONDS)))  # of each kind
    seconds = FLAGS.hours * 1800 / count
    folder, lines = target.parent / f".{target.name}.preparing-{os.getpid()}", ["file\tinstrument\tstart\tend\thz"]
    shutil.rmtree(folder, ignore_errors=True)  # of a dead process that had our number
    jobs = [(folder, kind, i, f"{kind}/{i:03d}.wav", seconds, FLAGS.rate, FLAGS.seed) for kind in KINDS for i in range(count)]
    crew = concurrent.futures.ProcessPoolExecutor(min(FLAGS.workers, len(jobs)), multiprocessing.get_context("spawn"),
                                                  signal.signal, (signal.SIGINT, signal.SIG_IGN))
    progress = script.Progress(len(jobs), "recordings")
    try:
        for kind in KINDS:
            (folder / kind).mkdir(parents=True)
        for done, rows in enumerate(crew.map(write_recording, jobs), 1):
            lines += rows
            progress.show(done, last=done == len(jobs))
        (folder / "notes.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.rename(folder, target)
    finally:
        crew.shutdown(cancel_futures=True)
        shutil.rmtree(folder, ignore_errors=True)
    took, minutes = time.monotonic() - begun, FLAGS.hours * 60
    print(f"{FLAGS.out}: {count} solo and {count} ensemble recordings of {seconds:.1f} s at {FLAGS.rate} Hz, {minutes:.1f} minutes of sound in "
          f"{took:.1f} s ({60 * minutes / took:.0f} times real time)")


if __name__ == "__main__":
    script.run(main, FLAGS, __doc__)
