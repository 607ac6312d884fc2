"""Rolls for eyes: time to the right, pitch upwards, drums underneath, in one colour scale."""

import numpy as np

from vae_jax import rolls
from vae_jax.media import images

PAPER, LIGHTER = (22, 26, 34), 14  # background, and how much lighter the rows of every C and the first step of every bar are
HELD, STRUCK = (84, 120, 214), (250, 196, 84)
LINES = 24  # of a long roll that are drawn


def show(cells, grid: rolls.Grid) -> np.ndarray:
    """Cells [n, steps, pitches and drums, (held, struck)], uint8 or probabilities in 0..1, as pictures uint8 [n, pitches and drums, steps, 3]."""
    x = images.to_uint8(cells).astype(np.float32)[..., None] / 255
    pitches = rolls.pitches(grid)
    background = np.full((*x.shape[1:3], 3), PAPER, np.float32)
    background[:, [p for p in range(pitches) if (grid.low + p) % 12 == 0]] += LIGHTER
    background[::grid.steps_per_bar] += LIGHTER
    held, struck = x[:, :, :, 0], x[:, :, :, 1]
    seen = background + held * (np.array(HELD, np.float32) - background)
    seen = seen + struck * (np.array(STRUCK, np.float32) - seen)
    upwards = np.concatenate([np.arange(pitches)[::-1], np.arange(pitches, x.shape[2])[::-1]])
    return np.round(seen[:, :, upwards]).astype(np.uint8).swapaxes(1, 2)


def sheet(sets, grid: rolls.Grid, columns: int) -> bytes:
    """A PNG of sets of cells (see `show`) that belong together, the i-th of one above the i-th of the next."""
    columns = max(1, min(columns, len(sets[0])))
    cells = [images.resize(show(cells, grid), columns) for cells in sets]
    pictures = images.bands(cells, columns) if len(sets) > 1 else cells[0]
    return images.png(images.grid(pictures, columns, max(2, cells[0].shape[2] // 64), band=len(sets) if len(sets) > 1 else 0))


def lines(cells, grid: rolls.Grid) -> np.ndarray:
    """Long cells [steps, pitches and drums, 2] broken into lines [n, width, ..] of whole bars, about 128 steps, as a score is; the first LINES."""
    width = grid.steps_per_bar * max(1, round(128 / grid.steps_per_bar))
    padded = np.pad(cells[:LINES * width], [(0, -min(len(cells), LINES * width) % width), (0, 0), (0, 0)])
    return padded.reshape(-1, width, *cells.shape[1:])
