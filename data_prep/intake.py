"""The census of a source that every data_prep script takes, and the contents of what it found.

A source is a folder, a zip or tar archive, or one file. The census lists every file in it, each as an item to decode or with the
reason why it is left out; nothing is unpacked to disk, no link is followed, nothing but regular files is opened.
Decoding happens in `pool.py`'s worker processes.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import pathlib
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from data_prep import pool
from vae_jax.config import UserError

HEAD = 512  # bytes of a file shown to `sniff`
MAX_FILES = 2_000_000
MAX_FILE_MB = 256
MAX_RATIO = 200  # an archive or member that grows more than this, and beyond FREE_BYTES, is taken for a bomb
FREE_BYTES = 1 << 30
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, NotImplementedError, RuntimeError, ValueError)  # of archives, when read


class Item(NamedTuple):
    """A file to decode. name: relative, '/' between parts, plain text; kind: what `sniff` said; position: in its archive."""

    name: str
    kind: str
    bytes: int
    path: bytes | None = None
    identity: tuple[int, int, int] | None = None
    position: int = -1


class Census(NamedTuple):
    """Every file found in a source: items and (name, reason) of those left out. is_archive: `source` is a zip or tar."""

    source: pathlib.Path
    is_archive: bool
    items: list[Item]
    skipped: list[tuple[str, str]]


def text(name: str) -> str:
    """A file name as valid text: bytes that are no UTF-8 become backslash escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def printable(name: str) -> str:
    """A name for one line of a terminal, a label list or a report: control and direction characters are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text(name))


def census(source: str, sniff: Callable[[bytes], str | None], expected: str) -> Census:
    """Lists a folder (sorted by name), an archive (zip by name, tar in its own order) or one file.

    sniff(first bytes) -> kind, or None for a format that is not allowed; expected: words for those that are. Raises UserError
    where the source is missing, unreadable, a damaged archive or a bomb.
    """
    path = pathlib.Path(source)
    try:
        if path.is_dir():
            items, skipped = [], []
            _walk(os.fsencode(path), "", items, skipped, sniff, expected)
            return Census(path, False, sorted(items, key=lambda item: (item.name, item.path)), skipped)
        if not path.is_file():
            wrong = "is neither a file nor a folder" if path.exists() else "does not exist"
            raise UserError(f"{printable(source)} {wrong}: give --source a folder, archive or file.")
        if zipfile.is_zipfile(path) and path.suffix != ".npz":
            return Census(path, True, *_list_zip(path, sniff, expected))
        if _is_tar(path):
            return Census(path, True, *_list_tar(path, sniff, expected))
        items, skipped = [], []
        _file(os.fsencode(path.resolve()), text(path.name), items, skipped, sniff, expected)
        return Census(path, False, items, skipped)
    except OSError as error:
        raise UserError(f"{printable(source)} cannot be read: {error.strerror or error}.") from None


def _walk(folder, prefix, items, skipped, sniff, expected):
    stack = [(folder, prefix)]
    while stack:
        folder, prefix = stack.pop()
        try:
            with os.scandir(folder) as entries:
                entries = sorted(entries, key=lambda e: e.name)
        except OSError as error:
            if not prefix:
                raise
            skipped.append((prefix, f"folder cannot be listed: {error.strerror}"))
            continue
        below = []
        for entry in entries:
            name = prefix + entry.name.decode("utf-8", "backslashreplace")
            if entry.is_symlink():
                skipped.append((name, "symbolic link, not followed"))
            elif entry.is_dir(follow_symlinks=False):
                below.append((entry.path, name + "/"))
            else:
                _file(entry.path, name, items, skipped, sniff, expected)
        _cap(len(items) + len(skipped))
        stack += reversed(below)


def _cap(count):
    if count > MAX_FILES:
        raise UserError(f"The source holds more than {MAX_FILES:,} files: prepare it in parts.")


def _file(path, name, items, skipped, sniff, expected):
    """Looks at a regular file's first bytes; everything else is left out unopened."""
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            return skipped.append((name, "not a regular file"))
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            head = os.read(fd, HEAD)
        finally:
            os.close(fd)
    except OSError as error:
        return skipped.append((name, f"cannot be opened: {error.strerror}"))
    kind = sniff(head)
    if kind is None:
        return skipped.append((name, "empty file" if not head else f"not {expected}"))
    items.append(Item(name, kind, status.st_size, path, (status.st_size, status.st_mtime_ns, status.st_ino)))


def _member_fault(name, size, seen):
    """Why an archive member is left out before its bytes are looked at, or None."""
    if not name:
        return "a file without a name in the archive"
    if name.startswith("/") or ".." in name.split("/"):
        return "unsafe name in an archive"
    if size > MAX_FILE_MB << 20:
        return f"larger than {MAX_FILE_MB} MB"
    if name in seen:
        return "second file of this name in the archive"
    seen.add(name)
    return None


def _list_zip(path, sniff, expected):
    items, skipped, seen, total = [], [], set(), 0
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _cap(len(members))
            for position in sorted(range(len(members)), key=lambda i: members[i].filename):
                member = members[position]
                name = text(member.filename)
                if name.endswith("/"):
                    continue
                total += member.file_size
                mode = member.external_attr >> 16
                if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                    skipped.append((name, "symbolic link, not followed" if stat.S_ISLNK(mode) else "not a regular file"))
                elif member.flag_bits & 1:
                    skipped.append((name, "encrypted"))
                elif fault := _member_fault(name, member.file_size, seen):
                    skipped.append((name, fault))
                elif member.file_size > max(1 << 24, MAX_RATIO * member.compress_size):
                    skipped.append((name, f"grows more than {MAX_RATIO}-fold when unpacked"))
                else:
                    try:
                        with archive.open(member) as file:
                            kind = sniff(file.read(HEAD))
                    except (zipfile.BadZipFile, OSError, *DAMAGE) as error:
                        skipped.append((name, f"damaged in the archive ({error})"))
                        continue
                    if kind is None:
                        skipped.append((name, "empty file" if not member.file_size else f"not {expected}"))
                    else:
                        items.append(Item(name, kind, member.file_size, position=position))
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UserError(f"{printable(str(path))} is a damaged zip archive ({error}).") from None
    _check_growth(path, total)
    return items, skipped


def _check_growth(path, total):
    if total > max(FREE_BYTES, MAX_RATIO * path.stat().st_size):
        raise UserError(f"{printable(str(path))} grows more than {MAX_RATIO}-fold when unpacked ({total >> 20} MB): refused.")


class _Forward:
    """What tarfile needs of a file, on a decompressor that only goes forward: one byte back is kept, reads and growth are bounded."""

    def __init__(self, file, path):
        self.file, self.path, self.at, self.place, self.last = file, path, 0, 0, b""

    def tell(self):
        return self.place

    def seek(self, place):
        self.place = place

    def read(self, size):
        if size > MAX_FILE_MB << 20:
            raise UserError(f"{printable(str(self.path))} is refused: it holds a header of {size >> 20} MB.")
        _check_growth(self.path, self.place)
        data = b""
        if size and self.place == self.at - 1:
            data, self.place, size = self.last, self.at, size - 1
        while self.at < self.place:
            if not self._take(min(1 << 20, self.place - self.at)):
                return data
        data += self._take(size)
        self.place = self.at
        return data

    def _take(self, size):
        data = self.file.read(size)
        self.at += len(data)
        self.last = data[-1:] or self.last
        return data


def _decompressed(path):
    """The file, or what it unpacks to if it is gzip, xz or bzip2."""
    with open(path, "rb") as file:
        magic = file.read(6)
    opener = gzip.open if magic[:2] == b"\x1f\x8b" else lzma.open if magic == b"\xfd7zXZ\0" else bz2.open if magic[:3] == b"BZh" else open
    return opener(path, "rb")


def _is_tar(path):
    try:
        with _decompressed(path) as file:
            return file.read(262)[257:] == b"ustar"
    except (*DAMAGE, OSError):
        return False


@contextlib.contextmanager
def _tar(path):
    before = path.stat()
    try:
        with _decompressed(path) as file, tarfile.open(fileobj=_Forward(file, path), mode="r:") as archive:
            yield archive
    except (tarfile.TarError, *DAMAGE) as error:
        raise UserError(f"{printable(str(path))} is a damaged tar archive ({error}).") from None
    after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise UserError(f"{printable(str(path))} changed while it was read: prepare it again when nothing writes to it.")


def _list_tar(path, sniff, expected):
    items, skipped, seen = [], [], set()
    with _tar(path) as archive:
        for position, member in enumerate(archive):
            name = text(member.name)
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                skipped.append((name, "link in an archive, not followed" if member.issym() or member.islnk() else "not a regular file"))
            elif fault := _member_fault(name, member.size, seen):
                skipped.append((name, fault))
            else:
                kind = sniff(archive.extractfile(member).read(HEAD))
                if kind is None:
                    skipped.append((name, "empty file" if not member.size else f"not {expected}"))
                else:
                    items.append(Item(name, kind, member.size, position=position))
            _cap(position)
    return items, skipped


def contents(found: Census, items: Sequence[Item]) -> Iterator[tuple[Item, bytes | pool.Skip | None]]:
    """(item, its bytes) in the census's order; None for a file in a folder, which the worker reads; Skip for a damaged member."""
    if not found.is_archive:
        yield from ((item, None) for item in items)
    elif zipfile.is_zipfile(found.source):
        with zipfile.ZipFile(found.source) as archive:
            members = archive.infolist()
            for item in items:
                try:
                    yield item, archive.read(members[item.position])
                except (zipfile.BadZipFile, OSError, *DAMAGE) as error:
                    yield item, pool.Skip(f"damaged in the archive ({error})")
    else:
        wanted = {item.position: item for item in items}
        with _tar(found.source) as archive:
            for position, member in enumerate(archive):
                if position in wanted:
                    yield wanted[position], archive.extractfile(member).read()


def open_item(found: Census, item: Item):
    """A binary stream of one item. Raises UserError where it is damaged in its archive or gone."""
    if item.path is not None:
        try:
            return open(item.path, "rb")
        except OSError as error:
            raise UserError(f"{printable(item.name)} cannot be opened: {error.strerror}.") from None
    data = next(contents(found, [item]))[1]
    if isinstance(data, pool.Skip):
        raise UserError(f"{printable(item.name)} is {data}.")
    return io.BytesIO(data)


def decode(found: Census, jobs: Sequence[tuple[Item, dict]], function: Callable, options: dict, workers: int) -> Iterator[pool.Result]:
    """Decodes items in worker processes; jobs: (item, what the decoder is told of it), in the census's order. See pool.decode."""
    about = {item: told for item, told in jobs}
    tasks = (pool.Task(data, item.path, item.identity, about[item]) for item, data in contents(found, [item for item, _ in jobs]))
    return pool.decode(tasks, function, options, workers=workers, file_mb=MAX_FILE_MB)
