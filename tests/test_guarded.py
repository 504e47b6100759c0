import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_privacy.privacy.fast_gradient_clipping import layer_registry
from tensorflow_privacy.privacy.keras_models.dp_keras_model import DPModel

from genlib import bank, guarded, membership, models, privacy
from genlib.recipes import Privacy, Recipe

D, K = 12, 3
ARCHITECTURES = {
    "softmax": Recipe("softmax", epochs=5, batch_size=None, learning_rate=0.5, privacy=Privacy(3.0)),
    "mlp": Recipe("mlp", hidden=(7,), epochs=5, batch_size=None, learning_rate=0.5, privacy=Privacy(3.0)),
    "deep mlp": Recipe("mlp", hidden=(6, 5), epochs=5, batch_size=None, learning_rate=0.5, privacy=Privacy(3.0)),
}
SOFTMAX = ARCHITECTURES["softmax"]


@pytest.fixture(autouse=True)
def seeded():
    # Random operations refuse to run deterministically without a seed, and the noise follows it.
    tf.keras.utils.set_random_seed(0)


@pytest.fixture(params=list(ARCHITECTURES))
def recipe(request):
    return ARCHITECTURES[request.param]


@pytest.fixture
def patients():
    rng = np.random.default_rng(0)
    return rng.normal(size=(9, D)).astype(np.float32), rng.integers(0, K, 9)


@pytest.fixture
def no_noise(monkeypatch):
    monkeypatch.setattr(privacy, "calibrate", lambda recipe, n: 0.0)


def with_clip(recipe, clip_norm):
    return dataclasses.replace(recipe, privacy=dataclasses.replace(recipe.privacy, clip_norm=clip_norm))


def step(model, x, y):
    """Change of all weights in one fit of one epoch, as one vector."""
    before = model.get_weights()
    model.fit(x, y, epochs=1, verbose=0)
    return np.concatenate([(b - a).ravel() for a, b in zip(before, model.get_weights(), strict=True)])


def reset(model, seed):
    """A plain model with the start that `dp_model` draws from the seed."""
    return models.build(SOFTMAX, model.input_shape[1], K, seed)


def clipped_sum(model, x, y, clip_norm):
    """Sum of the clipped gradients, one patient and one tape at a time."""
    total = 0.0
    for i in range(len(x)):
        with tf.GradientTape() as tape:
            logits = model(x[i : i + 1], training=True)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(y[i : i + 1], logits)
        grads = tape.gradient(loss, model.trainable_variables)
        flat = np.concatenate([g.numpy().ravel() for g in grads]).astype(np.float64)
        total = total + flat * min(1, clip_norm / max(np.linalg.norm(flat), 1e-300))
    return total


# --- the guard ------------------------------------------------------------------------------------------------------


class OwnDense(tf.keras.layers.Dense):
    pass


def noisy(x):
    return x + tf.random.normal(tf.shape(x))


def in_a_model(*layers):
    inputs = tf.keras.Input((D,))
    x = inputs
    for layer in layers:
        x = layer(x)
    return tf.keras.Model(inputs, tf.keras.layers.Dense(K, name="logits")(x))


LAYERS = tf.keras.layers
REFUSED = {
    "Dropout": [LAYERS.Dropout(0.5)],
    "SpatialDropout1D": [LAYERS.Reshape((D, 1)), LAYERS.SpatialDropout1D(0.5), LAYERS.Flatten()],
    "GaussianNoise": [LAYERS.GaussianNoise(1.0)],
    "GaussianDropout": [LAYERS.GaussianDropout(0.5)],
    "AlphaDropout": [LAYERS.AlphaDropout(0.5)],
    "BatchNormalization": [LAYERS.BatchNormalization()],
    "LayerNormalization": [LAYERS.LayerNormalization()],
    "Conv1D": [LAYERS.Reshape((D, 1)), LAYERS.Conv1D(2, 3), LAYERS.Flatten()],
    "Lambda": [LAYERS.Lambda(noisy)],
    "OwnDense": [OwnDense(4)],
    "Sequential": [tf.keras.Sequential([LAYERS.Dense(4)])],
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_layer_that_is_not_known_to_be_clipped_is_refused(name):
    with pytest.raises(ValueError, match="fast clipping does not bound its gradients"):
        guarded.refuse_unclipped(in_a_model(*REFUSED[name]))


@pytest.mark.parametrize("name", ["SpatialDropout1D", "Conv1D"])
def test_the_layer_itself_is_refused_and_not_only_its_neighbors(name):
    inputs = tf.keras.Input((D, 2))
    with pytest.raises(ValueError, match=rf"\({name}\)"):
        guarded.refuse_unclipped(tf.keras.Model(inputs, REFUSED[name][1](inputs)))


@pytest.mark.parametrize("activation", [noisy, tf.nn.relu, lambda x: x])
def test_an_activation_that_is_not_listed_is_refused(activation):
    with pytest.raises(ValueError, match="not one that is known to be deterministic"):
        guarded.refuse_unclipped(in_a_model(LAYERS.Dense(4, activation=activation)))


@pytest.mark.parametrize("activation", ["linear", "relu", "sigmoid", "tanh", "elu", "softmax"])
def test_listed_activations_pass(activation):
    guarded.refuse_unclipped(in_a_model(LAYERS.Dense(4, activation=activation), LAYERS.ReLU()))


def test_activity_regularization_is_refused():
    with pytest.raises(ValueError, match="activity regularization"):
        guarded.refuse_unclipped(in_a_model(LAYERS.Dense(4, activity_regularizer="l2")))


def test_a_layer_that_is_used_twice_is_refused():
    shared = LAYERS.Dense(D)
    with pytest.raises(ValueError, match="used more than once"):
        guarded.refuse_unclipped(in_a_model(shared, LAYERS.ReLU(), shared))


def test_dropout_in_a_private_recipe_is_refused():
    with pytest.raises(ValueError, match=r"'dropout_1' \(Dropout\)"):
        guarded.dp_model(dataclasses.replace(ARCHITECTURES["mlp"], dropout=0.2), D, K, n=9, seed=0)


def test_dropout_trains_with_slow_clipping():
    recipe = dataclasses.replace(ARCHITECTURES["mlp"], dropout=0.2)
    assert guarded.dp_model(recipe, D, K, n=9, seed=0, clipping="slow").clipping_path == "slow"


def test_without_the_guard_dropout_exceeds_the_clip_norm():
    # Why the guard is there: TF-Privacy takes its norms in a forward pass without dropout.
    inputs = tf.keras.Input((50,))
    hidden = LAYERS.Dropout(0.5)(LAYERS.Dense(64, activation="relu")(inputs))
    registry = layer_registry.make_default_layer_registry()
    model = DPModel(1.0, 0.0, None, False, registry, inputs=inputs, outputs=LAYERS.Dense(K)(hidden))
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    model.compile(tf.keras.optimizers.SGD(1.0), loss)
    assert model._enable_fast_peg_computation
    rng = np.random.default_rng(0)
    start, norms = model.get_weights(), []
    for _ in range(20):
        model.set_weights(start)
        model.train_on_batch(3 * rng.normal(size=(1, 50)), rng.integers(0, K, 1))
        moved = [((a - b) ** 2).sum() for a, b in zip(start, model.get_weights(), strict=True)]
        norms.append(np.sqrt(sum(moved)))
    assert max(norms) > 2.0


# --- the step -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clipping", ["fast", "slow"])
def test_the_path_that_was_asked_for_is_taken(recipe, clipping):
    model = guarded.dp_model(recipe, D, K, n=9, seed=0, clipping=clipping)
    assert model.clipping_path == clipping
    assert model._enable_fast_peg_computation == (clipping == "fast")


@pytest.mark.parametrize("clipping", ["fast", "slow"])
@pytest.mark.parametrize("clip_norm, n", [(0.5, 20), (1e3, 6)])
def test_a_step_is_the_sum_of_the_clipped_gradients_over_the_nominal_n(
    recipe, patients, no_noise, clipping, clip_norm, n
):
    model = guarded.dp_model(with_clip(recipe, clip_norm), D, K, n=n, seed=1, clipping=clipping)
    expected = -recipe.learning_rate / n * clipped_sum(model, *patients, clip_norm)
    np.testing.assert_allclose(step(model, *patients), expected, atol=1e-5)


@pytest.mark.parametrize("clipping", ["fast", "slow"])
def test_fewer_patients_in_a_step_do_not_make_it_longer(patients, no_noise, clipping):
    model = guarded.dp_model(SOFTMAX, D, K, n=9, seed=1, clipping=clipping)
    x, y = patients[0][:2], patients[1][:2]
    np.testing.assert_allclose(step(model, x, y), -0.5 / 9 * clipped_sum(reset(model, 1), x, y, 1.0), atol=1e-5)


def test_fast_and_slow_clipping_train_the_same_model(patients, no_noise):
    recipe = dataclasses.replace(ARCHITECTURES["mlp"], momentum=0.9)
    fast, slow = (guarded.dp_model(recipe, D, K, n=7, seed=1, clipping=c) for c in ("fast", "slow"))
    for model in (fast, slow):
        model.fit(*patients, epochs=5, verbose=0)
    np.testing.assert_allclose(models.predict(fast, patients[0]), models.predict(slow, patients[0]), atol=1e-5)


def test_taking_one_patient_away_moves_a_step_by_at_most_the_clip_norm(patients, no_noise):
    x, y = patients
    whole = step(guarded.dp_model(ARCHITECTURES["mlp"], D, K, n=9, seed=1), x, y)
    for i in range(3):
        rest = np.arange(len(x)) != i
        part = step(guarded.dp_model(ARCHITECTURES["mlp"], D, K, n=9, seed=1), x[rest], y[rest])
        assert np.linalg.norm(whole - part) <= 0.5 / 9 * (1 + 1e-4)


@pytest.mark.parametrize("clipping", ["fast", "slow"])
def test_no_patient_moves_the_model_by_more_than_the_clip_norm(recipe, no_noise, clipping):
    recipe = dataclasses.replace(recipe, learning_rate=1.0, epochs=100)
    model = guarded.dp_model(recipe, D, K, n=1, seed=1, clipping=clipping)
    start = model.get_weights()
    norms = []
    for value in (0.0, 1e-30, 1.0, -1.0, 1e4, -1e4, 1e10, 1e15):
        for k in range(K):
            model.set_weights(start)
            norms.append(np.linalg.norm(step(model, np.full((1, D), value, np.float32), np.array([k]))))
    assert max(norms) <= 1 + 1e-5
    assert max(norms) > 0.999 and np.isfinite(norms).all()


@pytest.mark.parametrize("clip_norm, n", [(1.0, 50), (0.3, 200)])
@pytest.mark.parametrize("clipping", ["fast", "slow"])
def test_the_noise_has_the_stated_deviation(clip_norm, n, clipping):
    recipe = with_clip(SOFTMAX, clip_norm)
    model = guarded.dp_model(recipe, 5000, K, n=n, seed=0, clipping=clipping)
    # Profiles of zeros: nothing but noise reaches the kernel. Their number is not the nominal one.
    noise = step(model, np.zeros((8, 5000), np.float32), np.zeros(8, int))[: 5000 * K]
    stated = recipe.learning_rate / n * privacy.calibrate(recipe, n) * clip_norm
    assert noise.std() == pytest.approx(stated, rel=0.03)
    assert noise.mean() == pytest.approx(0, abs=4 * stated / np.sqrt(noise.size))


def test_every_layer_and_every_step_has_noise_of_its_own():
    recipe = dataclasses.replace(ARCHITECTURES["mlp"], hidden=(40, 40))
    model = guarded.dp_model(recipe, 40, 40, n=9, seed=0)
    x, y = np.zeros((6, 40), np.float32), np.zeros(6, int)
    kernels = []
    for _ in range(3):
        moved = step(model, x, y)
        kernels += [moved[s : s + 1600] for s in (0, 1640, 3280)]
    assert np.abs(np.corrcoef(kernels) - np.eye(9)).max() < 0.15


def test_another_number_of_patients_in_a_second_fit_does_not_repeat_the_noise():
    # TensorFlow compiles a step anew for another shape and starts its random numbers from the same seed: whoever
    # sees two such updates could subtract the noise.
    model = guarded.dp_model(SOFTMAX, 2000, K, n=50, seed=0)
    first = step(model, np.zeros((50, 2000), np.float32), np.zeros(50, int))[:-K]
    try:
        second = step(model, np.zeros((40, 2000), np.float32), np.zeros(40, int))[:-K]
    except ValueError:
        return
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1


@pytest.mark.parametrize("what", ["labels", "features"])
def test_arrays_of_another_type_in_a_second_fit_do_not_repeat_the_noise(what):
    # As with another number of patients: the step is compiled anew, and its random numbers start again.
    model = guarded.dp_model(SOFTMAX, 2000, K, n=50, seed=0)
    x, y = np.zeros((50, 2000), np.float32), np.zeros(50, np.int64)
    first = step(model, x, y)[:-K]
    x, y = (x, y.astype(np.int32)) if what == "labels" else (x.astype(np.int64), y)
    try:
        second = step(model, x, y)[:-K]
    except ValueError:
        return
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1


def test_two_models_in_one_process_do_not_share_their_noise():
    # With the same noise in both, the difference of two models that differ by one patient has none.
    x, y = np.zeros((50, 2000), np.float32), np.zeros(50, int)
    noises = [step(guarded.dp_model(SOFTMAX, 2000, K, n=50, seed=seed), x, y)[:-K] for seed in (0, 1)]
    assert abs(np.corrcoef(noises)[0, 1]) < 0.1


def test_models_of_other_seeds_have_other_noise():
    noises = []
    for seed in (1, 2):
        tf.keras.utils.set_random_seed(seed)
        model = guarded.dp_model(SOFTMAX, 2000, K, n=50, seed=seed)
        noises.append(step(model, np.zeros((5, 2000), np.float32), np.zeros(5, int)))
    assert abs(np.corrcoef(noises)[0, 1]) < 0.1


# --- the budget and what else a fit refuses -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return guarded.dp_model(SOFTMAX, D, K, n=9, seed=0)


@pytest.mark.parametrize("batch_size", [1, 8, 10])
def test_smaller_batches_are_refused(model, patients, batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size} for 9 patients: only full batches"):
        model.fit(*patients, batch_size=batch_size)


def test_data_sets_and_generators_are_refused(model, patients):
    x, y = patients
    for data in (tf.data.Dataset.from_tensor_slices((x, y)).batch(3), (pair for pair in [(x, y)]), [x, y]):
        with pytest.raises(ValueError, match="two arrays"):
            model.fit(data)
    with pytest.raises(ValueError, match="two arrays"):
        model.fit(tf.constant(x), tf.constant(y))


@pytest.mark.parametrize(
    "options",
    [
        {"callbacks": []},
        {"validation_data": (np.zeros((1, D)), np.zeros(1))},
        {"validation_split": 0.1},
        {"shuffle": True},
        {"sample_weight": np.ones(9)},
        {"class_weight": {0: 5.0}},
        {"steps_per_epoch": 7},
        {"initial_epoch": 1},
    ],
)
def test_what_the_guarantee_does_not_cover_is_refused(model, patients, options):
    with pytest.raises(ValueError, match="not covered by the guarantee"):
        model.fit(*patients, **options)


def test_an_array_of_labels_that_is_too_short_is_refused(model, patients):
    with pytest.raises(ValueError, match="same length"):
        model.fit(patients[0], patients[1][:-1])


def test_steps_past_the_budget_are_refused(model, patients):
    with pytest.raises(ValueError, match="epochs=6 after 0 steps would go past the budget of 5"):
        model.fit(*patients, epochs=6, verbose=0)


def test_steps_add_up_over_two_fits(patients):
    model = guarded.dp_model(SOFTMAX, D, K, n=9, seed=0)
    model.fit(*patients, epochs=3, verbose=0)
    with pytest.raises(ValueError, match="epochs=3 after 3 steps"):
        model.fit(*patients, epochs=3, verbose=0)
    model.fit(*patients, epochs=2, verbose=0)
    assert model.optimizer.iterations.numpy() == model.budget_steps == 5


def test_an_epoch_is_one_step(patients):
    model = guarded.dp_model(SOFTMAX, D, K, n=9, seed=0)
    model.fit(*patients, epochs=4, batch_size=9, verbose=0)
    assert model.optimizer.iterations.numpy() == model.steps_taken == 4


def test_negative_epochs_do_not_refill_the_budget(patients):
    model = guarded.dp_model(SOFTMAX, D, K, n=9, seed=0)
    with pytest.raises(ValueError, match="epochs"):
        model.fit(*patients, epochs=-5, verbose=0)


def test_training_on_a_batch_does_not_go_around_the_budget(patients):
    model = guarded.dp_model(SOFTMAX, D, K, n=9, seed=0)
    with pytest.raises((ValueError, NotImplementedError, AttributeError)):
        for _ in range(6):
            model.train_on_batch(*patients)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"l2": 0.1}, "l2=0 and average=0"),
        ({"average": 0.5}, "l2=0 and average=0"),
        ({"optimizer": "adam"}, "optimizer='sgd'"),
        ({"class_weights": (1.0, 2.0, 3.0)}, "class weights"),
        ({"privacy": Privacy(3.0, noisy_mean=True)}, "noisy means"),
        ({"batch_size": 8}, "full batches only"),
        ({"privacy": None}, "privacy=None"),
        ({"privacy": Privacy(3.0, delta=0.5)}, "must be below 1/n"),
    ],
)
def test_a_recipe_that_is_not_covered_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        guarded.dp_model(dataclasses.replace(SOFTMAX, **change), D, K, n=9, seed=0)


def test_an_unknown_clipping_is_refused():
    with pytest.raises(ValueError, match="clipping='loose' is not known"):
        guarded.dp_model(SOFTMAX, D, K, n=9, seed=0, clipping="loose")


# --- the bank ---


def test_a_private_bank_can_be_repeated(patients):
    x, y = np.tile(patients[0], (3, 1)), np.tile(patients[1], 3)
    members = membership.bernoulli(27, 2, seed=0)[:1]
    first, same, other = (
        bank.train(x, y, members, SOFTMAX, s, n=13, engine="keras", progress=False) for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first, other)


def test_label_smoothing_is_refused_rather_than_left_out():
    recipe = dataclasses.replace(SOFTMAX, label_smoothing=0.1)
    with pytest.raises(ValueError, match="label_smoothing=0.1"):
        guarded.dp_model(recipe, D, K, n=9, seed=0)


def test_norms_of_a_model_with_dropout_are_above_the_clip_norm_and_without_it_are_not():
    rng = np.random.default_rng(0)
    recipe = Recipe("mlp", hidden=(16,), epochs=60, batch_size=None, learning_rate=0.5, momentum=0.9)
    x, y = rng.normal(size=(20, D)).astype(np.float32), rng.integers(0, K, 20)
    members = np.ones((1, 20), bool)
    _, kept = bank.train(x, y, members, recipe, 0, keep=[0], progress=False)
    longest = {
        rate: guarded.applied_norms(dataclasses.replace(recipe, dropout=rate), x, y, kept[0], 0.01, seed=0).max()
        for rate in (0.0, 0.5)
    }
    assert longest[0.0] <= 0.01 * 1.001
    assert longest[0.5] > 0.02
