"""One-second pieces of music of several genres as spectrograms, a 128-D code (rows C4-C9).

    python -m vae_jax train --config=experiments/genres.py --workdir=runs/genres

Data: python -m data_prep.genres --source=FOLDER --out=datasets/genres --split=train:0.7,validation:0.1,test:0.2
"""

from vae_jax import fronts
from vae_jax.config import Config, Data, Eval, Optim, Run
from vae_jax.tasks import vae


def get_config() -> Config:
    model = vae.Model(family="conv", hidden=(8, 16, 32, 64), latent=128, shortcut=True, likelihood="gaussian", squash=True, sigma=0.05,
                      sound=fronts.Sound(hop=232))  # 96 frames a second exactly: none of appended silence
    return Config(
        name="genres", model=model, data=Data(dir="datasets/genres", validation="validation", batch=64),
        optim=Optim(lr=2e-3, schedule="cosine", warmup_steps=200, weight_decay=0.3, ema=0.999, clip=1000.0),
        eval=Eval(every=500, batch=100, examples=500), run=Run(steps=3000, log_every=100, save_every=500),
    )
