"""Piano rolls: notes on a grid of steps, the way back, and the figures that describe and compare them. NumPy only.

A roll is uint8 [steps, columns], 255 = on: the held pitches low..high, then the struck pitches low..high, then, with drums, the struck drums
35..81 (General MIDI's keys). A note is held from the step of its onset through the last step before its end, one step at least; struck marks the
onset. With velocity every cell of a note holds 2 * velocity + 1. Functions of `rolls` take any leading axes; what is not 0 counts as on.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

FIRST_DRUM, LAST_DRUM = 35, 81
DRUMS = LAST_DRUM - FIRST_DRUM + 1
VELOCITY = 80  # of notes whose roll does not keep it
# Probe-tone ratings of the 12 degrees (Krumhansl and Kessler 1982), major and minor
PROFILES = np.array([[6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88],
                     [6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17]])
LOGITS = np.linspace(-9.2, 9.2, 369)  # thresholds tried: 0.0001 to 0.9999


class Note(NamedTuple):
    """start, end: quarter notes; pitch: MIDI key, 60 = middle C, of a drum its General MIDI key; velocity: 1..127."""

    start: float
    end: float
    pitch: int
    velocity: int = VELOCITY
    drum: bool = False


class Grid(NamedTuple):
    """How rolls are laid out. low, high: first and last pitch; per_quarter: steps in a quarter note; tempo: quarter notes a minute.

    drums: whether there are columns of drums; velocity: whether cells keep it; steps_per_bar: the commonest; fold: whether notes outside
    low..high are moved into it by octaves instead of left out.
    """

    low: int
    high: int
    per_quarter: int
    drums: bool
    velocity: bool
    tempo: float
    steps_per_bar: int
    fold: bool = False


def grid(facts: dict) -> Grid:
    """The grid that a data set's `Spec.facts` describe."""
    return Grid(facts["low"], facts["high"], facts["steps_per_quarter"], bool(facts["drums"]), bool(facts["velocity"]), float(facts["tempo"]),
                facts["steps_per_bar"], bool(facts.get("fold", 0)))


def pitches(grid: Grid) -> int:
    return grid.high - grid.low + 1


def columns(grid: Grid) -> int:
    return 2 * pitches(grid) + (DRUMS if grid.drums else 0)


def parts(rolls: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views of rolls [.., columns]: held [.., pitches], struck [.., pitches] and drums [.., 47 or 0]."""
    p = pitches(grid)
    return rolls[..., :p], rolls[..., p:2 * p], rolls[..., 2 * p:]


def step(quarters: float, grid: Grid) -> int:
    """The step nearest to a place, the later one of two."""
    return int(np.floor(quarters * grid.per_quarter + 0.5))


def fit(pitch: int, grid: Grid) -> int | None:
    """The pitch that stands for this one in the roll: itself, with grid.fold the nearest octave of it that lies in low..high, or None."""
    if grid.fold:
        pitch += 12 * max(0, -((pitch - grid.low) // 12)) - 12 * max(0, -((grid.high - pitch) // 12))
    return pitch if grid.low <= pitch <= grid.high else None


def has_place(note: Note, grid: Grid) -> bool:
    """Whether rolls have a column for a note."""
    if note.drum:
        return grid.drums and FIRST_DRUM <= note.pitch <= LAST_DRUM
    return fit(note.pitch, grid) is not None


def end(notes: Iterable[Note], grid: Grid) -> int:
    """The step behind the last of some notes; a drum lasts one."""
    return max(max(step(note.start, grid) + 1, 0 if note.drum else step(note.end, grid)) for note in notes)


def from_notes(notes: Iterable[Note], grid: Grid, start: int, steps: int) -> np.ndarray:
    """The roll, uint8 [steps, columns], of the steps start.. of a piece; start may be negative. Of two notes in one cell the later counts.

    A note that began before `start` is held and not struck. Notes that do not fit the grid are left out, and drums where it has none.
    """
    roll = np.zeros((steps, columns(grid)), np.uint8)
    held, struck, drums = parts(roll, grid)
    for note in sorted(notes):
        first, last = step(note.start, grid) - start, step(note.end, grid) - start
        value = 2 * note.velocity + 1 if grid.velocity else 255
        if not has_place(note, grid):
            continue
        if note.drum:
            if 0 <= first < steps:
                drums[first, note.pitch - FIRST_DRUM] = value
            continue
        pitch = fit(note.pitch, grid) - grid.low
        held[max(0, first):max(0, first + 1, last), pitch] = value
        if 0 <= first < steps:
            struck[first, pitch] = value
    return roll


def onsets(rolls: np.ndarray, grid: Grid) -> np.ndarray:
    """Where the notes of rolls [.., steps, columns] begin, bool [.., steps, pitches + drums].

    At struck cells, and where a held pitch was silent before: a window that begins inside a note begins with that note.
    """
    held, struck, drums = (part != 0 for part in parts(rolls, grid))
    sounding = held | struck
    before = np.zeros_like(sounding)
    before[..., 1:, :] = sounding[..., :-1, :]
    return np.concatenate([struck | sounding & ~before, drums], -1)


def to_notes(roll: np.ndarray, grid: Grid) -> list[Note]:
    """The notes of a roll [steps, columns], uint8 or bool, by start and pitch; step 0 is quarter 0. The inverse of from_notes for notes on the grid
    of which no two of one pitch overlap; drums last one step.
    """
    roll = np.asarray(roll)
    values = np.where(roll, np.uint8(255), np.uint8(0)) if roll.dtype == bool else roll
    held, struck, drums = parts(values, grid)
    begins, p, steps = onsets(values, grid), pitches(grid), len(values)
    ends = np.ones((steps + 1, begins.shape[1]), bool)  # also at every drum, which lasts one step, and behind the roll
    ends[:-1, :p] = begins[:, :p] | ~((held > 0) | (struck > 0))
    loud = np.concatenate([np.where(struck, struck, held), drums], 1)
    column, first = np.nonzero(begins.T)
    stops = np.flatnonzero(ends.T)
    last = stops[np.searchsorted(stops, column * (steps + 1) + first, side="right")] - column * (steps + 1)
    notes = []
    for c, a, b, value in zip(column.tolist(), first.tolist(), last.tolist(), loud[first, column].tolist()):
        velocity = min(127, max(1, value // 2)) if grid.velocity else VELOCITY
        pitch = c - p + FIRST_DRUM if c >= p else c + grid.low
        notes.append(Note(a / grid.per_quarter, b / grid.per_quarter, pitch, velocity, c >= p))
    return sorted(notes, key=lambda note: (note.start, note.drum, note.pitch))


def played(probability: np.ndarray, threshold: float, grid: Grid) -> np.ndarray:
    """The rolls, uint8, that probabilities [.., steps, columns] (with velocity: values in 0..1) are played as: cells of at least `threshold` sound.

    A struck pitch is held too. With velocity a cell keeps its value.
    """
    value = np.rint(255 * np.clip(probability, 1 / 255, 1)).astype(np.uint8) if grid.velocity else np.uint8(255)
    rolls = np.where(probability >= threshold, value, np.uint8(0))
    held, struck, _ = parts(rolls, grid)
    np.maximum(held, struck, out=held)
    return rolls


def threshold(probability_nsc: np.ndarray, truth_nsc: np.ndarray, grid: Grid) -> float:
    """The threshold whose played rolls have as many notes a quarter as the truth, as nearly as LOGITS allow, found by bisection.

    The number of notes is not quite monotone, as a lower threshold also joins notes; a crossing is found all the same, and the nearest count seen.
    """
    wanted = notes_per_quarter(truth_nsc, grid)
    low, high, best = -1, len(LOGITS), (np.inf, 0.5)
    while high - low > 1:
        middle = (low + high) // 2
        candidate = float(1 / (1 + np.exp(-LOGITS[middle])))
        count = notes_per_quarter(played(probability_nsc, candidate, grid), grid)
        best = min(best, (abs(count - wanted), candidate))
        low, high = (middle, high) if count > wanted else (low, middle)
    return best[1]


def notes_per_quarter(rolls: np.ndarray, grid: Grid) -> float:
    """Mean number of notes, drums too, that begin in a quarter note."""
    return float(onsets(rolls, grid).sum()) / (rolls.size / columns(grid) / grid.per_quarter)


def held_share(rolls: np.ndarray, grid: Grid) -> float:
    """Share of the held cells that are on."""
    return float((parts(rolls, grid)[0] != 0).mean())


def note_quarters(rolls: np.ndarray, grid: Grid) -> float:
    """Mean length of the pitched notes in quarters; 0 where there are none."""
    held, struck, _ = parts(rolls, grid)
    count = int(onsets(rolls, grid)[..., :pitches(grid)].sum())
    return float(((held != 0) | (struck != 0)).sum()) / max(1, count) / grid.per_quarter


def pitch_classes(rolls: np.ndarray, grid: Grid) -> np.ndarray:
    """Shares of the twelve pitch classes, C first, among the pitched notes, float64 [12]; all 0 where there are none."""
    counts = onsets(rolls, grid)[..., :pitches(grid)].reshape(-1, pitches(grid)).sum(0)
    classes = _by_class(counts, grid)
    return classes / max(1, counts.sum())


def _by_class(values, grid):
    """[.., pitches] -> [.., 12], summed over octaves."""
    return values @ np.equal.outer(np.arange(grid.low, grid.high + 1) % 12, np.arange(12)).astype(np.float64)


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Total variation distance of two histograms that each sum to 1: the share that would have to move."""
    return float(np.abs(first - second).sum() / 2)


def f1(truth: np.ndarray, made: np.ndarray, grid: Grid) -> float:
    """F1 of the held cells of rolls [.., steps, columns], over all of them together; 1 where both are silent."""
    return _f1(parts(truth, grid)[0] != 0, parts(made, grid)[0] != 0)


def onset_f1(truth: np.ndarray, made: np.ndarray, grid: Grid) -> float:
    """F1 of the struck cells, drums too, at exactly the same step."""
    p = pitches(grid)
    return _f1(truth[..., p:] != 0, made[..., p:] != 0)


def _f1(truth, made):
    total = int(truth.sum()) + int(made.sum())
    return 2 * int((truth & made).sum()) / total if total else 1.0


def key_fits(rolls: np.ndarray, grid: Grid) -> np.ndarray:
    """How well each roll [.., steps, columns] fits the twelve major, then the twelve minor keys, from C: the correlation of its pitch classes,
    weighted by length, with the profile of the key (Krumhansl and Schmuckler), float64 [.., 24]; NaN where no pitch sounds, or all sound alike."""
    held, struck, _ = parts(rolls, grid)
    classes = _by_class(((held != 0) | (struck != 0)).sum(-2), grid)
    centred = classes - classes.mean(-1, keepdims=True)
    shapes = PROFILES - PROFILES.mean(1, keepdims=True)
    keys = np.stack([np.roll(shape, tonic) / np.linalg.norm(shape) for shape in shapes for tonic in range(12)])
    with np.errstate(invalid="ignore", divide="ignore"):
        return (centred @ keys.T) / np.linalg.norm(centred, axis=-1, keepdims=True)


def tonics(rolls: np.ndarray, grid: Grid) -> np.ndarray:
    """The tonic of the key that fits each roll best, int [..], 0 = C; 0 where none does."""
    return key_fits(rolls, grid).argmax(-1) % 12


def attributes(rolls: np.ndarray, grid: Grid) -> dict[str, np.ndarray]:
    """What is heard of each roll [.., steps, columns], float64 [..]: density, notes a quarter; register, mean pitch of its notes; mode.

    mode: how well the best major key fits (`key_fits`) less how well the best minor key does, above 0 for major. register and mode are NaN where no
    pitch sounds; mode also where all classes sound alike.
    """
    begins, fits = onsets(rolls, grid), key_fits(rolls, grid)
    counts = begins[..., :pitches(grid)].sum(-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        register = counts @ np.arange(grid.low, grid.high + 1) / counts.sum(-1)
    return {"density": begins.sum((-2, -1)) / (rolls.shape[-2] / grid.per_quarter), "register": register,
            "mode": fits[..., :12].max(-1) - fits[..., 12:].max(-1)}
