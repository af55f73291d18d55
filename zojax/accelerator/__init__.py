"""Integer neural networks: fixed-point arithmetic by name, operators, accelerators, and their emulation in float."""

from zojax.accelerator.device import NARROW, PRESETS, TFLITE, Accelerator

__all__ = ["NARROW", "PRESETS", "TFLITE", "Accelerator"]
