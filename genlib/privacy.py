"""The guarantee: how much noise a wanted epsilon needs, what it bounds, what it says in words, and its release."""

import functools
import math

import dp_accounting
import numpy as np
import scipy.optimize
import scipy.stats
from dp_accounting import pld

from genlib import dpsgd, engine, models

NEIGHBORS = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
# Privacy losses are rounded up to this grid: coarser than the library's own, ten times faster, and never optimistic.
LOSS_GRID = 1e-3
CURVE_EPSILONS = np.r_[0.0, np.geomspace(0.01, 30, 120)]


def accountant_epsilon(noise_multiplier, steps, delta, rate=1.0):
    """Epsilon of DP-SGD by the accountant for privacy loss distributions, add-or-remove neighbors.

    Parameters
    ----------
    noise_multiplier : float
        Standard deviation of the noise over the clip norm, above 0.
    steps : int
    delta : float
    rate : float
        Chance with which each patient is in a step's batch (Poisson sampling); 1 for full batches.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        When the noise multiplier or the number of steps is not above 0, or the rate not in (0, 1].

    References
    ----------
    Koskela, Jälkö, Honkela: "Computing tight differential privacy guarantees using FFT", AISTATS 2020; the code is
    `dp_accounting.pld`.

    Examples
    --------
    >>> round(accountant_epsilon(10.0, steps=30, delta=1e-5), 2)
    2.21
    >>> round(accountant_epsilon(3.0, steps=360, delta=1e-5, rate=1 / 12), 2)
    2.25
    """
    if noise_multiplier <= 0 or steps < 1 or not 0 < rate <= 1:
        raise ValueError(
            f"noise_multiplier={noise_multiplier}, steps={steps}, rate={rate}: the first two must be above 0, the rate "
            "above 0 and at most 1"
        )
    return _accountant(_event(noise_multiplier, steps, rate)).get_epsilon(delta)


def _event(noise_multiplier, steps, rate):
    step = dp_accounting.GaussianDpEvent(noise_multiplier)
    return dp_accounting.SelfComposedDpEvent(
        step if rate >= 1 else dp_accounting.PoissonSampledDpEvent(rate, step), steps
    )


def _accountant(event=None):
    accountant = pld.PLDAccountant(NEIGHBORS, value_discretization_interval=LOSS_GRID)
    return accountant.compose(event) if event else accountant


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


def trade_off(fpr, noise_multiplier, steps, rate=1.0):
    """Largest true positive rate that any membership attack can have against DP-SGD with this noise.

    It uses the training's own noise, not only one (epsilon, delta) of it: every epsilon' has a delta', and each such
    pair bounds the rate. With full batches the whole training is one Gaussian mechanism and the curve is exact.

    Parameters
    ----------
    fpr : float or numpy.ndarray
        False positive rates, in [0, 1].
    noise_multiplier, steps, rate
        As in `accountant_epsilon`.

    Returns
    -------
    numpy.ndarray
        True positive rates of the same shape. Full batches: Phi(Phi^-1(fpr) + sqrt(steps) / noise_multiplier). Else the
        smallest over epsilon' of exp(epsilon') fpr + delta' and of 1 - (1 - fpr - delta') / exp(epsilon').

    References
    ----------
    Dong, Roth, Su: "Gaussian differential privacy", JRSS B 84(1), 2022, proposition 2.12, equation 6, corollary 3.3.

    Examples
    --------
    >>> trade_off(0.1, noise_multiplier=10.0, steps=30).round(3)
    0.232
    >>> trade_off(np.array([0.01, 0.1]), noise_multiplier=3.0, steps=360, rate=1 / 12).round(3)
    array([0.038, 0.23 ])
    """
    fpr = np.asarray(fpr, float)
    if rate >= 1:
        return scipy.stats.norm.cdf(scipy.stats.norm.ppf(fpr) + np.sqrt(steps) / noise_multiplier)
    delta = _deltas(noise_multiplier, steps, rate)
    growth = np.exp(CURVE_EPSILONS)
    bounds = [growth * fpr[..., None] + delta, 1 - (1 - fpr[..., None] - delta) / growth]
    return np.clip(np.min(bounds, axis=(0, -1)), 0, 1)


@functools.lru_cache(maxsize=256)
def _deltas(noise_multiplier, steps, rate):
    loss = pld.privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=rate, value_discretization_interval=LOSS_GRID
    )
    return np.array(loss.self_compose(steps).get_delta_for_epsilon(list(CURVE_EPSILONS)))


def rate_of(recipe, n):
    """Chance q with which each patient is in a step's batch: batch size over the nominal number of members.

    Raises
    ------
    ValueError
        When the recipe is not private, or its batches are larger than n.

    Examples
    --------
    >>> from genlib.recipes import Privacy, Recipe
    >>> rate_of(Recipe(batch_size=32, privacy=Privacy(3.0)), n=320)
    0.1
    >>> rate_of(Recipe(batch_size=None, privacy=Privacy(3.0)), n=320)
    1.0
    """
    if recipe.privacy is None:
        raise ValueError("this recipe has privacy=None: there is no budget to account for")
    if recipe.batch_size is not None and recipe.batch_size > n:
        raise ValueError(f"batch_size={recipe.batch_size} for n={n} patients: set batch_size=None for full batches")
    return 1.0 if recipe.batch_size is None else recipe.batch_size / n


def steps_of(recipe, n):
    """Number of gradient steps that a private recipe takes, from the nominal number of members alone.

    Examples
    --------
    >>> from genlib.recipes import Privacy, Recipe
    >>> steps_of(Recipe(epochs=30, batch_size=32, privacy=Privacy(3.0)), n=384)
    360
    """
    return recipe.epochs * math.ceil(1 / rate_of(recipe, n) - 1e-9)


def releases_of(recipe, n):
    """Number of noisy sums that a recipe takes from its patients: one a step, and one for a noisy mean.

    Examples
    --------
    >>> from genlib.recipes import Privacy, Recipe
    >>> releases_of(Recipe(epochs=30, batch_size=None, privacy=Privacy(3.0, noisy_mean=True)), n=384)
    31
    """
    return steps_of(recipe, n) + recipe.privacy.noisy_mean


def calibrate(recipe, n):
    """Smallest noise multiplier with which a recipe keeps its promise, to three parts in a thousand.

    Parameters
    ----------
    recipe : genlib.recipes.Recipe
        Private.
    n : int
        Nominal number of members; delta must be below 1/n.

    Returns
    -------
    float
        Noise multiplier, standard deviation over clip norm; its epsilon by `accountant_epsilon` is at most the promise.

    Raises
    ------
    ValueError
        When delta is not below 1/n, or as in `rate_of`.

    Examples
    --------
    >>> from genlib.recipes import Privacy, Recipe
    >>> recipe = Recipe(epochs=30, batch_size=None, privacy=Privacy(3.0))
    >>> sigma = calibrate(recipe, n=384)
    >>> 2.97 < accountant_epsilon(sigma, 30, 1e-5) <= 3.0
    True
    """
    rate, wanted = rate_of(recipe, n), recipe.privacy
    if wanted.delta >= 1 / n:
        raise ValueError(f"delta={wanted.delta}: must be below 1/n = {1 / n:.2g} for n={n} patients, as 1e-5")
    return _calibrated(wanted.epsilon, wanted.delta, releases_of(recipe, n), rate)


@functools.lru_cache(maxsize=256)
def _calibrated(epsilon, delta, steps, rate):
    if rate < 1:
        sigma = dp_accounting.calibrate_dp_mechanism(
            _accountant, lambda sigma: _event(sigma, steps, rate), epsilon, delta, tol=1e-3
        )
    else:
        # The closed form gives the place to look; the accountant has the last word.
        exact = scipy.optimize.brentq(
            lambda log_sigma: gaussian_delta(epsilon, np.exp(log_sigma), steps) - delta, np.log(1e-3), np.log(1e6)
        )
        sigma = float(np.exp(exact))
    while accountant_epsilon(sigma, steps, delta, rate) > epsilon:
        sigma *= 1.0005
    return sigma


def mechanism(recipe, n):
    """What DP-SGD does under a recipe's promise, in plain numbers.

    Parameters
    ----------
    recipe : genlib.recipes.Recipe
        Private.
    n : int
        Nominal number of members.

    Returns
    -------
    genlib.dpsgd.Mechanism

    Raises
    ------
    ValueError
        As `calibrate`; or when the optimizer is not SGD.

    Examples
    --------
    >>> from genlib.recipes import Privacy, Recipe
    >>> mechanism(Recipe(epochs=30, batch_size=32, privacy=Privacy(3.0, clip_norm=2.0)), n=384).divisor
    32.0
    """
    if recipe.optimizer != "sgd":
        raise ValueError(f"optimizer='{recipe.optimizer}': private training takes optimizer='sgd'")
    rate, sigma = rate_of(recipe, n), calibrate(recipe, n)
    clip_norm = recipe.privacy.clip_norm
    mean_noise = sigma if recipe.privacy.noisy_mean else 0.0
    return dpsgd.Mechanism(clip_norm, sigma * clip_norm, rate, steps_of(recipe, n), rate * n, mean_noise)


def release(features, labels, recipe, n, start=None, center=None):
    """Train one private model on all patients, with noise that nobody can repeat, and return it for release.

    Batches, start, masks and noise come from the operating system's entropy; no seed is written and nothing is kept on
    disk. Where the model was trained in the patients' row space, its weights get the noise that training on genes
    would have left outside of that space: without it, they would show who spans it.

    Parameters
    ----------
    features : numpy.ndarray
        (patients, d) float32.
    labels : numpy.ndarray
        (patients,) int, classes from 0 to k - 1.
    recipe : genlib.recipes.Recipe
        Private; its noise is calibrated for its epsilon.
    n : int
        Nominal number of patients: a public, round figure rather than the exact count.
    start, center
        Public knowledge, as in `genlib.bank.train`.

    Returns
    -------
    model : tf.keras.Model
        On genes, a plain Keras model.
    words : str
        The guarantee, from `statement`.

    Raises
    ------
    ValueError
        When the recipe is not private or its architecture cannot be clipped exactly; as `mechanism`.

    Examples
    --------
    >>> from genlib.recipes import Privacy, Recipe
    >>> recipe = Recipe("softmax", epochs=5, batch_size=None, privacy=Privacy(3.0))
    >>> x = np.random.default_rng(0).normal(size=(40, 60)).astype(np.float32)
    >>> model, words = release(x, np.arange(40) % 2, recipe, n=40)
    >>> model.output_shape, words[:25]
    ((None, 2), '(epsilon, delta) = (3.00,')
    """
    features, labels = np.ascontiguousarray(features, np.float32), np.asarray(labels)
    k = int(labels.max()) + 1
    if recipe.privacy and recipe.privacy.noisy_mean != (center is not None):
        raise ValueError("a recipe with noisy_mean needs a center, and a center such a recipe; see signatures.center")
    if not np.isfinite(features).all():
        raise ValueError("features hold missing or infinite values; see cohorts.load, which refuses them")
    if recipe.class_weights and len(recipe.class_weights) != k:
        raise ValueError(f"{len(recipe.class_weights)} class weights for {k} classes; give one for each")
    if start is not None and len(start[0]) != features.shape[1]:
        raise ValueError(f"the start's first kernel has {len(start[0])} rows for {features.shape[1]} features")
    planned = mechanism(recipe, n)
    structure = engine.structure_for(recipe, features.shape[1], k)
    in_row_space = len(features) < features.shape[1] and center is None and not recipe.group
    patients = engine.prepare(features, in_row_space)
    rng = np.random.Generator(np.random.SFC64())
    everybody = np.ones(len(labels), bool)
    _, weights = dpsgd.train_one(
        patients, labels, everybody, recipe, planned, structure, rng, start=start, center=center
    )
    model = models.build(recipe, features.shape[1], k, seed=0)
    model.set_weights(weights())
    return model, statement(recipe, n, released=True)


def statement(recipe, n, panel=None, released=False):
    """Say in words what a recipe's guarantee is and what it does not cover.

    Parameters
    ----------
    recipe : genlib.recipes.Recipe
        Private or not.
    n : int
        Nominal number of members.
    panel : str, optional
        Name of the published gene panel that was used.
    released : bool
        True for a model from `release`; else a study run, whose noise follows from its seed.

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
    privacy, sigma, steps, rate = recipe.privacy, calibrate(recipe, n), steps_of(recipe, n), rate_of(recipe, n)
    reached = accountant_epsilon(sigma, releases_of(recipe, n), privacy.delta, rate)
    mean = " and one noisy mean of the features" if privacy.noisy_mean else ""
    genes = f"the published {panel} panel" if panel else "all genes that were given"
    batches = "full batches" if rate == 1 else f"Poisson batches, sampling rate {rate:.4g}"
    noise = (
        "The noise was drawn from the operating system's entropy and no seed was kept."
        if released
        else "The noise of a study run follows from its recorded seed, so that it can be repeated: whoever knows the "
        "seed can subtract it. Not for release."
    )
    return (
        f"(epsilon, delta) = ({reached:.2f}, {privacy.delta:g})-differential privacy for add-or-remove neighbors: "
        f"training with any one patient or without gives models that are hard to tell apart. It covers the {steps} "
        f"gradient steps{mean} ({batches}, clip norm {privacy.clip_norm:g}, noise multiplier {sigma:.3f}, nominally "
        f"{n} members), accounted for by dp_accounting's privacy loss distributions. The preprocessing is per patient "
        f"or public and costs nothing. Features are {genes}. Not covered: the choice of hyperparameters; the choice of "
        "the cohort's genes by variance and missing values; labels that were called by comparing patients with one "
        "another; the panel, published centroids and prevalence, the class list and the nominal number of members, "
        f"which are taken as public; floating-point rounding and the random number generator. {noise}"
    )
