"""The report of a model of pictures whose codes are indices of a codebook (vqvae, code_prior): measures a run and draws its page; `report.write`
writes it."""

import math

import jax
import numpy as np

from vae_jax import corruptions, evaluate, report, tasks
from vae_jax import data as datas
from vae_jax.latents import pca
from vae_jax.losses import quantization
from vae_jax.media import index_sections
from vae_jax.tasks import vqvae

MEASURED, SHOWN, CLASSES, EACH = 2_000, 20, 10, 10  # pictures of each split, evenly spaced; on a sheet; classes, and samples of each
COMPLETED, DRAWS = 8, 3  # pictures whose lower half is drawn anew, and how often
ROWS = (("loss", "loss", "of a VQ-VAE, what training lowers without the commitment term; of a prior, nats of a picture's codes"),
        ("nmse", "squared error", "over the variance of the training pixels"),
        ("psnr", "PSNR", "dB, the mean over pictures"),
        ("perplexity", "perplexity", "of the codes of all these pictures together: how many, used equally often, would be as varied"),
        ("usage", "usage", "share of the codebook that occurs at all"),
        ("uniform_bits_per_code", "bits a code, uniform", "log2 of the codebook's size: what `compress` packs"),
        ("empirical_bits_per_code", "bits a code, empirical", "entropy of how often each code is used"),
        ("bits_per_code", "bits a code, learned", "-log2 p of the prior"),
        ("uniform_bits_per_dim", "bits a value, uniform", "picture and code, by a code of equal probabilities"),
        ("empirical_bits_per_dim", "bits a value, empirical", "by the frequencies"),
        ("bits_per_dim", "bits a value, learned", "by the prior"))


def build(run, sources: dict, history: list[dict], info: dict) -> report.Report:
    """Measures a run (session.Session) on its splits {role: data.Source} and draws its report.

    history: the lines of metrics.jsonl. info: `name`, `command`, then facts for the page's head.
    """
    role, prior = report.held_out(sources), run.task.sample is not None
    model = getattr(run.config.model, "autoencoder", run.config.model)
    found, q = evaluate.splits(run, sources, examples=MEASURED), vqvae.quantizer(model)
    book = vqvae.codebook(model, run.params, run.variables)

    def rebuild(params, variables, batch):
        code, made = tasks.rebuild(run.task, params, variables, batch)
        label = {"label": batch["label"]} if "label" in batch else {}
        return {"image": run.task.front.analyse(batch), "made": made["image"], "indices": code["indices"], **label}

    rows = evaluate.collect(rebuild, run.params, run.variables, sources[role], run.mesh, run.config.eval.batch, MEASURED)
    shown = datas.spaced(len(rows["indices"]), SHOWN)  # sheets show the first ones, and a split may be stored class by class
    order = np.append(shown, np.setdiff1d(np.arange(len(rows["indices"])), shown))
    rows = {name: values[order] for name, values in rows.items()}
    names = run.spec.fields["label"].labels if "label" in run.spec.fields else ()
    codes = index_sections.Codes(
        role=role, figures=found, original=rows["image"], made=rows["made"], indices=rows["indices"], history=history, files={},
        counts=np.asarray(quantization.counts(q, rows["indices"])), colours=_colours(q, book, rows["indices"][:SHOWN]),
        samples=_samples(run, names) if prior else None, completed=_completed(run, rows) if prior else None,
        repaired=_repaired(run, model, sources[role]) if model.corruptions and not prior else None)
    shape, grid = run.task.front.shape, rows["indices"].shape[1:]
    bits = math.prod(grid) * math.log2(q.codes)
    size = lambda sides: " × ".join(map(str, sides))
    subtitle = (f"Pictures of {size(shape)} through {size(grid)} codes of {q.codes} each: {8 * math.prod(shape):,} bits to {bits:,.0f}, a ratio of "
                f"{8 * math.prod(shape) / bits:.2f}.")
    measured = report.measured(sources, MEASURED, "pictures")
    return report.drawn(info, subtitle, measured, report.compared(ROWS, found, role), index_sections.SECTIONS, codes)


def _colours(q, book, indices):
    """Maps of codes as pictures [n, h, w, 3]: the three principal directions of what they stand for are red, green and blue."""
    vectors = np.asarray(quantization.lookup(q, book, indices))
    flat = vectors.reshape(-1, vectors.shape[-1])
    seen = pca.project(pca.fit(flat, 3), flat)
    seen = np.pad(seen, ((0, 0), (0, 3 - seen.shape[1])))
    low, high = np.quantile(seen, 0.02, 0), np.quantile(seen, 0.98, 0)
    return np.clip((seen - low) / np.maximum(high - low, 1e-9), 0, 1).reshape(*vectors.shape[:-1], 3)


def _samples(run, names):
    """(pictures, how many there are of each class, names of the classes or () where it is told none) from the prior."""
    label = np.arange(min(CLASSES, len(names))) if run.task.condition else np.zeros(CLASSES, int)
    request = {"temperature": np.ones(len(label) * EACH, np.float32), "label": np.int32(label.repeat(EACH))}
    made = jax.jit(run.task.sample)(run.params, run.variables, jax.random.key(run.config.seed + 2), request)
    return np.asarray(made["image/mean"]), EACH, names if run.task.condition else ()


def _completed(run, rows):
    """Held-out pictures, what of them is given (the upper half of their codes, the rest black), and DRAWS completions: a list of [n, h, w, c]."""
    n = min(COMPLETED, len(rows["indices"]))
    codes = rows["indices"][:n]
    rows_given = codes.shape[1] // 2
    mask = np.broadcast_to(np.arange(codes.shape[1])[:, None, None] < rows_given, codes.shape)
    label = np.int32(rows["label"][:n]) if run.task.condition else np.zeros(n, np.int32)
    request = {"temperature": np.ones(n, np.float32), "label": label, "codes": codes, "mask": mask}
    sample = jax.jit(run.task.sample)
    drawn = [np.asarray(sample(run.params, run.variables, jax.random.key(i), request)["image/mean"]) for i in range(DRAWS)]
    height = rows["image"].shape[1]
    given = np.where(np.arange(height)[:, None, None] < height * rows_given // codes.shape[1], rows["made"][:n], 0.0)
    return [rows["image"][:n], given, *drawn]


def _repaired(run, model, source):
    """{kind: (originals, spoilt, repaired [n, h, w, c])} of some held-out pictures."""
    found = {}
    for i, kind in enumerate(model.corruptions):

        def repair(params, variables, batch):
            x = run.task.front.analyse(batch)
            spoilt = corruptions.KINDS[kind](jax.random.key(i), x)
            return {"original": x, "spoilt": spoilt, "made": tasks.rebuild(run.task, params, variables, {**batch, "image": spoilt})[1]["image"]}

        rows = evaluate.collect(repair, run.params, run.variables, source, run.mesh, COMPLETED, COMPLETED)
        found[kind] = rows["original"], rows["spoilt"], rows["made"]
    return found
