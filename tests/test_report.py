"""The report of a run, built for a linear model whose figures are known: principal components of scikit-learn's digits."""

import html.parser
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets

from vae_jax import report
from vae_jax.config import UserError
from vae_jax.latents import pca
from vae_jax.media import figures
from vae_jax.models import priors
from vae_jax.tasks import Task

SD = 0.3  # of every posterior


def digits(n=600, channels=1):
    data = sklearn.datasets.load_digits()
    image = (data.images[:n, ..., None] * 15.9).astype(np.uint8).repeat(channels, -1)
    return {"image": image, "label": data.target[:n].astype(np.int32)}


def linear_task(splits, latent, variational=True, sampling=True, conditional=False):
    """encode = project on principal components and whiten, decode = its inverse; a condition adds 0.1 x class to a corner pixel."""
    train = splits["train"]["image"]
    shape, fitted = train.shape[1:], pca.fit(train, latent)
    spare = latent - len(fitted.components)  # dimensions without data: never used
    params = {"mean": jnp.float32(fitted.mean), "basis": jnp.float32(np.pad(fitted.components, [(0, spare), (0, 0)])),
              "scale": jnp.float32(np.pad(fitted.singular_values / np.sqrt(fitted.count), (0, spare), constant_values=1.0))}

    def encode(params, variables, batch):
        x = batch["image"].reshape(len(batch["image"]), -1).astype(jnp.float32) / 255
        mean = (x - params["mean"]) @ params["basis"].T / params["scale"]
        return {"mean": mean} | ({"logvar": jnp.full_like(mean, 2 * np.log(SD))} if variational else {})

    def decode(params, variables, code, condition=None):
        x = (params["mean"] + (code * params["scale"]) @ params["basis"]).reshape(-1, *shape)
        return {"image": x if condition is None else x.at[:, 0, 0, 0].add(0.1 * condition.argmax(1))}

    def metrics(params, variables, batch, key):
        code = encode(params, variables, batch)["mean"]
        kl = 0.5 * (code**2 + SD**2 - 1 - 2 * np.log(SD)).sum(1)
        return {"loss": kl + 10, "reconstruction": jnp.full_like(kl, 10.0), "kl": kl, "mean": code}

    def sample(params, variables, key, request):
        z = jax.random.normal(key, (len(request["temperature"]), latent))
        condition = jax.nn.one_hot(request["label"], 10) if conditional else None
        return {"image/mean": decode(params, variables, z, condition)["image"]}

    return params, Task(init=None, moves={}, metrics=metrics, summary=None, schedule=None, encode=encode, decode=decode,
                        sample=sample if sampling else None)


HISTORY = [{"step": s, "eval/train/loss": 20 - s, "eval/test/loss": 21 - s, "eval/test/kl": float("nan") if s == 1 else 3.0} for s in range(4)]
INFO = {"name": "<b>digits</b>", "command": "python -m vae_jax report --workdir=runs/digits", "seed": 0, "data": "digits & more"}


def made(splits, latent, history=HISTORY, names=tuple("0123456789"), condition=None, mixture=None, **kinds):
    params, task = linear_task(splits, latent, **kinds)
    return report.build(task, params, {}, splits, history, INFO, jax.random.key(0), {"label": names} if names else {}, condition, mixture=mixture)


class Links(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.files, self.sections = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.files |= {attrs[name] for name in ("src", "srcset") if name in attrs}
        if tag == "section":
            self.sections.append(attrs["id"])


def test_report_of_a_labelled_vae(tmp_path):
    both = digits(900)
    splits = {"train": {k: v[:600] for k, v in both.items()}, "test": {k: v[600:] for k, v in both.items()}}
    built = made(splits, 5)
    path = report.write(tmp_path, built)
    folder = tmp_path / "report"
    assert path == str(folder / "index.html")
    text = (folder / "index.html").read_text()
    found = Links(text)
    assert found.files == {p.name for p in folder.glob("*.png")}
    assert found.sections == ["numbers", "reconstructions", "samples", "manifold", "interpolations", "scatter", "aggregate", "dimensions", "fidelity",
                              "traversals", "curves"]
    assert "<b>" not in text and "&lt;b&gt;digits" in text and "python -m vae_jax report --workdir=runs/digits" in text
    assert "//" not in text.replace("<!doctype html>", "")  # no address of another machine

    numbers = json.loads((folder / "numbers.json").read_text())
    fitted = pca.fit(splits["train"]["image"], 5)
    want = pca.errors(fitted, splits["test"]["image"])
    table = numbers["table"]
    held = "held-out (test)"
    np.testing.assert_allclose(table["squared error"][held], [want.mean(), want.std(ddof=1) / np.sqrt(300)], rtol=1e-3)
    np.testing.assert_allclose(table["of PCA-5"][held], [want.mean(), want.std(ddof=1) / np.sqrt(300)], rtol=1e-6)
    np.testing.assert_allclose(table["of the mean picture"]["training"][0], (fitted.total / fitted.count) / 64, rtol=1e-6)
    assert table["active units"][held] == "5 of 5"
    np.testing.assert_allclose(table["−ELBO"]["training"][0] - table["KL"]["training"][0], 10, rtol=1e-5)
    # whitened codes: unit variance on training data, so KL = d (1 + s^2 - 1 - log s^2) / 2
    np.testing.assert_allclose(table["KL"]["training"][0], 5 * 0.5 * (SD**2 - 2 * np.log(SD)), rtol=1e-3)
    np.testing.assert_allclose(numbers["dimensions"]["sum"], table["KL"][held][0], rtol=1e-4)
    assert 2 < table["information"]["training"][0] < np.log(600)
    assert numbers["reconstructions"]["ratio"] == pytest.approx(1, rel=1e-3)
    assert numbers["scatter"]["linear probe"] > 0.7 and numbers["scatter"]["variance shown"] == pytest.approx(0.4, abs=0.01)
    assert numbers["interpolations"]["straight: step ratio"] == pytest.approx(1, abs=1e-3)  # a linear decoder takes even steps
    assert numbers["manifold"]["neighbour ratio"] < 0.2
    assert numbers["fidelity"]["rank"] == 5 and numbers["fidelity"]["directions for 0.99"] == 5
    assert numbers["samples"]["closest of all"] > 0
    assert {"scatter.png", "tsne.png"} <= found.files
    assert numbers["curves"] == {"loss, train": 17.0, "loss, test": 18.0, "KL, test": 3.0}


@pytest.fixture
def light(monkeypatch):
    monkeypatch.setattr(figures, "THEMES", {"": figures.LIGHT})


def test_a_mixture_prior_is_shown_by_component(light):
    """Three far Gaussians, two of them on the codes of zeros and of ones: their shares are those of the digits, the third is unused."""
    both = digits(900)
    pair = {k: v[both["label"] < 2] for k, v in both.items()}
    splits = {"train": pair, "test": {k: v[:51] for k, v in pair.items()}}
    params, task = linear_task(splits, 2)
    code = np.asarray(task.encode(params, {}, splits["train"])["mean"])
    centres = np.stack([code[pair["label"] == c].mean(0) for c in (0, 1)] + [np.array([50.0, 50.0])])
    built = made(splits, 2, mixture=priors.Diagonal(jnp.log(jnp.array([0.5, 0.4, 0.1])), jnp.float32(centres), jnp.full((3, 2), np.log(0.2))))
    section = {s.name: s for s in built.sections}["components"]
    numbers = {n[0]: n[1] for n in section.numbers}
    zeros = (splits["test"]["label"] == 0).mean()
    assert numbers["components used"] == "2 of 3" and numbers["least weight"] == pytest.approx(0.1) and numbers["least share"] < 1e-6
    assert numbers["largest share"] == pytest.approx(max(zeros, 1 - zeros), abs=0.05) and 1.9 < numbers["effective number"] <= 2
    assert section.pictures[0][1].endswith("3: weight 0.100, share 0.000.") and {"components.png", "shares.png"} <= set(built.files)


def test_report_of_a_conditional_code_of_two(light, tmp_path):
    splits = {"train": digits(200), "validation": digits(60)}
    asked = []

    def condition(batch):
        asked.append(len(batch["label"]))
        return np.eye(10, dtype=np.float32)[batch["label"]]

    built = made(splits, 2, condition=condition, conditional=True)
    assert asked == [200, 60]
    sections = {s.name: s for s in built.sections}
    assert "fidelity" not in sections and "traversals" not in sections  # the map shows a plane whole
    assert "asked for by its label" in sections["samples"].text
    assert "class" in sections["manifold"].text and "class" in sections["interpolations"].text
    assert built.table.head[1] == "held-out (validation)"
    # The decoder draws 0.1 x class into a corner: the errors show whether it was told the right one.
    plain = made(splits, 2)
    wanted = [float(np.mean((0.1 * s["label"]) ** 2 / 64)) for s in (splits["validation"], splits["train"])]
    rows = {row[0]: row for row in built.table.rows}
    before = {row[0]: row for row in plain.table.rows}
    corner = [2 * np.mean(0.1 * s["label"] * decoded_corner(splits, s)) / 64 for s in (splits["validation"], splits["train"])]
    for i in range(2):
        assert rows["squared error"][1 + i][0] - before["squared error"][1 + i][0] == pytest.approx(wanted[i] + corner[i], rel=1e-2, abs=1e-6)


def decoded_corner(splits, side):
    """Decoded less original value of the corner pixel, without a condition."""
    fitted = pca.fit(splits["train"]["image"], 2)
    return pca.reconstruct(fitted, pca.project(fitted, side["image"]))[:, 0] - side["image"][:, 0, 0, 0] / 255


def test_report_of_an_autoencoder_of_few_unlabelled_rgb_pictures(light, tmp_path):
    splits = {"train": {"image": digits(7, channels=3)["image"]}}
    built, again = (made(splits, 1, history=[], names=(), variational=False, sampling=False) for _ in range(2))
    assert built.files == again.files  # the same to the byte
    report.write(tmp_path, built)
    assert [s.name for s in built.sections] == ["reconstructions", "manifold", "interpolations", "scatter", "aggregate", "dimensions"]
    names = [row[0] for row in built.table.rows]
    assert "information" not in names and built.table.head == ("", "training", "")
    numbers = {s.name: {n[0]: n[1] for n in s.numbers} for s in built.sections}
    assert set(numbers["dimensions"]) == {"active units"} and "linear probe" not in numbers["scatter"]
    assert not any(name.startswith("spherical") for name in numbers["interpolations"])


def test_report_of_more_dimensions_than_pictures_and_one_held_out(light, tmp_path):
    splits = {"train": digits(6) | {"source": np.array(["a.png"] * 6)}, "test": {k: v[:1] for k, v in digits(6).items()}}
    built = made(splits, 9, history=[{"step": 1, "loss": 2.0}])
    report.write(tmp_path, built)  # numbers that are not defined for one example are null, not a crash
    numbers = json.loads((tmp_path / "report" / "numbers.json").read_text())
    assert numbers["table"]["squared error"]["held-out (test)"][1] is None
    assert "curves" not in numbers and numbers["fidelity"]["rank"] == 5 and numbers["table"]["active units"]["training"] == "5 of 9"


def test_one_training_picture_is_refused():
    params, task = linear_task({"train": digits(9)}, 2)
    with pytest.raises(UserError, match="two training pictures"):
        report.build(task, params, {}, {"train": digits(1)}, [], INFO, jax.random.key(0))
