"""Measures of what a model says, counted on the host."""

from zojax.metrics.detection import Detections, detections, runs
from zojax.metrics.errors import BiasedErrors, Costs, Errors, Step, align, biased_errors, character_errors, word_errors

__all__ = [
    "BiasedErrors",
    "Costs",
    "Detections",
    "Errors",
    "Step",
    "align",
    "biased_errors",
    "character_errors",
    "detections",
    "runs",
    "word_errors",
]
