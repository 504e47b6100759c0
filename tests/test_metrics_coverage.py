"""Do the intervals hold the truth, on simulated attacks that look like the real one?

LiRA scores of 64 networks on tcga-brca were taken apart into effects: how far each patient's signal moves when it is a
member (very unlike between patients), how much the answers for one patient vary, and what a twin pair shares.
"""

import numpy as np
import pytest

from genlib import metrics

SHARES = [0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1]
# Distance of a patient's signal inside and outside, at the quantiles above: the square root of the gap between its mean
# scores. Spread of an answer inside and outside, and of a pair, in the same units; by moments.
EFFECTS = {
    "all": {
        "n": 769, "n_pairs": 8, "inside": 0.41, "outside": 1.75, "pair": 0.08,
        "distance": [0, 0, 0.12, 0.49, 1.24, 2.68, 4.31, 5.44, 10.65],
    },
    "Normal-like": {
        "n": 34, "n_pairs": 32, "inside": 0.26, "outside": 1.67, "pair": 0.29,
        "distance": [1.32, 1.84, 2.13, 2.88, 4.79, 5.7, 7.35, 8.07, 10.65],
    },
}  # fmt: skip
RUNS = 250


def simulate(rng, effects, n, n_pairs):
    """Scores and members of twin pairs: LiRA's own form d (signal) - d^2 / 2, with a signal around d or 0."""
    distance = np.interp(rng.random(n), SHARES, effects["distance"])
    first = rng.random((n_pairs, n)) < 0.5
    members = np.stack([first, ~first], axis=1).reshape(2 * n_pairs, n)
    spread = np.where(members, effects["inside"], effects["outside"])
    pair = np.repeat(rng.normal(0, effects["pair"], n_pairs), 2)[:, None]
    signal = distance * members + spread * rng.normal(size=members.shape) + pair
    return distance * signal - distance**2 / 2 + 1e-6 * rng.normal(size=members.shape), members


def held(tables, truth):
    """Share of the tables, of those that measure it, whose interval holds each true value."""
    found = {}
    for name, value in truth.items():
        low, high = np.array([table.loc[name, ["low", "high"]] for table in tables], float).T
        measured = np.isfinite(low)
        assert measured.mean() > 0.9 and (low < high)[measured].all()
        found[name] = np.mean((low <= value) & (value <= high), where=measured)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("group", EFFECTS)
def test_intervals_hold_the_truth_in_95_of_100_studies_like_ours_and_not_in_all(group):
    effects = EFFECTS[group]
    scores, members = simulate(np.random.default_rng(1), effects, n=20_000, n_pairs=100)
    truth = {"AUC": metrics.auc(scores, members), "TPR at FPR 0.01": metrics.tpr_at_fpr(scores, members, 0.01)}
    tables = []
    for run in range(RUNS):
        scores, members = simulate(np.random.default_rng([2, run]), effects, effects["n"], effects["n_pairs"])
        tables.append(metrics.attack_table(scores, members, n_bootstrap=200, seed=run).set_index("metric"))
    found = held(tables, truth)
    assert min(found.values()) >= 0.93 and max(found.values()) <= 0.99


def cohort(rng, n, n_rare, n_pairs):
    """Scores and members of a cohort with a rare class behind the others, and who is in it."""
    parts = [simulate(rng, EFFECTS[g], size, n_pairs) for g, size in (("all", n - n_rare), ("Normal-like", n_rare))]
    return *(np.hstack(part) for part in zip(*parts, strict=True)), np.arange(n) >= n - n_rare


@pytest.mark.slow
def test_rates_of_a_rare_class_hold_the_truth_at_the_threshold_of_all():
    scores, members, rare = cohort(np.random.default_rng(3), 20_000, 2300, n_pairs=50)
    truth = {}
    for limit in metrics.FPR_LEVELS:
        found = scores > np.quantile(scores[~members], 1 - limit)
        for rate, kind in (("TPR", members), ("FPR", ~members)):
            truth[f"{rate} at the global threshold, FPR {limit:g}"] = found[kind & rare].mean()
    tables = []
    for run in range(RUNS):
        scores, members, rare = cohort(np.random.default_rng([4, run]), 400, 46, n_pairs=16)
        table = metrics.attack_table(scores, members, rare.astype(int), n_bootstrap=100, seed=run)
        tables.append(table[table["group"] == "1"].set_index("metric"))
    assert min(held(tables, truth).values()) >= 0.93
