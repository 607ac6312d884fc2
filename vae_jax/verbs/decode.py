"""decode: the sound of latents that `encode` or `sample` wrote, changed or not.

    python -m vae_jax encode --workdir=runs/rave --wav=mine.wav
    python -m vae_jax decode --workdir=runs/rave --latents=runs/rave/latents/mine.npz

The file may be changed in between: `latents` [frames, d] with more or fewer frames, other values, another's. Of coordinates [frames, r] (encode
--fidelity), the directions that are left out are noise of the prior, always the same, as in the paper; of discrete latents, which have no prior,
noise as strong as training latents vary there. Their `indices` are not looked at. Writes WORKDIR/latents/NAME-model.wav, no
louder than the model plays it. Latents of another model of the same sizes are played, and it is said that they are another's.
"""

import io
import pathlib
import zipfile
import zlib

from absl import flags

from vae_jax.config import UserError
from vae_jax.verbs import trained

LATENTS = flags.DEFINE_string("latents", "", "A file that encode or sample wrote.")


def main(started: float) -> int:
    import jax
    import numpy as np

    from vae_jax import analysis, recordings, session
    from vae_jax import mesh as meshes
    from vae_jax.latents import fidelity
    from vae_jax.media import sounds

    if not LATENTS.value:
        raise UserError("give a file that encode wrote: --latents=WORKDIR/latents/NAME.npz.")
    run = trained.open_run_of_waves()
    latents, stored = _read(LATENTS.value)
    with session.Leaving() as leaving:
        through = recordings.through(run, leaving.now)
        _check(run, through, latents, stored)
        if "analysis" in stored:
            directions = analysis.load(run)
            if stored["analysis"] != analysis.mark(directions):
                raise UserError(f"--latents={LATENTS.value} holds coordinates of another analysis than {run.workdir / 'analysis.npz'}: encode the "
                                "sound again.")
            noise = jax.random.normal(jax.random.key(0), (len(latents), through.latent)) * np.float32(analysis.unused(run, directions))
            latents = np.asarray(fidelity.expand(directions, latents, noise))
        whole = stored["samples"] if through.frames(stored["samples"]) == len(latents) else None  # frames were added or taken away
        wave = through.decode(latents, whole)
    if wave is None or not meshes.is_main():
        trained.left(wave is None)
        return 0
    folder = run.workdir / "latents"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{pathlib.Path(LATENTS.value).stem}-model.wav"
    recordings.refuse(LATENTS.value, path)
    factor = min(1.0, sounds.gain(wave))
    path.write_bytes(sounds.wav(wave, run.task.front.rate, factor))
    if stored.get("encoder") != through.encoder:
        print(f"these latents are of another encoder, of another run or another step of stage 1 (step {stored['step']} there, {run.step} here): they "
              "are played as they are, and need not sound like what they were made from")
    elif stored["step"] != run.step:
        print(f"encoded at step {stored['step']}, decoded at step {run.step}")
    print(f"{len(wave) / run.task.front.rate:.2f} s of {len(latents)} frames, gain of the file {factor:.3g}")
    print(path)
    return 0


def _read(path: str):
    """(latents float32 [n, k], the whole numbers that stand beside them). Raises UserError for anything else."""
    import numpy as np

    try:
        with np.load(io.BytesIO(pathlib.Path(path).read_bytes()), allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        latents, _ = np.asarray(found.pop("latents"), np.float32), found.pop("indices", None)
        stored = {name: int(value) for name, value in found.items()}
        if latents.ndim != 2 or not latents.size or {"rate", "hop", "samples", "step"} - stored.keys():
            raise ValueError("it lacks latents [frames, d] or what goes with them")
    except OSError as error:
        raise UserError(f"--latents={path} cannot be read ({error.strerror or error}).") from None
    except (ValueError, TypeError, KeyError, EOFError, RuntimeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"--latents={path} is damaged or not a file that encode wrote ({error}).") from None
    if not np.isfinite(latents).all():
        raise UserError(f"--latents={path} holds values that are not finite.")
    return latents, stored


def _check(run, through, latents, stored) -> None:
    """Raises UserError for latents of another model."""
    rate, wide = run.task.front.rate, latents.shape[1]
    fits = wide <= through.latent if "analysis" in stored else wide == through.latent
    if not fits or stored["hop"] != through.hop or stored["rate"] != rate:
        raise UserError(f"--latents={LATENTS.value} is of another model: its frames have {wide} numbers and {stored['hop']} samples at "
                        f"{stored['rate']} Hz, those of {run.workdir} {through.latent} and {through.hop} at {rate} Hz.")
