"""The definition of right: every operator in plain PyTorch, with the signature it has in ops."""

from gankernels.reference.ada_parameters import ada_parameters
from gankernels.reference.gradient_penalty import gradient_penalty
from gankernels.reference.spectral_norm import power_iteration_, spectral_normalize

__all__ = ["ada_parameters", "gradient_penalty", "power_iteration_", "spectral_normalize"]
