"""What happens to each sample in adaptive discriminator augmentation: schema, fake, plain function.

Karras et al. 2020 (arXiv 2006.06676), appendix B. The kernel behind the schema is bound in
``csrc/bindings/ada_parameters.cpp``.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, cast

import torch
from torch import Tensor

from gankernels import reference
from gankernels._checks import (
    check_count,
    check_generator,
    check_number,
    check_strided,
    describe,
    kind,
)
from gankernels._dtypes import accumulation_dtype
from gankernels._library import LIBRARY, takes_reference
from gankernels._torch import below_autograd
from gankernels.reference.ada_parameters import (
    DEFAULTS,
    GATES,
    NORMAL_VALUES,
    NORMALS,
    UNIFORM_VALUES,
    UNIFORMS,
    VALUES,
    AdaConstants,
    AdaMultipliers,
    Parameters,
)

__all__ = [
    "GROUPS",
    "NORMALS",
    "UNIFORMS",
    "VALUES",
    "AdaConstants",
    "AdaMultipliers",
    "Parameters",
    "ada_parameters",
    "draw_compat",
    "preview_values",
]

#: What each of six strengths p is of.
GROUPS = ("blit", "geom", "color", "filter", "noise", "cutout")

_SCHEMA = (
    "ada_parameters(Tensor? p, Tensor? uniforms, Tensor? normals, Tensor? values, "
    "float[] multipliers, float[] constants, SymInt? height, SymInt? width, int colour_channels, "
    "bool float64) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
#: Standard deviations of logarithms to base 2, of which 8 are 64: no factor overflows by them.
_EXPONENTS = ("scale_std", "aniso_std", "contrast_std", "saturation_std", "imgfilter_std")
_LARGEST_EXPONENT = 8.0
_LARGEST = 1e6  #: of the other constants
#: Where the operator is called: the tests put the emulated CUDA kernel here.
_ops: Any = torch.ops.gankernels


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
    colour_channels: int = 0,
    dtype: torch.dtype = torch.float32,
    constants: AdaConstants = DEFAULTS,
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
            its centre, as fractions.
        height, width: of the images. Without them only values and seed are made.
        colour_channels: how many channels are colour: 0, 1 or 3. Hue and saturation, which need 3,
            are drawn whatever it is, and not applied to 1.
        dtype: of the images. ``colour``, ``gains`` and ``sigma`` are float64 for float64, else
            float32.
        constants: the strengths of the transforms.

    Returns:
        :class:`Parameters`: ``values`` (B, 23), float64. ``seed`` (B,), int64, in [0, 2^53), of the
        noise. ``maps`` (B, 2, 3), float64: from centred output pixels (x right, y down) to centred
        input pixels; flips, quarter turns and whole-pixel shifts are exact, the identity too.
        ``colour``, (B, 3, 4) or (B, 1, 2): a matrix with an offset as its last column. ``gains``
        (B, 4) of the bands, all 1 where none is amplified. ``sigma`` (B,) of the noise. ``box``
        (B, 3), float64: centre x, centre y and size of the cutout, in fractions.

    Raises:
        TypeError, ValueError: if an argument is none of the above.

    One launch, in float64 throughout. Nothing is differentiable: the results are constants.
    Deterministic in the draws, and nothing waits for the device.
    """
    rest = (uniforms, normals, values, seed, height, width, colour_channels, dtype, constants)
    drawn = uniforms if values is None else values
    tensors = [x for x in (drawn, normals, p) if isinstance(x, Tensor)]
    if not tensors or takes_reference("ada_parameters", tensors):
        _check(p, multipliers, *rest)
        return reference.ada_parameters(
            p,
            multipliers,
            uniforms=uniforms,
            normals=normals,
            values=values,
            seed=seed,
            height=height,
            width=width,
            colour_channels=colour_channels,
            dtype=dtype,
            constants=constants,
        )
    compiling = torch.compiler.is_compiling()
    # The kernel refuses what it sees; it sees neither a seed nor a dtype, nor what is absurd, and
    # takes bools and scalar tensors for integers.
    unusual = values is not None or seed is not None or not _is_taken(dtype)
    unusual |= any(isinstance(n, (bool, Tensor)) for n in (height, width, colour_channels))
    if compiling or unusual or _strong(constants):
        _check(p, multipliers, *rest)
    try:
        m = multipliers
        args = (
            _plain(p if values is None else None),
            _plain(uniforms),
            _plain(normals),
            _plain(values),
            [*m[:12], *m.bands(), m.noise, m.cutout],
            list(constants),
            height,
            width,
            colour_channels,
            accumulation_dtype(dtype) == torch.float64,
        )
        if compiling:
            found = _ops.ada_parameters(*args)
        else:
            with below_autograd():
                found = _ops.ada_parameters(*args)
    except (RuntimeError, TypeError, AttributeError, ValueError, IndexError):
        # The kernel refused; find the words for what it was given.
        _check(p, multipliers, *rest)
        raise
    drawn, new_seed, maps, colour, gains, sigma, box = found
    composed = height is not None
    return Parameters(
        drawn if values is None else values,
        new_seed if values is None else seed,
        maps if composed and m.geometry() else None,
        colour if composed and m.colour(colour_channels) else None,
        gains if composed and m.filter() else None,
        sigma if composed and m.noise > 0 else None,
        box if composed and m.cutout > 0 else None,
    )


def _plain(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().contiguous()


def check_percentile(op: str, percentile: object) -> None:
    """Refuse what is not a number above 0 and below 1."""
    check_number(op, "percentile", percentile, positive=True)
    if not cast(float, percentile) < 1:
        raise ValueError(f"{op}: expected percentile to be below 1, got {percentile}")


def preview_values(
    percentile: float,
    multipliers: AdaMultipliers,
    batch: int,
    constants: AdaConstants = DEFAULTS,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """The values of every enabled transform at one percentile, for all samples: a preview.

    For ``ada_parameters(None, multipliers, values=..., seed=..., height=..., width=...)``. Every
    enabled transform is applied, whatever p; of the two rotations only the first. The same as the
    debug percentile of StyleGAN2-ADA, normal numbers included, which are ``erfinv(2 q - 1)``: the
    quantile divided by the square root of 2.

    Args:
        percentile: q, above 0 and below 1.
        multipliers: what is enabled.
        batch: how many samples.
        constants: the strengths of the transforms.
        device: of the values; default: torch's.

    Returns:
        (batch, 23), float64.

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """
    op = "preview_values"
    check_percentile(op, percentile)
    _check_multipliers(op, multipliers)
    _check_constants(op, constants)
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 0:
        raise ValueError(f"{op}: expected batch to be an integer, not negative, got {batch!r}")
    m, c, q = multipliers, constants, percentile
    normal = NormalDist().inv_cdf(q) / math.sqrt(2)  # erfinv(2 q - 1)
    uniform = 2 * q - 1
    half_normal = NormalDist().inv_cdf((q + 1) / 2) / math.sqrt(2)  # erfinv(q)
    cutout = m.cutout > 0
    row = (
        float(math.floor(2 * q)) if m.xflip > 0 else 0.0,
        float(math.floor(4 * q)) if m.rotate90 > 0 else 0.0,
        *([uniform * c.xint_max if m.xint > 0 else 0.0] * 2),
        2 ** (normal * c.scale_std) if m.scale > 0 else 1.0,
        uniform * math.pi * c.rotate_max if m.rotate > 0 else 0.0,
        2 ** (normal * c.aniso_std) if m.aniso > 0 else 1.0,
        0.0,
        *([normal * c.xfrac_std if m.xfrac > 0 else 0.0] * 2),
        normal * c.brightness_std if m.brightness > 0 else 0.0,
        2 ** (normal * c.contrast_std) if m.contrast > 0 else 1.0,
        float(math.floor(2 * q)) if m.lumaflip > 0 else 0.0,
        uniform * math.pi * c.hue_max if m.hue > 0 else 0.0,
        2 ** (normal * c.saturation_std) if m.saturation > 0 else 1.0,
        *(2 ** (normal * c.imgfilter_std) if band > 0 else 1.0 for band in m.bands()),
        half_normal * c.noise_std if m.noise > 0 else 0.0,
        c.cutout_size if cutout else 0.0,
        *([q if cutout else 0.0] * 2),
    )
    # Filled where they are: copying a list to a GPU would wait for it.
    columns = [torch.full((batch,), x, dtype=torch.float64, device=device) for x in row]
    return torch.stack(columns, 1)


def draw_compat(
    batch: int,
    multipliers: AdaMultipliers,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    *,
    colour_channels: int = 3,
) -> tuple[Tensor, Tensor]:
    """Draw as StyleGAN2-ADA does: the same seed gives the same augmentations.

    Draws only for what is enabled, transform by transform, in float32, through torch's default
    generator unless one is given, and puts the numbers where :func:`ada_parameters` looks for them.

    - The noise itself, which StyleGAN2-ADA draws after the gates of ``noise``, in the shape of the
      images, is not part of it: with ``noise`` enabled its pixels differ, and so does all that is
      drawn afterwards, that of ``cutout`` included. The column of its seed is drawn instead, which
      without ``noise`` is 0.
    - Gates compare in float64 here and in float32 there, where ``multiplier * p`` is rounded first.
      For multipliers of 1 and p of float32 that is the same but for ``rotate``, whose probability
      takes a square root. Where it is not, a gate differs with a probability below 1e-6.
    - Values are computed in float64 and differ by roundings of float32.

    Args:
        batch: how many samples.
        multipliers: what is enabled.
        generator: of the device; default: torch's.
        device: of the draws; default: the generator's, else torch's.
        colour_channels: 3, or 1: without hue and saturation, as for images of one channel.

    Returns:
        ``uniforms`` (batch, ``UNIFORMS``) and ``normals`` (batch, ``NORMALS``), float64.

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """
    op = "draw_compat"
    _check_multipliers(op, multipliers)
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 0:
        raise ValueError(f"{op}: expected batch to be an integer, not negative, got {batch!r}")
    if not _is_number_of(colour_channels, (1, 3)):
        raise ValueError(f"{op}: expected 1 or 3 colour_channels, got {colour_channels!r}")
    if device is None and isinstance(generator, torch.Generator):
        device = generator.device
    check_generator(op, generator, torch.device("cpu" if device is None else device))
    m, b = multipliers, batch
    uniforms = torch.zeros(b, UNIFORMS, dtype=torch.float64, device=device)
    normals = torch.zeros(b, NORMALS, dtype=torch.float64, device=device)
    options: dict[str, Any] = {"generator": generator, "device": device, "dtype": torch.float32}

    def gate(name: str, *shape: int) -> None:
        uniforms[:, GATES.index(name)] = torch.rand(b, *shape, **options).view(b)

    def uniform(names: str, *shape: int) -> None:
        _put(uniforms[:, len(GATES) :], UNIFORM_VALUES, names, torch.rand(b, *shape, **options))

    def normal(names: str, *shape: int) -> None:
        _put(normals, NORMAL_VALUES, names, torch.randn(b, *shape, **options))

    if m.xflip > 0:
        uniform("xflip")
        gate("xflip")
    if m.rotate90 > 0:
        uniform("rotate90")
        gate("rotate90")
    if m.xint > 0:
        uniform("xint_x xint_y", 2)
        gate("xint", 1)
    if m.scale > 0:
        normal("scale")
        gate("scale")
    if m.rotate > 0:
        uniform("rotate_before")
        gate("rotate_before")
    if m.aniso > 0:
        normal("aniso")
        gate("aniso")
    if m.rotate > 0:
        uniform("rotate_after")
        gate("rotate_after")
    if m.xfrac > 0:
        normal("xfrac_x xfrac_y", 2)
        gate("xfrac", 1)
    if m.brightness > 0:
        normal("brightness")
        gate("brightness")
    if m.contrast > 0:
        normal("contrast")
        gate("contrast")
    if m.lumaflip > 0:
        uniform("lumaflip", 1, 1)
        gate("lumaflip", 1, 1)
    if m.hue > 0 and colour_channels == 3:
        uniform("hue")
        gate("hue")
    if m.saturation > 0 and colour_channels == 3:
        normal("saturation", 1, 1)
        gate("saturation", 1, 1)
    if m.imgfilter > 0:
        for band in range(4):
            normal(f"band_{band}")
            gate(f"band_{band}")
    if m.noise > 0:
        normal("noise", 1, 1, 1)
        gate("noise", 1, 1, 1)
        options["dtype"] = torch.float64
        uniform("seed")
        options["dtype"] = torch.float32
    if m.cutout > 0:
        gate("cutout", 1, 1, 1, 1)
        uniform("cutout_x cutout_y", 2, 1, 1, 1)
    if colour_channels == 1:  # what was not drawn does not happen, whatever the multiplier
        uniforms[:, GATES.index("hue")] = uniforms[:, GATES.index("saturation")] = math.inf
    return uniforms, normals


def _put(table: Tensor, columns: tuple[str, ...], names: str, drawn: Tensor) -> None:
    first, *others = (columns.index(name) for name in names.split())
    table[:, first : first + 1 + len(others)] = (
        drawn.flatten(1) if drawn.dim() > 1 else drawn[:, None]
    )


# --- fake and registration -----------------------------------------------------------------------


def _fake(
    p, uniforms, normals, values, multipliers, constants, height, width, colour_channels, float64
):
    like = uniforms if values is None else values
    # It answers for a call in which any tensor is a meta tensor.
    if any(x is not None and x.device != like.device for x in (p, normals)):
        raise RuntimeError("expected all tensors on one device")
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
        empty(composed and m.colour(colour_channels), (colour_channels, colour_channels + 1), acc),
        empty(composed and m.filter(), (4,), acc),
        empty(composed and noise > 0, (), acc),
        empty(composed and cutout > 0, (3,), torch.float64),
    )


def define(library: torch.library.Library) -> None:
    """Define the operator and its fake in the namespace of ``library``."""
    library.define(_SCHEMA)
    torch.library.register_fake(f"{library.ns}::ada_parameters", _fake, lib=library)


define(LIBRARY)


# --- checks ------------------------------------------------------------------------------------


def _check_multipliers(op: str, multipliers: object) -> None:
    if not isinstance(multipliers, AdaMultipliers):
        raise TypeError(
            f"{op}: expected multipliers to be AdaMultipliers, got {kind(multipliers)}; "
            "AdaMultipliers(xflip=1.0, ...) enables transforms by name"
        )
    bands = multipliers.imgfilter_bands
    if not isinstance(bands, (tuple, list)) or len(bands) != 4:
        got = f"{len(bands)}" if isinstance(bands, (tuple, list)) else kind(bands)
        raise ValueError(
            f"{op}: expected imgfilter_bands to be 4 numbers, from the lowest band to the highest, "
            f"got {got}"
        )
    for name, value in zip(multipliers._fields, multipliers, strict=True):
        if name != "imgfilter_bands":
            check_number(op, f"the multiplier of {name}", value)
    for band in bands:
        check_number(op, "every number of imgfilter_bands", band)


def _check_constants(op: str, constants: object) -> None:
    if not isinstance(constants, AdaConstants):
        raise TypeError(f"{op}: expected constants to be AdaConstants, got {kind(constants)}")
    for name, value in zip(constants._fields, constants, strict=True):
        check_constant(op, name, value)


def _strong(constants: AdaConstants) -> bool:
    """Whether some may be too large, or no numbers."""
    if constants is DEFAULTS:
        return False
    if not isinstance(constants, AdaConstants):
        return True
    try:
        return max(constants) > _LARGEST_EXPONENT
    except (TypeError, RuntimeError, ValueError):  # of tensors and arrays in it
        return True


def check_constant(op: str, name: str, value: object) -> None:
    """Refuse what is no strength of a transform, or would overflow: images would be NaN."""
    check_number(op, name, value)
    largest = _LARGEST_EXPONENT if name in _EXPONENTS else _LARGEST
    if cast(float, value) > largest:
        raise ValueError(
            f"{op}: expected {name} to be at most {largest:g}, got {value}; images would overflow"
        )


def _check(
    p: object,
    multipliers: object,
    uniforms: object,
    normals: object,
    values: object,
    seed: object,
    height: int | None,
    width: int | None,
    colour_channels: object,
    dtype: object,
    constants: object,
) -> None:
    op = "ada_parameters"
    _check_multipliers(op, multipliers)
    _check_constants(op, constants)
    if (values is None) == (uniforms is None and normals is None):
        got = "neither" if values is None else "both"
        raise ValueError(f"{op}: expected either uniforms and normals, or values, got {got}")
    wanted: tuple[tuple[str, object, int], ...] = (("values", values, len(VALUES)),)
    if values is None:
        wanted = (("uniforms", uniforms, UNIFORMS), ("normals", normals, NORMALS))
    first: Tensor | None = None
    for name, x, columns in wanted:
        if not isinstance(x, Tensor):
            raise TypeError(f"{op}: expected {name} to be a tensor, got {kind(x)}")
        check_strided(op, name, x)
        like = x if first is None else first
        shaped = x.dim() == 2 and x.shape[1] == columns and x.shape[0] == like.shape[0]
        if x.dtype != torch.float64 or not shaped or x.device != like.device:
            batch = "B" if first is None else first.shape[0]
            place = "" if first is None else f" on {first.device}"
            raise ValueError(
                f"{op}: expected {name} to be float64 of shape ({batch}, {columns}){place}, got "
                f"{describe(x)}"
            )
        first = like
    assert first is not None
    if values is None:
        _check_p(op, p, first)
        if seed is not None:
            raise ValueError(f"{op}: expected seed to come with values; draws make their own")
    elif seed is not None:
        if not isinstance(seed, Tensor):
            raise TypeError(f"{op}: expected seed to be a tensor, got {kind(seed)}")
        check_strided(op, "seed", seed)
        if (
            seed.dtype != torch.int64
            or seed.shape != first.shape[:1]
            or seed.device != first.device
        ):
            raise ValueError(
                f"{op}: expected seed to be int64 of shape ({first.shape[0]},) on {first.device}, "
                f"got {describe(seed)}"
            )
    if (height is None) != (width is None) or (values is not None and height is None):
        raise ValueError(
            f"{op}: expected height and width, got {height} and {width}; neither is needed to make "
            "values alone"
        )
    for name, size in (("height", height), ("width", width)):
        if size is not None:
            check_count(op, name, size)
    if not _is_number_of(colour_channels, (0, 1, 3)):
        raise ValueError(
            f"{op}: expected 0, 1 or 3 colour_channels, got {colour_channels!r}; of images with "
            "others, choose those that are colour"
        )
    if not _is_taken(dtype):
        raise ValueError(f"{op}: expected dtype float32, float64, bfloat16 or float16, got {dtype}")


def _is_number_of(value: object, numbers: tuple[int, ...]) -> bool:
    good = isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)
    return good and value in numbers


def _is_taken(dtype: object) -> bool:
    return isinstance(dtype, torch.dtype) and dtype in _DTYPES


def _check_p(op: str, p: object, like: Tensor) -> None:
    if not isinstance(p, Tensor):
        raise TypeError(
            f"{op}: expected p to be a tensor, got {kind(p)}; keep it on the device, as in "
            f'torch.tensor(0.5, device="{like.device}")'
        )
    check_strided(op, "p", p)
    if p.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: expected p of float32 or float64, got {p.dtype}; convert it first")
    if tuple(p.shape) not in ((), (len(GROUPS),)) or p.device != like.device:
        raise ValueError(
            f"{op}: expected p to be a scalar or of shape ({len(GROUPS)},), for the groups "
            f"{', '.join(GROUPS)}, on {like.device}, got {describe(p)}"
        )
