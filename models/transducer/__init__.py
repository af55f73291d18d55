"""Streaming neural transducers: encoders, predictors and joiners whose steps equal their whole-sequence calls."""
