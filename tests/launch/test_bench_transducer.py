"""launch.bench transducer_loss at a tiny size: the form of its lines and what they compare."""

from launch.bench import __main__ as program
from launch.bench import transducer_loss
from tests.launch.test_bench import check_lines


def test_transducer_loss():
    tiny = (2, 5, 3, 6)
    lines = list(
        transducer_loss.run(2, shapes=(tiny,), joined=(2, 6, 3, 300), pruned=(tiny, 2, 150.0), long=(1, 30, 4, 5))
    )
    values = check_lines(lines, "transducer_loss")
    # float32 against float64, and not float32 against itself
    assert 0 < values["logits, 1x30x4x5", "gradient_error"] < 1e-5
    assert values["logits, 1x30x4x5", "loss_error"] < 1e-6
    share = {line["case"]: line["ratio"] for line in lines if line["metric"] == "temporaries"}
    assert share["joiner, 2x6x3x300"] == values["joiner, 2x6x3x300", "temporaries"] / (2 * 6 * 4 * 300 * 4)
    compared = {line["case"]: line["reference"] for line in lines if line["metric"] == "time_median"}
    assert compared["joiner, 2x6x3x300"] == "joiner, whole, 2x6x3x300"
    assert compared["pruned, band 2, 2x5x3x6"] == f"{transducer_loss.PEER}, pruned, band 2, 2x5x3x6"
    assert compared["logits, 2x5x3x6"] is None


def test_the_program_knows_it():
    assert program.BENCHES["transducer_loss"]() is transducer_loss.run
