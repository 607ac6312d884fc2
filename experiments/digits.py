"""scikit-learn's 1,797 real handwritten digits, 8 x 8, a 2-D code: what `make demo` trains.

    python -m data_prep.images --source=digits --split=train:0.8,test:0.2 --out=datasets/digits

    python -m vae_jax train --config=experiments/digits.py --workdir=runs/demo
"""

from vae_jax.config import Config, Data, Eval, Optim, Run
from vae_jax.tasks import vae


def get_config() -> Config:
    return Config(
        name="digits",
        model=vae.Model(family="dense", hidden=(256, 128), latent=2, activation="relu", likelihood="bernoulli", warmup="linear", warmup_steps=1000),
        data=Data(dir="datasets/digits", batch=128),
        optim=Optim(lr=1e-3, schedule="cosine"),
        eval=Eval(every=250, batch=360),
        run=Run(steps=6000, log_every=50, save_every=1000),
    )
