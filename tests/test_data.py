"""Batches as a pure function of (seed, step), evaluation padding, and the prefetching thread."""

import jax
import numpy as np
import pytest
import toys

from vae_jax import data, evaluate
from vae_jax import mesh as meshes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toys.pictures(tmp_path_factory.mktemp("data") / "toy")


@pytest.mark.parametrize("n, batch", [(10, 3), (10, 10), (4, 11), (7, 1)])
def test_every_epoch_is_a_permutation_and_no_remainder_is_dropped(n, batch):
    stream = np.concatenate([data.batch_indices(5, s, n, batch) for s in range(3 * n)])
    for epoch in stream[: len(stream) // n * n].reshape(-1, n):
        assert sorted(epoch) == list(range(n))
    assert not np.array_equal(stream[:n], stream[n : 2 * n]) or n == 1
    np.testing.assert_array_equal(data.batch_indices(5, 4, n, batch), stream[4 * batch : 5 * batch])
    assert n < 5 or not np.array_equal(np.concatenate([data.batch_indices(6, s, n, batch) for s in range(n)])[:n], stream[:n])


def test_train_batches_start_at_any_step(folder):
    source, mesh = data.Source(folder, "train"), meshes.make(4)
    first = data.train_batches(source, mesh, 1, 0, 8)
    batches = [jax.device_get(next(first)) for _ in range(5)]
    late = data.train_batches(source, mesh, 1, 4, 8)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(next(late)), batches[4])
    assert batches[0]["image"].dtype == np.uint8 and batches[0]["image"].shape == (8, 8, 8, 1)
    first.close(), late.close()


def test_reading_by_record_equals_memory(folder):
    small, whole = data.Source(folder, "train", memory_mb=0), data.Source(folder, "train")
    assert small.arrays is None and whole.arrays is not None
    rows = np.array([5, 0, 95, 5])
    jax.tree.map(np.testing.assert_array_equal, small.read(rows), whole.read(rows))


def test_evaluation_counts_each_row_once_on_any_mesh(folder):
    source = data.Source(folder, "test")

    def metrics(params, variables, batch, key):
        return {"x": batch["image"].astype(np.float32).mean((1, 2, 3)), "one": batch["mask"] * 0 + 1}

    expected = source.arrays["image"].reshape(27, -1).mean(1)
    for devices, batch in ((1, 10), (4, 8), (4, 64)):
        mesh = meshes.make(devices)
        summary = lambda sums, squares, n: {"x": sums["x"] / n, "n": sums["one"], "sq": squares["x"] / n}
        found = evaluate.evaluate(evaluate.make_sums(metrics, mesh), summary, {}, {}, source, mesh, batch, jax.random.key(0))
        assert found == pytest.approx({"x": expected.mean(), "n": 27, "sq": (expected**2).mean()}, rel=1e-6)
        answers = iter([False, True])
        sums = evaluate.make_sums(metrics, mesh)
        assert evaluate.evaluate(sums, summary, {}, {}, source, mesh, 4, jax.random.key(0), interrupted=lambda: next(answers)) is None  # at once
        assert next(answers, None) is None
        rows = evaluate.collect(lambda p, v, b: {"i": b["index"], "y": b["image"].sum((1, 2, 3))}, {}, {}, source, mesh, batch)
        np.testing.assert_array_equal(rows["i"], np.arange(27))
        np.testing.assert_array_equal(rows["y"], source.arrays["image"].sum((1, 2, 3)))


def test_an_error_in_the_thread_is_raised_and_closing_ends_it():
    def broken():
        yield 1
        raise RuntimeError("bad record")

    items = data._prefetch(broken(), 2)
    assert next(items) == 1
    with pytest.raises(RuntimeError, match="bad record"):
        next(items)
    endless = data._prefetch(iter(lambda: 0, 1), 2)
    assert next(endless) == 0
    endless.close()
    assert not [t for t in __import__("threading").enumerate() if t.name == "batches"]


def test_standard_error_matches_numpy():
    x = np.random.default_rng(0).normal(size=100)
    assert evaluate.standard_error(x.sum(), (x**2).sum(), 100) == pytest.approx(x.std(ddof=1) / 10)
