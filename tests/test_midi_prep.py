"""MIDI to records: windows on bar lines, transposition, splits by piece and by music, what is left out, and the real files."""

import hashlib
import json
import pathlib
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from midi_files import GRID, file, off, on, random_notes, signature, track

from data_prep import midi as script
from data_prep import pieces, same_music
from vae_jax import records, rolls
from vae_jax.config import UserError
from vae_jax.media import midi
from vae_jax.rolls import Note

ROOT = pathlib.Path(records.__file__).parents[1]


def prepare(out, source, workers=2, **values):
    script.FLAGS.unparse_flags()
    script.FLAGS(["midi", f"--source={source}", f"--out={out}", f"--workers={workers}", *(f"--{name}={value}" for name, value in values.items())])
    script.main()
    spec = records.open_folder(out)
    return spec, {split: records.open_split(out, split).read_all() for split in spec.splits}, json.loads((out / "manifest.json").read_text())


def piece(seed, steps=100, low=48, high=72):
    """Random notes of a piece."""
    return random_notes(np.random.default_rng(seed), GRID._replace(low=low, high=high), steps)


def save(path, notes, tempo=120.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(midi.write(notes, tempo))
    return path


@pytest.fixture
def songs(tmp_path):
    """Ten pieces of three genres, some in folders further down."""
    for i in range(10):
        save(tmp_path / "songs" / ("blues", "jazz/live", "rock")[i % 3] / f"{i}.mid", piece(i, 90 + 10 * i), 80.0 + 10 * i)
    return tmp_path / "songs"


def together(got, source, total):
    """The roll of a piece put together from its windows, which agree where they overlap."""
    whole = np.zeros((total, got["roll"].shape[-1]), np.uint8)
    for i, name in enumerate(got["source"]):
        if name == source:
            start, valid = got["start"][i], got["valid"][i]
            first = max(0, start)
            part = got["roll"][i][first - start:valid]
            assert not whole[first:first + len(part)].any() or np.array_equal(whole[first:first + len(part)], part)
            assert not got["roll"][i][valid:].any() and not got["roll"][i][:first - start].any()
            whole[first:first + len(part)] = part
    return whole


def test_windows_hold_every_note(songs, tmp_path, capsys):
    spec, read, manifest = prepare(tmp_path / "out", songs)
    got = read["train"]
    assert spec.fields["roll"] == records.Field((32, 96), "uint8") and spec.fields["label"].labels == ("blues", "jazz", "rock")
    assert set(spec.fields) == {"roll", "label", "source", "group", "start", "valid"} and got["source"] == got["group"]
    for i in range(10):
        name = f"{('blues', 'jazz/live', 'rock')[i % 3]}/{i}.mid"
        notes = piece(i, 90 + 10 * i)
        end = max(rolls.step(note.end, GRID) for note in notes)
        rows = [j for j, source in enumerate(got["source"]) if source == name]
        assert got["start"][rows].tolist() == list(range(0, end, 32)) and set(got["label"][rows]) == {i % 3}
        assert got["valid"][rows].tolist() == [min(32, end - start) for start in range(0, end, 32)]
        assert rolls.to_notes(together(got, name, end), GRID) == notes
    assert spec.facts == {"low": 36, "high": 83, "steps_per_quarter": 4, "drums": 0, "velocity": 0, "fold": 0, "steps_per_bar": 16,
                          "tempo": pytest.approx(125.0, abs=0.01)}
    assert rolls.columns(rolls.grid(spec.facts)) == 96 and (manifest["found"], manifest["kept"]) == (10, 10)
    assert manifest["music"]["notes"]["pitched"] == sum(len(piece(i, 90 + 10 * i)) for i in range(10))
    assert "kept 10 of 10 found" in capsys.readouterr().out


def test_drums_velocity_and_finer_grids(tmp_path):
    grid = GRID._replace(drums=True, velocity=True, per_quarter=12, low=24, high=101)
    notes = random_notes(np.random.default_rng(0), grid, 96)
    spec, read, _ = prepare(tmp_path / "out", save(tmp_path / "a.mid", notes), steps=96, per_quarter=12, low=24, high=101, drums=True, velocity=True)
    assert spec.fields["roll"].shape == (96, 78 + 78 + 47) and "label" not in spec.fields
    facts = rolls.grid(spec.facts)
    assert facts._replace(tempo=0, steps_per_bar=0) == grid._replace(tempo=0, steps_per_bar=0) and facts.steps_per_bar == 48
    assert rolls.to_notes(read["train"]["roll"][0], facts) == notes
    spec, read, manifest = prepare(tmp_path / "plain", tmp_path / "a.mid", steps=96, per_quarter=12, low=24, high=101)
    assert rolls.to_notes(read["train"]["roll"][0], facts._replace(drums=False, velocity=False)) == [
        note._replace(velocity=rolls.VELOCITY) for note in notes if not note.drum]
    assert manifest["music"]["notes"]["drums"] == 20


# Bars


@pytest.mark.parametrize("bars, hop, end, expected", [
    ([0, 16, 32, 48, 64], 32, 64, [0, 32]),
    ([0, 16, 32, 48, 64], 16, 50, [0, 16, 32, 48]),
    ([0, 16, 32, 48, 64], 8, 40, [0, 8, 16, 24, 32]),
    ([0, 16, 32, 48, 64], 40, 64, [0, 32]),  # the last bar line within the hop
    ([0, 12, 24, 36, 48], 32, 48, [0, 24]),
    ([0, 12, 24, 36, 48], 8, 30, [0, 8, 12, 20, 24]),
    ([0, 16, 32, 44, 56, 68], 32, 68, [0, 32, 56]),  # 4/4, then 3/4
    ([-12, 4, 20, 36, 52], 32, 52, [-12, 20]),  # a pickup
    ([0, 100], 32, 100, [0, 32, 64, 96]),
])
def test_windows_begin_on_bar_lines(bars, hop, end, expected):
    assert pieces.window_starts(np.array(bars), hop, end) == expected


@pytest.mark.parametrize("seed", range(5))
def test_no_step_is_lost_between_windows(seed):
    """With a hop up to the window's length the windows cover every step, and each begins on a bar line or whole hops after one, within its bar."""
    rng = np.random.default_rng(seed)
    bars = np.cumsum(np.append(0, rng.choice([7, 8, 12, 16, 24], 40)))
    for hop in (4, 12, 16, 32, 64):
        starts = pieces.window_starts(bars, hop, int(bars[-1]))
        assert starts[0] == 0 and (np.diff(starts) <= hop).all() and starts[-1] + hop >= bars[-1]
        lines = bars[np.searchsorted(bars, starts, side="right") - 1]
        assert ((starts - lines) % hop == 0).all()
        if hop >= 24:
            assert set(starts) <= set(bars.tolist())


def test_signatures_and_a_pickup_in_a_file(tmp_path):
    """A quarter's pickup, four bars of 4/4, then 3/4: a note on each bar's first step tells where windows lie."""
    downbeats = [1, 5, 9, 13, 17, 20, 23, 26]  # quarters
    events = [(0, on(50)), (96, off(50))]
    at = 96
    for quarter in downbeats:
        events += [(96 * quarter - at, on(60)), (96, off(60))]
        at = 96 * (quarter + 1)
    signs = track((0, signature(1, 4)), (96, signature(4, 4)), (16 * 96, signature(3, 4)))
    (tmp_path / "a.mid").write_bytes(file(1, 96, signs, track(*events)))
    spec, read, _ = prepare(tmp_path / "out", tmp_path / "a.mid", steps=16)
    got = read["train"]
    assert got["start"].tolist() == [-12, 4, 20, 36, 52, 68, 80, 92, 104] and spec.facts["steps_per_bar"] == 16
    held, struck, _ = rolls.parts(got["roll"], GRID)
    assert struck[0, 12, 50 - 36] and not held[0, :12].any() and struck[1:, 0, 60 - 36].all()
    assert got["valid"].tolist() == [16] * 8 + [4]


def test_windows_without_notes_are_dropped(tmp_path):
    save(tmp_path / "a.mid", [Note(0, 1, 60), Note(24, 25, 62)])
    _, read, manifest = prepare(tmp_path / "out", tmp_path / "a.mid")
    assert read["train"]["start"].tolist() == [0, 96] and manifest["music"]["windows_silent"] == 2


# Range and transposition


def test_range_and_fold(tmp_path):
    notes = [Note(i, i + 1, pitch) for i, pitch in enumerate((30, 40, 60, 90))]
    save(tmp_path / "a.mid", notes)
    _, read, manifest = prepare(tmp_path / "out", tmp_path / "a.mid")
    assert [note.pitch for note in rolls.to_notes(read["train"]["roll"][0], GRID)] == [40, 60]
    assert manifest["music"]["notes"]["outside"] == 2 and manifest["options"]["fold"] is False
    spec, read, _ = prepare(tmp_path / "fold", tmp_path / "a.mid", fold=True)
    assert [note.pitch for note in rolls.to_notes(read["train"]["roll"][0], GRID)] == [42, 40, 60, 78] and rolls.grid(spec.facts).fold


def test_transposition_of_the_training_split_only(tmp_path):
    for i in range(8):
        save(tmp_path / "in" / f"{i}.mid", [*piece(i, 64), Note(0, 0.25, 36, drum=True)])
    save(tmp_path / "in" / "wide.mid", piece(8, 64, 37, 81) + [Note(0, 1, 37), Note(0, 1, 81), Note(0, 1, 20)])
    spec, read, manifest = prepare(tmp_path / "out", tmp_path / "in", transpose="-5:6", split="train:0.6,test:0.4", drums=True)
    grid = rolls.grid(spec.facts)
    assert set(read["test"]["transposed"]) == {0} and set(read["train"]["transposed"]) == set(range(-5, 6))
    for split, got in read.items():
        for name in set(got["source"]):
            rows = [i for i, source in enumerate(got["source"]) if source == name and got["start"][i] == 0]
            made = {int(got["transposed"][i]): rolls.to_notes(got["roll"][i], grid) for i in rows}
            kept = set(range(-1, 3)) if name == "wide.mid" else set(range(-5, 6))
            assert set(made) == (kept if split == "train" else {0}) and len(rows) == len(made)
            for semitones, notes in made.items():
                back = [note if note.drum else note._replace(pitch=note.pitch - semitones) for note in notes]
                assert sorted(back) == sorted(made[0])
    dropped = 7 if "wide.mid" in read["train"]["source"] else 0
    assert manifest["music"]["transpositions_dropped"] == dropped
    spec, read, _ = prepare(tmp_path / "fold", tmp_path / "in" / "wide.mid", transpose="-5:6", fold=True)
    assert set(read["train"]["transposed"]) == set(range(-5, 6))


# Splits


def test_splits_are_by_piece_within_genres(songs, tmp_path):
    spec, read, manifest = prepare(tmp_path / "out", songs, transpose="-1:2", hop=8, split="train:0.4,validation:0.3,test:0.3")
    sources = [set(got["source"]) for got in read.values()]
    assert len(set.union(*sources)) == sum(map(len, sources)) == 10 and sum(manifest["groups"].values()) == 10
    assert all(set(got["label"]) == {0, 1, 2} for got in read.values())
    _, read, _ = prepare(tmp_path / "groups", songs, split="train:0.5,test:0.5", group=r"(\d)\.mid")
    assert {group for got in read.values() for group in got["group"]} == set("0123456789")
    with pytest.raises(UserError, match="class blues has 1 groups, too few for 2 splits"):
        prepare(tmp_path / "few", songs, split="train:0.5,test:0.5", group="^(blues|[^.]+)")


def test_the_same_music_is_in_one_split(tmp_path):
    """Copies in another key, with another beginning, or a few notes changed, lie where the original lies; other pieces are not joined."""
    for i in range(12):
        save(tmp_path / "in" / f"{i:02d}.mid", piece(i))
    first = piece(0)
    save(tmp_path / "in" / "x_transposed.mid", [note._replace(pitch=note.pitch + 3) for note in first])
    save(tmp_path / "in" / "y_later.mid", [note._replace(start=note.start + 8, end=note.end + 8) for note in first])
    save(tmp_path / "in" / "z_changed.mid", [note._replace(pitch=note.pitch + (i % 60 == 30)) for i, note in enumerate(first)])
    for seed in range(3):
        _, read, manifest = prepare(tmp_path / f"out{seed}", tmp_path / "in", seed=seed, split="train:0.5,validation:0.2,test:0.3")
        homes = [split for split, got in read.items() if set(got["source"]) & {"00.mid", "x_transposed.mid", "y_later.mid", "z_changed.mid"}]
        assert len(homes) == 1 and sum(manifest["groups"].values()) == 12
        assert manifest["music"]["same_music"] == [["00.mid", "x_transposed.mid", "y_later.mid", "z_changed.mid"]]


def test_music_that_two_genres_have_is_in_one_split(songs, tmp_path):
    for i in (0, 3):
        save(songs / "jazz" / f"copy{i}.mid", piece(i, 90 + 10 * i))  # of blues
    for seed in range(6):
        _, read, manifest = prepare(tmp_path / f"out{seed}", songs, seed=seed, split="train:0.5,test:0.5")
        assert manifest["music"]["same_music"] == [["blues/0.mid", "jazz/copy0.mid"], ["blues/3.mid", "jazz/copy3.mid"]]
        for pair in manifest["music"]["same_music"]:
            assert sum(bool(set(pair) & set(got["source"])) for got in read.values()) == 1
        labels = {source: label for got in read.values() for source, label in zip(got["source"], got["label"])}
        assert labels["blues/0.mid"] == 0 and labels["jazz/copy0.mid"] == 1


def test_overlap_is_estimated():
    """Against the true share of runs in common, of pieces that have a part in common."""
    rng = np.random.default_rng(0)
    own, other = ([Note(i / 4, i / 4 + 0.25, int(p)) for i, p in enumerate(rng.integers(40, 80, 900))] for _ in range(2))

    def runs(notes):
        places = [(4 * note.start, note.pitch) for note in sorted(notes)]
        moves = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(places, places[1:])]
        return {tuple(moves[i:i + same_music.RUN - 1]) for i in range(len(moves) - same_music.RUN + 2)}

    for shared in (0, 200, 450, 700, 900):
        mixed = own[:shared] + other[shared:]
        true = len(runs(own) & runs(mixed)) / len(runs(own) | runs(mixed))
        assert abs(same_music.overlap(same_music.sketch(own, GRID), same_music.sketch(mixed, GRID)) - true) < 0.1  # 3 standard errors
    assert same_music.sketch(own[:5], GRID) == [] and same_music.unite(["a", "b"], [[], []]) == ["a", "b"]


def test_groups_joined_through_others():
    sketches = [[1, 2, 3, 4], [10, 11], [3, 4, 5, 6], [5, 6, 7, 8], [20]]
    assert same_music.unite(["d", "x", "c", "b", "y"], sketches) == ["b", "x", "b", "b", "y"]
    assert same_music.unite(["d", "x", "c", "x", "y"], sketches) == ["c", "c", "c", "c", "y"]


def test_given_splits_stay(tmp_path):
    for i, split in enumerate(("train", "train", "test", "test")):
        save(tmp_path / "in" / split / f"{i}.mid", piece(i % 2))
    _, read, manifest = prepare(tmp_path / "out", tmp_path / "in")
    assert set(read["train"]["source"]) == {"train/0.mid", "train/1.mid"} and set(read["test"]["source"]) == {"test/2.mid", "test/3.mid"}
    assert manifest["music"]["same_music"] == []


# Sources, and what is left out


def test_folders_archives_and_single_files(songs, tmp_path):
    spec, read, _ = prepare(tmp_path / "folder", songs, split="train:0.5,test:0.5")
    with zipfile.ZipFile(tmp_path / "songs.zip", "w") as archive:
        for path in sorted(songs.rglob("*.mid")):
            archive.write(path, path.relative_to(songs))
    with tarfile.open(tmp_path / "songs.tar.gz", "w:gz") as archive:
        for path in sorted(songs.rglob("*.mid")):
            archive.add(path, path.relative_to(songs))
    for name in ("songs.zip", "songs.tar.gz"):
        assert prepare(tmp_path / f"out_{name[6:]}", tmp_path / name, split="train:0.5,test:0.5")[0].digest == spec.digest
    assert "label" not in prepare(tmp_path / "one_genre", songs / "jazz")[0].fields
    save(songs / "beside.mid", piece(50))
    spec, _, manifest = prepare(tmp_path / "beside", songs)
    assert manifest["skipped"] == {"lies beside the genre folders, not in one": ["beside.mid"]} and len(spec.fields["label"].labels) == 3
    save(tmp_path / "flat" / "a.mid", piece(0))
    save(tmp_path / "flat" / "only" / "b.mid", piece(1))
    assert "label" not in prepare(tmp_path / "flat_out", tmp_path / "flat")[0].fields


def test_bad_files_are_named(songs, tmp_path, capsys):
    note = track((0, on(60)), (96, off(60)))
    bad = {"text.mid": b"hello", "nothing.mid": b"", "smpte.mid": file(1, -25 * 256 + 40, note), "silent.mid": file(1, 96, track()),
           "cut.mid": midi.write(piece(0), 120.0)[:300], "high.mid": file(1, 96, track((0, on(120)), (96, off(120)))),
           "drums.mid": file(1, 96, track((0, on(36, 90, 9)), (96, off(36, 9))))}
    for name, data in bad.items():
        (songs / "rock" / name).write_bytes(data)
    for name, data in {"zero.mid": file(0, 96, note), "two.mid": file(2, 96, note, note)}.items():
        (songs / "jazz" / name).write_bytes(data)
    _, read, manifest = prepare(tmp_path / "out", songs)
    assert (manifest["found"], manifest["kept"], manifest["skipped_count"]) == (19, 12, 7)
    reasons = {name.rsplit("/")[-1]: reason for reason, names in manifest["skipped"].items() for name in names}
    words = {"text.mid": "not a Standard MIDI File", "nothing.mid": "empty file", "smpte.mid": "SMPTE", "silent.mid": "holds no notes",
             "cut.mid": "cut short", "high.mid": "no notes that the rolls have a place for", "drums.mid": "no notes that the rolls have a place for"}
    assert reasons.keys() == words.keys() and all(words[name] in reason for name, reason in reasons.items())
    assert {"jazz/zero.mid", "jazz/two.mid"} <= set(read["train"]["source"]) and "skipped 1: cut short" in capsys.readouterr().out


def test_sources_without_a_usable_file(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.mid").write_bytes(file(1, -25 * 256 + 40, track((0, on(60)))))
    (tmp_path / "bad" / "b.txt").write_bytes(b"hello")
    with pytest.raises(UserError, match="empty holds no MIDI files to keep: it is empty"):
        prepare(tmp_path / "out", tmp_path / "empty")
    with pytest.raises(UserError, match="skipped 1: its time is counted in SMPTE frames.*a.mid.*skipped 1: not a Standard MIDI File"):
        prepare(tmp_path / "out", tmp_path / "bad")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "empty"]


@pytest.mark.parametrize("values, message", [
    ({"low": 60, "high": 60}, "--low=60 should be below --high=60"),
    ({"low": 60, "high": 70, "fold": True}, "--fold needs an octave"),
    ({"steps": 16, "hop": 17}, "--hop=17 is more than --steps=16"),
    ({"transpose": "1:3"}, "--transpose=1:3 should be FIRST:END"),
    ({"transpose": "x"}, "--transpose=x should be FIRST:END"),
    ({"transpose": "5:-5"}, "should be FIRST:END"),
    ({"low": 0, "high": 5}, "no notes that the rolls have a place for"),
])
def test_wrong_flags(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "out", save(tmp_path / "a.mid", piece(0)), **values)


def test_the_same_bytes_from_the_command_line(songs, tmp_path):
    """Whatever the number of workers; another seed, another split."""
    options = {"split": "train:0.5,test:0.5", "transpose": "-1:2", "hop": 16}
    first = prepare(tmp_path / "a" / "set", songs, workers=3, **options)[0]
    command = [sys.executable, "-m", "data_prep.midi", f"--source={songs}", f"--out={tmp_path / 'b' / 'set'}", "--workers=1",
               *(f"--{name}={value}" for name, value in options.items())]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    digests = [{path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / name / "set").iterdir()} for name in "ab"]
    assert digests[0] == digests[1]
    assert prepare(tmp_path / "c" / "set", songs, seed=1, **options)[0].digest != first.digest
    wrong = subprocess.run([*command, "--low=90"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2 and "--low=90 should be below --high=83" in wrong.stderr and "Traceback" not in wrong.stderr


# Real data


def test_real_chorales(data_dir, tmp_path):
    """Every piece in one split, the twins together, every note of a held-out piece in its windows."""
    with zipfile.ZipFile(data_dir / "midi" / "bach_chorales.zip") as archive:
        twins = {f"bach_chorales/bwv{name}.mid" for name in ("62.6", "274", "197.7-a", "398", "158.4", "279")}
        data = {name: archive.read(name) for name in sorted({*archive.namelist()[::12], *twins})}
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for name in data:
            archive.writestr(name, data[name])
    spec, read, manifest = prepare(tmp_path / "out", tmp_path / "some.zip", transpose="-2:3", split="train:0.6,validation:0.2,test:0.2")
    assert manifest["kept"] == len(data) and "label" not in spec.fields and spec.facts["steps_per_bar"] == 16 and spec.facts["tempo"] == 120
    sources = [set(got["source"]) for got in read.values()]
    assert sum(map(len, sources)) == len(set.union(*sources)) == len(data)
    same = [[name[len("bach_chorales/bwv"):-4] for name in group] for group in manifest["music"]["same_music"]]
    assert {("158.4", "279"), ("197.7-a", "398"), ("274", "62.6")} <= {tuple(group) for group in same}
    for name in sorted(set(read["test"]["source"]))[:3]:
        notes = midi.read(data[name]).notes
        steps = max(rolls.step(note.end, GRID) for note in notes)
        assert np.array_equal(together(read["test"], name, steps), rolls.from_notes(notes, GRID, 0, steps))


def test_real_games(data_dir, tmp_path):
    """The shortest files of each game, one of them damaged, as genres, with drums."""
    for folder in ("openttd", "simutrans"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        for path in sorted((data_dir / "midi" / folder).iterdir(), key=lambda path: path.stat().st_size)[:4]:
            (tmp_path / "in" / folder / path.name).write_bytes(path.read_bytes())
    broken = data_dir / "midi" / "simutrans" / "30-On-the-waterfront.mid"
    (tmp_path / "in" / "simutrans" / broken.name).write_bytes(broken.read_bytes())
    spec, read, manifest = prepare(tmp_path / "out", tmp_path / "in", drums=True, fold=True, split="train:0.5,test:0.5")
    assert spec.fields["label"].labels == ("openttd", "simutrans") and (manifest["found"], manifest["kept"]) == (9, 8)
    assert list(manifest["skipped"].values()) == [["simutrans/30-On-the-waterfront.mid"]]
    assert all(set(got["label"]) == {0, 1} for got in read.values())
    _, _, drums = rolls.parts(read["train"]["roll"], rolls.grid(spec.facts))
    assert 0.001 < (drums > 0).mean() < 0.2
