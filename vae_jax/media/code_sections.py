"""Sections of a report about the codes: where they lie, what they give away, what each dimension and each component of the prior holds."""

import functools
import math

import jax
import numpy as np
from sklearn.manifold import TSNE

from vae_jax.latents import pca, probes, statistics
from vae_jax.media import figures, html, measures
from vae_jax.media.sections import chart, first_class, first_condition, has_kl, sheet, spread, strength, strongest
from vae_jax.models import priors

EMBEDDED = 2000  # codes in a t-SNE picture
COMPONENTS = 12  # of the prior, on the sheet


def scatter(run):
    side, d = run.held, run.held.mean.shape[1]
    shares = pca.explained(run.codes)
    flat, axes = side.mean, ("z1", "z2")
    if d > 2:
        flat = pca.project(run.codes, side.mean, 2)
        axes = tuple(f"principal direction {i + 1} ({share:.0%} of variance)" for i, share in enumerate(shares[:2]))
    order = np.random.default_rng(0).permutation(len(flat))[:5000]
    alt, text = f"Codes of held-out {run.noun}s", f"Posterior means of held-out {run.noun}s"
    pictures = _coloured(run, "scatter", flat[order], order, axes, alt, f"{len(order):,} codes")
    parts = " + ".join(f"{share:.3g}" for share in shares[:2])
    numbers = [("variance shown", float(shares[:2].sum()), f"share on the two directions drawn: {parts}")] if d > 2 else []
    text += "." if d <= 2 else ", seen on the two principal directions of the training means."
    if d > 2 and side.classes and len(side.mean) >= 10:
        order = order[:EMBEDDED]
        near = min(30.0, (len(order) - 1) / 3)
        embedded = TSNE(2, perplexity=near, init="pca", random_state=0).fit_transform(side.mean[order].astype(np.float32))
        pictures += _coloured(run, "tsne", embedded, order, ("t-SNE 1", "t-SNE 2"), f"{alt}, t-SNE",
                              f"t-SNE of {len(order):,} codes (perplexity {near:.3g}: it shows who is near to whom, its distances mean nothing)")
    for name, label in side.classes.items():
        numbers += _probed(run, name, label, f", {name}" if len(side.classes) > 1 else "")
    return html.Section("scatter", "Codes", text, tuple(pictures), tuple(numbers))


def _coloured(run, name, flat, rows, axes, alt, caption):
    """The same points, of these held-out rows, once for every labelled field."""
    found = []
    for field, label in (run.held.classes or {"": None}).items():
        colour, by = (None, "") if label is None else (label[rows], f", coloured by {'class' if field == 'label' else field}")
        draw = functools.partial(figures.scatter, flat, colour, run.names.get(field, ()), axes, 0.0, "")
        found.append((chart(run, name + (f"-{field}" if field not in ("", "label") else ""), draw, alt), f"{caption}{by}."))
    return found


def _probed(run, name, label, suffix):
    """What the code says of one labelled field."""
    train = run.train.classes[name]
    if len(np.unique(train)) < 2 or not np.isin(label, train).any():  # of speakers who were never heard, a probe knows no name
        return []
    counts = np.unique(label, return_counts=True)[1]
    probe = probes.linear_probe(run.train.mean, train, run.held.mean, label)[0]
    neighbours = probes.knn_accuracy(run.train.mean, train, run.held.mean, label)
    commonest = counts.max() / counts.sum()
    return [(f"linear probe{suffix}", probe, f"held-out accuracy of logistic regression; the commonest class alone {commonest:.3g}"),
            *_by_group(run, name, suffix),
            (f"5 nearest neighbours{suffix}", neighbours, "held-out accuracy"),
            (f"silhouette{suffix}", probes.silhouette(run.held.mean, label), f"of {len(counts)} classes as clusters, -1 to 1")]


def _by_group(run, name, suffix):
    """The probe with every group (recording, speaker, family of pictures) held out once, where these have many examples each: the held-out split
    alone has few, and one odd one weighs much."""
    if run.held.group is None or run.held is run.train:
        return []
    code, label, group = (np.concatenate(pair) for pair in zip(*((s.mean, s.classes[name], s.group) for s in (run.train, run.held))))
    groups = len(np.unique(group))
    accuracy = probes.grouped_probe(code, label, group) if groups < len(group) / 4 else math.nan
    text = f"5 folds over the {groups} groups of both splits, none in two folds; the model was trained on those of one"
    return [] if math.isnan(accuracy) else [(f"linear probe by group{suffix}", accuracy, text)]


def mixture(run):
    """What each component of a mixture prior is used for, and what it holds."""
    if run.mixture is None:
        return None
    weight, _, _ = map(np.asarray, priors.components(run.mixture))
    share = priors.shares(run.mixture, run.held.mean if run.held.logvar is None else statistics.draw(run.held.mean, run.held.logvar))
    shown = np.argsort(-share, kind="stable")[:COMPONENTS]
    each = 10 if run.audio is None else 20  # spectrograms are tall
    code = priors.draw(run.mixture, jax.random.key(0), shown.repeat(each))
    decoded = run.decode(np.asarray(code), first_condition(run, each * len(shown)))
    drawn = sheet(run, "components", run.show(decoded), each, 0, "Decoded draws from each component of the prior, one row a component")
    rows = "; ".join(f"{k + 1}: weight {weight[k]:.3f}, share {share[k]:.3f}" for k in shown)
    used = share > priors.USED
    bars = chart(run, "shares", lambda theme: figures.bars(share, used, "share of held-out codes", "component, most used first",
                                                           ("used", "at most 1 %"), theme), "How much of the held-out codes each component explains")
    numbers = (("components used", f"{used.sum()} of {len(share)}", "that explain more than 1 % of the held-out codes"),
               ("least share", float(share.min()), "mean responsibility for held-out codes"), ("largest share", float(share.max()), ""),
               ("least weight", float(weight.min()), "in the prior"),
               ("effective number", float(np.exp(-(share * np.log(np.maximum(share, 1e-12))).sum())), "exponential of the entropy of the shares"))
    which = f", the {len(shown)} most used of {len(share)}" if len(shown) < len(share) else ""
    text = (f"Draws from each component of the prior, decoded, one row a component{which}. A component's share is its mean "
            "responsibility for one draw from the posterior of every held-out example." + first_class(run))
    return html.Section("components", "Components of the prior", text, ((drawn, f"Rows by share, largest first. {rows}."), (bars, "")), numbers)


def training(run):
    """Codes of the same held-out examples at each kept checkpoint, as an animation (row M3)."""
    if len(run.frames) < 2 or run.held.label is None:
        return None
    n, d = min(len(run.held.mean), *map(len, run.frames.values())), run.held.mean.shape[1]
    frames = {step: code[:n] for step, code in run.frames.items()}
    label = run.held.label[:n]
    flat = {step: code if d <= 2 else pca.project(run.codes, code, 2) for step, code in frames.items()}
    limit = float(np.ceil(np.quantile(np.abs(np.concatenate(list(flat.values()))), 0.999)))
    run.files["training.gif"] = figures.animation({f"step {step:,}": code for step, code in flat.items()}, label, run.names.get("label", ()), limit)
    # Sounds lie by recording in their split: its halves would be of different classes.
    one, other = (slice(n // 2), slice(n // 2, None)) if run.audio is None else (slice(0, None, 2), slice(1, None, 2))
    scores = {step: probes.knn_accuracy(code[one], label[one], code[other], label[other]) for step, code in frames.items()}
    steps = list(scores)
    numbers = [(f"5 nearest neighbours, step {step:,}", scores[step], f"accuracy on one half of these {run.noun}s by the other")
               for step in (steps[0], steps[len(steps) // 2], steps[-1])]
    picture, caption = html.Picture("training.gif", "Codes during training"), f"{n:,} held-out codes at {len(steps)} checkpoints."
    return html.Section("training", "Codes during training", "The same codes while the model learned.", ((picture, caption),), tuple(numbers))


def aggregate(run):
    side, d = run.held, run.held.mean.shape[1]
    z = side.mean if side.logvar is None else statistics.draw(side.mean, side.logvar)
    order = np.sort(strongest(run)[:8])
    names = [f"z{i + 1}" for i in order]
    picture = chart(run, "aggregate", lambda theme: figures.histograms(z[:, order], names, theme=theme), "A histogram of each axis of the code")
    found = statistics.moments(z)
    if d <= 2:
        numbers = [(f"{name} of z{i + 1}", float(found[name][i]), "") for i in range(d) for name in found]
    else:
        numbers = [("largest |mean|", float(np.abs(found["mean"]).max()), f"of {d} axes; the unit Gaussian has 0"),
                   ("smallest sd", float(found["sd"].min()), "the unit Gaussian has 1"), ("largest sd", float(found["sd"].max()), ""),
                   ("largest |skew|", float(np.abs(found["skew"]).max()), "the unit Gaussian has 0"),
                   ("largest |kurtosis|", float(np.abs(found["kurtosis"]).max()), "excess; the unit Gaussian has 0")]
    text = (f"One draw from the posterior of every held-out {run.noun}: together they should look like the prior." if side.logvar is not None
            else f"The codes of held-out {run.noun}s; a plain autoencoder has no prior they should look like.")
    return html.Section("aggregate", "Aggregate posterior", text + (f" The {len(order)} strongest of {d} axes." if d > 8 else ""),
                        ((picture, f"Dotted: the unit normal{', which is not the prior here' * (run.mixture is not None)}."),), tuple(numbers))


def dimensions(run):
    side, active, values = run.held, statistics.active_units(run.held.mean), strength(run)
    numbers = [("active units", f"{active.sum()} of {len(active)}", "variance of the posterior mean above 0.01")]
    if not has_kl(run):
        title, unit, text = "Variance by dimension", "variance of the mean code", "How much each dimension varies; it has no KL of its own here."
    else:
        title, unit = "KL by dimension", "nats"
        text = f"How far each dimension's posterior is from the unit Gaussian. A dimension near 0 says nothing about the {run.noun}."
        numbers += [("sum", float(values.sum()), "nats to the unit Gaussian"), ("information", side.information, "I(x; z) in nats")]
    picture = chart(run, "dimensions", lambda theme: figures.bars(values, active, unit, theme=theme), title)
    return html.Section("dimensions", title, text, ((picture, "Strongest first."),), tuple(numbers))


def fidelity(run):
    d = len(run.codes.components)
    if d < 3:
        return None
    variance, singular = pca.fidelity(run.codes), pca.fidelity(run.codes, "singular")
    curves = {"explained variance (squared singular values)": variance, "singular values": singular}
    picture = chart(run, "fidelity", lambda theme: figures.fidelity(curves, theme=theme), "Fidelity against directions kept")
    index = spread(len(run.held.mean), 500)
    given = None if run.held.condition is None else run.held.condition[index]
    numbers = [("rank", pca.rank(run.codes), f"of {d}")]
    for level in (0.8, 0.9, 0.95, 0.99):
        kept = pca.dimensions(variance, level)
        code = pca.reconstruct(run.codes, pca.project(run.codes, run.held.mean[index], kept))
        error = float(measures.mse(run.held.image[index], run.decode(code, given)).mean())
        numbers.append((f"directions for {level:g}", kept, f"squared error {error:.4g}; by singular values {pca.dimensions(singular, level)}"))
    text = "How many principal directions of the posterior means hold a share of their variance. Directions left out are set to the mean."
    return html.Section("fidelity", "Fidelity", text, ((picture, "Dotted: 0.8, 0.9, 0.95, 0.99."),), tuple(numbers))
