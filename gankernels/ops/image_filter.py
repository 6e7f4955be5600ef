"""Filtering images by four frequency bands: schemas, fakes, autograd, and the plain functions.

Karras et al. 2020 (arXiv 2006.06676), appendix B. The kernels behind the schemas are bound in
``csrc/bindings/image_filter.cpp``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gankernels import reference
from gankernels._dtypes import accumulation_dtype
from gankernels._library import takes_reference
from gankernels.ops import _operator
from gankernels.ops._checks.image_filter import check
from gankernels.ops._layout import is_dense
from gankernels.ops._operator import (
    EXAMPLES,
    Draw,
    Operator,
    call_eager,
    declare,
    eager,
    one_device,
)

# --- what users call ---------------------------------------------------------------------------


def image_filter(
    image: Tensor,
    gains: Tensor,
    *,
    sigma: Tensor | None = None,
    seed: Tensor | None = None,
    box: Tensor | None = None,
) -> Tensor:
    """Amplify four frequency bands of every image, add noise, and cut a box out.

    ``k = sum_i gains_i F_i`` of 43 taps is used along x and along y, the same for all channels of a
    sample; the image is continued by reflection about the centers of its border pixels, as far as
    it takes. The bands ``F_i`` are symmetric and add up to the identity: a sample whose gains are
    all exactly 1 is copied, bit for bit. Then ``sigma * n`` is added, with ``n`` normal and
    independent for every element, and then the box is set to 0. Nothing is clamped.

    Args:
        image: (B, C, H, W), of a floating-point dtype. Every H and W of at least 1 will do.
            Contiguous, channels_last and any other dense memory layout is read where it is.
        gains: (B, 4), the lowest band first: pi/8, pi/4, pi/2 and pi are their upper limits.
        sigma: (B,), the standard deviation of the noise, in units of the image.
        seed: (B,), int64, of the noise; given if and only if ``sigma`` is. The same seed gives the
            same noise up to rounding, on every device, whatever the memory layout or the batch.
        box: (B, 3): center x, center y and side of what is cut out, in fractions of width and
            height. A pixel is cut if its center is nearer than half the side along both axes.

    Returns:
        (B, C, H, W), of the dtype and the memory layout of ``image``.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.

    Arithmetic is in float32, for float64 images in float64. ``gains``, ``sigma`` and ``box`` are
    converted to what it takes (float64 for ``box``) and held constant by the gradient.
    Differentiable to any order in ``image``: the backward is :func:`image_filter_transpose`, exact
    at the border too, and saves nothing of the image's size. Deterministic, whatever the number of
    threads. Karras et al. 2020 (arXiv 2006.06676), appendix B.
    """
    check("image_filter", "image", image, gains, sigma, seed, box)
    if takes_reference("image_filter", [image, gains]):
        return reference.image_filter(image, gains, sigma=sigma, seed=seed, box=box)
    gains, sigma, box = _constants(image, gains, sigma, box)
    seed = None if seed is None else seed.contiguous()
    return _filter("image_filter", image, gains, sigma, seed, box)


def image_filter_transpose(grad: Tensor, gains: Tensor, *, box: Tensor | None = None) -> Tensor:
    """The transpose of :func:`image_filter`, of its part that is linear in the image.

    Args:
        grad: (B, C, H, W), of a floating-point dtype.
        gains: (B, 4).
        box: (B, 3). What was cut out gives nothing back.

    Returns:
        (B, C, H, W), of the dtype and the memory layout of ``grad``.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.

    Differentiable to any order in ``grad``; deterministic, whatever the number of threads.
    """
    check("image_filter_transpose", "grad", grad, gains, None, None, box)
    if takes_reference("image_filter_transpose", [grad, gains]):
        return reference.image_filter_transpose(grad, gains, box=box)
    gains, _, box = _constants(grad, gains, None, box)
    return _filter("image_filter_transpose", grad, gains, box)


def _dense(x: Tensor) -> Tensor:
    """``x`` where its memory has neither gaps nor overlaps, else a contiguous copy."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    if torch.compiler.is_compiling():  # strides may be symbols, which cannot be sorted
        return x.contiguous()
    return x if is_dense(x) else x.contiguous()


def _constants(
    image: Tensor, gains: Tensor, sigma: Tensor | None, box: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    dtype = accumulation_dtype(image.dtype)
    gains = gains.detach().to(dtype).contiguous()
    if sigma is not None:
        sigma = sigma.detach().to(dtype).contiguous()
    if box is not None:
        box = box.detach().to(torch.float64).contiguous()
    return gains, sigma, box


# --- fakes and autograd ------------------------------------------------------------------------


def _filter(name: str, x: Tensor, *constants: Tensor | None) -> Tensor:
    return call_eager(_EAGER[name], getattr(_operator.kernels, name), _dense(x), *constants)  # type: ignore[no-any-return]


def _fake(image, *constants):
    one_device(image, *constants)
    return torch.empty_like(image)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[1], inputs[-1])  # gains and box


def _backward(ctx, grad):
    return _filter("image_filter_transpose", grad, *ctx.saved_tensors), None, None, None, None


def _backward_transpose(ctx, grad):
    # The transpose's transpose: the filter without its noise, which is constant.
    gains, box = ctx.saved_tensors
    return _filter("image_filter", grad, gains, None, None, box), None, None


OPERATORS = (
    Operator(
        "image_filter(Tensor image, Tensor gains, Tensor? sigma, Tensor? seed, Tensor? box) "
        "-> Tensor",
        _fake,
        _backward,
        _setup,
    ),
    Operator(
        "image_filter_transpose(Tensor grad, Tensor gains, Tensor? box) -> Tensor",
        _fake,
        _backward_transpose,
        _setup,
    ),
)
_EAGER = {operator.name: eager(operator) for operator in OPERATORS}

declare(*OPERATORS)


def _example(draw: Draw) -> dict[str, Any]:
    gains = draw(4, 4).abs()
    return {"gains": gains, "box": torch.full((4, 3), 0.4, dtype=torch.float64).to(gains.device)}


EXAMPLES["image_filter"] = lambda draw: {
    "image": draw(4, 3, 24, 33).requires_grad_(),
    **_example(draw),
    "sigma": draw(4).abs(),
    "seed": draw(4).long(),
}
EXAMPLES["image_filter_transpose"] = lambda draw: {
    "grad": draw(4, 3, 24, 33).requires_grad_(),
    **_example(draw),
}
