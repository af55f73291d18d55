"""Checkpoints of quantised trees: the same bits, in no more space than they need."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from zojax.adapters import add_lora
from zojax.quant import QArray, get_grid
from zojax.train import checkpoint


def random_leaf(grid, shape, seed):
    """A leaf whose codes are uniform: what no compression makes smaller than its bits."""
    grid, rng = get_grid(grid), np.random.default_rng(seed)
    blocks = (*shape[:-2], 1, shape[-1])
    return QArray(
        qvalue=jnp.asarray(rng.integers(grid.low, grid.high + 1, size=shape), jnp.int8).astype(grid.dtype),
        scale=jnp.asarray(rng.uniform(0.5, 1, size=blocks), jnp.float32),
        zero_point=jnp.asarray(rng.integers(-8, 8, size=blocks), jnp.float32) if grid.asymmetric else None,
        grid=grid,
    )


GRIDS = ("int4", "int3", "int8_127", "fp8_e4m3", "int4_asymmetric", "int2")
TREE = {
    **{grid: random_leaf(grid, (2, 256, 255), i) for i, grid in enumerate(GRIDS)},
    "bias": jnp.arange(3.0),
    "key": jax.random.key(7),
}


def test_a_checkpoint_is_as_small_as_its_bits(tmp_path):
    checkpoint.save(tmp_path / "1", TREE, {"step": 1})
    like = jax.tree.map(jnp.zeros_like, {**TREE, "key": None}) | {"key": jax.random.key(0)}
    back = checkpoint.load(tmp_path / "1", like)
    chex.assert_trees_all_equal(back, TREE)
    assert jax.tree.structure(back) == jax.tree.structure(TREE)
    chex.assert_trees_all_equal_dtypes(back, TREE)

    # Orbax compresses what it stores: 15 % and 64 kB for scales, metadata and the container.
    # The codes are uniform, so that no compression goes below their bits.
    needed = sum(TREE[grid].size * get_grid(grid).bits for grid in GRIDS) / 8
    on_disk = sum(path.stat().st_size for path in (tmp_path / "1").rglob("*") if path.is_file())
    assert on_disk <= 1.15 * needed + 64_000


def test_a_leaf_inside_a_leaf_survives(tmp_path):
    tree = add_lora({"w": TREE["int4"]}, ("w",), rank=2, alpha=4, key=jax.random.key(0))
    checkpoint.save(tmp_path / "1", tree, {})
    chex.assert_trees_all_equal(checkpoint.load(tmp_path / "1", jax.tree.map(jnp.zeros_like, tree)), tree)
