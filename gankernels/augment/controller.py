"""Controllers of p while a GAN trains: feedback from the critic's scores, or a schedule.

Karras et al. 2020 (arXiv 2006.06676), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gankernels import ops
from gankernels._checks import check_count, check_real, check_strided, describe, instead_of, kind
from gankernels._critics.scores import AVERAGED, check_alike
from gankernels._torch import is_capturing
from gankernels._warnings import warn
from gankernels.augment._strength import Strength, loadable, number_of, single
from gankernels.reference.ada_control import STATE, SUMS

__all__ = ["ADAController", "ADASchedule"]

Logits = Tensor | Sequence[Tensor]
Metric = Literal["rt", "rv", "accuracy"]
Shape = Literal["fixed", "linear", "cosine"]

#: Above this p, augmentations begin to leak into generated images (section 2.3 of the paper).
LEAKING = 0.8


class _Controller(nn.Module):
    """Base of both controllers: a p to set, and sums on its device and over processes.

    The state is float64: sums, the last of which is of images, and what else there is. A state that
    is refused changes neither it nor p.
    """

    _state: Tensor

    def __init__(
        self, pipe: Strength | None, kimg: float, p_max: float | None, state: Tensor, sums: int
    ) -> None:
        super().__init__()
        op = type(self).__name__
        if pipe is not None and not isinstance(pipe, Strength):
            raise TypeError(f"{op}: expected an ADAPipe, an APA or None, got {kind(pipe)}")
        if pipe is not None and pipe.p.dim() > 0:
            raise ValueError(
                f"{op}: expected a pipe with one p, got one with p by groups; give it one, and say "
                'by multipliers how the groups differ, as in ADAPipe("bgc", p=0.0, cutout=0.5)'
            )
        kimg = number_of(op, "kimg", kimg, positive=True)
        if p_max is not None:
            p_max = number_of(op, "p_max", p_max, positive=True)
            if p_max > 1:
                raise ValueError(f"{op}: expected p_max to be at most 1, got {p_max}")
        self.pipe = Strength(0.0, 1.0) if pipe is None else pipe
        self.kimg = kimg
        self.p_max = self.pipe.p_max if p_max is None else min(p_max, self.pipe.p_max)
        self._sums = sums
        self._state = state
        self._warned = False
        self._copy: tuple[Tensor, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out the copy of p under way from a GPU: an event has neither."""
        return self.__dict__ | {"_copy": None}

    @property
    def p(self) -> Tensor:
        """The buffer that it sets: that of the pipe."""
        return self.pipe.p

    @property
    def sums(self) -> Tensor:
        return self._state[: self._sums]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Controller:
        super()._apply(fn, recurse)
        # A plain attribute, so that half() does not reach it.
        if not self.p.is_meta:
            self._state = self._state.to(self.p.device)
        return self

    def _here(self, op: str) -> Tensor:
        """The state, where p is: the pipe may have been moved by itself."""
        if self._state.device != self.p.device:
            if is_capturing():
                raise RuntimeError(
                    f"{op}: expected the controller's state on {self.p.device} before the capture "
                    f"of a CUDA graph, got it on {self._state.device}; move the controller, as in "
                    f'controller.to("{self.p.device}"), or update it once before'
                )
            self._state = self._state.to(self.p.device)
        return self._state

    def _warn_of_leaks(self) -> None:
        """Warn once when p is known to be large: on a GPU an update or so later, not waiting.

        Not within the capture of a CUDA graph, which an event that is queried would break.
        """
        if self._warned or is_capturing():
            return
        if self.p.device.type == "cpu":
            seen = self.p
        elif self._copy is None:
            host = torch.empty_like(self.p, device="cpu", pin_memory=True)
            host.copy_(self.p, non_blocking=True)
            self._copy = host, torch.cuda.current_stream(self.p.device).record_event()
            return
        elif self._copy[1].query():
            seen, self._copy = self._copy[0], None
        else:
            return
        if float(seen) > single(LEAKING):
            self._warned = True
            warn(
                f"{type(self).__name__}: p is {float(seen):.3g}; above {LEAKING} augmentations "
                "begin to leak: the generator learns to make them (Karras et al. 2020, section "
                "2.3). Set p_max, or gather more data",
            )

    def get_extra_state(self) -> dict[str, Any]:
        return {"sums": self.sums.clone()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._check_state(state)
        # load_state_dict(..., assign=True) brings p to a device only after this.
        device = state["sums"].device if self.p.is_meta else self.p.device
        # Written where it is: graphs that were captured read it there.
        with torch.no_grad():
            if self._state.device != device:
                self._state = torch.zeros_like(self._state, device=device)
            self._load(state)

    def _load(self, state: dict[str, Any]) -> None:
        self.sums.copy_(state["sums"])

    def _check_state(self, state: object) -> None:
        op = type(self).__name__
        if not isinstance(state, Mapping):
            raise TypeError(f"{op}: expected its state to be a dict, got {kind(state)}")
        names = list(self.get_extra_state())
        if set(state) != set(names):
            raise ValueError(
                f"{op}: expected a state of {', '.join(names)}, got one of "
                f"{', '.join(map(str, state)) or 'nothing'}; load the state_dict of an {op}"
            )
        sums = _tensor_of(op, "sums", state["sums"], self.sums.shape)
        if not sums.is_meta and not 0 <= (images := float(sums[-1])) < math.inf:
            raise ValueError(
                f"{op}: expected the number of images, last of sums, to be finite and not "
                f"negative, got {images}"
            )

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, *rest: Any
    ) -> None:
        key = f"{prefix}pipe.p"
        # Where p cannot be loaded, the pipe, whose turn is after this, says why.
        if key not in state_dict or loadable(state_dict[key]):
            super()._load_from_state_dict(state_dict, prefix, metadata, strict, *rest)


class ADAController(_Controller):
    """Sets p so that the critic overfits to a chosen degree.

    Karras et al. 2020 (arXiv 2006.06676), section 3. In every ``interval``-th update

        p <- clamp(p + sign(r - target) * images / (1000 kimg), 0, p_max)

    with r the metric over all scores since the last such update, and images the real ones that were
    scored meanwhile. (The published code lets p grow beyond 1.) ::

        pipe = ADAPipe("bgc", p=0.0).to(device)
        controller = ADAController(pipe)
        ...
        logits = D(pipe(real))
        controller.update(logits)                # once in each of the critic's steps

    Metrics, 0 without overfitting and 1 with complete overfitting:

    - ``"rt"``: mean of ``sign(D(x))`` over real images. Of losses whose scores mean real or fake by
      their sign: the non-saturating, the hinge loss.
    - ``"rv"``: ``(mean D(x) - mean D(v)) / (mean D(x) - mean D(G))`` with v from a validation set.
      Of all losses.

    and from 0.5 to 1:

    - ``"accuracy"``: the share of real scores above 0 and of fake ones below, averaged.

    Args:
        pipe: whose p it sets: an :class:`ADAPipe`, an :class:`APA`, or None, for a p of its own
            (``controller.p``) to augment with by other means.
        target: of the metric, in [0, 1]. 0.6 is the paper's for ``"rt"``, 0.5 for ``"rv"``; 0.8 of
            ``"accuracy"`` is 0.6 of ``"rt"`` where real and fake are told apart alike.
        interval: updates from one step of p to the next.
        kimg: thousands of real images until p goes from 0 to 1; 500 is the paper's, 100 is usual
            where training starts from a trained model.
        metric: as above.
        p_max: p does not go beyond; by default that of the pipe, 1.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.

    A pipe is a submodule: :meth:`to` moves both, and p, the sums and the number of updates are in
    the state_dict. With torch.distributed initialized, the sums are those of all processes, by one
    ``all_reduce`` in each step of p, so that p is the same everywhere; every process has to call
    :meth:`update` as often. In a state_dict between two steps the sums are the process's own.
    Nothing waits for the device. Where a score is NaN or infinite, the metric is NaN, and that step
    leaves p as it is. A warning says once when p is above 0.8. The state_dict of anything else is
    refused, and nothing changes; of keys that are missing or too many, torch decides.
    """

    def __init__(
        self,
        pipe: Strength | None = None,
        *,
        target: float = 0.6,
        interval: int = 4,
        kimg: float = 500,
        metric: Metric = "rt",
        p_max: float | None = None,
    ) -> None:
        state = torch.zeros(STATE, dtype=torch.float64)
        state[-1].fill_(math.nan)
        super().__init__(pipe, kimg, p_max, state, SUMS)
        op = type(self).__name__
        target = number_of(op, "target", target)
        if target > 1:
            raise ValueError(f"{op}: expected target to be at most 1, got {target}")
        check_count(op, "interval", interval)
        if not isinstance(metric, str) or metric not in _TAKES:
            raise ValueError(f'{op}: expected metric "rt", "rv" or "accuracy", got {metric!r}')
        self.target = target
        self.interval = interval
        self.metric = metric
        self._calls = 0  # as far as Python has seen them
        self._captured = False

    @property
    def r(self) -> Tensor:
        """The metric of the last step of p, float64, on p's device; NaN before."""
        return self._state[-1].to(self.p.device, copy=True)

    @torch.no_grad()
    def update(
        self,
        real_logits: Logits,
        *,
        fake_logits: Logits | None = None,
        validation_logits: Logits | None = None,
    ) -> None:
        """Take the scores of one of the critic's steps; in every ``interval``-th, move p.

        Args:
            real_logits: ``D(pipe(real))``: a tensor whose first dimension is the images', or a list
                of them, as of several scales; every entry counts.
            fake_logits: of generated images, for ``"rv"`` and ``"accuracy"``.
            validation_logits: of images that the critic does not train on, for ``"rv"``.

        Raises:
            TypeError, ValueError: if an argument is none of these, on another device than p, or not
                what the metric takes. Nothing has changed.
        """
        op = f"{type(self).__name__}.update"
        logits_by_name = dict(
            zip(_NAMES, (real_logits, fake_logits, validation_logits), strict=True)
        )
        for name, logits in logits_by_name.items():
            takes = name in _TAKES[self.metric]
            wanted = " and ".join(_TAKES[self.metric])
            if takes and logits is None:
                raise ValueError(
                    f'{op}: expected {wanted} for the metric "{self.metric}", got no {name}'
                )
            if not takes and logits is not None:
                raise ValueError(
                    f'{op}: expected {wanted} only, as the metric "{self.metric}" takes, got '
                    f"{name}; leave it out, or choose another metric"
                )
        scores = {
            name: _listed(op, name, logits, self.p.device)
            for name, logits in logits_by_name.items()
            if logits is not None
        }
        state = self._here(op)
        self._captured |= is_capturing()
        self._calls += 1
        control: dict[str, Any] = {
            "metric": self.metric,
            "target": self.target,
            "interval": self.interval,
            "kimg": self.kimg,
            "p_max": self.p_max,
        }
        groups = [scores.get(name, ()) for name in _NAMES]
        images = scores["real_logits"][0].shape[0]
        if not (dist.is_available() and dist.is_initialized()):
            ops.ada_control_(state, self.p, *groups, images=images, **control)
        else:
            ops.ada_control_(state, None, *groups, images=images, **control)
            # Replays are counted on the device alone; there the sums of idle calls are not used.
            if self._captured or self._calls % self.interval == 0:
                sums = self.sums.clone()
                dist.all_reduce(sums)
                ops.ada_control_(state, self.p, sums=sums, **control)
        if self._calls % self.interval == 0:
            self._warn_of_leaks()

    def get_extra_state(self) -> dict[str, Any]:
        calls = self._calls if self._state.is_meta else int(self._state[SUMS])
        return {**super().get_extra_state(), "calls": calls, "r": self._state[-1].clone()}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._calls = state["calls"]
        self._state[SUMS] = state["calls"]
        self._state[-1] = state["r"]

    def _check_state(self, state: Any) -> None:
        super()._check_state(state)
        op, calls = type(self).__name__, state["calls"]
        if isinstance(calls, bool) or not isinstance(calls, int):
            raise TypeError(f"{op}: expected calls to be an integer, got {kind(calls)}")
        if calls < 0:
            raise ValueError(f"{op}: expected calls to be not negative, got {calls}")
        _tensor_of(op, "r", state["r"], torch.Size())

    def extra_repr(self) -> str:
        return (
            f"metric={self.metric!r}, target={self.target}, interval={self.interval}, "
            f"kimg={self.kimg}, p_max={self.p_max}"
        )


class ADASchedule(_Controller):
    """Sets p by the number of real images that the critic has seen, without looking at its scores.

    ``"fixed"`` keeps p (0.2 in StyleGAN3); ``"linear"`` goes from 0 to p (InsGen); ``"cosine"`` is
    half a cosine from 0 to p (R3GAN: 0.55, 0.3 and others). Called as :class:`ADAController` is::

        schedule = ADASchedule(pipe, "cosine", p=0.3, kimg=10_000)
        schedule.update(D(pipe(real)))           # once in each of the critic's steps

    Args:
        pipe: as of :class:`ADAController`.
        shape: as above.
        p: at the end, in [0, 1].
        kimg: thousands of real images until then.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.

    With torch.distributed initialized, the images of all processes count, by one ``all_reduce`` an
    update. The number of images and p are in the state_dict; that of anything else is refused.
    Nothing waits for the device.
    """

    def __init__(
        self,
        pipe: Strength | None = None,
        shape: Shape = "linear",
        *,
        p: float,
        kimg: float,
    ) -> None:
        super().__init__(pipe, kimg, None, torch.zeros(1, dtype=torch.float64), 1)
        op = type(self).__name__
        if not isinstance(shape, str) or shape not in ("fixed", "linear", "cosine"):
            raise ValueError(f'{op}: expected "fixed", "linear" or "cosine", got {shape!r}')
        p = number_of(op, "p", p)
        if single(p) > single(self.p_max):
            raise ValueError(f"{op}: expected p to be at most {self.p_max:g}, got {p}")
        self.shape = shape
        self.p_end = p
        self.pipe.p = p if shape == "fixed" else 0.0

    @torch.no_grad()
    def update(
        self,
        real_logits: Logits,
        *,
        fake_logits: Logits | None = None,
        validation_logits: Logits | None = None,
    ) -> None:
        """Count the images, and set p.

        Args:
            real_logits: scores of real images, whose values do not matter.
            fake_logits, validation_logits: what :meth:`ADAController.update` takes; not used.

        Raises:
            TypeError, ValueError: if they are not scores on p's device. Nothing has changed.
        """
        op = f"{type(self).__name__}.update"
        images = _listed(op, "real_logits", real_logits, self.p.device)[0].shape[0]
        for name, logits in zip(_NAMES[1:], (fake_logits, validation_logits), strict=True):
            if logits is not None:
                _listed(op, name, logits, self.p.device)
        state = self._here(op)
        if dist.is_available() and dist.is_initialized():
            shared = torch.full_like(state, images)
            dist.all_reduce(shared)
            state += shared
        else:
            state += images
        done = (state[0] / (1000 * self.kimg)).clamp(max=1)
        if self.shape == "linear":
            self.p.copy_(self.p_end * done)
        elif self.shape == "cosine":
            self.p.copy_(self.p_end * (1 - (math.pi * done).cos()) / 2)
        self._warn_of_leaks()

    def extra_repr(self) -> str:
        return f"{self.shape!r}, p={self.p_end}, kimg={self.kimg}"


_NAMES = ("real_logits", "fake_logits", "validation_logits")
#: The logits that each metric takes.
_TAKES: dict[str, tuple[str, ...]] = {
    "rt": _NAMES[:1],
    "rv": _NAMES,
    "accuracy": _NAMES[:2],
}


def _listed(op: str, name: str, logits: Logits, device: torch.device) -> list[Tensor]:
    if not isinstance(logits, Tensor) and type(logits) not in (list, tuple):
        # A NamedTuple has more than scores.
        cure = instead_of(logits, name) or "give the scores of several scales in a list"
        raise TypeError(
            f"{op}: expected {name} to be a tensor or a list of them, got {kind(logits)}; {cure}"
        )
    tensors = [logits] if isinstance(logits, Tensor) else list(logits)
    for x in tensors:
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{op}: expected {name} to be a tensor or a list of them, got {kind(logits)} with "
                f"{kind(x)} in it; give nothing but the tensors"
            )
    if not tensors:
        raise ValueError(f"{op}: expected {name} of at least one scale, got none")
    for x in tensors:
        check_strided(op, name, x)
        check_real(op, name, x)
        if x.dim() == 0:
            raise ValueError(
                f"{op}: expected {name} whose first dimension is the images', got a scalar; give "
                "the scores, not their mean"
            )
        if x.device != device:
            raise ValueError(f"{op}: expected {name} on {device}, where p is, got {x.device}")
    check_alike(op, name, tensors, "give the scores alone", AVERAGED)
    return tensors


def _tensor_of(op: str, name: str, value: object, shape: torch.Size) -> Tensor:
    """The entry of a state_dict under a name."""
    wanted = f"{name} to be a floating-point tensor of shape {tuple(shape)}"
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: expected {wanted}, got {kind(value)}")
    if not value.is_floating_point() or value.shape != shape:
        raise ValueError(f"{op}: expected {wanted}, got {describe(value)}")
    return value
