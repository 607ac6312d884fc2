"""compress: many pictures as one file of their codes, and what that costs.

    python -m vae_jax compress --workdir=runs/vq_photos --out=photos.codes                    packed: log2 K bits a code, rounded up
    python -m vae_jax compress --workdir=runs/prior_photos --out=photos.codes                 range-coded by the learned prior
    python -m vae_jax compress --workdir=runs/vq_photos --data=datasets/mine --split=train --out=mine.codes
    python -m vae_jax decompress --workdir=runs/vq_photos --codes=photos.codes --out=photos.npz

Takes the run's held-out split, or a folder of data_prep. Prints the ratio by the formula (bits of 8-bit pictures over bits of their codes) and that
of the file, with everything in it, and the PSNR of what comes back.
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

    from vae_jax import compression, data, evaluate, session, tasks
    from vae_jax import mesh as meshes
    from vae_jax.media import measures

    if not OUT.value:
        raise UserError("name the file that is to be written: --out=pictures.codes.")
    path = pathlib.Path(OUT.value)
    if path.exists():
        raise UserError(f"{path} exists and is not overwritten: give another --out, or remove it.")
    run = trained.open_run()
    compression.players(run)
    if not SPLIT.value and not run.config.data.test:
        raise UserError("the run has no test split (config.data.test is empty); name one with --split.")
    folder = DATA.value or run.config.data.dir
    source, shape = data.Source(folder, SPLIT.value or run.config.data.test, run.config.data.memory_mb), run.task.front.shape
    if "image" not in source.fields:
        raise UserError(f"{folder} holds no pictures (its fields are {', '.join(source.fields)}): give those to compress with --data.")
    if tuple(source.shapes["image"]) != tuple(shape):
        raise UserError(f"the model takes pictures of {' x '.join(map(str, shape))}: prepare {folder} with that --size.")
    names = run.spec.fields["label"].labels if run.task.condition else ()
    if run.task.condition and ("label" not in source.fields or source.split.fields["label"].labels != names):
        raise UserError(f"the model is told the class, one of {', '.join(names[:20])}, and the pictures of {folder} do not have these: prepare them "
                        "from sub-folders of these names.")
    path.parent.mkdir(parents=True, exist_ok=True)

    def rebuild(params, variables, batch):
        code, made = tasks.rebuild(run.task, params, variables, batch)
        return {"indices": code["indices"], "image": batch["image"], "made": made["image"]} | ({"label": batch["label"]} if "label" in batch else {})

    with session.Leaving() as leaving:
        rows = evaluate.collect(rebuild, run.params, run.variables, source, run.mesh, run.config.eval.batch, interrupted=leaving.now)
    if rows is None or not meshes.is_main():
        trained.left(rows is None)
        return 0
    label = np.int32(rows["label"]) if run.task.condition else None
    content = compression.write(run, compression.Codes(np.int32(rows["indices"]), label))
    session.write_bytes(path, content)
    n, each = len(rows["image"]), rows["indices"][0].size
    raw, codes = 8 * math.prod(shape), compression.settings(run)[0].codes
    error = measures.mse(rows["image"], rows["made"])
    print(f"{n:,} pictures of {' x '.join(map(str, shape))}, {raw:,} bits each; {each:,} codes of {math.log2(codes):.4g} bits are "
          f"{each * math.log2(codes):,.0f}: ratio {raw / (each * math.log2(codes)):.2f} by the formula")
    print(f"{path}: {len(content):,} bytes with header, {8 * len(content) / (n * each):.3f} bits a code, ratio {raw * n / (8 * len(content)):.2f}; "
          f"PSNR {float(np.mean(-10 * np.log10(error + 1e-12))):.2f} dB")
    return 0
