"""What the kernels of an operator run on: the processor, the emulator, nvcc's PTX, a GPU."""

import contextlib
import importlib
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from gankernels import _library
from gankernels.ops import _operator
from support import ROOT


def _cpu() -> torch.device:
    status = _library.EXTENSIONS["_C"]
    if not status.loaded:
        pytest.skip(f"gankernels._C: {status.reason}")
    return torch.device("cpu")


#: Where `make emu` and `make ptx` put the CUDA kernels for CPU tensors: compiled by g++ for the
#: emulator, and as nvcc compiled them, its PTX translated.
FOLDERS = {
    "emu": Path(os.environ.get("GANKERNELS_EMU", ROOT / "build" / "emu")).resolve(),
    "ptx": Path(os.environ.get("GANKERNELS_PTX", ROOT / "build" / "ptx")).resolve(),
}
_panels: dict[str, tuple[ModuleType, torch.library.Library]] = {}


def panel_of(backend: str) -> ModuleType:
    """The control panel of "emu" or "ptx"; ``torch.ops.gankernels_<backend>`` has the kernels."""
    if backend not in _panels:
        name, folder = f"gankernels_{backend}", FOLDERS[backend]
        if not list(folder.glob(f"{name}*.so")):
            pytest.fail(f"expected {name} in {folder}: run `make {backend}`")
        sys.path.insert(0, str(folder))
        library = torch.library.Library(name, "DEF")
        _operator.define(library, _operator.DECLARED)
        _panels[backend] = importlib.import_module(name), library
    return _panels[backend][0]


def write_coverage() -> None:
    """What of nvcc's PTX this process executed, to the file that PTX_COVERAGE names, if any."""
    if "ptx" in _panels:
        panel_of("ptx").write_coverage()


def emulator() -> ModuleType:
    """The emulator's control panel. Its kernels are in ``torch.ops.gankernels_emu``."""
    return panel_of("emu")


def _emu() -> torch.device:
    panel_of("emu")
    return torch.device("cpu")


def _ptx() -> torch.device:
    panel_of("ptx")
    return torch.device("cpu")


def _cuda() -> torch.device:
    status = _library.EXTENSIONS["_C_cuda"]
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    if not status.loaded:
        pytest.fail(f"gankernels._C_cuda: {status.reason}")
    return torch.device("cuda")


#: What the kernels of an operator run on: a function that prepares it and returns the device of its
#: tensors, or skips. "emu" are the CUDA kernels, emulated, on CPU tensors; "ptx", which `make ptx`
#: asks for by GANKERNELS_PTX, what nvcc made of them.
BACKENDS: dict[str, Callable[[], torch.device]] = {"cpu": _cpu, "emu": _emu, "cuda": _cuda}
if "GANKERNELS_PTX" in os.environ:
    BACKENDS["ptx"] = _ptx
#: Those that take long, a thread of a GPU after the other.
EMULATED = ("emu", "ptx")
_current = "cpu"


def _really(*, strict: bool) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


#: What tests on a GPU run in: nothing, but where it is pretended.
on_gpu: Callable[..., contextlib.AbstractContextManager[None]] = _really


@contextlib.contextmanager
def use(name: str, test: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Run the operators on a backend within a block of the test of this id."""
    global _current
    device = BACKENDS[name]()
    if name in EMULATED:
        panel = panel_of(name)
        panel.set_order(panel.Order.random, zlib.crc32(test.encode()))
        monkeypatch.setattr(_operator, "kernels", getattr(torch.ops, f"gankernels_{name}"))
    _current = name
    try:
        with on_gpu(strict=True) if name == "cuda" else contextlib.nullcontext():
            yield device
    finally:
        _current = "cpu"


def current_backend() -> str:
    """The name of the backend under test."""
    return _current


def native_ops() -> Any:
    """The namespace of the backend under test, such as ``torch.ops.gankernels``."""
    return _operator.kernels


#: What an emulated test goes through instead of instruction sets: orders of the threads.
ORDERS_OF_THREADS = ("descending", "switching")


def instruction_sets() -> list[str]:
    """Those of the CPU kernels that this processor has; orders of threads on the emulator."""
    if _current in EMULATED:
        return list(ORDERS_OF_THREADS)
    if _current == "cuda":
        return ["cuda"]
    from gankernels import _C

    return list(_C.isas())


def choose_isa(name: str) -> None:
    """Choose one of :func:`instruction_sets`."""
    if _current in EMULATED:
        panel = panel_of(_current)
        panel.set_order(getattr(panel.Order, name), 1)
    elif _current == "cpu":
        from gankernels import _C

        assert _C.set_isa(name)
        assert _C.isa() == name
