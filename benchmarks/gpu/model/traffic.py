"""Launches and bytes of torch's operators, counted on tensors without memory; nothing is run.

An operator is a launch that reads its tensors and writes its results once, which is the least that
kernels without fusion do; where torch starts more, or touches less, ``_special`` knows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.published import stylegan2_ada

#: Operators that launch nothing, beside views.
_NOTHING = ("empty", "empty_like", "empty_strided", "new_empty", "lift_fresh", "_unsafe_view")


@dataclass
class Traffic:
    """Of a pass: launches, bytes read and written, and the most that an operator touches."""

    launches: int = 0
    nbytes: int = 0
    working_set: int = 0

    def add(self, launches: int, nbytes: int) -> None:
        self.launches += launches
        self.nbytes += nbytes
        self.working_set = max(self.working_set, nbytes)


class Counter(TorchDispatchMode):
    """Adds up the operators that run within it."""

    def __init__(self) -> None:
        super().__init__()
        self.traffic = Traffic()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        _, _, name = func._schema.name.partition("::")
        views = [r.alias_info for r in func._schema.returns]
        is_view = bool(views) and all(a is not None and not a.is_write for a in views)
        if not is_view and name not in _NOTHING:
            inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
            self.traffic.add(*_cost(name, inputs, outputs))
        return out


def _size(*tensors: Tensor) -> int:
    """Bytes of the tensors' elements, of expanded ones those that exist."""
    return sum(
        x.element_size() * math.prod(n for n, s in zip(x.shape, x.stride(), strict=True) if s)
        for x in tensors
    )


def _cost(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[int, int]:
    special = _special.get(name)
    if special is not None:
        return special(inputs, outputs)
    return 1, _size(*inputs, *outputs)


def _affine_grid(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[int, int]:
    # Two of linspace, mul, div and copy_ each, fill_ and bmm: x, y and 1 of a point are written,
    # read, and become two numbers.
    points = outputs[0].numel() // 2
    return 10, 4 * (3 + 3 + 2) * points


def _grid_sample(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[int, int]:
    # Of the image a pixel a point, if it has as many: neighbors share theirs.
    image, grid = inputs
    return 1, min(_size(image), _size(outputs[0])) + _size(grid, *outputs)


def _grid_sample_backward(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[int, int]:
    # A fill of the image's gradient; then pixels are read, and their gradients read and written.
    # The gradient of the grid is made, too, whether it is wanted or not.
    grad, image, grid = inputs
    touched = min(_size(image), _size(grad))
    return 2, _size(image) + _size(grad) + 3 * touched + 2 * _size(grid)


def _convolution_backward(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[int, int]:
    grad, _, weight = inputs  # filters are constants, so that the image is not read
    return 1, _size(grad, weight, outputs[0])


def _pad_backward(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[int, int]:
    return 2, _size(inputs[0]) + 3 * _size(outputs[0])  # a fill, and atomic additions


_special: dict[str, Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[int, int]]] = {
    "affine_grid_generator": _affine_grid,
    "grid_sampler_2d": _grid_sample,
    "grid_sampler_2d_backward": _grid_sample_backward,
    "convolution_backward": _convolution_backward,
    "reflection_pad2d_backward": _pad_backward,
}


def _count(run: Callable[[], Tensor]) -> tuple[Traffic, Tensor]:
    with Counter() as counter:
        out = run()
    return counter.traffic, out


def _both(pass_of: Callable[[Tensor], Tensor], shape: Sequence[int]) -> tuple[Traffic, Traffic]:
    image = torch.empty(*shape, device="meta", requires_grad=True)
    pass_of(image)  # the constants are made, and kept
    forward, out = _count(lambda: pass_of(image))
    grad = torch.empty_like(out)
    backward, _ = _count(lambda: torch.autograd.grad(out, image, grad)[0])
    return forward, backward


def published_geometry(shape: Sequence[int], margins: Sequence[int]) -> tuple[Traffic, Traffic]:
    """The published geometry, forward and backward, of images padded by those margins."""
    maps = torch.empty(shape[0], 2, 3, dtype=torch.float64, device="meta")
    # Without the decorator: there is no autocast of tensors without memory.
    geometry = stylegan2_ada.geometry.__wrapped__  # type: ignore[attr-defined]
    return _both(lambda image: geometry(image, maps, margins), shape)


def published_filter(shape: Sequence[int]) -> tuple[Traffic, Traffic]:
    """The published filter by bands, forward and backward."""
    gains = torch.empty(shape[0], 4, device="meta")
    image_filter = stylegan2_ada.image_filter.__wrapped__  # type: ignore[attr-defined]
    return _both(lambda image: image_filter(image, gains), shape)
