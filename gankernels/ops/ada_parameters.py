"""The parameters of adaptive discriminator augmentation for each sample of a batch.

Karras et al. 2020 (arXiv 2006.06676), appendix B. The kernel behind the schema is bound in
``csrc/bindings/ada_parameters.cpp``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gankernels._checks import check_bool
from gankernels._dtypes import accumulation_dtype
from gankernels._library import takes_reference
from gankernels._torch import below_autograd
from gankernels.ops import _operator
from gankernels.ops._checks.ada_parameters import check, is_strong, is_taken
from gankernels.ops._operator import EXAMPLES, Operator, declare, one_device, run
from gankernels.reference.ada_parameters import (
    DEFAULTS,
    GROUPS,
    NORMALS,
    UNIFORMS,
    VALUES,
    AdaConstants,
    AdaMultipliers,
    Parameters,
)
from gankernels.reference.ada_parameters import ada_parameters as reference_ada_parameters

__all__ = [
    "GROUPS",
    "NORMALS",
    "UNIFORMS",
    "VALUES",
    "AdaConstants",
    "AdaMultipliers",
    "Parameters",
    "ada_parameters",
]


# --- what users call ---------------------------------------------------------------------------


def ada_parameters(
    p: Tensor | None,
    multipliers: AdaMultipliers,
    *,
    uniforms: Tensor | None = None,
    normals: Tensor | None = None,
    values: Tensor | None = None,
    seed: Tensor | None = None,
    height: int | None = None,
    width: int | None = None,
    color_channels: int = 0,
    dtype: torch.dtype = torch.float32,
    constants: AdaConstants = DEFAULTS,
    margins: bool = False,
) -> Parameters:
    """Decide what happens to each sample: from random numbers and the strength p, on the device.

    Gates and values come from ``uniforms`` and ``normals``, as ``torch.rand`` and ``torch.randn``
    draw them; every transform has its columns, enabled or not, so that enabling one does not change
    another's. What the operators on images are given is composed from the values, for one size of
    images; values of an earlier call can be composed again for another.

    Args:
        p: the strength, a tensor of float32 or float64 on the device of the draws: a scalar, or
            (6,) for the groups ``GROUPS``. Clamped to [0, 1] by the kernel, NaN to 0. Not looked at
            where ``values`` are given.
        multipliers: of p, for each transform. One that is 0 is absent: its value is that of the
            identity, and what only it would need is None.
        uniforms: (B, ``UNIFORMS``), float64, in [0, 1). A transform happens where the number of its
            gate is below ``multiplier * p``.
        normals: (B, ``NORMALS``), float64, of N(0, 1).
        values, seed: of an earlier call, instead of draws: they are composed for another size. The
            columns of values are ``VALUES``: xflip 0 or 1; rotate90 in quarter turns, 0 to 3; xint
            and xfrac in fractions of width and height; scale, aniso, contrast and saturation as
            factors; rotations and hue in radians; brightness an offset; lumaflip 0 or 1; gains of
            the four bands; the noise's standard deviation; the size of the cutout, 0 for none, and
            its center, as fractions.
        height, width: of the images. Without them only values and seed are made.
        color_channels: how many channels are color: 0, 1 or 3. Hue and saturation, which need 3,
            are drawn whatever it is, and not applied to 1.
        dtype: of the images. ``color``, ``gains`` and ``sigma`` are float64 for float64, else
            float32.
        constants: the strengths of the transforms.
        margins: find the margins too by which ``mode="stylegan2-ada"`` of the operators on images
            pads the batch; they cost one block for all samples in place of one for 32.

    Returns:
        :class:`Parameters`: ``values`` (B, 23), float64. ``seed`` (B,), int64, in [0, 2^53), of the
        noise. ``maps`` (B, 2, 3), float64: from centered output pixels (x right, y down) to
        centered input pixels; flips, quarter turns and whole-pixel shifts are exact, and so is the
        identity.
        ``color``, (B, 3, 4) or (B, 1, 2): a matrix with an offset as its last column. ``gains``
        (B, 4) of the bands, all 1 where none is amplified. ``sigma`` (B,) of the noise. ``box``
        (B, 3), float64: center x, center y and size of the cutout, in fractions. ``margins`` (4,),
        int64: left, right, top and bottom, in pixels, of the whole batch; with maps only.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.

    One launch, in float64 throughout. Nothing is differentiable: the results are constants.
    Deterministic in the draws, and nothing waits for the device.
    """
    rest = (uniforms, normals, values, seed, height, width, color_channels, dtype, constants)
    check_bool("ada_parameters", "margins", margins)
    drawn = uniforms if values is None else values
    tensors = [x for x in (drawn, normals, p) if isinstance(x, Tensor)]
    if not tensors or takes_reference("ada_parameters", tensors):
        check(p, multipliers, *rest)
        return reference_ada_parameters(
            p,
            multipliers,
            uniforms=uniforms,
            normals=normals,
            values=values,
            seed=seed,
            height=height,
            width=width,
            color_channels=color_channels,
            dtype=dtype,
            constants=constants,
            margins=margins,
        )
    compiling = torch.compiler.is_compiling()
    # The kernel refuses what it sees; it sees neither a seed nor a dtype, nor what is absurd, and
    # takes bools and scalar tensors for integers.
    unusual = values is not None or seed is not None or not is_taken(dtype)
    unusual |= any(isinstance(n, (bool, Tensor)) for n in (height, width, color_channels))
    if compiling or unusual or is_strong(constants):
        check(p, multipliers, *rest)
    try:
        m = multipliers
        args = (
            _detached(p if values is None else None),
            _detached(uniforms),
            _detached(normals),
            _detached(values),
            [*m[:12], *m.bands(), m.noise, m.cutout],
            list(constants),
            height,
            width,
            color_channels,
            accumulation_dtype(dtype) == torch.float64,
            margins,
        )
        if compiling:
            outputs = run(_operator.kernels.ada_parameters, *args)
        else:
            with below_autograd():
                outputs = run(_operator.kernels.ada_parameters, *args)
    except (RuntimeError, TypeError, AttributeError, ValueError, IndexError):
        # The kernel refused; the check says which argument is wrong.
        check(p, multipliers, *rest)
        raise
    drawn, new_seed, maps, color, gains, sigma, box, widest = outputs
    composed = height is not None
    return Parameters(
        drawn if values is None else values,
        new_seed if values is None else seed,
        maps if composed and m.geometry() else None,
        color if composed and m.color(color_channels) else None,
        gains if composed and m.filter() else None,
        sigma if composed and m.noise > 0 else None,
        box if composed and m.cutout > 0 else None,
        widest if composed and margins and m.geometry() else None,
    )


def _detached(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().contiguous()


# --- fake and registration -----------------------------------------------------------------------


def _fake(
    p,
    uniforms,
    normals,
    values,
    multipliers,
    constants,
    height,
    width,
    color_channels,
    float64,
    margins,
):
    like = uniforms if values is None else values
    one_device(like, p, normals)
    batch = like.shape[0]
    acc = torch.float64 if float64 else torch.float32
    *bands, noise, cutout = multipliers[12:]
    m = AdaMultipliers._make((*multipliers[:12], 1.0, noise, cutout, tuple(bands)))

    def empty(wanted: bool, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return like.new_empty((batch, *shape) if wanted else (0,), dtype=dtype)

    draws, composed = values is None, height is not None
    return (
        empty(draws, (len(VALUES),), torch.float64),
        empty(draws, (), torch.int64),
        empty(composed and m.geometry(), (2, 3), torch.float64),
        empty(composed and m.color(color_channels), (color_channels, color_channels + 1), acc),
        empty(composed and m.filter(), (4,), acc),
        empty(composed and noise > 0, (), acc),
        empty(composed and cutout > 0, (3,), torch.float64),
        like.new_empty(4 if composed and margins and m.geometry() else 0, dtype=torch.int64),
    )


declare(
    Operator(
        "ada_parameters(Tensor? p, Tensor? uniforms, Tensor? normals, Tensor? values, "
        "float[] multipliers, float[] constants, SymInt? height, SymInt? width, "
        "int color_channels, bool float64, bool margins) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        _fake,
    )
)


EXAMPLES["ada_parameters"] = lambda draw: {
    "p": draw().sigmoid(),
    "multipliers": AdaMultipliers._make((*[1.0] * 15, (1.0,) * 4)),
    "uniforms": (draw(16, UNIFORMS).double().erf() + 1) / 2,
    "normals": draw(16, NORMALS).double(),
    "height": 24,
    "width": 40,
    "color_channels": 3,
}
