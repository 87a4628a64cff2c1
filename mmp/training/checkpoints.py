"""Checkpoints that an interrupted training goes on from: whole, in whatever folder they lie, of this very training."""

from __future__ import annotations

import io
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from mmp.errors import MmpError
from mmp.files import read_json, write_atomically, write_json
from mmp.tensors import load_pickled

log = logging.getLogger(__name__)

LAST = "last.ckpt"
_OWNER = "owner.json"


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoint files, written so that a process that dies leaves the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            MmpError: if it cannot be written; the message names it.
        """
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(Path(path), lambda temporary: temporary.write_bytes(content.getbuffer()))


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which finds its best model again in a folder that was moved.

    Lightning would keep the old path and forget the best score.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of a checkpoint, with its files in this folder."""

        def here(path: str) -> str:
            return str(Path(self.dirpath or "") / Path(path).name) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {key: here(state_dict[key]) for key in paths if key in state_dict}
        kept = {here(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": kept, "dirpath": self.dirpath})


def open_checkpoints(folder: Path, owner: dict[str, Any]) -> None:
    """Make a folder of checkpoints ready for a training: those of another one are thrown away.

    Args:
        folder: The folder.
        owner: Plain data that tells one training from another.
    """
    if read_json(folder / _OWNER) != owner:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / _OWNER, owner)


def last_checkpoint(folder: Path) -> Path | None:
    """Return what an interrupted training goes on from, if it and the best model that it names are there and whole."""
    path = folder / LAST
    if not path.is_file():
        return None
    try:
        states = load_pickled(path)["callbacks"].values()
        for name in {Path(state["best_model_path"]).name for state in states if state.get("best_model_path")}:
            load_pickled(folder / name)
    except (MmpError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is damaged (%s); the training starts anew", folder, str(error).partition("\n")[0])
        for damaged in folder.glob("*.ckpt"):
            damaged.unlink()
        return None
    return path


def epochs_of(path: Path) -> int:
    """Return how many epochs are over in a checkpoint of an epoch's end."""
    return load_pickled(path)["epoch"] + 1


def loader_state(path: Path) -> dict[str, int]:
    """Return how far the training batches of a checkpoint had come (``mmp.data.loader.EpochLoader.state_dict``)."""
    return load_pickled(path)["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
