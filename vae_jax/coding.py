"""Codes as bytes: packed, each in the same number of bits, or range-coded by the probabilities that a prior gives them. NumPy alone."""

import numpy as np

PRECISION = 16  # bits of an integer probability
LOW = 1 << 31  # the coder's state lies in LOW .. 2^32 LOW - 1, and words of 32 bits leave and enter


def bits_of(codes: int) -> int:
    """Bits of each of `codes` codes, packed."""
    return max(1, (codes - 1).bit_length())


def pack(indices, bits: int) -> bytes:
    """Whole numbers below 2^bits, the highest bit first."""
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits((np.asarray(indices).reshape(-1, 1) >> shifts & 1).astype(np.uint8)).tobytes()


def unpack(data: bytes, bits: int, count: int):
    """int32 [count]. Raises ValueError where the data is too short."""
    if len(data) < -(-count * bits // 8):
        raise ValueError(f"{len(data)} bytes hold no {count} numbers of {bits} bits")
    found = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits).reshape(count, bits)
    return (found.astype(np.int32) << np.arange(bits - 1, -1, -1)).sum(1, dtype=np.int32)


def frequencies(logits):
    """Whole numbers [..., K], each at least 1, that sum to 2^PRECISION, about as softmax(logits) [..., K]. Raises ValueError where K is too large."""
    k = logits.shape[-1]
    if k > 1 << PRECISION - 1:
        raise ValueError(f"{k} codes are too many for probabilities of {PRECISION} bits")
    chances = np.exp(np.float64(logits) - np.max(logits, -1, keepdims=True))
    chances /= chances.sum(-1, keepdims=True)
    found = np.floor(chances * ((1 << PRECISION) - k)).astype(np.int64) + 1
    likeliest = np.argmax(found, -1)[..., None]
    rest = (1 << PRECISION) - found.sum(-1, keepdims=True)
    np.put_along_axis(found, likeliest, np.take_along_axis(found, likeliest, -1) + rest, -1)
    return found


def encode(starts, sizes) -> bytes:
    """Symbols as the intervals start .. start + size - 1 of 0 .. 2^PRECISION - 1, in the order in which they will be decoded.

    rANS (Duda 2013, arXiv:1311.2540): the last symbol goes in first. 8 bytes more than the symbols' information, whatever their number.
    """
    state, words = LOW, []
    for start, size in zip(reversed(starts.tolist()), reversed(sizes.tolist())):
        if state >= size << 47:  # 32 + log2 LOW - PRECISION: the next state would be too large
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = state // size << PRECISION | state % size + start
    return np.array([state >> 32, state & 0xFFFFFFFF, *reversed(words)], ">u4").tobytes()


class Decoder:
    """Takes symbols out of what `encode` gave. Damaged data gives other symbols, or ValueError where it ends too early."""

    def __init__(self, data: bytes):
        if len(data) < 8 or len(data) % 4:
            raise ValueError(f"{len(data)} bytes are no whole number of words")
        self.words = np.frombuffer(data, ">u4").tolist()
        self.state, self.next = self.words[0] << 32 | self.words[1], 2

    def take(self, sizes_nk):
        """The next n symbols, of frequencies sizes [n, K] (see `frequencies`): int32 [n]."""
        ends, found = np.cumsum(sizes_nk, -1), np.empty(len(sizes_nk), np.int32)
        for i, (end, size) in enumerate(zip(ends, sizes_nk)):
            place = self.state & (1 << PRECISION) - 1
            symbol = int(np.searchsorted(end, place, "right"))
            width = int(size[symbol])
            self.state = width * (self.state >> PRECISION) + place - (int(end[symbol]) - width)
            if self.state < LOW:
                if self.next == len(self.words):
                    raise ValueError("the data ends in the middle of a symbol")
                self.state = self.state << 32 | self.words[self.next]
                self.next += 1
            found[i] = symbol
        return found

    def finished(self) -> bool:
        """Whether all data was used up, and nothing but the beginning is left of it: true of whole data."""
        return self.next == len(self.words) and self.state == LOW
