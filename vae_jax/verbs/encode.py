"""encode: a sound file as latents, a vector for each frame of the model, to be looked at, changed and decoded.

    python -m vae_jax encode --workdir=runs/rave --wav=mine.wav
    python -m vae_jax encode --workdir=runs/rave --wav=mine.wav --fidelity=0.95      only the directions that matter, after `analyse`
    python -m vae_jax decode --workdir=runs/rave --latents=runs/rave/latents/mine.npz

Writes WORKDIR/latents/NAME.npz, NAME from the file and the directions kept (mine, mine-fidelity0.95, mine-dims8): `latents` float32 [frames, d], the
posterior means, no draw; `rate`, `hop` (samples a frame), `samples` of the sound at the model's rate, `step` of the checkpoint, `encoder`, a number
that tells its encoder from others. With --fidelity or --dims `latents` are the coordinates [frames, r] on the first r directions of
WORKDIR/analysis.npz, and `analysis` says of which analysis. Of discrete latents, the vectors that their codes stand for, there are also the codes,
`indices` int32 [frames, levels], unless directions are left out; `decode` takes the vectors. A file of latents that was changed is not overwritten. A
sound of any length, rate and number of channels.
"""

import pathlib

from absl import flags

from vae_jax.config import UserError
from vae_jax.verbs import trained

WAV = flags.DEFINE_string("wav", "", "A sound file (WAV, AIFF, FLAC, Ogg, MP3).")
FIDELITY = flags.DEFINE_float("fidelity", None, "Keep the first directions, as many as have this share of all singular values; 0.95, say.")
DIMS = flags.DEFINE_integer("dims", None, "Keep so many directions.", lower_bound=1)


def main(started: float) -> int:
    import numpy as np

    from vae_jax import analysis, recordings, session
    from vae_jax import mesh as meshes
    from vae_jax.latents import fidelity

    if not WAV.value:
        raise UserError("give a sound file: --wav=mine.wav.")
    run = trained.open_run_of_waves()
    directions = None
    if FIDELITY.value is not None or DIMS.value is not None:
        directions, r = analysis.directions(run, FIDELITY.value, DIMS.value)
    wave = recordings.read(run, WAV.value, "wav")
    with session.Leaving() as leaving:
        through = recordings.through(run, leaving.now)
        latents = through.encode(wave)
        discrete = latents is not None and directions is None and run.config.model.latents == "discrete"
        indices = through.indices(wave) if discrete else latents
    if indices is None or not meshes.is_main():
        trained.left(indices is None)
        return 0
    arrays, kept = recordings.stored(run, through, latents, len(wave)), ""
    if discrete:
        arrays["indices"] = indices
    if directions is not None:
        arrays |= {"latents": np.asarray(fidelity.compress(directions, latents, r)), "analysis": np.asarray(analysis.mark(directions))}
        kept = f"-dims{r}" if FIDELITY.value is None else f"-fidelity{FIDELITY.value:g}"
    folder = run.workdir / "latents"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{pathlib.Path(WAV.value).stem}{kept}.npz"
    recordings.refuse(WAV.value, path)
    recordings.keep_changed({path: arrays})
    session.write_npz(path, arrays)
    rate = run.task.front.rate
    print(f"{len(wave) / rate:.2f} s as {len(latents)} frames of {arrays['latents'].shape[1]} numbers, {rate / through.hop:.4g} frames a second")
    print(path)
    return 0
