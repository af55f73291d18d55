"""Measures of what a model says, counted on the host."""

from zojax.metrics.errors import BiasedErrors, Costs, Errors, Step, align, biased_errors, character_errors, word_errors

__all__ = [
    "BiasedErrors",
    "Costs",
    "Errors",
    "Step",
    "align",
    "biased_errors",
    "character_errors",
    "word_errors",
]
