"""Configs with quantised weights and adapters, from the start to a replayed log."""

import copy
import json

import jax
import ml_collections
import numpy as np
import pytest

from launch import replay
from launch.common import schema
from launch.common.build import build
from launch.train import main
from zojax import quant
from zojax.trees import merge

KERNELS = (r"layers/\w+/kernel$",)


def config_with(tiny, **changes):
    fields = copy.deepcopy(tiny)
    fields["optimizer"]["name"] = "sgd"
    for name, value in changes.items():
        section, _, field = name.partition("__")
        if field:
            fields[section][field] = value
        else:
            fields[section] = value
    return ml_collections.ConfigDict(fields)


@pytest.mark.parametrize("profile", quant.PROFILES)
def test_a_profile_leaves_no_matrix_in_float(tiny, profile):
    run = build(config_with(tiny, quant__profile=profile, method__name="quzo", trainable=KERNELS))
    params = merge(run.params, run.frozen)
    leaves = jax.tree_util.tree_flatten_with_path(params["encoder"], is_leaf=lambda x: hasattr(x, "materialize"))[0]
    for path, leaf in leaves:
        is_vector = jax.tree_util.keystr(path).endswith(("['bias']", "['scale']"))
        assert is_vector != isinstance(leaf, quant.QArray), path
    loss, _ = run.task.loss(params, next(run.batches))
    assert np.isfinite(loss)


@pytest.mark.parametrize(
    "changes",
    [
        {"method__name": "quzo", "trainable": KERNELS, "quant__feedback": 2},
        {"method__name": "quzo", "trainable": KERNELS, "method__probe": "codes", "optimizer__name": "sign"},
        {"trainable": (r"layers/\w+/kernel/scale$",), "method__clip_projected": 1.0},
        {"method__name": "quzo", "trainable": (r"kernel/(a|b)$",), "adapter__rank": 2},
    ],
    ids=["feedback", "sign", "scales", "lora"],
)
def test_a_quantized_run_trains_and_replays(tiny, tmp_path, changes):
    changes = {"quant__profile": "w8a8_int", "optimizer__learning_rate": 1e-2} | changes
    workdir, file = tmp_path / "run", tmp_path / "config.py"
    fields = config_with(tiny, **changes).to_dict()
    file.write_text(f"import ml_collections\ndef get_config(a=''):\n    return ml_collections.ConfigDict({fields!r})\n")
    assert main(["train", f"--config={file}", f"--workdir={workdir}"]) == 0
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    moved = [line["codes_moved"] for line in lines if "codes_moved" in line]
    if "scale" in changes["trainable"][0] or "a|b" in changes["trainable"][0]:
        assert not moved
    else:
        assert max(moved) > 0
    assert replay.main(["replay", f"--workdir={workdir}"]) == 0


def test_straight_through_trains_float_weights_by_a_quantized_forward(tiny):
    config = config_with(tiny, quant__profile="w4a4_int", method__name="first_order", trainable=(".*",))
    run = build(config)
    plain = build(config_with(tiny, method__name="first_order", trainable=(".*",)))
    batch = next(run.batches)
    quantized = quant.quantize_tree(run.params, _rules(config))
    loss, reference = run.task.loss(run.params, batch)[0], plain.task.loss(quantized, batch)[0]
    np.testing.assert_allclose(loss, reference, rtol=1e-5)  # the same codes; float32 sums in another order
    assert loss != plain.task.loss(run.params, batch)[0]


def _rules(config):
    from launch.common.quantization import rules

    return rules(config)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"quant__feedback": 4}, "config.quant.feedback is 4"),
        ({"quant__profile": "w8a8_int", "optimizer__name": "adam", "quant__feedback": 4}, "config.quant.feedback is 4"),
        ({"quant__profile": "w8a8_fp8", "quant__feedback": 4}, "config.quant.feedback is 4"),
        ({"quant__profile": "w8a8_int", "model__dtype": "bfloat16"}, "config.quant.profile is 'w8a8_int'"),
        ({"quant__profile": "int8"}, "config.quant.profile is 'int8'"),
        ({"method__bits": 9}, "config.method.bits is 9"),
        ({"quant__profile": "w8a8_int", "quant__feedback": 1}, "config.quant.feedback is 1"),
    ],
)
def test_refusals_name_the_field(tiny, changes, field):
    with pytest.raises(ValueError, match=field):
        schema.check(config_with(tiny, **changes))
