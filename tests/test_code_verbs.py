"""Verbs on codes of pictures, from the command line: a VQ-VAE, a prior over its codes, their files and their pages."""

import json

import launch
import numpy as np
import pytest
import toys
from PIL import Image

from vae_jax import records

CONFIG = '''
from vae_jax.config import Config, Data, Eval, Optim, Run
from vae_jax.tasks import code_prior, vqvae

def get_config(variant):
    auto = vqvae.Model(hidden=8, residual=4, blocks=1, codes=12, dims=4, kmeans=2, variance=0.06, corruptions=("noise",))
    prior = code_prior.Model(autoencoder=auto, channels=8, layers=2, first_kernel=3, hidden=8, condition="label")
    return Config(name=variant, task=variant, model=auto if variant == "vqvae" else prior, data=Data(dir={data!r}, batch=16), optim=Optim(lr=3e-3),
                  eval=Eval(every=40, batch=12, roles=("test",)), run=Run(steps=40, log_every=10, save_every=40, compile_cache={cache!r}))
'''


def verb(name, *flags, wrong=False):
    found = launch.run(name, *flags)
    assert found.returncode == (2 if wrong else 0) and "Traceback" not in found.stderr, found.stderr
    return found.stderr if wrong else found.stdout


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes")
    (folder / "toy.py").write_text(CONFIG.format(data=toys.pictures(folder / "data", {"train": 64, "test": 27}, 16), cache=str(folder / "cache")))
    verb("train", f"--config={folder / 'toy.py'}:vqvae", f"--workdir={folder / 'vq'}")
    players = ",".join(f"{player}={folder / 'vq'}" for player in ("encoder", "quantizer", "decoder"))
    verb("train", f"--config={folder / 'toy.py'}:code_prior", f"--workdir={folder / 'prior'}", f"--config.start_from={players}")
    return folder, players


@pytest.fixture(scope="module")
def packed(setup):
    """The file of the held-out pictures, and what comes back of it."""
    folder, _ = setup
    said = verb("compress", f"--workdir={folder / 'vq'}", f"--out={folder / 'vq.codes'}")
    assert "27 pictures of 16 x 16 x 1" in said and f"ratio {2048 / (16 * np.log2(12)):.2f} by the formula" in said
    verb("decompress", f"--workdir={folder / 'vq'}", f"--codes={folder / 'vq.codes'}", f"--out={folder / 'vq.npz'}")
    return dict(np.load(folder / "vq.npz"))


def test_what_comes_back_is_what_reconstruct_shows(setup, packed):
    folder, _ = setup
    verb("reconstruct", f"--workdir={folder / 'vq'}", "--count=27")
    shown = np.load(next((folder / "vq" / "reconstructions").glob("*.npz")))
    np.testing.assert_allclose(packed["image"], np.clip(shown["reconstruction"], 0, 1) * 255, atol=0.51)
    assert packed["indices"].shape == (27, 4, 4, 1) and Image.open(folder / "vq.png").size[0] > 100


def test_codes_of_the_prior_are_the_same_and_files_are_kept(setup, packed):
    folder, _ = setup
    verb("compress", f"--workdir={folder / 'prior'}", f"--out={folder / 'prior.codes'}")
    verb("decompress", f"--workdir={folder / 'prior'}", f"--codes={folder / 'prior.codes'}", f"--out={folder / 'prior.npz'}")
    found = np.load(folder / "prior.npz")
    np.testing.assert_array_equal(found["indices"], packed["indices"])
    np.testing.assert_array_equal(found["image"], packed["image"])
    np.testing.assert_array_equal(found["label"], np.arange(27) % 2)
    mismatched = verb("train", f"--config={folder / 'toy.py'}:code_prior", f"--workdir={folder / 'other'}", f"--config.start_from={setup[1]}",
                      "--config.model.autoencoder.commitment=0.5", wrong=True)
    assert "commitment=0.25, and config.model.autoencoder.commitment is 0.5 here: give --config.model.autoencoder.commitment=0.25" in mismatched
    assert "not overwritten" in verb("compress", f"--workdir={folder / 'vq'}", f"--out={folder / 'vq.codes'}", wrong=True)
    assert "other weights" in verb("decompress", f"--workdir={folder / 'vq'}", f"--codes={folder / 'prior.codes'}",
                                   f"--out={folder / 'x.npz'}", wrong=True)


def both(name, *flags):
    """The verb in two processes of two devices each."""
    for process in launch.pair(name, *flags):
        _, err = launch.finish(process)
        assert process.returncode == 0 and "Traceback" not in err, err


def test_two_processes_have_one_codebook_and_write_the_same_files(setup, packed):
    folder, _ = setup
    both("train", f"--config={folder / 'toy.py'}:vqvae", f"--workdir={folder / 'two'}", "--config.run.steps=11")
    one, two = ({line["step"]: line for line in launch.lines(folder / name)} for name in ("vq", "two"))
    for step in (0, 10):
        for name in ("loss", "reconstruction", "embedding", "commitment", "perplexity", "usage"):
            assert two[step][f"train/{name}"] == pytest.approx(one[step][f"train/{name}"], rel=1e-3), (step, name)
    both("compress", f"--workdir={folder / 'prior'}", f"--out={folder / 'new' / 'two.codes'}")
    both("decompress", f"--workdir={folder / 'prior'}", f"--codes={folder / 'new' / 'two.codes'}", f"--out={folder / 'new' / 'two.npz'}")
    np.testing.assert_array_equal(np.load(folder / "new" / "two.npz")["indices"], packed["indices"])


def test_a_prior_trains_on_codes_that_were_written(setup, packed):
    folder, players = setup
    assert "codes 4 x 4 x 1 of 16 x 16 x 1" in verb("encode_codes", f"--workdir={folder / 'vq'}", f"--out={folder / 'codes'}")
    rows = records.open_split(folder / "codes", "test").read_all(["codes", "label"])
    np.testing.assert_array_equal(rows["codes"], packed["indices"])
    np.testing.assert_array_equal(rows["label"], np.arange(27) % 2)
    train = ["train", f"--config={folder / 'toy.py'}:code_prior", f"--config.data.dir={folder / 'codes'}", f"--config.start_from={players}"]
    verb(*train, f"--workdir={folder / 'written'}")
    losses = [[line["eval/test/bits_per_code"] for line in launch.lines(folder / name) if "eval/test/bits_per_code" in line]
              for name in ("prior", "written")]
    assert losses[0] and losses[0] == pytest.approx(losses[1], rel=1e-4)  # the same codes in the same order
    for name in ("report", "reconstruct"):
        assert "codes alone" in verb(name, f"--workdir={folder / 'written'}", wrong=True)


def test_pages_and_samples(setup):
    folder, _ = setup
    for run, sections in (("vq", {"reconstructions", "codebook", "rates", "repairs", "curves"}), ("prior", {"rates", "samples", "completions"})):
        verb("report", f"--workdir={folder / run}")
        page, numbers = ((folder / run / "report" / name).read_text() for name in ("index.html", "numbers.json"))
        assert sections <= json.loads(numbers).keys() and "4 × 4 × 1 codes of 12 each" in page
    verb("sample", f"--workdir={folder / 'prior'}", "--count=6", "--label=right")
    made = np.load(next((folder / "prior" / "samples").glob("*.npz")))
    assert made["mean"].shape == (6, 16, 16, 1) and made["codes"].shape == (6, 4, 4, 1)
    verb("sample", f"--workdir={folder / 'prior'}", "--count=10")
    width, height = Image.open(folder / "prior" / "samples" / "count10-temperature1-seed0.png").size
    assert height > 2 * width  # a column a class, of two
    verb("evaluate", f"--workdir={folder / 'vq'}", "--measure=repair:2")
    results = json.loads((folder / "vq" / "evaluation.json").read_text())["results"]
    assert results["eval/test/uniform_bits_per_code"] == pytest.approx(np.log2(12))
    assert results["eval/test/noise/spoilt_mse"] == pytest.approx(0.03, rel=0.3)
    gain = results["eval/test/noise/spoilt_mse"] - results["eval/test/noise/mse"]
    assert results["eval/test/noise/mse_gain"] == pytest.approx(gain, rel=1e-4, abs=1e-7)
    assert results["eval/test/model_mse"] == pytest.approx(results["eval/test/mse"], rel=1e-4)
