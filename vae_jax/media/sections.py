"""The sections of a report. Each draws from one Run, adds its files, and returns a Section, or None where the model or the data lack it."""

from typing import Any, Callable, NamedTuple

import numpy as np

from vae_jax.latents import paths, pca, probes, statistics
from vae_jax.media import figures, html, images, measures

CELLS = 20  # a side of the map
STEPS = 11  # pictures along a path


class Side(NamedTuple):
    """One split as measured. `decoded` are the pictures made from the posterior means."""

    image: np.ndarray  # [n, h, w, c]
    label: np.ndarray | None
    condition: np.ndarray | None  # [n, c], what the decoder gets besides the code
    mean: np.ndarray  # [n, d]
    logvar: np.ndarray | None  # None for a plain autoencoder
    metrics: dict  # of the task, by example
    decoded: np.ndarray
    information: tuple[float, float] | None  # I(x; z) in nats and its standard error; None for a plain autoencoder


class Run(NamedTuple):
    decode: Callable[[np.ndarray, Any], np.ndarray]  # (codes [n, d], condition or None) -> pictures in 0..1
    sample: Callable[[dict], dict] | None  # request -> {'image/...': pictures}
    role: str  # of the held-out side
    train: Side
    held: Side
    pictures: np.ndarray  # all training pictures
    plane: paths.Plane
    pixels: pca.PCA  # of all training pictures, as wide as the code
    codes: pca.PCA  # of the training means
    names: tuple[str, ...]  # of the classes
    history: list[dict]
    frames: dict[int, np.ndarray]  # step -> codes [n, d] of the first n held-out pictures
    files: dict[str, bytes]


def mean(values) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(np.mean(values)), statistics.standard_error(values)


def reconstructions(run):
    index, width = _spread(len(run.held.image), 20), len(run.pixels.components)
    originals = run.held.image[index]
    linear = pca.reconstruct(run.pixels, pca.project(run.pixels, originals)).reshape(originals.shape)
    columns = min(10, len(index))
    pictures = images.bands([originals, run.held.decoded[index], linear], columns)
    picture = _sheet(run, "reconstructions", pictures, columns, 3, "Held-out pictures, the model's reconstructions, and PCA's")
    errors, baseline = mean(measures.mse(run.held.image, run.held.decoded)), mean(pca.errors(run.pixels, run.held.image))
    numbers = [
        ("squared error", errors, "a pixel, black = 0, white = 1"),
        (f"of PCA-{width}", baseline, "same width, fitted on training pictures"),
        ("ratio", errors[0] / max(baseline[0], 1e-12), "below 1: better than PCA"),
        ("sharpness", _ratio(measures.sharpness(run.held.decoded), measures.sharpness(run.held.image)), "Laplacian variance over the originals'"),
    ]
    if originals.shape[-1] == 1:
        numbers.append(("overlap", mean(measures.iou(run.held.image, run.held.decoded)), "IoU of pixels above one half"))
    text = (f"Pictures from the {run.role} split, none chosen by hand. Three rows belong together: the original, the model's reconstruction "
            f"from the posterior mean, and what {_count(width, 'principal component')} can do.")
    return html.Section("reconstructions", "Reconstructions", text, ((picture, "Original, model, PCA."),), tuple(numbers))


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
    captions = {"mean": "The decoder's expected picture.", "draw": "Each pixel drawn from the decoder's distribution."}
    pictures = []
    for kind in kinds:
        name = kind.removeprefix("image/")
        sheet = _sheet(run, f"samples-{name}", found[kind], columns, 0, "Pictures decoded from draws of the prior")
        pictures.append((sheet, captions.get(name, name)))
    shown, real = found[kinds[0]], run.held.image[_spread(len(run.held.image), 200)]
    far, real_far = measures.nearest(shown, run.pictures)[0], measures.nearest(real, run.pictures)[0]
    numbers = (
        ("nearest training picture", float(np.median(far)), f"median, RMS over pixels; real held-out pictures {np.median(real_far):.3g}"),
        ("closest of all", float(far.min()), "0 would be a copy"),
        ("sharpness", _ratio(measures.sharpness(shown), measures.sharpness(real)), "Laplacian variance over that of real pictures"),
        ("diversity", _diversity(shown) / max(_diversity(real), 1e-12), "mean distance of two samples over that of two real pictures"),
    )
    text = "New pictures: codes drawn from the prior, then decoded; none chosen by hand."
    text += " One row a class, asked for by its label." if conditional else ""
    return html.Section("samples", "Prior samples", text, tuple(pictures), numbers)


def manifold(run):
    codes = paths.manifold(run.plane, CELLS)
    decoded = run.decode(codes, _first_condition(run, len(codes)))
    picture = _sheet(run, "manifold", decoded, CELLS, 0, f"Decoded pictures over {run.plane.name}")
    ratio = paths.neighbour_ratio(decoded, CELLS)
    text = f"Decoded codes over {run.plane.name}: the 5th to the 95th percentile of a Gaussian in equal steps of probability." + _first_class(run)
    return html.Section("manifold", "Map of the latent space", text, ((picture, f"{len(codes)} cells."),),
                        (("neighbour ratio", ratio, "distance of adjacent cells over that of any two; below 0.5 is smooth"),))


def interpolations(run):
    side, (start, stop) = run.held, _pairs(run.held)
    given = None if side.condition is None else side.condition[start.repeat(STEPS)]
    decoded = {}
    for name, path in {"straight": paths.lerp, "spherical": paths.slerp}.items():
        codes = np.concatenate([path(side.mean[i], side.mean[j], STEPS) for i, j in zip(start, stop)])
        decoded[name] = run.decode(codes, given).reshape(len(start), STEPS, *side.image.shape[1:])
    if side.mean.shape[1] == 1:
        del decoded["spherical"]  # there is no circle in one dimension
    shown = np.concatenate([strips[i] for i in range(min(4, len(start))) for strips in decoded.values()])
    picture = _sheet(run, "interpolations", shown, STEPS, len(decoded) if len(decoded) > 1 else 0, "Paths between pairs of held-out pictures")
    numbers = []
    for name, strips in decoded.items():
        ratios = np.array([paths.step_ratio(strip) for strip in strips])
        numbers += [(f"{name}: step ratio", float(np.median(ratios)), f"largest over median step, median of {len(ratios)} pairs"),
                    (f"{name}: even paths", float(np.mean(ratios <= 3)), "share of pairs with a ratio up to 3")]
    text = ("From one held-out picture's code to another's. Straight paths pass nearer to the centre, spherical ones keep their distance from it."
            + ("" if given is None else " The decoder is told the first picture's class all along."))
    caption = "Straight path above, spherical below." if len(decoded) == 2 else "Straight paths."
    return html.Section("interpolations", "Interpolation", text, ((picture, caption),), tuple(numbers))


def scatter(run):
    side, d = run.held, run.held.mean.shape[1]
    shares = pca.explained(run.codes)
    flat, axes = side.mean, ("z1", "z2")
    if d > 2:
        flat = pca.project(run.codes, side.mean, 2)
        axes = tuple(f"principal direction {i + 1} ({share:.0%} of variance)" for i, share in enumerate(shares[:2]))
    order = np.random.default_rng(0).permutation(len(flat))[:5000]
    label = None if side.label is None else side.label[order]
    picture = _chart(run, "scatter", lambda theme: figures.scatter(flat[order], label, run.names, axes, theme=theme), "Codes of held-out pictures")
    numbers = [("variance shown", float(shares[:2].sum()), "share on the two directions drawn")] if d > 2 else []
    if side.label is not None and len(np.unique(run.train.label)) > 1:
        counts = np.unique(side.label, return_counts=True)[1]
        probe = probes.linear_probe(run.train.mean, run.train.label, side.mean, side.label)[0]
        neighbours = probes.knn_accuracy(run.train.mean, run.train.label, side.mean, side.label)
        numbers += [("linear probe", probe, f"held-out accuracy of logistic regression; the commonest class alone {counts.max() / counts.sum():.3g}"),
                    ("5 nearest neighbours", neighbours, "held-out accuracy"),
                    ("silhouette", probes.silhouette(side.mean, side.label), f"of {len(counts)} classes as clusters, -1 to 1")]
    text = "Posterior means of held-out pictures" + ("." if d <= 2 else ", seen on the two principal directions of the training means.")
    caption = f"{len(order):,} codes" + ("." if label is None else ", coloured by class.")
    return html.Section("scatter", "Codes", text, ((picture, caption),), tuple(numbers))


def training(run):
    """Codes of the same held-out pictures at each kept checkpoint, as an animation (row M3)."""
    if len(run.frames) < 2 or run.held.label is None:
        return None
    n, d = len(next(iter(run.frames.values()))), run.held.mean.shape[1]
    label = run.held.label[:n]
    flat = {step: code if d <= 2 else pca.project(run.codes, code, 2) for step, code in run.frames.items()}
    limit = float(np.ceil(np.quantile(np.abs(np.concatenate(list(flat.values()))), 0.999)))
    run.files["training.gif"] = figures.animation({f"step {step:,}": code for step, code in flat.items()}, label, run.names, limit)
    half = n // 2
    scores = {step: probes.knn_accuracy(code[:half], label[:half], code[half:], label[half:]) for step, code in run.frames.items()}
    steps = list(scores)
    numbers = [(f"5 nearest neighbours, step {step:,}", scores[step], "accuracy on one half of these pictures by the other")
               for step in (steps[0], steps[len(steps) // 2], steps[-1])]
    caption = f"{n:,} held-out codes at {len(steps)} checkpoints."
    text = "The same codes while the model learned."
    return html.Section("training", "Codes during training", text, ((html.Picture("training.gif", "Codes during training"), caption),), tuple(numbers))


def aggregate(run):
    side, d = run.held, run.held.mean.shape[1]
    z = side.mean if side.logvar is None else statistics.draw(side.mean, side.logvar)
    order = np.sort(_strongest(run)[:8])
    names = [f"z{i + 1}" for i in order]
    picture = _chart(run, "aggregate", lambda theme: figures.histograms(z[:, order], names, theme=theme), "A histogram of each axis of the code")
    found = statistics.moments(z)
    if d <= 2:
        numbers = [(f"{name} of z{i + 1}", float(found[name][i]), "") for i in range(d) for name in found]
    else:
        numbers = [("largest |mean|", float(np.abs(found["mean"]).max()), f"of {d} axes; the unit Gaussian has 0"),
                   ("smallest sd", float(found["sd"].min()), "the unit Gaussian has 1"), ("largest sd", float(found["sd"].max()), ""),
                   ("largest |skew|", float(np.abs(found["skew"]).max()), "the unit Gaussian has 0"),
                   ("largest |kurtosis|", float(np.abs(found["kurtosis"]).max()), "excess; the unit Gaussian has 0")]
    text = ("One draw from the posterior of every held-out picture: together they should look like the prior." if side.logvar is not None
            else "The codes of held-out pictures; a plain autoencoder has no prior they should look like.")
    return html.Section("aggregate", "Aggregate posterior", text + (f" The {len(order)} strongest of {d} axes." if d > 8 else ""),
                        ((picture, "Dotted: the unit normal."),), tuple(numbers))


def dimensions(run):
    side, active, values = run.held, statistics.active_units(run.held.mean), _strength(run)
    numbers = [("active units", f"{active.sum()} of {len(active)}", "variance of the posterior mean above 0.01")]
    if side.logvar is None:
        title, unit, text = "Variance by dimension", "variance of the code", "A plain autoencoder has no KL: how much each dimension varies."
    else:
        title, unit = "KL by dimension", "nats"
        text = "How far each dimension's posterior is from the unit Gaussian. A dimension near 0 says nothing about the picture."
        numbers += [("sum", float(values.sum()), "nats to the unit Gaussian"), ("information", side.information, "I(x; z) in nats")]
    picture = _chart(run, "dimensions", lambda theme: figures.bars(values, active, unit, theme=theme), title)
    return html.Section("dimensions", title, text, ((picture, "Strongest first."),), tuple(numbers))


def fidelity(run):
    d = len(run.codes.components)
    if d < 3:
        return None
    variance, singular = pca.fidelity(run.codes), pca.fidelity(run.codes, "singular")
    curves = {"explained variance (squared singular values)": variance, "singular values": singular}
    picture = _chart(run, "fidelity", lambda theme: figures.fidelity(curves, theme=theme), "Fidelity against directions kept")
    index = _spread(len(run.held.mean), 500)
    given = None if run.held.condition is None else run.held.condition[index]
    numbers = [("rank", pca.rank(run.codes), f"of {d}")]
    for level in (0.8, 0.9, 0.95, 0.99):
        kept = pca.dimensions(variance, level)
        code = pca.reconstruct(run.codes, pca.project(run.codes, run.held.mean[index], kept))
        error = float(measures.mse(run.held.image[index], run.decode(code, given)).mean())
        numbers.append((f"directions for {level:g}", kept, f"squared error {error:.4g}; by singular values {pca.dimensions(singular, level)}"))
    text = "How many principal directions of the posterior means hold a share of their variance. Directions left out are set to the mean."
    return html.Section("fidelity", "Fidelity", text, ((picture, "Dotted: 0.8, 0.9, 0.95, 0.99."),), tuple(numbers))


def traversals(run):
    if run.held.mean.shape[1] < 3:
        return None
    chosen = _strongest(run)[:8]
    codes = paths.traversals(run.train.mean.mean(0), run.train.mean.std(0), chosen, STEPS)
    decoded = run.decode(codes, _first_condition(run, len(codes)))
    picture = _sheet(run, "traversals", decoded, STEPS, 0, "Decoded pictures while one dimension moves")
    ends = decoded.reshape(len(chosen), STEPS, -1)[:, [0, -1]]
    change = np.sqrt(((ends[:, 0] - ends[:, 1]) ** 2).mean(1))
    text = ("Each row moves one dimension from -3 to 3 of its standard deviations; the others stay at the mean. "
            f"The {len(chosen)} strongest, strongest first." + _first_class(run))
    return html.Section("traversals", "One dimension at a time", text, ((picture, "Rows: " + ", ".join(f"z{i + 1}" for i in chosen) + "."),),
                        tuple((f"z{i + 1}", float(c), "RMS change of a pixel, end to end") for i, c in zip(chosen, change)))


def curves(run):
    series, numbers = {}, []
    for name, title in (("loss", "loss"), ("reconstruction", "reconstruction"), ("kl", "KL")):
        lines = {role: _series(run.history, f"eval/{role}/{name}") for role in figures.ROLES}
        lines = {role: line for role, line in lines.items() if len(line[0])}
        if any(np.any(values) for _, values in lines.values()):  # a plain autoencoder logs a KL of 0
            series[title] = lines
            numbers += [(f"{title}, {role}", float(values[-1]), f"at step {steps[-1]:,}") for role, (steps, values) in lines.items()]
    if not series:
        return None
    picture = _chart(run, "curves", lambda theme: figures.curves(series, theme), "Loss, reconstruction and KL during training")
    rows = [f"{title},{role},{step},{value!r}" for title, lines in series.items() for role, line in lines.items() for step, value in zip(*map(np.ndarray.tolist, line))]
    run.files["curves.csv"] = "\n".join(["quantity,split,step,nats", *rows, ""]).encode()
    text = "Every split measured in the same way, KL at weight 1, in nats an example. Loss is reconstruction plus KL. curves.csv beside this page has the values."
    return html.Section("curves", "Training", text, ((picture, ", ".join(series) + "."),), tuple(numbers))


ALL = (reconstructions, samples, manifold, interpolations, scatter, training, aggregate, dimensions, fidelity, traversals, curves)


def _spread(n, count):
    """Up to `count` row numbers, evenly over n rows, so that data sorted by class shows all of them."""
    return np.unique(np.linspace(0, n - 1, min(n, count)).round().astype(int))


def _count(number, noun):
    return f"{number} {noun}{'s' * (number != 1)}"


def _ratio(values, reference):
    return float(np.mean(values) / max(np.mean(reference), 1e-12))


def _diversity(pictures):
    """Mean RMS distance of two of the pictures, over neighbours in a fixed random order."""
    flat = measures.unit(pictures).reshape(len(pictures), -1)[np.random.default_rng(0).permutation(len(pictures))]
    return float(np.sqrt(((flat - np.roll(flat, 1, 0)) ** 2).mean(1)).mean())


def _pairs(side, count=64):
    """Row numbers of up to `count` pairs of examples, of different classes where there are labels."""
    start = np.random.default_rng(0).permutation(len(side.mean))
    stop = np.roll(start, 1)
    if side.label is not None and len(np.unique(side.label)) > 1:
        differ = side.label[start] != side.label[stop]
        start, stop = start[differ], stop[differ]
    return start[:count], stop[:count]


def _strength(run):
    """What each dimension carries: KL to the unit Gaussian, or the variance of a plain autoencoder's code."""
    return run.held.mean.var(0) if run.held.logvar is None else statistics.kl_per_dimension(run.held.mean, run.held.logvar)


def _strongest(run):
    return np.argsort(-_strength(run), kind="stable")


def _first_condition(run, count):
    """The first held-out example's condition for every code."""
    return None if run.held.condition is None else run.held.condition[:1].repeat(count, 0)


def _first_class(run):
    return "" if run.held.condition is None else " The decoder is told the class of the first held-out picture everywhere."


def _series(history, name):
    """Steps and values of one metric where it was logged as a finite number."""
    found = [(line["step"], line[name]) for line in history if isinstance(line.get(name), (int, float)) and np.isfinite(line[name])]
    return np.array([step for step, _ in found]), np.array([value for _, value in found], np.float64)


def _chart(run, name, make, alt):
    """A chart drawn for light and for dark pages."""
    for suffix, theme in figures.THEMES.items():
        run.files[f"{name}{suffix}.png"] = make(theme)
    return html.Picture(f"{name}.png", alt, dark=f"{name}-dark.png")


def _sheet(run, name, pictures, columns, band, alt):
    """A sheet of pictures, `columns` wide; band as in images.grid."""
    cells = images.resize(pictures, columns)
    gap = max(2, cells.shape[2] // 16)  # pictures that fill their cells would run into each other
    run.files[f"{name}.png"] = images.png(images.grid(cells, columns, gap, band))
    return html.Picture(f"{name}.png", alt)
