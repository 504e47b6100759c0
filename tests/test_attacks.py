"""Attacks: parity with TF-Privacy and with naive loops, laws, known truth, controls, and what is refused."""

import warnings

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax
from scipy.stats import kstest, multivariate_normal, norm
from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack import advanced_mia
from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack import membership_inference_attack as mia
from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack import models as attackers
from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack.data_structures import (
    AttackInputData,
    AttackType,
    SlicingSpec,
)

from genlib import attacks, bank, cohorts, features, membership, metrics, networks

# TF-Privacy's attacks

THRESHOLD = ["loss threshold", "entropy threshold"]
TRAINED = ["logistic regression", "nearest neighbors"]
TYPES = {
    "loss threshold": AttackType.THRESHOLD_ATTACK,
    "entropy threshold": AttackType.THRESHOLD_ENTROPY_ATTACK,
    "logistic regression": AttackType.LOGISTIC_REGRESSION,
    "nearest neighbors": AttackType.K_NEAREST_NEIGHBORS,
    "multi-layer perceptron": AttackType.MULTI_LAYERED_PERCEPTRON,
    "random forest": AttackType.RANDOM_FOREST,
}


def made_up(n_models=2, n=60, k=3, seed=0):
    """Logits that know their members a little."""
    rng = np.random.default_rng(seed)
    labels, members = rng.integers(0, k, n), rng.random((n_models, n)) < 0.5
    true = labels[:, None] == np.arange(k)
    return 1.5 * rng.normal(size=(n_models, n, k)) + true * (0.5 + members[:, :, None]), labels, members


def theirs(attack, logits, labels, members, seed):
    """TF-Privacy's own result, called without genlib."""
    data = AttackInputData(
        logits_train=logits[members], logits_test=logits[~members],
        labels_train=labels[members], labels_test=labels[~members],
    )  # fmt: skip
    np.random.seed(np.random.SeedSequence(seed).generate_state(4))  # noqa: NPY002
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mia.run_attacks(data, SlicingSpec(entire_dataset=True), [TYPES[attack]]).single_attack_results[0]


@pytest.fixture
def keep_random_state():
    before = np.random.get_state()  # noqa: NPY002
    yield
    np.random.set_state(before)  # noqa: NPY002


# Scores


def test_the_loss_threshold_scores_by_the_log_probability_of_the_true_class():
    logits, labels, members = made_up()
    scores = attacks.tf_privacy(logits, labels, members, ["loss threshold"])["loss threshold", "all"]
    naive = [[np.log(softmax(logits[m, i])[labels[i]]) for i in range(60)] for m in range(2)]
    np.testing.assert_allclose(scores, naive, atol=1e-4)


def test_the_entropy_threshold_is_the_modified_entropy_of_the_paper():
    logits, labels, members = made_up()
    scores = attacks.tf_privacy(logits, labels, members, ["entropy threshold"])["entropy threshold", "all"]
    p, true = softmax(logits, axis=2), np.arange(logits.shape[2]) == labels[:, None]
    wanted = np.where(true, (1 - p) * np.log(p), p * np.log(1 - p)).sum(axis=2)
    np.testing.assert_allclose(scores, wanted, atol=1e-4)


@pytest.mark.parametrize("attack", THRESHOLD + TRAINED)
@pytest.mark.parametrize("seed", [0, 3])
def test_the_auc_is_that_of_tf_privacy(keep_random_state, attack, seed):
    # Unequal numbers of members and non-members too: TF-Privacy then leaves some out of training but not of judging.
    logits, labels, members = made_up(seed=seed)
    scores = attacks.tf_privacy(logits, labels, members, [attack], seed=seed)[attack, "all"]
    for m in range(2):
        result = theirs(attack, logits[m], labels, members[m], [seed, m, 0, 7])
        assert metrics.auc(scores[m], members[m]) == pytest.approx(result.get_auc(), abs=1e-9)
        np.testing.assert_array_equal(scores[m, members[m]], result.membership_scores_train)


@pytest.mark.parametrize("attack", ["multi-layer perceptron", "random forest"])
def test_the_auc_of_the_costly_attackers_is_that_of_tf_privacy(monkeypatch, keep_random_state, attack):
    monkeypatch.setattr(attackers.model_selection, "GridSearchCV", FirstChoice)
    logits, labels, members = made_up(1, 24)
    scores = judge(logits, labels, members, [attack])[attack, "all"]
    result = theirs(attack, logits[0], labels, members[0], [0, 0, 0, 7])
    assert metrics.auc(scores[0], members[0]) == pytest.approx(result.get_auc(), abs=1e-9)
    np.testing.assert_array_equal(scores[0, members[0]], result.membership_scores_train)


def test_every_attack_of_genlib_is_held_to_tf_privacy():
    assert attacks.TF_PRIVACY_ATTACKS == TYPES


# Slices


def test_slices_hold_their_patients_and_nobody_else():
    logits, labels, members = made_up()
    slices = ("all", "class", "correct", "wrong")
    scores = attacks.tf_privacy(logits, labels, members, ["loss threshold"], slices)
    right = logits.argmax(axis=2) == labels
    expected = {"all": np.ones_like(right), "correct": right, "wrong": ~right}
    expected |= {f"class {k}": np.broadcast_to(labels == k, right.shape) for k in range(3)}
    assert set(scores) == {("loss threshold", name) for name in expected}
    for name, mask in expected.items():
        assert (~np.isnan(scores["loss threshold", name]) == mask).all()
        whole = scores["loss threshold", "all"][mask]
        np.testing.assert_allclose(scores["loss threshold", name][mask], whole)


@pytest.mark.filterwarnings("ignore")  # of so few, seven neighbors cannot be found
@pytest.mark.parametrize("side", [True, False])
@pytest.mark.parametrize("few", [0, 1, attacks.FEWEST_TO_TRAIN - 1, attacks.FEWEST_TO_TRAIN])
def test_a_trained_attacker_needs_enough_members_and_non_members(side, few):
    logits, labels, _ = made_up(1, 30)
    members = np.full((1, 30), not side)
    members[0, :few] = side
    scores = attacks.tf_privacy(logits, labels, members, ["nearest neighbors", "loss threshold"])
    assert np.isnan(scores["nearest neighbors", "all"]).all() == (few < attacks.FEWEST_TO_TRAIN)
    assert np.isnan(scores["loss threshold", "all"]).all() == (few == 0)


def test_a_slice_that_nobody_is_in_gives_no_scores():
    _, labels, members = made_up()
    always_right = np.broadcast_to(5.0 * (labels[:, None] == np.arange(3)), (2, 60, 3))
    scores = attacks.tf_privacy(always_right, labels, members, ["loss threshold"], ["wrong"])
    assert np.isnan(scores["loss threshold", "wrong"]).all()


# Seeds and warnings


@pytest.mark.parametrize("attack", TRAINED)
def test_one_seed_gives_the_same_scores_twice_and_another_gives_others(attack):
    def run(seed):
        return attacks.tf_privacy(*made_up(), [attack], seed=seed)[attack, "all"]

    first = run(0)
    np.testing.assert_array_equal(first, run(0))
    assert (first != run(1)).any()


def test_a_slice_gets_the_same_scores_whichever_attacks_run_beside_it():
    alone = attacks.tf_privacy(*made_up(), ["nearest neighbors"])["nearest neighbors", "all"]
    beside = attacks.tf_privacy(*made_up(), [*THRESHOLD, *TRAINED])["nearest neighbors", "all"]
    np.testing.assert_array_equal(alone, beside)


@pytest.mark.parametrize("fails", [False, True])
def test_numpys_global_generator_is_left_as_it_was(monkeypatch, fails):
    if fails:
        monkeypatch.setattr(mia, "run_attacks", lambda *given: (_ for _ in ()).throw(OSError("no luck")))
    before = np.random.get_state()  # noqa: NPY002
    try:
        attacks.tf_privacy(*made_up(), ["nearest neighbors"])
    except OSError:
        assert fails
    after = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def caught_from(monkeypatch, warn):
    def run_one(attack, logits, labels, members):
        warn()
        return np.zeros(len(labels))

    monkeypatch.setattr(attacks, "_run_one", run_one)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attacks.tf_privacy(*made_up(2), ["loss threshold"])
    return caught


@pytest.mark.parametrize(
    ("category", "filename", "silent"),
    [
        (RuntimeWarning, "lib/tensorflow_privacy/bound.py", True),
        (RuntimeWarning, "lib/numpy/core.py", False),
        (UserWarning, "lib/tensorflow_privacy/bound.py", False),
    ],
)
def test_only_the_known_warning_of_tf_privacy_is_silenced(monkeypatch, category, filename, silent):
    caught = caught_from(monkeypatch, lambda: warnings.warn_explicit("divide by zero", category, filename, 1))
    assert bool(caught) != silent


def test_threshold_attacks_run_without_a_warning_and_bear_perfect_confidence():
    logits, labels, members = made_up()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = attacks.tf_privacy(1e4 * logits, labels, members, THRESHOLD)
    assert all(np.isfinite(values).all() for values in scores.values())


# Controls: an attack that finds members where there is nothing to find would be worth nothing


class FirstChoice:
    """In place of the search through a grid: its first choice, which is fast and valid in every scikit-learn."""

    def __new__(cls, estimator, param_grid, **_):
        settings = {"n_estimators": 20, "max_features": "sqrt"}
        chosen = {name: settings.get(name, values[0]) for name, values in param_grid.items()}
        return estimator.set_params(**chosen)


@pytest.fixture(scope="module")
def overfitted():
    """Half of a small cohort is known to four overfitted targets; the other half is known to none of them."""
    cohort = cohorts.load("simulated", n_patients=200, n_genes=300, seed=0)
    strangers = membership.reserve(cohort.labels, 0.5, seed=0)
    members = membership.paired_halves(cohort.labels, 4, seed=0, reserved=strangers)
    model = networks.mlp(300, len(cohort.classes), hidden=(32,))
    how = {"epochs": 60, "batch_size": 32, "seed": 0, "progress": False}
    logits = bank.train(model, features.transform(cohort), cohort.labels, members, **how).logits
    return logits, cohort.labels, members, strangers


def judge(logits, labels, members, names):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # attackers that stop early say so
        return attacks.tf_privacy(logits, labels, members, names, ("all", "class", "correct", "wrong"))


def intervals(scores, members):
    sided = {}
    for name, values in scores.items():
        judged = ~np.isnan(values)
        if (judged & members).any() and (judged & ~members).any():
            sided[name] = values
    level = 1 - 0.05 / len(sided)
    tables = {name: metrics.attack_table(v, members, n_bootstrap=2000, level=level) for name, v in sided.items()}
    return {name: table.set_index("metric").loc["AUC"] for name, table in tables.items()}


@pytest.mark.slow
@pytest.mark.parametrize("control", ["membership redrawn", "other patients"])
def test_no_attack_finds_members_where_there_are_none(monkeypatch, overfitted, control):
    # The grids are cut short for time; what they search through does not bear on whether a control holds.
    monkeypatch.setattr(attackers.model_selection, "GridSearchCV", FirstChoice)
    logits, labels, members, strangers = overfitted
    if control == "membership redrawn":
        evaluated, reserved = ~strangers, strangers
    else:
        evaluated, reserved = strangers, ~strangers
    pretended = membership.paired_halves(labels, 4, seed=99, reserved=reserved)[:, evaluated]
    scores = judge(logits[:, evaluated], labels[evaluated], pretended, tuple(attacks.TF_PRIVACY_ATTACKS))
    rows = intervals(scores, pretended)
    assert {attack for attack, _ in rows} == set(attacks.TF_PRIVACY_ATTACKS)
    # An attacker who learns from one half of a list with as many members as others, and judges the other half, errs to
    # below 0.5 where there is nothing: what one half has too many of, the other has too few of. That finds nobody.
    trained = {name for name in attacks.TF_PRIVACY_ATTACKS if attacks.TF_PRIVACY_ATTACKS[name].is_trained_attack}
    found = {name: (row.low, row.high) for name, row in rows.items() if row.low > 0.5}
    missed = [name for name, row in rows.items() if row.high < 0.5 and name[0] not in trained]
    assert not found and not missed


def test_an_overfitted_target_gives_its_members_away(overfitted):
    logits, labels, members, strangers = overfitted
    members = members[:, ~strangers]
    rows = intervals(judge(logits[:, ~strangers], labels[~strangers], members, ["loss threshold"]), members)
    assert rows["loss threshold", "all"].low > 0.5


# Attacks with shadow models


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
    n_models, n = 16, 800
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
    "loss": lambda *a: attacks.threshold(*a),
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


def test_thresholds_per_class_are_ranks_among_non_members_of_the_class():
    phi, _, members = simulated(12, 30, 1.0)
    labels = np.arange(30) % 2
    scores = attacks.threshold(logits_of(phi), labels, members, per_class=True)
    values = attacks.threshold(logits_of(phi), labels, members)
    others = [values[s, i] for s in range(2, 12) for i in range(0, 30, 2) if not members[s, i]]
    assert scores[0, 4] == pytest.approx(np.mean(np.array(others) < values[0, 4]))


def test_lira_on_two_signals_equals_a_naive_loop_with_one_covariance():
    phi, _, members = simulated(12, 25, 1.0)
    pair = np.stack([phi, 0.5 * phi + np.random.default_rng(3).normal(size=phi.shape) + members], axis=2)
    scores = {variant: attacks.likelihood_ratio(pair, members, variant) for variant in ("online", "offline")}
    for target in (0, 5):
        shadows = np.array([s for s in range(12) if s not in (target, target ^ 1)])
        means, apart = {}, {True: [], False: []}
        for i in range(25):
            for side in (True, False):
                values = pair[shadows[members[shadows, i] == side], i]
                means[i, side] = values.mean(axis=0)
                apart[side].append(values - values.mean(axis=0))
        covariance = {side: np.cov(np.concatenate(apart[side]).T, bias=True) for side in apart}
        # Both were centered patient by patient, so the mean that np.cov takes away is zero.
        for i in range(25):
            density = [multivariate_normal(means[i, s], covariance[s]).logpdf(pair[target, i]) for s in (True, False)]
            assert scores["online"][target, i] - (density[0] - density[1]) == pytest.approx(0, abs=1e-9)
            sd = np.sqrt(np.diag(covariance[False]))
            weights = sd @ np.linalg.inv(covariance[False])
            wanted = weights @ (pair[target, i] - means[i, False]) / np.sqrt(weights @ sd)
            assert scores["offline"][target, i] == pytest.approx(wanted)


# Attacks on weights


def known_truth(strengths, n_models=40, d=400, h=6, seed=0):
    """Kernels W_0 + X^T A whose members' rows of A stand out of their own noise by known numbers of deviations."""
    rng = np.random.default_rng(seed)
    n = len(strengths)
    x, members = rng.normal(size=(n, d)), twins(n_models, n, seed)
    directions = rng.normal(size=(n_models, n, h))
    unit = directions / np.linalg.norm(directions, axis=2, keepdims=True)
    noise = 0.05 * np.sqrt(np.diag(np.linalg.inv(x @ x.T)))
    pushes = members[..., None] * (strengths * noise)[:, None] * unit
    inside = x @ rng.normal(0, 0.05, (n_models, d, h)) + (x @ x.T) @ pushes
    return inside, x, directions, members


def test_where_the_strength_of_training_is_known_span_reaches_the_best_possible_auc():
    strengths = np.random.default_rng(1).uniform(0.3, 3.0, 120)
    inside, x, directions, members = known_truth(strengths)
    scores = attacks.span(inside, x, directions)
    row = metrics.attack_table(scores, members).set_index("metric").loc["AUC"]
    best = norm.cdf(strengths / np.sqrt(2)).mean()
    assert row.low <= best <= row.high and abs(row.estimate - best) < 0.015
    z = scores[~members] / 0.05  # the start's deviation: for non-members the null law is exact
    assert kstest(z, "norm").pvalue > 0.01


def test_where_training_left_nothing_span_finds_nothing():
    inside, x, directions, members = known_truth(np.zeros(120))
    chosen = attacks.ridges(inside, x, directions)
    assert (chosen > 0.3).all()  # nothing to be seen: far more of a ridge than where there is
    for ridge in (0.0, 0.1, chosen):
        table = metrics.attack_table(attacks.span(inside, x, directions, ridge), members, level=1 - 0.05 / 3)
        row = table.set_index("metric").loc["AUC"]
        assert row.low <= 0.5 <= row.high


def test_the_ridge_is_the_ratio_of_start_to_training_that_made_the_weights():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(150, 40)) @ rng.normal(size=(40, 600)) + rng.normal(size=(150, 600))
    inner, unit = x @ x.T, np.eye(20)[0]
    for wanted in (0.003, 0.03):
        variance = 0.01 / (wanted * np.trace(inner) / 150)  # of training, where that of the start is 0.01
        pushes = np.sqrt(variance) * rng.normal(size=(8, 150, 1)) * unit
        inside = x @ (0.1 * rng.normal(size=(8, 600, 20))) + inner @ pushes
        assert np.median(attacks.ridges(inside, x, np.broadcast_to(unit, (8, 150, 20)))) == pytest.approx(
            wanted, rel=0.4
        )


def test_a_kernel_that_decayed_to_nothing_gives_nobody_away_and_has_scores():
    x, nothing = np.random.default_rng(0).normal(size=(12, 40)), np.zeros((2, 12, 3))
    scores = attacks.on_weights(nothing, x, [np.zeros((2, 3))], np.arange(12) % 3)
    np.testing.assert_array_equal(scores, np.zeros((2, 12)))


@pytest.fixture(scope="module")
def shared():
    """A bank of small networks of two hidden layers by SGD: profiles, labels, members and what was trained."""
    cohort = cohorts.load("simulated", n_patients=100, n_genes=400, seed=1)
    x, members = features.transform(cohort), membership.paired_halves(cohort.labels, 24, seed=0)
    model = networks.mlp(400, len(cohort.classes), hidden=(24, 12), learning_rate=0.05)
    how = {"epochs": 40, "batch_size": 25, "seed": 0, "progress": False}
    return x, cohort.labels, members, bank.train(model, x, cohort.labels, members, **how)


def test_under_sgd_non_members_have_standard_normal_scores_and_members_do_not(shared):
    x, labels, members, trained = shared
    pushes = attacks.directions(attacks.left_out(trained.inside, x), trained.further, labels)
    z = attacks.span(trained.inside, x, pushes) / np.sqrt(2 / 400)
    # Scores of one model hang together a little, so means over models are compared.
    outside = [np.where(members, np.nan, z**power) for power in (1, 2)]
    for wanted, values in zip((0, 1), outside, strict=True):
        by_model = np.nanmean(values, axis=1)
        assert abs(by_model.mean() - wanted) < 3.5 * by_model.std(ddof=1) / np.sqrt(len(by_model))
    assert abs((z[~members] > norm.ppf(0.95)).mean() - 0.05) < 0.02
    assert z[members].mean() > 0.3


def test_the_choice_of_a_direction_does_not_look_at_the_patients_own_noise(shared):
    x, labels, members, trained = shared
    biased = attacks.directions(trained.inside, trained.further, labels)
    z = attacks.span(trained.inside, x, biased) / np.sqrt(2 / 400)
    by_model = np.nanmean(np.where(members, np.nan, z), axis=1)
    assert by_model.mean() < -4 * by_model.std(ddof=1) / np.sqrt(len(by_model))


@pytest.mark.parametrize(("n_features", "ridge"), [(400, 0.0), (400, 0.1), (30, 0.1)])
def test_span_equals_a_naive_regression_of_each_patient_on_the_others(shared, n_features, ridge):
    x, labels, _, trained = shared
    x = x[:, :n_features].astype(np.float64)
    kernel = np.random.default_rng(0).normal(size=(400, 24))[:n_features]
    inside, further = (x @ kernel)[None], [part[:1].astype(np.float64) for part in trained.further]
    first, one, second, two, last = (part[0] for part in further)
    inner = x @ x.T + ridge * np.trace(x @ x.T) / len(x) * np.eye(len(x))
    scores = attacks.on_weights(inside, x, further, labels, ridge=ridge)[0]
    for i in range(0, 100, 9):
        others = np.arange(100) != i
        regression = np.linalg.solve(inner[np.ix_(others, others)], inner[others, i])
        expected = regression @ inside[0, others]  # what the others say of the patient
        spread = 1 / (inner[i, i] - inner[i, others] @ regression)
        on = expected + first > 0
        hidden = np.maximum(expected + first, 0) @ one + second
        answers = np.maximum(hidden, 0) @ two + last
        push = np.eye(len(answers))[labels[i]] - (1 / len(answers) + softmax(answers)) / 2
        direction = on * (one @ ((hidden > 0) * (two @ push)))
        wanted = (inside[0, i] - expected) * spread @ direction / np.linalg.norm(direction) / np.sqrt(spread)
        assert scores[i] == pytest.approx(wanted, rel=1e-5)


def test_with_the_start_known_or_with_more_profiles_the_scores_do_what_they_must(shared):
    x, labels, members, trained = shared
    few = trained.inside[:4], x, [part[:4] for part in trained.further]
    scores = attacks.on_weights(*few, labels)
    order = np.random.default_rng(0).permutation(100)
    turned = attacks.on_weights(few[0][:, order], x[order], few[2], labels[order])
    np.testing.assert_allclose(turned, scores[:, order], rtol=1e-4, atol=1e-7)
    named = trained.logits[:4].argmax(axis=2)  # an attacker who takes each model's answer for the class
    apart = [attacks.on_weights(few[0][[m]], x, [p[[m]] for p in few[2]], named[m])[0] for m in range(4)]
    np.testing.assert_allclose(attacks.on_weights(*few, named), apart, rtol=1e-6, atol=1e-9)
    start = networks.mlp(400, 3, hidden=(24, 12), learning_rate=0.05).get_weights()
    how = {"epochs": 40, "batch_size": 25, "seed": 0, "progress": False, "start": start}
    known = bank.train(networks.mlp(400, 3, hidden=(24, 12), learning_rate=0.05), x, labels, members[:2], **how)
    moved = known.inside - x @ start[0]  # without noise, the length of a coefficient says it all
    assert metrics.auc(attacks.span(moved, x, moved - attacks.left_out(moved, x)), members[:2]) > 0.999


def test_the_gradients_length_is_that_of_keras(shared):
    x, labels, _, trained = shared
    model, loss = trained.model(0), tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    scores = attacks.gradient_norm(trained.inside[:1], x, [part[:1] for part in trained.further], labels)[0]
    for i in (0, 50, 99):
        with tf.GradientTape() as tape:
            value = loss(labels[[i]], model(x[[i]]))
        length = tf.linalg.global_norm(tape.gradient(value, model.trainable_variables))
        assert scores[i] == pytest.approx(-float(length), rel=1e-3)


def test_a_patient_whom_no_direction_pushes_gets_the_score_of_nothing():
    inside, x, directions, _ = known_truth(np.zeros(20), n_models=2)
    directions[:, 3] = 0
    scores = attacks.span(inside, x, directions)
    assert (scores[:, 3] == 0).all() and np.isfinite(scores).all()


def test_profiles_that_depend_on_one_another_ask_for_a_ridge():
    inside, x, directions, _ = known_truth(np.zeros(20), n_models=2)
    twice = np.r_[x, x[:1]], np.concatenate([inside, inside[:, :1]], axis=1)
    pushes = np.concatenate([directions, directions[:, :1]], axis=1)
    with pytest.raises(ValueError, match="ridge=0.0: 21 profiles with 400 features.*give a ridge above 0"):
        attacks.span(twice[1], twice[0], pushes)
    assert np.isfinite(attacks.span(twice[1], twice[0], pushes, 0.1)).all()
    with pytest.raises(ValueError, match="shapes disagree"):
        attacks.span(inside[:, :5], x, directions)


# Refusals


@pytest.mark.parametrize(
    "cut",
    [
        lambda logits, labels, members: (logits[:, :-1], labels, members),
        lambda logits, labels, members: (logits, labels[:-1], members),
        lambda logits, labels, members: (logits, labels, members[:1]),
        lambda logits, labels, members: (logits[0], labels, members),
        lambda logits, labels, members: (logits, labels, members[0]),
    ],
)
def test_shapes_that_disagree_are_refused(cut):
    with pytest.raises(ValueError, match="shapes disagree"):
        attacks.tf_privacy(*cut(*made_up()))


@pytest.mark.parametrize(
    ("call", "known"),
    [
        (lambda *given: attacks.tf_privacy(*given, ["oracle"]), "oracle.*loss threshold.*nearest neighbors"),
        (lambda *given: attacks.tf_privacy(*given, THRESHOLD, ["site"]), "site.*all, class, correct, wrong"),
        (lambda *given: attacks.lira(*given, "onlien"), "onlien.*online, offline"),
        (lambda *given: attacks.lira(*given, variance="own"), "own.*pooled, patient"),
    ],
)
def test_unknown_words_are_refused_with_the_known(call, known):
    with pytest.raises(ValueError, match=known):
        call(*made_up(12))


def spoilt(logits, labels, members):
    """What was accepted once and answered wrongly, by what is wrong with it."""
    diverged, lost = logits.copy(), logits.copy()
    diverged[3], lost[3, 5] = np.nan, -np.inf
    return {
        "labels run from 1 to 3, and there are 3 classes: number them from 0 to 2": (logits, labels + 1, members),
        "labels run from -1 to 1": (logits, labels - 1, members),
        "labels are of type <U1 .*whole numbers": (logits, np.array(list("abc"))[labels], members),
        "labels are of type float64": (logits, labels.astype(float), members),
        "members are of type int64.*astype.bool": (logits, labels, members.astype(int)),
        "1 of 12 models are not finite: the first is nan, model 3, row 0": (diverged, labels, members),
        "the first is -inf, model 3, row 5": (lost, labels, members),
        "logits hold probabilities.*give their logarithms": (softmax(logits, axis=2), labels, members),
        "single output.*give both classes": (logits[:, :, :1], labels % 2, members),
    }


@pytest.mark.parametrize("attack", [attacks.lira, attacks.rmia, attacks.threshold, attacks.label_only])
@pytest.mark.parametrize("reason", list(spoilt(*made_up(12))))
def test_what_would_be_answered_wrongly_is_refused_with_the_way_out(attack, reason):
    with pytest.raises(ValueError, match=reason):
        attack(*spoilt(*made_up(12))[reason])


@pytest.mark.parametrize("attack", [attacks.lira, attacks.rmia])
def test_shadow_models_that_never_saw_a_class_are_refused(attack):
    logits, labels, members = made_up(12)
    with pytest.raises(ValueError, match="shadows: their models know 2 classes, the target 3; train shadow models on"):
        attack(logits, labels, members, "offline", shadows=(logits[:, :, :2], members))


def test_a_signal_that_never_varies_tells_nothing_and_breaks_nothing():
    members = membership.paired_halves(np.arange(60) % 3, 16, seed=0)
    varied = np.random.default_rng(0).normal(size=members.shape)
    with np.errstate(invalid="raise", divide="raise"):
        alone = attacks.likelihood_ratio(varied, members)
        beside = attacks.likelihood_ratio(np.stack([varied, np.full(members.shape, 0.1)], axis=2), members)
    np.testing.assert_allclose(beside, alone, atol=1e-9)


# --- screen ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [5, 40])
def test_the_screen_is_that_of_ridge_regressions_which_leave_each_patient_out(d):
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    x = rng.normal(size=(30, d)) + 2 * np.eye(3, d)[labels]
    own, errors = np.eye(3)[labels], {}
    for ridge in attacks.RIDGES:
        strength, predicted = ridge * (x**2).sum() / 30, np.empty((30, 3))
        for i in range(30):
            rest = np.arange(30) != i
            weights = np.linalg.solve(x[rest].T @ x[rest] + strength * np.eye(d), x[rest].T @ own[rest])
            predicted[i] = x[i] @ weights
        errors[ridge] = ((own - predicted) ** 2).sum(), predicted
    best = min(errors.values(), key=lambda pair: pair[0])[1]
    expected = [np.delete(row, k).max() - row[k] for row, k in zip(best, labels, strict=True)]
    assert attacks.screen(x, labels) == pytest.approx(np.array(expected), abs=1e-9)
