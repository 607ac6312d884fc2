"""Records -> batches. The batch of a step is a pure function of (seed, step): nothing about data is ever checkpointed."""

import functools
import queue
import threading
from typing import Iterator

import jax
import numpy as np

from vae_jax import mesh as meshes
from vae_jax import records


class Source:
    """The numeric fields of one split: rows in, arrays out. Held in memory when they fit, else read by record."""

    def __init__(self, folder: str, expression: str, memory_mb: int = 4096):
        self.split = records.open_split(folder, expression)
        self.fields = tuple(k for k, f in self.split.fields.items() if f.dtype != "str")
        fits = self.split.nbytes <= memory_mb * 2**20
        self.arrays = self.split.read_all(self.fields) if fits else None

    def __len__(self) -> int:
        return len(self.split)

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """{field: [len(rows), ...]} and `index`, the rows themselves."""
        fields = {k: v[rows] for k, v in self.arrays.items()} if self.arrays is not None else self.split.read(rows, self.fields)
        return fields | {"index": rows.astype(np.int32)}


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
    place = _resident(source, mesh) or (lambda rows: meshes.to_global(mesh, source.read(rows[own])))
    return _prefetch((place(batch_indices(seed, s, len(source), batch)) for s in iter(_count(step), None)), ahead)


def _count(start):
    counter = iter(range(start, 2**62))
    return lambda: next(counter)


def _resident(source, mesh):
    """On an accelerator, data that fits stays on it and batches are gathered there: the host sends only row numbers."""
    if jax.default_backend() == "cpu" or jax.process_count() > 1 or source.arrays is None:
        return None
    if sum(a.nbytes for a in source.arrays.values()) > 4 * 2**30:
        return None
    arrays = jax.device_put(source.arrays, meshes.replicated(mesh))
    gather = jax.jit(lambda a, i: {k: v[i] for k, v in a.items()} | {"index": i}, out_shardings=meshes.batched(mesh))
    return lambda rows: gather(arrays, jax.device_put(rows.astype(np.int32), meshes.batched(mesh)))


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
