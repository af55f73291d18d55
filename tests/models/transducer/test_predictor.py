"""Predictors and the joiner: whole against step by step, and against the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.transducer.joiner import Joiner, join
from models.transducer.predictor import LstmPredictor, LstmPredictorConfig, StatelessConfig, StatelessPredictor
from tests.models.transducer import oracles
from tests.models.transducer.streams import variables

LABELS = jnp.array([[1, 4, 2, 2], [3, 3, 1, 4]], jnp.int32)
PREDICTORS = {
    "lstm": LstmPredictor(LstmPredictorConfig(vocab_size=5, embedding=3, layers=2, hidden=6, projection=4)),
    "stateless": StatelessPredictor(StatelessConfig(vocab_size=5, embedding=3, context=2)),
}


@pytest.fixture(params=PREDICTORS)
def predictor(request):
    model = PREDICTORS[request.param]
    return model, variables(model, LABELS)


def test_steps_are_the_whole(predictor):
    model, weights = predictor
    whole = jax.jit(model.apply)(weights, LABELS)
    assert whole.shape == (2, 5, model.d_out)
    step = jax.jit(lambda v, label, state: model.apply(v, label, state, method="step"))
    state = model.initial_state(2)
    for u, label in enumerate(np.pad(LABELS, ((0, 0), (1, 0))).T):
        y, state = step(weights, label, state)
        np.testing.assert_allclose(y, whole[:, u], rtol=1e-5, atol=1e-5)  # float32 in another order


def test_an_output_depends_on_the_labels_before_it_alone(predictor):
    model, weights = predictor
    apply = jax.jit(model.apply)
    whole = np.asarray(apply(weights, LABELS))
    for u in range(4):
        other = np.array(LABELS)
        other[:, u] = 5 - other[:, u]
        changed = np.abs(np.asarray(apply(weights, jnp.asarray(other))) - whole).max(axis=(0, 2)) > 0
        assert not changed[: u + 1].any()
        assert changed[u + 1]
        if isinstance(model, StatelessPredictor):
            assert not changed[u + 3 :].any()


def test_values(predictor):
    model, weights = predictor
    params = oracles.float64(weights["params"])
    x = params["table"][np.pad(np.asarray(LABELS)[0], (1, 0))]
    if isinstance(model, StatelessPredictor):
        pairs = np.concatenate([np.concatenate([params["table"][:1], x[:-1]]), x], axis=1)
        want = np.maximum(pairs @ params["linear"]["kernel"] + params["linear"]["bias"], 0)
    else:
        want = oracles.lstm_stack(x, params, 2)
    # float32 against float64 over five steps of numbers near 1
    np.testing.assert_allclose(model.apply(weights, LABELS)[0], want, rtol=5e-6, atol=5e-6)


def test_the_joiner_projects_adds_and_maps():
    joiner = Joiner(3, 2, 4, 5)
    rng = np.random.default_rng(0)
    encoded, predicted = rng.normal(size=(2, 6, 1, 3)), rng.normal(size=(2, 1, 3, 2))
    weights = variables(joiner, jnp.asarray(encoded, jnp.float32), jnp.asarray(predicted, jnp.float32))
    got = joiner.apply(weights, jnp.asarray(encoded, jnp.float32), jnp.asarray(predicted, jnp.float32))
    p = oracles.float64(weights["params"])
    sides = encoded @ p["encoded"]["kernel"] + p["encoded"]["bias"], predicted @ p["predicted"]["kernel"]
    want = np.tanh(sides[0] + sides[1]) @ p["output"]["kernel"] + p["output"]["bias"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)  # float32 against float64
    joined = join(weights["params"]["output"], *(jnp.asarray(side, jnp.float32) for side in sides))
    np.testing.assert_allclose(joined, want, rtol=1e-5, atol=2e-6)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match=r"StatelessConfig\.context is 0"):
        StatelessConfig(vocab_size=5, context=0)
