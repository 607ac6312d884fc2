"""Which pieces are the same music under different names, in any key and from any place on: they must not lie in two splits.

A piece is the set of its runs of RUN notes, each as the steps and semitones from note to note, and is known by the SKETCH smallest hashes of
these (bottom-k sketch, Broder 1997). Two sketches tell how much the sets overlap.
"""

import collections
from collections.abc import Sequence

import numpy as np

from vae_jax.rolls import Grid, Note, step

RUN = 12  # notes, in order of step and pitch
SKETCH = 256  # hashes kept of a piece
SAME = 0.1  # share of all different runs of two pieces that both have; from here on they are one music: settings of a tune that share whole phrases
COMMON = 64  # pieces compared for having one run; with all of them a run of many pieces would cost their square
FACTORS = np.random.Generator(np.random.Philox(key=1)).integers(1, 1 << 63, 2 * RUN, np.uint64) | np.uint64(1)


def sketch(notes: Sequence[Note], grid: Grid) -> list[int]:
    """The smallest hashes, in order, of the runs of a piece's pitched notes; [] for a piece with fewer than RUN."""
    cells = np.array(sorted({(step(note.start, grid), note.pitch) for note in notes if not note.drum}), np.int64).reshape(-1, 2)
    if len(cells) < RUN:
        return []
    runs = np.lib.stride_tricks.sliding_window_view(np.diff(cells, axis=0), (RUN - 1, 2)).reshape(-1, 2 * (RUN - 1)).astype(np.uint64)
    mixed = (runs * FACTORS[1:-1]).sum(1, dtype=np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * FACTORS[0]
    return np.unique(mixed ^ (mixed >> np.uint64(32)))[:SKETCH].tolist()


def overlap(first: Sequence[int], second: Sequence[int]) -> float:
    """The estimated share of the different runs of two pieces that both have, from their sketches."""
    union = sorted({*first, *second})[:SKETCH]
    return len({*union} & {*first} & {*second}) / max(1, len(union))


def unite(groups: Sequence[str], sketches: Sequence[Sequence[int]]) -> list[str]:
    """The group of each piece after those that hold the same music, directly or through others, were made one, named after the first."""
    home = {group: group for group in groups}

    def find(group):
        while home[group] != group:
            group = home[group]
        return group

    having, pairs = collections.defaultdict(list), set()
    for i, hashes in enumerate(sketches):
        for value in hashes:
            pairs.update((j, i) for j in having[value])
            if len(having[value]) < COMMON:
                having[value].append(i)
    for j, i in sorted(pairs):
        first, second = sorted((find(groups[j]), find(groups[i])))
        if first != second and overlap(sketches[j], sketches[i]) >= SAME:
            home[second] = first
    return [find(group) for group in groups]
