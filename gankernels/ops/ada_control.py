"""The controller of the strength p of adaptive discriminator augmentation, in one launch.

Karras et al. 2020 (arXiv 2006.06676), section 3. The kernel behind the schema is bound in
``csrc/bindings/ada_control.cpp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from gankernels import reference
from gankernels._library import takes_reference
from gankernels.ops import _operator
from gankernels.ops._checks.ada_control import check
from gankernels.ops._operator import EXAMPLES, Draw, Operator, declare, one_device, run
from gankernels.reference.ada_control import METRICS

Metric = Literal["rt", "rv", "accuracy"]

#: The most tensors of scores in a call of the kernel (``kScores`` of csrc/ada_control.h).
_MOST = 48


def ada_control_(
    state: Tensor,
    p: Tensor | None,
    real: Sequence[Tensor] = (),
    fake: Sequence[Tensor] = (),
    validation: Sequence[Tensor] = (),
    *,
    sums: Tensor | None = None,
    images: int = 0,
    metric: Metric = "rt",
    target: float = 0.6,
    interval: int = 4,
    kimg: float = 500.0,
    p_max: float = 1.0,
) -> None:
    """Add up scores, and move p in every ``interval``-th call; the call is counted on the device.

    What :class:`gankernels.augment.ADAController` does in an update, in place: see there for the
    metrics and the rule. Graphs that are captured from it count their replays.

    Args:
        state: (9,), float64, contiguous, written: for real, fake and validation scores their total
            (of signs, or of values for ``"rv"``) and their count since the last step of p, then the
            images, the number of all calls, and r of the last step.
        p: the strength, a scalar of float32, written; None: add up only.
        real, fake, validation: tensors of scores of float32, float64, bfloat16 or float16, on the
            state's device; those that the metric takes.
        sums: (7,), float64: step by these instead of those of the state, as of several processes,
            and add nothing up: a call to follow one without p.
        images: how many are scored.
        metric: ``"rt"``, ``"rv"`` or ``"accuracy"``.
        target: of the metric.
        interval: calls from one step to the next, at least 1.
        kimg: thousands of images until p goes from 0 to 1.
        p_max: p does not go beyond.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value; nothing has changed.

    One launch, in float64. Not differentiable. Deterministic; nothing waits for the device.
    """
    op = "ada_control_"
    settings = metric, target, interval, kimg, p_max
    check(op, state, p, (real, fake, validation), sums, images, *settings)
    tensors = [state, *real, *fake, *validation]
    unusual = p is not None and p.dtype != torch.float32
    if takes_reference(op, tensors) or unusual:
        reference.ada_control_(
            state,
            p,
            real,
            fake,
            validation,
            sums=sums,
            images=images,
            metric=metric,
            target=target,
            interval=interval,
            kimg=kimg,
            p_max=p_max,
        )
        return
    groups = [_dense(x) for x in (real, fake, validation)]
    while sum(map(len, groups)) > _MOST:
        longest = max(range(len(groups)), key=lambda i: len(groups[i]))
        groups[longest] = [torch.cat([x.flatten() for x in groups[longest]])]
    run(
        _operator.kernels.ada_control_,
        state,
        p,
        *groups,
        None if sums is None else sums.contiguous(),
        images,
        METRICS.index(metric),
        target,
        interval,
        1000 * kimg,
        p_max,
    )
    if not torch.compiler.is_compiling():
        increment_version((state,) if p is None else (state, p))


def _dense(scores: Sequence[Tensor]) -> list[Tensor]:
    return [x.detach().contiguous() for x in scores]


# --- fake and registration -----------------------------------------------------------------------


def _fake(state, p, real, fake, validation, sums, *_):
    one_device(state, p, *real, *fake, *validation, sums)


declare(
    Operator(
        "ada_control_(Tensor(a!) state, Tensor(b!)? p, Tensor[] real, Tensor[] fake, "
        "Tensor[] validation, Tensor? sums, SymInt images, int metric, float target, int interval, "
        "float images_to_one, float p_max) -> ()",
        _fake,
        mutates=True,
    )
)


def _example(draw: Draw) -> dict[str, Any]:
    return {
        "state": draw(9).double().abs().round(),
        "p": draw().sigmoid(),
        "real": [draw(16, 1, 3, 3), draw(16)],
        "fake": [draw(16, 1)],
        "validation": [draw(16, 1)],
        "images": 16,
        "metric": "rv",
        "interval": 1,
        "kimg": 0.1,
    }


EXAMPLES["ada_control_"] = _example
