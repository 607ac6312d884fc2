"""Record folders: round trips, TFDS's own reading as the reference, damage of every kind, and writes that fail at every step."""

import builtins
import errno
import itertools
import os
import pathlib
import shutil
import subprocess
import sys

import google_crc32c
import numpy as np
import pytest

from vae_jax import record_writer, records, tfexample
from vae_jax.config import UserError

FIELDS = {
    "image": records.Field((5, 4, 1), "uint8"), "audio": records.Field((None, 2), "int16"), "codes": records.Field((3,), "int32"),
    "zoom": records.Field((2,), "float32"), "label": records.Field((), "int64", ("a", "b c", "d")), "source": records.Field((), "str"),
    "valid": records.Field((), "int32"), "gain": records.Field((), "float32"),
}


def made(count, seed=0):
    rng = np.random.default_rng(seed)
    return [{"image": rng.integers(0, 256, (5, 4, 1), dtype=np.uint8), "audio": rng.integers(-9, 9, (i % 4, 2)).astype(np.int16),
             "codes": rng.integers(-(2**31), 2**31, 3).astype(np.int32), "zoom": rng.random(2, np.float32), "label": i % 3,
             "source": f"ä/{i}" * (i % 2), "valid": -i, "gain": float(np.float32(i / 3))} for i in range(count)]


def same(read, expected):
    for name in read:
        for got, record in zip(read[name], expected, strict=True):
            assert np.array_equal(got, np.asarray(record[name], FIELDS[name].dtype if FIELDS[name].dtype != "str" else None)), name


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """train: 40 records in several shards, test: 7."""
    monkeypatch.setattr(record_writer, "SHARD_BYTES", 2000)
    records.write(tmp_path / "set", "toys", FIELDS, {"train": made(40), "test": made(7, 1)}, {"from": "nowhere"})
    return tmp_path / "set"


def test_round_trip(folder):
    spec = records.open_folder(folder)
    assert (spec.name, spec.fields, spec.splits) == ("toys", FIELDS, {"train": 40, "test": 7})
    assert records.Spec.from_dict(spec.to_dict()) == spec
    train, expected = records.open_split(folder, "train"), made(40)
    assert len(train) == 40 and len(train.files) > 3
    same(train.read_all(), expected)
    rows = np.random.default_rng(2).integers(0, 40, 100)
    same(train.read(rows), [expected[i] for i in rows])
    part = records.open_split(folder, "train[10:-5]")
    assert len(part) == 25
    same(part.read([24, 0], ["codes", "label"]), [expected[34], expected[10]])
    assert part.read([24, 0], ["codes", "label"]).keys() == {"codes", "label"}
    assert part.read_one(3)["audio"].shape == (1, 2) and part.read_one(3)["label"] == 13 % 3
    assert part.read([])["image"].shape == (0, 5, 4, 1)
    for rows in ([25], [-1]):
        with pytest.raises(ValueError, match="0..24"):
            part.read(rows)
    report = records.verify(folder)
    assert report["splits"] == spec.splits and report["digest"] == spec.digest and report["files"] == len(os.listdir(folder))


def test_reads_in_small_pieces(folder, monkeypatch):
    monkeypatch.setattr(records, "READ_BYTES", 300)
    same(records.open_split(folder, "train").read_all(), made(40))


def test_memory_estimate(tmp_path):
    fields = {"image": FIELDS["image"], "label": FIELDS["label"]}
    records.write(tmp_path / "set", "toys", fields, {"train": ({k: r[k] for k in fields} for r in made(9))})
    assert records.open_split(tmp_path / "set", "train[:50%]").nbytes == 4 * (20 + 8)


def test_tfds_reads_the_same(folder):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    builder = tfds.builder_from_directory(str(folder))
    assert builder.info.splits["train"].num_examples == 40 and builder.info.features["label"].names == ["a", "b c", "d"]
    for expression in ("train", "test", "train[3:9]"):
        ours = records.open_split(folder, expression).read_all()
        theirs = list(tfds.as_numpy(builder.as_dataset(split=expression)))
        assert len(theirs) == len(ours["label"])
        for i, row in enumerate(theirs):
            assert row.keys() == ours.keys()
            assert row.pop("source").decode() == ours["source"][i]
            for name, value in row.items():
                assert np.asarray(value).dtype == np.asarray(ours[name][i]).dtype and np.array_equal(value, ours[name][i]), name


def test_split_expressions_mean_what_tfds_means():
    tfds = pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.core import splits

    infos = splits.SplitDict([splits.SplitInfo(name="train", shard_lengths=[113], num_bytes=0)])
    numbers, percents = ["", "0", "1", "50", "113", "500", "-1", "-50", "-113"], ["", "0%", "33%", "50%", "99%", "100%", "-20%", "-33%", "101%"]
    seen = 0
    for a, b in [*itertools.product(numbers, numbers), *itertools.product(percents, percents)]:
        expression = f"train[{a}:{b}]" if a or b else "train"
        try:
            theirs = tfds.core.ReadInstruction.from_spec(expression).to_absolute(infos)[0]
            expected = theirs.from_ or 0, 113 if theirs.to is None else theirs.to
        except (AssertionError, ValueError):
            expected = 0, 0
        if expected[0] < expected[1]:
            assert records._bounds(expression, {"train": 113}) == ("train", *expected), expression
            seen += 1
        else:
            with pytest.raises(UserError):
                records._bounds(expression, {"train": 113})
    assert seen > 60


@pytest.mark.parametrize("expression, says", [("valid", "no split 'valid'; there are train \\(40\\), test \\(7\\)"), ("train[", "is no split"),
                                              ("train[5:5]", "is empty"), ("train[:0%]", "is empty"), ("train[1:2:3]", "is no split"),
                                              ("train[1:50%]", "is no split"), ("train[:41]", "beyond"), ("", "is no split")])
def test_wrong_splits(folder, expression, says):
    with pytest.raises(UserError, match=says):
        records.open_split(folder, expression)


def test_not_a_data_set(tmp_path):
    for path, says in ((tmp_path, "is no data set"), (tmp_path / "none", "There is no data set at")):
        with pytest.raises(UserError, match=says):
            records.open_folder(path)


# The record format


def test_checksums():
    assert google_crc32c.value(b"123456789") == 0xE3069283  # the catalogue's check value of CRC-32C
    lengths = np.array([0, 1, 255, 256, 784, 2**28, 2**40], np.int64)
    expected = [tfexample.masked_crc(int(n).to_bytes(8, "little")) for n in lengths]
    assert tfexample.length_crcs(lengths).tolist() == expected


def test_frames_and_examples_are_tensorflows(tmp_path):
    tf = pytest.importorskip("tensorflow")
    payloads = [records.encode(FIELDS, record) for record in made(5)]
    (tmp_path / "x").write_bytes(b"".join(tfexample.frame(p)[0] for p in payloads))
    assert [r.numpy() for r in tf.data.TFRecordDataset(str(tmp_path / "x"))] == payloads
    kinds = {"image": "bytes", "label": "int", "gain": "float"}
    for label in (0, 1, 127, 128, 2**40, -1, -(2**63)):
        values = {"image": b"\0\1" * (label % 300), "label": label, "gain": 1.5}
        theirs = tf.train.Example.FromString(tfexample.serialize(values)).features.feature
        assert theirs["label"].int64_list.value[:] == [label] and theirs["image"].bytes_list.value[:] == [values["image"]]
        # TensorFlow writes the fields in the order of a hash map
        data = tf.train.Example(features=tf.train.Features(feature=theirs)).SerializeToString()
        ours = tfexample.parse(np.frombuffer(data, np.uint8), np.array([0]), np.array([len(data)]), kinds)
        a, b = ours["image"]
        assert (ours["label"][0], ours["gain"][0], data[a[0]:b[0]]) == (label, 1.5, values["image"])


def test_any_order_of_fields():
    def entry(name, value):
        return tfexample.serialize({name: value})[2:]

    kinds, data, ends = {"a": "int", "bb": "bytes", "cc": "bytes"}, b"", []
    orders = [("a", "bb", "cc"), ("cc", "a", "bb"), ("bb", "cc", "a")]
    for i, order in enumerate(orders):
        data += tfexample._chunk(0x0A, *(entry(n, i if n == "a" else n.encode() * i) for n in order))
        ends.append(len(data))
    parsed = tfexample.parse(np.frombuffer(data, np.uint8), np.array([0] + ends[:-1]), np.array(ends), kinds)
    assert parsed["a"].tolist() == [0, 1, 2]
    assert [data[a:b] for a, b in zip(*parsed["cc"])] == [b"", b"cc", b"cccc"]


@pytest.mark.parametrize("change, says", [
    (lambda e: tfexample.serialize({"x": 1}), "lacks the field 'y'"),
    (lambda e: tfexample.serialize({"x": 1, "y": b"", "z": 1}), "does not declare"),
    (lambda e: tfexample.serialize({"x": b"", "y": b""}), "one value a field"),
    (lambda e: tfexample._chunk(0x0A, tfexample.serialize({"x": 1})[2:] * 2), "twice"),
    (lambda e: e + b"\0", "behind its fields"),
    (lambda e: e[:-1], "longer than itself"),
    (lambda e: b"", "ends early"),
    (lambda e: b"\x0a" + b"\xff" * 10 + b"\x01", "64 bits"),
])
def test_malformed_examples(change, says):
    good = tfexample.serialize({"x": 1, "y": b"text"})
    data = change(good)
    octets = np.frombuffer(good + data, np.uint8)
    with pytest.raises(tfexample.Malformed, match=says) as caught:
        tfexample.parse(octets, np.array([0, len(good)]), np.array([len(good), len(octets)]), {"x": "int", "y": "bytes"})
    assert caught.value.row == 1


def test_mutated_examples_never_read_outside():
    good = records.encode(FIELDS, made(2)[1])
    kinds, rng = {name: records.kind(field) for name, field in FIELDS.items()}, np.random.default_rng(3)
    refused = 0
    for _ in range(600):
        data = np.frombuffer(good, np.uint8).copy()
        data[rng.integers(len(data))] = rng.integers(256)
        try:
            for value in tfexample.parse(data, np.array([0]), np.array([len(data)]), kinds).values():
                assert not isinstance(value, tuple) or 0 <= value[0][0] <= value[1][0] <= len(data)
        except tfexample.Malformed:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("change", [{"image": np.zeros((5, 4, 2), np.uint8)}, {"image": np.zeros((5, 4, 1), np.int8)},
                                    {"label": 3}, {"label": -1}, {"more": 1}])
def test_records_that_do_not_fit(change):
    with pytest.raises(ValueError):
        records.encode(FIELDS, {**made(1)[0], **change})


# Damage


def read_everything(folder):
    for split in records.open_folder(folder).splits:
        records.open_split(folder, split).read_all()


def test_no_flipped_bit_is_silent(folder):
    rng, shards, tried = np.random.default_rng(0), {}, 0
    for split in ("train", "test"):
        opened = records.open_split(folder, split)
        for record in range(len(opened)):
            shard = int(np.searchsorted(opened.shard_first, record, side="right")) - 1
            shards.setdefault(os.path.basename(opened.files[shard].name), []).append((record, opened.offsets[record] - 12))
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for position in rng.integers(0, len(whole), 60):
            data = bytearray(whole)
            data[position] ^= 1 << rng.integers(8)
            path.write_bytes(data)
            with pytest.raises(UserError) as caught:
                read_everything(folder)
            assert str(folder) in str(caught.value)
            if path.name in shards:
                record, offset = max((r, o) for r, o in shards[path.name] if o <= position)
                assert path.name in str(caught.value) and f"record {record} at byte {offset}" in str(caught.value)
            with pytest.raises(UserError):
                records.verify(folder)
            tried += 1
        path.write_bytes(whole)
    assert tried > 500
    records.verify(folder)


def frames(data):
    found, at = [], 0
    while at < len(data):
        end = at + 16 + int.from_bytes(data[at:at + 8], "little")
        found.append(data[at:end])
        at = end
    return found


@pytest.mark.parametrize("change, record", [
    (lambda f: f[:-1], lambda f: len(f) - 1),
    (lambda f: [], lambda f: 0),
    (lambda f: f[:2] + f[3:], lambda f: 2),
    (lambda f: f[:2] + f[1:], lambda f: 2),
    (lambda f: [f[1], f[0], *f[2:]], lambda f: 0),
    (lambda f: f + f[-1:], lambda f: len(f)),
    (lambda f: [b"".join(f)[:-3]], lambda f: len(f) - 1),
    (lambda f: [*f[:1], f[1][:12] + b"\0" * (len(f[1]) - 16) + f[1][-4:], *f[2:]], lambda f: 1),
])
def test_records_lost_doubled_and_swapped(folder, change, record):
    path = sorted(folder.glob("toys-train.tfrecord-*"))[0]
    parts = frames(path.read_bytes())
    assert len(parts) >= 4
    path.write_bytes(b"".join(change(parts)))
    at = record(parts)
    offset = sum(len(p) for p in parts[:at])
    with pytest.raises(UserError, match=f"{path.name}.* record {at} at byte {offset}"):
        read_everything(folder)


def test_shards_lost_foreign_and_swapped(folder, tmp_path):
    first, second = sorted(folder.glob("toys-train.tfrecord-*"))[:2]
    shutil.copy(first, tmp_path / "kept")
    first.rename(folder / "elsewhere")
    with pytest.raises(UserError, match=f"{first.name} is missing"):
        records.open_folder(folder)
    shutil.copy(second, first)
    with pytest.raises(UserError, match=f"{first.name}.*record 0 at byte 0"):
        read_everything(folder)
    shutil.copy(tmp_path / "kept", first)
    read_everything(folder)
    shutil.copy(second, folder / "toys-train.tfrecord-00000-of-00001")
    with pytest.raises(UserError, match="00000-of-00001 is a shard of another"):
        records.open_folder(folder)


def test_cut_while_in_use(folder):
    split = records.open_split(folder, "test")
    os.truncate(split.files[0].name, 100)
    with pytest.raises(UserError, match="cut while it was in use"):
        split.read_all()


# Writing


class Broken:
    """Makes the k-th of all file operations fail, once, or all from then on; counts them."""

    def __init__(self, monkeypatch, at, lasting):
        self.count, self.at, self.lasting = 0, at, lasting
        for module, name in ((os, "rename"), (os, "fsync"), (os, "mkdir")):
            monkeypatch.setattr(module, name, self.wrap(getattr(module, name)))
        monkeypatch.setattr(builtins, "open", self.open(builtins.open))

    def step(self):
        self.count += 1
        if self.count == self.at or self.lasting and self.count > self.at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def wrap(self, function):
        def wrapped(*args, **kwargs):
            self.step()
            return function(*args, **kwargs)
        return wrapped

    def open(self, function):
        def wrapped(path, mode="r", *args, **kwargs):
            if "w" not in mode:
                return function(path, mode, *args, **kwargs)
            self.step()
            file = function(path, mode, buffering=0)
            broken = self

            class File:
                def write(self, data):
                    broken.step()
                    return file.write(data)

                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    file.close()

                def __getattr__(self, name):
                    return getattr(file, name)
            return File()
        return wrapped


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("replace", [False, True])
def test_a_write_that_fails_anywhere_leaves_no_half_made_set(tmp_path, lasting, replace):
    small = {"label": FIELDS["label"]}
    target, new, at = tmp_path / "set", [{"label": 1}] * 3, 0
    expected = records.write(tmp_path / "reference", "toys", small, {"train": new}).digest
    shutil.rmtree(tmp_path / "reference")
    while True:
        at += 1
        old = records.write(target, "toys", small, {"train": [{"label": 2}]}).digest if replace else None
        with pytest.MonkeyPatch.context() as patch:
            broken = Broken(patch, at, lasting)
            try:
                records.write(target, "toys", small, {"train": new}, overwrite=True)
                failed = False
            except UserError as error:
                failed = True
                assert "No space left" in str(error)
        left = {p.name for p in tmp_path.iterdir()} - {"set"}
        if target.exists():
            assert records.verify(target)["digest"] in (old, expected)
        elif replace:  # the rename back failed too: the next writer puts the old set back
            assert lasting and left == {".set.replaced"}
            with records.Writer(target, "toys", overwrite=True):
                assert records.verify(target)["digest"] == old
            left = set()
        assert left <= ({".set.replaced"} if replace else set())
        assert failed or records.open_folder(target).digest == expected
        shutil.rmtree(target, ignore_errors=True)
        shutil.rmtree(tmp_path / ".set.replaced", ignore_errors=True)
        if broken.count < at:
            break
    assert not failed and at > 20


def test_targets_that_are_refused(tmp_path, folder):
    one = {"label": 1}, {"label": FIELDS["label"]}
    (tmp_path / "file").write_text("")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("")
    for target, overwrite, says in ((folder, False, "not empty"), (tmp_path / "file", True, "not a folder"),
                                    (tmp_path / "home", True, "'letter.txt'"),
                                    (tmp_path / "home", False, "not empty"), (tmp_path / "file" / "x", False, "cannot be written")):
        with pytest.raises(UserError, match=says):
            records.write(target, "toys", one[1], {"train": [one[0]]}, overwrite=overwrite)
    for name in ("Toys", "", "a/b", "1a"):
        with pytest.raises(UserError, match="cannot be named"):
            records.Writer(tmp_path / "new", name)
    with pytest.raises(UserError, match="nothing to write"):
        records.write(tmp_path / "new", "toys", FIELDS, {})
    assert {p.name for p in tmp_path.iterdir()} == {"set", "file", "home"} and len(os.listdir(tmp_path / "home")) == 1
    records.verify(folder)


def test_an_error_in_the_records_leaves_nothing(tmp_path):
    def rows():
        yield {"label": 1}
        raise RuntimeError("decoder")

    with pytest.raises(RuntimeError):
        records.write(tmp_path / "set", "toys", {"label": FIELDS["label"]}, {"train": rows()})
    assert list(tmp_path.iterdir()) == []


def test_two_writers_and_a_dead_one(tmp_path):
    with records.Writer(tmp_path / "set", "toys"):
        with pytest.raises(UserError, match="Another process is preparing"):
            records.Writer(tmp_path / "set", "toys")
        with records.Writer(tmp_path / "set2", "toys"):
            assert len(list(tmp_path.iterdir())) == 2
    code = ("import os, sys; from vae_jax import records\n"
            "w = records.Writer(sys.argv[1], 'toys'); w.add('train', b'x'); os.kill(os.getpid(), 9)")
    subprocess.run([sys.executable, "-c", code, tmp_path / "set"], cwd=pathlib.Path(records.__file__).parents[1])
    assert [p.name.startswith(".set.preparing-") for p in tmp_path.iterdir()] == [True]
    records.write(tmp_path / "set", "toys", {"label": FIELDS["label"]}, {"train": [{"label": 1}]})
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_the_same_records_are_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        records.write(tmp_path / name, "toys", FIELDS, {"train": made(6)}, {"options": {"x": 1}})
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_digest_follows_order_and_split(tmp_path):
    rows = made(4)
    sets = [{"train": rows}, {"train": rows[::-1]}, {"train": rows[:2], "test": rows[2:]}]
    assert len({records.write(tmp_path / str(i), "toys", FIELDS, s).digest for i, s in enumerate(sets)}) == 3


def test_training_does_not_import_tensorflow():
    code = "import sys; from vae_jax import records; print([m for m in ('tensorflow', 'tensorflow_datasets', 'librosa', 'PIL') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=pathlib.Path(records.__file__).parents[1], capture_output=True, text=True)
    assert out.stdout.strip() == "[]"
