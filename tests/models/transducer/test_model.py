"""The whole transducer: parts in their places, sizes of the papers, what a search is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.transducer.conformer import ConformerConfig
from models.transducer.conv_rnnt import ConvRnntConfig, conv_rnnt_encoder
from models.transducer.lstm import LstmConfig
from models.transducer.model import BLANK, TransducerConfig, decodable, transducer
from models.transducer.predictor import LstmPredictorConfig, StatelessConfig
from models.transducer.sizes import abstract, matched, param_count
from tests.models.transducer.streams import variables

WORDS = StatelessConfig(vocab_size=5, embedding=4)
CONFIG = TransducerConfig(encoder=LstmConfig(d_in=4, layers=1, hidden=6), predictor=WORDS, joint=7)
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 4)), jnp.float32)
MASK = jnp.arange(12) < jnp.array([[12], [7]])
LABELS = jnp.array([[1, 2], [3, 4]], jnp.int32)


@pytest.fixture(scope="module")
def weights():
    return variables(transducer(CONFIG), X, MASK, LABELS)


def test_all_logits_are_those_of_the_parts(weights):
    model = transducer(CONFIG)
    whole = jax.jit(model.apply)(weights, X, MASK, LABELS)
    assert whole.shape == (2, 4, 3, 5)
    frames, mask = model.apply(weights, X, MASK, method="encode")
    assert mask.sum(axis=1).tolist() == [4, 2]
    search = decodable(CONFIG, weights["params"])
    state, labels = search.initial_state(2), np.pad(LABELS, ((0, 0), (1, 0)), constant_values=BLANK)
    for u in range(3):
        symbol, state = search.predict(jnp.asarray(labels[:, u]), state)
        logits = search.join(frames, symbol[:, None])
        np.testing.assert_allclose(logits, whole[:, :, u], rtol=1e-5, atol=1e-5)  # float32 in another order


def test_padding_may_hold_anything(weights):
    """Even what is not a number."""
    model = transducer(CONFIG)
    encode = jax.jit(lambda v, x: model.apply(v, x, MASK, method="encode")[0])
    garbage = jnp.where(MASK[..., None], X, jnp.nan)
    np.testing.assert_array_equal(encode(weights, garbage)[1, :2], encode(weights, X)[1, :2])
    step = jax.jit(lambda v, x, s: model.apply(v, x, MASK, s, method="encode_step")[0])
    state = model.encoder_state(2)
    np.testing.assert_array_equal(step(weights, garbage, state)[1, :2], step(weights, X, state)[1, :2])


def test_a_search_compiles_once_for_a_configuration(weights):
    one, other = (
        decodable(CONFIG, weights["params"]),
        decodable(CONFIG, jax.tree.map(jnp.zeros_like, weights["params"])),
    )
    assert jax.tree.structure(one) == jax.tree.structure(other)


def test_projections_exist_where_they_are_trained():
    names = set(abstract(CONFIG))
    assert names == {"encoder", "predictor", "joiner"}
    simple = TransducerConfig(encoder=CONFIG.encoder, predictor=WORDS, joint=7, simple=True, acoustic=True)
    assert set(abstract(simple)) - names == {"simple_encoded", "simple_predicted", "acoustic"}


def lstm_count(d, hidden, projection):
    p = projection or hidden
    return 4 * hidden * (d + p + 1) + hidden * projection + 2 * p  # the last: its norm


@pytest.mark.parametrize(("layers", "hidden", "projection"), [(5, 1024, 0), (8, 2048, 640)])
def test_the_count_of_an_lstm_rnnt(layers, hidden, projection):
    """Five to eight layers, as in the recipes; predictor of one layer of 1,024, 2,500 pieces, joint width 512."""
    words = LstmPredictorConfig(vocab_size=2501, embedding=256, hidden=1024)
    config = TransducerConfig(
        encoder=LstmConfig(d_in=64, layers=layers, hidden=hidden, projection=projection), predictor=words, joint=512
    )
    width = projection or hidden
    acoustic = 2 * 64 + lstm_count(192, hidden, projection) + (layers - 1) * lstm_count(width, hidden, projection)
    predictor = 2501 * 256 + lstm_count(256, 1024, 0)
    joiner = width * 512 + 512 + 1024 * 512 + 512 * 2501 + 2501
    assert param_count(config) == acoustic + predictor + joiner


@pytest.mark.parametrize(
    ("width", "layers", "heads", "predictor", "millions"),
    [(144, 16, 4, 320, 10.3), (256, 16, 4, 640, 30.7), (512, 17, 8, 640, 118.8)],
)
def test_the_counts_of_conformer_transducers(width, layers, heads, predictor, millions):
    """S, M and L of arXiv 2005.08100, table 1: kernel 32, 1,024 pieces, a predictor of one LSTM layer."""
    config = TransducerConfig(
        encoder=ConformerConfig(channels=width, width=width, layers=layers, heads=heads, kernel=32, right=15),
        predictor=LstmPredictorConfig(vocab_size=1025, embedding=predictor, hidden=predictor),
        joint=predictor,
    )
    # The paper tells neither the joint width nor that of the embedding, nor which biases and norms there are.
    assert abs(param_count(config) / 1e6 / millions - 1) < 0.07


def test_conv_rnnt_sees_252_frames_of_left_context():
    config = ConvRnntConfig(d_in=4, channels=(2,), bin_strides=(2,), local=2, width=4, ratio=2)
    assert config.left_context == 252
    # The global convolutions' states hold what is seen before a frame.
    states = jax.eval_shape(lambda: conv_rnnt_encoder(config).initial_state(1)[2][1])
    kept = [leaf.shape[1] for leaf in jax.tree.leaves(states) if leaf.ndim == 3 and leaf.shape[2] == 4]
    assert sum(kept) == 252
    local = jax.eval_shape(lambda: conv_rnnt_encoder(ConvRnntConfig()).initial_state(1)[2][0])
    assert [leaf.shape for leaf in jax.tree.leaves(local) if leaf.ndim == 3 and leaf.shape[1]] == [
        (1, 4, 192), (1, 4, 3200), (1, 4, 1600), (1, 4, 512)
    ]  # fmt: skip


def test_configurations_of_equal_count():
    lstm = TransducerConfig(encoder=LstmConfig(layers=2, hidden=96), predictor=WORDS, joint=32)
    target = param_count(lstm)

    def conv_rnnt(width):
        sizes = ConvRnntConfig(
            channels=(4, 4), bin_strides=(4, 4), local=16, width=16, project=32, layers=2, hidden=width
        )
        return TransducerConfig(encoder=sizes, predictor=WORDS, joint=32)

    found = matched(conv_rnnt, target, largest=256)
    assert abs(param_count(found) - target) <= 0.02 * target
    with pytest.raises(ValueError, match=r"of the widths 1 to 4 the nearest is 4"):
        matched(conv_rnnt, target, largest=4)


def test_parts_are_checked():
    with pytest.raises(ValueError, match=r"TransducerConfig\.joint is 0"):
        TransducerConfig(encoder=LstmConfig(), predictor=WORDS, joint=0)
    with pytest.raises(ValueError, match=r"ConvRnntConfig\.bin_strides is \(2,\)"):
        ConvRnntConfig(bin_strides=(2,))
    with pytest.raises(ValueError, match=r"ConvRnntConfig\.ratio is 16"):
        ConvRnntConfig(width=8)
