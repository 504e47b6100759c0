"""The bank is plain Keras: in float64 to the last digits, in float32 the same bits whatever the chunks and threads."""

import dataclasses
import functools
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from scipy.stats import chi2
from sklearn.cluster import KMeans

from genlib import audit, bank, layers, membership, networks
from genlib.privacy import Privacy

K = tf.keras
L, R, C, OPT, LOSS = K.layers, K.regularizers, K.constraints, K.optimizers, K.losses
N, D, CLASSES = 24, 40, 3
TRAINING = {"epochs": 34, "batch_size": 5, "seed": 3}  # 102 steps of 4 patients, or of 3
WIDE = np.random.default_rng(3).normal(size=(N, 150))
LABELS = np.random.default_rng(0).integers(0, CLASSES, N)
X = np.random.default_rng(1).normal(size=(N, D))
SOFT = np.random.default_rng(2).dirichlet(np.ones(CLASSES), (3, N))
MEMBERS = np.zeros((3, N), bool)
MEMBERS[0, :12], MEMBERS[1, 8:20], MEMBERS[2, 5:14] = True, True, True  # the last has fewer, so its steps are padded


@pytest.fixture
def double():
    K.backend.set_floatx("float64")
    yield
    K.backend.set_floatx("float32")


# --- equality with plain Keras --------------------------------------------------------------------------------------


def reference(job, m):
    """Model m by Keras' own `train_on_batch` on features, fed the same start, batches, masks and targets."""
    model, loss = bank.clone(job.model, 0, layers.masked), job.model.loss
    sparse, soft = "Sparse" in type(loss).__name__, bool(job.mixup) or job.targets is not None
    if sparse and soft:
        loss, sparse = K.losses.CategoricalCrossentropy(from_logits=True), False
    compile_plain(model, job.model, loss)
    model.set_weights(job.start)
    steps = bank._steps(job, m, np.flatnonzero(job.members[m]), masks_as_variables(model))
    known = np.eye(CLASSES)[job.labels] if job.targets is None else job.targets[m]
    mean = job.x[job.members[m]].mean(axis=0) if job.center else np.zeros(job.x.shape[1])
    for t, count in enumerate(steps["sizes"]):
        rows, shares = steps["rows"][t, :count], steps["shares"][t, :count, :, None]
        set_masks(model, steps["masks"], t, count)
        if hasattr(loss, "epoch"):
            loss.epoch.assign(t * job.epochs // len(steps["rows"]))
        weights = None if job.class_weight is None else known[rows[:, 0]] @ job.class_weight
        targets = job.labels[rows[:, 0]] if sparse else (shares * known[rows]).sum(axis=1)
        model.train_on_batch((shares * (job.x - mean)[rows]).sum(axis=1), targets, sample_weight=weights)
    if hasattr(model.optimizer, "finalize_variable_values"):
        model.optimizer.finalize_variable_values(model.trainable_variables)
    if job.center:  # a model of the profiles as they are
        kernel, bias, *rest = model.get_weights()
        model.set_weights([kernel, bias - mean @ kernel, *rest])
    return model


def compile_plain(model, blueprint, loss):
    """Compile as the blueprint was, with an optimizer of its own that sparse kernels follow."""
    optimizer = type(blueprint.optimizer).from_config(blueprint.optimizer.get_config())
    networks.follow(model, optimizer)
    model.compile(optimizer, loss, loss_weights=blueprint.get_compile_config().get("loss_weights"))


def dropouts(model):
    return [layer for layer in model.layers if isinstance(layer, layers.Dropout)]


def masks_as_variables(model):
    """Shapes and rates of the masks, which become variables: a traced step takes them as they are set."""
    found = layers.masks_of(model)
    for layer, (shape, _) in zip(dropouts(model), found, strict=True):
        mask = tf.Variable(np.ones((1, *shape), bool), shape=(None, *shape))
        object.__setattr__(layer, "mask", mask)  # not one of the layer's weights
    return found


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
    members = options.pop("members", MEMBERS[2:] if form == "alone" else MEMBERS)
    job = bank._job(model, x, LABELS, members, **options)
    assert form in (job.form, None)
    m %= len(members)
    trained, plain = bank.train(model, x, LABELS, members, progress=False, **options), train(job, m)
    answers, weights = plain(x, training=False).numpy(), plain.get_weights()
    answers = np.log(answers) if getattr(model.layers[-1], "activation", None) is K.activations.softmax else answers
    assert not np.allclose(weights[0], options["start"][0], atol=1e-4)
    np.testing.assert_allclose(trained.logits[m], answers, atol=tolerance, rtol=0)
    if trained.inside is not None:
        first = weights.pop(next(i for i, value in enumerate(weights) if value.shape[0] == x.shape[1]))
        np.testing.assert_allclose(trained.inside[m], x @ first, atol=tolerance, rtol=0)
        for ours, theirs in zip(trained.further, weights, strict=True):
            np.testing.assert_allclose(ours[m], theirs, atol=tolerance, rtol=0)


def chain(*hidden, optimizer=None, loss=None, d=D, last=None, loss_weights=None):
    """Layers in a line, compiled."""
    model = K.Sequential([K.Input((d,)), *hidden, last or L.Dense(CLASSES)])
    loss = loss or LOSS.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or OPT.SGD(0.05, 0.9), loss, loss_weights=loss_weights)
    return model


def residual():
    """A network of one's own with all that is not in a line."""
    given = K.Input((D,))
    first = L.Dense(6, "gelu", kernel_regularizer=R.L2(0.003))(given)
    both = L.Add()([first, L.Dense(6, "tanh", bias_regularizer=R.L2(0.1))(first)])
    both = L.Concatenate()([L.Dropout(0.3)(both), L.LeakyReLU(0.2)(both)])
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


def squares(targets, answers):
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


WEIGHTS, BRIEF = [1.0, 2.0, 0.5], {"epochs": 8}
CASES = {
    # In the span of the members.
    "residual": ("span", {}, residual),
    "mlp, L2, dropout, smoothing": ("span", {}, lambda: networks.mlp(
        D, CLASSES, (6,), 0.5, kernel_regularizer=R.L2(0.01),
        loss=LOSS.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2),
    )),
    "mixup, class weights": ("span", {"mixup": 0.5, "class_weight": WEIGHTS}, lambda: networks.mlp(
        D, CLASSES, (6, 4), momentum=0.9
    )),
    "a last batch of what remains": ("span", {"remainder": True, "members": MEMBERS[:2]}, lambda: networks.mlp(
        D, CLASSES, (6,), momentum=0.9
    )),
    "centered": ("span", {"center": True, "m": 0, "x": X + 3}, lambda: networks.mlp(
        D, CLASSES, (6,), momentum=0.9, kernel_regularizer=R.L2(0.01)
    )),
    "centered, Adam": ("features", {"center": True, "mixup": 0.4}, lambda: networks.mlp(
        D, CLASSES, (6,), optimizer="adam"
    )),
    "soft targets": ("span", {"targets": SOFT, "class_weight": WEIGHTS, "m": 1, **BRIEF}, lambda: networks.mlp(
        D, CLASSES, (6,)
    )),
    "no expression at all": ("features", {"x": 0 * X, **BRIEF}, lambda: networks.mlp(
        D, CLASSES, (6,), kernel_regularizer=R.L2(0.05)
    )),
    "probabilities": ("span", BRIEF, lambda: chain(
        L.Dense(5, "relu", bias_initializer="ones"), last=L.Dense(CLASSES, "softmax"),
        loss=LOSS.SparseCategoricalCrossentropy(),
    )),
    "losses as they are": ("alone", BRIEF, lambda: chain(
        L.Dense(5), optimizer=OPT.SGD(0.005), loss=LOSS.CategoricalHinge(reduction="none")
    )),
    "a function": ("alone", BRIEF, lambda: chain(L.Dense(5, "tanh"), L.LeakyReLU(0.2), loss=squares)),
    "schedule": ("span", {"tolerance": 1e-4, **BRIEF}, lambda: chain(  # Keras counts it in single precision
        L.Dense(5, "relu", kernel_regularizer=R.L2(0.02)),
        optimizer=OPT.SGD(OPT.schedules.ExponentialDecay(0.05, 10, 0.9), 0.9),
    )),
    # On features, side by side.
    "Adam": ("features", {"m": 0}, lambda: chain(
        L.Dense(5, "gelu"), L.Dropout(0.4), optimizer=OPT.Adam(0.01, 0.8, 0.99, 1e-3, amsgrad=True)
    )),
    "lasso": ("features", {}, lambda: networks.softmax(D, CLASSES, l1=0.05, momentum=0.5)),
    "group lasso": ("features", {}, lambda: networks.mlp(D, CLASSES, (6,), group=0.1)),
    "cnn": ("alone", {"x": WIDE, "epochs": 10}, lambda: networks.cnn(
        150, CLASSES, (4,), kernel_regularizer=R.L2(0.01), learning_rate=0.01
    )),
    "regularizers and constraints": ("features", {}, lambda: chain(
        L.Dense(5, "relu", kernel_regularizer=R.L1(0.01), bias_regularizer=R.L1L2(0.01, 0.02)),
        L.Dense(4, kernel_constraint="non_neg", bias_constraint="non_neg", kernel_initializer="ones"),
        L.Dense(4, kernel_regularizer=R.L1L2(0.02, 0.01)),
    )),
    "sum of losses, frozen, few features": ("features", {"x": X[:, :10], **BRIEF}, lambda: chain(
        L.Dense(5, "relu"), L.Dense(4, "relu", trainable=False), d=10, optimizer=OPT.SGD(0.005),
        loss=LOSS.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"),
    )),
    # One at a time.
    "normalized": ("alone", {}, normalized),
    "clipped norms": ("alone", {"class_weight": WEIGHTS, **BRIEF}, lambda: chain(
        L.Dense(5, "relu", activity_regularizer=R.L2(0.01)), L.Dropout(0.3), loss_weights=0.5,
        optimizer=OPT.SGD(0.05, 0.9, clipnorm=0.5, weight_decay=0.1),
    )),
    "clipped values": ("alone", BRIEF, lambda: chain(
        L.Dense(5, "relu", kernel_constraint=C.MaxNorm(0.4)), loss=Later(),
        optimizer=OPT.SGD(0.05, clipvalue=0.03, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=7),
    )),
    "clipped together": ("alone", {"mixup": 0.4, **BRIEF}, lambda: chain(
        L.Dense(5, kernel_regularizer=R.OrthogonalRegularizer(0.01)), optimizer=OPT.Adam(0.01, global_clipnorm=0.1),
        loss=LOSS.CategoricalCrossentropy(from_logits=True, axis=1, label_smoothing=0.1),
    )),
    "a class that does not count": ("alone", BRIEF, lambda: chain(
        L.Dense(5), loss=LOSS.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1),
        optimizer=OPT.Adagrad(0.05),
    )),
    "legacy": ("alone", BRIEF, lambda: chain(L.Dense(5, "relu"), optimizer=OPT.legacy.SGD(0.05, 0.9))),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_bank_is_plain_keras(name, double):
    form, options, build = CASES[name]
    agree(build(), form, **options)


def test_every_argument_of_layer_optimizer_and_loss_is_changed_in_some_case(double):
    plain = [L.Dense(1), OPT.SGD(), OPT.Adam(), LOSS.SparseCategoricalCrossentropy(), LOSS.CategoricalCrossentropy()]
    changed = {type(one): set() for one in plain}
    for *_, build in CASES.values():
        model = build()
        for one in plain:
            for other in [*model.layers, model.optimizer, model.loss]:
                if type(other) is type(one):
                    pairs = zip(one.get_config().items(), other.get_config().values(), strict=False)
                    changed[type(one)] |= {name for (name, default), value in pairs if value != default}
    # An optimizer's way to be compiled, and names, change nothing that is trained.
    missing = {type(one).__name__: set(one.get_config()) - changed[type(one)] for one in plain}
    assert missing["Dense"] == {"dtype"}  # whose rounding is its own
    assert bank._job(chain(L.Dense(5, dtype="float32")), X, LABELS, MEMBERS, **TRAINING).form == "alone"
    assert missing["SGD"] & missing["Adam"] <= {"name", "jit_compile", "is_legacy_optimizer"}
    assert missing["SGD"] <= set(OPT.Adam().get_config()) and missing["Adam"] <= set(OPT.SGD().get_config())
    assert missing["SparseCategoricalCrossentropy"] <= {"name", "fn"}
    assert missing["CategoricalCrossentropy"] <= {"name", "fn", "reduction"}


def clustered(job, m):
    """DeepType's two phases in plain Keras: the second goes on with the representation as another answer."""
    model, plan = reference(job, m), job.clustering
    genes = np.any(model.get_weights()[0] != 0, axis=1).sum()
    assert 0 < genes and (genes < D) == (job.form == "features")  # the group lasso took some
    both = K.Model(model.inputs, [model.output, model.layers[-1].input])
    pull = [model.loss, lambda at, z: tf.reduce_sum((z - at) ** 2, -1)]
    both.compile(model.optimizer, pull, loss_weights=[1, plan["weight"]])
    who, number = np.flatnonzero(job.members[m]), bank._number(job.seed, m)
    for turn in range(plan["rounds"]):
        z = both(job.x)[1].numpy()[who]
        found = KMeans(plan["n_clusters"], n_init=1, random_state=(number + turn) % 2**31).fit(z)
        centers = np.zeros((len(job.x), z.shape[1]))
        centers[who] = found.cluster_centers_[found.labels_]
        steps = bank._steps(dataclasses.replace(job, epochs=plan["epochs"]), m, who, [], [number, 25, turn])
        for row, count in zip(steps["rows"][..., 0], steps["sizes"], strict=True):
            both.train_on_batch(job.x[row[:count]], [job.labels[row[:count]], centers[row[:count]]])
    return model


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("features", {"group": 0.002, "ramp": 20.0, "optimizer": "adam", "learning_rate": 0.01}),
        ("span", {"kernel_regularizer": R.L2(0.02), "momentum": 0.9}),
    ],
)
def test_rounds_of_k_means_are_those_of_plain_keras(form, options, double):
    model = networks.deeptype(D, CLASSES, (6, 4), **options)
    clustering = {"weight": 0.5, "n_clusters": 3, "rounds": 2, "epochs": 6}
    agree(model, form, train=clustered, epochs=12, clustering=clustering)


BETWEEN = {
    "nothing": lambda: [], "dropout": lambda: [L.Dropout(0.3)], "normal rows": lambda: [L.LayerNormalization()],
    "activation": lambda: [L.Activation("elu")], "normal batches": lambda: [L.BatchNormalization()],
}  # fmt: skip
PARTS = {
    "kernel_regularizer": [None, R.L1(0.01), R.L2(0.01)], "kernel_constraint": [None, "non_neg", C.UnitNorm()],
    "bias_constraint": [None, C.NonNeg()], "use_bias": [True, False], "activation": ["linear", "tanh", "softplus"],
    "activity_regularizer": [None, R.L2(0.01)],
}  # fmt: skip
OPTIMIZERS = {
    "SGD": lambda: OPT.SGD(0.02), "momentum": lambda: OPT.SGD(0.02, 0.8), "Adam": lambda: OPT.Adam(0.01),
    "decay": lambda: OPT.SGD(0.02, weight_decay=0.1), "Adagrad": lambda: OPT.Adagrad(0.02),
}  # fmt: skip


@hypothesis.settings(max_examples=3, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(st.data())
def test_whatever_network_is_drawn_the_bank_is_plain_keras(double, data):
    def draw(choices):
        return data.draw(st.sampled_from(list(choices)))

    hidden = []
    for units in data.draw(st.lists(st.integers(2, 5), max_size=2)):
        # Mostly the defaults: a network with everything trains alone, whatever the draws.
        options = {name: draw(values) if draw([True, False, False]) else values[0] for name, values in PARTS.items()}
        hidden += [L.Dense(units, **options), *BETWEEN[draw(BETWEEN)]()]
    smooth = LOSS.CategoricalCrossentropy(
        from_logits=True, label_smoothing=draw([0.0, 0.1]), reduction=draw(["auto", "sum"])
    )
    model = chain(*hidden, optimizer=OPTIMIZERS[draw(OPTIMIZERS)](), loss=smooth)
    agree(model, None, epochs=6, batch_size=draw([3, 5, None]), mixup=draw([0.0, 0.3]), m=draw([0, -1]))


# --- the same bits --------------------------------------------------------------------------------------------------


FLOAT = X.astype(np.float32)
MANY = membership.paired_halves(LABELS % 1, 6, seed=4)[:5]
HOW = {
    "span": (lambda: networks.mlp(D, CLASSES, (6,), 0.4, momentum=0.9), {}),
    "features": (lambda: networks.mlp(D, CLASSES, (6,), 0.4, group=0.01, optimizer="adam"), {}),
    "private": (lambda: networks.mlp(D, CLASSES, (6,), 0.4, momentum=0.9), {"privacy": Privacy(3.0), "n": 12}),
    "lasso": (lambda: networks.softmax(D, CLASSES, l1=0.1), {}),
    "alone": (lambda: chain(L.Dense(5, "gelu"), L.BatchNormalization(), L.Dropout(0.3)), {}),
}


def trained_by(build, options, **more):
    return bank.train(build(), FLOAT, LABELS, MANY, epochs=4, batch_size=4, seed=2, progress=False, **options, **more)


@functools.cache
def first_of(kind):
    return trained_by(*HOW[kind])


def same_bits(one, other):
    assert one.logits.tobytes() == other.logits.tobytes() and one.inside.tobytes() == other.inside.tobytes()
    assert all(a.tobytes() == b.tobytes() for a, b in zip(one.further, other.further, strict=True))


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="promised on a processor alone")
@pytest.mark.parametrize("kind", HOW)
def test_on_a_processor_bits_are_the_same_again_in_other_chunks_with_other_threads_and_after_a_kill(
    kind, monkeypatch, tmp_path
):
    build, options = HOW[kind]
    first = first_of(kind)  # all models in one call, since there is little to do
    monkeypatch.setattr(bank, "threads", lambda: 2)
    monkeypatch.setattr(bank, "LITTLE", 0)
    same_bits(trained_by(build, options, cache=tmp_path), first)
    whole = sorted(tmp_path.iterdir())
    assert len(whole) == 5
    for path in whole[1:4]:
        path.unlink()
    monkeypatch.setattr(bank, "threads", lambda: 1)
    monkeypatch.setattr(bank, "CHUNK", 2)
    same_bits(trained_by(build, options, cache=tmp_path), first)
    assert sorted(tmp_path.iterdir()) == whole


# --- the cache ------------------------------------------------------------------------------------------------------


def key_of(model=None, m=0, **changed):
    options = {"x": FLOAT, "labels": LABELS, "members": MANY, "epochs": 4, "batch_size": 4, "seed": 2} | changed
    return bank._paths(bank._job(model or networks.mlp(D, CLASSES, (6,)), **options), "folder")[m].name


class Within(C.Constraint):
    """A user's own constraint."""

    def __init__(self, bound):
        self.bound = bound

    def __call__(self, kernel):
        return tf.clip_by_value(kernel, -self.bound, self.bound)


class Slow(OPT.SGD):
    """A user's own optimizer."""


class Falling(OPT.schedules.LearningRateSchedule):
    """A user's own schedule."""

    def __call__(self, step):
        return 0.1 / (1.0 + tf.cast(step, tf.float32))

    def get_config(self):
        return {}


def test_all_that_training_depends_on_has_a_key_of_its_own():
    fewer = MANY.copy()
    fewer[0, np.flatnonzero(MANY[0])[0]] = False
    moved = FLOAT.copy()
    moved[0, 0] += 1
    mlp = functools.partial(networks.mlp, D, CLASSES, (6,))
    keys = [
        key_of(), key_of(m=1), key_of(seed=3), key_of(epochs=5), key_of(batch_size=5), key_of(members=fewer),
        key_of(x=moved), key_of(labels=(LABELS + 1) % CLASSES), key_of(mixup=0.1), key_of(class_weight=[1, 1, 2.0]),
        key_of(targets=np.full((5, N, CLASSES), 1 / 3)), key_of(start=[0 * w for w in mlp().get_weights()]),
        key_of(clustering={"weight": 0.1}), key_of(clustering={"weight": 0.2}),
        key_of(privacy=Privacy(1.0), n=12), key_of(privacy=Privacy(1.0), n=12, average=0.5),
        key_of(privacy=Privacy(1.0), n=12, fault=audit.FAULTS["no noise"]),
        key_of(mlp(learning_rate=0.1)), key_of(mlp(momentum=0.1)),
        key_of(mlp(optimizer="adam")), key_of(mlp(group=0.1)), key_of(mlp(group=0.2)), key_of(mlp(group=0.2, ramp=9.0)),
        key_of(mlp(dropout=0.1)), key_of(mlp(dropout=0.2)), key_of(mlp(kernel_regularizer=R.L2(0.1))),
        key_of(mlp(kernel_regularizer=R.L2(0.2))), key_of(mlp(kernel_regularizer=R.L1(0.2))), key_of(residual()),
        key_of(mlp(loss=LOSS.CategoricalCrossentropy(from_logits=True))),
        key_of(mlp(loss=LOSS.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1))),
        key_of(mlp(loss=LOSS.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2))),
        key_of(chain(L.Dense(6))), key_of(chain(L.Dense(6, use_bias=False))),
        key_of(chain(L.Dense(6, trainable=False))),
        key_of(chain(L.Dense(6, kernel_initializer="he_normal"))), key_of(chain(L.Dense(6), loss_weights=0.5)),
        key_of(chain(L.Dense(6), L.Activation("relu", name="relu"))),
        key_of(chain(L.Dense(6), L.Activation("tanh", name="tanh"))),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)


def test_names_of_layers_do_not_change_the_key():
    assert key_of(chain(L.Dense(6, name="one"))) == key_of(chain(L.Dense(6, name="other")))
    assert key_of(residual()) == key_of(residual())


@pytest.mark.parametrize("build", [
    lambda: chain(L.Dense(6, lambda x: 2 * x)), lambda: chain(L.Dense(6), L.Lambda(lambda x: 2 * x)),
    lambda: chain(L.Dense(6, kernel_constraint=Within(0.1))), lambda: chain(L.Dense(6), optimizer=Slow(0.1)),
    lambda: chain(L.Dense(6), loss=squares), lambda: chain(L.Dense(6), loss=Later()),
    lambda: chain(L.Dense(6), optimizer=OPT.SGD(Falling())),
])  # fmt: skip
def test_a_model_with_code_of_ones_own_is_not_kept_and_that_is_said(build, capsys):
    bank.say.cache_clear()
    job = bank._job(build(), FLOAT, LABELS, MANY, epochs=4, batch_size=4, seed=2)
    assert bank._paths(job, "folder") == [None] * 5 and "is not kept in the cache" in capsys.readouterr().out


def test_a_flipped_bit_in_a_cached_model_is_said_and_that_model_is_trained_anew(tmp_path):
    build, options = HOW["span"]
    trained_by(build, options, cache=tmp_path)
    path = sorted(tmp_path.iterdir())[2]
    whole = path.read_bytes()
    place = whole.index(np.ascontiguousarray(np.load(path)["logits"]).tobytes()) + 5
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    with pytest.warns(UserWarning, match=f"{path.name} is damaged .* it is computed again"):
        same_bits(trained_by(build, options, cache=tmp_path), first_of("span"))
    assert path.read_bytes()[place] == whole[place]


# --- a model by itself ----------------------------------------------------------------------------------------------

LOAD = """
import sys, numpy as np, tensorflow as tf
folder = sys.argv[1]
for name in sys.argv[2:]:
    model, stored = tf.keras.models.load_model(f"{folder}/{name}.keras"), np.load(f"{folder}/{name}.npz")
    np.testing.assert_allclose(model.predict(stored["x"], verbose=0), stored["logits"], atol=1e-5)
assert "genlib" not in sys.modules
"""


def test_a_model_of_the_bank_is_one_on_features_and_loads_without_this_package(tmp_path):
    names = [kind for kind in HOW if kind != "private"]
    for name in names:
        trained = first_of(name)
        model = trained.model(2)
        np.testing.assert_allclose(model(FLOAT, training=False), trained.logits[2], atol=1e-5)
        weights = model.get_weights()
        np.testing.assert_allclose(FLOAT @ weights[0], trained.inside[2], atol=1e-5)
        for ours, theirs in zip(trained.further, weights[1:], strict=True):
            np.testing.assert_array_equal(ours[2], theirs)
        model.save(tmp_path / f"{name}.keras")
        np.savez(tmp_path / f"{name}.npz", x=FLOAT, logits=trained.logits[2])
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path), *names], check=True, cwd=tmp_path)


# --- what is drawn --------------------------------------------------------------------------------------------------


def still(start, members=MANY):
    """A bank that stays at its start."""
    model = chain(L.Dense(40, kernel_initializer=start), optimizer=OPT.SGD(0.0))
    return bank.train(model, FLOAT, LABELS, members, epochs=1, batch_size=None, seed=5, progress=False)


def test_a_gaussian_start_that_is_drawn_in_the_basis_has_the_law_that_it_has_on_features():
    trained = still(networks.START)
    spread = np.sqrt(2 / D)
    inside = trained.inside.transpose(1, 0, 2).reshape(N, -1) / spread
    # In coordinates of the rows: N directions of independent standard Gaussians in 5 models with 40 units each.
    white = np.linalg.solve(np.linalg.cholesky(X @ X.T), inside)
    assert 1e-4 < chi2.cdf((white**2).sum(), white.size) < 1 - 1e-4
    assert np.abs(np.corrcoef(white) - np.eye(N)).max() < 5.5 / np.sqrt(white.shape[1])
    kernel = trained.model(1).get_weights()[0]
    np.testing.assert_allclose(FLOAT @ kernel, trained.inside[1], atol=1e-4)
    outside = np.linalg.qr(X.T, mode="complete")[0][:, N:].T @ kernel / spread
    assert 1e-4 < chi2.cdf((outside**2).sum(), outside.size) < 1 - 1e-4
    assert np.abs(np.corrcoef(outside) - np.eye(D - N)).max() < 4.5 / np.sqrt(40)


def test_another_start_is_drawn_on_features_as_keras_does():
    trained = still("glorot_uniform")
    kernel, bound = trained.model(1).get_weights()[0], np.sqrt(6 / (D + 40))
    np.testing.assert_allclose(FLOAT @ kernel, trained.inside[1], atol=1e-4)
    assert 0.99 * bound < np.abs(kernel).max() <= bound and abs(kernel.std() / bound * np.sqrt(3) - 1) < 0.04
    assert not np.allclose(trained.inside[0], trained.inside[1])


def test_a_layer_that_draws_numbers_of_its_own_draws_the_same_again():
    options = {"epochs": 3, "batch_size": 4, "seed": 2, "progress": False}
    noisy = [bank.train(chain(L.Dense(5), L.GaussianNoise(1.0)), FLOAT, LABELS, MANY, **options) for _ in range(2)]
    quiet = bank.train(chain(L.Dense(5), L.GaussianNoise(0.0)), FLOAT, LABELS, MANY, **options)
    assert np.isfinite(noisy[0].logits).all() and not np.allclose(noisy[0].logits, quiet.logits, atol=0.01)
    same_bits(*noisy)


# --- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not tf.config.list_physical_devices("GPU"), reason="TensorFlow sees no GPU here")
@pytest.mark.parametrize("kind", HOW)
def test_on_a_gpu_the_bank_is_plain_keras_but_for_rounding(kind):
    build, options = HOW[kind]
    first = trained_by(build, options)
    np.testing.assert_allclose(trained_by(build, options).logits, first.logits, atol=1e-6)
    if kind != "private":
        start = [w.astype(np.float32) for w in starts_of(build())]
        how = {"epochs": 4, "batch_size": 4, "seed": 2, "start": start}
        plain = reference(bank._job(build(), FLOAT, LABELS, MANY, **how), 1)(FLOAT, training=False)
        ours = bank.train(build(), FLOAT, LABELS, MANY, progress=False, **how)
        np.testing.assert_allclose(ours.logits[1], plain, atol=1e-3)


def test_a_model_is_the_same_after_it_was_fitted_and_asked():
    model = networks.mlp(D, CLASSES, (4,))
    before = bank.describe(model)
    model.fit(X, LABELS, verbose=0)
    model.predict(X, verbose=0)
    assert bank.describe(model) == before is not None


def test_one_compiled_bank_serves_every_learning_rate():
    labels, x = np.arange(40) % 2, np.random.default_rng(0).normal(size=(40, 60)).astype(np.float32)
    members = membership.paired_halves(labels, 4, 0)

    def trained(rate):
        model = networks.mlp(60, 2, (8,), learning_rate=rate, momentum=0.9)
        found = bank.train(model, x, labels, members, epochs=3, batch_size=10, seed=0, progress=False)
        return found.logits

    slow, fast, again = trained(0.02), trained(0.2), trained(0.02)
    np.testing.assert_array_equal(slow, again)
    alone = bank.fit(networks.mlp(60, 2, (8,), learning_rate=0.2, momentum=0.9), x, labels, members, 1, epochs=3,
                     batch_size=10, seed=0)  # fmt: skip
    np.testing.assert_allclose(fast[1], alone.predict(x, verbose=0), atol=1e-4)
    assert np.abs(slow - fast).max() > 1
