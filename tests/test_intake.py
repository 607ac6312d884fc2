"""The census, the worker pool and the splits, with input made to break them."""

import ctypes
import gzip
import io
import json
import lzma
import multiprocessing
import os
import socket
import sys
import tarfile
import time
import zipfile

import numpy as np
import pytest
from absl import flags

from data_prep import intake, pool, script, splits
from vae_jax.config import UserError


def sniff(head):
    return "text" if head.startswith(b"text") else None


def take(source):
    return intake.census(str(source), sniff, "a text")


def read_all(found):
    return {item.name: data for item, data in intake.contents(found, found.items)}


# Census


def test_folder(tmp_path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    for name in ("b/deep/2", "b/1", "z", "-dash", "<b>", "new\nline", "rtl\u202etxt", "e\u0301", "\xe9"):
        (tmp_path / name).write_bytes(b"text")
    with open(os.fsencode(tmp_path) + b"/byte\xff", "wb") as file:
        file.write(b"text")
    (tmp_path / "empty").touch()
    (tmp_path / "other").write_bytes(b"%!PS-Adobe")
    os.mkfifo(tmp_path / "fifo")
    os.symlink("z", tmp_path / "link")
    os.symlink("..", tmp_path / "b" / "loop")
    os.symlink("/dev/zero", tmp_path / "zero")
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.relpath(tmp_path / "socket"))
    found = take(tmp_path)
    names = [item.name for item in found.items]
    assert names == sorted(["b/deep/2", "b/1", "z", "-dash", "<b>", "new\nline", "rtl\u202etxt", "e\u0301", "\xe9", "byte\\xff"])
    assert dict(found.skipped) == {"empty": "empty file", "other": "not a text", "fifo": "not a regular file", "socket": "not a regular file",
                                   "link": "symbolic link, not followed", "b/loop": "symbolic link, not followed",
                                   "zero": "symbolic link, not followed"}
    assert take(tmp_path) == found
    printed = script.report_skipped([(name, "x") for name in names])
    assert all(line.isprintable() for line in printed)
    server.close()


def test_names_for_people():
    assert intake.printable("a\nb\x1b[31m\u202e\udcff\u00e9") == "a\\nb\\x1b[31m\\u202e\\xff\u00e9"
    json.dumps(intake.text("\udcff")).encode()


def test_single_file_and_nothing(tmp_path):
    (tmp_path / "x").write_bytes(b"text!")
    found = take(tmp_path / "x")
    assert [i.name for i in found.items] == ["x"] and not found.is_archive
    os.mkfifo(tmp_path / "fifo")
    for name, says in (("none", "does not exist"), ("fifo", "neither a file nor a folder")):
        with pytest.raises(UserError, match=says):
            take(tmp_path / name)


def test_unreadable_folder_is_a_skip(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_bytes(b"text")
    scan = os.scandir

    def refuse(path):
        if os.fsdecode(path).endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert take(tmp_path).skipped == [("a/", "folder cannot be listed: Permission denied")]


def test_changed_while_read(tmp_path):
    (tmp_path / "x").write_bytes(b"text")
    item = take(tmp_path).items[0]
    assert pool.read_file(item.path, item.identity, 100) == b"text"
    with pytest.raises(pool.Skip, match="larger than"):
        pool.read_file(item.path, item.identity, 3)
    (tmp_path / "x").write_bytes(b"texts")
    with pytest.raises(pool.Skip, match="changed"):
        pool.read_file(item.path, item.identity, 100)
    (tmp_path / "x").unlink()
    os.mkfifo(tmp_path / "x")
    with pytest.raises(pool.Skip, match="not a regular file"):
        pool.read_file(item.path, item.identity, 100)
    (tmp_path / "x").unlink()
    os.symlink("/etc/passwd", tmp_path / "x")
    with pytest.raises(pool.Skip, match="cannot be opened"):
        pool.read_file(item.path, item.identity, 100)


# Archives


def make_tar(path, members, mode):
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_tar(tmp_path, mode):
    link, device = tarfile.TarInfo("link"), tarfile.TarInfo("device")
    link.type, link.linkname, device.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.CHRTYPE
    # sizes around the block of 512 exercise the step back that tarfile makes after each member
    members = [(f"d/{n}", b"text" * (n // 4)) for n in (4, 508, 512, 516, 1024, 40000, 65536)]
    make_tar(tmp_path / "x", [*members, ("../out", b"text"), ("/abs", b"text"), ("d/4", b"text2"), ("pic", b"other"), ("void", b""),
                              (link, b""), (device, b"")], mode)
    found = take(tmp_path / "x")
    assert found.is_archive and read_all(found) == dict(members)
    assert dict(found.skipped) == {"../out": "unsafe name in an archive", "/abs": "unsafe name in an archive", "pic": "not a text",
                                   "d/4": "second file of this name in the archive", "void": "empty file",
                                   "link": "link in an archive, not followed", "device": "not a regular file"}


def test_zip(tmp_path):
    members = {f"d/{n}": b"text" * n for n in (3, 1, 2)}
    with zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("d")
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr("../out", b"text")
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("bomb", b"text" + bytes(40 << 20))
        archive.writestr("broken", b"text" * 9000 + b"more to be damaged", zipfile.ZIP_STORED)
    data = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(data.replace(b"more to be", b"less to be"))
    found = take(tmp_path / "x")
    assert [i.name for i in found.items][1:] == sorted(members) and found.items[0].name == "broken"
    assert dict(found.skipped) == {"../out": "unsafe name in an archive", "link": "symbolic link, not followed",
                                   "bomb": "grows more than 200-fold when unpacked"}
    contents = read_all(found)
    assert isinstance(contents.pop("broken"), pool.Skip) and contents == members


def test_zip_member_without_a_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(""), b"text")
        archive.writestr("a", b"text")
    found = take(tmp_path / "zip")
    assert [item.name for item in found.items] == ["a"] and found.skipped == [("", "a file without a name in the archive")]


def test_archive_bombs_and_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(intake, "FREE_BYTES", 1 << 20)
    make_tar(tmp_path / "growing", [(f"{i}", b"text" + bytes(1 << 20)) for i in range(30)], "w:xz")
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 32
    (tmp_path / "header").write_bytes(gzip.compress(header.tobuf() + bytes(1 << 20)))
    with zipfile.ZipFile(tmp_path / "zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(40):
            archive.writestr(str(i), b"text" + bytes(1 << 20))
    for name, says in (("growing", "200-fold"), ("header", "header of"), ("zip", "200-fold")):
        with pytest.raises(UserError, match=says):
            take(tmp_path / name)
    make_tar(tmp_path / "whole", [(f"{i}", np.random.default_rng(i).bytes(3000)) for i in range(30)], "w:xz")
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(data[:len(data) // 2])
    plain = lzma.decompress(data)
    (tmp_path / "plain").write_bytes(plain[:len(plain) // 2])
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    (tmp_path / "flipped").write_bytes(flipped)
    for name in ("cut", "plain", "flipped"):
        with pytest.raises(UserError, match="damaged tar"):
            take(tmp_path / name)
    zipped = (tmp_path / "zip").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):  # damage in the directory of a zip is a skip or one sentence, never another exception
        data = bytearray(zipped)
        data[rng.integers(len(data) - 3000, len(data))] = rng.integers(256)
        (tmp_path / "mutated").write_bytes(data)
        try:
            assert len(take(tmp_path / "mutated").skipped) > 0
        except UserError as error:
            assert "mutated" in str(error)


# Workers


def worker(data, about, options):
    what = data.decode()
    if what == "crash":
        os.kill(os.getpid(), 11)
    if what == "exit":
        os._exit(3)
    if what == "segfault":
        ctypes.string_at(0)
    if what == "hang":
        time.sleep(60)
    if what == "memory":
        return {}, [bytes(4 << 30)]
    if what == "error":
        raise SyntaxError("bad chunk")
    if what == "skip":
        raise pool.Skip("not wanted")
    time.sleep(about["wait"])
    return {"said": what, **options}, [what.encode() * 2, b""]


def run_pool(contents, workers=2, waits=None, **limits):
    tasks = [pool.Task(c if isinstance(c, pool.Skip) else c.encode(), None, None, {"wait": (waits or [0] * len(contents))[i]})
             for i, c in enumerate(contents)]
    return list(pool.decode(tasks, worker, {"o": 1}, workers=workers, **limits))


def test_a_bad_file_costs_only_itself():
    bad = {"crash": "decoder crashed (SIGSEGV)", "exit": "decoder crashed (exit status 3)", "segfault": "decoder crashed (SIGSEGV)",
           "hang": "decoder took longer than 0.7 s", "memory": "needs more memory than a file is allowed",
           "error": "cannot be decoded (SyntaxError: bad chunk)", "skip": "not wanted"}
    contents = [f"good{i}" for i in range(40)]
    for i, name in enumerate(bad):
        contents.insert(3 + 5 * i, name)
    contents.append(pool.Skip("damaged in the archive"))
    results = run_pool(contents, seconds=0.7, memory_mb=1024)
    assert len(results) == len(contents)
    for content, result in zip(contents, results):
        if isinstance(content, str) and content.startswith("good"):
            assert result == pool.Result("", {"said": content, "o": 1}, [content.encode() * 2, b""])
        else:
            assert result == pool.Result(bad[content] if isinstance(content, str) else str(content), {}, [])


def test_order_does_not_depend_on_timing():
    contents, waits = [f"good{i}" for i in range(30)], [0.08 * (i % 7 == 0) for i in range(30)]
    assert run_pool(contents, 1) == run_pool(contents, 3, waits)


def test_large_and_many_contents_do_not_block():
    contents = ["x" * (1 << 20) if i % 50 == 0 else "y" * (i % 3000) for i in range(400)]
    assert [r.blobs[0] for r in run_pool(contents)] == [(c * 2).encode() for c in contents]


def test_files_are_read_by_the_worker(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"text" + name.encode())
    found = take(tmp_path)
    os.unlink(tmp_path / "b")
    jobs = [(item, {"wait": 0}) for item in found.items]
    results = list(intake.decode(found, jobs, worker, {}, 1))
    assert [r.about.get("said") for r in results] == ["texta", None, "textc"]
    assert results[1].reason == "cannot be opened: No such file or directory"


def parts(file, about, options):
    """Says its text in parts; the words in it do what they say on the way."""
    for word in file.read().decode().split():
        if word == "die":
            os.kill(os.getpid(), 11)
        if word == "skip":
            raise pool.Skip("not wanted")
        if word == "rest":
            time.sleep(0.2)
            yield {}, []
        elif word == "hang":
            time.sleep(60)
        elif word == "large":
            yield {}, [bytes(1 << 20)] * 3
        elif word == "touch":
            open(about["path"], "w").close()
        elif word == "grow":
            with open(about["path"], "a") as other:
                other.write("more")
        else:
            yield {"said": word}, [word.encode()]


def run_parts(texts, workers=2, path=None, **limits):
    tasks = [pool.Task(t if isinstance(t, pool.Skip) else t.encode(), None, None, {"path": str(path)}) for t in texts]
    return pool.decode(tasks, parts, {}, workers=workers, **limits)


def by_file(results):
    files = [[]]
    for result in results:
        files[-1].append(result)
        if result.last:
            files.append([])
    assert files.pop() == []
    return files


def test_parts_keep_their_order_and_a_bad_file_its_place():
    texts = [f"a{i} rest b{i}" if i % 3 else " ".join(f"{i}w{j}" for j in range(50)) for i in range(12)]
    texts[2], texts[5], texts[7], texts[8] = "skip", "die", "rest rest hang", pool.Skip("damaged in the archive")
    for workers in (1, 3):
        files = by_file(run_parts(texts, workers, seconds=1))
        assert len(files) == len(texts)
        for text, answer in zip(texts, files):
            if text in ("skip", "die", "rest rest hang") or isinstance(text, pool.Skip):
                known = {"skip": "not wanted", "die": "decoder crashed (SIGSEGV)", "rest rest hang": "decoder took longer than 1 s"}
                says = known.get(text, str(text))
                assert answer == [pool.Result(says, {}, [])]
            else:
                assert answer == [pool.Result("", {"said": w}, [w.encode()], False) for w in text.split() if w != "rest"] + [pool.Result("", {}, [])]


def test_time_counts_for_each_part():
    assert [r.reason for r in run_parts(["rest " * 7 + "a"], 1, seconds=1)] == ["", ""]


def test_a_file_that_fails_after_a_part_was_handed_on_says_so():
    for text, says in (("a rest skip", "not wanted"), ("a rest die", "decoder crashed (SIGSEGV)")):
        first, last = run_parts([text], 1)
        assert first.blobs == [b"a"] and not first.last and last == pool.Result(says, {}, [])


def test_results_that_wait_are_bounded(tmp_path, monkeypatch):
    """While the first file rests, the second, of 60 MB, must not be decoded to its end: nobody could hold an hour of sound."""
    monkeypatch.setattr(pool, "HELD_BYTES", 1 << 22)
    results = run_parts(["rest rest rest a", "large " * 20 + "touch b", "c", "d"], 2, path=tmp_path / "end")
    assert next(results).blobs == [b"a"] and not (tmp_path / "end").exists()
    left = by_file(results)
    assert [len(answer) for answer in left] == [1, 22, 2, 2] and (tmp_path / "end").exists()


def test_a_file_that_changes_while_it_is_decoded(tmp_path):
    for name, text in (("a", "grow x"), ("b", "x rest y")):
        (tmp_path / name).write_bytes(b"text " + text.encode())
    found = take(tmp_path)
    results = intake.decode(found, [(item, {"path": str(tmp_path / "a")}) for item in found.items], parts, {}, 1)
    first, second = by_file(results)
    # "text", a good part, was handed on before
    assert first[-1].reason == "changed while it was read" and [r.blobs for r in second] == [[b"text"], [b"x"], [b"y"], []]


def test_workers_that_cannot_start():
    with pytest.raises(RuntimeError, match="before it was ready"):
        list(pool.decode([pool.Task(b"", None, None, {})], worker, {}, workers=1, memory_mb=1 << 60))


def test_a_pipe_holds_what_is_sent_ahead(monkeypatch):
    """A system whose socket pairs hold little, as macOS's, must not make sending block."""
    kind, sender = type(multiprocessing.get_context("spawn")), []
    make = kind.Pipe

    def narrow(context):
        ends = make(context)
        sender.append(socket.socket(fileno=os.dup(ends[0].fileno())))
        sender[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return ends

    monkeypatch.setattr(kind, "Pipe", narrow)
    assert run_pool(["good"], 1)[0].about == {"said": "good", "o": 1}
    with sender[0]:
        assert sender[0].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > 2 * pool.QUEUED_BYTES


def test_the_memory_limit_may_fail_on_macos_only(monkeypatch):
    def refuse(what, limits):
        raise error

    monkeypatch.setattr(pool.resource, "setrlimit", refuse)
    for error in (ValueError("current limit exceeds maximum limit"), OSError(22, "Invalid argument")):
        monkeypatch.setattr(sys, "platform", "darwin")
        pool.limit_memory(1 << 30)
        monkeypatch.setattr(sys, "platform", "linux")
        with pytest.raises(type(error)):
            pool.limit_memory(1 << 30)


@pytest.mark.parametrize("told, workers", [(3, 3), (None, 1), (384, 256)])
def test_workers_where_the_system_does_not_say_which_cpus_are_ours(told, workers, monkeypatch):
    values = flags.FlagValues()
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: told)
    script.define_flags(values, "")
    values(["x"])
    assert values.workers == workers


# Groups, splits, manifest


def test_splits_keep_groups_together():
    rng = np.random.default_rng(0)
    groups = [f"g{i}" for i in rng.integers(0, 60, 1000)]
    fractions = {"train": 0.7, "validation": 0.1, "test": 0.2}
    chosen = splits.assign_splits(groups, fractions, 5)
    for split, fraction in fractions.items():
        assert abs(chosen.count(split) / 1000 - fraction) < 0.03
    home = dict(zip(groups, chosen))
    assert all(home[g] == s for g, s in zip(groups, chosen))
    order = rng.permutation(1000)
    assert splits.assign_splits([groups[i] for i in order], fractions, 5) == [chosen[i] for i in order]
    assert splits.assign_splits(groups, fractions, 6) != chosen
    whole = splits.assign_splits([f"g{i}" for i in range(6)], {"train": 0.6, "validation": 0.2, "test": 0.2}, 3)
    assert sorted(whole.count(name) for name in ("train", "validation", "test")) == [1, 1, 4]
    with pytest.raises(UserError, match="would be empty: 1 groups"):
        splits.assign_splits(["a"] * 9, fractions, 0)
    with pytest.raises(UserError, match="'a' is in both 'train' and 'test'"):
        splits.check_disjoint([("a", "train"), ("b", "train"), ("a", "test")])


def test_every_class_has_its_share_by_weight():
    rng = np.random.default_rng(1)
    classes = [name for name, count in (("a", 40), ("b", 5)) for _ in range(count)]
    weights = [int(w) for w in rng.integers(1, 100, 45)]
    names, fractions = [f"{c}/{i}" for i, c in enumerate(classes)], {"train": 0.7, "validation": 0.15, "test": 0.15}
    chosen = splits.choose_splits([""] * 45, names, fractions, 0, classes, weights)
    for name in "ab":
        total = sum(w for w, c in zip(weights, classes) if c == name)
        for split, fraction in fractions.items():
            share = sum(w for w, c, s in zip(weights, classes, chosen) if (c, s) == (name, split)) / total
            assert abs(share - fraction) < (0.03 if name == "a" else 0.25) and share > 0
    order = rng.permutation(45)
    again = splits.choose_splits([""] * 45, [names[i] for i in order], fractions, 0, [classes[i] for i in order], [weights[i] for i in order])
    assert again == [chosen[i] for i in order] and splits.choose_splits([""] * 45, names, fractions, 1, classes, weights) != chosen
    with pytest.raises(UserError, match="class b has 1 groups, too few for 3 splits"):
        splits.choose_splits([""] * 45, [n if n[0] == "a" else "b" for n in names], fractions, 0, classes)
    given = ["train", "train", "test"]
    assert splits.choose_splits(given, list("xyz"), {}, 0) == given
    assert sorted(splits.choose_splits(given, list("xyz"), {"train": 0.5, "valid": 0.5}, 0)) == ["test", "train", "valid"]


def test_folders_say_splits():
    wrapped = ["set/train/a/1", "set/train/b/2", "set/test/a/3"]
    assert splits.read_folders(wrapped, True) == (["train", "train", "test"], [["a", "1"], ["b", "2"], ["a", "3"]])
    assert splits.read_folders(wrapped, False)[0] == [""] * 3
    assert splits.read_folders(["train/1", "rock/2"], False) == (["", ""], [["train", "1"], ["rock", "2"]])


def test_fractions():
    assert splits.parse_fractions("train:0.8, test:.2") == {"train": 0.8, "test": 0.2}
    assert splits.parse_fractions("") == {}
    for wrong in ("train", "train:0.8", "train:0.5,train:0.5", "train:1,test:0", "train:x", "-x:1", "train:1.5,test:-0.5"):
        with pytest.raises(UserError, match="--split"):
            splits.parse_fractions(wrong)


def test_group_rules(tmp_path):
    assert splits.group_rule("")("a/b.png") == "a/b.png"
    rule = splits.group_rule(r"^(?:(?P<fa>fa\d?-solid)|(mdi|lucide)|(.+?)__)")
    assert [rule(n) for n in ("fa-solid__x", "fa6-solid__y", "mdi-light__z", "mdi__z", "tabler__a")] == ["fa", "fa", "mdi", "mdi", "tabler"]
    (tmp_path / "t.tsv").write_text("file\tset\tmore\na.png\tone\tx\nb*.png\ttwo\nb1.png\tthree\n")
    rule = splits.group_rule(str(tmp_path / "t.tsv"))
    assert [rule(n) for n in ("a.png", "b2.png", "b1.png")] == ["one", "two", "three"]
    for call, says in ((lambda: rule("c.png"), "no line for c.png"), (lambda: splits.group_rule("(x"), "neither a file nor"),
                       (lambda: splits.group_rule("x"), "captures nothing"), (lambda: splits.group_rule("(x)")("abc"), "finds no group in abc")):
        with pytest.raises(UserError, match=says):
            call()
    (tmp_path / "bad.tsv").write_text("a.png one\n")
    with pytest.raises(UserError, match="has no tab"):
        splits.group_rule(str(tmp_path / "bad.tsv"))


def test_manifest_counts_every_file():
    made = script.manifest("x", {}, [], 3, 1, [("a", "bad"), ("b", "bad")], seed=1)
    assert made["skipped"] == {"bad": ["a", "b"]} and made["skipped_count"] == 2 and made["seed"] == 1
    with pytest.raises(AssertionError, match="1 kept"):
        script.manifest("x", {}, [], 3, 1, [("a", "bad")])


@pytest.mark.parametrize("error, status, says", [(UserError("Mend this."), 2, "Mend this."), (KeyboardInterrupt(), 130, "interrupted"),
                                                 (PermissionError(13, "Permission denied", "a\nb"), 2, "a\\nb: Permission denied.")])
def test_command_line_manners(error, status, says, monkeypatch, capsys):
    def main():
        raise error

    monkeypatch.setattr(script.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as left:
        script.run(main, flags.FlagValues(), "")
    printed = capsys.readouterr().err
    assert left.value.code == status and says in printed and len(printed.splitlines()) == 1
    monkeypatch.setattr(sys, "argv", ["x", "--nope=1"])
    with pytest.raises(SystemExit) as left:
        script.run(main, flags.FlagValues(), "")
    assert left.value.code == 2 and "nope" in capsys.readouterr().err
