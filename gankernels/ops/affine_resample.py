"""Affine resampling, its exact transpose, and the same with color, noise and cutout behind it.

Karras et al. 2020 (arXiv 2006.06676), appendix B. The kernels behind the schemas are bound in
``csrc/bindings/affine_resample.cpp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from gankernels import reference
from gankernels._checks import check_bool
from gankernels._library import takes_reference
from gankernels.ops import _operator
from gankernels.ops._checks.affine_resample import (
    FILTERS,
    PADDINGS,
    check,
    check_epilogue,
    check_pair,
    check_size,
    check_theta,
)
from gankernels.ops._operator import (
    EXAMPLES,
    Draw,
    Operator,
    call_eager,
    declare,
    eager,
    one_device,
)

Filter = Literal["sym6", "bilinear", "nearest"]
Mode = Literal["ideal", "stylegan2-ada"]
PaddingMode = Literal["reflection", "zeros", "border"]


# --- what users call -----------------------------------------------------------------------------


def affine_resample(
    image: Tensor,
    inverse_maps: Tensor,
    *,
    filter: Filter = "sym6",
    mode: Mode = "ideal",
    margins: Tensor | None = None,
    padding_mode: PaddingMode = "reflection",
    output_size: tuple[int, int] | None = None,
    lossless_blits: bool = True,
) -> Tensor:
    """Resample every image of a batch under an affine map of its own.

    The filter ``"sym6"`` up-samples by 2 with a symlet of 12 taps, interpolates linearly and
    down-samples with the same symlet, in one pass: the anti-aliased resampling of adaptive
    discriminator augmentation (Karras et al. 2020, arXiv 2006.06676, appendix B).

    Args:
        image: (B, C, H, W), float32, float64, bfloat16 or float16; any strides.
        inverse_maps: (B, 2, 3), from centered output pixels to centered input pixels: x to the
            right, y down, in pixels, (0, 0) in the middle of an image. Best composed in float64;
            see
            :func:`maps_from_theta` for the ``theta`` of ``affine_grid``. Constant to autograd.
        filter: ``"sym6"``, ``"bilinear"`` or ``"nearest"`` (halves to even).
        mode: ``"ideal"`` makes every sample independent of its batch, with unlimited reflection.
            ``"stylegan2-ada"`` pads the batch by common margins and takes zeros beyond, as the
            published pipeline does; for ``"sym6"`` only, and without lossless blits.
        margins: of ``"stylegan2-ada"``: int64 (4,), left, right, top and bottom; by default those
            of the publication, found on the device.
        padding_mode: of the plain filters: ``"reflection"`` about the centers of border pixels (the
            edge is not repeated), ``"zeros"``, or ``"border"``. ``"sym6"`` reflects.
        output_size: height and width of the result; by default those of the image.
        lossless_blits: flips, quarter turns and whole shifts, of which every source position is a
            pixel, copy pixels in the ideal mode. The filter, which is not symmetric, would lose 23
            dB.

    Returns:
        (B, C, *output_size), of the image's dtype, and channels_last where the image is. Sums are
        float32, float64 for float64 images. A map that is not finite gives NaN; one that is gives
        what it reaches, however far that lies.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.

    Linear in ``image``, and differentiable to any order in it: the backward is
    :func:`affine_resample_transpose`. Deterministic. Nothing is read back from the device.
    """
    op = "affine_resample"
    check(op, "image", image, inverse_maps, filter, mode, margins, padding_mode, lossless_blits)
    size = check_size(op, "output_size", output_size, image)
    if mode == "stylegan2-ada" and size != tuple(image.shape[2:]):
        raise ValueError(
            'affine_resample: expected no output_size with mode "stylegan2-ada", whose results are '
            f"of the image's size, got {size} for {tuple(image.shape[2:])}"
        )
    maps, margins = _prepared(inverse_maps, mode, margins, image.shape)
    if takes_reference(op, (image, maps)):
        return reference.affine_resample(
            image,
            maps,
            filter=filter,
            margins=margins,
            padding_mode=padding_mode,
            output_size=size,
            lossless_blits=lossless_blits,
        )
    options = FILTERS.index(filter), PADDINGS.index(padding_mode), lossless_blits
    return _run("affine_resample", image, maps, margins, *options, *size)


def affine_resample_transpose(
    grad: Tensor,
    inverse_maps: Tensor,
    *,
    input_size: tuple[int, int] | None = None,
    filter: Filter = "sym6",
    mode: Mode = "ideal",
    margins: Tensor | None = None,
    padding_mode: PaddingMode = "reflection",
    lossless_blits: bool = True,
) -> Tensor:
    """The transpose of :func:`affine_resample` as a matrix: ``<R x, g> = <x, R^T g>``.

    Args:
        grad: (B, C, H', W'), what the resampled images are paired with.
        input_size: height and width of the images; by default those of ``grad``.
        inverse_maps, filter, mode, margins, padding_mode, lossless_blits: as there.

    Returns:
        (B, C, *input_size), of ``grad``'s dtype and memory format.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.

    Linear in ``grad``, and differentiable to any order in it. Deterministic; in CUDA a gather.
    """
    op = "affine_resample_transpose"
    check(op, "grad", grad, inverse_maps, filter, mode, margins, padding_mode, lossless_blits)
    size = check_size(op, "input_size", input_size, grad)
    if mode == "stylegan2-ada" and size != tuple(grad.shape[2:]):
        raise ValueError(f'{op}: expected no input_size with mode "stylegan2-ada", got {size}')
    maps, margins = _prepared(inverse_maps, mode, margins, grad.shape)
    if takes_reference(op, (grad, maps)):
        return reference.affine_resample_transpose(
            grad,
            maps,
            input_size=size,
            filter=filter,
            margins=margins,
            padding_mode=padding_mode,
            lossless_blits=lossless_blits,
        )
    options = FILTERS.index(filter), PADDINGS.index(padding_mode), lossless_blits
    return _run("affine_resample_transpose", grad, maps, margins, *options, *size)


def affine_augment(
    image: Tensor,
    inverse_maps: Tensor | None = None,
    *,
    color: Tensor | None = None,
    color_channels: Sequence[int] | None = None,
    sigma: Tensor | None = None,
    seed: Tensor | None = None,
    box: Tensor | None = None,
    filter: Filter = "sym6",
    mode: Mode = "ideal",
    margins: Tensor | None = None,
    padding_mode: PaddingMode = "reflection",
    lossless_blits: bool = True,
) -> Tensor:
    """Geometry, color, noise and cutout of a batch in one pass over the images.

    In the order of Karras et al. 2020 (arXiv 2006.06676), appendix B:
    ``keep * (A resampled + offset + sigma * noise)``.

    Args:
        image: (B, C, H, W), as for :func:`affine_resample`.
        inverse_maps: (B, 2, 3), likewise; None leaves the geometry alone.
        color: (B, 3, 4) or (B, 1, 2), matrix and offset side by side, of the accumulation dtype.
        color_channels: the 3 (or 1) channels that ``color`` acts on, ascending; by default all.
        sigma: (B,), standard deviation of the noise, of the accumulation dtype.
        seed: (B,), int64, of the noise: the same seed gives the same noise, by Philox4x32-10 (see
            ``csrc/common/epilogue.h``), in every memory format and dtype.
        box: (B, 3), float64: center x, center y and size of what is cut out, in fractions of the
            image; size 0 cuts nothing.
        filter, mode, margins, padding_mode, lossless_blits: as for :func:`affine_resample`.

    Returns:
        As ``image``, and of its dtype. Where nothing is done to a sample its values come back bit
        for bit.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.

    Affine in ``image`` and differentiable to any order in it; all else is constant to autograd.
    Deterministic.
    """
    op = "affine_augment"
    check(op, "image", image, inverse_maps, filter, mode, margins, padding_mode, lossless_blits)
    channels = check_epilogue(op, image, color, color_channels, sigma, seed, box)
    maps: Tensor | None = None
    if inverse_maps is not None:
        maps, margins = _prepared(inverse_maps, mode, margins, image.shape)
    if takes_reference(op, [x for x in (image, maps) if x is not None]):
        return reference.affine_augment(
            image,
            maps,
            filter=filter,
            margins=margins,
            padding_mode=padding_mode,
            lossless_blits=lossless_blits,
            color=color,
            color_channels=channels,
            sigma=sigma,
            seed=seed,
            box=box,
        )
    matrix, *rest = (None if x is None else x.contiguous() for x in (color, sigma, seed, box))
    options = FILTERS.index(filter), PADDINGS.index(padding_mode), lossless_blits
    return _run("affine_augment", image, maps, margins, *options, matrix, channels, *rest, True)


def augment_about_mean(
    image: Tensor, mean: Tensor, shade: Tensor, color: Tensor, box: Tensor | None = None
) -> Tensor:
    """:func:`affine_augment` of ``image + mean * m``, with m the mean of each image, in one pass.

    Args:
        image: (B, C, H, W), of 1 or 3 channels.
        mean: (B,), of the accumulation dtype.
        shade: (B,), likewise: what ``mean * 1`` becomes by the matrices of ``color``.
        color: (B, C, C + 1), as there. Offsets are moved by ``shade * m`` **in place**.
        box: as there.

    Returns:
        As ``image``, and of its dtype; rounded once.

    Differentiable to any order in ``image``: the mean is part of it.
    """
    columns = mean[:, None, None, None]
    if takes_reference("affine_augment", (image,)) or not _operator.runs_eagerly():
        m = image.mean((1, 2, 3), keepdim=True, dtype=color.dtype)
        y = torch.addcmul(image, m, columns)  # of color's dtype
        return affine_augment(y, color=color, box=box, filter="nearest").to(image.dtype)
    if torch.is_grad_enabled() and image.requires_grad:
        return _AboutMean.apply(image, columns, shade, color, box)  # type: ignore[no-any-return]
    return _about_mean(image, shade, color, box)


def maps_from_theta(
    theta: Tensor,
    size: tuple[int, int],
    align_corners: bool = False,
    *,
    output_size: tuple[int, int] | None = None,
) -> Tensor:
    """The ``inverse_maps`` that do what ``affine_grid(theta, ...)`` and ``grid_sample`` do.

    Args:
        theta: (B, 2, 3), from normalized output to normalized input coordinates.
        size: height and width of the images.
        align_corners: whether -1 and 1 are the centers of border pixels, or the image's edges.
        output_size: height and width of the result; by default ``size``.

    Returns:
        (B, 2, 3), float64. With ``filter="bilinear"`` or ``"nearest"`` and zeros or border
        :func:`affine_resample` then equals ``grid_sample`` of the same ``align_corners``, single
        pixels included; its reflection is the one of ``align_corners=True``.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """
    op = "maps_from_theta"
    check_theta(op, theta)
    check_bool(op, "align_corners", align_corners)
    less = 1 if align_corners else 0
    height, width = check_pair(op, "size", size)
    out_height, out_width = check_pair(
        op, "output_size", size if output_size is None else output_size
    )
    # Between the centers of a single pixel there is nothing: of the input all positions are that
    # pixel. That of the output is at 0, whatever it is divided by.
    of_input = [(n - less) / 2 for n in (width, height)]
    of_output = [max(n - less, 1) / 2 for n in (out_width, out_height)]
    theta = theta.double()
    columns = [theta[:, :, k] / n for k, n in enumerate(of_output)]
    maps = torch.stack((*columns, theta[:, :, 2]), 2)
    # Numbers of Python: copying a list to a GPU would wait for it.
    return torch.stack([maps[:, k] * n for k, n in enumerate(of_input)], 1)


def _prepared(
    maps: Tensor, mode: str, margins: Tensor | None, shape: Sequence[int]
) -> tuple[Tensor, Tensor | None]:
    """Maps as the kernels take them, and the margins of the batch if the mode has any."""
    maps = maps.detach().double().contiguous()
    if mode == "ideal":
        return maps, None
    if margins is None:
        margins = reference.batch_margins(maps, shape[2], shape[3])
    return maps, margins.contiguous()


def _about_mean(image: Tensor, shade: Tensor, color: Tensor, box: Tensor | None) -> Tensor:
    m = image.mean((1, 2, 3), dtype=color.dtype)
    color[:, :, -1].addcmul_(m[:, None], shade[:, None])
    return affine_augment(image, color=color, box=box, filter="nearest")


class _AboutMean(torch.autograd.Function):
    """The transpose is that of the pass, h, and ``mean`` times the mean of h."""

    @staticmethod
    def forward(ctx, image, columns, shade, color, box):
        out = _about_mean(image, shade, color, box)
        ctx.save_for_backward(columns, color, box)
        return out

    @staticmethod
    def backward(ctx, grad):
        columns, color, box = ctx.saved_tensors
        options = FILTERS.index("nearest"), PADDINGS.index("reflection"), True
        channels = list(range(grad.shape[1]))
        constants = None, None, *options, color, channels, box
        h = _run("affine_augment_transpose", grad, *constants)
        m = h.mean((1, 2, 3), keepdim=True, dtype=color.dtype)
        return torch.addcmul(h, m, columns).to(grad.dtype), *(None,) * 4


# --- fakes and autograd --------------------------------------------------------------------------


def _image_like(x: Tensor, height: int, width: int) -> Tensor:
    channels_last = not x.is_contiguous() and x.shape[1] > 1 and x.stride(1) == 1
    return torch.empty(
        (x.shape[0], x.shape[1], height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


def _fake(x, maps, margins, filter, padding, lossless, height, width):
    one_device(x, maps, margins)
    return _image_like(x, height, width)


def _fake_augment(x, *constants):
    one_device(x, *(y for y in constants if isinstance(y, Tensor)))
    return _image_like(x, x.shape[2], x.shape[3])


def _run(name: str, x: Tensor, *constants: Any) -> Tensor:
    return call_eager(_EAGER[name], getattr(_operator.kernels, name), x, *constants)  # type: ignore[no-any-return]


def _setup(ctx, inputs, output):
    x, maps, margins, *options = inputs
    ctx.size = x.shape[2:]
    ctx.options = options[:3]
    ctx.save_for_backward(maps, margins)


def _backward_by(transpose: str):
    def backward(ctx, grad):
        maps, margins = ctx.saved_tensors
        return _run(transpose, grad, maps, margins, *ctx.options, *ctx.size), *(None,) * 7

    return backward


def _setup_augment(ctx, inputs, output):
    _, maps, margins, *options, color, channels = inputs[:8]
    rest = inputs[8:]
    ctx.options, ctx.channels = options, channels
    ctx.save_for_backward(maps, margins, color, rest[2] if len(rest) > 1 else rest[0])  # box


def _backward_augment(ctx, grad):
    maps, margins, color, box = ctx.saved_tensors
    constants = maps, margins, *ctx.options, color, ctx.channels, box
    return _run("affine_augment_transpose", grad, *constants), *(None,) * 11


def _backward_augment_transpose(ctx, grad):
    # The transpose's transpose: without noise and offsets, which are constant.
    maps, margins, color, box = ctx.saved_tensors
    constants = maps, margins, *ctx.options, color, ctx.channels, None, None, box, False
    return _run("affine_augment", grad, *constants), *(None,) * 8


_CONSTANTS = (
    "Tensor maps, Tensor? margins, int filter, int padding, bool lossless, SymInt height, "
    "SymInt width"
)
OPERATORS = (
    Operator(
        f"affine_resample(Tensor image, {_CONSTANTS}) -> Tensor",
        _fake,
        _backward_by("affine_resample_transpose"),
        _setup,
    ),
    Operator(
        f"affine_resample_transpose(Tensor grad, {_CONSTANTS}) -> Tensor",
        _fake,
        _backward_by("affine_resample"),
        _setup,
    ),
    Operator(
        "affine_augment(Tensor image, Tensor? maps, Tensor? margins, int filter, int padding, "
        "bool lossless, "
        "Tensor? color, int[] color_channels, Tensor? sigma, Tensor? seed, Tensor? box, "
        "bool offsets) -> Tensor",
        _fake_augment,
        _backward_augment,
        _setup_augment,
    ),
    Operator(
        "affine_augment_transpose(Tensor grad, Tensor? maps, Tensor? margins, int filter, "
        "int padding, bool lossless, "
        "Tensor? color, int[] color_channels, Tensor? box) -> Tensor",
        _fake_augment,
        _backward_augment_transpose,
        _setup_augment,
    ),
)
_EAGER = {operator.name: eager(operator) for operator in OPERATORS}

declare(*OPERATORS)


def _example(draw: Draw) -> dict[str, Any]:
    return {"inverse_maps": draw(4, 2, 3).double()}


EXAMPLES["affine_resample"] = lambda draw: {
    "image": draw(4, 3, 9, 14).requires_grad_(),
    **_example(draw),
}
EXAMPLES["affine_resample_transpose"] = lambda draw: {
    "grad": draw(4, 3, 9, 14).requires_grad_(),
    **_example(draw),
    "input_size": (9, 14),
}
EXAMPLES["affine_augment"] = lambda draw: {
    "image": draw(4, 3, 9, 14).requires_grad_(),
    **_example(draw),
    "color": draw(4, 3, 4),
    "color_channels": (0, 1, 2),
}
