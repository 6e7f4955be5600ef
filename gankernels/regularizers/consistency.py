"""Consistency regularisation: the critic's scores, or the generator's samples, under small changes.

``D`` and ``G`` are any callables, which return a tensor (B, ...) or a list of them. They are called
once for either version of the samples, never for both in one batch, which batch normalisation would
mix. ``||.||^2`` is summed over everything but the batch and the members of a list, E is the mean
over the batch, and the differences are taken in float32 at least. All results are scalars,
differentiable to any order in the parameters as far as ``D`` and ``G`` are, and deterministic for
given random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gankernels._checks import check_number, check_real, is_tensors, kind
from gankernels.reference.spectral_norm import accumulation_dtype
from gankernels.regularizers._arguments import check_samples

Samples = Tensor | Sequence[Tensor]


def consistency_regularization(
    D: Callable[..., Samples],
    real: Samples,
    augment: Callable[[Any], Any],
    *args: Any,
    weight: float = 10.0,
    **kwargs: Any,
) -> Tensor:
    """CR: ``weight * E ||D(x) - D(T(x))||^2``, for the critic.

    Zhang et al. 2020 (arXiv 1910.12027).

    Args:
        D: the critic, called twice as ``D(x, *args, **kwargs)``.
        real: real samples, (B, ...), or a list of them. They are detached.
        augment: T, which keeps what the samples show: flips and shifts in the paper.
        *args, **kwargs: passed to ``D``, labels for instance.
        weight: not negative.

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """
    op = "consistency_regularization"
    check_number(op, "weight", weight)
    return weight * _inconsistency(op, D, "real", real, augment, args, kwargs)


def balanced_consistency_regularization(
    D: Callable[..., Samples],
    real: Samples,
    fake: Samples,
    augment: Callable[[Any], Any],
    *args: Any,
    weight_real: float = 10.0,
    weight_fake: float = 10.0,
    **kwargs: Any,
) -> Tensor:
    """bCR: :func:`consistency_regularization` at real and at generated samples.

    ``weight_real * E ||D(x) - D(T(x))||^2 + weight_fake * E ||D(G) - D(T(G))||^2``, for the critic.
    Zhao et al. 2021 (arXiv 2002.04724). Where labels of ``real`` and ``fake`` differ, call
    :func:`consistency_regularization` for each instead.

    Args:
        D: the critic, called four times as ``D(x, *args, **kwargs)``.
        real, fake: samples, (B, ...) and (B', ...), or lists of them. They are detached.
        augment: T.
        *args, **kwargs: passed to ``D`` with real and with fake samples.
        weight_real, weight_fake: not negative.

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """
    op = "balanced_consistency_regularization"
    check_number(op, "weight_real", weight_real)
    check_number(op, "weight_fake", weight_fake)
    return weight_real * _inconsistency(
        op, D, "real", real, augment, args, kwargs
    ) + weight_fake * _inconsistency(op, D, "fake", fake, augment, args, kwargs)


def latent_consistency_discriminator(
    D: Callable[..., Samples],
    G: Callable[..., Any],
    z: Tensor,
    *args: Any,
    weight: float = 20.0,
    std: float = 0.05,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Tensor:
    """zCR for the critic: ``weight * E ||D(G(z)) - D(G(z + dz))||^2``, with dz ~ N(0, std^2).

    Zhao et al. 2021 (arXiv 2002.04724). ``G`` runs without a graph.

    Args:
        D, G: critic and generator, called as ``D(G(z, *args, **kwargs), *args, **kwargs)``.
        z: (B, ...).
        *args, **kwargs: passed to both, labels for instance. Wrap the one that takes none.
        weight, std: not negative.
        generator: where dz is drawn from; on the device of ``z``.

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """
    op = "latent_consistency_discriminator"
    near = _neighbour(op, z, weight, std, generator)
    with torch.no_grad():
        fake, other = G(z, *args, **kwargs), G(near, *args, **kwargs)
    return weight * _distance(op, "D", D(fake, *args, **kwargs), D(other, *args, **kwargs), len(z))


def latent_consistency_generator(
    G: Callable[..., Samples],
    z: Tensor,
    *args: Any,
    weight: float = 0.5,
    std: float = 0.05,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Tensor:
    """zCR for the generator: ``-weight * E ||G(z) - G(z + dz)||^2``, with dz ~ N(0, std^2).

    Zhao et al. 2021 (arXiv 2002.04724): drives samples apart, and has no lower bound by itself.

    Args:
        G: the generator, called twice as ``G(z, *args, **kwargs)``.
        z, weight, std, generator: as for :func:`latent_consistency_discriminator`.
        *args, **kwargs: passed to ``G``.

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """
    op = "latent_consistency_generator"
    near = _neighbour(op, z, weight, std, generator)
    return -weight * _distance(op, "G", G(z, *args, **kwargs), G(near, *args, **kwargs), len(z))


def _inconsistency(
    op: str,
    D: Callable[..., Samples],
    name: str,
    x: Samples,
    augment: Callable[[Any], Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> Tensor:
    if not isinstance(x, Tensor) and not (is_tensors(x) and len(x) > 0):
        raise TypeError(f"{op}: expected {name} to be a tensor or a list of tensors, got {kind(x)}")
    members = [x] if isinstance(x, Tensor) else list(x)
    for member in members:
        check_samples(op, name, member, "(B, ...)", 1)
    detached = [member.detach() for member in members]
    point = detached[0] if isinstance(x, Tensor) else detached
    scores = D(point, *args, **kwargs)
    return _distance(op, "D", scores, D(augment(point), *args, **kwargs), len(members[0]))


def _neighbour(
    op: str, z: Tensor, weight: float, std: float, generator: torch.Generator | None
) -> Tensor:
    check_number(op, "weight", weight)
    check_number(op, "std", std)
    check_samples(op, "z", z, "(B, ...)", 1)
    dz = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
    return z + std * dz


def _distance(op: str, network: str, a: Samples, b: Samples, batch: int) -> Tensor:
    """E ||a - b||^2 of what a network returned for either version of the samples."""
    firsts, seconds = _returned(op, network, a), _returned(op, network, b)
    for x in (*firsts, *seconds):
        if x.dim() == 0 or x.shape[0] != batch:
            raise ValueError(
                f"{op}: expected {network} to return tensors whose first dimension is the batch, "
                f"{batch}, got shape {tuple(x.shape)}"
            )
    shapes = [[tuple(x.shape) for x in outputs] for outputs in (firsts, seconds)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{op}: expected {network} to return equal shapes for both versions of the samples, "
            f"got {shapes[0]} and {shapes[1]}"
        )
    total: Any = 0.0
    for x, y in zip(firsts, seconds, strict=True):
        dtype = accumulation_dtype(x.dtype)
        total = total + (x.to(dtype) - y.to(dtype)).square().sum() / batch
    return total


def _returned(op: str, network: str, outputs: Samples) -> list[Tensor]:
    if not isinstance(outputs, Tensor) and not (is_tensors(outputs) and len(outputs) > 0):
        raise TypeError(
            f"{op}: expected {network} to return a tensor or a list of tensors, got {kind(outputs)}"
        )
    found = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    for x in found:
        check_real(op, f"the output of {network}", x)
    return found
