"""What a step of speech takes, by its shapes alone: to lower, plan and weigh a config without its data."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from launch.common.schema import Config
from launch.speech import recipe, signals
from models.transducer.task import TransducerTask
from zojax.data.audio.waves import RATE

__all__ = ["Shapes", "shapes"]

# Wake words, and labels of a phrase, where a config has any.
WAKE_WORDS, PHRASE = 5, 16


class Shapes(NamedTuple):
    """A task, and what its loss is given.

    Attributes:
      task: the transducer.
      params: shapes of its weights.
      batch: shapes of a training batch.
    """

    task: TransducerTask
    params: Any
    batch: dict[str, Any]


def shapes(config: Config, *, seconds: float, labels: int, characters: int = 27) -> Shapes:
    """The shapes of a config's longest training batch.

    Args:
      config: a config that `schema.check` has passed.
      seconds: of the longest utterance.
      labels: of the wordiest one.
      characters: of the alphabet, where the units are characters.

    Returns:
      The shapes; `task.loss` can be traced with them.

    Example:
      >>> from configs import librispeech_rnnt
      >>> found = shapes(librispeech_rnnt.get_config(), seconds=16.0, labels=80)
      >>> found.batch["pcm"].shape, found.batch["labels"].shape
      ((512, 256000), (512, 80))
    """
    samples = round(seconds * RATE)
    rows = max(min(config.data.batch_size, config.speech.seconds * RATE // samples), 1)
    task = recipe.make_task(config, (config.speech.pieces or characters) + 1)
    params = jax.eval_shape(task.init, jax.random.key(0))
    of = jax.ShapeDtypeStruct
    batch: dict[str, Any] = {
        "pcm": of((rows, samples, *signals.shape(config)), jnp.int16),
        "frame_lengths": of((rows,), jnp.int32),
        "labels": of((rows, labels), jnp.int32),
        "label_lengths": of((rows,), jnp.int32),
        "weight": of((rows,), jnp.float32),
        "id": of((rows,), jnp.int32),
        "step": of((), jnp.int32),
    }
    if config.wake.attention != "none":
        phrases = {"wake": (WAKE_WORDS, PHRASE), "catalogue": (config.wake.catalogue, PHRASE)}
        batch["phrases"] = {name: of(shape, jnp.int32) for name, shape in phrases.items()}
        batch["spans"] = of((rows, 2), jnp.int32)
    return Shapes(task, params, batch)
