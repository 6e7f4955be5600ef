"""Augmentation of what a critic sees."""

from gankernels.augment.apa import APA
from gankernels.augment.controller import ADAController, ADASchedule
from gankernels.augment.diff_augment import DiffAugment
from gankernels.augment.pipe import ADAPipe
from gankernels.augment.presets import PRESETS
from gankernels.augment.transform import LABELS, Transform

__all__ = [
    "APA",
    "LABELS",
    "PRESETS",
    "ADAController",
    "ADAPipe",
    "ADASchedule",
    "DiffAugment",
    "Transform",
]
