"""Text to tokens and back, for prompts: special tokens are known, and nothing is cut."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from zojax.data.tokenize import Tokenizer

__all__ = ["PromptTokenizer", "TextTokenizer"]

# What the tokenizers of these models put around a text; a BPE vocabulary alone does not say.
_AROUND = {"opt": "</s> $A", "roberta": "<s> $A </s>"}
_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_MASKS = ("<mask>", "[MASK]")


@runtime_checkable
class PromptTokenizer(Protocol):
    """What prompts need of a tokenizer; `models.language.llama2c.Tokenizer` is one, too."""

    def encode(self, text: str) -> list[int]:
        """Token numbers of a text, special tokens in front included."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTokenizer:
    """A tokenizer of the `tokenizers` package.

    Args:
      fast: the tokenizer; it neither pads nor truncates by itself.

    Example:
      >>> fast = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
      >>> fast.pre_tokenizer = pre_tokenizers.Whitespace()
      >>> TextTokenizer(fast=fast).encode("a b")
      [0, 1]
    """

    fast: tokenizers.Tokenizer

    @classmethod
    def from_folder(cls, folder: str | Path) -> "TextTokenizer":
        """Reads `tokenizer.json`, or GPT-2's pair of files (vocab.json and merges.txt, or as OpenAI named them), or
        BERT's vocab.txt.

        What stands around a text is in tokenizer.json; beside a pair of files, config.json's model_type says it (OPT
        and RoBERTa; other models have nothing).

        Args:
          folder: the folder.

        Returns:
          The tokenizer.

        Raises:
          FileNotFoundError: if the folder has none of them.
          ValueError: if a file is malformed.
        """
        folder = Path(folder)
        if (folder / "tokenizer.json").is_file() or (folder / "vocab.txt").is_file():
            return cls(fast=Tokenizer.from_folder(folder).fast)
        for vocabulary, merges in _FILES:
            if (folder / vocabulary).is_file() and (folder / merges).is_file():
                return cls(fast=_byte_level(folder / vocabulary, folder / merges))
        raise FileNotFoundError(f"{folder} has no tokenizer.json, vocab.json with merges.txt, or vocab.txt")

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return self.fast.get_vocab_size(with_added_tokens=True)

    @property
    def mask_token(self) -> str | None:
        """The token that stands for a masked word, if there is one."""
        return next((mask for mask in _MASKS if self.fast.token_to_id(mask) is not None), None)

    def encode(self, text: str) -> list[int]:
        """Token numbers of a text, special tokens included.

        Args:
          text: the text.

        Returns:
          Token numbers.
        """
        return self.fast.encode(text).ids

    def encode_plain(self, text: str) -> list[int]:
        """Token numbers of a text alone.

        Args:
          text: the text.

        Returns:
          Token numbers.
        """
        return self.fast.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token numbers, special tokens left out.

        Args:
          tokens: token numbers.

        Returns:
          The text.
        """
        return self.fast.decode(list(tokens))


def _byte_level(vocabulary: Path, merges: Path) -> tokenizers.Tokenizer:
    try:
        numbers, pairs = models.BPE.read_file(str(vocabulary), str(merges))
        fast = tokenizers.Tokenizer(models.BPE(vocab=numbers, merges=pairs))
    except Exception as error:  # the package raises a bare Exception for a malformed file
        raise ValueError(f"{vocabulary} and {merges} are no byte-pair encoding: {error}") from None
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    special = [token for token in ("<s>", "<pad>", "</s>", "<unk>", "<|endoftext|>") if token in numbers]
    fast.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in special])
    if "<mask>" in numbers:  # takes the blank before it
        fast.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True, special=True)])
    config = vocabulary.parent / "config.json"
    kind = json.loads(config.read_text(encoding="utf-8")).get("model_type") if config.is_file() else None
    if around := _AROUND.get(str(kind)):
        tokens = [(token, numbers[token]) for token in around.split() if token != "$A"]
        fast.post_processor = processors.TemplateProcessing(single=around, special_tokens=tokens)
    return fast
