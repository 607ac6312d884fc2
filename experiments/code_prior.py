"""PixelCNN priors over the codes of experiments/vqvae.py, by class: MNIST (P-C9, V7, V8) and CIFAR-10; and of photographs.

    python -m vae_jax train --config=experiments/code_prior.py:mnist --workdir=runs/prior_mnist \
        --config.start_from=encoder=runs/vq_mnist,quantizer=runs/vq_mnist,decoder=runs/vq_mnist

The autoencoder's settings here must be those of the run it comes from.
"""

from experiments import vqvae as autoencoders
from vae_jax.config import Config, Eval, Optim, Run, Target, UserError
from vae_jax.tasks import code_prior

SHARES = (Target("eval/test/share_of_uniform", 0.75, "<=", source="bits of the codes over log2 K"),
          Target("eval/test/share_of_empirical", 0.85, "<=", source="over the entropy of how often each code is used"))
VARIANTS = {
    "mnist": (dict(channels=32, layers=6), 6_000, SHARES),
    "mnist_bits": (dict(channels=32, layers=6), 3_000, SHARES),
    "cifar10": (dict(channels=64, layers=8), 6_000, ()),
    "photos": (dict(channels=64, layers=8, condition=""), 800, ()),  # on maps of 32 x 32, and without classes
}


def get_config(variant: str = "mnist") -> Config:
    if variant not in VARIANTS:
        raise UserError(f"experiments/code_prior.py has no variant {variant!r}; it has {', '.join(VARIANTS)}.")
    settings, steps, targets = VARIANTS[variant]
    origin = autoencoders.get_config(variant)
    data = origin.data
    data.batch = 16 if variant == "photos" else 64
    return Config(
        name=f"code-prior-{variant}", task="code_prior", model=code_prior.Model(autoencoder=origin.model, **{"condition": "label"} | settings),
        data=data, optim=Optim(lr=1e-3, schedule="cosine", warmup_steps=200),
        eval=Eval(every=steps // 6, batch=100, examples=300 if variant == "photos" else 5_000),
        run=Run(steps=steps, log_every=100, save_every=steps // 6), targets=targets,
    )
