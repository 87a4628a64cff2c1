"""Sparse files: every bit is read back, and every change of a byte is an error."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmp.errors import MmpError
from mmp.export.sparse_file import _TYPES, FORMAT, load_sparse, save_sparse


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def zeroed(*shape: int, sparsity: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    pruned = torch.rand(shape, generator=generator) < sparsity
    return torch.randn(shape, generator=generator).masked_fill_(pruned, 0)


def same(path: Path, tensors: dict[str, Tensor]) -> bool:
    read = load_sparse(path)
    return read.keys() == tensors.keys() and all(
        (read[name].dtype, read[name].shape, bits(read[name])) == (value.dtype, value.shape, bits(value))
        for name, value in tensors.items()
    )


@pytest.mark.slow
@given(
    shape=st.lists(st.integers(0, 40), max_size=3),
    kept=st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.3, 0.9, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]),
    seed=st.integers(0, 1000),
)
def test_every_bit_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], kept: float, dtype: torch.dtype, seed: int
) -> None:
    path = tmp_path_factory.mktemp("sparse") / "x.safetensors"
    tensors = {"x": (10 * zeroed(*shape, sparsity=1 - kept, seed=seed)).to(dtype)}
    save_sparse(path, tensors)
    assert same(path, tensors)


@pytest.mark.parametrize("dtype", _TYPES, ids=str)
@pytest.mark.parametrize("sparsity", [0.0, 0.7, 0.99])  # stored unchanged, with bits, with gaps
def test_every_data_type_is_read_back(dtype: torch.dtype, sparsity: float, tmp_path: Path) -> None:
    size = torch.zeros(1, dtype=dtype).element_size()
    count = torch.ones(600, dtype=torch.uint8).masked_fill_(zeroed(600, sparsity=sparsity) == 0, 0)
    tensors = {"x": count.repeat_interleave(size).view(dtype)}
    save_sparse(tmp_path / "x", tensors)
    assert same(tmp_path / "x", tensors)


@pytest.mark.parametrize(
    "odd",
    [
        torch.zeros(8, dtype=torch.complex64),
        torch.zeros(8, dtype=torch.complex128),
        torch.zeros(8).to_sparse(),
        torch.zeros(8, device="meta"),
    ],
    ids=lambda odd: f"{odd.dtype}-{odd.layout}-{odd.device}",
)
def test_tensors_that_safetensors_does_not_support_are_not_written(odd: Tensor, tmp_path: Path) -> None:
    with pytest.raises(MmpError, match="tensor 'odd': a sparse file cannot hold"):
        save_sparse(tmp_path / "x", {"a": torch.ones(2), "odd": odd})
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("zeros", [0, 1, 253, 254, 255, 256, 509, 510, 511, 5000])
def test_gaps_of_every_length_are_read_back(tmp_path: Path, zeros: int) -> None:
    gap = torch.zeros(zeros)
    tensors = {
        "between": torch.cat([torch.ones(1), gap, torch.ones(1), torch.zeros(4000)]),
        "first": torch.cat([gap, torch.ones(1), torch.zeros(4000)]),
        "last": torch.cat([torch.zeros(4000), torch.ones(1), gap]),
    }
    save_sparse(tmp_path / "x", tensors)
    assert same(tmp_path / "x", tensors)


def test_the_format_is_as_documented(tmp_path: Path) -> None:
    far = torch.zeros(1000)
    far[300], far[301], far[999] = 1, 2, 3  # after 300, 0 and 697 = 2 * 255 + 187 zeros
    near = torch.tensor([0.0, 4, 0, 5, 0, 0, 0, 0, 6, 0])
    save_sparse(tmp_path / "x", {"far": far, "near": near, "full": torch.ones(2)})
    stored = safetensors.torch.load_file(tmp_path / "x")
    assert {name: value.tolist() for name, value in stored.items()} == {
        "far|values": [1, 2, 3],
        "far|gaps": [255, 45, 0, 255, 255, 187],
        "near|values": [4, 5, 6],
        "near|bits": [0b01010000, 0b10000000],
        "full": [1, 1],
    }


def test_values_that_equal_zero_or_are_almost_zero_are_kept(tmp_path: Path) -> None:
    odd = torch.zeros(1000)
    odd[3], odd[500], odd[999] = -0.0, torch.tensor(1, dtype=torch.int32).view(torch.float32), float("nan")
    tied = zeroed(8, 8, sparsity=0.9)
    tensors = {
        "odd": odd,
        "scalar": torch.tensor(7),
        "tied.a": tied,
        "tied.b": tied,
        "turned": zeroed(30, 20, sparsity=0.9).T,
    }
    save_sparse(tmp_path / "x", tensors)
    assert same(tmp_path / "x", tensors)


@pytest.mark.parametrize(("sparsity", "most"), [(0.5, 0.54), (0.8, 0.24), (0.9, 0.13), (0.95, 0.07), (0.99, 0.02)])
def test_a_sparse_file_is_small(tmp_path: Path, sparsity: float, most: float) -> None:
    tensors = {"x": zeroed(500, 500, sparsity=sparsity)}
    save_sparse(tmp_path / "x", tensors)
    assert (tmp_path / "x").stat().st_size < most * 4 * 500 * 500


def test_a_file_without_zeros_is_only_slightly_larger_than_its_tensors(tmp_path: Path) -> None:
    save_sparse(tmp_path / "x", {"x": torch.ones(1000)})
    assert (tmp_path / "x").stat().st_size < 4000 + 300


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, bytes]:
    path = tmp_path / "small.safetensors"
    tensors = {
        "bits": zeroed(8, 9, sparsity=0.6),
        "gaps": zeroed(9, 20, sparsity=0.97),
        "n": torch.tensor(3),
        "b": torch.ones(5),
    }
    save_sparse(path, tensors)
    content = path.read_bytes()
    assert all(word in content for word in (b"bits|bits", b"gaps|gaps", b'"b"'))
    return path, content


@pytest.mark.slow
def test_every_changed_byte_is_an_error(small: tuple[Path, bytes]) -> None:
    path, content = small
    for at in range(len(content)):
        for flip in (1, 0x2A):  # 0x2A turns a blank into a newline, which JSON accepts as well
            path.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
            with pytest.raises(MmpError, match=r"do not match their checksum|not a sparse file"):
                load_sparse(path)


def test_every_truncation_and_every_addition_is_an_error(small: tuple[Path, bytes]) -> None:
    path, content = small
    for other in [*(content[:length] for length in range(len(content))), content + b"\0"]:
        path.write_bytes(other)
        with pytest.raises(MmpError):
            load_sparse(path)


def signed(stored: dict[str, Tensor], shapes: object, version: str = FORMAT) -> bytes:
    """Return a file with a valid checksum, even if its content is invalid."""
    notes = {"sha256": "0" * 64, "format": version, "shapes": shapes}
    content = safetensors.torch.save(stored, {"mmp": json.dumps(notes)})
    at = content.index(b"0" * 64)
    return content[:at] + hashlib.sha256(content).hexdigest().encode() + content[at + 64 :]


def gaps(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("stored", "shapes"),
    [
        ({"x|values": torch.ones(2), "x|gaps": gaps(0, 1)}, {"x": [10**12]}),  # terabytes of zeros
        ({"x|values": torch.ones(2), "x|gaps": gaps(0, 1)}, {"x": [2]}),  # a value beyond the end
        ({"x|values": torch.ones(3), "x|gaps": gaps(0, 1)}, {"x": [5]}),
        ({"x|values": torch.ones(2), "x|gaps": gaps(0, 1)}, {"x": [-1, -5]}),
        ({"x|values": torch.ones(2), "x|gaps": torch.ones(2)}, {"x": [5]}),
        ({"x|values": torch.ones(2), "x|bits": gaps(0xC0)}, {"x": [10**12]}),
        ({"x|values": torch.ones(3), "x|bits": gaps(0xC0)}, {"x": [8]}),
        ({"x|values": torch.ones(2), "x|bits": torch.ones(1)}, {"x": [8]}),
        ({"x|values": torch.ones(2)}, {"x": [8]}),
        ({}, {"x": [8]}),
        ({}, [1, 2]),
        ({"x|values": torch.ones(2), "x|bits": gaps(0xC0)}, {"x": "8"}),
        ({"x|values": torch.ones(2), "x|gaps": gaps(0, 1)}, {"x": [10**30]}),
        ({"x|values": torch.ones(2), "x|bits": gaps(0xC0)}, {"x": [10**30]}),
        ({"x|values": torch.ones(0), "x|bits": gaps()}, {"x": [0, 10**30]}),
        ({"x|values": torch.ones(2), "x|gaps": gaps(0, 1)}, {"x": [-1, -3]}),
        ({"x|values": torch.ones(2), "x|gaps": gaps(0, 1)}, {"x": [-3, -1]}),
        ({"x|values": torch.ones(3), "x|gaps": gaps(0, 0, 0)}, {"x": [True, 3]}),
        ({"x|values": torch.ones(2), "x|bits": gaps(0xC0), "x|gaps": gaps(0, 0)}, {"x": [8]}),
        ({"x|values": torch.ones(2), "x|bits": gaps(0xC0), "x|more": gaps(0)}, {"x": [8]}),
        ({"x|values": torch.ones(2), "x|bits": gaps(0xC0), "x": torch.ones(8)}, {"x": [8]}),
        ({"x|values": torch.ones(2), "x|bits": gaps(0xC0)}, {}),
        ({"x|values": torch.ones(2), "x|bits": gaps(0xC1)}, {"x": [7]}),  # a bit beyond the end
        ({"x|values": torch.ones(3), "x|bits": gaps(0xC1)}, {"x": [7]}),
        ({"x|values": torch.ones(2, 1), "x|bits": gaps(0xC0)}, {"x": [8]}),
        ({"x|values": torch.ones(2, 1), "x|gaps": gaps(0, 0)}, {"x": [2]}),
        ({"x|values": torch.ones(2), "x|gaps": gaps(0, 0)[None]}, {"x": [2]}),
        ({"x|values": torch.ones(1), "x|bits": gaps(0x80)[None]}, {"x": [8]}),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path, stored: dict[str, Tensor], shapes: object) -> None:
    (tmp_path / "x").write_bytes(signed(stored, shapes))
    with pytest.raises(MmpError, match="not a well-formed sparse file"):
        load_sparse(tmp_path / "x")


def test_other_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(MmpError, match="no such file"):
        load_sparse(tmp_path / "x")
    safetensors.torch.save_file({"x": torch.ones(2)}, tmp_path / "plain")
    torch.save({"x": torch.ones(2)}, tmp_path / "pickled")
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(1000))
    (tmp_path / "empty").touch()
    for name in ("plain", "pickled", "noise", "empty"):
        with pytest.raises(MmpError, match="not a sparse file"):
            load_sparse(tmp_path / name)
    (tmp_path / "newer").write_bytes(signed({}, {}, "mmp-sparse-2"))
    with pytest.raises(MmpError, match=r"mmp-sparse-2.*reads 'mmp-sparse-1'"):
        load_sparse(tmp_path / "newer")
    with pytest.raises(MmpError, match=r"'a\|b'"):
        save_sparse(tmp_path / "x", {"a|b": torch.ones(1)})
