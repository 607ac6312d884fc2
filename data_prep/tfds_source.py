"""Public TFDS data sets as a source: by name, or a folder in TFDS's layout. Needs TensorFlow, which nothing else here does."""

import os

from absl import logging

from data_prep.splits import SPLIT_WORDS
from vae_jax.config import UserError


def open_builder(name: str):
    """(the module tensorflow_datasets, the prepared builder); a set not yet at hand is downloaded. Raises UserError."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.ERROR)
    try:
        import tensorflow  # noqa: F401  TFDS itself imports without it and fails late
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(f"--source=tfds:{name} needs TensorFlow: pip install tensorflow-cpu tensorflow-datasets ({error}).") from None
    try:
        if "/" in name and name.startswith((".", "/", "~")):
            builder = tfds.builder_from_directory(name)
        else:
            builder = tfds.builder(name)
            builder.download_and_prepare()
    except Exception as error:  # TFDS and its downloader raise anything, most often for want of a network
        reason = next(iter(str(error).strip().splitlines()), "")
        raise UserError(f"--source=tfds:{name} cannot be had ({type(error).__name__}: {reason[:200]}).") from None
    return tfds, builder


def split_name(name: str) -> str:
    return SPLIT_WORDS.get(name, name)
