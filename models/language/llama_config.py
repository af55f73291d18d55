"""The configuration of LLaMA's decoder and its relatives, from a Hugging Face config.json and back."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from models.language.config import check_sizes, fill, read
from models.language.layers import ACTIVATIONS

__all__ = ["MODEL_TYPES", "LlamaConfig", "RopeScaling"]

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """LLaMA 3.1's scaling of rotary frequencies, which stretches the slow ones to a longer context.

    With the wavelength w of a frequency and the context C before: f where w < C / high, f / factor where w > C / low,
    and between the two a mean of both, linear in C / w.

    Args:
      factor: by which the slowest frequencies are divided.
      low_freq_factor: "low".
      high_freq_factor: "high".
      original_max_position_embeddings: C, in tokens.

    Raises:
      ValueError: if a field is not positive, or high_freq_factor is not above low_freq_factor.

    Example:
      >>> RopeScaling(factor=8.0, original_max_position_embeddings=64)(np.array([1.0, 1e-3])).tolist()
      [1.0, 0.000125]
    """

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self):
        check_sizes(self)
        if not self.factor > 0 or not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(f"{self}: factor must be positive, and 0 < low_freq_factor < high_freq_factor")

    def __call__(self, frequency: Float[np.ndarray, " half"]) -> Float[np.ndarray, " half"]:
        """The scaled frequencies, radians a position."""
        turns = self.original_max_position_embeddings * frequency / (2 * np.pi)
        kept = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0.0, 1.0)
        return kept * frequency + (1 - kept) * frequency / self.factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes and constants of a decoder, mostly under the names of Hugging Face's config.json.

    Args:
      model_type: "llama", "mistral", "qwen2" (biases on queries, keys and values) or "qwen3" (RMSNorm of every query
        and key).
      vocab_size: rows of the word table.
      hidden_size: width d of the residual stream.
      num_hidden_layers: layers L.
      num_attention_heads: heads of queries.
      num_key_value_heads: heads of keys and values; divides the former.
      head_dim: width of a head; even.
      intermediate_size: width of the MLP.
      hidden_act: the gate's activation.
      max_position_embeddings: longest sequence for which the model is meant; nothing depends on it.
      rms_norm_eps: constant under the root of RMSNorm.
      rope_theta: base of the rotary frequencies.
      rope_scaling: how they are scaled, or None.
      windows: for each layer, how many positions back a query sees, itself among them; 0: all. () is 0 everywhere.
      attention_bias: whether queries, keys, values and the output of attention have biases.
      tie_word_embeddings: whether the word table is the output layer, too.
      initializer_range: standard deviation of randomly initialised matrices.

    Raises:
      ValueError: naming the field.

    Example:
      >>> LlamaConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
      ...             head_dim=2, intermediate_size=8).qkv_bias
      False
    """

    model_type: str = "llama"
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    windows: tuple[int, ...] = ()
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    def __post_init__(self):
        check_sizes(self)
        for name, value, wrong, right in (
            ("model_type", self.model_type, self.model_type not in MODEL_TYPES, f"one of {', '.join(MODEL_TYPES)}"),
            ("hidden_act", self.hidden_act, self.hidden_act not in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
            ("head_dim", self.head_dim, self.head_dim % 2, "even"),
            (
                "num_key_value_heads",
                self.num_key_value_heads,
                self.num_attention_heads % self.num_key_value_heads,
                f"a divisor of num_attention_heads = {self.num_attention_heads}",
            ),
            (
                "windows",
                self.windows,
                len(self.windows) not in (0, self.num_hidden_layers) or any(w < 0 for w in self.windows),
                f"empty or {self.num_hidden_layers} numbers, none negative",
            ),
        ):
            if wrong:
                raise ValueError(f"LlamaConfig.{name} is {value!r}; it must be {right}")

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.attention_bias or self.model_type == "qwen2"

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised, a head each."""
        return self.model_type == "qwen3"

    def frequencies(self) -> Float[np.ndarray, " half"]:
        """The rotary frequencies, radians a position, float32 [head_dim / 2]."""
        frequency = self.rope_theta ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        return np.asarray(self.rope_scaling(frequency) if self.rope_scaling else frequency, np.float32)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LlamaConfig":
        """Reads the mapping that a Hugging Face config.json holds; keys of no use here are passed over.

        Args:
          values: the parsed JSON object.

        Returns:
          The configuration.

        Raises:
          ValueError: if a size is missing, or the file asks for what is not implemented.

        Example:
          >>> LlamaConfig.from_dict({"model_type": "gemma"})
          Traceback (most recent call last):
          ...
          ValueError: config.json: model_type is 'gemma'; it must be one of llama, mistral, qwen2, qwen3
        """
        values = {name: value for name, value in values.items() if value is not None}
        kind = values.get("model_type", "llama")
        if kind not in MODEL_TYPES:
            raise ValueError(f"config.json: model_type is {kind!r}; it must be one of {', '.join(MODEL_TYPES)}")
        if values.get("mlp_bias"):
            raise ValueError("config.json: mlp_bias is true; it must be false")
        heads = values.get("num_attention_heads")
        if kind == "llama":  # the others state it
            values.setdefault("num_key_value_heads", heads)
        if "head_dim" not in values and isinstance(heads, int) and isinstance(values.get("hidden_size"), int):
            values["head_dim"] = 128 if kind == "qwen3" else values["hidden_size"] // max(heads, 1)
        if kind in ("mistral", "qwen2"):
            values["attention_bias"] = False  # no field of theirs
        rope = _rope(values)
        return fill(cls, {**values, **rope, "windows": _windows(kind, values)})

    @classmethod
    def from_file(cls, path: Path | str) -> "LlamaConfig":
        """Reads a Hugging Face config.json.

        Args:
          path: the file.

        Returns:
          The configuration.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: as `from_dict`, or if the file is no JSON object.
        """
        return cls.from_dict(read(path))

    def to_dict(self) -> dict[str, Any]:
        """The mapping for a config.json that `transformers` reads.

        Returns:
          A JSON object.

        Raises:
          ValueError: if no config.json of this model_type can state the windows.

        Example:
          >>> config = LlamaConfig(model_type="qwen3", vocab_size=8, hidden_size=4, num_hidden_layers=2, head_dim=2,
          ...     num_attention_heads=2, num_key_value_heads=1, intermediate_size=8, windows=(0, 4))
          >>> LlamaConfig.from_dict(config.to_dict()) == config
          True
        """
        values = dataclasses.asdict(self)
        windows = values.pop("windows")
        sizes = {w for w in windows if w}
        if len(sizes) > 1 or (self.model_type == "mistral" and sizes and 0 in windows):
            raise ValueError(f"LlamaConfig.windows is {windows}; a {self.model_type} config.json cannot say so")
        if sizes and self.model_type == "llama":
            raise ValueError(f"LlamaConfig.windows is {windows}; a llama config.json cannot say so: use mistral")
        if self.rope_scaling:
            values["rope_scaling"]["rope_type"] = "llama3"
        if self.model_type == "mistral":
            values["sliding_window"] = max(sizes, default=None)
        elif self.model_type != "llama":
            kinds = ["sliding_attention" if w else "full_attention" for w in windows or (0,) * self.num_hidden_layers]
            values |= {"use_sliding_window": bool(sizes), "sliding_window": max(sizes, default=None)}
            values |= {"layer_types": kinds, "max_window_layers": kinds.count("full_attention")}
        return values


def _rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """rope_theta and rope_scaling, from the keys of either generation of transformers."""
    stated = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(stated, dict):
        raise ValueError(f"config.json: rope_scaling is {stated!r}; it must be an object")
    kind = stated.get("rope_type", stated.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"config.json: the rope_type is {kind!r}; it must be 'default' or 'llama3'")
    if stated.get("partial_rotary_factor", values.get("partial_rotary_factor", 1)) != 1:
        raise ValueError("config.json: partial_rotary_factor must be 1")
    scaling = fill(RopeScaling, stated) if kind == "llama3" else None
    theta = stated.get("rope_theta", values.get("rope_theta"))
    return {"rope_theta": theta, "rope_scaling": scaling}


def _windows(kind: str, values: Mapping[str, Any]) -> tuple[int, ...]:
    size, layers = values.get("sliding_window", 0), values.get("num_hidden_layers", 0)
    for name, value in (("sliding_window", size), ("num_hidden_layers", layers)):
        if not isinstance(value, int):
            raise ValueError(f"config.json: {name} is {value!r}; it must be of type int")
    if kind == "llama" or not size or (kind != "mistral" and not values.get("use_sliding_window", False)):
        return ()
    if kind == "mistral":
        return (size,) * layers
    kinds = values.get("layer_types")
    windowed = (
        [layer >= values.get("max_window_layers", 28) for layer in range(layers)]
        if kinds is None
        else [name == "sliding_attention" for name in kinds]
    )
    return tuple(size if yes else 0 for yes in windowed)
