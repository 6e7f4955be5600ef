"""The operators: what the drop-ins, the penalties and helpers are built from."""

from gankernels.ops.ada_control import ada_control_
from gankernels.ops.ada_parameters import ada_parameters
from gankernels.ops.affine_resample import (
    affine_augment,
    affine_resample,
    affine_resample_transpose,
)
from gankernels.ops.diff_augment import diff_augment_parameters
from gankernels.ops.gradient_penalty import gradient_penalty
from gankernels.ops.image_filter import image_filter, image_filter_transpose
from gankernels.ops.spectral_norm import power_iteration_, spectral_norm, spectral_normalize
from gankernels.ops.weight_norm import weight_norm

__all__ = [
    "ada_control_",
    "ada_parameters",
    "affine_augment",
    "affine_resample",
    "affine_resample_transpose",
    "diff_augment_parameters",
    "gradient_penalty",
    "image_filter",
    "image_filter_transpose",
    "power_iteration_",
    "spectral_norm",
    "spectral_normalize",
    "weight_norm",
]
