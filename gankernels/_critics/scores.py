"""The results of a critic, read as scores: a tensor, or a flat list of tensors, one a scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gankernels._checks import check_callable, check_floats, instead_of, kind, raised_in
from gankernels._warnings import warn_once

#: The part of a critic's results that are its scores: a key or attribute, an index, a function.
Pick = str | int | Callable[[Any], Any] | None

#: Scores have few channels, and features many.
_MANY = 8


def check_pick(op: str, pick: Pick) -> None:
    if pick is None or isinstance(pick, str):
        return
    if isinstance(pick, bool) or not (isinstance(pick, int) or callable(pick)):
        raise TypeError(
            f"{op}: expected scores to be a key, an index or a function that picks the scores out "
            f"of what the critic returns, got {kind(pick)}"
        )


def pick_scores(op: str, outputs: Any, pick: Pick) -> Any:
    """The scores among what a critic has returned."""
    if pick is None:
        return outputs
    if isinstance(pick, str):
        if isinstance(outputs, Mapping):
            has, names = pick in outputs, [str(key) for key in outputs]
        else:  # a NamedTuple, or a dataclass
            has = hasattr(outputs, pick)
            names = list(getattr(outputs, "_fields", getattr(outputs, "__dict__", ())))
        if not has:
            among = f" with {', '.join(names)}" if names else ""
            raise ValueError(
                f'{op}: expected the critic to return scores under "{pick}", got '
                f"{kind(outputs)}{among}"
            )
        return outputs[pick] if isinstance(outputs, Mapping) else getattr(outputs, pick)
    if isinstance(pick, int):
        if not isinstance(outputs, (list, tuple, Mapping)):
            raise TypeError(
                f"{op}: expected the critic to return a list or tuple, of which scores={pick} is "
                f"one, got {kind(outputs)}"
            )
        try:
            return outputs[pick]
        except LookupError:
            raise ValueError(
                f"{op}: expected the critic to return something at scores={pick}, got "
                f"{kind(outputs)} of {len(outputs)}"
            ) from None
    check_callable(op, "scores", pick)
    with raised_in(op, "scores"):
        return pick(outputs)


def picks(outputs: Any) -> str:
    """An example of ``scores``: what has the fewest numbers, as scores have fewer than features."""
    if isinstance(outputs, Tensor) or torch.compiler.is_compiling():
        return 'scores=0, scores="logits" or a function'
    named = isinstance(outputs, Mapping)
    found = outputs.items() if named else enumerate(outputs) if _is_list(outputs) else ()
    sizes = {key: sum(x.numel() for x in _tensors(value)) for key, value in found}
    sizes = {key: n for key, n in sizes.items() if n}
    if len(sizes) < 2:
        return 'scores=0, scores="logits" or a function'
    key = min(sizes, key=lambda k: sizes[k])
    shapes = ", ".join(str(tuple(x.shape)) for x in _tensors(outputs[key]))
    shown = f'"{key}"' if named else key
    return f"scores={shown} if they are what has the shape {shapes}, or a function"


def _is_list(x: Any) -> bool:
    return isinstance(x, (list, tuple))


def _tensors(x: Any) -> list[Tensor]:
    if isinstance(x, Tensor):
        return [x]
    parts = x.values() if isinstance(x, Mapping) else x if _is_list(x) else ()
    return [t for part in parts for t in _tensors(part)]


def listed_scores(
    op: str, expected: str, value: Any, cure: str, *, empty: str | None = None
) -> list[Tensor]:
    """Scores as a list; refuses everything nested, named or keyed, which features may be in.

    Args:
        expected: of an error, such as ``"real_logits to be a tensor or a list of tensors"``.
        cure: what to do where it is something else.
        empty: the expectation that an empty list fails.
    """
    if isinstance(value, Tensor):
        return [value]
    if type(value) not in (list, tuple):  # a NamedTuple has more than scores
        if callable(value):  # the critic itself; an nn.Sequential can be iterated over, too
            cure = "call it on the samples, and pass what it returns"
        elif not isinstance(value, (tuple, list)):
            cure = instead_of(value, expected.partition(" ")[0]) or cure
        raise TypeError(f"{op}: expected {expected}, got {kind(value)}; {cure}")
    if not value:
        raise ValueError(f"{op}: expected {empty or expected}, got an empty list")
    for x in value:
        if not isinstance(x, Tensor):
            got = f"a {kind(value)} with {kind(x)}"
            raise TypeError(f"{op}: expected {expected}, got {got}; {cure}")
    return list(value)


def check_floating_scores(op: str, name: str, scores: list[Tensor]) -> None:
    for x in scores:
        check_floats(op, name, x)


#: How maps with many channels become scores, where scores are added up, and where averaged.
ADDED = "add up each over everything but the batch"
AVERAGED = "flatten each by x.flatten(1)"


def check_alike(
    op: str, name: str, scores: list[Tensor], cure: str, otherwise: str = ADDED
) -> None:
    """Refuse a flat list of scores and features where their shapes tell them apart.

    The maps of several scales have one number of channels, whatever their sizes: a map of 8 and
    more channels beside one with fewer, or beside one score a sample, is of features. A vector
    (B, N) may be a map of scores, flattened, and only gets a warning. ``otherwise`` is what to do
    with maps that are scores all the same.
    """
    if len(scores) < 2:
        return
    maps = [x.shape[1] for x in scores if x.dim() > 2 and (x.dim() > 3 or x.shape[2] > 1)]
    single = any(x.numel() == len(x) for x in scores if x.dim() > 0)
    fewest = 1 if single else min(maps, default=0)
    shapes = ", ".join(str(tuple(x.shape)) for x in scores)
    if maps and max(maps) >= _MANY and max(maps) > fewest:
        raise ValueError(
            f"{op}: expected {name} of several scales, which have equally many channels, got "
            f"shapes {shapes}, which look like scores and features; {cure}. Where all of them are "
            f"scores, {otherwise}"
        )
    if single and any(x.dim() == 2 and x.shape[1] >= _MANY for x in scores):
        warn_once(
            "features",
            f"{op}: {name} are a list of shapes {shapes}, which are added up as scores. Where the "
            f"longer ones are features, {cure}.",
        )
