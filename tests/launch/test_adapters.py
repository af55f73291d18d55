"""Every kind of tuning that a config can name: what it trains, where it starts, and a step of it."""

import copy

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from launch.common import schema
from launch.common.build import build
from models.language import decode
from models.language.adapters import add_prefix
from models.language.bert import Bert
from models.language.families import family_of
from models.language.prefixes import prefix_of
from tests.launch.test_evaluate_tasks import data, llama  # noqa: F401 (fixtures)
from tests.models.language.test_adapters import cases
from zojax import replay
from zojax.adapters import add_prompt, prepend_prompt
from zojax.trees import leaf_paths

# What is trained, and the shapes in a model of width 8, 1 layer and 2 heads of 4.
KINDS = {
    "bitfit": ((r"(^|/)bias$",), None),
    "lora": ((r"query/kernel/(a|b)$",), {(1, 8, 3), (1, 3, 8)}),
    "prefix": ((r"layers/prefix/",), {(1, 3, 2, 4)}),
    "prompt": ((r"word/prompt$",), {(3, 8)}),
    "tensor_train": ((r"_adapter/\w+/kernel/",), {(1, 1, 8, 3), (1, 3, 8, 3), (1, 3, 8, 1), (1, 1, 8, 3)}),
}


def config_of(fields, kind, **changes):
    made = copy.deepcopy(fields)
    made["trainable"] = KINDS[kind][0]
    if kind != "bitfit":
        made["adapter"] |= {"kind": kind, "rank": 3}
    made["optimizer"] |= {"name": "sgd", "learning_rate": 0.1}
    made["method"]["num_samples"] = 1
    for name, values in changes.items():
        made[name] |= values
    config = ml_collections.ConfigDict(made)
    schema.check(config)
    return config


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_moves_what_is_named(tiny, kind):
    run = build(config_of(tiny, kind))
    paths = jax.tree.leaves(leaf_paths(run.params))
    if kind == "bitfit":
        assert len(paths) == 10  # of 6 linear maps, 3 norms and the head
        assert all(path.endswith("/bias") for path in paths)
    else:
        assert {leaf.shape for leaf in jax.tree.leaves(run.params)} == KINDS[kind][1]
    before = np.asarray(jax.tree.leaves(run.params)[-1])
    params, method = jax.tree.map(jnp.array, run.params), run.method
    params, _, scalars = method.step(params, run.frozen, method.init(params), next(run.batches), jax.random.key(0), 1)
    # A probe of weights that do not count would find no difference.
    assert (np.asarray(scalars.projected) != 0).all()
    assert replay.digest(params) != replay.digest(run.params)
    assert (np.asarray(jax.tree.leaves(params)[-1]) != before).all()
    for split in run.evaluation.values():
        assert all(b["tokens"].shape[1] <= 8 + (3 if kind == "prompt" else 0) for b in split)


def test_adapters_in_a_model_that_answers_prompts(tiny, llama, data):  # noqa: F811
    """The bottlenecks stand where LLaMA has them, and a prompt before the beginning of the text."""
    model = {"name": "prompted_lm", "source": str(llama), "head": "zero"}
    rows = {"source": str(data / "sst2"), "max_length": 16, "batch_size": 2}
    run = build(config_of(tiny, "tensor_train", model=model, data=rows))
    assert {path.split("/")[1] for path in jax.tree.leaves(leaf_paths(run.params))} == {
        "gate_adapter",
        "up_adapter",
        "down_adapter",
    }
    run = build(config_of(tiny, "prompt", model=model, data=rows))
    batch = next(run.batches)
    words = run.frozen["embeddings"]["word"].shape[0]
    assert (batch["tokens"][..., :3] == words + np.arange(3)).all()
    assert (batch["tokens"][..., 3] == 2).all()  # [CLS]
    # The columns that predict the answers are those of the texts.
    plain = next(build(config_of(tiny, "lora", model=model, data=rows)).batches)
    np.testing.assert_array_equal(batch["at"], plain["at"] + 3)
    np.testing.assert_array_equal(batch["tokens"][..., 3:], plain["tokens"])


@pytest.mark.parametrize("name", ["bert", "llama", "opt"])
def test_a_prompt_of_words_is_those_words(name):
    config, _, _, params = cases(name)
    model = family_of(config).model(config)
    text, mask = decode.pad([[5, 9, 3], [2, 8]], side="right")
    prompt = add_prompt(params["embeddings"]["word"], 2, key=jax.random.key(3))
    # Rows of the table, so their numbers are to be found there.
    table = np.asarray(params["embeddings"]["word"])
    drawn = [int(np.flatnonzero((table == row).all(axis=1))[0]) for row in np.asarray(prompt.prompt)]
    assert len(set(drawn)) == 2
    longer = prepend_prompt({"tokens": text, "mask": mask}, config.vocab_size, 2)
    words = np.concatenate([np.broadcast_to(np.array(drawn), (2, 2)), text], axis=1)
    forward = jax.jit(lambda p, t, m: model.apply({"params": p}, t, m))
    own = params | {"embeddings": params["embeddings"] | {"word": prompt}}
    found = forward(own, jnp.asarray(longer["tokens"]), jnp.asarray(longer["mask"]))
    wanted = forward(params, jnp.asarray(words), jnp.asarray(longer["mask"]))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    other = forward(params, jnp.asarray((words + 1) % 13), jnp.asarray(longer["mask"]))
    assert np.abs(np.asarray(other - wanted)).max() > 1e-2


def test_a_prefix_of_the_text_itself_changes_nothing():
    """Keys and values that stand there twice get half of the attention each: BERT's answer is the same."""
    config, _, _, params = cases("bert")
    text = jnp.array([5, 9, 3, 7])
    forward = jax.jit(lambda p: Bert(config).apply({"params": p}, text[None], jnp.ones((1, 4), bool)))
    found = forward(add_prefix(params, *prefix_of(Bert(config), params, text)))
    np.testing.assert_allclose(found, forward(params), rtol=1e-4, atol=1e-5)  # float32 through two layers
    other = forward(add_prefix(params, *prefix_of(Bert(config), params, text + 1)))
    assert np.abs(np.asarray(other - found)).max() > 1e-2


def test_a_prompt_must_leave_room(tiny):
    with pytest.raises(ValueError, match=r"config.adapter.rank is 9 and config.data.max_length 8; .* at most 16"):
        build(config_of(tiny, "prompt", adapter={"rank": 9}))


@pytest.mark.parametrize(("section", "field", "value"), [("data", "packed_rows", 2), ("method", "name", "mezo_svrg")])
def test_what_does_not_go_with_a_prompt(tiny, section, field, value):
    with pytest.raises(ValueError, match=f"config.{section}.{field} is {value!r}; with a prompt"):
        config_of(tiny, "prompt", **{section: {field: value}})
