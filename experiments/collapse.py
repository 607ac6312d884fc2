"""Posterior collapse and its cure (rows A10, M5): a decoder that reads every pixel above and to the left, without and with KL annealing.

    python -m vae_jax train --config=experiments/collapse.py:plain --workdir=runs/collapse_plain
    python -m vae_jax train --config=experiments/collapse.py:annealed --workdir=runs/collapse_annealed
"""

from vae_jax.config import Config, Data, Eval, Optim, Run, UserError
from vae_jax.tasks import vae

VARIANTS = {"plain": {}, "annealed": dict(warmup="sigmoid", warmup_steps=2000)}


def get_config(variant: str = "plain") -> Config:
    if variant not in VARIANTS:
        raise UserError(f"experiments/collapse.py has no variant {variant!r}; it has {', '.join(VARIANTS)}.")
    return Config(
        name=f"collapse-{variant}",
        model=vae.Model(family="lstm", hidden=(256,), latent=16, autoregressive=True, **VARIANTS[variant]),
        data=Data(dir="datasets/mnist_static", train="train[:50000]", validation="train[50000:]", batch=128),
        optim=Optim(lr=1e-3, clip=10.0),
        eval=Eval(every=250, examples=2000),
        run=Run(steps=2500, log_every=100, save_every=500),
    )
