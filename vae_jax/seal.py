"""The seal of a checkpoint: what makes a folder of files one that counts, and how it is put on disk to stay.

`STEP/SEAL.json` holds {"body": {format, step, meta, leaves, files}, "sha256": of the body's JSON with sorted keys}. leaves: path,
dtype and shape of every array. files: size and SHA-256 of every other file of the folder. It is written last, after an fsync of
all of them; whatever in the folder is then changed, cut, swapped with another step's or lost, the seal no longer verifies.
"""

import hashlib
import json
import os

NAME = "SEAL.json"
LIMIT = 1 << 20  # bytes of JSON; a longer seal is refused before it is parsed
_BLOCK = 1 << 20


def numbers(folder) -> list[int]:
    """Names of the folders that could be steps, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal() and p.name == str(int(p.name)))


def put(folder, body: dict) -> None:
    """Seals a step's folder, whose files are complete: fsync of each file and folder, then the seal. Raises OSError.

    body: step, meta and leaves.
    """
    files = {}
    for name in _files(folder):
        sync(folder / name)
        files[name] = list(_digest(folder / name))
    for name in sorted({os.path.dirname(name) for name in files}, reverse=True):
        sync(folder / name)
    body = {"format": 1, **body, "files": files}
    data = dump({"body": body, "sha256": hashlib.sha256(dump(body)).hexdigest()})
    if len(data) > LIMIT:
        raise ValueError(f"the seal of {len(files)} files and {len(body['leaves'])} leaves takes more than {LIMIT} bytes")
    write(folder / NAME, data)
    sync(folder)


def damage(path, step) -> str:
    """What is wrong with a step's folder, '' if nothing. Reads every sealed file."""
    seal = read(path, step)
    if isinstance(seal, str):
        return seal
    for name, sealed in seal["files"].items():
        try:
            found = _digest(path / name)
        except FileNotFoundError:
            return f"its file {name} is missing"
        except OSError as error:
            return f"its file {name} cannot be read ({error.strerror})"
        if found[0] != sealed[0]:
            return f"its file {name} has {found[0]} bytes instead of {sealed[0]}"
        if found[1] != sealed[1]:
            return f"its file {name} does not match its checksum"
    return ""


def read(path, step):
    """The body of a step's seal, or what is wrong with it as a string."""
    try:
        with (path / NAME).open("rb") as file:
            data = file.read(LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        return f"its {NAME} is missing"
    except OSError as error:
        return f"its {NAME} cannot be read ({error.strerror})"
    try:
        outer = json.loads(data) if len(data) <= LIMIT else {}
        body = outer["body"]
        whole = outer["sha256"] == hashlib.sha256(dump(body)).hexdigest() and _well_formed(body)
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        return f"its {NAME} is damaged"
    if body["step"] != step:
        return f"its {NAME} is of step {body['step']}"
    return body


def _well_formed(body) -> bool:
    files = body["files"].items() if isinstance(body["files"], dict) else [("..", None)]
    return (body["format"] == 1 and type(body["step"]) is int and isinstance(body["meta"], dict)
            and all(type(size) is int and isinstance(digest, str) for _, (size, digest) in files)
            and not any(name.startswith("/") or ".." in name.split("/") for name, _ in files)
            and all(all(isinstance(key, str) for key in keys) and isinstance(dtype, str) and all(type(n) is int for n in shape)
                    for keys, dtype, shape in body["leaves"]))


def _files(folder, prefix="") -> list[str]:
    """Relative names of all files below, sorted."""
    found = []
    for path in sorted(folder.iterdir()):
        found += _files(path, f"{prefix}{path.name}/") if path.is_dir() else [prefix + path.name]
    return found


def _digest(path) -> tuple[int, str]:
    """Bytes and SHA-256 of a file. Not a CRC: orbax ends its files with their own crc32c, so all of them have the same one."""
    checksum, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum.update(block)
            size += len(block)
    return size, checksum.hexdigest()


def dump(value) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def write(path, data: bytes):
    """A whole file, on disk when this returns."""
    if is_remote(path):
        path.write_bytes(data)
        return
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(path):
    """fsync of a file or folder. Orbax leaves its metadata, its commit files and all renames without."""
    if not is_remote(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def rename(old, new):
    """Moves a folder in place of what is there."""
    if new.exists():
        new.rmtree()
    os.rename(old, new)


def is_remote(path) -> bool:
    """True for gs:// and the like: no rename, no append, no fsync, no lock."""
    return "://" in os.fspath(path)
