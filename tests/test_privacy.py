"""What a guarantee promises holds for what is trained: noise, clipping, batches, the accountant and the release."""

import dataclasses

import dp_accounting
import numpy as np
import pytest
import tensorflow as tf
from dp_accounting import rdp
from scipy.stats import binom, chi2, norm

from genlib import audit, bank, defenses, networks, privacy
from genlib.privacy import Center, Mechanism, Privacy

K = tf.keras
L, R = K.layers, K.regularizers
N, D, CLASSES = 24, 40, 3
LABELS = np.random.default_rng(0).integers(0, CLASSES, N)
X = np.random.default_rng(1).normal(size=(N, D))
FLOAT = X.astype(np.float32)
HALF = np.arange(N) < 12


@pytest.fixture
def double():
    K.backend.set_floatx("float64")
    yield
    K.backend.set_floatx("float32")


def starts_of(model, scale=0.3):
    rng = np.random.default_rng(5)
    return [scale * rng.normal(size=w.shape) for w in model.get_weights()]


def job_of(model, plan, members, x=X, labels=LABELS, seed=3, **options):
    """A job of private training by a mechanism in numbers; a `Privacy` has one with noise that is calibrated."""
    job = bank._job(
        model, x, labels, members, epochs=1, batch_size=None, seed=seed, privacy=Privacy(3.0), n=12, **options
    )
    return dataclasses.replace(job, plan=plan)


def trained(job):
    """All that is trained, by name, each with a leading axis of models; weights are on features."""
    found = [one for _, one in bank._trained(job, list(range(len(job.members))), weights=True)]
    return {name: np.stack([one[name] for one in found]) for name in found[0]}


# --- training -------------------------------------------------------------------------------------------------------


def textbook(x, labels, model, plan, start, job, m):
    """DP-SGD of a softmax regression, one patient at a time, in numpy, from the same batches and noise."""
    optimizer, decay = model.optimizer.get_config(), model.layers[0].kernel_regularizer.l2
    rate, momentum, last = optimizer["learning_rate"], optimizer["momentum"], round(job.average * plan.steps)
    rows, sizes = bank.draw_poisson(len(x), plan, bank.rng_of(job.seed, m, 14))
    noise = bank.rng_of(job.seed, m, 16).standard_normal((plan.steps, (x.shape[1] + 1) * CLASSES), np.float32)
    value, speed, total = np.concatenate([start[0], start[1][None]]), 0.0, 0.0
    for t in range(plan.steps):
        drawn = np.split(plan.noise * noise[t].astype(float), [x.shape[1] * CLASSES])
        gradient = np.concatenate([part.reshape(-1, CLASSES) for part in drawn])
        for i in rows[t, : sizes[t]]:
            p = np.exp(np.r_[x[i], 1] @ value)
            error = (p / p.sum() - np.eye(CLASSES)[labels[i]]) * job.class_weight[labels[i]]
            slope = np.outer(np.r_[x[i], 1], error)
            gradient = gradient + slope * min(1, plan.clip_norm / np.linalg.norm(slope))
        gradient = gradient / plan.divisor + 2 * decay * np.r_[np.ones(x.shape[1]), 0][:, None] * value
        speed = momentum * speed - rate * gradient
        value = value + (momentum * speed - rate * gradient if optimizer["nesterov"] else speed)
        total = total + value / last * (t >= plan.steps - last)
    return total


@pytest.mark.parametrize("rate, nesterov", [(1.0, False), (0.3, True), (0.02, False)])
def test_a_run_on_features_is_the_textbook_step_by_step_and_number_by_number(rate, nesterov, double):
    x, labels = X[:, :20], LABELS
    members = np.stack([np.arange(N) < 17, np.arange(N) >= 10])
    # Keras takes a momentum in single precision, whatever the numbers: one that is exact there.
    model = networks.softmax(20, CLASSES, kernel_regularizer=R.L2(0.02), momentum=0.75, learning_rate=0.3)
    model.optimizer.nesterov = nesterov
    plan, start = Mechanism(0.7, 1.3, rate, steps=30, divisor=20 * rate), starts_of(model)
    job = job_of(model, plan, members, x, start=start, average=0.4, class_weight=[0.5, 1.0, 4.0])
    assert job.form == "features"
    found = trained(job)
    for m, inside in enumerate(members):
        assert (bank.draw_poisson(inside.sum(), plan, bank.rng_of(3, m, 14))[1] == 0).any() == (rate == 0.02)
        value = textbook(x[inside], labels[inside], model, plan, start, job, m)
        np.testing.assert_allclose(found["weights_0"][m], value[:-1], atol=1e-11)
        np.testing.assert_allclose(found["weights_1"][m], value[-1], atol=1e-11)
        np.testing.assert_allclose(found["logits"][m], x @ value[:-1] + value[-1], atol=1e-11)


def network(**options):
    return networks.mlp(D, CLASSES, (6,), 0.4, kernel_regularizer=R.L2(0.02), **{"learning_rate": 0.3} | options)


@pytest.mark.parametrize("rate, members", [(1.0, [HALF, ~HALF]), (0.3, [HALF, np.arange(N) % 3 == 0])])
def test_without_noise_the_span_is_features_with_clipping_dropout_and_all_else(rate, members, double, monkeypatch):
    model = network(momentum=0.75)
    plan = Mechanism(0.2, 0.0, rate, steps=30, divisor=6.0)
    options = {"start": starts_of(model), "average": 0.4, "class_weight": [0.5, 1.0, 4.0]}
    job = job_of(model, plan, np.stack(members), **options)
    assert job.form == "span"
    in_span, on_features = trained(job), trained(dataclasses.replace(job, form="features"))
    for name, values in on_features.items():
        np.testing.assert_allclose(in_span[name], values, atol=1e-10, err_msg=name)


def test_every_weight_has_the_noise_that_the_mechanism_says_and_no_two_share_it():
    # Profiles of zeros and dead units: but for the last bias, nothing but noise moves a weight.
    model = networks.mlp(20, CLASSES, (40, 40), learning_rate=1.0)
    start = [np.zeros(w.shape) for w in model.get_weights()]
    start[1][:] = start[3][:] = -1e6
    moved = []
    for steps in (1, 9):
        plan = Mechanism(0.5, 3.0, 0.5, steps=steps, divisor=5.0)
        moved.append(trained(job_of(model, plan, np.ones((2, N), bool), 0 * FLOAT[:, :20], start=start)))
    for steps, weights in zip((1, 9), moved, strict=True):
        for value in [weights[f"weights_{i}"] for i in (0, 2, 4)]:
            assert value.std() == pytest.approx(3.0 / 5 * np.sqrt(steps), rel=4.5 / np.sqrt(2 * value.size))
    flat = [moved[0][f"weights_{i}"][m].ravel()[:120] for i in (0, 2, 4) for m in (0, 1)]
    assert np.abs(np.corrcoef(flat) - np.eye(6)).max() < 4.5 / np.sqrt(120)


VARIANTS = {
    "plain": {}, "momentum": {"momentum": 0.8}, "L2": {"kernel_regularizer": R.L2(0.3)},
    "all": {"momentum": 0.8, "kernel_regularizer": R.L2(0.3)}, "nesterov": {"momentum": 0.8, "nesterov": True},
}  # fmt: skip


def regression(nesterov=False, **options):
    model = networks.softmax(D, CLASSES, learning_rate=0.1, **options)
    model.optimizer.nesterov = nesterov
    return model


@pytest.mark.parametrize("average", [0.0, 0.5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_left_outside_of_the_span_is_that_of_a_simulated_weight(variant, average):
    model, plan, rng = (
        regression(**VARIANTS[variant]),
        Mechanism(1.0, 4.0, 1.0, 20, divisor=9.0),
        np.random.default_rng(0),
    )
    begun = rng.normal(size=100_000)
    weight, decay = tf.Variable(begun), getattr(model.layers[0].kernel_regularizer, "l2", 0.0)
    optimizer, total, last = K.optimizers.SGD.from_config(model.optimizer.get_config()), 0.0, round(20 * average) or 1
    for step in range(20):
        gradient = rng.normal(0, 4 / 9, begun.shape) + 2 * decay * weight.numpy()
        optimizer.apply_gradients([(tf.constant(gradient), weight)])
        total = total + weight.numpy() / last * (step >= 20 - last)
    kept, gathered = job_of(model, plan, HALF[None], average=average).outside
    assert np.mean(total * begun) == pytest.approx(kept, abs=0.02)
    assert np.std(total - kept * begun) == pytest.approx(gathered, rel=0.01)


@pytest.mark.parametrize("variant, average, given", [("all", 0.5, False), ("nesterov", 0.0, False), ("L2", 0.5, True)])
def test_kernels_have_outside_of_the_span_what_a_run_on_features_gathers(variant, average, given):
    model, plan = regression(**VARIANTS[variant]), Mechanism(1.0, 4.0, 1.0, 12, divisor=9.0)
    options = {"start": starts_of(model)} if given else {}
    job = job_of(model, plan, np.tile(HALF, (40, 1)), FLOAT, average=average, **options)
    found = trained(job)
    kernels = found["weights_0"].astype(float)
    np.testing.assert_allclose(FLOAT @ kernels, found["inside"], atol=1e-4)
    np.testing.assert_allclose(found["inside"] + found["weights_1"][:, None], found["logits"], atol=1e-5)
    axes = np.linalg.qr(X[HALF].T, mode="complete")[0][:, 12:]
    kept, gathered = job.outside
    known = kept * options["start"][0] if given else 0
    spread = gathered if given else np.hypot(gathered, kept * np.sqrt(1 / D))
    outside = np.einsum("sdk,de->ske", kernels - known, axes).reshape(-1, 28) / spread
    # All 28 axes, those that the others see and those that nobody sees, are standard normal and independent.
    assert 1e-4 < chi2.cdf((outside**2).sum(), outside.size) < 1 - 1e-4
    per_axis = chi2.cdf((outside**2).sum(axis=0), len(outside))
    assert 1e-4 / 28 < per_axis.min() and per_axis.max() < 1 - 1e-4 / 28
    assert np.abs(np.corrcoef(outside.T) - np.eye(28)).max() < norm.ppf(1 - 1e-4 / 28**2) / np.sqrt(len(outside))


@pytest.mark.parametrize("kind", ["regression", "network"])
def test_the_span_and_features_give_the_same_law(kind):
    members, count = np.arange(14) < 9, 200
    if kind == "regression":
        model, plan, average = regression(**VARIANTS["all"]), Mechanism(1.0, 4.0, 1.0, 12, divisor=9.0), 0.5
    else:
        model, plan, average = network(momentum=0.5), Mechanism(0.5, 1.0, 0.4, 10, divisor=4.0), 0.3
    job = job_of(model, plan, np.tile(members, (count, 1)), FLOAT[:14], LABELS[:14], average=average)
    assert job.form == "span"
    runs = []
    for form, seed in (("span", 3), ("features", 4)):
        found = [one for _, one in bank._trained(dataclasses.replace(job, form=form, seed=seed), list(range(count)))]
        runs.append(np.array([np.concatenate([one["logits"], one["inside"]], axis=1) for one in found], float))
    # Means and variances of all numbers, of members and of others; Bonferroni over all of them.
    limit = norm.ppf(1 - 0.001 / 4 / runs[0][0].size)
    for one, other in (runs, [(run - run.mean(axis=0)) ** 2 for run in runs]):
        error = np.sqrt((one.var(axis=0) + other.var(axis=0)) / count)
        assert (np.abs(one.mean(axis=0) - other.mean(axis=0)) / error).max() < limit


def others_like(kind, x, rng):
    """Rows of others that hardly, or only in part, leave the span of members x."""
    if kind == "low rank":
        return rng.normal(size=(len(x), len(x))) @ x / 4
    near = x + {"copies": 0, "near copies": 1e-5}[kind] * rng.normal(size=x.shape)
    return np.vstack([near[:8], rng.normal(size=(4, x.shape[1]))])


@pytest.mark.parametrize("kind", ["copies", "near copies", "low rank"])
def test_where_others_hardly_leave_the_span_weights_give_the_logits_and_have_all_their_noise(kind):
    rows = np.vstack([X[HALF], others_like(kind, X[HALF], np.random.default_rng(0))]).astype(np.float32)
    model, plan = regression(), Mechanism(1.0, 2.0, 1.0, steps=12, divisor=12.0)
    job = job_of(model, plan, np.tile(HALF, (8, 1)), rows)
    found = trained(job)
    np.testing.assert_allclose(rows @ found["weights_0"], found["inside"], atol=0.01)
    kept, gathered = job.outside
    outside = np.einsum("sdk,de->sek", found["weights_0"], np.linalg.qr(X[HALF].T, mode="complete")[0][:, 12:])
    assert outside.std() == pytest.approx(
        np.hypot(gathered, kept * np.sqrt(1 / D)), rel=4.5 / np.sqrt(2 * outside.size)
    )


@pytest.mark.parametrize("fault", audit.FAULTS.values(), ids=audit.FAULTS)
def test_a_planted_fault_changes_what_is_trained(fault):
    options = {
        "epochs": 2,
        "batch_size": 6,
        "seed": 0,
        "privacy": Privacy(3.0, clip_norm=0.1),
        "n": 12,
        "progress": False,
    }
    model, members = network(), np.stack([HALF, ~HALF])
    correct, broken = (bank.train(model, FLOAT, LABELS, members, fault=f, **options).logits for f in (None, fault))
    assert not np.allclose(correct, broken)


# --- batches --------------------------------------------------------------------------------------------------------


def test_every_member_takes_part_in_each_step_by_itself():
    n, steps, rate = 60, 400, 0.2
    rows, sizes = bank.draw_poisson(n, Mechanism(1.0, 1.0, rate, steps, 12.0), np.random.default_rng(0))
    assert all(len(set(row[:size])) == size for row, size in zip(rows, sizes, strict=True))
    there = np.array([np.isin(np.arange(n), row[:size]) for row, size in zip(rows, sizes, strict=True)])
    counts = there.sum(axis=0)
    assert binom.cdf(counts.min(), steps, rate) > 1e-6 and binom.sf(counts.max(), steps, rate) > 1e-6
    # Sizes spread as a binomial's, so members do not depend on each other; neither do neighboring steps.
    spread = (sizes - n * rate).astype(float) @ (sizes - n * rate) / (n * rate * (1 - rate))
    assert 0.001 < chi2.cdf(spread, steps) < 0.999
    both, share = (there[1:] & there[:-1]).mean(), rate**2
    assert abs(both - share) < 5 * np.sqrt((share * (1 - share) + 2 * (rate**3 - share**2)) / there[1:].size)


def test_a_large_batch_is_not_cut_a_full_one_holds_all_and_a_fault_repeats_the_first():
    plan = Mechanism(1.0, 1.0, 0.3, 30, 15.0)
    rows, sizes = bank.draw_poisson(50, plan, np.random.default_rng(0), width=12)
    assert rows.shape[1] == sizes.max() > 12 and abs(sizes.mean() - 15) < 2
    rows, sizes = bank.draw_poisson(50, dataclasses.replace(plan, fresh_batches=False), np.random.default_rng(0))
    assert (rows == rows[0]).all() and len(set(sizes)) == 1
    rows, sizes = bank.draw_poisson(9, dataclasses.replace(plan, rate=1.0), np.random.default_rng(0))
    assert (rows == np.arange(9)).all() and (sizes == 9).all()


# --- what cannot be promised ----------------------------------------------------------------------------------------


class Relaxed(K.losses.Loss):
    """A loss that looks at a whole batch."""

    def __call__(self, targets, answers, sample_weight=None):
        losses = K.losses.categorical_crossentropy(targets, answers, from_logits=True)
        return tf.abs(tf.reduce_mean(losses) - 1.0)


def own(*hidden, optimizer="sgd", loss=None):
    model = K.Sequential([K.Input((D,)), *hidden, L.Dense(CLASSES)])
    model.compile(optimizer, loss or K.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def twice():
    given, shared = K.Input((D,)), L.Dense(D)
    model = K.Model(given, L.Dense(CLASSES)(shared(shared(given))))
    model.compile("sgd", K.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


REFUSED = {
    r"\(BatchNormalization\)": lambda: own(L.Dense(5), L.BatchNormalization()),
    r"\(Reshape\)": lambda: networks.cnn(D, CLASSES, (4,)),
    "optimizer Adam": lambda: networks.softmax(D, CLASSES, optimizer="adam"),
    "optimizer SGD with clipnorm": lambda: own(optimizer=K.optimizers.SGD(0.1, clipnorm=1.0)),
    "loss Relaxed": lambda: own(loss=Relaxed()),
    "loss RelaxLoss": lambda: own(loss=defenses.RelaxLoss(1.0)),
    r"\(Dense\) is used twice": twice,
    r"\(Dense\) .*constrain": lambda: own(L.Dense(5, kernel_constraint="non_neg")),
    r"\(Lambda\)": lambda: own(L.Lambda(lambda x: x - tf.reduce_mean(x, 0))),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_has_no_gradient_of_one_patient_is_refused_by_name(words):
    for change in ({}, {"seed": None}):
        options = {
            "epochs": 1,
            "batch_size": None,
            "seed": 0,
            "privacy": Privacy(3.0),
            "n": 12,
            "progress": False,
        } | change
        with pytest.raises(ValueError, match=words):
            bank.train(REFUSED[words](), FLOAT, LABELS, HALF[None], **options)


@pytest.mark.parametrize(
    "words, change",
    [
        ("needs n, the nominal number", {"n": None}), ("average: for private", {"privacy": None, "average": 0.5}),
        ("fault: for private training alone", {"privacy": None, "fault": audit.FAULTS["no noise"]}),
        ("mixup, clustering and soft targets", {"mixup": 0.3}),
        ("soft targets", {"targets": np.full((1, N, CLASSES), 1 / 3)}), ("batch_size=20 for n=12", {"batch_size": 20}),
        ("must be below 1/n", {"privacy": Privacy(3.0, delta=0.1)}),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(words, change):
    options = {"epochs": 1, "batch_size": None, "seed": 0, "privacy": Privacy(3.0), "n": 12} | change
    with pytest.raises(ValueError, match=words):
        bank.train(own(), FLOAT, LABELS, HALF[None], **options)


# --- centering ------------------------------------------------------------------------------------------------------


def test_no_patient_however_long_moves_the_noisy_mean_by_more_than_radius_over_n():
    center, plan = Center(np.zeros(D), share=0.0, radius=1.5), Mechanism(1.0, 0.0, 1.0, 1, divisor=20.0, mean_noise=2.0)
    x = (X * 10.0 ** np.random.default_rng(0).uniform(-3, 3, (N, 1))).astype(np.float32)
    for newcomer in (x[0], 1e18 * x[0], 1e-30 * x[0], np.float32(1e30) * x[0], 0 * x[0]):
        pair = [center.offset(rows, plan, np.random.default_rng(0)) for rows in (x, np.vstack([x, newcomer]))]
        assert np.isfinite(pair).all()
        assert np.linalg.norm(pair[0] - pair[1]) <= 1.5 / 20 * (1 + 1e-5)
    draws = [center.offset(np.zeros((5, D)), plan, np.random.default_rng(seed)) for seed in range(400)]
    assert np.std(draws) == pytest.approx(2.0 * 1.5 / 20, rel=0.02)


def test_weights_of_a_centered_model_are_for_features_as_they_were():
    center = Center(np.random.default_rng(1).normal(size=D), share=0.1, radius=8.0)
    plan = Mechanism(1.0, 2.0, 1.0, steps=12, divisor=12.0, mean_noise=2.0)
    found = trained(job_of(own(L.Dense(5, "relu")), plan, np.stack([HALF, ~HALF]), FLOAT, center=center))
    hidden = np.maximum(FLOAT @ found["weights_0"] + found["weights_1"][:, None], 0)
    logits = hidden @ found["weights_2"] + found["weights_3"][:, None]
    np.testing.assert_allclose(logits, found["logits"], atol=1e-4)


# --- release --------------------------------------------------------------------------------------------------------

RELEASES = {
    "span, Poisson": (network, {"batch_size": 8, "average": 0.5}),
    "features": (lambda: networks.softmax(20, CLASSES), {"x": FLOAT[:, :20], "class_weight": [1.0, 2.0, 0.5]}),
    "centered": (
        lambda: networks.softmax(D, CLASSES),
        {"privacy": Privacy(3.0, noisy_mean=True), "center": Center(np.zeros(D), 0.1, 8.0)},
    ),
}


@pytest.mark.parametrize("kind", RELEASES)
def test_a_release_is_a_plain_model_that_cannot_be_repeated_and_leaves_nothing_on_disk(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build, changed = RELEASES[kind]
    options = {"x": FLOAT, "labels": LABELS, "privacy": Privacy(3.0), "n": N, "epochs": 3} | changed
    released = []
    for _ in range(2):
        K.utils.set_random_seed(0)
        released.append(privacy.release(build(), **options))
    (first, words), (second, _) = released
    assert type(first) in (K.Sequential, K.Model) and first.get_config()["layers"]
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        assert not np.isclose(one, other).any() or one.size > 20 > np.isclose(one, other).sum()
    assert "no seed was kept" in words and "Not for release" not in words
    assert ("one noisy mean" in words) == (kind == "centered")
    assert not list(tmp_path.iterdir())


def test_without_a_promise_nothing_is_released_nor_with_noise_that_can_be_repeated():
    with pytest.raises(ValueError, match="privacy=None"):
        privacy.release(own(), FLOAT, LABELS, None, n=N, epochs=1)
    options = {"epochs": 1, "batch_size": None, "seed": 0, "privacy": Privacy(3.0), "n": 12, "progress": False}
    studied = bank.train(own(), FLOAT, LABELS, HALF[None], **options)
    with pytest.raises(ValueError, match="privacy.release"):
        studied.model(0)


# --- TF-Privacy -----------------------------------------------------------------------------------------------------


def test_tf_privacy_trains_what_the_bank_trains_but_for_the_noise():
    model = networks.mlp(D, CLASSES, (6,), momentum=0.9, learning_rate=0.2)
    plan, start = Mechanism(0.3, 0.0, 1.0, steps=8, divisor=20.0), starts_of(model)
    theirs = privacy.tf_privacy_model(model, plan, seed=0)
    theirs.set_weights([w.astype(np.float32) for w in start])
    theirs.fit(FLOAT[HALF], LABELS[HALF], batch_size=12, epochs=8, shuffle=False, verbose=0)
    ours = trained(job_of(model, plan, HALF[None], FLOAT, start=start))
    np.testing.assert_allclose(theirs(FLOAT), ours["logits"][0], atol=1e-5)
    for i, value in enumerate(theirs.get_weights()):
        np.testing.assert_allclose(value, ours[f"weights_{i}"][0], atol=1e-5)
        assert np.abs(value - start[i]).max() > 1e-3


def test_tf_privacy_has_the_stated_noise_and_each_model_its_own():
    members = np.stack([HALF, ~HALF])
    model, zeros = networks.softmax(1000, CLASSES, learning_rate=0.5), np.zeros((N, 1000), np.float32)
    plan = Privacy(3.0).mechanism(12, 1)
    kernels = []
    for seed in (0, 1):
        theirs = privacy.tf_privacy_model(model, plan, seed)
        theirs.set_weights([np.zeros_like(w) for w in theirs.get_weights()])
        theirs.fit(zeros[:9], LABELS[:9], batch_size=9, epochs=1, verbose=0)  # fewer than the nominal number
        kernels.append(theirs.get_weights()[0].ravel())
    assert np.std(kernels) == pytest.approx(0.5 * plan.noise / 12, rel=4.5 / np.sqrt(2 * 6000))
    assert abs(np.corrcoef(kernels)[0, 1]) < 4.5 / np.sqrt(3000)
    logits = privacy.tf_privacy(networks.softmax(D, CLASSES), FLOAT, LABELS, members, Privacy(3.0), 12, 2, seed=0)
    assert logits.shape == (2, N, CLASSES) and np.isfinite(logits).all()


def shared_layer():
    given, shared = K.Input((D,)), L.Dense(D, name="twice")
    return K.Model(given, shared(L.ReLU()(shared(given))))


UNCLIPPED = {
    r"\(Dropout\)": lambda: own(L.Dropout(0.2)), r"\(BatchNormalization\)": lambda: own(L.BatchNormalization()),
    r"\(LayerNormalization\)": lambda: own(L.LayerNormalization()),
    r"\(GaussianNoise\)": lambda: own(L.GaussianNoise(1)),
    r"\(Reshape\)": lambda: own(L.Reshape((D, 1)), L.Conv1D(2, 3), L.Flatten()),
    r"\(Lambda\)": lambda: own(L.Lambda(lambda x: x)), r"\(Sequential\)": lambda: own(K.Sequential([L.Dense(4)])),
    "'relu6' ": lambda: own(L.Dense(4, activation=tf.nn.relu6, name="relu6")),
    "'decays' ": lambda: own(L.Dense(4, kernel_regularizer="l2", name="decays")), "'twice' ": shared_layer,
}  # fmt: skip


@pytest.mark.parametrize("words", UNCLIPPED)
def test_what_fast_clipping_does_not_clip_is_refused(words):
    with pytest.raises(ValueError, match=f"{words}.*fast clipping does not bound"):
        privacy.refuse_unclipped(UNCLIPPED[words]())


def test_paths_of_tf_privacy_that_the_accountant_does_not_know_are_refused(monkeypatch):
    plan = Mechanism(1.0, 1.0, 1.0, steps=1, divisor=12.0)
    privacy.refuse_unclipped(own(L.Dense(4, "relu"), L.ReLU(), L.Dense(4, "tanh")))
    with monkeypatch.context() as unchecked, pytest.raises(ValueError, match="slow path"):
        unchecked.setattr(privacy, "refuse_unclipped", lambda model: None)
        privacy.tf_privacy_model(own(L.Reshape((D, 1)), L.Conv1D(2, 3), L.Flatten()), plan, seed=0)
    with pytest.raises(ValueError, match="shuffles where the accountant assumes Poisson"):
        privacy.tf_privacy_model(own(), dataclasses.replace(plan, rate=0.5), seed=0)
    for model in (own(optimizer="adam"), own(loss=K.losses.CategoricalCrossentropy(from_logits=True))):
        with pytest.raises(ValueError, match="with SGD and SparseCategoricalCrossentropy alone"):
            privacy.tf_privacy_model(model, plan, seed=0)


# --- accounting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "epsilon, epochs, batch_size",
    [(0.1, 1, None), (1.0, 30, None), (8.0, 60, None), (0.1, 3, 8), (1.0, 20, 64), (3.0, 4, 383)],
)
def test_the_noise_keeps_the_promise_and_wastes_at_most_one_percent(epsilon, epochs, batch_size):
    plan = Privacy(epsilon, clip_norm=0.5).mechanism(384, epochs, batch_size)
    assert 0.99 * epsilon < privacy.accountant_epsilon(plan.noise_multiplier, plan.steps, 1e-5, plan.rate) <= epsilon
    assert plan.rate * plan.steps >= epochs - 1e-9  # never fewer passes than asked for
    assert (plan.clip_norm, plan.noise, plan.mean_noise) == (0.5, 0.5 * plan.noise_multiplier, 0)
    assert (plan.rate, plan.divisor) == (1.0, 384) if batch_size is None else (batch_size / 384, batch_size)


def gaussian_delta(epsilon, sigma, steps):
    """Exact delta of full-batch releases (Balle, Wang, ICML 2018, theorem 8), with mu = sqrt(steps) / sigma."""
    mu = np.sqrt(steps) / sigma
    return norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu))


@pytest.mark.parametrize("sigma, steps", [(1.0, 1), (2.0, 4), (10.0, 30), (5.0, 60)])
def test_the_accountant_agrees_with_the_closed_form_and_lies_below_renyi_divergence(sigma, steps):
    epsilon = privacy.accountant_epsilon(sigma, steps, 1e-5)
    # The accountant errs to the safe side only: its delta at its own epsilon is an upper bound.
    assert gaussian_delta(epsilon, sigma, steps) <= 1e-5 * (1 + 1e-6)
    assert gaussian_delta(0.99 * epsilon, sigma, steps) > 1e-5
    renyi = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    renyi.compose(dp_accounting.GaussianDpEvent(sigma), steps)
    assert epsilon <= renyi.get_epsilon(1e-5)


@pytest.mark.parametrize("epsilon, sigma", [(0.5, 2.0), (2.0, 0.7)])
def test_the_closed_form_is_the_divergence_of_two_gaussians(epsilon, sigma):
    # Hockey-stick divergence by summing max(0, p - e^eps q) over a fine grid.
    x = np.linspace(-20, 20, 400_001)
    gap = norm.pdf(x, 1 / sigma, 1) - np.exp(epsilon) * norm.pdf(x, 0, 1)
    assert gaussian_delta(epsilon, sigma, 1) == pytest.approx(np.trapz(np.maximum(gap, 0), x), rel=1e-4)


@pytest.mark.parametrize("sigma, rate", [(1.0, 0.1), (2.0, 0.5)])
def test_one_sampled_step_costs_no_less_than_the_divergence_of_its_two_distributions(sigma, rate):
    # One step with and without a patient: N(0, sigma^2) against the mixture; the exact delta at the claimed epsilon.
    epsilon = privacy.accountant_epsilon(sigma, 1, 1e-3, rate)
    z = np.linspace(-12 * sigma, 12 * sigma + 1, 400_001)
    without = norm.pdf(z, 0, sigma)
    mixed = (1 - rate) * without + rate * norm.pdf(z, 1, sigma)
    for one, other in ((mixed, without), (without, mixed)):
        assert np.trapz(np.maximum(one - np.exp(epsilon) * other, 0), z) <= 1e-3 * 1.001
    # And it wastes next to nothing.
    assert np.trapz(np.maximum(mixed - np.exp(epsilon * 0.97 - 2e-3) * without, 0), z) > 1e-3


def attack_on_the_sum(sigma, steps, rate, cut):
    """Rates of the attack that adds up all steps' sums and calls a member whoever is above the cut."""
    times = np.arange(steps + 1)
    tpr = (binom.pmf(times, steps, rate) * norm.sf(cut[:, None], times, sigma * np.sqrt(steps))).sum(axis=1)
    return norm.sf(cut, 0, sigma * np.sqrt(steps)), tpr


@pytest.mark.parametrize("sigma, steps, rate", [(1.0, 50, 0.1), (3.0, 120, 1 / 12), (2.0, 100, 0.5), (0.8, 20, 0.02)])
def test_no_attack_on_the_sum_of_sampled_steps_beats_its_epsilon(sigma, steps, rate):
    cut = np.linspace(-8 * sigma * np.sqrt(steps), steps + 8 * sigma * np.sqrt(steps), 1001)
    fpr, tpr = attack_on_the_sum(sigma, steps, rate, cut)
    epsilon = privacy.accountant_epsilon(sigma, steps, 1e-5, rate)
    # Both orders: more true than false positives, and more true than false negatives.
    assert (tpr - np.exp(epsilon) * fpr).max() <= 1e-5 and ((1 - fpr) - np.exp(epsilon) * (1 - tpr)).max() <= 1e-5
    # The bound is not idle: at half of its epsilon the same attack would break it. (Where a patient is hardly ever
    # drawn, a sum over all steps is too weak an attack to show that.)
    assert rate < 0.05 or (tpr - np.exp(epsilon / 2) * fpr).max() > 1e-5
    renyi = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma))
    renyi.compose(dp_accounting.SelfComposedDpEvent(step, steps))
    assert epsilon <= renyi.get_epsilon(1e-5)


@pytest.mark.parametrize("sigma, steps", [(1.0, 1), (10.0, 30)])
def test_the_trade_off_curve_is_the_dual_of_all_epsilons_and_deltas(sigma, steps):
    fpr = np.array([0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0])
    epsilons = np.linspace(-15, 15, 30_001)
    # Negative epsilons too: e^eps FPR + delta is a tangent of the curve at each of them.
    dual = np.min(np.exp(epsilons) * fpr[:, None] + gaussian_delta(epsilons, sigma, steps), axis=1)
    np.testing.assert_allclose(privacy.trade_off(fpr, sigma, steps), dual, atol=1e-3)


def test_the_trade_off_curve_rises_from_nothing_to_one_and_more_steps_or_less_noise_lift_it():
    fpr = np.linspace(0, 1, 201)
    curve, epsilon = privacy.trade_off(fpr, 3.0, 60), privacy.accountant_epsilon(3.0, 60, 1e-5)
    assert (np.diff(curve) >= -1e-12).all() and (curve >= fpr - 1e-9).all() and curve[-1] == 1 and curve[0] < 1e-4
    assert (curve <= np.exp(epsilon) * fpr + 1e-5 + 1e-3).all()
    assert (privacy.trade_off(fpr, 3.0, 120) >= curve - 1e-9).all()
    assert (privacy.trade_off(fpr, 1.5, 60) >= curve - 1e-9).all()
    assert privacy.trade_off(0.1, 3.0, 60).shape == () and privacy.trade_off(fpr[None], 3.0, 60).ndim == 2


def test_more_noise_costs_less_more_steps_cost_more_and_a_noisy_mean_is_one_step_more():
    by_noise = [privacy.accountant_epsilon(s, 10, 1e-5) for s in (2.0, 4.0, 8.0)]
    by_steps = [privacy.accountant_epsilon(8.0, t, 1e-5) for t in (1, 10, 50)]
    assert by_noise == sorted(by_noise, reverse=True) and by_steps == sorted(by_steps)
    assert privacy.accountant_epsilon(5.0, 40, 1e-5, 1.0) == privacy.accountant_epsilon(5.0, 40, 1e-5)
    centered, longer = Privacy(3.0, noisy_mean=True).mechanism(100, 5), Privacy(3.0).mechanism(100, 6)
    assert centered.noise_multiplier == longer.noise_multiplier == centered.mean_noise
    assert centered.releases == longer.releases == 6
    assert (Privacy(1.0).mechanism(384, 10, 32).steps, Privacy(1.0).mechanism(385, 10, 32).steps) == (120, 130)


@pytest.mark.parametrize(
    "sigma, steps, rate", [(0.0, 3, 1.0), (-1.0, 3, 1.0), (1.0, 0, 1.0), (1.0, 3, 0.0), (1.0, 3, np.nan)]
)
def test_no_noise_no_steps_and_a_rate_that_is_no_chance_are_errors(sigma, steps, rate):
    with pytest.raises(ValueError, match="the first two must be above 0, the rate"):
        privacy.accountant_epsilon(sigma, steps, 1e-5, rate)


def test_the_statement_says_what_is_promised_and_what_is_not():
    plan = Privacy(3.0).mechanism(384, 5)
    words = privacy.statement(Privacy(3.0), plan, panel="pam50")
    spent = privacy.accountant_epsilon(plan.noise_multiplier, 5, 1e-5)
    for part in [
        f"({spent:.2f}, 1e-05)", f"noise multiplier {plan.noise_multiplier:.3f}", "add-or-remove neighbors",
        "5 gradient steps (full batches", "clip norm 1", "nominally 384 members", "Not covered",
        "choice of hyperparameters", "genes by variance", "labels that were called", "class list",
        "nominal number of members", "floating-point", "random number generator", "seed", "Not for release",
        "the published pam50 panel",
    ]:  # fmt: skip
        assert part in words
    assert "all genes" in privacy.statement(Privacy(3.0), plan)
    sampled = Privacy(3.0, noisy_mean=False).mechanism(384, 5, 32)
    assert "Poisson batches, sampling rate 0.08333" in privacy.statement(Privacy(3.0), sampled)


# --- calibration to attacks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tpr, fpr", [(0.03, 0.01), (0.2, 0.1), (0.5, 0.001)])
def test_a_tolerance_is_kept_by_the_least_noise(tpr, fpr):
    plan = privacy.calibrate(tpr, fpr).mechanism(384, 60)
    assert tpr * 0.98 < privacy.trade_off(fpr, plan.noise_multiplier, 60) <= tpr * (1 + 1e-9)


@pytest.mark.parametrize(("tpr", "sigma"), [(0.02, 28.417), (0.03, 17.385), (0.05, 11.366), (0.1, 7.414)])
def test_a_tolerance_takes_the_noise_that_riskcal_finds(tpr, sigma):
    """60 full batches at 1 % false accusations; by riskcal 1.5.1 (Kulynych et al.), on a grid of 0.001."""
    assert abs(privacy.calibrate(tpr, 0.01).mechanism(384, 60).noise_multiplier / sigma - 1) < 1e-3


def test_a_tolerance_below_guessing_is_refused():
    with pytest.raises(ValueError, match="tpr=0.01, fpr=0.03: give 0 < fpr < tpr < 1"):
        privacy.calibrate(0.01, 0.03)
