import dataclasses

import dp_accounting
import numpy as np
import pytest
from dp_accounting import rdp
from scipy.stats import binom, norm

from genlib import models, privacy
from genlib.recipes import Privacy, Recipe

SOFTMAX = Recipe("softmax", epochs=5, batch_size=None, learning_rate=0.5, privacy=Privacy(3.0))
POISSON = Recipe("softmax", epochs=10, batch_size=32, learning_rate=0.5, privacy=Privacy(1.0))


# --- accounting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("steps", [1, 30, 60])
def test_the_noise_keeps_the_promise_and_wastes_at_most_one_percent(epsilon, steps):
    recipe = Recipe(epochs=steps, batch_size=None, privacy=Privacy(epsilon))
    sigma = privacy.calibrate(recipe, n=384)
    assert 0.99 * epsilon < privacy.accountant_epsilon(sigma, steps, 1e-5) <= epsilon


@pytest.mark.parametrize("sigma, steps", [(1.0, 1), (2.0, 4), (10.0, 30), (20.0, 30), (5.0, 60)])
def test_the_accountant_agrees_with_the_closed_form(sigma, steps):
    epsilon = privacy.accountant_epsilon(sigma, steps, 1e-5)
    # The accountant errs to the safe side only: its delta at its own epsilon is an upper bound.
    delta = privacy.gaussian_delta(epsilon, sigma, steps)
    assert delta <= 1e-5 * (1 + 1e-6)
    assert privacy.gaussian_delta(0.99 * epsilon, sigma, steps) > 1e-5


@pytest.mark.parametrize("sigma, steps", [(1.0, 1), (2.0, 4), (10.0, 30), (50.0, 30)])
def test_loss_distributions_never_promise_less_than_renyi_divergence(sigma, steps):
    accountant = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(dp_accounting.GaussianDpEvent(sigma), steps)
    assert privacy.accountant_epsilon(sigma, steps, 1e-5) <= accountant.get_epsilon(1e-5)


@pytest.mark.parametrize("epsilon, sigma", [(0.5, 2.0), (1.0, 1.0), (2.0, 0.7)])
def test_the_closed_form_is_the_divergence_of_two_gaussians(epsilon, sigma):
    # Hockey-stick divergence by summing max(0, p - e^eps q) over a fine grid.
    x = np.linspace(-20, 20, 400_001)
    gap = norm.pdf(x, 1 / sigma, 1) - np.exp(epsilon) * norm.pdf(x, 0, 1)
    assert privacy.gaussian_delta(epsilon, sigma, 1) == pytest.approx(np.trapz(np.maximum(gap, 0), x), rel=1e-4)


def test_more_noise_costs_less_and_more_steps_cost_more():
    by_noise = [privacy.accountant_epsilon(s, 10, 1e-5) for s in (2.0, 4.0, 8.0)]
    by_steps = [privacy.accountant_epsilon(8.0, t, 1e-5) for t in (1, 10, 50)]
    assert by_noise == sorted(by_noise, reverse=True) and by_steps == sorted(by_steps)
    sigmas = [privacy.calibrate(dataclasses.replace(SOFTMAX, privacy=Privacy(e)), 100) for e in (0.5, 1.0, 2.0)]
    assert sigmas == sorted(sigmas, reverse=True)


@pytest.mark.parametrize("sigma, steps", [(1.0, 1), (10.0, 30), (3.0, 20)])
def test_the_trade_off_curve_is_the_dual_of_all_epsilons_and_deltas(sigma, steps):
    fpr = np.array([0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0])
    epsilons = np.linspace(-15, 15, 30_001)
    deltas = privacy.gaussian_delta(epsilons, sigma, steps)
    # Negative epsilons too: e^eps FPR + delta is a tangent of the curve at each of them.
    dual = np.min(np.exp(epsilons) * fpr[:, None] + deltas, axis=1)
    np.testing.assert_allclose(privacy.trade_off(fpr, sigma, steps), dual, atol=1e-3)
    assert (privacy.trade_off(fpr, sigma, steps) >= fpr).all()


def test_the_trade_off_curve_lies_below_the_line_of_one_epsilon_and_delta():
    fpr = np.linspace(0, 1, 101)
    curve, epsilon = privacy.trade_off(fpr, 10.0, 30), privacy.accountant_epsilon(10.0, 30, 1e-5)
    assert (curve <= np.exp(epsilon) * fpr + 1e-5 + 1e-12).all()


@pytest.mark.parametrize("sigma, steps", [(0.0, 3), (-1.0, 3), (1.0, 0)])
def test_no_noise_and_no_steps_are_errors(sigma, steps):
    with pytest.raises(ValueError, match="the first two must be above 0"):
        privacy.accountant_epsilon(sigma, steps, 1e-5)


@pytest.mark.parametrize("delta", [0.01, 0.02, 0.5])
def test_a_delta_of_one_patient_or_more_is_an_error(delta):
    recipe = dataclasses.replace(SOFTMAX, privacy=Privacy(3.0, delta=delta))
    with pytest.raises(ValueError, match="must be below 1/n = 0.01 for n=100"):
        privacy.calibrate(recipe, n=100)


def test_a_recipe_without_privacy_has_no_budget():
    with pytest.raises(ValueError, match="no budget"):
        privacy.steps_of(Recipe(batch_size=None), 100)


# --- Poisson sampling -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma, steps, rate", [(1.0, 50, 0.1), (3.0, 360, 1 / 12), (2.0, 100, 0.5)])
def test_sampled_steps_never_promise_less_than_renyi_divergence(sigma, steps, rate):
    renyi = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma))
    renyi.compose(dp_accounting.SelfComposedDpEvent(step, steps))
    assert privacy.accountant_epsilon(sigma, steps, 1e-5, rate) <= renyi.get_epsilon(1e-5)


@pytest.mark.parametrize("sigma, rate", [(1.0, 0.1), (2.0, 0.5)])
def test_one_sampled_step_costs_no_less_than_the_divergence_of_its_two_distributions(sigma, rate):
    # One step with and without a patient: N(0, sigma^2) against the mixture; the exact delta at the claimed epsilon.
    epsilon = privacy.accountant_epsilon(sigma, 1, 1e-3, rate)
    z = np.linspace(-12 * sigma, 12 * sigma + 1, 400_001)
    without = norm.pdf(z, 0, sigma)
    mixed = (1 - rate) * without + rate * norm.pdf(z, 1, sigma)
    for one, other in ((mixed, without), (without, mixed)):
        delta = np.trapz(np.maximum(one - np.exp(epsilon) * other, 0), z)
        assert delta <= 1e-3 * 1.001
    # And it wastes next to nothing.
    assert np.trapz(np.maximum(mixed - np.exp(epsilon * 0.97 - 2e-3) * without, 0), z) > 1e-3


def test_sampling_every_patient_is_a_full_batch():
    assert privacy.accountant_epsilon(5.0, 40, 1e-5, 1.0) == privacy.accountant_epsilon(5.0, 40, 1e-5)


def test_the_noise_of_sampled_steps_keeps_the_promise_and_wastes_at_most_one_percent():
    sigma = privacy.calibrate(POISSON, n=384)
    spent = privacy.accountant_epsilon(sigma, privacy.steps_of(POISSON, 384), 1e-5, 32 / 384)
    assert 0.99 <= spent <= 1.0


def test_steps_and_rate_follow_from_the_nominal_number_alone():
    assert privacy.rate_of(POISSON, 384) == 32 / 384
    assert privacy.steps_of(POISSON, 384) == 120
    assert privacy.steps_of(POISSON, 385) == 130
    with pytest.raises(ValueError, match="batch_size=32 for n=20"):
        privacy.steps_of(POISSON, 20)


@pytest.mark.parametrize("sigma, steps", [(10.0, 30), (3.0, 20)])
def test_the_general_curve_comes_to_the_exact_one_when_nearly_all_are_sampled(sigma, steps):
    fpr = np.array([0.001, 0.01, 0.1, 0.5])
    np.testing.assert_allclose(
        privacy.trade_off(fpr, sigma, steps, rate=0.999), privacy.trade_off(fpr, sigma, steps), rtol=0.02
    )


def test_the_curve_of_sampled_steps_lies_between_guessing_and_its_epsilon_and_rises():
    fpr = np.linspace(0.001, 0.999, 50)
    bound = privacy.trade_off(fpr, 3.0, 120, rate=32 / 384)
    epsilon = privacy.accountant_epsilon(3.0, 120, 1e-5, 32 / 384)
    assert (bound >= fpr - 1e-9).all() and (np.diff(bound) >= -1e-12).all()
    assert (bound <= np.minimum(1, np.exp(epsilon) * fpr + 1e-5) + 1e-3).all()
    assert (privacy.trade_off(fpr, 2.0, 120, rate=32 / 384) >= bound - 1e-9).all()


def attack_on_the_sum(sigma, steps, rate, cut):
    """Rates of the attack that adds up all steps' sums and calls a member whoever is above the cut."""
    times = np.arange(steps + 1)
    tpr = (binom.pmf(times, steps, rate) * norm.sf(cut[:, None], times, sigma * np.sqrt(steps))).sum(axis=1)
    return norm.sf(cut, 0, sigma * np.sqrt(steps)), tpr


SAMPLED = [(1.0, 50, 0.1), (3.0, 120, 1 / 12), (2.0, 100, 0.5), (0.8, 20, 0.02)]


@pytest.mark.parametrize("sigma, steps, rate", SAMPLED)
def test_no_epsilon_of_sampled_steps_is_below_what_an_attack_on_their_sum_reaches(sigma, steps, rate):
    cut = np.linspace(-8 * sigma * np.sqrt(steps), steps + 8 * sigma * np.sqrt(steps), 4001)
    fpr, tpr = attack_on_the_sum(sigma, steps, rate, cut)
    epsilon = privacy.accountant_epsilon(sigma, steps, 1e-5, rate)
    # Both orders: more true than false positives, and more true than false negatives.
    assert (tpr - np.exp(epsilon) * fpr).max() <= 1e-5 and ((1 - fpr) - np.exp(epsilon) * (1 - tpr)).max() <= 1e-5
    # The bound is not idle: at half of its epsilon the same attack would break it. (Where a patient is hardly ever
    # drawn, a sum over all steps is too weak an attack to show that.)
    assert rate < 0.05 or (tpr - np.exp(epsilon / 2) * fpr).max() > 1e-5


@pytest.mark.parametrize("sigma, steps, rate", SAMPLED)
def test_no_attack_on_the_sum_of_sampled_steps_lies_above_the_trade_off_curve(sigma, steps, rate):
    cut = np.linspace(-4 * sigma * np.sqrt(steps), steps + 4 * sigma * np.sqrt(steps), 400)
    for sign in (1, -1):
        fpr, tpr = attack_on_the_sum(sigma, steps, rate, cut)
        fpr, tpr = (fpr, tpr) if sign > 0 else (1 - tpr, 1 - fpr)
        assert (privacy.trade_off(fpr, sigma, steps, rate) >= tpr - 1e-9).all()


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_the_trade_off_curve_rises_from_nothing_to_one_and_more_steps_or_less_noise_lift_it(rate):
    fpr = np.linspace(0, 1, 201)
    curve = privacy.trade_off(fpr, 3.0, 60, rate)
    assert (np.diff(curve) >= -1e-12).all() and (curve >= fpr - 1e-9).all() and curve[-1] == 1 and curve[0] < 1e-4
    assert (privacy.trade_off(fpr, 3.0, 120, rate) >= curve - 1e-9).all()
    assert (privacy.trade_off(fpr, 1.5, 60, rate) >= curve - 1e-9).all()
    assert privacy.trade_off(0.1, 3.0, 60, rate).shape == () and privacy.trade_off(fpr[None], 3.0, 60, rate).ndim == 2


@pytest.mark.parametrize("epsilon, batch_size, epochs", [(0.1, 8, 3), (1.0, 64, 20), (8.0, 32, 10), (3.0, 383, 4)])
def test_over_many_batch_sizes_the_promise_is_kept_and_at_most_one_percent_wasted(epsilon, batch_size, epochs):
    recipe = Recipe("softmax", epochs=epochs, batch_size=batch_size, privacy=Privacy(epsilon))
    mechanism = privacy.mechanism(recipe, 384)
    spent = privacy.accountant_epsilon(mechanism.noise, mechanism.steps, 1e-5, mechanism.rate)
    assert 0.99 * epsilon <= spent <= epsilon
    assert mechanism.rate * mechanism.steps >= epochs - 1e-9  # never fewer passes than asked for


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, np.nan])
def test_a_rate_that_is_no_chance_is_an_error(rate):
    with pytest.raises(ValueError, match="the rate"):
        privacy.accountant_epsilon(1.0, 3, 1e-5, rate)


# --- what is trained ------------------------------------------------------------------------------------------------


def test_a_noisy_mean_costs_as_much_as_one_step_more():
    with_mean = dataclasses.replace(SOFTMAX, privacy=Privacy(3.0, noisy_mean=True))
    longer = dataclasses.replace(SOFTMAX, epochs=6)
    assert privacy.calibrate(with_mean, 100) == privacy.calibrate(longer, 100)
    assert privacy.mechanism(with_mean, 100).mean_noise == privacy.calibrate(longer, 100)
    assert privacy.mechanism(SOFTMAX, 100).mean_noise == 0


def test_the_mechanism_is_the_recipe_in_numbers():
    recipe = dataclasses.replace(POISSON, privacy=Privacy(1.0, clip_norm=0.5))
    mechanism = privacy.mechanism(recipe, 384)
    assert mechanism.noise == 0.5 * privacy.calibrate(recipe, 384)
    assert (mechanism.clip_norm, mechanism.rate, mechanism.steps, mechanism.divisor) == (0.5, 32 / 384, 120, 32)
    with pytest.raises(ValueError, match="optimizer='adam'"):
        privacy.mechanism(dataclasses.replace(recipe, optimizer="adam"), 384)


# --- release --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [8, 60])
def test_a_release_is_a_plain_model_that_cannot_be_repeated_and_leaves_nothing_on_disk(d, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, d)).astype(np.float32), np.arange(30) % 3
    (first, words), (second, _) = (privacy.release(x, y, SOFTMAX, n=30) for _ in range(2))
    assert type(first).__name__ == "Functional" and first.input_shape == (None, d)
    assert not np.allclose(first.get_weights()[0], second.get_weights()[0])
    assert not np.allclose(models.predict(first, x), models.predict(second, x))
    assert "no seed was kept" in words and "Not for release" not in words
    assert not list(tmp_path.iterdir())


def test_without_a_promise_nothing_is_released():
    with pytest.raises(ValueError, match="privacy=None"):
        privacy.release(np.zeros((4, 2)), np.arange(4) % 2, Recipe("softmax", batch_size=None), n=4)


# --- the statement ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "1e-05",
        "add-or-remove neighbors",
        "5 gradient steps (full batches",
        "clip norm 1",
        "nominally 384 members",
        "Not covered",
        "choice of hyperparameters",
        "genes by variance",
        "labels that were called",
        "class list",
        "nominal number of members",
        "floating-point",
        "random number generator",
        "seed",
        "Not for release",
    ],
)
def test_the_statement_says(words):
    assert words in privacy.statement(SOFTMAX, n=384)


def test_the_statement_gives_the_epsilon_that_the_noise_really_has():
    sigma = privacy.calibrate(SOFTMAX, 384)
    text = privacy.statement(SOFTMAX, 384)
    assert f"({privacy.accountant_epsilon(sigma, 5, 1e-5):.2f}, 1e-05)" in text
    assert f"noise multiplier {sigma:.3f}" in text


def test_the_statement_names_the_panel():
    assert "the published pam50 panel" in privacy.statement(SOFTMAX, 384, panel="pam50")
    assert "all genes" in privacy.statement(SOFTMAX, 384)


def test_without_privacy_the_statement_promises_nothing():
    assert privacy.statement(Recipe(), n=384).startswith("No privacy guarantee")
