"""Penalties of gradients with respect to the input."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from gankernels._checks import check_floats, check_number, is_choice, kind
from gankernels._critics import groups as _groups
from gankernels._critics.calls import Calls, Critic, Scores, did_you_mean, read_scores
from gankernels._critics.gradients import check_counts, gradients
from gankernels._critics.groups import Groups, check_groups
from gankernels._critics.norms import (
    COMMON,
    Heads,
    Measured,
    Method,
    Norms,
    Reduction,
    Result,
    Weight,
    check_weight,
)
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

_AT_SAMPLES = ("gamma", "center", "D", *COMMON)


# --- at real, or at generated samples ------------------------------------------------------------


def r1_penalty(
    logits: Scores | Critic,
    real: Samples,
    *args: Any,
    gamma: Weight = 10.0,
    center: float = 0.0,
    D: Critic | None = None,
    method: Method = "double_backward",
    sigma: float = 0.01,
    heads: Heads = "sum",
    first: int | None = None,
    sample_weight: Tensor | None = None,
    allow_unused: bool = False,
    reduction: Reduction = "mean",
    return_raw: bool = False,
    inv_scale: Tensor | None = None,
    groups: Groups = None,
    scores: Pick = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Result:
    """R1: ``gamma / 2 * mean ||grad D(x)||^2`` at real samples.

    Mescheder et al. 2018 (arXiv 1801.04406), equation 9. The 1/2 is the paper's. ::

        r1_penalty(logits, real)  # logits = D(real), of which real.requires_grad_() is an input
        r1_penalty(D, real, labels, method="difference")  # D gets called
        r1_penalty(logits, real, labels, D=D, method="difference")  # D gets called once

    Args:
        logits: ``D(real)``, with its graph; neither averaged nor detached, and nothing but scores.
            Or the critic itself, which is then called with the samples; see the module's text.
        real: what ``D`` was given, requiring a gradient: ``real.requires_grad_()`` before the call.
            Where ``D`` begins in place, give it ``real.clone()``, and ``real`` here. Where the
            critic is given, any samples.
        *args, **kwargs: passed to the critic.
        gamma: not negative.
        center: of the penalty, ``gamma / 2 * mean (||grad D(x)|| - center)^2``; not negative.
        D: the critic, for methods that call it beside ``logits``.
        method, sigma, heads, first, sample_weight, allow_unused, reduction, return_raw, inv_scale,
        groups, scores, generator: see the module's text.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value, or ``logits`` do not
            depend on ``real``.
    """
    op = "r1_penalty"
    how = Norms(op, method, sigma, heads, allow_unused, inv_scale, groups, generator)
    how.give(first, sample_weight, reduction, return_raw)
    return _at_samples(how, "real", logits, real, args, kwargs, gamma, center, D, scores)


def r2_penalty(
    logits: Scores | Critic,
    fake: Samples,
    *args: Any,
    gamma: Weight = 10.0,
    center: float = 0.0,
    D: Critic | None = None,
    method: Method = "double_backward",
    sigma: float = 0.01,
    heads: Heads = "sum",
    first: int | None = None,
    sample_weight: Tensor | None = None,
    allow_unused: bool = False,
    reduction: Reduction = "mean",
    return_raw: bool = False,
    inv_scale: Tensor | None = None,
    groups: Groups = None,
    scores: Pick = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Result:
    """R2: ``gamma / 2 * mean ||grad D(x)||^2`` at generated samples.

    Mescheder et al. 2018 (arXiv 1801.04406), equation 10. ``fake`` is a detached sample of the
    generator that requires a gradient, ``fake.detach().requires_grad_()``; all else as for
    :func:`r1_penalty`.
    """
    op = "r2_penalty"
    how = Norms(op, method, sigma, heads, allow_unused, inv_scale, groups, generator)
    how.give(first, sample_weight, reduction, return_raw)
    return _at_samples(how, "fake", logits, fake, args, kwargs, gamma, center, D, scores)


def _at_samples(
    how: Norms,
    name: str,
    logits: Any,
    x: Samples,
    args: Any,
    kwargs: Any,
    gamma: Weight,
    center: float,
    D: Critic | None,
    pick: Pick,
) -> Result:
    op = how.op
    check_weight(op, "gamma", gamma)
    check_number(op, "center", center)
    single = isinstance(x, Tensor)
    weight = gamma / 2
    if callable(logits) and not isinstance(logits, Tensor):
        if D is not None:
            raise TypeError(f"{op}: expected D= beside logits only, got two critics")
        called = how.calls(logits, args, kwargs, _AT_SAMPLES, pick)
        points = how.first_of(called, name, [p.detach() for p in listed(op, name, x)])
        check_one_kind(op, name, points)
        return how.at(called, points, single).penalty(weight=weight, center=center)
    calls: Calls | None = None
    if D is not None:
        calls = how.calls(D, args, kwargs, _AT_SAMPLES, pick, seen=True)
    elif how.method != "double_backward":
        raise TypeError(
            f'{op}: expected D=, the critic, which method="{how.method}" calls once more, got '
            "logits alone"
        )
    elif args or kwargs:
        got = f"{len(args)} more; its settings are keywords"
        if not args:
            keyword = next(iter(kwargs))
            got = f"{keyword}={did_you_mean(keyword, _AT_SAMPLES)}"
        raise TypeError(
            f"{op}: expected logits and {name} alone where no critic is called, got {got}"
        )
    samples = inputs_of(op, name, x)
    how.check_samples(name, samples)
    how.check_sample_weight(len(samples[0]) if how.first is None else how.first, samples[0].device)
    found = read_scores(op, logits, pick, f"pass the scores alone: D({name})[0] if first")
    return how.of(found, samples, name, calls, single).penalty(weight=weight, center=center)


# --- at both, weighted by scores -----------------------------------------------------------------


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


# --- at samples made here ------------------------------------------------------------------------


def r1_r2_penalty(
    D: Critic,
    real: Samples,
    fake: Samples,
    *args: Any,
    gamma: Weight = 10.0,
    method: Method = "double_backward",
    sigma: float = 0.01,
    heads: Heads = "sum",
    first: int | None = None,
    sample_weight: Tensor | None = None,
    allow_unused: bool = False,
    reduction: Reduction = "mean",
    return_raw: bool = False,
    inv_scale: Tensor | None = None,
    groups: int | None = None,
    scores: Pick = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Result:
    """R1 + R2 from one pass of the critic over both batches, concatenated.

    ``gamma / 2 * (mean ||grad D(x)||^2 + mean ||grad D(G)||^2)``: both terms of Mescheder et al.
    2018 (arXiv 1801.04406), as R3GAN uses them (Huang et al. 2025, arXiv 2501.05441).

    Args:
        D: the critic; see the module's text.
        real, fake: (B, ...) and (B', ...), of one shape but for the batch.
        *args, **kwargs: passed to ``D``. Tensors with a first dimension of B = B', or of as many
            groups, such as labels, are repeated for the second half, those in lists, tuples and
            dicts, too; tensors of B + B' are taken as they are.
        gamma: not negative.
        groups: likewise, a number of rows that both batches can be divided by.
        first: of both batches.
        sample_weight: (B + B',), of the real ones first; of both firsts where ``first`` is given.
        method, sigma, heads, allow_unused, reduction, return_raw, inv_scale, scores, generator: see
            the module's text. Without a reduction the result is (B + B',), and the raw value is the
            sum of both means.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """
    op = "r1_r2_penalty"
    if isinstance(groups, Tensor):
        raise TypeError(
            f"{op}: expected groups to be a number of consecutive rows, got a tensor; call "
            "r1_penalty and r2_penalty with the groups of each batch"
        )
    how = Norms(op, method, sigma, heads, allow_unused, inv_scale, groups, generator)
    how.give(first, sample_weight, reduction, return_raw)
    check_weight(op, "gamma", gamma)
    calls = how.calls(D, args, kwargs, ("gamma", *COMMON), scores)
    pairs = paired(op, real, fake, same_batch=False)
    for i, name in enumerate(("real", "fake")):
        how.check_samples(name, [pair[i] for pair in pairs])
    rows = [len(x) for x in pairs[0]]
    counts = rows if first is None else [first, first]
    how.check_sample_weight(sum(counts), pairs[0][0].device)
    calls.repeat_for_halves(rows, first, groups or 1)
    x = [torch.cat([half[:n] for half, n in zip(pair, counts, strict=True)]) for pair in pairs]
    measured = how.at(calls, x, isinstance(real, Tensor))
    if reduction == "none":
        return measured.penalty(weight=gamma / 2)
    if counts[0] == counts[1] and not return_raw:
        return measured.penalty(weight=gamma)
    halves = [
        measured.part(begin, end).penalty(weight=gamma / 2)
        for begin, end in ((0, counts[0]), (counts[0], sum(counts)))
    ]
    return tuple(a + b for a, b in zip(*halves, strict=True)) if return_raw else sum(halves)


def wgan_gp_penalty(
    D: Critic,
    real: Samples,
    fake: Samples,
    *args: Any,
    weight: Weight = 10.0,
    center: float = 1.0,
    method: Method = "double_backward",
    sigma: float = 0.01,
    heads: Heads = "sum",
    first: int | None = None,
    sample_weight: Tensor | None = None,
    allow_unused: bool = False,
    reduction: Reduction = "mean",
    return_raw: bool = False,
    inv_scale: Tensor | None = None,
    groups: Groups = None,
    scores: Pick = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Result:
    """WGAN-GP: ``weight * mean (||grad D(x_hat)|| - center)^2``.

    Gulrajani et al. 2017 (arXiv 1704.00028), equation 3, with ``x_hat = eps real + (1 - eps) fake``
    and one eps ~ U[0, 1) a sample, or a group. The paper trains the critic 5 steps to the
    generator's one, with Adam(1e-4, betas=(0, 0.9)), and no batch normalization in the critic.

    Args:
        D: the critic; see the module's text.
        real, fake: of one shape. ``fake`` takes the dtype of ``real``.
        *args, **kwargs: passed to ``D``.
        weight, center: not negative.
        method, sigma, heads, first, sample_weight, allow_unused, reduction, return_raw, inv_scale,
        groups, scores: see the module's text.
        generator: where eps is drawn from; on the samples' device.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """
    op = "wgan_gp_penalty"
    how = Norms(op, method, sigma, heads, allow_unused, inv_scale, groups, generator)
    how.give(first, sample_weight, reduction, return_raw)
    calls = how.calls(D, args, kwargs, ("weight", "center", *COMMON), scores)
    return _interpolated(how, calls, real, fake, weight, center, False)


def wgan_lp_penalty(
    D: Critic,
    real: Samples,
    fake: Samples,
    *args: Any,
    weight: Weight = 10.0,
    center: float = 1.0,
    method: Method = "double_backward",
    sigma: float = 0.01,
    heads: Heads = "sum",
    first: int | None = None,
    sample_weight: Tensor | None = None,
    allow_unused: bool = False,
    reduction: Reduction = "mean",
    return_raw: bool = False,
    inv_scale: Tensor | None = None,
    groups: Groups = None,
    scores: Pick = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Result:
    """WGAN-LP, one-sided: ``weight * mean max(0, ||grad D(x_hat)|| - center)^2``.

    Petzka et al. 2018 (arXiv 1709.08894). All else as for :func:`wgan_gp_penalty`.
    """
    op = "wgan_lp_penalty"
    how = Norms(op, method, sigma, heads, allow_unused, inv_scale, groups, generator)
    how.give(first, sample_weight, reduction, return_raw)
    calls = how.calls(D, args, kwargs, ("weight", "center", *COMMON), scores)
    return _interpolated(how, calls, real, fake, weight, center, True)


def zero_centered_penalty(
    D: Critic,
    real: Samples,
    fake: Samples,
    *args: Any,
    weight: Weight = 10.0,
    method: Method = "double_backward",
    sigma: float = 0.01,
    heads: Heads = "sum",
    first: int | None = None,
    sample_weight: Tensor | None = None,
    allow_unused: bool = False,
    reduction: Reduction = "mean",
    return_raw: bool = False,
    inv_scale: Tensor | None = None,
    groups: Groups = None,
    scores: Pick = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Result:
    """``weight * mean ||grad D(x_hat)||^2`` between real and generated samples.

    The zero-centered penalty of Mescheder et al. 2018 (arXiv 1801.04406) at the interpolates of
    WGAN-GP; without a 1/2. All else as for :func:`wgan_gp_penalty`.
    """
    op = "zero_centered_penalty"
    how = Norms(op, method, sigma, heads, allow_unused, inv_scale, groups, generator)
    how.give(first, sample_weight, reduction, return_raw)
    calls = how.calls(D, args, kwargs, ("weight", *COMMON), scores)
    return _interpolated(how, calls, real, fake, weight, 0.0, False)


def max_gradient_penalty(
    D: Critic,
    real: Samples,
    fake: Samples,
    *args: Any,
    weight: Weight = 10.0,
    method: Method = "double_backward",
    sigma: float = 0.01,
    first: int | None = None,
    allow_unused: bool = False,
    return_raw: bool = False,
    inv_scale: Tensor | None = None,
    groups: Groups = None,
    scores: Pick = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Result:
    """``weight * (max ||grad D(x_hat)||)^2``: of the steepest sample of the batch.

    Zhou et al. 2019 (arXiv 1902.05687), Lipschitz GANs, at the interpolates of WGAN-GP; the maximum
    stands for the Lipschitz constant. Samples that share it share the gradient. With several
    processes it is the maximum of the process's own batch. Only ``method="double_backward"`` and
    ``"difference"``: by noise no norm is known. All else as for :func:`wgan_gp_penalty`.
    """
    op = "max_gradient_penalty"
    how = Norms(op, method, sigma, "sum", allow_unused, inv_scale, groups, generator)
    how.give(first, None, "none", return_raw)
    check_weight(op, "weight", weight)
    own = [name for name in COMMON if name not in ("heads", "sample_weight", "reduction")]
    calls = how.calls(D, args, kwargs, ("weight", *own), scores)
    _refuse_noise(how)
    found = _at_interpolates(how, calls, real, fake).penalty(weight=weight)
    return tuple(x.amax() for x in found) if return_raw else found.amax()


def dragan_penalty(
    D: Critic,
    real: Samples,
    *args: Any,
    weight: Weight = 10.0,
    k: float = 1.0,
    noise: Literal["uniform", "gaussian"] = "uniform",
    scale: float | None = None,
    method: Method = "double_backward",
    sigma: float = 0.01,
    heads: Heads = "sum",
    first: int | None = None,
    sample_weight: Tensor | None = None,
    allow_unused: bool = False,
    reduction: Reduction = "mean",
    return_raw: bool = False,
    inv_scale: Tensor | None = None,
    groups: Groups = None,
    scores: Pick = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Result:
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
        method, sigma, heads, first, sample_weight, allow_unused, reduction, return_raw, inv_scale,
        groups, scores: see the module's text.
        generator: where delta is drawn from; on the samples' device.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """
    op = "dragan_penalty"
    how = Norms(op, method, sigma, heads, allow_unused, inv_scale, groups, generator)
    how.give(first, sample_weight, reduction, return_raw)
    calls = how.calls(D, args, kwargs, ("weight", "k", "noise", "scale", *COMMON), scores)
    check_weight(op, "weight", weight)
    check_number(op, "k", k)
    if not is_choice(noise, ("uniform", "gaussian")):
        raise ValueError(f'{op}: expected noise "uniform" or "gaussian", got {noise!r}')
    scale = {"uniform": 0.5, "gaussian": 10.0}[noise] if scale is None else scale
    check_number(op, "scale", scale)
    samples = listed(op, "real", real)
    check_one_kind(op, "real", samples)
    how.check_samples("real", samples)
    if noise == "uniform" and any(x.numel() == 1 for x in samples):
        raise ValueError(
            f"{op}: expected real of more than one number, whose standard deviation is the size of "
            'uniform noise, got one; take noise="gaussian"'
        )
    points = []
    for x in samples:
        x = x.detach()
        if noise == "uniform":
            delta = draw_like(op, torch.rand, x, x.shape, generator) * (scale * x.std())
        else:
            delta = draw_like(op, torch.randn, x, x.shape, generator) * scale**0.5
        points.append(x + delta)
    points = how.first_of(calls, "real", points)
    return how.at(calls, points, isinstance(real, Tensor)).penalty(weight=weight, center=k)


def _interpolated(
    how: Norms,
    calls: Calls,
    real: Samples,
    fake: Samples,
    weight: Weight,
    center: float,
    one_sided: bool,
) -> Result:
    check_weight(how.op, "weight", weight)
    check_number(how.op, "center", center)
    if one_sided:
        _refuse_noise(how)
    measured = _at_interpolates(how, calls, real, fake)
    return measured.penalty(weight=weight, center=center, one_sided=one_sided)


def _refuse_noise(how: Norms) -> None:
    if how.method == "noise":
        raise ValueError(
            f'{how.op}: expected method "double_backward" or "difference", got "noise", by which '
            "one norm is never known, but its square in the mean"
        )


def _at_interpolates(how: Norms, calls: Calls, real: Samples, fake: Samples) -> Measured:
    op, groups = how.op, how.groups
    pairs = paired(op, real, fake, same_batch=True)
    first = pairs[0][0]
    how.check_samples("real", [x for x, _ in pairs])
    rows = first.shape[:1] if not isinstance(groups, int) else (len(first) // groups,)
    eps = draw_like(op, torch.rand, first, rows, how.generator)
    if isinstance(groups, int):
        eps = eps.repeat_interleave(groups)
    elif groups is not None:  # the number of groups is not known, but is hardly above that of rows
        eps = eps[groups.long() % len(first)]
    points = [torch.lerp(y, x, eps.to(x.dtype).view(-1, *[1] * (x.dim() - 1))) for x, y in pairs]
    points = how.first_of(calls, "real", points)
    return how.at(calls, points, isinstance(real, Tensor))
