"""Prompted tasks: the loss of a language model that answers in words, causal or masked, and losses without gradients.

A batch is `zojax.data.tasks.PromptBatch` (or a mapping like it). Logits are made only at the columns that predict an
answer: of b rows with n sequences of s tokens and answers of a tokens [b, n, a, vocab], and never [b, n, s, vocab].
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from models.language.bert import Bert
from models.language.decode import generate
from models.language.layers import cast_matrices

__all__ = ["OBJECTIVES", "GreedyReward", "PromptedLM"]

Batch = Mapping[str, Any]
Metrics = dict[str, tuple[Array, Array]]

OBJECTIVES = ("classification", "answer", "accuracy")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PromptedLM:
    """The task of answering prompts.

    With s_c = mean_t log p(t-th token of answer c | prompt, its tokens before), the objectives are

      "classification": -log softmax(s)_correct, the mean over rows;
      "answer":         -log p(token of the right answer | before), the mean over the batch's tokens (teacher-forced);
      "accuracy":       1 - the share of rows whose best answer is right. It has no useful gradient.

    The first two are the losses of MeZO's runs (arXiv:2305.17333), as is the last with its sign. The right answer of a
    row that has several is the first. For a masked model an answer is one token, and its score the log-probability
    where the mask is.

    Parameters: the model's own.

    Args:
      model: a causal model (`Llama`, `Opt`, or any with their methods `hidden` and `logits`), or `Bert`.
      objective: one of `OBJECTIVES`.
      pretrained: the model's tree, as `hub.load` returns it; None for a random model.
      dtype: type of kernels and tables, "float32", "bfloat16" or "float16".

    Raises:
      ValueError: if the objective is unknown.

    Example:
      >>> from models.language.llama import Llama, LlamaConfig
      >>> config = LlamaConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
      ...                      num_key_value_heads=1, head_dim=2, intermediate_size=8, initializer_range=0.0)
      >>> task = PromptedLM(model=Llama(config), objective="classification")
      >>> batch = {"tokens": jnp.ones((2, 1, 5), jnp.int32), "mask": jnp.ones((2, 1, 5), bool),
      ...          "at": jnp.full((2, 1, 1), 4), "answer": jnp.array([[[3], [6]]] * 2),
      ...          "answer_mask": jnp.ones((2, 2, 1), bool), "correct": jnp.array([[True, False], [False, True]]),
      ...          "weight": jnp.ones(2)}
      >>> loss, metrics = task.loss(task.init(jax.random.key(0)), batch)
      >>> f"{loss:.4f}"  # log 2
      '0.6931'
    """

    model: Any
    objective: str
    pretrained: Any = None
    dtype: str = "float32"

    def __post_init__(self):
        if self.objective not in OBJECTIVES:
            raise ValueError(f"PromptedLM.objective is {self.objective!r}; it must be one of {', '.join(OBJECTIVES)}")

    def init(self, key: Any) -> Any:
        """The parameters to start from.

        Args:
          key: typed key; used only without pretrained weights.

        Returns:
          The model's tree, in buffers of its own, so that a loop may donate them.
        """
        if self.pretrained is not None:
            params = jax.tree.map(lambda x: jnp.array(x, copy=True), self.pretrained)
        else:
            tokens, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
            method = "masked_logits" if isinstance(self.model, Bert) else "__call__"
            init: Any = jax.jit(self.model.init, static_argnames="method")
            params = init(key, tokens, mask, method=method)["params"]
        return cast_matrices(params, self.dtype)

    def log_likelihoods(self, params: Any, batch: Batch) -> Float[Array, "b c a"]:
        """log p of every token of every answer.

        Args:
          params: the model's tree, of arrays or leaf types.
          batch: as `zojax.data.tasks.PromptBatch`.

        Returns:
          float32 [b, c, a], in nats; 0 where there is no token.
        """
        tokens, mask, at = (jnp.asarray(batch[name]) for name in ("tokens", "mask", "at"))
        logits = self._logits(params, *(x.reshape(-1, x.shape[-1]) for x in (tokens, mask, at)))
        logits = logits.reshape(*at.shape, -1)
        answer = jnp.asarray(batch["answer"])
        norm = jax.nn.logsumexp(logits, axis=-1)
        if at.shape[1] == 1:  # all answers after one sequence: [b, a, vocab] by [b, a, c]
            chosen = jnp.take_along_axis(logits[:, 0], answer.swapaxes(1, 2), axis=-1).swapaxes(1, 2)
        else:
            chosen = jnp.take_along_axis(logits, answer[..., None], axis=-1)[..., 0]
        return jnp.where(jnp.asarray(batch["answer_mask"]), chosen - norm, 0.0)

    def _logits(
        self, params: Any, tokens: Int[Array, "r s"], mask: Bool[Array, "r s"], at: Int[Array, "r a"]
    ) -> Float[Array, "r a vocab"]:
        """Logits at some columns of each row; the rows are gathered before the head sees them."""
        apply = functools.partial(self.model.apply, {"params": params})
        if isinstance(self.model, Bert):
            return apply(tokens, mask, at=at, method="masked_logits")
        hidden, _ = apply(tokens, mask, method="hidden")
        return apply(jnp.take_along_axis(hidden, at[:, :, None], axis=1), method="logits")

    def scores(self, params: Any, batch: Batch) -> Float[Array, "b c"]:
        """Length-normalised log-likelihoods of the answers.

        Args:
          params: the model's tree.
          batch: as `zojax.data.tasks.PromptBatch`.

        Returns:
          float32 [b, c], nats a token; -inf where a row has no such answer.
        """
        return _scores(self.log_likelihoods(params, batch), batch)

    def loss(self, params: Any, batch: Batch, *, key: Any = None) -> tuple[Float[Array, ""], Metrics]:
        """The objective on a batch.

        Args:
          params: the model's tree, of arrays or leaf types.
          batch: as `zojax.data.tasks.PromptBatch`.
          key: of no use here: the models have no dropout.

        Returns:
          (loss in float32, the metrics of `evaluate`); a batch of weight 0 has loss 0.
        """
        del key
        metrics = self.evaluate(params, batch)
        if self.objective == "accuracy":
            correct, weight = metrics["accuracy"]
            return (weight - correct) / jnp.maximum(weight, 1.0), metrics
        total, weight = metrics["loss"]
        return total / jnp.maximum(weight, 1.0), metrics

    def evaluate(self, params: Any, batch: Batch) -> Metrics:
        """Sums of the loss and of right answers.

        Args:
          params: the model's tree.
          batch: as `zojax.data.tasks.PromptBatch`.

        Returns:
          {"loss": (sum, weight)} and, where rows have answers to choose from, {"accuracy": (sum, weight)}: float32
          scalars. The weight of "answer"'s loss is the number of tokens, else that of rows.
        """
        log_p = self.log_likelihoods(params, batch)
        scores, weight = _scores(log_p, batch), jnp.asarray(batch["weight"], jnp.float32)
        correct = jnp.asarray(batch["correct"])
        first = jnp.argmax(correct, axis=1)[:, None]
        if self.objective == "answer":
            right = jnp.take_along_axis(log_p, first[:, :, None], axis=1)[:, 0]
            count = jnp.take_along_axis(jnp.asarray(batch["answer_mask"]), first[:, :, None], axis=1)[:, 0].sum(axis=1)
            metrics = {"loss": (-jnp.sum(right.sum(axis=1) * weight), jnp.sum(count * weight))}
        else:
            loss = -jnp.take_along_axis(jax.nn.log_softmax(scores, axis=-1), first, axis=1)[:, 0]
            metrics = {"loss": (jnp.sum(loss * weight), jnp.sum(weight))}
        if scores.shape[1] > 1:
            best = jnp.argmax(scores, axis=1)[:, None]
            hit = jnp.take_along_axis(correct, best, axis=1)[:, 0].astype(jnp.float32)
            metrics["accuracy"] = (jnp.sum(hit * weight), jnp.sum(weight))
        return metrics


def _scores(log_p: Float[Array, "b c a"], batch: Batch) -> Float[Array, "b c"]:
    count = jnp.sum(jnp.asarray(batch["answer_mask"]), axis=-1)
    return jnp.where(count > 0, jnp.sum(log_p, axis=-1) / jnp.maximum(count, 1), -jnp.inf)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GreedyReward:
    """1 - the mean reward of greedy answers, such as their F1: a loss that only forward passes can lower.

    The answers are generated on the device; the reward is a function of the host, called from inside the program
    (`jax.pure_callback`), so that an estimator measures this loss as any other, also under `jit` and `vmap`. It has no
    gradient.

    Args:
      model: a causal model.
      reward: (tokens int32 [b, m], length int32 [b], id int32 [b]) -> float32 [b], each in [0, 1].
      max_new_tokens: m, the most tokens of an answer.
      stop: tokens at which an answer ends.
      pretrained: the model's tree, or None for a random one.
      dtype: as for `PromptedLM`.

    Example:
      >>> from models.language.llama import Llama, LlamaConfig
      >>> config = LlamaConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
      ...                      num_key_value_heads=1, head_dim=2, intermediate_size=8)
      >>> short = lambda tokens, length, id: (length < 3).astype(np.float32)
      >>> task = GreedyReward(model=Llama(config), reward=short, max_new_tokens=3)
      >>> batch = {"tokens": jnp.ones((2, 1, 4), jnp.int32), "mask": jnp.ones((2, 1, 4), bool),
      ...          "weight": jnp.ones(2), "id": jnp.arange(2)}
      >>> float(task.loss(task.init(jax.random.key(0)), batch)[0])
      1.0
    """

    model: Any
    reward: Callable[..., Float[np.ndarray, " b"]]
    max_new_tokens: int
    stop: tuple[int, ...] = ()
    pretrained: Any = None
    dtype: str = "float32"

    def init(self, key: Any) -> Any:
        """The parameters to start from; as `PromptedLM.init`."""
        whole = PromptedLM(model=self.model, objective="answer", pretrained=self.pretrained, dtype=self.dtype)
        return whole.init(key)

    def loss(self, params: Any, batch: Batch, *, key: Any = None) -> tuple[Float[Array, ""], Metrics]:
        """1 - the mean reward.

        Args:
          params: the model's tree, of arrays or leaf types.
          batch: `tokens` and `mask` [b, 1, s], `weight` and `id`.
          key: of no use here: decoding is greedy.

        Returns:
          (loss in float32, the metrics of `evaluate`).
        """
        del key
        metrics = self.evaluate(params, batch)
        total, weight = metrics["reward"]
        return (weight - total) / jnp.maximum(weight, 1.0), metrics

    def evaluate(self, params: Any, batch: Batch) -> Metrics:
        """The sum of rewards.

        Args:
          params: the model's tree.
          batch: as for `loss`.

        Returns:
          {"reward": (sum, weight), "loss": (sum of 1 - reward, weight)}.
        """
        tokens, mask = jnp.asarray(batch["tokens"])[:, 0], jnp.asarray(batch["mask"])[:, 0]
        out = generate(self.model, params, tokens, mask, max_new_tokens=self.max_new_tokens, stop=self.stop)
        like = jax.ShapeDtypeStruct((tokens.shape[0],), jnp.float32)
        ids = jnp.asarray(batch["id"], jnp.int32)
        reward = jax.pure_callback(self._reward, like, out.tokens, out.length, ids, vmap_method="broadcast_all")
        weight = jnp.asarray(batch["weight"], jnp.float32)
        total, rows = jnp.sum(reward * weight), jnp.sum(weight)
        return {"loss": (rows - total, rows), "reward": (total, rows)}

    def _reward(self, tokens: Any, length: Any, ids: Any) -> np.ndarray:
        # Under vmap there are leading axes, one for each.
        tokens, length, ids = (np.asarray(x) for x in (tokens, length, ids))
        flat = self.reward(tokens.reshape(-1, tokens.shape[-1]), length.ravel(), ids.ravel())
        return np.asarray(flat, np.float32).reshape(length.shape)
