"""A pickle module for ``torch.load`` that executes nothing: it reads tensors and replaces all other objects.

``torch.load(..., weights_only=True)`` refuses a file with an object of any class that it does not know: the arguments
of a training script, a date, a network that was saved whole. The weights beside such an object are plain tensors. Here
an unknown class or function becomes a :class:`StandIn`: it is not imported, and a call of it runs no code.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor


class StandIn:
    """An object whose class is not loaded. It ignores its arguments, and keeps its items and its state.

    Attributes:
        items: The items that the pickle assigns to it, if its class is a mapping.
        state: The state that the pickle gives to it; the ``__dict__`` of most objects.
    """

    def __new__(cls, *_: Any, **__: Any) -> StandIn:
        """Return an empty object, whatever the arguments."""
        self = super().__new__(cls)
        self.items, self.state = {}, None
        return self

    items: dict[Any, Any]
    state: Any

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        """Ignore the element of a list."""

    def extend(self, values: Any) -> None:
        """Ignore the elements of a list."""

    add, update = append, extend


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


def _tensor_of_type(
    storage: Any, offset: int, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    return torch._utils._rebuild_tensor_v3(storage, offset, size, stride, False, OrderedDict(), dtype)


def _bytes(text: str, *_: Any) -> bytes:
    return text.encode("latin1")  # protocol 2 has no bytes


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _subclass(function: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    return function(*arguments) if _is_function(function) else StandIn()


# What a pickle may call. The names are those that torch.save writes.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "_codecs.encode": _bytes,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch._tensor._rebuild_from_type_v2": _subclass,
}
_STORAGES = {"torch.storage.UntypedStorage": torch.UntypedStorage}
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # protocol 2 has the old names of these modules

# No tool writes these names into a checkpoint. A file with one is refused, although it would have no effect here.
_HOSTILE_MODULES = {"os", "posix", "nt", "sys", "subprocess", "runpy", "socket", "shutil", "ctypes", "importlib", "pty"}
_HOSTILE = {f"builtins.{name}" for name in ("eval", "exec", "compile", "open", "__import__", "breakpoint", "input")}


def _is_function(value: Any) -> bool:
    return any(value is function for function in _FUNCTIONS.values())


class Unpickler(pickle._Unpickler):  # the one in Python: its opcodes can be replaced
    """Reads a pickle, and calls only the functions of torch that make a plain tensor of a storage."""

    stack: list[Any]
    append: Callable[[Any], None]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Return a permitted function or type, or a new class of stand-ins.

        Raises:
            UnpicklingError: if the name is one that only a hostile file has.
        """
        module = _PYTHON_2.get(module, module)
        path = f"{module}.{name}"
        if module.partition(".")[0] in _HOSTILE_MODULES or path in _HOSTILE:
            raise pickle.UnpicklingError(f"it would call {path}; nothing was executed")
        known = _FUNCTIONS.get(path) or _STORAGES.get(path)
        if known is None and module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            known = getattr(torch, name)
        return known or type(name, (StandIn,), {"__module__": module})

    def load_reduce(self) -> None:
        """Call a function with a tuple of arguments."""
        arguments = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], arguments)

    def load_newobj(self) -> None:
        """Create an object of a class."""
        arguments = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], arguments)

    def load_newobj_ex(self) -> None:
        """Create an object of a class with keyword arguments, which are ignored."""
        self.stack.pop()
        self.load_newobj()

    def _instantiate(self, klass: Any, arguments: Any) -> None:
        self.append(_call(klass, arguments))

    def load_build(self) -> None:
        """Keep the state of a stand-in, and ignore that of all other objects."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], StandIn):
            self.stack[-1].state = state

    def load_binpersid(self) -> None:
        """Load a storage, or the class of a network in torch's older format."""
        reference = self.stack.pop()
        kind = reference[0] if isinstance(reference, tuple) and reference else None
        if kind == "module":  # torch would compare the source of the class
            self.append(reference[1])
        elif kind == "storage":
            self.append(self.persistent_load(reference))
        else:
            raise pickle.UnpicklingError("it refers to an object outside the file")

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("it has an instruction that torch.save does not write")

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BINPERSID[0]] = load_binpersid
    for code in (pickle.PERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
        dispatch[code[0]] = _refuse
    del code


def _call(function: Any, arguments: Any) -> Any:
    if isinstance(function, type) and issubclass(function, StandIn):
        return function()
    if _is_function(function):
        return function(*arguments)
    raise pickle.UnpicklingError("it calls an object that is no class; nothing was executed")


def load(file: BinaryIO, **options: Any) -> Any:
    """Return the next object of a file."""
    return Unpickler(file, **options).load()


def state_of(network: StandIn) -> dict[str, Any]:
    """Return the tensors of a network that was saved whole, by name, as ``nn.Module.state_dict`` does.

    The result is empty if the object was no network.
    """
    state = network.state if isinstance(network.state, dict) else {}
    parameters, buffers, children = (state.get(key) for key in ("_parameters", "_buffers", "_modules"))
    if not (isinstance(parameters, dict) and isinstance(buffers, dict) and isinstance(children, dict)):
        return {}
    unsaved = state.get("_non_persistent_buffers_set")
    unsaved = unsaved if isinstance(unsaved, set) else set()
    own = {**parameters, **{name: value for name, value in buffers.items() if name not in unsaved}}
    found = {name: value for name, value in own.items() if value is not None}
    for name, child in children.items():
        if isinstance(child, StandIn):
            found |= {f"{name}.{inner}": value for inner, value in state_of(child).items()}
    return found
