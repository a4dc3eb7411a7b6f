"""Data needed to reach another method's best: the crossing by hand, and its interval where the answer is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmark.analysis.data_scale import Curve, _figure, joint_draws, needed, users_to_reach


def test_the_crossing_is_linear_in_the_logarithm_of_users():
    users = np.array([10.0, 100.0, 1000.0])
    means = np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0.3, 0.1, 0.4]])
    found = users_to_reach(users, means, np.array([0.25, 0.05, 0.35, 0.2]))
    assert found[:2] == pytest.approx([100 * 10**0.5, 10])
    assert np.isinf(found[2])
    assert found[3] == 10  # at the target from the start


def test_the_first_of_several_crossings_counts():
    means = np.array([[0.1, 0.3, 0.1, 0.3]])
    assert users_to_reach(np.array([1.0, 10.0, 100.0, 1000.0]), means, np.array([0.2]))[0] == pytest.approx(10**0.5)


def test_draws_have_the_means_and_the_covariance_of_the_points():
    random = np.random.default_rng(3)
    values = random.multivariate_normal([0.2, 0.5], [[0.04, 0.03], [0.03, 0.05]], size=4000).T
    draws = joint_draws([Curve("a", np.array([1.0, 2.0]), values)])
    np.testing.assert_allclose(draws.mean(0), values.mean(1), atol=3e-4)
    np.testing.assert_allclose(np.cov(draws.T), np.cov(values) / 4000, rtol=0.1)


def test_the_interval_covers_the_true_number_of_users():
    """A method whose curve is 0.1 per factor of ten, against a best of 0.35: 100 x sqrt(10) users, 95 times in 100."""
    random, users, covered = np.random.default_rng(5), np.array([10.0, 100.0, 1000.0]), 0
    for _ in range(60):
        own = random.random(400)  # what a user is like goes into all points
        text = np.stack([(0.5 * own + 0.5 * random.random(400) < p).astype(float) for p in (0.3, 0.4, 0.5)])
        text += np.array([0.2, 0.3, 0.4])[:, None] - np.array([[2 * p * p] for p in (0.3, 0.4, 0.5)])
        ids = np.stack([(random.random(400) < p).astype(float) for p in (0.05, 0.1, 0.35)])
        result = needed([Curve("ids", users, ids), Curve("text", users, text)], "ids", "recall@5")[0]
        covered += result.low <= 100 * 10**0.5 <= result.high
    assert covered >= 52


def test_the_axis_names_the_numbers_of_users():
    """As numbers that a person reads, also where the style sets no mathematics."""
    block = SimpleNamespace(block=SimpleNamespace(title="small"))
    plan = SimpleNamespace(name="figure3", file=SimpleNamespace(title="scale"), blocks=[block])
    users, random = np.array([117.9, 471.5, 943.0]), np.random.default_rng(1)
    curves = [Curve(name, users, random.random((3, 50))) for name in ("HSTU", "HLLM")]
    drawing = _figure(plan, {"recall@5": curves}, needed(curves, "HSTU", "recall@5"))
    (axes,) = drawing.figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["118", "472", "943"]
    assert "R@5: HLLM needs" in drawing.description
