"""Affine resampling, its exact transpose, and the same with colour, noise and cutout behind it.

Karras et al. 2020 (arXiv 2006.06676), appendix B. The kernels behind the schemas are bound in
``csrc/bindings/affine_resample.cpp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor

from gankernels import reference
from gankernels._checks import check_bool, check_real, check_strided, describe, is_choice, kind
from gankernels._dtypes import accumulation_dtype
from gankernels._library import LIBRARY, takes_reference

Filter = Literal["sym6", "bilinear", "nearest"]
Mode = Literal["ideal", "stylegan2-ada"]
PaddingMode = Literal["reflection", "zeros", "border"]

_FILTERS = ("nearest", "bilinear", "sym6")  # the numbers are those of the C++ side
_PADDINGS = ("reflection", "zeros", "border")
_SCHEMAS = (
    *(
        f"affine_resample{name}(Tensor {x}, Tensor maps, Tensor? margins, int filter, int padding, "
        "bool lossless, SymInt height, SymInt width) -> Tensor"
        for name, x in (("", "image"), ("_transpose", "grad"))
    ),
    "affine_augment(Tensor image, Tensor? maps, Tensor? margins, bool lossless, Tensor? colour, "
    "int[] colour_channels, Tensor? sigma, Tensor? seed, Tensor? box, bool offsets) -> Tensor",
    "affine_augment_transpose(Tensor grad, Tensor? maps, Tensor? margins, bool lossless, "
    "Tensor? colour, int[] colour_channels, Tensor? box) -> Tensor",
)
_LARGEST_SIDE = 2**31 - 1
#: Where the operators are called: the tests put the emulated CUDA kernels here.
_ops: Any = torch.ops.gankernels


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
        inverse_maps: (B, 2, 3), from centred output pixels to centred input pixels: x to the right,
            y down, in pixels, (0, 0) in the middle of an image. Composed in float64 best; see
            :func:`centred_maps` for the ``theta`` of ``affine_grid``. Constant to autograd.
        filter: ``"sym6"``, ``"bilinear"`` or ``"nearest"`` (halves to even).
        mode: ``"ideal"`` makes every sample independent of its batch, with unlimited reflection.
            ``"stylegan2-ada"`` pads the batch by common margins and takes zeros beyond, as the
            published pipeline does; for ``"sym6"`` only, and without lossless blits.
        margins: of ``"stylegan2-ada"``: int64 (4,), left, right, top and bottom; by default those
            of the publication, found on the device.
        padding_mode: of the plain filters: ``"reflection"`` about the centres of border pixels (the
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
        TypeError, ValueError: if an argument is none of the above.

    Linear in ``image``, and differentiable to any order in it: the backward is
    :func:`affine_resample_transpose`. Deterministic. Nothing is read back from the device.
    """
    op = "affine_resample"
    _check(op, "image", image, inverse_maps, filter, mode, margins, padding_mode, lossless_blits)
    size = _size(op, "output_size", output_size, image)
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
    options = _FILTERS.index(filter), _PADDINGS.index(padding_mode), lossless_blits
    return _ops.affine_resample(image, maps, margins, *options, *size)


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
        TypeError, ValueError: if an argument is none of the above.

    Linear in ``grad``, and differentiable to any order in it. Deterministic; in CUDA a gather.
    """
    op = "affine_resample_transpose"
    _check(op, "grad", grad, inverse_maps, filter, mode, margins, padding_mode, lossless_blits)
    size = _size(op, "input_size", input_size, grad)
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
    options = _FILTERS.index(filter), _PADDINGS.index(padding_mode), lossless_blits
    return _ops.affine_resample_transpose(grad, maps, margins, *options, *size)


def affine_augment(
    image: Tensor,
    inverse_maps: Tensor | None = None,
    *,
    colour: Tensor | None = None,
    colour_channels: Sequence[int] | None = None,
    sigma: Tensor | None = None,
    seed: Tensor | None = None,
    box: Tensor | None = None,
    mode: Mode = "ideal",
    margins: Tensor | None = None,
    lossless_blits: bool = True,
) -> Tensor:
    """Geometry, colour, noise and cutout of a batch in one pass over the images.

    In the order of Karras et al. 2020 (arXiv 2006.06676), appendix B:
    ``keep * (A resampled + offset + sigma * noise)``.

    Args:
        image: (B, C, H, W), as for :func:`affine_resample`.
        inverse_maps: (B, 2, 3), likewise; None leaves the geometry alone.
        colour: (B, 3, 4) or (B, 1, 2), matrix and offset side by side, of the accumulation dtype.
        colour_channels: the 3 (or 1) channels that ``colour`` acts on, ascending; by default all.
        sigma: (B,), standard deviation of the noise, of the accumulation dtype.
        seed: (B,), int64, of the noise: the same seed gives the same noise, by Philox4x32-10 (see
            ``csrc/common/epilogue.h``), in every memory format and dtype.
        box: (B, 3), float64: centre x, centre y and size of what is cut out, in fractions of the
            image; size 0 cuts nothing.
        mode, margins, lossless_blits: as for :func:`affine_resample`, with the filter ``"sym6"``.

    Returns:
        As ``image``, and of its dtype. Where nothing is done to a sample its values come back bit
        for bit.

    Raises:
        TypeError, ValueError: if an argument is none of the above.

    Affine in ``image`` and differentiable to any order in it; all else is constant to autograd.
    Deterministic.
    """
    op = "affine_augment"
    _check(op, "image", image, inverse_maps, "sym6", mode, margins, "reflection", lossless_blits)
    channels = _check_epilogue(op, image, colour, colour_channels, sigma, seed, box)
    maps: Tensor | None = None
    if inverse_maps is not None:
        maps, margins = _prepared(inverse_maps, mode, margins, image.shape)
    if takes_reference(op, [x for x in (image, maps) if x is not None]):
        return reference.affine_augment(
            image,
            maps,
            margins=margins,
            lossless_blits=lossless_blits,
            colour=colour,
            colour_channels=channels,
            sigma=sigma,
            seed=seed,
            box=box,
        )
    given = [None if x is None else x.contiguous() for x in (colour, sigma, seed, box)]
    return _ops.affine_augment(
        image, maps, margins, lossless_blits, given[0], channels, *given[1:], True
    )


def centred_maps(
    theta: Tensor,
    size: tuple[int, int],
    align_corners: bool = False,
    *,
    output_size: tuple[int, int] | None = None,
) -> Tensor:
    """The ``inverse_maps`` that do what ``affine_grid(theta, ...)`` and ``grid_sample`` do.

    Args:
        theta: (B, 2, 3), from normalised output to normalised input coordinates.
        size: height and width of the images.
        align_corners: whether -1 and 1 are the centres of border pixels, or the image's edges.
        output_size: height and width of the result; by default ``size``.

    Returns:
        (B, 2, 3), float64. With ``filter="bilinear"`` or ``"nearest"`` and zeros or border
        :func:`affine_resample` then equals ``grid_sample`` of the same ``align_corners``, single
        pixels included; its reflection is the one of ``align_corners=True``.

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """
    op = "centred_maps"
    good = isinstance(theta, Tensor) and not theta.is_nested and theta.dim() == 3
    if not good or tuple(theta.shape[1:]) != (2, 3):
        got = describe(theta) if isinstance(theta, Tensor) else kind(theta)
        raise ValueError(f"{op}: expected theta of shape (B, 2, 3), got {got}")
    check_strided(op, "theta", theta)
    if theta.is_complex():
        raise TypeError(f"{op}: expected theta of real numbers, got {theta.dtype}")
    check_bool(op, "align_corners", align_corners)
    less = 1 if align_corners else 0
    height, width = _pair(op, "size", size)
    out_height, out_width = _pair(op, "output_size", size if output_size is None else output_size)
    # Between the centres of a single pixel there is nothing: of the input all positions are that
    # pixel. That of the output is at 0, whatever it is divided by.
    of_input = [(n - less) / 2 for n in (width, height)]
    of_output = [max(n - less, 1) / 2 for n in (out_width, out_height)]
    into, out_of = (theta.new_tensor(e, dtype=torch.float64) for e in (of_input, of_output))
    matrix = into[:, None] * theta[:, :, :2].double() / out_of
    return torch.cat((matrix, (into * theta[:, :, 2].double())[:, :, None]), 2)


# --- fakes and autograd --------------------------------------------------------------------------


def _image_like(x: Tensor, height: int, width: int) -> Tensor:
    last = not x.is_contiguous() and x.shape[1] > 1 and x.stride(1) == 1
    return torch.empty(
        (x.shape[0], x.shape[1], height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )


def _fake(x, maps, margins, filter, padding, lossless, height, width):
    if any(y is not None and y.device != x.device for y in (maps, margins)):
        raise RuntimeError("expected all tensors on one device")
    return _image_like(x, height, width)


def _fake_augment(x, maps, margins, lossless, colour, channels, *rest):
    tensors = [y for y in (maps, margins, colour, *rest) if isinstance(y, Tensor)]
    if any(y.device != x.device for y in tensors):
        raise RuntimeError("expected all tensors on one device")
    return _image_like(x, x.shape[2], x.shape[3])


def _setup(ctx, inputs, output):
    x, maps, margins, *options = inputs
    ctx.size = x.shape[2:]
    ctx.options = options[:3]
    ctx.save_for_backward(maps, margins)


def _backward_by(name: str):
    def backward(ctx, grad):
        maps, margins = ctx.saved_tensors
        given = getattr(_ops, name)(grad, maps, margins, *ctx.options, *ctx.size)
        return given, *(None,) * 7

    return backward


def _setup_augment(ctx, inputs, output):
    _, maps, margins, lossless, colour, channels, _, _, box, _ = inputs
    ctx.options = lossless, channels
    ctx.save_for_backward(maps, margins, colour, box)


def _backward_augment(ctx, grad):
    maps, margins, colour, box = ctx.saved_tensors
    lossless, channels = ctx.options
    given = _ops.affine_augment_transpose(grad, maps, margins, lossless, colour, channels, box)
    return given, *(None,) * 9


def _setup_augment_transpose(ctx, inputs, output):
    _, maps, margins, lossless, colour, channels, box = inputs
    ctx.options = lossless, channels
    ctx.save_for_backward(maps, margins, colour, box)


def _backward_augment_transpose(ctx, grad):
    maps, margins, colour, box = ctx.saved_tensors
    lossless, channels = ctx.options
    given = _ops.affine_augment(
        grad, maps, margins, lossless, colour, channels, None, None, box, False
    )
    return given, *(None,) * 6


def define(library: torch.library.Library) -> None:
    """Define the operators, their fakes and their autograd in the namespace of ``library``."""
    for schema in _SCHEMAS:
        library.define(schema)
    for name, fake, backward, setup in (
        ("affine_resample", _fake, _backward_by("affine_resample_transpose"), _setup),
        ("affine_resample_transpose", _fake, _backward_by("affine_resample"), _setup),
        ("affine_augment", _fake_augment, _backward_augment, _setup_augment),
        (
            "affine_augment_transpose",
            _fake_augment,
            _backward_augment_transpose,
            _setup_augment_transpose,
        ),
    ):
        name = f"{library.ns}::{name}"
        torch.library.register_fake(name, fake, lib=library)
        torch.library.register_autograd(name, backward, setup_context=setup, lib=library)


define(LIBRARY)


# --- checks --------------------------------------------------------------------------------------


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


def _pair(op: str, name: str, value: Any) -> tuple[int, int]:
    wanted = f"{op}: expected {name} to be (height, width)"
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or len(value) != 2:
        raise ValueError(f"{wanted}, got {value!r}")
    if any(not isinstance(n, (int, torch.SymInt, Integral)) or isinstance(n, bool) for n in value):
        raise TypeError(f"{wanted}, two integers, got {value!r}")
    if any(n < 1 for n in value):
        raise ValueError(f"{wanted} of at least 1, got {value}")
    if any(n > _LARGEST_SIDE for n in value):
        raise ValueError(f"{wanted} below 2^31, got {value}")
    return value[0], value[1]


def _size(op: str, name: str, size: object, x: Tensor) -> tuple[int, int]:
    if size is None:
        return x.shape[2], x.shape[3]
    return _pair(op, name, size)


def _check(op, name, x, maps, filter, mode, margins, padding_mode, lossless_blits) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: expected {name} to be a tensor, got {kind(x)}")
    check_strided(op, name, x)
    check_bool(op, "lossless_blits", lossless_blits)
    check_real(op, name, x)
    if x.dim() != 4 or 0 in x.shape[2:]:
        raise ValueError(
            f"{op}: expected {name} of shape (B, C, H, W) with pixels, got {tuple(x.shape)}"
        )
    if not is_choice(filter, _FILTERS):
        raise ValueError(f"{op}: expected a filter of {', '.join(_FILTERS)}, got {filter!r}")
    if not is_choice(mode, ("ideal", "stylegan2-ada")):
        raise ValueError(f'{op}: expected mode "ideal" or "stylegan2-ada", got {mode!r}')
    if not is_choice(padding_mode, _PADDINGS):
        raise ValueError(
            f"{op}: expected a padding_mode of {', '.join(_PADDINGS)}, got {padding_mode!r}"
        )
    if filter == "sym6" and padding_mode != "reflection":
        raise ValueError(
            f'{op}: expected padding_mode "reflection" with the filter "sym6", got '
            f'{padding_mode!r}; take filter="bilinear" or "nearest"'
        )
    if mode == "stylegan2-ada" and filter != "sym6":
        raise ValueError(f'{op}: expected the filter "sym6" with mode {mode!r}, got {filter!r}')
    if maps is None and op == "affine_augment":
        return
    if not isinstance(maps, Tensor):
        raise TypeError(f"{op}: expected inverse_maps to be a tensor, got {kind(maps)}")
    check_strided(op, "inverse_maps", maps)
    check_real(op, "inverse_maps", maps)
    if tuple(maps.shape) != (x.shape[0], 2, 3) or maps.device != x.device:
        raise ValueError(
            f"{op}: expected inverse_maps of shape {(x.shape[0], 2, 3)} on {x.device}, got "
            f"{describe(maps)}"
        )
    if maps.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{op}: expected inverse_maps without a gradient, which this operator does not give; "
            "pass inverse_maps.detach()"
        )
    if margins is not None:
        _check_margins(op, x, mode, margins)


def _are_channels(channels: object) -> bool:
    if not isinstance(channels, Sequence):
        return False
    return all(isinstance(c, int) and not isinstance(c, bool) for c in channels)


def _check_margins(op, x, mode, margins) -> None:
    if mode != "stylegan2-ada":
        raise ValueError(
            f'{op}: expected margins with mode "stylegan2-ada" only, got mode {mode!r}'
        )
    if isinstance(margins, Tensor):
        check_strided(op, "margins", margins)
    good = isinstance(margins, Tensor) and margins.dtype == torch.int64
    if not good or tuple(margins.shape) != (4,) or margins.device != x.device:
        got = describe(margins) if isinstance(margins, Tensor) else kind(margins)
        raise ValueError(f"{op}: expected margins int64 of shape (4,) on {x.device}, got {got}")


def _check_epilogue(op, x, colour, colour_channels, sigma, seed, box) -> list[int]:
    """The channels that are colour."""
    wide = accumulation_dtype(x.dtype)
    batch, count = x.shape[:2]
    channels: list[int] = []
    if colour is not None:
        if colour_channels is not None and not _are_channels(colour_channels):
            raise TypeError(
                f"{op}: expected colour_channels to be numbers of channels, as in (0, 1, 2), got "
                f"{colour_channels!r}"
            )
        channels = list(range(count) if colour_channels is None else colour_channels)
        if len(channels) not in (1, 3):
            raise ValueError(
                f"{op}: expected 1 or 3 colour channels, got {len(channels)} of an image of "
                f"{count}; name them by colour_channels=(0, 1, 2)"
            )
        ascending = all(a < b for a, b in pairwise(channels))
        if not ascending or channels[0] < 0 or channels[-1] >= count:
            raise ValueError(
                f"{op}: expected ascending colour_channels of 0 to {count - 1}, got {channels}"
            )
    elif colour_channels is not None:
        raise ValueError(f"{op}: expected colour matrices with colour_channels, got None")
    n = len(channels)
    for name, value, shape, dtype in (
        ("colour", colour, (batch, n, n + 1), wide),
        ("sigma", sigma, (batch,), wide),
        ("seed", seed, (batch,), torch.int64),
        ("box", box, (batch, 3), torch.float64),
    ):
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: expected {name} to be a tensor, got {kind(value)}")
        check_strided(op, name, value)
        if tuple(value.shape) != shape or value.dtype != dtype or value.device != x.device:
            raise ValueError(
                f"{op}: expected {name} of {dtype} and shape {shape} on {x.device}, got "
                f"{describe(value)}"
            )
        if value.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{op}: expected {name} without a gradient, which this operator does not give; "
                f"pass {name}.detach()"
            )
    if (sigma is None) != (seed is None):
        raise ValueError(f"{op}: expected sigma and seed together, or neither")
    return channels
