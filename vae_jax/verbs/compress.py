"""compress: many pictures or sounds as one file of their codes, and what that costs.

    python -m vae_jax compress --workdir=runs/vq_photos --out=photos.codes                    packed: log2 K bits a code, rounded up
    python -m vae_jax compress --workdir=runs/prior_photos --out=photos.codes                 range-coded by the learned prior
    python -m vae_jax compress --workdir=runs/vq_photos --data=datasets/mine --split=train --out=mine.codes
    python -m vae_jax compress --workdir=runs/speech_prior --out=digits.codes                 sounds, of a wave_vqvae or its prior
    python -m vae_jax decompress --workdir=runs/vq_photos --codes=photos.codes --out=photos.npz

Takes the run's held-out split, or a folder of data_prep. Prints the ratio by the formula (bits of 8-bit pictures, of 16-bit sound, over bits of their
codes) and that of the file, with everything in it, and of pictures the PSNR of what comes back.
"""

import math
import pathlib

from absl import flags

from vae_jax.config import UserError
from vae_jax.verbs import trained

DATA = flags.DEFINE_string("data", "", "Folder written by data_prep; '' = the run's own data.")
SPLIT = flags.DEFINE_string("split", "", "Split, or part of one such as test[:100]; '' = the run's test split.")
OUT = flags.DEFINE_string("out", "", "The file that is written; one that exists is not overwritten.")


def main(started: float) -> int:
    import numpy as np

    from vae_jax import compression, evaluate, session
    from vae_jax import mesh as meshes

    if not OUT.value:
        raise UserError("name the file that is to be written: --out=pictures.codes.")
    path = pathlib.Path(OUT.value)
    if path.exists():
        raise UserError(f"{path} exists and is not overwritten: give another --out, or remove it.")
    run = trained.open_run()
    q, told = compression.settings(run)
    if not SPLIT.value and not run.config.data.test:
        raise UserError("the run has no test split (config.data.test is empty); name one with --split.")
    folder, sounds = DATA.value or run.config.data.dir, run.task.front.hop > 0
    source = _source(run, folder, sounds)
    for name in told:
        names = run.spec.fields[name].labels
        if name not in source.fields or source.split.fields[name].labels != names:
            raise UserError(f"the model is told the {name}, one of {', '.join(names[:20])}, and what is in {folder} does not have these: prepare it "
                            "with the same names.")
    path.parent.mkdir(parents=True, exist_ok=True)

    def view(params, variables, batch):
        code = run.task.encode(params, variables, batch)["indices"]
        found = {"indices": code} | {name: batch[name] for name in told}
        if sounds:
            return found | {"valid": batch["valid"]}
        made = run.task.decode(params, variables, code, run.task.condition and run.task.condition(batch))["image"]
        return found | {"image": batch["image"], "made": made}

    with session.Leaving() as leaving:
        rows = evaluate.collect(view, run.params, run.variables, source, run.mesh, run.config.eval.batch, interrupted=leaving.now)
    if rows is None or not meshes.is_main():
        trained.left(rows is None)
        return 0
    codes = compression.Codes(np.int32(rows["indices"]), {name: np.int32(rows[name]) for name in told}, np.int32(rows["valid"]) if sounds else None)
    content = compression.write(run, codes)
    session.write_bytes(path, content)
    said, count, raw = (_of_sounds if sounds else _of_pictures)(run, q, rows)
    print(said)
    bits = 8 * len(content)
    error = "" if sounds else f"; PSNR {_psnr(rows):.2f} dB"
    print(f"{path}: {len(content):,} bytes with header, {bits / count:.3f} bits a code, ratio {raw / bits:.2f}{error}")
    return 0


def _source(run, folder, sounds):
    """What is to be compressed. Raises UserError where it does not fit the model."""
    from vae_jax import assess_codes, data, records

    front, expression = run.task.front, SPLIT.value or run.config.data.test
    if sounds:
        spec = records.open_folder(folder)
        if "audio" not in spec.fields or spec.facts.get("rate") != front.rate or spec.fields["audio"].shape[1] != 1:
            raise UserError(f"the model takes sound of one channel at {front.rate} Hz, and {folder} has other records: prepare it with "
                            f"--rate={front.rate}.")
        return assess_codes.whole(run, folder, expression)
    source = data.Source(folder, expression, run.config.data.memory_mb)
    if "image" not in source.fields:
        raise UserError(f"{folder} holds no pictures (its fields are {', '.join(source.fields)}): give those to compress with --data.")
    if tuple(source.shapes["image"]) != tuple(front.shape):
        raise UserError(f"the model takes pictures of {' x '.join(map(str, front.shape))}: prepare {folder} with that --size.")
    return source


def _of_pictures(run, q, rows):
    """(what there is and the formula's ratio in words, how many codes, bits of the pictures as they are)"""
    shape, n, each = run.task.front.shape, len(rows["indices"]), rows["indices"][0].size
    raw, bits = 8 * math.prod(shape), each * math.log2(q.codes)
    return (f"{n:,} pictures of {' x '.join(map(str, shape))}, {raw:,} bits each; {each:,} codes of {math.log2(q.codes):.4g} bits are {bits:,.0f}: "
            f"ratio {raw / bits:.2f} by the formula"), n * each, n * raw


def _of_sounds(run, q, rows):
    """The same, of 16-bit samples."""
    import numpy as np

    from vae_jax.losses import quantization

    front, valid = run.task.front, np.maximum(rows["valid"], 1).astype(np.int64)
    c, positions, bits = rows["indices"].shape[2], int((-(-valid // front.hop)).sum()), quantization.bits(q)
    return (f"{len(valid):,} sounds, {valid.sum() / front.rate:,.1f} s; {c} code{'s' * (c > 1)} of {math.log2(q.codes):.4g} bits for {front.hop} "
            f"samples of 16: ratio {16 * front.hop / bits:.2f} by the formula"), positions * c, 16 * int(valid.sum())


def _psnr(rows) -> float:
    import numpy as np

    from vae_jax.media import measures

    return float(np.mean(-10 * np.log10(measures.mse(rows["image"], rows["made"]) + 1e-12)))
