"""Vector quantisation in float32: nearest codes, straight-through gradient, codebooks learned by averages or by a loss, residual levels, and FSQ.

A `Quantizer` (from `get`) holds the settings; what is learned is a tree of arrays (from `init`), of which the functions below take the newest:
    ema   {"codebook", "count", "sum", "weight"}   for a player's variables; `start` and `update` move it, no gradient does
    loss  {"codebook"}                             for a player's params; the codebook term of `losses` moves it
    fsq   {}                                       a fixed grid
z is [..., dims]; each leading position gets c = levels * groups codes: indices int32 [..., c], a level's groups side by side, the coarsest first.
`learn` is a step of training, made of `start`, `quantise`, `losses` and `update`: codes are chosen before the averages move.
Sums run over all positions, so that under jit the statistics of a batch split over a mesh are those of the whole batch.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.config import UserError
from vae_jax.losses import divergences

HIGHEST = jax.lax.Precision.HIGHEST  # an accelerator's short-mantissa products would choose other codes
EPSILON = 1e-5  # vectors a batch that each code is given where it stands, so that one nobody chooses stays there
TILE = 128  # codes compared at a time
REACH = 1.001  # FSQ: how far beyond the outermost cells' centres tanh leads; they stay within reach, with a gradient


class Quantizer(NamedTuple):
    """Settings; `get` explains and checks them."""

    kind: str
    codes: int
    dims: int
    groups: int
    levels: int
    decay: float
    restart: float
    kmeans: int
    grid: tuple[int, ...]


def get(kind: str, codes: int = 512, dims: int = 64, groups: int = 1, levels: int = 1, decay: float = 0.99, restart: float = 0.0,
        kmeans: int = 10, grid: tuple[int, ...] = ()) -> Quantizer:
    """A quantiser by kind: ema, loss or fsq. Raises UserError for settings that do not go together.

    codes: K of each codebook. groups: equal parts of the vector, each with codebooks of its own. levels: the second quantises what the
    first left over, and so on (SoundStream, Zeghidour et al. 2021, section III.C). ema only: decay of the averages; restart: a code that
    gets fewer vectors a batch than this, on average, begins anew (0: never); kmeans: rounds of Lloyd's algorithm on the first batch (0:
    begin at random). fsq only: grid, values of each dimension, such as (8, 5, 5, 5), which give codes and the dims of a group (Mentzer et al. 2023).
    """
    if kind not in ("ema", "loss", "fsq"):
        raise UserError(f"Quantiser {kind!r} is not known; choose one of ema, loss, fsq.")
    if (kind == "fsq") != bool(grid) or any(not isinstance(size, int) or size < 2 for size in grid):
        raise UserError(f"Quantiser {kind} has grid={tuple(grid)}: fsq needs whole numbers of at least 2, such as (8,5,5,5), ema and loss need ().")
    if kind == "fsq":
        if levels != 1:
            raise UserError(f"Quantiser fsq has levels={levels}; it has no residual levels, so give 1.")
        codes, dims = math.prod(grid), groups * len(grid)
    if min(codes, dims, groups, levels) < 1 or dims % groups or kmeans < 0:
        raise UserError(f"A quantiser of codes={codes}, dims={dims}, groups={groups}, levels={levels}, kmeans={kmeans} cannot be: all but kmeans "
                        "must be at least 1, and dims a multiple of groups.")
    if not 0 <= decay < 1 or restart < 0 or (restart and kind != "ema"):
        raise UserError(f"Quantiser {kind} has decay={decay} and restart={restart}: decay must be in [0, 1), restart 0 or, for ema, above.")
    return Quantizer(kind, codes, dims, groups, levels, decay, restart, kmeans, tuple(grid))


def init(spec: Quantizer, key) -> dict:
    """A fresh tree; codebooks [level, group, K, d] are uniform, about as long as a vector with entries of variance 1 / d."""
    if spec.kind == "fsq":
        return {}
    d = spec.dims // spec.groups
    shape = (spec.levels, spec.groups, spec.codes, d)
    codebook = math.sqrt(3 / d) * jax.random.uniform(key, shape, minval=-1.0)
    if spec.kind == "loss":
        return {"codebook": codebook}
    return {"codebook": codebook, "count": jnp.zeros(shape[:-1]), "sum": jnp.zeros(shape), "weight": jnp.zeros(())}


def nearest(codebook_kd, z_nd):
    """Index [n] of the code nearest to each vector, the first of equals; without gradient. A vector that is not finite gets some index in range.

    |z - e|^2 = |z|^2 - 2 (z.e - |e|^2 / 2), a tile of codes at a time, and the first that equals the tile's maximum: no [n, K] array is made, and
    on CPU it took 0.6 of the time of argmax over all of 512 codes for 2,048 vectors of 64, 0.4 for 8,192.
    """
    codebook_kd, z_nd = jax.lax.stop_gradient((jnp.float32(codebook_kd), jnp.float32(z_nd)))
    codes, d = codebook_kd.shape
    width = min(codes, TILE)
    tiles = -(-codes // width)
    padding = tiles * width - codes
    half = jnp.pad(0.5 * jnp.sum(codebook_kd * codebook_kd, -1), (0, padding), constant_values=jnp.inf)
    codebook_kd = jnp.pad(codebook_kd, ((0, padding), (0, 0)))

    def compare(best, tile):
        first, codebook, half = tile
        score = jnp.matmul(z_nd, codebook.T, precision=HIGHEST) - half
        top = jnp.max(score, -1)
        index = first + jnp.min(jnp.where(score == top[:, None], jnp.arange(width), width - 1), -1)
        return (jnp.maximum(top, best[0]), jnp.where(top > best[0], index, best[1])), None

    none = jnp.full(z_nd.shape[0], -jnp.inf), jnp.zeros(z_nd.shape[0], jnp.int32)  # len would refuse a symbolic size
    tiled = jnp.arange(0, codes, width), codebook_kd.reshape(tiles, width, d), half.reshape(tiles, width)
    return jax.lax.scan(compare, none, tiled)[0][1]


def quantise(spec: Quantizer, tree: dict, z):
    """-> (z_q, indices, q). z_q [..., dims] equals q, bit for bit, and hands its gradient to z unchanged (for fsq through tanh, which bounds z) and
    none to the codebook; q is the chosen vectors themselves, with gradient to the codebook and none to z.

    van den Oord et al. 2017, section 3.2; FSQ: Mentzer et al. 2023, section 3.1.
    """
    z = jnp.float32(z)
    if spec.kind == "fsq":
        bounded = _bounded(spec, z)
        steps = jnp.asarray(spec.grid) // 2
        digits = jnp.int32(jnp.round(jax.lax.stop_gradient(bounded))) + steps
        indices = jnp.sum(digits * _places(spec), -1)
        source = (bounded / steps).reshape(z.shape)
    else:
        source = z
        indices = _search(tree["codebook"], z.reshape(-1, spec.groups, spec.dims // spec.groups)).reshape(*z.shape[:-1], -1)
    q = lookup(spec, tree, indices)
    return jax.lax.stop_gradient(q) + (source - jax.lax.stop_gradient(source)), indices, q


def lookup(spec: Quantizer, tree: dict, indices):
    """The vectors [..., dims] that indices [..., c] stand for."""
    if spec.kind == "fsq":
        steps = jnp.asarray(spec.grid) // 2
        digits = indices[..., None] // _places(spec) % jnp.asarray(spec.grid)
        q = (digits - steps) / jnp.float32(steps)
    else:
        q = jnp.sum(_chosen(tree["codebook"], indices), -3)
    return q.reshape(*indices.shape[:-1], spec.dims)


def losses(spec: Quantizer, tree: dict, z, indices):
    """-> (codebook term, commitment term), scalars: |sg[r] - e|^2 and |r - sg[e]|^2 as means over positions and channels, summed over levels.

    e is the chosen code, r the vector it stands for: z, on later levels what is left of it. Not nats, not summed over dimensions: the published
    scale (van den Oord et al. 2017, equation 3; the weight beta of the second is the caller's). Where averages move the codebook (ema), the
    first is for the log only. fsq needs neither: both are 0.
    """
    if spec.kind == "fsq":
        return jnp.zeros(()), jnp.zeros(())
    chosen = _chosen(tree["codebook"], indices)
    rests = _rests(z, chosen)
    axes = tuple(a for a in range(rests.ndim) if a != rests.ndim - 3)
    term = lambda a, b: jnp.sum(jnp.mean(jnp.square(a - b), axes))
    return term(jax.lax.stop_gradient(rests), chosen), term(rests, jax.lax.stop_gradient(chosen))


def start(spec: Quantizer, tree: dict, z, key) -> dict:
    """The tree with codebooks from k-means on this batch, if it has seen no update yet (ema with kmeans > 0); otherwise as it is.

    Codes begin at vectors drawn from the batch; one that loses all of them stays where it is. Averages stay empty: debiased, they are those of
    the first batch after its update, which is one more round of Lloyd's algorithm.
    """
    if spec.kind != "ema" or not spec.kmeans:
        return tree
    z_gnd = jnp.moveaxis(jax.lax.stop_gradient(jnp.float32(z)).reshape(-1, spec.groups, spec.dims // spec.groups), 1, 0)

    def level(rest_gnd, key):
        def lloyd(_, codebook_gkd):
            count, total = jax.vmap(lambda z, i: _tally(z, i, spec.codes))(rest_gnd, _nearest_gn(codebook_gkd, rest_gnd))
            return jnp.where(count[..., None] > 0, total / jnp.maximum(count, 1.0)[..., None], codebook_gkd)

        codebook_gkd = jax.lax.fori_loop(0, spec.kmeans, lloyd, _drawn(key, rest_gnd, spec.codes))
        return rest_gnd - _rows(codebook_gkd, _nearest_gn(codebook_gkd, rest_gnd)), codebook_gkd

    codebook = jax.lax.cond(tree["weight"] == 0, lambda: jax.lax.scan(level, z_gnd, jax.random.split(key, spec.levels))[1], lambda: tree["codebook"])
    return tree | {"codebook": codebook}


def update(spec: Quantizer, tree: dict, z, indices, key):
    """-> (tree, restarts int32 [c]): averages and codebooks after a batch, and how many codes of each codebook began anew. ema only.

    Counts and sums of the vectors of each code are averaged with `decay` (van den Oord et al. 2017, appendix A.1) and divided by `weight`,
    1 - decay^t after t updates, so that they are means over batches from the first. A code is its sum over its count, both smoothed at use
    only: (sum + EPSILON old) / (count + EPSILON), by vectors where the code stood. Laplace smoothing of the count alone lets codes fall to the
    origin when they are not used. A code whose averaged count is below `restart` becomes a random vector of the batch, with count and sum as
    if it had got `restart` of it.
    """
    restarts = jnp.zeros(spec.levels * spec.groups, jnp.int32)
    if spec.kind != "ema":
        return tree, restarts
    old = tree["codebook"]
    d = old.shape[-1]
    rests = jax.lax.stop_gradient(_rests(z, _chosen(old, indices))).reshape(-1, *old.shape[:2], d)
    batch_count, batch_sum = _tally(rests.reshape(-1, d), _flat(indices, spec.codes).reshape(-1), old.size // d)
    average = lambda before, now: spec.decay * before + (1 - spec.decay) * now
    count, total = average(tree["count"], batch_count.reshape(old.shape[:-1])), average(tree["sum"], batch_sum.reshape(old.shape))
    weight = average(tree["weight"], 1.0)
    codebook = old + (total - count[..., None] * old) / (count + EPSILON * weight)[..., None]
    if spec.restart:
        dead = count / weight < spec.restart
        drawn = _drawn(key, jnp.moveaxis(rests, 0, 2).reshape(-1, len(rests), d), spec.codes).reshape(old.shape)
        held = jnp.where(dead, spec.restart * weight, count)
        codebook = jnp.where(dead[..., None], drawn, codebook)
        total = jnp.where(dead[..., None], held[..., None] * drawn, total)
        count, restarts = held, jnp.sum(dead, -1, dtype=jnp.int32).reshape(-1)
    return {"codebook": codebook, "count": count, "sum": total, "weight": weight}, restarts


def learn(spec: Quantizer, tree: dict, z, key, real=None):
    """-> (z_q, the tree after this batch, figures): embedding and commitment of `losses`, restarts, perplexity and usage (means over codebooks).

    real: bool, z's leading axes [b, n]: positions that count, at least one an example. For codebooks and figures the others (the silence behind a
    recording, say) are replaced by real positions of their example, counted anew from the first.
    """
    begin, anew = jax.random.split(key)
    if real is None:
        repeated = lambda values: values
    else:
        again = jnp.arange(z.shape[1]) % jnp.maximum(jnp.sum(real, 1, keepdims=True), 1)
        repeated = lambda values: jnp.where(real[..., None], values, jnp.take_along_axis(values, again[..., None], 1))
    heard = repeated(z)
    tree = start(spec, tree, heard, begin)
    z_q, indices, _ = quantise(spec, tree, z)
    indices = repeated(indices)
    embedding, commitment = losses(spec, tree, heard, indices)
    tree, restarts = update(spec, tree, heard, indices, anew)
    used = statistics(counts(spec, indices))
    return z_q, tree, {"embedding": embedding, "commitment": commitment, "restarts": jnp.sum(restarts),
                       "perplexity": jnp.mean(used["perplexity"]), "usage": jnp.mean(used["usage"])}


def counts(spec: Quantizer, indices):
    """How often each code was chosen, [c, K], over all leading axes. Of each example: jax.vmap. Of an epoch: the sum over its batches."""
    c = indices.shape[-1]
    flat = _flat(indices, spec.codes).reshape(-1)
    return jnp.zeros(c * spec.codes).at[flat].add(1.0).reshape(c, spec.codes)


def perplexity(counts):
    """exp of the entropy of counts [..., K]: how many codes, used equally often, would be as varied. 1 of one code (or none at all), K of all alike.

    That of a batch is at most its number of positions; a codebook is judged by the counts of a whole epoch.
    """
    counts = jnp.float32(counts)
    total = jnp.sum(counts, -1, keepdims=True)
    return jnp.exp(divergences.entropy(counts / jnp.where(total > 0, total, 1.0)))


def statistics(counts) -> dict:
    """Of counts [..., K] of a batch or an epoch, each [...]: perplexity, usage (share of codes chosen at all), dead (number of the others)."""
    used = jnp.asarray(counts) > 0
    return {"perplexity": perplexity(counts), "usage": jnp.mean(used, -1, dtype=jnp.float32), "dead": jnp.sum(~used, -1)}


def bits(spec: Quantizer) -> float:
    """Of a position's codes, stored as they are."""
    return spec.groups * spec.levels * math.log2(spec.codes)


def summary(spec: Quantizer, counts, positions_per_second: float | None = None) -> dict:
    """Figures of how often a split has each code, counts [c, K]: perplexity and usage (means over codebooks), dead codes of all; and bits a code, and
    a second of sound: uniform, stored as they are; empirical, each codebook's told by these frequencies."""
    used = jax.device_get(statistics(counts))
    uniform, empirical = math.log2(spec.codes), float(np.mean(np.log2(used["perplexity"])))
    found = {"perplexity": float(np.mean(used["perplexity"])), "usage": float(np.mean(used["usage"])), "dead": int(np.sum(used["dead"])),
             "uniform_bits_per_code": uniform, "empirical_bits_per_code": empirical}
    if positions_per_second is not None:
        per_second = bits(spec) * positions_per_second
        found |= {"uniform_bits_per_second": per_second, "empirical_bits_per_second": per_second * empirical / uniform}
    return found


def _search(codebook_lgkd, z_ngd):
    """Indices [n, l * g], each level's of what the levels before it left."""

    def level(rest_gnd, codebook_gkd):
        indices = _nearest_gn(codebook_gkd, rest_gnd)
        return rest_gnd - _rows(codebook_gkd, indices), indices

    codebook_lgkd, z_ngd = jax.lax.stop_gradient((codebook_lgkd, z_ngd))
    _, indices_lgn = jax.lax.scan(level, jnp.moveaxis(z_ngd, 1, 0), codebook_lgkd)
    return indices_lgn.reshape(-1, z_ngd.shape[0]).T


def _nearest_gn(codebook_gkd, z_gnd):
    return jax.lax.map(lambda pair: nearest(*pair), (codebook_gkd, z_gnd))


def _rows(values_gnd, indices_gk):
    return jax.vmap(lambda values, indices: values[indices])(values_gnd, indices_gk)


def _drawn(key, z_gnd, count):
    """`count` vectors of each group at random [g, count, d], no position twice while there are enough: one from each of `count` parts."""
    groups, n, _ = z_gnd.shape
    edges = np.arange(count + 1) * n // count
    within, turn = jax.random.split(key)
    places = jax.random.randint(within, (groups, count), edges[:-1], np.maximum(edges[1:], edges[:-1] + 1))
    return _rows(z_gnd, (places + jax.random.randint(turn, (groups, 1), 0, n)) % n)


def _tally(z_nd, indices_n, codes):
    """Number [codes] and sum [codes, d] of the vectors of each code."""
    return jax.ops.segment_sum(jnp.ones(len(z_nd)), indices_n, codes), jax.ops.segment_sum(z_nd, indices_n, codes)


def _flat(indices, codes):
    """Indices into all codebooks laid end to end."""
    return indices + codes * jnp.arange(indices.shape[-1])


def _chosen(codebook_lgkd, indices):
    """The chosen vectors, level by level: [..., l, g, d]."""
    levels, groups, codes, d = codebook_lgkd.shape
    return codebook_lgkd.reshape(-1, d)[_flat(indices, codes)].reshape(*indices.shape[:-1], levels, groups, d)


def _rests(z, chosen):
    """What each level quantises, [..., l, g, d]; its gradient is to z alone."""
    rests = [jnp.float32(z).reshape(*chosen.shape[:-3], *chosen.shape[-2:])]
    for level in range(chosen.shape[-3] - 1):
        rests.append(rests[-1] - jax.lax.stop_gradient(chosen[..., level, :, :]))
    return jnp.stack(rests, -3)


def _bounded(spec, z):
    """z [..., dims] squeezed between the outermost cells, 0 to 0: [..., g, len(grid)]; to be rounded to -(L // 2) ... (L - 1) // 2."""
    size = jnp.asarray(spec.grid, jnp.float32)
    reach, offset = REACH * (size - 1) / 2, 0.5 * (size % 2 == 0)
    return jnp.tanh(z.reshape(*z.shape[:-1], spec.groups, -1) + jnp.arctanh(offset / reach)) * reach - offset


def _places(spec):
    """What a digit of each dimension counts in an index: the first dimension runs fastest."""
    return jnp.asarray([math.prod(spec.grid[:i]) for i in range(len(spec.grid))])
