"""M networks side by side: Keras layers with a leading axis of models, and models whose one step is a whole training.

A compiled Keras model is the blueprint. `stack` clones it, and gives every dense layer a kernel for each model; all
other layers, the optimizer, the loss, regularizers and constraints stay Keras' own. All that is random (who is in which
step, dropout masks, noise) is data.
"""

import copy
import inspect
import threading

import numpy as np
import tensorflow as tf

K = tf.keras
TRACING = threading.Lock()  # Keras' graphs are not made for two threads at once; what they compile to is


class Dense(K.layers.Layer):
    """M dense layers like one of Keras', side by side: (M, b, d) to (M, b, units)."""

    def __init__(self, like):
        super().__init__(name=like.name, trainable=like.trainable)
        self.units, self.activation, self.use_bias = like.units, like.activation, like.use_bias
        self.kernel_constraint = copy.copy(like.kernel_constraint)
        self.of_kernel = {"regularizer": like.kernel_regularizer, "constraint": self.kernel_constraint}
        self.of_bias = {"regularizer": like.bias_regularizer, "constraint": like.bias_constraint}
        self.known = None

    def build(self, shape):
        """Make kernels (M, d, units) and biases (M, units); their values are assigned."""
        models, features = shape[0], shape[-1]
        self.kernel = self.add_weight("kernel", (models, features, self.units), initializer="zeros", **self.of_kernel)
        if self.use_bias:
            self.bias = self.add_weight("bias", (models, self.units), initializer="zeros", **self.of_bias)

    def call(self, x, training=False):
        """Keep what comes in and what goes out while it is traced: their gradients give each patient's norm."""
        self.given, inside = x, tf.matmul(x, self.kernel) if self.known is None else self.known
        self.out = (inside + self.bias[:, None]) if self.use_bias else inside
        return self.activation(self.out)


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


class SGD(K.optimizers.SGD):
    """Keras' SGD where there is no momentum: without the slots that it keeps all the same, a third of the time."""

    def build(self, variables):
        """Keep nothing for a variable."""
        K.optimizers.Optimizer.build(self, variables)
        self.momentums, self._built = [None] * len(variables), True


def mix(table, rows, shares):
    """Rows of a table, shared (n, d) or one a model (M, n, d), mixed: row j is sum_p shares[j, p] table[rows[j, p]]."""
    return tf.reduce_sum(shares[..., None] * tf.gather(table, rows, batch_dims=table.shape.rank - 2), axis=-2)


def masked(layer):
    """Copy a layer of Keras'; dropout takes its masks as data."""
    usual = type(layer) is K.layers.Dropout and layer.noise_shape is None
    return Dropout(layer.rate, name=layer.name) if usual else again(layer)


def masks_of(model):
    """Shape of one patient's mask, behind the axis of patients, and rate of each dropout layer."""
    dropouts = [layer for layer in model.layers if isinstance(layer, Dropout)]
    return [(layer.shape[layer.shape.index(None) + 1 :], float(layer.rate)) for layer in dropouts]


def hand_out(model, loss, step):
    """Hand a step's masks and its epoch to whom they concern."""
    dropouts = [layer for layer in model.layers if isinstance(layer, Dropout)]
    for layer, mask in zip(dropouts, step["masks"], strict=True):
        layer.mask = mask
    if hasattr(loss, "epoch"):
        loss.epoch.assign(tf.reduce_max(step["epoch"]))


class Bank(K.Model):
    """A stacked Keras model whose one step is a whole training."""

    def compile(self, optimizer, loss, **options):
        """As Keras' own; batches weigh each patient, so losses are summed."""
        super().compile(optimizer, loss, **options)
        self.dense = [layer for layer in self.layers if isinstance(layer, Dense)]
        self.trained = [layer for layer in self.dense if layer.trainable]
        self.own, self.functions = list(self.trainable_variables), {}

    @property
    def in_order(self):
        """Kernels and biases of all models, in Keras' order."""
        return [weight for layer in self.dense for weight in (layer.kernel, *([layer.bias] if layer.use_bias else []))]

    def compiled(self, function, *data):
        """Call a method as one XLA function, traced once for each form of its data."""
        data = tf.nest.map_structure(tf.convert_to_tensor, data)
        with TRACING:
            if function not in self.functions:
                self.functions[function] = tf.function(getattr(self, function), jit_compile=True)
            traced = self.functions[function].get_concrete_function(*data)
        return traced(*data)

    def train_step(self, data):
        """Go through all steps."""
        table, steps = data

        def one(i):
            self.step(table, tf.nest.map_structure(lambda values: values[i], steps))
            return (i + 1,)

        tf.while_loop(lambda i: i < len(steps["epoch"]), one, (tf.constant(0),))
        return {}

    def begin(self, starts):
        """Give the models the weights that they start from, each a list in Keras' order; the optimizer forgets all."""
        for weight, column in zip(self.in_order, zip(*starts, strict=True), strict=True):
            weight.assign(np.stack(column))
        self.optimizer.build(self.own)
        for value in self.optimizer.variables:
            if "learning_rate" not in value.name:
                value.assign(tf.zeros_like(value))

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
        hand_out(self, self.loss, step)
        return mix(table, step["rows"], step["shares"])

    def loss_of(self, x, logits, step):
        """Weighted sum of the patients' losses, and the regularizers'; some steps pull the last layer to centers."""
        loss = self.compute_loss(x, step["targets"], logits, step["weights"])
        if "centers" in step:
            loss += tf.reduce_sum(step["pull"][..., None] * (self.dense[-1].given - step["centers"]) ** 2)
        return loss

    def step(self, table, step):
        """One step of the optimizer."""
        x = self.inputs_of(table, step)
        with tf.GradientTape() as tape:
            loss = self.loss_of(x, self(x, training=True), step)
        self.optimizer.minimize(loss, self.own, tape=tape)


class PrivateBank(Bank):
    """DP-SGD (Abadi et al., CCS 2016): clipped gradients are summed, given noise (data), and divided by a constant.

    A dense layer's gradient for one patient is the outer product of what came in and of the error at what went out, so
    its norm is a product of norms (Goodfellow, arXiv:1510.01799), and clipping is a weight on the errors: one pass.
    """

    plan = None  # clip norm, divisor, and whether norms are taken with the same masks (`genlib.privacy.Mechanism`)

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
        norms = self.norms(given, errors) if self.plan.same_mask else self.norms(*self.errors(x, step, training=False))
        finite = tf.math.is_finite(norms)
        factor = tf.where(finite, tf.minimum(self.plan.clip_norm / tf.maximum(norms, 1e-30), 1.0), tf.zeros_like(norms))
        sums = []
        for layer, came, error in zip(self.trained, given, errors, strict=True):
            error = tf.where(finite[..., None], factor[..., None] * error, tf.zeros_like(error))
            came = tf.where(finite[..., None], came, tf.zeros_like(came))
            sums.append(tf.matmul(came, error, transpose_a=True))
            if layer.use_bias:
                sums.append(tf.reduce_sum(error, axis=1))
        return sums, norms

    def step(self, table, step):
        """Clip, add noise, divide; decay knows no patient, so it is added after clipping."""
        sums, _ = self.clipped(self.inputs_of(table, step), step)
        with tf.GradientTape() as tape:
            decay = tf.add_n(self.losses) if self.losses else tf.zeros((), sums[0].dtype)
        slopes = tape.gradient(decay, self.own, unconnected_gradients="zero")
        grads = [(s + z) / self.plan.divisor + d for s, z, d in zip(sums, step["noise"], slopes, strict=True)]
        self.optimizer.ema_momentum = step["averaged"]
        self.optimizer.apply_gradients(zip(grads, self.own, strict=True))


def stack(model, models, width, kind=Bank):
    """Clone a Keras model with a leading axis of models; it takes (M, b, width)."""

    def clone(layer):
        return Dense(layer) if type(layer) is K.layers.Dense else masked(layer)

    given = K.Input((None, width), batch_size=models)
    stacked = K.models.clone_model(K.Model(model.inputs, model.outputs), input_tensors=[given], clone_function=clone)
    return kind(stacked.input, stacked.output)


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
