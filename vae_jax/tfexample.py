"""The two layers of a TFRecord file: the frame around a record, and the tf.train.Example inside it. No TensorFlow, no protobuf.

Frame: 8-byte little-endian length, masked crc32c of those 8 bytes, payload, masked crc32c of the payload. Example: a map from
field name to a list of bytes, of floats or of int64 (tensorflow/core/example/feature.proto). Every field here holds one value.
`parse` walks many records at once in NumPy, so opening 60,000 pictures costs milliseconds; the order of fields is free.
"""

import struct

import google_crc32c
import numpy as np

FRAME = 16  # bytes of framing around a payload
MAX_PAYLOAD = 1 << 28  # a longer record is refused before its bytes are asked for
KINDS = {"bytes": 0x0A, "float": 0x12, "int": 0x1A}  # tag of the list inside a Feature


class Malformed(ValueError):
    """A record that is not an Example of the declared fields; `row` counts from 0 within the call."""

    def __init__(self, row: int, reason: str):
        super().__init__(reason)
        self.row = int(row)


def mask(crc):
    """The masked form TFRecord stores, of an int or an array of uint32."""
    crc = np.uint64(crc) if np.isscalar(crc) else crc.astype(np.uint64)
    return ((crc >> np.uint64(15) | crc << np.uint64(17)) + np.uint64(0xA282EAD8)) & np.uint64(0xFFFFFFFF)


def masked_crc(data) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(payload: bytes) -> tuple[bytes, int]:
    """(the framed record, the masked checksum of its payload)."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a record of {len(payload)} bytes is larger than the {MAX_PAYLOAD} allowed")
    length, crc = struct.pack("<Q", len(payload)), masked_crc(payload)
    return b"".join((length, struct.pack("<I", masked_crc(length)), payload, struct.pack("<I", crc))), crc


def _crc_table():
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0x82F63B78), table >> 1)
    return table


def length_crcs(lengths: np.ndarray) -> np.ndarray:
    """Masked crc32c of each length as its 8 little-endian bytes: [n] -> uint32 [n]."""
    table, octets = _crc_table(), lengths.astype("<u8").view(np.uint8).reshape(-1, 8)
    crc = np.full(len(octets), 0xFFFFFFFF, np.uint32)
    for column in octets.T:
        crc = table[(crc ^ column) & 0xFF] ^ crc >> 8
    return mask(crc ^ np.uint32(0xFFFFFFFF)).astype(np.uint32)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # a negative int64 is its two's complement, ten bytes long
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _chunk(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return b"".join((bytes((tag,)), _varint(len(body)), body))


def serialize(values: dict[str, bytes | int | float]) -> bytes:
    """An Example with one value a field; fields sorted by name, so the same values are the same bytes."""
    entries = []
    for name in sorted(values):
        value = values[name]
        if isinstance(value, bytes):
            feature = _chunk(KINDS["bytes"], _chunk(0x0A, value))
        elif isinstance(value, float):
            feature = _chunk(KINDS["float"], _chunk(0x0A, struct.pack("<f", value)))
        else:
            feature = _chunk(KINDS["int"], _chunk(0x0A, _varint(int(value))))
        entries.append(_chunk(0x0A, _chunk(0x0A, name.encode()), _chunk(0x12, feature)))
    return _chunk(0x0A, *entries)


def _require(good, rows, reason):
    if not good.all():
        raise Malformed(rows[np.argmin(good)], reason)


def _read_varints(octets, at, end, rows):
    """Base-128 integers at `at` -> (int64 values, positions behind them)."""
    value, at, live = np.zeros(len(at), np.uint64), at.copy(), np.arange(len(at))
    for shift in range(0, 70, 7):
        _require(at[live] < end[live], rows[live], "ends within a number")
        octet = octets[at[live]]
        value[live] |= (octet & 127).astype(np.uint64) << np.uint64(shift)
        at[live] += 1
        live = live[octet > 127]
        if not live.size:
            return value.view(np.int64), at
    raise Malformed(rows[live[0]], "holds a number of more than 64 bits")


def _enter(octets, at, end, rows, tag):
    """Bounds of the length-delimited field with this tag at `at`; it must end at or before `end`."""
    _require(at < end, rows, "ends early")
    _require(octets[np.minimum(at, end - 1)] == tag, rows, "is not laid out as an Example with one value a field")
    size, start = _read_varints(octets, at + 1, end, rows)
    _require((size >= 0) & (size <= end - start), rows, "holds a field longer than itself")
    return start, start + size


def parse(octets: np.ndarray, start: np.ndarray, end: np.ndarray, kinds: dict[str, str]) -> dict:
    """Fields of n Examples that lie at octets[start:end].

    octets uint8 [b]; start, end int64 [n]; kinds: field name -> 'bytes', 'float' or 'int'. Returns for a bytes field the pair
    (first, last+1) of int64 [n] positions in `octets`, for the others the values [n]. Raises Malformed for a record that lacks
    a field, repeats one, has one of another kind or has one more; sizes are checked before anything is read.
    """
    rows = np.arange(len(start))
    at, limit = _enter(octets, start, end, rows, 0x0A)
    _require(limit == end, rows, "has bytes behind its fields")
    found = {name: (np.full(len(start), -1), np.full(len(start), -1)) for name in kinds}
    live, at = rows[at < limit], at.copy()
    while live.size:
        entry, entry_end = _enter(octets, at[live], limit[live], live, 0x0A)
        key, key_end = _enter(octets, entry, entry_end, live, 0x0A)
        value, value_end = _enter(octets, key_end, entry_end, live, 0x12)
        _require(value_end == entry_end, live, "has bytes behind a field")
        known = np.zeros(len(live), bool)
        for name in kinds:
            text = np.frombuffer(name.encode(), np.uint8)
            match = np.flatnonzero(key_end - key == len(text))
            match = match[(octets[key[match][:, None] + np.arange(len(text))] == text).all(axis=1)]
            _require(found[name][0][live[match]] < 0, live[match], f"has the field {name!r} twice")
            found[name][0][live[match]], found[name][1][live[match]] = value[match], value_end[match]
            known[match] = True
        _require(known, live, "has a field that the data set does not declare")
        at[live] = entry_end
        live = live[entry_end < limit[live]]
    return {name: _value(octets, *bounds, rows, name, kinds[name]) for name, bounds in found.items()}


def _value(octets, first, last, rows, name, kind):
    _require(first >= 0, rows, f"lacks the field {name!r}")
    first, stop = _enter(octets, first, last, rows, KINDS[kind])
    _require(stop == last, rows, f"has bytes behind the field {name!r}")
    first, stop = _enter(octets, first, last, rows, 0x0A)
    _require(stop == last, rows, f"has more than one value of {name!r}")
    if kind == "bytes":
        return first, stop
    if kind == "float":
        _require(stop - first == 4, rows, f"has not exactly one value of {name!r}")
        return octets[first[:, None] + np.arange(4)].view("<f4")[:, 0]
    values, behind = _read_varints(octets, first, stop, rows)
    _require(behind == stop, rows, f"has more than one value of {name!r}")
    return values
