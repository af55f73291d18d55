"""AdaZeta's number of queries."""

import math

import pytest

from zojax.schedules import adaptive_queries


def test_follows_the_formula_epoch_by_epoch():
    queries = adaptive_queries(alpha=0.85, beta=0.5, max_queries=6, steps_per_epoch=10)
    for step in range(0, 1000, 7):
        epoch = step // 10 + 1
        assert queries(step) == min(max(math.floor(0.85 * math.sqrt(epoch)), 1), 6)


def test_grows_from_one_to_its_bound_and_stays_there():
    queries = adaptive_queries(alpha=1.0, beta=1.0, max_queries=4, steps_per_epoch=2)
    assert [queries(step) for step in range(12)] == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 4, 4]
    assert all(isinstance(queries(step), int) for step in range(3))


def test_the_documented_exponent_reaches_the_bound_in_the_last_epoch():
    epochs, bound, alpha = 30, 20, 0.85
    # A shade above, since floor would turn a product of 19.999999 into 19.
    beta = math.log(bound / alpha) / math.log(epochs) + 1e-9
    queries = adaptive_queries(alpha=alpha, beta=beta, max_queries=bound)
    assert queries(epochs - 1) == bound
    assert queries(epochs - 2) < bound


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_queries": 0}, "max_queries: 0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch: 0"),
        ({"alpha": 0.0}, r"alpha: 0\.0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        adaptive_queries(**options)
