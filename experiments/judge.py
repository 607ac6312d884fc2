"""A judge of generated digits, trained on real MNIST only.

    python -m vae_jax train --config=experiments/judge.py --workdir=runs/judge
"""

from vae_jax.config import Config, Data, Eval, Optim, Run
from vae_jax.tasks import classifier


def get_config() -> Config:
    return Config(
        name="judge", task="classifier", model=classifier.Model(),
        data=Data(dir="datasets/mnist", train="train[:55000]", validation="train[55000:]", batch=128),
        optim=Optim(lr=1e-3, schedule="cosine"),
        eval=Eval(every=500, roles=("validation", "test")),
        run=Run(steps=3000, log_every=100, save_every=1000),
    )
