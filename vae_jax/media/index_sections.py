"""Sections of a report on codes that are indices of a codebook: copies, maps and use of the codes, what a bit buys, samples, completions, repairs.

A section draws from one Codes, adds its files, and returns a Section, or None where the model or the data lack it.
"""

from typing import NamedTuple

import numpy as np

from vae_jax.media import figures, html, images, measures
from vae_jax.media.sections import chart, mean, sheet, training

SHOWN = 20  # held-out pictures on a sheet
TITLES = {"loss": "loss", "nmse": "squared error over variance", "perplexity": "perplexity", "bits_per_code": "bits a code"}


class Codes(NamedTuple):
    role: str  # of the held-out side
    figures: dict[str, float]  # as `evaluate` names them
    original: np.ndarray  # [n, h, w, c] in 0..1, held out
    made: np.ndarray
    indices: np.ndarray  # [n, h', w', c'] of them
    counts: np.ndarray  # [c', K] how often each code was chosen for them
    colours: np.ndarray  # [m, h', w', 3] maps of the first of them
    samples: tuple[np.ndarray, int, tuple[str, ...]] | None  # pictures from the prior, how many of each class, and their names, () where none is told
    completed: list[np.ndarray] | None  # originals, what is given of them, completions
    repaired: dict[str, tuple] | None  # {kind: (originals, spoilt, repaired)}
    history: list[dict]
    files: dict[str, bytes]


def reconstructions(run):
    """Originals, copies, and the codes between them."""
    n = min(SHOWN, len(run.colours))
    columns = min(10, n)
    scale = run.original.shape[1] // run.colours.shape[1]
    maps = run.colours[:n].repeat(scale, 1).repeat(scale, 2)
    rgb = [np.broadcast_to(x[:n], (*x[:n].shape[:3], 3)) for x in (run.original, run.made)]
    picture = sheet(run, "reconstructions", images.bands([rgb[0], rgb[1], maps], columns), columns, 3,
                    "Held-out pictures, their copies and their codes")
    squared = measures.mse(run.original, run.made)
    numbers = (("squared error", mean(squared), "a pixel, black to white"), ("PSNR", mean(-10 * np.log10(squared + 1e-12)), "dB"),
               ("sharpness", float(measures.sharpness(run.made).mean() / measures.sharpness(run.original).mean()),
                "Laplacian variance over the originals'"))
    text = (f"Pictures from the {run.role} split, evenly spaced, none chosen by hand. Three rows belong together: the original, what comes back from "
            "its codes, and the codes, coloured by the three principal directions of what they stand for.")
    return html.Section("reconstructions", "Reconstructions", text, ((picture, "Original, copy, codes."),), numbers)


def codebook(run):
    """How evenly the codes are used."""
    share = np.sort(run.counts / run.counts.sum(-1, keepdims=True), -1)[:, ::-1].mean(0)
    draw = lambda theme: figures.bars(share * len(share), None, "times an equal share", "code, most used first", theme=theme)
    picture = chart(run, "codebook", draw, "Use of the codes")
    numbers = (("perplexity", run.figures[f"eval/{run.role}/perplexity"], f"of {run.counts.shape[1]}, over {len(run.indices):,} held-out pictures"),
               ("used", f"{(run.counts > 0).sum(-1).mean():.0f} of {run.counts.shape[1]}", f"in {len(run.indices):,} held-out pictures"),
               ("a half of all positions", int(np.searchsorted(np.cumsum(share), 0.5)) + 1, "take so many codes"))
    text = f"How often each code stands in the maps of {len(run.indices):,} held-out pictures. At 1 all codes are used equally often."
    return html.Section("codebook", "Codebook", text, ((picture, "Codes, most used first."),), numbers)


def rates(run):
    """What a picture costs under each prior, beside what comes back."""
    values, codes = float(np.prod(run.original.shape[1:])), float(np.prod(run.indices.shape[1:]))
    rows = []
    for name, title in (("uniform_bits_per_code", "equal probabilities"), ("empirical_bits_per_code", "frequencies of the split"),
                        ("bits_per_code", "learned prior")):
        bits = run.figures.get(f"eval/{run.role}/{name}")
        if bits is not None:
            rows.append((title, bits, codes * bits, codes * bits / values, 8 * values / (codes * bits), ""))
    text = (f"A held-out picture is {8 * values:,.0f} bits as it is stored; its {codes:,.0f} codes cost what the prior over them says. All come back "
            f"with the same PSNR, {run.figures[f'eval/{run.role}/psnr']:.2f} dB. Codebook and networks are not counted.")
    head = ("codes by", "bits a code", "bits a picture", "bits a value", "ratio", "")
    return html.Section("rates", "Rate and distortion", text, table=html.Table(head, tuple(rows)))


def samples(run):
    """New pictures, a row a class."""
    if run.samples is None:
        return None
    pictures, each, names = run.samples
    picture = sheet(run, "samples", pictures, each, 0, "Pictures whose codes were drawn from the prior")
    diversity = measures.diversity(pictures) / measures.diversity(run.original)
    numbers = (("diversity", diversity, "mean distance of two, over that of held-out pictures"),)
    rows = ", ".join(figures.class_name(names, i) for i in range(len(pictures) // each))
    text = "Codes drawn position after position from the learned prior at temperature 1, then decoded; none chosen by hand."
    return html.Section("samples", "New pictures", text, ((picture, f"A row a class: {rows}." if names else "In the order of drawing."),), numbers)


def completions(run):
    """The lower half of held-out pictures drawn anew."""
    if run.completed is None:
        return None
    columns = len(run.completed[0])
    picture = sheet(run, "completions", images.bands(run.completed, columns), columns, len(run.completed),
                    "Held-out pictures completed from their upper half")
    text = "The codes of the upper half are given; those below are drawn to fit, three times."
    return html.Section("completions", "Completions", text, ((picture, "Original, what is given, completions."),))


def repairs(run):
    """What the model makes of spoilt pictures."""
    if run.repaired is None:
        return None
    pictures, rows = [], []
    for kind, (original, spoilt, made) in run.repaired.items():
        columns = len(original)
        picture = sheet(run, f"repair-{kind}", images.bands([spoilt, made, original], columns), columns, 3,
                        f"Pictures repaired: {kind.replace('_', ' ')}")
        pictures.append((picture, f"{kind.replace('_', ' ')}: spoilt, repaired, original."))
        before, after = (-10 * np.log10(measures.mse(original, x).mean()) for x in (spoilt, made))
        rows.append((kind.replace("_", " "), float(before), float(after), float(after - before), ""))
    head = ("", "trivial repair, dB", "model, dB", "gain, dB", "")
    text = ("The trivial repair is the spoilt picture itself: as noisy as it is, enlarged by cubic interpolation, grey, or filled with the mean of "
            f"its other pixels. PSNR of {len(original)} held-out pictures here; `evaluate --measure=repair:4` measures the whole split.")
    return html.Section("repairs", "Repairs", text, tuple(pictures), table=html.Table(head, tuple(rows)))


def curves(run):
    return training(run, TITLES, "Every split measured in the same way.")


SECTIONS = (reconstructions, codebook, rates, samples, completions, repairs, curves)
