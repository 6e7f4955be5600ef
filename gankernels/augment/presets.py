"""The transforms behind each name: the categories of Karras et al. 2020 (arXiv 2006.06676)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gankernels.ops.ada_parameters import GROUPS, AdaMultipliers

__all__ = ["PRESETS", "TRANSFORMS"]

#: The transforms of each of the groups that can have a p of their own.
TRANSFORMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "blit": ("xflip", "rotate90", "xint"),
        "geom": ("scale", "rotate", "aniso", "xfrac"),
        "color": ("brightness", "contrast", "lumaflip", "hue", "saturation"),
        "filter": ("imgfilter",),
        "noise": ("noise",),
        "cutout": ("cutout",),
    }
)
assert tuple(TRANSFORMS) == GROUPS


class _Default(str):
    """A preset that is given up where transforms are named."""


#: What the paper settled on.
DEFAULT = _Default("bgc")


def _preset(*groups: str) -> AdaMultipliers:
    enabled: dict[str, Any] = {name: 1.0 for group in groups for name in TRANSFORMS[group]}
    return AdaMultipliers(**enabled)


#: The multipliers of each preset: 1 for what it enables.
PRESETS: Mapping[str, AdaMultipliers] = MappingProxyType(
    {
        **{group: _preset(group) for group in GROUPS},
        "bg": _preset("blit", "geom"),
        "bgc": _preset("blit", "geom", "color"),
        "bgcf": _preset("blit", "geom", "color", "filter"),
        "bgcfn": _preset("blit", "geom", "color", "filter", "noise"),
        "bgcfnc": _preset(*GROUPS),
    }
)
