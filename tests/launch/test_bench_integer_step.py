"""launch.bench integer_step at a tiny size: the form of its lines and what they compare."""

import pytest

from launch.bench import __main__ as program
from launch.bench import integer_step
from launch.bench.integer_step import Scale
from tests.launch.test_bench import check_lines

TINY = {"bins": 4, "layers": 1, "width": 4, "predictor": "stateless", "embedding": 4, "joint": 4, "acoustic": 0.0}


def test_integer_step():
    batch = Scale(rows=2, seconds=0.4, labels=2)
    lines = list(integer_step.run(2, sizes=TINY, batch=batch, names=("tflite",)))
    values = check_lines(lines, "integer_step")
    cases = {line["case"]: line["reference"] for line in lines if line["metric"] == "time_median"}
    assert cases == {"float": None, "qat": "float", "aat, tflite": "float"}
    # Another program: the integers' values stand beside the floats'.
    assert values["aat, tflite", "temporaries"] != values["float", "temporaries"]
    with pytest.raises(ValueError, match="presets are tflite"):
        next(integer_step.run(1, names=("npu",)))


def test_the_program_knows_it():
    assert program.BENCHES["integer_step"]() is integer_step.run
