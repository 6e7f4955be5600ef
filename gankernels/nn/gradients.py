"""Gradients of generated samples, brought to a size."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gankernels._checks import check_floats, check_number, kind
from gankernels._critics.gradients import check_inv_scale
from gankernels._dtypes import accumulation_dtype


class GradientNormalizer(nn.Module):
    """An identity whose backward pass divides the gradient by the running size of its norm.

    ``scale * g / sqrt(average of ||g||^2)``: with the samples of a generator between it and the
    critic, the adversarial loss pulls at them with a norm of ``scale``, whatever its own size is
    (Lin et al. 2025, Adversarial Flow Models). One of these before each loss, with its own scale,
    is the balancer of EnCodec, Défossez et al. 2022 (arXiv 2210.13438), section 3.4, by the root
    mean square in place of the mean::

        normalize = gankernels.nn.GradientNormalizer()
        g_loss = losses.hinge.generator(D(normalize(fake)))

    ``||g||`` is the norm of the whole gradient, over the batch, too, and the average an exponential
    moving one of its square over the backward passes, corrected for its start. Every backward pass
    in training mode moves it first, and is divided by what it is then; one of zeros, or one that is
    not finite, does not move it. In evaluation mode it stays.

    The buffers ``square`` and ``total`` are of the state_dict, and stay in float64 when the module
    is converted to another dtype. Every process has averages of its own gradients. Nothing waits
    for the GPU.

    Args:
        decay: of the average; in [0, 1). 0 makes every gradient's norm ``scale``.
        scale: the root mean square of the norms that go on; not negative.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """

    square: Tensor
    total: Tensor

    def __init__(self, decay: float = 0.99, scale: float = 1.0) -> None:
        check_number("GradientNormalizer", "decay", decay)
        check_number("GradientNormalizer", "scale", scale)
        if decay >= 1:
            raise ValueError(
                f"GradientNormalizer: expected decay below 1, got {decay}; the average would stay"
            )
        super().__init__()
        self.decay = decay
        self.scale = scale
        self.register_buffer("square", torch.zeros((), dtype=torch.float64))
        #: The weights of all squares so far: 1 - decay^n.
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, inv_scale: Tensor | None = None) -> Tensor:
        """The samples themselves.

        Args:
            x: of any shape, on the module's device.
            inv_scale: of a ``torch.amp.GradScaler``, see :mod:`gankernels.penalties`: gradients
                come scaled, go on scaled, and are unscaled where their norm is averaged.

        Returns:
            A view of ``x``, or ``x`` where it needs no gradient. Differentiable to any order, with
            the divisor held constant.

        Raises:
            TypeError, ValueError: if an argument has an unsupported type or value.
        """
        op = "GradientNormalizer"
        if not isinstance(x, Tensor):
            raise TypeError(f"{op}: expected x to be a tensor, got {kind(x)}")
        check_floats(op, "x", x)
        if x.device != self.square.device:
            raise ValueError(
                f"{op}: expected x on {self.square.device}, where the average is, got {x.device}; "
                f'move the module with .to("{x.device}")'
            )
        check_inv_scale(op, inv_scale, x.device)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return x
        y = x.view_as(x)
        y.register_hook(functools.partial(self._normalized, inv_scale))
        return y

    def _normalized(self, inv_scale: Tensor | None, grad: Tensor) -> Tensor:
        wide = grad.to(accumulation_dtype(grad.dtype))
        with torch.no_grad():
            # In double, whose range holds the squares of whatever float32 holds.
            norm = torch.linalg.vector_norm(wide, dtype=torch.float64)
            if inv_scale is not None:
                norm = norm * inv_scale.detach().reshape(()).to(norm.dtype)
            root = self._root(norm.square())
            factor = torch.where(root > 0, self.scale / root, 0.0)
        return (wide * factor).to(grad.dtype)

    def _root(self, square: Tensor) -> Tensor:
        """The square root of the average, once it has moved."""
        if self.training:
            usable = square.isfinite() & (square > 0)
            moved = torch.lerp(square, self.square, self.decay)
            self.square.copy_(torch.where(usable, moved, self.square))
            moved = torch.lerp(torch.ones_like(square), self.total, self.decay)
            self.total.copy_(torch.where(usable, moved, self.total))
        mean = torch.where(self.total > 0, self.square / self.total, square)
        return mean.sqrt()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GradientNormalizer:
        before = self.square, self.total
        super()._apply(fn, recurse)
        # In bfloat16 an average of decay 0.99 stands still.
        for name, average in zip(("square", "total"), before, strict=True):
            moved = self.get_buffer(name)
            if moved.dtype != average.dtype:
                setattr(self, name, average.to(moved.device))
        return self

    def extra_repr(self) -> str:
        return f"decay={self.decay}, scale={self.scale}"
