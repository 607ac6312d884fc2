"""The verbs on rolls, as typed: evaluation, samples, reconstructions of windows and of files, interpolation, attributes, and their mistakes."""

import json
import types

import launch
import numpy as np
import pytest
import soundfile
import toys
from PIL import Image

from vae_jax import fronts, records, rolls, scores
from vae_jax.media import midi, piano_rolls

GRID = rolls.grid(toys.GRID)
CONFIG = '''
from vae_jax.config import Config, Data, Eval, Optim, Run
from vae_jax.tasks import vae

def get_config():
    return Config(name="tunes", model=vae.Model(hidden=(64,), latent=16, beta=0.2, condition={condition!r}),
        data=Data(dir={data!r}, validation="validation", batch=32), optim=Optim(lr=5e-3), eval=Eval(every=250, batch=24),
        run=Run(steps={steps}, log_every=50, save_every={steps}, compile_cache={cache!r}))
'''


def verb(name, *flags):
    found = launch.run(name, *flags)
    assert found.returncode == 0 and "Traceback" not in found.stderr, found.stderr
    return found.stdout


def refused(*flags):
    """What is said of a mistake."""
    found = launch.run(*flags)
    assert found.returncode == 2 and "Traceback" not in found.stderr and found.stderr.startswith("error: "), (found.returncode, found.stderr)
    return found.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory, quickly_compiled):
    folder = tmp_path_factory.mktemp("verbs")
    toys.rolls(folder / "data", {"train": 960, "validation": 24, "test": 24})
    for run, condition, steps in (("run", "", 500), ("told", "label", 20)):
        (folder / "config.py").write_text(CONFIG.format(data=str(folder / "data"), cache=str(folder / "cache"), condition=condition, steps=steps))
        verb("train", f"--config={folder / 'config.py'}", f"--workdir={folder / run}")
    (folder / "song.mid").write_bytes(midi.write(song(), 96.0))
    return folder


def song():
    """Five bars of two quarters: the first tune of the test split twice, then half of it, an octave of it outside the model's range."""
    notes = rolls.to_notes(toys.tunes(24, seed=2)[0], GRID)
    later = [note._replace(start=note.start + 4 * k, end=note.end + 4 * k) for k in range(3) for note in notes]
    return [note for note in later if note.end <= 10] + [rolls.Note(0.0, 1.0, 30, 80, False)]


@pytest.fixture(scope="module")
def figures(trained):
    out = verb("evaluate", f"--workdir={trained / 'run'}")
    assert "eval/test/held_f1" in out
    return json.loads((trained / "run" / "evaluation.json").read_text())["results"]


def test_evaluate_says_what_is_heard(trained, figures):
    assert figures["eval/test/held_f1"] > 0.7 and figures["eval/test/loss"] < figures["eval/test/marginal_loss"]
    assert figures["eval/validation/loss"] and figures["eval/test/rebuilt_density"] == pytest.approx(1, abs=0.25)
    stored = json.loads((trained / "run" / "threshold.json").read_text())
    assert stored["threshold"] == figures["eval/test/threshold"] and stored["split"] == "validation"
    assert 0 <= figures["eval/test/sample_pitch_distance"] <= 1 and figures["eval/test/active_units"] >= 2


def played(path):
    """Notes of a file, and seconds and loudest sample of the wav beside it."""
    wave, rate = soundfile.read(f"{path}.wav")
    return midi.read(f"{path}.mid"), len(wave) / rate, np.abs(wave).max()


def test_sample_writes_what_is_played(trained, figures):
    out = verb("sample", f"--workdir={trained / 'run'}", "--count=6", "--label=quick", "--tempo=60", "--program=19")
    sheet = out.split()[-1]
    arrays = np.load(sheet.replace(".png", ".npz"))
    assert arrays["roll"].shape == (6, 16, 32) and arrays["roll"].dtype == np.uint8
    np.testing.assert_array_equal(arrays["roll"], rolls.played(arrays["mean"], figures["eval/test/threshold"], GRID))
    loudest = 0.0
    for i, roll in enumerate(arrays["roll"]):
        piece, seconds, loud = played(f"{sheet[:-4]}/{i:03d}")
        notes = rolls.to_notes(roll, GRID)
        assert [note[:3] for note in piece.notes] == [note[:3] for note in sorted(notes)] and piece.programs == {0: 19}
        assert piece.tempos[0][1] == pytest.approx(60) and seconds == pytest.approx(max(note.end for note in notes) + 0.5, abs=0.01)
        loudest = max(loudest, loud)
    assert loudest == pytest.approx(0.9, abs=1e-3)
    quick = rolls.notes_per_quarter(toys.tunes(24, seed=2)[1::2], GRID)
    assert rolls.notes_per_quarter(arrays["roll"], GRID) == pytest.approx(quick, rel=0.35)
    assert len(np.unique(np.asarray(Image.open(sheet)).reshape(-1, 3), axis=0)) > 3


def test_a_conditional_model_draws_every_class(trained):
    out = verb("sample", f"--workdir={trained / 'told'}", "--count=4", "--temperature=0.5")
    assert np.load(out.split()[-1].replace(".png", ".npz"))["roll"].shape == (4, 16, 32)
    folder = f"--workdir={trained / 'told'}"
    assert "told one of slow, quick" in refused("reconstruct", folder, f"--midi={trained / 'song.mid'}")
    assert "midi-song-model.mid" in verb("reconstruct", folder, f"--midi={trained / 'song.mid'}", "--condition=slow")


def test_reconstruct_of_windows(trained, figures):
    out = verb("reconstruct", f"--workdir={trained / 'run'}", "--count=24")
    arrays = np.load(out.split()[-1].replace(".png", ".npz"))
    np.testing.assert_array_equal(arrays["original"], toys.tunes(24, seed=2))
    assert f"F1 of held cells {rolls.f1(arrays['original'], arrays['reconstruction'], GRID):.3f}" in out
    assert rolls.f1(arrays["original"], arrays["reconstruction"], GRID) == pytest.approx(figures["eval/test/held_f1"])
    folder = trained / "run" / "reconstructions" / "tunes-test"
    assert len(list(folder.glob("*.mid"))) == len(list(folder.glob("*.wav"))) == 32
    assert played(folder / "003-original")[0].notes == sorted(rolls.to_notes(arrays["original"][3], GRID))
    other = trained / "other"
    toys.rolls(other, {"train": 3, "test": 3})
    out = verb("reconstruct", f"--workdir={trained / 'run'}", f"--data={other}", "--split=train")
    assert "3 windows" in out and "held-out (test, 24 windows)" in out
    toys.rolls(trained / "shifted", {"train": 3}, low=61, high=76)
    assert "--low=60 --high=75" in refused("reconstruct", f"--workdir={trained / 'run'}", f"--data={trained / 'shifted'}", "--split=train")


def test_reconstruct_takes_any_midi_file(trained):
    out = verb("reconstruct", f"--workdir={trained / 'run'}", f"--midi={trained / 'song.mid'}")
    assert "in 3 windows, 1 of" in out and "held-out (test, 24 windows)" in out
    folder = trained / "run" / "reconstructions"
    original, seconds, _ = played(folder / "midi-song-original")
    assert original.notes == sorted(note for note in song() if note.pitch >= toys.LOW) and original.tempos[0][1] == pytest.approx(96)
    made, again, _ = played(folder / "midi-song-model")
    assert made.notes and max(note.end for note in made.notes) <= 10 and seconds == pytest.approx(again, abs=3)
    assert Image.open(folder / "midi-song.png").size[0] > 200


def test_interpolate_between_files_and_rows(trained):
    folder = trained / "run" / "interpolations"
    (folder / "song-to-5").mkdir(parents=True)
    (folder / "song-to-5" / "008.mid").write_bytes(b"of an earlier call, with more steps")
    ends = f"--from={trained / 'song.mid'}", "--to=5", "--count=4"
    refused("interpolate", f"--workdir={trained / 'run'}", *ends, "--soundfont=gone.sf2")
    assert (folder / "song-to-5" / "008.mid").exists()
    out = verb("interpolate", f"--workdir={trained / 'run'}", *ends)
    arrays = np.load(folder / "song-to-5.npz")
    assert arrays["roll"].shape == (4, 16, 32) and arrays["code"].shape == (4, 16)
    a, *between, b = arrays["code"].astype(np.float64)
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    for t, code in zip((1 / 3, 2 / 3), between):
        np.testing.assert_allclose(code, (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle), atol=1e-4)
    piece, _, _ = played(folder / "song-to-5")
    whole = rolls.to_notes(np.concatenate(arrays["roll"]), GRID)
    assert [note[:3] for note in piece.notes] == [note[:3] for note in sorted(whole)]
    assert len(list((folder / "song-to-5").glob("*.mid"))) == 4 and "F1 with the first" in out
    rebuilt = np.load(trained / "run" / "reconstructions" / "tunes-test.npz") if (trained / "run/reconstructions/tunes-test.npz").exists() else None
    if rebuilt is not None and len(rebuilt["reconstruction"]) == 24:
        np.testing.assert_array_equal(arrays["roll"][-1], rebuilt["reconstruction"][5])


def test_attributes_move_what_they_are_named_after(trained):
    out = verb("attributes", f"--workdir={trained / 'run'}")
    measured = json.loads((trained / "run" / "attributes.json").read_text())
    vectors = np.load(trained / "run" / "attributes.npz")
    assert set(vectors.files) == {"density", "register", "mode"} and measured["windows"] == 24 and measured["split"] == "test"
    for name in ("density", "register"):
        change, error = measured["change"][name][name]
        assert change > 3 * error and [measured["moved"][name][a][name] for a in ("-1", "+0", "+1")] == sorted(
            measured["moved"][name][a][name] for a in ("-1", "+0", "+1"))
        assert f"{change:+.3g} ({error:.2g})" in out
    before = (trained / "run" / "attributes.npz").read_bytes()
    out = verb("attributes", f"--workdir={trained / 'run'}", f"--midi={trained / 'song.mid'}", "--attribute=density", "--amount=0.5")
    assert (trained / "run" / "attributes.npz").read_bytes() == before
    folder = trained / "run" / "attributes"
    assert sorted(path.name for path in folder.iterdir()) == ["song+0.mid", "song+0.wav", "song-density+0.5.mid", "song-density+0.5.wav", "song.png"]
    assert "song-density+0.5" in out and played(folder / "song-density+0.5")[0].notes


def test_report_shows_and_plays_rolls(trained, figures):
    verb("attributes", f"--workdir={trained / 'run'}")
    verb("report", f"--workdir={trained / 'run'}")
    folder = trained / "run" / "report"
    page, numbers = (folder / "index.html").read_text(), json.loads((folder / "numbers.json").read_text())
    for name in ("Reconstructions", "Prior samples", "Attribute vectors", "Map of the latent space", "Interpolation", "One dimension at a time",
                 "KL by dimension", "Training"):
        assert f"<h2>{name}</h2>" in page, name
    assert numbers["reconstructions"]["F1 of held cells"] == pytest.approx(figures["eval/test/held_f1"])
    assert numbers["samples"]["table"]["notes a quarter"]["data"] == pytest.approx(figures["eval/test/notes_per_quarter"])
    assert numbers["samples"]["table"]["pitch classes"]["data"] == 0
    measured = json.loads((trained / "run" / "attributes.json").read_text())
    assert numbers["attributes"]["table"]["register"]["+1"] == measured["moved"]["register"]["+1"]["register"]
    players = [name for name in folder.glob("*.wav")]
    assert len(players) == 15 and all(path.with_suffix(".mid").exists() and path.name in page for path in players)
    piece, seconds, _ = played(folder / "window-0-original")
    assert [note[:3] for note in piece.notes] == [note[:3] for note in sorted(rolls.to_notes(toys.tunes(24, seed=2)[0], GRID))]


JUDGE = '''
from vae_jax.config import Config, Data, Eval, Optim, Run
from vae_jax.tasks import classifier

def get_config():
    return Config(name="judge", task="classifier", model=classifier.Model(channels=(8,), hidden=16), data=Data(dir={data!r}, batch=32),
        optim=Optim(lr=3e-3), eval=Eval(every=60, batch=24), run=Run(steps=60, save_every=60, compile_cache={cache!r}))
'''


def test_a_judge_tells_what_is_played_apart(trained):
    (trained / "judge.py").write_text(JUDGE.format(data=str(trained / "data"), cache=str(trained / "cache")))
    verb("train", f"--config={trained / 'judge.py'}", f"--workdir={trained / 'judge'}")
    verb("evaluate", f"--workdir={trained / 'run'}", f"--judge={trained / 'judge'}")
    found = json.loads((trained / "run" / "evaluation.json").read_text())["results"]
    assert found["judge/accuracy"] == 1 and found["judge/classes"] == 2
    assert found["judge/class_spread0.5_agreement"] > 0.8  # near the mean code of a class its tunes are heard
    assert 0 < found["judge/nearest"] < 3 and 0 < found["judge/diversity"] < 3
    verb("evaluate", f"--workdir={trained / 'told'}", f"--judge={trained / 'judge'}")
    assert "judge/agreement_least" in json.loads((trained / "told" / "evaluation.json").read_text())["results"]


def test_export_compares_itself(trained):
    out = verb("export", f"--workdir={trained / 'run'}", f"--out={trained / 'export'}")
    about = json.loads((trained / "export" / "manifest.json").read_text())
    assert about["rolls"] == toys.GRID and "rate" not in about, out
    assert about["functions"]["encode"]["inputs"]["roll"] == {"shape": ["b", 16, 32], "dtype": "uint8"}
    assert about["functions"]["sample"]["outputs"]["roll/draw"]["shape"] == ["b", 16, 32]


def test_mistakes_are_one_sentence(trained, tmp_path):
    run, song_flag = f"--workdir={trained / 'run'}", f"--midi={trained / 'song.mid'}"
    (tmp_path / "text.mid").write_text("no music")
    (tmp_path / "cut.mid").write_bytes((trained / "song.mid").read_bytes()[:60])
    (tmp_path / "low.mid").write_bytes(midi.write([rolls.Note(0.0, 1.0, 30, 80, False)], 120.0))
    (tmp_path / "slow.mid").write_bytes(midi.write([rolls.Note(0.0, 300.0, 60, 80, False)], 6.0))
    for name, sentence in (("text", "not a Standard MIDI File"), ("slow", "lasts 50 minutes at 6 quarter notes a minute"), ("cut", "damaged"),
                           ("low", "knows pitches 60 to 75"), ("gone", "cannot be read")):
        assert sentence in refused("reconstruct", run, f"--midi={tmp_path / name}.mid"), name
    for flags, sentence in (
            (("sample", "--tempo=nan"), "finite"), (("sample", "--soundfont=gone.sf2"), "SoundFont"), (("sample", "--seconds=3"), "wave"),
            (("sample", "--label=jazz"), "slow, quick"), (("reconstruct", "--wav=a.wav"), "--midi"), (("reconstruct", "--condition=slow"), "--midi"),
            (("reconstruct", song_flag, "--split=test"), "leave --data and --split out"), (("interpolate", "--from=3"), "both ends"),
            (("interpolate", "--from=3", "--to=24"), "rows 0 to 23"), (("interpolate", "--from=-1", "--to=2"), "cannot be read"),
            (("interpolate", "--from=²", "--to=2"), "cannot be read"),
            (("interpolate", "--from=1", "--to=2", "--condition=slow"), "told no class"), (("attributes", "--amount=1"), "--midi"),
            (("attributes", song_flag, "--attribute=mood"), "density, register, mode"), (("attributes", song_flag, "--amount=nan"), "finite")):
        assert sentence in refused(flags[0], run, *flags[1:]), flags
    assert not list((trained / "run").rglob("*.partial"))


def test_other_models_refuse_music(tmp_path, quickly_compiled):
    data = toys.pictures(tmp_path / "pictures")
    verb("train", f"--config={launch.write_config(tmp_path, data, 3)}", f"--workdir={tmp_path / 'run'}")
    run = f"--workdir={tmp_path / 'run'}"
    for flags in (("interpolate", "--from=1", "--to=2"), ("attributes",), ("sample", "--tempo=90"), ("reconstruct", "--midi=song.mid")):
        assert "models of rolls" in refused(flags[0], run, *flags[1:]), flags


def test_windows_of_a_file_begin_on_bar_lines_and_join_again(tmp_path):
    """Bars of three quarters in windows of four: each begins on a bar line, so they overlap, and what they share is taken once."""
    import mido

    notes = [rolls.Note(0.5 * i, 0.5 * i + 0.5, 60 + i % 5, 80, False) for i in range(18)]
    (tmp_path / "waltz.mid").write_bytes(midi.write(notes, 120.0))
    file = mido.MidiFile(tmp_path / "waltz.mid")
    file.tracks[0].insert(0, mido.MetaMessage("time_signature", numerator=3, denominator=4))
    file.save(tmp_path / "waltz.mid")
    spec = records.Spec("toy", {"roll": records.Field((16, 32), "uint8")}, {}, facts=toys.GRID)
    run = types.SimpleNamespace(spec=spec, task=types.SimpleNamespace(front=fronts.get(spec, None)))
    score = scores.read(run, str(tmp_path / "waltz.mid"), "midi")
    assert score.starts.tolist() == [0, 12, 24] and score.end == 36 and score.tempo == pytest.approx(120) and score.notes == score.kept == 18
    assert rolls.to_notes(scores.join(score.windows, score), GRID) == notes


def test_a_picture_of_a_roll():
    """Time to the right, high notes above; what is struck is brighter than what is held, and half a probability half as bright."""
    roll = np.zeros((1, 16, 32), np.uint8)
    roll[0, 4:8, 15] = roll[0, 4, 31] = 255  # the highest pitch
    cells = fronts.cells(roll, 16, np)
    picture = piano_rolls.show(cells, GRID)[0].astype(int)
    assert picture.shape == (16, 16, 3)
    assert picture[0, 4].tolist() == list(piano_rolls.STRUCK) and picture[0, 5:8].tolist() == [list(piano_rolls.HELD)] * 3
    background = np.delete(picture.reshape(-1, 3), [4, 5, 6, 7], 0)
    assert background.max() <= max(piano_rolls.PAPER) + 2 * piano_rolls.LIGHTER
    half = piano_rolls.show(cells / 510, GRID)[0].astype(int)
    assert np.abs(2 * half[0, 5] - np.array(piano_rolls.HELD) - np.array(piano_rolls.PAPER)).max() <= 2
    long = piano_rolls.lines(np.concatenate([cells[0]] * 20), GRID)
    assert long.shape == (3, 128, 16, 2) and not long[2, 64:].any()
