"""A trained run as files that need no vae_jax: functions for any platform (StableHLO by jax.export), weights beside them, a manifest.

A task names its functions in `Task.exports`. Sizes that the network leaves open stay open: batch and length are symbols, and a function is compiled
for the sizes it is called with, on a CPU, a CUDA GPU or a TPU. An export is compared with the live model in a fresh process before it gets its name.
"""

import hashlib
import json
import pathlib
import subprocess
import sys

import flax.traverse_util
import jax
import numpy as np
from jax import export

from vae_jax import session, streaming
from vae_jax.config import UserError
from vae_jax.latents import fidelity

PLATFORMS = ("cpu", "cuda", "tpu")
LEVELS = (0.80, 0.90, 0.95, 0.99)  # of fidelity, whose numbers of directions are in the manifest
LEAST_DB = 80.0  # by which what an export makes must stand above its difference from the live model
LOADER = '''"""Opens this export: needs jax, numpy and flatbuffers."""

import json
import pathlib

import jax
import numpy as np
from jax import export

FOLDER = pathlib.Path(__file__).resolve().parent


def load():
    """(weights, {name: function(weights, inputs) -> outputs}), compiled at the first call with arrays of new shapes."""
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    weights = jax.device_put(dict(np.load(FOLDER / "weights.npz")))
    read = lambda file: export.deserialize(bytearray((FOLDER / file).read_bytes()))
    return weights, {name: jax.jit(read(made["file"]).call) for name, made in manifest["functions"].items()}
'''
FRESH = '''
import sys
sys.path.insert(0, sys.argv[1])
import jax, loader, numpy as np

def nested(arrays):
    tree = {}
    for name, value in arrays.items():
        *path, last = name.split("/")
        at = tree
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return tree

weights, functions = loader.load()
given, made = nested(np.load(sys.argv[2])), {}
for name, function in functions.items():
    if name != "step":
        made[name] = function(weights, given[name])
state = made.get("start", {}).get("state")
for i in sorted(given.get("blocks", {})):
    made[f"step{i}"] = functions["step"](weights, {"state": state, "audio": given["blocks"][i]})
    state = made[f"step{i}"].pop("state")
flat = {jax.tree_util.keystr(path, simple=True, separator="/"): value for path, value in jax.tree.leaves_with_path(made)}
assert not {"vae_jax", "flax"} & set(sys.modules)
np.savez(sys.argv[3], **flat)
'''
README = '''# {name}

Step {step} ({stage}) of a run of the task {task}, written by `python -m vae_jax export`. It needs `pip install jax flatbuffers`, nothing of vae_jax;
jax reads it for at least six months after its own version in `manifest.json`, which also has sizes, checksums and a field for your licence.

```
from loader import load
weights, functions = load()
{calls}
```

Arrays are NumPy's or jax's; letters in their shapes are sizes of your choice.{cut}
{live}'''
CUT = " Latents are coordinates on the first {directions} directions of the analysis (fidelity {fidelity:g}); the others stay at their mean."
LIVE = '''
Live, block by block, {latency_samples:,} samples ({latency_ms:.1f} ms) late; of the sound that `start` is given only the batch counts:

```
state = functions["start"](weights, {{"audio": blocks[0], "key": np.zeros(2, np.uint32)}})["state"]
for block in blocks:
    made = functions["step"](weights, {{"state": state, "audio": block}})
    state, heard = made["state"], made["audio"]
```
'''


def write(run: session.Session, folder: str, analysis: fidelity.Analysis | None = None, f: float | None = None) -> tuple[dict, dict]:
    """Writes a run's functions into a new folder: (its manifest, how far each function is from the live model as {name: (largest difference, dB)}).

    analysis goes into the folder; with f, latents are coordinates on its first directions, as many as have that fidelity, and streams are cut to
    them. Raises UserError for a task without exports, a folder that holds something, and an export that differs from the model.
    """
    target = pathlib.Path(folder)
    partial = target.parent / f"{target.name}.partial"
    if not run.task.exports:
        raise UserError(f"the task {run.config.task!r} has nothing to export.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--out={folder} is there already and not empty: give a new folder.")
    if partial.exists():
        raise UserError(f"{partial} is left of an export that was not finished: remove it, or give another --out.")
    r = None if f is None else fidelity.dims_for(analysis, f)
    functions = run.task.exports if r is None else _cut(run.task.exports, analysis, r)
    weights = flax.traverse_util.flatten_dict(jax.device_get({"params": run.params, "variables": run.variables}), sep="/")
    players = {"params": tuple(run.params), "variables": tuple(run.variables)}
    given = _given(functions, players, weights)
    weights = _needed(functions, players, weights, given)
    made = {name: export.export(jax.jit(_flat(function, players)), platforms=PLATFORMS)(jax.eval_shape(lambda: weights), given[name])
            for name, (function, _) in functions.items()}
    partial.mkdir(parents=True)
    for name, exported in made.items():
        (partial / f"{name}.jaxexport").write_bytes(exported.serialize())
    np.savez(partial / "weights.npz", **weights)
    (partial / "loader.py").write_text(LOADER)
    about = _about(run) | {"directions": r, "fidelity": f}
    if analysis is not None:
        fidelity.save(analysis, partial / "analysis.npz")
        about["directions_for_fidelity"] = {f"{level:g}": fidelity.dims_for(analysis, level) for level in LEVELS}
    described = {name: {"file": f"{name}.jaxexport", **_described(exported)} for name, exported in made.items()}
    (partial / "README.md").write_text(_readme(about, described))
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(partial.iterdir())}
    manifest = {**about, "jax": jax.__version__, "platforms": PLATFORMS, "licence": "", "functions": described, "files": files}
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
    apart = _compare(run, functions, players, weights, partial)
    if bad := [name for name, (_, db) in apart.items() if not db >= LEAST_DB]:
        raise UserError(f"the exported {bad[0]} differs from the live model by more than {-LEAST_DB:g} dB; it is left in {partial} to be looked at.")
    if target.exists():
        target.rmdir()
    partial.rename(target)
    return manifest, apart


def _cut(functions, analysis, r):
    """Functions whose latents are coordinates on r directions; the others stay at their mean."""
    held = streaming.directions(analysis, r)
    found = {}
    for name, (function, inputs) in functions.items():
        if name == "encode":
            found[name] = (lambda p, v, x, encode=function: {"z": fidelity.compress(analysis, encode(p, v, x)["z"], r)}), inputs
        elif name == "decode":
            shape, dtype = inputs["z"]
            inputs = {**inputs, "z": (shape.rsplit(",", 1)[0] + f", {r}", dtype)}
            found[name] = (lambda p, v, x, decode=function: decode(p, v, {**x, "z": fidelity.expand(analysis, x["z"])})), inputs
        else:
            found[name] = (lambda p, v, x, other=function: other(p, v | held, x)), inputs
    return found


def _flat(function, players):
    """The function of (weights by name, inputs)."""

    def call(weights, inputs):
        tree = flax.traverse_util.unflatten_dict(weights, sep="/")
        return function(*({player: tree.get(kind, {}).get(player, {}) for player in players[kind]} for kind in ("params", "variables")), inputs)

    return call


def _given(functions, players, weights) -> dict[str, dict]:
    """The inputs of each function as shapes, of symbols that mean the same in all."""
    scope, found = export.SymbolicScope(), {}
    for name, (_, inputs) in functions.items():
        open_sizes = {k: v for k, v in inputs.items() if v != "start"}
        found[name] = {k: jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), dtype) for k, (shape, dtype) in open_sizes.items()}
        found[name] |= {k: jax.eval_shape(_flat(functions["start"][0], players), weights, found["start"])[k] for k in inputs if k not in open_sizes}
    return found


def _needed(functions, players, weights, given) -> dict:
    """The weights of those players of which any function uses something: critics, say, are left out."""
    names, player, found = sorted(weights), lambda name: name.split("/")[:2], []
    for name, (function, _) in functions.items():
        program = jax.make_jaxpr(_flat(function, players))(weights, given[name]).jaxpr
        used = {id(v) for step in program.eqns for v in step.invars} | {id(v) for v in program.outvars}
        found += [player(name) for name, v in zip(names, program.invars) if id(v) in used]
    return {name: weights[name] for name in names if player(name) in found}


def _described(exported) -> dict:
    """{'inputs', 'outputs'}: name -> {'shape', 'dtype'}; a state is a tree of arrays, told as it comes out of start."""
    (_, inputs), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    size = lambda a: {"shape": [n if isinstance(n, int) else str(n) for n in a.shape], "dtype": str(a.dtype)}
    told = lambda tree: {k: jax.tree.map(size, v) for k, v in tree.items() if k != "state" or "state" not in inputs}
    return {"inputs": told(inputs), "outputs": told(outputs)}


def _about(run) -> dict:
    config, front = run.config, run.task.front
    found = {"name": config.name, "task": config.task, "stage": run.task.stage(run.step), "step": run.step, "latent": config.model.latent}
    if front.kind == "roll":
        found["rolls"] = run.spec.facts  # how they are laid out
    elif front.kind != "image":
        found["rate"] = front.rate
    if front.kind == "wave":
        from vae_jax.tasks import rave

        live = rave.live(config, run.spec)
        found |= {"channels": front.shape[1], "bands": config.model.bands, "hop": live.hop, "block": f"any multiple of {live.hop}",
                  "latency_samples": live.latency, "latency_ms": 1e3 * live.latency / front.rate}
    return found


def _readme(about, described) -> str:
    def shown(part):
        arrays = {name: f"{a['dtype']}[{', '.join(map(str, a['shape']))}]" if "shape" in a else "state" for name, a in part.items()}
        return "{" + ", ".join(f'"{name}": {array}' for name, array in arrays.items()) + "}"

    calls = []
    for name, made in described.items():
        state = {"state": {}} if name == "step" else {}  # which is told as it comes out of start
        calls.append(f'functions["{name}"](weights, {shown(state | made["inputs"])}) -> {shown(state | made["outputs"])}')
    cut = "" if about["directions"] is None else CUT.format(**about)
    return README.format(calls="\n".join(calls), cut=cut, live=LIVE.format(**about) if "step" in described else "", **about)


def _compare(run, functions, players, weights, folder) -> dict[str, tuple[float, float]]:
    """Largest difference of what a fresh process makes of a crop from what the live model makes, and in dB below the sound, by function."""
    live = {name: jax.jit(_flat(function, players)) for name, (function, _) in functions.items()}
    crop, given, wanted = _crop(run), {}, {}
    for name in live:
        if name != "step":
            known = crop | {k: v for made in wanted.values() for k, v in made.items()}
            given[name] = {k: np.asarray(_as(known[k], dtype)) for k, (_, dtype) in functions[name][1].items()}
            wanted[name] = jax.device_get(live[name](weights, given[name]))
    if "step" in live:
        state, hop = wanted["start"]["state"], _about(run)["hop"]
        given["blocks"] = {f"{i:03d}": block for i, block in enumerate(np.split(given["start"]["audio"], crop["audio"].shape[1] // hop, 1))}
        for i, block in given["blocks"].items():
            wanted[f"step{i}"] = jax.device_get(live["step"](weights, {"state": state, "audio": block}))
            state = wanted[f"step{i}"].pop("state")
    flat = lambda tree: {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(value) for path, value in jax.tree.leaves_with_path(tree)}
    np.savez(folder / "given.npz", **flat(given))
    program = [sys.executable, "-IB", "-c", FRESH, str(folder.resolve()), "given.npz", "made.npz"]
    fresh = subprocess.run(program, cwd=folder, capture_output=True, text=True)
    if fresh.returncode:
        raise UserError(f"the export in {folder} cannot be run in a fresh process: {fresh.stderr.strip().splitlines()[-1]}")
    with np.load(folder / "made.npz") as file:
        made = {name: file[name] for name in file.files}
    for name in ("given.npz", "made.npz"):
        (folder / name).unlink()
    return {name: _apart([(value, made[key]) for key, value in flat(wanted).items() if key.startswith(name)]) for name in live}


def _crop(run) -> dict:
    """Two rows of held-out data, at random but always the same, where the data is still at hand; else random values."""
    rng, config = np.random.default_rng(0), run.config.data
    role = next(role for role in ("test", "validation", "train") if getattr(config, role))
    try:
        source = session.sources(run, (role,))[role]
        rows = source.read(rng.integers(0, len(source), 2))
    except UserError:
        rows = session.example(run.spec, 2)
        for name in {"audio", "image", "roll"} & rows.keys():
            limits = np.iinfo(rows[name].dtype)
            rows[name] = rng.integers(limits.min // 4, limits.max // 4, rows[name].shape).astype(rows[name].dtype)
    return rows | {"key": np.zeros(2, np.uint32), "temperature": np.ones(2, np.float32)}


def _as(value, dtype):
    value = np.asarray(value)
    return value / np.float32(32768) if value.dtype == np.int16 and dtype == "float32" else value.astype(dtype)


def _apart(pairs) -> tuple[float, float]:
    difference = max(float(np.max(np.abs(a - b))) for a, b in pairs)
    power, lost = (sum(float(np.sum(np.square(x(a, b), dtype=np.float64))) for a, b in pairs) for x in (lambda a, b: a, lambda a, b: a - b))
    return difference, 10 * np.log10(power / lost) if lost else np.inf
