"""What a run knows of itself, against functions whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zojax import diagnostics, ops
from zojax.diagnostics import AutoEps
from zojax.directions import Gaussian, Rademacher, Sphere
from zojax.perturb import PerturbSpec, materialized

KEY = jax.random.key(17)


def rough(curvature):
    """A loss of order one with a third derivative of `curvature` along a probe, and float32's own rounding."""

    def loss(params):
        w = ops.value(params["w"])
        x = jnp.mean(jnp.cos(curvature * w + jnp.arange(w.size) / 7.0))
        return 1.0 + x + jnp.mean(w)

    return loss


PARAMS = {"w": jnp.linspace(-1.0, 1.0, 64)}


def error_by_brute_force(loss, spec, eps, *, two_sided, probes=64):
    """Root mean square error of difference quotients against jax.jvp in float32, over fresh directions."""

    def error(key):
        z = spec.noise(PARAMS, key)
        exact = jax.jvp(loss, (PARAMS,), (z,))[1]
        up = loss(spec.perturb(PARAMS, key, eps))
        down = loss(spec.perturb(PARAMS, key, -eps)) if two_sided else loss(PARAMS)
        return (up - down) / (2 * eps if two_sided else eps) - exact

    errors = jax.lax.map(error, jax.random.split(jax.random.key(99), probes))
    return jnp.sqrt(jnp.mean(errors**2))


@pytest.mark.parametrize("two_sided", [True, False], ids=["two_sided", "one_sided"])
@pytest.mark.parametrize("curvature", [3.0, 30.0])
def test_auto_eps_is_near_the_best(curvature, two_sided):
    loss, spec = rough(curvature), PerturbSpec(direction=Gaussian())
    brute = jax.jit(lambda eps: error_by_brute_force(loss, spec, eps, two_sided=two_sided))
    grid = 2.0 ** np.arange(-18, -3)
    errors = np.array([float(brute(jnp.float32(eps))) for eps in grid])
    best = grid[errors.argmin()]
    choose = jax.jit(lambda key: diagnostics.choose_eps(loss, PARAMS, spec, key, two_sided=two_sided))
    for seed in range(3):
        choice = choose(jax.random.fold_in(KEY, seed))
        # A factor of 4, the grid's own spacing included: what a user would accept without a search of his own.
        assert best / 4 <= float(choice.eps) <= best * 4, (best, choice)
        # And what it costs: no more than 4 times the least error that any eps reaches.
        assert float(brute(choice.eps)) < 4 * errors.min()


def test_auto_eps_of_a_straight_loss_is_the_largest():
    loss = lambda p: 3.0 + jnp.sum(ops.value(p["w"]))  # noqa: E731
    choice = diagnostics.choose_eps(loss, PARAMS, PerturbSpec(), KEY)
    assert float(choice.eps) >= 2.0**-5  # no curvature: the more the better, up to the end of the range, 2^-4


def test_auto_eps_reports_the_signal():
    loss = lambda p: jnp.sum(jnp.square(ops.value(p["w"])))  # noqa: E731
    choice = diagnostics.choose_eps(loss, PARAMS, PerturbSpec(), KEY, auto=AutoEps(num_directions=64))
    expected = float(jnp.linalg.norm(2 * PARAMS["w"]))  # of E (grad . z)^2 = |grad|^2
    assert float(choice.signal) == pytest.approx(expected, rel=4 * np.sqrt(2 / 64) / 2)  # 4 standard errors
    assert float(choice.rounding) < 1e-2 * expected


@pytest.mark.parametrize("direction", [Rademacher(), Sphere()])
def test_learning_rate_probe_measures_a_step(direction):
    """On |w|^2 / 2 a two-point step is w - r (w . z) z, so that its change of the loss has a closed form."""
    spec = PerturbSpec(direction=direction)
    w = jnp.linspace(0.5, 1.5, 32)
    loss = materialized(lambda w: jnp.sum(w**2) / 2)
    rates = jnp.array([1e-3, 1e-2, 3e-2, 1e-1, 1.0])
    probe = jax.jit(
        lambda: diagnostics.learning_rate_probe(loss, w, spec, KEY, eps=1e-2, rates=rates, num_probes=400)
    )()
    # |z|^2 = d and E (w . z)^2 = |w|^2 for both: change = (-r + r^2 d / 2) |w|^2.
    expected = (-rates + rates**2 * 32 / 2) * jnp.sum(w**2)
    # (w . z)^2 scatters by sqrt(2) of itself: 4 standard errors of 400, and float32 differences of a loss of 17.
    np.testing.assert_allclose(probe.change, expected, rtol=4 * np.sqrt(2 / 400), atol=2e-4)
    # The greatest decrease is at r = 1 / d = 0.031.
    assert float(probe.suggested) == pytest.approx(1.5e-2)


def test_learning_rate_probe_says_zero_where_nothing_helps():
    loss = materialized(lambda w: jnp.sum(w**2))
    probe = diagnostics.learning_rate_probe(
        loss, jnp.ones(8), PerturbSpec(), KEY, eps=1e-2, rates=[10.0], heldout=lambda w: -loss(w) * 0 + loss(w)
    )
    assert float(probe.suggested) == 0.0


def test_signal_to_noise_of_pure_noise_is_about_one_and_of_a_signal_its_ratio():
    rng = np.random.default_rng(0)
    noise = jnp.asarray(rng.normal(size=(400, 16)), jnp.float32)
    # mean^2 * 16 is chi-squared of one degree: 4 standard errors sqrt(2 / 400) of its mean, halved by the root.
    assert float(diagnostics.signal_to_noise(noise)) == pytest.approx(1.0, rel=2 * np.sqrt(2 / 400) + 0.02)
    assert float(diagnostics.signal_to_noise(noise + 5.0)) == pytest.approx(np.sqrt(1 + 25 * 16), rel=0.05)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_signal_to_noise_needs_two_batches(shape):
    with pytest.raises(ValueError, match="2 batches"):
        diagnostics.signal_to_noise(jnp.ones(shape))


def test_moved_share_counts_weights_of_all_leaves():
    before = {"a": jnp.zeros((4, 5), jnp.bfloat16), "b": jnp.zeros(5)}
    after = {"a": before["a"].at[0].set(1), "b": before["b"].at[0].set(1e-30)}
    assert float(diagnostics.moved_share(before, after)) == pytest.approx(6 / 25)
    assert float(diagnostics.moved_share(before, before)) == 0.0


def test_gradient_cosine():
    loss = lambda p: jnp.sum(p["a"] ** 2) / 2 + jnp.sum(p["b"])  # noqa: E731
    params = {"a": jnp.array([3.0, 4.0]), "b": jnp.ones(2)}
    gradient = {"a": params["a"], "b": jnp.ones(2)}
    assert float(diagnostics.gradient_cosine(loss, params, gradient)) == pytest.approx(1.0)
    opposite = jax.tree.map(jnp.negative, gradient)
    assert float(diagnostics.gradient_cosine(loss, params, opposite)) == pytest.approx(-1.0)
    half = {"a": params["a"], "b": jnp.zeros(2)}
    assert float(diagnostics.gradient_cosine(loss, params, half)) == pytest.approx(np.sqrt(25 / 27))


@pytest.mark.parametrize("options", [{"every": 0}, {"num_directions": 0}, {"smallest": -6, "largest": -4}])
def test_auto_eps_refuses(options):
    with pytest.raises(ValueError, match="eps: AutoEps"):
        AutoEps(**options)
