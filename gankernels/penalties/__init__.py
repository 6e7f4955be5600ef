"""The gradient penalties of the papers, each as one function.

All take gradients of the critic's summed scores with respect to its inputs, sample by sample, with
:func:`gankernels.ops.gradient_penalty` behind them. A critic ``D`` is any callable. It is called as
``D(x, *args, **kwargs)`` with whatever positional arguments follow the samples and whatever keyword
arguments the penalty does not know, labels for instance. Numbers among the positional ones, and
settings of other penalties (``gamma`` where ``weight`` is meant) or misspelt ones, are refused,
unless ``D`` names such a keyword itself; ``functools.partial(D, gamma=...)`` passes anything on.
Samples are a tensor (B, ...), or a list of them, which ``D`` then gets as a list, with one norm
over all. ``D`` gets copies, which its first layer may work on in place.

Scores are a tensor whose first dimension is B (one score a sample, patch maps), or a flat list or
tuple of these (several scales); they are added up, never averaged. Where ``D`` returns more than
scores, ``scores`` says which they are: an index, a key or attribute, or a function of what ``D``
returns; a penalty that is given the results takes ``D(x)[0]``. Without it, everything nested, keyed
or named is refused, and a list whose shapes can only be those of scores and features: a map of 8
and more channels beside one with fewer, or beside one score a sample. Two vectors, (B, 1) and
(B, 512), may be flattened maps of two scales; these only get a warning.

Where a score belongs to several rows of the samples, ``groups`` says to which: a number of
consecutive rows (CTGAN's packs of 10), or a tensor of integers (B,), the index of the score of each
row (the nodes of a batch of graphs). Norms are then over all rows of a score, means over scores;
penalties between real and generated samples draw one coefficient a group. Scores of several groups
have as first dimension the number of groups.

``inv_scale`` is for ``torch.amp.GradScaler``: one element, the reciprocal of its scale, which comes
without a synchronization: ``inv_scale = 1 / scaler.scale(torch.ones((), device=device))``. The
gradients are then taken of the scaled scores, which float16 can hold, and unscaled in the penalty.
Scale the loss as always: ``scaler.scale(loss + penalty).backward()``. A scale above 65504, such as
GradScaler's first, is inf in float16 scores: that step is skipped, the scale halved.

All results are scalars, float32 (float64 for float64 gradients), differentiable twice in the
critic's parameters, and deterministic for given random numbers. Under ``torch.no_grad()`` and
``torch.inference_mode()`` the same number comes without a graph. Samples made here are detached: no
gradient reaches a generator. Nothing but :func:`check_independent_samples` synchronizes with a
device.

Penalties that call ``D`` twice, the approximate ones, compare the same function at two points: u
and v of spectral normalization in training mode, torch's, ours or your own (all floating-point
buffers but the running statistics of batch and instance normalization, and parameters without a
gradient that are vectors), move once, in the first pass. They are found where ``D`` is a module, or
a lambda, partial or method that mentions it. Random layers, dropout for instance, draw anew in each
pass, and the difference measures that, too: leave them out, or in evaluation mode.

Compiled, a penalty needs ``torch._dynamo.config.trace_autograd_ops = True``, the gradients of the
loss taken in the same compiled function by ``torch.autograd.grad``, and ``generator=None``, since
torch traces no generator; otherwise it runs eagerly, or raises. A critic that is compiled by itself
goes only with the approximate penalties: torch differentiates it once.

With ``DistributedDataParallel``, call the wrapped critic and go backward once from loss + penalty.
A penalty alone leaves some parameters without a gradient, the last bias for one, which the next
forward pass refuses; where it has to go backward alone, add ``0 * logits.sum()``.
``static_graph=True`` is refused in the first pass, where it would leave gradients unreduced.
"""

from gankernels.penalties.approximate import approx_r1_penalty, approx_r2_penalty
from gankernels.penalties.gradients import (
    dragan_penalty,
    r1_penalty,
    r1_r2_penalty,
    r2_penalty,
    roth_penalty,
    wgan_gp_penalty,
    wgan_lp_penalty,
    zero_centered_penalty,
)
from gankernels.penalties.independence import check_independent_samples
from gankernels.penalties.parameters import consensus_penalty, spectral_norm_regularization

__all__ = [
    "approx_r1_penalty",
    "approx_r2_penalty",
    "check_independent_samples",
    "consensus_penalty",
    "dragan_penalty",
    "r1_penalty",
    "r1_r2_penalty",
    "r2_penalty",
    "roth_penalty",
    "spectral_norm_regularization",
    "wgan_gp_penalty",
    "wgan_lp_penalty",
    "zero_centered_penalty",
]
