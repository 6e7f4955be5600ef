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
critic's parameters (once by methods without second derivatives, below, which hold directions
constant), and deterministic for given random numbers. Under ``torch.no_grad()`` and
``torch.inference_mode()`` the same number comes without a graph. Samples made here are detached: no
gradient reaches a generator. Nothing synchronizes with a device but
:func:`check_independent_samples`, and differences, at the first, second, fourth, eighth ... call of
a critic, to warn where they are not the gradient's norm.

``method`` says how norms are found. By ``"double_backward"``, the default, the penalty is exact,
and its gradient takes a second derivative of the critic. Fused attention
(``scaled_dot_product_attention``), critics that are compiled by themselves and others have none;
the other two methods need first derivatives only, and have the same weights and centers:

- ``"difference"``: the value is exact, from the gradients themselves; its gradient is that of
  differences. With g the gradient at a sample, and its direction d = g / ||g|| held constant,
  ``(D(x + h d) - D(x - h d)) / (2 h)`` has the derivative of ||g|| in the parameters, up to O(h^2)
  (finite differences along the gradient: Finlay & Oberman 2019, arXiv 1905.11468). Three passes of
  the critic, two of them with a graph. Where logits are given, ``(D(x + h d) - D(x)) / h``, one
  pass more, up to O(h). Piecewise linear critics (ReLU, LeakyReLU) have kinks between the points,
  which are in the difference and not in the second derivative; prefer the exact form there. So is
  what ``detach`` and ``no_grad`` within the critic hide from gradients.
- ``"noise"``: ``(D(x + sigma n) - D(x)) / sigma`` with n ~ N(0, I), whose square is ||g||^2 in the
  mean (Lin et al. 2025, arXiv 2501.08316). Right in the mean only: the gradient of one batch is
  mostly noise. With a center c, ``q^2 - 2 c sqrt(pi / 2) |q| + c^2`` for that q, which may be
  negative. The cheapest: two passes.

``sigma`` is by how much an element of a sample changes, in the root mean square, by both: ``h =
sigma sqrt(n)`` for samples of n elements. 0.01 suits float32 and samples whose standard deviation
is about 1, as of images in [-1, 1]; for others take a hundredth of theirs. Where scores are
bfloat16, under autocast too, 0.03 is better. The points are computed in float32 and have the dtype
of the samples.

``heads="mean"``, by noise, takes the mean over all scores of a sample of the penalty of each, in
place of the penalty of their sum. ``first`` is how many samples get the penalty, the first ones,
and what else goes to the critic of as many rows is cut likewise. ``sample_weight``, (B,), is a
factor for each; means are over B. ``reduction="none"`` gives the (B,) penalties,
``return_raw=True`` a pair, of the penalty and, detached, what its weight is a factor of. Weights
may be tensors of one element, on the device. Inputs that the critic ignores are refused, or, with
``allow_unused=True``, have the gradient 0.

Penalties that call ``D`` several times compare the same function at several points: u and v of
spectral normalization in training mode, torch's, ours or your own (all buffers but the running
statistics of batch and instance normalization, and parameters without a gradient that are vectors),
move once, in the first pass. They are found where ``D`` is a module, or a lambda,
partial or method that mentions it. Torch's own random numbers, of dropout for instance, are the
same in all passes; within a CUDA graph they are drawn anew. Where logits are given, the first pass
was the caller's, which no other can repeat: a critic that moves or draws is warned of. Other
state, such as attributes that are no buffers and generators of your own, is not seen, but by what
it does to differences.

To compile a step with a penalty, take :func:`gankernels.compile_step`. By ``torch.compile`` itself
it needs ``torch._dynamo.config.trace_autograd_ops = True``, the gradients of the loss taken in the
same compiled function by ``torch.autograd.grad``, and ``generator=None``, since torch traces no
generator; otherwise it runs eagerly, or raises. A critic that is compiled by
itself, which torch differentiates once, goes only with ``method="difference"`` or ``"noise"``;
beside its logits differences may take one pass more, as torch frees what its backward pass has
used (unless ``torch._functorch.config.donated_buffer`` was False when it was compiled).

With ``DistributedDataParallel``, call the wrapped critic and go backward once from loss + penalty.
A penalty alone leaves some parameters without a gradient, the last bias for one, which the next
forward pass refuses; where it has to go backward alone, add ``0 * logits.sum()``.
``static_graph=True`` is refused in the first pass, where it would leave gradients unreduced. Under
FSDP2 take ``method="difference"`` or ``"noise"``. The exact form needs weights that stay gathered,
and is refused otherwise: ``D.set_reshard_after_backward(False)``, and after the optimizer's step
``module.reshard()`` of every FSDP module of D, or its next forward has the old weights. Under
tensor parallelism the exact form is refused, as torch loses second derivatives there.
"""

from gankernels.penalties.approximate import approx_r1_penalty, approx_r2_penalty
from gankernels.penalties.gradients import (
    dragan_penalty,
    max_gradient_penalty,
    r1_penalty,
    r1_r2_penalty,
    r2_penalty,
    roth_penalty,
    wgan_gp_penalty,
    wgan_lp_penalty,
    zero_centered_penalty,
)
from gankernels.penalties.independence import check_independent_samples
from gankernels.penalties.parameters import (
    consensus_penalty,
    orthogonal_regularization,
    spectral_norm_regularization,
)

__all__ = [
    "approx_r1_penalty",
    "approx_r2_penalty",
    "check_independent_samples",
    "consensus_penalty",
    "dragan_penalty",
    "max_gradient_penalty",
    "orthogonal_regularization",
    "r1_penalty",
    "r1_r2_penalty",
    "r2_penalty",
    "roth_penalty",
    "spectral_norm_regularization",
    "wgan_gp_penalty",
    "wgan_lp_penalty",
    "zero_centered_penalty",
]
