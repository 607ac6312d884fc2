"""Whole-split figures of models of rolls: the marginal baseline, the threshold from which a cell sounds, and what is heard beside the data: F1 of
held and struck cells, density, length of notes, pitch classes.

Reconstructions are free-running: the posterior mean through `decode`, which reads no true row.
"""

import json
import math

import jax
import numpy as np

from vae_jax import data as datas
from vae_jax import evaluate, rolls, session, tasks
from vae_jax import mesh as meshes
from vae_jax.config import UserError
from vae_jax.latents import pca, statistics

WINDOWS = 2_000  # of a split, evenly spaced, that are rebuilt
SAMPLES, BATCH = 500, 100  # windows drawn from the prior, and at once
CHUNK = 250  # windows read at once
KEYS = 11  # transpositions of a window, at most about so many: of KEYS * WINDOWS training windows as many as WINDOWS are in their own key


def figures(run, sources: dict, interrupted=lambda: False) -> dict | None:
    """Of the test split, `eval/test/...`; {} for models of anything else, None if interrupted. threshold: see there.
    held_f1, onset_f1 of reconstructions; notes_per_quarter, note_quarters (mean length) of the data, and with rebuilt_, sample_ before them of
    reconstructions and of prior samples; rebuilt_density, sample_density: their notes a quarter over the data's; rebuilt_pitch_distance, likewise
    sample_ and train_: total variation distance of pitch classes from the data's; sample_seen_pitch_distance: that of samples from all training
    windows, transposed ones too."""
    if run.task.front is None or run.task.front.kind != "roll" or run.task.decode is None or "test" not in sources:
        return {}
    grid, cut = rolls.grid(run.spec.facts), threshold(run, interrupted)
    held = None if cut is None else rebuilt(run, sources["test"], WINDOWS, interrupted)
    drawn = None if held is None else drawn_like(run, sources["test"], SAMPLES, cut, interrupted)
    if drawn is None:
        return None
    truth, made = held["roll"], rolls.played(held["probability"], cut, grid)
    train = sources["train"].read(datas.spaced(len(sources["train"]), KEYS * WINDOWS))
    density, classes = rolls.notes_per_quarter(truth, grid), rolls.pitch_classes(truth, grid)
    found = {"eval/test/threshold": cut, **_both_f1("", truth, made, grid), "eval/test/notes_per_quarter": density,
             "eval/test/note_quarters": rolls.note_quarters(truth, grid),
             "eval/test/train_pitch_distance": rolls.distance(classes, rolls.pitch_classes(own_keys(train)["roll"], grid)),
             "eval/test/sample_seen_pitch_distance": rolls.distance(rolls.pitch_classes(train["roll"], grid), rolls.pitch_classes(drawn, grid))}
    for name, heard in (("rebuilt", made), ("sample", drawn)):
        count = rolls.notes_per_quarter(heard, grid)
        found |= {f"eval/test/{name}_notes_per_quarter": count, f"eval/test/{name}_density": count / density if density else math.nan,
                  f"eval/test/{name}_note_quarters": rolls.note_quarters(heard, grid),
                  f"eval/test/{name}_pitch_distance": rolls.distance(classes, rolls.pitch_classes(heard, grid))}
    return {name: float(value) for name, value in found.items()}


def baselines(run, sources: dict, linear: pca.PCA) -> dict:
    """What needs no training, of the test split: `marginal`; pca_K_held_f1 and _onset_f1 of the K principal components `linear`, played from a
    threshold chosen as the model's is; neighbour_held_f1 and _onset_f1 of the training window most like each in held cells, transposed or not."""
    grid = rolls.grid(run.spec.facts)
    test, tuning, train = (sources[role].read(datas.spaced(len(sources[role]), most))["roll"] for role, most in
                           (("test", WINDOWS), (tuned(run), WINDOWS), ("train", session.baseline(run))))

    def seen(windows):
        cells = session.stored(run, {"roll": windows})
        made = pca.reconstruct(linear, pca.project(linear, cells)).reshape(cells.shape)
        return np.asarray(run.task.front.columns(np.clip(made, 0, 1)))

    made = rolls.played(seen(test), rolls.threshold(seen(tuning), tuning, grid), grid)
    return marginal(run, sources) | _both_f1(f"pca_{len(linear.components)}_", test, made, grid) | _both_f1(
        "neighbour_", test, train[nearest(test, train, grid)], grid)


def nearest(windows_nsc, among_msc, grid) -> np.ndarray:
    """Of each window the row [n] of `among` whose held cells overlap most with its own by F1; of two the first."""
    mine, best, row = _held(windows_nsc, grid), np.full(len(windows_nsc), -1.0), np.zeros(len(windows_nsc), np.int64)
    for start in range(0, len(among_msc), CHUNK):
        part = _held(among_msc[start:start + CHUNK], grid)
        overlap = mine @ part.T / np.maximum(1, mine.sum(1)[:, None] + part.sum(1))  # half the F1
        found = overlap.argmax(1)
        overlap = overlap.max(1)
        row[overlap > best], best = start + found[overlap > best], np.maximum(best, overlap)
    return row


def _held(windows, grid):
    return (rolls.parts(windows, grid)[0] != 0).reshape(len(windows), -1).astype(np.float32)


def _both_f1(name: str, truth, made, grid) -> dict:
    return {f"eval/test/{name}held_f1": rolls.f1(truth, made, grid), f"eval/test/{name}onset_f1": rolls.onset_f1(truth, made, grid)}


def marginal(run, sources: dict) -> dict:
    """`eval/test/marginal_loss` in nats, with its standard error: the test windows under a model that knows of each cell how often it sounds in the
    training split (pieces in their own keys: transposed ones would blur it), counted (sum + 1/2) / (n + 1), and nothing else. As for the model's
    own loss, a drum counts as held and struck."""
    def windows(source):
        for start in range(0, len(source), CHUNK):
            cells = session.stored(run, own_keys(source.read(np.arange(start, min(start + CHUNK, len(source))))))
            yield cells.reshape(len(cells), math.prod(cells.shape[1:]))  # perhaps none

    count, total = 0, 0
    for part in windows(sources["train"]):
        count, total = count + len(part), total + part.sum(0, dtype=np.int64)
    mean = (total / 255 + 0.5) / (count + 1)
    logit, silence = np.log(mean / (1 - mean)), np.log(1 - mean).sum()
    loss = np.concatenate([-(part / 255) @ logit - silence for part in windows(sources["test"])])
    return {"eval/test/marginal_loss": loss.mean(), "eval/test/marginal_loss_error": statistics.standard_error(loss)}


def own_keys(batch: dict) -> dict:
    """The rows of a batch that were not transposed."""
    return {name: values[batch["transposed"] == 0] for name, values in batch.items()} if "transposed" in batch else batch


def threshold(run, interrupted=lambda: False) -> float | None:
    """The probability from which a cell sounds: that at which reconstructions of the validation split, else of the training split, have as many notes
    as it has. Kept in WORKDIR/threshold.json with the step of the checkpoint it is for. None if interrupted; UserError where it is not there and the
    data is gone."""
    path = run.workdir / "threshold.json"
    try:
        stored = json.loads(path.read_text())
        if stored["step"] == run.step:
            return float(stored["threshold"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # made anew
    role = tuned(run)
    try:
        source = session.sources(run, (role,))[role]
    except UserError as error:
        raise UserError(f"the probability from which a note sounds is chosen on the {role} split, and {path} does not have it for step {run.step}: "
                        f"{error}") from None
    rows = rebuilt(run, source, WINDOWS, interrupted)
    if rows is None:
        return None
    grid = rolls.grid(run.spec.facts)
    cut = rolls.threshold(rows["probability"], rows["roll"], grid)
    counts = {"data": rows["roll"], "rebuilt": rolls.played(rows["probability"], cut, grid)}
    if meshes.is_main():
        session.write_json(path, {"step": run.step, "threshold": cut, "split": getattr(run.config.data, role), "windows": len(rows["roll"]),
                                  "notes_per_quarter": {name: rolls.notes_per_quarter(heard, grid) for name, heard in counts.items()}})
    return cut


def tuned(run) -> str:
    """The role of the split that thresholds are chosen on."""
    return "validation" if run.config.data.validation else "train"


def rebuilt(run, source, examples: int, interrupted=lambda: False) -> dict | None:
    """Windows of a split, at most so many, evenly spaced, and what the model makes of them: `row` [n], `roll` uint8 and `probability` [n, steps,
    columns]; None if interrupted."""
    def rebuild(params, variables, batch):
        made = tasks.rebuild(run.task, params, variables, batch)[1]["image"]
        return {"row": batch["index"], "roll": batch["roll"], "probability": run.task.front.columns(made)}

    return evaluate.collect(rebuild, run.params, run.variables, source, run.mesh, run.config.eval.batch, examples, interrupted)


def heard(run, made: dict, cut: float) -> np.ndarray:
    """The rolls, uint8 [n, steps, columns], of what `Task.sample` made: cells at least as probable as the threshold, but of an autoregressive model
    the cells it drew, as those are what it read itself."""
    own = run.config.model.autoregressive and "roll/draw" in made
    return rolls.played(made["roll/draw" if own else "roll/mean"], 0.5 if own else cut, rolls.grid(run.spec.facts))


def drawn_like(run, source, count: int, cut: float, interrupted=lambda: False) -> np.ndarray | None:
    """`count` rolls from the prior, of a conditional model with the labels of a split's windows, evenly spaced; None if interrupted."""
    request, parts = {"temperature": np.ones(count, np.float32)}, []
    if run.task.condition:
        request["label"] = np.resize(source.read(datas.spaced(len(source), count))["label"], count).astype(np.int32)
    sample = jax.jit(run.task.sample)
    for i, start in enumerate(range(0, count, BATCH)):
        key = jax.random.fold_in(jax.random.key(run.config.seed + 4), i)
        parts.append(heard(run, jax.device_get(sample(run.params, run.variables, key, {k: v[start:start + BATCH] for k, v in request.items()})), cut))
        if interrupted():
            return None
    return np.concatenate(parts)
