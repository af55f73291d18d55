"""The families of checkpoints that can be read and written: for each, what its tensors are called."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models.language.bert import Bert, BertConfig
from models.language.llama import Llama
from models.language.llama_config import MODEL_TYPES, LlamaConfig
from models.language.opt import Opt, OptConfig

__all__ = ["FAMILIES", "Family", "abstract", "family_of", "names"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How a family's parameter tree and its checkpoints correspond.

    `FAMILIES` holds one for every model_type of config.json.

    Example:
      >>> FAMILIES["opt"].canonical("model.decoder.layers.0.fc1.bias")
      'layers.0.fc1.bias'

    Attributes:
      config: the configuration's class; its `from_dict` reads config.json.
      model: the Linen module, of a configuration.
      tensors: our path -> the checkpoint's name; {} is the layer. A path is a leaf's, or a module's, whose kernel and
        scale are then called "weight" and whose bias "bias".
      prefixes: what task models put before names, and base models do not; the longest first.
      renamed: present names by older ones.
      passed_over: tensors that a checkpoint may hold beside the model's.
      architectures: the class of transformers by whether there is a head.
    """

    config: type[Any]
    model: Callable[[Any], Any]
    tensors: Mapping[str, str]
    prefixes: tuple[str, ...]
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    passed_over: re.Pattern[str]
    architectures: Mapping[bool, str]

    def canonical(self, name: str) -> str:
        """A tensor's name without the prefix of task models, and by its present name."""
        for prefix in self.prefixes:
            if name.startswith(prefix):
                name = name.removeprefix(prefix)
                break
        for old, new in self.renamed.items():
            name = name.replace(old, new)
        return name


_ENCODER = {
    "embeddings/word": "{prefix}embeddings.word_embeddings.weight",
    "embeddings/position": "{prefix}embeddings.position_embeddings.weight",
    "embeddings/type": "{prefix}embeddings.token_type_embeddings.weight",
    "embeddings/norm": "{prefix}embeddings.LayerNorm",
    "layers/query": "{prefix}encoder.layer.{}.attention.self.query",
    "layers/key": "{prefix}encoder.layer.{}.attention.self.key",
    "layers/value": "{prefix}encoder.layer.{}.attention.self.value",
    "layers/output": "{prefix}encoder.layer.{}.attention.output.dense",
    "layers/attention_norm": "{prefix}encoder.layer.{}.attention.output.LayerNorm",
    "layers/up": "{prefix}encoder.layer.{}.intermediate.dense",
    "layers/down": "{prefix}encoder.layer.{}.output.dense",
    "layers/mlp_norm": "{prefix}encoder.layer.{}.output.LayerNorm",
    "pooler": "{prefix}pooler.dense",
}


def _encoder(prefix: str) -> dict[str, str]:
    return {path: name.replace("{prefix}", prefix) for path, name in _ENCODER.items()}


BERT = Family(
    config=BertConfig,
    model=Bert,
    tensors={
        **_encoder("bert."),
        "masked_head/dense": "cls.predictions.transform.dense",
        "masked_head/norm": "cls.predictions.transform.LayerNorm",
        "masked_head/bias": "cls.predictions.bias",
    },
    prefixes=("bert.",),
    renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
    # A buffer 0..n-1, the heads of pre-training, and the pooler where it is not asked for.
    passed_over=re.compile(r"^(embeddings\.position_ids$|cls\.|pooler\.)"),
    architectures={False: "BertModel", True: "BertForMaskedLM"},
)

ROBERTA = Family(
    config=BertConfig,
    model=Bert,
    tensors={
        **_encoder("roberta."),
        "masked_head/dense": "lm_head.dense",
        "masked_head/norm": "lm_head.layer_norm",
        "masked_head/bias": "lm_head.bias",
    },
    prefixes=("roberta.",),
    passed_over=re.compile(r"^(embeddings\.position_ids$|lm_head\.|classifier\.|pooler\.)"),
    architectures={False: "RobertaModel", True: "RobertaForMaskedLM"},
)


def _decoder(architecture: str) -> Family:
    return Family(
        config=LlamaConfig,
        model=Llama,
        tensors={
            "embeddings/word": "model.embed_tokens.weight",
            "layers/attention_norm": "model.layers.{}.input_layernorm",
            "layers/query": "model.layers.{}.self_attn.q_proj",
            "layers/key": "model.layers.{}.self_attn.k_proj",
            "layers/value": "model.layers.{}.self_attn.v_proj",
            "layers/output": "model.layers.{}.self_attn.o_proj",
            "layers/query_norm": "model.layers.{}.self_attn.q_norm",
            "layers/key_norm": "model.layers.{}.self_attn.k_norm",
            "layers/mlp_norm": "model.layers.{}.post_attention_layernorm",
            "layers/gate": "model.layers.{}.mlp.gate_proj",
            "layers/up": "model.layers.{}.mlp.up_proj",
            "layers/down": "model.layers.{}.mlp.down_proj",
            "norm": "model.norm",
            "head": "lm_head",
        },
        prefixes=("model.",),
        # Old LLaMA files hold the rotary frequencies; tied models may hold their head.
        passed_over=re.compile(r"^(layers\.\d+\.self_attn\.rotary_emb\.inv_freq|lm_head\.weight)$"),
        architectures={True: f"{architecture}ForCausalLM"},
    )


OPT = Family(
    config=OptConfig,
    model=Opt,
    tensors={
        "embeddings/word": "model.decoder.embed_tokens.weight",
        "embeddings/position": "model.decoder.embed_positions.weight",
        "project_in": "model.decoder.project_in",
        "project_out": "model.decoder.project_out",
        "layers/attention_norm": "model.decoder.layers.{}.self_attn_layer_norm",
        "layers/query": "model.decoder.layers.{}.self_attn.q_proj",
        "layers/key": "model.decoder.layers.{}.self_attn.k_proj",
        "layers/value": "model.decoder.layers.{}.self_attn.v_proj",
        "layers/output": "model.decoder.layers.{}.self_attn.out_proj",
        "layers/mlp_norm": "model.decoder.layers.{}.final_layer_norm",
        "layers/up": "model.decoder.layers.{}.fc1",
        "layers/down": "model.decoder.layers.{}.fc2",
        "norm": "model.decoder.final_layer_norm",
        "head": "lm_head",
    },
    prefixes=("model.decoder.", "decoder."),
    passed_over=re.compile(r"^lm_head\.weight$"),
    architectures={True: "OPTForCausalLM"},
)

FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "llama": _decoder("Llama"),
    "mistral": _decoder("Mistral"),
    "qwen2": _decoder("Qwen2"),
    "qwen3": _decoder("Qwen3"),
    "opt": OPT,
}
"""By the model_type of config.json."""

assert set(MODEL_TYPES) <= set(FAMILIES)


def family_of(config: Any) -> Family:
    """The family of a configuration.

    Args:
      config: a `BertConfig`, `LlamaConfig` or `OptConfig`.

    Returns:
      The family.

    Example:
      >>> config = BertConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
      ...                     intermediate_size=8, position_offset=2)
      >>> family_of(config) is ROBERTA
      True
    """
    return FAMILIES[config.to_dict()["model_type"]]


def abstract(config: Any, *, pooler: bool = False, masked_head: bool = False) -> Any:
    """The tree of the parameters' shapes, from the model itself.

    Args:
      config: a configuration.
      pooler: whether an encoder has its pooler.
      masked_head: whether an encoder has its head for masked words.

    Returns:
      Tree of ShapeDtypeStruct.

    Example:
      >>> config = BertConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
      ...                     intermediate_size=8)
      >>> abstract(config, pooler=True)["pooler"]["kernel"].shape
      (4, 4)
    """

    def call(module, tokens, mask):
        if pooler:
            module.pooled(tokens, mask)
        if masked_head:
            module.masked_logits(tokens, mask)
        return module(tokens, mask)

    tokens, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
    model = family_of(config).model(config)
    return jax.eval_shape(lambda key: model.init(key, tokens, mask, method=call)["params"], jax.random.key(0))


def names(family: Family, path: str, layers: int | None) -> list[str]:
    """The checkpoint's names of a leaf: one, or one a layer.

    Args:
      family: the family.
      path: the leaf's path in our tree.
      layers: number of layers of a stacked leaf, or None.

    Returns:
      The names.

    Raises:
      ValueError: if the family has no such leaf.

    Example:
      >>> names(FAMILIES["llama"], "layers/up/kernel", 2)
      ['model.layers.0.mlp.up_proj.weight', 'model.layers.1.mlp.up_proj.weight']
    """
    module, _, leaf = path.rpartition("/")
    if path in family.tensors:
        name = family.tensors[path]
    elif module in family.tensors:
        name = family.tensors[module] + (".bias" if leaf == "bias" else ".weight")
    else:
        raise ValueError(f"the leaf {path!r} has no name in a checkpoint of {family.architectures[True]}")
    return [name] if layers is None else [name.format(layer) for layer in range(layers)]
