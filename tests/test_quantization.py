"""The quantiser against brute force, NumPy loops and closed forms; where each term's gradient goes; one device against four."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import mesh as meshes
from vae_jax.config import UserError
from vae_jax.losses import quantization

KEY = jax.random.key(0)
QUICK = {"xla_backend_optimization_level": 0}  # compiling takes most of the time here


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def vectors(rng, *shape):
    return np.float32(rng.standard_normal(shape))


def quick(f):
    return jax.jit(f, static_argnums=0, compiler_options=QUICK)


init, quantise, lookup, losses = (quick(f) for f in (quantization.init, quantization.quantise, quantization.lookup, quantization.losses))


class Step(NamedTuple):
    """What one step of training makes of a batch; `begun` is the tree its codes were chosen with."""

    begun: dict
    indices: jax.Array
    terms: tuple
    statistics: dict
    tree: dict
    restarts: jax.Array


@quick
def step(spec, tree, z, key):
    begun = quantization.start(spec, tree, z, key)
    _, indices, _ = quantization.quantise(spec, begun, z)
    statistics = quantization.statistics(quantization.counts(spec, indices))
    updated = quantization.update(spec, begun, z, indices, jax.random.fold_in(key, 1))
    return Step(begun, indices, quantization.losses(spec, begun, z, indices), statistics, *updated)


def brute(codebook_kd, z_nd):
    return np.argmin(((np.float64(z_nd)[:, None] - np.float64(codebook_kd)) ** 2).sum(-1), -1)


@pytest.mark.parametrize("codes", [1, 5, 128, 300, 512])
def test_nearest_equals_brute_force(rng, codes):
    codebook, z = vectors(rng, codes, 16), vectors(rng, 700, 16)
    found = np.asarray(jax.jit(quantization.nearest)(codebook, z))
    np.testing.assert_array_equal(found, brute(codebook, z))
    assert found.dtype == np.int32


@pytest.mark.parametrize("codes", [7, 300])
def test_ties_go_to_the_first(rng, codes):
    """On whole numbers all arithmetic is exact: equal codes, and points midway between codes, are true ties. Many vectors have several nearest."""
    codebook, z = np.float32(rng.integers(-2, 3, (codes, 3))), np.float32(rng.integers(-4, 5, (2000, 3)) / 2)
    distance = ((z[:, None] - codebook) ** 2).sum(-1)
    assert ((distance == distance.min(-1, keepdims=True)).sum(-1) > 1).mean() > 0.2
    np.testing.assert_array_equal(jax.jit(quantization.nearest)(codebook, z), brute(codebook, z))


def test_indices_stay_in_range(rng):
    z = vectors(rng, 50, 4)
    z[:5, 0] = np.nan, np.inf, -np.inf, 1e30, -1e30
    z[5:7] = [[np.nan], [np.inf]]
    found = np.asarray(quantization.nearest(vectors(rng, 130, 4), z))
    assert found.min() >= 0 and found.max() < 130


@pytest.mark.parametrize("settings", [dict(), dict(groups=2), dict(levels=3), dict(groups=4, levels=2)])
def test_straight_through(rng, settings):
    spec = quantization.get("loss", codes=20, dims=8, **settings)
    tree, z, slope = init(spec, KEY), vectors(rng, 3, 5, 8), vectors(rng, 3, 5, 8)
    loss = lambda z_q: jnp.sum(slope * jnp.sin(z_q))

    @functools.partial(jax.grad, argnums=1, has_aux=True)
    def through(spec, z):
        found = quantization.quantise(spec, tree, z)
        return loss(found[0]), found

    to_z, (z_q, indices, q) = quick(through)(spec, z)
    assert z_q.shape == q.shape == z.shape and indices.shape == (3, 5, spec.levels * spec.groups)
    np.testing.assert_array_equal(z_q, q)
    np.testing.assert_array_equal(lookup(spec, tree, indices), q)
    np.testing.assert_array_equal(to_z, jax.grad(loss)(z_q))


@pytest.mark.parametrize("settings", [dict(), dict(groups=2, levels=2)])
def test_each_term_moves_only_its_own(rng, settings):
    """3 x 3: reconstruction, codebook and commitment terms; encoder, codebook and decoder."""
    spec = quantization.get("loss", codes=12, dims=4, **settings)
    params = {"encoder": vectors(rng, 6, 4), "codebook": init(spec, KEY), "decoder": vectors(rng, 4, 6)}
    x = vectors(rng, 40, 6)

    def terms(params):
        z = x @ params["encoder"]
        z_q, indices, _ = quantization.quantise(spec, params["codebook"], z)
        return jnp.stack([jnp.mean((z_q @ params["decoder"] - x) ** 2), *quantization.losses(spec, params["codebook"], z, indices)])

    slopes = jax.jit(jax.jacrev(terms), compiler_options=QUICK)(params)
    moved = {player: [bool(np.any(np.asarray(jax.tree.leaves(slopes[player])[0][i]))) for i in range(3)] for player in params}
    assert moved == {"encoder": [True, False, True], "codebook": [False, True, False], "decoder": [True, False, False]}


def test_losses_are_means_with_the_gradients_of_the_paper(rng):
    spec = quantization.get("loss", codes=5, dims=3)
    tree, z = {"codebook": vectors(rng, 1, 1, 5, 3)}, vectors(rng, 2, 20, 3)
    rows, book = z.reshape(-1, 3), tree["codebook"][0, 0]
    chosen = brute(book, rows)
    indices = quantise(spec, tree, z)[1]
    embedding, commitment = losses(spec, tree, z, indices)
    slopes = quick(jax.jacrev(lambda *a: jnp.stack(quantization.losses(*a)), (1, 2)))(spec, tree, z, indices)
    assert float(embedding) == float(commitment) == pytest.approx(np.mean((rows - book[chosen]) ** 2), rel=1e-5)
    pull = 2 * (book[chosen] - rows) / rows.size
    expected = np.zeros_like(book)
    np.add.at(expected, chosen, pull)
    np.testing.assert_allclose(slopes[0]["codebook"][0, 0, 0], expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(slopes[1][1].reshape(-1, 3), -pull, rtol=1e-4, atol=1e-7)


def test_averages_equal_a_loop(rng):
    """60 drifting batches: averages debiased by 1 - decay^t, smoothed at use only, codes chosen before the update; a code nobody chooses stays."""
    spec = quantization.get("ema", codes=6, dims=3, decay=0.9, kmeans=0)
    tree = jax.tree.map(np.array, init(spec, KEY))
    tree["codebook"][0, 0, 5] = 100.0
    book, count, total = np.float64(tree["codebook"][0, 0]), np.zeros(6), np.zeros((6, 3))
    for t in range(1, 61):
        z = vectors(rng, 4, 10, 3) + np.float32(0.02 * t)
        rows, chosen = z.reshape(-1, 3), brute(book, z.reshape(-1, 3))
        hot = np.eye(6)[chosen]
        found = step(spec, tree, z, KEY)
        tree = jax.device_get(found.tree)
        np.testing.assert_array_equal(found.indices.reshape(-1), chosen)
        count, total = 0.9 * count + 0.1 * hot.sum(0), 0.9 * total + 0.1 * hot.T @ rows
        mean_count, mean_total = count / (1 - 0.9**t), total / (1 - 0.9**t)
        book = (mean_total + 1e-5 * book) / (mean_count + 1e-5)[:, None]
        np.testing.assert_allclose(tree["codebook"][0, 0], book, rtol=1e-4, atol=1e-5)
        assert not found.restarts.any()
    np.testing.assert_allclose(tree["count"][0, 0], count, rtol=1e-4)
    np.testing.assert_allclose(tree["sum"][0, 0], total, rtol=1e-4, atol=1e-4)
    assert float(tree["weight"]) == pytest.approx(1 - 0.9**60, rel=1e-5)
    # Laplace smoothing as it is mostly published, which adds to the count alone, differs only where there is nothing to average
    laplace = (mean_count + 1e-5) / (mean_count.sum() + 6e-5) * mean_count.sum()
    used = mean_count > 0.1
    assert used.sum() == 5
    np.testing.assert_allclose(book[used], (mean_total / laplace[:, None])[used], rtol=2e-4)
    np.testing.assert_array_equal(tree["codebook"][0, 0, 5], 100.0)


def test_k_means_start_agrees_with_the_first_update(rng):
    """An update after the start is one more round of Lloyd's algorithm, so that at its end the first step moves nothing."""
    z = np.concatenate([vectors(rng, 150, 4), 3 + vectors(rng, 50, 4)])
    specs = {k: quantization.get("ema", codes=8, dims=4, groups=2, kmeans=k) for k in (1, 2, 60)}
    fresh = init(specs[1], KEY)
    one, two, many = (step(spec, fresh, z, KEY) for spec in specs.values())
    np.testing.assert_allclose(one.tree["codebook"], two.begun["codebook"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(many.tree["codebook"], many.begun["codebook"], rtol=1e-4, atol=1e-5)
    assert float(many.terms[1]) < float(two.terms[1]) < float(one.terms[1])
    for group in range(2):
        chosen = np.asarray(many.indices[:, group])
        centroids = [z[chosen == k, 2 * group : 2 * group + 2].mean(0) for k in range(8)]
        np.testing.assert_allclose(many.begun["codebook"][0, group], centroids, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(many.tree["sum"], many.tree["count"][..., None] * many.begun["codebook"], rtol=1e-4, atol=1e-4)
    later = step(specs[60], many.tree, 5 + z, KEY)
    np.testing.assert_array_equal(later.begun["codebook"], many.tree["codebook"])


@pytest.mark.parametrize("settings", [dict(), dict(groups=2, levels=2)])
def test_restart_resets_code_count_and_sum(rng, settings):
    spec = quantization.get("ema", codes=16, dims=4, kmeans=0, restart=0.5, **settings)
    tree = jax.tree.map(np.array, init(spec, KEY))
    tree["codebook"][:, :, 3:] += 50  # 13 of each 16 codes lie far from all data
    z = vectors(rng, 8, 25, 4)
    first = step(spec, tree, z, KEY)
    after, d = jax.device_get(first.tree), 4 // spec.groups
    np.testing.assert_array_equal(first.statistics["dead"], first.restarts)
    assert (first.restarts >= 13).all() and first.restarts.shape == (spec.groups * spec.levels,)
    np.testing.assert_allclose(after["count"][:, :, 3:] / after["weight"], 0.5, rtol=1e-5)
    np.testing.assert_allclose(after["sum"], after["count"][..., None] * after["codebook"], rtol=1e-3, atol=1e-5)
    for group in range(spec.groups):
        part = z[..., group * d : (group + 1) * d].reshape(-1, d)
        places = [int(np.flatnonzero((part == code).all(-1))[0]) for code in after["codebook"][0, group, 3:]]
        assert len(set(places)) == 13  # vectors of the batch, each from a place of its own
    second = step(spec, after, z, jax.random.key(1))
    assert (second.restarts < 8).all() and (second.statistics["usage"] > 0.5).all()  # revived codes are chosen: 3 of 16 were before
    assert (second.statistics["usage"][: spec.groups] > 0.8).all() and float(second.terms[1]) < 0.7 * float(first.terms[1])


def test_draws_do_not_repeat_and_are_random(rng):
    z = np.arange(100.0, dtype=np.float32).reshape(1, 100, 1)
    draw = jax.jit(jax.vmap(lambda key: quantization._drawn(key, z, 40)[0, :, 0]), compiler_options=QUICK)
    drawn = np.asarray(draw(jax.random.split(KEY, 200)))
    assert all(len(set(row)) == 40 for row in drawn)
    assert np.abs(drawn.mean(0) - 49.5).max() < 10  # each code may come from anywhere: five standard errors
    assert set(np.asarray(quantization._drawn(KEY, z[:, :3], 40)).ravel()) == {0, 1, 2}


def test_statistics():
    one, none, some = 1e6 * np.eye(512)[7], np.zeros(512), np.repeat([5e-4, 2.5e-4, 2.5e-4, 0], 128)
    found = quantization.perplexity(np.stack([np.full(512, 3), one, none, some]))
    np.testing.assert_allclose(found, [512, 1, 1, 128 * 2**1.5], rtol=1e-5)
    spec = quantization.get("ema", codes=8, dims=4, groups=2)
    batches = [np.stack([np.full((2, 3), k), np.arange(6).reshape(2, 3)], -1) for k in range(8)]
    counts = [quick(quantization.counts)(spec, b) for b in batches]
    np.testing.assert_array_equal(counts[3], [[0, 0, 0, 6, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(jax.vmap(functools.partial(quantization.counts, spec))(batches[3]).sum(0), counts[3])
    batch, epoch = quantization.statistics(counts[3]), quantization.statistics(sum(counts))
    np.testing.assert_allclose(batch["perplexity"], [1, 6], rtol=1e-5)
    np.testing.assert_allclose(epoch["perplexity"], [8, 6], rtol=1e-5)  # a batch may look collapsed where the epoch is not
    np.testing.assert_array_equal(batch["dead"], [7, 2])
    np.testing.assert_array_equal(epoch["usage"], [1, 0.75])


def test_residual_levels_equal_a_loop(rng):
    spec = quantization.get("ema", codes=16, dims=6, groups=2, levels=4)
    z = vectors(rng, 300, 6)
    found = step(spec, init(spec, KEY), z, KEY)
    q, indices = lookup(spec, found.begun, found.indices), found.indices
    rest, errors, book = z.reshape(300, 2, 3).copy(), [], np.asarray(found.begun["codebook"])
    for level in range(4):
        for group in range(2):
            chosen = brute(book[level, group], rest[:, group])
            np.testing.assert_array_equal(indices[:, 2 * level + group], chosen)
            rest[:, group] -= book[level, group, chosen]
        errors.append(np.mean(rest**2))
    assert all(later < 0.7 * earlier for earlier, later in zip([1.0, *errors], errors))
    np.testing.assert_allclose(z - q, rest.reshape(300, 6), atol=1e-5)
    np.testing.assert_allclose(found.terms, sum(errors), rtol=1e-4)
    # Averages of a level are of what the levels before it left
    second = z.reshape(300, 2, 3)[:, 1] - book[0, 1, indices[:, 1]]
    for k in set(np.asarray(indices)[:, 3]):
        np.testing.assert_allclose(found.tree["codebook"][1, 1, k], second[indices[:, 3] == k].mean(0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("grid, groups", [((8, 5, 5, 5), 1), ((2, 3, 4), 2)])
def test_fsq(rng, grid, groups):
    spec = quantization.get("fsq", grid=grid, groups=groups)
    assert spec.codes == np.prod(grid) and spec.dims == groups * len(grid)
    tree = init(spec, KEY)
    every = np.stack([np.arange(spec.codes)] * groups, -1)
    q = np.asarray(lookup(spec, tree, every))
    assert len({tuple(row) for row in q}) == spec.codes
    for i, size in enumerate(grid):
        np.testing.assert_array_equal(np.unique(q[:, i]), np.float32((np.arange(size) - size // 2) / (size // 2)))
    # z that tanh leads to the middle of each cell: the bound as the paper writes it, undone
    size = np.tile(np.float64(grid), groups)
    reach, offset = 1.001 * (size - 1) / 2, np.where(size % 2 == 0, 0.5, 0.0)
    z = np.float32(np.arctanh((q * (size // 2) + offset) / reach) - np.arctanh(offset / reach))
    z_q, indices, again = quantise(spec, tree, z)
    np.testing.assert_array_equal(indices, every)
    np.testing.assert_array_equal(again, q)
    np.testing.assert_array_equal(z_q, q)
    # Rounding hands gradients on unchanged: what z gets is the slope of the bound alone
    slope, z = vectors(rng, 500, spec.dims), 2 * vectors(rng, 500, spec.dims)
    got = quick(jax.grad(lambda spec, z: jnp.sum(slope * quantization.quantise(spec, tree, z)[0]), 1))(spec, z)
    inside = reach * (1 - np.tanh(z + np.arctanh(offset / reach)) ** 2) / (size // 2)
    np.testing.assert_allclose(got, slope * inside, rtol=1e-3, atol=1e-5)
    far = quantise(spec, tree, np.float32([[1e9] * spec.dims, [-1e9] * spec.dims, [0] * spec.dims]))
    np.testing.assert_array_equal(far[0], [(np.ceil(size / 2) - 1) / (size // 2), -np.ones(spec.dims), np.zeros(spec.dims)])
    found = step(spec, tree, z, KEY)  # a drop-in: the same calls
    assert found.tree == {} and not found.restarts.any() and float(sum(found.terms)) == 0 and found.statistics["usage"].shape == (groups,)


def test_four_devices_agree_with_one(rng):
    spec = quantization.get("ema", codes=24, dims=8, groups=2, levels=2, kmeans=4, restart=2.5)
    batches, ended = [vectors(rng, 8, 4, 4, 8) + np.float32(0.1 * i) for i in range(4)], []
    for mesh in (meshes.make(1), meshes.make(4)):
        tree = jax.device_put(init(spec, KEY), meshes.replicated(mesh))
        for i, batch in enumerate(batches):
            found = step(spec, tree, meshes.to_global(mesh, {"z": batch})["z"], jax.random.key(i))
            tree = found.tree
        ended.append(jax.device_get(found))
    assert ended[0].restarts.sum() > 0  # some among what is compared
    jax.tree.map(lambda one, four: np.testing.assert_allclose(one, four, rtol=1e-4, atol=1e-5), *ended)


def test_a_resumed_run_is_the_unbroken_one(rng):
    spec = quantization.get("ema", codes=24, dims=4, kmeans=3, restart=1.0)
    batches = [vectors(rng, 64, 4) for _ in range(6)]

    def run(tree, steps):
        for i in steps:
            tree = jax.device_get(step(spec, tree, batches[i], jax.random.fold_in(KEY, i)).tree)
        return tree

    fresh = jax.device_get(init(spec, KEY))
    whole, stored = run(fresh, range(6)), run(fresh, range(3))
    jax.tree.map(np.testing.assert_array_equal, whole, run(stored, range(3, 6)))


def test_gradient_at_a_code_is_finite():
    spec = quantization.get("loss", codes=6, dims=4)
    tree = init(spec, KEY)
    z = tree["codebook"][0, 0]

    def loss(spec, tree, z):
        z_q, indices, _ = quantization.quantise(spec, tree, z)
        terms = quantization.losses(spec, tree, z, indices)
        return sum(terms) + jnp.sum(z_q**2), terms

    slopes, terms = quick(jax.grad(loss, (1, 2), has_aux=True))(spec, tree, z)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(slopes)) and float(sum(terms)) == 0


def test_half_precision_inputs_are_decided_in_float32(rng):
    """Codes 1/512 apart near 1 are one and the same in bfloat16, whose steps there are 1/128."""
    codebook = 1 + np.float32(np.arange(16)[:, None] * np.ones(4) / 512)
    tree, z = {"codebook": jnp.asarray(codebook[None, None])}, jnp.float32(1 + rng.integers(0, 5, (200, 4)) / 128)
    spec = quantization.get("loss", codes=16, dims=4)
    half, full = (quantise(spec, tree, z.astype(t)) for t in (jnp.bfloat16, jnp.float32))
    assert half[0].dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, half, full)
    np.testing.assert_array_equal(half[1][:, 0], brute(codebook, z))
    assert len(np.unique(half[1])) > 8
    slope = quick(jax.grad(lambda spec, z: jnp.sum(quantization.quantise(spec, tree, z)[0]), 1))(spec, z.astype(jnp.bfloat16))
    assert slope.dtype == jnp.bfloat16 and (slope == 1).all()


@pytest.mark.parametrize("settings, word", [
    (dict(kind="vq"), "ema, loss, fsq"), (dict(kind="fsq"), "grid"), (dict(kind="ema", grid=(3, 3)), "grid"), (dict(kind="fsq", grid=(8, 1)), "grid"),
    (dict(kind="fsq", grid=(8, 5), levels=2), "levels"), (dict(kind="ema", dims=64, groups=3), "groups"), (dict(kind="ema", codes=0), "codes"),
    (dict(kind="loss", restart=1.0), "restart"), (dict(kind="ema", decay=1.0), "decay")])
def test_settings_that_cannot_be(settings, word):
    with pytest.raises(UserError, match=word):
        quantization.get(**settings)
