"""The power iteration of weights that lie in shards on the ranks of a process group: DTensors.

With W in blocks W_k, one for every rank, and x the vector that moves second, a step of the order
``"u_first"`` is

    a = W x,  b = W^T a,    u = a / ||a||,  v = b / ||b||,  sigma = ||b|| / ||a||

(``"v_first"`` is the same of W^T). Where every W_k has all of x's side, as row shards have for
``"u_first"``, ``a_k = W_k x`` is a part of a, and b the sum of the ``W_k^T a_k``: one sum over the
ranks of both; else a is summed up first. The vectors of all weights of a network go into one
buffer: a step is one or two all-reduces of ``sum(rows + cols)`` numbers, each rank reads its own
shards, and no weight is gathered. All ranks get the same bits of the sum, and so of u, v and sigma.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import Module

from gankernels._dtypes import accumulation_dtype
from gankernels._torch import shards_parameters
from gankernels.reference.spectral_norm import repaired
from gankernels.spectral_norm.layer import Layer, rows_first
from gankernels.spectral_norm.recompute import Vectors


def is_sharded(weight: Tensor) -> bool:
    """Whether a tensor is a DTensor that ranks have parts of; told without importing its module.
    Others take the reference, as foreign tensors do.
    """
    if type(weight) is torch.nn.Parameter or type(weight) is Tensor:  # tells them fast
        return False
    placements = getattr(weight, "placements", None)
    return placements is not None and not all(p.is_replicate() for p in placements)


def fsdp_modules(model: Module) -> list[Any]:
    """The parts of a model that fully_shard was called on."""
    if not shards_parameters():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


class _Cut(NamedTuple):
    """A part of one dimension."""

    dim: int
    start: int
    length: int


class _Block:
    """What this rank has of a weight, as a matrix whose product with the second vector is a part of
    the first."""

    def __init__(
        self, layer: Layer, local: Tensor, cuts: Sequence[_Cut], groups: list[Any]
    ) -> None:
        self.layer, self.groups = layer, groups
        s, shape = layer.settings, list(layer.weight.shape)
        acc = accumulation_dtype(local.dtype)
        matrix = rows_first(local.detach(), s.dim).to(acc)
        rows = [cut._replace(dim=0) for cut in cuts if cut.dim == s.dim]
        # A dimension of the columns, by its place among them.
        cols = [cut._replace(dim=cut.dim - (cut.dim > s.dim)) for cut in cuts if cut.dim != s.dim]
        self.matrix = matrix.reshape(matrix.shape[0], math.prod(matrix.shape[1:]))
        sides = [([shape.pop(s.dim)], rows), (shape, cols)]
        if s.order == "v_first":
            self.matrix = self.matrix.t()
            sides.reverse()
        (self.first_shape, self.first_cuts), (self.second_shape, self.second_cuts) = sides
        self.sizes = math.prod(self.first_shape), math.prod(self.second_shape)
        u, v = vectors_of(layer)
        self.second = (v if s.order == "u_first" else u).to(acc)
        self.first = self.second.new_zeros(0)
        self.sigma = self.second.new_zeros(())

    def of_second(self, vector: Tensor) -> Tensor:
        return _part(vector, self.second_shape, self.second_cuts)

    def of_first(self, vector: Tensor) -> Tensor:
        return _part(vector, self.first_shape, self.first_cuts)


def _part(vector: Tensor, shape: Sequence[int], cuts: Sequence[_Cut]) -> Tensor:
    part = vector.view(shape)
    for cut in cuts:
        part = part.narrow(*cut)
    return part


def _block(layer: Layer) -> _Block | None:
    """This rank's block; None of a weight that is laid out in another way."""
    weight: Any = layer.weight
    mesh, local = weight.device_mesh, weight.to_local()
    lengths, starts, groups = list(weight.shape), [0] * weight.dim(), []
    cut: set[int] = set()
    for i, placement in enumerate(weight.placements):
        if placement.is_replicate() or mesh.size(i) == 1:
            continue
        if not placement.is_shard() or type(placement).__name__ != "Shard":
            return None
        # As torch.chunk does it: the last ranks may have less, or nothing.
        d, size, rank = placement.dim % weight.dim(), mesh.size(i), mesh.get_local_rank(i)
        step = -(-lengths[d] // size)
        start = min(rank * step, lengths[d])
        starts[d] += start
        lengths[d] = min(step, lengths[d] - start)
        cut.add(d)
        groups.append(mesh.get_group(i))
    if tuple(local.shape) != tuple(lengths) or local.device != layer.u.device:
        return None
    return _Block(layer, local, [_Cut(d, starts[d], lengths[d]) for d in sorted(cut)], groups)


def group_of(layer: Layer) -> tuple | None:
    """The properties in which sharded layers must agree to share a call; None of those that do not
    move, or cannot be iterated in shards."""
    weight: Any = layer.weight
    if not is_sharded(weight) or not layer.training or layer.settings.step_scoped:
        return None
    if not can_iterate(layer):
        return None
    same = weight.device_mesh, weight.placements, weight.dtype, layer.u.device
    return *same, layer.n, layer.eps, layer.skipped is None


def can_iterate(layer: Layer) -> bool:
    """Whether a weight is laid out as :func:`power_iteration_` can read it."""
    return not layer.weight.is_complex() and _block(layer) is not None


@torch.no_grad()
def power_iteration_(layers: Sequence[Layer], skipped: Tensor | None) -> list[Vectors]:
    """Move u and v of layers that agree in :func:`group_of`; the new u, v and sigma of each.

    A collective call: all ranks make it for the same layers, in the same order. ``skipped`` is that
    of :func:`gankernels.ops.power_iteration_`.
    """
    blocks = [block for block in map(_block, layers) if block is not None]
    if skipped is not None:
        for block in blocks:
            block.second = repaired(block.second)
    for _ in range(layers[0].n):
        _step(blocks, layers[0].eps)
    found: list[Vectors] = []
    for i, block in enumerate(blocks):
        before, sigma = vectors_of(block.layer), block.sigma
        u, v = block.first, block.second
        if block.layer.settings.order == "v_first":
            u, v = v, u
        if skipped is not None:
            good = torch.isfinite(sigma) & (sigma > 0)
            skipped[i] += ~good
            u = torch.where(good, u, repaired(before[0].to(u.dtype)))
            v = torch.where(good, v, repaired(before[1].to(v.dtype)))
            sigma = torch.where(good, sigma, 1)
        before[0].copy_(u)
        before[1].copy_(v)
        found.append(([u], [v], sigma[None]))
    return found


def normalize(layer: Layer, vectors: Vectors) -> Tensor:
    """W / sigma of a weight that stays in shards (tensor parallelism), in the same shards.

    In the operations of DTensors, which bring the collectives: differentiable to any order.
    """
    from torch.distributed.tensor import DTensor, Replicate  # who has shards has imported it

    weight: Any = layer.weight
    block, mesh = _block(layer), weight.device_mesh
    assert block is not None
    (u,), (v,), sigma = vectors
    s, dim, dtype = layer.settings, layer.settings.dim, accumulation_dtype(weight.dtype)
    if s.order == "v_first":
        u, v = v, u
    outer = torch.outer(block.of_first(u).reshape(-1), block.of_second(v).reshape(-1))
    outer = outer if s.order == "u_first" else outer.t()
    local = rows_first(weight.to_local(), dim)
    outer = outer.reshape(local.shape).movedim(0, dim).to(dtype)
    layout = {"run_check": False, "shape": weight.shape, "stride": weight.stride()}
    shards = DTensor.from_local(outer.contiguous(), mesh, weight.placements, **layout)
    wide = weight.to(dtype)
    found = (wide * shards).sum().redistribute(mesh, [Replicate()] * mesh.ndim)  # u . (W v)
    if sigma is not None:  # the value that the iteration found, with that gradient
        known = DTensor.from_local(sigma[0], mesh, [Replicate()] * mesh.ndim, run_check=False)
        found = known + (found - found.detach())
    elif layer.skipped is not None:
        good = torch.isfinite(found) & (found != 0)
        found = torch.where(good, found, torch.ones_like(found))
    if s.max_norm is not None:
        found = torch.where(found <= s.max_norm, torch.ones_like(found), found / s.max_norm)
    return (wide / found).to(weight.dtype)


def vectors_of(layer: Layer) -> tuple[Tensor, Tensor]:
    """u and v, which are whole on every rank, also where a module was distributed with them."""
    vectors: Any = layer.u, layer.v
    return tuple(x if getattr(x, "placements", None) is None else x.to_local() for x in vectors)  # type: ignore[return-value]


def vector_of(weight: Any, size: int) -> Tensor:
    """An uninitialized vector beside a weight: u and v are whole on every rank."""
    like = weight.to_local() if is_sharded(weight) else weight
    return like.new_empty(size)  # type: ignore[no-any-return]


@torch.no_grad()
def share_(weight: Any, x: Tensor) -> Tensor:
    """Make a vector that ranks have drawn for themselves that of the first of them."""
    if is_sharded(weight):
        for i in range(weight.device_mesh.ndim):
            group = weight.device_mesh.get_group(i)
            dist.broadcast(x, dist.get_global_rank(group, 0), group=group)
    return x


def _step(blocks: Sequence[_Block], eps: float) -> None:
    # Both vectors of a block that has all of the second side, of others the first one.
    at_once = [not block.second_cuts for block in blocks]
    both = [
        block.sizes if once else block.sizes[:1]
        for block, once in zip(blocks, at_once, strict=True)
    ]
    buffer = blocks[0].second.new_zeros(sum(map(sum, both)))
    parts = _split(buffer, both)
    for block, vectors in zip(blocks, parts, strict=True):
        a = block.matrix @ block.of_second(block.second).reshape(-1)
        own = block.of_first(vectors[0])
        own.copy_(a.view(own.shape))
        if len(vectors) == 2:
            vectors[1].copy_(block.matrix.t() @ a)
    _sum(buffer, blocks)
    later = [block.sizes[1:] for block, once in zip(blocks, at_once, strict=True) if not once]
    rest = buffer.new_zeros(sum(map(sum, later)))
    others = iter(_split(rest, later))
    moved: list[Tensor] = []
    for block, vectors in zip(blocks, parts, strict=True):
        divisor = vectors[0].norm().clamp_min(eps)
        block.first = vectors[0] / divisor
        if len(vectors) == 2:
            moved.append(vectors[1].div_(divisor))
            continue
        (z,) = next(others)
        own = block.of_second(z)
        own.copy_((block.matrix.t() @ block.of_first(block.first).reshape(-1)).view(own.shape))
        moved.append(z)
    if later:
        _sum(rest, blocks)
    for block, b in zip(blocks, moved, strict=True):
        norm = b.norm()
        divisor = norm.clamp_min(eps)
        block.second = b / divisor
        block.sigma = norm * (norm / divisor)


def _split(buffer: Tensor, sizes: Sequence[Sequence[int]]) -> list[tuple[Tensor, ...]]:
    flat = iter(buffer.split([n for pair in sizes for n in pair]))
    return [tuple(next(flat) for _ in pair) for pair in sizes]


def _sum(buffer: Tensor, blocks: Sequence[_Block]) -> None:
    for group in blocks[0].groups:
        dist.all_reduce(buffer, group=group)


__all__ = [
    *(
        "can_iterate",
        "fsdp_modules",
        "group_of",
        "is_sharded",
        "normalize",
        "power_iteration_",
        "share_",
    ),
    *("vector_of", "vectors_of"),
]
