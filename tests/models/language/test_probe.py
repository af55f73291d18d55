import itertools

import numpy as np
import pytest

from models.language.probe import choose_l2, fit_linear_probe


def problem(n=200, d=5, classes=3, seed=0, offset=0.0, spread=1.0):
    """Features of unlike scales, labels that depend on them with noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * np.geomspace(1, spread, d) + offset
    logits = (x - offset) / np.geomspace(1, spread, d) @ rng.standard_normal((d, classes))
    return x, (logits + rng.gumbel(size=logits.shape)).argmax(-1)


def objective(kernel, bias, x, y, l2):
    """The probe's objective as its docstring states it; kernel and bias act on standardised features."""
    logits = (x - x.mean(0)) / x.std(0) @ kernel + bias
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -log_p[np.arange(len(y)), y].mean() + 0.5 * l2 * np.sum(kernel**2)


def standardised(head, x):
    kernel = head["kernel"].astype(np.float64)
    return kernel * x.std(0)[:, None], head["bias"] + x.mean(0) @ kernel


@pytest.mark.parametrize(
    "setting",
    [
        dict(),
        dict(d=1, classes=2),
        dict(classes=7, offset=3.0, spread=1e3),
        dict(n=30, d=60, classes=2),  # separable: the penalty alone holds the optimum
    ],
    ids=str,
)
@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
def test_the_gradient_is_zero(setting, l2):
    x, y = problem(**setting)
    kernel, bias = standardised(fit_linear_probe(x, y, num_classes=setting.get("classes", 3), l2=l2), x)
    parameters = [kernel, bias]
    # Central differences in float64: 1e-10 of their own. The head is rounded to float32, a relative 6e-8 of weights
    # up to 10 in standardised units; the curvature is of order 1.
    for array in parameters:
        for index in itertools.islice(np.ndindex(array.shape), 40):
            at = array[index]
            values = []
            for shift in (1e-5, -1e-5):
                array[index] = at + shift
                values.append(objective(kernel, bias, x, y, l2))
            array[index] = at
            assert abs(values[0] - values[1]) / 2e-5 < 2e-6


def test_the_optimum_by_exhaustion():
    # One feature, two classes: the kernel is (-w, w) and the bias (-b, b); two numbers, by repeated grid search.
    x, y = problem(n=50, d=1, classes=2)
    centre, width = np.zeros(2), 8.0
    for _ in range(40):
        steps = np.linspace(-width, width, 9)
        candidates = [centre + np.array([i, j]) for i in steps for j in steps]
        values = [objective(np.array([[-w, w]]), np.array([-b, b]), x, y, 0.01) for w, b in candidates]
        centre, width = candidates[int(np.argmin(values))], width / 1.6
    kernel, bias = standardised(fit_linear_probe(x, y, num_classes=2, l2=0.01), x)
    # The grid ends at 8 / 1.6^40 = 5e-8, but near its minimum the objective is flat to its last bit at 1e-8.
    np.testing.assert_allclose(kernel[0], [-centre[0], centre[0]], atol=1e-6)
    np.testing.assert_allclose(bias, [-centre[1], centre[1]], atol=1e-6)


def test_scale_and_shift_of_the_features_do_not_matter():
    x, y = problem()
    shift, scale = np.array([5.0, -3.0, 0.0, 100.0, 1.0]), np.array([1.0, 10.0, 0.1, 3.0, 1e3])
    a = fit_linear_probe(x, y, num_classes=3, l2=1e-2)
    b = fit_linear_probe(x * scale + shift, y, num_classes=3, l2=1e-2)
    logits = (x * scale + shift) @ b["kernel"].astype(np.float64) + b["bias"]
    # The bias folds in mean @ kernel, about 100 here, and is rounded to float32: 4e-6.
    np.testing.assert_allclose(logits, x @ a["kernel"].astype(np.float64) + a["bias"], atol=5e-5)


def test_a_column_without_variance_gets_no_weight():
    x, y = problem()
    x[:, 2] = 0.1
    head = fit_linear_probe(x.astype(np.float32), y, num_classes=3, l2=1e-3)
    assert not head["kernel"][2].any()
    assert all(np.isfinite(array).all() and array.dtype == np.float32 for array in head.values())


def test_a_class_without_examples_is_unlikely():
    x, y = problem(classes=2)
    head = fit_linear_probe(x, y, num_classes=3, l2=1e-2)
    assert (x @ head["kernel"] + head["bias"]).argmax(-1).max() == 1


def test_the_same_data_give_the_same_bits():
    x, y = problem()
    a, b = (fit_linear_probe(x, y, num_classes=3, l2=1e-3) for _ in range(2))
    assert a["kernel"].tobytes() == b["kernel"].tobytes()
    assert a["bias"].tobytes() == b["bias"].tobytes()


def test_choose_l2_takes_the_best_on_dev():
    # 40 examples in 30 dimensions: a small penalty overfits.
    x, y = problem(n=1040, d=30, classes=2, seed=3)
    train, dev = (x[:40], y[:40]), (x[40:], y[40:])
    grid = (1e-4, 1e-2, 1e-1, 1e4)
    l2, head = choose_l2(*train, *dev, num_classes=2, grid=grid)
    losses = {}
    for candidate in grid:
        other = fit_linear_probe(*train, num_classes=2, l2=candidate)
        logits = dev[0] @ other["kernel"] + other["bias"]
        losses[candidate] = (np.log(np.exp(logits).sum(-1)) - logits[np.arange(1000), dev[1]]).mean()
    assert l2 == min(losses, key=losses.__getitem__) == 1e-1
    np.testing.assert_array_equal(head["kernel"], fit_linear_probe(*train, num_classes=2, l2=l2)["kernel"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(l2=0.0), "l2 is 0.0; it must be positive"),
        (dict(l2=float("nan")), "l2 is nan"),
        (dict(num_classes=1), "num_classes is 1"),
        (dict(num_classes=2), r"labels of type int64 in \[0, 2\]"),
        (dict(labels=np.zeros(3, int)), "labels"),
        (dict(labels=np.zeros(200)), "labels of type float64"),
        (dict(features=np.full((200, 5), np.inf)), "NaN or infinity"),
        (dict(features=np.zeros((200, 0))), r"features of shape \(200, 0\)"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    x, y = problem()
    arguments = {"features": x, "labels": y, "num_classes": 3, "l2": 0.1, **change}
    features, labels = arguments.pop("features"), arguments.pop("labels")
    # Where the sizes disagree, the shape annotations of a checked run refuse first.
    with pytest.raises(Exception, match=message) as error:
        fit_linear_probe(features, labels, **arguments)
    assert isinstance(error.value, ValueError) or "TypeCheckError" in type(error.value).__name__


def test_an_empty_grid_is_refused():
    x, y = problem()
    with pytest.raises(ValueError, match="grid is empty"):
        choose_l2(x, y, x, y, num_classes=3, grid=())
