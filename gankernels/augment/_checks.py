"""Refusals of images and generators that an augmentation cannot take."""

from __future__ import annotations

import torch
from torch import Tensor

from gankernels._checks import kind
from gankernels._library import NATIVE_DTYPES
from gankernels.augment._settings import Settings


def is_integer(x: Tensor) -> bool:
    return not x.is_floating_point() and not x.is_complex()


def check_generator(op: str, generator: torch.Generator | None, device: torch.device) -> None:
    if generator is not None and generator.device.type != device.type:
        raise ValueError(
            f"{op}: expected a generator on {device}, got one on {generator.device}; make it by "
            f'torch.Generator("{device}")'
        )


def check_pixels(op: str, x: object, device: torch.device | None = None) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: expected images to be a tensor, got {kind(x)}")
    if x.dtype not in NATIVE_DTYPES:
        cure = "convert them first"
        if is_integer(x):
            cure = "bring them to [-1, 1] first, as in images.float() / 127.5 - 1"
        raise TypeError(
            f"{op}: expected images of float32, float64, bfloat16 or float16, got {x.dtype}; {cure}"
        )
    if x.dim() != 4 or 0 in x.shape[1:]:
        cure = "; give a batch of one, images[None]" if x.dim() == 3 else ""
        raise ValueError(
            f"{op}: expected images of shape (B, C, H, W) with pixels, got {tuple(x.shape)}{cure}"
        )
    if device is not None and x.device != device:
        raise ValueError(
            f"{op}: expected images on {device}, where p or the transform is, got {x.device}; move "
            "one of them"
        )


def check_images(op: str, images: Tensor, settings: Settings, device: torch.device) -> int:
    """How many channels of theirs are colour, if there are colour transforms."""
    check_pixels(op, images, device)
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
