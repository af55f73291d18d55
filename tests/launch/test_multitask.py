"""Runs of several tasks on a tiny model: masks, adapters, first order, and a replay that ends in the same bits."""

import copy
import json

import jax
import ml_collections
import numpy as np
import pytest

from launch import replay, train
from launch.common import schema
from launch.common.build import build
from launch.language import multitask
from tests.launch.conftest import CONFIG, WORDS
from zojax.masks import unpack_mask
from zojax.train import checkpoint
from zojax.train.metrics import read_metrics


@pytest.fixture(scope="module")
def fields(tiny, tmp_path_factory):
    """A config of two tasks, one of them of pairs."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = np.random.default_rng(2)
    for name in ("sst2", "rte"):
        (folder / name).mkdir()
        for split, count in (("train", 25), ("dev", 8)):
            rows = []
            for i in range(count):
                first, second = (" ".join(rng.choice(WORDS[side].split(), 2)) for side in (i % 2, rng.integers(2)))
                row = {"text": first} if name == "sst2" else {"premise": first, "hypothesis": second}
                rows.append(json.dumps({**row, "label": i % 2}) + "\n")
            (folder / name / f"{split}.jsonl").write_text("".join(rows))
    made = copy.deepcopy(tiny)
    made["trainable"] = (r"layers/\w+/kernel$",)
    made["data"]["source"] = str(folder)
    made["multitask"] |= {"tasks": ("sst2", "rte"), "quotas": (1, 3)}
    made["method"]["name"] = "multi_task"
    made["train"] |= {"steps": 3, "eval_every": 0, "checkpoint_every": 0}
    return made


def run(fields, tmp_path, **changes):
    """Trains; the run's folder."""
    made = copy.deepcopy(fields)
    for name, values in changes.items():
        made[name] = made[name] | values if isinstance(values, dict) else values
    (tmp_path / "config.py").write_text(CONFIG.format(config=repr(made)))
    code = train.main(["train", f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"])
    assert code == 0
    return tmp_path / "run"


@pytest.mark.parametrize("kind", ["mazo", "random"])
def test_masked_weights_never_move_and_a_replay_knows_the_mask(fields, tmp_path, capsys, kind):
    workdir = run(fields, tmp_path, mask={"kind": kind, "keep": 0.25})
    printed = capsys.readouterr().out
    assert "sst2 " in printed
    assert "worst " in printed
    built = build(schema.load(workdir))
    base = checkpoint.load(workdir / "base", built.params)
    last, state = checkpoint.load(workdir / "checkpoints" / "3", (built.params, built.method.init(built.params)))
    for before, after, words in zip(*map(jax.tree.leaves, (base, last, state[0].masks)), strict=True):
        mask = np.asarray(unpack_mask(words, before.shape[-2 if words.shape[-1] == before.shape[-1] else -1],
                                      axis=-2 if words.shape[-1] == before.shape[-1] else -1))  # fmt: skip
        assert (mask.sum(axis=-2) == before.shape[-2] // 4).all()
        np.testing.assert_array_equal(np.asarray(before)[~mask], np.asarray(after)[~mask])
        assert (np.asarray(before)[mask] != np.asarray(after)[mask]).all()
    lines = [line for line in read_metrics(workdir) if "split" not in line]
    assert all({"loss/sst2", "loss/rte"} <= line.keys() for line in lines)
    np.testing.assert_allclose([line["loss"] for line in lines],
                               [(line["loss/sst2"] + line["loss/rte"]) / 2 for line in lines], rtol=1e-5)  # fmt: skip
    assert replay.main(["replay", f"--workdir={workdir}"]) == 0
    assert "bit-equal" in capsys.readouterr().out


def test_adapters_and_first_order(fields, tmp_path, capsys):
    lora = {"adapter": {"rank": 2, "alpha": 2.0, "where": ("query/kernel$",)}, "trainable": (r"kernel/(a|b)$",)}
    (tmp_path / "lora").mkdir()
    run(fields, tmp_path / "lora", mask={"kind": "mazo", "keep": 0.5}, **lora)
    assert "multi_task, step 3" in capsys.readouterr().out
    (tmp_path / "adam").mkdir()
    run(fields, tmp_path / "adam", method={"name": "first_order"})
    assert "first_order, step 3" in capsys.readouterr().out


def test_masks_follow_from_the_config(fields):
    """Built again they are the same; another kind is another, and the log says so."""

    def described(**mask):
        made = copy.deepcopy(fields)
        made["mask"] |= mask
        return json.loads(build(ml_collections.ConfigDict(made)).method.description).get("mask")

    found = [described(kind=kind) for kind in ("magnitude", "magnitude", "random", "none")]
    assert found[0] == found[1] != found[2]
    assert found[3] is None


def test_heads_of_few_examples_are_fitted_to_the_first(fields):
    def heads(count):
        made = copy.deepcopy(fields)
        made["model"]["head_examples"] = count
        return multitask.load(ml_collections.ConfigDict(made), jax.random.key(0)).params["head"]

    every, all_of_21, first_8 = (jax.tree.leaves(heads(count)) for count in (0, 21, 8))
    jax.tree.map(np.testing.assert_array_equal, every, all_of_21)
    assert not any(np.array_equal(a, b) for a, b in zip(every, first_8, strict=True))
    with pytest.raises(ValueError, match="head_examples: among the first 1 examples of sst2"):
        heads(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": {"name": "spsa"}}, "config.method.name is 'spsa' and config.multitask.tasks"),
        ({"multitask": {"tasks": ()}}, "multi_task needs tasks"),
        ({"multitask": {"quotas": (2, 3)}}, "config.multitask.quotas is"),
        ({"multitask": {"weights": (1.0,)}}, "config.multitask.weights is"),
        ({"data": {"length_grouped": True}}, "config.data.length_grouped is True"),
        ({"mask": {"kind": "mazo"}, "method": {"name": "first_order"}}, "config.mask.kind is 'mazo'"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, changes, message):
    made = copy.deepcopy(fields)
    for name, values in changes.items():
        made[name] |= values
    with pytest.raises(ValueError, match=message):
        schema.check(ml_collections.ConfigDict(made))
