"""The calls of a critic, or a generator, in one penalty."""

from __future__ import annotations

import copy
import difflib
import inspect
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gankernels._checks import (
    check_callable,
    raised_in,
)
from gankernels._critics.samples import Samples, usable
from gankernels._critics.scores import (
    Pick,
    check_alike,
    check_floating_scores,
    check_pick,
    listed_scores,
    pick_scores,
    picks,
)
from gankernels._critics.states import Held

Scores = Any  # a tensor, or a flat list of them
Critic = Callable[..., Any]


class Calls:
    """The calls of a critic, or a generator, in one penalty.

    It gets copies of the samples, so that a first layer which works in place changes neither the
    caller's tensors nor the points where gradients are taken. Passes after the first see the
    buffers that the first saw, and leave those that it left: u and v of spectral normalization move
    once, and all passes are of one function.

    Args:
        own: the hyper-parameters of the penalty, which are not for the critic.
        passes: how many calls there will be, one of them by the caller if ``seen``.
        what: the name of the argument.
    """

    def __init__(
        self,
        op: str,
        D: Critic,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        own: Sequence[str],
        scores: Pick = None,
        passes: int = 1,
        seen: bool = False,
        what: str = "D",
    ) -> None:
        check_callable(op, what, D)
        check_pick(op, scores)
        _refuse_hyperparameters(op, D, args, kwargs, own, what)
        self.op, self.D, self.what, self.own = op, D, what, own
        self.args, self.kwargs = args, kwargs
        self.pick = scores
        self.held = Held(op, D, seen) if passes > 1 else None

    def with_rows(self, change: Callable[[Tensor], Tensor], rows: Sequence[int]) -> None:
        """Change what goes to the critic besides samples where its first dimension is that of them:
        labels, those in lists, tuples and dicts, too.
        """
        self.args = [_changed(value, change, rows) for value in self.args]
        self.kwargs = {name: _changed(value, change, rows) for name, value in self.kwargs.items()}

    def part(self, change: Callable[[Tensor], Tensor], rows: Sequence[int]) -> Calls:
        """Calls in the same state, with what else goes to the critic changed so."""
        other = copy.copy(self)
        other.with_rows(change, rows)
        return other

    def repeat_for_halves(
        self, rows: Sequence[int], first: int | None = None, size: int = 1
    ) -> None:
        """Labels for one batch of real and generated samples, as many rows as these, of which
        ``size`` share a score; of the ``first`` rows of each.
        """

        def both(x: Tensor) -> Tensor:
            if len(x) == sum(rows):
                reals, fakes = x[: rows[0]], x[rows[0] :]
                return x if first is None else torch.cat((reals[:first], fakes[:first]))
            if first is not None:
                x = x[: first if len(x) == rows[0] else first // size]
            return torch.cat((x, x))

        alike = (rows[0], rows[0] // size) if rows[0] == rows[1] else ()
        self.with_rows(both, (*alike, sum(rows)))

    def __call__(self, x: Samples) -> Any:
        """The results of the network for these samples."""
        x = copied(x)
        args, kwargs = self.args, self.kwargs
        if torch.compiler.is_compiling():
            return self._held_call(x, args, kwargs)
        if not torch.is_inference_mode_enabled():
            args, kwargs = usable(tuple(args)), usable(dict(kwargs))
        try:
            with raised_in(self.op, self.what):
                return self._held_call(x, args, kwargs)
        except TypeError as error:
            self._explain_type(error)
            raise
        except RuntimeError as error:
            if "nference tensor" in str(error) and not torch.is_inference_mode_enabled():
                raise RuntimeError(
                    f"{self.op}: expected {self.what} without tensors of torch.inference_mode(), "
                    "which autograd cannot save; make its parameters, and what else it uses, "
                    "outside of that mode, or clone them"
                ) from error
            raise

    def _held_call(self, x: Any, args: Any, kwargs: Any) -> Any:
        if self.held is None:
            return self.D(x, *args, **kwargs)
        with self.held:
            return self.D(x, *args, **kwargs)

    def scores(self, x: Samples) -> list[Tensor]:
        """The scores of these samples, as a list."""
        outputs = self(x)
        cure = f"say which are the scores: {picks(outputs)}"
        return read_scores(self.op, outputs, self.pick, cure)

    def _explain_type(self, error: TypeError) -> None:
        """Raise in words where D does not take what the penalty has passed on."""
        message = str(error)
        keyword = re.search(r"unexpected keyword argument '(\w+)'", message)
        if keyword and keyword[1] in self.kwargs:
            raise TypeError(
                f"{self.op}: expected only keywords that {self.what} takes, which get passed on to "
                f"it, got {keyword[1]}={did_you_mean(keyword[1], self.own)} ({message})"
            ) from error
        if self.args and re.search(r"positional arguments? but \d+ (was|were) given", message):
            raise TypeError(
                f"{self.op}: expected after the samples what {self.what} takes, which gets passed "
                f"on to it, got {len(self.args)} more; settings of the penalty are keywords: "
                f"{', '.join(self.own)} ({message})"
            ) from error


def _changed(value: Any, change: Callable[[Tensor], Tensor], rows: Sequence[int]) -> Any:
    if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] in rows:
        return change(value)
    if type(value) in (list, tuple):
        return type(value)([_changed(x, change, rows) for x in value])
    if type(value) is dict:
        return {key: _changed(x, change, rows) for key, x in value.items()}
    return value


def read_scores(op: str, outputs: Any, pick: Pick, cure: str) -> list[Tensor]:
    scores = listed_scores(
        op,
        "the critic's scores to be a tensor or a list of them",
        pick_scores(op, outputs, pick),
        cure,
        empty="the critic to return scores",
    )
    check_floating_scores(op, "the critic's scores", scores)
    if not callable(pick):  # who has written a function has looked
        check_alike(op, "the critic's scores", scores, cure)
    return scores


def copied(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.clone()
    return [copied(p) for p in x] if isinstance(x, (list, tuple)) else x


#: Settings of the penalties of this package, and what other code calls them, by their meaning.
_MEANINGS = (
    (
        *("weight", "gamma", "weight_real", "weight_fake", "coefficient", "gp_weight", "lambda_"),
        *("lambda_gp", "lambda_r1", "lambd", "r1_gamma", "r2_gamma", "sample_weight", "interval"),
        *(
            "gp_lambda",
            "lamb",
            "lmbda",
            "lam",
            "coef",
            "gp_coef",
            "r1_weight",
            "penalty_weight",
            "r1",
            "r2",
        ),
    ),
    ("center", "k", "center", "one_sided"),
    ("scale", "sigma", "std", "noise"),
    ("inv_scale", "grad_scale"),
    ("generator",),
    ("groups", "pac"),
    ("scores",),
    ("method",),
    ("heads",),
    ("first", "samples", "num_samples"),
    ("allow_unused",),
    ("return_raw",),
    ("reduction", "per_tensor", "return_norms", "n_power_iterations", "eps"),
)
_SETTINGS = {name: meaning for meaning in _MEANINGS for name in meaning}


def _refuse_hyperparameters(
    op: str, D: Any, args: Sequence[Any], kwargs: Mapping[str, Any], own: Sequence[str], what: str
) -> None:
    """Refuse settings that would silently become arguments of the critic, misspelt ones, too."""
    compiling = torch.compiler.is_compiling()  # Dynamo traces neither difflib nor numbers
    for name in kwargs:
        near = not compiling and difflib.get_close_matches(name.lower(), own, 1, 0.8)
        if (near or name in _SETTINGS) and name not in _parameters(D):
            raise TypeError(
                f"{op}: expected {name}= to be a keyword of {op}, or one that {what} names, got "
                f"neither{did_you_mean(name, own)} To have it passed on to {what}: "
                f"functools.partial({what}, {name}=...)"
            )
    for value in args:
        number = isinstance(value, (int, float) if compiling else numbers.Real)  # NumPy's, too
        number = number and not isinstance(value, bool)
        if number or isinstance(value, torch.Generator):
            shown = repr(value) if number else "a torch.Generator"
            setting = "generator" if not number else own[0]
            raise TypeError(
                f"{op}: expected after the samples what goes to {what}, such as labels, got "
                f"{shown}; did you mean {setting}={'...' if not number else shown}? To have it "
                f"passed on to {what}, name it, or use functools.partial"
            )
        if isinstance(value, str) and value in ("uniform", "gaussian") and "noise" in own:
            raise TypeError(
                f"{op}: expected after the samples what goes to {what}, such as labels, got "
                f'"{value}"; did you mean noise="{value}"?'
            )


def did_you_mean(name: str, own: Sequence[str]) -> str:
    """The end of a sentence about a keyword that is none."""
    alike = [x for x in own if x in _SETTINGS.get(name, ())]
    if not alike:
        alike = difflib.get_close_matches(name.lower(), own, 1)
    return f"; did you mean {alike[0]}=?" if alike else f" (its own are {', '.join(own)})."


def _parameters(D: Any) -> set[str]:
    """The parameters that a critic names, through wrappers such as DistributedDataParallel."""
    names: set[str] = set()
    while True:
        try:
            function = D.forward if isinstance(D, nn.Module) else D
            names.update(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            pass
        inner = getattr(D, "module", None)
        if not (isinstance(D, nn.Module) and isinstance(inner, nn.Module)):
            return names - {"kwargs", "args"}
        D = inner
