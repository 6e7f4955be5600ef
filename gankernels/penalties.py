"""The gradient penalties of the papers, each as one function.

All take gradients of the critic's summed scores with respect to its inputs, sample by sample, with
:func:`gankernels.ops.gradient_penalty` behind them. A critic ``D`` is any callable. It is called as
``D(x, *args, **kwargs)`` with whatever positional arguments follow the samples and whatever keyword
arguments the penalty does not know, labels for instance. Samples are a tensor (B, ...), or a list
of them, which ``D`` then gets as a list, with one norm over all. Scores are a tensor whose first
dimension is B (one score a sample, patch maps), or tuples and lists of these (several scales); they
are added up, never averaged.

All results are scalars, float32 (float64 for float64 gradients), differentiable twice in the
critic's parameters, and deterministic for given random numbers. Under ``torch.no_grad()`` the same
number comes without a graph. Samples made here are detached: no gradient reaches a generator.
Nothing but :func:`check_independent_samples` synchronises with a device.

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

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gankernels import ops
from gankernels._checks import check_number, is_tensors, kind
from gankernels._critics import (
    Critic,
    Samples,
    Scores,
    critic_gradients,
    draw_like,
    gradients,
    inputs_of,
    listed,
    paired,
    sum_per_sample,
    warn_once,
)
from gankernels.ops._spectral_norm_checks import check_iteration
from gankernels.reference.spectral_norm import accumulation_dtype

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


# --- at samples that the critic has seen already -------------------------------------------------


def r1_penalty(
    logits: Scores, real: Samples, *, gamma: float = 10.0, inv_scale: Tensor | None = None
) -> Tensor:
    """R1: ``gamma / 2 * mean ||grad D(x)||^2`` at real samples.

    Mescheder et al. 2018 (arXiv 1801.04406), equation 9. The 1/2 is the paper's.

    Args:
        logits: ``D(real)``, with its graph; neither averaged nor detached.
        real: what ``D`` was given, requiring a gradient: ``real.requires_grad_()`` before the call.
        gamma: not negative.
        inv_scale: with ``torch.amp.GradScaler``, one element, the reciprocal of its scale, which
            comes without a synchronisation:
            ``inv_scale = 1 / scaler.scale(torch.ones((), device=device))``. The gradients are then
            taken of the scaled scores, which float16 can hold, and unscaled in the penalty. Scale
            the loss as always: ``scaler.scale(loss + penalty).backward()``. A scale above 65504,
            such as GradScaler's first, is inf in float16 scores: that step is skipped, the scale
            halved.

    Raises:
        TypeError, ValueError: if an argument is none of the above, or ``logits`` do not depend on
            ``real``.
    """
    return _squared("r1_penalty", logits, real, gamma, inv_scale, name="real")


def r2_penalty(
    logits: Scores, fake: Samples, *, gamma: float = 10.0, inv_scale: Tensor | None = None
) -> Tensor:
    """R2: ``gamma / 2 * mean ||grad D(x)||^2`` at generated samples.

    Mescheder et al. 2018 (arXiv 1801.04406), equation 10. ``fake`` is a detached sample of the
    generator that requires a gradient, ``fake.detach().requires_grad_()``; all else as for
    :func:`r1_penalty`.
    """
    return _squared("r2_penalty", logits, fake, gamma, inv_scale, name="fake")


def roth_penalty(
    real_logits: Tensor,
    fake_logits: Tensor,
    real: Samples,
    fake: Samples,
    *,
    gamma: float = 2.0,
) -> Tensor:
    """``gamma / 2 * mean[(1 - s(D(x)))^2 ||grad D(x)||^2 + s(D(G))^2 ||grad D(G)||^2]``.

    The regulariser of Roth et al. 2017 (arXiv 1705.09367) for the Jensen-Shannon divergence, with s
    the sigmoid; ``gamma`` 2, or 0.1, annealed by the caller. The weights ``(1 - s)^2`` and ``s^2``
    carry gradient.

    Args:
        real_logits, fake_logits: ``D(real)``, ``D(fake)``: one score a sample, (B,) or (B, 1, ...).
        real, fake: what ``D`` was given, requiring gradients.
        gamma: not negative.

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """
    op = "roth_penalty"
    check_number(op, "gamma", gamma)
    total: Any = 0.0
    for name, logits, x, sign in (("real", real_logits, real, -1), ("fake", fake_logits, fake, 1)):
        samples = inputs_of(op, name, x)
        if not isinstance(logits, Tensor):
            raise TypeError(f"{op}: expected {name}_logits to be a tensor, got {kind(logits)}")
        if logits.dim() == 0 or logits.numel() != samples[0].shape[0]:
            raise ValueError(
                f"{op}: expected one score a sample, {samples[0].shape[0]}, got {name}_logits of "
                f"shape {tuple(logits.shape)}; the weights are not defined for several"
            )
        grads = gradients(op, logits, samples, name)
        score = logits.reshape(-1).to(accumulation_dtype(logits.dtype))
        total = total + ops.gradient_penalty(
            grads, weight=gamma / 2, sample_weight=torch.sigmoid(sign * score).square()
        )
    return total


def _squared(
    op: str, logits: Scores, x: Samples, gamma: float, inv_scale: Tensor | None, name: str
) -> Tensor:
    check_number(op, "gamma", gamma)
    samples = inputs_of(op, name, x)
    grads = gradients(op, logits, samples, name, inv_scale)
    return ops.gradient_penalty(grads, weight=gamma / 2, inv_scale=inv_scale)


# --- at samples made here ------------------------------------------------------------------------


def r1_r2_penalty(
    D: Critic, real: Samples, fake: Samples, *args: Any, gamma: float = 10.0, **kwargs: Any
) -> Tensor:
    """R1 + R2 from one pass of the critic over both batches, concatenated.

    ``gamma / 2 * (mean ||grad D(x)||^2 + mean ||grad D(G)||^2)``: both terms of Mescheder et al.
    2018 (arXiv 1801.04406), as R3GAN uses them (Huang et al. 2024, arXiv 2501.05441).

    Args:
        D: the critic; see the module's text.
        real, fake: (B, ...) and (B', ...), of one shape but for the batch.
        *args, **kwargs: passed to ``D``. Tensors with a first dimension of B = B', such as labels,
            are repeated for the second half; tensors of B + B' are taken as they are.
        gamma: not negative.

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """
    op = "r1_r2_penalty"
    check_number(op, "gamma", gamma)
    pairs = paired(op, real, fake, same_batch=False)
    count, fakes = pairs[0][0].shape[0], pairs[0][1].shape[0]
    x = [torch.cat(pair).requires_grad_() for pair in pairs]

    def twice(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == count == fakes:
            return torch.cat((value, value))
        return value

    arguments = [twice(value) for value in args]
    named = {name: twice(value) for name, value in kwargs.items()}
    grads = critic_gradients(op, D, x, isinstance(real, Tensor), arguments, named)
    if count == fakes:
        return ops.gradient_penalty(grads, weight=gamma)
    return ops.gradient_penalty([g[:count] for g in grads], weight=gamma / 2) + (
        ops.gradient_penalty([g[count:] for g in grads], weight=gamma / 2)
    )


def wgan_gp_penalty(
    D: Critic,
    real: Samples,
    fake: Samples,
    *args: Any,
    weight: float = 10.0,
    center: float = 1.0,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Tensor:
    """WGAN-GP: ``weight * mean (||grad D(x_hat)|| - center)^2``.

    Gulrajani et al. 2017 (arXiv 1704.00028), equation 3, with ``x_hat = eps real + (1 - eps) fake``
    and one eps ~ U[0, 1) a sample. The paper trains the critic 5 steps to the generator's one, with
    Adam(1e-4, betas=(0, 0.9)), and no batch normalisation in the critic.

    Args:
        D: the critic; see the module's text.
        real, fake: of one shape. ``fake`` takes the dtype of ``real``.
        *args, **kwargs: passed to ``D``.
        weight, center: not negative.
        generator: where eps is drawn from; on the samples' device.

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """
    return _interpolated(
        "wgan_gp_penalty", D, real, fake, args, kwargs, weight, center, False, generator
    )


def wgan_lp_penalty(
    D: Critic,
    real: Samples,
    fake: Samples,
    *args: Any,
    weight: float = 10.0,
    center: float = 1.0,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Tensor:
    """WGAN-LP, one-sided: ``weight * mean max(0, ||grad D(x_hat)|| - center)^2``.

    Petzka et al. 2018 (arXiv 1709.08894). All else as for :func:`wgan_gp_penalty`.
    """
    return _interpolated(
        "wgan_lp_penalty", D, real, fake, args, kwargs, weight, center, True, generator
    )


def zero_centered_penalty(
    D: Critic,
    real: Samples,
    fake: Samples,
    *args: Any,
    weight: float = 10.0,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Tensor:
    """``weight * mean ||grad D(x_hat)||^2`` between real and generated samples.

    The zero-centred penalty of Mescheder et al. 2018 (arXiv 1801.04406) at the interpolates of
    WGAN-GP; without a 1/2. All else as for :func:`wgan_gp_penalty`.
    """
    return _interpolated(
        "zero_centered_penalty", D, real, fake, args, kwargs, weight, 0.0, False, generator
    )


def dragan_penalty(
    D: Critic,
    real: Samples,
    *args: Any,
    weight: float = 10.0,
    k: float = 1.0,
    noise: Literal["uniform", "gaussian"] = "uniform",
    scale: float | None = None,
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
        generator: where delta is drawn from; on the samples' device.

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """
    op = "dragan_penalty"
    check_number(op, "weight", weight)
    check_number(op, "k", k)
    if noise not in ("uniform", "gaussian"):
        raise ValueError(f'{op}: expected noise "uniform" or "gaussian", got {noise!r}')
    scale = {"uniform": 0.5, "gaussian": 10.0}[noise] if scale is None else scale
    check_number(op, "scale", scale)
    points = []
    for x in listed(op, "real", real):
        x = x.detach()
        if noise == "uniform":
            delta = draw_like(torch.rand, x, x.shape, generator) * (scale * x.std())
        else:
            delta = draw_like(torch.randn, x, x.shape, generator) * scale**0.5
        points.append((x + delta).requires_grad_())
    grads = critic_gradients(op, D, points, isinstance(real, Tensor), args, kwargs)
    return ops.gradient_penalty(grads, center=k, weight=weight)


def _interpolated(
    op: str,
    D: Critic,
    real: Samples,
    fake: Samples,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    weight: float,
    center: float,
    one_sided: bool,
    generator: torch.Generator | None,
) -> Tensor:
    check_number(op, "weight", weight)
    check_number(op, "center", center)
    pairs = paired(op, real, fake, same_batch=True)
    first = pairs[0][0]
    eps = draw_like(torch.rand, first, first.shape[:1], generator)
    points = [
        torch.lerp(y, x, eps.to(x.dtype).view(-1, *[1] * (x.dim() - 1))).requires_grad_()
        for x, y in pairs
    ]
    grads = critic_gradients(op, D, points, isinstance(real, Tensor), args, kwargs)
    return ops.gradient_penalty(grads, center=center, one_sided=one_sided, weight=weight)


# --- without gradients of the input --------------------------------------------------------------


def approx_r1_penalty(
    D: Critic,
    x: Samples,
    *args: Any,
    sigma: float = 0.01,
    weight: float = 100.0,
    gamma: float | None = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Tensor:
    """Approximate R1 by finite differences: ``weight * mean (D(x) - D(x + sigma noise))^2``.

    Lin et al. 2025 (arXiv 2501.08316), for critics whose second derivatives cost too much; ``x``
    are real samples. In the mean over the noise, N(0, I), and for small sigma it is R1 with
    ``weight = gamma / (2 sigma^2)``. Both passes carry gradient; scores are subtracted in float32.

    Args:
        D: the critic, called twice; see the module's text.
        x: (B, ...).
        *args, **kwargs: passed to ``D``.
        sigma: positive; the paper takes 0.01 for images and 0.1 for videos.
        weight: not negative.
        gamma: where given, ``weight`` is ``gamma / (2 sigma^2)``.
        generator: where the noise is drawn from; on the samples' device.

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """
    return _approximate("approx_r1_penalty", D, x, args, kwargs, sigma, weight, gamma, generator)


def approx_r2_penalty(
    D: Critic,
    x: Samples,
    *args: Any,
    sigma: float = 0.01,
    weight: float = 100.0,
    gamma: float | None = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Tensor:
    """:func:`approx_r1_penalty` at generated samples ``x``, for R2."""
    return _approximate("approx_r2_penalty", D, x, args, kwargs, sigma, weight, gamma, generator)


def _approximate(
    op: str,
    D: Critic,
    x: Samples,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    sigma: float,
    weight: float,
    gamma: float | None,
    generator: torch.Generator | None,
) -> Tensor:
    check_number(op, "sigma", sigma, positive=True)
    check_number(op, "weight", weight)
    if gamma is not None:
        check_number(op, "gamma", gamma)
        weight = gamma / (2 * sigma**2)
    points = [p.detach() for p in listed(op, "x", x)]
    noisy = [p + sigma * draw_like(torch.randn, p, p.shape, generator) for p in points]
    single = isinstance(x, Tensor)
    sums = [
        sum_per_sample(op, D(p[0] if single else p, *args, **kwargs), points[0].shape[0])
        for p in (points, noisy)
    ]
    return weight * (sums[0] - sums[1]).square().mean()


# --- of parameters -------------------------------------------------------------------------------


def consensus_penalty(
    losses: Sequence[Tensor], parameters: Sequence[Iterable[Tensor]], *, gamma: float = 10.0
) -> Tensor:
    """Consensus optimisation: ``gamma / 2 * ||v||^2``, v the gradients of the game.

    Mescheder et al. 2017 (arXiv 1705.10461), algorithm 2: every player descends its own loss plus
    this term. v holds the gradient of each loss with respect to its own player's parameters.

    Args:
        losses: one scalar a player, with its graph: ``(d_loss, g_loss)``.
        parameters: as many lists of parameters: ``(D.parameters(), G.parameters())``. Those that do
            not require a gradient, or that a loss does not depend on, do not count.
        gamma: not negative.

    Returns:
        A scalar that depends on all players' parameters; its gradient with respect to them is what
        each adds to its own.

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """
    op = "consensus_penalty"
    check_number(op, "gamma", gamma)
    players = []
    for i, player in enumerate(parameters):
        if isinstance(player, Tensor):
            raise TypeError(
                f"{op}: expected parameters[{i}] to be a list of one player's parameters, got a "
                "tensor; pass (D.parameters(), G.parameters())"
            )
        players.append(list(player))
    if not is_tensors(losses) or len(losses) != len(players) or not players:
        got = len(losses) if is_tensors(losses) else kind(losses)
        raise ValueError(
            f"{op}: expected a loss for each of the {len(players)} lists of parameters, got {got}"
        )
    found: list[Tensor] = []
    for i, (loss, player) in enumerate(zip(losses, players, strict=True)):
        if loss.dim() != 0:
            raise ValueError(
                f"{op}: expected losses[{i}] to be a scalar, got shape {tuple(loss.shape)}"
            )
        wanted = [p for p in player if p.requires_grad]
        if not wanted or not loss.requires_grad:
            raise ValueError(
                f"{op}: expected losses[{i}] to depend on parameters that require a gradient; keep "
                "its graph, and do not freeze all of them"
            )
        grads = torch.autograd.grad(
            loss, wanted, create_graph=torch.is_grad_enabled(), allow_unused=True
        )
        found += [g.unsqueeze(0) for g in grads if g is not None]
    if not found:
        raise ValueError(f"{op}: expected losses that depend on the parameters, got none that does")
    return ops.gradient_penalty(found, weight=gamma / 2)


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
            and v move in place. 0 iterations take them as they are.
        weight: lambda, not negative.

    Raises:
        TypeError, ValueError: if an argument is none of the above.

    Differentiable to any order in ``weights``, with u and v constant: the gradient is
    ``weight * sigma * u v^T``.
    """
    op = "spectral_norm_regularization"
    check_number(op, "weight", weight)
    constant = [w.detach() for w in weights] if is_tensors(weights) else weights
    if n_power_iterations == 0:
        check_iteration(constant, u, v, 1, eps, "u_first", None)
    else:
        packed = ops.power_iteration_(constant, u, v, n_power_iterations, eps)
        u, v, _ = ops.unpack(packed, constant)
    total: Any = 0.0
    for w, left, right in zip(weights, u, v, strict=True):
        with torch.autocast(w.device.type, enabled=False):
            matrix = w.reshape(w.shape[0], -1).to(accumulation_dtype(w.dtype))
            sigma = torch.dot(left.to(matrix.dtype), torch.mv(matrix, right.to(matrix.dtype)))
        total = total + sigma.square()
    return weight / 2 * total


# --- guardrails ----------------------------------------------------------------------------------


def check_independent_samples(D: Critic, x: Samples, *args: Any, **kwargs: Any) -> bool:
    """Whether ``D`` scores every sample by itself, as every gradient penalty takes for granted.

    Batch normalisation in training mode, and all else that mixes the samples of a batch, makes the
    gradient of one sample's score reach the others, and the norms wrong (by several percent). Costs
    a forward and a backward pass; call it once. Warns with the cure where it finds that.

    Args:
        D, x, *args, **kwargs: as for :func:`wgan_gp_penalty`; at least 2 samples. The buffers of a
            module ``D`` are put back to what they were.

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """
    op = "check_independent_samples"
    points = [p.detach().clone().requires_grad_() for p in listed(op, "x", x)]
    batch = points[0].shape[0]
    if batch < 2:
        raise ValueError(f"{op}: expected at least 2 samples, got {batch}")
    buffers = list(D.buffers()) if isinstance(D, nn.Module) else []
    before = [b.clone() for b in buffers]
    with torch.enable_grad():
        given = points[0] if isinstance(x, Tensor) else points
        scores = sum_per_sample(op, D(given, *args, **kwargs), batch)
        first = torch.cat((scores[:1], scores[1:].detach()))
        grads = gradients(op, first, points, "the samples", create_graph=False)
    with torch.no_grad():
        for buffer, old in zip(buffers, before, strict=True):
            buffer.copy_(old)
    independent = not any(g[1:].any() for g in grads)
    if not independent:
        warn_once(
            "coupled",
            f"{op}: the score of a sample depends on other samples of the batch; gradient "
            "penalties are then wrong. Put layer, instance or group normalisation in the place of "
            "batch normalisation in the critic, or use none.",
        )
    return independent
