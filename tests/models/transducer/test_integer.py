"""The transducer on an accelerator: float is the model, emulation is the integers, streams are the whole."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.transducer import integer
from models.transducer.decode import Greedy, decode
from models.transducer.deployed import config_of, deploy
from models.transducer.integer_formats import FEATURES, check_integer, widen
from models.transducer.integer_task import IntegerTask, calibrate
from models.transducer.lstm import LstmConfig
from models.transducer.model import TransducerConfig, transducer
from models.transducer.predictor import LstmPredictorConfig, StatelessConfig
from models.transducer.task import TransducerTask
from zojax import quant
from zojax.accelerator import NARROW, TFLITE, primitives

RULES = (
    quant.Rule(pattern="acoustic", grid=None),
    quant.Rule(pattern="table$", grid="int8_127", per="tensor"),
    quant.Rule(pattern="(^|/)(input|recurrent|projection|kernel)$", grid="int8_127"),
    quant.Rule(pattern="", grid=None),
)
CASES = {
    "tflite": (TFLITE, LstmPredictorConfig(vocab_size=5, embedding=6, hidden=8), 1, 0),
    "narrow": (NARROW, StatelessConfig(vocab_size=5, embedding=6), 2, 6),
}


@dataclasses.dataclass
class Case:
    accelerator: Any
    config: TransducerConfig
    params: Any
    batch: Any
    task: TransducerTask
    formats: Any

    def on(self, forward) -> IntegerTask:
        own = {f.name: getattr(self.task, f.name) for f in dataclasses.fields(self.task)}
        return IntegerTask(**own, formats=self.formats, accelerator=self.accelerator, forward=forward)

    def network(self, mode):
        params = self.params if mode == "float" else quant.straight_through(self.params, RULES)
        return integer.network(self.config, params, self.formats, self.accelerator, mode)


@pytest.fixture(scope="module", params=list(CASES))
def case(request) -> Case:
    accelerator, words, layers, projection = CASES[request.param]
    rng = np.random.default_rng(0)
    encoder = LstmConfig(d_in=4, stack=2, layers=layers, hidden=8, projection=projection)
    config = TransducerConfig(encoder=encoder, predictor=words, joint=8, acoustic=True)
    batch = {
        "features": jnp.asarray(3 * rng.normal(size=(3, 12, 4)), jnp.float32),
        "frame_lengths": jnp.array([12, 9, 12], jnp.int32),
        "labels": jnp.asarray(rng.integers(1, 5, (3, 3)), jnp.int32),
        "label_lengths": jnp.array([3, 2, 3], jnp.int32),
        "weight": jnp.array([1.0, 1.0, 0.0], jnp.float32),
    }
    task = TransducerTask(config=config, acoustic=0.5, chunk=3, statistics=(np.full(4, 0.5), np.full(4, 2.0)))
    moved = lambda w: w + 0.2 * jnp.asarray(rng.normal(size=w.shape), jnp.float32)  # noqa: E731
    params = jax.tree.map(moved, task.init(jax.random.key(0)))
    return Case(accelerator, config, params, batch, task, calibrate(task, params, [batch], accelerator))


def outputs(case, mode):
    """Frames, symbols and logits of all pairs, as a mode holds them."""

    def run():
        net, accelerator = case.network(mode), case.accelerator
        x = integer.frame_input(case.batch["features"], case.formats, mode)
        frames, _ = integer.encode(x, net, accelerator)
        symbols, _ = integer.predict(jnp.pad(case.batch["labels"], ((0, 0), (1, 0))), net, accelerator)
        pair = (
            primitives.rearrange(frames, lambda a: a[:, :, None]),
            primitives.rearrange(symbols, lambda a: a[:, None]),
        )
        return {"frames": frames, "symbols": symbols, "logits": integer.join(*pair, net, accelerator)}

    return jax.jit(run)()


def test_the_float_network_is_the_model(case):
    x, mask = case.task.features(case.batch)
    model = transducer(case.config)
    want = model.apply({"params": case.params}, x, mask, case.batch["labels"])
    real = np.asarray(mask)[:, 1::2] & (np.asarray(case.batch["weight"]) > 0)[:, None]  # the model sees no other row
    got = np.asarray(outputs(case, "float")["logits"])
    np.testing.assert_allclose(got[real], np.asarray(want)[real], atol=5e-6)  # float32, sums in another order


def test_emulation_is_the_integers_bit_for_bit(case):
    whole, emulated, real = (outputs(case, mode) for mode in ("integer", "emulation", "float"))
    scales = {"frames": 2.0**-12, "symbols": 2.0**-12, "logits": float(case.formats.logits.scale)}
    for name, scale in scales.items():
        codes = np.asarray(whole[name])
        np.testing.assert_array_equal(emulated[name].codes, codes)
        want = np.float32(scale) * codes.astype(np.float32)
        np.testing.assert_array_equal(np.asarray(emulated[name].value).view(np.int32), want.view(np.int32))
        assert codes.dtype == np.int16
        assert len(np.unique(codes)) > 20
        # 8-bit cells lose more; unrelated numbers would have a correlation of some hundredths.
        correlation = np.corrcoef(np.ravel(real[name])[: 3 * 5], want.ravel()[: 3 * 5])[0, 1]
        assert correlation > (0.99 if case.accelerator is TFLITE else 0.9)


def test_the_affine_map_is_in_integers(case):
    x = case.batch["features"]
    codes = integer.frame_input(x, case.formats, "integer")
    affine = {name: np.asarray(value, np.float64) for name, value in case.params["encoder"]["input"].items()}
    of = case.formats.input
    want = np.round((np.asarray(x) * affine["scale"] + affine["bias"]) / float(of.scale)) + int(of.zero)
    # Features are rounded first, to a small part of a code.
    assert np.max(np.abs(np.clip(want, -128, 127) - np.asarray(codes))) <= 1
    np.testing.assert_array_equal(integer.frame_input(FEATURES.encode(x), case.formats, "integer"), codes)


@pytest.mark.parametrize("mode", ["integer", "emulation"])
def test_streams_are_the_whole_for_any_chunks(case, mode):
    if mode == "emulation" and case.accelerator is NARROW:
        pytest.skip("one preset is enough: the state of an emulated layer is the same")
    whole, net, accelerator = outputs(case, mode), case.network(mode), case.accelerator
    codes = lambda value: np.asarray(primitives.codes_of(value))  # noqa: E731
    features, state, at, parts = FEATURES.encode(case.batch["features"]), None, 0, []
    step = jax.jit(lambda x, state: integer.encode(integer.frame_input(x, case.formats, mode), net, accelerator, state))
    for frames in (2, 4, 4, 2):
        part, state = step(features[:, at : at + frames], state)
        parts.append(codes(part))
        at += frames
    np.testing.assert_array_equal(np.concatenate(parts, 1), codes(whole["frames"]))
    labels, state = jnp.pad(case.batch["labels"], ((0, 0), (1, 0))), None
    say, parts = jax.jit(lambda labels, state: integer.predict(labels, net, accelerator, state)), []
    for first, last in ((0, 1), (1, 2), (2, 4)):
        part, state = say(labels[:, first:last], state)
        parts.append(codes(part))
    np.testing.assert_array_equal(np.concatenate(parts, 1), codes(whole["symbols"]))


def test_losses_and_gradients(case):
    if case.accelerator is NARROW:
        pytest.skip("one preset is enough: the rules of gradients know none")

    def loss(forward, params):
        task = case.on(forward)
        return task.loss(quant.straight_through(params, RULES), case.batch)[0]

    values, grads = {}, {}
    for forward in ("float", "emulation"):
        program = jax.jit(jax.value_and_grad(lambda params, forward=forward: loss(forward, params)))
        values[forward], grads[forward] = program(case.params)
    integers = jax.jit(lambda p: loss("integer", p))(case.params)
    # The same logits in another program: softmax and lattice in float32 may be contracted otherwise.
    np.testing.assert_allclose(integers, values["emulation"], rtol=2e-6)
    np.testing.assert_allclose(values["float"], values["emulation"], rtol=0.05)
    assert values["float"] != values["emulation"]
    for path, g in jax.tree_util.tree_flatten_with_path(grads["emulation"])[0]:
        path = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(g)), path
        # The affine map in front is part of the formats.
        assert np.any(g != 0) == ("'encoder']['input']" not in path), path
    a, b = (
        np.concatenate([np.ravel(g) for g in jax.tree.leaves({k: v for k, v in grads[f].items() if k != "acoustic"})])
        for f in grads
    )
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.8  # an unrelated one would have some hundredths
    # Judged in integers, whatever the loss is computed by.
    quantized = quant.quantize_tree(case.params, RULES)
    found = jax.jit(case.on("float").evaluate)(quantized, case.batch)["loss"]
    assert found[0] != jax.jit(case.task.evaluate)(case.params, case.batch)["loss"][0]
    # The loss without the acoustic part, of which the evaluation has none.
    bare = dataclasses.replace(
        case.on("integer"), acoustic=0.0, config=dataclasses.replace(case.config, acoustic=False)
    )
    np.testing.assert_allclose(found[0] / found[1], jax.jit(bare.loss)(quantized, case.batch)[0], rtol=2e-6)


def test_greedy_search_takes_the_greatest_code(case):
    if case.accelerator is NARROW:
        pytest.skip("one preset is enough: the search knows none")
    task, params = case.on("integer"), quant.quantize_tree(case.params, RULES)
    made, integers = deploy(task, params)
    frames, mask = jax.jit(made.encode)(integers, case.batch)
    model = made.decodable(integers)
    best = decode(Greedy(max_labels=12, max_symbols=2), model, frames, mask)
    net, found = case.network("integer"), []
    row = 1
    predict = jax.jit(lambda label, state: integer.predict(label[None, None], net, case.accelerator, state))
    join = jax.jit(lambda frame, symbol: integer.join(frame[None, None], symbol, net, case.accelerator))
    symbols, state = predict(jnp.int32(0), integer.predictor_state(net, 1))
    for frame in np.asarray(outputs(case, "integer")["frames"])[row, : 9 // 2]:
        for _ in range(2):
            label = int(np.argmax(np.asarray(join(frame, symbols))))
            if not label:
                break
            found.append(label)
            symbols, state = predict(jnp.int32(label), state)
    count = int(best.lengths[row, 0])
    assert best.tokens[row, 0, :count].tolist() == found


def test_what_ships_is_the_task(case):
    """The integers alone, without weights and formats, have its loss and its frames, whole and in any chunks."""
    task, params = case.on("integer"), quant.quantize_tree(case.params, RULES)
    made, integers = deploy(task, params)
    assert deploy(task, params)[0] is made
    assert config_of(integers["network"]) == dataclasses.replace(case.config, acoustic=False)
    if case.accelerator is NARROW:
        pytest.skip("one preset is enough: what is left to test does not depend on the accelerator")
    got, want = (jax.jit(t.evaluate)(p, case.batch) for t, p in ((made, integers), (task, params)))
    for name, (total, weight) in want.items():
        # The same integers; the lattice of floats in another program.
        np.testing.assert_allclose(got[name], (total, weight), rtol=2e-6)
    x, mask = case.task.features(case.batch)
    frames, real = jax.jit(made.encode)(integers, case.batch)
    heard = np.asarray(real) & (np.asarray(case.batch["weight"]) > 0)[:, None]
    codes = np.asarray(outputs(case, "integer")["frames"], np.float32)
    np.testing.assert_array_equal(np.asarray(frames)[heard], 2.0**-12 * codes[heard])
    state, step, parts = made.stream_state(integers, 3), jax.jit(made.encode_step), []
    for at in (0, 4, 8):
        *part, state = step(integers, x[:, at : at + 4], mask[:, at : at + 4], state)
        parts.append(part)
    parts.append(made.encode_flush(integers, state))
    np.testing.assert_array_equal(np.concatenate([part for part, _ in parts], 1), frames)
    np.testing.assert_array_equal(np.concatenate([part for _, part in parts], 1), real)
    with pytest.raises(ValueError, match="nothing to begin with"):
        made.init(jax.random.key(0))


def test_ranges_leave_padding_out(case):
    batch = dict(case.batch)
    wild = np.array(batch["features"])
    wild[1, 9:], wild[2] = 1e4, -1e4  # behind the end, and a row of weight 0
    formats = calibrate(case.task, case.params, [batch | {"features": jnp.asarray(wild)}], case.accelerator)
    np.testing.assert_allclose(formats.input.scale, case.formats.input.scale, rtol=1e-6)
    np.testing.assert_allclose(formats.encoder[-1].norm.scale, case.formats.encoder[-1].norm.scale, rtol=1e-6)


def test_refusals(case):
    with pytest.raises(ValueError, match=r"TransducerConfig\.simple is True"):
        check_integer(dataclasses.replace(case.config, simple=True))
    with pytest.raises(ValueError, match="there is no batch"):
        widen([])
    turned = case.params | {"encoder": case.params["encoder"] | {"input": {"scale": -jnp.ones(4), "bias": jnp.ones(4)}}}
    with pytest.raises(ValueError, match="encoder/input/scale: -1"):
        calibrate(case.task, turned, [case.batch], case.accelerator)


@pytest.mark.parametrize(("signs", "wanted"), [([1] * 40, 3), ([1] * 12 + [-1] * 12, 4)])
def test_a_cell_has_the_range_that_its_outputs_need(signs, wanted):
    """Cells that add up their input reach 40 and stay, where tanh is 1 from any range; or 12 and come back."""
    encoder = LstmConfig(d_in=1, stack=1, layers=1, hidden=2)
    config = TransducerConfig(encoder=encoder, predictor=StatelessConfig(vocab_size=3, embedding=2), joint=2)
    task = TransducerTask(config=config)
    params = task.init(jax.random.key(0))
    cell = params["encoder"]["lstm"]["lstm_0"]
    cell["recurrent"] = jnp.zeros_like(cell["recurrent"])
    cell["input"] = jnp.repeat(jnp.array([[0.0, 0.0, 4.0, 0.0]]), 2, axis=1)  # input, forget, cell, output
    cell["bias"] = jnp.repeat(jnp.array([6.0, 9.0, 0.0, 6.0]), 2)
    batch = {
        "features": jnp.array(signs, jnp.float32)[None, :, None],
        "frame_lengths": jnp.array([len(signs)], jnp.int32),
        "labels": jnp.array([[1]], jnp.int32),
        "label_lengths": jnp.array([1], jnp.int32),
        "weight": jnp.ones(1),
    }
    formats = calibrate(task, params, [batch], NARROW)
    assert formats.encoder[0].cell_integer_bits == wanted
