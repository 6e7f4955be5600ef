"""The parameters of differentiable augmentation for each sample of a batch, in one launch.

Zhao et al. 2020 (arXiv 2006.10738). The kernel behind the schema is bound in
``csrc/bindings/diff_augment.cpp``.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from gankernels import reference
from gankernels._checks import check_bool, check_count, check_number, check_strided, describe, kind
from gankernels._dtypes import accumulation_dtype
from gankernels._library import takes_reference
from gankernels.ops import _operator
from gankernels.ops._checks.ada_parameters import is_number_of, is_taken
from gankernels.ops._operator import EXAMPLES, Operator, call_below_autograd, declare, one_device
from gankernels.reference.diff_augment import CUTOUT, TRANSLATION, UNIFORMS, DiffParameters

__all__ = ["CUTOUT", "TRANSLATION", "UNIFORMS", "DiffParameters", "diff_augment_parameters"]


def diff_augment_parameters(
    uniforms: Tensor,
    height: int,
    width: int,
    *,
    maps: bool = True,
    box: bool = True,
    color_channels: int = 0,
    mix: bool = False,
    before: bool = False,
    after: bool = False,
    dtype: torch.dtype = torch.float32,
    translation: float = TRANSLATION,
    cutout: float = CUTOUT,
) -> DiffParameters:
    """Decide what :class:`gankernels.augment.DiffAugment` does to each sample, on the device.

    Args:
        uniforms: (B, ``UNIFORMS``), float64, in [0, 1), of one sample in a row: of brightness,
            saturation, contrast, shift in x and y, cutout in x and y.
        height, width: of the images.
        maps, box, mix: which results are wanted.
        color_channels: those of the images where ``color`` is wanted: 1 or 3; else 0.
        before: let cutout act before the shift, on what will be where it would be.
        after: let cutout act after the shift, on what was where it would be; not both.
        dtype: of the images. ``color`` and ``mix`` are float64 for float64, else float32.
        translation: the longest shift, as a fraction of each side, in [0, 1].
        cutout: the side of the box, likewise.

    Returns:
        :class:`DiffParameters`, each of them None where it is not wanted. ``maps`` (B, 2, 3),
        float64, as of :func:`gankernels.affine_resample`: whole pixels, up to
        ``int(translation * side + 0.5)``. ``box`` (B, 3), float64, as of
        :func:`gankernels.ops.affine_augment`: ``int(cutout * side + 0.5)`` pixels of each side.
        ``color`` (B, 3, 4) or (B, 1, 2), as there, and ``mix`` (B, 4): with m the mean of an image
        x, color is ``mix[0] y + mix[1] gray(y) + mix[3]`` of ``y = x + mix[2] m``, which is what
        ``color`` does to y; and to x, with ``shade m`` more in its offset. ``shade`` (B,) comes
        with ``color``.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.

    One launch, in float64 throughout; for a ``translation`` or ``cutout`` that is not the paper's,
    ``maps`` and ``box`` take some thirty of torch's. Nothing is differentiable: the results are
    constants. Deterministic in the draws, and nothing waits for the device.
    """
    op = "diff_augment_parameters"
    _check(op, uniforms, height, width, color_channels, dtype)
    flags = {"maps": maps, "box": box, "mix": mix, "before": before, "after": after}
    for name, flag in flags.items():
        check_bool(op, name, flag)
    if before and after:
        raise ValueError(f"{op}: expected before or after, got both")
    check_share(op, "translation", translation)
    check_share(op, "cutout", cutout)
    if takes_reference(op, (uniforms,)):
        return reference.diff_augment_parameters(
            uniforms,
            height,
            width,
            maps=maps,
            box=box,
            color_channels=color_channels,
            mix=mix,
            before=before,
            after=after,
            dtype=dtype,
            translation=translation,
            cutout=cutout,
        )
    placed = None
    if (maps or box) and (translation, cutout) != (TRANSLATION, CUTOUT):
        # The kernel knows the paper's only.
        placed = reference.diff_augment_parameters(
            uniforms.detach(),
            height,
            width,
            maps=maps,
            box=box,
            before=before,
            after=after,
            translation=translation,
            cutout=cutout,
        )
        if not (color_channels or mix):
            return placed
        maps = box = False
    outputs = call_below_autograd(
        _operator.kernels.diff_augment_parameters,
        uniforms.detach().contiguous(),
        height,
        width,
        maps,
        box,
        color_channels,
        mix,
        before,
        after,
        accumulation_dtype(dtype) == torch.float64,
    )
    wanted = maps, box, color_channels > 0, mix, color_channels > 0
    found = DiffParameters(*(x if w else None for x, w in zip(outputs, wanted, strict=True)))
    return found if placed is None else found._replace(maps=placed.maps, box=placed.box)


def check_share(op: str, name: str, value: object) -> None:
    """Refuse what is not a number in [0, 1]."""
    check_number(op, name, value)
    if cast(float, value) > 1:
        raise ValueError(
            f"{op}: expected {name} to be at most 1, a fraction of each side, got {value}"
        )


def _check(
    op: str, uniforms: object, height: object, width: object, color_channels: object, dtype: object
) -> None:
    if not isinstance(uniforms, Tensor):
        raise TypeError(f"{op}: expected uniforms to be a tensor, got {kind(uniforms)}")
    check_strided(op, "uniforms", uniforms)
    wrong = uniforms.dtype != torch.float64 or uniforms.dim() != 2
    if wrong or uniforms.shape[1] != UNIFORMS:
        raise ValueError(
            f"{op}: expected uniforms of float64 and shape (B, {UNIFORMS}), got "
            f"{describe(uniforms)}"
        )
    for name, size in (("height", height), ("width", width)):
        if not isinstance(size, torch.SymInt):
            check_count(op, name, size)
    if not is_number_of(color_channels, (0, 1, 3)):
        raise ValueError(f"{op}: expected 0, 1 or 3 color_channels, got {color_channels!r}")
    if not is_taken(dtype):
        raise ValueError(f"{op}: expected dtype float32, float64, bfloat16 or float16, got {dtype}")


# --- fake and registration -----------------------------------------------------------------------


def _fake(uniforms, height, width, maps, box, color_channels, mix, before, after, float64):
    one_device(uniforms)
    batch, acc = uniforms.shape[0], torch.float64 if float64 else torch.float32

    def empty(wanted: bool, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return uniforms.new_empty((batch, *shape) if wanted else (0,), dtype=dtype)

    return (
        empty(maps, (2, 3), torch.float64),
        empty(box, (3,), torch.float64),
        empty(color_channels > 0, (color_channels, color_channels + 1), acc),
        empty(mix, (4,), acc),
        empty(color_channels > 0, (), acc),
    )


declare(
    Operator(
        "diff_augment_parameters(Tensor uniforms, SymInt height, SymInt width, bool maps, "
        "bool box, int color_channels, bool mix, bool before, bool after, bool float64) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        _fake,
    )
)


EXAMPLES["diff_augment_parameters"] = lambda draw: {
    "uniforms": (draw(16, UNIFORMS).double().erf() + 1) / 2,
    "height": 25,
    "width": 42,
    "color_channels": 3,
    "mix": True,
}
