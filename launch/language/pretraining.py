"""A config that trains a small language model from scratch, on documents that `launch.corpus` has made."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from launch.common.schema import Config
from models.language.llama import Llama, LlamaConfig
from models.language.pretraining import CausalPretraining
from zojax.data import tasks
from zojax.data.documents import DocumentBatch, DocumentBatches, Documents, eval_batches

Params = Any


class Loaded(NamedTuple):
    """What `build` needs of such a run, beside the method.

    Attributes:
      task: loss and metrics.
      params: random weights.
      zero_head: None: there is no head to begin with.
      batches: training batches.
      evaluation: evaluation batches by split; the test split is dev: nothing else is set apart.
      steps_per_epoch: training batches of the first epoch.
    """

    task: CausalPretraining
    params: Params
    zero_head: None
    batches: DocumentBatches
    evaluation: dict[str, list[DocumentBatch]]
    steps_per_epoch: int


def model_config(config: Config) -> LlamaConfig:
    """The sizes of the model, for the tokenizer beside the data.

    Raises:
      FileNotFoundError: if there is no tokenizer.
    """
    lm, tokenizer = config.lm, tasks.TextTokenizer.from_folder(Path(config.data.source))
    return LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=lm.width,
        num_hidden_layers=lm.layers,
        num_attention_heads=lm.heads,
        num_key_value_heads=lm.kv_heads,
        head_dim=lm.width // lm.heads,
        intermediate_size=lm.mlp,
        max_position_embeddings=config.data.max_length,
        tie_word_embeddings=True,
    )


def load(config: Config, key: jax.Array) -> Loaded:
    """Loads the documents and makes the model.

    Raises:
      ValueError: if the sizes do not go together, or a file is malformed.
      FileNotFoundError: if the data is missing.
    """
    data, lm, folder = config.data, config.lm, Path(config.data.source)
    sizes = model_config(config)
    train, dev = (Documents.load(folder / f"{name}.safetensors") for name in ("train", "dev"))
    batches = DocumentBatches(
        train, rows=data.batch_size, width=data.max_length, seed=config.seed, prompt_share=lm.prompt_share
    )
    task = CausalPretraining(
        model=Llama(sizes), answer_weight=lm.answer_weight, word_dropout=lm.word_dropout, compute=lm.compute
    )
    held_out = eval_batches(dev, rows=data.eval_batch_size, width=data.max_length)
    evaluation = {"dev": held_out, "test": held_out}
    return Loaded(task, task.init(key), None, batches, evaluation, batches.batches_per_epoch)
