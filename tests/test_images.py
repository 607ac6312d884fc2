"""Pictures to records: sources, colour, geometry, the bottle recipe, splits, bad input, and the real sets."""

import gzip
import hashlib
import io
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from data_prep import images, pictures, pool
from vae_jax import records
from vae_jax.config import UserError

ROOT = pathlib.Path(records.__file__).parents[1]
PLAIN = {"colour": "", "background": 255, "rule": "", "size": None, "recipe": "", "versions": 1, "seed": 0, "binarize": None}


def prepare(out, source, **values):
    """Runs the script in this process and reads everything back."""
    images.FLAGS.unparse_flags()
    given = [f"--{name}={value}" for name, value in values.items()]
    images.FLAGS(["images", f"--source={source}", f"--out={out}", "--workers=2", *given])
    images.main()
    spec = records.open_folder(out)
    return spec, {split: records.open_split(out, split).read_all() for split in spec.splits}, json.loads((out / "manifest.json").read_text())


def noise(h, w, c=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, c), dtype=np.uint8)


def png(array, **options):
    data = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array).save(data, "PNG", **options)
    return data.getvalue()


def decode(data, **options):
    """A file through the decoder -> its one picture."""
    told = {"kind": pictures.sniff(data[:512]), "name": "x", "group": "x", "split": "train", "label": None}
    about, blobs = pictures.decode(data, told, {**PLAIN, **options})
    fields = pictures.fields(about["shape"], None, {**PLAIN, **options})
    from vae_jax import tfexample
    kinds = {name: records.kind(field) for name, field in fields.items()}
    first, last = tfexample.parse(np.frombuffer(blobs[0], np.uint8), np.array([0]), np.array([len(blobs[0])]), kinds)["image"]
    return np.frombuffer(blobs[0][first[0]:last[0]], np.uint8).reshape(about["shape"])


# Colour


def test_formats_keep_their_pixels():
    array = noise(9, 7)
    for form in ("PNG", "BMP", "WEBP"):
        data = io.BytesIO()
        Image.fromarray(array).save(data, form, **({"lossless": True} if form == "WEBP" else {}))
        assert np.array_equal(decode(data.getvalue()), array), form
    data = io.BytesIO()
    Image.fromarray(array).save(data, "JPEG", quality=100, subsampling=0)
    assert np.abs(decode(data.getvalue()).astype(int) - array).max() < 12


def test_modes():
    grey = noise(8, 6, 1)
    assert np.array_equal(decode(png(grey)), grey)
    assert np.array_equal(decode(png(grey), colour="rgb"), np.repeat(grey, 3, 2))
    deep = (grey[:, :, 0].astype(np.uint16) * 257).astype(np.uint16)
    deep[0, 0] += 100
    assert np.array_equal(decode(png(deep)), grey)
    bits = Image.fromarray((grey[:, :, 0] > 127))
    data = io.BytesIO()
    bits.save(data, "PNG")
    assert np.array_equal(decode(data.getvalue())[:, :, 0], np.where(grey[:, :, 0] > 127, 255, 0))
    colour = noise(8, 6)
    luma = colour @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2
    assert np.abs(decode(png(colour), colour="grey")[:, :, 0] - luma).max() <= 1
    palette = Image.fromarray(colour).quantize(16)
    data = io.BytesIO()
    palette.save(data, "PNG")
    assert np.array_equal(decode(data.getvalue()), np.asarray(palette.convert("RGB")))
    data = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), (200, 30, 90), np.uint8)).convert("CMYK").save(data, "JPEG", quality=100)
    assert np.abs(decode(data.getvalue()).astype(int) - (200, 30, 90)).max() < 6


@pytest.mark.parametrize("background", [255, 0, 100])
def test_transparency_shows_the_background(background):
    rgba = np.concatenate([noise(8, 6), np.array([0, 128, 255], np.uint8)[np.arange(48) % 3].reshape(8, 6, 1)], 2)
    alpha = rgba[:, :, 3:] / 255
    expected = rgba[:, :, :3] * alpha + background * (1 - alpha)
    assert np.abs(decode(png(rgba), background=background) - expected).max() <= 1
    data = io.BytesIO()
    palette = Image.fromarray(rgba[:, :, :3]).quantize(8)
    palette.save(data, "PNG", transparency=3)
    expected = np.where((np.asarray(palette) == 3)[:, :, None], background, np.asarray(palette.convert("RGB")))
    assert np.array_equal(decode(data.getvalue(), background=background), expected)
    two = Image.merge("LA", [Image.fromarray(noise(8, 6, 1)[:, :, 0]), Image.new("L", (6, 8), 0)])
    data = io.BytesIO()
    two.save(data, "PNG")
    assert np.array_equal(decode(data.getvalue(), background=background), np.full((8, 6, 1), background))


def test_rotation_of_cameras_is_honoured():
    array = noise(8, 6)
    turns = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 6: lambda a: np.rot90(a, -1), 8: np.rot90}
    for orientation, turn in turns.items():
        exif = Image.Exif()
        exif[274] = orientation
        assert np.array_equal(decode(png(array, exif=exif)), turn(array))


# Geometry


def test_rules():
    array = noise(12, 20)
    pad = pictures.shape_to(array, "pad", None)[0][1]
    assert pad.shape == (20, 20, 3) and np.array_equal(pad[4:16], array) and not pad[:4].any() and not pad[16:].any()
    pad = pictures.shape_to(array, "pad", [13, 24])[0][1]
    assert np.array_equal(pad[0:12, 2:22], array) and pad.sum() == array.sum()
    with pytest.raises(pool.Skip, match="larger than"):
        pictures.shape_to(array, "pad", [12, 19])
    fit = pictures.shape_to(np.full((100, 50, 1), 200, np.uint8), "fit", [40, 40])[0][1]
    assert (fit[:, 10:30] == 200).all() and not fit[:, :10].any() and not fit[:, 30:].any()
    assert pictures.shape_to(array, "resize", [7, 9])[0][1].shape == (7, 9, 3)
    assert np.array_equal(pictures.shape_to(array, "resize", [12, 20])[0][1], array)
    assert abs(pictures.shape_to(noise(200, 200), "resize", [2, 2])[0][1].mean() - noise(200, 200).mean()) < 1  # antialiased


def test_crops_are_disjoint_and_say_where():
    array, seen = noise(23, 37), np.zeros((23, 37), int)
    pieces = pictures.shape_to(array, "crop", [5, 8])
    assert len(pieces) == 4 * 4
    for (y, x), piece in pieces:
        assert np.array_equal(piece, array[y:y + 5, x:x + 8])
        seen[y:y + 5, x:x + 8] += 1
    assert seen.max() == 1 and seen.sum() == 16 * 40
    with pytest.raises(pool.Skip, match="smaller than one crop"):
        pictures.shape_to(array, "crop", [24, 8])


# The bottle recipe


def test_bottle_zoom_is_keras():
    small = noise(128, 64, 1, 3)
    images_, zoom = pictures.bottle_versions(small, 12, 7, "a")
    assert images_.shape == (13, 128, 128, 1) and not images_[:, :, :32].any() and not images_[:, :, 96:].any()
    assert np.array_equal(images_[-1, :, 32:96], small) and zoom[-1].tolist() == [1, 1]
    for image, (zy, zx) in zip(images_, zoom.astype(float)):
        matrix, centre = np.diag([zy, zx]), np.array([63.5, 31.5])  # Keras: offset = centre - matrix @ centre, order 1, nearest
        expected = ndimage.affine_transform(small[:, :, 0].astype(float), matrix, centre - matrix @ centre, order=1, mode="nearest")
        assert np.abs(image[:, 32:96, 0] - expected).max() < 0.52
    square = np.zeros((128, 64, 1), np.uint8)
    square[32:96, 16:48] = 255
    made, zoom = pictures.bottle_versions(square, 30, 0, "b")
    for image, (zy, zx) in zip(made[:, :, 32:96, 0] / 255, zoom):  # a factor above 1 makes the picture smaller
        assert abs(image.sum(0).max() - min(64 / zy, 128)) < 1 and abs(image.sum(1).max() - min(32 / zx, 64)) < 1


def test_bottle_zooms_are_uniform_and_independent():
    array = noise(16, 8, 1)
    zoom = np.concatenate([pictures.bottle_versions(array, 100, 0, str(i))[1][:-1] for i in range(10)]).astype(float)
    assert zoom.min() >= 0.7 and zoom.max() <= 1.3
    for axis in range(2):
        assert stats.kstest(zoom[:, axis], "uniform", (0.7, 0.6)).pvalue > 0.01
    assert abs(np.corrcoef(zoom.T)[0, 1]) < 0.1


@pytest.fixture
def silhouettes(tmp_path):
    """Twelve grey pictures of different sizes in six groups, one file that is none."""
    folder = tmp_path / "icons"
    folder.mkdir()
    for i in range(12):
        (folder / f"set{i // 2}__{i}.png").write_bytes(png(noise(20 + i, 10 + i, 1, i)))
    (folder / "LICENSES.tsv").write_text("none\n")
    return folder


def test_bottles_split_before_augmenting(silhouettes, tmp_path):
    options = {"recipe": "bottles", "versions": 5, "split": "train:0.6,test:0.4", "group": "^(.+?)__", "seed": 3}
    spec, read, manifest = prepare(tmp_path / "a", silhouettes, **options)
    assert set(spec.splits) == {"train", "test", "train_originals", "test_originals"}
    assert spec.splits["train"] + spec.splits["test"] == 60 and spec.splits["train_originals"] + spec.splits["test_originals"] == 12
    assert not set(read["train"]["group"]) & set(read["test"]["group"])
    for split in ("train", "test"):
        assert sorted(set(read[split]["source"])) == sorted(read[split + "_originals"]["source"])
        assert (read[split + "_originals"]["zoom"] == 1).all() and len(np.unique(read[split]["zoom"], axis=0)) == spec.splits[split]
    assert spec.fields["zoom"] == records.Field((2,), "float32") and spec.fields["image"].shape == (128, 128, 1)
    assert (manifest["found"], manifest["kept"], manifest["skipped_count"]) == (13, 12, 1)
    assert manifest["groups"]["train"] + manifest["groups"]["test"] == 6
    assert prepare(tmp_path / "b", silhouettes, **options)[0].digest == spec.digest
    images.FLAGS.unparse_flags()
    images.FLAGS(["images", f"--source={silhouettes}", f"--out={tmp_path / 'c'}", "--workers=1", *(f"--{k}={v}" for k, v in options.items())])
    images.main()
    for path in (tmp_path / "a").iterdir():  # the name of the set is in its file names and descriptions only
        if ".tfrecord" in path.name:
            assert path.read_bytes() == (tmp_path / "c" / path.name.replace("a-", "c-", 1)).read_bytes()
    assert prepare(tmp_path / "d", silhouettes, **{**options, "seed": 4})[0].digest != spec.digest


# Sources


def idx(array):
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def digits():
    rng = np.random.default_rng(1)
    return {s: (rng.integers(0, 256, (n, 6, 5), dtype=np.uint8), np.arange(n, dtype=np.uint8) % 3) for s, n in (("train", 30), ("t10k", 12))}


def write_idx(folder, digits, suffix=""):
    folder.mkdir()
    pack = gzip.compress if suffix else bytes
    for split, (x, y) in digits.items():
        (folder / f"{split}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(x)))
        (folder / f"{split}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(y)))
    return folder


def same_digits(read, digits):
    for split, key in (("train", "train"), ("test", "t10k")):
        assert np.array_equal(read[split]["image"][..., 0], digits[key][0]) and np.array_equal(read[split]["label"], digits[key][1])


def test_idx(tmp_path, digits):
    spec, read, manifest = prepare(tmp_path / "a", write_idx(tmp_path / "gz", digits, ".gz"))
    same_digits(read, digits)
    assert spec.fields["label"].labels == ("0", "1", "2") and list(spec.splits) == ["train", "test"]
    assert read["train"]["source"][3] == "train-images-idx3-ubyte:3" and manifest["found"] == manifest["kept"] == 42
    plain, _, _ = prepare(tmp_path / "b", write_idx(tmp_path / "plain", digits))
    assert plain.digest == spec.digest
    one, read, _ = prepare(tmp_path / "c", tmp_path / "gz" / "train-images-idx3-ubyte.gz", split="train:0.5,valid:0.5")
    assert one.splits == {"train": 15, "valid": 15} and "label" in one.fields
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in sorted((tmp_path / "gz").iterdir()):
            archive.write(path, f"mnist/{path.name}")
    _, read, _ = prepare(tmp_path / "d", tmp_path / "x.zip")
    same_digits(read, digits)
    spec, _, _ = prepare(tmp_path / "e", tmp_path / "gz", pad=True, size=8, split="train:0.8,validation:0.2")
    assert spec.splits == {"train": 24, "validation": 6, "test": 12} and spec.fields["image"].shape == (8, 8, 1)


@pytest.mark.parametrize("change, says", [
    (lambda f: (f / "train-images-idx3-ubyte").write_bytes((f / "train-images-idx3-ubyte").read_bytes()[:-4]), "ends within picture 29 of 30"),
    (lambda f: (f / "train-images-idx3-ubyte").open("ab").write(b"xx"), "goes on after the 30"),
    (lambda f: (f / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(29, np.uint8))), "30 pictures, but .* 29 labels"),
    (lambda f: (f / "train-images-idx3-ubyte").write_bytes(struct.pack(">HBBIII", 0, 8, 3, 2**31, 2**12, 2**12)), "more than is unpacked"),
    (lambda f: (f / "train-images-idx3-ubyte").write_bytes(gzip.compress(idx(noise(30, 6, 5)))[:-30]), "damaged"),
    (lambda f: (f / "train-images-idx3-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 3, 30)), "train-images-idx3-ubyte is damaged"),
    (lambda f: (f / "train-images-idx3-ubyte").write_bytes(struct.pack(">HBBIII", 0, 8, 3, 2**30, 1, 1)), "far shorter than it declares"),
    (lambda f: (f / "train-images-idx3-ubyte").write_bytes(struct.pack(">HBBIII", 0, 8, 3, 30, 0, 5)), r"shape \(30, 0, 5\): .* no side 0"),
    (lambda f: [(f / f"{s}-images-idx3-ubyte").unlink() for s in ("train", "t10k")], "labels but no pictures"),
    (lambda f: shutil.copy(f / "train-images-idx3-ubyte", f / "x-train-images-idx3-ubyte"), "more than one array"),
    (lambda f: (f / "x.png").write_bytes(png(noise(6, 5))), "both arrays .* and single pictures"),
])
def test_idx_damage_is_one_sentence(tmp_path, digits, change, says):
    folder = write_idx(tmp_path / "idx", digits)
    change(folder)
    with pytest.raises(UserError, match=says) as caught:
        prepare(tmp_path / "out", folder)
    assert "\n" not in str(caught.value) and sorted(p.name for p in tmp_path.iterdir()) == ["idx"]


def test_npz(tmp_path, digits):
    (x, y), (x2, y2) = digits["train"], digits["t10k"]
    for i, arrays in enumerate([{"train_images": x, "train_labels": y[:, None], "test_images": x2, "test_labels": y2[:, None]},
                                {"x_train": x, "y_train": np.eye(3)[y].astype(np.uint8), "x_test": x2, "y_test": y2},
                                {"image_train": np.asfortranarray(x / 255), "label_train": y, "image_test": (x2 / 255).astype(np.float32),
                                 "label_test": y2}]):
        (np.savez_compressed if i else np.savez)(tmp_path / f"{i}.npz", **arrays)
        _, read, _ = prepare(tmp_path / str(i), tmp_path / f"{i}.npz")
        same_digits(read, digits)
    np.savez(tmp_path / "colour.npz", images=noise(4, 6 * 5, 4).reshape(4, 6, 5, 4))
    spec, read, _ = prepare(tmp_path / "colour", tmp_path / "colour.npz")
    assert spec.fields["image"].shape == (6, 5, 3) and "label" not in spec.fields and spec.splits == {"train": 4}


def test_npz_refused(tmp_path):
    def bomb(path):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 1 << 10, 1 << 10)})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", header.getvalue())

    def header(text):
        def write(path):
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("images.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text)

        return write

    def claim(path):
        """A gigabyte of pictures of one pixel, which only the archive's directory confirms."""
        text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1073741824, 1, 1)}"
        header(text)(path)
        data = bytearray(path.read_bytes())
        at = data.index(b"PK\1\2") + 24  # the member's size in the central directory
        data[at:at + 4] = struct.pack("<I", 10 + len(text) + (1 << 30))
        path.write_bytes(data)

    x = noise(4, 6, 5)
    cases = [(bomb, "more than 8 GB"), (lambda p: np.savez(p, images=np.array([{}], object)), "must be uint8"),
             (lambda p: np.savez(p, images=x.astype(np.int32)), "must be uint8"), (lambda p: np.savez(p, pictures=x), "should be named"),
             (lambda p: np.savez(p, images=x, labels=np.arange(3)), "should hold 4 whole numbers"),
             (lambda p: np.savez(p, images=x, x=x), "same split"),
             (lambda p: np.savez(p, images=x, labels=np.array([0.5] * 4)), "whole numbers"),
             (lambda p: np.savez(p, images=np.uint8(3)), r"shape \(\): pictures need"),
             (lambda p: np.savez(p, images=x.reshape(4, -1)), r"shape \(4, 30\): pictures need"),
             (lambda p: np.savez(p, images=x[:, :0]), r"shape \(4, 0, 5\): .* no side 0"),
             (lambda p: np.savez(p, train_x=x, test_x=x[..., None][..., :0]), r"test_x.npy has the shape \(4, 6, 5, 0\)"),
             (header(b"{'descr': '|u1', 'shape': (3,"), "damaged"), (header(b"{[]: 1}"), "damaged"),
             (claim, "does not have the size")]
    for i, (make, says) in enumerate(cases):
        make(tmp_path / f"{i}.npz")
        with pytest.raises(UserError, match=says):
            prepare(tmp_path / "out", tmp_path / f"{i}.npz")
    np.savez(tmp_path / "whole.npz", images=x)
    data = bytearray((tmp_path / "whole.npz").read_bytes())
    data[200] ^= 1
    (tmp_path / "whole.npz").write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        prepare(tmp_path / "out", tmp_path / "whole.npz")
    np.savez(tmp_path / "partly.npz", images=np.stack([np.zeros((4, 4)), np.full((4, 4), np.nan), np.full((4, 4), 2.0)]))
    _, read, manifest = prepare(tmp_path / "partly", tmp_path / "partly.npz")
    assert manifest["kept"] == 1 and manifest["skipped"] == {"values outside 0..1": ["partly.npz/images:1", "partly.npz/images:2"]}


def test_classes_in_folders_and_archives(tmp_path):
    for split, amount in (("train", 3), ("test", 2)):
        for label in ("cat", "dog<b>"):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            for i in range(amount):
                (tmp_path / "set" / split / label / f"{i}.png").write_bytes(png(noise(6, 5, 3, i)))
    spec, read, _ = prepare(tmp_path / "a", tmp_path / "set")
    assert spec.splits == {"train": 6, "test": 4} and spec.fields["label"].labels == ("cat", "dog<b>")
    assert read["train"]["label"].tolist() == [0] * 3 + [1] * 3 and read["test"]["source"][0] == "test/cat/0.png"
    with tarfile.open(tmp_path / "x.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "set", "wrapped/set")
    spec, read, _ = prepare(tmp_path / "b", tmp_path / "x.tar.xz")
    assert spec.splits == {"train": 6, "test": 4} and sorted(read["test"]["label"]) == [0, 0, 1, 1]
    spec, _, _ = prepare(tmp_path / "c", tmp_path / "set" / "train", labels="none")
    assert spec.splits == {"train": 6} and "label" not in spec.fields
    with pytest.raises(UserError, match="own split of that name"):
        prepare(tmp_path / "d", tmp_path / "set", split="train:0.5,test:0.5")
    with pytest.raises(UserError, match="'cat' is in both"):
        prepare(tmp_path / "d", tmp_path / "set", group="/(cat|dog)")
    spec, read, manifest = prepare(tmp_path / "e", tmp_path / "set", per_class="2,1")
    assert spec.splits == {"train": 4, "test": 2} and np.bincount(read["train"]["label"]).tolist() == [2, 2]
    assert len(manifest["skipped"]["beyond --per_class"]) == 4 and manifest["found"] == 10
    with pytest.raises(UserError, match="3 pictures of class cat in 'test', which has 2"):
        prepare(tmp_path / "f", tmp_path / "set", per_class="1,3")
    (tmp_path / "set" / "train" / "loose.png").write_bytes(png(noise(6, 5)))
    _, _, manifest = prepare(tmp_path / "g", tmp_path / "set" / "train")
    assert manifest["skipped"] == {"lies beside the class folders, not in one": ["loose.png"]}


def test_digits_and_binarization(tmp_path):
    spec, read, _ = prepare(tmp_path / "grey", "digits", split="train:0.8,test:0.2")
    assert spec.splits == {"train": 1438, "test": 359} and spec.fields["image"].shape == (8, 8, 1)
    fixed, drawn, _ = prepare(tmp_path / "fixed", "digits", split="train:0.8,test:0.2", binarize=1)
    assert set(np.unique(drawn["train"]["image"])) == {0, 255} and read["train"]["source"] == drawn["train"]["source"]
    grey, ink = read["train"]["image"] / 255, drawn["train"]["image"] / 255
    assert (ink[grey == 0] == 0).all() and (ink[grey == 1] == 1).all()
    score = (ink - grey).sum() / np.sqrt((grey * (1 - grey)).sum())  # standard normal if each pixel is drawn with its own probability
    assert abs(score) < 4
    assert prepare(tmp_path / "again", "digits", split="train:0.8,test:0.2", binarize=1)[0].digest == fixed.digest
    assert prepare(tmp_path / "other", "digits", split="train:0.8,test:0.2", binarize=2)[0].digest != fixed.digest


def test_tfds_folder(tmp_path):
    pytest.importorskip("tensorflow")
    _, read, _ = prepare(tmp_path / "a", "digits", split="train:0.9,test:0.1")
    _, again, _ = prepare(tmp_path / "b", f"tfds:{tmp_path / 'a'}")
    for split in ("train", "test"):
        assert np.array_equal(read[split]["image"], again[split]["image"]) and np.array_equal(read[split]["label"], again[split]["label"])


# Bad input


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width, height, kind, rows, extra=b""):
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bad_files():
    good, picture = png(noise(20, 30)), Image.fromarray(noise(20, 30))
    flipped = bytearray(good)
    flipped[200] ^= 1

    def saved(form, **options):
        data = io.BytesIO()
        picture.save(data, form, **options)
        return data.getvalue()

    more = {"save_all": True, "append_images": [picture.rotate(90)] * 3}
    return {
        "no_end.png": (good[:-12], "cut short"), "cut.png": (good[:900], "cut short"), "flip.png": (bytes(flipped), "wrong checksum"),
        "cut.jpg": (saved("JPEG")[:-200], "truncated"), "cut.webp": (saved("WEBP")[:-100], "cannot be decoded"),
        "cut.bmp": (saved("BMP")[:-100], "truncated"),
        "bomb.png": (raw_png(20000, 20000, 0, bytes(1000)), "megapixels"), "strip.png": (raw_png(5000000, 1, 0, bytes(5000001)), "pixels a side"),
        "one.png": (raw_png(1, 1, 0, bytes(2)), "fewer than 4"), "palette.png": (raw_png(8, 8, 3, bytes(72)), "without palette"),
        "text.png": (raw_png(8, 8, 0, bytes(72), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000)))), "cannot be decoded"),
        "short.png": (raw_png(8, 8, 0, bytes(20)), "cannot be decoded"), "eps.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a PNG"),
        "moving.webp": (saved("WEBP", **more), "animated"), "moving.png": (saved("PNG", **more), "animated"),
        "moving.gif": (saved("GIF", **more), "not a PNG"),
        "x.tiff": (saved("TIFF"), "not a PNG"), "empty.png": (b"", "empty file"), "zip.png": (b"PK\3\4" + bytes(100), "not a PNG"),
    }


def test_every_bad_picture_is_a_skip_with_its_reason(tmp_path):
    folder, bad = tmp_path / "in", bad_files()
    folder.mkdir()
    for name, (data, _) in bad.items():
        (folder / name).write_bytes(data)
    for name in ("good.png", "new\nline.png", "rtl\u202egnp.png", "-dash.png", "<b>x.png", "e\u0301.png", "\xe9.png"):
        (folder / name).write_bytes(png(noise(20, 30)))
    with open(os.fsencode(folder) + b"/byte\xff.png", "wb") as file:
        file.write(png(noise(20, 30)))
    os.mkfifo(folder / "fifo.png")
    os.symlink("..", folder / "loop")
    os.truncate(os.open(folder / "huge.bmp", os.O_CREAT | os.O_WRONLY), 300 << 20)
    with open(folder / "huge.bmp", "r+b") as file:
        file.write(bad["cut.bmp"][0][:54])
    spec, read, manifest = prepare(tmp_path / "out", folder)
    reasons = {name: reason for reason, names in manifest["skipped"].items() for name in names}
    for name, (_, says) in {**bad, "fifo.png": (0, "not a regular"), "loop": (0, "symbolic link"), "huge.bmp": (0, "larger than 256 MB")}.items():
        assert says in reasons.pop(name), name
    assert reasons == {} and manifest["kept"] == 8 and manifest["found"] == len(os.listdir(folder)) == manifest["kept"] + manifest["skipped_count"]
    assert "byte\\xff.png" in read["train"]["source"] and "new\nline.png" in read["train"]["source"]


def test_mutated_pictures_raise_nothing_but_exceptions():
    rng, seeds = np.random.default_rng(0), []
    for form in ("PNG", "JPEG", "BMP", "WEBP"):
        data = io.BytesIO()
        Image.fromarray(noise(20, 30)).save(data, form)
        seeds.append(data.getvalue())
    kept = refused = 0
    for i in range(400):
        data = bytearray(seeds[i % len(seeds)])
        for _ in range(3):
            data[rng.integers(len(data))] = rng.integers(256)
        if pictures.sniff(bytes(data[:512])):
            try:
                kept += decode(bytes(data)).dtype == np.uint8
            except Exception:  # whatever a decoder raises is a skip; a crash would end this process
                refused += 1
    assert refused > 100 and kept > 100


@pytest.mark.parametrize("values, says", [
    ({"size": "a"}, "H or H,W"), ({"size": "8,8,8"}, "H or H,W"), ({"size": "0"}, "H or H,W"), ({"fit": True}, "needs --size"),
    ({"crop": True}, "needs --size"),
    ({"fit": True, "pad": True, "size": 8}, "exclude each other"), ({"recipe": "bottles", "size": 8}, "fixes size"),
    ({"group": "("}, "neither a file nor"),
    ({"split": "train:1,test:1"}, "sum to 2"), ({"per_class": "1,2,3"}, "whole numbers"), ({"split": "a:0.9999,b:0.0001"}, "would be empty"),
    ({"crop": True, "size": 9}, "No picture of digits was kept: skipped 1,797: smaller than one crop"),
])
def test_wrong_flags_are_one_sentence(tmp_path, values, says):
    with pytest.raises(UserError, match=says):
        prepare(tmp_path / "out", "digits", **values)
    assert list(tmp_path.iterdir()) == []


def test_pictures_that_differ(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(noise(6, 5)))
    (tmp_path / "in" / "b.png").write_bytes(png(noise(6, 7)))
    with pytest.raises(UserError, match="a.png is 6x5x3, b.png 6x7x3.*--size"):
        prepare(tmp_path / "out", tmp_path / "in")
    (tmp_path / "in" / "b.png").write_bytes(png(noise(6, 5, 1)))
    with pytest.raises(UserError, match="a.png is 6x5x3, b.png 6x5x1.*--colour"):
        prepare(tmp_path / "out", tmp_path / "in")
    assert prepare(tmp_path / "out", tmp_path / "in", colour="grey")[0].fields["image"].shape == (6, 5, 1)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no pictures: it is empty"):
        prepare(tmp_path / "out2", tmp_path / "none")
    with pytest.raises(UserError, match="not empty: choose"):
        prepare(tmp_path / "out", tmp_path / "in", colour="rgb")
    assert prepare(tmp_path / "out", tmp_path / "in", colour="rgb", overwrite=True)[0].fields["image"].shape == (6, 5, 3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_preparation_leaves_nothing(tmp_path, number):
    (tmp_path / "in").mkdir()
    for i in range(300):
        (tmp_path / "in" / f"{i}.png").write_bytes(png(noise(40, 20, 1, i)))
    flags = [f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", "--recipe=bottles", "--workers=1"]
    command = [sys.executable, "-m", "data_prep.images", *flags]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not [p for p in tmp_path.glob(".out.preparing-*/*") if p.is_file()]:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.communicate()[1] == "interrupted; nothing was left behind\n" and process.returncode == 130
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


# Real data


def test_mnist(data_dir, tmp_path):
    spec, read, _ = prepare(tmp_path / "mnist", data_dir / "mnist")
    assert spec.splits == {"train": 60000, "test": 10000}
    for split, begins in (("train", "ba891046e6505d7a"), ("test", "0fa7898d509279e4")):  # of the unpacked image files, header included
        x = read[split]["image"][..., 0]
        assert hashlib.sha256(struct.pack(">HBBIII", 0, 8, 3, *x.shape) + x.tobytes()).hexdigest().startswith(begins)
    assert np.bincount(read["train"]["label"]).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def test_real_bottles(data_dir, tmp_path):
    group = r"^(?:(?P<fa>fa\d?-solid)|(?P<fluent>fluent|codicon)|(?P<boxicons>boxicons|bxs)|" \
            r"(icon-park|material-symbols|mdi|emojione|lucide|streamline)|(.+?)__)"
    spec, read, manifest = prepare(tmp_path / "bottles", data_dir / "bottles", recipe="bottles", split="train:0.8,test:0.2", group=group)
    assert spec.splits["train"] + spec.splits["test"] == 22100 and spec.splits["train_originals"] + spec.splits["test_originals"] == 221
    assert manifest["skipped_count"] == 1 and not set(read["train"]["group"]) & set(read["test"]["group"])
    for split in ("train", "test"):
        x = read[split]["image"]
        assert x.shape[1:] == (128, 128, 1) and not x[:, :, :32].any() and not x[:, :, 96:].any() and x[:, :, 32:96].any(axis=(1, 2, 3)).all()
    zoom = np.concatenate([read["train"]["zoom"], read["test"]["zoom"]]).astype(float)
    assert all(stats.kstest(zoom[:, axis], "uniform", (0.7, 0.6)).pvalue > 0.01 for axis in range(2))


def test_real_photographs(data_dir, tmp_path):
    spec, read, _ = prepare(tmp_path / "photos", data_dir / "photos", crop=True, size=128, split="train:0.8,test:0.2")
    assert sum(spec.splits.values()) == 3068 and not set(read["train"]["source"]) & set(read["test"]["source"])
    name = read["test"]["source"][5]
    y, x = read["test"]["start"][5]
    assert np.array_equal(np.asarray(Image.open(data_dir / "photos" / name))[y:y + 128, x:x + 128], read["test"]["image"][5])
