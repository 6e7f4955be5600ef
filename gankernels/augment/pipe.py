"""Adaptive discriminator augmentation as a module.

Karras et al. 2020 (arXiv 2006.06676), section 3 and appendix B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from gankernels import ops
from gankernels._checks import (
    LARGEST,
    check_bool,
    check_count,
    check_generator,
    device_of,
    drawn_by,
    kind,
    raised_in,
)
from gankernels.augment._checks import check_images, check_views, warn_of_range
from gankernels.augment._clips import is_clip
from gankernels.augment._settings import (
    Settings,
    check_mode,
    color_channels_of,
    enabled,
    strengths,
)
from gankernels.augment._strength import Strength
from gankernels.augment.draws import check_percentile, draw_compat, preview_values
from gankernels.augment.presets import DEFAULT, TRANSFORMS
from gankernels.augment.transform import Transform, augment
from gankernels.ops.ada_parameters import GROUPS, NORMALS, UNIFORMS
from gankernels.ops.affine_resample import Mode

__all__ = ["ADAPipe"]


class ADAPipe(Strength):
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
            ``"bgcf"``, ``"bgcfn"`` and ``"bgcfnc"``; None: none but those of ``settings``. By
            default ``"bgc"``, but where there are ``settings``, which then are all that happens:
            ``ADAPipe(xflip=1)`` flips and does nothing else, as ``AugmentPipe(xflip=1)`` of the
            published code.
        p: the strength, in [0, 1]: a number, or one for each of the groups blit, geom, color,
            filter, noise and cutout, as a dict. Groups without a transform may be left out. The
            default is 1, *every* transform for every image, as in the published code: start with
            ``p=0.0`` and an :class:`ADAController`, or with a fixed 0.2.
        p_max: p acts as this where it is larger, in (0, 1].
        mode: ``"ideal"``: every image by itself, continued by reflection without end.
            ``"stylegan2-ada"``: padded by the margins of the batch, as in the published code.
        lossless_blits: flips, quarter turns and whole shifts copy pixels, where the anti-aliasing
            filter would lose 23 dB. Not in ``"stylegan2-ada"``.
        color_channels: the 3 channels, or the one, that color transforms act on, ascending. By
            default all, of images of 3 or 1 channels.
        seed_compat: draw as the published code does, so that a seed gives the same transforms: see
            :func:`gankernels.augment.draws.draw_compat`.
        **settings: multipliers by the names of the transforms, instead of the preset's
            (``xflip=1.0``, ``cutout=0.5``, 0 for never; ``imgfilter_bands``, four factors of that
            of imgfilter; ``yflip``, which is in no preset: upside down, of the group blit, and as
            with xflip every other of the images that it happens to), and how strong they are
            (``xint_max``, ``scale_std``, ``rotate_max``, ...): the fields of
            :class:`gankernels.ops.ada_parameters.AdaMultipliers` and
            :class:`gankernels.ops.ada_parameters.AdaConstants`. Standard deviations of factors
            (``scale_std``, ``aniso_std``, ``contrast_std``, ``saturation_std``, ``imgfilter_std``)
            are at most 8, other strengths at most 1e6.

    The strength is the buffer ``p``, float32, a scalar or (6,) for the groups, and the one thing in
    the state_dict. ``pipe.p = 0.3``, or a dict of groups, or a tensor, writes into it, as do
    operators on the device, and compiled graphs and CUDA graphs see that. It stays float32 in
    ``half()`` and the like.

    A call, ``pipe(images, generator=None)``, takes images (B, C, H, W) of float32, float64,
    bfloat16 or float16 and gives images of the same shape, dtype and memory format, in training and
    in evaluation alike. Values are nominally from -1, black, to 1, white: brightness, noise and
    lumaflip, which is a reflection at 0, mean that range. A warning tells of images in 0 to 255, on
    the CPU; those in 0 to 1 cannot be told apart from it. Nothing is clamped. A list of images,
    several sizes of the same samples, gives a list: each sample has one transform for all sizes,
    shifts in fractions of each.

    Clips (B, C, T, H, W) are given one transform each: every frame is what the transform makes of
    it as an image, cutout and noise included, whose pattern stands still. What is 5-D is taken for
    that; of volumes every slice is transformed alike, within its plane. Channels-last clips are not
    copied for it, contiguous ones of more than one channel are, before and after.

    Random numbers come from ``generator``, on the images' device, or from torch's own: the same
    state gives the same result, and every p and preset takes as many of them; yflip takes two more
    a sample, after these. Differentiable to any order in the images. Nothing waits for the device.
    :meth:`sample` gives the transform as an object, to apply it more than once.

    Raises:
        TypeError: if a setting is of another type or unknown, or images are not real tensors.
        ValueError: if a number is out of range, a preset unknown, or nothing is enabled; by a call,
            if images are no images or clips on the pipe's device, or color does not fit to their
            channels.
    """

    def __init__(
        self,
        preset: str | None = DEFAULT,
        *,
        p: float | Mapping[str, float] | Tensor = 1.0,
        p_max: float = 1.0,
        mode: Mode = "ideal",
        lossless_blits: bool = True,
        color_channels: Sequence[int] | None = None,
        seed_compat: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(p, p_max)
        op = type(self).__name__
        multipliers, self.constants, yflip = strengths(op, preset, settings)
        check_mode(op, mode)
        channels = color_channels_of(op, color_channels)
        check_bool(op, "lossless_blits", lossless_blits)
        check_bool(op, "seed_compat", seed_compat)
        self.settings = Settings(multipliers, mode, lossless_blits, channels, yflip)
        self.seed_compat = seed_compat
        if isinstance(p, Mapping):
            missing = [
                group
                for group, names in TRANSFORMS.items()
                if group not in p
                and (
                    any(getattr(multipliers, name) > 0 for name in names)
                    or (group == "blit" and yflip > 0)
                )
            ]
            if missing:
                raise ValueError(
                    f"{op}: expected p for every group with a transform, got none for "
                    f"{', '.join(missing)}; give 0 for never"
                )

    # --- calls -----------------------------------------------------------------------------------

    def forward(
        self, images: Tensor | Sequence[Tensor], *, generator: torch.Generator | None = None
    ) -> Tensor | list[Tensor]:
        op = type(self).__name__
        if not isinstance(images, Tensor):
            views = check_views(op, "images", images)
            for x in views:
                check_images(op, x, self.settings, self.p.device)
            self._warn_of_range(views[0])
            return self._sampled(op, views[0].shape[0], views[0].shape[1], generator)(views)
        channels = check_images(op, images, self.settings, self.p.device)
        self._warn_of_range(images)
        if is_clip(images) or self.settings.yflip > 0:
            return self._sampled(op, images.shape[0], images.shape[1], generator)(images)
        uniforms, normals = self._draw(op, images.shape[0], images.shape[1], generator)
        parameters = ops.ada_parameters(
            self._strength(),
            self.settings.multipliers,
            uniforms=uniforms,
            normals=normals,
            height=images.shape[2],
            width=images.shape[3],
            color_channels=channels,
            dtype=images.dtype,
            constants=self.constants,
            margins=self.settings.mode != "ideal",
        )
        return augment(images, parameters, self.settings)

    def _warn_of_range(self, images: Tensor) -> None:
        if self.settings.multipliers.color(3) or self.settings.multipliers.noise:
            warn_of_range(self, images)

    def sample(
        self,
        batch: int,
        *,
        channels: int = 3,
        percentile: float | None = None,
        device: torch.device | str | int | None = None,
        generator: torch.Generator | None = None,
    ) -> Transform:
        """Draw a transform for each of ``batch`` images, and apply none.

        Args:
            batch: how many; may be 0.
            channels: of the images. Only with ``seed_compat`` it decides about what is drawn.
            percentile: nothing is drawn but the noise: see :meth:`preview`.
            device: where it is to act. Drawn is on the pipe's device, which is the default.
            generator: as of a call, which draws the same transforms as this from the same state.

        Raises:
            TypeError, ValueError: if an argument has an unsupported type or value.
        """
        op = f"{type(self).__name__}.sample"
        _check_batch(op, batch)
        check_count(op, "channels", channels)
        if device is not None:
            device = device_of(op, device)
        if percentile is None:
            with raised_in(op, "torch.rand"):  # where there is too little memory
                drawn = self._sampled(op, batch, channels, generator)
        else:
            multipliers, home = self.settings.multipliers, self.p.device
            check_percentile(op, percentile)
            values = preview_values(percentile, multipliers, batch, self.constants, device=home)
            if self.settings.yflip > 0:
                flips = torch.full((batch, 1), float(percentile >= 0.5), device=home)
                values = torch.cat((values, flips.double()), 1)
            check_generator(op, generator, home)
            seed = torch.randint(2**53, (batch,), device=home, **drawn_by(generator))
            drawn = Transform(values, seed, self.settings)
        if device is None:
            return drawn
        with raised_in(op, "to"):  # where there is no such device
            return drawn.to(device)

    def preview(
        self,
        images: Tensor | Sequence[Tensor],
        percentile: float,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor | list[Tensor]:
        """All enabled transforms together, each at one percentile of its strengths, whatever p.

        Args:
            images: (B, C, H, W), clips (B, C, T, H, W), or a list of them.
            percentile: above 0 and below 1, the same for every transform and image: see
                :func:`gankernels.augment.draws.preview_values`.
            generator: of the noise, if it is enabled.

        Raises:
            TypeError, ValueError: if an argument has an unsupported type or value.
        """
        op = f"{type(self).__name__}.preview"
        views = [images] if isinstance(images, Tensor) else check_views(op, "images", images)
        for x in views:
            check_images(op, x, self.settings, self.p.device)
        check_percentile(op, percentile)
        transform = self.sample(views[0].shape[0], percentile=percentile, generator=generator)
        return transform(images)

    def _sampled(
        self, op: str, batch: int, channels: int, generator: torch.Generator | None
    ) -> Transform:
        uniforms, normals = self._draw(op, batch, channels, generator)
        parameters = ops.ada_parameters(
            self._strength(),
            self.settings.multipliers,
            uniforms=uniforms,
            normals=normals,
            constants=self.constants,
        )
        values = parameters.values
        if self.settings.yflip > 0:
            values = torch.cat((values, self._yflips(batch, generator)), 1)
        return Transform(values, cast(Tensor, parameters.seed), self.settings)

    def _yflips(self, batch: int, generator: torch.Generator | None) -> Tensor:
        """Whether each image is turned upside down, (B, 1): drawn as xflip is, with p of blit."""
        options: Any = {"dtype": torch.float64, "device": self.p.device, **drawn_by(generator)}
        value, gate = torch.rand(batch, 2, **options).split(1, 1)
        p = self._strength().expand(len(GROUPS))[0].double()
        chance = self.settings.yflip * p.nan_to_num(nan=0.0).clamp(0, 1)
        return ((gate < chance) & (value >= 0.5)).double()

    def _draw(
        self, op: str, batch: int, channels: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        device = self.p.device
        check_generator(op, generator, device)
        if self.seed_compat:
            return draw_compat(
                batch,
                self.settings.multipliers,
                generator,
                device,
                color_channels=1 if channels == 1 else 3,
            )
        options: Any = {"dtype": torch.float64, "device": device, **drawn_by(generator)}
        return torch.rand(batch, UNIFORMS, **options), torch.randn(batch, NORMALS, **options)

    def extra_repr(self) -> str:
        parts = [enabled(self.settings), f"mode={self.settings.mode!r}"]
        if self.p.dim() > 0:
            parts.append("p by groups")
        if self.p_max != 1:
            parts.append(f"p_max={self.p_max}")
        if self.settings.color_channels is not None:
            parts.append(f"color_channels={self.settings.color_channels}")
        return ", ".join(parts)


def _check_batch(op: str, batch: object) -> None:
    if isinstance(batch, bool) or not isinstance(batch, int):
        raise TypeError(f"{op}: expected batch to be an integer, got {kind(batch)}")
    if batch < 0:
        raise ValueError(f"{op}: expected batch to be not negative, got {batch}")
    if batch > LARGEST:
        raise ValueError(f"{op}: expected batch to be at most 2^63 - 1, got more")
