"""Batches as a pure function of (seed, step), evaluation padding, crops of longer sounds, and the prefetching thread."""

import pathlib
import tracemalloc

import jax
import numpy as np
import pytest
import toys
from scipy import stats

from vae_jax import config as configs
from vae_jax import data, evaluate, record_writer, records, session, train
from vae_jax import mesh as meshes
from vae_jax.config import Config, Data, Eval, Run, UserError


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


# Crops

LENGTHS = (1, 7, 16, 17, 40, 100, 16, 5, 31, 64)
CROP = 16


def numbered(i, samples=100):
    """int16 [samples, 2], every value of which says whose and where it is."""
    return (1000 * i + 2 * np.arange(samples)[:, None] + np.arange(2)).astype(np.int16)


def write_sounds(folder, any_length, lengths=LENGTHS, sound=numbered):
    """Records of these lengths, as they are or filled up behind `valid`; names of several lengths, so that payloads do not tell."""
    most = max(lengths)
    fields = {"audio": records.Field((None if any_length else most, 2), "int16"), "valid": records.Field((), "int32"),
              "start": records.Field((), "int64"), "label": records.Field((), "int64", ("a", "b")), "group": records.Field((), "str")}
    with records.Writer(folder, "sounds") as writer:
        for i, v in enumerate(lengths):
            audio = np.pad(sound(i, v), ((0, 0 if any_length else most - v), (0, 0)), constant_values=-1)
            row = {"audio": audio, "valid": v, "start": 100 * i, "label": i % 2, "group": "g" * i}
            writer.add("train", records.encode(fields, row))
        return writer.finish(fields, {}, {"rate": 4000, "reference_db": -4.0, "peak": 0.3})


@pytest.fixture(params=[True, False], ids=["any length", "one length"])
def sounds(request, tmp_path, monkeypatch):
    """Several records a shard."""
    monkeypatch.setattr(record_writer, "SHARD_BYTES", 600)
    write_sounds(tmp_path / "sounds", request.param)
    return str(tmp_path / "sounds")


def check_crops(fields, lengths=LENGTHS):
    """Every crop is what its record holds at its start, zeros behind; returns (record, start) of each."""
    record = fields["start"] // 100  # no crop starts a hundred samples late
    for audio, valid, start, label, i in zip(*(fields[k] for k in ("audio", "valid", "start", "label")), record):
        assert valid == min(CROP, lengths[i]) and label == i % 2
        assert np.array_equal(audio[:valid], numbered(i)[start % 100:start % 100 + valid]) and not audio[valid:].any()
    return record, fields["start"] % 100


@pytest.mark.parametrize("memory_mb", [0, 100])
def test_evaluation_reads_crops_side_by_side(sounds, memory_mb):
    source = data.Source(sounds, "train", memory_mb, CROP)
    assert (source.arrays is None) == (memory_mb == 0) and len(source) == sum(max(1, -(-v // CROP)) for v in LENGTHS)
    fields = source.read(np.arange(len(source)))
    record, start = check_crops(fields)
    expected = [(i, min(k, max(0, v - CROP))) for i, v in enumerate(LENGTHS) for k in range(0, v, CROP)]
    assert list(zip(record.tolist(), start.tolist())) == expected and fields["index"].tolist() == list(range(len(source)))
    assert fields["audio"].shape == (len(source), CROP, 2) and fields["audio"].dtype == np.int16
    assert source.texts(np.array([9, 0, 15, 14]), ["group"]) == {"group": ["g" * 5, "", "g" * 6, "g" * 5]}
    rows = np.array([9, 3, 9, 0])
    jax.tree.map(np.testing.assert_array_equal, source.read(rows), {k: v[rows] for k, v in fields.items()})
    part = data.Source(sounds, "train[4:6]", memory_mb, CROP)
    assert len(part) == 3 + 7 and set(check_crops(part.read(np.arange(10)))[0].tolist()) == {4, 5}


def test_training_cuts_anywhere_from_seed_and_position(sounds):
    """The same from memory and from files, at any step, in halves of two processes; every place of a record equally often."""
    source, files, mesh = data.Source(sounds, "train", 100, CROP), data.Source(sounds, "train", 0, CROP), meshes.make(4)
    stream = data.train_batches(source, mesh, 3, 0, 8)
    batches = [jax.device_get(next(stream)) for _ in range(6)]
    late = data.train_batches(files, mesh, 3, 4, 8)
    jax.tree.map(np.testing.assert_array_equal, [jax.device_get(next(late)) for _ in range(2)], batches[4:])
    other = data.train_batches(source, mesh, 4, 0, 8)
    assert not np.array_equal(jax.device_get(next(other))["start"], batches[0]["start"])
    stream.close(), late.close(), other.close()
    n, positions = len(source), np.arange(200 * len(source))
    rows = np.concatenate([data.batch_indices(3, s, n, n) for s in range(200)])
    starts = source.random_starts(rows, 3, positions)
    record, found = check_crops(source.read(rows, starts))
    assert np.array_equal(found, starts) and np.array_equal(source.random_starts(rows[50:60], 3, positions[50:60]), starts[50:60])
    for i, v in enumerate(LENGTHS):
        counts = np.bincount(starts[record == i], minlength=max(1, v - CROP + 1))
        assert len(counts) == max(1, v - CROP + 1) and (len(counts) == 1 or stats.chisquare(counts).pvalue > 1e-3)
    assert np.array_equal(np.concatenate([b["start"] for b in batches]), (100 * record + starts)[:48])


def test_each_process_reads_its_own_rows(sounds, monkeypatch):
    mesh, read = meshes.make(4), []
    whole = data.train_batches(data.Source(sounds, "train", 0, CROP), mesh, 3, 2, 8)
    expected, source = jax.device_get(next(whole)), data.Source(sounds, "train", 0, CROP)
    monkeypatch.setattr(source, "read", lambda rows, starts: read.append(len(rows)) or data.Source.read(source, rows, starts))
    for own in (slice(0, 4), slice(4, 8)):
        monkeypatch.setattr(meshes, "own_rows", lambda batch, own=own: own)
        part = data.train_batches(source, mesh, 3, 2, 8)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(next(part)), {k: v[own] for k, v in expected.items()})
        part.close()
    whole.close()
    assert set(read) == {4}


def test_crops_gathered_on_an_accelerator_equal_those_of_the_host(sounds, monkeypatch):
    source, mesh = data.Source(sounds, "train", 100, CROP), meshes.make(4)
    host = data.train_batches(source, mesh, 3, 5, 24)
    expected = [jax.device_get(next(host)) for _ in range(3)]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert data._resident(source, mesh) is not None and data._resident(data.Source(sounds, "train", 0, CROP), mesh) is None
    device = data.train_batches(source, mesh, 3, 5, 24)
    found = [jax.device_get(next(device)) for _ in range(3)]
    host.close(), device.close()
    assert {k: v.dtype for k, v in found[0].items()} == {k: v.dtype for k, v in expected[0].items()}
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_sounds_are_held_once(tmp_path):
    lengths = [500_000] * 30
    write_sounds(tmp_path / "long", True, lengths, lambda i, v: np.full((v, 2), i, np.int16))
    tracemalloc.start()
    source = data.Source(str(tmp_path / "long"), "train", crop=1000)
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert source.arrays["audio"].nbytes == 4 * (sum(lengths) + 1000) and held < 1.05 * 4 * sum(lengths) and most < 1.6 * 4 * sum(lengths)
    assert source.read(np.array([500 * 7 + 499]))["audio"].tolist() == [[[7, 7]] * 1000]


def test_damage_is_found_where_it_is_read(sounds):
    """A sample: when its record is read. A length: at once if it cannot be, else when its record is read."""
    whole, path = data.Source(sounds, "train", 0, CROP), sorted(pathlib.Path(sounds).glob("*.tfrecord*"))[0]
    original = path.read_bytes()
    at = original.index(b"\x05audio") + 6 + 9  # behind the tags and lengths of the field's message, its list and its bytes
    path.write_bytes(original[:at] + bytes([original[at] ^ 1]) + original[at + 1:])
    source = data.Source(sounds, "train", 0, CROP)
    assert len(source) == len(whole)
    for memory_mb in (0, 100):
        with pytest.raises(UserError, match="is damaged: its bytes do not have the checksum"):
            data.Source(sounds, "train", memory_mb, CROP).read(np.arange(len(source)))
    at = original.index(b"\x05valid") + 6 + 6
    for value in (original[at] ^ 1, 127):
        path.write_bytes(original[:at] + bytes([value]) + original[at + 1:])
        with pytest.raises(UserError, match="is damaged: its bytes do not have the checksum"):
            data.Source(sounds, "train", 0, CROP).read(np.arange(1))


def test_crops_that_do_not_fit_the_data_are_one_sentence(folder, tmp_path):
    spec = write_sounds(tmp_path / "sounds", True)
    for call in (lambda: data.Source(str(tmp_path / "sounds"), "train"), lambda: data.cropped(spec, 0)):
        with pytest.raises(UserError, match="have any length: set config.data.crop"):
            call()
    with pytest.raises(UserError, match=r"config.data.crop=16 cuts sounds, and the data set has none \(its fields are image, label\)"):
        data.Source(folder, "train", crop=16)
    with pytest.raises(UserError, match="config.data.crop is -1"):
        configs.check(Config(data=Data(dir=folder, crop=-1)), 1, "cpu")
    example = session.example(data.cropped(spec, 16), 3)
    assert {k: v.shape for k, v in example.items()} == {"audio": (3, 16, 2), **{k: (3,) for k in ("valid", "start", "label", "index")}}


def test_a_run_trains_on_crops_and_is_opened_again(tmp_path):
    """A VAE of spectrograms of crops: it knows nothing about them."""
    from vae_jax import fronts
    from vae_jax.tasks import vae

    noise = lambda i, v: np.random.default_rng(i).integers(-9000, 9000, (v, 2)).astype(np.int16)
    write_sounds(tmp_path / "sounds", True, [900, 400, 3000, 1500], noise)
    model = vae.Model(hidden=(8,), latent=2, likelihood="gaussian", sound=fronts.Sound(n_fft=64, hop=32))
    config = Config(model=model, data=Data(dir=str(tmp_path / "sounds"), test="train", batch=8, crop=512), eval=Eval(every=0, batch=8),
                    run=Run(steps=3, compile_cache=""))
    assert np.isfinite(train.train(config, str(tmp_path / "run"))["eval/test/loss"])
    run = session.open_run(str(tmp_path / "run"))
    source = session.sources(run)["test"]
    rows = evaluate.collect(lambda p, v, b: {"x": run.task.front.analyse(b), "mean": run.task.encode(p, v, b)["mean"], "at": b["start"]},
                            run.params, run.variables, source, run.mesh, 8)
    assert run.spec.fields["audio"].shape == (512, 2) and len(source) == 2 + 1 + 6 + 3 == len(rows["x"])
    assert rows["at"].tolist() == [0, 388, 100, 200, 712, 1224, 1736, 2248, 2688, 300, 812, 1288]
    np.testing.assert_allclose(rows["x"][7], run.task.front.analyse({"audio": noise(2, 3000)[None, 2048:2560]})[0], atol=1e-6)
