"""Checkpoints to resume from: written atomically, valid after the folder was moved, and never from another training."""

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
    """Lightning's checkpoint files, written atomically: a process that is killed leaves the previous checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            MmpError: if the file cannot be written; the message names it.
        """
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(Path(path), lambda temporary: temporary.write_bytes(content.getbuffer()))


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which finds its best model also in a folder that was moved.

    Lightning's own class would keep the old path and forget the best score.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of a checkpoint; its files are in this folder."""

        def here(path: str) -> str:
            return str(Path(self.dirpath or "") / Path(path).name) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {key: here(state_dict[key]) for key in paths if key in state_dict}
        kept = {here(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": kept, "dirpath": self.dirpath})


def open_checkpoints(folder: Path, owner: dict[str, Any]) -> None:
    """Prepare a folder of checkpoints for a training; checkpoints of another training are removed.

    Args:
        folder: The folder.
        owner: Plain data that identifies the training.
    """
    if read_json(folder / _OWNER) != owner:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / _OWNER, owner)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint from which an interrupted training resumes, or None.

    If the last checkpoint, or the best model that it refers to, cannot be read, all checkpoints are removed.
    """
    path = folder / LAST
    if not path.is_file():
        return None
    try:
        states = load_pickled(path)["callbacks"].values()
        for name in {Path(state["best_model_path"]).name for state in states if state.get("best_model_path")}:
            load_pickled(folder / name)
    except (MmpError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is damaged (%s); the training starts from the beginning", folder, str(error).partition("\n")[0])
        for damaged in folder.glob("*.ckpt"):
            damaged.unlink()
        return None
    return path


def epochs_of(path: Path) -> int:
    """Return the number of completed epochs in a checkpoint that was saved at the end of an epoch."""
    return load_pickled(path)["epoch"] + 1


def loader_state(path: Path) -> dict[str, int]:
    """Return the position of a checkpoint in the training batches (``mmp.data.loader.EpochLoader.state_dict``)."""
    return load_pickled(path)["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
