"""The definition of right: every operator in plain PyTorch, with the signature it has in ops."""

from gankernels.reference.spectral_norm import power_iteration_, spectral_normalize

__all__ = ["power_iteration_", "spectral_normalize"]
