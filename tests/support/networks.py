"""Layers and networks under spectral normalization, torch's and ours, to test the drop-ins on."""

import collections
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations as torch_parametrizations
from torch.nn.utils import spectral_norm as torch_hook

import gankernels.nn.utils
from gankernels.nn.utils import parametrizations


class Kind(NamedTuple):
    """One of torch's two spectral norms, and our drop-in for it."""

    torch: Callable[..., nn.Module]
    ours: Callable[..., nn.Module]
    names: tuple[str, str, str]  # of the weight, u and v in a state_dict

    def parts(self, module: nn.Module) -> list[Tensor]:
        """The weight, u and v."""
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        return [tensors[name] for name in self.names]


KINDS = {
    "hook": Kind(
        torch_hook,
        gankernels.nn.utils.spectral_norm,
        ("weight_orig", "weight_u", "weight_v"),
    ),
    "parametrization": Kind(
        torch_parametrizations.spectral_norm,
        parametrizations.spectral_norm,
        (
            "parametrizations.weight.original",
            "parametrizations.weight.0._u",
            "parametrizations.weight.0._v",
        ),
    ),
}

#: Every way to normalize a weight: torch's two and ours.
WAYS: dict[str, Callable[..., nn.Module]] = {
    f"{whose}_{name}": getattr(kind, whose)
    for name, kind in KINDS.items()
    for whose in ("torch", "ours")
}


class Scale(nn.Module):
    """A module with a vector parameter."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


#: Modules with the shape of an input; None: indices.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...] | None]] = {
    "linear": (lambda: nn.Linear(7, 5), (4, 7)),
    "linear_one_row": (lambda: nn.Linear(6, 1), (4, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 8)),
    "conv2d": (lambda: nn.Conv2d(3, 8, 3), (2, 3, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 5, 2), (2, 2, 3, 4, 3)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 6, 3), (2, 4, 5)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(5, 3, 4, stride=2), (2, 5, 3, 3)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(3, 4, 2), (1, 3, 3, 2, 3)),
    "embedding": (lambda: nn.Embedding(9, 5), None),
    "groups": (lambda: nn.Conv2d(4, 8, 3, groups=2), (2, 4, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (2, 4, 5, 5)),
    "transposed_groups": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
}


def draw(
    shape: tuple[int, ...] | None, seed: int = 1, dtype: torch.dtype = torch.float32
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if shape is None:
        return torch.randint(9, (12,), generator=generator)
    real = torch.float64 if not dtype.is_complex else torch.complex128
    return torch.randn(*shape, generator=generator, dtype=real).to(dtype)


def make(
    way: Callable[..., nn.Module],
    factory: Callable[[], nn.Module],
    dtype: torch.dtype = torch.float32,
    prepare: Callable[[nn.Module], Any] = lambda module: None,
    **options: Any,
) -> nn.Module:
    torch.manual_seed(0)
    module = factory().to(dtype)
    prepare(module)
    return way(module, **options)


def twins(kind: Kind, factory: Callable[[], nn.Module], *args: Any, **options: Any):
    """The same module under torch's normalization and under ours, from the same seed."""
    return tuple(make(way, factory, *args, **options) for way in (kind.torch, kind.ours))


class Block(nn.Module):
    """A residual block."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module], channels: int) -> None:
        super().__init__()
        self.conv = norm(nn.Conv2d(channels, channels, 3, padding=1))
        self.skip = norm(nn.Conv2d(channels, channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.tanh(x)) + self.skip(x)


class Critic(nn.Module):
    """A small discriminator, each of its weights normalized by the next way of ``ways``."""

    def __init__(self, ways: list[Callable[..., nn.Module]], dtype: torch.dtype) -> None:
        super().__init__()
        turns = itertools.cycle(ways)

        def norm(module: nn.Module) -> nn.Module:
            return next(turns)(module.to(dtype))

        self.first = norm(nn.Conv2d(3, 4, 3, padding=1))
        self.blocks = nn.Sequential(Block(norm, 4), Block(norm, 4))
        self.plain = nn.Conv2d(4, 4, 1, dtype=dtype)
        self.up = norm(nn.ConvTranspose2d(4, 3, 2, stride=2))
        self.last = norm(nn.Linear(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = torch.tanh(self.plain(self.blocks(x)))
        return self.last(torch.tanh(self.up(x)).mean((2, 3)))


CRITIC_LABELS = [
    "first.weight",
    "blocks.0.conv.weight",
    "blocks.0.skip.weight",
    "blocks.1.conv.weight",
    "blocks.1.skip.weight",
    "up.weight",
    "last.weight",
]


def critic(*ways: str, dtype: torch.dtype = torch.float64) -> Critic:
    """The critic, by names of WAYS; from the same seed the same numbers whoever normalizes."""
    torch.manual_seed(0)
    return Critic([WAYS[way] for way in ways], dtype)


def batch(seed: int = 1, dtype: torch.dtype = torch.float64, n: int = 3) -> Tensor:
    return draw((n, 3, 5, 5), seed, dtype)


def loss(output: Tensor) -> Tensor:
    """Smooth, bounded, and as well-conditioned far from zero as near it."""
    return (output.abs() if output.is_complex() else torch.nn.functional.softsign(output)).mean()


def states(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers (but for the guard's counters) and gradients, copied."""
    named = [*module.named_parameters(), *module.named_buffers()]
    found = {f"value of {k}": v for k, v in named if not k.endswith("_skipped")}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            found[f"gradient of {name}"] = parameter.grad
    return {k: v.detach().clone() for k, v in found.items()}


def tolerance(dtype: torch.dtype) -> float:
    wide = {torch.float64: 1e-12, torch.complex128: 1e-12, torch.bfloat16: 3e-2}
    return wide.get(dtype, 2e-5)


def assert_same(got: Any, expected: Any, what: str = "", factor: float = 1) -> None:
    """Equal up to rounding, relative to the largest number of a tensor. Takes tensors, lists, dicts
    of them, and modules."""
    if isinstance(expected, nn.Module):
        got, expected = states(got), states(expected)
    if isinstance(expected, dict):
        assert list(got) == list(expected), what
        for key, value in expected.items():
            assert_same(got[key], value, f"{what} {key}", factor)
    elif isinstance(expected, (list, tuple)):
        assert len(got) == len(expected), what
        for i, (a, b) in enumerate(zip(got, expected, strict=True)):
            assert_same(a, b, f"{what} {i}", factor)
    elif expected is None:
        assert got is None, what
    else:
        assert got.dtype == expected.dtype, f"{what}: {got.dtype}, not {expected.dtype}"
        finite = expected[torch.isfinite(expected)].abs()
        largest = finite.max().item() if finite.numel() else 0.0
        torch.testing.assert_close(
            got.detach(),
            expected.detach(),
            rtol=0,
            atol=factor * tolerance(expected.dtype) * largest + 1e-300,
            equal_nan=True,
            msg=lambda text: f"{what}: {text}",
        )


def train(
    module: nn.Module, inputs: list[Tensor], lr: float = 0.05, forwards: int = 2
) -> list[dict[str, Tensor]]:
    """A step of gradient descent for every input, with ``forwards`` passes before the backward;
    returns what the outputs, parameters, buffers and gradients were after each."""
    history = []
    for x in inputs:
        outputs = [module(x * (k + 1) if x.is_floating_point() else x) for k in range(forwards)]
        module.zero_grad()
        total = sum((k + 1) * loss(out) for k, out in enumerate(outputs))
        if total.requires_grad:
            total.backward()
        found = states(module)
        found.update({f"output {k}": out.detach().clone() for k, out in enumerate(outputs)})
        history.append(found)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter -= lr * parameter.grad
    return history


def replicate(module: nn.Module) -> nn.Module:
    """What DataParallel makes of a module for the device it lies on: aliases of its tensors."""
    copies = {m: m._replicate_for_data_parallel() for m in module.modules()}
    for original, replica in copies.items():
        for key, child in original._modules.items():
            if child is not None:
                setattr(replica, key, copies[child])
        replica._former_parameters = collections.OrderedDict()
        for key, parameter in original._parameters.items():
            if parameter is None:
                replica._parameters[key] = None
                continue
            alias = parameter.view_as(parameter)
            setattr(replica, key, alias)
            replica._former_parameters[key] = alias
        for key, buffer in original._buffers.items():
            if buffer is not None:
                setattr(replica, key, buffer.detach())
    return copies[module]


def outcome(call: Callable[[], Any]) -> tuple[type, str] | None:
    """The type and the words of the error that a call ends in."""
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return None
