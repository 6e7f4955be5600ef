"""The declaration of operators: schema, fake, autograd; and the fast way to the autograd."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gankernels._library import LIBRARY
from gankernels._torch import below_autograd, in_dispatch_mode, in_jit_trace

Draw = Callable[..., Tensor]

#: The namespace to call operators in: the tests put that of the emulated CUDA kernels here.
kernels: Any = torch.ops.gankernels
#: The operators that were declared.
DECLARED: list[Operator] = []
#: By public name: right arguments from a function that draws normal numbers of a shape. With them
#: ``python -m gankernels.info`` compares an operator with its reference, gradients of tensors that
#: require one included, and the tests replace each argument by wrong ones.
EXAMPLES: dict[str, Callable[[Draw], dict[str, Any]]] = {}


class Operator(NamedTuple):
    """An operator as torch knows it. Its kernels are bound in ``csrc/bindings``."""

    schema: str
    fake: Callable[..., Any]
    #: ``torch.library.register_autograd``'s, or None for an operator without a gradient.
    backward: Callable[..., Any] | None = None
    setup: Callable[..., None] | None = None
    #: Moves its arguments and has no gradient: autograd passes it by instead of warning.
    mutates: bool = False

    @property
    def name(self) -> str:
        return self.schema.partition("(")[0]


def declare(*operators: Operator) -> None:
    """Define operators in the namespace ``gankernels``."""
    DECLARED.extend(operators)
    define(LIBRARY, operators)


def define(library: torch.library.Library, operators: Sequence[Operator]) -> None:
    """Define operators in the namespace of ``library``, with their fakes and their autograd."""
    for operator in operators:
        name = f"{library.ns}::{operator.name}"
        library.define(operator.schema)
        if operator.mutates:
            library.impl(operator.name, torch.library.fallthrough_kernel, "Autograd")
        torch.library.register_fake(name, operator.fake, lib=library)
        if operator.backward is not None:
            torch.library.register_autograd(
                name, operator.backward, setup_context=operator.setup, lib=library
            )


def one_device(first: Tensor, *others: Tensor | None) -> None:
    """For fakes, which answer for a call in which any tensor is a meta tensor."""
    if any(x is not None and x.device != first.device for x in others):
        raise RuntimeError("expected all tensors on one device")


def run(op: Callable[..., Any], *args: Any) -> Any:
    """Call an operator; a failure to allocate on a GPU keeps torch's type for it.

    Through the stable ABI every error arrives as a RuntimeError, and before torch 2.13 without its
    text: then a failed allocation is told by the name of the call.
    """
    try:
        return op(*args)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and _is_out_of_memory(str(error), args):
            raise torch.OutOfMemoryError(f"{op}: {error}") from error
        raise


#: In the words of torch from 2.13 on, and of torch before.
_OUT_OF_MEMORY = re.compile(r"CUDA.*out of memory|: out of memory")
_FAILED_ALLOCATION = re.compile(r"empty(_like)?\b.*API call failed at")


def _is_out_of_memory(text: str, args: Sequence[Any]) -> bool:
    if _OUT_OF_MEMORY.search(text):
        return True
    listed = (x for a in args for x in (a if isinstance(a, (list, tuple)) else (a,)))
    if not any(isinstance(x, Tensor) and x.is_cuda for x in listed):
        return False  # torch itself has no type for it on the CPU
    return "originally from" not in text and _FAILED_ALLOCATION.search(text) is not None


def eager(operator: Operator) -> type[torch.autograd.Function]:
    """The autograd of an operator as a Function, which takes a third of the registered one's time.

    For operators whose tensors are arguments of their own: a Function does not look into lists.
    """
    setup, registered = operator.setup, operator.backward
    assert setup is not None
    assert registered is not None

    def forward(ctx: Any, op: Callable[..., Any], *args: Any) -> Any:
        with below_autograd():
            output = run(op, *args)
        setup(ctx, args, output)
        return output

    def backward(ctx: Any, *grads: Any) -> Any:
        found = registered(ctx, *grads)
        return None, *(found if isinstance(found, tuple) else (found,))

    parts = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(operator.name, (torch.autograd.Function,), parts)


def runs_eagerly() -> bool:
    """Whether nothing records operators: Functions may be applied."""
    return not (torch.compiler.is_compiling() or in_dispatch_mode() or in_jit_trace())


def call_eager(function: type[torch.autograd.Function], op: Any, x: Tensor, *constants: Any) -> Any:
    """Call an operator that has a gradient for ``x`` alone, by the fastest way that is right.

    Compiled graphs take the registered autograd: there a double backward through a Function goes
    wrong. So do traces, which cannot save a Function.
    """
    if not runs_eagerly():
        return run(op, x, *constants)
    if torch.is_grad_enabled() and x.requires_grad:
        return function.apply(op, x, *constants)
    with below_autograd():
        return run(op, x, *constants)


def call_below_autograd(op: Any, *args: Any) -> Any:
    """Call an operator, below autograd where no graph can be built."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return run(op, *args)
    with below_autograd():
        return run(op, *args)
