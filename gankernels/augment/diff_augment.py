"""Differentiable augmentation, always on. Zhao et al. 2020 (arXiv 2006.10738)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from gankernels import ops
from gankernels._checks import kind
from gankernels._dtypes import accumulation_dtype
from gankernels.augment._checks import check_pixels, check_views
from gankernels.augment._strength import source
from gankernels.ops.diff_augment import UNIFORMS, DiffParameters

__all__ = ["DiffAugment"]

POLICIES = ("color", "translation", "cutout")
_CLIPS = "torch.stack(augment(list(clips.unbind(2))), 2)"


class DiffAugment(nn.Module):
    """Random color, shifts and cutouts of every image, without a probability.

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
            images, ``"translation,cutout"`` for larger sets.

    A call, ``augment(images, generator=None)``, takes images (B, C, H, W) of float32, float64,
    bfloat16 or float16, of any number of channels, and gives images of the same shape, dtype and
    memory format; color is computed in float32 at least, and rounded once. Offsets are those of
    images in [-1, 1]. A list of images, several sizes of the same samples or the frames of clips,
    gives a list: what is drawn for a sample holds for all of them, in fractions of each size.
    Random numbers come
    from ``generator``, on the images' device, or from torch's own: the same state gives the same
    result, and draws the same numbers for every policy. Differentiable to any order in the images.
    Deterministic: shifts are gathered and cut by :func:`gankernels.affine_resample` and
    :func:`gankernels.ops.affine_augment`; eight launches at most, for images of 1 or 3 channels.
    Nothing waits for the device.

    Raises:
        TypeError, ValueError: if ``policy``, the images or ``generator`` are none of the above.
    """

    def __init__(self, policy: str = "color,translation,cutout") -> None:
        super().__init__()
        op = type(self).__name__
        if not isinstance(policy, str):
            raise TypeError(
                f'{op}: expected policy to be a string, as in "color,translation", got '
                f"{kind(policy)}"
            )
        names = [name.strip() for name in policy.split(",")]
        for name in names:
            if name not in POLICIES:
                raise ValueError(f"{op}: expected policies of {', '.join(POLICIES)}, got {name!r}")
        if len(set(names)) != len(names):
            raise ValueError(f"{op}: expected each policy once, got {policy!r}")
        self.policy = tuple(names)
        #: What is done. Cutout after a shift is cutout before it, of what the shift will bring
        #: there; then it takes no pass of its own after color.
        self._steps = self.policy
        for i, pair in enumerate(pairwise(names)):
            if pair == ("translation", "cutout"):
                self._steps = (*names[:i], "cutout", "translation", *names[i + 2 :])

    def forward(
        self, images: Tensor | Sequence[Tensor], *, generator: torch.Generator | None = None
    ) -> Tensor | list[Tensor]:
        op = type(self).__name__
        views = [images] if isinstance(images, Tensor) else check_views(op, "images", images)
        for x in views:
            check_pixels(op, x, views[0].device, _CLIPS)
        options = source(op, generator, views[0].device)
        # Seven numbers a sample: three of color, two of each of the others.
        u = torch.rand(views[0].shape[0], UNIFORMS, dtype=torch.float64, **options)
        if isinstance(images, Tensor):
            return self._transformed(images, u)
        return [self._transformed(x, u) for x in views]

    def _transformed(self, images: Tensor, u: Tensor) -> Tensor:
        steps, channels = self._steps, images.shape[1]
        parameters = ops.diff_augment_parameters(
            u,
            images.shape[2],
            images.shape[3],
            maps="translation" in steps,
            box="cutout" in steps,
            color_channels=channels if "color" in steps and channels in (1, 3) else 0,
            mix="color" in steps,
            before=steps != self.policy,
            dtype=images.dtype,
        )
        done = ""
        for name, following in zip(steps, (*steps[1:], ""), strict=True):
            if name == "color":
                images = _color(images, parameters, following == "cutout")
            elif name == "translation":
                assert parameters.maps is not None
                options: dict[str, Any] = {"filter": "nearest", "padding_mode": "zeros"}
                images = ops.affine_resample(images, parameters.maps, **options)
            elif done != "color":
                images = ops.affine_augment(images, box=parameters.box)
            done = name
        return images

    def extra_repr(self) -> str:
        return repr(",".join(self.policy))


def _color(images: Tensor, parameters: DiffParameters, cut: bool) -> Tensor:
    """Brightness, saturation and contrast, composed, and cutout, where that comes next.

    With gray the mean of a pixel's channels and m that of the image, and with b, s and c drawn,
    saturation is S(x) = gray + s (x - gray), and it leaves m alone. Contrast then gives
    c S(x + b) + (1 - c) (m + b) = c S(y) + b of y = x + (1 - c) / c m.
    """
    assert parameters.mix is not None
    acc = accumulation_dtype(images.dtype)
    pixel, gray, mean, offset = parameters.mix[:, :, None, None].split(1, 1)
    y = torch.addcmul(images, images.mean((1, 2, 3), keepdim=True, dtype=acc), mean)  # of acc
    box = parameters.box if cut else None
    if parameters.color is not None:
        out = ops.affine_augment(y, color=parameters.color, box=box)
    else:
        out = torch.addcmul(torch.addcmul(offset, y.mean(1, keepdim=True), gray), y, pixel)
        out = out if box is None else ops.affine_augment(out, box=box)
    return out.to(images.dtype)
