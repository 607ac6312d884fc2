"""Sections of a report for eyes and ears on rolls: what is rebuilt, what is drawn from the prior, and what attribute vectors do."""

import numpy as np

from vae_jax import rolls
from vae_jax.media import figures, html, midi, piano_rolls, sounds, synth
from vae_jax.media.sections import chart, spread

SHOWN, HEARD, SAMPLES = 16, 5, 40  # windows on a sheet, that are heard, samples on a sheet
CLASSES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
NOTE = " A .mid of the same name lies beside each wav."


def reconstructions(run):
    """Held-out windows above what is played of their codes."""
    if run.music is None:
        return None
    grid, index = run.music.grid, spread(len(run.held.image), SHOWN)
    truth, made = (run.music.columns(x) for x in (run.held.image, run.held.decoded))
    made = rolls.played(made, run.music.threshold, grid)
    run.files["reconstructions.png"] = piano_rolls.sheet([run.held.image[index], run.music.cells(made[index])], grid, 4)
    heard = index[spread(len(index), HEARD)]
    waves = _waves(run, {f"window-{i}-{kind}": rolls_[i] for i in heard for kind, rolls_ in (("original", truth), ("model", made))})
    players = tuple(html.Sounds(f"window {i}", tuple((waves[f"window-{i}-{kind}"], kind) for kind in ("original", "model"))) for i in heard)
    density, own = (rolls.notes_per_quarter(x, grid) for x in (made, truth))
    numbers = (("F1 of held cells", rolls.f1(truth, made, grid), f"over all held-out windows together; silence scores 0{_plain(run, 'held_f1')}"),
               ("F1 of onsets", rolls.onset_f1(truth, made, grid), f"at exactly the same step{_plain(run, 'onset_f1')}"),
               ("notes a quarter", density, f"originals {own:.3g}: {density / own if own else np.nan:.3g} of it"),
               ("length of notes", rolls.note_quarters(made, grid), f"quarters, originals {rolls.note_quarters(truth, grid):.3g}"),
               ("threshold", run.music.threshold, "probability from which a cell sounds; chosen on other windows, for as many notes as they have"))
    text = (f"Windows from the {run.role} split, evenly spaced, and below each what is played of its posterior mean. The decoder reads no true row. "
            f"Time runs to the right, pitch upwards; bright cells are struck, the others held.{NOTE}")
    picture = html.Picture("reconstructions.png", "Held-out windows and the model's reconstructions")
    return html.Section("reconstructions", "Reconstructions", text, ((picture, "Original, model."),), numbers, players)


def _plain(run, name: str) -> str:
    """What comes without training, beside one of our figures."""
    titles = {"neighbour": "the nearest training window", f"pca_{run.train.mean.shape[1]}": f"PCA-{run.train.mean.shape[1]}"}
    found = {title: run.baselines.get(f"eval/test/{kind}_{name}") for kind, title in titles.items()}
    return "".join(f"; {title} {value:.3f}" for title, value in found.items() if value is not None)


def samples(run):
    """New windows, a row a class where the model is told one, beside figures of the data."""
    if run.music is None or run.sample is None:
        return None
    grid, conditional = run.music.grid, run.train.condition is not None
    classes = np.unique(run.train.label)[:10].astype(np.int32) if conditional else np.zeros(1, np.int32)
    each = SAMPLES // 5 if conditional else SAMPLES
    label = classes.repeat(each)
    made = run.music.heard(run.sample({"temperature": np.ones(len(label), np.float32), "label": label}))
    run.files["samples.png"] = piano_rolls.sheet([run.music.cells(made)], grid, 8)
    chosen = np.arange(len(classes)) * each if conditional else np.arange(min(HEARD, len(made)))
    titles = [figures.class_name(run.names.get("label", ()), c) for c in classes] if conditional else [f"sample {i + 1}" for i in chosen]
    waves = _waves(run, {f"sample-{i + 1}": made[i] for i in chosen})
    players = (html.Sounds("", tuple((waves[f"sample-{i + 1}"], title) for i, title in zip(chosen, titles))),)
    truth = run.music.columns(run.held.image)
    rebuilt = rolls.played(run.music.columns(run.held.decoded), run.music.threshold, grid)
    sets = {"data": truth, "reconstructions": rebuilt, "samples": made}
    shares = {name: rolls.pitch_classes(x, grid) for name, x in sets.items()}
    lanes = chart(run, "pitch-classes", lambda theme: figures.shares(shares, CLASSES, "share of notes", theme), "Pitch classes of data and model")
    table = html.Table(("", *sets, ""), (
        ("notes a quarter", *(rolls.notes_per_quarter(x, grid) for x in sets.values()), "drums too"),
        ("length of notes", *(rolls.note_quarters(x, grid) for x in sets.values()), "quarters, mean"),
        ("held cells", *(rolls.held_share(x, grid) for x in sets.values()), "share that sounds"),
        ("pitch classes", *(rolls.distance(shares["data"], x) for x in shares.values()), "share of notes that would have to move to be the data's")))
    text = (f"Codes drawn from the prior, then decoded and played; none chosen by hand.{' One row a class, asked for by its label.' * conditional} "
            f"{len(made)} samples stand beside {len(truth):,} held-out windows.{NOTE}")
    pictures = ((html.Picture("samples.png", "Windows decoded from draws of the prior"), "What is played."), (lanes, "Pitch classes."))
    return html.Section("samples", "Prior samples", text, pictures, (), players, table)


def attributes(run):
    """What the vectors of the verb `attributes` do, where it was called."""
    found = None if run.music is None else run.music.attributes
    if not found or not found["moved"]:
        return None
    show = lambda value: "-" if value is None else float(value)
    pair = lambda value: "-" if value is None else tuple(value)
    names, rows = list(found["original"]), []
    for vector, by_amount in found["moved"].items():
        others = ", ".join(f"{name} {found['change'][vector][name][0]:+.3g}" for name in names if name != vector and found["change"][vector][name])
        rows.append((vector, show(found["original"][vector]), *(show(by[vector]) for by in by_amount.values()), pair(found["change"][vector][vector]),
                     f"also moves {others}"))
    head = ("vector", "as it is", *next(iter(found["moved"].values())), "change", "")
    text = ("The mean code of the fifth of the training windows with most of an attribute, less that of the fifth with least, added -1, 0 and +1 "
            f"times to the codes of {found['windows']} windows ({found['split']}), and what is then played: density in notes a quarter, register as "
            "mean MIDI key, mode as how much better a major key fits than a minor one (a vector for each tonic). Change is from -1 to +1, with its "
            "standard error.")
    return html.Section("attributes", "Attribute vectors", text, table=html.Table(head, tuple(rows)))


def _waves(run, made: dict) -> dict[str, str]:
    """{name: file} of rolls, written as wavs at one gain, and as .mid beside them."""
    grid, waves = run.music.grid, {}
    for name, roll in made.items():
        notes = rolls.to_notes(roll, grid)
        run.files[f"{name}.mid"], waves[name] = midi.write(notes, grid.tempo), synth.render(notes, grid.tempo)
    factor = sounds.gain(*waves.values())
    for name, wave in waves.items():
        run.files[f"{name}.wav"] = sounds.wav(wave, synth.RATE, factor)
    return {name: f"{name}.wav" for name in waves}
