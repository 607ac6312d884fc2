"""The report of a model of waves: measures a run and draws its page; `report.write` writes it."""

import json

import jax
import numpy as np

from vae_jax import analysis, assess_waves, evaluate, recordings, report
from vae_jax.data import spaced
from vae_jax.latents import fidelity
from vae_jax.media import figures, wave_sections
from vae_jax.tasks import rave

MEASURED = 1_000  # crops of each split, evenly spaced
HEARD, SECONDS = 6, 10.0  # recordings, and the longest beginning of one
SAMPLES, FIDELITY = 4, 0.95  # new sounds; of the directions that go on as in training
ROWS = (("loss", "spectral distance", "of crops rebuilt from the posterior means; config.model.distance says which"),
        ("silence_distance", "of silence", "baseline: nothing is heard"),
        ("mean_spectrum_distance", "of the mean spectrum", "baseline: every frame has the mean magnitudes of the training sounds"),
        ("distance_ratio", "ratio", "our distance over the better baseline's"),
        ("error_db", "error in dB", "root mean squared difference of the spectrograms' levels, nothing below -80 dB counts"),
        ("high_error_db", "error above {high:g} Hz", "in dB, of those frequencies alone"),
        ("kl", "KL", "nats a latent frame"),
        ("active_units", "active units", "of {latent}: posterior mean varies over the frames by more than 0.01"),
        ("perplexity", "perplexity of the codes", "the mean over levels: how many codes, used equally often, would be as varied"),
        ("usage", "use of the codes", "the mean over levels: share of the codes that are chosen at all"),
        ("uniform_bits_per_second", "bits a second", "all codes alike"),
        ("empirical_bits_per_second", "bits a second, by frequency", "each level's codes by themselves, as often as they come in this split"))


def build(run, sources: dict, history: list[dict], info: dict) -> report.Report:
    """Measures a run (session.Session) on its splits {role: data.Source} and draws its report.

    history: the lines of metrics.jsonl. info: `name`, `command`, then facts for the page's head. What `analyse` wrote is shown if it is of this
    checkpoint.
    """
    role = report.held_out(sources)
    figures_of = evaluate.splits(run, sources, examples=MEASURED)
    figures_of |= assess_waves.baselines(run, sources, examples=MEASURED)
    figures_of |= assess_waves.ratios(figures_of)
    front, through = run.task.front, recordings.through(run)
    found, stored = _analysed(run)
    kl, variance = _latents(run, sources[role], through.hop)
    r = 0 if found is None else fidelity.dims_for(found, FIDELITY)
    samples = round(SECONDS * front.rate)
    alone = "code by itself, as often as in training" if "quantizer" in run.variables else "frame by itself from the prior"
    drawn = [analysis.draw(run, found, r, through.frames(samples), 1.0, (0, i)) for i in range(SAMPLES)]
    waves = wave_sections.Waves(
        role=role, rate=front.rate, high_hz=run.config.model.high_hz, figures=figures_of, heard=_heard(run, sources[role], through, samples), kl=kl,
        variance=variance, analysis=found, stored=stored,
        samples=[through.decode(z, samples, jax.random.key(i)) for i, z in enumerate(drawn)],
        drawn=(f"every {alone}" if found is None
               else f"the first {r} directions go on from frame to frame as in training, the others are noise"),
        history=history, files={})
    titles = [(name, title.format(high=waves.high_hz), note.format(latent=len(variance))) for name, title, note in ROWS]
    measured, facts = report.measured(sources, MEASURED, "crops"), ()
    if stored is None:
        facts = (("analysis", f"none of this checkpoint; {str(info['command']).replace(' report ', ' analyse ')} adds directions and control"),)
    c = front.shape[1]
    subtitle = (f"Sound of {c} channel{'s' * (c > 1)} at {front.rate:,} Hz through {len(variance)} numbers a frame, "
                f"{front.rate / through.hop:.4g} frames a second.")
    return report.drawn(info, subtitle, measured, report.compared(titles, figures_of, role), wave_sections.SECTIONS, waves, *facts)


def _analysed(run):
    """(the analysis, its analysis.json) of this checkpoint, else (None, None)."""
    if not all((run.workdir / name).exists() for name in ("analysis.npz", "analysis.json")):
        return None, None
    found, stored = fidelity.load(run.workdir / "analysis.npz"), json.loads((run.workdir / "analysis.json").read_text())
    return (found, stored) if found.step == run.step == stored["checkpoint"] else (None, None)


def _latents(run, source, hop):
    """(KL of each latent in nats a frame or None, variance of its mean over frames), each [d], of at most MEASURED crops."""

    def measure(params, variables, batch):
        return rave.latent_figures(run.task.encode(params, variables, batch), hop, batch["valid"])

    rows = evaluate.collect(measure, run.params, run.variables, source, run.mesh, run.config.eval.batch, MEASURED)
    rows = {name: values.mean(0, dtype=np.float64) for name, values in rows.items()}
    return rows.get("kl"), rows["square"] - rows["mean"] ** 2


def _heard(run, source, through, samples) -> list[wave_sections.Heard]:
    """The beginnings of records evenly spaced over a split."""
    found = []
    for row in spaced(len(source.split), HEARD).tolist():
        record = source.split.read_one(row, [name for name in ("audio", "valid", "source") if name in source.split.fields])
        wave = record["audio"][:min(int(record["valid"]), samples)].astype(np.float32) / 32768
        padded = np.pad(wave, ((0, samples - len(wave)), (0, 0)))  # one length, so that it is compiled once
        made = through.decode(through.encode(padded), samples)[:len(wave)]
        errors = through.errors(wave, made)
        name = figures.class_name((str(record.get("source", f"record {row}")),), 0, 40)
        found.append(wave_sections.Heard(name, wave, made, float(errors["distance"].mean()), float(errors["error_db"].mean())))
    return found
