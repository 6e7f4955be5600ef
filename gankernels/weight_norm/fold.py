"""Plain weights of weight-normalized ones, for export and for inference."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch.nn import Module, Parameter

from gankernels.spectral_norm.fold import bake, unfused
from gankernels.weight_norm.fuse import handle_of
from gankernels.weight_norm.sites import Site, sites

M = TypeVar("M", bound=Module)


def fold_weight_norm(model: M, *, inplace: bool = False) -> M:
    """``model`` with plain weights in place of ``g * v / ||v||``, for export or for inference.

    The state_dict has plain keys (``weight``), which :func:`gankernels.fuse_weight_norm` loads.
    Other parametrizations of a weight-normalized weight are folded with it. A folded weight is a
    new parameter, which requires a gradient if v or g did.

    Args:
        model: with torch's ``weight_norm`` of either kind, fused or not.
        inplace: change ``model`` itself instead of a copy. An optimizer goes on to have the old
            parameters.

    Raises:
        TypeError: if ``model`` is not a module, or ``inplace`` not True or False.
        ValueError: for a model that FSDP2 has sharded.
    """
    model = unfused("fold_weight_norm", model, inplace, handle_of)
    for site in list(sites(model)):
        if site.chain is not None:
            bake(site.module, site.name)
        else:
            _fold_hook(site)
    return model


@torch.no_grad()
def _fold_hook(site: Site) -> None:
    v, g = site.tensors()
    weight = site.norm.compute_weight(site.module).detach()
    del site.holder[site.key]
    delattr(site.module, site.name)
    del site.module._parameters[f"{site.name}_g"], site.module._parameters[f"{site.name}_v"]
    site.module.register_parameter(site.name, Parameter(weight, v.requires_grad or g.requires_grad))
