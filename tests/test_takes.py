"""A long take and its prompts to clips: where it is cut, how loud it becomes, and what is said when it does not fit."""

import io
import os
import zipfile

import numpy as np
import pytest
import soundfile

from data_prep import speech, takes
from vae_jax import records
from vae_jax.config import UserError

RATE = 16000


def run(**values):
    takes.FLAGS.unparse_flags()
    takes.FLAGS(["takes", *(f"--{name}={value}" for name, value in values.items())])
    takes.main()


def burst(seconds, amplitude, hertz=300.0, rate=RATE):
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def make_take(said, noise=1e-3, pause=0.8, rate=RATE, seed=0):
    """Waves with noise between, before and behind -> (take, seconds at which each begins and ends)."""
    parts, where, at = [np.zeros(int(pause * rate))], [], int(pause * rate)
    for x in said:
        where.append((at / rate, (at + len(x)) / rate))
        parts += [x, np.zeros(int(pause * rate))]
        at += len(parts[-2]) + len(parts[-1])
    take = np.concatenate(parts)
    return take + noise * np.random.default_rng(seed).standard_normal(len(take)), where


@pytest.fixture
def folder(tmp_path):
    """A take of five bursts, two of them with a short pause inside, with clicks between, and its prompts."""
    parted = np.concatenate([burst(0.1, 0.1), np.zeros(RATE // 5), burst(0.1, 0.05)])
    said = [burst(0.3, 0.2), parted, burst(0.5, 0.02, 2000), burst(0.2, 0.3), burst(0.07, 0.1)]
    take, where = make_take(said)
    for second in (0.4, where[3][1] + 0.45):
        take[int(second * RATE):int(second * RATE) + 80] += 0.3  # clicks of 5 ms
    soundfile.write(tmp_path / "take.wav", take + 0.1, RATE, "PCM_24")  # with a constant offset
    (tmp_path / "prompts.txt").write_text("7 seven\nyes\n\n7\tthe number seven\nno\n0\n")
    return tmp_path, take + 0.1, where


def flags(path, **values):
    return {"take": path / "take.wav", "prompts": path / "prompts.txt", "speaker": "moni", "out": path / "out", **values}


def test_clips_are_cut_named_and_scaled(folder, capsys):
    path, take, where = folder
    run(**flags(path))
    assert sorted(os.listdir(path / "out")) == ["0_moni_0.wav", "7_moni_0.wav", "7_moni_1.wav", "clips.tsv", "no_moni_0.wav", "yes_moni_0.wav"]
    rows = [line.split("\t") for line in (path / "out" / "clips.tsv").read_text().splitlines()]
    assert rows[0] == ["file", "label", "words", "start", "end"] and [r[2] for r in rows[1:]] == ["seven", "", "the number seven", "", ""]
    peaks, gains = [], []
    for (name, label, _, start, end), (first, last) in zip(rows[1:], where, strict=True):
        x, rate = soundfile.read(path / "out" / name)
        begin = round(float(start) * RATE)
        assert rate == RATE and name.split("_")[0] == label and abs(len(x) - (float(end) - float(start)) * RATE) <= 1
        assert 0.02 <= first - float(start) <= 0.08 and 0.02 <= float(end) - last <= 0.08  # a margin of 50 ms, in steps of 10
        part = take[begin:begin + len(x)]
        gains.append(np.dot(x, part) / np.dot(part, part))
        assert np.abs(x - gains[-1] * part).max() < 1e-4
        peaks.append(np.abs(x).max())
    assert max(peaks) == pytest.approx(0.99, abs=1e-4) and np.ptp(gains) < 1e-3 * gains[0]  # one gain for all
    assert "5 clips of" in capsys.readouterr().out


def test_clips_are_a_speech_source(folder):
    path = folder[0]
    run(**flags(path))
    speech.FLAGS.unparse_flags()
    speech.FLAGS(["speech", f"--source={path / 'out'}", f"--out={path / 'set'}", "--rate=8000", "--seconds=1", "--workers=1"])
    speech.main()
    spec = records.open_folder(path / "set")
    got = records.open_split(path / "set", "test").read_all()
    assert spec.fields["label"].labels == ("0", "7", "no", "yes") and spec.fields["speaker"].labels == ("moni",)
    assert got["source"] == ["0_moni_0.wav", "7_moni_0.wav", "7_moni_1.wav", "no_moni_0.wav", "yes_moni_0.wav"]


def test_loud_takes_are_brought_down(tmp_path, capsys):
    take, _ = make_take([burst(0.3, 1.7), burst(0.3, 0.9)])
    soundfile.write(tmp_path / "take.wav", np.stack([take, take], 1), RATE, "FLOAT")
    (tmp_path / "prompts.txt").write_text("1\n2\n")
    run(**flags(tmp_path))
    x, y = (soundfile.read(tmp_path / "out" / f"{i}_moni_0.wav")[0] for i in (1, 2))
    assert np.abs(x).max() == pytest.approx(0.99, abs=1e-4) and np.abs(y).max() == pytest.approx(0.99 * 0.9 / 1.7, abs=3e-3)
    assert "samples of the take are at full scale: it was recorded too loud" in capsys.readouterr().out


@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-2])
def test_the_threshold_follows_the_noise(tmp_path, noise):
    take, where = make_take([burst(0.3, 0.3)] * 6, noise)
    found, floor = takes.utterances(takes.levels(take, RATE), 15.0, 0.4)
    assert len(found) == 6 and all(abs(f * 0.01 - w[0]) < 0.03 and abs(last * 0.01 - w[1]) < 0.03 for (f, last), w in zip(found, where))
    assert abs(floor - max(20 * np.log10(max(noise, 1e-9)), takes.FLOOR)) < 1


def test_what_does_not_fit_is_one_sentence(folder):
    path = folder[0]
    (path / "four.txt").write_text("1\n2\n3\n4\n")
    at = r"at 0\.79-1\.11, 1\.89-2\.31, 3\.09-3\.61, 4\.39-4\.61, 5\.39-5\.48 s"
    soundfile.write(path / "silent.wav", np.zeros(RATE * 3), RATE)
    soundfile.write(path / "noise.wav", 0.1 * np.random.default_rng(0).standard_normal(RATE * 3), RATE)
    soundfile.write(path / "void.wav", np.zeros(0), RATE)
    soundfile.write(path / "short.wav", burst(0.005, 0.5), RATE)
    soundfile.write(path / "frame.wav", burst(0.012, 0.5), RATE)
    (path / "text.wav").write_text("hello")
    (path / "cut.wav").write_bytes((path / "take.wav").read_bytes()[:9000])
    for name, text in (("bad.txt", "one\ntwo_b\n"), ("up.txt", "../x\n"), ("void.txt", "\n \n")):
        (path / name).write_text(text)
    (path / "latin.txt").write_bytes(b"\xff\xfe\xff")
    (path / "full").mkdir()
    (path / "full" / "x").touch()
    cases = [({"prompts": path / "four.txt"}, rf"holds 5 utterances \({at}\) .* the list has 4 prompts"),
             ({"gap": 1.0}, "holds 1 utterances .*5 prompts"),
             ({"take": path / "silent.wav"}, r"silent.wav cannot be used: silent: below -80 dB of full scale\.$"),
             ({"take": path / "void.wav"}, r"void.wav cannot be used: holds no samples\.$"),
             ({"take": path / "short.wav"}, r"short.wav cannot be used: shorter than 0.01 s\.$"),
             ({"take": path / "frame.wav"}, "holds 0 utterances more than 15 dB above its noise floor of -80 dB"),
             ({"take": path / "noise.wav"}, r"holds 0 utterances more than 15 dB above its noise floor of -2\d dB"),
             ({"take": path / "text.wav"}, "is not a WAV"), ({"take": path / "cut.wav"}, "cut short"), ({"take": path / "none.wav"}, "is no file"),
             ({"prompts": path / "bad.txt"}, "line 2: the label 'two_b'"), ({"prompts": path / "up.txt"}, "line 1: the label '../x'"),
             ({"prompts": path / "void.txt"}, "holds no prompts"), ({"prompts": path / "latin.txt"}, "not a readable UTF-8"),
             ({"prompts": path / "none.txt"}, "not a readable UTF-8 text .No such file"), ({"speaker": "a/b"}, "--speaker=a/b"),
             ({"out": path / "full"}, "exists and is not an empty folder")]
    before = sorted(os.listdir(path))
    for values, says in cases:
        with pytest.raises(UserError, match=says) as caught:
            run(**flags(path, **values))
        assert "\n" not in str(caught.value) and sorted(os.listdir(path)) == before


def test_a_take_of_more_than_the_limit_is_refused(folder, monkeypatch):
    path = folder[0]
    monkeypatch.setattr(takes, "MAX_SECONDS", 3)
    with pytest.raises(UserError, match="--take=.*take.wav cannot be used: longer than .* h: cut it into several files"):
        run(**flags(path))
    assert not (path / "out").exists()


def test_real_digits(data_dir, tmp_path):
    """Thirty recordings of a speaker one after another, with room noise between them, come back as thirty clips."""
    with zipfile.ZipFile(data_dir / "fsdd" / "recordings.zip") as archive:
        order = [f"{d}_jackson_{i}.wav" for i in range(3) for d in np.random.default_rng(i).permutation(10)]
        said = [soundfile.read(io.BytesIO(archive.read(name)))[0] for name in order]
    take, where = make_take(said, noise=2e-3, rate=8000)
    soundfile.write(tmp_path / "take.wav", take, 8000)
    (tmp_path / "prompts.txt").write_text("".join(f"{name[0]}\n" for name in order))
    run(**flags(tmp_path, speaker="jackson"))
    rows = [line.split("\t") for line in (tmp_path / "out" / "clips.tsv").read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == order
    for x, row, (first, last) in zip(said, rows, where):
        start, end = float(row[3]), float(row[4])
        heard = np.zeros(len(take))
        heard[int(first * 8000):int(first * 8000) + len(x)] = x
        assert np.sum(heard[int(start * 8000):int(end * 8000)] ** 2) > 0.99 * np.sum(x ** 2)  # nothing that can be heard is cut off
        assert start > first - 0.1 and end < last + 0.1
