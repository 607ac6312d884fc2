"""A file of the codes of many pictures or sounds: packed by the run of an autoencoder, range-coded by that of a prior, and back to the same codes.

A file is MAGIC, SHA-256 of all that follows (its first DIGEST bytes), the length of the header (uint32, big-endian), the header (JSON), what the
model is told, and of sounds how long they are (packed), codes. Codes of the prior come back only where its probabilities are the very same numbers:
so both sides run the same compiled step on as many maps or sounds at once, the header names model and machine, and a checksum of the codes says in
the end whether all went well.
"""

import functools
import hashlib
import json
import math
import platform
import struct
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import coding, session
from vae_jax.config import UserError
from vae_jax.losses import quantization
from vae_jax.models import pixelcnn, wavenet
from vae_jax.tasks import code_prior, vqvae, wave_code_prior

MAGIC = b"vae_jax codes 1\n"
DIGEST = 8
MAPS = 64  # that the prior looks at side by side


class Codes(NamedTuple):
    """indices int32 [n, h, w, c] of pictures, [n, positions, c] of sounds; told {field: classes int32 [n]} that the model (its prior, its decoder or
    both) is told; valid int32 [n], of sounds alone: their samples. Codes that begin behind these do not count and come back as 0."""

    indices: np.ndarray
    told: dict[str, np.ndarray]
    valid: np.ndarray | None = None


def players(run) -> tuple[str, ...]:
    """Of a run, those that its files need. Raises UserError for a run without codes."""
    if run.config.task in ("vqvae", "wave_vqvae"):
        return ("quantizer", "decoder")
    if run.config.task in ("code_prior", "wave_code_prior"):
        return ("quantizer", "decoder", "prior")
    raise UserError(f"{run.workdir} is a run of the task {run.config.task!r}, of whose codes there are no files; give one of vqvae, code_prior, "
                    "wave_vqvae or wave_code_prior.")


def settings(run) -> tuple[quantization.Quantizer, dict[str, int]]:
    """The quantiser of a run, and how many classes each field has that its model is told."""
    needed, model = players(run), run.config.model
    if not run.task.front.hop:
        fields = ("label",) if run.task.condition else ()
    else:
        fields = wave_code_prior.told(model) if "prior" in needed else (model.condition,) if model.condition else ()
    return vqvae.quantizer(getattr(model, "autoencoder", model)), {name: len(run.spec.fields[name].labels) for name in fields}


def write(run, codes: Codes) -> bytes:
    """The file. Raises UserError for a run without codes."""
    q, sizes = settings(run)
    n, *shape = codes.indices.shape
    counted = _counted(run, n, shape, codes.valid)
    flat = np.where(counted, codes.indices.reshape(n, -1), 0)
    header = {"shape": shape, "codes": q.codes, "count": n, "model": mark(run), "checksum": _checksum(flat, codes)}
    beside = b"".join(coding.pack(codes.told[name], coding.bits_of(size)) for name, size in sizes.items())
    if codes.valid is not None:
        beside += coding.pack(codes.valid, _bits_of_valid(run, shape))
    if "prior" in players(run):
        header["machine"] = _machine()
        body = _by_prior(run, flat, counted, codes.told)
    else:
        body = coding.pack(flat[counted], coding.bits_of(q.codes))
    text = json.dumps(header).encode()
    rest = struct.pack(">I", len(text)) + text + beside + body
    return MAGIC + _digest(rest) + rest


def read(run, data: bytes, origin: str) -> Codes:
    """What `write` was given. Raises UserError, naming `origin`, for a file that is damaged or of another model or machine."""
    q, sizes = settings(run)
    if not data.startswith(MAGIC):
        raise UserError(f"{origin} is no file of compressed codes: give one that `compress` wrote.")
    start = len(MAGIC) + DIGEST
    if len(data) < start + 4 or data[len(MAGIC):start] != _digest(data[start:]):
        raise UserError(f"{origin} is damaged: take a copy of it, or compress again what it holds.")
    size = struct.unpack(">I", data[start:start + 4])[0]
    header, data = json.loads(data[start + 4:start + 4 + size]), data[start + 4 + size:]
    n, shape, machine = header["count"], header["shape"], header.get("machine")
    if header["model"] != mark(run):
        raise UserError(f"{origin} was written with other weights than those of {run.workdir} at step {run.step}: its codes would mean something "
                        "else. Give the run, and with --checkpoint the step, that compressed it.")
    if machine not in (None, _machine()):
        raise UserError(f"{origin} was written on another kind of machine ({machine}; this is {_machine()}), where the prior's probabilities differ "
                        "in their last bits: decompress it there, or compress with the autoencoder's run, whose files are packed and open anywhere.")

    def taken(bits):
        nonlocal data
        found, data = coding.unpack(data, bits, n), data[-(-n * bits // 8):]
        return found

    told = {name: taken(coding.bits_of(classes)) for name, classes in sizes.items()}
    valid = taken(_bits_of_valid(run, shape)) if run.task.front.hop else None
    counted = _counted(run, n, shape, valid)
    flat = np.zeros(counted.shape, np.int32)
    try:
        if machine is None:
            flat[counted] = coding.unpack(data, coding.bits_of(q.codes), int(counted.sum()))
        else:
            _by_prior(run, flat, counted, told, coding.Decoder(data))
        codes = Codes(flat.reshape(n, *shape), told, valid)
    except ValueError:  # of the decoder, which lost its way
        codes = None
    if codes is None or _checksum(flat, codes) != header["checksum"]:
        raise UserError(f"{origin} is whole, but here the prior's probabilities differ in their last bits from those it was written with, as they "
                        "may between processors of one kind: decompress it on the machine that wrote it, or compress with the autoencoder's run, "
                        "whose files open anywhere.")
    return codes


def _counted(run, n, shape, valid):
    """bool [n, codes in their order]: which there are."""
    if valid is None:
        return np.ones((n, math.prod(shape)), bool)
    positions = np.arange(shape[0]) * run.task.front.hop < np.maximum(valid, 1)[:, None]
    return positions.repeat(shape[1], 1)


def _bits_of_valid(run, shape):
    return coding.bits_of(shape[0] * run.task.front.hop + 1)


def _by_prior(run, known, counted, told, decoder=None):
    """Codes `known` [n, l] as bytes or, with a decoder, out of these into `known`."""
    n, starts, sizes = len(known), [], []
    begin, step = (_sounds if run.task.front.hop else _maps)(run, told)
    for first in range(0, n, MAPS):
        count = min(n - first, MAPS)
        state, previous = begin(np.minimum(np.arange(first, first + MAPS), n - 1)), np.zeros(MAPS, np.int32)
        for position in range(known.shape[1]):
            state, logits = step(state, previous, position)
            there = np.flatnonzero(counted[first:first + count, position])
            if not len(there):
                break  # sounds are over together with their codes
            chances = coding.frequencies(np.asarray(logits)[there])
            if decoder:
                known[first + there, position] = decoder.take(chances)
            else:
                chosen = known[first + there, position][:, None]
                sizes.append(np.take_along_axis(chances, chosen, -1)[:, 0])
                starts.append(np.take_along_axis(np.cumsum(chances, -1), chosen, -1)[:, 0] - sizes[-1])
            previous = np.zeros(MAPS, np.int32)
            previous[:count] = known[first:first + count, position]
    if decoder is None:
        return coding.encode(np.concatenate(starts), np.concatenate(sizes))
    if not decoder.finished():
        raise ValueError("data is left over")


def _maps(run, told):
    """begin(rows) -> state, step(state, previous, position) -> (state, logits [MAPS, K]) of a prior over pictures' codes."""
    q, sizes = settings(run)
    m, c = run.config.model, q.groups * q.levels
    width = (run.task.front.shape[1] >> m.autoencoder.downs) * c
    net = code_prior.network(m, q.codes, sizes.get("label", 0), c, jnp.dtype(run.config.dtype))
    params, step = _prior(run), jax.jit(functools.partial(pixelcnn.step, net), donate_argnums=1)
    begin = lambda rows: pixelcnn.start(net, params, MAPS, width, jnp.asarray(told["label"][rows]) if m.condition else None)
    return begin, lambda state, previous, _: step(params, state, previous)


def _sounds(run, told):
    """The same of one over sounds' codes. Files say how long sounds are, so END is none of the choices."""
    q, sizes = settings(run)
    m, c = run.config.model, q.groups * q.levels
    net, params = wave_code_prior.network(m, q.codes, jnp.dtype(run.config.dtype)), _prior(run)
    step, slots = jax.jit(functools.partial(wavenet.step, net), donate_argnums=1), jnp.eye(c)

    def begin(rows):
        condition = wave_code_prior.condition(m, sizes, {name: jnp.asarray(values[rows]) for name, values in told.items()})
        return wavenet.prepare(net, params, MAPS, condition), wavenet.start(net, MAPS)

    def next_code(state, previous, position):
        weights, state = state
        state, logits = step(weights, state, previous, jnp.broadcast_to(slots[position % c], (MAPS, c)) if c > 1 else None)
        return (weights, state), logits[:, :q.codes]

    return begin, next_code


def _prior(run):
    """Its weights on one device: as they are, arrays of several processes go to no single one."""
    return jax.device_put(jax.tree.map(np.asarray, run.params["prior"]), jax.local_devices()[0])


def mark(run) -> str:
    """Of the weights that its files need."""
    return session.digest([(run.params[player], run.variables.get(player, {})) for player in players(run)])


def _machine() -> str:
    device = jax.local_devices()[0]
    return f"{device.device_kind}, {platform.machine()}, jax {jax.__version__}, numpy {np.__version__}"


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:DIGEST]


def _checksum(flat, codes: Codes) -> str:
    arrays = [np.ascontiguousarray(a, "<i4") for a in (flat, *codes.told.values(), codes.valid) if a is not None]
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()[:16]
