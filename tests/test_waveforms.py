"""Recordings to waveforms of any length: nothing lost or filled up, channels, splits, VCTK's folders, what is left out, and real recordings."""

import json
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import soundfile
import soxr

from data_prep import waveforms
from vae_jax import records
from vae_jax.config import UserError

ROOT = pathlib.Path(records.__file__).parents[1]


def prepare(out, source, **values):
    waveforms.FLAGS.unparse_flags()
    waveforms.FLAGS(["waveforms", f"--source={source}", f"--out={out}", "--workers=2", *(f"--{name}={value}" for name, value in values.items())])
    waveforms.main()
    spec = records.open_folder(out)
    return spec, {split: records.open_split(out, split).read_all() for split in spec.splits}, json.loads((out / "manifest.json").read_text())


def noise(seed, seconds, channels=1, rate=8000):
    """int16 [n, channels]."""
    return np.random.default_rng(seed).integers(-9000, 9000, (int(seconds * rate), channels)).astype(np.int16)


def write(path, x, rate=8000, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, x, rate, **options)


def recordings(read):
    """{source: (split, int16 [n, channels])}, the records of each put together; a recording in two splits is an error."""
    found = {}
    for split, got in read.items():
        for name in sorted(set(got["source"])):
            rows = [i for i, source in enumerate(got["source"]) if source == name]
            parts = [got["audio"][i] for i in rows]
            assert name not in found and [len(part) for part in parts] == got["valid"][rows].tolist()
            assert got["start"][rows].tolist() == np.cumsum([0, *map(len, parts)])[:-1].tolist()
            found[name] = split, np.concatenate(parts)
    return found


@pytest.fixture
def tree(tmp_path):
    """Twenty recordings of 0.02 to 2.4 s in two folders, some deeper, in several formats, rates and channel counts."""
    for i in range(20):
        form, rate, channels = ("wav", "flac", "aiff")[i % 3], (8000, 11025, 44100)[i % 3], 1 + i % 2
        write(tmp_path / "in" / ("a", "b/deep")[i // 10] / f"{i:02d}.{form}", noise(i, 0.02 + 0.125 * i, channels, rate), rate)
    return tmp_path / "in"


@pytest.mark.parametrize("channels", [1, 2])
def test_every_sample_of_every_recording(tree, tmp_path, channels, capsys):
    """Records of at most half a second, none filled up, together what soxr makes of the file."""
    spec, read, manifest = prepare(tmp_path / "out", tree, rate=8000, channels=channels, seconds=0.5)
    assert spec.fields["audio"] == records.Field((None, channels), "int16") and spec.fields["label"].labels == ("a", "b")
    assert spec.facts["rate"] == 8000 and spec.facts["channels"] == channels
    assert (manifest["found"], manifest["kept"], manifest["sound"]["records_filled_up"]) == (20, 20, 0)
    assert all(0 < len(audio) <= 4000 for got in read.values() for audio in got["audio"])
    found = recordings(read)
    for path in tree.rglob("*.*"):
        x, rate = soundfile.read(path, dtype="float32", always_2d=True)
        x = x.mean(1, keepdims=True) if channels == 1 else x if x.shape[1] == 2 else np.repeat(x, 2, 1)
        expected = soxr.resample(x, rate, 8000, "HQ") if rate != 8000 else x
        got = found[str(path.relative_to(tree))][1]
        assert got.shape == expected.shape and np.abs(got / 32768 - np.clip(expected, -1, 1)).max() <= 0.51 / 32768
    for got in read.values():
        assert all(label == name.startswith("b/") for label, name in zip(got["label"], got["source"])) and got["group"] == got["source"]
    hours = {name: sum(of[name] for of in manifest["sound"]["hours"].values()) for name in ("all", "label a", "label b")}
    seconds = sum(len(x) for _, x in found.values()) / 8000
    assert hours["all"] == pytest.approx(seconds / 3600, abs=3e-5) and hours["label a"] + hours["label b"] == pytest.approx(hours["all"], abs=3e-5)
    assert manifest["sound"]["file_rates"] == {"8000": 7, "11025": 7, "44100": 6}
    assert manifest["sound"]["peak"] == max(np.abs(x.astype(int)).max() for _, x in found.values()) / 32768
    said = capsys.readouterr().out
    assert "any length up to 4000 samples" in said and "label a 0.00" in said and "silence 0.0 %" in said and ", 0 values clipped, peak 0." in said


def test_nine_tenths_of_the_sound_are_for_training(tree, tmp_path):
    """By recording and by default, in each class; other shares and seeds; the same bytes again, and from an archive."""
    _, read, manifest = prepare(tmp_path / "a" / "out", tree, rate=8000)
    hours = manifest["sound"]["hours"]
    assert sorted(read) == ["test", "train"] and 0.08 < hours["test"]["all"] / (hours["test"]["all"] + hours["train"]["all"]) < 0.15
    assert all(set(got["label"]) == {0, 1} for got in read.values()) and len(recordings(read)) == 20
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for path in sorted(tree.rglob("*.*")):
            archive.add(path, path.relative_to(tree))
    again = [prepare(tmp_path / name / "out", source, rate=8000, workers=workers)
             for name, source, workers in (("b", tree, 1), ("c", tmp_path / "set.tar", 2))]
    files = [{p.name: p.read_bytes() for p in (tmp_path / name / "out").iterdir() if not p.name.startswith("manifest")} for name in "abc"]
    assert files[0] == files[1] == files[2] and again[0][2] == manifest
    _, other, _ = prepare(tmp_path / "d", tree, rate=8000, split="train:0.8,validation:0.1,test:0.1")
    assert sorted(other) == ["test", "train", "validation"] and len(recordings(other)) == 20


def test_shares_are_of_time_and_not_of_files_or_bytes(tmp_path):
    """Three quiet minutes of Ogg, nine files of fourteen, take fewer bytes than one WAV of four seconds."""
    for i in range(9):
        write(tmp_path / "in" / f"long{i}.ogg", np.sin(np.arange(8000 * 20) / 9) / 99, format="OGG", subtype="VORBIS")
    for i in range(5):
        write(tmp_path / "in" / f"short{i}.wav", noise(i, 4, 2, 48_000), 48_000)
    assert max(path.stat().st_size for path in (tmp_path / "in").glob("*.ogg")) < 0.1 * (tmp_path / "in" / "short0.wav").stat().st_size
    _, _, manifest = prepare(tmp_path / "out", tmp_path / "in", rate=8000, seconds=5)
    hours = manifest["sound"]["hours"]
    assert hours["test"]["all"] == pytest.approx(20 / 3600, abs=1e-5) and hours["train"]["all"] == pytest.approx(180 / 3600, abs=1e-5)


def test_folders_that_are_no_classes(tree, tmp_path):
    """A file beside them, or one folder alone, leaves no classes; folders of one recording are classes, but divided all together."""
    write(tree / "beside.wav", noise(50, 1))
    spec, read, _ = prepare(tmp_path / "beside", tree, rate=8000)
    assert "label" not in spec.fields and len(recordings(read)) == 21
    spec, read, _ = prepare(tmp_path / "alone", tree / "b", rate=8000)
    assert "label" not in spec.fields and len(recordings(read)) == 10
    for i in range(8):
        write(tmp_path / "sessions" / f"{i}" / "take.wav", noise(i, 1))
    spec, read, _ = prepare(tmp_path / "each", tmp_path / "sessions", rate=8000)
    assert spec.fields["label"].labels == tuple("01234567") and {split: len(got["source"]) for split, got in read.items()} == {"train": 7, "test": 1}


def test_recordings_of_one_group_stay_together(tree, tmp_path):
    _, read, manifest = prepare(tmp_path / "out", tree, rate=8000, group=r"(\d)\.\w+$")
    assert sum(manifest["groups"].values()) == 10 and not set(read["train"]["group"]) & set(read["test"]["group"])
    assert all(name.rsplit(".")[0][-1] == group for got in read.values() for name, group in zip(got["source"], got["group"]))


def test_splits_of_the_source_stay(tree, tmp_path):
    (tree / "a").rename(tree / "train")
    (tree / "b").rename(tree / "test")
    _, read, _ = prepare(tmp_path / "out", tree, rate=8000)
    assert all(name.startswith(split) for name, (split, _) in recordings(read).items())
    _, read, _ = prepare(tmp_path / "three", tree, rate=8000, split="train:0.8,validation:0.2")
    assert sorted(read) == ["test", "train", "validation"] and all(name.startswith("test/") for name in read["test"]["source"])


def test_vctk(tmp_path):
    """Both releases' folders, an utterance's two microphones and its older file always in one split."""
    folder = tmp_path / "VCTK-Corpus-0.92"
    for speaker in ("p225", "p226", "s5"):
        for n in range(1, 11):
            for mic in (1, 2):
                write(folder / "wav48_silence_trimmed" / speaker / f"{speaker}_{n:03d}_mic{mic}.flac", noise(n, 0.1, rate=48_000), 48_000)
        write(folder / "wav48" / speaker / f"{speaker}_001.wav", noise(1, 0.1, rate=48_000), 48_000)
    write(folder / "wav48" / "p225" / "other.wav", noise(0, 0.1, rate=48_000), 48_000)
    (folder / "txt").mkdir()
    (folder / "txt" / "p225_001.txt").write_text("Please call Stella.")
    spec, read, manifest = prepare(tmp_path / "both", folder, layout="vctk")
    assert spec.fields["speaker"].labels == ("p225", "p226", "s5") and "label" not in spec.fields and spec.facts["rate"] == 48_000
    assert manifest["kept"] == 63 and manifest["skipped_count"] == 2 and manifest["groups"] == {"test": 3, "train": 27}
    assert set(read["test"]["speaker"]) == set(read["train"]["speaker"]) == {0, 1, 2} and not set(read["train"]["group"]) & set(read["test"]["group"])
    for got in read.values():
        for name, group, speaker in zip(got["source"], got["group"], got["speaker"]):
            assert f"/{group}" in name and group.startswith(spec.fields["speaker"].labels[speaker])
    assert recordings(read)["wav48/s5/s5_001.wav"][1].tobytes() == noise(1, 0.1, rate=48_000).tobytes()
    _, read, manifest = prepare(tmp_path / "one", folder, layout="vctk", mic=2, by="speaker", split="train:0.6,test:0.4")
    heard = [set(got["speaker"]) for got in read.values()]
    assert set.union(*heard) == {0, 1, 2} and not set.intersection(*heard)
    assert manifest["kept"] == 33 and not any("mic1" in name for got in read.values() for name in got["source"])


def test_what_is_left_out_is_in_the_manifest_with_its_reason(tree, tmp_path):
    bad = {"one.wav": (noise(0, 1)[:1], "shorter than 0.01 s"), "none.wav": (noise(0, 0), "holds no samples"),
           "six.wav": (noise(0, 1, 6), "6 channels"), "nan.wav": (np.array([0.1, np.nan] * 4000, np.float32), "not finite"),
           "silence.wav": (np.zeros(8000, np.int16), "silent: below -80 dB")}
    for name, (x, _) in bad.items():
        write(tree / "a" / name, x, subtype="FLOAT" if name == "nan.wav" else "PCM_16")
    (tree / "a" / "cut.wav").write_bytes((tree / "a" / "00.wav").read_bytes()[:200])
    (tree / "a" / "notes.txt").write_text("take 3 is the good one")
    spec, read, manifest = prepare(tmp_path / "out", tree, rate=8000, channels=2)
    reasons = {name: reason for reason, names in manifest["skipped"].items() for name in names}
    for name, says in {**{f"a/{name}": says for name, (_, says) in bad.items()}, "a/cut.wav": "cut short", "a/notes.txt": "not a WAV"}.items():
        assert says in reasons.pop(name)
    assert reasons == {} and (manifest["found"], manifest["kept"]) == (27, 20) and len(recordings(read)) == 20
    assert manifest["options"]["left_out"] == "damaged, empty or not finite; shorter than 0.01 s; never above -80 dB"
    _, read, _ = prepare(tmp_path / "mono", tree, rate=8000)
    assert np.abs(recordings(read)["a/six.wav"][1][:, 0] - bad["six.wav"][0].mean(1)).max() <= 0.51


def test_silence_and_clipping_are_told(tmp_path, capsys):
    x = np.concatenate([np.zeros((6400, 1)), noise(0, 0.8) / 32768, np.zeros((4800, 1))])
    x[7000:7005] = 1.25
    for i in range(2):
        write(tmp_path / "in" / f"{i}.wav", x, subtype="FLOAT")
    _, _, manifest = prepare(tmp_path / "out", tmp_path / "in", rate=8000)
    assert manifest["sound"]["silence_seconds"] == pytest.approx(2.8) and manifest["sound"]["clipped_samples"] == 10
    assert manifest["sound"]["peak"] == 32767 / 32768
    said = capsys.readouterr().out
    assert "silence 63.6 %" in said and "10 values clipped, peak 1.000" in said


@pytest.mark.parametrize("values, says", [
    ({"seconds": 31}, "--seconds=31"), ({"mic": 1}, "--mic goes with --layout=vctk"), ({"by": "speaker"}, "--by goes with --layout=vctk"),
    ({"split": "train:0.5"}, "sum to 0.5"), ({"layout": "vctk"}, "holds no sounds of this layout: skipped 20: is not named"),
])
def test_wrong_flags_are_one_sentence(tree, tmp_path, values, says):
    with pytest.raises(UserError, match=says) as caught:
        prepare(tmp_path / "out", tree, **values)
    assert "\n" not in str(caught.value) and [p.name for p in tmp_path.iterdir()] == ["in"]


def test_nothing_to_prepare(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="holds no sounds: it is empty"):
        prepare(tmp_path / "out", tmp_path / "in")
    write(tmp_path / "in" / "one.wav", noise(0, 1)[:1])
    with pytest.raises(UserError, match="holds no sounds to keep: skipped 1: shorter than 0.01 s"):
        prepare(tmp_path / "out", tmp_path / "in", split="train:1")
    write(tmp_path / "in" / "one.wav", noise(0, 1))
    with pytest.raises(UserError, match="'test' would be empty: 1 groups do not fill 2 splits .*--split"):
        prepare(tmp_path / "out", tmp_path / "in")
    done = subprocess.run([sys.executable, "-m", "data_prep.waveforms", f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", "--rate=500"],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "rate" in done.stderr and "1000" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_tfds_reads_it(tree, tmp_path):
    """Any length in TFDS's own words: [None, channels]."""
    tfds = pytest.importorskip("tensorflow_datasets")
    spec, read, _ = prepare(tmp_path / "out", tree, rate=8000, channels=2)
    features = tfds.features.FeaturesDict.from_config(str(tmp_path / "out"))
    assert features["audio"].shape == (None, 2) and features["label"].names == ["a", "b"]
    split = records.open_split(tmp_path / "out", "test")
    for i in range(len(split)):
        payload, start = split._payloads(np.array([i]))
        row = features.deserialize_example_np(payload[start[0]:start[0] + split.index[i, 0]])
        assert np.array_equal(row["audio"], read["test"]["audio"][i]) and row["valid"] == read["test"]["valid"][i]


# Real data


def test_real_recordings(data_dir, tmp_path):
    """The first utterances at their own rate are kept sample for sample; a stereo Ogg at 44.1 kHz is what soundfile decodes."""
    for path in sorted((data_dir / "speech" / "one_speaker").glob("*.flac"))[:6]:
        write(tmp_path / "in" / path.name, soundfile.read(path, dtype="int16")[0], 16_000)
    _, read, manifest = prepare(tmp_path / "speech", tmp_path / "in", rate=16_000, seconds=4)
    assert manifest["sound"]["clipped_samples"] == 0 and len(recordings(read)) == 6
    for name, (_, got) in recordings(read).items():
        assert np.array_equal(got[:, 0], soundfile.read(tmp_path / "in" / name, dtype="int16")[0])
    music = min((data_dir / "music" / "orchestral").glob("*.ogg"), key=lambda path: path.stat().st_size)
    _, read, _ = prepare(tmp_path / "music", music, rate=44_100, channels=2, split="train:1")
    x, rate = soundfile.read(music, dtype="float64")
    got = recordings(read)[music.name][1]
    assert rate == 44_100 and got.shape == x.shape and np.abs(got / 32768 - np.clip(x, -1, 1)).max() <= 1.01 / 32768
