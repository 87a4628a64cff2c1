"""Digests of files are remembered while the files are unchanged, and never longer."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmp.data import digests
from mmp.data.digests import Content, contents
from mmp.errors import MmpError

NAMES = ["a/1", "a/2", "b/1"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(digests, "TOO_RECENT", -(10**10))  # files of this test count as old
    for name in NAMES:
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
    return tmp_path / "root"


class Reader:
    """Remembers which files were looked at."""

    def __init__(self, root: Path) -> None:
        self.root, self.memory, self.read = root, root.parent / "memory", list[str]()

    def look(self, path: str, content: bytes) -> Any:
        if content == b"refused":
            raise MmpError(f"{path}: refused; remove it")
        self.read.append(os.path.relpath(path, self.root))
        return {"length": len(content)}

    def __call__(self, names: list[str] = NAMES, version: str = "") -> tuple[list[Content], list[str]]:
        """Return the contents, and the files that were read."""
        self.read = []
        result = contents(self.root, names, self.memory, self.look, version)
        return result, sorted(self.read)


def test_files_are_read_once(root: Path) -> None:
    first, read = Reader(root)()
    assert read == NAMES
    assert first == [Content(hashlib.sha256((root / name).read_bytes()).hexdigest(), {"length": 14}) for name in NAMES]
    assert Reader(root)() == (first, [])
    assert Reader(root)(NAMES[:2])[1] == NAMES[:2]  # a folder such as a split has a memory of its own
    assert Reader(root)(NAMES[:2]) == (first[:2], [])
    assert Reader(root)([]) == ([], [])
    (root / "c").write_text("new")
    assert Reader(root)([*NAMES, "c"])[1] == ["c"]
    assert Reader(root)([*NAMES, "c"])[1] == []


@pytest.mark.parametrize("how", ["written", "renamed", "dated back"])
def test_a_file_replaced_in_place_is_read_again(root: Path, how: str) -> None:
    (before, *others), _ = Reader(root)()
    path, status = root / "a/1", (root / "a/1").stat()
    other = "CONTENT of a/1"  # as long as before
    if how == "renamed":
        (root / "other").write_text(other)
        (root / "other").replace(path)
    else:
        path.write_text(other)
    if how == "dated back":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (after, *unchanged), read = Reader(root)()
    assert read == ["a/1"]
    assert after.digest == hashlib.sha256(other.encode()).hexdigest() != before.digest
    assert unchanged == others


def test_a_file_that_has_just_changed_is_not_remembered(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "TOO_RECENT", 10**12)
    assert Reader(root)()[1] == Reader(root)()[1] == NAMES


def test_a_file_dated_into_the_future_is_read_once(root: Path) -> None:
    for name in NAMES:
        os.utime(root / name, (4e9, 4e9))
    first, _ = Reader(root)()
    assert Reader(root)() == (first, [])


@pytest.mark.parametrize(
    "damage",
    ["", "[]", "{", '{"version": "", "files": 3}', '{"version": "", "files": {"a/1": 7, "a/2": [1, 2]}}', "\0" * 99],
)
def test_a_damaged_memory_is_ignored_and_written_again(root: Path, damage: str) -> None:
    first, _ = Reader(root)()
    (file,) = (root.parent / "memory").glob("*.json")
    file.write_text(damage)
    assert Reader(root)() == (first, NAMES)
    assert json.loads(file.read_text())["files"].keys() == set(NAMES)
    assert Reader(root)() == (first, [])


def test_what_another_version_saw_is_not_used(root: Path) -> None:
    assert Reader(root)(version="1")[1] == NAMES
    assert Reader(root)(version="2")[1] == NAMES
    assert Reader(root)(version="2")[1] == []


def test_a_folder_that_cannot_be_written_costs_time_only(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    reader = Reader(root)
    reader.memory.write_text("a file")
    assert reader()[1] == reader()[1] == NAMES
    assert "every run reads all images" in caplog.text


def test_each_data_set_has_a_memory_of_its_own(root: Path) -> None:
    first, _ = Reader(root)()
    copy = Reader(root.parent / "copy")
    shutil.copytree(root, copy.root)
    for name in NAMES:
        (copy.root / name).write_text(f"CONTENT of {name}")
    assert copy()[1] == NAMES
    assert copy()[0] != first == Reader(root)()[0]


def test_errors_name_the_first_file_and_say_how_many_there_are(root: Path) -> None:
    for name in ("a/2", "b/1"):
        (root / name).write_text("refused")
    with pytest.raises(MmpError, match=r"a.2: refused; remove it \(2 such files\)"):
        Reader(root)()
    (root / "a/2").write_text("right")
    with pytest.raises(MmpError, match=r"b.1: refused; remove it$"):
        Reader(root)()
    reader = Reader(root)
    with pytest.raises(MmpError, match="refused"):
        reader()
    assert reader.read == []  # what is right is remembered
    (root / "b/1").unlink()
    with pytest.raises(MmpError, match=r"b.1: no such image.*incomplete"):
        Reader(root)()


def test_without_a_memory_all_files_are_read_and_nothing_is_written(root: Path) -> None:
    for _ in range(2):
        reader = Reader(root)
        contents(root, NAMES, None, reader.look)
        assert sorted(reader.read) == NAMES
    assert [path.name for path in root.parent.iterdir()] == ["root"]
