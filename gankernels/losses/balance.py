"""The adversarial loss balanced against a reconstruction, by the gradients of both."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from gankernels._checks import check_floats, check_number, check_process_group, describe, kind
from gankernels._critics.gradients import check_inv_scale, check_static_graph
from gankernels._critics.norms import Weight, check_weight
from gankernels._critics.samples import inference_mode, outside_inference, usable
from gankernels._critics.states import graph_nodes
from gankernels._dtypes import accumulation_dtype
from gankernels.losses._logits import weighted


def adaptive_weight(
    nll: Tensor,
    g_loss: Tensor,
    last_layer: Tensor,
    *,
    weight: Weight = 0.8,
    maximum: float = 1e4,
    eps: float = 1e-4,
    inv_scale: Tensor | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """``weight * ||grad nll|| / (||grad g_loss|| + eps)``, gradients in the last layer's weight.

    VQGAN, Esser et al. 2021 (arXiv 2012.09841), equation 7 (there without the factor, and with eps
    1e-6), the ratio clamped to [0, ``maximum``], detached. By it both losses pull equally hard,
    but for ``weight``::

        g_loss = losses.hinge.generator(D(reconstruction))
        factor = losses.adaptive_weight(nll, g_loss, decoder.conv_out.weight)
        (nll + factor * g_loss).backward()

    The graphs of both losses stay for that backward pass, and no ``.grad`` is touched. Gradients go
    from the losses back to the last layer only, not through the rest of the decoder.

    With torch.distributed initialized the gradients are averaged over the processes before their
    norms are taken, as those of the step will be, so that the weight is the same on all: one
    ``all_reduce`` of twice the size of the last layer, which every process has to take part in. A
    decoder in ``DistributedDataParallel(static_graph=True)`` is refused in its first pass:
    gradients would be left unreduced.

    Args:
        nll: the reconstruction loss, perceptual terms included: a scalar with its graph.
        g_loss: the generator's adversarial loss: a scalar with its graph.
        last_layer: the weight of the decoder's last layer, which requires a gradient: the parameter
            itself, of a parametrized layer its original.
        weight: a factor of the result, not negative; a number or a tensor of one element. 0 before
            the discriminator starts.
        maximum: of the ratio; positive.
        eps: positive.
        inv_scale: of a ``torch.amp.GradScaler``, see :mod:`gankernels.penalties`: gradients are
            then taken of scaled losses, which float16 can hold, and unscaled in float32 before
            their norms are.
        process_group: whose processes average; by default all of them.

    Returns:
        A scalar, float32 (float64 for a float64 layer), without a graph. Where a gradient is not
        finite it is NaN with ``inv_scale``, so that the scaler skips the step and lowers its scale,
        and 0 without: the step goes on without the adversarial loss.

    Raises:
        RuntimeError: for that decoder.
        TypeError, ValueError: if an argument has an unsupported type or value, or a loss does not
            depend on ``last_layer``. Losses have no graph under ``torch.no_grad()``: in evaluation
            leave the weight out.

    Deterministic where the backward passes are. Nothing waits for the device. ``torch.compile``
    does not trace it: call it between compiled parts, not within ``fullgraph=True``.
    """
    op = "adaptive_weight"
    check_weight(op, "weight", weight)
    check_number(op, "maximum", maximum, positive=True)
    check_number(op, "eps", eps, positive=True)
    check_process_group(op, process_group)
    if not isinstance(last_layer, Tensor):
        cure = "; pass its .weight" if isinstance(last_layer, torch.nn.Module) else ""
        raise TypeError(f"{op}: expected last_layer to be a tensor, got {kind(last_layer)}{cure}")
    check_floats(op, "last_layer", last_layer)
    if not last_layer.requires_grad or last_layer.numel() == 0:
        raise ValueError(
            f"{op}: expected last_layer to require a gradient, got {describe(last_layer)} that "
            "does not; pass the parameter itself, not frozen"
        )
    for name, loss in (("nll", nll), ("g_loss", g_loss)):
        _check_loss(op, name, loss, last_layer)
    check_inv_scale(op, inv_scale, last_layer.device)
    shared = dist.is_available() and dist.is_initialized()
    if shared and not torch.compiler.is_compiling():  # which traces no graph
        for node in graph_nodes([nll, g_loss]):
            check_static_graph(op, "decoder", node)
    with outside_inference():
        grads = torch.stack(
            [
                _gradient(op, name, loss, last_layer, inv_scale)
                for name, loss in (("nll", nll), ("g_loss", g_loss))
            ]
        )
    with torch.no_grad():
        if shared:
            dist.all_reduce(grads, group=process_group)
            grads = grads / dist.get_world_size(process_group)
        of_nll, of_g = torch.linalg.vector_norm(grads, dim=1).unbind()
        ratio = (of_nll / (of_g + eps)).clamp(0, maximum)
        unusable = 0.0 if inv_scale is None else float("nan")
        finite = of_nll.isfinite() & of_g.isfinite()
        return weighted(torch.where(finite, ratio, unusable), weight)


def _check_loss(op: str, name: str, loss: Tensor, last_layer: Tensor) -> None:
    if not isinstance(loss, Tensor):
        raise TypeError(f"{op}: expected {name} to be a scalar tensor, got {kind(loss)}")
    check_floats(op, name, loss)
    if loss.dim() != 0 or loss.device != last_layer.device:
        raise ValueError(
            f"{op}: expected {name} to be a scalar on {last_layer.device}, where last_layer is, "
            f"got {describe(loss)}"
        )
    if not loss.requires_grad:
        where = "torch.inference_mode()" if inference_mode() else "torch.no_grad()"
        raise ValueError(
            f"{op}: expected {name} with a graph, got a detached one; compute it outside {where}, "
            "and in evaluation do without the weight"
        )


def _gradient(
    op: str, name: str, loss: Tensor, last_layer: Tensor, inv_scale: Tensor | None
) -> Tensor:
    """The unscaled gradient, as a vector in float32 at least."""
    inverse = None if inv_scale is None else usable(inv_scale.detach()).reshape(())
    seed = None if inverse is None else inverse.reciprocal().to(loss)
    (grad,) = torch.autograd.grad(loss, last_layer, seed, retain_graph=True, allow_unused=True)
    if grad is None:
        cure = (
            "do not detach the generated samples, and pass the very parameter that made them (of a "
            "parametrized layer its original)"
        )
        if getattr(last_layer, "placements", None) is not None:
            cure = (
                "under FSDP2 leave the layer to the root, or shard it with "
                "reshard_after_forward=False, and read its .weight after the forward"
            )
        raise ValueError(
            f"{op}: expected {name} to depend on last_layer, got one that does not; {cure}"
        )
    vector = grad.detach().reshape(-1).to(accumulation_dtype(grad.dtype))
    return vector if inverse is None else vector * inverse.to(vector.dtype)
