"""launch.bench wake_word at small sizes: lines have the form, blocks are the dense program, operations are fewer."""

import pytest

from launch.bench import __main__ as program
from launch.bench import wake_word
from tests.launch.test_bench import check_lines


def test_lines():
    sizes = {"width": 32, "large": 64, "small": 4, "catalogue": 20, "words": 2, "rows": 2, "frames": 8, "inside": 0.5}
    lines = list(wake_word.run(1, **sizes))
    values = check_lines(lines, "wake_word")
    assert 0 <= values["whole, blocks", "error"] < 1e-5  # float32 sums of 32 products, in other shapes
    assert values["formula, d=64, K=20", "flops"] == 2 * 64 * 64 + 4 * 20 * 64
    assert 1 <= values["large, K=20", "flops"] / values["formula, d=64, K=20", "flops"] < 1.2
    ratios = {line["case"]: line["ratio"] for line in lines if line.get("metric") == "flops"}
    assert ratios["inside"] == pytest.approx(values["inside", "flops"] / values["single, K=22", "flops"])
    assert values["inside", "flops"] < values["single, K=22", "flops"] < values["outside", "flops"] * 1.1
    compared = {line["case"]: line["reference"] for line in lines if line.get("metric") == "time_median"}
    assert compared == {
        **dict.fromkeys(("stream, inside", "stream, outside"), "stream, single"),
        **dict.fromkeys(("whole, blocks", "whole, dense"), "whole, single"),
        **dict.fromkeys(("stream, single", "whole, single")),
    }
    assert "wake_word" in program.BENCHES
