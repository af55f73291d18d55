"""Tokenises the texts and prompts on which a small language model is trained from scratch.

    python -m launch.corpus --out=runs/lm_data [--vocab=4096] [--max_length=512] [--data=FOLDER]

Texts are those of corpus/ in the folder --data ($ZOJAX_DATA by default), prompts the train rows of MNLI, SNLI, QNLI,
BoolQ and SQuAD in text/, in their own words and, of MNLI and SNLI, also in RTE's. So are pairs that are made of the
texts: a passage, and either a sentence of it with words left out (yes) or another one of the text with words of the
passage in it (no), which ask what was said. Nothing else is read: no row of SST-2, RTE, CB, COPA or WSC, and no dev or
test row but to leave out train rows that repeat one. The last 2 % of each file are set apart. The folder gets
tokenizer.json, train.safetensors, dev.safetensors and about.json.
Exit code 2: a wrong request.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from absl import flags
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from launch.common import cli
from zojax.data import tasks
from zojax.data.documents import Documents
from zojax.data.text import data_root

HELD_OUT = ("sst2", "rte", "cb", "copa", "wsc")
"""Tasks of which nothing is read, so that they say what was learnt of others."""

DEV = 0.02
"""The share of each file that is set apart."""

MADE = 20000
"""Pairs that are made of the texts (ours)."""

SPECIAL = ("<pad>", "<s>", "<unk>")


class Form(NamedTuple):
    """Rows of a task as another, or the same, task puts them.

    Attributes:
      source: the task whose rows are read.
      target: the task in whose words they are put.
      label: their label -> the target's.
    """

    source: str
    target: str
    label: Callable[[int], int]


FORMS = (
    *(Form(name, name, lambda label: label) for name in ("mnli", "snli", "qnli", "boolq", "squad")),
    # RTE knows two classes: entailment (0) and the rest.
    *(Form(name, "rte", lambda label: min(label, 1)) for name in ("mnli", "snli")),
)


class Prompts(NamedTuple):
    """Rows of a form, and how many of its source were left out because a dev row has the same prompt."""

    task: tasks.PromptedTask
    rows: list[dict[str, Any]]
    repeated: int


def main(argv: Sequence[str]) -> int:
    """Runs the program; returns its exit code."""
    try:
        values = cli.parse(argv, __doc__ or "", _define)
        given: dict[str, Any] = values.flag_values_dict()
        if not given["out"]:
            raise ValueError("--out=FOLDER is needed")
        root = Path(given["data"]) if given["data"] else data_root()
        if root is None or not (root / "corpus").is_dir():
            raise FileNotFoundError(f"--data={root}: it must be a folder that holds corpus/ and text/")
        books = {path: read(path) for path in sorted((root / "corpus").rglob("*.txt"))}
        forms = [load(form, root / "text") for form in FORMS]
        prepare(Path(given["out"]), books, forms, vocab=given["vocab"], width=given["max_length"])
    except (ValueError, FileNotFoundError) as error:
        cli.complain("corpus", error)
        return cli.WRONG
    return 0


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("out", None, "folder to write", flag_values=values)
    flags.DEFINE_string("data", None, "folder that holds corpus/ and text/", flag_values=values)
    flags.DEFINE_integer("vocab", 4096, "tokens of the tokenizer", lower_bound=512, flag_values=values)
    flags.DEFINE_integer("max_length", 512, "the most tokens of a document", lower_bound=64, flag_values=values)


def read(path: Path) -> str:
    """A text, its lines joined to paragraphs, so that a new line keeps its meaning for prompts."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    text = re.sub(r"[ \t]*\r?\n", "\n", text)
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text).strip()


def load(form: Form, folder: Path) -> Prompts:
    """The train rows of a form, without those whose prompt is one of a dev row."""
    own, target = tasks.get_task(form.source), tasks.get_task(form.target)
    rows = tasks.load_rows(form.source, "train", folder)
    held_out = {own.prompt(row) for row in tasks.load_rows(form.source, "dev", folder)}
    kept = [row for row in rows if own.prompt(row) not in held_out]
    relabelled = [{**row, "label": form.label(row["label"])} if "label" in row else row for row in kept]
    return Prompts(target, relabelled, len(rows) - len(kept))


def made(texts: Sequence[str], count: int) -> list[dict[str, Any]]:
    """Rows in RTE's form that are made of texts: whether a passage says, in its words, what a sentence does (ours).

    Args:
      texts: the texts.
      count: how many rows, about, in proportion to the texts' lengths.

    Returns:
      The rows, of either class half.
    """
    generator = np.random.Generator(np.random.Philox(key=0))
    total, rows = sum(map(len, texts)), []
    for text in texts:
        sentences = [s for s in re.split(r"(?<=[.!?])\s+", text) if 6 <= len(s.split()) <= 40]
        for _ in range(round(count * len(text) / total) if len(sentences) > 8 else 0):
            first, other = generator.integers(len(sentences) - 2, size=2)
            passage = " ".join(sentences[first : first + generator.integers(1, 4)])
            label = int(generator.integers(2))
            if label:  # not said: of some other place, with words of the passage
                words, said = sentences[other].split(), passage.split()
                swapped = generator.random(len(words)) < generator.uniform(0, 0.5)
                words = [said[generator.integers(len(said))] if s else w for w, s in zip(words, swapped, strict=True)]
            else:
                words = sentences[first].split()
                kept = generator.random(len(words)) >= generator.uniform(0, 0.4)
                words = [w for w, k in zip(words, kept, strict=True) if k] or words
            rows.append({"premise": passage, "hypothesis": " ".join(words), "label": label, "id": len(rows)})
    return rows


def prepare(out: Path, books: dict[Path, str], forms: Sequence[Prompts], *, vocab: int, width: int) -> None:
    """Trains the tokenizer and writes the documents."""
    parts = {"train": ([], []), "dev": ([], [])}
    for text in books.values():
        # Cut at the end of a paragraph where there is one near.
        cut = round(len(text) * (1 - DEV))
        at = text.rfind("\n", cut - round(len(text) * DEV), cut) + 1 or cut
        parts["train"][0].append(text[:at])
        parts["dev"][0].append(text[at:])
    for name, (texts, prompts) in parts.items():
        share = DEV if name == "dev" else 1 - DEV
        prompts.append((tasks.get_task("rte"), made(texts, round(MADE * share))))
    for task, rows, _ in forms:
        at = round(len(rows) * (1 - DEV))  # rows that share a premise stand together
        parts["train"][1].append((task, rows[:at]))
        parts["dev"][1].append((task, rows[at:]))
    tokenizer = train_tokenizer(_shown(*parts["train"]), vocab)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.fast.save(str(out / "tokenizer.json"))
    about: dict[str, Any] = {"vocab": tokenizer.vocab_size, "max_length": width, "held_out": HELD_OUT}
    about["repeated"] = sum(form.repeated for form in forms)
    for name, (texts, prompts) in parts.items():
        documents = tokenised(tokenizer, texts, prompts, width=width)
        documents.save(out / f"{name}.safetensors")
        of_texts = int(np.diff(documents.texts).sum())
        counts = {"prompts": len(documents.prompts), "text_tokens": of_texts}
        about[name] = counts | {"prompt_tokens": len(documents.tokens) - of_texts}
    (out / "about.json").write_text(json.dumps(about, indent=2) + "\n")
    print(json.dumps(about, indent=2))


def _shown(texts: Iterable[str], prompts: Iterable[Any]) -> Iterator[str]:
    """What the tokenizer is trained on: the texts by paragraphs, and every prompt with its answer."""
    for text in texts:
        yield from text.split("\n")
    for task, rows in prompts:
        yield from (task.demonstration(row) for row in rows)


def train_tokenizer(texts: Iterable[str], vocab: int) -> tasks.TextTokenizer:
    """A byte-level byte-pair encoding that puts <s> in front of a text.

    Args:
      texts: what it is trained on.
      vocab: its tokens, special ones and bytes included.

    Returns:
      The tokenizer.
    """
    fast = tokenizers.Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(texts, trainer)
    begin = ("<s>", fast.token_to_id("<s>"))
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[begin])
    return tasks.TextTokenizer(fast=fast)


def tokenised(tokenizer: tasks.TextTokenizer, texts: Sequence[str], prompts: Sequence[Any], *, width: int) -> Documents:
    """Texts and prompts as documents of at most `width` tokens each."""
    arrays: list[np.ndarray] = [np.asarray(tokenizer.encode_plain(text), np.int32) for text in texts]
    answers = [np.zeros(len(array), bool) for array in arrays]
    kinds = []
    for kind, (task, rows) in enumerate(prompts):
        for example in tasks.encode(task, rows, tokenizer, max_length=width - 1, train=True):
            right = example["correct"][0]
            answer = example["answers"][right]
            sequence = example["sequences"][min(right, len(example["sequences"]) - 1)]
            arrays.append(np.append(sequence, answer[-1:]))
            answers.append(np.arange(len(arrays[-1])) >= len(arrays[-1]) - len(answer))
            kinds.append(kind)
    stops = np.cumsum([len(array) for array in arrays])
    bounds = np.stack([np.append(0, stops[:-1]), stops], axis=1)
    between = tokenizer.encode_plain(f"a{tasks.SEPARATOR}a")[1:-1]
    return Documents(
        tokens=np.concatenate(arrays).astype(np.int32),
        answer=np.concatenate(answers),
        texts=bounds[: len(texts)],
        prompts=bounds[len(texts) :],
        kind=np.array(kinds, np.int32),
        separator=np.array(between, np.int32),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
