"""Access to the weights that spectral normalization computes W / sigma from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch.autograd.graph import increment_version
from torch.nn import Module

from gankernels._checks import check_count, check_module
from gankernels.ops._checks.spectral_norm import check_steps, check_weight
from gankernels.ops.spectral_norm import warm_up
from gankernels.spectral_norm._fused.deposits import open_frames
from gankernels.spectral_norm.layer import rows_first
from gankernels.spectral_norm.sites import Site, settings_of, sites

_OP = "original_weights"


def original_weights(model: Module, *, init_iterations: int = 15) -> AbstractContextManager[None]:
    """A block within which ``module.weight`` is W itself, and not W / sigma: for initialization.

    ::

        with gankernels.original_weights(model):
            model.apply(init_weights)

    The weight of a spectrally normalized module is computed when it is read, by torch's
    parametrization and ours, or when the module is called, by their hooks. What ``nn.init`` or
    ``weight.data.normal_()`` write into it is lost, without a word. Here they write into the
    parameter; functions that initialize plain models need no change. At the end of the block u and
    v follow what W has become, as if it had been normalized then.

    Within the block the normalized modules cannot be called.

    Args:
        model: with torch's or our ``spectral_norm``, fused or not; without any, the block does
            nothing. Other parametrizations are left alone.
        init_iterations: steps of the power method at the end of the block.

    Raises:
        TypeError: if ``model`` is not a module, ``init_iterations`` not an integer, or a weight is
            split over ranks.
        ValueError: if ``init_iterations`` is negative, or above 1,000,000; for a weight under
            spectral normalization that is itself computed, by ``weight_norm`` for one, so that
            there is no W.
        RuntimeError: if a normalized module is called within the block.
    """
    check_module(_OP, model)
    check_count(_OP, "init_iterations", init_iterations, least=0)
    check_steps(_OP, "init_iterations", init_iterations, least=0)
    open_frames.close_interrupted()
    found = [site for site in sites(model) if not site.again]
    for site in found:
        if not site.is_stored:
            raise ValueError(
                f"{_OP}: expected weights that are parameters, and {site.label} is computed from "
                "others before its spectral normalization; initialize those, or normalize later"
            )
        check_weight(_OP, site.label, site.input())
    return _block(found, init_iterations)


@contextmanager
def _block(found: Sequence[Site], n: int) -> Iterator[None]:
    with ExitStack() as stack:
        for site in found:
            stack.enter_context(_exposed(site))
        yield
    for site in found:
        _follow(site, n)


@contextmanager
def _exposed(site: Site) -> Iterator[None]:
    """W under the name of W / sigma, to read and to assign to, by a class for this one module."""
    module, cls = site.module, type(site.module)

    def assign(self: Module, key: str, value: Any) -> None:
        if key != site.name:
            super(exposing, self).__setattr__(key, value)
        elif value is not site.input():
            with torch.no_grad():
                site.input().copy_(value)

    members = {site.name: property(lambda _: site.input()), "__setattr__": assign}
    exposing: Any = type(cls.__name__, (cls,), members)
    module.__class__ = exposing
    refusal = module.register_forward_pre_hook(_refuse_call, prepend=True)
    try:
        yield
    finally:
        refusal.remove()
        module.__class__ = cls
        if site.chain is None:
            vars(module)[site.name] = site.input().detach()  # as before the first forward


def _refuse_call(module: Module, _: Any) -> None:
    raise RuntimeError(
        f"{_OP}: expected no call of {type(module).__name__} within the block, where its weight is "
        "not normalized; leave the block first"
    )


@torch.no_grad()
def _follow(site: Site, n: int) -> None:
    """Move u and v to a new W, and let it be seen that it is one."""
    weight, (u, v), norm = site.input(), site.vectors(), site.norm
    increment_version(weight)  # nothing counts what was written through .data
    if n > 0 and weight.numel() > 0:
        s = settings_of(norm)
        # From a zero W, which may well be meant, they stay where they are.
        skipped = torch.zeros(1, dtype=torch.int64, device=weight.device)
        matrix = rows_first(weight.detach(), s.dim)
        warm_up(_OP, [matrix], [u], [v], n, norm.eps, s.order, skipped=skipped)


__all__ = ["original_weights"]
