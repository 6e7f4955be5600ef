"""The penalties of :mod:`gankernels.penalties` as modules that hold their hyper-parameters.

``R1Penalty(gamma=5.0)(logits, real)`` is ``r1_penalty(logits, real, gamma=5.0)``: whatever a module
is called with goes to its function, which says what that is, and on to the critic: ``first``,
``sample_weight``, ``reduction``, ``return_raw``, ``inv_scale``, ``groups``, ``generator``, too.
The hyper-parameters are checked here and then plain attributes: assign to them to anneal. They are
in ``repr()``, in copies and in pickles, but not in the state_dict. ``scores``, which part of what
the critic returns are the scores, is one of them, or goes with the call.

:class:`SpectralNormRegularization` and :class:`LazyRegularizer` have a state besides, which is in
their state_dict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize as unit_vector
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from gankernels import ops, penalties
from gankernels._checks import (
    check_bool,
    check_count,
    check_generator,
    check_number,
    check_real,
    drawn_by,
    is_choice,
    kind,
)
from gankernels._critics.norms import Heads, Method, Weight, check_method, check_weight
from gankernels._critics.scores import Pick, check_pick

__all__ = [
    "ApproxR1Penalty",
    "ApproxR2Penalty",
    "ConsensusPenalty",
    "DRAGANPenalty",
    "LazyRegularizer",
    "MaxGradientPenalty",
    "OrthogonalRegularization",
    "R1Penalty",
    "R1R2Penalty",
    "R2Penalty",
    "RothPenalty",
    "SpectralNormRegularization",
    "WGANGPPenalty",
    "WGANLPPenalty",
    "ZeroCenteredPenalty",
]


class _Penalty(nn.Module):
    """Calls ``_function`` with the keyword arguments that ``__init__`` was given."""

    _function: ClassVar[Callable[..., Tensor]]

    def __init__(self, *, scores: Pick = None, **hyperparameters: Any) -> None:
        super().__init__()
        op = f"{type(self).__name__}: {self._function.__name__}"
        check_pick(op, scores)
        self.scores = scores
        self._names = tuple(hyperparameters)
        for name, value in hyperparameters.items():
            self._check(op, name, value)
            setattr(self, name, value)

    def _check(self, op: str, name: str, value: Any) -> None:
        check_number(op, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        own = {name: getattr(self, name) for name in self._names}
        for name in own:
            if name in kwargs:
                raise TypeError(
                    f"{type(self).__name__}: expected no {name}= in a call, got {kwargs[name]!r}; "
                    f"the module has its own, which may be assigned to"
                )
        if self.scores is not None:
            kwargs.setdefault("scores", self.scores)
        return self._function(*args, **own, **kwargs)

    def extra_repr(self) -> str:
        usual = {"method": "double_backward", "heads": "sum", "allow_unused": False}
        names = [n for n in self._names if n not in usual or getattr(self, n) != usual[n]]
        if getattr(self, "method", None) == "double_backward":  # which takes no steps
            names.remove("sigma")
        if self.scores is not None:
            names.append("scores")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


class _NormPenalty(_Penalty):
    """With how norms are found: ``method``, ``sigma``, ``heads``, ``allow_unused``, as the
    functions have them.
    """

    def _check(self, op: str, name: str, value: Any) -> None:
        if name == "method":
            check_method(op, value)
        elif name == "heads":
            if not is_choice(value, ("sum", "mean")):
                raise ValueError(f'{op}: expected heads "sum" or "mean", got {value!r}')
        elif name == "allow_unused":
            check_bool(op, name, value)
        elif name in ("gamma", "weight"):
            check_weight(op, name, value)
        else:
            check_number(op, name, value, positive=name == "sigma")


class R1Penalty(_NormPenalty):
    """:func:`gankernels.r1_penalty`, called as
    ``(logits, real, *args, D=None, **kwargs)``.
    """

    _function = staticmethod(penalties.r1_penalty)

    def __init__(
        self,
        gamma: Weight = 10.0,
        center: float = 0.0,
        *,
        method: Method = "double_backward",
        sigma: float = 0.01,
        heads: Heads = "sum",
        allow_unused: bool = False,
        scores: Pick = None,
    ) -> None:
        super().__init__(
            gamma=gamma,
            center=center,
            method=method,
            sigma=sigma,
            heads=heads,
            allow_unused=allow_unused,
            scores=scores,
        )


class R2Penalty(_NormPenalty):
    """:func:`gankernels.r2_penalty`, called as
    ``(logits, fake, *args, D=None, **kwargs)``.
    """

    _function = staticmethod(penalties.r2_penalty)

    def __init__(
        self,
        gamma: Weight = 10.0,
        center: float = 0.0,
        *,
        method: Method = "double_backward",
        sigma: float = 0.01,
        heads: Heads = "sum",
        allow_unused: bool = False,
        scores: Pick = None,
    ) -> None:
        super().__init__(
            gamma=gamma,
            center=center,
            method=method,
            sigma=sigma,
            heads=heads,
            allow_unused=allow_unused,
            scores=scores,
        )


class R1R2Penalty(_NormPenalty):
    """:func:`gankernels.r1_r2_penalty`, called as
    ``(D, real, fake, *args, **kwargs)``.
    """

    _function = staticmethod(penalties.r1_r2_penalty)

    def __init__(
        self,
        gamma: Weight = 10.0,
        *,
        method: Method = "double_backward",
        sigma: float = 0.01,
        heads: Heads = "sum",
        allow_unused: bool = False,
        scores: Pick = None,
    ) -> None:
        super().__init__(
            gamma=gamma,
            method=method,
            sigma=sigma,
            heads=heads,
            allow_unused=allow_unused,
            scores=scores,
        )


class RothPenalty(_Penalty):
    """:func:`gankernels.roth_penalty`, called as ``(real_logits, fake_logits, real, fake)``."""

    _function = staticmethod(penalties.roth_penalty)

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__(gamma=gamma)


class WGANGPPenalty(_NormPenalty):
    """:func:`gankernels.wgan_gp_penalty`, called as
    ``(D, real, fake, *args, generator=None, **kwargs)``.
    """

    _function = staticmethod(penalties.wgan_gp_penalty)

    def __init__(
        self,
        weight: Weight = 10.0,
        center: float = 1.0,
        *,
        method: Method = "double_backward",
        sigma: float = 0.01,
        heads: Heads = "sum",
        allow_unused: bool = False,
        scores: Pick = None,
    ) -> None:
        super().__init__(
            weight=weight,
            center=center,
            method=method,
            sigma=sigma,
            heads=heads,
            allow_unused=allow_unused,
            scores=scores,
        )


class WGANLPPenalty(_NormPenalty):
    """:func:`gankernels.wgan_lp_penalty`, called as
    ``(D, real, fake, *args, generator=None, **kwargs)``.
    """

    _function = staticmethod(penalties.wgan_lp_penalty)

    def __init__(
        self,
        weight: Weight = 10.0,
        center: float = 1.0,
        *,
        method: Method = "double_backward",
        sigma: float = 0.01,
        heads: Heads = "sum",
        allow_unused: bool = False,
        scores: Pick = None,
    ) -> None:
        super().__init__(
            weight=weight,
            center=center,
            method=method,
            sigma=sigma,
            heads=heads,
            allow_unused=allow_unused,
            scores=scores,
        )


class ZeroCenteredPenalty(_NormPenalty):
    """:func:`gankernels.zero_centered_penalty`, called as
    ``(D, real, fake, *args, generator=None, **kwargs)``.
    """

    _function = staticmethod(penalties.zero_centered_penalty)

    def __init__(
        self,
        weight: Weight = 10.0,
        *,
        method: Method = "double_backward",
        sigma: float = 0.01,
        heads: Heads = "sum",
        allow_unused: bool = False,
        scores: Pick = None,
    ) -> None:
        super().__init__(
            weight=weight,
            method=method,
            sigma=sigma,
            heads=heads,
            allow_unused=allow_unused,
            scores=scores,
        )


class MaxGradientPenalty(_NormPenalty):
    """:func:`gankernels.max_gradient_penalty`, called as
    ``(D, real, fake, *args, generator=None, **kwargs)``.
    """

    _function = staticmethod(penalties.max_gradient_penalty)

    def __init__(
        self,
        weight: Weight = 10.0,
        *,
        method: Method = "double_backward",
        sigma: float = 0.01,
        allow_unused: bool = False,
        scores: Pick = None,
    ) -> None:
        super().__init__(
            weight=weight, method=method, sigma=sigma, allow_unused=allow_unused, scores=scores
        )


class DRAGANPenalty(_NormPenalty):
    """:func:`gankernels.dragan_penalty`, called as
    ``(D, real, *args, generator=None, **kwargs)``.

    ``scale`` of None stays the default of whatever ``noise`` is.
    """

    _function = staticmethod(penalties.dragan_penalty)

    def __init__(
        self,
        weight: Weight = 10.0,
        k: float = 1.0,
        noise: Literal["uniform", "gaussian"] = "uniform",
        scale: float | None = None,
        *,
        method: Method = "double_backward",
        sigma: float = 0.01,
        heads: Heads = "sum",
        allow_unused: bool = False,
        scores: Pick = None,
    ) -> None:
        super().__init__(
            weight=weight,
            k=k,
            noise=noise,
            scale=scale,
            method=method,
            sigma=sigma,
            heads=heads,
            allow_unused=allow_unused,
            scores=scores,
        )

    def _check(self, op: str, name: str, value: Any) -> None:
        if name == "noise":
            if not is_choice(value, ("uniform", "gaussian")):
                raise ValueError(f'{op}: expected noise "uniform" or "gaussian", got {value!r}')
        elif not (name == "scale" and value is None):
            super()._check(op, name, value)


class _ApproximatePenalty(_NormPenalty):
    def __init__(
        self,
        sigma: float = 0.01,
        weight: Weight = 100.0,
        gamma: Weight | None = None,
        *,
        heads: Heads = "sum",
        scores: Pick = None,
    ) -> None:
        super().__init__(sigma=sigma, weight=weight, gamma=gamma, heads=heads, scores=scores)

    def _check(self, op: str, name: str, value: Any) -> None:
        if not (name == "gamma" and value is None):
            super()._check(op, name, value)


class ApproxR1Penalty(_ApproximatePenalty):
    """:func:`gankernels.approx_r1_penalty`, called as
    ``(D, real, *args, generator=None, **kwargs)``.

    ``gamma``, unless it is None, goes before ``weight``.
    """

    _function = staticmethod(penalties.approx_r1_penalty)


class ApproxR2Penalty(_ApproximatePenalty):
    """:func:`gankernels.approx_r2_penalty`, called as
    ``(D, fake, *args, generator=None, **kwargs)``.

    ``gamma``, unless it is None, goes before ``weight``.
    """

    _function = staticmethod(penalties.approx_r2_penalty)


class ConsensusPenalty(_Penalty):
    """:func:`gankernels.consensus_penalty`, called as ``(losses, parameters)``."""

    _function = staticmethod(penalties.consensus_penalty)

    def __init__(self, gamma: float = 10.0) -> None:
        super().__init__(gamma=gamma)


# --- with a state --------------------------------------------------------------------------------

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_WARM_UP = 15  # steps of the power method, as torch.nn.utils.parametrizations.spectral_norm takes


class SpectralNormRegularization(nn.Module):
    """``weight / 2 * sum sigma(W)^2`` over a model's weights, sigma the spectral norm.

    Yoshida & Miyato 2017 (arXiv 1705.10941), with
    :func:`gankernels.spectral_norm_regularization`. The weights are those of every linear,
    convolution, transposed convolution and embedding layer, each read as a matrix with the output
    channels as rows; a weight that layers share counts once, a parametrized one as computed. ::

        regularization = SpectralNormRegularization(D)
        loss = loss + regularization()

    Args:
        model: the network, in which layers must be initialized. It is referred to and does not
            become a part of this module: its weights are neither in ``parameters()`` nor in the
            state_dict. A copy of this module belongs to a copy of the model: copy both in one call.
        weight: the paper's lambda, not negative; may be reassigned.
        n_power_iterations: steps of the power method in every call in training mode, at least 1;
            may be reassigned.
        generator: where the first v are drawn from; on the weights' device.

    The singular vectors are the buffers ``u_0``, ``v_0``, ``u_1``, ... in the order of
    ``model.modules()``. They start from 15 steps of the power method, move in training mode only
    (this module's, not the model's), and go with this module's ``to()``.

    Returns:
        A scalar, float32 (float64 for float64 weights) on the device of the first weight.
        Differentiable to any order in the weights, with u and v constant. Deterministic.

    Raises:
        TypeError: if ``model`` is not a module, a weight is complex, or a number not one.
        ValueError: if the model has no such layer, a lazy one, or one whose weight is computed by
            a hook; if a number is out of range; by a call, if this module is not on the model's
            device or of its dtype.
    """

    def __init__(
        self,
        model: nn.Module,
        weight: float = 0.01,
        n_power_iterations: int = 1,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        if not isinstance(model, nn.Module):
            raise TypeError(f"{op}: expected model to be a torch.nn.Module, got {kind(model)}")
        check_number(op, "weight", weight)
        check_count(op, "n_power_iterations", n_power_iterations)
        self.weight = weight
        self.n_power_iterations = n_power_iterations
        self._layers = _layers(op, model)  # in a list, so that they are not registered
        for i, w in enumerate(_weights(self._layers)):
            check_generator(op, generator, w.device)
            w = w.detach()
            v = torch.randn(
                w.numel() // w.shape[0], dtype=w.dtype, device=w.device, **drawn_by(generator)
            )
            v = unit_vector(v, dim=0, eps=1e-12)
            u = w.new_empty(w.shape[0])
            ops.power_iteration_([w], [u], [v], _WARM_UP)
            self.register_buffer(f"u_{i}", u)
            self.register_buffer(f"v_{i}", v)

    def forward(self) -> Tensor:
        groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        weights = _weights(self._layers)
        for i, w in enumerate(weights):
            groups.setdefault((w.dtype, w.device), []).append(i)
            u = self.get_buffer(f"u_{i}")
            if u.dtype != w.dtype or u.device != w.device:
                raise ValueError(
                    f"{type(self).__name__}: expected u_{i} of {w.dtype} on {w.device}, as the "
                    f"weight is, got {u.dtype} on {u.device}; move this module with the model, "
                    "by its to()"
                )
        total: Any = None
        for index in groups.values():
            u_, v_ = ([self.get_buffer(f"{name}_{i}") for i in index] for name in "uv")
            if not self.training:  # the gradient must not see what later iterations make of them
                u_, v_ = [x.clone() for x in u_], [x.clone() for x in v_]
            part = penalties.spectral_norm_regularization(
                [weights[i] for i in index],
                u_,
                v_,
                weight=self.weight,
                n_power_iterations=self.n_power_iterations if self.training else 0,
            )
            total = part if total is None else total + part.to(total.device)
        return total

    def extra_repr(self) -> str:
        return (
            f"weights={len(self._layers)}, weight={self.weight!r}, "
            f"n_power_iterations={self.n_power_iterations!r}"
        )


def _layers(op: str, model: nn.Module, skip: Sequence[nn.Module] = ()) -> list[Any]:
    layers: list[Any] = []
    seen: set[nn.Parameter] = set()
    weighted = {m for m in model.modules() if isinstance(m, _WEIGHTED)}
    for layer in skip:
        if layer not in weighted:
            raise ValueError(
                f"{op}: expected skip to be linear, convolution or embedding layers of the model, "
                f"got {kind(layer)} that is none; pass the layer itself, as model.shared"
            )
    for name, layer in model.named_modules():
        if not isinstance(layer, _WEIGHTED) or layer in skip:
            continue
        what = f"{name or 'model'}.weight"
        if parametrize.is_parametrized(layer, "weight"):
            weight = layer.weight
        elif isinstance(layer.weight, nn.Parameter):
            weight = layer.weight
            if weight in seen:
                continue
            seen.add(weight)
        else:
            raise ValueError(
                f"{op}: expected {what} to be a parameter or parametrized, got one that a hook "
                "computes; leave this regularization, or the hook, out"
            )
        if is_lazy(weight):
            raise ValueError(
                f"{op}: expected initialized weights, got the lazy {what}; call the model once "
                "before"
            )
        check_real(op, what, weight)
        if weight.numel() > 0:
            layers.append(layer)
    if not layers:
        raise ValueError(
            f"{op}: expected a model with linear, convolution or embedding layers, got "
            f"{kind(model)} without weights of these"
        )
    return layers


def _weights(layers: list[Any]) -> list[Tensor]:
    """Output channels first."""
    return [
        layer.weight.movedim(1, 0) if isinstance(layer, _TRANSPOSED) else layer.weight
        for layer in layers
    ]


class OrthogonalRegularization(nn.Module):
    """:func:`gankernels.orthogonal_regularization` of a model's weights, for each call anew.

    Brock et al. 2019 (arXiv 1809.11096), equation 3: ``weight * sum ||W W^T * (1 - I)||_F^2``. The
    weights are those of :class:`SpectralNormRegularization`, with the output channels as rows. ::

        regularization = OrthogonalRegularization(G)
        loss = loss + regularization()

    Args:
        model: the network, in which layers must be initialized. It is referred to and does not
            become a part of this module. A copy of this module belongs to a copy of the model: copy
            both in one call.
        weight: not negative; may be reassigned.
        diagonal: ``||W W^T - I||_F^2``, of equation 2.
        skip: layers that are left out, such as the embedding of classes that BigGAN leaves out.

    Returns:
        A scalar, float32 (float64 for float64 weights) on the device of the first weight.
        Differentiable to any order in the weights. Deterministic.

    Raises:
        TypeError: if ``model`` is not a module, ``skip`` not a list of them, a weight is complex,
            or a number not one.
        ValueError: if the model has no such layer, a lazy one, or one whose weight is computed by
            a hook; if a number is out of range, or one of ``skip`` is no such layer of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        weight: float = 1e-4,
        diagonal: bool = False,
        *,
        skip: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__()
        op = type(self).__name__
        if not isinstance(model, nn.Module):
            raise TypeError(f"{op}: expected model to be a torch.nn.Module, got {kind(model)}")
        check_number(op, "weight", weight)
        check_bool(op, "diagonal", diagonal)
        self.weight = weight
        self.diagonal = diagonal
        self._layers = _layers(op, model, _skipped(op, skip))  # a list, which is not registered

    def forward(self) -> Tensor:
        groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for w in _weights(self._layers):
            groups.setdefault((w.dtype, w.device), []).append(w)
        total: Any = None
        for weights in groups.values():
            part = penalties.orthogonal_regularization(
                weights, weight=self.weight, diagonal=self.diagonal
            )
            total = part if total is None else total + part.to(total.device)
        return total

    def extra_repr(self) -> str:
        diagonal = ", diagonal=True" if self.diagonal else ""
        return f"weights={len(self._layers)}, weight={self.weight!r}{diagonal}"


def _skipped(op: str, skip: object) -> list[nn.Module]:
    expected = f"{op}: expected skip to be a list of layers of the model, got"
    if isinstance(skip, nn.Module) or not isinstance(skip, Iterable):
        raise TypeError(f"{expected} {kind(skip)}")
    found = list(skip)
    for layer in found:
        if not isinstance(layer, nn.Module):
            raise TypeError(f"{expected} one with {kind(layer)}")
    return found


class LazyRegularizer(nn.Module):
    """Lazy regularization: ``interval`` times a penalty, in every ``interval``-th call only.

    StyleGAN2 (Karras et al. 2019, arXiv 1912.04958), appendix B. The factor keeps the gradients'
    mean over the steps; the penalty itself is given as if it were computed in every step. The paper
    makes up for the rarer, larger gradients in Adam, with ``c = interval / (interval + 1)``:
    ``lr * c`` and ``betas ** c``. ::

        lazy_r1 = LazyRegularizer(R1Penalty(gamma=10.0), interval=16)
        real.requires_grad_(lazy_r1.due)
        logits = D(real)
        loss = loss + lazy_r1(logits, real)

    Args:
        penalty: what gives a scalar for the arguments that this module is called with: a module or
            any callable.
        interval: at least 1; may be reassigned.

    Returns:
        ``interval * penalty(*args, **kwargs)`` in the first call and every ``interval``-th from
        there on. In between a zero that needs no gradient, which costs nothing, of the dtype and on
        the device of the last penalty; where none was computed yet, after ``load_state_dict``,
        float32 on the CPU, which adds to tensors of any device. A call that raises does not count.

    Raises:
        TypeError: if ``penalty`` cannot be called, or multiplies already because it is or contains
            a LazyRegularizer; if ``interval`` is not an int.
        ValueError: if ``interval`` is below 1.

    The number of calls so far is in the state_dict, as a Python int.
    """

    def __init__(self, penalty: Callable[..., Tensor], interval: int = 16) -> None:
        super().__init__()
        op = type(self).__name__
        parts = penalty.modules() if isinstance(penalty, nn.Module) else [penalty]
        if any(isinstance(part, LazyRegularizer) for part in parts):
            raise TypeError(
                f"{op}: expected a penalty that is computed in every call, got one with a "
                "LazyRegularizer, whose interval would be multiplied twice; pass the penalty itself"
            )
        if not callable(penalty):
            raise TypeError(f"{op}: expected penalty to be callable, got {kind(penalty)}")
        check_count(op, "interval", interval)
        self.penalty = penalty
        self.interval = interval
        self._calls = 0
        self._like: tuple[torch.dtype, torch.device] = torch.float32, torch.device("cpu")

    @property
    def due(self) -> bool:
        """Whether the next call computes the penalty.

        Where it does not, the arguments are not looked at: spare ``requires_grad_()``, or the
        critic's pass.
        """
        return self._calls % self.interval == 0

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.due:
            value = self.penalty(*args, **kwargs)
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{type(self).__name__}: expected penalty to return a tensor, got {kind(value)}"
                )
            value = self.interval * value
            self._like = value.dtype, value.device
        else:
            dtype, device = self._like
            value = torch.zeros((), dtype=dtype, device=device)
        self._calls += 1
        return value

    def get_extra_state(self) -> int:
        return self._calls

    def set_extra_state(self, state: int) -> None:
        op = type(self).__name__
        if isinstance(state, bool) or not isinstance(state, int):
            raise TypeError(
                f"{op}: expected its number of calls to be an integer, got {kind(state)}"
            )
        if state < 0:
            raise ValueError(f"{op}: expected the calls so far to be not negative, got {state}")
        self._calls = state

    def extra_repr(self) -> str:
        return f"interval={self.interval}"
