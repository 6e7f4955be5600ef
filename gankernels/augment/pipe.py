"""Adaptive discriminator augmentation as a module, and what it did as an object.

Karras et al. 2020 (arXiv 2006.06676), section 3 and appendix B.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from gankernels import ops
from gankernels._checks import check_number, describe, kind
from gankernels._library import NATIVE_DTYPES
from gankernels.augment.presets import PRESETS, TRANSFORMS
from gankernels.ops.ada_parameters import (
    GROUPS,
    NORMALS,
    UNIFORMS,
    VALUES,
    AdaConstants,
    AdaMultipliers,
    Parameters,
    draw_compat,
    preview_values,
)
from gankernels.ops.affine_resample import Filter, Mode

__all__ = ["ADAPipe", "Transform"]


class Settings(NamedTuple):
    """What the effect of drawn values depends on besides: see :class:`ADAPipe`."""

    multipliers: AdaMultipliers
    mode: Mode
    lossless_blits: bool
    colour_channels: tuple[int, ...] | None


class ADAPipe(nn.Module):
    """Adaptive discriminator augmentation: random transforms of every image by itself.

    Karras et al. 2020 (arXiv 2006.06676), appendix B. Each transform happens to each image with the
    probability ``min(1, multiplier * p)``. Real and generated images go through the same pipe on
    their way to the critic; the generator's gradient comes back through it. ::

        pipe = ADAPipe("bgc", p=0.0).to(device)
        logits = D(pipe(G(z)))
        pipe.p = 0.2

    Args:
        preset: which transforms happen: ``"blit"`` (xflip, rotate90, xint), ``"geom"`` (scale,
            rotate, aniso, xfrac), ``"color"`` (brightness, contrast, lumaflip, hue, saturation),
            ``"filter"``, ``"noise"``, ``"cutout"``; by their initials ``"bg"``, ``"bgc"``,
            ``"bgcf"``, ``"bgcfn"`` and ``"bgcfnc"``; None: none but those of ``settings``.
        p: the strength, in [0, 1]: a number, or one for each of the groups blit, geom, color,
            filter, noise and cutout, as a dict. Groups without a transform may be left out.
        p_max: p acts as this where it is larger, in (0, 1].
        mode: ``"ideal"``: every image by itself, continued by reflection without end.
            ``"stylegan2-ada"``: padded by the margins of the batch, as in the published code.
        lossless_blits: flips, quarter turns and whole shifts copy pixels, where the anti-aliasing
            filter would lose 23 dB. Not in ``"stylegan2-ada"``.
        colour_channels: the 3 channels, or the one, that colour transforms act on, ascending. By
            default all, of images of 3 or 1 channels.
        seed_compat: draw as the published code does, so that a seed gives the same transforms: see
            :func:`gankernels.ops.ada_parameters.draw_compat`.
        **settings: multipliers by the names of the transforms, instead of the preset's
            (``xflip=1.0``, ``cutout=0.5``, 0 for never; ``imgfilter_bands``, four factors of that
            of imgfilter), and how strong they are (``xint_max``, ``scale_std``, ``rotate_max``,
            ...): the fields of :class:`gankernels.ops.ada_parameters.AdaMultipliers` and
            ``AdaConstants``.

    The strength is the buffer ``p``, float32, a scalar or (6,) for the groups, and the one thing in
    the state_dict. ``pipe.p = 0.3``, or a dict of groups, or a tensor, writes into it, as do
    operators on the device, and compiled graphs and CUDA graphs see that. It stays float32 in
    ``half()`` and the like.

    A call, ``pipe(images, generator=None)``, takes images (B, C, H, W) of float32, float64,
    bfloat16 or float16 and gives images of the same shape, dtype and memory format, in training and
    in evaluation alike. Values are nominally from -1, black, to 1, white; nothing is clamped.
    Random numbers come from ``generator``, on the images' device, or from torch's own: the same
    state gives the same result, and every p and preset takes as many of them. Differentiable to any
    order in the images. Nothing waits for the device. :meth:`sample` gives the transform as an
    object, to apply it more than once.

    Raises:
        TypeError: if a setting is of another type or unknown, or images are not real tensors.
        ValueError: if a number is out of range, a preset unknown, or nothing is enabled; by a call,
            if images are not (B, C, H, W) on the pipe's device, or colour does not fit to their
            channels.
    """

    p: Tensor

    def __init__(
        self,
        preset: str | None = "bgc",
        *,
        p: float | Mapping[str, float] = 1.0,
        p_max: float = 1.0,
        mode: Mode = "ideal",
        lossless_blits: bool = True,
        colour_channels: Sequence[int] | None = None,
        seed_compat: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        multipliers, self.constants = _strengths(op, preset, settings)
        _check_mode(op, mode)
        check_number(op, "p_max", p_max, positive=True)
        if p_max > 1:
            raise ValueError(f"{op}: expected p_max to be at most 1, got {p_max}")
        self.p_max = p_max
        channels = _colour_channels(op, colour_channels)
        self.settings = Settings(multipliers, mode, bool(lossless_blits), channels)
        self.seed_compat = seed_compat
        self.register_buffer("p", torch.zeros(len(GROUPS) if isinstance(p, Mapping) else ()))
        self.set_p(p)
        if isinstance(p, Mapping):
            missing = [
                group
                for group, names in TRANSFORMS.items()
                if group not in p and any(getattr(multipliers, name) > 0 for name in names)
            ]
            if missing:
                raise ValueError(
                    f"{op}: expected p for every group with a transform, got none for "
                    f"{', '.join(missing)}; give 0 for never"
                )

    # --- p ---------------------------------------------------------------------------------------

    def set_p(self, p: float | Mapping[str, float] | Tensor) -> None:
        """Write into the buffer ``p``; what ``pipe.p = p`` does.

        Args:
            p: in [0, p_max]: a number, for all groups; a dict, for those that it names, where the
                pipe was made with one; or a tensor of the buffer's shape or a scalar. A tensor on
                another device than the CPU is copied unseen: the pipe clamps p where it uses it.

        Raises:
            TypeError, ValueError: if ``p`` is none of these. The buffer is as it was.
        """
        op = f"{type(self).__name__}.p"
        buffer = self.p
        if isinstance(p, Mapping):
            if buffer.dim() == 0:
                raise ValueError(
                    f"{op}: expected one number, got a dict of groups; make the pipe with such a "
                    "dict as p"
                )
            for group, value in p.items():
                if group not in GROUPS:
                    raise ValueError(f"{op}: expected groups of {', '.join(GROUPS)}, got {group!r}")
                self._check_p(op, f"p of {group}", value)
            for group, value in p.items():
                buffer[GROUPS.index(group)].fill_(value)
        elif isinstance(p, Tensor):
            if (
                p.is_complex()
                or p.dtype == torch.bool
                or p.shape not in (torch.Size(), buffer.shape)
            ):
                raise ValueError(
                    f"{op}: expected real numbers of shape {tuple(buffer.shape)}, got {describe(p)}"
                )
            if p.device.type == "cpu" and not _within(p, self.p_max):
                raise ValueError(f"{op}: expected p within [0, {self.p_max:g}], got {p.tolist()}")
            p = p.detach().expand_as(buffer)
            if buffer.is_meta:  # load_state_dict(..., assign=True)
                self._buffers["p"] = p.float().clone()
            elif p.device.type == "cpu":  # a copy would wait for the GPU
                for entry, value in zip(buffer.view(-1), p.reshape(-1), strict=True):
                    entry.fill_(value)
            else:
                buffer.copy_(p)
        else:
            self._check_p(op, "p", p)
            buffer.fill_(p)

    def _check_p(self, op: str, name: str, p: float) -> None:
        check_number(op, name, p)
        if p > self.p_max:
            why = "" if self.p_max == 1 else ", its p_max"
            raise ValueError(f"{op}: expected {name} to be at most {self.p_max:g}{why}, got {p}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "p" and "p" in self.__dict__.get("_buffers", ()):
            self.set_p(value)
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ADAPipe:
        p = self.p
        super()._apply(fn, recurse)
        if self.p.dtype != p.dtype:  # in half precision, a controller's steps would be lost
            self._buffers["p"] = p.to(self.p.device)
        return self

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, *rest: Any
    ) -> None:
        errors = rest[-1]
        p = state_dict.get(f"{prefix}p")
        # Loading is the only time that p is read back from a device.
        if isinstance(p, Tensor) and not p.is_meta and not _within(p.cpu(), 1.0):
            errors.append(f"{prefix}p: expected p within [0, 1], got {p.tolist()}")
            return
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *rest)

    # --- calls -----------------------------------------------------------------------------------

    def forward(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        op = type(self).__name__
        channels = _check_images(op, images, self.settings, self.p.device)
        uniforms, normals = self._draw(op, images.shape[0], images.shape[1], generator)
        parameters = ops.ada_parameters(
            self._strength(),
            self.settings.multipliers,
            uniforms=uniforms,
            normals=normals,
            height=images.shape[2],
            width=images.shape[3],
            colour_channels=channels,
            dtype=images.dtype,
            constants=self.constants,
        )
        return _augment(images, parameters, self.settings)

    def sample(
        self,
        batch: int,
        *,
        channels: int = 3,
        percentile: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Transform:
        """Draw a transform for each of ``batch`` images, on the pipe's device, and apply none.

        Args:
            batch: how many; may be 0.
            channels: of the images. Only with ``seed_compat`` it decides about what is drawn.
            percentile: nothing is drawn but the noise: see :meth:`preview`.
            generator: as of a call, which draws the same transforms as this from the same state.

        Raises:
            TypeError, ValueError: if an argument is none of the above.
        """
        op = f"{type(self).__name__}.sample"
        _check_batch(op, batch)
        if percentile is not None:
            multipliers, device = self.settings.multipliers, self.p.device
            values = preview_values(percentile, multipliers, batch, self.constants, device=device)
            _check_generator(op, generator, device)
            seed = torch.randint(2**53, (batch,), generator=generator, device=device)
            return Transform(values, seed, self.settings)
        uniforms, normals = self._draw(op, batch, channels, generator)
        parameters = ops.ada_parameters(
            self._strength(),
            self.settings.multipliers,
            uniforms=uniforms,
            normals=normals,
            constants=self.constants,
        )
        return Transform(parameters.values, cast(Tensor, parameters.seed), self.settings)

    def preview(
        self, images: Tensor, percentile: float, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """All enabled transforms together, each at one percentile of its strengths, whatever p.

        Args:
            images: (B, C, H, W).
            percentile: above 0 and below 1, the same for every transform and image: see
                :func:`gankernels.ops.ada_parameters.preview_values`.
            generator: of the noise, if it is enabled.

        Raises:
            TypeError, ValueError: if an argument is none of the above.
        """
        op = f"{type(self).__name__}.preview"
        _check_images(op, images, self.settings, self.p.device)
        return self.sample(images.shape[0], percentile=percentile, generator=generator)(images)

    def _strength(self) -> Tensor:
        # The operator clamps to [0, 1] itself.
        return self.p if self.p_max == 1 else self.p.clamp(max=self.p_max)

    def _draw(
        self, op: str, batch: int, channels: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        device = self.p.device
        _check_generator(op, generator, device)
        if self.seed_compat:
            return draw_compat(
                batch,
                self.settings.multipliers,
                generator,
                device,
                colour_channels=1 if channels == 1 else 3,
            )
        options: Any = {"dtype": torch.float64, "device": device, "generator": generator}
        return torch.rand(batch, UNIFORMS, **options), torch.randn(batch, NORMALS, **options)

    def extra_repr(self) -> str:
        said = [_enabled(self.settings.multipliers), f"mode={self.settings.mode!r}"]
        if self.p.dim() > 0:
            said.append("p by groups")
        if self.p_max != 1:
            said.append(f"p_max={self.p_max}")
        if self.settings.colour_channels is not None:
            said.append(f"colour_channels={self.settings.colour_channels}")
        return ", ".join(said)


@dataclass(frozen=True, eq=False, repr=False)
class Transform:
    """What :meth:`ADAPipe.sample` drew for each image of a batch; it does not change.

    ``t(images)`` applies it, noise included: twice the same call, twice the same result. ::

        t = pipe.sample(len(images))
        views, masks = t(images), t.geometry(masks)

    ``len(t)`` is the number of images; ``t[i]``, ``t[2:5]``, ``t[[0, 3]]`` and ``t[mask]`` are the
    transforms of some of them. It can be pickled and copied; :meth:`state_dict` has tensors and
    plain values only.

    Attributes:
        values: (B, 23), float64: see :meth:`named`.
        seed: (B,), int64, of the noise.
        settings: those of the pipe that its effect depends on.
    """

    values: Tensor
    seed: Tensor
    settings: Settings

    def __call__(self, images: Tensor) -> Tensor:
        """Apply it to images (B, C, H, W), of any size; see :class:`ADAPipe`.

        Raises:
            TypeError, ValueError: if they are none that the pipe would take, or not as many.
        """
        op = type(self).__name__
        channels = _check_images(op, images, self.settings, self.values.device)
        self._check_batch(op, images)
        return _augment(images, self._compose(images, channels), self.settings)

    def geometry(self, images: Tensor, filter: Filter = "nearest") -> Tensor:  # noqa: A002
        """Its flips, turns, shifts and stretches alone: for masks, depth, other views.

        Args:
            images: (B, C, H, W), of any number of channels and any size: shifts are fractions of
                the size. With ``"nearest"`` also of integers, up to 2^53, or of bool.
            filter: ``"nearest"``; ``"bilinear"``; or ``"sym6"``, that of images.

        Returns:
            As ``images``, differentiable to any order in them if they are real.

        Raises:
            TypeError, ValueError: if an argument is none of the above.
        """
        op = f"{type(self).__name__}.geometry"
        if filter not in ("nearest", "bilinear", "sym6"):
            raise ValueError(
                f'{op}: expected filter "nearest", "bilinear" or "sym6", got {filter!r}'
            )
        integers = filter == "nearest" and isinstance(images, Tensor) and _is_integer(images)
        # Nearest neighbours are copied, so that they stay exact; int64 to 2^53.
        pixels = images.double() if integers else images
        _check_pixels(op, pixels, self.values.device)
        self._check_batch(op, pixels)
        maps = self._compose(pixels, 0).maps
        if maps is None:
            return images.clone()
        found = ops.affine_resample(
            pixels,
            maps,
            filter=filter,
            mode=self.settings.mode if filter == "sym6" else "ideal",
            lossless_blits=self.settings.lossless_blits,
        )
        return found.to(images.dtype)

    def named(self) -> dict[str, Tensor]:
        """What each transform does to each image: columns of ``values``, (B,), by their names.

        Numbers of the identity where it does not happen. xflip 0 or 1; rotate90 in quarter turns;
        xint_x, xint_y, xfrac_x and xfrac_y in fractions of width and height; scale, aniso,
        contrast, saturation and the bands of the filter as factors; rotations and hue in radians;
        brightness an offset; lumaflip 0 or 1; noise its standard deviation; the size of the cutout
        and its centre in fractions.
        """
        return dict(zip(VALUES, self.values.unbind(1), strict=True))

    def to(self, device: torch.device | str | int) -> Transform:
        """The same on another device. It does the same there, but for roundings."""
        return Transform(self.values.to(device), self.seed.to(device), self.settings)

    def state_dict(self) -> dict[str, Any]:
        """Itself as tensors and plain values, which ``torch.load`` reads with ``weights_only``."""
        return {"values": self.values, "seed": self.seed, **_plain(self.settings)}

    @staticmethod
    def from_state_dict(state: Mapping[str, Any]) -> Transform:
        """The transform that :meth:`state_dict` describes.

        Raises:
            TypeError, ValueError: if it does not describe one.
        """
        op = "Transform.from_state_dict"
        if not isinstance(state, Mapping) or set(state) != {"values", "seed", *Settings._fields}:
            got = ", ".join(map(str, state)) if isinstance(state, Mapping) else kind(state)
            raise ValueError(f"{op}: expected what state_dict() gave, got {got}")
        values, seed = state["values"], state["seed"]
        for name, x, dtype, shape in (
            ("values", values, torch.float64, (len(values), len(VALUES))),
            ("seed", seed, torch.int64, (len(values),)),
        ):
            if not isinstance(x, Tensor) or x.dtype != dtype or tuple(x.shape) != shape:
                got = describe(x) if isinstance(x, Tensor) else kind(x)
                raise ValueError(f"{op}: expected {name} of {dtype} and shape {shape}, got {got}")
        multipliers, _ = _strengths(op, None, dict(state["multipliers"]))
        channels = _colour_channels(op, state["colour_channels"])
        _check_mode(op, state["mode"])
        settings = Settings(multipliers, state["mode"], state["lossless_blits"], channels)
        return Transform(values, seed, settings)

    def __len__(self) -> int:
        return self.values.shape[0]

    def __getitem__(self, index: Any) -> Transform:
        chosen = index
        is_list = isinstance(index, list) or (isinstance(index, Tensor) and index.dim() == 1)
        if not is_list and not isinstance(index, slice):
            try:
                i = operator.index(index)
            except TypeError:
                got = describe(index) if isinstance(index, Tensor) else kind(index)
                raise TypeError(
                    "Transform: expected an index, a slice, or a list or a 1-D tensor of indices, "
                    f"got {got}"
                ) from None
            if not -len(self) <= i < len(self):
                raise IndexError(f"Transform: expected an index of {len(self)} images, got {i}")
            i %= len(self)
            chosen = slice(i, i + 1)
        return Transform(self.values[chosen], self.seed[chosen], self.settings)

    def __repr__(self) -> str:
        s = self.settings
        return (
            f"Transform({len(self)} on {self.values.device}: {_enabled(s.multipliers)}, "
            f"mode={s.mode!r})"
        )

    def _compose(self, images: Tensor, channels: int) -> Parameters:
        return ops.ada_parameters(
            None,
            self.settings.multipliers,
            values=self.values,
            seed=self.seed,
            height=images.shape[2],
            width=images.shape[3],
            colour_channels=channels,
            dtype=images.dtype,
        )

    def _check_batch(self, op: str, images: Tensor) -> None:
        if images.shape[0] != len(self):
            raise ValueError(
                f"{op}: expected {len(self)} images, one for each that was drawn, got "
                f"{images.shape[0]}; index the transform, as in t[:{images.shape[0]}], or sample "
                "as many"
            )


# --- passes over the images ----------------------------------------------------------------------


def _augment(images: Tensor, parameters: Parameters, settings: Settings) -> Tensor:
    """Geometry and colour, then the filter; noise and cutout in the last pass that there is."""
    _, seed, maps, colour, gains, sigma, box = parameters
    first: dict[str, Any] = {"mode": settings.mode, "lossless_blits": settings.lossless_blits}
    if colour is not None:
        first.update(colour=colour, colour_channels=settings.colour_channels)
    last: dict[str, Any] = {"sigma": sigma, "seed": None if sigma is None else seed, "box": box}
    if gains is None:
        return ops.affine_augment(images, maps, **first, **last)
    if maps is not None or colour is not None:
        images = ops.affine_augment(images, maps, **first)
    return ops.image_filter(images, gains, **last)


# --- settings ------------------------------------------------------------------------------------


def _strengths(
    op: str, preset: str | None, settings: dict[str, Any]
) -> tuple[AdaMultipliers, AdaConstants]:
    if not isinstance(preset, str | None):
        raise TypeError(f"{op}: expected preset to be a name or None, got {kind(preset)}")
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"{op}: expected a preset of {', '.join(PRESETS)}, got {preset!r}")
    known = (*AdaMultipliers._fields, *AdaConstants._fields)
    for name, value in settings.items():
        if name not in known:
            close = get_close_matches(name, known, 1)
            meant = f"; {close[0]} is meant?" if close else f"; there are {', '.join(known)}"
            raise TypeError(f"{op}: expected settings by their names, got {name!r}{meant}")
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
    if not any((*multipliers[:12], multipliers.filter(), multipliers.noise, multipliers.cutout)):
        raise ValueError(
            f"{op}: expected a transform with a multiplier above 0, got none; for images as they "
            "are, keep the transforms and set p to 0"
        )
    return multipliers, constants


def _colour_channels(op: str, channels: Any) -> tuple[int, ...] | None:
    if channels is None:
        return None
    good = isinstance(channels, Sequence) and len(channels) in (1, 3)
    if good:
        good = all(isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in channels)
    if not good or list(channels) != sorted(set(channels)):
        raise ValueError(
            f"{op}: expected colour_channels to be 3 channels or 1, ascending, as in (0, 1, 2), "
            f"got {channels!r}"
        )
    return tuple(channels)


def _plain(settings: Settings) -> dict[str, Any]:
    multipliers = settings.multipliers._asdict()
    multipliers["imgfilter_bands"] = list(settings.multipliers.imgfilter_bands)
    channels = settings.colour_channels
    return {
        "multipliers": multipliers,
        "mode": settings.mode,
        "lossless_blits": settings.lossless_blits,
        "colour_channels": None if channels is None else list(channels),
    }


def _enabled(multipliers: AdaMultipliers) -> str:
    """The names of what happens, with multipliers that are not 1."""
    return ", ".join(
        name if value == 1 else f"{name}={value}"
        for name, value in multipliers._asdict().items()
        if name != "imgfilter_bands" and value > 0
    )


# --- checks --------------------------------------------------------------------------------------


def _check_mode(op: str, mode: object) -> None:
    if mode not in ("ideal", "stylegan2-ada"):
        raise ValueError(f'{op}: expected mode "ideal" or "stylegan2-ada", got {mode!r}')


def _within(p: Tensor, bound: float) -> bool:
    return bool(((p >= 0) & (p <= bound)).all())


def _is_integer(x: Tensor) -> bool:
    return not x.is_floating_point() and not x.is_complex()


def _check_batch(op: str, batch: object) -> None:
    if isinstance(batch, bool) or not isinstance(batch, int):
        raise TypeError(f"{op}: expected batch to be an integer, got {kind(batch)}")
    if batch < 0:
        raise ValueError(f"{op}: expected batch to be not negative, got {batch}")


def _check_generator(op: str, generator: torch.Generator | None, device: torch.device) -> None:
    if generator is not None and generator.device.type != device.type:
        raise ValueError(
            f"{op}: expected a generator on {device}, got one on {generator.device}; make it by "
            f'torch.Generator("{device}")'
        )


def _check_pixels(op: str, x: object, device: torch.device) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: expected images to be a tensor, got {kind(x)}")
    if x.dtype not in NATIVE_DTYPES:
        cure = "convert them first"
        if _is_integer(x):
            cure = "bring them to [-1, 1] first, as in images.float() / 127.5 - 1"
        raise TypeError(
            f"{op}: expected images of float32, float64, bfloat16 or float16, got {x.dtype}; {cure}"
        )
    if x.dim() != 4 or 0 in x.shape[1:]:
        cure = "; give a batch of one, images[None]" if x.dim() == 3 else ""
        raise ValueError(
            f"{op}: expected images of shape (B, C, H, W) with pixels, got {tuple(x.shape)}{cure}"
        )
    if x.device != device:
        raise ValueError(
            f"{op}: expected images on {device}, where p or the transform is, got {x.device}; move "
            "one of them"
        )


def _check_images(op: str, images: Tensor, settings: Settings, device: torch.device) -> int:
    """How many channels of theirs are colour, if there are colour transforms."""
    _check_pixels(op, images, device)
    if not settings.multipliers.colour(3):
        return 0
    given, channels = images.shape[1], settings.colour_channels
    if channels is None:
        if given not in (1, 3):
            raise ValueError(
                f"{op}: expected images of 1 or 3 channels for colour transforms, got {given}; say "
                "which of them are colour, as in colour_channels=(0, 1, 2)"
            )
        return given
    if channels[-1] >= given:
        raise ValueError(
            f"{op}: expected images with the channels {channels} of colour_channels, got {given} "
            "channels"
        )
    return len(channels)
