"""The loop: a run that is killed ends in the bits of one that is not; a log makes the weights again."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from tests.train import toy
from zojax import estimators, replay, train
from zojax.train import checkpoint
from zojax.train.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]


def outcome(workdir: Path) -> dict[str, object]:
    """Everything of a run that must not depend on how often it was interrupted."""
    (best,) = (workdir / "best").iterdir()
    last = checkpoint.steps(workdir / "checkpoints")[-1]
    like = toy.Toy().init(jax.random.key(0))
    log = workdir / "scalars.log"
    return {
        "metrics": (workdir / "metrics.jsonl").read_text(),
        "log": log.read_bytes() if log.exists() else b"",
        "last": last,
        "place": checkpoint.load_meta(workdir / "checkpoints" / str(last)),
        "best": (best.name, checkpoint.load_meta(best), replay.digest(checkpoint.load(best, like))),
    }


class DiedError(Exception):
    pass


def die():
    raise DiedError


@pytest.fixture(scope="module", params=["momentum", "first_order"])
def uninterrupted(request, tmp_path_factory):
    """(name, method, result, outcome) of a run of 30 steps; methods are shared, so that they compile once."""
    workdir = tmp_path_factory.mktemp("whole")
    method = toy.make_method(toy.Toy(), request.param)
    result = toy.run(workdir, request.param, method=method)
    return request.param, method, result, outcome(workdir)


@pytest.mark.parametrize("name", ["momentum", "first_order"])
def test_a_program_is_compiled_once(tmp_path, name, caplog):
    """Arrays of the first step that lie elsewhere than later ones would have the same program compiled again."""
    with jax.log_compiles():
        toy.run(tmp_path, name, method=toy.make_method(toy.Toy(), name))
    compiled = [record.getMessage().split()[1] for record in caplog.records if record.msg.startswith("Compiling")]
    own = [program for program in compiled if program in ("jit(measure)", "jit(apply)", "jit(step)")]
    assert sorted(own) == (["jit(apply)", "jit(measure)"] if name == "momentum" else ["jit(step)"])


def test_killed_at_random_moments(uninterrupted, tmp_path):
    name, _, result, expected = uninterrupted
    # Compiled once, so that the processes spend their lives in the loop.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    moments = random.Random(name)
    command = [sys.executable, "-m", "tests.train.toy", str(tmp_path / "run"), name, "float32", "30"]
    for batch in (4, 11, 20, 0):
        # A step takes some 5 ms, an evaluation 10 and a checkpoint 100: the moment may fall anywhere.
        moment = [str(batch), str(moments.uniform(0, 0.3))]
        process = subprocess.run(command + moment, cwd=ROOT, env=os.environ | cache, capture_output=True, text=True)
        assert process.returncode == (-signal.SIGKILL if batch else 0), process.stderr
    assert process.stdout.split() == ["30", "None", replay.digest(result.params)]
    assert outcome(tmp_path / "run") == expected


def test_interrupted_before_every_step(uninterrupted, tmp_path):
    name, method, result, expected = uninterrupted
    for at in range(1, 12):
        with pytest.raises(DiedError):
            toy.run(tmp_path, name, method=method, batches=toy.Batches(at=at, action=die))
    after = toy.run(tmp_path, name, method=method)
    assert replay.digest(after.params) == replay.digest(result.params)
    assert (after.forwards, after.best) == (result.forwards, result.best)
    assert outcome(tmp_path) == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves(uninterrupted, tmp_path, number):
    name, method, result, expected = uninterrupted
    handler = signal.getsignal(number)
    batches = toy.Batches(at=8, action=lambda: os.kill(os.getpid(), number))
    stopped = toy.run(tmp_path, name, method=method, batches=batches)
    assert (stopped.step, stopped.stopped_by) == (8, signal.Signals(number).name)
    assert checkpoint.steps(tmp_path / "checkpoints") == [6, 8]
    assert signal.getsignal(number) is handler
    after = toy.run(tmp_path, name, method=method)
    assert after.stopped_by is None
    assert replay.digest(after.params) == replay.digest(result.params)
    assert outcome(tmp_path) == expected


def test_what_a_kill_leaves_behind_is_ignored(uninterrupted, tmp_path):
    name, method, _, expected = uninterrupted
    with pytest.raises(DiedError):
        toy.run(tmp_path, name, method=method, batches=toy.Batches(at=11, action=die))
    for leftover in ("12.orbax-checkpoint-tmp-1", "3.deleted"):
        (tmp_path / "checkpoints" / leftover).mkdir()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')
    if name != "first_order":
        with (tmp_path / "scalars.log").open("ab") as file:
            file.write(b"\x0b\x00\x00")
    toy.run(tmp_path, name, method=method)
    assert outcome(tmp_path) == expected
    assert checkpoint.steps(tmp_path / "checkpoints") == [27, 30]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_finished_run_stays_as_it_is(uninterrupted, tmp_path):
    name, method, result, expected = uninterrupted
    for _ in range(2):
        again = toy.run(tmp_path, name, method=method)
        assert again.step == 30
        assert replay.digest(again.params) == replay.digest(result.params)
    assert outcome(tmp_path) == expected


def test_the_metrics_are_whole(uninterrupted):
    name, _, result, expected = uninterrupted
    rows = [json.loads(line) for line in expected["metrics"].splitlines()]
    cost = 3 if name == "first_order" else 4  # q = 2, two forwards a probe
    steps = [row for row in rows if "split" not in row]
    assert [row["step"] for row in steps] == list(range(2, 31, 2))
    assert [row["forwards"] for row in steps] == [cost * step for step in range(2, 31, 2)]
    assert result.forwards == 30 * cost
    dev = [row for row in rows if "split" in row]
    assert [row["step"] for row in dev] == [*range(0, 29, 4), 30]
    best = max(dev, key=lambda row: (row["accuracy"], -row["step"]))
    assert result.best == {"step": best["step"], "value": best["accuracy"]}
    assert expected["best"][0] == str(best["step"])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("sgd", "float32"), ("momentum", "bfloat16"), ("adam", "float32"), ("adamw", "bfloat16")],
)
def test_a_log_makes_the_weights_again(tmp_path, name, dtype):
    result = toy.run(tmp_path, name, dtype, steps=12, eval_every=0, checkpoint_every=0)
    # Programs of its own, as another process would compile them.
    method = toy.make_method(toy.Toy(dtype), name)
    like = toy.Toy(dtype).init(jax.random.key(0))
    base = checkpoint.load(tmp_path / "base", like)
    log = replay.read(tmp_path / "scalars.log")
    assert log.header.base_digest == replay.digest(base) != replay.digest(result.params)
    assert method.apply is not None
    shapes = method.scalars_like(base, method.init(base))
    params, state = replay.replay(method.apply, base, method.init(like), log, like=shapes)
    assert replay.digest(params) == replay.digest(result.params)
    saved = checkpoint.load(tmp_path / "checkpoints" / "12", (params, state))
    assert replay.digest((params, state)) == replay.digest(saved)


def test_probes_may_vary_from_step_to_step(tmp_path):
    def make():
        spsa = estimators.spsa(1e-2, key=toy.KEY, num_samples=3)
        return train.zeroth_order(
            toy.Toy(),
            estimators.chain(spsa, optax.sgd(0.02)),
            forwards=lambda probes, step: 2 * probes + (step == 1),
            description="growing",
            queries=lambda count: 1 + count // 3,
        )

    result = toy.run(tmp_path / "whole", "", method=make(), steps=8)
    log = replay.read(tmp_path / "whole" / "scalars.log")
    assert [(len(values) - 2) // 2 for values in log.values] == [1, 1, 1, 2, 2, 2, 3, 3]
    assert result.forwards == 1 + 2 * (3 * 1 + 3 * 2 + 2 * 3)
    method = make()
    with pytest.raises(DiedError):
        toy.run(tmp_path / "killed", "", method=method, steps=8, batches=toy.Batches(at=6, action=die))
    toy.run(tmp_path / "killed", "", method=method, steps=8)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("name", ["sgd", "first_order"])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, name):
    with pytest.raises(train.NonFiniteError, match=r"step 5: not finite: .*nan.*ids .500, 501.*eps") as error:
        toy.run(tmp_path, name, batches=toy.Batches(poison=5), checkpoint_every=1, eval_every=1, log_every=1)
    assert "skip_nonfinite" in str(error.value)
    assert max(row["step"] for row in read_metrics(tmp_path)) == 4
    assert checkpoint.steps(tmp_path / "checkpoints") == [3, 4]
    if name == "sgd":
        assert replay.read(tmp_path / "scalars.log").steps == (1, 2, 3, 4)


def test_a_loss_that_is_not_finite_may_be_skipped(tmp_path):
    spsa = estimators.skip_nonfinite(estimators.spsa(1e-2, key=toy.KEY))
    tx = estimators.chain(spsa, optax.sgd(0.02))
    method = train.zeroth_order(toy.Toy(), tx, forwards=lambda q, _: 2 * q, description="skipping")
    options = {"method": method, "steps": 8, "log_every": 1, "allow_nonfinite": True}
    result = toy.run(tmp_path, "", batches=toy.Batches(poison=5), **options)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))
    losses = {row["step"]: row["loss"] for row in read_metrics(tmp_path) if "split" not in row}
    assert losses.pop(5) is None
    assert len(losses) == 7
    assert None not in losses.values()


def test_another_run_in_the_folder_is_refused(tmp_path):
    toy.run(tmp_path, "sgd", steps=2)
    with pytest.raises(ValueError, match=r"another run: estimator is 'spsa, sgd' .* 'spsa, adam'"):
        toy.run(tmp_path, "adam", steps=2)
    (tmp_path / "scalars.log").unlink()
    with pytest.raises(ValueError, match="lacks steps before 2"):
        toy.run(tmp_path, "sgd", steps=4)
