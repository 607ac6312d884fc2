"""From one picture to its records: decoding, colour, geometry, the bottle recipe, binarization. Runs inside worker processes."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

from data_prep.pool import Skip
from data_prep.splits import digest
from vae_jax.records import Field, encode

FORMATS = {"png": "PNG", "jpeg": "JPEG", "bmp": "BMP", "webp": "WEBP"}  # kind -> Pillow's name; no other decoder is ever reached
EXPECTED = "a PNG, JPEG, BMP or WebP picture"
MAX_PIXELS, MAX_SIDE, MIN_SIDE = 100_000_000, 30_000, 4
Image.MAX_IMAGE_PIXELS = None  # Pillow only warns up to twice its limit; `decode` compares with MAX_PIXELS before a pixel is read
RESAMPLE = Image.Resampling.BILINEAR  # antialiased when shrinking; never overshoots, so silhouettes get no halo
BOTTLE_SIZE, BOTTLE_SIDE, ZOOM = (128, 64), 32, (0.7, 1.3)  # height, width; columns padded left and right; range of both factors


def sniff(head: bytes) -> str | None:
    """The picture format of a file by its first bytes."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[:2] == b"BM" and len(head) > 18 and struct.unpack("<I", head[14:18])[0] in (12, 40, 52, 56, 64, 108, 124):
        return "bmp"
    return None


def decode(data: bytes, told: dict, options: dict) -> tuple[dict, list[bytes]]:
    """pool.decode's function: a picture file -> records. told: kind, name, group, split, label (or None); options: see `records`."""
    if told["kind"] == "png":
        _check_png(data)
    with Image.open(io.BytesIO(data), formats=[FORMATS[told["kind"]]]) as picture:
        width, height = picture.size
        if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
            raise Skip(f"larger than {MAX_PIXELS // 10**6} megapixels or {MAX_SIDE} pixels a side")
        if min(width, height) < MIN_SIDE:
            raise Skip(f"fewer than {MIN_SIDE} pixels a side")
        if told["kind"] in ("png", "webp") and getattr(picture, "is_animated", False):
            raise Skip("animated")
        picture.load()
        array = to_array(ImageOps.exif_transpose(picture), options["colour"], options["background"])
    return records(array, told, options)


def _check_png(data):
    """Pillow takes a PNG without its last chunk, or an indexed one without palette, for whole."""
    at, kinds = 8, set()
    while at + 12 <= len(data) and b"IEND" not in kinds:
        size, kind = struct.unpack(">I4s", data[at:at + 8])
        if at + 12 + size > len(data):
            break
        if zlib.crc32(data[at + 4:at + 8 + size]) != struct.unpack(">I", data[at + 8 + size:at + 12 + size])[0]:
            raise Skip("damaged: a PNG chunk has a wrong checksum")
        kinds.add(kind)
        at += 12 + size
    if b"IEND" not in kinds:
        raise Skip("cut short: the PNG has no end")
    if data[25] == 3 and b"PLTE" not in kinds:
        raise Skip("damaged: an indexed PNG without palette")


def to_array(picture: Image.Image, colour: str, background: int) -> np.ndarray:
    """Any mode as uint8 [h, w, 1 or 3]. colour: 'grey', 'rgb', or '' for what the picture is; transparency over grey `background`."""
    if picture.mode.startswith("I"):
        deep = np.asarray(picture).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise Skip("deeper than 16 bits")
        picture = Image.fromarray(((deep + 128) // 257).astype(np.uint8))  # 65535 -> 255
    if picture.mode == "F":
        raise Skip("floating-point values have no fixed white")
    grey = picture.mode in ("1", "L", "LA", "La")
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        over = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", over.size, (background,) * 3 + (255,)), over).convert("RGB")
    grey = colour == "grey" or colour == "" and grey
    array = np.asarray(picture.convert("L" if grey else "RGB"))
    return array[:, :, None] if grey else array


def from_array(values: np.ndarray, colour: str, background: int) -> np.ndarray:
    """A picture of an array file, uint8, bool, or float in 0..1, [h, w] or [h, w, 1, 3 or 4], as uint8 [h, w, 1 or 3]."""
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or values.ndim == 3 and values.shape[2] not in (3, 4):
        raise Skip(f"an array of shape {values.shape} is no picture")
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    elif values.dtype.kind == "f":
        if not ((values >= 0) & (values <= 1)).all():
            raise Skip("values outside 0..1")
        values = np.rint(values * 255).astype(np.uint8)
    if values.ndim == 2 and colour != "rgb":
        return values[:, :, None]
    return to_array(Image.fromarray(np.ascontiguousarray(values)), colour, background)


def _resized(array, height, width):
    if array.shape[:2] == (height, width):
        return array
    picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    return np.asarray(picture.resize((width, height), RESAMPLE)).reshape(height, width, array.shape[2])


def _centred(array, height, width):
    h, w = array.shape[:2]
    top, left = (height - h) // 2, (width - w) // 2
    return np.pad(array, ((top, height - h - top), (left, width - w - left), (0, 0)))


def shape_to(array: np.ndarray, rule: str, size: list[int] | None) -> list[tuple[tuple[int, int], np.ndarray]]:
    """The pictures a rule makes of one, each with its (top, left) in the original; uint8 [h, w, c] -> [((y, x), uint8 [H, W, c])].

    '' keeps it; 'resize' stretches to size; 'fit' keeps the aspect and fills up with zeros; 'pad' surrounds with zeros up to size, or to a
    square; 'crop' cuts disjoint pieces, the margin shared by both sides. Raises Skip for a picture that the rule cannot use.
    """
    h, w = array.shape[:2]
    height, width = size or (max(h, w),) * 2
    if rule == "resize":
        array = _resized(array, height, width)
    elif rule == "fit":
        scale = min(height / h, width / w)
        array = _centred(_resized(array, max(1, round(h * scale)), max(1, round(w * scale))), height, width)
    elif rule == "pad":
        if h > height or w > width:
            raise Skip(f"larger than the {height}x{width} to pad to")
        array = _centred(array, height, width)
    elif rule == "crop":
        rows, columns = h // height, w // width
        if not rows * columns:
            raise Skip(f"smaller than one crop of {height}x{width}")
        top, left = (h - rows * height) // 2, (w - columns * width) // 2
        corners = [(top + i * height, left + j * width) for i in range(rows) for j in range(columns)]
        return [((y, x), array[y:y + height, x:x + width]) for y, x in corners]
    return [((0, 0), array)]


def zoom_matrix(factors: np.ndarray, size: int) -> np.ndarray:
    """Linear interpolation that zooms an axis about its centre: factors [v] -> float32 [v, size, size], to be applied from the left.

    Output place o reads input place factor * (o - c) + c with c = (size - 1) / 2, so a factor above 1 zooms out; places beyond the edge read
    the edge (Keras's random zoom with fill 'nearest').
    """
    centre = (size - 1) / 2
    place = np.clip(factors[:, None] * (np.arange(size) - centre) + centre, 0, size - 1)
    low = np.minimum(place.astype(np.int64), size - 2)
    matrix = np.zeros((len(factors), size, size), np.float32)
    np.put_along_axis(matrix, low[:, :, None], (1 - (place - low))[:, :, None].astype(np.float32), 2)
    np.put_along_axis(matrix, low[:, :, None] + 1, (place - low)[:, :, None].astype(np.float32), 2)
    return matrix


def bottle_versions(array: np.ndarray, versions: int, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The bottle recipe (seeds B2): uint8 [h, w, 1] -> (uint8 [versions + 1, 128, 128, 1], zoom float32 [versions + 1, 2]).

    Resize to 128 x 64, zoom height and width by two independent factors uniform in 0.7..1.3, pad 32 zero columns left and right.
    The last row is the picture without zoom. The draw depends on seed and name only. The source's tool also stretched each PNG to full range;
    that changes about 1 % of real bottles, and would turn an all-white one black, so it is not done.
    """
    small = _resized(array, *BOTTLE_SIZE)[:, :, 0].astype(np.float32)
    uniform = generator(seed, "zoom", name).random((versions, 2))
    zoom = np.concatenate([ZOOM[0] + (ZOOM[1] - ZOOM[0]) * uniform, np.ones((1, 2))])
    zoomed = zoom_matrix(zoom[:, 0], BOTTLE_SIZE[0]) @ small @ zoom_matrix(zoom[:, 1], BOTTLE_SIZE[1]).swapaxes(1, 2)
    pixels = np.rint(np.clip(zoomed, 0, 255)).astype(np.uint8)
    return np.pad(pixels, ((0, 0), (0, 0), (BOTTLE_SIDE, BOTTLE_SIDE)))[..., None], zoom.astype(np.float32)


def generator(seed: int, purpose: str, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest(seed, purpose, name)[:16], "little")))


def fields(shape: tuple[int, int, int], labels: tuple[str, ...] | None, options: dict) -> dict[str, Field]:
    """The fields of the records of a data set of pictures of this shape."""
    made = {"image": Field(tuple(shape), "uint8"), "source": Field((), "str"), "group": Field((), "str")}
    if labels is not None:
        made["label"] = Field((), "int64", labels)
    if options["recipe"] == "bottles":
        made["zoom"] = Field((2,), "float32")
    if options["rule"] == "crop":
        made["start"] = Field((2,), "int32")
    return made


def records(array: np.ndarray, told: dict, options: dict) -> tuple[dict, list[bytes]]:
    """All records of one decoded picture, uint8 [h, w, c].

    told: name, group, split, label; options: rule, size, recipe, versions, seed, binarize (a seed or None). Returns
    ({'shape': of every record's picture, 'splits': [[split, how many of the records], ...]}, records). Raises Skip.
    """
    base = {"source": told["name"], "group": told["group"]}
    if told["label"] is not None:
        base["label"] = told["label"]
    if options["recipe"] == "bottles":
        images, zoom = bottle_versions(array, options["versions"], options["seed"], told["name"])
        made = [{**base, "image": image, "zoom": z} for image, z in zip(images, zoom)]
        splits = [[told["split"], len(made) - 1], [told["split"] + "_originals", 1]]
    else:
        pieces = shape_to(array, options["rule"], options["size"])
        made = [{**base, "image": image} for _, image in pieces]
        if options["rule"] == "crop":
            made = [{**record, "start": np.array(corner, np.int32)} for record, (corner, _) in zip(made, pieces)]
        splits = [[told["split"], len(made)]]
    if options["binarize"] is not None:
        draws = generator(options["binarize"], "binarize", told["name"])
        for record in made:
            ink = draws.random(record["image"].shape, np.float32) * 255 < record["image"]
            record["image"] = ink.astype(np.uint8) * 255
    shape = made[0]["image"].shape
    declared = fields(shape, None if told["label"] is None else (), options)
    return {"shape": list(shape), "splits": splits}, [encode(declared, record) for record in made]
