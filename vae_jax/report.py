"""The report of a run: pictures and sounds of what a trained model learned, each with a number beside it, as one page that needs no network.

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
from vae_jax.media import code_sections, html, measures, roll_sections, sections, sound_sections
from vae_jax.media.sections import mean, root, scale


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


SECTIONS = (sections.reconstructions, sound_sections.reconstructions, sound_sections.listening, roll_sections.reconstructions, sections.samples,
            roll_sections.samples, roll_sections.attributes, code_sections.mixture,
            sections.manifold, sections.interpolations, code_sections.scatter, code_sections.training, code_sections.aggregate,
            code_sections.dimensions, code_sections.fidelity, sections.traversals, sections.curves)
EXAMPLES = 10_000  # of a split that are measured, at most
TRAIN_BYTES, SIDE_BYTES = 1 << 30, 1 << 29  # of the training pictures, and of the float32 pictures of one measured side


def capacity(shape, itemsize: int) -> tuple[int, int]:
    """How many training pictures of a shape a report holds, and how many of each split it measures: the first ones."""
    return max(2, TRAIN_BYTES // (itemsize * math.prod(shape))), min(EXAMPLES, max(16, SIDE_BYTES // (4 * math.prod(shape))))


def build(task, params, variables, splits: dict, history: list[dict], info: dict, key, names=None, condition=None, standard_prior: bool = True,
          examples: int = EXAMPLES, frames=None, mixture=None, music: sections.Music | None = None) -> Report:
    """Measures a model and draws its report.

    splits: {role: batch}, rows of records as the task takes them, such as {'image': uint8 [n, h, w, 1 or 3], 'label': int [n]} or, for a task with
        a sound front, {'audio': int16 [n, samples, 1], ...}, for one of rolls {'roll': uint8 [n, steps, columns], ...}; 'train' is needed, and the
        first of test, validation, train that is there is what the page calls held-out.
    history: the lines of metrics.jsonl. info: `name`, `command`, then facts for the page's head, in order.
    names: {field: names of its classes}; codes are coloured and probed by each, and by a `label` without names.
    condition(batch) -> [n, c]: what the decoder is given besides the code; None for an unconditional model.
    standard_prior: whether a code of one or two dimensions is mapped by the unit Gaussian. mixture: the prior (models.priors) if it is a mixture.
    examples: of each split that are measured, fewer where they would not fit; all training pictures go into the PCA and neighbour baselines.
    music: how rolls are seen and heard, for a task of rolls.
    frames: {step: codes [n, d] of the first n held-out pictures} at several checkpoints, for an animation.
    Without labels, logvar, `task.sample` or a history, what needs them is left out.
    """
    role, names = held_out(splits), names or {}
    front = task.front if task.front is not None and task.front.kind == "audio" else None
    shape = task.front.shape if front or music else splits["train"]["image"].shape[1:]
    rows, examples = max(16, min(500, 2**20 // math.prod(shape))), min(examples, capacity(shape, 4)[1])
    compiled = {name: jax.jit(getattr(task, name)) for name in ("encode", "decode", "metrics", "sample") if getattr(task, name)}
    audio = _audio(front, key, rows) if front else None

    def seen(batch):
        """(pictures, levels or None) of records."""
        return audio.see(batch["audio"]) if audio else (music.cells(batch["roll"]) if music else batch["image"], None)

    def decoded(code, given):
        tree = {"code": np.asarray(code, np.float32)} | ({} if given is None else {"condition": given})
        return chunks(lambda i, b: compiled["decode"](params, variables, b["code"], b.get("condition")), tree, rows)

    def sample(request):
        return jax.device_get(compiled["sample"](params, variables, jax.random.fold_in(key, 2**31 - 1), request))

    def side(batch, pictures):
        group = np.asarray(batch["group"][:examples]) if "group" in batch else None
        batch = {k: v[:examples] for k, v in batch.items() if np.asarray(v).dtype.kind in "biuf"}  # names of sources cannot go to a device
        code = chunks(lambda i, b: compiled["encode"](params, variables, b), batch, rows)
        per_example = chunks(lambda i, b: compiled["metrics"](params, variables, b, jax.random.fold_in(key, i)), batch, rows)
        given = None if condition is None else np.asarray(condition(batch))
        logvar, made = code.get("logvar"), decoded(code["mean"], given)
        information = None if logvar is None else statistics.mutual_information(code["mean"], logvar)
        classes = {name: batch[name] for name in dict.fromkeys(("label", *names)) if name in batch}
        image, level = pictures if pictures else seen(batch)
        return sections.Side(image[:examples], next(iter(classes.values()), None), classes, given, code["mean"], logvar, per_example, made["image"],
                             information, batch["audio"] if audio else None, None if level is None else level[:examples], made.get("level"), group)

    pictures = seen(splits["train"])
    if len(pictures[0]) < 2:
        raise UserError(f"a report needs at least two training {'sounds' if audio else 'pictures'}: give the run's data_prep more.")
    train = side(splits["train"], pictures)
    held = train if role == "train" else side(splits[role], None)
    pixels = pca.fit(pictures[0], train.mean.shape[1])
    run = sections.Run(
        decode=lambda code, given: decoded(code, given)["image"], sample=sample if task.sample else None, role=role, train=train, held=held,
        pictures=pictures[0], plane=paths.plane(train.mean, standard_prior and train.logvar is not None),
        pixels=pixels, codes=pca.fit(train.mean), names=names, history=history, frames=frames or {}, files={},
        audio=audio, mixture=mixture, music=music, baselines=music and music.plain(pixels),
    )
    latent = train.mean.shape[1]
    counted = (f"{len(train.image):,} of {len(run.pictures):,} training {run.noun}s, "
               f"{len(held.image):,} of {len(next(iter(splits[role].values()))):,} held-out ones ({role})")
    size = " × ".join(str(s) for s in (shape[:2] if audio or music else shape))
    subtitle = f"{run.noun.capitalize()}s of {size} through a code of {latent} number{'s' * (latent > 1)}."
    return drawn(info, subtitle, counted, _table(run), SECTIONS, run)


def drawn(info: dict, subtitle: str, measured: str, table: html.Table, sections, run, *facts: tuple[str, str]) -> Report:
    """The report of whatever `run` the functions `sections` draw; they put their pictures and sounds into its `files`, or give None."""
    found = [section for section in (draw(run) for draw in sections) if section]
    head = [(str(k), str(v)) for k, v in info.items() if k not in ("name", "command")] + [("measured on", measured), *facts]
    return Report(str(info["name"]), subtitle, head, str(info["command"]), table, found, run.files)


def held_out(splits: dict) -> str:
    """The role whose figures stand first."""
    return next(role for role in ("test", "validation", "train") if role in splits)


def measured(sources: dict, most: int, noun: str) -> str:
    return ", ".join(f"{min(most, len(source)):,} of {len(source):,} {noun} ({role})" for role, source in sources.items())


def compared(titles, found: dict, role: str) -> html.Table:
    """Figures of evaluation, held-out and of training, of `titles` (name, title, note) those that were found; beside one its standard error."""

    def value(side, name):
        figure, error = found.get(f"eval/{side}/{name}"), found.get(f"eval/{side}/{name}_error")  # some are of held-out examples alone
        return int(figure) if name == "active_units" else figure if error is None else (figure, error)

    sides = list(dict.fromkeys((role, "train")))
    rows = tuple((title, *(value(side, name) for side in sides), note) for name, title, note in titles if f"eval/{role}/{name}" in found)
    return html.Table(_head(role), rows)


def _head(role: str) -> tuple[str, ...]:
    return ("", *[f"held-out ({role})"] * (role != "train"), "training", "")


def _audio(front, key, rows) -> sections.Audio:
    """A front's way from waves to spectrograms and back, for arrays of any number."""
    analyse = jax.jit(lambda b: {"x": front.analyse(b)} | ({"level": front.level(b)} if front.level else {}))
    sound = jax.jit(front.sound)

    def see(waves):
        batch = {"audio": waves if waves.ndim == 3 else np.asarray(waves, np.float32)[..., None]}
        found = chunks(lambda i, b: analyse(b), batch, rows)
        return found["x"], found.get("level")

    def hear(x, level):
        tree = {"x": np.asarray(x, np.float32)} | ({} if level is None else {"level": level})
        return chunks(lambda i, b: sound(b["x"], b.get("level"), jax.random.fold_in(key, i)), tree, min(rows, 32))

    return sections.Audio(see, hear, front.rate, front.range_db)


def chunks(fn, tree, rows: int):
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
    if run.baselines and rows and run.role == "test":
        loss = tuple(run.baselines[f"eval/test/{name}"] for name in ("marginal_loss", "marginal_loss_error"))
        rows.insert(1, ("of the marginal model", loss, None, "baseline: knows how often each cell sounds in training, and nothing else"))
    squared = [mean(measures.mse(side.image, side.decoded)) for side in sides]
    linear, flat = ([mean(pca.errors(run.pixels, side.image, k)) for side in sides] for k in (None, 0))
    active = [statistics.active_units(side.mean) for side in sides]
    rows += [
        ("squared error", *squared, f"a pixel, {scale(run)}, decoded from the posterior mean"),
        (f"of PCA-{len(run.pixels.components)}", *linear,
         f"baseline: principal components of the training {run.noun}s, as many as the code has numbers"),
        (f"of the mean {run.noun}", *flat, f"baseline: the same answer for every {run.noun}"),
        ("active units", *(f"{units.sum()} of {len(units)}" for units in active), "posterior mean varies over the data by more than 0.01"),
    ]
    if run.audio is not None:
        decibels = (root(pair, run.audio.range_db) for pair in squared)
        rows.insert(-4, ("error in dB", *decibels, "root of the squared error, decoded from the posterior mean"))
    if run.train.information is not None:
        most = " and ".join(dict.fromkeys(f"{math.log(len(side.mean)):.2f}" for side in sides))
        rows.append(("information", *(side.information for side in sides), f"I(x; z) in nats, an estimate that cannot exceed log n = {most}"))
    return html.Table(_head(run.role), tuple(rows))


def write(workdir, report: Report) -> str:
    """Writes WORKDIR/report: the pictures, numbers.json (every number, unrounded; not finite = null), index.html last. Returns the page's path."""
    folder = epath.Path(workdir) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in report.files.items():
        (folder / name).write_bytes(data)
    numbers = {"table": {row[0]: dict(zip(report.table.head[1:-1], row[1:-1])) for row in report.table.rows}}
    for section in report.sections:
        numbers[section.name] = {name: value for name, value, _ in section.numbers}
        if section.table:
            numbers[section.name]["table"] = {row[0]: dict(zip(section.table.head[1:-1], row[1:-1])) for row in section.table.rows}
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
