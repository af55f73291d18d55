"""Evaluates a language model on the prompted tasks and prints a table.

    python -m launch.evaluate_tasks --checkpoint=FOLDER [--tasks=sst2,rte] [--shots=4] [--out=results.jsonl]

The checkpoint is a Hugging Face folder or hub id (a causal model, or BERT or RoBERTa with its head for masked words),
a llama2.c file or the folder that holds one beside its tok*.bin, or the workdir of a run whose config.model.name is
prompted_lm.
Rows come from $ZOJAX_DATA/text, or from the folder --data. Exit code 2: a wrong request.
"""

import functools
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import flags

from launch.common import cli, schema
from launch.common.build import build
from launch.common.weights import find_weights, load_weights
from launch.language.adapters import prompt_length
from launch.language.prompted import Checkpoint, answers, load_checkpoint, stop_tokens, widths
from models.language import decode, metrics
from models.language.prompted import PromptedLM
from zojax import train, trees
from zojax.adapters import prepend_prompt
from zojax.data import tasks
from zojax.data.tasks import PromptedTask


class Request(NamedTuple):
    """How tasks are evaluated.

    Attributes:
      shots: demonstrations of the in-context column; 0 for no such column.
      rows: the most test rows of a task.
      batch_size: rows of a batch.
      max_length: the most tokens fed to the model, prompt and answer.
      max_new_tokens: the most tokens of a generated answer.
      seed: draws test rows and demonstrations.
    """

    shots: int
    rows: int
    batch_size: int
    max_length: int
    max_new_tokens: int
    seed: int


Record = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Runs the program; returns its exit code."""
    try:
        values = cli.parse(argv, __doc__ or "", _define)
        given: dict[str, Any] = values.flag_values_dict()
        if not given["checkpoint"]:
            raise ValueError("--checkpoint=FOLDER is needed")
        chosen = _named(given["tasks"])
        # Data and file are looked at before a model is loaded.
        splits = {name: _split(name, given) for name in chosen or tasks.TASKS}
        missing = [split for split in splits.values() if isinstance(split, FileNotFoundError)]
        if missing and (chosen or len(missing) == len(splits)):
            raise missing[0]
        out = Path(given["out"]) if given["out"] else None
        if out is not None and (out.is_dir() or not out.parent.is_dir()):
            raise ValueError(f"--out={out}: it must be a file in a folder that exists")
        source = given["checkpoint"]
        checkpoint = load(source)
        request = _request(given, checkpoint)
    except (ValueError, FileNotFoundError) as error:
        cli.complain("evaluate_tasks", error)
        return cli.WRONG
    shots = [f"{request.shots}-shot"] if request.shots else []
    print(line("task", "kind", "metric", "rows", "majority", "zero-shot", *shots), flush=True)
    lines: list[str] = []
    for name, split in splits.items():
        task = tasks.TASKS[name]
        if isinstance(split, FileNotFoundError):
            print(line(name, "no data"), flush=True)
        elif checkpoint.masked and task.masked is None:
            print(line(name, "no masked prompt"), flush=True)
        else:
            try:
                records = evaluate(checkpoint, task, split, request)
            except ValueError as error:
                cli.complain("evaluate_tasks", error)
                return cli.FAILED
            first = records[0]
            found = [record["value"] for record in records]
            print(line(name, task.kind, task.metric, first["rows"], first["majority"], *found), flush=True)
            lines += [json.dumps({"checkpoint": source, **record}) + "\n" for record in records]
            if out is not None:
                out.write_text("".join(lines))
    return 0


def _define(values: flags.FlagValues) -> None:
    def integer(name: str, default: int, least: int, text: str) -> None:
        flags.DEFINE_integer(name, default, text, lower_bound=least, flag_values=values)

    flags.DEFINE_string("checkpoint", None, "folder, file or hub id of the model", flag_values=values)
    flags.DEFINE_string("tasks", "all", f"names by commas: {', '.join(tasks.TASKS)}", flag_values=values)
    flags.DEFINE_string("data", None, "folder of folders named as the tasks", flag_values=values)
    flags.DEFINE_string("out", None, "file for one JSON object a line", flag_values=values)
    integer("shots", 0, 0, "demonstrations for the in-context column; 0 for none")
    integer("rows", 1000, 1, "the most test rows of a task")
    integer("batch_size", 16, 1, "rows of a batch")
    integer("max_length", 0, 0, "the most tokens; 0: what the model can read, 2048 at most")
    integer("max_new_tokens", 50, 1, "the most tokens of a generated answer")
    integer("seed", 0, 0, "draws test rows and demonstrations")


def _named(given: str) -> tuple[str, ...]:
    """The tasks asked for by name; () for all."""
    names = tuple(name.strip() for name in given.split(",") if name.strip())
    if not names:
        raise ValueError("--tasks names no task")
    return () if names == ("all",) else tuple(dict.fromkeys(tasks.get_task(name).name for name in names))


def _request(given: dict[str, Any], checkpoint: Checkpoint) -> Request:
    longest = given["max_length"] or min(checkpoint.max_length, 2048)
    if longest > checkpoint.max_length:
        raise ValueError(f"--max_length={longest}: the model reads at most {checkpoint.max_length} tokens")
    if not checkpoint.masked and longest <= given["max_new_tokens"] + 1:
        raise ValueError(f"--max_new_tokens={given['max_new_tokens']}: it leaves no room in {longest} tokens")
    fields = {name: given[name] for name in Request._fields}
    return Request(**{**fields, "max_length": longest})


def _split(name: str, given: dict[str, Any]) -> tasks.Split | FileNotFoundError:
    """Rows of a task, or why there are none."""
    task, source = tasks.TASKS[name], given["data"]
    try:
        training = tasks.load_rows(name, "train", source)
        try:
            held_out = tasks.load_rows(name, "dev", source)
        except FileNotFoundError:
            held_out = tasks.load_rows(name, "test", source)  # TREC has no other
    except FileNotFoundError as error:
        return error
    return tasks.many_shot(training, held_out, task, seed=given["seed"], sizes=(1000, 0, given["rows"]))


def load(source: str) -> Checkpoint:
    """A checkpoint, or the last weights of a run.

    Args:
      source: as `prompted.load_checkpoint` takes it, or the workdir of a run.

    Returns:
      The checkpoint.

    Raises:
      ValueError: if the run is one of another kind of model, or a file is malformed.
      FileNotFoundError: if a file is missing.
    """
    workdir = Path(source)
    if not (workdir / "base").is_dir():
        return load_checkpoint(source)
    config = schema.load(workdir)
    if config.model.name != "prompted_lm":
        raise ValueError(f"{workdir}: config.model.name is {config.model.name!r}; it must be prompted_lm")
    run = build(config)
    params = trees.merge(load_weights(find_weights(workdir, "last"), run), run.frozen)
    base, prompt = load_checkpoint(config.model.source, dtype=config.model.dtype), prompt_length(config)
    return base._replace(params=params, prompt=prompt, max_length=base.max_length - prompt)


def evaluate(checkpoint: Checkpoint, task: PromptedTask, split: tasks.Split, request: Request) -> list[Record]:
    """The results of a task: zero-shot and, if asked for, in context.

    Args:
      checkpoint: the model.
      task: the task.
      split: its rows.
      request: how.

    Returns:
      A record for each.
    """
    shared = {
        "task": task.name,
        "kind": task.kind,
        "metric": task.metric,
        "rows": len(split.test),
        "majority": majority(task, split),
        "seed": request.seed,
    }
    out = []
    for shots in (0, request.shots) if request.shots and not checkpoint.masked else (0,):
        shown = tasks.balanced(split.train, task, shots, seed=request.seed)
        measured = measure(checkpoint, task, split.test, shown, request)
        setting = "in_context" if shots else "zero_shot"
        out.append({**shared, "setting": setting, "shots": len(shown), "value": measured[task.metric], **measured})
    return out


def majority(task: PromptedTask, split: tasks.Split) -> float | None:
    """What no single answer beats on the test rows: their most frequent class; of multiple choice, chance; else None.

    The class that is most frequent in training may be another, which an answer to all rows beats by far (as of WSC).
    """
    if task.kind == "generation":
        return None
    if task.kind == "multiple_choice":
        return float(np.mean([len(task.correct(row)) / len(task.candidates(row)) for row in split.test]))
    return max(Counter(row["label"] for row in split.test).values()) / len(split.test)


def measure(
    checkpoint: Checkpoint, task: PromptedTask, rows: Sequence[Any], shown: Sequence[Any], request: Request
) -> dict[str, float]:
    """The metrics of some rows.

    Args:
      checkpoint: the model.
      task: the task.
      rows: test rows.
      shown: demonstrations.
      request: how.

    Returns:
      {"accuracy", "loss"}, or {"f1", "exact_match", "loss"} of generations.
    """
    length = request.max_length
    if checkpoint.masked:
        examples = tasks.encode_masked(task, rows, checkpoint.tokenizer, max_length=length)
    else:
        examples = tasks.encode(task, rows, checkpoint.tokenizer, max_length=length, demonstrations=shown)
    objective = "answer" if task.kind == "generation" else "classification"
    weights, frozen = trees.split(checkpoint.params, (".*",))
    batches = tasks.eval_batches(examples, batch_size=request.batch_size, max_length=length, buckets=widths(length))
    batches = [_prompted(checkpoint, batch) for batch in batches]
    found = train.evaluate(_program(checkpoint.model, objective), weights, frozen, batches)
    if task.kind != "generation":
        return found
    return generated(checkpoint, task, rows, shown, request) | found


@functools.cache
def _program(model: Any, objective: str) -> Any:
    """One program for all tasks, so that batches of one shape compile once."""
    return train.make_evaluate(PromptedLM(model=model, objective=objective))


def generated(
    checkpoint: Checkpoint, task: PromptedTask, rows: Sequence[Any], shown: Sequence[Any], request: Request
) -> dict[str, float]:
    """F1 and exact match of greedy answers, the means over rows."""
    length, tokenizer = request.max_length - request.max_new_tokens, checkpoint.tokenizer
    examples = tasks.encode_prompts(task, rows, tokenizer, max_length=length, demonstrations=shown)
    batches = tasks.eval_batches(
        examples, batch_size=request.batch_size, max_length=length, buckets=widths(length), side="left"
    )
    references, f1, exact = {row["id"]: row["answers"] for row in rows}, 0.0, 0.0
    for batch in (_prompted(checkpoint, batch) for batch in batches):
        tokens, mask = jnp.asarray(batch["tokens"][:, 0]), jnp.asarray(batch["mask"][:, 0])
        out = decode.generate(
            checkpoint.model,
            checkpoint.params,
            tokens,
            mask,
            max_new_tokens=request.max_new_tokens,
            stop=stop_tokens(tokenizer),
        )
        said = answers(tokenizer, np.asarray(out.tokens), np.asarray(out.length))
        for text, row in zip(said, batch["id"].tolist(), strict=True):
            if row >= 0:
                f1 += metrics.token_f1(text, references[row])
                exact += metrics.exact_match(text, references[row])
    return {"f1": f1 / len(rows), "exact_match": exact / len(rows)}


def _prompted(checkpoint: Checkpoint, batch: Any) -> Any:
    """A batch with the tokens of the checkpoint's prompt, if it has one."""
    return prepend_prompt(batch, checkpoint.config.vocab_size, checkpoint.prompt) if checkpoint.prompt else batch


def line(*cells: Any) -> str:
    """A line of the table: task, kind and metric to the left, numbers to the right."""
    texts = ["-" if cell is None else f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells]
    sizes = ("<8", "<15", "<9", ">5", ">9", ">10", ">10")
    return "".join(f"{text:{size}} " for text, size in zip(texts, sizes, strict=False)).rstrip()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
