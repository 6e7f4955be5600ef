"""Consistency regularization: the critic's scores, or the generator's samples, under small changes.

``D`` and ``G`` are any callables, which return a tensor (B, ...) or a flat list of them. They are
called once for either version of the samples, never for both in one batch, which batch
normalization would mix, and get copies, which their first layer may work on in place. Where ``D``
returns more than scores, ``scores`` says which they are, as in :mod:`gankernels.penalties`;
without it, what is nested, keyed or named is refused. ``||.||^2`` is summed over everything but the
batch and the members of a list, E is the mean over the batch, and the differences are taken in
float32 at least. All results are scalars, differentiable to any order in the parameters as far as
``D`` and ``G`` are, and deterministic for given random numbers.

All passes compare the same function: u and v of spectral normalization in training mode move once,
in the first pass, and torch's random numbers are the same in all, as said in
:mod:`gankernels.penalties`.
Keywords that are settings of other penalties are refused, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gankernels._checks import check_callable, check_floats, check_number, raised_in
from gankernels._critics.calls import Calls, Critic, copied
from gankernels._critics.samples import Samples, draw_like, listed
from gankernels._critics.scores import Pick, check_alike, listed_scores, pick_scores, picks
from gankernels._dtypes import accumulation_dtype
from gankernels.regularizers._arguments import check_samples


def consistency_regularization(
    D: Critic,
    real: Samples,
    augment: Callable[[Any], Any],
    *args: Any,
    weight: float = 10.0,
    scores: Pick = None,
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
        scores: see the module's text.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """
    op = "consistency_regularization"
    check_number(op, "weight", weight)
    check_callable(op, "augment", augment)
    calls = Calls(op, D, args, kwargs, own=("weight", "scores"), scores=scores, passes=2)
    return _inconsistency(calls, "real", real, augment, weight)


def balanced_consistency_regularization(
    D: Critic,
    real: Samples,
    fake: Samples,
    augment: Callable[[Any], Any],
    *args: Any,
    weight_real: float = 10.0,
    weight_fake: float = 10.0,
    scores: Pick = None,
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
        scores: see the module's text.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """
    op = "balanced_consistency_regularization"
    check_number(op, "weight_real", weight_real)
    check_number(op, "weight_fake", weight_fake)
    check_callable(op, "augment", augment)
    own = ("weight_real", "weight_fake", "scores")
    calls = Calls(op, D, args, kwargs, own=own, scores=scores, passes=4)
    for name, x in (("real", real), ("fake", fake)):
        listed(op, name, x)  # before any pass
    return _inconsistency(calls, "real", real, augment, weight_real) + _inconsistency(
        calls, "fake", fake, augment, weight_fake
    )


def latent_consistency_discriminator(
    D: Critic,
    G: Callable[..., Any],
    z: Tensor,
    *args: Any,
    weight: float = 20.0,
    std: float = 0.05,
    scores: Pick = None,
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
        scores: see the module's text.
        generator: where dz is drawn from; on the device of ``z``.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """
    op = "latent_consistency_discriminator"
    own = ("weight", "std", "scores", "generator")
    check_callable(op, "D", D)
    generates = Calls(op, G, args, kwargs, own=own, passes=2, what="G")
    near = _neighbor(op, z, weight, std, generator)
    with torch.no_grad():
        fake, other = generates(z), generates(near)
    calls = Calls(op, D, args, kwargs, own=own, scores=scores, passes=2)
    first, second = (_outputs(calls, calls(x)) for x in (fake, other))
    return weight * _distance(op, "D", first, second, len(z))


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
        TypeError, ValueError: if an argument has an unsupported type or value.
    """
    op = "latent_consistency_generator"
    calls = Calls(op, G, args, kwargs, own=("weight", "std", "generator"), passes=2, what="G")
    near = _neighbor(op, z, weight, std, generator)
    first, second = (_outputs(calls, calls(x)) for x in (z, near))
    return -weight * _distance(op, "G", first, second, len(z))


def _inconsistency(
    calls: Calls, name: str, x: Samples, augment: Callable[[Any], Any], weight: float
) -> Tensor:
    op = calls.op
    members = listed(op, name, x)
    detached = [member.detach() for member in members]
    point: Any = detached[0] if isinstance(x, Tensor) else detached
    first = _outputs(calls, calls(point))
    # A copy, so that neither an augmentation nor a critic in place changes the caller's samples.
    with raised_in(op, "augment"):
        changed = augment(copied(point))
    return weight * _distance(op, "D", first, _outputs(calls, calls(changed)), len(members[0]))


def _neighbor(
    op: str, z: Tensor, weight: float, std: float, generator: torch.Generator | None
) -> Tensor:
    check_number(op, "weight", weight)
    check_number(op, "std", std)
    check_samples(op, "z", z, "(B, ...)", 1)
    return z + std * draw_like(op, torch.randn, z, z.shape, generator)


def _distance(
    op: str, network: str, firsts: list[Tensor], seconds: list[Tensor], batch: int
) -> Tensor:
    """E ||a - b||^2 of what a network returned for either version of the samples."""
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


def _outputs(calls: Calls, outputs: Any) -> list[Tensor]:
    """The scores that a critic returned, or the samples that a generator did."""
    op, network = calls.op, calls.what
    cure = f"say which are the scores: {picks(outputs)}"
    if network == "G":
        cure = "wrap it, to return the samples alone"
    tensors = listed_scores(
        op,
        f"{network} to return a tensor or a list of tensors",
        pick_scores(op, outputs, calls.pick),
        cure,
    )
    for x in tensors:
        check_floats(op, f"the output of {network}", x)
    if network == "D" and not callable(calls.pick):
        check_alike(op, "the critic's scores", tensors, cure)
    return tensors
