"""MIDI files to notes and back: files written byte by byte, damage of every kind, and real files against a count of their messages."""

import io
import zipfile

import mido
import numpy as np
import pytest
from midi_files import GRID, file, off, on, pedal, random_notes, signature, tempo, track

from vae_jax import rolls
from vae_jax.media import midi
from vae_jax.rolls import Note


def times(piece):
    return [(note.start, note.end, note.pitch) for note in piece.notes]


@pytest.mark.parametrize("grid", [GRID, GRID._replace(drums=True, velocity=True), GRID._replace(per_quarter=12, drums=True)])
def test_what_is_written_is_read(grid):
    rng = np.random.default_rng(0)
    for _ in range(20):
        notes = random_notes(rng, grid, 48)
        piece = midi.read(midi.write(notes, 93.0, program=19))
        assert sorted(piece.notes) == sorted(notes)
        assert piece.tempos == [(0.0, pytest.approx(93, rel=1e-6))] and piece.programs == {0: 19}
        assert piece.quarters == max(note.end for note in notes)
    assert midi.read(midi.write(notes, 93.0, rest=2.5)).quarters == max(note.end for note in notes) + 2.5


def test_other_readers_understand_what_is_written():
    parsed = mido.MidiFile(file=io.BytesIO(midi.write([Note(0, 1, 60, 90), Note(1, 1.25, 36, 100, True)], 90.0)))
    assert (parsed.type, parsed.ticks_per_beat, len(parsed.tracks)) == (1, 480, 3) and parsed.length == pytest.approx(1.25 * 60 / 90)
    assert {message.channel for message in parsed.tracks[2] if message.type == "note_on"} == {9}
    parsed = mido.MidiFile(file=io.BytesIO(midi.write([Note(1, 2, 60), Note(0, 1, 60), Note(0, 1, 72), Note(1, 2, 50)], 90.0)))
    heard = [(message.type, message.time) for message in parsed.tracks[1] if message.type.startswith("note")]
    ons, offs = [("note_on", 0), ("note_on", 0)], [("note_off", 480), ("note_off", 0)]
    assert heard == ons + offs + ons + offs  # a pitch is let go before it is struck again


def test_a_path_and_bytes(tmp_path):
    data = midi.write([Note(0, 1, 60)], 120.0)
    (tmp_path / "a.mid").write_bytes(data)
    assert midi.read(tmp_path / "a.mid") == midi.read(str(tmp_path / "a.mid")) == midi.read(data)
    with pytest.raises(FileNotFoundError):
        midi.read(tmp_path / "b.mid")


def test_type_0_with_running_status():
    """After a first note-on only data bytes follow; velocity 0 is a note-off."""
    data = file(0, 96, track((0, on(60, 100)), (96, bytes([60, 0])), (0, bytes([64, 50])), (48, bytes([64, 0]))))
    assert midi.read(data).notes == [Note(0.0, 1.0, 60, 100), Note(1.0, 1.5, 64, 50)]


def test_type_1_plays_together_type_2_one_after_the_other():
    tracks = [track((0, on(60)), (96, off(60)), (192, b"\xff\x01\x00")), track((0, tempo(60)), (96, on(72)), (96, off(72)))]
    assert times(midi.read(file(1, 96, *tracks))) == [(0, 1, 60), (1, 2, 72)]
    piece = midi.read(file(2, 96, *tracks))
    assert times(piece) == [(0, 1, 60), (4, 5, 72)] and piece.quarters == 5
    assert piece.tempos == [(0, 120.0), (3, 60.0)] and midi.bar_lines(piece, 4)[:3].tolist() == [-4, 12, 28]


def test_drums_are_channel_10():
    piece = midi.read(file(1, 96, track((0, on(36, 90, 9)), (48, off(36, 9))), track((0, on(36, 90, 8)), (48, off(36, 8)))))
    assert piece.notes == [Note(0, 0.5, 36, 90, False), Note(0, 0.5, 36, 90, True)]


@pytest.mark.parametrize("events, expected", [
    ([(0, on(60)), (96, on(60)), (96, off(60)), (96, off(60))], [(0, 1, 60), (1, 3, 60)]),  # struck again, then let go twice
    ([(0, on(60)), (95, on(60)), (1, off(60)), (96, off(60))], [(0, 95 / 96, 60), (95 / 96, 2, 60)]),  # legato that overlaps by a tick
    ([(0, on(60)), (96, on(60)), (0, off(60)), (96, off(60))], [(0, 1, 60), (1, 2, 60)]),  # the new one first, then the old one's end
    ([(0, on(60)), (0, on(60)), (48, off(60)), (48, on(60)), (48, off(60)), (96, off(62))], [(0, 0, 60), (0, 0.5, 60), (1, 1.5, 60)]),  # at once
    ([(0, on(60)), (96, on(60)), (48, off(60)), (48, on(60)), (48, off(60)), (96, off(62))], [(0, 1, 60), (1, 1.5, 60), (2, 2.5, 60)]),  # no end
    ([(0, on(60)), (48, off(60)), (48, off(60)), (48, on(60)), (48, off(60))], [(0, 0.5, 60), (1.5, 2, 60)]),  # an end said twice
    ([(0, on(60)), (96, on(62)), (96, off(62))], [(0, 2, 60), (1, 2, 62)]),  # never let go: to the end of its track
    ([(0, off(60)), (96, on(60)), (0, off(60)), (96, b"\xff\x01\x00")], [(1, 1, 60)]),  # an end without a note, and no length
    ([(0, on(60)), (96, on(60, 64, 1)), (96, off(60)), (96, off(60, 1))], [(0, 2, 60), (1, 3, 60)]),  # two channels
])
def test_which_end_belongs_to_which_note(events, expected):
    assert times(midi.read(file(1, 96, track(*events)))) == expected


@pytest.mark.parametrize("events, expected", [
    ([(0, pedal(127)), (0, on(60)), (96, off(60)), (96, pedal(0))], [(0, 2, 60)]),
    ([(0, on(60)), (48, pedal(64)), (48, off(60)), (96, pedal(63))], [(0, 2, 60)]),
    ([(0, on(60)), (48, pedal(63)), (48, off(60)), (96, pedal(0))], [(0, 1, 60)]),  # not down far enough
    ([(0, pedal(127)), (0, on(60)), (48, off(60)), (48, on(60)), (48, off(60)), (48, pedal(0))], [(0, 1, 60), (1, 2, 60)]),  # struck again
    ([(0, pedal(127)), (0, on(60)), (96, pedal(0)), (0, off(60)), (0, pedal(127)), (96, pedal(0))], [(0, 1, 60)]),  # renewed where it ends
    ([(0, pedal(127)), (0, on(60)), (48, pedal(100)), (48, off(60)), (96, pedal(90)), (96, pedal(0))], [(0, 3, 60)]),  # said again
    ([(0, pedal(127)), (0, on(60)), (96, off(60)), (96, b"\xff\x01\x00")], [(0, 1, 60)]),  # never up again
    ([(0, pedal(127, 1)), (0, on(60)), (96, off(60)), (96, pedal(0, 1))], [(0, 1, 60)]),  # of another channel
    ([(0, pedal(127, 9)), (0, on(36, 64, 9)), (96, off(36, 9)), (96, pedal(0, 9))], [(0, 1, 36)]),  # drums
])
def test_sustain_pedal(events, expected):
    assert times(midi.read(file(1, 96, track(*events)))) == expected


def test_the_pedal_of_one_track_holds_the_notes_of_another():
    assert times(midi.read(file(1, 96, track((0, pedal(127)), (192, pedal(0))), track((0, on(60)), (96, off(60)))))) == [(0, 2, 60)]


def test_tempos_do_not_move_the_grid():
    piece = midi.read(file(1, 96, track((0, tempo(60)), (192, tempo(120)), (192, tempo(240))), track((0, on(60)), (576, off(60)))))
    assert piece.notes == [Note(0, 6, 60, 64)] and piece.tempos == [(0, 60.0), (2, 120.0), (4, 240.0)]
    assert midi.tempo(piece) == pytest.approx(6 / (2 / 60 + 2 / 120 + 2 / 240))
    assert midi.tempo(midi.read(file(1, 96, track()))) == 120


@pytest.mark.parametrize("events, quarters, per_quarter, expected", [
    ([], 8, 4, [0, 16, 32]),
    ([(0, signature(3, 4))], 7, 4, [0, 12, 24, 36]),
    ([(0, signature(6, 8))], 6, 12, [0, 36, 72]),
    ([(0, signature(7, 16))], 3.5, 4, [0, 7, 14]),
    ([(0, signature(4, 4)), (8, signature(3, 4)), (3, signature(2, 2))], 15, 4, [0, 16, 32, 44, 60]),
    ([(0, signature(4, 4)), (6, signature(3, 4))], 12, 4, [0, 16, 24, 36, 48]),  # a new signature ends the bar
    ([(0, signature(1, 4)), (1, signature(4, 4))], 9, 4, [-12, 4, 20, 36]),  # a pickup of a quarter
    ([(0, signature(3, 4)), (0.5, signature(3, 4))], 6.5, 4, [-10, 2, 14, 26]),
    ([(0, signature(4, 64))], 1, 4, [0, 1, 2, 3, 4]),
    ([(0, signature(4, 2**30))], 8, 4, [0, 16, 32]),  # damage: no such unit
])
def test_bar_lines(events, quarters, per_quarter, expected):
    told = [(round(96 * delta), event) for delta, event in events]
    piece = midi.read(file(1, 96, track(*told), track((0, on(60)), (round(96 * quarters), off(60)))))
    assert midi.bar_lines(piece, per_quarter).tolist() == expected


# Damage


@pytest.mark.parametrize("data, reason", [
    (b"hello", "not a Standard MIDI File"),
    (b"", "not a Standard MIDI File"),
    (file(1, -25 * 256 + 40, track((0, on(60)), (96, off(60)))), "SMPTE"),
    (file(1, 0, track((0, on(60)), (96, off(60)))), "no ticks"),
    (file(5, 96, track((0, on(60)), (96, off(60)))), "unknown type, 5"),
    (file(1, 1, track((2**28 - 1, on(60)), (96, off(60)))), "longer than 100,000 quarter notes"),
    (file(1, 96, track((0, b"\xff\x59\x02\x01\xff"))), "KeySignatureError"),
])
def test_reasons(data, reason):
    with pytest.raises(ValueError, match=reason):
        midi.read(data)


def test_cut_or_damaged_anywhere_is_a_reason_or_notes():
    rng = np.random.default_rng(1)
    data = midi.write(random_notes(rng, GRID._replace(low=60, high=63), 16), 100.0)
    for size in range(len(data)):
        with pytest.raises(ValueError):
            midi.read(data[:size])
    for _ in range(1500):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        try:
            piece = midi.read(bytes(damaged))
        except ValueError as error:
            assert str(error)
        else:
            assert all(0 <= note.start <= note.end and 0 <= note.pitch < 128 and 1 <= note.velocity < 128 for note in piece.notes)
            assert (np.diff(midi.bar_lines(piece, 4)) > 0).all() and midi.tempo(piece) > 0


# Real files


def test_real_games(data_dir):
    """Every note-on is a note, of the four shortest files of each game; the two damaged ones say why."""
    for folder in ("openttd", "simutrans"):
        for path in sorted((data_dir / "midi" / folder).iterdir(), key=lambda path: path.stat().st_size)[:4]:
            messages = [message for track in mido.MidiFile(path).tracks for message in track if message.type == "note_on" and message.velocity]
            piece = midi.read(path)
            assert len(piece.notes) == len(messages) and {note.pitch for note in piece.notes} == {message.note for message in messages}
            assert sum(note.drum for note in piece.notes) == sum(message.channel == 9 for message in messages)
            assert all(note.end >= note.start for note in piece.notes)
    for name in ("05-Boring-afternoon.mid", "30-On-the-waterfront.mid"):
        with pytest.raises(ValueError, match="Could not decode key with 1 flats and mode 255"):
            midi.read(data_dir / "midi" / "simutrans" / name)


def test_real_chorales(data_dir):
    """File, notes, roll, notes, file, notes, roll: the same roll."""
    with zipfile.ZipFile(data_dir / "midi" / "bach_chorales.zip") as archive:
        for name in archive.namelist()[::40]:
            piece = midi.read(archive.read(name))
            roll = rolls.from_notes(piece.notes, GRID, 0, int(4 * piece.quarters))
            notes = rolls.to_notes(roll, GRID)
            again = midi.read(midi.write(notes, midi.tempo(piece))).notes
            assert sorted(again) == sorted(notes) and np.array_equal(rolls.from_notes(again, GRID, 0, len(roll)), roll)
            assert 2 < rolls.notes_per_quarter(roll, GRID) < 12 and 0.9 < len(notes) / len(piece.notes) <= 1
