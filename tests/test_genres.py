"""Genres to records: pieces of long tracks, splits by track, bounded memory, and the real music."""

import json
import os
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import soundfile
import soxr

from data_prep import genres
from vae_jax import records
from vae_jax.config import UserError

ROOT = pathlib.Path(records.__file__).parents[1]
RATE = 22050


def prepare(out, source, **values):
    genres.FLAGS.unparse_flags()
    genres.FLAGS(["genres", f"--source={source}", f"--out={out}", "--workers=2", *(f"--{name}={value}" for name, value in values.items())])
    genres.main()
    spec = records.open_folder(out)
    return spec, {split: records.open_split(out, split).read_all() for split in spec.splits}, json.loads((out / "manifest.json").read_text())


def track(seed, seconds, rate=44100):
    """int16 stereo."""
    return np.random.default_rng(seed).integers(-9000, 9000, (int(seconds * rate), 2)).astype(np.int16)


@pytest.fixture
def music(tmp_path):
    folder = tmp_path / "music"
    for i, genre in enumerate(("piano", "rock")):
        (folder / genre).mkdir(parents=True)
        for j in range(4):
            soundfile.write(folder / genre / f"album{j // 2}__{j}.flac", track(10 * i + j, 2.3 + j), 44100)
    (folder / "rock" / "cover.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    soundfile.write(folder / "beside.wav", track(99, 1), 44100)
    return folder


def test_tracks_become_pieces(music, tmp_path):
    spec, read, manifest = prepare(tmp_path / "out", music)
    got = read["train"]
    assert spec.fields["label"].labels == ("piano", "rock") and "speaker" not in spec.fields and spec.fields["audio"].shape == (RATE, 1)
    assert (manifest["found"], manifest["kept"], manifest["skipped_count"]) == (10, 8, 2)
    assert sorted(manifest["skipped"]) == ["lies beside the label folders, not in one", "not a WAV, AIFF, FLAC, Ogg or MP3 file"]
    assert spec.splits == {"train": 2 * (3 + 4 + 5 + 6)} and manifest["sound"]["records_filled_up"] == 8
    for name in set(got["source"]):
        rows = [i for i, source in enumerate(got["source"]) if source == name]
        whole = soxr.resample(soundfile.read(music / name, dtype="float32")[0].mean(1), 44100, RATE, "HQ")
        assert got["start"][rows].tolist() == [i * RATE for i in range(len(rows))] and got["valid"][rows].sum() == len(whole)
        expected = np.pad(whole, (0, len(rows) * RATE - len(whole))).reshape(len(rows), RATE)
        assert np.abs(got["audio"][rows][..., 0] / 32768 - expected).max() <= 0.51 / 32768
        assert (got["label"][rows] == ("rock/" in name)).all() and {got["group"][i] for i in rows} == {name}
    seconds = sum(soundfile.info(path).duration for path in music.glob("*/*.flac"))
    assert manifest["sound"]["hours"]["train"]["all"] == pytest.approx(seconds / 3600, abs=1e-5)


def test_split_by_track_in_every_genre(music, tmp_path):
    options = {"split": "train:0.5,test:0.5", "seconds": 0.5, "rate": 11025}
    _, read, manifest = prepare(tmp_path / "a", music, **options)
    assert not set(read["train"]["source"]) & set(read["test"]["source"]) and manifest["groups"]["train"] + manifest["groups"]["test"] == 8
    assert all(set(got["label"]) == {0, 1} for got in read.values())
    hours = manifest["sound"]["hours"]
    assert abs(hours["train"]["all"] - hours["test"]["all"]) < 0.2 * hours["train"]["all"]
    _, read, manifest = prepare(tmp_path / "b", music, **options, group=r"([^/]+/album\d)__")
    assert manifest["groups"] == {"test": 2, "train": 2} and not set(read["train"]["group"]) & set(read["test"]["group"])
    with pytest.raises(UserError, match="class piano has 2 groups, too few for 3 splits"):
        prepare(tmp_path / "c", music, split="train:0.4,validation:0.3,test:0.3", group=r"([^/]+/album\d)__")


def test_given_splits_and_archives(music, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted(music.glob("*/*.flac")):
            archive.write(path, f"set/{'test' if path.name.startswith('album1') else 'train'}/{path.parent.name}/{path.name}")
    spec, read, _ = prepare(tmp_path / "out", tmp_path / "set.zip")
    assert spec.splits == {"train": 2 * (3 + 4), "test": 2 * (5 + 6)} and spec.fields["label"].labels == ("piano", "rock")
    assert all("set/test/" in name for name in read["test"]["source"])


def test_an_hour_is_never_held_whole(tmp_path):
    """An hour of WAV: 317 MB as it lies there, 635 MB as float. Neither the worker, which may take 512 MB of address space, nor we hold it."""
    folder = tmp_path / "in" / "drone"
    folder.mkdir(parents=True)
    block = track(0, 10)[:, 0]
    with soundfile.SoundFile(folder / "hour.wav", "w", 44100, 1, "PCM_16") as file:
        for _ in range(360):
            file.write(block)
    code = ("import resource, sys; from data_prep import genres, pool, intake; decode = pool.decode\n"
            "pool.decode = lambda *a, **k: decode(*a, **{**k, 'memory_mb': 512})\n"
            "genres.FLAGS(['genres', *sys.argv[1:]]); genres.main()\n"
            "ours = next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]\n"  # ru_maxrss is inherited from us
            "print(int(ours) >> 10, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)")
    command = [sys.executable, "-c", code, f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", "--workers=1", "--rate=10000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    ours, workers = map(int, done.stdout.split()[-2:])
    assert ours < 300 and workers < 300
    got = records.open_split(tmp_path / "out", "train")
    early, late = got.read([100, 3500])["audio"].astype(int)
    assert len(got) == 3600 and np.abs(early - late).max() <= 1  # the block repeats every ten seconds


# Real data


def test_real_music(data_dir, tmp_path):
    """The four shortest tracks of each genre."""
    for folder in (data_dir / "music").iterdir():
        (tmp_path / "in" / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir(), key=os.path.getsize)[:4]:
            (tmp_path / "in" / folder.name / path.name).write_bytes(path.read_bytes())
    spec, read, manifest = prepare(tmp_path / "music", tmp_path / "in", split="train:0.5,validation:0.25,test:0.25", rate=RATE)
    assert spec.fields["label"].labels == ("electronic", "orchestral", "rock") and manifest["kept"] == 12
    sources = [set(got["source"]) for got in read.values()]
    assert len(set.union(*sources)) == sum(map(len, sources)) == 12 and all(set(got["label"]) == {0, 1, 2} for got in read.values())
    for path in sorted((tmp_path / "in" / "orchestral").iterdir())[:2]:
        name = f"orchestral/{path.name}"
        split, rows = next((s, [i for i, n in enumerate(got["source"]) if n == name]) for s, got in read.items() if name in got["source"])
        x, rate = soundfile.read(path, dtype="float32")
        whole = soxr.resample(x.mean(1), rate, RATE, "HQ")
        assert read[split]["valid"][rows].sum() == len(whole)
        assert np.abs(read[split]["audio"][rows].reshape(-1)[:len(whole)] / 32768 - np.clip(whole, -1, 1)).max() <= 1.01 / 32768
