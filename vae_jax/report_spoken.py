"""The report of a model of sounds told by codes (wave_vqvae, wave_code_prior): measures a run and draws its page; `report.write` writes it."""

from typing import NamedTuple

import jax
import numpy as np

from vae_jax import assess_codes, evaluate, report
from vae_jax.media import figures, html, images, sounds
from vae_jax.media.sections import training

MEASURED = 300  # sounds of each split, evenly spaced
HEARD, SAMPLES = 6, 20  # held-out sounds with players, and new sounds
ROWS = (("loss", "loss", "nats a sample, or of a prior nats a code"),
        ("bits_per_sample", "bits a sample", "of the sound given its codes; of a prior, codes included"),
        ("perplexity", "perplexity", "of the codes of the whole split: how many, used equally often, would be as varied"),
        ("usage", "usage", "share of the codebook that occurs at all"),
        ("uniform_bits_per_code", "bits a code, uniform", "log2 of the codebook's size"),
        ("empirical_bits_per_code", "bits a code, empirical", "entropy of how often each code is used"),
        ("bits_per_code", "bits a code, learned", "-log2 p of the prior"),
        ("uniform_bits_per_second", "bits a second, uniform", "of codes stored as they are"),
        ("empirical_bits_per_second", "bits a second, empirical", ""),
        ("bits_per_second", "bits a second, learned", "by the prior"))
TITLES = {"loss": "loss, nats", "perplexity": "perplexity", "bits_per_code": "bits a code"}


class Spoken(NamedTuple):
    role: str  # of the held-out side
    rate: int
    voices: tuple[str, ...]  # classes that the decoder is told, if any
    copies: dict[str, np.ndarray]  # {original, copy and, where it is told a voice, in another one: [n, t]}, as long as they are
    lengths: np.ndarray  # [n] samples
    names: list[str]  # of the sounds
    given_away: dict[str, float]  # what assess_codes.figures found
    samples: tuple[np.ndarray, np.ndarray, list[str]] | None  # waves [n, t] from the prior, their lengths and what was asked for
    history: list[dict]
    files: dict[str, bytes]


def build(run, sources: dict, history: list[dict], info: dict) -> report.Report:
    """Measures a run (session.Session) on its splits {role: data.Source} and draws its report.

    history: the lines of metrics.jsonl. info: `name`, `command`, then facts for the page's head.
    """
    role, sources = report.held_out(sources), assess_codes.wholes(run, sources)
    found = evaluate.splits(run, sources, examples=MEASURED)
    field = assess_codes.voice(run)
    voices = run.spec.fields[field].labels if field else ()
    copies, lengths, names = _copies(run, role, field, voices)
    spoken = Spoken(role, run.task.front.rate, voices, copies, lengths, names, assess_codes.figures(run, sources),
                    _samples(run) if run.task.sample else None, history, {})
    front = run.task.front
    subtitle = (f"Sound at {front.rate:,} Hz through one position of codes for {front.hop} samples: "
                f"{found[f'eval/{role}/uniform_bits_per_second']:,.0f} bits a second, of {16 * front.rate:,} in 16 bits.")
    measured, sections = report.measured(sources, MEASURED, "sounds"), (listening, codes, samples, curves)
    return report.drawn(info, subtitle, measured, report.compared(ROWS, found, role), sections, spoken)


def _copies(run, role, field, voices):
    """Held-out sounds, evenly spaced, what comes back of them in their own voice, and in the next one."""
    source = assess_codes.whole(run, run.config.data.dir, getattr(run.config.data, role))
    shown = [name for name in assess_codes.FIELDS if name in run.spec.fields]

    def hear(params, variables, batch):
        original, made = assess_codes.copy(run, params, variables, batch)
        waves = {"original": original, "copy": made}
        if len(voices) > 1:
            target = (batch[field] + 1) % len(voices)
            waves["another voice"] = assess_codes.copy(run, params, variables, batch, target)[1]
        return {name: wave[..., 0] for name, wave in waves.items()} | {f"of {k}": batch[k] for k in shown} | {"valid": batch["valid"]}

    rows = evaluate.collect(hear, run.params, run.variables, source, run.mesh, HEARD, HEARD)
    names = [", ".join(figures.class_name(run.spec.fields[k].labels, rows[f"of {k}"][i]) for k in shown) for i in range(len(rows["valid"]))]
    if len(voices) > 1:
        names = [f"{name}; as {figures.class_name(voices, (own + 1) % len(voices))}" for name, own in zip(names, rows[f"of {field}"])]
    return {name: rows[name] for name in ("original", "copy", "another voice") if name in rows}, rows["valid"], names


def _samples(run):
    request = assess_codes.requests(run, SAMPLES)
    made = jax.device_get(jax.jit(run.task.sample)(run.params, run.variables, jax.random.key(run.config.seed + 2), request))
    asked = [", ".join(figures.class_name(run.spec.fields[k].labels, request[k][i]) for k in request if k != "temperature") for i in range(SAMPLES)]
    return made["audio/mean"], made["valid"], asked


def listening(run):
    """Held-out recordings and the model's: players, spectrograms side by side in one scale."""
    pictures = [sounds.show(x) for x in sounds.spectrograms([waves[..., None] for waves in run.copies.values()], run.rate, columns=400)]
    cells = sounds.side_by_side(pictures, run.names, 2)
    run.files["sounds.png"] = images.png(images.grid(cells, 2, max(4, cells.shape[2] // 100)))
    factor, files = sounds.gain(*run.copies.values()), []
    for i, (name, length) in enumerate(zip(run.names, run.lengths)):
        named = tuple((f"sound-{i + 1}-{kind.replace(' ', '-')}.wav", kind) for kind in run.copies)
        for (file, kind) in named:
            run.files[file] = sounds.wav(run.copies[kind][i, :max(1, length), None], run.rate, factor)
        files.append(html.Sounds(name, named))
    text = (f"Sounds of the {run.role} split, evenly spaced, none chosen by hand, and what the decoder draws from their codes" +
            (", in their own voice and in the next one." if "another voice" in run.copies else "."))
    caption = f"Left to right: {', '.join(run.copies)}. Frequency runs upwards, and one colour is the same level everywhere."
    return html.Section("sounds", "Sounds", text, ((html.Picture("sounds.png", "Spectrograms of recordings and of their copies"), caption),),
                        (("gain", factor, f"{20 * np.log10(factor):+.1f} dB on every file here"),), tuple(files))


def codes(run):
    """What codes give away of class and speaker (row V11)."""
    prefix = f"eval/{run.role}/"
    found = {name.removeprefix(prefix): value for name, value in run.given_away.items()}
    fields = [name for name in assess_codes.FIELDS if f"information_{name}" in found]
    if not fields:
        return None
    rows = [(name, found[f"probe_{name}_codes"], found[f"probe_{name}_z"], found[f"probe_{name}_majority"], found[f"information_{name}"],
             found[f"information_{name}_by_chance"], "") for name in fields]
    text = ("How well a linear probe names class and speaker of a held-out sound by its codes, and by what the encoder gave before they were codes; "
            "beside it the commonest class. Then the bits that one code tells, beyond what it seems to tell where classes are dealt out anew.")
    head = ("", "by codes", "by the encoder", "by chance", "bits a code", "of chance", "")
    return html.Section("codes", "What codes tell", text, table=html.Table(head, tuple(rows)))


def samples(run):
    """New sounds."""
    if run.samples is None:
        return None
    waves, lengths, asked = run.samples
    shown = sounds.show(sounds.spectrograms([waves[..., None]], run.rate, columns=400)[0])
    run.files["samples.png"] = images.png(images.grid(images.resize(shown, 5), 5, 6))
    factor = sounds.gain(waves)
    for i, (wave, length) in enumerate(zip(waves, lengths)):
        run.files[f"sample-{i + 1}.wav"] = sounds.wav(wave[:max(1, length), None], run.rate, factor)
    files = html.Sounds("", tuple((f"sample-{i + 1}.wav", name or f"sample {i + 1}") for i, name in enumerate(asked)))
    ended = int((lengths < waves.shape[1]).sum())
    text = f"Codes drawn from the prior, then spoken; none chosen by hand. {ended} of {len(waves)} end by themselves."
    return html.Section("samples", "New sounds", text, ((html.Picture("samples.png", "Spectrograms of new sounds"), "In the order of the players."),),
                        sounds=(files,))


def curves(run):
    return training(run, TITLES, "Every split measured in the same way.")
