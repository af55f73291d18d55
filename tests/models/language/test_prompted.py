"""The prompted losses against a float64 oracle over the models' logits, their padding, their probes and real text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.language import decode, hub, llama2c
from models.language.families import family_of
from models.language.llama import Llama
from models.language.metrics import token_f1
from models.language.prompted import GreedyReward, PromptedLM
from tests.data.tasks.test_batches import example, many
from zojax import estimators, train
from zojax.data import tasks
from zojax.perturb import PerturbSpec
from zojax.trees import split

# float32 log-probabilities of order 1 to 10, summed over other shapes than the oracle's: some units in the last place.
REORDERED = 5e-5


@functools.cache
def loaded(golden, name, masked=False):
    config, params = hub.load(golden / "families" / name, masked_head=masked)
    return family_of(config).model(config), jax.tree.map(jnp.asarray, params)


@functools.cache
def program(model, objective):
    task = PromptedLM(model=model, objective=objective)
    return jax.jit(lambda params, batch: (task.loss(params, batch), task.scores(params, batch)))


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@functools.cache
def forward(model):
    return jax.jit(lambda params, tokens, mask: model.apply({"params": params}, tokens, mask))


def oracle(model, params, given):
    """Log-probabilities of every answer's tokens, in float64 from the whole logits, one sequence at a time."""
    out = []
    for k, answer in enumerate(given["answers"]):
        row = [*given["sequences"][min(k, len(given["sequences"]) - 1)].tolist(), int(answer[-1])]
        logits = np.asarray(forward(model)(params, *decode.pad([row], side="right", length=20)))[0]
        log_p = log_softmax(logits)
        begin = len(row) - len(answer)
        out.append([log_p[begin + t - 1, token] for t, token in enumerate(answer)])
    return out


EXAMPLES = [
    example(0, [5, 9, 23, 40, 7], [[31, 12], [4]], correct=(1,)),
    example(1, [44, 3], [[8], [9, 10, 11], [30, 2]], correct=(0, 2)),
    example(2, [60, 17, 8, 30, 1, 1, 2], [[3], [4]], correct=(0,)),
]


@pytest.mark.parametrize("name", ["mistral", "opt"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_losses_are_those_of_the_formulas(golden, name, side):
    model, params = loaded(golden, name)
    (batch,) = tasks.eval_batches(EXAMPLES, batch_size=4, max_length=12, side=side)
    places = {row["id"]: i for i, row in enumerate(EXAMPLES)}
    (loss, metrics), scores = program(model, "classification")(params, batch)
    likelihoods = [oracle(model, params, row) for row in EXAMPLES]
    means = [[np.mean(answer) for answer in row] for row in likelihoods]
    losses, hits = [], []
    for row, mean in zip(EXAMPLES, means, strict=True):
        losses.append(np.log(np.exp(mean).sum()) - mean[row["correct"][0]])
        hits.append(int(np.argmax(mean)) in row["correct"])
    for b, id in enumerate(batch["id"].tolist()):
        mean = means[places[id]] if id >= 0 else means[places[batch["id"][2]]]
        np.testing.assert_allclose(scores[b, : len(mean)], mean, atol=REORDERED)
        assert np.isneginf(scores[b, len(mean) :]).all()
    np.testing.assert_allclose(loss, np.mean(losses), atol=REORDERED)
    # The row that fills up the batch counts for nothing.
    assert [float(x) for x in metrics["accuracy"]] == [sum(hits), 3.0]
    assert float(metrics["loss"][1]) == 3.0
    np.testing.assert_allclose(
        program(model, "accuracy")(params, batch)[0][0], 1 - np.mean(hits), rtol=1e-6
    )  # a quotient of small integers

    # Teacher-forced: over tokens, not over rows.
    right = [row[given["correct"][0]] for row, given in zip(likelihoods, EXAMPLES, strict=True)]
    (loss, metrics), _ = program(model, "answer")(params, batch)
    np.testing.assert_allclose(loss, -np.mean(np.concatenate(right)), atol=REORDERED)
    assert float(metrics["loss"][1]) == sum(map(len, right))
    assert [float(x) for x in metrics["accuracy"]] == [sum(hits), 3.0]


def test_scores_are_those_of_decoding(golden):
    model, params = loaded(golden, "mistral")
    (batch,) = tasks.eval_batches(EXAMPLES[:1], batch_size=1, max_length=12)
    _, scores = program(model, "classification")(params, batch)
    rows = [[5, 9, 23, 40, 7, 31, 12], [5, 9, 23, 40, 7, 4]]
    tokens, mask = decode.pad(rows, side="right")
    candidate = (jnp.arange(7) >= 5) & mask
    expected = decode.scores(model, params, tokens, mask, candidate)
    np.testing.assert_allclose(scores[0], expected, atol=REORDERED)


def test_one_shared_sequence_gives_what_one_for_each_answer_gives(golden):
    model, params = loaded(golden, "opt")
    apart = [example(i, [5 + i, 9, 23], [[31], [12], [4]], correct=(i,)) for i in range(3)]
    shared = [example(i, [5 + i, 9, 23], [[31], [12], [4]], correct=(i,), shared=True) for i in range(3)]
    (one,), (two,) = (tasks.eval_batches(rows, batch_size=3, max_length=4) for rows in (shared, apart))
    assert (one["tokens"].shape[1], two["tokens"].shape[1]) == (1, 3)
    ((loss, _), scores), ((other, _), others) = (program(model, "classification")(params, b) for b in (one, two))
    np.testing.assert_allclose(scores, others, atol=REORDERED)
    np.testing.assert_allclose(loss, other, atol=REORDERED)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_masked_model_is_scored_where_its_mask_is(golden, name):
    model, params = loaded(golden, name, masked=True)
    rows = [
        {**example(i, prompt, [[7], [8]], correct=(i % 2,), shared=True), "at": [np.array([at], np.int32)]}
        for i, (prompt, at) in enumerate([([2, 9, 4, 5], 2), ([2, 4, 6], 1)])
    ]
    # Sequences as they are: a mask is in the middle, and nothing is left off the end.
    (batch,) = tasks.eval_batches(rows, batch_size=2, max_length=6)
    (loss, metrics), scores = program(model, "classification")(params, batch)
    losses, hits = [], 0
    for row in rows:
        tokens, mask = decode.pad([row["sequences"][0].tolist()], side="right")
        logits = model.apply({"params": params}, tokens, mask, method="masked_logits")[0, row["at"][0][0]]
        two = np.asarray(logits, np.float64)[[7, 8]]
        losses.append(np.log(np.exp(two).sum()) - two[row["correct"][0]])
        hits += int(np.argmax(two)) == row["correct"][0]
        where = batch["id"].tolist().index(row["id"])
        np.testing.assert_allclose(scores[where], log_softmax(logits)[[7, 8]], atol=REORDERED)
    np.testing.assert_allclose(loss, np.mean(losses), atol=REORDERED)
    assert float(metrics["accuracy"][0]) == hits


def test_no_array_holds_the_logits_of_every_column(golden):
    model, params = loaded(golden, "opt")
    examples = [example(i, range(1, 30), [[3], [4]], shared=True) for i in range(8)]
    (batch,) = tasks.eval_batches(examples, batch_size=8, max_length=32)
    jaxpr = jax.make_jaxpr(PromptedLM(model=model, objective="classification").loss)(params, batch).jaxpr
    vocabulary = model.config.vocab_size
    wide = [
        v.aval.shape
        for equation in jaxpr.eqns
        for v in equation.outvars
        if getattr(v.aval, "shape", ())[-1:] == (vocabulary,)
    ]
    assert wide
    assert max(int(np.prod(shape)) for shape in wide) == 8 * vocabulary


def test_gradients_are_finite_where_rows_have_fewer_answers_than_others(golden):
    model, params = loaded(golden, "mistral")
    (batch,) = tasks.eval_batches(EXAMPLES, batch_size=4, max_length=12)
    task = PromptedLM(model=model, objective="classification")
    grads = jax.jit(jax.grad(lambda p: task.loss(p, batch)[0]))(params)
    leaves = jax.tree.leaves(grads)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)
    assert any(bool((leaf != 0).any()) for leaf in leaves)


def test_the_loop_lowers_the_loss_with_forwards_alone(golden, tmp_path):
    model, params = loaded(golden, "mistral")
    rows = [example(i, [5 + i, 9], [[31], [12]], correct=(0,), shared=True) for i in range(8)]
    batches = tasks.train_batches(rows, batch_size=8, seed=0, max_length=4)
    evaluation = tasks.eval_batches(rows, batch_size=8, max_length=4)
    task = PromptedLM(model=model, objective="classification", pretrained=params)
    # The gains alone: a program of a few leaves compiles fast.
    start, frozen = split(task.init(jax.random.key(0)), (r"norm/scale$",))
    spec = PerturbSpec(stacked=(r"(^|/)layers/",))
    tx = estimators.chain(estimators.spsa(1e-3, spec, key=jax.random.key(1)), optax.sgd(3e-3))
    method = train.zeroth_order(task, tx, forwards=lambda q, _: 2 * q, description="spsa")
    options = {"key": jax.random.key(1), "workdir": tmp_path, "steps": 20, "dev": evaluation, "eval_every": 20}
    result = train.fit(task, method, start, frozen, batches, keep_best="loss", **options)
    before = float(program(model, "classification")(params, evaluation[0])[0][0])
    # The best weights are those of the end, and not those before step 1.
    assert result.best is not None
    assert result.best["step"] == 20
    assert result.best["value"] < before
    # `init` gave buffers of their own: donating them has not touched the pretrained weights.
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_a_reward_of_the_host_is_measured_in_a_program_of_probes(golden):
    model, params = loaded(golden, "mistral")
    prompts = [[5, 9, 23, 40, 7], [44, 3], [60, 17]]
    nothing = {"answers": [np.empty(0, np.int32)], "at": [np.empty(0, np.int32)], "correct": (0,)}
    rows = [{**nothing, "sequences": [np.array(prompt, np.int32)], "id": 10 + i} for i, prompt in enumerate(prompts)]
    (batch,) = tasks.eval_batches(rows, batch_size=4, max_length=6, side="left")
    said = {}

    def reward(tokens, length, ids):
        for row, n, id in zip(tokens, length, ids, strict=True):
            said.setdefault(int(id), set()).add(tuple(row[:n].tolist()))
        return (tokens[:, 0] % 2).astype(np.float32)

    task = GreedyReward(model=model, reward=reward, max_new_tokens=3, stop=(1,), pretrained=params)
    loss, metrics = task.loss(params, batch)
    tokens, mask = decode.pad([*prompts, prompts[0]], side="left", length=6)
    out = decode.generate(model, params, tokens, mask, max_new_tokens=3, stop=(1,))
    answers = [tuple(row[:n].tolist()) for row, n in zip(np.asarray(out.tokens), np.asarray(out.length), strict=True)]
    assert {id: found for id, found in said.items() if id >= 0} == {10 + i: {answers[i]} for i in range(3)}
    expected = 1 - np.mean(np.asarray(out.tokens)[:3, 0] % 2)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert float(metrics["reward"][1]) == 3.0
    # Both sides of a probe in one batched program; a probe that is this small changes no answer.
    start, frozen = split(params, (r"^norm/scale$",))
    tx = estimators.spsa(1e-6, key=jax.random.key(0), probes="batch")
    scalars = train.make_measure(task, tx)(start, frozen, tx.init(start), batch, jax.random.key(1))
    np.testing.assert_allclose(scalars.value, expected, rtol=1e-6)
    assert np.asarray(scalars.projected).tolist() == [0.0]


def test_objectives_are_checked():
    with pytest.raises(ValueError, match=r"PromptedLM\.objective is 'f1'; it must be one of classification, answer"):
        PromptedLM(model=None, objective="f1")


@pytest.fixture(scope="module")
def stories(zojax_data):
    folder = zojax_data / "lm" / "stories260K"
    config, params = llama2c.load(folder / "stories260K.bin")
    return Llama(config), jax.tree.map(jnp.asarray, params), llama2c.Tokenizer.from_file(folder / "tok512.bin")


def test_a_real_model_knows_how_a_story_goes_on(stories):
    model, params, tokenizer = stories
    rows = [
        {"premise": premise, "choice1": one, "choice2": two, "question": "effect", "label": label, "id": i}
        for i, (premise, one, two, label) in enumerate(
            [
                ("Lily was happy", "she smiled.", "the the of a.", 0),
                ("Tom fell and was sad", "big red the car ball.", "he started to cry.", 1),
            ]
        )
    ]
    examples = tasks.encode(tasks.get_task("copa"), rows, tokenizer, max_length=64)
    (batch,) = tasks.eval_batches(examples, batch_size=2, max_length=64)
    (_, metrics), scores = program(model, "classification")(params, batch)
    assert float(metrics["accuracy"][0]) == 2.0
    for row, given in zip(batch["id"].tolist(), np.asarray(scores), strict=True):
        expected = [np.mean(answer) for answer in oracle_of(model, params, examples[row])]
        np.testing.assert_allclose(given, expected, atol=REORDERED)


def oracle_of(model, params, given):
    """As `oracle`, for sequences of up to 64 tokens."""
    for sequence, answer in zip(given["sequences"], given["answers"], strict=True):
        row = [*sequence.tolist(), int(answer[-1])]
        logits = np.asarray(forward(model)(params, *decode.pad([row], side="right", length=64)))[0]
        begin = len(row) - len(answer)
        yield [log_softmax(logits)[begin + t - 1, token] for t, token in enumerate(answer)]


def test_rewards_of_the_documented_sample(stories):
    """The model's sample begins "Once upon a time, there was a little girl named Lily." (stories260K.md)."""
    model, params, tokenizer = stories
    row = {"context": "", "question": "", "answers": ["a little girl named Lily"], "id": 4}
    tokens = tokenizer.encode("Once upon a time, there was")
    prompt = {
        "sequences": [np.array(tokens, np.int32)],
        "answers": [np.empty(0, np.int32)],
        "at": [np.empty(0, np.int32)],
    }
    (batch,) = tasks.eval_batches([{**prompt, "correct": (0,), "id": 4}], batch_size=1, max_length=16, side="left")

    def reward(tokens, length, ids):
        texts = [tokenizer.decode(row[:n].tolist()) for row, n in zip(tokens, length, strict=True)]
        return np.array([token_f1(text.split(".")[0], row["answers"]) for text in texts], np.float32)

    stop = (tokenizer.encode("girl.")[-1],)
    task = GreedyReward(model=model, reward=reward, max_new_tokens=12, stop=stop)
    assert float(task.loss(params, batch)[0]) == 0.0


def test_the_loss_does_not_depend_on_how_rows_are_batched(golden):
    model, params = loaded(golden, "mistral")
    rows = many(5)
    whole = tasks.eval_batches(rows, batch_size=5, max_length=16)
    small = tasks.eval_batches(rows, batch_size=2, max_length=16, side="left")
    run, totals = program(model, "answer"), []
    for batches in (whole, small):
        sums = [run(params, batch)[0][1]["loss"] for batch in batches]
        totals.append([float(sum(x)) for x in zip(*sums, strict=True)])
    np.testing.assert_allclose(totals[0], totals[1], rtol=1e-5)
