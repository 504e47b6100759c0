"""Many models at once: each trains on its own members and says what it thinks of every patient.

A bank is all that attacks and metrics ever see: ``logits[m, i, :]`` and ``members[m, i]``.
"""

import gc
import pathlib

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from genlib import models, privacy, results

# What a model's logits depend on beside their inputs; a change of this code makes the cache start afresh.
CODE = ("bank", "models", "privacy", "recipes")


def batch_orders(n, epochs, seed):
    """Draw the order in which the members are seen, one for every epoch.

    Parameters
    ----------
    n : int
        Number of members.
    epochs : int
    seed : sequence of int

    Returns
    -------
    numpy.ndarray
        (epochs, n) int64; a batch is a run of a row, the last one of a row may be shorter.

    Examples
    --------
    >>> batch_orders(4, epochs=2, seed=[0, 1]).shape
    (2, 4)
    """
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(n) for _ in range(epochs)])


def _batches(x, y, orders, batch_size):
    # Gathered inside TensorFlow: a Python generator of batches takes twice the time of the training itself.
    x, y = tf.constant(x), tf.constant(y)
    epochs = tf.data.Dataset.from_tensor_slices(orders)
    steps = epochs.flat_map(lambda order: tf.data.Dataset.from_tensor_slices(order).batch(batch_size))
    return steps.map(lambda rows: (tf.gather(x, rows), tf.gather(y, rows)))


def train(features, labels, members, recipe, seed, *, n=None, reserved=None, keep=(), cache=None, progress=True):
    """Train one model for each row of `members` and return what every model says of every patient.

    Models are finished one after the other; with `cache`, what a killed run had finished is not trained again.

    Parameters
    ----------
    features : numpy.ndarray
        (n, d) float32, all patients.
    labels : numpy.ndarray
        (n,) int, classes from 0 to k - 1.
    members : numpy.ndarray
        (M, n) bool; row m says who trains model m.
    recipe : genlib.recipes.Recipe
    seed : int
        Model m draws its start and batches from (seed, m).
    n : int, optional
        Nominal number of members, for private recipes: batches, noise and rate follow it, not the members drawn.
    reserved : numpy.ndarray, optional
        (n,) bool, patients that are in no model; early stopping watches their loss.
    keep : sequence of int
        Models whose weights to return too.
    cache : path-like, optional
        Folder for finished models.
    progress : bool
        Show a progress bar with the time left.

    Returns
    -------
    logits : numpy.ndarray
        (M, n, k) float32.
    kept : dict of int to list of numpy.ndarray
        Weights of the models in `keep`, in Keras' order; only returned when `keep` is given.

    Raises
    ------
    ValueError
        When shapes disagree, a model has no members of some class at all to learn from, a reserved patient is a member,
        or the recipe asks for what cannot be done; names the value and the way out.

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
    _check(features, labels, members, recipe, n, reserved)
    common = results.digest(features, labels, recipe.digest(), n, results.code_digest(*CODE), tf.__version__)
    held_out = None if reserved is None or not recipe.patience else np.asarray(reserved)
    everyone = []
    kept = {}
    names = f"training {len(members)} x {recipe.architecture}"
    for m in tqdm(range(len(members)), desc=names, unit="model", disable=not progress):
        key = results.digest(common, members[m], [seed, m], held_out if held_out is not None else "none")
        path = None if cache is None else pathlib.Path(cache) / f"{key[:32]}.npz"
        stored = results.load_arrays(path) if path else None
        if stored is None or (m in keep and "weights_0" not in stored):
            stored = _train_one(features, labels, members[m], recipe, (seed, m), n, held_out, m in keep)
            if path:
                results.save_arrays(path, **stored)
        everyone.append(stored["logits"])
        if m in keep:
            kept[m] = [stored[f"weights_{i}"] for i in range(len(stored) - 1)]
    logits = np.stack(everyone)
    return (logits, kept) if len(keep) else logits


def _check(features, labels, members, recipe, n, reserved):
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
    if recipe.patience and reserved is None:
        raise ValueError(f"patience={recipe.patience} needs reserved patients to watch; see membership.reserve")
    if recipe.privacy and n is None:
        raise ValueError("a private recipe needs n, the nominal number of members, since the drawn number is secret")


def _train_one(features, labels, rows, recipe, seed, n, reserved, with_weights):
    tf.keras.backend.clear_session()
    gc.collect()  # Keras keeps graphs of finished models alive until their cycles are collected
    # A number for Keras from (seed, m); it also fixes the noise of a study run.
    number = int(np.random.SeedSequence([*seed, 5]).generate_state(1)[0]) >> 1
    tf.keras.utils.set_random_seed(number)
    n_classes = int(labels.max()) + 1
    x, y = features[rows], labels[rows]
    if recipe.privacy:
        model = privacy.dp_model(recipe, features.shape[1], n_classes, n, number)
        model.fit(x, y, epochs=recipe.epochs, verbose=0)
    else:
        model = models.build(recipe, features.shape[1], n_classes, number)
        model.compile(_optimizer(recipe), tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        batch_size = recipe.batch_size or len(x)
        batches = _batches(x, y, batch_orders(len(x), recipe.epochs, [*seed, 6]), batch_size)
        watched = None if reserved is None else (features[reserved], labels[reserved])
        steps = -(-len(x) // batch_size)
        model.fit(
            batches,
            steps_per_epoch=steps,
            epochs=recipe.epochs,
            verbose=0,
            validation_data=watched,
            callbacks=_stop(recipe),
        )
    logits = models.predict(model, features)
    if not np.isfinite(logits).all():
        raise ValueError(f"training diverged: model {seed[1]} gives infinite logits; lower the learning rate")
    weights = model.get_weights() if with_weights else []
    return {"logits": logits, **{f"weights_{i}": w for i, w in enumerate(weights)}}


def _optimizer(recipe):
    if recipe.optimizer == "adam":
        return tf.keras.optimizers.Adam(recipe.learning_rate)
    return tf.keras.optimizers.SGD(recipe.learning_rate, recipe.momentum)


def _stop(recipe):
    if not recipe.patience:
        return []
    return [tf.keras.callbacks.EarlyStopping(patience=recipe.patience, restore_best_weights=True)]


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

    Examples
    --------
    >>> from genlib.recipes import Recipe
    >>> weights = [np.ones((4, 2), np.float32), np.zeros(2, np.float32)]
    >>> models.predict(rebuild(weights, Recipe("softmax"), 4, 2), np.ones((1, 4), np.float32))
    array([[4., 4.]], dtype=float32)
    """
    model = models.build(recipe, n_features, n_classes, seed=0)
    model.set_weights(weights)
    return model
