"""What the wheel ships: the library, its data files, and a short list of dependencies."""

import email
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    # Offline: `make env` installs zojax itself and so leaves the build backend in uv's cache.
    uv = Path(sys.executable).parent / "uv"
    command = [
        uv,
        "build",
        "--wheel",
        "--offline",
        "--python",
        sys.executable,
        "-o",
        out,
        ROOT,
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_library_ships_alone_and_whole(wheel):
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    source = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "zojax").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert shipped == source


def test_the_embedded_data_set_ships(wheel):
    shipped = {Path(name).name for name in wheel.namelist() if re.fullmatch(r"zojax/data/reviews/\w+\.jsonl", name)}
    assert {"train.jsonl", "dev.jsonl", "test.jsonl"} <= shipped


def test_the_licence_ships(wheel):
    (name,) = (n for n in wheel.namelist() if n.endswith("/LICENSE"))
    assert "Apache License" in wheel.read(name).decode()


def test_dependencies_are_few(wheel):
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    requires = email.message_from_bytes(wheel.read(name)).get_all("Requires-Dist", [])
    plain = {re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in requires if "extra ==" not in line}
    assert plain == {"jax", "jaxtyping", "numpy", "optax"}
