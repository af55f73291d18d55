"""The passes through a lattice: the definition by enumeration, kernels equal to it for every tiling, lowering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kernels.lowering import interpreted, lower_for_cuda, lower_for_tpu
from zojax.kernels.transducer_lattice import backward, forward, gpu, reference, tpu
from zojax.losses.transducer import TransducerSpec, transducer_loss

MODULES = {"tpu": tpu, "gpu": gpu}
LOWER = {"tpu": lower_for_tpu, "gpu": lower_for_cuda}
MARK = {"tpu": "tpu_custom_call", "gpu": "xla.gpu.triton"}
CALL = {"tpu": "custom_call @tpu_custom_call", "gpu": "custom_call @__gpu$xla.gpu.triton"}
CONFIGS = [
    tpu.Config(),
    tpu.Config(block_steps=1, block_batch=8),
    tpu.Config(block_steps=5, block_batch=16),
    gpu.Config(),
    gpu.Config(num_warps=1),
]
ARCS = ((1, False), (1, True))
JUMPS = ((2, False), (1, False), (1, True))


def problem(steps=13, batch=10, symbols=6, arcs=ARCS, seed=0):
    """Utterances that end anywhere, with forbidden arcs; the first has no step, the next is full and free."""
    rng = np.random.default_rng(seed)
    rows = [rng.normal(size=(steps, batch, symbols)).astype(np.float32) - 1 for _ in arcs]
    for row, (_, label) in zip(rows, arcs, strict=True):
        row[(rng.random(row.shape) < 0.1) & (np.arange(batch)[:, None] != 1)] = -np.inf
        if label:
            row[..., 0] = -np.inf
    end = rng.integers(1, steps + 1, batch)
    last = np.minimum(rng.integers(0, symbols, batch), end)
    end[:2], last[:2] = (0, steps), (0, min(symbols - 1, steps))
    return tuple(map(jnp.asarray, rows)), jnp.asarray(end, jnp.int32), jnp.asarray(last, jnp.int32)


def enumerated(rows, arcs, end, last):
    """Log-weight of all paths of one utterance and the posterior of each arc, in float64."""
    paths = []

    def extend(step, u, weight, path):
        if (step, u) == (end, last):
            paths.append((weight, path))
        for arc, (steps, label) in enumerate(arcs):
            to, v = step + steps, u + label
            if to <= end and v <= last:
                extend(to, v, weight + float(rows[arc][to - 1, v]), [*path, (arc, to - 1, v)])

    extend(0, 0, 0.0, [])
    weights = np.array([w for w, _ in paths] or [-np.inf])
    total = np.logaddexp.reduce(weights)
    flows = np.zeros((len(arcs), *rows[0].shape))
    for weight, path in paths:
        for place in path:
            flows[place] += np.exp(weight - total) if np.isfinite(total) else 0
    return total, flows


@pytest.mark.parametrize("arcs", [ARCS, JUMPS])
def test_the_definition_by_enumeration(arcs):
    rows, end, last = problem(steps=6, symbols=4, arcs=arcs)
    total, shares = jax.jit(functools.partial(forward, arcs=arcs))(rows, end, last)
    flows = jax.jit(functools.partial(backward, arcs=arcs))(shares, end, last)
    ways = 0
    for b in range(len(end)):
        expected, through = enumerated([np.asarray(r[:, b]) for r in rows], arcs, int(end[b]), int(last[b]))
        # float32 sums of some ten terms near 1
        np.testing.assert_allclose(total[b], expected, rtol=2e-6, atol=2e-6)
        if np.isfinite(expected):
            np.testing.assert_allclose([f[:, b] for f in flows], through, rtol=0, atol=2e-6)
            ways += 1
    assert ways >= 5


# Every tiling on a lattice that no block divides; one step and one u; more u than lanes of a TPU.
CASES = [(config, (13, 10, 6)) for config in CONFIGS]
CASES += [(config, size) for config in (CONFIGS[2], CONFIGS[4]) for size in [(1, 2, 1), (9, 2, 130)]]


@pytest.mark.parametrize(("config", "size"), CASES, ids=str)
def test_kernels_equal_the_definition(config, size):
    module = tpu if isinstance(config, tpu.Config) else gpu
    rows, end, last = problem(*size)
    options = dict(arcs=ARCS, config=config)
    assert module.supported(rows, end, last, **options) is None
    define = functools.partial(reference.forward, arcs=ARCS, semiring="sum", keep=True)
    expected, shares = jax.jit(define)(rows, end, last)
    total, found = module.forward(rows, end, last, semiring="sum", keep=True, interpret=interpreted(module), **options)
    # The same operations in the same order; XLA may contract them otherwise: an ulp of a log near 10, of a share.
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    for a, b in zip(found, shares, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-7)
    flows = module.backward(shares, end, last, interpret=interpreted(module), **options)
    for a, b in zip(flows, jax.jit(functools.partial(reference.backward, arcs=ARCS))(shares, end, last), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-7)
    assert np.isfinite(total[1])


@pytest.mark.parametrize("name", MODULES)
def test_shares_are_optional(name):
    rows, end, last = problem(steps=5, batch=2, symbols=3)
    module, options = MODULES[name], dict(arcs=ARCS, semiring="sum")
    run = functools.partial(module.forward, rows, end, last, interpret=interpreted(module), **options)
    total, none = run(keep=False, config=module.Config())
    np.testing.assert_array_equal(total, run(keep=True, config=module.Config())[0])
    assert none == ()


@pytest.mark.parametrize("name", MODULES)
def test_a_nan_shows(name):
    rows, end, last = problem()
    rows = (rows[0].at[0, 1, 0].set(np.nan), rows[1])
    module, options = MODULES[name], dict(arcs=ARCS, semiring="sum", keep=False)
    run = functools.partial(module.forward, interpret=interpreted(module), **options)
    total, _ = run(rows, end, last, config=module.Config())
    assert np.isnan(total[1])
    assert not np.isnan(np.delete(np.asarray(total), 1)).any()


@pytest.mark.parametrize("name", MODULES)
def test_kernels_under_vmap(name):
    module, (rows, end, last) = MODULES[name], problem(steps=5, batch=2, symbols=3)
    two = jax.tree.map(lambda x: jnp.stack([x, x - 0.5]), rows)
    options = dict(arcs=ARCS, semiring="sum", keep=True)
    run = functools.partial(module.forward, config=module.Config(), interpret=interpreted(module), **options)
    total, shares = jax.vmap(run, in_axes=(0, None, None))(two, end, last)
    for i in range(2):
        expected, kept = reference.forward(jax.tree.map(lambda x, i=i: x[i], two), end, last, **options)
        np.testing.assert_allclose(total[i], expected, rtol=1e-6)
        np.testing.assert_allclose(shares[1][i], kept[1], rtol=0, atol=5e-7)


@pytest.mark.parametrize("name", MODULES)
def test_kernels_lower(name):
    module = MODULES[name]
    for size in [(13, 10, 6), (460, 30, 61), (60, 2, 256), (3, 2, 1)]:
        rows, end, last = problem(*size)
        options = dict(arcs=ARCS, config=module.default_config(rows, end, last))
        for keep in (False, True):
            run = functools.partial(module.forward, semiring="sum", keep=keep, **options)
            assert MARK[name] in LOWER[name](run, rows, end, last)
        assert MARK[name] in LOWER[name](functools.partial(module.backward, **options), rows, end, last)


@pytest.mark.parametrize("name", MODULES)
def test_one_loss_holds_the_kernels_of_each_platform(name):
    logits, labels = jnp.zeros((3, 7, 4, 5)), jnp.ones((3, 3), jnp.int32)
    lengths = (jnp.array([7, 5, 4]), jnp.array([3, 2, 0]))

    def text_of(**fields):
        def loss(logits, frames, counts):
            return transducer_loss(logits, labels, frames, counts, blank=0, spec=TransducerSpec(**fields)).sum()

        return LOWER[name](jax.value_and_grad(loss), logits, *lengths)

    for fields in ({}, {"monotonic": True, "delay_penalty": 0.1}):
        assert text_of(**fields).count(CALL[name]) == 2  # one forward, one backward
    assert CALL[name] not in text_of(implementation="reference")
    # Expected latency differentiates the posteriors, which a scan can; the cost beside it keeps its kernels.
    assert text_of(expected_latency=0.1).count(CALL[name]) >= 2


@pytest.mark.parametrize("name", MODULES)
def test_the_operator_runs_what_is_named(name, monkeypatch):
    module, args = MODULES[name], problem(steps=5, batch=3, symbols=3)
    for direction in ("forward", "backward"):
        kernel = functools.partial(getattr(module, direction), interpret=interpreted(module))
        monkeypatch.setattr(module, direction, kernel)
    total, shares = forward(*args, arcs=ARCS, implementation=name)
    flows = backward(shares, *args[1:], arcs=ARCS, implementation=name, config=module.Config())
    expected, kept = forward(*args, arcs=ARCS, implementation="reference")
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_allclose(flows[0], backward(kept, *args[1:], arcs=ARCS)[0], rtol=0, atol=5e-7)


def test_wrong_arguments_are_refused():
    args = problem()
    jumps = problem(arcs=JUMPS)
    for name in MODULES:
        with pytest.raises(ValueError, match=rf"cannot run as '{name}': arcs .*a blank and a label arc of one step"):
            forward(*jumps, arcs=JUMPS, implementation=name)
        with pytest.raises(ValueError, match=rf"cannot run as '{name}': arcs .*'best'"):
            forward(*args, arcs=ARCS, semiring="best", implementation=name)
        with pytest.raises(ValueError, match="float16; float32 is known"):
            forward(tuple(r.astype(jnp.float16) for r in args[0]), *args[1:], arcs=ARCS, implementation=name)
    with pytest.raises(ValueError, match="300 symbols; up to 256 are known"):
        forward(*problem(symbols=300), arcs=ARCS, implementation="gpu")
    with pytest.raises(ValueError, match="num_warps must be a power of two"):
        forward(*args, arcs=ARCS, implementation="gpu", config=gpu.Config(num_warps=3))
    with pytest.raises(ValueError, match="block_batch a multiple of 8"):
        forward(*args, arcs=ARCS, implementation="tpu", config=tpu.Config(block_batch=4))
    with pytest.raises(ValueError, match=r"up to \d+ fit"):
        forward(*args, arcs=ARCS, implementation="tpu", config=tpu.Config(block_steps=10_000))
    with pytest.raises(ValueError, match="has none named 'triton'"):
        forward(*args, arcs=ARCS, implementation="triton")
