"""Tests that say nothing of a device, run on one: what they make is made there."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from gankernels import _library
from support import ROOT

#: For tests with the fixture `device` of what only the processor has.
CPU_ONLY = pytest.mark.parametrize("device", ["cpu"], indirect=True)

_TESTS, _PACKAGE = str(ROOT / "tests"), str(_library.PACKAGE)
_device = torch.device("cpu")


def generator(seed: int, device: torch.device | str | None = None) -> torch.Generator:
    """A seeded generator of the device of the test, or of another."""
    return torch.Generator(_device if device is None else device).manual_seed(seed)


class _MakesOn(TorchFunctionMode):
    """What tests make without naming a device is made on this one, with the numbers of the CPU.

    So are the modules that they build. What the package makes in a call is left as it is: a tensor
    that it puts on the CPU by mistake stays there, and is found.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.factories = set(_device_constructors())

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.factories:
            named = kwargs.get("device") is not None
            made_of = (
                args and isinstance(args[0], Tensor) and func in (torch.tensor, torch.as_tensor)
            )
            if not (named or made_of) and _is_made_by_test(sys._getframe(1)):
                return self._make(func, args, kwargs)
        elif getattr(func, "__module__", "") == "torch.nn.init":
            x = args[0] if args else kwargs["tensor"]
            if _is_made_by_test(sys._getframe(1)):
                return self._draw(func, x, args[1:], kwargs)
        return func(*args, **kwargs)

    def _make(self, func: Callable[..., Tensor], args: Any, kwargs: dict[str, Any]) -> Tensor:
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type == self.device.type:
            return func(*args, device=self.device, **kwargs)
        learns = kwargs.pop("requires_grad", False)
        return func(*args, **kwargs).to(self.device).requires_grad_(learns)

    def _draw(self, func: Callable[..., Any], x: Tensor, args: Any, kwargs: Any) -> Tensor:
        if x.device.type != self.device.type:
            return func(x, *args, **kwargs)
        others = {name: value for name, value in kwargs.items() if name != "tensor"}
        with torch.no_grad():
            drawn = func(torch.empty_like(x, device="cpu").copy_(x), *args, **others)
            return x.copy_(drawn)


def _is_made_by_test(frame: FrameType | None) -> bool:
    """Whether a call comes from a test, or builds a module."""
    is_packages = False
    while frame is not None:
        place = frame.f_code.co_filename
        if place.startswith(_TESTS):
            return not is_packages
        if place.startswith(_PACKAGE):
            is_packages = True
            built = frame.f_locals.get("self")
            if frame.f_code.co_name == "__init__" and isinstance(built, nn.Module):
                return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def use(name: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Run a test of this module on a device."""
    global _device
    if name == "cpu":
        yield torch.device("cpu")
        return
    _device = torch.device(name)
    for key, value in list(vars(module).items()):
        if isinstance(value, Tensor):
            monkeypatch.setattr(module, key, value.to(_device))
    # As exact and as reproducible as on the CPU.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    try:
        with _MakesOn(_device):
            yield _device
    finally:
        _device = torch.device("cpu")
