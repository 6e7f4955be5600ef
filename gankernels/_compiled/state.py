"""What a step moves besides gradients, so that it can be run once more from where it began."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from gankernels._critics.states import random_states, set_random_states, states_of


def tensors_in(x: Any) -> Iterator[Tensor]:
    """The tensors of nested lists, tuples and dicts."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, dict):
        for value in x.values():
            yield from tensors_in(value)
    elif isinstance(x, (list, tuple)):
        for value in x:
            yield from tensors_in(value)


class State:
    """Buffers of all modules that a function mentions, such as u and v, the tensors that it is
    given, and the random numbers of torch and of Python; as they are now.
    """

    def __init__(self, mentions: Any, arguments: Iterable[Tensor]) -> None:
        self.buffers = states_of(mentions, moving=False)
        self.arguments = [(x, x.detach().clone()) for x in arguments]
        self.random = random_states(), random.getstate()

    def restore(self) -> None:
        for state in self.buffers:
            state.restore()
        with torch.no_grad():
            for x, value in self.arguments:
                x.data.copy_(value)
        set_random_states(*self.random[0])
        random.setstate(self.random[1])

    def buffers_now(self) -> list[tuple[str, Tensor]]:
        """Copies of the buffers that hold numbers, with their names."""
        return [
            (state.name, state.tensor.detach().clone())
            for state in self.buffers
            if state.tensor.is_floating_point()
        ]
