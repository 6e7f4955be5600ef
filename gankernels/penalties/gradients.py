"""Penalties of gradients with respect to the input."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from gankernels._checks import check_floats, check_number, kind
from gankernels._critics import groups as _groups
from gankernels._critics.calls import Calls, Critic, Scores, read_scores
from gankernels._critics.gradients import (
    check_counts,
    critic_gradients,
    gradients,
)
from gankernels._critics.groups import Groups, check_groups
from gankernels._critics.samples import (
    Samples,
    check_one_kind,
    draw_like,
    inputs_of,
    listed,
    paired,
)
from gankernels._critics.scores import Pick
from gankernels._dtypes import accumulation_dtype

#: Settings besides the hyper-parameters: of penalties that call the critic, that draw, and so on.
_COMMON = ("inv_scale", "groups", "scores")
_DRAWS = (*_COMMON, "generator")
_CENTERED = ("weight", "center", *_DRAWS)


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
        TypeError, ValueError: if an argument has an unsupported type or value, or ``logits`` do not
            depend on ``real``.
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

    The regularizer of Roth et al. 2017 (arXiv 1705.09367) for the Jensen-Shannon divergence, with s
    the sigmoid; ``gamma`` 2, or 0.1, annealed by the caller. The weights ``(1 - s)^2`` and ``s^2``
    carry gradient.

    Args:
        real_logits, fake_logits: ``D(real)``, ``D(fake)``: one score a sample, (B,) or (B, 1, ...).
        real, fake: what ``D`` was given, requiring gradients.
        gamma: not negative.
        inv_scale, groups: see the module's text; ``groups`` of both alike.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
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
        TypeError, ValueError: if an argument has an unsupported type or value.
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
    generator's one, with Adam(1e-4, betas=(0, 0.9)), and no batch normalization in the critic.

    Args:
        D: the critic; see the module's text.
        real, fake: of one shape. ``fake`` takes the dtype of ``real``.
        *args, **kwargs: passed to ``D``.
        weight, center: not negative.
        inv_scale, groups, scores: see the module's text.
        generator: where eps is drawn from; on the samples' device.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
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

    The zero-centered penalty of Mescheder et al. 2018 (arXiv 1801.04406) at the interpolates of
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
        TypeError, ValueError: if an argument has an unsupported type or value.
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
