"""Writes a data set: shards, index, TFDS's descriptions and our manifest (layout: records.py), all or nothing.

Everything is written into a hidden sibling folder, brought to disk, and renamed to its name at the end.
"""

import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterable

from vae_jax import tfexample
from vae_jax.config import UserError
from vae_jax.record_format import FORMAT, Field, Spec, check_fields, encode

SHARD_BYTES = 1 << 28
OURS = re.compile(r"[a-z0-9_]+-\w+\.(tfrecord-\d{5}-of-\d{5}|index)|features\.json|[\w]+\.labels\.txt|dataset_info\.json|manifest\.json(\.sha256)?")


def _sync(path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _save(path: pathlib.Path, data: bytes) -> str:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


class _Shards:
    """The growing shards of one split and their index."""

    def __init__(self, folder, split):
        self.folder, self.split, self.file, self.done, self.index = folder, split, None, [], bytearray()

    def path(self, number):
        return self.folder / f"{self.split}.shard-{number:05d}"

    def add(self, payload: bytes):
        if self.file is None or self.bytes >= SHARD_BYTES:
            self.close()
            self.file = open(self.path(len(self.done)), "wb", buffering=1 << 20)
            self.hash, self.bytes, self.records, self.first = hashlib.sha256(), 0, 0, len(self.index)
        framed, crc = tfexample.frame(payload)
        self.file.write(framed)
        self.hash.update(framed)
        self.bytes, self.records = self.bytes + len(framed), self.records + 1
        self.index += len(payload).to_bytes(4, "little") + crc.to_bytes(4, "little")

    def close(self):
        if self.file is not None:
            with self.file as file:
                file.flush()
                os.fsync(file.fileno())
            digest = hashlib.sha256(self.index[self.first:]).hexdigest()
            self.done.append({"records": self.records, "bytes": self.bytes, "sha256": self.hash.hexdigest(), "digest": digest})
            self.file = None


class Writer:
    """Writes a data set beside its target and renames it there when it is complete and on disk.

    with Writer(target, name) as writer:
        writer.add("train", encode(fields, record))
        writer.finish(fields, manifest)
    Leaving without `finish` removes everything. An existing set is replaced only with overwrite=True, and only by a complete one.
    Raises UserError where the target is taken, cannot be written or is being written by another process.
    """

    def __init__(self, target, name: str, overwrite: bool = False):
        self.target, self.name = pathlib.Path(os.path.abspath(target)), name
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise UserError(f"A data set cannot be named {name!r}: use small letters, digits and underscores, a letter first.")
        self.shards, self.folder, self.lock = {}, None, None
        try:
            self._begin(overwrite)
        except OSError as error:
            self._abandon()
            raise UserError(f"{self.target} cannot be written: {error.strerror or error}.") from None
        except BaseException:
            self._abandon()
            raise

    def _begin(self, overwrite):
        parent, stem = self.target.parent, f".{self.target.name}.preparing-"
        parent.mkdir(parents=True, exist_ok=True)
        if self.target.is_symlink() or self.target.exists() and not self.target.is_dir():
            raise UserError(f"{self.target} exists and is not a folder: choose another name.")
        for left in sorted(p for p in parent.iterdir() if p.name.startswith(stem)):
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)  # its writer is dead
            except BlockingIOError:
                raise UserError(f"Another process is preparing {self.target}: wait for it, or choose another folder.") from None
            finally:
                os.close(lock)
        self.replaced = parent / f".{self.target.name}.replaced"
        if self.replaced.exists() and not self.target.exists():
            os.rename(self.replaced, self.target)  # killed between the two renames of a replacement
        held = sorted(os.listdir(self.target)) if self.target.exists() else []
        if held and not overwrite:
            raise UserError(f"{self.target} exists and is not empty: choose another folder, or replace it with --overwrite.")
        foreign = [n for n in held if not OURS.fullmatch(n) or not (self.target / n).is_file()]
        if foreign:
            raise UserError(f"{self.target} is not replaced: it holds {foreign[0]!r}, which is no part of a data set.")
        folder = parent / f"{stem}{os.getpid()}"
        folder.mkdir()
        self.folder = folder
        self.lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def add(self, split: str, payload: bytes) -> None:
        if not re.fullmatch(r"[A-Za-z]\w*", split):
            raise UserError(f"A split cannot be named {split!r}: use letters, digits and underscores.")
        if split not in self.shards:
            self.shards[split] = _Shards(self.folder, split)
        try:
            self.shards[split].add(payload)
        except OSError as error:
            raise self._failed(error) from None

    def finish(self, fields: dict[str, Field], manifest: dict, facts: dict | None = None) -> Spec:
        """Completes the folder and renames it to the target. `manifest`: JSON values kept in manifest.json; `facts`: see Spec."""
        if not self.shards:
            raise UserError("There is nothing to write: no record was kept.")
        check_fields(fields)
        try:
            return self._finish(fields, manifest, facts or {})
        except OSError as error:
            raise self._failed(error) from None

    def _finish(self, fields, manifest, facts):
        folder, files, splits = self.folder, {}, {}
        for split, shards in self.shards.items():
            shards.close()
            for number, shard in enumerate(shards.done):
                shard["file"] = f"{self.name}-{split}.tfrecord-{number:05d}-of-{len(shards.done):05d}"
                os.rename(shards.path(number), folder / shard["file"])
            _save(folder / f"{self.name}-{split}.index", bytes(shards.index))
            splits[split] = {"records": sum(s["records"] for s in shards.done), "shards": shards.done}
        files["features.json"] = _save(folder / "features.json", _json(_tfds_features(fields)))
        files["dataset_info.json"] = _save(folder / "dataset_info.json", _json(_tfds_info(self.name, splits)))
        for name, field in fields.items():
            if field.labels:
                files[f"{name}.labels.txt"] = _save(folder / f"{name}.labels.txt", "".join(f"{v}\n" for v in field.labels).encode())
        digest = hashlib.sha256(_json({split: [s["digest"] for s in v["shards"]] for split, v in splits.items()})).hexdigest()
        spec = Spec(self.name, fields, {split: v["records"] for split, v in splits.items()}, digest, facts)
        text = _json({**manifest, "format": FORMAT, "spec": spec.to_dict(), "shards": {k: v["shards"] for k, v in splits.items()}, "files": files})
        seal = _save(folder / "manifest.json", text)
        _save(folder / "manifest.json.sha256", f"{seal}  manifest.json\n".encode())
        _sync(folder)
        self._rename()
        return spec

    def _rename(self):
        if self.target.exists() and os.listdir(self.target):
            shutil.rmtree(self.replaced, ignore_errors=True)
            os.rename(self.target, self.replaced)
            try:
                os.rename(self.folder, self.target)
            except BaseException:
                os.rename(self.replaced, self.target)
                raise
        else:
            os.rename(self.folder, self.target)
        self.folder = None
        _sync(self.target.parent)
        shutil.rmtree(self.replaced, ignore_errors=True)

    def _failed(self, error):
        if self.folder is None:
            return UserError(f"{self.target} is complete, but may not survive a power loss: {error.strerror or error}.")
        return UserError(f"{self.target} could not be written ({error.strerror or error}); nothing was left behind.")

    def _abandon(self):
        for shards in self.shards.values():
            if shards.file is not None:
                raw = shards.file
                shards.file = None
                try:
                    raw.close()
                except OSError:
                    continue  # the buffer found no room; its file is removed below
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._abandon()


def write(target, name: str, fields: dict[str, Field], splits: dict[str, Iterable[dict]], manifest: dict | None = None, overwrite=False) -> Spec:
    """Writes splits of records, one record at a time in memory. Raises as Writer does, ValueError for a record that does not fit."""
    with Writer(target, name, overwrite) as writer:
        for split, records in splits.items():
            for record in records:
                writer.add(split, encode(fields, record))
        return writer.finish(fields, manifest or {})


def _json(value) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _tfds_features(fields):
    """features.json as `tfds.features.FeaturesDict` writes it."""
    features = {}
    for name, field in fields.items():
        module = "tensorflow_datasets.core.features."
        shape = {"dimensions": [str(-1 if d is None else d) for d in field.shape]} if field.shape else {}
        tensor = {"shape": shape, "dtype": field.dtype, "encoding": "bytes" if field.shape else "none"}
        if field.dtype == "str":
            features[name] = {"pythonClassName": module + "text_feature.Text", "text": {}}
        elif field.labels:
            features[name] = {"pythonClassName": module + "class_label_feature.ClassLabel", "classLabel": {"numClasses": str(len(field.labels))}}
        else:
            features[name] = {"pythonClassName": module + ("tensor_feature.Tensor" if field.shape else "scalar.Scalar"), "tensor": tensor}
    return {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict", "featuresDict": {"features": features}}


def _tfds_info(name, splits):
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    listed = [{"name": split, "filepathTemplate": template, "shardLengths": [str(s["records"]) for s in v["shards"]],
               "numBytes": str(sum(s["bytes"] for s in v["shards"]))} for split, v in splits.items()]
    return {"name": name, "version": "1.0.0", "fileFormat": "tfrecord", "splits": listed}
