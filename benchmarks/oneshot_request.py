"""What the command line of the one-shot benchmark asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import RESULTS
from benchmarks.oneshot_methods import SOLVED, methods
from benchmarks.oneshot_networks import NETWORKS, Network
from benchmarks.row_files import share_of
from mmp.errors import MmpError

ROWS = RESULTS / "oneshot.jsonl"
KEYS = ("network", "seed", "solved", "sparsity", "method", "images", "steps", "protocol")  # decide what is measured
SEEDS = (0, 1, 2)
STEPS = (50, 100, 200, 400, 800, 1600, 3200)
_NEEDED = {"network", "checkpoint", "root"}
_SIGN = {"methods": "+"}  # between the values of a key, in place of a comma


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        name: Name of the network.
        checkpoint: File of its weights.
        root: Folder of its pictures.
        seeds: Seeds of the splits.
        sparsities: Shares of the prunable weights to remove.
        methods: Names of methods.
        solved: Names of ways to re-solve.
        images: Numbers of calibration pictures.
        steps: Numbers of steps of joint tuning; None is the number of its configuration.
        rows: The file to append to.
        cache: Folder of what runs share.
        share: The share of the runs of each seed, such as ``0/4``.
    """

    name: str
    checkpoint: str
    root: str
    seeds: Sequence[int]
    sparsities: Sequence[float]
    methods: Sequence[str]
    solved: Sequence[str]
    images: Sequence[int]
    steps: Sequence[int | None] = (None,)
    rows: Path = ROWS
    cache: str = "results/cache"
    share: str = "0/1"

    @property
    def network(self) -> Network:
        """The network."""
        return NETWORKS[self.name]

    @classmethod
    def of(cls, words: Sequence[str]) -> Request:
        """Return the request of a command line.

        Raises:
            MmpError: if a key or a value is unknown, or a key is missing.
        """
        given = dict(word.partition("=")[::2] for word in words)
        name = given.get("network", "")
        network = NETWORKS.get(name) or NETWORKS["resnet20"]
        every: dict[str, list[str]] = {
            "seeds": [*map(str, SEEDS)],
            "sparsities": [*map(str, network.sparsities)],
            "methods": [*methods()],
            "solved": [*SOLVED],
            "images": [*map(str, network.images)],
            "steps": [*map(str, STEPS)],
        }
        default = every | {"images": every["images"][-1:], "steps": []}
        chosen = {key: given[key].split(_SIGN.get(key, ",")) if key in given else default[key] for key in every}
        unknown = given.keys() - every.keys() - {"rows", "cache", "share"}
        if unknown != _NEEDED or name not in NETWORKS or any(set(chosen[key]) - set(every[key]) for key in every):
            listed = " ".join(f"{key}={_SIGN.get(key, ',').join(values)}" for key, values in every.items())
            raise MmpError(
                f"{' '.join(words)}: the keys are network={'|'.join(NETWORKS)} checkpoint=FILE root=FOLDER {listed} "
                "rows=FILE cache=FOLDER share=0/4"
            )
        share_of((), given.get("share", cls.share))  # refuses a wrong share before data are read
        return cls(
            name, given["checkpoint"], given["root"], [*map(int, chosen["seeds"])],
            [*map(float, chosen["sparsities"])], chosen["methods"], chosen["solved"], [*map(int, chosen["images"])],
            [*map(int, chosen["steps"])] or cls.steps, Path(given.get("rows", cls.rows)),
            given.get("cache", cls.cache), given.get("share", cls.share),
        )  # fmt: skip
