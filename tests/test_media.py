"""Sheets, animations, charts and the page: decoded again by Pillow and read as a browser would."""

import html.parser
import io
import re

import matplotlib
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from vae_jax.media import figures, images, measures
from vae_jax.media import html as pages


def pictures(n=7, h=4, w=6, c=1, seed=0):
    return np.random.default_rng(seed).random((n, h, w, c))


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_places_every_picture(channels):
    x = images.to_uint8(pictures(7, c=channels))
    sheet = images.grid(x, 3, gap=2)
    assert sheet.shape == (3 * (4 + 2) + 2, 3 * (6 + 2) + 2, channels)
    for i in range(7):
        top, left = 2 + (i // 3) * 6, 2 + (i % 3) * 8
        np.testing.assert_array_equal(sheet[top : top + 4, left : left + 6], x[i])
    assert (sheet[14:, 10:] == images.INK).all()  # two empty cells


def test_png_round_trip_and_equal_bytes():
    for channels in (1, 3):
        sheet = images.grid(pictures(c=channels), 3)
        data = images.png(sheet)
        back = np.asarray(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(back.reshape(sheet.shape), sheet)
        assert data == images.png(sheet.copy())
        np.testing.assert_array_equal(images.from_png(data), np.broadcast_to(sheet, (*sheet.shape[:2], 3)))


@pytest.mark.parametrize("wrong", [np.zeros((3, 4, 4, 2)), np.zeros((0, 4, 4, 1)), np.zeros((4, 4, 1))])
def test_grid_refuses_what_is_no_picture(wrong):
    with pytest.raises(ValueError, match="pictures"):
        images.grid(wrong, 2)


def test_to_uint8_clips_and_rounds():
    np.testing.assert_array_equal(images.to_uint8(np.array([-1, 0, 0.5, 1, 2, np.nan, np.inf])), [0, 0, 128, 255, 255, 0, 255])
    np.testing.assert_array_equal(images.to_uint8(np.array([True, False])), [255, 0])
    np.testing.assert_array_equal(images.to_uint8(np.arange(256, dtype=np.uint8) / 255), np.arange(256))


def test_resize_enlarges_and_shrinks_by_whole_factors():
    x = images.to_uint8(pictures(2))
    np.testing.assert_array_equal(images.resize(x, 2, width=36), x.repeat(3, 1).repeat(3, 2))
    np.testing.assert_array_equal(images.resize(x, 2, width=10), x)  # a little too wide stays as it is
    small = images.resize(x, 2, width=6)
    np.testing.assert_array_equal(small, np.round(x.reshape(2, 2, 2, 3, 2, 1).astype(float).mean((2, 4))))
    assert images.resize(np.zeros((1, 5, 7, 1)), 10, width=30).shape == (1, 3, 4, 1)


def test_bands_keep_examples_under_each_other():
    top, below = pictures(5, seed=1), pictures(5, seed=2)
    rows = images.bands([top, below], 3)
    assert len(rows) == 12
    np.testing.assert_array_equal(rows[:6], images.to_uint8(np.concatenate([top[:3], below[:3]])))
    np.testing.assert_array_equal(rows[[6, 7, 9, 10]], images.to_uint8(np.concatenate([top[3:], below[3:]])))
    assert (rows[[8, 11]] == images.INK).all()
    assert len(images.bands([top[:2], below[:2]], 3)) == 4
    sheet = images.grid(rows, 3, gap=1, band=2)
    assert len(sheet) == 1 + 4 * 5 + 3


def test_gif_frames_times_and_colours():
    frames = [images.grid(pictures(4, c=3, seed=s), 2) for s in range(5)]
    found = Image.open(io.BytesIO(images.gif(frames, milliseconds=10, hold=900)))
    assert found.n_frames == 5 and found.info["loop"] == 0
    durations, errors = [], []
    for i, frame in enumerate(frames):
        found.seek(i)
        durations.append(found.info["duration"])
        errors.append(np.abs(np.asarray(found.convert("RGB")).astype(int) - frame).mean())
    assert durations == [50, 50, 50, 50, 900]  # never faster than 50 ms
    assert errors[-1] < 4 and max(errors) < 40
    with pytest.raises(ValueError, match="frame"):
        images.gif([])


def test_measures():
    a, b = pictures(5, c=3, seed=3), pictures(5, c=3, seed=4)
    np.testing.assert_allclose(measures.mse(a, b), ((a - b) ** 2).mean((1, 2, 3)), rtol=1e-5)
    x, y = np.zeros((2, 2, 2, 1)), np.zeros((2, 2, 2, 1))
    x[0, 0], y[0, :, 0] = 1, 1  # a row against a column: one of three pixels
    np.testing.assert_allclose(measures.iou(x, y), [1 / 3, 1])
    grey = pictures(3, 9, 8)
    want = [scipy.ndimage.laplace(g[..., 0])[1:-1, 1:-1].var() for g in grey]
    np.testing.assert_allclose(measures.sharpness(grey), want, rtol=1e-5)
    assert (measures.sharpness(np.full((2, 5, 5, 3), 77, np.uint8)) < 1e-9).all()


def test_nearest_equals_brute_force_over_chunks(monkeypatch):
    a, among = images.to_uint8(pictures(6, seed=5)), images.to_uint8(pictures(50, seed=6))
    among[31] = a[2]
    monkeypatch.setattr(measures, "_CHUNK_BYTES", 4 * 24 * 9)
    distance, index = measures.nearest(a, among)
    full = np.sqrt((((a[:, None] / 255 - among[None] / 255)) ** 2).mean((2, 3, 4)))
    np.testing.assert_array_equal(index, full.argmin(1))
    np.testing.assert_allclose(distance, full.min(1), atol=1e-6)
    assert distance[2] == 0 and index[2] == 31


def shown(data):
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert picture.std() > 1, "an empty chart"
    return picture


def test_charts_draw_in_both_themes_and_leave_nothing_behind():
    rng = np.random.default_rng(0)
    before = dict(matplotlib.rcParams)
    steps = np.arange(30) * 100
    lines = {"train": (steps, 150 + 600 * np.exp(-steps / 50)), "test": (steps, np.where(steps == 200, np.nan, 155.0))}
    charts = [
        lambda t: figures.curves({"loss": lines, "KL": {"test": ([0], [1.0])}}, t),
        lambda t: figures.scatter(rng.standard_normal((50, 2)), rng.integers(0, 3, 50), ("a$b", "<c>", "x" * 99), theme=t),
        lambda t: figures.scatter(rng.standard_normal((50, 1)), rng.integers(0, 30, 50), theme=t),
        lambda t: figures.scatter(rng.standard_normal((50, 2)), theme=t),
        lambda t: figures.histograms(rng.standard_normal((99, 5)), theme=t),
        lambda t: figures.histograms(np.zeros((9, 1)), theme=t),
        lambda t: figures.bars(rng.random(5), np.array([True, False, True, True, True]), theme=t),
        lambda t: figures.waves({"original": rng.standard_normal((3, 5001)), "model": np.zeros((3, 99))}, ("a$b", "c", "<d>"), 8000, t),
        lambda t: figures.rates({"sigma=0.1": (rng.random(3), rng.random(3)), "a$b": (np.ones(1), np.zeros(1))}, t),
        lambda t: figures.fidelity({"variance": np.linspace(0.3, 1, 9), "singular": np.linspace(0.2, 1, 9)}, theme=t),
    ]
    for chart in charts:
        light, dark = shown(chart(figures.LIGHT)), shown(chart(figures.DARK))
        assert light[0, 0].sum() > 700 and dark[0, 0].sum() < 120  # paper in the corner
    assert dict(matplotlib.rcParams) == before


def test_equal_numbers_make_equal_charts():
    z = np.random.default_rng(1).standard_normal((40, 2))
    assert figures.scatter(z) == figures.scatter(z.copy()) != figures.scatter(z + 1, limit=3)


def test_scatter_colours_follow_labels():
    corner = shown(figures.scatter(np.array([[-1.0, -1], [1, 1]] * 20), np.array([4, 7] * 20), limit=2))
    for colour in figures.CLASSES[:2]:
        wanted = np.array(matplotlib.colors.to_rgb(colour)) * 255
        assert (np.abs(corner - wanted).sum(2) < 12).sum() > 30
    assert len(set(figures.class_colours(10))) == 10 and len(set(figures.class_colours(35))) == 35


def test_animation_has_a_frame_an_epoch():
    frames = {f"epoch {i}": np.full((5, 2), float(i)) for i in range(3)}
    found = Image.open(io.BytesIO(figures.animation(frames, np.arange(5))))
    assert found.n_frames == 3


def test_show():
    assert pages.show((103.216, 0.2571)) == "103.22 ± 0.26"
    assert pages.show((12345.6, 120.0)) == "12346 ± 120"
    assert pages.show((0.5, 0.0)) == pages.show((0.5, float("nan"))) == "0.5"
    assert pages.show(0.0123456) == "0.01235" and pages.show(123456.7) == "123,457"
    assert pages.show(3) == "3" and pages.show(None) == "–" and pages.show(float("nan")) == "nan"


class Reader(html.parser.HTMLParser):
    """Tags with attributes, and text, as a browser sees them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


HOSTILE = "<script>alert(1)</script>\"'&\u202egnp.exe\x1b[31m\n\udcff"


def hostile_page():
    picture = pages.Picture("a b<c>.png", HOSTILE, dark="javascript:alert(1)")
    section = pages.Section("x", HOSTILE, HOSTILE, ((picture, HOSTILE),), ((HOSTILE, HOSTILE, HOSTILE), ("loss", 1.5, "")),
                            (pages.Sounds(HOSTILE, (("javascript:alert(1)", HOSTILE), ("a b.wav", "model"))),))
    table = pages.Table(("name", HOSTILE, "note"), ((HOSTILE, HOSTILE, HOSTILE), ("KL", (2.0, 0.1), "")))
    return pages.page(HOSTILE, HOSTILE, [(HOSTILE, HOSTILE)], HOSTILE, table, [section])


def test_page_escapes_everything():
    text = hostile_page()
    text.encode("utf-8")
    reader = Reader(text)
    assert not reader.open
    tags = {tag for tag, _ in reader.tags}
    assert "script" not in tags and tags <= set("html head meta link title style body main header h1 h2 h3 audio p div dl dt dd code nav a section "
                                               "figure picture source img figcaption small table thead tbody tr th td".split())
    assert not any(name.startswith("on") or name == "style" for _, attrs in reader.tags for name in attrs)
    assert "\u202e" not in text and "\x1b" not in text and "\\u202e" in text and "\\x1b" in text
    assert "".join(reader.text).count("<script>alert(1)</script>") >= 8


def test_page_names_only_files_beside_it():
    for _, attrs in Reader(hostile_page()).tags:
        for name in ("src", "srcset", "href"):
            if name in attrs:
                assert attrs[name] == "data:," or re.fullmatch(r"#?[A-Za-z0-9._%-]+", attrs[name]), attrs


def test_page_policy_is_strict_and_knows_the_style():
    import base64
    import hashlib

    text = hostile_page()
    policy = next(attrs["content"] for tag, attrs in Reader(text).tags if attrs.get("http-equiv") == "Content-Security-Policy")
    style = re.search(r"<style>(.*?)</style>", text, re.S).group(1)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src 'self' data:;") and f"'sha256-{digest}'" in policy
    assert "media-src 'self';" in policy and [set(attrs) for tag, attrs in Reader(text).tags if tag == "audio"] == 2 * [
        {"controls", "preload", "aria-label", "src"}]
    assert "unsafe" not in policy and "http" not in policy and "url(" not in style and "@import" not in style
    assert "prefers-color-scheme" in style and 'name="viewport"' in text
