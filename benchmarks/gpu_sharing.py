"""CUDA's multi-process service, with which kernels of several processes run on one GPU at the same time."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

CONTROL = "nvidia-cuda-mps-control"
_SECONDS = 10


def start_service(folder: Path) -> Mapping[str, str]:
    """Start the service, if the machine has it, and return the environment variables of the processes that use it.

    Args:
        folder: The folder of its pipes and logs. If it serves from there already, it goes on.
    """
    if not shutil.which(CONTROL):
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    places = _places(folder)
    if _serves(places):
        return places
    started = subprocess.run(  # noqa: S603
        [CONTROL, "-d"], env={**os.environ, **places}, check=False, timeout=_SECONDS, capture_output=True
    )
    return {} if started.returncode else places


def stop_service(folder: Path) -> None:
    """Stop the service whose pipes are in a folder, if there is one."""
    if shutil.which(CONTROL) and folder.is_dir():
        _ask("quit", _places(folder))


def _places(folder: Path) -> dict[str, str]:
    return {"CUDA_MPS_PIPE_DIRECTORY": str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}


def _serves(places: Mapping[str, str]) -> bool:
    return _ask("get_server_list", places) == 0


def _ask(request: str, places: Mapping[str, str]) -> int:
    environment = {**os.environ, **places}
    answered = subprocess.run(  # noqa: S603
        [CONTROL], input=f"{request}\n", text=True, env=environment, check=False, timeout=_SECONDS, capture_output=True
    )
    return answered.returncode
