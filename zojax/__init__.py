"""zojax: fine-tuning without back-propagation, through zeroth-order estimators that are optax transformations."""

from zojax import diagnostics, directions, estimators, masks, ops, perturb, precision, random, replay, schedules, trees

__version__ = "0.1.0"

__all__ = [
    "diagnostics",
    "directions",
    "estimators",
    "masks",
    "ops",
    "perturb",
    "precision",
    "random",
    "replay",
    "schedules",
    "trees",
]
