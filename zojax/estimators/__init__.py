"""Zeroth-order gradient estimators, each an `optax.GradientTransformationExtraArgs` with a function `measure`.

What other libraries call ZO-Adam, ZO-SGD with momentum and ZO-SignSGD are chains with optax: `chain(spsa(...),
optax.adam(rate))`, `optax.sgd(rate, momentum=0.9)`, `optax.scale_by_sign()`. Sparse directions are those of
`zojax.directions.Sparse`.
"""

from zojax.estimators._base import Estimator, EstimatorState, Scalars
from zojax.estimators._chain import chain
from zojax.estimators.eggroll import eggroll
from zojax.estimators.forward import forward, fzoo
from zojax.estimators.guards import clip_projected, skip_nonfinite
from zojax.estimators.hizoo import hizoo
from zojax.estimators.kerzoo import kerzoo
from zojax.estimators.lozo import lozo
from zojax.estimators.mezo_svrg import mezo_svrg
from zojax.estimators.multi_task import multi_task
from zojax.estimators.per_example import per_example
from zojax.estimators.quzo import quzo
from zojax.estimators.spsa import spsa
from zojax.estimators.subzero import subzero

__all__ = [
    "Estimator",
    "EstimatorState",
    "Scalars",
    "chain",
    "clip_projected",
    "eggroll",
    "forward",
    "fzoo",
    "hizoo",
    "kerzoo",
    "lozo",
    "mezo_svrg",
    "multi_task",
    "per_example",
    "quzo",
    "skip_nonfinite",
    "spsa",
    "subzero",
]
