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
import re
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
L, R, C, OPT = K.layers, K.regularizers, K.constraints, K.optimizers
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

# What trains side by side, exactly as it would alone: nothing in it looks at more than one patient, or at a whole
# kernel, of which there are several. Everything else trains as Keras trains it, one model after the other.
GRAPHS = (K.Sequential, K.Sequential.__bases__[0])
LAYERS = (
    L.InputLayer, L.Dense, L.Dropout, L.Activation, L.ReLU, L.LeakyReLU, L.ELU, L.Softmax, L.Add, L.Concatenate,
)  # fmt: skip
PARTS = {
    "kernel_regularizer": (R.L1, R.L2, R.L1L2), "bias_regularizer": (R.L1, R.L2, R.L1L2),
    "kernel_constraint": (C.NonNeg, networks.Sparse), "bias_constraint": (C.NonNeg,), "activity_regularizer": (),
    "noise_shape": (),
}  # fmt: skip
OPTIMIZERS = (OPT.SGD, OPT.Adam, networks.RowAdam)
WHOLE_KERNEL = ("clipnorm", "clipvalue", "global_clipnorm", "weight_decay", "use_ema")
LOSSES = {
    "sparse_categorical_crossentropy": K.losses.SparseCategoricalCrossentropy,
    "categorical_crossentropy": K.losses.CategoricalCrossentropy,
}


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
    """All that a bank's training depends on, checked; what is not given here has no influence."""

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
    center: object = None
    plan: object = None
    form: str = "alone"

    @functools.cached_property
    def name(self):
        """The model's description; None where no cache can keep it."""
        return describe(self.model)

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
        """Loss of models side by side, smoothing of its targets, and whether it is a mean; see `_loss_of`."""
        return _loss_of(self.model, "sum" if self.plan is None else "none")

    @functools.cached_property
    def first(self):
        """The dense layer that alone takes the input, directly; None where there is no such layer."""
        return _first(self.model)

    @functools.cached_property
    def spread(self):
        """Standard deviation of a Gaussian start of the first kernel; None where it starts otherwise."""
        return None if self.start is not None else _spread(self.first.kernel_initializer, self.x.shape[1])

    @functools.cached_property
    def inner(self):
        """(R, R) float64 inner products of all rows."""
        wide = self.x.astype(np.float64)
        return wide @ wide.T

    @functools.cached_property
    def basis(self):
        """(R, r) float64 rows in their own span, and r of the rows, of which these make a triangle."""
        lower, order, rank, _ = scipy.linalg.lapack.dpstrf(self.inner, lower=1)  # stops where only rounding is left
        coordinates = np.empty_like(lower)
        coordinates[order - 1] = np.tril(lower)
        return coordinates[:, :rank], order[:rank] - 1

    @functools.cached_property
    def axes(self):
        """(r, d) float64 orthonormal axes of the rows' span."""
        coordinates, pivots = self.basis
        return scipy.linalg.solve_triangular(coordinates[pivots], self.x[pivots].astype(np.float64), lower=True)


def train(model, x, labels, members, *, epochs, batch_size, seed, queries=None, cache=None, progress=True, **options):
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
    rows = x if queries is None else np.vstack([x, queries])
    job = _job(model, rows, labels, members, epochs=epochs, batch_size=batch_size, seed=seed, **options)
    paths = _paths(job, cache)
    stored = {m: results.load_arrays(path) if path else None for m, path in enumerate(paths)}
    missing = [m for m in stored if stored[m] is None]
    bar = f"training {len(missing)} {'private ' if job.plan else ''}models"
    shown = {"desc": bar, "total": len(missing), "disable": not progress or not missing, "file": sys.stdout}
    for m, found in tqdm(_trained(job, missing), **shown):
        if not np.isfinite(found["logits"]).all():
            raise ValueError(f"training diverged: model {m} gives infinite logits; lower the learning rate")
        if paths[m]:
            results.save_arrays(paths[m], **found)
        stored[m] = found
    stacked = {name: np.stack([stored[m][name] for m in stored]) for name in stored[0]}
    further = [stacked[f"further_{i}"] for i in range(len(stacked) - 2)] if "inside" in stacked else None
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


def _job(model, x, labels, members, privacy=None, n=None, fault=None, **options):
    """Check all that a training depends on, and choose its form."""
    x = np.ascontiguousarray(x, K.backend.floatx())
    if options.get("class_weight") is not None:
        options["class_weight"] = np.asarray(options["class_weight"], x.dtype)
    if isinstance(options.get("clustering"), dict):
        options["clustering"] = Clustering(**options["clustering"])  # as profiles have it
    if privacy is None and fault:
        raise ValueError(f"fault='{fault}' is planted in private training; give privacy too")
    if privacy is not None and n is None:
        raise ValueError("a private model needs n, the nominal number of members, since the drawn number is secret")
    plan = privacy and privacy.mechanism(n, options["epochs"], options["batch_size"], fault)
    job = _Job(model, x, np.asarray(labels), np.asarray(members), plan=plan, **options)
    _check(job)
    return dataclasses.replace(job, form=_form(job))


def _check(job):
    x, labels, members, model, k = job.x, job.labels, job.members, job.model, job.n_classes
    if model.optimizer is None:
        raise ValueError("the model is not compiled; call model.compile(optimizer, loss) first")
    if x.ndim != 2 or labels.ndim != 1 or len(x) < len(labels) or members.shape[1:] != labels.shape:
        found = f"x {x.shape}, labels {labels.shape}, members {members.shape}"
        raise ValueError(f"shapes disagree: {found}; they must be (n, d), (n,) and (M, n)")
    membership.check(labels, members, k)
    shape, targets = (*members.shape, k), job.targets
    given, wanted = ([w.shape for w in weights or ()] for weights in (job.start, model.get_weights()))
    wrong = {
        "every model needs at least one member; a row of members has none": not members.any(axis=1).all(),
        "x holds missing or infinite values; see cohorts.load, which refuses them": not np.isfinite(x).all(),
        f"the model takes {model.input_shape[-1]} features, x has {x.shape[1]}": model.input_shape[-1] != x.shape[1],
        f"epochs={job.epochs}, batch_size={job.batch_size}: must be whole numbers of at least 1": job.epochs < 1
        or (job.batch_size or 1) < 1,
        f"class weights for other than {k} classes; give one for each": np.size(job.class_weight) != k
        and job.class_weight is not None,
        f"targets: must be (M, n, k) = {shape}, and rows add up to 1": targets is not None
        and (targets.shape != shape or not np.allclose(targets.sum(axis=2), 1, atol=1e-4)),
        f"start has shapes {given}; the model's are {wanted}": job.start is not None and given != wanted,
    }
    for words, found in wrong.items():
        if found:
            raise ValueError(words)


# In which form a model trains.

_said = set()


def say(line):
    """Print a line, once a process."""
    if line not in _said:
        _said.add(line)
        print(line, flush=True)


def _form(job):
    """Choose "span", "features" or "alone"; what is slower than a reader would expect is said."""
    odd = _odd(job)
    if job.plan is not None:
        _check_private(job, odd)
    elif odd:
        if job.clustering:
            raise ValueError(f"{odd}: clustering is for networks that train side by side; leave it out")
        say(f"{odd} trains as in Keras alone: one model after the other, each about as long as in Keras' own fit")
        return "alone"
    # In the span of its members a kernel stays under SGD, whose step is a mix of their profiles, and decay.
    fits = len(job.x) < job.x.shape[1] and job.center is None and isinstance(job.model.optimizer, OPT.SGD)
    first = job.first
    plain = first is not None and first.trainable and first.kernel_constraint is None
    return "span" if fits and plain and type(first.kernel_regularizer) in (type(None), R.L2) else "features"


def _odd(job):
    """Name what of a model does not train side by side; empty where all does."""
    model, optimizer = job.model, job.model.optimizer
    if type(model) not in GRAPHS or len(model.inputs) != 1 or len(model.outputs) != 1:
        return f"model {type(model).__name__}, no graph of layers with one input and one output,"
    for layer in model.layers:
        if not _side_by_side(layer):
            return f"layer '{layer.name}' ({type(layer).__name__})"
    used = [name for name in WHOLE_KERNEL if optimizer.get_config().get(name)]
    if used or type(optimizer) not in OPTIMIZERS:
        return f"optimizer {type(optimizer).__name__}" + (f" with {', '.join(used)}" if used else "")
    return "" if job.loss else f"loss {getattr(model.loss, '__name__', type(model.loss).__name__)}"


def _side_by_side(layer):
    """Whether a layer is one of those that do, with no setting but those that `layers.stack` takes over."""
    parts = {name: getattr(layer, name, None) for name in PARTS}
    own = [getattr(layer, name, None) for name in ("activation", "kernel_initializer", "bias_initializer")]
    called = [value for node in layer.inbound_nodes for value in node.call_kwargs.values()]
    return (
        type(layer) in LAYERS
        and layer.compute_dtype == K.backend.floatx()
        and all(part is None or type(part) in PARTS[name] for name, part in parts.items())
        and len(layer.losses) == sum(parts[name] is not None for name in ("kernel_regularizer", "bias_regularizer"))
        and getattr(layer, "axis", -1) in (-1, 1)
        and not any(layers.is_own(one) for one in own)
        and all(value is None for value in called)
    )


def _first(model):
    takers = [
        layer for layer in model.layers if not isinstance(layer, L.InputLayer)
        for node in layer.inbound_nodes for given in tf.nest.flatten(node.input_tensors) if given is model.inputs[0]
    ]  # fmt: skip
    alone = len(takers) == 1 and type(takers[0]) is L.Dense and len(takers[0].inbound_nodes) == 1
    return takers[0] if alone else None


def _check_private(job, odd):
    """Refuse what DP-SGD cannot promise for, by name."""
    model, loss = job.model, job.model.loss
    unclipped = [
        f"layer '{layer.name}' (Dense) is used twice or constrained"
        for layer in model.layers
        if type(layer) is L.Dense and (len(layer.inbound_nodes) != 1 or layer.kernel_constraint is not None)
    ]
    twice = job.mixup or job.clustering or job.targets is not None
    reasons = [
        odd and f"{odd}: the gradient of each patient by itself is not known here",
        *unclipped,
        f"optimizer {type(model.optimizer).__name__}" if type(model.optimizer) is not OPT.SGD else "",
        "mixup, clustering and soft targets use a patient twice, or are learned" if twice else "",
        f"loss {type(loss).__name__} mixes the patients of a batch" if hasattr(loss, "epoch") else "",
    ]
    for words in filter(None, reasons):
        raise ValueError(f"{words}; private training takes dense layers and SGD, or leave privacy out")


def _loss_of(model, reduction):
    """A loss of targets (M, b, k), not reduced to a mean; smoothing of its targets; whether it is a mean otherwise.

    None where it would not be the same side by side: a loss of one's own says so by an attribute `side_by_side`.
    """
    given = _loss_object(model)
    config = given.get_config() if isinstance(given, K.losses.Loss) else {}
    usual = type(given) in LOSSES.values() and config.get("ignore_class") is None and config.get("axis", -1) == -1
    if not (usual or getattr(given, "side_by_side", False)) or model.get_compile_config().get("loss_weights"):
        return None
    found = K.losses.CategoricalCrossentropy(config["from_logits"]) if usual else copy.copy(given)
    found.reduction = reduction
    return found, config.get("label_smoothing", 0.0) if usual else 0.0, given.reduction not in ("sum", "none")


def _loss_object(model):
    """The loss of a model; the usual ones, where they were given by name or as functions, as Keras' objects."""
    given = tf.nest.flatten(model.loss)[0]
    name = getattr(given, "__name__", given)
    return LOSSES[name]() if isinstance(name, str) and name in LOSSES else given


def rng_of(seed, m, purpose):
    """Random numbers of one model for one purpose; of the operating system where seed is None."""
    return np.random.Generator(np.random.SFC64(None if seed is None else [seed, m, *np.atleast_1d(purpose)]))


def _number(seed, m):
    """One number for libraries from (seed, m)."""
    return int(np.random.SeedSequence(None if seed is None else [seed, m, 5]).generate_state(1)[0]) >> 1


def _spread(initializer, fan_in):
    """Standard deviation of a Gaussian start around 0, 0 of a start from zeros; None of any other."""
    if isinstance(initializer, K.initializers.Zeros):
        return 0.0
    law = [getattr(initializer, name, None) for name in ("mode", "distribution")]
    return float(np.sqrt(initializer.scale / fan_in)) if law == ["fan_in", "untruncated_normal"] else None


def _gaussian(rng, shape, spread, dtype):
    # SFC64's float32 normals, made outside of the compiled function, are the fastest source that was found.
    return rng.standard_normal(shape, dtype=np.float32).astype(dtype, copy=False) * np.asarray(spread, dtype)


def _start(job, m):
    """Weights that model m starts from; a Gaussian first kernel in the span as rows of the basis, with the same law."""
    if job.start is not None:
        return [np.asarray(w, job.x.dtype) for w in job.start]
    drawn = []
    for level, layer in enumerate(layer for layer in job.model.layers if layer.weights):
        # A stream for each layer, so that the others do not depend on how the first is drawn.
        rng = rng_of(job.seed, m, (10, level))
        for part in ("kernel", "bias") if layer.use_bias else ("kernel",):
            initializer, shape = getattr(layer, f"{part}_initializer"), getattr(layer, part).shape
            if job.form == "span" and not drawn and job.spread is not None:
                shape = (job.basis[0].shape[1], shape[1])
                drawn.append(_gaussian(rng, shape, job.spread, job.x.dtype))
                continue
            config = initializer.get_config()
            if config.get("seed", 0) is None:
                initializer = type(initializer).from_config(config | {"seed": int(rng.integers(2**31))})
            drawn.append(np.asarray(initializer(shape, K.backend.floatx())))
    return drawn


def describe(model):
    """Name a compiled model by all that its training depends on, whatever its layers happen to be called.

    Parameters
    ----------
    model : tf.keras.Model

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
    parts = [part for layer in every_layer for part in (layer, *vars(layer).values()) if callable(part)]
    parts += [model.optimizer, getattr(model.optimizer, "_learning_rate", None), *tf.nest.flatten(model.loss)]
    if any(layers.is_own(part) for part in parts):
        return None
    compiled = {name: value for name, value in model.get_compile_config().items() if "metrics" not in name}
    text = json.dumps([json.loads(model.to_json()), compiled], sort_keys=True, default=float)
    for place, layer in enumerate(every_layer):  # named where it stands, and where others take what it gives
        text = re.sub(rf'("name": |\[)"{re.escape(layer.name)}"', rf'\1"layer {place}"', text)
    return text


def _paths(job, cache):
    """Where each finished model is kept: a name made of all that it depends on."""
    nowhere = [None] * len(job.members)
    if cache is None or job.seed is None:
        return nowhere
    if job.name is None:
        say("A model with code of your own is not kept in the cache, where a change of that code would not be seen")
        return nowhere
    numbers = [job.epochs, job.batch_size, job.mixup, job.most, job.form, str(job.clustering), str(job.plan)]
    code = [K.backend.floatx(), tf.__version__, results.code_digest(*CODE)]
    arrays = {"start": job.start, "weights": job.class_weight, "center": job.center and vars(job.center).values()}
    given = [part for name, values in arrays.items() if values is not None for part in (name, *values)]
    common = results.digest(job.name, job.x, job.labels, numbers, code, *[np.asarray(part) for part in given])
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


def _steps(job, m, places, masks_of, seed=None):
    """All that the steps of model m need, with a leading axis of steps; what only fills a row up weighs nothing.

    `places` says where the members are among the rows that the steps draw from.
    """
    who, dtype = np.flatnonzero(job.members[m]), job.x.dtype
    rows, sizes = _batches(job, m, len(who), seed)
    counts = np.arange(rows.shape[1]) < sizes[:, None]
    patients, shares, rows = who[rows], np.ones((*rows.shape, 1), dtype), rows[..., None]
    soft = np.eye(job.n_classes)[job.labels] if job.targets is None else job.targets[m]
    targets = soft.astype(dtype)[patients]
    weights = counts.astype(dtype)
    if job.class_weight is not None:
        weights = weights * (targets @ job.class_weight)
    if job.mixup:
        rng = np.random.default_rng([_number(job.seed, m), 23])
        own = rng.beta(job.mixup, job.mixup, len(rows)).astype(dtype)[:, None, None]
        other = np.tile(np.arange(rows.shape[1]), (len(rows), 1))
        for partner, size in zip(other, sizes, strict=True):
            partner[:size] = rng.permutation(size)
        rows = np.concatenate([rows, np.take_along_axis(rows, other[..., None], 1)], axis=2)
        shares = np.concatenate([own * shares, (1 - own) * shares], axis=2)
        targets = own * targets + (1 - own) * np.take_along_axis(targets, other[..., None], 1)
    rng, epochs = rng_of(job.seed, m, 15), np.arange(len(rows)) // max(1, len(rows) // job.epochs)
    masks = [rng.random((*counts.shape, *shape), dtype=np.float32) >= rate for shape, rate in masks_of]
    found = {"rows": places[rows].astype(np.int32), "shares": shares, "targets": targets, "masks": masks}
    return found | {"weights": weights, "sizes": sizes, "epoch": epochs.astype(np.int32)}


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
    table, shift = job.x, None
    if job.center is not None:
        shift = job.center.offset(job.x[who], job.plan, rng_of(job.seed, m, 13)).astype(job.x.dtype)
        table = job.x - shift
    return _Space(table, who, _start(job, m), lambda kernel: job.x @ kernel, lambda kernel: kernel, shift)


def _kernel_in_basis(job, m):
    """The start of model m: its first kernel in the basis, the same on features where nobody reaches, further weights.

    On features it is a function, since few models are asked for it.
    """
    begun, *further = _start(job, m)
    if job.spread is None:
        return job.axes @ begun, lambda: begun, further
    shape = job.x.shape[1], begun.shape[1]
    return begun, lambda: _gaussian(rng_of(job.seed, m, 11), shape, job.spread, job.x.dtype), further


def _on_features(job, in_basis, free):
    """A kernel on features: given in the basis, and `free` outside of the span of the rows."""
    return (free + job.axes.T @ (in_basis - job.axes @ free)).astype(job.x.dtype)


def _in_span(job, m, who):
    """Inner products with the members, and what the start gives each row."""
    dtype, filled = job.x.dtype, np.resize(who, job.most)  # who only pads is never drawn, and keeps a coefficient of 0
    in_basis, free, further = _kernel_in_basis(job, m)
    begun, inner = (job.basis[0] @ in_basis).astype(dtype), job.inner[:, filled].astype(dtype)

    def on_features(kernel, scale):
        return scale * _on_features(job, in_basis, free()) + job.x[who].T @ kernel[: len(who)]

    start = [np.zeros((job.most, begun.shape[1]), dtype), *further]
    table = np.concatenate([inner[filled], begun[filled]], axis=1)
    inside = lambda kernel, scale: inner @ kernel + scale * begun  # noqa: E731
    return _Space(table, np.arange(len(who)), start, inside, on_features)


def _in_members_span(job, m, who):
    """Coordinates of the members in their own span: noise is as isotropic there as on features, and there is less.

    What happens outside of that span cannot affect training. It is drawn at the end, with the variance that start and
    noise would have gathered there; without it the weights would show who spans them.
    """
    coordinates, dtype, rng = job.basis[0], job.x.dtype, rng_of(job.seed, m, 17)
    order, rows = np.r_[who, np.setdiff1d(np.arange(len(job.x)), who)], np.empty_like(coordinates)
    # A rotation of the basis with the members first: their coordinates fill the first columns alone.
    turn, triangle = np.linalg.qr(coordinates[order].T)
    rows[order] = triangle.T
    rank = min(len(who), rows.shape[1])
    begun, free, further = _kernel_in_basis(job, m)
    begun = begun if job.spread is not None else turn.T @ begun  # a Gaussian start looks the same from everywhere
    kept, gathered = outside_span(job.model, job.plan)
    outside = kept * begun[rank:] + gathered * rng.standard_normal(begun[rank:].shape)

    def whole(kernel):
        return np.vstack([kernel[:rank].astype(np.float64), outside])

    def on_features(kernel):
        beyond = kept * free() + gathered * rng.standard_normal((job.x.shape[1], kernel.shape[1]))
        return _on_features(job, turn @ whole(kernel), beyond)

    table = np.pad(rows[who, :rank], ((0, job.most - len(who)), (0, job.most - rank))).astype(dtype)
    start = [np.pad(begun[:rank], ((0, job.most - rank), (0, 0))).astype(dtype), *further]
    inside = lambda kernel: (rows @ whole(kernel)).astype(dtype)  # noqa: E731
    return _Space(table, np.arange(len(who)), start, inside, on_features)


def outside_span(model, plan):
    """What private training on features leaves in a first-layer weight outside of the members' span.

    There the gradients are zero, so start and noise go through a linear recursion of rate, momentum and decay; a unit
    impulse of each tells how much of it is left at the end.

    Parameters
    ----------
    model : tf.keras.Model
        Compiled with SGD.
    plan : genlib.privacy.Mechanism

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
    # Column 0: the start; column 1 + t: the noise of step t.
    weight, speed = np.eye(1, plan.steps + 1)[0], np.zeros(plan.steps + 1)
    for step in range(plan.steps):
        gradient = 2 * decay * weight + np.eye(1, plan.steps + 1, step + 1)[0]
        speed = momentum * speed - rate * gradient
        weight = weight + (momentum * speed - rate * gradient if optimizer["nesterov"] else speed)
    return float(weight[0]), float(plan.noise / plan.divisor * np.sqrt((weight[1:] ** 2).sum()))


# Side by side.

_held = threading.local()  # compiled banks, each thread its own: a study trains one network several times


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
    if job.form == "alone":
        yield from _train_alone(job, missing, weights)
        return
    size = 1 if weights else _chunk_size(job)
    pieces = [missing[i : i + size] for i in range(0, len(missing), size)]
    # The compiled training leaves Python's lock alone, so threads are enough to use every core. NumPy's own threads
    # would be in their way, and share out a product as they are free: not the same bits each time.
    with threadpoolctl.threadpool_limits(1):
        # Once, before threads ask for it.
        made = [job.name, job.loss, *([job.spread, job.basis] if job.form == "span" else [])]
        made += [job.axes] if job.form == "span" and (weights or job.spread is None) else []
        for found in _workers(threads()).map(lambda piece: _train_chunk(job, piece, size, weights), pieces):
            yield from found


def _bank(job, size):
    """A compiled bank for this job; each thread keeps the last two."""
    plan, width = job.plan, job.most if job.form == "span" else job.x.shape[1]
    kind, promise = (layers.Bank, ()) if plan is None else (layers.PrivateBank, (plan.clip_norm, plan.divisor))
    key = (job.name, job.form, size, width, promise, plan and plan.same_mask, K.backend.floatx())
    held = vars(_held).setdefault("banks", {})
    bank = held.pop(key, None)
    if bank is None:
        with layers.TRACING:
            bank = _build(job, size, width, kind)
    if plan is not None:
        bank.clip_norm, bank.divisor, bank.same_mask = *promise, plan.same_mask
    if job.name:
        held[key] = bank
    for oldest in list(held)[:-2]:
        del held[oldest]
    return bank


def _build(job, size, width, kind):
    """Stack the model, and compile it with a copy of its own optimizer."""
    in_span, config = job.form == "span" and job.plan is None, job.model.optimizer.get_config()
    bank = layers.stack(job.model, size, width + in_span * job.first.units if in_span else width, in_span, kind)
    plain = type(job.model.optimizer) is OPT.SGD and not config["momentum"]
    bank.compile((layers.SGD if plain else type(job.model.optimizer)).from_config(config), job.loss[0])
    for layer in bank.dense:
        if isinstance(layer.kernel.constraint, networks.Sparse):
            layer.kernel.constraint.bind(bank.optimizer)
    return bank


def _masks_of(model, n_axes):
    """Shapes and rates of the masks of a model's dropout layers, behind the axes of models and patients."""
    dropouts = [layer for layer in model.layers if isinstance(layer, layers.Dropout)]
    return [(layer.shape[n_axes:], float(layer.rate)) for layer in dropouts]


def _train_chunk(job, models, size, weights):
    """Train a few models in one call, from the first step to the last."""
    bank, filled = _bank(job, size), list(models) + [models[-1]] * (size - len(models))
    spaces = [_space(job, m) for m in filled]
    shared = spaces[0].table is job.x
    table = tf.constant(job.x if shared else np.stack([space.table for space in spaces]))
    masks_of = _masks_of(bank, 2)
    steps = [_steps(job, m, space.places, masks_of) for m, space in zip(filled, spaces, strict=True)]
    bank.begin([space.start for space in spaces])
    if job.plan is not None:
        _run_private(job, bank, table, _stacked(job, steps), filled)
    else:
        bank.compiled("train_step", (table, _stacked(job, steps), np.int32(len(steps[0]["rows"]))))
    if job.clustering:
        _cluster(job, bank, filled, spaces, table)
    if job.center:  # learned on shifted features: the bias takes the shift
        first, shifts = bank.dense[0], np.stack([space.shift for space in spaces])
        first.bias.assign_sub(tf.matmul(shifts[:, None], first.kernel))
    answers, _, inside = _answers(job, bank, spaces)
    for place, (m, space) in enumerate(zip(models, spaces, strict=False)):
        kept = bank.weights_of(place)
        products = None if inside is None else inside[place]
        if weights and job.first is not None:
            kept[_place(job)] = space.on_features(*(w.numpy()[place] for w in bank.dense[0].first_weights))
        yield m, _found(job, answers[place], products, kept, weights)


def _stacked(job, parts):
    """Stack what each model's steps need, (steps, M, ...); a wider Poisson batch than usual widens all."""

    def stack(*arrays):
        shape = np.max([array.shape for array in arrays], axis=0)
        pads = [[(0, to - at) for at, to in zip(array.shape, shape, strict=True)] for array in arrays]
        return np.stack([np.pad(array, pad) for array, pad in zip(arrays, pads, strict=True)], axis=1)

    steps, smoothing = tf.nest.map_structure(stack, *parts), job.loss[1]
    sizes = np.maximum(steps.pop("sizes"), 1)[..., None].astype(job.x.dtype)
    if job.loss[2] and job.plan is None:
        steps["weights"] = steps["weights"] / sizes
    steps["targets"] = (1 - smoothing) * steps["targets"] + smoothing / job.n_classes
    return steps


def _run_private(job, bank, table, steps, models):
    """DP-SGD with its noise as data, a part of the steps at a time."""
    shapes, dtype = [variable.shape[1:] for variable in bank.own], job.x.dtype
    cuts = np.cumsum([int(np.prod(shape)) for shape in shapes])
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


def _cluster(job, bank, models, spaces, table):
    """DeepType's second phase: training goes on, and draws what the last layer works on to the centers of clusters."""
    plan, again = job.clustering, dataclasses.replace(job, epochs=job.clustering.epochs)
    for turn in range(plan.rounds):
        parts = []
        for m, space, z in zip(models, spaces, _answers(job, bank, spaces)[1], strict=True):
            who, number = np.flatnonzero(job.members[m]), _number(job.seed, m)
            found = KMeans(min(plan.n_clusters, len(who)), n_init=1, random_state=(number + turn) % 2**31).fit(z[who])
            step = _steps(again, m, space.places, _masks_of(bank, 2), [number, 25, turn])
            members = np.searchsorted(space.places, step["rows"][..., 0])
            step["centers"] = found.cluster_centers_[found.predict(z[who])][members].astype(job.x.dtype)
            parts.append(step)
        steps = _stacked(job, parts)
        steps["pull"] = plan.weight * steps["weights"]
        bank.compiled("train_step", (table, steps, np.int32(len(steps["rows"]))))


def _answers(job, bank, spaces):
    """What models answer about all rows, what their last layers work on, and products with the first kernel."""
    if job.first is None:
        return *(found.numpy() for found in bank.compiled("read", job.x[None])), None
    kernels = zip(*(weight.numpy() for weight in bank.dense[0].first_weights), strict=True)
    inside = np.stack([space.inside(*of) for space, of in zip(spaces, kernels, strict=True)])
    answers, last = bank.compiled("read", tf.zeros((1, 1, 1), inside.dtype), inside)
    return answers.numpy(), last.numpy(), inside


def _place(job):
    """Where among all weights the first kernel is."""
    return [value is job.first.kernel for value in job.model.weights].index(True)


def _found(job, answers, inside, kept, weights):
    """What is kept of a model: logits, products with the first kernel and further weights; all weights if asked for."""
    last = getattr(job.model, "layers", [None])[-1]
    if isinstance(last, L.Softmax) or getattr(last, "activation", None) is K.activations.softmax:
        answers = np.log(np.maximum(answers, np.finfo(answers.dtype).tiny))
    found = {"logits": answers}
    if inside is not None:
        later = [value for at, value in enumerate(kept) if at != _place(job)]
        found |= {"inside": inside} | {f"further_{i}": value for i, value in enumerate(later)}
    return found | ({f"weights_{i}": value for i, value in enumerate(kept)} if weights else {})


# One at a time.


def _train_alone(job, models, weights):
    """Ordinary Keras models, one after the other, by Keras' own `train_step`; it is traced once, and starts anew."""
    blueprint, base = job.model, _number(job.seed, 0)
    model, loss = clone(blueprint, base, _with_masks), _loss_object(blueprint)
    sparse = isinstance(loss, K.losses.SparseCategoricalCrossentropy)
    if sparse and (job.mixup or job.targets is not None):
        loss, sparse = K.losses.CategoricalCrossentropy(loss.get_config()["from_logits"]), False
    model.compile(_copy(blueprint.optimizer), loss, loss_weights=blueprint.get_compile_config().get("loss_weights"))

    @tf.function(reduce_retracing=True)
    def one_step(x, targets, step):
        layers.hand_out(model, loss, step)
        model.train_step((x, targets) if job.class_weight is None else (x, targets, step["weights"]))

    x = tf.constant(job.x)
    for m in models:
        model.set_weights(job.start or clone(blueprint, _number(job.seed, m)).get_weights())
        fresh = _memory(_copy(blueprint.optimizer), model)
        for used, begun in zip(_memory(model.optimizer, model), fresh, strict=True):
            used.assign(begun)
        K.utils.set_random_seed(base)  # what layers draw by themselves begins anew too
        steps = _steps(job, m, np.flatnonzero(job.members[m]), _masks_of(model, 1))
        sizes, epochs = steps.pop("sizes"), steps.pop("epoch")
        for t, size in enumerate(sizes):
            step = tf.nest.map_structure(lambda values: tf.constant(values[t, :size]), steps)  # noqa: B023
            targets = tf.argmax(step["targets"], axis=-1) if sparse else step["targets"]
            one_step(layers.mix(x, step["rows"], step["shares"]), targets, step | {"epoch": epochs[t]})
        if hasattr(model.optimizer, "finalize_variable_values"):
            model.optimizer.finalize_variable_values(model.trainable_variables)
        kept = model.get_weights()
        inside = None if job.first is None else job.x @ kept[_place(job)]
        yield m, _found(job, model(job.x, training=False).numpy(), inside, kept, weights)


def _copy(optimizer):
    return type(optimizer).from_config(optimizer.get_config())


def _memory(optimizer, model):
    """All that an optimizer remembers between two steps of a model."""
    prepare = optimizer.build if hasattr(optimizer, "build") else optimizer._create_all_weights  # of Keras' former kind
    prepare(model.trainable_variables)
    return optimizer.variables()


def _with_masks(layer):
    masked = type(layer) is L.Dropout and layer.noise_shape is None
    return layers.Dropout(layer.rate, name=layer.name) if masked else layers.again(layer)


def clone(model, seed, copy_of=layers.again):
    """A Keras model like this one whose start follows from a number, as does what its layers draw."""
    K.utils.set_random_seed(seed)
    if type(model) in GRAPHS:
        return K.models.clone_model(model, clone_function=copy_of)
    fresh = K.models.clone_model(model)
    fresh.build((None, model.input_shape[-1]))
    return fresh


def _model_again(job, m):
    """Train model m once more, as an ordinary Keras model, which loads without genlib."""
    if job.plan is not None and job.seed is not None:
        raise ValueError(
            "the noise of a bank's private models follows from its recorded seed, so they are not for release; train "
            "one with privacy.release"
        )
    ((_, found),) = _trained(job, [m], weights=True)

    def plain(layer):
        sparse = isinstance(getattr(layer, "kernel_constraint", None), networks.Sparse)
        return layers.again(layer, layer.get_config() | ({"kernel_constraint": None} if sparse else {}))

    model = clone(job.model, 0, plain)
    model.set_weights([found[f"weights_{i}"] for i in range(len(model.get_weights()))])
    return model
