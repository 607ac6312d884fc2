"""From one sound file to its records, or to one wave: checks, decoding, resampling, cutting into pieces. Runs inside worker processes.

A file is decoded block by block from the open file, whatever its length, and judged as a whole before its first record is handed on.
It is left out, with the reason, if it is damaged or cut short, holds no samples or values that are not finite, is shorter than 10 ms or
longer than a day, or if what would be kept of it never reaches -80 dB of full scale. Silent pieces of other files are kept and counted.
"""

import io
import os
import re
import struct
import time
from collections.abc import Iterable, Iterator

import numpy as np
import soundfile
import soxr

from data_prep.intake import HEAD, printable
from data_prep.pool import Skip
from vae_jax.config import UserError
from vae_jax.records import Field, encode

FORMATS = {"wav": ("WAV", "WAVEX", "RF64"), "aiff": ("AIFF",), "flac": ("FLAC",), "ogg": ("OGG",), "mp3": ("MP3",)}  # kind -> libsndfile's names
SUBTYPES = ("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "VORBIS", "OPUS", "MPEG_LAYER_III")
EXPECTED = "a WAV, AIFF, FLAC, Ogg or MP3 file"
MIN_RATE, MAX_RATE, MAX_CHANNELS = 2_000, 768_000, 64
MIN_SECONDS, MAX_SECONDS = 0.01, 86_400
SILENT = 1e-4  # of full scale, -80 dB: a file that stays below it is left out
QUIET = 1e-3  # of full scale, -60 dB: 20 ms below it count as silence in the manifest
MAX_PEAK = 4.0  # of full scale: what lossy codecs overshoot stays far below, so more is damage or another scale
UNKNOWN = 0x7FFFF000  # lengths from here on are what recorders write that cannot go back to the header
BLOCK = 1 << 17  # values decoded at a time
HELD_BYTES, PART_BYTES = 1 << 26, 1 << 22  # a file with more samples than that is decoded twice instead of held; records handed on at a time
WINDOW = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)).astype(np.float32)  # periodic Hann


def sniff(head: bytes) -> str | None:
    """The sound format of a file by its first bytes."""
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[:4] in (b"fLaC", b"OggS"):
        return {b"fLaC": "flac", b"OggS": "ogg"}[head[:4]]
    if head[:3] == b"ID3":
        return "mp3"
    # a frame of MPEG layer III: sync word, version, bit rate and sample rate that are not reserved
    frame = len(head) > 3 and head[0] == 255 and head[1] & 0xE6 == 0xE2 and head[1] & 0x18 != 8 and head[2] >> 4 not in (0, 15) and head[2] & 12 != 12
    return "mp3" if frame else None


def _check_chunks(file, size):
    """libsndfile takes a cut WAV or AIFF for whole and believes any length in its header."""
    order, name = (">", b"SSND") if file.read(4) == b"FORM" else ("<", b"data")
    declared = 8 + struct.unpack(order + "I", file.read(4))[0]
    at, found, long = 12, False, 0
    while at + 8 <= size:
        file.seek(at)
        kind, length = struct.unpack(order + "4sI", file.read(8))
        if kind == b"ds64" and at + 24 <= size:
            long = struct.unpack("<QQ", file.read(16))[1]
        if kind == name:
            length, found = long if long and length == 0xFFFFFFFF else length, True
            if at + 8 + length > size and length >= UNKNOWN and not long:
                return
            if at + 8 + length > size:
                raise Skip(f"cut short: its header says {length:,} bytes of samples, and {size - at - 8:,} are there")
        elif found and at < declared and (not re.fullmatch(rb"[ -~]{4}", kind) or at + 8 + length > size):
            raise Skip(f"damaged: its header does not say what the last {size - at:,} bytes are")
        at += 8 + length + length % 2
    if not found:
        raise Skip("holds no samples")


def _check_pages(file, size) -> int:
    """The sample position an Ogg file's last page counts to, of an Opus stream at 48 kHz.

    libsndfile reads up to the first damaged page, or the first of several streams, and takes that for the whole.
    """
    at, serial, position, preskip, flags = 0, None, 0, 0, 0
    while at < size:
        file.seek(at)
        head = file.read(27 + 255)
        if head[:4] != b"OggS" or len(head) < 27:
            raise Skip("damaged: there are bytes between its Ogg pages")
        flags, granule = head[5], struct.unpack("<q", head[6:14])[0]
        length = 27 + head[26] + sum(head[27:27 + head[26]])
        if at + length > size:
            raise Skip("cut short: its last Ogg page is not whole")
        if serial not in (None, head[14:18]) or at and flags & 2:
            raise Skip("holds several Ogg streams, of which only one would be read")
        if at == 0 and head[28:36] == b"OpusHead":
            preskip = struct.unpack("<H", head[38:40])[0]
        position = granule if granule >= 0 else position
        serial, at = head[14:18], at + length
    if not flags & 4:
        raise Skip("cut short: its last Ogg page is missing")
    return max(0, position - preskip)


def _check_frames(file, size) -> int:
    """How many samples the Xing or Info header of an MP3 counts, less what encoders add at the ends; 0 where there is none."""
    head, start = file.read(10), 0
    if head[:3] == b"ID3" and len(head) == 10:
        start = 10 + sum((b & 127) << 7 * (3 - i) for i, b in enumerate(head[6:10]))
    file.seek(start)
    head = file.read(60)
    at = max(head.find(b"Xing"), head.find(b"Info"))
    if at < 0 or len(head) < at + 16:
        return 0
    flags, *numbers = struct.unpack(">3I", head[at + 4:at + 16])
    frames, length = numbers.pop(0) if flags & 1 else 0, numbers.pop(0) if flags & 2 else 0
    if start + length > size:
        raise Skip(f"cut short: its header says {length:,} bytes, and {size - start:,} are there")
    return max(0, frames - 4) * (1152 if head[1] & 8 else 576)


def open_sound(file, kind: str) -> tuple[soundfile.SoundFile, int]:
    """(the open sound, how many samples it should hold at least); file: binary, at any place. Raises Skip."""
    size, expected = file.seek(0, 2), 0
    file.seek(0)
    if kind in ("wav", "aiff"):
        _check_chunks(file, size)
    elif kind == "ogg":
        expected = _check_pages(file, size)
    elif kind == "mp3":
        expected = _check_frames(file, size)
    file.seek(0)
    try:
        sound = soundfile.SoundFile(file)
    except soundfile.LibsndfileError:  # its own words speak of pipes and missing files
        raise Skip(f"damaged, or not the {kind} file that its first bytes say") from None
    if sound.format not in FORMATS[kind] or sound.subtype not in SUBTYPES:
        raise Skip(f"holds {sound.subtype} in {sound.format}, which is not read")
    if not MIN_RATE <= sound.samplerate <= MAX_RATE or not 1 <= sound.channels <= MAX_CHANNELS:
        raise Skip(f"{sound.samplerate:,} Hz with {sound.channels} channels is beyond {MIN_RATE:,} to {MAX_RATE:,} Hz and {MAX_CHANNELS} channels")
    if kind in ("wav", "aiff", "flac"):
        expected = sound.frames if sound.frames < 1 << 62 else 0  # a streamed FLAC does not know
    elif sound.subtype == "OPUS":
        expected = expected * sound.samplerate // 48_000
    sound.seekable = lambda: False  # python-soundfile would seek after every block: slower, wrong for MP3, an error for a streamed FLAC
    return sound, expected


def mix(sound: soundfile.SoundFile, expected: int, channels: int, longest: int = MAX_SECONDS) -> Iterator[np.ndarray]:
    """The sound block by block, float32 [n, channels], full scale 1. Raises Skip for what makes the whole file unusable.

    channels: 1 is the mean of the file's; 2 are its two, or its one twice; longest: seconds from which on a file is refused.
    """
    if sound.channels > channels > 1:
        raise Skip(f"has {sound.channels} channels: mix it down to one or two")
    count = 0
    while True:
        try:
            block = sound.read(BLOCK // sound.channels, "float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise Skip(f"damaged after {count / sound.samplerate:.2f} s ({error.error_string.strip() or 'it cannot be decoded further'})") from None
        if not len(block):
            break
        peak = max(block.max(), -block.min())
        if not np.isfinite(peak):
            raise Skip("holds values that are not finite")
        if peak > MAX_PEAK:
            raise Skip(f"reaches more than {MAX_PEAK:g} times full scale")
        count += len(block)
        if count > longest * sound.samplerate:
            raise Skip(f"longer than {longest / 3600:g} h: cut it into several files")
        yield block if sound.channels == channels else block.mean(1, keepdims=True) if channels == 1 else np.repeat(block, channels, 1)
    if count < expected:
        raise Skip(f"cut short or damaged: it says it holds {expected:,} samples, and {count:,} could be decoded")
    if not count:
        raise Skip("holds no samples")
    if count < MIN_SECONDS * sound.samplerate:
        raise Skip(f"shorter than {MIN_SECONDS:g} s")


def resample(blocks: Iterable[np.ndarray], rate: int, target: int, channels: int) -> Iterator[np.ndarray]:
    """Blocks of float32 [n, channels] at another rate, by soxr's HQ filter.

    Aligned with the input; round(n * target / rate) samples in all, halves up.
    """
    if rate == target:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, target, channels, "float32", "HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros((0, channels), np.float32), last=True)


def check(peak: float) -> None:
    """Raises Skip for a whole sound that is silent; peak: of full scale 1."""
    if peak < SILENT:
        raise Skip(f"silent: below {20 * np.log10(SILENT):.0f} dB of full scale")


def read_wave(path: str, flag: str, rate: int | None = None, longest: int = MAX_SECONDS) -> tuple[np.ndarray, int]:
    """One sound file as (mono wave float32 [n], its rate); see `read_sound`."""
    wave, rate, _ = read_sound(path, flag, rate, 1, longest)
    return wave[:, 0], rate


def read_sound(path: str, flag: str, rate: int | None, channels: int, longest: int = MAX_SECONDS) -> tuple[np.ndarray, int, int]:
    """One sound file as (wave float32 [n, channels] of full scale 1, its rate, how many channels the file has), channels mixed as `mix` says; at
    `rate` where one is given. Refuses what `decode` refuses. Raises UserError, one sentence that begins with --flag=path.
    """
    name = f"--{flag}={printable(path)}"
    if not os.path.isfile(path):
        raise UserError(f"{name} is no file.")
    try:
        with open(path, "rb") as file:
            kind = sniff(file.read(HEAD))
            if kind is None:
                raise UserError(f"{name} is not {EXPECTED}.")
            sound, expected = open_sound(file, kind)
            rate = rate or sound.samplerate
            blocks = list(resample(mix(sound, expected, channels, longest), sound.samplerate, rate, channels))
        wave = np.concatenate([np.zeros((0, channels), np.float32), *blocks])
        check(float(np.abs(wave).max()))
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}.") from None
    except Skip as reason:
        raise UserError(f"{name} cannot be used: {reason}.") from None
    return wave, rate, sound.channels


def quantise(block: np.ndarray) -> tuple[np.ndarray, int]:
    """(int16 of the block's shape, how many of its values lay beyond full scale and were limited)."""
    scaled = np.rint(block * 32768)
    return np.clip(scaled, -32768, 32767).astype(np.int16), int(np.count_nonzero(np.abs(scaled) > 32768))


def pieces(blocks: Iterable[np.ndarray], samples: int, limit: int | None, fill: bool, tally: dict) -> Iterator[list[tuple[int, int, np.ndarray]]]:
    """Consecutive pieces (start, valid, int16 [samples, channels]), in a list for each block. The last is short, or with `fill` filled up with
    zeros behind `valid`.

    limit: of pieces, None for all. tally: its `clipped` (values) and `cut` (samples left out beyond the limit) are counted up.
    """
    rest, start = None, 0
    for block in blocks:
        rest = np.zeros((0, block.shape[1]), np.int16) if rest is None else rest
        room = len(block) if limit is None else max(0, limit * samples - start - len(rest))
        values, clipped = quantise(block[:room])
        tally["clipped"] += clipped
        tally["cut"] += len(block) - len(values)
        rest = np.concatenate([rest, values])
        whole = len(rest) // samples
        yield [(start + i * samples, samples, rest[i * samples:(i + 1) * samples]) for i in range(whole)]
        rest, start = rest[whole * samples:], start + whole * samples
    if rest is not None and len(rest):
        yield [(start, len(rest), np.pad(rest, ((0, samples - len(rest)), (0, 0))) if fill else rest)]


def loudest(piece: np.ndarray) -> float:
    """The largest STFT magnitude of an int16 [samples] piece; 1 is a sine at full scale (window of 512, hop of 256, centred, zeros beyond)."""
    padded = np.pad(piece.astype(np.float32) / 32768, 256)
    spectrum = np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, 512)[::256] * WINDOW)
    return float(np.sqrt(np.max(spectrum.real ** 2 + spectrum.imag ** 2)) / (WINDOW.sum() / 2))


def _measure(valid, piece, rate, tally):
    level, width = np.abs(piece[:valid].astype(np.int32)).max(1), max(1, rate // 50)
    starts = np.arange(0, valid, width)
    quiet = np.maximum.reduceat(level, starts) < QUIET * 32768
    tally["silence"] += int(np.minimum(valid - starts, width)[quiet].sum())
    tally["pieces"], tally["samples"], tally["padded"] = tally["pieces"] + 1, tally["samples"] + valid, tally["padded"] + (valid < len(piece))
    tally["peak"], tally["level"] = max(tally["peak"], int(level.max())), max(tally["level"], *map(loudest, piece.T))


def as_wav(values: np.ndarray, rate: int) -> bytes:
    """Samples [time] or [time, channel], 16-bit whole numbers or floats of full scale 1, as the bytes of a WAV file."""
    file = io.BytesIO()
    whole = values.dtype.kind in "iu"
    soundfile.write(file, values.astype(np.int16 if whole else np.float32), rate, "PCM_16" if whole else "FLOAT", format="WAV")
    return file.getvalue()


def fields(samples: int | None, channels: int, labels: dict[str, tuple[str, ...]]) -> dict[str, Field]:
    """The fields of the records of a data set of pieces of this length, None for any; labels: names of each kind of class ('label', 'speaker')."""
    made = {"audio": Field((samples, channels), "int16"), "valid": Field((), "int32"), "start": Field((), "int64"), "source": Field((), "str"),
            "group": Field((), "str")}
    return {**made, **{name: Field((), "int64", names) for name, names in labels.items()}}


def measure(file, told: dict, options: dict) -> Iterator[tuple[dict, list[bytes]]]:
    """pool.decode's generator: {'milliseconds'} of a sound file as its header or its pages count them, undecoded. told: kind. Raises Skip."""
    sound, expected = open_sound(file, told["kind"])
    if not expected:  # an MP3 or a streamed FLAC that does not tell: as if it were one of 128 kbit/s
        expected = file.seek(0, 2) / 16_000 * sound.samplerate
    yield {"milliseconds": round(1000 * expected / sound.samplerate)}, []


def decode(file, told: dict, options: dict) -> Iterator[tuple[dict, list[bytes]]]:
    """pool.decode's generator: a sound file -> its records in parts, and once what is told of it.

    told: name, kind, group, marks (class numbers by field); options: rate (Hz), samples (of a piece), limit (pieces of a file, or None), channels,
    fill (whether the last piece is filled up; else records have any length). Told back, in samples at `rate` where nothing else is said: pieces,
    samples, padded (pieces filled up), silence (of all channels), clipped (values), cut, peak (0..32768), level (see `loudest`), rate (of the
    file). Raises Skip.
    """
    rate, samples, limit, channels, fill = (options[name] for name in ("rate", "samples", "limit", "channels", "fill"))
    declared = fields(samples if fill else None, channels, {name: () for name in told["marks"]})
    tally = {"pieces": 0, "samples": 0, "padded": 0, "silence": 0, "clipped": 0, "cut": 0, "peak": 0, "level": 0.0}

    def run(counts):
        sound, expected = open_sound(file, told["kind"])
        counts["rate"] = sound.samplerate
        return pieces(resample(mix(sound, expected, channels), sound.samplerate, rate, channels), samples, limit, fill, counts)

    held, sign = [], time.monotonic()
    for batch in run(tally):
        for _, valid, piece in batch:
            _measure(valid, piece, rate, tally)
        if held is not None:
            held = held + batch if tally["pieces"] * samples * channels * 2 <= HELD_BYTES else None
        if time.monotonic() > sign + 1:
            sign = time.monotonic()
            yield {}, []
    check(tally["peak"] / 32768)
    yield tally, []
    part, size = [], 0
    for batch in [held] if held is not None else run({**tally}):
        for start, valid, piece in batch:
            record = {"audio": piece, "valid": valid, "start": start, "source": told["name"], "group": told["group"], **told["marks"]}
            part.append(encode(declared, record))
            size += len(part[-1])
            if size > PART_BYTES:
                yield {}, part
                part, size = [], 0
    yield {}, part
