"""The published vectors of fixed-point arithmetic, which lie beside the checkout and are optional."""

import json
from pathlib import Path

import pytest

VECTORS = Path(__file__).resolve().parents[3] / "shared" / "vectors" / "fixedpoint_vectors.json"


@pytest.fixture(scope="session")
def vectors() -> dict:
    """The vectors by name."""
    if not VECTORS.is_file():
        pytest.skip(f"no optional vectors: {VECTORS} does not exist")
    return json.loads(VECTORS.read_text())
