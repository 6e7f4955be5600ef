"""Values for ``ada_parameters``: drawn as StyleGAN2-ADA does, or those of a preview."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, cast

import torch
from torch import Tensor

from gankernels._checks import check_generator, check_number, drawn_by
from gankernels.ops._checks.ada_parameters import check_constants, check_multipliers, is_number_of
from gankernels.ops.ada_parameters import NORMALS, UNIFORMS, AdaConstants, AdaMultipliers
from gankernels.reference.ada_parameters import DEFAULTS, GATES, NORMAL_VALUES, UNIFORM_VALUES


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
        TypeError, ValueError: if an argument has an unsupported type or value.
    """
    op = "preview_values"
    check_percentile(op, percentile)
    check_multipliers(op, multipliers)
    check_constants(op, constants)
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
    color_channels: int = 3,
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
        color_channels: 3, or 1: without hue and saturation, as for images of one channel.

    Returns:
        ``uniforms`` (batch, ``UNIFORMS``) and ``normals`` (batch, ``NORMALS``), float64.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """
    op = "draw_compat"
    check_multipliers(op, multipliers)
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 0:
        raise ValueError(f"{op}: expected batch to be an integer, not negative, got {batch!r}")
    if not is_number_of(color_channels, (1, 3)):
        raise ValueError(f"{op}: expected 1 or 3 color_channels, got {color_channels!r}")
    if device is None and isinstance(generator, torch.Generator):
        device = generator.device
    check_generator(op, generator, torch.device("cpu" if device is None else device))
    m, b = multipliers, batch
    uniforms = torch.zeros(b, UNIFORMS, dtype=torch.float64, device=device)
    normals = torch.zeros(b, NORMALS, dtype=torch.float64, device=device)
    options: dict[str, Any] = {"device": device, "dtype": torch.float32, **drawn_by(generator)}

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
    if m.hue > 0 and color_channels == 3:
        uniform("hue")
        gate("hue")
    if m.saturation > 0 and color_channels == 3:
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
    if color_channels == 1:  # what was not drawn does not happen, whatever the multiplier
        uniforms[:, GATES.index("hue")] = uniforms[:, GATES.index("saturation")] = math.inf
    return uniforms, normals


def _put(table: Tensor, columns: tuple[str, ...], names: str, drawn: Tensor) -> None:
    first, *others = (columns.index(name) for name in names.split())
    table[:, first : first + 1 + len(others)] = (
        drawn.flatten(1) if drawn.dim() > 1 else drawn[:, None]
    )


__all__ = ["draw_compat", "preview_values"]
