"""Differentiable augmentation, always on. Zhao et al. 2020 (arXiv 2006.10738)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gankernels import ops
from gankernels._checks import kind
from gankernels._dtypes import accumulation_dtype
from gankernels.augment._checks import check_pixels, check_views
from gankernels.augment._strength import source

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
    :func:`gankernels.ops.affine_augment`. Nothing waits for the device.

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

    def forward(
        self, images: Tensor | Sequence[Tensor], *, generator: torch.Generator | None = None
    ) -> Tensor | list[Tensor]:
        op = type(self).__name__
        views = [images] if isinstance(images, Tensor) else check_views(op, "images", images)
        for x in views:
            check_pixels(op, x, views[0].device, _CLIPS)
        options = source(op, generator, views[0].device)
        # Seven numbers a sample: three of color, two of each of the others.
        u = torch.rand(views[0].shape[0], 7, dtype=torch.float64, **options)
        if isinstance(images, Tensor):
            return self._transformed(images, u)
        return [self._transformed(x, u) for x in views]

    def _transformed(self, images: Tensor, u: Tensor) -> Tensor:
        for name in self.policy:
            if name == "color":
                images = _color(images, u[:, :3])
            elif name == "translation":
                images = _translated(images, u[:, 3:5])
            else:
                images = _cut(images, u[:, 5:])
        return images

    def extra_repr(self) -> str:
        return repr(",".join(self.policy))


def _color(images: Tensor, u: Tensor) -> Tensor:
    """Brightness, saturation and contrast, composed: two means and one pass.

    With gray the mean of a pixel's channels and m that of the image, and with b, s and c drawn,
    saturation is S(x) = gray + s (x - gray), and it leaves m alone. Contrast then gives
    c S(x + b) + (1 - c) (m + b) = c s x + c (1 - s) gray + (1 - c) m + b.
    """
    x = images.to(accumulation_dtype(images.dtype))
    u = u.to(x.dtype)[:, :, None, None]
    b, s, c = u[:, :1] - 0.5, 2 * u[:, 1:2], u[:, 2:] + 0.5
    gray = x.mean(1, keepdim=True)
    mean = gray.mean((2, 3), keepdim=True)
    out = torch.addcmul(c * (1 - s) * gray + ((1 - c) * mean + b), x, c * s)
    return out.to(images.dtype)


def _translated(x: Tensor, u: Tensor) -> Tensor:
    maps = u.new_zeros(x.shape[0], 2, 3)
    maps[:, 0, 0] = maps[:, 1, 1] = 1
    for axis, side in enumerate((x.shape[3], x.shape[2])):
        reach = int(side / 8 + 0.5)
        maps[:, axis, 2] = (u[:, axis] * (2 * reach + 1)).floor() - reach
    return ops.affine_resample(x, maps, filter="nearest", padding_mode="zeros")


def _cut(x: Tensor, u: Tensor) -> Tensor:
    """A box of n = floor(side / 2 + 1 / 2) pixels along an axis, from offset - floor(n / 2) on.

    Cutout takes the pixels whose center is within side / 4 of the box's: these n, as the center of
    every other is a quarter of a pixel farther, at least.
    """
    box = u.new_full((x.shape[0], 3), 0.5)
    for axis, side in enumerate((x.shape[3], x.shape[2])):
        odd = int(side / 2 + 0.5) % 2
        offset = (u[:, axis] * (side + 1 - odd)).floor()
        box[:, axis] = (offset + odd / 2) / side
    return ops.affine_augment(x, box=box)
