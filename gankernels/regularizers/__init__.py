"""Regularizers of both networks beside the gradient penalties, and what makes a task harder.

Those that are losses return a scalar in float32, or float64 for float64 input, to be added to the
critic's loss, or to the generator's where they say so; those that change samples or features keep
dtype and device. Everything between is computed in float32 at least, under autocast too.
"""

from gankernels.regularizers.consistency import (
    balanced_consistency_regularization,
    consistency_regularization,
    latent_consistency_discriminator,
    latent_consistency_generator,
)
from gankernels.regularizers.generator import PathLength
from gankernels.regularizers.inputs import FadingBlur, InstanceNoise, rotate_batch, rotation_loss
from gankernels.regularizers.logits import LeCam, drift_penalty
from gankernels.regularizers.minibatch import (
    MinibatchDiscrimination,
    MinibatchStdDev,
    minibatch_stddev,
)

__all__ = [
    "FadingBlur",
    "InstanceNoise",
    "LeCam",
    "MinibatchDiscrimination",
    "MinibatchStdDev",
    "PathLength",
    "balanced_consistency_regularization",
    "consistency_regularization",
    "drift_penalty",
    "latent_consistency_discriminator",
    "latent_consistency_generator",
    "minibatch_stddev",
    "rotate_batch",
    "rotation_loss",
]
