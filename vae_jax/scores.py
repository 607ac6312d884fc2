"""Notes through a model of rolls: MIDI files cut into its windows and joined again, codes, what they sound like, and files to play."""

from typing import NamedTuple

import jax
import numpy as np

from vae_jax import report, rolls, session
from vae_jax.config import UserError
from vae_jax.media import midi, sounds, synth

ROWS = 64  # windows encoded or decoded at once
MINUTES = 40  # of the longest file at its own tempo


class Score(NamedTuple):
    """A MIDI file as a model sees it: windows uint8 [n, steps, columns] that begin on bar lines, at steps `starts`, the first one 0, of a roll of
    `end` steps; tempo in quarter notes a minute; of its `notes` so many as `kept` have a place in the roll."""

    windows: np.ndarray
    starts: np.ndarray
    end: int
    tempo: float
    notes: int
    kept: int


def read(run, path: str, flag: str) -> Score:
    """The MIDI file that a flag names. Raises UserError for a file that cannot be used."""
    from data_prep import pieces

    grid, steps = rolls.grid(run.spec.facts), run.task.front.shape[0]
    try:
        piece = midi.read(path)
    except ValueError as error:
        raise UserError(f"--{flag}={path} cannot be used: {error}.") from None
    except OSError as error:
        raise UserError(f"--{flag}={path} cannot be read ({error.strerror or error}).") from None
    notes = [note for note in piece.notes if rolls.has_place(note, grid)]
    if not notes:
        raise UserError(f"--{flag}={path} has no note that this model knows: it knows pitches {grid.low} to {grid.high}"
                        f"{' and drums' if grid.drums else ' and no drums'}.")
    end, tempo = rolls.end(notes, grid), midi.tempo(piece)
    if (minutes := end / grid.per_quarter / tempo) > MINUTES:
        raise UserError(f"--{flag}={path} lasts {minutes:,.0f} minutes at {tempo:.4g} quarter notes a minute: cut it to {MINUTES}.")
    starts = np.array(pieces.window_starts(midi.bar_lines(piece, grid.per_quarter), steps, end))
    roll = rolls.from_notes(notes, grid, int(starts[0]), int(starts[-1] - starts[0]) + steps)
    starts, end = starts - starts[0], end - int(starts[0])
    return Score(np.stack([roll[start:start + steps] for start in starts]), starts, end, tempo, len(piece.notes), len(notes))


def join(windows, score: Score) -> np.ndarray:
    """Windows [n, steps, ..] that take the places of a score's as one [end, ..]: each counts up to where the next one begins."""
    lengths = np.diff([*score.starts, score.starts[-1] + windows.shape[1]])
    return np.concatenate([window[:length] for window, length in zip(windows, lengths)])[:score.end]


def encode(run, windows, label: int | None = None) -> np.ndarray:
    """Posterior means [n, d] of windows [n, steps, columns]; label: the class that a conditional model is told."""
    batch = {"roll": windows} | ({} if label is None else {"label": np.full(len(windows), label, np.int32)})
    function = jax.jit(lambda rows: run.task.encode(run.params, run.variables, rows)["mean"])
    return report.chunks(lambda i, rows: function(rows), batch, min(ROWS, len(windows)))


def decode(run, codes, cut: float, condition=None) -> np.ndarray:
    """Rolls uint8 [n, steps, columns] that codes [n, d] are played as, from the threshold on; condition: see `told`."""
    tree = {"code": np.asarray(codes, np.float32)} | ({} if condition is None else {"condition": np.asarray(condition)})
    made = jax.jit(lambda rows: run.task.front.columns(run.task.decode(run.params, run.variables, rows["code"], rows.get("condition"))["image"]))
    return rolls.played(report.chunks(lambda i, rows: made(rows), tree, min(ROWS, len(codes))), cut, rolls.grid(run.spec.facts))


def told(run, label: int | None, count: int):
    """What the decoder is told beside `count` codes of one class, None for a model without classes."""
    return None if label is None else run.task.condition({"label": np.full(count, label, np.int32)})


def cells(run, windows) -> np.ndarray:
    """Rolls [.., steps, columns] as pictures of the model are laid out, [.., steps, pitches and drums, 2]."""
    return session.stored(run, {"roll": windows})


def label(run, name: str, flag: str) -> int | None:
    """The number of the class that --flag names, None for a model without classes. Raises UserError."""
    if not run.task.condition:
        if name:
            raise UserError(f"--{flag}={name}: this model is told no class; leave it out.")
        return None
    names = run.spec.fields["label"].labels
    if name not in names:
        raise UserError(f"--{flag}={name} is not a class of this data: this model is told one of {', '.join(names[:20])}.")
    return names.index(name)


def write(run, folder, made: dict, tempo: float, program: int = 0, font: str = "", alone: bool = False) -> float:
    """Writes FOLDER/NAME.mid and NAME.wav of rolls {name: uint8 [steps, columns]}, all wavs at one gain, which it returns. tempo: quarter notes a
    minute; font: a SoundFont, '' for the built-in synthesiser; alone: files of an earlier call, which had another gain, or were more, are
    removed. Raises UserError for a SoundFont that cannot be used."""
    folder.mkdir(parents=True, exist_ok=True)
    grid = rolls.grid(run.spec.facts)
    notes = {name: rolls.to_notes(roll, grid) for name, roll in made.items()}
    heard = {name: synth.soundfont(own, tempo, font, program) if font else (synth.render(own, tempo), synth.RATE) for name, own in notes.items()}
    factor = sounds.gain(*(wave for wave, _ in heard.values()))
    for old in [*folder.glob("*.mid"), *folder.glob("*.wav")] if alone else []:
        old.unlink()
    for name, own in notes.items():
        session.write_bytes(folder / f"{name}.mid", midi.write(own, tempo, program))
        session.write_bytes(folder / f"{name}.wav", sounds.wav(*heard[name], factor))
    return factor
