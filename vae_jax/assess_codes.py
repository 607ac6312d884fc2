"""Whole-split figures of a model of sounds told by codes (wave_vqvae, wave_code_prior): what the codes give away, and what judges hear in copies, in
copies with another voice, and in new sounds."""

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import data as datas
from vae_jax import evaluate, records, session
from vae_jax.config import UserError
from vae_jax.latents import pca, probes
from vae_jax.losses import quantization, spectral
from vae_jax.tasks import vqvae, wave_vqvae

FIELDS = ("label", "speaker")
PARTS, DIRECTIONS = 6, 64  # equal parts of a sound, which linear probes see side by side, and principal directions of these that they are given
PROBED = 4_000  # examples of a split, evenly spaced
SHUFFLES = 20  # of the classes among sounds, whose information is that of chance
JUDGED, HEARD = 400, 50  # held-out sounds, evenly spaced, that a judge hears; and at once
SAMPLES = 300  # new sounds that a judge hears


def figures(run, sources: dict, interrupted=lambda: False) -> dict | None:
    """What codes tell of class and speaker (V11), held out; None if interrupted. Nothing for a prior: its codes are those of another run.

    sources: as `wholes` gives them.
    probe_FIELD_codes, probe_FIELD_z: accuracy of logistic regression on the mean of what codes stand for, and of what the encoder gave, in each of
    PARTS equal parts of a sound, both on their first DIRECTIONS; probe_FIELD_majority: of always the commonest class. information_FIELD: bits that
    one code tells of the class of its sound, I(code; class) of the held-out counts (plug-in) less information_FIELD_by_chance, the same where
    classes are dealt out anew.
    """
    fields = [name for name in FIELDS if name in run.spec.fields and run.spec.fields[name].labels]
    role = next((r for r in ("test", "validation") if r in sources), None)
    if run.task.sample is not None or role is None:
        return {}
    rows = {}
    for part in ("train", role):
        rows[part] = _codes(run, sources[part], fields, interrupted)
        if rows[part] is None:
            return None
    train, held, found = rows["train"], rows[role], {}
    for name in fields:
        classes = [len(np.unique(r[name])) for r in (train, held)]
        if min(classes) < 2:
            continue
        for kind in ("codes", "z"):
            directions = pca.fit(train[kind], DIRECTIONS)
            views = [pca.project(directions, r[kind]) for r in (train, held)]
            found[f"eval/{role}/probe_{name}_{kind}"] = probes.linear_probe(views[0], train[name], views[1], held[name])[0]
            if interrupted():
                return None
        found[f"eval/{role}/probe_{name}_majority"] = float(np.bincount(held[name]).max() / len(held[name]))
        chance = [information(held["counts"], np.random.default_rng(i).permutation(held[name])) for i in range(SHUFFLES)]
        found[f"eval/{role}/information_{name}"] = information(held["counts"], held[name]) - float(np.mean(chance))
        found[f"eval/{role}/information_{name}_by_chance"] = float(np.mean(chance))
    return found


def information(counts_nck, class_n) -> float:
    """Bits that a code tells of its sound's class: mutual information of the counts as they are, the mean over codebooks."""
    joint = np.einsum("nck,ng->ckg", np.float64(counts_nck), np.eye(class_n.max() + 1)[class_n])
    joint /= joint.sum((1, 2), keepdims=True)
    apart = joint.sum(2, keepdims=True) * joint.sum(1, keepdims=True)
    return float(np.sum(joint * np.log2(np.divide(joint, apart, out=np.ones_like(joint), where=joint > 0))) / len(joint))


def _codes(run, source, fields, interrupted):
    """Rows of at most PROBED examples: codes and z [n, PARTS, d], means in each part of a sound of what codes stand for and of what the encoder gave;
    counts [n, c, K]."""
    hop, q = run.task.front.hop, vqvae.quantizer(run.config.model)

    def view(params, variables, batch):
        code = run.task.encode(params, variables, batch)
        indices, z = code["indices"], code["z"]
        n, count = jnp.maximum(1, -(-batch["valid"] // hop))[:, None, None], indices.shape[1]
        part = jnp.arange(PARTS)[:, None]
        first = part * n // PARTS
        inside = (jnp.arange(count) >= first) & (jnp.arange(count) < jnp.maximum((part + 1) * n // PARTS, first + 1))
        share = inside / inside.sum(-1, keepdims=True)
        vectors = quantization.lookup(q, vqvae.codebook(run.config.model, params, variables), indices)
        real = spectral.in_sound(batch["valid"], count, hop)[..., 0]
        return {"codes": jnp.einsum("bpn,bnd->bpd", share, vectors), "z": jnp.einsum("bpn,bnd->bpd", share, z),
                "counts": wave_vqvae.code_counts(q, indices, real), **{name: batch[name] for name in fields}}

    return evaluate.collect(view, run.params, run.variables, source, run.mesh, HEARD, PROBED, interrupted)


def wholes(run, sources: dict) -> dict:
    """The sources of `session.sources`, of recordings whole where `whole` gives them so."""
    return {role: whole(run, run.config.data.dir, getattr(run.config.data, role)) for role in sources}


def whole(run, folder: str, expression: str, samples: int = 0) -> datas.Source:
    """A split of sounds as they were recorded, where all records are of one length (that is `samples`, if given); else cut to `samples`, or as
    training cuts them."""
    length = records.open_folder(folder).fields["audio"].shape[0]
    crop = 0 if length and samples in (0, length) else samples or run.config.data.crop
    return datas.Source(folder, expression, run.config.data.memory_mb, crop)


def voice(run) -> str:
    """The field whose classes the decoder is told; ''."""
    return getattr(run.config.model, "autoencoder", run.config.model).condition


def copy(run, params, variables, batch, target=None):
    """(sounds as the model hears them, what it makes of their codes), each [b, t, 1], silent behind the end. target: int [b], the class that decoding
    is told in place of each sound's own."""
    task = run.task
    told = task.condition and task.condition(batch if target is None else {voice(run): target})
    made = task.decode(params, variables, task.encode(params, variables, batch)["indices"], told)["audio"]
    return task.front.analyse(batch), jnp.where(spectral.in_sound(batch["valid"], made.shape[1], 1), made, 0.0)


def correlation(x_bt1, y_bt1, valid):
    """Pearson's, [b], over the real samples; 0 where one is silent."""
    real = spectral.in_sound(valid, x_bt1.shape[1], 1)
    x, y = (jnp.where(real, v - jnp.mean(v, 1, keepdims=True, where=real), 0.0) for v in (x_bt1, y_bt1))
    return jnp.sum(x * y, (1, 2)) / jnp.sqrt(jnp.sum(x * x, (1, 2)) * jnp.sum(y * y, (1, 2)) + 1e-12)


def judged(run, judge: str, sources: dict, interrupted=lambda: False) -> dict | None:
    """What a classifier of sounds, by class or by speaker (FIELD, as it was trained), says of held-out sounds and their copies; None if interrupted.

    judge/FIELD_accuracy: its own, of its own data. FIELD_in_originals, FIELD_in_copies: how often it names the true class. Where the decoder is told
    a class, every sound is made again with another: FIELD_kept, the true class is still named, or, if the judge tells those very classes apart,
    FIELD_moved, the one that was asked for. correlation: of the waves of copies with their originals, the mean of its size. Of a prior's new sounds:
    FIELD_in_samples, how often the class is named that was asked for, and samples_end, the share that ends by itself. Beside each share of FIELD its
    standard error.
    Raises UserError for a judge that cannot hear them.
    """
    other = session.open_run(judge)
    if other.config.task != "classifier" or other.task.front.kind != "audio" or not other.config.data.test:
        raise UserError(f"{judge} is no judge of sounds with a test split of its own: train experiments/judge.py:fsdd, say.")
    field, samples, rate = other.config.model.label, other.spec.fields["audio"].shape[0], other.spec.facts["rate"]
    if rate != run.task.front.rate or field not in run.spec.fields or run.spec.fields[field].labels != other.spec.fields[field].labels:
        raise UserError(f"{judge} tells a {field} at {rate} Hz; this run's sounds must have the same rate and the same classes of {field}.")
    if run.spec.digest != other.spec.digest:
        raise UserError(f"{judge} learned from other data ({other.config.data.dir}) than this run ({run.config.data.dir}), so it may have heard what "
                        "it is to judge: train one on the same data, as experiments/judge.py does with --config.data.dir.")
    hear = _new(run, other, field, samples, judge) if run.task.sample else _copies(run, other, field, samples, sources)
    found = hear(interrupted)
    own = None if found is None else evaluate.splits(other, session.sources(other, ("test",)), interrupted)
    return None if own is None else found | {f"judge/{field}_accuracy": own["eval/test/accuracy"]}


def _verdict(other, audio_bt1, samples):
    """Numbers of the classes that a judge names, [b]."""
    heard = jnp.pad(audio_bt1, ((0, 0), (0, max(0, samples - audio_bt1.shape[1])), (0, 0)))[:, :samples]
    return jnp.argmax(other.task.encode(other.params, other.variables, {"audio": heard})["logits"], -1)


def _with_errors(found: dict, field: str, n: int) -> dict:
    errors = {f"{name}_error": float(evaluate.standard_error(p * n, p * n, n)) for name, p in found.items() if name.startswith(f"judge/{field}_")}
    return found | errors


def _copies(run, other, field, samples, sources):
    role = next((r for r in ("test", "validation") if r in sources), None)
    if role is None:
        raise UserError(f"{run.workdir} has no held-out split (config.data.test is empty), so there is nothing for a judge to hear.")
    told = voice(run)
    count = len(run.spec.fields[told].labels) if told else 0

    def hear(params, variables, batch):
        original, made = copy(run, params, variables, batch)
        found = {"original": _verdict(other, original, samples), "copy": _verdict(other, made, samples), "truth": batch[field],
                 "correlation": jnp.abs(correlation(original, made, batch["valid"]))}
        if count > 1:
            target = (batch[told] + 1 + batch["index"] % (count - 1)) % count
            found |= {"target": target, "swapped": _verdict(other, copy(run, params, variables, batch, target)[1], samples)}
        return found

    def collected(interrupted):
        source = whole(run, run.config.data.dir, getattr(run.config.data, role), samples)
        rows = evaluate.collect(hear, run.params, run.variables, source, run.mesh, HEARD, JUDGED, interrupted)
        if rows is None:
            return None
        share = lambda verdict, wanted: float(np.mean(rows[verdict] == rows[wanted]))
        found = {f"judge/{field}_in_originals": share("original", "truth"), f"judge/{field}_in_copies": share("copy", "truth"),
                 "judge/correlation": float(rows["correlation"].mean()), "judge/sounds": len(rows["truth"])}
        if count > 1:
            moved = field == told
            found[f"judge/{field}_{'moved' if moved else 'kept'}"] = share("swapped", "target" if moved else "truth")
        return _with_errors(found, field, len(rows["truth"]))

    return collected


def _new(run, other, field, samples, judge):
    from vae_jax.tasks import wave_code_prior

    told, whole_length = wave_code_prior.told(run.config.model), run.task.front.shape[0]
    if field not in told:
        raise UserError(f"{judge} tells a {field}, which this run's samples are not asked for ({', '.join(told) or 'nothing'} is).")
    request = requests(run, SAMPLES)

    @jax.jit
    def hear(weights, key, part):
        made = run.task.sample(*weights, key, part)
        return {"named": _verdict(other, made["audio/mean"][..., None], samples), "ends": made["valid"] < whole_length}

    def collected(interrupted):
        parts = []
        for i, start in enumerate(range(0, SAMPLES, HEARD)):
            key = jax.random.fold_in(jax.random.key(run.config.seed + 3), i)
            parts.append(jax.device_get(hear((run.params, run.variables), key, {k: v[start:start + HEARD] for k, v in request.items()})))
            if interrupted():
                return None
        named, ends = (np.concatenate([part[k] for part in parts]) for k in ("named", "ends"))
        agreed = float(np.mean(named == request[field]))
        return _with_errors({f"judge/{field}_in_samples": agreed, "judge/samples_end": float(ends.mean()), "judge/samples": SAMPLES}, field, SAMPLES)

    return collected


def requests(run, count: int, temperature: float = 1.0, **asked: int) -> dict:
    """What a prior's `Task.sample` is asked for: of each field that it or its decoder is told, all classes in all combinations, or the one asked."""
    from vae_jax.tasks import wave_code_prior

    found, every = {"temperature": np.full(count, temperature, np.float32)}, 1
    for name in wave_code_prior.told(run.config.model):
        size = len(run.spec.fields[name].labels)
        found[name] = (np.full(count, asked[name]) if name in asked else np.arange(count) // every % size).astype(np.int32)
        every *= 1 if name in asked else size
    return found
