"""Regularizers of the critic's scores: LeCam, and the drift penalty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from gankernels._checks import (
    check_bool,
    check_count,
    check_floats,
    check_number,
    check_process_group,
    is_choice,
)
from gankernels._critics.scores import AVERAGED, check_alike, listed_scores
from gankernels._dtypes import accumulation_dtype
from gankernels.regularizers._averages import KeepsAverages, joint_means

Logits = Tensor | Sequence[Tensor]


class LeCam(KeepsAverages):
    """LeCam regularization: holds the critic's scores by anchors, averages of what they were.

    ``weight * (E relu(D(x) - ema_fake)^2 + E relu(ema_real - D(G))^2)``, R_LC of Tseng et al. 2021
    (arXiv 2104.03310), where ema_real and ema_fake are exponential moving averages of the means of
    D(x) and D(G). The relu leaves real scores below ema_fake, and fake ones above ema_real, to the
    loss: it is not in the paper's R_LC, which squares the differences themselves.

    In training mode :meth:`forward` first moves the anchors, ``ema = decay * ema + (1 - decay) *
    mean``, and then regularizes towards the moved ones; the first batch sets them to its means. No
    gradient flows through them. In evaluation mode they stay, and before the first batch the means
    of the scores given take their place. A batch with infinite or NaN scores does not move them.

    With torch.distributed initialized the means are those of all processes' scores, weighted by how
    many each has: one ``all_reduce`` of 4 numbers, in training mode only. The two E are of the
    process's own scores.

    The buffers ``ema_real``, ``ema_fake`` and ``initialized`` are of the state_dict, with ``start``
    also ``calls``; the averages stay in float32 when the module is converted to another dtype.
    Nothing waits for the GPU.

    Args:
        weight: not negative; 0.3 is the paper's for BigGAN, 3e-7 for StyleGAN2.
        decay: in [0, 1).
        of: ``"scores"``, or ``"means"``, as TiTok has it: ``relu(E D(x) - ema_fake)^2 +
            relu(ema_real - E D(G))^2``. That is at most the former: scores on both sides of an
            anchor make up for each other.
        from_zero: let the anchors start at 0, as SEED-Voken has them, and not at the first batch's
            means; with a decay of 0.999 they stay near 0 for hundreds of steps.
        start: how many first calls in training mode give 0; the anchors move in them, too.
        process_group: whose processes share the anchors; by default all of them.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """

    _averages = ("ema_real", "ema_fake")
    ema_real: Tensor
    ema_fake: Tensor
    initialized: Tensor
    calls: Tensor

    def __init__(
        self,
        weight: float = 0.3,
        decay: float = 0.99,
        *,
        of: Literal["scores", "means"] = "scores",
        from_zero: bool = False,
        start: int = 0,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        check_number("LeCam", "weight", weight)
        check_number("LeCam", "decay", decay)
        if decay >= 1:
            raise ValueError(f"LeCam: expected decay below 1, got {decay}; the anchors would stay")
        if not is_choice(of, ("scores", "means")):
            raise ValueError(f'LeCam: expected of to be "scores" or "means", got {of!r}')
        check_bool("LeCam", "from_zero", from_zero)
        check_count("LeCam", "start", start, 0)
        check_process_group("LeCam", process_group)
        super().__init__()
        self.weight = weight
        self.decay = decay
        self.of = of
        self.start = start
        self.process_group = process_group
        self.register_buffer("ema_real", torch.zeros((), dtype=torch.float32))
        self.register_buffer("ema_fake", torch.zeros((), dtype=torch.float32))
        self.register_buffer("initialized", torch.full((), from_zero))
        # Not among the keys of those that need none.
        calls = torch.zeros((), dtype=torch.int64)
        self.register_buffer("calls", calls, persistent=start > 0)

    def forward(self, real_logits: Logits, fake_logits: Logits) -> Tensor:
        """The critic's regularizer.

        Args:
            real_logits, fake_logits: ``D(real)`` and ``D(fake)``, tensors of any shape, or lists of
                them, which are taken for one long vector; on the module's device.

        Returns:
            A scalar, differentiable to any order in the scores.

        Raises:
            TypeError, ValueError: if an argument has an unsupported type or value; the anchors have
                not moved.
        """
        real = _flat("LeCam", "real_logits", real_logits)
        fake = _flat("LeCam", "fake_logits", fake_logits)
        home = self.ema_real.device
        for name, x in (("real_logits", real), ("fake_logits", fake)):
            if x.device != home:
                raise ValueError(
                    f"LeCam: expected {name} on {home}, where the anchors are, got {x.device}; "
                    f'move the module with .to("{x.device}")'
                )
        ema_real, ema_fake = self._anchors(real, fake)
        if self.of == "means":
            real, fake = real.mean(), fake.mean()
        value = self.weight * (
            F.relu(real - ema_fake).square().mean() + F.relu(ema_real - fake).square().mean()
        )
        if self.start == 0:
            return value
        value = torch.where(self.calls < self.start, 0, value)
        if self.training:
            self.calls.add_(1)
        return value

    @torch.no_grad()
    def _anchors(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return (
                torch.where(self.initialized, self.ema_real, real.mean().float()),
                torch.where(self.initialized, self.ema_fake, fake.mean().float()),
            )
        means = joint_means((real, fake), self.process_group)
        emas = torch.stack((self.ema_real, self.ema_fake))
        moved = torch.where(self.initialized, torch.lerp(means, emas, self.decay), means)
        usable = means.isfinite().all()
        ema_real, ema_fake = torch.where(usable, moved, emas).unbind()
        self.ema_real.copy_(ema_real)
        self.ema_fake.copy_(ema_fake)
        self.initialized.logical_or_(usable)
        return ema_real, ema_fake

    def extra_repr(self) -> str:
        others = "" if self.of == "scores" else f", of={self.of!r}"
        others += f", start={self.start}" if self.start else ""
        return f"weight={self.weight}, decay={self.decay}{others}"


def drift_penalty(real_logits: Logits, *, weight: float = 0.001) -> Tensor:
    """``weight * E D(x)^2``: keeps the scores of a Wasserstein critic from drifting away from 0.

    Karras et al. 2018 (arXiv 1710.10196), appendix A.1.

    Args:
        real_logits: ``D(real)``, a tensor of any shape, or a list of them, which is taken for one
            long vector.
        weight: not negative.

    Returns:
        A scalar, differentiable to any order.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """
    check_number("drift_penalty", "weight", weight)
    return weight * _flat("drift_penalty", "real_logits", real_logits).square().mean()


def _flat(op: str, name: str, logits: Logits) -> Tensor:
    """All scores as one vector, in float32 at least."""
    expected = f"{name} to be a tensor or a list of tensors"
    if isinstance(logits, (list, tuple)) and not logits:
        raise TypeError(f"{op}: expected {expected}, got an empty list")
    cure = "pass only the scores, one tensor a scale"
    scores = listed_scores(op, expected, logits, cure)
    for x in scores:
        check_floats(op, name, x)
        if x.device != scores[0].device:
            raise ValueError(
                f"{op}: expected {name} on one device, got {scores[0].device} and {x.device}"
            )
        if x.numel() == 0:
            raise ValueError(f"{op}: expected {name} with elements, got shape {tuple(x.shape)}")
    check_alike(op, name, scores, cure, AVERAGED)
    flat = [x.to(accumulation_dtype(x.dtype)).reshape(-1) for x in scores]
    return flat[0] if len(flat) == 1 else torch.cat(flat)
