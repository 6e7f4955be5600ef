"""The augmentation that a pipe drew for a batch, as an object, and the passes over the images."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from gankernels import ops
from gankernels._checks import check_bool, check_strided, describe, kind
from gankernels.augment._checks import check_images, check_pixels, check_views, is_integer
from gankernels.augment._clips import clips_of, frames_of, is_clip, rows_of_frames
from gankernels.augment._settings import (
    Settings,
    check_mode,
    color_channels_of,
    enabled,
    settings_state,
    strengths,
)
from gankernels.ops.ada_parameters import VALUES, Parameters
from gankernels.ops.affine_resample import Filter, Mode
from gankernels.reference.ada_parameters import DEFAULTS

__all__ = ["LABELS", "Transform"]

#: The columns of :meth:`Transform.labels`.
LABELS = (
    *("xflip", "yflip", "rotate90_cos", "rotate90_sin", "xint_x", "xint_y"),
    *("scale", "rotate_before_cos", "rotate_before_sin", "aniso"),
    *("rotate_after_cos", "rotate_after_sin", "xfrac_x", "xfrac_y"),
    *("brightness", "contrast", "lumaflip", "hue_cos", "hue_sin", "saturation"),
    *("band_0", "band_1", "band_2", "band_3", "noise", "cutout", "cutout_x", "cutout_y"),
)


@dataclass(frozen=True, eq=False, repr=False)
class Transform:
    """The constant augmentation that :meth:`ADAPipe.sample` drew for each image of a batch.

    ``t(images)`` applies it, noise included: twice the same call, twice the same result. ::

        t = pipe.sample(len(images))
        views, masks = t(images), t.geometry(masks)

    ``len(t)`` is the number of images; ``t[i]``, ``t[2:5]``, ``t[[0, 3]]`` and ``t[mask]`` are the
    transforms of some of them. It can be pickled and copied; :meth:`state_dict` has tensors and
    plain values only.

    Attributes:
        values: (B, 23), float64: see :meth:`named`. With yflip a column more.
        seed: (B,), int64, of the noise.
        settings: those of the pipe that its effect depends on.
    """

    values: Tensor
    seed: Tensor
    settings: Settings

    @overload
    def __call__(self, images: Tensor) -> Tensor: ...

    @overload
    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]: ...

    def __call__(self, images: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Apply it to images (B, C, H, W), of any size, clips (B, C, T, H, W), or each of a list.

        See :class:`ADAPipe`.

        Raises:
            TypeError, ValueError: if they are none that the pipe would take, or not as many.
        """
        op = type(self).__name__
        if not isinstance(images, Tensor):
            return [self(x) for x in check_views(op, "images", images)]
        channels = check_images(op, images, self.settings, self.values.device)
        self._check_batch(op, images)
        if is_clip(images):
            return clips_of(self._of_frames(images)(frames_of(images)), images)
        return augment(images, self._compose(images, channels), self.settings)

    @overload
    def geometry(self, images: Tensor, filter: Filter = "nearest") -> Tensor: ...

    @overload
    def geometry(self, images: Sequence[Tensor], filter: Filter = "nearest") -> list[Tensor]: ...

    def geometry(
        self, images: Tensor | Sequence[Tensor], filter: Filter = "nearest"
    ) -> Tensor | list[Tensor]:
        """Apply its flips, rotations, shifts and stretches alone: for masks, depth, other views.

        Args:
            images: (B, C, H, W), of any number of channels and any size: shifts are fractions of
                the size; or clips (B, C, T, H, W). With ``"nearest"`` also of integers, up to 2^53,
                or of bool. Or a list.
            filter: ``"nearest"``; ``"bilinear"``; or ``"sym6"``, that of images.

        Returns:
            As ``images``, differentiable to any order in them if they are real.

        Raises:
            TypeError, ValueError: if an argument has an unsupported type or value.
        """
        op = f"{type(self).__name__}.geometry"
        if not isinstance(filter, str) or filter not in ("nearest", "bilinear", "sym6"):
            raise ValueError(
                f'{op}: expected filter "nearest", "bilinear" or "sym6", got {filter!r}'
            )
        if not isinstance(images, Tensor):
            views = check_views(op, "images", images)
            return [self.geometry(x, filter) for x in views]
        check_strided(op, "images", images)
        integers = filter == "nearest" and is_integer(images)
        # Nearest neighbors are copied, so that they stay exact; int64 to 2^53.
        pixels = images.double() if integers else images
        check_pixels(op, pixels, self.values.device)
        self._check_batch(op, pixels)
        if is_clip(images):
            frames = self._of_frames(pixels).geometry(frames_of(pixels), filter)
            return clips_of(frames, pixels).to(images.dtype)
        composed = self._compose(pixels, 0)
        if composed.maps is None:
            return images.clone()
        mode: Mode = self.settings.mode if filter == "sym6" else "ideal"
        resampled = ops.affine_resample(
            pixels,
            composed.maps,
            filter=filter,
            mode=mode,
            margins=None if mode == "ideal" else composed.margins,
            lossless_blits=self.settings.lossless_blits,
        )
        return resampled.to(images.dtype)

    def named(self) -> dict[str, Tensor]:
        """The values of each transform for each image: columns of ``values``, (B,), by their names.

        Numbers of the identity where it does not happen. xflip 0 or 1; rotate90 in quarter turns;
        xint_x, xint_y, xfrac_x and xfrac_y in fractions of width and height; scale, aniso,
        contrast, saturation and the bands of the filter as factors; rotations and hue in radians;
        brightness an offset; lumaflip 0 or 1; noise its standard deviation; the size of the cutout
        and its center in fractions. yflip, 0 or 1, is there where the pipe has it.
        """
        columns = (*VALUES, "yflip") if self.settings.yflip > 0 else VALUES
        return dict(zip(columns, self.values.unbind(1), strict=True))

    def labels(self) -> Tensor:
        """What is done to each image, as numbers that a network can be conditioned on.

        As of the augmentation labels of EDM (Karras et al. 2022, arXiv 2206.00364, appendix F.2):
        a row of zeros is an image that is left as it is, and what a generator is given when no
        augmentation is wanted of it. ::

            t = pipe.sample(len(images))
            denoised = net(t(images) + noise, sigma, t.labels())

        Returns:
            (B, 28), float32, with the columns ``gankernels.augment.LABELS``, those of a transform
            that the pipe lacks 0. Strengths are in units of the paper's (the defaults of
            :class:`gankernels.ops.ada_parameters.AdaConstants`), whatever the pipe's, so that a
            label always means the same: xflip, yflip and lumaflip 0 or 1; of rotations and hue
            ``cos - 1`` and ``sin`` of the angle; xint and xfrac in eighths of width and height;
            scale, aniso, contrast, saturation and bands the logarithm to base 2 of the factor, in
            standard deviations, which are 0.2, 0.2, 0.5, 1 and 1; brightness and noise in 0.2 and
            0.1; cutout its size in halves of a side, and its center from -1, left or top, to 1.

        Labels say what was drawn: of images of one channel neither hue nor saturation shows. For a
        clip there is one row. They are constants, nothing in them is differentiable.
        Deterministic, and nothing waits for the device.
        """
        v = self.named()
        c, zero = DEFAULTS, torch.zeros_like(v["xflip"])
        quarters = v["rotate90"] * (math.pi / 2)
        cut = v["cutout"] > 0

        def turn(angle: Tensor) -> tuple[Tensor, Tensor]:
            return angle.cos() - 1, angle.sin()

        columns = (
            *(v["xflip"], v.get("yflip", zero)),
            *(quarters.cos().round() - 1, quarters.sin().round()),
            *(v["xint_x"] / c.xint_max, v["xint_y"] / c.xint_max),
            v["scale"].log2() / c.scale_std,
            *turn(v["rotate_before"]),
            v["aniso"].log2() / c.aniso_std,
            *turn(v["rotate_after"]),
            *(v["xfrac_x"] / c.xfrac_std, v["xfrac_y"] / c.xfrac_std),
            v["brightness"] / c.brightness_std,
            v["contrast"].log2() / c.contrast_std,
            v["lumaflip"],
            *turn(v["hue"]),
            v["saturation"].log2() / c.saturation_std,
            *(v[f"band_{i}"].log2() / c.imgfilter_std for i in range(4)),
            v["noise"] / c.noise_std,
            v["cutout"] / c.cutout_size,
            *(torch.where(cut, 2 * v[name] - 1, 0) for name in ("cutout_x", "cutout_y")),
        )
        return torch.stack(columns, 1).float()

    def to(self, device: torch.device | str | int) -> Transform:
        """The same on another device. It does the same there, but for roundings."""
        return Transform(self.values.to(device), self.seed.to(device), self.settings)

    def state_dict(self) -> dict[str, Any]:
        """Itself as tensors and plain values, which ``torch.load`` reads with ``weights_only``."""
        return {"values": self.values, "seed": self.seed, **settings_state(self.settings)}

    @staticmethod
    def from_state_dict(state: Mapping[str, Any]) -> Transform:
        """The transform that :meth:`state_dict` describes.

        Raises:
            TypeError, ValueError: if it does not describe one.
        """
        op = "Transform.from_state_dict"
        # yflip is among the multipliers.
        names = {"values", "seed", *Settings._fields} - {"yflip"}
        if not isinstance(state, Mapping) or set(state) != names:
            got = ", ".join(map(str, state)) if isinstance(state, Mapping) else kind(state)
            raise ValueError(f"{op}: expected what state_dict() gave, got {got}")
        if not isinstance(state["multipliers"], Mapping):
            raise TypeError(
                f"{op}: expected multipliers to be a dict, got {kind(state['multipliers'])}"
            )
        multipliers, _, yflip = strengths(op, None, dict(state["multipliers"]))
        values, seed, columns = state["values"], state["seed"], len(VALUES) + (yflip > 0)
        batch = values.shape[0] if isinstance(values, Tensor) and values.dim() > 0 else 0
        for name, x, dtype, shape in (
            ("values", values, torch.float64, (batch, columns)),
            ("seed", seed, torch.int64, (batch,)),
        ):
            if not isinstance(x, Tensor) or x.dtype != dtype or tuple(x.shape) != shape:
                got = describe(x) if isinstance(x, Tensor) else kind(x)
                raise ValueError(f"{op}: expected {name} of {dtype} and shape {shape}, got {got}")
        check_bool(op, "lossless_blits", state["lossless_blits"])
        channels = color_channels_of(op, state["color_channels"])
        check_mode(op, state["mode"])
        settings = Settings(multipliers, state["mode"], state["lossless_blits"], channels, yflip)
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
        return f"Transform({len(self)} on {self.values.device}: {enabled(s)}, mode={s.mode!r})"

    def _compose(self, images: Tensor, channels: int) -> Parameters:
        values, multipliers = self.values, self.settings.multipliers
        if self.settings.yflip > 0:
            values, multipliers = _of_the_kernels(values), multipliers._replace(xflip=1.0)
        return ops.ada_parameters(
            None,
            multipliers,
            values=values,
            seed=self.seed,
            height=images.shape[2],
            width=images.shape[3],
            color_channels=channels,
            dtype=images.dtype,
            margins=self.settings.mode != "ideal",
        )

    def _of_frames(self, clips: Tensor) -> Transform:
        values, seed = (rows_of_frames(x, clips) for x in (self.values, self.seed))
        return Transform(values, seed, self.settings)

    def _check_batch(self, op: str, images: Tensor) -> None:
        if images.shape[0] != len(self):
            raise ValueError(
                f"{op}: expected {len(self)} images, one for each that was drawn, got "
                f"{images.shape[0]}; index the transform, as in t[:{images.shape[0]}], or sample "
                "as many"
            )


def _of_the_kernels(values: Tensor) -> Tensor:
    """The same without yflip, which is xflip and half a turn, before all else."""
    xflip, rotate90, others, yflip = values.split((1, 1, len(VALUES) - 2, 1), 1)
    return torch.cat(((xflip - yflip).abs(), (rotate90 + 2 * yflip) % 4, others), 1)


def augment(images: Tensor, parameters: Parameters, settings: Settings) -> Tensor:
    """Geometry and color, then the filter; noise and cutout in the last pass that there is."""
    _, seed, maps, color, gains, sigma, box, margins = parameters
    affine: dict[str, Any] = {
        "mode": settings.mode,
        "margins": margins,
        "lossless_blits": settings.lossless_blits,
    }
    if color is not None:
        affine.update(color=color, color_channels=settings.color_channels)
    epilogue: dict[str, Any] = {"sigma": sigma, "seed": None if sigma is None else seed, "box": box}
    if gains is None:
        return ops.affine_augment(images, maps, **affine, **epilogue)
    if maps is not None or color is not None:
        images = ops.affine_augment(images, maps, **affine)
    return ops.image_filter(images, gains, **epilogue)
