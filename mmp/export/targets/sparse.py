"""Target ``sparse``: kept values and where they belong, which timm's model loads back bit for bit."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mmp.errors import MmpError
from mmp.export.sparse_file import load_sparse, save_sparse
from mmp.export.targets import Engine, Exportable
from mmp.models.timm_models import build_bare
from mmp.tensors import tensors_digest


class Sparse:
    """Compact storage (:mod:`mmp.export.sparse_file`), run by PyTorch after it was loaded back."""

    name = "sparse"
    files: tuple[str, ...] = ("model.sparse.safetensors",)
    engine = "PyTorch"
    packages: tuple[str, ...] = ()
    extra = "export"
    exact = True

    def write(self, source: Exportable, path: Path) -> None:
        """Write the state_dict, and read it back.

        Raises:
            MmpError: if what is read back differs in one bit.
        """
        state = source.model.state_dict()
        save_sparse(path, state)
        if tensors_digest(load_sparse(path)) != tensors_digest(state):
            raise MmpError(f"{path}: does not hold the bits of the model; is the disk sound?")

    def open(self, path: Path, source: Exportable) -> Engine:
        """Return timm's model with the weights of the file."""
        with torch.random.fork_rng():
            model = build_bare(source.config)
        model.load_state_dict(load_sparse(path))
        return torch.inference_mode()(model.eval())

    def weights(self, path: Path, source: Exportable) -> dict[str, Tensor]:
        """Return the weights under each mask."""
        state = load_sparse(path)
        return {name: state[name] for name in source.masks}

    def usage(self, source: Exportable) -> str:
        """Return the lines of Python that load the file."""
        config = source.config
        options = {"num_classes": config.num_classes, "in_chans": config.in_chans, **config.kwargs}
        arguments = ", ".join([repr(config.name), *(f"{key}={value!r}" for key, value in options.items())])
        return (
            f"import timm{', mmp.models.vgg  # which registers the model' if config.name == 'vgg11_bn_small' else ''}\n"
            "from mmp.export.sparse_file import load_sparse\n"
            f"model = timm.create_model({arguments}).eval()\n"
            f'model.load_state_dict(load_sparse("{self.files[0]}"))\n'
            "logits = model(images)"
        )
