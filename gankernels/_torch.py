"""Every private name of torch that the package uses; nothing else of it begins with an underscore.

``tests/project/test_torch_private.py`` has a test of each that says what to do when the name goes,
and one that finds private names elsewhere in the package.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, parametrize

#: A block in which operators called from an autograd formula skip autograd, for its time.
below_autograd = torch._C._AutoDispatchBelowAutograd
#: The ``__torch_function__`` of a subclass of Tensor that behaves as a plain one.
disabled_torch_function = torch._C._disabled_torch_function_impl
#: torch's spectral norm as a parametrization.
TorchParametrization = parametrizations._SpectralNorm
#: torch's weight norm as a parametrization.
TorchWeightNorm = parametrizations._WeightNorm
FakeTensor = torch._subclasses.FakeTensor
foreach_clamp_max_ = torch._foreach_clamp_max_
foreach_clamp_min_ = torch._foreach_clamp_min_
#: Whether there are hooks on the calls of all modules.
has_global_hooks = torch.nn.modules.module._has_any_global_hook
#: What autograd hands the tensors to that it saves; and the backward pass that runs, or -1.
_top_hooks = torch._C._autograd._top_saved_tensors_default_hooks
_graph_task = torch._C._current_graph_task_id
#: Tells tree_map and the like that a class is a container; those of subclasses of tuple are not.
register_pytree_node = torch.utils._pytree.register_pytree_node

#: Attributes and methods of torch's objects that are private by their names alone: they have been
#: there since torch 1, and pickles of modules have them.
TENSOR_ATTRIBUTES = ("_backward_hooks", "_base", "_version")
MODULE_ATTRIBUTES = (
    "_apply",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_buffers",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_load_from_state_dict",
    "_load_state_dict_pre_hooks",
    "_modules",
    "_non_persistent_buffers_set",
    "_parameters",
    "_register_load_state_dict_pre_hook",
    "_register_state_dict_hook",
)
#: Methods that a module is called through, convolutions by one more.
CALLED_METHODS = ("__call__", "forward", "_conv_forward")


def in_functorch() -> bool:
    """Whether a transform of torch.func (grad, vmap, jacrev ...) is active."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_batched(x: Tensor) -> bool:
    """Whether torch.func.vmap sees a dimension in a tensor that it hides."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False


def in_jit_trace() -> bool:
    """Whether torch.jit.trace, or the older ONNX export, records."""
    # Dynamo, which is never traced itself, knows nothing of it.
    return not torch.compiler.is_compiling() and torch._C._is_tracing()


def in_forward_ad() -> bool:
    """Whether a level of forward-mode AD is open."""
    return forward_ad._current_level >= 0


def in_dispatch_mode() -> bool:
    """Whether a TorchDispatchMode (fake tensors, tracers, counters of operators) is active."""
    return torch._C._len_torch_dispatch_stack() > 0


def is_capturing() -> bool:
    """Whether what is launched now is recorded into a CUDA graph instead of done: whose replays run
    no Python, so that what it decides and remembers they never see.
    """
    if torch.compiler.is_compiling():
        return False
    # Without a driver, to ask the stream would raise.
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def traces_autograd_ops() -> bool:
    """Whether Dynamo traces torch.autograd.grad within a graph."""
    return torch._dynamo.config.trace_autograd_ops


def is_fake(x: Tensor) -> bool:
    """Whether a tensor has a shape but no memory: of the meta device, or a FakeTensor."""
    return x.device.type == "meta" or isinstance(x, FakeTensor)


def saves_through_hooks() -> bool:
    """Whether autograd hands what it saves to hooks: non-reentrant checkpointing, offloading."""
    return _top_hooks(False) is not None


def in_backward() -> bool:
    """Whether this runs within a backward pass: a hook, or a forward that is recomputed."""
    return _graph_task() != -1


def is_watched() -> bool:
    """Either of the two."""
    return _top_hooks(False) is not None or _graph_task() != -1


class Checkpoints(NamedTuple):
    """The regions of torch.utils.checkpoint that code runs in."""

    entered: list[Any]  # those whose forward this is, innermost first
    recomputed: Any  # the one that is computed again around them; None if none is
    turn: Any  # which backward pass that is for


def checkpoints() -> Checkpoints:
    """The regions that the caller runs in, found on the stack.

    Each is an object of torch's that lives as long as its graph, the same when it is recomputed.
    """
    reentrant = torch.utils.checkpoint.CheckpointFunction
    file = reentrant.forward.__code__.co_filename
    entered: list[Any] = []
    hooks = _top_hooks(False)
    if hooks is not None and (region := _closure(hooks[1]).get("frame")) is not None:
        entered.append(region)  # by torch.distributed's function, which is not on the stack
    at: Any = sys._getframe(1)
    while at is not None:
        code = at.f_code
        if code.co_filename == file:
            if code is reentrant.forward.__code__:
                entered.append(at.f_locals["ctx"])
            elif code is reentrant.backward.__code__:
                return Checkpoints(entered, at.f_locals["ctx"], _graph_task())
            elif code.co_name == "unpack_hook":
                return Checkpoints(entered, at.f_locals["frame"], at.f_locals["gid"])
            elif (generator := at.f_locals.get("gen")) is not None and generator.gi_frame:
                region = generator.gi_frame.f_locals.get("new_frame")
                if region is not None and all(region is not other for other in entered):
                    entered.append(region)
        at = at.f_back
    return Checkpoints(entered, None, None)


def _closure(function: Any) -> dict[str, Any]:
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    return (
        dict(zip(names, (cell.cell_contents for cell in function.__closure__ or ()), strict=True))
        if names
        else {}
    )


def shards_parameters() -> bool:
    """Whether fully_shard was called in this process, on any module."""
    module = sys.modules.get("torch.distributed.fsdp._fully_shard._fully_shard")
    return bool(getattr(module, "cls_to_fsdp_cls", False))


def caches_parametrizations() -> bool:
    """Whether parametrized tensors are read within ``parametrize.cached()``."""
    return bool(parametrize._cache_enabled)


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether calling a module runs code of torch.compile: by ``compile()``, or as a wrapper."""
    return module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule"


def can_trace_autograd_ops() -> bool:
    """Whether this torch has the setting by which Dynamo traces torch.autograd.grad."""
    return hasattr(torch._dynamo.config, "trace_autograd_ops")


def tracing_autograd_ops() -> Any:
    """A block in which what Dynamo compiles may hold torch.autograd.grad."""
    return torch._dynamo.config.patch(trace_autograd_ops=True)


def compile_errors() -> tuple[type[BaseException], ...]:
    """What Dynamo raises where it cannot compile, and where it has compiled too often."""
    errors = torch._dynamo.exc  # whose import takes long: not before it is needed
    return errors.TorchDynamoException, errors.FailOnRecompileLimitHit


def backend_of(name: str) -> Any:
    """A backend of torch.compile, as a function of a graph and example inputs; None if there is
    none of that name. Inductor draws random numbers as eager mode does.
    """
    try:
        compiler = torch._dynamo.lookup_backend(name)
    except torch._dynamo.exc.InvalidBackend:
        return None
    if name == "inductor":
        from torch._inductor.compile_fx import compile_fx

        return functools.partial(compile_fx, config_patches={"fallback_random": True})
    return compiler


@contextlib.contextmanager
def without_hooks(tensors: Sequence[Tensor]) -> Iterator[None]:
    """A block in which the gradients of tensors are not changed by their hooks."""
    hooked = [(x, x._backward_hooks) for x in tensors if x._backward_hooks]
    for x, _ in hooked:
        x._backward_hooks = None
    try:
        yield
    finally:
        for x, hooks in hooked:
            x._backward_hooks = hooks
