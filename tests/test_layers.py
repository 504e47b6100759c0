"""Layers with a leading axis of models are Keras' layers, and clipping is that of one patient after the other."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from genlib import bank, layers
from genlib.privacy import Mechanism

K = tf.keras
L = K.layers
MODELS, D, CLASSES = 3, 12, 3


@pytest.fixture(autouse=True)
def double():
    K.backend.set_floatx("float64")
    yield
    K.backend.set_floatx("float32")


def in_a_line(*hidden):
    model = K.Sequential([K.Input((D,)), *hidden, L.Dense(CLASSES)])
    model.compile("sgd", K.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def weights_of(model, rng, scale=0.5):
    return [scale * rng.normal(size=w.shape) for w in model.get_weights()]


# --- stacked layers -------------------------------------------------------------------------------------------------


def branched():
    given = K.Input((D,))
    first = L.Dense(4, "gelu")(given)
    twice = L.Dense(4, use_bias=False)
    both = L.Concatenate()([L.Add()([first, twice(twice(first))]), L.Softmax()(first)])
    model = K.Model(given, L.Dense(CLASSES)(L.LeakyReLU(0.2)(both)))
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize(
    "build",
    [
        lambda: in_a_line(L.Dense(5, "relu"), L.Activation("elu"), L.Dense(4, "sigmoid", trainable=False)),
        branched,
    ],
)  # fmt: skip
def test_each_model_of_a_stack_answers_as_the_same_model_by_itself(build):
    model, rng = build(), np.random.default_rng(0)
    stacked = layers.stack(model, MODELS, D)
    stacked.compile("sgd", "mse")
    starts, x = [weights_of(model, rng) for _ in range(MODELS)], rng.normal(size=(MODELS, 7, D))
    stacked.begin(starts)
    answers = stacked(x, training=True)
    for m, start in enumerate(starts):
        model.set_weights(start)
        np.testing.assert_allclose(answers[m], model(x[m], training=True), atol=1e-13)


def test_a_mask_that_is_data_drops_as_keras_does():
    dropout, x = layers.Dropout(0.25), np.ones((2, 3))
    dropout.mask = np.array([[True, False, True], [False, True, True]])
    np.testing.assert_allclose(dropout(x, training=True), np.array([[1, 0, 1], [0, 1, 1]]) / 0.75)
    np.testing.assert_array_equal(dropout(x), x)


@pytest.mark.parametrize("table", [np.arange(10.0).reshape(5, 2), np.arange(20.0).reshape(2, 5, 2)])
@pytest.mark.parametrize("partners", [1, 2])
def test_rows_of_a_table_are_mixed_by_their_shares(table, partners):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 5, (2, 3, partners))
    shares = rng.random((2, 3, partners)) if partners > 1 else np.ones((2, 3, 1))
    mixed = layers.mix(tf.constant(table), tf.constant(rows), tf.constant(shares))
    own = np.broadcast_to(table, (2, 5, 2))
    for m in range(2):
        np.testing.assert_allclose(mixed[m], (shares[m][..., None] * own[m][rows[m]]).sum(axis=1))


def test_sgd_without_momentum_is_keras_own_without_its_slots():
    values = [tf.Variable(np.ones((2, 3))) for _ in range(2)]
    gradient = tf.constant(np.arange(6.0).reshape(2, 3))
    lean, plain = layers.SGD(0.1), K.optimizers.SGD(0.1)
    for optimizer, value in zip((lean, plain), values, strict=True):
        for _ in range(2):
            optimizer.apply_gradients([(gradient, value)])
    np.testing.assert_array_equal(*values)
    assert len(lean.variables) == len(plain.variables) - 1


# --- clipping -------------------------------------------------------------------------------------------------------


def private(model, start, clip_norm, masks=(), same_mask=True):
    """The stacked model that clips, at a start, and the masks of its dropout layers."""
    stacked = layers.stack(model, 1, D, kind=layers.PrivateBank)
    loss = K.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
    stacked.compile(K.optimizers.SGD(1.0), loss)
    stacked.begin([start])
    stacked.plan = Mechanism(clip_norm, 0.0, 1.0, 1, 1.0, same_mask=same_mask)
    layers.hand_out(stacked, stacked.loss, {"masks": [tf.constant(mask[None]) for mask in masks]})
    return stacked


def sums_of(stacked, x, y, weights):
    step = {"targets": tf.constant(y[None]), "weights": tf.constant(weights[None])}
    sums, norms = stacked.clipped(tf.constant(x[None]), step)
    return [total.numpy() for total in sums], norms.numpy()[0]


def naive_sums(model, x, y, weights, clip_norm, masks):
    """One tape a patient, on Keras' own layers."""
    plain = bank.clone(model, 0, layers.masked)
    plain.set_weights(model.get_weights())
    dropouts = [layer for layer in plain.layers if isinstance(layer, layers.Dropout)]
    total = 0.0
    for i in range(len(x)):
        for layer, mask in zip(dropouts, masks, strict=True):
            layer.mask = mask[i : i + 1]
        with tf.GradientTape() as tape:
            answers = plain(x[i : i + 1], training=True)
            loss = weights[i] * K.losses.sparse_categorical_crossentropy(y[i : i + 1], answers, from_logits=True)
        slopes = [slope.numpy().ravel() for slope in tape.gradient(loss, plain.trainable_variables)]
        slope = np.concatenate(slopes)
        total = total + slope * min(1, clip_norm / max(np.linalg.norm(slope), 1e-300))
    return total


def case(n=9, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, D)), rng.integers(0, CLASSES, n), rng


def own_network():
    """A residual block, activations inside of the layers and behind, dropout, a layer without biases, a frozen one."""
    given = K.Input((D,))
    first = L.Dropout(0.2)(L.Dense(5, "gelu")(given))
    both = L.Add()([first, L.Dense(5, "tanh", use_bias=False)(first)])
    frozen = L.Dense(4, trainable=False)(L.Activation("elu")(both))
    model = K.Model(given, L.Dense(CLASSES)(L.Dropout(0.5)(frozen)))
    model.compile("sgd", K.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.mark.parametrize("clip_norm", [0.05, 1.0, 100.0])
def test_the_clipped_sum_is_that_of_one_tape_a_patient(clip_norm):
    model, (x, y, rng) = own_network(), case()
    model.set_weights(weights_of(model, rng))
    masks, weights = [rng.random((9, width)) < 0.6 for width in (5, 4)], rng.uniform(0, 3, 9)
    weights[:2] = 0
    sums, norms = sums_of(private(model, model.get_weights(), clip_norm, masks), x, y, weights)
    naive = naive_sums(model, x, y, weights, clip_norm, masks)
    np.testing.assert_allclose(np.concatenate([total.ravel() for total in sums]), naive, atol=1e-12)
    assert (norms[:2] == 0).all() and (norms[2:] > 0).all()
    nobody, _ = sums_of(private(model, model.get_weights(), clip_norm, masks), x, y, np.zeros(9))
    assert all((total == 0).all() for total in nobody)


@hypothesis.settings(max_examples=6, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["relu", "sigmoid", "linear"])), max_size=2),
    st.floats(-6, 6), st.floats(-2, 1), st.floats(-3, 1), st.integers(0, 99),
)  # fmt: skip
def test_no_patient_of_any_network_moves_a_sum_by_more_than_the_clip_norm(hidden, size, spread, clip, seed):
    x, y, rng = case(6, seed)
    model = in_a_line(*[layer for units, kind in hidden for layer in (L.Dense(units, kind), L.Dropout(0.5))])
    masks, clip_norm = [rng.random((6, units)) < 0.5 for units, _ in hidden], 10.0**clip
    stacked = private(model, weights_of(model, rng, 10.0**spread), clip_norm, masks)
    weights = rng.uniform(0, 50, 6)  # class weights lift no bound
    whole, _ = sums_of(stacked, 10.0**size * x, y, weights)
    for i in range(3):
        rest, _ = sums_of(stacked, 10.0**size * x, y, np.where(np.arange(6) == i, 0, weights))
        moved = np.sqrt(sum(((one - other) ** 2).sum() for one, other in zip(whole, rest, strict=True)))
        assert moved <= clip_norm * (1 + 1e-9)


def test_patients_who_cannot_be_clipped_give_nothing_and_leave_the_others_as_they_are():
    model, (x, y, rng) = own_network(), case()
    masks = [rng.random((9, width)) < 0.6 for width in (5, 4)]
    stacked = private(model, weights_of(model, rng), 1.0, masks)
    broken = x.copy()
    broken[0], broken[1, 3], broken[2], broken[3] = np.inf, np.nan, 1e300, np.r_[-np.inf, np.zeros(D - 1)]
    there = (np.arange(9) >= 4).astype(float)
    for one, other in zip(sums_of(stacked, broken, y, np.ones(9))[0], sums_of(stacked, x, y, there)[0], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_a_huge_profile_whose_error_is_tiny_is_clipped_too():
    # The square of an error of 1e-19 is zero in single precision, but times a profile of 1e19 it is a long gradient.
    K.backend.set_floatx("float32")
    start = [np.zeros((D, CLASSES), np.float32), np.array([43.8, 0, 0], np.float32)]
    stacked = private(in_a_line(), start, np.float32(1))
    sums, norms = sums_of(stacked, np.full((1, D), 2.7e18, np.float32), np.array([0]), np.ones(1, np.float32))
    assert norms[0] > 1 and np.linalg.norm(sums[0].astype(float)) <= 1 + 1e-5
