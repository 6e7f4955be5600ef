"""The modules of a critic, and the state that they keep from call to call."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gankernels._critics.samples import is_inference
from gankernels._torch import is_capturing
from gankernels._warnings import _warned, is_turn, warn_once


def modules_of(D: Any) -> list[nn.Module]:
    """The modules that a callable is, or that it mentions: in a lambda, a partial, a method."""
    if isinstance(D, nn.Module):
        return list(D.modules())
    modules: dict[int, nn.Module] = {}
    if torch.compiler.is_compiling():
        return []
    seen: set[int] = set()
    mentioned = [D]
    for _ in range(4):  # a lambda, its cell, the trainer in it, the modules of that
        mentioned = [y for x in mentioned for y in _mentions(x, seen)]
        for x in mentioned:
            if isinstance(x, nn.Module):
                modules.update((id(m), m) for m in x.modules())
    return list(modules.values())


def _mentions(x: Any, seen: set[int]) -> Iterable[Any]:
    if id(x) in seen or isinstance(x, (nn.Module, Tensor, type, types.ModuleType)):
        return ()
    seen.add(id(x))
    if isinstance(x, functools.partial):
        return (x.func, *x.args, *x.keywords.values())
    if isinstance(x, types.MethodType):
        return (x.__self__, x.__func__)
    if isinstance(x, types.FunctionType):
        try:
            names = inspect.getclosurevars(x)
        except ValueError:  # a cell that is empty still
            return ()
        defaults = *(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values()
        return (*names.nonlocals.values(), *names.globals.values(), *defaults)
    if isinstance(x, dict):
        return tuple(x.values())
    if isinstance(x, (list, tuple)):
        return tuple(x)
    return tuple(getattr(x, "__dict__", {}).values())


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
#: With statistics of what they have seen, which a pass in training mode does not use.
_RUNNING = (*_BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def warn_of_coupled(op: str, D: Any) -> None:
    """Warn of batch normalization in training mode, once, looking at each critic once."""
    if torch.compiler.is_compiling() or "batch norm" in _warned:
        return
    if not is_turn("batch norm", D):
        return
    if any(isinstance(m, _BATCH_NORMS) and m.training for m in modules_of(D)):
        _warn_of_batch_norm(op)


def warn_of_coupled_graph(op: str, scores: Sequence[Tensor]) -> None:
    """The same of scores, whose critic is not known."""
    if torch.compiler.is_compiling() or "batch norm" in _warned or not is_turn("batch norm", op):
        return
    if any(is_coupling(node) for node in graph_nodes(scores)):
        _warn_of_batch_norm(op)


def is_coupling(node: Any) -> bool:
    """Whether a node of a graph is of batch normalization by the statistics of its batch."""
    return "BatchNorm" in node.name() and bool(getattr(node, "_saved_training", True))


def _warn_of_batch_norm(op: str) -> None:
    warn_once(
        "batch norm",
        f"{op}: the critic has batch normalization in training mode, by which the score of a "
        "sample depends on other samples of the batch; penalties are then wrong. Put layer, "
        "instance or group normalization in its place, or use none.",
    )


def graph_nodes(tensors: Sequence[Tensor]) -> Iterator[Any]:
    """The nodes of graphs."""
    nodes = [x.grad_fn for x in tensors]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if node is not None:
            yield node
            new = [n for n, _ in node.next_functions if n not in seen]
            seen.update(new)
            nodes += new


def couples_samples(D: Any) -> bool:
    """Whether layers make the score of a sample depend on others of its batch: batch normalization
    in training mode, and what is called minibatch statistics, whoever wrote it.
    """
    return any(
        (isinstance(m, _BATCH_NORMS) and m.training) or type(m).__name__.startswith("Minibatch")
        for m in modules_of(D)
    )


class _State:
    """A tensor under a module's name for it, with its value, which can be restored."""

    def __init__(self, names: dict[str, Any], name: str) -> None:
        self.names, self.name = names, name
        self.tensor: Tensor = names[name]
        self.memory = self.tensor.data
        self.value = self.memory.clone()

    def restore(self) -> None:
        if torch.compiler.is_compiling():
            with torch.no_grad():
                self.tensor.copy_(self.value)
            return
        self.names[self.name] = self.tensor
        if _address(self.tensor) != _address(self.memory):
            # Its data was assigned to; a graph may have saved the tensor that was assigned.
            self.tensor.data = self.memory
        # Past the count of writes: a graph may have saved a buffer that never changes.
        self.tensor.data.copy_(self.value)


def _address(x: Tensor) -> int:
    try:
        return x.data_ptr()
    except RuntimeError:  # a sparse tensor, or one of torch.func
        return 0


def states_of(D: Any, moving: bool) -> list[_State]:
    """The state that a critic's passes write: its buffers, or only those that passes read as well.

    Those are not the running statistics of normalization. Vectors that are parameters without a
    gradient belong to them: older spectral norms keep u and v so.
    """
    entries: dict[int, tuple[dict[str, Any], str]] = {}
    for m in modules_of(D):
        if moving and isinstance(m, _RUNNING):
            continue
        # Dynamo does not trace is_lazy.
        compiling = torch.compiler.is_compiling()
        for names in (m._buffers,) if compiling else (m._buffers, m._parameters):
            for name, x in names.items():
                if x is None or (not compiling and is_lazy(x)) or not _writable(x):
                    continue
                if names is m._parameters:
                    vector = x.numel() == max(x.shape, default=1) and type(x) is nn.Parameter
                    if not vector or x.requires_grad:
                        continue
                entries.setdefault(id(x), (names, name))
    return [_State(*entry) for entry in entries.values()]


class Held:
    """A block for each pass of a critic; all start from the buffers, and torch's random numbers,
    that the first started from.

    Afterwards both are what the first pass left. Where the first pass is ``seen``, the caller's
    own, passes leave what they found, and there is a warning if they are of another function.
    """

    def __init__(self, op: str, D: Any, seen: bool = False) -> None:
        self.op, self.D, self.seen = op, D, seen
        self.before = states_of(D, moving=True)
        self.after: list[_State] | None = None
        self.random = _Random()

    def __enter__(self) -> None:
        if self.after is not None:
            for state in self.before:
                state.restore()
        self.random.begin()
        self.versions = [_version(state.tensor) for state in self.before]

    def __exit__(self, *_: Any) -> None:
        if self.seen:
            self._warn_of_changes(self.random.was_drawn())
        self.random.end()
        if self.after is None:
            self.after = (
                self.before
                if self.seen
                else [
                    _State(state.names, state.name)
                    for state in self.before
                    if state.names.get(state.name) is not None
                ]
            )
            if not self.seen:
                return
        for state in self.after:
            state.restore()

    def _warn_of_changes(self, drawn: bool) -> None:
        moved = any(
            state.names.get(state.name) is not state.tensor or _version(state.tensor) != version
            for state, version in zip(self.before, self.versions, strict=True)
        )
        if moved or drawn:
            what = "moves its buffers, as spectral normalization does"
            if not moved:
                what = "draws random numbers, as dropout does"
            warn_once(
                "seen",
                f"{self.op}: the critic {what}, so that the pass of the logits and this one are of "
                "different functions, whose difference is measured, too. Give the critic in the "
                "place of the logits, or take gankernels.critic_step, which calls it in one state.",
            )


def _version(x: Tensor) -> int:
    return -1 if torch.compiler.is_compiling() or is_inference(x) else x._version


class _Random:
    """torch's own random numbers: every pass draws what the first one drew, and those after it
    leave no trace.

    Those of a GPU are drawn anew in a CUDA graph, where they cannot be set.
    """

    def __init__(self) -> None:
        self.first: tuple[Tensor, Tensor | None] | None = None
        self.current: tuple[Tensor, Tensor | None] | None = None

    def begin(self) -> None:
        if torch.compiler.is_compiling():
            return
        if self.first is None:
            self.first = random_states()
        else:
            self.current = random_states()
            set_random_states(*self.first)

    def was_drawn(self) -> bool:
        """Whether the pass that runs has drawn any."""
        if self.first is None or torch.compiler.is_compiling():
            return False
        pairs = zip(self.first, random_states(), strict=True)
        return any(a is not None and b is not None and not torch.equal(a, b) for a, b in pairs)

    def end(self) -> None:
        if self.current is not None:
            set_random_states(*self.current)


def random_states() -> tuple[Tensor, Tensor | None]:
    gpu = torch.cuda.is_initialized() and not is_capturing()
    return torch.get_rng_state(), torch.cuda.get_rng_state() if gpu else None


def set_random_states(cpu: Tensor, gpu: Tensor | None) -> None:
    torch.set_rng_state(cpu)
    if gpu is not None and not is_capturing():
        torch.cuda.set_rng_state(gpu)


def _writable(buffer: Tensor) -> bool:
    return not is_inference(buffer) or torch.is_inference_mode_enabled()
