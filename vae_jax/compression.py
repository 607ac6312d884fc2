"""A file of the codes of many pictures: packed by a `vqvae` run, range-coded by the prior of a `code_prior` run, and back to the same codes.

A file is MAGIC, SHA-256 of all that follows (its first DIGEST bytes), the length of the header (uint32, big-endian), the header (JSON), labels where
the model is conditional (packed), codes. Codes of the prior come back only where its probabilities are the very same numbers: so both sides run the
same compiled step on the same number of maps, the header names model and machine, and a checksum of the codes says in the end whether all went well.
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
from vae_jax.models import pixelcnn
from vae_jax.tasks import code_prior, vqvae

MAGIC = b"vae_jax codes 1\n"
DIGEST = 8
MAPS = 64  # that the prior looks at side by side


class Codes(NamedTuple):
    """indices int32 [n, h, w, c]; label int32 [n] where the model is conditional (its prior, its decoder or both), else None."""

    indices: np.ndarray
    label: np.ndarray | None


def players(run) -> tuple[str, ...]:
    """Of a run, those that its files need. Raises UserError for a run without codes."""
    if run.config.task == "vqvae":
        return ("quantizer", "decoder")
    if run.config.task == "code_prior":
        return ("quantizer", "decoder", "prior")
    raise UserError(f"{run.workdir} is a run of the task {run.config.task!r}, which has no codes; give one of vqvae or code_prior.")


def write(run, codes: Codes) -> bytes:
    """The file. Raises UserError for a run without codes."""
    q, labels = settings(run)
    n, *shape = codes.indices.shape
    header = {"shape": shape, "codes": q.codes, "count": n, "model": mark(run), "checksum": _checksum(codes), "pictures": list(run.task.front.shape)}
    label = b"" if codes.label is None else coding.pack(codes.label, coding.bits_of(labels))
    if run.config.task == "vqvae":
        body = coding.pack(codes.indices, coding.bits_of(q.codes))
    else:
        header["machine"] = _machine()
        body = _by_prior(run, codes.indices.reshape(n, shape[0], -1), codes.label)
    text = json.dumps(header).encode()
    rest = struct.pack(">I", len(text)) + text + label + body
    return MAGIC + _digest(rest) + rest


def read(run, data: bytes, origin: str) -> Codes:
    """What `write` was given. Raises UserError, naming `origin`, for a file that is damaged or of another model or machine."""
    q, labels = settings(run)
    if not data.startswith(MAGIC):
        raise UserError(f"{origin} is no file of compressed codes: give one that `compress` wrote.")
    start = len(MAGIC) + DIGEST
    if len(data) < start + 4 or data[len(MAGIC):start] != _digest(data[start:]):
        raise UserError(f"{origin} is damaged: take a copy of it, or compress the pictures again.")
    size = struct.unpack(">I", data[start:start + 4])[0]
    header, data = json.loads(data[start + 4:start + 4 + size]), data[start + 4 + size:]
    n, shape, whole, machine = header["count"], header["shape"], math.prod(header["shape"]), header.get("machine")
    if header["model"] != mark(run):
        raise UserError(f"{origin} was written with other weights than those of {run.workdir} at step {run.step}: its codes would mean something "
                        "else. Give the run, and with --checkpoint the step, that compressed it.")
    if machine not in (None, _machine()):
        raise UserError(f"{origin} was written on another kind of machine ({machine}; this is {_machine()}), where the prior's probabilities differ "
                        "in their last bits: decompress it there, or compress with the vqvae run, whose files are packed and open anywhere.")
    bits = coding.bits_of(labels) if run.task.condition else 0
    label, body = coding.unpack(data, bits, n) if bits else None, data[-(-n * bits // 8):]
    try:
        if machine is None:
            indices = coding.unpack(body, coding.bits_of(q.codes), n * whole)
        else:
            indices = _by_prior(run, (n, shape[0], whole // shape[0]), label, coding.Decoder(body))
        codes = Codes(indices.reshape(n, *shape), label)
    except ValueError:  # of the decoder, which lost its way
        codes = None
    if codes is None or _checksum(codes) != header["checksum"]:
        raise UserError(f"{origin} is whole, but here the prior's probabilities differ in their last bits from those it was written with, as they "
                        "may between processors of one kind: decompress it on the machine that wrote it, or "
                        "compress with the vqvae run, whose files open anywhere.")
    return codes


def _by_prior(run, maps, label, decoder=None):
    """Maps [n, h, w] as bytes or, with a decoder and their shape in their place, back: int32 [n, h, w]."""
    q, labels = settings(run)
    net = code_prior.network(run.config.model, q.codes, labels, q.groups * q.levels, jnp.dtype(run.config.dtype))
    n, h, w = maps if decoder else maps.shape
    known = np.zeros((n, h * w), np.int32) if decoder else maps.reshape(n, h * w)
    device = jax.local_devices()[0]
    params = jax.device_put(jax.tree.map(np.asarray, run.params["prior"]), device)  # as they are, arrays of several processes go to no single device
    label = label if run.config.model.condition else None
    step = jax.jit(functools.partial(pixelcnn.step, net), donate_argnums=1)
    starts, sizes = [], []
    for first in range(0, n, MAPS):
        part = slice(first, min(n, first + MAPS))
        rows = np.minimum(np.arange(first, first + MAPS), n - 1)
        state = pixelcnn.start(net, params, MAPS, w, None if label is None else jnp.asarray(label[rows]))
        previous = np.zeros(MAPS, np.int32)
        for position in range(h * w):
            state, logits = step(params, state, previous)
            chances = coding.frequencies(np.asarray(logits)[:part.stop - first])
            if decoder:
                known[part, position] = decoder.take(chances)
            else:
                chosen = known[part, position][:, None]
                sizes.append(np.take_along_axis(chances, chosen, -1)[:, 0])
                starts.append(np.take_along_axis(np.cumsum(chances, -1), chosen, -1)[:, 0] - sizes[-1])
            previous = np.zeros(MAPS, np.int32)
            previous[:part.stop - first] = known[part, position]
    if decoder is None:
        return coding.encode(np.concatenate(starts), np.concatenate(sizes))
    if not decoder.finished():
        raise ValueError("data is left over")
    return known.reshape(n, h, w)


def settings(run):
    """The quantiser of a run, and its number of classes."""
    players(run)
    labels = run.spec.fields["label"].labels if "label" in run.spec.fields else ()
    return vqvae.quantizer(getattr(run.config.model, "autoencoder", run.config.model)), len(labels)


def mark(run) -> str:
    """Of the weights that its files need."""
    return session.digest([(run.params[player], run.variables.get(player, {})) for player in players(run)])


def _machine() -> str:
    device = jax.local_devices()[0]
    return f"{device.device_kind}, {platform.machine()}, jax {jax.__version__}, numpy {np.__version__}"


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:DIGEST]


def _checksum(codes: Codes) -> str:
    arrays = [np.ascontiguousarray(a, "<i4") for a in codes if a is not None]
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()[:16]
