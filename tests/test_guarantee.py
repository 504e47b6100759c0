"""The whole road of a promise: private training, attack, interval, bound. A broken mechanism must fail it."""

import numpy as np
import pytest

from genlib import attacks, audit, bank, membership, metrics, networks, privacy

N, D, MODELS = 60, 300, 40


def rates(fault):
    """TPR of LiRA at two false positive rates, overall and in two groups, on patients that can only be memorized."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(N, D)).astype(np.float32), rng.integers(0, 2, N)
    model, promise = networks.softmax(D, 2, learning_rate=0.5, momentum=0.9), privacy.Privacy(1.0)
    members = membership.bernoulli(N, MODELS, seed=0)
    how = {"epochs": 40, "batch_size": None, "seed": 0, "privacy": promise, "n": N // 2, "progress": False}
    logits = bank.train(model, x, labels, members, fault=fault and audit.FAULTS[fault], **how).logits
    scores = attacks.lira(logits, labels, members, variance="pooled")
    table = metrics.attack_table(scores, members, labels, n_bootstrap=300)
    sigma = promise.mechanism(N // 2, epochs=40).noise_multiplier
    return table, {fpr: float(privacy.trade_off(fpr, sigma, 40)) for fpr in (0.1, 0.01)}


def above(table, bounds):
    rows = table[table["metric"].isin([f"TPR at FPR {fpr:g}" for fpr in bounds])].dropna(subset="estimate")
    limit = rows["metric"].map({f"TPR at FPR {fpr:g}": bound for fpr, bound in bounds.items()})
    return rows[metrics.bonferroni_low(rows) > limit]


def test_no_rate_lies_above_the_bound_of_the_promise():
    assert above(*rates(fault=None)).empty


@pytest.mark.parametrize("fault", ["no noise", "noise divided twice"])
def test_a_broken_mechanism_lies_above_it(fault):
    assert "all" in set(above(*rates(fault))["group"])
