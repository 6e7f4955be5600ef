"""A critic's whole step as one compiled graph, gradients and second derivatives included."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gankernels._checks import check_bool, check_callable, describe, kind
from gankernels._compiled.check import FLOOR, Compared, Error, largest_error, tolerance_of
from gankernels._compiled.delivery import Replicas
from gankernels._compiled.reasons import Reason, reason_of
from gankernels._compiled.state import State, tensors_in
from gankernels._critics.states import modules_of
from gankernels._torch import (
    backend_of,
    can_trace_autograd_ops,
    compile_errors,
    is_capturing,
    tracing_autograd_ops,
    without_hooks,
)
from gankernels._warnings import warn
from gankernels.spectral_norm.sharded import is_sharded

__all__ = ["CompiledStep", "compile_step"]

_OP = "compile_step"
#: So many kinds of calls may fail to compile; after that, no other is tried.
_FAILURES = 3

Grads = tuple[Tensor | None, ...]


class CompiledStep:
    """The callable of :func:`compile_step`."""

    def __init__(
        self,
        loss: Callable[..., Any],
        critics: list[nn.Module | Tensor],
        backend: Callable[..., Any],
        dynamic: bool | None,
        check: bool,
        strict: bool,
    ) -> None:
        self.loss, self.critics, self.check, self.strict = loss, critics, check, strict
        #: How many graphs were compiled.
        self.graphs = 0
        #: Why calls run in eager mode, in words; empty where all are compiled.
        self.reasons: list[str] = []
        self._backend = backend
        self._compiled = torch.compile(
            _gradients, fullgraph=True, dynamic=dynamic, backend=self._compile_graph
        )
        self._done: set[Any] = set()  # kinds of calls that were compiled
        self._eager: set[Any] = set()  # those that are not
        self._replicas = Replicas([])
        self._attributes: list[tuple[nn.Module, str]] = []
        self._arguments: tuple[Any, ...] = ()
        self._before: State | None = None  # of the first run of a graph
        self._never = not can_trace_autograd_ops()
        if self._never:
            message = (
                f"{_OP}: expected a torch whose Dynamo traces torch.autograd.grad "
                f"(torch._dynamo.config.trace_autograd_ops), got torch {torch.__version__}; take a "
                "later one"
            )
            if strict:
                raise RuntimeError(message)
            self.reasons.append(f"{message}. The step runs in eager mode.")
            warn(self.reasons[0])

    def __repr__(self) -> str:
        return f"CompiledStep({getattr(self.loss, '__name__', self.loss)}, {self.graphs} graphs)"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            raise RuntimeError(
                f"{_OP}: expected gradients to be enabled, got a call within torch.no_grad() or "
                "torch.inference_mode(); call the loss itself there"
            )
        parameters = self._parameters()
        sort = self._kind_of(parameters, args, kwargs)
        if sort not in self._done and sort not in self._eager:
            self._prepare(parameters)
        call = self.loss, parameters, self._attributes, args, kwargs
        # Their hooks see the gradients when they are handed over.
        with self._replicas.unwrapped(), without_hooks(parameters):
            if sort in self._eager or self._has_given_up(sort):
                outputs, grads = _gradients(*call)
            else:
                outputs, grads = self._run(sort, *call)
        self._replicas.deliver(parameters, grads)
        return outputs

    def _run(self, sort: Any, *call: Any) -> tuple[Any, Grads]:
        self._before, self._arguments, reason = None, call, None
        try:
            with tracing_autograd_ops():
                compiled = self._compiled(*call)
        except compile_errors() as error:
            reason = reason_of(error)
        except BaseException:
            if self._before is not None:
                self._before.restore()
            raise
        finally:
            before, self._before, self._arguments = self._before, None, ()
        if reason is not None:
            return self._fall_back(sort, reason, call)
        self._done.add(sort)
        return compiled if before is None else self._checked(sort, before, compiled, call)

    def _compile_graph(self, graph: Any, inputs: Any) -> Any:
        """The backend of torch.compile; what it returns notes the state before its first run."""
        function = self._backend(graph, inputs)
        self.graphs += 1
        fresh = self.check

        def run(*args: Any) -> Any:
            nonlocal fresh
            if fresh:
                fresh = False
                if is_capturing():
                    raise RuntimeError(
                        f"{_OP}: expected calls of this kind before the capture of a CUDA graph, "
                        "got the first within it; call the step once before, as a warm-up"
                    )
                self._before = self._state(*self._arguments)
            return function(*args)

        return run

    def _state(self, loss: Any, _: Any, __: Any, args: Any, kwargs: Any) -> State:
        mentions = functools.partial(loss, *self._modules())
        return State(mentions, tensors_in([args, kwargs]))

    def _checked(
        self, sort: Any, before: State, compiled: tuple[Any, Grads], call: Any
    ) -> tuple[Any, Grads]:
        """What eager mode makes of the same state, which is compared. It is what is returned."""
        buffers = before.buffers_now()
        before.restore()
        try:
            eager = _gradients(*call)
        except BaseException:
            before.restore()
            raise
        error = self._disagreement(before, buffers, compiled, eager, call)
        if error is not None:
            message = (
                f"{_OP}: compiled, {error.name} is off by {error.figure:.1e} of what eager mode has"
            )
            if self.strict:
                before.restore()
                raise RuntimeError(f"{message}; compile without it, or report it")
            self._stay_eager(sort, f"{message}. Such calls run in eager mode.")
        return eager

    def _disagreement(
        self,
        before: State,
        buffers: Sequence[tuple[str, Tensor]],
        compiled: tuple[Any, Grads],
        eager: tuple[Any, Grads],
        call: Any,
    ) -> Error | None:
        _, parameters, _, args, kwargs = call
        numbers = [*parameters, *tensors_in([args, kwargs, eager[0]])]
        tolerance = tolerance_of(numbers, _autocast_dtype(parameters))
        names = self._names(parameters)
        groups = [
            [
                Compared("the loss" if i == 0 else f"output {i}", a, b)
                for i, (a, b) in enumerate(
                    zip(tensors_in(compiled[0]), tensors_in(eager[0]), strict=True)
                )
                if a.is_floating_point()
            ],
            [
                Compared(f"the gradient of {name}", a, b)
                for name, a, b in zip(names, compiled[1], eager[1], strict=True)
            ],
            [
                Compared(f"the buffer {name}", a, b)
                for (name, a), (_, b) in zip(buffers, before.buffers_now(), strict=True)
            ],
        ]
        for pairs, floor in zip(groups, (FLOOR, FLOOR, 0.0), strict=True):
            error = largest_error(pairs, floor)
            if error is not None and not error.figure <= tolerance:
                return error
        return None

    def _fall_back(self, sort: Any, reason: Reason, call: Any) -> tuple[Any, Grads]:
        """Eager mode, where torch cannot compile: nothing has run yet."""
        before = self._state(*call)
        try:
            results = _gradients(*call)  # raises where the function itself does
        except BaseException:
            before.restore()
            raise
        message = f"{_OP}: torch cannot compile this as one graph: {reason}."
        if self.strict:
            before.restore()
            raise RuntimeError(message)
        self._stay_eager(sort, f"{message} Such calls run in eager mode.")
        return results

    def _stay_eager(self, sort: Any, message: str) -> None:
        self._eager.add(sort)
        self._done.discard(sort)
        if message not in self.reasons:
            self.reasons.append(message)
            warn(message)

    def _has_given_up(self, sort: Any) -> bool:
        return self._never or (len(self._eager) >= _FAILURES and sort not in self._done)

    # --- what it is called with -------------------------------------------------------------------

    def _modules(self) -> list[nn.Module]:
        return [x for x in self.critics if isinstance(x, nn.Module)]

    def _parameters(self) -> tuple[Tensor, ...]:
        """Those that are trained now, each once."""
        found: dict[int, Tensor] = {}
        for x in self.critics:
            for p in x.parameters() if isinstance(x, nn.Module) else (x,):
                if p.requires_grad:
                    found.setdefault(id(p), p)
        if not found:
            raise ValueError(
                f"{_OP}: expected parameters that require a gradient, got none; call "
                "requires_grad_() of the critic"
            )
        return tuple(found.values())

    def _names(self, parameters: Sequence[Tensor]) -> list[str]:
        names: dict[int, str] = {}
        for module in self._modules():
            for name, p in module.named_parameters():
                names.setdefault(id(p), name)
        return [names.get(id(p), f"parameter {i}") for i, p in enumerate(parameters)]

    def _kind_of(self, parameters: Sequence[Tensor], args: Any, kwargs: Any) -> Any:
        """What calls have in common that one graph, or one failure, is of."""
        samples = [(x.shape, x.dtype, x.device) for x in tensors_in([args, kwargs])]
        training = [m.training for m in self._modules()]
        return (*samples, *training, *map(id, parameters), _autocast_dtype(parameters))

    def _prepare(self, parameters: Sequence[Tensor]) -> None:
        mentioned = modules_of(functools.partial(self.loss, *self._modules()))
        self._attributes = [
            (module, name)
            for module in mentioned
            for name, value in vars(module).items()
            if isinstance(value, Tensor)
        ]
        if any(map(is_sharded, parameters)) or any(map(_is_fully_sharded, mentioned)):
            raise RuntimeError(
                f"{_OP}: expected parameters that are whole on each rank, got shards, as of "
                "fully_shard: torch compiles none of its hooks, and torch.autograd.grad leaves "
                "gradients unreduced without a word. Call backward(), compile the blocks of the "
                'network before they are wrapped, and give penalties method="difference"'
            )
        wrapped = [m for m in mentioned if isinstance(m, DistributedDataParallel)]
        for ddp in wrapped:
            if getattr(ddp, "static_graph", False):
                raise RuntimeError(
                    f"{_OP}: expected DistributedDataParallel without static_graph=True, by which "
                    "torch would leave gradients unreduced"
                )
        if [id(m) for m in wrapped] != [id(m) for m in self._replicas.wrapped]:
            self._replicas = Replicas(wrapped)


def _is_fully_sharded(module: nn.Module) -> bool:
    names = {base.__name__ for base in type(module).__mro__}
    return bool(names & {"FSDPModule", "FullyShardedDataParallel"})


def _autocast_dtype(parameters: Sequence[Tensor]) -> torch.dtype | None:
    device = parameters[0].device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _gradients(
    loss: Callable[..., Any],
    parameters: tuple[Tensor, ...],
    attributes: list[tuple[nn.Module, str]],
    args: Any,
    kwargs: Any,
) -> tuple[Any, Grads]:
    """The step: what the function returns, detached, and the gradients of its first tensor.

    ``attributes`` are tensors that modules hold beside their parameters and buffers, such as the
    weights that hooks compute: their graph, which the gradients have used up, must not be left.
    """
    outputs = loss(*args, **kwargs)
    value = outputs[0] if isinstance(outputs, tuple) and outputs else outputs
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{_OP}: expected the function to return the loss, or a tuple that begins with it, got "
            f"{kind(outputs)}"
        )
    if value.numel() != 1:
        raise ValueError(f"{_OP}: expected a loss of one element, got {describe(value)}")
    if not value.requires_grad:
        raise ValueError(
            f"{_OP}: expected a loss with a graph, got a detached one; let the function return it "
            "as it computes it, and not within torch.no_grad()"
        )
    grads = torch.autograd.grad(value.reshape(()), parameters, allow_unused=True)
    for module, name in attributes:
        left = getattr(module, name)
        if isinstance(left, Tensor) and left.requires_grad and not left.is_leaf:
            setattr(module, name, left.detach())
    return _detached(outputs), grads


def _detached(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.detach()
    if isinstance(x, (list, tuple)):
        parts = [_detached(part) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)  # type: ignore[call-arg]
    if isinstance(x, dict):
        return {key: _detached(value) for key, value in x.items()}
    return x


def compile_step(
    loss: Callable[..., Any],
    critic: nn.Module | Tensor | Iterable[nn.Module | Tensor],
    *,
    check: bool = True,
    strict: bool = False,
    backend: str | Callable[..., Any] = "inductor",
    dynamic: bool | None = None,
) -> CompiledStep:
    """Compile a critic's step, its loss and the gradients of it, into one graph.

    torch.compile of a critic cannot be differentiated twice, and R1, WGAN-GP and the like need it.
    Where the gradients are taken inside, it can: ::

        def loss(real, fake, labels):
            return gankernels.critic_step(D, real, fake, labels, r1=10.0, r2=10.0)

        step = gankernels.compile_step(loss, D)
        for real, labels in loader:
            optimizer.zero_grad()
            logs = step(real, G(z).detach(), labels)  # sets .grad, as backward() does
            optimizer.step()

    The first run of every graph is checked: the same step is done in eager mode too, from the same
    buffers (u and v among them) and random numbers, and what it returned, all gradients and buffers
    are compared. Where they are apart, the figure is in a warning, and calls of this kind run in
    eager mode. The numbers of a checked call are those of eager mode. Where torch cannot compile
    the function as one graph, a warning says which line stops it and what to do, once, and calls
    run in eager mode.

    Under ``DistributedDataParallel``, give the wrapped critic (fuse, wrap, then compile): its
    gradients are reduced when they are handed over, when all are there. Call the step within
    ``no_sync()`` to accumulate. Under FSDP it is refused; see docs/at-scale.md.

    Args:
        loss: computes the loss, a tensor of one element with a graph, from the arguments of a call;
            or a tuple that begins with it, such as what :func:`gankernels.critic_step` returns.
            Penalties, ``torch.autocast`` and a factor of a ``GradScaler`` belong inside;
            ``backward()`` and the optimizer do not, nor what reads a tensor's value (``item()``,
            ``if loss > 0``), prints, or draws from a ``generator=``. Attributes of Python that it
            changes change once more in a call that is checked.
        critic: whose parameters get gradients: a module, a parameter, or a list of these. Those
            that require none when the step is called have none.
        check: whether graphs are checked in their first run. It takes the time of a step in eager
            mode, and memory for both.
        strict: raise where a step cannot be compiled as one graph, or is wrong.
        backend: of torch.compile: "inductor"; "aot_eager", which needs no compiler and gains
            little; or a function.
        dynamic: of torch.compile. By default a second shape, such as a smaller last batch, compiles
            code for all.

    Returns:
        A callable that takes the arguments of ``loss``, adds to ``.grad`` as ``backward()`` does,
        hooks included, and returns what ``loss`` does, detached. Its ``graphs`` counts what was
        compiled, its ``reasons`` says why calls are not. Under a torch whose Dynamo has no
        ``trace_autograd_ops``, they are not, with a warning; before torch 2.13 that is so where
        ``loss`` calls ``requires_grad_()``.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value, or ``loss`` returns
            no scalar with a graph.
        RuntimeError: under FSDP, for parameters in shards (DTensor), for DistributedDataParallel
            with ``static_graph=True``, within ``torch.no_grad()``, for the first call of its kind
            within the capture of a CUDA graph, and where ``strict`` says so.

    What raises within ``loss`` leaves gradients, buffers and random numbers as they were, unless it
    is in a call of compiled code that was checked. The gradients have no graph themselves.
    Deterministic where the compiled code is; random numbers are those that eager mode draws.
    """
    check_callable(_OP, "loss", loss)
    for name, value in (("check", check), ("strict", strict)):
        check_bool(_OP, name, value)
    if dynamic is not None:
        check_bool(_OP, "dynamic", dynamic)
    return CompiledStep(loss, _critics(critic), _backend(backend), dynamic, check, strict)


def _critics(critic: Any) -> list[nn.Module | Tensor]:
    single = isinstance(critic, (nn.Module, Tensor))
    if not single and (isinstance(critic, (str, dict)) or not isinstance(critic, Iterable)):
        raise TypeError(
            f"{_OP}: expected critic to be a module, or a list of modules and parameters, got "
            f"{kind(critic)}"
        )
    critics: list[Any] = [critic] if single else list(critic)
    if not critics:
        raise ValueError(f"{_OP}: expected critic with at least one module, got an empty list")
    for x in critics:
        if not isinstance(x, (nn.Module, Tensor)):
            raise TypeError(
                f"{_OP}: expected critic to be a module, or a list of modules and parameters, got "
                f"a list with {kind(x)}"
            )
        if isinstance(x, Tensor) and not x.is_leaf:
            raise ValueError(
                f"{_OP}: expected parameters, which are leaves of the graph, got a tensor that was "
                "computed from others"
            )
    return critics


def _backend(backend: Any) -> Callable[..., Any]:
    if isinstance(backend, str):
        known = backend_of(backend)
        if known is None:
            raise ValueError(
                f'{_OP}: expected backend to be one of torch.compile, such as "inductor" or '
                f'"aot_eager", got {backend!r}; torch.compiler.list_backends() lists them'
            )
        return known  # type: ignore[no-any-return]
    if not callable(backend):
        raise TypeError(
            f"{_OP}: expected backend to be the name of one, or a function, got {kind(backend)}"
        )
    return backend
