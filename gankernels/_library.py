"""Loads the two extension modules, says what was found, and falls back to the reference loudly.

The operators of ``torch.ops.gankernels`` are defined in Python (``gankernels/ops``); the extension
modules only bring their implementations, ``_C`` those for CPU tensors and ``_C_cuda`` those for
CUDA tensors. Without a module the plain functions of ``gankernels.ops`` take the PyTorch reference.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from gankernels._checks import is_choice
from gankernels._dtypes import NATIVE_DTYPES
from gankernels._torch import FakeTensor, in_forward_ad, in_functorch

logger = logging.getLogger("gankernels")

#: The package and the namespace of its operators: another name where several versions live in one
#: process (``tools/hub.py``).
NAME = __package__
#: The namespace that ``gankernels/ops`` defines its schemas in.
LIBRARY = torch.library.Library(NAME, "DEF")

#: The folder that the package was imported from.
PACKAGE = Path(__file__).resolve().parent


def hidden_copy() -> Path | None:
    """Another copy of the package that Python would import if this one were not before it, or None.

    ``python -m`` and ``python -c`` put the current folder before site-packages, so that in a clone
    the sources, which were perhaps never compiled, hide what ``pip install .`` has installed.
    """
    others = [entry for entry in sys.path if Path(entry).resolve() != PACKAGE.parent]
    spec = importlib.machinery.PathFinder.find_spec(NAME, others)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).resolve().parent
    return None if folder == PACKAGE else folder


@dataclass(frozen=True)
class ExtensionStatus:
    """The result of loading one extension module."""

    loaded: bool
    path: str | None = None
    reason: str | None = None
    cure: str | None = None


def _load(name: str, cure: str) -> tuple[ModuleType | None, ExtensionStatus]:
    try:
        module = importlib.import_module(f"{NAME}.{name}")
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError):
            return None, ExtensionStatus(False, reason=f"it does not load: {error}", cure=cure)
        reason, copy = "it was not built", hidden_copy()
        if copy is not None and any(copy.glob(f"{name}.*")):
            reason = f"Python imports gankernels from {PACKAGE}, where it was not built"
            cure = f"start Python in another folder: the compiled copy is in {copy}"
        return None, ExtensionStatus(False, reason=reason, cure=cure)
    return module, ExtensionStatus(True, path=module.__file__)


def _load_cuda() -> ExtensionStatus:
    if torch.version.cuda is None:
        return ExtensionStatus(
            False,
            reason=f"torch {torch.__version__} is built without CUDA",
            cure="install a CUDA build of torch, then reinstall gankernels",
        )
    return _load("_C_cuda", "reinstall gankernels with GANKERNELS_CUDA=1 to see what is missing")[1]


_C, _status = _load("_C", "reinstall gankernels where a C++20 compiler is found")
EXTENSIONS: dict[str, ExtensionStatus] = {"_C": _status, "_C_cuda": _load_cuda()}
#: The types of devices that an extension was loaded for.
NATIVE_DEVICES = frozenset(
    device for device, name in (("cpu", "_C"), ("cuda", "_C_cuda")) if EXTENSIONS[name].loaded
)


def build_info() -> dict[str, Any] | None:
    """The record that setup.py wrote when it compiled the extensions; None if it never did."""
    try:
        module = importlib.import_module(f"{NAME}._build_info")
    except ModuleNotFoundError:
        return None
    return dict(module.BUILD_INFO)


def why_missing(name: str, build: dict[str, Any] | None) -> tuple[str | None, str | None]:
    """Why a module was not loaded, and the cure: what the record of the build says, if anything."""
    status = EXTENSIONS[name]
    left_out = (build or {}).get("cuda", {})
    if not status.loaded and name == "_C_cuda" and torch.version.cuda and "left_out" in left_out:
        return f"it was not built: {left_out['left_out']}", left_out["cure"]
    return status.reason, status.cure


def architectures(arch_flags: Sequence[str]) -> list[str]:
    """nvcc's -gencode flags as TORCH_CUDA_ARCH_LIST writes them: ["8.0", "9.0", "9.0+PTX"]."""
    return [f"{major}.{minor}{'+PTX' if ptx else ''}" for major, minor, ptx in _parse(arch_flags)]


def covers(arch_flags: Sequence[str], device: tuple[int, int]) -> bool:
    """Whether kernels compiled with these flags run on the device, as they are or from PTX."""
    return _covers(_parse(arch_flags), device)


def _covers(targets: Sequence[tuple[int, int, bool]], device: tuple[int, int]) -> bool:
    for major, minor, ptx in targets:
        if (ptx and (major, minor) <= device) or (major == device[0] and minor <= device[1]):
            return True
    return False


def _parse(arch_flags: Sequence[str]) -> list[tuple[int, int, bool]]:
    targets = []
    for flag in arch_flags:
        match = re.search(r"code=(sm|compute)_(\d+)(\d)", flag)
        if match is not None:
            targets.append((int(match[2]), int(match[3]), match[1] == "compute"))
    return sorted(targets)


def arch_flags() -> list[str]:
    """nvcc's -gencode flags that the CUDA kernels were compiled with, as far as is recorded."""
    return list((build_info() or {}).get("cuda", {}).get("arch_flags", []))


def _gap(index: int) -> str | None:
    """Why no kernel runs on a GPU, and the cure; None where they do."""
    if not _TARGETS or not torch.cuda.is_available():
        return None
    gpu = torch.cuda.get_device_properties(index)
    if _covers(_TARGETS, (gpu.major, gpu.minor)):
        return None
    return (
        f"the kernels were compiled for {_COMPILED}, and {gpu.name} is "
        f"of architecture {gpu.major}.{gpu.minor}; reinstall gankernels with "
        f'TORCH_CUDA_ARCH_LIST="{gpu.major}.{gpu.minor}"'
    )


#: The architectures of the CUDA kernels; none where nothing is recorded.
_TARGETS = _parse(arch_flags())
_COMPILED = ", ".join(architectures(arch_flags()))
#: :func:`_gap` of each GPU, asked for when its first tensor comes: asking starts CUDA.
_gaps: dict[int, str | None] = {}


def gap_of(device: torch.device) -> str | None:
    """Why no kernel runs on the GPU of a tensor, which is known from its first tensor on."""
    index = device.index or 0
    if torch.compiler.is_compiling():
        return _gap(index)
    if index not in _gaps:
        _gaps[index] = _gap(index)
    return _gaps[index]


_backend: Literal["native", "reference"] = "native"
#: Operators that took the reference, and why: each is logged once.
_fallbacks: set[tuple[str, str]] = set()


@contextmanager
def backend(name: Literal["native", "reference"]) -> Iterator[None]:
    """Run gankernels' operators on the compiled kernels or on the plain PyTorch reference.

    ``"native"`` is the default. ``"reference"`` is slower, works on any device and dtype that
    PyTorch does, and is differentiable to any order. The choice holds for the whole process, other
    threads included, until the block ends. A graph built within the block keeps its backend.

    Raises:
        ValueError: if ``name`` is neither.
    """
    global _backend
    if not is_choice(name, ("native", "reference")):
        raise ValueError(f'backend: expected "native" or "reference", got {name!r}')
    before, _backend = _backend, name
    try:
        yield
    finally:
        _backend = before


def takes_reference(op: str, tensors: Sequence[Tensor]) -> bool:
    """Whether ``op`` must take the reference for these tensors; says why once per op and reason."""
    if _backend == "reference":
        return True
    first = tensors[0]
    device, dtype = first.device.type, first.dtype
    if device not in NATIVE_DEVICES and device != "meta":
        name = {"cpu": "_C", "cuda": "_C_cuda"}.get(device)
        reason = f"there are no kernels for {device} tensors"
        if name is not None:
            why, cure = why_missing(name, build_info())
            reason = f"gankernels.{name} is missing: {why}; {cure}"
    elif dtype not in NATIVE_DTYPES:
        reason = f"there are no kernels for {dtype}"
    elif device == "cuda" and (gap := gap_of(first.device)) is not None:
        reason = gap
    elif torch.compiler.is_compiling():
        return False
    elif in_functorch():
        reason = "a torch.func transform is active"
    elif in_forward_ad():
        reason = "forward-mode AD is active"
    elif any(is_foreign(t) for t in tensors):
        reason = "a tensor subclass defines its own dispatch"
    else:
        return False
    _log_fallback(op, reason)
    return True


def has_kernels(tensor: Tensor) -> bool:
    """Whether a plain tensor is one that the compiled kernels take, and nothing is in their way."""
    return (
        type(tensor) in (torch.nn.Parameter, Tensor)
        and tensor.dtype in NATIVE_DTYPES
        and tensor.device.type in NATIVE_DEVICES
        and (tensor.device.type != "cuda" or gap_of(tensor.device) is None)
        and _backend == "native"
    )


def is_foreign(tensor: Tensor) -> bool:
    """Whether a subclass defines its own dispatch: kernels cannot look at its memory."""
    if type(tensor) in (Tensor, torch.nn.Parameter) or not isinstance(tensor, Tensor):
        return False
    own = type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
    return own and not isinstance(tensor, FakeTensor)


def _log_fallback(op: str, reason: str) -> None:
    if torch.compiler.is_compiling() or (op, reason) in _fallbacks:
        return
    everywhere = reason in _gaps.values() or reason.startswith("gankernels._C")
    told = everywhere and any(other == reason for _, other in _fallbacks)
    _fallbacks.add((op, reason))
    if told:  # of the GPU or of a module, which is so for every operator
        return
    logger.warning("gankernels.%s takes the slower PyTorch reference: %s", op, reason)


@contextmanager
def fallbacks() -> Iterator[set[tuple[str, str]]]:
    """The operators that take the reference within a block, and why; complete when it has ended."""
    before, found = set(_fallbacks), set[tuple[str, str]]()
    _fallbacks.clear()
    try:
        yield found
    finally:
        found |= _fallbacks
        _fallbacks.update(before)


def isa() -> str | None:
    """The instruction set that the CPU kernels chose at run time, e.g. ``"avx512"``."""
    return None if _C is None else _C.isa()


def empty_cache() -> int:
    """Give the recycled output buffers of the CPU kernels back to the system; returns the bytes.

    Outputs of 64 KiB and more come from a pool: memory that a freed tensor leaves behind serves the
    next call without page faults. The pool gives back by itself what does not come again: with what
    is in use it holds at most twice the most that was lately in use at once, or 32 MiB, and of its
    own a sixteenth of the memory that the process may use (the machine's, or its control group's).
    Tensors that are alive are not touched.
    """
    return 0 if _C is None else _C.empty_cache()
