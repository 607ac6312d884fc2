"""One's own folder of colour pictures, 64 x 64.

    python -m data_prep.images --source=FOLDER --out=datasets/pictures --size=64 --fit --colour=rgb --split=train:0.9,test:0.1
    python -m vae_jax train --config=experiments/pictures.py --workdir=runs/pictures --config.data.dir=datasets/pictures
"""

from vae_jax.config import Config, Data, Eval, Optim, Run
from vae_jax.tasks import vae


def get_config() -> Config:
    return Config(
        name="pictures",
        model=vae.Model(family="conv", hidden=(32, 64, 128), latent=64, activation="gelu", likelihood="gaussian"),
        data=Data(dir="datasets/pictures", batch=64),
        optim=Optim(lr=5e-4, schedule="cosine", warmup_steps=200, clip=1000.0, ema=0.999),
        eval=Eval(every=1000, batch=100),
        run=Run(steps=20000, log_every=100, save_every=1000),
    )
