"""The modules between a fused model and its weights, and who may write them on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.nn import Module

from gankernels._torch import is_compiled


class Ancestors:
    """Of the modules that hold weights, one for each weight. ``is_known`` tells hooks that write
    none; ``own`` is the key of the model's hook after which weights must not change."""

    def __init__(
        self, model: Module, holders: Sequence[Module], own: int, is_known: Callable[[Any], bool]
    ) -> None:
        self.model, self.own, self.is_known = model, own, is_known
        self.count = len(holders)
        places: dict[int, list[int]] = {}
        for i, holder in enumerate(holders):
            places.setdefault(id(holder), []).append(i)
        # Modules from the model to the holders, each with the numbers of the weights below it.
        self._below: list[tuple[Module, list[int]]] = []
        # Of a module: its hooks, and what they may do.
        self._known_hooks: dict[int, tuple[Any, tuple[bool, bool]]] = {}
        for module in model.modules():
            below = [i for part in module.modules() for i in places.get(id(part), ())]
            if below:
                self._below.append((module, below))

    def free(self) -> tuple[set[int], set[int]]:
        """The weights that can be computed ahead; and those that FSDP gathers later."""
        free, gathered = set(range(self.count)), set[int]()
        for module, below in self._below:
            if module._forward_pre_hooks or is_compiled(module):
                may_write, gathers = self._hooked(module)
                if may_write:
                    free.difference_update(below)
                if gathers:
                    gathered.update(below)
        return free, gathered

    def _hooked(self, module: Module) -> tuple[bool, bool]:
        """Whether somebody may write weights when a module on the way is called: by a hook that is
        not ours, through ``.data`` perhaps, which torch does not count; or by compiled code, which
        computes weights for itself. And whether FSDP gathers its weights then, and frees them as
        soon as its part of a backward pass is over."""
        hooks = module._forward_pre_hooks
        state = tuple(hooks), is_compiled(module)
        known = self._known_hooks.get(id(module))
        if known is not None and known[0] == state:
            return known[1]
        later = list(hooks.items())
        if module is self.model:  # what has run before this has been seen
            mine = [i for i, (key, _) in enumerate(later) if key == self.own]
            later = later[mine[0] + 1 :] if mine else later
        gathers = any(_gathers(hook) for _, hook in later)
        foreign = [hook for _, hook in later if not (self.is_known(hook) or _gathers(hook))]
        if module is self.model and foreign and len(foreign) == len(later):
            hooks.move_to_end(self.own)  # type: ignore[attr-defined]
        may_write = bool(foreign) or (state[1] and module is not self.model)
        self._known_hooks[id(module)] = state, (may_write, gathers)
        return may_write, gathers


def _gathers(hook: Any) -> bool:
    return type(getattr(hook, "__self__", None)).__module__.startswith("torch.distributed.fsdp.")
