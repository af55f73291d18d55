"""WordPiece tokenisation with the files of a Hugging Face folder."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Text to token numbers, with `[CLS]` in front and `[SEP]` behind.

    Attributes:
      fast: the tokenizer of the `tokenizers` package; it neither pads nor truncates by itself.

    Example:
      >>> vocabulary = {"[PAD]": 0, "[UNK]": 1, "fine": 2}
      >>> Tokenizer(fast=tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))).vocab_size
      3
    """

    fast: tokenizers.Tokenizer

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> "Tokenizer":
        """Read `tokenizer.json`, or else build BERT's WordPiece tokenizer from `vocab.txt`.

        Padding and truncation that `tokenizer.json` asks for are switched off: `encode` has its own
        `max_length`, and batches are padded where they are made. For `vocab.txt` the field `do_lower_case`
        of `tokenizer_config.json` is respected where there is one; without it text is put in lower case.

        Args:
          folder: the folder.

        Returns:
          The tokenizer.

        Raises:
          FileNotFoundError: the folder has neither file.
          ValueError: `vocab.txt` lacks one of BERT's special tokens, or `tokenizer.json` is not one.

        Example:
          >>> import tempfile, pathlib
          >>> with tempfile.TemporaryDirectory() as folder:
          ...     vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film", "##s"]
          ...     _ = pathlib.Path(folder, "vocab.txt").write_text("\\n".join(vocab))
          ...     tokenizer = Tokenizer.from_folder(folder)
          >>> tokenizer.encode(["Good films", "?"], 8)
          [array([2, 5, 6, 7, 3], dtype=int32), array([2, 1, 3], dtype=int32)]
        """
        folder = Path(folder)
        if (folder / "tokenizer.json").is_file():
            fast = _from_json(folder / "tokenizer.json")
        elif (folder / "vocab.txt").is_file():
            fast = _from_vocab(folder / "vocab.txt", lowercase=_lowercase(folder))
        else:
            raise FileNotFoundError(f"{folder} has neither tokenizer.json nor vocab.txt")
        fast.no_padding()
        fast.no_truncation()
        return cls(fast=fast)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return self.fast.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Sequence[str], max_length: int) -> list[Int32[np.ndarray, "length"]]:
        """Turn texts into token numbers, each as long as it is, without padding.

        Args:
          texts: the texts.
          max_length: longer results lose their end, yet keep `[SEP]`; counts the special tokens.

        Returns:
          One int32 array a text.

        Raises:
          ValueError: `max_length` leaves no room for a token beside the special ones.

        Example:
          See `from_folder`.
        """
        special = self.fast.num_special_tokens_to_add(is_pair=False)
        if max_length <= special:
            raise ValueError(f"max_length must be over {special} (the special tokens), got {max_length}")
        encoded = []
        for text in self.fast.encode_batch_fast(list(texts), add_special_tokens=False):
            # Truncated here and not by `enable_truncation`, which would change state that callers share.
            text.truncate(max_length - special)
            encoded.append(np.asarray(self.fast.post_process(text).ids, np.int32))
        return encoded


def _from_json(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the package raises a bare Exception for a malformed file
        raise ValueError(f"{path} is not a tokenizer.json: {error}") from None


def _from_vocab(path: Path, *, lowercase: bool) -> tokenizers.Tokenizer:
    # not str.splitlines, which also splits at characters that are tokens themselves
    tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocab = {token: number for number, token in enumerate(tokens)}
    if missing := [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token not in vocab]:
        raise ValueError(f"{path} lacks the special tokens {missing}")
    fast = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    # strip_accents=None: accents go exactly when upper case does, as in BERT
    fast.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase, strip_accents=None)
    fast.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    fast.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")]
    )
    fast.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return fast


def _lowercase(folder: Path) -> bool:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return True
    value = json.loads(path.read_text(encoding="utf-8")).get("do_lower_case", True)
    if not isinstance(value, bool):
        raise ValueError(f"{path}: do_lower_case must be true or false, got {value!r}")
    return value
