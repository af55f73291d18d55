"""Self-attention with relative positions: causal, in chunks, or over the whole sequence."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from models.language.layers import MASKED
from models.layers import Linear
from models.transducer.streaming import Frames, Layer, Mask, Output, OutputMask, State
from zojax import ops

__all__ = ["Attention", "band", "by_distance", "sinusoids"]


def sinusoids(positions: int, width: int) -> tuple[Float[np.ndarray, "positions n"], Float[np.ndarray, "positions n"]]:
    """Sines and cosines of positions.

        sin(t w_n), cos(t w_n),    w_n = 10000^(-2 n / width)

    Args:
      positions: how many, from 0.
      width: of both together, even.

    Returns:
      (sines, cosines), float32 [positions, width / 2].

    Example:
      >>> [table.tolist() for table in sinusoids(1, 4)]
      [[[0.0, 0.0]], [[1.0, 1.0]]]
    """
    angle = np.arange(positions)[:, None] * np.exp(np.arange(0, width, 2) * (-math.log(10000) / width))
    return np.sin(angle).astype(np.float32), np.cos(angle).astype(np.float32)


def by_distance(x: Float[Array, "*b queries two n"], keys: int) -> Float[Array, "*b queries keys"]:
    """Products of what queries ask of a distance with the sinusoids of the distances to keys.

        x . [sin(r w), cos(r w)],    r = i - j for query i and key j; the last query is at the last key

    As sin(i w - j w) = sin(i w) cos(j w) - cos(i w) sin(j w), and so on: queries are turned by their own positions, and
    meet one table of the keys'. The table of all distances, and products that each row of keys reads from another
    place on, are not needed.

    Args:
      x: [..., queries, 2, n], the parts that sines and cosines are multiplied with.
      keys: frames that answer; as many as queries, or more.

    Returns:
      [..., queries, keys].

    Example:
      >>> asked = jnp.array([[[0.0], [1.0]]] * 3)  # for the cosine of the distance
      >>> [f"{cosine:.2f}" for cosine in by_distance(asked, 3)[2]]  # of 2, 1 and 0
      ['-0.42', '0.54', '1.00']
    """
    queries, n = x.shape[-3], x.shape[-1]
    sines, cosines = sinusoids(keys, 2 * n)
    sine, cosine = sines[keys - queries :], cosines[keys - queries :]
    # Both halves at once, and the halves exchanged by a reversal: the gradient of slices and their concatenation is
    # made of padding, which takes XLA several times as long on a CPU as the products.
    turned = x * np.stack([sine, sine], axis=1) + jnp.flip(x, axis=-2) * np.stack([cosine, -cosine], axis=1)
    return jnp.einsum("...snd,tnd->...st", turned, np.stack([cosines, sines], axis=1))


def band(queries: int, keys: int, chunk: int, left: int | None, right: int = 0) -> Bool[Array, "queries keys"]:
    """Which keys a query may see: those of its chunk, `left` before the chunk and `right` behind it.

    Args:
      queries: frames that ask, the last of the keys; the first of them begins a chunk.
      keys: frames that answer.
      chunk: frames of a chunk; 1 is causal attention.
      left: frames before the chunk; None: all.
      right: frames behind the chunk.

    Returns:
      True where the query may see the key.

    Example:
      >>> band(4, 4, 2, 1).astype(int).tolist()
      [[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1]]
    """
    first = jnp.arange(queries)[:, None] // chunk * chunk
    key = jnp.arange(keys)[None] - (keys - queries)
    seen = key < first + chunk + right
    return seen if left is None else seen & (key >= first - left)


class Attention(Layer):
    """Multi-head self-attention with relative positions as in Transformer-XL (arXiv 1901.02860) and the Conformer.

        score(i, j) = [(q_i + u) . k_j + (q_i + v) . (W_r s(i - j))] / sqrt(d / heads),    s: `sinusoids`

    A frame sees its own chunk and `left` frames before the chunk: with chunk 1 that is causal attention, or attention
    that looks `right` frames ahead. The state holds the keys and values of the last `left` + `right` frames, whatever
    the stream's length.

    Without a chunk every frame sees the whole sequence, and there is no step.

    Parameters: "query", "key", "value", "output" {kernel, bias}; "position" [d, heads, d / heads]; "key_bias" and
    "position_bias" [heads, d / heads], u and v.

    Args:
      d_in: d, width of the input and of the output.
      heads: number of heads.
      chunk: frames of a chunk; None: the whole sequence.
      left: frames before the chunk that it sees; None: all, and then there is no step.
      right: frames of look-ahead, with chunk 1; the step holds back as many.

    Raises:
      ValueError: if a size does not fit.

    Example:
      >>> layer, x, mask = Attention(8, 2, chunk=2, left=4), jnp.ones((1, 6, 8)), jnp.ones((1, 6), bool)
      >>> layer.init_with_output(jax.random.key(0), x, mask)[0][0].shape, layer.latency
      ((1, 6, 8), 1)
    """

    heads: int
    chunk: int | None = None
    left: int | None = None
    right: int = 0

    def __post_init__(self):
        if self.heads < 1 or self.d_in % self.heads or self.d_in % 2:
            raise ValueError(f"Attention.heads is {self.heads}; it must divide d_in = {self.d_in}, which must be even")
        for name, least in (("chunk", 1), ("left", 0)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"Attention.{name} is {getattr(self, name)}; it must be {least} or more, or None")
        if self.chunk is None and self.left is not None:
            raise ValueError(f"Attention.left is {self.left} without a chunk; give a chunk, or left None")
        if self.right < 0 or (self.right and self.chunk != 1):
            raise ValueError(
                f"Attention.right is {self.right} with chunk {self.chunk}; 0, or more with chunk 1 is needed"
            )
        super().__post_init__()

    @property
    def block(self) -> int:
        return self.chunk or 1

    @property
    def delay(self) -> int:
        return self.right

    @nn.nowrap
    def reach(self, frame: int) -> int:
        if self.chunk is None:
            raise ValueError("Attention.chunk is None: a frame sees the whole sequence; there is no latency to state")
        return (frame // self.chunk + 1) * self.chunk - 1 + self.right

    def setup(self):
        d, heads = self.d_in, self.heads
        self.query, self.key, self.value, self.output = (Linear(d, d**-0.5) for _ in range(4))
        self.position = self.param("position", nn.initializers.normal(d**-0.5), (d, heads, d // heads))
        self.key_bias = self.param("key_bias", nn.initializers.zeros, (heads, d // heads))
        self.position_bias = self.param("position_bias", nn.initializers.zeros, (heads, d // heads))

    @nn.nowrap
    def initial_state(self, batch: int) -> State:
        kept = self._context() + self.right
        of_head = jnp.zeros((batch, kept, self.heads, self.d_in // self.heads))
        held = jnp.zeros((batch, self.right, self.d_in))
        return {"key": of_head, "value": of_head, "mask": jnp.zeros((batch, kept), bool), "held": held}

    def __call__(self, x: Frames, mask: Mask) -> tuple[Output, OutputMask]:
        frames = x.shape[1]
        seen = band(frames, frames, self.chunk or frames, self.left, self.right)
        return self.attend(x, *self.keys_values(x), mask[:, None] & seen), mask

    def step(self, x: Frames, mask: Mask, state: State) -> tuple[Output, OutputMask, State]:
        left, count = self._context(), x.shape[1]
        key, value = self.keys_values(x)
        new = {"key": key, "value": value, "mask": mask, "held": x}
        whole = {name: jnp.concatenate([state[name], new[name]], axis=1) for name in new}
        late, mask = whole["held"], whole["mask"]
        allowed = mask[:, None] & band(late.shape[1], mask.shape[1], self.chunk or 1, left, self.right)
        # The frames that still wait for theirs are asked, too: queries are the last of the keys.
        y = self.attend(late, whole["key"], whole["value"], allowed)[:, :count]
        return y, mask[:, left : left + count], {name: values[:, count:] for name, values in whole.items()}

    @nn.nowrap
    def _context(self) -> int:
        for name in ("chunk", "left"):
            if getattr(self, name) is None:
                raise ValueError(
                    f"Attention.{name} is None: a frame sees more than a state of fixed size can hold, and the layer "
                    "has no step; give chunk and left to stream, or call it on whole sequences"
                )
        return self.left or 0

    def keys_values(self, x: Frames) -> tuple[Float[Array, "b t heads k"], Float[Array, "b t heads k"]]:
        """What frames answer with."""
        return self._split(self.key(x)), self._split(self.value(x))

    def attend(
        self,
        x: Frames,
        key: Float[Array, "b s heads k"],
        value: Float[Array, "b s heads k"],
        allowed: Bool[Array, "b t s"],
        soft: Float[Array, "b t s"] | None = None,
    ) -> Frames:
        """What frames learn from keys and values.

        Args:
          x: the frames that ask, the last of the keys.
          key: of `keys_values`.
          value: of `keys_values`.
          allowed: which key a frame may see.
          soft: logarithm of a factor of the weights, before they are normalised, from which the gradient is taken in
            place of `allowed`; None: the gradient is that of the output.

        Returns:
          A frame for each that asks.
        """
        query, scale = self._split(self.query(x)), (self.d_in // self.heads) ** -0.5
        asked = ops.einsum("bshk,dhk->hbsd", query + ops.value(self.position_bias), self.position)
        distant = by_distance(asked.reshape(*asked.shape[:3], 2, -1), key.shape[1])
        # Heads first, as products want their batch: nothing is turned around on the way from scores to the output.
        query, key, value = (of.transpose(2, 0, 1, 3) for of in (query + ops.value(self.key_bias), key, value))
        scores = (query @ key.swapaxes(2, 3) + distant) * scale
        hard = jnp.where(allowed, scores, MASKED)
        if soft is None:
            # Normalised behind the product: fewer numbers, and a gradient that takes half the time on a CPU.
            weights = jnp.exp(hard - jax.lax.stop_gradient(jnp.max(hard, axis=-1, keepdims=True)))
            mixed = weights @ value / jnp.sum(weights, axis=-1, keepdims=True)
        else:
            smooth = jax.nn.softmax(scores + soft, axis=-1)
            mixed = (smooth + jax.lax.stop_gradient(jax.nn.softmax(hard, axis=-1) - smooth)) @ value
        return self.output(mixed.transpose(1, 2, 0, 3).reshape(x.shape))

    def _split(self, x: Frames) -> Float[Array, "b t heads k"]:
        return x.reshape(*x.shape[:2], self.heads, -1)
