"""train: trains an experiment, or goes on where it stopped. Prints progress; Ctrl-C saves and leaves.

    python -m vae_jax train --config=experiments/mnist.py --workdir=runs/mnist
"""

from ml_collections import config_flags

from vae_jax.verbs import common

CONFIG = config_flags.DEFINE_config_file("config", None, common.CONFIG_HELP)


def main(started: float) -> int:
    config, workdir = common.config_of(CONFIG), common.new_workdir()
    common.compile_cache(config.run.compile_cache)
    from vae_jax import train

    train.train(config, workdir, started)
    return 0
