"""Detections: counts by hand."""

import math

import pytest

from zojax.metrics import Detections, detections, runs


def test_f1_is_the_harmonic_mean():
    found = Detections(hits=6, misses=2, false=4)
    precision, recall = 6 / 10, 6 / 8
    assert found.f1 == pytest.approx(2 * precision * recall / (precision + recall))
    assert Detections(misses=3).f1 == 0
    assert math.isnan(Detections().f1)
    assert Detections(hits=1, misses=2) + Detections(hits=3, false=5) == Detections(hits=4, misses=2, false=5)


@pytest.mark.parametrize(
    ("flags", "least", "want"),
    [("", 1, []), ("1", 1, [(0, 1)]), ("0110111", 1, [(1, 3), (4, 7)]), ("0110111", 3, [(4, 7)]), ("0000", 1, [])],
)
def test_runs(flags, least, want):
    assert runs([flag == "1" for flag in flags], least) == want


@pytest.mark.parametrize(
    ("found", "wanted", "tolerance", "counts"),
    [
        ([], [], 0.0, (0, 0, 0)),
        ([], [(1.0, 2.0)], 0.0, (0, 1, 0)),
        ([(1.0, 2.0)], [], 0.0, (0, 0, 1)),
        ([(1.6, 2.2)], [(1.0, 2.0)], 0.0, (1, 0, 0)),
        ([(2.0, 2.2)], [(1.0, 2.0)], 0.0, (0, 1, 1)),
        ([(2.0, 2.2)], [(1.0, 2.0)], 0.1, (1, 0, 0)),
        ([(0.8, 1.0)], [(1.0, 2.0)], 0.1, (1, 0, 0)),
        # A second alarm for one word is false, and two words need two.
        ([(1.0, 1.2), (1.5, 1.9)], [(1.0, 2.0)], 0.0, (1, 0, 1)),
        ([(1.0, 1.2), (3.5, 3.9)], [(1.0, 2.0), (3.0, 4.0)], 0.0, (2, 0, 0)),
    ],
)
def test_what_is_found_must_be_where_it_is(found, wanted, tolerance, counts):
    got = detections(found, wanted, tolerance=tolerance)
    assert (got.hits, got.misses, got.false) == counts
