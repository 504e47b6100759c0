"""DP-SGD: the guarded TF-Privacy model, the noise that a wanted epsilon needs, and the guarantee in words.

Only full batches so far (sampling rate q = 1): TF-Privacy's ``fit`` shuffles, while accounting for smaller batches
assumes Poisson sampling, so smaller batches are refused.
"""

import functools

import dp_accounting
import numpy as np
import scipy.optimize
import scipy.stats
import tensorflow as tf
from dp_accounting import pld
from tensorflow_privacy.privacy.fast_gradient_clipping import layer_registry
from tensorflow_privacy.privacy.keras_models.dp_keras_model import DPModel

from genlib import models

# Layers for which TF-Privacy's fast clipping takes the norm of the very gradient that it applies. A list of what is
# allowed, not of what is refused: a layer nobody thought of is refused.
CLIPPED_LAYERS = (tf.keras.layers.InputLayer, tf.keras.layers.Dense, tf.keras.layers.ReLU)
CLIPPED_ACTIVATIONS = tuple(
    getattr(tf.keras.activations, name) for name in ("linear", "relu", "sigmoid", "tanh", "elu", "softmax")
)


def accountant_epsilon(noise_multiplier, steps, delta):
    """Epsilon of full-batch DP-SGD by the PLD accountant, add-or-remove neighbors.

    Parameters
    ----------
    noise_multiplier : float
        Standard deviation of the noise over the clip norm, above 0.
    steps : int
        Number of full-batch steps.
    delta : float

    Returns
    -------
    float

    Raises
    ------
    ValueError
        When the noise multiplier or the number of steps is not above 0.

    References
    ----------
    Koskela, Jälkö, Honkela: "Computing tight differential privacy guarantees using FFT", AISTATS 2020; the code is
    `dp_accounting.pld`.

    Examples
    --------
    >>> round(accountant_epsilon(10.0, steps=30, delta=1e-5), 2)
    2.21
    """
    if noise_multiplier <= 0 or steps < 1:
        raise ValueError(f"noise_multiplier={noise_multiplier}, steps={steps}: both must be above 0")
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(dp_accounting.GaussianDpEvent(noise_multiplier), steps)
    return accountant.get_epsilon(delta)


def gaussian_delta(epsilon, noise_multiplier, steps):
    """Exact delta of `steps` full-batch releases with Gaussian noise, in closed form; checks the accountant.

    References
    ----------
    Balle, Wang: "Improving the Gaussian mechanism for differential privacy", ICML 2018, theorem 8, with mu =
    sqrt(steps) / noise_multiplier.

    Examples
    --------
    >>> round(gaussian_delta(1.0, noise_multiplier=1.0, steps=1), 4)
    0.1269
    """
    mu = np.sqrt(steps) / noise_multiplier
    normal = scipy.stats.norm
    return normal.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon + normal.logcdf(-mu / 2 - epsilon / mu))


def trade_off(fpr, noise_multiplier, steps):
    """Largest true positive rate that any membership attack can have against full-batch DP-SGD.

    With full batches the whole training is one Gaussian mechanism, so the curve is exact: it uses the training's own
    noise, not only its (epsilon, delta).

    Parameters
    ----------
    fpr : float or numpy.ndarray
        False positive rates, in [0, 1].
    noise_multiplier : float
    steps : int

    Returns
    -------
    numpy.ndarray
        True positive rates of the same shape: Phi(Phi^-1(fpr) + sqrt(steps) / noise_multiplier).

    References
    ----------
    Dong, Roth, Su: "Gaussian differential privacy", JRSS B 84(1), 2022, equation 6 and corollary 3.3.

    Examples
    --------
    >>> trade_off(0.1, noise_multiplier=10.0, steps=30).round(3)
    0.232
    """
    normal = scipy.stats.norm
    return normal.cdf(normal.ppf(fpr) + np.sqrt(steps) / noise_multiplier)


def steps_of(recipe):
    """Number of gradient steps that a private recipe takes: one an epoch, since batches are full.

    Raises
    ------
    ValueError
        When the recipe is not private or its batches are not full.

    Examples
    --------
    >>> from genlib.recipes import Privacy, Recipe
    >>> steps_of(Recipe(epochs=30, batch_size=None, privacy=Privacy(3.0)))
    30
    """
    if recipe.privacy is None:
        raise ValueError("this recipe has privacy=None: there is no budget to account for")
    if recipe.batch_size is not None:
        raise ValueError(
            f"batch_size={recipe.batch_size} with privacy: only full batches are accounted for, since Keras shuffles "
            "where the accountant assumes Poisson sampling; set batch_size=None"
        )
    return recipe.epochs


def calibrate(recipe, n):
    """Smallest noise multiplier with which a recipe keeps its promise, to three parts in a thousand.

    Parameters
    ----------
    recipe : genlib.recipes.Recipe
        Private, with full batches.
    n : int
        Nominal number of members; delta must be below 1/n.

    Returns
    -------
    float
        Noise multiplier, standard deviation over clip norm; its epsilon by `accountant_epsilon` is at most the promise.

    Raises
    ------
    ValueError
        When delta is not below 1/n, or as in `steps_of`.

    Examples
    --------
    >>> from genlib.recipes import Privacy, Recipe
    >>> recipe = Recipe(epochs=30, batch_size=None, privacy=Privacy(3.0))
    >>> sigma = calibrate(recipe, n=384)
    >>> 2.97 < accountant_epsilon(sigma, 30, 1e-5) <= 3.0
    True
    """
    privacy = recipe.privacy
    steps = steps_of(recipe)
    if privacy.delta >= 1 / n:
        raise ValueError(f"delta={privacy.delta}: must be below 1/n = {1 / n:.2g} for n={n} patients, as 1e-5")
    return _calibrated(privacy.epsilon, privacy.delta, steps)


@functools.lru_cache(maxsize=256)
def _calibrated(epsilon, delta, steps):
    # The closed form gives the place to look; the accountant has the last word.
    exact = scipy.optimize.brentq(
        lambda log_sigma: gaussian_delta(epsilon, np.exp(log_sigma), steps) - delta, np.log(1e-3), np.log(1e6)
    )
    sigma = float(np.exp(exact))
    while accountant_epsilon(sigma, steps, delta) > epsilon:
        sigma *= 1.0005
    return sigma


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
    sigma = calibrate(recipe, n)
    if recipe.optimizer != "sgd" or recipe.l2:
        raise ValueError("private training takes optimizer='sgd' and l2=0; other updates are not tested here")
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
    model.budget_steps = steps_of(recipe)
    model.noise_seed = seed
    model.rate_of_sum = recipe.learning_rate / n
    # The fast path sums a reduced loss and adds noise to the sum; the slow path wants the losses one by one.
    reduction = tf.keras.losses.Reduction.SUM if clipping == "fast" else tf.keras.losses.Reduction.NONE
    model.compile(
        tf.keras.optimizers.SGD(recipe.learning_rate, recipe.momentum),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction),
    )
    return model


def statement(recipe, n, panel=None):
    """Say in words what a recipe's guarantee is and what it does not cover.

    Parameters
    ----------
    recipe : genlib.recipes.Recipe
        Private or not.
    n : int
        Nominal number of members.
    panel : str, optional
        Name of the published gene panel that was used.

    Returns
    -------
    str

    Examples
    --------
    >>> from genlib.recipes import Privacy, Recipe
    >>> print(statement(Recipe(), n=384))
    No privacy guarantee: the model was trained without differential privacy.
    """
    if recipe.privacy is None:
        return "No privacy guarantee: the model was trained without differential privacy."
    privacy, sigma, steps = recipe.privacy, calibrate(recipe, n), steps_of(recipe)
    reached = accountant_epsilon(sigma, steps, privacy.delta)
    genes = f"the published {panel} panel" if panel else "all genes that the cohort came with"
    return (
        f"(epsilon, delta) = ({reached:.2f}, {privacy.delta:g})-differential privacy for add-or-remove neighbors: "
        f"training with any one patient or without gives models that are hard to tell apart. It covers the {steps} "
        f"full-batch gradient steps (clip norm {privacy.clip_norm:g}, noise multiplier {sigma:.3f}, about {n} members, "
        "sampling rate 1), accounted for by dp_accounting's privacy loss distributions. The preprocessing is per "
        f"patient and costs nothing. Features are {genes}. Not covered: the choice of hyperparameters; the choice of "
        "the cohort's genes by variance and missing values; labels that were called by comparing patients with one "
        "another; the class list and the nominal number of members, which are taken as public; floating-point "
        "rounding and the random number generator. The noise of a study run follows from its recorded seed, so that "
        "it can be repeated: whoever knows the seed can subtract it. Not for release."
    )
