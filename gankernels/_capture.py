"""CUDA graphs, whose replays run no Python: what it decides and remembers they never see."""

from __future__ import annotations

import torch


def is_capturing() -> bool:
    """Whether what is launched now is recorded into a CUDA graph instead of done."""
    if torch.compiler.is_compiling():
        return False
    # Without a driver, to ask the stream would raise.
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
