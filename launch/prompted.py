"""Language models for prompted tasks: a checkpoint with its tokenizer, and a config that trains one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from launch.schema import Config
from models.language import hub, llama2c
from models.language.bert import BertConfig
from models.language.families import family_of
from models.language.prompted import PromptedLM
from zojax.data import tasks

Params = Any


class Checkpoint(NamedTuple):
    """A language model that can be prompted.

    Attributes:
      config: its configuration.
      model: the Linen module.
      params: its tree.
      tokenizer: its tokenizer.
      masked: whether it fills in masked words, and does not continue texts.
      max_length: the most tokens it can read.
    """

    config: Any
    model: Any
    params: Params
    tokenizer: Any
    masked: bool
    max_length: int


def load_checkpoint(source: str, *, dtype: str = "float32") -> Checkpoint:
    """Loads a model and its tokenizer.

    Args:
      source: a Hugging Face folder or hub id, or a llama2.c file, or a folder that holds one beside its tok*.bin.
      dtype: type of kernels and tables of a Hugging Face model.

    Returns:
      The checkpoint.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file is malformed, or the tokenizer has more tokens than the model.
    """
    path = Path(source).expanduser()
    binary = _llama2c(path)
    if binary is not None:
        config, params = llama2c.load(binary)
        found = sorted(binary.parent.glob("tok*.bin"))
        if len(found) != 1:
            raise FileNotFoundError(
                f"{binary.parent} holds {len(found)} files tok*.bin; beside {binary.name} one is needed"
            )
        tokenizer = llama2c.Tokenizer.from_file(found[0])
        size = len(tokenizer.pieces)
    else:
        folder = hub.resolve(source)
        masked = _is_encoder(folder)
        tokenizer = tasks.TextTokenizer.from_folder(folder)
        config, params = hub.load(folder, dtype=dtype, masked_head=masked)
        size = tokenizer.vocab_size
    if size > config.vocab_size:
        raise ValueError(f"{source}: the tokenizer has {size} tokens, the model {config.vocab_size}")
    masked = isinstance(config, BertConfig)
    longest = config.max_position_embeddings - (config.position_offset if isinstance(config, BertConfig) else 0)
    params = jax.tree.map(jnp.asarray, params)
    return Checkpoint(config, family_of(config).model(config), params, tokenizer, masked, longest)


class Loaded(NamedTuple):
    """What `build` needs of a prompted run, beside the method.

    Attributes:
      task: loss and metrics.
      params: weights before step 1.
      zero_head: None: there is no head to begin with.
      batches: training batches.
      evaluation: evaluation batches by split.
      steps_per_epoch: training batches of an epoch.
    """

    task: PromptedLM
    params: Params
    zero_head: None
    batches: tasks.PromptBatches
    evaluation: dict[str, list[Any]]
    steps_per_epoch: int


def load(config: Config, key: jax.Array) -> Loaded:
    """Loads the data and the model of a config that trains a language model on a prompted task.

    `data.source` is a task's name, or a folder of that name with its files. The rows are those of `tasks.many_shot`:
    `data.train_examples` to train on (0: the published 1,000), 500 for dev, 1,000 to test.

    Raises:
      ValueError: if there is no such task, or its answers are generated; or a file is malformed.
      FileNotFoundError: if the data or the model is missing.
    """
    data = config.data
    source = Path(data.source)
    task = tasks.get_task(source.name)
    if task.kind == "generation":
        # What a run reports is an accuracy, and a generation has none.
        raise ValueError(f"config.data.source is {data.source!r}, whose answers are generated; it must have candidates")
    folder = None if source.name == data.source else source
    checkpoint = load_checkpoint(config.model.source, dtype=config.model.dtype)
    if data.max_length > checkpoint.max_length:
        raise ValueError(
            f"config.data.max_length is {data.max_length}; the model reads at most {checkpoint.max_length} tokens"
        )
    training, held_out = (tasks.load_rows(task.name, split, folder) for split in ("train", "dev"))
    split = tasks.many_shot(training, held_out, task, seed=config.seed, sizes=(data.train_examples or 1000, 500, 1000))

    def encoded(rows: Sequence[Any], *, train: bool = False) -> list[tasks.PromptExample]:
        if checkpoint.masked:
            return tasks.encode_masked(task, rows, checkpoint.tokenizer, max_length=data.max_length)
        return tasks.encode(task, rows, checkpoint.tokenizer, max_length=data.max_length, train=train)

    shape = {"max_length": data.max_length, "buckets": tuple(data.buckets) or None}
    evaluation = {
        name: tasks.eval_batches(encoded(rows), batch_size=data.eval_batch_size, **shape)
        for name, rows in split._asdict().items()
    }
    # Accuracy needs all candidates; the loss of multiple choice the right one alone.
    teacher_forced = config.model.objective == "loss" and task.kind == "multiple_choice"
    objective = "accuracy" if config.model.objective == "accuracy" else "answer" if teacher_forced else "classification"
    prompted = PromptedLM(
        model=checkpoint.model, objective=objective, pretrained=checkpoint.params, dtype=config.model.dtype
    )
    batches = tasks.train_batches(
        encoded(split.train, train=teacher_forced),
        batch_size=data.batch_size,
        seed=config.seed,
        length_grouped=data.length_grouped,
        **shape,
    )
    steps = max(len(split.train) // data.batch_size, 1)
    return Loaded(prompted, prompted.init(key), None, batches, evaluation, steps)


def _llama2c(path: Path) -> Path | None:
    """The llama2.c model that a path means, if it means one."""
    if path.suffix == ".bin" and path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    found = [file for file in sorted(path.glob("*.bin")) if not file.name.startswith("tok")]
    return found[0] if len(found) == 1 else None


def _is_encoder(folder: Path) -> bool:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no config.json")
    return json.loads(path.read_text(encoding="utf-8")).get("model_type") in ("bert", "roberta")


def widths(max_length: int) -> tuple[int, ...]:
    """Padded lengths: powers of two up to the longest, which is always the last."""
    return (*(2**n for n in range(4, 20) if 2**n < max_length), max_length)


def stop_tokens(tokenizer: Any) -> tuple[int, ...]:
    """The token that ends an answer: that of a new line, if the tokenizer has one."""
    return tuple(tokenizer.encode("\n")[len(tokenizer.encode("")) :][-1:])


def answers(tokenizer: Any, tokens: np.ndarray, length: np.ndarray) -> list[str]:
    """The texts of generated tokens, up to the end of their first line.

    Args:
      tokenizer: the tokenizer.
      tokens: int [b, m].
      length: int [b].

    Returns:
      A text for each row.
    """
    texts = [tokenizer.decode(row[:n].tolist()) for row, n in zip(tokens, length, strict=True)]
    return [text.split("\n")[0].strip() for text in texts]
