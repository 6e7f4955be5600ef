"""The operators: what the drop-ins and helpers are built from."""

from gankernels.ops.spectral_norm import power_iteration_, spectral_norm, spectral_normalize, unpack

__all__ = ["power_iteration_", "spectral_norm", "spectral_normalize", "unpack"]
