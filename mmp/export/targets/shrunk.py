"""Target ``shrunk``: the network without the channels that nothing reads, for PyTorch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from mmp.errors import MmpError
from mmp.export.shrunk_file import FORMAT, load_shrunk, save_shrunk
from mmp.export.signed_file import read_signed
from mmp.export.targets import Engine, Exportable
from mmp.models.networks import build_bare, python_code
from mmp.tensors import tensors_digest


class Shrunk:
    """A file of dense tensors (:mod:`mmp.export.shrunk_file`), loaded into the network with fewer channels."""

    name = "shrunk"
    files: tuple[str, ...] = ("model.shrunk.safetensors",)
    engine = "PyTorch"
    packages: tuple[str, ...] = ()
    extra = "export"
    exact = True

    def write(self, source: Exportable, path: Path) -> None:
        """Write the file, then build the network from it and compare.

        Raises:
            MmpError: if one bit differs.
        """
        notes = {"images": dict(source.preparation), "classes": source.classes and list(source.classes)}
        save_shrunk(path, source.model, source.config, source.removal.attributes, notes)
        if tensors_digest(_load(path, source).state_dict()) != tensors_digest(source.model.state_dict()):
            raise MmpError(f"{path}: differs from the model after reading it back; check the disk")

    def open(self, path: Path, source: Exportable) -> Engine:
        """Return the network of the file."""
        return torch.inference_mode()(_load(path, source))

    def weights(self, path: Path, source: Exportable) -> dict[str, Tensor]:
        """Return the weight under each mask."""
        tensors, _ = read_signed(path, FORMAT)
        return {name: tensors[name] for name in source.masks}

    def usage(self, source: Exportable) -> str:
        """Return the lines of Python that load the file."""
        imports, network = python_code(source.config)
        own = f", {network}" if source.config._target_ else ""
        lines = ["import mmp", *([imports] if own else []), f'model = mmp.load_shrunk("{self.files[0]}"{own})']
        return "\n".join([*lines, "logits = model(images)"])


def _load(path: Path, source: Exportable) -> nn.Module:
    return load_shrunk(path, build_bare(source.config) if source.config._target_ else None)
