"""The losses of the two networks. The module's text says what is common to all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F

from gankernels._checks import check_number
from gankernels._critics.norms import Weight
from gankernels.losses._logits import (
    Label,
    Logits,
    Scales,
    check_labels,
    check_order,
    check_reduction,
    draw_labels,
    read,
    read_both,
    reduce_terms,
)


class Loss:
    """The losses of the two networks; ``d_loss, g_loss = losses.hinge`` has both functions.

    A subclass with these two methods is a loss of your own.
    """

    discriminator: Callable[..., Tensor]
    generator: Callable[..., Tensor]

    def __iter__(self) -> Iterator[Callable[..., Tensor]]:
        return iter((self.discriminator, self.generator))


class _Published(Loss):
    """A loss of this module, which is pickled and copied by its name."""

    _op: str

    def __reduce__(self) -> str:
        return self._op

    def __repr__(self) -> str:
        return f"losses.{self._op}"

    def __call__(self, *_: object, **__: object) -> NoReturn:
        """There is none: TypeError."""
        raise TypeError(
            f"{self._op}: expected a call of one of its two losses, got one of both; call "
            f"losses.{self._op}.discriminator(real_logits, fake_logits) or "
            f"losses.{self._op}.generator(fake_logits)"
        )


# --- losses with sides ---------------------------------------------------------------------------


class _Sided(_Published):
    """A term of real logits and one of fake logits, for the discriminator to add up."""

    #: Of a tensor of logits, elementwise; of those with labels, and of their targets.
    _real: Callable[..., Tensor]
    _fake: Callable[..., Tensor]
    #: What the generator minimizes at its samples.
    _wanted: Callable[..., Tensor]

    def discriminator(
        self,
        real_logits: Logits,
        fake_logits: Logits,
        *,
        scales: Scales = "sum",
        weight: Weight = 1.0,
    ) -> Tensor:
        """The loss of the discriminator, exactly ``real(real_logits) + fake(fake_logits)``.

        Args:
            real_logits: the discriminator's output on real samples.
            fake_logits: on generated ones; needs no shape in common with real_logits.
            scales: what becomes of the means of several critics, ``"sum"`` or ``"mean"``.
            weight: a factor, not negative.

        Raises:
            TypeError, ValueError: if an argument has an unsupported type or value.
        """
        check_reduction(self._op, scales, weight)
        reals, fakes = read_both(self._op, real_logits, fake_logits)
        real_terms = [self._real(x) for x in reals]
        fake_terms = [self._fake(x) for x in fakes]
        return reduce_terms(real_terms, scales, weight) + reduce_terms(fake_terms, scales, weight)

    def real(self, real_logits: Logits, *, scales: Scales = "sum", weight: Weight = 1.0) -> Tensor:
        """The term of real logits in :meth:`discriminator`, with its arguments and errors."""
        check_reduction(self._op, scales, weight)
        reals = read(self._op, "real_logits", real_logits)
        return reduce_terms([self._real(x) for x in reals], scales, weight)

    def fake(self, fake_logits: Logits, *, scales: Scales = "sum", weight: Weight = 1.0) -> Tensor:
        """The term of fake logits in :meth:`discriminator`, with its arguments and errors."""
        check_reduction(self._op, scales, weight)
        fakes = read(self._op, "fake_logits", fake_logits)
        return reduce_terms([self._fake(x) for x in fakes], scales, weight)

    def generator(
        self,
        fake_logits: Logits,
        real_logits: Logits | None = None,
        *,
        scales: Scales = "sum",
        weight: Weight = 1.0,
    ) -> Tensor:
        """The loss of the generator. ``real_logits`` is not used.

        Args:
            fake_logits: the discriminator's output on generated samples.
            real_logits: for losses that compare with it.
            scales: what becomes of the means of several critics, ``"sum"`` or ``"mean"``.
            weight: a factor, not negative.

        Raises:
            TypeError, ValueError: if an argument has an unsupported type or value.
        """
        check_reduction(self._op, scales, weight)
        fakes = self._read_generated(fake_logits, real_logits)
        return reduce_terms([self._wanted(x) for x in fakes], scales, weight)

    def _read_generated(self, fake_logits: Logits, real_logits: Logits | None) -> list[Tensor]:
        # Real logits are not used, but refused like those of other losses.
        reals = [] if real_logits is None else read(self._op, "real_logits", real_logits)
        fakes = read(self._op, "fake_logits", fake_logits)
        check_order(self._op, fakes, reals)
        return fakes


class _Labeled(_Sided):
    """A loss whose terms have targets; ``_signed`` ones may be below 0."""

    _signed = False

    def discriminator(
        self,
        real_logits: Logits,
        fake_logits: Logits,
        *,
        real_label: Label = 1.0,
        fake_label: Label = 0.0,
        generator: torch.Generator | None = None,
        scales: Scales = "sum",
        weight: Weight = 1.0,
    ) -> Tensor:
        """The loss of the discriminator, exactly ``real(real_logits) + fake(fake_logits)``.

        Args:
            real_logits: the discriminator's output on real samples.
            fake_logits: on generated ones; needs no shape in common with real_logits.
            real_label: the target of the real ones. 0.9 is one-sided label smoothing (Salimans et
                al. 2016, arXiv 1606.03498, section 3.4); ``(low, high)`` draws a target for every
                logit, uniformly, for instance ``(0.9, 1.1)``.
            fake_label: the target of the fake ones, likewise. The paper on smoothing leaves it at
                0. Cross entropies with a target outside [0, 1] have no lower bound: they fall
                without end as the logits grow. Least squares takes any finite targets.
            generator: of the random labels, real ones first, on the device of the logits; by
                default torch's own.
            scales: what becomes of the means of several critics, ``"sum"`` or ``"mean"``.
            weight: a factor, not negative.

        Raises:
            TypeError: also for a label that is not a number or two, or another kind of generator.
            ValueError: also for a label that is not finite, ``low`` above ``high``, and, of cross
                entropies, a label below 0.
        """
        check_reduction(self._op, scales, weight)
        reals, fakes = read_both(self._op, real_logits, fake_logits)
        self._check("real_label", real_label, generator, reals)
        self._check("fake_label", fake_label, generator, fakes)
        real_terms = self._terms(self._real, reals, real_label, generator)
        fake_terms = self._terms(self._fake, fakes, fake_label, generator)
        return reduce_terms(real_terms, scales, weight) + reduce_terms(fake_terms, scales, weight)

    def real(
        self,
        real_logits: Logits,
        *,
        real_label: Label = 1.0,
        generator: torch.Generator | None = None,
        scales: Scales = "sum",
        weight: Weight = 1.0,
    ) -> Tensor:
        """The term of real logits in :meth:`discriminator`, with its arguments and errors."""
        check_reduction(self._op, scales, weight)
        reals = read(self._op, "real_logits", real_logits)
        self._check("real_label", real_label, generator, reals)
        return reduce_terms(self._terms(self._real, reals, real_label, generator), scales, weight)

    def fake(
        self,
        fake_logits: Logits,
        *,
        fake_label: Label = 0.0,
        generator: torch.Generator | None = None,
        scales: Scales = "sum",
        weight: Weight = 1.0,
    ) -> Tensor:
        """The term of fake logits in :meth:`discriminator`, with its arguments and errors."""
        check_reduction(self._op, scales, weight)
        fakes = read(self._op, "fake_logits", fake_logits)
        self._check("fake_label", fake_label, generator, fakes)
        return reduce_terms(self._terms(self._fake, fakes, fake_label, generator), scales, weight)

    def _check(
        self, name: str, label: Label, generator: torch.Generator | None, logits: list[Tensor]
    ) -> None:
        check_labels(self._op, name, label, signed=self._signed, generator=generator, logits=logits)

    def _terms(
        self,
        term: Callable[..., Tensor],
        logits: list[Tensor],
        label: Label,
        generator: torch.Generator | None,
    ) -> list[Tensor]:
        labels = draw_labels(logits, label, generator)
        return [term(x, y) for x, y in zip(logits, labels, strict=True)]


class _Minimax(_Labeled):
    """``-E log s(D(real)) - E log(1 - s(D(fake)))`` against ``E log(1 - s(D(fake)))``.

    Goodfellow et al. 2014 (arXiv 1406.2661), equation 1: the binary cross-entropy of real and fake.
    Its best value is log 4 - 2 JS, of the Jensen-Shannon divergence of the two distributions, which
    the generator makes smaller. The generator's loss saturates: no gradient where the fakes are
    found out.
    """

    _op = "minimax"

    def _real(self, x: Tensor, label: float | Tensor) -> Tensor:
        return _cross_entropy(x, label)

    def _fake(self, x: Tensor, label: float | Tensor) -> Tensor:
        return _cross_entropy(x, label)

    def _wanted(self, x: Tensor) -> Tensor:
        return F.logsigmoid(-x)


class _NonSaturating(_Minimax):
    """The discriminator of ``minimax`` against ``-E log s(D(fake)) = E softplus(-D(fake))``.

    Goodfellow et al. 2014 (arXiv 1406.2661), section 3: with a gradient where the fakes are found
    out. Against the best discriminator the generator's gradient is that of KL(fake || real) - 2 JS
    (Arjovsky and Bottou 2017, arXiv 1701.04862, theorem 2.5).
    """

    _op = "non_saturating"

    def _wanted(self, x: Tensor) -> Tensor:
        return -F.logsigmoid(x)


def _cross_entropy(x: Tensor, label: float | Tensor) -> Tensor:
    """``-label log s(x) - (1 - label) log s(-x)``."""
    # logsigmoid, unlike softplus, is exact everywhere: that one is linear above 20. A term times 0
    # would be NaN at infinite logits.
    if not isinstance(label, Tensor):
        if label == 1:
            return -F.logsigmoid(x)
        if label == 0:
            return -F.logsigmoid(-x)
    return -label * F.logsigmoid(x) - (1 - label) * F.logsigmoid(-x)


class _LeastSquares(_Labeled):
    """``E (D(real) - 1)^2 + E D(fake)^2`` against ``E (D(fake) - 1)^2``.

    LSGAN, Mao et al. 2017 (arXiv 1611.04076), equation 9, without the paper's factors of 1/2. The
    paper's Pearson chi^2 divergence, of real + fake and 2 fake, belongs to its equation 8, of
    ``real_label=1``, ``fake_label=-1`` and the generator's ``label=0``. The discriminator of AMP
    (Peng et al. 2021, arXiv 2104.02180) has 1 and -1 as well.
    """

    _op = "least_squares"
    _signed = True

    def _real(self, x: Tensor, label: float | Tensor) -> Tensor:
        return (x - label).square()

    _fake = _real

    def generator(
        self,
        fake_logits: Logits,
        real_logits: Logits | None = None,
        *,
        label: float = 1.0,
        scales: Scales = "sum",
        weight: Weight = 1.0,
    ) -> Tensor:
        """``E (D(fake) - label)^2``. ``real_logits`` is not used.

        Args:
            fake_logits: the discriminator's output on generated samples.
            real_logits: for losses that compare with it.
            label: the target of the generator, any finite number.
            scales: what becomes of the means of several critics, ``"sum"`` or ``"mean"``.
            weight: a factor, not negative.

        Raises:
            TypeError, ValueError: if an argument has an unsupported type or value.
        """
        check_reduction(self._op, scales, weight)
        check_number(self._op, "label", label, signed=True)
        fakes = self._read_generated(fake_logits, real_logits)
        return reduce_terms([(x - label).square() for x in fakes], scales, weight)


class _Hinge(_Sided):
    """``E relu(1 - D(real)) + E relu(1 + D(fake))`` against ``-E D(fake)``.

    Lim and Ye 2017 (arXiv 1705.02894), as in Miyato et al. 2018 (arXiv 1802.05957), equations 16
    and 17. Its best value is 2 - 2 TV, of the total variation distance of the two distributions.
    Logits beyond the margin of 1 have no gradient.
    """

    _op = "hinge"

    def _real(self, x: Tensor) -> Tensor:
        return F.relu(1 - x)

    def _fake(self, x: Tensor) -> Tensor:
        return F.relu(1 + x)

    def _wanted(self, x: Tensor) -> Tensor:
        return -x


class _Wasserstein(_Sided):
    """``E D(fake) - E D(real)`` against ``-E D(fake)``.

    WGAN, Arjovsky et al. 2017 (arXiv 1701.07875), equations 2 and 3, and theorem 3. Over critics of
    Lipschitz constant 1 its best value is minus the Wasserstein-1 distance; without such a
    constraint (a gradient penalty, spectral normalization, clipped weights) it has no lower bound.
    """

    _op = "wasserstein"

    def _real(self, x: Tensor) -> Tensor:
        return -x

    def _fake(self, x: Tensor) -> Tensor:
        return x

    def _wanted(self, x: Tensor) -> Tensor:
        return -x


# --- losses that compare -------------------------------------------------------------------------


class _Comparing(_Published):
    """A loss of real logits beside fake ones, for which it has no sides."""

    #: Small where logits of the first tensor are above those of the second: a tensor of terms.
    _compare: Callable[..., Tensor]

    def discriminator(
        self,
        real_logits: Logits,
        fake_logits: Logits,
        *,
        scales: Scales = "sum",
        weight: Weight = 1.0,
    ) -> Tensor:
        """The loss of the discriminator.

        Args:
            real_logits: the discriminator's output on real samples.
            fake_logits: on generated ones.
            scales: what becomes of the means of several critics, ``"sum"`` or ``"mean"``.
            weight: a factor, not negative.

        Raises:
            TypeError, ValueError: if an argument has an unsupported type or value; of
                ``relativistic`` also where the shapes of real and fake logits differ.
        """
        check_reduction(self._op, scales, weight)
        pairs = self._read_pairs(real_logits, fake_logits)
        return reduce_terms([self._compare(real, fake) for real, fake in pairs], scales, weight)

    def generator(
        self,
        fake_logits: Logits,
        real_logits: Logits | None = None,
        *,
        scales: Scales = "sum",
        weight: Weight = 1.0,
    ) -> Tensor:
        """The loss of the generator: that of the discriminator with real and fake exchanged.

        The arguments and errors are those of :meth:`discriminator`; ValueError also without real
        logits.
        """
        check_reduction(self._op, scales, weight)
        if real_logits is None:
            raise ValueError(
                f"{self._op}: expected the logits of real samples as well, got none; call "
                "generator(fake_logits, real_logits)"
            )
        pairs = self._read_pairs(real_logits, fake_logits)
        check_order(self._op, [fake for _, fake in pairs], [real for real, _ in pairs])
        return reduce_terms([self._compare(fake, real) for real, fake in pairs], scales, weight)

    @property
    def real(self) -> NoReturn:
        """There is none: AttributeError."""
        raise self._no_side("real")

    @property
    def fake(self) -> NoReturn:
        """There is none: AttributeError."""
        raise self._no_side("fake")

    def _no_side(self, side: str) -> AttributeError:
        return AttributeError(
            f"{self._op}: expected a loss with sides, got .{side} of one that compares real with "
            "fake logits; call discriminator(real_logits, fake_logits). To go backward for one "
            "side at a time, detach the logits of the other"
        )

    def _read_pairs(self, real_logits: Logits, fake_logits: Logits) -> list[tuple[Tensor, Tensor]]:
        pairs = list(zip(*read_both(self._op, real_logits, fake_logits), strict=True))
        for real, fake in pairs:
            if real.device != fake.device:
                raise ValueError(
                    f"{self._op}: expected real_logits and fake_logits on one device, to compare "
                    f"them, got {real.device} and {fake.device}"
                )
        return pairs


class _Relativistic(_Comparing):
    """``E softplus(-(D(real) - D(fake)))``, every real logit paired with the fake in its place.

    RpGAN, Jolicoeur-Martineau 2018 (arXiv 1807.00734), as in R3GAN, Huang et al. 2025 (arXiv
    2501.05441), equation 2; the generator's is ``E softplus(-(D(fake) - D(real)))`` over the same
    pairs. It sees differences of logits only: adding a number to all changes nothing. log 2 minus
    its best value is a divergence of the two distributions (Jolicoeur-Martineau 2019, arXiv
    1901.02474).
    """

    _op = "relativistic"

    def _compare(self, above: Tensor, below: Tensor) -> Tensor:
        return -F.logsigmoid(above - below)

    def _read_pairs(self, real_logits: Logits, fake_logits: Logits) -> list[tuple[Tensor, Tensor]]:
        pairs = super()._read_pairs(real_logits, fake_logits)
        for real, fake in pairs:
            if real.shape != fake.shape:
                raise ValueError(
                    f"{self._op}: expected real_logits and fake_logits of the same shape, to pair "
                    f"them, got {tuple(real.shape)} and {tuple(fake.shape)}; use as many fake "
                    "samples as real ones"
                )
        return pairs


class _RelativisticAverage(_Comparing):
    """``-E log s(D(real) - E D(fake)) - E log(1 - s(D(fake) - E D(real)))``.

    RaGAN, Jolicoeur-Martineau 2018 (arXiv 1807.00734), in the standard form RaSGAN, as in ESRGAN,
    Wang et al. 2018 (arXiv 1809.00219), equations 1 and 2; the generator's is ``-E log s(D(fake) -
    E D(real)) - E log(1 - s(D(real) - E D(fake)))``. The means, through which gradients flow, are
    over all logits of a critic in this process, so batches may differ. Implementations of ESRGAN
    halve both losses: ``weight=0.5``.
    """

    _op = "relativistic_average"

    def _compare(self, above: Tensor, below: Tensor) -> Tensor:
        first = -F.logsigmoid(above - below.mean())
        second = -F.logsigmoid(above.mean() - below)
        return first.mean() + second.mean()


minimax = _Minimax()
non_saturating = _NonSaturating()
least_squares = _LeastSquares()
hinge = _Hinge()
wasserstein = _Wasserstein()
relativistic = _Relativistic()
relativistic_average = _RelativisticAverage()
