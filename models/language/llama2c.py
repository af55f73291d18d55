"""Checkpoints and tokenizers of llama2.c (the first, unversioned format): small LLaMA models as plain binary files."""

import dataclasses
import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np

from models.language.llama import LlamaConfig

__all__ = ["Tokenizer", "load"]

BOS, EOS = 1, 2
RMS_NORM_EPS = 1e-5  # a constant of the program that runs these files
BYTES_AT = 3  # token of the byte 0, behind <unk>, <s> and </s>


def load(path: str | Path) -> tuple[LlamaConfig, Any]:
    """Reads a model.

    The file is seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len; a negative vocab_size
    says that the output layer is its own), then float32 arrays.

    Args:
      path: the .bin file.

    Returns:
      (config, params): the tree of `Llama`, as numpy arrays.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the header makes no sense or the file has another length than it says.

    Example:
      >>> import tempfile
      >>> with tempfile.NamedTemporaryFile(suffix=".bin") as file:
      ...     _ = file.write(struct.pack("<7i", 4, 8, 1, 2, 1, 8, 16) + bytes(4 * 220)), file.flush()
      ...     config, params = load(file.name)
      >>> config.head_dim, params["layers"]["key"]["kernel"].shape
      (2, (1, 4, 2))
    """
    path = Path(path)
    data = path.read_bytes()
    if len(data) < 28:
        raise ValueError(f"{path} has {len(data)} bytes; the header alone has 28")
    d, hidden, layers, heads, kv_heads, vocabulary, length = struct.unpack("<7i", data[:28])
    try:
        config = LlamaConfig(
            vocab_size=abs(vocabulary),
            hidden_size=d,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=d // max(heads, 1),
            intermediate_size=hidden,
            max_position_embeddings=length,
            rms_norm_eps=RMS_NORM_EPS,
            tie_word_embeddings=vocabulary > 0,
        )
        if d % heads:
            raise ValueError(f"dim is {d}; n_heads = {heads} must divide it")
    except ValueError as error:
        raise ValueError(f"{path} is no llama2.c model: {error}") from error
    kv = kv_heads * config.head_dim
    shapes = {
        "word": (config.vocab_size, d),
        "attention_norm": (layers, d),
        "query": (layers, d, d),
        "key": (layers, kv, d),
        "value": (layers, kv, d),
        "output": (layers, d, d),
        "mlp_norm": (layers, d),
        "gate": (layers, hidden, d),
        "down": (layers, d, hidden),
        "up": (layers, hidden, d),
        "norm": (d,),
        "cosines": (length, config.head_dim // 2),  # not used: made from rope_theta
        "sines": (length, config.head_dim // 2),
        **({} if config.tie_word_embeddings else {"head": (config.vocab_size, d)}),
    }
    expected = 28 + 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    if len(data) != expected:
        raise ValueError(f"{path} has {len(data)} bytes; by its header it must have {expected}")
    arrays, start = {}, 28
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(data, "<f4", count, start).reshape(shape)
        start += 4 * count
    for name, count in (("query", heads), ("key", kv_heads)):
        # Neighbours are a rotary pair in this format, the two halves of a head in ours.
        pairs = arrays[name].reshape(layers, count, config.head_dim // 2, 2, d)
        arrays[name] = pairs.swapaxes(2, 3).reshape(arrays[name].shape)
    kernels = ("query", "key", "value", "output", "gate", "up", "down")
    stack: dict[str, Any] = {name: {"kernel": arrays[name].swapaxes(1, 2).copy()} for name in kernels}
    stack |= {name: {"scale": arrays[name].copy()} for name in ("attention_norm", "mlp_norm")}
    params = {"embeddings": {"word": arrays["word"].copy()}, "layers": stack, "norm": {"scale": arrays["norm"].copy()}}
    if not config.tie_word_embeddings:
        params["head"] = {"kernel": arrays["head"].T.copy()}
    return config, params


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """The byte-pair encoding of llama2.c: the pair of neighbours that makes the likeliest piece is merged first.

    Attributes:
      pieces: the bytes of each token.
      scores: of each token; the higher the sooner it is made.

    Example:
      >>> special = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % i for i in range(256))]
      >>> tokenizer = Tokenizer(pieces=(*special, b" ", b"a", b" a"), scores=(0.0,) * 262)
      >>> tokenizer.encode("a!"), tokenizer.decode([1, 261, 36])
      ([1, 261, 36], 'a!')
    """

    pieces: tuple[bytes, ...]
    scores: tuple[float, ...]

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Reads a tokenizer: int32 longest piece, then for each token float32 score, int32 length and its bytes.

        Args:
          path: the .bin file.

        Returns:
          The tokenizer.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: if the file ends inside a token, or is no such file.
        """
        data = Path(path).read_bytes()
        pieces, scores, start = [], [], 4
        longest = struct.unpack_from("<i", data)[0] if len(data) >= 4 else -1
        while start < len(data):
            score, size = struct.unpack_from("<fi", data, start) if start + 8 <= len(data) else (0.0, -1)
            start += 8
            if not 0 <= size <= longest or start + size > len(data):
                raise ValueError(f"{path} is no llama2.c tokenizer: token {len(pieces)} is cut short or too long")
            pieces.append(data[start : start + size])
            scores.append(score)
            start += size
        if len(pieces) < BYTES_AT + 256:
            raise ValueError(f"{path} has {len(pieces)} tokens; three special ones and 256 bytes are the least")
        return cls(tuple(pieces), tuple(scores))

    def encode(self, text: str) -> list[int]:
        """Token numbers, the beginning-of-sequence token first; a space is put before the text.

        Args:
          text: the text.

        Returns:
          Token numbers.
        """
        numbers = {piece: i for i, piece in reversed(list(enumerate(self.pieces)))}
        tokens: list[int] = []
        for character in f" {text}" if text else "":
            piece = character.encode()
            known = numbers.get(piece)
            tokens += [known] if known is not None else [byte + BYTES_AT for byte in piece]
        while True:
            merges = [
                (-self.scores[merged], i, merged)
                for i, pair in enumerate(itertools.pairwise(tokens))
                if (merged := numbers.get(self.pieces[pair[0]] + self.pieces[pair[1]])) is not None
            ]
            if not merges:
                return [BOS, *tokens]
            _, i, merged = min(merges)
            tokens[i : i + 2] = [merged]

    def decode(self, tokens: list[int]) -> str:
        """The text of token numbers; the space that begins a sequence goes with its mark.

        Args:
          tokens: token numbers.

        Returns:
          The text; bytes that are no UTF-8 become the replacement character.

        Raises:
          ValueError: if a number is no token's.
        """
        out, before = b"", None
        for token in tokens:
            if not 0 <= token < len(self.pieces):
                raise ValueError(f"tokens holds {token}; it must be in [0, {len(self.pieces)})")
            piece = self.pieces[token]
            if BYTES_AT <= token < BYTES_AT + 256:
                piece = bytes([token - BYTES_AT])
            elif before == BOS:
                piece = piece.removeprefix(b" ")
            out += b"" if token in (BOS, EOS) else piece
            before = token
        return out.decode("utf-8", errors="replace")
