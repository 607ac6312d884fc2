"""Sealed checkpoints: nothing damaged is restored in silence, nothing unfinished counts, nothing good is lost."""

import errno
import functools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vae_jax import checkpoint, seal
from vae_jax.checkpoint import Checkpoints, lock, read_tree
from vae_jax.config import UserError


@functools.cache
def replicated():
    return NamedSharding(jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec())


@functools.cache
def _maker(rows):
    def build(step):
        key = jax.random.key(step)
        kernel = jax.random.normal(key, (rows, 10))
        return {"step": step, "key": key,
                "params": {"encoder": {"kernel": kernel, "half": kernel[0].astype(jnp.bfloat16)}, "decoder": {"kernel": -kernel}},
                "variables": {"encoder": {}, "decoder": {"on": step > 0}},
                "optimizer": {"encoder": ({"count": step}, {"mu": kernel * 2})}}
    return jax.jit(build, out_shardings=replicated())


def make_state(step, rows=200):
    """A state whose every array is a function of the step."""
    return _maker(rows)(jnp.int32(step))


def target_of(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated()), state)


def host(tree):
    return jax.tree.map(lambda x: np.array(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x), tree)


def assert_same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(host(found)), jax.tree.leaves(host(wanted)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def save(folder, *steps, keep=9):
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, make_state(step), {"step": step})
        assert checkpoints.finish() == [step]
    return checkpoints


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    save(folder, 10, 20)
    return folder


@pytest.fixture
def copy(two_steps, tmp_path):
    return shutil.copytree(two_steps, tmp_path / "copy")


def files(step_folder):
    return sorted(p for p in step_folder.rglob("*") if p.is_file())


def test_round_trip_keeps_keys_integers_bfloat16_and_meta(two_steps):
    state, meta, step = Checkpoints(two_steps).restore(target_of(make_state(0)))
    assert step == 20 and meta == {"step": 20}
    assert jnp.issubdtype(state["key"].dtype, jax.dtypes.prng_key) and state["params"]["encoder"]["half"].dtype == jnp.bfloat16
    assert_same(state, make_state(20))
    state, meta, step = Checkpoints(two_steps).restore(target_of(make_state(0)), step=10)
    assert (step, meta) == (10, {"step": 10})
    assert_same(state, make_state(10))


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    change = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = jax.device_put({"a": jnp.arange(300_000.0)}, replicated())
    wanted, target = np.array(state["a"]), target_of(state)
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, state, {})
    for _ in range(20):
        state = change(state)
    assert checkpoints.finish() == [1]
    np.testing.assert_array_equal(checkpoints.restore(target)[0]["a"], wanted)


def test_restores_on_one_device(two_steps):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), make_state(0))
    state, _, _ = Checkpoints(two_steps).restore(target)
    assert {leaf.sharding for leaf in jax.tree.leaves(state)} == {one}
    assert_same(state, make_state(20))


def test_poll_tells_a_step_once_and_only_when_sealed(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.poll() == [] and checkpoints.finish() == [] and checkpoints.latest() is None
    checkpoints.save(1, make_state(1), {})
    while not (told := checkpoints.poll()):
        time.sleep(0.005)
    assert told == [1] and checkpoints.latest() == 1
    assert checkpoints.poll() == [] == checkpoints.finish()
    checkpoints.save(2, make_state(2), {})
    checkpoints.save(3, make_state(3), {})  # waits for 2 and seals it
    assert checkpoints.finish() == [2, 3]
    assert checkpoints.steps() == [2, 3]


def test_retention_and_saving_a_step_twice(tmp_path):
    checkpoints = save(tmp_path / "c", 1, 2, 3, keep=2)
    before = (tmp_path / "c" / "3" / "SEAL.json").stat().st_mtime_ns
    checkpoints.save(3, make_state(4), {})
    assert checkpoints.finish() == [] and checkpoints.steps() == [2, 3]
    assert (tmp_path / "c" / "3" / "SEAL.json").stat().st_mtime_ns == before
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["2", "3"]


def test_retention_counts_no_damaged_later_step(copy):
    """10 is restored because 20 is damaged; the next save must not keep 20 in place of a whole step."""
    kernel = max(files(copy / "20" / "state"), key=lambda p: p.stat().st_size)
    kernel.write_bytes(kernel.read_bytes()[:-1] + b"?")
    save(copy, 15, keep=1)
    assert Checkpoints(copy).steps() == [15]


def test_a_damaged_step_is_replaced_by_saving_it_again(copy):
    (copy / "20" / "state" / "_METADATA").unlink()
    checkpoints = save(copy, 20)
    assert checkpoints.latest() == 20 and sorted(p.name for p in copy.iterdir()) == ["10", "20"]


def test_no_steps_is_none_and_reading_changes_nothing(tmp_path):
    assert Checkpoints(tmp_path / "absent").restore(target_of(make_state(0))) is None
    assert not (tmp_path / "absent").exists()
    (tmp_path / "c" / "saving.5" / "state").mkdir(parents=True)
    assert Checkpoints(tmp_path / "c").restore(target_of(make_state(0))) is None
    assert (tmp_path / "c" / "saving.5").exists()
    save(tmp_path / "c", 6)
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["6"]


@pytest.mark.parametrize("name", ["99", "099", "-3", "notes", "21.orbax-checkpoint-tmp-5"])
def test_stray_folders_are_no_steps(copy, capsys, name):
    (copy / name).mkdir()
    checkpoints = Checkpoints(copy)
    assert checkpoints.steps() == [10, 20] and checkpoints.latest() == 20
    assert checkpoints.restore(target_of(make_state(0)))[2] == 20
    assert capsys.readouterr().err.count("\n") == (name == "99")


def test_only_stray_folders_is_an_error_not_a_new_start(tmp_path):
    (tmp_path / "99").mkdir()
    with pytest.raises(UserError, match="none is whole"):
        Checkpoints(tmp_path).restore(target_of(make_state(0)))


def test_a_step_deleted_by_its_run_while_read_is_no_damage(copy, monkeypatch, capsys):
    def deleted_meanwhile(path, step, real=seal.damage):
        if step == 20 and path.exists():
            shutil.rmtree(path)
        return real(path, step)

    monkeypatch.setattr(seal, "damage", deleted_meanwhile)
    assert Checkpoints(copy).restore(target_of(make_state(0)))[2] == 10
    assert capsys.readouterr().err == ""


def test_no_flipped_bit_is_silent(copy):
    """300 flips spread over all files of a step, the seal among them, small and large alike."""
    draw = random.Random(0)
    paths = files(copy / "20")
    assert len(paths) >= 10 and copy / "20" / "SEAL.json" in paths
    checkpoints = Checkpoints(copy)
    for trial in range(300):
        path = paths[trial % len(paths)]
        data = path.read_bytes()
        bit = draw.randrange(8 * len(data))
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert checkpoints.latest() == 10, f"bit {bit} of {path} went unnoticed"
        path.write_bytes(data)
    assert checkpoints.latest() == 20


def _deleted(path):
    path.unlink()


def _emptied(path):
    path.write_bytes(b"")


def _zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [_deleted, _emptied, _zeroed, _cut])
def test_any_damaged_file_is_noticed(copy, damage):
    checkpoints = Checkpoints(copy)
    for path in files(copy / "20"):
        data = path.read_bytes()
        damage(path)
        assert checkpoints.latest() == 10, path
        path.write_bytes(data)
    assert checkpoints.latest() == 20


def test_swapped_files_of_two_steps_are_noticed(copy):
    """Orbax's files end with their own crc32c, so a crc32c seal would take any of them for any other of that size."""
    shutil.copy(copy / "10" / "state" / "_METADATA", copy / "20" / "state" / "manifest.ocdbt")
    assert Checkpoints(copy).latest() == 10
    shutil.rmtree(copy / "20")
    shutil.copytree(copy / "10", copy / "20")
    assert Checkpoints(copy).latest() == 10


def test_falls_back_with_one_sentence(copy, capsys):
    path = copy / "20" / "state" / "manifest.ocdbt"
    path.write_bytes(path.read_bytes()[::-1])
    checkpoints = Checkpoints(copy)
    state, meta, step = checkpoints.restore(target_of(make_state(0)))
    assert step == 10 and meta == {"step": 10}
    assert_same(state, make_state(10))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(copy / "20") in said and "state/manifest.ocdbt" in said
    with pytest.raises(UserError, match=r"20 cannot be used: its file state/manifest\.ocdbt does not match"):
        checkpoints.restore(target_of(make_state(0)), step=20)
    with pytest.raises(UserError, match="no such folder"):
        checkpoints.restore(target_of(make_state(0)), step=30)
    (copy / "10" / "SEAL.json").unlink()
    with pytest.raises(UserError, match="2 checkpoints, and none is whole"):
        checkpoints.restore(target_of(make_state(0)))


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"null", b"\xff", b"[" * 100_000, b'{"body": {"format": 1}}', b" " * (2 << 20)])
def test_a_hostile_seal_is_only_a_damaged_one(copy, text):
    (copy / "20" / "SEAL.json").write_bytes(text)
    assert Checkpoints(copy).latest() == 10


@pytest.mark.parametrize("change", [
    {"format": 2}, {"step": True}, {"meta": []}, {"files": []}, {"files": {"../../passwd": [1, "x"]}}, {"files": {"/etc/passwd": [1, "x"]}},
    {"files": {"a": ["1", "x"]}}, {"files": {"a": 3}}, {"leaves": [["a", 1, []]]}, {"leaves": [[["a"], "float32", ["3"]]]}, {"leaves": 3}])
def test_a_seal_of_wrong_types_is_a_damaged_one(copy, change):
    import hashlib

    path = copy / "20" / "SEAL.json"
    body = {**json.loads(path.read_text())["body"], **change}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    path.write_text(json.dumps({"body": body, "sha256": digest}))
    assert Checkpoints(copy).steps() == [10]


@pytest.mark.parametrize("leaf, other", [
    ("params/encoder/kernel", jax.ShapeDtypeStruct((200, 11), jnp.float32)), ("params/encoder/kernel", jax.ShapeDtypeStruct((200, 10), jnp.int32)),
    ("params/encoder/half", jax.ShapeDtypeStruct((10,), jnp.float32)), ("params/encoder/extra", jax.ShapeDtypeStruct((3,), jnp.float32)),
    ("params/decoder/kernel", None)])
def test_another_model_is_an_error_naming_the_leaf(two_steps, leaf, other):
    target = target_of(make_state(0))
    *parents, last = leaf.split("/")
    node = target
    for name in parents:
        node = node[name]
    node.pop(last, None)
    if other is not None:
        node[last] = jax.ShapeDtypeStruct(other.shape, other.dtype, sharding=replicated())
    with pytest.raises(UserError, match=rf"has {leaf} as .*but this run wants"):
        Checkpoints(two_steps).restore(target)


def test_another_kind_of_key_is_an_error(two_steps):
    target = {**target_of(make_state(0)), "key": jax.ShapeDtypeStruct((), jax.random.key(0, impl="rbg").dtype, sharding=replicated())}
    with pytest.raises(UserError, match="has key as key<fry>.*wants key<rbg>"):
        Checkpoints(two_steps).restore(target)


def test_read_tree_reads_the_players_asked_for(copy, capsys):
    tree, step = read_tree(copy, ("params/encoder", "variables", "params/absent"))
    assert step == 20
    assert jax.tree.map(np.shape, tree) == {"params": {"encoder": {"half": (10,), "kernel": (200, 10)}},
                                            "variables": {"encoder": {}, "decoder": {"on": ()}}}
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tree))
    assert_same(tree["params"]["encoder"], make_state(20)["params"]["encoder"])
    assert read_tree(copy, ("nothing",), 10) == ({}, 10)
    optimizer = read_tree(copy, ("optimizer", "step"))[0]
    assert jax.tree.map(np.shape, optimizer) == {"optimizer": {"encoder": [{"count": ()}, {"mu": (200, 10)}]}, "step": ()}
    np.testing.assert_array_equal(optimizer["optimizer"]["encoder"][1]["mu"], make_state(20)["optimizer"]["encoder"][1]["mu"])
    _emptied(copy / "20" / "state" / "_METADATA")
    assert_same(read_tree(copy)[0]["params"], make_state(10)["params"])
    assert "passed over" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds no checkpoint"):
        read_tree(copy / "absent")


@pytest.mark.parametrize("meta", [{"best": float("inf")}, {"best": np.float32(1)}, {1: 2}, {"a": (1, 2)}, {"a": "x" * (1 << 20)}, []])
def test_meta_that_json_would_change_is_refused_at_once(tmp_path, meta):
    with pytest.raises((ValueError, TypeError)):
        Checkpoints(tmp_path / "c").save(1, make_state(1), meta)
    assert not (tmp_path / "c").exists()


def test_too_little_space_is_said_before_saving(copy, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(UserError, match=r"Saving step 30 needs 0\.0 MB free in .*, but 0\.0 MB are left"):
        Checkpoints(copy).save(30, make_state(30), {})
    assert sorted(p.name for p in copy.iterdir()) == ["10", "20"]


def test_full_disk_loses_nothing_and_the_next_save_works(tmp_path, monkeypatch, capfd):
    """A real file system of 4 MB; the state takes about 1.8 MB, so the third step does not fit."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        monkeypatch.setattr(checkpoint, "HEADROOM", 0)  # the space is there when asked, and gone when written
        checkpoints = Checkpoints(small / "c", keep=3)
        for step in (1, 2):
            checkpoints.save(step, make_state(step, 16_000), {})
            assert checkpoints.finish() == [step]
        used = shutil.disk_usage(small).used
        for _ in range(2):
            with pytest.raises(UserError, match="Step 3 could not be saved in .* \\(no space left on the disk\\); older"):
                checkpoints.save(3, make_state(3, 16_000), {})
                checkpoints.finish()
            assert shutil.disk_usage(small).used <= used and checkpoints.steps() == [1, 2] and checkpoints.latest() == 2
        shutil.rmtree(small / "c" / "1")
        checkpoints.save(3, make_state(3, 16_000), {})
        assert checkpoints.finish() == [3]
        assert_same(checkpoints.restore(target_of(make_state(0, 16_000)))[0], make_state(3, 16_000))
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert "Traceback" not in capfd.readouterr().err


class Crash(BaseException):
    """The machine stops here: nobody handles it, nothing is cleaned."""


def _fail_at(monkeypatch, k, fault):
    """The k-th of our own writes, fsyncs and renames fails, a write with half its bytes on disk. Returns the calls made so far."""
    calls = []
    for name in ("write", "sync", "rename"):
        def wrapped(path, *rest, name=name, real=getattr(seal, name)):
            calls.append(name)
            if len(calls) == k:
                if name == "write":
                    path.write_bytes(rest[0][: len(rest[0]) // 2])
                raise fault
            return real(path, *rest)
        monkeypatch.setattr(seal, name, wrapped)
    return calls


@pytest.mark.parametrize("fault", [OSError(errno.EIO, "Input/output error"), Crash()], ids=["error", "crash"])
@pytest.mark.parametrize("damaged", [False, True], ids=["new step", "over a damaged one"])
def test_a_fault_at_every_one_of_our_operations(copy, monkeypatch, fault, damaged):
    """keep=1: the save of 20 renames, seals and deletes 10; whatever fails, 10 or 20 is there and right."""
    spare = shutil.copytree(copy, copy.parent / "spare")
    target, k, done = target_of(make_state(0)), 0, False
    while not done:
        k += 1
        shutil.rmtree(copy)
        shutil.copytree(spare, copy)
        if damaged:
            _emptied(copy / "20" / "state" / "_METADATA")
        else:
            shutil.rmtree(copy / "20")
        with monkeypatch.context() as patch:
            calls = _fail_at(patch, k, fault)
            checkpoints = Checkpoints(copy, keep=1)
            checkpoints.save(20, make_state(20), {"step": 20})
            try:
                assert checkpoints.finish() == [20]
                done = len(calls) < k
            except (UserError, Crash) as error:
                assert isinstance(error, Crash) == isinstance(fault, Crash)
        state, meta, step = Checkpoints(copy).restore(target)
        assert step in (10, 20) and meta == {"step": step}
        assert_same(state, make_state(step))
        if k % 7 == 0 or done:
            again = Checkpoints(copy, keep=1)
            again.save(20, make_state(20), {"step": 20})
            assert again.finish() == ([20] if step == 10 else [])
            assert again.latest() == 20
    assert k > 15
    assert sorted(p.name for p in copy.iterdir()) == ["20"]


def test_everything_is_synced_before_the_seal_and_the_seal_before_the_rename(tmp_path, monkeypatch):
    log = []
    for name in ("write", "sync", "rename"):
        monkeypatch.setattr(seal, name, lambda path, *rest, name=name, real=getattr(seal, name): (
            log.append((name, str(path).removeprefix(f"{tmp_path}/"))), real(path, *rest)))
    save(tmp_path / "c", 7)
    sealed_at, renamed_at = log.index(("write", "c/saving.7/SEAL.json")), log.index(("rename", "c/saving.7"))
    sealed = [p.relative_to(tmp_path / "c" / "7") for p in (tmp_path / "c" / "7").rglob("*") if p.name != "SEAL.json"]
    assert {("sync", f"c/saving.7/{name}") for name in sealed} <= set(log[:sealed_at])
    assert ("sync", "c/saving.7") in log[sealed_at:renamed_at] and ("sync", "c") in log[renamed_at:]


def test_a_second_run_is_refused_by_pid(tmp_path):
    with lock(tmp_path / "run"):
        with pytest.raises(UserError, match=rf"in use by process {os.getpid()} on {re.escape(socket.gethostname())}"):
            lock(tmp_path / "run")
    with lock(tmp_path / "run"):  # freed, though the file still names a process
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used as a run folder"):
        lock(tmp_path / "file")


CHILD = """
import jax, pathlib, sys
sys.path.insert(0, {tests!r})
from test_checkpoint import *
with lock({work!r}):
    checkpoints = Checkpoints({work!r} + "/c", keep=2)
    found = checkpoints.restore(target_of(make_state(0)))
    step = found[2] if found else 0
    if found:
        assert_same(found[0], make_state(step))
    while step < 5000:
        step += 1
        checkpoints.save(step, make_state(step), {{"step": step}})
        print(*checkpoints.finish(), flush=True)
"""


def test_killed_while_saving(tmp_path):
    """SIGKILL at random moments: no step that was called saved is lost, every restore is right, the lock does not outlive its process."""
    draw, saved = random.Random(1), 0
    code = CHILD.format(tests=os.path.dirname(__file__), work=str(tmp_path))
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                 env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        try:
            for _ in range(3):
                saved = int(child.stdout.readline() or child.communicate()[1])
            with pytest.raises(UserError, match=f"process {child.pid} "):
                lock(tmp_path)
            time.sleep(draw.uniform(0, 0.12))
        finally:
            child.send_signal(signal.SIGKILL)
        rest = child.communicate()[0].split()
        saved = int(rest[-1]) if rest else saved
        with lock(tmp_path):
            state, meta, step = Checkpoints(tmp_path / "c").restore(target_of(make_state(0)))
        assert step >= saved and meta == {"step": step}
        assert_same(state, make_state(step))


TWO = """
import jax, pathlib, sys
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
sys.path.insert(0, {tests!r})
from test_checkpoint import *
assert jax.device_count() == 4 and jax.process_count() == 2
checkpoints, best = Checkpoints({folder!r}, keep=2), Checkpoints({folder!r} + "_best", keep=1)
target = target_of(make_state(0))
assert checkpoints.restore(target) is None
for step in (1, 2, 3):
    checkpoints.save(step, make_state(step), {{"step": step}})
    best.save(step, make_state(step), {{}})
    told = checkpoints.poll()
told += checkpoints.finish()
checkpoints.save(3, make_state(3), {{}})
assert best.finish() == ([1, 2, 3] if jax.process_index() == 0 else [])
if jax.process_index() == 0:
    path = max(((p.stat().st_size, p) for p in files(pathlib.Path({folder!r}) / "3" / "state")))[1]
    path.write_bytes(path.read_bytes()[:-1])
state, meta, step = checkpoints.restore(target)
assert (meta, step) == ({{"step": 2}}, 2)
assert_same(state, make_state(2))
if jax.process_index() == 0:
    shutil.rmtree({folder!r} + "/2")
try:
    checkpoints.restore(target)
except UserError as error:
    print(error)
"""


def test_two_processes_save_and_one_device_restores(tmp_path):
    with socket.socket() as port:
        port.bind(("localhost", 0))
        address = f"localhost:{port.getsockname()[1]}"
    folder = tmp_path / "c"
    code = TWO.format(tests=os.path.dirname(__file__), folder=str(folder))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_NUM_CPU_DEVICES": "2"}
    children = [subprocess.Popen([sys.executable, "-c", code, address, str(i)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
                for i in range(2)]
    try:
        told = [child.communicate(timeout=60) for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], told[0][1] + told[1][1]
    assert "none is whole" in told[0][0] and "Process 0 stopped this run" in told[1][0]
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), make_state(0))
    state, _, step = Checkpoints(f"{folder}_best").restore(target)
    assert step == 3
    assert_same(state, make_state(3))


def test_object_store_seals_last_and_ignores_what_has_no_seal(tmp_path, monkeypatch):
    """The path without renames, on a local folder that says it is remote."""
    monkeypatch.setattr(seal, "is_remote", lambda path: True)
    checkpoints = save(tmp_path / "c", 1, 2, keep=1)
    assert checkpoints.steps() == [2] and not (tmp_path / "c" / "1").exists()
    (tmp_path / "c" / "2" / "SEAL.json").unlink()
    assert checkpoints.restore(target_of(make_state(0))) is None
    save(tmp_path / "c", 2, 3)
    _emptied(tmp_path / "c" / "3" / "state" / "_METADATA")
    assert checkpoints.restore(target_of(make_state(0)))[2] == 2
    with lock(tmp_path / "c"), lock(tmp_path / "c"):
        assert not (tmp_path / "c" / "lock").exists()
