"""Spectral normalization of modules; ``gankernels.nn.utils`` has its drop-ins for torch's.

``hook`` and ``parametrization`` are the two kinds of it, ``layer`` what both hand to
``normalizer``, ``memory`` what is remembered between forwards. ``sites`` finds the normalized
weights of a model, ``fuse`` normalizes them in one call, through ``deposits``, and ``fold`` makes
plain weights of them.
"""
