"""The critic's step in one call: the logits, the loss and the penalties."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gankernels import losses
from gankernels._checks import check_bool, check_callable, check_number, describe, kind, raised_in
from gankernels._critics.calls import Calls, Critic, copied
from gankernels._critics.gradients import check_counts
from gankernels._critics.norms import COMMON, Method, Norms, Weight, check_weight, select
from gankernels._critics.samples import Samples, listed, outside_inference, paired, usable
from gankernels._critics.scores import Pick
from gankernels._critics.states import couples_samples, graph_nodes, is_coupling, warn_of_coupled
from gankernels._warnings import is_turn, warn_once

__all__ = ["CriticStep", "critic_step"]

_SETTINGS = (
    *("r1", "r2", "loss", "central", "augment", "fraction", "concatenate"),  # a number is r1
    *(name for name in COMMON if name not in ("heads", "first", "sample_weight", "reduction")),
)


class CriticStep(NamedTuple):
    """What a critic's step has computed. All but ``loss`` is detached, for logs."""

    loss: Tensor
    """The sum of the other three, to be minimized: a scalar with a graph."""
    adversarial: Tensor
    """``loss.discriminator(real_logits, fake_logits)``."""
    r1: Tensor
    """The penalty at real samples, its weight included; 0 without one."""
    r2: Tensor
    """The penalty at generated samples, its weight included; 0 without one."""
    real_logits: Any
    """What the critic gave real samples: a tensor, or a list of them where it gave a list."""
    fake_logits: Any
    """What it gave generated ones."""


def critic_step(
    D: Critic,
    real: Samples,
    fake: Samples,
    *args: Any,
    loss: losses.Loss | Callable[[Any, Any], Tensor] = losses.relativistic,
    r1: Weight = 0.0,
    r2: Weight = 0.0,
    method: Method = "double_backward",
    sigma: float = 0.01,
    central: bool = False,
    augment: Callable[[Any], Any] | None = None,
    fraction: float = 1.0,
    concatenate: bool | None = None,
    inv_scale: Tensor | None = None,
    groups: int | None = None,
    scores: Pick = None,
    allow_unused: bool = False,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> CriticStep:
    """The loss of the critic, R1 and R2, from as few passes of it as they take.

    ``loss(D(real), D(fake)) + r1 / 2 * E ||grad D(real)||^2 + r2 / 2 * E ||grad D(fake)||^2``, the
    sum of the separate calls: of :mod:`gankernels.losses`, :func:`gankernels.r1_penalty` and
    :func:`gankernels.r2_penalty` with the logits of the loss, but that spectral normalization moves
    once in a step, and random numbers such as those of dropout are drawn once. ::

        step = gankernels.critic_step(D, real, G(z), labels, r1=10.0, r2=10.0, method="difference")
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()

    One pass over real and generated samples, concatenated, gives the logits, and with them the
    penalties by second derivatives. By differences of one side, ``(D(x + h d) - D(x)) / h``, and by
    noise there is one pass more, and by central ones there are two.

    Args:
        D: the critic; see :mod:`gankernels.penalties`.
        real, fake: (B, ...) and (B', ...), of one shape but for the batch, or lists of these. Both
            are detached.
        *args, **kwargs: passed to ``D``. Tensors with a first dimension of B = B', such as labels,
            are repeated for the second half; tensors of B + B' are taken as they are. What samples
            share, and may have as many rows, belongs into the critic:
            ``functools.partial(D, table=table)``.
        loss: a pair of :mod:`gankernels.losses`, or a function of real and of generated logits that
            gives a scalar.
        r1, r2: gamma of the penalties; 0 is none.
        method, sigma, allow_unused, inv_scale, groups, scores: see :mod:`gankernels.penalties`.
        central: whether differences are of both sides, ``(D(x + h d) - D(x - h d)) / (2 h)``, as
            those of :func:`gankernels.r1_penalty` are: their gradients err in the square of h, and
            those of one side in h.
        augment: of real and then of generated samples, before the critic; gradients are taken at
            what it returns. For those at the samples before, give the critic
            ``lambda x: D(augment(x))``.
        fraction: of either batch that gets the penalties, the first samples of it; above 0 and at
            most 1. ``fraction * B`` is rounded down, to one sample at the least. By second
            derivatives these have a pass of their own.
        concatenate: whether real and generated samples go through the critic as one batch. By
            default they do, unless the critic has layers by which samples of a batch change each
            other's scores, batch normalization in training mode or minibatch statistics, or there
            is one of the penalties, by second derivatives.
        generator: where the noise is drawn from; on the samples' device.

    Returns:
        A :class:`CriticStep`. Under ``torch.no_grad()`` the same numbers, without a graph.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """
    op = "critic_step"
    if isinstance(loss, str):
        raise TypeError(
            f"{op}: expected loss to be a pair of losses, or a function, got {loss!r}; pass it as "
            "losses.hinge, without quotes"
        )
    discriminator = loss.discriminator if isinstance(loss, losses.Loss) else loss
    check_callable(op, "loss", discriminator)
    owner = getattr(discriminator, "__self__", None)
    if isinstance(owner, losses.Loss) and discriminator.__name__ != "discriminator":
        raise ValueError(
            f"{op}: expected loss to be of the critic, got {owner!r}.{discriminator.__name__}; "
            f"pass {owner!r}"
        )
    for name, weight in (("r1", r1), ("r2", r2)):
        check_weight(op, name, weight)
    check_number(op, "fraction", fraction, positive=True)
    if fraction > 1:
        raise ValueError(f"{op}: expected fraction to be at most 1, got {fraction}")
    if concatenate is not None:
        check_bool(op, "concatenate", concatenate)
    check_bool(op, "central", central)
    if central and method != "difference":
        raise ValueError(
            f'{op}: expected method="difference" with central=True, got method="{method}"'
        )
    if method != "double_backward" and not any(isinstance(w, Tensor) or w for w in (r1, r2)):
        warn_once(
            "no penalty",
            f'{op}: method="{method}" has nothing to find: r1 and r2, the weights of the '
            "penalties, are 0.",
        )
    if groups is not None and isinstance(groups, Tensor):
        raise TypeError(f"{op}: expected groups to be a number of consecutive rows, got a tensor")
    how = Norms(op, method, sigma, "sum", allow_unused, inv_scale, groups, generator)
    calls = how.calls(D, args, kwargs, _SETTINGS, scores, passes=4)
    if augment is not None:
        check_callable(op, "augment", augment)
        real, fake = (_augmented(op, augment, x) for x in (real, fake))
    pairs = paired(op, real, fake, same_batch=False)
    sides = []
    for i, (name, weight) in enumerate((("real", r1), ("fake", r2))):
        samples = [pair[i] for pair in pairs]
        how.check_samples(name, samples)
        sides.append(_Side(samples, weight, fraction, groups or 1))
    if concatenate is None:
        # By second derivatives, a concatenated batch is differentiated twice as a whole.
        whole = method != "double_backward" or sides[0].penalized == sides[1].penalized
        concatenate = whole and not couples_samples(D)
    run = functools.partial(_run, how, single=isinstance(real, Tensor), central=central)
    if concatenate:
        calls.repeat_for_halves([side.rows for side in sides], size=groups or 1)
        run(calls, sides)
    else:
        reals, total = sides[0].rows, sides[0].rows + sides[1].rows
        for side, half in zip(sides, ((0, reals), (reals, total)), strict=True):
            run(calls.part(functools.partial(select, parts=[half]), (total,)), [side])
    logits = [_unlisted(side.scores) for side in sides]
    with raised_in(op, "loss"):
        adversarial = discriminator(*logits)
    if not isinstance(adversarial, Tensor) or adversarial.numel() != 1:
        got = describe(adversarial) if isinstance(adversarial, Tensor) else kind(adversarial)
        raise TypeError(f"{op}: expected loss to give a scalar, got {got}")
    adversarial = adversarial.reshape(())
    found = [side.penalty for side in sides if side.penalty is not None]
    none = adversarial.detach().new_zeros(())
    return CriticStep(
        sum(found, adversarial),
        adversarial.detach(),
        *(none if side.penalty is None else side.penalty.detach() for side in sides),
        *(_unlisted([y.detach() for y in side.scores]) for side in sides),
    )


class _Side:
    """Real samples, or generated ones: rows of a batch, what the critic gives them, the penalty."""

    def __init__(self, samples: list[Tensor], weight: Weight, fraction: float, size: int) -> None:
        self.samples, self.weight, self.rows = samples, weight, len(samples[0])
        self.penalized = isinstance(weight, Tensor) or weight > 0
        self.first = max(1, int(fraction * (self.rows // size))) * size
        self.scores: list[Tensor] = []
        self.penalty: Tensor | None = None


def _run(how: Norms, calls: Calls, sides: list[_Side], *, single: bool, central: bool) -> None:
    """Scores and penalties of sides that are one batch."""
    size = how.groups if isinstance(how.groups, int) else 1
    parts, begin = [], 0
    for side in sides:
        if side.penalized:
            parts.append((begin, begin + side.first))
        begin += side.rows
    x = [
        torch.cat(p) if len(p) > 1 else p[0]
        for p in zip(*(side.samples for side in sides), strict=True)
    ]
    # Fewer samples are differentiated twice in a pass of their own.
    apart = how.method == "double_backward" and any(s.first < s.rows for s in sides if s.penalized)
    graph = bool(parts) and not apart and how.method != "noise"
    recorded = torch.is_grad_enabled()
    with (
        outside_inference() if graph else contextlib.nullcontext(),
        torch.set_grad_enabled(graph or recorded),
    ):
        if graph:
            x = [usable(p.detach()).requires_grad_() for p in x]
        scores = calls.scores(x[0] if single else x)
        count = check_counts(how.op, scores, how.groups, begin)
    _refuse_scalars(how.op, scores, count)
    if len(sides) > 1:
        _warn_of_statistics(how.op, calls.D, scores)
    if parts:
        warn_of_coupled(how.op, calls.D)
        if apart:
            points = [select(p.detach(), parts) for p in x]
            measured = how.at(calls.part(*how.cut(parts, begin)), points, single)
        else:
            measured = how.of(scores, x, "the samples", calls, single, parts, central)
    done = 0
    for side in sides:
        if side.penalized:
            part = measured.part(done, done + side.first)
            side.penalty = part.penalty(weight=side.weight / 2)
            done += side.first
    if not recorded:
        scores = [y.detach() for y in scores]
    begin = 0
    for side in sides:
        side.scores = [y[begin // size : (begin + side.rows) // size] for y in scores]
        begin += side.rows


def _warn_of_statistics(op: str, D: Critic, scores: list[Tensor]) -> None:
    # Of layers that are no modules; for modules the batches are not concatenated.
    if torch.compiler.is_compiling() or not is_turn("statistics", D):
        return
    if any(is_coupling(node) for node in graph_nodes(scores)):
        warn_once(
            "statistics",
            f"{op}: the critic normalizes by statistics of the batch, here of real and generated "
            "samples together; concatenate=False gives both a pass of their own.",
        )


def _refuse_scalars(op: str, scores: list[Tensor], count: int) -> None:
    if any(y.dim() == 0 for y in scores):
        raise ValueError(
            f"{op}: expected scores whose first dimension is the batch, {count}, got a scalar; let "
            "the critic return a score for each sample"
        )


def _augmented(op: str, augment: Callable[[Any], Any], x: Samples) -> Any:
    listed(op, "the samples", x)
    with torch.no_grad(), raised_in(op, "augment"):
        return augment(copied(x))


def _unlisted(scores: list[Tensor]) -> Any:
    return scores[0] if len(scores) == 1 else scores
