"""Checks of the arguments of gradient_penalty."""

from __future__ import annotations

from torch import Tensor

from gankernels._checks import check_bool, check_floats, check_number, describe, is_choice, kind

REDUCTIONS = ("none", "mean", "sum")  # the numbers are those of the C++ side


def check(
    grads, center, one_sided, weight, sample_weight, inv_scale, per_tensor, reduction
) -> None:
    op = "gradient_penalty"
    first = grads[0]
    for k, g in enumerate(grads):
        name = "grads" if len(grads) == 1 else f"grads[{k}]"
        check_floats(op, name, g)
        if g.dim() == 0:
            raise ValueError(
                f"{op}: expected {name} to have a batch dimension, got a scalar; pass the gradient "
                "with respect to the critic's input, of shape (B, ...)"
            )
        if g.numel() == 0:
            what = "an empty batch" if g.shape[0] == 0 else "samples without elements"
            raise ValueError(
                f"{op}: expected {name} to have elements, got {what}, shape {tuple(g.shape)}"
            )
        if g.shape[0] != first.shape[0]:
            raise ValueError(
                f"{op}: expected gradients of one batch size, got {first.shape[0]} samples in "
                f"grads[0] and {g.shape[0]} in {name}"
            )
        if g.dtype != first.dtype or g.device != first.device:
            raise ValueError(
                f"{op}: expected gradients of one dtype and device, got {describe(first)} and "
                f"{name} {describe(g)}; convert them, or make a call for each"
            )
    check_number(op, "center", center)
    check_number(op, "weight", weight)
    for name, flag in (("one_sided", one_sided), ("per_tensor", per_tensor)):
        check_bool(op, name, flag)
    if not is_choice(reduction, REDUCTIONS):
        raise ValueError(f'{op}: expected reduction "mean", "sum" or "none", got {reduction!r}')
    for name, x, numel in (
        ("sample_weight", sample_weight, first.shape[0]),
        ("inv_scale", inv_scale, 1),
    ):
        if x is None:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{op}: expected {name} to be a tensor, got {kind(x)}")
        check_floats(op, name, x)
        shaped = tuple(x.shape) == (numel,) if name == "sample_weight" else x.numel() == 1
        if not shaped or x.device != first.device:
            wanted = f"of shape {(numel,)}" if name == "sample_weight" else "of one element"
            raise ValueError(f"{op}: expected {name} {wanted} on {first.device}, got {describe(x)}")
