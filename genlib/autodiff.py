"""Training by automatic differentiation: for recipes whose training row space does not hold, or whose loss needs more.

Adam, sparsity of the first layer, convolutions, the K-means rounds of DeepType, and adversarial regularization. As in
`genlib.engine`, a whole training is one compiled function; here it works on inputs as they are, genes or, where the
identity holds, patients' coordinates.
"""

import functools

import numpy as np
import tensorflow as tf
from sklearn.cluster import KMeans

from genlib import engine

BETA_1, BETA_2, TINY = 0.9, 0.999, 1e-7  # Adam, as Keras has them
RAMP_SHARE = 0.25  # sparsity grows as 1 - exp(-t / T) with T this share of the steps (300 of 1,200 in DeepType)
ATTACKER = (64, 32)  # hidden units of the network that adversarial regularization trains against
ATTACKER_RATE = 0.01


def is_needed(recipe):
    """Say whether a recipe is trained here rather than by `genlib.engine`.

    Examples
    --------
    >>> from genlib.recipes import Recipe
    >>> is_needed(Recipe("mlp")), is_needed(Recipe("mlp", optimizer="adam")), is_needed(Recipe("cnn"))
    (False, True, True)
    """
    special = recipe.l1 or recipe.group or recipe.clustering or recipe.adversary
    return bool(special or recipe.optimizer != "sgd" or recipe.architecture == "cnn")


def holds_in_row_space(recipe):
    """Say whether training on coordinates of patients is the same as training on genes.

    Examples
    --------
    >>> from genlib.recipes import Recipe
    >>> holds_in_row_space(Recipe("mlp", adversary=1.0)), holds_in_row_space(Recipe("mlp", group=0.1))
    (True, False)
    """
    return recipe.optimizer == "sgd" and not (recipe.l1 or recipe.group) and recipe.architecture != "cnn"


def predict(structure, x, weights, dropout=None, step=0):
    """Logits of inputs, and what the last layer works on.

    Parameters
    ----------
    structure : genlib.engine.Structure
    x : tf.Tensor
        (n, d).
    weights : list of tf.Tensor
        In Keras' order; a convolution's kernel as (width, filters).
    dropout, step : see `genlib.engine.forward`

    Returns
    -------
    logits : tf.Tensor
        (n, k).
    representation : tf.Tensor
        (n, h) input of the last layer.

    Examples
    --------
    >>> softmax = engine.Structure((("dense", "linear"),), ((4, 2),), (1.0,))
    >>> predict(softmax, tf.ones((3, 4)), [tf.ones((4, 2)), tf.zeros(2)])[0].numpy()[0]
    array([4., 4.], dtype=float32)
    """
    if structure.layers[0][0] == "convolution":
        # Kernels move by their own width, so each reads a patch of genes of its own; padded as Keras' "same".
        genes, width = x.shape[1], structure.shapes[0][0]
        missing = -genes % width
        x = tf.pad(x, [[0, 0], [missing // 2, missing - missing // 2]])
        x = tf.reshape(x, [-1, (genes + missing) // width, width])
    logits, dense = engine.forward(structure, tf.matmul(x, weights[0]), weights[1:], dropout, step)
    return logits, x if len(dense) == 1 else dense[-1][0]


def shrink(kernel, threshold, by_row):
    """Pull a kernel towards zero, and set to zero exactly what does not reach the threshold.

    Parameters
    ----------
    kernel : tf.Tensor
        (d, h).
    threshold : tf.Tensor
        At least 0; a scalar, (d, 1) or (d, h).
    by_row : bool
        Whole rows by their norms (group lasso: one row, one gene); else each entry by itself (lasso).

    Returns
    -------
    tf.Tensor
        (d, h).

    References
    ----------
    Yuan, Lin: "Model selection and estimation in regression with grouped variables", J R Stat Soc B 68, 2006; as a
    proximal step: Parikh, Boyd: "Proximal algorithms", 2014, sections 6.5.1 and 6.5.2.

    Examples
    --------
    >>> shrink(tf.constant([[3.0, 4.0], [0.3, 0.4]]), 1.0, by_row=True).numpy()
    array([[2.4, 3.2],
           [0. , 0. ]], dtype=float32)
    """
    size = tf.norm(kernel, axis=1, keepdims=True) if by_row else tf.abs(kernel)
    return kernel * tf.maximum(0.0, 1 - threshold / tf.maximum(size, np.finfo(np.float32).tiny))


@functools.lru_cache(maxsize=128)
def _compiled(structure, switches, shapes):
    """One XLA function a structure and shapes; `switches` names what loss and update hold beside cross-entropy."""

    def step_once(step, state, data, hyper):
        weights, moments, squares, attacker = state
        inputs, labels, centers, reference, rows, weight, partners, shares = data
        row, w, now = rows[step], weight[step], step + hyper["done"]

        def of(values):
            """Values of the batch's patients, mixed in pairs where the recipe says so."""
            own = tf.gather(values, row)
            if "mixup" not in switches:
                return own
            return shares[step] * own + (1 - shares[step]) * tf.gather(values, partners[step])

        x, y = of(inputs), of(labels)
        masks = hyper if "dropout" in switches else None
        if "adversary" in switches:
            attacker = _train_attacker(structure, attacker, weights, x, y, w, reference, step)
        with tf.GradientTape() as tape:
            tape.watch(weights)
            logits, inside = predict(structure, x, weights, masks, now)
            loss = _loss(logits, y, w, step, switches, hyper)
            if "clustering" in switches:
                loss += hyper["compact"] * tf.reduce_sum(
                    w * tf.reduce_sum((inside - tf.gather(centers, row)) ** 2, axis=1)
                )
            if "adversary" in switches:
                sure = tf.math.log_sigmoid(_suspect(attacker[0], logits, y))
                loss += hyper["adversary"] * tf.reduce_sum(w * sure)
        grads = tape.gradient(loss, weights)
        # Kernels decay, biases do not.
        grads = [g if i % 2 else g + 2 * hyper["l2"] * v for i, (g, v) in enumerate(zip(grads, weights, strict=True))]
        weights, moments, squares = _update(now, weights, moments, squares, grads, switches, hyper)
        return weights, moments, squares, attacker

    @tf.function(jit_compile=True)
    def run(data, steps, state, hyper):
        return tf.while_loop(
            lambda step, state: step < steps,
            lambda step, state: (step + 1, step_once(step, state, data, hyper)),
            (tf.constant(0), state),
        )[1]

    return run


def _loss(logits, labels, weight, step, switches, hyper):
    if "relax" in switches:
        ascend = (step // hyper["per_epoch"]) % 2 == 0
        return engine.relaxed(logits, labels, weight, hyper["relax"], ascend)
    smooth = hyper["smooth"] if "smoothing" in switches else None
    doubt = hyper["doubt"] if "doubt" in switches else None
    return tf.reduce_sum(weight * engine.losses(logits, labels, smooth, doubt))


def adam(step, rate, weights, moments, squares, grads, by_row=False):
    """One step of Adam.

    Parameters
    ----------
    step : tf.Tensor
        From 0.
    rate : float or tf.Tensor
        Learning rate.
    weights, moments, squares, grads : list of tf.Tensor
        Weights, running means of gradients and of their squares, gradients.
    by_row : bool
        One running mean of squares a row of the first weight, so that a proximal step on whole rows has a closed form.

    Returns
    -------
    weights, moments, squares : list of tf.Tensor

    References
    ----------
    Kingma, Ba: "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1, with epsilon where Keras has it.

    Examples
    --------
    >>> one = [tf.ones(1)]
    >>> round(float(adam(0, 0.1, one, [tf.zeros(1)], [tf.zeros(1)], one)[0][0]), 4)
    0.9
    """
    new = [g**2 for g in grads]
    if by_row:
        new[0] = tf.reduce_mean(new[0], axis=1, keepdims=True) + tf.zeros_like(new[0])
    moments = [BETA_1 * m + (1 - BETA_1) * g for m, g in zip(moments, grads, strict=True)]
    squares = [BETA_2 * s + (1 - BETA_2) * n for s, n in zip(squares, new, strict=True)]
    rates = adam_rates(step, rate, squares)
    return [v - r * m for v, r, m in zip(weights, rates, moments, strict=True)], moments, squares


def adam_rates(step, rate, squares):
    """What Adam multiplies each running mean of gradients by.

    Examples
    --------
    >>> round(float(adam_rates(0, 0.1, [tf.constant([0.001])])[0]), 4)
    1.0
    """
    count = tf.cast(step + 1, squares[0].dtype)
    rate = rate * tf.sqrt(1 - BETA_2**count) / (1 - BETA_1**count)
    return [rate / (tf.sqrt(s) + TINY) for s in squares]


def _update(step, weights, moments, squares, grads, switches, hyper):
    """One step of SGD or Adam, then the proximal step of the first kernel."""
    rate = hyper["rate"]
    if "adam" in switches:
        weights, moments, squares = adam(step, rate, weights, moments, squares, grads, "group" in switches)
        first = adam_rates(step, rate, squares[:1])[0]
    else:
        moments = [hyper["momentum"] * m + g for m, g in zip(moments, grads, strict=True)]
        weights = [v - rate * m for v, m in zip(weights, moments, strict=True)]
        first = rate * tf.ones_like(weights[0])
    ramp = 1 - tf.exp(-tf.cast(step + 1, rate.dtype) / hyper["ramp"])
    if "group" in switches:
        weights[0] = shrink(weights[0], first[:, :1] * hyper["group"] * ramp, by_row=True)
    if "l1" in switches:
        weights[0] = shrink(weights[0], first * hyper["l1"] * ramp, by_row=False)
    return weights, moments, squares


def _suspect(weights, logits, labels):
    """What the attacker's network makes of an answer and its label: above 0 where it takes the patient for a member."""
    if labels.dtype.is_integer:
        labels = tf.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    x = tf.concat([tf.nn.softmax(logits), labels], axis=1)
    for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        x = tf.nn.relu(x @ kernel + bias)
    return tf.reshape(x @ weights[-2] + weights[-1], [-1])


def _train_attacker(structure, attacker, weights, x, y, w, reference, step):
    """One step of Adam that tells the batch's answers from those for as many reference patients."""
    found, moments, squares = attacker
    others, their_labels, drawn = reference
    answers = predict(structure, x, weights)[0]
    theirs = tf.gather(others, drawn[step])
    their_answers, their_y = predict(structure, theirs, weights)[0], tf.gather(their_labels, drawn[step])
    with tf.GradientTape() as tape:
        tape.watch(found)
        members = -tf.math.log_sigmoid(_suspect(found, answers, y))
        loss = tf.reduce_sum(w * members) - tf.reduce_mean(
            tf.math.log_sigmoid(-_suspect(found, their_answers, their_y))
        )
    grads = tape.gradient(loss, found)
    return adam(step, ATTACKER_RATE, found, moments, squares, grads)


def train_one(inputs, labels, members, recipe, structure, batches, start, seed=0, padded=None, reserved=None):
    """Train one model and return its logits for all rows and its weights.

    Parameters
    ----------
    inputs : numpy.ndarray
        (R, d) features, or coordinates of patients where that is the same (`holds_in_row_space`).
    labels : numpy.ndarray
        (n,) int, or (n, k) soft targets; rows beyond the first n are queries.
    members : numpy.ndarray
        (n,) bool.
    recipe : genlib.recipes.Recipe
    structure : genlib.engine.Structure
    batches : (numpy.ndarray, numpy.ndarray)
        Rows (steps, width) and sizes (steps,), as `genlib.engine.draw_batches`; of the first phase where there are two.
    start : list of numpy.ndarray
        As `genlib.engine.draw_start`.
    seed : int
        For dropout, mixtures, K-means and the attacker of adversarial regularization.
    padded : (int, int), optional
        Numbers of members and of steps to pad to, so that all models of a bank share one compiled function.
    reserved : numpy.ndarray, optional
        (n,) bool, reference patients of adversarial regularization.

    Returns
    -------
    logits : numpy.ndarray
        (R, k).
    weights : callable
        Returns the trained weights in Keras' order.

    Raises
    ------
    ValueError
        When sparsity has given up every gene.

    References
    ----------
    Adversarial regularization: Nasr, Shokri, Houmansadr: "Machine learning with membership privacy using adversarial
    regularization", CCS 2018, equation 9 and algorithm 1. K-means rounds: Chen, Yang, Goodison, Sun, Bioinformatics
    36(5), 2020.

    Examples
    --------
    >>> from genlib import models
    >>> from genlib.recipes import Recipe
    >>> recipe, x = Recipe("softmax", epochs=2, l1=0.01), np.random.default_rng(0).normal(size=(40, 6)).astype("f4")
    >>> structure = engine.structure_for(recipe, 6, 2)
    >>> start, batches = engine.draw_start(structure, [0]), engine.draw_batches(20, 2, 8, [0])
    >>> train_one(x, np.arange(40) % 2, np.arange(40) < 20, recipe, structure, batches, start)[0].shape
    (40, 2)
    """
    who = np.flatnonzero(members)
    n_padded, steps_padded = padded or (len(who), 0)
    filled = np.concatenate([who, np.repeat(who[:1], n_padded - len(who))])
    dtype, k = inputs.dtype, structure.shapes[-1][1]
    if recipe.mixup and labels.ndim == 1:
        labels = np.eye(k)[labels]
    labels = labels.astype(np.int32 if labels.ndim == 1 else dtype)
    hyper = _numbers(recipe, batches, seed, dtype)
    schedule = engine.steps_of(*batches, steps_padded, recipe.batch_size or n_padded, dtype)
    mix = engine.pairs(schedule[0], batches[1], recipe.mixup, seed, dtype)
    reference, attacker = _opponent(inputs, labels, reserved, recipe, dtype, k, schedule[0].shape, seed)
    run = _compiled(structure, _switches(recipe), (n_padded, inputs.shape, schedule[0].shape))
    weights = [np.asarray(w, dtype) for w in start]
    nothing = np.zeros((1, 1), dtype)
    data = (inputs[filled], labels[filled], nothing, reference, *schedule, *mix)
    state = (weights, *_zeros(weights), attacker)
    weights = run(data, np.int32(len(batches[1])), state, hyper)[0]
    weights = [w.numpy() for w in weights]
    if (recipe.group or recipe.l1) and not weights[0].any():
        raise ValueError(f"group={recipe.group:g}, l1={recipe.l1:g} gave up every gene; choose a smaller strength")
    if recipe.clustering:
        weights = _cluster(inputs[filled], labels[filled], len(who), weights, recipe, structure, hyper, seed)
    return predict(structure, tf.constant(inputs), weights)[0].numpy(), lambda: weights


def _zeros(weights):
    return [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]


def _switches(recipe):
    named = {
        "adam": recipe.optimizer == "adam", "group": recipe.group, "l1": recipe.l1, "dropout": recipe.dropout,
        "smoothing": recipe.label_smoothing, "doubt": recipe.confidence_penalty, "mixup": recipe.mixup,
        "relax": recipe.relax, "adversary": recipe.adversary,
    }  # fmt: skip
    return frozenset(name for name, value in named.items() if value)


def _numbers(recipe, batches, seed, dtype):
    steps = len(batches[1])
    numbers = {
        "rate": recipe.learning_rate, "momentum": recipe.momentum, "l2": recipe.l2, "keep": 1 - recipe.dropout,
        "smooth": recipe.label_smoothing, "doubt": recipe.confidence_penalty, "relax": recipe.relax,
        "group": recipe.group, "l1": recipe.l1, "adversary": recipe.adversary, "ramp": max(1.0, RAMP_SHARE * steps),
        "compact": recipe.clustering.weight if recipe.clustering else 0.0,
    }  # fmt: skip
    return {name: dtype.type(value) for name, value in numbers.items()} | {
        "seed": np.int32(seed),
        "done": np.int32(0),
        "per_epoch": np.int32(max(1, steps // recipe.epochs)),
    }


def _opponent(inputs, labels, reserved, recipe, dtype, k=1, shape=(1, 1), seed=0):
    """Reference patients, whom of them each step draws, and the attacker's network as it starts."""
    if not recipe.adversary:
        return (np.zeros((1, 1), dtype), np.zeros(1, np.int32), np.zeros((1, 1), np.int32)), ((), (), ())
    rng = np.random.default_rng([seed, 24])
    others = np.flatnonzero(reserved)
    widths = [2 * k, *ATTACKER, 1]
    network = []
    for rows, columns in zip(widths, widths[1:], strict=False):
        network += [(np.sqrt(2 / rows) * rng.standard_normal((rows, columns))).astype(dtype), np.zeros(columns, dtype)]
    drawn = rng.integers(0, len(others), shape).astype(np.int32)
    return (inputs[others], labels[others], drawn), (network, *_zeros(network))


def _cluster(inputs, labels, n, weights, recipe, structure, hyper, seed):
    """Rounds of K-means on the members' representation, each followed by steps that draw patients to their center.

    Genes that the first phase gave up stay given up, so that only the others are computed.
    """
    plan, dtype = recipe.clustering, inputs.dtype
    alive = np.flatnonzero(np.abs(weights[0]).max(axis=1) > 0)
    # A power of two of genes, so that models share compiled functions; the columns beyond the survivors stay zero.
    width = min(inputs.shape[1], 1 << int(max(len(alive), 1) - 1).bit_length())
    x, first = np.zeros((len(inputs), width), dtype), np.zeros((width, weights[0].shape[1]), dtype)
    x[:, : len(alive)], first[: len(alive)] = inputs[:, alive], weights[0][alive]
    small = [first, *weights[1:]]
    moved, hyper = _zeros(small), hyper | {"ramp": dtype.type(TINY)}  # sparsity at full strength from the first step
    switches = _switches(recipe) | {"clustering"}
    reference, attacker = _opponent(None, None, None, recipe, dtype)
    for turn in range(plan.rounds):
        inside = predict(structure, tf.constant(x), small)[1].numpy()
        # The members alone, without those that only pad.
        found = KMeans(min(plan.n_clusters, n), n_init=1, random_state=(seed + turn) % 2**31).fit(inside[:n])
        centers = found.cluster_centers_.astype(dtype)[found.predict(inside)]
        rows, sizes = engine.draw_batches(n, plan.epochs, recipe.batch_size, [seed, 25, turn])
        schedule = engine.steps_of(rows, sizes, 0, recipe.batch_size or len(inputs), dtype)
        data = (x, labels, centers, reference, *schedule, *engine.pairs(schedule[0], sizes, 0.0, seed, dtype))
        hyper["done"] = np.int32(turn * len(sizes))
        run = _compiled(structure, switches, (x.shape, schedule[0].shape))
        small, *moved, _ = run(data, np.int32(len(sizes)), (small, *moved, attacker), hyper)
    small = [w.numpy() if tf.is_tensor(w) else w for w in small]
    first = np.zeros_like(weights[0])
    first[alive] = small[0][: len(alive)]
    return [first, *small[1:]]
