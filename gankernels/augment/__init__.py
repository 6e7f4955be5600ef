"""Augmentation of what a critic sees."""

from gankernels.augment.pipe import ADAPipe, Transform
from gankernels.augment.presets import PRESETS

__all__ = ["PRESETS", "ADAPipe", "Transform"]
