"""Drop-ins for torch.nn.utils."""

from gankernels.nn.utils import parametrizations
from gankernels.nn.utils.spectral_norm import remove_spectral_norm, spectral_norm

__all__ = ["parametrizations", "remove_spectral_norm", "spectral_norm"]
