"""What the verbs share that make music: how files are played, which models make any, and what `sample` writes of them."""

import math

from absl import flags

from vae_jax.config import UserError
from vae_jax.verbs import trained

SOUNDFONT = flags.DEFINE_string("soundfont", "", "Models of rolls: a SoundFont 2 file that plays the wavs; '' = the built-in synthesiser.")
PROGRAM = flags.DEFINE_integer("program", 0, "Models of rolls: General MIDI instrument of the files; 0 = piano.", lower_bound=0, upper_bound=127)
TEMPO = flags.DEFINE_float("tempo", None, "Models of rolls: quarter notes a minute of the files; if not given, a given file's own or the "
                           "training data's.", lower_bound=10.0, upper_bound=1000.0)
FILES = 64  # samples written as files
SHOWN = 100  # and drawn


def check(run, flag: str = "") -> None:
    """Raises UserError where flags of music are given, or `flag` is, to a model that makes none, and for a tempo that is no number."""
    given = [name for name in ("soundfont", "program", "tempo") if flags.FLAGS[name].present] + [flag] * bool(flag)
    if given and (run.task.front is None or run.task.front.kind != "roll"):
        raise UserError(f"--{given[0]} is for models of rolls (data_prep.midi), and {run.workdir} is of other data.")
    if TEMPO.value is not None and not math.isfinite(TEMPO.value):  # absl's bounds let nan through
        raise UserError(f"--tempo={TEMPO.value} is not a finite number: give one that is.")


def open_run():
    """The run that --workdir and --checkpoint name, of a model of rolls. Raises UserError for another."""
    run = trained.open_run()
    if run.task.front is None or run.task.front.kind != "roll" or run.task.decode is None:
        raise UserError(f"this is for models of rolls, which data_prep.midi makes of MIDI files, and {run.workdir} is a run of the task "
                        f"{run.config.task!r} on other data.")
    check(run)
    return run


def tempo(run, own: float | None = None) -> float:
    """Quarter notes a minute: what --tempo says, else a file's own, else the training data's."""
    from vae_jax import rolls

    return TEMPO.value or own or rolls.grid(run.spec.facts).tempo


def write(run, folder, made: dict, own: float | None = None, alone: bool = False) -> float:
    """`scores.write` as the flags say; own: tempo of a file that was given."""
    from vae_jax import scores

    return scores.write(run, folder, made, tempo(run, own), PROGRAM.value, SOUNDFONT.value, alone)


def samples(run, name: str, made: dict, columns: int) -> None:
    """Writes what `Task.sample` made; columns: of the sheet, 0 = about as many as rows."""
    from vae_jax import assess_rolls, rolls, scores, session
    from vae_jax.media import piano_rolls

    heard, grid, folder = assess_rolls.heard(run, made, assess_rolls.threshold(run)), rolls.grid(run.spec.facts), run.workdir / "samples"
    factor = write(run, folder / name, {f"{i:03d}": roll for i, roll in enumerate(heard[:FILES])})
    session.write_npz(folder / f"{name}.npz", {"roll": heard, "mean": made["roll/mean"]})
    shown = scores.cells(run, heard[:SHOWN])
    (folder / f"{name}.png").write_bytes(piano_rolls.sheet([shown], grid, columns or math.isqrt(len(shown) - 1) + 1))
    print(f"{len(heard[:FILES])} MIDI files and wavs in {folder / name}, {rolls.notes_per_quarter(heard, grid):.2f} notes a quarter, of "
          f"{rolls.note_quarters(heard, grid):.2f} quarters on average; gain {factor:.3g}")
    print(folder / f"{name}.png")
