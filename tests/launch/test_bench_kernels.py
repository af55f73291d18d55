"""launch.bench kernels: lines of every kind from kernels that run (in interpret mode), and of kernels that do not."""

import functools

import pytest

from launch.bench import __main__ as program
from launch.bench import kernels
from tests.kernels.lowering import interpreted
from tests.launch.test_bench import FIELDS


def test_a_kernel_that_cannot_run_is_a_line():
    (name, *_), lines = ("stochastic_round",), list(kernels.run(1, scale="small", names=["stochastic_round"]))
    measured = [line for line in lines if "value" in line]
    if not interpreted(kernels.rounding):
        pytest.skip("the kernels run on this machine")
    assert [line["case"] for line in measured] == [f"{name}, 512x128, xla"]
    assert len(lines) == 1 + len(next(c for c in kernels.SCALES["small"]() if c.name.startswith(name)).configs)
    assert all("nterpret" in line["error"] for line in lines if "error" in line)


def test_a_kernel_that_runs(monkeypatch):
    for module in (kernels.rounding, kernels.quantized, kernels.perturbed):
        monkeypatch.setattr(module, "run", functools.partial(module.run, interpret=interpreted(module)))
    names = ["stochastic_round", "int8 x int8, 16x512x512", "perturbed_matmul, int8, signs, 2x16"]
    lines = list(kernels.run(1, scale="small", names=names))
    assert not [line for line in lines if "error" in line]
    values = {(line["case"], line["metric"]): line for line in lines if "value" in line}
    assert all(line.keys() == FIELDS for line in values.values())
    for case in ("stochastic_round, 512x128", "quantized_matmul, int8 x int8, 16x512x512"):
        # the same words, and exact sums of integers
        assert values[f"{case}, kernel", "relative difference from xla"]["value"] == 0
        line = values[f"{case}, kernel", "time_median"]
        assert line["reference"] == f"{case}, xla"
        assert line["ratio"] == line["value"] / values[f"{case}, xla", "time_median"]["value"]
    case = "perturbed_matmul, int8, signs, 2x16x512x512"
    # float32 sums of 512 terms in another order; and a weight in float16 has 11 bits
    assert values[f"{case}, kernel", "relative difference from xla"]["value"] < 1e-5
    assert 1e-5 < values[f"{case}, sum in float16", "relative difference from xla"]["value"] < 2e-3


def test_an_option_that_a_benchmark_lacks_is_one_line(capsys):
    assert program.main(["noise", "--names", "signs"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "unexpected keyword argument 'names'" in captured.err
