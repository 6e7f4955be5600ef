"""Losses of the generator by what a discriminator has computed: its features, its best logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from gankernels._checks import (
    check_count,
    check_floats,
    check_number,
    describe,
    is_choice,
    is_lazy_iterable,
    kind,
)
from gankernels._critics.norms import Weight, check_weight
from gankernels._dtypes import accumulation_dtype
from gankernels.losses._logits import Logits, listed, weighted

Features = Tensor | Sequence[Tensor] | Sequence[Sequence[Tensor]]


def feature_matching(
    real_features: Features,
    fake_features: Features,
    *,
    weight: Weight = 2.0,
    layers: Literal["sum", "mean"] = "sum",
    norm: Literal["l1", "l2"] = "l1",
) -> Tensor:
    """``weight * sum_k sum_l E |f_kl(real) - f_kl(fake)|``, over layers l of discriminators k.

    Feature matching of pix2pixHD, Wang et al. 2018 (arXiv 1711.11585), equation 4 (``weight=10.0``
    there), of MelGAN, Kumar et al. 2019 (arXiv 1910.06711), equation 3 (10), and of HiFi-GAN, Kong
    et al. 2020 (arXiv 2010.05646), equation 4 (2). E is the mean over all elements of a layer.
    Samples are compared one by one, so that ``fake`` has to be made for the ``real`` in its place;
    Salimans et al. 2016 (arXiv 1606.03498) match means over the batch, which is something else.

    Args:
        real_features: what layers give real samples, of any shape: a tensor, a list of tensors, or
            a list of lists of tensors, one of each discriminator. No gradient flows into them.
        fake_features: the same of generated ones, in the same lists and shapes. In lists that end
            in the logits, leave these out.
        weight: a factor, not negative; a number or a tensor of one element.
        layers: ``"sum"`` adds up all layers of all discriminators, ``"mean"`` divides that by how
            many they are, as SoundStream does (Zeghidour et al. 2021, arXiv 2107.03312).
        norm: of the differences, ``"l1"`` their absolute value, ``"l2"`` their square.

    Returns:
        A scalar, float64 where features are float64, otherwise float32, computed in it.

    Raises:
        TypeError: for features that are not floating-point tensors, or lists of these.
        ValueError: for empty features, lists or shapes that differ, and other devices.

    Differentiable to any order in ``fake_features``. Deterministic. Nothing waits for the device.
    """
    op = "feature_matching"
    check_weight(op, "weight", weight)
    for name, value, choices in (("layers", layers, ("sum", "mean")), ("norm", norm, ("l1", "l2"))):
        if not is_choice(value, choices):
            raise ValueError(
                f'{op}: expected {name} "{choices[0]}" or "{choices[1]}", got {value!r}'
            )
    pairs = _paired_layers(op, real_features, fake_features)
    terms = []
    for real, fake in pairs:
        dtype = accumulation_dtype(torch.promote_types(real.dtype, fake.dtype))
        difference = fake.to(dtype) - real.detach().to(dtype)
        terms.append((difference.abs() if norm == "l1" else difference.square()).mean())
    total = sum(terms[1:], terms[0])
    return weighted(total / len(terms) if layers == "mean" else total, weight)


def _paired_layers(op: str, real: Features, fake: Features) -> list[tuple[Tensor, Tensor]]:
    """Every layer of every discriminator."""
    reals, fakes = _critics(op, "real_features", real), _critics(op, "fake_features", fake)
    depths = [_outline(x, y) for x, y in ((real, reals), (fake, fakes))]
    if depths[0] != depths[1]:
        raise ValueError(
            f"{op}: expected real_features and fake_features in the same lists, got {depths[0]} "
            f"and {depths[1]}; pass the features of the same layers"
        )
    device = fakes[0][0].device
    pairs = []
    for k, (of_real, of_fake) in enumerate(zip(reals, fakes, strict=True)):
        for i, (x, y) in enumerate(zip(of_real, of_fake, strict=True)):
            if x.shape != y.shape:
                raise ValueError(
                    f"{op}: expected features of one shape, to compare sample by sample, got "
                    f"{tuple(x.shape)} of real and {tuple(y.shape)} of fake samples in layer {i} "
                    f"of discriminator {k}; use as many fake samples as real ones, of one size"
                )
            if x.device != device or y.device != device:
                raise ValueError(
                    f"{op}: expected all features on one device, got {device} and "
                    f"{y.device if x.device == device else x.device}"
                )
            pairs.append((x, y))
    return pairs


def _critics(op: str, name: str, features: Features) -> list[list[Tensor]]:
    """The layers of every discriminator, checked."""
    expected = f"{op}: expected {name} to be a tensor, a list of tensors, or a list of such lists"
    if isinstance(features, Tensor):
        critics = [[features]]
    elif not isinstance(features, (list, tuple)):
        cure = f"; pass list({name})" if is_lazy_iterable(features) else ""
        raise TypeError(f"{expected}, got {kind(features)}{cure}")
    elif all(isinstance(x, Tensor) for x in features):
        critics = [list(features)]
    else:
        critics = []
        for k, layers in enumerate(features):
            if not isinstance(layers, (list, tuple)):
                raise TypeError(f"{expected}, got one with {kind(layers)} at {name}[{k}]")
            critics.append(list(layers))
    for k, layers in enumerate(critics):
        if not layers:
            raise ValueError(f"{op}: expected {name} with layers, got an empty list")
        for x in layers:
            if not isinstance(x, Tensor):
                raise TypeError(f"{expected}, got one with {kind(x)} of discriminator {k}")
            check_floats(op, name, x)
            if x.numel() == 0:
                raise ValueError(
                    f"{op}: expected {name} with elements to average, got the empty shape "
                    f"{tuple(x.shape)}"
                )
    return critics


def _outline(features: Features, critics: list[list[Tensor]]) -> str:
    """The lists that features come in, in the words of an error."""
    if isinstance(features, Tensor):
        return "a tensor"
    if isinstance(features[0], Tensor):
        return f"a list of {len(features)}"
    return f"lists of {', '.join(str(len(layers)) for layers in critics)}"


def top_k(fake_logits: Logits, k: float) -> Logits:
    """The logits of the k generated samples that the discriminator rates highest.

    Top-k training, Sinha et al. 2020 (arXiv 2002.06224), algorithm 1: the generator learns of these
    alone, ``losses.hinge.generator(losses.top_k(D(G(z)), 0.75))``. The paper goes from the whole
    batch down to a part of it, by a factor of 0.99 an epoch. For the generator's loss only: the
    discriminator's is of all samples, and ``relativistic`` would pair what is left with other real
    samples.

    Args:
        fake_logits: (B, ...), or a list of these, of which each keeps its own samples. Where there
            are several logits of a sample, patches for instance, the mean of them counts.
        k: how many, an integer from 1 to B; or which part of the batch, a float above 0 and at most
            1, rounded down, to one sample at the least. 1 is one sample, and 1.0 is all of them.

    Returns:
        (k, ...) in the dtype of the logits, the best first; a list where a list was given.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.

    Differentiable to any order. Deterministic, but for which of equal logits stay. Nothing waits
    for the device.
    """
    op = "top_k"
    tensors = listed(op, "fake_logits", fake_logits)
    if isinstance(k, float):
        check_number(op, "k", k, positive=True)
        if k > 1:
            raise ValueError(
                f"{op}: expected k as a part of the batch to be at most 1.0, got {k}; a number of "
                "samples is an integer"
            )
    else:
        check_count(op, "k", k)
    kept = []
    for x in tensors:
        if x.dim() == 0 or (isinstance(k, int) and k > len(x)):
            raise ValueError(
                f"{op}: expected fake_logits of shape (B, ...) with at least k = {k} samples, got "
                f"{describe(x)}"
            )
        count = max(1, math.floor(k * len(x))) if isinstance(k, float) else k
        scores = x.detach().to(accumulation_dtype(x.dtype)).flatten(1).mean(1) if x.dim() > 1 else x
        kept.append(x.index_select(0, scores.detach().topk(count).indices))
    return kept[0] if isinstance(fake_logits, Tensor) else kept
