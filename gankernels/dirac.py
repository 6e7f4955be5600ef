"""The Dirac-GAN, the smallest one that fails to converge: ``python -m gankernels.dirac``.

Mescheder et al. 2018 (arXiv 1801.04406): the data are the point 0, the generator is a point theta,
the critic is ``D(x) = psi * x``, and (0, 0) is the equilibrium. What a method of training does near
it is in the eigenvalues of its update of (theta, psi): it converges, at the rate of the largest
modulus, where all are inside the unit circle, cycles for ever where they are on it, and diverges
where one is outside.

Prints these for every method; ``--plot [FILE]`` draws phase portraits. The methods run on tensors,
with the penalties of this package.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gankernels._checks import check_bool, check_number, is_choice, kind
from gankernels.clip import clip_weights_
from gankernels.penalties import consensus_penalty, r1_penalty, r2_penalty, wgan_gp_penalty

__all__ = ["METHODS", "eigenvalues", "field_at", "jacobian", "plot", "simulate", "verdict"]

Losses = tuple[Tensor, Tensor]  # the critic's, which psi descends, and the generator's


@dataclass(frozen=True)
class Method:
    """A game of two players and how it is regularized."""

    title: str
    losses: Callable[..., Losses]  # of theta and psi, scalars, and the hyper-parameters
    hyperparameters: Mapping[str, float] = field(default_factory=dict)  # with their defaults
    smooth: bool = True  # at the equilibrium
    note: str = ""  # on its portrait, after the verdict


# --- methods -------------------------------------------------------------------------------------


_DATA = 0.0
_MAX_STEPS = 1_000_000


def _sample(x: Tensor | float) -> Tensor:
    """A batch of one point, a constant."""
    return torch.as_tensor(x, dtype=torch.float64).detach().reshape(1, 1)


def _gan(theta: Tensor, psi: Tensor) -> Losses:
    real, fake = psi * _DATA, psi * theta
    critic = -F.logsigmoid(real) - F.logsigmoid(-fake)
    return critic, F.logsigmoid(-fake)


def _nsgan(theta: Tensor, psi: Tensor) -> Losses:
    critic, _ = _gan(theta, psi)
    return critic, -F.logsigmoid(psi * theta)


def _wgan(theta: Tensor, psi: Tensor, c: float | None = None) -> Losses:
    # psi is clipped to [-c, c] after the critic's step.
    real, fake = psi * _DATA, psi * theta
    return fake - real, -fake


def _wgan_gp(theta: Tensor, psi: Tensor, weight: float) -> Losses:
    critic, generator = _wgan(theta, psi)
    # The gradient is psi at every interpolate; a generator of its own leaves torch's alone.
    penalty = wgan_gp_penalty(
        lambda x: psi * x,
        _sample(_DATA),
        _sample(theta),
        weight=weight,
        generator=torch.Generator(),
    )
    return critic + penalty, generator


def _r1(theta: Tensor, psi: Tensor, gamma: float) -> Losses:
    critic, generator = _nsgan(theta, psi)
    real = _sample(_DATA).requires_grad_()
    return critic + r1_penalty(psi * real, real, gamma=gamma), generator


def _r2(theta: Tensor, psi: Tensor, gamma: float) -> Losses:
    critic, generator = _nsgan(theta, psi)
    fake = _sample(theta).requires_grad_()
    return critic + r2_penalty(psi * fake, fake, gamma=gamma), generator


def _instance_noise(theta: Tensor, psi: Tensor, sigma: float) -> Losses:
    nodes, weights = _gauss_hermite()
    real, fake = psi * (_DATA + sigma * nodes), psi * (theta + sigma * nodes)
    critic = -weights @ F.logsigmoid(real) - weights @ F.logsigmoid(-fake)
    return critic, -weights @ F.logsigmoid(fake)


def _consensus(theta: Tensor, psi: Tensor, gamma: float) -> Losses:
    critic, generator = _nsgan(theta, psi)
    penalty = consensus_penalty((critic, generator), ((psi,), (theta,)), gamma=gamma)
    return critic + penalty, generator + penalty


def _xy(x: Tensor, y: Tensor) -> Losses:
    return -x * y, x * y


@cache
def _gauss_hermite(count: int = 32) -> tuple[Tensor, Tensor]:
    """Points and weights of expectations over N(0, 1), by Golub and Welsch."""
    side = torch.arange(1, count, dtype=torch.float64).sqrt().diag(1)
    nodes, vectors = torch.linalg.eigh(side + side.mT)
    return nodes, vectors[0].square()


#: The methods by name: titles, losses, and hyper-parameters with their defaults.
METHODS: dict[str, Method] = {
    "gan": Method("GAN (minimax)", _gan),
    "nsgan": Method("Non-saturating GAN", _nsgan, note=", inwards ever slower"),
    "wgan": Method("WGAN, weight clipping", _wgan, {"c": 1.0}),
    "wgan_gp": Method("WGAN-GP", _wgan_gp, {"weight": 0.5}, smooth=False),
    "r1": Method("R1", _r1, {"gamma": 0.8}),
    "r2": Method("R2", _r2, {"gamma": 0.8}),
    "instance_noise": Method("Instance noise", _instance_noise, {"sigma": 1.0}),
    "consensus": Method("Consensus optimization", _consensus, {"gamma": 1.0}),
    "xy": Method("min over x, max over y of xy", _xy),
}


# --- dynamics ------------------------------------------------------------------------------------


def simulate(
    method: str,
    *,
    steps: int,
    lr: float,
    alternating: bool = True,
    start: tuple[float, float] = (1.0, 1.0),
    **hyperparameters: float,
) -> Tensor:
    """Train with gradient descent.

    Args:
        method: a key of ``METHODS``.
        steps: how many, 0 to 1,000,000. One is a step of the critic and then, seeing it already,
            one of the generator.
        lr: of both, positive.
        alternating: where false, both steps are taken at once, from the same point.
        start: theta and psi.
        **hyperparameters: in the place of the method's defaults, ``METHODS[method]``.

    Returns:
        (steps + 1, 2), float64: theta and psi, from the start on. For "xy" x and y.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.

    Not differentiable. Deterministic; draws no random numbers.
    """
    update = _update("simulate", method, lr, alternating, hyperparameters)
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"simulate: expected steps to be an int, got {kind(steps)}")
    if steps < 0:
        raise ValueError(f"simulate: expected steps to be 0 or more, got {steps}")
    if steps > _MAX_STEPS:
        raise ValueError(f"simulate: expected steps to be at most {_MAX_STEPS:,}, got {steps}")
    points = [_point("simulate", "start to be theta and psi", start)]
    for _ in range(steps):
        points.append(update(points[-1].requires_grad_()).detach())
    return torch.stack(points).detach()


def _point(op: str, name: str, theta_and_psi: Any) -> Tensor:
    wanted = f"{op}: expected {name}, two finite numbers"
    if not isinstance(theta_and_psi, (tuple, list)):
        raise TypeError(f"{wanted}, got {kind(theta_and_psi)}")
    for x in theta_and_psi:
        if isinstance(x, bool) or not isinstance(x, (int, float)):
            raise TypeError(f"{wanted}, got one of {kind(x)}")
    if len(theta_and_psi) != 2 or not all(abs(x) <= sys.float_info.max for x in theta_and_psi):
        raise ValueError(f"{wanted}, got {theta_and_psi!r}")
    return torch.tensor([float(x) for x in theta_and_psi], dtype=torch.float64)


def jacobian(
    method: str, *, lr: float, alternating: bool = True, **hyperparameters: float
) -> Tensor:
    """The derivative of one step of :func:`simulate` at the equilibrium, (2, 2), by autograd.

    Arguments and errors are those of :func:`simulate`; also ValueError for "wgan_gp", whose penalty
    ``(|psi| - 1)^2`` has no derivative there.
    """
    return _jacobian("jacobian", method, lr, alternating, hyperparameters)


def _jacobian(
    op: str, method: str, lr: float, alternating: bool, hyperparameters: dict[str, float]
) -> Tensor:
    update = _update(op, method, lr, alternating, hyperparameters, create_graph=True)
    if not METHODS[method].smooth:
        raise ValueError(
            f"{op}: expected a method that is smooth at the equilibrium, got {method!r}, which "
            "has no derivative there; simulate it"
        )
    equilibrium = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    after = update(equilibrium)
    return torch.stack(
        [torch.autograd.grad(row, equilibrium, retain_graph=True)[0] for row in after]
    )


def eigenvalues(
    method: str, *, lr: float, alternating: bool = True, **hyperparameters: float
) -> Tensor:
    """The eigenvalues of :func:`jacobian`, complex128 (2,), with its arguments and errors.

    Near the equilibrium, k steps shrink the distance to it by the largest modulus to the power k.
    """
    return torch.linalg.eigvals(_jacobian("eigenvalues", method, lr, alternating, hyperparameters))


def verdict(method: str, *, lr: float, alternating: bool = True, **hyperparameters: float) -> str:
    """The behavior of a method near the equilibrium: "converges", "oscillates" or "diverges".

    Whether the largest modulus of :func:`eigenvalues` is below, at or above 1. Where it is 1 there
    is no rate of convergence, though terms of higher order may draw the trajectory inwards, ever
    slower, as they do for "nsgan". "wgan_gp" oscillates: its penalty pushes psi away from 0.
    Arguments and errors are those of :func:`simulate`.
    """
    _update("verdict", method, lr, alternating, hyperparameters)  # for its checks
    if not METHODS[method].smooth:
        return "oscillates"
    moduli = eigenvalues(method, lr=lr, alternating=alternating, **hyperparameters).abs()
    largest = moduli.max().item()
    if abs(largest - 1) < 1e-9:
        return "oscillates"
    return "converges" if largest < 1 else "diverges"


def field_at(
    method: str, theta: float, psi: float, **hyperparameters: float
) -> tuple[float, float]:
    """The gradient vector field at (theta, psi): where a small simultaneous step goes, unclipped.

    Hyper-parameters and errors are those of :func:`simulate`.
    """
    hyper = _hyperparameters("field_at", method, hyperparameters)
    game = METHODS[method]
    with torch.enable_grad():
        point = _point("field_at", "theta and psi", (theta, psi)).requires_grad_()
        by_theta = _descent(game, "generator", point[0], point[1], hyper)
        by_psi = _descent(game, "critic", point[0], point[1], hyper)
    return by_theta.item(), by_psi.item()


def _update(
    op: str,
    method: str,
    lr: float,
    alternating: bool,
    hyperparameters: dict[str, float],
    create_graph: bool = False,
) -> Callable[[Tensor], Tensor]:
    """The step from one point (theta, psi), which requires a gradient, to the next."""
    hyper = _hyperparameters(op, method, hyperparameters)
    check_number(op, "lr", lr, positive=True)
    check_bool(op, "alternating", alternating)
    game = METHODS[method]

    @torch.enable_grad()
    def update(point: Tensor) -> Tensor:
        theta, psi = point.unbind()
        next_psi = psi + lr * _descent(game, "critic", theta, psi, hyper, create_graph)
        if "c" in hyper:
            # In place and unseen by autograd, so the derivative is that of not being clipped: right
            # at the equilibrium.
            clip_weights_(next_psi, hyper["c"])
        seen = next_psi if alternating else psi
        next_theta = theta + lr * _descent(game, "generator", theta, seen, hyper, create_graph)
        return torch.stack((next_theta, next_psi))

    return update


def _descent(
    game: Method,
    player: str,
    theta: Tensor,
    psi: Tensor,
    hyper: Mapping[str, float],
    create_graph: bool = False,
) -> Tensor:
    """The negative gradient of a player's loss with respect to what is its own.

    It is taken at views made here: a psi that was computed from theta, in an alternating step, is
    for the generator a constant.
    """
    theta, psi = theta.view_as(theta), psi.view_as(psi)
    losses = game.losses(theta, psi, **hyper)
    loss, own = (losses[0], psi) if player == "critic" else (losses[1], theta)
    (gradient,) = torch.autograd.grad(loss, own, create_graph=create_graph)
    return -gradient


def _hyperparameters(op: str, method: str, hyperparameters: dict[str, float]) -> dict[str, float]:
    if not is_choice(method, METHODS):
        raise ValueError(f"{op}: expected method to be one of {', '.join(METHODS)}, got {method!r}")
    defaults = METHODS[method].hyperparameters
    for name, value in hyperparameters.items():
        if name not in defaults:
            wanted = ", ".join(defaults) or "none"
            raise TypeError(
                f"{op}: expected hyper-parameters of {method!r}, {wanted}, got {name!r}"
            )
        check_number(op, name, value)
    return {**defaults, **hyperparameters}


# --- output --------------------------------------------------------------------------------------


def plot(file: str | Path = "dirac.png", *, lr: float = 0.1, steps: int = 300) -> None:
    """Write the phase portraits of all methods, alternating, as one figure.

    Args:
        file: its name; the suffix says the format.
        lr, steps: as for :func:`simulate`.

    Raises:
        ImportError: if matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "dirac: expected matplotlib for the plot, which is missing; pip install matplotlib"
        ) from error
    columns = 3
    rows = -(-len(METHODS) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.6 * rows), layout="constrained")
    figure.suptitle(
        f"Dirac-GAN: alternating gradient descent, learning rate {lr:g}, {steps} steps",
        fontweight="bold",
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    for method, panel in zip(METHODS, axes.flat, strict=False):
        _portrait(panel, method, lr, steps)
    for panel in axes.flat[len(METHODS) :]:
        panel.set_visible(False)
    figure.savefig(file, dpi=130)


_COLORS = {"converges": "#1a7f4b", "oscillates": "#c0392b", "diverges": "#c0392b"}


def _portrait(panel: Any, method: str, lr: float, steps: int) -> None:
    game = METHODS[method]
    path = simulate(method, steps=steps, lr=lr)
    behavior = verdict(method, lr=lr)
    side = max(2.0, 1.1 * path.abs().max().item())
    ticks = torch.linspace(-0.92, 0.92, 13, dtype=torch.float64).mul(side).tolist()
    grid = [(theta, psi) for psi in ticks for theta in ticks]
    arrows = torch.tensor([field_at(method, *point) for point in grid])
    length = arrows.norm(dim=1, keepdim=True)
    # Arrows of one length; how strong the field is, is in their shade.
    arrows = arrows / length.clamp_min(1e-12)
    theta, psi = path.unbind(1)
    panel.quiver(
        [point[0] for point in grid],
        [point[1] for point in grid],
        arrows[:, 0].tolist(),
        arrows[:, 1].tolist(),
        length.squeeze(1).sqrt().tolist(),
        cmap="Greys",
        clim=(-0.6 * length.max().sqrt().item(), 1.8 * length.max().sqrt().item()),
        pivot="mid",
        scale=22,
        width=0.005,
    )
    panel.plot(theta.tolist(), psi.tolist(), "-", color=_COLORS[behavior], linewidth=1.1)
    panel.plot(theta.tolist(), psi.tolist(), ".", color=_COLORS[behavior], markersize=2.5)
    panel.plot(
        *path[0].tolist(), "o", color=_COLORS[behavior], markersize=6, markeredgecolor="white"
    )
    panel.plot(0, 0, "*", color="#f2b705", markersize=13, markeredgecolor="black", zorder=3)
    if "c" in game.hyperparameters:
        for bound in (-game.hyperparameters["c"], game.hyperparameters["c"]):
            panel.axhline(bound, color="#5b6675", linewidth=0.8, linestyle=":")
    panel.set(xlim=(-side, side), ylim=(-side, side), aspect="equal")
    x, y = ("x", "y") if method == "xy" else (r"$\theta$", r"$\psi$")
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    panel.set_title(f"{game.title}\n{behavior}{game.note}", fontsize=10, color=_COLORS[behavior])


def table(lr: float = 0.1) -> str:
    """The text that ``python -m gankernels.dirac`` prints."""
    lines = [
        f"Dirac-GAN, learning rate {lr:g}: moduli of the eigenvalues of one step",
        "",
        f"{'':<16}{'alternating':<34}simultaneous",
    ]
    for method, game in METHODS.items():
        cells = []
        for alternating in (True, False):
            moduli = "not smooth"
            if game.smooth:
                values = eigenvalues(method, lr=lr, alternating=alternating).abs()
                moduli = "  ".join(f"{m:.5f}" for m in sorted(values.tolist()))
            behavior = verdict(method, lr=lr, alternating=alternating)
            cells.append(f"{moduli:<18}  {behavior:<14}")
        lines.append(f"{method:<16}{''.join(cells)}".rstrip())
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gankernels.dirac",
        description="Convergence of GAN training on the Dirac-GAN (arXiv 1801.04406).",
    )
    parser.add_argument(
        "--plot",
        nargs="?",
        const="dirac.png",
        metavar="FILE",
        help="write phase portraits of all methods (default: dirac.png)",
    )
    args = parser.parse_args(argv)
    if args.plot is None:
        print(table())
        return 0
    try:
        plot(args.plot)
    except ImportError as error:
        print(error, file=sys.stderr)
        return 1
    print(args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
