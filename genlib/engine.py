"""The training of one model as one compiled function, on genes or, with the same result, in row space.

With n patients and many more genes than patients, a first dense layer never leaves the span of its start and of the
patients: W = s W_0 + X^T A, with one row of A a member and s = 1 unless weights decay. All that a step needs is the
inner products between patients, K = X X^T, and what the start gives every patient, P_0 = X W_0. So the cost of a step
depends on the number of members, not of genes. It is the same training, written in other coordinates: the tests hold
the two forms to each other in float64.

It does not hold where an update is not a linear combination of patients' profiles: Adam, L1 or group sparsity,
convolutions, max-norm, dropout or normalization of the input. Those train on genes, in `genlib.autodiff`.
"""

import dataclasses
import functools

import numpy as np
import scipy.linalg
import tensorflow as tf

from genlib import models


@dataclasses.dataclass(frozen=True)
class Structure:
    """What the compiled function needs to know of a Keras model: its layers, as they follow each other.

    Attributes
    ----------
    layers : tuple of (str, str)
        ``("dense", activation)``, ``("relu", "")`` or ``("dropout", "")``, in order; a convolutional network begins
        with ``("convolution", activation)``, ``("pool", "")``, ``("flatten", "")``.
    shapes : tuple of (int, int)
        Kernel shapes of the dense layers.
    scales : tuple of float
        Standard deviations of the kernels' Gaussian starts; 0 for a start from zero.
    """

    layers: tuple
    shapes: tuple
    scales: tuple


PLAIN = {
    tf.keras.layers.ReLU: "relu",
    tf.keras.layers.Dropout: "dropout",
    tf.keras.layers.MaxPooling1D: "pool",
    tf.keras.layers.Flatten: "flatten",
}
ACTIVATIONS = {"linear": tf.identity, "relu": tf.nn.relu, "sigmoid": tf.nn.sigmoid, "tanh": tf.nn.tanh}


def structure_of(model):
    """Read the structure off a Keras model, or refuse it.

    Parameters
    ----------
    model : tf.keras.Model
        Layers in one line; the first behind the input must be dense.

    Returns
    -------
    Structure

    Raises
    ------
    ValueError
        When a layer is not one whose training is known to be exact here, or a start is not Gaussian (only Gaussian and
        zero starts look the same in every basis); names the layer and the way out.

    Examples
    --------
    >>> from genlib import models
    >>> from genlib.recipes import Recipe
    >>> structure_of(models.build(Recipe("mlp", hidden=(8,)), 20, 3, seed=0)).layers
    (('dense', 'linear'), ('relu', ''), ('dense', 'linear'))
    """
    layers, shapes, scales = [], [], []
    for layer in model.layers[1:]:
        if type(layer) is tf.keras.layers.Dense and layer.use_bias:
            layers.append(("dense", tf.keras.activations.serialize(layer.activation)))
            shapes.append(tuple(layer.kernel.shape))
            scales.append(_start_scale(layer))
        elif type(layer) is tf.keras.layers.Conv1D and not layers and layer.strides == layer.kernel_size:
            layers.append(("convolution", tf.keras.activations.serialize(layer.activation)))
            shapes.append((layer.kernel_size[0], layer.filters))
            scales.append(_start_scale(layer))
        elif type(layer) is tf.keras.layers.Reshape and not layers:
            pass  # genes as a sequence, for the convolution
        elif type(layer) in PLAIN and layers:
            layers.append((PLAIN[type(layer)], ""))
        else:
            raise ValueError(f"layer '{layer.name}' ({type(layer).__name__}) is not known here; use engine='keras'")
        known = not layers or layers[-1][0] in PLAIN.values() or layers[-1][1] in ACTIVATIONS
        if not known or len(layer.inbound_nodes) > 1 or getattr(layer, "kernel_constraint", None):
            raise ValueError(
                f"layer '{layer.name}': its activation or constraint is not known here; use engine='keras'"
            )
    return Structure(tuple(layers), tuple(shapes), tuple(scales))


@functools.lru_cache(maxsize=64)
def structure_for(recipe, n_features, n_classes):
    """Structure of a recipe's architecture, remembered: to build a Keras model takes time that grows with genes.

    Examples
    --------
    >>> from genlib.recipes import Recipe
    >>> structure_for(Recipe("softmax"), 600, 5).shapes
    ((600, 5),)
    """
    return structure_of(models.build(recipe, n_features, n_classes, seed=0))


def _start_scale(layer):
    start = layer.kernel_initializer
    if isinstance(start, tf.keras.initializers.Zeros):
        return 0.0
    if type(start) is tf.keras.initializers.RandomNormal and start.mean == 0:
        return float(start.stddev)
    raise ValueError(
        f"layer '{layer.name}' starts from {type(start).__name__}; only Gaussian and zero starts are the same in every "
        "basis: use tf.keras.initializers.RandomNormal, or engine='keras'"
    )


def draw_start(structure, seed, first_rows=None, dtype=np.float32):
    """Draw the weights that a model starts from.

    Parameters
    ----------
    structure : Structure
    seed : sequence of int
    first_rows : int, optional
        Rows of the first kernel; by default its own, the number of features. In row space it is the rank r, with the
        same standard deviation: the start is drawn where it acts.
    dtype : numpy dtype

    Returns
    -------
    list of numpy.ndarray
        Kernel and bias of each dense layer in turn, as Keras orders them.

    Examples
    --------
    >>> from genlib import models
    >>> from genlib.recipes import Recipe
    >>> structure = structure_of(models.build(Recipe("softmax"), 20, 3, seed=0))
    >>> [w.shape for w in draw_start(structure, seed=[0])]
    [(20, 3), (3,)]
    """
    weights = []
    for level, ((rows, columns), scale) in enumerate(zip(structure.shapes, structure.scales, strict=True)):
        # A stream for each layer, so that the others do not depend on how the first is drawn.
        rng = np.random.Generator(np.random.SFC64([*seed, 10, level]))
        rows = first_rows if level == 0 and first_rows is not None else rows
        kernel = rng.standard_normal((rows, columns), dtype=np.float32).astype(dtype) * dtype(scale)
        weights += [kernel, np.zeros(columns, dtype)]
    return weights


def draw_batches(n, epochs, batch_size, seed):
    """Draw who is in which step: every member once an epoch, in an order of its own.

    An epoch is cut into as few batches as possible, of nearly equal size. (Keras leaves a last batch of what remains:
    with 385 members and batches of 32 a single patient makes a step of full length.)

    Parameters
    ----------
    n : int
        Number of members.
    epochs : int
    batch_size : int or None
        Largest batch; None takes all members in every step.
    seed : sequence of int

    Returns
    -------
    rows : numpy.ndarray
        (steps, width) int32, positions among the members.
    sizes : numpy.ndarray
        (steps,) int32, how many of a row count, from its beginning.

    Examples
    --------
    >>> draw_batches(5, epochs=1, batch_size=4, seed=[0])[1]
    array([3, 2], dtype=int32)
    """
    rng = np.random.default_rng(seed)
    per_epoch = -(-n // (batch_size or n))
    parts = [part for _ in range(epochs) for part in np.array_split(rng.permutation(n), per_epoch)]
    sizes = np.array([len(part) for part in parts], np.int32)
    rows = np.zeros((len(parts), sizes.max()), np.int32)
    for row, part in zip(rows, parts, strict=True):
        row[: len(part)] = part
    return rows, sizes


def basis(rows):
    """Coordinates of rows in their own span: Z with Z Z^T = X X^T, and that matrix of inner products.

    Parameters
    ----------
    rows : numpy.ndarray
        (R, d) with R at most d.

    Returns
    -------
    coordinates : numpy.ndarray
        (R, r), r at most R.
    inner : numpy.ndarray
        (R, R).

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(3, 10))
    >>> z, k = basis(x)
    >>> bool(np.allclose(z @ z.T, x @ x.T))
    True
    """
    inner = rows @ rows.T
    return factor(inner).astype(rows.dtype), inner


def factor(inner, scale=0.0):
    """Split a matrix of inner products into coordinates: F with F F^T equal to it, and as few columns as that needs.

    Parameters
    ----------
    inner : numpy.ndarray
        (R, R), symmetric, no negative eigenvalues but by rounding.
    scale : float
        Largest square from which `inner` was computed, whose rounding fills no direction; by default its own.

    Returns
    -------
    numpy.ndarray
        (R, r) float64.

    Examples
    --------
    >>> factor(np.ones((2, 2))).shape
    (2, 1)
    """
    wide = inner.astype(np.float64)
    slack = len(wide) * np.finfo(inner.dtype).eps
    try:
        lower = scipy.linalg.cholesky(wide, lower=True)
        # A column that rounding alone fills is no direction of its own.
        if np.diag(lower).min() ** 2 > slack * max(np.diag(wide).max(), scale):
            return lower
    except scipy.linalg.LinAlgError:
        pass
    # Repeated or dependent rows: the eigenvectors span the same space with fewer columns.
    values, vectors = scipy.linalg.eigh(wide)
    kept = values > max(values[-1], scale) * slack
    return vectors[:, kept] * np.sqrt(values[kept])


def forward(structure, pre, weights, dropout=None, step=0):
    """Go through the network from what the first kernel gives, without its bias.

    Parameters
    ----------
    structure : Structure
    pre : tf.Tensor
        (n, h), product of the inputs and the first kernel.
    weights : list of tf.Tensor
        All further weights in Keras' order, from the first bias on.
    dropout : dict, optional
        ``keep`` (share of units kept) and ``seed``; by default nothing is dropped.
    step : tf.Tensor
        Fixes the masks together with the seed.

    Returns
    -------
    logits : tf.Tensor
        (n, k).
    dense : list of (tf.Tensor or None, tf.Tensor)
        Input of each dense layer (None for the first, which is not known here) and what comes out of it before its
        activation.

    Examples
    --------
    >>> softmax = Structure((("dense", "linear"),), ((4, 2),), (1.0,))
    >>> forward(softmax, tf.zeros((3, 2)), [tf.ones(2)])[0].numpy()[0]
    array([1., 1.], dtype=float32)
    """
    x, dense, level = pre, [], 0
    for position, (kind, activation) in enumerate(structure.layers):
        if kind in ("dense", "convolution"):
            inputs = None if position == 0 else x
            x = x + weights[0] if position == 0 else x @ weights[2 * len(dense) - 1] + weights[2 * len(dense)]
            dense.append((inputs, x))
            x = ACTIVATIONS[activation](x)
        elif kind == "pool":
            x = tf.reduce_max(tf.reshape(x[:, : x.shape[1] // 2 * 2], [-1, x.shape[1] // 2, 2, x.shape[2]]), axis=2)
        elif kind == "flatten":
            x = tf.reshape(x, [-1, x.shape[1] * x.shape[2]])
        elif kind == "relu":
            x = tf.nn.relu(x)
        elif dropout is not None:
            keep = dropout["keep"]
            draw = tf.random.stateless_uniform(
                tf.shape(x), tf.stack([dropout["seed"], step * 64 + level]), dtype=x.dtype
            )
            x = tf.where(draw < keep, x / keep, tf.zeros_like(x))
            level += 1
    return x, dense


def losses(logits, labels, smooth=None, doubt=None):
    """Cross-entropy of each patient, with label smoothing where given: targets (1 - a) one-hot + a / k, as Keras' own.

    Labels are classes (n,) int or, for distillation, soft targets (n, k). With a confidence penalty, `doubt` times the
    entropy of the answer is taken off.

    Examples
    --------
    >>> losses(tf.zeros((1, 2)), tf.zeros(1, tf.int32)).numpy().round(4)
    array([0.6931], dtype=float32)
    """
    labels = tf.convert_to_tensor(labels)
    if labels.dtype.is_floating:
        plain = tf.nn.softmax_cross_entropy_with_logits(labels, logits)
    else:
        plain = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if smooth is not None:
        plain = (1 - smooth) * plain - smooth * tf.reduce_mean(tf.nn.log_softmax(logits), axis=1)
    if doubt is not None:
        plain += doubt * tf.reduce_sum(tf.nn.softmax(logits) * tf.nn.log_softmax(logits), axis=1)
    return plain


def relaxed(logits, labels, weight, target, ascend):
    """Loss of a batch that holds to a mean loss instead of going below it.

    Above the target it is the cross-entropy. Below, by turns of epochs, it is that with the other sign, or the
    cross-entropy with labels that spread what a model is unsure of evenly over the other classes.

    Parameters
    ----------
    logits : tf.Tensor
        (b, k).
    labels : tf.Tensor
        (b,) int.
    weight : tf.Tensor
        (b,) 1 / size for those who count, 0 for padding.
    target : tf.Tensor
        Mean loss to hold to.
    ascend : tf.Tensor
        bool, True in epochs of ascent.

    Returns
    -------
    tf.Tensor
        Scalar.

    References
    ----------
    Chen, Yu, Fritz: "RelaxLoss: defending membership inference attacks without losing utility", ICLR 2022, algorithm 1.

    Examples
    --------
    >>> float(relaxed(tf.constant([[9.0, 0.0]]), tf.constant([0]), tf.ones(1), tf.constant(1.0), tf.constant(True))) < 0
    True
    """
    mean = tf.reduce_sum(weight * losses(logits, labels))
    classes = tf.shape(logits)[1]
    true = tf.one_hot(labels, classes, dtype=logits.dtype)
    sure = tf.stop_gradient(tf.reduce_sum(true * tf.nn.softmax(logits), axis=1, keepdims=True))
    spread = true * sure + (1 - true) * (1 - sure) / tf.cast(classes - 1, logits.dtype)
    right = tf.argmax(logits, axis=1, output_type=tf.int32) == labels
    flat = tf.reduce_sum(weight * losses(logits, tf.where(right[:, None], spread, true)))
    return tf.where(mean > target, mean, tf.where(ascend, -mean, flat))


@functools.lru_cache(maxsize=32)
def _compiled(structure, in_row_space, dense_updates, dropout, smoothing, doubting, mixing, relaxing):
    """One XLA function a structure; switches that change what is computed are part of its name."""

    def step_once(step, state, data, hyper):
        first, speed, scale, scale_speed, weights, speeds = state
        inputs, starts, labels, rows, weight, partners, shares = data
        row, w = rows[step], weight[step]
        other, share = (partners[step], shares[step]) if mixing else (row, None)

        def of(values):
            """Values of the batch's patients, mixed in pairs where the recipe says so."""
            own = tf.gather(values, row)
            return share * own + (1 - share) * tf.gather(values, other) if mixing else own

        def back(delta, onto):
            """Add what comes back to a batch to the rows that it came from."""
            if not mixing:
                return tf.tensor_scatter_nd_add(onto, row[:, None], delta)
            onto = tf.tensor_scatter_nd_add(onto, row[:, None], share * delta)
            return tf.tensor_scatter_nd_add(onto, other[:, None], (1 - share) * delta)

        x = of(inputs)
        pre = x @ first
        if in_row_space:
            pre += scale * of(starts)
        with tf.GradientTape() as tape:
            tape.watch([pre, *weights])
            logits, _ = forward(structure, pre, weights, hyper if dropout else None, step)
            if relaxing:
                ascend = (step // hyper["per_epoch"]) % 2 == 0
                loss = relaxed(logits, tf.gather(labels, row), w, hyper["relax"], ascend)
            else:
                smooth, doubt = hyper["smooth"] if smoothing else None, hyper["doubt"] if doubting else None
                loss = tf.reduce_sum(w * losses(logits, of(labels), smooth, doubt))
        delta, *grads = tape.gradient(loss, [pre, *weights])
        rate, momentum, decay = hyper["rate"], hyper["momentum"], 2 * hyper["l2"]
        if not dense_updates and in_row_space:
            # Without momentum and decay a step moves only the rows of its own patients.
            first = back(-rate * delta, first)
            weights = [v - rate * g for v, g in zip(weights, grads, strict=True)]
            return first, speed, scale, scale_speed, weights, speeds
        if in_row_space:
            grad = back(delta, decay * first)
        else:
            grad = tf.matmul(x, delta, transpose_a=True) + decay * first
        speed = momentum * speed + grad
        scale_speed = momentum * scale_speed + decay * scale
        # Kernels decay, biases (every second weight from the first) do not.
        grads = [g + decay * v if i % 2 else g for i, (g, v) in enumerate(zip(grads, weights, strict=True))]
        speeds = [momentum * s + g for s, g in zip(speeds, grads, strict=True)]
        weights = [v - rate * s for v, s in zip(weights, speeds, strict=True)]
        return first - rate * speed, speed, scale - rate * scale_speed, scale_speed, weights, speeds

    @tf.function(jit_compile=True)
    def run(inputs, everyone, starts, starts_everyone, labels, rows, weight, mix, steps, first, weights, hyper):
        one = tf.ones([], first.dtype)
        state = (first, tf.zeros_like(first), one, 0 * one, weights, [tf.zeros_like(w) for w in weights])
        data = (inputs, starts, labels, rows, weight, *mix)
        state = tf.while_loop(
            lambda step, state: step < steps,
            lambda step, state: (step + 1, step_once(step, state, data, hyper)),
            (tf.constant(0), state),
        )[1]
        first, _, scale, _, weights, _ = state
        pre = everyone @ first
        if in_row_space:
            pre += scale * starts_everyone
        return forward(structure, pre, weights)[0], first, scale, weights

    return run


@dataclasses.dataclass(frozen=True)
class Patients:
    """All rows of a bank, prepared once: on genes, or as inner products.

    Attributes
    ----------
    rows : numpy.ndarray
        (R, d): patients, then query rows.
    inner, coordinates : numpy.ndarray or None
        From `basis` in row space, else None.
    """

    rows: np.ndarray
    inner: np.ndarray | None = None
    coordinates: np.ndarray | None = None

    @functools.cached_property
    def on_device(self):
        """The rows as a tensor that all models share: a copy a model would fill the memory on a large cohort."""
        return tf.constant(self.rows)


def prepare(rows, in_row_space):
    """Prepare the rows of a bank for `train_one`.

    Examples
    --------
    >>> prepare(np.eye(3, 5, dtype=np.float32), in_row_space=True).inner.shape
    (3, 3)
    """
    if not in_row_space:
        return Patients(rows)
    coordinates, inner = basis(rows)
    return Patients(rows, inner, coordinates)


def train_one(patients, labels, members, recipe, structure, batches, start, dropout_seed=0, padded=None):
    """Train one model and return its logits for all rows and its weights.

    Parameters
    ----------
    patients : Patients
        From `prepare`.
    labels : numpy.ndarray
        (n,) int, or (n, k) soft targets; rows beyond the first n are queries.
    members : numpy.ndarray
        (n,) bool.
    recipe : genlib.recipes.Recipe
        With SGD; its learning rate, momentum, l2, dropout and label smoothing.
    structure : Structure
    batches : (numpy.ndarray, numpy.ndarray)
        Rows (steps, width) and sizes (steps,), as `draw_batches`. Mixup draws its pairs and shares from
        `dropout_seed`.
    start : list of numpy.ndarray
        As `draw_start`; in row space the first kernel is in the basis (r, h), or on genes (d, h).
    dropout_seed : int
    padded : (int, int), optional
        Numbers of members and of steps to pad to, so that all models of a bank share one compiled function.

    Returns
    -------
    logits : numpy.ndarray
        (R, k).
    weights : callable
        Returns the trained weights in Keras' order, first kernel on genes (d, h). Only computed when called.

    Examples
    --------
    >>> from genlib import models
    >>> from genlib.recipes import Recipe
    >>> recipe, x = Recipe("softmax", epochs=2), np.random.default_rng(0).normal(size=(40, 60)).astype(np.float32)
    >>> structure = structure_of(models.build(recipe, 60, 2, seed=0))
    >>> members, patients = np.arange(40) < 20, prepare(x, in_row_space=True)
    >>> start = draw_start(structure, [0], first_rows=patients.coordinates.shape[1])
    >>> train_one(patients, np.arange(40) % 2, members, recipe, structure, draw_batches(20, 2, 8, [0]), start)[0].shape
    (40, 2)
    """
    in_row_space = patients.inner is not None
    who = np.flatnonzero(members)
    n_padded, steps_padded = padded or (len(who), 0)
    filled = np.concatenate([who, np.repeat(who[:1], n_padded - len(who))])
    dtype = patients.rows.dtype
    rows, weight = steps_of(*batches, steps_padded, recipe.batch_size or n_padded, dtype)
    if recipe.class_weights:
        weight = weight * np.asarray(recipe.class_weights, dtype)[labels[filled]][rows]
    if in_row_space:
        on_genes = start[0].shape[0] == patients.rows.shape[1] != patients.coordinates.shape[1]
        begun = (patients.rows if on_genes else patients.coordinates) @ start[0]
        # Padding members are copies of the first, and no step ever draws them.
        inputs, everyone = patients.inner[np.ix_(filled, filled)], patients.inner[:, filled]
        starts, first = begun[filled], np.zeros((n_padded, begun.shape[1]), dtype)
    else:
        inputs = everyone = patients.on_device
        begun = starts = start[0][:0]
        first = start[0]
    hyper = {
        "rate": dtype.type(recipe.learning_rate), "momentum": dtype.type(recipe.momentum), "l2": dtype.type(recipe.l2),
        "keep": dtype.type(1 - recipe.dropout), "smooth": dtype.type(recipe.label_smoothing),
        "doubt": dtype.type(recipe.confidence_penalty), "relax": dtype.type(recipe.relax),
        "seed": np.int32(dropout_seed),
        "per_epoch": np.int32(max(1, len(batches[1]) // recipe.epochs)),
    }  # fmt: skip
    dense_updates = bool(recipe.momentum or recipe.l2)
    run = _compiled(
        structure, in_row_space, dense_updates, recipe.dropout > 0, recipe.label_smoothing > 0,
        recipe.confidence_penalty > 0, recipe.mixup > 0, recipe.relax > 0,
    )  # fmt: skip
    if recipe.mixup and labels.ndim == 1:
        labels = np.eye(structure.shapes[-1][1])[labels]
    partners, shares = pairs(rows, batches[1], recipe.mixup, dropout_seed, dtype)
    if in_row_space:
        labels = labels[filled]
    else:
        # All models share the inputs, so batches name patients and not members.
        rows, partners = filled[rows].astype(np.int32), filled[partners].astype(np.int32)
    mix, steps = (partners, shares), np.int32(len(batches[1]))
    labels = labels.astype(np.int32 if labels.ndim == 1 else dtype)
    logits, first, scale, rest = run(
        inputs, everyone, starts, begun, labels, rows, weight, mix, steps, first, start[1:], hyper
    )

    def weights():
        kernel = first.numpy()
        if in_row_space:
            kernel = (
                float(scale) * _start_on_genes(patients, start[0], begun, structure.scales[0], dropout_seed)
                + patients.rows[who].T @ kernel[: len(who)]
            )
        return [kernel.astype(dtype), *[w.numpy() for w in rest]]

    return logits.numpy(), weights


def steps_of(rows, sizes, steps_padded, width, dtype):
    """Pad batches to one shape for the compiler, with weights 1 / size; what is padded weighs nothing.

    Examples
    --------
    >>> steps_of(np.array([[2, 0]]), np.array([1]), steps_padded=2, width=2, dtype=np.float32)[1]
    array([[1., 0.],
           [0., 0.]], dtype=float32)
    """
    padded = np.zeros((max(len(rows), steps_padded), width), np.int32)
    padded[: len(rows), : rows.shape[1]] = rows
    weight = np.zeros(padded.shape, dtype)
    weight[: len(rows)] = (np.arange(width) < sizes[:, None]) / sizes[:, None]
    return padded, weight


def pairs(rows, sizes, mixup, seed, dtype):
    """Draw with whom each patient of a batch is mixed, in its own batch, and the share that stays its own, one a step.

    Examples
    --------
    >>> rows = np.array([[0, 1, 2]])
    >>> partners, shares = pairs(rows, [3], mixup=0.4, seed=0, dtype=np.float32)
    >>> sorted(partners[0]), bool(0 <= shares[0] <= 1)
    ([0, 1, 2], True)
    """
    partners, shares = np.zeros((1, 1), np.int32), np.ones(1, dtype)
    if mixup:
        rng = np.random.default_rng([seed, 23])
        partners, shares = rows.copy(), np.ones(len(rows), dtype)
        shares[: len(sizes)] = rng.beta(mixup, mixup, len(sizes))
        for partner, row, size in zip(partners, rows, sizes, strict=False):
            partner[:size] = rng.permutation(row[:size])
    return partners, shares


def _start_on_genes(patients, kernel, begun, scale, seed):
    """Complete a start that was drawn in the basis to one on genes, isotropic also where no patient reaches."""
    n_genes = patients.rows.shape[1]
    if kernel.shape[0] == n_genes != patients.coordinates.shape[1]:
        return kernel
    rng = np.random.Generator(np.random.SFC64([seed, 11]))
    free = rng.standard_normal((n_genes, kernel.shape[1]), dtype=np.float32).astype(kernel.dtype) * kernel.dtype.type(
        scale
    )
    gap = (begun - patients.rows @ free).astype(np.float64)
    return free + patients.rows.T @ np.linalg.lstsq(patients.inner.astype(np.float64), gap, rcond=None)[0].astype(
        kernel.dtype
    )
