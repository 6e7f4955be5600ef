"""Logits and labels, read and checked, and the scalar that terms of them become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from gankernels._checks import check_floats, check_generator, check_number, is_choice, kind
from gankernels._critics.norms import Weight, check_weight
from gankernels._critics.scores import AVERAGED, check_alike, listed_scores

Logits = Tensor | Sequence[Tensor]
Label = float | tuple[float, float]
Scales = Literal["sum", "mean"]


# --- logits --------------------------------------------------------------------------------------


def read(op: str, name: str, logits: Logits) -> list[Tensor]:
    """The logits of every critic, checked, of the dtype to compute in."""
    return [x if x.dtype == torch.float64 else x.float() for x in listed(op, name, logits)]


def listed(op: str, name: str, logits: Logits) -> list[Tensor]:
    """The logits of every critic, checked."""
    cure = "pass only the logits, one tensor a critic"
    tensors = listed_scores(
        op,
        f"{name} to be a tensor or a list of tensors",
        logits,
        cure,
        empty=f"{name} of at least one critic",
    )
    for x in tensors:
        check_floats(op, name, x)
        if x.numel() == 0:
            raise ValueError(
                f"{op}: expected {name} with elements to average, got the empty shape "
                f"{tuple(x.shape)}"
            )
    check_alike(op, name, tensors, cure, AVERAGED)
    return tensors


def read_both(
    op: str, real_logits: Logits, fake_logits: Logits
) -> tuple[list[Tensor], list[Tensor]]:
    reals = read(op, "real_logits", real_logits)
    fakes = read(op, "fake_logits", fake_logits)
    if len(reals) != len(fakes):
        raise ValueError(
            f"{op}: expected real_logits and fake_logits of as many critics, got {len(reals)} and "
            f"{len(fakes)}; pass the outputs of the same discriminator"
        )
    return reals, fakes


def check_order(op: str, fakes: list[Tensor], reals: list[Tensor]) -> None:
    """Refuse logits of which only the real ones would train the generator: its loss takes the fake
    ones first, that of the discriminator the real ones."""
    needs = [any(x.requires_grad for x in logits) for logits in (fakes, reals)]
    if torch.is_grad_enabled() and needs == [False, True]:
        raise ValueError(
            f"{op}: expected fake_logits that require a gradient, as the generator is trained by "
            "them, got none, and real_logits that do; call generator(fake_logits, real_logits), in "
            "this order, and do not detach the generator's samples"
        )


# --- labels --------------------------------------------------------------------------------------


def check_labels(
    op: str, name: str, label: Label, *, signed: bool, generator: object, logits: list[Tensor]
) -> None:
    """Refuse what is neither a number nor (low, high), or what cannot draw; ``signed`` takes
    numbers below 0."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"{op}: expected generator to be a torch.Generator or None, got {kind(generator)}; the "
            "logits of the generator's samples are fake_logits"
        )
    check_generator(op, generator, logits[0].device)
    if not isinstance(label, tuple):
        check_number(op, name, label, signed=signed)
        return
    if len(label) != 2:
        raise ValueError(f"{op}: expected {name} to be a number or (low, high), got {label}")
    for bound in label:
        check_number(op, f"both numbers of {name}", bound, signed=signed)
    if label[0] > label[1]:
        raise ValueError(f"{op}: expected {name} to be (low, high), got {label}; swap the two")


def draw_labels(
    logits: list[Tensor], label: Label, generator: torch.Generator | None
) -> list[float] | list[Tensor]:
    """The target of each critic's logits: a number, or one drawn for each logit."""
    if not isinstance(label, tuple):
        return [label] * len(logits)
    low, high = label
    return [torch.empty_like(x).uniform_(low, high, generator=generator) for x in logits]


# --- the result ----------------------------------------------------------------------------------


def check_reduction(op: str, scales: object, weight: object) -> None:
    if not is_choice(scales, ("sum", "mean")):
        raise ValueError(f'{op}: expected scales "sum" or "mean", got {scales!r}')
    check_weight(op, "weight", weight)


def reduce_terms(terms: list[Tensor], how: Scales, weight: Weight) -> Tensor:
    """The sum, or the mean, of the means of these, times the weight: a scalar."""
    first, *others = (term.mean() for term in terms)
    total = sum(others, first)
    return weighted(total / len(terms) if how == "mean" and others else total, weight)


def weighted(total: Tensor, weight: Weight) -> Tensor:
    """A scalar times a weight, whose dtype and shape do not matter."""
    if isinstance(weight, Tensor):
        return total * weight.reshape(()).to(total.dtype)
    return total if weight == 1 else total * weight
