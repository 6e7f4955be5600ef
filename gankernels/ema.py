"""Moving averages of the weights that spectrally normalized networks use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim.swa_utils import AveragedModel as TorchAveragedModel
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from gankernels._checks import (
    check_bool,
    check_callable,
    check_count,
    check_module,
    check_number,
    device_of,
    kind,
)
from gankernels._dtypes import accumulation_dtype
from gankernels.spectral_norm.fold import fold_spectral_norm, folded_tensors
from gankernels.spectral_norm.layer import rows_first
from gankernels.spectral_norm.sharded import fsdp_modules
from gankernels.spectral_norm.sites import Site, settings_of, sites


class AveragedModel(TorchAveragedModel):
    """A drop-in for :class:`torch.optim.swa_utils.AveragedModel`, of W / sigma where it is made.

    torch's averages what W / sigma is made of, the weights before the normalization and, with
    ``use_buffers=True``, u and v; that gives other weights than the average of those that the
    network used. This one averages those of :func:`gankernels.fold_spectral_norm`: it has plain
    weights, plain state_dict keys, and no u and v. Of a network without spectral normalization it
    is torch's.

    Call ``update_parameters(model)`` after every step of the optimizer. It reads ``model``,
    normalized by torch's or our ``spectral_norm``, fused or not, as ``eval()`` would, and leaves u,
    v and the mode as they are. The first call copies, each later one averages; buffers, such as
    BatchNorm's statistics, are copied at each call. To go on from an average that was made
    otherwise, load it into ``module`` and write how many updates it is of into ``n_averaged``,
    which is 0 before the first.

    Of shards (FSDP2, tensor parallelism) it averages shards. Under FSDP2 make the average of the
    whole network, and shard both alike. sigma takes one ``all_reduce`` of a number for each of the
    weights, so that every rank has to call ``update_parameters``; for an average that is left whole
    the weights are gathered. ::

        average = AveragedModel(generator, decay=0.999)
        for network in (generator, average.module):
            for block in network.blocks:
                fully_shard(block)
            fully_shard(network)

    Args:
        model: the network in training, itself and not a wrapper of it (``DistributedDataParallel``,
            ``torch.compile``). The average is kept in its dtypes; a decay near 1 needs float32.
        device: where the average is kept; default: where the model is.
        avg_fn, multi_avg_fn: how weights are averaged, as torch takes it; by default all count
            alike, as torch has it (stochastic weight averaging).
        use_buffers: average the buffers too.
        decay: between 0 and 1: take the exponential moving average, as
            ``multi_avg_fn=get_ema_multi_avg_fn(decay)``:
            ``average = decay * average + (1 - decay) * weight``.
        half_life: instead of decay, the number of images after which a weight counts half.
        batch: the images of a step; with ``half_life``, see :func:`decay_for_half_life`.
        rampup: let the average be short at first, so that it does not go on to hold the random
            weights of the beginning. With n calls of ``update_parameters`` before this one:

            - with ``half_life``: ``min(half_life, rampup * batch * n)``, where ``batch * n`` are
              the images seen so far. StyleGAN2-ADA's (arXiv 2006.06676) is 0.05.
            - with ``decay``: ``min(decay, (1 + n) / (rampup + n))``, above 1. TensorFlow's
              (``num_updates`` of its ``ExponentialMovingAverage``) is 10.
        start: how many calls of ``update_parameters`` copy the weights before the average begins;
            the first one always does. n is then counted from the last copy, too.

    ``.module`` is the network, in the mode of ``model`` when it was copied, as torch has it: call
    ``eval()`` before drawing from it. For a checkpoint of the network alone take
    ``.module.state_dict()``, whose keys are those of the network's class, without a prefix; of a
    class that normalizes its weights, load it into ``fold_spectral_norm(Generator())``. This
    object's own ``state_dict()`` is torch's, with ``module.`` before each key, and counts updates,
    to go on from.

    Raises:
        TypeError: if ``model`` is not a module, or a number not one.
        ValueError: for a decay outside [0, 1], ``half_life`` without ``batch`` or with ``decay``,
            ``rampup`` without either, or one of these with ``avg_fn`` or ``multi_avg_fn``; by
            ``update_parameters`` for a model without one of the weights, or of another shape; for a
            model that FSDP2 has sharded already, which torch does not copy.

    Not differentiated. Deterministic. Moving averages of generators: Yazici et al. 2018 (arXiv
    1806.04498); Karras et al. 2017 (arXiv 1710.10196), appendix A.
    """

    def __init__(
        self,
        model: Module,
        device: int | torch.device | None = None,
        avg_fn: Any = None,
        multi_avg_fn: Any = None,
        use_buffers: bool = False,
        *,
        decay: float | None = None,
        half_life: float | None = None,
        batch: int | None = None,
        rampup: float | None = None,
        start: int = 0,
    ) -> None:
        check_module("AveragedModel", model)
        check_bool("AveragedModel", "use_buffers", use_buffers)
        if device is not None:
            device = device_of("AveragedModel", device)
        for name, function in (("avg_fn", avg_fn), ("multi_avg_fn", multi_avg_fn)):
            if function is not None:
                check_callable("AveragedModel", name, function)
        schedule = _schedule(decay, half_life, batch, rampup, start)
        if schedule is not None:
            if avg_fn is not None or multi_avg_fn is not None:
                raise ValueError(
                    "AveragedModel: expected decay, half_life or start, or a function that "
                    "averages, got both; leave one of them out"
                )
            multi_avg_fn = schedule
        if fsdp_modules(model):
            raise ValueError(
                f"AveragedModel: expected a model before fully_shard, got {kind(model)}, which "
                "cannot be copied; make the average first, and shard its .module as the model"
            )
        super().__init__(fold_spectral_norm(model), device, avg_fn, multi_avg_fn, use_buffers)
        # torch reads it at every update, which on a GPU would wait.
        self.n_averaged = torch.zeros_like(self.n_averaged, device="cpu")

    def update_parameters(self, model: Module) -> None:
        """Average the weights of ``model`` in."""
        check_module("AveragedModel", model)
        for module in [*fsdp_modules(self.module), *fsdp_modules(model)]:
            module.reshard()  # a forward may have left gathered copies, which are thrown away
        tensors = _folded_tensors(model)
        named = [*self.module.named_parameters(), *self.module.named_buffers()]
        for name, average in named:
            if name not in tensors:
                raise ValueError(
                    f"AveragedModel: expected the model that is averaged, got {kind(model)} "
                    f"without {name}; pass the network itself, not a wrapper of it"
                )
            if tensors[name].shape != average.shape:
                raise ValueError(
                    f"AveragedModel: expected {name} of shape {tuple(average.shape)}, got "
                    f"{tuple(tensors[name].shape)}; pass the model that is averaged"
                )
        # In the order of the names: torch goes by that of the parameters, which folding changes.
        pairs = [_alike(average.detach(), tensors[name].detach()) for name, average in named]
        averages, values = ([pair[i] for pair in pairs] for i in range(2))
        count = len(list(self.module.parameters()))
        if isinstance(self.multi_avg_fn, _Schedule):
            self.multi_avg_fn.updates = int(self.n_averaged)
        mine = _listed(averages, count)
        settings = ("n_averaged", "use_buffers", "avg_fn", "multi_avg_fn")
        vars(mine).update({name: getattr(self, name) for name in settings}, module=mine)
        TorchAveragedModel.update_parameters(mine, _listed(values, count))


class _Schedule:
    """How weights are averaged in each update.

    It is told the number of updates: torch gives it as a tensor beside the weights, and a GPU would
    have to be waited for.
    """

    updates = 0

    def __init__(
        self, start: int, decay: float | None, per_image: tuple[float, float] | None, rampup: Any
    ) -> None:
        self.start, self.decay, self.rampup = max(start, 1), decay, rampup
        self.per_image = per_image  # half_life and batch

    def __call__(self, averages: Any, weights: Any, _: Any) -> None:
        n = self.updates + 1 - self.start
        if n <= 0:
            for average, weight in zip(averages, weights, strict=True):
                average.copy_(weight)
        elif self.decay is None:
            get_swa_multi_avg_fn()(averages, weights, n)
        else:
            get_ema_multi_avg_fn(self._decay_at(n))(averages, weights, n)

    def _decay_at(self, n: int) -> Any:
        if self.rampup is None:
            return self.decay
        if self.per_image is None:
            return min(self.decay, (1 + n) / (self.rampup + n))
        half_life, batch = self.per_image
        return decay_for_half_life(min(half_life, self.rampup * batch * n), batch)


def _schedule(
    decay: float | None,
    half_life: float | None,
    batch: int | None,
    rampup: float | None,
    start: int,
) -> _Schedule | None:
    """That of these arguments, or None where nothing says what torch does not do."""
    op = "AveragedModel"
    if (half_life is None) != (batch is None):
        raise ValueError(
            f"{op}: expected half_life, in images, together with batch, got only one of the two; "
            "pass both or neither"
        )
    if half_life is not None and decay is not None:
        raise ValueError(f"{op}: expected decay or half_life, got both; leave one of them out")
    per_image = None
    if half_life is not None and batch is not None:
        decay = decay_for_half_life(half_life, batch)
        per_image = half_life, batch
    if rampup is not None:
        if decay is None:
            raise ValueError(
                f"{op}: expected rampup together with decay, or with half_life and batch, got it "
                "alone; pass one of these"
            )
        check_number(op, "rampup", rampup, positive=True)
        if per_image is None and rampup <= 1:
            raise ValueError(
                f"{op}: expected rampup to be above 1 with decay, got {rampup}, with which the "
                "decay is the same from the beginning on; the usual one is 10"
            )
    check_count(op, "start", start, 0)
    if decay is None:
        return _Schedule(start, None, None, None) if start else None
    check_number(op, "decay", decay)
    if decay > 1:
        raise ValueError(f"{op}: expected decay to be at most 1, got {decay}")
    return _Schedule(start, decay, per_image, rampup)


def decay_for_half_life(half_life_images: float, batch: float) -> float:
    """The decay of a step of ``batch`` images that halves a weight in ``half_life_images`` images.

    ``0.5 ** (batch / half_life_images)``; the convention of StyleGAN2 (Karras et al. 2019, arXiv
    1912.04958), whose half-life is 10 000 images. It makes runs with different batches comparable.

    Raises:
        TypeError: if one is not a number.
        ValueError: if one is not positive and finite.
    """
    check_number("decay_for_half_life", "half_life_images", half_life_images, positive=True)
    check_number("decay_for_half_life", "batch", batch, positive=True)
    return 0.5 ** (batch / half_life_images)


def _listed(tensors: list[Tensor], count: int) -> Any:
    """What torch reads of a module: ``count`` parameters, then the buffers."""
    return SimpleNamespace(parameters=lambda: tensors[:count], buffers=lambda: tensors[count:])


# --- shards --------------------------------------------------------------------------------------


def _layout(x: Any) -> tuple | None:
    """Where a DTensor lies; None of any other tensor."""
    mesh = getattr(x, "device_mesh", None)
    return None if mesh is None else (mesh, x.placements)


def _alike(average: Any, value: Any) -> tuple[Tensor, Tensor]:
    """Both as tensors of this rank, laid out as the average is: torch averages lists of tensors,
    and in one there are either DTensors or others."""
    own, other = _layout(average), _layout(value)
    if other is not None and other != own:
        value, other = value.full_tensor(), None
    if own is None:
        return average, value
    if other is None:
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value, *own, src_data_rank=None)
    return average.to_local(), value.to_local()


@torch.no_grad()
def _folded_tensors(model: Module) -> dict[str, Tensor]:
    """:func:`folded_tensors`; of weights in shards, the shards of W / sigma."""
    sharded = [site for site in sites(model) if _is_in_shards(site)]
    norms = [site.norm for site in sharded]
    try:
        for site in sharded:
            site.replace(None)  # by itself each would take collectives
        tensors = folded_tensors(model)
    finally:
        for site, norm in zip(sharded, norms, strict=True):
            site.replace(norm)
    if sharded:
        labels = [site.label for site in sharded]
        tensors.update(zip(labels, _normalized_shards(sharded), strict=True))
    return tensors


def _is_in_shards(site: Site) -> bool:
    """Whether this weight is stored as shards, and nothing else is made of it."""
    if not site.is_stored or (site.chain is not None and len(site.chain) > 1):
        return False
    weight: Any = site.input()
    if _layout(weight) is None or weight.is_complex():
        return False
    return all(type(p).__name__ in ("Shard", "Replicate") for p in weight.placements)


def _normalized_shards(sharded: list[Site]) -> list[Tensor]:
    """W / sigma of each, from one all-reduce for all that are cut over the same ranks."""
    from torch.distributed.tensor import DTensor

    parts = [_part_of_sigma(site) for site in sharded]
    groups: dict[tuple, list[int]] = {}
    for i, part in enumerate(parts):
        groups.setdefault((part.device_mesh, part.placements, part.dtype), []).append(i)
    outputs: list[Any] = [None] * len(sharded)
    for (mesh, placements, _), index in groups.items():
        stack = torch.stack([parts[i].to_local() for i in index])
        sigmas = DTensor.from_local(stack, mesh, placements).full_tensor()
        for i, sigma in zip(index, sigmas, strict=True):
            outputs[i] = _divided(sharded[i], sigma)
    return outputs


def _part_of_sigma(site: Site) -> Any:
    """What this rank's shard adds to ``u . (W v)``: a DTensor that is summed over the ranks."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    weight: Any = site.input()
    mesh, placements = weight.device_mesh, weight.placements
    acc = accumulation_dtype(weight.dtype)

    def cut(x: Tensor, dims: list[int]) -> Tensor:
        """A tensor of these dimensions of the weight, cut as that is."""
        own = [
            Shard(dims.index(p.dim)) if isinstance(p, Shard) and p.dim in dims else Replicate()
            for p in placements
        ]
        shape = [weight.shape[d] for d in dims]
        part = distribute_tensor(x.to(acc).view(shape), mesh, own, src_data_rank=None)
        return part.to_local().flatten()

    dim = settings_of(site.norm).dim
    u, v = site.vectors()
    matrix = rows_first(weight.to_local(), dim).to(acc).flatten(1)
    part = cut(u, [dim]) @ (matrix @ cut(v, [d for d in range(weight.dim()) if d != dim]))
    over = [Partial() if isinstance(p, Shard) else Replicate() for p in placements]
    return DTensor.from_local(part, mesh, over)


def _divided(site: Site, sigma: Tensor) -> Tensor:
    """W / sigma, with the options of the normalization."""
    from torch.distributed.tensor import DTensor

    weight: Any = site.input()
    if getattr(site.norm, "guard", False):
        sigma = torch.where(sigma.isfinite() & (sigma != 0), sigma, 1)
    bound = settings_of(site.norm).max_norm
    if bound is not None:
        sigma = torch.where(sigma.abs() <= bound, 1, sigma / bound)
    local = (weight.to_local().to(sigma.dtype) / sigma).to(weight.dtype)
    layout = weight.device_mesh, weight.placements
    shape, stride = weight.shape, weight.stride()
    return DTensor.from_local(local, *layout, run_check=False, shape=shape, stride=stride)


__all__ = ["AveragedModel", "decay_for_half_life"]
