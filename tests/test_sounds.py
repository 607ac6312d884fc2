"""Sound files to pieces: formats, resampling, cutting, levels, and input made to break them."""

import io
import math
import re
import struct

import numpy as np
import pytest
import soundfile
import soxr
from scipy import signal

from data_prep import pool, sounds
from vae_jax import records, tfexample
from vae_jax.config import UserError

TOLD = {"name": "x", "group": "g", "marks": {"label": 3}}
COMPRESSED = {"OGG/VORBIS": 0.02, "OGG/OPUS": 0.05, "MP3/MPEG_LAYER_III": 0.05}  # what the codecs may change of a tone of 0.5


def tone(seconds, rate, hertz=440.0, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def write(x, rate, form="WAV", subtype="PCM_16"):
    data = io.BytesIO()
    soundfile.write(data, x, rate, format=form, subtype=subtype)
    return data.getvalue()


def decode(data, rate=8000, samples=8000, limit=None, channels=1, fill=True):
    """A file through the decoder -> (what is told of it, its records), `audio` flat where there is one channel."""
    told = {**TOLD, "kind": sounds.sniff(data[:512])}
    parts = list(sounds.decode(io.BytesIO(data), told, {"rate": rate, "samples": samples, "limit": limit, "channels": channels, "fill": fill}))
    about = next(about for about, _ in parts if about)
    blobs = [blob for _, part in parts for blob in part]
    kinds = {name: records.kind(field) for name, field in sounds.fields(samples if fill else None, channels, {"label": ()}).items()}
    made = []
    for blob in blobs:
        values = tfexample.parse(np.frombuffer(blob, np.uint8), np.array([0]), np.array([len(blob)]), kinds)
        made.append({name: blob[v[0][0]:v[1][0]] if kinds[name] == "bytes" else int(v[0]) for name, v in values.items()})
        made[-1]["audio"] = np.frombuffer(made[-1]["audio"], "<i2").reshape((-1,) if channels == 1 else (-1, channels))
    return about, made


def wave(data, rate, samples=1000):
    """The whole sound of a file, float64, put together from its pieces."""
    _, made = decode(data, rate, samples)
    assert [r["start"] for r in made] == [i * samples for i in range(len(made))] and all(len(r["audio"]) == samples for r in made)
    assert all(r["valid"] == samples for r in made[:-1]) and not made[-1]["audio"][made[-1]["valid"]:].any()
    return np.concatenate([r["audio"][:r["valid"]] for r in made]) / 32768


# Formats


@pytest.mark.parametrize("subtype, bits", [("PCM_U8", 8), ("PCM_16", 16), ("PCM_24", 16), ("PCM_32", 16), ("FLOAT", 16), ("DOUBLE", 16), ("ULAW", 6)])
def test_wav_of_every_depth(subtype, bits):
    x = tone(0.5, 8000)
    for form in ("WAV", "AIFF", "RF64") if subtype not in ("PCM_U8", "ULAW") else ("WAV",):
        got = wave(write(x, 8000, form, subtype), 8000)
        assert len(got) == len(x) and np.abs(got - x).max() < 1.01 / 2 ** (bits - 1)


def test_16_bits_at_their_own_rate_are_kept_exactly():
    x = np.random.default_rng(0).integers(-32768, 32768, 20_000).astype(np.int16)
    for form in ("WAV", "FLAC", "AIFF"):
        assert np.array_equal(wave(write(x, 8000, form), 8000) * 32768, x)
    both = np.stack([x, -x // 2], 1)
    assert np.abs(wave(write(both, 8000), 8000) - both.mean(1) / 32768).max() <= 0.5 / 32768
    assert np.array_equal(wave(write(np.stack([x] * 3, 1), 8000), 8000) * 32768, x)


@pytest.mark.parametrize("form", COMPRESSED)
def test_lossy_formats(form):
    x = tone(1.5, 16000)
    got = wave(write(x, 16000, *form.split("/")), 16000)
    assert len(got) == len(x) and np.abs(got - x)[800:-800].max() < COMPRESSED[form]


@pytest.mark.parametrize("form", ["FLAC/PCM_16", *COMPRESSED])
def test_blocks_are_the_same_as_the_whole_file(form):
    """python-soundfile seeks after every read, which spoils MP3."""
    x = tone(20, 16000) + 0.1 * np.random.default_rng(0).standard_normal(320_000)
    data = write(x, 16000, *form.split("/"))
    expected = soundfile.read(io.BytesIO(data))[0]
    assert np.abs(wave(data, 16000) - np.clip(expected, -1, 32767 / 32768)).max() <= 0.51 / 32768


def test_sniffing():
    x = tone(0.1, 8000)
    assert [sounds.sniff(write(x, 8000, *f.split("/"))) for f in ("WAV/PCM_16", "RF64/PCM_16", "AIFF/PCM_16", "FLAC/PCM_16", *COMPRESSED)] \
        == ["wav", "wav", "aiff", "flac", "ogg", "ogg", "mp3"]
    assert sounds.sniff(b"ID3\x03\0\0\0\0\0\0") == "mp3"
    for head in (b"", b"text", b"\xff\xfe\0x", b"\xff\xd8\xff\xe0", b"RIFF....AVI ", b"RIFF....WEBP", b".snd", b"\xff\xff\xff\xff"):
        assert sounds.sniff(head) is None


def test_mp3_behind_a_tag():
    data = write(tone(1, 16000), 16000, "MP3", "MPEG_LAYER_III")
    assert np.array_equal(wave(b"ID3\x03\0\0\0\0\7\0" + bytes(7 * 128) + data, 16000), wave(data, 16000))


def test_a_streamed_flac_does_not_know_its_length():
    data = bytearray(write(tone(1, 16000), 16000, "FLAC"))
    whole = wave(bytes(data), 16000)
    data[21:26] = bytes([data[21] & 0xF0]) + bytes(4)
    assert np.array_equal(wave(bytes(data), 16000), whole)


def test_a_streamed_wav_does_not_know_its_length():
    data = write(tone(1, 16000), 16000)
    at = data.index(b"data") + 4
    for length in (0xFFFFFFFF, 0x7FFFF000):
        assert np.array_equal(wave(data[:at] + struct.pack("<I", length) + data[at + 4:], 16000), wave(data, 16000))


# Rate


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000, 192000])
def test_rates(rate):
    """A tone keeps its pitch, place and size, and the count is soxr's: round(n * target / rate), halves up."""
    n, target = rate + 77, 16000
    got = wave(write(tone(2, rate)[:n], rate, subtype="FLOAT"), target)
    assert len(got) == math.floor(n * target / rate + 0.5)
    assert np.abs(got - tone(2, target)[:len(got)])[300:-300].max() < 1e-4


def test_in_blocks_as_in_one():
    x = np.random.default_rng(1).standard_normal((300_001, 2)).astype(np.float32) * 0.1
    for rate, target, channels in ((44100, 22050, 1), (8000, 22050, 2), (48000, 44100, 2)):
        got = np.concatenate(list(sounds.resample((x[i:i + 777, :channels] for i in range(0, len(x), 777)), rate, target, channels)))
        assert np.array_equal(got, soxr.resample(x[:, :channels], rate, target, "HQ"))


def test_a_piece_begins_where_it_says():
    """Clicks at the first sample of every piece stay there: the filter's delay is made good."""
    x = np.zeros(44100 * 5)
    x[::44100] = 0.9
    _, made = decode(write(x, 44100), 22050, 22050)
    assert len(made) == 5
    for record in made[1:]:
        level = np.abs(record["audio"].astype(int))
        assert level.argmax() == 0 and level[1:-20].max() < 0.7 * level[0]


def test_no_aliases():
    """Row C2: 9 kHz survives 44.1 -> 22.05 kHz; 13 kHz would come back at 9.05 kHz, and is below -60 dB instead."""
    kept, gone = (wave(write(tone(2, 44100, hertz), 44100), 22050)[2000:-2000] for hertz in (9000, 13000))
    assert abs(np.sqrt(2 * np.mean(kept ** 2)) - 0.5) < 0.005
    assert np.abs(gone).max() < 0.5e-3


@pytest.mark.parametrize("form", ["WAV/PCM_16", "AIFF/PCM_16", "FLAC/PCM_16", *COMPRESSED])
def test_length_without_decoding(form):
    data = write(np.stack([tone(3.21, 16000)] * 2, 1), 16000, *form.split("/"))
    (told, _), = sounds.measure(io.BytesIO(data), {"kind": sounds.sniff(data[:512])}, {})
    assert abs(told["milliseconds"] - 3210) <= (250 if form.startswith("MP3") else 1)  # an MP3 counts frames, of which encoders add some
    if form.startswith("FLAC"):
        streamed = data[:21] + bytes([data[21] & 0xF0]) + bytes(4) + data[26:]
        (told, _), = sounds.measure(io.BytesIO(streamed), {"kind": "flac"}, {})
        assert told["milliseconds"] == round(len(data) / 16)


# Pieces


def test_pieces_and_limit():
    x = np.random.default_rng(2).integers(-3000, 3000, 25_001).astype(np.int16)
    about, made = decode(write(x, 8000), samples=4000)
    assert len(made) == 7 and made[-1]["valid"] == 1001 and made[0]["label"] == 3 and made[0]["source"] == b"x" and made[0]["group"] == b"g"
    assert np.array_equal(np.concatenate([r["audio"] for r in made])[:25_001], x) and about["padded"] == 1 and about["cut"] == 0
    about, made = decode(write(x, 8000), samples=10_000, limit=1)
    assert len(made) == 1 and np.array_equal(made[0]["audio"], x[:10_000])
    assert (about["cut"], about["padded"], about["samples"]) == (15_001, 0, 10_000)
    about, made = decode(write(x, 8000), samples=30_000, limit=1)
    assert made[0]["valid"] == 25_001 and not made[0]["audio"][25_001:].any() and about["padded"] == 1


def test_two_channels():
    """Kept, doubled from one, refused from three; each resampled as it would be alone."""
    x = np.random.default_rng(5).integers(-9000, 9000, (25_001, 2)).astype(np.int16)
    about, made = decode(write(x, 8000), samples=4000, channels=2, fill=False)
    assert np.array_equal(np.concatenate([r["audio"] for r in made]), x) and about["padded"] == 0 and about["samples"] == 25_001
    assert [len(r["audio"]) for r in made] == [r["valid"] for r in made] == [4000] * 6 + [1001]
    _, made = decode(write(x[:, 0], 8000), channels=2, fill=False)
    assert np.array_equal(np.concatenate([r["audio"] for r in made]), x[:, [0, 0]])
    both, alone = (decode(write(v, 8000), 11025, channels=c, fill=False)[1] for v, c in ((x, 2), (x[:, 1], 1)))
    assert all(np.array_equal(a["audio"][:, 1], b["audio"]) for a, b in zip(both, alone, strict=True))
    with pytest.raises(pool.Skip, match="has 3 channels"):
        decode(write(np.stack([x[:, 0]] * 3, 1), 8000), channels=2)


def test_two_channels_are_silent_where_both_are():
    """The second half has one silent channel; peak, level and clipping are of the louder one, and clipped values count in each."""
    x = np.zeros((16_000, 2))
    x[8000:, 1] = tone(1, 8000, 1000.0)
    x[9000:9003] = [[1.5, 2.0]]
    about, _ = decode(write(x, 8000, subtype="FLOAT"), channels=2, fill=False)
    assert abs(about["silence"] - 8000) <= 160 and (about["clipped"], about["peak"], about["samples"]) == (6, 32767, 16_000)
    x[9000:9003] = 0
    assert abs(decode(write(x, 8000), channels=2, fill=False)[0]["level"] - 0.5) < 0.01


def test_a_file_too_long_to_hold_is_decoded_twice(monkeypatch):
    data = write(0.3 * np.random.default_rng(3).standard_normal(400_000), 16000, "OGG", "VORBIS")
    held = decode(data, 22050, 5000)
    monkeypatch.setattr(sounds, "HELD_BYTES", 100_000)
    monkeypatch.setattr(sounds, "PART_BYTES", 50_000)
    again = decode(data, 22050, 5000)
    assert held[0] == again[0] and len(held[1]) == 111
    assert all(np.array_equal(a["audio"], b["audio"]) and a["start"] == b["start"] for a, b in zip(held[1], again[1], strict=True))


def test_what_is_told():
    x = np.concatenate([np.zeros(4000), tone(1, 8000, amplitude=0.25), np.zeros(4000)])
    x[5000:5003] = [1.5, -2.0, 1.1]
    about, made = decode(write(x, 8000, subtype="FLOAT"))
    assert (about["clipped"], about["peak"], about["rate"], about["samples"], about["pieces"]) == (3, 32768, 8000, 16_000, 2)
    assert abs(about["silence"] - 8000) <= 160  # 20 ms more or less
    assert made[0]["audio"][5000:5003].tolist() == [32767, -32768, 32767]


def test_level_is_an_stft_in_which_a_full_sine_is_one():
    rng = np.random.default_rng(4)
    full = np.rint(32767 * np.sin(2 * np.pi * 32 / 512 * np.arange(8000))).astype(np.int16)
    assert abs(sounds.loudest(full) - 1) < 1e-3
    for n in (8000, 1001, 100):
        x = rng.integers(-20_000, 20_000, n).astype(np.int16)
        framed = np.pad(x / 32768, (256, 256 + 512))
        _, _, spectrum = signal.stft(framed, window=signal.get_window("hann", 512), nperseg=512, noverlap=256, boundary=None, padded=False)
        # scipy divides by the sum of the window; a sine's peak is half its amplitude
        assert abs(sounds.loudest(x) - 2 * np.abs(spectrum[:, :1 + n // 256]).max()) < 1e-5


# Bad input


def bad_files():
    """name -> (bytes, what the reason says)."""
    x = tone(2, 16000) + 0.01 * np.random.default_rng(0).standard_normal(32_000)
    whole = {name: write(x, 16000, *name.split("/")) for name in ("WAV/PCM_16", "AIFF/PCM_16", "FLAC/PCM_16", *COMPRESSED)}
    wav, flac, ogg = whole["WAV/PCM_16"], whole["FLAC/PCM_16"], whole["OGG/VORBIS"]
    at = wav.index(b"data") + 4
    lie = {n: wav[:at] + struct.pack("<I", n) + wav[at + 4:] for n in (1_000_000, 100, 0)}
    bad = {f"{name}, cut at {share}": (data[:int(len(data) * share)], "cut|damaged|no samples")
           for name, data in whole.items() for share in (0.3, 0.6, 0.9, 0.99)}
    long = bytearray(flac)
    long[21:26] = bytes([long[21] | 0x0F]) + b"\xff" * 4
    flipped, page = bytearray(flac), bytearray(ogg)
    flipped[len(flac) // 2] ^= 16
    page[len(ogg) // 2] ^= 16

    def values(v):
        y = x.copy()
        y[777] = v
        return write(y, 16000, subtype="FLOAT")

    return {**bad, "a length beyond the file": (lie[1_000_000], "cut short: its header says 1,000,000 bytes of samples, and 64,000 are there"),
            "a length of 100": (lie[100], "header does not say what the last 63,900"), "a length of 0": (lie[0], "header does not say"),
            "a FLAC of 50 days": (bytes(long), "says it holds 68,719,476,735 samples, and 32,000"), "a flipped FLAC": (bytes(flipped), "damaged"),
            "a flipped Ogg page": (bytes(page), "cut short or damaged"), "two Ogg files in one": (ogg + ogg, "several Ogg streams"),
            "Ogg with a gap": (ogg[:3000] + bytes(100) + ogg[3000:], "damaged|cut"),
            "NaN": (values(np.nan), "not finite"), "infinity": (values(-np.inf), "not finite"), "1e30": (values(1e30), "4 times full scale"),
            "silence": (write(np.zeros(8000), 8000), "silent: below -80 dB"), "a whisper": (write(3e-5 * x, 16000, subtype="FLOAT"), "silent"),
            "no samples": (write(np.zeros(0), 8000), "no samples"), "one sample": (write(np.ones(1), 8000), "shorter than 0.01 s"),
            "one of 48 kHz": (write(np.ones(1), 48000), "shorter than 0.01 s"),
            "9 ms": (write(x[:144], 16000), "shorter than 0.01 s"), "no data chunk": (wav[:at - 4], "no samples"),
            "ADPCM": (write(x, 16000, "WAV", "MS_ADPCM"), "MS_ADPCM in WAV"), "1 Hz": (write(x, 1), "1 Hz with 1 channels is beyond"),
            "100 channels": (write(np.zeros((100, 100)), 8000), "100 channels"),
            "a tag and text": (b"ID3\3\0\0\0\0\0\0" + b"text" * 99, "not the mp3 file"),
            "a tagged WAV": (b"ID3\3\0\0\0\0\0\0" + wav, "not the mp3 file"), "a sync word": (b"\xff\xfb\x90" + b"text" * 999, "not the mp3 file"),
            "RIFF alone": (wav[:12], "no samples"), "an Ogg head": (ogg[:20], "damaged|cut")}


@pytest.mark.parametrize("name", bad_files())
def test_bad_sound_is_a_skip_with_its_reason(name):
    data, says = bad_files()[name]
    with pytest.raises(pool.Skip) as caught:
        decode(data, 16000)
    assert re.search(says, str(caught.value)) and "0x" not in str(caught.value), caught.value


def test_a_file_as_one_wave_is_refused_in_the_same_words(tmp_path):
    for i, (data, says) in enumerate(bad_files().values()):
        path = tmp_path / f"{i}.wav"
        path.write_bytes(data)
        with pytest.raises(UserError) as caught:
            sounds.read_wave(str(path), "wav", 16000)
        assert re.fullmatch(rf"--wav={re.escape(str(path))} cannot be used: .*({says}).*\.", str(caught.value)), caught.value
    (tmp_path / "text.wav").write_text("hello")
    for name, says in (("text.wav", "is not a WAV, AIFF, FLAC, Ogg or MP3 file"), ("none.wav", "is no file"), ("", "is no file")):
        with pytest.raises(UserError, match=rf"^--take={re.escape(str(tmp_path / name))} {says}\.$"):
            sounds.read_wave(str(tmp_path / name), "take")


@pytest.mark.parametrize("form", ["WAV/PCM_16", "FLAC/PCM_16", *COMPRESSED])
def test_a_file_as_one_wave_is_what_its_records_hold(tmp_path, form):
    data = write(np.stack([tone(1.3, 16000), tone(1.3, 16000, 900.0, 0.2)], 1), 16000, *form.split("/"))
    (tmp_path / "x").write_bytes(data)
    for rate in (16000, 22050):
        got, at = sounds.read_wave(str(tmp_path / "x"), "wav", rate)
        assert at == rate and got.dtype == np.float32
        assert np.abs(got - wave(data, rate)).max() <= 0.51 / 32768
    assert sounds.read_wave(str(tmp_path / "x"), "wav")[1] == 16000


def test_mutated_sounds_raise_nothing_but_exceptions():
    rng, forms = np.random.default_rng(0), ("WAV/PCM_16", "AIFF/PCM_16", "FLAC/PCM_16", *COMPRESSED)
    seeds = [write(tone(0.3, 16000), 16000, *form.split("/")) for form in forms]
    kept = refused = 0
    for i in range(600):
        data = bytearray(seeds[i % len(seeds)])
        for _ in range(3):
            data[rng.integers(len(data) if i % 2 else 64)] = rng.integers(256)
        if sounds.sniff(bytes(data[:512])):
            try:
                kept += len(decode(bytes(data), 16000)[1]) > 0
            except Exception:  # whatever a decoder raises is a skip; a crash would end this process
                refused += 1
    assert kept > 100 and refused > 100
