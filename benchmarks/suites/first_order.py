"""Penalties without second derivatives: how exact their gradients are, and what a step costs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import gankernels
from benchmarks.core.contest import PLAIN

# --- critics -------------------------------------------------------------------------------------


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in self.qkv(self.norms[0](x)).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class AttentionCritic(nn.Module):
    """A transformer of patches with torch's fused attention: (B, 3, size, size) to (B, 1)."""

    def __init__(
        self, size: int = 32, width: int = 64, blocks: int = 4, patch: int = 4, heads: int = 4
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.positions = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, width))
        self.blocks = nn.Sequential(*[_Block(width, heads) for _ in range(blocks)])
        self.score = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.score(self.blocks(x).mean(1))


def convolutional(activation: nn.Module, size: int = 32, width: int = 32) -> nn.Sequential:
    """Three convolutions and a linear layer: (B, 3, size, size) to (B, 1)."""
    return nn.Sequential(
        *(nn.Conv2d(3, width, 3, 2, 1), activation),
        *(nn.Conv2d(width, 2 * width, 3, 2, 1), activation),
        *(nn.Conv2d(2 * width, 2 * width, 3, 1, 1), activation),
        nn.Flatten(),
        nn.Linear(2 * width * (size // 4) ** 2, 1),
    )


# --- how exact -----------------------------------------------------------------------------------

EXACT: Final = "double_backward"
DIFFERENCE: Final = "difference"
NOISE: Final = "noise"
ATTENTION, GELU, LEAKY = "attention", "convolutions, GELU", "convolutions, LeakyReLU"
CRITICS: dict[str, Callable[[], nn.Module]] = {
    ATTENTION: AttentionCritic,
    GELU: lambda: convolutional(nn.GELU()),
    LEAKY: lambda: convolutional(nn.LeakyReLU(0.2)),
}
FLOAT32, BFLOAT16 = "float32", "bfloat16 autocast"
SIGMAS = (0.05, 0.02, 0.01, 0.002)


@dataclass(frozen=True)
class Accuracy:
    """Of R1's gradient by all parameters, against the second derivatives of float64."""

    critic: str
    precision: str
    method: str
    sigma: float
    error: float  # the norm of the difference, over that of the gradient
    cosine: float


def accuracies(batch: int) -> Iterator[Accuracy]:
    """Every critic, precision, method and sigma."""
    for name, build in CRITICS.items():
        torch.manual_seed(0)
        critic, x = build(), torch.randn(batch, 3, 32, 32).clamp(-1, 1)
        with sdpa_kernel(SDPBackend.MATH):
            exact = _gradient(critic.double(), x.double())
        critic.float()
        for precision in (FLOAT32, BFLOAT16):
            for sigma in SIGMAS:
                for method in (DIFFERENCE, NOISE):
                    with torch.autocast("cpu", torch.bfloat16, enabled=precision == BFLOAT16):
                        found = _gradient(critic, x, method=method, sigma=sigma)
                    error = float((found - exact).norm() / exact.norm())
                    cosine = float(F.cosine_similarity(found, exact, 0))
                    yield Accuracy(name, precision, method, sigma, error, cosine)


def _gradient(critic: nn.Module, x: Tensor, **how: Any) -> Tensor:
    penalty = gankernels.r1_penalty(critic, x, **how)
    grads = torch.autograd.grad(penalty, list(critic.parameters()), materialize_grads=True)
    return torch.cat([g.flatten().double() for g in grads])


# --- what a step costs ---------------------------------------------------------------------------

CENTRAL, ONE_SIDED = "difference, central", "difference, one-sided"
STEPS = (PLAIN, NOISE, ONE_SIDED, CENTRAL, EXACT)
STEP_TITLE = "transformer of 6 blocks, width 192, 32 px, 16 + 16 images, R1 + R2"


def step_of(kind: str, *, compiled: bool = False, batch: int = 16) -> Callable[[], Tensor]:
    """A whole step of the relativistic loss with R1 + R2 found so.

    The critic is compiled by itself, which only first-order forms allow; the exact form needs the
    attention that has a second derivative.
    """
    torch.manual_seed(0)
    critic = AttentionCritic(width=192, blocks=6)
    optimizer = torch.optim.SGD(critic.parameters(), lr=1e-4)
    real, fake = (torch.randn(batch, 3, 32, 32) for _ in range(2))
    D: Any = torch.compile(critic) if compiled else critic

    def loss_of() -> Tensor:
        if kind == PLAIN:
            return gankernels.critic_step(D, real, fake).loss
        method: Any = DIFFERENCE if kind in (ONE_SIDED, CENTRAL) else kind
        return gankernels.critic_step(
            D, real, fake, r1=10.0, r2=10.0, method=method, central=kind == CENTRAL
        ).loss

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        attention = sdpa_kernel(SDPBackend.MATH) if kind == EXACT else contextlib.nullcontext()
        with attention:
            loss = loss_of()
            loss.backward()
        optimizer.step()
        return loss.detach()

    return step
