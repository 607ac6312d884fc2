"""interpolate: the way from one piece of music to another through the codes of a model of rolls, along a great circle.

    python -m vae_jax interpolate --workdir=runs/chorales --from=a.mid --to=b.mid
    python -m vae_jax interpolate --workdir=runs/chorales --from=12 --to=57 --count=9      rows of the test split

Of a MIDI file the first window with a note is taken. Writes WORKDIR/interpolations/NAME.mid and NAME.wav, all steps one after the other,
NAME/NUMBER.mid and .wav of each (those of an earlier call are removed), NAME.png, between the two originals, and NAME.npz (`code` [count, d], `roll`
uint8 [count, steps, columns]), NAME from both ends. The first and the last step are the ends as the model rebuilds them. A conditional model is told
--condition all along.
"""

import pathlib

from absl import flags

from vae_jax.config import UserError
from vae_jax.verbs import music, trained

FROM = flags.DEFINE_string("from", "", "A MIDI file, or the number of a row of the test split, from 0.")
TO = flags.DEFINE_string("to", "", "Likewise.")
COUNT = flags.DEFINE_integer("count", 9, "Steps, both ends included.", lower_bound=2, upper_bound=1000)
CONDITION = flags.DEFINE_string("condition", "", "The class that a conditional model is told.")


def main(started: float) -> int:
    import numpy as np

    from vae_jax import assess_rolls, rolls, scores, session
    from vae_jax import mesh as meshes
    from vae_jax.latents import paths
    from vae_jax.media import piano_rolls

    if not FROM.value or not TO.value:
        raise UserError("give both ends: --from=A.mid --to=B.mid, or numbers of rows of the test split.")
    run = music.open_run()
    label, grid = scores.label(run, CONDITION.value, "condition"), rolls.grid(run.spec.facts)
    ends, tempo = zip(*(_window(run, flag.name, flag.value) for flag in (FROM, TO)))
    with session.Leaving() as leaving:
        cut = assess_rolls.threshold(run, leaving.now)
    if cut is None or not meshes.is_main():
        trained.left(cut is None)
        return 0
    codes = paths.slerp(*scores.encode(run, np.stack(ends), label), COUNT.value)
    made = scores.decode(run, codes, cut, scores.told(run, label, COUNT.value))
    folder, name = run.workdir / "interpolations", "-to-".join(pathlib.Path(flag.value).stem for flag in (FROM, TO))
    own = next((t for t in tempo if t), None)
    music.write(run, folder / name, {f"{i:03d}": roll for i, roll in enumerate(made)}, own, alone=True)
    factor = music.write(run, folder, {name: np.concatenate(made)}, own)
    session.write_npz(folder / f"{name}.npz", {"code": codes.astype(np.float32), "roll": made})
    shown = scores.cells(run, np.stack([ends[0], *made, ends[1]]))
    (folder / f"{name}.png").write_bytes(piano_rolls.sheet([shown], grid, min(len(shown), 6)))
    print(f"{'step':>4s} {'notes a quarter':>16s} {'F1 with the first':>18s} {'with the last':>14s}")
    for i, roll in enumerate(made):
        print(f"{i:4d} {rolls.notes_per_quarter(roll, grid):16.2f} {rolls.f1(made[0], roll, grid):18.3f} {rolls.f1(made[-1], roll, grid):14.3f}")
    print(f"ends rebuilt with F1 {rolls.f1(ends[0], made[0], grid):.3f} and {rolls.f1(ends[1], made[-1], grid):.3f}; gain of the file {factor:.3g}")
    print(folder / f"{name}.mid")
    return 0


def _window(run, flag: str, value: str):
    """(uint8 [steps, columns], tempo or None) of one end. Raises UserError."""
    import numpy as np

    from vae_jax import scores, session

    if not value.isdecimal():
        score = scores.read(run, value, flag)
        return score.windows[int(np.argmax(score.windows.any((1, 2))))], score.tempo
    if not run.config.data.test:
        raise UserError(f"--{flag}={value}: the run has no test split (config.data.test is empty); give a MIDI file.")
    source = session.sources(run, ("test",))["test"]
    if int(value) >= len(source):
        raise UserError(f"--{flag}={value}: the test split has rows 0 to {len(source) - 1}.")
    return source.read(np.array([int(value)]))["roll"][0], None
