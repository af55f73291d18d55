"""The shape of the tree: who imports whom, how long files are, what an import costs, what is documented."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("zojax", "models", "launch", "configs")
SOURCES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
MAX_LINES = 400

# Seconds that `import zojax` may add to `import jax, optax`. Measured: 0.03 to 0.1 on a 2-core machine. A
# dependency that does not belong (flax and orbax take about 2 s each) passes 0.3 s; a noisy machine does not.
MAX_IMPORT_SECONDS = 0.3

HEAVY = ("flax", "absl", "tensorflow_datasets", "orbax", "grain", "tensorflow")

# Each may import those to its left, never those to its right.
CHAIN = ("zojax.random", "zojax.directions", "zojax.perturb", "zojax.estimators")
LEAF_TYPES = ("zojax.perturb", "zojax.quant", "zojax.adapters")


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, module: str, *, is_package: bool = False) -> set[str]:
    """Every dotted name that the text of `module` imports: "a.b", and "a.b.c" for `from a.b import c`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                package = module.split(".")
                up = node.level - is_package
                base = package[: len(package) - up] + base
            names |= {".".join([*base, alias.name]) for alias in node.names}
    return names


def within(name: str, *prefixes: str) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def violations(module: str, names: set[str]) -> Iterator[str]:
    """The sentences that the house's import directions have against `names` in `module`."""

    def refuse(why: str, *prefixes: str) -> Iterator[str]:
        return (f"{module} imports {name}: {why}" for name in sorted(names) if within(name, *prefixes))

    def only(why: str, scope: tuple[str, ...], allowed: tuple[str, ...]) -> Iterator[str]:
        return (
            f"{module} imports {name}: {why}"
            for name in sorted(names)
            if within(name, *scope) and not within(name, *allowed)
        )

    if within(module, "zojax"):
        yield from refuse("the library knows no program", "models", "configs", "launch", "tests")
        if not within(module, "zojax.train", "zojax.data"):
            yield from refuse("the core installs with jax and optax alone", *HEAVY)
            yield from refuse("the core does not know the loop", "zojax.train", "zojax.data")
    for rank, link in enumerate(CHAIN):
        if within(module, link):
            yield from refuse(f"{link} comes before it", *CHAIN[rank + 1 :])
    if within(module, "zojax.ops"):
        # A leaf brings its own dot, embed and conv; ops calls those and knows no class.
        yield from refuse("ops calls methods and knows no leaf", *CHAIN, *LEAF_TYPES)
    if within(module, "zojax.kernels"):
        yield from only(
            "a kernel sees arrays and keys",
            ("zojax",),
            ("zojax.kernels", "zojax.random", "zojax.rounding", "zojax._threefry"),
        )
    if within(module, "zojax.losses"):
        yield from only("a loss sees arrays and functions", ("zojax",), ("zojax.losses", "zojax.kernels"))
    if within(module, *CHAIN):
        yield from refuse("a probe calls a leaf's methods and knows none but its own", "zojax.quant", "zojax.adapters")
    if within(module, "zojax.train"):
        yield from only(
            "the loop sees an estimator, a tree and a log",
            ("zojax",),
            ("zojax.train", "zojax.estimators", "zojax.replay", "zojax.trees"),
        )
    if within(module, "models"):
        yield from only(
            "a model sees ops, losses, leaves, the names of leaves, integer operators and the Task protocol",
            ("zojax",),
            ("zojax.ops", "zojax.losses", "zojax.trees", "zojax.train.task", "zojax.accelerator", *LEAF_TYPES),
        )
        yield from refuse("a model knows no program", "configs", "launch")
    if within(module, "configs"):
        yield from (
            f"{module} imports {n}: a config is plain data"
            for n in sorted(names)
            if not within(n, "ml_collections", "typing", "configs")
        )


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_one_way(path):
    names = imported(path.read_text(), module_name(path), is_package=path.name == "__init__.py")
    assert not list(violations(module_name(path), names))


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("zojax.random", "from zojax import directions"),
        ("zojax.random", "from . import perturb"),
        ("zojax.directions", "import zojax.estimators.spsa"),
        ("zojax.perturb", "from .estimators import spsa"),
        ("zojax.ops", "from zojax.perturb import Perturbed"),
        ("zojax.replay", "from absl import logging"),
        ("zojax.estimators.spsa", "def f():\n    import flax.linen as nn"),
        ("zojax.estimators.spsa", "from ..train import loop"),
        ("zojax.train.loop", "from models.language import bert"),
        ("zojax.train.loop", "from zojax.perturb import Perturbed"),
        ("models.language.bert", "from zojax.estimators import spsa"),
        ("models.language.bert", "import launch.common.build"),
        ("zojax.kernels.quantized_matmul", "from zojax import ops"),
        ("zojax.losses.transducer.loss", "from zojax import ops"),
        ("zojax.perturb", "from zojax.quant import QArray"),
        ("zojax.ops", "from zojax.adapters import Lora"),
        ("configs.quickstart", "import jax"),
    ],
)
def test_a_wrong_import_is_seen(module, line):
    assert len(list(violations(module, imported(line, module)))) >= 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("zojax.directions", "from zojax import random"),
        ("zojax.estimators.spsa", "from ._base import Estimator\nfrom ..perturb import PerturbSpec"),
        ("models.language.bert", "import flax.linen as nn\nfrom zojax import ops"),
        ("launch.train", "import models, zojax.train, absl"),
    ],
)
def test_a_right_import_passes(module, line):
    assert not list(violations(module, imported(line, module)))


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_are_short(path):
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines: would two files be clearer?"


def test_import_is_light(tmp_path):
    # In one process, jax and optax first, so that only what zojax adds is counted: optax itself loads absl.
    code = (
        "import sys, time\nimport jax, optax\nbefore = set(sys.modules)\nstart = time.perf_counter()\n"
        "import zojax\nprint(time.perf_counter() - start, *sorted(set(sys.modules) - before))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    seconds, added = zip(*((float(out[0]), out[1:]) for out in (run.stdout.split() for run in runs)), strict=True)
    assert not {name.split(".")[0] for name in added[0]} & set(HEAVY)
    # The least of three: anything else that runs on the machine only adds.
    assert min(seconds) <= MAX_IMPORT_SECONDS, f"import zojax adds {min(seconds):.2f} s"


def test_every_test_folder_is_a_package():
    # Without its __init__, tests/models would be imported as `models` and hide the real one.
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    assert not [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()]


def public_definitions(path: Path) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """The functions and classes that `__all__` names; without one, those with no leading underscore."""
    tree = ast.parse(path.read_text())
    exported = None
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            exported = ast.literal_eval(node.value)
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        if node.name in exported if exported is not None else not node.name.startswith("_"):
            yield node


def needs_example(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """A record, a protocol or an error is shown by the functions that take it or raise it."""
    bases = {ast.unparse(base).split(".")[-1] for base in getattr(node, "bases", [])}
    return not any(re.search(r"^(NamedTuple|TypedDict|Protocol.*|\w*Error|Exception)$", base) for base in bases)


LIBRARY = [p for p in SOURCES if within(module_name(p), "zojax") and not p.name.startswith("_")]


@pytest.mark.parametrize("path", LIBRARY, ids=module_name)
def test_public_names_are_documented(path):
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path.relative_to(ROOT)} has no docstring"
    for node in public_definitions(path):
        text = ast.get_docstring(node) or ""
        assert text, f"{module_name(path)}.{node.name} has no docstring"
        if needs_example(node):
            assert "Example" in text, f"{module_name(path)}.{node.name} shows no example"
            assert ">>>" in text, f"{module_name(path)}.{node.name}: the example does not run as a doctest"
