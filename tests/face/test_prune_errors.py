"""Every mistake in a call of ``mmp.prune`` is one ``MmpError``, raised before any work is done."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor, nn

import mmp
import mmp.method
from mmp.pruning import structure

IMAGES, LABELS = torch.randn(16, 3, 8, 8), torch.arange(16) % 10


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))


def spoilt(change: Callable[[nn.Module], None]) -> nn.Module:
    model = net()
    with torch.no_grad():
        change(model)
    return model


def with_nan(images: Tensor) -> Tensor:
    images = images.clone()
    images[3, 1, 2, 2] = torch.nan
    return images


def used(images: Tensor) -> Any:
    iterator = iter([images])
    list(iterator)
    return iterator


class Named(nn.Module):
    """A network whose output is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.body(images)}


def compiled_in_place() -> nn.Module:
    model = net()
    model.compile(backend="eager")
    return model


def under_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return net()


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    # words
    "signal": ({"signal": "magnitud"}, "signal=magnitud: no such choice; did you mean 'magnitude'?"),
    "signal that is a class": ({"signal": mmp.Magnitude}, "must be a name in conf/signal, or an object with name"),
    "signal that is no signal": ({"signal": 3}, "signal=3: must be a name in conf/signal"),
    "strategy": ({"strategy": "p71"}, "strategy=p71: no such choice; did you mean 'p70'?"),
    "strategy that is none": ({"strategy": None}, "strategy=None: no such choice"),
    "ranges": ({"ranges": "genric"}, "ranges=genric: no such choice; did you mean 'generic'?"),
    "ranges of another model": ({"ranges": "swin"}, "ranges=swin: rule 1"),
    "pattern": ({"pattern": "2-4"}, "pattern=2-4: no such pattern"),
    "pattern that nothing fits": ({"pattern": "3:7", "budget": 0.5}, "pattern=3:7 fits the shape of no layer"),
    "pattern that needs more": ({"pattern": "1:4", "budget": 0.1}, "pattern=1:4 needs layers that are 75 % sparse"),
    "reconstruct": ({"reconstruct": "least_square"}, "reconstruct=least_square: no such choice; did you mean 'least_s"),
    "reconstruct that is a bool": ({"reconstruct": True}, "reconstruct=True: must be one of the words none, least_"),
    "reconstruct that is false": (
        {"reconstruct": False, "images": IMAGES},
        "reconstruct=False: must be one of the words none, least_squares, joint",
    ),
    "reconstruct that is empty": ({"reconstruct": "", "images": IMAGES}, "reconstruct=: no such choice"),
    "joint with few images": (
        {"reconstruct": "joint", "images": IMAGES},
        "joint tuning needs at least 64 images, of which it holds out 32, but there are 16; pass more",
    ),
    "signal and criterion": (
        {"signal": "magnitude", "criterion": "lamp", "budget": 0.5},
        "signal=magnitude: criterion=lamp scores the weights; set one of the two",
    ),
    "criterion": ({"criterion": "lam"}, "criterion=lam: no such choice; did you mean 'lamp'?"),
    # budgets
    "budget in percent": ({"budget": 90}, "budget=90: must be a global sparsity in [0, 1)"),
    "budget in words": ({"budget": "90 %"}, "budget='90 %': must be a number, a global sparsity"),
    "budget beyond the ranges": ({"budget": 0.985}, "budget=0.985 is out of reach: strategy balanced can be shifted"),
    "megabytes": ({"budget": mmp.Budget(megabytes=9)}, "budget.megabytes=9 is out of reach: strategy balanced"),
    "megabytes of a criterion": (
        {"budget": mmp.Budget(megabytes=9), "criterion": "lamp"},
        "budget.megabytes=9 is out of reach: a criterion can prune",
    ),
    "budget of no strategy": ({"budget": mmp.Budget(strategies={"p71": 0.5})}, "budget.strategies.p71: no such"),
    # what is missing
    "images for a signal": ({"signal": "obs"}, "signal=obs needs images; pass images=..."),
    "images for a gradient": ({"signal": "product"}, "signal=product needs images; pass images=..."),
    "images for re-solving": ({"reconstruct": "least_squares"}, "reconstruct=least_squares needs images; pass images="),
    "images for ranges": ({"ranges": "observed"}, "ranges=observed needs images; pass images=..."),
    "images for a criterion": ({"criterion": "snip", "budget": 0.5}, "criterion=snip needs images; pass images=..."),
    "labels for a signal": ({"signal": "gradient", "images": IMAGES}, "signal=gradient needs labels; pass labels=..."),
    "labels for half the signal": ({"signal": "obs_fisher", "images": IMAGES}, "signal=obs_fisher needs labels"),
    "labels for ranges": ({"ranges": "observed", "images": IMAGES}, "ranges=observed needs labels; pass labels=..."),
    "labels of one batch": ({"signal": "product", "images": [(IMAGES, LABELS), IMAGES]}, "signal=product needs labels"),
    # images
    "no batch": ({"images": []}, "images is empty"),
    "no image": ({"images": IMAGES[:0]}, "images is empty"),
    "an iterator that is used up": ({"images": used(IMAGES)}, "images is empty; an iterator can be read only once"),
    "one image": ({"images": IMAGES[0]}, "images: batch 0 has the shape (3, 8, 8); it must be (B, C, H, W)"),
    "images one by one": ({"images": [IMAGES[0], IMAGES[1]]}, "images: batch 0 has the shape (3, 8, 8)"),
    "images and labels in a pair": ({"images": (IMAGES, LABELS)}, "images: batch 1 has the shape (16,)"),
    "a number": ({"images": 512}, "images is a int; pass a tensor"),
    "a file": ({"images": ["cat.png"]}, "images: batch 0 is a str; it must be a tensor"),
    "a dictionary": ({"images": [{"pixels": IMAGES}]}, "images: batch 0 is a dict; it must be a tensor"),
    "bytes": ({"images": IMAGES.to(torch.uint8)}, "images: batch 0 is of torch.uint8; convert and normalise"),
    "NaN": ({"images": [IMAGES, with_nan(IMAGES)]}, "images: batch 1 holds NaN or infinity"),
    "channels": ({"images": IMAGES[:, :1]}, "images: Sequential does not accept torch.float32 of shape (1, 1, 8, 8)"),
    "size": ({"images": [IMAGES, IMAGES[..., :7]]}, "Sequential does not accept torch.float32 of shape (1, 3, 8, 7)"),
    "type": ({"images": IMAGES.double()}, "Sequential does not accept torch.float64 of shape (1, 3, 8, 8)"),
    # labels
    "too few labels": ({"images": IMAGES, "labels": LABELS[:15]}, "labels has 15 entries for 16 images"),
    "no labels": ({"images": IMAGES, "labels": []}, "labels has 0 entries for 16 images"),
    "too few in a pair": ({"images": [(IMAGES, LABELS[:9])]}, "images: batch 0 has 16 images with labels (9,)"),
    "labels twice": ({"images": [(IMAGES, LABELS)], "labels": LABELS}, "labels are given twice"),
    "labels that are words": ({"images": IMAGES, "labels": ["cat"] * 16}, "labels cannot be read as a tensor"),
    "a label": ({"images": IMAGES, "labels": 3}, "labels cannot be read as a tensor"),
    "a class too many": (
        {"images": IMAGES, "labels": LABELS + 1, "signal": "product"},
        "labels are from 1 to 10, but the model has the classes 0 to 9",
    ),
    "a negative class": (
        {"images": IMAGES, "labels": LABELS - 1, "signal": "product", "loss": nn.CrossEntropyLoss()},
        "labels are from -1 to 8, but the model has the classes 0 to 9",
    ),
    "labels of another type": (
        {"images": IMAGES, "labels": LABELS.double(), "signal": "product"},
        "labels: the loss does not accept torch.float64 of shape (1,)",
    ),
    "outputs that are no tensor": (
        {"model": Named(), "images": IMAGES, "labels": LABELS, "signal": "product"},
        "labels: the loss does not accept",
    ),
    # models
    "replicas": ({"model": nn.DataParallel(net())}, "model is a DataParallel; pass the module inside it (model.mod"),
    "a script": ({"model": torch.jit.script(net())}, "model is a script of TorchScript; pass the module that it was"),
    "a traced model": ({"model": torch.jit.trace(net().eval(), IMAGES)}, "model is a script of TorchScript; pass the"),
    "a compiled model": (
        {"model": torch.compile(net(), backend="eager")},
        "model is compiled; pass the module inside it (model._orig_mod), and compile the result",
    ),
    "a compiled part": (
        {"model": nn.Sequential(torch.compile(net(), backend="eager"))},
        "model.0 is compiled; pass the module inside it (model.0._orig_mod)",
    ),
    "a model compiled in place": ({"model": compiled_in_place()}, "model is compiled in place; prune the model first"),
    "inference tensors": (
        {"model": under_inference_mode(), "images": IMAGES},
        "model: '0.weight' was made under torch.inference_mode()",
    ),
    "complex weights": (
        {"model": nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64))},
        "Sequential has no prunable layer: no convolution, linear, attention or recurrent weight of two or more "
        "dimensions; complex numbers 100.0 %",
    ),
    "no model": ({"model": "resnet18"}, "model is a str; pass a torch.nn.Module"),
    "no layer": ({"model": nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3))}, "Sequential has no prunable layer"),
    "no values": ({"model": net().to("meta")}, "model: '0.weight' is on the meta device and has no values"),
    "NaN in a weight": (
        {"model": spoilt(lambda model: model[0].weight[3, 1].fill_(torch.nan))},
        "model: '0.weight' holds NaN or infinity",
    ),
    "infinity in a bias": (
        {"model": spoilt(lambda model: model[4].bias[3].fill_(torch.inf))},
        "model: '4.bias' holds NaN or infinity",
    ),
    "NaN in a running mean": (
        {"model": spoilt(lambda model: model[1].running_mean.fill_(torch.nan))},
        "model: '1.running_mean' holds NaN or infinity",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_error_before_any_work(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, message = MISTAKES[mistake]
    model = arguments.get("model", net())
    options = {key: value for key, value in arguments.items() if key != "model"}

    def work(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("work was done")

    for function in ("collect", "observe", "score", "reconstruct_layers", "dense_targets"):
        monkeypatch.setattr(mmp.method, function, work)
    monkeypatch.setattr(structure, "make_grid", work)
    with pytest.raises(mmp.MmpError, match=re.escape(message)) as error:
        mmp.prune(model, **options)
    assert "\n" not in str(error.value)
    single = {"strategy", "criterion"} & options.keys()
    if not single:
        with pytest.raises(mmp.MmpError):
            mmp.prune_all(model, **options)


def test_all_strategies_are_named_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(mmp.MmpError, match=r"strategy=p71: no such choice"):
        mmp.prune_all(net(), strategies=["p70", "p71"])


def test_inference_mode_is_refused_where_images_are_used() -> None:
    with torch.inference_mode():
        with pytest.raises(mmp.MmpError, match=r"use torch\.no_grad\(\) there"):
            mmp.prune(net(), 0.5, IMAGES)
        assert mmp.prune(net(), 0.5).sparsity == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("group", "way_out"),
    [
        ("strategy", "pass a Strategy"),
        ("ranges", "pass a RangeTable"),
        ("signal", "pass an object with name, needs and score"),
        ("criterion", "pass a Criterion"),
        ("reconstruct", "choose from: joint, least_squares, none"),
    ],
)
def test_a_file_that_only_commands_read_is_named(
    group: str, way_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("conf", group, "my_own.yaml")
    file.parent.mkdir(parents=True)
    file.write_text("name: my_own")
    message = (
        f"{group}=my_own: no built-in choice; only commands read {file} of the working folder, so in Python {way_out}"
    )
    with pytest.raises(mmp.MmpError, match=re.escape(message)):
        mmp.prune(net(), 0.5, **{group: "my_own"})
