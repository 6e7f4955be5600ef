"""The adversarial losses, each a pair for the two networks: ``d_loss, g_loss = losses.hinge``.

Every loss is called alike, so that one can stand in for another::

    losses.hinge.discriminator(real_logits, fake_logits)
    losses.hinge.generator(fake_logits, real_logits)

Those that are a term of real logits plus one of fake logits have the terms as well, their sides,
for trainers that go backward for one at a time; ``discriminator`` is the sum of the two::

    losses.hinge.real(D(real)).backward()
    losses.hinge.fake(D(fake)).backward()

Logits are what the discriminator gives, before any sigmoid: a tensor of any shape, of which the
mean is taken (over patches, too), or a list of tensors, one of each critic of a multi-scale
discriminator. The means of several are added up; ``scales="mean"`` averages them (SPADE, BasicSR).
``weight`` is a factor of the result, a number or a tensor of one element: 0.5 is what VQGAN and
StudioGAN's least squares have before the loss of the discriminator. The result is a scalar, to be
minimized: float64 for float64 logits, float32 for every other floating-point dtype and within
autocast, computed in it. Differentiable to any order. Deterministic, but for random labels, which
come from a generator. Nothing waits for the device. Means are of the logits of this process. ``D``
below are the logits, ``s`` the sigmoid, ``E`` the mean.

All raise TypeError for logits that are not floating-point tensors or lists of them, and ValueError
for an empty tensor, an empty list, lists of different lengths, and lists whose shapes can only be
those of logits and features (see :mod:`gankernels.penalties`).

Beside them are what generators' losses are made of: :func:`feature_matching`, :func:`top_k`, and
:func:`adaptive_weight`, which balances the adversarial loss against a reconstruction.
"""

from typing import TYPE_CHECKING, Any

from gankernels.losses.balance import adaptive_weight
from gankernels.losses.features import feature_matching, top_k
from gankernels.losses.pairs import (
    Loss,
    hinge,
    least_squares,
    minimax,
    non_saturating,
    relativistic,
    relativistic_average,
    wasserstein,
)

__all__ = [
    "Loss",
    "adaptive_weight",
    "feature_matching",
    "hinge",
    "least_squares",
    "minimax",
    "non_saturating",
    "relativistic",
    "relativistic_average",
    "top_k",
    "wasserstein",
]

#: What trainers call them.
_OTHERS = {
    **dict.fromkeys(("wgan", "wgan_gp"), "wasserstein"),
    **dict.fromkeys(("lsgan", "mse", "l2"), "least_squares"),
    **dict.fromkeys(("bce", "gan", "ns", "nsgan", "softplus", "vanilla"), "non_saturating"),
    **dict.fromkeys(("saturating", "mm"), "minimax"),
    **dict.fromkeys(("rgan", "rpgan", "rsgan"), "relativistic"),
    **dict.fromkeys(("ragan", "rasgan"), "relativistic_average"),
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        meant = _OTHERS.get(name.lower())
        cure = f"losses.{meant} is meant" if meant else f"there are {', '.join(__all__)}"
        raise AttributeError(f"losses: expected the name of a loss, got {name!r}; {cure}")
