"""Records -> batches. The batch of a step is a pure function of (seed, step): nothing about data is ever checkpointed."""

import dataclasses
import functools
import queue
import threading
from typing import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import mesh as meshes
from vae_jax import records
from vae_jax.config import Data, UserError

CHUNK_BYTES = 1 << 23  # of records, read at once while they are cut to what is held


class Source:
    """The numeric fields of one split: rows in, arrays out. Held in memory when they fit, else read by record.

    With `crop` its rows are not records but crops of their `audio`: a record of v samples, as its `valid` says, has max(1, ceil(v / crop)) of
    them, and rows count them through the split. Raises UserError as `example_fields` does.
    """

    def __init__(self, folder: str, expression: str, memory_mb: int = 4096, crop: int = 0):
        self.split, self.crop = records.open_split(folder, expression), crop
        self.shapes = {k: f.shape for k, f in example_fields(self.split.fields, crop).items() if f.dtype != "str"}
        self.fields = tuple(self.shapes)
        if crop:
            self.samples = _samples(self.split)  # of each record
            self.before = np.cumsum(self.samples) - self.samples  # samples of the records before it
            self.firsts = np.cumsum([0, *np.maximum(1, -(-self.samples // crop))])  # rows of the records' first crops, and how many rows there are
        fits = self.split.nbytes <= memory_mb * 2**20
        self.arrays = None if not fits else self._on_end() if crop else self.split.read_all(self.fields)

    def __len__(self) -> int:
        return int(self.firsts[-1]) if self.crop else len(self.split)

    def read(self, rows: np.ndarray, starts: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """{field: [len(rows), ...]} and `index`, the rows themselves.

        starts: first samples of crops in their records; None = side by side, the last one ending with its record. `valid` is how many samples of
        a crop are real, with zeros behind them, and `start`, where records have it, counts up to the crop's first sample.
        """
        if not self.crop:
            fields = {k: v[rows] for k, v in self.arrays.items()} if self.arrays is not None else self.split.read(rows, self.fields)
            return fields | {"index": rows.astype(np.int32)}
        cuts = self.cuts(rows, starts)
        fields = {k: np.zeros((len(rows), *shape), self.split.fields[k].dtype) for k, shape in self.shapes.items()}
        if self.arrays is not None:
            fields |= {k: v[cuts["record"]] for k, v in self.arrays.items() if k != "audio"}
            for to, at, valid in zip(fields["audio"], cuts["at"], cuts["valid"]):
                to[:valid] = self.arrays["audio"][at:at + valid]
            return _finished(fields, cuts)
        for record in np.unique(cuts["record"]):
            values, own = self.split.read_one(record, self.fields), np.flatnonzero(cuts["record"] == record)
            audio = values.pop("audio")
            for to, start, valid in zip(own, cuts["start"][own], cuts["valid"][own]):
                fields["audio"][to, :valid] = audio[start:start + valid]
            for k, value in values.items():
                fields[k][own] = value
        return _finished(fields, cuts)

    def texts(self, rows: np.ndarray, names: list[str]) -> dict[str, list[str]]:
        """{text field: [len(rows)]} of the records that rows are, or are cut from; each record is read once."""
        found, back = np.unique(self._record(rows), return_inverse=True)
        return {k: [values[i] for i in back] for k, values in self.split.read(found, names).items()}

    def cuts(self, rows: np.ndarray, starts: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """{index, record, start (sample in the record), at (sample among all on end), valid: int [n]} of crops; starts: see `read`."""
        record = self._record(rows)
        starts = np.minimum((rows - self.firsts[record]) * self.crop, self._last(record)) if starts is None else starts
        at, valid = self.before[record] + starts, np.minimum(self.samples[record], self.crop)
        return {"index": rows, "record": record, "start": starts, "at": at, "valid": valid}

    def random_starts(self, rows: np.ndarray, seed: int, positions: np.ndarray) -> np.ndarray | None:
        """Where training cuts: uniform over all places in the record, drawn from (seed, position in the run) alone. None for whole records."""
        if not self.crop:
            return None
        # The third number keeps these apart from the draws of `_permutation`.
        return np.array([np.random.default_rng([seed, p, 1]).integers(n + 1) for p, n in zip(positions.tolist(), self._last(self._record(rows)))])

    def _record(self, rows):
        return np.searchsorted(self.firsts, rows, side="right") - 1 if self.crop else rows

    def _last(self, record):
        """The last sample at which a whole crop begins."""
        return np.maximum(self.samples[record] - self.crop, 0)

    def _on_end(self):
        """{field: [records, ...]}; of `audio` the samples of all records on end, [samples, channels], and a crop's length of zeros."""
        fields, n = self.split.fields, len(self.split)
        arrays = {k: np.empty((n, *fields[k].shape), fields[k].dtype) for k in self.fields if k != "audio"}
        arrays["audio"] = np.zeros((int(self.samples.sum()) + self.crop, *self.shapes["audio"][1:]), fields["audio"].dtype)
        at, rows = 0, max(1, CHUNK_BYTES // int(self.split.index[:, 0].max()))
        for low in range(0, n, rows):
            part = self.split.read(np.arange(low, min(low + rows, n)), self.fields)
            for x, valid in zip(part.pop("audio"), part["valid"].tolist()):
                arrays["audio"][at:at + valid] = x[:valid]
                at += valid
            for k, values in part.items():
                arrays[k][low:low + rows] = values
        return arrays


def open_source(data: Data, role: str) -> Source:
    """The split of a configuration's role: train, validation or test."""
    return Source(data.dir, getattr(data, role), data.memory_mb, data.crop)


def example_fields(fields: dict[str, records.Field], crop: int) -> dict[str, records.Field]:
    """The fields of an example: those of a record, or with `crop` of a crop of its `audio`. Raises UserError where the crop does not fit the data."""
    if crop and not {"audio", "valid"} <= fields.keys():
        raise UserError(f"config.data.crop={crop} cuts sounds, and the data set has none (its fields are {', '.join(fields)}): leave it out.")
    if crop:
        fields = fields | {"audio": fields["audio"]._replace(shape=(crop, *fields["audio"].shape[1:]))}
    if None in (size for field in fields.values() for size in field.shape):
        raise UserError("the records of the data set have any length: set config.data.crop to the samples of an example, which are cut from them.")
    return fields


def cropped(spec: records.Spec, crop: int) -> records.Spec:
    """The description of what batches hold, for tasks and examples. Raises UserError as `example_fields` does."""
    return dataclasses.replace(spec, fields=example_fields(spec.fields, crop))


def _samples(split) -> np.ndarray:
    """`valid` of every record, int64 [n]. The index does not tell it: payloads also hold names, which differ in length."""
    found, field = split.scan("valid"), split.fields["audio"]
    most = split.index[split.first:split.first + len(split), 0] // (np.dtype(field.dtype).itemsize * field.shape[1])
    wrong = np.flatnonzero((found < 0) | (found > most))
    if wrong.size:
        split.read(wrong[:1])  # says where the damage is
        raise UserError(f"record {wrong[0]} of the split {split.name!r} has fewer samples than its `valid` says: prepare the data again.")
    return found


def _finished(fields, cuts):
    """The fields of crops, those of their records replaced by their own; NumPy or JAX."""
    fields = fields | {"index": cuts["index"].astype(np.int32), "valid": cuts["valid"].astype(np.int32)}
    return fields | ({"start": fields["start"] + cuts["start"]} if "start" in fields else {})


def batch_indices(seed: int, step: int, n: int, batch: int) -> np.ndarray:
    """Rows [batch] of `step`: position p = step*batch + i is item p % n of epoch p // n's permutation.

    Batches may be larger than the data, and no remainder is dropped.
    """
    position = np.arange(step * batch, (step + 1) * batch, dtype=np.int64)
    epochs = position // n
    rows = np.empty(batch, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = _permutation(seed, int(epoch), n)[position[here] % n]
    return rows


@functools.lru_cache(maxsize=4)
def _permutation(seed, epoch, n):
    return np.random.default_rng([seed, epoch]).permutation(n)


def train_batches(source: Source, mesh, seed: int, step: int, batch: int, ahead: int = 2) -> Iterator[dict]:
    """Global batches of steps `step`, step+1, ..., prepared `ahead` of time in a thread."""
    own = meshes.own_rows(batch)
    place = _resident(source, mesh) or (lambda rows, starts: meshes.to_global(mesh, source.read(rows, starts)))

    def prepared(s):
        rows, positions = batch_indices(seed, s, len(source), batch)[own], np.arange(s * batch, (s + 1) * batch)[own]
        return place(rows, source.random_starts(rows, seed, positions))

    return _prefetch((prepared(s) for s in iter(_count(step), None)), ahead)


def _count(start):
    counter = iter(range(start, 2**62))
    return lambda: next(counter)


def _resident(source, mesh):
    """On an accelerator, data that fits stays on it and batches are gathered there: the host sends only row numbers."""
    if jax.default_backend() == "cpu" or jax.process_count() > 1 or source.arrays is None:
        return None
    if sum(a.nbytes for a in source.arrays.values()) > 4 * 2**30:
        return None
    if not source.crop:
        arrays = jax.device_put(source.arrays, meshes.replicated(mesh))
        gather = jax.jit(lambda a, i: {k: v[i] for k, v in a.items()} | {"index": i}, out_shardings=meshes.batched(mesh))
        return lambda rows, starts: gather(arrays, jax.device_put(rows.astype(np.int32), meshes.batched(mesh)))
    crop, channels = source.shapes["audio"]
    # One axis: a last axis of one channel may be laid out padded to many. 4 GB of int16 on end are fewer than an int32 counts.
    arrays = jax.device_put(source.arrays | {"audio": source.arrays["audio"].reshape(-1)}, meshes.replicated(mesh))

    def gather(a, cuts):
        cut = jax.vmap(lambda at: jax.lax.dynamic_slice_in_dim(a["audio"], at * channels, crop * channels))(cuts["at"])
        real = jnp.arange(crop) < cuts["valid"][:, None]
        fields = {k: v[cuts["record"]] for k, v in a.items() if k != "audio"}
        return _finished(fields | {"audio": jnp.where(real[..., None], cut.reshape(-1, crop, channels), 0)}, cuts)

    gather = jax.jit(gather, out_shardings=meshes.batched(mesh))
    placed = lambda cuts: jax.device_put({k: v.astype(np.int32) for k, v in cuts.items()}, meshes.batched(mesh))
    return lambda rows, starts: gather(arrays, placed(source.cuts(rows, starts)))


def spaced(n: int, limit: int) -> np.ndarray:
    """At most `limit` of n rows (0 = all), evenly spaced: a split may be stored class by class."""
    kept = min(n, limit or n)
    return np.arange(kept) * n // max(kept, 1)


def eval_batches(source: Source, mesh, batch: int, examples: int = 0) -> Iterator[tuple[dict, int]]:
    """(global batch, how many rows count) over `spaced(n, examples)` in order.

    The last batch is padded with its first row and `mask` [batch] float32 is 0 there; every process runs the same number.
    """
    chosen, own = spaced(len(source), examples), meshes.own_rows(batch)
    n = len(chosen)

    def batches():
        for start in range(0, n, batch):
            rows = np.arange(start, start + batch)
            mask = (rows < n).astype(np.float32)
            fields = source.read(chosen[np.where(rows < n, rows, start)[own]])
            yield meshes.to_global(mesh, fields | {"mask": mask[own]}), int(mask.sum())

    return _prefetch(batches(), 2)


def _prefetch(batches: Iterator, ahead: int) -> Iterator:
    """The same items, made in a thread. An error there is raised here; closing the iterator ends the thread."""
    ready, stop = queue.Queue(ahead), threading.Event()

    def put(item):
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work():
        try:
            for item in batches:
                put((item, None))
                if stop.is_set():
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=work, daemon=True, name="batches")
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
        thread.join()
