"""Speech to records: layouts, splits, what happens to bad files, and the real digits."""

import collections
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import soundfile

from data_prep import clips, speech
from vae_jax import records, tfexample
from vae_jax.config import UserError

ROOT = pathlib.Path(records.__file__).parents[1]


def prepare(out, source, script=speech, **values):
    """Runs the script in this process and reads everything back."""
    script.FLAGS.unparse_flags()
    script.FLAGS(["script", f"--source={source}", f"--out={out}", "--workers=2", *(f"--{name}={value}" for name, value in values.items())])
    script.main()
    spec = records.open_folder(out)
    return spec, {split: records.open_split(out, split).read_all() for split in spec.splits}, json.loads((out / "manifest.json").read_text())


def voice(seed, seconds=0.3, rate=8000):
    """Something with a peak of 0.6 that differs with its seed."""
    x = np.random.default_rng(seed).standard_normal(int(seconds * rate))
    return 0.6 * x / np.abs(x).max()


def write(path, x, rate=8000, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, x, rate, **options)


@pytest.fixture
def digits(tmp_path):
    """Three speakers, two digits, indices 3 to 6, in FSDD's layout; one file that is named otherwise, one that is no sound."""
    folder = tmp_path / "recordings"
    for i, speaker in enumerate(("ann", "bob", "moni_2")):
        for digit in (2, 10):
            for index in range(3, 7):
                write(folder / f"{digit}_{speaker}_{index}.wav", voice(100 * i + 10 * digit + index, 0.1 * (index - 1)))
    write(folder / "noise.wav", voice(0))
    (folder / "1_ann_0.wav").write_text("not a sound")
    return folder


def test_fsdd_layout(digits, tmp_path):
    spec, read, manifest = prepare(tmp_path / "out", digits, seconds=0.4)
    assert spec.splits == {"test": 12, "train": 12} and spec.fields["audio"].shape == (3200, 1)
    assert spec.fields["label"].labels == ("2", "10") and spec.fields["speaker"].labels == ("ann", "bob", "moni_2")
    assert manifest["skipped"] == {"is not named LABEL_SPEAKER_INDEX": ["noise.wav"], "not a WAV, AIFF, FLAC, Ogg or MP3 file": ["1_ann_0.wav"]}
    assert (manifest["found"], manifest["kept"], manifest["skipped_count"]) == (26, 24, 2)
    names = read["test"]["source"] + read["train"]["source"]
    assert all((int(name[:-4].rsplit("_", 1)[1]) < 5) == (i < 12) for i, name in enumerate(names))
    for split in read.values():
        for i, name in enumerate(split["source"]):
            x = soundfile.read(digits / name, dtype="int16")[0][:3200]
            digit, speaker, _ = name.split("_", 1)[0], *name[:-4].split("_", 1)[1].rsplit("_", 1)
            assert split["valid"][i] == len(x) and np.array_equal(split["audio"][i, :len(x), 0], x) and not split["audio"][i, len(x):].any()
            assert spec.fields["label"].labels[split["label"][i]] == digit and spec.fields["speaker"].labels[split["speaker"][i]] == speaker
            assert split["group"][i] == name and split["start"][i] == 0
    told = manifest["sound"]
    assert told["files_cut"] == 6 and told["seconds_cut"] == pytest.approx(0.6)
    assert told["records_filled_up"] == 12 and told["file_rates"] == {"8000": 24}
    assert told["hours"]["train"]["all"] == pytest.approx(12 * 0.4 / 3600, abs=1e-5)
    assert told["hours"]["test"]["label 2"] == pytest.approx(3 * (0.2 + 0.3) / 3600, abs=1e-5)
    assert spec.facts["rate"] == 8000 and spec.facts["peak"] == np.abs(read["train"]["audio"].astype(int)).max() / 32768


def test_reference_is_the_loudest_level_of_the_training_split(tmp_path):
    """0 dB is a sine at full scale; test clips, here louder, do not count."""
    t = np.arange(8000) / 8000
    for index, amplitude in ((0, 0.9), (5, 0.5), (6, 0.25)):
        write(tmp_path / "in" / f"1_a_{index}.wav", amplitude * np.sin(2 * np.pi * 1000 * t))
    spec, _, _ = prepare(tmp_path / "out", tmp_path / "in")
    assert abs(spec.facts["reference_db"] - 20 * np.log10(0.5)) < 0.01 and abs(spec.facts["peak"] - 0.5) < 1e-4
    for path in (tmp_path / "in").glob("*_[56].wav"):
        path.unlink()
    spec, _, _ = prepare(tmp_path / "out2", tmp_path / "in")
    assert list(spec.splits) == ["test"] and abs(spec.facts["reference_db"] - 20 * np.log10(0.9)) < 0.01


def test_speaker_held_out(digits, tmp_path):
    spec, read, manifest = prepare(tmp_path / "out", digits, hold_out="bob")
    assert spec.splits == {"train": 16, "test": 8} and set(read["test"]["speaker"]) == {1} and set(read["train"]["speaker"]) == {0, 2}
    assert manifest["groups"] == {"test": 1, "train": 2}
    spec, read, _ = prepare(tmp_path / "three", digits, hold_out="bob", split="train:0.5,validation:0.5")
    assert spec.splits == {"train": 8, "validation": 8, "test": 8} and len({int(read[s]["speaker"][0]) for s in read}) == 3
    with pytest.raises(UserError, match="no speaker 'eve'; the speakers are ann, bob, moni_2"):
        prepare(tmp_path / "no", digits, hold_out="eve")
    with pytest.raises(UserError, match="nobody would be left"):
        prepare(tmp_path / "no", digits, hold_out="ann,bob,moni_2")
    with pytest.raises(UserError, match="group '[210]+' is in both"):
        prepare(tmp_path / "no", digits, hold_out="bob", group=r"^(\d+)_")


def test_same_bytes_whatever_the_number_of_workers(digits, tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(digits.iterdir()):
            archive.write(path, path.name)
    for i, options in enumerate(({"workers": 1}, {"workers": 3}, {"source": tmp_path / "z.zip"})):
        prepare(tmp_path / str(i) / "out", **{"source": digits, "rate": 11025, "seconds": 0.35, **options})
    files = [{p.name: p.read_bytes() for p in (tmp_path / str(i) / "out").iterdir()} for i in range(3)]
    assert files[0] == files[1]
    same = [name for name in files[0] if not name.startswith("manifest")]
    assert len(same) > 5 and all(files[0][name] == files[2][name] for name in same)


def test_pieces_keep_the_whole_clip(tmp_path):
    x = np.rint(voice(1, 1.3) * 32768).astype(np.int16)
    write(tmp_path / "in" / "ann" / "long.flac", x)
    write(tmp_path / "in" / "bob" / "deep" / "short.wav", voice(2, 0.2))
    write(tmp_path / "in" / "beside.wav", voice(3))
    spec, read, manifest = prepare(tmp_path / "out", tmp_path / "in", layout="speakers", seconds=0.5, pieces=True)
    got = read["train"]
    assert got["speaker"].tolist() == [0, 0, 0, 1]
    assert got["start"].tolist() == [0, 4000, 8000, 0] and got["valid"].tolist() == [4000, 4000, 2400, 1600]
    assert np.array_equal(got["audio"][:3].reshape(-1)[:len(x)], x) and "label" not in spec.fields
    assert manifest["skipped"] == {"lies beside the speaker folders, not in one": ["beside.wav"]} and manifest["sound"]["files_cut"] == 0


def test_speakers_by_group(tmp_path):
    for speaker in ("m", "v"):
        for level in range(10):
            for i in range(2):
                write(tmp_path / "in" / speaker / f"level{level}__{i}.ogg", voice(level), format="OGG", subtype="VORBIS")
    spec, read, _ = prepare(tmp_path / "out", tmp_path / "in", layout="speakers", split="train:0.8,test:0.2", group="/(.+?)__")
    assert spec.splits == {"train": 32, "test": 8} and not set(read["train"]["group"]) & set(read["test"]["group"])
    assert all(f"/{group}__" in name for group, name in zip(read["test"]["group"], read["test"]["source"]))


def test_vctk_layout(tmp_path):
    folder = tmp_path / "VCTK-Corpus-0.92"
    for speaker in ("p225", "p226", "s5"):
        for n in range(1, 6):
            for mic in (1, 2):
                write(folder / "wav48_silence_trimmed" / speaker / f"{speaker}_{n:03d}_mic{mic}.flac", voice(n, rate=48_000), 48_000)
    write(folder / "wav48" / "p225" / "p225_001.wav", voice(1, rate=48_000), 48_000)
    write(folder / "wav48" / "p225" / "other.wav", voice(1, rate=48_000), 48_000)
    (folder / "txt" / "p225").mkdir(parents=True)
    (folder / "txt" / "p225" / "p225_001.txt").write_text("Please call Stella.")
    spec, read, manifest = prepare(tmp_path / "both", folder, layout="vctk", split="train:0.6,test:0.4", rate=16_000, seconds=0.5)
    assert manifest["found"] == 33 and sum(spec.splits.values()) == 31 and spec.fields["speaker"].labels == ("p225", "p226", "s5")
    home = collections.defaultdict(set)
    for split, got in read.items():
        for name, group in zip(got["source"], got["group"]):
            assert group in name
            home[group].add(split)
    assert len(home) == 15 and all(len(found) == 1 for found in home.values())
    spec, read, manifest = prepare(tmp_path / "one", folder, layout="vctk", mic=1, rate=16_000)
    assert sum(spec.splits.values()) == 16 and len(manifest["skipped"]["not of microphone 1"]) == 15
    assert not any("mic2" in name for got in read.values() for name in got["source"])


def test_faithful_length():
    """0.74 s at 22,050 Hz are the 16,317 samples of the public preparation; counted in decimals, since 0.29 * 100 in floats is 28.999..."""
    assert clips.samples_of(0.74, 22050) == 16317 and clips.samples_of(0.29, 100) == 29 and clips.samples_of(1.0, 8000) == 8000
    for seconds in (0.0, -1.0, 30.5, 1e-5, float("nan"), float("inf")):
        with pytest.raises(UserError, match="--seconds"):
            clips.samples_of(seconds, 8000)


def test_every_bad_sound_is_a_skip_with_its_reason(tmp_path):
    folder, x = tmp_path / "in", voice(0, 0.5)
    data = io.BytesIO()
    soundfile.write(data, x, 8000, format="WAV")
    bad = {"1_cut_0.wav": (data.getvalue()[:3000], "cut short"), "1_text_0.wav": (b"hello", "not a WAV"), "1_none_0.wav": (b"", "empty file"),
           "1_eps_0.mp3": (b"\xff\xfb\x90" + b"text" * 999, "not the mp3 file")}
    for name, values, says in (("nan", [np.nan, 0.5] * 4000, "not finite"), ("silent", np.zeros(8000), "silent"), ("one", [0.5], "shorter than")):
        data = io.BytesIO()
        soundfile.write(data, np.array(values), 8000, "FLOAT", format="WAV")
        bad[f"1_{name}_0.wav"] = (data.getvalue(), says)
    folder.mkdir()
    for name, (data, _) in bad.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "1_fifo_0.wav")
    write(folder / "1_good_0.wav", np.stack([x, -0.5 * x], 1))
    write(folder / "1_good\n\u202e_0.wav", x)
    spec, read, manifest = prepare(tmp_path / "out", folder)
    reasons = {name: reason for reason, names in manifest["skipped"].items() for name in names}
    for name, (_, says) in {**bad, "1_fifo_0.wav": (b"", "not a regular file")}.items():
        assert says in reasons.pop(name)
    assert reasons == {} and manifest["kept"] == 2 and manifest["found"] == manifest["kept"] + manifest["skipped_count"]
    assert np.abs(read["test"]["audio"][1, :4000, 0] / 32768 - 0.25 * x).max() < 1e-4
    assert spec.fields["speaker"].labels[2:4] == ("good", r"good\n\u202e")


def test_tfds(tmp_path):
    """A set in TFDS's own sound format, named as FSDD's files are."""
    pytest.importorskip("tensorflow")
    import tensorflow_datasets as tfds
    features = tfds.features.FeaturesDict({"audio": tfds.features.Audio(file_format="wav", sample_rate=8000), "audio/filename": tfds.features.Text(),
                                           "label": tfds.features.ClassLabel(num_classes=10)})
    sent = {f"{i % 3}_ann_{i}.wav": np.rint(voice(i, 0.1 + 0.01 * i) * 32768).astype(np.int64) for i in range(8)}
    rows = [tfexample.frame(features.serialize_example({"audio": x, "audio/filename": name, "label": int(name[0])}))[0] for name, x in sent.items()]
    (tmp_path / "tfds").mkdir()
    (tmp_path / "tfds" / "spoken-train.tfrecord-00000-of-00001").write_bytes(b"".join(rows))
    whole = tfds.core.SplitInfo(name="train", shard_lengths=[8], num_bytes=0)
    template = tfds.core.ShardedFileTemplate(data_dir=tmp_path / "tfds", dataset_name="spoken", filetype_suffix="tfrecord")
    tfds.folder_dataset.write_metadata(data_dir=tmp_path / "tfds", features=features, split_infos=[whole], filename_template=template)
    spec, read, manifest = prepare(tmp_path / "out", f"tfds:{tmp_path / 'tfds'}", seconds=0.2)
    assert spec.splits == {"test": 5, "train": 3} and spec.fields["label"].labels == ("0", "1", "2") and manifest["kept"] == 8
    for got in read.values():
        for name, valid, audio in zip(got["source"], got["valid"], got["audio"]):
            assert np.array_equal(audio[:valid, 0], sent[name])
    with pytest.raises(UserError, match="no sound of a stated sample rate"):
        prepare(tmp_path / "no", f"tfds:{tmp_path / 'out'}")


@pytest.mark.parametrize("values, says", [
    ({"seconds": 31}, "--seconds=31"), ({"mic": 1}, "--mic goes with"), ({"split": "train:0.5"}, "sum to 0.5"),
    ({"group": "("}, "neither a file nor"), ({"layout": "speakers"}, "holds no sounds of this layout"),
    ({"layout": "vctk"}, "holds no sounds of this layout: skipped 25: is not named SPEAKER"),
])
def test_wrong_flags_are_one_sentence(digits, tmp_path, values, says):
    with pytest.raises(UserError, match=says) as caught:
        prepare(tmp_path / "out", digits, **values)
    assert "\n" not in str(caught.value) and [p.name for p in tmp_path.iterdir()] == ["recordings"]


def test_nothing_to_keep(tmp_path):
    write(tmp_path / "in" / "1_a_0.wav", np.zeros(8000))
    with pytest.raises(UserError, match="holds no sounds to keep: skipped 1: silent"):
        prepare(tmp_path / "out", tmp_path / "in")
    (tmp_path / "in" / "1_a_0.wav").write_text("x")
    with pytest.raises(UserError, match="holds no sounds: skipped 1: not a WAV"):
        prepare(tmp_path / "out", tmp_path / "in")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_an_interrupted_preparation_leaves_nothing(tmp_path):
    write(tmp_path / "in" / "1_ann_5.flac", np.random.default_rng(0).standard_normal(16000 * 600) * 0.1, 16000)
    write(tmp_path / "in" / "1_ann_0.wav", voice(0))
    flags = [f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", "--workers=1", "--rate=48000", "--pieces"]
    process = subprocess.Popen([sys.executable, "-m", "data_prep.speech", *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not [p for p in tmp_path.glob(".out.preparing-*/*") if p.is_file()]:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "interrupted; nothing was left behind\n" and process.returncode == 130
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


# Real data


def test_fsdd_itself(data_dir, tmp_path):
    """Row S1: 3,000 names, the official split, what is known of the set; then the faithful front end with a speaker held out."""
    spec, read, manifest = prepare(tmp_path / "fsdd", data_dir / "fsdd" / "recordings.zip")
    assert spec.splits == {"test": 300, "train": 2700} and manifest["found"] == manifest["kept"] == 3000
    assert spec.fields["speaker"].labels == ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
    for split, each in (("test", 5), ("train", 45)):
        assert (np.bincount(read[split]["label"] * 6 + read[split]["speaker"], minlength=60) == each).all()
    with zipfile.ZipFile(data_dir / "fsdd" / "recordings.zip") as archive:
        x = soundfile.read(io.BytesIO(archive.read(read["test"]["source"][7])), dtype="int16")[0]
    assert np.array_equal(read["test"]["audio"][7, :len(x), 0], x[:8000])
    assert -80 < spec.facts["reference_db"] < 2.1 and spec.facts["peak"] == 1
    spec, read, manifest = prepare(tmp_path / "theo", data_dir / "fsdd" / "recordings.zip", rate=22050, seconds=0.74, hold_out="theo")
    assert spec.fields["audio"].shape == (16317, 1) and spec.splits == {"train": 2500, "test": 500}
    assert set(read["test"]["speaker"]) == {4} and 4 not in read["train"]["speaker"] and manifest["sound"]["files_cut"] == 83


def test_two_speakers_by_level(data_dir, tmp_path):
    spec, read, _ = prepare(tmp_path / "two", data_dir / "speech" / "two_speakers", layout="speakers", rate=16000, seconds=2, group="/(.+?)__",
                            split="train:0.9,test:0.1")
    assert sum(spec.splits.values()) == 400 and spec.fields["speaker"].labels == ("speaker_m", "speaker_v")
    assert not set(read["train"]["group"]) & set(read["test"]["group"])
