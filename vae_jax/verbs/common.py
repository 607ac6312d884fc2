"""What the verbs share: the run's folder, the experiment, the compile cache."""

import os

from absl import flags

from vae_jax.config import UserError

WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run.")
CONFIG_HELP = "Experiment file, e.g. experiments/mnist.py:conv; its fields are set as --config.optim.lr=3e-4."


def config_of(flag):
    """The configuration given on the command line. Raises UserError where there is none."""
    config = flag.value
    if config is None:
        raise UserError("give an experiment: --config=experiments/NAME.py; `ls experiments` shows them.")
    try:
        config.run
    except OSError as error:  # config_flags puts off what went wrong until a field is asked for
        name = str(error).rstrip("')").rsplit("'", 1)[-1]
        raise UserError(f"--config: there is no experiment file {name!r}; `ls experiments` shows them.") from None
    return config


def new_workdir() -> str:
    """The run folder --workdir names, created if need be. Raises UserError where it cannot be."""
    from etils import epath

    if not WORKDIR.value:
        raise UserError("give the run's folder: --workdir=runs/NAME.")
    try:
        epath.Path(WORKDIR.value).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"--workdir={WORKDIR.value} cannot be made ({getattr(error, 'strerror', None) or error}).") from None
    return WORKDIR.value


def compile_cache(folder: str) -> None:
    """Keeps compiled programs in a folder of this user's, one a jaxlib version: other versions' programs may crash."""
    import jax
    import jaxlib

    if not folder:
        return
    path = os.path.join(os.path.expanduser(folder), f"jaxlib-{jaxlib.__version__}")
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        print(f"no compile cache: {path} cannot be made ({error.strerror})")
        return
    jax.config.update("jax_compilation_cache_dir", path)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
