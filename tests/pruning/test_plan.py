"""Plans: the paper's four models and tables, budgets in sparsity and bytes."""

from __future__ import annotations

import csv
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import nn

import mmp.models.vgg  # noqa: F401 - registers the paper's VGG-11
from mmp.config.choices import choose, read_choice
from mmp.config.schema import BudgetConfig
from mmp.config.validate import read_ranges
from mmp.errors import MmpError
from mmp.plan import load_strategy, make_plan
from mmp.pruning.plan import Plan
from mmp.pruning.plan_views import as_csv, as_markdown, draw_plan
from mmp.pruning.sizes import Sizes

PAPER = {
    "vgg": ("vgg11_bn_small", 10, 28.1),
    "resnet": ("resnet18", 43, 11.2),
    "levit": ("levit_384", 10, 37.6),
    "swin": ("swin_tiny_patch4_window7_224", 100, 27.6),
}
A = {"conservative": 0.0, "p30": 0.3, "balanced": 0.5, "p50": 0.5, "p70": 0.7, "p90": 0.9, "aggressive": 1.0}


def paper_model(table: str) -> nn.Module:
    name, classes, _ = PAPER[table]
    with torch.device("meta"):
        return timm.create_model(name, num_classes=classes)


@pytest.fixture(scope="module")
def paper() -> dict[str, Plan]:
    return {table: make_plan(paper_model(table), table, name=table) for table in PAPER}


class Net(nn.Module):
    """A network from outside timm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Conv2d(40, 80, 3), nn.BatchNorm2d(80))
        self.fc = nn.Linear(80, 10)


# --- the paper's models and tables ---


@pytest.mark.parametrize("table", PAPER)
def test_the_four_models_have_the_papers_parameters(paper: dict[str, Plan], table: str) -> None:
    assert round(paper[table].parameters / 1e6, 1) == PAPER[table][2]


def swin_range(name: str, _size: int) -> tuple[int, int]:
    """Return the range in METHOD's table for one of timm's parameter names."""
    if fnmatch(name, "patch_embed.*"):
        return 0, 10
    if "downsample" in name:
        return 5, 20
    if fnmatch(name, "head.*"):
        return 0, 15
    stage = int(name.split(".")[1])
    rows = {
        "attn.qkv": [(10, 30), (15, 35), (20, 40), (25, 45)],
        "attn.proj": [(20, 40), (25, 45), (30, 50), (35, 55)],
        "mlp.fc1": [(30, 45), (35, 50), (40, 55), (45, 60)],
        "mlp.fc2": [(25, 40), (30, 45), (35, 50), (40, 55)],
    }
    return next(spans[stage] for part, spans in rows.items() if part in name)


def levit_range(name: str, size: int) -> tuple[int, int]:
    if size < 10_000:
        return 0, 10
    if name.startswith("stem"):
        return 20, 40
    return (40, 60) if ".mlp." in name else (50, 70)


@pytest.mark.parametrize(
    ("table", "range_of", "late", "feature", "published"),
    [
        ("swin", swin_range, ".mlp.", ".attn.", {"p70": 44.8}),
        ("levit", levit_range, "head", ".mlp.", {"conservative": 44.1, "classifier_heavy": 44.1}),
    ],
)
def test_ten_sparsities_follow_from_the_table_by_hand(
    paper: dict[str, Plan], table: str, range_of, late: str, feature: str, published: dict[str, float]
) -> None:
    # Computed without the library: every conv and linear weight by timm's name, METHOD's table, METHOD's a(l).
    model = paper_model(table)
    weights = {
        f"{path}.weight": module.weight.numel()
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and not re.search("bias|rel_pos", path)
    }
    total = sum(weights.values())
    assert total == paper[table].sizes.weights
    positions = {name: dict.fromkeys(weights, a) for name, a in A.items()}
    positions["proportional"] = {name: min(1.0, 10 * size / total) for name, size in weights.items()}
    positions["classifier_heavy"] = {name: float(late in name) for name in weights}
    positions["feature_heavy"] = {name: 1.0 if feature in name else 0.5 for name in weights}
    found = {}
    for strategy, position in positions.items():
        pruned = 0.0
        for name, size in weights.items():
            lo, hi = range_of(name, size)
            pruned += size * (lo + position[name] * (hi - lo))
        found[strategy] = pruned / total
    plan = paper[table]
    assert set(found) == set(plan.sparsities)
    for strategy, percent in found.items():
        assert 100 * plan.summary(strategy)["sparsity"] == pytest.approx(percent, abs=0.001), strategy
    for strategy, percent in published.items():
        assert 100 * plan.summary(strategy)["sparsity"] == pytest.approx(percent, abs=0.05), strategy


def spans(plan: Plan) -> dict[str, tuple[int, int]]:
    return {name: (round(100 * span.lo), round(100 * span.hi)) for name, span in plan.ranges.items()}


def test_vgg_ranges_are_the_tables(paper: dict[str, Plan]) -> None:
    assert spans(paper["vgg"]) == {
        "features.0.weight": (0, 10),  # 1,728 weights
        "features.4.weight": (40, 60),  # p = 0
        "features.8.weight": (40, 60),  # p = 1/6
        "features.11.weight": (40, 60),  # p = 2/6
        "features.15.weight": (55, 70),  # p = 3/6
        "features.18.weight": (65, 80),  # p = 4/6
        "features.22.weight": (75, 92),  # p = 5/6
        "features.25.weight": (75, 92),  # p = 1
        "classifier.0.weight": (88, 96),  # 2.1M
        "classifier.3.weight": (92, 98),  # 16.8M, the largest
        "classifier.6.weight": (85, 95),
    }


def test_resnet_ranges_are_the_tables(paper: dict[str, Plan]) -> None:
    stages = {1: (30, 50), 2: (40, 60), 3: (50, 70), 4: (75, 95)}
    for name, span in spans(paper["resnet"]).items():
        stage = re.match(r"layer(\d)", name)
        if "downsample" in name:
            assert span == (0, 20)
        elif stage:
            assert span == stages[int(stage.group(1))]
        else:
            assert span == (0, 30)  # the stem with 9,408 weights, too, and fc


@pytest.mark.parametrize(
    ("table", "late", "feature"),
    [("vgg", "classifier", "features"), ("resnet", "fc", "layer4.*conv"), ("swin", "mlp", "attn")],
)
def test_groups_of_strategies_nine_and_ten(paper: dict[str, Plan], table: str, late: str, feature: str) -> None:
    plan = paper[table]
    for name, span in plan.ranges.items():
        nine, ten = plan.sparsities["classifier_heavy"][name], plan.sparsities["feature_heavy"][name]
        assert nine == (span.hi if re.search(late, name) else span.lo), name
        assert ten == pytest.approx(span.hi if re.search(feature, name) else (span.lo + span.hi) / 2), name


def test_levit_table_covers_a_head_of_many_classes() -> None:
    with torch.device("meta"):
        plan = make_plan(timm.create_model("levit_384"), "levit")
    assert spans(plan)["head.linear.weight"] == (0, 10)


@pytest.mark.parametrize(
    ("name", "widens", "narrows"),
    [
        ("tf_efficientnet_lite0", "conv_pw.weight", "conv_pwl.weight"),
        ("mobilenetv2_100", "conv_pw.weight", "conv_pwl.weight"),
        ("mobilenetv3_large_100", "conv_pw.weight", "conv_pwl.weight"),
        ("mobilenetv4_conv_medium", "pw_exp.conv.weight", "pw_proj.conv.weight"),
        ("efficientnetv2_rw_t", "conv_pw.weight", "conv_pwl.weight"),
    ],
)
def test_mobile_networks_are_spared_where_a_block_has_no_shortcut(name: str, widens: str, narrows: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    plan = make_plan(model, "mobilenet")
    sizes = {layer.name: layer.size for layer in plan.layers}
    late = [(n, r) for n, r in plan.ranges.items() if sizes[n] >= 10_000 and re.match(r"blocks\.[345]\.", n)]
    for kind, first, later in ((narrows, (0.05, 0.30), (0.35, 0.75)), (widens, (0.25, 0.60), (0.50, 0.90))):
        found = {(span.lo, span.hi) for n, span in late if n.endswith(kind) and n.split(".")[2] == "0"}
        assert found <= {first, (0.0, 0.2)}, kind
        assert found
        assert {(span.lo, span.hi) for n, span in late if n.endswith(kind) and n.split(".")[2] != "0"} == {later}
    fused = {(span.lo, span.hi) for n, span in plan.ranges.items() if re.search(r"[1-5]\.0\.conv_exp", n)}
    assert fused <= {(0.0, 0.2), (0.0, 0.1)}
    others = [layer.name for layer in plan.layers if layer.role != "other" and plan.ranges[layer.name].lo == 0.2]
    assert not others  # a rule for everything but gates


@pytest.mark.slow
def test_the_papers_vgg_runs_like_other_timm_models() -> None:
    model = timm.create_model("vgg11_bn_small", num_classes=7, in_chans=1).eval()
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    assert model(torch.zeros(1, 1, 64, 64)).shape == (1, 7)
    model.reset_classifier(3)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    assert model.forward_head(torch.zeros(2, 512, 1, 1), pre_logits=True).shape == (2, 4096)


# --- budgets ---


@pytest.mark.parametrize("budget", [0.5, 0.9])
def test_a_budget_is_met_to_the_weight_by_every_strategy(budget: float) -> None:
    plan = make_plan(paper_model("vgg"), "vgg", budget=budget)
    for strategy, pruned in plan.pruned.items():
        assert pruned == round(budget * plan.sizes.weights), strategy


def test_a_budget_in_megabytes_is_met_from_below() -> None:
    plan = make_plan(Net(), budget=BudgetConfig(megabytes=0.06))
    for strategy, pruned in plan.pruned.items():
        assert 60_000 - 4 < plan.sizes.sparse(pruned) <= 60_000, strategy


def test_the_budget_of_a_strategy_takes_precedence() -> None:
    plan = make_plan(paper_model("vgg"), "vgg", budget=BudgetConfig(sparsity=0.9, strategies={"p70": 0.92}))
    assert plan.summary("p70")["sparsity"] == pytest.approx(0.92, abs=1e-6)
    assert plan.summary("p30")["sparsity"] == pytest.approx(0.90, abs=1e-6)


def test_a_budget_does_not_shift_small_layers() -> None:
    before, after = make_plan(paper_model("vgg"), "vgg"), make_plan(paper_model("vgg"), "vgg", budget=0.95)
    for strategy in before.sparsities:
        small = "features.0.weight"
        assert after.sparsities[strategy][small] == before.sparsities[strategy][small]


def test_a_budget_out_of_reach_is_refused_with_the_limits() -> None:
    with pytest.raises(MmpError, match=r"budget=0\.99 is out of reach: .* to 0\.9"):
        make_plan(Net(), budget=0.99)
    model = Net()
    with pytest.raises(MmpError, match=r"megabytes=0\.001 is out of reach: strategy \w+ can .* sizes from (\S+) to"):
        make_plan(model, budget=BudgetConfig(megabytes=0.001))
    with pytest.raises(MmpError, match=r"sizes from (\S+) to") as raised:
        make_plan(model, budget=BudgetConfig(megabytes=1000.0))
    least = float(re.search(r"sizes from (\S+) to", str(raised.value)).group(1))  # type: ignore[union-attr]
    plan = make_plan(model, budget=BudgetConfig(megabytes=least + 0.001))
    assert all(plan.sizes.sparse(pruned) <= (least + 0.001) * 10**6 for pruned in plan.pruned.values())


def test_the_stated_limits_of_a_budget_are_in_reach() -> None:
    for table in ("generic", "vgg"):
        model = paper_model("vgg")
        with pytest.raises(MmpError, match=r"strategy \w+ can be shifted to global sparsities") as raised:
            make_plan(model, table, budget=0.99)
        least, most = re.findall(r"0\.\d{4}", str(raised.value))
        strategy = load_strategy(re.search(r"strategy (\w+)", str(raised.value)).group(1))  # type: ignore[union-attr]
        for said in (least, most):
            plan = make_plan(model, table, [strategy], budget=float(said))
            assert plan.pruned[strategy.name] == round(float(said) * plan.sizes.weights)


def test_a_ceiling_holds_to_the_weight_under_a_budget() -> None:
    ranges = read_ranges(choose("ranges", "generic"))
    ranges.constraints.ceiling = 0.9
    plan = make_plan(timm.create_model("levit_128s"), ranges, budget=0.85)
    for sparsities in plan.sparsities.values():
        assert max(sparsities.values()) <= 0.9


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (BudgetConfig(sparsity=0.5, megabytes=1.0), "budget.megabytes=1.0 is set beside budget.sparsity=0.5"),
        (BudgetConfig(strategies={"p71": 0.5}), "p71"),
        ("0.5", "budget='0.5': must be a number, a global sparsity"),
        (1.5, "budget=1.5"),
    ],
)
def test_budgets_from_python_are_checked_like_those_of_the_command_line(budget: object, message: str) -> None:
    with pytest.raises(MmpError, match=re.escape(message)):
        make_plan(Net(), budget=budget)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_plan_is_made_inside_another_hydra_application(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert make_plan(Net()).sparsities
        assert compose("mine").a == 1


# --- sizes ---


def test_sizes_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(7, 3))
    plan = make_plan(model)
    # 18 + 21 weights; biases 2 + 3, norm 2 + 2, running statistics 2 + 2 and an int64.
    assert plan.sizes == Sizes(weights=39, width=4, masks=3 + 3, others=4 * 13 + 8)
    assert plan.sizes.dense == 4 * 39 + 60
    assert plan.sizes.sparse(10) == 60 + 6 + 4 * 29
    assert plan.sizes.sparsity_for(60 + 6 + 4 * 29) == pytest.approx(10 / 39)
    assert plan.sizes.sparsity_for(60 + 6 + 4 * 29 - 1) == pytest.approx(11 / 39)


def test_a_shared_tensor_counts_once() -> None:
    model = Net()
    model.again = model.fc  # type: ignore[assignment]
    assert make_plan(model).sizes == make_plan(Net()).sizes


# --- tables, views and errors ---


def test_any_module_gets_a_plan_with_all_strategies() -> None:
    plan = make_plan(Net())
    assert [(layer.name, layer.role) for layer in plan.layers] == [
        ("body.0.weight", "stem"),
        ("body.2.weight", "conv"),
        ("fc.weight", "classifier"),
    ]
    assert {*A, "proportional", "classifier_heavy", "feature_heavy"} <= set(plan.sparsities)
    assert str(plan).startswith("Net: 30,970 parameters, 30,680 prunable in 3 layers")


def test_unknown_table_and_table_of_another_architecture_are_errors() -> None:
    with pytest.raises(MmpError, match=r"ranges=swinn: no such choice; did you mean 'swin'"):
        make_plan(Net(), "swinn")
    with pytest.raises(MmpError, match=r"ranges=swin: rule 1 .*patch_embed.* matches no layer"):
        make_plan(Net(), "swin")


def test_a_plan_with_observed_ranges_has_the_rules_for_comparison() -> None:
    model = Net()
    observations = [{"body.0.weight": 0.1, "body.2.weight": s, "fc.weight": 0.05} for s in (0.5, 0.8)]
    plan = make_plan(model, "generic", observations=observations)
    assert spans(plan)["body.2.weight"] == (50, 80)
    assert plan.rules == make_plan(model).ranges
    assert spans(plan)["fc.weight"] == (0, 10)  # 800 weights: the constraint holds for observed ranges, too


def test_csv_and_markdown_list_every_layer_and_strategy() -> None:
    plan = make_plan(Net())
    rows = list(csv.DictReader(as_csv(plan).splitlines()))
    assert [row["layer"] for row in rows] == [layer.name for layer in plan.layers]
    assert float(rows[1]["p70"]) == plan.sparsities["p70"]["body.2.weight"]
    text = as_markdown(plan)
    for name in (*plan.ranges, *plan.sparsities):
        assert f"| {name} |" in text


@pytest.mark.slow
@pytest.mark.parametrize("observed", [False, True])
def test_the_picture_is_written_without_leftovers(observed: bool, tmp_path: Path) -> None:
    observations = [dict.fromkeys(("body.0.weight", "body.2.weight", "fc.weight"), s) for s in (0.2, 0.6)]
    draw_plan(make_plan(Net(), observations=observations if observed else None), tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.png"]


def test_observed_ranges_without_observations_are_an_error() -> None:
    with pytest.raises(MmpError, match=r"ranges=observed is observed, so it needs observations"):
        make_plan(Net(), "observed")


@pytest.mark.parametrize("name", ["levit_384", "levit_384_s8", "levit_conv_384_s8"])
def test_both_heads_of_a_levit_are_classifiers(name: str) -> None:
    with torch.device("meta"):
        plan = make_plan(timm.create_model(name), "levit")
    heads = [layer.role for layer in plan.layers if "head" in layer.name]
    assert heads == ["classifier", "classifier"]


def test_tiny_layers_keep_at_least_one_weight() -> None:
    table = read_ranges(choose("ranges", "generic"))
    table.constraints.small_below = 0
    with torch.device("meta"):
        model = timm.create_model("ecaresnet26t")
    plan = make_plan(model, table, budget=0.9)
    for sparsities in plan.sparsities.values():
        assert all(int(sparsities[layer.name] * layer.size) < layer.size for layer in plan.layers)
    table.constraints.ceiling = 0.5
    with pytest.raises(MmpError, match=r"out of reach: .* to 0\.5000"):
        make_plan(model, table, budget=0.9)


def test_a_file_of_the_package_is_read_once_and_each_caller_has_a_copy() -> None:
    names = []

    def read(content: DictConfig) -> list[str]:
        names.append(content.name)
        return [content.name]

    first, second = (read_choice("ranges", "generic", read) for _ in range(2))
    first.append("changed by a caller")
    assert read_choice("ranges", "generic", read) == second == ["generic"]
    assert names == ["generic"]
    with pytest.raises(MmpError, match="ranges=generik: no such choice; did you mean 'generic'"):
        read_choice("ranges", "generik", read)
