"""Data sets as folders of TFRecord shards in TFDS's layout: write, open, read any rows, verify. Imports no TensorFlow.

A folder holds NAME-SPLIT.tfrecord-00000-of-0000N shards, dataset_info.json, features.json and label lists (so that
`tfds.builder_from_directory(DIR).as_dataset()` opens it), and four things of ours:
  NAME-SPLIT.index        for each record its payload length and masked crc32c, two little-endian uint32
  manifest.json           fields, where the data came from, and for each shard records, bytes, SHA-256 and the digest of its index part
  manifest.json.sha256    checksum of the manifest, which holds those of all other files (`sha256sum -c` reads it)
An index says where each record lies and what it must be, so opening compares every frame with it and reads no payload;
a payload's checksum is compared whenever it is read.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from vae_jax import tfexample
from vae_jax.config import UserError
from vae_jax.record_format import FORMAT, Field, Spec, encode, kind
from vae_jax.record_writer import Writer, write

__all__ = ["Field", "Spec", "Split", "Writer", "encode", "open_folder", "open_split", "verify", "write"]
READ_BYTES = 1 << 25  # payload held at once while a split is read
AGAIN = "Copy the data set again, or prepare it again."


def _manifest(folder: pathlib.Path) -> dict:
    """The manifest, after its own checksum and those of the small files it names were compared."""
    if not folder.is_dir():
        raise UserError(f"There is no data set at {folder}: give the folder a data_prep script wrote.")
    path = folder / "manifest.json"
    try:
        text, seal = path.read_bytes(), (folder / "manifest.json.sha256").read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{folder} is no data set of a data_prep script, or has lost {os.path.basename(error.filename)}. "
                        f"A folder of TensorFlow Datasets is read with `python -m data_prep.images --source=tfds:{folder}`.") from None
    if seal != f"{hashlib.sha256(text).hexdigest()}  manifest.json\n".encode():
        raise UserError(f"{path} is not the file that was written: it or manifest.json.sha256 was changed or damaged. {AGAIN}")
    manifest = json.loads(text)
    if manifest["format"] != FORMAT:
        raise UserError(f"{folder} has format {manifest['format']}, this version reads {FORMAT}. Prepare it again.")
    for name, checksum in manifest["files"].items():
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest() if (folder / name).is_file() else "missing"
        if found != checksum:
            raise UserError(f"{folder / name} is {'missing' if found == 'missing' else 'not the file that was written'}. {AGAIN}")
    return manifest


def _shard_names(manifest):
    return [shard["file"] for shards in manifest["shards"].values() for shard in shards]


def _open(folder) -> tuple[pathlib.Path, dict]:
    folder = pathlib.Path(folder)
    try:
        manifest = _manifest(folder)
        names = _shard_names(manifest)
        for name in names:
            if not (folder / name).is_file():
                raise UserError(f"{folder / name} is missing. {AGAIN}")
        for name in sorted(os.listdir(folder)):
            if ".tfrecord" in name and name not in names:
                raise UserError(f"{folder / name} is a shard of another data set. Move it away; nothing else is wrong so far.")
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror or error}.") from None
    return folder, manifest


def open_folder(folder) -> Spec:
    """The description of a data set; its small files are checked, its shards must be there. Raises UserError."""
    return Spec.from_dict(_open(folder)[1]["spec"])


def _check_frames(path: pathlib.Path, index: np.ndarray, first: int, expected: int) -> None:
    """Compares every frame of a shard with its index: count, order, lengths and stored checksums, no payload.

    index: uint32 [n, 2], lengths and masked checksums; first: number of the shard's first record in its split.
    """
    size, lengths = os.path.getsize(path), index[:, 0].astype(np.int64)
    ends = np.cumsum(lengths + tfexample.FRAME)
    starts = ends - lengths - tfexample.FRAME
    within = int(np.searchsorted(ends, size, side="right"))  # records that lie wholly in the file
    octets = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
    for low in range(0, within, 1 << 16):
        part = slice(low, min(low + (1 << 16), within))
        head = octets[starts[part, None] + np.arange(12)]
        stored = np.stack([head[:, :8].copy().view("<u8")[:, 0], head[:, 8:].copy().view("<u4")[:, 0],
                           octets[ends[part, None] - 4 + np.arange(4)].view("<u4")[:, 0]], 1)
        right = stored == np.stack([lengths[part].astype(np.uint64), tfexample.length_crcs(lengths[part]), index[part, 1]], 1)
        if not right.all():
            bad = low + int(np.argmin(right.all(axis=1)))
            raise UserError(f"{path}: record {first + bad} at byte {starts[bad]} is not the record written there: the file was damaged, "
                            f"or a record dropped, doubled or swapped. {AGAIN}")
    if size != expected:
        fault = "was cut at" if size < expected else "goes on after its last record, with"
        raise UserError(f"{path} has {size} bytes and should have {expected}: it {fault} record {first + within} "
                        f"at byte {ends[within - 1] if within else 0}. {AGAIN}")


def _bounds(expression: str, splits: dict[str, int]) -> tuple[str, int, int]:
    """NAME, NAME[a:b] or NAME[a%:b%] -> (split, first, last+1), as TFDS reads it (percentages to the closest record)."""
    known = ", ".join(f"{name} ({count:,})" for name, count in splits.items())
    match = re.fullmatch(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", expression.replace(" ", ""))
    cuts = match.groups()[1:] if match else ()
    if not match or len({cut.endswith("%") for cut in cuts if cut}) > 1:
        raise UserError(f"{expression!r} is no split: write NAME, NAME[a:b] or NAME[a%:b%]; there are {known}.")
    name, ends = match[1], []
    if name not in splits:
        raise UserError(f"There is no split {name!r}; there are {known}.")
    count = splits[name]
    for cut, default in zip(cuts, (0, count)):
        at, most = (default, count) if cut is None else (int(cut.rstrip("%")), 100 if cut.endswith("%") else count)
        if abs(at) > most:
            raise UserError(f"The split {expression!r} reaches beyond what there is: {known}.")
        at = round(at * count / 100) if cut and cut.endswith("%") else at
        ends.append(at + count if at < 0 else at)
    if ends[0] >= ends[1]:
        raise UserError(f"The split {expression!r} is empty; there are {known}.")
    return name, ends[0], ends[1]


@dataclasses.dataclass(frozen=True)
class Split:
    """A range of records of one split, read by row number; rows count from 0 within the range."""

    name: str
    fields: dict[str, Field]
    digest: str  # of the whole data set
    first: int
    count: int
    files: tuple  # open shards
    shard_first: np.ndarray  # int64 [shards + 1], number of each shard's first record
    offsets: np.ndarray  # int64 [records of the split], of the payload in its shard
    index: np.ndarray  # uint32 [records of the split, 2]

    def __len__(self):
        return self.count

    @property
    def nbytes(self) -> int:
        """Bytes of all its array fields in memory; with a field of any length, the bytes stored."""
        sizes = [math.prod(f.shape) * np.dtype(f.dtype).itemsize for f in self.fields.values() if f.dtype != "str" and None not in f.shape]
        if any(None in f.shape for f in self.fields.values()):
            return int(self.index[self.first:self.first + self.count, 0].sum(dtype=np.int64))
        return self.count * sum(sizes)

    def read(self, rows, fields: Iterable[str] | None = None) -> dict[str, Any]:
        """Rows in the order given, int [n] -> {field: array [n, ...]}; a field of any length is a list of n arrays.

        Text is a list of str. Every payload's checksum is compared. Raises UserError naming file, record and byte,
        ValueError for a row or field that is not there.
        """
        wanted = list(self.fields if fields is None else fields)
        if not set(wanted) <= set(self.fields):
            raise ValueError(f"fields {sorted(set(wanted) - set(self.fields))} are not among {sorted(self.fields)}")
        rows = np.asarray(rows, np.int64).reshape(-1)
        if rows.size and not (0 <= rows.min() and rows.max() < self.count):
            raise ValueError(f"rows must lie in 0..{self.count - 1}, got {rows.min()}..{rows.max()}")
        records = rows + self.first
        out = {name: _empty(self.fields[name], len(rows)) for name in wanted}
        total = np.cumsum(self.index[records, 0].astype(np.int64))
        low = 0
        while low < len(rows):
            high = max(low + 1, int(np.searchsorted(total, (total[low - 1] if low else 0) + READ_BYTES, side="right")))
            self._read_into(out, low, records[low:high])
            low = high
        return out

    def read_one(self, row: int, fields: Iterable[str] | None = None) -> dict[str, Any]:
        """One row as {field: value}."""
        return {name: value[0] for name, value in self.read([row], fields).items()}

    def read_all(self, fields: Iterable[str] | None = None) -> dict[str, Any]:
        """All rows in order."""
        return self.read(np.arange(self.count), fields)

    def scan(self, name: str) -> np.ndarray:
        """A whole number of every row in order, int64 [n]: only the pages of the files around it are read.

        So it costs little where records are megabytes. No checksum is compared: whoever relies on a value reads its record in the end.
        Raises UserError.
        """
        found, kinds = [], {field: kind(f) for field, f in self.fields.items()}
        for file, low, high in zip(self.files, self.shard_first, self.shard_first[1:]):
            low, high = max(int(low), self.first), min(int(high), self.first + self.count)
            if low < high:
                start = self.offsets[low:high]
                try:
                    found.append(tfexample.parse(np.memmap(file, np.uint8, "r"), start, start + self.index[low:high, 0], kinds)[name])
                except tfexample.Malformed as error:
                    raise UserError(f"{self._where(low + error.row)} {error}. {AGAIN}") from None
        return np.concatenate(found)

    def _where(self, record):
        shard = int(np.searchsorted(self.shard_first, record, side="right")) - 1
        return f"{self.files[shard].name}: record {record} at byte {self.offsets[record] - 12}"

    def _read_into(self, out, row, records):
        data, start = self._payloads(records)
        end = start + self.index[records, 0]
        for record, a, b, crc in zip(records.tolist(), start.tolist(), end.tolist(), self.index[records, 1].tolist()):
            if tfexample.masked_crc(data[a:b]) != crc:
                raise UserError(f"{self._where(record)} is damaged: its bytes do not have the checksum stored with them. {AGAIN}")
        octets = np.frombuffer(data, np.uint8)
        try:
            parsed = tfexample.parse(octets, start, end, {name: kind(f) for name, f in self.fields.items()})
        except tfexample.Malformed as error:
            raise UserError(f"{self._where(records[error.row])} {error}. {AGAIN}") from None
        for name, target in out.items():
            _place(target, row, data, parsed[name], self.fields[name], lambda i, n=name: f"{self._where(records[i])}: field {n!r}")

    def _payloads(self, records) -> tuple[bytes, np.ndarray]:
        """Bytes that hold these records' payloads, and where each begins; neighbours in one shard are one read."""
        shard = np.searchsorted(self.shard_first, records, side="right") - 1
        cut = np.flatnonzero((np.diff(records) != 1) | (np.diff(shard) != 0)) + 1
        parts, start, at = [], np.empty(len(records), np.int64), 0
        for low, high in zip([0, *cut], [*cut, len(records)]):
            run = records[low:high]
            first, last = self.offsets[run[0]], self.offsets[run[-1]] + self.index[run[-1], 0]
            start[low:high] = self.offsets[run] - first + at
            try:
                part = os.pread(self.files[shard[low]].fileno(), int(last - first), int(first))
            except OSError as error:
                raise UserError(f"{self._where(run[0])} cannot be read: {error.strerror or error}.") from None
            if len(part) != last - first:
                raise UserError(f"{self._where(run[0])} is no longer there: the file was cut while it was in use. {AGAIN}")
            parts.append(part)
            at += len(part)
        return b"".join(parts), start


def _empty(field, count):
    if field.dtype == "str" or None in field.shape:
        return [None] * count
    return np.empty((count, *field.shape), field.dtype)


def _place(target, row, data, value, field, where):
    """Puts the parsed values of some records at `row` of the result."""
    if kind(field) != "bytes":
        if field.labels and not ((0 <= value) & (value < len(field.labels))).all():
            raise UserError(f"{where(int(np.argmax((value < 0) | (value >= len(field.labels)))))} is no class. {AGAIN}")
        target[row:row + len(value)] = value
        return
    start, end = value
    if field.dtype == "str":
        target[row:row + len(start)] = [data[a:b].decode("utf-8", "replace") for a, b in zip(start, end)]
        return
    unit = math.prod(d for d in field.shape if d is not None) * np.dtype(field.dtype).itemsize
    wrong = (end - start) % unit != 0 if None in field.shape else end - start != unit
    if wrong.any():
        i = int(np.argmax(wrong))
        raise UserError(f"{where(i)} has {end[i] - start[i]} bytes, which is no {field.dtype} array of shape {field.shape}. {AGAIN}")
    if None in field.shape:
        shape, dtype = tuple(-1 if d is None else d for d in field.shape), np.dtype(field.dtype).newbyteorder("<")
        target[row:row + len(start)] = [np.frombuffer(data[a:b], dtype).astype(field.dtype, copy=False).reshape(shape) for a, b in zip(start, end)]
        return
    flat, view = memoryview(target).cast("B"), memoryview(data)
    for i, (a, b) in enumerate(zip(start.tolist(), end.tolist()), row):
        flat[i * unit:(i + 1) * unit] = view[a:b]


def open_split(folder, expression: str) -> Split:
    """Opens NAME, NAME[a:b] or NAME[a%:b%]; every frame of its shards is compared with the index, no payload is read.

    Raises UserError for an unknown or empty split (naming those there are) and for a damaged, missing or foreign file.
    """
    folder, manifest = _open(folder)
    spec = Spec.from_dict(manifest["spec"])
    name, first, last = _bounds(expression, spec.splits)
    shards = manifest["shards"][name]
    path = folder / f"{spec.name}-{name}.index"
    shard_first = np.cumsum([0] + [shard["records"] for shard in shards])
    try:
        raw = path.read_bytes()
        if len(raw) != 8 * shard_first[-1]:
            raise UserError(f"{path} has {len(raw)} bytes and should have {8 * shard_first[-1]}. {AGAIN}")
        index, offsets, files = np.frombuffer(raw, "<u4").reshape(-1, 2), [], []
        for shard, a, b in zip(shards, shard_first, shard_first[1:]):
            if hashlib.sha256(raw[8 * a:8 * b]).hexdigest() != shard["digest"]:
                raise UserError(f"{path} does not have the digest of {shard['file']}: the index is damaged. {AGAIN}")
            _check_frames(folder / shard["file"], index[a:b], int(a), shard["bytes"])
            offsets.append(np.cumsum(index[a:b, 0].astype(np.int64) + tfexample.FRAME) - index[a:b, 0] - 4)
            files.append(open(folder / shard["file"], "rb", buffering=0))
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be read: {error.strerror or error}. {AGAIN}") from None
    return Split(name, spec.fields, spec.digest, first, last - first, tuple(files), shard_first, np.concatenate(offsets), index)


def verify(folder) -> dict:
    """Reads a whole data set: every checksum, frame and field, and the SHA-256 of every file.

    Returns {'name', 'digest', 'splits': {split: records}, 'files', 'bytes'}; raises UserError at the first fault.
    """
    folder, manifest = _open(folder)
    total = 0
    for name, shards in manifest["shards"].items():
        split = open_split(folder, name)
        rows = max(1, READ_BYTES // int(split.index[:, 0].max()))
        for low in range(0, len(split), rows):
            split.read(np.arange(low, min(low + rows, len(split))))
        for shard in shards:
            with open(folder / shard["file"], "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard["sha256"]:
                    raise UserError(f"{folder / shard['file']} does not have the SHA-256 of its manifest. {AGAIN}")
            total += shard["bytes"]
    spec = Spec.from_dict(manifest["spec"])
    files = len(_shard_names(manifest)) + len(manifest["shards"]) + len(manifest["files"]) + 2  # shards, indexes, descriptions, manifest and seal
    return {"name": spec.name, "digest": spec.digest, "splits": spec.splits, "files": files, "bytes": total}
