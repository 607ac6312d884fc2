"""What `sample` does for models of the wave: new sounds of any length."""

import jax
import numpy as np

from vae_jax import analysis, recordings, session
from vae_jax import mesh as meshes
from vae_jax.media import images, sounds
from vae_jax.verbs import trained

COUNT = 8  # sounds where --count is not given
FILES = 64  # written as wavs
FIDELITY = 0.95  # where --fidelity is not given


def main(run, count: int, seconds: float | None, f: float | None, temperature: float, seed: int) -> int:
    """See the verb's own words; its flags."""
    front = run.task.front
    samples = front.shape[0] if seconds is None else round(seconds * front.rate)
    directions = None
    if f != 0 and (f is not None or (run.workdir / "analysis.npz").exists()):
        f = FIDELITY if f is None else f
        directions, r = analysis.directions(run, f, None)
    folder, name = run.workdir / "samples", f"count{count}-seconds{samples / front.rate:.4g}-" + (
        f"fidelity{f:g}" if directions else "prior") + f"-temperature{temperature:g}-seed{seed}"
    with session.Leaving() as leaving:
        through = recordings.through(run, leaving.now)
        latents = [analysis.draw(run, directions, r if directions else 0, through.frames(samples), temperature, (seed, i)) for i in range(count)]
        files = {folder / name / f"{i:03d}.npz": recordings.stored(run, through, code, samples) for i, code in enumerate(latents)}
        recordings.keep_changed(files)
        waves = []
        for i, code in enumerate(latents):
            waves.append(through.decode(code, samples, jax.random.fold_in(jax.random.key(seed), i)))
            if waves[-1] is None or leaving.now():
                trained.left(True)
                return 0
    if not meshes.is_main():
        return 0
    (folder / name).mkdir(parents=True, exist_ok=True)
    for path, arrays in files.items():
        session.write_npz(path, arrays)
    factor = sounds.gain(*waves)
    for i, wave in enumerate(waves[:FILES]):
        (folder / name / f"{i:03d}.wav").write_bytes(sounds.wav(wave, front.rate, factor))
    columns = min(2 if samples > 5 * front.rate else 4, count)
    pictures = sounds.show(sounds.spectrograms([np.stack(waves[:FILES])], front.rate)[0])
    (folder / f"{name}.png").write_bytes(images.png(images.grid(images.resize(pictures, columns), columns, 6)))
    discrete = run.config.model.latents == "discrete"
    how = (f"the first {r} of {through.latent} directions as in training (fidelity {f:g}), the others noise" + ("" if discrete else " of the prior")
           if directions else "every code by itself, as often as in training" if discrete else "every frame by itself from the prior")
    print(f"{len(waves[:FILES])} wavs of {samples / front.rate:.4g} s in {folder / name}: {how}; gain {factor:.3g}")
    print(folder / f"{name}.png")
    return 0
