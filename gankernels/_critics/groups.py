"""Rows of samples that share a score: CTGAN's packs of 10, the nodes of a graph."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from gankernels import ops
from gankernels._checks import kind

#: The number of consecutive rows that have one score, or the index of its score for every row.
Groups = int | Tensor | None

_INDICES = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


def check_groups(op: str, groups: Groups, rows: int, device: torch.device) -> None:
    if groups is None:
        return
    if isinstance(groups, Tensor):
        if groups.dtype not in _INDICES:
            raise TypeError(f"{op}: expected groups to be a tensor of integers, got {groups.dtype}")
        if tuple(groups.shape) != (rows,) or groups.device != device:
            raise ValueError(
                f"{op}: expected groups to have the index of its score for each of the {rows} rows "
                f"on {device}, got shape {tuple(groups.shape)} on {groups.device}"
            )
        if groups.device.type == "cpu" and not torch.compiler.is_compiling() and groups.min() < 0:
            raise ValueError(f"{op}: expected groups from 0 on, got {int(groups.min())}")
        return
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(
            f"{op}: expected groups to be an integer, how many consecutive rows share a score, or "
            f"a tensor of integers, the score of each row, got {kind(groups)}"
        )
    if groups < 1 or rows % groups:
        raise ValueError(
            f"{op}: expected groups to be a number of rows that {rows} can be divided by, got "
            f"{groups}"
        )


def score_count(groups: Groups, rows: int, scores: list[Tensor]) -> int:
    """The number of scores that there have to be: with a tensor of groups, as many as there are."""
    if isinstance(groups, Tensor):
        return next((len(x) for x in scores if x.dim() > 0), rows)
    return rows if groups is None else rows // groups


def penalty(
    op: str,
    grads: list[Tensor],
    groups: Groups,
    count: int,
    *,
    center: float = 0.0,
    one_sided: bool = False,
    weight: float,
    sample_weight: Tensor | None = None,
    inv_scale: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """The mean over all scores, or one of each, with norms over all the rows of each."""
    if not isinstance(groups, Tensor):
        if groups is not None:
            grads = [g.unflatten(0, (count, groups)) for g in grads]
        return ops.gradient_penalty(
            grads,
            center=center,
            one_sided=one_sided,
            weight=weight,
            sample_weight=sample_weight,
            inv_scale=inv_scale,
            reduction=reduction,
        )
    index = groups.long()
    if index.device.type == "cpu" and not torch.compiler.is_compiling() and index.max() >= count:
        raise ValueError(
            f"{op}: expected groups below the number of scores, {count}, got {int(index.max())}"
        )
    rows = ops.gradient_penalty(grads, inv_scale=inv_scale, reduction="none")
    squares = sums(rows, index, count)
    values: Any = squares
    if center != 0:
        # The square root has no derivative at zero; the norm there is the constant 0.
        some = squares > 0
        norms = torch.where(some, torch.where(some, squares, 1).sqrt(), 0)
        distance = torch.where(squares.isnan(), squares, norms) - center
        values = (distance.relu() if one_sided else distance).square()
    if sample_weight is not None:
        values = values * sample_weight.to(values.dtype)
    return weight * (values.mean() if reduction == "mean" else values)


def sums(x: Tensor, groups: Groups, count: int) -> Tensor:
    """Sums over the rows of each score."""
    if not isinstance(groups, Tensor):
        return x.view(count, -1).sum(1)
    zeros = x.new_zeros(count)
    if x.device.type == "cpu":
        return zeros.index_add(0, groups.long(), x)
    # This sorts: no atomics, unlike index_add.
    return zeros.index_put((groups.long(),), x, accumulate=True)


def largest(x: Tensor, groups: Groups, count: int) -> Tensor:
    """The largest of the rows of each score; of none, 0."""
    if not isinstance(groups, Tensor):
        return x.view(count, -1).amax(1)
    return x.new_zeros(count).scatter_reduce(0, groups.long(), x, "amax")


def spread(x: Tensor, groups: Groups, rows: int) -> Tensor:
    """What each score has, for every row of it."""
    if isinstance(groups, Tensor):
        return x[groups.long()]
    return x if groups is None else x.repeat_interleave(groups, output_size=rows)
