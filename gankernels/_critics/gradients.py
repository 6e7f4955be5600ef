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
from gankernels._critics.states import graph_nodes, warn_of_coupled
from gankernels._dtypes import accumulation_dtype
from gankernels._torch import shards_parameters, traces_autograd_ops
from gankernels._warnings import is_turn, warn_once


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
    *,
    twice: bool = True,
    allow_unused: bool = False,
) -> tuple[list[Tensor], int]:
    """Gradients of the summed scores at these points, and how many scores there are.

    ``twice``: with a graph, where gradients are enabled.
    """
    op, rows = calls.op, points[0].shape[0]
    warn_of_coupled(op, calls.D)
    check_groups(op, groups, rows, points[0].device)
    create_graph = twice and torch.is_grad_enabled()
    with outside_inference(), torch.enable_grad():
        leaves = [usable(p.detach()).requires_grad_() for p in points]
        scores = calls.scores(leaves[0] if single else leaves)
        count = check_counts(op, scores, groups, rows)
        grads = gradients(
            op,
            scores,
            leaves,
            "the samples",
            inv_scale,
            create_graph,
            allow_unused=allow_unused,
        )
    return grads, count


_WITHOUT = (
    'Take method="difference", which needs no second derivative (r1_penalty and r2_penalty: with '
    "the critic, as D= beside logits)"
)
_COMPILED = (
    f"{_WITHOUT}; or compile the whole step with torch._dynamo.config.trace_autograd_ops = True, "
    "penalty and gradients of the loss included; or give penalties the critic that is not compiled."
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
    check_static_graph(op, "critic", score.grad_fn)


def check_static_graph(op: str, what: str, node: Any) -> None:
    """Refuse the output of a wrapped network that would leave gradients unreduced: DDP would take
    a gradient found in between for the first backward pass.
    """
    wrapper = getattr(node, "ddp_weakref", None)
    if wrapper is not None and getattr(wrapper(), "static_graph", False):
        raise RuntimeError(
            f"{op}: expected a DistributedDataParallel {what} without static_graph=True; with it "
            "torch leaves the gradients of the parameters unreduced"
        )


#: The nodes that make DTensors of plain tensors, and these of them.
_TENSOR_PARALLEL = ("_FromTorchTensorBackward", "_ToTorchTensorBackward")


def check_gathered(op: str, what: str, outputs: list[Tensor]) -> None:
    """Refuse a graph through FSDP2 that frees the weights which second derivatives read: torch
    would fail in the backward pass, or read freed memory.
    """
    if not shards_parameters() or torch.compiler.is_compiling():
        return
    for node in graph_nodes(outputs):
        if getattr(getattr(node, "param_group", None), "reshard_after_backward", False):
            raise RuntimeError(
                f"{op}: expected a {what} under fully_shard whose weights stay gathered for second "
                f"derivatives; call {what}.set_reshard_after_backward(False) before, and after the "
                f"step of the optimizer reshard() on each of its FSDP modules; or take "
                'method="difference", which needs neither'
            )


def _check_twice(op: str, scores: list[Tensor], grads: list[Tensor]) -> None:
    """Refuse operators that torch can differentiate once: the fused attentions. The backward pass
    of the loss would raise otherwise.
    """
    if torch.compiler.is_compiling():
        return
    names = [node.name() for node in graph_nodes(scores)]
    if any(name.startswith(_TENSOR_PARALLEL) for name in names):
        raise RuntimeError(
            f"{op}: expected a critic that torch can differentiate twice, got one with DTensors "
            "between plain tensors, as tensor parallelism has them, where torch loses the second "
            f"derivative without a word. {_WITHOUT}."
        )
    attention = next((name for name in names if name.startswith("ScaledDot")), None)
    if attention and any("NotImplemented" in node.name() for node in graph_nodes(grads)):
        raise RuntimeError(
            f"{op}: expected a critic that torch can differentiate twice, got one with "
            f"{attention.partition('Backward')[0]}, a kernel of scaled_dot_product_attention that "
            f"has no second derivative. {_WITHOUT}; or call the critic within "
            "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)."
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
    *,
    allow_unused: bool = False,
    retain: bool = False,
) -> list[Tensor]:
    """Gradients of the summed scores, times 1 / inv_scale; ``retain`` leaves the scores' graph."""
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
    if create_graph:
        check_gathered(op, "critic", scores)
    with outside_inference():
        if inv_scale is None:
            seeds = [torch.ones_like(score) for score in scores]
        else:
            scale = usable(inv_scale.detach()).reshape(()).reciprocal()
            seeds = [scale.to(score).expand_as(score) for score in scores]
        grads = torch.autograd.grad(
            scores,
            samples,
            seeds,
            create_graph=create_graph,
            retain_graph=create_graph or retain,
            allow_unused=True,
        )
    if create_graph:
        _check_twice(op, scores, [g for g in grads if g is not None])
    sample_grads = []
    for i, g in enumerate(grads):
        if g is None and allow_unused:
            g = torch.zeros_like(samples[i])
        if g is None:
            which = name if len(grads) == 1 else f"{name}[{i}]"
            raise ValueError(
                f"{op}: expected scores that depend on {which}, got ones that do not; pass the "
                "very tensor that D was called with"
            )
        sample_grads.append(g)
    constant = not any(g.requires_grad for g in sample_grads)
    if create_graph and (constant or _is_of_samples_alone(op, scores, samples)):
        warn_once(
            "constant",
            f"{op}: the gradients of the scores depend on no parameter, so the penalty trains "
            "nothing; the critic's parameters are frozen, or were detached.",
        )
    return sample_grads


def _is_of_samples_alone(op: str, scores: list[Tensor], samples: list[Tensor]) -> bool:
    """Whether nothing else would get a gradient from the scores; not looked for at every call."""
    if torch.compiler.is_compiling() or not is_turn("constant", op):
        return False
    leaves = (getattr(node, "variable", None) for node in graph_nodes(scores))
    return all(any(leaf is x for x in samples) for leaf in leaves if leaf is not None)
