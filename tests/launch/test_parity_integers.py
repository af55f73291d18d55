"""The integer operators and the runtime of ai-edge-litert: no output differs, and the comparison can tell."""

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="the package ai-edge-litert is not installed; see `make parity`")

from launch import parity_integers
from zojax.accelerator import TFLITE
from zojax.accelerator.fixed_point import rescale


def different(capsys, case, kernels, accelerator):
    count = parity_integers.compare(case, kernels, accelerator, "named")
    line = json.loads(capsys.readouterr().out)
    assert line["different"] == count
    assert line["distinct"] > 100, "the case is too easy"
    return count


@pytest.mark.parametrize("kernels", list(parity_integers.KERNELS))
def test_fully_connected_layers_are_those_of_the_runtime(capsys, kernels):
    case = parity_integers.fully_connected_case(0, 60, 150, 64, per_channel=True)
    accelerator = dataclasses.replace(TFLITE, requantise=parity_integers.KERNELS[kernels])
    assert different(capsys, case, kernels, accelerator) == 0


def test_an_lstm_is_that_of_the_runtime(capsys):
    case = parity_integers.lstm_case(0, 4, 20, 16, 24, d_out=12, norm=True, cifg=True, clip=2.0)
    assert different(capsys, case, "BUILTIN_REF", TFLITE) == 0


def test_another_arithmetic_is_seen(capsys):
    case = parity_integers.lstm_case(0, 4, 20, 16, 24, spread=1.5)
    accelerator = dataclasses.replace(TFLITE, recurrent="single")
    assert different(capsys, case, "BUILTIN_REF", accelerator) > 0


def test_the_hidden_factor_is_a_float32_number(capsys):
    """Computed in float64 it differs by a few units of 2^-31: one output of some 100,000 is rounded the other way, and
    others follow it through the recurrence."""
    case = parity_integers.lstm_case(11, 8, 75, 32, 40, spread=1.5)
    assert different(capsys, case, "BUILTIN_REF", TFLITE) == 0
    plan = case.layer.plan
    plan = dataclasses.replace(plan, hidden_rescale=rescale(2.0**-30 / np.float64(plan.hidden.scale)))
    case = dataclasses.replace(case, layer=dataclasses.replace(case.layer, plan=plan))
    assert different(capsys, case, "BUILTIN_REF", TFLITE) > 0
