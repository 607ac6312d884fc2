"""The report of a run: pictures of what a trained model learned, each with a number beside it, as one page that needs no network.

`build` measures and draws (a task and arrays in, bytes out); `write` puts the page, its pictures and `numbers.json` into WORKDIR/report.
"""

import json
import math
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from vae_jax.config import UserError
from vae_jax.latents import paths, pca, statistics
from vae_jax.media import html, measures, sections
from vae_jax.media.sections import mean


class Report(NamedTuple):
    title: str
    subtitle: str
    facts: list[tuple[str, str]]
    command: str
    table: html.Table
    sections: list[html.Section]
    files: dict[str, bytes]


# What a task's per-example metrics are called on the page, and what they are. Others are not shown.
METRICS = {
    "loss": ("−ELBO", "upper bound on −log p(x) in nats, KL weight 1, one draw of the code an example"),
    "reconstruction": ("reconstruction", "−log p(x | z) in nats"),
    "kl": ("KL", "nats from the posterior to the prior"),
    "floor": ("floor", "no reconstruction term of these targets can be lower; for a Bernoulli the entropy of grey pixels"),
}


def build(task, params, variables, splits: dict, history: list[dict], info: dict, key, names=(), condition=None, standard_prior: bool = True,
          examples: int = 10_000, frames=None) -> Report:
    """Measures a model and draws its report.

    splits: {role: {'image': uint8 [n, h, w, 1 or 3], 'label': int [n] where there are labels, ...}}; 'train' is needed, and the first of test,
        validation, train that is there is what the page calls held-out.
    history: the lines of metrics.jsonl. info: `name`, `command`, then facts for the page's head, in order. names: of the classes.
    condition(batch) -> [n, c]: what the decoder is given besides the code; None for an unconditional model.
    standard_prior: whether a code of one or two dimensions is mapped by the unit Gaussian.
    examples: of each split that are measured; all training pictures go into the PCA and neighbour baselines.
    frames: {step: codes [n, d] of the first n held-out pictures} at several checkpoints, for an animation.
    Without labels, logvar, `task.sample` or a history, what needs them is left out.
    """
    role = next(r for r in ("test", "validation", "train") if r in splits)
    shape = splits["train"]["image"].shape[1:]
    rows = max(16, min(500, 2**20 // math.prod(shape)))
    compiled = {name: jax.jit(getattr(task, name)) for name in ("encode", "decode", "metrics", "sample") if getattr(task, name)}

    def decode(code, given):
        tree = {"code": np.asarray(code, np.float32)} | ({} if given is None else {"condition": given})
        return _chunks(lambda i, b: compiled["decode"](params, variables, b["code"], b.get("condition"))["image"], tree, rows)

    def sample(request):
        return jax.device_get(compiled["sample"](params, variables, jax.random.fold_in(key, 2**31 - 1), request))

    def side(batch):
        batch = {k: v[:examples] for k, v in batch.items() if np.asarray(v).dtype.kind in "biuf"}  # names of sources cannot go to a device
        code = _chunks(lambda i, b: compiled["encode"](params, variables, b), batch, rows)
        per_example = _chunks(lambda i, b: compiled["metrics"](params, variables, b, jax.random.fold_in(key, i)), batch, rows)
        given = None if condition is None else np.asarray(condition(batch))
        logvar = code.get("logvar")
        information = None if logvar is None else statistics.mutual_information(code["mean"], logvar)
        return sections.Side(batch["image"], batch.get("label"), given, code["mean"], logvar, per_example, decode(code["mean"], given), information)

    if len(splits["train"]["image"]) < 2:
        raise UserError("a report needs at least two training pictures: give the run's data_prep more.")
    train = side(splits["train"])
    held = train if role == "train" else side(splits[role])
    run = sections.Run(
        decode=decode, sample=sample if task.sample else None, role=role, train=train, held=held, pictures=splits["train"]["image"],
        plane=paths.plane(train.mean, standard_prior and train.logvar is not None), pixels=pca.fit(splits["train"]["image"], train.mean.shape[1]),
        codes=pca.fit(train.mean), names=tuple(names), history=history, frames=frames or {}, files={},
    )
    latent = train.mean.shape[1]
    facts = [(str(k), str(v)) for k, v in info.items() if k not in ("name", "command")]
    facts.append(("measured on", f"{len(train.image):,} of {len(run.pictures):,} training pictures, "
                                 f"{len(held.image):,} of {len(splits[role]['image']):,} held-out ones ({role})"))
    subtitle = f"Pictures of {' × '.join(str(s) for s in shape)} through a code of {latent} number{'s' * (latent > 1)}."
    drawn = [section for section in (draw(run) for draw in sections.ALL) if section]
    return Report(str(info["name"]), subtitle, facts, str(info["command"]), _table(run), drawn, run.files)


def _chunks(fn, tree, rows):
    """fn(chunk number, rows of tree) over all rows. Every call has the same shape (the last repeats its last row), so it compiles once."""
    n, found = len(jax.tree.leaves(tree)[0]), []
    for i, start in enumerate(range(0, n, rows)):
        index = np.minimum(np.arange(start, start + rows), n - 1)
        part = jax.device_get(fn(i, jax.tree.map(lambda a: np.asarray(a)[index], tree)))
        found.append(jax.tree.map(lambda a: a[: n - start], part))
    return jax.tree.map(lambda *a: np.concatenate(a), *found)


def _table(run) -> html.Table:
    sides = [run.held] if run.role == "train" else [run.held, run.train]
    rows = []
    for name, (title, note) in METRICS.items():
        found = [side.metrics.get(name) for side in sides]
        if all(values is not None and values.ndim == 1 and np.any(values) for values in found):
            rows.append((title, *(mean(values) for values in found), note))
    squared = [mean(measures.mse(side.image, side.decoded)) for side in sides]
    linear, flat = ([mean(pca.errors(run.pixels, side.image, k)) for side in sides] for k in (None, 0))
    active = [statistics.active_units(side.mean) for side in sides]
    rows += [
        ("squared error", *squared, "a pixel, black = 0, white = 1, decoded from the posterior mean"),
        (f"of PCA-{len(run.pixels.components)}", *linear, "baseline: principal components of the training pictures, as many as the code has numbers"),
        ("of the mean picture", *flat, "baseline: the same answer for every picture"),
        ("active units", *(f"{units.sum()} of {len(units)}" for units in active), "posterior mean varies over the data by more than 0.01"),
    ]
    if run.train.information is not None:
        most = " and ".join(dict.fromkeys(f"{math.log(len(side.mean)):.2f}" for side in sides))
        rows.append(("information", *(side.information for side in sides), f"I(x; z) in nats, an estimate that cannot exceed log n = {most}"))
    head = ("", f"held-out ({run.role})", "training", "") if len(sides) == 2 else ("", "training", "")
    return html.Table(head, tuple(rows))


def write(workdir, report: Report) -> str:
    """Writes WORKDIR/report: the pictures, numbers.json (every number, unrounded; not finite = null), index.html last. Returns the page's path."""
    folder = epath.Path(workdir) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in report.files.items():
        (folder / name).write_bytes(data)
    numbers = {"table": {row[0]: dict(zip(report.table.head[1:-1], row[1:-1])) for row in report.table.rows}}
    numbers |= {section.name: {name: value for name, value, _ in section.numbers} for section in report.sections}
    (folder / "numbers.json").write_text(json.dumps(_plain(numbers), indent=1, allow_nan=False) + "\n")
    page = folder / "index.html"
    page.write_text(html.page(report.title, report.subtitle, report.facts, report.command, report.table, report.sections))
    return str(page)


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
