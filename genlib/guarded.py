"""TF-Privacy's own DP-SGD, behind a guard: a second engine, to which the study's engine is held.

Only full batches (sampling rate q = 1): TF-Privacy's ``fit`` shuffles, while accounting for smaller batches assumes
Poisson sampling. Its fast clipping is refused for models that it would not clip.
"""

import numpy as np
import tensorflow as tf
from tensorflow_privacy.privacy.fast_gradient_clipping import layer_registry
from tensorflow_privacy.privacy.keras_models.dp_keras_model import DPModel

from genlib import models, privacy

# Layers for which TF-Privacy's fast clipping takes the norm of the very gradient that it applies. A list of what is
# allowed, not of what is refused: a layer nobody thought of is refused.
CLIPPED_LAYERS = (tf.keras.layers.InputLayer, tf.keras.layers.Dense, tf.keras.layers.ReLU)
CLIPPED_ACTIVATIONS = tuple(
    getattr(tf.keras.activations, name) for name in ("linear", "relu", "sigmoid", "tanh", "elu", "softmax")
)


def refuse_unclipped(model):
    """Refuse a model for which TF-Privacy's fast clipping would not clip every patient's gradient.

    Its norms are taken in another forward pass than its gradients, so a layer that draws random numbers makes the two
    differ; a layer used twice has a gradient that is longer than its two parts; batch statistics mix patients.

    Parameters
    ----------
    model : tf.keras.Model

    Raises
    ------
    ValueError
        Naming the layer and the way out.

    Examples
    --------
    >>> from genlib.recipes import Recipe
    >>> refuse_unclipped(models.build(Recipe("mlp"), 20, 3, seed=0))
    >>> refuse_unclipped(models.build(Recipe("mlp", dropout=0.2), 20, 3, seed=0))
    Traceback (most recent call last):
    ValueError: layer 'dropout_1' (Dropout): fast clipping does not bound its gradients; ...
    """
    way_out = "leave it out, or train with clipping='slow', which clips every model"
    for layer in model.layers:
        where = f"layer '{layer.name}' ({type(layer).__name__})"
        if type(layer) not in CLIPPED_LAYERS:
            raise ValueError(f"{where}: fast clipping does not bound its gradients; {way_out}")
        if getattr(layer, "activation", None) not in (None, *CLIPPED_ACTIVATIONS):
            raise ValueError(f"{where}: its activation is not one that is known to be deterministic; {way_out}")
        if getattr(layer, "activity_regularizer", None) is not None:
            raise ValueError(f"{where}: activity regularization depends on patients but is not clipped; leave it out")
        if len(layer.inbound_nodes) > 1:
            raise ValueError(f"{where}: it is used more than once, so its norm is not the sum of its parts; {way_out}")


def applied_norms(recipe, features, labels, weights, clip_norm, seed):
    """Norms of the gradients that TF-Privacy's fast clipping really applies, one patient at a time, without noise.

    For a model with dropout, which `refuse_unclipped` refuses, they are not bounded by the clip norm.

    Parameters
    ----------
    recipe : genlib.recipes.Recipe
        Its architecture and dropout.
    features : numpy.ndarray
        (n, d) float32.
    labels : numpy.ndarray
        (n,) int.
    weights : list of numpy.ndarray
        Where the gradients are taken, in Keras' order.
    clip_norm : float
    seed : int

    Returns
    -------
    numpy.ndarray
        (n,)

    Examples
    --------
    >>> from genlib.recipes import Recipe
    >>> x, weights = np.ones((2, 4), np.float32), [np.zeros((4, 2), np.float32), np.zeros(2, np.float32)]
    >>> applied_norms(Recipe("softmax"), x, np.array([0, 1]), weights, clip_norm=1.0, seed=0).round(4)
    array([1., 1.])
    """
    registry = layer_registry.make_default_layer_registry()
    model = models.build(
        recipe, features.shape[1], len(weights[-1]), seed, DPModel, l2_norm_clip=clip_norm, noise_multiplier=0.0,
        layer_registry=registry,
    )  # fmt: skip
    reduced = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    model.compile(tf.keras.optimizers.SGD(1.0), reduced)
    norms = []
    # TF-Privacy's first step warns of a library function that AutoGraph leaves as it is, which is right.
    tf.get_logger().setLevel("ERROR")
    for i in range(len(features)):
        model.set_weights(weights)
        model.train_on_batch(features[i : i + 1], labels[i : i + 1])
        moved = [after - before for after, before in zip(model.get_weights(), weights, strict=True)]
        norms.append(np.sqrt(sum((part.astype(float) ** 2).sum() for part in moved)))
    tf.get_logger().setLevel("WARNING")
    return np.array(norms)


class FullBatchDPModel(DPModel):
    """TF-Privacy's `DPModel` that trains on full batches only and never past its budget.

    Build it with `dp_model`, which sets `budget_steps`.
    """

    budget_steps = 0
    steps_taken = 0
    rows_seen = 0
    noise_seed = 0
    clipping_path = "slow"
    rate_of_sum = 0.0

    def fit(self, x=None, y=None, batch_size=None, epochs=1, **options):
        """Train on full batches, as `tf.keras.Model.fit`; refuses what the guarantee does not cover.

        Raises
        ------
        ValueError
            When batches are smaller than the data, the data is not an array, early stopping or validation data is
            given, or the steps would go past the budget.
        """
        if not isinstance(x, np.ndarray) or not isinstance(y, np.ndarray) or len(x) != len(y):
            raise ValueError("a private model trains on two arrays of the same length, features and labels")
        if batch_size not in (None, len(x)):
            raise ValueError(
                f"batch_size={batch_size} for {len(x)} patients: only full batches are accounted for, since Keras "
                "shuffles where the accountant assumes Poisson sampling; leave batch_size out"
            )
        refused = sorted(set(options) - {"verbose"})
        if refused:
            raise ValueError(f"{refused}: not covered by the guarantee; a private fit takes x, y, epochs and verbose")
        # One type for all calls: TensorFlow compiles a step anew for another, and starts its random numbers again.
        x, y = np.ascontiguousarray(x, np.float32), np.ascontiguousarray(y, np.int64)
        if not isinstance(epochs, int) or epochs < 1:
            raise ValueError(f"epochs={epochs}: must be a whole number of at least 1")
        if self.rows_seen not in (0, len(x)):
            # TensorFlow compiles a step anew for another shape and starts its random numbers again from the same seed.
            raise ValueError(
                f"{len(x)} patients after a fit on {self.rows_seen}: the same noise would be drawn twice; build a new "
                "model"
            )
        if self.steps_taken + epochs > self.budget_steps:
            raise ValueError(
                f"epochs={epochs} after {self.steps_taken} steps would go past the budget of {self.budget_steps}; "
                "calibrate for more epochs first"
            )
        if not self.steps_taken:
            # Noise of its own for every model, also where several are built in one process.
            tf.random.set_seed(self.noise_seed)
        self.steps_taken += epochs
        self.rows_seen = len(x)
        # The slow path divides by the patients that came; undone here, so that both divide by the nominal n.
        self.optimizer.learning_rate = self.rate_of_sum * (len(x) if self.clipping_path == "slow" else 1)
        return super().fit(x, y, batch_size=max(1, len(x)), epochs=epochs, shuffle=False, **options)

    def train_on_batch(self, *arguments, **options):
        """Refuse to train past `fit`, which keeps the budget.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError("a private model trains by fit alone, which counts its steps")


def dp_model(recipe, n_features, n_classes, n, seed, clipping="fast"):
    """Build and compile a model that trains by DP-SGD under the recipe's guarantee.

    The clipped gradients are summed, given N(0, (noise multiplier * clip norm)^2) and divided by the constant `n`,
    never by the number of members that came.

    Parameters
    ----------
    recipe : genlib.recipes.Recipe
        Private, with full batches.
    n_features, n_classes : int
    n : int
        Nominal number of members, public.
    seed : int
        Fixes the start and the noise: this is a study run, not for release.
    clipping : {"fast", "slow"}
        TF-Privacy's fast path needs layers that `refuse_unclipped` accepts; the slow path clips every model.

    Returns
    -------
    FullBatchDPModel
        With `clipping_path` saying the path that TF-Privacy took, ``"fast"`` or ``"slow"``.

    Raises
    ------
    ValueError
        As `calibrate` and `refuse_unclipped`; or when TF-Privacy takes another path than was asked for.

    Examples
    --------
    >>> from genlib.recipes import Privacy, Recipe
    >>> recipe = Recipe("softmax", epochs=5, batch_size=None, privacy=Privacy(3.0))
    >>> dp_model(recipe, n_features=20, n_classes=3, n=100, seed=0).clipping_path
    'fast'
    """
    if clipping not in ("fast", "slow"):
        raise ValueError(f"clipping='{clipping}' is not known; choose 'fast' or 'slow'")
    if recipe.batch_size is not None:
        raise ValueError(
            f"batch_size={recipe.batch_size}: TF-Privacy's fit shuffles where the accountant assumes Poisson sampling, "
            "so it trains on full batches only; set batch_size=None, or use another engine"
        )
    sigma = privacy.calibrate(recipe, n)
    if recipe.optimizer != "sgd" or recipe.l2 or recipe.average:
        raise ValueError("private training by TF-Privacy takes optimizer='sgd', l2=0 and average=0")
    if recipe.class_weights or recipe.privacy.noisy_mean:
        raise ValueError("class weights and noisy means are not known to TF-Privacy's model; use another engine")
    if recipe.label_smoothing:
        raise ValueError(f"label_smoothing={recipe.label_smoothing}: private training does not know it; set it to 0")
    options = {"l2_norm_clip": recipe.privacy.clip_norm, "noise_multiplier": sigma, "use_xla": False}
    if clipping == "fast":
        options["layer_registry"] = layer_registry.make_default_layer_registry()
    model = models.build(recipe, n_features, n_classes, seed, FullBatchDPModel, **options)
    model.clipping_path = "fast" if model._enable_fast_peg_computation else "slow"
    if model.clipping_path != clipping:
        raise ValueError(f"asked for {clipping} clipping, but TF-Privacy took the {model.clipping_path} path")
    if clipping == "fast":
        refuse_unclipped(model)
    model.budget_steps = privacy.steps_of(recipe, n)
    model.noise_seed = seed
    model.rate_of_sum = recipe.learning_rate / n
    # The fast path sums a reduced loss and adds noise to the sum; the slow path wants the losses one by one.
    reduction = tf.keras.losses.Reduction.SUM if clipping == "fast" else tf.keras.losses.Reduction.NONE
    model.compile(
        tf.keras.optimizers.SGD(recipe.learning_rate, recipe.momentum),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction),
    )
    return model
