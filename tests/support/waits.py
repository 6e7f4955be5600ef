"""What makes the host wait for a GPU, or breaks the capture of a CUDA graph, found without a GPU.

Tensors of the CPU stand in for those of a GPU: asked for their device they say ``cuda:0``, so that
code takes the branches that it takes there, and have values and gradients. Functions and operators
are looked at: those that read values back, and those that bring numbers or tensors from the host,
which are what was made from nothing without a device of theirs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

#: Operators of which the host needs the values, or by which it decides a shape.
READING = (
    *("_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "nonzero_numpy"),
    *("argwhere", "masked_select", "unique_consecutive", "unique_dim", "_unique", "_unique2"),
    *("bincount", "_pin_memory"),
)
#: Functions that make a tensor of numbers of Python: on a GPU a copy that waits.
FROM_PYTHON = ("tensor", "as_tensor", "new_tensor", "asarray")
_GPU = torch.device("cuda:0")


def _tensors(*values: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(values) if isinstance(x, Tensor)]


def _is_gpu(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.split(":")[0] == "cuda"


def _has_list(index: Any) -> bool:
    """Whether an index has numbers of Python in a list, which become a tensor."""
    return any(isinstance(x, list) for x in (index if isinstance(index, tuple) else (index,)))


class Waits:
    """What was found, and which tensors are on the host."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.on_host: WeakIdKeyDictionary = WeakIdKeyDictionary()  # to whether they are pinned
        self.looks = False

    def say(self, what: str) -> None:
        if self.looks:
            self.found.append(what)

    def is_host(self, x: Tensor) -> bool:
        return x in self.on_host

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """What comes before is made on the GPU, whatever it says of devices."""
        self.looks = True
        try:
            yield
        finally:
            self.looks = False

    def mark(self, result: Any, host: bool, pinned: bool = False) -> None:
        for x in _tensors(result):
            if host:
                self.on_host[x] = pinned
            else:
                self.on_host.pop(x, None)


#: What a tensor says of where it is.
_GETTERS: dict[Any, Any] = {
    Tensor.device.__get__: lambda host: torch.device("cpu") if host else _GPU,  # type: ignore[attr-defined]
    Tensor.is_cuda.__get__: lambda host: not host,  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: lambda host: host,  # type: ignore[attr-defined]
}


class _Functions(TorchFunctionMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits, kwargs = self.waits, dict(kwargs or {})
        if func in _GETTERS:
            host = waits.is_host(args[0])
            return torch.device("meta") if args[0].is_meta else _GETTERS[func](host)
        name = getattr(func, "__name__", "")
        if name == "_parse_to":  # of Module.to
            return func(*args, **kwargs)
        for_gpu = any(_is_gpu(x) for x in (*args, *kwargs.values()))
        for_host = not for_gpu and any(
            x in ("cpu", torch.device("cpu"))
            for x in (*args, *kwargs.values())
            if isinstance(x, (str, torch.device))
        )
        inputs = _tensors(args, kwargs)
        if inputs and not waits.is_host(inputs[0]):
            if name in ("tolist", "numpy", "__array__"):
                waits.say(name)
            if name in ("__getitem__", "__setitem__") and _has_list(args[1]):
                waits.say("an index by a list")
        pinned = bool(kwargs.pop("pin_memory", False))
        args, kwargs = pytree.tree_map(
            lambda x: torch.device("cpu") if _is_gpu(x) else x, (args, kwargs)
        )
        result = func(*args, **kwargs)
        if not _tensors(result):
            return result
        if name in ("to", "cuda", "cpu", "type_as") and inputs:
            host = waits.is_host(inputs[0])
            goes = name == "cpu" or for_host
            comes = name == "cuda" or for_gpu or (name == "to" and len(inputs) > 1)
            if (goes and not host) or (comes and host):
                waits.say(f"a copy {'to' if goes else 'from'} the host")
                if result is inputs[0]:
                    result = result.detach().clone()
            waits.mark(result, goes or (host and not comes))
        elif name in FROM_PYTHON:
            on_gpu = for_gpu or (
                name == "new_tensor" and not waits.is_host(args[0]) and not for_host
            )
            if on_gpu and not (name != "new_tensor" and inputs):
                waits.say(f"{name} of numbers")
            waits.mark(result, not on_gpu if waits.looks else False)
        elif not inputs or for_gpu or for_host:  # made from nothing, or as another but there
            waits.mark(result, waits.looks and not for_gpu, pinned)
        return result


class _Operators(TorchDispatchMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits, kwargs = self.waits, kwargs or {}
        inputs = _tensors(args, kwargs)
        host = [x for x in inputs if waits.is_host(x)]
        if len(host) < len(inputs):
            self._look(func._schema.name.partition("::")[2], args, kwargs, host)
        result = func(*args, **kwargs)
        if inputs and len(host) == len(inputs):
            waits.mark(result, host=True)
        return result

    def _look(self, name: str, args: Any, kwargs: Any, host: list[Tensor]) -> None:
        waits = self.waits
        if name in READING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            waits.say(name)
        elif name.startswith(("index", "_index", "_unsafe_index")) and isinstance(args[1], list):
            for x in _tensors(args[1]):
                if x.dtype in (torch.bool, torch.uint8):
                    waits.say(f"{name} by a mask")
                elif waits.is_host(x):
                    waits.say(f"{name} by a tensor on the host")
        elif name == "copy_" and host:
            if not (kwargs.get("non_blocking") or args[2:3] == (True,)) or not waits.on_host.get(
                host[0]
            ):
                waits.say("a copy between the host and the GPU")
        elif any(x.dim() > 0 for x in host):
            waits.say(f"{name} of tensors on the host and on the GPU")


@contextlib.contextmanager
def standing_in() -> Iterator[Waits]:
    """A block in which tensors of the CPU stand in for those of a GPU; see :class:`Waits`."""
    waits = Waits()
    patches = [
        # Code that runs without modes is what is looked at.
        mock.patch("gankernels.ops._operator.in_dispatch_mode", return_value=False),
        mock.patch("gankernels._fused.frames.in_dispatch_mode", return_value=False),
        mock.patch("gankernels._library.NATIVE_DEVICES", frozenset({"cpu", "cuda"})),
        mock.patch("torch.cuda.current_stream"),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(_Operators(waits))
        stack.enter_context(_Functions(waits))
        yield waits
