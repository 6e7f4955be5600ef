"""Moving averages of the weights that spectrally normalised networks use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch.nn import Module
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gankernels._checks import check_module, check_number, kind
from gankernels.spectral_norm.fold import fold, folded_tensors


def averaged_model(
    model: Module,
    decay: float | None = None,
    *,
    half_life: float | None = None,
    batch: int | None = None,
    rampup: float | None = None,
) -> AveragedModel:
    """The exponential moving average of ``model``'s weights, of W / sigma where it is normalised.

    :class:`torch.optim.swa_utils.AveragedModel` alone averages what W / sigma is made of, the
    weights before the normalisation and, with ``use_buffers=True``, u and v; that gives other
    weights than the average of those that the network used. This one averages :func:`fold`'s: it
    has plain weights, plain state_dict keys, and no u and v. Of a network without spectral
    normalisation it is torch's average.

    Call ``update_parameters(model)`` after every step of the optimiser, as with torch's. It reads
    ``model``, normalised by torch's or our ``spectral_norm``, fused or not, as ``eval()`` would,
    and leaves u, v and the mode as they are. The first call copies, each later one takes
    ``average = decay * average + (1 - decay) * weight``. Buffers, such as BatchNorm's statistics,
    are copied at each call.

    Args:
        model: the network in training, itself and not a wrapper of it (``DistributedDataParallel``,
            ``torch.compile``). The average is kept in its dtypes; a decay near 1 needs float32.
        decay: between 0 and 1; 0.999 where ``half_life`` is not given either.
        half_life: instead of decay, the number of images after which a weight counts half.
        batch: the images of a step; with ``half_life``, see :func:`decay_for_half_life`.
        rampup: let the half-life grow with training, ``min(half_life, rampup * images)`` with the
            images seen so far, so that the average does not go on to hold the random weights of the
            beginning: ``batch`` times the calls of ``update_parameters`` before this one.
            StyleGAN2-ADA's (arXiv 2006.06676) is 0.05. Only with ``half_life``.

    Returns:
        A torch ``AveragedModel``, in ``eval()`` and without gradients; ``.module`` is the network.

    Raises:
        TypeError: if ``model`` is not a module, or a number not one.
        ValueError: for a decay outside [0, 1], ``half_life`` without ``batch`` or with ``decay``,
            ``rampup`` without ``half_life``; by ``update_parameters`` for a model without one of
            the weights, or of another shape.

    Not differentiated. Deterministic. Moving averages of generators: Yazici et al. 2018 (arXiv
    1806.04498); Karras et al. 2017 (arXiv 1710.10196), appendix A.
    """
    check_module("averaged_model", model)
    if (half_life is None) != (batch is None):
        raise ValueError(
            "averaged_model: expected half_life, in images, together with batch, got only one of "
            "the two; pass both or neither"
        )
    if half_life is not None and batch is not None:
        if decay is not None:
            raise ValueError(
                "averaged_model: expected decay or half_life, got both; leave one of them out"
            )
        decay = decay_for_half_life(half_life, batch)
    elif decay is None:
        decay = 0.999
    if rampup is not None:
        if half_life is None or batch is None:
            raise ValueError(
                "averaged_model: expected rampup together with half_life and batch, got it alone; "
                "pass half_life instead of decay"
            )
        check_number("averaged_model", "rampup", rampup, positive=True)
    check_number("averaged_model", "decay", decay)
    if decay > 1:
        raise ValueError(f"averaged_model: expected decay to be at most 1, got {decay}")
    schedule = None
    if rampup is not None and half_life is not None and batch is not None:
        schedule = _Rampup(half_life, batch, rampup)
    return _FoldedAverage(model, decay, schedule)


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


class _Rampup:
    """How the weights are averaged while the half-life grows."""

    def __init__(self, half_life: float, batch: float, rampup: float) -> None:
        self.half_life, self.batch, self.rampup = half_life, batch, rampup

    def __call__(self, averages: Any, weights: Any, updates: Any) -> None:
        n = int(updates)
        half_life = min(self.half_life, self.rampup * self.batch * n)
        get_ema_multi_avg_fn(decay_for_half_life(half_life, self.batch))(averages, weights, n)


class _FoldedAverage(AveragedModel):
    def __init__(self, model: Module, decay: float, schedule: _Rampup | None) -> None:
        super().__init__(fold(model), multi_avg_fn=schedule or get_ema_multi_avg_fn(decay))
        self.eval().requires_grad_(False)

    def update_parameters(self, model: Module) -> None:
        """Average the weights of ``model`` in; see :func:`averaged_model`."""
        check_module("averaged_model", model)
        tensors = folded_tensors(model)
        for name, average in [*self.module.named_parameters(), *self.module.named_buffers()]:
            if name not in tensors:
                raise ValueError(
                    f"averaged_model: expected the model that is averaged, got {kind(model)} "
                    f"without {name}; pass the network itself, not a wrapper of it"
                )
            if tensors[name].shape != average.shape:
                raise ValueError(
                    f"averaged_model: expected {name} of shape {tuple(average.shape)}, got "
                    f"{tuple(tensors[name].shape)}; pass the model that is averaged"
                )
        # By name: torch goes by the order of the parameters, which folding changes.
        folded = SimpleNamespace(
            parameters=lambda: [tensors[name] for name, _ in self.module.named_parameters()],
            buffers=lambda: [tensors[name] for name, _ in self.module.named_buffers()],
        )
        super().update_parameters(folded)  # type: ignore[arg-type]


__all__ = ["averaged_model", "decay_for_half_life"]
