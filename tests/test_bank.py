"""The bank is plain Keras: in float64 to the last digits, in float32 the same bits whatever the chunks and threads."""

import dataclasses
import json

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from genlib import bank, layers, networks

K = tf.keras
L, R, C, OPT, LOSS = K.layers, K.regularizers, K.constraints, K.optimizers, K.losses
N, D, CLASSES = 24, 40, 3
TRAINING = {"epochs": 34, "batch_size": 5, "seed": 3}  # 102 steps of 4 patients, or of 3
LABELS = np.random.default_rng(0).integers(0, CLASSES, N)
X = np.random.default_rng(1).normal(size=(N, D))
SOFT = np.random.default_rng(2).dirichlet(np.ones(CLASSES), (3, N))
MEMBERS = np.zeros((3, N), bool)
MEMBERS[0, :12], MEMBERS[1, 8:20], MEMBERS[2, 5:14] = True, True, True  # the last has fewer, so its steps are padded


@pytest.fixture
def double(monkeypatch):
    """Numbers of 64 bits, and one thread: all models in one chunk."""
    monkeypatch.setattr(bank, "threads", lambda: 1)
    K.backend.set_floatx("float64")
    yield
    K.backend.set_floatx("float32")


# --- equality with plain Keras --------------------------------------------------------------------------------------


def reference(job, m):
    """Model m by Keras' own `train_on_batch` on features, fed the same start, batches, masks and targets."""
    model, loss, sparse = bank.clone(job.model, 0), job.model.loss, "Sparse" in type(job.model.loss).__name__
    soft = bool(job.mixup) or job.targets is not None
    if sparse and soft:
        loss, sparse = K.losses.CategoricalCrossentropy(from_logits=True), False
    compile_plain(model, job.model, loss)
    model.set_weights(job.start)
    masks_of = masks_as_variables(model)
    steps = bank._steps(job, m, bank._Space(job.x, np.flatnonzero(job.members[m]), [], None, None), masks_of)
    known = np.eye(CLASSES)[job.labels] if job.targets is None else job.targets[m]
    for t, count in enumerate((steps["weights"] > 0).sum(axis=1)):
        rows, shares = steps["rows"][t, :count], steps["shares"][t, :count, :, None]
        set_masks(model, steps["masks"], t, count)
        if hasattr(loss, "epoch"):
            loss.epoch.assign(t * job.epochs // len(steps["rows"]))
        weights = None
        if job.class_weight is not None:
            weights = (np.eye(CLASSES)[job.labels] if job.targets is None else known)[rows[:, 0]] @ job.class_weight
        targets = job.labels[rows[:, 0]] if sparse else (shares * known[rows]).sum(axis=1)
        model.train_on_batch((shares * job.x[rows]).sum(axis=1), targets, sample_weight=weights)
    if hasattr(model.optimizer, "finalize_variable_values"):
        model.optimizer.finalize_variable_values(model.trainable_variables)
    return model


def compile_plain(model, blueprint, loss):
    """Compile as the blueprint was, with an optimizer of its own that sparse kernels follow."""
    optimizer = type(blueprint.optimizer).from_config(blueprint.optimizer.get_config())
    for layer in model.layers:
        if isinstance(getattr(layer, "kernel_constraint", None), networks.Sparse):
            layer.kernel_constraint.bind(optimizer)
    model.compile(optimizer, loss, loss_weights=blueprint.get_compile_config().get("loss_weights"))


def dropouts(model):
    return [layer for layer in model.layers if isinstance(layer, layers.Dropout)]


def masks_as_variables(model):
    """Shapes and rates of the masks, which become variables: a traced step takes them as they are set."""
    for layer in dropouts(model):
        mask = tf.Variable(np.ones((1, *layer.shape[1:]), bool), shape=(None, *layer.shape[1:]))
        object.__setattr__(layer, "mask", mask)  # not one of the layer's weights
    return [(layer.shape[1:], float(layer.rate)) for layer in dropouts(model)]


def set_masks(model, masks, t, count):
    for layer, mask in zip(dropouts(model), masks, strict=True):
        layer.mask.assign(mask[t, :count])


def starts_of(model):
    """A start that is nothing special; variances of a batch normalization are positive."""
    rng = np.random.default_rng(5)
    drawn = [0.1 * rng.normal(size=w.shape) for w in model.weights]
    return [abs(value) if "variance" in w.name else value for w, value in zip(model.weights, drawn, strict=True)]


def agree(model, form, m=-1, tolerance=1e-11, train=reference, x=X, **options):
    """Train a bank, and hold logits, products and further weights of model m to plain Keras'."""
    options = TRAINING | {"start": starts_of(model)} | options
    members = MEMBERS[1:] if form == "alone" else MEMBERS
    job = bank._job(model, x, LABELS, members, **options)
    assert job.form == form
    m %= len(members)
    trained, plain = bank.train(model, x, LABELS, members, progress=False, **options), train(job, m)
    answers, weights = bank._as_logits(model, plain(x, training=False).numpy()), plain.get_weights()
    assert not np.allclose(weights[0], options["start"][0], atol=1e-4)
    np.testing.assert_allclose(trained.logits[m], answers, atol=tolerance, rtol=0)
    if trained.inside is not None:
        first = weights.pop(next(i for i, value in enumerate(weights) if value.shape[0] == x.shape[1]))
        np.testing.assert_allclose(trained.inside[m], x @ first, atol=tolerance, rtol=0)
        for ours, theirs in zip(trained.further, weights, strict=True):
            np.testing.assert_allclose(ours[m], theirs, atol=tolerance, rtol=0)


def chain(*hidden, optimizer=None, loss=None, d=D, last=None):
    """Layers in a line, compiled."""
    model = K.Sequential([K.Input((d,)), *hidden, last or L.Dense(CLASSES)])
    model.compile(optimizer or OPT.SGD(0.05, 0.9), loss or K.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def residual():
    """A network of one's own with all that is not in a line."""
    given = K.Input((D,))
    first = L.Dense(6, "gelu", kernel_regularizer=R.L2(0.003))(given)
    both = L.Add()([first, L.Dense(6, "tanh", bias_regularizer=R.L2(0.1))(first)])
    both = L.Concatenate()([L.Dropout(0.3)(both), L.Reshape((6,))(L.Reshape((2, 3))(both))])
    model = K.Model(given, L.Dense(CLASSES, use_bias=False)(both))
    model.compile(OPT.SGD(0.01, 0.9, nesterov=True), K.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def normalized():
    """A residual block with what mixes the patients of a batch."""
    given = K.Input((D,))
    first = L.BatchNormalization()(L.Dense(6, "gelu")(given))
    both = L.LayerNormalization()(L.Add()([first, L.Dropout(0.3)(L.Dense(6, "gelu")(first))]))
    model = K.Model(given, L.Dense(CLASSES)(both))
    model.compile(OPT.Adam(0.003), K.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def gone(targets, answers):
    """A loss given as a function."""
    return tf.reduce_mean((targets - tf.nn.softmax(answers)) ** 2, -1)


@K.utils.register_keras_serializable("tests")
class Later(K.losses.Loss):
    """A loss that looks at a whole batch, and changes with the epochs."""

    def __init__(self, **options):
        super().__init__(**options)
        self.epoch = tf.Variable(0, trainable=False)

    def __call__(self, targets, answers, sample_weight=None):
        losses = K.losses.categorical_crossentropy(targets, answers, from_logits=True)
        weights = 1.0 if sample_weight is None else sample_weight
        late = tf.cast(self.epoch % 2, losses.dtype)
        if sample_weight is None:
            return tf.reduce_mean(losses * (1 + late))
        return tf.reduce_sum(weights * losses * (1 + late))



CASES = {
    # In the span of the members.
    "residual": (residual, "span", {}),
    "softmax": (lambda: networks.softmax(D, CLASSES, kernel_regularizer=R.L2(0.05)), "span", {"m": 0}),
    "mlp, L2, dropout, smoothing": (
        lambda: networks.mlp(
            D, CLASSES, (6,), 0.5, kernel_regularizer=R.L2(0.01),
            loss=LOSS.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2),
        ), "span", {},
    ),
    "mixup, class weights": (
        lambda: networks.mlp(D, CLASSES, (6, 4), momentum=0.9), "span", {"mixup": 0.5, "class_weight": [1.0, 2.0, 0.5]},
    ),
    "soft targets": (
        lambda: networks.mlp(D, CLASSES, (6,)), "span", {"targets": SOFT, "class_weight": [1.0, 2.0, 0.5], "m": 1},
    ),
    "probabilities": (
        lambda: chain(
            L.Dense(5, "relu", bias_initializer="ones"), last=L.Dense(CLASSES, "softmax"),
            loss=LOSS.SparseCategoricalCrossentropy(),
        ), "span", {},
    ),
    "sum of losses": (
        lambda: chain(
            L.Dense(5, "relu"), optimizer=OPT.SGD(0.005),
            loss=LOSS.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"),
        ), "span", {},
    ),
    "losses as they are": (
        lambda: chain(L.Dense(5), optimizer=OPT.SGD(0.005), loss=LOSS.CategoricalHinge(reduction="none")), "span", {"m": 0},
    ),
    "a function": (lambda: chain(L.Dense(5, "tanh"), L.LeakyReLU(0.2), loss=gone), "span", {"m": 1}),
    "a class that does not count": (
        lambda: chain(L.Dense(5), loss=LOSS.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1)), "alone", {},
    ),
    "schedule": (
        lambda: chain(L.Dense(5, "relu"), optimizer=OPT.SGD(OPT.schedules.ExponentialDecay(0.05, 10, 0.9), 0.9)),
        "span", {"tolerance": 1e-4},
    ),
    # On features, side by side.
    "Adam": (
        lambda: networks.mlp(D, CLASSES, (6,), 0.4, optimizer="adam", learning_rate=0.003), "features", {},
    ),
    "Adam with all": (
        lambda: chain(L.Dense(5, "gelu"), optimizer=OPT.Adam(0.01, 0.8, 0.99, 1e-3, amsgrad=True)), "features", {"m": 0},
    ),
    "lasso": (lambda: networks.softmax(D, CLASSES, l1=0.05, momentum=0.5), "features", {}),
    "group lasso": (lambda: networks.mlp(D, CLASSES, (6,), group=0.1), "features", {}),
    "group lasso, Adam": (
        lambda: networks.mlp(D, CLASSES, (6,), 0.3, group=0.02, optimizer="adam", learning_rate=0.003), "features", {},
    ),
    "deeptype": (
        lambda: networks.deeptype(D, CLASSES, (6, 4), optimizer="adam", learning_rate=0.01), "features", {"m": 1},
    ),
    "cnn": (
        lambda: networks.cnn(150, CLASSES, (4,), kernel_regularizer=R.L2(0.01), learning_rate=0.01),
        "features", {"x": np.random.default_rng(3).normal(size=(N, 150)), "epochs": 10},
    ),
    "regularizers and constraints": (
        lambda: chain(
            L.Dense(5, "relu", kernel_regularizer=R.L1(0.01), bias_regularizer=R.L1L2(0.01, 0.02)),
            L.Dense(4, kernel_constraint="non_neg", bias_constraint="non_neg", kernel_initializer="ones"),
            L.Dense(4, kernel_regularizer=R.L1L2(0.02, 0.01)),
        ), "features", {},
    ),
    "frozen, few features": (
        lambda: chain(L.Dense(5, "relu"), L.Dense(4, "relu", trainable=False), d=10), "features", {"x": X[:, :10]},
    ),
    # One at a time.
    "normalized": (normalized, "alone", {}),
    "clipped norms": (
        lambda: chain(
            L.Dense(5, "relu", activity_regularizer=R.L2(0.01)), L.Dropout(0.3),
            optimizer=OPT.SGD(0.05, 0.9, clipnorm=0.5, weight_decay=0.1),
        ), "alone", {"class_weight": [1.0, 2.0, 0.5]},
    ),
    "clipped values": (
        lambda: chain(
            L.Dense(5, "relu", kernel_constraint=C.MaxNorm(0.4)), loss=Later(),
            optimizer=OPT.SGD(0.05, clipvalue=0.03, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=7),
        ), "alone", {},
    ),
    "clipped together": (
        lambda: chain(
            L.Dense(5, kernel_regularizer=R.OrthogonalRegularizer(0.01)), optimizer=OPT.Adam(0.01, global_clipnorm=0.1),
            loss=LOSS.CategoricalCrossentropy(from_logits=True, axis=1, label_smoothing=0.1),
        ), "alone", {"mixup": 0.4},
    ),
    "legacy": (lambda: chain(L.Dense(5, "relu"), optimizer=OPT.legacy.SGD(0.05, 0.9)), "alone", {"epochs": 10}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_bank_is_plain_keras(name, double):
    build, form, options = CASES[name]
    agree(build(), form, **options)
