"""Weight clipping."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from gankernels._checks import check_floats, check_number, kind
from gankernels._torch import foreach_clamp_max_, foreach_clamp_min_


@torch.no_grad()
def clip_weights_(parameters: Tensor | Iterable[Tensor], c: float = 0.01) -> None:
    """Clamp every weight to ``[-c, c]``, in place: after each of the critic's steps.

    A network takes two calls for each device and dtype among its weights, however many there are.
    Shards of FSDP2, and other DTensors, are clamped where they lie. NaN stays NaN. As with every
    write in place, a graph that was made before needs to be made anew: its ``backward()`` raises.

    Args:
        parameters: a tensor or an iterable of tensors, of any floating-point dtype, such as
            ``critic.parameters()``.
        c: the bound, rounded to the weights' dtype.

    Raises:
        TypeError: if they are not floating-point tensors, or c is not a number; for a module.
        ValueError: if there are none, or c is not positive and finite.

    Not differentiated. Deterministic. WGAN, Arjovsky et al. 2017 (arXiv 1701.07875), algorithm 1,
    line 7.
    """
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    elif not isinstance(parameters, Iterable) or isinstance(parameters, torch.nn.Module):
        raise TypeError(
            "clip_weights_: expected a tensor or an iterable of tensors, got "
            f"{kind(parameters)}; pass critic.parameters()"
        )
    check_number("clip_weights_", "c", c, positive=True)
    groups: dict[tuple, list[Tensor]] = {}
    for parameter in parameters:
        if not isinstance(parameter, Tensor):
            raise TypeError(
                "clip_weights_: expected a tensor or an iterable of tensors, got one of "
                f"{kind(parameter)}; pass critic.parameters()"
            )
        check_floats("clip_weights_", "weights", parameter)
        mesh = getattr(parameter, "device_mesh", None)  # a list of DTensors has one, and no others
        groups.setdefault((parameter.device, parameter.dtype, mesh), []).append(parameter)
    if not groups:
        raise ValueError(
            "clip_weights_: expected at least one tensor, got none; an iterator such as "
            "critic.parameters() can be gone through only once"
        )
    for group in groups.values():
        foreach_clamp_max_(group, c)
        foreach_clamp_min_(group, -c)


__all__ = ["clip_weights_"]
