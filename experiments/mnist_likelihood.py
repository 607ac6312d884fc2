"""Binarised MNIST by importance-weighted likelihood: rows P-C1, P-C3, P-C4, P-C5 and the dynamic pair.

    python -m vae_jax reproduce --config=experiments/mnist_likelihood.py:c4 --workdir=runs/c4

Static rows read datasets/mnist_static: one fixed-seed Bernoulli draw of every picture (data_prep.images --binarize=777),
not the published file. Dynamic rows read datasets/mnist and draw anew at every step; the test set is drawn once.
"""

from vae_jax.config import Config, Data, Eval, Optim, Run, Target, UserError
from vae_jax.tasks import vae

EPOCH = 500  # steps: 50,000 pictures at batch 100
VARIANTS = ("c1", "c3", "c4", "c5", "c4dynamic", "c5dynamic")


def get_config(variant: str = "c4") -> Config:
    if variant not in VARIANTS:
        raise UserError(f"experiments/mnist_likelihood.py has no variant {variant!r}; it has {', '.join(VARIANTS)}.")
    dynamic = variant.endswith("dynamic")
    config = Config(
        name=f"P-{variant.upper()}",
        data=Data(dir="datasets/mnist" if dynamic else "datasets/mnist_static", train="train[:50000]", validation="train[50000:]", batch=100),
        eval=Eval(every=5 * EPOCH, batch=500),
        run=Run(log_every=EPOCH, save_every=5 * EPOCH),
    )
    if variant == "c1":  # the recipe of flax's example: 784-500-20, Adam 1e-3, 10 epochs
        config.model = vae.Model(hidden=(500,), latent=20)
        config.optim = Optim(lr=1e-3)
        config.run.steps = 10 * EPOCH
        config.targets = (Target("eval/test/loss", 104.0, "<=", source="flax VAE example: about 104 after 10 epochs"),)
    elif variant == "c3":  # pythae's VAE with both of its 400-wide layers
        config.model = vae.Model(hidden=(400, 400), latent=40)
        config.optim = Optim(lr=1e-4, schedule="step", boundaries=(200 * EPOCH, 350 * EPOCH), factor=10 ** -0.2)
        config.run.steps, config.measures = 500 * EPOCH, {"nll": 200}
        config.targets = (Target("eval/test/nll", 90.3, "<=", source="pythae's reproducibility table: 89.78 by IS-200"),)
    else:  # VampPrior's network: gated 300-300, 40-D
        config.model = vae.Model(hidden=(300, 300), latent=40, activation="gated", binarize=dynamic, warmup="linear", warmup_steps=50 * EPOCH)
        config.optim = Optim(lr=1e-3, schedule="cosine", ema=0.999)
        config.run.steps, config.measures = 150 * EPOCH, {"nll": 5000}
        if variant.startswith("c5"):
            config.model.prior, config.model.components = "mixture", 500
        if variant == "c5":
            config.targets = (Target("eval/test/nll", 87.25, "<=", source="one nat better than P-C4 of the ledger, 88.25"),)
        if variant == "c4":
            config.targets = (Target("eval/test/nll", 89.6, "<=", source="kenza-bouzid/VAE-VampPrior, standard prior; goal 88.6"),)
    return config
