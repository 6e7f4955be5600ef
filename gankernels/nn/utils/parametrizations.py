"""Drop-in for ``torch.nn.utils.parametrizations.spectral_norm``."""

from gankernels.spectral_norm.parametrization import SpectralNorm, spectral_norm

__all__ = ["SpectralNorm", "spectral_norm"]
