"""The study's networks: functions that return an ordinary compiled Keras model, the blueprint of all that is trained.

Whoever has a network of their own writes it in Keras; nothing here is needed for it. How a network of the study is
trained stands in the profiles; `recipe` reads it.
"""

import dataclasses
import inspect
import pathlib
import runpy

import tensorflow as tf

from genlib import results

if tf.config.list_physical_devices("GPU"):
    # Two runs with one seed give the same numbers there too, and norms are norms, at some cost in speed.
    tf.config.experimental.enable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(False)

K = tf.keras

# Gaussian, not Keras' uniform default: a Gaussian start looks the same in every basis of gene space, so that it can be
# drawn where a network trains. Written as Keras writes it down: one shared initializer would start layers alike.
START = K.initializers.serialize(K.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal"))
LAST = K.initializers.serialize(K.initializers.VarianceScaling(1.0, "fan_in", "untruncated_normal"))  # before no ReLU
DEEPTYPE_START = K.initializers.serialize(K.initializers.RandomNormal(stddev=0.02))
FILTERS, WIDTH = 32, 71  # of the convolution


def refuse(wrong, words):
    """Raise a ValueError that says what is wrong with what was asked for, and the way out."""
    if wrong:
        raise ValueError(words)


@K.utils.register_keras_serializable("genlib")
class Sparse(K.constraints.Constraint):
    """Lasso of a kernel's entries, or of its rows (one row, one gene): a proximal step after each optimizer's step.

    Parameters
    ----------
    strength : float
    by_row : bool
        True gives up whole genes, False single weights.
    ramp : float
        The strength grows as 1 - exp(-step / ramp).

    References
    ----------
    Yuan, Lin: "Model selection and estimation in regression with grouped variables", J R Stat Soc B 68, 2006; as a
    proximal step: Parikh, Boyd: "Proximal algorithms", 2014, sections 6.5.1 and 6.5.2.

    Examples
    --------
    >>> rows = Sparse(1.0, by_row=True, ramp=1e-9)
    >>> rows.optimizer = K.optimizers.SGD(1.0)
    >>> rows.optimizer.iterations.assign(1).numpy()
    1
    >>> rows(tf.constant([[3.0, 4.0], [0.3, 0.4]])).numpy()
    array([[2.4, 3.2],
           [0. , 0. ]], dtype=float32)
    """

    def __init__(self, strength, by_row, ramp=50.0):
        self.strength, self.by_row, self.ramp, self.optimizer = strength, by_row, ramp, None

    def __call__(self, kernel):
        """Pull a kernel, or one a model, towards zero; set to zero exactly what does not reach the threshold."""
        step = tf.cast(self.optimizer.iterations, kernel.dtype)  # counts the step that was just taken
        threshold = rates(self.optimizer, kernel, step, self.by_row) * self.strength * (1 - tf.exp(-step / self.ramp))
        size = tf.norm(kernel, axis=-1, keepdims=True) if self.by_row else tf.abs(kernel)
        return kernel * tf.nn.relu(1 - threshold / tf.maximum(size, 1e-38))

    def get_config(self):
        """As Keras wants it."""
        return {"strength": float(self.strength), "by_row": self.by_row, "ramp": float(self.ramp)}


def follow(model, optimizer):
    """Let the sparse kernels of a model follow the steps and rates of an optimizer."""
    for layer in model.layers:
        if isinstance(getattr(layer, "kernel_constraint", None), Sparse):
            layer.kernel_constraint.optimizer = optimizer


def rates(optimizer, kernel, step, by_row=False):
    """What SGD or Adam multiplies the gradient, or its running mean, of a kernel by in a step, counted from 1.

    Adam has a rate for each entry; whole rows are pulled at the rate that the mean square of their entries gives.
    """
    if not isinstance(optimizer, K.optimizers.Adam):
        return optimizer.learning_rate
    square = optimizer._velocities[optimizer._index_dict[optimizer._var_key(kernel)]]
    square = tf.reduce_mean(square, -1, keepdims=True) if by_row else square
    correction = tf.sqrt(1 - optimizer.beta_2**step) / (1 - optimizer.beta_1**step)
    return optimizer.learning_rate * correction / (tf.sqrt(square) + optimizer.epsilon)


def finish(model, optimizer="sgd", learning_rate=0.02, momentum=0.0, loss=None):
    """Compile a network with one of two optimizers by name, or any of Keras' own; a `Sparse` constraint follows it.

    Parameters
    ----------
    optimizer : {"sgd", "adam"} or tf.keras.optimizers.Optimizer
    learning_rate, momentum : float
    loss : tf.keras.losses.Loss, optional
        By default cross-entropy on logits.
    """
    known = {"sgd": K.optimizers.SGD(learning_rate, momentum), "adam": K.optimizers.Adam(learning_rate)}
    chosen = known.get(optimizer, optimizer)
    refuse(isinstance(chosen, str), f"optimizer='{optimizer}': choose 'sgd' or 'adam', or compile the model yourself")
    follow(model, chosen)
    model.compile(chosen, loss or K.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def softmax(n_features, n_classes, l1=0.0, kernel_regularizer=None, ramp=50.0, **compiled):
    """Softmax regression, with the lasso where `l1` is above 0; `ramp` as in `Sparse`, `compiled` as in `finish`.

    Examples
    --------
    >>> softmax(20, 3).output_shape
    (None, 3)
    """
    sparse = Sparse(l1, False, ramp) if l1 else None
    last = K.layers.Dense(n_classes, None, True, LAST, kernel_regularizer=kernel_regularizer, kernel_constraint=sparse)
    return finish(K.Sequential([K.Input((n_features,)), last]), **compiled)


def mlp(n_features, n_classes, hidden=(256,), dropout=0.0, group=0.0, kernel_regularizer=None, ramp=50.0, **compiled):
    """Multilayer perceptron with ReLU layers.

    Parameters
    ----------
    n_features, n_classes : int
    hidden : sequence of int
        Units of each hidden layer.
    dropout : float
        Share of the units of a hidden layer that is dropped.
    group, ramp : float
        Group lasso of the genes, and the steps in which it grows to its strength; see `Sparse`.
    kernel_regularizer : tf.keras.regularizers.Regularizer, optional
    **compiled
        See `finish`.

    Examples
    --------
    >>> [layer.units for layer in mlp(20, 3, hidden=(8, 4)).layers]
    [8, 4, 3]
    """
    front, sparse = [K.Input((n_features,))], Sparse(group, True, ramp) if group else None
    model = _dense(front, n_classes, hidden, "relu", (START, LAST), dropout, sparse, kernel_regularizer)
    return finish(model, **compiled)


def deeptype(
    n_features, n_classes, hidden=(128, 64), dropout=0.0, group=0.0, kernel_regularizer=None, ramp=50.0, **compiled
):
    """DeepType's sigmoid network, whose first layer gives up genes; its K-means rounds are an option of `bank.train`.

    Options are those of `mlp`.

    References
    ----------
    Chen, Yang, Goodison, Sun: "Deep-learning approach to identifying cancer subtypes using high-dimensional genomic
    data", Bioinformatics 36(5), 2020.

    Examples
    --------
    >>> deeptype(20, 3, group=0.1).layers[0].kernel_constraint.by_row
    True
    """
    front, sparse = [K.Input((n_features,))], Sparse(group, True, ramp) if group else None
    starts = (DEEPTYPE_START, DEEPTYPE_START)
    model = _dense(front, n_classes, hidden, "sigmoid", starts, dropout, sparse, kernel_regularizer)
    return finish(model, **compiled)


def cnn(n_features, n_classes, hidden=(128,), dropout=0.0, kernel_regularizer=None, **compiled):
    """Convolution over neighboring genes, whose kernels move by their own width, before the layers of an `mlp`.

    References
    ----------
    Mostavi, Chiu, Huang, Chen: "Convolutional neural network models for cancer type prediction based on gene
    expression", BMC Medical Genomics 13(Suppl 5):44, 2020.

    Examples
    --------
    >>> cnn(200, 3).output_shape
    (None, 3)
    """
    options = {"kernel_initializer": START, "kernel_regularizer": kernel_regularizer}
    front = [
        K.Input((n_features,)),
        K.layers.Reshape((n_features, 1)),
        K.layers.Conv1D(FILTERS, WIDTH, strides=WIDTH, padding="same", activation="relu", **options),
        *([K.layers.MaxPooling1D(2)] if n_features > WIDTH else []),
        K.layers.Flatten(),
    ]
    model = _dense(front, n_classes, hidden, "relu", (START, LAST), dropout, None, kernel_regularizer)
    return finish(model, **compiled)


NETWORKS = {"softmax": softmax, "mlp": mlp, "deeptype": deeptype, "cnn": cnn}
COMPILED = ("optimizer", "learning_rate", "momentum", "loss")
TRAINING = ("epochs", "batch_size", "clustering", "center")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is built and trained, from `recipe`.

    Attributes
    ----------
    name : str
        As results name it: that of the network, or of the function, and what was changed.
    function : callable
        (n_features, n_classes) and options to a compiled Keras model.
    options, training : dict
        What the function is given, and what `bank.train` is.
    """

    name: str
    function: callable
    options: dict
    training: dict

    @property
    def takes(self):
        """Names of the options that `build` takes."""
        own = list(inspect.signature(self.function).parameters)[2:]
        return [*(name for name in own if name != "compiled"), *COMPILED]

    def build(self, n_features, n_classes, **changes):
        """Build the network, with some of its options changed; see `takes`; a function of one's own must compile it."""
        asked = {**self.options, **changes}
        again = {name: asked.pop(name) for name in COMPILED if name in asked}
        model = self.function(n_features, n_classes, **asked)
        found = f"{self.name}({n_features}, {n_classes}) returned {type(model).__name__} that is not compiled"
        unfinished = getattr(model, "optimizer", None) is None
        refuse(unfinished, f"{found}; end it with model.compile(optimizer, loss) and return model")
        if not again.keys() - {"loss"}:
            again["optimizer"] = model.optimizer
        return finish(model, **{"loss": model.loss} | again)


def recipe(network="mlp", profile="quick", options=None):
    """Say how a network is built and trained, as its profile has it, one option or another changed.

    Parameters
    ----------
    network : str
        One of `NETWORKS`, or ``FILE.py:FUNCTION``: a function of your own, ``build(n_features, n_classes)``, that
        returns a compiled Keras model; it is trained as the profile's ``own`` says.
    profile : str
        Name of a file beside the notebooks, as ``"quick"``.
    options : dict, optional
        What to change, of the model or of its training, as ``{"learning_rate": 0.05, "epochs": 50}``.

    Examples
    --------
    >>> how = recipe("mlp", "quick", {"epochs": 50})
    >>> how.options, how.training
    ({'hidden': [256], 'learning_rate': 0.02}, {'epochs': 50, 'batch_size': 32, 'center': True})
    >>> how.name, how.build(20, 3, hidden=[8]).count_params()
    ('mlp (epochs 50)', 195)
    """
    known = results.read_yaml(pathlib.Path(__file__).parent.parent / "notebooks" / f"{profile}.yaml")["networks"]
    own = ":" in network or network.endswith(".py")
    choices = f"choose one of {', '.join(NETWORKS)}, or your own as FILE.py:FUNCTION"
    refuse(not own and network not in NETWORKS, f"network '{network}' is not known; {choices}")
    function = _function(network) if own else NETWORKS[network]
    usual = known["own" if own else network]
    chosen = {**usual, **(options or {})}
    changed = ", ".join(f"{name} {value}" for name, value in chosen.items() if usual.get(name) != value)
    training = {name: chosen.pop(name) for name in TRAINING if name in chosen}
    name = function.__name__
    found = Recipe(name + f" ({changed})" * bool(changed), function, chosen, training)
    takes = [*found.takes, *TRAINING]
    unknown = [option for option in chosen if option not in takes]
    refuse(unknown, f"network_options: {name} takes no '{', '.join(unknown)}'; choose among {', '.join(takes)}")
    return found


def _function(written):
    """Take a function from a Python file."""
    path, _, name = written.rpartition(":")
    way_out = "write FILE.py:FUNCTION, as my_models.py:build"
    refuse(not name or not path, f"network '{written}' names no function; {way_out}")
    refuse(not pathlib.Path(path).is_file(), f"network '{written}': there is no file {path}; {way_out}")
    there = {word: value for word, value in runpy.run_path(path).items() if inspect.isfunction(value)}
    here = ", ".join(there) or "none"
    refuse(name not in there, f"network '{written}': {path} has no function '{name}'; it has {here}")
    return there[name]


def _dense(front, n_classes, hidden, activation, starts, dropout, sparse, kernel_regularizer):
    """Dense layers in one line behind others; the first has the constraint `sparse`."""
    model, options = K.Sequential(front), {"kernel_regularizer": kernel_regularizer}
    for units in hidden:
        model.add(K.layers.Dense(units, activation, True, starts[0], kernel_constraint=sparse, **options))
        sparse = None
        if dropout:
            model.add(K.layers.Dropout(dropout))
    model.add(K.layers.Dense(n_classes, None, True, starts[1], **options))
    return model


def device():
    """Name the device that trains: the first GPU that TensorFlow sees, else the processor.

    Examples
    --------
    >>> device() != ""
    True
    """
    gpus = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else "CPU"
