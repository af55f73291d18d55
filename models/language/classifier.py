"""Text classification with a BERT encoder: mean pooling, a linear head, cross-entropy."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from models.language.bert import Bert, BertConfig
from models.language.layers import cast_matrices
from zojax import ops

__all__ = ["TextClassifier"]

Batch = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextClassifier:
    """The task of classifying texts: logits = W' mean_{t in mask}(h_t) + b on BERT's last hidden states.

    The mean is the plain mean over tokens, [CLS] and [SEP] included, as all-MiniLM pools; the normalisation to unit
    length that follows there is left out, because a linear head has no use for it.

    A batch is a mapping of `tokens` int32 [b, s], `mask` bool [b, s] (True at tokens), `label` int32 [b] in
    [0, num_classes) and `weight` float32 [b] (0 for rows that only fill a batch up). With `segment` int32 it is a
    packed one (`zojax.data.packing.PackedBatch`): b texts in fewer rows.

    Parameters: {"encoder": the tree of `Bert`, "head": {"kernel" [d, num_classes], "bias" [num_classes]}}. The head
    starts at zero, stays in float32, and may be replaced by `probe.fit_linear_probe`'s.

    Args:
      config: the encoder's sizes.
      num_classes: classes, 2 or more.
      pretrained: the encoder's tree, as `hub.load` returns it; None for a random encoder.
      dtype: type of the encoder's kernels and tables, "float32", "bfloat16" or "float16".
      shared_layers: so many layers, the lowest, are the same in all probes of a step: `prepare` runs them once.

    Raises:
      ValueError: if the model is no encoder, there are fewer than two classes, or not so many layers.

    Example:
      >>> config = BertConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
      ...                     intermediate_size=8)
      >>> task = TextClassifier(config=config, num_classes=2)
      >>> batch = {"tokens": jnp.ones((3, 5), jnp.int32), "mask": jnp.ones((3, 5), bool),
      ...          "label": jnp.array([0, 1, 1]), "weight": jnp.ones(3)}
      >>> loss, metrics = task.loss(task.init(jax.random.key(0)), batch)
      >>> f"{loss:.4f}"  # a zero head: log 2
      '0.6931'
    """

    config: BertConfig
    num_classes: int
    pretrained: Any = None
    dtype: str = "float32"
    shared_layers: int = 0

    def __post_init__(self):
        if not isinstance(self.config, BertConfig):
            raise ValueError(f"TextClassifier.config is a {type(self.config).__name__}; it must be a BertConfig")
        if self.num_classes < 2:
            raise ValueError(f"TextClassifier.num_classes is {self.num_classes}; it must be 2 or more")
        if not 0 <= self.shared_layers < self.config.num_hidden_layers:
            raise ValueError(
                f"TextClassifier.shared_layers is {self.shared_layers}; of {self.config.num_hidden_layers} layers it "
                "must leave one"
            )

    def init(self, key: Any) -> dict[str, Any]:
        """The parameters to start from.

        Args:
          key: typed key; used only without pretrained weights.

        Returns:
          {"encoder", "head"}, in buffers of their own, so that a loop may donate them.
        """
        if self.pretrained is None:
            tokens, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
            encoder = jax.jit(Bert(self.config).init)(key, tokens, mask)["params"]
        else:
            encoder = jax.tree.map(lambda x: jnp.array(x, copy=True), self.pretrained)
        kernel = jnp.zeros((self.config.hidden_size, self.num_classes), jnp.float32)
        head = {"kernel": kernel, "bias": jnp.zeros((self.num_classes,), jnp.float32)}
        return {"encoder": cast_matrices(encoder, self.dtype), "head": head}

    def prepare(self, params: Any, batch: Batch) -> Batch:
        """A batch with what enters the first layer that a probe moves, so that it is computed once a step.

        Args:
          params: the task's parameters, no probe.
          batch: as the class describes it.

        Returns:
          The batch, with `hidden` where there are shared layers.
        """
        if not self.shared_layers:
            return batch
        below, own = self._part(0, self.shared_layers)
        hidden = below.apply({"params": own(params)}, *self._inputs(batch), segments=_segments(batch))
        return {**batch, "hidden": hidden}

    def _hidden(self, params: Any, batch: Batch) -> Float[Array, "b s d"]:
        tokens, mask = self._inputs(batch)
        if "hidden" not in batch:
            encoder = Bert(self.config)
            return jnp.asarray(encoder.apply({"params": params["encoder"]}, tokens, mask, segments=_segments(batch)))
        above, own = self._part(self.shared_layers, self.config.num_hidden_layers)
        of = {"params": own(params)}
        return jnp.asarray(above.apply(of, batch["hidden"], mask, _segments(batch), method="continued"))

    def _inputs(self, batch: Batch) -> tuple[Array, Array]:
        return jnp.asarray(batch["tokens"]), jnp.asarray(batch["mask"])

    def _part(self, start: int, stop: int) -> tuple[Bert, Callable[[Any], Any]]:
        """An encoder of some of the layers, and where its parameters stand in the task's."""
        encoder = Bert(dataclasses.replace(self.config, num_hidden_layers=stop - start))

        def own(params: Any) -> Any:
            whole = params["encoder"]
            # Leaves of every type carry the layers' axis on all of their arrays: `nn.scan` slices them alike.
            return whole | {"layers": jax.tree.map(lambda leaf: leaf[start:stop], whole["layers"])}

        return encoder, own

    def features(self, params: Any, batch: Batch) -> Float[Array, "b d"]:
        """Pooled features: the mean of the last hidden states over the mask.

        Args:
          params: the task's parameters; "encoder" is enough.
          batch: `tokens` and `mask`; with `segment`, `label` too, for the number of texts; or what `prepare` makes.

        Returns:
          float32 [b, d]; 0 for a row without tokens.
        """
        mask, hidden = jnp.asarray(batch["mask"]), self._hidden(params, batch)
        if "segment" not in batch:
            weights = mask.astype(jnp.float32)
            return jnp.einsum("bsd,bs->bd", hidden, weights) / jnp.maximum(jnp.sum(weights, axis=1), 1.0)[:, None]
        segment = jnp.asarray(batch["segment"])
        # Padding has the number past the last, and so a row of zeros.
        member = jax.nn.one_hot(segment.ravel(), batch["label"].shape[0], axis=0, dtype=jnp.float32)
        return member @ hidden.reshape(member.shape[1], -1) / jnp.maximum(jnp.sum(member, axis=1), 1.0)[:, None]

    def logits(self, params: Any, batch: Batch) -> Float[Array, "b classes"]:
        """Unnormalised log-probabilities of the classes.

        Args:
          params: the task's parameters.
          batch: as for `features`.

        Returns:
          float32 [b, num_classes].
        """
        head = params["head"]
        return ops.dot(self.features(params, batch), head["kernel"]) + ops.value(head["bias"])

    def loss(
        self, params: Any, batch: Batch, *, key: Any = None
    ) -> tuple[Float[Array, ""], dict[str, tuple[Array, Array]]]:
        """Weighted cross-entropy, divided by the number of rows that have a weight.

        Not by the sum of the weights: of examples drawn by probabilities that sum varies from batch to batch, and
        the quotient is biased.

        Args:
          params: the task's parameters, as arrays or leaf types.
          batch: as the class describes it.
          key: of no use here: the model has no dropout.

        Returns:
          (loss in nats, float32; the metrics of `evaluate`). A label outside [0, num_classes) gives NaN.
        """
        del key
        metrics = self.evaluate(params, batch)
        rows = jnp.sum(jnp.asarray(batch["weight"]) > 0)
        # A batch of weight 0 has loss 0, not 0/0.
        return metrics["loss"][0] / jnp.maximum(rows, 1).astype(jnp.float32), metrics

    def evaluate(self, params: Any, batch: Batch) -> dict[str, tuple[Array, Array]]:
        """Sums of cross-entropy and of correct answers.

        Args:
          params: the task's parameters.
          batch: as the class describes it.

        Returns:
          {"loss": (sum, weight), "accuracy": (sum, weight)}, float32 scalars.
        """
        label, weight = jnp.asarray(batch["label"]), jnp.asarray(batch["weight"], jnp.float32)
        logits = self.logits(params, batch)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        correct = jnp.argmax(logits, axis=-1) == label
        total = jnp.sum(weight)
        return {
            "loss": (jnp.sum(cross_entropy * weight), total),
            "accuracy": (jnp.sum(correct * weight), total),
        }


def _segments(batch: Batch) -> Array | None:
    return jnp.asarray(batch["segment"]) if "segment" in batch else None
