"""Which leaf of a tree is quantised how: rules by leaf path, and the precision profiles made of them."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zojax import ops
from zojax.quant.activations import Activations
from zojax.quant.calibration import CALIBRATIONS, Calibration
from zojax.quant.grids import get_grid
from zojax.quant.qarray import quantize
from zojax.trees import path_string

__all__ = ["PROFILES", "Profile", "Rule", "dequantize_tree", "profile_rules", "quantize_tree"]

Params = Any

PER = ("tensor", "column", "row", "channel", "gate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """How the leaves whose path a pattern matches are quantised.

    Attributes:
      pattern: regular expression, searched in the leaf path.
      grid: the codes' grid, or None: the leaf stays as it is.
      per: "tensor", "column" (one scale an output channel: axis -2 is reduced), "row" (one a row of a table: axis -1
        is reduced), or a group size (int) along axis -2; leading axes, a scanned one among them, keep a scale each.
        "channel": one scale for each entry of axis -1 alone, for kernels of convolutions. "gate": one for each quarter
        of axis -1, the gates of an LSTM.
      calibration: "absmax" or "mse".
      power_of_two: whether scales are powers of two.
      activations: how activations are quantised for products with the leaf, or None.

    Raises:
      ValueError: naming the field that is wrong.

    Example:
      >>> Rule(pattern="kernel$", grid="int4", per=64).blocks("kernel", (6, 128, 32))
      (6, 2, 32)
    """

    pattern: str
    grid: str | None
    per: str | int = "column"
    calibration: Calibration = "absmax"
    power_of_two: bool = False
    activations: Activations | None = None

    def __post_init__(self):
        if self.grid is not None:
            get_grid(self.grid)
        if not (self.per in PER or (isinstance(self.per, int) and self.per > 0)):
            raise ValueError(f"per: {self.per!r}; {', '.join(PER)} or a group size is needed")
        if self.calibration not in CALIBRATIONS:
            raise ValueError(f"calibration: {self.calibration!r}; one of {', '.join(CALIBRATIONS)} is needed")

    def blocks(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The number of scales along each axis of a leaf.

        Args:
          path: the leaf's path, for messages.
          shape: the leaf's shape.

        Returns:
          One number an axis.

        Raises:
          ValueError: if the leaf is no matrix, or the group does not divide it.
        """
        if len(shape) < 2:
            raise ValueError(f"rules: {self.pattern!r} quantises {path!r} of shape {shape}, which is no matrix")
        *lead, rows, columns = shape
        if isinstance(self.per, int):
            if rows % self.per:
                raise ValueError(f"rules: groups of {self.per} do not divide the {rows} rows of {path!r}")
            return (*lead, rows // self.per, columns)
        if self.per == "channel":
            return (*(1 for _ in lead), 1, columns)
        if self.per == "gate" and columns % 4:
            raise ValueError(f"rules: the {columns} columns of {path!r} are no four gates")
        last = {"gate": (1, 4), "tensor": (1, 1), "column": (1, columns), "row": (rows, 1)}[self.per]
        return (*lead, *last)


def quantize_tree(params: Params, rules: Sequence[Rule]) -> Params:
    """Quantises the leaves of a tree; the first rule that matches a leaf's path counts.

    Args:
      params: tree of float arrays; a leaf type that a rule quantises is materialised.
      rules: the rules; a leaf without one is an error, as is a rule without a leaf.

    Returns:
      The tree with `QArray` leaves.

    Raises:
      ValueError: naming the leaf or the rule.

    Example:
      >>> import jax.numpy as jnp
      >>> rules = (Rule(pattern="kernel$", grid="int8_127"), Rule(pattern="bias$", grid=None))
      >>> tree = quantize_tree({"kernel": jnp.eye(4), "bias": jnp.zeros(4)}, rules)
      >>> type(tree["kernel"]).__name__, tree["kernel"].scale.shape
      ('QArray', (1, 4))
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_weight)
    paths = [path_string(path) for path, _ in flat]
    for rule in rules:
        if not any(re.search(rule.pattern, path) for path in paths):
            raise ValueError(f"rules: {rule.pattern!r} matches no leaf; the leaves are {', '.join(paths)}")

    def leaf(path: str, w: Any) -> Any:
        rule = next((rule for rule in rules if re.search(rule.pattern, path)), None)
        if rule is None:
            raise ValueError(f"rules: none matches {path!r}; give it one, with grid=None to leave it as it is")
        if rule.grid is None:
            return w
        return quantize(
            jnp.asarray(w),
            rule.grid,
            blocks=rule.blocks(path, w.shape),
            calibration=rule.calibration,
            power_of_two=rule.power_of_two,
            activations=rule.activations,
        )

    return treedef.unflatten([leaf(path, w) for path, (_, w) in zip(paths, flat, strict=True)])


def dequantize_tree(params: Params) -> Params:
    """The float32 tree that a tree of quantised leaves stands for.

    Args:
      params: tree of arrays and leaf types.

    Returns:
      Tree of arrays.

    Example:
      >>> import jax.numpy as jnp
      >>> dequantize_tree({"w": quantize(jnp.eye(2), "int8_127")})["w"].tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    return jax.tree.map(ops.value_as_stored, params, is_leaf=_is_weight)


def _is_weight(node: Any) -> bool:
    return hasattr(node, "materialize")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """A precision of the whole forward.

    Attributes:
      weights: grid of matrices and tables.
      activations: how activations enter products, or None for float.
      calibration: of the weights' scales.

    Example:
      >>> PROFILES["w4a8_int"].weights
      'int4'
    """

    weights: str
    activations: Activations | None
    calibration: Calibration = "absmax"


PROFILES: dict[str, Profile] = {
    "w8a8_int": Profile(weights="int8_127", activations=Activations(grid="int8_127")),
    "w8a8_fp8": Profile(weights="fp8_e4m3", activations=Activations(grid="fp8_e4m3")),
    "w4a8_int": Profile(weights="int4", activations=Activations(grid="int8_127"), calibration="mse"),
    "w4a8_fp8": Profile(weights="int4", activations=Activations(grid="fp8_e4m3"), calibration="mse"),
    "w4a4_int": Profile(weights="int4", activations=Activations(grid="int4"), calibration="mse"),
}
"""QuZO's precisions (arXiv 2502.12346): weights a column, activations a token; that 4-bit scales take the least squared
error is our choice."""


def profile_rules(profile: Profile, *, kernels: str, tables: str, rest: str) -> tuple[Rule, ...]:
    """The rules of a profile for a model's leaves.

    Args:
      profile: the precision.
      kernels: pattern of the matrices: one scale a column.
      tables: pattern of the embedding tables: one scale a row, and no activations.
      rest: pattern of what stays as it is; searched last.

    Returns:
      Rules for `quantize_tree`.

    Example:
      >>> [rule.per for rule in profile_rules(PROFILES["w8a8_int"], kernels="kernel$", tables="word$", rest="")]
      ['column', 'row', 'column']
    """
    weights, calibration = profile.weights, profile.calibration
    return (
        Rule(pattern=kernels, grid=weights, calibration=calibration, activations=profile.activations),
        Rule(pattern=tables, grid=weights, per="row", calibration=calibration),
        Rule(pattern=rest, grid=None),
    )
