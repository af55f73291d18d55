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

__all__ = ["Attention", "band", "relative", "sinusoids"]


def sinusoids(queries: int, keys: int, width: int) -> Float[np.ndarray, "distances width"]:
    """Sinusoids of the distances from keys to queries, keys - 1 down to 1 - queries; the last key is at the last query.

        [sin(r w_0), sin(r w_1), .. cos(r w_0), ..],    w_n = 10000^(-2 n / width)

    Args:
      queries: frames that ask.
      keys: frames that answer; as many or more.
      width: of the table, even.

    Returns:
      float32 [keys + queries - 1, width].

    Example:
      >>> sinusoids(2, 3, 2).round(2)[:, 0].tolist()  # distances 2, 1, 0, -1
      [0.9..., 0.8..., 0.0, -0.8...]
    """
    distance = np.arange(keys - 1, -queries, -1.0)[:, None]
    angle = distance * np.exp(np.arange(0, width, 2) * (-math.log(10000) / width))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def relative(by_distance: Float[Array, "*b queries distances"], keys: int) -> Float[Array, "*b queries keys"]:
    """Turns scores by distance, in the order of `sinusoids`, into scores by key.

    Query i stands at key i + keys - queries, so that key j is in column queries - 1 - i + j of its row.

    Args:
      by_distance: [..., queries, keys + queries - 1].
      keys: frames that answer.

    Returns:
      [..., queries, keys].

    Example:
      >>> relative(jnp.array([[2.0, 1.0, 0.0, -1.0], [2.0, 1.0, 0.0, -1.0]]), 3).tolist()
      [[1.0, 0.0, -1.0], [2.0, 1.0, 0.0]]
    """
    *batch, queries, distances = by_distance.shape
    # Rows that are one longer, read as rows that are one shorter: each begins one column later than the row before.
    flat = jnp.pad(by_distance, [(0, 0)] * (by_distance.ndim - 1) + [(0, 1)]).reshape(*batch, -1)
    flat = flat[..., queries - 1 : queries - 1 + queries * distances]
    return flat.reshape(*batch, queries, distances)[..., :keys]


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
        query = self._split(self.query(x))
        scores = jnp.einsum("bshk,bthk->bhst", query + ops.value(self.key_bias), key)
        scores = scores + relative(self._by_distance(query + ops.value(self.position_bias), key.shape[1]), key.shape[1])
        scores = scores * (self.d_in // self.heads) ** -0.5
        weights = jax.nn.softmax(jnp.where(allowed[:, None], scores, MASKED), axis=-1)
        if soft is not None:
            smooth = jax.nn.softmax(scores + soft[:, None], axis=-1)
            weights = smooth + jax.lax.stop_gradient(weights - smooth)
        return self.output(jnp.einsum("bhst,bthk->bshk", weights, value).reshape(x.shape))

    def _split(self, x: Frames) -> Float[Array, "b t heads k"]:
        return x.reshape(*x.shape[:2], self.heads, -1)

    def _by_distance(self, query: Float[Array, "b s heads k"], keys: int) -> Float[Array, "b heads s distances"]:
        """Products of queries with W_r s(distance), in the order that takes the fewer operations."""
        batch, count, heads, width = query.shape
        table = jnp.asarray(sinusoids(count, keys, self.d_in))
        rows = batch * count * heads
        if rows * (width + table.shape[0]) < table.shape[0] * (self.d_in + rows // heads):
            mapped = ops.einsum("bshk,dhk->bhsd", query, self.position)
            return jnp.einsum("bhsd,md->bhsm", mapped, table)
        return jnp.einsum("bshk,mhk->bhsm", query, ops.einsum("md,dhk->mhk", table, self.position))
