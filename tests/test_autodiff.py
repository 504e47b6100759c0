"""Training by automatic differentiation: against Keras, against conditions of optimality, against naive loops."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from genlib import autodiff, bank, engine, membership, models
from genlib.recipes import Clustering, Privacy, Recipe

N, D, K = 48, 150, 3
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, K, N)
X = RNG.normal(size=(N, D)).astype(np.float32)
X[:, :6] += 2 * np.eye(K, 6, dtype=np.float32)[LABELS]
MEMBERS = membership.paired_halves(LABELS, 2, seed=0)
EVERYBODY = np.ones((1, N), bool)


def probabilities(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("mlp", hidden=(8,), optimizer="adam", learning_rate=0.01, l2=0.01),
        Recipe("mlp", hidden=(8, 4), optimizer="adam", learning_rate=0.01, label_smoothing=0.1),
        Recipe("deeptype", hidden=(8, 4), optimizer="adam", learning_rate=0.01),
        Recipe("cnn", hidden=(8,), optimizer="adam", learning_rate=0.01),
        Recipe("cnn", hidden=(8,), momentum=0.9, l2=0.01),
        Recipe("softmax", optimizer="adam"),
    ],
    ids=["mlp", "two layers", "deeptype", "cnn", "cnn by SGD", "softmax"],
)
def test_it_is_the_training_of_keras(recipe):
    recipe = dataclasses.replace(recipe, epochs=5, batch_size=7)
    ours, kept = bank.train(X, LABELS, MEMBERS, recipe, 3, keep=[0], progress=False)
    keras = bank.train(X, LABELS, MEMBERS, recipe, 3, engine="keras", progress=False)
    np.testing.assert_allclose(ours, keras, atol=2e-5)
    model = models.build(recipe, D, K, seed=0)
    model.set_weights([w.reshape(v.shape) for w, v in zip(kept[0], model.get_weights(), strict=True)])
    np.testing.assert_allclose(models.predict(model, X), ours[0], atol=1e-5)


@pytest.mark.parametrize("d", [71, 72, 141, 142, 143, 300])
def test_a_convolution_is_that_of_keras_at_every_width(d):
    recipe = Recipe("cnn", hidden=(5,))
    model = models.build(recipe, d, K, seed=0)
    structure = engine.structure_of(model)
    x = RNG.normal(size=(4, d)).astype(np.float32)
    weights = [w.reshape(s) for w, s in zip(
        model.get_weights(), [s for pair in structure.shapes for s in (pair, (pair[1],))], strict=True
    )]  # fmt: skip
    ours = autodiff.predict(structure, tf.constant(x), [tf.constant(w) for w in weights])[0]
    np.testing.assert_allclose(ours, models.predict(model, x), atol=1e-5)


def test_the_convolution_reads_each_gene_once():
    model = models.build(Recipe("cnn", hidden=(5,)), 142, K, seed=0)
    layer = model.get_layer("convolution")
    assert layer.strides == layer.kernel_size == (71,)
    assert layer.output_shape == (None, 2, 32)


@pytest.mark.parametrize("by_row", [True, False])
def test_shrinking_solves_its_minimum_problem(by_row):
    # prox(w) minimizes |u - w|^2 / 2 + t * penalty(u): no random step away from it is better.
    rng = np.random.default_rng(1)
    w, t = rng.normal(size=(6, 3)), 0.8

    def value(u):
        penalty = np.linalg.norm(u, axis=1).sum() if by_row else np.abs(u).sum()
        return ((u - w) ** 2).sum() / 2 + t * penalty

    best = autodiff.shrink(tf.constant(w, tf.float32), t, by_row).numpy().astype(float)
    zeros = (best == 0).all(axis=1) if by_row else best == 0
    assert zeros.any() and not zeros.all()
    for scale in (1e-1, 1e-2, 1e-3):
        for _ in range(200):
            assert value(best) <= value(best + scale * rng.normal(size=w.shape)) + 1e-6


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_group_sparsity_reaches_the_conditions_of_optimality(optimizer):
    # Dead genes: gradient no longer than the strength. Living ones: gradient balances it exactly.
    rate = 0.3 if optimizer == "sgd" else 0.003
    recipe = Recipe("softmax", epochs=4000, batch_size=None, learning_rate=rate, group=0.05, optimizer=optimizer)
    logits, kept = bank.train(X, LABELS, EVERYBODY, recipe, 0, keep=[0], progress=False)
    kernel = kept[0][0].astype(float)
    gradient = X.T @ (probabilities(logits[0].astype(float)) - np.eye(K)[LABELS]) / N
    alive = np.linalg.norm(kernel, axis=1) > 0
    assert 3 <= alive.sum() < 40
    assert np.linalg.norm(gradient[~alive], axis=1).max() <= 0.05 * 1.02
    direction = kernel[alive] / np.linalg.norm(kernel[alive], axis=1, keepdims=True)
    np.testing.assert_allclose(gradient[alive], -0.05 * direction, atol=0.05 * 0.1)


def test_the_lasso_reaches_the_conditions_of_optimality():
    recipe = Recipe("softmax", epochs=4000, batch_size=None, learning_rate=0.3, l1=0.03)
    logits, kept = bank.train(X, LABELS, EVERYBODY, recipe, 0, keep=[0], progress=False)
    kernel = kept[0][0].astype(float)
    gradient = X.T @ (probabilities(logits[0].astype(float)) - np.eye(K)[LABELS]) / N
    alive = kernel != 0
    assert 3 <= alive.sum() < 200
    assert np.abs(gradient[~alive]).max() <= 0.03 * 1.02
    np.testing.assert_allclose(gradient[alive], -0.03 * np.sign(kernel[alive]), atol=0.03 * 0.1)


def test_more_sparsity_keeps_fewer_genes_and_too_much_is_refused():
    def genes(group):
        recipe = Recipe("softmax", epochs=300, batch_size=None, learning_rate=0.3, group=group)
        return (np.abs(bank.train(X, LABELS, EVERYBODY, recipe, 0, keep=[0], progress=False)[1][0][0]) > 0).any(axis=1)

    kept = [genes(group).sum() for group in (0.01, 0.05, 0.15)]
    assert D >= kept[0] > kept[1] > kept[2] > 0
    with pytest.raises(ValueError, match="gave up every gene; choose a smaller strength"):
        genes(5.0)


def naive_rounds(x, y, first, recipe, seed, steps):
    """Phase two of DeepType in plain NumPy, for a network with one sigmoid layer trained by SGD on full batches."""
    from sklearn.cluster import KMeans

    w1, b1, w2, b2 = (w.astype(float).copy() for w in first)
    alive = np.abs(w1).max(axis=1) > 0
    plan = recipe.clustering
    for turn in range(plan.rounds):
        h = 1 / (1 + np.exp(-(x @ w1 + b1)))
        found = KMeans(plan.n_clusters, n_init=1, random_state=(seed + turn) % 2**31).fit(h.astype(np.float32))
        centers = found.cluster_centers_[found.labels_]
        for _ in range(steps):
            h = 1 / (1 + np.exp(-(x @ w1 + b1)))
            back = (probabilities(h @ w2 + b2) - np.eye(K)[y]) / len(x)
            inside = (back @ w2.T + 2 * plan.weight * (h - centers) / len(x)) * h * (1 - h)
            rate = recipe.learning_rate
            w2, b2, g1, c1 = w2 - rate * h.T @ back, b2 - rate * back.sum(axis=0), x.T @ inside, inside.sum(axis=0)
            w1, b1 = w1 - rate * g1, b1 - rate * c1
            size = np.maximum(np.linalg.norm(w1, axis=1, keepdims=True), 1e-30)
            w1 = w1 * np.maximum(0, 1 - rate * recipe.group / size) * alive[:, None]
    return (1 / (1 + np.exp(-(x @ w1 + b1)))) @ w2 + b2


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_rounds_of_deeptype_are_those_of_a_naive_loop():
    recipe = Recipe("deeptype", hidden=(6,), epochs=400, batch_size=None, learning_rate=2.0, group=0.001)
    once, kept = bank.train(X, LABELS, EVERYBODY, recipe, 0, keep=[0], progress=False)
    assert 0 < (kept[0][0] == 0).all(axis=1).sum() < D
    both = dataclasses.replace(recipe, clustering=Clustering(weight=0.5, n_clusters=4, rounds=3, epochs=5))
    ours, after = bank.train(X, LABELS, EVERYBODY, both, 0, keep=[0], progress=False)
    theirs = naive_rounds(X.astype(float), LABELS, kept[0], both, bank._number(0, 0), steps=5)
    np.testing.assert_allclose(ours[0], theirs, atol=2e-3)
    assert np.abs(ours - once).max() > 0.01
    # A gene that was given up stays so.
    assert not after[0][0][(kept[0][0] == 0).all(axis=1)].any()


def test_rounds_pull_members_to_their_centers():
    base = Recipe("deeptype", hidden=(8,), epochs=150, batch_size=None, learning_rate=2.0)
    spread = {}
    for weight in (0.0, 5.0):
        recipe = dataclasses.replace(base, clustering=Clustering(weight, n_clusters=3, rounds=5, epochs=20))
        _, kept = bank.train(X, LABELS, EVERYBODY, recipe, 0, keep=[0], engine="genes", progress=False)
        h = 1 / (1 + np.exp(-(X @ kept[0][0] + kept[0][1])))
        spread[weight] = np.mean([h[LABELS == c].var(axis=0).sum() for c in range(K)]) / h.var(axis=0).sum()
    assert spread[5.0] < 0.7 * spread[0.0]


def test_mixing_soft_targets_and_doubt_are_those_of_the_other_engine():
    # The same recipe through both: a strength of sparsity too small to matter sends it here.
    base = Recipe("mlp", hidden=(8,), epochs=4, batch_size=8)
    for change in ({"mixup": 0.4}, {"confidence_penalty": 0.5}, {"label_smoothing": 0.2}, {"relax": 0.8}, {"l2": 0.05}):
        recipe = dataclasses.replace(base, **change)
        ours = bank.train(X, LABELS, MEMBERS, dataclasses.replace(recipe, l1=1e-30), 0, progress=False)
        theirs = bank.train(X, LABELS, MEMBERS, recipe, 0, engine="genes", progress=False)
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    targets = np.random.default_rng(1).dirichlet(np.ones(K), (2, N)).astype(np.float32)
    ours, theirs = (
        bank.train(X, LABELS, MEMBERS, recipe, 0, engine="genes", targets=targets, progress=False)
        for recipe in (dataclasses.replace(base, l1=1e-30), base)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_confidence_penalty_has_the_gradient_of_its_definition():
    logits, labels = RNG.normal(size=(5, K)), RNG.integers(0, K, 5)
    z = tf.Variable(logits)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(engine.losses(z, labels, None, tf.constant(0.7, tf.float64)))
    p = probabilities(logits)
    entropy = -(p * np.log(p)).sum(axis=1, keepdims=True)
    by_hand = p - np.eye(K)[labels] + 0.7 * p * (np.log(p) + entropy)
    np.testing.assert_allclose(tape.gradient(loss, z), by_hand, atol=1e-10)


def test_an_adversary_without_strength_changes_nothing_and_with_it_hides_members():
    reserved = membership.reserve(LABELS, 0.4, seed=0)
    members = membership.paired_halves(LABELS, 2, seed=0, reserved=reserved)
    base = Recipe("mlp", hidden=(8,), epochs=60, batch_size=8, learning_rate=0.05)
    plain = bank.train(X, LABELS, members, base, 0, progress=False)
    options = {"reserved": reserved, "progress": False}
    weak = bank.train(X, LABELS, members, dataclasses.replace(base, adversary=1e-12), 0, **options)
    np.testing.assert_allclose(weak, plain, atol=1e-3)
    strong = bank.train(X, LABELS, members, dataclasses.replace(base, adversary=3.0), 0, **options)
    gaps = []
    for logits in (plain, strong):
        right = np.take_along_axis(
            np.stack([probabilities(one) for one in logits]), LABELS[None, :, None].repeat(2, 0), 2
        )[..., 0]
        gaps.append(right[members].mean() - right[~members & ~reserved].mean())
    assert gaps[1] < 0.8 * gaps[0]


def test_the_attackers_network_learns_to_tell_answers_apart():
    structure = engine.Structure((("dense", "linear"),), ((K, K),), (1.0,))
    weights = [tf.eye(K) * 9, tf.zeros(K)]
    labels = np.arange(20, dtype=np.int32) % K
    sure, unsure = np.eye(K, dtype=np.float32)[labels], 0.05 * np.eye(K, dtype=np.float32)[labels]
    drawn = np.tile(np.arange(20, dtype=np.int32), (200, 1))
    _, attacker = autodiff._opponent(unsure, labels, np.ones(20, bool), Recipe(adversary=1.0), np.dtype("f4"), K)
    attacker = tf.nest.map_structure(tf.constant, attacker)
    reference, share = tf.nest.map_structure(tf.constant, (unsure, labels, drawn)), np.full(20, 0.05, np.float32)
    sure, labels = tf.constant(sure), tf.constant(labels)
    for step in range(200):
        attacker = autodiff._train_attacker(structure, attacker, weights, sure, labels, share, reference, step)
    of_members = autodiff._suspect(attacker[0], autodiff.predict(structure, sure, weights)[0], labels)
    of_others = autodiff._suspect(attacker[0], autodiff.predict(structure, unsure, weights)[0], labels)
    assert of_members.numpy().min() > 0 > of_others.numpy().max()


def test_a_model_is_the_same_beside_others_and_alone():
    recipe = Recipe(
        "deeptype", hidden=(6, 4), epochs=20, batch_size=16, optimizer="adam", learning_rate=0.01, group=1e-4
    )
    members = MEMBERS.copy()
    members[1, np.flatnonzero(members[1])[:5]] = False
    together = bank.train(X, LABELS, members, recipe, 0, progress=False)
    np.testing.assert_allclose(bank.train(X, LABELS, members[:1], recipe, 0, progress=False), together[:1], atol=1e-5)


def test_what_is_not_possible_is_refused():
    with pytest.raises(ValueError, match="adversary=1.0 needs reserved patients"):
        bank.train(X, LABELS, MEMBERS, Recipe(adversary=1.0), 0, progress=False)
    with pytest.raises(ValueError, match="group: for the study's own engines only"):
        bank.train(X, LABELS, MEMBERS, Recipe(group=0.1), 0, engine="keras", progress=False)
    reserved = membership.reserve(LABELS, 0.4, seed=0)
    members = membership.paired_halves(LABELS, 2, seed=0, reserved=reserved)
    with pytest.raises(ValueError, match="use engine='genes'"):
        bank.train(X, LABELS, members, Recipe(adversary=1.0), 0, reserved=reserved, keep=[0], progress=False)


def test_private_deeptype_is_its_first_phase_by_sgd_and_rows_can_reach_zero():
    recipe = Recipe("deeptype", hidden=(8,), epochs=40, batch_size=None, learning_rate=1.0, group=0.003,
                    privacy=Privacy(8.0))  # fmt: skip
    _, kept = bank.train(X, LABELS, EVERYBODY, recipe, 0, n=N, keep=[0], fault="no noise", progress=False)
    gone = (kept[0][0] == 0).all(axis=1)
    assert 0 < gone.sum() < D
    assert bank.choose_engine(recipe, N, D) == "genes"
