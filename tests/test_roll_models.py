"""Models of rolls: what they see of a record and give back, the hierarchical family, and the figures that evaluation says of them."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.decomposition as decomposition
import toys

from vae_jax import assess_rolls, attribute_vectors, data, fronts, records, rolls, tasks
from vae_jax import mesh as meshes
from vae_jax import update as updates
from vae_jax.config import Config, Data, Eval, Optim, Run, UserError
from vae_jax.latents import pca
from vae_jax.layers.recurrent import Lstm
from vae_jax.models import rows
from vae_jax.models import vae as vae_models
from vae_jax.tasks import vae

PITCHES = toys.HIGH - toys.LOW + 1
FAMILIES = {"dense": {}, "conv": dict(family="conv", hidden=(4, 8)), "lstm": dict(family="lstm", hidden=(8,)),
            "hierarchical": dict(family="hierarchical", hidden=(8,), bar=8),
            "bars": dict(family="hierarchical", hidden=(6, 8), bar=8, autoregressive=True, condition="label"),
            "linear": dict(family="hierarchical", hidden=(6, 8), bar=8, shortcut=True, condition="label")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rolls") / "toy"
    toys.rolls(folder)
    return str(folder)


@pytest.fixture(scope="module")
def batch(folder):
    return {k: jnp.asarray(v) for k, v in data.Source(folder, "train").read(np.arange(16)).items()}


def make(folder, **model):
    config = Config(model=vae.Model(**{**dict(hidden=(12,), latent=3), **model}), data=Data(dir=folder, batch=16),
                    optim=Optim(lr=1e-2, decay_steps=100), run=Run(steps=100))
    return tasks.get(config, records.open_folder(folder)), config


def spec_of(steps, low, high, drums=0):
    facts = toys.GRID | {"low": low, "high": high, "drums": drums}
    return records.Spec("toy", {"roll": records.Field((steps, rolls.columns(rolls.grid(facts))), "uint8")}, {}, facts=facts)


@pytest.mark.parametrize("drums", [0, 1])
def test_cells_are_held_and_struck_and_go_back(drums):
    front = fronts.get(spec_of(8, 60, 71, drums), None)
    wide = 12 + 47 * drums
    assert front.kind == "roll" and front.shape == (8, wide, 2)
    roll = np.random.default_rng(0).integers(0, 256, (3, 8, 24 + 47 * drums)).astype(np.uint8)
    x = np.asarray(jax.jit(front.analyse)({"roll": roll}))
    np.testing.assert_allclose(x[:, :, :12, 0], roll[:, :, :12] / 255, rtol=1e-6)
    np.testing.assert_allclose(x[:, :, :12, 1], roll[:, :, 12:24] / 255, rtol=1e-6)
    for channel in range(2):  # a drum is as long as it is struck
        np.testing.assert_allclose(x[:, :, 12:, channel], roll[:, :, 24:] / 255, rtol=1e-6)
    np.testing.assert_allclose(front.columns(x), roll / 255, rtol=1e-6)
    np.testing.assert_array_equal(fronts.cells(roll, 12, np), np.rint(255 * x))


@pytest.mark.parametrize("steps, low, high, drums, cure", [
    (32, 24, 101, 0, "--steps=32 --high=103"), (30, 36, 83, 0, "--steps=32 --high=83"), (32, 49, 126, 0, "--steps=32 --low=47"),
    (32, 0, 127, 1, "--steps=32 --high=124")])
def test_a_roll_that_does_not_halve_is_told_which_size_does(steps, low, high, drums, cure):
    with pytest.raises(UserError, match="does not halve 2 times") as error:
        fronts.get(spec_of(steps, low, high, drums), None, 4)
    assert cure in str(error.value)
    again = dict(flag.removeprefix("--").split("=") for flag in cure.split())
    fronts.get(spec_of(int(again["steps"]), int(again.get("low", low)), int(again.get("high", high)), drums), None, 4)  # and it does


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_learns_and_keeps_its_contracts(folder, batch, name):
    task, config = make(folder, **FAMILIES[name])
    state = jax.device_put(jax.jit(lambda b: updates.init_state(task, config, b))(batch), meshes.replicated(meshes.make(1)))
    update, logs = updates.make_update(task, config, meshes.make(1)), []
    for _ in range(8):
        state, log = update(state, batch, ("train",))
        logs.append(float(log["loss"]))
    assert np.all(np.isfinite(logs)) and logs[-1] < logs[0]
    params, request = state.params, {"temperature": jnp.ones(5), "label": jnp.arange(5) % 2}
    made = jax.jit(task.sample)(params, {}, jax.random.key(1), request)
    assert {k: v.shape for k, v in made.items()} == {"roll/mean": (5, 16, 32), "roll/draw": (5, 16, 32)}
    assert set(np.unique(made["roll/draw"])) <= {0.0, 1.0} and 0 < float(made["roll/mean"].min()) <= float(made["roll/mean"].max()) < 1
    code, rebuilt = jax.jit(lambda p, b: tasks.rebuild(task, p, {}, b))(params, batch)
    assert code["mean"].shape == (16, 3) and rebuilt["image"].shape == (16, 16, PITCHES, 2)
    found = jax.jit(task.metrics)(params, {}, batch, jax.random.key(0))
    np.testing.assert_allclose(found["loss"], found["reconstruction"] + found["kl"], rtol=1e-5)


@pytest.mark.parametrize("model, sentence", [
    (dict(likelihood="gaussian"), "sound or do not"), (dict(binarize=True), "binarize=False"),
    (dict(family="hierarchical", bar=5), "divides 16"), (dict(family="hierarchical", bar=0), "divides 16"),
    (dict(autoregressive=True), "hierarchical"), (dict(family="lstm", shortcut=True, autoregressive=True), "one of them to False"),
    (dict(family="conv", hidden=(4,) * 5), "halve 5 times")])
def test_settings_that_do_not_fit_rolls_are_one_sentence(folder, model, sentence):
    with pytest.raises(UserError, match=sentence):
        make(folder, **model)


def test_the_peers_lstm_has_the_peers_parameters():
    """PyTorch's LSTM of 156 columns, 256 units, 20 numbers has 758,980, of which 2,048 are second biases that only add to the first."""
    from experiments import peers

    spec = spec_of(100, 24, 101)
    assert spec.fields["roll"].shape == (100, 156)
    batch = {"roll": jnp.zeros((2, 100, 156), jnp.uint8)}
    params, _ = jax.eval_shape(tasks.get(peers.get_config("lstm"), spec).init, jax.random.key(0), batch)
    lstm = lambda inputs: 4 * 256 * (inputs + 256) + 2 * 4 * 256
    assert sum(x.size for x in jax.tree.leaves(params)) == lstm(156) + 256 * 40 + 40 + lstm(20) + 256 * 156 + 156 - 2048


def test_rows_are_read_both_ways():
    """Against single LSTMs with the same weights; the second layer reads both directions of the first, in step."""
    import flax.linen as nn

    class Reader(nn.Module):
        @nn.compact
        def __call__(self, x):
            return rows.both_ways(x, (4, 5), jnp.float32)

    x = jax.random.normal(jax.random.key(0), (2, 7, 3))
    params = Reader().init(jax.random.key(1), x)["params"]
    lstm = lambda i, y: Lstm((4, 5)[i // 2]).apply({"params": params[f"Lstm_{i}"]}, y)
    first = jnp.concatenate([lstm(0, x), lstm(1, x[:, ::-1])[:, ::-1]], -1)
    expected = jnp.concatenate([lstm(2, first)[:, -1], lstm(3, first[:, ::-1])[:, -1]], -1)
    np.testing.assert_allclose(Reader().apply({"params": params}, x), expected, atol=1e-6)


def test_bars_are_read_alone_and_then_in_turn():
    """Against one bar at a time and their results on end, with the same weights."""
    x, reader = jax.random.normal(jax.random.key(0), (2, 12, 3)), rows.BarEncoder((5,), 4)
    params = reader.init(jax.random.key(1), x)["params"]
    lstm = lambda i, y: Lstm(5).apply({"params": params[f"Lstm_{i}"]}, y)
    both = lambda i, y: jnp.concatenate([lstm(i, y)[:, -1], lstm(i + 1, y[:, ::-1])[:, -1]], -1)
    bars = jnp.stack([both(0, x[:, start:start + 4]) for start in (0, 4, 8)], 1)
    np.testing.assert_allclose(reader.apply({"params": params}, x), both(2, bars), atol=1e-6)


@pytest.mark.parametrize("family", ["dense", "lstm", "hierarchical"])
def test_the_shortcut_is_one_linear_map_beside_everything(family):
    """With all else silenced every number of the code is a sum over all cells, and every cell one over all numbers of the code."""
    def alone(model, given):
        shapes = jax.eval_shape(model.init, jax.random.key(0), given)["params"]
        weights = jax.random.normal(jax.random.key(1), shapes["shortcut"]["kernel"].shape)
        return {"params": jax.tree.map(lambda x: jnp.zeros(x.shape), shapes) | {"shortcut": shapes["shortcut"] | {"kernel": weights}}}, weights

    encoder = vae_models.Encoder(family, (8,), 6, shortcut=True, bar=4)
    decoder = vae_models.Decoder(family, (8,), (12, 5, 2), shortcut=True, bar=4)
    x, z = jax.random.normal(jax.random.key(2), (3, 12, 5, 2)), jax.random.normal(jax.random.key(3), (3, 6))
    there, weights = alone(encoder, x)
    moments = jnp.concatenate(jax.jit(encoder.apply)(there, x), -1)
    np.testing.assert_allclose(moments, np.clip((x.reshape(3, -1) - vae_models.GREY) @ weights, [-np.inf] * 6 + [-12] * 6, [np.inf] * 6 + [12] * 6),
                               atol=1e-4)
    back, weights = alone(decoder, z)
    back["params"]["shortcut"]["bias"] = jnp.zeros(120)
    np.testing.assert_allclose(jax.jit(decoder.apply)(back, z)["x"].reshape(3, -1), z @ weights, atol=1e-4)


def test_bars_hear_of_each_other_through_the_conductor_alone():
    decoder = vae_models.Decoder("hierarchical", (8,), (12, 5, 2), bar=4)
    z = jax.random.normal(jax.random.key(0), (3, 6))
    params = decoder.init(jax.random.key(1), z)["params"]
    y = decoder.apply({"params": params}, z)["x"]
    states = Lstm(8).apply({"params": params["rows"]["conductor"]}, jnp.broadcast_to(z[:, None], (3, 3, 6)))
    alone = rows.RowDecoder((8,), 5, 2, False, 4)
    for bar in range(3):
        own = alone.apply({"params": params["rows"]["rows"]}, states[:, bar]).reshape(3, 4, 5, 2)
        np.testing.assert_allclose(y[:, 4 * bar:4 * bar + 4], own, atol=1e-5)
    assert np.abs(y[:, :4] - y[:, 4:8]).max() > 1e-3  # the conductor moves on


def test_autoregressive_bars_feed_back_what_they_were_taught(folder, batch):
    """Decoding on its own rows equals the teacher-forced pass over them; a row hears its own bar's earlier rows and no other bar's."""
    model = dict(family="hierarchical", hidden=(8,), bar=8, autoregressive=True)
    task, _ = make(folder, **model)
    params, _ = task.init(jax.random.key(0), batch)
    made = jax.jit(task.sample)(params, {}, jax.random.key(3), {"temperature": jnp.zeros(5)})  # the code is known, 0
    decoder = vae_models.Decoder("hierarchical", (8,), (16, PITCHES, 2), autoregressive=True, bar=8)
    taught = jax.jit(decoder.apply)
    drawn = fronts.cells(made["roll/draw"], PITCHES)
    outputs = taught(params["decoder"], jnp.zeros((5, 3)), None, drawn)["x"]
    np.testing.assert_allclose(made["roll/mean"], task.front.columns(jax.nn.sigmoid(outputs)), atol=1e-5)
    changed = taught(params["decoder"], jnp.zeros((5, 3)), None, drawn.at[:, 3].set(1 - drawn[:, 3]))["x"]
    np.testing.assert_allclose(changed[:, [0, 1, 2, *range(8, 16)]], outputs[:, [0, 1, 2, *range(8, 16)]], atol=1e-6)
    assert np.all(np.abs(changed[:, 4:8] - outputs[:, 4:8]).max((0, 2, 3)) > 1e-5)


def test_an_autoregressive_decoder_reads_whole_notes_when_it_rebuilds(folder, batch):
    """`decode` feeds back the likelier of sounding and silence: the same as a teacher-forced pass over the rounded rows."""
    task, _ = make(folder, family="lstm", hidden=(8,), autoregressive=True)
    params, _ = task.init(jax.random.key(0), batch)
    z = 3 * jax.random.normal(jax.random.key(1), (4, 3))
    made = jax.jit(lambda p, z: task.decode(p, {}, z))(params, z)["image"]
    taught = vae_models.Decoder("lstm", (8,), (16, PITCHES, 2), autoregressive=True).apply(params["decoder"], z, None, jnp.round(made))
    np.testing.assert_allclose(made, jax.nn.sigmoid(taught["x"]), atol=1e-5)


@pytest.fixture(scope="module")
def session_of(folder, tmp_path_factory):
    """A run of a model whose code is the roll itself and whose decoder gives it back, blurred: `louder` adds probability everywhere."""
    spec = records.open_folder(folder)
    front = fronts.get(spec, None)

    def build(louder=0.0, workdir=None, **settings):
        task = types.SimpleNamespace(
            front=front, condition=None, encode=lambda p, v, b: {"mean": front.analyse(b).reshape(len(b["roll"]), -1)},
            decode=lambda p, v, code, c=None: {"image": 0.6 * code.reshape(-1, *front.shape) + 0.2 + louder * jnp.sin(1e3 * code.cumsum(-1)
                                                                                                 ).reshape(-1, *front.shape) ** 2},
            sample=lambda p, v, key, r: {"roll/mean": jnp.tile(toys.tunes(2)[:1] / 255.0, (len(r["temperature"]), 1, 1))})
        config = Config(model=types.SimpleNamespace(autoregressive=False), data=Data(dir=folder, batch=16, **settings), eval=Eval(batch=16))
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
        return types.SimpleNamespace(task=task, config=config, spec=spec, params={}, variables={}, mesh=mesh, step=7,
                                     workdir=workdir or tmp_path_factory.mktemp("run"))

    return build


def opened(run):
    return {role: data.open_source(run.config.data, role) for role in ("train", "test")}


def test_the_marginal_baseline_counts_cells_of_the_training_split(session_of, folder):
    run = session_of()
    train, test = (data.Source(folder, role).read(np.arange(n))["roll"] > 0 for role, n in (("train", 96), ("test", 24)))
    p = (train.sum(0) + 0.5) / 97
    expected = -(np.where(test, np.log(p), np.log(1 - p))).sum((1, 2))
    found = assess_rolls.marginal(run, opened(run))
    assert found["eval/test/marginal_loss"] == pytest.approx(expected.mean(), rel=1e-9)
    assert found["eval/test/marginal_loss_error"] == pytest.approx(expected.std(ddof=1) / 24**0.5, rel=1e-9)


def test_the_marginal_baseline_leaves_transposed_windows_out(session_of, monkeypatch):
    class Windows:
        roll = toys.tunes(24)
        __len__ = lambda self: len(self.roll)
        read = lambda self, rows: {"roll": self.roll[rows], "transposed": np.array([0, 0, 3, 3])[rows // 6]}

    class Own(Windows):
        roll = Windows.roll[:12]

    monkeypatch.setattr(assess_rolls, "CHUNK", 6)  # of which the last two hold no window in its own key
    run = session_of()
    assert assess_rolls.marginal(run, {"train": Windows(), "test": Own()}) == assess_rolls.marginal(run, {"train": Own(), "test": Own()})


def test_the_nearest_training_window_and_principal_components_stand_beside_a_model(session_of, folder):
    run = session_of()
    grid = rolls.grid(toys.GRID)
    train, test = (data.Source(folder, role).read(np.arange(n))["roll"] for role, n in (("train", 96), ("test", 24)))
    held = [rolls.parts(x, grid)[0].reshape(len(x), -1) > 0 for x in (train, test)]
    pairs = np.array([[2 * (a & b).sum() / (a.sum() + b.sum()) for a in held[0]] for b in held[1]])
    chosen = train[pairs.argmax(1)]
    found = assess_rolls.baselines(run, opened(run), pca.fit(fronts.cells(train, PITCHES, np), 2))
    np.testing.assert_array_equal(train[assess_rolls.nearest(test, train, grid)], chosen)
    assert found["eval/test/neighbour_held_f1"] == rolls.f1(test, chosen, grid)
    assert found["eval/test/neighbour_onset_f1"] == rolls.onset_f1(test, chosen, grid)
    flat = [np.concatenate([rolls.parts(x, grid)[i].reshape(len(x), -1) for i in (0, 1)], 1) / 255.0 for x in (train, test)]
    linear = decomposition.PCA(2, svd_solver="full").fit(flat[0])
    made = [linear.inverse_transform(linear.transform(x)).reshape(len(x), 2, -1, rolls.pitches(grid)).transpose(0, 2, 1, 3) for x in flat]
    made = [np.clip(x, 0, 1).reshape(*x.shape[:2], -1) for x in made]
    played = rolls.played(made[1], rolls.threshold(made[0], train, grid), grid)  # there is no validation split here
    assert found["eval/test/pca_2_held_f1"] == pytest.approx(rolls.f1(test, played, grid), abs=0.02)
    assert found["eval/test/pca_2_onset_f1"] == pytest.approx(rolls.onset_f1(test, played, grid), abs=0.02)


def test_figures_of_a_model_that_knows_the_notes(session_of):
    """Its reconstructions are exact at any threshold between what sounds and what does not; its samples are one tune."""
    run = session_of()
    found = assess_rolls.figures(run, opened(run))
    assert found["eval/test/held_f1"] == found["eval/test/onset_f1"] == found["eval/test/rebuilt_density"] == 1.0
    assert 0.2 < found["eval/test/threshold"] <= 0.8
    assert found["eval/test/rebuilt_pitch_distance"] == 0 and found["eval/test/rebuilt_note_quarters"] == found["eval/test/note_quarters"]
    grid = rolls.grid(toys.GRID)
    tune, truth = toys.tunes(2)[:1], data.open_source(run.config.data, "test").read(np.arange(24))["roll"]
    assert found["eval/test/sample_density"] == pytest.approx(rolls.notes_per_quarter(tune, grid) / rolls.notes_per_quarter(truth, grid))
    assert found["eval/test/sample_pitch_distance"] == pytest.approx(
        0.5 * np.abs(rolls.pitch_classes(tune, grid) - rolls.pitch_classes(truth, grid)).sum())
    assert found["eval/test/sample_note_quarters"] == pytest.approx(1.0)  # a slow tune: quarters
    taught = data.open_source(run.config.data, "train").read(np.arange(96))["roll"]
    assert found["eval/test/sample_seen_pitch_distance"] == pytest.approx(
        0.5 * np.abs(rolls.pitch_classes(tune, grid) - rolls.pitch_classes(taught, grid)).sum())


def test_the_way_to_major_is_fitted_and_taken_by_tonic(session_of, folder, monkeypatch):
    run, grid = session_of(), rolls.grid(toys.GRID)
    source = data.open_source(run.config.data, "train")
    monkeypatch.setattr(attribute_vectors, "LEAST", 1)  # five windows of a tonic will do
    found, roll = attribute_vectors.fit(run, source), source.read(np.arange(96))["roll"]
    code, tonics, values = fronts.cells(roll, PITCHES, np).reshape(96, -1) / 255, rolls.tonics(roll, grid), rolls.attributes(roll, grid)
    assert found["density"].shape == (1, code.shape[1]) and found["mode"].shape == (12, code.shape[1])
    fitted = 0
    for way, chosen in [(found["register"][0], np.full(96, True)), *((found["mode"][g], tonics == g) for g in range(12))]:
        own = values["register" if chosen.all() else "mode"][chosen]
        expected = np.zeros(code.shape[1])
        if len(own) >= 5 and np.quantile(own, 0.2) < np.quantile(own, 0.8):
            expected = code[chosen][own >= np.quantile(own, 0.8)].mean(0) - code[chosen][own <= np.quantile(own, 0.2)].mean(0)
            fitted += 1
        np.testing.assert_allclose(way, expected, atol=1e-5)
    assert fitted > 2  # more than register and one tonic
    np.testing.assert_array_equal(attribute_vectors.along(found["mode"], roll, grid), found["mode"][tonics])
    np.testing.assert_array_equal(attribute_vectors.along(found["density"], roll[:2], grid), found["density"][[0, 0]])


def test_the_threshold_is_kept_for_its_checkpoint_and_chosen_on_validation(session_of, folder):
    run = session_of(louder=0.3, validation="validation")
    first = assess_rolls.threshold(run)
    stored = json.loads((run.workdir / "threshold.json").read_text())
    assert stored["step"] == 7 and stored["threshold"] == first and stored["split"] == "validation" and stored["windows"] == 24
    counts = stored["notes_per_quarter"]
    assert counts["rebuilt"] == pytest.approx(counts["data"], rel=0.1)
    (run.workdir / "threshold.json").write_text(json.dumps(stored | {"threshold": 0.123}))
    assert assess_rolls.threshold(run) == 0.123  # as it stands there
    run.step = 8
    assert assess_rolls.threshold(run) == first  # of another checkpoint: chosen anew
    (run.workdir / "threshold.json").write_text("{")
    assert assess_rolls.threshold(run) == first
    run.step, run.config.data = 9, dataclasses.replace(run.config.data, dir=folder + "_gone")
    with pytest.raises(UserError, match="the probability from which a note sounds is chosen on the validation split"):
        assess_rolls.threshold(run)


def test_other_models_have_no_figures_of_rolls():
    assert assess_rolls.figures(types.SimpleNamespace(task=types.SimpleNamespace(front=None)), {}) == {}
