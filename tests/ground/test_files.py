"""Atomic files, tensors on disk, and the cache: after errors, on damaged files, with many processes at once."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from mmp.cache import cached_set, cached_tensors
from mmp.errors import MmpError
from mmp.files import no_space, read_json, write_atomically, write_json
from mmp.tensors import load_tensors, save_tensors, tensors_digest

WORKERS = 8


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def tensors() -> dict[str, Tensor]:
    return {"score/a": torch.arange(6.0).view(2, 3), "score/b": torch.tensor([7.0]), "other": torch.zeros(2)}


# --- atomic writes ---


@pytest.mark.parametrize(("number", "full"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False)])
def test_a_full_disk_is_known_behind_the_error_for_the_user(tmp_path: Path, number: int, full: bool) -> None:
    def write(_: Path) -> None:
        raise OSError(number, "reason")

    with pytest.raises(MmpError, match="cannot write") as caught:
        write_atomically(tmp_path / "file", write)
    assert no_space(caught.value) is full
    assert not listing(tmp_path)


def test_a_file_appears_complete_in_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "note.txt"
    write_atomically(path, lambda temporary: temporary.write_text("whole"))
    assert path.read_text() == "whole"
    assert listing(path.parent) == ["note.txt"]


def test_a_reader_of_the_old_file_never_sees_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old")
    with path.open() as reader:
        write_atomically(path, lambda temporary: temporary.write_text("new"))
        assert reader.read() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_nothing_is_left_when_the_writer_raises(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert listing(tmp_path) == ["note.txt"]
    assert path.read_text() == "old"


def test_an_error_of_a_full_disk_names_the_path_and_leaves_nothing(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "note.txt"
    with pytest.raises(MmpError, match=f"cannot write {path}: No space left on device"):
        write_atomically(path, write)
    assert listing(tmp_path) == []


def test_a_file_in_the_place_of_a_folder_is_an_error_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    path = tmp_path / "taken" / "note.txt"
    with pytest.raises(MmpError, match=f"cannot write {path}"):
        write_json(path, {})


def test_a_folder_in_the_place_of_a_file_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.mkdir()
    with pytest.raises(MmpError, match=f"cannot write {path}"):
        write_json(path, {})
    assert listing(tmp_path) == ["taken"]


def test_json_is_read_back_and_refuses_numbers_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"accuracy": 0.5, "layers": ["é"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"accuracy": 0.5, "layers": ["é"]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"accuracy": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8"))["accuracy"] == 0.5
    assert listing(tmp_path) == ["result.json"]


@pytest.mark.parametrize("content", [None, b"", b'{"half', b"[1, 2]", b'"text"', b"\xff\xfe"], ids=str)
def test_a_file_without_a_json_object_reads_as_none(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    if content is not None:
        path.write_bytes(content)
    assert read_json(path) is None
    write_json(path, {"status": "running"})
    assert read_json(path) == {"status": "running"}


# --- tensors ---


def test_tensors_of_any_kind_are_read_back(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    content = {
        "shared": shared,
        "tied": shared,
        "transposed": shared.t(),
        "bool": torch.tensor([True, False]),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 2),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    path = tmp_path / "t.safetensors"
    assert save_tensors(path, content) == tensors_digest(content)
    loaded = load_tensors(path)
    assert loaded.keys() == content.keys()
    for name, value in content.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value)
    assert listing(tmp_path) == ["t.safetensors"]


def test_only_tensors_that_share_memory_are_copied_to_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, tied = torch.ones(3), torch.zeros(2)
    saved: dict[str, Tensor] = {}
    monkeypatch.setattr("mmp.tensors.save_file", lambda plain, *_, **__: saved.update(plain))
    save_tensors(tmp_path / "t.safetensors", {"alone": alone, "one": tied, "other": tied.view(2, 1)})
    assert saved["alone"].data_ptr() == alone.data_ptr()
    assert saved["one"].data_ptr() != saved["other"].data_ptr()


def test_the_digest_depends_on_name_type_shape_and_value_but_not_on_order() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    changed = torch.zeros(2, 3)
    changed[1, 2] = 1
    variants = [
        base,
        {**base, "a": changed},
        {**base, "a": torch.zeros(3, 2)},
        {**base, "a": torch.zeros(2, 3, dtype=torch.int32)},
        {**base, "a": -torch.zeros(2, 3)},
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"]},
    ]
    assert len({tensors_digest(variant) for variant in variants}) == len(variants)
    assert tensors_digest({"b": base["b"], "a": torch.zeros(3, 2).t()}) == tensors_digest(base)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"not safetensors, but long enough for a header"])
def test_a_file_without_tensors_is_an_error_with_the_path(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "t.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MmpError, match=str(path)):
        load_tensors(path)


def test_an_error_of_a_disk_that_fills_up_while_tensors_are_saved_names_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("mmp.tensors.save_file", fail)
    with pytest.raises(MmpError, match=f"cannot write {tmp_path / 't.safetensors'}"):
        save_tensors(tmp_path / "t.safetensors", tensors())
    assert listing(tmp_path) == []


# --- the cache ---


class Counted:
    """A computation that counts how often it ran."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.runs = 0
        self.seconds = seconds

    def __call__(self) -> dict[str, Tensor]:
        self.runs += 1
        time.sleep(self.seconds)
        return tensors()


def assert_is_content(found: dict[str, Tensor]) -> None:
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[name], value) for name, value in tensors().items())


def test_the_cache_computes_once_and_then_reads(tmp_path: Path) -> None:
    path, compute = tmp_path / "new" / "scores.safetensors", Counted()
    found, hit = cached_tensors(path, compute)
    assert not hit
    assert_is_content(found)
    found, hit = cached_tensors(path, compute)
    assert hit
    assert_is_content(found)
    assert compute.runs == 1


def test_a_missing_set_makes_the_cache_compute_all_sets_one_after_the_other(tmp_path: Path) -> None:
    paths = {name: tmp_path / f"{name}.safetensors" for name in "abc"}
    made: dict[str, weakref.ref[Tensor]] = {}

    def compute(name: str) -> dict[str, Tensor]:
        assert not any(one() is not None for one in made.values())
        tensor = torch.full((3,), float(ord(name)))
        made[name] = weakref.ref(tensor)
        return {"x": tensor}

    for wanted, expected_hit in (("b", False), ("a", True), ("b", True)):
        found, hit = cached_set(paths, wanted, compute)
        assert hit is expected_hit
        assert found["x"].tolist() == [ord(wanted)] * 3
        del found
    assert sorted(made) == ["a", "b", "c"]


@pytest.mark.parametrize("damage", ["empty", "truncated", "altered"])
def test_the_cache_recovers_from_a_damaged_file(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    path, compute = tmp_path / "scores.safetensors", Counted()
    cached_tensors(path, compute)
    whole = path.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    path.write_bytes({"empty": b"", "truncated": whole[:-3], "altered": flipped}[damage])
    with caplog.at_level(logging.WARNING):
        _, hit = cached_tensors(path, compute)
    assert not hit
    assert str(path) in caplog.text
    found, hit = cached_tensors(path, compute)
    assert hit
    assert_is_content(found)
    assert compute.runs == 2


def test_the_cache_can_be_used_after_a_computation_that_failed(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"

    def fail() -> dict[str, Tensor]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cached_tensors(path, fail)
    assert not path.exists()
    with ThreadPoolExecutor(1) as pool:  # another thread could not acquire a lock that is still held
        found, hit = pool.submit(cached_tensors, path, Counted()).result(timeout=20)
    assert not hit
    assert_is_content(found)


def test_an_error_of_a_cache_that_cannot_be_written_names_the_path(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(MmpError, match=f"cannot write the cache {tmp_path / 'taken'}.*paths.cache"):
        cached_tensors(tmp_path / "taken" / "scores.safetensors", Counted())


@pytest.mark.slow
def test_several_threads_compute_once(tmp_path: Path) -> None:
    path, compute, barrier = tmp_path / "scores.safetensors", Counted(0.05), threading.Barrier(WORKERS)

    def read(_: int) -> tuple[dict[str, Tensor], bool]:
        barrier.wait(timeout=20)
        return cached_tensors(path, compute)

    with ThreadPoolExecutor(WORKERS) as pool:
        answers = list(pool.map(read, range(WORKERS)))
    assert compute.runs == 1
    assert sorted(hit for _, hit in answers) == [False] + [True] * (WORKERS - 1)
    for found, _ in answers:
        assert_is_content(found)


def read_as_process(path: Path, ready: threading.Barrier, answers: multiprocessing.Queue) -> None:
    ready.wait(timeout=20)
    found, hit = cached_tensors(path, Counted(0.05))
    answers.put((hit, tensors_digest(found)))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, which is safe with torch on Linux only")
def test_several_processes_compute_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, answers = context.Barrier(WORKERS), context.Queue()
    arguments = (tmp_path / "scores.safetensors", ready, answers)
    processes = [context.Process(target=read_as_process, args=arguments) for _ in range(WORKERS)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(timeout=30)
    assert sorted(hit for hit, _ in found) == [False] + [True] * (WORKERS - 1)
    assert {digest for _, digest in found} == {tensors_digest(tensors())}
