"""Target ``shrunk``: the network without the channels that nothing reads, for PyTorch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mmp.errors import MmpError
from mmp.export.shrunk_file import FORMAT, load_shrunk, save_shrunk
from mmp.export.signed_file import read_signed
from mmp.export.targets import Engine, Exportable
from mmp.tensors import tensors_digest


class Shrunk:
    """A file of dense tensors (:mod:`mmp.export.shrunk_file`), loaded into timm's model with fewer channels."""

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
        if tensors_digest(load_shrunk(path).state_dict()) != tensors_digest(source.model.state_dict()):
            raise MmpError(f"{path}: differs from the model after reading it back; check the disk")

    def open(self, path: Path, source: Exportable) -> Engine:
        """Return the network of the file."""
        return torch.inference_mode()(load_shrunk(path))

    def weights(self, path: Path, source: Exportable) -> dict[str, Tensor]:
        """Return the weight under each mask."""
        tensors, _ = read_signed(path, FORMAT)
        return {name: tensors[name] for name in source.masks}

    def usage(self, source: Exportable) -> str:
        """Return the lines of Python that load the file."""
        return f'import mmp\nmodel = mmp.load_shrunk("{self.files[0]}")\nlogits = model(images)'
