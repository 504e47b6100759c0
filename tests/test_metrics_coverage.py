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
RUNS = 1000


def simulate(rng, effects, n, n_pairs):
    """Scores and members of twin pairs: LiRA's own form d (signal) - d^2 / 2, with a signal around d or 0."""
    distance = np.interp(rng.random(n), SHARES, effects["distance"])
    first = rng.random((n_pairs, n)) < 0.5
    members = np.stack([first, ~first], axis=1).reshape(2 * n_pairs, n)
    spread = np.where(members, effects["inside"], effects["outside"])
    pair = np.repeat(rng.normal(0, effects["pair"], n_pairs), 2)[:, None]
    signal = distance * members + spread * rng.normal(size=members.shape) + pair
    return distance * signal - distance**2 / 2 + 1e-6 * rng.normal(size=members.shape), members


@pytest.mark.slow
@pytest.mark.parametrize("group", EFFECTS)
def test_intervals_hold_the_truth_in_93_of_100_studies_like_ours(group, capsys):
    effects = EFFECTS[group]
    scores, members = simulate(np.random.default_rng(1), effects, n=20_000, n_pairs=100)
    truth = {"AUC": metrics.auc(scores, members), "TPR at FPR 0.01": metrics.tpr_at_fpr(scores, members, 0.01)}
    found = {name: [] for name in truth}
    for run in range(RUNS):
        scores, members = simulate(np.random.default_rng([2, run]), effects, effects["n"], effects["n_pairs"])
        table = metrics.attack_table(scores, members, n_bootstrap=200, seed=run).set_index("metric")
        for name in truth:
            found[name].append((table.loc[name, "low"], table.loc[name, "high"]))
    for name, value in truth.items():
        low, high = np.array(found[name]).T
        measured = np.isfinite(low)
        held = np.mean((low <= value) & (value <= high), where=measured)
        with capsys.disabled():
            print(
                f"\n{group}, {name} {value:.3f}: held in {100 * held:.1f} % of {measured.sum()} runs, mean width "
                f"{np.mean(high - low, where=measured):.3f}"
            )
        assert measured.mean() > 0.9
        assert held >= 0.93
