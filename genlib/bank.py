"""Many models at once: each trains on its own members and says what it thinks of every patient.

`train` takes an ordinary compiled Keras model and trains M of it. A bank is all that attacks and metrics ever see:
``logits[m, i, :]`` and ``members[m, i]``, and of the weights ``inside[m, i, :]`` and ``further``.

With fewer patients than genes, SGD moves a first dense layer within the span of its members alone. So it trains in
coordinates of that span, at a cost that does not depend on the genes, with DP-SGD and without. It is the same training
in other coordinates; the tests hold it to plain Keras.
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
from genlib.networks import refuse

K = tf.keras
L, R, C, OPT = K.layers, K.regularizers, K.constraints, K.optimizers
try:
    # Models go side by side, a few a thread; one product spread over threads is slower, and not repeatable bit by bit.
    tf.config.threading.set_intra_op_parallelism_threads(1)
except RuntimeError:
    print("TensorFlow had been started before genlib.bank was imported: the bank is slower, and last bits may differ")

# What a model's logits depend on beside its inputs; a change of this code makes the cache start afresh.
CODE = ("bank", "layers", "networks", "defenses")
CHUNK = 4  # models of one call on a processor: more of them do not fit beside a core
LITTLE = 1e10  # products of weights and patients that take no longer than another thread's bank does to compile
MEMORY = 2**29  # bytes that the models of one call may take on a processor, 2**33 on a GPU
PADDING_QUANTILE = 0.999999  # Poisson batches are padded to this quantile of their size

# What trains side by side, exactly as it would alone: nothing in it looks at more than one patient, or at a whole
# kernel, of which there are several. Everything else trains as Keras trains it, one model after the other.
GRAPHS = (K.Sequential, K.Sequential.__bases__[0])
LAYERS = (
    L.InputLayer, L.Dense, L.Dropout, L.Activation, L.ReLU, L.LeakyReLU, L.ELU, L.Softmax, L.Add, L.Concatenate,
)  # fmt: skip
BY_ENTRY = (type(None), R.L1, R.L2, R.L1L2, C.NonNeg, networks.Sparse)
OPTIMIZERS = (OPT.SGD, OPT.Adam)
PARTS = ("kernel_regularizer", "bias_regularizer", "kernel_constraint", "bias_constraint")
WHOLE_KERNEL = ("clipnorm", "clipvalue", "global_clipnorm", "weight_decay", "use_ema")
LOSSES = (K.losses.SparseCategoricalCrossentropy, K.losses.CategoricalCrossentropy)


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
    clustering: dict | None = None
    center: object = None
    remainder: bool = False
    average: float = 0.0
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
    def steps(self):
        """Steps of one training, those of clustering included."""
        further = self.clustering["rounds"] * self.clustering["epochs"] if self.clustering else 0
        per_epoch = -(-self.most // (self.batch_size or self.most))
        return self.plan.steps if self.plan else (self.epochs + further) * per_epoch

    @functools.cached_property
    def loss(self):
        """A loss of targets (M, b, k), not reduced to a mean, and whether it is a mean otherwise.

        None where it would not be the same side by side: a loss of one's own says so by an attribute `side_by_side`.
        """
        given = _loss_object(self.model)
        config = given.get_config() if isinstance(given, K.losses.Loss) else {}
        usual = type(given) in LOSSES and config.get("ignore_class") is None and config.get("axis", -1) == -1
        weighted = self.model.get_compile_config().get("loss_weights")
        if weighted or not (usual or getattr(given, "side_by_side", False)):
            return None
        kept = [config[name] for name in ("from_logits", "label_smoothing") if name in config]
        found = K.losses.CategoricalCrossentropy(*kept) if usual else copy.copy(given)
        found.reduction = "sum" if self.plan is None else "none"
        return found, given.reduction not in ("sum", "none")

    @functools.cached_property
    def first(self):
        """The dense layer that alone takes the input, directly; None where there is no such layer."""
        nodes = self.model.inputs[0].node.layer.outbound_nodes
        takers = [node.outbound_layer for node in nodes if node.outbound_layer in self.model.layers]
        alone = len(takers) == 1 and type(takers[0]) is L.Dense and len(takers[0].inbound_nodes) == 1
        return takers[0] if alone else None

    @functools.cached_property
    def spread(self):
        """Standard deviation of a Gaussian start of the first kernel around 0; None where it starts otherwise."""
        initializer = self.first.kernel_initializer
        law = [getattr(initializer, name, None) for name in ("mode", "distribution")]
        if self.start is not None or law != ["fan_in", "untruncated_normal"]:
            return None
        return float(np.sqrt(initializer.scale / self.x.shape[1]))

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

    @functools.cached_property
    def outside(self):
        """What training on features leaves outside of the members' span: a share of the start, and a spread of noise.

        There the gradients are zero, so start and noise go through a linear recursion of rate, momentum, decay and
        averaging; a unit impulse of each tells how much of it is left at the end.
        """
        optimizer, decay = self.model.optimizer, float(getattr(self.first.kernel_regularizer, "l2", 0.0))
        if self.plan is None and not decay:
            return 1.0, 0.0
        given, momentum = optimizer._learning_rate, float(np.float32(optimizer.momentum))  # as Keras casts it
        rates = [float(given(t)) for t in range(self.steps)] if callable(given) else [float(given)] * self.steps
        # Column 0: the start; column 1 + t: the noise of step t.
        columns, averaged = 1 + self.steps * (self.plan is not None), max(1, round(self.average * self.steps))
        weight, speed, total = np.eye(1, columns)[0], 0.0, 0.0
        for step, rate in enumerate(rates):
            moved = rate * (2 * decay * weight + np.eye(1, columns, step + 1)[0])
            speed = momentum * speed - moved
            weight = weight + (momentum * speed - moved if optimizer.nesterov else speed)
            total = total + weight / averaged * (step >= self.steps - averaged)
        noise = self.plan.noise / self.plan.divisor if self.plan else 0.0
        return float(total[0]), float(noise * np.sqrt((total[1:] ** 2).sum()))


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
        Where models train one after the other, the generators of Python, NumPy and TensorFlow are seeded by it too.
    queries : numpy.ndarray, optional
        (q, d) further rows whose logits are wanted, as second samples of the patients.
    remainder : bool
        True: batches are full, and what remains of an epoch makes a last one, as in Keras' `fit`; all models then need
        as many members.
    targets : numpy.ndarray, optional
        (M, n, k) soft targets to learn from instead of the labels; rows add up to 1.
    mixup : float
        Parameter of the beta distribution by which the patients of a batch are mixed in pairs; 0 for none.
    class_weight : sequence of float, optional
        (k,) weight of each class's loss.
    start : list of numpy.ndarray, optional
        Weights on features, in Keras' order, that all models start from.
    clustering : dict, optional
        DeepType's second phase: `rounds` of K-means with `n_clusters` on what the last layer works on, each followed by
        `epochs` that draw every patient to its center, with a `weight` relative to the loss.
    privacy : genlib.privacy.Privacy, optional
        Train by DP-SGD under this guarantee.
    n : int, optional
        Nominal number of members of private models: sampling, noise and rate follow it, not the members drawn.
    center : bool or genlib.privacy.Center, optional
        True: each model learns on profiles less the mean of its members, and its first bias takes the shift, so that it
        is a model of the profiles as they are. Genes whose levels differ would slow SGD down. Private models with a
        noisy mean are given a `Center`.
    average : float
        Share of the last private steps whose weights are averaged.
    fault : callable, optional
        One of `genlib.audit.FAULTS`: breaks private training on purpose, to show that an audit notices.
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
        diverged = not np.isfinite(found["logits"]).all()
        refuse(diverged, f"training diverged: model {m} gives infinite logits; lower the learning rate")
        if paths[m]:
            results.save_arrays(paths[m], **found)
        stored[m] = found
    stacked = {name: np.stack([stored[m][name] for m in stored]) for name in stored[0]}
    further = [stacked[f"weights_{i}"] for i in range(1, len(stacked) - 1)] if "inside" in stacked else None
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
    only = {"fault": fault, "average": options.get("average")}
    asked = [name for name, value in only.items() if value]
    refuse(privacy is None and asked, f"{', '.join(asked)}: for private training alone; give privacy too")
    nameless = privacy is not None and n is None
    refuse(nameless, "a private model needs n, the nominal number of members, since the drawn number is secret")
    plan = privacy and privacy.mechanism(n, options["epochs"], options["batch_size"], fault)
    job = _Job(model, x, np.asarray(labels), np.asarray(members), plan=plan, **options)
    _check(job)
    return dataclasses.replace(job, form=_form(job))


def _check(job):
    x, labels, members, model, k = job.x, job.labels, job.members, job.model, job.model.output_shape[-1]
    refuse(model.optimizer is None, "the model is not compiled; call model.compile(optimizer, loss) first")
    found, width = f"x {x.shape}, labels {labels.shape}, members {members.shape}", model.input_shape[-1]
    fit = x.shape[1:] == (width,) and labels.shape == (len(labels),) == members.shape[1:] and len(x) >= len(labels)
    refuse(not fit, f"shapes disagree: {found}; they must be (n, {width}) as the model takes, (n,) and (M, n)")
    membership.check(labels, members, k)
    refuse(not members.any(axis=1).all(), "every model needs at least one member; a row of members has none")
    refuse(not np.isfinite(x).all(), "x holds missing or infinite values; see cohorts.load, which refuses them")
    found = f"epochs={job.epochs}, batch_size={job.batch_size}"
    refuse(job.epochs < 1 or (job.batch_size or 1) < 1, f"{found}: must be whole numbers of at least 1")
    uneven = job.remainder and (job.plan or not job.batch_size or np.ptp(members.sum(axis=1)))
    refuse(uneven, "remainder needs a batch_size, as many members in all models, and no privacy")
    weights, soft, shape = job.class_weight, job.targets, (*members.shape, k)
    refuse(weights is not None and weights.shape != (k,), f"class weights for {k} classes: give one for each")
    wrong = soft is not None and (soft.shape != shape or not np.allclose(soft.sum(axis=2), 1, atol=1e-4))
    refuse(wrong, f"targets {np.shape(soft)}: must be (M, n, k) = {shape}, and rows add up to 1")
    given, wanted = ([w.shape for w in weights or ()] for weights in (job.start, model.get_weights()))
    refuse(job.start is not None and given != wanted, f"start has shapes {given}; the model's are {wanted}")


# In which form a model trains.

say = functools.cache(functools.partial(print, flush=True))  # once a process


def _form(job):
    """Choose "span", "features" or "alone"; what is slower than a reader would expect is said."""
    odd = _odd(job)
    uncentered = odd or job.clustering or job.first is None or not job.first.use_bias
    refuse(
        job.center is True and job.plan, "center=True looks at the members, which a promise must pay for: see Center"
    )
    refuse(job.center and uncentered, "center is for networks with a dense first layer and a bias, without clustering")
    if job.plan is not None:
        _check_private(job, odd)
    elif odd:
        refuse(job.clustering, f"{odd}: clustering is for networks that train side by side; leave it out")
        say(f"{odd} trains as in Keras alone: one model after the other, each about as long as in Keras' own fit")
        return "alone"
    # In the span of its members a kernel stays under SGD, whose step is a mix of their profiles, and decay.
    fewer = len(job.x) < job.x.shape[1] and job.x.any()
    fits = fewer and not (job.center and job.plan) and isinstance(job.model.optimizer, OPT.SGD)
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
    unknown = [getattr(layer, "activity_regularizer", None), getattr(layer, "noise_shape", None), *called]
    return (
        type(layer) in LAYERS
        and layer.compute_dtype == K.backend.floatx()
        and getattr(layer, "axis", -1) == -1
        and all(type(part) in BY_ENTRY for part in parts.values())
        and all(value is None for value in unknown)
        and not any(layers.is_own(one) for one in own)
        and len(layer.losses) == sum(part is not None for name, part in parts.items() if "regularizer" in name)
    )


def _check_private(job, odd):
    """Refuse what DP-SGD cannot promise for, by name."""
    way_out = "private training takes dense layers and SGD, or leave privacy out"
    refuse(odd, f"{odd}: the gradient of each patient by itself is not known here; {way_out}")
    for layer in job.model.layers:
        shared = type(layer) is L.Dense and (len(layer.inbound_nodes) != 1 or layer.kernel_constraint is not None)
        refuse(shared, f"layer '{layer.name}' (Dense) is used twice or constrained; {way_out}")
    named = type(job.model.optimizer).__name__
    refuse(named != "SGD", f"optimizer {named}; {way_out}")
    twice = job.mixup or job.clustering or job.targets is not None
    refuse(twice, f"mixup, clustering and soft targets use a patient twice, or are learned; {way_out}")
    loss = type(job.loss[0])
    mixes = loss.__call__ is not K.losses.Loss.__call__
    refuse(mixes, f"loss {loss.__name__} mixes the patients of a batch; {way_out}")


def _loss_object(model):
    """The loss of a model; the usual ones, where they were given by name or as functions, as Keras' objects."""
    given = K.losses.get(tf.nest.flatten(model.loss)[0])
    return next((kind() for kind in LOSSES if kind().fn is given), given)


def rng_of(seed, m, purpose):
    """Random numbers of one model for one purpose; of the operating system where seed is None."""
    return np.random.Generator(np.random.SFC64(None if seed is None else [seed, m, *np.atleast_1d(purpose)]))


def _number(seed, m):
    """One number for libraries from (seed, m)."""
    return int(np.random.SeedSequence(None if seed is None else [seed, m, 5]).generate_state(1)[0]) >> 1


def _gaussian(rng, shape, spread, dtype):
    # SFC64's float32 normals, made outside of the compiled function, are the fastest source that was found.
    return rng.standard_normal(shape, dtype=np.float32).astype(dtype, copy=False) * np.asarray(spread, dtype)


def _start(job, m):
    """Weights that model m starts from; a Gaussian first kernel in the span as rows of the basis, with the same law."""
    if job.start is not None:
        return [np.asarray(w, job.x.dtype) for w in job.start]
    drawn = []
    for layer in job.model.layers:
        for part in [one for one in ("kernel", "bias") if getattr(layer, one, None) is not None]:
            # A stream for each weight, so that the others do not depend on how the first is drawn.
            rng, shape = rng_of(job.seed, m, (10, len(drawn))), getattr(layer, part).shape
            if job.form == "span" and not drawn and job.spread is not None:
                shape = (job.basis[0].shape[1], shape[1])
                drawn.append(_gaussian(rng, shape, job.spread, job.x.dtype))
            else:
                initializer = getattr(layer, f"{part}_initializer")
                config = initializer.get_config()
                config |= {"seed": int(rng.integers(2**31))} if "seed" in config else {}
                drawn.append(np.asarray(type(initializer).from_config(config)(shape, K.backend.floatx())))
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
    # A model that was fitted or asked holds what Keras compiled for that.
    held = [part for layer in every_layer for name, part in vars(layer).items() if not name.endswith("_function")]
    parts = [*every_layer, *held]
    parts += [getattr(model.optimizer, "_learning_rate", None), *tf.nest.flatten(model.loss)]
    if any(layers.is_own(part) for part in [model.optimizer, *filter(callable, parts)]):
        return None
    compiled = {name: value for name, value in model.get_compile_config().items() if "metrics" not in name}
    text = json.dumps([json.loads(model.to_json()), compiled], sort_keys=True, default=float)
    for place, layer in enumerate(every_layer):  # named where it stands, and where others take what it gives
        text = re.sub(rf'("name": |\[)"{re.escape(layer.name)}"', rf'\1"layer {place}"', text)
    return text


def _paths(job, cache):
    """Where each finished model is kept: a name made of all that it depends on."""
    if cache is not None and job.name is None:
        say("A model with code of your own is not kept in the cache, where a change of that code would not be seen")
    if None in (cache, job.seed, job.name):
        return [None] * len(job.members)
    shared = dataclasses.asdict(dataclasses.replace(job, model=None, members=None, targets=None, seed=None))
    text = json.dumps(shared, sort_keys=True, default=lambda array: results.digest(np.asarray(array)))
    common = results.digest(job.name, text, job.most, K.backend.floatx(), tf.__version__, results.code_digest(*CODE))
    taught = ["labels"] * len(job.members) if job.targets is None else job.targets
    keys = [results.digest(common, job.members[m], [job.seed, m], taught[m]) for m in range(len(job.members))]
    return [pathlib.Path(cache) / f"{key[:32]}.npz" for key in keys]


# What is random in a training, drawn as data.


def draw_batches(n, epochs, per_epoch, seed, width=0):
    """Draw who is in which step: every member once an epoch, in an order of its own.

    (Keras leaves a last batch of what remains: with 385 members and batches of 32 one patient makes a step of full
    length.)

    Parameters
    ----------
    n : int
        Number of members.
    epochs : int
    per_epoch : int or sequence of int
        Batches of nearly equal size in each epoch, or the places where it is cut.
    seed : sequence of int, or None
    width : int
        Least width of the rows; what only fills them up is 0.

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
    return _padded([part for _ in range(epochs) for part in np.array_split(rng.permutation(n), per_epoch)], width)


def _padded(parts, width):
    sizes = np.array([len(part) for part in parts], np.int32)
    rows = np.zeros((len(parts), max(width, sizes.max())), np.int32)
    for row, part in zip(rows, parts, strict=True):
        row[: len(part)] = part
    return rows, sizes


def draw_poisson(n, plan, rng, width=0):
    """Draw batches by Poisson sampling: every member is in every batch with the plan's rate, by itself.

    Parameters
    ----------
    n : int
        Number of members.
    plan : genlib.privacy.Mechanism
        Its rate and steps; one whose `fresh_batches` is False repeats the first batch (a planted fault).
    rng : numpy.random.Generator
    width : int
        As in `draw_batches`.

    Returns
    -------
    rows, sizes : numpy.ndarray
        As `draw_batches`; none is cut, and a size of 0 is an empty batch.

    Examples
    --------
    >>> from genlib.privacy import Mechanism
    >>> rows, sizes = draw_poisson(1000, Mechanism(1.0, 1.0, 0.05, 5, 50.0), np.random.default_rng(0))
    >>> rows.shape == (5, sizes.max()), bool(abs(sizes.mean() - 50) < 10)
    (True, True)
    """
    draws = plan.steps if plan.fresh_batches else 1
    drawn = [np.flatnonzero(rng.random(n) < plan.rate) for _ in range(draws)]
    return _padded(drawn * (plan.steps // draws), width)


def _batches(job, m, n, seed=None):
    """Positions among the n members, and sizes; all models take as many steps, in rows of one width."""
    if job.plan is not None:
        width = int(scipy.stats.binom.ppf(PADDING_QUANTILE, job.most, job.plan.rate))
        return draw_poisson(n, job.plan, rng_of(job.seed, m, 14), width)
    size = job.batch_size or job.most
    cuts = range(size, n, size) if job.remainder else -(-job.most // size)
    width = size if job.remainder else -(-job.most // cuts)
    seed = None if job.seed is None else seed or [job.seed, m, 6]
    return draw_batches(n, job.epochs, cuts, seed, width)


def _steps(job, m, places, masks_of, seed=None):
    """All that the steps of model m need, with a leading axis of steps; what only fills a row up weighs nothing.

    `places` says where the members are among the rows that the steps draw from.
    """
    who, dtype = np.flatnonzero(job.members[m]), job.x.dtype
    rows, sizes = _batches(job, m, len(who), seed)
    counts = np.arange(rows.shape[1]) < sizes[:, None]
    patients, shares, rows = who[rows], np.ones((*rows.shape, 1), dtype), rows[..., None]
    soft = np.eye(job.model.output_shape[-1])[job.labels] if job.targets is None else job.targets[m]
    targets = soft.astype(dtype)[patients]
    weights = counts.astype(dtype)
    if job.class_weight is not None:
        weights = weights * (targets @ job.class_weight)
    if job.mixup:
        rng = np.random.default_rng([_number(job.seed, m), 23])
        own = rng.beta(job.mixup, job.mixup, len(rows)).astype(dtype)[:, None, None]
        # Each with the next of its batch, whose order is drawn.
        other = (np.arange(rows.shape[1]) + 1) % np.maximum(sizes, 1)[:, None]
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
    inside: callable  # trained first kernel to the products of all rows with it, (R, h)
    on_features: callable  # the same to the kernel on features, (d, h)
    shift: callable = None  # the same to the product of what was subtracted from the features


def _space(job, m):
    who = np.flatnonzero(job.members[m])
    if job.form == "span":
        return _in_span(job, m, who)
    kernels = _start(job, m), lambda kernel: job.x @ kernel, lambda kernel: kernel
    if not job.center:
        return _Space(job.x, who, *kernels)
    shift = job.x[who].mean(axis=0)
    if job.plan is not None:
        shift = job.center.offset(job.x[who], job.plan, rng_of(job.seed, m, 13)).astype(job.x.dtype)
    return _Space(job.x - shift, who, *kernels, lambda kernel: shift @ kernel)


def _in_span(job, m, who):
    """Coordinates of the members in their own span, which no step of SGD leaves; noise is as isotropic there.

    What happens outside of it cannot affect training. What is left of the start, and of the noise that private steps
    gather, is there at the end: without the noise the weights would show who spans them.
    """
    drawn, *further = _start(job, m)
    dtype, rng = job.x.dtype, rng_of(job.seed, m, 17)
    coordinates = job.basis[0].astype(dtype)
    mean = coordinates[who].mean(axis=0) * bool(job.center)
    axes, triangle = scipy.linalg.qr((coordinates[who] - mean).T, mode="economic", check_finite=False)
    begun = drawn if job.spread is not None else job.axes @ drawn
    kept, gathered = job.outside

    def left(begun):
        return (kept * begun + (gathered and gathered * rng.standard_normal(begun.shape))).astype(dtype)

    free = left(begun)
    reached = axes.T @ free

    def whole(kernel):
        return free + axes @ (kernel[: axes.shape[1]] - reached)

    def on_features(kernel):
        beyond = drawn
        if job.spread is not None:  # a law that looks the same from everywhere; few models are asked for it
            beyond = _gaussian(rng_of(job.seed, m, 11), (job.x.shape[1], drawn.shape[1]), job.spread, dtype)
        beyond = left(beyond)
        return (beyond + job.axes.T @ (whole(kernel) - job.axes @ beyond)).astype(dtype)

    few = job.most - axes.shape[1]
    table = np.pad(triangle.T, ((0, job.most - len(who)), (0, few))).astype(dtype)
    start = [np.pad(axes.T @ begun, ((0, few), (0, 0))).astype(dtype), *further]
    inside = lambda kernel: coordinates @ whole(kernel)  # noqa: E731
    return _Space(table, np.arange(len(who)), start, inside, on_features, lambda kernel: mean @ whole(kernel))


# Side by side.

_workers = functools.cache(concurrent.futures.ThreadPoolExecutor)  # of so many threads
_held = threading.local()  # the last compiled bank, each thread its own: a study trains one network several times


def threads():
    """Count the threads that train: the cores this process may run on; one where a GPU does the work."""
    return 1 if tf.config.list_physical_devices("GPU") else len(os.sched_getaffinity(0))


def _chunk_size(job):
    """Models of one call: few on a processor, unless there is little to do; as many as memory allows on a GPU."""
    n_weights = sum(w.size for w in job.model.get_weights())
    if job.form == "span":
        n_weights += job.most * (job.most + job.first.units) - job.x.shape[1] * job.first.units
    gpus, everyone = tf.config.list_physical_devices("GPU"), len(job.members)
    fits = max(1, MEMORY * (16 if gpus else 1) // (16 * n_weights))
    together = gpus or everyone * job.epochs * job.most * n_weights < LITTLE
    return min(fits, everyone if together else min(-(-everyone // threads()), CHUNK))


def _trained(job, missing, weights=False):
    """Train the missing models, and give each as it is finished: its number, and arrays by name."""
    if job.form == "alone":
        yield from (_train_alone(job, m, weights) for m in missing)
        return
    size = 1 if weights else _chunk_size(job)
    pieces = [missing[i : i + size] for i in range(0, len(missing), size)]
    # The compiled training leaves Python's lock alone, so threads are enough to use every core. NumPy's own threads
    # would be in their way, and share out a product as they are free: not the same bits each time.
    with threadpoolctl.threadpool_limits(1):
        for found in _workers(threads()).map(lambda piece: _train_chunk(job, piece, size, weights), pieces):
            yield from found


def _bank(job, size):
    """A compiled bank for this job; each thread keeps its last, which serves every learning rate that is a number."""
    width = job.most if job.form == "span" else job.x.shape[1]
    promise = job.plan and (job.plan.clip_norm, job.plan.divisor, job.plan.same_mask)
    name = re.sub(r'("learning_rate": )[-+.\de]+', r"\1", job.name or "")
    key = (name, job.form, size, width, promise, job.average > 0, K.backend.floatx())
    if job.name is None or getattr(_held, "key", None) != key:
        _held.bank, _held.key = _build(job, size, width), key
    if isinstance(job.model.optimizer._learning_rate, tf.Variable):
        _held.bank.optimizer.learning_rate = job.model.optimizer.learning_rate
    return _held.bank


def _build(job, size, width):
    """Stack the model, and compile it with a copy of its own optimizer."""
    optimizer = job.model.optimizer
    plain = type(optimizer) is OPT.SGD and not optimizer.get_config()["momentum"]
    with layers.TRACING:
        kind = layers.Bank if job.plan is None else layers.PrivateBank
        bank = layers.stack(job.model, size, width, kind)
        config = optimizer.get_config() | {"use_ema": job.average > 0}
        bank.compile((layers.SGD if plain else type(optimizer)).from_config(config), job.loss[0])
    networks.follow(bank, bank.optimizer)
    bank.plan = job.plan
    return bank


def _train_chunk(job, models, size, weights):
    """Train a few models in one call, from the first step to the last."""
    bank, filled = _bank(job, size), list(models) + [models[-1]] * (size - len(models))
    spaces = [_space(job, m) for m in filled]
    shared = spaces[0].table is job.x
    table = tf.constant(job.x if shared else np.stack([space.table for space in spaces]))
    steps = [_steps(job, m, space.places, layers.masks_of(bank)) for m, space in zip(filled, spaces, strict=True)]
    bank.begin([space.start for space in spaces])
    if job.plan is not None:
        _run_private(job, bank, table, _stacked(job, steps), filled)
    else:
        bank.compiled("train_step", (table, _stacked(job, steps)))
    if job.clustering:
        _cluster(job, bank, filled, spaces, table)
    if job.center:  # learned on shifted features: the bias takes the shift
        shifts = [space.shift(kernel) for space, kernel in zip(spaces, bank.dense[0].kernel.numpy(), strict=True)]
        bank.dense[0].bias.assign_sub(np.reshape(shifts, bank.dense[0].bias.shape))
    answers, _, inside = _answers(job, bank, spaces)
    found = []
    for place, (m, space) in enumerate(zip(models, spaces, strict=False)):
        kept = [weight[place].numpy() for weight in bank.in_order]
        if weights and job.first is not None:
            kept[0] = space.on_features(kept[0])
        found.append((m, _found(job, answers[place], None if inside is None else inside[place], kept, weights)))
    return found


def _stacked(job, parts):
    """Stack what each model's steps need, (steps, M, ...); a wider Poisson batch than usual widens all."""

    def stack(*arrays):
        shape = np.max([array.shape for array in arrays], axis=0)
        pads = [[(0, to - at) for at, to in zip(array.shape, shape, strict=True)] for array in arrays]
        return np.stack([np.pad(array, pad) for array, pad in zip(arrays, pads, strict=True)], axis=1)

    steps = tf.nest.map_structure(stack, *parts)
    sizes = np.maximum(steps.pop("sizes"), 1)[..., None].astype(job.x.dtype)
    if job.loss[1] and job.plan is None:
        steps["weights"] = steps["weights"] / sizes
    return steps


def _run_private(job, bank, table, steps, models):
    """DP-SGD, step by step, with its noise as data."""
    # With Keras' moving average, momenta 0, 1/2, 2/3, ... over the last steps make it their mean.
    late = np.cumsum(np.arange(job.plan.steps) >= job.plan.steps - max(1, round(job.average * job.plan.steps)))
    steps["averaged"] = np.where(late > 0, 1 - 1 / np.maximum(late, 1), 1.0).astype(job.x.dtype)
    rngs = [rng_of(job.seed, m, 16) for m in models]
    for t in range(job.plan.steps):
        step = tf.nest.map_structure(lambda values: values[t], steps)  # noqa: B023
        drawn = [[_gaussian(rng, value.shape[1:], job.plan.noise, job.x.dtype) for rng in rngs] for value in bank.own]
        bank.compiled("step", table, step | {"noise": [np.stack(noise) for noise in drawn]})
    bank.optimizer.finalize_variable_values(bank.own)


def _cluster(job, bank, models, spaces, table):
    """DeepType's second phase: training goes on, and draws what the last layer works on to the centers of clusters."""
    plan, again = job.clustering, dataclasses.replace(job, epochs=job.clustering["epochs"])
    for turn in range(plan["rounds"]):
        parts = []
        for m, space, z in zip(models, spaces, _answers(job, bank, spaces)[1], strict=True):
            who, number = np.flatnonzero(job.members[m]), _number(job.seed, m)
            count = min(plan["n_clusters"], len(who))
            found = KMeans(count, n_init=1, random_state=(number + turn) % 2**31).fit(z[who])
            step = _steps(again, m, space.places, layers.masks_of(bank), [number, 25, turn])
            members = np.searchsorted(space.places, step["rows"][..., 0])
            step["centers"] = found.cluster_centers_[found.predict(z[who])][members].astype(job.x.dtype)
            parts.append(step)
        steps = _stacked(job, parts)
        steps["pull"] = job.x.dtype.type(plan["weight"]) * steps["weights"]
        bank.compiled("train_step", (table, steps))


def _answers(job, bank, spaces):
    """What models answer about all rows, what their last layers work on, and products with the first kernel."""
    if job.first is None:
        return *(found.numpy() for found in bank.compiled("read", job.x[None])), None
    kernels = bank.dense[0].kernel.numpy()
    inside = np.stack([space.inside(kernel) for space, kernel in zip(spaces, kernels, strict=True)])
    answers, last = bank.compiled("read", tf.zeros((1, 1, 1), inside.dtype), inside)
    return answers.numpy(), last.numpy(), inside


def _found(job, answers, inside, kept, weights):
    """What is kept of a model: logits, products with the first kernel, weights behind it; the kernel if asked for."""
    last = getattr(job.model, "layers", [None])[-1]
    if isinstance(last, L.Softmax) or getattr(last, "activation", None) is K.activations.softmax:
        answers = np.log(np.maximum(answers, np.finfo(answers.dtype).tiny))
    found = {"logits": answers} if inside is None else {"logits": answers, "inside": inside}
    asked = range(len(kept)) if weights else range(inside is not None, len(kept))
    return found | {f"weights_{i}": kept[i] for i in asked}


# One at a time.


def _train_alone(job, m, weights):
    """Train an ordinary Keras model by its own `train_step`."""
    blueprint, loss = job.model, _loss_object(job.model)
    sparse = isinstance(loss, K.losses.SparseCategoricalCrossentropy)
    if sparse and (job.mixup or job.targets is not None):
        loss, sparse = K.losses.CategoricalCrossentropy(loss.get_config()["from_logits"]), False
    model = clone(blueprint, _number(job.seed, m), layers.masked)
    model.set_weights(job.start or model.get_weights())
    model.compile(_copy(blueprint.optimizer), loss, loss_weights=blueprint.get_compile_config().get("loss_weights"))
    networks.follow(model, model.optimizer)

    @tf.function(reduce_retracing=True)
    def one_step(x, targets, step):
        layers.hand_out(model, loss, step)
        model.train_step((x, targets) if job.class_weight is None else (x, targets, step["weights"]))

    K.utils.set_random_seed(_number(job.seed, 0))  # of what layers draw by themselves
    x, steps = tf.constant(job.x), _steps(job, m, np.flatnonzero(job.members[m]), layers.masks_of(model))
    sizes, epochs = steps.pop("sizes"), steps.pop("epoch")
    for t, size in enumerate(sizes):
        step = tf.nest.map_structure(lambda values: tf.constant(values[t, :size]), steps)  # noqa: B023
        targets = tf.argmax(step["targets"], axis=-1) if sparse else step["targets"]
        one_step(layers.mix(x, step["rows"], step["shares"]), targets, step | {"epoch": epochs[t]})
    if hasattr(model.optimizer, "finalize_variable_values"):  # not in Keras' former optimizers
        model.optimizer.finalize_variable_values(model.trainable_variables)
    kept = model.get_weights()
    inside = None if job.first is None else job.x @ kept[0]
    return m, _found(job, model(job.x, training=False).numpy(), inside, kept, weights)


def _copy(optimizer):
    return type(optimizer).from_config(optimizer.get_config())


def clone(model, seed, copy_of=layers.again):
    """A Keras model like this one whose start follows from a number, as does what its layers draw."""
    K.utils.set_random_seed(seed)
    if type(model) in GRAPHS:
        return K.models.clone_model(model, clone_function=copy_of)
    fresh = K.models.clone_model(model)
    fresh.build((None, model.input_shape[-1]))
    return fresh


def _model_again(job, m):
    """Train model m once more, as an ordinary Keras model, which loads without genlib; compiled where all is Keras'."""
    private = "the noise of a bank's private models follows from its recorded seed, so they are not for release"
    refuse(job.plan is not None and job.seed is not None, f"{private}; train one with privacy.release")
    ((_, found),) = _trained(job, [m], weights=True)

    def plain(layer):
        sparse = isinstance(getattr(layer, "kernel_constraint", None), networks.Sparse)
        return layers.again(layer, layer.get_config() | ({"kernel_constraint": None} if sparse else {}))

    model = clone(job.model, 0, plain)
    model.set_weights([found[f"weights_{i}"] for i in range(len(model.get_weights()))])
    optimizer, loss = job.model.optimizer, job.model.loss
    if all(isinstance(one, str) or type(one).__module__.startswith("keras.") for one in (optimizer, loss)):
        model.compile(_copy(optimizer), loss)
    return model
