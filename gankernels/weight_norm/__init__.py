"""Weight normalization of whole models: ``sites`` finds the weights that torch's ``weight_norm``
normalizes, ``fuse`` computes them in one call, ``fold`` makes plain ones of them."""
