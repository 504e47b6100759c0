"""Many models at once: each trains on its own members and says what it thinks of every patient.

`train` takes an ordinary compiled Keras model and trains M of it. A bank is all that attacks and metrics ever see:
``logits[m, i, :]`` and ``members[m, i]``, and of the weights ``inside[m, i, :]`` and ``further``.

With fewer patients than genes, a first dense layer that SGD trains never leaves the span of its start and its members,
so it trains on inner products of patients, at a cost that does not depend on the genes. It is the same training in
other coordinates; the tests hold it to plain Keras.
"""

import concurrent.futures
import copy
import dataclasses
import functools
import json
import os
import pathlib
import sys
import threading

import numpy as np
import scipy.linalg
import scipy.stats
import tensorflow as tf
import threadpoolctl
from sklearn.cluster import KMeans
from tqdm import tqdm

from genlib import layers, membership, networks, results

K = tf.keras
try:
    # Models go side by side, a few a thread; one product spread over threads is slower, and not repeatable bit by bit.
    tf.config.threading.set_intra_op_parallelism_threads(1)
except RuntimeError:
    print("TensorFlow had been started before genlib.bank was imported: the bank is slower, and last bits may differ")

# What a model's logits depend on beside its inputs; a change of this code makes the cache start afresh.
CODE = ("bank", "layers", "networks", "defenses")
CHUNK = 8  # models of one call on a processor
MEMORY = 2**29  # bytes that the models of one call may take on a processor, 2**33 on a GPU
NOISE = 2**24  # numbers of noise that one call holds
PADDING_QUANTILE = 0.999999  # Poisson batches are padded to this quantile of their size
GRAPHS = (K.Sequential, K.Sequential.__bases__[0])  # plain graphs of layers
PLAIN_SETTINGS = ("clipnorm", "clipvalue", "global_clipnorm", "weight_decay", "use_ema")  # each looks at a whole kernel
# Strengths are variables of a compiled network, which serves them all.
STRENGTHS = {
    "Dropout": ["rate"], "L1": ["l1"], "L2": ["l2"], "Sparse": ["strength", "ramp"], "SGD": ["learning_rate"],
    "Adam": ["learning_rate"], "RowAdam": ["learning_rate"], "CategoricalCrossentropy": ["label_smoothing"],
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Clustering:
    """DeepType's second phase: rounds of K-means on the representation, each followed by steps that draw it together.

    Attributes
    ----------
    weight : float
        Of the squared distance to a patient's center, relative to the loss.
    n_clusters, rounds, epochs : int
        Clusters; rounds; epochs of each round.
    """

    weight: float
    n_clusters: int
    rounds: int
    epochs: int


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a bank of M models gives away of n patients (and q query rows behind them).

    Attributes
    ----------
    logits : numpy.ndarray
        (M, n + q, k) float32.
    inside : numpy.ndarray or None
        (M, n + q, h) products of the features with the first kernel, without bias; None where no dense layer is first.
    further : list of numpy.ndarray or None
        The weights behind `inside` in Keras' order, from the first bias on, each with a leading axis M.
    model : callable
        `model(m)`: model m as an ordinary Keras model on features, to look at, save or share; trained again for it.
    """

    logits: np.ndarray
    inside: np.ndarray | None
    further: list | None
    model: callable


@dataclasses.dataclass(frozen=True)
class _Job:
    """All that a bank's training depends on, checked."""

    model: K.Model
    x: np.ndarray
    labels: np.ndarray
    members: np.ndarray
    epochs: int
    batch_size: int | None
    seed: int | None
    targets: np.ndarray | None = None
    mixup: float = 0.0
    class_weight: np.ndarray | None = None
    start: list | None = None
    clustering: Clustering | None = None
    plan: object = None
    center: object = None
    average: float = 0.0
    form: str = "alone"

    @functools.cached_property
    def most(self):
        """Members of the model that has most of them."""
        return int(self.members.sum(axis=1).max())

    @functools.cached_property
    def n_classes(self):
        """Width of the model's answers."""
        return self.model.output_shape[-1]

    @functools.cached_property
    def loss(self):
        """Loss of the model, and how it takes its targets."""
        return _loss_of(self)

    @functools.cached_property
    def first(self):
        """The dense layer that alone takes the input, directly; None where there is no such layer."""
        return _first(self.model)

    @functools.cached_property
    def spread(self):
        """Standard deviation of a Gaussian start of the first kernel; None where it starts otherwise."""
        return None if self.start is not None else deviation(self.first.kernel_initializer, self.first.kernel.shape)

    @functools.cached_property
    def inner(self):
        """(R, R) float64 inner products of all rows."""
        wide = self.x.astype(np.float64)
        return wide @ wide.T

    @functools.cached_property
    def coordinates(self):
        """(R, r) float64 rows in their own span, by a Cholesky factor that stops where only rounding is left."""
        lower, order, rank, _ = scipy.linalg.lapack.dpstrf(self.inner, lower=1)
        found = np.empty_like(lower)
        found[order - 1] = np.tril(lower)
        return found[:, :rank]

    @functools.cached_property
    def on_device(self):
        """The rows as one tensor that all models share."""
        return tf.constant(self.x)


def train(
    model,
    x,
    labels,
    members,
    *,
    epochs,
    batch_size,
    seed,
    queries=None,
    targets=None,
    mixup=0.0,
    class_weight=None,
    start=None,
    clustering=None,
    privacy=None,
    n=None,
    center=None,
    average=0.0,
    fault=None,
    cache=None,
    progress=True,
):
    """Train one model for each row of `members` and return what every model says of every patient.

    Any compiled Keras model is trained as Keras would train it. With dense layers it trains in the span of its members
    (SGD) or side by side on features (Adam, sparsity); any other network takes its turn alone, which is said.

    Parameters
    ----------
    model : tf.keras.Model
        Compiled; (n, d) features to (n, k) logits, or to probabilities of a softmax, whose logarithms are then the
        logits. It is the blueprint, and stays as it is: each model draws a start of its own by its initializers.
    x : numpy.ndarray
        (n, d), all patients.
    labels : numpy.ndarray
        (n,) int, classes from 0 to k - 1.
    members : numpy.ndarray
        (M, n) bool; row m says who trains model m.
    epochs : int
    batch_size : int or None
        Largest batch; None takes all members in every step. An epoch is cut into batches of nearly equal size, as many
        for all models.
    seed : int or None
        Model m draws its start, batches, masks and noise from (seed, m); None draws from the operating system.
    queries : numpy.ndarray, optional
        (q, d) further rows whose logits are wanted, as second samples of the patients.
    targets : numpy.ndarray, optional
        (M, n, k) soft targets to learn from instead of the labels; rows add up to 1.
    mixup : float
        Parameter of the beta distribution by which the patients of a batch are mixed in pairs; 0 for none.
    class_weight : sequence of float, optional
        (k,) weight of each class's loss.
    start : list of numpy.ndarray, optional
        Weights on features, in Keras' order, that all models start from.
    clustering : Clustering, optional
    privacy : genlib.privacy.Privacy, optional
        Train by DP-SGD under this guarantee.
    n : int, optional
        Nominal number of members of private models: sampling, noise and rate follow it, not the members drawn.
    center : genlib.privacy.Center, optional
        How private models with a noisy mean center their features.
    average : float
        Share of the last private steps whose weights are averaged.
    fault : str, optional
        Name in `genlib.privacy.FAULTS`: break private training on purpose, to show that an audit notices.
    cache : path-like, optional
        Folder for finished models; what a killed run had finished is not trained again.
    progress : bool
        Show a progress bar with the time left.

    Returns
    -------
    Trained

    Raises
    ------
    ValueError
        When shapes disagree, a private model cannot be trained as promised, or training diverges; names the value and
        the way out.

    References
    ----------
    Mixup: Zhang, Cisse, Dauphin, Lopez-Paz, ICLR 2018. Clustering: Chen et al., Bioinformatics 36(5), 2020. DP-SGD:
    Abadi et al., CCS 2016, algorithm 1.

    Examples
    --------
    >>> from genlib import membership, networks
    >>> labels = np.arange(40) % 2
    >>> x = np.random.default_rng(0).normal(size=(40, 60)).astype(np.float32)
    >>> members = membership.paired_halves(labels, n_models=2, seed=0)
    >>> model = networks.mlp(60, 2, hidden=(8,))
    >>> trained = train(model, x, labels, members, epochs=2, batch_size=10, seed=0, progress=False)
    >>> trained.logits.shape, trained.inside.shape
    ((2, 40, 2), (2, 40, 8))
    """
    options = {
        "targets": targets, "mixup": mixup, "class_weight": class_weight, "start": start, "clustering": clustering,
        "privacy": privacy, "n": n, "center": center, "average": average, "fault": fault,
    }  # fmt: skip
    rows = x if queries is None else np.vstack([x, queries])
    job = _job(model, rows, labels, members, epochs=epochs, batch_size=batch_size, seed=seed, **options)
    paths = _paths(job, cache)
    stored = {m: results.load_arrays(path) if path else None for m, path in enumerate(paths)}
    missing = [m for m in stored if stored[m] is None]
    bar = f"training {len(missing)} {'private ' if privacy else ''}models"
    shown = {"desc": bar, "total": len(missing), "disable": not progress or not missing, "file": sys.stdout}
    for m, found in tqdm(_trained(job, missing), **shown):
        if not np.isfinite(found["logits"]).all():
            raise ValueError(f"training diverged: model {m} gives infinite logits; lower the learning rate")
        if paths[m]:
            results.save_arrays(paths[m], **found)
        stored[m] = found
    stacked = {name: np.stack([stored[m][name] for m in stored]) for name in stored[0]}
    names = sorted((name for name in stacked if name.startswith("further_")), key=lambda name: int(name[8:]))
    further = [stacked[name] for name in names] if "inside" in stacked else None
    return Trained(stacked["logits"], stacked.get("inside"), further, functools.partial(_model_again, job))


def fit(model, x, labels, members, m=0, **options):
    """Train model m of a bank alone, and return it as an ordinary Keras model; `options` as in `train`.

    Examples
    --------
    >>> from genlib import membership, networks
    >>> labels, x = np.arange(40) % 2, np.random.default_rng(0).normal(size=(40, 60)).astype(np.float32)
    >>> members = membership.paired_halves(labels, n_models=2, seed=0)
    >>> fit(networks.softmax(60, 2), x, labels, members, m=1, epochs=2, batch_size=None, seed=0).output_shape
    (None, 2)
    """
    return _model_again(_job(model, x, labels, members, **options), m)


def _job(model, x, labels, members, **options):
    """Check all that a training depends on, and choose its form."""
    x = np.ascontiguousarray(x, K.backend.floatx())
    privacy, n, fault = (options.pop(name, None) for name in ("privacy", "n", "fault"))
    if options.get("class_weight") is not None:
        options["class_weight"] = np.asarray(options["class_weight"], x.dtype)
    if isinstance(options.get("clustering"), dict):
        options["clustering"] = Clustering(**options["clustering"])  # as profiles have it
    plan = _plan(privacy, n, options["epochs"], options["batch_size"], fault)
    job = _Job(model, x, np.asarray(labels), np.asarray(members), plan=plan, **options)
    _check(job)
    return dataclasses.replace(job, form=_form(job))


def _plan(privacy, n, epochs, batch_size, fault):
    if privacy is None:
        if fault:
            raise ValueError(f"fault='{fault}' is planted in private training; give privacy too")
        return None
    if n is None:
        raise ValueError("a private model needs n, the nominal number of members, since the drawn number is secret")
    return privacy.mechanism(n, epochs, batch_size, fault)


def _check(job):
    x, labels, members, model, k = job.x, job.labels, job.members, job.model, job.n_classes
    if model.optimizer is None:
        raise ValueError("the model is not compiled; call model.compile(optimizer, loss) first")
    if x.ndim != 2 or labels.ndim != 1 or len(x) < len(labels) or members.shape[1:] != labels.shape:
        found = f"x {x.shape}, labels {labels.shape}, members {members.shape}"
        raise ValueError(f"shapes disagree: {found}; they must be (n, d), (n,) and (M, n)")
    membership.check(labels, members, k)
    if not members.any(axis=1).all():
        raise ValueError("every model needs at least one member; a row of members has none")
    if not np.isfinite(x).all():
        raise ValueError("x holds missing or infinite values; see cohorts.load, which refuses them")
    if model.input_shape[-1] != x.shape[1]:
        raise ValueError(f"the model takes {model.input_shape[-1]} features, x has {x.shape[1]}")
    if job.epochs < 1 or (job.batch_size is not None and job.batch_size < 1):
        raise ValueError(f"epochs={job.epochs}, batch_size={job.batch_size}: must be whole numbers of at least 1")
    if job.class_weight is not None and job.class_weight.shape != (k,):
        raise ValueError(f"{job.class_weight.size} class weights for {k} classes; give one for each")
    shape, soft = (*members.shape, k), job.targets
    if soft is not None and (soft.shape != shape or not np.allclose(soft.sum(axis=2), 1, atol=1e-4)):
        raise ValueError(f"targets {soft.shape}: must be (M, n, k) = {shape}, and rows add up to 1")
    given, wanted = ([w.shape for w in weights or ()] for weights in (job.start, model.get_weights()))
    if job.start is not None and given != wanted:
        raise ValueError(f"start has shapes {given}; the model's are {wanted}")


# In which form a model trains.

_said = set()


def say(line):
    """Print a line, once a process."""
    if line not in _said:
        _said.add(line)
        print(line, flush=True)


def _form(job):
    """Choose "span", "features" or "alone"; what is slower than a reader would expect is said."""
    reason = _why_alone(job)
    _say_what_is_drawn(job)
    if job.plan is not None:
        _check_private(job, reason)
    elif reason:
        if job.clustering:
            raise ValueError(f"{reason}: clustering is for networks of dense layers; leave it out")
        say(f"{reason}: its models train one at a time, each about as long as in Keras' own fit")
        if isinstance(job.model.optimizer, K.optimizers.Nadam):
            say("Keras' Nadam counts its steps while it is traced, so what it trains differs a little from Keras' fit")
        return "alone"
    fits = len(job.x) < job.x.shape[1] and job.center is None
    return "span" if fits and _first_in_span(job) else "features"


def _say_what_is_drawn(job):
    """Say so where a layer draws numbers of its own, which no seed here reaches."""
    kinds = (K.layers.Lambda, K.__internal__.layers.BaseRandomLayer)
    suspects = [layer for layer in job.model.layers if type(layer) is not K.layers.Dropout or layer.noise_shape]
    own = [layers.is_own(one) or layers.is_own(getattr(one, "activation", None)) for one in suspects]
    if not any(own) and not any(isinstance(one, kinds) for one in suspects):
        return
    model = clone(job.model, 0)
    for layer in _dropouts(model):
        layer.mask = True
    try:
        first, again = (np.asarray(model(job.x[:2], training=True)) for _ in range(2))
    except RuntimeError:  # on a GPU TensorFlow wants a seed for such a layer
        tf.random.set_seed(_number(job.seed, 0))
        first, again = 0, 1
    if not np.array_equal(first, again, equal_nan=True):
        say("A layer of this model draws random numbers of its own: what it trains cannot be repeated")


def _dropouts(model):
    return [layer for layer in model.layers if isinstance(layer, layers.Dropout)]


def _why_alone(job):
    """Why models of this kind cannot train side by side, exactly; empty where they can."""
    model, optimizer = job.model, job.model.optimizer
    if type(model) not in GRAPHS or len(model.inputs) != 1 or len(model.outputs) != 1:
        return f"the model ({type(model).__name__}) is not a plain graph of layers with one input and one output"
    used = [name for name in PLAIN_SETTINGS if optimizer.get_config().get(name)]
    if used or type(optimizer) not in (K.optimizers.SGD, K.optimizers.Adam, networks.RowAdam):
        return f"optimizer {type(optimizer).__name__}" + (f" with {', '.join(used)}" if used else "")
    for layer in model.layers:
        reason = _why_layer_alone(layer)
        if reason:
            return f"layer '{layer.name}' ({type(layer).__name__}) {reason}"
    parts = [getattr(layer, f"{part}_regularizer", None) for layer in model.layers for part in ("kernel", "bias")]
    if len(model.losses) != sum(one is not None for one in parts):
        return "a layer that adds a loss of its own"
    plain = job.loss.stacks and model.get_compile_config().get("loss_weights") is None
    return "" if plain else f"loss {type(job.loss.function).__name__} is weighed, or not taken patient by patient"


def _why_layer_alone(layer):
    kind = type(layer)
    regularizers, constraints = (
        [type(getattr(layer, f"{part}_{name}", None)) for part in ("kernel", "bias")]
        for name in ("regularizer", "constraint")
    )
    none, width = type(None), {K.layers.Conv1D: "kernel_size", K.layers.MaxPooling1D: "pool_size"}.get(kind)
    plain = {K.layers.Dense, K.layers.Conv1D, K.layers.MaxPooling1D}
    one_row = all(tf.nest.flatten(node.outputs)[0].shape.rank == 2 for node in layer.inbound_nodes)
    called = [value for node in layer.inbound_nodes for value in node.call_kwargs.values()]
    reasons = {
        "takes more than one row a patient": kind in (K.layers.InputLayer, K.layers.Dense) and not one_row,
        "has a number type of its own": layer.compute_dtype != K.backend.floatx(),
        "has an activity regularizer": getattr(layer, "activity_regularizer", None) is not None,
        "is called with options": any(value is not None for value in called),
        "has a regularizer that may look at a whole kernel": not {*regularizers} <= {none, *layers.BY_ENTRY},
        "has a constraint that looks at a whole kernel": not {*constraints}
        <= {none, K.constraints.NonNeg, networks.Sparse},
        "moves by another step than its width": width
        and (layer.strides != getattr(layer, width) or layer.data_format != "channels_last"),
        "pads, or spreads": getattr(layer, "dilation_rate", (1,)) != (1,)
        or getattr(layer, "groups", 1) != 1
        or (width == "pool_size" and layer.padding != "valid")
        or (width and layer.padding == "causal"),
        "has a noise_shape": getattr(layer, "noise_shape", None) is not None,
        "has weights, and is no dense layer": layer.weights and kind not in plain,
    }
    return next((reason for reason, found in reasons.items() if found), "")


def _first(model):
    takers = [
        layer for layer in model.layers if not isinstance(layer, K.layers.InputLayer)
        for node in layer.inbound_nodes for given in tf.nest.flatten(node.input_tensors) if given is model.inputs[0]
    ]  # fmt: skip
    alone = len(takers) == 1 and type(takers[0]) is K.layers.Dense and len(takers[0].inbound_nodes) == 1
    return takers[0] if alone else None


def _first_in_span(job):
    others = {type(layer) for layer in job.model.layers if layer.weights}
    if job.first is None or not job.first.trainable or others != {K.layers.Dense}:
        return False
    decays = type(job.first.kernel_regularizer) in (type(None), K.regularizers.L2)
    return decays and job.first.kernel_constraint is None and type(job.model.optimizer) is K.optimizers.SGD


def _check_private(job, reason):
    """Refuse what DP-SGD cannot promise for, by name."""
    model, loss = job.model, job.loss.function
    odd = [
        f"layer '{layer.name}' ({type(layer).__name__}) is used twice, constrained or no dense layer"
        for layer in model.layers
        if layer.weights
        and (type(layer) is not K.layers.Dense or len(layer.inbound_nodes) != 1 or layer.kernel_constraint is not None)
    ]
    moved = job.x[:3] + np.eye(3, 1, dtype=job.x.dtype)[: len(job.x[:3])]
    twice = job.mixup or job.clustering or job.targets is not None
    reasons = {
        f"{reason}: the gradient of each patient by itself is not known here": reason,
        next(iter(odd), ""): odd,
        f"optimizer {type(model.optimizer).__name__}": type(model.optimizer) is not K.optimizers.SGD,
        "mixup, clustering and soft targets use a patient twice, or are learned": twice,
        f"loss {type(loss).__name__} mixes the patients of a batch": type(loss).__call__ is not K.losses.Loss.__call__,
        "a layer of this model mixes the patients of a batch": not reason
        and not np.allclose(model(job.x[:3])[1:], model(moved)[1:]),
    }
    for words, found in reasons.items():
        if found:
            raise ValueError(f"{words}; private training takes dense layers and SGD, or leave privacy out")


# What Keras holds of a model: its loss, its start, its name.


@dataclasses.dataclass(frozen=True)
class _Loss:
    """A loss with Keras' reductions undone: the bank weighs patients itself."""

    function: K.losses.Loss
    integers: bool  # takes class numbers, not one-hot rows
    smoothing: float  # taken into the targets
    mean: bool  # of a batch, or its sum
    stacks: bool  # gives each model of a bank what it would have alone
    whole: K.losses.Loss  # with its own reduction


def _loss_of(job):
    given = tf.nest.flatten(job.model.loss)[0]
    found = K.losses.get(given)
    name = "" if isinstance(found, K.losses.Loss) else getattr(given, "__name__", given)
    found = layers.Function(found) if name else found
    integers = isinstance(found, K.losses.SparseCategoricalCrossentropy) or name == "sparse_categorical_crossentropy"
    smoothing, mean = 0.0, found.reduction not in (K.losses.Reduction.SUM, K.losses.Reduction.NONE)
    if integers and (job.targets is not None or job.mixup):
        found, integers = K.losses.CategoricalCrossentropy(found.get_config().get("from_logits", False)), False
    elif type(found) is K.losses.CategoricalCrossentropy:
        config = found.get_config()
        smoothing = config.pop("label_smoothing")
        found = K.losses.CategoricalCrossentropy.from_config(config)
    summed = copy.copy(found)
    summed.reduction = K.losses.Reduction.SUM if job.plan is None else K.losses.Reduction.NONE
    stacks = _loss_stacks(summed, integers, job.n_classes)
    return _Loss(summed if stacks else found, integers, smoothing, mean and stacks, stacks, found)


def _loss_stacks(loss, integers, k):
    """Whether two models' losses at once add up to each one's alone, which is its mean where weights add up to 1."""
    rng, floatx, averaged = np.random.default_rng(0), K.backend.floatx(), copy.copy(loss)
    averaged.reduction = K.losses.Reduction.SUM_OVER_BATCH_SIZE
    answers, labels = rng.dirichlet(np.ones(k), (2, k)).astype(floatx), np.stack([rng.permutation(k) for _ in range(2)])
    targets, weights = labels if integers else np.eye(k, dtype=floatx)[labels], np.full((2, k), 1 / k, floatx)
    try:
        both = np.sum(loss(targets, answers, sample_weight=weights))
        apart = sum(np.sum(loss(targets[m], answers[m], sample_weight=weights[m])) for m in (0, 1))
        return bool(np.allclose([both, sum(averaged(targets[m], answers[m]) for m in (0, 1))], apart))
    except (ValueError, TypeError, tf.errors.InvalidArgumentError):
        return False


def rng_of(seed, m, purpose):
    """Random numbers of one model for one purpose; of the operating system where seed is None."""
    return np.random.Generator(np.random.SFC64(None if seed is None else [seed, m, *np.atleast_1d(purpose)]))


def _number(seed, m):
    """One number for libraries from (seed, m)."""
    return int(np.random.SeedSequence(None if seed is None else [seed, m, 5]).generate_state(1)[0]) >> 1


def deviation(initializer, shape):
    """Standard deviation of a Gaussian start around 0, 0 of a start from zeros; None of any other.

    Examples
    --------
    >>> deviation(K.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal"), (8, 3))
    0.5
    >>> deviation(K.initializers.GlorotUniform(), (8, 3)) is None
    True
    """
    if isinstance(initializer, K.initializers.Zeros):
        return 0.0
    if type(initializer) is K.initializers.RandomNormal and initializer.mean == 0:
        return float(initializer.stddev)
    if isinstance(initializer, K.initializers.VarianceScaling) and initializer.distribution == "untruncated_normal":
        ends = shape[-2:] if len(shape) > 1 else shape * 2
        fan_in, fan_out = (float(np.prod(shape[:-2])) * end for end in ends)
        fans = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
        return float(np.sqrt(initializer.scale / max(1.0, fans[initializer.mode])))
    return None


def _draw(initializer, shape, rng):
    """Draw a weight by its initializer."""
    spread, floatx = deviation(initializer, shape), K.backend.floatx()
    if spread is not None:
        return _gaussian(rng, shape, spread, floatx)
    config = initializer.get_config() if hasattr(initializer, "get_config") else {}
    if config.get("seed", 0) is None:
        initializer = type(initializer).from_config(config | {"seed": int(rng.integers(2**31))})
    return np.asarray(initializer(shape, floatx))


def _gaussian(rng, shape, spread, dtype):
    # SFC64's float32 normals, made outside of the compiled function, are the fastest source that was found.
    return rng.standard_normal(shape, dtype=np.float32).astype(dtype, copy=False) * np.asarray(spread, dtype)


def _start(job, m, rank=None):
    """Weights that model m starts from; a Gaussian first kernel as `rank` rows of a basis, with the same law."""
    if job.start is not None:
        return [np.asarray(w, job.x.dtype) for w in job.start]
    if job.form == "alone":
        with layers.TRACING:
            return clone(job.model, _number(job.seed, m)).get_weights()
    drawn = []
    for level, layer in enumerate(layer for layer in job.model.layers if layer.weights):
        # A stream for each layer, so that the others do not depend on how the first is drawn.
        rng, shape = rng_of(job.seed, m, (10, level)), layer.kernel.shape
        if level == 0 and rank and job.spread is not None:
            drawn.append(_gaussian(rng, (rank, shape[1]), job.spread, job.x.dtype))
        else:
            drawn.append(_draw(layer.kernel_initializer, shape, rng))
        drawn += [_draw(layer.bias_initializer, layer.bias.shape, rng)] if layer.use_bias else []
    return drawn


def describe(model, strengths=True):
    """Name a compiled model by all that its training depends on, whatever its layers happen to be called.

    Parameters
    ----------
    model : tf.keras.Model
    strengths : bool
        False leaves out what differs between models that one compiled network can train.

    Returns
    -------
    str or None
        None where a model holds code of a user's own, which no configuration tells apart.

    Examples
    --------
    >>> describe(networks.mlp(4, 2)) == describe(networks.mlp(4, 2)) != describe(networks.mlp(4, 2, learning_rate=0.1))
    True
    """
    every_layer = list(model._flatten_layers())
    parts = [one for layer in every_layer for one in (layer, *vars(layer).values())]
    parts += [model.optimizer, getattr(model.optimizer, "_learning_rate", None), *tf.nest.flatten(model.loss)]
    if any(isinstance(one, layers.CODE) and layers.is_own(one) for one in parts):
        return None
    names = {layer.name: f"layer {place}" for place, layer in enumerate(every_layer)}

    def plain(value, named=False):
        if isinstance(value, dict):
            fixed = () if strengths else STRENGTHS.get(value.get("class_name"), ())
            config = value.get("config")
            if fixed and isinstance(config, dict):
                value = value | {"config": {k: v for k, v in config.items() if k not in fixed or isinstance(v, dict)}}
            here = ("name", "inbound_nodes", "input_layers", "output_layers")
            return {key: plain(one, named or key in here) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(one, named) for one in value]
        return names.get(value, value) if named and isinstance(value, str) else value

    compiled = {name: value for name, value in model.get_compile_config().items() if "metrics" not in name}
    return json.dumps(plain([json.loads(model.to_json()), compiled]), sort_keys=True, default=float)


def _paths(job, cache):
    """Where each finished model is kept: a name made of all that it depends on."""
    nowhere = [None] * len(job.members)
    if cache is None or job.seed is None:
        return nowhere
    name = describe(job.model)
    if name is None:
        say("A model with code of your own is not kept in the cache, where a change of that code would not be seen")
        return nowhere
    shared = [
        job.x, job.labels, name, job.epochs, job.batch_size or 0, job.mixup, job.average, job.most,
        str(job.clustering), str(job.plan), K.backend.floatx(), job.form,
        tf.__version__, results.code_digest(*CODE), str(job.center and (job.center.share, job.center.radius)),
    ]  # fmt: skip
    optional = [job.class_weight, job.center and job.center.lean]
    common = results.digest(*shared, *["none" if one is None else one for one in optional], *(job.start or []))
    taught = ["labels"] * len(job.members) if job.targets is None else job.targets
    keys = [results.digest(common, job.members[m], [job.seed, m], taught[m]) for m in range(len(job.members))]
    return [pathlib.Path(cache) / f"{key[:32]}.npz" for key in keys]


# What is random in a training, drawn as data.


def draw_batches(n, epochs, per_epoch, seed):
    """Draw who is in which step: every member once an epoch, in an order of its own.

    (Keras leaves a last batch of what remains: with 385 members and batches of 32 one patient makes a step of full
    length.)

    Parameters
    ----------
    n : int
        Number of members.
    epochs, per_epoch : int
        Epochs, and batches of nearly equal size in each.
    seed : sequence of int, or None

    Returns
    -------
    rows : numpy.ndarray
        (steps, width) int32, positions among the members.
    sizes : numpy.ndarray
        (steps,) int32, how many of a row count, from its beginning.

    Examples
    --------
    >>> draw_batches(5, epochs=1, per_epoch=2, seed=[0])[1]
    array([3, 2], dtype=int32)
    """
    rng = np.random.default_rng(seed)
    parts = [part for _ in range(epochs) for part in np.array_split(rng.permutation(n), per_epoch)]
    return _padded(parts, -(-n // per_epoch))


def _padded(parts, width):
    sizes = np.array([len(part) for part in parts], np.int32)
    rows = np.zeros((len(parts), max(width, sizes.max())), np.int32)
    for row, part in zip(rows, parts, strict=True):
        row[: len(part)] = part
    return rows, sizes


def draw_poisson(n, plan, rng):
    """Draw batches by Poisson sampling: every member is in every batch with the plan's rate, by itself.

    Parameters
    ----------
    n : int
        Number of members.
    plan : genlib.privacy.Mechanism
        Its rate and steps; one whose `fresh_batches` is False repeats the first batch (a planted fault).
    rng : numpy.random.Generator

    Returns
    -------
    rows, sizes : numpy.ndarray
        As `draw_batches`; none is cut, and a size of 0 is an empty batch.

    Examples
    --------
    >>> from genlib.privacy import Mechanism
    >>> rows, sizes = draw_poisson(1000, Mechanism(1.0, 1.0, 0.05, 5, 50.0), np.random.default_rng(0))
    >>> rows.shape, bool(abs(sizes.mean() - 50) < 10)
    ((5, 86), True)
    """
    if plan.rate >= 1:
        return np.tile(np.arange(n, dtype=np.int32), (plan.steps, 1)), np.full(plan.steps, n, np.int32)
    drawn = [np.flatnonzero(rng.random(n) < plan.rate) for _ in range(plan.steps if plan.fresh_batches else 1)]
    drawn = drawn if plan.fresh_batches else drawn * plan.steps
    return _padded(drawn, _usual_width(n, plan.rate))


def _usual_width(n, rate):
    return n if rate >= 1 else int(scipy.stats.binom.ppf(PADDING_QUANTILE, n, rate))


def _batches(job, m, n, seed=None):
    """Positions among the n members, and sizes; all models take as many steps, in rows of one width."""
    if job.plan is not None:
        (rows, sizes), width = draw_poisson(n, job.plan, rng_of(job.seed, m, 14)), _usual_width(job.most, job.plan.rate)
    else:
        per_epoch = -(-job.most // (job.batch_size or job.most))
        rows, sizes = draw_batches(n, job.epochs, per_epoch, seed or (None if job.seed is None else [job.seed, m, 6]))
        width = -(-job.most // per_epoch)
    return np.pad(rows, ((0, 0), (0, max(0, width - rows.shape[1])))), sizes


def _steps(job, m, space, masks_of, seed=None):
    """All that the steps of model m need, with a leading axis of steps; what only fills a row up weighs nothing."""
    who, dtype = np.flatnonzero(job.members[m]), job.x.dtype
    rows, sizes = _batches(job, m, len(who), seed)
    counts = np.arange(rows.shape[1]) < sizes[:, None]
    patients, shares, rows = who[rows], np.ones((*rows.shape, 1), dtype), rows[..., None]
    targets = _targets(job, m, patients)
    weights = counts / np.maximum(sizes[:, None], 1) if job.loss.mean and job.plan is None else counts.astype(dtype)
    if job.class_weight is not None:
        named = job.targets is None
        weights = weights * (job.class_weight[job.labels[patients]] if named else targets @ job.class_weight)
    if job.mixup:
        rng = np.random.default_rng([_number(job.seed, m), 23])
        own = rng.beta(job.mixup, job.mixup, len(rows)).astype(dtype)[:, None, None]
        other = np.tile(np.arange(rows.shape[1]), (len(rows), 1))
        for partner, size in zip(other, sizes, strict=True):
            partner[:size] = rng.permutation(size)
        rows = np.concatenate([rows, np.take_along_axis(rows, other[..., None], 1)], axis=2)
        shares = np.concatenate([own * shares, (1 - own) * shares], axis=2)
        targets = own * targets + (1 - own) * np.take_along_axis(targets, other[..., None], 1)
    rng = rng_of(job.seed, m, 15)
    masks = [rng.random((*counts.shape, *shape), dtype=np.float32) >= rate for shape, rate in masks_of]
    found = {"rows": space.places[rows].astype(np.int32), "shares": shares, "targets": targets, "masks": masks}
    return found | {"weights": weights.astype(dtype)}


def _targets(job, m, patients):
    """What is learned of each patient of each step."""
    if job.targets is not None:
        return job.targets[m].astype(job.x.dtype)[patients]
    if job.loss.integers:
        return job.labels[patients].astype(np.int32)
    smooth = (1 - job.loss.smoothing) * np.eye(job.n_classes) + job.loss.smoothing / job.n_classes
    return smooth.astype(job.x.dtype)[job.labels[patients]]


# Where a model trains.


@dataclasses.dataclass(frozen=True)
class _Space:
    """How the first layer of one model sees patients while it trains, and how its kernel is read afterwards."""

    table: np.ndarray  # rows that the steps draw from, (r, width)
    places: np.ndarray  # where the members are in it
    start: list  # weights, the first kernel as it begins there
    inside: callable  # trained first kernel (and scale) to the products of all rows with it, (R, h)
    on_features: callable  # the same to the kernel on features, (d, h)
    shift: np.ndarray | None = None  # what was subtracted from the features


def _space(job, m):
    who = np.flatnonzero(job.members[m])
    if job.form == "span":
        return _in_span(job, m, who) if job.plan is None else _in_members_span(job, m, who)
    table, shift = job.on_device, None
    if job.center is not None:
        shift = job.center.offset(job.x[who], job.plan, rng_of(job.seed, m, 13)).astype(job.x.dtype)
        table = job.x - shift
    return _Space(table, who, _start(job, m), lambda kernel: job.x @ kernel, lambda kernel: kernel, shift)


def _in_span(job, m, who):
    """Inner products with the members, and what the start gives each row."""
    dtype, filled = job.x.dtype, np.resize(who, job.most)  # who only pads is never drawn, and keeps a coefficient of 0
    start = _start(job, m, job.coordinates.shape[1])
    begun = ((job.x if job.spread is None else job.coordinates) @ start[0]).astype(dtype)
    inner = job.inner[:, filled].astype(dtype)

    def on_features(kernel, scale):
        whole = start[0] if job.spread is None else _on_features(job, m, begun)
        return scale * whole + job.x[who].T @ kernel[: len(who)]

    begins = [np.zeros((job.most, start[0].shape[1]), dtype), *start[1:]]
    table = np.concatenate([inner[filled], begun[filled]], axis=1)
    inside = lambda kernel, scale: inner @ kernel + scale * begun  # noqa: E731
    return _Space(table, np.arange(len(who)), begins, inside, on_features)


def _on_features(job, m, begun):
    """Complete a start that was drawn in the basis to one on features, isotropic also where no patient reaches."""
    free = _gaussian(rng_of(job.seed, m, 11), (job.x.shape[1], begun.shape[1]), job.spread, job.x.dtype)
    gap = (begun - job.x @ free).astype(np.float64)
    return free + (job.x.T @ np.linalg.lstsq(job.inner, gap, rcond=None)[0]).astype(job.x.dtype)


def _in_members_span(job, m, who):
    """Coordinates of the members in their own span: noise is as isotropic there as on features, and there is less.

    What happens outside of that span cannot affect training. It is drawn at the end, with the variance that start and
    noise would have gathered there; without it the weights would show who spans them.
    """
    order, rows = np.r_[who, np.setdiff1d(np.arange(len(job.x)), who)], np.empty_like(job.coordinates)
    # A triangle with the members first: their coordinates fill the first columns alone.
    rows[order] = np.linalg.qr(job.coordinates[order].T, mode="r").T
    rank, rng = min(len(who), rows.shape[1]), rng_of(job.seed, m, 17)
    axes = functools.cache(lambda: np.linalg.lstsq(rows, job.x.astype(np.float64), rcond=None)[0])
    kept, gathered = outside_span(job.model, job.plan, job.average)
    start = _start(job, m, job.most)
    public = 0.0 if job.spread is not None else kept * start[0].astype(np.float64)  # what decay leaves of it
    scale = gathered if job.spread is None else float(np.hypot(gathered, kept * job.spread))
    outside = scale * rng.standard_normal((rows.shape[1] - rank, start[0].shape[1]))
    if job.spread is None:
        begun = axes() @ start[0]
        outside += kept * begun[rank:]
        start[0] = np.pad(begun[:rank], ((0, job.most - rank), (0, 0)))

    def whole(kernel):
        return np.vstack([kernel[:rank].astype(np.float64), outside])

    def on_features(kernel):
        free = public + scale * rng.standard_normal((job.x.shape[1], kernel.shape[1]))
        return (free + axes().T @ (whole(kernel) - axes() @ free)).astype(job.x.dtype)

    table = np.pad(rows[who, :rank], ((0, job.most - len(who)), (0, job.most - rank))).astype(job.x.dtype)
    start[0] = start[0].astype(job.x.dtype)
    inside = lambda kernel: (rows @ whole(kernel)).astype(job.x.dtype)  # noqa: E731
    return _Space(table, np.arange(len(who)), start, inside, on_features)


def outside_span(model, plan, average=0.0):
    """What private training on features leaves in a first-layer weight outside of the members' span.

    There the gradients are zero, so start and noise go through a linear recursion of rate, momentum, decay and
    averaging; a unit impulse of each tells how much of it is left at the end.

    Parameters
    ----------
    model : tf.keras.Model
        Compiled with SGD.
    plan : genlib.privacy.Mechanism
    average : float
        Share of the last steps whose weights are averaged.

    Returns
    -------
    kept : float
        Share of the start that is left.
    gathered : float
        Standard deviation of the noise of all steps together.

    Examples
    --------
    >>> from genlib.privacy import Mechanism
    >>> plain = Mechanism(clip_norm=1.0, noise=5.0, rate=1.0, steps=100, divisor=10)
    >>> kept, gathered = outside_span(networks.mlp(4, 2, learning_rate=0.1), plain)
    >>> round(kept, 6), round(gathered, 6)
    (1.0, 0.5)
    """
    optimizer, decay = model.optimizer.get_config(), float(getattr(_first(model).kernel_regularizer, "l2", 0.0))
    rate, momentum = optimizer["learning_rate"], optimizer["momentum"]
    averaged = max(1, round(average * plan.steps))
    # Column 0: the start; column 1 + t: the noise of step t.
    weight, speed, total = np.zeros(plan.steps + 1), np.zeros(plan.steps + 1), np.zeros(plan.steps + 1)
    weight[0] = 1.0
    for step in range(plan.steps):
        gradient = 2 * decay * weight
        gradient[1 + step] += 1.0
        speed = momentum * speed - rate * gradient
        weight = weight + (momentum * speed - rate * gradient if optimizer["nesterov"] else speed)
        if step >= plan.steps - averaged:
            total += weight / averaged
    return float(total[0]), float(plan.noise / plan.divisor * np.sqrt((total[1:] ** 2).sum()))


# Side by side.

_held = threading.local()  # compiled banks, each thread its own: the next strength of a defense takes one again


def threads():
    """Count the threads that train: the cores this process may run on; one where a GPU does the work."""
    return 1 if tf.config.list_physical_devices("GPU") else len(os.sched_getaffinity(0))


@functools.cache
def _workers(count):
    return concurrent.futures.ThreadPoolExecutor(count)


def _chunk_size(job):
    """Models of one call: few on a processor, as many as memory allows on a GPU."""
    n_weights = sum(w.size for w in job.model.get_weights())
    if job.form == "span":
        n_weights += job.most * (job.most + 2 * job.first.units) - job.x.shape[1] * job.first.units
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    fits = max(1, MEMORY * (16 if on_gpu else 1) // (16 * max(1, n_weights)))
    return int(min(fits, -(-len(job.members) // threads()), len(job.members) if on_gpu else CHUNK))


def _trained(job, missing, weights=False):
    """Train the missing models, and give each as it is finished: its number, and arrays by name."""
    if not missing:
        return
    size = 1 if weights or job.form == "alone" else _chunk_size(job)
    pieces = [missing[i : i + size] for i in range(0, len(missing), size)]
    # The compiled training leaves Python's lock alone, so threads are enough to use every core. NumPy's own threads
    # would be in their way, and share out a product as they are free: not the same bits each time.
    with threadpoolctl.threadpool_limits(1):
        made = [job.loss, job.on_device]  # once, before threads ask for it
        made += [job.spread, job.inner, job.coordinates] if job.form == "span" else []
        for found in _workers(threads()).map(lambda piece: _train_chunk(job, piece, size, weights), pieces):
            yield from found


def _take(job, size, kind):
    """A compiled bank for this job; each thread keeps the last two, since a defense has several strengths."""
    name = describe(job.model, strengths=job.form == "alone")
    key = (
        name, job.form, size, job.most if job.form == "span" else job.x.shape[1], kind,
        job.plan and job.plan.same_mask, job.average > 0, job.loss.integers,
        K.backend.floatx(), job.class_weight is None,
    )  # fmt: skip
    held = vars(_held).setdefault("banks", {})
    bank = held.pop(key, None)
    with layers.TRACING:
        if bank is None:
            bank = _build(job, size, kind)
        if job.form != "alone":
            _configure(job, bank)
    # An optimizer of Keras' former kind makes its memory at the first step, and does not forget.
    if name and hasattr(bank.optimizer, "build"):
        held[key] = bank
    for oldest in list(held)[:-2]:
        del held[oldest]
    return bank


def _build(job, size, kind):
    """Stack the model, or clone it to train alone, and compile it with a copy of its own optimizer and loss."""
    if job.form == "alone":
        model = clone(job.model, 0)
        optimizer = type(job.model.optimizer).from_config(job.model.optimizer.get_config())
        loss_weights = job.model.get_compile_config().get("loss_weights")
        # Keras gives weights a last axis, which a loss that looks at a whole batch may not expect.
        weighted = job.class_weight is not None
        model.compile(optimizer, job.loss.function if weighted else job.loss.whole, loss_weights=loss_weights)
        return layers.Alone(model, weighted)
    in_span = job.form == "span" and job.plan is None
    width = job.most + in_span * job.first.units if job.form == "span" else job.x.shape[1]
    bank = layers.stack(job.model, size, width, in_span, kind)
    config = job.model.optimizer.get_config() | {"use_ema": job.average > 0}
    plain = type(job.model.optimizer) is K.optimizers.SGD and not config["momentum"]
    optimizer = (layers.SGD if plain else type(job.model.optimizer)).from_config(config)
    bank.compile(optimizer, job.loss.function)
    for layer in bank.dense:
        if isinstance(layer.kernel.constraint, networks.Sparse):
            layer.kernel.constraint.bind(optimizer).alive = tf.Variable(tf.ones_like(layer.kernel), trainable=False)
    if job.plan is not None:
        bank.clip_norm, bank.divisor = (tf.Variable(0.0, dtype=K.backend.floatx(), trainable=False) for _ in range(2))
        bank.same_mask = job.plan.same_mask
    return bank


def _configure(job, bank):
    """Set the strengths of this job in a compiled bank."""
    if isinstance(job.model.optimizer.get_config()["learning_rate"], (float, np.floating)):
        bank.optimizer.learning_rate.assign(job.model.optimizer.learning_rate)
    kinds = (K.layers.Dense, K.layers.Conv1D, K.layers.Dropout, layers.Dense, layers.Dropout)
    # Layers of the same model built twice have other names, but the same order.
    working = ([layer for layer in model.layers if isinstance(layer, kinds)] for model in (job.model, bank))
    for given, held in zip(*working, strict=True):
        for theirs, ours in [(given, held), *[(getattr(given, n, None), getattr(held, n, None)) for n in layers.PARTS]]:
            for name, value in vars(ours).items() if hasattr(ours, "__dict__") else ():
                if isinstance(value, tf.Variable) and value.shape.rank == 0:
                    value.assign(getattr(theirs, name))
    if job.plan is not None:
        bank.clip_norm.assign(job.plan.clip_norm)
        bank.divisor.assign(job.plan.divisor)


def _train_chunk(job, models, size, weights):
    """Train a few models in one call, from the first step to the last."""
    kind = layers.Alone if job.form == "alone" else layers.PrivateBank if job.plan else layers.Bank
    bank = _take(job, size, kind)
    filled = list(models) + [models[-1]] * (size - len(models))
    spaces = [_space(job, m) for m in filled]
    table = spaces[0].table if tf.is_tensor(spaces[0].table) else tf.constant(np.stack([one.table for one in spaces]))
    masks_of = [(layer.shape[1 if job.form == "alone" else 2 :], float(layer.rate)) for layer in bank.dropouts]
    steps = _stacked([_steps(job, m, space, masks_of) for m, space in zip(filled, spaces, strict=True)])
    n_steps = len(steps["rows"])
    steps["epoch"] = (np.arange(n_steps) // max(1, n_steps // job.epochs)).astype(np.int32)
    bank.begin([space.start for space in spaces])
    if job.plan is not None:
        _run_private(job, bank, table, steps, filled)
    elif job.form == "alone":
        _run_alone(job, bank, table, steps, filled[0])
    else:
        bank.compiled("train_step", (table, steps, np.int32(n_steps)))
    if job.clustering:
        bank = _cluster(job, bank, filled, spaces, table, masks_of)
    if job.center:  # learned on shifted features: the bias takes the shift
        first, shifts = bank.dense[0], np.stack([space.shift for space in spaces])
        first.bias.assign_sub(tf.matmul(shifts[:, None], first.kernel))
    return list(_read(job, bank, models, spaces, weights))


def _stacked(parts):
    """Stack what each model's steps need, (steps, M, ...); a wider Poisson batch than usual widens all."""

    def stack(*arrays):
        shape = np.max([array.shape for array in arrays], axis=0)
        pads = [[(0, to - at) for at, to in zip(array.shape, shape, strict=True)] for array in arrays]
        return np.stack([np.pad(array, pad) for array, pad in zip(arrays, pads, strict=True)], axis=1)

    return tf.nest.map_structure(stack, *parts)


def _run_alone(job, bank, table, steps, m):
    """Steps of one ordinary model, those of one size together: what only fills a row up would count in its layers."""
    sizes = _batches(job, m, int(job.members[m].sum()))[1]
    epochs = steps.pop("epoch")
    for part in np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(sizes)) + 1):
        data = tf.nest.map_structure(lambda value: value[part, :, : sizes[part[0]]], steps)  # noqa: B023
        _call(bank, "train_step", (table, data | {"epoch": epochs[part]}, np.int32(len(part))))
    if hasattr(bank.optimizer, "finalize_variable_values"):
        bank.optimizer.finalize_variable_values(bank.own)


def _call(bank, function, *data):
    """Call a method compiled by XLA or, where XLA does not know a layer, without; then this is said."""
    try:
        return bank.compiled(function, *data)
    except (tf.errors.UnimplementedError, tf.errors.InvalidArgumentError):
        if not bank.compilable:
            raise
        say("XLA cannot compile a layer of this model: it trains without, and last bits may differ when repeated")
        bank.compilable = False
        return bank.compiled(function, *data)


def _run_private(job, bank, table, steps, models):
    """DP-SGD with its noise as data, a part of the steps at a time."""
    shapes, dtype = [variable.shape[1:] for variable in bank.trainable_variables], job.x.dtype
    cuts = np.cumsum([int(np.prod(shape)) for shape in shapes])
    late = np.cumsum(np.arange(job.plan.steps) >= job.plan.steps - max(1, round(job.average * job.plan.steps)))
    steps["averaged"] = np.where(late > 0, 1 - 1 / np.maximum(late, 1), 1.0).astype(dtype)
    length = min(job.plan.steps, max(1, NOISE // (len(models) * int(cuts[-1]))))
    rngs = [rng_of(job.seed, m, 16) for m in models]
    for begin in range(0, job.plan.steps, length):
        part = tf.nest.map_structure(lambda values: values[begin : begin + length], steps)  # noqa: B023
        count = len(part["rows"])
        noise = np.stack([_gaussian(rng, (count, int(cuts[-1])), job.plan.noise, dtype) for rng in rngs], axis=1)
        by_variable = zip(np.split(noise, cuts[:-1], axis=2), shapes, strict=True)
        part["noise"] = [drawn.reshape(count, len(models), *shape) for drawn, shape in by_variable]
        if count < length:  # filled up to one length, so that one compiled function serves all parts
            part = tf.nest.map_structure(lambda values: np.resize(values, (length, *values.shape[1:])), part)
        bank.compiled("train_step", (table, part, np.int32(count)))
    bank.optimizer.finalize_variable_values(bank.trainable_variables)


def _cluster(job, first_phase, models, spaces, table, masks_of):
    """DeepType's second phase; genes that the first gave up stay given up."""
    plan, n_hidden = job.clustering, first_phase.dense[-1].given.shape[-1]
    bank = _take(job, len(models), layers.ClusterBank)
    bank.restart()
    for ours, theirs in zip(bank.dense, first_phase.dense, strict=True):
        for to, value in zip(ours.weights, theirs.weights, strict=True):
            to.assign(value)
        sparse = ours.kernel.constraint
        if isinstance(sparse, networks.Sparse):
            sparse.ramp.assign(1e-7)  # at full strength from the first step
            alive = tf.reduce_any(ours.kernel != 0, -1, keepdims=True)
            sparse.alive.assign(tf.cast(alive, ours.kernel.dtype) * tf.ones_like(ours.kernel))
    for turn in range(plan.rounds):
        parts = []
        for m, space, z in zip(models, spaces, _answers(job, bank, spaces)[1], strict=True):
            who, number = np.flatnonzero(job.members[m]), _number(job.seed, m)
            found = KMeans(min(plan.n_clusters, len(who)), n_init=1, random_state=(number + turn) % 2**31).fit(z[who])
            centers = np.zeros((len(job.x), n_hidden), job.x.dtype)
            centers[who] = found.cluster_centers_[found.predict(z[who])]
            turned = dataclasses.replace(job, epochs=plan.epochs)
            step = _steps(turned, m, space, masks_of, [number, 25, turn])
            step["centers"] = centers[who[np.searchsorted(space.places, step["rows"][..., 0])]]
            parts.append(step)
        steps = _stacked(parts)
        steps["compactness"] = np.full(len(steps["rows"]), plan.weight, job.x.dtype)
        steps["epoch"] = np.zeros(len(steps["rows"]), np.int32)
        bank.compiled("train_step", (table, steps, np.int32(len(steps["rows"]))))
    return bank


def _answers(job, bank, spaces):
    """What models answer about all rows, what their last layers work on, and products with the first kernel."""
    if job.form == "alone":
        return _call(bank, "read", job.on_device).numpy(), None, None
    if job.first is None:
        return *(found.numpy() for found in bank.compiled("read", job.on_device[None])), None
    kernels = zip(*(weight.numpy() for weight in bank.dense[0].first_weights), strict=True)
    inside = np.stack([space.inside(*of) for space, of in zip(spaces, kernels, strict=True)])
    answers, last = bank.compiled("read", tf.zeros((1, 1, 1), inside.dtype), inside)
    return answers.numpy(), last.numpy(), inside


def _read(job, bank, models, spaces, weights):
    """Logits, products with the first kernel and further weights of each model; all weights where asked for."""
    answers, _, inside = _answers(job, bank, spaces)
    logits, shapes = _as_logits(job.model, answers), [w.shape for w in job.model.get_weights()]
    for place, (m, space) in enumerate(zip(models, spaces, strict=False)):
        kept = bank.model.get_weights() if job.form == "alone" else bank.weights_of(place)
        found = {"logits": logits[place]}
        if job.first is not None:
            at = [value is job.first.kernel for value in job.model.weights].index(True)
            found["inside"] = job.x @ kept[at] if job.form == "alone" else inside[place]
            found |= {f"further_{i}": value for i, value in enumerate(kept[:at] + kept[at + 1 :])}
            if weights and job.form != "alone":
                kept[at] = space.on_features(*(weight.numpy()[place] for weight in bank.dense[0].first_weights))
        if weights:
            found |= {f"weights_{i}": np.reshape(w, s) for i, (w, s) in enumerate(zip(kept, shapes, strict=True))}
        yield m, found


def _as_logits(model, answers):
    """Logarithms, where a model ends in softmax."""
    last = model.layers[-1] if model.layers else None
    if isinstance(last, K.layers.Softmax) or getattr(last, "activation", None) is K.activations.softmax:
        return np.log(np.maximum(answers, np.finfo(answers.dtype).tiny))
    return answers


# One at a time.


def clone(model, seed, masks=True):
    """A Keras model like this one whose start follows from a number; with `masks`, those of dropout layers are data."""
    rng = np.random.default_rng(seed)

    def seeded(config):
        if isinstance(config, dict):
            drawn = {"seed": int(rng.integers(2**31))} if "seed" in config and config["seed"] is None else {}
            return {name: seeded(value) for name, value in config.items()} | drawn
        return [seeded(value) for value in config] if isinstance(config, (list, tuple)) else config

    def copy_of(layer):
        if masks and type(layer) is K.layers.Dropout and layer.noise_shape is None:
            return layers.Dropout(layer.rate, name=layer.name)
        return layers.again(layer, seeded(layer.get_config()))

    if isinstance(model, GRAPHS[1]) and type(model).get_config in [graph.get_config for graph in GRAPHS]:
        return K.models.clone_model(model, clone_function=copy_of)
    fresh = type(model).from_config(seeded(model.get_config()))
    fresh.build((None, model.input_shape[-1]))
    return fresh


# A model of the bank as a model by itself.


def _model_again(job, m):
    """Train model m once more, as an ordinary Keras model, which loads without genlib; compiled where all is Keras'."""
    if job.plan is not None and job.seed is not None:
        raise ValueError(
            "the noise of a bank's private models follows from its recorded seed, so they are not for release; train "
            "one with privacy.release"
        )
    ((_, found),) = _trained(job, [m], weights=True)

    def plain(layer):
        sparse = isinstance(getattr(layer, "kernel_constraint", None), networks.Sparse)
        return layers.again(layer, layer.get_config() | ({"kernel_constraint": None} if sparse else {}))

    alone = job.form == "alone"
    model = clone(job.model, 0, masks=False) if alone else K.models.clone_model(job.model, clone_function=plain)
    model.set_weights([found[f"weights_{i}"] for i in range(len(model.get_weights()))])
    optimizer, loss = job.model.optimizer, job.model.loss
    if all(isinstance(one, str) or type(one).__module__.startswith("keras.") for one in (optimizer, loss)):
        model.compile(type(optimizer).from_config(optimizer.get_config()), loss, metrics=["accuracy"])
    return model
