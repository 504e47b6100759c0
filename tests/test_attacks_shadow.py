"""Attacks that use shadow models: parity, laws, known truth, and controls."""

import numpy as np
import pytest
from scipy.stats import norm
from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack import advanced_mia

from genlib import attacks, membership, metrics


def twins(n_models, n, seed=0):
    return membership.bernoulli(n, n_models, seed)


def logits_of(phi):
    """Two-class logits whose signal for class 0 is phi."""
    return np.stack([phi, np.zeros_like(phi)], axis=2)


def simulated(n_models, n, distance, seed=0):
    rng = np.random.default_rng(seed)
    members = twins(n_models, n, seed)
    phi = rng.normal(size=n) + rng.normal(size=(n_models, n)) + distance * members
    return phi, np.zeros(n, int), members


@pytest.mark.parametrize("variance", ["patient", "pooled"])
def test_lira_equals_tf_privacy(variance):
    phi, labels, members = simulated(12, 30, 1.0)
    ours = attacks.lira(logits_of(phi), labels, members, variance=variance)
    for target in range(12):
        shadows = [s for s in range(12) if s not in (target, target ^ 1)]
        inside = [phi[shadows, i][members[shadows, i]][:, None] for i in range(30)]
        outside = [phi[shadows, i][~members[shadows, i]][:, None] for i in range(30)]
        theirs = advanced_mia.compute_score_lira(
            phi[target][:, None].copy(), inside, outside, "both", fix_variance=variance == "pooled",
            median_or_mean="mean",
        )  # fmt: skip
        assert np.allclose(ours[target], -theirs, rtol=1e-6, atol=1e-6)


def test_offline_lira_is_the_distance_from_the_models_that_do_not_know_the_patient():
    phi, labels, members = simulated(12, 20, 1.0)
    scores = attacks.lira(logits_of(phi), labels, members, "offline", "patient")
    outside = [s for s in range(2, 12) if not members[s, 7]]
    assert scores[0, 7] == pytest.approx((phi[0, 7] - phi[outside, 7].mean()) / phi[outside, 7].std())


@pytest.mark.parametrize("variant", ["online", "offline"])
@pytest.mark.parametrize("gamma", [0.8, 1.0, 1.7])
def test_rmia_equals_a_naive_triple_loop(variant, gamma):
    phi, labels, members = simulated(12, 15, 1.0)
    scores = attacks.rmia(logits_of(phi), labels, members, variant, gamma)
    p = 1 / (1 + np.exp(-phi))
    if variant == "offline":
        constants = attacks._offline_constants(p, members, 12, True, gamma)
    for target in range(12):
        ratio = []
        for i in range(15):
            inside = [p[s, i] for s in range(12) if s not in (target, target ^ 1) and members[s, i]]
            outside = [p[s, i] for s in range(12) if s not in (target, target ^ 1) and not members[s, i]]
            if variant == "online":
                reference = (np.mean(inside) + np.mean(outside)) / 2
            else:
                reference = ((1 + constants[target]) * np.mean(outside) + 1 - constants[target]) / 2
            ratio.append(p[target, i] / reference)
        for i in range(15):
            share = np.mean([ratio[i] / ratio[z] >= gamma for z in range(15) if z != i])
            assert scores[target, i] == pytest.approx(share)


def test_the_constant_of_offline_rmia_never_looks_at_the_target():
    phi, labels, members = simulated(12, 40, 1.0)
    p = 1 / (1 + np.exp(-phi))
    before = attacks._offline_constants(p, members, 12, True, 1.0)
    turned = members.copy()
    turned[4:6] = turned[5:3:-1]
    after = attacks._offline_constants(p, turned, 12, True, 1.0)
    assert before[4] == after[4] and before[5] == after[5]


def naive_lira_with_the_twin(phi, members):
    scores = np.empty(phi.shape)
    for target in range(len(phi)):
        shadows = np.arange(len(phi)) != target
        for i in range(phi.shape[1]):
            inside, outside = phi[shadows & members[:, i], i], phi[shadows & ~members[:, i], i]
            spread = np.concatenate([inside - inside.mean(), outside - outside.mean()]).std()
            scores[target, i] = norm.logpdf(phi[target, i], inside.mean(), spread) - norm.logpdf(
                phi[target, i], outside.mean(), spread
            )
    return scores


@pytest.mark.parametrize("correlation", [-0.5, 0.5])
def test_a_correlated_twin_misleads_the_attack_unless_it_is_left_out(correlation):
    rng = np.random.default_rng(1)
    n_models, n = 16, 1500
    members = twins(n_models, n, seed=2)
    first, own = rng.normal(size=(2, n_models // 2, n))
    second = correlation * first + np.sqrt(1 - correlation**2) * own
    phi = np.stack([first, second], axis=1).reshape(n_models, n)  # nobody leaks: membership plays no part
    without = attacks.lira(logits_of(phi), np.zeros(n, int), members, variance="pooled")
    row = metrics.attack_table(without, members).set_index("metric").loc["AUC"]
    assert row.low <= 0.5 <= row.high
    row = metrics.attack_table(naive_lira_with_the_twin(phi, members), members).set_index("metric").loc["AUC"]
    assert not row.low <= 0.5 <= row.high


def test_lira_approaches_the_best_possible_attack_and_does_not_exceed_it():
    distance, n = 1.5, 400
    best = norm.cdf(distance / np.sqrt(2))
    found = []
    for n_models in (10, 32, 128):
        phi, labels, members = simulated(n_models, n, distance)
        scores = attacks.lira(logits_of(phi), labels, members, variance="pooled")
        row = metrics.attack_table(scores, members).set_index("metric").loc["AUC"]
        assert row.low <= best
        found.append(row.estimate)
    assert found[0] < found[1] < found[2]
    assert best - found[2] < 0.015
    phi, labels, members = simulated(128, n, distance)
    low = metrics.attack_table(attacks.lira(logits_of(phi), labels, members, variance="pooled"), members)
    row = low.set_index("metric").loc["TPR at FPR 0.01"]
    assert row.low <= norm.cdf(distance + norm.ppf(0.01)) <= row.high + 0.02


CALIBRATED = {
    "lira online": lambda *a: attacks.lira(*a),
    "lira offline": lambda *a: attacks.lira(*a, "offline"),
    "rmia online": lambda *a: attacks.rmia(*a),
    "rmia offline": lambda *a: attacks.rmia(*a, "offline"),
    "loss per class": lambda *a: attacks.threshold(*a, per_class=True),
    "label only": lambda *a: attacks.label_only(*a),
    **{name: lambda *a, name=name: attacks.threshold(*a, name) for name in attacks.SIGNALS},
}


@pytest.mark.parametrize("name", CALIBRATED)
def test_with_membership_redrawn_no_attack_finds_anything(name):
    phi, labels, members = simulated(16, 500, 2.0)
    redrawn = twins(16, 500, seed=99)
    scores = CALIBRATED[name](logits_of(phi), labels, redrawn)
    table = metrics.attack_table(scores, redrawn, level=1 - 0.05 / len(CALIBRATED)).set_index("metric")
    assert table.loc["AUC", "low"] <= 0.5 <= table.loc["AUC", "high"]


@pytest.mark.parametrize("name", CALIBRATED)
def test_permuting_patients_permutes_the_scores(name):
    phi, labels, members = simulated(12, 40, 1.0)
    labels = np.arange(40) % 2
    order = np.random.default_rng(0).permutation(40)
    one = CALIBRATED[name](logits_of(phi), labels, members)[:, order]
    assert np.allclose(one, CALIBRATED[name](logits_of(phi[:, order]), labels[order], members[:, order]))


@pytest.mark.parametrize("attack", [attacks.lira, attacks.rmia])
def test_a_patient_who_is_in_no_model_gets_no_score(attack):
    phi, labels, members = simulated(12, 20, 1.0)
    members = members.copy()
    members[:, 3] = False
    scores = attack(logits_of(phi), labels, members)
    assert np.isnan(scores[:, 3]).all()
    assert np.isfinite(np.delete(scores, 3, axis=1)).all()


@pytest.mark.parametrize("attack", [attacks.lira, attacks.rmia])
def test_too_few_shadow_models_are_an_error_that_says_how_many_it_takes(attack):
    phi, labels, members = simulated(8, 20, 1.0)
    with pytest.raises(ValueError, match="train at least 10 models"):
        attack(logits_of(phi), labels, members)


def test_an_outsider_finds_no_more_than_its_models_know():
    phi, labels, members = simulated(12, 300, 2.0)
    rng = np.random.default_rng(5)
    strangers = rng.normal(size=300) * 0 + phi.mean(axis=0) - 1.0 + rng.normal(size=(12, 300))
    nobody = np.zeros((12, 300), bool)
    scores = attacks.lira(logits_of(phi), labels, members, "offline", shadows=(logits_of(strangers), nobody))
    assert metrics.auc(scores, members) > 0.7
    with pytest.raises(ValueError, match="shadow models on a side"):
        attacks.lira(logits_of(phi), labels, members, "online", shadows=(logits_of(strangers), nobody))


def test_modified_entropy_is_that_of_the_paper():
    p = np.array([0.7, 0.2, 0.1])
    wanted = (1 - 0.7) * np.log(0.7) + 0.2 * np.log(0.8) + 0.1 * np.log(0.9)
    scores = attacks.threshold(np.log(p)[None, None], np.array([0]), np.array([[True]]), "modified entropy")
    assert scores[0, 0] == pytest.approx(wanted)


def test_thresholds_per_class_are_ranks_among_non_members_of_the_class():
    phi, _, members = simulated(12, 30, 1.0)
    labels = np.arange(30) % 2
    scores = attacks.threshold(logits_of(phi), labels, members, "confidence", per_class=True)
    values = attacks.threshold(logits_of(phi), labels, members, "confidence")
    others = [values[s, i] for s in range(2, 12) for i in range(0, 30, 2) if not members[s, i]]
    assert scores[0, 4] == pytest.approx(np.mean(np.array(others) < values[0, 4]))


def test_unknown_words_list_the_known():
    phi, labels, members = simulated(12, 20, 1.0)
    with pytest.raises(ValueError, match="online, offline"):
        attacks.lira(logits_of(phi), labels, members, "onlien")
    with pytest.raises(ValueError, match="loss, confidence"):
        attacks.threshold(logits_of(phi), labels, members, "los")


def test_each_threat_model_is_the_attack_that_it_names():
    rng = np.random.default_rng(20)
    labels, members = rng.integers(0, 3, 25), np.repeat(rng.random((8, 25)) < 0.5, 2, axis=0)
    members[1::2] ^= True
    logits = rng.normal(size=(16, 25, 3))
    others = rng.normal(size=(6, 25, 3)), np.zeros((6, 25), bool)
    case = (logits, labels, members)
    pairs = {
        "auditor": attacks.lira(*case),
        "label-only": attacks.label_only(*case),
        "second sample": attacks.lira(*case, variance="pooled"),
    }
    for name, scores in pairs.items():
        np.testing.assert_array_equal(attacks.under(name, *case), scores)
    outsider = attacks.under("outsider", *case, shadows=others)
    np.testing.assert_array_equal(outsider, attacks.lira(*case, "offline", shadows=others))
    for name, shadows in (("outsider", None), ("auditor", others)):
        with pytest.raises(ValueError, match="an outsider needs shadow models"):
            attacks.under(name, *case, shadows=shadows)
    with pytest.raises(ValueError, match="threat model .* is not known"):
        attacks.under("insider", *case)
