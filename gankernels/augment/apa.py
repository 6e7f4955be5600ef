"""Adaptive pseudo augmentation. Jiang et al. 2021 (arXiv 2111.06849)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gankernels._checks import check_strided, describe, kind
from gankernels.augment._checks import check_views
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
    shape and dtype, on p's device, and gives the same. Two lists, several sizes of the same
    samples, give a list, in which a sample is replaced in all sizes or in none. Random numbers come
    from ``generator`` or from torch's own, as many for every p. Gradients go to the real samples
    that remain, and none to the generated. p is a buffer, as of :class:`ADAPipe`; where the device
    wrote NaN or what is below 0, it acts as 0. Nothing waits for the device.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """

    def __init__(self, p: float | Tensor = 0.0, *, p_max: float = 1.0) -> None:
        if isinstance(p, Mapping):
            raise TypeError(
                f"{type(self).__name__}: expected p to be one number, got {kind(p)}; only the "
                "transforms of an ADAPipe are in groups"
            )
        super().__init__(p, p_max)

    def forward(
        self,
        real: Tensor | Sequence[Tensor],
        fake: Tensor | Sequence[Tensor],
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor | list[Tensor]:
        op = type(self).__name__
        one = isinstance(real, Tensor)
        if one and not isinstance(fake, Tensor):
            raise TypeError(f"{op}: expected fake to be a tensor, got {kind(fake)}")
        if isinstance(fake, Tensor) and not one:
            raise TypeError(f"{op}: expected real to be a tensor, got {kind(real)}")
        reals = [real] if isinstance(real, Tensor) else check_views(op, "real", real)
        fakes = [fake] if isinstance(fake, Tensor) else check_views(op, "fake", fake)
        if len(reals) != len(fakes):
            raise ValueError(
                f"{op}: expected lists of real and fake samples of one length, got {len(reals)} "
                f"and {len(fakes)}"
            )
        for r, f in zip(reals, fakes, strict=True):
            self._check(op, r, f)
        drawn = torch.rand(reals[0].shape[0], **source(op, generator, reals[0].device))
        replaced = drawn < self._strength()
        mixed = [
            torch.where(replaced.view(-1, *(1,) * (r.dim() - 1)), f.detach(), r)
            for r, f in zip(reals, fakes, strict=True)
        ]
        return mixed[0] if one else mixed

    def _check(self, op: str, real: Tensor, fake: Tensor) -> None:
        for name, x in (("real", real), ("fake", fake)):
            check_strided(op, name, x)
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

    def extra_repr(self) -> str:
        return "" if self.p_max == 1 else f"p_max={self.p_max}"
