"""Four CPU devices for every test, and the real data where it is at hand."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax  # noqa: E402  (not before the devices are set)
import pytest  # noqa: E402


@pytest.fixture(scope="module")
def quickly_compiled():
    """For tests where compiling takes most of the time, also of what they launch."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    os.environ[name.upper()] = "1"
    yield
    jax.config.update(name, before)
    del os.environ[name.upper()]


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """Folder of real data, from the environment variable VAE_JAX_DATA."""
    folder = os.environ.get("VAE_JAX_DATA", "")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("no real data: set VAE_JAX_DATA to its folder")
    return pathlib.Path(folder).resolve()
