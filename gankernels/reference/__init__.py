"""The definition of right: every operator in plain PyTorch, with the signature it has in ops."""

from gankernels.reference.ada_parameters import ada_parameters
from gankernels.reference.affine_resample import (
    affine_augment,
    affine_resample,
    affine_resample_transpose,
    batch_margins,
)
from gankernels.reference.gradient_penalty import gradient_penalty
from gankernels.reference.image_filter import image_filter, image_filter_transpose
from gankernels.reference.spectral_norm import (
    power_iteration_,
    spectral_norm,
    spectral_normalize,
)

__all__ = [
    "ada_parameters",
    "affine_augment",
    "affine_resample",
    "affine_resample_transpose",
    "batch_margins",
    "gradient_penalty",
    "image_filter",
    "image_filter_transpose",
    "power_iteration_",
    "spectral_norm",
    "spectral_normalize",
]
