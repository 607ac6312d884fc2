"""analyse: how many directions the latents of a model of waves use, what is lost without the others, and what the first ones do to the sound.

    python -m vae_jax analyse --workdir=runs/rave

Writes WORKDIR/analysis.npz (mean, directions, strongest first, and what goes with them: latents/fidelity.py), which `encode`, `sample` and exports
use; analysis.json, everything printed and more; analysis.png. Directions are those of the posterior means of the whole training split; they are
counted by both definitions of fidelity: the share of singular values, as in the paper, and the share of variance, as in the public code. Held-out
sounds are rebuilt from the first directions, the others at their mean, or noise of the prior, as in the paper; and along each of the first four,
held-out latents are moved by -2 to 2 standard deviations, and pitch, loudness and brightness of their sound measured. Discrete latents have no prior:
their noise is as strong as training latents vary in a direction; what is decoded are vectors between their codes.
"""

from vae_jax.verbs import trained


def main(started: float) -> int:
    from vae_jax import analysis, session
    from vae_jax import mesh as meshes
    from vae_jax.latents import fidelity
    from vae_jax.media import figures

    run = trained.open_run_of_waves()
    analysis.check(run)
    sources = session.sources(run)
    role = next(r for r in ("test", "validation", "train") if r in sources)
    with session.Leaving() as leaving:
        found = analysis.fit(run, sources["train"], leaving.now)
        cut = found and analysis.cropped(run, sources[role], found, leaving.now)
        moved = cut and analysis.control(run, sources[role], found, leaving.now)
    if moved is None or not meshes.is_main():
        trained.left(moved is None)
        return 0
    made = {"checkpoint": run.step, "data": run.spec.name, "held_out": role, "frames": found.count, "latent": found.mean.size,
            "rank": fidelity.rank(found), **cut, "control": moved,
            "deviations": analysis.deviations(found).tolist(), "correlations": found.correlation.tolist()}
    fidelity.save(found, run.workdir / "analysis.npz")
    session.write_json(run.workdir / "analysis.json", made)
    (run.workdir / "analysis.png").write_bytes(analysis.figure(found, made, figures.LIGHT))
    print("\n".join(analysis.lines(made)))
    print(run.workdir / "analysis.png")
    return 0
