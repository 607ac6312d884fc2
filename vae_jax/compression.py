"""A file of the codes of many pictures: packed by a `vqvae` run, range-coded by the prior of a `code_prior` run, and back to the same codes.

A file is MAGIC, the length of its header (uint32, big-endian), the header (JSON), labels where the prior is conditional (packed), codes. Codes of the
prior come back only where its probabilities are the very same numbers: so both sides run the same compiled step on the same number of maps, the header
names model and machine, and a checksum of the codes says in the end whether all went well.
"""

import functools
import hashlib
import json
import math
import struct
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import coding
from vae_jax.config import UserError
from vae_jax.models import pixelcnn
from vae_jax.tasks import code_prior, vqvae

MAGIC = b"vae_jax codes 1\n"
MAPS = 64  # that the prior looks at side by side


class Codes(NamedTuple):
    """indices int32 [n, h, w, c]; label int32 [n] where the prior is conditional, else None."""

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
    return MAGIC + struct.pack(">I", len(text)) + text + label + body


def read(run, data: bytes, origin: str) -> Codes:
    """What `write` was given. Raises UserError, naming `origin`, for a file that is damaged or of another model or machine."""
    q, labels = settings(run)
    damaged = UserError(f"{origin} is damaged, or no file of compressed codes: compress the pictures again.")
    try:
        size = struct.unpack(">I", data[len(MAGIC):len(MAGIC) + 4])[0]
        start = len(MAGIC) + 4 + size
        header = json.loads(data[len(MAGIC) + 4:start])
        n, shape, whole = int(header["count"]), tuple(map(int, header["shape"])), math.prod(header["shape"])
        model, checksum, machine = header["model"], header["checksum"], header.get("machine")
    except (struct.error, ValueError, KeyError, TypeError, UnicodeDecodeError):
        raise damaged from None
    if not data.startswith(MAGIC) or n < 1 or whole < 1:
        raise damaged
    if model != mark(run):
        raise UserError(f"{origin} was written with other weights than those of {run.workdir} at step {run.step}: its codes would mean something else. Give "
                        "the run, and with --checkpoint the step, that compressed it.")
    if machine not in (None, _machine()):
        raise UserError(f"{origin} was written on another kind of machine ({machine}; this is {_machine()}), where the prior's probabilities differ in their "
                        "last bits: decompress it there, or compress with the vqvae run, whose files are packed and open anywhere.")
    try:
        conditional = labels and run.config.task == "code_prior" and run.config.model.condition
        bits = coding.bits_of(labels) if conditional else 0
        label = coding.unpack(data[start:], bits, n) if conditional else None
        body = data[start + -(-n * bits // 8):]
        if machine is None:
            indices = coding.unpack(body, coding.bits_of(q.codes), n * whole).reshape(n, *shape)
        else:
            indices = _by_prior(run, (n, shape[0], whole // shape[0]), label, coding.Decoder(body)).reshape(n, *shape)
    except ValueError:
        raise damaged from None
    codes = Codes(indices, label)
    if _checksum(codes) != checksum:
        raise damaged
    return codes


def _by_prior(run, maps, label, decoder=None):
    """Maps [n, h, w] as bytes or, with a decoder and their shape in their place, back: int32 [n, h, w]."""
    q, labels = settings(run)
    net = code_prior.network(run.config.model, q.codes, labels, jnp.dtype(run.config.dtype))
    n, h, w = maps if decoder else maps.shape
    known = np.zeros((n, h * w), np.int32) if decoder else maps.reshape(n, h * w)
    device = jax.local_devices()[0]
    params = jax.device_put(run.params["prior"], device)
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
    return vqvae.quantizer(run.config.model if run.config.task == "vqvae" else run.config.model.autoencoder), len(labels)


def mark(run) -> str:
    digest = hashlib.sha256()
    for player in players(run):
        for leaf in jax.tree.leaves((run.params[player], run.variables.get(player, {}))):
            digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _machine() -> str:
    device = jax.local_devices()[0]
    return f"{device.device_kind}, jax {jax.__version__}"


def _checksum(codes: Codes) -> str:
    arrays = [np.ascontiguousarray(a, "<i4") for a in codes if a is not None]
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()[:16]
