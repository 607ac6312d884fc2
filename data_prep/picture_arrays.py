"""Pictures that come as arrays: IDX files, .npz, scikit-learn's digits, and public TFDS data sets."""

import contextlib
import gzip
import lzma
import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from data_prep.intake import Census, Item, open_item, printable
from data_prep.splits import SPLIT_WORDS
from data_prep.tfds_source import open_builder, split_name
from vae_jax.config import UserError

MAX_BYTES = 8 << 30  # of one array unpacked
MAX_GROWTH = 1032  # bytes that deflate makes of one, at most (zlib's technical details); a header that says more would list pictures without end
IDX_NAME = re.compile(r"(?:.*/)?(.*?)[-_.]?images?[-.]idx3[-.]ubyte(\.gz)?")
BROKEN = (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, lzma.LZMAError, struct.error, tokenize.TokenError, NotImplementedError,
          ValueError, TypeError, OSError, RuntimeError, KeyError, SyntaxError)


class Part(NamedTuple):
    """A run of pictures: the split the source gives it ('' = none), a name, how many, labels int [count] and class names or None."""

    split: str
    name: str
    count: int
    labels: np.ndarray | None
    classes: tuple[str, ...] | None
    pictures: Callable[[], Iterator[np.ndarray]]


def sniff(head: bytes) -> str | None:
    """'idx' or 'npz' by the first bytes, looking into gzip."""
    if head[:2] == b"\x1f\x8b":
        try:
            head = zlib.decompressobj(31).decompress(head, 16)
        except zlib.error:
            return None
    if len(head) >= 8 and head[:3] == b"\0\0\x08" and head[3] in (1, 3):
        return "idx"
    if head[:4] == b"PK\3\4" and len(head) > 30:
        return "npz" if head[30:30 + struct.unpack("<H", head[26:28])[0]].endswith(b".npy") else None
    return None


def split_of(words: list[str]) -> str:
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "")


def open_parts(found: Census, items: list[Item]) -> list[Part]:
    """The parts of IDX and .npz items. Raises UserError for damage, contradiction or nothing usable."""
    idx, npz = [i for i in items if i.kind == "idx"], [i for i in items if i.kind == "npz"]
    parts = (_idx_parts(found, idx) if idx else []) + [part for item in npz for part in _npz_parts(found, item)]
    names = [part.split for part in parts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{printable(str(found.source))} holds more than one array of pictures for {twice or 'an unnamed split'!r}: "
                        "give one file as --source.")
    return parts


def _stream(found, item):
    file = open_item(found, item)
    magic = file.read(2)
    file.seek(0)
    return gzip.open(file) if magic == b"\x1f\x8b" else file


def _idx_header(file, item):
    """(shape) of an IDX file of unsigned bytes, big-endian sizes (yann.lecun.com/exdb/mnist)."""
    axes, = struct.unpack("3xB", file.read(4))
    shape = struct.unpack(f">{axes}I", file.read(4 * axes))
    if math.prod(shape) > MAX_BYTES:
        raise UserError(f"{printable(item.name)} says it holds {math.prod(shape) >> 30} GB: more than is unpacked.")
    if math.prod(shape) > MAX_GROWTH * item.bytes:
        raise EOFError("it is far shorter than it declares")
    return shape


def _check_shape(name, shape):
    if len(shape) < 3 or min(shape[1:]) < 1:
        raise UserError(f"{printable(name)} has the shape {shape}: pictures need [count, height, width] or "
                        "[count, height, width, channels] and no side 0.")


def _idx_blocks(found, item, shape):
    size = math.prod(shape[1:])
    with _guard(item), _stream(found, item) as file:
        file.read(4 + 4 * len(shape))
        for first in range(0, shape[0], 1024):
            count = min(1024, shape[0] - first)
            data = file.read(count * size)
            if len(data) != count * size:
                raise EOFError(f"it ends within picture {first + len(data) // size} of {shape[0]}")
            yield np.frombuffer(data, np.uint8).reshape(count, *shape[1:])
        if file.read(1):
            raise EOFError(f"it goes on after the {shape[0]} it declares")


@contextlib.contextmanager
def _guard(item):
    """Turns what readers raise at damaged files into one sentence."""
    try:
        yield
    except BROKEN as error:
        raise UserError(f"{printable(item.name)} is damaged or not what its name says ({error}).") from None


def _idx_parts(found, items):
    pictures, labels = {}, {}
    for item in items:
        with _guard(item), _stream(found, item) as file:
            shape = _idx_header(file, item)
        if len(shape) == 1:
            labels[item.name] = item
        elif not IDX_NAME.fullmatch(item.name) and len(items) > 2:
            raise UserError(f"{printable(item.name)} holds pictures, but its name is not like train-images-idx3-ubyte: give it alone as --source.")
        else:
            _check_shape(item.name, shape)
            pictures[item] = shape
    if not pictures:
        raise UserError(f"{printable(str(found.source))} holds IDX labels but no pictures.")
    parts = []
    for item, shape in pictures.items():
        partner = re.sub("images?([-.])idx3", r"labels\1idx1", item.name)
        partner = next((labels[n] for n in (partner, partner.removesuffix(".gz"), partner + ".gz") if n in labels), None)
        values = None if partner is None else np.concatenate(list(_idx_labels(found, partner)))
        if values is not None and len(values) != shape[0]:
            raise UserError(f"{printable(item.name)} holds {shape[0]} pictures, but {printable(partner.name)} {len(values)} labels.")
        name = item.name.removesuffix(".gz")
        words = re.split(r"[-_.]", name.rsplit("/", 1)[-1].lower())
        parts.append(Part(split_of(words), name, shape[0], values, None,
                          lambda item=item, shape=shape: (p for block in _idx_blocks(found, item, shape) for p in block)))
    return sorted(parts, key=lambda part: part.split != "train")


def _idx_labels(found, item):
    with _guard(item), _stream(found, item) as file:
        shape = _idx_header(file, item)
    yield from _idx_blocks(found, item, shape)


def _npz_parts(found, item):
    """Keys are image(s) or x, label(s) or y, with train, test or validation before or after: images, train_images, x_test, label_val."""
    kinds = {"image": "x", "images": "x", "x": "x", "label": "y", "labels": "y", "y": "y"}
    arrays, total = {}, 0
    with _guard(item), open_item(found, item) as file, zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            words = member.filename.removesuffix(".npy").lower().split("_")
            kind = next((kinds[word] for word in words if word in kinds), None)
            if kind is None or any(w not in kinds and w not in SPLIT_WORDS for w in words):
                continue
            with archive.open(member) as stream:
                shape, dtype = _npy_header(stream)
                total += math.prod(shape) * dtype.itemsize
                if total > MAX_BYTES:
                    raise UserError(f"{printable(item.name)} says it holds more than {MAX_BYTES >> 30} GB: refused.")
                if dtype.hasobject or kind == "x" and dtype.kind not in "bfu" or dtype.kind == "u" and kind == "x" and dtype.itemsize > 1:
                    raise UserError(f"{printable(item.name)}: {member.filename} is {dtype}; pictures must be uint8, bool, or float in 0..1.")
                if kind == "x":
                    _check_shape(f"{item.name}: {member.filename}", shape)
                if stream.tell() + math.prod(shape) * dtype.itemsize != member.file_size or member.file_size > MAX_GROWTH * item.bytes:
                    raise UserError(f"{printable(item.name)}: {member.filename} does not have the size its header says.")
            key = (split_of(words), kind)
            if key in arrays:
                raise UserError(f"{printable(item.name)} has {arrays[key][0]} and {member.filename} for the same split.")
            arrays[key] = (member.filename, shape)
    parts = []
    for (split, kind), (key, shape) in arrays.items():
        if kind == "x":
            labels = _npz_labels(found, item, arrays.get((split, "y")), shape[0])
            parts.append(Part(split, f"{item.name}/{key.removesuffix('.npy')}", shape[0], labels, None,
                              lambda key=key: iter(_npz_array(found, item, key))))
    if not parts:
        raise UserError(f"{printable(item.name)} has no pictures: its arrays should be named images and labels, or like train_images, x_test, "
                        "label_val.")
    return parts


def _npy_header(stream):
    version = np.lib.format.read_magic(stream)
    shape, _, dtype = (np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0)(stream)
    return shape, dtype


def _npz_array(found, item, key):
    with _guard(item), open_item(found, item) as file, zipfile.ZipFile(file) as archive, archive.open(key) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _npz_labels(found, item, entry, count):
    if entry is None:
        return None
    labels = _npz_array(found, item, entry[0])
    labels = labels.argmax(1) if labels.ndim == 2 and labels.shape[1] > 1 and ((labels == 0) | (labels == 1)).all() else labels.reshape(-1)
    if labels.shape != (count,) or labels.dtype.kind not in "biu" or count and labels.min() < 0:
        raise UserError(f"{printable(item.name)}: {entry[0]} should hold {count} whole numbers from 0 on, one a picture.")
    return labels.astype(np.int64)


def digits_parts() -> list[Part]:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, values 0..16 brought to 0..255."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("--source=digits needs scikit-learn: pip install scikit-learn.") from None
    digits = load_digits()
    pictures = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return [Part("", "digits", len(pictures), digits.target.astype(np.int64), tuple("0123456789"), lambda: iter(pictures))]


def tfds_parts(name: str) -> list[Part]:
    """The pictures of a TFDS data set. Raises as `open_builder` does, and where there is no field 'image'."""
    tfds, builder = open_builder(name)
    features = builder.info.features
    if "image" not in features:
        raise UserError(f"--source=tfds:{name} has no field 'image'; it has {', '.join(features)}.")
    label = features["label"] if "label" in features else None
    classes = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) and label.num_classes else None
    parts = []
    for split, info in builder.info.splits.items():
        rows = builder.as_dataset(split=split, shuffle_files=False)
        labels = None
        if classes is not None:
            labels = np.array([int(row["label"]) for row in tfds.as_numpy(rows.map(lambda r: {"label": r["label"]}))], np.int64)
        parts.append(Part(split_name(split), f"{name}/{split}", info.num_examples, labels, classes,
                          lambda rows=rows: (row["image"] for row in tfds.as_numpy(rows.map(lambda r: {"image": r["image"]})))))
    return parts
