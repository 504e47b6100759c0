"""Many models at once: each trains on its own members and says what it thinks of every patient.

A bank is all that attacks and metrics ever see: ``logits[m, i, :]`` and ``members[m, i]``.
"""

import concurrent.futures
import dataclasses
import functools
import gc
import os
import pathlib

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from genlib import autodiff, dpsgd, guarded, models, privacy, results
from genlib import engine as fast
from genlib.recipes import Recipe

# What a model's logits depend on beside their inputs; a change of this code makes the cache start afresh.
CODE = ("autodiff", "bank", "dpsgd", "engine", "guarded", "models", "privacy", "recipes")


def _batches(x, y, rows, sizes):
    # Gathered inside TensorFlow: a Python generator of batches takes twice the time of the training itself.
    x, y = tf.constant(x), tf.constant(y)
    steps = tf.data.Dataset.from_tensor_slices((rows, sizes))
    return steps.map(lambda row, size: (tf.gather(x, row[:size]), tf.gather(y, row[:size])))


LARGE = 1000  # genes from which on a reader would expect row space; nobody does of a panel
ENGINES = ("auto", "row-space", "genes", "keras")


def choose_engine(recipe, n_rows, n_features):
    """Name the engine that ``engine="auto"`` takes: the fastest one that is exact for this recipe.

    ``"row-space"``: compiled, on inner products of patients; pays where there are fewer rows than features, also with
    thousands of patients, since the inner products are computed once for all models.
    ``"genes"``: compiled, on the features themselves; the only exact one for Adam, sparsity and convolutions.
    ``"keras"``: one Keras ``fit`` a model, for early stopping; with privacy it is TF-Privacy's DP-SGD, which is never
    chosen by itself.

    Parameters
    ----------
    recipe : genlib.recipes.Recipe
    n_rows : int
        Patients and query rows.
    n_features : int

    Returns
    -------
    str

    Examples
    --------
    >>> from genlib.recipes import Recipe
    >>> choose_engine(Recipe(), 769, 4388), choose_engine(Recipe(), 769, 50)
    ('row-space', 'genes')
    >>> choose_engine(Recipe(optimizer="adam"), 769, 4388)
    'genes'
    """
    if recipe.patience:
        return "keras"
    return "row-space" if n_rows < n_features and autodiff.holds_in_row_space(recipe) else "genes"


def train(
    features,
    labels,
    members,
    recipe,
    seed,
    *,
    queries=None,
    n=None,
    reserved=None,
    targets=None,
    start=None,
    center=None,
    keep=(),
    cache=None,
    engine="auto",
    fault=None,
    progress=True,
):
    """Train one model for each row of `members` and return what every model says of every patient.

    With `cache`, every finished model is kept, and what a killed run had finished is not trained again.

    Parameters
    ----------
    features : numpy.ndarray
        (n, d) float32, all patients.
    labels : numpy.ndarray
        (n,) int, classes from 0 to k - 1.
    members : numpy.ndarray
        (M, n) bool; row m says who trains model m.
    recipe : genlib.recipes.Recipe or sequence of them
        One for all models, or one a model; those of one bank may differ in learning rate, momentum, L2, dropout,
        label smoothing, mixup and relax, and private ones in their privacy, batch size, epochs and averaging too.
    seed : int
        Model m draws its start, batches and dropout from (seed, m).
    queries : numpy.ndarray, optional
        (q, d) float32, further rows whose logits are wanted, as second samples of the patients.
    n : int, optional
        Nominal number of members, for private recipes: sampling, noise and rate follow it, not the members drawn.
    reserved : numpy.ndarray, optional
        (n,) bool, patients that are in no model; early stopping watches their loss.
    targets : numpy.ndarray, optional
        (M, n, k) soft targets to learn from instead of the labels, as for distillation; rows add up to 1.
    start : list of numpy.ndarray, optional
        Public weights that all models start from, in Keras' order and on all features; by default each draws its own.
    center : genlib.dpsgd.Center, optional
        How private recipes with a noisy mean center their features.
    keep : sequence of int
        Models whose weights to return too.
    cache : path-like, optional
        Folder for finished models.
    engine : {"auto", "row-space", "genes", "keras"}
        See `choose_engine`. An engine that is not exact for the recipe is refused.
    fault : str, optional
        Name in `genlib.dpsgd.FAULTS`: break private training on purpose, to show that an audit notices.
    progress : bool
        Show a progress bar with the time left.

    Returns
    -------
    logits : numpy.ndarray
        (M, n + q, k) float32.
    kept : dict of int to list of numpy.ndarray
        Weights of the models in `keep`, in Keras' order; only returned when `keep` is given.

    Raises
    ------
    ValueError
        When shapes disagree, a reserved patient is a member, the recipe asks for what cannot be done or an engine does
        not hold for it, or training diverges; names the value and the way out.

    Examples
    --------
    >>> from genlib import membership
    >>> from genlib.recipes import Recipe
    >>> labels = np.arange(40) % 2
    >>> features = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    >>> members = membership.paired_halves(labels, n_models=2, seed=0)
    >>> train(features, labels, members, Recipe("softmax", epochs=2), seed=0, progress=False).shape
    (2, 40, 2)
    """
    features = np.ascontiguousarray(features, np.float32)
    labels, members = np.asarray(labels), np.asarray(members)
    rows = features if queries is None else np.vstack([features, np.asarray(queries, np.float32)])
    recipes = [recipe] * len(members) if isinstance(recipe, Recipe) else list(recipe)
    _check(features, labels, members, recipes, n, reserved)
    _check_fault(fault, recipes)
    _check_targets(targets, recipes, members, engine)
    _check_center(recipes[0], center, start, rows.shape[1])
    if center is not None and engine == "row-space":
        raise ValueError("engine='row-space' with a center: what is subtracted lies outside of the members' span")
    if center is not None and engine == "auto":
        engine = "genes"  # what is subtracted lies outside of the members' span
    unknown = sorted(set(keep) - set(range(len(members))))
    if unknown:
        raise ValueError(f"keep={unknown}: the models are numbered from 0 to {len(members) - 1}")
    engine = _checked_engine(engine, recipes, rows)
    if engine == "genes" and len(rows) >= rows.shape[1] >= LARGE and autodiff.holds_in_row_space(recipes[0]):
        print(
            f"{len(rows)} rows and {rows.shape[1]} genes: row space does not pay, so the bank trains on genes",
            flush=True,
        )
    needed = recipes[0].patience or any(one.adversary for one in recipes)
    held_out = np.asarray(reserved) if needed else None
    moved = [center.lean, center.share, center.radius] if center else []
    common = [rows, labels, n, engine, fault, *(start or []), *moved]
    paths = _paths(cache, common, recipes, members, seed, held_out, targets)
    stored = {m: _stored(path, m in keep) for m, path in enumerate(paths)}
    missing = [m for m in stored if stored[m] is None]
    trainer = functools.partial(
        _trainer, engine, rows, labels, members, recipes, seed, n, held_out, targets, start, center, fault, keep
    )
    kind = "private " if recipes[0].privacy else ""
    bar = f"training {len(missing)} x {kind}{recipes[0].architecture} ({engine})"
    for m, answer in tqdm(
        trainer(missing), desc=bar, unit="model", total=len(missing), disable=not progress or not missing
    ):
        if not np.isfinite(answer["logits"]).all():
            raise ValueError(f"training diverged: model {m} gives infinite logits; lower the learning rate")
        if paths[m]:
            results.save_arrays(paths[m], **answer)
        stored[m] = answer
    logits = np.stack([stored[m]["logits"] for m in range(len(members))])
    kept = {m: [stored[m][f"weights_{i}"] for i in range(len(stored[m]) - 1)] for m in keep}
    return (logits, kept) if len(keep) else logits


def _paths(cache, common, recipes, members, seed, held_out, targets):
    """Where each finished model is kept: a name made of all that it depends on."""
    if cache is None:
        return [None] * len(members)
    common = results.digest(*common, results.code_digest(*CODE), tf.__version__)
    watched = "none" if held_out is None else held_out
    taught = ["labels"] * len(members) if targets is None else targets
    keys = [
        results.digest(common, recipes[m].digest(), members[m], [seed, m], watched, taught[m])
        for m in range(len(members))
    ]
    return [pathlib.Path(cache) / f"{key[:32]}.npz" for key in keys]


def _stored(path, with_weights):
    stored = results.load_arrays(path) if path else None
    return None if stored and with_weights and "weights_0" not in stored else stored


FREE = (
    "momentum",
    "l2",
    "dropout",
    "label_smoothing",
    "confidence_penalty",
    "mixup",
    "relax",
    "l1",
    "group",
    "adversary",
)


def _check(features, labels, members, recipes, n, reserved):
    if features.ndim != 2 or labels.shape != features.shape[:1] or members.shape[1:] != labels.shape:
        raise ValueError(
            f"shapes disagree: features {features.shape}, labels {labels.shape}, members {members.shape}; they must be "
            "(n, d), (n,) and (M, n)"
        )
    if members.dtype != bool or not members.any(axis=1).all():
        raise ValueError("members must be bool, and every model needs at least one member")
    if not np.isfinite(features).all():
        raise ValueError("features hold missing or infinite values; see cohorts.load, which refuses them")
    if reserved is not None and (members & reserved).any():
        raise ValueError(f"{int((members & reserved).any(axis=0).sum())} reserved patients are members of a model")
    for name in ("patience", "adversary"):
        if any(getattr(one, name) for one in recipes) and (reserved is None or not reserved.any()):
            raise ValueError(f"{name}={getattr(recipes[0], name)} needs reserved patients; see membership.reserve")
    if recipes[0].privacy and n is None:
        raise ValueError("a private recipe needs n, the nominal number of members, since the drawn number is secret")
    if len(recipes) != len(members):
        raise ValueError(f"{len(recipes)} recipes for {len(members)} models; give one for all, or one for each")
    n_classes = int(labels.max()) + 1
    if recipes[0].class_weights and len(recipes[0].class_weights) != n_classes:
        raise ValueError(f"{len(recipes[0].class_weights)} class weights for {n_classes} classes; give one for each")
    free = dict.fromkeys(FREE, 0.0) | {"learning_rate": 1.0}
    if all(one.privacy for one in recipes):
        if len({one.privacy.noisy_mean for one in recipes}) > 1:
            raise ValueError("some recipes of this bank have a noisy mean and some have none; train them apart")
        free |= {"privacy": recipes[0].privacy, "batch_size": None, "epochs": 1, "average": 0.0}
    if len({dataclasses.replace(one, **free) for one in recipes}) > 1:
        raise ValueError(f"the recipes of one bank may differ in {', '.join(free)} only; train the others apart")


def _check_keras(recipes):
    unknown = ("mixup", "relax", "confidence_penalty", "l1", "group", "adversary", "clustering")
    asked = [name for name in unknown if any(getattr(one, name) for one in recipes)]
    if asked:
        raise ValueError(f"{', '.join(asked)}: for the study's own engines only; leave engine='keras' out")


def _check_fault(fault, recipes):
    if fault is None:
        return
    if fault not in dpsgd.FAULTS:
        raise ValueError(f"fault='{fault}' is not known; choose one of {', '.join(dpsgd.FAULTS)}")
    if recipes[0].privacy is None:
        raise ValueError(f"fault='{fault}' is planted in private training; this recipe has privacy=None")


def _check_targets(targets, recipes, members, engine):
    if targets is None:
        return
    recipe = recipes[0]
    if engine == "keras" or recipe.privacy or recipe.class_weights or recipe.patience:
        raise ValueError(
            "soft targets are for the study's own engines, without privacy, class weights and early stopping"
        )
    if targets.shape[:2] != members.shape or not np.allclose(targets.sum(axis=2), 1, atol=1e-4):
        raise ValueError(
            f"targets {targets.shape} for members {members.shape}: must be (M, n, k), and rows add up to 1"
        )


def _check_center(recipe, center, start, structure_rows):
    wanted = bool(recipe.privacy and recipe.privacy.noisy_mean)
    if wanted != (center is not None):
        raise ValueError("a recipe with noisy_mean needs a center, and a center such a recipe; see signatures.center")
    if start is not None and len(start[0]) != structure_rows:
        raise ValueError(f"the start's first kernel has {len(start[0])} rows for {structure_rows} features")


def _checked_engine(engine, recipes, rows):
    if engine not in ENGINES:
        raise ValueError(f"engine='{engine}' is not known; choose one of {', '.join(ENGINES)}")
    chosen = choose_engine(recipes[0], *rows.shape)
    if any(choose_engine(one, *rows.shape) != chosen for one in recipes):
        raise ValueError("some recipes of this bank train in row space and some on genes; train them apart")
    if engine == "auto":
        return chosen
    if chosen == "keras" != engine:
        raise ValueError(f"engine='{engine}' is exact for a fixed number of epochs only; use engine='keras'")
    if engine == "row-space" and not autodiff.holds_in_row_space(recipes[0]):
        raise ValueError("engine='row-space' is not exact for Adam, sparsity and convolutions; use engine='genes'")
    if engine == "row-space" and len(rows) >= rows.shape[1]:
        raise ValueError(
            f"engine='row-space' with {len(rows)} rows and {rows.shape[1]} features: there is no smaller space to "
            "train in; use engine='genes'"
        )
    return engine


def _number(seed, m):
    """One number for TensorFlow from (seed, m)."""
    return int(np.random.SeedSequence([seed, m, 5]).generate_state(1)[0]) >> 1


def _trainer(engine, rows, labels, members, recipes, seed, n, held_out, targets, start, center, fault, keep, missing):
    """Train the missing models, and give each as it is finished."""
    if engine == "keras" and (fault or start is not None):
        raise ValueError("a fault or a start of one's own is for the study's own engines; leave engine='keras' out")
    if engine == "keras":
        _check_keras(recipes)
    if engine == "keras":
        for m in missing:
            yield m, _train_keras(rows, labels, members[m], recipes[m], (seed, m), n, held_out, m in keep)
        return
    if not missing:
        return
    patients = fast.prepare(rows, engine == "row-space")
    n_classes = int(labels.max()) + 1
    # One structure for the bank: a model without dropout goes through a dropout layer that drops nothing.
    dropout = max(recipe.dropout for recipe in recipes)
    structure = fast.structure_for(dataclasses.replace(recipes[0], dropout=dropout), rows.shape[1], n_classes)
    most = int(members.sum(axis=1).max())
    padded = (most, recipes[0].epochs * -(-most // (recipes[0].batch_size or most)))
    first_rows = patients.coordinates.shape[1] if engine == "row-space" else None

    if first_rows and any(autodiff.is_needed(recipes[m]) for m in keep):
        raise ValueError("this recipe trains on patients' coordinates, which keeps no weights; use engine='genes'")
    mechanisms = {recipes[m]: _mechanism(recipes[m], n, fault) for m in missing if recipes[m].privacy}

    def private(m):
        # One stream a model: start, batches, masks and noise of model m depend on (seed, m) alone.
        rng = np.random.Generator(np.random.SFC64([seed, m, 14]))
        return dpsgd.train_one(
            patients, labels, members[m], recipes[m], mechanisms[recipes[m]], structure, rng, most, start, center
        )

    def plain(m):
        batches = fast.draw_batches(int(members[m].sum()), recipes[m].epochs, recipes[m].batch_size, [seed, m, 6])
        begun = fast.draw_start(structure, [seed, m], first_rows) if start is None else start
        number = _number(seed, m)
        taught = labels if targets is None else targets[m]
        if autodiff.is_needed(recipes[m]):
            inputs = patients.rows if first_rows is None else patients.coordinates
            return autodiff.train_one(
                inputs, taught, members[m], recipes[m], structure, batches, begun, number, padded, held_out
            )
        return fast.train_one(patients, taught, members[m], recipes[m], structure, batches, begun, number, padded)

    def one(m):
        logits, weights = private(m) if recipes[m].privacy else plain(m)
        kept = weights() if m in keep else []
        return m, {"logits": logits, **{f"weights_{i}": w for i, w in enumerate(kept)}}

    # The compiled function leaves Python's lock alone, so threads are enough to use every core.
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(one, missing)


def _mechanism(recipe, n, fault):
    planned = privacy.mechanism(recipe, n)
    return dpsgd.FAULTS[fault](planned) if fault else planned


def _train_keras(rows, labels, members, recipe, seed, n, reserved, with_weights):
    tf.keras.backend.clear_session()
    gc.collect()  # Keras keeps graphs of finished models alive until their cycles are collected
    number = _number(*seed)  # it also fixes the noise of a study run
    tf.keras.utils.set_random_seed(number)
    n_classes = int(labels.max()) + 1
    features = rows[: len(labels)]
    x, y = features[members], labels[members]
    if recipe.privacy:
        model = guarded.dp_model(recipe, rows.shape[1], n_classes, n, number)
        model.fit(x, y, epochs=recipe.epochs, verbose=0)
    else:
        model = models.build(recipe, rows.shape[1], n_classes, number)
        # The same start as the compiled engines draw on genes, so that the engines can be held to each other.
        begun = fast.draw_start(fast.structure_of(model), seed)
        model.set_weights([new.reshape(w.shape) for new, w in zip(begun, model.get_weights(), strict=True)])
        model.compile(_optimizer(recipe), models.loss(recipe, n_classes))
        rows_of, sizes = fast.draw_batches(len(x), recipe.epochs, recipe.batch_size, [*seed, 6])
        batches = _batches(x, y, rows_of, sizes)
        watched = None if reserved is None else (features[reserved], labels[reserved])
        model.fit(
            batches,
            steps_per_epoch=len(sizes) // recipe.epochs,
            epochs=recipe.epochs,
            verbose=0,
            validation_data=watched,
            callbacks=_stop(recipe),
            class_weight=dict(enumerate(recipe.class_weights)) if recipe.class_weights else None,
        )
    weights = model.get_weights() if with_weights else []
    return {"logits": models.predict(model, rows), **{f"weights_{i}": w for i, w in enumerate(weights)}}


def _optimizer(recipe):
    if recipe.optimizer == "adam":
        return tf.keras.optimizers.Adam(recipe.learning_rate)
    return tf.keras.optimizers.SGD(recipe.learning_rate, recipe.momentum)


class _KeepBest(tf.keras.callbacks.EarlyStopping):
    """Early stopping that goes back to the best weights also where the epochs run out first, which Keras' does not."""

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        if self.best_weights is not None:
            self.model.set_weights(self.best_weights)


def _stop(recipe):
    return [_KeepBest(patience=recipe.patience, restore_best_weights=True)] if recipe.patience else []


def rebuild(weights, recipe, n_features, n_classes):
    """Put kept weights back into a Keras model, as to save it for release.

    Parameters
    ----------
    weights : list of numpy.ndarray
        From `train` with `keep`.
    recipe : genlib.recipes.Recipe
    n_features, n_classes : int

    Returns
    -------
    tf.keras.Model
        A plain model, without anything of how it was trained.

    Raises
    ------
    ValueError
        When the recipe is private: see `genlib.privacy.release`.

    Examples
    --------
    >>> from genlib.recipes import Recipe
    >>> weights = [np.ones((4, 2), np.float32), np.zeros(2, np.float32)]
    >>> models.predict(rebuild(weights, Recipe("softmax"), 4, 2), np.ones((1, 4), np.float32))
    array([[4., 4.]], dtype=float32)
    """
    if recipe.privacy:
        raise ValueError(
            "the noise of a bank's private models follows from its recorded seed, so they are not for release; train "
            "one with privacy.release"
        )
    model = models.build(recipe, n_features, n_classes, seed=0)
    # The study's own engines hold a convolution's kernel as a matrix.
    model.set_weights([new.reshape(w.shape) for new, w in zip(weights, model.get_weights(), strict=True)])
    return model
