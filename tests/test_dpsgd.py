import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import binom, chi2, norm

from genlib import attacks, bank, dpsgd, engine, guarded, membership, metrics, models, privacy
from genlib.dpsgd import Center, Mechanism
from genlib.recipes import Privacy, Recipe

D, K, N = 40, 3, 24
SOFTMAX = Recipe("softmax", epochs=12, batch_size=None, learning_rate=0.3, privacy=Privacy(3.0))
MLP = dataclasses.replace(SOFTMAX, architecture="mlp", hidden=(7, 5))


def structure_of(recipe, d=D):
    return engine.structure_for(recipe, d, K)


def case(seed=0, n=N, d=D, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(dtype), rng.integers(0, K, n)


def random_weights(structure, seed, dtype=np.float32, scale=0.5):
    rng = np.random.default_rng([seed, 1])
    shapes = [shape for rows, columns in structure.shapes for shape in ((rows, columns), (columns,))]
    return [(scale * rng.normal(size=shape)).astype(dtype) for shape in shapes]


def classes(y):
    return tf.constant(y, tf.int32)


def naive_sum(structure, x, y, weights, clip_norm, importance, dropout=None, smooth=None):
    """One tape for the whole batch's masks, one gradient a patient."""
    weights = [tf.constant(w) for w in weights]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(weights)
        logits, _ = engine.forward(structure, tf.matmul(x, weights[0]), weights[1:], dropout, 3)
        losses = tf.unstack(importance * engine.losses(logits, tf.constant(y, tf.int32), smooth))
    total = [np.zeros(w.shape) for w in weights]
    for loss in losses:
        grads = [np.asarray(g) for g in tape.gradient(loss, weights)]
        length = np.sqrt(sum((g**2).sum() for g in grads))
        total = [t + g * min(1, clip_norm / max(length, 1e-300)) for t, g in zip(total, grads, strict=True)]
    return total


def activated(activation):
    """Two hidden layers whose activation sits in the dense layer, and a dropout layer behind each."""
    layers = (("dense", activation), ("dropout", ""), ("dense", activation), ("dropout", ""), ("dense", "linear"))
    return engine.Structure(layers, ((D, 7), (7, 5), (5, K)), (0.2, 0.5, 0.5))


# --- clipping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("clip_norm", [0.05, 1.0, 100.0])
@pytest.mark.parametrize("smooth", [None, 0.2])
def test_the_clipped_sum_is_that_of_one_tape_a_patient(activation, clip_norm, smooth):
    x, y = case(dtype=np.float64)
    structure = activated(activation)
    weights = random_weights(structure, 0, np.float64)
    importance = np.random.default_rng(2).uniform(0, 3, N)
    importance[:3] = 0
    dropout = {"keep": np.float64(0.6), "seed": np.int32(5)}
    smooth = None if smooth is None else np.float64(smooth)
    sums, norms = dpsgd.clipped_sum(
        structure, tf.constant(x), classes(y), weights, np.float64(clip_norm), importance, dropout, 3, smooth
    )
    naive = naive_sum(structure, x, y, weights, clip_norm, importance, dropout, smooth)
    for ours, theirs in zip(sums, naive, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-11)
    assert (norms.numpy()[:3] == 0).all()


@pytest.mark.parametrize("recipe", [SOFTMAX, MLP], ids=["softmax", "mlp"])
def test_without_noise_a_step_is_that_of_tf_privacys_slow_path(recipe, monkeypatch):
    x, y = case()
    monkeypatch.setattr(privacy, "calibrate", lambda recipe, n: 0.0)
    tf.keras.utils.set_random_seed(0)
    slow = guarded.dp_model(recipe, D, K, n=N, seed=0, clipping="slow")
    before = slow.get_weights()
    slow.fit(x, y, epochs=1, verbose=0)
    sums, _ = dpsgd.clipped_sum(
        structure_of(recipe), tf.constant(x), classes(y), before, np.float32(1.0), np.ones(N, np.float32)
    )
    for start, end, total in zip(before, slow.get_weights(), sums, strict=True):
        np.testing.assert_allclose((start - end) / recipe.learning_rate * N, total, atol=1e-5)


EXTREME = {"ordinary": 1.0, "huge": 1e25, "tiny": 1e-30, "infinite": np.inf, "missing": np.nan}


@pytest.mark.parametrize("kind", EXTREME)
@pytest.mark.parametrize("recipe", [SOFTMAX, MLP, dataclasses.replace(MLP, hidden=(64,))], ids=["softmax", "2", "1"])
@pytest.mark.parametrize("keep", [1.0, 0.8, 0.3])
def test_no_applied_gradient_is_longer_than_the_clip_norm(kind, recipe, keep):
    structure = structure_of(dataclasses.replace(recipe, dropout=0.5 if recipe.architecture == "mlp" else 0.0))
    x, y = case(n=8)
    x[:5] *= np.float32(EXTREME[kind])
    for clip_norm in (1e-3, 1.0):
        weights = random_weights(structure, 3, scale=5.0)
        norms = dpsgd.applied_norms(structure, x, y, weights, clip_norm, keep, seed=1)
        assert np.isfinite(norms).all()
        assert norms.max() <= clip_norm * (1 + 1e-5)


def test_with_norms_taken_without_dropout_applied_gradients_are_longer():
    # A network that knows its patients by heart: their gradients are small until dropout hides what they rest on.
    x, y = case()
    plain = Recipe("mlp", hidden=(16,), epochs=200, batch_size=None, learning_rate=0.5, momentum=0.9)
    _, kept = bank.train(x, y, np.ones((1, N), bool), plain, 0, keep=[0], progress=False)
    structure = structure_of(dataclasses.replace(plain, dropout=0.5))
    norms = {
        same: dpsgd.applied_norms(structure, x, y, kept[0], 0.01, 0.5, seed=0, same_mask=same) for same in (True, False)
    }
    assert norms[True].max() <= 0.01 * (1 + 1e-5)
    assert norms[False].max() > 0.02


def test_a_batch_of_nobody_gives_a_sum_of_zero():
    x, y = case()
    structure = structure_of(MLP)
    sums, _ = dpsgd.clipped_sum(
        structure,
        tf.constant(x),
        classes(y),
        random_weights(structure, 0),
        np.float32(1),
        np.zeros(N, np.float32),
    )
    assert all((total.numpy() == 0).all() for total in sums)


def test_the_order_of_patients_changes_nothing():
    x, y = case(dtype=np.float64)
    structure, order = structure_of(MLP), np.random.default_rng(1).permutation(N)
    weights = random_weights(structure, 0, np.float64)
    sums = [
        dpsgd.clipped_sum(structure, tf.constant(x[o]), classes(y[o]), weights, np.float64(0.3), np.ones(N))[0]
        for o in (np.arange(N), order)
    ]
    for one, other in zip(*sums, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_class_weights_act_before_clipping_so_that_no_weight_lifts_the_bound():
    x, y = case()
    structure, weights = structure_of(SOFTMAX), random_weights(structure_of(SOFTMAX), 0)
    for i in range(N):
        one, label = tf.constant(x[i : i + 1]), classes(y[i : i + 1])
        sums, _ = dpsgd.clipped_sum(structure, one, label, weights, np.float32(1), np.full(1, 50, np.float32))
        assert tf.linalg.global_norm(sums) <= 1 + 1e-5


def row_norms(structure, x, y, weights, clip_norm, dropout=None):
    """Norms that are applied, one patient at a time, in float64."""
    one = np.ones(1, x.dtype)
    sums = [
        dpsgd.clipped_sum(structure, tf.constant(x[i : i + 1]), classes(y[i : i + 1]), weights, clip_norm, one, dropout)
        for i in range(len(x))
    ]
    return np.array([np.sqrt(sum((part.numpy().astype(float) ** 2).sum() for part in parts)) for parts, _ in sums])


@pytest.mark.parametrize("seed", range(12))
def test_in_random_networks_no_patient_moves_the_sum_of_a_batch_by_more_than_the_clip_norm(seed):
    rng = np.random.default_rng([seed, 2])
    d, widths = int(rng.integers(2, 90)), rng.integers(1, 20, rng.integers(0, 4)).tolist()
    layers, sizes = [], [d, *widths, K]
    for _ in widths:
        layers += [("dense", str(rng.choice(["relu", "sigmoid", "tanh", "linear"]))), ("dropout", "")]
    shapes = tuple(zip(sizes, sizes[1:], strict=False))
    structure = engine.Structure((*layers, ("dense", "linear")), shapes, (0.1,) * len(shapes))
    x, y = case(seed, n=int(rng.integers(1, 30)), d=d)
    x *= np.float32(10.0 ** rng.uniform(-6, 6))
    weights = random_weights(structure, seed, scale=10.0 ** rng.uniform(-2, 1))
    clip_norm = np.float32(10.0 ** rng.uniform(-3, 1))
    dropout = {"keep": np.float32(rng.uniform(0.2, 1)), "seed": np.int32(seed)}

    def total(importance):
        sums, _ = dpsgd.clipped_sum(structure, tf.constant(x), classes(y), weights, clip_norm, importance, dropout, 1)
        return np.concatenate([part.numpy().astype(float).ravel() for part in sums])

    whole = total(np.ones(len(x), np.float32))
    for i in range(min(len(x), 8)):
        without = np.ones(len(x), np.float32)
        without[i] = 0
        # Rounding of the sum of the others is added on top of the patient's own.
        assert np.linalg.norm(whole - total(without)) <= clip_norm * (1 + 1e-5 * len(x))
    assert row_norms(structure, x, y, weights, clip_norm, dropout).max() <= clip_norm * (1 + 1e-5)


def test_rows_that_cannot_be_clipped_contribute_nothing_and_leave_the_others_as_they_are():
    x, y = case()
    structure = structure_of(MLP)
    weights = random_weights(structure, 0)
    x[0], x[1, 3], x[2], x[3, 0] = np.inf, np.nan, 1e25, -np.inf
    x[4] = np.r_[np.nan, np.zeros(D - 1)]  # a maximum that skips what is missing would be zero
    dropout = {"keep": np.float32(0.5), "seed": np.int32(2)}
    there = (np.arange(N) >= 5).astype(np.float32)
    broken, clean = (
        dpsgd.clipped_sum(structure, tf.constant(rows), classes(y), weights, np.float32(1), there_, dropout)[0]
        for rows, there_ in ((x, np.ones(N, np.float32)), (np.where(there[:, None] > 0, x, 0), there))
    )
    for one, other in zip(broken, clean, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_huge_profile_whose_error_is_tiny_is_clipped_too(compiled):
    # The square of an error of 1e-19 is zero in single precision, but times a profile of 1e19 it is a long gradient.
    x, y, structure = np.full((1, D), 2.7e18, np.float32), np.array([0]), structure_of(SOFTMAX)
    start = [np.zeros((D, K), np.float32), np.array([43.8, 0, 0], np.float32)]
    if compiled:
        recipe = dataclasses.replace(SOFTMAX, learning_rate=1.0)
        mechanism, rng = Mechanism(1.0, 0.0, 1.0, steps=1, divisor=1.0), np.random.default_rng(0)
        patients, everybody = engine.prepare(x, False), np.ones(1, bool)
        _, weights = dpsgd.train_one(patients, y, everybody, recipe, mechanism, structure, rng, start=start)
        length = np.linalg.norm(weights()[0].astype(float))
    else:
        length = row_norms(structure, x, y, start, np.float32(1))[0]
    assert length <= 1 + 1e-5


# --- batches --------------------------------------------------------------------------------------------------------


def test_every_member_takes_part_in_each_step_by_itself():
    n, steps, rate = 60, 400, 0.2
    rows, sizes = dpsgd.draw_batches(n, steps, rate, np.random.default_rng(0))
    there = np.zeros((steps, n), bool)
    for step, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        assert len(set(row[:size])) == size
        there[step, row[:size]] = True
    counts = there.sum(axis=0)
    assert binom.cdf(counts.min(), steps, rate) > 1e-6 and binom.sf(counts.max(), steps, rate) > 1e-6
    # Sizes spread as a binomial's, so members do not depend on each other.
    spread = (sizes - n * rate).astype(float) @ (sizes - n * rate) / (n * rate * (1 - rate))
    assert 0.001 < chi2.cdf(spread, steps) < 0.999
    assert 0.001 < chi2.cdf(((counts - steps * rate) ** 2 / (steps * rate * (1 - rate))).sum(), n) < 0.999


def test_a_batch_that_is_larger_than_the_padding_is_not_cut(monkeypatch):
    monkeypatch.setattr(dpsgd, "width", lambda n, rate: 2)
    rows, sizes = dpsgd.draw_batches(50, 30, 0.3, np.random.default_rng(0))
    assert rows.shape[1] == sizes.max() > 2
    assert abs(sizes.mean() - 15) < 2


def test_batches_may_be_empty_and_training_goes_on():
    x, y = case()
    recipe = dataclasses.replace(SOFTMAX, batch_size=1, epochs=1)
    sizes = dpsgd.draw_batches(N, 200, 1 / N, np.random.default_rng(0))[1]
    assert (sizes == 0).any()
    logits = bank.train(x, y, np.ones((2, N), bool), recipe, 0, n=N, progress=False)
    assert np.isfinite(logits).all()


def test_who_is_in_one_step_says_nothing_of_who_is_in_the_next():
    rows, sizes = dpsgd.draw_batches(80, 500, 0.25, np.random.default_rng(1))
    there = np.array([np.isin(np.arange(80), row[:size]) for row, size in zip(rows, sizes, strict=True)])
    both = (there[1:] & there[:-1]).sum()
    # Overlaps of neighboring steps: 1/16 of all pairs; a pair shares a step with the next, which widens the spread.
    spread = np.sqrt(there[1:].size * (1 / 16 * 15 / 16 + 2 * (1 / 64 - 1 / 256)))
    assert abs(both - there[1:].size / 16) < 5 * spread
    assert len({tuple(row[:size]) for row, size in zip(rows, sizes, strict=True)}) == 500


def test_full_batches_hold_everybody():
    rows, sizes = dpsgd.draw_batches(9, 5, 1.0, np.random.default_rng(0))
    assert rows.tolist() == [list(range(9))] and sizes.tolist() == [9] * 5


def test_the_planted_fault_repeats_the_first_batch():
    rows, sizes = dpsgd.draw_batches(50, 8, 0.3, np.random.default_rng(0), fresh=False)
    assert (rows == rows[0]).all() and len(set(sizes)) == 1


# --- training -------------------------------------------------------------------------------------------------------


def descent(x, y, recipe, start, steps, divisor):
    """Plain full-batch descent of a softmax regression in numpy."""
    w, b = (np.array(part, np.float64) for part in start)
    speed_w, speed_b = np.zeros_like(w), np.zeros_like(b)
    for _ in range(steps):
        p = np.exp(x @ w + b)
        error = p / p.sum(axis=1, keepdims=True) - np.eye(K)[y]
        speed_w = recipe.momentum * speed_w + x.T @ error / divisor + 2 * recipe.l2 * w
        speed_b = recipe.momentum * speed_b + error.sum(axis=0) / divisor
        w, b = w - recipe.learning_rate * speed_w, b - recipe.learning_rate * speed_b
    return w, b


@pytest.mark.parametrize(
    "change", [{}, {"momentum": 0.9, "learning_rate": 0.05}, {"l2": 0.05}], ids=["plain", "momentum", "l2"]
)
@pytest.mark.parametrize("in_row_space", [True, False])
def test_without_noise_and_clipping_it_is_plain_descent_from_a_given_start(change, in_row_space):
    x, y = case(dtype=np.float64)
    recipe, members = dataclasses.replace(SOFTMAX, **change), np.arange(N) < 15
    structure = structure_of(recipe)
    start = random_weights(structure, 0, np.float64)
    mechanism = Mechanism(np.inf, 0.0, 1.0, steps=50, divisor=20.0)
    patients = engine.prepare(x, in_row_space)
    logits, weights = dpsgd.train_one(
        patients, y, members, recipe, mechanism, structure, np.random.default_rng(0), padded=18, start=start
    )
    w, b = descent(x[members], y[members], recipe, start, 50, 20.0)
    np.testing.assert_allclose(logits, x @ w + b, atol=1e-9)
    np.testing.assert_allclose(weights()[0], w, atol=1e-9)
    np.testing.assert_allclose(weights()[1], b, atol=1e-9)


def reference(x, y, recipe, mechanism, start, rng):
    """DP-SGD of a softmax regression as in the textbook: one patient at a time, numpy, every random number drawn."""
    n = len(x)
    rows, sizes = dpsgd.draw_batches(n, mechanism.steps, mechanism.rate, rng)
    rng.integers(2**31)
    drawn = mechanism.noise * rng.standard_normal((mechanism.steps, D * K + K)) if mechanism.noise else None
    w, b = (np.array(part) for part in start)
    speed_w, speed_b, total = 0.0, 0.0, [0.0, 0.0]
    last = dpsgd.averaged_steps(recipe, mechanism.steps)
    for step in range(mechanism.steps):
        sum_w, sum_b = np.zeros((D, K)), np.zeros(K)
        if drawn is not None:
            sum_w, sum_b = drawn[step, : D * K].reshape(D, K).copy(), drawn[step, D * K :].copy()
        for i in range(n) if mechanism.rate >= 1 else rows[step, : sizes[step]]:
            p = np.exp(x[i] @ w + b)
            target = (1 - recipe.label_smoothing) * np.eye(K)[y[i]] + recipe.label_smoothing / K
            error = (p / p.sum() - target) * (recipe.class_weights or np.ones(K))[y[i]]
            factor = min(1, mechanism.clip_norm / np.sqrt((x[i] @ x[i] + 1) * (error @ error)))
            sum_w, sum_b = sum_w + factor * np.outer(x[i], error), sum_b + factor * error
        speed_w = recipe.momentum * speed_w + sum_w / mechanism.divisor + 2 * recipe.l2 * w
        speed_b = recipe.momentum * speed_b + sum_b / mechanism.divisor
        w, b = w - recipe.learning_rate * speed_w, b - recipe.learning_rate * speed_b
        if step >= mechanism.steps - last:
            total = [total[0] + w / last, total[1] + b / last]
    return total


EVERYTHING = {
    "momentum": 0.7, "l2": 0.02, "average": 0.4, "label_smoothing": 0.1, "class_weights": (0.5, 1.0, 4.0),
}  # fmt: skip


@pytest.mark.parametrize("change", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("rate", [1.0, 0.3, 0.02])
def test_a_run_on_genes_is_the_textbook_step_by_step_and_number_by_number(rate, change, monkeypatch):
    monkeypatch.setattr(dpsgd, "NOISE_CHUNK", 7 * (D * K + K))
    x, y = case(dtype=np.float64)
    recipe, structure = dataclasses.replace(SOFTMAX, **change), structure_of(SOFTMAX)
    members, start = np.arange(N) < 17, random_weights(structure_of(SOFTMAX), 0, np.float64)
    mechanism = Mechanism(0.7, 1.3, rate, steps=30, divisor=20 * rate)
    sizes = dpsgd.draw_batches(17, 30, rate, np.random.default_rng(3))[1]
    assert (sizes == 0).any() == (rate == 0.02)  # steps of noise alone are taken too
    _, weights = dpsgd.train_one(
        engine.prepare(x, False), y, members, recipe, mechanism, structure, np.random.default_rng(3), start=start
    )
    w, b = reference(x[members], y[members], recipe, mechanism, start, np.random.default_rng(3))
    np.testing.assert_allclose(weights()[0], w, atol=1e-10)
    np.testing.assert_allclose(weights()[1], b, atol=1e-10)


@pytest.mark.parametrize("rate, padded", [(1.0, None), (1.0, 21), (0.3, 21)])
def test_without_noise_row_space_is_gene_space_with_clipping_dropout_and_all_else(rate, padded):
    x, y = case(dtype=np.float64)
    recipe = dataclasses.replace(MLP, dropout=0.4, **EVERYTHING)
    structure, members = structure_of(recipe), np.random.default_rng(5).permutation(N) < 15
    start, mechanism = random_weights(structure, 0, np.float64), Mechanism(0.2, 0.0, rate, steps=30, divisor=6.0)
    (on_rows, row_weights), (on_genes, gene_weights) = (
        dpsgd.train_one(
            engine.prepare(x, in_row_space), y, members, recipe, mechanism, structure, np.random.default_rng(1), pad,
            start,
        )
        for in_row_space, pad in ((True, padded), (False, None))
    )  # fmt: skip
    if rate < 1 or padded is None:
        # Full batches are padded, and a mask is drawn for a padded batch as a whole: another one for another width.
        np.testing.assert_allclose(on_rows, on_genes, atol=1e-9)
        for one, other in zip(row_weights(), gene_weights(), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-9)
    assert np.isfinite(on_rows).all()


def test_padding_to_more_members_changes_nothing_but_the_noise_drawn():
    x, y = case(dtype=np.float64)
    start = random_weights(structure_of(MLP), 0, np.float64)
    mechanism, members = Mechanism(0.2, 0.0, 1.0, steps=20, divisor=15.0), np.arange(N) < 15
    logits = [
        dpsgd.train_one(
            engine.prepare(x, space),
            y,
            members,
            MLP,
            mechanism,
            structure_of(MLP),
            np.random.default_rng(1),
            pad,
            start,
        )[0]
        for space in (True, False)
        for pad in (None, 16, 40)
    ]
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], atol=1e-9)


def test_every_weight_of_every_layer_has_the_noise_that_the_mechanism_says_and_no_two_share_it():
    # Profiles of zeros and dead units: but for the last bias, nothing but noise moves a weight.
    recipe = dataclasses.replace(MLP, learning_rate=1.0, hidden=(40, 40))
    structure = structure_of(recipe, 50)
    start = [np.zeros(s) for rows, columns in structure.shapes for s in ((rows, columns), (columns,))]
    start[1][:] = start[3][:] = -1e6
    patients = engine.prepare(np.zeros((10, 50), np.float32), False)
    moved = []
    for steps in (1, 9):
        mechanism = Mechanism(0.5, 3.0, 0.5, steps=steps, divisor=5.0)
        _, weights = dpsgd.train_one(
            patients, np.zeros(10, int), np.ones(10, bool), recipe, mechanism, structure, np.random.default_rng(0),
            start=[w.astype(np.float32) for w in start],
        )  # fmt: skip
        moved.append(weights())
    for one, nine in zip(*(weights[:1] + weights[2:3] + weights[4:5] for weights in moved), strict=True):
        spread = norm.ppf(1 - 1e-5) / np.sqrt(2 * one.size)
        assert one.std() == pytest.approx(3.0 / 5, rel=spread)
        assert nine.std() == pytest.approx(3.0 / 5 * 3, rel=spread)  # steps add up as independent noise does
    first, second = moved[0][0].ravel()[:1600], moved[0][2].ravel()[:1600]
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.12


def test_one_patient_more_moves_a_step_by_at_most_rate_times_clip_norm_over_the_divisor():
    x, y = case(dtype=np.float64)
    recipe, structure = dataclasses.replace(MLP, learning_rate=0.5), structure_of(MLP)
    start, mechanism = random_weights(structure, 0, np.float64), Mechanism(0.1, 0.0, 1.0, steps=1, divisor=20.0)
    for scale in (1.0, 1e6):
        x[7] = scale * x[7]
        ends = []
        for members in (np.arange(N) < 20, (np.arange(N) < 20) & (np.arange(N) != 7)):
            _, weights = dpsgd.train_one(
                engine.prepare(x, False), y, members, recipe, mechanism, structure, np.random.default_rng(0),
                start=start,
            )  # fmt: skip
            ends.append(np.concatenate([w.ravel() for w in weights()]))
        assert 0 < np.linalg.norm(ends[0] - ends[1]) <= 0.5 * 0.1 / 20 * (1 + 1e-9)


def runs(recipe, mechanism, in_row_space, seeds, x, y, members, start=None):
    patients, structure = engine.prepare(x, in_row_space), structure_of(recipe, x.shape[1])
    logits, kernels = [], []
    for seed in seeds:
        rng = np.random.default_rng([seed, 7 + in_row_space])
        one, weights = dpsgd.train_one(patients, y, members, recipe, mechanism, structure, rng, start=start)
        logits.append(one)
        kernels.append(weights()[0])
    return np.array(logits, float), np.array(kernels, float)


VARIANTS = {
    "plain": {}, "momentum": {"momentum": 0.8}, "l2": {"l2": 0.3}, "average": {"average": 0.5},
    "all": {"momentum": 0.8, "l2": 0.3, "average": 0.5},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_row_space_and_gene_space_give_the_same_distribution(variant):
    x, y = case(n=14)
    recipe, members = dataclasses.replace(SOFTMAX, learning_rate=0.1, **VARIANTS[variant]), np.arange(14) < 9
    mechanism = Mechanism(1.0, 4.0, 1.0, steps=12, divisor=9.0)
    seeds = range(250)
    (rows, row_kernels), (genes, gene_kernels) = (
        runs(recipe, mechanism, s, seeds, x, y, members) for s in (True, False)
    )
    # Means and variances of every logit, members and others; Bonferroni over all of them.
    count = rows[0].size
    limit = norm.ppf(1 - 0.001 / 2 / count)
    error = np.sqrt((rows.var(axis=0) + genes.var(axis=0)) / len(seeds))
    assert (np.abs(rows.mean(axis=0) - genes.mean(axis=0)) / error).max() < limit
    ratio = np.log(rows.var(axis=0, ddof=1) / genes.var(axis=0, ddof=1))
    assert (np.abs(ratio) / np.sqrt(4 / (len(seeds) - 1))).max() < limit
    # Released kernels, along directions inside and outside of the members' span and mixed.
    axes = np.linalg.qr(x[members].T.astype(float))[0]
    rng = np.random.default_rng(0)
    free = rng.normal(size=(D, 4))
    directions = np.hstack([axes[:, :2], free - axes @ (axes.T @ free), free])
    inside, outside = (np.einsum("sdk,de->sek", kernels, directions) for kernels in (row_kernels, gene_kernels))
    ratio = np.log(inside.var(axis=0, ddof=1) / outside.var(axis=0, ddof=1))
    assert (np.abs(ratio) / np.sqrt(4 / (len(seeds) - 1))).max() < norm.ppf(1 - 0.001 / 2 / ratio.size)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_left_outside_of_the_span_is_that_of_a_simulated_weight(variant):
    recipe = dataclasses.replace(SOFTMAX, learning_rate=0.1, **VARIANTS[variant])
    mechanism = Mechanism(1.0, 4.0, 1.0, steps=20, divisor=9.0)
    rng = np.random.default_rng(0)
    weight = begun = rng.normal(size=200_000)
    speed, total = 0.0, 0.0
    last = 10 if recipe.average else 1
    for step in range(20):
        gradient = rng.normal(0, 4 / 9, weight.shape) + 2 * recipe.l2 * weight
        speed = recipe.momentum * speed + gradient
        weight = weight - 0.1 * speed
        total = total + weight * (step >= 20 - last)
    end = total / last
    kept, gathered = dpsgd.outside_span(recipe, mechanism)
    assert np.mean(end * begun) == pytest.approx(kept, abs=0.02)
    assert np.std(end - kept * begun) == pytest.approx(gathered, rel=0.01)


@pytest.mark.parametrize("given_start", [False, True])
@pytest.mark.parametrize("recipe", [SOFTMAX, MLP], ids=["softmax", "mlp"])
def test_released_weights_give_the_logits_that_the_run_gave_to_members_and_to_others(recipe, given_start):
    x, y = case()
    recipe = dataclasses.replace(recipe, momentum=0.5, l2=0.01, average=0.3)
    structure, members = structure_of(recipe), np.arange(N) % 2 == 0
    mechanism = Mechanism(1.0, 2.0, 1.0, steps=12, divisor=12.0)
    start = random_weights(structure, 0) if given_start else None
    logits, weights = dpsgd.train_one(
        engine.prepare(x, True), y, members, recipe, mechanism, structure, np.random.default_rng(0), start=start
    )
    kept = weights()
    again = engine.forward(structure, tf.constant(x @ kept[0]), kept[1:])[0].numpy()
    np.testing.assert_allclose(again, logits, atol=2e-4)


@pytest.mark.slow
def test_a_network_with_poisson_batches_and_dropout_has_the_same_distribution_in_both_spaces():
    x, y = case(n=14)
    recipe = dataclasses.replace(MLP, learning_rate=0.2, dropout=0.3, momentum=0.5, l2=0.05, average=0.3)
    mechanism, seeds, members = Mechanism(0.5, 1.0, 0.4, steps=10, divisor=4.0), range(150), np.arange(14) < 9
    (rows, row_kernels), (genes, gene_kernels) = (
        runs(recipe, mechanism, s, seeds, x, y, members) for s in (True, False)
    )
    # Logits of a network are not Gaussian: only means, and variances by the spread of the squares themselves.
    limit = norm.ppf(1 - 0.001 / 4 / rows[0].size)
    for one, other in ((rows, genes), ((rows - rows.mean(axis=0)) ** 2, (genes - genes.mean(axis=0)) ** 2)):
        error = np.sqrt((one.var(axis=0) + other.var(axis=0)) / len(seeds))
        assert (np.abs(one.mean(axis=0) - other.mean(axis=0)) / error).max() < limit
    directions = np.random.default_rng(0).normal(size=(D, 4))
    one, other = (np.einsum("sdk,de->sek", kernels, directions) for kernels in (row_kernels, gene_kernels))
    ratio = np.log(one.var(axis=0, ddof=1) / other.var(axis=0, ddof=1))
    assert (np.abs(ratio) / np.sqrt(4 / (len(seeds) - 1))).max() < norm.ppf(1 - 0.001 / 2 / ratio.size)


@pytest.mark.parametrize("given_start", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_released_kernels_have_outside_of_the_span_the_variance_that_a_run_on_genes_gathers(variant, given_start):
    x, y = case(n=16)
    recipe = dataclasses.replace(SOFTMAX, learning_rate=0.1, **VARIANTS[variant])
    mechanism, structure, members = Mechanism(1.0, 4.0, 1.0, 12, divisor=9.0), structure_of(SOFTMAX), np.arange(16) < 12
    start = random_weights(structure, 0) if given_start else None
    _, kernels = runs(recipe, mechanism, True, range(60), x, y, members, start)
    axes = np.linalg.qr(x[members].T.astype(float), mode="complete")[0][:, 12:]
    kept, gathered = dpsgd.outside_span(recipe, mechanism)
    spread = gathered if given_start else np.hypot(gathered, kept * structure.scales[0])
    known = kept * start[0] if given_start else 0
    outside = np.einsum("sdk,de->sek", kernels - known, axes) / spread
    # All 28 axes, those that the non-members see and those that nobody sees, are standard normal and independent.
    assert 1e-4 < chi2.cdf((outside**2).sum(), outside.size) < 1 - 1e-4
    per_axis = chi2.cdf((outside**2).sum(axis=(0, 2)), 60 * K)
    assert 1e-4 / 28 < per_axis.min() and per_axis.max() < 1 - 1e-4 / 28
    flat = outside.transpose(0, 2, 1).reshape(-1, 28)
    assert np.abs(np.corrcoef(flat.T) - np.eye(28)).max() < norm.ppf(1 - 1e-4 / 28**2) / np.sqrt(len(flat))


def test_weights_that_are_asked_for_twice_are_the_same_weights():
    # Two kernels that share all but the noise outside of the span: their difference shows the span.
    x, y = case()
    mechanism, rng = Mechanism(1.0, 2.0, 1.0, steps=12, divisor=12.0), np.random.default_rng(0)
    _, weights = dpsgd.train_one(
        engine.prepare(x, True), y, np.arange(N) < 10, SOFTMAX, mechanism, structure_of(SOFTMAX), rng
    )
    np.testing.assert_array_equal(weights()[0], weights()[0])


def others_like(kind, x, rng):
    """Rows of others that hardly, or only in part, leave the span of members x."""
    if kind == "low rank":
        return rng.normal(size=(len(x), len(x))) @ x / 4
    near = x + {"copies": 0, "near copies": 1e-5}.get(kind, 1e-3) * rng.normal(size=x.shape)
    return np.vstack([near, rng.normal(size=(4, x.shape[1]))]) if kind == "near copies and others" else near


@pytest.mark.parametrize("kind", ["copies", "near copies", "near copies and others", "low rank"])
def test_released_weights_give_the_logits_and_have_all_their_noise_where_others_hardly_leave_the_members_span(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, D))
    rows = np.vstack([x, others_like(kind, x, rng)]).astype(np.float32)
    members, y = np.arange(len(rows)) < 12, rng.integers(0, K, len(rows))
    mechanism, structure = Mechanism(1.0, 2.0, 1.0, steps=12, divisor=12.0), structure_of(SOFTMAX)
    logits, kernels = runs(SOFTMAX, mechanism, True, range(20), rows, y, members)
    # Compared up to the bias, which all rows share.
    gap = rows @ kernels - logits
    assert np.abs(gap - gap.mean(axis=1, keepdims=True)).max() < 0.02
    kept, gathered = dpsgd.outside_span(SOFTMAX, mechanism)
    axes = np.linalg.qr(x.T, mode="complete")[0][:, 12:]
    outside = np.einsum("sdk,de->sek", kernels, axes)
    assert outside.std() == pytest.approx(np.hypot(gathered, kept * structure.scales[0]), rel=0.06)


def test_from_a_start_of_zeros_the_kernel_without_the_noise_outside_lies_in_the_span_of_the_members():
    # Whose profile lies in the span of three columns is no question; but a column lies in the span of members alone.
    x, y = case(n=20, d=200)
    members, structure = np.arange(20) < 10, engine.structure_for(SOFTMAX, 200, K)
    start, mechanism = [np.zeros((200, K)), np.zeros(K)], Mechanism(1.0, 3.0, 1.0, steps=12, divisor=10.0)
    outside, free = [], []
    for noise in (0.0, 3.0):
        _, weights = dpsgd.train_one(
            engine.prepare(x, True), y, members, SOFTMAX, dataclasses.replace(mechanism, noise=noise), structure,
            np.random.default_rng(0), start=start,
        )  # fmt: skip
        axes = np.linalg.qr(x[members].T.astype(float))[0]
        kernel = weights()[0].astype(float)
        outside.append(np.linalg.norm(kernel - axes @ (axes.T @ kernel)) / np.linalg.norm(kernel))
        # An outsider who guesses the members' span wrongly, by one patient, sees that some of the kernel is left out.
        wrong = np.linalg.qr(x[np.r_[0:9, 15]].T.astype(float))[0]
        free.append(np.linalg.norm(kernel - wrong @ (wrong.T @ kernel)) / np.linalg.norm(kernel))
    assert outside[0] < 1e-5 and free[0] > 0.05
    assert outside[1] == pytest.approx(np.sqrt(190 / 200), abs=0.05)
    assert outside[1] == pytest.approx(free[1], abs=0.05)


def distance_to_the_kernel(x, kernel):
    """How much of each profile lies outside of the span of a kernel's columns."""
    axes = np.linalg.qr(kernel.astype(float))[0]
    return np.linalg.norm(x - (x @ axes) @ axes.T, axis=1) / np.linalg.norm(x, axis=1)


def test_without_the_noise_outside_of_the_span_the_kernel_shows_who_spans_it():
    # As many hidden units as members: the columns of a kernel that never left the members' span give it away.
    x, y = case(n=20, d=200)
    recipe, members = dataclasses.replace(MLP, hidden=(30,)), np.arange(20) < 10
    structure = engine.structure_for(recipe, 200, K)
    mechanism = Mechanism(1.0, 3.0, 1.0, steps=12, divisor=10.0)
    kernels = []
    for seed in range(6):
        patients = engine.prepare(x, True)
        _, weights = dpsgd.train_one(patients, y, members, recipe, mechanism, structure, np.random.default_rng(seed))
        kernels.append(weights()[0])
    axes = np.linalg.qr(x[members].T.astype(float))[0]
    bare = axes @ (axes.T @ kernels[0])
    assert distance_to_the_kernel(x, bare)[members].max() < 1e-3 < 0.5 < distance_to_the_kernel(x, bare)[~members].min()
    scores = np.array([-distance_to_the_kernel(x, kernel) for kernel in kernels])
    assert abs(metrics.auc(scores, np.tile(members, (6, 1))) - 0.5) < 0.35


def test_chunks_of_noise_change_nothing(monkeypatch):
    x, y = case()
    members = np.ones((1, N), bool)
    whole = bank.train(x, y, members, SOFTMAX, 0, n=N, progress=False)
    monkeypatch.setattr(dpsgd, "NOISE_CHUNK", 5 * 75)
    np.testing.assert_allclose(bank.train(x, y, members, SOFTMAX, 0, n=N, progress=False), whole, atol=1e-5)


def test_the_sum_is_divided_by_the_nominal_number_and_not_by_the_members_that_came():
    x, y = case(dtype=np.float64)
    recipe, structure = dataclasses.replace(SOFTMAX, learning_rate=1.0), structure_of(SOFTMAX)
    start = [np.zeros((D, K)), np.zeros(K)]
    moved = []
    for members in (np.arange(N) < 10, np.arange(N) < 20):
        mechanism = Mechanism(np.inf, 0.0, 1.0, steps=1, divisor=50.0)
        patients = engine.prepare(x, False)
        _, weights = dpsgd.train_one(
            patients, y, members, recipe, mechanism, structure, np.random.default_rng(0), start=start
        )
        error = 1 / K - np.eye(K)[y[members]]
        np.testing.assert_allclose(weights()[0], -x[members].T @ error / 50, atol=1e-12)
        moved.append(weights()[0])
    assert not np.allclose(*moved)


def test_patients_who_are_alike_train_in_a_smaller_space():
    x, y = case()
    x[5:10] = x[:5]
    logits = bank.train(x, y, membership.bernoulli(N, 4, seed=0), SOFTMAX, 0, n=12, engine="row-space", progress=False)
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits[:, 5:10], logits[:, :5], atol=2e-3)


# --- centering ------------------------------------------------------------------------------------------------------


def test_one_patient_moves_the_mean_by_at_most_its_radius_over_n():
    x, _ = case()
    x[0] *= 1000
    center = Center(np.zeros(D), share=0.0, radius=2.0)
    offsets = [center.offset(rows, 0.0, 24, np.random.default_rng(0)) for rows in (x, x[1:])]
    assert np.linalg.norm(offsets[0] - offsets[1]) <= 2.0 / 24 + 1e-9


def test_the_mean_has_the_noise_that_it_pays_for():
    center = Center(np.zeros(D), share=0.0, radius=2.0)
    draws = [center.offset(np.zeros((5, D)), 3.0, 24, np.random.default_rng(seed)) for seed in range(400)]
    assert np.std(draws) == pytest.approx(3.0 * 2.0 / 24, rel=0.02)


def test_weights_of_a_centered_model_are_for_features_as_they_were():
    x, y = case()
    recipe = dataclasses.replace(SOFTMAX, privacy=Privacy(3.0, noisy_mean=True))
    center = Center(np.random.default_rng(1).normal(size=D), share=0.1, radius=8.0)
    logits, kept = bank.train(x, y, np.ones((1, N), bool), recipe, 0, n=N, center=center, keep=[0], progress=False)
    np.testing.assert_allclose(x @ kept[0][0] + kept[0][1], logits[0], atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_no_single_patient_however_long_moves_the_noisy_mean_by_more_than_radius_over_n(seed):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(20, D)) * 10.0 ** rng.uniform(-3, 3, (20, 1))).astype(np.float32)
    center = Center(np.zeros(D), share=0.0, radius=1.5)
    for newcomer in (x[0], 1e18 * x[0], 1e-30 * x[0], np.float32(1e30) * x[0], 0 * x[0]):
        pair = [center.offset(r, 2.0, 20, np.random.default_rng(0)) for r in (x, np.vstack([x, newcomer]))]
        assert np.isfinite(pair).all()
        assert np.linalg.norm(pair[0] - pair[1]) <= 1.5 / 20 * (1 + 1e-5)


def test_a_center_in_row_space_is_refused_or_gives_weights_that_give_the_logits():
    # The inner products there are those of features that were not centered.
    x, y = case()
    recipe = dataclasses.replace(SOFTMAX, privacy=Privacy(3.0, noisy_mean=True))
    center = Center(np.random.default_rng(1).normal(size=D), share=0.1, radius=8.0)
    try:
        logits, kept = bank.train(
            x, y, np.ones((1, N), bool), recipe, 0, n=N, center=center, keep=[0], engine="row-space", progress=False
        )
    except ValueError:
        return
    np.testing.assert_allclose(x @ kept[0][0] + kept[0][1], logits[0], atol=1e-3)


# --- release --------------------------------------------------------------------------------------------------------

NOISY_MEAN = dataclasses.replace(SOFTMAX, privacy=Privacy(3.0, noisy_mean=True))


@pytest.mark.parametrize(
    "recipe",
    [
        dataclasses.replace(MLP, dropout=0.3, batch_size=8, momentum=0.5, average=0.5),
        dataclasses.replace(SOFTMAX, class_weights=(1.0, 2.0, 0.5)),
        NOISY_MEAN,
    ],
    ids=["poisson", "weighted", "centered"],
)
def test_every_kind_of_private_recipe_can_be_released_and_two_releases_differ(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = case()
    center = Center(np.zeros(D), share=0.1, radius=8.0) if recipe.privacy.noisy_mean else None
    (first, words), (second, _) = (
        (tf.keras.utils.set_random_seed(0), privacy.release(x, y, recipe, n=N, center=center))[1] for _ in range(2)
    )
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        assert not np.isclose(one, other).all()
    assert "no seed was kept" in words and ("one noisy mean" in words) == recipe.privacy.noisy_mean
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": NOISY_MEAN},
        {"center": Center(np.zeros(D), share=0.0, radius=8.0)},
        {"recipe": dataclasses.replace(SOFTMAX, class_weights=(1.0, 2.0))},
        {"start": [np.zeros((3, K)), np.zeros(K)]},
        {"missing": True, "genes": D},
        {"missing": True, "genes": 8},
    ],
    ids=["no center", "a center for nothing", "class weights", "start", "missing, rows", "missing, genes"],
)
def test_a_release_refuses_what_a_bank_refuses(change):
    x, y = case()
    x = x[:, : change.pop("genes", D)].copy()
    if change.pop("missing", False):
        x[0, 0] = np.nan
    with pytest.raises(ValueError):
        privacy.release(x, y, change.pop("recipe", SOFTMAX), n=N, **change)


# --- in the bank ----------------------------------------------------------------------------------------------------


def test_a_sweep_in_one_bank_is_the_banks_of_its_recipes_row_by_row():
    x, y = case()
    members = membership.bernoulli(N, 4, seed=0)
    recipes = [
        SOFTMAX,
        dataclasses.replace(SOFTMAX, privacy=Privacy(0.5)),
        dataclasses.replace(SOFTMAX, batch_size=6, epochs=3),
        dataclasses.replace(SOFTMAX, average=0.5, privacy=Privacy(3.0, clip_norm=0.2)),
    ]
    sweep = bank.train(x, y, members, recipes, 0, n=12, progress=False)
    for m, recipe in enumerate(recipes):
        alone = bank.train(x, y, members, recipe, 0, n=12, progress=False)
        np.testing.assert_array_equal(sweep[m], alone[m])


@pytest.mark.parametrize("name", ["row-space", "genes"])
def test_a_sweep_of_networks_is_the_banks_of_its_recipes_row_by_row(name):
    x, y = case()
    members = membership.bernoulli(N, 4, seed=0)[:3]
    recipes = [
        dataclasses.replace(MLP, epochs=3),
        dataclasses.replace(MLP, epochs=2, batch_size=5, dropout=0.4, privacy=Privacy(1.0, clip_norm=0.3)),
        dataclasses.replace(MLP, epochs=4, momentum=0.5, l2=0.1, label_smoothing=0.1, average=0.5),
    ]
    sweep = bank.train(x, y, members, recipes, 4, n=12, engine=name, progress=False)
    for m, recipe in enumerate(recipes):
        alone = bank.train(x, y, members, recipe, 4, n=12, engine=name, progress=False)
        np.testing.assert_array_equal(sweep[m], alone[m])


def test_a_sweep_mixes_neither_means_nor_private_with_open():
    x, y = case()
    members = membership.bernoulli(N, 2, seed=0)
    with pytest.raises(ValueError, match="train them apart"):
        bank.train(x, y, members, [SOFTMAX, NOISY_MEAN], 0, n=12)
    with pytest.raises(ValueError, match="may differ in"):
        bank.train(x, y, members, [SOFTMAX, dataclasses.replace(SOFTMAX, privacy=None)], 0, n=12)


def test_more_privacy_learns_less():
    rng = np.random.default_rng(0)
    y = np.arange(90) % K
    x = (np.eye(K)[y] @ rng.normal(size=(K, D)) + rng.normal(size=(90, D))).astype(np.float32)
    members = membership.bernoulli(90, 8, seed=0)
    recipes = [dataclasses.replace(SOFTMAX, privacy=Privacy(epsilon)) for epsilon in (0.1, 3.0, 100.0)]
    answers = [bank.train(x, y, members, recipe, 0, n=45, progress=False) for recipe in recipes]
    right = [(logits.argmax(axis=2) == y).mean() for logits in answers]
    assert right[0] < right[1] < right[2]


@pytest.mark.parametrize("fault", dpsgd.FAULTS)
def test_a_planted_fault_changes_what_is_trained(fault):
    x, y = case()
    recipe = dataclasses.replace(MLP, dropout=0.5, batch_size=8, privacy=Privacy(3.0, clip_norm=0.1))
    members = np.ones((1, N), bool)
    correct, broken = (
        bank.train(x, y, members, recipe, 0, n=N, fault=f, progress=False) for f in (None, fault)
    )  # fmt: skip
    assert not np.allclose(correct, broken)


def test_what_does_not_fit_together_is_refused():
    x, y = case()
    members = np.ones((1, N), bool)
    centered = dataclasses.replace(SOFTMAX, privacy=Privacy(3.0, noisy_mean=True))
    center = Center(np.zeros(D), share=0.0, radius=1.0)
    with pytest.raises(ValueError, match="fault='loud' is not known"):
        bank.train(x, y, members, SOFTMAX, 0, n=N, fault="loud")
    with pytest.raises(ValueError, match="planted in private training"):
        bank.train(x, y, members, Recipe("softmax"), 0, fault="no noise")
    with pytest.raises(ValueError, match="noisy_mean needs a center"):
        bank.train(x, y, members, centered, 0, n=N)
    with pytest.raises(ValueError, match="noisy_mean needs a center"):
        bank.train(x, y, members, SOFTMAX, 0, n=N, center=center)
    with pytest.raises(ValueError, match="first kernel has 3 rows for 40 features"):
        bank.train(x, y, members, SOFTMAX, 0, n=N, start=[np.zeros((3, K)), np.zeros(K)])
    with pytest.raises(ValueError, match="2 class weights for 3 classes"):
        bank.train(x, y, members, dataclasses.replace(SOFTMAX, class_weights=(1.0, 1.0)), 0, n=N)
    with pytest.raises(ValueError, match="leave engine='keras' out"):
        bank.train(x, y, members, SOFTMAX, 0, n=N, engine="keras", fault="no noise")


def test_a_strict_promise_leaves_an_attack_at_chance():
    x, y = case(n=40, d=120)
    recipe = dataclasses.replace(SOFTMAX, privacy=Privacy(0.1))
    members = membership.bernoulli(40, 20, seed=0)
    scores = attacks.lira(bank.train(x, y, members, recipe, 0, n=20, progress=False), y, members, variance="pooled")
    row = metrics.attack_table(scores, members, n_bootstrap=200).set_index("metric").loc["AUC"]
    assert row["low"] < 0.5 < row["high"] + 0.02


def test_rebuilt_models_are_plain():
    x, y = case(d=8)
    model, _ = privacy.release(x, y, SOFTMAX, n=N)
    assert isinstance(model, tf.keras.Model) and not hasattr(model, "budget_steps")
    assert models.predict(model, x).shape == (N, K)
