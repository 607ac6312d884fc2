"""decompress: the pictures or sounds of a file that `compress` wrote.

    python -m vae_jax decompress --workdir=runs/vq_photos --codes=photos.codes --out=photos.npz
    python -m vae_jax decompress --workdir=runs/speech_prior --codes=digits.codes --out=digits.npz

Writes `image` uint8 [n, h, w, c], `indices` and what the model was told, such as `label`, into --out, and beside it a sheet of the first pictures, as
PNG; of sounds `audio` int16 [n, samples] and `valid`, and a folder of wavs of the first ones, each as long as it was. Needs the very run and
checkpoint that compressed, and with a prior the same kind of machine.
"""

import math
import pathlib

from absl import flags

from vae_jax.config import UserError
from vae_jax.verbs import trained

CODES = flags.DEFINE_string("codes", "", "A file that `compress` wrote.")
OUT = flags.DEFINE_string("out", "", "The .npz that is written; one that exists is not overwritten.")
SHOWN = 64  # pictures on the sheet, sounds written as files
BATCH = 64  # decoded at once


def main(started: float) -> int:
    import jax
    import numpy as np

    from vae_jax import compression, session
    from vae_jax import mesh as meshes

    if not CODES.value or not OUT.value.endswith(".npz"):
        raise UserError("give the file and where what it holds goes: --codes=pictures.codes --out=pictures.npz.")
    path, origin = pathlib.Path(OUT.value), pathlib.Path(CODES.value)
    if not origin.is_file():
        raise UserError(f"there is no file {origin}.")
    run = trained.open_run()
    sounds = run.task.front.hop > 0
    beside = path.with_suffix("" if sounds else ".png")
    for taken in (path, beside):
        if taken.exists():
            raise UserError(f"{taken} exists and is not overwritten: give another --out, or remove it.")
    codes = compression.read(run, origin.read_bytes(), str(origin))
    path.parent.mkdir(parents=True, exist_ok=True)

    @jax.jit
    def decode(params, variables, indices, told):
        return run.task.decode(params, variables, indices, run.task.condition and run.task.condition(told))

    found, n = [], len(codes.indices)
    with session.Leaving() as leaving:
        for first in range(0, n, BATCH):
            rows = np.minimum(np.arange(first, first + BATCH), n - 1)
            made = decode(run.params, run.variables, codes.indices[rows], {name: of[rows] for name, of in codes.told.items()})
            found.append(np.asarray(made["audio" if sounds else "image"])[:n - first])
            if leaving.now():
                trained.left(True)
                return 0
    if not meshes.is_main():
        return 0
    kept = {"indices": codes.indices} | codes.told | ({"valid": codes.valid} if sounds else {})
    (_write_sounds if sounds else _write_pictures)(run, path, beside, np.concatenate(found), kept)
    print(f"{n:,} {'sounds' if sounds else 'pictures'} in {path}; {beside}")
    return 0


def _write_pictures(run, path, sheet, images_nhwc, kept) -> None:
    import numpy as np

    from vae_jax import session
    from vae_jax.media import images

    pictures = np.uint8(np.round(255 * np.clip(images_nhwc, 0, 1)))
    session.write_npz(session.folder(str(path)), {"image": pictures} | kept)
    columns = math.isqrt(min(SHOWN, len(pictures)) - 1) + 1
    sheet.write_bytes(images.png(images.grid(images.resize(pictures[:SHOWN] / np.float32(255), columns), columns)))


def _write_sounds(run, path, folder, waves_nt1, kept) -> None:
    import numpy as np

    from vae_jax import session
    from vae_jax.media import sounds

    waves = np.where(np.arange(waves_nt1.shape[1]) < kept["valid"][:, None], waves_nt1[..., 0], 0.0)
    session.write_npz(session.folder(str(path)), {"audio": np.int16(np.round(32767 * np.clip(waves, -1, 1)))} | kept)
    folder.mkdir()
    for i, (wave, valid) in enumerate(zip(waves[:SHOWN], kept["valid"])):
        (folder / f"{i:03d}.wav").write_bytes(sounds.wav(wave[:max(1, valid)], run.task.front.rate, 1.0))
