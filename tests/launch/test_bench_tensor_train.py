"""launch.bench tensor_train at a small width: the ways to contract a train agree, and the lines have the form."""

import jax.numpy as jnp

from launch.bench import __main__ as program
from launch.bench import tensor_train
from tests.launch.test_bench import check_lines


def test_all_contractions_agree():
    lines = list(tensor_train.run(1, widths=(24,), rows=8))
    values = check_lines(lines, "tensor_train")
    for text in ("8x24x64", "8x64x24"):
        for case in ("dense", "two halves", "whole, then dense", "core by core"):
            # Float32 sums of 24 to 64 products, and of 5 a border.
            assert 0 < values[f"{case}, {text}", "error"] < 1e-5
        assert values[f"dense, {text}", "weights"] == 24 * 64
        # Cores of 6, 4, 8 and 8 (or 8, 8, 4 and 6) at rank 5.
        assert values[f"two halves, {text}", "weights"] == 5 * (6 + 8) + 25 * (4 + 8)
    compared = {line["case"]: line["reference"] for line in lines if line["metric"] == "time_median"}
    assert compared["two halves, 8x24x64"] == "dense, 8x24x64"
    assert compared["adapter, two halves, 8x24"] == "product of the layer, 8x24x24"
    assert "tensor_train" in program.BENCHES


def test_a_wrong_contraction_is_seen(monkeypatch):
    monkeypatch.setattr(tensor_train, "tensor_train_dot", lambda x, train: jnp.zeros((len(x), 64 + 24 - x.shape[1])))
    values = check_lines(list(tensor_train.run(1, widths=(24,), rows=8)), "tensor_train")
    assert values["two halves, 8x24x64", "error"] == 1
