"""Penalties of differences under noise, without gradients with respect to the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gankernels._critics.calls import Critic, Scores, read_scores
from gankernels._critics.groups import Groups
from gankernels._critics.norms import (
    Heads,
    Norms,
    Reduction,
    Result,
    Weight,
    check_weight,
)
from gankernels._critics.samples import Samples, check_one_kind, listed
from gankernels._critics.scores import Pick

_SETTINGS = (
    *("weight", "gamma", "sigma", "heads", "first", "sample_weight", "reduction", "return_raw"),
    *("groups", "scores", "generator"),
)


def approx_r1_penalty(
    D: Critic | Scores,
    x: Samples | Scores,
    *args: Any,
    sigma: float = 0.01,
    weight: Weight = 100.0,
    gamma: Weight | None = None,
    heads: Heads = "sum",
    first: int | None = None,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    return_raw: bool = False,
    groups: Groups = None,
    scores: Pick = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Result:
    """Approximate R1 by finite differences: ``weight * mean (D(x) - D(x + sigma noise))^2``.

    Lin et al. 2025 (arXiv 2501.08316), for critics whose second derivatives cost too much; ``x``
    are real samples. In the mean over the noise, N(0, I), and for small sigma it is R1 with
    ``weight = gamma / (2 sigma^2)``. Its gradient is mostly noise, which ``r1_penalty(D, x,
    method="difference")`` has none of, for one more pass. All passes carry gradient; scores are
    subtracted in float32. ::

        approx_r1_penalty(D, real, labels)
        approx_r1_penalty(D(real), D(real + sigma * torch.randn_like(real)), sigma=sigma)

    Args:
        D: the critic, called twice; see the module's text. In both passes spectral normalization
            has the same u and v, which move once. Or the logits of the samples.
        x: (B, ...). Where logits are given, those of the samples with noise, of the same shapes.
        *args, **kwargs: passed to ``D``.
        sigma: positive; the paper takes 0.01 for images and 0.1 for videos.
        weight: not negative.
        gamma: where given, ``weight`` is ``gamma / (2 sigma^2)``, and the raw value an estimate of
            the mean of ``||grad D(x)||^2``.
        heads, first, sample_weight, reduction, return_raw, groups, scores: see the module's text.
        generator: where the noise is drawn from; on the samples' device.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """
    op = "approx_r1_penalty"
    how = Norms(op, "noise", sigma, heads, groups=groups, generator=generator)
    how.give(first, sample_weight, reduction, return_raw)
    return _approximate(how, D, x, args, kwargs, weight, gamma, scores)


def approx_r2_penalty(
    D: Critic | Scores,
    x: Samples | Scores,
    *args: Any,
    sigma: float = 0.01,
    weight: Weight = 100.0,
    gamma: Weight | None = None,
    heads: Heads = "sum",
    first: int | None = None,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    return_raw: bool = False,
    groups: Groups = None,
    scores: Pick = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Result:
    """:func:`approx_r1_penalty` at generated samples ``x``, for R2."""
    op = "approx_r2_penalty"
    how = Norms(op, "noise", sigma, heads, groups=groups, generator=generator)
    how.give(first, sample_weight, reduction, return_raw)
    return _approximate(how, D, x, args, kwargs, weight, gamma, scores)


def _approximate(
    how: Norms,
    D: Any,
    x: Any,
    args: Any,
    kwargs: Any,
    weight: Weight,
    gamma: Weight | None,
    pick: Pick,
) -> Result:
    op = how.op
    check_weight(op, "weight", weight)
    if gamma is not None:
        check_weight(op, "gamma", gamma)
    if callable(D) and not isinstance(D, Tensor):
        calls = how.calls(D, args, kwargs, _SETTINGS, pick)
        points = [p.detach() for p in listed(op, "x", x)]
        check_one_kind(op, "x", points)
        points = how.first_of(calls, "x", points)
        measured = how.at(calls, points, isinstance(x, Tensor))
    else:
        if args or kwargs or how.groups is not None:
            raise TypeError(
                f"{op}: expected two results of the critic alone, or the critic and its samples, "
                "got logits and more; settings are keywords"
            )
        cure = "pass the scores alone: D(x)[0] if first"
        clean, noisy = (read_scores(op, y, pick, cure) for y in (D, x))
        if clean[0].dim() > 0:  # scalars are refused below
            how.check_samples("the logits", clean)
            how.check_sample_weight(how.first or len(clean[0]), clean[0].device)
        if how.first is not None:
            clean, noisy = ([y[: how.first] for y in ys] for ys in (clean, noisy))
        measured = how.between(clean, noisy, D)
    if gamma is not None:
        return measured.penalty(weight=gamma / 2)
    assert measured.noisy is not None
    measured.noisy = measured.noisy * how.sigma
    return measured.penalty(weight=weight)
