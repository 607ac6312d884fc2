"""From one MIDI file to its records: reading, choosing notes, windows aligned to bars, transposition. Runs inside worker processes.

A file is left out, with the reason, if it is damaged or cut short, counts its time in SMPTE frames, or holds no note that the rolls have a place for.
"""

import collections

import numpy as np

from data_prep import same_music
from data_prep.pool import Skip
from vae_jax import rolls
from vae_jax.media import midi
from vae_jax.records import Field, encode
from vae_jax.rolls import Grid

EXPECTED = "a Standard MIDI File"
OFF_GRID = 0.05  # steps: notes that begin further from a step than that are counted as off the grid


def sniff(head: bytes) -> str | None:
    return "midi" if head[:4] == b"MThd" else None


def _read(data):
    try:
        return midi.read(data)
    except ValueError as error:
        raise Skip(str(error)) from None


def listen(data: bytes, about: dict, options: dict) -> tuple[dict, list[bytes]]:
    """What a file tells before it is cut, and no records. options: grid. Raises Skip.

    steps: to the end of its last note; pitched, drums: its notes, of which `outside` pitched ones lie outside the grid's range; off_grid: pitched
    notes that begin between two steps; tempo: quarter notes a minute; bars: how many of which number of steps; sketch: see same_music.
    """
    piece, grid = _read(data), Grid(*options["grid"])
    if not piece.notes:
        raise Skip("holds no notes")
    kept = [note for note in piece.notes if rolls.has_place(note, grid)]
    if not kept:
        raise Skip("holds no notes that the rolls have a place for (--low, --high, --drums)")
    pitched = [note for note in piece.notes if not note.drum]
    places = np.array([note.start for note in pitched]) * grid.per_quarter
    bars = collections.Counter(np.diff(midi.bar_lines(piece, grid.per_quarter)).tolist())
    return {"steps": rolls.end(kept, grid), "pitched": len(pitched), "drums": len(piece.notes) - len(pitched),
            "outside": sum(not grid.low <= note.pitch <= grid.high for note in pitched),
            "off_grid": int((np.abs(places - np.rint(places)) > OFF_GRID).sum()), "tempo": midi.tempo(piece),
            "bars": sorted(bars.items()), "sketch": same_music.sketch(pitched, grid)}, []


def window_starts(bars: np.ndarray, hop: int, end: int) -> list[int]:
    """Where windows begin, from the first bar line to before `end`: each at the last bar line within `hop` steps of the one before.

    Where no bar line is that near, as in a bar longer than the hop, the next begins after `hop` steps. bars: see midi.bar_lines.
    """
    starts, place = [], int(bars[0])
    while place < end:
        starts.append(place)
        line = int(bars[np.searchsorted(bars, place + hop, side="right") - 1])
        place = line if line > place else place + hop
    return starts


def fields(grid: Grid, steps: int, labels: tuple[str, ...], transposed: bool) -> dict[str, Field]:
    """The fields of the records. labels: genres, or () for none; transposed: whether records say by how many semitones they were."""
    made = {"roll": Field((steps, rolls.columns(grid)), "uint8"), "source": Field((), "str"), "group": Field((), "str"),
            "start": Field((), "int32"), "valid": Field((), "int32")}
    if labels:
        made["label"] = Field((), "int64", labels)
    if transposed:
        made["transposed"] = Field((), "int32")
    return made


def cut(data: bytes, about: dict, options: dict) -> tuple[dict, list[bytes]]:
    """The records of a file's windows. Raises Skip.

    about: record, the fields that all of them share, and semitones, the transpositions; options: grid, steps, hop, labels, transposed. Told
    beside the records: silent, how many windows were dropped for having no note, and dropped, how many transpositions for leaving the range.
    """
    piece, grid, steps = _read(data), Grid(*options["grid"]), options["steps"]
    declared = fields(grid, steps, tuple(options["labels"]), options["transposed"])
    notes = [note for note in piece.notes if rolls.has_place(note, grid)]
    end = rolls.end(notes, grid)
    starts = window_starts(midi.bar_lines(piece, grid.per_quarter), options["hop"], end)
    made, silent, dropped = [], 0, 0
    for semitones in about["semitones"]:
        shifted = [note if note.drum else note._replace(pitch=note.pitch + semitones) for note in notes]
        if not all(rolls.has_place(note, grid) for note in shifted):
            dropped += 1
            continue
        roll = rolls.from_notes(shifted, grid, starts[0], starts[-1] - starts[0] + steps)
        for start in starts:
            window = roll[start - starts[0]:start - starts[0] + steps]
            if not window.any():
                silent += 1
                continue
            record = {**about["record"], "roll": window, "start": start, "valid": min(steps, end - start)}
            made.append(encode(declared, record | ({"transposed": semitones} if options["transposed"] else {})))
    return {"silent": silent, "dropped": dropped}, made
