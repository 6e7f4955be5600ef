"""Layers of the critic that compare the samples of a batch with each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gankernels._checks import check_count, check_number, device_of, kind, raised_in
from gankernels._dtypes import accumulation_dtype
from gankernels.regularizers._arguments import check_samples

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def minibatch_stddev(
    x: Tensor, group_size: int | None = 4, num_channels: int = 1, eps: float = 1e-8
) -> Tensor:
    """Appends channels with the standard deviation over groups of samples.

    Karras et al. 2018 (arXiv 1710.10196), section 3, in groups as in StyleGAN2 (arXiv 1912.04958):
    ``sqrt(var + eps)`` over a group, with var biased, for every channel and pixel; then its mean
    over the pixels and the channels of a part, which every sample of the group gets as a constant
    channel. With n groups of G = min(group_size, B) samples, B = n G, sample i belongs to group
    ``i mod n``, as in the published code of ProGAN, StyleGAN2, StyleGAN2-ADA and StyleGAN3: groups
    go through the whole batch. Real and fake samples in one batch meet in them; score them in calls
    of their own, as those do.

    Args:
        x: (B, C, ...), with any number of dimensions after the channels, or none.
        group_size: samples in a group; None: the whole batch. min(group_size, B) must divide B, in
            the published code likewise.
        num_channels: parts that the channels are cut into, one new channel each; divides C.
        eps: positive; makes gradients finite where a group's samples are equal.

    Returns:
        (B, C + num_channels, ...), of the dtype and memory format of ``x``; float32 between.
        Differentiable to any order, and deterministic.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """
    return _with_stddev("minibatch_stddev", x, group_size, num_channels, eps)


def _with_stddev(
    op: str, x: Tensor, group_size: int | None, num_channels: int, eps: float
) -> Tensor:
    _check_stddev(op, group_size, num_channels, eps)
    check_samples(op, "x", x, "(B, C, ...)", 2)
    batch, channels = x.shape[:2]
    group = batch if group_size is None else min(group_size, batch)
    if batch % group:
        raise ValueError(
            f"{op}: expected a batch of a multiple of group_size={group_size}, got {batch}; drop "
            "the last batch of an epoch, or choose a group_size that divides it"
        )
    if channels % num_channels:
        raise ValueError(
            f"{op}: expected num_channels to divide the channels of x, {channels}, got "
            f"{num_channels}"
        )
    groups = x.to(accumulation_dtype(x.dtype)).unflatten(0, (group, -1))
    std = (groups.var(dim=0, correction=0) + eps).sqrt()
    of_part = std.reshape(len(std), num_channels, -1).mean(2)
    new = of_part.to(x.dtype).repeat(group, 1)
    new = new.view(batch, num_channels, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
    layout = CHANNELS_LAST.get(x.dim())
    if layout is not None and x.is_contiguous(memory_format=layout):
        new = new.contiguous(memory_format=layout)  # or torch.cat would leave the layout
    return torch.cat((x, new), 1)


class MinibatchStdDev(nn.Module):
    """:func:`minibatch_stddev` as a layer. It has no parameters."""

    def __init__(
        self, group_size: int | None = 4, num_channels: int = 1, eps: float = 1e-8
    ) -> None:
        _check_stddev("MinibatchStdDev", group_size, num_channels, eps)
        super().__init__()
        self.group_size = group_size
        self.num_channels = num_channels
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return _with_stddev(type(self).__name__, x, self.group_size, self.num_channels, self.eps)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, num_channels={self.num_channels}, eps={self.eps}"


def _check_stddev(op: str, group_size: int | None, num_channels: int, eps: float) -> None:
    if group_size is not None:
        check_count(op, "group_size", group_size)
    check_count(op, "num_channels", num_channels)
    check_number(op, "eps", eps, positive=True)


class MinibatchDiscrimination(nn.Module):
    """Minibatch discrimination: appends how close a sample is to the others of the batch.

    Salimans et al. 2016 (arXiv 1606.03498), section 3.2: with ``M_i = x_i T``, a matrix (B, C) for
    every sample, ``o(x_i)_b = sum_j exp(-||M_ib - M_jb||_1)``. The sum is over all j as in the
    paper, i itself included, which adds 1.

    ``T`` starts uniform within +-1 / sqrt(in_features), as the weights of ``torch.nn.Linear``; the
    paper does not say. Takes n^2 B C numbers of memory for n samples.

    Args:
        in_features: A.
        out_features: B, how many features are appended.
        kernel_dims: C.
        device, dtype: of ``T``, (A, B, C), the only parameter.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int = 100,
        kernel_dims: int = 5,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        op = "MinibatchDiscrimination"
        check_count(op, "in_features", in_features)
        check_count(op, "out_features", out_features)
        check_count(op, "kernel_dims", kernel_dims)
        if device is not None:
            device = device_of(op, device)
        if dtype is not None and (
            not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize == 1
        ):
            got = dtype if isinstance(dtype, torch.dtype) else kind(dtype)
            raise TypeError(f"{op}: expected dtype to be a floating-point torch.dtype, got {got}")
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.kernel_dims = kernel_dims
        shape = (in_features, out_features, kernel_dims)
        with raised_in(op, "torch.empty"):  # where there is no such device, or too little memory
            self.T = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw ``T`` anew."""
        bound = self.in_features**-0.5
        nn.init.uniform_(self.T, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with the features o(x) appended.

        Args:
            x: (n, in_features).

        Returns:
            (n, in_features + out_features), of the dtype of ``x``; distances are taken in float32.
            Differentiable to any order.

        Raises:
            TypeError, ValueError: if ``x`` is none of the above.
        """
        op = "MinibatchDiscrimination"
        shape = f"(n, {self.in_features})"
        check_samples(op, "x", x, shape, 2)
        if x.dim() != 2 or x.shape[1] != self.in_features:
            raise ValueError(
                f"{op}: expected x of shape {shape}, got {tuple(x.shape)}; flatten the features "
                "with x.flatten(1)"
            )
        if x.dtype != self.T.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(
                f"{op}: expected x of {self.T.dtype}, as T is, got {x.dtype}; convert x, or the "
                f"module by .to({x.dtype})"
            )
        M = x @ self.T.flatten(1)
        M = M.to(accumulation_dtype(M.dtype)).view(-1, self.out_features, self.kernel_dims)
        # Not torch.cdist: it has no forward-mode AD, and its double backward is no faster.
        distance = (M.unsqueeze(1) - M).abs().sum(3)
        return torch.cat((x, (-distance).exp().sum(1).to(x.dtype)), 1)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"kernel_dims={self.kernel_dims}"
        )
