"""Piano rolls: the way from notes and back, and every figure against a count by hand, scikit-learn or NumPy's corrcoef."""

import numpy as np
import pytest
from midi_files import GRID, random_notes
from sklearn.metrics import f1_score

from vae_jax import rolls
from vae_jax.rolls import Note

VARIANTS = [GRID, GRID._replace(drums=True), GRID._replace(velocity=True, low=60, high=71), GRID._replace(drums=True, velocity=True, per_quarter=12)]


@pytest.mark.parametrize("grid", VARIANTS)
def test_notes_come_back(grid):
    rng = np.random.default_rng(0)
    for _ in range(40):
        notes = random_notes(rng, grid, 32)
        roll = rolls.from_notes(notes, grid, 0, 32)
        assert roll.shape == (32, rolls.columns(grid)) and roll.dtype == np.uint8 and notes
        assert rolls.to_notes(roll, grid) == notes
        if not grid.velocity:
            assert set(np.unique(roll)) <= {0, 255} and rolls.to_notes(roll > 0, grid) == notes


def test_layout():
    grid = GRID._replace(drums=True, velocity=True)
    roll = rolls.from_notes([Note(0.25, 1.0, 60, 100), Note(0.5, 0.75, 36, 7, True)], grid, 0, 8)
    expected = np.zeros((8, 48 + 48 + 47), np.uint8)
    expected[1:4, 60 - 36] = expected[1, 48 + 60 - 36] = 201
    expected[2, 96 + 36 - 35] = 15
    assert np.array_equal(roll, expected)
    assert [part.shape[-1] for part in rolls.parts(roll, grid)] == [48, 48, 47]


def test_facts_describe_the_grid():
    facts = {"low": 24, "high": 101, "steps_per_quarter": 4, "drums": 0, "velocity": 1, "fold": 1, "steps_per_bar": 12, "tempo": 90}
    assert rolls.grid(facts) == rolls.Grid(24, 101, 4, False, True, 90.0, 12, True) and rolls.columns(rolls.grid(facts)) == 156


@pytest.mark.parametrize("grid", VARIANTS)
def test_a_window_is_a_part_of_the_whole(grid):
    rng = np.random.default_rng(1)
    notes = random_notes(rng, grid, 64)
    whole = np.pad(rolls.from_notes(notes, grid, 0, 64), ((20, 20), (0, 0)))
    for start in range(-20, 60, 7):
        assert np.array_equal(rolls.from_notes(reversed(notes), grid, start, 24), whole[start + 20:start + 44])


def test_off_the_grid_to_the_nearest_step_and_never_lost():
    roll = rolls.from_notes([Note(0.12, 0.13, 60), Note(0.13, 0.36, 62), Note(1.0, 1.0, 64)], GRID, 0, 8)
    assert rolls.to_notes(roll, GRID) == [Note(0.0, 0.25, 60), Note(0.25, 0.5, 62), Note(1.0, 1.25, 64)]
    assert [np.flatnonzero(part).tolist() for part in rolls.parts(roll, GRID)[0][:, [24, 26, 28]].T] == [[0], [1], [4]]


def test_overlaps_of_a_pitch():
    """The later strike begins a note, the union sounds on."""
    assert rolls.to_notes(rolls.from_notes([Note(0, 2, 60), Note(1, 1.5, 60)], GRID, 0, 16), GRID) == [Note(0, 1, 60), Note(1, 2, 60)]


def test_held_without_struck_and_struck_without_held():
    roll = np.zeros((8, 96), np.uint8)
    roll[2:4, 5] = 255  # no strike
    roll[6, 48 + 7] = 255  # not held
    assert rolls.to_notes(roll, GRID) == [Note(0.5, 1.0, 41), Note(1.5, 1.75, 43)]
    tied = rolls.from_notes([Note(0, 3, 60)], GRID, 8, 8)
    assert rolls.to_notes(tied, GRID) == [Note(0, 1, 60)] and not tied[:, 48:].any()


def test_range():
    notes = [Note(0, 1, pitch) for pitch in (0, 35, 36, 83, 84, 127)]
    assert [note.pitch for note in rolls.to_notes(rolls.from_notes(notes, GRID, 0, 4), GRID)] == [36, 83]
    for low, high in ((36, 83), (60, 71)):
        grid = GRID._replace(low=low, high=high, fold=True)
        for pitch in range(128):
            moved = rolls.fit(pitch, grid)
            nearest = min((p for p in range(low, high + 1) if (p - pitch) % 12 == 0), key=lambda p: abs(p - pitch))
            assert moved == nearest


def some(grid, n=6, steps=32, seed=2):
    rng = np.random.default_rng(seed)
    return np.stack([rolls.from_notes(random_notes(rng, grid, steps), grid, 0, steps) for _ in range(n)])


@pytest.mark.parametrize("grid", VARIANTS)
def test_figures_against_counting(grid):
    made = some(grid)
    heard = [rolls.to_notes(roll, grid) for roll in made]
    pitched = [note for notes in heard for note in notes if not note.drum]
    quarters = len(made) * 32 / grid.per_quarter
    assert rolls.notes_per_quarter(made, grid) == pytest.approx(sum(map(len, heard)) / quarters)
    assert rolls.note_quarters(made, grid) == pytest.approx(np.mean([note.end - note.start for note in pitched]))
    assert rolls.held_share(made, grid) == pytest.approx(
        sum(note.end - note.start for note in pitched) * grid.per_quarter / (len(made) * 32 * rolls.pitches(grid)))
    expected = np.bincount([note.pitch % 12 for note in pitched], minlength=12) / len(pitched)
    assert np.allclose(rolls.pitch_classes(made, grid), expected)
    found = rolls.attributes(made.reshape(2, 3, *made.shape[1:]), grid)
    assert np.allclose(found["density"].ravel(), [len(notes) / (32 / grid.per_quarter) for notes in heard])
    assert np.allclose(found["register"].ravel(), [np.mean([note.pitch for note in notes if not note.drum]) for notes in heard])


@pytest.mark.parametrize("grid", VARIANTS)
def test_f1_against_scikit_learn(grid):
    truth, p = some(grid), rolls.pitches(grid)
    made = np.where(np.random.default_rng(3).random(truth.shape) < 0.2, np.roll(truth, 1, 1), truth)
    assert rolls.f1(truth, made, grid) == pytest.approx(f1_score(truth[..., :p].ravel() > 0, made[..., :p].ravel() > 0))
    assert rolls.onset_f1(truth, made, grid) == pytest.approx(f1_score(truth[..., p:].ravel() > 0, made[..., p:].ravel() > 0))
    assert 0.5 < rolls.f1(truth, made, grid) < 1 and rolls.f1(truth, truth, grid) == rolls.onset_f1(truth, truth, grid) == 1
    silence = np.zeros_like(truth)
    assert rolls.f1(truth, silence, grid) == 0 and rolls.f1(silence, silence, grid) == 1


def test_silence_has_figures():
    silence = np.zeros((2, 16, 96), np.uint8)
    assert rolls.notes_per_quarter(silence, GRID) == rolls.held_share(silence, GRID) == rolls.note_quarters(silence, GRID) == 0
    assert rolls.pitch_classes(silence, GRID).tolist() == [0] * 12 and rolls.to_notes(silence[0], GRID) == []
    found = rolls.attributes(silence, GRID)
    assert found["density"].tolist() == [0, 0] and np.isnan(found["register"]).all() and np.isnan(found["mode"]).all()


def test_distance():
    a, b = np.random.default_rng(4).dirichlet(np.ones(12), 2)
    assert rolls.distance(a, b) == pytest.approx(np.maximum(a - b, 0).sum()) and rolls.distance(a, a) == 0
    assert rolls.distance(np.eye(12)[0], np.eye(12)[5]) == 1


@pytest.mark.parametrize("grid", VARIANTS)
def test_played(grid):
    probability = np.random.default_rng(5).random((3, 16, rolls.columns(grid))).astype(np.float32)
    made = rolls.played(probability, 0.7, grid)
    held, struck, drums = rolls.parts(made, grid)
    loud = rolls.parts(probability >= 0.7, grid)
    assert np.array_equal(struck > 0, loud[1]) and np.array_equal(drums > 0, loud[2]) and np.array_equal(held > 0, loud[0] | loud[1])
    if grid.velocity:
        only = loud[0] & ~loud[1]
        assert np.array_equal(held[only], np.rint(255 * rolls.parts(probability, grid)[0][only]))
        assert all(abs(note.velocity - 127 * 0.85) < 127 * 0.16 for note in rolls.to_notes(made[0], grid))


@pytest.mark.parametrize("level", [0.02, 0.3, 0.9])
def test_the_threshold_gives_the_notes_of_the_truth(level):
    """Probabilities as a good model's: near 0 or 1, the truth being what one level makes of them."""
    rng, truth = np.random.default_rng(6), some(GRID, 20)
    logits = np.where(truth > 0, 2.0, -6.0) + rng.normal(0, 1.5, truth.shape)
    probability = (1 / (1 + np.exp(-logits))).astype(np.float32)
    wanted = rolls.notes_per_quarter(rolls.played(probability, level, GRID), GRID)
    chosen = rolls.threshold(probability, rolls.played(probability, level, GRID), GRID)
    found = rolls.notes_per_quarter(rolls.played(probability, chosen, GRID), GRID)
    assert abs(found - wanted) <= 0.02 * wanted


def test_the_threshold_is_among_those_that_are_best():
    rng, truth = np.random.default_rng(7), some(GRID, 8)
    probability = np.clip(0.25 * (truth > 0) + rng.beta(1, 30, truth.shape), 0, 1)
    wanted = rolls.notes_per_quarter(truth, GRID)
    off = {t: abs(rolls.notes_per_quarter(rolls.played(probability, t, GRID), GRID) - wanted) for t in 1 / (1 + np.exp(-rolls.LOGITS))}
    chosen = rolls.threshold(probability, truth, GRID)
    assert off[chosen] <= min(off.values()) + 0.02 * wanted


def test_mode_against_corrcoef():
    made = some(GRID, 5)
    for roll, mode in zip(made, rolls.attributes(made, GRID)["mode"]):
        lengths = np.zeros(12)
        for note in rolls.to_notes(roll, GRID):
            lengths[note.pitch % 12] += note.end - note.start
        fits = [[np.corrcoef(lengths, np.roll(profile, tonic))[0, 1] for tonic in range(12)] for profile in rolls.PROFILES]
        assert mode == pytest.approx(max(fits[0]) - max(fits[1]))


def test_mode_in_every_key():
    major, minor = (0, 2, 4, 5, 7, 9, 11, 12, 7, 4, 0, 7), (0, 2, 3, 5, 7, 8, 11, 12, 7, 3, 0, 7)
    for tonic in range(48, 60):
        made = np.stack([rolls.from_notes([Note(i, i + 1, tonic + d) for i, d in enumerate(scale)], GRID, 0, 48) for scale in (major, minor)])
        modes = rolls.attributes(made, GRID)["mode"]
        assert modes[0] > 0.1 and modes[1] < -0.1
        assert rolls.tonics(made, GRID).tolist() == [tonic % 12] * 2
    assert rolls.tonics(np.zeros_like(made), GRID).tolist() == [0, 0]  # silence
