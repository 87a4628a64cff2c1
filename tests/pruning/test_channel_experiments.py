"""What the experiments and checks of channels do with torch's global settings and generators."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from mmp import channel_groups, shrink
from mmp.pruning.channels.confirmed import confirmed_groups
from mmp.pruning.channels.precision import full_float32

IMAGES = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def of_kernels() -> list[str]:
    """Return the precision of products and convolutions of float32, on GPUs and on CPUs."""
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    return [place.fp32_precision for place in (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv)]


class Watching(nn.Module):
    """Records the precision of its forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.seen = nn.Linear(4, 6), nn.Linear(6, 2), set[str]()
        self.b.weight.data[:, 0] = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen.update(of_kernels())
        return self.b(torch.relu(self.a(x)))

    def __deepcopy__(self, _: object) -> Watching:
        copied = Watching()
        copied.load_state_dict(self.state_dict())
        copied.seen = self.seen
        return copied


@pytest.fixture(params=["medium", "highest"])
def coarse(request: pytest.FixtureRequest) -> Iterator[None]:
    """Allow fewer bits: TF32 in convolutions, as by default, and in products, as scripts for GPUs often do."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("needs torch 2.9")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("call", [channel_groups, confirmed_groups, shrink])
def test_experiments_and_checks_have_full_precision(call: Callable[..., object], coarse: None) -> None:
    network, before = Watching(), of_kernels()
    assert "tf32" in before
    call(network, IMAGES[:1])
    assert network.seen <= {"ieee", "none"}
    assert of_kernels() == before


def test_the_precision_is_restored_after_an_error(coarse: None) -> None:
    before = of_kernels()

    def stop() -> None:
        assert "tf32" not in of_kernels()
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"), full_float32():
        stop()
    assert of_kernels() == before
    torch.backends.cudnn.allow_tf32  # noqa: B018 (torch raises if settings disagree)


@pytest.mark.parametrize("newer", [False, True])
def test_settings_of_both_kinds_are_respected(newer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("needs torch 2.9")
    if newer:
        monkeypatch.setattr(torch.backends, "fp32_precision", "tf32")
    before = of_kernels()
    with full_float32():
        assert "tf32" not in of_kernels()
        if not newer:  # a network may use the older settings, which torch refuses to read beside newer ones
            assert not torch.backends.cudnn.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"
            with torch.backends.cudnn.flags(enabled=True, deterministic=True):
                pass
    assert of_kernels() == before


def test_before_torch_2_9_the_older_settings_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Older:
        allow_tf32 = True

    monkeypatch.setattr(torch.backends, "cuda", type("cuda", (), {"matmul": Older()}))
    monkeypatch.setattr(torch.backends, "cudnn", older := Older())
    written: list[str] = []
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    monkeypatch.setattr(torch, "set_float32_matmul_precision", written.append)
    with full_float32():
        assert not older.allow_tf32
        assert written == ["highest"]
    assert older.allow_tf32
    assert written == ["highest", "medium"]


@pytest.mark.parametrize("call", [channel_groups, confirmed_groups, shrink])
def test_generators_of_gpus_are_left_alone(call: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a GPU's generator was touched")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("get_rng_state", "set_rng_state", "manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, fail)
    call(Watching(), IMAGES[:1])
