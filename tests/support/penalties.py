"""Every penalty in a table: how tests call it, and its number from gradients of single samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import gankernels as gk
from support import devices

Critic = Callable[..., Any]


def seeded() -> torch.Generator:
    return devices.generator(7)


def draw(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def noise(x: Tensor) -> Tensor:
    """What a penalty draws of :func:`seeded`, normal."""
    return torch.randn(x.shape, generator=seeded(), dtype=x.dtype)


def interpolates(x: Tensor, y: Tensor) -> Tensor:
    eps = torch.rand(len(x), generator=seeded(), dtype=x.dtype)
    eps = eps.view(-1, *[1] * (x.dim() - 1))
    return eps * x + (1 - eps) * y


def perturbed(x: Tensor) -> Tensor:
    return x + 0.5 * x.std() * torch.rand(x.shape, generator=seeded(), dtype=x.dtype)


def squares(D: Critic, x: Tensor) -> Tensor:
    """||grad D||^2 of every sample by itself."""
    found = []
    for i in range(len(x)):
        one = x[i : i + 1].detach().requires_grad_()
        (g,) = torch.autograd.grad(D(one).sum(), one)
        found.append(g.square().sum())
    return torch.stack(found)


def grown(x: Any) -> Any:
    """Samples, or a list of them, to take gradients of."""
    if isinstance(x, Tensor):
        return x.detach().clone().requires_grad_()
    return [grown(y) for y in x]


class Penalty(NamedTuple):
    #: Called as ``(D, real, fake, *args, **kwargs)``; what the penalty draws is seeded.
    call: Callable[..., Tensor]
    #: The number, from ``(D, real, fake)`` and gradients of single samples; None if it is not one
    #: of a critic and samples.
    expected: Callable[[Critic, Tensor, Tensor], Tensor] | None
    #: Whether the function calls the critic itself; else it takes what the critic returned.
    takes_critic: bool = True


def _r1(D: Critic, x: Any, y: Any, *args: Any, **kwargs: Any) -> Tensor:
    x = grown(x)
    return gk.r1_penalty(D(x), x, *args, **kwargs)


def _r2(D: Critic, x: Any, y: Any, *args: Any, **kwargs: Any) -> Tensor:
    y = grown(y)
    return gk.r2_penalty(D(y), y, *args, **{"gamma": 3.0, **kwargs})


def _roth(D: Critic, x: Any, y: Any, *args: Any, **kwargs: Any) -> Tensor:
    x, y = grown(x), grown(y)
    return gk.roth_penalty(D(x), D(y), x, y, *args, **kwargs)


def _expected_roth(D: Critic, x: Tensor, y: Tensor) -> Tensor:
    weights = torch.sigmoid(-D(x)).square(), torch.sigmoid(D(y)).square()
    parts = [squares(D, z) * w.view(-1) for z, w in zip((x, y), weights, strict=True)]
    return parts[0].mean() + parts[1].mean()


#: By public name. A new penalty has a row here.
PENALTIES: dict[str, Penalty] = {
    "r1_penalty": Penalty(_r1, lambda D, x, y: 5 * squares(D, x).mean(), takes_critic=False),
    "r2_penalty": Penalty(_r2, lambda D, x, y: 1.5 * squares(D, y).mean(), takes_critic=False),
    "r1_r2_penalty": Penalty(
        lambda D, x, y, /, *a, **k: gk.r1_r2_penalty(D, x, y, *a, **k),
        lambda D, x, y: 5 * (squares(D, x).mean() + squares(D, y).mean()),
    ),
    "wgan_gp_penalty": Penalty(
        lambda D, x, y, /, *a, **k: gk.wgan_gp_penalty(D, x, y, *a, generator=seeded(), **k),
        lambda D, x, y: 10 * (squares(D, interpolates(x, y)).sqrt() - 1).square().mean(),
    ),
    "wgan_lp_penalty": Penalty(
        lambda D, x, y, /, *a, **k: gk.wgan_lp_penalty(
            D, x, y, *a, **{"center": 0.0155, **k}, generator=seeded()
        ),
        lambda D, x, y: (
            10 * (squares(D, interpolates(x, y)).sqrt() - 0.0155).relu().square().mean()
        ),
    ),
    "zero_centered_penalty": Penalty(
        lambda D, x, y, /, *a, **k: gk.zero_centered_penalty(D, x, y, *a, generator=seeded(), **k),
        lambda D, x, y: 10 * squares(D, interpolates(x, y)).mean(),
    ),
    "max_gradient_penalty": Penalty(
        lambda D, x, y, /, *a, **k: gk.max_gradient_penalty(D, x, y, *a, generator=seeded(), **k),
        lambda D, x, y: 10 * squares(D, interpolates(x, y)).max(),
    ),
    "dragan_penalty": Penalty(
        lambda D, x, y, /, *a, **k: gk.dragan_penalty(D, x, *a, generator=seeded(), **k),
        lambda D, x, y: 10 * (squares(D, perturbed(x)).sqrt() - 1).square().mean(),
    ),
    "roth_penalty": Penalty(_roth, _expected_roth, takes_critic=False),
    "approx_r1_penalty": Penalty(
        lambda D, x, y, /, *a, **k: gk.approx_r1_penalty(D, x, *a, generator=seeded(), **k),
        lambda D, x, y: 100 * (D(x) - D(x + 0.01 * noise(x))).square().mean(),
    ),
    "approx_r2_penalty": Penalty(
        lambda D, x, y, /, *a, **k: gk.approx_r2_penalty(D, y, *a, generator=seeded(), **k),
        lambda D, x, y: 100 * (D(y) - D(y + 0.01 * noise(y))).square().mean(),
    ),
    "check_independent_samples": Penalty(
        lambda D, x, y, /, *a, **k: torch.tensor(gk.check_independent_samples(D, x, *a, **k)), None
    ),
    "consensus_penalty": Penalty(
        lambda D, x, y, /, *a, **k: gk.consensus_penalty(
            [D(x).sum()], [list(D.parameters())], *a, **k
        ),
        None,
        takes_critic=False,
    ),
    "orthogonal_regularization": Penalty(
        lambda D, x, y, /, *a, **k: gk.orthogonal_regularization(x, *a, **k),
        None,
        takes_critic=False,
    ),
    "spectral_norm_regularization": Penalty(
        lambda D, x, y, /, *a, **k: gk.spectral_norm_regularization(x, y, *a, **k),
        None,
        takes_critic=False,
    ),
}

#: Those that call the critic themselves.
CALLED = {name: penalty.call for name, penalty in PENALTIES.items() if penalty.takes_critic}
