"""Weights of every memory layout that users have."""

from collections.abc import Callable

import torch
from torch import Tensor

from gankernels.reference.spectral_norm import PowerIteration


def _channels_last(x: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.dim()])


#: Weights of every memory layout that users have, rows first: from a function that draws numbers.
LAYOUTS: dict[str, Callable[[Callable[..., Tensor]], Tensor]] = {
    "one_element": lambda draw: draw(1, 1),
    "one_row": lambda draw: draw(1, 37),
    "one_column": lambda draw: draw(37, 1),
    "vector": lambda draw: draw(13),
    "vector_of_one": lambda draw: draw(1),
    "vector_strided": lambda draw: draw(26)[::2],
    "linear": lambda draw: draw(31, 33),
    "linear_wide": lambda draw: draw(3, 1031),
    "linear_tall": lambda draw: draw(257, 5),
    "linear_transposed": lambda draw: draw(33, 31).t(),
    "linear_transposed_wide": lambda draw: draw(521, 7).t(),
    "conv1d": lambda draw: draw(17, 5, 3),
    "conv": lambda draw: draw(16, 3, 3, 3),
    "conv_1x1": lambda draw: draw(19, 17, 1, 1),
    "conv_one_channel": lambda draw: draw(1, 23, 4, 4),
    "conv_channels_last": lambda draw: _channels_last(draw(12, 7, 3, 5)),
    "conv_one_channel_channels_last": lambda draw: _channels_last(draw(1, 7, 3, 5)),
    "conv_transpose1d": lambda draw: draw(11, 6, 7).movedim(1, 0),
    "conv_transpose": lambda draw: draw(6, 37, 4, 3).movedim(1, 0),
    "conv_transpose_one_channel": lambda draw: draw(6, 1, 4, 4).movedim(1, 0),
    "conv_transpose_channels_last": lambda draw: _channels_last(draw(6, 10, 4, 3)).movedim(1, 0),
    "conv_other_dim": lambda draw: draw(5, 6, 7, 4).movedim(2, 0),
    "conv_permuted": lambda draw: draw(5, 6, 7, 4).permute(3, 1, 0, 2),
    "conv3d": lambda draw: draw(5, 3, 2, 3, 4),
    "conv3d_channels_last": lambda draw: _channels_last(draw(5, 3, 2, 3, 4)),
    "conv_transpose3d": lambda draw: draw(4, 9, 2, 3, 2).movedim(1, 0),
    "conv_transpose3d_channels_last": lambda draw: _channels_last(draw(4, 9, 2, 3, 2)).movedim(
        1, 0
    ),
    "eight_dims": lambda draw: draw(2, 3, 2, 2, 3, 2, 2, 2).permute(3, 0, 1, 7, 2, 6, 5, 4),
    "slice_of_rows": lambda draw: draw(24, 15)[::2],
    "slice_of_columns": lambda draw: draw(12, 31)[:, 1:-1],
    "slice_of_channels": lambda draw: draw(8, 6, 3, 3)[:, 1:4],
    "slice_with_offset": lambda draw: draw(9, 33)[1:],
    "expanded_rows": lambda draw: draw(1, 30).expand(5, 30),
    "expanded_columns": lambda draw: draw(6, 1).expand(6, 11),
}

#: More than 1 MiB: cut into chunks and spread over the threads.
LARGE_LAYOUTS: dict[str, Callable[[Callable[..., Tensor]], Tensor]] = {
    "linear": lambda draw: draw(701, 743),
    "linear_few_rows": lambda draw: draw(3, 150_001),
    "linear_many_rows": lambda draw: draw(150_001, 3),
    "linear_transposed": lambda draw: draw(743, 701).t(),
    "conv": lambda draw: draw(256, 131, 4, 4),
    "conv_channels_last": lambda draw: _channels_last(draw(256, 131, 4, 4)),
    "conv_transpose": lambda draw: draw(131, 257, 4, 4).movedim(1, 0),
    "conv_transpose_channels_last": lambda draw: _channels_last(draw(131, 257, 4, 4)).movedim(1, 0),
    # So wide that tiles of the CUDA kernels hold their columns 27 at a time, and 32 threads them.
    "conv_transpose_many_rows": lambda draw: draw(2, 3100, 3, 3).movedim(1, 0),
}


def joined(found: PowerIteration) -> torch.Tensor:
    """All that a power iteration returns, in one tensor."""
    return torch.cat([found.sigma, *found.u, *found.v])
