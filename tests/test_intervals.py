"""Intervals: by hand, against scipy, and whether they cover what they say they cover."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from trainer import intervals
from trainer.intervals import FEWEST_GROUPS, LEVEL, Estimate, estimate_means, resampled_means


def test_a_resample_of_groups_by_hand():
    """Two groups, (1, 2, 3) and (10): a resample holds the first twice, one of each, or the second twice."""
    values, groups = np.array([[1.0], [2], [3], [10]]), np.array([0, 0, 0, 7])
    means = resampled_means(values, groups)
    possible, counts = np.unique(means, return_counts=True)
    assert possible.tolist() == [2, 4, 10]  # (1 + 2 + 3 + 10) / 4 for one of each
    np.testing.assert_allclose(counts / len(means), [0.25, 0.5, 0.25], atol=0.02)


def test_questions_drawn_one_by_one_as_scipy_draws_them():
    values = np.random.default_rng(1).beta(0.3, 0.5, size=400)
    found = estimate_means({"x": values}, np.arange(400))["x"]
    theirs = bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=0).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert found.interval == pytest.approx((theirs.low, theirs.high), abs=0.002)


def test_all_columns_see_the_same_draws():
    """A column and itself plus a constant differ by that constant in every resample: the comparison is paired."""
    values = np.random.default_rng(2).random(60)
    means = resampled_means(np.column_stack([values, values + 0.25]), np.repeat(np.arange(12), 5))
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 0.25)
    assert means[:, 0].std() > 0.01


def test_draws_depend_on_the_seed_alone(monkeypatch):
    values, groups = np.random.default_rng(3).random((50, 2)), np.arange(50) // 5
    whole = resampled_means(values, groups, seed=4)
    assert not np.array_equal(whole, resampled_means(values, groups, seed=5))
    monkeypatch.setattr(intervals, "_BLOCK", 95)  # nine resamples at a time
    np.testing.assert_allclose(resampled_means(values, groups, seed=4), whole)


def test_groups_may_have_any_names():
    values = np.random.default_rng(6).random((30, 1))
    numbered, named = np.repeat(np.arange(10), 3), np.repeat(list("bcdefghijk"), 3)
    assert np.array_equal(resampled_means(values, numbered), resampled_means(values, named))


def test_articles_give_honest_intervals_where_questions_do_not():
    """40 articles of 25 questions; half of what varies is the article. 400 such worlds, whose true mean is 0."""
    generator = np.random.default_rng(7)
    articles = np.repeat(np.arange(40), 25)
    worlds = generator.normal(size=(40, 400))[articles] + generator.normal(size=(1000, 400))
    tail = (1 - LEVEL) / 2

    def covered(groups: np.ndarray) -> float:
        low, high = np.quantile(resampled_means(worlds, groups, resamples=1000), [tail, 1 - tail], axis=0)
        return float(((low <= 0) & (high >= 0)).mean())

    assert 0.91 < covered(articles) < 0.97  # a little below .95 with as few as 40 articles, as is known of it
    assert covered(np.arange(1000)) < 0.5


def test_too_few_groups_give_no_interval():
    values = np.ones(60)
    few, enough = (estimate_means({"x": values}, np.arange(60) % n)["x"] for n in (FEWEST_GROUPS - 1, FEWEST_GROUPS))
    assert few == Estimate(1.0, (None, None)) and few.margin is None and few.sign == 0
    assert enough.interval == (1, 1) and enough.margin == 0 and enough.sign == 1
    assert estimate_means({}, np.arange(60)) == {}


@pytest.mark.parametrize(
    ("interval", "sign"), [((0.1, 0.2), 1), ((-0.2, -0.1), -1), ((-0.1, 0.2), 0), ((0.0, 0.2), 0), ((0.0, 0.0), 0)]
)
def test_a_sign_is_claimed_only_outside_of_zero(interval, sign):
    assert Estimate(0.1, interval).sign == sign


def test_the_margin_is_half_the_width():
    assert Estimate(0.5, (0.25, 0.625)).margin == 0.1875
