"""Four CPU devices for every test, and the real data where it is at hand."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest  # noqa: E402  (jax must not be imported before the devices are set)


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """Folder of real data, from the environment variable VAE_JAX_DATA."""
    folder = os.environ.get("VAE_JAX_DATA", "")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("no real data: set VAE_JAX_DATA to its folder")
    return pathlib.Path(folder).resolve()
