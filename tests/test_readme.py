"""What README.md shows works: its example runs, and the files and targets that it names exist."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_examples_run_one_after_the_other(tmp_path):
    example = "".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    run = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    learned, quantized = run.stdout.splitlines()[-2:]
    # The loss at the start is the mean square of y, about 0 + 1 + 4 + ... + 49 = 140.
    assert float(learned.split()[-1]) < 1.0
    assert quantized == "int8"


def test_named_files_exist():
    named = set(re.findall(r"\b(?:configs|docs|launch)/[\w/]+\.\w+", README))
    assert named
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_named_programs_exist():
    named = set(re.findall(r"-m (launch[\w.]*)", README))
    assert named
    assert not [name for name in named if not (ROOT / (name.replace(".", "/") + ".py")).is_file()]


def test_named_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", README, re.MULTILINE))
    assert named
    assert named <= targets


def test_every_config_is_listed():
    listed = set(re.findall(r"^\| `configs/(\w+)\.py`", README, re.MULTILINE))
    assert listed == {path.stem for path in (ROOT / "configs").glob("*.py")} - {"__init__", "base"}
