"""Penalties of differences, without gradients with respect to the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gankernels._checks import check_number
from gankernels._critics.calls import Calls, Critic
from gankernels._critics.gradients import (
    sum_per_score,
)
from gankernels._critics.groups import Groups, check_groups
from gankernels._critics.samples import (
    Samples,
    draw_like,
    listed,
)
from gankernels._critics.scores import Pick

_SETTINGS = ("weight", "sigma", "gamma", "groups", "scores", "generator")


def approx_r1_penalty(
    D: Critic,
    x: Samples,
    *args: Any,
    sigma: float = 0.01,
    weight: float = 100.0,
    gamma: float | None = None,
    groups: Groups = None,
    scores: Pick = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Tensor:
    """Approximate R1 by finite differences: ``weight * mean (D(x) - D(x + sigma noise))^2``.

    Lin et al. 2025 (arXiv 2501.08316), for critics whose second derivatives cost too much; ``x``
    are real samples. In the mean over the noise, N(0, I), and for small sigma it is R1 with
    ``weight = gamma / (2 sigma^2)``. Both passes carry gradient; scores are subtracted in float32.

    Args:
        D: the critic, called twice; see the module's text. In both passes spectral normalization
            has the same u and v, which move once.
        x: (B, ...).
        *args, **kwargs: passed to ``D``.
        sigma: positive; the paper takes 0.01 for images and 0.1 for videos.
        weight: not negative.
        gamma: where given, ``weight`` is ``gamma / (2 sigma^2)``.
        groups, scores: see the module's text.
        generator: where the noise is drawn from; on the samples' device.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """
    calls = Calls("approx_r1_penalty", D, args, kwargs, own=_SETTINGS, scores=scores, passes=2)
    return _approximate(calls, x, sigma, weight, gamma, groups, generator)


def approx_r2_penalty(
    D: Critic,
    x: Samples,
    *args: Any,
    sigma: float = 0.01,
    weight: float = 100.0,
    gamma: float | None = None,
    groups: Groups = None,
    scores: Pick = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Tensor:
    """:func:`approx_r1_penalty` at generated samples ``x``, for R2."""
    calls = Calls("approx_r2_penalty", D, args, kwargs, own=_SETTINGS, scores=scores, passes=2)
    return _approximate(calls, x, sigma, weight, gamma, groups, generator)


def _approximate(
    calls: Calls,
    x: Samples,
    sigma: float,
    weight: float,
    gamma: float | None,
    groups: Groups,
    generator: torch.Generator | None,
) -> Tensor:
    op = calls.op
    check_number(op, "sigma", sigma, positive=True)
    check_number(op, "weight", weight)
    if gamma is not None:
        check_number(op, "gamma", gamma)
        weight = gamma / (2 * sigma**2)
    points = [p.detach() for p in listed(op, "x", x)]
    rows = points[0].shape[0]
    check_groups(op, groups, rows, points[0].device)
    noisy = [p + sigma * draw_like(op, torch.randn, p, p.shape, generator) for p in points]
    single = isinstance(x, Tensor)
    sums = [
        sum_per_score(op, calls.scores(p[0] if single else p), groups, rows)
        for p in (points, noisy)
    ]
    return weight * (sums[0] - sums[1]).square().mean()
