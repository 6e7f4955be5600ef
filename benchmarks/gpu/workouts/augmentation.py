"""Augmentation on awkward images: its workouts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.gpu.workout import Results, Work, channels_last, drawer
from gankernels.augment import ADAPipe, Transform


@dataclass
class AugmentData:
    """Images, what is done to them, and the cotangents of two orders. Nothing is moved by it."""

    images: Tensor
    transform: Transform
    grads: Tensor
    h: Tensor

    def reset(self) -> None:
        pass

    def exact(self) -> AugmentData:
        """The same numbers in float64 on the CPU."""

        def wide(x: Tensor) -> Tensor:
            return x.detach().cpu().double().requires_grad_(x.requires_grad)

        return AugmentData(
            wide(self.images), self.transform.to("cpu"), wide(self.grads), wide(self.h)
        )


@dataclass(frozen=True)
class AugmentWorkout:
    """A batch of images, and how strongly they are augmented."""

    name: str
    shape: tuple[int, int, int, int]
    preset: str = "bgcfnc"
    dtype: torch.dtype = torch.float32
    p: float = 1.0
    last: bool = False
    mode: str = "ideal"
    scale_std: float = 0.2

    def data(self, device: str, seed: int = 0) -> AugmentData:
        """The inputs, the same on every device."""
        draw = drawer(seed, device, self.dtype)
        images, grads, h = (draw(*self.shape) for _ in range(3))
        if self.last:
            images = channels_last(images)
        pipe = ADAPipe(self.preset, p=self.p, mode=self.mode, scale_std=self.scale_std)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(seed)
        drawn = pipe.sample(self.shape[0], channels=self.shape[1], generator=generator)
        return AugmentData(images.requires_grad_(), drawn.to(device), grads.requires_grad_(), h)

    def works(self) -> tuple[Work, ...]:
        return (self.step,)

    def step(self, given: AugmentData) -> Results:
        """Forward, backward and, which is affine, double backward."""
        found = given.transform(given.images)
        (first,) = torch.autograd.grad(found, given.images, given.grads, create_graph=True)
        (second,) = torch.autograd.grad(first, given.grads, given.h)
        return {
            "images": [found.detach()],
            "gradients": [first.detach()],
            "second gradients": [second],
        }

    def floors(self, exact: AugmentData, wanted: Results) -> dict[str, list[float]]:
        return {}


_ALL = AugmentWorkout("augment, all", (7, 3, 37, 45))
CASES = (
    _ALL,
    replace(_ALL, name="augment, p = 0.2, channels_last", p=0.2, last=True),
    replace(_ALL, name="augment, gray", shape=(5, 1, 64, 19)),
    # The noise is made in float32.
    replace(_ALL, name="augment, float64", preset="bgcf", dtype=torch.float64),
    replace(_ALL, name="augment, bfloat16", preset="bgc", dtype=torch.bfloat16),
    replace(_ALL, name="augment, float16", dtype=torch.float16),
    replace(_ALL, name="augment, as published", mode="stylegan2-ada"),
    # Footprints that no shared memory holds, and images that lie on one pixel.
    replace(_ALL, name="augment, extreme scales", preset="geom", scale_std=4.0),
)
REPEATED = (
    _ALL,
    replace(_ALL, name="augment, p = 0.2, bfloat16", p=0.2, dtype=torch.bfloat16),
    replace(_ALL, name="augment, extreme scales", preset="geom", scale_std=4.0),
    AugmentWorkout("augment, large", (8, 3, 256, 256), p=0.6),
)
