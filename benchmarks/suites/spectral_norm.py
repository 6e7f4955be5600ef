"""Who is measured: torch's spectral norms and ours, on the same weights, and the check of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations as torch_parametrizations
from torch.nn.utils import spectral_norm as torch_hook

from benchmarks.core.contest import (
    BACKWARD,
    COMPILED,
    FORWARD,
    NO_GRAD,
    Case,
    Contestant,
    Traffic,
    relative_error,
    tolerated,
)
from benchmarks.suites.workloads import WeightStack, Workload, random_weights

HOOK, TORCH, LAYER, FUSED = "hook", "torch", "layer", "fused"
LABELS = {
    HOOK: "torch hook",
    TORCH: "torch parametrization",
    COMPILED: "torch.compile of it",
    LAYER: "gankernels per layer",
    FUSED: "gankernels fused",
}
BASELINE = TORCH
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
class NormContestant(Contestant):
    """One way of normalizing all the weights of a network."""

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

    def passes(self) -> dict[str, Callable[[], None]]:
        return {
            FORWARD: self.forward,
            NO_GRAD: self.forward_no_grad,
            BACKWARD: self.forward_backward,
        }

    def vectors(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(u, v) of each layer: the same buffers, by whatever name the kind gives them."""
        for layer in self.stack.layers:
            by_end = {name[-2:]: buffer for name, buffer in layer.named_buffers()}
            yield by_end["_u"], by_end["_v"]


def build(kind: str, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> NormContestant:
    """A contestant over `weights`, whose memory all contestants share."""
    stack = WeightStack([weight.detach() for weight in weights])
    parameters = list(stack.parameters())
    call = normalize_layers(stack, list(stack.layers), kind)
    return NormContestant(kind, stack, call, parameters, list(grads))


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


def check(contestant: NormContestant, weights: Sequence[Tensor], seed: int = 1) -> float:
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
    most = math.inf if contestant.kind == COMPILED else TOLERANCE
    return tolerated(worst, most, LABELS[contestant.kind])


@dataclass(frozen=True, eq=False)
class NormCase(Case[NormContestant]):
    """The weights of a network, and the gradients of their outputs."""

    network: str
    weights: Sequence[Tensor]
    grads: Sequence[Tensor]

    @property
    def name(self) -> str:
        return self.network

    @property
    def nbytes(self) -> int:
        return sum(weight.nbytes for weight in self.weights)

    def builder(self, kinds: Sequence[str]) -> Callable[[str], NormContestant]:
        return partial(build, weights=self.weights, grads=self.grads)

    def check(self, contestant: NormContestant) -> float:
        return check(contestant, self.weights)

    def traffic(self, which: str) -> Traffic:
        """Forward: one read for the products, one read and one write for W/sigma.

        Backward: two reads more (G and W) for the reduction, one read and one write for the
        gradient.
        """
        reads, copies = (3, 2) if which == BACKWARD else (1, 1)
        return Traffic(reads * self.nbytes, 2 * copies * self.nbytes)


def case_of(workload: Workload, device: str = "cpu") -> NormCase:
    """Random weights of a network, as it is initialized."""
    return case_of_weights(
        workload.name, [weight.to(device) for weight in random_weights(workload.weights)]
    )


def case_of_weights(name: str, weights: Sequence[Tensor]) -> NormCase:
    """These weights, with random gradients: the same on every device."""
    grads = [
        torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)).to(weight.device)
        for seed, weight in enumerate(weights, 100)
    ]
    return NormCase(name, weights, grads)
