"""The adversarial losses, each a pair for the two networks: ``d_loss, g_loss = losses.hinge``.

Every loss is called alike, so that one can stand in for another::

    losses.hinge.discriminator(real_logits, fake_logits)
    losses.hinge.generator(fake_logits, real_logits)

Logits are what the discriminator gives, before any sigmoid: a tensor of any shape, of which the
mean is taken (over patches, too), or a list of tensors, one of each critic of a multi-scale
discriminator, of which the means are added up. The result is a scalar, to be minimized: float64 for
float64 logits, float32 for every other floating-point dtype and within autocast, computed in it.
Differentiable to any order. Deterministic, but for random labels, which come from a generator.
Nothing waits for the device. ``D`` below are the logits, ``s`` the sigmoid, ``E`` the mean.

All raise TypeError for logits that are not floating-point tensors or lists of them, and ValueError
for an empty tensor, an empty list, lists of different lengths, and lists whose shapes can only be
those of logits and features (see :mod:`gankernels.penalties`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gankernels._checks import check_floats, check_generator, check_number, kind
from gankernels._critics.scores import AVERAGED, check_alike, listed_scores

Logits = Tensor | Sequence[Tensor]
Label = float | tuple[float, float]


class Loss(NamedTuple):
    """The losses of the two networks.

    ``discriminator(real_logits, fake_logits)`` and ``generator(fake_logits, real_logits=None)``.
    """

    discriminator: Callable[..., Tensor]
    generator: Callable[..., Tensor]


# --- minimax and non-saturating ----------------------------------------------------------------


def _minimax_discriminator(
    real_logits: Logits,
    fake_logits: Logits,
    *,
    real_label: Label = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``-E log s(D(real)) - E log(1 - s(D(fake)))``, the binary cross-entropy of real and fake.

    Goodfellow et al. 2014 (arXiv 1406.2661), equation 1. Its best value is log 4 - 2 JS, of the
    Jensen-Shannon divergence of the two distributions, which the generator of ``minimax`` makes
    smaller.

    Args:
        real_logits: the discriminator's output on real samples.
        fake_logits: on generated ones; needs no shape in common with real_logits.
        real_label: the target of the real ones. 0.9 is one-sided label smoothing (Salimans et al.
            2016, arXiv 1606.03498, section 3.4); ``(low, high)`` draws a target for every logit,
            uniformly, for instance ``(0.9, 1.1)``. The target of the fake ones is 0. With targets
            above 1 the loss has no lower bound: it falls without end as the real logits grow.
        generator: of the random labels, on the device of the logits; by default torch's own.

    Raises:
        TypeError: also for a label that is not a number or two, or another kind of generator.
        ValueError: also for a label below 0 or not finite, or ``low`` above ``high``.
    """
    return _cross_entropy("minimax", real_logits, fake_logits, real_label, generator)


def _minimax_generator(fake_logits: Logits, real_logits: Logits | None = None) -> Tensor:
    """``E log(1 - s(D(fake)))``, which saturates: no gradient where the fakes are found out.

    Goodfellow et al. 2014 (arXiv 1406.2661), equation 1. ``real_logits`` is not used.
    """
    _check_unused("minimax", real_logits)
    return _mean(F.logsigmoid(-fake) for fake in _read("minimax", "fake_logits", fake_logits))


minimax = Loss(_minimax_discriminator, _minimax_generator)


def _non_saturating_discriminator(
    real_logits: Logits,
    fake_logits: Logits,
    *,
    real_label: Label = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """That of ``minimax``, with its arguments and errors."""
    return _cross_entropy("non_saturating", real_logits, fake_logits, real_label, generator)


def _non_saturating_generator(fake_logits: Logits, real_logits: Logits | None = None) -> Tensor:
    """``-E log s(D(fake)) = E softplus(-D(fake))``, with a gradient where the fakes are found out.

    Goodfellow et al. 2014 (arXiv 1406.2661), section 3. Against the best discriminator its gradient
    is that of KL(fake || real) - 2 JS (Arjovsky and Bottou 2017, arXiv 1701.04862, theorem 2.5).
    ``real_logits`` is not used.
    """
    _check_unused("non_saturating", real_logits)
    fakes = _read("non_saturating", "fake_logits", fake_logits)
    return _mean(-F.logsigmoid(fake) for fake in fakes)


non_saturating = Loss(_non_saturating_discriminator, _non_saturating_generator)


# --- least squares -----------------------------------------------------------------------------


def _least_squares_discriminator(
    real_logits: Logits,
    fake_logits: Logits,
    *,
    real_label: Label = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``E (D(real) - 1)^2 + E D(fake)^2``.

    LSGAN, Mao et al. 2017 (arXiv 1611.04076), equation 9, without the paper's factors of 1/2. The
    paper's Pearson chi^2 divergence, of real + fake and 2 fake, belongs to the labels -1, 1 and 0
    of its equation 8; these are 0, 1 and 1.

    Args:
        real_logits: the discriminator's output on real samples.
        fake_logits: on generated ones; needs no shape in common with real_logits.
        real_label: in place of the 1, as in ``minimax``.
        generator: of the random labels, on the device of the logits; by default torch's own.

    Raises:
        TypeError: also for a label that is not a number or two, or another kind of generator.
        ValueError: also for a label below 0 or not finite, or ``low`` above ``high``.
    """
    reals, fakes = _read_both("least_squares", real_logits, fake_logits)
    labels = _labels("least_squares", reals, real_label, generator)
    real_terms = ((real - label).square() for real, label in zip(reals, labels, strict=True))
    return _mean(real_terms) + _mean(fake.square() for fake in fakes)


def _least_squares_generator(fake_logits: Logits, real_logits: Logits | None = None) -> Tensor:
    """``E (D(fake) - 1)^2``.

    LSGAN, Mao et al. 2017 (arXiv 1611.04076), equation 9, without the paper's factor of 1/2.
    ``real_logits`` is not used.
    """
    _check_unused("least_squares", real_logits)
    fakes = _read("least_squares", "fake_logits", fake_logits)
    return _mean((fake - 1).square() for fake in fakes)


least_squares = Loss(_least_squares_discriminator, _least_squares_generator)


# --- hinge -------------------------------------------------------------------------------------


def _hinge_discriminator(real_logits: Logits, fake_logits: Logits) -> Tensor:
    """``E relu(1 - D(real)) + E relu(1 + D(fake))``.

    Lim and Ye 2017 (arXiv 1705.02894), as in Miyato et al. 2018 (arXiv 1802.05957), equation 16.
    Its best value is 2 - 2 TV, of the total variation distance of the two distributions. Logits
    beyond the margin of 1 have no gradient.
    """
    reals, fakes = _read_both("hinge", real_logits, fake_logits)
    return _mean(F.relu(1 - real) for real in reals) + _mean(F.relu(1 + fake) for fake in fakes)


def _hinge_generator(fake_logits: Logits, real_logits: Logits | None = None) -> Tensor:
    """``-E D(fake)``.

    Lim and Ye 2017 (arXiv 1705.02894), as in Miyato et al. 2018 (arXiv 1802.05957), equation 17.
    ``real_logits`` is not used.
    """
    _check_unused("hinge", real_logits)
    return _mean(-fake for fake in _read("hinge", "fake_logits", fake_logits))


hinge = Loss(_hinge_discriminator, _hinge_generator)


# --- Wasserstein -------------------------------------------------------------------------------


def _wasserstein_discriminator(real_logits: Logits, fake_logits: Logits) -> Tensor:
    """``E D(fake) - E D(real)``.

    WGAN, Arjovsky et al. 2017 (arXiv 1701.07875), equations 2 and 3. Over critics of Lipschitz
    constant 1 its best value is minus the Wasserstein-1 distance; without such a constraint (a
    gradient penalty, spectral normalization, clipped weights) it has no lower bound.
    """
    reals, fakes = _read_both("wasserstein", real_logits, fake_logits)
    return _mean(fakes) - _mean(reals)


def _wasserstein_generator(fake_logits: Logits, real_logits: Logits | None = None) -> Tensor:
    """``-E D(fake)``.

    WGAN, Arjovsky et al. 2017 (arXiv 1701.07875), theorem 3. ``real_logits`` is not used.
    """
    _check_unused("wasserstein", real_logits)
    return _mean(-fake for fake in _read("wasserstein", "fake_logits", fake_logits))


wasserstein = Loss(_wasserstein_discriminator, _wasserstein_generator)


# --- relativistic ------------------------------------------------------------------------------


def _relativistic_discriminator(real_logits: Logits, fake_logits: Logits) -> Tensor:
    """``E softplus(-(D(real) - D(fake)))``, every real logit paired with the fake in its place.

    RpGAN, Jolicoeur-Martineau 2018 (arXiv 1807.00734), as in R3GAN, Huang et al. 2025 (arXiv
    2501.05441), equation 2. It sees differences of logits only: adding a number to all changes
    nothing. log 2 minus its best value is a divergence of the two distributions
    (Jolicoeur-Martineau 2019, arXiv 1901.02474).

    Raises:
        ValueError: also where the shapes of real and fake logits differ.
    """
    pairs = _read_pairs(real_logits, fake_logits)
    return _mean(-F.logsigmoid(real - fake) for real, fake in pairs)


def _relativistic_generator(fake_logits: Logits, real_logits: Logits | None = None) -> Tensor:
    """``E softplus(-(D(fake) - D(real)))``, over the pairs of the discriminator's loss.

    R3GAN, Huang et al. 2025 (arXiv 2501.05441), equation 2.

    Raises:
        ValueError: also without real logits, and where the shapes of real and fake logits differ.
    """
    if real_logits is None:
        raise ValueError(
            "relativistic: expected the logits of real samples as well, got none; call "
            "generator(fake_logits, real_logits)"
        )
    pairs = _read_pairs(real_logits, fake_logits)
    return _mean(-F.logsigmoid(fake - real) for real, fake in pairs)


relativistic = Loss(_relativistic_discriminator, _relativistic_generator)


# --- shared helpers ----------------------------------------------------------------------------


def _cross_entropy(
    op: str,
    real_logits: Logits,
    fake_logits: Logits,
    real_label: Label,
    generator: torch.Generator | None,
) -> Tensor:
    reals, fakes = _read_both(op, real_logits, fake_logits)
    labels = _labels(op, reals, real_label, generator)
    real_terms = (
        F.binary_cross_entropy_with_logits(real, label, reduction="none")
        for real, label in zip(reals, labels, strict=True)
    )
    # logsigmoid, unlike softplus, is exact everywhere: that one is linear above 20.
    return _mean(real_terms) + _mean(-F.logsigmoid(-fake) for fake in fakes)


def _mean(terms: Iterable[Tensor]) -> Tensor:
    first, *others = (term.mean() for term in terms)
    return sum(others, first)


def _labels(
    op: str, reals: list[Tensor], real_label: Label, generator: torch.Generator | None
) -> list[Tensor]:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"{op}: expected generator to be a torch.Generator or None, got {kind(generator)}; the "
            "logits of the generator's samples are fake_logits"
        )
    check_generator(op, generator, reals[0].device)
    if not isinstance(real_label, tuple):
        check_number(op, "real_label", real_label)
        return [torch.full_like(real, real_label) for real in reals]
    if len(real_label) != 2:
        raise ValueError(
            f"{op}: expected real_label to be a number or (low, high), got {real_label}"
        )
    low, high = real_label
    for bound in real_label:
        check_number(op, "both numbers of real_label", bound)
    if low > high:
        raise ValueError(
            f"{op}: expected real_label to be (low, high), got {real_label}; swap the two"
        )
    return [torch.empty_like(real).uniform_(low, high, generator=generator) for real in reals]


def _read(op: str, name: str, logits: Logits) -> list[Tensor]:
    """The logits of every critic, checked, of the dtype to compute in."""
    cure = "pass only the logits, one tensor a critic"
    tensors = listed_scores(
        op,
        f"{name} to be a tensor or a list of tensors",
        logits,
        cure,
        empty=f"{name} of at least one critic",
    )
    for x in tensors:
        check_floats(op, name, x)
        if x.numel() == 0:
            raise ValueError(
                f"{op}: expected {name} with elements to average, got the empty shape "
                f"{tuple(x.shape)}"
            )
    check_alike(op, name, tensors, cure, AVERAGED)
    return [x if x.dtype == torch.float64 else x.float() for x in tensors]


def _check_unused(op: str, real_logits: Logits | None) -> None:
    """Refuse what other losses would refuse, so that one can stand in for another."""
    if real_logits is not None:
        _read(op, "real_logits", real_logits)


def _read_both(
    op: str, real_logits: Logits, fake_logits: Logits
) -> tuple[list[Tensor], list[Tensor]]:
    reals = _read(op, "real_logits", real_logits)
    fakes = _read(op, "fake_logits", fake_logits)
    if len(reals) != len(fakes):
        raise ValueError(
            f"{op}: expected real_logits and fake_logits of as many critics, got {len(reals)} and "
            f"{len(fakes)}; pass the outputs of the same discriminator"
        )
    return reals, fakes


def _read_pairs(real_logits: Logits, fake_logits: Logits) -> list[tuple[Tensor, Tensor]]:
    reals, fakes = _read_both("relativistic", real_logits, fake_logits)
    pairs = list(zip(reals, fakes, strict=True))
    for real, fake in pairs:
        if real.shape != fake.shape:
            raise ValueError(
                "relativistic: expected real_logits and fake_logits of the same shape, to pair "
                f"them, got {tuple(real.shape)} and {tuple(fake.shape)}; use as many fake samples "
                "as real ones"
            )
    return pairs


__all__ = [
    "Loss",
    "hinge",
    "least_squares",
    "minimax",
    "non_saturating",
    "relativistic",
    "wasserstein",
]
