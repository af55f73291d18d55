"""Quantised weights and activations: grids, leaves, rules, and updates that stay on the grid."""

from zojax.quant.activations import Activations
from zojax.quant.grids import GRIDS, Grid, get_grid
from zojax.quant.observe import calibrate
from zojax.quant.on_grid import OnGridState, UpdateNoise, on_grid, update_noise
from zojax.quant.qarray import QArray, quantize
from zojax.quant.rules import PROFILES, Profile, Rule, dequantize_tree, profile_rules, quantize_tree
from zojax.quant.straight_through import FakeQuant, straight_through

__all__ = [
    "GRIDS",
    "PROFILES",
    "Activations",
    "FakeQuant",
    "Grid",
    "OnGridState",
    "Profile",
    "QArray",
    "Rule",
    "UpdateNoise",
    "calibrate",
    "dequantize_tree",
    "get_grid",
    "on_grid",
    "profile_rules",
    "quantize",
    "quantize_tree",
    "straight_through",
    "update_noise",
]
