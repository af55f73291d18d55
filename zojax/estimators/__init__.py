"""Zeroth-order gradient estimators, each an `optax.GradientTransformationExtraArgs` with a function `measure`."""

from zojax.estimators._base import Estimator, EstimatorState, Scalars, chain
from zojax.estimators.forward import forward, fzoo
from zojax.estimators.guards import clip_projected, skip_nonfinite
from zojax.estimators.quzo import quzo
from zojax.estimators.spsa import spsa

__all__ = [
    "Estimator",
    "EstimatorState",
    "Scalars",
    "chain",
    "clip_projected",
    "forward",
    "fzoo",
    "quzo",
    "skip_nonfinite",
    "spsa",
]
