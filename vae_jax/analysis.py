"""What the latents of a model of waves hold: directions fitted to the training split, the sound of held-out latents cut to the first of them, and
what moving along a direction does to pitch, loudness and brightness (Caillon and Esling 2021, arXiv:2111.05011, sections 3.2 and 5.3; rows R7, R9).
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from vae_jax import data as datas
from vae_jax import evaluate
from vae_jax import mesh as meshes
from vae_jax.config import UserError
from vae_jax.dsp import descriptors
from vae_jax.latents import fidelity
from vae_jax.losses import spectral
from vae_jax.media import figures
from vae_jax.tasks import rave

LEVELS = (0.80, 0.90, 0.95, 0.99, 1.0)  # of fidelity, as in the paper; 1 keeps all that vary
CLIPS = 64  # held-out crops, evenly spaced, whose cut latents are decoded
MOVED, DIRECTIONS, OFFSETS = 12, 4, (-2, -1, 0, 1, 2)  # crops and first directions that are moved, by so many standard deviations
DESCRIBED = {"pitch": "semitones", "loudness": "dB", "centroid": "semitones"}
ALIKE = 1e-3  # relative rise of an error that is not called one


def load(run) -> fidelity.Analysis:
    """The run's analysis; says so where it was made at another checkpoint. Raises UserError where it is missing or another model's."""
    found, wide = fidelity.load(run.workdir / "analysis.npz"), run.config.model.latent
    if found.mean.size != wide:
        raise UserError(f"{run.workdir / 'analysis.npz'} is of latents of {found.mean.size} numbers, not {wide}: write it again with `analyse`.")
    if found.step != run.step:
        print(f"{run.workdir / 'analysis.npz'} was made at step {found.step}, this is step {run.step}")
    return found


def directions(run, f: float | None, r: int | None) -> tuple[fidelity.Analysis, int]:
    """(the run's analysis, how many directions a fidelity f or a number r asks for). Raises UserError."""
    if f is not None and r is not None:
        raise UserError("--fidelity and --dims say the same: give one of them.")
    found = load(run)
    if r is not None and r > found.mean.size:
        raise UserError(f"--dims={r} is more than the {found.mean.size} directions there are.")
    return found, fidelity.dims_for(found, f) if r is None else r


def mark(analysis: fidelity.Analysis) -> int:
    """A number that tells one set of directions from another."""
    return zlib.crc32(analysis.mean.tobytes() + analysis.components.tobytes())


def deviations(analysis: fidelity.Analysis) -> np.ndarray:
    """Standard deviation [d] of posterior means along each direction."""
    return analysis.singular_values / np.sqrt(analysis.count)


def unused(run, analysis: fidelity.Analysis) -> np.ndarray:
    """Deviation [d] of the noise that stands in directions which are left out: the prior's, 1; of discrete latents, which have none, their own."""
    return deviations(analysis) if run.config.model.latents == "discrete" else np.ones(analysis.mean.size)


def walk(analysis: fidelity.Analysis, r: int, frames: int, temperature: float, seed, others=1.0) -> np.ndarray:
    """Latents [frames, d] drawn as training sounds go on: each of the first r directions by itself with the deviation and the correlation from frame
    to frame that the training means have (a Gaussian AR(1)), the others noise of deviations `others`; temperature scales them all around the mean."""
    noise = np.random.default_rng(seed).standard_normal((frames, analysis.mean.size))
    rho, coordinates = np.broadcast_to(analysis.correlation, analysis.mean.shape)[:r], noise[:, :r].copy()
    for t in range(1, frames):
        coordinates[t] = rho * coordinates[t - 1] + np.sqrt(1 - rho**2) * noise[t, :r]
    drawn = temperature * deviations(analysis)[:r] * coordinates
    return np.asarray(fidelity.expand(analysis, np.float32(drawn), np.float32(temperature * others * noise)))


def draw(run, analysis: fidelity.Analysis | None, r: int, frames: int, temperature: float, seed) -> np.ndarray:
    """Latents [frames, d] of one new sound: those of `walk`, or without an analysis every frame by itself from the prior; of discrete latents the
    codes nearest to the walk, or those that `rave.draw_codes` draws."""
    m, codebooks = run.config.model, run.variables.get("quantizer")
    if analysis is not None:
        z = walk(analysis, r, frames, temperature, seed, unused(run, analysis))
        return z if codebooks is None else np.asarray(rave.code_of(m, z, codebooks)["mean"])
    if codebooks is not None:
        key = jax.random.key(np.random.default_rng(seed).integers(2**31))
        return np.asarray(rave.draw_codes(m, codebooks, key, frames, jnp.full(1, temperature))[0])
    z = np.float32(temperature * np.random.default_rng(seed).standard_normal((frames, m.latent)))
    return np.asarray(rave.posterior("spherical", z)[0]) if m.latents == "spherical" else z


def check(run) -> None:
    """Raises UserError for latents whose prior is not N(0, I): there is nothing that unused directions fall back to."""
    if run.config.model.latents == "spherical":
        raise UserError("latents on a sphere have no normal prior, so their directions cannot be told into used and unused ones: train with "
                        "config.model.latents=variational.")


def fit(run, source, interrupted=lambda: False) -> fidelity.Analysis | None:
    """Directions of the posterior means of a split's frames, all that begin in sound and not in the zeros behind a short recording; None if
    interrupted. correlation: of a direction's coordinates in successive frames of a crop."""
    crop, pairs, total, stopped = run.task.front.shape[0], 0, {"ab": 0.0, "a": 0.0, "b": 0.0}, []

    def encode(params, variables, batch):
        return {"mean": run.task.encode(params, variables, batch)["mean"], "valid": batch["valid"]}

    def means():
        nonlocal pairs
        for part in evaluate.batches(encode, run.params, run.variables, source, run.mesh, run.config.eval.batch):
            kept = -(-part["valid"].astype(np.int64) * part["mean"].shape[1] // crop)
            clips = [mean[:count].astype(np.float64) for mean, count in zip(part["mean"], kept)]
            a, b = (np.concatenate([clip[cut] for clip in clips]) for cut in (slice(None, -1), slice(1, None)))
            pairs += len(a)
            for name, value in (("ab", a.T @ b), ("a", a.sum(0)), ("b", b.sum(0))):
                total[name] = total[name] + value
            yield np.concatenate(clips)
            if interrupted():
                stopped.append(True)
                return

    found = fidelity.fit(means())
    if stopped:
        return None
    m, along = found.mean, found.components
    lagged = total["ab"] - np.outer(total["a"], m) - np.outer(m, total["b"]) + pairs * np.outer(m, m)
    covariance = np.einsum("di,ij,dj->d", along, lagged, along) / max(pairs, 1)
    variance = deviations(found) ** 2
    correlation = np.divide(covariance, variance, out=np.zeros_like(variance), where=variance > 0)
    return found._replace(step=run.step, correlation=np.clip(correlation, -1.0, 1.0))


def cropped(run, source, analysis: fidelity.Analysis, interrupted=lambda: False) -> dict | None:
    """Errors of held-out crops rebuilt from r directions, the others at their mean or noise as `unused` says; None if interrupted.

    {'levels': [{'fidelity', 'singular', 'variance': directions of each definition}], 'full': errors of the latents as they are,
    'cut': [{'directions', 'fidelity', 'mean': errors, 'noise': errors}] by rising r, for all r of `levels`, 'falls': {fill: {error: bool}}};
    errors: 'distance' as config.model says, 'error_db', 'high_error_db'.
    """
    m, front = run.config.model, run.task.front
    others = np.float32(unused(run, analysis))
    levels = [{"fidelity": f} | {kind: fidelity.dims_for(analysis, f, kind) for kind in fidelity.KINDS} for f in LEVELS]

    @jax.jit
    def measure(params, variables, batch, r, noisy):
        z = run.task.encode(params, variables, batch)["mean"]
        noise = noisy * others * jax.random.normal(jax.random.key(0), z.shape)
        made = run.task.decode(params, variables, jnp.where(r < 0, z, fidelity.crop(analysis, z, r, noise)), None)["audio"]
        found = spectral.of_clips(front.analyse(batch), made, front.rate, front.delay, m.distance, m.windows, m.high_hz, batch["valid"])
        return {name: jnp.sum(jnp.where(batch["mask"] > 0, values, 0.0)) for name, values in found.items()}

    asked = [(-1, 0.0)] + [(r, noisy) for r in sorted({level[kind] for level in levels for kind in fidelity.KINDS}) for noisy in (0.0, 1.0)]
    sums, count = {ask: {} for ask in asked}, 0
    for batch, valid in datas.eval_batches(source, run.mesh, meshes.round_up(run.mesh, run.config.eval.batch), CLIPS):
        count += valid
        for ask in asked:
            for name, value in jax.device_get(measure(run.params, run.variables, batch, *ask)).items():
                sums[ask][name] = sums[ask].get(name, 0.0) + float(value)
            if interrupted():
                return None
    errors = {ask: {name: value / count for name, value in found.items()} for ask, found in sums.items()}
    curve = fidelity.curve(analysis)
    cut = [{"directions": r, "fidelity": float(curve[r - 1]), "mean": errors[r, 0.0], "noise": errors[r, 1.0]} for r, noisy in asked if noisy]
    falls = {fill: {name: _falls([row[fill][name] for row in cut]) for name in cut[0][fill]} for fill in ("mean", "noise")}
    return {"levels": levels, "clips": count, "full": errors[-1, 0.0], "cut": cut, "falls": falls}


def _falls(values) -> bool:
    """Whether they never rise, but for rounding."""
    values = np.asarray(values)
    return bool(np.all(np.diff(values) <= ALIKE * np.abs(values[:-1])))


def control(run, source, analysis: fidelity.Analysis, interrupted=lambda: False) -> list[dict] | None:
    """What moving held-out latents along each of the first directions does to their sound; None if interrupted.

    [{'direction': from 1, 'deviation', descriptor: {'correlation', 'change', 'clips'}}]. Whole crops are moved by OFFSETS standard deviations; pitch
    (median of the voiced frames, semitones), loudness (dB) and centroid (semitones) are measured. correlation: Spearman's of offset and measure, the
    mean over crops; change: the mean rise from the first to the last offset. Crops whose sound lacks a measure at some offset are left out of it.
    """
    front, rows = run.task.front, datas.spaced(len(source), MOVED)
    batch = jax.device_put({k: v for k, v in source.read(rows).items() if k == "audio"}, meshes.replicated(run.mesh))
    z = jax.jit(run.task.encode)(run.params, run.variables, batch)["mean"]
    decode = jax.jit(lambda params, variables, z, shift: run.task.decode(params, variables, z + shift, None)["audio"])
    size, heard, found = deviations(analysis), {}, []
    for i in range(min(DIRECTIONS, max(1, fidelity.rank(analysis)))):
        for offset in OFFSETS:
            at = (i, offset) if offset else ()
            if at in heard:
                continue
            shift = np.float32(offset * size[i] * analysis.components[i])
            waves = jax.device_get(decode(run.params, run.variables, z, shift)).mean(-1)
            heard[at] = [_described(wave, front.rate) for wave in waves]
            if interrupted():
                return None
        values = np.array([[list(clip.values()) for clip in heard[(i, offset) if offset else ()]] for offset in OFFSETS])  # [offset, clip, measure]
        measured = {name: values[:, np.isfinite(values[:, :, k]).all(0), k] for k, name in enumerate(heard[()][0])}
        found.append({"direction": i + 1, "deviation": float(size[i])} | {name: _related(kept) for name, kept in measured.items()})
    return found


def _described(wave, rate):
    found = descriptors.of_clip(wave, rate)
    return {"pitch": 12 * np.log2(found["pitch_hz"]), "loudness": found["loudness_db"], "centroid": 12 * np.log2(found["centroid_hz"])}


def _related(measured):
    """Of measures [offset, clip]."""
    clips = measured.shape[1]
    if not clips:
        return {"clips": 0, "correlation": None, "change": None}
    each = [scipy.stats.spearmanr(OFFSETS, values).statistic if np.ptp(values) > 0 else 0.0 for values in measured.T]
    return {"clips": clips, "correlation": float(np.mean(each)), "change": float((measured[-1] - measured[0]).mean())}


def lines(made: dict) -> list[str]:
    """The content of an analysis.json as tables for a terminal."""
    cut = {row["directions"]: row for row in made["cut"]}
    shown = [f"{made['frames']:,} frames of the training split, rank {made['rank']} of {made['latent']}; errors over {made['clips']} held-out crops "
             f"({made['held_out']})", "",
             f"{'':10s}{'by singular values':>31s}{'':8s}{'by variance':>31s}",
             f"{'fidelity':10s}" + f"{'directions':>11s}{'distance':>10s}{'(noise)':>10s}{'':8s}" * 2]
    for level in made["levels"]:
        cells = [f"{level[kind]:11d}{cut[level[kind]]['mean']['distance']:10.4f}{cut[level[kind]]['noise']['distance']:10.4f}{'':8s}"
                 for kind in fidelity.KINDS]
        shown.append(f"{level['fidelity']:<10g}" + "".join(cells).rstrip())
    full, last = made["full"], made["cut"][-1]["mean"]
    shown.append(f"the codes as they are: distance {full['distance']:.4f}, error {full['error_db']:.2f} dB; cut at fidelity 1: "
                 f"{last['distance']:.4f}, {last['error_db']:.2f} dB")
    for fill, what in (("mean", "the others at their mean"), ("noise", "the others noise")):
        shown.append(f"{what}: with more directions " + ", ".join(f"{name} {'never rises' if falls else 'rises somewhere'}"
                                                                 for name, falls in made["falls"][fill].items()))
    shown += ["", f"{'direction':10s}{'deviation':>10s}" + "".join(f"{name + ' (-2 to 2 sd)':>26s}" for name in DESCRIBED)]
    for row in made["control"]:
        cells = ["none" if row[name]["correlation"] is None else f"{row[name]['correlation']:+.2f}{row[name]['change']:+7.2f} {unit}"
                 for name, unit in DESCRIBED.items()]
        shown.append(f"{row['direction']:<10d}{row['deviation']:10.3f}" + "".join(f"{cell:>26s}" for cell in cells))
    return shown + ["each: Spearman's correlation, the mean over crops, and the change of the sound"]


def figure(analysis: fidelity.Analysis, made: dict, theme) -> bytes:
    """Directions and distance against fidelity."""
    curves = {"by singular values": fidelity.curve(analysis), "by variance": fidelity.curve(analysis, "variance")}
    at = [row["fidelity"] for row in made["cut"]]
    fills = {"others at their mean": "mean", "others noise": "noise"}
    distances = {name: (at, [row[fill]["distance"] for row in made["cut"]]) for name, fill in fills.items()}
    return figures.cropped(curves, distances, made["full"]["distance"], theme=theme)
