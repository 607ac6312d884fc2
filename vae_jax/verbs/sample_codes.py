"""What `sample` does for priors over codes of sounds: new sounds, of every class in turn or of those that are asked for."""

import jax
import numpy as np

from vae_jax import assess_codes, session
from vae_jax import mesh as meshes
from vae_jax.config import UserError
from vae_jax.media import images, sounds
from vae_jax.verbs import trained

COUNT = 30  # sounds where --count is not given
BATCH = 32  # made at once
FILES = 100  # written as wavs


def main(run, count: int, asked: dict[str, str], temperature: float, seed: int) -> int:
    """See the verb's own words; asked: {field: name of a class, '' = all in turn} of --label and --speaker."""
    from vae_jax.tasks import wave_code_prior

    told, front = wave_code_prior.told(run.config.model), run.task.front
    numbers = {field: _number(run, field, name, told) for field, name in asked.items() if name}
    request = assess_codes.requests(run, count, temperature, **numbers)
    sample, parts = jax.jit(run.task.sample), []
    with session.Leaving() as leaving:
        for start in range(0, count, BATCH):
            rows = np.minimum(np.arange(start, start + min(BATCH, count)), count - 1)
            key = jax.random.fold_in(jax.random.key(seed), start)
            made = jax.device_get(sample(run.params, run.variables, key, {k: v[rows] for k, v in request.items()}))
            parts.append({k: v[:count - start] for k, v in made.items()})
            if leaving.now():
                trained.left(True)
                return 0
    if not meshes.is_main():
        return 0
    found = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
    waves, marks = found["audio/mean"][..., None], "".join(f"-{field}{number}" for field, number in numbers.items())
    folder, name = run.workdir / "samples", f"count{count}{marks}-temperature{temperature:g}-seed{seed}"
    (folder / name).mkdir(parents=True, exist_ok=True)
    session.write_npz(folder / f"{name}.npz", {"codes": found["codes"], "valid": found["valid"], **{k: request[k] for k in told}})
    factor = sounds.gain(waves)
    for i, (wave, valid) in enumerate(zip(waves[:FILES], found["valid"])):
        of = "".join(f"-{run.spec.fields[k].labels[request[k][i]]}" for k in told)
        of = of if of.replace("-", "").isalnum() else ""  # a class name may be no file name
        (folder / name / f"{i:03d}{of}.wav").write_bytes(sounds.wav(wave[:max(1, valid)], front.rate, factor))
    columns = min(10, count)
    pictures = sounds.show(sounds.spectrograms([waves[:FILES]], front.rate)[0])
    (folder / f"{name}.png").write_bytes(images.png(images.grid(images.resize(pictures, columns), columns, 4)))
    ended = found["valid"] < front.shape[0]
    print(f"{len(waves[:FILES])} wavs in {folder / name}, {found['valid'].mean() / front.rate:.2f} s long on average; {ended.sum()} of {count} end "
          f"by themselves; gain {factor:.3g}")
    print(folder / f"{name}.png")
    return 0


def _number(run, field: str, name: str, told) -> int:
    if field not in told:
        raise UserError(f"--{field}={name}: samples of this run are not asked for a {field} ({', '.join(told) or 'nothing'} is told).")
    names = run.spec.fields[field].labels
    if name not in names:
        raise UserError(f"--{field}={name} is not a class of this data; classes are {', '.join(names[:20])}.")
    return names.index(name)
