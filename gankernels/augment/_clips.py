"""Clips (B, C, T, H, W) as batches of their frames, which the operators on images take."""

from __future__ import annotations

from torch import Tensor


def is_clip(images: Tensor) -> bool:
    return images.dim() == 5


def frames_of(clips: Tensor) -> Tensor:
    """(B T, C, H, W), the frames of a clip one after another.

    A view of channels-last clips, of those of one channel, and of (B, T, C, H, W) transposed; of
    other clips a copy.
    """
    return clips.transpose(1, 2).flatten(0, 1)


def clips_of(frames: Tensor, like: Tensor) -> Tensor:
    """The clips of such frames, in the memory format of ``like``."""
    clips = frames.unflatten(0, (like.shape[0], like.shape[2])).transpose(1, 2)
    return clips.contiguous() if like.is_contiguous() else clips


def rows_of_frames(rows: Tensor, clips: Tensor) -> Tensor:
    """A row for every frame of clips, from one for every clip."""
    return rows.repeat_interleave(clips.shape[2], 0)
