"""Who is measured: torch's spectral norms and ours, on the same weights, and the check of each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations as torch_parametrizations
from torch.nn.utils import spectral_norm as torch_hook

from benchmarks.suites.workloads import WeightStack

HOOK, TORCH, COMPILED, LAYER, FUSED = "hook", "torch", "compiled", "layer", "fused"
LABELS = {
    HOOK: "torch hook",
    TORCH: "torch parametrization",
    COMPILED: "torch.compile of it",
    LAYER: "gankernels per layer",
    FUSED: "gankernels fused",
}
BASELINE = TORCH
FORWARD, NO_GRAD, BACKWARD = "forward", "forward, no_grad", "forward + backward"
PASSES = (FORWARD, NO_GRAD, BACKWARD)

TOLERANCE = 2e-5  # largest error against float64, relative to the largest element


def _our_parametrization(module: nn.Module) -> nn.Module:
    from gankernels.nn.utils import parametrizations

    return parametrizations.spectral_norm(module)


def normalize_layers(model: nn.Module, layers: Sequence[nn.Module], kind: str) -> nn.Module:
    """Puts the spectral norm of `kind` on every layer of `model`; returns what to call."""
    kinds: dict[str, Callable[[nn.Module], nn.Module]] = {
        HOOK: torch_hook,
        TORCH: torch_parametrizations.spectral_norm,
        COMPILED: torch_parametrizations.spectral_norm,
        LAYER: _our_parametrization,
        FUSED: _our_parametrization,
    }
    for layer in layers:
        kinds[kind](layer)
    if kind == FUSED:
        import gankernels

        gankernels.fuse_spectral_norm(model)
    return torch.compile(model) if kind == COMPILED else model  # type: ignore[return-value]


@dataclass
class Contestant:
    """One way of normalising all the weights of a network."""

    kind: str
    stack: WeightStack
    call: Callable[[], list[Tensor]]
    parameters: list[nn.Parameter]
    grads: list[Tensor]

    def forward(self) -> None:
        self.call()

    def forward_no_grad(self) -> None:
        with torch.no_grad():
            self.call()

    def forward_backward(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        torch.autograd.backward(self.call(), self.grads)

    def timed(self, which: str) -> Callable[[], None]:
        return {
            FORWARD: self.forward,
            NO_GRAD: self.forward_no_grad,
            BACKWARD: self.forward_backward,
        }[which]

    def vectors(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(u, v) of each layer: the same buffers, by whatever name the kind gives them."""
        for layer in self.stack.layers:
            by_end = {name[-2:]: buffer for name, buffer in layer.named_buffers()}
            yield by_end["_u"], by_end["_v"]


def build(kind: str, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> Contestant:
    """A contestant over `weights`, whose memory all contestants share."""
    stack = WeightStack([weight.detach() for weight in weights])
    parameters = list(stack.parameters())
    call = normalize_layers(stack, list(stack.layers), kind)
    return Contestant(kind, stack, call, parameters, list(grads))


@dataclass(frozen=True)
class Expected:
    """What one training forward and backward of one layer must give, in float64."""

    u: Tensor
    v: Tensor
    sigma: float
    inner: float  # <G, W>


def _unit(x: Tensor) -> Tensor:
    return x / x.norm().clamp_min(1e-12)


def expected(weight: Tensor, grad: Tensor, u: Tensor, v: Tensor, kind: str) -> Expected:
    """One power iteration in `kind`'s order of update, from u and v."""
    matrix, u, v = weight.flatten(1).double(), u.double(), v.double()
    if kind == HOOK:
        v = _unit(matrix.T @ u)
        u = _unit(matrix @ v)
    else:
        u = _unit(matrix @ v)
        v = _unit(matrix.T @ u)
    inner = torch.dot(grad.flatten().double(), matrix.flatten())
    return Expected(u, v, float(u @ (matrix @ v)), float(inner))


def relative_error(actual: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest element wanted; NaN counts as infinitely wrong."""
    error = (actual.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-300)
    return float(error.nan_to_num(nan=float("inf")))


class WrongResultError(RuntimeError):
    """A contestant's numbers are off, so its time is worth nothing."""


def check(contestant: Contestant, weights: Sequence[Tensor], seed: int = 1) -> float:
    """The largest relative error of outputs and gradients.

    Above TOLERANCE that is a WrongResultError, and no time is taken; torch.compile is excepted.
    """
    generator = torch.Generator().manual_seed(seed)
    starts: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for u, v in contestant.vectors():
            for vector in (u, v):
                vector.copy_(_unit(torch.randn(vector.shape, generator=generator)))
            starts.append((u.clone(), v.clone()))
    for parameter in contestant.parameters:
        parameter.grad = None
    outputs = contestant.call()
    torch.autograd.backward(outputs, contestant.grads)

    worst = 0.0
    for weight, grad, (u, v), output, parameter in zip(
        weights, contestant.grads, starts, outputs, contestant.parameters, strict=True
    ):
        want = expected(weight, grad, u, v, contestant.kind)
        assert parameter.grad is not None
        rank_one = torch.outer(want.u, want.v).view(weight.shape)
        wanted_grad = grad.double() / want.sigma - want.inner / want.sigma**2 * rank_one
        worst = max(
            worst,
            relative_error(output.detach(), weight.double() / want.sigma),
            relative_error(parameter.grad, wanted_grad),
        )
    # A compiler's mistakes are not for us to mend, and people use it: its row says how wrong it is.
    if not worst <= TOLERANCE and contestant.kind != COMPILED:
        raise WrongResultError(f"{LABELS[contestant.kind]} is off by {worst:.1e} from float64")
    return worst


def line_up(
    kinds: Sequence[str], weights: Sequence[Tensor]
) -> tuple[list[Contestant], dict[str, float], dict[str, str]]:
    """Builds and checks every kind: the contestants, their errors, and why any is left out."""
    grads = [
        torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        for seed, weight in zip(itertools.count(100), weights, strict=False)
    ]
    contestants: list[Contestant] = []
    errors: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for kind in kinds:
        try:
            contestant = build(kind, weights, grads)
            errors[kind] = check(contestant, weights)
            contestants.append(contestant)
        except Exception as error:
            left_out[kind] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return contestants, errors, left_out
