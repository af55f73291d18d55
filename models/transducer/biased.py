"""A transducer and its adapters to catalogues, as the encoder's program and the searches take them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.transducer.biasing import Biasing, BiasingConfig, Memories
from models.transducer.decode import Decodable
from models.transducer.model import TransducerConfig, decodable
from models.transducer.phrases import Catalogue

__all__ = ["bias", "bias_frames", "biased_decodable", "remember", "start_biasing"]

Params = Any


def start_biasing(config: TransducerConfig, biasing: BiasingConfig, key: Any) -> Params:
    """Random adapters, with which nothing is biased yet.

    Args:
      config: sizes of the transducer.
      biasing: sizes of the adapters.
      key: typed key.

    Returns:
      What stands under "biasing" in the transducer's tree.
    """
    x, tokens = jnp.zeros((1, 1, config.joint)), jnp.zeros((1, 1), jnp.int32)
    catalogue = dict.fromkeys(("pieces", "characters", "starts", "rows"), tokens)
    catalogue |= dict.fromkeys(("meaning", "unit_meaning"), jnp.zeros((1, biasing.meaning)))
    adapters, mask = _adapters(config, biasing), jnp.ones((1, 1), bool)
    return jax.jit(adapters.init)(key, catalogue, x, mask, x, tokens[:, :0], tokens[:, 0])["params"]


def bias(
    config: TransducerConfig,
    biasing: BiasingConfig,
    params: Params,
    catalogue: Catalogue,
    frames: Float[Array, "b t j"],
    mask: Bool[Array, "b t"],
    symbols: Float[Array, "b v j"],
    labels: Int[Array, "b u"],
    counts: Int[Array, "b"],
) -> tuple[Float[Array, "b t j"], Float[Array, "b v j"], Float[Array, "b"]]:
    """Both sides of a transducer, where the labels are known.

    Args:
      config: sizes of the transducer.
      biasing: sizes of the adapters.
      params: the whole tree.
      catalogue: see `models.transducer.phrases`.
      frames: of the encoder, of the joint width.
      mask: which frames there are; the first ones.
      symbols: of the predictor, of the joint width.
      labels: what the predictor has read.
      counts: labels of each utterance.

    Returns:
      (frames, symbols) with what the catalogues say to them, and by how many nats each utterance's attentions miss
      what is said.
    """
    adapters, own = _adapters(config, biasing), {"params": params["biasing"]}
    return adapters.apply(own, catalogue, frames, mask, symbols, labels, counts)  # type: ignore[return-value]


def remember(config: TransducerConfig, biasing: BiasingConfig, params: Params, catalogue: Catalogue) -> Memories:
    """Keys and values of catalogues, to be made once for each.

    Args:
      config: sizes of the transducer.
      biasing: sizes of the adapters.
      params: the whole tree.
      catalogue: see `models.transducer.phrases`.

    Returns:
      What `bias_frames` and `biased_decodable` take.
    """
    found = _adapters(config, biasing).apply({"params": params["biasing"]}, catalogue, method="remember")
    assert isinstance(found, Memories)
    return found


def bias_frames(
    config: TransducerConfig, biasing: BiasingConfig, params: Params, frames: Float[Array, "b t j"], memories: Memories
) -> Float[Array, "b t j"]:
    """Frames of the encoder, of whole utterances or of a piece of a stream, with what the catalogues say to them.

    Args:
      config: sizes of the transducer.
      biasing: sizes of the adapters.
      params: the whole tree.
      frames: of the joint width.
      memories: of `remember`.

    Returns:
      Frames.
    """
    adapters = _adapters(config, biasing)
    return adapters.apply({"params": params["biasing"]}, frames, memories, method="frames")  # type: ignore[return-value]


def biased_decodable(config: TransducerConfig, biasing: BiasingConfig, params: Params, memories: Memories) -> Decodable:
    """What a search needs of a transducer with adapters; its frames are those of `bias_frames`.

    A search keeps the hypotheses of an utterance side by side, so that each of them finds its catalogue without a copy.

    Args:
      config: sizes of the transducer.
      biasing: sizes of the adapters.
      params: the whole tree, of arrays or leaf types.
      memories: of a catalogue for each utterance, or of one for all.

    Returns:
      Predictor and joiner; equal configurations have the same functions, so that a search compiles once.

    Example:
      >>> from models.transducer.lstm import LstmConfig
      >>> from models.transducer.predictor import StatelessConfig
      >>> from models.transducer.task import TransducerTask
      >>> words = StatelessConfig(vocab_size=5, embedding=4)
      >>> config = TransducerConfig(encoder=LstmConfig(d_in=4, layers=1, hidden=8), predictor=words, joint=6)
      >>> biasing = BiasingConfig(embedding=4, hidden=3, width=8)
      >>> params = TransducerTask(config=config, biasing=biasing).init(jax.random.key(0))
      >>> catalogue = {"pieces": jnp.array([[1, 2], [3, 0]]), "rows": jnp.array([[0, 1]])}
      >>> model = biased_decodable(config, biasing, params, remember(config, biasing, params, catalogue))
      >>> model.predict(jnp.array([0, 0]), model.initial_state(2))[0].shape
      (2, 6)
    """
    base = decodable(config, params)
    start, step, joiner = _functions(config, biasing)
    kept = {"base": base.params, "biasing": params["biasing"], "memories": memories}
    return Decodable(params=kept, start=start, step=step, joiner=joiner)


@functools.lru_cache(maxsize=16)
def _functions(config: TransducerConfig, biasing: BiasingConfig) -> tuple[Callable, Callable, Callable]:
    adapters = _adapters(config, biasing)

    def base(params) -> Decodable:
        return decodable(config, params["base"])

    def start(params, batch):
        return base(params).initial_state(batch), adapters.initial_state(batch)

    def step(params, labels, state):
        symbol, of_base = base(params).predict(labels, state[0])
        own = {"params": params["biasing"]}
        symbol, written = adapters.apply(own, symbol, labels, state[1], params["memories"], method="symbol_step")  # type: ignore[misc]
        return symbol, (of_base, written)

    def joiner(params, frames, symbols):
        return base(params).join(frames, symbols)

    return start, step, joiner


def _adapters(config: TransducerConfig, biasing: BiasingConfig) -> Biasing:
    return Biasing(biasing, config.classes, config.joint)
