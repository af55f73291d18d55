"""Several signals of an utterance: from the `speech` fields of a config to samples, features and their fusion.

A run has the signals that `speech.signals` names, of those of `zojax.data.audio.scenes`: 0 is the beam, 1 and 2 are
microphones. One signal is heard as an utterance close to the mouth is; several are fused before the encoder. Their
samples are [samples, signals].
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from launch.common.schema import Config
from models.transducer.fusion import FusionConfig, join_signals
from zojax.data.audio import prepared
from zojax.data.audio.augment import SpecAugment, spec_augment
from zojax.data.audio.features import FilterBank, log_mel
from zojax.data.audio.microphones import direction
from zojax.data.audio.scenes import SIGNALS, InRooms, separate, signals_of
from zojax.data.audio.waves import AudioError, read_channels, to_int16

__all__ = [
    "Array",
    "augment",
    "chosen",
    "front_end",
    "fusion_config",
    "in_rooms",
    "lengths",
    "one",
    "rows",
    "shape",
    "share",
    "steering",
]

# A signal is missing from a frame in which no bin has more than this: a signal without any change is at ln 2^-23. So a
# stream says by its samples alone which microphones are there. (Ours.)
SILENT = math.log(2.0**-22)

# Bins of a window of the frequency LSTM, where a frame has so many.
WINDOW = 24


def fusion_config(config: Config) -> FusionConfig | None:
    """The sizes of a config's fusion; None: it has one signal."""
    c = config.speech
    if c.fusion == "none":
        return None
    return FusionConfig(
        kind=c.fusion,
        bins=c.bins,
        signals=len(c.signals),
        dropout=float(c.channel_dropout),
        window=min(WINDOW, c.bins),
        hop=min(8, c.bins),
        hidden=c.fusion_width,
        planes=c.fusion_width,
    )


def in_rooms(config: Config, dry: prepared.Source) -> prepared.Source:
    """The utterances of a source in the rooms of a config; as they are, where it has no signals."""
    # The scenes of all runs are the same, whatever their seeds.
    return InRooms(source=dry, seed=0, wrong=float(config.speech.wrong)) if config.speech.signals else dry


def chosen(config: Config, samples: np.ndarray) -> np.ndarray:
    """The samples of an utterance of `in_rooms` that the run hears: [samples], or [samples, signals] of several."""
    return _selected(config, separate(samples)) if config.speech.signals else samples


def _selected(config: Config, signals: np.ndarray) -> np.ndarray:
    kept = signals[:, list(config.speech.signals)]
    return kept if config.speech.fusion != "none" else kept[:, 0]


def lengths(config: Config, utterances: prepared.Utterances) -> np.ndarray:
    """Samples of each signal of utterances."""
    return utterances.lengths // SIGNALS if config.speech.signals else utterances.lengths


def shape(config: Config) -> tuple[int, ...]:
    """What follows the samples in the shape of a waveform: (signals,) where they are fused, else ()."""
    return (len(config.speech.signals),) if config.speech.fusion != "none" else ()


def front_end(config: Config, bank: FilterBank) -> Callable[[jax.Array], jax.Array]:
    """From int16 samples [b, samples], or [b, samples, signals] of a fusion, to the frames that the model takes."""
    return partial(_several, bank) if config.speech.fusion != "none" else one(bank)


def one(bank: FilterBank) -> Callable[[jax.Array], jax.Array]:
    """From int16 samples [b, samples] to frames."""
    return partial(_one, bank)


def _one(bank: FilterBank, pcm: jax.Array) -> jax.Array:
    return log_mel(pcm.astype(jnp.float32) / 32768, bank)


def _several(bank: FilterBank, pcm: jax.Array) -> jax.Array:
    x = jnp.moveaxis(_one(bank, jnp.moveaxis(pcm, 2, 1)), 1, 3)  # [b, t, bins, signals]
    return join_signals(x, (x > SILENT).any(axis=2))


def augment(config: Config) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """(frames of an utterance, their number, key) -> frames under masks and at another level, all signals alike."""
    c = config.speech
    masks = SpecAugment(
        frequency_masks=c.frequency_masks,
        frequency_width=c.frequency_width,
        time_masks=c.time_masks,
        time_width=c.time_width,
        time_share=0.3,
    )
    signals = len(c.signals) if c.fusion != "none" else 0
    return partial(_augment, masks, float(c.gain), signals)


def _augment(
    masks: SpecAugment, gain: float, signals: int, x: jax.Array, frames: jax.Array, key: jax.Array
) -> jax.Array:
    of_gain, of_masks = jax.random.split(key)
    # A louder signal is a constant on top of the logarithm of its energy.
    louder = jax.random.uniform(of_gain, (), minval=-gain, maxval=gain) * (math.log(10) / 10)
    if not signals:
        return spec_augment(x + louder, frames, of_masks, masks)
    features, present = x[:, :-signals], x[:, -signals:]
    features = features.reshape(len(x), -1, signals) + louder
    masked = jax.vmap(lambda one: spec_augment(one, frames, of_masks, masks), in_axes=2, out_axes=2)(features)
    return join_signals(masked[None], present[None] > 0.5)[0]


def rows(config: Config, x: np.ndarray) -> np.ndarray:
    """Frames of the model as frames of one signal, [n, bins]: those of all signals, where these are there."""
    if config.speech.fusion == "none":
        return x
    signals = len(config.speech.signals)
    features = np.swapaxes(x[:, :-signals].reshape(len(x), -1, signals), 1, 2)
    return features[x[:, -signals:] > 0.5]


def steering(found: prepared.Source, ids: Sequence[str]) -> list[bool]:
    """Whether the beam of each utterance is steered rightly; nothing of utterances without a beam."""
    return [found.scene(name).right for name in ids] if isinstance(found, InRooms) else []


def share(params: Mapping[str, Any]) -> tuple[int, int]:
    """Weights of the fusion, and of the whole model."""
    trees = params.get("encoder", {}).get("fusion", {}), params
    of_fusion, of_all = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in trees)
    return of_fusion, of_all


class Array(NamedTuple):
    """What the channels of a file are to a run with several signals.

    Attributes:
      microphones: places of the channels' microphones, in metres; None: the channels are signals.
      look: direction of the beam that is made of them.
      missing: signals of the run, by their order in it, that are not heard.
    """

    microphones: np.ndarray | None = None
    look: np.ndarray | None = None
    missing: tuple[int, ...] = ()

    @classmethod
    def parse(cls, own: Sequence[int], *, microphones: str, look: str, missing: str) -> "Array":
        """The array of flags.

        Args:
          own: signals of the run.
          microphones: places, as "X,Y,Z X,Y,Z ...", or nothing.
          look: direction, as "X,Y,Z", or nothing.
          missing: signals, as "0,2", or nothing.

        Raises:
          ValueError: if a flag is malformed, stands alone, or does not go with the run.
        """
        if not microphones + look + missing:
            return cls()
        if not own:
            raise ValueError(f"--microphones={microphones}, --look={look}, --missing={missing}: the run has one signal")
        if bool(microphones) != bool(look):
            raise ValueError(f"--microphones={microphones}, --look={look}: both or none are needed")
        count = len(own)
        gone = _numbers("missing", missing, int) if missing else []
        if gone and (count < 2 or not set(gone) < set(range(count))):
            raise ValueError(f"--missing={missing}: some of a fusion's signals 0 to {count - 1}, not all, are needed")
        if not microphones:
            return cls(missing=tuple(gone))
        places = np.array([_numbers("microphones", place, float, 3) for place in microphones.split()])
        towards = np.array(_numbers("look", look, float, 3))
        if len(places) < 2 or not np.linalg.norm(towards) > 0:
            raise ValueError(f"--microphones={microphones}, --look={look}: two places or more and a way are needed")
        return cls(places, towards, tuple(gone))

    def read(self, config: Config, path: str) -> np.ndarray:
        """The samples of a file as the run takes them, [samples] or [samples, signals].

        Raises:
          AudioError: if the file cannot be read, or has another number of channels.
        """
        x, own = read_channels(path), config.speech.signals
        if self.microphones is not None and self.look is not None:
            if x.shape[1] != len(self.microphones):
                raise AudioError(f"it has {x.shape[1]} channels; --microphones has {len(self.microphones)} places")
            towards = direction(self.look + self.microphones.mean(axis=0), self.microphones)
            x = to_int16(signals_of(x.T / 32768.0, self.microphones, towards).T.astype(np.float32))
        if x.shape[1] == SIGNALS:
            return self.without_missing(_selected(config, x))
        if x.shape[1] != len(own):
            needed = f"{SIGNALS}, the beam and two microphones, or {len(own)}, those of the run"
            raise AudioError(f"it has {x.shape[1]} channels; {needed}, are needed, or --microphones and --look")
        return self.without_missing(x.reshape(len(x), *shape(config)))

    def without_missing(self, x: np.ndarray) -> np.ndarray:
        """Samples of the run's signals, without what is missing."""
        if not self.missing:
            return x
        heard = ~np.isin(np.arange(x.shape[1]), self.missing)
        return x * heard.astype(x.dtype)


def _numbers(flag: str, text: str, kind: Callable[[str], Any], count: int | None = None) -> list[Any]:
    parts = text.split(",")
    try:
        found = [kind(part) for part in parts]
    except ValueError:
        found = []
    if not found or count not in (None, len(found)):
        raise ValueError(f"--{flag}={text}: numbers with commas between them are needed")
    return found
