import numpy as np
import pytest
from scipy.special import softmax

from genlib import attacks, bank, defenses, membership, metrics, networks

LOGITS = np.random.default_rng(0).normal(0, 3, (4, 50, 5))

ALL = {
    "class only": defenses.class_only,
    "top 2": lambda logits: defenses.top(logits, 2),
    "top 2, no confidence": lambda logits: defenses.top(logits, 2, confidence=False),
    "rounded": lambda logits: defenses.rounded(logits, 2),
    "tempered": lambda logits: defenses.tempered(logits, 5.0),
    "noisy": lambda logits: defenses.noisy(logits, 2.0, seed=0),
    "ranked": defenses.ranked,
}


@pytest.mark.parametrize("name", ALL)
def test_what_is_shown_is_a_probability_and_names_the_same_class(name):
    shown = ALL[name](LOGITS)
    np.testing.assert_allclose(np.exp(shown).sum(axis=2), 1)
    assert np.isfinite(shown).all()
    if name == "top 2, no confidence":
        two = np.argsort(-LOGITS, axis=2)[:, :, :2]
        assert (np.take_along_axis(np.exp(shown), two, axis=2) > 0.49).all()
    else:
        np.testing.assert_array_equal(shown.argmax(axis=2), LOGITS.argmax(axis=2))


@pytest.mark.parametrize("name", ALL)
def test_it_is_a_function_of_the_logits_that_knows_no_constant_added_to_them(name):
    np.testing.assert_allclose(ALL[name](LOGITS + 7.0), ALL[name](LOGITS), atol=1e-9)


def test_the_class_alone_leaves_what_a_label_only_attack_sees():
    labels = np.random.default_rng(1).integers(0, 5, 50)
    sure = attacks.signal(defenses.class_only(LOGITS), labels)
    right = LOGITS.argmax(axis=2) == labels
    assert len(np.unique(sure.round(6))) == 2
    np.testing.assert_array_equal(sure > 0, right)


def test_all_classes_shown_with_confidence_hide_nothing():
    np.testing.assert_allclose(np.exp(defenses.top(LOGITS, 5)), softmax(LOGITS, axis=2), atol=1e-9)


def test_of_two_shown_classes_the_rest_is_spread_evenly():
    shown, probability = np.exp(defenses.top(LOGITS, 2)), np.sort(softmax(LOGITS, axis=2), axis=2)
    np.testing.assert_allclose(
        np.sort(shown, axis=2)[:, :, :3], probability[:, :, :3].mean(axis=2)[..., None].repeat(3, 2)
    )


def test_rounding_keeps_at_most_a_hundred_values():
    probability = np.exp(defenses.rounded(LOGITS[..., :2], 2))
    assert len(np.unique(probability.round(9))) <= 101


def test_a_temperature_of_one_and_no_noise_change_nothing():
    for shown in (defenses.tempered(LOGITS, 1.0), defenses.noisy(LOGITS, 0.0, seed=0)):
        np.testing.assert_allclose(np.exp(shown), softmax(LOGITS, axis=2), atol=1e-12)


def test_noise_is_the_same_for_who_asks_again_and_another_for_another_seed():
    first, again, other = (defenses.noisy(LOGITS, 1.0, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


@pytest.mark.parametrize(("call", "said"), [
    (lambda: defenses.top(LOGITS, 0), "n_shown=0"),
    (lambda: defenses.top(LOGITS, 6), "number of classes, 5"),
    (lambda: defenses.tempered(LOGITS, 0.0), "temperature=0.0"),
])  # fmt: skip
def test_a_strength_that_cannot_be_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()


# --- distillation ---------------------------------------------------------------------------------------------------

HOW = {"epochs": 20, "batch_size": 32, "seed": 0, "progress": False}


def softmax_network(n_features=100, n_classes=3):
    return networks.softmax(n_features, n_classes, learning_rate=0.1)


@pytest.fixture(scope="module")
def cohort():
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 3
    return (rng.normal(size=(3, 100))[labels] + 2 * rng.normal(size=(80, 100))).astype(np.float32), labels


def test_soft_targets_that_are_labels_train_as_labels_do(cohort):
    x, labels = cohort
    members = membership.paired_halves(labels, 2, seed=0)
    targets = np.broadcast_to(np.eye(3, dtype=np.float32)[labels], (2, 80, 3))
    hard = bank.train(softmax_network(), x, labels, members, **HOW).logits
    soft = bank.train(softmax_network(), x, labels, members, targets=targets, **HOW).logits
    np.testing.assert_allclose(soft, hard, atol=1e-4)


def test_a_student_meets_no_member_but_through_its_teacher(cohort):
    # The same teachers' answers for the reserved, other members' profiles: the student is the same.
    x, labels = cohort
    reserved = membership.reserve(labels, 0.4, seed=0)
    members = membership.paired_halves(labels, 2, seed=0, reserved=reserved)
    pupils = np.tile(reserved, (2, 1))
    students = defenses.distill(softmax_network(), x, labels, members, pupils, temperature=2.0, **HOW).logits
    teachers = bank.train(softmax_network(), x, labels, members, **HOW).logits
    targets = softmax(teachers.astype(float) / 2.0, axis=2).astype(np.float32)
    changed = x.copy()
    changed[~reserved] = 0
    start = [
        np.zeros(w.shape) for w in softmax_network().get_weights()
    ]  # a start of its own is drawn among all patients
    how = HOW | {"seed": 1, "start": start, "targets": targets}
    alone, among = (bank.train(softmax_network(), values, labels, pupils, **how).logits for values in (changed, x))
    np.testing.assert_allclose(alone[:, reserved], among[:, reserved], atol=1e-5)
    drawn = bank.train(softmax_network(), x, labels, np.tile(reserved, (2, 1)), **(how | {"start": None})).logits
    np.testing.assert_array_equal(students, drawn)
    for wrong in (np.zeros((2, 80), bool), np.ones((2, 80), bool)):
        with pytest.raises(ValueError, match="who train no teacher of theirs"):
            defenses.distill(softmax_network(), x, labels, members, wrong, **HOW)


def test_every_patient_is_left_out_of_as_many_teachers_as_was_said_and_of_others_each_time():
    absent = defenses.absences(np.ones((4, 200), bool), n_parts=10, n_absent=4, seed=0)
    assert (absent.sum(axis=1) == 4).all()
    np.testing.assert_allclose(absent.mean(axis=(0, 2)), 0.4, atol=0.06)
    assert not (absent[0] == absent[1]).all()
    for wrong in (0, 10):
        with pytest.raises(ValueError, match=f"n_absent={wrong}"):
            x, members = np.ones((4, 2)), np.ones((1, 4), bool)
            defenses.self_distill(softmax_network(2, 2), x, np.arange(4) % 2, members, n_absent=wrong, **HOW)


def test_self_distillation_teaches_a_member_by_models_without_it(cohort, monkeypatch):
    x, labels = cohort
    members = membership.paired_halves(labels, 2, seed=0)
    asked = []
    train = bank.train

    def watched(*arguments, **options):
        asked.append((arguments[3], options.get("targets")))
        return train(*arguments, **options)

    monkeypatch.setattr(bank, "train", watched)
    defenses.self_distill(softmax_network(), x, labels, members, n_parts=5, n_absent=2, **HOW)
    (parts, _), (students, targets) = asked
    np.testing.assert_array_equal(students, members)
    parts = parts.reshape(2, 5, 80)
    assert (parts.sum(axis=1)[members] == 3).all() and not parts.transpose(0, 2, 1)[~members].any()
    np.testing.assert_allclose(targets.sum(axis=2), 1, atol=1e-5)


def test_self_distillation_leaves_less_for_the_attack(cohort):
    x, labels = cohort
    members = membership.paired_halves(labels, 16, seed=0)
    how = HOW | {"start": [np.zeros(w.shape) for w in softmax_network().get_weights()]}  # no start noise hides anybody
    plain = bank.train(softmax_network(), x, labels, members, **how).logits
    distilled = defenses.self_distill(softmax_network(), x, labels, members, **how).logits
    found = [
        metrics.auc(attacks.lira(logits, labels, members, variance="pooled"), members) for logits in (plain, distilled)
    ]
    assert found[1] < found[0] - 0.05


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_soft_labels_have_the_entropy_that_was_asked_for(share):
    smoothing = defenses.smoothing_for(share, 5)
    target = np.full(5, smoothing / 5)
    target[0] += 1 - smoothing
    assert -(target * np.log(target)).sum() == pytest.approx(share * np.log(5))


def test_no_entropy_is_no_smoothing_and_all_of_it_is_refused():
    assert defenses.smoothing_for(0, 5) == 0
    with pytest.raises(ValueError, match="entropy_share=1"):
        defenses.smoothing_for(1, 5)


def test_the_order_is_all_that_is_left_of_ranked_answers():
    other = np.sort(np.random.default_rng(9).normal(size=(4, 50, 5)), axis=2)
    other = np.take_along_axis(other, np.argsort(np.argsort(LOGITS, axis=2), axis=2), axis=2)
    np.testing.assert_array_equal(defenses.ranked(LOGITS), defenses.ranked(other))
    by_hand = np.array([0.25, 1.0, 0.5]) / 1.75
    np.testing.assert_allclose(np.exp(defenses.ranked(np.array([[[-1.0, 5.0, 0.0]]]))[0, 0]), by_hand)


def one_way(targets, logits, target, ascend):
    """RelaxLoss of one batch, patient by patient."""
    p = softmax(logits, axis=1)
    losses = -(targets * np.log(p)).sum(axis=1)
    if losses.mean() > target:
        return losses.mean()
    if ascend:
        return -losses.mean()
    flat = []
    for t, q in zip(targets, p, strict=True):
        sure = q[t.argmax()]
        soft = np.where(t == 1, sure, (1 - sure) / (len(t) - 1)) if q.argmax() == t.argmax() else t
        flat.append(-(soft * np.log(q)).sum())
    return np.mean(flat)


@pytest.mark.parametrize("target", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("epoch", [0, 1])
def test_relax_loss_is_the_algorithm_patient_by_patient_for_one_batch_and_for_one_a_model(target, epoch):
    rng = np.random.default_rng(0)
    logits, targets = 2 * rng.normal(size=(3, 8, 4)), np.eye(4)[rng.integers(0, 4, (3, 8))]
    loss = defenses.RelaxLoss(target)
    loss.epoch.assign(epoch)
    each = [one_way(t, z, target, epoch == 0) for t, z in zip(targets, logits, strict=True)]
    weights = np.full((3, 8), 1 / 8)
    assert float(loss(targets, logits, sample_weight=weights)) == pytest.approx(sum(each))
    assert float(loss(targets[0], logits[0])) == pytest.approx(each[0])


def test_a_confidence_penalty_is_cross_entropy_of_soft_labels_less_entropy():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(8, 4)), np.eye(4)[rng.integers(0, 4, 8)]
    p, soft = softmax(logits, axis=1), 0.9 * targets + 0.1 / 4
    by_hand = -(soft * np.log(p)).sum(axis=1) + 0.3 * (p * np.log(p)).sum(axis=1)
    loss = defenses.ConfidencePenalty(0.3, label_smoothing=0.1, reduction="none")
    np.testing.assert_allclose(loss(targets, logits), by_hand)


def test_relax_loss_counts_epochs_in_kerass_own_fit(cohort):
    x, labels = cohort
    loss = defenses.RelaxLoss(1.0)
    model = networks.softmax(100, 3, loss=loss)
    model.fit(x, np.eye(3)[labels], epochs=4, verbose=0, callbacks=[loss.counter()])
    assert int(loss.epoch) == 3


def test_a_cohort_too_small_for_ten_teachers_gives_each_a_member_all_the_same():
    rng = np.random.default_rng(0)
    labels = np.arange(16) % 2
    features = rng.normal(size=(16, 30)).astype(np.float32)
    members = membership.paired_halves(labels, 4, 0)
    how, model = HOW | {"epochs": 2, "batch_size": 4}, softmax_network(30, 2)
    logits = defenses.self_distill(model, features, labels, members, n_absent=8, **how).logits
    assert np.isfinite(logits).all()
    few = np.zeros((2, 16), bool)
    few[:, :1] = True
    with pytest.raises(ValueError, match="1 members cannot be spread over 10 teachers"):
        defenses.self_distill(model, features, labels, few, n_absent=1, **how)
