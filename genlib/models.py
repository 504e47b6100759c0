"""Keras architectures by name. A model maps features to logits; softmax is left to the loss and to the reader."""

import numpy as np
import tensorflow as tf

from genlib import results

# Two runs with one seed give the same numbers on one machine, on a GPU too, at some cost in speed there.
tf.config.experimental.enable_op_determinism()


def _gaussian(fan_in, gain, seed):
    # Gaussian, not the uniform default: only Gaussian (or zero) starts look the same in every basis of gene space.
    return tf.keras.initializers.RandomNormal(stddev=float(np.sqrt(gain / fan_in)), seed=seed)


def _dense(units, fan_in, gain, recipe, seed, name):
    decay = tf.keras.regularizers.L2(recipe.l2) if recipe.l2 else None
    start = _gaussian(fan_in, gain, seed)
    return tf.keras.layers.Dense(units, kernel_initializer=start, kernel_regularizer=decay, name=name)


def _softmax(recipe, inputs, n_classes, seeds):
    return _dense(n_classes, inputs.shape[-1], 1.0, recipe, seeds[0], "logits")(inputs)


def _mlp(recipe, inputs, n_classes, seeds):
    x = inputs
    for level, units in enumerate(recipe.hidden):
        x = _dense(units, x.shape[-1], 2.0, recipe, seeds[2 * level], f"hidden_{level + 1}")(x)
        x = tf.keras.layers.ReLU(name=f"relu_{level + 1}")(x)
        if recipe.dropout:
            x = tf.keras.layers.Dropout(recipe.dropout, seed=seeds[2 * level + 1], name=f"dropout_{level + 1}")(x)
    return _dense(n_classes, x.shape[-1], 1.0, recipe, seeds[-1], "logits")(x)


def _deeptype(recipe, inputs, n_classes, seeds):
    def dense(units, seed, activation, name):
        decay = tf.keras.regularizers.L2(recipe.l2) if recipe.l2 else None
        start = tf.keras.initializers.RandomNormal(stddev=DEEPTYPE_DEVIATION, seed=seed)
        return tf.keras.layers.Dense(units, activation, kernel_initializer=start, kernel_regularizer=decay, name=name)

    x = inputs
    for level, units in enumerate(recipe.hidden):
        x = dense(units, seeds[2 * level], "sigmoid", f"hidden_{level + 1}")(x)
        if recipe.dropout:
            x = tf.keras.layers.Dropout(recipe.dropout, seed=seeds[2 * level + 1], name=f"dropout_{level + 1}")(x)
    return dense(n_classes, seeds[-1], None, "logits")(x)


def _cnn(recipe, inputs, n_classes, seeds):
    decay = tf.keras.regularizers.L2(recipe.l2) if recipe.l2 else None
    # Kernels move by their whole width: each reads a patch of neighboring genes, and no gene is read twice.
    x = tf.keras.layers.Reshape((inputs.shape[-1], 1), name="as_sequence")(inputs)
    x = tf.keras.layers.Conv1D(
        CNN_FILTERS, CNN_WIDTH, strides=CNN_WIDTH, padding="same", activation="relu", name="convolution",
        kernel_initializer=_gaussian(CNN_WIDTH, 2.0, seeds[-2]), kernel_regularizer=decay,
    )(x)  # fmt: skip
    if inputs.shape[-1] > CNN_WIDTH:
        x = tf.keras.layers.MaxPooling1D(2, name="pool")(x)
    return _mlp(recipe, tf.keras.layers.Flatten(name="flatten")(x), n_classes, seeds)


DEEPTYPE_DEVIATION = 0.02  # of the Gaussian start of all kernels
CNN_FILTERS, CNN_WIDTH = 32, 71
ARCHITECTURES = {"softmax": _softmax, "mlp": _mlp, "deeptype": _deeptype, "cnn": _cnn}


def build(recipe, n_features, n_classes, seed, model_class=tf.keras.Model, **options):
    """Build an untrained model.

    ``"softmax"`` is regression without a hidden layer, ``"mlp"`` has ReLU hidden layers, ``"deeptype"`` the sigmoid
    layers of DeepType, and ``"cnn"`` 32 kernels over 71 genes each, pooled in pairs, before ReLU hidden layers. Weights
    start from N(0, 2 / fan-in) before a ReLU and N(0, 1 / fan-in) in the last layer, in DeepType all from
    N(0, 0.02^2); biases from 0.

    Parameters
    ----------
    recipe : genlib.recipes.Recipe
    n_features, n_classes : int
        Numbers d of features and k of classes.
    seed : int
        Fixes the start and the dropout masks.
    model_class, **options
        Keras model class and what it takes beside inputs and outputs; DP-SGD comes in here.

    Returns
    -------
    tf.keras.Model
        (n, d) features to (n, k) logits, float32.

    Raises
    ------
    ValueError
        When the architecture is unknown; lists the known.

    References
    ----------
    DeepType: Chen, Yang, Goodison, Sun, Bioinformatics 36(5), 2020. 1D-CNN: Mostavi, Chiu, Huang, Chen, BMC Medical
    Genomics 13(Suppl 5):44, 2020 (here kernels move by their own width).

    Examples
    --------
    >>> from genlib.recipes import Recipe
    >>> build(Recipe("mlp", hidden=(8,)), n_features=20, n_classes=3, seed=0).output_shape
    (None, 3)
    """
    if recipe.architecture not in ARCHITECTURES:
        raise ValueError(
            f"architecture '{recipe.architecture}' is not known; choose one of {', '.join(sorted(ARCHITECTURES))}"
        )
    # `generate_state` gives unsigned numbers; Keras wants them below 2^31.
    seeds = [int(s) >> 1 for s in np.random.SeedSequence([seed, 4]).generate_state(2 * len(recipe.hidden) + 2)]
    inputs = tf.keras.Input((n_features,), name="features")
    outputs = ARCHITECTURES[recipe.architecture](recipe, inputs, n_classes, seeds)
    return model_class(inputs=inputs, outputs=outputs, name=recipe.architecture, **options)


def loss(recipe, n_classes):
    """Cross-entropy on logits with integer labels, with the recipe's label smoothing.

    Parameters
    ----------
    recipe : genlib.recipes.Recipe
    n_classes : int

    Returns
    -------
    callable
        (labels, logits) to one loss a patient or to their mean, as Keras takes it.

    References
    ----------
    Label smoothing: Szegedy et al., "Rethinking the inception architecture", CVPR 2016, section 7.

    Examples
    --------
    >>> from genlib.recipes import Recipe
    >>> round(float(loss(Recipe(), 2)(np.array([0]), np.array([[0.0, 0.0]]))), 4)
    0.6931
    """
    if not recipe.label_smoothing:
        return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    smooth = tf.keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=recipe.label_smoothing)
    return lambda labels, logits: smooth(tf.one_hot(tf.cast(tf.reshape(labels, [-1]), tf.int32), n_classes), logits)


def predict(model, features):
    """Logits of a model for every row, without dropout.

    Parameters
    ----------
    model : tf.keras.Model
    features : numpy.ndarray
        (n, d) float32.

    Returns
    -------
    numpy.ndarray
        (n, k) float32.

    Examples
    --------
    >>> from genlib.recipes import Recipe
    >>> predict(build(Recipe("softmax"), 4, 2, seed=0), np.zeros((3, 4), np.float32)).shape
    (3, 2)
    """
    return model(features, training=False).numpy()


def representation(model, features):
    """What the last layer of a model works on.

    Parameters
    ----------
    model : tf.keras.Model
        From `build`.
    features : numpy.ndarray
        (n, d) float32.

    Returns
    -------
    numpy.ndarray
        (n, h) float32; of a softmax regression the features themselves.

    Examples
    --------
    >>> from genlib.recipes import Recipe
    >>> representation(build(Recipe("mlp", hidden=(8,)), 4, 2, seed=0), np.zeros((3, 4), np.float32)).shape
    (3, 8)
    """
    return tf.keras.Model(model.input, model.layers[-1].input)(features, training=False).numpy()


def save(model, path):
    """Write a model as one ``.keras`` file, atomically; `tf.keras.models.load_model` opens it without genlib.

    Parameters
    ----------
    model : tf.keras.Model
        One made by `build` with the default class.
    path : path-like
        Ends in ``.keras``.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from genlib.recipes import Recipe
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "target.keras"
    >>> save(build(Recipe("softmax"), 4, 2, seed=0), path)
    >>> tf.keras.models.load_model(path).output_shape
    (None, 2)
    """
    with results.atomic_path(path) as part:
        model.save(part)


def device():
    """Name the device that trains: the first GPU that TensorFlow sees, else the processor.

    Examples
    --------
    >>> device() != ""
    True
    """
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "CPU"
    return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
