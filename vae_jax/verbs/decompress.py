"""decompress: the pictures of a file that `compress` wrote.

    python -m vae_jax decompress --workdir=runs/vq_photos --codes=photos.codes --out=photos.npz

Writes `image` uint8 [n, h, w, c], `indices` and, where there are, `label` into --out, and beside it a sheet of the first pictures, as PNG. Needs the
very run and checkpoint that compressed, and with a prior the same kind of machine.
"""

import math
import pathlib

from absl import flags

from vae_jax.config import UserError
from vae_jax.verbs import trained

CODES = flags.DEFINE_string("codes", "", "A file that `compress` wrote.")
OUT = flags.DEFINE_string("out", "", "The .npz that is written; one that exists is not overwritten.")
SHOWN = 64  # pictures on the sheet
BATCH = 64  # pictures decoded at once


def main(started: float) -> int:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from vae_jax import compression, session
    from vae_jax import mesh as meshes
    from vae_jax.media import images

    if not CODES.value or not OUT.value.endswith(".npz"):
        raise UserError("give the file and where its pictures go: --codes=pictures.codes --out=pictures.npz.")
    path, sheet = pathlib.Path(OUT.value), pathlib.Path(OUT.value).with_suffix(".png")
    for taken in (path, sheet):
        if taken.exists():
            raise UserError(f"{taken} exists and is not overwritten: give another --out, or remove it.")
    origin = pathlib.Path(CODES.value)
    if not origin.is_file():
        raise UserError(f"there is no file {origin}.")
    run = trained.open_run()
    codes = compression.read(run, origin.read_bytes(), str(origin))
    path.parent.mkdir(parents=True, exist_ok=True)

    @jax.jit
    def decode(params, variables, indices, label):
        return run.task.decode(params, variables, indices, run.task.condition and run.task.condition({"label": label}))["image"]

    found = []
    for first in range(0, len(codes.indices), BATCH):
        rows = np.minimum(np.arange(first, first + BATCH), len(codes.indices) - 1)
        label = jnp.zeros(BATCH, jnp.int32) if codes.label is None else codes.label[rows]
        found.append(np.asarray(decode(run.params, run.variables, codes.indices[rows], label))[:len(codes.indices) - first])
    pictures = np.uint8(np.round(255 * np.clip(np.concatenate(found), 0, 1)))
    if not meshes.is_main():
        return 0
    labels = {} if codes.label is None else {"label": codes.label}
    session.write_npz(session.folder(str(path)), {"image": pictures, "indices": codes.indices} | labels)
    columns = math.isqrt(min(SHOWN, len(pictures)) - 1) + 1
    sheet.write_bytes(images.png(images.grid(images.resize(pictures[:SHOWN] / np.float32(255), columns), columns)))
    print(f"{len(pictures):,} pictures in {path}; {sheet}")
    return 0
