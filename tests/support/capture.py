"""The capture of a CUDA graph, as Python sees it, where there is no GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch


@contextlib.contextmanager
def capturing() -> Iterator[None]:
    """A block within which torch says that the current stream is captured."""
    with (
        mock.patch.object(torch.cuda, "is_initialized", return_value=True),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=True),
    ):
        yield


def replay_writes(*tensors: torch.Tensor) -> None:
    """What a replay does to weights: their contents change, and no version counts it."""
    for x in tensors:
        version = x._version
        x.data.mul_(1.25).add_(torch.linspace(-1, 1, x.numel()).view_as(x))
        assert x._version == version
