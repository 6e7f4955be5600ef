"""Regularizers of the critic's input: noise and blur that fade, and the rotated images of SSGAN."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gankernels._checks import (
    check_count,
    check_generator,
    check_number,
    check_real,
    check_strided,
    drawn_by,
    kind,
)
from gankernels._dtypes import accumulation_dtype, without_autocast
from gankernels.regularizers._arguments import check_samples

Schedule = Literal["constant", "linear", "cosine"] | Callable[[Tensor], Tensor | float]


class InstanceNoise(nn.Module):
    """Adds Gaussian noise to real and fake samples alike, which fades as training goes on.

    Sønderby et al. 2017 (arXiv 1610.04490), and Arjovsky & Bottou 2017 (arXiv 1701.04862). Put it
    before the critic, for every batch that the critic sees, and call :meth:`step` once an
    iteration. In evaluation mode it returns its input.

    The buffer ``count``, how often :meth:`step` was called, is of the state_dict. Nothing waits for
    the GPU.

    Args:
        sigma: the noise's standard deviation at first; not negative.
        schedule: what sigma is multiplied with: ``"constant"``, 1; ``"linear"``, from 1 to 0 over
            ``steps``, then 0; ``"cosine"``, the same along half a cosine; or a callable, given
            ``count``, an integer tensor of no dimensions, that returns a factor, as such a tensor
            or a number.
        steps: for ``"linear"`` and ``"cosine"``, which need it, how many until there is no noise.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """

    count: Tensor

    def __init__(
        self, sigma: float = 0.1, schedule: Schedule = "linear", steps: int | None = None
    ) -> None:
        op = "InstanceNoise"
        check_number(op, "sigma", sigma)
        named = isinstance(schedule, str) and schedule in ("constant", "linear", "cosine")
        if not callable(schedule) and not named:
            raise ValueError(
                f'{op}: expected schedule to be "constant", "linear", "cosine" or a callable, got '
                f"{schedule!r}"
            )
        if named and schedule != "constant":
            if steps is None:
                raise ValueError(
                    f'{op}: expected steps with schedule="{schedule}", got None; pass after how '
                    "many the noise is gone"
                )
            check_count(op, "steps", steps)
        elif steps is not None:
            raise ValueError(
                f"{op}: expected no steps but with a linear or cosine schedule, got {steps}"
            )
        super().__init__()
        self.sigma = sigma
        self.schedule = schedule
        self.steps = steps
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(
        self, x: Tensor | Sequence[Tensor], generator: torch.Generator | None = None
    ) -> Tensor | list[Tensor]:
        """``x`` plus noise.

        Args:
            x: a floating-point tensor of any shape, or a list of them, whose noise is independent.
            generator: where the noise is drawn from; on the device of ``x``.

        Returns:
            A tensor of the same shape and dtype, or a list of them; noise is drawn and added in
            float32 at least. The gradient passes through as it is. Deterministic for given random
            numbers.

        Raises:
            TypeError, ValueError: if an argument has an unsupported type or value.
        """
        op = "InstanceNoise"
        tensors = _listed(op, x)
        for y in tensors:
            check_strided(op, "x", y)
            check_real(op, "x", y)
            check_generator(op, generator, y.device)
        outputs = [self._noisy(y, generator) if self.training else y for y in tensors]
        return outputs[0] if isinstance(x, Tensor) else outputs

    def _noisy(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        widened = x.to(accumulation_dtype(x.dtype))
        noise = torch.randn(
            widened.shape, device=x.device, dtype=widened.dtype, **drawn_by(generator)
        )
        return (widened + self._factor() * (self.sigma * noise)).to(x.dtype)

    def step(self) -> None:
        """Go on in the schedule: once an iteration."""
        self.count += 1

    def _factor(self) -> Tensor | float:
        if callable(self.schedule):
            return self.schedule(self.count)
        if self.steps is None:
            return 1.0
        done = (self.count / self.steps).clamp(max=1)
        return 1 - done if self.schedule == "linear" else (1 + torch.cos(math.pi * done)) / 2

    def extra_repr(self) -> str:
        steps = "" if self.steps is None else f", steps={self.steps}"
        return f"sigma={self.sigma}, schedule={self.schedule!r}{steps}"


class FadingBlur(nn.Module):
    """Blurs real and fake images alike, less and less as training goes on.

    StyleGAN3 (Karras et al. 2021, arXiv 2106.12423), config R of section 3.2: it keeps the critic
    from looking at high frequencies too early. The filter is that of the published code: Gaussian,
    with the taps ``2^-(i / sigma)^2`` for i from -r to r with ``r = floor(3 sigma)``, divided by
    their sum, along either axis, with zeros outside of the image. From ``sigma < 1 / 3`` on it is
    the identity.

    Put it before the critic, and before augmentation, for every batch that the critic sees, and
    call :meth:`step` once an iteration. In evaluation mode it returns its input. ::

        blur = FadingBlur()
        scores = D(pipe(blur(real)))
        blur.step(len(real))  # of all processes together

    How many images were ``seen`` is in the state_dict, as a Python int. Nothing waits for the
    GPU. A compiled function would be compiled anew for every sigma: call it outside.

    Args:
        sigma: the width at first, in pixels, not negative; the published one is 10.
        images: after how many images there is no blur; sigma goes to 0 linearly. The published
            200,000 are for batches of 32, and larger by as much as the batch is.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """

    def __init__(self, sigma: float = 10.0, images: int = 200_000) -> None:
        op = "FadingBlur"
        check_number(op, "sigma", sigma)
        check_count(op, "images", images)
        super().__init__()
        self.sigma = sigma
        self.images = images
        self.seen = 0

    @property
    def sigma_now(self) -> float:
        """The width after as many images as were seen."""
        return self.sigma * max(0.0, 1 - self.seen / self.images)

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """``x`` blurred.

        Args:
            x: images (B, C, H, W), or clips (B, C, T, H, W) whose frames are blurred each by
                itself; or a list of them, of which all are blurred by as many pixels.

        Returns:
            A tensor of the same shape and dtype, or a list of them; ``x`` itself where there is no
            blur. Computed in float32 at least, under autocast too. Differentiable to any order, and
            deterministic.

        Raises:
            TypeError, ValueError: if an argument has an unsupported type or value.
        """
        op = "FadingBlur"
        tensors = _listed(op, x)
        for y in tensors:
            check_samples(op, "x", y, "(B, C, H, W)", 4)
        sigma = self.sigma_now if self.training else 0.0
        outputs = [_blurred(y, sigma) for y in tensors]
        return outputs[0] if isinstance(x, Tensor) else outputs

    def step(self, images: int) -> None:
        """Go on by as many images as the critic has seen, of real ones: once an iteration."""
        check_count("FadingBlur", "images", images)
        self.seen += images

    def get_extra_state(self) -> int:
        return self.seen

    def set_extra_state(self, state: int) -> None:
        check_count("FadingBlur", "the images seen", state, 0)
        self.seen = state

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}, images={self.images}"


def _blurred(x: Tensor, sigma: float) -> Tensor:
    radius = math.floor(3 * sigma)
    if radius == 0:
        return x
    # As matrices: convolutions of single channels are slower, and may be in TF32.
    with without_autocast(x):
        widened = x.to(accumulation_dtype(x.dtype))
        rows, columns = (_blur_matrix(size, sigma, radius, widened) for size in x.shape[-2:])
        return (rows @ widened @ columns).to(x.dtype)


def _blur_matrix(size: int, sigma: float, radius: int, like: Tensor) -> Tensor:
    """(size, size), symmetric: what each pixel takes of each other along an axis."""
    total = sum(2 ** -((i / sigma) ** 2) for i in range(-radius, radius + 1))
    at = torch.arange(size, device=like.device)
    distance = (at[:, None] - at).abs()
    taps = torch.exp2(-(distance.to(like.dtype) / sigma).square()) / total
    return taps * (distance <= radius)


def _listed(op: str, x: Any) -> list[Tensor]:
    tensors = [x] if isinstance(x, Tensor) else x
    good = isinstance(tensors, (list, tuple)) and len(tensors) > 0
    if not good or not all(isinstance(y, Tensor) for y in tensors):
        raise TypeError(f"{op}: expected x to be a tensor or a list of them, got {kind(x)}")
    return list(tensors)


def rotate_batch(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate every image by 0, 90, 180 and 270 degrees; returns the labels of the rotations too.

    The self-supervised task of SSGAN, Chen et al. 2019 (arXiv 1811.11212).

    Args:
        x: (B, C, H, H). Only square images can be turned.

    Returns:
        The images, (4B, C, H, H) of the dtype of ``x``, first all unturned, then all turned once,
        by exact 90 degrees counterclockwise, and so on; and labels 0 to 3, (4B,) int64, on the
        device of ``x``. Differentiable to any order in ``x``, for the generator.

    Raises:
        TypeError, ValueError: if ``x`` is none of the above.
    """
    check_samples("rotate_batch", "x", x, "(B, C, H, H)", 4)
    if x.dim() != 4 or x.shape[2] != x.shape[3]:
        raise ValueError(
            f"rotate_batch: expected square images, x of shape (B, C, H, H), got shape "
            f"{tuple(x.shape)}; crop or pad them first"
        )
    rotated = torch.cat([torch.rot90(x, turns, (2, 3)) for turns in range(4)])
    labels = torch.arange(4, device=x.device).repeat_interleave(len(x), output_size=4 * len(x))
    return rotated, labels


def rotation_loss(rotation_logits: Tensor, labels: Tensor, *, weight: float = 1.0) -> Tensor:
    """``weight`` times the cross entropy of the four rotations.

    Chen et al. 2019 (arXiv 1811.11212): added to the critic's loss with real images and the
    paper's beta = 1, and to the generator's with generated ones and alpha = 0.2.

    Args:
        rotation_logits: (N, 4), of a head of the critic, for what :func:`rotate_batch` returned.
        labels: (N,) int64, from :func:`rotate_batch`.
        weight: not negative.

    Returns:
        A scalar, differentiable to any order.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """
    op = "rotation_loss"
    check_number(op, "weight", weight)
    check_samples(op, "rotation_logits", rotation_logits, "(N, 4)", 2)
    if rotation_logits.dim() != 2 or rotation_logits.shape[1] != 4:
        raise ValueError(
            f"{op}: expected rotation_logits of shape (N, 4), a logit for each turn, got "
            f"{tuple(rotation_logits.shape)}"
        )
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        got = labels.dtype if isinstance(labels, Tensor) else kind(labels)
        raise TypeError(f"{op}: expected labels to be a tensor of torch.int64, got {got}")
    if labels.shape != rotation_logits.shape[:1]:
        raise ValueError(
            f"{op}: expected a label for each of the {len(rotation_logits)} logits, got shape "
            f"{tuple(labels.shape)}; pass the labels of rotate_batch"
        )
    dtype = accumulation_dtype(rotation_logits.dtype)
    return weight * F.cross_entropy(rotation_logits.to(dtype), labels)
