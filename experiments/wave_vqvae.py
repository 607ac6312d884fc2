r"""VQ-VAE of raw sound: four codes for 64 samples, spoken again by a WaveNet that is told whose voice it has, and a prior over codes (rows V9-V11).

    python -m vae_jax train --config=experiments/wave_vqvae.py --workdir=runs/wave_vqvae
    python -m vae_jax evaluate --workdir=runs/wave_vqvae --judge=runs/judge_fsdd          and --judge=runs/judge_speaker
    python -m vae_jax reconstruct --workdir=runs/wave_vqvae --condition=theo              everybody's digits in one voice
    R=runs/wave_vqvae
    python -m vae_jax train --config=experiments/wave_vqvae.py:prior --workdir=runs/wave_prior --config.start_from=encoder=$R,quantizer=$R,decoder=$R

Codes that tell more of what is said (row V10), by 2,500 steps more; a prior over them is told the same three of config.model.autoencoder:
    python -m vae_jax train --config=experiments/wave_vqvae.py --workdir=runs/clear --config.start_from=encoder=$R,quantizer=$R,decoder=$R \
      --config.model.secrecy=0.05 --config.model.spectrum=4 --config.model.detune=2 --config.optim.lr=1e-3 --config.run.steps=2500

Data: as for experiments/fsdd.py. For two_speakers, a folder for each voice:
      python -m data_prep.waveforms --source=two_speakers --out=datasets/voices --rate=16000 --group='^(?:.*/)?([^/]+?)__'
"""

from vae_jax.config import Config, Data, Eval, Optim, Run, UserError
from vae_jax.tasks import wave_code_prior, wave_vqvae

# Twice the channels were behind after as much time, in the first minutes at least: 3.44 nats a held-out sample for 3.36. With one code in place of
# four, each for what the ones before left, a judge heard the digit in 0.69 of the copies; with four in 0.69, and after the second training in 0.76
SMALL = dict(codes=256, levels=4, restart=0.1, residual=32, gate=32, skip=128)
# With one code, without these, half as long and with half the codebook, 0.45
TELLING = dict(spectrum=1.0, detune=4.0, secrecy=0.3)
DIGITS = wave_vqvae.Model(condition="speaker", layers=8, **SMALL, **TELLING)
VARIANTS = {
    "fsdd": (DIGITS, Data(dir="datasets/fsdd", crop=4096, batch=4), 12_000),  # a crop holds most recordings whole, as evaluation hears them
    "two_speakers": (wave_vqvae.Model(condition="label", layers=9, **SMALL, **TELLING), Data(dir="datasets/voices", crop=4096, batch=4), 6000),
    # Whole recordings, so that it learns how they begin and end
    "prior": (wave_code_prior.Model(autoencoder=DIGITS, condition=("label", "speaker")), Data(dir="datasets/fsdd", batch=16), 1000),
}


def get_config(variant: str = "fsdd") -> Config:
    if variant not in VARIANTS:
        raise UserError(f"experiments/wave_vqvae.py has no variant {variant!r}; it has {', '.join(VARIANTS)}.")
    model, data, steps = VARIANTS[variant]
    prior = variant == "prior"
    return Config(
        name=f"wave_vqvae-{variant}", task="wave_code_prior" if prior else "wave_vqvae", model=model, data=data,
        optim=Optim(lr=1e-3 if prior else 2e-3, schedule="cosine", warmup_steps=100, ema=0.99 if prior else 0.999),
        eval=Eval(every=steps // 4, batch=20, examples=300), run=Run(steps=steps, log_every=20, save_every=steps // 8),
    )
