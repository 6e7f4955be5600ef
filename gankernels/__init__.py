"""The stabilizers of GAN training as fused kernels."""

from gankernels import augment, ema, losses, nn, ops, penalties, regularizers
from gankernels._library import backend, empty_cache
from gankernels._version import __version__
from gankernels.clip import clip_weights_
from gankernels.operator_norms import SpectralNorms, spectral_norms
from gankernels.ops import affine_resample, affine_resample_transpose, gradient_penalty
from gankernels.ops.affine_resample import centred_maps
from gankernels.penalties import (
    approx_r1_penalty,
    approx_r2_penalty,
    check_independent_samples,
    consensus_penalty,
    dragan_penalty,
    r1_penalty,
    r1_r2_penalty,
    r2_penalty,
    roth_penalty,
    spectral_norm_regularization,
    wgan_gp_penalty,
    wgan_lp_penalty,
    zero_centered_penalty,
)
from gankernels.spectral_norm.fold import fold
from gankernels.spectral_norm.fuse import FusedSpectralNorm, fuse_spectral_norm
from gankernels.spectral_norm.sites import Sigmas, sigma

__all__ = [
    "FusedSpectralNorm",
    "Sigmas",
    "SpectralNorms",
    "__version__",
    "affine_resample",
    "affine_resample_transpose",
    "approx_r1_penalty",
    "approx_r2_penalty",
    "augment",
    "backend",
    "centred_maps",
    "check_independent_samples",
    "clip_weights_",
    "consensus_penalty",
    "dragan_penalty",
    "ema",
    "empty_cache",
    "fold",
    "fuse_spectral_norm",
    "gradient_penalty",
    "losses",
    "nn",
    "ops",
    "penalties",
    "r1_penalty",
    "r1_r2_penalty",
    "r2_penalty",
    "regularizers",
    "roth_penalty",
    "sigma",
    "spectral_norm_regularization",
    "spectral_norms",
    "wgan_gp_penalty",
    "wgan_lp_penalty",
    "zero_centered_penalty",
]
