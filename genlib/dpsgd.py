"""DP-SGD of one model as one compiled function: Poisson batches, exact clipping of every patient, Gaussian noise.

The gradient of a dense layer for one patient is the outer product of the layer's input and of the error that comes
back to it, so its norm is the product of two norms, and clipping is a weight on the errors. One forward and one
backward pass give both, with the same dropout mask, because they are the same pass.

With many more genes than patients the first layer trains in the span of its own members. Noise is as isotropic there
as on genes, so the training has the same distribution; what happens outside of that span cannot affect training, and
is drawn at the end with the variance that it would have gathered.
"""

import dataclasses
import functools

import numpy as np
import scipy.linalg
import scipy.stats
import tensorflow as tf

from genlib import autodiff, engine

# Batches are padded to this quantile of their size, so that one compiled function serves nearly all of them.
PADDING_QUANTILE = 0.999999
NOISE_CHUNK = 16_000_000  # numbers of noise held at once by one model, 64 MB


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """What DP-SGD does to gradients, in plain numbers.

    Attributes
    ----------
    clip_norm : float
        Bound C on each patient's gradient; infinite for no clipping.
    noise : float
        Standard deviation of the noise on each coordinate of the sum, noise multiplier times clip norm.
    rate : float
        Chance q with which each patient is in a step's batch, by itself; 1 for full batches.
    steps : int
    divisor : float
        What the noisy sum is divided by: the constant q n, with the nominal n.
    mean_noise : float
        Noise multiplier of one more release, the members' mean features, which centers them; 0 for none.
    same_mask : bool
        False plants a fault: norms are taken without dropout, as TF-Privacy's fast clipping does.
    fresh_batches : bool
        False plants a fault: the batch of the first step serves in all steps.
    """

    clip_norm: float
    noise: float
    rate: float
    steps: int
    divisor: float
    mean_noise: float = 0.0
    same_mask: bool = True
    fresh_batches: bool = True


@dataclasses.dataclass(frozen=True)
class Center:
    """Where features are centered: at a noisy mean of the members, moved by what is public.

    Attributes
    ----------
    lean : numpy.ndarray
        (d,) public direction from the wanted origin to the mean of a cohort.
    share : float
        How far along it, squared: times the features' variance it gives the squared factor of `lean`.
    radius : float
        Bound R on the features' norms; longer ones are cut to it.
    """

    lean: np.ndarray
    share: float
    radius: float

    def offset(self, members, noise_multiplier, n, rng):
        """Spend one release on the members' mean, and say what to subtract from all features.

        Parameters
        ----------
        members : numpy.ndarray
            (m, d) features of the members.
        noise_multiplier : float
        n : int
            Nominal number of members.
        rng : numpy.random.Generator

        Returns
        -------
        numpy.ndarray
            (d,)

        Examples
        --------
        >>> center = Center(np.array([1.0, 0.0]), share=0.0, radius=2.0)
        >>> center.offset(np.array([[3.0, 0.0], [1.0, 0.0]]), 0.0, 2, np.random.default_rng(0))
        array([1.5, 0. ])
        """
        norms = np.linalg.norm(members, axis=1, keepdims=True)
        cut = members * np.minimum(1, self.radius / np.maximum(norms, np.finfo(np.float32).tiny))
        noise = noise_multiplier * self.radius / n
        mean = cut.sum(axis=0) / n + noise * rng.standard_normal(members.shape[1])
        # All profiles have the same norm, so their variance follows from the mean's; what the noise adds is taken off.
        variance = max(self.radius**2 - mean @ mean + len(mean) * noise**2, 1.0)
        return mean - np.sqrt(self.share * variance) * self.lean


# What can go wrong in DP-SGD without anything looking wrong. Planted on purpose, to show that an audit notices it.
FAULTS = {
    "no noise": lambda m: dataclasses.replace(m, noise=0.0),
    "noise divided twice": lambda m: dataclasses.replace(m, noise=m.noise / m.divisor),
    "no clipping": lambda m: dataclasses.replace(m, clip_norm=np.inf),
    "no clipping, no noise": lambda m: dataclasses.replace(m, clip_norm=np.inf, noise=0.0),
    "norms without dropout": lambda m: dataclasses.replace(m, same_mask=False),
    "same batch": lambda m: dataclasses.replace(m, fresh_batches=False),
}


def draw_batches(n, steps, rate, rng, fresh=True):
    """Draw batches by Poisson sampling: every member is in every batch with probability `rate`, by itself.

    Parameters
    ----------
    n : int
        Number of members.
    steps : int
    rate : float
        In (0, 1]; at 1 all members are in every batch.
    rng : numpy.random.Generator
    fresh : bool
        False repeats the first batch (a planted fault).

    Returns
    -------
    rows : numpy.ndarray
        (steps, width) int32, positions among the members. The width is the `PADDING_QUANTILE` of the binomial law of
        batch sizes or, where a larger batch was drawn, that batch's size: none is cut.
    sizes : numpy.ndarray
        (steps,) int32, how many of a row count, from its beginning; 0 where the batch is empty.

    Examples
    --------
    >>> rows, sizes = draw_batches(1000, steps=5, rate=0.05, rng=np.random.default_rng(0))
    >>> rows.shape, bool(abs(sizes.mean() - 50) < 10)
    ((5, 86), True)
    """
    if rate >= 1:
        # One row that all steps share.
        return np.arange(n, dtype=np.int32)[None], np.full(steps, n, np.int32)
    drawn = [np.flatnonzero(rng.random(n) < rate) for _ in range(steps if fresh else 1)]
    drawn = drawn if fresh else drawn * steps
    sizes = np.array([len(batch) for batch in drawn], np.int32)
    rows = np.zeros((steps, max(width(n, rate), sizes.max())), np.int32)
    for row, batch in zip(rows, drawn, strict=True):
        row[: len(batch)] = batch
    return rows, sizes


def width(n, rate):
    """Number of patients that batches are padded to.

    Examples
    --------
    >>> width(384, 1.0), width(384, 1 / 12)
    (384, 60)
    """
    return n if rate >= 1 else int(scipy.stats.binom.ppf(PADDING_QUANTILE, n, rate))


def _length(rows):
    # Relative to the largest entry: a small error has squares that underflow, and is large by a large input.
    largest = tf.maximum(tf.reduce_max(tf.abs(rows), axis=1), rows.dtype.as_numpy_dtype(np.finfo(np.float32).tiny))
    return largest * tf.norm(rows / largest[:, None], axis=1)


def clipped_sum(
    structure, x, labels, weights, clip_norm, importance, dropout=None, step=0, smooth=None, same_mask=True
):
    """Sum of the patients' gradients, each scaled down to the clip norm where it is longer.

    Parameters
    ----------
    structure : genlib.engine.Structure
    x : tf.Tensor
        (b, d), one row a patient.
    labels : tf.Tensor
        (b,) int.
    weights : list of tf.Tensor
        In Keras' order.
    clip_norm : tf.Tensor, optional
        Bound C; None sums the gradients as they are, without their norms.
    importance : tf.Tensor
        (b,) weight of each patient's loss; 0 for rows that only pad the batch.
    dropout, step : see `genlib.engine.forward`
    smooth : tf.Tensor, optional
        Label smoothing.
    same_mask : bool
        False takes the norms without dropout (a planted fault).

    Returns
    -------
    sums : list of tf.Tensor
        Shapes of the weights.
    norms : tf.Tensor or None
        (b,) norms before clipping. A patient whose gradient is not finite is left out of the sum.

    References
    ----------
    Clipping: Abadi et al., CCS 2016, algorithm 1. Norms of dense layers from one pass: Goodfellow, "Efficient
    per-example gradient computations", arXiv:1510.01799, section 3.

    Examples
    --------
    >>> softmax = engine.Structure((("dense", "linear"),), ((4, 2),), (1.0,))
    >>> weights = [tf.zeros((4, 2)), tf.zeros(2)]
    >>> sums, norms = clipped_sum(softmax, 9 * tf.ones((1, 4)), tf.constant([1]), weights, 1.0, tf.ones(1))
    >>> round(float(tf.linalg.global_norm(sums)), 4), round(float(norms[0]), 2)
    (1.0, 12.75)
    """

    def errors_of(mask):
        first = tf.matmul(x, weights[0])
        with tf.GradientTape() as tape:
            tape.watch(first)
            logits, dense = engine.forward(structure, first, weights[1:], mask, step)
            loss = tf.reduce_sum(importance * engine.losses(logits, labels, smooth))
        inputs = [x if given is None else given for given, _ in dense]
        return inputs, tape.gradient(loss, [out for _, out in dense])

    def lengths(inputs, errors):
        parts = [
            tf.sqrt(tf.reduce_sum(given**2, axis=1) + 1) * _length(error)
            for given, error in zip(inputs, errors, strict=True)
        ]
        return tf.norm(tf.stack(parts, axis=1), axis=1)

    inputs, errors = errors_of(dropout)
    if clip_norm is None:
        parts = [
            (tf.matmul(x, e, transpose_a=True), tf.reduce_sum(e, axis=0)) for x, e in zip(inputs, errors, strict=True)
        ]
        return [part for pair in parts for part in pair], None
    norms = lengths(inputs, errors) if same_mask else lengths(*errors_of(None))
    finite = tf.math.is_finite(norms)
    factor = tf.where(finite & (norms > clip_norm), clip_norm / norms, tf.ones_like(norms))
    sums = []
    for given, error in zip(inputs, errors, strict=True):
        scaled = tf.where(finite[:, None], factor[:, None] * error, tf.zeros_like(error))
        given = tf.where(finite[:, None], given, tf.zeros_like(given))
        sums += [tf.matmul(given, scaled, transpose_a=True), tf.reduce_sum(scaled, axis=0)]
    return sums, norms


def applied_norms(structure, x, labels, weights, clip_norm, keep, seed, same_mask=True):
    """Norms of the gradients that are really applied, one patient at a time, each with dropout masks of its own.

    Parameters
    ----------
    structure, x, labels, weights, same_mask
        As in `clipped_sum`.
    clip_norm : float
    keep : float
        Share of units that dropout keeps.
    seed : int

    Returns
    -------
    numpy.ndarray
        (n,); at most the clip norm, but for rounding, unless a fault was planted.

    Examples
    --------
    >>> softmax = engine.Structure((("dense", "linear"),), ((4, 2),), (1.0,))
    >>> weights = [np.zeros((4, 2), np.float32), np.zeros(2, np.float32)]
    >>> applied_norms(softmax, np.full((1, 4), 9, np.float32), np.array([1]), weights, 1.0, keep=1.0, seed=0).round(4)
    array([1.], dtype=float32)
    """
    one, mask = np.ones(1, x.dtype), {"keep": x.dtype.type(keep), "seed": np.int32(seed)}
    sums = [
        clipped_sum(
            structure, x[i : i + 1], np.int32(labels[i : i + 1]), weights, x.dtype.type(clip_norm), one, mask, i,
            same_mask=same_mask,
        )[0]
        for i in range(len(x))
    ]  # fmt: skip
    return np.array([tf.linalg.global_norm(parts).numpy() for parts in sums])


@functools.lru_cache(maxsize=64)
def _compiled(structure, full_batch, clipping, dropout, smoothing, same_mask, momentum, averaging, sparse, shapes):
    """One XLA function a structure and set of shapes; it runs from one step to another, with their noise."""

    def step_once(step, begin, state, data, hyper):
        weights, speeds, sums = state
        inputs, labels, importance, rows, sizes, noise = data
        row = rows[0 if full_batch else step]
        there = tf.cast(tf.range(tf.shape(row)[0]) < sizes[step], inputs.dtype)
        if full_batch:
            x, y, weight = inputs, labels, importance * there
        else:
            x, y, weight = tf.gather(inputs, row), tf.gather(labels, row), tf.gather(importance, row) * there
        grads, _ = clipped_sum(
            structure, x, y, weights, hyper["clip_norm"] if clipping else None, weight,
            hyper if dropout else None, step,
            hyper["smooth"] if smoothing else None, same_mask,
        )  # fmt: skip
        grads = [(grad + drawn[step - begin]) / hyper["divisor"] for grad, drawn in zip(grads, noise, strict=True)]
        # Decay knows no patient, so it is added after clipping; biases do not decay.
        decay = 2 * hyper["l2"]
        grads = [grad if i % 2 else grad + decay * v for i, (grad, v) in enumerate(zip(grads, weights, strict=True))]
        if momentum:
            grads = speeds = [hyper["momentum"] * s + g for s, g in zip(speeds, grads, strict=True)]
        weights = [v - hyper["rate"] * g for v, g in zip(weights, grads, strict=True)]
        if sparse:
            ramp = 1 - tf.exp(-tf.cast(step + 1, inputs.dtype) / hyper["ramp"])
            weights[0] = autodiff.shrink(weights[0], hyper["rate"] * hyper["group"] * ramp, by_row=True)
        if averaging:
            late = tf.cast(step >= hyper["average_from"], inputs.dtype)
            sums = [s + late * v for s, v in zip(sums, weights, strict=True)]
        return weights, speeds, sums

    @tf.function(jit_compile=True)
    def run(inputs, labels, importance, rows, sizes, noise, begin, end, state, hyper):
        places = np.cumsum([0] + [int(np.prod(w.shape)) for w in state[0]])
        noise = [
            tf.reshape(noise[:, start:stop], [-1, *w.shape])
            for start, stop, w in zip(places, places[1:], state[0], strict=False)
        ]
        data = (inputs, labels, importance, rows, sizes, noise)
        return tf.while_loop(
            lambda step, state: step < end,
            lambda step, state: (step + 1, step_once(step, begin, state, data, hyper)),
            (begin, state),
        )[1]

    return run


def train_one(patients, labels, members, recipe, mechanism, structure, rng, padded=None, start=None, center=None):
    """Train one model by DP-SGD and return its logits for all rows and its weights.

    Parameters
    ----------
    patients : genlib.engine.Patients
        From `genlib.engine.prepare`; in row space where it holds inner products.
    labels : numpy.ndarray
        (n,) int; rows beyond the first n are queries.
    members : numpy.ndarray
        (n,) bool.
    recipe : genlib.recipes.Recipe
        Its learning rate, momentum, l2, dropout, label smoothing and averaging.
    mechanism : Mechanism
    structure : genlib.engine.Structure
    rng : numpy.random.Generator
        Source of the start, the batches, the dropout masks and the noise.
    padded : int, optional
        Number of members to pad to, so that all models of a bank share one compiled function.
    start : list of numpy.ndarray, optional
        Weights on genes to start from, in Keras' order; by default drawn from `rng`.
    center : Center, optional
        With a mechanism that pays for a mean: train on features centered by it, in gene space only. The weights that
        come back are for features as they were.

    Returns
    -------
    logits : numpy.ndarray
        (R, k).
    weights : callable
        Returns the weights in Keras' order, first kernel on genes (d, h), with the noise that they would have outside
        of the members' span. Only computed when called.

    Examples
    --------
    >>> from genlib.recipes import Recipe
    >>> recipe, x = Recipe("softmax", batch_size=None), np.random.default_rng(0).normal(size=(40, 60))
    >>> structure, mechanism = engine.structure_for(recipe, 60, 2), Mechanism(1.0, 5.0, 1.0, steps=10, divisor=20)
    >>> patients, rng = engine.prepare(x.astype(np.float32), in_row_space=True), np.random.default_rng(0)
    >>> train_one(patients, np.arange(40) % 2, np.arange(40) < 20, recipe, mechanism, structure, rng)[0].shape
    (40, 2)
    """
    who, dtype = np.flatnonzero(members), patients.rows.dtype
    offset = np.zeros(patients.rows.shape[1], dtype)
    if mechanism.mean_noise:
        offset = center.offset(patients.rows[who], mechanism.mean_noise, mechanism.divisor / mechanism.rate, rng)
        offset = offset.astype(dtype)
        patients = dataclasses.replace(patients, rows=patients.rows - offset)
    space = _space(patients, who, padded or len(who))
    begun = (
        _draw_start(structure, space.inputs.shape[1], rng) if start is None else [_into(start[0], space), *start[1:]]
    )
    begun = [np.asarray(w, dtype) for w in begun]
    rows, sizes = draw_batches(len(who), mechanism.steps, mechanism.rate, rng, mechanism.fresh_batches)
    if mechanism.rate >= 1:
        rows = np.zeros((1, len(space.inputs)), np.int32)  # only its width counts: a full batch is not gathered
    filled = np.concatenate([labels[who], np.zeros(len(space.inputs) - len(who), labels.dtype)]).astype(np.int32)
    importance = np.ones(len(filled), dtype)
    if recipe.class_weights:
        importance = np.asarray(recipe.class_weights, dtype)[filled]
    first_averaged = mechanism.steps - averaged_steps(recipe, mechanism.steps)
    hyper = {
        "rate": dtype.type(recipe.learning_rate), "momentum": dtype.type(recipe.momentum), "l2": dtype.type(recipe.l2),
        "keep": dtype.type(1 - recipe.dropout), "smooth": dtype.type(recipe.label_smoothing),
        "seed": np.int32(rng.integers(2**31)), "clip_norm": dtype.type(mechanism.clip_norm),
        "divisor": dtype.type(mechanism.divisor), "average_from": np.int32(first_averaged),
        "group": dtype.type(recipe.group), "ramp": dtype.type(max(1.0, autodiff.RAMP_SHARE * mechanism.steps)),
    }  # fmt: skip
    run = _compiled(
        structure, mechanism.rate >= 1, bool(np.isfinite(mechanism.clip_norm)), recipe.dropout > 0,
        recipe.label_smoothing > 0, mechanism.same_mask, recipe.momentum > 0, recipe.average > 0,
        recipe.group > 0,
        (space.inputs.shape, rows.shape, len(sizes)),
    )  # fmt: skip
    state = (begun, [np.zeros_like(w) for w in begun], [np.zeros_like(w) for w in begun])
    size = sum(w.size for w in begun)
    chunk = min(mechanism.steps, max(1, NOISE_CHUNK // size))
    noise = np.empty((chunk, size), dtype)
    for begin in range(0, mechanism.steps, chunk):
        end = min(begin + chunk, mechanism.steps)
        _fill(noise[: end - begin], mechanism.noise, rng)
        state = run(space.inputs, filled, importance, rows, sizes, noise, np.int32(begin), np.int32(end), state, hyper)
    trained, _, sums = state
    if recipe.average:
        trained = [total / dtype.type(mechanism.steps - first_averaged) for total in sums]
    trained = [w.numpy() for w in trained]
    kept, gathered = outside_span(recipe, mechanism)
    # Outside of the members' span: what decay left of a known start, or noise in which that of a random one is too.
    known = None if start is None else kept * start[0]
    spread = gathered if start is not None else float(np.hypot(gathered, kept * structure.scales[0]))
    outside = spread * rng.standard_normal((space.residual.shape[1], trained[0].shape[1]))
    pre = (space.everyone @ trained[0]).astype(np.float64)
    pre[space.others] += space.residual @ outside
    if known is not None and patients.inner is not None:
        pre[space.others] += patients.rows[space.others] @ known - space.everyone[space.others] @ _into(known, space)
    logits = engine.forward(structure, tf.constant(pre.astype(dtype)), trained[1:])[0].numpy()

    @functools.cache
    def weights():
        if patients.inner is None:
            return [trained[0], trained[1] - offset @ trained[0], *trained[2:]]
        first = _on_genes(patients, space, trained[0], outside, spread, rng)
        if known is not None:
            first += known - space.axes.T @ _into(known, space)[: len(space.axes)]
        return [first.astype(dtype), *trained[1:]]

    return logits, weights


def averaged_steps(recipe, steps):
    """Number of last steps whose weights are averaged; the last alone where a recipe averages nothing.

    Examples
    --------
    >>> from genlib.recipes import Privacy, Recipe
    >>> averaged_steps(Recipe(batch_size=None, average=0.5, privacy=Privacy(1.0)), 30), averaged_steps(Recipe(), 30)
    (15, 1)
    """
    return max(1, round(recipe.average * steps))


def _fill(noise, scale, rng):
    # SFC64's float32 normals, made outside of the compiled function, are the fastest source that was found.
    if scale:
        rng.standard_normal(out=noise, dtype=noise.dtype.type)
        noise *= noise.dtype.type(scale)
    else:
        noise[:] = 0


def _draw_start(structure, first_rows, rng):
    weights = []
    for level, ((rows, columns), scale) in enumerate(zip(structure.shapes, structure.scales, strict=True)):
        rows = first_rows if level == 0 else rows
        weights += [scale * rng.standard_normal((rows, columns)), np.zeros(columns)]
    return weights


def _into(kernel, space):
    """A first kernel on genes, seen from where the model trains."""
    if space.axes is None:
        return kernel
    inside = np.zeros((space.inputs.shape[1], kernel.shape[1]))
    inside[: len(space.axes)] = space.axes @ kernel
    return inside


@dataclasses.dataclass(frozen=True)
class _Space:
    """Where a model trains: the members' inputs (padded), everyone's, and what of the others lies outside."""

    inputs: np.ndarray
    everyone: np.ndarray
    others: np.ndarray
    residual: np.ndarray  # (others, rank): its product with its transpose is the others' inner products outside
    who: np.ndarray
    lower: np.ndarray | None = None  # members' coordinates, in row space
    rows: np.ndarray | None = None

    @functools.cached_property
    def axes(self):
        """(rank, d) orthonormal axes of the members' span on genes; None where the model trains on genes."""
        if self.lower is None:
            return None
        rows = self.rows[self.who].astype(np.float64)
        if self.lower.shape[0] == self.lower.shape[1]:
            return scipy.linalg.solve_triangular(self.lower, rows, lower=True)
        return (self.lower / (self.lower**2).sum(axis=0)).T @ rows


def _space(patients, who, padded):
    n_padded = max(padded, len(who))
    dtype = patients.rows.dtype
    others = np.setdiff1d(np.arange(len(patients.rows)), who)
    if patients.inner is None:
        inputs = np.zeros((n_padded, patients.rows.shape[1]), dtype)
        inputs[: len(who)] = patients.rows[who]
        return _Space(inputs, patients.rows, others, np.zeros((len(others), 0)), who)
    inner = patients.inner.astype(np.float64)
    lower = engine.factor(patients.inner[np.ix_(who, who)])
    # Everyone's coordinates in the members' span: least squares, which is a triangular solve where it can be.
    if lower.shape[0] == lower.shape[1]:
        everyone = scipy.linalg.solve_triangular(lower, inner[who], lower=True).T
    else:
        everyone = inner[:, who] @ lower / (lower**2).sum(axis=0)
    outside = inner[np.ix_(others, others)] - everyone[others] @ everyone[others].T
    residual = engine.factor(outside.astype(dtype), np.diag(inner).max()) if len(others) else np.zeros((0, 0))
    inputs = np.zeros((n_padded, n_padded), dtype)
    inputs[: len(who), : lower.shape[1]] = lower
    wide = np.zeros((len(inner), n_padded), dtype)
    wide[:, : lower.shape[1]] = everyone
    return _Space(inputs, wide, others, residual, who, lower, patients.rows)


def outside_span(recipe, mechanism):
    """What training on genes leaves in a first-layer weight outside of the members' span.

    There the gradients are zero, so start and noise go through a linear recursion of rate, momentum, decay and
    averaging; a unit impulse of each tells how much of it is left at the end.

    Parameters
    ----------
    recipe : genlib.recipes.Recipe
    mechanism : Mechanism

    Returns
    -------
    kept : float
        Share of the start that is left.
    gathered : float
        Standard deviation of the noise of all steps together.

    Examples
    --------
    >>> from genlib.recipes import Recipe
    >>> plain = Mechanism(clip_norm=1.0, noise=5.0, rate=1.0, steps=100, divisor=10)
    >>> kept, gathered = outside_span(Recipe(learning_rate=0.1, batch_size=None), plain)
    >>> kept, round(gathered, 6)
    (1.0, 0.5)
    """
    steps = mechanism.steps
    first_averaged = steps - averaged_steps(recipe, steps)
    # Column 0: the start; column 1 + t: the noise of step t.
    weight, speed, total = np.zeros(steps + 1), np.zeros(steps + 1), np.zeros(steps + 1)
    weight[0] = 1.0
    for step in range(steps):
        gradient = 2 * recipe.l2 * weight
        gradient[1 + step] += 1.0
        speed = recipe.momentum * speed + gradient
        weight = weight - recipe.learning_rate * speed
        if step >= first_averaged:
            total += weight
    left = total / (steps - first_averaged)
    per_step = mechanism.noise / mechanism.divisor
    return float(left[0]), float(per_step * np.sqrt((left[1:] ** 2).sum()))


def _on_genes(patients, space, trained, outside, spread, rng):
    """First kernel on genes: what was learned in the members' span, and around it noise as the logits saw it."""
    axes, rows = space.axes, patients.rows.astype(np.float64)
    rank = len(axes)
    free = spread * rng.standard_normal((rows.shape[1], trained.shape[1]))
    free -= axes.T @ (axes @ free)
    # The other rows have seen this noise already: given that, the rest of it is drawn.
    beyond = rows[space.others] - space.everyone[space.others, :rank].astype(np.float64) @ axes
    # `residual` says how they lie on axes of their own outside of the span; along those, it is what they saw.
    seen = np.linalg.lstsq(space.residual, beyond, rcond=None)[0]
    free += seen.T @ (outside - seen @ free)
    return axes.T @ trained[:rank] + free
