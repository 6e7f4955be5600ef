"""Counterparts of torch.nn, and the penalties as modules."""

from gankernels.nn import utils
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
