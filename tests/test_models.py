import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from genlib import models, study
from genlib.recipes import Recipe

RECIPES = {
    "softmax": Recipe("softmax"),
    "one hidden layer": Recipe("mlp", hidden=(16,)),
    "three hidden layers": Recipe("mlp", hidden=(16, 8, 4), dropout=0.3, l2=0.01),
}


@pytest.fixture(params=list(RECIPES))
def recipe(request):
    return RECIPES[request.param]


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(12, 30)).astype(np.float32)


def forward(weights, x):
    """Logits of a network by hand: kernel, bias, kernel, bias, with ReLU between."""
    x = np.asarray(x, np.float64)
    pairs = list(zip(weights[::2], weights[1::2], strict=True))
    for kernel, bias in pairs[:-1]:
        x = np.maximum(x @ kernel + bias, 0)
    return x @ pairs[-1][0] + pairs[-1][1]


def test_logits_are_those_of_a_forward_pass_by_hand(recipe, features):
    model = models.build(recipe, 30, 4, seed=1)
    rng = np.random.default_rng(2)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    logits = models.predict(model, features)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, forward(model.get_weights(), features), rtol=1e-4, atol=1e-4)


def test_layers_have_the_stated_widths(recipe):
    widths = [30, *(recipe.hidden if recipe.architecture == "mlp" else ()), 4]
    shapes = [w.shape for w in models.build(recipe, 30, 4, seed=0).get_weights()]
    assert shapes == [s for a, b in zip(widths, widths[1:], strict=False) for s in ((a, b), (b,))]


def test_the_start_is_gaussian_with_the_stated_deviations_and_zero_biases():
    first, bias, last, last_bias = models.build(Recipe("mlp", hidden=(300,)), 400, 200, seed=3).get_weights()
    for kernel, sd in ((first, np.sqrt(2 / 400)), (last, np.sqrt(1 / 300))):
        z = kernel.ravel() / sd
        assert z.mean() == pytest.approx(0, abs=4 / np.sqrt(z.size))
        assert z.std() == pytest.approx(1, abs=4 / np.sqrt(2 * z.size))
        # Kurtosis 3 and values past two deviations tell it from a uniform and from a truncated start.
        assert (z**4).mean() == pytest.approx(3, abs=0.15)
        assert np.abs(z).max() > 3.5
    assert not bias.any() and not last_bias.any()


def test_softmax_regression_starts_as_a_last_layer():
    kernel, bias = models.build(Recipe("softmax"), 5000, 20, seed=3).get_weights()
    assert kernel.std() == pytest.approx(np.sqrt(1 / 5000), rel=0.02)
    assert not bias.any()


def test_one_seed_gives_one_start_and_another_gives_another(recipe):
    first, same, other = (models.build(recipe, 30, 4, seed=s).get_weights() for s in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert all(not np.array_equal(a, b) for a, b in zip(first[::2], other[::2], strict=True))


def test_the_global_seed_does_not_change_the_start(recipe):
    starts = []
    for seed in (1, 2):
        tf.keras.utils.set_random_seed(seed)
        starts.append(models.build(recipe, 30, 4, seed=5).get_weights()[0])
    np.testing.assert_array_equal(*starts)


def test_layers_of_one_model_get_draws_of_their_own():
    kernels = models.build(Recipe("mlp", hidden=(40, 40, 40)), 40, 40, seed=0).get_weights()[::2]
    correlations = np.corrcoef([k.ravel() for k in kernels])
    assert np.abs(correlations - np.eye(4)).max() < 0.1


def test_weight_decay_is_l2_times_the_squared_kernels():
    model = models.build(Recipe("mlp", hidden=(6, 5), l2=0.03), 30, 4, seed=0)
    model.set_weights([np.random.default_rng(1).normal(size=w.shape) for w in model.get_weights()])
    kernels = model.get_weights()[::2]
    assert sum(model.losses).numpy() == pytest.approx(0.03 * sum((k**2).sum() for k in kernels), rel=1e-5)


def test_without_weight_decay_there_is_no_loss_of_the_weights(features):
    assert models.build(Recipe("mlp", hidden=(6,)), 30, 4, seed=0).losses == []


def test_dropout_works_in_training_only(features):
    model = models.build(Recipe("mlp", hidden=(64,), dropout=0.5), 30, 4, seed=0)
    np.testing.assert_array_equal(models.predict(model, features), models.predict(model, features))
    first, second = (model(features, training=True).numpy() for _ in range(2))
    assert not np.allclose(first, second)


def test_dropout_leaves_out_the_stated_share():
    model = models.build(Recipe("mlp", hidden=(1000,), dropout=0.2), 3, 2, seed=0)
    layer = model.get_layer("dropout_1")
    kept = layer(np.ones((20, 1000), np.float32), training=True).numpy()
    assert (kept == 0).mean() == pytest.approx(0.2, abs=0.02)


def test_a_model_comes_back_from_its_file(recipe, features, tmp_path):
    model = models.build(recipe, 30, 4, seed=1)
    models.save(model, tmp_path / "target.keras")
    again = tf.keras.models.load_model(tmp_path / "target.keras")
    np.testing.assert_array_equal(models.predict(again, features), models.predict(model, features))
    assert [p.name for p in tmp_path.iterdir()] == ["target.keras"]


def test_keras_opens_a_saved_model_without_genlib(features, tmp_path):
    model = models.build(RECIPES["three hidden layers"], 30, 4, seed=1)
    models.save(model, tmp_path / "target.keras")
    np.save(tmp_path / "features.npy", features)
    code = (
        "import json, sys, numpy as np, tensorflow as tf\n"
        "logits = tf.keras.models.load_model('target.keras')(np.load('features.npy'), training=False).numpy()\n"
        "assert not any(name.split('.')[0] == 'genlib' for name in sys.modules)\n"
        "print(json.dumps(logits.tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    logits = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(logits, models.predict(model, features), rtol=1e-5, atol=1e-6)


def test_an_unknown_architecture_names_the_known():
    with pytest.raises(ValueError, match="'forest' is not known; choose one of cnn, deeptype, mlp, softmax"):
        models.build(Recipe("forest"), 30, 4, seed=0)


def test_the_device_is_named():
    assert models.device() == "CPU" or tf.config.list_physical_devices("GPU")


def test_a_gpu_is_named_by_its_own_name(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["first", "second"] if kind == "GPU" else [])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {"device_name": f"the {gpu}"})
    assert models.device() == "the first"


def test_nothing_is_pinned_to_a_device():
    # So that TensorFlow takes a GPU where there is one; none was at hand to measure it on.
    sources = [path.read_text() for path in study.ROOT.glob("genlib/*.py")]
    assert len(sources) > 20 and not any("tf.device(" in source for source in sources)


@pytest.mark.parametrize("name", ["mlp", "deeptype", "cnn"])
def test_the_last_layer_makes_the_logits_of_the_representation(name):
    x = np.random.default_rng(0).normal(size=(5, 150)).astype(np.float32)
    model = models.build(Recipe(name, hidden=(8, 6)), 150, 3, seed=0)
    kernel, bias = model.get_weights()[-2:]
    inside = models.representation(model, x)
    assert inside.shape == (5, 6)
    np.testing.assert_allclose(inside @ kernel + bias, models.predict(model, x), atol=1e-5)


def test_the_start_of_deeptype_is_that_of_its_paper():
    kernels = models.build(Recipe("deeptype", hidden=(300, 200)), 400, 50, seed=3).get_weights()[::2]
    for kernel in kernels:
        assert kernel.std() == pytest.approx(0.02, rel=0.03)
        assert kernel.mean() == pytest.approx(0, abs=0.001)
