"""VQ-VAEs of pictures: MNIST (row P-C9), the published CIFAR-10 (P-C8), photographs cut to 128 x 128 (V5, V6), and repairs of pictures (V1).

    python -m vae_jax train --config=experiments/vqvae.py:mnist --workdir=runs/vq_mnist
    python -m vae_jax train --config=experiments/vqvae.py:mnist_bits --workdir=runs/vq_mnist_bits
    python -m vae_jax train --config=experiments/vqvae.py:cifar10 --workdir=runs/vq_cifar10
    python -m vae_jax train --config=experiments/vqvae.py:photos --workdir=runs/vq_photos
    python -m vae_jax reproduce --config=experiments/vqvae.py:repair --workdir=runs/vq_repair

Data: python -m data_prep.images --source=FOLDER --out=datasets/cifar10       a folder train and one test, in each a folder a class
      python -m data_prep.images --source=FOLDER --out=datasets/photos --crop --size=128 --split=train:0.8,test:0.2
`variance` is that of the training pixels: 0.0949 of MNIST and 0.0647 of the photographs (computed), 0.0633 of CIFAR-10 as
published with the recipe.
"""

import dataclasses

from vae_jax.config import Config, Data, Eval, Optim, Run, Target, UserError
from vae_jax.tasks import vqvae

PHOTOS = dict(variance=0.0647, restart=0.5)
DIGITS = dict(hidden=64, residual=32, codes=256, dims=32, variance=0.0949, restart=0.5)
REPAIRS = ("noise", "low_resolution", "grey", "patch")
REPAIRED = tuple(Target(f"eval/test/{kind}/mse_gain", 0.0, ">=", source="the trivial repair, see vae_jax/corruptions.py") for kind in REPAIRS)
MNIST = Data(dir="datasets/mnist", train="train[:55000]", validation="train[55000:]", batch=128)
HALF = (Target("eval/test/perplexity", 128.0, ">=", source="half of the codebook"),)
VARIANTS = {
    "mnist": (vqvae.Model(**DIGITS), MNIST, 4_000, HALF),
    "mnist_bits": (vqvae.Model(**DIGITS, likelihood="logistic_mixture"), MNIST, 2_000, HALF),  # for bits a value
    "cifar10": (vqvae.Model(variance=0.0632704, kmeans=0), Data(dir="datasets/cifar10", batch=32), 10_000,
                (Target("eval/test/nmse", 0.058, "<=", source="sonnet's notebook: 0.056 of training batches after 10,000 steps"),
                 Target("eval/test/perplexity", 300.0, ">=", source="sonnet's notebook: 326"))),
    "photos": (vqvae.Model(**PHOTOS), Data(dir="datasets/photos", batch=16), 3_000,
               (Target("eval/test/perplexity", 128.0, ">=", source="a quarter of the codebook"),)),
    # Four codes a position, each for what the one before left: enough for CIFAR-10; twelve photographs are too few whatever the codes (row V1)
    "repair": (vqvae.Model(variance=0.0632704, restart=0.5, levels=4, corruptions=REPAIRS), Data(dir="datasets/cifar10", batch=32), 12_000, REPAIRED),
    "repair_photos": (vqvae.Model(**PHOTOS, levels=4, corruptions=REPAIRS), Data(dir="datasets/photos", batch=16), 4_000, REPAIRED),
}


def get_config(variant: str = "mnist") -> Config:
    if variant not in VARIANTS:
        raise UserError(f"experiments/vqvae.py has no variant {variant!r}; it has {', '.join(VARIANTS)}.")
    model, data, steps, targets = VARIANTS[variant]
    return Config(
        name=f"vqvae-{variant}", task="vqvae", model=model, data=dataclasses.replace(data),
        optim=Optim(lr=5e-4, schedule="cosine", warmup_steps=200) if model.corruptions else Optim(lr=3e-4),
        eval=Eval(every=steps // 4, batch=data.batch, examples=5_000), run=Run(steps=steps, log_every=100, save_every=steps // 4), targets=targets,
        measures={"repair": 4} if model.corruptions else {},
    )
