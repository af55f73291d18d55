"""The loss of next-token prediction on packed documents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.language.llama import Llama, LlamaConfig
from models.language.pretraining import UNKNOWN, CausalPretraining

CONFIG = LlamaConfig(
    vocab_size=16,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    intermediate_size=16,
    tie_word_embeddings=True,
    initializer_range=0.5,
)


@pytest.fixture(scope="module")
def params():
    return task().init(jax.random.key(0))


def task(**options):
    options = {"answer_weight": 3.0, "word_dropout": 0.0, "compute": "float32"} | options
    return CausalPretraining(model=Llama(CONFIG), **options)


def batch():
    tokens = np.array([[1, 5, 6, 7, 1, 9, 10, 0], [1, 4, 3, 2, 11, 12, 13, 14]], np.int32)
    segment = np.array([[0, 0, 0, 0, 1, 1, 1, -1], [0] * 8], np.int32)
    answer = np.zeros((2, 8), bool)
    answer[0, 3] = answer[0, 6] = True
    return {"tokens": tokens, "segment": segment, "answer": answer}


def alone(params):
    """-log p of each token but the first of the three documents, each by itself."""
    whole = batch()
    out = []
    for row, columns in ((0, slice(0, 4)), (0, slice(4, 7)), (1, slice(0, 8))):
        tokens = jnp.asarray(whole["tokens"][row, columns])[None]
        logits = Llama(CONFIG).apply({"params": params}, tokens, jnp.ones(tokens.shape, bool))
        log_p = jax.nn.log_softmax(logits)[0, :-1]
        weight = np.where(whole["answer"][row, columns][1:], 3.0, 1.0)
        out.append((-np.take_along_axis(np.asarray(log_p), np.asarray(tokens[0, 1:, None]), 1)[:, 0], weight))
    return [np.concatenate(part) for part in zip(*out, strict=True)]


def test_documents_of_a_row_do_not_see_each_other_and_answers_weigh_more(params):
    entropy, weight = alone(params)
    # rtol: float32 sums in another order; rotary positions run on in a row, which changes the last bits.
    np.testing.assert_allclose(task().loss(params, batch())[0], (entropy * weight).sum() / weight.sum(), rtol=1e-5)
    metrics = task().evaluate(params, batch())
    np.testing.assert_allclose(metrics["loss"], (entropy.sum(), 12.0), rtol=1e-5)
    np.testing.assert_allclose(metrics["answer_loss"], (entropy[weight > 1].sum(), 2.0), rtol=1e-5)
    assert float(metrics["accuracy"][1]) == 2


def test_dropped_words_are_hidden_from_the_model_and_still_predicted(params):
    hidden = jax.random.uniform(jax.random.key(1), (2, 8)) < 0.5
    read = {**batch(), "tokens": np.where(np.asarray(hidden), UNKNOWN, batch()["tokens"])}
    dropping = task(word_dropout=0.5)
    loss = float(dropping.loss(params, batch(), key=jax.random.key(1))[0])
    assert loss != pytest.approx(float(task().loss(params, batch())[0]), rel=1e-3)
    assert loss != pytest.approx(float(task().loss(params, read)[0]), rel=1e-3)  # those predict the dropped ones
    assert float(dropping.evaluate(params, batch())["loss"][0]) == float(task().evaluate(params, batch())["loss"][0])


def test_products_in_bfloat16_leave_weights_in_float32(params):
    low = task(compute="bfloat16")
    grads = jax.grad(lambda p: low.loss(p, batch())[0])(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    exact = jax.grad(lambda p: task().loss(p, batch())[0])(params)
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (grads, exact)]
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert 0.99 < cosine < 1 - 1e-7  # 8 bits of a mantissa, and not float32 in disguise


def test_a_step_of_training_on_a_row_is_finite_where_all_is_padding(params):
    empty = {name: np.where(name == "segment", -1, value) for name, value in batch().items()}
    value, grads = jax.value_and_grad(lambda p: task().loss(p, empty)[0])(params)
    assert float(value) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
