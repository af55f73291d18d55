"""launch.bench: every benchmark at a tiny size, and the form of its lines."""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from launch.bench import __main__ as program
from launch.bench import _harness, mezo_torch, noise, quzo_statistics, zo_step

TINY = Path(__file__).resolve().parents[1] / "golden" / "bert_tiny"
FIELDS = {"bench", "case", "metric", "value", "unit", "reference", "ratio"}


def check_lines(lines, bench):
    """Every line has the form, and every reference stands in the output with the value of which `ratio` is made."""
    measured = [line for line in lines if line["case"] != "torch"]
    values = {(line["case"], line["metric"]): line["value"] for line in measured}
    assert len(values) == len(measured), "a case is measured twice"
    for line in measured:
        assert line.keys() == FIELDS
        assert line["bench"] == bench
        assert math.isfinite(line["value"])
        if line["ratio"] is not None:
            # The same division of the same floats.
            assert line["ratio"] == line["value"] / values[line["reference"], line["metric"]]
        json.dumps(line, allow_nan=False)
    return values


def without_torch(monkeypatch, module):
    monkeypatch.setattr(module, "import_torch", lambda: None)


def test_noise(monkeypatch):
    without_torch(monkeypatch, noise)
    lines = list(noise.run(2, shape=(64, 64)))
    values = check_lines(lines, "noise")
    for draw in ("normal", "rademacher"):
        assert values[f"z, zojax.random.{draw}", "bitwise_equal"] == 1
        # Fused into the addition there is no array of noise.
        assert values[f"w + z, zojax.random.{draw}", "temporaries"] == 0
    assert values["w + z, zojax.random.signs", "time_median"] >= values["w + z, zojax.random.signs", "time_min"] > 0
    assert [line for line in lines if "absent" in line] == [_harness.no_torch("noise")]


def test_noise_sees_a_draw_that_is_not_equal(monkeypatch):
    without_torch(monkeypatch, noise)
    changed = (lambda key, shape: jnp.zeros(shape), "jax.random.normal")
    monkeypatch.setitem(noise.DRAWS, "zojax.random.normal", changed)
    values = check_lines(list(noise.run(1, shape=(8, 8))), "noise")
    assert values["z, zojax.random.normal", "bitwise_equal"] == 0


def test_zo_step():
    # One number of probes and one direction: compiling takes nearly all of the time.
    lines = list(zo_step.run(2, source=TINY, shapes=((2, 8),), samples=(2,), directions=("Rademacher",)))
    values = check_lines(lines, "zo_step")
    assert [line["metric"] for line in lines[:4]] == ["size"] * 4
    assert values["4 forwards, 2x8", "time_min"] == pytest.approx(4 * values["forward, 2x8", "time_min"])
    for order in ("turn", "pair"):
        setting = f"Rademacher, q=2, {order}, 2x8"
        parts = [values[f"{half}, {setting}", "time_min"] for half in ("measure", "apply")]
        # The least sum of a round is at least the sum of the least parts; a last place for the order of additions.
        assert values[f"step, {setting}", "time_min"] >= sum(parts) * (1 - 1e-12)
        assert values[f"apply, {setting}", "temporaries"] >= 0
    assert values["back-propagation + sgd, 2x8", "temporaries"] > values["forward, 2x8", "temporaries"]
    compared = {line["case"]: line["reference"] for line in lines if line["metric"] == "time_median"}
    assert compared["step, Rademacher, q=2, turn, 2x8"] == "4 forwards, 2x8"
    assert compared["back-propagation + sgd, 2x8"] == "forward, 2x8"


def test_a_timed_step_moves_the_weights():
    task, params = zo_step.classifier(TINY)
    before = np.asarray(params["encoder"]["embeddings"]["word"])
    held = [params]
    batch = zo_step.random_batch(task.config.vocab_size, 2, 8)
    direction = zo_step.DIRECTIONS["LowRank(rank=1)"]
    step = zo_step.programs(task, held, batch, zo_step.sgd_chain(direction, probes="batch"))
    scalars = step.call_measure()
    step.call_apply()
    moved = np.asarray(held[0]["encoder"]["embeddings"]["word"]) - before
    assert np.abs(moved).max() > 0
    # A product of two of these normal factors stays below 25; a weight near 1 is rounded to 1e-7.
    assert np.abs(moved).max() <= 25 * zo_step.LEARNING_RATE * abs(float(scalars.projected[0])) + 1e-7


def test_a_batch_is_padded_and_always_the_same():
    batch = zo_step.random_batch(40, 64, 8)
    assert batch["tokens"].min() >= 0
    assert batch["tokens"].max() < 40
    assert set(batch["mask"].sum(1)) == {4, 5, 6, 7, 8}
    assert (np.diff(batch["mask"].astype(int), axis=1) <= 0).all()  # tokens first, padding after
    np.testing.assert_equal(batch, zo_step.random_batch(40, 64, 8))


def test_mezo_without_torch(monkeypatch):
    without_torch(monkeypatch, mezo_torch)
    lines = list(mezo_torch.run(1, source=TINY, shapes=((2, 8),)))
    values = check_lines(lines, "mezo_torch")
    assert lines[0] == _harness.no_torch("mezo_torch")
    assert {case for case, _ in values} == {
        "forward, zojax, 2x8",
        "step, zojax, Rademacher, 2x8",
        "step, zojax, Gaussian, 2x8",
    }
    assert all(line.get("reference") is None for line in lines)


def test_mezo_with_torch():
    pytest.importorskip("torch", reason="torch is not installed (make parity-env)")
    lines = list(mezo_torch.run(1, source=TINY, shapes=((2, 8),)))
    values = check_lines(lines, "mezo_torch")
    rate = values["step, zojax, Rademacher, 2x8", "rate"]
    median = values["step, zojax, Rademacher, 2x8", "time_median"]
    assert rate == pytest.approx(1e3 / median)
    assert ("step, torch, MeZO, 2x8", "time_median") in values


def test_a_mezo_step_in_torch_is_sgd_along_its_noise():
    torch = pytest.importorskip("torch", reason="torch is not installed (make parity-env)")
    weights = [torch.zeros(50, 4), torch.zeros(7)]
    target = 3.0
    loss = lambda: sum(((w - target) ** 2).sum() for w in weights)  # noqa: E731
    projected = mezo_torch.torch_mezo_step(torch, weights, loss, eps=1e-2, learning_rate=1e-3, seed=5)
    generator = torch.Generator().manual_seed(5)
    z = [torch.normal(0.0, 1.0, tuple(w.shape), generator=generator) for w in weights]
    # At 0 the directional derivative of sum (w - 3)^2 is -6 sum z; float32 losses of 2,000 differ by 1e-4 / 2 eps.
    assert projected == pytest.approx(-6 * float(sum(x.sum() for x in z)), abs=5e-2)
    for w, x in zip(weights, z, strict=True):
        # +eps, -2 eps, +eps leaves the rounding of float32 behind.
        torch.testing.assert_close(w, -1e-3 * projected * x, atol=1e-6, rtol=1e-5)


def test_disagreeing_losses_are_an_error():
    assert mezo_torch._agreement(0.5, 0.50005, "2x8")["value"] == pytest.approx(5e-5, rel=1e-6)
    for theirs in (0.5002, math.nan):
        with pytest.raises(ValueError, match=r"they must agree to 0\.0001"):
            mezo_torch._agreement(0.5, theirs, "2x8")


def test_quzo_statistics(monkeypatch):
    """One profile and few keys; which weights move is known without the benchmark."""
    monkeypatch.setattr(quzo_statistics, "KEYS", 100)
    monkeypatch.setattr(quzo_statistics, "PROFILES", {"w8a8_int": quzo_statistics.PROFILES["w8a8_int"]})
    values = check_lines(list(quzo_statistics.run(2, draws=(128, 128), shape=(64, 64))), "quzo_statistics")
    for metric in ("E[u1 u2]", "E[u1 u1]"):
        drawn, closed = (values[f"{kind}, 3 bits, bound 5.5", metric] for kind in ("drawn", "closed form"))
        assert abs(drawn - closed) < 4 * values["drawn, 3 bits, bound 5.5", f"standard error of {metric}"]
    # At 4 bits a step is 0.016 for 64 weights a column, sixteen times eps: no weight is near enough for the nearest.
    assert values["probe, nearest, int4, eps=0.001", "weights that move"] == 0
    assert values["probe, nearest, int4, eps=0.001", "cosine with u"] == 0
    assert 0.02 < values["probe, codes, int4, eps=0.001", "weights that move"] < 0.1  # 0.8 eps / step
    assert values["update, nearest, int8_127, |rate c|=1e-05", "weights that move"] == 0
    assert values["update, stochastic, int8_127, |rate c|=1e-05", "weights that move"] > 0
    along = [values[f"{name}, w8a8_int, 3 bits", "E[g] along the gradient"] for name in ("Q-RGE2", "Q-RGE1")]
    assert along[1] > along[0]
    errors = [values[f"w8a8_int, 4 bits, q={q}", "E|g - gradient|^2"] for q in (1, 16)]
    assert errors[1] < errors[0] / 8


def test_timing_is_interleaved():
    order = []
    seconds = _harness.interleave({name: lambda name=name: order.append(name) for name in "AB"}, 3)
    assert order == list("AB" * 4)  # once to warm up
    assert {name: measured.shape for name, measured in seconds.items()} == {"A": (3,), "B": (3,)}
    assert min(measured.min() for measured in seconds.values()) > 0


def test_a_ratio_needs_a_reference():
    seconds = {"A": np.array([1.0, 2.0, 6.0]), "B": np.array([4.0, 1.0, 1.0])}
    lines = list(_harness.timings("b", seconds, {"B": "A", "A": "not measured"}))
    assert [line["value"] for line in lines] == [2000, 1000, 1000, 1000]
    assert [line["ratio"] for line in lines] == [None, None, 0.5, 1.0]
    assert [line["reference"] for line in lines] == [None, None, "A", "A"]
    assert _harness.record("b", "c", "m", 1.0, "u", reference="d", reference_value=0.0)["ratio"] is None


def test_the_environment_comes_first(monkeypatch, capsys):
    seen = []

    def bench(**options):
        seen.append(options)
        yield _harness.record("noise", "add", "time_min", 1.0, "ms")

    monkeypatch.setitem(program.BENCHES, "noise", lambda: bench)
    monkeypatch.setenv("XLA_FLAGS", "--xla_flag=1")
    assert program.main(["noise", "--repeats", "3"]) == 0
    assert program.main(["noise"]) == 0
    assert seen == [{"repeats": 3}, {}]
    first, second, *_ = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    wanted = {"backend", "device", "jax", "jaxlib", "python", "cpu_count", "XLA_FLAGS", "commit"}
    assert first.keys() == {"bench", "case"} | wanted
    assert (first["case"], first["XLA_FLAGS"], second["case"]) == ("environment", "--xla_flag=1", "add")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nois"], "noise, zo_step, mezo_torch"), (["noise", "--repeats", "0"], "--repeats is 0; at least 1 is needed")],
)
def test_a_wrong_request_is_one_line(capsys, arguments, message):
    assert program.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_bench_that_cannot_run_is_one_line(monkeypatch, capsys):
    def bench():
        raise FileNotFoundError("no model")
        yield

    monkeypatch.setitem(program.BENCHES, "zo_step", lambda: bench)
    assert program.main(["zo_step"]) == 1
    assert capsys.readouterr().err == "bench: no model\n"
