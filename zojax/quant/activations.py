"""How activations are quantised on their way into a product with a quantised weight."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zojax.quant.calibration import find_scale
from zojax.quant.grids import Grid, get_grid

__all__ = ["Activations"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activations:
    """Quantisation of activations to nearest, x ~ scale * (level - zero).

    A dynamic scale carries NaN and infinity into the product. A static one cannot: codes of an integer grid have none.

    Attributes:
      grid: name of the grid.
      per: "token" (one scale a row: dynamic), "tensor" (one scale a call: dynamic), or "static" (one scale that
        `quant.calibrate` measured beforehand and that the weight carries).

    Raises:
      ValueError: if the grid or `per` is unknown.

    Example:
      >>> codes, scale, zero = Activations(grid="int8_127", per="token").quantize(jnp.array([[1.0, -2.0], [0.5, 4.0]]))
      >>> codes.tolist(), zero is None
      ([[64, -127], [16, 127]], True)
    """

    grid: str
    per: Literal["token", "tensor", "static"] = "token"

    def __post_init__(self):
        get_grid(self.grid)
        if self.per not in ("token", "tensor", "static"):
            raise ValueError(f'per: {self.per!r}; one of "token", "tensor", "static" is needed')
        if self.per == "static" and self._grid.asymmetric:
            raise ValueError(f"grid: {self.grid!r} has a zero point, and a static scale is symmetric")

    @property
    def _grid(self) -> Grid:
        return get_grid(self.grid)

    def quantize(
        self, x: Float[Array, "*b d"], static: Float[Array, ""] | None = None
    ) -> tuple[Int[Array, "*b d"], Float[Array, "*#b 1"], Float[Array, "*#b 1"] | None]:
        """Codes, scale and zero point of activations.

        Args:
          x: activations.
          static: the scale of `per="static"`.

        Returns:
          (codes, scale, zero point or None); scale and zero point have x's rank and broadcast against it.

        Raises:
          ValueError: if a static scale is needed and absent.
        """
        x = x.astype(jnp.float32)
        if self.per == "static":
            if static is None:
                raise ValueError("static: no scale; run quant.calibrate on the weights first")
            scale, zero = jnp.reshape(static, (1,) * x.ndim), None
        else:
            blocks = (*x.shape[:-1], 1) if self.per == "token" else (1,) * x.ndim
            scale, zero = find_scale(x, self._grid, blocks)
        levels = x / scale if zero is None else x / scale + zero
        return self._grid.encode(levels), scale, zero
