"""Gradients of scores with respect to samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gankernels._checks import (
    check_floats,
    describe,
    kind,
)
from gankernels._critics.calls import Calls
from gankernels._critics.groups import Groups, check_groups, score_count
from gankernels._critics.samples import inference_mode, outside_inference, usable
from gankernels._critics.states import warn_of_coupled
from gankernels._dtypes import accumulation_dtype
from gankernels._torch import traces_autograd_ops
from gankernels._warnings import warn_once


def check_counts(op: str, scores: list[Tensor], groups: Groups, rows: int) -> int:
    """The number of scores: the rows of the samples, or as many as groups of them."""
    count = score_count(groups, rows, scores)
    for score in scores:
        if score.dim() > 0 and score.shape[0] != count:
            if groups is None:
                expected = f"scores whose first dimension is the batch, {count}"
                cure = (
                    "; where rows share a score, pass groups=, how many consecutive ones, or the "
                    "index of the score of each row"
                )
            else:
                expected = f"{count} scores, one for each group of rows"
                cure = ""
            raise ValueError(f"{op}: expected {expected}, got shape {tuple(score.shape)}{cure}")
    return count


def sum_per_score(op: str, scores: list[Tensor], groups: Groups, rows: int) -> Tensor:
    """(B,), in the accumulation dtype; scores are added up as the other penalties add them."""
    count = check_counts(op, scores, groups, rows)
    total: Any = 0.0
    for score in scores:
        if score.dim() == 0:
            raise ValueError(
                f"{op}: expected scores whose first dimension is the batch, {count}, got a scalar; "
                "let the critic return a score for each sample"
            )
        total = total + score.to(accumulation_dtype(score.dtype)).reshape(count, -1).sum(1)
    return total


def critic_gradients(
    calls: Calls,
    points: list[Tensor],
    single: bool,
    inv_scale: Tensor | None,
    groups: Groups,
) -> tuple[list[Tensor], int]:
    """Gradients of the summed scores at these points, and how many scores there are."""
    op, rows = calls.op, points[0].shape[0]
    warn_of_coupled(op, calls.D)
    check_groups(op, groups, rows, points[0].device)
    create_graph = torch.is_grad_enabled()
    with outside_inference(), torch.enable_grad():
        leaves = [usable(p.detach()).requires_grad_() for p in points]
        scores = calls.scores(leaves[0] if single else leaves)
        count = check_counts(op, scores, groups, rows)
        grads = gradients(op, scores, leaves, "the samples", inv_scale, create_graph)
    return grads, count


_COMPILED = (
    "Compile the whole step with torch._dynamo.config.trace_autograd_ops = True, penalty and "
    "gradients of the loss included, or give penalties the critic that is not compiled."
)


def _check_graph(op: str, score: Tensor, create_graph: bool) -> None:
    """Refuse what torch cannot differentiate twice, or would silently get wrong."""
    if torch.compiler.is_compiling():  # grad_fn cannot be traced
        if not traces_autograd_ops():
            # This ends a full graph; otherwise torch runs the function eagerly instead. Were the
            # critic alone in a graph, torch would fail in the backward pass.
            raise RuntimeError(f"{op}: expected torch to trace torch.autograd.grad. {_COMPILED}")
        return
    if create_graph and type(score.grad_fn).__name__ == "CompiledFunctionBackward":
        raise RuntimeError(
            f"{op}: expected scores whose graph can be differentiated twice, got those of a "
            f"compiled critic, which torch differentiates once. {_COMPILED}"
        )
    wrapper = getattr(score.grad_fn, "ddp_weakref", None)
    if wrapper is not None and getattr(wrapper(), "static_graph", False):
        # DDP would take the gradients of the samples for the first backward pass.
        raise RuntimeError(
            f"{op}: expected a DistributedDataParallel critic without static_graph=True; with it "
            "torch leaves the gradients of the parameters unreduced"
        )


def check_inv_scale(op: str, inv_scale: Tensor | None, device: torch.device) -> None:
    if inv_scale is None:
        return
    if isinstance(inv_scale, Tensor):
        check_floats(op, "inv_scale", inv_scale)
    if not isinstance(inv_scale, Tensor) or inv_scale.numel() != 1:
        got = describe(inv_scale) if isinstance(inv_scale, Tensor) else kind(inv_scale)
        raise ValueError(f"{op}: expected inv_scale to be a tensor of one element, got {got}")
    if inv_scale.device != device:
        raise ValueError(
            f"{op}: expected inv_scale on {device}, where the samples are, got {inv_scale.device}"
        )


def gradients(
    op: str,
    scores: list[Tensor],
    samples: list[Tensor],
    name: str,
    inv_scale: Tensor | None = None,
    create_graph: bool | None = None,
) -> list[Tensor]:
    """Gradients of the summed scores, times 1 / inv_scale."""
    create_graph = torch.is_grad_enabled() if create_graph is None else create_graph
    batch = samples[0].shape[0]
    check_inv_scale(op, inv_scale, samples[0].device)
    for score in scores:
        if not score.requires_grad:
            where = "torch.inference_mode()" if inference_mode() else "torch.no_grad()"
            raise ValueError(
                f"{op}: expected scores with a graph, got detached ones; call D outside "
                f"{where} and do not detach what it returns"
            )
        _check_graph(op, score, create_graph)
        if score.dim() == 0 and batch > 1:
            warn_once(
                "scalar",
                f"{op}: the critic's scores are one scalar for a batch of {batch}. The gradient of "
                f"a mean is {batch} times too small for every sample; pass the scores themselves "
                "(a sum of them is fine).",
            )
    with outside_inference():
        if inv_scale is None:
            seeds = [torch.ones_like(score) for score in scores]
        else:
            scale = usable(inv_scale.detach()).reshape(()).reciprocal()
            seeds = [scale.to(score).expand_as(score) for score in scores]
        grads = torch.autograd.grad(
            scores, samples, seeds, create_graph=create_graph, allow_unused=True
        )
    sample_grads = []
    for i, g in enumerate(grads):
        if g is None:
            which = name if len(grads) == 1 else f"{name}[{i}]"
            raise ValueError(
                f"{op}: expected scores that depend on {which}, got ones that do not; pass the "
                "very tensor that D was called with"
            )
        sample_grads.append(g)
    if create_graph and not any(g.requires_grad for g in sample_grads):
        warn_once(
            "constant",
            f"{op}: the gradients of the scores depend on no parameter, so the penalty trains "
            "nothing; the critic's parameters are frozen, or were detached.",
        )
    return sample_grads
