"""Picture sheets: arrays in, one array out, written as PNG or GIF bytes.

Pictures are [n, h, w, c], c = 1 (grey) or 3 (RGB), uint8 or floats in 0..1; spectrograms and piano rolls are pictures too.
"""

import io

import numpy as np
from PIL import Image

INK = 112  # grey of the gaps: seen on a white page and on a dark one
WIDTH = 1680  # pixels a sheet is brought near to by a whole factor: sharp on dense screens


def to_uint8(images) -> np.ndarray:
    """Pictures [..., h, w, c] as uint8: floats 0..1 are clipped, then rounded; uint8 and bool are kept. Values that are not finite become black."""
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    return np.round(255 * np.clip(np.nan_to_num(images.astype(np.float64), nan=0.0), 0, 1)).astype(np.uint8)


def resize(images_nhwc, columns: int, width: int = WIDTH) -> np.ndarray:
    """uint8 pictures, each pixel repeated or averaged in blocks by one whole factor, so that `columns` of them are about `width` pixels wide."""
    images = to_uint8(images_nhwc)
    n, h, w, c = images.shape
    room = width / (columns * w)
    if room >= 1:
        factor = int(room)
        return images.repeat(factor, 1).repeat(factor, 2)
    factor = int(np.ceil(0.6 / room))  # a sheet may be two thirds too wide before its pictures shrink
    if factor == 1:
        return images
    padded = np.pad(images, [(0, 0), (0, -h % factor), (0, -w % factor), (0, 0)], mode="edge").astype(np.float64)
    blocks = padded.reshape(n, padded.shape[1] // factor, factor, padded.shape[2] // factor, factor, c)
    return np.round(blocks.mean((2, 4))).astype(np.uint8)


def grid(images_nhwc, columns: int, gap: int = 2, band: int = 0) -> np.ndarray:
    """One sheet [H, W, c] uint8 of the pictures, row by row, `gap` pixels apart. Cells without a picture have the gap's grey.

    band > 0: four gaps instead of one between every `band` rows, so that rows which belong together are seen together.
    Raises ValueError for no pictures or a number of channels other than 1 and 3.
    """
    images = to_uint8(images_nhwc)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
        raise ValueError(f"a sheet needs pictures [n, h, w, 1 or 3], not {images.shape}")
    n, h, w, c = images.shape
    rows = -(-n // columns)
    tops = [gap + r * (h + gap) + (3 * gap * (r // band) if band else 0) for r in range(rows)]
    sheet = np.full((tops[-1] + h + gap, gap + columns * (w + gap), c), INK, np.uint8)
    for i, image in enumerate(images):
        top, left = tops[i // columns], gap + (i % columns) * (w + gap)
        sheet[top : top + h, left : left + w] = image
    return sheet


def bands(rows: list, columns: int) -> np.ndarray:
    """Pictures of several sets that belong together, interleaved for `grid(..., band=len(rows))`.

    rows: sets [n, h, w, c] of equal size (originals, reconstructions ...). Each band of rows shows `columns` examples, set above set;
    a last band that is not full is filled with the gap's grey.
    """
    rows = [to_uint8(r) for r in rows]
    missing = -len(rows[0]) % columns if len(rows[0]) > columns else 0
    filled = [np.concatenate([r, np.full((missing, *r.shape[1:]), INK, np.uint8)]) for r in rows]
    columns = min(columns, len(filled[0]))
    return np.concatenate([r[start : start + columns] for start in range(0, len(filled[0]), columns) for r in filled])


def png(sheet_hwc) -> bytes:
    """A sheet as PNG; equal sheets give equal bytes."""
    out = io.BytesIO()
    _pil(sheet_hwc).save(out, "PNG")
    return out.getvalue()


def from_png(data: bytes) -> np.ndarray:
    """A PNG of ours as an RGB sheet [h, w, 3] uint8, such as a chart that is to be a frame of an animation."""
    return np.asarray(Image.open(io.BytesIO(data), formats=("PNG",)).convert("RGB"))


def gif(frames: list, milliseconds: int = 150, hold: int = 1500) -> bytes:
    """Frames [h, w, c] of equal size as an endless GIF with one palette, that of the last frame, which stays for `hold` ms.

    A frame stays at least 50 ms: many viewers slow shorter ones down to 100, and fast flicker can harm. Raises ValueError for no frames.
    """
    if not frames:
        raise ValueError("an animation needs at least one frame")
    pictures = [_pil(frame).convert("RGB") for frame in frames]
    palette = pictures[-1].quantize(256, Image.Quantize.MEDIANCUT)
    drawn = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    durations = [max(milliseconds, 50)] * (len(drawn) - 1) + [max(hold, 50)]
    out = io.BytesIO()
    drawn[0].save(out, "GIF", save_all=True, append_images=drawn[1:], duration=durations, loop=0, optimize=False)
    return out.getvalue()


def _pil(sheet_hwc):
    sheet = to_uint8(sheet_hwc)
    return Image.fromarray(sheet[..., 0] if sheet.shape[-1] == 1 else sheet)
