import errno
import os
import pickle
import shutil
import subprocess
import sys

import made
import numpy as np
import pytest

from diastole.lake import disk
from diastole.lake.errors import EnvironmentFailure, LakeError
from diastole.lake.layout import Lake, probe_conditional_put
from diastole.lake.store import Store

RACE = """
import sys, time
from diastole.lake.store import Store
store, name, start = Store(sys.argv[1]), sys.argv[2], float(sys.argv[3])
while time.time() < start: pass
print("".join("1" if store.put_if_absent(f"f{n}", name.encode() * 10000) else "0" for n in range(50)))
"""


def test_of_many_processes_exactly_one_puts_each_file(tmp_path):
    import time

    start = str(time.time() + 2.0)
    line = [sys.executable, "-c", RACE, str(tmp_path)]
    racing = [subprocess.Popen([*line, n, start], stdout=subprocess.PIPE, text=True) for n in "abcd"]
    told = [process.communicate(timeout=60)[0].strip() for process in racing]
    for number in range(50):
        winners = [name for name, said in zip("abcd", told, strict=True) if said[number] == "1"]
        assert len(winners) == 1
        assert Store(str(tmp_path)).get(f"f{number}") == winners[0].encode() * 10000
    assert not list(tmp_path.glob(".part-*"))


@pytest.mark.fault(42)
@pytest.mark.parametrize("root", ["http://169.254.169.254/latest", "https://example.org/lake", "ftp://a/b", "x://y"])
def test_what_is_no_object_store_is_refused(root):
    with pytest.raises(LakeError, match="a lake cannot be at"):
        Store(root)


@pytest.mark.fault(41)
@pytest.mark.parametrize("path", ["../outside", "a/../../outside", "/etc/passwd", "", ".", "a\\..\\b"])
@pytest.mark.parametrize("root", ["{tmp}/lake", "memory://"])
def test_a_path_that_leads_out_is_refused(tmp_path, root, path):
    store = Store(root.format(tmp=tmp_path))
    for act in (
        store.get,
        store.size,
        store.delete,
        lambda p: store.put(p, b""),
        lambda p: store.put_if_absent(p, b""),
    ):
        with pytest.raises(LakeError):
            act(path)
    with pytest.raises(LakeError):
        store.uri(path)


@pytest.mark.parametrize("root", ["{tmp}/lake", "memory://"])
def test_pieces_are_one_file_and_those_that_fail_leave_nothing(tmp_path, root):
    def failing():
        yield b"one"
        raise ValueError

    store = Store(root.format(tmp=tmp_path))
    store.put("a/b", (piece for piece in (b"one", b"", b"two")))
    with pytest.raises(ValueError):
        store.put("a/b", failing())
    assert store.get("a/b") == b"onetwo"
    assert not (tmp_path / "lake").exists() or [p.name for p in (tmp_path / "lake" / "a").iterdir()] == ["b"]


@pytest.mark.fault(42)
def test_a_link_that_leads_out_is_refused(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_text("secret")
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "link").symlink_to(tmp_path / "secret")
    store = Store(str(tmp_path / "lake"))
    for act in (store.get, store.size, lambda p: store.put(p, b"")):
        with pytest.raises(LakeError, match="leads out of the lake"):
            act("link/file")
    assert (tmp_path / "secret" / "file").read_text() == "secret"


@pytest.mark.parametrize("root", ["{tmp}/lake", "memory://"])
def test_a_folder_and_an_object_store_do_the_same(tmp_path, root):
    store = Store(root.format(tmp=tmp_path))
    assert store.size("a/b") is None
    with pytest.raises(FileNotFoundError):
        store.get("a/b")
    assert store.put_if_absent("a/b", b"one")
    assert not store.put_if_absent("a/b", b"two")
    assert (store.get("a/b"), store.size("a/b")) == (b"one", 3)
    store.put("a/b", b"three")
    store.put("a/c/d", b"")
    store.put("z", b"1")
    assert list(store.list("a")) == [("a/b", 5), ("a/c/d", 0)]
    assert list(store.folders("a")) == ["c"]
    store.delete("a/b")
    store.delete("a/b")
    assert list(store.list("a")) == [("a/c/d", 0)]
    assert list(store.list("nothing")) == []
    assert list(store.folders("nothing")) == []
    probe_conditional_put(store)


def test_a_store_that_lets_the_second_writer_win_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "put_if_absent", lambda self, path, data: self.put(path, data) is None)
    monkeypatch.setenv("DIASTOLE_KEYS", str(tmp_path / "keys"))
    with pytest.raises(LakeError, match="no conditional put"):
        Lake.create(str(tmp_path / "lake"))


@pytest.mark.fault(43)
def test_what_travels_to_a_worker_carries_no_keys(lake, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAPLANTED")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    remote = pickle.dumps(Store("s3://bucket/lake"))
    assert b"PLANTED" not in remote
    assert b"planted" not in remote
    assert pickle.loads(remote).root == "s3://bucket/lake"
    assert lake.key.hex().encode() not in pickle.dumps(lake.store)
    assert lake.key.hex() not in repr(lake)


@pytest.mark.fault(20)
def test_a_write_that_fails_is_the_environments_and_leaves_nothing(tmp_path, monkeypatch):
    import os

    def full(handle):
        raise OSError(28, "No space left on device")

    store = Store(str(tmp_path))
    store.put("a", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFailure, match="No space left on device"):
        store.put("a", b"new")
    assert store.get("a") == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("where", ["folder", "memory"])
def test_a_part_of_a_file_can_be_read_and_names_are_those_of_one_folder(tmp_path, where):
    store = Store(str(tmp_path) if where == "folder" else "memory://")
    store.put("runs/a/b", bytes(range(256)))
    store.put("runs/a/c/d", b"deeper")
    store.put("runs/ab", b"beside")
    with store.open("runs/a/b") as file:
        file.seek(-6, 2)
        assert file.tell() == 250
        assert file.read() == bytes(range(250, 256))
    assert list(store.names("runs/a")) == ["b"]
    assert list(store.names("nothing")) == []
    with pytest.raises(FileNotFoundError), store.open("runs/none") as file:
        file.read()


@pytest.mark.parametrize("root", ["{tmp}/lake", "memory://"])
def test_linked_files_are_there_under_both_names_and_again_changes_nothing(tmp_path, root, monkeypatch):
    store = Store(root.format(tmp=tmp_path))
    synced: list[str] = []
    whole = disk.sync
    monkeypatch.setattr(disk, "sync", lambda path: (whole(path), synced.append(path.name)))
    paths = {f"a/x/{n}": f"b/{'x' if n % 2 else 'y'}/{n}" for n in range(20)}
    for path in paths:
        store.put(path, path.encode(), durable=False)
    for _ in range(2):
        store.link(paths)
        assert {store.get(target).decode(): target for target in paths.values()} == paths
    assert sorted(name for name in synced if name in "xy") == (["x", "x", "y", "y"] if store.local is not None else [])


def test_where_a_folder_has_no_links_files_are_copied(tmp_path, monkeypatch):
    store, link = Store(str(tmp_path)), os.link
    store.put("a/x", b"1")

    def other_file_system(source, target):
        if ".part-" not in str(source):  # what is written aside lies beside its target
            raise OSError(errno.EXDEV, "not of this file system")
        link(source, target)

    monkeypatch.setattr(os, "link", other_file_system)
    store.link({"a/x": "b/x"})
    assert store.get("b/x") == b"1"


@pytest.mark.parametrize("where", ["folder", "memory"])
def test_buffers_are_filled_with_parts_of_a_file(tmp_path, where):
    store = Store(str(tmp_path) if where == "folder" else "memory://")
    store.put("a/b", bytes(range(256)))
    whole = np.zeros((3, 16), np.uint8)
    assert store.fill("a/b", [(0, whole[2]), (200, whole[0]), (250, whole[1])]).tolist() == [True, True, False]
    assert whole[0].tolist() == list(range(200, 216))
    assert whole[2].tolist() == list(range(16))
    with pytest.raises(FileNotFoundError):
        store.fill("a/none", [(0, whole[0])])
    with pytest.raises(LakeError, match="not a path inside"):
        store.fill("../b", [(0, whole[0])])


@pytest.mark.fault(20)
def test_a_new_folder_is_made_durable_in_those_above_it_once(tmp_path, monkeypatch):
    """On a disk that loses power a file that is on it, in a folder that is not, is gone."""
    store, whole = Store(str(tmp_path)), disk.sync
    synced: list[str] = []
    monkeypatch.setattr(disk, "sync", lambda path: (whole(path), synced.append(str(path.relative_to(tmp_path)))))
    assert store.put_if_absent("a/b/c/one", b"1")
    assert set(synced) >= {".", "a", "a/b", "a/b/c"}
    synced.clear()
    store.put("a/b/c/two", b"2")
    store.put("a/b/d/three", b"3")
    assert sorted(synced) == ["a/b", "a/b/c", "a/b/d"]
    shutil.rmtree(tmp_path / "a")
    synced.clear()
    store.put("a/b/c/one", b"1")
    assert set(synced) >= {".", "a", "a/b", "a/b/c"}
    synced.clear()
    store.put("x/y/z/four", b"4", durable=False)
    assert synced == []
    store.sync("x/y/z")
    assert set(synced) >= {".", "x", "x/y", "x/y/z", "x/y/z/four"}


@pytest.mark.fault(20)
def test_what_an_ingest_and_a_run_have_committed_is_durable_before_they_end(lake, tmp_path, monkeypatch):
    """deltalake leaves it to the system when its log and its files are written down; no power is cut here."""
    synced = set()
    whole = disk.sync
    monkeypatch.setattr(disk, "sync", lambda path: (whole(path), synced.add(path)))
    monkeypatch.setenv("DIASTOLE_ALLOW_CODE", "")
    made.add_proteins(lake, tmp_path / "src", made.proteins(4))
    made.residues(lake)
    made.run(lake)
    made.add_proteins(lake, tmp_path / "src", made.proteins(6, seed=3))
    made.run(lake)
    tables = ["datasets/d/items", "datasets/d/sources", "integrity", "predictions/o", "current/o"]
    for table in map(lake.store.path, tables):
        logs = set((table / "_delta_log").glob("*.json"))
        assert len(logs) > 1
        assert logs | {table / "_delta_log"} <= synced, table
    for table in map(lake.store.path, tables[:3]):
        assert {path for path in table.rglob("*.parquet") if "_delta_log" not in path.parts} <= synced, table
