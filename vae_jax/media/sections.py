"""Sections of a report about what a model draws, and what all sections share; `code_sections`, `sound_sections` and `roll_sections` hold the others.

A section draws from one Run, adds its files, and returns a Section, or None where the model or the data lack it.
"""

from typing import Any, Callable, NamedTuple

import numpy as np

from vae_jax.latents import paths, pca, statistics
from vae_jax.media import figures, html, images, measures, piano_rolls, sounds

CELLS, SOUND_CELLS = 20, 11  # a side of the map; of rolls and sounds; of the latter, whose spectrograms are tall, every second row is shown
STEPS = 11  # pictures along a path


class Side(NamedTuple):
    """One split as measured. `decoded` are the pictures made from the posterior means. A sound's picture is its spectrogram."""

    image: np.ndarray  # [n, h, w, c]
    label: np.ndarray | None
    classes: dict[str, np.ndarray]  # every labelled field, `label` first
    condition: np.ndarray | None  # [n, c], what the decoder gets besides the code
    mean: np.ndarray  # [n, d]
    logvar: np.ndarray | None  # None for a plain autoencoder
    metrics: dict  # of the task, by example
    decoded: np.ndarray
    information: tuple[float, float] | None  # I(x; z) in nats and its standard error; None for a plain autoencoder
    audio: np.ndarray | None = None  # [n, samples, 1] int16; None for pictures
    level: np.ndarray | None = None  # [n] of the sounds, and of the decoded ones, where each has its own
    decoded_level: np.ndarray | None = None
    group: np.ndarray | None = None  # [n] name of what an example was cut from, such as a recording


class Audio(NamedTuple):
    """How sounds are seen and made: see(waves [n, samples]) and hear(spectrograms, levels or None) -> waves. range_db: from 0 to 1."""

    see: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
    hear: Callable[[np.ndarray, Any], np.ndarray]
    rate: int
    range_db: float


class Music(NamedTuple):
    """How rolls are seen and heard. cells [n, steps, pitches and drums, 2] are what the model sees, rolls [n, steps, columns] what is played."""

    grid: Any  # rolls.Grid
    threshold: float  # probability from which a cell sounds
    columns: Callable[[np.ndarray], np.ndarray]  # cells -> rolls, or probabilities
    cells: Callable[[np.ndarray], np.ndarray]  # and back
    heard: Callable[[dict], np.ndarray]  # what `sample` made -> rolls
    attributes: dict | None  # attributes.json, if it is there
    plain: Callable[[Any], dict]  # PCA of the training windows -> what needs no training, of the test split (assess_rolls.baselines)


class Run(NamedTuple):
    decode: Callable[[np.ndarray, Any], np.ndarray]  # (codes [n, d], condition or None) -> pictures in 0..1
    sample: Callable[[dict], dict] | None  # request -> {'image/...': pictures, 'audio/mean': waves}
    role: str  # of the held-out side
    train: Side
    held: Side
    pictures: np.ndarray  # all training pictures
    plane: paths.Plane
    pixels: pca.PCA  # of all training pictures, as wide as the code
    codes: pca.PCA  # of the training means
    names: dict[str, tuple[str, ...]]  # of the classes, by field
    history: list[dict]
    frames: dict[int, np.ndarray]  # step -> codes [n, d] of the first n held-out pictures
    files: dict[str, bytes]
    audio: Audio | None = None  # None for pictures
    mixture: Any = None  # the prior, if it is a mixture (models.priors)
    music: Music | None = None  # None for all but rolls
    baselines: dict | None = None  # of rolls, {eval/test/...}: what needs no training

    @property
    def noun(self) -> str:
        """What the model sees."""
        return "spectrogram" if self.audio is not None else "roll" if self.music is not None else "picture"

    def show(self, pictures) -> np.ndarray:
        """Pictures as eyes should see them."""
        if self.music is not None:
            return piano_rolls.show(pictures, self.music.grid)
        return pictures if self.audio is None else sounds.show(pictures)


def mean(values) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(np.mean(values)), statistics.standard_error(values)


def root(squared, scale: float = 1.0) -> tuple[float, float]:
    """Root of a mean square (mean, standard error), by the delta method, times a scale."""
    value, error = float(np.sqrt(squared[0])), squared[1]
    return scale * value, scale * error / (2 * value) if value > 0 else 0.0


def reconstructions(run):
    if run.noun != "picture":
        return None  # sounds and rolls have sheets of their own
    index, width = spread(len(run.held.image), 20), len(run.pixels.components)
    originals = run.held.image[index]
    linear = pca.reconstruct(run.pixels, pca.project(run.pixels, originals)).reshape(originals.shape)
    columns = min(10, len(index))
    pictures = images.bands([originals, run.held.decoded[index], linear], columns)
    picture = sheet(run, "reconstructions", pictures, columns, 3, "Held-out pictures, the model's reconstructions, and PCA's")
    numbers = reconstruction_numbers(run)
    if originals.shape[-1] == 1:
        numbers.append(("overlap", mean(measures.iou(run.held.image, run.held.decoded)), "IoU of pixels above one half"))
    text = (f"Pictures from the {run.role} split, none chosen by hand. Three rows belong together: the original, the model's reconstruction "
            f"from the posterior mean, and what {counted(width, 'principal component')} can do.")
    return html.Section("reconstructions", "Reconstructions", text, ((picture, "Original, model, PCA."),), tuple(numbers))


def reconstruction_numbers(run) -> list[tuple]:
    errors, baseline = mean(measures.mse(run.held.image, run.held.decoded)), mean(pca.errors(run.pixels, run.held.image))
    return [
        ("squared error", errors, f"a pixel, {scale(run)}"),
        (f"of PCA-{len(run.pixels.components)}", baseline, f"same width, fitted on training {run.noun}s"),
        ("ratio", errors[0] / max(baseline[0], 1e-12), "below 1: better than PCA"),
        ("sharpness", ratio(measures.sharpness(run.held.decoded), measures.sharpness(run.held.image)), "Laplacian variance over the originals'"),
    ]


def samples(run):
    if run.sample is None:
        return None
    classes = None if run.train.label is None else np.unique(run.train.label)[:10].astype(np.int32)
    conditional = run.train.condition is not None
    label = classes.repeat(10) if conditional else np.resize(0 if classes is None else classes, 100).astype(np.int32)
    columns = 10 if conditional else 20
    found = run.sample({"temperature": np.ones(len(label), np.float32), "label": label})
    kinds = sorted((k for k in found if k.startswith("image/")), key=lambda k: (k != "image/mean", k))
    if not kinds:
        return None
    captions = {"mean": f"The decoder's expected {run.noun}.", "draw": "Each pixel drawn from the decoder's distribution."}
    pictures = []
    for kind in kinds:
        name = kind.removeprefix("image/")
        drawn = sheet(run, f"samples-{name}", run.show(found[kind]), columns, 0, f"{run.noun.capitalize()}s decoded from draws of the prior")
        pictures.append((drawn, captions.get(name, name)))
    shown, real = found[kinds[0]], run.held.image[spread(len(run.held.image), 200)]
    far, real_far = measures.nearest(shown, run.pictures)[0], measures.nearest(real, run.pictures)[0]
    numbers = (
        (f"nearest training {run.noun}", float(np.median(far)), f"median, RMS over pixels; real held-out {run.noun}s {np.median(real_far):.3g}"),
        ("closest of all", float(far.min()), "0 would be a copy"),
        ("sharpness", ratio(measures.sharpness(shown), measures.sharpness(real)), f"Laplacian variance over that of real {run.noun}s"),
        ("diversity", measures.diversity(shown) / max(measures.diversity(real), 1e-12),
         f"mean distance of two samples over that of two real {run.noun}s"),
    )
    text = f"New {run.noun}s: codes drawn from the prior, then decoded; none chosen by hand."
    text += " One row a class, asked for by its label." if conditional else ""
    if "audio/mean" not in found:
        return html.Section("samples", "Prior samples", text, tuple(pictures), numbers)
    waves = found["audio/mean"][::10] if conditional else found["audio/mean"][:10]
    titles = [figures.class_name(run.names.get("label", ()), c) for c in classes] if conditional else range(1, 11)
    factor = sounds.gain(waves)
    files = tuple((player(run, f"sample-{i + 1}", wave, factor), f"{title}") for i, (title, wave) in enumerate(zip(titles, waves)))
    text += (f" Under the sheet the sound of {'each row' if conditional else 'the first row'}'s first {'one' if conditional else str(len(files))}, "
             f"by Griffin-Lim; the players share a gain of {factor:.3g}.")
    return html.Section("samples", "Prior samples", text, tuple(pictures), numbers, (html.Sounds("", files),))


def manifold(run):
    cells = CELLS if run.noun == "picture" else SOUND_CELLS
    codes = paths.manifold(run.plane, cells)
    decoded = run.decode(codes, first_condition(run, len(codes)))
    shown = decoded if run.audio is None else decoded.reshape(cells, cells, *decoded.shape[1:])[::2].reshape(-1, *decoded.shape[1:])
    picture = sheet(run, "manifold", run.show(shown), cells, 0, f"Decoded {run.noun}s over {run.plane.name}")
    text = f"Decoded codes over {run.plane.name}: the 5th to the 95th percentile of a Gaussian in equal steps of probability." + first_class(run)
    even = paths.neighbour_ratio(decoded, cells)
    return html.Section("manifold", "Map of the latent space", text, ((picture, f"{len(shown)} cells."),),
                        (("neighbour ratio", even, "distance of adjacent cells over that of any two; below 0.5 is smooth"),))


def interpolations(run):
    side, (start, stop) = run.held, _pairs(run.held)
    given = None if side.condition is None else side.condition[start.repeat(STEPS)]
    decoded = {}
    for name, path in {"straight": paths.lerp, "spherical": paths.slerp}.items():
        codes = np.concatenate([path(side.mean[i], side.mean[j], STEPS) for i, j in zip(start, stop)])
        decoded[name] = run.decode(codes, given).reshape(len(start), STEPS, *side.image.shape[1:])
    if side.mean.shape[1] == 1:
        del decoded["spherical"]  # there is no circle in one dimension
    shown = np.concatenate([strips[i] for i in range(min(rows_that_fit(run) // 2, len(start))) for strips in decoded.values()])
    band = len(decoded) if len(decoded) > 1 else 0
    picture = sheet(run, "interpolations", run.show(shown), STEPS, band, f"Paths between pairs of held-out {run.noun}s")
    numbers = []
    for name, strips in decoded.items():
        ratios = np.array([paths.step_ratio(strip) for strip in strips])
        numbers += [(f"{name}: step ratio", float(np.median(ratios)), f"largest over median step, median of {len(ratios)} pairs"),
                    (f"{name}: even paths", float(np.mean(ratios <= 3)), "share of pairs with a ratio up to 3")]
    text = (f"From one held-out {run.noun}'s code to another's. Straight paths pass nearer to the centre, spherical ones keep their distance from it."
            + ("" if given is None else f" The decoder is told the first {run.noun}'s class all along."))
    caption = "Straight path above, spherical below." if len(decoded) == 2 else "Straight paths."
    return html.Section("interpolations", "Interpolation", text, ((picture, caption),), tuple(numbers))


def traversals(run):
    if run.held.mean.shape[1] < 3:
        return None
    chosen = strongest(run)[:rows_that_fit(run)]
    codes = paths.traversals(run.train.mean.mean(0), run.train.mean.std(0), chosen, STEPS)
    decoded = run.decode(codes, first_condition(run, len(codes)))
    picture = sheet(run, "traversals", run.show(decoded), STEPS, 0, f"Decoded {run.noun}s while one dimension moves")
    ends = decoded.reshape(len(chosen), STEPS, -1)[:, [0, -1]]
    change = np.sqrt(((ends[:, 0] - ends[:, 1]) ** 2).mean(1))
    text = ("Each row moves one dimension from -3 to 3 of its standard deviations; the others stay at the mean. "
            f"The {len(chosen)} strongest, strongest first." + first_class(run))
    return html.Section("traversals", "One dimension at a time", text, ((picture, "Rows: " + ", ".join(f"z{i + 1}" for i in chosen) + "."),),
                        tuple((f"z{i + 1}", float(c), "RMS change of a pixel, end to end") for i, c in zip(chosen, change)))


def curves(run):
    titles = {"loss": "loss", "reconstruction": "reconstruction", "kl": "KL"}
    return training(run, titles, "Every split measured in the same way, KL at weight 1, in nats an example. Loss is reconstruction plus KL.", "nats")


def training(run, titles, text, unit=""):
    """One panel for each of the figures {as `evaluate` names them: its title}, of every split where it was logged; unit: of all, else in titles."""
    series, numbers = {}, []
    for name, title in titles.items():
        lines = {role: logged(run.history, f"eval/{role}/{name}") for role in figures.ROLES}
        lines = {role: line for role, line in lines.items() if len(line[0])}
        if any(np.any(values) for _, values in lines.values()):  # a plain autoencoder logs a KL of 0
            series[title] = lines
            numbers += [(f"{title}, {role}", float(values[-1]), f"at step {steps[-1]:,}") for role, (steps, values) in lines.items()]
    if not series:
        return None
    picture = chart(run, "curves", lambda theme: figures.curves(series, theme, unit), f"{', '.join(series)} during training")
    rows = [f"{title},{role},{step},{value!r}" for title, lines in series.items() for role, line in lines.items()
            for step, value in zip(*map(np.ndarray.tolist, line))]
    run.files["curves.csv"] = "\n".join([f"quantity,split,step,{unit or 'value'}", *rows, ""]).encode()
    return html.Section("curves", "Training", f"{text} curves.csv beside this page has the values.",
                        ((picture, ", ".join(series) + "."),), tuple(numbers))


def spread(n, count):
    """Up to `count` row numbers, evenly over n rows, so that data sorted by class shows all of them."""
    return np.unique(np.linspace(0, n - 1, min(n, count)).round().astype(int))


def rows_that_fit(run) -> int:
    """How many rows of STEPS pictures make a sheet that is not too tall to look at: 8, fewer of tall pictures."""
    h, w = run.show(run.held.image[:1]).shape[1:3]
    return max(2, min(8, int(1.5 * STEPS * w / h)))


def scale(run) -> str:
    """What a pixel's 0 and 1 are."""
    if run.audio is not None:
        return f"0 to 1 = {run.audio.range_db:g} dB"
    return "black = 0, white = 1" if run.music is None else "silent = 0, sounding = 1"


def counted(number, noun):
    return f"{number} {noun}{'s' * (number != 1)}"


def ratio(values, reference):
    return float(np.mean(values) / max(np.mean(reference), 1e-12))


def _pairs(side, count=64):
    """Row numbers of up to `count` pairs of examples, of different classes where there are labels."""
    start = np.random.default_rng(0).permutation(len(side.mean))
    stop = np.roll(start, 1)
    if side.label is not None and len(np.unique(side.label)) > 1:
        differ = side.label[start] != side.label[stop]
        start, stop = start[differ], stop[differ]
    return start[:count], stop[:count]


def strength(run):
    """What each dimension carries: its KL to the unit Gaussian where it has one, else the variance of its means."""
    return statistics.kl_per_dimension(run.held.mean, run.held.logvar) if has_kl(run) else run.held.mean.var(0)


def has_kl(run) -> bool:
    """Whether each dimension has a KL of its own: a plain autoencoder has none, and to a mixture there is only the whole code's."""
    return run.held.logvar is not None and run.mixture is None


def strongest(run):
    return np.argsort(-strength(run), kind="stable")


def first_condition(run, count):
    """The first held-out example's condition for every code."""
    return None if run.held.condition is None else run.held.condition[:1].repeat(count, 0)


def first_class(run):
    return "" if run.held.condition is None else f" The decoder is told the class of the first held-out {run.noun} everywhere."


def logged(history, name):
    """Steps and values of one metric where it was logged as a finite number."""
    found = [(line["step"], line[name]) for line in history if isinstance(line.get(name), (int, float)) and np.isfinite(line[name])]
    return np.array([step for step, _ in found]), np.array([value for _, value in found], np.float64)


def chart(run, name, make, alt):
    """A chart drawn for light and for dark pages."""
    for suffix, theme in figures.THEMES.items():
        run.files[f"{name}{suffix}.png"] = make(theme)
    return html.Picture(f"{name}.png", alt, dark=f"{name}-dark.png")


def sheet(run, name, pictures, columns, band, alt):
    """A sheet of pictures, `columns` wide; band as in images.grid."""
    cells = images.resize(pictures, columns)
    gap = max(2, cells.shape[2] // 16)  # pictures that fill their cells would run into each other
    run.files[f"{name}.png"] = images.png(images.grid(cells, columns, gap, band))
    return html.Picture(f"{name}.png", alt)


def player(run, name, wave, factor) -> str:
    """The file of a wave [n], written at a gain."""
    run.files[f"{name}.wav"] = sounds.wav(wave, run.audio.rate, factor)
    return f"{name}.wav"
