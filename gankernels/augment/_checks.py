"""Refusals of images that an augmentation cannot take."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gankernels._checks import check_strided, instead_of, kind
from gankernels._dtypes import NATIVE_DTYPES
from gankernels._torch import in_dispatch_mode, in_functorch
from gankernels._warnings import is_turn, warn_once
from gankernels.augment._settings import Settings

_INTEGERS = (
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
)
#: Beyond what standardized images, or those of a generator at its start, ever have.
_FAR = 16.0


def is_integer(x: Tensor) -> bool:
    return not x.is_floating_point() and not x.is_complex()


def check_views(op: str, name: str, views: object) -> list[Tensor]:
    """The tensors of a list, views of the same samples: several sizes, frames."""
    if not isinstance(views, (list, tuple)):
        cure = instead_of(views, name)
        raise TypeError(
            f"{op}: expected {name} to be a tensor or a list of them, got {kind(views)}"
            + (f"; {cure}" if cure else "")
        )
    if not views:
        raise ValueError(f"{op}: expected {name} of at least one size, got none")
    for x in views:
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{op}: expected {name} to be a tensor or a list of them, got {kind(views)} with "
                f"{kind(x)} in it"
            )
    shapes = [tuple(x.shape) for x in views]
    if any(shape[:1] != shapes[0][:1] for shape in shapes):
        raise ValueError(
            f"{op}: expected a list of views of the same samples, got {name} of shapes "
            f"{', '.join(map(str, shapes))}"
        )
    return list(views)


def check_pixels(op: str, x: object, device: torch.device | None = None) -> None:
    """Refuse all but images and clips."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: expected images to be a tensor, got {kind(x)}")
    check_strided(op, "images", x)
    if x.dtype not in NATIVE_DTYPES:
        raise TypeError(
            f"{op}: expected images of float32, float64, bfloat16 or float16, got {x.dtype}; "
            f"{_conversion(x)}"
        )
    if x.dim() not in (4, 5) or 0 in x.shape[1:]:
        cure = ""
        if x.dim() == 3:
            cure = (
                "; give an image as a batch of one, images[None]; audio (B, C, L) goes through APA "
                "and InstanceNoise, which take samples of any shape"
            )
        elif x.dim() > 5:
            cure = "; fold what is beyond into the batch, as in images.flatten(0, 1)"
        raise ValueError(
            f"{op}: expected images of shape (B, C, H, W) or clips (B, C, T, H, W), with pixels, "
            f"got {tuple(x.shape)}{cure}"
        )
    if _looks_channels_last(x):
        warn_once(
            f"layout {op}",
            f"{op}: expected images of shape (B, C, H, W), got {tuple(x.shape)}, which look like "
            "(B, H, W, C); take images.permute(0, 3, 1, 2)",
        )
    if device is not None and x.device != device:
        raise ValueError(
            f"{op}: expected images on {device}, where p or the transform is, got {x.device}; move "
            "one of them"
        )


def _looks_channels_last(x: Tensor) -> bool:
    """Images three pixels wide, of many channels, hardly exist."""
    return x.dim() == 4 and x.shape[3] in (1, 3) and min(x.shape[1:3]) >= 8


def _conversion(x: Tensor) -> str:
    """How to bring images to [-1, 1] that are not of the four dtypes."""
    if x.is_complex():
        return "convert them, to images.real or with the parts as channels"
    if x.is_floating_point():
        return "convert them by images.float()"
    if x.is_quantized:
        return "convert them by images.dequantize()"
    if x.dtype == torch.bool:
        return "bring them to [-1, 1] first, as in 2 * images.float() - 1"
    if x.dtype not in _INTEGERS:
        return "convert them first"
    name, limits = str(x.dtype).removeprefix("torch."), torch.iinfo(x.dtype)
    half = f"{(limits.max - limits.min) // 2}.5"  # exact, where a float is not
    if limits.min == 0:
        advice = f"bring them to [-1, 1] first, as in images.float() / {half} - 1"
        return advice if limits.max == 255 else f"{advice}, where they fill the range of {name}"
    return (
        f"bring them to [-1, 1] first, as in (images.float() + 0.5) / {half} where they fill the "
        f"range of {name}, or images.float() / 127.5 - 1 where they are from 0 to 255"
    )


def warn_of_range(module: nn.Module, images: Tensor) -> None:
    """Tell of images that are far from [-1, 1], such as those in 0..255. Only on the CPU: elsewhere
    to look would wait for the device.
    """
    op = type(module).__name__
    if (
        not images.is_cpu
        or images.numel() == 0
        or torch.compiler.is_compiling()
        or in_functorch()
        or in_dispatch_mode()
        or type(images) is not Tensor
        or not is_turn("range", module)
    ):
        return
    largest = float(images.detach().amax())
    if largest > _FAR:
        warn_once(
            f"range {op}",
            f"{op}: expected images in [-1, 1], for which the strengths of color and noise are "
            f"meant, got values up to {largest:.6g}; where they are from 0 to 255, take "
            "images / 127.5 - 1",
        )


def check_images(op: str, images: object, settings: Settings, device: torch.device) -> int:
    """Refuse wrong images; returns how many channels are color, 0 without color transforms."""
    check_pixels(op, images, device)
    assert isinstance(images, Tensor)
    if not settings.multipliers.color(3):
        return 0
    count, channels = images.shape[1], settings.color_channels
    if channels is None:
        if count not in (1, 3):
            cure = "say which of them are color, as in color_channels=(0, 1, 2)"
            if _looks_channels_last(images):
                cure = "where they are (B, H, W, C), take images.permute(0, 3, 1, 2)"
            raise ValueError(
                f"{op}: expected images of 1 or 3 channels for color transforms, got {count}; "
                f"{cure}"
            )
        return count
    if channels[-1] >= count:
        raise ValueError(
            f"{op}: expected images with the channels {channels} of color_channels, got {count} "
            "channels"
        )
    return len(channels)
