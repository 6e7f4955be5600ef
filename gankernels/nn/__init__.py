"""Counterparts of torch.nn, the penalties as modules, and gradients brought to a size."""

from gankernels.nn import utils
from gankernels.nn.gradients import GradientNormalizer
from gankernels.nn.penalties import (
    ApproxR1Penalty,
    ApproxR2Penalty,
    ConsensusPenalty,
    DRAGANPenalty,
    LazyRegularizer,
    MaxGradientPenalty,
    OrthogonalRegularization,
    R1Penalty,
    R1R2Penalty,
    R2Penalty,
    RothPenalty,
    SpectralNormRegularization,
    WGANGPPenalty,
    WGANLPPenalty,
    ZeroCenteredPenalty,
)

__all__ = [
    "ApproxR1Penalty",
    "ApproxR2Penalty",
    "ConsensusPenalty",
    "DRAGANPenalty",
    "GradientNormalizer",
    "LazyRegularizer",
    "MaxGradientPenalty",
    "OrthogonalRegularization",
    "R1Penalty",
    "R1R2Penalty",
    "R2Penalty",
    "RothPenalty",
    "SpectralNormRegularization",
    "WGANGPPenalty",
    "WGANLPPenalty",
    "ZeroCenteredPenalty",
    "utils",
]
