"""train: trains an experiment, or goes on where it stopped. Prints progress; Ctrl-C saves and leaves.

    python -m vae_jax train --config=experiments/mnist.py --workdir=runs/mnist
    python -m vae_jax train --workdir=runs/mnist                                  goes on, as that run was configured

To change config.run of a run that goes on, such as config.run.steps, give its --config too.
"""

from ml_collections import config_flags

from vae_jax import config as configs
from vae_jax.verbs import common

CONFIG = config_flags.DEFINE_config_file("config", None, common.CONFIG_HELP)


def main(started: float) -> int:
    goes_on = CONFIG.value is None and common.WORKDIR.value and configs.is_run(common.WORKDIR.value)
    config = configs.read(common.WORKDIR.value) if goes_on else common.config_of(CONFIG)
    workdir = common.new_workdir()
    common.compile_cache(config.run.compile_cache)
    from vae_jax import train

    train.train(config, workdir, started)
    return 0
