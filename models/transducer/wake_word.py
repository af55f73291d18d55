"""Dual attention: a small one over wake words while a spotter hears one, the large one over the catalogue elsewhere.

    y_t = x_t + bias_small(x_t)   where p_t > threshold,   y_t = x_t + bias_large(x_t)   elsewhere

(arXiv 2304.01905; the spotter, the sizes and how the branches are chosen are ours.) x are a transducer's frames of the
joint width, before the joiner; both branches are `BiasingAttention`s over phrase vectors, whose keys and values
`remember` makes once for a list of phrases. The attention that was not chosen does not run: a stream takes a branch of
the program at each frame, and whole utterances are worked on in blocks of frames that have chosen alike. A frame of the
large attention costs 2 d (d_q + d_out) + 4 K d operations for K phrases and a width of d, and its gate 2 (d_q + d).

The rival is `single`: the large attention at every frame, over wake words and catalogue together.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from models.language.config import check_sizes
from models.transducer.biasing_attention import BiasingAttention, Memory
from models.transducer.layers import Activation, Dense
from models.transducer.lstm import Lstm
from models.transducer.phrases import PhraseEncoder
from models.transducer.streaming import Serial, serial

__all__ = [
    "Memories",
    "WakeWordConfig",
    "bias",
    "bias_step",
    "branches",
    "init",
    "jittered",
    "remember",
    "spot",
    "spot_state",
    "spot_step",
]

Params = Any
State = Any
Branch = Callable[[Float[Array, "n d"]], Float[Array, "n d"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WakeWordConfig:
    """Sizes of the dual attention.

    Attributes:
      width: of the frames.
      classes: labels that phrases are written in; 0 fills them up.
      embedding: width of the table of the phrases' labels.
      hidden: cells of the phrase encoder, each direction.
      small: width of the attention over wake words.
      large: width of the attention over the catalogue.
      spotter: cells of the spotter.
      single: whether there is the large attention alone, over all phrases at every frame.
      threshold: probability from which on a frame is one of a wake word.
      least: frames of a wake word in a row that are taken for one that was said.
      block: frames that are worked on together in whole utterances.

    Raises:
      ValueError: if a size is not positive, or the threshold is no probability.

    Example:
      >>> WakeWordConfig(width=8, classes=5, threshold=1.0)
      Traceback (most recent call last):
      ...
      ValueError: WakeWordConfig.threshold is 1.0; it must be above 0 and below 1
    """

    width: int
    classes: int
    embedding: int = 64
    hidden: int = 64
    small: int = 64
    large: int = 640
    spotter: int = 16
    single: bool = False
    threshold: float = 0.5
    least: int = 3
    block: int = 64

    def __post_init__(self):
        check_sizes(self)
        if not 0 < self.threshold < 1:
            raise ValueError(f"WakeWordConfig.threshold is {self.threshold}; it must be above 0 and below 1")


class Memories(NamedTuple):
    """Keys and values of lists of phrases: of the wake words, None with `single`, and of the catalogue."""

    small: Memory | None
    large: Memory


def _phrases(config: WakeWordConfig) -> PhraseEncoder:
    return PhraseEncoder(config.classes, config.embedding, config.hidden)


def _spotter(config: WakeWordConfig) -> Serial:
    """Frames to logits: causal, so that it streams."""
    c = config
    return serial(
        Dense(c.width, c.spotter, name="in"),
        Activation(c.spotter, "relu"),
        Lstm(c.spotter, c.spotter, name="lstm"),
        Dense(c.spotter, 1, name="out"),
    )


def _attention(config: WakeWordConfig, name: str) -> BiasingAttention:
    return BiasingAttention(config.width, 2 * config.hidden, getattr(config, name))


def init(config: WakeWordConfig, key: Any) -> Params:
    """Weights to start from: both attentions say nothing, so that a transducer is at first what it was without.

    Args:
      config: sizes.
      key: typed key.

    Returns:
      {"phrases", "large"}, and {"small", "spotter"} but with `single`.

    Example:
      >>> config = WakeWordConfig(width=8, classes=5)
      >>> sorted(jax.eval_shape(lambda: init(config, jax.random.key(0))))
      ['large', 'phrases', 'small', 'spotter']
    """
    x, labels = jnp.zeros((1, 1, config.width)), jnp.ones((1, 1), jnp.int32)
    vectors, real = jnp.zeros((1, 1, 2 * config.hidden)), jnp.ones((1, 1), bool)
    made = {"phrases": (_phrases(config), (labels,)), "large": (_attention(config, "large"), (x, vectors, real))}
    if not config.single:
        made["small"] = _attention(config, "small"), (x, vectors, real)
        made["spotter"] = _spotter(config), (x, real)
    # A part has the weights that it would have without the others.
    keys = {name: jax.random.fold_in(key, number) for number, name in enumerate(made)}
    return {name: jax.jit(module.init)(keys[name], *like)["params"] for name, (module, like) in made.items()}


def remember(config: WakeWordConfig, params: Params, wake: Int[Array, "w l"], catalogue: Int[Array, "k m"]) -> Memories:
    """Keys and values of lists of phrases, to be made once for a list.

    Args:
      config: sizes.
      params: of `init`.
      wake: labels of the wake words, filled up with 0; a phrase without labels is none. There may be no phrase.
      catalogue: of the catalogue, likewise.

    Returns:
      What the attentions need.

    Example:
      >>> config = WakeWordConfig(width=8, classes=5, small=2, large=6)
      >>> words, names = jnp.ones((2, 3), int), jnp.ones((7, 4), int)
      >>> kept = jax.eval_shape(lambda: remember(config, init(config, jax.random.key(0)), words, names))
      >>> kept.small.keys.shape, kept.large.keys.shape
      ((1, 2, 1, 2), (1, 7, 1, 6))
    """

    def kept(name: str, *lists: Array) -> Memory:
        most = max(labels.shape[1] for labels in lists)
        labels = jnp.concatenate([jnp.pad(x, ((0, 0), (0, most - x.shape[1]))) for x in lists])
        vectors = _phrases(config).apply({"params": params["phrases"]}, labels)
        real = jnp.any(labels > 0, axis=1)
        attention = _attention(config, name)
        return attention.apply({"params": params[name]}, vectors[None], real[None], method="remember")  # type: ignore[return-value]

    if config.single:
        return Memories(None, kept("large", wake, catalogue))
    return Memories(kept("small", wake), kept("large", catalogue))


def branches(config: WakeWordConfig, params: Params, memories: Memories) -> tuple[Branch, ...]:
    """The attentions that a frame chooses from: 0 the large one, 1 the small one, where there is one.

    Args:
      config: sizes.
      params: of `init`.
      memories: of `remember`.

    Returns:
      Functions from frames [n, width] to their biases.

    Example:
      >>> config, phrases = WakeWordConfig(width=8, classes=5), jnp.ones((2, 3), int)
      >>> def biases(x):
      ...     params = init(config, jax.random.key(0))
      ...     large, small = branches(config, params, remember(config, params, phrases, phrases))
      ...     return large(x), small(x)
      >>> [bias.shape for bias in jax.eval_shape(biases, jnp.ones((3, 8)))]
      [(3, 8), (3, 8)]
    """

    def branch(name: str, memory: Memory) -> Branch:
        attention = _attention(config, name)
        return lambda x: attention.apply({"params": params[name]}, x[None], memory, method="bias")[0]  # type: ignore[index]

    found = [branch("large", memories.large)]
    return tuple(found if memories.small is None else [*found, branch("small", memories.small)])


def bias(
    chosen: Sequence[Branch], x: Float[Array, "b t d"], choice: Int[Array, "b t"], block: int
) -> Float[Array, "b t d"]:
    """The bias of whole utterances: blocks of frames that have chosen alike go through their branch, and no other.

    Frames are gathered by choice, each choice filled up to whole blocks, so that none is dropped however many choose
    what: n frames and two branches have n / block + 1 blocks at most, and those that are empty are skipped.

    Args:
      chosen: branches, from frames [block, d] to their biases.
      x: frames.
      choice: number of the branch of each frame; one that is no branch's: 0 is added.
      block: frames of a block.

    Returns:
      What is to be added to x.

    Example:
      >>> x, choice = jnp.ones((1, 4, 2)), jnp.array([[0, 1, 1, 2]])
      >>> bias((lambda x: 2 * x, lambda x: 3 * x), x, choice, 2)[0, :, 0].tolist()
      [2.0, 3.0, 3.0, 0.0]
    """
    count, kinds, flat = choice.size, len(chosen), choice.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    sizes = jnp.sum(flat == jnp.arange(kinds)[:, None], axis=1)
    blocks = -(-sizes // block)
    turn = jnp.arange(-(-count // block) + kinds - 1)
    # The branch of each turn, and which of its blocks it is.
    branch = jnp.sum(turn >= jnp.cumsum(blocks)[:, None], axis=0)
    known = jnp.minimum(branch, kinds - 1)
    number = turn - (jnp.cumsum(blocks) - blocks)[known]
    within = number[:, None] * block + jnp.arange(block)
    real = (within < sizes[known][:, None]) & (branch < kinds)[:, None]
    place = (jnp.cumsum(sizes) - sizes)[known][:, None] + within
    frame = jnp.where(real, order[jnp.minimum(place, count - 1)], count)
    frames = x.reshape(count, -1).at[frame].get(mode="fill", fill_value=0)
    paths = (*chosen, jnp.zeros_like)
    _, made = lax.scan(lambda _, now: (None, lax.switch(now[0], paths, now[1])), None, (branch, frames))
    return jnp.zeros_like(x).reshape(count, -1).at[frame].set(made, mode="drop").reshape(x.shape)


def bias_step(chosen: Sequence[Branch], x: Float[Array, "b c d"], choice: Int[Array, "b c"]) -> Float[Array, "b c d"]:
    """The bias of the next frames of streams: at each frame the branches that some row has chosen run, and no other.

    Args:
      chosen: one branch or two.
      x: frames.
      choice: number of the branch of each frame; one that is no branch's: the frame is none, and gets anything.

    Returns:
      What is to be added to x.

    Example:
      >>> x, choice = jnp.ones((1, 3, 2)), jnp.array([[0, 1, 0]])
      >>> bias_step((lambda x: 2 * x, lambda x: 3 * x), x, choice)[0, :, 0].tolist()
      [2.0, 3.0, 2.0]
    """
    first, last = chosen[0], chosen[-1]
    paths = [jnp.zeros_like, first]

    def frame(_, now):
        x, choice = now
        taken = [jnp.any(choice == number).astype(jnp.int32) << number for number in range(len(chosen))]
        both = lambda x: jnp.where((choice == 0)[:, None], first(x), last(x))  # noqa: E731
        return None, lax.switch(sum(taken), [*paths, last, both][: 1 << len(chosen)], x)

    _, made = lax.scan(frame, None, (jnp.swapaxes(x, 0, 1), choice.T))
    return jnp.swapaxes(made, 0, 1)


def spot(
    config: WakeWordConfig, params: Params, x: Float[Array, "b t d"], mask: Bool[Array, "b t"]
) -> Float[Array, "b t"]:
    """Logits that a frame is one of a wake word, by the frames so far.

    Args:
      config: sizes.
      params: of `init`.
      x: frames.
      mask: True where there is one.

    Returns:
      Logits; sigmoid(logit) > threshold chooses the small attention.

    Example:
      >>> config, x, mask = WakeWordConfig(width=8, classes=5), jnp.ones((2, 3, 8)), jnp.ones((2, 3), bool)
      >>> jax.eval_shape(lambda: spot(config, init(config, jax.random.key(0)), x, mask)).shape
      (2, 3)
    """
    return spot_step(config, params, x, mask, spot_state(config, x.shape[0]))[0]


def spot_state(config: WakeWordConfig, batch: int) -> State:
    """The spotter's state before the first frame."""
    return _spotter(config).initial_state(batch)


def spot_step(
    config: WakeWordConfig, params: Params, x: Float[Array, "b c d"], mask: Bool[Array, "b c"], state: State
) -> tuple[Float[Array, "b c"], State]:
    """`spot` of the next frames of streams; returns the logits and the state behind them."""
    y, _, state = _spotter(config).apply({"params": params["spotter"]}, x, mask, state, method="step")  # type: ignore[misc]
    return y[..., 0], state


def jittered(spans: Float[Array, "b 2"], frames: int, key: Any = None, *, jitter: int = 0) -> Bool[Array, "b frames"]:
    """Which frames are of a wake word, each end of it moved by chance: a spotter is never so exact as what trains it.

    Args:
      spans: first frame and the one behind the last, in frames, which need not be whole; equal: no wake word.
      frames: how many there are.
      key: of the jitter; None: there is none.
      jitter: an end moves by -jitter to jitter frames, all alike.

    Returns:
      True where the middle of a frame is inside.

    Example:
      >>> jittered(jnp.array([[1.0, 2.6], [0.0, 0.0]]), 4).tolist()
      [[False, True, True, False], [False, False, False, False]]
    """
    ends = spans
    if key is not None and jitter:
        ends = spans + jax.random.randint(key, spans.shape, -jitter, jitter + 1)
    middle = jnp.arange(frames) + 0.5
    inside = (middle >= ends[:, :1]) & (middle < ends[:, 1:])
    return inside & (spans[:, 1:] > spans[:, :1])
