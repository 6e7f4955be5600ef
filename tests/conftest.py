"""What every test of an operator shares: backends, tolerances, awkward weights."""

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
from torch import Tensor

from gankernels import _library

#: Largest error against float64, relative to the largest number of the tensor: by the dtype that it
#: is stored in. A few roundings each.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 5e-3,
    torch.float16: 6e-4,
}

DTYPES = tuple(TOLERANCE)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _cpu() -> torch.device:
    status = _library.EXTENSIONS["_C"]
    if not status.loaded:
        pytest.skip(f"gankernels._C: {status.reason}")
    return torch.device("cpu")


#: Where `make test` puts the emulated CUDA kernels.
EMULATOR = Path(
    os.environ.get("GANKERNELS_EMU", Path(__file__).parent.parent / "build" / "emu")
).resolve()
_OPERATORS = [
    importlib.import_module(f"gankernels.ops.{stem}")
    for stem in (
        "ada_parameters",
        "affine_resample",
        "gradient_penalty",
        "image_filter",
        "spectral_norm",
    )
]
_emulator: list[ModuleType] = []


def emulator() -> ModuleType:
    """The emulator's control panel. Its kernels are in ``torch.ops.gankernels_emu``."""
    if not _emulator:
        if not list(EMULATOR.glob("gankernels_emu*.so")):
            pytest.fail(f"expected gankernels_emu in {EMULATOR}: run `make emu`")
        sys.path.insert(0, str(EMULATOR))
        library = torch.library.Library("gankernels_emu", "DEF")
        for operator in _OPERATORS:
            operator.define(library)
        _emulator.extend([importlib.import_module("gankernels_emu"), library])
    return _emulator[0]


def _emu() -> torch.device:
    emulator()
    return torch.device("cpu")


def _cuda() -> torch.device:
    status = _library.EXTENSIONS["_C_cuda"]
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    if not status.loaded:
        pytest.fail(f"gankernels._C_cuda: {status.reason}")
    return torch.device("cuda")


#: What the kernels of an operator run on: a function that prepares it and returns the device of its
#: tensors, or skips. "emu" are the CUDA kernels, emulated, on CPU tensors.
BACKENDS: dict[str, Callable[[], torch.device]] = {"cpu": _cpu, "emu": _emu, "cuda": _cuda}
_current = "cpu"


def current_backend() -> str:
    """The name of the backend under test."""
    return _current


def native_ops() -> Any:
    """The namespace of the backend under test, such as ``torch.ops.gankernels``."""
    return _OPERATORS[0]._ops


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same numbers in every run: what fails, fails every time."""
    torch.manual_seed(0)


@pytest.fixture(params=list(BACKENDS))
def backend(request, monkeypatch) -> Iterator[torch.device]:
    """The device to test on. A test that was answered by the reference after all has failed."""
    global _current
    device = BACKENDS[request.param]()
    if request.param == "emu":
        panel = emulator()
        panel.set_order(panel.Order.random, zlib.crc32(request.node.nodeid.encode()))
        for operator in _OPERATORS:
            monkeypatch.setattr(operator, "_ops", torch.ops.gankernels_emu)
    told = set(_library._told)
    _library._told.clear()
    _current = request.param
    yield device
    _current = "cpu"
    fell_back = set(_library._told)
    _library._told.update(told)
    assert not fell_back, f"expected the kernels, got the reference: {fell_back}"


@pytest.fixture
def cpu_backend() -> None:
    """For what only the CPU kernels have."""
    _cpu()


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads for the length of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


#: What an emulated test goes through instead of instruction sets: orders of the threads.
ORDERS_OF_THREADS = ("descending", "switching")


def instruction_sets() -> list[str]:
    """Those of the CPU kernels that this processor has; orders of threads on the emulator."""
    if _current == "emu":
        return list(ORDERS_OF_THREADS)
    if _current == "cuda":
        return ["cuda"]
    from gankernels import _C

    found = [name for name in ("portable", "avx2", "avx512") if _C.set_isa(name)]
    _C.set_isa("")
    return found


@pytest.fixture
def isa() -> Iterator[Callable[[str], None]]:
    """Chooses among ``instruction_sets()`` for the length of a test."""
    from gankernels import _C

    def choose(name: str) -> None:
        if _current == "emu":
            emulator().set_order(getattr(emulator().Order, name), 1)
        elif _current == "cpu":
            assert _C.set_isa(name)
            assert _C.isa() == name

    yield choose
    _C.set_isa("")


def _channels_last(x: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.dim()])


#: Weights of every memory layout that users have, rows first: from a function that draws numbers.
LAYOUTS: dict[str, Callable[[Callable[..., Tensor]], Tensor]] = {
    "one_element": lambda draw: draw(1, 1),
    "one_row": lambda draw: draw(1, 37),
    "one_column": lambda draw: draw(37, 1),
    "vector": lambda draw: draw(13),
    "vector_of_one": lambda draw: draw(1),
    "vector_strided": lambda draw: draw(26)[::2],
    "linear": lambda draw: draw(31, 33),
    "linear_wide": lambda draw: draw(3, 1031),
    "linear_tall": lambda draw: draw(257, 5),
    "linear_transposed": lambda draw: draw(33, 31).t(),
    "linear_transposed_wide": lambda draw: draw(521, 7).t(),
    "conv1d": lambda draw: draw(17, 5, 3),
    "conv": lambda draw: draw(16, 3, 3, 3),
    "conv_1x1": lambda draw: draw(19, 17, 1, 1),
    "conv_one_channel": lambda draw: draw(1, 23, 4, 4),
    "conv_channels_last": lambda draw: _channels_last(draw(12, 7, 3, 5)),
    "conv_one_channel_channels_last": lambda draw: _channels_last(draw(1, 7, 3, 5)),
    "conv_transpose1d": lambda draw: draw(11, 6, 7).movedim(1, 0),
    "conv_transpose": lambda draw: draw(6, 37, 4, 3).movedim(1, 0),
    "conv_transpose_one_channel": lambda draw: draw(6, 1, 4, 4).movedim(1, 0),
    "conv_transpose_channels_last": lambda draw: _channels_last(draw(6, 10, 4, 3)).movedim(1, 0),
    "conv_other_dim": lambda draw: draw(5, 6, 7, 4).movedim(2, 0),
    "conv_permuted": lambda draw: draw(5, 6, 7, 4).permute(3, 1, 0, 2),
    "conv3d": lambda draw: draw(5, 3, 2, 3, 4),
    "conv3d_channels_last": lambda draw: _channels_last(draw(5, 3, 2, 3, 4)),
    "conv_transpose3d": lambda draw: draw(4, 9, 2, 3, 2).movedim(1, 0),
    "conv_transpose3d_channels_last": lambda draw: _channels_last(draw(4, 9, 2, 3, 2)).movedim(
        1, 0
    ),
    "eight_dims": lambda draw: draw(2, 3, 2, 2, 3, 2, 2, 2).permute(3, 0, 1, 7, 2, 6, 5, 4),
    "slice_of_rows": lambda draw: draw(24, 15)[::2],
    "slice_of_columns": lambda draw: draw(12, 31)[:, 1:-1],
    "slice_of_channels": lambda draw: draw(8, 6, 3, 3)[:, 1:4],
    "slice_with_offset": lambda draw: draw(9, 33)[1:],
    "expanded_rows": lambda draw: draw(1, 30).expand(5, 30),
    "expanded_columns": lambda draw: draw(6, 1).expand(6, 11),
}

#: More than 1 MiB: cut into chunks and spread over the threads.
LARGE_LAYOUTS: dict[str, Callable[[Callable[..., Tensor]], Tensor]] = {
    "linear": lambda draw: draw(701, 743),
    "linear_few_rows": lambda draw: draw(3, 150_001),
    "linear_many_rows": lambda draw: draw(150_001, 3),
    "linear_transposed": lambda draw: draw(743, 701).t(),
    "conv": lambda draw: draw(256, 131, 4, 4),
    "conv_channels_last": lambda draw: _channels_last(draw(256, 131, 4, 4)),
    "conv_transpose": lambda draw: draw(131, 257, 4, 4).movedim(1, 0),
    "conv_transpose_channels_last": lambda draw: _channels_last(draw(131, 257, 4, 4)).movedim(1, 0),
    # So wide that tiles of the CUDA kernels hold their columns 27 at a time, and 32 threads them.
    "conv_transpose_many_rows": lambda draw: draw(2, 3100, 3, 3).movedim(1, 0),
}


def drawer(
    seed: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Callable[..., Tensor]:
    """A function that draws normal numbers of a shape, the same for every dtype up to rounding."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.to(device, dtype)

    return draw


def assert_near(
    got: Tensor,
    expected: Tensor,
    dtype: torch.dtype | None = None,
    *,
    factor: float = 1,
    what: str = "",
) -> None:
    """``got`` equals the float64 ``expected`` up to the tolerance of ``dtype``, by default its own.

    Relative to the largest finite number of ``expected``; NaN and infinity must be where they are.
    """
    assert got.shape == expected.shape, f"{what}: {tuple(got.shape)}, not {tuple(expected.shape)}"
    expected = expected.to(torch.float64)
    finite = expected[torch.isfinite(expected)].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    tolerance = factor * TOLERANCE[dtype or got.dtype] * largest
    torch.testing.assert_close(
        got.detach().to(torch.float64),
        expected.detach(),
        rtol=0,
        atol=tolerance,
        equal_nan=True,
        check_device=False,
        msg=lambda text: f"{what}\n{text}",
    )
