import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import norm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from genlib import membership, metrics

SMALL = {"max_examples": 60, "deadline": None}


@st.composite
def tied_scores(draw):
    n = draw(st.integers(2, 40))
    scores = draw(st.lists(st.integers(-4, 4), min_size=n, max_size=n))
    members = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    members[0], members[1] = True, False
    return np.array(scores, float), np.array(members)


def twins(rng, n_pairs, n, distance=1.0, patient=0.0, pair=0.0):
    """Gaussian scores with effects that a patient shares over models and a pair over patients."""
    half = rng.random((n_pairs, n)) < 0.5
    members = np.stack([half, ~half], axis=1).reshape(2 * n_pairs, n)
    scores = distance * members + rng.normal(size=members.shape)
    scores += patient * rng.normal(size=n) + pair * np.repeat(rng.normal(size=(n_pairs, 1)), 2, axis=0)
    return scores, members


def by_metric(table, group="all"):
    return table[table["group"] == group].set_index("metric")


def naive_tpr(scores, members, level):
    best = 0.0
    for threshold in np.unique(scores):
        named = scores >= threshold
        if named[~members].mean() <= level:
            best = max(best, named[members].mean())
    return best


# --- ROC, AUC, TPR at FPR -------------------------------------------------------------------------------------------


@settings(**SMALL)
@given(tied_scores())
def test_roc_is_that_of_scikit_learn_also_with_ties(case):
    scores, members = case
    fpr, tpr, thresholds = metrics.roc(scores, members)
    expected = sklearn.metrics.roc_curve(members, scores, drop_intermediate=False)
    np.testing.assert_allclose(fpr, expected[0])
    np.testing.assert_allclose(tpr, expected[1])
    np.testing.assert_array_equal(thresholds[1:], expected[2][1:])


@settings(**SMALL)
@given(tied_scores())
def test_auc_is_that_of_scikit_learn_also_with_ties(case):
    scores, members = case
    assert metrics.auc(scores, members) == pytest.approx(sklearn.metrics.roc_auc_score(members, scores))


@settings(**SMALL)
@given(tied_scores(), st.sampled_from([0.001, 0.01, 0.1, 0.25, 1 / 3, 0.5, 1.0]))
def test_tpr_at_fpr_is_the_best_of_all_thresholds_within_the_level(case, level):
    scores, members = case
    assert metrics.tpr_at_fpr(scores, members, level) == naive_tpr(scores, members, level + 1e-12)


def test_tpr_at_fpr_does_not_interpolate():
    scores, members = np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False])
    assert metrics.tpr_at_fpr(scores, members, fpr=0.49) == 0.5
    assert metrics.tpr_at_fpr(scores, members, fpr=0.5) == 1.0


def test_one_percent_of_300_lets_three_false_positives_pass():
    members = np.arange(400) < 100
    scores = np.where(members, 0.0, -1.0)
    scores[100:103] = 1.0
    assert metrics.tpr_at_fpr(scores, members, fpr=0.01) == 1.0


def test_a_score_of_nan_is_left_out():
    rng = np.random.default_rng(0)
    scores, members = rng.normal(size=60), rng.random(60) < 0.5
    holes = scores.copy()
    holes[::3] = np.nan
    kept = ~np.isnan(holes)
    assert metrics.auc(holes, members) == metrics.auc(scores[kept], members[kept])
    assert metrics.tpr_at_fpr(holes, members, 0.1) == metrics.tpr_at_fpr(scores[kept], members[kept], 0.1)


@pytest.mark.parametrize("distance", [0.0, 0.5, 2.0])
def test_gaussian_scores_give_the_textbook_auc_and_rates(distance):
    rng = np.random.default_rng(1)
    members = np.arange(400_000) % 2 == 0
    scores = rng.normal(size=members.size) + distance * members
    assert metrics.auc(scores, members) == pytest.approx(norm.cdf(distance / np.sqrt(2)), abs=0.003)
    for fpr in metrics.FPR_LEVELS:
        expected = norm.cdf(distance + norm.ppf(fpr))
        assert metrics.tpr_at_fpr(scores, members, fpr) == pytest.approx(expected, abs=0.02)


def test_the_intervals_hold_the_textbook_auc_and_rates():
    scores, members = twins(np.random.default_rng(2), n_pairs=4, n=500)
    table = by_metric(metrics.attack_table(scores, members, n_bootstrap=200))
    truth = {"AUC": norm.cdf(1 / np.sqrt(2))}
    truth |= {f"TPR at FPR {f:g}": norm.cdf(1 + norm.ppf(f)) for f in (0.1, 0.01)}
    for name, value in truth.items():
        assert table.loc[name, "low"] < value < table.loc[name, "high"]


# --- attack_table: estimates ----------------------------------------------------------------------------------------


def test_the_table_estimates_what_the_simple_functions_do():
    scores, members = twins(np.random.default_rng(3), n_pairs=3, n=300)
    scores[:, ::7] = np.nan
    table = by_metric(metrics.attack_table(scores, members, n_bootstrap=20))
    fpr, tpr, _ = metrics.roc(scores, members)
    assert table.loc["AUC", "estimate"] == pytest.approx(metrics.auc(scores, members))
    assert table.loc["advantage", "estimate"] == pytest.approx((tpr - fpr).max())
    for level in (0.1, 0.01):
        assert table.loc[f"TPR at FPR {level:g}", "estimate"] == metrics.tpr_at_fpr(scores, members, level)
    assert set(table["n_models"]) == {6}
    assert set(table["n_patients"]) == {(~np.isnan(scores[0])).sum()}


@settings(max_examples=30, deadline=None)
@given(tied_scores())
def test_advantage_is_the_largest_gap_over_all_thresholds(case):
    scores, members = case
    table = by_metric(metrics.attack_table(scores[None], members[None], n_bootstrap=2))
    gaps = [(scores >= t)[members].mean() - (scores >= t)[~members].mean() for t in np.unique(scores)]
    assert table.loc["advantage", "estimate"] == pytest.approx(max(0.0, *gaps))


@pytest.mark.parametrize("transform", [np.exp, np.cbrt, lambda s: 5 * s - 3, lambda s: s.argsort().argsort() * 1.0])
def test_a_monotone_transform_of_the_scores_changes_nothing(transform):
    rng = np.random.default_rng(4)
    scores, members = rng.normal(size=200), rng.random(200) < 0.5
    assert metrics.auc(transform(scores), members) == metrics.auc(scores, members)


@pytest.mark.parametrize("what", ["patients", "pairs"])
def test_the_order_of_patients_and_of_pairs_changes_no_estimate(what):
    rng = np.random.default_rng(5)
    scores, members = twins(rng, n_pairs=4, n=120)
    groups = np.arange(120) % 3
    before = metrics.attack_table(scores, members, groups, n_bootstrap=5)
    if what == "patients":
        order = rng.permutation(120)
        scores, members, groups = scores[:, order], members[:, order], groups[order]
    else:
        rows = (2 * rng.permutation(4)[:, None] + [0, 1]).ravel()
        scores, members = scores[rows], members[rows]
    after = metrics.attack_table(scores, members, groups, n_bootstrap=5)
    np.testing.assert_allclose(after["estimate"], before["estimate"])


def test_ppv_is_what_a_count_of_candidates_gives():
    scores, members = twins(np.random.default_rng(6), n_pairs=4, n=400, distance=1.5)
    table = by_metric(metrics.attack_table(scores, members, n_bootstrap=20))
    tpr = table.loc["TPR at FPR 0.01", "estimate"]
    for prior in metrics.PRIORS:
        found, wrong = tpr * prior * 1e6, 0.01 * (1 - prior) * 1e6
        row = table.loc[f"PPV at prior {prior:g}, FPR 0.01"]
        assert row["estimate"] == pytest.approx(found / (found + wrong))
        assert row["low"] <= row["estimate"] <= row["high"]


# --- attack_table: groups -------------------------------------------------------------------------------------------


@pytest.fixture
def grouped():
    rng = np.random.default_rng(7)
    scores, members = twins(rng, n_pairs=3, n=300)
    groups = rng.integers(0, 2, 300)
    scores += 0.8 * groups
    names = ["first", "second"]
    return scores, members, groups, metrics.attack_table(scores, members, groups, names, n_bootstrap=30)


@pytest.mark.parametrize("k", [0, 1])
def test_a_group_has_its_own_threshold(grouped, k):
    scores, members, groups, table = grouped
    rows = by_metric(table, ["first", "second"][k])
    alone = scores[:, groups == k], members[:, groups == k]
    assert rows.loc["TPR at FPR 0.1", "estimate"] == metrics.tpr_at_fpr(*alone, 0.1)
    assert rows.loc["AUC", "estimate"] == pytest.approx(metrics.auc(*alone))
    assert rows.loc["AUC", "n_patients"] == (groups == k).sum()


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("level", [0.1, 0.01])
def test_a_group_is_also_judged_at_the_one_global_threshold(grouped, k, level):
    scores, members, groups, table = grouped
    rows = by_metric(table, ["first", "second"][k])
    threshold = min(t for t in np.unique(scores) if (scores >= t)[~members].mean() <= level)
    named, mine = scores >= threshold, np.broadcast_to(groups == k, scores.shape)
    for name, kind in (("TPR", members), ("FPR", ~members)):
        row = rows.loc[f"{name} at the global threshold, FPR {level:g}"]
        assert row["estimate"] == pytest.approx(named[kind & mine].mean())
        assert row["low"] <= row["estimate"] <= row["high"]


def test_group_rates_weighted_by_answers_make_the_overall_rate(grouped):
    scores, members, groups, table = grouped
    rates = [by_metric(table, g).loc["FPR at the global threshold, FPR 0.1", "estimate"] for g in ("first", "second")]
    counts = [(~members)[:, groups == k].sum() for k in (0, 1)]
    overall = np.average(rates, weights=counts)
    allowed = int(0.1 * (~members).sum())
    assert overall == pytest.approx(allowed / (~members).sum())


def test_a_group_without_members_is_passed_over():
    scores, members = twins(np.random.default_rng(8), n_pairs=1, n=40)
    scores[:, 0] = np.nan
    groups = np.r_[7, np.zeros(39, int)]
    assert set(metrics.attack_table(scores, members, groups, n_bootstrap=5)["group"]) == {"all", "0"}


# --- attack_table: what cannot be measured ---------------------------------------------------------------------------


def test_a_rate_with_fewer_than_five_false_positives_allowed_is_withdrawn():
    scores, members = twins(np.random.default_rng(9), n_pairs=2, n=49)  # 98 non-members: 9 and 0 allowed
    table = by_metric(metrics.attack_table(scores, members, n_bootstrap=10))
    row = table.loc["TPR at FPR 0.01"]
    assert row["false_positives"] == 0
    assert np.isnan([row["estimate"], row["low"], row["high"]]).all()
    assert np.isnan(table.loc["PPV at prior 0.5, FPR 0.01", "estimate"])
    assert np.isfinite(table.loc["TPR at FPR 0.1", "estimate"])


def test_a_rate_whose_false_positives_are_few_patients_is_withdrawn():
    rng = np.random.default_rng(10)
    members = np.tile([[True] * 50 + [False] * 50, [False] * 50 + [True] * 50], (10, 1))
    scores = rng.random((20, 100))
    scores[:, [0, 99]] += 10 * ~members[:, [0, 99]]  # two patients draw all of the attacker's mistakes
    scores[:, 1:99] += members[:, 1:99]
    row = by_metric(metrics.attack_table(scores, members, n_bootstrap=10)).loc["TPR at FPR 0.01"]
    assert row["false_positives"] == 10 and row["false_positive_patients"] == 2
    assert np.isnan(row["estimate"])


def test_false_positives_and_their_patients_are_counted():
    scores, members = twins(np.random.default_rng(11), n_pairs=3, n=200, patient=1.0)
    row = by_metric(metrics.attack_table(scores, members, n_bootstrap=10)).loc["TPR at FPR 0.1"]
    threshold = min(t for t in np.unique(scores) if (scores >= t)[~members].mean() <= 0.1)
    wrong = (scores >= threshold) & ~members
    assert row["false_positives"] == wrong.sum()
    assert row["false_positive_patients"] == wrong.any(axis=0).sum()


@pytest.mark.parametrize("value", [True, False])
def test_members_alone_or_non_members_alone_are_an_error(value):
    members = np.full((2, 4), value)
    with pytest.raises(ValueError, match="members and non-members; there are [08] and [08] with a score"):
        metrics.attack_table(np.zeros((2, 4)), members)
    with pytest.raises(ValueError, match="with a score"):
        metrics.roc(np.zeros(4), members[0])


def test_scores_and_members_of_other_shapes_are_an_error():
    with pytest.raises(ValueError, match=r"shapes disagree: scores \(2, 4\), members \(2, 5\)"):
        metrics.attack_table(np.zeros((2, 4)), np.zeros((2, 5), bool))


# --- attack_table: intervals ----------------------------------------------------------------------------------------


def test_the_draws_are_of_patients_of_whole_twin_pairs_and_of_pairs_patient_by_patient():
    drawn = metrics._draws(0, 40, 6, 30)
    data, product, own = drawn[0], drawn[1:41], drawn[41:]
    assert drawn.shape == (1 + 40 + 10, 3, 30) and (data == 1).all()
    patients = product.sum(axis=1) / 3
    assert (patients.sum(axis=1) == 30).all()
    np.testing.assert_allclose(product, patients[:, None] * product.sum(axis=2, keepdims=True) / 30)
    assert (own.sum(axis=1) == 3).all() and len(np.unique(own[0], axis=1).T) > 3


@pytest.mark.parametrize("grain", [0.5, 1e-9])
@pytest.mark.parametrize("n_models", [5, 6])
def test_every_draw_gives_what_its_patients_and_pairs_give_one_by_one(grain, n_models):
    scores, members = twins(np.random.default_rng(18), n_pairs=3, n=40)
    scores, members = np.round(scores / grain)[:n_models], members[:n_models]
    scores[::2, ::5] = np.nan
    mine = np.where(np.arange(40) < 25, scores, np.nan)
    drawn = metrics._draws(19, 40, n_models, 40)
    kinds = [metrics._Answers(scores, members), metrics._Answers(mine, members)]
    for values, kept in zip(metrics._measure(kinds, drawn), (scores, mine), strict=True):
        for b, weights in enumerate(np.repeat(drawn, 2, axis=1)[:, :n_models]):
            answers = np.repeat(kept.ravel(), weights.ravel()), np.repeat(members.ravel(), weights.ravel())
            fpr, tpr, _ = metrics.roc(*answers)
            assert values["AUC"][b] == pytest.approx(metrics.auc(*answers))
            assert values["advantage"][b] == pytest.approx((tpr - fpr).max())
            assert values["TPR"][b].tolist() == [metrics.tpr_at_fpr(*answers, limit) for limit in metrics.FPR_LEVELS]


@pytest.mark.parametrize("change", ["one thread", "three threads", "small chunks"])
def test_neither_threads_nor_chunks_change_anything(monkeypatch, change):
    scores, members = twins(np.random.default_rng(13), n_pairs=2, n=60)
    usual = metrics.attack_table(scores, members, np.arange(60) % 2, n_bootstrap=40)
    monkeypatch.setattr(metrics, "CHUNK", 700)
    if change != "small chunks":
        monkeypatch.setattr(
            metrics.os, "sched_getaffinity", lambda process: range(3 if change.startswith("three") else 1)
        )
    pd.testing.assert_frame_equal(metrics.attack_table(scores, members, np.arange(60) % 2, n_bootstrap=40), usual)


@pytest.mark.parametrize("patient, pair, noise", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0.5, 1)])
def test_the_variance_is_that_of_patients_pairs_and_single_answers_each_counted_once(patient, pair, noise):
    rng, n, n_pairs = np.random.default_rng(24), 60, 20
    effects = patient * rng.normal(size=n) + pair * rng.normal(size=(n_pairs, 1))
    values = effects + noise * rng.normal(size=(n_pairs, n))
    weights = metrics._draws(0, 2000, 2 * n_pairs, n)
    means = (weights * values).sum(axis=(1, 2)) / (n * n_pairs)
    by_patient, by_pair = values.mean(axis=0).var() / n, values.mean(axis=1).var() / n_pairs
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    # Means over patients hold the chance of single answers once already, and so do those over pairs.
    expected = by_patient + by_pair - rest.var() / (n * n_pairs)
    assert metrics._spread(means)[1] == pytest.approx(expected, rel=0.2)


def test_one_seed_gives_one_table_and_another_gives_another():
    scores, members = twins(np.random.default_rng(14), n_pairs=2, n=60)
    low = [metrics.attack_table(scores, members, n_bootstrap=40, seed=s).loc[0, "low"] for s in (0, 0, 1)]
    assert low[0] == low[1] != low[2]


def test_a_higher_level_gives_a_wider_interval():
    scores, members = twins(np.random.default_rng(15), n_pairs=2, n=60)
    narrow, wide = (metrics.attack_table(scores, members, level=v).dropna() for v in (0.8, 0.99))
    assert (wide["low"] <= narrow["low"]).all() and (narrow["high"] <= wide["high"]).all()
    assert (wide["high"] - wide["low"] > narrow["high"] - narrow["low"]).all()


def test_no_rate_is_sure_where_none_or_all_are_found():
    members = np.tile([[True, False], [False, True]], (2, 100))  # 200 patients, in two pairs
    groups = np.r_[np.zeros(166, int), np.ones(34, int)]
    scores = np.random.default_rng(25).random(members.shape)
    everyone = metrics.attack_table(scores + members, members, groups, n_bootstrap=50)
    scores[:, groups == 1] -= 1  # nobody of the second group is ever named
    nobody = metrics.attack_table(scores, members, groups, n_bootstrap=50).query("group == '1'").set_index("metric")
    rates = everyone[everyone["metric"] != "advantage"].dropna(subset="estimate")
    assert (rates["low"] < rates["high"]).all()
    row = everyone.set_index(["group", "metric"]).loc["1", "TPR at FPR 0.1"]
    assert row[["estimate", "low", "high"]].tolist() == pytest.approx([1, 0.025 ** (1 / 34), 1])
    for rate in ("TPR", "FPR"):
        row = nobody.loc[f"{rate} at the global threshold, FPR 0.1"]
        assert row[["estimate", "low", "high"]].tolist() == pytest.approx([0, 0, 1 - 0.025 ** (1 / 34)])


@pytest.mark.parametrize("trials, tail", [(1, 0.025), (7, 0.05), (120, 0.025), (400, 0.0005)])
def test_clopper_pearson_is_that_of_statsmodels(trials, tail):
    successes = np.arange(trials + 1)
    expected = proportion_confint(successes, trials, 2 * tail, method="beta")
    np.testing.assert_allclose(metrics.clopper_pearson(successes, trials, tail), expected, rtol=1e-9)


def test_an_attack_that_finds_nobody_has_no_advantage_within_its_interval():
    # The largest of many gaps is above 0 by chance alone, in the data and more so in every bootstrap draw.
    holds = []
    for run in range(30):
        scores, members = twins(np.random.default_rng([17, run]), n_pairs=4, n=60, distance=0.0)
        row = by_metric(metrics.attack_table(scores, members, n_bootstrap=100, seed=run)).loc["advantage"]
        holds.append(row["low"] <= 0.0)
    assert np.mean(holds) >= 0.8


# --- utility_table --------------------------------------------------------------------------------------------------


@pytest.fixture
def classified():
    rng = np.random.default_rng(20)
    labels = rng.choice(3, 90, p=[0.6, 0.3, 0.1])
    logits = rng.normal(size=(4, 90, 3)) + 1.5 * np.eye(3)[labels]
    return logits, labels, membership.bernoulli(90, 4, seed=0)


def flat(logits, labels, judged):
    """Answers that count, one a row: (predicted, true, probabilities)."""
    probability = softmax(logits, axis=2)[judged]
    return probability.argmax(axis=1), np.broadcast_to(labels, judged.shape)[judged], probability


def utility(*arguments, **options):
    return metrics.utility_table(*arguments, **options).set_index(["group", "metric"])["estimate"]


@pytest.mark.parametrize("everybody", [True, False])
def test_utility_is_that_of_scikit_learn(classified, everybody):
    logits, labels, judged = classified
    judged = np.ones_like(judged) if everybody else judged
    found = utility(logits, labels, judged, ["a", "b", "c"])
    predicted, true, _ = flat(logits, labels, judged)
    assert found["all", "accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(true, predicted))
    expected = sklearn.metrics.balanced_accuracy_score(true, predicted)
    assert found["all", "balanced accuracy"] == pytest.approx(expected)
    for name, recall in zip("abc", sklearn.metrics.recall_score(true, predicted, average=None), strict=True):
        assert found[name, "recall"] == pytest.approx(recall)


@pytest.mark.parametrize("everybody", [True, False])
def test_brier_score_and_calibration_error_are_those_of_a_naive_count(classified, everybody):
    logits, labels, judged = classified
    judged = np.ones_like(judged) if everybody else judged
    found = utility(logits, labels, judged)
    predicted, true, probability = flat(logits, labels, judged)
    brier = np.mean([sum((p - (np.arange(3) == k)) ** 2) for p, k in zip(probability, true, strict=True)])
    assert found["all", "Brier score"] == pytest.approx(brier, rel=1e-5)
    confidence, error = probability.max(axis=1), 0.0
    for edge in range(10):
        inside = (confidence >= edge / 10) & ((confidence < (edge + 1) / 10) | (edge == 9))
        if inside.any():
            error += inside.mean() * abs((predicted == true)[inside].mean() - confidence[inside].mean())
    assert found["all", "calibration error"] == pytest.approx(error, rel=1e-4)


def test_brier_score_of_two_classes_is_twice_that_of_scikit_learn():
    rng = np.random.default_rng(21)
    labels, logits = rng.integers(0, 2, 50), rng.normal(size=(1, 50, 2))
    found = utility(logits, labels, np.ones((1, 50), bool))
    expected = sklearn.metrics.brier_score_loss(labels, softmax(logits[0], axis=1)[:, 1])
    assert found["all", "Brier score"] == pytest.approx(2 * expected, rel=1e-5)


def test_a_perfect_classifier_has_perfect_numbers():
    labels = np.arange(60) % 3
    found = metrics.utility_table(np.tile(50.0 * np.eye(3)[labels], (2, 1, 1)), labels, np.ones((2, 60), bool))
    good = found["metric"].isin(["accuracy", "balanced accuracy", "recall"])
    np.testing.assert_allclose(found.loc[good, ["estimate", "high"]], 1.0)
    np.testing.assert_allclose(found.loc[~good, ["estimate", "low"]], 0.0, atol=1e-6)
    assert found.set_index("metric").loc["accuracy", "low"] == pytest.approx(0.025 ** (1 / 60))  # nobody is sure
    assert (found["low"] < found["high"]).all()


def test_a_classifier_that_says_nothing_has_the_numbers_of_chance():
    labels = np.arange(60) % 3
    found = utility(np.zeros((2, 60, 3)), labels, np.ones((2, 60), bool))
    assert found["all", "accuracy"] == pytest.approx(1 / 3)
    assert found["all", "balanced accuracy"] == pytest.approx(1 / 3)
    assert found["all", "Brier score"] == pytest.approx(2 / 3)
    assert found["all", "calibration error"] == pytest.approx(0.0, abs=1e-6)


def test_a_calibrated_classifier_has_no_calibration_error_within_its_interval():
    # Each bin's gap is an absolute value: above 0 by chance, in the data and more so in every bootstrap draw.
    holds = []
    for run in range(30):
        rng = np.random.default_rng([22, run])
        logits = np.repeat(1.5 * rng.normal(size=(1, 200, 2)), 4, axis=0)
        labels = (rng.random(200) < softmax(logits[0], axis=1)[:, 1]).astype(int)
        table = metrics.utility_table(logits, labels, np.ones((4, 200), bool))
        row = table.set_index("metric").loc["calibration error"]
        holds.append(row["low"] <= 0.001 and row["low"] <= row["estimate"] <= row["high"])
    assert np.mean(holds) >= 0.7


def test_a_class_counts_only_the_patients_that_are_judged(classified):
    logits, labels, judged = classified
    judged = judged.copy()
    judged[:, 50:] = False
    table = metrics.utility_table(logits, labels, judged, ["a", "b", "c"])
    counts = table.set_index(["group", "metric"])["n_patients"]
    assert counts["all", "accuracy"] == 50
    assert [counts[name, "recall"] for name in "abc"] == [(labels[:50] == k).sum() for k in range(3)]


def test_the_variance_over_cohorts_is_that_of_a_naive_count():
    # Of patients, and of every two patients that one model judges: what the one adds as a judged patient, and what both
    # say about the model beyond themselves.
    rng = np.random.default_rng(23)
    judged = membership.paired_halves(np.zeros(12, int), 8, seed=0)
    parts = np.where(judged, rng.normal(size=(8, 12)) + 2 * rng.normal(size=(8, 1)), 0.0)
    own = parts.sum(axis=0)
    rest = np.where(judged, parts - own / judged.sum(axis=0), 0.0)
    trained = both = 0.0
    for m in range(8):
        for i in np.flatnonzero(judged[m]):
            trained += 8 * rest[m, i] * sum(rest[m, j] for j in np.flatnonzero(judged[m]) if j != i)
            both += 2 * rest[m, i] * (sum(own[~judged[m]]) - sum(own[judged[m]]))
    assert trained + both > 0
    assert metrics._nested(parts, judged) == pytest.approx((own**2).sum() + 4 / 3 * (trained + both))
    assert metrics._nested(parts[:1], judged[:1]) == pytest.approx((parts[0] ** 2).sum())  # one model tells no more


def centroids(rng, n, n_models, d=30, n_fresh=600):
    """A cohort of three unequal classes, what the nearest centroids of its halves say, and of fresh patients."""
    labels = rng.permutation(np.repeat([0, 1, 2], [0.6 * n, 0.25 * n, 0.15 * n]))
    fresh = rng.choice(3, n_fresh, p=[0.6, 0.25, 0.15])
    x, further = (rng.normal(size=(len(k), d)) + 2 * np.eye(3, d)[k] for k in (labels, fresh))
    members = membership.paired_halves(labels, n_models, seed=int(rng.integers(1000)))
    means = np.array([[x[m & (labels == k)].mean(axis=0) for k in range(3)] for m in members])
    both = (np.einsum("id,mkd->mik", v, means) - (means**2).sum(axis=2)[:, None] / 2 for v in (x, further))
    return *both, labels, fresh, members


def test_utility_intervals_hold_what_other_cohorts_give_though_all_models_share_one():
    tables, fresh_tables = [], []
    for run in range(100):
        logits, further, labels, fresh, members = centroids(np.random.default_rng([26, run]), n=120, n_models=12)
        tables.append(metrics.utility_table(logits, labels, ~members).set_index(["group", "metric"]))
        everybody = np.ones(further.shape[:2], bool)
        fresh_tables.append(metrics.utility_table(further, fresh, everybody).set_index(["group", "metric"])["estimate"])
    truth = pd.concat(fresh_tables, axis=1).mean(axis=1)
    held = pd.concat([(t["low"] <= truth) & (truth <= t["high"]) for t in tables], axis=1).mean(axis=1)
    assert held.drop(("all", "Brier score")).min() >= 0.91 and held["all", "Brier score"] >= 0.85
    spread = pd.concat([t["estimate"] for t in tables], axis=1).std(axis=1)
    width = pd.concat([t["high"] - t["low"] for t in tables], axis=1).mean(axis=1)
    # No wider than it takes, but for the calibration error, of which chance alone may be the most.
    assert (width < 1.4 * 2 * norm.ppf(0.975) * spread)["all"].drop("calibration error").all()


@pytest.mark.parametrize(
    "logits, labels, judged",
    [
        (np.zeros((2, 5, 3)), np.zeros(5, int), np.ones((2, 4), bool)),
        (np.zeros((2, 5, 3)), np.zeros(4, int), np.ones((2, 5), bool)),
        (np.zeros((2, 5, 3)), np.zeros(5, int), np.zeros((2, 5), bool)),
    ],
)
def test_utility_refuses_shapes_that_disagree_and_nobody_judged(logits, labels, judged):
    with pytest.raises(ValueError, match="shapes disagree or nobody is judged"):
        metrics.utility_table(logits, labels, judged)


# --- differences ----------------------------------------------------------------------------------------------------


def shared(run, distances, n=80, n_pairs=4):
    """Scores of two settings that share the patients' effects and half of the noise, and members."""
    rng = np.random.default_rng([27, run])
    common, members = twins(rng, n_pairs, n, distance=0.0, patient=0.5, pair=0.2)
    return [(common + rng.normal(size=members.shape) + distance * members) for distance in distances], members


@pytest.mark.parametrize("distances", [(2.0, 1.5), (1.5, 1.5)])
def test_differences_of_attacks_are_within_their_intervals_as_often_as_they_say(distances):
    size = np.sqrt(2 * (1 + 1 + 0.5**2 + 0.2**2))
    truth = np.subtract(*norm.cdf(np.array(distances) / size))
    held, p_values, apart = [], [], []
    for run in range(120):
        scores, members = shared(run, distances)
        row = by_metric(metrics.attack_difference(*scores, members, n_bootstrap=60, seed=run)).loc["AUC"]
        held.append(row["low"] <= truth <= row["high"])
        p_values.append(row["p_value"])
        rows = [
            by_metric(metrics.attack_table(s, members, n_bootstrap=60, seed=run)).loc["AUC"] for s in scores if truth
        ]
        apart.append(bool(truth) and rows[0]["low"] > rows[1]["high"])
    assert 0.9 <= np.mean(held) <= 0.99
    found = np.mean(np.array(p_values) < 0.05)
    if truth:
        assert found > np.mean(apart) + 0.2  # what overlap of two intervals does not see
    else:
        assert found == pytest.approx(1 - np.mean(held)) and np.mean(p_values) == pytest.approx(0.5, abs=0.1)


def test_a_difference_is_that_of_the_two_tables_in_every_group_and_turns_with_the_order():
    scores, members = shared(0, (2.0, 1.5))
    groups = np.arange(80) % 2
    tables = [metrics.attack_table(s, members, groups, ["a", "b"], 50).set_index(["group", "metric"]) for s in scores]
    there, back = (
        metrics.attack_difference(*pair, members, groups, ["a", "b"], 50).set_index(["group", "metric"])
        for pair in (scores, scores[::-1])
    )
    expected = tables[0]["estimate"] - tables[1]["estimate"]
    pd.testing.assert_series_equal(there["estimate"], expected)
    pd.testing.assert_series_equal(there["low"], -back["high"], check_names=False)
    pd.testing.assert_series_equal(there["p_value"], back["p_value"])
    assert (there["p_value"] < 0.05).equals((there["low"] > 0) | (there["high"] < 0))


def test_differences_of_classifiers_are_within_their_intervals_as_often_as_they_say():
    tables = []
    for run in range(100):
        logits, _, labels, _, members = centroids(np.random.default_rng([28, run]), n=120, n_models=12, n_fresh=1)
        prior = [0.0, -1.0, -2.0]  # the other setting knows that classes differ in size, and says it too strongly
        tables.append(by_metric(metrics.utility_difference(logits + prior, logits, labels, ~members)))
    for name in ("accuracy", "balanced accuracy"):
        estimate, low, high = np.array([t.loc[name, ["estimate", "low", "high"]] for t in tables], float).T
        assert 0.9 <= np.mean((low <= estimate.mean()) & (estimate.mean() <= high)) <= 0.99
        assert np.mean(high - low) < 0.13  # of one of the two alone 0.15 to 0.2


def test_a_setting_does_not_differ_from_itself_and_none_found_twice_proves_little():
    scores, members = shared(1, (2.0,))
    same = by_metric(metrics.attack_difference(scores[0], scores[0], members, n_bootstrap=50))
    assert (same["estimate"].dropna() == 0).all() and (same["p_value"].dropna() == 1).all()
    labels = np.arange(68) % 2
    wrong = np.tile(np.eye(2)[1 - labels], (4, 1, 1))
    row = metrics.utility_difference(wrong, wrong, labels, np.ones((4, 68), bool)).set_index("group").loc["1"]
    assert row[["low", "high"]].tolist() == pytest.approx([-(1 - 0.025 ** (1 / 34)), 1 - 0.025 ** (1 / 34)])


@pytest.mark.parametrize("n", [1, 2, 12, 300])
def test_holm_is_that_of_statsmodels(n):
    p_values = np.random.default_rng(29).random(n).round(2) ** 3  # with ties
    expected = multipletests(p_values, method="holm")[1]
    np.testing.assert_allclose(metrics.holm(p_values), expected)
    holes = metrics.holm([np.nan, *p_values, np.nan])
    np.testing.assert_allclose(holes, [np.nan, *expected, np.nan])


def test_p_values_are_those_of_a_normal_estimate():
    deviations = np.array([-3.0, -1.0, 0.0, 0.5, 2.0])
    table = pd.DataFrame(
        {"estimate": deviations, "low": deviations - norm.ppf(0.975), "high": deviations + norm.ppf(0.975)}
    )
    np.testing.assert_allclose(metrics.p_values(table), 2 * norm.sf(np.abs(deviations)))
    np.testing.assert_allclose(metrics.p_values(table + 1, value=1.0), metrics.p_values(table))
