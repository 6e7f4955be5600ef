"""Filtering images by four frequency bands: schemas, fakes, autograd, and the plain functions.

Karras et al. 2020 (arXiv 2006.06676), appendix B. The kernels behind the schemas are bound in
``csrc/bindings/image_filter.cpp``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gankernels import reference
from gankernels._checks import check_real, check_strided, describe, kind
from gankernels._dtypes import accumulation_dtype
from gankernels._layout import is_dense
from gankernels._library import LIBRARY, takes_reference
from gankernels._torch import below_autograd

_SCHEMAS = (
    "image_filter(Tensor image, Tensor gains, Tensor? sigma, Tensor? seed, Tensor? box) -> Tensor",
    "image_filter_transpose(Tensor grad, Tensor gains, Tensor? box) -> Tensor",
)
#: Where the operators are called: the tests put the emulated CUDA kernels here.
_ops: Any = torch.ops.gankernels


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
    sample; the image is continued by reflection about the centres of its border pixels, as far as
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
        box: (B, 3): centre x, centre y and side of what is cut out, in fractions of width and
            height. A pixel is cut if its centre is nearer than half the side along both axes.

    Returns:
        (B, C, H, W), of the dtype and the memory layout of ``image``.

    Raises:
        TypeError, ValueError: if an argument is none of the above.

    Arithmetic is in float32, for float64 images in float64. ``gains``, ``sigma`` and ``box`` are
    converted to what it takes (float64 for ``box``) and held constant by the gradient.
    Differentiable to any order in ``image``: the backward is :func:`image_filter_transpose`, exact
    at the border too, and saves nothing of the image's size. Deterministic, whatever the number of
    threads. Karras et al. 2020 (arXiv 2006.06676), appendix B.
    """
    _check("image_filter", "image", image, gains, sigma, seed, box)
    if takes_reference("image_filter", [image, gains]):
        return reference.image_filter(image, gains, sigma=sigma, seed=seed, box=box)
    gains, sigma, box = _constants(image, gains, sigma, box)
    seed = None if seed is None else seed.contiguous()
    return _call(_ImageFilter, "image_filter", _dense(image), gains, sigma, seed, box)


def image_filter_transpose(grad: Tensor, gains: Tensor, *, box: Tensor | None = None) -> Tensor:
    """The transpose of :func:`image_filter`, of its part that is linear in the image.

    Args:
        grad: (B, C, H, W), of a floating-point dtype.
        gains: (B, 4).
        box: (B, 3). What was cut out gives nothing back.

    Returns:
        (B, C, H, W), of the dtype and the memory layout of ``grad``.

    Raises:
        TypeError, ValueError: if an argument is none of the above.

    Differentiable to any order in ``grad``; deterministic, whatever the number of threads.
    """
    _check("image_filter_transpose", "grad", grad, gains, None, None, box)
    if takes_reference("image_filter_transpose", [grad, gains]):
        return reference.image_filter_transpose(grad, gains, box=box)
    gains, _, box = _constants(grad, gains, None, box)
    return _call(_ImageFilterTranspose, "image_filter_transpose", _dense(grad), gains, box)


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


def _call(function: type[torch.autograd.Function], name: str, x: Tensor, *constants: Any) -> Tensor:
    op = getattr(_ops, name)
    if torch.compiler.is_compiling():
        return op(x, *constants)
    if torch.is_grad_enabled() and x.requires_grad:
        return function.apply(x, *constants)
    with below_autograd():
        return op(x, *constants)


# --- fakes and autograd ------------------------------------------------------------------------


def _fake(image, *constants):
    # It answers for a call in which any tensor is a meta tensor.
    if any(x is not None and x.device != image.device for x in constants):
        raise RuntimeError("expected all tensors on one device")
    return torch.empty_like(image)


def _transpose_of(grad: Tensor, gains: Tensor, box: Tensor | None) -> Tensor:
    return _call(_ImageFilterTranspose, "image_filter_transpose", _dense(grad), gains, box)


def _filter_of(grad: Tensor, gains: Tensor, box: Tensor | None) -> Tensor:
    # The transpose's transpose: the filter without its noise, which is constant.
    return _call(_ImageFilter, "image_filter", _dense(grad), gains, None, None, box)


class _ImageFilter(torch.autograd.Function):
    """The autograd in eager mode; compiled graphs take the registered one."""

    @staticmethod
    def forward(ctx, image, gains, sigma, seed, box):
        ctx.save_for_backward(gains, box)
        with below_autograd():
            return _ops.image_filter(image, gains, sigma, seed, box)

    @staticmethod
    def backward(ctx, grad):
        return _transpose_of(grad, *ctx.saved_tensors), None, None, None, None


class _ImageFilterTranspose(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad, gains, box):
        ctx.save_for_backward(gains, box)
        with below_autograd():
            return _ops.image_filter_transpose(grad, gains, box)

    @staticmethod
    def backward(ctx, grad):
        return _filter_of(grad, *ctx.saved_tensors), None, None


def _setup(ctx, inputs, output):
    _, gains, _, _, box = inputs
    ctx.save_for_backward(gains, box)


def _backward(ctx, grad):
    gains, box = ctx.saved_tensors
    return _ops.image_filter_transpose(_dense(grad), gains, box), None, None, None, None


def _setup_transpose(ctx, inputs, output):
    _, gains, box = inputs
    ctx.save_for_backward(gains, box)


def _backward_transpose(ctx, grad):
    gains, box = ctx.saved_tensors
    return _ops.image_filter(_dense(grad), gains, None, None, box), None, None


def define(library: torch.library.Library) -> None:
    """Define the operators, their fakes and their autograd in the namespace of ``library``."""
    for schema in _SCHEMAS:
        library.define(schema)
    for name, backward, setup in (
        ("image_filter", _backward, _setup),
        ("image_filter_transpose", _backward_transpose, _setup_transpose),
    ):
        name = f"{library.ns}::{name}"
        torch.library.register_fake(name, _fake, lib=library)
        torch.library.register_autograd(name, backward, setup_context=setup, lib=library)


define(LIBRARY)


# --- checks ------------------------------------------------------------------------------------


def _check(op: str, name: str, image: Any, gains: Any, sigma: Any, seed: Any, box: Any) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(f"{op}: expected {name} to be a tensor, got {kind(image)}")
    check_strided(op, name, image)
    check_real(op, name, image)
    if image.dim() != 4 or image.shape[2] == 0 or image.shape[3] == 0:
        raise ValueError(
            f"{op}: expected {name} of shape (B, C, H, W) with pixels, got {describe(image)}"
        )
    for name, x, size in (("gains", gains, 4), ("sigma", sigma, 0), ("box", box, 3)):
        if x is not None or name == "gains":
            _check_numbers(op, name, x, image, size)
            check_real(op, name, x)
    if seed is not None:
        _check_numbers(op, "seed", seed, image, 0)
        if seed.dtype != torch.int64:
            raise TypeError(
                f"{op}: expected seed of dtype int64, got {seed.dtype}; draw it with "
                "torch.randint(2**63 - 1, (B,))"
            )
    if (sigma is None) != (seed is None):
        given, missing = ("seed", "sigma") if sigma is None else ("sigma", "seed")
        raise ValueError(
            f"{op}: expected sigma and seed together, got {given} alone; noise has both a standard "
            f"deviation and a seed for every sample: give {missing}, too"
        )


def _check_numbers(op: str, name: str, x: Any, image: Tensor, size: int) -> None:
    """Refuse what is not ``size`` numbers a sample, or a scalar where that is 0."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: expected {name} to be a tensor, got {kind(x)}")
    check_strided(op, name, x)
    wanted = (image.shape[0], size) if size else (image.shape[0],)
    if tuple(x.shape) != wanted or x.device != image.device:
        raise ValueError(
            f"{op}: expected {name} of shape {tuple(wanted)} on {image.device}, got {describe(x)}"
        )
