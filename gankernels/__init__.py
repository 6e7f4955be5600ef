"""The stabilizers of GAN training as fused kernels."""

from gankernels import ops
from gankernels._library import backend, empty_cache
from gankernels._version import __version__

__all__ = ["__version__", "backend", "empty_cache", "ops"]
