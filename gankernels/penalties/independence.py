"""A check that a critic scores every sample by itself, as gradient penalties assume."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gankernels._critics.calls import Calls, Critic
from gankernels._critics.gradients import (
    gradients,
    sum_per_score,
)
from gankernels._critics.groups import Groups, check_groups
from gankernels._critics.samples import (
    Samples,
    listed,
    outside_inference,
)
from gankernels._critics.scores import Pick
from gankernels._critics.states import states_of
from gankernels._warnings import warn_once


def check_independent_samples(
    D: Critic,
    x: Samples,
    *args: Any,
    groups: Groups = None,
    scores: Pick = None,
    **kwargs: Any,
) -> bool:
    """Whether ``D`` scores every sample by itself, as every gradient penalty assumes.

    Batch normalization in training mode, and all else that mixes the samples of a batch, makes the
    gradient of one sample's score reach the others, and the norms wrong (by several percent). Costs
    a forward and a backward pass; call it once. Warns with the cure where it finds that.

    Args:
        D, x, *args, groups, scores, **kwargs: as for :func:`wgan_gp_penalty`; at least 2 samples,
            or groups of them. The buffers of ``D`` are put back to what they were, if it is a
            module, or a lambda, partial or method that mentions it.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """
    op = "check_independent_samples"
    calls = Calls(op, D, args, kwargs, own=("groups", "scores"), scores=scores)
    samples = listed(op, "x", x)
    if any(p.is_meta for p in samples):
        raise ValueError(f"{op}: expected x with values to look at, got meta tensors")
    rows = samples[0].shape[0]
    check_groups(op, groups, rows, samples[0].device)
    index = torch.arange(rows, device=samples[0].device)
    if isinstance(groups, int):
        index = index // groups
    elif groups is not None:
        index = groups.long()
    if not (others := index != index[0]).any():
        what = "samples" if groups is None else "groups"
        raise ValueError(f"{op}: expected at least 2 {what}, got 1")
    own = int(index[0])
    before = states_of(D, moving=False)
    with outside_inference(), torch.enable_grad():
        points = [p.detach().clone().requires_grad_() for p in samples]
        outputs = calls.scores(points[0] if isinstance(x, Tensor) else points)
        sums = sum_per_score(op, outputs, groups, rows)
        if not own < len(sums):
            raise ValueError(
                f"{op}: expected groups below the number of scores, {len(sums)}, got {own}"
            )
        first = torch.cat((sums[:own].detach(), sums[own : own + 1], sums[own + 1 :].detach()))
        grads = gradients(op, [first], points, "the samples", create_graph=False)
    for state in before:
        state.restore()
    independent = not any(g[others].any() for g in grads)
    if not independent:
        warn_once(
            "coupled",
            f"{op}: the score of a sample depends on other samples of the batch; gradient "
            "penalties are then wrong. Put layer, instance or group normalization in the place of "
            "batch normalization in the critic, or use none.",
        )
    return independent
