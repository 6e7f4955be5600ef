"""The settings that an augmentation depends on, besides its random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from gankernels._checks import check_number, kind
from gankernels.augment.presets import DEFAULT, PRESETS
from gankernels.ops._checks.ada_parameters import check_constant
from gankernels.ops.ada_parameters import AdaConstants, AdaMultipliers
from gankernels.ops.affine_resample import Mode


class Settings(NamedTuple):
    """The settings of a pipe that its transforms keep: see :class:`ADAPipe`."""

    multipliers: AdaMultipliers
    mode: Mode
    lossless_blits: bool
    color_channels: tuple[int, ...] | None
    yflip: float = 0.0  #: a multiplier; it is no transform of the paper, and the kernels have none


_TRANSFORMS = (*AdaMultipliers._fields, "yflip")
_ARGUMENTS = ("preset", "p", "p_max", "mode", "lossless_blits", "color_channels", "seed_compat")


def strengths(
    op: str, preset: str | None, settings: dict[str, Any]
) -> tuple[AdaMultipliers, AdaConstants, float]:
    """The multipliers of the transforms, how strong they are, and the multiplier of yflip."""
    if preset is DEFAULT and settings:
        preset = None
    if not isinstance(preset, str | None):
        raise TypeError(f"{op}: expected preset to be a name or None, got {kind(preset)}")
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"{op}: expected a preset of {', '.join(PRESETS)}, got {preset!r}")
    known = (*_TRANSFORMS, *AdaConstants._fields)
    for name, value in settings.items():
        if name not in known:
            close = get_close_matches(name, (*known, *_ARGUMENTS))
            cure = f"{' or '.join(close)} is meant" if close else f"there are {', '.join(known)}"
            raise TypeError(f"{op}: expected settings by their names, got {name!r}; {cure}")
        if name in AdaConstants._fields:
            check_constant(op, name, value)
            continue
        if name != "imgfilter_bands":
            check_number(op, name, value)
            continue
        if not isinstance(value, (tuple, list)) or len(value) != 4:
            raise ValueError(
                f"{op}: expected imgfilter_bands to be 4 numbers, for the bands from the lowest to "
                f"the highest, got {value!r}"
            )
        for factor in value:
            check_number(op, "every number of imgfilter_bands", factor)
        settings = {**settings, name: tuple(value)}
    start = AdaMultipliers() if preset is None else PRESETS[preset]
    multipliers = start._replace(
        **{k: v for k, v in settings.items() if k in AdaMultipliers._fields}
    )
    constants = AdaConstants(**{k: v for k, v in settings.items() if k in AdaConstants._fields})
    yflip, filtered = settings.get("yflip", 0.0), multipliers.filter()
    if not any((*multipliers[:12], yflip, filtered, multipliers.noise, multipliers.cutout)):
        cure = "for images as they are, keep the transforms and set p to 0"
        if settings and not any(name in _TRANSFORMS for name in settings):
            arguments = ", ".join(f"{name}={value}" for name, value in settings.items())
            cure = f'name transforms too, or a preset, as in {op}("bgc", {arguments})'
        raise ValueError(f"{op}: expected a transform with a multiplier above 0, got none; {cure}")
    return multipliers, constants, yflip


def color_channels_of(op: str, channels: Any) -> tuple[int, ...] | None:
    if channels is None:
        return None
    good = isinstance(channels, Sequence) and len(channels) in (1, 3)
    if good:
        good = all(isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in channels)
    if not good or list(channels) != sorted(set(channels)):
        raise ValueError(
            f"{op}: expected color_channels to be 3 channels or 1, ascending, as in (0, 1, 2), "
            f"got {channels!r}"
        )
    return tuple(channels)


def settings_state(settings: Settings) -> dict[str, Any]:
    multipliers = settings.multipliers._asdict()
    multipliers["imgfilter_bands"] = list(settings.multipliers.imgfilter_bands)
    if settings.yflip > 0:
        multipliers["yflip"] = settings.yflip
    channels = settings.color_channels
    return {
        "multipliers": multipliers,
        "mode": settings.mode,
        "lossless_blits": settings.lossless_blits,
        "color_channels": None if channels is None else list(channels),
    }


def enabled(settings: Settings) -> str:
    """The names of what happens, with multipliers that are not 1."""
    multipliers = settings.multipliers
    flips = {"xflip": multipliers.xflip, "yflip": settings.yflip}
    return ", ".join(
        name if value == 1 else f"{name}={value}"
        for name, value in {**flips, **multipliers._asdict()}.items()
        if name != "imgfilter_bands" and value > 0
    )


def check_mode(op: str, mode: object) -> None:
    if not isinstance(mode, str) or mode not in ("ideal", "stylegan2-ada"):
        raise ValueError(f'{op}: expected mode "ideal" or "stylegan2-ada", got {mode!r}')
