"""The parameters of adaptive discriminator augmentation for each sample, in plain PyTorch.

Karras et al. 2020 (arXiv 2006.06676), appendix B.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gankernels._dtypes import accumulation_dtype
from gankernels.reference._margins import batch_margins

_F64 = torch.float64


class AdaMultipliers(NamedTuple):
    """The probability of each transform is its multiplier times p; 0 leaves it out.

    A transform happens to a sample with probability ``min(1, multiplier * p)``. ``rotate`` is the
    probability of either of its two rotations. Bands are those of ``imgfilter``, from low to high
    frequencies; each has the multiplier ``imgfilter * imgfilter_bands[i]``.
    """

    xflip: float = 0.0
    rotate90: float = 0.0
    xint: float = 0.0
    scale: float = 0.0
    rotate: float = 0.0
    aniso: float = 0.0
    xfrac: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    lumaflip: float = 0.0
    hue: float = 0.0
    saturation: float = 0.0
    imgfilter: float = 0.0
    noise: float = 0.0
    cutout: float = 0.0
    imgfilter_bands: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def bands(self) -> list[float]:
        """The multiplier of each band."""
        return [self.imgfilter * band for band in self.imgfilter_bands]

    def geometry(self) -> bool:
        """Whether there is a geometric transform."""
        return any(m > 0 for m in self[:7])

    def color(self, channels: int) -> bool:
        """Whether there is a color transform that ``channels`` have; hue and saturation need 3."""
        some = self.brightness > 0 or self.contrast > 0 or self.lumaflip > 0
        if channels == 3:
            return some or self.hue > 0 or self.saturation > 0
        return channels == 1 and some

    def filter(self) -> bool:
        """Whether there is a band that can be amplified."""
        return any(m > 0 for m in self.bands())


class AdaConstants(NamedTuple):
    """The strengths of the transforms; the defaults are the paper's.

    ``_std`` is the standard deviation of a normal number: of the logarithm to base 2 of a factor
    (scale, aniso, contrast, saturation, imgfilter), of a fraction of the image's size (xfrac), of
    an offset (brightness), of the noise's standard deviation (noise).
    """

    xint_max: float = 0.125  #: of the image's size
    scale_std: float = 0.2
    rotate_max: float = 1.0  #: of a half turn
    aniso_std: float = 0.2
    xfrac_std: float = 0.125
    brightness_std: float = 0.2
    contrast_std: float = 0.5
    hue_max: float = 1.0  #: of a half turn
    saturation_std: float = 1.0
    imgfilter_std: float = 1.0
    noise_std: float = 0.1
    cutout_size: float = 0.5  #: of the image's size


DEFAULTS = AdaConstants()


class Parameters(NamedTuple):
    """The parameters of B samples. See :func:`gankernels.ops.ada_parameters`."""

    values: Tensor  #: (B, 23), float64
    seed: Tensor | None  #: (B,), int64, of the noise
    maps: Tensor | None  #: (B, 2, 3), float64
    color: Tensor | None  #: (B, 3, 4) or (B, 1, 2)
    gains: Tensor | None  #: (B, 4)
    sigma: Tensor | None  #: (B,)
    box: Tensor | None  #: (B, 3), float64
    margins: Tensor | None = None  #: (4,), int64, of the batch


#: The transforms that each of six strengths p is for.
GROUPS = ("blit", "geom", "color", "filter", "noise", "cutout")
#: The columns of uniform numbers: those of the gates first.
GATES = (
    *("xflip", "rotate90", "xint", "scale", "rotate_before", "aniso", "rotate_after", "xfrac"),
    *("brightness", "contrast", "lumaflip", "hue", "saturation"),
    *("band_0", "band_1", "band_2", "band_3", "noise", "cutout"),
)
UNIFORM_VALUES = (
    *("xflip", "rotate90", "xint_x", "xint_y", "rotate_before", "rotate_after"),
    *("lumaflip", "hue", "cutout_x", "cutout_y", "seed"),
)
NORMAL_VALUES = (
    *("scale", "aniso", "xfrac_x", "xfrac_y", "brightness", "contrast", "saturation"),
    *("band_0", "band_1", "band_2", "band_3", "noise"),
)
#: The columns of values.
VALUES = (
    *("xflip", "rotate90", "xint_x", "xint_y", "scale", "rotate_before", "aniso", "rotate_after"),
    *("xfrac_x", "xfrac_y", "brightness", "contrast", "lumaflip", "hue", "saturation"),
    *("band_0", "band_1", "band_2", "band_3", "noise", "cutout", "cutout_x", "cutout_y"),
)

#: The count of numbers of ``torch.rand`` and of ``torch.randn`` a sample takes.
UNIFORMS = len(GATES) + len(UNIFORM_VALUES)
NORMALS = len(NORMAL_VALUES)


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
    """See :func:`gankernels.ops.ada_parameters`."""
    m = multipliers
    with torch.no_grad():
        if values is None:
            assert p is not None
            assert uniforms is not None
            assert normals is not None
            values = _sample(p, m, constants, uniforms, normals)
            seed = (uniforms[:, -1] * 2.0**53).to(torch.int64)
        if height is None or width is None:
            return Parameters(values, seed, None, None, None, None, None)
        acc = accumulation_dtype(dtype)
        v = dict(zip(VALUES, values.unbind(1), strict=True))
        maps = _maps(v, height, width) if m.geometry() else None
        return Parameters(
            values,
            seed,
            maps,
            _color(v, color_channels).to(acc) if m.color(color_channels) else None,
            _gains(v).to(acc) if m.filter() else None,
            v["noise"].to(acc) if m.noise > 0 else None,
            torch.stack([v["cutout_x"], v["cutout_y"], v["cutout"]], 1) if m.cutout > 0 else None,
            batch_margins(maps, height, width) if margins and maps is not None else None,
        )


def _sample(
    p: Tensor, m: AdaMultipliers, c: AdaConstants, uniforms: Tensor, normals: Tensor
) -> Tensor:
    gate = dict(zip(GATES, uniforms[:, : len(GATES)].unbind(1), strict=True))
    u = dict(zip(UNIFORM_VALUES, uniforms[:, len(GATES) :].unbind(1), strict=True))
    n = dict(zip(NORMAL_VALUES, normals.unbind(1), strict=True))
    p = p.to(_F64).nan_to_num(nan=0.0, posinf=1.0, neginf=0.0).clamp(0, 1)
    blit, geom, color, filtered, noise, cutout = p.expand(6).unbind()
    # The two rotations are independent; that neither happens has probability 1 - rotate * p.
    either = 1 - (1 - m.rotate * geom).clamp(0, 1).sqrt()
    band = dict(zip(("band_0", "band_1", "band_2", "band_3"), m.bands(), strict=True))

    def symmetric(u: Tensor) -> Tensor:
        return 2 * u - 1

    # For each transform its probability, and name, drawn value and identity of its columns.
    table: dict[str, tuple[Tensor, list[tuple[str, Tensor, float]]]] = {
        "xflip": (m.xflip * blit, [("xflip", (2 * u["xflip"]).floor(), 0)]),
        "rotate90": (m.rotate90 * blit, [("rotate90", (4 * u["rotate90"]).floor(), 0)]),
        "xint": (
            m.xint * blit,
            [(k, symmetric(u[k]) * c.xint_max, 0) for k in ("xint_x", "xint_y")],
        ),
        "scale": (m.scale * geom, [("scale", (n["scale"] * c.scale_std).exp2(), 1)]),
        **{
            k: (either, [(k, symmetric(u[k]) * math.pi * c.rotate_max, 0)])
            for k in ("rotate_before", "rotate_after")
        },
        "aniso": (m.aniso * geom, [("aniso", (n["aniso"] * c.aniso_std).exp2(), 1)]),
        "xfrac": (m.xfrac * geom, [(k, n[k] * c.xfrac_std, 0) for k in ("xfrac_x", "xfrac_y")]),
        "brightness": (
            m.brightness * color,
            [("brightness", n["brightness"] * c.brightness_std, 0)],
        ),
        "contrast": (
            m.contrast * color,
            [("contrast", (n["contrast"] * c.contrast_std).exp2(), 1)],
        ),
        "lumaflip": (m.lumaflip * color, [("lumaflip", (2 * u["lumaflip"]).floor(), 0)]),
        "hue": (m.hue * color, [("hue", symmetric(u["hue"]) * math.pi * c.hue_max, 0)]),
        "saturation": (
            m.saturation * color,
            [("saturation", (n["saturation"] * c.saturation_std).exp2(), 1)],
        ),
        **{
            k: (band[k] * filtered, [(k, (n[k] * c.imgfilter_std).exp2(), 1)])
            for k in ("band_0", "band_1", "band_2", "band_3")
        },
        "noise": (m.noise * noise, [("noise", n["noise"].abs() * c.noise_std, 0)]),
        "cutout": (
            m.cutout * cutout,
            [
                ("cutout", torch.full_like(gate["cutout"], c.cutout_size), 0),
                ("cutout_x", u["cutout_x"], 0),
                ("cutout_y", u["cutout_y"], 0),
            ],
        ),
    }
    sampled = {
        column: torch.where(gate[name] < chance, drawn, identity)
        for name, (chance, columns) in table.items()
        for column, drawn, identity in columns
    }
    return torch.stack([sampled[column] for column in VALUES], 1)


def _matrix(rows: list[list[Tensor | float]]) -> Tensor:
    """(B, n, n) of columns of B numbers and of numbers."""
    like = next(x for row in rows for x in row if isinstance(x, Tensor))
    return torch.stack(
        [torch.stack([torch.zeros_like(like) + x for x in row], -1) for row in rows], -2
    )


def _maps(v: dict[str, Tensor], height: int, width: int) -> Tensor:
    def scale(x: Tensor, y: Tensor) -> Tensor:
        return _matrix([[x, 0, 0], [0, y, 0], [0, 0, 1]])

    def rotation(cos: Tensor, sin: Tensor) -> Tensor:
        return _matrix([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])

    def shift(x: Tensor, y: Tensor) -> Tensor:
        return _matrix([[1, 0, x], [0, 1, y], [0, 0, 1]])

    quarters = v["rotate90"] * (math.pi / 2)
    # The inverse of each transform; the first acts first on the image.
    maps = scale(1 - 2 * v["xflip"], torch.ones_like(v["xflip"]))
    maps = maps @ rotation(quarters.cos().round(), quarters.sin().round())
    maps = maps @ shift(-(v["xint_x"] * width).round(), -(v["xint_y"] * height).round())
    maps = maps @ scale(1 / v["scale"], 1 / v["scale"])
    maps = maps @ rotation(v["rotate_before"].cos(), v["rotate_before"].sin())
    maps = maps @ scale(1 / v["aniso"], v["aniso"])
    maps = maps @ rotation(v["rotate_after"].cos(), v["rotate_after"].sin())
    maps = maps @ shift(-v["xfrac_x"] * width, -v["xfrac_y"] * height)
    return maps[:, :2] + 0.0  # -0 + 0 = 0


def _color(v: dict[str, Tensor], channels: int) -> Tensor:
    one = torch.ones_like(v["hue"])
    eye = torch.eye(4, dtype=one.dtype, device=one.device)
    axis = torch.ones(4, dtype=one.dtype, device=one.device) / math.sqrt(3)
    axis = axis * (torch.arange(4, device=one.device) < 3)
    gray = axis.outer(axis)

    def column(x: Tensor) -> Tensor:
        return x[:, None, None]

    b, c = v["brightness"], v["contrast"]
    matrix = _matrix([[one, 0, 0, b], [0, one, 0, b], [0, 0, one, b], [0, 0, 0, one]])
    matrix = _matrix([[c, 0, 0, 0], [0, c, 0, 0], [0, 0, c, 0], [0, 0, 0, one]]) @ matrix
    matrix = (eye - 2 * column(v["lumaflip"]) * gray) @ matrix
    if channels == 1:
        rows = matrix[:, :3].mean(1)
        return torch.stack([rows[:, :3].sum(1), rows[:, 3]], 1)[:, None]
    # Rodrigues: the rotation about the gray axis.
    cos, sin = v["hue"].cos(), v["hue"].sin() / math.sqrt(3)
    same, turn = cos + (1 - cos) / 3, (1 - cos) / 3
    hue = _matrix(
        [
            [same, turn - sin, turn + sin, 0],
            [turn + sin, same, turn - sin, 0],
            [turn - sin, turn + sin, same, 0],
            [0, 0, 0, one],
        ]
    )
    matrix = hue @ matrix
    matrix = (gray + (eye - gray) * column(v["saturation"])) @ matrix
    return matrix[:, :3]


def _gains(v: dict[str, Tensor]) -> Tensor:
    # The power of the bands of natural images, which amplifying one of them must not change.
    one = torch.ones_like(v["band_0"])
    gains = torch.stack([one] * 4, 1)
    power = torch.full((4,), 1 / 13, dtype=_F64, device=one.device)
    power[0] = 10 / 13
    for i in range(4):
        band = v[f"band_{i}"]
        t = torch.stack([band if k == i else one for k in range(4)], 1)  # vmap: no writing in place
        t = t / (power * t.square()).sum(1, keepdim=True).sqrt()
        gains = torch.where(band[:, None] == 1, gains, gains * t)  # exactly, not nearly
    return gains


__all__ = ["ada_parameters"]
