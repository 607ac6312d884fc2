"""Evaluation over a whole split, exact on any number of devices and processes, and rows of a split in data order.

Per-example metrics are summed on the device under a mask; sums are added in float64 on the host.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import data as datas
from vae_jax import mesh as meshes


def make_sums(metrics_fn, mesh):
    """-> jitted (params, variables, batch, key) -> ({name: sum}, {name: sum of squares}) over the rows whose mask is 1."""

    def sums(params, variables, batch, key):
        rows = metrics_fn(params, variables, batch, key)
        mask = batch["mask"]
        # where, not a product: a padded row may hold anything, NaN times 0 is NaN.
        kept = {k: jnp.where(mask.reshape((-1,) + (1,) * (v.ndim - 1)) > 0, v.astype(jnp.float32), 0.0) for k, v in rows.items()}
        return {k: v.sum(0) for k, v in kept.items()}, {k: (v**2).sum(0) for k, v in kept.items()}

    return jax.jit(sums, out_shardings=meshes.replicated(mesh))


def evaluate(sums_fn, summary, params, variables, source, mesh, batch: int, key, examples: int = 0, interrupted=lambda: False) -> dict | None:
    """Scalars of `summary` over a split, or None if `interrupted()` said so between two batches.

    The key of a batch is folded from its number, so the same weights give the same figures at any time.
    """
    sums, squares, count, batch = {}, {}, 0, meshes.round_up(mesh, batch)
    for i, (rows, valid) in enumerate(datas.eval_batches(source, mesh, batch, examples)):
        found = jax.device_get(sums_fn(params, variables, rows, jax.random.fold_in(key, i)))
        for total, part in zip((sums, squares), found):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + np.asarray(value, np.float64)
        count += valid
        if interrupted():
            return None
    return {name: float(value) for name, value in summary(sums, squares, count).items()}


def splits(run, sources: dict, interrupted=lambda: False, examples: int = 0) -> dict | None:
    """The task's own summary over every split, as training reports it; examples: of each, evenly spaced, 0 = all."""
    found, key = {}, jax.random.key(run.config.seed + 1)
    sums = make_sums(run.task.metrics, run.mesh)
    for role, source in sources.items():
        values = evaluate(sums, run.task.summary, run.params, run.variables, source, run.mesh, run.config.eval.batch, key, examples, interrupted)
        if values is None:
            return None
        found |= {f"eval/{role}/{name}": v for name, v in values.items()}
    return found


def collect(fn, params, variables, source, mesh, batch: int, examples: int = 0, interrupted=lambda: False) -> dict[str, np.ndarray] | None:
    """Rows {name: [n, ...]} of fn(params, variables, global batch) over a split, in data order, on every process; None if interrupted.

    examples: at most so many, evenly spaced (`data.spaced`); 0 = all.
    """
    parts = []
    for part in batches(fn, params, variables, source, mesh, batch, examples):
        parts.append(part)
        if interrupted():
            return None
    return jax.tree.map(lambda *a: np.concatenate(a), *parts)


def batches(fn, params, variables, source, mesh, batch: int, examples: int = 0):
    """The same rows, batch by batch, for more of them than should be held; the last batch is shorter."""
    fn, batch = jax.jit(fn, out_shardings=meshes.replicated(mesh)), meshes.round_up(mesh, batch)
    for rows, valid in datas.eval_batches(source, mesh, batch, examples):
        yield jax.tree.map(lambda a: np.asarray(a)[:valid], fn(params, variables, rows))


def standard_error(total, square, count):
    """Of a mean, from a sum and a sum of squares (float64), with n-1 in the variance."""
    mean = total / count
    return np.sqrt(np.maximum(square / count - mean**2, 0.0) / max(count - 1, 1))
