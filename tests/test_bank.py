import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax

from genlib import bank, engine, membership, models
from genlib.recipes import Privacy, Recipe

N, D = 40, 12
SOFTMAX = Recipe("softmax", epochs=3, batch_size=8, learning_rate=0.1)
MLP = Recipe("mlp", hidden=(6,), epochs=3, batch_size=8, learning_rate=0.1, momentum=0.9, l2=0.01, dropout=0.2)
PRIVATE = Recipe("softmax", epochs=3, batch_size=None, learning_rate=0.5, privacy=Privacy(1.0))
WATCHED = Recipe("softmax", epochs=30, batch_size=4, learning_rate=0.5, patience=2)


@dataclasses.dataclass
class Data:
    features: np.ndarray
    labels: np.ndarray
    members: np.ndarray

    def train(self, recipe=SOFTMAX, seed=0, **options):
        return bank.train(self.features, self.labels, self.members, recipe, seed, progress=False, **options)


@pytest.fixture
def data():
    labels = np.arange(N) % 3
    features = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32) + np.eye(3, D)[labels]
    return Data(features.astype(np.float32), labels, membership.paired_halves(labels, n_models=4, seed=0))


@pytest.fixture
def reserved(data):
    reserved = membership.reserve(data.labels, 0.3, seed=0)
    data.members = membership.paired_halves(data.labels, 2, seed=0, reserved=reserved)
    return reserved


# --- seeds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe, n", [(MLP, None), (PRIVATE, 20)])
def test_one_seed_gives_one_bank_and_another_gives_another(data, recipe, n):
    data.members = data.members[:1]
    first, same, other = (data.train(recipe, seed=s, n=n) for s in (3, 3, 4))
    np.testing.assert_array_equal(first, same)
    assert all(not np.allclose(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("recipe, n", [(MLP, None), (PRIVATE, 20)])
def test_a_model_does_not_depend_on_how_many_others_there_are(data, recipe, n):
    four = data.train(recipe, n=n)
    data.members = data.members[:2]
    np.testing.assert_array_equal(data.train(recipe, n=n), four[:2])


def test_models_with_the_same_members_differ_by_their_place(data):
    data.members = data.members[[0, 0]]
    first, second = data.train()
    assert not np.allclose(first, second)


# --- training by hand -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, epochs, batch_size", [(1, 1, 3), (7, 3, 3), (20, 5, None), (385, 2, 32)])
def test_every_member_is_seen_once_an_epoch(n, epochs, batch_size):
    rows, sizes = engine.draw_batches(n, epochs, batch_size, seed=[0, 1])
    per_epoch = len(sizes) // epochs
    for epoch in range(epochs):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        assert sorted(np.concatenate([rows[s, : sizes[s]] for s in steps])) == list(range(n))


def test_epochs_have_orders_of_their_own():
    rows, _ = engine.draw_batches(30, 4, None, seed=[0, 1])
    assert len({tuple(order) for order in rows}) == 4


def test_keras_sees_the_batches_as_drawn():
    rows, sizes = engine.draw_batches(7, 2, 3, seed=[0])
    x = np.arange(7, dtype=np.float32)[:, None]
    batches = [(b.numpy().ravel(), y.numpy()) for b, y in bank._batches(x, np.arange(7), rows, sizes)]
    for (seen, labels), row, size in zip(batches, rows, sizes, strict=True):
        np.testing.assert_array_equal(seen, row[:size])
        np.testing.assert_array_equal(labels, row[:size])


def start_of(recipe, seed, m):
    return engine.draw_start(engine.structure_of(models.build(recipe, D, 3, 0)), [seed, m])


def sgd_by_hand(x, y, recipe, kernel, bias, batches):
    """Softmax regression in float64: mean loss of a batch plus l2 times the squared kernel, heavy-ball momentum."""
    x, kernel, bias = (np.asarray(a, np.float64).copy() for a in (x, kernel, bias))
    moved = [np.zeros_like(kernel), np.zeros_like(bias)]
    for row, size in zip(*batches, strict=True):
        rows = row[:size]
        error = (softmax(x[rows] @ kernel + bias, axis=1) - np.eye(3)[y[rows]]) / len(rows)
        slopes = [x[rows].T @ error + 2 * recipe.l2 * kernel, error.sum(axis=0)]
        moved = [recipe.momentum * m - recipe.learning_rate * s for m, s in zip(moved, slopes, strict=True)]
        kernel, bias = kernel + moved[0], bias + moved[1]
    return kernel, bias


@pytest.mark.parametrize("batch_size", [7, 20, None])
@pytest.mark.parametrize("l2, momentum", [(0.0, 0.0), (0.1, 0.0), (0.0, 0.9), (0.05, 0.9)])
def test_the_bank_does_what_stochastic_gradient_descent_by_hand_does(data, batch_size, l2, momentum):
    recipe = Recipe("softmax", epochs=6, batch_size=batch_size, learning_rate=0.2, l2=l2, momentum=momentum)
    data.members = data.members[:2]
    logits = data.train(recipe, seed=11)
    for m, rows in enumerate(data.members):
        batches = engine.draw_batches(rows.sum(), recipe.epochs, recipe.batch_size, [11, m, 6])
        start = start_of(recipe, 11, m)
        kernel, bias = sgd_by_hand(data.features[rows], data.labels[rows], recipe, *start, batches)
        np.testing.assert_allclose(logits[m], data.features @ kernel + bias, atol=1e-4)


def test_adam_takes_its_well_known_first_step(data):
    recipe = Recipe("softmax", epochs=1, batch_size=None, optimizer="adam", learning_rate=0.01)
    data.members = data.members[:1]
    _, kept = data.train(recipe, keep=[0])
    step = kept[0][0] - start_of(recipe, 0, 0)[0]
    np.testing.assert_allclose(np.abs(step), 0.01, rtol=1e-2)


# --- who matters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe, n", [(MLP, None), (PRIVATE, 20)])
def test_non_members_change_no_weights(data, recipe, n):
    data.members = data.members[:1]
    outside = np.flatnonzero(~data.members[0])
    _, before = data.train(recipe, n=n, keep=[0])
    data.features[outside] = data.features[np.roll(outside, 1)] * 3
    data.labels = data.labels.copy()
    data.labels[outside] = data.labels[np.roll(outside, 5)]
    _, after = data.train(recipe, n=n, keep=[0])
    for a, b in zip(before[0], after[0], strict=True):
        np.testing.assert_array_equal(a, b)


def test_permuted_non_members_get_the_permuted_logits(data):
    data.members = data.members[:1]
    order = np.arange(N)
    outside = np.flatnonzero(~data.members[0])
    order[outside] = np.random.default_rng(1).permutation(outside)
    before = data.train()
    data.features, data.labels = data.features[order], data.labels[order]
    np.testing.assert_allclose(data.train(), before[:, order], atol=1e-6)


def test_a_member_changes_the_weights(data):
    data.members = data.members[:1]
    _, before = data.train(keep=[0])
    data.features[np.flatnonzero(data.members[0])[0]] += 1
    _, after = data.train(keep=[0])
    assert not np.allclose(before[0][0], after[0][0])


# --- early stopping -------------------------------------------------------------------------------------------------


def loss(logits, labels):
    return float(np.mean(tf.keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)))


def by_epoch(data, recipe, rows):
    """Loss of some patients after each epoch, from runs without early stopping; their prefixes are the same run."""
    runs = [dataclasses.replace(recipe, epochs=e, patience=0) for e in range(1, recipe.epochs + 1)]
    return [loss(data.train(run)[0][rows], data.labels[rows]) for run in runs]


@pytest.fixture
def overfit(data):
    """Labels without a pattern: the loss on reserved patients soon rises."""
    data.labels = np.random.default_rng(3).permutation(data.labels)
    reserved = membership.reserve(data.labels, 0.3, seed=0)
    data.members = membership.paired_halves(data.labels, 2, seed=0, reserved=reserved)[:1]
    return reserved


def test_training_stops_and_keeps_the_best_weights(data, overfit):
    recipe = dataclasses.replace(WATCHED, epochs=8)
    losses = by_epoch(data, recipe, overfit)
    stop = next((e for e in range(3, 9) if min(losses[e - 2 : e]) > min(losses[: e - 2])), 8)
    logits = data.train(recipe, reserved=overfit)[0]
    assert loss(logits[overfit], data.labels[overfit]) == pytest.approx(min(losses[:stop]), abs=1e-5)


def test_the_best_weights_are_kept_also_where_the_epochs_run_out_first(data, overfit):
    recipe = dataclasses.replace(WATCHED, epochs=6, patience=6)
    losses = by_epoch(data, recipe, overfit)
    assert min(losses) < losses[-1]
    logits = data.train(recipe, reserved=overfit)[0]
    assert loss(logits[overfit], data.labels[overfit]) == pytest.approx(min(losses), abs=1e-5)


def test_early_stopping_watches_the_reserved_patients_and_nobody_else(data, overfit):
    _, before = data.train(WATCHED, reserved=overfit, keep=[0])
    outside = ~overfit & ~data.members[0]
    changed = data.features.copy()
    data.features = changed.copy()
    data.features[outside] *= -5
    _, others = data.train(WATCHED, reserved=overfit, keep=[0])
    np.testing.assert_array_equal(others[0][0], before[0][0])
    # The member's own class for each reserved patient: the watched loss now falls for long.
    data.features = changed
    mine = {k: changed[np.flatnonzero(data.members[0] & (data.labels == k))[0]] for k in range(3)}
    data.features[overfit] = [mine[k] for k in data.labels[overfit]]
    _, watched = data.train(WATCHED, reserved=overfit, keep=[0])
    assert not np.allclose(watched[0][0], before[0][0])


def test_reserved_patients_change_nothing_without_early_stopping(data, reserved):
    before = data.train(reserved=reserved)
    np.testing.assert_array_equal(data.train(), before)


# --- cache ----------------------------------------------------------------------------------------------------------


def refuse(*arguments):
    if arguments[-1]:
        raise AssertionError("trained again")
    return iter(())


@pytest.fixture
def cached(data, tmp_path, monkeypatch):
    """A bank in its cache, and training that raises from now on."""
    data.members = data.members[:2]
    logits = data.train(cache=tmp_path)
    monkeypatch.setattr(bank, "_trainer", refuse)
    return logits


def test_a_finished_bank_is_not_trained_again(data, cached, tmp_path):
    np.testing.assert_array_equal(data.train(cache=tmp_path), cached)


@pytest.mark.parametrize("what", ["recipe", "seed", "features", "labels", "members", "n"])
def test_a_changed_input_is_trained_again(data, cached, tmp_path, what):
    options = {"recipe": SOFTMAX, "seed": 0}
    if what == "recipe":
        options["recipe"] = dataclasses.replace(SOFTMAX, l2=0.1)
    elif what == "seed":
        options["seed"] = 1
    elif what == "n":
        options["n"] = 20
    else:
        changed = getattr(data, what).copy()
        changed.flat[0] = changed.flat[1] if what != "members" else ~changed.flat[0]
        setattr(data, what, changed)
    with pytest.raises(AssertionError, match="trained again"):
        data.train(**options, cache=tmp_path)


def test_other_reserved_patients_are_another_bank_when_they_are_watched(data, reserved, tmp_path, monkeypatch):
    recipe = dataclasses.replace(WATCHED, epochs=2)
    data.train(recipe, reserved=reserved, cache=tmp_path)
    monkeypatch.setattr(bank, "_trainer", refuse)
    data.train(recipe, reserved=reserved, cache=tmp_path)
    fewer = reserved.copy()
    fewer[np.flatnonzero(reserved)[0]] = False
    with pytest.raises(AssertionError, match="trained again"):
        data.train(recipe, reserved=fewer, cache=tmp_path)


@pytest.mark.parametrize("damage", ["cut short", "garbage", "empty"])
def test_a_damaged_file_is_computed_again_with_a_warning(data, tmp_path, damage):
    data.members = data.members[:2]
    logits = data.train(cache=tmp_path)
    path = sorted(tmp_path.glob("*.npz"))[0]
    whole = path.read_bytes()
    path.write_bytes({"cut short": whole[: len(whole) // 2], "garbage": b"garbage" * 99, "empty": b""}[damage])
    with pytest.warns(UserWarning, match="damaged"):
        np.testing.assert_array_equal(data.train(cache=tmp_path), logits)
    assert path.read_bytes() != b"" and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("recipe, n", [(SOFTMAX, None), pytest.param(PRIVATE, 20, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_where_it_was(data, tmp_path, monkeypatch, recipe, n):
    whole, trainer, trained = data.train(recipe, n=n), bank._trainer, []

    def killed(*arguments):
        for m, answer in trainer(*arguments):
            if m == 2:
                raise KeyboardInterrupt
            yield m, answer

    def counted(*arguments):
        trained.extend(arguments[-1])
        return trainer(*arguments)

    monkeypatch.setattr(bank, "_trainer", killed)
    with pytest.raises(KeyboardInterrupt):
        data.train(recipe, n=n, cache=tmp_path)
    monkeypatch.setattr(bank, "_trainer", counted)
    np.testing.assert_array_equal(data.train(recipe, n=n, cache=tmp_path), whole)
    assert trained == [2, 3]


# --- weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe, n", [(MLP, None), (PRIVATE, 20)])
def test_kept_weights_give_the_same_logits(data, recipe, n):
    data.members = data.members[:3]
    logits, kept = data.train(recipe, n=n, keep=[0, 2])
    assert sorted(kept) == [0, 2]
    for m, weights in kept.items():
        model = bank.rebuild(weights, dataclasses.replace(recipe, privacy=None), D, 3)
        assert type(model) is tf.keras.Model or type(model).__name__ == "Functional"
        np.testing.assert_allclose(models.predict(model, data.features), logits[m], atol=1e-6)


def test_a_private_model_of_a_bank_is_not_rebuilt_since_its_noise_follows_from_the_seed(data):
    with pytest.raises(ValueError, match="privacy.release"):
        bank.rebuild([], PRIVATE, D, 3)


def test_weights_come_from_the_cache_and_are_made_where_they_are_missing(data, tmp_path, monkeypatch):
    data.members = data.members[:2]
    logits = data.train(cache=tmp_path)
    _, kept = data.train(cache=tmp_path, keep=[1])
    monkeypatch.setattr(bank, "_trainer", refuse)
    again, cached = data.train(cache=tmp_path, keep=[1])
    np.testing.assert_array_equal(again, logits)
    for a, b in zip(kept[1], cached[1], strict=True):
        np.testing.assert_array_equal(a, b)


# --- errors ---------------------------------------------------------------------------------------------------------


def test_shapes_that_disagree_are_an_error(data):
    data.labels = data.labels[:-1]
    with pytest.raises(ValueError, match=r"shapes disagree: features \(40, 12\), labels \(39,\), members \(4, 40\)"):
        data.train()


@pytest.mark.parametrize("shape", [(N,), (4, N - 1)])
def test_members_of_another_shape_are_an_error(data, shape):
    data.members = np.ones(shape, bool)
    with pytest.raises(ValueError, match="shapes disagree"):
        data.train()


def test_members_must_be_true_or_false(data):
    data.members = data.members.astype(int)
    with pytest.raises(ValueError, match="members must be bool"):
        data.train()


def test_a_model_without_members_is_an_error(data):
    data.members[1] = False
    with pytest.raises(ValueError, match="every model needs at least one member"):
        data.train()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_missing_and_infinite_features_are_an_error(data, value):
    data.features[3, 4] = value
    with pytest.raises(ValueError, match="missing or infinite"):
        data.train()


def test_a_reserved_patient_who_is_a_member_is_an_error(data):
    reserved = np.zeros(N, bool)
    reserved[:3] = True
    with pytest.raises(ValueError, match="3 reserved patients are members"):
        data.train(reserved=reserved)


def test_early_stopping_without_reserved_patients_is_an_error(data):
    with pytest.raises(ValueError, match="patience=2 needs reserved patients"):
        data.train(WATCHED)


def test_a_private_recipe_without_a_nominal_number_is_an_error(data):
    with pytest.raises(ValueError, match="needs n, the nominal number of members"):
        data.train(PRIVATE)


def test_training_that_diverges_is_an_error(data):
    data.features *= 1e20
    with pytest.raises(ValueError, match="training diverged: model 0"):
        data.train(dataclasses.replace(SOFTMAX, learning_rate=1e20))


def test_weights_of_a_model_that_is_not_there_are_an_error(data):
    with pytest.raises(ValueError, match="7"):
        data.train(keep=[7])


def test_more_rows_than_genes_are_said_and_trained_on_genes(capsys, monkeypatch):
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(60, 20)).astype(np.float32), np.arange(60) % 2
    members = membership.paired_halves(labels, 4, 0)
    recipe = Recipe("mlp", hidden=(8,), epochs=5, batch_size=8, learning_rate=0.05)
    bank.train(features, labels, members, recipe, 0)
    assert capsys.readouterr().out == ""  # nobody expects it of a panel
    monkeypatch.setattr(bank, "LARGE", 20)
    on_genes = bank.train(features, labels, members, recipe, 0, progress=False)
    assert "60 rows and 20 genes: row space does not pay, so the bank trains on genes" in capsys.readouterr().out
    np.testing.assert_allclose(
        on_genes, bank.train(features, labels, members, recipe, 0, engine="keras", progress=False), atol=2e-4
    )
