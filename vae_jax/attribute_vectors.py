"""Directions of the code along which music becomes denser, higher, or more major, and what they do to held-out windows, measured.

A vector is the mean code of the fifth of the training windows that have most of an attribute less that of the fifth that have least (Roberts et al.
2018, MusicVAE, section 4.4, with quartiles there), so an amount of 1 goes from the least to the most. From minor to major is another way from every
tonic, and over all keys these ways cancel out: `mode` has a vector for each tonic, fitted on windows with that tonic alone.
"""

import json
import zipfile
import zlib

import numpy as np

from vae_jax import evaluate, rolls, scores, session
from vae_jax.latents import statistics

NAMES = ("density", "register", "mode")  # of rolls.attributes
AMOUNTS = (-1.0, 0.0, 1.0)
FITTED, MEASURED = 20_000, 500  # windows, at most
LEAST = 10  # windows of a fifth: with fewer there is no vector
FIFTH = 0.2


def fit(run, source, interrupted=lambda: False) -> dict[str, np.ndarray] | None:
    """{attribute: vectors [1, d], of mode [12, d], by tonic} of a split's windows; an attribute that hardly varies over them has none, and 0 is the
    vector of a tonic with too few of them. None if interrupted."""
    encode = lambda params, variables, batch: {"mean": run.task.encode(params, variables, batch)["mean"], "roll": batch["roll"]}
    rows = evaluate.collect(encode, run.params, run.variables, source, run.mesh, run.config.eval.batch, FITTED, interrupted)
    if rows is None:
        return None
    grid, found = rolls.grid(run.spec.facts), {}
    for name, values in rolls.attributes(rows["roll"], grid).items():
        group = rolls.tonics(rows["roll"], grid) if name == "mode" else np.zeros(len(values), np.int64)
        ways = [_between(rows["mean"][group == g], values[group == g]) for g in range(12 if name == "mode" else 1)]
        if any(way is not None for way in ways):
            found[name] = np.stack([np.zeros(rows["mean"].shape[1], np.float32) if way is None else way for way in ways])
    return found


def _between(codes, values) -> np.ndarray | None:
    """From the mean code of the fifth with the least values to that with the most; None where they are too few or hardly differ."""
    codes, values = codes[np.isfinite(values)], values[np.isfinite(values)]
    if len(values) < LEAST / FIFTH:
        return None
    least, most = np.quantile(values, (FIFTH, 1 - FIFTH))
    low, high = (codes[chosen].astype(np.float64) for chosen in (values <= least, values >= most))
    return (high.mean(0) - low.mean(0)).astype(np.float32) if least < most else None


def along(vectors: np.ndarray, windows, grid) -> np.ndarray:
    """The way [n, d] of each window: the one there is, or that of its tonic."""
    return vectors[rolls.tonics(windows, grid)] if len(vectors) > 1 else np.repeat(vectors, len(windows), 0)


def measure(run, source, vectors: dict, cut: float, interrupted=lambda: False) -> dict | None:
    """What held-out windows become with a vector added to their codes; None if interrupted.

    {'windows': n, 'original': {attribute: mean over the windows as they are}, 'moved': {vector: {amount: {attribute: mean over what is played}}},
    'change': {vector: {attribute: [mean, standard error] of the difference between amounts +1 and -1, window by window}}}
    """
    def encode(params, variables, batch):
        given = {"condition": run.task.condition(batch)} if run.task.condition else {}
        return {"mean": run.task.encode(params, variables, batch)["mean"], "roll": batch["roll"]} | given

    rows = evaluate.collect(encode, run.params, run.variables, source, run.mesh, run.config.eval.batch, MEASURED, interrupted)
    if rows is None:
        return None
    grid, mean = rolls.grid(run.spec.facts), lambda values: float(np.nanmean(values)) if np.isfinite(values).any() else None
    found = {"windows": len(rows["roll"]), "moved": {}, "change": {},
             "original": {name: mean(values) for name, values in rolls.attributes(rows["roll"], grid).items()}}
    for vector, ways in vectors.items():
        heard, direction = {}, along(ways, rows["roll"], grid)
        for amount in AMOUNTS:
            made = scores.decode(run, rows["mean"] + amount * direction, cut, rows.get("condition"))
            heard[amount] = rolls.attributes(made, grid)
            if interrupted():
                return None
        found["moved"][vector] = {f"{amount:+g}": {name: mean(values) for name, values in own.items()} for amount, own in heard.items()}
        found["change"][vector] = {}
        for name in NAMES:
            change = heard[AMOUNTS[-1]][name] - heard[AMOUNTS[0]][name]
            change = change[np.isfinite(change)]  # silence has no register
            found["change"][vector][name] = [float(change.mean()), statistics.standard_error(change)] if len(change) > 1 else None
    return found


def store(run, vectors: dict, measured: dict) -> None:
    """WORKDIR/attributes.npz, the vectors, and attributes.json, what they do; both with the step of the checkpoint."""
    session.write_npz(run.workdir / "attributes.npz", vectors)
    session.write_json(run.workdir / "attributes.json", {"step": run.step, **measured})


def load(run) -> tuple[dict, dict] | None:
    """(vectors, what `measure` found) of this checkpoint, None where they are not there or are damaged."""
    try:
        measured = json.loads((run.workdir / "attributes.json").read_text())
        with np.load((run.workdir / "attributes.npz").open("rb"), allow_pickle=False) as file:
            vectors = {name: np.asarray(file[name], np.float32) for name in file.files}
        latent = run.config.model.latent
        fits = all(name in NAMES and v.shape == (12 if name == "mode" else 1, latent) and np.isfinite(v).all() for name, v in vectors.items())
        return (vectors, measured) if fits and measured["step"] == run.step and set(measured["moved"]) == set(vectors) else None
    except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error):
        return None


def find(run, cut: float, interrupted=lambda: False) -> tuple[dict, dict] | None:
    """(vectors of the training split, what they do to the test split, else to validation, else to training), made anew; None if interrupted."""
    role = next((r for r in ("test", "validation") if getattr(run.config.data, r)), "train")
    sources = session.sources(run, tuple(dict.fromkeys(("train", role))))
    vectors = fit(run, sources["train"], interrupted)
    measured = None if vectors is None else measure(run, sources[role], vectors, cut, interrupted)
    if measured is None:
        return None
    return vectors, measured | {"split": role}


def moved(run, vectors: np.ndarray, amount: float, windows, cut: float, label: int | None = None) -> np.ndarray:
    """Rolls of windows uint8 [n, steps, columns] whose codes went by an amount along the vectors of an attribute."""
    codes = scores.encode(run, windows, label) + amount * along(vectors, windows, rolls.grid(run.spec.facts))
    return scores.decode(run, codes, cut, scores.told(run, label, len(codes)))
