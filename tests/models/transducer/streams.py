"""Layers run whole and as streams, with random weights, for the tests of all layers."""

import jax
import jax.numpy as jnp
import numpy as np

from models.transducer.streaming import HostBuffer


def variables(module, *inputs, seed=0, method=None):
    """Random weights of the shapes that a module asks for; none is 0, so that each of them matters."""
    shapes = jax.eval_shape(lambda *a: module.init(jax.random.key(0), *a, method=method), *inputs)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        fan_in = leaf.shape[-2] if len(leaf.shape) > 1 else 1
        noise = rng.normal(size=leaf.shape) / np.sqrt(fan_in)
        gain = "scale" in jax.tree_util.keystr(path)
        return jnp.asarray(1 + 0.3 * noise if gain else noise, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def lengths_mask(frames, lengths):
    return np.arange(frames) < np.asarray(lengths)[:, None]


class Run:
    """A layer with weights, its call and its step compiled once each.

    Args:
      layer: the layer.
      frames: of the whole call.
      blocks: a step takes so many blocks.
    """

    def __init__(self, layer, frames, *, rows=2, blocks=1, seed=0):
        self.layer, self.size = layer, layer.block * blocks
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(rows, frames, layer.d_in)).astype(np.float32)
        self.variables = variables(layer, self.x, np.ones((rows, frames), bool), seed=seed)
        self._call = jax.jit(lambda v, x, m: layer.apply(v, x, m))
        self._step = jax.jit(lambda v, x, m, s: layer.apply(v, x, m, s, method="step"))
        self._flush = jax.jit(lambda v, s: layer.apply(v, s, method="flush"))

    def whole(self, x, mask):
        """The valid frames of each row."""
        return rows_of(*self._call(self.variables, x, mask))

    def stream(self, x, mask, chunks, *, save_at=None):
        """The valid frames of each row, fed in chunks of these sizes; the state is saved and restored before one."""
        buffer = HostBuffer(self.size, x[:, :0])
        state, found, start = self.layer.initial_state(len(x)), [], 0
        for number, count in enumerate(chunks):
            if number == save_at:
                saved = jax.tree.map(lambda leaf: np.array(leaf).tobytes(), state)
                kinds = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
                restored = jax.tree.map(lambda b, k: np.frombuffer(b, k.dtype).reshape(k.shape), saved, kinds)
                state, buffer = restored, HostBuffer(self.size, buffer.x.copy(), buffer.mask.copy())
            pieces = buffer.push(x[:, start : start + count], mask[:, start : start + count])
            start += count
            if start >= x.shape[1]:
                pieces = [*pieces, *buffer.finish()]
            for piece in pieces:
                y, valid, state = self._step(self.variables, *piece, state)
                found.append((y, valid))
        assert start == x.shape[1]
        found.append(self._flush(self.variables, state))
        return rows_of(*(np.concatenate(parts, axis=1) for parts in zip(*found, strict=True)))


def rows_of(y, mask):
    y, mask = np.asarray(y), np.asarray(mask)
    return [row[valid] for row, valid in zip(y, mask, strict=True)]


def random_chunks(total, rng):
    """Sizes from 0 to a third of the whole that sum to it."""
    chunks = []
    while sum(chunks) < total:
        chunks.append(int(min(rng.integers(0, max(total // 3, 2)), total - sum(chunks))))
    return chunks
