import numpy as np
import pytest
from scipy.special import softmax

from genlib import attacks, defenses

LOGITS = np.random.default_rng(0).normal(0, 3, (4, 50, 5))

ALL = {
    "class only": defenses.class_only,
    "top 2": lambda logits: defenses.top(logits, 2),
    "top 2, no confidence": lambda logits: defenses.top(logits, 2, confidence=False),
    "rounded": lambda logits: defenses.rounded(logits, 2),
    "tempered": lambda logits: defenses.tempered(logits, 5.0),
    "noisy": lambda logits: defenses.noisy(logits, 2.0, seed=0),
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
    members = np.repeat(np.random.default_rng(2).random((2, 50)) < 0.5, 2, axis=0)
    sure = attacks.signal(defenses.class_only(LOGITS), labels)
    right = attacks.label_only(LOGITS, labels, members, calibrated=False)
    assert len(np.unique(sure.round(6))) == 2
    np.testing.assert_array_equal(sure > 0, right == 1)


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
