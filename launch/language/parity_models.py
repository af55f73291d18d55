"""The part of `launch.parity` that compares every family of language models with transformers'.

For each family: a small random model of transformers is saved as its folder, read by `models.language.hub`, and its
logits and greedy continuations compared with ours; then our export of it is loaded by transformers and compared again.
The folders and outputs are the golden files of tests/models/language/test_families.py.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from models.language import decode, hub
from models.language.families import family_of

# The same reason as in parity.py: float32 sums in another order against a wrong constant.
TOLERANCE = 1e-4
VOCABULARY = 64
LENGTH = 14
NEW_TOKENS = 6
SIZES = dict(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
DECODER = dict(**SIZES, num_key_value_heads=2, intermediate_size=48, initializer_range=0.3)
ENCODER = dict(**SIZES, intermediate_size=48, initializer_range=0.3)
SPECIAL = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
# The wavelengths 2 pi 100^(i/4) are 6, 20, 63 and 199: one on either side of 64 / 4 and 64 / 1, and two between.
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=100.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
OPT = dict(**SIZES, ffn_dim=48, max_position_embeddings=32, init_std=0.3, **SPECIAL)

# Name -> (class of transformers, its configuration's arguments, type of the file, bytes a shard).
CASES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "llama2": ("Llama", {**DECODER, **SPECIAL, "num_key_value_heads": 4}, "bfloat16", "1GB"),
    "llama3": (
        "Llama",
        {**DECODER, **SPECIAL, "rope_parameters": LLAMA3, "tie_word_embeddings": True},
        "bfloat16",
        "1GB",
    ),
    "mistral": ("Mistral", {**DECODER, **SPECIAL, "sliding_window": 4}, "float16", "1GB"),
    "qwen2": (
        "Qwen2",
        {**DECODER, **SPECIAL, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        "bfloat16",
        "24KB",
    ),
    "qwen3": ("Qwen3", {**DECODER, **SPECIAL, "head_dim": 12, "tie_word_embeddings": True}, "bfloat16", "1GB"),
    "opt": ("OPT", {**OPT, "word_embed_proj_dim": 32}, "bfloat16", "1GB"),
    "opt_post": ("OPT", {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}, "bfloat16", "1GB"),
    "roberta": (
        "Roberta",
        {**ENCODER, "max_position_embeddings": 34, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5},
        "bfloat16",
        "1GB",
    ),
    "bert": ("Bert", {**ENCODER, "max_position_embeddings": 32, "hidden_act": "gelu_new"}, "bfloat16", "1GB"),
}


def inputs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, mask): a full row, one padded on the right and, for decoders, one padded on the left."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, VOCABULARY, (3, LENGTH)).astype(np.int32)
    slots = np.arange(LENGTH)
    last = slots < 3 if name in ("bert", "roberta") else slots >= 5
    mask = np.stack([slots >= 0, slots < 9, last])
    return np.where(mask, tokens, 1).astype(np.int32), mask


def theirs(model: Any, name: str, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """transformers' logits [b, s, vocab]."""
    import torch  # pyright: ignore[reportMissingImports]

    given = dict(input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long())
    if name not in ("bert", "roberta", "opt", "opt_post"):
        # By itself it counts columns; the angles between tokens would be the same, but not their rounding.
        given["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(**given).logits.numpy()


def continuation(model: Any, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """transformers' greedy continuation of rows padded on the left, int32 [b, NEW_TOKENS]."""
    import torch  # pyright: ignore[reportMissingImports]

    given = dict(input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long())
    lengths = dict(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
    model.generation_config.eos_token_id = None
    out = model.generate(**given, **lengths, do_sample=False)
    return out[:, tokens.shape[1] :].numpy().astype(np.int32)


def ours(config: Any, params: Any, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Our logits."""
    model = family_of(config).model(config)
    method = "masked_logits" if "masked_head" in params else "__call__"
    apply = jax.jit(lambda p, t, m: model.apply({"params": p}, t, m, method=method))
    return np.asarray(apply(params, jnp.asarray(tokens), jnp.asarray(mask)))


def reference(name: str, folder: Path) -> Any:
    """transformers' model from a folder, in float32."""
    import transformers  # pyright: ignore[reportMissingImports]

    kind = CASES[name][0] + ("ForMaskedLM" if name in ("bert", "roberta") else "ForCausalLM")
    model, report = getattr(transformers, kind).from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    left = {key: value for key, value in report.items() if value and key != "error_msgs"}
    if left:
        raise ValueError(f"{name}: transformers reads {folder} with {left}")
    return model.float().eval()


def make(name: str, folder: Path) -> None:
    """Writes a random model of transformers to a folder."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    kind, arguments, dtype, shard = CASES[name]
    head = "ForMaskedLM" if name in ("bert", "roberta") else "ForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, kind + head)(getattr(transformers, kind + "Config")(**arguments)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases start at 0 and gains at 1: exchanged, nobody would see it
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    (folder / "generation_config.json").unlink(missing_ok=True)


def case(name: str, folder: Path) -> tuple[bool, dict[str, np.ndarray]]:
    """A family's verdict and golden arrays."""
    make(name, folder)
    tokens, mask = inputs(name)
    masked = name in ("bert", "roberta")
    model = reference(name, folder)
    expected = theirs(model, name, tokens, mask)
    config, params = hub.load(folder, masked_head=masked)
    difference = float(np.abs(ours(config, params, tokens, mask) - expected)[mask].max())
    arrays = {"tokens": tokens, "mask": mask, "logits": expected}
    same = difference <= TOLERANCE
    with tempfile.TemporaryDirectory() as scratch:
        hub.save(Path(scratch) / "export", config, params, shard_bytes=30_000)
        exported = theirs(reference(name, Path(scratch) / "export"), name, tokens, mask)
    out = float(np.abs(exported - expected)[mask].max())
    same &= out <= TOLERANCE
    line: dict[str, Any] = {"case": name, "logits": difference, "exported": out, "tolerance": TOLERANCE}
    if not masked:
        left, kept = np.where(mask, tokens, 0)[[0, 2]], mask[[0, 2]]
        arrays["continued"] = continuation(model, left, kept)
        mine = decode.generate(
            family_of(config).model(config), params, jnp.asarray(left), jnp.asarray(kept), max_new_tokens=NEW_TOKENS
        )
        line["continuations_equal"] = bool((np.asarray(mine.tokens) == arrays["continued"]).all())
        same &= line["continuations_equal"]
    print(json.dumps(line), flush=True)
    return same, arrays


def main(golden: Path) -> bool:
    """Runs every family and, if all agree, rewrites their folders under `golden`."""
    with tempfile.TemporaryDirectory() as scratch:
        verdicts = []
        for name in CASES:
            folder = Path(scratch) / name
            same, arrays = case(name, folder)
            save_file(arrays, folder / "outputs.safetensors")
            verdicts.append(same)
        if not all(verdicts):
            return False
        shutil.rmtree(golden, ignore_errors=True)
        shutil.copytree(scratch, golden)
    return True
