"""Counterparts of torch.nn."""

from gankernels.nn import utils

__all__ = ["utils"]
