"""Differentiable augmentation. Zhao et al. 2020 (arXiv 2006.10738)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gankernels import ops
from gankernels._checks import kind
from gankernels._dtypes import accumulation_dtype
from gankernels.augment._checks import check_pixels, check_views, warn_of_range
from gankernels.augment._clips import clips_of, frames_of, is_clip, rows_of_frames
from gankernels.augment._strength import number_of, source
from gankernels.ops.affine_resample import augment_about_mean
from gankernels.ops.diff_augment import (
    CUTOUT,
    TRANSLATION,
    UNIFORMS,
    DiffParameters,
    check_share,
)

__all__ = ["DiffAugment"]

POLICIES = ("color", "translation", "cutout")


class DiffAugment(nn.Module):
    """Random color, shifts and cutouts of every image.

    Zhao et al. 2020 (arXiv 2006.10738). Real and generated images go through it on their way to the
    critic. ::

        augment = DiffAugment("color,translation,cutout")
        logits = D(augment(G(z)))

    Args:
        policy: what happens, in this order, separated by commas, each at most once: ``color``: an
            offset in (-0.5, 0.5), then saturation by a factor in (0, 2), then contrast, about the
            mean of the image, by a factor in (0.5, 1.5); ``translation``: by up to an eighth of
            each side, whole pixels, with zeros behind; ``cutout``: zeros in a box of half of each
            side, which may hang over the border. All three are the paper's for a few hundred
            images, ``"translation,cutout"`` for larger sets. ``""`` is the identity: the tensors
            that were given, and no random numbers.
        p: the probability, in [0, 1], that a call does anything: with ``1 - p`` the whole batch,
            all tensors of a list, comes out as it is, bit by bit. The paper's is 1; 0 is the
            identity, as ``""`` is. Each process of several decides for itself.
        cutout: the side of the box, as a fraction of each side of the image, in [0, 1].
        translation: the longest shift, likewise.

    A call, ``augment(images, generator=None)``, takes images (B, C, H, W) of float32, float64,
    bfloat16 or float16, of any number of channels, and gives images of the same shape, dtype and
    memory format; color is computed in float32 at least, and rounded once. Offsets are those of
    images in [-1, 1]; a warning tells of those in 0 to 255, on the CPU. A list of images, several
    sizes of the same samples, gives a list: what is drawn for a sample holds for all of them, in
    fractions of each size.

    Clips (B, C, T, H, W) are given one transform each: every frame is what it would be as an image
    by itself, with the clip's numbers; contrast is about the frame's own mean. Channels-last clips
    are not copied for it, contiguous ones of more than one channel are, before and after.

    Random numbers come from ``generator``, on the images' device, or from torch's own: the same
    state gives the same result, and draws the same numbers for every policy, and one more for a p
    below 1. Differentiable to any order in the images. Deterministic: what is done side by side
    goes through :func:`gankernels.ops.affine_augment` at once. For images of 1 or 3 channels that
    are eight launches at most, ten where color stands between a cutout and a shift; three more with
    a p, and some thirty small ones with a ``cutout`` or ``translation`` that is not the paper's.
    Nothing waits for the device: p is decided there, so that each replay of a CUDA graph decides
    anew.

    Raises:
        TypeError, ValueError: if an argument, the images or ``generator`` are none of the above.
    """

    def __init__(
        self,
        policy: str = "color,translation,cutout",
        *,
        p: float = 1.0,
        cutout: float = CUTOUT,
        translation: float = TRANSLATION,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        if not isinstance(policy, str):
            raise TypeError(
                f'{op}: expected policy to be a string, as in "color,translation", got '
                f"{kind(policy)}"
            )
        names = [name.strip() for name in policy.split(",")] if policy.strip() else []
        for name in names:
            if name not in POLICIES:
                raise ValueError(f"{op}: expected policies of {', '.join(POLICIES)}, got {name!r}")
        if len(set(names)) != len(names):
            raise ValueError(f"{op}: expected each policy once, got {policy!r}")
        self.p = number_of(op, "p", p)
        if self.p > 1:
            raise ValueError(f"{op}: expected p to be at most 1, got {p}")
        self.cutout, self.translation = (
            number_of(op, name, x) for name, x in (("cutout", cutout), ("translation", translation))
        )
        for name, share in (("cutout", self.cutout), ("translation", self.translation)):
            check_share(op, name, share)
        self.policy = tuple(names)
        self._passes = _passes(self.policy)

    def forward(
        self, images: Tensor | Sequence[Tensor], *, generator: torch.Generator | None = None
    ) -> Tensor | list[Tensor]:
        op = type(self).__name__
        views = [images] if isinstance(images, Tensor) else check_views(op, "images", images)
        for x in views:
            check_pixels(op, x, views[0].device)
        if "color" in self.policy:
            warn_of_range(self, views[0])
        options: dict[str, Any] = source(op, generator, views[0].device)
        options["dtype"] = torch.float64
        found = views
        if self.policy and self.p > 0:
            # Seven numbers a sample: three of color, two of each of the others.
            u = torch.rand(views[0].shape[0], UNIFORMS, **options)
            found = [self._transformed(x, u) for x in views]
        if self.policy and 0 < self.p < 1:
            happens = torch.rand((), **options) < self.p
            found = [torch.where(happens, y, x) for x, y in zip(views, found, strict=True)]
        return found[0] if isinstance(images, Tensor) else found

    def _transformed(self, images: Tensor, u: Tensor) -> Tensor:
        if is_clip(images):
            frames = self._transformed(frames_of(images), rows_of_frames(u, images))
            return clips_of(frames, images)
        policy, channels = self.policy, images.shape[1]
        parameters = ops.diff_augment_parameters(
            u,
            images.shape[2],
            images.shape[3],
            maps="translation" in policy,
            box="cutout" in policy,
            color_channels=channels if "color" in policy and channels in (1, 3) else 0,
            mix="color" in policy,
            after=("cutout", "translation") in self._passes,
            dtype=images.dtype,
            translation=self.translation,
            cutout=self.cutout,
        )
        for steps in self._passes:
            box = parameters.box if "cutout" in steps else None
            if "color" in steps:
                images = _color(images, parameters, box)
            else:
                maps = parameters.maps if "translation" in steps else None
                options: dict[str, Any] = {"filter": "nearest", "padding_mode": "zeros"}
                images = ops.affine_augment(images, maps, box=box, **options)
        return images

    def extra_repr(self) -> str:
        settings = (("p", 1.0), ("cutout", CUTOUT), ("translation", TRANSLATION))
        others = [f"{k}={getattr(self, k):g}" for k, usual in settings if getattr(self, k) != usual]
        return ", ".join([repr(",".join(self.policy)), *others])


def _passes(policy: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """What one pass over the images does: a shift and a cutout side by side; color, then cutout."""
    passes: list[tuple[str, ...]] = []
    steps = list(policy)
    while steps:
        pair = tuple(steps[:2])
        together = set(pair) == {"translation", "cutout"}
        # After color cutout goes with the shift, if that comes next.
        alone = steps[2:] != ["translation"]
        size = 2 if together or (pair == ("color", "cutout") and alone) else 1
        passes.append(tuple(steps[:size]))
        del steps[:size]
    return tuple(passes)


def _color(images: Tensor, parameters: DiffParameters, box: Tensor | None) -> Tensor:
    """Brightness, saturation and contrast, composed, and cutout, if there is a box.

    With gray the mean of a pixel's channels and m that of the image, and with b, s and c drawn,
    saturation is S(x) = gray + s (x - gray), and it leaves m alone. Contrast then gives
    c S(x + b) + (1 - c) (m + b) = c S(y) + b of y = x + (1 - c) / c m.
    """
    assert parameters.mix is not None
    pixel, gray, mean, offset = parameters.mix[:, :, None, None].split(1, 1)
    if parameters.color is not None:
        assert parameters.shade is not None
        return augment_about_mean(
            images, parameters.mix[:, 2], parameters.shade, parameters.color, box
        )
    acc = accumulation_dtype(images.dtype)
    y = torch.addcmul(images, images.mean((1, 2, 3), keepdim=True, dtype=acc), mean)  # of acc
    out = torch.addcmul(torch.addcmul(offset, y.mean(1, keepdim=True), gray), y, pixel)
    out = out if box is None else ops.affine_augment(out, box=box, filter="nearest")
    return out.to(images.dtype)
