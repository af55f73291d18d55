"""Shapes are checked while the tests run, JAX stays on the CPU, and data outside the checkout is optional."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before anything imports jax: the suite gives the same answers on every machine.
# JAX_PLATFORMS=cuda (or tpu), set outside, runs it on an accelerator instead.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# What one test has compiled the others load, in all workers and in programs that tests start: a quarter of the time.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="zojax_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest
from jaxtyping import install_import_hook

# Every jaxtyping signature of the library and of the models becomes a runtime check. This stands
# before the first import of either package, and in tests only: users pay nothing for it.
install_import_hook(["zojax", "models"], "beartype.beartype")

ROOT = Path(__file__).resolve().parent.parent

# The scripts that make golden files import what they compare with; doctest would import them.
collect_ignore_glob = ["golden/*"]

MAPPINGS = Path("/proc/self/maps")


@pytest.fixture(autouse=True, scope="module")
def _room_for_programs() -> Iterator[None]:
    """Forgets compiled programs when they are many.

    Each holds a dozen of the 65,530 mappings that Linux allows a process; a worker that reaches them crashes.
    """
    yield
    if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def zojax_data() -> Path:
    """The folder of the optional data sets: `ZOJAX_DATA`, or `../shared/data` beside the checkout."""
    named = os.environ.get("ZOJAX_DATA")
    path = Path(named) if named else ROOT.parent / "shared" / "data"
    if not path.is_dir():
        if named:
            pytest.fail(f"ZOJAX_DATA={named!r} is not a folder; unset it to skip the tests that need data")
        pytest.skip(f"no optional data: {path} does not exist and ZOJAX_DATA is not set")
    return path
