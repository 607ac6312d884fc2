"""Files of codes: they come back, cost what the formula says, and are refused where they would come back wrong."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from vae_jax import compression, records, session, tasks
from vae_jax.config import Config, UserError
from vae_jax.tasks import code_prior, vqvae

AUTO = vqvae.Model(hidden=4, residual=2, blocks=0, codes=20, dims=2, kmeans=0)
SPEC = records.Spec("toy", {"image": records.Field((24, 24, 3), "uint8"), "label": records.Field((), "int64", ("a", "b", "c"))}, {"train": 1})
RNG = np.random.default_rng(0)
CODES = RNG.integers(0, 20, (70, 6, 6, 1)).astype(np.int32)


def run(task, condition="", seed=0, told=""):
    """condition: of the prior, told: of the decoder."""
    auto = dataclasses.replace(AUTO, condition=told)
    model = auto if task == "vqvae" else code_prior.Model(autoencoder=auto, channels=4, layers=2, first_kernel=3, hidden=8, condition=condition)
    config = Config(task=task, model=model)
    made = tasks.get(config, SPEC)
    batch = {"image": np.zeros((1, 24, 24, 3), np.uint8), "label": np.zeros(1, np.int32)}
    params, variables = jax.jit(made.init)(jax.random.key(seed), batch)
    return session.Session(pathlib.Path("runs/toy"), config, SPEC, made, None, params, variables, 7)


@pytest.fixture(scope="module")
def packed():
    return run("vqvae")


@pytest.fixture(scope="module", params=[("", ""), ("label", ""), ("", "label")])
def prior(request):
    return run("code_prior", request.param[0], told=request.param[1])


def test_packed_files(packed):
    data = compression.write(packed, compression.Codes(CODES, {}))
    assert 0 < len(data) - 70 * 36 * 5 // 8 < 400  # 5 bits a code of 20, and the header
    np.testing.assert_array_equal(compression.read(packed, data, "x").indices, CODES)


def test_files_of_a_decoder_that_is_told_the_class():
    label = RNG.integers(0, 3, 70).astype(np.int32)
    told = run("vqvae", told="label")
    found = compression.read(told, compression.write(told, compression.Codes(CODES, {"label": label})), "x")
    np.testing.assert_array_equal(found.indices, CODES)
    np.testing.assert_array_equal(found.told["label"], label)


def test_files_of_a_prior(prior, monkeypatch):
    label = RNG.integers(0, 3, 70).astype(np.int32) if prior.task.condition else None
    codes = compression.Codes(CODES, {} if label is None else {"label": label})
    data = compression.write(prior, codes)
    found = compression.read(prior, data, "x")
    np.testing.assert_array_equal(found.indices, CODES)
    assert (label is None and not found.told) or np.array_equal(found.told["label"], label)
    batch = {"codes": CODES, "label": np.zeros(70, np.int32) if label is None else label}
    nats = np.sum(np.asarray(jax.jit(prior.task.metrics)(prior.params, prior.variables, batch, None)["loss"]))
    start = len(compression.MAGIC) + compression.DIGEST + 4
    header = start + int.from_bytes(data[start - 4:start], "big")
    labels = 0 if label is None else -(-70 * 2 // 8)
    assert len(data) - header - labels == pytest.approx(nats / np.log(2) / 8, rel=0.002, abs=12)
    for place in (header + labels + 2, len(data) - 3, len(data) // 2):
        bad = bytearray(data)
        bad[place] ^= 1
        with pytest.raises(UserError, match="is damaged"):
            compression.read(prior, bytes(bad), "x")
    with pytest.raises(UserError, match="is damaged"):
        compression.read(prior, data[:-4], "x")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="another kind of machine"):
        patch.setattr(compression, "_machine", lambda: "abacus")
        compression.read(prior, data, "x")
    others = jax.tree.map(lambda x: x * 1.001, prior.params["prior"])  # as if another processor had rounded otherwise
    with monkeypatch.context() as patch, pytest.raises(UserError, match="is whole, but here the prior's probabilities differ"):
        patch.setattr(compression, "mark", lambda _, kept=compression.mark(prior): kept)
        compression.read(prior._replace(params={**prior.params, "prior": others}), data, "x")


def test_refusals(packed):
    data = compression.write(packed, compression.Codes(CODES, {}))
    with pytest.raises(UserError, match="other weights"):
        compression.read(run("vqvae", seed=1), data, "mine.codes")
    for bad in (b"", data[:10], b"something else entirely", b"x" + data[1:]):
        with pytest.raises(UserError, match="mine.codes is no file of compressed codes"):
            compression.read(packed, bad, "mine.codes")
    for bad in (data[:len(compression.MAGIC)], data[:len(compression.MAGIC) + 40], data[:-1], data + b"0"):
        with pytest.raises(UserError, match="mine.codes is damaged"):
            compression.read(packed, bad, "mine.codes")
    for place in [*range(len(compression.MAGIC), 350, 13), *range(len(data) - 200, len(data), 13)]:
        bad = bytearray(data)
        bad[place] ^= 16
        with pytest.raises(UserError, match="is damaged"):
            compression.read(packed, bytes(bad), "mine.codes")
