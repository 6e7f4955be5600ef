"""Samples, a critic's scores of them, and the gradients: what all penalties are made of."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gankernels._checks import check_real, describe, is_tensors, kind
from gankernels._torch import traces_autograd_ops
from gankernels.reference.spectral_norm import accumulation_dtype

Samples = Tensor | Sequence[Tensor]
Scores = Any  # a tensor, or tuples and lists of scores
Critic = Callable[..., Scores]


def listed(op: str, name: str, x: Samples) -> list[Tensor]:
    if not isinstance(x, Tensor) and not (is_tensors(x) and len(x) > 0):
        raise TypeError(f"{op}: expected {name} to be a tensor or a list of tensors, got {kind(x)}")
    samples = [x] if isinstance(x, Tensor) else list(x)
    for p in samples:
        check_real(op, name, p)
        if p.dim() == 0 or p.numel() == 0:
            raise ValueError(
                f"{op}: expected {name} of shape (B, ...) with elements, got {tuple(p.shape)}"
            )
        if p.shape[0] != samples[0].shape[0]:
            sizes = [q.shape[0] if q.dim() else 0 for q in samples]
            raise ValueError(f"{op}: expected one batch size in {name}, got {sizes}")
    return samples


def inputs_of(op: str, name: str, x: Samples) -> list[Tensor]:
    samples = listed(op, name, x)
    if not all(p.requires_grad for p in samples):
        raise ValueError(
            f"{op}: expected {name} to require a gradient, got one that does not; call "
            f"{name}.requires_grad_() before D({name})"
        )
    return samples


def paired(op: str, real: Samples, fake: Samples, same_batch: bool) -> list[tuple[Tensor, Tensor]]:
    reals, fakes = listed(op, "real", real), listed(op, "fake", fake)
    start = 0 if same_batch else 1
    same = isinstance(real, Tensor) == isinstance(fake, Tensor) and len(reals) == len(fakes)
    if not same or any(
        a.shape[start:] != b.shape[start:] or a.device != b.device
        for a, b in zip(reals, fakes, strict=False)
    ):
        what = "one shape" if same_batch else "one shape but for the batch"
        raise ValueError(
            f"{op}: expected real and fake of {what}, on one device, got "
            f"{', '.join(map(describe, reals))} and {', '.join(map(describe, fakes))}"
        )
    return [(a.detach(), b.detach().to(a.dtype)) for a, b in zip(reals, fakes, strict=True)]


def draw_like(draw: Any, like: Tensor, shape: Sequence[int], generator: Any) -> Tensor:
    return draw(shape, generator=generator, device=like.device, dtype=like.dtype)


def each_score(op: str, scores: Scores, batch: int) -> Iterator[Tensor]:
    """Every tensor of what a critic returned."""
    if isinstance(scores, (tuple, list)):
        if not scores:
            raise ValueError(f"{op}: expected the critic to return scores, got an empty list")
        for score in scores:
            yield from each_score(op, score, batch)
        return
    if not isinstance(scores, Tensor):
        raise TypeError(
            f"{op}: expected the critic's scores to be a tensor or a list of them, got "
            f"{kind(scores)}"
        )
    check_real(op, "the critic's scores", scores)
    if scores.dim() > 0 and scores.shape[0] != batch:
        raise ValueError(
            f"{op}: expected scores whose first dimension is the batch, {batch}, got shape "
            f"{tuple(scores.shape)}"
        )
    yield scores


def sum_per_sample(op: str, scores: Scores, batch: int) -> Tensor:
    """(B,), in the accumulation dtype; scores are added up as the other penalties add them."""
    total: Any = 0.0
    for score in each_score(op, scores, batch):
        if score.dim() == 0:
            raise ValueError(
                f"{op}: expected scores whose first dimension is the batch, {batch}, got a scalar; "
                "let the critic return a score for each sample"
            )
        total = total + score.to(accumulation_dtype(score.dtype)).reshape(batch, -1).sum(1)
    return total


def critic_gradients(
    op: str,
    D: Critic,
    points: list[Tensor],
    single: bool,
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> list[Tensor]:
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        scores = D(points[0] if single else points, *args, **kwargs)
        return gradients(op, scores, points, "the samples", create_graph=create_graph)


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


def gradients(
    op: str,
    scores: Scores,
    samples: list[Tensor],
    name: str,
    inv_scale: Tensor | None = None,
    create_graph: bool | None = None,
) -> list[Tensor]:
    """Gradients of the summed scores, times 1 / inv_scale."""
    create_graph = torch.is_grad_enabled() if create_graph is None else create_graph
    batch = samples[0].shape[0]
    outputs = list(each_score(op, scores, batch))
    for score in outputs:
        if not score.requires_grad:
            raise ValueError(
                f"{op}: expected scores with a graph, got detached ones; call D outside "
                "torch.no_grad() and do not detach what it returns"
            )
        _check_graph(op, score, create_graph)
        if score.dim() == 0 and batch > 1:
            warn_once(
                "scalar",
                f"{op}: the critic's scores are one scalar for a batch of {batch}. The gradient of "
                f"a mean is {batch} times too small for every sample; pass the scores themselves "
                "(a sum of them is fine).",
            )
    if inv_scale is None:
        seeds = [torch.ones_like(score) for score in outputs]
    else:
        if not isinstance(inv_scale, Tensor) or inv_scale.numel() != 1:
            got = describe(inv_scale) if isinstance(inv_scale, Tensor) else kind(inv_scale)
            raise ValueError(f"{op}: expected inv_scale to be a tensor of one element, got {got}")
        scale = inv_scale.detach().reshape(()).reciprocal()
        seeds = [scale.to(score).expand_as(score) for score in outputs]
    grads = torch.autograd.grad(
        outputs, samples, seeds, create_graph=create_graph, allow_unused=True
    )
    found = []
    for i, g in enumerate(grads):
        if g is None:
            which = name if len(grads) == 1 else f"{name}[{i}]"
            raise ValueError(
                f"{op}: expected scores that depend on {which}, got ones that do not; pass the "
                "very tensor that D was called with"
            )
        found.append(g)
    if create_graph and not any(g.requires_grad for g in found):
        warn_once(
            "constant",
            f"{op}: the gradients of the scores depend on no parameter, so the penalty trains "
            "nothing; the critic's parameters are frozen, or were detached.",
        )
    return found


_warned: set[str] = set()


def warn_once(key: str, message: str) -> None:
    if key in _warned or torch.compiler.is_compiling():
        return
    _warned.add(key)
    warn(message)


def warn(message: str) -> None:
    """At the line of the caller, however many functions and modules are between."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals["__name__"].partition(".")[0] in ("gankernels", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)
