"""Bottle silhouettes, 128 x 128, a 2-D code: rows B1-B6.

    python -m vae_jax train --config=experiments/bottles.py --workdir=runs/bottles

Data: python -m data_prep.images --source=FOLDER --recipe=bottles --group=... --out=datasets/bottles   (README: bottles)
"""

from vae_jax.config import Config, Data, Eval, Optim, Run
from vae_jax.tasks import vae


def get_config() -> Config:
    return Config(
        name="bottles",
        # A strong KL at first lays the shapes out evenly in the plane; it then gives way to detail
        model=vae.Model(family="conv", hidden=(32, 64, 64), latent=2, likelihood="bernoulli", warmup="cooling", warmup_from=50.0, warmup_steps=6000),
        data=Data(dir="datasets/bottles", test="test_originals", batch=32),
        optim=Optim(lr=1e-3, schedule="cosine", ema=0.999),
        eval=Eval(every=1000, batch=200, examples=2000),
        run=Run(steps=10000, log_every=100, save_every=1000),
    )
