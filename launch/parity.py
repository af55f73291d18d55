"""Compares the language models with transformers' and rewrites the golden files from it.

    python -m launch.parity

It needs torch and transformers, which the project does not install; the golden files it writes let the tests
check the same without them. The cases: MiniLM on a few awkward sentences, a small random encoder whose biases,
gains and token types all matter, and a small random model of every family (`launch/language/parity_models.py`). It
prints one line of JSON a case and fails, writing nothing, if any entry differs by more than TOLERANCE.
"""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from launch.language import parity_models
from models.language import hub
from models.language.bert import Bert
from models.language.classifier import TextClassifier

# Two float32 implementations of six layers differ by 1e-6 to 1e-5 (sums in another order); a wrong epsilon, GELU
# or mask by 1e-3 and more.
TOLERANCE = 1e-4
GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
MAX_LENGTH = 96
SENTENCES = (
    "A gripping, funny and surprisingly tender film.",
    "",
    "so-so; I'd watch it again (maybe), though $12.50 is too much!!!",
    "Ünïcödé: naïve café, Straße, 東京, Привет мир 🎬",
    "the actors do their best with what little the script has given them , " * 20,
    "ok",
    "\tTwo\n lines \u00a0 and  odd\u200b spaces",
    "antidisestablishmentarianism and other floccinaucinihilipilification",
)
TINY_VOCABULARY = 40
TINY = dict(
    vocab_size=TINY_VOCABULARY,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=16,
    layer_norm_eps=1e-12,
    initializer_range=0.3,  # wide enough that attention is far from uniform
)


def tokenize(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The sentences as (tokens int32 [n, s], mask bool [n, s]), truncated to MAX_LENGTH and padded to the longest."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_LENGTH)
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(SENTENCES))
    tokens = np.array([e.ids for e in encoded], np.int32)
    return tokens, np.array([e.attention_mask for e in encoded], bool)


def reference(model: Any, tokens: np.ndarray, mask: np.ndarray, types: np.ndarray) -> dict[str, np.ndarray]:
    """transformers' outputs: hidden [b, s, d], pooled (mean over the mask) [b, d], pooler [b, d]."""
    import torch  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(tokens).long(),
            attention_mask=torch.tensor(mask).long(),
            token_type_ids=torch.tensor(types).long(),
        )
        weights = torch.tensor(mask).float()[..., None]
        pooled = (out.last_hidden_state * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    return {
        "hidden": out.last_hidden_state.numpy(),
        "pooled": pooled.numpy(),
        "pooler": out.pooler_output.numpy(),
    }


def ours(config, params, tokens, mask, types) -> dict[str, np.ndarray]:
    """The same three from `Bert`; "pooled" is the classifier's, which knows no token types."""
    args = (jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(types))
    out = {
        "hidden": Bert(config).apply({"params": params}, *args),
        "pooler": Bert(config).apply({"params": params}, *args, method="pooled"),
    }
    if not types.any():
        task = TextClassifier(config=config, num_classes=2)
        out["pooled"] = task.features({"encoder": params}, {"tokens": tokens, "mask": mask})
    return {name: np.asarray(array) for name, array in out.items()}


def compare(case: str, mine: dict[str, np.ndarray], theirs: dict[str, np.ndarray], mask: np.ndarray) -> bool:
    """Prints the largest absolute differences and says whether all that count are within TOLERANCE.

    Hidden states at padding are printed but do not count: nothing reads them, and some are so badly conditioned
    that transformers' own float32 is 6e-5 from its float64 there (3e-6 at tokens).
    """
    delta = {name: np.abs(mine[name] - theirs[name]) for name in mine}
    padding = float(delta["hidden"][~mask].max(initial=0.0))
    delta["hidden"] = delta["hidden"][mask]
    largest = {name: float(d.max()) for name, d in delta.items()}
    line = {"case": case, "max_abs_difference": largest, "at_padding": padding, "tolerance": TOLERANCE}
    print(json.dumps(line))
    return all(difference <= TOLERANCE for difference in largest.values())


def minilm(bert_model: Any) -> tuple[bool, dict[str, np.ndarray]]:
    """MiniLM's verdict and golden arrays: tokens, mask, pooled, and hidden rows of the first and last token."""
    folder = hub.resolve("minilm")
    config, params = hub.load("minilm", pooler=True)
    tokens, mask = tokenize(folder)
    types = np.zeros_like(tokens)
    model = bert_model.from_pretrained(folder, attn_implementation="eager").eval()
    theirs = reference(model, tokens, mask, types)
    same = compare("minilm", ours(config, params, tokens, mask, types), theirs, mask)
    last = mask.sum(1) - 1
    rows = np.stack([theirs["hidden"][:, 0], theirs["hidden"][np.arange(len(last)), last]], axis=1)
    return same, {"tokens": tokens, "mask": mask, "pooled": theirs["pooled"], "rows": rows}


def tiny(bert_config: Any, bert_model: Any, folder: Path) -> tuple[bool, dict[str, np.ndarray]]:
    """The small encoder's verdict and golden arrays; its checkpoint is written to `folder`, in bfloat16."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    model = bert_model(bert_config(**TINY)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases start at 0 and gains at 1: exchanged, nobody would see it
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.bfloat16().save_pretrained(folder)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, TINY_VOCABULARY, (3, 12)).astype(np.int32)
    types = rng.integers(0, 2, tokens.shape).astype(np.int32)
    mask = np.arange(12) < np.array([[12], [7], [1]])
    arrays = {"tokens": tokens, "types": types, "mask": mask}
    config, params = hub.load(folder, pooler=True)
    verdicts = []
    for act in ("gelu", "gelu_new", "relu"):
        model = bert_model.from_pretrained(folder, hidden_act=act, attn_implementation="eager").float().eval()
        theirs = reference(model, tokens, mask, types)
        mine = ours(dataclasses.replace(config, hidden_act=act), params, tokens, mask, types)
        verdicts.append(compare(f"tiny {act}", mine, theirs, mask))
        arrays |= {f"hidden_{act}": theirs["hidden"], f"pooler_{act}": theirs["pooler"]}
    return all(verdicts), arrays


def main() -> int:
    """Runs all cases; returns the process's exit status."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
        from transformers import BertConfig, BertModel  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        print(f"parity compares with torch and transformers: {error}; run make parity-env", file=sys.stderr)
        return 2
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as scratch:
        same_minilm, minilm_arrays = minilm(BertModel)
        same_tiny, tiny_arrays = tiny(BertConfig, BertModel, Path(scratch))
        if not (same_minilm and same_tiny and parity_models.main(GOLDEN / "families")):
            print(f"parity: a difference exceeds {TOLERANCE}; the golden files stay as they are", file=sys.stderr)
            return 1
        checkpoint = GOLDEN / "bert_tiny"
        checkpoint.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            (checkpoint / name).write_bytes((Path(scratch) / name).read_bytes())
    save_file(minilm_arrays, GOLDEN / "minilm_outputs.safetensors")
    save_file(tiny_arrays, GOLDEN / "bert_tiny_outputs.safetensors")
    (GOLDEN / "minilm_sentences.json").write_text(
        json.dumps({"max_length": MAX_LENGTH, "sentences": SENTENCES}, ensure_ascii=False, indent=1) + "\n",
        encoding="utf-8",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
