"""Language models for prompted tasks: a checkpoint with its tokenizer, and a config that trains one."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from launch.common.schema import Config
from models.language import hub, llama2c, metrics
from models.language.bert import BertConfig
from models.language.families import family_of
from models.language.prompted import GreedyReward, PromptedLM
from zojax.data import tasks

Params = Any

NEW_TOKENS = 50
"""The most tokens of an answer that is generated in training, as published (arXiv 2305.17333)."""


class Checkpoint(NamedTuple):
    """A language model that can be prompted.

    Attributes:
      config: its configuration.
      model: the Linen module.
      params: its tree.
      tokenizer: its tokenizer.
      masked: whether it fills in masked words, and does not continue texts.
      max_length: the most tokens of a text that it can read.
      prompt: tokens of a trained prompt in front of every text.
    """

    config: Any
    model: Any
    params: Params
    tokenizer: Any
    masked: bool
    max_length: int
    prompt: int = 0


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

    task: PromptedLM | GreedyReward
    params: Params
    zero_head: None
    batches: tasks.PromptBatches
    evaluation: dict[str, list[Any]]
    steps_per_epoch: int


def load(config: Config, key: jax.Array) -> Loaded:
    """Loads the data and the model of a config that trains a language model on a prompted task.

    `data.source` is a task's name, or a folder of that name with its files. The rows are those of `tasks.few_shot`
    with `data.shots` of a class; without shots those of `tasks.many_shot`: `data.train_examples` to train on (0: the
    published 1,000), 500 for dev, 1,000 to test. Of a task whose answers are generated the loss is that of the right
    answer's tokens or, with the objective "f1", one less the F1 of greedy answers.

    Raises:
      ValueError: if there is no such task, it has no such objective, there are too few rows, or a file is malformed.
      FileNotFoundError: if the data or the model is missing.
    """
    data = config.data
    source = Path(data.source)
    task = tasks.get_task(source.name)
    generated = task.kind == "generation"
    _check(config, generated)
    checkpoint = load_checkpoint(config.model.source, dtype=config.model.dtype)
    if data.max_length > checkpoint.max_length:
        raise ValueError(
            f"config.data.max_length is {data.max_length}; the model reads at most {checkpoint.max_length} tokens"
        )
    folder = None if source.name == data.source else source
    training, held_out = (tasks.load_rows(task.name, split, folder) for split in ("train", "dev"))
    # Numbers that tell the rows of both files apart.
    held_out = [{**row, "id": row["id"] + len(training)} for row in held_out]
    if data.shots:
        split = tasks.few_shot(training, held_out, task, data.shots, seed=config.seed)
    else:
        sizes = (data.train_examples or 1000, 500, 1000)
        split = tasks.many_shot(training, held_out, task, seed=config.seed, sizes=sizes)
    # Accuracy needs all candidates; the loss of multiple choice the right one alone.
    teacher_forced = config.model.objective == "loss" and task.kind != "classification"
    greedy = config.model.objective == "f1"

    def encoded(rows: Sequence[Any], *, train: bool = False) -> list[tasks.PromptExample]:
        if checkpoint.masked:
            return tasks.encode_masked(task, rows, checkpoint.tokenizer, max_length=data.max_length)
        if greedy:
            room = data.max_length - NEW_TOKENS
            return tasks.encode_prompts(task, rows, checkpoint.tokenizer, max_length=room)
        return tasks.encode(task, rows, checkpoint.tokenizer, max_length=data.max_length, train=train)

    shape = {"max_length": data.max_length, "buckets": tuple(data.buckets) or None}
    evaluation = {
        name: tasks.eval_batches(encoded(rows), batch_size=data.eval_batch_size, **shape)
        for name, rows in split._asdict().items()
    }
    shared = {"model": checkpoint.model, "pretrained": checkpoint.params, "dtype": config.model.dtype}
    if greedy:
        references = {row["id"]: row["answers"] for row in [*training, *held_out]}
        prompted = GreedyReward(
            reward=functools.partial(_f1, checkpoint.tokenizer, references),
            max_new_tokens=NEW_TOKENS,
            stop=stop_tokens(checkpoint.tokenizer),
            **shared,
        )
    else:
        objective = {"accuracy": "accuracy", "loss": "answer" if teacher_forced else "classification"}
        prompted = PromptedLM(objective=objective[config.model.objective], **shared)
    batches = tasks.train_batches(
        encoded(split.train, train=teacher_forced),
        batch_size=data.batch_size,
        seed=config.seed,
        length_grouped=data.length_grouped,
        **shape,
    )
    steps = max(len(split.train) // data.batch_size, 1)
    return Loaded(prompted, prompted.init(key), None, batches, evaluation, steps)


def _check(config: Config, generated: bool) -> None:
    """Says which fields do not go with a task whose answers are, or are not, generated."""
    right = ("loss", "f1") if generated else ("loss", "accuracy")
    if config.model.objective not in right:
        raise ValueError(
            f"config.model.objective is {config.model.objective!r}; of {config.data.source!r} it must be "
            f"{' or '.join(right)}"
        )
    if generated and config.train.keep_best == "accuracy":
        raise ValueError("config.train.keep_best is 'accuracy'; generated answers have none: it must be loss or none")
    if config.model.objective == "f1" and config.data.max_length <= NEW_TOKENS + 1:
        raise ValueError(
            f"config.data.max_length is {config.data.max_length}; {NEW_TOKENS} tokens of it are those of an answer"
        )


def _f1(
    tokenizer: Any, references: dict[int, list[str]], tokens: np.ndarray, length: np.ndarray, ids: np.ndarray
) -> np.ndarray:
    """F1 of generated answers; 0 for rows that only fill a batch up."""
    said = answers(tokenizer, tokens, length)
    pairs = zip(said, ids.tolist(), strict=True)
    return np.array([metrics.token_f1(text, references[i]) if i >= 0 else 0.0 for text, i in pairs], np.float32)


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
