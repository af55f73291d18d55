"""QuZO's estimates in numbers: moments of the directions, bias and variance of the gradient, codes that change.

Everything is under fixed keys, so that a machine gives the same lines twice. The bias is measured on a quadratic in
the weights, where a central difference is exact: what is not 1 there is the directions' doing.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from launch.bench._harness import Record, record
from zojax import estimators, ops, random
from zojax.directions import Direction, Gaussian, Rounded
from zojax.perturb import PerturbSpec
from zojax.quant import PROFILES, QArray, on_grid, quantize

__all__ = ["run"]

BENCH = "quzo_statistics"
EPS = 2.0**-5  # of the quadratic
KEYS = 1000  # estimates at a time
MATRIX = (6, 5)
GRIDS = ("int8_127", "int4", "fp8_e4m3")
UPDATES = (1e-5, 1e-4)  # rate * projected gradient
NOTHING: Any = None  # in place of updates, which an estimator does not read


def run(
    repeats: int = 20, *, draws: tuple[int, int] = (1024, 1024), shape: tuple[int, int] = (384, 1536)
) -> Iterator[Record]:
    """Measures the statistics.

    Args:
      repeats: batches of 1,000 run keys for bias and variance.
      draws: shape of the directions whose moments are taken.
      shape: of the weights whose codes are counted; their standard deviation is 0.05.

    Yields:
      Lines: moments, beside their closed forms; E[g] along the gradient over |gradient|^2, with its standard error;
      mean squared error over |gradient|^2 for q probes; shares of codes.
    """
    yield from _moments(draws)
    yield from _bias(repeats)
    yield from _variance(repeats)
    yield from _codes(shape)


def _moments(shape: tuple[int, int]) -> Iterator[Record]:
    for bits in (8, 4, 3):
        direction = Rounded(bits=bits, bound=5.5)
        step = direction.step
        series = sum(math.exp(-2 * (math.pi * k / step) ** 2) / k**2 for k in range(1, 20)) * (step / math.pi) ** 2
        draw = jax.jit(lambda key, d=direction: (d.sample(key, shape), d.for_update.sample(key, shape)))
        one, two = (np.asarray(u, np.float64) for u in draw(jax.random.key(0)))
        case = f"{bits} bits, bound 5.5"
        for metric, measured, expected in (
            ("E[u1 u2]", one * two, 1.0),
            ("E[u1 u1]", one * one, 1 + step**2 / 6 - series),
        ):
            yield record(BENCH, f"closed form, {case}", metric, expected, "")
            mean, reference = float(measured.mean()), f"closed form, {case}"
            yield record(BENCH, f"drawn, {case}", metric, mean, "", reference=reference, reference_value=expected)
            error = float(measured.std() / math.sqrt(measured.size))
            yield record(BENCH, f"drawn, {case}", f"standard error of {metric}", error, "")
        yield record(BENCH, f"closed form, {case}", "1 + D^2 / 6", 1 + step**2 / 6, "")


def _estimates(profile: str, batches: int, q: int = 1, **options) -> tuple[np.ndarray, np.ndarray]:
    """(estimates [keys, d], gradient [d]) of a quadratic of the quantised weights, float64."""
    chosen = PROFILES[profile]
    w = quantize(
        jax.random.normal(jax.random.key(1), MATRIX),
        chosen.weights,
        calibration=chosen.calibration,
        activations=chosen.activations,
    )
    curvature = jnp.linspace(0.5, 2.0, math.prod(MATRIX)).reshape(MATRIX)

    def value(params):
        # An identity is exact on every grid of activations, and the product takes the path that a layer takes.
        return jnp.sum(curvature * jnp.square(ops.dot(jnp.eye(MATRIX[0]), params["w"]))) / 2

    def estimate(key):
        estimator = estimators.quzo(EPS, num_samples=q, key=key, **options)
        params: Any = {"w": w}
        gradient: Any = estimator.update(NOTHING, estimator.init(params), params, value_fn=value)[0]
        return gradient["w"]

    keys = jax.random.split(jax.random.key(0), (batches, KEYS))
    g = jax.jit(lambda keys: jax.lax.map(jax.vmap(estimate), keys))(keys)
    gradient = curvature * w.materialize()
    return np.asarray(g, np.float64).reshape(batches * KEYS, -1), np.asarray(gradient, np.float64).ravel()


def _bias(batches: int) -> Iterator[Record]:
    for profile in PROFILES:
        for bits in (4, 3):
            reference, reference_value = None, None
            for name, independent in (("Q-RGE2", True), ("Q-RGE1", False)):
                g, gradient = _estimates(profile, batches, bits=bits, independent=independent)
                along = g @ gradient / (gradient @ gradient)
                case, mean = f"{name}, {profile}, {bits} bits", float(along.mean())
                metric = "E[g] along the gradient"
                yield record(BENCH, case, metric, mean, "", reference=reference, reference_value=reference_value)
                yield record(BENCH, case, "standard error", float(along.std() / math.sqrt(len(along))), "")
                reference, reference_value = case, mean


def _variance(batches: int) -> Iterator[Record]:
    reference, reference_value = None, None
    for q in (1, 2, 4, 8, 16):
        g, gradient = _estimates("w8a8_int", batches, q, bits=4)
        error = float(np.mean(np.sum((g - gradient) ** 2, axis=1)) / np.sum(gradient**2))
        case = f"w8a8_int, 4 bits, q={q}"
        yield record(BENCH, case, "E|g - gradient|^2", error, "", reference=reference, reference_value=reference_value)
        if q == 1:
            reference, reference_value = case, error


def _codes(shape: tuple[int, int]) -> Iterator[Record]:
    key = jax.random.key(2)
    weights = 0.05 * jax.random.normal(jax.random.key(3), shape)
    for grid in GRIDS:
        w = quantize(weights, grid)
        for eps in (1e-3, 1e-2):
            for way, (share, cosine) in _probes(w, Rounded(bits=4), key, jnp.float32(eps)).items():
                case = f"probe, {way}, {grid}, eps={eps:g}"
                yield record(BENCH, case, "weights that move", float(share), "share")
                yield record(BENCH, case, "cosine with u", float(cosine), "")
        for size in UPDATES:
            tx = on_grid(
                estimators.chain(estimators.spsa(1e-3, PerturbSpec(direction=Gaussian()), key=key), optax.sgd(size)),
                key=jax.random.key(4),
            )
            params: Any = {"w": w}
            state = tx.init(params)
            scalars = estimators.Scalars(jnp.ones(1), jnp.float32(0), jnp.float32(1e-3), jnp.ones(1))
            after = jax.jit(lambda p, s, c, tx=tx: tx.update(NOTHING, s, p, scalars=c)[1])(params, state, scalars)
            z = size * Gaussian().sample(key, shape)
            nearest = jnp.mean(_rounded(w, z) != w.qvalue)
            for way, share in (("nearest", nearest), ("stochastic", after.moved)):
                case = f"update, {way}, {grid}, |rate c|={size:g}"
                yield record(BENCH, case, "weights that move", float(share), "share")


def _probes(w: QArray, direction: Direction, key: jax.Array, eps: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Of each way to probe: the share of the weights that it moves, and the cosine of what it adds with u.

    Outside jit, where a weight that is multiplied out and subtracted again leaves nothing.
    """
    u = random.normal(key, w.shape)
    clean = w.materialize()
    leaves = {
        probe: PerturbSpec(direction=direction, probe=probe).perturb({"w": w}, key, eps)["w"]
        for probe in ("beside", "codes")
    }
    seen = {name: leaf.materialize() - clean for name, leaf in leaves.items()}
    codes = _rounded(w, eps * u)
    seen["nearest"] = QArray(qvalue=codes, scale=w.scale, grid=w.grid).materialize() - clean
    # The probe's u is that of its leaf key.
    normals = {name: random.normal(leaf.key, w.shape) for name, leaf in leaves.items()} | {"nearest": u}
    return {name: (jnp.mean(x != 0), _cosine(x, normals[name])) for name, x in seen.items()}


def _rounded(w: QArray, by: jax.Array) -> jax.Array:
    return w.grid.encode(w.grid.levels(w.qvalue) + by / w.scale)


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    norm = jnp.linalg.norm(a) * jnp.linalg.norm(b)
    return jnp.where(norm > 0, jnp.sum(a * b) / jnp.where(norm > 0, norm, 1), 0.0)
