"""Norms of linear maps, convolutions included, and a bound of a network's Lipschitz constant."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm

from gankernels._checks import is_choice, kind
from gankernels._torch import CALLED_METHODS
from gankernels.spectral_norm.fold import fold_spectral_norm
from gankernels.spectral_norm.sites import sites, weight_norms

#: Frequencies for each degree of a symbol: sup <= max over the grid / cos(pi / (2 * this)), 1.0196.
_OVERSAMPLING = 8
#: Complex numbers at a time.
_CHUNK = 1 << 23


@dataclasses.dataclass(frozen=True)
class SpectralNorms:
    """The result of :func:`spectral_norms`. Norms are scalars, by name (``"conv.weight"``); of
    the weights' dtype, or u's where that is wider, for ``of="weight"``, else float64. In a chain of
    parametrizations the second spectral norm has its place for a suffix (``"conv.weight.1"``).

    Attributes:
        layers: the norm of every weight *before* spectral normalization, which is what training
            moves; a weight without spectral normalization counts in ``of="operator"``.
        product: their product.
        applied: the norm of every weight as ``model.eval()`` applies it, so W / sigma where it is
            normalized. Empty for ``of="weight"``.
        factors: the Lipschitz constants of the other modules that are not 1, by name.
        unbounded: modules for which no constant is known, with the reason.
        lipschitz: the product of ``applied`` and ``factors``, **the bound for the network in
            eval()**; infinite where something is ``unbounded``. None for ``of="weight"``.
    """

    layers: dict[str, Tensor]
    product: Tensor
    applied: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    factors: dict[str, float] = dataclasses.field(default_factory=dict)
    unbounded: dict[str, str] = dataclasses.field(default_factory=dict)
    lipschitz: Tensor | None = None


@torch.no_grad()
def spectral_norms(
    model: Module, of: str = "weight", *, input_size: Sequence[int] | None = None
) -> SpectralNorms:
    """The spectral norms of a model's weights, or of the linear maps that they make.

    ``of="weight"`` takes the weight as a matrix of ``out_channels`` rows, which is what spectral
    normalization divides by (Miyato et al. 2018, section 2.1): ``u . (W v)`` of
    every weight under torch's or our ``spectral_norm``, fused or not, and before it. For logging:
    nothing moves, nothing is waited for. For a convolution **this is not the norm of the map**,
    and their product bounds nothing: the 3x3 kernel of ones has 3, and stretches an image by
    nearly 9 (Tsuzuku et al. 2018, arXiv 1802.04034; Sedghi et al. 2019; Farnia et al. 2019, arXiv
    1811.07457).

    ``of="operator"`` takes the linear map x -> W * x itself, for every linear and convolutional
    layer, normalized or not:

    - ``Linear``: exact.
    - Convolutions with ``padding_mode="circular"`` that keep the size (or divide it by the stride):
      exact where ``input_size`` is given (Sedghi et al. 2019), by the Fourier transform.
    - Convolutions with zeros, transposed ones (the adjoint), with strides, dilation and groups, in
      one, two and three dimensions: an upper bound for images of every size, at most 2 % a
      dimension above what large images reach. The map is a part of the convolution on the whole
      lattice, whose norm is the supremum, over all frequencies, of the norm of its symbol; strides
      make channels of the phases. Of a trigonometric polynomial of degree n / 2 on a grid of N
      frequencies, the supremum is at most the largest value / cos(pi n / (2 N)).
      With ``input_size`` a torus without wrap-around takes the place of the whole lattice.
    - Padding by ``"reflect"`` and ``"replicate"``: the same times the norm of the padding, which
      copies pixels; an upper bound that is not tight.

    ``lipschitz`` of the result is a bound of the Lipschitz constant (of the 2-norm) of a **chain**:
    a model, such as an ``nn.Sequential``, that applies its modules one after the other. Common
    activations, pooling, dropout and BatchNorm in ``eval()`` count with their constants; modules
    for which there is none (attention, LayerNorm, Embedding, recurrent layers, BatchNorm without
    running statistics, a class of your own that holds parameters or has no submodules, and where
    there is a forward hook that is not torch's ``weight_norm`` or ``prune``) are listed in
    ``unbounded`` and make it infinite. What ``forward`` methods of your own do besides calling
    submodules cannot be seen: it is no bound for residual connections (each block is 1 plus its
    branch), branches, or modules that are called more than once.

    Args:
        model: any module. It is not changed, called or moved: with ``input_size`` a copy is called.
        of: ``"weight"`` or ``"operator"``.
        input_size: of one input without the batch, such as ``(3, 64, 64)``, for ``"operator"``:
            norms for images of this size. Costs a matrix norm a pixel of each layer's input.

    Returns:
        :class:`SpectralNorms`. ``product`` is of the weights before the normalization, whatever
        ``of`` is; ``lipschitz`` is of the weights that the network uses.

    Raises:
        TypeError: if ``model`` is not a module, or ``input_size`` not integers.
        ValueError: for another ``of``; if there is no weight to take the norm of; for
            ``input_size`` with ``of="weight"``.

    Not differentiable. Deterministic. In float64, up to its rounding; not finite for weights that
    are not. For logging now and then: 144 matrix norms for a 3x3 convolution. Sedghi et
    al. 2019 (arXiv 1805.10408), theorem 6, for circular convolutions. Frequencies on a grid:
    Pfister and Bresler 2018 (arXiv 1802.09588); on convolutional layers, Araujo et al. 2021 (arXiv
    2006.08391), Delattre et al. 2023 (arXiv 2305.16173). The constant here is the smaller one that
    follows from M. Riesz's lemma: a real trigonometric polynomial of degree d that is largest, 1,
    at 0 is at least cos(d x) for abs(x) <= pi / d.
    """
    if not isinstance(model, Module):
        raise TypeError(f"spectral_norms: expected a torch.nn.Module, got {kind(model)}")
    if not is_choice(of, ("weight", "operator")):
        raise ValueError(f'spectral_norms: expected of to be "weight" or "operator", got {of!r}')
    if of == "weight":
        if input_size is not None:
            raise ValueError(
                'spectral_norms: input_size is for of="operator"; the norm of a reshaped weight '
                "does not depend on the image"
            )
        norms = weight_norms(model)
        if not norms:
            raise ValueError(
                "spectral_norms: expected a model with spectrally normalized weights for "
                'of="weight", got none; of="operator" takes plain ones'
            )
        return SpectralNorms(norms, torch.stack(list(norms.values())).prod())

    if any(x.is_meta for x in model.parameters()):
        raise ValueError(
            "spectral_norms: expected a model with weights, got one on the meta device; load them, "
            "or call model.to_empty() and initialize it"
        )
    folded = fold_spectral_norm(model).eval()
    sizes = {} if input_size is None else _sizes(folded, input_size)
    unbounded: dict[str, str] = {}
    for path, module in folded.named_modules():
        for hook in [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]:
            if isinstance(hook, (WeightNorm, BasePruningMethod)):
                hook(module, ())  # what it stored may be of an earlier step
            else:
                unbounded[path] = f"{kind(module)} with a forward hook, which may do anything"
    # The first of several normalizations of a weight takes the weight before all of them.
    before = {(site.module, site.name): site for site in reversed(list(sites(model)))}
    layers: dict[str, Tensor] = {}
    applied: dict[str, Tensor] = {}
    factors: dict[str, float] = {}
    for path, module in _walk(folded):
        label = f"{path}.weight" if path else "weight"
        measure = _rule(_LINEAR, module)
        if measure is not None:
            if isinstance(module.weight, UninitializedParameter):
                unbounded[path] = f"{kind(module)} without a weight yet; call the model once"
                continue
            size = sizes.get(module)
            applied[label] = layers[label] = measure(module, module.weight, size)
            site = before.get((model.get_submodule(path), "weight"))
            if site is not None:
                layers[label] = measure(module, site.input(), size)
            continue
        constant = _rule(_CONSTANTS, module)
        if constant is None:
            unbounded[path] = f"{kind(module)}: no Lipschitz constant is known"
            continue
        value = constant(module)
        if isinstance(value, str):
            unbounded[path] = f"{kind(module)}: {value}"
        elif value != 1:
            factors[path] = float(value)
    if not layers:
        parts = "".join(f"; {path or 'it'} is {what}" for path, what in unbounded.items())
        raise ValueError(
            "spectral_norms: expected a model with linear or convolutional layers, got "
            f"{kind(model)} with none{parts}"
        )
    bound = _product(applied) * math.prod(factors.values())
    lipschitz = torch.full_like(bound, math.inf) if unbounded else bound
    return SpectralNorms(layers, _product(layers), applied, factors, unbounded, lipschitz)


def _product(norms: dict[str, Tensor]) -> Tensor:
    first = next(iter(norms.values()))
    return torch.stack([x.to(first.device) for x in norms.values()]).prod()


def _walk(module: Module, path: str = "") -> Iterator[tuple[str, Module]]:
    """The modules that do something by themselves; one that is used twice comes twice."""
    children = list(module._modules.items())
    own = [*module._parameters.values(), *module._buffers.values()]
    known = _rule(_LINEAR, module) or _rule(_CONSTANTS, module)
    if known is not None or not children or any(x is not None for x in own):
        if children or not isinstance(module, nn.Sequential):
            yield path, module
        return
    for name, child in children:
        if child is not None:
            yield from _walk(child, f"{path}.{name}" if path else name)


def _rule(table: dict[type, Any], module: Module) -> Any:
    """The table's entry for the class whose ``forward`` the module has."""
    for cls in type(module).__mro__:
        if cls in table:
            same = all(
                getattr(type(module), name, None) is getattr(cls, name, None)
                and name not in vars(module)
                for name in CALLED_METHODS
            )
            return table[cls] if same else None
    return None


def _sizes(model: Module, input_size: Sequence[int]) -> dict[Module, tuple[int, ...]]:
    """The spatial sizes of the inputs of convolutions, of a forward of zeros."""
    if not isinstance(input_size, (tuple, list)) or not all(
        isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in input_size
    ):
        raise TypeError(
            "spectral_norms: expected input_size to be a sequence of positive integers, such as "
            f"(3, 64, 64), got {input_size!r}"
        )
    sizes: dict[Module, tuple[int, ...]] = {}

    def note(module: Any, args: Any) -> None:
        size = tuple(args[0].shape[-len(module.kernel_size) :])
        if sizes.setdefault(module, size) != size:
            raise ValueError(
                f"spectral_norms: expected one input size a convolution, got {sizes[module]} and "
                f"{size} for the same; leave input_size out"
            )

    handles = [
        module.register_forward_pre_hook(note)
        for module in model.modules()
        if isinstance(module, _DIMENSIONS)
    ]
    like = next(model.parameters(), torch.empty(0))
    x = torch.zeros((1, *input_size), dtype=like.dtype, device=like.device)
    try:
        model(x)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if str(error).startswith("spectral_norms: "):
            raise
        raise ValueError(
            "spectral_norms: expected input_size to be of one input of the model without the "
            f"batch, got {tuple(input_size)}, of which the model says: {error}"
        ) from error
    for handle in handles:
        handle.remove()
    return sizes


# --- linear maps --------------------------------------------------------------------------------


def _norms_of(matrices: Tensor) -> Tensor:
    """The 2-norms of a stack of matrices, by the Gram matrices of their smaller side."""
    if matrices.shape[-1] < matrices.shape[-2]:
        matrices = matrices.mH
    return torch.linalg.eigvalsh(matrices @ matrices.mH)[..., -1].clamp_min(0).sqrt()


def _in_double(weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """The weight over its largest number, and this; or None and the norm where there is no more."""
    weight = weight.to(torch.complex128 if weight.is_complex() else torch.float64)
    scale = weight.abs().amax() if weight.numel() else weight.new_zeros(()).abs()
    if not bool(scale.isfinite()) or bool(scale == 0):
        return scale, None
    return scale, weight / scale


def _linear(module: Any, weight: Tensor, size: Any) -> Tensor:
    scale, matrix = _in_double(weight)
    return scale if matrix is None else scale * _norms_of(matrix)


class _Axis(NamedTuple):
    """A dimension of a convolution, as channels of phases: frequencies by taps by phases."""

    phases: Tensor
    factor: float  # of the largest value at these frequencies, to have a bound


def _axis(
    kernel: int, stride: int, dilation: int, frequencies: int | None, device: torch.device
) -> _Axis:
    """``x[stride * m + p]`` is phase p; without a number of frequencies, for every one there is."""
    if frequencies is None:
        common = math.gcd(stride, dilation)  # phases between are never read
        stride, dilation = stride // common, dilation // common
        if stride == 1:
            dilation = 1  # the symbol at dilation * frequency, which takes the same values
    taps = torch.arange(kernel, device=device) * dilation
    degree = (kernel - 1) * dilation // stride
    factor = 1.0
    if frequencies is None:
        frequencies = max(1, _OVERSAMPLING * degree)
        factor = 1 / math.cos(math.pi * degree / (2 * frequencies))
    # Whole turns are taken out in integers.
    turns = torch.arange(frequencies, device=device)[:, None] * (taps // stride) % frequencies
    waves = torch.polar(
        torch.ones(turns.shape, dtype=torch.float64, device=device),
        turns.double() * (-2 * math.pi / frequencies),
    )
    mine = (taps % stride)[:, None] == torch.arange(stride, device=device)
    return _Axis(waves[:, :, None] * mine, factor)


def _largest(weight: Tensor, groups: int, axes: list[_Axis]) -> Tensor:
    """The largest norm of the symbol ``sum_j W_j exp(-i j omega)`` over the axes' frequencies."""
    scale, scaled = _in_double(weight)
    if scaled is None:
        return scale
    out, inner = weight.shape[0] // groups, weight.shape[1]
    taps = scaled.reshape(groups, out * inner, -1).to(torch.complex128)
    counts = [axis.phases.shape[0] for axis in axes]
    if not weight.is_complex():  # the symbol at -omega is the conjugate
        counts[-1] = counts[-1] // 2 + 1
    total = math.prod(counts)
    phases = math.prod(axis.phases.shape[2] for axis in axes)
    chunk = max(1, _CHUNK // (groups * out * inner * phases))
    best = scale.new_zeros(())
    for start in range(0, total, chunk):
        index = torch.arange(start, min(start + chunk, total), device=weight.device)
        waves = torch.ones(len(index), 1, 1, dtype=torch.complex128, device=weight.device)
        for axis, where in zip(axes, torch.unravel_index(index, counts), strict=True):
            waves = torch.einsum("fkp,flq->fklpq", waves, axis.phases[where])
            waves = waves.flatten(3, 4).flatten(1, 2)
        symbol = torch.einsum("gok,fkp->fgop", taps, waves)
        symbol = symbol.reshape(len(index), groups, out, inner * phases)
        best = torch.maximum(best, _norms_of(symbol).amax())
    return best * scale * math.prod(axis.factor for axis in axes)


def _convolution(module: Any, weight: Tensor, size: tuple[int, ...] | None) -> Tensor:
    mode = module.padding_mode
    settings = zip(module.kernel_size, module.stride, module.dilation, strict=True)
    axes, continuous_axes, copies = [], [], 1.0
    for i, (k, s, d) in enumerate(settings):
        n, reach = None if size is None else size[i], d * (k - 1)
        if module.padding == "same":
            pads = reach // 2, reach - reach // 2
        elif module.padding == "valid":
            pads = 0, 0
        else:
            pads = (module.padding[i],) * 2
        if mode == "circular":
            frequencies, stride, more = _torus(n, s, reach, sum(pads))
        else:
            stride = s
            # The copies of a pixel: the padding's norm is the root of the most there are.
            more = {
                "zeros": 1,
                "reflect": 1 + sum(p > 0 for p in pads),
                "replicate": 1 + (max(pads) if n is not None and n > 1 else sum(pads)),
            }[mode]
            padded = None if n is None else n + (sum(pads) if mode != "zeros" else 0)
            # No wrap-around: the outputs of the whole convolution fit.
            frequencies = None if padded is None else -(-(padded + reach) // s)
        axes.append(_axis(k, stride, d, frequencies, weight.device))
        continuous_axes.append(_axis(k, stride, d, None, weight.device))
        copies *= math.sqrt(more)
    bound = _largest(weight, module.groups, axes)
    if size is not None and mode != "circular":
        bound = torch.minimum(bound, _largest(weight, module.groups, continuous_axes))
    return bound * copies


def _torus(n: int | None, stride: int, reach: int, padding: int) -> tuple[int | None, int, int]:
    """Frequencies, stride and copies of an output for circular padding of a side of n pixels."""
    # More outputs than pixels are outputs again; at most n are added on each side.
    extra = max(0, padding - reach)
    if n is None:
        return None, 1, 1 + 2 * (extra > 0)
    copies = 1 + -(-extra // n)
    if n % stride:  # no polyphase form: a part of the outputs of stride 1
        return n, 1, copies
    return n // stride, stride, copies


def _transposed(module: Any, weight: Tensor, size: tuple[int, ...] | None) -> Tensor:
    """The adjoint of a strided convolution with zeros; ``output_padding`` only adds its rows."""
    axes, continuous_axes = [], []
    for i, (k, s, d) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True)
    ):
        frequencies = None if size is None else -(-(s * (size[i] - 1) + 1 + d * (k - 1)) // s)
        axes.append(_axis(k, s, d, frequencies, weight.device))
        continuous_axes.append(_axis(k, s, d, None, weight.device))
    bound = _largest(weight, module.groups, axes)
    if size is not None:
        bound = torch.minimum(bound, _largest(weight, module.groups, continuous_axes))
    return bound


_DIMENSIONS: tuple[type, ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_LINEAR: dict[type, Callable] = {
    nn.Linear: _linear,
    **dict.fromkeys(_DIMENSIONS[:3], _convolution),
    **dict.fromkeys(_DIMENSIONS[3:], _transposed),
}

# --- everything else ----------------------------------------------------------------------------


def _batch_norm(module: Any) -> float | str:
    if module.running_var is None:
        return "uses the statistics of the batch"
    scale = (module.running_var.double() + module.eps).rsqrt()
    return float((scale if module.weight is None else scale * module.weight.abs()).amax())


def _per_side(module: Any, name: str) -> list[int]:
    value, sides = getattr(module, name), int(kind(module)[-2])
    return [value] * sides if isinstance(value, int) else list(value)


def _average_pool(module: Any) -> float | str:
    padded = any(_per_side(module, "padding"))
    if module.ceil_mode or (padded and not module.count_include_pad):
        return "the windows at the edges are of other sizes"
    if getattr(module, "divisor_override", None) is not None:
        return "divisor_override"
    # Rows sum to 1; columns to the windows over a pixel times 1 / k.
    pairs = zip(_per_side(module, "kernel_size"), _per_side(module, "stride"), strict=True)
    return math.prod(math.sqrt(-(-k // s) / k) for k, s in pairs)


def _max_pool(module: Any) -> float:
    # At most so many windows take the same pixel.
    names = "kernel_size", "stride", "dilation"
    sides = zip(*(_per_side(module, name) for name in names), strict=True)
    return math.prod(math.sqrt(-(-k // (s // math.gcd(s, d)))) for k, s, d in sides)


def _one(module: Module) -> float:
    return 1.0


_CONSTANTS: dict[type, Callable[[Any], float | str]] = {
    **dict.fromkeys(
        (
            nn.Identity,
            nn.Flatten,
            nn.Unflatten,
            nn.PixelShuffle,
            nn.PixelUnshuffle,
            nn.ChannelShuffle,
            nn.Dropout,  # in eval(), as all of these
            nn.Dropout1d,
            nn.Dropout2d,
            nn.Dropout3d,
            nn.AlphaDropout,
            nn.ZeroPad1d,
            nn.ZeroPad2d,
            nn.ZeroPad3d,
            nn.ReLU,
            nn.ReLU6,
            nn.Tanh,
            nn.Hardtanh,
            nn.Softsign,
            nn.Softshrink,
            nn.Tanhshrink,
            nn.LogSigmoid,
        ),
        _one,
    ),
    nn.Sigmoid: lambda m: 0.25,
    nn.LeakyReLU: lambda m: max(1.0, abs(m.negative_slope)),
    nn.PReLU: lambda m: float(m.weight.abs().amax().clamp_min(1)),  # NaN remains
    nn.CELU: lambda m: 1.0 if m.alpha > 0 else "a negative alpha",
    nn.Softplus: lambda m: 1.0 if m.threshold >= 20 else "jumps at its threshold",
    nn.ELU: lambda m: max(1.0, abs(m.alpha)),
    nn.SELU: lambda m: 1.7581,  # scale * alpha
    nn.GELU: lambda m: 1.13,  # the largest slopes, rounded up
    nn.SiLU: lambda m: 1.1,
    nn.Mish: lambda m: 1.09,
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _average_pool),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _max_pool),
}

__all__ = ["SpectralNorms", "spectral_norms"]
