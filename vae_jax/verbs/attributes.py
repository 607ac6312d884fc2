"""attributes: directions of the code along which music becomes denser, higher or more major, and what they do, measured on held-out windows.

    python -m vae_jax attributes --workdir=runs/chorales
    python -m vae_jax attributes --workdir=runs/chorales --midi=mine.mid                                  every vector, by -1 and by +1
    python -m vae_jax attributes --workdir=runs/chorales --midi=mine.mid --attribute=density --amount=0.5

A vector is the mean code of the fifth of the training windows with most notes a quarter (density), with the highest mean pitch (register), or that
fit a major key best and minor keys least (mode, for every tonic on its own), less that of the opposite fifth. Prints what is heard at -1, 0 and +1
of each and how far each vector moves every attribute, and writes WORKDIR/attributes.json and attributes.npz, which `report` shows and a later call
for this checkpoint takes.
With --midi, WORKDIR/attributes/NAME-ATTRIBUTE+1.mid and .wav, likewise -1, NAME+0.mid without a change, and NAME.png, a line of windows each in the
order of the table that is printed, the original first.
"""

import math
import pathlib

from absl import flags

from vae_jax.config import UserError
from vae_jax.verbs import music, trained

MIDI = flags.DEFINE_string("midi", "", "A MIDI file to change.")
ATTRIBUTE = flags.DEFINE_string("attribute", "", "With --midi: density, register or mode; '' = each of them.")
AMOUNT = flags.DEFINE_float("amount", None, "With --midi: how far along the vector; -1 and +1 if not given.", lower_bound=-10.0, upper_bound=10.0)
CONDITION = flags.DEFINE_string("condition", "", "With --midi: the class that a conditional model is told.")


def main(started: float) -> int:
    from vae_jax import assess_rolls, attribute_vectors, scores, session
    from vae_jax import mesh as meshes

    if not MIDI.value and (ATTRIBUTE.value or AMOUNT.value is not None or CONDITION.value):
        raise UserError("--attribute, --amount and --condition say how to change a file: give it with --midi=FILE.mid.")
    if ATTRIBUTE.value and ATTRIBUTE.value not in attribute_vectors.NAMES:
        raise UserError(f"--attribute={ATTRIBUTE.value} is not one of {', '.join(attribute_vectors.NAMES)}.")
    if AMOUNT.value is not None and not math.isfinite(AMOUNT.value):  # absl's bounds let nan through
        raise UserError(f"--amount={AMOUNT.value} is not a finite number: give one that is.")
    run = music.open_run()
    score = scores.read(run, MIDI.value, "midi") if MIDI.value else None
    label = scores.label(run, CONDITION.value, "condition") if MIDI.value else None
    with session.Leaving() as leaving:
        cut = assess_rolls.threshold(run, leaving.now)
        kept = attribute_vectors.load(run)
        found = None if cut is None else kept or attribute_vectors.find(run, cut, leaving.now)
    if found is None or not meshes.is_main():
        trained.left(found is None)
        return 0
    vectors, measured = found
    if kept is None:
        attribute_vectors.store(run, vectors, measured)
    _tell(vectors, measured)
    if score is None:
        print(run.workdir / "attributes.json")
        return 0
    if ATTRIBUTE.value and ATTRIBUTE.value not in vectors:
        raise UserError(f"--attribute={ATTRIBUTE.value}: the training windows hardly differ in it, so there is no vector.")
    if not vectors:
        raise UserError("the training windows hardly differ in density, register or mode, so there is nothing to change them by.")
    return _change(run, score, {name: v for name, v in vectors.items() if ATTRIBUTE.value in ("", name)}, cut, label)


def _tell(vectors, measured) -> None:
    from vae_jax import attribute_vectors

    names, shown = attribute_vectors.NAMES, lambda value: "-" if value is None else f"{value:.3g}"
    print(f"{measured['windows']} windows ({measured['split']}); as they are: "
          + ", ".join(f"{name} {shown(measured['original'][name])}" for name in names))
    print(f"{'vector':10s} {'its attribute at -1, 0, +1':>28s}   change from -1 to +1 (standard error) of " + ", ".join(names))
    for name in vectors:
        own = ", ".join(shown(by[name]) for by in measured["moved"][name].values())
        changes = (measured["change"][name][other] for other in names)
        print(f"{name:10s} {own:>28s}   " + ", ".join("-" if c is None else f"{c[0]:+.3g} ({c[1]:.2g})" for c in changes))
    for name in names:
        if name not in vectors:
            print(f"{name:10s} no vector: the training windows hardly differ in it")


def _change(run, score, vectors, cut, label) -> int:
    import numpy as np

    from vae_jax import attribute_vectors, rolls, scores
    from vae_jax.media import piano_rolls

    grid, stem = rolls.grid(run.spec.facts), pathlib.Path(MIDI.value).stem
    amounts = (-1.0, 1.0) if AMOUNT.value is None else (AMOUNT.value,)
    asked = {f"{stem}+0": (0.0, next(iter(vectors.values())))} | {f"{stem}-{name}{amount:+g}": (amount, vector)
                                                                 for name, vector in vectors.items() for amount in amounts}
    windows = {name: attribute_vectors.moved(run, vector, amount, score.windows, cut, label) for name, (amount, vector) in asked.items()}
    made = {name: scores.join(x, score) for name, x in windows.items()}
    folder = run.workdir / "attributes"
    factor = music.write(run, folder, made, score.tempo)
    columns = min(8, len(score.windows))
    shown = np.concatenate([x[:columns] for x in (score.windows, *windows.values())])
    (folder / f"{stem}.png").write_bytes(piano_rolls.sheet([scores.cells(run, shown)], grid, columns))
    for name, roll in {"original": scores.join(score.windows, score), **made}.items():
        print(f"{name:40s} " + ", ".join(f"{k} {float(v):.3g}" for k, v in rolls.attributes(roll, grid).items()))
    print(f"gain of the files {factor:.3g}")
    print(folder / f"{stem}.png")
    return 0
