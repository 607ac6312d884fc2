"""Sections of a report for eyes and ears on sounds: spectrograms by class, and what the vocoder loses told apart from what the model loses."""

import numpy as np

from vae_jax.latents import pca
from vae_jax.media import figures, html, images, measures, sounds
from vae_jax.media.sections import chart, counted, mean, player, reconstruction_numbers, root, spread

CLASSES = 10  # that are shown and heard
MEASURED = 64  # held-out sounds that are resynthesised


def reconstructions(run):
    """One row a class in one colour scale, with each picture's error (row C8)."""
    if run.audio is None:
        return None
    side, span, width = run.held, run.audio.range_db, len(run.pixels.components)
    groups = _by_class(side)
    h, w = side.image.shape[1:3]
    if side.label is None:
        rows, columns = [spread(len(side.image), 20)], min(5, len(side.image))
    else:
        columns = min(int(np.clip(round(len(groups) * h / (4.5 * w)), 4, 10)), max(map(len, groups.values())))  # a sheet half as tall again as wide
        rows = [own[:columns] for own in groups.values()]
    index = np.concatenate([np.pad(own, (0, -len(own) % columns), constant_values=-1) for own in rows])
    linear = pca.reconstruct(run.pixels, pca.project(run.pixels, side.image[index])).reshape(-1, *side.image.shape[1:])
    squared = measures.mse(side.image, side.decoded)
    picture = _sheet(run, "reconstructions", (side.image[index], side.decoded[index], linear), index, span * np.sqrt(squared[index]), columns,
                     "Held-out spectrograms, the model's, and PCA's")
    run.files["errors.csv"] = _csv(run, squared)
    baseline = root(mean(pca.errors(run.pixels, side.image)), span)
    numbers = [("error", root(mean(squared), span), "RMSE in dB"), (f"error of PCA-{width}", baseline, "RMSE in dB")]
    numbers += reconstruction_numbers(run)
    if side.label is not None:
        numbers += [(f"error, {_name(run, c)}", root(mean(squared[own]), span), f"RMSE in dB, {counted(len(own), 'example')}")
                    for c, own in groups.items()]
    text = (f"Spectrograms from the {run.role} split, none chosen by hand. Three belong together: the original, the model's reconstruction from "
            f"the posterior mean, and what {counted(width, 'principal component')} can do; below them the model's error. Time runs to the right, "
            f"frequency upwards, and one colour is the same level everywhere: from black, {span:g} dB down, to the palest. errors.csv beside this "
            "page has the error of every example.")
    caption = "Original, model, PCA." + ("" if side.label is None else " One row a class.")
    return html.Section("reconstructions", "Reconstructions", text, ((picture, caption),), tuple(numbers))


def listening(run):
    """Recordings, the same through the vocoder alone, and through the model: players, waves, and the loss of each step (rows C9, S6)."""
    if run.audio is None:
        return None
    side, span = run.held, run.audio.range_db
    heard = spread(len(side.image), 5) if side.label is None else np.array([own[0] for own in _by_class(side).values()])
    n, index = len(heard), np.concatenate([heard, np.setdiff1d(spread(len(side.image), MEASURED), heard)])
    level, decoded_level = (None if levels is None else levels[index] for levels in (side.level, side.decoded_level))
    waves = {"original": side.audio[index, :, 0] / 32768.0, "vocoder alone": run.audio.hear(side.image[index], level),
             "model": run.audio.hear(side.decoded[index], decoded_level)}
    original, seen = sounds.decibels(side.image[index], level, span), sounds.decibels(side.decoded[index], decoded_level, span)
    vocoder, model = (sounds.decibels(*run.audio.see(waves[kind]), span) for kind in ("vocoder alone", "model"))
    both = sounds.squared_db(original, model)
    picture = _sheet(run, "sounds", [1 + db[:n, ..., None] / span for db in (original, vocoder, model)], heard, np.sqrt(both[:n]), min(5, n),
                     "Spectrograms of the waves that are heard")
    names = [f"example {i + 1}" if side.label is None else _name(run, side.label[i]) for i in heard]
    shown = {kind: values[:n] for kind, values in waves.items()}
    lanes = chart(run, "waves", lambda theme: figures.waves(shown, names, run.audio.rate, theme), "Waves of the same sounds")
    factor = sounds.gain(*shown.values())
    files = tuple(html.Sounds(name, tuple((player(run, f"sound-{i + 1}-{kind.split()[0]}", values[i], factor), kind)
                                          for kind, values in shown.items())) for i, name in enumerate(names))
    alone, of = sounds.squared_db(original, vocoder), counted(len(index), "held-out sound")
    numbers = (
        ("vocoder alone", root(mean(alone)), f"log-spectral RMSE in dB of the resynthesised wave, {of}"),
        ("model alone", root(mean(sounds.squared_db(original, seen))), "in dB, of the spectrogram before it is made into a wave"),
        ("model and vocoder", root(mean(both)), "in dB, of the wave that is heard"),
        ("spectral convergence", mean(sounds.convergence(original, vocoder)), "of the vocoder alone: relative error of the magnitudes"),
        ("gain", factor, f"{20 * np.log10(factor):+.1f} dB on every file here, so that they can be compared"),
    )
    text = ("Held-out sounds, drawn by a fixed seed: the recording, its own spectrogram made into a wave again (what Griffin-Lim alone loses), and "
            "the model's reconstruction made into a wave the same way.")
    captions = ("Spectrograms of the waves below: original, vocoder alone, model, with the last one's log-spectral error.",
                "Their waves. A vocoder finds its own phases, so only the outlines can agree.")
    return html.Section("sounds", "Sounds", text, tuple(zip((picture, lanes), captions)), numbers, files)


def _by_class(side) -> dict:
    """{class: its held-out rows in a fixed random order}, of the first CLASSES; everything under one name where there are no labels."""
    order = np.random.default_rng(0).permutation(len(side.image))
    if side.label is None:
        return {0: order}
    return {c: order[side.label[order] == c] for c in np.unique(side.label)[:CLASSES]}


def _sheet(run, name, sets, rows, errors, columns, alt):
    """Spectrograms side by side over class and error in dB; rows: which held-out ones they are, -1 for a cell that stays empty."""
    label = run.held.label
    captions = [("" if label is None else f"{_name(run, label[i])[:10]}: ") + f"{error:.1f} dB" for i, error in zip(rows, errors)]
    cells = sounds.side_by_side([run.show(x) for x in sets], captions, columns)
    cells[rows < 0] = images.INK
    run.files[f"{name}.png"] = images.png(images.grid(cells, columns, max(4, cells.shape[2] // 24)))
    return html.Picture(f"{name}.png", alt)


def _name(run, number):
    return figures.class_name(run.names.get(next(iter(run.held.classes)), ()), number)


def _csv(run, squared) -> bytes:
    classes = run.held.classes
    rows = [",".join([str(i), *(str(int(values[i])) for values in classes.values()), f"{error:.6g}", f"{run.audio.range_db * np.sqrt(error):.4g}"])
            for i, error in enumerate(squared)]
    return "\n".join([",".join(["row", *classes, "squared_error", "rmse_db"]), *rows, ""]).encode()
