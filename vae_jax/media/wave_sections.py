"""Sections of a report on a model of waves: what it makes of recordings, what its latents hold and do, new sounds, training.

A section draws from one Waves, adds its files, and returns a Section, or None where the model or the data lack it.
"""

from typing import Any, NamedTuple

import numpy as np

from vae_jax import analysis
from vae_jax.media import figures, html, images, sounds
from vae_jax.media.sections import chart, training

CURVES = {"loss": "spectral distance", "error_db": "error, dB", "high_error_db": "error above, dB", "kl": "KL a frame, nats"}


class Heard(NamedTuple):
    """A held-out recording's beginning and what the model makes of it, both [t, c], in time with each other."""

    name: str
    original: np.ndarray
    made: np.ndarray
    distance: float
    error_db: float


class Waves(NamedTuple):
    role: str  # of the held-out side
    rate: int
    high_hz: float
    figures: dict[str, float]  # as `evaluate` names them
    heard: list[Heard]
    kl: np.ndarray | None  # [d] nats a frame of each latent, held out; None where there is no posterior
    variance: np.ndarray  # [d] of the posterior means over held-out frames
    analysis: Any  # fidelity.Analysis of this checkpoint, or None
    stored: dict | None  # its analysis.json
    samples: list[np.ndarray]  # [t, c]
    drawn: str  # how
    history: list[dict]
    files: dict[str, bytes]


def listening(run):
    """Held-out recordings and the model's: players, spectrograms side by side in one scale."""
    longest = max(len(pair.original) for pair in run.heard)
    padded = [np.stack([np.pad(wave, ((0, longest - len(wave)), (0, 0))) for wave in waves])
              for waves in ([h.original for h in run.heard], [h.made for h in run.heard])]
    pair = [sounds.show(x) for x in sounds.spectrograms(padded, run.rate, columns=800)]
    captions = [f"{h.name}: {h.distance:.2f}, {h.error_db:.1f} dB" for h in run.heard]
    cells = sounds.side_by_side(pair, captions, 1)
    run.files["sounds.png"] = images.png(images.grid(cells, 1, max(4, cells.shape[2] // 100)))
    factor, files = sounds.gain(*padded), []
    for i, h in enumerate(run.heard):
        named = (("original", h.original), ("model", h.made))
        for kind, wave in named:
            run.files[f"sound-{i + 1}-{kind}.wav"] = sounds.wav(wave, run.rate, factor)
        files.append(html.Sounds(h.name, tuple((f"sound-{i + 1}-{kind}.wav", kind) for kind, _ in named)))
    ours, better = (run.figures[f"eval/{run.role}/{name}"] for name in ("loss", "distance_ratio"))
    numbers = (("spectral distance", (ours, run.figures[f"eval/{run.role}/loss_error"]), f"over the {run.role} split"),
               ("ratio", better, "of the distance of the better of silence and mean spectrum; below 1: better than both"),
               ("gain", factor, f"{20 * np.log10(factor):+.1f} dB on every file here, so that they can be compared"))
    text = (f"The beginnings of recordings of the {run.role} split, evenly spaced, none chosen by hand, and what the model makes of them through the "
            "posterior means. Below each pair its spectral distance and its error in dB.")
    caption = ("Original left, model right. Time runs to the right, frequency upwards, and one colour is the same level everywhere: from black, "
               "80 dB below the loudest, to the palest.")
    return html.Section("sounds", "Sounds", text, ((html.Picture("sounds.png", "Spectrograms of recordings and of what the model makes"), caption),),
                        numbers, tuple(files))


def latents(run):
    """How much each latent says."""
    active = run.variance > 0.01
    values, unit = (run.variance, "variance of the mean") if run.kl is None else (run.kl, "nats a frame")
    picture = chart(run, "latents", lambda theme: figures.bars(values, active, unit, "latent, strongest first", theme=theme), unit)
    numbers = [("active units", f"{active.sum()} of {len(active)}", "variance of the posterior mean above 0.01")]
    if run.kl is not None:
        numbers += [("KL a frame", float(run.kl.sum()), "nats, held out"), ("largest", float(run.kl.max()), "nats of one latent"),
                    ("median", float(np.median(run.kl)), "nats of one latent")]
    text = "How much each number of a frame says of the sound, over held-out sounds."
    return html.Section("latents", "Latents", text, ((picture, "Strongest first."),), tuple(numbers))


def directions(run):
    """Directions that a fidelity asks for, and what cutting the others costs (row R7)."""
    if run.stored is None:
        return None
    made, cut = run.stored, {row["directions"]: row for row in run.stored["cut"]}
    picture = chart(run, "analysis", lambda theme: analysis.figure(run.analysis, made, theme), "Directions and distance against fidelity")
    head = ("fidelity", "directions", "distance", "as noise", "error, dB", "by variance", "distance (v.)", "as noise (v.)", "")
    rows = []
    for level in made["levels"]:
        one, other = (cut[level[kind]] for kind in ("singular", "variance"))
        rows.append((f"{level['fidelity']:g}", one["directions"], one["mean"]["distance"], one["noise"]["distance"], one["mean"]["error_db"],
                     other["directions"], other["mean"]["distance"], other["noise"]["distance"], ""))
    full = made["full"]
    rows.append(("as they are", made["latent"], full["distance"], None, full["error_db"], None, None, None, "nothing cut"))
    falls = {fill: [name for name, never in made["falls"][fill].items() if not never] for fill in ("mean", "noise")}
    said = {fill: f"{' and '.join(rising) or 'no error'} rises somewhere as more directions are kept" for fill, rising in falls.items()}
    text = (f"Principal directions of the posterior means of {made['frames']:,} training frames, rank {made['rank']} of {made['latent']}. Fidelity "
            "is the share of singular values (the paper's definition) or of variance (the public code's). The directions that are left out are set "
            f"to their mean, or to noise; errors are over {made['clips']} held-out crops. With the mean, {said['mean']}; with noise, "
            f"{said['noise']}.")
    return html.Section("directions", "Directions", text, ((picture, "Dotted: 0.8, 0.9, 0.95, 0.99."),), table=html.Table(head, tuple(rows)))


def control(run):
    """What moving latents along a direction does to the sound (row R9)."""
    if run.stored is None or not run.stored["control"]:
        return None
    head = ("direction", *(f"{name}{part}" for name, unit in analysis.DESCRIBED.items() for part in ("", f", {unit}")), "")
    rows = []
    for row in run.stored["control"]:
        cells = [row[name][kind] for name in analysis.DESCRIBED for kind in ("correlation", "change")]
        rows.append((str(row["direction"]), *cells, f"standard deviation {row['deviation']:.3g}"))
    strongest = max((abs(row[name]["correlation"] or 0.0), -row["direction"], name) for row in run.stored["control"] for name in analysis.DESCRIBED)
    text = ("Held-out latents are moved along each direction by -2 to 2 standard deviations, and decoded. First Spearman's correlation of the move "
            "and the measured pitch, loudness or spectral centroid of a sound, the mean over sounds; "
            "then the change from the first move to the last.")
    number = ("strongest", strongest[0], f"|correlation|, of {strongest[2]} with direction {-strongest[1]}")
    return html.Section("control", "Control", text, numbers=(number,), table=html.Table(head, tuple(rows)))


def samples(run):
    """New sounds."""
    if not run.samples:
        return None
    shown = sounds.show(sounds.spectrograms([np.stack(run.samples)], run.rate, columns=800)[0])
    columns = 2 if len(run.samples) > 1 else 1
    run.files["samples.png"] = images.png(images.grid(images.resize(shown, columns), columns, 6))
    factor = sounds.gain(*run.samples)
    for i, wave in enumerate(run.samples):
        run.files[f"sample-{i + 1}.wav"] = sounds.wav(wave, run.rate, factor)
    files = html.Sounds("", tuple((f"sample-{i + 1}.wav", f"sample {i + 1}") for i in range(len(run.samples))))
    text = f"Latents drawn, then decoded, none chosen by hand: {run.drawn}. The players share a gain of {factor:.3g}."
    picture = html.Picture("samples.png", "Spectrograms of new sounds")
    return html.Section("samples", "New sounds", text, ((picture, "In the order of the players."),), sounds=(files,))


def curves(run):
    above = {"high_error_db": f"error above {run.high_hz:g} Hz, dB"}
    return training(run, CURVES | above, "Every split measured in the same way, through the posterior means.")


SECTIONS = (listening, latents, directions, control, samples, curves)
