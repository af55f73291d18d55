"""The integer operators and the runtime of ai-edge-litert: no output differs, and the comparison can tell."""

import dataclasses
import json

import pytest

pytest.importorskip("ai_edge_litert", reason="the package ai-edge-litert is not installed; see `make parity`")

from launch import parity_integers
from zojax.accelerator import TFLITE


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
