"""The bank's DP-SGD and TF-Privacy's own, on the same members: two programs, one mechanism."""

import dataclasses

import dp_accounting
import numpy as np
import pytest
import tensorflow as tf
from dp_accounting import pld
from scipy import stats

from genlib import attacks, audit, bank, cohorts, features, membership, metrics, networks, privacy
from genlib.privacy import Privacy

EPSILON, EPOCHS, N_MODELS = 8.0, 30, 16


@pytest.fixture(scope="module")
def case():
    cohort = cohorts.load("simulated", n_patients=200, n_genes=300, n_classes=3, seed=0)
    x = features.transform(cohort)
    model = networks.mlp(x.shape[1], 3, hidden=(16,), learning_rate=0.1, momentum=0.9)
    return model, x, cohort.labels, membership.bernoulli(len(x), N_MODELS, seed=0)


@pytest.fixture(scope="module")
def trained(case):
    options = {"privacy": Privacy(EPSILON), "n": 100, "epochs": EPOCHS, "seed": 0}
    ours = bank.train(*case, batch_size=None, progress=False, **options).logits
    return {"TF-Privacy": privacy.tf_privacy(*case, **options), "bank": ours}


def difference(measured):
    """Mean over models of TF-Privacy minus the bank, and half the width of its 99 % interval."""
    each = np.subtract(measured["TF-Privacy"], measured["bank"])
    return each.mean(), stats.t.ppf(0.995, len(each) - 1) * stats.sem(each)


def test_both_are_as_accurate_on_held_out_patients(case, trained):
    _, _, y, members = case
    accuracy = {
        name: [(one.argmax(axis=1) == y)[~inside].mean() for one, inside in zip(logits, members, strict=True)]
        for name, logits in trained.items()
    }
    mean, width = difference(accuracy)
    assert abs(mean) <= width < 0.05
    assert min(map(np.mean, accuracy.values())) > 0.5  # of three classes; nothing would agree with nothing


def test_both_give_away_as_much_to_a_threshold_on_the_loss(case, trained):
    _, _, y, members = case
    scores = {name: attacks.threshold(logits, y, members) for name, logits in trained.items()}
    areas = {
        name: [metrics.auc(one[None], inside[None]) for one, inside in zip(found, members, strict=True)]
        for name, found in scores.items()
    }
    mean, width = difference(areas)
    assert abs(mean) <= width < 0.05


def without_a_start(n_features):
    """A softmax regression that starts at zero, so that models on the same members differ by their noise alone."""
    layers = [tf.keras.Input((n_features,)), tf.keras.layers.Dense(2, None, True, "zeros")]
    return networks.finish(tf.keras.Sequential(layers), learning_rate=0.1, momentum=0.9)


def test_where_noise_is_nearly_all_both_have_as_much_of_it():
    x, y = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32), np.arange(40) % 2
    members, options = np.ones((64, 40), bool), {"n": 40, "epochs": 5, "seed": 0}
    theirs = privacy.tf_privacy(without_a_start(8), x, y, members, Privacy(0.05, 1e-5), **options)
    options |= {"privacy": Privacy(0.05, 1e-5), "batch_size": None, "progress": False}
    ours = bank.train(without_a_start(8), x, y, members, **options).logits
    spread = [np.sqrt((logits.std(axis=0) ** 2).mean()) for logits in (theirs, ours)]
    assert spread[0] == pytest.approx(spread[1], rel=0.12)


def test_without_noise_both_take_the_same_steps(case):
    model, x, y, members = case
    start = [weights.astype(np.float32) for weights in bank.clone(model, 3).get_weights()]
    options = {"epochs": EPOCHS, "seed": 0, "privacy": Privacy(EPSILON), "n": 100}
    ours = bank.train(
        *case[:3], members[:1], batch_size=None, start=start, fault=audit.FAULTS["no noise"], progress=False, **options
    )
    plan = dataclasses.replace(Privacy(EPSILON).mechanism(100, EPOCHS), noise=0.0)
    private = privacy.tf_privacy_model(model, plan, seed=0)
    private.set_weights(start)
    private.fit(x[members[0]], y[members[0]], batch_size=len(y), epochs=EPOCHS, shuffle=False, verbose=0)
    np.testing.assert_allclose(private(x).numpy(), ours.logits[0], atol=2e-3)


def test_every_model_of_tf_privacy_draws_noise_of_its_own_and_the_same_again():
    x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    members = np.repeat(np.arange(40)[None] % 2 == 0, 4, axis=0)
    case = (without_a_start(8), x, np.arange(40) % 3 % 2, members, Privacy(1.0), 20, 3, 0)
    first, again = privacy.tf_privacy(*case), privacy.tf_privacy(*case)
    np.testing.assert_array_equal(first, again)
    between = np.abs(first[:, None] - first[None]).max(axis=(2, 3))
    assert between[~np.eye(4, dtype=bool)].min() > 1e-3


@pytest.mark.parametrize("epsilon", [1.0, 16.0])
def test_the_noise_is_that_of_dp_accounting_at_its_own_grid(epsilon):
    plan = Privacy(epsilon).mechanism(n=384, epochs=60)
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(dp_accounting.GaussianDpEvent(plan.noise_multiplier), 60)
    assert accountant.get_epsilon(1e-5) == pytest.approx(epsilon, rel=0.005)
