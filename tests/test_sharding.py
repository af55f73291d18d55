"""Sharded and distributed steps: the same noise bits everywhere, and only scalars between data-parallel devices.

The programs run in processes of their own, since the number of devices is fixed when JAX starts:
    python -m tests.test_sharding mesh FILE
    python -m tests.test_sharding process FILE NUMBER PORT
"""

import functools
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from zojax import estimators, ops
from zojax.directions import Gaussian, LowRank, Rademacher, Sphere
from zojax.perturb import PerturbSpec

ROOT = Path(__file__).resolve().parent.parent
EPS = 2.0**-6
STEPS = 3
DIRECTIONS = {"gaussian": Gaussian(), "rademacher": Rademacher(), "low_rank": LowRank(rank=2), "sphere": Sphere()}
TRAINED = ("rademacher", "sphere")
# A collective of XLA's, its result type, its operands: "%x = (f32[], u32[2]) all-reduce(...".
COLLECTIVE = re.compile(
    r"= (\(?[^=]*?\)?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)"
    r"(?:-start)?\("
)
ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16)\[([\d,]*)\]")


def run_key():
    return jax.random.key(12)  # made late: a process joins the others before it touches a device


def weights():
    rng = np.random.default_rng(0)
    shapes = {"up": (12, 16), "bias": (16,), "down": (16, 4)}
    return {name: jnp.asarray(rng.normal(size=shape) / 4, jnp.float32) for name, shape in shapes.items()}


PLACEMENT = {"up": P(None, "model"), "bias": P("model"), "down": P("model", None)}


def batches():
    rng = np.random.default_rng(1)
    return np.asarray(rng.normal(size=(STEPS, 32, 12)), np.float32)


def loss(params, x):
    hidden = jnp.tanh(ops.dot(x, params["up"]) + ops.value(params["bias"]))
    return jnp.mean(jnp.square(ops.dot(hidden, params["down"]) - x[:, :4]))


@functools.cache
def make(direction="rademacher"):
    spec = PerturbSpec(direction=DIRECTIONS[direction])
    tx = estimators.chain(estimators.spsa(EPS, spec, num_samples=2, key=run_key()), optax.adam(1e-2))
    return (
        tx,
        jax.jit(lambda p, s, x: tx.measure(p, s, lambda t: loss(t, x))),
        jax.jit(lambda p, s, c: _apply(tx, p, s, c)),
    )


def _apply(tx, params, state, scalars):
    updates, state = tx.update(None, state, params, scalars=scalars)
    return optax.apply_updates(params, updates), state


def train(params, place, direction="rademacher"):
    """Weights and records of a few steps, the batches and the state placed by `place`."""
    tx, measure, apply = make(direction)
    state = jax.jit(tx.init)(params)  # placed as the weights are
    records = []
    for batch in batches():
        scalars = measure(params, state, place(batch, rows="data"))
        records.append(jax.device_get(scalars))
        params, state = apply(params, state, scalars)
    return jax.device_get(params), records


def replay(records, direction="rademacher"):
    """A run from its records alone, on one device."""
    tx, _, apply = make(direction)
    params = weights()
    state = tx.init(params)
    for scalars in records:
        params, state = apply(params, state, scalars)
    return jax.device_get(params)


@functools.cache
def on_one_device(direction="rademacher"):
    return train(weights(), lambda tree, rows=None: tree, direction)


def collectives(text):
    """(operation, bytes of its result) of every collective in a compiled program."""
    found = []
    for kind, operation in COLLECTIVE.findall(text):
        sizes = []
        for dtype, shape in ARRAY.findall(kind):
            bits = 8 if dtype == "pred" else 16 if dtype == "bf16" else int(dtype[1:])
            sizes.append(bits // 8 * int(np.prod([int(n) for n in shape.split(",") if n], dtype=np.int64)))
        found.append((operation, sum(sizes)))
    return found


# ---------------------------------------------------------------- the programs


def mesh_program(path):
    assert len(jax.devices()) == 8
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    out = {}

    def place(tree, rows=None):
        return jax.device_put(tree, NamedSharding(mesh, P() if rows is None else P(rows)))

    def sharded():
        return {name: jax.device_put(w, NamedSharding(mesh, PLACEMENT[name])) for name, w in weights().items()}

    for direction, kind in DIRECTIONS.items():
        spec = PerturbSpec(direction=kind)
        shardings = {name: NamedSharding(mesh, spec_) for name, spec_ in PLACEMENT.items()}
        noise = jax.jit(spec.noise, out_shardings=shardings)(sharded(), run_key())
        assert not noise["up"].is_fully_replicated
        for name, z in noise.items():
            out[f"noise/{direction}/{name}"] = np.asarray(z)
    for direction in TRAINED:
        params, records = train(sharded(), place, direction)
        for name, w in params.items():
            out[f"weights/{direction}/{name}"] = w
        out[f"projected/{direction}"] = np.stack([r.projected for r in records])
        out[f"value/{direction}"] = np.stack([r.value for r in records])
        out[f"norm/{direction}"] = np.stack([r.norm for r in records])

    # Data parallel: weights on every device, rows of the batch apart.
    tx, measure, apply = make()
    replicated = place(weights())
    state = place(tx.init(replicated))
    batch = place(batches()[0], rows="data")
    compiled = measure.lower(replicated, state, batch).compile()
    for program, text in (
        ("measure", compiled.as_text()),
        ("apply", apply.lower(replicated, state, place(compiled(replicated, state, batch))).compile().as_text()),
    ):
        found = collectives(text)
        print(f"{program}:", ", ".join(f"{operation} of {size} bytes" for operation, size in found) or "no collective")
        out[f"collectives/{program}"] = np.array([f"{operation} {size}" for operation, size in found], dtype="U40")
    out["batch_is_apart"] = np.array(not batch.is_fully_replicated)
    np.savez(path, **out)


def process_program(path, number, port):
    jax.distributed.initialize(coordinator_address=f"127.0.0.1:{port}", num_processes=2, process_id=number)
    assert jax.process_count() == 2
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(AxisType.Auto,))

    def place(tree, rows=None):
        if rows is None:
            return jax.device_put(tree, NamedSharding(mesh, P()))
        half = len(tree) // 2
        mine = tree[number * half : (number + 1) * half]
        return jax.make_array_from_process_local_data(NamedSharding(mesh, P(rows)), mine)

    params, records = train(place(weights()), place)
    np.savez(path, **params, projected=[r.projected for r in records], value=[r.value for r in records])


# ---------------------------------------------------------------- the tests


def start(*arguments, devices):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.test_sharding", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def mesh_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("mesh") / "out.npz"
    print(finish(start("mesh", path, devices=8)))
    return np.load(path)


every_trained = pytest.mark.parametrize("direction", TRAINED)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_noise_has_the_same_bits_on_every_shard(mesh_run, direction):
    whole = jax.jit(PerturbSpec(direction=DIRECTIONS[direction]).noise)(weights(), run_key())
    for name, z in whole.items():
        np.testing.assert_array_equal(mesh_run[f"noise/{direction}/{name}"], z)


@every_trained
def test_sharded_scalars_are_those_of_one_device(mesh_run, direction):
    _, records = on_one_device(direction)
    # The loss is summed in another order: 2^-20 of it over eps in a projected gradient. Later steps start from weights
    # that differ by as much, so a factor of ten for them; a wrong batch or other noise is off by the signal itself.
    for step, record in enumerate(records):
        tolerance = 2.0**-20 * abs(record.value) / EPS * (1 if step == 0 else 10)
        np.testing.assert_allclose(mesh_run[f"projected/{direction}"][step], record.projected, atol=tolerance, rtol=0)
        assert tolerance < 0.05 * np.abs(record.projected).max()
        np.testing.assert_allclose(mesh_run[f"value/{direction}"][step], record.value, rtol=1e-5)


@every_trained
def test_a_sharded_run_replays_on_one_device_to_the_bit(mesh_run, direction):
    _, like = on_one_device(direction)
    records = [
        record._replace(
            projected=mesh_run[f"projected/{direction}"][step],
            value=mesh_run[f"value/{direction}"][step],
            norm=mesh_run[f"norm/{direction}"][step],
        )
        for step, record in enumerate(like)
    ]
    for name, w in replay(records, direction).items():
        np.testing.assert_array_equal(mesh_run[f"weights/{direction}/{name}"], w)
        assert not np.array_equal(w, weights()[name])


def test_data_parallel_steps_exchange_scalars_only(mesh_run):
    assert mesh_run["batch_is_apart"]
    measured = [line.split() for line in mesh_run["collectives/measure"]]
    print("measure:", measured, "apply:", list(mesh_run["collectives/apply"]))
    assert measured  # the losses of the shards do meet
    for operation, size in measured:
        assert operation == "all-reduce"
        assert int(size) <= 16  # a float32 or two; a gradient would have 1,104 bytes here
    assert list(mesh_run["collectives/apply"]) == []


def test_the_reader_of_programs_sees_collectives():
    text = """
      %a = f32[] all-reduce(f32[] %x), channel_id=1
      %b = (f32[16,4]{1,0}, bf16[8]{0}) all-reduce-start(f32[16,4] %y, bf16[8] %z)
      ROOT %c = u32[2,3]{1,0} all-gather(u32[1,3] %w), dimensions={0}
      %d = f32[4] add(%all-reduce.1, %e)
    """
    assert collectives(text) == [("all-reduce", 4), ("all-reduce", 272), ("all-gather", 24)]


def test_two_processes_agree(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers = [start("process", tmp_path / f"{number}.npz", number, port, devices=1) for number in (0, 1)]
    try:
        for worker in workers:
            finish(worker)
    finally:
        for worker in workers:
            worker.kill()
    first, second = (np.load(tmp_path / f"{number}.npz") for number in (0, 1))
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name])
    _, records = on_one_device()
    for step, record in enumerate(records):
        tolerance = 2.0**-20 * abs(record.value) / EPS * (1 if step == 0 else 10)  # as above
        np.testing.assert_allclose(first["projected"][step], record.projected, atol=tolerance, rtol=0)
    replayed = replay(
        [r._replace(projected=first["projected"][i], value=first["value"][i]) for i, r in enumerate(records)]
    )
    for name, w in replayed.items():
        np.testing.assert_array_equal(first[name], w)


if __name__ == "__main__":
    if sys.argv[1] == "mesh":
        mesh_program(sys.argv[2])
    else:
        process_program(sys.argv[2], int(sys.argv[3]), sys.argv[4])
