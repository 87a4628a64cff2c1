"""``python -m mmp.export`` as a user runs it: the files that it writes are read and executed independently."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import warm
from composing import composed
from omegaconf import OmegaConf
from onnx import numpy_helper
from resources import needs
from sweeping import ROOT, arguments, environment
from torch import Tensor

import mmp.export.latency
import mmp.export.write
from mmp.config.schema import PruneConfig
from mmp.config.validate import validate
from mmp.data.module import ImageData
from mmp.data.readers import READERS
from mmp.export.__main__ import main, read_options
from mmp.export.card import as_card
from mmp.export.measure import compressed_size
from mmp.export.result import ExportResult
from mmp.export.source import ExportedRun, load_config
from mmp.export.targets import load_target
from mmp.export.write import export_run
from mmp.files import is_locked, replaced_folder
from mmp.models.networks import build_model, fill_input
from mmp.models.weights import load_weights
from mmp.pruning.masks import load_masks
from mmp.tensors import load_tensors, save_tensors
from mmp.training.dense import dense_file

pytestmark = pytest.mark.slow

TARGETS = ("onnx", "onnx_int8", "sparse")
MODELS = ("cnn", "vit")
QUICK = ("seconds=0",)


def export(*words: object) -> subprocess.CompletedProcess[str]:
    return warm.run(["-m", "mmp.export", *map(str, words)], environment())


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pruned models on digits, each exported to all targets."""
    results = tmp_path_factory.mktemp("results")
    options = ["model=cnn,vit", "strategy=p70", "budget=0.9", "dense.epochs=12", "finetune.epochs=3"]
    done = warm.run(arguments(results, *options)[1:], environment())
    assert done.returncode == 0, done.stderr
    folder = results / "sweeps/sweep"
    done = export(folder, "select=all", f"target={','.join(TARGETS)}", *QUICK)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(MODELS) * len(TARGETS)
    return folder


@pytest.fixture
def run(sweep: Path, request: pytest.FixtureRequest) -> Path:
    """The folder of one of the two models; the CNN unless a test says otherwise."""
    (folder,) = sweep.glob(f"{getattr(request, 'param', 'cnn')}-*")
    return folder


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A copy of the CNN's folder, for tests that change it."""
    return Path(shutil.copytree(run, tmp_path / run.name))


def read(run: Path, target: str) -> dict[str, Any]:
    return json.loads((run / "export" / target / "export.json").read_text())


def session_of(run: Path, target: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(run / "export" / target / "model.onnx", providers=["CPUExecutionProvider"])


def images_and_labels(run: Path) -> tuple[Tensor, Tensor]:
    config = load_config(run)
    batches = list(ImageData(config.data, config.seed).test_dataloader())
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


@pytest.mark.parametrize("run", MODELS, indirect=True)
def test_float32_is_as_accurate_as_pytorch_and_int8_almost(run: Path) -> None:
    images, labels = images_and_labels(run)
    config = load_config(run)
    model = build_model(config.model).eval()
    load_weights(model, run / "model.safetensors")
    with torch.inference_mode():
        expected = 100 * float((model(images).argmax(1) == labels).double().mean())
    found = {}
    for target in ("onnx", "onnx_int8"):
        (logits,) = session_of(run, target).run(["logits"], {"images": images.numpy()})
        found[target] = 100 * float((logits.argmax(1) == labels.numpy()).mean())
        accuracy = read(run, target)["accuracy"]
        assert accuracy["samples"] == len(labels) == 360
        assert 100 * accuracy["file"] == pytest.approx(found[target])
        assert 100 * accuracy["pytorch"] == pytest.approx(expected, abs=1e-4)
        assert accuracy["difference"] == pytest.approx(found[target] - expected, abs=1e-4)
    assert abs(found["onnx"] - expected) <= 0.05
    one_image = 100 / 360  # 0.28 points; 0.5 points, which are promised for CNNs, are one image
    assert abs(found["onnx_int8"] - found["onnx"]) <= (0.5 if "cnn" in run.name else 4 * one_image)
    assert read(run, "sparse")["accuracy"]["file"] == pytest.approx(expected / 100)


@pytest.mark.parametrize("target", ["onnx", "onnx_int8"])
@pytest.mark.parametrize("run", MODELS, indirect=True)
def test_zeros_survive_folding_and_rounding(run: Path, target: str, tmp_path: Path) -> None:
    graph = onnx.load(run / "export" / target / "model.onnx").graph
    stored = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    whole, nonzero = load_masks(run / "masks.safetensors"), 0
    masks = ExportedRun(run, (), tmp_path).source.masks  # of the network without the channels that nothing reads
    assert ("vit" in run.name) == (masks != whole)
    for name, mask in masks.items():
        (held,) = [key for key in stored if re.fullmatch(rf"{re.escape(name)}(\.T)?(_quantized)?", key)]
        assert stored[held].dtype == (np.int8 if target == "onnx_int8" else np.float32)
        weight = stored[held].T if ".T" in held.removeprefix(name) else stored[held]
        assert not weight[~mask.numpy()].any()
        nonzero += int(np.count_nonzero(weight))
    counts, kept = read(run, target)["weights"], masks.total - sum(masks.pruned.values())
    assert (counts["prunable"], counts["nonzero"]) == (whole.total, nonzero)
    assert counts["kept"] == whole.total - sum(whole.pruned.values())
    assert counts["removed"] == counts["kept"] - kept
    assert counts["sparsity"] == pytest.approx(1 - nonzero / whole.total)
    assert counts["sparsity_of_masks"] == whole.sparsity
    assert counts["rounded_to_zero"] == kept - nonzero
    if target == "onnx":
        assert nonzero == kept
        assert "BatchNormalization" not in {node.op_type for node in graph.node}
    else:
        assert 0 <= kept - nonzero < 0.01 * kept


@pytest.mark.parametrize("run", MODELS, indirect=True)
def test_linear_layers_have_int8_inputs_and_float32_outputs(run: Path) -> None:
    graph = onnx.load(run / "export/onnx_int8/model.onnx").graph
    made = {name: node.op_type for node in graph.node for name in node.output}
    readers = [(node, name) for node in graph.node for name in node.input]
    linear = [node for node in graph.node if node.op_type in ("Gemm", "MatMul") and ".weight" in node.input[1]]
    assert linear
    for node in linear:
        assert made[node.input[0]] == made[node.input[1]] == "DequantizeLinear"
        assert "QuantizeLinear" not in {reader.op_type for reader, name in readers if name in node.output}


@pytest.mark.parametrize("target", ["onnx", "onnx_int8"])
@pytest.mark.parametrize("run", MODELS, indirect=True)
def test_any_batch_size(run: Path, target: str) -> None:
    images = images_and_labels(run)[0][:7].numpy()
    session = session_of(run, target)
    (together,) = session.run(["logits"], {"images": images})
    alone = np.concatenate([session.run(["logits"], {"images": images[i : i + 1]})[0] for i in range(7)])
    assert together.shape == (7, 10)
    assert np.abs(together - alone).max() < 1e-4 * np.abs(together).max()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("run", MODELS, indirect=True)
def test_the_card_says_how_to_load_the_file(run: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run / "export" / target
    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(code.splitlines()) <= 5
    monkeypatch.chdir(folder)
    images = images_and_labels(run)[0][:4]
    scope: dict[str, Any] = {"images": images}
    exec(code, scope)  # as a reader would paste it
    model = build_model(load_config(run).model).eval()
    load_weights(model, run / "model.safetensors")
    expected = model(images).detach()
    difference = (torch.as_tensor(scope["logits"]).detach() - expected).abs().max() / expected.abs().max()
    assert float(difference) < (0.2 if target == "onnx_int8" else 1e-4)
    content = read(run, target)
    assert f"{100 * content['accuracy']['file']:.2f} %" in card
    assert f"{content['bytes']['compressed'] / 1e6:.3f}" in card
    assert f"onnxruntime {onnxruntime.__version__}" in card or target == "sparse"
    assert "Not measured" in card


@pytest.mark.parametrize("run", MODELS, indirect=True)
def test_the_sizes_of_the_files_are_reported(run: Path) -> None:
    dense = (run / "model.safetensors").stat().st_size
    for target in TARGETS:
        content = read(run, target)
        sizes = content["bytes"]
        assert sizes["file"] == (run / "export" / target / next(iter(content["files"]))).stat().st_size
        assert sizes["dense_fp32"] == dense
        assert sizes["compressed"] < 0.3 * sizes["dense_compressed"]
        assert content["dense_weights"] == "trained"
    assert read(run, "sparse")["bytes"]["file"] <= 0.20 * dense
    assert read(run, "onnx_int8")["bytes"]["file"] < 0.35 * dense


def test_no_file_contains_paths_of_this_machine(run: Path) -> None:
    for path in (run / "export").rglob("*"):
        if path.is_file():
            assert str(ROOT).encode() not in path.read_bytes(), path
            assert b"site-packages" not in path.read_bytes(), path


def test_a_sparse_file_has_every_bit_of_the_weights(run: Path) -> None:
    from mmp.export.sparse_file import load_sparse

    state = load_sparse(run / "export/sparse/model.sparse.safetensors")
    expected = load_tensors(run / "model.safetensors")
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_the_same_command_again_repeats_only_damaged_exports(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {target: copied / "export" / target / next(iter(read(copied, target)["files"])) for target in TARGETS}
    before = {target: path.stat().st_mtime_ns for target, path in files.items()}
    content = bytearray(files["sparse"].read_bytes())
    content[-1] ^= 1
    files["sparse"].write_bytes(content)
    (copied / "export/.sparse.dead/fresh").mkdir(parents=True)
    assert main([str(copied), f"target={','.join(TARGETS)}", *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["already there" in line for line in lines] == [True, True, False]
    after = {target: path.stat().st_mtime_ns for target, path in files.items()}
    assert [after[target] == before[target] for target in TARGETS] == [True, True, False]
    assert not list((copied / "export").glob(".*"))
    assert main([str(copied), "target=sparse", "force=true", *QUICK]) == 0
    assert "already" not in capsys.readouterr().out


def test_a_failed_target_stops_no_other_and_leaves_nothing_half_written(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copied / "export/onnx")
    old = read(copied, "onnx_int8")

    def fail(*_: object, **__: object) -> None:
        raise ValueError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", fail)
    assert main([str(copied), "target=onnx,onnx_int8,sparse", "force=true", *QUICK]) == 1
    printed = capsys.readouterr()
    assert [line.split(":")[0] for line in printed.err.splitlines()] == ["error", "error"]
    for part in ("cnn as target=onnx:", "no such operator", "target=sparse", "pip install --upgrade 'mmp[export]'"):
        assert part in printed.err
    assert len(printed.out.splitlines()) == 1
    assert not (copied / "export/onnx").exists()
    assert read(copied, "onnx_int8") == old
    assert not list((copied / "export").glob(".*"))


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    for attempt in (1, 2):
        with replaced_folder(tmp_path / "made") as fresh:
            (fresh / f"{attempt}").touch()

    def fail() -> None:
        with replaced_folder(tmp_path / "made") as fresh:
            (fresh / "3").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "2"]


def again(run: Path, *words: str) -> list[tuple[str, Path, dict[str, Any]]]:
    """Export a run, to target sparse by default; return each outcome with its export.json or its error."""
    chosen = [] if any(word.startswith("target=") for word in words) else ["target=sparse"]
    names, options = read_options([*chosen, *QUICK, *words])
    outcomes = export_run(run, [load_target(name) for name in names], options)
    return [(one.status, one.folder, one.result.to_dict() if one.result else {"error": one.error}) for one in outcomes]


def test_a_changed_run_is_exported_again(copied: Path) -> None:
    ((outcome, _, content),) = again(copied)
    assert outcome == "unchanged"
    with (copied / "config.yaml").open("a") as file:
        file.write("# moved\n")
    ((outcome, _, other),) = again(copied)
    assert outcome == "written"
    assert other["files"] == content["files"]


def test_a_run_on_other_images_is_not_up_to_date(copied: Path) -> None:
    # A run without training has the same weights, masks and settings after images of its test split were replaced.
    result = json.loads((copied / "result.json").read_text())
    (copied / "result.json").write_text(json.dumps({**result, "data_fingerprint": "of other images"}))
    ((outcome, _, content),) = again(copied)
    assert outcome == "failed"
    assert "not the images of the run" in content["error"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["criterion=lamp", "budget=0.9"],
        ["allocation=searched", "signal=obs_fisher", "reconstruct=least_squares", "finetune=auto"],
        ["ranges=observed", "schedule=cubic", "finetune=strong", "logger=many"],
        ["experiment=paper/swin_tiny_cifar100", "data.root=images", "strategy=p70"],
    ],
    ids=lambda value: value[0],
)
def test_the_saved_configuration_is_loaded(tmp_path: Path, overrides: list[str]) -> None:
    config = config_of(*overrides, f"paths.results={tmp_path}")
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
    assert load_config(tmp_path) == config
    moved = load_config(tmp_path, ["data.root=elsewhere", "data.eval_batch_size=8"])
    assert (moved.data.root, moved.data.eval_batch_size) == ("elsewhere", 8)


def test_a_missing_dense_model_is_replaced_by_one_of_its_size(copied: Path) -> None:
    text = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(re.sub(r"cache: .*", f"cache: {copied}/nowhere", text))
    ((outcome, _, content),) = again(copied)
    assert outcome == "written"
    assert content["dense_weights"] == "random where the run pruned them, the others scaled"
    assert content["bytes"]["dense_compressed"] > 0.8 * content["bytes"]["dense_fp32"]


def test_a_damaged_dense_model_is_replaced_with_a_warning(
    copied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(copied)
    _, path = dense_file(config, ImageData(config.data, config.seed))
    text = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(re.sub(r"cache: .*", f"cache: {tmp_path}/cache", text))
    (tmp_path / "cache/dense").mkdir(parents=True)
    (tmp_path / "cache/dense" / path.name).write_bytes(path.read_bytes()[:-8])
    ((outcome, place, content),) = again(copied)
    assert outcome == "written", content
    origin = "random where the run pruned them, the others scaled, because the trained ones cannot be read"
    assert content["dense_weights"] == origin
    assert origin in (place / "README.md").read_text()
    assert path.name in caplog.text


def test_the_dense_model_is_exported_in_the_same_way(run: Path, tmp_path: Path) -> None:
    from mmp.export.sparse_file import save_sparse

    config, sizes = load_config(run), read(run, "sparse")["bytes"]
    _, path = dense_file(config, ImageData(config.data, config.seed))
    save_sparse(tmp_path / "dense", load_tensors(path))
    assert sizes["dense_file"] == (tmp_path / "dense").stat().st_size
    assert sizes["dense_compressed"] == compressed_size([tmp_path / "dense"]) < sizes["dense_file"]


def test_int8_is_calibrated_on_the_calibration_split(run: Path, tmp_path: Path) -> None:
    source = ExportedRun(run, (), tmp_path).source
    config = load_config(run)
    data = ImageData(config.data, config.seed)
    plain, chosen = READERS["digits"](config.data).plain, data.indices["calibration"].tolist()
    expected = torch.stack([plain[index][0] for index in chosen])
    for _ in range(2):
        images = torch.cat(list(source.batches))
        assert torch.equal(images, expected)
    assert torch.equal(source.images, images[:3])


def test_the_run_is_locked_while_it_is_exported(copied: Path) -> None:
    names, options = read_options(["target=sparse,onnx", *QUICK])
    outcomes = export_run(copied, [load_target(name) for name in names], options)
    next(outcomes)
    assert is_locked(copied / ".lock")
    assert len(list(outcomes)) == 1
    assert not is_locked(copied / ".lock")


def test_latency_compares_the_file_with_the_dense_model(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned, images = ExportedRun(copied, (), tmp_path).source.model, images_and_labels(copied)[0][:4]
    seconds: list[float] = []

    def timed(model: Any, *_: Any) -> float:
        seconds.append(1.0 if torch.equal(model(images), pruned(images)) else 4.0)
        return seconds[-1]

    monkeypatch.setattr(mmp.export.latency, "_timed", timed)
    ((_, place, content),) = again(copied, "force=true", "seconds=0.01")
    assert {*seconds} == {1.0, 4.0}
    assert [(one["seconds"], one["dense_seconds"], one["ratio"]) for one in content["latency"]] == [(1, 4, 0.25)] * 2
    assert ", no difference seen" not in (place / "README.md").read_text()


def test_the_card_says_where_no_difference_was_seen(run: Path) -> None:
    timing = {"batch": 1, "pairs": 9, "seconds": 1.0, "dense_seconds": 1.0, "ratio": 0.9}
    for quartiles, seen in (([0.8, 0.99], True), ([0.8, 1.0], False), ([0.9, 1.3], False), ([1.01, 1.3], True)):
        content = {**read(run, "sparse"), "latency": [{**timing, "quartiles": quartiles}]}
        assert ("| 0.90, no difference seen |" in as_card(ExportResult.from_dict(content), "")) != seen


def test_an_export_without_latency_is_repeated_if_latency_is_wanted(copied: Path) -> None:
    for seconds, outcome in (("0", "unchanged"), ("0.01", "written"), ("0.01", "unchanged"), ("0", "unchanged")):
        ((found, *_),) = again(copied, f"seconds={seconds}")
        assert found == outcome


def test_a_package_is_found_by_the_name_of_its_module(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"onnxruntime-gpu": "1.2.3"}

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise PackageNotFoundError(name)
        return numbers.get(name, "0")

    monkeypatch.setattr(mmp.export.write, "packages_distributions", lambda: {"onnxruntime": ["onnxruntime-gpu"]})
    monkeypatch.setattr(mmp.export.write, "version", version)
    ((outcome, _, content),) = again(copied, "target=onnx")
    assert outcome == "written"
    assert content["versions"]["onnxruntime"] == "1.2.3"


def test_targets_of_several_words_are_joined(copied: Path) -> None:
    names, _ = read_options(["target=sparse,onnx", "target=onnx_int8,sparse", "target=onnx"])
    assert names == ["sparse", "onnx", "onnx_int8"]


def test_ctrl_c_exits_without_a_traceback(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read(copied, "sparse")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mmp.export.write, "write_export", interrupt)
    assert main([str(copied), "target=sparse", "force=true", *QUICK]) == 130
    assert capsys.readouterr().err.startswith("interrupted")
    assert read(copied, "sparse") == before
    assert not list((copied / "export").glob(".*"))


def config_of(*overrides: str) -> PruneConfig:
    config = validate(composed(*overrides))
    fill_input(config)
    return config


def code_in(recipe: str) -> list[str]:
    return re.findall(r"`(.*?)`", recipe)


@pytest.mark.parametrize("size", [8, 16, 20])
def test_the_recipe_prepares_raw_images(size: int) -> None:
    from sklearn.datasets import load_digits

    config = config_of("data=digits", f"data.image_size={size}", "data.crop_pct=0.9")
    data = ImageData(config.data, 0)
    pixels = torch.from_numpy(load_digits().images * 255 / 16).round()[:, None][data.indices["test"]]
    *resize, scale = code_in(data.recipe)
    assert ("not resized" in data.recipe) == (size == 8) == (not resize)
    scope: dict[str, Any] = {"torch": torch, "mean": config.data.mean[0], "std": config.data.std[0]}
    for code in (*resize, scale):
        pixels = eval(code, {**scope, "pixels": pixels})
    torch.testing.assert_close(torch.cat([x for x, _ in data.test_dataloader()]), pixels.float())


@pytest.mark.parametrize("channels", [1, 3])
def test_the_recipe_of_files_is_timms(tmp_path: Path, channels: int) -> None:
    import PIL.ImageOps
    import timm.data
    from PIL import Image

    noise = np.random.default_rng(0)
    for number in range(60):
        path = tmp_path / "train" / f"class{number % 2}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(256, size=(40, 50, 3), dtype=np.uint8)).save(path)
    shape = ["data.classes=2", f"data.channels={channels}", f"model.in_chans={channels}", "data.image_size=32"]
    scale = [f"data.mean={[0.4] * channels}", f"data.std={[0.2] * channels}", "data.crop_pct=0.9"]
    settings = [
        "data=imagefolder",
        f"data.root={tmp_path}",
        "data.calibration=0.1",
        *shape,
        *scale,
        "data.interpolation=bilinear",
    ]
    data = ImageData(config_of(*settings).data, 0)
    opened, *steps, create = code_in(data.recipe)
    scope = {"timm": timm, "PIL": PIL, "numpy": np, "white": 65535}
    path = sorted((tmp_path / "train").rglob("*.png"))[data.indices["validation"][0]]
    image = eval(opened, {**scope, "path": path})
    for step in steps:
        image = eval(step, {**scope, "image": image})
    expected = eval(create, scope)(image)
    assert torch.equal(next(iter(data.val_dataloader()))[0][0], expected)


def test_the_card_has_the_recipe(run: Path) -> None:
    config = load_config(run)
    recipe = ImageData(config.data, config.seed).recipe
    assert f"for any batch size B, prepared as follows: {recipe}." in (run / "export/sparse/README.md").read_text()


def test_latency_is_measured_at_one_and_32(copied: Path) -> None:
    ((_, place, content),) = again(copied, "force=true", "seconds=0.01")
    assert [(one["batch"], one["pairs"] >= 5) for one in content["latency"]] == [(1, True), (32, True)]
    assert "quartiles of the ratio" in (place / "README.md").read_text()


@needs("openvino")
@pytest.mark.parametrize("run", MODELS, indirect=True)
def test_openvino_is_as_accurate_as_pytorch(copied: Path) -> None:
    import openvino

    ((outcome, place, content),) = again(copied, "target=openvino")
    assert outcome == "written", content
    assert sorted(path.name for path in place.iterdir()) == ["README.md", "export.json", "model.bin", "model.xml"]
    assert content["accuracy"]["difference"] == pytest.approx(0, abs=1e-4)
    assert content["weights"]["nonzero"] == content["weights"]["kept"] - content["weights"]["removed"]
    assert content["bytes"]["file"] == sum((place / name).stat().st_size for name in ("model.xml", "model.bin"))
    assert str(ROOT) not in (place / "model.xml").read_text()
    images, labels = images_and_labels(copied)
    logits = openvino.compile_model(place / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images.numpy())[0]
    assert float((logits.argmax(1) == labels.numpy()).mean()) == pytest.approx(content["accuracy"]["file"])
    (place / "model.bin").write_bytes(b"")
    ((outcome, *_),) = again(copied, "target=openvino")
    assert outcome == "written"


@needs("executorch")
@pytest.mark.parametrize("run", MODELS, indirect=True)
def test_executorch_is_as_accurate_as_pytorch(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ((outcome, place, content),) = again(copied, "target=executorch")
    assert outcome == "written", content
    assert capfd.readouterr() == ("", "")
    assert sorted(path.name for path in place.iterdir()) == ["README.md", "export.json", "model.pte"]
    assert content["accuracy"]["difference"] == pytest.approx(0, abs=1e-4)
    assert content["weights"]["nonzero"] == content["weights"]["kept"] - content["weights"]["removed"]
    assert "executorch" in content["versions"]
    assert str(ROOT).encode() not in (place / "model.pte").read_bytes()
    images, labels = images_and_labels(copied)
    (code,) = re.findall(r"```python\n(.*?)```", (place / "README.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 5
    monkeypatch.chdir(place)
    scope: dict[str, Any] = {"images": images}
    exec(code, scope)  # all images at once
    assert float((scope["logits"].argmax(1) == labels).double().mean()) == pytest.approx(content["accuracy"]["file"])


@pytest.mark.parametrize("file", ["null", "/nowhere/weights.safetensors"])
def test_pretrained_weights_are_not_downloaded_again(copied: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    text = (copied / "config.yaml").read_text().replace("pretrained_file: null", f"pretrained_file: {file}")
    (copied / "config.yaml").write_text(text.replace("pretrained: false", "pretrained: true"))
    create = timm.create_model

    def without_network(name: str, pretrained: bool = False, **options: Any) -> torch.nn.Module:
        assert not pretrained
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", without_network)
    assert load_config(copied).model.pretrained
    ((outcome, _, content),) = again(copied)
    assert outcome == "written", content


# --- mistakes and hostile files ---


def test_weights_or_masks_of_another_run_are_refused(copied: Path) -> None:
    result, before = json.loads((copied / "result.json").read_text()), read(copied, "sparse")
    weights, masks = (load_tensors(copied / f"{name}.safetensors") for name in ("model", "masks"))

    def refused(new_weights: dict[str, Tensor], new_masks: dict[str, Tensor], keys: set[str]) -> str:
        save_tensors(copied / "model.safetensors", new_weights)
        save_tensors(copied / "masks.safetensors", new_masks)
        (copied / "result.json").write_text(json.dumps({key: result[key] for key in result.keys() & keys}))
        ((outcome, _, content),) = again(copied, "force=true")
        assert outcome == "failed", content["accuracy"]
        assert read(copied, "sparse") == before
        return content["error"]

    zeros = {name: torch.zeros_like(value) for name, value in weights.items()}
    ones = {name: torch.ones_like(mask) for name, mask in masks.items()}
    old = {*result} - {"digests"}  # a run of an earlier version
    assert "masks.safetensors: is not what the run has written" in refused(zeros, ones, old)
    assert "its test accuracy is" in refused(zeros, masks, old)
    assert "model.safetensors: is not what the run has written" in refused(zeros, masks, {*result})
    save_tensors(copied / "model.safetensors", weights)
    ((outcome, *_),) = again(copied, "force=true")
    assert outcome == "written"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["target=onx"], ["target=onx", "'onnx'"]),
        ([], ["target", "must be set"]),
        (["target=onnx", "selekt=pareto"], ["selekt", "'select'"]),
        (["target=onnx", "select=pareto"], ["single run"]),
        (["target=onnx", "force=yes"], ["force=yes", "true or false"]),
        (["target=onnx", "seconds=nan"], ["seconds=nan", "at least 0"]),
        (["target=onnx", "select=all", "select=pareto"], ["select=pareto", "join conditions with commas"]),
        (["target=onnx", "data.workers=abc"], ["data.workers=abc", "Integer"]),
        (["target=onnx", "data.classes=3"], ["data.classes=3", "root"]),
        (["onnx"], ["key=value"]),
    ],
    ids=lambda value: "-".join(value)[-24:] if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(
    run: Path, words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), *words]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert len(printed.splitlines()) == 1
    for part in parts:
        assert part in printed


def test_folders_that_cannot_be_exported_are_errors(
    sweep: Path, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(folder: Path, *words: str) -> str:
        assert main([str(folder), "target=sparse", *QUICK, *words]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "no such folder" in error(tmp_path / "nowhere")
    assert "contains 2 runs; select with select=pareto" in error(sweep)
    assert "no such field 'dorp'; did you mean 'drop'?" in error(sweep, "select=dorp<1")
    assert "no run meets this" in error(sweep, "select=size_mb<0.001")
    result = json.loads((copied / "result.json").read_text())
    for changes, part in (
        ({"data_fingerprint": "other"}, "not the images of the run"),
        ({"kind": "dense"}, "dense model"),
        ({"status": "failed"}, "not a completed run"),
        ({"samples": {**result["samples"], "test": 359}}, "359"),
    ):
        (copied / "result.json").write_text(json.dumps({**result, **changes}))
        assert part in error(copied, "force=true")
    for changes, part in (
        ({"accuracy": {}}, "lacks 'accuracy.finetuned.test'"),
        ({"accuracy": "high"}, "lacks 'accuracy.finetuned.test'"),
        ({"accuracy": {"finetuned": {"test": "0.9"}}}, "accuracy.finetuned.test='0.9'"),
        ({"accuracy": {"finetuned": {"test": float("nan")}}}, "accuracy.finetuned.test=nan"),
        ({"accuracy": {"finetuned": {"test": 99}}}, "accuracy.finetuned.test=99"),
        ({"samples": 5}, "lacks 'samples.test'"),
        ({"samples": {"test": 360.0}}, "samples.test=360.0"),
        ({"masks_hash": 3}, "masks_hash=3"),
        ({"run_name": ["x"]}, "run_name=['x']"),
        ({"files": [1]}, "not a completed run"),
        ({"files": None}, "not a completed run"),
        ({"files": {"../../../nope": 3}}, "not a completed run"),
    ):
        (copied / "result.json").write_text(json.dumps({**result, **changes}))
        assert part in error(copied, "force=true"), changes
    (copied / "result.json").write_text(json.dumps({key: result[key] for key in ("status", "files")}))
    assert "result.json lacks 'run_name'" in error(copied)
    (copied / "result.json").write_text(json.dumps(result))
    masks = load_tensors(copied / "masks.safetensors")
    for name, shape, part in (("conv1.weight", (1, 1, 7, 7), "has shape (1, 1, 7, 7)"), ("x", (2,), "names no weight")):
        save_tensors(copied / "masks.safetensors", {**masks, name: torch.ones(shape, dtype=torch.bool)})
        sized = {**result["files"], "masks.safetensors": (copied / "masks.safetensors").stat().st_size}
        (copied / "result.json").write_text(json.dumps({**result, "files": sized}))
        assert part in error(copied)
    (copied / "config.yaml").write_text("model: [")
    assert "config.yaml: not the configuration of a run" in error(copied)
    (copied / "masks.safetensors").unlink()
    assert "masks.safetensors is missing" in error(copied)


def test_a_failed_run_stops_no_other(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(sweep, tmp_path / "sweep"))
    (damaged,) = folder.glob("cnn-*")
    (damaged / "config.yaml").write_text("- 1")
    assert main([str(folder), "target=sparse", "select=all", *QUICK]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("vit-digits")
    assert printed.err.count("\n") == 1
    assert str(damaged / "config.yaml") in printed.err


def test_runs_without_a_result_are_named(sweep: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = Path(shutil.copytree(sweep, tmp_path / "sweep"))
    (failed,) = folder.glob("cnn-*")
    (failed / "result.json").unlink()
    assert main([str(folder), "target=sparse", "select=all", *QUICK]) == 0
    assert f"skipping {failed}, because it is failed (result.json is missing" in caplog.text


def test_select_exports_the_chosen_runs_only(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep), "target=sparse", "select=pareto,model=vit", *QUICK]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("vit-digits")


def test_a_run_with_foreign_or_pickled_weights_is_refused(copied: Path, tmp_path: Path) -> None:
    path, result = copied / "model.safetensors", json.loads((copied / "result.json").read_text())

    def refused(content: bytes) -> str:
        path.write_bytes(content)
        result["files"]["model.safetensors"] = len(content)
        (copied / "result.json").write_text(json.dumps(result))
        ((outcome, _, content),) = again(copied, "force=true")
        assert outcome == "failed"
        return content["error"]

    whole = path.read_bytes()
    assert "not a readable safetensors file" in refused(whole[: len(whole) // 2])
    assert "checksum" in refused(whole[:-1] + bytes([whole[-1] ^ 1]))
    torch.save({"fc.weight": Evil(tmp_path / "executed")}, tmp_path / "evil.pt")
    assert "cannot be read" in refused((tmp_path / "evil.pt").read_bytes())
    assert not (tmp_path / "executed").exists()


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_checkpoint_with_code_is_refused_and_executes_nothing(tmp_path: Path, conv_net: torch.nn.Module) -> None:
    from mmp.errors import MmpError

    state = conv_net.state_dict()
    torch.save({"state_dict": {**state, "0.weight": Evil(tmp_path / "executed")}}, tmp_path / "evil.ckpt")
    with pytest.raises(MmpError, match="cannot be read"):
        load_weights(conv_net, tmp_path / "evil.ckpt")
    assert not (tmp_path / "executed").exists()
    torch.save(state, tmp_path / "whole.ckpt")
    whole = (tmp_path / "whole.ckpt").read_bytes()
    for length in range(0, len(whole), len(whole) // 40):
        (tmp_path / "cut.ckpt").write_bytes(whole[:length])
        with pytest.raises(MmpError, match="cannot be read"):
            load_weights(conv_net, tmp_path / "cut.ckpt")
    torch.save({**state, "0.weight": torch.zeros(1, 2, 3, 3)}, tmp_path / "shape.ckpt")
    with pytest.raises(MmpError, match=re.escape("0.weight is (1, 2, 3, 3) instead of (6, 2, 3, 3)")):
        load_weights(conv_net, tmp_path / "shape.ckpt")
