"""Losses that need more than a line."""
