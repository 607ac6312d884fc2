"""Charts of a run in one house style, for a light and a dark page: numbers in, PNG bytes out, without a screen.

matplotlib's object interface only: no pyplot, so no global figures to leak. Equal numbers give equal bytes.
"""

import io
from typing import NamedTuple

import matplotlib
import numpy as np
import scipy.stats
from matplotlib import colors, lines, patches, ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vae_jax.media import images


class Theme(NamedTuple):
    paper: str
    ink: str
    faint: str
    rule: str
    series: tuple[str, ...]  # train, validation, test; the last is also the one colour of single-series charts


LIGHT = Theme("#ffffff", "#1f2430", "#667085", "#e4e7ec", ("#9aa3b2", "#d08700", "#3356d6"))
DARK = Theme("#161a22", "#e6e9ef", "#98a2b3", "#2b313d", ("#7d8798", "#e0a63a", "#8aa4ff"))
THEMES = {"": LIGHT, "-dark": DARK}  # by suffix of the file name

# Ten classes that stay apart on white and on black (Observable's ten).
CLASSES = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0")
ROLES = ("train", "validation", "test")
DPI = 160


def _style(theme):
    """Settings a chart is made and drawn under: matplotlib makes its tick labels while it draws."""
    return matplotlib.rc_context({
        "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9, "axes.titleweight": "bold",
        "axes.titlelocation": "left", "axes.titlepad": 10, "axes.labelpad": 6, "figure.facecolor": theme.paper, "axes.facecolor": theme.paper,
        "savefig.facecolor": theme.paper, "text.color": theme.ink, "axes.titlecolor": theme.ink, "axes.labelcolor": theme.faint,
        "axes.edgecolor": theme.rule, "xtick.color": theme.rule, "ytick.color": theme.rule, "xtick.labelcolor": theme.faint,
        "ytick.labelcolor": theme.faint, "xtick.labelsize": 8, "ytick.labelsize": 8, "xtick.major.size": 3, "ytick.major.size": 0,
        "axes.grid": True, "axes.axisbelow": True, "grid.color": theme.rule, "grid.linewidth": 0.8, "axes.spines.top": False,
        "axes.spines.right": False, "axes.spines.left": False, "lines.linewidth": 1.8, "lines.solid_capstyle": "round",
        "legend.frameon": False, "legend.fontsize": 8, "text.parse_math": False,
    })


def _figure(width, height, columns=1, rows=1):
    """A figure of the given size in inches, and its axes [rows, columns]."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1, wspace=0.04, hspace=0.06)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _png(figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def class_colours(count: int) -> list:
    """One colour a class: the house's ten, or steps round a colour wheel where there are more."""
    return list(CLASSES[:count]) if count <= len(CLASSES) else [matplotlib.colormaps["turbo"](i / (count - 1)) for i in range(count)]


def curves(series: dict, theme: Theme = LIGHT, unit: str = "nats") -> bytes:
    """One panel a quantity, one line a role.

    series: {title: {role: (steps [n], values [n])}}, all in one unit or each with its own in its title (''); roles are train, validation, test.
    Values that are not finite leave a gap.
    """
    with _style(theme):
        figure, axes = _figure(3.1 * len(series), 2.9, columns=len(series))
        for ax, (title, by_role) in zip(axes[0], series.items()):
            for role, (steps, values) in by_role.items():
                colour, values = theme.series[ROLES.index(role)], np.asarray(values, np.float64)
                ax.plot(steps, values, color=colour, label=role, marker="o" if len(values) < 12 else "", markersize=3.5,
                        linestyle="--" if role == "train" else "-")
            points = np.concatenate([np.column_stack(line).astype(np.float64) for line in by_role.values()])
            points = points[np.isfinite(points[:, 1])]
            late = points[points[:, 0] >= 0.05 * points[:, 0].max(initial=0)]
            if len(late) >= 8:  # an untrained model is far off: it may leave the panel above, so that the rest can be read
                low, high = points[:, 1].min(), late[:, 1].max()
                ax.set_ylim(low - 0.06 * (high - low or 1), high + 0.12 * (high - low or 1))
            ax.set_title(title)
            ax.set_xlabel("step")
            ax.xaxis.set_major_locator(ticker.MaxNLocator(4))
            ax.xaxis.set_major_formatter(ticker.FuncFormatter(_thousands))
        axes[0, 0].set_ylabel(unit)
        axes[0, -1].legend(loc="best")
        return _png(figure)


def _thousands(value, _):
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


def scatter(code_nm, label_n=None, names=(), axes_names=("z1", "z2"), limit: float = 0.0, title: str = "", theme: Theme = LIGHT) -> bytes:
    """Codes [n, 1 or 2] as points coloured by label.

    limit > 0 fixes both axes to -limit..limit (frames of an animation). One dimension: the second axis is the class. More than 20 classes have
    no legend. Points are drawn in their order, so shuffle codes that are sorted by class.
    """
    code = np.asarray(code_nm, np.float64)
    label = np.zeros(len(code), np.int64) if label_n is None else np.asarray(label_n)
    classes = np.unique(label)
    number = np.searchsorted(classes, label)
    legend = label_n is not None and len(classes) <= 20
    with _style(theme):
        figure, axes = _figure(7.0, 5.0)
        ax = axes[0, 0]
        shades = class_colours(len(classes)) if label_n is not None else [theme.series[-1]]
        colours = np.array([colors.to_rgba(c) for c in shades])
        if code.shape[1] == 1:
            spread = 0.7 * ((np.arange(len(code)) * 0.6180339887) % 1 - 0.5)  # even, and the same every time
            code = np.column_stack([code[:, 0], number + spread])
            ax.set_yticks(range(len(classes)) if legend else [])
            ax.set_yticklabels([class_name(names, c) for c in classes] if legend else [])
        else:
            ax.set_ylabel(axes_names[1])
            ax.set_aspect("equal", adjustable="datalim" if not limit else "box")
        size = float(np.clip(12000 / max(len(code), 1), 5, 24))
        ax.scatter(code[:, 0], code[:, 1], s=size, c=colours[number], alpha=0.75, linewidths=0)
        ax.set_xlabel(axes_names[0])
        if limit:
            ax.set_xlim(-limit, limit)
            if np.shape(code_nm)[1] == 2:
                ax.set_ylim(-limit, limit)
        if legend:
            marks = [lines.Line2D([], [], marker="o", linestyle="", markersize=6, color=colours[i]) for i in range(len(classes))]
            ax.legend(marks, [class_name(names, c) for c in classes], loc="center left", bbox_to_anchor=(1.0, 0.5), handletextpad=0.2)
        ax.set_title(title)
        if not limit:
            figure.draw_without_rendering()  # axes of equal scale find their limits, and so the width of their numbers, only when drawn
        return _png(figure)


def animation(frames: dict, label_n=None, names=(), limit: float = 6.0, milliseconds: int = 150) -> bytes:
    """A GIF of codes on their way: one `scatter` a frame on fixed axes, {title ('epoch 3'): codes [n, 1 or 2]}, the last held longer."""
    drawn = [images.from_png(scatter(code, label_n, names, limit=limit, title=title)) for title, code in frames.items()]
    return images.gif(drawn, milliseconds)


def class_name(names, number, length: int = 24) -> str:
    """A class's name, cut, without control characters: names come from folders."""
    text = str(names[int(number)]) if 0 <= int(number) < len(names) else str(number)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= length else text[:length - 1] + "…"


def waves(columns: dict, rows, rate: int, theme: Theme = LIGHT) -> bytes:
    """Waves over time: {title: waves [n, samples]} side by side, one lane an example, all at one height, with `rows` (n names) at the left."""
    with _style(theme):
        figure, axes = _figure(8.4, 0.9 + 0.55 * len(rows), columns=len(columns))
        loudest = max(float(np.abs(values).max(initial=0.0)) for values in columns.values()) or 1.0
        for ax, (title, values) in zip(axes[0], columns.items()):
            width = max(1, -(-values.shape[1] // 600))  # samples a drawn point: the eye sees the least and the greatest of them
            blocks = np.pad(np.asarray(values, np.float64), [(0, 0), (0, -values.shape[1] % width)], mode="edge").reshape(len(values), -1, width)
            time = np.arange(blocks.shape[1]) * width / rate
            for i, block in enumerate(blocks):
                ax.fill_between(time, 0.48 * block.min(1) / loudest - i, 0.48 * block.max(1) / loudest - i, color=theme.series[-1], linewidth=0.5)
            ax.set_title(title)
            ax.set_xlabel("seconds")
            ax.set_ylim(0.5 - len(rows), 0.5)
            ax.set_yticks([-i for i in range(len(rows))], rows if ax is axes[0, 0] else [""] * len(rows))
        return _png(figure)


def histograms(z_nd, names=(), theme: Theme = LIGHT) -> bytes:
    """A histogram of each axis of z [n, d], with the normal fitted to it and the unit normal."""
    z = np.asarray(z_nd, np.float64)
    columns = min(4, z.shape[1])
    rows = -(-z.shape[1] // columns)
    with _style(theme):
        figure, axes = _figure(max(2.4 * columns, 7.0), 2.2 * rows + 0.2, columns=columns, rows=rows)
        reach = max(4.0, float(np.quantile(np.abs(z), 0.999)))
        x = np.linspace(-reach, reach, 241)
        for i, ax in enumerate(axes.ravel()):
            if i >= z.shape[1]:
                ax.set_visible(False)
                continue
            mean, sd = z[:, i].mean(), z[:, i].std()
            ax.hist(z[:, i], bins=np.linspace(-reach, reach, 49), density=True, color=theme.series[-1], alpha=0.35, linewidth=0)
            ax.plot(x, scipy.stats.norm.pdf(x), color=theme.faint, linewidth=1.2, linestyle=":", label="unit normal")
            if sd > 0:
                ax.plot(x, scipy.stats.norm.pdf(x, mean, sd), color=theme.series[-1], label="fitted normal")
            ax.set_yticks([])
            ax.set_xlim(-reach, reach)
            ax.set_ylim(0, max(0.55, 1.25 * np.histogram(z[:, i], np.linspace(-reach, reach, 49), density=True)[0].max()))
            ax.set_title(names[i] if i < len(names) else f"z{i + 1}")
        axes[0, 0].legend(loc="upper left", fontsize=7, borderaxespad=0, handlelength=1.4)
        return _png(figure)


def bars(values_d, threshold_d=None, ylabel: str = "nats", xlabel: str = "latent dimension, strongest first", states=("active", "inactive"),
         theme: Theme = LIGHT) -> bytes:
    """One bar a dimension, largest first; those whose `threshold_d` is False, the second of `states`, are drawn faint."""
    values = np.asarray(values_d, np.float64)
    order = np.argsort(-values, kind="stable")
    active = np.ones(len(values), bool) if threshold_d is None else np.asarray(threshold_d)
    with _style(theme):
        figure, axes = _figure(7.0, 2.7)
        ax = axes[0, 0]
        ax.bar(range(len(values)), values[order], width=0.78, color=[theme.series[-1] if active[i] else theme.series[0] for i in order])
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel)
        ax.set_xlim(-0.7, max(len(values), 6) - 0.3)
        ax.grid(axis="x", visible=False)
        if len(values) <= 24:
            ax.set_xticks(range(len(values)), [str(i + 1) for i in order])
        if not active.all():
            marks = [patches.Patch(color=theme.series[-1]), patches.Patch(color=theme.series[0])]
            ax.legend(marks, states, loc="upper right")
        return _png(figure)


def fidelity(curves: dict, marks=(0.8, 0.9, 0.95, 0.99), theme: Theme = LIGHT) -> bytes:
    """Fidelity against number of directions: `curves` {name: curve [d]}, the first in the house's colour; levels `marks` are ruled."""
    with _style(theme):
        figure, axes = _figure(7.0, 2.9)
        ax = axes[0, 0]
        for i, (name, curve) in enumerate(curves.items()):
            ax.plot(range(1, len(curve) + 1), curve, color=theme.series[-1 - i], label=name, marker="o" if len(curve) <= 40 else "", markersize=3.5)
        for mark in marks:
            ax.axhline(mark, color=theme.faint, linewidth=0.7, linestyle=":")
        ax.set_ylim(0, 1.04)
        ax.set_xlabel("directions kept")
        ax.set_ylabel("fidelity")
        ax.xaxis.set_major_locator(ticker.MaxNLocator(8, integer=True))
        ax.legend(loc="lower right")
        return _png(figure)


def cropped(curves: dict, distances: dict, full: float, marks=(0.8, 0.9, 0.95, 0.99), theme: Theme = LIGHT) -> bytes:
    """Directions kept, on a log axis, and spectral distance of what they sound like, both against fidelity (as Caillon and Esling 2021, figure 2).

    curves: {name of a definition: fidelity [d] of r = 1..d directions}; distances: {what stands in the others: (fidelity [k], distance [k])}; full:
    distance of the whole code. Both panels: the first in the house's colour.
    """
    with _style(theme):
        figure, axes = _figure(8.4, 3.2, columns=2)
        left, right = axes[0]
        for i, (name, curve) in enumerate(curves.items()):
            left.plot(curve, range(1, len(curve) + 1), color=theme.series[-1 - i], label=name)
        left.set_yscale("log", base=2)
        left.yaxis.set_major_formatter(ticker.FormatStrFormatter("%d"))
        left.set_ylim(0.9, 1.2 * max(map(len, curves.values())))
        left.set_ylabel("directions kept")
        for i, (name, (fidelities, values)) in enumerate(distances.items()):
            right.plot(fidelities, values, color=theme.series[-1 - i], label=name, marker="o", markersize=3.5)
        right.axhline(full, color=theme.ink, linewidth=0.9, linestyle="--", label="all as they are")
        right.set_ylabel("spectral distance")
        for ax in (left, right):
            for mark in marks:
                ax.axvline(mark, color=theme.faint, linewidth=0.7, linestyle=":")
            ax.set_xlabel("fidelity")
            ax.legend(loc="best")
        return _png(figure)


def rates(points: dict, theme: Theme = LIGHT) -> bytes:
    """Rate against distortion: {name: (KL in nats [seeds], squared error [seeds])}, a point a seed, bars of one standard deviation over seeds."""
    with _style(theme):
        figure, axes = _figure(7.0, 4.2)
        ax, order = axes[0, 0], sorted(points, key=lambda name: np.mean(points[name][0]))
        ax.plot([np.mean(points[n][0]) for n in order], [np.mean(points[n][1]) for n in order], color=theme.rule, linewidth=1.2)
        for colour, name in zip(class_colours(len(points)), points):
            ax.plot(*points[name], linestyle="", marker="o", markersize=5, color=colour, label=class_name((name,), 0, 60))
            if len(points[name][0]) > 1:
                (x, y), (dx, dy) = ((f(v) for v in points[name]) for f in (np.mean, lambda v: np.std(v, ddof=1)))
                ax.errorbar(x, y, dy, dx, color=colour, linewidth=1.0, capsize=2)
        ax.set_xlabel("rate: KL, nats")
        ax.set_ylabel("distortion: mean squared error")
        ax.legend(loc="best")
        return _png(figure)


def shares(series: dict, names, ylabel: str, theme: Theme = LIGHT) -> bytes:
    """Bars side by side for each of `names`: {title: values [n]}, at most three series, the last in the house's colour."""
    with _style(theme):
        figure, axes = _figure(7.0, 2.7)
        ax, width = axes[0, 0], 0.8 / len(series)
        for i, (title, values) in enumerate(series.items()):
            ax.bar(np.arange(len(names)) + (i - (len(series) - 1) / 2) * width, values, width, color=theme.series[i - len(series)], label=title)
        ax.set_xticks(range(len(names)), names)
        ax.set_ylabel(ylabel)
        ax.grid(axis="x", visible=False)
        ax.legend(loc="best")
        return _png(figure)
