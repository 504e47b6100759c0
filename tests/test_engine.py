"""The compiled engines: row space equals gene space, and both equal Keras."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from genlib import bank, cohorts, engine, features, membership, models
from genlib.recipes import Recipe


def trained(recipe, in_row_space, dtype, epochs=None, n=40, d=300, seed=0):
    """Logits and weights of one model on random profiles, from a start on genes that both engines share."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(dtype)
    labels, members = rng.integers(0, 3, n), rng.permutation(n) < 21
    structure = engine.structure_of(models.build(recipe, d, 3, 0))
    start = engine.draw_start(structure, [seed], dtype=dtype)
    batches = engine.draw_batches(int(members.sum()), recipe.epochs, recipe.batch_size, [seed])
    logits, weights = engine.train_one(
        engine.prepare(x, in_row_space), labels, members, recipe, structure, batches, start, dropout_seed=5
    )
    return logits, weights(), x


RECIPES = {
    "plain": Recipe("mlp", hidden=(16,), epochs=667, batch_size=8, learning_rate=0.005),
    "momentum": Recipe("mlp", hidden=(16,), epochs=667, batch_size=8, learning_rate=0.005, momentum=0.9),
    "decay": Recipe("mlp", hidden=(16,), epochs=667, batch_size=8, learning_rate=0.005, l2=1e-3),
    "all": Recipe(
        "mlp", hidden=(16, 8), epochs=667, batch_size=8, learning_rate=0.005, momentum=0.9, l2=1e-3, dropout=0.3
    ),
    "softmax": Recipe("softmax", epochs=667, batch_size=8, learning_rate=0.005, momentum=0.9, l2=1e-3),
    "smoothing": Recipe("mlp", hidden=(16,), epochs=667, batch_size=8, learning_rate=0.005, label_smoothing=0.1),
    "mixup": Recipe("mlp", hidden=(16,), epochs=667, batch_size=8, learning_rate=0.005, mixup=0.4),
    "mixup, all": Recipe(
        "mlp",
        hidden=(16, 8),
        epochs=667,
        batch_size=8,
        learning_rate=0.005,
        momentum=0.9,
        l2=1e-3,
        dropout=0.3,
        mixup=1.0,
    ),
    "relax": Recipe("mlp", hidden=(16,), epochs=100, batch_size=8, learning_rate=0.005, relax=0.5),
    "full batch": Recipe("mlp", hidden=(16,), epochs=2000, batch_size=None, learning_rate=0.05, momentum=0.9),
}


@pytest.mark.parametrize("name", RECIPES)
def test_row_space_equals_gene_space_after_two_thousand_steps(name):
    in_rows, rows_weights, _ = trained(RECIPES[name], True, np.float64)
    on_genes, gene_weights, _ = trained(RECIPES[name], False, np.float64)
    assert np.abs(in_rows - on_genes).max() / np.abs(on_genes).max() < 1e-8
    for one, other in zip(rows_weights, gene_weights, strict=True):
        assert np.allclose(one, other, rtol=1e-8, atol=1e-10)


def test_in_single_precision_both_spaces_name_the_same_classes():
    agree = []
    for seed in range(10):
        pair = [trained(RECIPES["momentum"], space, np.float32, seed=seed)[0].argmax(axis=1) for space in (True, False)]
        agree.append(np.mean(pair[0] == pair[1]))
    assert np.mean(agree) >= 0.999


def test_weights_give_the_logits():
    logits, weights, x = trained(RECIPES["all"], True, np.float64)
    hidden = np.maximum(x @ weights[0] + weights[1], 0)
    hidden = np.maximum(hidden @ weights[2] + weights[3], 0)
    assert np.allclose(hidden @ weights[4] + weights[5], logits)


def test_a_start_drawn_in_the_basis_is_as_isotropic_on_genes_as_it_says():
    recipe = Recipe("softmax", epochs=1, learning_rate=1e-12)
    x = np.random.default_rng(0).normal(size=(20, 400)).astype(np.float32)
    labels, members = np.arange(20) % 2, np.arange(20) < 10
    structure = engine.structure_of(models.build(recipe, 400, 50, 0))
    patients = engine.prepare(x, True)
    start = engine.draw_start(structure, [0], first_rows=20)
    batches = engine.draw_batches(10, 1, 32, [0])
    logits, weights = engine.train_one(patients, labels, members, recipe, structure, batches, start)
    kernel = weights()[0]
    assert np.allclose(x @ kernel, logits, atol=1e-4)
    directions = np.linalg.svd(x)[2]
    inside, outside = directions[:20] @ kernel, directions[20:] @ kernel
    assert inside.std() == pytest.approx(structure.scales[0], rel=0.1)
    assert outside.std() == pytest.approx(structure.scales[0], rel=0.02)


def test_basis_of_dependent_rows_spans_them_with_fewer_columns():
    x = np.random.default_rng(0).normal(size=(5, 30))
    rows = np.vstack([x, x[:2]])
    coordinates, inner = engine.basis(rows)
    assert np.allclose(coordinates @ coordinates.T, rows @ rows.T)
    assert np.allclose(inner, rows @ rows.T)


@pytest.mark.parametrize("recipe", [
    Recipe("mlp", hidden=(16,), epochs=5, batch_size=8, learning_rate=0.02),
    Recipe("mlp", hidden=(16, 8), epochs=5, batch_size=8, learning_rate=0.02, momentum=0.9, l2=0.01),
    Recipe("softmax", epochs=5, batch_size=None, learning_rate=0.02),
    Recipe("softmax", epochs=5, batch_size=7, learning_rate=0.02, label_smoothing=0.2),
])  # fmt: skip
def test_the_compiled_engine_gives_the_logits_of_keras_from_the_same_start_and_batches(recipe):
    cohort = cohorts.load("simulated", n_patients=60, n_genes=50, n_classes=3)
    x = features.transform(cohort)
    members = membership.paired_halves(cohort.labels, 2, 0)
    pair = [bank.train(x, cohort.labels, members, recipe, 0, engine=e, progress=False) for e in ("genes", "keras")]
    assert np.abs(pair[0] - pair[1]).max() < 1e-4 * np.abs(pair[1]).max()


def test_models_of_one_bank_may_differ_in_what_is_a_number():
    cohort = cohorts.load("simulated", n_patients=60, n_genes=200, n_classes=3)
    x = features.transform(cohort)
    members = membership.paired_halves(cohort.labels, 2, 0)
    one = Recipe("mlp", hidden=(8,), epochs=3)
    other = dataclasses.replace(one, learning_rate=0.1)
    mixed = bank.train(x, cohort.labels, members, [one, other], 0, progress=False)
    assert np.array_equal(mixed[0], bank.train(x, cohort.labels, members, one, 0, progress=False)[0])
    assert np.array_equal(mixed[1], bank.train(x, cohort.labels, members, other, 0, progress=False)[1])
    with pytest.raises(ValueError, match="may differ in"):
        bank.train(x, cohort.labels, members, [one, dataclasses.replace(one, epochs=4)], 0, progress=False)


def test_query_rows_get_the_logits_that_a_patient_with_that_profile_would():
    cohort = cohorts.load("simulated", n_patients=60, n_genes=200, n_classes=3)
    x = features.transform(cohort)
    members = membership.paired_halves(cohort.labels, 2, 0)
    recipe = Recipe("mlp", hidden=(8,), epochs=3)
    logits = bank.train(x, cohort.labels, members, recipe, 0, queries=x[:5], progress=False)
    assert logits.shape == (2, 65, 3)
    assert np.allclose(logits[:, 60:], logits[:, :5], atol=1e-4)


@pytest.mark.parametrize(
    ("recipe", "way_out"),
    [
        (Recipe(optimizer="adam"), "engine='genes'"),
        (Recipe(group=0.1), "engine='genes'"),
        (Recipe("cnn"), "engine='genes'"),
        (Recipe(patience=3), "engine='keras'"),
    ],
)
def test_an_engine_is_refused_where_it_is_not_exact(recipe, way_out):
    x, labels, members = np.eye(20, 40, dtype=np.float32), np.arange(20) % 2, np.arange(20)[None] % 4 < 2
    with pytest.raises(ValueError, match=way_out):
        bank.train(x, labels, members, recipe, 0, engine="row-space", reserved=np.arange(20) % 4 == 2)


def test_row_space_is_refused_where_there_is_no_smaller_space():
    x, labels, members = np.eye(40, 20, dtype=np.float32), np.arange(40) % 2, np.arange(40)[None] % 4 < 2
    with pytest.raises(ValueError, match="no smaller space"):
        bank.train(x, labels, members, Recipe(), 0, engine="row-space")


@pytest.mark.parametrize("layer", [
    tf.keras.layers.Dense(3, kernel_initializer="glorot_uniform"),
    tf.keras.layers.Dense(3, activation="gelu", kernel_initializer=tf.keras.initializers.Zeros()),
    tf.keras.layers.Dense(3, use_bias=False, kernel_initializer=tf.keras.initializers.Zeros()),
    tf.keras.layers.BatchNormalization(),
    tf.keras.layers.Dropout(0.1),
    tf.keras.layers.Dense(
        3, kernel_constraint=tf.keras.constraints.MaxNorm(1), kernel_initializer=tf.keras.initializers.Zeros()
    ),
])  # fmt: skip
def test_a_first_layer_for_which_the_identity_does_not_hold_is_refused(layer):
    inputs = tf.keras.Input((5,))
    with pytest.raises(ValueError, match="keras"):
        engine.structure_of(tf.keras.Model(inputs, layer(inputs)))


def test_an_epoch_sees_every_member_once_in_batches_of_nearly_equal_size():
    rows, sizes = engine.draw_batches(385, epochs=3, batch_size=32, seed=[0])
    assert len(sizes) == 3 * 13
    assert sizes.max() <= 32 and sizes.max() - sizes.min() <= 1
    for epoch in range(3):
        seen = np.concatenate([rows[s, : sizes[s]] for s in range(13 * epoch, 13 * epoch + 13)])
        assert sorted(seen) == list(range(385))


# --- mixup and RelaxLoss --------------------------------------------------------------------------------------------


def softmax_steps(recipe, gradient, n=12, d=30):
    """Logits of the engine, and of a softmax regression in numpy whose steps come from `gradient`."""
    rng = np.random.default_rng(0)
    x, labels, members = rng.normal(size=(n, d)), rng.integers(0, 3, n), np.ones(n, bool)
    structure = engine.structure_for(recipe, d, 3)
    start = engine.draw_start(structure, [0], dtype=np.float64)
    rows, sizes = engine.draw_batches(n, recipe.epochs, recipe.batch_size, [0])
    patients = engine.prepare(x, in_row_space=True)
    ours, _ = engine.train_one(patients, labels, members, recipe, structure, (rows, sizes), start, dropout_seed=5)
    w, b = start
    for step, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        inputs, error = gradient(x, labels, row[:size], w, b, step, step // (len(sizes) // recipe.epochs))
        w, b = w - recipe.learning_rate * inputs.T @ error / size, b - recipe.learning_rate * error.sum(axis=0) / size
    return ours, x @ w + b


def probabilities(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_mixup_is_that_of_a_naive_loop():
    recipe = Recipe("softmax", epochs=3, batch_size=5, learning_rate=0.1, mixup=0.4)
    rows, sizes = engine.draw_batches(12, 3, 5, [0])
    padded = np.zeros((len(rows), 5), np.int32)
    padded[:, : rows.shape[1]] = rows
    partners, shares = engine.pairs(padded, sizes, 0.4, 5, np.float64)
    assert len(set(shares)) == len(shares) and (shares >= 0).all() and (shares <= 1).all()

    def gradient(x, labels, row, w, b, step, epoch):
        other, share = partners[step][: len(row)], shares[step]
        assert sorted(other) == sorted(row)
        inputs = share * x[row] + (1 - share) * x[other]
        target = share * np.eye(3)[labels[row]] + (1 - share) * np.eye(3)[labels[other]]
        return inputs, probabilities(inputs @ w + b) - target

    np.testing.assert_allclose(*softmax_steps(recipe, gradient), atol=1e-10)


def test_relax_loss_is_that_of_a_naive_loop():
    recipe = Recipe("softmax", epochs=40, batch_size=5, learning_rate=0.3, relax=0.8)
    seen = set()

    def gradient(x, labels, row, w, b, step, epoch):
        p, true = probabilities(x[row] @ w + b), np.eye(3)[labels[row]]
        sure = (p * true).sum(axis=1, keepdims=True)
        if -np.log(sure).mean() > 0.8:
            seen.add("descent")
            return x[row], p - true
        if epoch % 2 == 0:
            seen.add("ascent")
            return x[row], true - p
        seen.add("flat")
        spread = true * sure + (1 - true) * (1 - sure) / 2
        right = (p.argmax(axis=1) == labels[row])[:, None]
        return x[row], p - np.where(right, spread, true)

    np.testing.assert_allclose(*softmax_steps(recipe, gradient), atol=1e-8)
    assert seen == {"descent", "ascent", "flat"}


def test_relax_loss_holds_the_loss_of_members_near_its_target():
    rng = np.random.default_rng(1)
    x, labels, members = rng.normal(size=(60, 80)).astype(np.float32), np.arange(60) % 3, np.ones((1, 60), bool)
    losses = {}
    for target in (0.0, 0.5, 1.0):
        recipe = Recipe("softmax", epochs=60, batch_size=10, learning_rate=0.1, relax=target)
        logits = bank.train(x, labels, members, recipe, 0, progress=False)[0].astype(np.float64)
        losses[target] = -np.log(probabilities(logits)[np.arange(60), labels]).mean()
    assert losses[0.0] < 0.1 < 0.2 < losses[0.5] < losses[1.0] < 1.4
