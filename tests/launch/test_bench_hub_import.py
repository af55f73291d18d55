"""The benchmark of imports, at a tiny size: its lines, and that the model's bytes are those of its weights."""

import pytest

from launch.bench import hub_import
from tests.launch.test_bench import check_lines

VECTORS = 5 * 32  # two norms in each of two layers and the last one


def test_every_case_is_measured():
    values = check_lines(list(hub_import.run(scale="tiny", names=("bfloat16", "int8 codes"))), "hub_import")
    count = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + 2 * 64 * 32 + VECTORS
    matrices = count - VECTORS
    assert values[f"bfloat16, {count:,} weights", "model"] == 2 * matrices + 4 * VECTORS
    # A scale for each column of a kernel and for each row of the table.
    scales = 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32) + 64 + 64
    assert values[f"int8 codes, {count:,} weights", "model"] == matrices + 4 * (scales + VECTORS)
    assert all(value > 0 for (_, metric), value in values.items() if metric in ("peak", "time_min"))


def test_wrong_requests():
    with pytest.raises(ValueError, match="scale '7b'"):
        list(hub_import.run(scale="7b"))
    with pytest.raises(ValueError, match="names"):
        list(hub_import.run(scale="tiny", names=("int3",)))
