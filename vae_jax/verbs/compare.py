"""compare: several evaluated runs side by side, as a table and as a picture of rate against distortion.

    python -m vae_jax evaluate --workdir=runs/fsdd        first, for each of them
    python -m vae_jax compare --runs=runs/fsdd,runs/fsdd_sigma0.1,runs/fsdd_sigma0.2 --out=runs/compare

Each line is named by the settings in which it differs from the others; runs that differ in the seed alone are one line, mean and standard
deviation over seeds. Writes OUT/table.csv and, of models with both, OUT/rate.png: KL in nats against squared error of held-out reconstructions.
"""

import csv
import io
import json
import pathlib

from absl import flags

from vae_jax.config import UserError

RUNS = flags.DEFINE_list("runs", [], "Run folders, evaluated.")
OUT = flags.DEFINE_string("out", "", "Folder for table.csv and rate.png.")
LOSSES = {"vae": "-ELBO", "rave": "spectral distance", "classifier": "cross-entropy"}  # what a task's loss is
COLUMNS = {  # path in evaluation.json -> title
    "eval/test/loss": "loss", "eval/test/distance_ratio": "distance ratio", "eval/test/error_db": "error in dB",
    "eval/test/high_error_db": "high error in dB", "eval/test/nll": "NLL", "eval/test/reconstruction": "reconstruction", "eval/test/kl": "KL",
    "eval/test/active_units": "units", "eval/test/components_used": "components", "eval/test/components_least_share": "least share",
    "eval/test/marginal_loss": "marginal", "eval/test/held_f1": "held F1", "eval/test/onset_f1": "onset F1", "eval/test/rebuilt_density": "density",
    "eval/test/sample_density": "sample density", "eval/test/sample_pitch_distance": "pitch distance",
    "eval/test/model_mse": "MSE", "eval/test/model_rmse_db": "dB", "eval/test/heard_rmse_db": "heard dB", "judge/accuracy": "judge",
    "judge/classes": "classes", "judge/confidence": "confidence", "judge/agreement": "agreement", "judge/class_agreement": "of class",
    "judge/class_agreement_least": "of worst class", "judge/nearest": "nearest", "judge/diversity": "diversity",
    "judge/frechet": "Frechet distance"}
RATE, DISTORTION = "eval/test/kl", "eval/test/model_mse"


def main(started: float) -> int:
    import numpy as np

    from vae_jax import config as configs
    from vae_jax.media import figures

    if len(RUNS.value) < 2 or not OUT.value:
        raise UserError("give two runs or more, and a folder: --runs=runs/a,runs/b --out=runs/compare.")
    stored = [_settings(configs.to_dict(configs.read(path))) for path in RUNS.value]
    tasks = {settings["task"] for settings in stored}
    titles = COLUMNS | ({"eval/test/loss": LOSSES.get(tasks.pop(), "loss")} if len(tasks) == 1 else {})
    varied = [name for name in dict.fromkeys(n for s in stored for n in s) if len({json.dumps(s.get(name)) for s in stored}) > 1]
    lines, seen = {}, {}
    for path, settings in zip(RUNS.value, stored):
        name = " ".join(f"{n.removeprefix('model.')}={settings.get(n)}" for n in varied if n != "seed") or path
        lines.setdefault(name, []).append(_results(path))
        if (name, settings["seed"]) in seen:
            raise UserError(f"{seen[name, settings['seed']]} and {path} are the same experiment with the same seed; give one of them.")
        seen[name, settings["seed"]] = path
    columns = [c for c in titles if all(c in results for line in lines.values() for results in line)]
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["settings", "seeds", *(part for c in columns for part in (titles[c], f"{titles[c]} sd"))])
    print(f"{'':{max(map(len, lines))}s} seeds " + " ".join(f"{titles[c]:>20s}" for c in columns))
    points = {}
    for name, line in lines.items():
        found = {c: np.array([results[c] for results in line]) for c in columns}
        spread = {c: v.std(ddof=1) if len(v) > 1 else 0.0 for c, v in found.items()}
        table.writerow([name, len(line), *(f"{x:.6g}" for c in columns for x in (found[c].mean(), spread[c]))])
        cells = (f"{v.mean():.5g}" + (f" ({spread[c]:.2g})" if len(v) > 1 else "") for c, v in found.items())
        print(f"{name:{max(map(len, lines))}s} {len(line):5d} " + " ".join(f"{cell:>20s}" for cell in cells))
        if RATE in found and DISTORTION in found:
            points[name] = (found[RATE], found[DISTORTION])
    folder = pathlib.Path(OUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.csv").write_text(out.getvalue())
    print(folder / "table.csv")
    if points:
        (folder / "rate.png").write_bytes(figures.rates(points))
        print(folder / "rate.png")
    return 0


def _settings(values: dict, prefix: str = "") -> dict:
    """{path: value} of what may tell two runs apart; where and how long they ran does not."""
    found = {}
    for name, value in values.items():
        if prefix + name not in ("name", "run", "eval", "data.memory_mb"):
            found |= _settings(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _results(path: str) -> dict:
    try:
        return json.loads((pathlib.Path(path) / "evaluation.json").read_text())["results"]
    except FileNotFoundError:
        raise UserError(f"{path} is not evaluated yet: python -m vae_jax evaluate --workdir={path}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}/evaluation.json is damaged ({error}); run evaluate on it again.") from None
