"""Adaptive pseudo augmentation. Jiang et al. 2021 (arXiv 2111.06849)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gankernels._checks import describe, kind
from gankernels.augment._strength import Strength, source

__all__ = ["APA"]


class APA(Strength):
    """Adaptive pseudo augmentation: shows the critic generated images as real ones.

    Jiang et al. 2021 (arXiv 2111.06849), section 3. Each real image gives way to a generated one
    with the probability p, which :class:`ADAController` sets. ::

        apa = APA().to(device)
        controller = ADAController(apa)
        ...
        logits = D(apa(real, G(z)))
        controller.update(logits)

    Args:
        p: in [0, p_max]: one number, as there are no groups.
        p_max: p acts as this where it is larger, in (0, 1].

    A call, ``apa(real, fake, generator=None)``, takes samples of any kind, (B, ...), two of one
    shape and dtype, on p's device, and gives the same. Random numbers come from ``generator`` or
    from torch's own, as many for every p. Gradients go to the real samples that remain, and none to
    the generated. p is a buffer, as of :class:`ADAPipe`; where the device wrote NaN or what is
    below 0, it acts as 0. Nothing waits for the device.

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """

    def __init__(self, p: float = 0.0, *, p_max: float = 1.0) -> None:
        if isinstance(p, Mapping):
            raise TypeError(
                f"{type(self).__name__}: expected p to be one number, got {kind(p)}; only the "
                "transforms of an ADAPipe are in groups"
            )
        super().__init__(p, p_max)

    def forward(
        self, real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        op = type(self).__name__
        for name, x in (("real", real), ("fake", fake)):
            if not isinstance(x, Tensor):
                raise TypeError(f"{op}: expected {name} to be a tensor, got {kind(x)}")
        if real.dim() == 0 or (real.shape, real.dtype) != (fake.shape, fake.dtype):
            raise ValueError(
                f"{op}: expected real and fake samples (B, ...) of one shape and dtype, got "
                f"{describe(real)} and {describe(fake)}"
            )
        for name, x in (("real", real), ("fake", fake)):
            if x.device != self.p.device:
                raise ValueError(
                    f"{op}: expected {name} on {self.p.device}, where p is, got {x.device}"
                )
        drawn = torch.rand(real.shape[0], **source(op, generator, real.device))
        replaced = (drawn < self._strength()).view(-1, *(1,) * (real.dim() - 1))
        return torch.where(replaced, fake.detach(), real)

    def extra_repr(self) -> str:
        return "" if self.p_max == 1 else f"p_max={self.p_max}"
