"""export: a trained model as files that run without vae_jax, on a CPU, a CUDA GPU or a TPU.

    python -m vae_jax export --workdir=runs/rave --out=exports/rave
    python -m vae_jax export --workdir=runs/rave --out=exports/rave95 --fidelity=0.95      latents on the directions that matter, after `analyse`

Writes functions (RAVE: encode, decode, start and step for live use, codes and lookup of discrete latents; VAE: encode, decode, sample), weights.npz,
loader.py that opens them with jax alone, README.md that shows how they are called, and manifest.json with sizes, latency and checksums, in which
`licence` is yours to fill in.
Batch and length are open: blocks of live use are any multiple of the hop. An analysis of the run goes along. Before the folder gets its name, a fresh
process runs it on a crop of held-out data beside the live model, and the difference is printed. A folder that holds something is never written to.
"""

from absl import flags

from vae_jax.config import UserError
from vae_jax.verbs import trained

OUT = flags.DEFINE_string("out", "", "New folder of the export.")
FIDELITY = flags.DEFINE_float("fidelity", None, "Latents are coordinates on the first directions, as many as have this share of all singular values.")


def main(started: float) -> int:
    from vae_jax import analysis, export

    if not OUT.value:
        raise UserError("give a new folder: --out=exports/NAME.")
    run = trained.open_run()
    found = analysis.load(run) if FIDELITY.value is not None or (run.workdir / "analysis.npz").exists() else None
    manifest, apart = export.write(run, OUT.value, found, FIDELITY.value)
    for name, (difference, db) in apart.items():
        print(f"{name}: in a fresh process at most {difference:.2g} from the live model" + (f", {db:.1f} dB below it" if difference else ""))
    if "latency_samples" in manifest:
        print(f"latency {manifest['latency_samples']:,} samples, {manifest['latency_ms']:.1f} ms, and the block")
    print(f"done: {', '.join(manifest['functions'])} in {OUT.value}")
    return 0
