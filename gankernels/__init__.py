"""The stabilizers of GAN training as fused kernels."""

from gankernels import nn, ops
from gankernels._library import backend, empty_cache
from gankernels._version import __version__
from gankernels.fuse_spectral_norm import (
    FusedSpectralNorm,
    Sigmas,
    fold,
    fuse_spectral_norm,
    sigma,
)

__all__ = [
    "FusedSpectralNorm",
    "Sigmas",
    "__version__",
    "backend",
    "empty_cache",
    "fold",
    "fuse_spectral_norm",
    "nn",
    "ops",
    "sigma",
]
