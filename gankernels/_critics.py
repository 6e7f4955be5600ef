"""Samples, a critic's scores of them, and the gradients: what all penalties are made of."""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import numbers
import re
import types
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gankernels._checks import (
    check_callable,
    check_floats,
    check_generator,
    describe,
    is_lazy_iterable,
    kind,
    raised_in,
)
from gankernels._dtypes import accumulation_dtype
from gankernels._groups import Groups, check_groups, score_count
from gankernels._scores import (
    Pick,
    check_alike,
    check_floating_scores,
    check_pick,
    listed_scores,
    pick_scores,
)
from gankernels._torch import traces_autograd_ops
from gankernels._warnings import _warned, warn, warn_once

__all__ = ["_warned", "warn", "warn_once"]  # for those that look for them here

Samples = Tensor | Sequence[Tensor]
Scores = Any  # a tensor, or a flat list of them
Critic = Callable[..., Any]


# --- samples -------------------------------------------------------------------------------------


def listed(op: str, name: str, x: Samples) -> list[Tensor]:
    if not isinstance(x, Tensor) and not (isinstance(x, (list, tuple)) and x):
        cure = f"; pass list({name})" if is_lazy_iterable(x) and not isinstance(x, list) else ""
        raise TypeError(
            f"{op}: expected {name} to be a tensor or a list of tensors, got {kind(x)}{cure}"
        )
    samples = [x] if isinstance(x, Tensor) else list(x)
    for p in samples:
        if not isinstance(p, Tensor):
            raise TypeError(
                f"{op}: expected {name} to be a tensor or a list of tensors, got a list with "
                f"{kind(p)}"
            )
        check_floats(op, name, p)
        if p.dim() == 0 or p.numel() == 0:
            raise ValueError(
                f"{op}: expected {name} of shape (B, ...) with elements, got shape {tuple(p.shape)}"
            )
        if p.shape[0] != samples[0].shape[0]:
            sizes = [q.shape[0] if q.dim() else 0 for q in samples]
            raise ValueError(f"{op}: expected one batch size in {name}, got {sizes}")
    return samples


def inputs_of(op: str, name: str, x: Samples) -> list[Tensor]:
    """Samples to take gradients of."""
    samples = listed(op, name, x)
    if not all(p.requires_grad for p in samples):
        cure = f"call {name}.requires_grad_() before D({name})"
        if inference_mode() or any(_is_inference(p) for p in samples):
            cure = (
                "torch.inference_mode() takes gradients away: call D and the penalty within "
                f"torch.inference_mode(False) and torch.enable_grad(), with {name}.clone()"
                ".requires_grad_()"
            )
        raise ValueError(
            f"{op}: expected {name} to require a gradient, got one that does not; {cure}"
        )
    check_one_kind(op, name, samples)
    return samples


def check_one_kind(op: str, name: str, samples: list[Tensor]) -> None:
    first = samples[0]
    for p in samples:
        if p.dtype != first.dtype or p.device != first.device:
            raise ValueError(
                f"{op}: expected {name} of one dtype and device, got {describe(first)} and "
                f"{describe(p)}; convert them"
            )


def paired(op: str, real: Samples, fake: Samples, same_batch: bool) -> list[tuple[Tensor, Tensor]]:
    reals, fakes = listed(op, "real", real), listed(op, "fake", fake)
    check_one_kind(op, "real", reals)
    start = 0 if same_batch else 1
    alike = isinstance(real, Tensor) == isinstance(fake, Tensor)
    if not alike or len(reals) != len(fakes):
        given = (
            "a tensor" if isinstance(x, Tensor) else f"a list of {len(x)}" for x in (real, fake)
        )
        raise ValueError(
            f"{op}: expected real and fake to be two tensors, or lists of as many, got "
            f"{' and '.join(given)}"
        )
    if any(
        a.shape[start:] != b.shape[start:] or a.device != b.device
        for a, b in zip(reals, fakes, strict=False)
    ):
        what = "one shape" if same_batch else "one shape but for the batch"
        raise ValueError(
            f"{op}: expected real and fake of {what}, on one device, got "
            f"{', '.join(map(describe, reals))} and {', '.join(map(describe, fakes))}"
        )
    return [(a.detach(), b.detach().to(a.dtype)) for a, b in zip(reals, fakes, strict=True)]


def draw_like(op: str, draw: Any, like: Tensor, shape: Sequence[int], generator: Any) -> Tensor:
    check_generator(op, generator, like.device)
    return draw(shape, generator=generator, device=like.device, dtype=like.dtype)


# --- inference mode ------------------------------------------------------------------------------


def inference_mode() -> bool:
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()


def _is_inference(x: Tensor) -> bool:
    return not torch.compiler.is_compiling() and x.is_inference()


def outside_inference() -> Any:
    """A block in which autograd records what torch.enable_grad() lets it, in inference mode too."""
    return torch.inference_mode(False) if inference_mode() else contextlib.nullcontext()


def _usable(value: Any) -> Any:
    """What autograd can save: copies of the tensors of inference mode, all else as it is."""
    if isinstance(value, Tensor):
        return value.clone() if _is_inference(value) else value
    if type(value) in (list, tuple):
        return type(value)(_usable(x) for x in value)
    if type(value) is dict:
        return {key: _usable(x) for key, x in value.items()}
    return value


# --- calls of a critic ---------------------------------------------------------------------------


class Calls:
    """The calls of a critic, or a generator, in one penalty.

    It gets copies of the samples, so that a first layer which works in place changes neither the
    caller's tensors nor the points where gradients are taken. Passes after the first see the
    buffers that the first saw, and leave those that it left: u and v of spectral normalization move
    once, and all passes are of one function.

    Args:
        own: the hyper-parameters of the penalty, which are not for the critic.
        passes: how many calls there will be.
        what: the name of the argument.
    """

    def __init__(
        self,
        op: str,
        D: Critic,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        own: Sequence[str],
        scores: Pick = None,
        passes: int = 1,
        what: str = "D",
    ) -> None:
        check_callable(op, what, D)
        check_pick(op, scores)
        _refuse_hyperparameters(op, D, args, kwargs, own, what)
        self.op, self.D, self.what, self.own = op, D, what, own
        self.args, self.kwargs = args, kwargs
        self.pick = scores
        self.held = _Held(D) if passes > 1 else None

    def __call__(self, x: Samples) -> Any:
        """What it returns for these samples."""
        x = copied(x)
        args, kwargs = self.args, self.kwargs
        if torch.compiler.is_compiling():
            return self._held_call(x, args, kwargs)
        if not torch.is_inference_mode_enabled():
            args, kwargs = _usable(tuple(args)), _usable(dict(kwargs))
        try:
            with raised_in(self.op, self.what):
                return self._held_call(x, args, kwargs)
        except TypeError as error:
            self._explain_type(error)
            raise
        except RuntimeError as error:
            if "nference tensor" in str(error) and not torch.is_inference_mode_enabled():
                raise RuntimeError(
                    f"{self.op}: expected {self.what} without tensors of torch.inference_mode(), "
                    "which autograd cannot save; make its parameters, and what else it uses, "
                    "outside of that mode, or clone them"
                ) from error
            raise

    def _held_call(self, x: Any, args: Any, kwargs: Any) -> Any:
        if self.held is None:
            return self.D(x, *args, **kwargs)
        with self.held:
            return self.D(x, *args, **kwargs)

    def scores(self, x: Samples) -> list[Tensor]:
        """The scores of these samples, as a list."""
        cure = 'say which are the scores: scores=0, scores="logits" or a function'
        return read_scores(self.op, self(x), self.pick, cure)

    def _explain_type(self, error: TypeError) -> None:
        """Raise in words where D does not take what the penalty has passed on."""
        message = str(error)
        keyword = re.search(r"unexpected keyword argument '(\w+)'", message)
        if keyword and keyword[1] in self.kwargs:
            raise TypeError(
                f"{self.op}: expected only keywords that {self.what} takes, which get passed on to "
                f"it, got {keyword[1]}={_did_you_mean(keyword[1], self.own)} ({message})"
            ) from error
        if self.args and re.search(r"positional arguments? but \d+ (was|were) given", message):
            raise TypeError(
                f"{self.op}: expected after the samples what {self.what} takes, which gets passed "
                f"on to it, got {len(self.args)} more; settings of the penalty are keywords: "
                f"{', '.join(self.own)} ({message})"
            ) from error


def read_scores(op: str, outputs: Any, pick: Pick, cure: str) -> list[Tensor]:
    scores = listed_scores(
        op,
        "the critic's scores to be a tensor or a list of them",
        pick_scores(op, outputs, pick),
        cure,
        empty="the critic to return scores",
    )
    check_floating_scores(op, "the critic's scores", scores)
    if pick is None:
        check_alike(op, "the critic's scores", scores, cure)
    return scores


def copied(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.clone()
    return [copied(p) for p in x] if isinstance(x, (list, tuple)) else x


#: Settings of the penalties of this package, and what other code calls them, by their meaning.
_MEANINGS = (
    (
        *("weight", "gamma", "weight_real", "weight_fake", "coefficient", "gp_weight", "lambda_"),
        *("lambda_gp", "lambda_r1", "lambd", "r1_gamma", "r2_gamma", "sample_weight", "interval"),
        *("gp_lambda", "lamb", "lmbda", "lam", "coef", "gp_coef", "r1_weight", "penalty_weight"),
    ),
    ("center", "k", "centre", "one_sided"),
    ("scale", "sigma", "std", "noise"),
    ("inv_scale", "grad_scale"),
    ("generator",),
    ("groups", "pac"),
    ("scores",),
    ("reduction", "per_tensor", "return_norms", "n_power_iterations", "eps"),
)
_SETTINGS = {name: meaning for meaning in _MEANINGS for name in meaning}


def _refuse_hyperparameters(
    op: str, D: Any, args: Sequence[Any], kwargs: Mapping[str, Any], own: Sequence[str], what: str
) -> None:
    """Refuse settings that would silently become arguments of the critic, misspelt ones, too."""
    compiling = torch.compiler.is_compiling()  # Dynamo traces neither difflib nor numbers
    for name in kwargs:
        near = not compiling and difflib.get_close_matches(name.lower(), own, 1, 0.8)
        if (near or name in _SETTINGS) and name not in _parameters(D):
            raise TypeError(
                f"{op}: expected {name}= to be a keyword of {op}, or one that {what} names, got "
                f"neither{_did_you_mean(name, own)}. To have it passed on to {what}: "
                f"functools.partial({what}, {name}=...)"
            )
    for value in args:
        number = isinstance(value, (int, float) if compiling else numbers.Real)  # NumPy's, too
        number = number and not isinstance(value, bool)
        if number or isinstance(value, torch.Generator):
            shown = repr(value) if number else "a torch.Generator"
            setting = "generator" if not number else own[0]
            raise TypeError(
                f"{op}: expected after the samples what goes to {what}, such as labels, got "
                f"{shown}; did you mean {setting}={'...' if not number else shown}? To have it "
                f"passed on to {what}, name it, or use functools.partial"
            )
        if isinstance(value, str) and value in ("uniform", "gaussian") and "noise" in own:
            raise TypeError(
                f"{op}: expected after the samples what goes to {what}, such as labels, got "
                f'"{value}"; did you mean noise="{value}"?'
            )


def _did_you_mean(name: str, own: Sequence[str]) -> str:
    alike = [x for x in own if x in _SETTINGS.get(name, ())]
    if not alike:
        alike = difflib.get_close_matches(name.lower(), own, 1)
    return f"; did you mean {alike[0]}=?" if alike else f" (its own are {', '.join(own)})"


def _parameters(D: Any) -> set[str]:
    """The parameters that a critic names, through wrappers such as DistributedDataParallel."""
    names: set[str] = set()
    while True:
        try:
            function = D.forward if isinstance(D, nn.Module) else D
            names.update(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            pass
        inner = getattr(D, "module", None)
        if not (isinstance(D, nn.Module) and isinstance(inner, nn.Module)):
            return names - {"kwargs", "args"}
        D = inner


# --- the modules of a critic ---------------------------------------------------------------------


def modules_of(D: Any) -> list[nn.Module]:
    """The modules that a callable is, or that it mentions: in a lambda, a partial, a method."""
    if isinstance(D, nn.Module):
        return list(D.modules())
    found: dict[int, nn.Module] = {}
    if torch.compiler.is_compiling():
        return []
    seen: set[int] = set()
    mentioned = [D]
    for _ in range(4):  # a lambda, its cell, the trainer in it, the modules of that
        mentioned = [y for x in mentioned for y in _mentions(x, seen)]
        for x in mentioned:
            if isinstance(x, nn.Module):
                found.update((id(m), m) for m in x.modules())
    return list(found.values())


def _mentions(x: Any, seen: set[int]) -> Iterable[Any]:
    if id(x) in seen or isinstance(x, (nn.Module, Tensor, type, types.ModuleType)):
        return ()
    seen.add(id(x))
    if isinstance(x, functools.partial):
        return (x.func, *x.args, *x.keywords.values())
    if isinstance(x, types.MethodType):
        return (x.__self__, x.__func__)
    if isinstance(x, types.FunctionType):
        try:
            names = inspect.getclosurevars(x)
        except ValueError:  # a cell that is empty still
            return ()
        return (*names.nonlocals.values(), *names.globals.values(), *(x.__defaults__ or ()))
    if isinstance(x, dict):
        return tuple(x.values())
    if isinstance(x, (list, tuple)):
        return tuple(x)
    return tuple(getattr(x, "__dict__", {}).values())


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
#: With statistics of what they have seen, which a pass in training mode does not use.
_RUNNING = (*_BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_looked: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def _warn_of_coupled(op: str, D: Any) -> None:
    """Of batch normalization in training mode, once, looking at each critic once."""
    if torch.compiler.is_compiling() or "batch norm" in _warned:
        return
    if not isinstance(D, nn.Module) or D in _looked or not D.training:
        return
    _looked.add(D)
    if any(isinstance(m, _BATCH_NORMS) and m.training for m in D.modules()):
        warn_once(
            "batch norm",
            f"{op}: the critic has batch normalization in training mode, by which the score of a "
            "sample depends on other samples of the batch; penalties are then wrong. Put layer, "
            "instance or group normalization in its place, or use none.",
        )


class _State:
    """A tensor that a module calls by a name, and what it was: to have the same again later."""

    def __init__(self, names: dict[str, Any], name: str) -> None:
        self.names, self.name = names, name
        self.tensor: Tensor = names[name]
        self.memory = self.tensor.data
        self.value = self.memory.clone()

    def put_back(self) -> None:
        if torch.compiler.is_compiling():
            with torch.no_grad():
                self.tensor.copy_(self.value)
            return
        self.names[self.name] = self.tensor
        if _address(self.tensor) != _address(self.memory):
            # Its data was assigned to; what was assigned a graph may have saved.
            self.tensor.data = self.memory
        # Past the count of writes: a graph may have saved a buffer that never changes.
        self.tensor.data.copy_(self.value)


def _address(x: Tensor) -> int:
    try:
        return x.data_ptr()
    except RuntimeError:  # a sparse tensor, or one of torch.func
        return 0


def states_of(D: Any, moving: bool) -> list[_State]:
    """What a critic's passes write: its buffers, or of these only those that every pass moves.

    Those are neither counters, which are integers, nor the running statistics of normalization.
    Vectors that are parameters without a gradient belong to them: older spectral norms keep u and v
    so.
    """
    found: dict[int, tuple[dict[str, Any], str]] = {}
    for m in modules_of(D):
        if moving and isinstance(m, _RUNNING):
            continue
        # Dynamo does not trace is_lazy.
        compiling = torch.compiler.is_compiling()
        for names in (m._buffers,) if compiling else (m._buffers, m._parameters):
            for name, x in names.items():
                if x is None or (not compiling and is_lazy(x)) or not _writable(x):
                    continue
                real = x.is_floating_point() or x.is_complex()
                if names is m._parameters:
                    vector = x.numel() == max(x.shape, default=1) and type(x) is nn.Parameter
                    wanted = vector and not x.requires_grad
                else:
                    wanted = real or not moving
                if wanted:
                    found.setdefault(id(x), (names, name))
    return [_State(*place) for place in found.values()]


class _Held:
    """A block for each pass of a critic; all start from the buffers that the first started from.

    Afterwards the buffers are what the first pass left.
    """

    def __init__(self, D: Any) -> None:
        self.before = states_of(D, moving=True)
        self.after: list[_State] | None = None

    def __enter__(self) -> None:
        if self.after is not None:
            for state in self.before:
                state.put_back()

    def __exit__(self, *_: Any) -> None:
        if self.after is None:
            self.after = [
                _State(state.names, state.name)
                for state in self.before
                if state.names.get(state.name) is not None
            ]
        else:
            for state in self.after:
                state.put_back()


def _writable(buffer: Tensor) -> bool:
    return not _is_inference(buffer) or torch.is_inference_mode_enabled()


# --- gradients -----------------------------------------------------------------------------------


def check_counts(op: str, scores: list[Tensor], groups: Groups, rows: int) -> int:
    """How many scores there are: the rows of the samples, or as many as groups of them."""
    count = score_count(groups, rows, scores)
    for score in scores:
        if score.dim() > 0 and score.shape[0] != count:
            if groups is None:
                expected = f"scores whose first dimension is the batch, {count}"
                cure = (
                    "; where rows share a score, pass groups=, how many consecutive ones, or the "
                    "index of the score of each row"
                )
            else:
                expected = f"{count} scores, one for each group of rows"
                cure = ""
            raise ValueError(f"{op}: expected {expected}, got shape {tuple(score.shape)}{cure}")
    return count


def sum_per_score(op: str, scores: list[Tensor], groups: Groups, rows: int) -> Tensor:
    """(B,), in the accumulation dtype; scores are added up as the other penalties add them."""
    count = check_counts(op, scores, groups, rows)
    total: Any = 0.0
    for score in scores:
        if score.dim() == 0:
            raise ValueError(
                f"{op}: expected scores whose first dimension is the batch, {count}, got a scalar; "
                "let the critic return a score for each sample"
            )
        total = total + score.to(accumulation_dtype(score.dtype)).reshape(count, -1).sum(1)
    return total


def critic_gradients(
    calls: Calls,
    points: list[Tensor],
    single: bool,
    inv_scale: Tensor | None,
    groups: Groups,
) -> tuple[list[Tensor], int]:
    """Gradients of the summed scores at these points, and how many scores there are."""
    op, rows = calls.op, points[0].shape[0]
    _warn_of_coupled(op, calls.D)
    check_groups(op, groups, rows, points[0].device)
    create_graph = torch.is_grad_enabled()
    with outside_inference(), torch.enable_grad():
        leaves = [_usable(p.detach()).requires_grad_() for p in points]
        scores = calls.scores(leaves[0] if single else leaves)
        count = check_counts(op, scores, groups, rows)
        grads = gradients(op, scores, leaves, "the samples", inv_scale, create_graph)
    return grads, count


_COMPILED = (
    "Compile the whole step with torch._dynamo.config.trace_autograd_ops = True, penalty and "
    "gradients of the loss included, or give penalties the critic that is not compiled."
)


def _check_graph(op: str, score: Tensor, create_graph: bool) -> None:
    """Refuse what torch cannot differentiate twice, or would silently get wrong."""
    if torch.compiler.is_compiling():  # grad_fn cannot be traced
        if not traces_autograd_ops():
            # This ends a full graph; otherwise torch runs the function eagerly instead. Were the
            # critic alone in a graph, torch would fail in the backward pass.
            raise RuntimeError(f"{op}: expected torch to trace torch.autograd.grad. {_COMPILED}")
        return
    if create_graph and type(score.grad_fn).__name__ == "CompiledFunctionBackward":
        raise RuntimeError(
            f"{op}: expected scores whose graph can be differentiated twice, got those of a "
            f"compiled critic, which torch differentiates once. {_COMPILED}"
        )
    wrapper = getattr(score.grad_fn, "ddp_weakref", None)
    if wrapper is not None and getattr(wrapper(), "static_graph", False):
        # DDP would take the gradients of the samples for the first backward pass.
        raise RuntimeError(
            f"{op}: expected a DistributedDataParallel critic without static_graph=True; with it "
            "torch leaves the gradients of the parameters unreduced"
        )


def check_inv_scale(op: str, inv_scale: Tensor | None, device: torch.device) -> None:
    if inv_scale is None:
        return
    if isinstance(inv_scale, Tensor):
        check_floats(op, "inv_scale", inv_scale)
    if not isinstance(inv_scale, Tensor) or inv_scale.numel() != 1:
        got = describe(inv_scale) if isinstance(inv_scale, Tensor) else kind(inv_scale)
        raise ValueError(f"{op}: expected inv_scale to be a tensor of one element, got {got}")
    if inv_scale.device != device:
        raise ValueError(
            f"{op}: expected inv_scale on {device}, where the samples are, got {inv_scale.device}"
        )


def gradients(
    op: str,
    scores: list[Tensor],
    samples: list[Tensor],
    name: str,
    inv_scale: Tensor | None = None,
    create_graph: bool | None = None,
) -> list[Tensor]:
    """Gradients of the summed scores, times 1 / inv_scale."""
    create_graph = torch.is_grad_enabled() if create_graph is None else create_graph
    batch = samples[0].shape[0]
    check_inv_scale(op, inv_scale, samples[0].device)
    for score in scores:
        if not score.requires_grad:
            where = "torch.inference_mode()" if inference_mode() else "torch.no_grad()"
            raise ValueError(
                f"{op}: expected scores with a graph, got detached ones; call D outside "
                f"{where} and do not detach what it returns"
            )
        _check_graph(op, score, create_graph)
        if score.dim() == 0 and batch > 1:
            warn_once(
                "scalar",
                f"{op}: the critic's scores are one scalar for a batch of {batch}. The gradient of "
                f"a mean is {batch} times too small for every sample; pass the scores themselves "
                "(a sum of them is fine).",
            )
    with outside_inference():
        if inv_scale is None:
            seeds = [torch.ones_like(score) for score in scores]
        else:
            scale = _usable(inv_scale.detach()).reshape(()).reciprocal()
            seeds = [scale.to(score).expand_as(score) for score in scores]
        grads = torch.autograd.grad(
            scores, samples, seeds, create_graph=create_graph, allow_unused=True
        )
    found = []
    for i, g in enumerate(grads):
        if g is None:
            which = name if len(grads) == 1 else f"{name}[{i}]"
            raise ValueError(
                f"{op}: expected scores that depend on {which}, got ones that do not; pass the "
                "very tensor that D was called with"
            )
        found.append(g)
    if create_graph and not any(g.requires_grad for g in found):
        warn_once(
            "constant",
            f"{op}: the gradients of the scores depend on no parameter, so the penalty trains "
            "nothing; the critic's parameters are frozen, or were detached.",
        )
    return found
