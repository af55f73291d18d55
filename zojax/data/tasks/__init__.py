"""Prompted tasks: what a row asks (`prompts`), where rows come from (`sources`, `records`), who trains on which
(`splits`), and their tokens and batches (`tokenizer`, `encode`, `batches`)."""

from zojax.data.tasks.batches import PromptBatch, PromptBatches, eval_batches, train_batches
from zojax.data.tasks.encode import SEPARATOR, PromptExample, encode, encode_masked, encode_prompts
from zojax.data.tasks.prompts import CAUSAL, MASKED, TASKS, PromptedTask, get_task
from zojax.data.tasks.sources import find_task_folder, load_rows
from zojax.data.tasks.splits import SEEDS, Split, balanced, few_shot, k_shot, many_shot
from zojax.data.tasks.tokenizer import PromptTokenizer, TextTokenizer

__all__ = [
    "CAUSAL",
    "MASKED",
    "SEEDS",
    "SEPARATOR",
    "TASKS",
    "PromptBatch",
    "PromptBatches",
    "PromptExample",
    "PromptTokenizer",
    "PromptedTask",
    "Split",
    "TextTokenizer",
    "balanced",
    "encode",
    "encode_masked",
    "encode_prompts",
    "eval_batches",
    "few_shot",
    "find_task_folder",
    "get_task",
    "k_shot",
    "load_rows",
    "many_shot",
    "train_batches",
]
