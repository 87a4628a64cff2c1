"""Target ``sparse``: the kept values and their positions, which the network loads back bit for bit."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mmp.errors import MmpError
from mmp.export.sparse_file import load_sparse, save_sparse
from mmp.export.targets import Engine, Exportable
from mmp.models.networks import build_bare, python_code
from mmp.tensors import tensors_digest


class Sparse:
    """A compact sparse file (:mod:`mmp.export.sparse_file`), loaded into the network and executed by PyTorch."""

    name = "sparse"
    files: tuple[str, ...] = ("model.sparse.safetensors",)
    engine = "PyTorch"
    packages: tuple[str, ...] = ()
    extra = "export"
    exact = True
    whole = True  # so that the weights fit the network

    def write(self, source: Exportable, path: Path) -> None:
        """Write the state_dict, then read it back and compare.

        Raises:
            MmpError: if one bit differs.
        """
        state = source.model.state_dict()
        save_sparse(path, state)
        if tensors_digest(load_sparse(path)) != tensors_digest(state):
            raise MmpError(f"{path}: differs from the model after reading it back; check the disk")

    def open(self, path: Path, source: Exportable) -> Engine:
        """Return the network with the weights from the file."""
        with torch.random.fork_rng():
            model = build_bare(source.config)
        model.load_state_dict(load_sparse(path))
        return torch.inference_mode()(model.eval())

    def weights(self, path: Path, source: Exportable) -> dict[str, Tensor]:
        """Return the weight under each mask."""
        state = load_sparse(path)
        return {name: state[name] for name in source.masks}

    def usage(self, source: Exportable) -> str:
        """Return the lines of Python that load the file."""
        imports, network = python_code(source.config)
        return (
            f"{imports}\n"
            "from mmp import load_sparse\n"
            f"model = {network}.eval()\n"
            f'model.load_state_dict(load_sparse("{self.files[0]}"))\n'
            "logits = model(images)"
        )
