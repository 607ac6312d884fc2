"""MIDI files byte by byte, as the standard has them, and random notes: what the tests of notes share."""

import struct

import numpy as np

from vae_jax import rolls

GRID = rolls.Grid(36, 83, 4, False, False, 120.0, 16)


def number(value: int) -> bytes:
    """A variable-length quantity."""
    out = [value & 127]
    while value := value >> 7:
        out.insert(0, 128 | value & 127)
    return bytes(out)


def track(*events: tuple[int, bytes]) -> bytes:
    """A chunk of events, each (ticks since the one before, its bytes), with its end."""
    data = b"".join(number(delta) + event for delta, event in (*events, (0, b"\xff\x2f\x00")))
    return b"MTrk" + struct.pack(">I", len(data)) + data


def file(kind: int, division: int, *tracks: bytes) -> bytes:
    return b"MThd" + struct.pack(">IHHh", 6, kind, len(tracks), division) + b"".join(tracks)


def on(pitch, velocity=64, channel=0) -> bytes:
    return bytes([0x90 | channel, pitch, velocity])


def off(pitch, channel=0) -> bytes:
    return bytes([0x80 | channel, pitch, 0])


def pedal(value, channel=0) -> bytes:
    return bytes([0xB0 | channel, 64, value])


def tempo(quarters_a_minute) -> bytes:
    return b"\xff\x51\x03" + round(60e6 / quarters_a_minute).to_bytes(3, "big")


def signature(beats, unit) -> bytes:
    return bytes([0xFF, 0x58, 4, beats, unit.bit_length() - 1, 24, 8])


def random_notes(rng, grid: rolls.Grid, steps: int) -> list[rolls.Note]:
    """Notes on the grid, in order, none of one pitch overlapping, drums of one step."""
    notes, q = [], grid.per_quarter
    for pitch in range(grid.low, grid.high + 1):
        cuts = np.sort(rng.choice(steps + 1, 2 * rng.integers(0, 4), replace=False)).tolist()
        for a, b in zip(cuts[::2], cuts[1::2]):
            middle = int(rng.integers(a, b)) if rng.random() < 0.5 else a  # struck again while it sounds, or once
            for first, last in ((a, middle), (middle, b)):
                if first < last:
                    notes.append(rolls.Note(first / q, last / q, pitch, int(rng.integers(1, 128)) if grid.velocity else rolls.VELOCITY))
    for cell in rng.choice(steps * rolls.DRUMS, 20, replace=False).tolist() if grid.drums else ():
        step, drum = divmod(cell, rolls.DRUMS)
        velocity = int(rng.integers(1, 128)) if grid.velocity else rolls.VELOCITY
        notes.append(rolls.Note(step / q, (step + 1) / q, rolls.FIRST_DRUM + drum, velocity, True))
    return sorted(notes, key=lambda note: (note.start, note.drum, note.pitch))
