"""A sound of any length through a model of the wave: its latents, and the sound of latents, piece by piece, equal to one pass over the whole.

Each piece is longer on both sides than what is kept of it by as much as the model looks around a frame. Memory of the device does not grow with the
length of a sound, the host's does: it holds the sound and the result.
"""

import functools
import io
import os
import zipfile
import zlib
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data_prep.sounds import read_sound
from vae_jax import mesh as meshes
from vae_jax.config import UserError
from vae_jax.losses import spectral

SECONDS = 30  # of sound that go through the model at once
LONGEST = 3600  # seconds of a file that is read: some 30 bytes of memory a sample are used
PROBE = 512  # frames of a piece on which it is tried how far a model looks


class Through(NamedTuple):
    """encode(wave [t, c]) -> posterior means float32 [frames(t), d]: enough for the whole sound to come out again. indices(wave) -> the codes that
    discrete latents are of, int32 [frames(t), levels].
    decode(latents [n, d], samples or None for all there are, key or None) -> wave [samples, c], in time with what was encoded.

    errors(wave, made [t, c], in time with it) -> {as `spectral.of_clips` names them: [k]}, of stretches as long as the model's crops, without a last
    one that is shorter.

    All of them give None if interrupted. frames(samples) -> how many are needed. hop: samples a frame; latent: numbers a frame; encoder: a number
    that tells this run's from others, and so what latents mean (stage 2 leaves it as it is).
    """

    encode: Callable
    indices: Callable
    decode: Callable
    errors: Callable
    frames: Callable
    hop: int
    latent: int
    encoder: int


def through(run, interrupted=lambda: False) -> Through:
    """The ways of a run whose front is of kind 'wave' (session.Session)."""
    (crop, channels), late, m = run.task.front.shape, run.task.front.delay, run.config.model
    batch = {"audio": jax.ShapeDtypeStruct((1, crop, channels), jnp.float32)}
    _, count, latent = jax.eval_shape(run.task.encode, run.params, run.variables, batch)["mean"].shape
    hop = crop // count
    most = max(2 * PROBE, -(-SECONDS * run.task.front.rate // hop))

    def latents(weights, x_nk, first, _):
        return run.task.encode(*weights, {"audio": x_nk.reshape(1, -1, channels)}, first=first)["mean"][0]

    def codes(weights, x_nk, first, _):  # what is not finite stays so, see _looks
        code = run.task.encode(*weights, {"audio": x_nk.reshape(1, -1, channels)}, first=first)
        return jnp.where(jnp.isfinite(code["mean"]).all(-1, keepdims=True), code["indices"], jnp.nan)[0]

    def sound(weights, z_nd, first, key):
        return run.task.decode(*weights, z_nd[None], None, key, first)["audio"].reshape(-1, hop * channels)

    def compare(x, y, valid):
        return spectral.of_clips(x, y, run.task.front.rate, 0, m.distance, m.windows, m.high_hz, valid)

    latents, codes, sound, compare = (jax.jit(fn, out_shardings=meshes.replicated(run.mesh)) for fn in (latents, codes, sound, compare))
    weights = run.params, run.variables

    def frames(samples):
        return -(-(samples + late) // hop)

    def encode(wave_tc, fn=latents):
        padded = np.pad(np.asarray(wave_tc, np.float32), ((0, frames(len(wave_tc)) * hop - len(wave_tc)), (0, 0)))
        return _pieces(functools.partial(fn, weights), padded.reshape(-1, hop * channels), jax.random.key(0), most, interrupted)

    def indices(wave_tc):
        found = encode(wave_tc, codes)
        return None if found is None else np.int32(found)

    def decode(code_nd, samples=None, key=None):
        code = np.asarray(code_nd, np.float32)
        made = _pieces(functools.partial(sound, weights), code, jax.random.key(0) if key is None else key, most, interrupted)
        return None if made is None else made.reshape(-1, channels)[late:None if samples is None else late + samples]

    def errors(wave_tc, made_tc):
        found = []
        for start in range(0, max(1, len(wave_tc) - crop + 1), crop):
            pair = (np.pad(x[start:start + crop], ((0, max(0, crop - len(x) + start)), (0, 0)))[None] for x in (wave_tc, made_tc))
            found.append(jax.device_get(compare(*pair, np.array([min(crop, len(wave_tc))]))))
            if interrupted():
                return None
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    encoder = jax.tree.leaves(jax.device_get((run.params["encoder"], run.variables["encoder"])))
    mark = functools.reduce(lambda found, leaf: zlib.crc32(np.ascontiguousarray(leaf), found), encoder, 0)
    return Through(encode, indices, decode, errors, frames, hop, latent, mark)


def _pieces(fn, x_nk, key, most: int, interrupted) -> np.ndarray | None:
    """fn(frames [m, k], number of the first one, key) -> [m, j] of all frames, at most `most` at once; None if interrupted."""
    n = len(x_nk)
    if n <= most:
        return jax.device_get(fn(x_nk, 0, key))
    before, after = _looks(fn, x_nk.shape[1], key)
    parts, done = [], 0
    while done < n:
        first = min(max(done - before, 0), n - most)
        made = jax.device_get(fn(x_nk[first:first + most], first, key))
        until = n if first + most == n else first + most - after
        parts.append(made[done - first:until - first])
        done = until
        if interrupted():
            return None
    return np.concatenate(parts)


def _looks(fn, width: int, key) -> tuple[int, int]:
    """How many frames before and after its own a frame of fn's result depends on: not a number in one frame spreads to all that see it."""
    x, middle = np.zeros((PROBE, width), np.float32), PROBE // 2
    x[middle] = np.nan
    seen = np.flatnonzero(~np.isfinite(jax.device_get(fn(x, 0, key))).all(1))
    if seen[0] == 0 or seen[-1] == PROBE - 1:
        raise UserError(f"the model looks further than {middle} frames around one, so longer sounds than {SECONDS} s cannot be taken in pieces.")
    return int(seen[-1]) - middle, middle - int(seen[0])


def read(run, path: str, flag: str) -> np.ndarray:
    """A sound file as a wave [t, c] at the model's rate, with its channels: one is doubled, or the mean of two is taken, which is said. Raises
    UserError, a sentence that begins with --flag=path."""
    channels = run.task.front.shape[1]
    wave, _, found = read_sound(path, flag, run.task.front.rate, channels, LONGEST)
    if found != channels:
        print(f"the model is {_named(channels)} and the file {_named(found)}: " + ("both channels are the file's one" if found < channels else
                                                                                  f"the model hears the mean of the {found}"))
    return wave


def _named(channels):
    return {1: "mono", 2: "stereo"}.get(channels, f"of {channels} channels")


def stored(run, through: Through, latents: np.ndarray, samples: int) -> dict[str, np.ndarray]:
    """The arrays of a file of latents, which `decode` reads: float32 [frames, d] of so many samples, and what tells which model they are of."""
    beside = {"rate": run.task.front.rate, "hop": through.hop, "samples": samples, "step": run.step, "encoder": through.encoder}
    return {"latents": latents} | {name: np.asarray(value) for name, value in beside.items()}


def keep_changed(files: dict) -> None:
    """Raises UserError where one of the files of latents to be written, {path: arrays}, is there already and holds others."""
    for path, arrays in files.items():
        if path.exists() and not _holds(path, arrays):
            raise UserError(f"{path} holds other latents than would be written, changed or of another sound or checkpoint: move it away.")


def _holds(path, arrays: dict) -> bool:
    """Whether a file holds these arrays and no others."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return set(file.files) == set(arrays) and all(np.array_equal(file[name], value) for name, value in arrays.items())
    except (ValueError, TypeError, EOFError, RuntimeError, AttributeError, zipfile.BadZipFile, zlib.error):
        return False


def refuse(given: str, *made) -> None:
    """Raises UserError where one of the files to be written is the one that was given, by whatever name."""
    for path in made:
        if path.exists() and os.path.samefile(path, given):
            raise UserError(f"{given} would be overwritten by what is made of it: rename it, or take it out of the run's folder.")
