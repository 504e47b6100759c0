"""M networks side by side: Keras layers with a leading axis of models, and models whose one step is a whole training.

A compiled Keras model is the blueprint. `stack` clones it, and gives every dense layer (and every convolution that
moves by its own width) a kernel for each model; all other layers, the optimizer, the loss, regularizers and constraints
stay Keras' own. All that is random (who is in which step, dropout masks, noise) is data.
"""

import copy
import functools
import inspect
import threading
import types

import numpy as np
import tensorflow as tf

from genlib import networks

K = tf.keras
TRACING = threading.Lock()  # Keras' graphs are not made for two threads at once; what they compile to is
PARTS = ("kernel_regularizer", "bias_regularizer", "kernel_constraint", "bias_constraint")
BY_ENTRY = (K.regularizers.L1, K.regularizers.L2, K.regularizers.L1L2)  # regularizers that never mix two models
# Where code of a user's own may stand.
CODE = (
    types.FunctionType, functools.partial, K.constraints.Constraint, K.regularizers.Regularizer, K.losses.Loss,
    K.initializers.Initializer, K.layers.Layer, K.optimizers.Optimizer, K.optimizers.legacy.Optimizer,
    K.optimizers.schedules.LearningRateSchedule,
)  # fmt: skip


class Dense(K.layers.Layer):
    """M dense layers side by side: (M, b, d) to (M, b, units)."""

    def __init__(self, units, activation=None, use_bias=True, parts=None, **options):
        super().__init__(**options)
        self.units, self.activation, self.use_bias = units, K.activations.get(activation), use_bias
        self.known = None
        for name in PARTS:
            setattr(self, name, (parts or {}).get(name))

    def build(self, shape):
        """Make kernels (M, d, units) and biases (M, 1, units); their values are assigned."""
        self.add_kernel((shape[0], shape[-1], self.units))
        if self.use_bias:
            self.bias = self.add_zeros("bias", (shape[0], 1, self.units))

    def add_kernel(self, shape):
        """Make the kernels."""
        self.kernel = self.add_zeros("kernel", shape)

    def add_zeros(self, part, shape):
        """Make the kernels or the biases, with what Keras does to them."""
        does = {name: getattr(self, f"{part}_{name}") for name in ("regularizer", "constraint")}
        return self.add_weight(part, shape, initializer="zeros", **does)

    @property
    def first_weights(self):
        """What the product with the inputs takes."""
        return [self.kernel]

    def product(self, x, training):
        """Inputs times kernels, without biases; or that product where it is known."""
        return tf.matmul(x, self.kernel) if self.known is None else self.known

    def call(self, x, training=False):
        """Keep what comes in and what goes out while it is traced: their gradients give each patient's norm."""
        self.given, self.inside = x, self.product(x, training)
        self.out = (self.inside + self.bias) if self.use_bias else self.inside
        return self.activation(self.out)


class SpanDense(Dense):
    """First dense layers of M models in the span of their members: W = scale W_0 + X_members^T A.

    A patient comes in as inner products with the members, then as what the start gives it: (M, b, members + units).
    SGD moves W by X_batch^T delta, so it moves the batch's own rows of A by delta: the value goes through the inner
    products, the gradient through the look-up of those rows. Exact for SGD, momentum and L2, whatever W_0 was.
    """

    def add_kernel(self, shape):
        """Make the coefficients A of the members, and the scale of the start, which decays like them."""
        super().add_kernel((shape[0], shape[1] - self.units, self.units))
        decays = {"regularizer": self.kernel_regularizer, "trainable": self.kernel_regularizer is not None}
        self.scale = self.add_weight("scale", (shape[0], 1, 1), initializer="ones", **decays)

    @property
    def first_weights(self):
        """What the product with the inputs takes."""
        return [self.kernel, self.scale]

    def product(self, x, training):
        """Value through the inner products; what is added while training is exactly zero, and brings the gradient."""
        if self.known is not None:
            return self.known
        inner, begun = tf.split(x, [x.shape[-1] - self.units, self.units], axis=-1)
        value = tf.matmul(inner, self.kernel) + self.scale * begun
        if training:
            rows = mix(self.kernel, *self.rows)
            value = tf.stop_gradient(value) + (rows - tf.stop_gradient(rows))
        return value


class Convolution(Dense):
    """M convolutions that move by their width, each patch a row: (M, b, length, c) to (M, b, patches, units)."""

    def __init__(self, units, width, padding, **options):
        super().__init__(units, **options)
        self.width, self.padding = width, padding

    def build(self, shape):
        """Count the patches; "same" pads to whole ones, "valid" leaves a rest out."""
        missing = -shape[2] % self.width if self.padding == "same" else 0
        self.pads = [[0, 0], [0, 0], [missing // 2, missing - missing // 2], [0, 0]]
        self.patches = (shape[2] + missing) // self.width
        super().build((shape[0], None, self.width * shape[3]))

    def call(self, x, training=False):
        """Cut into patches, and go through the kernels."""
        x = tf.pad(x, self.pads)[:, :, : self.patches * self.width]
        rows = super().call(tf.reshape(x, (x.shape[0], -1, self.kernel.shape[1])), training)
        return tf.reshape(rows, (self.kernel.shape[0], -1, self.patches, self.units))


class Pool(K.layers.Layer):
    """Largest of neighbors, as Keras' MaxPooling1D, whose gradient XLA does not have under determinism."""

    def __init__(self, width, **options):
        super().__init__(**options)
        self.width = width

    def call(self, x):
        """(M, b, length, c) to (M, b, length // width, c)."""
        whole = x.shape[2] // self.width
        parts = (x.shape[0], -1, whole, self.width, x.shape[3])
        return tf.reduce_max(tf.reshape(x[:, :, : whole * self.width], parts), axis=3)


class Dropout(K.layers.Layer):
    """Dropout whose masks are data: `mask`, set before each step, says which units are kept."""

    def __init__(self, rate, **options):
        super().__init__(**options)
        self.rate, self.mask = rate, None

    def build(self, shape):
        """Note what a mask must look like."""
        self.shape = tuple(shape)

    def call(self, x, training=False):
        """Drop units in training."""
        return tf.where(self.mask, x / (1 - self.rate), tf.zeros_like(x)) if training else x


class EachRow(K.layers.Layer):
    """A layer without weights, called on the patients of all models at once."""

    def __init__(self, layer, **options):
        super().__init__(name=layer.name, **options)
        self.layer = layer

    def call(self, inputs):
        """(M, b, ...) to (M * b, ...), Keras' layer, and back."""
        models = tf.nest.flatten(inputs)[0].shape[0]
        out = self.layer(tf.nest.map_structure(lambda x: tf.reshape(x, (-1, *x.shape[2:])), inputs))
        return tf.reshape(out, (models, -1, *out.shape[1:]))


class SGD(K.optimizers.SGD):
    """Keras' SGD where there is no momentum: without the slots that it keeps all the same, a third of the time."""

    def build(self, variables):
        """Keep nothing for a variable."""
        K.optimizers.Optimizer.build(self, variables)
        self.momentums, self._built = [None] * len(variables), True


def mix(table, rows, shares):
    """Rows of a table, shared (n, d) or one a model (M, n, d), mixed: row j is sum_p shares[j, p] table[rows[j, p]]."""
    if rows.shape[-1] == 1:
        return tf.gather(table, rows[..., 0], batch_dims=table.shape.rank - 2)
    return tf.reduce_sum(shares[..., None] * tf.gather(table, rows, batch_dims=table.shape.rank - 2), axis=2)


class Steps:
    """A training whose data holds the batches of all its steps, compiled as one function."""

    compilable, begun = True, None

    def compiled(self, function, *data):
        """Call a method as one XLA function, traced once for each form of its data."""
        data = tf.nest.map_structure(tf.convert_to_tensor, data)
        key = (function, self.compilable, *[(value.dtype, *value.shape) for value in tf.nest.flatten(data)])
        if key not in self.traced:
            with TRACING:
                traced = tf.function(getattr(self, function), jit_compile=self.compilable)
                self.traced[key] = traced.get_concrete_function(*tf.nest.map_structure(tf.TensorSpec.from_tensor, data))
        return self.traced[key](*data)

    def train_step(self, data):
        """Go through all steps; those beyond `count` only fill the data up to one length."""
        table, steps, count = data

        def one(i):
            self.step(table, tf.nest.map_structure(lambda values: values[i], steps))
            return (i + 1,)

        tf.while_loop(lambda i: i < count, one, (tf.constant(0),))
        return {}

    def restart(self):
        """Forget what the optimizer remembers; a moving average of weights starts from the start."""
        if not hasattr(self.optimizer, "build"):
            return  # of Keras' former kind, and new
        self.optimizer.build(self.own)
        if self.begun is None:  # zeros, but for products and squares of some optimizers
            self.begun = [value.numpy() for value in self.optimizer.variables]
        for value, begun in zip(self.optimizer.variables, self.begun, strict=True):
            if "learning_rate" not in value.name:
                value.assign(begun)
        if self.optimizer.use_ema:
            for average, value in zip(self.optimizer._model_variables_moving_average, self.own, strict=True):
                average.assign(value)

    def hand_out(self, step):
        """Hand masks and the epoch to whom they concern."""
        for layer, mask in zip(self.dropouts, step["masks"], strict=True):
            layer.mask = mask
        if hasattr(self.loss, "epoch"):
            self.loss.epoch.assign(step["epoch"])


class Alone(Steps):
    """One ordinary compiled Keras model, which trains by its own `train_step`, in the place of a bank of one."""

    def __init__(self, model, weighted):
        self.weighted = weighted
        self.model, self.optimizer, self.loss, self.own = model, model.optimizer, model.loss, model.trainable_variables
        self.dropouts, self.traced = [layer for layer in model.layers if isinstance(layer, Dropout)], {}

    def step(self, table, step):
        """One step of Keras' own."""
        self.hand_out(step)
        for layer in self.dropouts:
            layer.mask = layer.mask[0]
        data = mix(table, step["rows"], step["shares"]), step["targets"], step["weights"]
        self.model.train_step(tuple(part[0] for part in (data if self.weighted else data[:2])))

    def begin(self, starts):
        """Give the model the weights that it starts from."""
        self.model.set_weights(starts[0])
        self.restart()

    def read(self, x):
        """Answers (1, n, k)."""
        return self.model(x, training=False)[None]


class Bank(Steps, K.Model):
    """A stacked Keras model whose one step is a whole training."""

    def compile(self, optimizer, loss, **options):
        """As Keras' own; batches weigh each patient, so losses are summed."""
        super().compile(optimizer, loss, **options)
        self.dropouts = [layer for layer in self.layers if isinstance(layer, Dropout)]
        self.dense = [layer for layer in self.layers if isinstance(layer, Dense)]
        self.trained = [layer for layer in self.dense if layer.trainable]
        self.own, self.traced = list(self.trainable_variables), {}

    def begin(self, starts):
        """Give the models the weights that they start from, each a list in Keras' order."""
        columns = iter(zip(*starts, strict=True))
        for layer in self.dense:
            layer.kernel.assign(np.reshape(np.stack(next(columns)), layer.kernel.shape))
            if isinstance(layer, SpanDense):
                layer.scale.assign(tf.ones_like(layer.scale))
            if layer.use_bias:
                layer.bias.assign(np.stack(next(columns))[:, None])
            if isinstance(layer.kernel.constraint, networks.Sparse):
                layer.kernel.constraint.alive.assign(tf.ones_like(layer.kernel))
        self.restart()

    def weights_of(self, place):
        """Weights of one model in Keras' order; its first kernel as it trained."""
        kept = [[layer.kernel[place], *([layer.bias[place, 0]] if layer.use_bias else [])] for layer in self.dense]
        return [weight.numpy() for of_layer in kept for weight in of_layer]

    def read(self, x, inside=None):
        """Answers (M, n, k) and what the last layer works on (M, n, h); of `inside`, products with the first kernel."""
        if inside is not None:
            x = tf.zeros((*inside.shape[:2], self.input_shape[-1]), inside.dtype)
        self.dense[0].known = inside
        answers = self(x, training=False)
        self.dense[0].known = None
        return answers, self.dense[-1].given

    def inputs_of(self, table, step):
        """Features of a step's patients."""
        self.hand_out(step)
        self.dense[0].rows = step["rows"], step["shares"]
        return mix(table, step["rows"], step["shares"])

    def loss_of(self, x, logits, step):
        """Weighted sum of the patients' losses, and the regularizers'."""
        return self.compute_loss(x, step["targets"], logits, step["weights"])

    def step(self, table, step):
        """One step of the optimizer."""
        x = self.inputs_of(table, step)
        with tf.GradientTape() as tape:
            loss = self.loss_of(x, self(x, training=True), step)
        self.optimizer.minimize(loss, self.own, tape=tape)


class ClusterBank(Bank):
    """DeepType's second phase (Chen et al. 2020): what the last layer works on is drawn to `centers`."""

    def loss_of(self, x, logits, step):
        """The loss, and the squared distances to the centers."""
        apart = tf.reduce_sum((self.dense[-1].given - step["centers"]) ** 2, axis=-1)
        return super().loss_of(x, logits, step) + tf.reduce_sum(step["compactness"] * step["weights"] * apart)


class PrivateBank(Bank):
    """DP-SGD (Abadi et al., CCS 2016): clipped gradients are summed, given noise (data), and divided by a constant.

    A dense layer's gradient for one patient is the outer product of what came in and of the error at what went out, so
    its norm is a product of norms (Goodfellow, arXiv:1510.01799), and clipping is a weight on the errors: one pass.
    """

    clip_norm = divisor = None
    same_mask = True  # False plants a fault: norms are taken without dropout, as TF-Privacy's fast clipping does

    def errors(self, x, step, training=True):
        """What came in at each dense layer, and the errors at what went out, of every patient."""
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(step["weights"] * self.loss(step["targets"], self(x, training=training)))
        given = [layer.given for layer in self.trained]
        return given, tape.gradient(loss, [layer.out for layer in self.trained])

    def norms(self, given, errors):
        """Norms (M, b) of the patients' gradients, before clipping."""
        tiny = tf.constant(1e-30, given[0].dtype)
        squares = 0.0
        for layer, x, error in zip(self.trained, given, errors, strict=True):
            # Relative to the largest entry: a small error has squares that underflow, and is large by a large input.
            largest = tf.maximum(tf.reduce_max(tf.abs(error), -1, keepdims=True), tiny)
            of_error = largest[..., 0] * tf.norm(error / largest, axis=-1)
            squares += (tf.reduce_sum(x**2, -1) + float(layer.use_bias)) * of_error**2
        return tf.sqrt(squares)

    def clipped(self, x, step):
        """Sums over patients in the variables' order, and the norms; one that is not finite leaves its patient out."""
        given, errors = self.errors(x, step)
        norms = self.norms(given, errors) if self.same_mask else self.norms(*self.errors(x, step, training=False))
        finite = tf.math.is_finite(norms)
        factor = tf.where(finite, tf.minimum(self.clip_norm / tf.maximum(norms, 1e-30), 1.0), tf.zeros_like(norms))
        sums = {}
        for layer, came, error in zip(self.trained, given, errors, strict=True):
            error = tf.where(finite[..., None], factor[..., None] * error, tf.zeros_like(error))
            came = tf.where(finite[..., None], came, tf.zeros_like(came))
            sums[layer.kernel.ref()] = tf.matmul(came, error, transpose_a=True)
            if layer.use_bias:
                sums[layer.bias.ref()] = tf.reduce_sum(error, axis=1, keepdims=True)
        return [sums[variable.ref()] for variable in self.trainable_variables], norms

    def step(self, table, step):
        """Clip, add noise, divide; decay knows no patient, so it is added after clipping."""
        sums, _ = self.clipped(self.inputs_of(table, step), step)
        with tf.GradientTape() as tape:
            decay = tf.add_n(self.losses) if self.losses else tf.zeros((), sums[0].dtype)
        slopes = tape.gradient(decay, self.trainable_variables, unconnected_gradients="zero")
        # With Keras' moving average, momenta 0, 1/2, 2/3, ... over the last steps make it their mean.
        self.optimizer.ema_momentum = step["averaged"]
        grads = [(s + z) / self.divisor + d for s, z, d in zip(sums, step["noise"], slopes, strict=True)]
        self.optimizer.apply_gradients(zip(grads, self.trainable_variables, strict=True))


def stack(model, models, width, in_span=False, kind=Bank):
    """Clone a Keras model with a leading axis of models; it takes (M, b, width)."""
    first = next(layer for layer in model.layers if layer.weights)

    def clone(layer):
        config = {"name": layer.name, "trainable": layer.trainable}
        if type(layer) in (K.layers.Dense, K.layers.Conv1D):
            config["parts"] = {name: _variable(getattr(layer, name)) for name in PARTS}
            config |= {"activation": layer.activation, "use_bias": layer.use_bias}
            if type(layer) is K.layers.Conv1D:
                return Convolution(layer.filters, layer.kernel_size[0], layer.padding, **config)
            return (SpanDense if in_span and layer is first else Dense)(layer.units, **config)
        if type(layer) is K.layers.Dropout:
            dropout = Dropout(layer.rate, **config)
            dropout.rate = _held(layer.rate)
            return dropout
        if type(layer) is K.layers.MaxPooling1D:
            return Pool(layer.pool_size[0], **config)
        if type(layer) in (K.layers.Activation, K.layers.Softmax):
            return again(layer)  # by itself, so that Keras' losses find the logits behind it
        return EachRow(again(layer))

    given = K.Input((None, width), batch_size=models)
    clone = K.models.clone_model(K.Model(model.inputs, model.outputs), input_tensors=[given], clone_function=clone)
    return kind(clone.input, clone.output)


class Function(K.losses.Loss):
    """A loss given as a function."""

    def __init__(self, function, **options):
        super().__init__(**options)
        self.call = function


def is_own(thing):
    """Whether a function or an object is neither Keras' nor of this package, but a user's own."""
    module = getattr(thing if inspect.isfunction(thing) else type(thing), "__module__", "")
    return not (module or "").startswith(("builtins", "keras.", "genlib."))


def again(layer, config=None):
    """Make a layer once more; functions, constraints and the like of a user's own need no registration with Keras."""
    config = config or layer.get_config()
    parts = [name for name in config if name == "activation" or name.endswith(("izer", "_constraint"))]
    own = {name: vars(layer)[name] for name in parts if name in vars(layer) and is_own(vars(layer)[name])}
    fresh = type(layer).from_config(config | dict.fromkeys(own))
    for name, part in own.items():
        setattr(fresh, name, part)
    return fresh


def _held(value):
    return tf.Variable(value, dtype=K.backend.floatx(), trainable=False)


def _variable(part):
    """A regularizer or constraint whose strength is a variable: one compiled network serves all strengths."""
    held = copy.copy(part)
    names = {K.regularizers.L1: ["l1"], K.regularizers.L2: ["l2"], networks.Sparse: ["strength", "ramp"]}
    for name in names.get(type(part), []):
        setattr(held, name, _held(getattr(part, name)))
    return held
