"""Standard MIDI Files to notes and back. Parsing and framing are mido's; what sounds how long is decided here."""

import bisect
import collections
import io
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import mido
import numpy as np

from vae_jax.rolls import Note

TICKS = 480  # in a quarter note, of files written
DRUM_CHANNEL = 9  # counted from 0: General MIDI's channel 10
PEDAL, PEDAL_DOWN = 64, 64  # controller, and the least value that holds notes
DEFAULT_TEMPO, DEFAULT_SIGNATURE = 120.0, (4, 4)  # until a file says otherwise
FINEST_UNIT = 64  # of a time signature; a damaged one can say 2 ** 255
MAX_QUARTERS = 100_000  # 14 hours at 120 a minute; a damaged time can say centuries


class Piece(NamedTuple):
    """What a file plays. Times are quarter notes from its start.

    notes: by start; signatures: (quarter, beats, unit), 3/8 being (.., 3, 8); tempos: (quarter, quarter notes a minute); both by time, the first
    at 0; quarters: to the end of the longest track; programs: channel, from 0, -> its first program.
    """

    notes: list[Note]
    signatures: list[tuple[float, int, int]]
    tempos: list[tuple[float, float]]
    quarters: float
    programs: dict[int, int]


def read(source: bytes | str | os.PathLike) -> Piece:
    """A file's bytes, or the file at a path. Types 0 and 1 play their tracks together, type 2 one after the other.

    A note ends at its note-off, or when its pitch is struck again on its track and channel; with the sustain pedal down, when that comes up, or the
    pitch is struck again on the channel. Raises ValueError with the reason for a file that cannot be used, OSError for one that cannot be opened.
    """
    data = source if isinstance(source, bytes) else pathlib.Path(source).read_bytes()
    if data[:4] != b"MThd":
        raise ValueError("not a Standard MIDI File")
    try:
        midi = mido.MidiFile(file=io.BytesIO(data))
    except EOFError:
        raise ValueError("cut short or damaged: it ends before its tracks do") from None
    except Exception as error:  # mido raises anything at damaged bytes
        raise ValueError(f"cannot be parsed ({type(error).__name__}: {error})") from None
    quarter = midi.ticks_per_beat
    if quarter < 0:
        raise ValueError("its time is counted in SMPTE frames, not in parts of a quarter note")
    if quarter == 0:
        raise ValueError("damaged: its quarter note has no ticks")
    if midi.type not in (0, 1, 2):
        raise ValueError(f"of an unknown type, {midi.type}")
    played, pedals, signatures, tempos, programs = [], collections.defaultdict(list), [], [], {}
    begin = length = 0  # ticks
    for track in midi.tracks:
        if midi.type == 2:
            begin = length
            signatures.append((begin, *DEFAULT_SIGNATURE))
            tempos.append((begin, DEFAULT_TEMPO))
        length = max(length, _listen(track, begin, played, pedals, signatures, tempos, programs))
    if length > MAX_QUARTERS * quarter:
        raise ValueError(f"longer than {MAX_QUARTERS:,} quarter notes")
    notes = sorted(Note(on / quarter, off / quarter, pitch, velocity, channel == DRUM_CHANNEL)
                   for channel, pitch, on, off, velocity in _pedalled(played, pedals))
    return Piece(notes, [(at / quarter, *rest) for at, *rest in _in_order(signatures, DEFAULT_SIGNATURE)],
                 [(at / quarter, tempo) for at, tempo in _in_order(tempos, (DEFAULT_TEMPO,))], length / quarter, programs)


def _listen(track, tick, played, pedals, signatures, tempos, programs):
    """Adds what a track says from `tick` on to the lists: played gets [channel, pitch, on, off, velocity]. Returns the tick at which it ends."""
    newest, owed = {}, collections.Counter()  # (channel, pitch) -> the note struck last, and how many note-offs are still to come
    for message in track:
        tick, kind = tick + message.time, message.type
        key = (message.channel, message.note) if kind in ("note_on", "note_off") else None
        if kind == "note_on" and message.velocity:
            if key in newest and newest[key][3] < np.inf:
                owed[key] = 0  # silent: note-offs that did not come, as of a note struck twice at once, never will
            elif key in newest:
                newest[key][3] = tick
            newest[key] = [*key, tick, np.inf, message.velocity]
            owed[key] += 1
            played.append(newest[key])
        elif key:
            if owed[key]:  # of notes that overlap the first struck is let go first, and the last note-off ends the newest
                newest[key][3], owed[key] = tick, owed[key] - 1
        elif kind == "control_change" and message.control == PEDAL:
            pedals[message.channel].append((tick, message.value >= PEDAL_DOWN))
        elif kind == "program_change":
            programs.setdefault(message.channel, message.program)
        elif kind == "set_tempo" and message.tempo:
            tempos.append((tick, mido.tempo2bpm(message.tempo)))
        elif kind == "time_signature" and message.numerator and message.denominator <= FINEST_UNIT:
            signatures.append((tick, message.numerator, message.denominator))
    for note in newest.values():
        note[3] = min(note[3], tick)  # one without a note-off
    return tick


def _pedalled(played, pedals):
    """The notes with their ends moved to where the pedal comes up, if it is down at their end."""
    struck = collections.defaultdict(list)
    for channel, pitch, on, *_ in played:
        struck[channel, pitch].append(on)
    for times in struck.values():
        times.sort()
    changes = {}
    for channel, events in pedals.items():
        events = sorted(events, key=lambda event: event[0])
        changes[channel] = [event for before, event in zip([(0, False), *events], events) if event[1] != before[1]]
    for channel, pitch, on, off, velocity in played:
        events = changes.get(channel, [])
        at = bisect.bisect_left(events, off, key=lambda event: event[0])  # down before `off`: a pedal renewed there lets go of what ends there
        if channel != DRUM_CHANNEL and at and events[at - 1][1]:
            up = events[at][0] if at < len(events) else off  # a pedal that never comes up holds nothing
            times = struck[channel, pitch]
            again = bisect.bisect_left(times, max(off, on + 1))
            off = max(off, min([up, *times[again:again + 1]]))
        yield channel, pitch, on, off, velocity


def _in_order(events, default):
    """Events (tick, ...) by time, of one tick the last, with the default at 0 where nothing is said there."""
    found = dict((at, (at, *rest)) for at, *rest in sorted(events, key=lambda event: event[0]))
    found.setdefault(0, (0, *default))
    return [found[at] for at in sorted(found)]


def write(notes: Iterable[Note], tempo: float, program: int = 0, rest: float = 0.0) -> bytes:
    """A type 1 file of 480 ticks a quarter: a track with the tempo (quarter notes a minute), one of the notes on channel 1 under a General MIDI
    program 0..127, and one of the drums on channel 10 where there are any. Times that are whole ticks are read back as they are.

    rest: quarters of silence after the last note.
    """
    notes = list(notes)
    midi = mido.MidiFile(type=1, ticks_per_beat=TICKS)
    length = round((max((note.end for note in notes), default=0.0) + rest) * TICKS)
    midi.tracks.append(mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(tempo)), mido.MetaMessage("end_of_track", time=length)]))
    midi.tracks.append(_track([note for note in notes if not note.drum], 0, [mido.Message("program_change", channel=0, program=program)]))
    if any(note.drum for note in notes):
        midi.tracks.append(_track([note for note in notes if note.drum], DRUM_CHANNEL, []))
    file = io.BytesIO()
    midi.save(file=file)
    return file.getvalue()


def _track(notes, channel, head):
    events = []
    for note in notes:
        on = round(note.start * TICKS)
        off = max(on + 1, round(note.end * TICKS))
        events += [(on, 1, note.pitch, note.velocity), (off, 0, note.pitch, 0)]
    track, tick = mido.MidiTrack(head), 0
    for at, is_on, pitch, velocity in sorted(events):  # at one tick the offs come first, so that a repeated note is not cut off
        track.append(mido.Message("note_on" if is_on else "note_off", channel=channel, note=pitch, velocity=velocity, time=at - tick))
        tick = at
    return track


def tempo(piece: Piece) -> float:
    """The mean tempo of a piece, quarter notes a minute: its quarters by its minutes."""
    ends = [at for at, _ in piece.tempos[1:]] + [max(piece.quarters, piece.tempos[-1][0])]
    spans = [end - at for (at, _), end in zip(piece.tempos, ends)]
    minutes = sum(span / bpm for span, (_, bpm) in zip(spans, piece.tempos))
    return sum(spans) / minutes if minutes else piece.tempos[0][1]


def bar_lines(piece: Piece, per_quarter: int) -> np.ndarray:
    """The steps at which bars begin, int [bars + 1], the last at or behind the end of the piece. Every time signature begins a bar.

    A first bar shorter than the next is a pickup: it is taken for the end of a whole bar, which begins before the piece, at a negative step.
    """
    lines = []
    ends = [at for at, *_ in piece.signatures[1:]] + [piece.quarters]
    for (at, beats, unit), end in zip(piece.signatures, ends):
        bar = 4 * beats / unit
        lines += [at + i * bar for i in range(max(1, int(np.ceil((end - at) / bar - 1e-9))))]
    lines.append(lines[-1] + 4 * piece.signatures[-1][1] / piece.signatures[-1][2])
    steps = np.unique(np.floor(np.array(lines) * per_quarter + 0.5).astype(np.int64))
    if len(steps) > 2 and steps[1] - steps[0] < steps[2] - steps[1]:
        steps[0] = steps[1] - (steps[2] - steps[1])
    return steps
