"""Norms of a critic's gradients, and penalties of them: by second derivatives, or without."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from gankernels._checks import (
    check_bool,
    check_floats,
    check_generator,
    check_number,
    describe,
    is_choice,
    kind,
)
from gankernels._critics import groups as _groups
from gankernels._critics.calls import Calls, Critic
from gankernels._critics.gradients import (
    check_counts,
    check_inv_scale,
    critic_gradients,
    gradients,
    sum_per_score,
)
from gankernels._critics.groups import Groups, check_groups
from gankernels._critics.samples import draw_like
from gankernels._critics.scores import Pick
from gankernels._critics.states import warn_of_coupled, warn_of_coupled_graph
from gankernels._dtypes import accumulation_dtype
from gankernels._torch import is_capturing
from gankernels._warnings import is_turn, warn_once

Method = Literal["double_backward", "difference", "noise"]
Heads = Literal["sum", "mean"]
Reduction = Literal["mean", "none"]
Weight = float | Tensor
Result = Any  # a tensor, or two of them with return_raw

#: Relative, of differences along the gradient that are taken for its norm.
_LARGEST_ERROR = 0.3
#: Of steps, relative to the standard deviation of samples.
_LARGEST_STEP = 0.2
METHODS = ("double_backward", "difference", "noise")
#: The keywords of a penalty that calls a critic, besides its hyper-parameters.
COMMON = (
    *("method", "sigma", "heads", "first", "sample_weight", "allow_unused", "reduction"),
    *("return_raw", "inv_scale", "groups", "scores", "generator"),
)


def check_weight(op: str, name: str, weight: object) -> None:
    """Refuse what is neither a number of at least 0 nor a tensor of one element."""
    if not isinstance(weight, Tensor):
        check_number(op, name, weight)
        return
    check_floats(op, name, weight)
    if weight.numel() != 1:
        raise ValueError(
            f"{op}: expected {name} to be a number or a tensor of one element, got "
            f"{describe(weight)}"
        )


def select(x: Tensor, parts: Sequence[tuple[int, int]], size: int = 1) -> Tensor:
    """These parts of the rows, of which each stands for ``size``."""
    found = [x[begin // size : end // size] for begin, end in parts]
    return found[0] if len(found) == 1 else torch.cat(found)


def check_method(op: str, method: object) -> None:
    if not is_choice(method, METHODS):
        names = ", ".join(f'"{name}"' for name in METHODS)
        raise ValueError(f"{op}: expected method to be one of {names}, got {method!r}")


@dataclass
class Norms:
    """How a penalty finds norms and what it makes of them, in the names of its arguments."""

    op: str
    method: Method = "double_backward"
    sigma: float = 0.01
    heads: Heads = "sum"
    allow_unused: bool = False
    inv_scale: Tensor | None = None
    groups: Groups = None
    generator: torch.Generator | None = None

    first: int | None = field(default=None, init=False)
    sample_weight: Tensor | None = field(default=None, init=False)
    reduction: Reduction = field(default="mean", init=False)
    return_raw: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        op = self.op
        check_method(op, self.method)
        check_number(op, "sigma", self.sigma, positive=True)
        if not is_choice(self.heads, ("sum", "mean")):
            raise ValueError(f'{op}: expected heads "sum" or "mean", got {self.heads!r}')
        if self.heads == "mean" and self.method != "noise":
            raise ValueError(
                f'{op}: expected heads="sum" with method="{self.method}", got "mean", which takes '
                'the norm of each head; only method="noise" has them all at once'
            )
        check_bool(op, "allow_unused", self.allow_unused)

    def give(
        self,
        first: int | None,
        sample_weight: Tensor | None,
        reduction: Reduction,
        return_raw: bool,
    ) -> None:
        """What the penalty is to be: of which samples, and how many numbers."""
        if not is_choice(reduction, ("mean", "none")):
            raise ValueError(f'{self.op}: expected reduction "mean" or "none", got {reduction!r}')
        check_bool(self.op, "return_raw", return_raw)
        self.first, self.sample_weight = first, sample_weight
        self.reduction, self.return_raw = reduction, return_raw

    def check_samples(self, name: str, samples: Sequence[Tensor]) -> None:
        """Refuse, before the critic is called, what does not go with these samples."""
        op, rows, device = self.op, samples[0].shape[0], samples[0].device
        check_groups(op, self.groups, rows, device)
        check_inv_scale(op, self.inv_scale, device)
        check_generator(op, self.generator, device)
        if self.first is not None:
            if isinstance(self.first, bool) or not isinstance(self.first, int):
                raise TypeError(
                    f"{op}: expected first to be an integer, how many samples get the penalty, got "
                    f"{kind(self.first)}"
                )
            if isinstance(self.groups, Tensor):
                raise TypeError(
                    f"{op}: expected groups to be a number of rows where first is given, got a "
                    "tensor; pass those samples alone"
                )
            if not 1 <= self.first <= rows or self.first % self._rows_a_score():
                whole = f", whole groups of {self.groups}" if self.groups else ""
                raise ValueError(
                    f"{op}: expected first to be 1 to {rows}, the rows of {name}{whole}, got "
                    f"{self.first}"
                )

    def check_sample_weight(self, rows: int, device: torch.device) -> None:
        """Refuse what is not a weight for each score of as many rows."""
        op, w = self.op, self.sample_weight
        if w is None:
            return
        if not isinstance(w, Tensor):
            raise TypeError(f"{op}: expected sample_weight to be a tensor, got {kind(w)}")
        check_floats(op, "sample_weight", w)
        count = rows // self._rows_a_score()
        if w.dim() != 1 or (not isinstance(self.groups, Tensor) and len(w) != count):
            raise ValueError(
                f"{op}: expected sample_weight of shape ({count},), one for each score, got "
                f"{tuple(w.shape)}"
            )
        if w.device != device:
            raise ValueError(
                f"{op}: expected sample_weight on {device}, where the samples are, got {w.device}"
            )

    def calls(
        self,
        D: Critic,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        own: Sequence[str],
        pick: Pick,
        *,
        passes: int | None = None,
        seen: bool = False,
    ) -> Calls:
        """The calls of a penalty whose keywords are ``own``."""
        return Calls(
            self.op,
            D,
            args,
            kwargs,
            own=own,
            scores=pick,
            passes=passes or (1 if self.method == "double_backward" else 3),
            seen=seen,
        )

    def first_of(self, calls: Calls, name: str, points: list[Tensor]) -> list[Tensor]:
        """The samples that get the penalty, checked; and what else goes to the critic, of these."""
        rows, first = len(points[0]), self.first
        self.check_samples(name, points)
        self.check_sample_weight(rows if first is None else first, points[0].device)
        if first is None:
            return points
        calls.with_rows(*self.cut([(0, first)], rows))
        return [p[:first] for p in points]

    def cut(
        self, parts: Sequence[tuple[int, int]], rows: int
    ) -> tuple[Callable[[Tensor], Tensor], tuple[int, ...]]:
        """For :meth:`Calls.with_rows`: what else goes to the critic, of these rows only."""
        size = self._rows_a_score()
        return lambda x: select(x, parts, 1 if len(x) == rows else size), (rows, rows // size)

    # --- at samples that the critic has not seen, or has ---

    def at(self, calls: Calls, points: list[Tensor], single: bool) -> Measured:
        """Calls the critic: once, or twice for noise, or three times, twice with a graph, for
        ``(D(x + h d) - D(x - h d)) / (2 h)``.
        """
        if self.method == "noise":
            warn_of_coupled(self.op, calls.D)
            scores = self._scores(calls, points, single)
            return self._noisy(calls, scores, points, single)
        grads, count = self._direction(
            calls, points, single, twice=self.method == "double_backward"
        )
        if self.method == "double_backward":
            return self._measured(count, grads=grads)
        norms, steps, h = self._steps(grads, count)
        if not torch.is_grad_enabled():
            return self._measured(count, norms=norms)
        ahead, behind = (self._moved_sums(calls, points, steps, sign, single) for sign in (1, -1))
        return self._with_slope(calls.D, points, norms, (ahead - behind) / (2 * h))

    def _direction(
        self, calls: Calls, points: list[Tensor], single: bool, *, twice: bool
    ) -> tuple[list[Tensor], int]:
        return critic_gradients(
            calls,
            points,
            single,
            self.inv_scale,
            self.groups,
            twice=twice,
            allow_unused=self.allow_unused,
        )

    def of(
        self,
        scores: list[Tensor],
        samples: list[Tensor],
        name: str,
        calls: Calls | None,
        single: bool,
        parts: Sequence[tuple[int, int]] | None = None,
        central: bool = False,
    ) -> Measured:
        """With the scores of samples that require gradients; differences need one more call, of
        ``(D(x + h d) - D(x)) / h``, or two where they are central. Of these parts of the rows.
        """
        if parts is None and self.first is not None:
            parts = [(0, self.first)]
        count = check_counts(self.op, scores, self.groups, len(samples[0]))
        warn_of_coupled_graph(self.op, scores)
        points = [p.detach() for p in samples]
        grads: list[Tensor] = []
        apart = False
        if self.method != "noise":
            try:
                grads = gradients(
                    self.op,
                    scores,
                    samples,
                    name,
                    self.inv_scale,
                    torch.is_grad_enabled() and self.method == "double_backward",
                    allow_unused=self.allow_unused,
                    retain=True,
                )
            except RuntimeError as error:
                # A compiled critic may free what it has saved in its backward pass: it refuses to
                # be gone through twice, before it frees anything.
                if self.method != "difference" or "donated buffer" not in str(error):
                    raise
                apart = True
        if parts is not None:
            size = self._rows_a_score()
            count = sum(end - begin for begin, end in parts) // size
            if calls is not None:
                calls = calls.part(*self.cut(parts, len(points[0])))
            grads, points = ([select(x, parts) for x in xs] for xs in (grads, points))
            scores = [select(x, parts, size) if x.dim() > 0 else x for x in scores]
        if apart:
            assert calls is not None
            grads, _ = self._direction(calls, points, single, twice=False)
        if self.method == "double_backward":
            return self._measured(count, grads=grads)
        assert calls is not None
        if self.method == "noise":
            return self._noisy(calls, scores, points, single)
        norms, steps, h = self._steps(grads, count)
        if not torch.is_grad_enabled():
            return self._measured(count, norms=norms)
        ahead = self._moved_sums(calls, points, steps, 1, single)
        if central:
            behind, h = self._moved_sums(calls, points, steps, -1, single), 2 * h
        else:
            behind = sum_per_score(self.op, scores, self.groups, len(points[0]))
        return self._with_slope(calls.D, points, norms, (ahead - behind) / h)

    def _measured(self, count: int, **found: Any) -> Measured:
        return Measured(self, count, self.sample_weight, **found)

    def _rows_a_score(self) -> int:
        return self.groups if isinstance(self.groups, int) else 1

    def between(self, scores: list[Tensor], noisy: list[Tensor], given: Any = None) -> Measured:
        """With the scores of samples, and of the same ones with noise added."""
        if [x.shape for x in scores] != [x.shape for x in noisy]:
            shapes = (", ".join(str(tuple(x.shape)) for x in xs) for xs in (scores, noisy))
            raise TypeError(
                f"{self.op}: expected D to be callable, got {kind(given)}; pass D itself, not what "
                "it returns, or what it returns for the samples and for them with noise, of the "
                f"same shapes, not {' and '.join(shapes)}"
            )
        for a, b in zip(scores, noisy, strict=True):
            if a.device != b.device:
                raise ValueError(
                    f"{self.op}: expected logits without and with noise on one device, got "
                    f"{a.device} and {b.device}"
                )
        rows = next((len(x) for x in scores if x.dim() > 0), 1)
        if self.heads == "sum":
            sums = [sum_per_score(self.op, x, None, rows) for x in (noisy, scores)]
            return self._measured(rows, noisy=((sums[0] - sums[1]) / self.sigma)[:, None])
        check_counts(self.op, scores, None, rows)
        differences = []
        for a, b in zip(noisy, scores, strict=True):
            acc = accumulation_dtype(a.dtype)
            differences.append((a.to(acc) - b.to(acc)).reshape(rows, -1))
        return self._measured(rows, noisy=torch.cat(differences, 1) / self.sigma)

    def _scores(self, calls: Calls, points: list[Tensor], single: bool) -> list[Tensor]:
        return calls.scores(points[0] if single else points)

    def _moved(
        self, calls: Calls, points: list[Tensor], steps: list[Tensor], sign: int, single: bool
    ) -> list[Tensor]:
        """The scores at ``x + sign * step``, which is added in float32 at least."""
        with torch.no_grad():
            points = [
                torch.add(p, s, alpha=sign).to(p.dtype) for p, s in zip(points, steps, strict=True)
            ]
        return self._scores(calls, points, single)

    def _moved_sums(
        self, calls: Calls, points: list[Tensor], steps: list[Tensor], sign: int, single: bool
    ) -> Tensor:
        """The same, added up over each score's heads and maps."""
        moved = self._moved(calls, points, steps, sign, single)
        return sum_per_score(self.op, moved, self.groups, len(points[0]))

    def _with_slope(self, D: Any, points: list[Tensor], norms: Tensor, found: Tensor) -> Measured:
        """Norms, whose derivative is that of the differences which approximate them."""
        if not torch.compiler.is_compiling() and is_turn("slope", D) and not is_capturing():
            self._compare(points, norms, found.detach())
        return self._measured(len(norms), norms=norms + (found - found.detach()))

    def _compare(self, points: list[Tensor], norms: Tensor, found: Tensor) -> None:
        """Warn where differences are not the norms that they are to approximate: their value is not
        used, but the gradient of the penalty is theirs.
        """
        error = ((found - norms).abs().sum() / norms.sum()).item()
        spreads = [p.detach().to(torch.float32).std().item() for p in points if p.numel() > 1]
        least = min((x for x in spreads if x > 0), default=math.inf)
        if self.sigma > _LARGEST_STEP * least:
            warn_once(
                "sigma",
                f"{self.op}: sigma={self.sigma:g} is how far samples are moved, whose standard "
                f"deviation is {least:.2g}: too far for differences to be derivatives. Take a "
                f"hundredth of that, sigma={least / 100:.1g}; scale several inputs to one size.",
            )
        elif error > _LARGEST_ERROR:  # and not NaN, of gradients that are zero
            warn_once(
                "slope",
                f"{self.op}: differences of the critic along its gradient are off the gradient's "
                f"norm by {error:.0%}; the gradient of the penalty is as wrong. Either the passes "
                "are of different functions: logits that D does not give for these samples, random "
                f"numbers that are not torch's, a state that moves. Or sigma={self.sigma:g} does "
                "not suit: bfloat16 needs 0.02 or more, and for critics with kinks, as of ReLU, "
                'none is good. method="double_backward" has neither fault.',
            )

    def _noisy(
        self, calls: Calls, scores: list[Tensor], points: list[Tensor], single: bool
    ) -> Measured:
        noise = []
        for p in points:
            like = p.to(accumulation_dtype(p.dtype))
            noise.append(
                self.sigma * draw_like(self.op, torch.randn, like, p.shape, self.generator)
            )
        check_counts(self.op, scores, self.groups, len(points[0]))
        return self.between(scores, self._moved(calls, points, noise, 1, single))

    def _steps(self, grads: list[Tensor], count: int) -> tuple[Tensor, list[Tensor], Tensor]:
        """The norm of every score's gradient; ``h d`` for every sample, d the direction of that;
        and h for every score, ``sigma`` times the root of the number of elements of its rows.

        d is zero where the gradient is.
        """
        with torch.no_grad():
            acc = accumulation_dtype(grads[0].dtype)
            flat = [g.to(acc).flatten(1) for g in grads]
            rows = len(flat[0])
            elements = flat[0].new_full((rows,), sum(g.shape[1] for g in flat))
            h = self.sigma * _groups.sums(elements, self.groups, count).sqrt()
            # The largest element is divided by first, lest squares overflow, or underflow.
            peaks = torch.stack([g.abs().amax(1) for g in flat]).amax(0)
            peaks = _groups.largest(peaks, self.groups, count)
            divisors = _groups.spread(torch.where(peaks != 0, peaks, 1), self.groups, rows)
            flat = [g / divisors[:, None] for g in flat]
            squares = sum((g.square().sum(1) for g in flat), torch.zeros_like(divisors))
            squares = _groups.sums(squares, self.groups, count)
            length = torch.where(squares > 0, h * squares.rsqrt(), squares)
            norms = peaks * squares.sqrt()
            if self.inv_scale is not None:
                norms = norms * self.inv_scale.detach().reshape(()).to(norms)
            by = _groups.spread(length, self.groups, rows)[:, None]
            return norms, [(g * by).view(p.shape) for g, p in zip(flat, grads, strict=True)], h


@dataclass
class Measured:
    """What norms were found from, for every score: one of the three."""

    how: Norms
    count: int
    sample_weight: Tensor | None
    grads: list[Tensor] | None = None
    norms: Tensor | None = None  # (count,)
    noisy: Tensor | None = None  # (count, heads): of each ``(D(x + sigma n) - D(x)) / sigma``

    def part(self, begin: int, end: int) -> Measured:
        """Of these rows of the samples."""
        size = self.how._rows_a_score()
        first, last = begin // size, end // size
        return Measured(
            self.how,
            last - first,
            None if self.sample_weight is None else self.sample_weight[first:last],
            None if self.grads is None else [g[begin:end] for g in self.grads],
            None if self.norms is None else self.norms[first:last],
            None if self.noisy is None else self.noisy[first:last],
        )

    def penalty(self, *, weight: Weight, center: float = 0.0, one_sided: bool = False) -> Result:
        """``weight * mean (norm - center)^2``, of one side ``max(0, norm - center)^2``."""
        how = self.how
        separate = how.return_raw or isinstance(weight, Tensor)
        raw = self._raw(1.0 if separate else weight, center, one_sided)
        if not separate:
            return raw
        factor = weight
        if isinstance(weight, Tensor):
            factor = weight.reshape(()).to(raw)
        return (factor * raw, raw.detach()) if how.return_raw else factor * raw

    def _raw(self, weight: Any, center: float, one_sided: bool) -> Tensor:
        how = self.how
        if self.grads is not None:
            return _groups.penalty(
                how.op,
                self.grads,
                how.groups,
                self.count,
                center=center,
                one_sided=one_sided,
                weight=weight,
                sample_weight=self.sample_weight,
                inv_scale=how.inv_scale,
                reduction=how.reduction,
            )
        if self.norms is not None:
            distance = self.norms - center
            values = (distance.relu() if one_sided else distance).square()
        else:
            assert self.noisy is not None
            q = self.noisy
            values = q.square()
            if center:  # E |q| is the norm times the root of 2 / pi
                values = values - 2 * center * math.sqrt(math.pi / 2) * q.abs() + center**2
            values = values.mean(1)
        if self.sample_weight is not None:
            values = values * self.sample_weight.to(values.dtype)
        return weight * (values.mean() if how.reduction == "mean" else values)
