"""Transducers on an accelerator by config: trained in each way, judged in integers, continued, and replayed."""

import copy
import json
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest

from launch import train as train_program
from launch.common import quantization, schema
from launch.common.build import build
from launch.speech import recognition
from launch.speech.integers import rules
from models.transducer.decode import decode
from models.transducer.deployed import deploy
from models.transducer.integer_task import IntegerTask
from tests.launch.test_speech import corpus, fields  # noqa: F401 (fixtures)
from zojax import quant
from zojax.quant import cosine
from zojax.quant.tables import Depth, flat
from zojax.trees import merge


@pytest.fixture(scope="module")
def start(fields, tmp_path_factory):  # noqa: F811
    """The fields of a small transducer of tones, and the folder of a float run whose weights are random."""
    small = copy.deepcopy(fields)
    small["speech"] |= {"width": 8, "embedding": 4, "joint": 8, "bins": 8, "speeds": (100,), "predictor": "stateless"}
    small["optimizer"] |= {"name": "adam", "weight_decay": 0.0}
    small["train"] |= {"steps": 0, "eval_every": 0, "keep_best": "none"}
    folder = tmp_path_factory.mktemp("integers")
    assert run(small, folder, folder / "float") == 0
    small["model"]["weights"] = str(folder / "float")
    return small


def run(fields, folder, workdir) -> int:  # noqa: F811
    path = folder / f"{workdir.name}.py"
    path.write_text(f"import ml_collections\ndef get_config(a=''):\n    return ml_collections.ConfigDict({fields!r})\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOJAX_CACHE", str(folder.parent / "zojax_cache"))
        return train_program.main(["train", f"--config={path}", f"--workdir={workdir}"])


def changed(start, **changes) -> Any:
    """The fields with others: "section__field"; on the accelerator tflite, where nothing else is said."""
    new = copy.deepcopy(start)
    for name, value in {"integer__accelerator": "tflite", **changes}.items():
        section, field = name.split("__")
        new[section][field] = value
    return new


def config_of(fields) -> Any:  # noqa: F811
    config: Any = ml_collections.ConfigDict(copy.deepcopy(fields))
    schema.check(config)
    return config


def codes(run) -> dict[str, np.ndarray]:
    """The codes of the leaves that a run would ship."""
    _, params = quantization.deployed(run.task, merge(run.params, run.frozen))
    found = jax.tree_util.tree_flatten_with_path(params, is_leaf=lambda node: hasattr(node, "materialize"))[0]
    held = {jax.tree_util.keystr(path): getattr(leaf, "quantized", leaf) for path, leaf in found}
    return {path: np.asarray(leaf.qvalue) for path, leaf in held.items() if isinstance(leaf, quant.QArray)}


WAYS = {
    "ptq": {},
    "learned_step": {"integer__weights": "learned_step", "integer__forward": "float"},
    "gq": {
        "integer__weights": "gq",
        "integer__bits": 3,
        "integer__forward": "float",
        "integer__soft_steps": 4,
        "integer__allocation": (r"joiner=1", r"predictor/table=8"),
    },
    "s8bqat": {"integer__weights": "s8bqat", "integer__bits": 2, "integer__forward": "float", "integer__every": 3},
}


@pytest.mark.parametrize("way", list(WAYS))
def test_each_way_gives_weights_on_the_grid_and_few_levels(start, way):
    config = config_of(changed(start, **WAYS[way]))
    made = build(config, splits=("test",))
    found = codes(made)
    # Input, recurrent and three kernels of the joiner, the predictor's table and its kernel; not the acoustic layer.
    assert len(found) == 7
    limits: Any = dict.fromkeys(found, 2**config.integer.bits)
    if way == "gq":
        limits |= {path: 2 for path in found if "joiner" in path} | {path: 255 for path in found if "table" in path}
    assert all(len(np.unique(c)) <= limits[path] for path, c in found.items())
    assert max(len(np.unique(c)) for c in found.values()) > 2
    batch = next(made.batches)
    assert batch["step"] == 0
    loss, _ = jax.jit(made.task.loss)(merge(made.params, made.frozen), batch, key=jax.random.key(0))
    assert np.isfinite(loss)


def test_the_text_is_that_of_the_integers(start):
    config = config_of(changed(start))
    made = build(config, splits=("test",))
    plain = merge(made.params, made.frozen)
    batches = made.evaluation["test"]
    letters: Any = Letters()
    found = [heard for *_, heard in recognition.recognise(made.task, plain, batches, letters)]
    assert isinstance(made.task, quantization.QuantisedTask)
    task = made.task.task
    assert isinstance(task, IntegerTask)
    programs, integers = deploy(task, quant.quantize_tree(plain, rules(config)))
    encode, want = jax.jit(programs.encode), []
    for batch in batches:
        frames, mask = encode(integers, batch)
        best = decode(recognition.search(frames.shape[1], 0), programs.decodable(integers), frames, mask)
        heard = recognition.best_labels(best)
        want += [letters.decode(heard[row]) for row in np.flatnonzero(batch["weight"] > 0)]
    assert found == want
    assert any(want)


class Letters:
    """Units whose text is their numbers."""

    def decode(self, labels) -> str:
        return " ".join(str(int(label)) for label in labels)


def placed(tree: Any) -> Any:
    """On the device, as a checkpoint's: a step that finds some arrays there and others not is compiled again."""
    return jax.device_put(tree, jax.devices()[0])


def test_training_goes_on_where_it_stopped(start):
    """The annealing of a run in two parts goes on with the step that is due, to the same bits."""
    options = {"integer__weights": "gq", "integer__bits": 4, "integer__soft_steps": 3, "integer__every": 2}
    config = config_of(changed(start, **options, integer__forward="float", train__steps=5))

    def steps(made: Any, params: Any, state: Any, numbers: Any) -> Any:
        for step in numbers:
            batch = next(made.batches)
            assert int(batch["step"]) == step - 1
            params, state, _ = made.method.step(params, made.frozen, state, batch, made.key, step)
        return params, state

    made = build(config, splits=("dev",))
    start_at = jax.device_get(flat(made.params))
    params = placed(made.params)
    params, state = steps(made, params, made.method.init(params), (1, 2))
    place, kept = made.batches.get_state(), jax.device_get((params, state))
    whole, _ = steps(made, params, state, (3, 4, 5))
    made.batches.set_state(place)
    params, state = placed(kept)
    parts, _ = steps(made, params, state, (3, 4, 5))
    for path, leaf in flat(whole).items():
        np.testing.assert_array_equal(leaf, flat(parts)[path], err_msg=path)
        if path.startswith("centroids"):
            assert np.any(leaf != start_at[path]), path


def test_probes_of_codes_through_the_integers(start):
    options = {"method__name": "spsa", "method__probe": "codes", "method__eps": 1e-2, "optimizer__name": "sgd"}
    options |= {"optimizer__learning_rate": 1e-2, "optimizer__clip_norm": 0.0, "train__steps": 1}
    made = build(config_of(changed(start, **options)), splits=("dev",))
    assert isinstance(made.task, IntegerTask)
    assert made.task.forward == "integer"
    before = jax.device_get(made.params["joiner"]["encoded"]["kernel"])
    params, _, scalars = made.method.step(
        made.params, made.frozen, made.method.init(made.params), next(made.batches), made.key, 1
    )
    after = params["joiner"]["encoded"]["kernel"]
    assert after.qvalue.dtype == before.qvalue.dtype == np.int8
    assert np.any(np.asarray(after.qvalue) != before.qvalue)
    np.testing.assert_array_equal(after.scale, before.scale)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(jax.device_get(scalars)))


def test_a_run_on_the_same_accelerator_keeps_its_formats(start, tmp_path):
    """Trained in emulation from here to there, so that ranges taken anew would be others."""
    assert run(changed(start, train__steps=2), tmp_path, tmp_path / "first") == 0
    records = [json.loads(line) for line in (tmp_path / "first" / "eval.jsonl").read_text().splitlines()]
    assert {record["split"] for record in records} == {"dev", "test"}
    assert all(np.isfinite(record["wer"]) and np.isfinite(record["loss"]) for record in records)
    formats = {}
    for name, weights, accelerator in (
        ("first", start["model"]["weights"], "tflite"),
        ("second", str(tmp_path / "first"), "tflite"),
        ("anew", str(tmp_path / "first"), "narrow"),
    ):
        made = build(
            config_of(changed(start, model__weights=weights, integer__accelerator=accelerator)), splits=("dev",)
        )
        task, _ = quantization.deployed(made.task, merge(made.params, made.frozen))
        assert isinstance(task, IntegerTask)
        formats[name] = float(task.formats.encoder[0].norm.scale)
    assert formats["second"] == formats["first"] != formats["anew"]


def test_gates_may_share_a_scale(start):
    """Then a kernel can be written for runtimes whose LSTMs have one a gate."""
    made = build(config_of(changed(start, integer__scales="gate")), splits=("test",))
    task, params = quantization.deployed(made.task, merge(made.params, made.frozen))
    assert isinstance(task, IntegerTask)
    _, integers = deploy(task, params)
    layers = integers["network"].encoder
    for plan in (plan for layer in layers for plan in (layer.lstm.plan.input, layer.lstm.plan.recurrent)):
        each = np.asarray(plan.weight.scale).reshape(4, -1)
        assert np.all(each == each[:, :1])
        assert len(np.unique(each)) == 4
    batch = made.evaluation["test"][0]
    loss, _ = jax.jit(task.loss)(params, batch)
    assert np.isfinite(loss)


def test_s8bqat_compresses_and_pulls(start):
    config = config_of(changed(start, **WAYS["s8bqat"], integer__strength=10.0))
    made = build(config, splits=("dev",))
    params = placed(made.params)
    state = made.method.init(params)
    levels = cosine.tables(made.params, rules(config), (Depth(pattern="", bits=2),))
    counts = []
    for step in (1, 2, 3):
        params, state, _ = made.method.step(params, made.frozen, state, next(made.batches), made.key, step)
        kernel = np.asarray(params["joiner"]["output"]["kernel"] / levels["joiner/output/kernel"].scale)
        counts.append(len(np.unique(np.round(kernel, 2))))
    assert counts[2] <= 4 < counts[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"integer__bits": 4}, "config.integer.bits is 4; with config.integer.weights='absmax' it must be 8"),
        ({"integer__weights": "gq", "integer__accelerator": "none"}, "config.integer.weights is 'gq'; without"),
        ({"integer__weights": "s8bqat", "integer__soft_steps": 4}, "config.integer.soft_steps is 4"),
        ({"integer__allocation": ("joiner",)}, "config.integer.allocation is"),
        ({"integer__accelerator": "npu"}, "config.integer.accelerator is 'npu'"),
        (
            {"speech__encoder": "conformer"},
            "config.speech.encoder is 'conformer'; with an accelerator it must be 'lstm'",
        ),
        ({"speech__dropout": 0.1}, "config.speech.dropout is 0.1; with config.integer.forward='emulation'"),
        ({"method__name": "spsa", "optimizer__clip_norm": 0.0}, "config.method.probe is 'beside'"),
    ],
)
def test_refusals_name_the_field(start, changes, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.").replace("(", r"\(")):
        config_of(changed(start, **changes))
