"""The stabilizers of GAN training as fused kernels."""

from gankernels import augment, ema, losses, nn, ops, penalties, regularizers
from gankernels._library import backend, empty_cache
from gankernels._version import __version__
from gankernels.clip import clip_weights_
from gankernels.compile_step import CompiledStep, compile_step
from gankernels.critic_step import CriticStep, critic_step
from gankernels.ops import affine_resample, affine_resample_transpose, gradient_penalty
from gankernels.ops.affine_resample import maps_from_theta
from gankernels.penalties import *  # noqa: F403
from gankernels.spectral_norm.fold import fold_spectral_norm
from gankernels.spectral_norm.fuse import FusedSpectralNorm, fuse_spectral_norm
from gankernels.spectral_norm.models.apply import apply_spectral_norm
from gankernels.spectral_norm.models.clip import SpectralNormClip, clip_spectral_norm_
from gankernels.spectral_norm.models.originals import original_weights
from gankernels.spectral_norm.operator_norms import SpectralNorms, spectral_norms
from gankernels.weight_norm.fold import fold_weight_norm
from gankernels.weight_norm.fuse import FusedWeightNorm, fuse_weight_norm

__all__ = [
    *penalties.__all__,
    "CompiledStep",
    "CriticStep",
    "FusedSpectralNorm",
    "FusedWeightNorm",
    "SpectralNormClip",
    "SpectralNorms",
    "__version__",
    "affine_resample",
    "affine_resample_transpose",
    "apply_spectral_norm",
    "augment",
    "backend",
    "maps_from_theta",
    "clip_spectral_norm_",
    "clip_weights_",
    "compile_step",
    "critic_step",
    "ema",
    "empty_cache",
    "fold_spectral_norm",
    "fold_weight_norm",
    "fuse_spectral_norm",
    "fuse_weight_norm",
    "gradient_penalty",
    "losses",
    "nn",
    "ops",
    "original_weights",
    "penalties",
    "regularizers",
    "spectral_norms",
]
