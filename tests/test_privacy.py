"""DP-SGD: calibration against closed forms, clipping and noise against naive ones, and what is refused."""

import dp_accounting
import numpy as np
import pytest
import tensorflow as tf
from dp_accounting import rdp
from tensorflow_privacy.privacy.fast_gradient_clipping import layer_registry
from tensorflow_privacy.privacy.keras_models.dp_keras_model import DPModel

from genlib import bank, models, privacy
from genlib.recipes import Privacy, Recipe

layers = tf.keras.layers
EVENTS = [(0.7, 1), (2.0, 3), (10.0, 30), (25.0, 200)]


@pytest.fixture(autouse=True)
def seeded():
    # Deterministic TensorFlow refuses to draw noise without a global seed.
    tf.keras.utils.set_random_seed(0)


@pytest.fixture
def without_noise(monkeypatch):
    monkeypatch.setattr(privacy, "calibrate", lambda recipe, n: 0.0)


def private(architecture="mlp", epsilon=3.0, clip_norm=1.0, **options):
    options = {"hidden": (6,), "epochs": 3, "batch_size": None, **options}
    return Recipe(architecture, privacy=Privacy(epsilon, clip_norm=clip_norm), **options)


def patients(n, d=5, k=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(np.float32), rng.integers(0, k, n)


def updates(model, x, y):
    before = [w.copy() for w in model.get_weights()]
    model.fit(x, y, epochs=1, verbose=0)
    return [after - start for after, start in zip(model.get_weights(), before, strict=True)]


def norm(arrays):
    return np.sqrt(sum(np.sum(np.square(a, dtype=np.float64)) for a in arrays))


# Accounting


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("steps", [1, 30])
def test_the_calibrated_noise_keeps_the_promise_without_wasting_it(epsilon, steps):
    sigma = privacy.calibrate(private(epsilon=epsilon, epochs=steps), n=100)
    assert 0.99 * epsilon < privacy.accountant_epsilon(sigma, steps, 1e-5) <= epsilon


@pytest.mark.parametrize(("sigma", "steps"), EVENTS)
def test_the_closed_form_agrees_with_the_accountant(sigma, steps):
    epsilon = privacy.accountant_epsilon(sigma, steps, 1e-5)
    assert privacy.gaussian_delta(epsilon, sigma, steps) == pytest.approx(1e-5, rel=0.01)


@pytest.mark.parametrize(("sigma", "steps"), EVENTS)
def test_the_accountant_is_never_above_renyi_accounting(sigma, steps):
    loose = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    loose.compose(dp_accounting.GaussianDpEvent(sigma), steps)
    assert privacy.accountant_epsilon(sigma, steps, 1e-5) <= loose.get_epsilon(1e-5)


def test_more_epsilon_needs_less_noise_and_more_steps_need_more():
    by_epsilon = [privacy.calibrate(private(epsilon=epsilon), 100) for epsilon in (0.5, 1.0, 2.0, 4.0, 8.0)]
    by_steps = [privacy.calibrate(private(epochs=epochs), 100) for epochs in (1, 10, 100)]
    assert (np.diff(by_epsilon) < 0).all()
    assert (np.diff(by_steps) > 0).all()


@pytest.mark.parametrize(("sigma", "steps"), EVENTS)
def test_the_trade_off_is_the_tightest_of_all_epsilon_delta_bounds(sigma, steps):
    # Negative epsilon too: that half of the curve bounds attacks with a high false positive rate.
    reach = 6 * np.sqrt(steps) / sigma + steps / sigma**2
    epsilons = np.linspace(-reach, reach, 20001)
    deltas = privacy.gaussian_delta(epsilons, sigma, steps)
    for fpr in (1e-3, 0.01, 0.1, 0.5, 0.9):
        tightest = (np.exp(epsilons) * fpr + deltas).min()
        assert privacy.trade_off(fpr, sigma, steps) == pytest.approx(tightest, abs=1e-3)


@pytest.mark.parametrize("n", [100_000, 200_000])
def test_a_delta_of_one_in_n_or_more_is_refused(n):
    with pytest.raises(ValueError, match="must be below 1/n"):
        privacy.calibrate(private(), n)


@pytest.mark.parametrize("call", [privacy.steps_of, lambda r: privacy.calibrate(r, 50), lambda r: make(r, 50)])
def test_smaller_batches_are_refused(call):
    with pytest.raises(ValueError, match="batch_size=32 with privacy"):
        call(private(batch_size=32))


def make(recipe, n, clipping="fast", d=5, k=3):
    return privacy.dp_model(recipe, d, k, n, seed=0, clipping=clipping)


@pytest.mark.parametrize(("sigma", "steps"), [(0.0, 1), (-1.0, 1), (1.0, 0)])
def test_the_accountant_refuses_no_noise_and_no_steps(sigma, steps):
    with pytest.raises(ValueError, match="must be above 0"):
        privacy.accountant_epsilon(sigma, steps, 1e-5)


# The guard of fast clipping


class OwnDense(layers.Dense):
    """A subclass may do anything in its call."""


REFUSED = {
    "Dropout": lambda: layers.Dropout(0.5),
    "SpatialDropout1D": lambda: layers.SpatialDropout1D(0.5),
    "GaussianNoise": lambda: layers.GaussianNoise(0.5),
    "GaussianDropout": lambda: layers.GaussianDropout(0.5),
    "AlphaDropout": lambda: layers.AlphaDropout(0.5),
    "BatchNormalization": lambda: layers.BatchNormalization(),
    "LayerNormalization": lambda: layers.LayerNormalization(),
    "Conv1D": lambda: layers.Conv1D(4, 1),
    "Lambda": lambda: layers.Lambda(lambda x: 2 * x),
    "OwnDense": lambda: OwnDense(4),
    "activation": lambda: layers.Dense(4, activation=lambda x: x * tf.random.uniform(tf.shape(x))),
    "activity": lambda: layers.Dense(4, activity_regularizer=tf.keras.regularizers.L2(0.1)),
}


def with_layer(layer, model_class=tf.keras.Model, **options):
    wants_sequence = isinstance(layer, (layers.SpatialDropout1D, layers.Conv1D))
    inputs = tf.keras.Input((5, 4) if wants_sequence else (5,))
    hidden = layer(layers.Dense(4)(inputs))
    return model_class(inputs=inputs, outputs=layers.Dense(3)(hidden), **options)


@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_whose_gradient_fast_clipping_may_not_bound_is_refused(name):
    with pytest.raises(ValueError, match=name):
        privacy.refuse_unclipped(with_layer(REFUSED[name]()))


def test_a_layer_that_is_used_twice_is_refused():
    inputs, shared = tf.keras.Input((4,)), layers.Dense(4)
    model = tf.keras.Model(inputs, layers.Dense(3)(shared(shared(inputs))))
    with pytest.raises(ValueError, match="used more than once"):
        privacy.refuse_unclipped(model)


@pytest.mark.parametrize("activation", [None, "linear", "relu", "sigmoid", "tanh", "elu", "softmax"])
def test_a_deterministic_dense_layer_is_accepted(activation):
    privacy.refuse_unclipped(with_layer(layers.Dense(4, activation=activation)))


def test_dropout_breaks_the_clipping_of_tf_privacy_and_is_therefore_refused():
    # Norms and gradients come from two forward passes with two masks. This test shows why the guard exists; should it
    # fail after an update of TF-Privacy, dropout may be let in.
    inputs = tf.keras.Input((5,))
    hidden = layers.Dropout(0.5)(layers.Dense(32, activation="relu")(inputs))
    registry = layer_registry.make_default_layer_registry()
    model = DPModel(
        1.0, 0.0, use_xla=False, layer_registry=registry, inputs=inputs, outputs=layers.Dense(3)(hidden)
    )  # fmt: skip
    assert model._enable_fast_peg_computation
    loss = tf.keras.losses.SparseCategoricalCrossentropy(True, tf.keras.losses.Reduction.SUM)
    rate = 0.01
    model.compile(tf.keras.optimizers.SGD(rate), loss)
    x, start, longest = np.full((1, 5), 10, np.float32), model.get_weights(), 0.0
    label = model.predict(x, verbose=0).argmin(axis=1)
    for _ in range(20):
        model.set_weights(start)
        longest = max(longest, norm(updates(model, x, label)) / rate)
    assert longest > 1.05


@pytest.mark.parametrize("architecture", ["mlp", "softmax"])
def test_dp_model_takes_the_fast_path(architecture):
    model = make(private(architecture), 50)
    assert model.clipping_path == "fast" and model._enable_fast_peg_computation


def test_dropout_trains_with_slow_clipping_only():
    recipe = private(dropout=0.5)
    with pytest.raises(ValueError, match="clipping='slow'"):
        make(recipe, 50)
    assert make(recipe, 50, "slow").clipping_path == "slow"


@pytest.mark.parametrize("options", [{"l2": 0.1}, {"optimizer": "adam"}, {"label_smoothing": 0.1}])
def test_what_private_training_would_leave_out_is_refused(options):
    # Trained anyway, the model would not be what its recipe says.
    with pytest.raises(ValueError, match=next(iter(options))):
        make(private(**options), 50)


def test_an_unknown_way_of_clipping_is_refused():
    with pytest.raises(ValueError, match="choose 'fast' or 'slow'"):
        make(private(), 50, "medium")


# Clipping and noise


@pytest.mark.parametrize("clipping", ["fast", "slow"])
@pytest.mark.parametrize(("n_members", "n"), [(12, 12), (12, 20), (12, 7)])
@pytest.mark.parametrize("architecture", ["mlp", "softmax"])
def test_a_step_without_noise_is_the_naive_sum_of_clipped_gradients(
    without_noise, architecture, clipping, n_members, n
):
    x, y = patients(n_members)
    recipe = private(architecture, clip_norm=2.0, learning_rate=0.5)
    model = make(recipe, n, clipping)
    total, lengths = [np.zeros(w.shape) for w in model.get_weights()], []
    for i in range(n_members):
        with tf.GradientTape() as tape:
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(y[i : i + 1], model(x[i : i + 1]))
        gradients = [g.numpy() for g in tape.gradient(loss, model.trainable_variables)]
        lengths.append(norm(gradients))
        total = [t + g * min(1, 2.0 / lengths[-1]) for t, g in zip(total, gradients, strict=True)]
    assert min(lengths) < 2.0 < max(lengths)  # else clipping would not be seen
    for update, gradient in zip(updates(model, x, y), total, strict=True):
        np.testing.assert_allclose(update, -0.5 / n * gradient, atol=1e-5)


@pytest.mark.parametrize("kind", ["huge", "zeros", "random"])
@pytest.mark.parametrize("hidden", [(), (1,), (64,), (16, 8)])
@pytest.mark.parametrize("clipping", ["fast", "slow"])
def test_no_patient_moves_the_model_further_than_the_clip_norm(without_noise, clipping, hidden, kind):
    x = {"huge": np.full((1, 5), 1e4), "zeros": np.zeros((1, 5)), "random": patients(1)[0]}[kind].astype(np.float32)
    recipe = private("mlp" if hidden else "softmax", hidden=hidden or (6,), clip_norm=0.3, learning_rate=2.0)
    model = make(recipe, 10, clipping)
    # The least likely class has the longest gradient.
    length = norm(updates(model, x, models.predict(model, x).argmin(axis=1)))
    assert length <= 2.0 / 10 * 0.3 * (1 + 1e-4)
    if kind == "huge":
        assert length > 2.0 / 10 * 0.3 * 0.99  # clipped, and not lost


@pytest.mark.parametrize("clipping", ["fast", "slow"])
@pytest.mark.parametrize("n_members", [10, 17])
def test_the_noise_follows_the_nominal_number_of_members(clipping, n_members):
    # With all-zero features the kernel's gradient is 0, so what moves it is noise.
    recipe = private("softmax", clip_norm=0.7, learning_rate=0.5)
    n, d = 10, 6000
    model = make(recipe, n, clipping, d=d)
    kernel = updates(model, np.zeros((n_members, d), np.float32), np.arange(n_members) % 3)[0]
    expected = 0.5 / n * privacy.calibrate(recipe, n) * 0.7
    assert kernel.std() == pytest.approx(expected, rel=0.03)
    assert abs(kernel.mean()) < 5 * expected / np.sqrt(kernel.size)


# What a private fit refuses


def test_a_private_fit_refuses_smaller_batches():
    x, y = patients(10)
    with pytest.raises(ValueError, match="only full batches"):
        make(private(), 10).fit(x, y, batch_size=5)


def test_a_private_fit_refuses_data_sets():
    x, y = patients(10)
    with pytest.raises(ValueError, match="two arrays"):
        make(private(), 10).fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(10))


@pytest.mark.parametrize(
    "option", ["callbacks", "validation_data", "validation_split", "sample_weight", "class_weight", "shuffle"]
)
def test_a_private_fit_refuses_what_the_guarantee_does_not_cover(option):
    x, y = patients(10)
    with pytest.raises(ValueError, match=option):
        make(private(), 10).fit(x, y, verbose=0, **{option: []})


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_steps_past_the_budget_are_refused_over_all_fits_together(first):
    x, y = patients(10)
    model = make(private(), 10)
    if first:
        model.fit(x, y, epochs=first, verbose=0)
    weights = model.get_weights()
    with pytest.raises(ValueError, match="past the budget of 3"):
        model.fit(x, y, epochs=4 - first, verbose=0)
    assert all((a == b).all() for a, b in zip(model.get_weights(), weights, strict=True))


def test_a_negative_number_of_epochs_does_not_refund_the_budget():
    x, y = patients(10)
    model = make(private(), 10)
    model.fit(x, y, epochs=3, verbose=0)
    try:
        model.fit(x, y, epochs=-3, verbose=0)
    except ValueError:
        pass
    with pytest.raises(ValueError, match="budget"):
        model.fit(x, y, epochs=3, verbose=0)


# The guarantee in words, and private banks

COVERED_NOT = [
    "the choice of hyperparameters",
    "the choice of the cohort's genes by variance and missing values",
    "labels that were called by comparing patients",
    "the class list and the nominal number of members",
    "floating-point rounding and the random number generator",
    "Not for release",
]


@pytest.mark.parametrize("part", ["(3.00, 1e-05)", "add-or-remove", "noise multiplier", *COVERED_NOT])
def test_the_statement_says(part):
    assert part in privacy.statement(private(), 100)


def test_the_statement_names_the_panel():
    assert "published PAM50 panel" in privacy.statement(private(), 100, panel="PAM50")


def test_without_privacy_the_statement_says_that_there_is_no_guarantee():
    text = privacy.statement(Recipe(), 100)
    assert "No privacy guarantee" in text and "epsilon" not in text


def small_bank(seed=0, **options):
    x, y = patients(30)
    members = np.random.default_rng(1).random((2, 30)) < 0.5
    return bank.train(x, y, members, private(), seed, progress=False, **options)


def test_a_private_bank_is_the_same_twice_with_one_seed():
    first, again, other = small_bank(n=15), small_bank(n=15), small_bank(seed=1, n=15)
    assert (first == again).all()
    assert not np.allclose(first, other)


def test_a_private_bank_needs_the_nominal_number_of_members():
    with pytest.raises(ValueError, match="a private recipe needs n"):
        small_bank()
