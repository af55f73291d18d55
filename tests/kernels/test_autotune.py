"""The autotuner: it takes the fastest, remembers it, and survives a damaged file."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import pytest

from tests.kernels.lowering import lower_for_cuda
from zojax.kernels import autotune as module
from zojax.kernels._platform import Backend, cdiv, configured, dispatch, round_up
from zojax.kernels.autotune import autotune, cached, default_path
from zojax.kernels.quantized_matmul import gpu, quantized_matmul


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    steps: int


SLOW, FAST = Config(steps=3000), Config(steps=1)
ARGS = (jnp.ones((64, 64)), jnp.ones((4,), jnp.int8))


def run(x, y, *, config):
    if config.steps < 0:
        raise NotImplementedError("no negative number of steps")
    return jax.lax.fori_loop(0, config.steps, lambda _, a: a @ x * 0.01, x) + y.sum()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "choices.json"


def test_the_fastest_is_chosen_and_remembered(path):
    assert cached("op", Config, *ARGS, path=path) is None
    # 3,000 products of 64 x 64 against one: no noise of a machine turns that round
    assert autotune("op", run, [SLOW, FAST], *ARGS, path=path, runs=3) == FAST
    assert cached("op", Config, *ARGS, path=path) == FAST

    def fail(*args, config):
        raise AssertionError("a stored choice is not timed again")

    assert autotune("op", fail, [SLOW, FAST], *ARGS, path=path) == FAST


def test_a_stored_choice_that_is_no_candidate_is_timed_anew(path):
    autotune("op", run, [SLOW], *ARGS, path=path, runs=1)
    assert autotune("op", run, [FAST], *ARGS, path=path, runs=1) == FAST


def test_choices_are_apart(path, monkeypatch):
    autotune("op", run, [FAST], *ARGS, path=path, runs=1)
    assert cached("op.gpu", Config, *ARGS, path=path) is None
    assert cached("op", Config, jnp.ones((64, 65)), ARGS[1], path=path) is None
    assert cached("op", Config, ARGS[0].astype(jnp.bfloat16), ARGS[1], path=path) is None
    autotune("other", run, [SLOW], *ARGS, path=path, runs=1)  # and a second choice does not lose the first
    assert cached("op", Config, *ARGS, path=path) == FAST
    monkeypatch.setattr(module.jax, "__version__", "0.0.1")
    assert cached("op", Config, *ARGS, path=path) is None


def test_a_config_of_another_version_counts_as_none(path):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Renamed:
        count: int

    autotune("op", run, [FAST], *ARGS, path=path, runs=1)
    assert cached("op", Renamed, *ARGS, path=path) is None


def test_candidates_that_fail_are_passed_over(path):
    assert autotune("op", run, [Config(steps=-1), FAST], *ARGS, path=path, runs=1) == FAST
    with pytest.raises(ValueError, match=r"(?s)op runs with none of them:.*Config\(steps=-2\): no negative number"):
        autotune("op", run, [Config(steps=-2)], *ARGS, path=path, runs=1)
    with pytest.raises(ValueError, match=r"candidates: op was given none"):
        autotune("op", run, [], *ARGS, path=path)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"format": 99, "choices": {}}', '{"format": 1}', '{"format": 1, "choices": {"a": 3}}'],
)
def test_a_damaged_file_is_reported_and_rebuilt(path, content):
    path.parent.mkdir()
    path.write_text(content)
    with pytest.warns(UserWarning, match=r"choices.json is damaged and will be rebuilt"):
        assert cached("op", Config, *ARGS, path=path) is None
    assert autotune("op", run, [FAST], *ARGS, path=path, runs=1) == FAST
    assert cached("op", Config, *ARGS, path=path) == FAST
    assert json.loads(path.read_text())["format"] == 1


def test_writing_is_atomic(path, monkeypatch):
    autotune("op", run, [FAST], *ARGS, path=path, runs=1)
    before = path.read_text()

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(module.json, "dump", full)
    with pytest.raises(OSError, match="no space"):
        autotune("other", run, [FAST], *ARGS, path=path, runs=1)
    assert path.read_text() == before
    assert os.listdir(path.parent) == [path.name]  # and no temporary file stays


def test_default_path_follows_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "zojax" / "autotune.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".cache" / "zojax" / "autotune.json"


def test_operators_take_the_stored_choice(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    x, w = jnp.ones((64, 256), jnp.int8), jnp.ones((256, 256), jnp.int8)
    args = (x, w, jnp.ones((64, 1)), jnp.ones((1, 256)))
    config = gpu.Config(block_m=32, block_n=32, block_k=32)
    assert config != gpu.default_config(*args)

    def f(x, w):
        return quantized_matmul(x, w, x_scale=args[2], w_scale=args[3])

    def grid():
        text = lower_for_cuda(lambda x, w: f(x, w), x, w)
        return "grid_x = 2 : i32, grid_y = 8 : i32" in text

    assert not grid()
    autotune("quantized_matmul.gpu", lambda *a, config: a[2], [config], *args, runs=1)
    assert grid()


def test_an_explicit_config_is_for_the_named_implementation():
    args = [jnp.ones((16, 32), jnp.int8), jnp.ones((32, 16), jnp.int8), jnp.ones((16, 1)), jnp.ones((1, 16))]
    wanted = gpu.Config(num_warps=8)
    (backend,) = configured("op", {"gpu": gpu}, "gpu", wanted, *args).values()
    assert backend.run.keywords["config"] == wanted
    for implementation in (None, "tpu", "reference"):
        with pytest.raises(ValueError, match="name the implementation that it is for"):
            configured("op", {"gpu": gpu}, implementation, wanted, *args)


def test_dispatch_takes_the_first_that_is_supported():
    x, here = jnp.ones(3), {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    backends = {
        name: Backend(platform=platform, supported=lambda x, why=why: why, run=lambda x, by=by: x * by)
        for name, platform, why, by in [
            ("first", here, "too small", 2.0),
            ("second", here, None, 3.0),
            ("third", here, None, 5.0),
            ("elsewhere", "tpu" if here != "tpu" else "cuda", None, 7.0),
        ]
    }

    def run(implementation, backends=backends):
        return dispatch("op", implementation, lambda x: -x, backends, x)[0]

    assert run(None) == 3
    assert run(None, {"first": backends["first"], "elsewhere": backends["elsewhere"]}) == -1
    assert run("third") == 5
    assert run("reference") == -1
    with pytest.raises(ValueError, match=r"implementation: op cannot run as 'first': too small"):
        run("first")
    with pytest.raises(ValueError, match=r"op has none named 'fourth'; it has 'reference', 'first', 'second'"):
        run("fourth")


def test_sizes_are_rounded_up():
    assert [cdiv(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert [round_up(n, 4) for n in (0, 1, 4, 5)] == [0, 4, 4, 8]
