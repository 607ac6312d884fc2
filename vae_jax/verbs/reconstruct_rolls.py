"""What `reconstruct` does for models of rolls: windows of a data set, or a MIDI file of any length, as MIDI, sound and piano roll."""

import pathlib

import numpy as np

from vae_jax import assess_rolls, data, records, rolls, scores, session
from vae_jax import mesh as meshes
from vae_jax.config import UserError
from vae_jax.media import piano_rolls
from vae_jax.verbs import music, reconstruct, trained

FILES = 16  # windows written as files
SHOWN = 40  # and drawn


def main(run, origin: str, split: str, count: int, path: str, condition: str) -> int:
    """See the verb's own words; its flags."""
    if path and (origin or split):
        raise UserError("--midi takes one file; leave --data and --split out.")
    if condition and not path:
        raise UserError("--condition says as what --midi is rebuilt: windows of a data set have classes of their own.")
    return _file(run, path, condition) if path else _split(run, origin or run.config.data.dir, split or run.config.data.test, count)


def _split(run, origin: str, split: str, count: int) -> int:
    if not split:
        raise UserError("the run has no test split (config.data.test is empty); name one with --split.")
    source, grid = data.Source(origin, split, run.config.data.memory_mb, run.config.data.crop), rolls.grid(run.spec.facts)
    reconstruct.check(run, origin, source)
    with session.Leaving() as leaving:
        cut = assess_rolls.threshold(run, leaving.now)
        rows = None if cut is None else assess_rolls.rebuilt(run, source, count, leaving.now)
        held = "" if rows is None or source.split.digest == run.spec.digest else f"; {_held_out(run, cut, leaving.now)}"
    if rows is None or not meshes.is_main():
        trained.left(rows is None)
        return 0
    truth, made = rows["roll"], rolls.played(rows["probability"], cut, grid)
    folder, name = run.workdir / "reconstructions", f"{records.open_folder(origin).name}-{source.split.name}"
    factor = music.write(run, folder / name, {f"{i:03d}-{kind}": roll[i] for kind, roll in (("original", truth), ("model", made))
                                              for i in range(min(FILES, len(truth)))}, alone=True)
    scored = {"held_f1": rolls.f1, "onset_f1": rolls.onset_f1}
    session.write_npz(folder / f"{name}.npz", {"original": truth, "reconstruction": made, "mean": rows["probability"], "row": rows["row"],
                                               **{k: np.array([score(a, b, grid) for a, b in zip(truth, made)]) for k, score in scored.items()}})
    sheet = piano_rolls.sheet([scores.cells(run, roll[:SHOWN]) for roll in (truth, made)], grid, min(8, len(truth)))
    (folder / f"{name}.png").write_bytes(sheet)
    print(f"{len(truth)} windows, {_scores(truth, made, grid)}{held}; gain of the files {factor:.3g}")
    print(folder / f"{name}.png")
    return 0


def _file(run, path: str, condition: str) -> int:
    score, label, grid = scores.read(run, path, "midi"), scores.label(run, condition, "condition"), rolls.grid(run.spec.facts)
    with session.Leaving() as leaving:
        cut = assess_rolls.threshold(run, leaving.now)
        held = None if cut is None else _held_out(run, cut, leaving.now)
    if held is None or not meshes.is_main():
        trained.left(held is None)
        return 0
    windows = scores.decode(run, scores.encode(run, score.windows, label), cut, scores.told(run, label, len(score.windows)))
    truth, made = (scores.join(x, score) for x in (score.windows, windows))
    folder, name = run.workdir / "reconstructions", f"midi-{pathlib.Path(path).stem}"
    factor = music.write(run, folder, {f"{name}-original": truth, f"{name}-model": made}, score.tempo)
    drawn = [piano_rolls.lines(scores.cells(run, roll), grid) for roll in (truth, made)]
    (folder / f"{name}.png").write_bytes(piano_rolls.sheet(drawn, grid, 1))
    left = score.notes - score.kept
    print(f"{score.end / grid.per_quarter:g} quarters in {len(windows)} windows, {left:,} of {score.notes:,} notes have no place in the roll; "
          f"{_scores(truth, made, grid)}; {held}; gain of the files {factor:.3g}")
    print(folder / f"{name}-model.mid")
    return 0


def _scores(truth, made, grid) -> str:
    count, own = (rolls.notes_per_quarter(roll, grid) for roll in (made, truth))
    return (f"F1 of held cells {rolls.f1(truth, made, grid):.3f}, of onsets {rolls.onset_f1(truth, made, grid):.3f}, {count:.2f} notes a quarter, "
            f"original {own:.2f}")


def _held_out(run, cut: float, interrupted) -> str | None:
    """The run's own held-out scores in words; None if interrupted."""
    role, source = trained.held_out(run)
    if not role:
        return source
    rows = assess_rolls.rebuilt(run, source, reconstruct.COMPARED, interrupted)
    if rows is None:
        return None
    grid = rolls.grid(run.spec.facts)
    return f"held-out ({role}, {len(rows['roll'])} windows) {_scores(rows['roll'], rolls.played(rows['probability'], cut, grid), grid)}"
