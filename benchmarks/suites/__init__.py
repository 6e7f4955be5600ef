"""The suites: spectral norm, gradient penalties and augmentation, and networks for whole steps."""
