"""The study's networks: ordinary Keras models, and the lasso as a proximal step."""

import numpy as np
import pytest
import tensorflow as tf

from genlib import networks

K = tf.keras
X = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)
Y = np.arange(20) % 3
BUILT = {
    "softmax": (90 + 3, {"l1": 0.1}),
    "mlp": (30 * 8 + 8 + 8 * 3 + 3, {"hidden": (8,), "dropout": 0.2, "group": 0.1}),
    "deeptype": (30 * 8 + 8 + 8 * 4 + 4 + 4 * 3 + 3, {"hidden": (8, 4), "group": 0.1}),
    "cnn": (71 * 32 + 32 + 32 * 8 + 8 + 8 * 3 + 3, {"hidden": (8,), "dropout": 0.2}),
}


@pytest.mark.parametrize("name", BUILT)
def test_every_network_trains_by_keras_own_fit_and_is_saved_and_loaded(name, tmp_path):
    count, options = BUILT[name]
    model = networks.NETWORKS[name](30, 3, **options)
    assert model.count_params() == count
    optimizer = "adam" if name in ("mlp", "deeptype") else "sgd"
    model = networks.NETWORKS[name](30, 3, optimizer=optimizer, learning_rate=0.05, **options)
    losses = model.fit(X, Y, epochs=5, batch_size=10, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "a.keras")
    loaded = K.models.load_model(tmp_path / "a.keras", compile=False)
    np.testing.assert_array_equal(loaded(X, training=False), model(X, training=False))


def test_layers_of_one_network_start_apart_and_with_the_stated_spread():
    first, second, last = (layer.kernel.numpy() for layer in networks.mlp(400, 50, (400, 400)).layers)
    assert first.std() == pytest.approx(np.sqrt(2 / 400), rel=0.02) == second.std()
    assert last.std() == pytest.approx(np.sqrt(1 / 400), rel=0.02)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02
    assert networks.deeptype(400, 50).layers[0].kernel.numpy().std() == pytest.approx(0.02, rel=0.02)


def test_strides_of_a_convolution_cover_all_genes():
    for genes, patches in ((30, 1), (71, 1), (72, 2), (143, 3)):
        assert networks.cnn(genes, 3).layers[1].output_shape[1] == patches


@pytest.fixture
def double():
    K.backend.set_floatx("float64")
    yield
    K.backend.set_floatx("float32")


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("adam", [True, False])
def test_the_proximal_step_solves_its_problem(by_row, adam, double):
    """The kernel after a step is the smallest of penalty and distance to what the optimizer alone would have made."""
    rng = np.random.default_rng(0)
    kernel = tf.Variable(rng.normal(size=(6, 3)), constraint=networks.Sparse(0.8, by_row, ramp=2.0))
    optimizer = (K.optimizers.Adam if adam else K.optimizers.SGD)(0.1)
    kernel.constraint.optimizer = optimizer
    free = tf.Variable(kernel, constraint=networks.Sparse(0.0, by_row))
    alone = type(optimizer)(0.1)
    free.constraint.optimizer = alone
    slope = tf.constant(rng.normal(size=(6, 3)))
    for one, value in ((optimizer, kernel), (alone, free)):
        one.apply_gradients([(slope, value)])
    rate = np.broadcast_to(networks.rates(optimizer, kernel, tf.constant(1.0, tf.float64), by_row), (6, 3))
    rate = rate[:, :1] if by_row else rate
    strength = rate * 0.8 * (1 - np.exp(-1 / 2.0))
    assert not adam or len(np.unique(rate)) > 3

    def cost(value):
        size = np.linalg.norm(value, axis=1, keepdims=True) if by_row else np.abs(value)
        return ((value - free.numpy()) ** 2).sum() / 2 + (strength * size).sum()

    best = cost(kernel.numpy())
    for _ in range(200):
        assert cost(kernel.numpy() + rng.normal(size=(6, 3)) * 10.0 ** rng.uniform(-5, 0)) > best
    assert np.array_equal(kernel.numpy() == 0, np.abs(kernel.numpy()) < 1e-12)


def test_what_is_not_known_is_refused_by_name():
    with pytest.raises(ValueError, match="optimizer='rmsprop': choose"):
        networks.mlp(4, 2, optimizer="rmsprop")
    with pytest.raises(ValueError, match="'rnn' is not known; choose one of softmax, mlp, deeptype, cnn, or your own"):
        networks.recipe("rnn")


OWN = """import tensorflow as tf
def build(n_features, n_classes, width=4):
    layers = [tf.keras.Input((n_features,)), tf.keras.layers.Dense(width, "relu"), tf.keras.layers.Dense(n_classes)]
    model = tf.keras.Sequential(layers)
    model.compile(tf.keras.optimizers.Adam(0.01), tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model
def loose(n_features, n_classes):
    return tf.keras.Sequential([tf.keras.layers.Dense(n_classes)])
"""


def test_a_network_is_built_and_trained_as_its_profile_says_with_what_is_changed():
    how = networks.recipe("deeptype", "quick", {"epochs": 5, "hidden": [9, 4]})
    assert how.training == {
        "epochs": 5, "batch_size": 256, "clustering": {"weight": 1.2, "n_clusters": 11, "rounds": 5, "epochs": 10}
    }  # fmt: skip
    model = how.build(30, 3)
    assert [layer.units for layer in model.layers] == [9, 4, 3] and type(model.optimizer) is K.optimizers.Adam
    assert networks.recipe("softmax", "smoke").training["batch_size"] is None


def test_a_function_of_ones_own_is_a_network_like_any_other(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    how = networks.recipe(f"{tmp_path}/mine.py:build", "quick", {"width": 6, "batch_size": 8})
    assert how.name == "build (batch_size 8, width 6)" and how.training == {"epochs": 30, "batch_size": 8}
    model = how.build(30, 3)
    assert model.layers[0].units == 6 and isinstance(model.optimizer, K.optimizers.Adam)
    loss = K.losses.CategoricalCrossentropy(from_logits=True)
    smoothed = how.build(30, 3, loss=loss)
    assert smoothed.loss is loss and isinstance(smoothed.optimizer, K.optimizers.Adam)
    slow = how.build(30, 3, learning_rate=0.5, momentum=0.9)
    assert isinstance(slow.optimizer, K.optimizers.SGD) and float(slow.optimizer.momentum) == 0.9


@pytest.mark.parametrize(
    ("network", "options", "said"),
    [
        ("mlp", {"learning_rat": 1}, "mlp takes no 'learning_rat'; choose among hidden, dropout"),
        ("{}/mine.py:bild", {}, "has no function 'bild'; it has build, loose"), ("{}/mine.py", {}, "names no function"),
        ("{}/none.py:build", {}, "there is no file"),
        ("{}/mine.py:loose", {}, "not compiled; end it with model.compile"),
        ("{}/mine.py:build", {"depth": 3}, "build takes no 'depth'; choose among width, optimizer"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_says_the_way_out(network, options, said, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    with pytest.raises(ValueError, match=said) as error:
        networks.recipe(network.format(tmp_path), "quick", options).build(30, 3)
    assert "\n" not in str(error.value)
