"""Penalties of parameters, and of gradients with respect to them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gankernels import ops
from gankernels._checks import check_bool, check_floats, check_number, check_tensors, kind
from gankernels._critics.gradients import (
    check_inv_scale,
)
from gankernels._critics.samples import (
    inference_mode,
    outside_inference,
)
from gankernels._dtypes import accumulation_dtype, without_autocast
from gankernels.ops._checks.spectral_norm import check_iteration


def consensus_penalty(
    losses: Sequence[Tensor],
    parameters: Sequence[Iterable[Tensor]],
    *,
    gamma: float = 10.0,
    inv_scale: Tensor | None = None,
) -> Tensor:
    """Consensus optimization: ``gamma / 2 * ||v||^2``, v the gradients of the game.

    Mescheder et al. 2017 (arXiv 1705.10461), algorithm 2: every player descends its own loss plus
    this term. v holds the gradient of each loss with respect to its own player's parameters.

    Args:
        losses: one scalar a player, with its graph: ``(d_loss, g_loss)``.
        parameters: as many lists of parameters: ``(D.parameters(), G.parameters())``. Those that do
            not require a gradient, or that a loss does not depend on, do not count.
        gamma: not negative.
        inv_scale: see the module's text; the gradients are taken of the scaled losses.

    Returns:
        A scalar that depends on all players' parameters; its gradient with respect to them is what
        each adds to its own.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """
    op = "consensus_penalty"
    check_number(op, "gamma", gamma)
    cure = "pass (D.parameters(), G.parameters())"
    if isinstance(parameters, Tensor) or not isinstance(parameters, Iterable):
        raise TypeError(
            f"{op}: expected parameters to be lists of them, one a player, got {kind(parameters)}; "
            f"{cure}"
        )
    players = []
    for i, player in enumerate(parameters):
        if isinstance(player, Tensor) or not isinstance(player, Iterable):
            got = "a tensor" if isinstance(player, Tensor) else kind(player)
            raise TypeError(
                f"{op}: expected parameters[{i}] to be a list of one player's parameters, got "
                f"{got}; {cure}"
            )
        players.append(list(player))
        for p in players[-1]:
            if not isinstance(p, Tensor):
                raise TypeError(
                    f"{op}: expected parameters[{i}] to be a list of one player's parameters, got "
                    f"one with {kind(p)}; {cure}"
                )
    lists = isinstance(losses, (list, tuple)) and all(isinstance(x, Tensor) for x in losses)
    if not lists or len(losses) != len(players) or not players:
        raise ValueError(
            f"{op}: expected a loss for each of the {len(players)} lists of parameters, got "
            f"{len(losses) if lists else kind(losses)}"
        )
    gradients: list[Tensor] = []
    for i, (loss, player) in enumerate(zip(losses, players, strict=True)):
        if loss.dim() != 0:
            raise ValueError(
                f"{op}: expected losses[{i}] to be a scalar, got shape {tuple(loss.shape)}"
            )
        wanted = [p for p in player if p.requires_grad]
        if not wanted or not loss.requires_grad:
            where = " outside torch.inference_mode()" if inference_mode() else ""
            raise ValueError(
                f"{op}: expected losses[{i}] to depend on parameters that require a gradient; "
                f"compute it{where} with its graph, and do not freeze all of them"
            )
        check_inv_scale(op, inv_scale, loss.device)
        seed = None if inv_scale is None else inv_scale.detach().reshape(()).reciprocal().to(loss)
        with outside_inference():
            grads = torch.autograd.grad(
                loss, wanted, seed, create_graph=torch.is_grad_enabled(), allow_unused=True
            )
        gradients += [g.unsqueeze(0) for g in grads if g is not None and g.numel() > 0]
    if not gradients:
        raise ValueError(f"{op}: expected losses that depend on the parameters, got none that does")
    if len({(g.dtype, g.device) for g in gradients}) > 1:
        dtype = functools.reduce(
            torch.promote_types, (accumulation_dtype(g.dtype) for g in gradients)
        )
        gradients = [g.to(gradients[0].device, dtype) for g in gradients]
    return ops.gradient_penalty(gradients, weight=gamma / 2, inv_scale=inv_scale)


#: More than ever converge; a number of another kind than meant would run for hours.
_MOST_ITERATIONS = 10_000


def spectral_norm_regularization(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    *,
    weight: float = 0.01,
    n_power_iterations: int = 1,
    eps: float = 1e-12,
) -> Tensor:
    """``weight / 2 * sum sigma(W)^2`` over any number of weights, sigma the spectral norm.

    Yoshida & Miyato 2017 (arXiv 1705.10941); sigma is found by power iteration, which goes on from
    u and v of the last call. :class:`gankernels.nn.SpectralNormRegularization` keeps them.

    Args:
        weights, u, v, n_power_iterations, eps: as for :func:`gankernels.ops.power_iteration_`; u
            and v move in place. 0 iterations take them as they are, more than 10,000 are refused.
        weight: lambda, not negative.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.

    Differentiable to any order in ``weights``, with u and v constant: the gradient is
    ``weight * sigma * u v^T``.
    """
    op = "spectral_norm_regularization"
    check_number(op, "weight", weight)
    check_number(op, "eps", eps)
    if isinstance(n_power_iterations, bool) or not isinstance(n_power_iterations, int):
        raise TypeError(
            f"{op}: expected n_power_iterations to be an integer, got {kind(n_power_iterations)}"
        )
    if not 0 <= n_power_iterations <= _MOST_ITERATIONS:
        raise ValueError(
            f"{op}: expected n_power_iterations from 0 to {_MOST_ITERATIONS}, got "
            f"{n_power_iterations}"
        )
    for name, tensors in (("weights", weights), ("u", u), ("v", v)):
        if isinstance(tensors, (list, tuple)) and not tensors and name != "weights":
            continue  # the number of vectors is checked below
        check_tensors(op, name, tensors)
        for i, x in enumerate(tensors):
            check_floats(op, f"{name}[{i}]", x)
    constant = [w.detach() for w in weights]
    try:
        if n_power_iterations == 0:
            check_iteration(constant, u, v, 1, eps, "u_first", None)
        else:
            u, v, _ = ops.power_iteration_(constant, u, v, n_power_iterations, eps)
    except (TypeError, ValueError) as error:
        message = str(error).replace("power_iteration_:", f"{op}:", 1)
        raise type(error)(message) from None
    total: Any = 0.0
    for w, left, right in zip(weights, u, v, strict=True):
        with without_autocast(w):
            matrix = w.reshape(w.shape[0], -1).to(accumulation_dtype(w.dtype))
            sigma = torch.dot(left.to(matrix.dtype), torch.mv(matrix, right.to(matrix.dtype)))
        total = total + sigma.square()
    return weight / 2 * total


def orthogonal_regularization(
    weights: Sequence[Tensor], *, weight: float = 1e-4, diagonal: bool = False
) -> Tensor:
    """``weight * sum ||W W^T * (1 - I)||_F^2``: the rows of every W are held orthogonal.

    Brock et al. 2019, BigGAN (arXiv 1809.11096), equation 3, for the generator; the paper writes
    W^T W, of filters that are columns. :class:`gankernels.nn.OrthogonalRegularization` has it for a
    model.

    Args:
        weights: of at least two dimensions, each read as a matrix with the first one as rows.
        weight: beta, not negative. Code that adds ``2 * strength * (W W^T * (1 - I)) W`` to
            gradients has ``strength = 2 * weight``: the derivative has a 4.
        diagonal: with the diagonal, ``||W W^T - I||_F^2``, equation 2, which also holds the length
            of every row at 1.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.

    Differentiable to any order in ``weights``. Takes a matrix of n by n numbers for n rows.
    """
    op = "orthogonal_regularization"
    check_number(op, "weight", weight)
    check_bool(op, "diagonal", diagonal)
    check_tensors(op, "weights", weights)
    for i, w in enumerate(weights):
        check_floats(op, f"weights[{i}]", w)
        if w.dim() < 2 or w.numel() == 0:
            raise ValueError(
                f"{op}: expected weights[{i}] of at least two dimensions, with elements, got shape "
                f"{tuple(w.shape)}; leave biases and scales out"
            )
    total: Any = 0.0
    for w in weights:
        with without_autocast(w):
            rows = w.reshape(w.shape[0], -1).to(accumulation_dtype(w.dtype))
            products = rows @ rows.T
            wanted = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
            if not diagonal:
                wanted = wanted * products
            total = total + (products - wanted).square().sum()
    return weight * total
