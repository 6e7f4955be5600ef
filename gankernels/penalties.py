"""The gradient penalties of the papers, each as one function.

All take gradients of the critic's summed scores with respect to its inputs, sample by sample, with
:func:`gankernels.ops.gradient_penalty` behind them. A critic ``D`` is any callable. It is called as
``D(x, *args, **kwargs)`` with whatever positional arguments follow the samples and whatever keyword
arguments the penalty does not know, labels for instance. Numbers among the positional ones, and
settings of other penalties (``gamma`` where ``weight`` is meant) or misspelt ones, are refused,
unless ``D`` names such a keyword itself; ``functools.partial(D, gamma=...)`` passes anything on.
Samples are a tensor (B, ...), or a list of them, which ``D`` then gets as a list, with one norm
over all. ``D`` gets copies, which its first layer may work on in place.

Scores are a tensor whose first dimension is B (one score a sample, patch maps), or a flat list or
tuple of these (several scales); they are added up, never averaged. Where ``D`` returns more than
scores, ``scores`` says which they are: an index, a key or attribute, or a function of what ``D``
returns; a penalty that is given the results takes ``D(x)[0]``. Without it, everything nested, keyed
or named is refused, and a list whose shapes can only be those of scores and features: a map of 8
and more channels beside one with fewer, or beside one score a sample. Two vectors, (B, 1) and
(B, 512), may be flattened maps of two scales; these only get a warning.

Where a score belongs to several rows of the samples, ``groups`` says to which: a number of
consecutive rows (CTGAN's packs of 10), or a tensor of integers (B,), the index of the score of each
row (the nodes of a batch of graphs). Norms are then over all rows of a score, means over scores;
penalties between real and generated samples draw one coefficient a group. Scores of several groups
have as first dimension the number of groups.

``inv_scale`` is for ``torch.amp.GradScaler``: one element, the reciprocal of its scale, which comes
without a synchronisation: ``inv_scale = 1 / scaler.scale(torch.ones((), device=device))``. The
gradients are then taken of the scaled scores, which float16 can hold, and unscaled in the penalty.
Scale the loss as always: ``scaler.scale(loss + penalty).backward()``. A scale above 65504, such as
GradScaler's first, is inf in float16 scores: that step is skipped, the scale halved.

All results are scalars, float32 (float64 for float64 gradients), differentiable twice in the
critic's parameters, and deterministic for given random numbers. Under ``torch.no_grad()`` and
``torch.inference_mode()`` the same number comes without a graph. Samples made here are detached: no
gradient reaches a generator. Nothing but :func:`check_independent_samples` synchronises with a
device.

Penalties that call ``D`` twice, the approximate ones, compare the same function at two points: u
and v of spectral normalization in training mode, torch's, ours or your own (all floating-point
buffers but the running statistics of batch and instance normalization, and parameters without a
gradient that are vectors), move once, in the first pass. They are found where ``D`` is a module, or
a lambda, partial or method that mentions it. Random layers, dropout for instance, draw anew in each
pass, and the difference measures that, too: leave them out, or in evaluation mode.

Compiled, a penalty needs ``torch._dynamo.config.trace_autograd_ops = True``, the gradients of the
loss taken in the same compiled function by ``torch.autograd.grad``, and ``generator=None``, since
torch traces no generator; otherwise it runs eagerly, or raises. A critic that is compiled by itself
goes only with the approximate penalties: torch differentiates it once.

With ``DistributedDataParallel``, call the wrapped critic and go backward once from loss + penalty.
A penalty alone leaves some parameters without a gradient, the last bias for one, which the next
forward pass refuses; where it has to go backward alone, add ``0 * logits.sum()``.
``static_graph=True`` is refused in the first pass, where it would leave gradients unreduced.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from gankernels import _groups, ops
from gankernels._checks import check_floats, check_number, check_tensors, kind
from gankernels._critics import (
    Calls,
    Critic,
    Samples,
    Scores,
    check_counts,
    check_inv_scale,
    check_one_kind,
    critic_gradients,
    draw_like,
    gradients,
    inference_mode,
    inputs_of,
    listed,
    outside_inference,
    paired,
    read_scores,
    states_of,
    sum_per_score,
)
from gankernels._dtypes import accumulation_dtype
from gankernels._groups import Groups, check_groups
from gankernels._scores import Pick
from gankernels._warnings import warn_once
from gankernels.ops._spectral_norm_checks import check_iteration

__all__ = [
    "approx_r1_penalty",
    "approx_r2_penalty",
    "check_independent_samples",
    "consensus_penalty",
    "dragan_penalty",
    "r1_penalty",
    "r1_r2_penalty",
    "r2_penalty",
    "roth_penalty",
    "spectral_norm_regularization",
    "wgan_gp_penalty",
    "wgan_lp_penalty",
    "zero_centered_penalty",
]


#: Settings besides the hyper-parameters: of penalties that call the critic, that draw, and so on.
_COMMON = ("inv_scale", "groups", "scores")
_DRAWS = (*_COMMON, "generator")
_CENTERED = ("weight", "center", *_DRAWS)
_APPROXIMATE = ("weight", "sigma", "gamma", "groups", "scores", "generator")


# --- at samples that the critic has seen already -------------------------------------------------


def r1_penalty(
    logits: Scores,
    real: Samples,
    *,
    gamma: float = 10.0,
    inv_scale: Tensor | None = None,
    groups: Groups = None,
) -> Tensor:
    """R1: ``gamma / 2 * mean ||grad D(x)||^2`` at real samples.

    Mescheder et al. 2018 (arXiv 1801.04406), equation 9. The 1/2 is the paper's.

    Args:
        logits: ``D(real)``, with its graph; neither averaged nor detached, and nothing but scores.
        real: what ``D`` was given, requiring a gradient: ``real.requires_grad_()`` before the call.
            Where ``D`` begins in place, give it ``real.clone()``, and ``real`` here.
        gamma: not negative.
        inv_scale, groups: see the module's text.

    Raises:
        TypeError, ValueError: if an argument is none of the above, or ``logits`` do not depend on
            ``real``.
    """
    return _squared("r1_penalty", logits, real, gamma, inv_scale, groups, name="real")


def r2_penalty(
    logits: Scores,
    fake: Samples,
    *,
    gamma: float = 10.0,
    inv_scale: Tensor | None = None,
    groups: Groups = None,
) -> Tensor:
    """R2: ``gamma / 2 * mean ||grad D(x)||^2`` at generated samples.

    Mescheder et al. 2018 (arXiv 1801.04406), equation 10. ``fake`` is a detached sample of the
    generator that requires a gradient, ``fake.detach().requires_grad_()``; all else as for
    :func:`r1_penalty`.
    """
    return _squared("r2_penalty", logits, fake, gamma, inv_scale, groups, name="fake")


def roth_penalty(
    real_logits: Tensor,
    fake_logits: Tensor,
    real: Samples,
    fake: Samples,
    *,
    gamma: float = 2.0,
    inv_scale: Tensor | None = None,
    groups: Groups = None,
) -> Tensor:
    """``gamma / 2 * mean[(1 - s(D(x)))^2 ||grad D(x)||^2 + s(D(G))^2 ||grad D(G)||^2]``.

    The regulariser of Roth et al. 2017 (arXiv 1705.09367) for the Jensen-Shannon divergence, with s
    the sigmoid; ``gamma`` 2, or 0.1, annealed by the caller. The weights ``(1 - s)^2`` and ``s^2``
    carry gradient.

    Args:
        real_logits, fake_logits: ``D(real)``, ``D(fake)``: one score a sample, (B,) or (B, 1, ...).
        real, fake: what ``D`` was given, requiring gradients.
        gamma: not negative.
        inv_scale, groups: see the module's text; ``groups`` of both alike.

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """
    op = "roth_penalty"
    check_number(op, "gamma", gamma)
    total: Any = 0.0
    for name, logits, x, sign in (("real", real_logits, real, -1), ("fake", fake_logits, fake, 1)):
        samples = inputs_of(op, name, x)
        rows = samples[0].shape[0]
        check_groups(op, groups, rows, samples[0].device)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"{op}: expected {name}_logits to be a tensor, got {kind(logits)}; pass the scores "
                "alone, of one scale"
            )
        check_floats(op, f"{name}_logits", logits)
        count = _groups.score_count(groups, rows, [logits])
        if logits.dim() == 0 or logits.numel() != count:
            raise ValueError(
                f"{op}: expected one score a sample, {count}, got {name}_logits of "
                f"shape {tuple(logits.shape)}; the weights are not defined for several"
            )
        check_counts(op, [logits], groups, rows)
        grads = gradients(op, [logits], samples, name, inv_scale)
        score = logits.reshape(-1).to(accumulation_dtype(logits.dtype))
        total = total + _groups.penalty(
            op,
            grads,
            groups,
            count,
            weight=gamma / 2,
            sample_weight=torch.sigmoid(sign * score).square(),
            inv_scale=inv_scale,
        )
    return total


def _squared(
    op: str,
    logits: Scores,
    x: Samples,
    gamma: float,
    inv_scale: Tensor | None,
    groups: Groups,
    name: str,
) -> Tensor:
    check_number(op, "gamma", gamma)
    samples = inputs_of(op, name, x)
    rows = samples[0].shape[0]
    check_groups(op, groups, rows, samples[0].device)
    scores = read_scores(op, logits, None, f"pass the scores alone: D({name})[0] if first")
    count = check_counts(op, scores, groups, rows)
    grads = gradients(op, scores, samples, name, inv_scale)
    return _groups.penalty(op, grads, groups, count, weight=gamma / 2, inv_scale=inv_scale)


# --- at samples made here ------------------------------------------------------------------------


def r1_r2_penalty(
    D: Critic,
    real: Samples,
    fake: Samples,
    *args: Any,
    gamma: float = 10.0,
    inv_scale: Tensor | None = None,
    groups: int | None = None,
    scores: Pick = None,
    **kwargs: Any,
) -> Tensor:
    """R1 + R2 from one pass of the critic over both batches, concatenated.

    ``gamma / 2 * (mean ||grad D(x)||^2 + mean ||grad D(G)||^2)``: both terms of Mescheder et al.
    2018 (arXiv 1801.04406), as R3GAN uses them (Huang et al. 2024, arXiv 2501.05441).

    Args:
        D: the critic; see the module's text.
        real, fake: (B, ...) and (B', ...), of one shape but for the batch.
        *args, **kwargs: passed to ``D``. Tensors with a first dimension of B = B', or of as many
            groups, such as labels, are repeated for the second half, those in lists, tuples and
            dicts, too; tensors of B + B' are taken as they are.
        gamma: not negative.
        inv_scale, scores: see the module's text.
        groups: likewise, a number of rows that both batches can be divided by.

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """
    op = "r1_r2_penalty"
    check_number(op, "gamma", gamma)
    calls = Calls(op, D, args, kwargs, own=("gamma", *_COMMON), scores=scores)
    pairs = paired(op, real, fake, same_batch=False)
    reals, fakes = pairs[0][0].shape[0], pairs[0][1].shape[0]
    if isinstance(groups, Tensor):
        raise TypeError(
            f"{op}: expected groups to be a number of consecutive rows, got a tensor; call "
            "r1_penalty and r2_penalty with the groups of each batch"
        )
    for rows in (reals, fakes):
        check_groups(op, groups, rows, pairs[0][0].device)
    firsts = (reals, reals // (groups or 1)) if reals == fakes else ()

    calls.args = [_twice(value, firsts) for value in args]
    calls.kwargs = {name: _twice(value, firsts) for name, value in kwargs.items()}
    x = [torch.cat(pair) for pair in pairs]
    grads, _ = critic_gradients(calls, x, isinstance(real, Tensor), inv_scale, groups)

    def mean(grads: list[Tensor], weight: float) -> Tensor:
        count = grads[0].shape[0] // (groups or 1)
        return _groups.penalty(op, grads, groups, count, weight=weight, inv_scale=inv_scale)

    if reals == fakes:
        return mean(grads, gamma)
    return mean([g[:reals] for g in grads], gamma / 2) + mean([g[reals:] for g in grads], gamma / 2)


def _twice(value: Any, firsts: tuple[int, ...]) -> Any:
    """Labels for both halves of a batch, by their first dimension."""
    if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] in firsts:
        return torch.cat((value, value))
    if type(value) in (list, tuple):
        return type(value)([_twice(x, firsts) for x in value])
    if type(value) is dict:
        return {key: _twice(x, firsts) for key, x in value.items()}
    return value


def wgan_gp_penalty(
    D: Critic,
    real: Samples,
    fake: Samples,
    *args: Any,
    weight: float = 10.0,
    center: float = 1.0,
    inv_scale: Tensor | None = None,
    groups: Groups = None,
    scores: Pick = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Tensor:
    """WGAN-GP: ``weight * mean (||grad D(x_hat)|| - center)^2``.

    Gulrajani et al. 2017 (arXiv 1704.00028), equation 3, with ``x_hat = eps real + (1 - eps) fake``
    and one eps ~ U[0, 1) a sample, or a group. The paper trains the critic 5 steps to the
    generator's one, with Adam(1e-4, betas=(0, 0.9)), and no batch normalisation in the critic.

    Args:
        D: the critic; see the module's text.
        real, fake: of one shape. ``fake`` takes the dtype of ``real``.
        *args, **kwargs: passed to ``D``.
        weight, center: not negative.
        inv_scale, groups, scores: see the module's text.
        generator: where eps is drawn from; on the samples' device.

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """
    calls = Calls("wgan_gp_penalty", D, args, kwargs, own=_CENTERED, scores=scores)
    return _interpolated(calls, real, fake, weight, center, False, inv_scale, groups, generator)


def wgan_lp_penalty(
    D: Critic,
    real: Samples,
    fake: Samples,
    *args: Any,
    weight: float = 10.0,
    center: float = 1.0,
    inv_scale: Tensor | None = None,
    groups: Groups = None,
    scores: Pick = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Tensor:
    """WGAN-LP, one-sided: ``weight * mean max(0, ||grad D(x_hat)|| - center)^2``.

    Petzka et al. 2018 (arXiv 1709.08894). All else as for :func:`wgan_gp_penalty`.
    """
    calls = Calls("wgan_lp_penalty", D, args, kwargs, own=_CENTERED, scores=scores)
    return _interpolated(calls, real, fake, weight, center, True, inv_scale, groups, generator)


def zero_centered_penalty(
    D: Critic,
    real: Samples,
    fake: Samples,
    *args: Any,
    weight: float = 10.0,
    inv_scale: Tensor | None = None,
    groups: Groups = None,
    scores: Pick = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Tensor:
    """``weight * mean ||grad D(x_hat)||^2`` between real and generated samples.

    The zero-centred penalty of Mescheder et al. 2018 (arXiv 1801.04406) at the interpolates of
    WGAN-GP; without a 1/2. All else as for :func:`wgan_gp_penalty`.
    """
    calls = Calls("zero_centered_penalty", D, args, kwargs, own=("weight", *_DRAWS), scores=scores)
    return _interpolated(calls, real, fake, weight, 0.0, False, inv_scale, groups, generator)


def dragan_penalty(
    D: Critic,
    real: Samples,
    *args: Any,
    weight: float = 10.0,
    k: float = 1.0,
    noise: Literal["uniform", "gaussian"] = "uniform",
    scale: float | None = None,
    inv_scale: Tensor | None = None,
    groups: Groups = None,
    scores: Pick = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Tensor:
    """DRAGAN: ``weight * mean (||grad D(x + delta)|| - k)^2`` around real samples.

    Kodali et al. 2017 (arXiv 1705.07215), algorithm 1.

    Args:
        D: the critic; see the module's text.
        real: (B, ...).
        *args, **kwargs: passed to ``D``.
        weight, k: not negative.
        noise: ``"uniform"``, the authors' code: ``delta = scale * std(real) * U[0, 1)`` with the
            standard deviation over the whole batch; ``"gaussian"``, the paper:
            ``delta ~ N(0, scale I)``.
        scale: by default 0.5 (uniform) or 10, the paper's c, a variance (gaussian).
        inv_scale, groups, scores: see the module's text.
        generator: where delta is drawn from; on the samples' device.

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """
    op = "dragan_penalty"
    own = ("weight", "k", "noise", "scale", *_DRAWS)
    calls = Calls(op, D, args, kwargs, own=own, scores=scores)
    check_number(op, "weight", weight)
    check_number(op, "k", k)
    if not isinstance(noise, str) or noise not in ("uniform", "gaussian"):
        raise ValueError(f'{op}: expected noise "uniform" or "gaussian", got {noise!r}')
    scale = {"uniform": 0.5, "gaussian": 10.0}[noise] if scale is None else scale
    check_number(op, "scale", scale)
    samples = listed(op, "real", real)
    check_one_kind(op, "real", samples)
    check_groups(op, groups, samples[0].shape[0], samples[0].device)
    points = []
    for x in samples:
        x = x.detach()
        if noise == "uniform":
            delta = draw_like(op, torch.rand, x, x.shape, generator) * (scale * x.std())
        else:
            delta = draw_like(op, torch.randn, x, x.shape, generator) * scale**0.5
        points.append(x + delta)
    grads, count = critic_gradients(calls, points, isinstance(real, Tensor), inv_scale, groups)
    return _groups.penalty(op, grads, groups, count, center=k, weight=weight, inv_scale=inv_scale)


def _interpolated(
    calls: Calls,
    real: Samples,
    fake: Samples,
    weight: float,
    center: float,
    one_sided: bool,
    inv_scale: Tensor | None,
    groups: Groups,
    generator: torch.Generator | None,
) -> Tensor:
    op = calls.op
    check_number(op, "weight", weight)
    check_number(op, "center", center)
    pairs = paired(op, real, fake, same_batch=True)
    first = pairs[0][0]
    check_groups(op, groups, first.shape[0], first.device)
    rows = first.shape[:1] if not isinstance(groups, int) else (len(first) // groups,)
    eps = draw_like(op, torch.rand, first, rows, generator)
    if isinstance(groups, int):
        eps = eps.repeat_interleave(groups)
    elif groups is not None:  # the number of groups is not known, but is hardly above that of rows
        eps = eps[groups.long() % len(first)]
    points = [torch.lerp(y, x, eps.to(x.dtype).view(-1, *[1] * (x.dim() - 1))) for x, y in pairs]
    grads, count = critic_gradients(calls, points, isinstance(real, Tensor), inv_scale, groups)
    return _groups.penalty(
        op,
        grads,
        groups,
        count,
        center=center,
        one_sided=one_sided,
        weight=weight,
        inv_scale=inv_scale,
    )


# --- without gradients of the input --------------------------------------------------------------


def approx_r1_penalty(
    D: Critic,
    x: Samples,
    *args: Any,
    sigma: float = 0.01,
    weight: float = 100.0,
    gamma: float | None = None,
    groups: Groups = None,
    scores: Pick = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Tensor:
    """Approximate R1 by finite differences: ``weight * mean (D(x) - D(x + sigma noise))^2``.

    Lin et al. 2025 (arXiv 2501.08316), for critics whose second derivatives cost too much; ``x``
    are real samples. In the mean over the noise, N(0, I), and for small sigma it is R1 with
    ``weight = gamma / (2 sigma^2)``. Both passes carry gradient; scores are subtracted in float32.

    Args:
        D: the critic, called twice; see the module's text. In both passes spectral normalization
            has the same u and v, which move once.
        x: (B, ...).
        *args, **kwargs: passed to ``D``.
        sigma: positive; the paper takes 0.01 for images and 0.1 for videos.
        weight: not negative.
        gamma: where given, ``weight`` is ``gamma / (2 sigma^2)``.
        groups, scores: see the module's text.
        generator: where the noise is drawn from; on the samples' device.

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """
    calls = Calls("approx_r1_penalty", D, args, kwargs, own=_APPROXIMATE, scores=scores, passes=2)
    return _approximate(calls, x, sigma, weight, gamma, groups, generator)


def approx_r2_penalty(
    D: Critic,
    x: Samples,
    *args: Any,
    sigma: float = 0.01,
    weight: float = 100.0,
    gamma: float | None = None,
    groups: Groups = None,
    scores: Pick = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Tensor:
    """:func:`approx_r1_penalty` at generated samples ``x``, for R2."""
    calls = Calls("approx_r2_penalty", D, args, kwargs, own=_APPROXIMATE, scores=scores, passes=2)
    return _approximate(calls, x, sigma, weight, gamma, groups, generator)


def _approximate(
    calls: Calls,
    x: Samples,
    sigma: float,
    weight: float,
    gamma: float | None,
    groups: Groups,
    generator: torch.Generator | None,
) -> Tensor:
    op = calls.op
    check_number(op, "sigma", sigma, positive=True)
    check_number(op, "weight", weight)
    if gamma is not None:
        check_number(op, "gamma", gamma)
        weight = gamma / (2 * sigma**2)
    points = [p.detach() for p in listed(op, "x", x)]
    rows = points[0].shape[0]
    check_groups(op, groups, rows, points[0].device)
    noisy = [p + sigma * draw_like(op, torch.randn, p, p.shape, generator) for p in points]
    single = isinstance(x, Tensor)
    sums = [
        sum_per_score(op, calls.scores(p[0] if single else p), groups, rows)
        for p in (points, noisy)
    ]
    return weight * (sums[0] - sums[1]).square().mean()


# --- of parameters -------------------------------------------------------------------------------


def consensus_penalty(
    losses: Sequence[Tensor],
    parameters: Sequence[Iterable[Tensor]],
    *,
    gamma: float = 10.0,
    inv_scale: Tensor | None = None,
) -> Tensor:
    """Consensus optimisation: ``gamma / 2 * ||v||^2``, v the gradients of the game.

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
        TypeError, ValueError: if an argument is none of the above.
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
    found: list[Tensor] = []
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
        found += [g.unsqueeze(0) for g in grads if g is not None and g.numel() > 0]
    if not found:
        raise ValueError(f"{op}: expected losses that depend on the parameters, got none that does")
    if len({(g.dtype, g.device) for g in found}) > 1:
        dtype = functools.reduce(torch.promote_types, (accumulation_dtype(g.dtype) for g in found))
        found = [g.to(found[0].device, dtype) for g in found]
    return ops.gradient_penalty(found, weight=gamma / 2, inv_scale=inv_scale)


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
        TypeError, ValueError: if an argument is none of the above.

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
        with torch.autocast(w.device.type, enabled=False):
            matrix = w.reshape(w.shape[0], -1).to(accumulation_dtype(w.dtype))
            sigma = torch.dot(left.to(matrix.dtype), torch.mv(matrix, right.to(matrix.dtype)))
        total = total + sigma.square()
    return weight / 2 * total


# --- guardrails ----------------------------------------------------------------------------------


def check_independent_samples(
    D: Critic,
    x: Samples,
    *args: Any,
    groups: Groups = None,
    scores: Pick = None,
    **kwargs: Any,
) -> bool:
    """Whether ``D`` scores every sample by itself, as every gradient penalty takes for granted.

    Batch normalisation in training mode, and all else that mixes the samples of a batch, makes the
    gradient of one sample's score reach the others, and the norms wrong (by several percent). Costs
    a forward and a backward pass; call it once. Warns with the cure where it finds that.

    Args:
        D, x, *args, groups, scores, **kwargs: as for :func:`wgan_gp_penalty`; at least 2 samples,
            or groups of them. The buffers of ``D`` are put back to what they were, if it is a
            module, or a lambda, partial or method that mentions it.

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """
    op = "check_independent_samples"
    calls = Calls(op, D, args, kwargs, own=("groups", "scores"), scores=scores)
    samples = listed(op, "x", x)
    if any(p.is_meta for p in samples):
        raise ValueError(f"{op}: expected x with values to look at, got meta tensors")
    rows = samples[0].shape[0]
    check_groups(op, groups, rows, samples[0].device)
    index = torch.arange(rows, device=samples[0].device)
    if isinstance(groups, int):
        index = index // groups
    elif groups is not None:
        index = groups.long()
    if not (others := index != index[0]).any():
        what = "samples" if groups is None else "groups"
        raise ValueError(f"{op}: expected at least 2 {what}, got 1")
    own = int(index[0])
    before = states_of(D, moving=False)
    with outside_inference(), torch.enable_grad():
        points = [p.detach().clone().requires_grad_() for p in samples]
        outputs = calls.scores(points[0] if isinstance(x, Tensor) else points)
        sums = sum_per_score(op, outputs, groups, rows)
        if not own < len(sums):
            raise ValueError(
                f"{op}: expected groups below the number of scores, {len(sums)}, got {own}"
            )
        first = torch.cat((sums[:own].detach(), sums[own : own + 1], sums[own + 1 :].detach()))
        grads = gradients(op, [first], points, "the samples", create_graph=False)
    for state in before:
        state.put_back()
    independent = not any(g[others].any() for g in grads)
    if not independent:
        warn_once(
            "coupled",
            f"{op}: the score of a sample depends on other samples of the batch; gradient "
            "penalties are then wrong. Put layer, instance or group normalisation in the place of "
            "batch normalisation in the critic, or use none.",
        )
    return independent
