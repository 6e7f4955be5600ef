"""Regularizers of the generator: path length."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gankernels._checks import check_generator, check_number, check_process_group, drawn_by
from gankernels._critics.gradients import check_gathered, check_inv_scale, check_static_graph
from gankernels._critics.samples import inference_mode
from gankernels._dtypes import accumulation_dtype
from gankernels._warnings import warn
from gankernels.regularizers._arguments import check_samples
from gankernels.regularizers._averages import KeepsAverages, joint_means


class PathLength(KeepsAverages):
    """Path length regularization: a step in the latents changes the image by a fixed length.

    ``weight * E (||J^T y|| - a)^2``, Karras et al. 2019 (arXiv 1912.04958), equation 4, for the
    generator: J is the Jacobian of the images by the latents w, y ~ N(0, I), of which one is drawn
    for every image, and a the moving average of the lengths. As in the published code y is divided
    by the square root of the number of pixels, and where every layer has latents of its own, (B,
    layers, D), the length is the root of the mean over the layers of their squared lengths.

    In training mode :meth:`forward` first moves a, from 0 on, ``a = (1 - decay) * a + decay *
    mean``, and then regularizes towards the moved one, as the published code does. a is a constant
    here, where the published PyTorch code lets the gradient of a step pass through its share of
    ``decay`` in a. In evaluation mode a stays. A batch with infinite or NaN lengths does not move
    it. With torch.distributed initialized the mean is that of all processes' lengths, weighted by
    how many each has: one ``all_reduce`` of 2 numbers, in training mode only; E is of the process's
    own.

    The paper has it in every fourth step, and with half the batch, which is enough. ::

        path_length = LazyRegularizer(PathLength(), interval=4)
        w = mapping(z)  # or any latents that require a gradient
        loss = loss + path_length(synthesis(w), w)

    The buffer ``mean``, a, is of the state_dict, and stays in float32 when the module is converted
    to another dtype. Nothing waits for the GPU.

    Args:
        weight: not negative; 2 is the published one.
        decay: the share of a batch in a, above 0, at most 1.
        process_group: whose processes share a; by default all of them.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """

    _averages = ("mean",)
    mean: Tensor

    def __init__(
        self, weight: float = 2.0, decay: float = 0.01, *, process_group: Any = None
    ) -> None:
        op = "PathLength"
        check_number(op, "weight", weight)
        check_number(op, "decay", decay, positive=True)
        if decay > 1:
            raise ValueError(
                f"{op}: expected decay to be at most 1, got {decay}; it is the share of a batch, "
                "0.01 and not 0.99"
            )
        if decay > 0.5:
            warn(
                f"{op}: expected decay to be the share of a new batch, such as 0.01, got {decay}: "
                "the mean forgets more than it keeps at each step; it is 1 minus the decay of "
                "other averages"
            )
        check_process_group(op, process_group)
        super().__init__()
        self.weight = weight
        self.decay = decay
        self.process_group = process_group
        self.register_buffer("mean", torch.zeros((), dtype=torch.float32))

    def forward(
        self,
        images: Tensor,
        latents: Tensor,
        *,
        generator: torch.Generator | None = None,
        inv_scale: Tensor | None = None,
    ) -> Tensor:
        """The generator's regularizer.

        Args:
            images: (B, C, H, W), or of any other number of dimensions of space, with their graph.
            latents: (B, D) or (B, layers, D), what ``images`` were made of, requiring a gradient.
                Latents (B, D) that the generator itself gives to every layer have one length, of
                the sum of the layers' gradients.
            generator: where y is drawn from; on the device of ``images``.
            inv_scale: for ``torch.amp.GradScaler``, see :mod:`gankernels.penalties`: the gradients
                are taken of scaled images.

        Returns:
            A scalar, float32 (float64 for float64 latents), differentiable as often as the
            generator is, less one; lengths are computed in float32 at least, and one of 0 has the
            gradient 0. Deterministic for given random numbers. The generator cannot be one that is
            compiled by itself, which torch differentiates once. Under FSDP2 its weights have to
            stay gathered: ``G.set_reshard_after_backward(False)``, and ``reshard()`` of each of its
            parts after the step of the optimizer, without which the next forward has the old ones.

        Raises:
            TypeError, ValueError: if an argument has an unsupported type or value, or ``images`` do
                not depend on ``latents``; a has not moved.
        """
        op = "PathLength"
        check_samples(op, "images", images, "(B, C, H, W)", 3)
        check_samples(op, "latents", latents, "(B, D) or (B, layers, D)", 2)
        if latents.dim() > 3 or len(latents) != len(images):
            raise ValueError(
                f"{op}: expected latents of shape (B, D) or (B, layers, D) with B = {len(images)}, "
                f"of the images, got {tuple(latents.shape)}"
            )
        for name, x in (("images", images), ("latents", latents)):
            if x.device != self.mean.device:
                raise ValueError(
                    f"{op}: expected {name} on {self.mean.device}, where the moving average is, "
                    f'got {x.device}; move the module with .to("{x.device}")'
                )
        check_generator(op, generator, images.device)
        check_inv_scale(op, inv_scale, images.device)
        squares = self._gradient(images, latents, generator, inv_scale).square().sum(-1)
        if squares.dim() == 2:
            squares = squares.mean(1)
        # The square root has no derivative at zero; the length there is the constant 0.
        zero = squares == 0
        lengths = torch.where(zero, 0, torch.where(zero, 1, squares).sqrt())
        return self.weight * (lengths - self._moved(lengths)).square().mean()

    def _gradient(
        self, images: Tensor, latents: Tensor, generator: Any, inv_scale: Tensor | None
    ) -> Tensor:
        """J^T y by the latents, in float32 at least."""
        op = "PathLength"
        for name, x, cure in (
            ("latents that require", latents, "call latents.requires_grad_() before the generator"),
            ("images that require", images, "give the images with their graph, not detached"),
        ):
            if not x.requires_grad:
                where = ", outside torch.inference_mode()" if inference_mode() else ""
                raise ValueError(
                    f"{op}: expected {name} a gradient, got ones that do not; {cure}{where}"
                )
        if not torch.compiler.is_compiling():  # grad_fn cannot be traced
            check_static_graph(op, "generator", images.grad_fn)
        if torch.is_grad_enabled():
            check_gathered(op, "generator", [images])
        y = torch.randn(
            images.shape,
            device=images.device,
            dtype=accumulation_dtype(images.dtype),
            **drawn_by(generator),
        )
        y = y / math.sqrt(math.prod(images.shape[2:]))
        if inv_scale is not None:
            y = y / inv_scale.detach().reshape(()).to(y.dtype)
        create_graph = torch.is_grad_enabled()
        (gradient,) = torch.autograd.grad(
            images, latents, y.to(images.dtype), create_graph=create_graph, allow_unused=True
        )
        if gradient is None:
            raise ValueError(
                f"{op}: expected images that depend on latents, got ones that do not; pass the "
                "very tensor that the generator was called with"
            )
        gradient = gradient.to(accumulation_dtype(gradient.dtype))
        if inv_scale is not None:
            gradient = gradient * inv_scale.detach().reshape(()).to(gradient.dtype)
        return gradient

    @torch.no_grad()
    def _moved(self, lengths: Tensor) -> Tensor:
        """a, moved in training mode."""
        if not self.training:
            return self.mean.clone()
        (batch,) = joint_means([lengths], self.process_group)
        moved = torch.where(batch.isfinite(), torch.lerp(self.mean, batch, self.decay), self.mean)
        self.mean.copy_(moved)
        return moved

    def extra_repr(self) -> str:
        return f"weight={self.weight}, decay={self.decay}"
