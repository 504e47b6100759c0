"""TF-Privacy's attacks as genlib runs them: parity, slices, seeds, warnings, and controls (not shadow attacks)."""

import warnings

import numpy as np
import pytest
from scipy.special import softmax
from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack import membership_inference_attack as mia
from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack import models as attackers
from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack.data_structures import (
    AttackInputData,
    AttackType,
    SlicingSpec,
)

from genlib import attacks, bank, cohorts, features, membership, metrics, networks

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


def test_the_entropy_threshold_scores_by_minus_the_modified_entropy():
    # TF-Privacy takes the plain entropy only where labels are left out; genlib always gives them (Song and Mittal,
    # USENIX Security 2021, equation 8).
    logits, labels, members = made_up()
    scores = attacks.tf_privacy(logits, labels, members, ["entropy threshold"])["entropy threshold", "all"]
    for m in range(2):
        for i in range(60):
            p, y = softmax(logits[m, i]), labels[i]
            others = sum(p[k] * np.log(1 - p[k]) for k in range(3) if k != y)
            assert scores[m, i] == pytest.approx((1 - p[y]) * np.log(p[y]) + others, abs=1e-4)


def test_the_entropy_threshold_is_genlibs_own_modified_entropy():
    logits, labels, members = made_up()
    scores = attacks.tf_privacy(logits, labels, members, ["entropy threshold"])["entropy threshold", "all"]
    np.testing.assert_allclose(scores, attacks.threshold(logits, labels, members, "modified entropy"), atol=1e-4)


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
    scores = judge(logits, labels, members, None, [attack])[attack, "all"]
    result = theirs(attack, logits[0], labels, members[0], [0, 0, 0, 7])
    assert metrics.auc(scores[0], members[0]) == pytest.approx(result.get_auc(), abs=1e-9)
    np.testing.assert_array_equal(scores[0, members[0]], result.membership_scores_train)


def test_every_attack_of_genlib_is_held_to_tf_privacy():
    assert attacks.TF_PRIVACY_ATTACKS == TYPES


def test_perfect_confidence_gives_finite_scores():
    logits, labels, members = made_up()
    scores = attacks.tf_privacy(1e4 * logits, labels, members, THRESHOLD)
    assert all(np.isfinite(values).all() for values in scores.values())


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


@pytest.mark.parametrize("attack", ["loss threshold", "nearest neighbors"])
def test_patients_outside_the_evaluation_get_no_score_and_change_nothing(attack):
    logits, labels, members = made_up()
    evaluated = np.arange(60) < 45
    scores = attacks.tf_privacy(logits, labels, members, [attack], evaluated=evaluated)[attack, "all"]
    assert np.isnan(scores[:, ~evaluated]).all()
    alone = attacks.tf_privacy(logits[:, :45], labels[:45], members[:, :45], [attack])[attack, "all"]
    np.testing.assert_array_equal(scores[:, :45], alone)


@pytest.mark.filterwarnings("ignore:TF-Privacy's attackers")  # of so few, seven neighbors cannot be found
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


def test_a_repeated_warning_is_passed_on_once_with_its_count(monkeypatch):
    caught = caught_from(monkeypatch, lambda: warnings.warn("did not converge", UserWarning, stacklevel=1))
    assert [w.category for w in caught] == [UserWarning]
    assert "2 times: did not converge" in str(caught[0].message)
    assert caught[0].filename == __file__  # the caller's line, where it can be looked up


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
    assert len(caught) == (0 if silent else 1)


def test_threshold_attacks_run_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attacks.tf_privacy(*made_up(), THRESHOLD)


# Refusals


def test_an_unknown_attack_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="oracle.*loss threshold.*nearest neighbors"):
        attacks.tf_privacy(*made_up(), ["oracle"])


def test_an_unknown_slice_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="site.*all, class, correct, wrong"):
        attacks.tf_privacy(*made_up(), THRESHOLD, ["site"])


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


def judge(logits, labels, members, evaluated, names):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # attackers that stop early say so
        return attacks.tf_privacy(logits, labels, members, names, ("all", "class", "correct", "wrong"), 0, evaluated)


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
    pretended = membership.paired_halves(labels, 4, seed=99, reserved=reserved)
    rows = intervals(judge(logits, labels, pretended, evaluated, tuple(attacks.TF_PRIVACY_ATTACKS)), pretended)
    assert {attack for attack, _ in rows} == set(attacks.TF_PRIVACY_ATTACKS)
    found = {name: (row.low, row.high) for name, row in rows.items() if not row.low <= 0.5 <= row.high}
    assert not found


def test_an_overfitted_target_gives_its_members_away(overfitted):
    logits, labels, members, strangers = overfitted
    rows = intervals(judge(logits, labels, members, ~strangers, ["loss threshold"]), members)
    assert rows["loss threshold", "all"].low > 0.5
