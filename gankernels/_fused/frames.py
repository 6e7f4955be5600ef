"""Frames: the time of a fused model's forward, for which it has computed weights of its modules."""

from __future__ import annotations

import sys
import threading
from typing import Any

import torch

from gankernels._torch import (
    in_backward,
    in_dispatch_mode,
    in_forward_ad,
    in_functorch,
    in_jit_trace,
    register_pytree_node,
    saves_through_hooks,
)


class OpenFrames(threading.local):
    """The frames of a thread, the innermost last."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def open(self, model: Any, caller: Any) -> Frame:
        """A new frame, of a model whose forward the Python frame ``caller`` calls."""
        return Frame(model, caller, self.frames)

    def close_interrupted(self) -> None:
        """Close the frames whose forward has been interrupted."""
        for frame in reversed(self.frames[:]):
            if not frame.runs(Depth()):
                frame.close()

    def close_innermost_of(self, model: Any) -> None:
        """Close the innermost frame of a model, whose forward ends, and those left within it."""
        for i in reversed(range(len(self.frames))):
            if self.frames[i].model is model:
                for frame in reversed(self.frames[i:]):
                    frame.close()
                return

    def close_all_of(self, model: Any) -> None:
        """Close the frames of a model; layers that are still to come compute their own weights."""
        for frame in reversed(self.frames[:]):
            if frame.model is model:
                frame.close()


class Depth:
    """How deep in the stack a forward was found the last time."""

    depth = 0


class Frame:
    """The deposits of a model's forward, while that runs."""

    def __init__(self, model: Any, caller: Any, owner: list[Frame]) -> None:
        self.model = model
        self.caller = id(caller)  # the Python frame that calls the model's forward
        self.inference = torch.is_inference_mode_enabled()
        self._deposits: dict[int, Any] = {}  # by the id of whom they are for, whom they keep alive
        self.planned: Any = None  # deposits that are made when somebody looks at one
        self.owner = owner  # another thread may collect the token
        self.owner.append(self)

    @property
    def deposits(self) -> dict[int, Any]:
        planned, self.planned = self.planned, None
        if planned is not None:
            planned.spread(self._deposits)
        return self._deposits

    def runs(self, memory: Any) -> bool:
        """Whether this forward is still running, and not just held by a traceback.

        Looks first where it was the last time, ``memory.depth``, which is as good as free.
        """
        try:
            if id(sys._getframe(memory.depth)) == self.caller:
                return True
        except ValueError:  # there are not so many
            pass
        n, at = 0, sys._getframe()
        while at is not None and id(at) != self.caller:
            n, at = n + 1, at.f_back  # type: ignore[assignment]
        if at is not None:
            memory.depth = n
        return at is not None

    def close(self) -> None:
        if self in self.owner:
            self.owner.remove(self)
        if self.planned is not None and not self.planned.left:
            self.planned = None  # all were used, as they mostly are
        deposits, self._deposits = self.deposits, {}
        for deposit in deposits.values():
            deposit.take_back()


class _Token:
    """A part of the arguments of a forward, gone with them when that ends, however it ends: the
    hooks that torch always calls are not called after a KeyboardInterrupt."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame

    def __del__(self) -> None:
        if self.frame.deposits and not in_dispatch_mode() and not in_functorch():
            self.frame.close()


class _Arguments(tuple):
    """The arguments of a forward, with a token. Hooks that come later see a tuple as any other:
    copies, pickles and what is mapped over it are plain ones."""

    token: _Token

    def __reduce_ex__(self, protocol: Any) -> Any:
        return tuple, (tuple(self),)


register_pytree_node(_Arguments, lambda args: (list(args), None), lambda parts, _: tuple(parts))


def with_token(model: Any, args: Any, frame: Frame) -> tuple | None:
    """The arguments for the forward of a model, which close its frame when they are gone; None
    where they cannot be replaced."""
    if model._backward_hooks or model._backward_pre_hooks:
        return None  # they replace the arguments
    arguments = _Arguments(args)
    arguments.token = _Token(frame)
    return arguments


def can_deposit() -> bool:
    """Whether weights may be computed ahead: not where somebody watches what each one does."""
    return not (
        saves_through_hooks()
        or in_backward()
        or in_dispatch_mode()
        or in_functorch()
        or in_forward_ad()
        or in_jit_trace()
    )
