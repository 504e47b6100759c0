"""What an audit can show: that training keeps less than its promise, or that one given model may not be shared.

A lower bound on epsilon is valid after every choice was corrected for; it says what an attack showed, so 0 means that
nothing was shown, not that nothing leaks. A model's file is opened without running anything in it: its configuration is
read as text, built anew from layers that are known, and given the numbers of the file. Nothing here trains.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
import tempfile
import zipfile

import h5py
import numpy as np
import pandas as pd
import tensorflow as tf
from scipy import optimize, special, stats

from genlib import features, layers, metrics, results
from genlib.privacy import Mechanism, gaussian_delta

CONFIDENCE = 0.95
# Differential privacy bounds each of these for any set of answers, so it may name on either side of a threshold.
STATEMENTS = (
    ("at or above", "TPR <= e^eps FPR + delta"),
    ("at or above", "TNR <= e^eps FNR + delta"),
    ("below", "TPR <= e^eps FPR + delta"),
    ("below", "TNR <= e^eps FNR + delta"),
)
TRIALS = 400  # simulated audits behind a power
TWIN_BITS = 20  # independent draws look like twins throughout with a chance of one in a million

# What can go wrong in DP-SGD without anything looking wrong. Planted on purpose, to show that an audit notices it.
FAULTS = {
    "no noise": lambda m: dataclasses.replace(m, noise=0.0),
    "noise divided twice": lambda m: dataclasses.replace(m, noise=m.noise / m.divisor),
    "no clipping": lambda m: dataclasses.replace(m, clip_norm=np.inf),
    "norms without dropout": lambda m: dataclasses.replace(m, same_mask=False),
    "same batch": lambda m: dataclasses.replace(m, fresh_batches=False),
}

CANARIES = ("mislabeled patient", "random profile", "outlier", "outlier that the start knows")
# How far an outlier lies out in its own direction: far enough that a step which did not clip it would be seen.
REACH = 500.0


def plant(features, labels, fixed, held_out, seed):
    """Put four canary patients, `CANARIES`, behind the patients that are in every model.

    Canaries are patients whose presence is as easy to see as can be: a guarantee has to hold for them too. A mislabeled
    patient pulls against everybody; a random profile lies in no class; an outlier is alone in a gene direction of its
    own, so that nothing but clipping bounds its pull. For the last one, label it as the public start of the models
    names it (see notebook 07): its gradient is small until dropout hides what it rests on.

    Parameters
    ----------
    features, labels : numpy.ndarray
        (n, d), (n,) int.
    fixed : numpy.ndarray
        (n,) bool, the patients that are in every model.
    held_out : int
        Patient to be mislabeled; one that is fixed is a ValueError.
    seed : int
        Of the random profile.

    Returns
    -------
    features, labels : numpy.ndarray
        (fixed + 4, d + 2) float32: two directions are the outliers' own, and 0 for everybody else; (fixed + 4,).

    Examples
    --------
    >>> x, y = plant(np.ones((6, 3)), np.array([0, 0, 0, 1, 1, 1]), np.arange(6) < 5, held_out=5, seed=0)
    >>> x.shape, int(y[5])
    ((9, 5), 0)
    """
    if fixed[held_out]:
        raise ValueError(f"held_out={held_out}: this patient is in every model; choose one that is not fixed")
    n, d = int(fixed.sum()), features.shape[1]
    planted = np.zeros((n + len(CANARIES), d + 2), np.float32)
    planted[:n, :d] = features[fixed]
    planted[n, :d] = features[held_out]
    planted[n + 1, :d] = np.random.default_rng([seed, 17]).standard_normal(d)
    planted[n + 2, d], planted[n + 3, d + 1] = REACH, REACH
    wrong = (labels[held_out] + 1) % (int(labels.max()) + 1)
    return planted, np.r_[labels[fixed], wrong, 0, 0, 0]


def applied_norms(model, x, labels, clip_norm, seed, same_mask=True):
    """Norms (n,) of the gradients that the bank's DP-SGD really applies, a patient at a time, each with own masks.

    Parameters
    ----------
    model : tf.keras.Model
        Compiled, of dense layers; the gradients are taken at its weights.
    x, labels
        (n, d), (n,) int.
    same_mask : bool
        False takes the norms without dropout: a planted fault, which lets longer gradients through.

    Examples
    --------
    >>> from genlib import networks
    >>> model = networks.softmax(4, 2)
    >>> model.set_weights([np.zeros((4, 2)), np.zeros(2)])
    >>> applied_norms(model, np.full((1, 4), 9, np.float32), np.array([1]), 0.1, seed=0).round(4)
    array([0.1], dtype=float32)
    """
    # As many models as patients, each with one patient.
    stacked = layers.stack(model, len(x), x.shape[1], kind=layers.PrivateBank)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
    stacked.compile(tf.keras.optimizers.SGD(1.0), loss)
    stacked.begin([model.get_weights()] * len(x))
    stacked.plan, rng = Mechanism(clip_norm, 0.0, 1.0, 1, 1.0, same_mask=same_mask), np.random.default_rng(seed)
    masks = [tf.constant(rng.random((len(x), 1, *shape)) >= rate) for shape, rate in layers.masks_of(stacked)]
    layers.hand_out(stacked, stacked.loss, {"masks": masks})
    step = {"targets": tf.constant(labels[:, None]), "weights": tf.ones((len(x), 1), x.dtype)}
    sums, _ = stacked.clipped(tf.constant(x[:, None]), step)
    return np.linalg.norm(np.concatenate([tf.reshape(part, (len(x), -1)) for part in sums], axis=1), axis=1)


def many_runs(statistics, included, delta, confidence=CONFIDENCE):
    """Lower bound on epsilon from many models, each of which includes a canary or not by the toss of a coin.

    The first half of the models chooses threshold, direction and inequality for each canary; the second half, which
    had no part in the choice, gives Clopper-Pearson bounds of the two rates. Half of the allowed error goes to either
    rate, and the canaries share it (Bonferroni). So all rows hold jointly at `confidence`, and the bound of the audit
    is ``table["epsilon_low"].max()``.

    Parameters
    ----------
    statistics : numpy.ndarray
        (M, c), one row a model, one column a canary; any sign and scale.
    included : numpy.ndarray
        (M, c) bool, each drawn by itself with probability 1/2. Models must be independent: complement twins are not,
        so pass one model of each pair.
    delta : float
        The delta of the (epsilon, delta) that is audited, in [0, 1).
    confidence : float
        Chance, at least, that no bound exceeds the true epsilon, in (0, 1).

    Returns
    -------
    pandas.DataFrame
        One row a canary. Columns canary, epsilon_low, threshold, named (the side of the threshold that is called
        included), inequality, tpr, fpr, n_included, n_excluded, confidence; rates and numbers are of the second half.

    Raises
    ------
    ValueError
        When shapes disagree, a statistic is not finite, all models come in complement twins, a half has too few models
        with or without a canary to show anything, or `delta` or `confidence` is out of range.

    References
    ----------
    Jagielski, Ullman, Oprea: "Auditing differentially private machine learning", NeurIPS 2020, algorithm 2; Clopper,
    Pearson: Biometrika 26(4), 1934.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> included = rng.random((400, 2)) < 0.5
    >>> statistics = rng.normal(size=(400, 2)) + [0, 4] * included  # the first canary leaves no trace
    >>> table = many_runs(statistics, included, delta=1e-5)
    >>> table["epsilon_low"].round(2).tolist()
    [0.0, 2.7]
    """
    _refuse_levels(delta, confidence)
    statistics, included = np.asarray(statistics, float), np.asarray(included, bool)
    _refuse_shapes(statistics, included, n_axes=2, names="statistics", shape="(M, c)")
    _refuse_twins(included)
    tail = _tail(statistics.shape[1], confidence)
    half = len(statistics) // 2
    for name, part in (("first", included[:half]), ("second", included[half:])):
        _refuse_few(part, name, delta, tail)
    rows = []
    for canary, (statistic, members) in enumerate(zip(statistics.T, included.T, strict=True)):
        threshold, k = _choose(statistic[:half], members[:half], delta, tail)
        row = _bound(statistic[half:], members[half:], threshold, k, delta, tail)
        rows.append({"canary": canary, **row, "confidence": confidence})
    return pd.DataFrame(rows)


def power(promise, delta, n_models, n_canaries, n_one_run, n_guesses, factors=(1, 2, 3, 4, 5), seed=0):
    """Chance that an audit exposes a training whose noise is too small by a factor: state it before the audit.

    A canary moves what the auditor sees by as much as clipping allows, so it is one draw out of N(0, 1) or N(d, 1),
    with the largest d that the promise allows, times the factor. Every canary is of this kind and the tosses fall even;
    weaker canaries show less. The factor 1 is no fault.

    Audited is (epsilon `promise`, `delta`), by `many_runs` with `n_models` and `n_canaries`, and by `one_run` with
    `n_one_run` canaries and `n_guesses`. Columns factor, many_runs, one_run, one_run_gaussian: the chances that a bound
    exceeds the promise, at 95 % confidence; the last is that of `one_run`'s second bound.

    References
    ----------
    Distance of two normals that (epsilon, delta) allows: Balle, Wang, ICML 2018, theorem 8.

    Examples
    --------
    >>> power(1.0, 1e-5, 500, n_canaries=4, n_one_run=300, n_guesses=120).round(1)["many_runs"].tolist()
    [0.0, 0.0, 0.0, 0.1, 0.6]
    """
    _refuse_levels(delta, CONFIDENCE)
    if n_models < 8 or n_canaries < 1 or not 2 <= n_guesses <= n_one_run:
        raise ValueError(
            f"n_models={n_models}, n_canaries={n_canaries}, n_guesses={n_guesses} of n_one_run={n_one_run}: give at "
            "least 8 models and 1 canary, and from 2 guesses to one a canary"
        )
    rng, rows, allowed = np.random.default_rng([seed, 27]), [], _distance(promise, delta)
    counts = [(n_one_run, n_guesses, n_correct) for n_correct in range(n_guesses + 1)]
    refuted = np.array([_p_value(*count, promise, delta) <= 1 - CONFIDENCE for count in counts])
    gaussian = np.array([_refutes(allowed, *count, 1 - CONFIDENCE) for count in counts])
    for factor in factors:
        distance = factor * allowed
        missed = 1 - _one_canary_shows(rng, distance, promise, delta, n_models // 4, _tail(n_canaries, CONFIDENCE))
        included = rng.random((TRIALS, n_one_run)) < 0.5
        n_correct = _correct_guesses(rng.normal(size=included.shape) + distance * included, included, n_guesses)
        row = {"factor": factor, "many_runs": 1 - missed**n_canaries, "one_run": refuted[n_correct].mean()}
        rows.append(row | {"one_run_gaussian": gaussian[n_correct].mean()})
    return pd.DataFrame(rows)


def _distance(epsilon, delta):
    """Largest distance of two normals of variance 1 that are (epsilon, delta)-indistinguishable."""
    return optimize.brentq(lambda mu: gaussian_delta(mu, epsilon) - delta, 1e-6, 100)


def _one_canary_shows(rng, distance, promise, delta, n, tail):
    """Chance that one canary of `many_runs` refutes the promise, with n models a side in either half."""
    thresholds, counts = np.linspace(-4, distance + 4, 60), np.arange(n + 1)
    hits, alarms = (grid.ravel() for grid in np.meshgrid(counts, counts, indexing="ij"))
    ratios = _ratios(hits, n, alarms, n, delta, tail).reshape(len(STATEMENTS), n + 1, n + 1)
    # The first half chooses by what it happens to see; what the second then shows is summed over all it may see.
    seen = [(rng.normal(at, 1, (TRIALS, n, 1)) >= thresholds).sum(axis=1) for at in (distance, 0)]
    chosen = ratios[:, seen[0], seen[1]].transpose(1, 0, 2).reshape(TRIALS, -1).argmax(axis=1)
    inside, outside = (stats.binom.pmf(counts, n, special.ndtr(at - thresholds)[:, None]) for at in (distance, 0))
    chance = ((inside @ (ratios > np.exp(promise))) * outside).sum(axis=2)
    return chance.ravel()[chosen].mean()


def one_run(scores, included, delta, n_guesses, confidence=CONFIDENCE):
    """Lower bounds on epsilon from one model with many canaries, each included or not by the toss of a coin.

    The highest scores are guessed to be included, the lowest not, and nothing is guessed about the rest. Training with
    (epsilon, delta) lets the number of correct guesses be hardly larger than that of coins which fall right with
    probability e^epsilon / (1 + e^epsilon). A second bound, about twice as high, holds for a training whose whole
    trade-off is that of two normals, as noise on full batches promises; it does not speak of Poisson batches.

    Parameters
    ----------
    scores : numpy.ndarray
        (m,), higher = more likely included; found without knowledge of `included`.
    included : numpy.ndarray
        (m,) bool, each drawn by itself with probability 1/2.
    delta : float
        In [0, 1).
    n_guesses : int
        Even, from 2 to m; half of them on each end. Fixed before the scores are seen: the best of several is no bound.
    confidence : float
        Chance, at least, that the bound does not exceed the true epsilon, in (0, 1).

    Returns
    -------
    dict
        epsilon_low, epsilon_low_gaussian (0 where `delta` is 0), n_guesses, n_correct.

    References
    ----------
    Steinke, Nasr, Jagielski: "Privacy auditing with one (1) training run", NeurIPS 2023, arXiv 2305.08846, algorithm 1,
    theorem 5.2 and appendix D. The second bound: Mahloujifar, Melis, Chaudhuri: "Auditing f-differential privacy in one
    run", arXiv 2410.22235, algorithm 3.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> included = rng.random(1000) < 0.5
    >>> result = one_run(rng.normal(size=1000) + 2 * included, included, delta=1e-5, n_guesses=200)
    >>> result["n_correct"], round(result["epsilon_low"], 2), round(result["epsilon_low_gaussian"], 2)
    (200, 4.17, 7.26)
    """
    _refuse_levels(delta, confidence)
    scores, included = np.asarray(scores, float), np.asarray(included, bool)
    _refuse_shapes(scores, included, n_axes=1, names="scores", shape="(m,)")
    if n_guesses % 2 or not 2 <= n_guesses <= len(scores):
        raise ValueError(
            f"n_guesses={n_guesses} of {len(scores)} canaries: half of the guesses go to each end of the scores, so "
            f"give an even number from 2 to {len(scores)}"
        )
    n_correct = int(_correct_guesses(scores, included, n_guesses))
    counts = len(scores), n_guesses, n_correct
    return {
        "epsilon_low": _largest_rejected(*counts, delta, 1 - confidence),
        "epsilon_low_gaussian": _gaussian_bound(*counts, delta, 1 - confidence),
        "n_guesses": n_guesses,
        "n_correct": n_correct,
    }


def participation(counts, n_steps, rate):
    """Test whether patients took part in the steps of training as independent tosses with a probability would say.

    The sum of (count - T q)^2 / (T q (1 - q)) over patients is compared with a gamma distribution of its exact mean
    and variance. Too large means that the same patients come again, too small that patients take turns. A batch of
    fixed size drawn anew at every step is not told apart, nor is a wrong rate where it is only slightly wrong: look at
    the mean, which is T q up to sqrt(T q (1 - q) / n).

    `counts` (n,) are the steps in whose batch each patient was; T is `n_steps`, at least 2; q is `rate`, in (0, 1], at
    1 every patient must be in every step. What comes back are the p-value, two-sided (1 or 0 at rate 1), and the mean
    count.

    References
    ----------
    The variance test for homogeneity of the binomial, its mean known: Cochran, Biometrics 10(4), 1954.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> p_value, mean = participation(rng.binomial(60, 0.1, size=300), n_steps=60, rate=0.1)
    >>> round(p_value, 2), round(mean, 2)
    (0.1, 6.32)
    >>> participation(60 * (rng.random(300) < 0.1), n_steps=60, rate=0.1)[0]  # the same batch at every step
    0.0
    """
    counts = np.asarray(counts, float)
    if n_steps < 2 or not 0 < rate <= 1:
        # In one step a patient is there or not, whoever else is: there is nothing to vary.
        raise ValueError(f"n_steps={n_steps}, rate={rate}: give at least 2 steps and a rate above 0 and at most 1")
    if counts.ndim != 1 or not counts.size:
        raise ValueError(f"counts have shape {counts.shape}; give one number for each patient, (n,)")
    wrong = counts[~((counts >= 0) & (counts <= n_steps) & (counts == np.round(counts)))]
    if wrong.size:
        raise ValueError(f"a count of {wrong[0]:g} in {n_steps} steps: counts are whole numbers from 0 to {n_steps}")
    if rate == 1:
        return float((counts == n_steps).all()), float(counts.mean())
    variance = n_steps * rate * (1 - rate)
    dispersion = ((counts - n_steps * rate) ** 2).sum() / variance
    # A squared standardized binomial has mean 1 and variance 2 + its excess kurtosis, not the 2 of a normal.
    scale = 2 + (1 - 6 * rate * (1 - rate)) / variance
    null = stats.gamma(counts.size / scale, scale=scale)
    return float(min(1.0, 2 * min(null.cdf(dispersion), null.sf(dispersion)))), float(counts.mean())


def _tail(n_canaries, confidence):
    """Error allowed to one one-sided bound: two bounds a canary."""
    return (1 - confidence) / (2 * n_canaries)


def _fewest(delta, tail):
    """Models needed on a side for perfect separation to show anything: tail^(1/n) - delta > 1 - tail^(1/n)."""
    return int(np.log(tail) / np.log((1 + delta) / 2)) + 1


def _ratios(hits, n_in, alarms, n_out, delta, tail):
    """e^epsilon that each of `STATEMENTS` shows, (4, thresholds); hits and alarms: members and others at or above."""
    low_in, high_in = metrics.clopper_pearson(np.arange(n_in + 1), n_in, tail)
    low_out, high_out = metrics.clopper_pearson(np.arange(n_out + 1), n_out, tail)
    rows = []
    for true, false in ((hits, alarms), (n_in - hits, n_out - alarms)):
        rows.append((low_in[true] - delta) / high_out[false])
        rows.append((low_out[n_out - false] - delta) / high_in[n_in - true])
    return np.array(rows)


def _count(statistic, members, thresholds):
    """Members and others at or above each threshold."""
    sides = (np.sort(statistic[members]), np.sort(statistic[~members]))
    return [len(side) - np.searchsorted(side, thresholds, side="left") for side in sides]


def _choose(statistic, members, delta, tail):
    """Threshold and index of the statement that show most on the half that is there to choose."""
    levels = np.unique(statistic)
    # Midway between two values, so that neither side is cut off for lying a little beyond what was seen.
    thresholds = levels[:-1] / 2 + levels[1:] / 2 if len(levels) > 1 else levels
    hits, alarms = _count(statistic, members, thresholds)
    ratios = _ratios(hits, members.sum(), alarms, (~members).sum(), delta, tail)
    k, place = np.unravel_index(ratios.argmax(), ratios.shape)
    return thresholds[place], k


def _bound(statistic, members, threshold, k, delta, tail):
    """What the chosen statement shows on the other half."""
    n_in, n_out = int(members.sum()), int((~members).sum())
    (hits,), (alarms,) = _count(statistic, members, [threshold])
    ratio = _ratios(hits, n_in, alarms, n_out, delta, tail)[k]
    named, inequality = STATEMENTS[k]
    tpr, fpr = hits / n_in, alarms / n_out
    return {
        "epsilon_low": float(np.log(max(1.0, ratio))),
        "threshold": threshold,
        "named": named,
        "inequality": inequality,
        "tpr": tpr if named == "at or above" else 1 - tpr,
        "fpr": fpr if named == "at or above" else 1 - fpr,
        "n_included": n_in,
        "n_excluded": n_out,
    }


def _correct_guesses(scores, included, n_guesses):
    """How many of the lowest are not included and of the highest are, half of the guesses each, along the last axis."""
    ranked = np.take_along_axis(included, np.argsort(scores, axis=-1, kind="stable"), axis=-1)
    half = n_guesses // 2
    return (~ranked[..., :half]).sum(axis=-1) + ranked[..., -half:].sum(axis=-1)


def _p_value(n_canaries, n_guesses, n_correct, epsilon, delta):
    """Chance, at most, of so many correct guesses under (epsilon, delta); Steinke et al., appendix D."""
    if n_correct == 0:
        return 1.0
    right = special.expit(epsilon)
    beta = special.bdtrc(n_correct - 1, n_guesses, right)
    i = np.arange(1, n_correct + 1)
    just_below = special.bdtrc(n_correct - i - 1, n_guesses, right) - beta
    return float(min(1.0, beta + 2 * n_canaries * delta * max(0.0, (just_below / i).max())))


def _largest_rejected(n_canaries, n_guesses, n_correct, delta, alpha):
    """Largest epsilon whose p-value is at most alpha, 0 where there is none."""

    def excess(epsilon):
        return _p_value(n_canaries, n_guesses, n_correct, epsilon, delta) - alpha

    # A little below the root, so that rounding does not raise the bound.
    return max(0.0, optimize.brentq(excess, 0, 50, xtol=1e-12) - 1e-11) if excess(0.0) < 0 else 0.0


def _refutes(mu, n_canaries, n_guesses, n_correct, alpha):
    """Whether so many correct guesses refute that included and not are at most two normals at distance mu."""
    right = alpha * n_correct / n_canaries
    wrong = alpha * (n_guesses - n_correct) / n_canaries
    for i in range(n_correct - 1, -1, -1):
        least = max(wrong, special.ndtr(special.ndtri(right) - mu))
        right, wrong = right + i / (n_guesses - i) * (least - wrong), least
    return right + wrong > n_guesses / n_canaries


@functools.cache  # the numbers of right guesses come again and again
def _gaussian_bound(n_canaries, n_guesses, n_correct, delta, alpha):
    """Epsilon, at delta, of the largest distance of two normals that is refuted; 0 where there is none."""
    low, high = 1e-9, 40.0
    counts = n_canaries, n_guesses, n_correct, alpha
    if delta == 0 or not _refutes(low, *counts):
        return 0.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _refutes(middle, *counts) else (low, middle)
    if gaussian_delta(low, 0.0) <= delta:
        return 0.0
    return optimize.brentq(lambda epsilon: gaussian_delta(low, epsilon) - delta, 0, low**2 / 2 + 40 * low)


def _refuse_levels(delta, confidence):
    if not 0 <= delta < 1:
        raise ValueError(f"delta={delta}: must be at least 0 and below 1, as 1e-5")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: must be above 0 and below 1, as 0.95")


def _refuse_shapes(values, included, n_axes, names, shape):
    if values.shape != included.shape or values.ndim != n_axes or not values.size:
        raise ValueError(
            f"shapes disagree: {names} {values.shape}, included {included.shape}; both must be {shape}, not empty"
        )
    bad = ~np.isfinite(values)
    if bad.any():
        where = tuple(int(k) for k in np.argwhere(bad)[0])
        raise ValueError(
            f"{bad.sum()} of {bad.size} {names} are not finite, the first at {where}; leave out that canary, or that "
            "model for all canaries, before looking at who was included"
        )


def _refuse_twins(included):
    first, second = included[: len(included) // 2 * 2 : 2], included[1::2]
    if first.size >= TWIN_BITS and (first != second).all():
        raise ValueError(
            f"all {len(included)} models come in complement twins, which are not independent; pass one of each pair, "
            "statistics[::2] and included[::2]"
        )


def _refuse_few(included, name, delta, tail):
    fewest = _fewest(delta, tail)
    n_in = included.sum(axis=0)
    sides = np.minimum(n_in, len(included) - n_in)
    if sides.min() < fewest:
        worst = sides.argmin()
        raise ValueError(
            f"canary {worst}: {n_in[worst]} of the {len(included)} models in the {name} half include it; at least "
            f"{fewest} must and {fewest} must not, or nothing can be shown: train clearly more than {4 * fewest} "
            f"models, or audit fewer canaries than {len(n_in)}"
        )


# --- one trained model ------------------------------------------------------------------------------------------------

K = tf.keras
OUTPUTS = pathlib.Path(__file__).parent.parent / "outputs"
LAYERS = (
    "Activation", "Add", "AveragePooling1D", "BatchNormalization", "Concatenate", "Conv1D", "Dense", "Dropout", "ELU",
    "Flatten", "Functional", "GaussianDropout", "GaussianNoise", "GlobalAveragePooling1D", "GlobalMaxPooling1D",
    "InputLayer", "LayerNormalization", "LeakyReLU", "MaxPooling1D", "Model", "PReLU", "ReLU", "Reshape", "Sequential",
    "Softmax",
)  # fmt: skip
PARTS = (K.initializers, K.regularizers, K.constraints, K.optimizers, K.optimizers.schedules, K.losses)
KNOWN = {*LAYERS, *(name for part in PARTS for name, value in vars(part).items() if isinstance(value, type))}
SAVE = "model.save('model.keras') in tf.keras 2.15"
REBUILD = f"build the model from Keras' own layers, give it the weights by set_weights, and {SAVE}"
SEEDS = (*range(11), 42, 99, 100, 123, 1234, 12345, 1337, *range(2020, 2027), 3407)
FOUND = "TPR at the threshold for FPR 0.01"
FALSE = "FPR at the threshold for FPR 0.01"
SIDECARS = {
    "genes.txt": "one gene a line in the order of the model's inputs (mean and sd behind tabs, if scaled)",
    "classes.txt": "one class a line in the order of the model's outputs",
}


@dataclasses.dataclass(frozen=True)
class Released:
    """A model as it would be shared.

    Attributes
    ----------
    model : tf.keras.Model
        Built anew; compiled where the file says how.
    genes : list of str
        In the order of its inputs.
    classes : list of str
        In the order of its outputs.
    scale : pandas.DataFrame or None
        Columns mean and sd by gene, where ``genes.txt`` holds them.
    name, sha256 : str
        Of the file.
    promise : str
        Content of ``card.md`` beside it: its owner's words, which nothing here checks.
    memory : numpy.ndarray or None
        The optimizer's running mean of the first kernel's gradients, if the file holds it (momentum, Adam): a sum of
        members' profiles without the start's noise.
    """

    model: K.Model
    genes: list
    classes: list
    scale: pd.DataFrame | None
    name: str
    sha256: str
    promise: str
    memory: np.ndarray | None


def bundle(folder, model, genes, classes, card):
    """Leave a model with all that another needs to use and to judge it: file, genes, classes and a card's words.

    Genes and classes are in the order of its inputs and outputs; `card` is what is promised of it, as from
    `genlib.privacy.release`.

    Examples
    --------
    >>> model = K.Sequential([K.Input((2,)), K.layers.Dense(2)])
    >>> folder = tempfile.mkdtemp()
    >>> bundle(folder, model, ["ESR1", "ERBB2"], ["LumA", "Basal"], "No promise.")
    >>> read_model(folder).genes
    ['ESR1', 'ERBB2']
    """
    folder = pathlib.Path(folder)
    with results.atomic_path(folder / "model.keras") as part:
        model.save(part)
    for name, lines in {"genes.txt": genes, "classes.txt": classes, "card.md": [card]}.items():
        with results.atomic_path(folder / name) as part:
            part.write_text("\n".join(lines) + "\n")


def read_model(path):
    """Open a `.keras` or `.h5` file of Keras 2, or the folder of `bundle`, without running anything that it holds.

    ``genes.txt`` and ``classes.txt`` lie beside it. What is no such file, or holds what is not among `LAYERS` and
    Keras' own parts, as a Lambda layer, is a ValueError that names it and the way out.

    References
    ----------
    ``safe_mode`` of Keras does not cover ``.h5``, whose Lambda layers run as they are loaded: CVE-2024-3660.

    Examples
    --------
    >>> read_model(__file__)
    Traceback (most recent call last):
    ValueError: ...audit.py is no file of a Keras model; give what model.save('model.keras') in tf.keras 2.15 leaves
    """
    path = pathlib.Path(path)
    path = next((path / name for name in ("model.keras", "model.h5") if (path / name).exists()), path)
    if path.is_dir():
        without = "a folder without model.keras or model.h5 (a SavedModel runs code of its own)"
        raise ValueError(f"{path} is {without}: {REBUILD}")
    config, compiled, version = _configuration(path)
    if not version.startswith("2."):
        raise ValueError(
            f"{path} was saved by Keras {version}, whose files Keras 2 cannot read: there, "
            f"np.savez('weights.npz', *model.get_weights()); here, {REBUILD}"
        )
    _refuse_unknown(config, path)
    (genes, scale), (classes, _) = (_sidecar(path.parent / name) for name in SIDECARS)
    try:
        model = K.layers.deserialize(config)
        with tempfile.TemporaryDirectory() as scratch:  # Keras tells the form by the file's name
            form = "keras" if zipfile.is_zipfile(path) else "h5"
            model.load_weights(shutil.copy(path, pathlib.Path(scratch, f"model.{form}")))
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ValueError(f"{path} cannot be built: {' '.join(str(error).split())[:200]}; {REBUILD}") from None
    if (model.input_shape, model.output_shape) != ((None, len(genes)), (None, len(classes))) or len(classes) < 2:
        raise ValueError(
            f"{path} takes {model.input_shape} and gives {model.output_shape}; genes.txt names {len(genes)}, and "
            f"classes.txt {len(classes)}, at least 2: mend them, or build a model with one output a class"
        )
    _compile(model, compiled, path)
    promise = "".join(card.read_text().strip() for card in path.parent.glob("card.md"))
    memory = _memory(path, model.get_weights()[0].shape)
    return Released(model, genes, classes, scale, path.name, results.file_digest(path), promise, memory)


def _configuration(path):
    """Layers, how the model was compiled, and the version of Keras: text of the file."""
    with contextlib.suppress(KeyError, ValueError):  # weights alone, or an archive of something else
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                config, about = (json.loads(archive.read(name)) for name in ("config.json", "metadata.json"))
                archive.getinfo("model.weights.h5")
                return config, config.pop("compile_config", None), about["keras_version"]
        if h5py.is_hdf5(path):
            with h5py.File(path) as file:
                compiled = json.loads(file.attrs.get("training_config", "null").replace("Custom>", ""))
                compiled = compiled and {"loss": compiled["loss"], "optimizer": compiled["optimizer_config"]}
                return json.loads(file.attrs["model_config"]), compiled, str(file.attrs["keras_version"])
    raise ValueError(f"{path} is no file of a Keras model; give what {SAVE} leaves")


def _memory(path, shape):
    """First array of an optimizer with this shape and both signs: a mean of gradients."""

    def mean(name, one):
        if name.startswith("optimizer") and getattr(one, "shape", None) == shape and (one[()] < 0).any():
            return one[()]

    with contextlib.ExitStack() as stack:
        zipped = zipfile.is_zipfile(path)
        file = stack.enter_context(zipfile.ZipFile(path)).open("model.weights.h5") if zipped else path
        return stack.enter_context(h5py.File(file)).visititems(mean)


def _refuse_unknown(config, path):
    """Refuse a configuration that names a class or a module which is not Keras' own, at any depth."""
    if isinstance(config, list):
        for one in config:
            _refuse_unknown(one, path)
    if isinstance(config, dict):
        name, module = config.get("class_name"), config.get("module") or "keras"
        if name and name not in KNOWN or not str(module).startswith("keras"):
            raise ValueError(
                f"{path}: '{name}' of {module} may run code, or is not known here, so the file is not opened; "
                f"{REBUILD}; what only scales its inputs may stand in genes.txt, as mean and sd behind tabs. "
                f"Known layers: {', '.join(LAYERS)}"
            )
        _refuse_unknown(list(config.values()), path)


def _compile(model, compiled, path):
    """Compile a model as its file says, by Keras' own optimizers and losses; see that loss and answers agree."""
    optimizer, given = ((compiled or {}).get(name) for name in ("optimizer", "loss"))
    _refuse_unknown([optimizer, given], path)
    loss = given and K.losses.get(given)
    logits = bool(getattr(loss, "get_config", dict)().get("from_logits"))
    end = getattr(getattr(model.layers[-1], "activation", None), "__name__", "linear")
    end = "softmax" if is_soft(model) else end
    if end not in ("softmax", "linear") or ("crossentropy" in str(given) and logits == is_soft(model)):
        raise ValueError(
            f"{path} ends in '{end}', and its loss has from_logits={logits}: a model gives logits (no last activation, "
            f"from_logits=True) or probabilities (softmax, from_logits=False); train it so, and {SAVE}"
        )
    if optimizer and loss:
        model.compile(K.optimizers.get(optimizer), loss, metrics=["accuracy"])


def _sidecar(path):
    """Names, one a line, and mean and sd where they stand behind."""
    if not path.exists():
        raise ValueError(f"there is no {path}; write it: {SIDECARS[path.name]}")
    table = pd.DataFrame([line.split("\t") for line in path.read_text().splitlines() if line.strip()])
    table = table.set_index(0).rename_axis(None).rename(columns={1: "mean", 2: "sd"})
    scale = table[["mean", "sd"]].apply(pd.to_numeric, errors="coerce") if table.shape[1] > 1 else None
    if table.index.duplicated().any() or table.isna().any(axis=None):
        raise ValueError(f"{path}: a name stands twice, or lines differ in length; mend it: {SIDECARS[path.name]}")
    if scale is not None and not (np.isfinite(scale).all(axis=None) and (scale["sd"] > 0).all()):
        raise ValueError(f"{path}: a mean or sd is no number, or an sd is not above 0; mend it: {SIDECARS[path.name]}")
    return list(table.index), scale


def match(released, cohort, kind):
    """Features of a cohort's patients in the order of the model's genes, and their classes in that of its answers.

    `kind` is what the model takes in, as in `genlib.features.transform`. A gene that the cohort lacks, or a class that
    the model does not know, is a ValueError. What comes back is (n, d) float32 and (n,) int.
    """
    _, missing = features.find_panel(cohort, released.genes)
    if missing:
        raise ValueError(
            f"{len(missing)} genes of the model are not in {cohort.name}: {', '.join(missing[:5])}; give the table "
            "that trained it, and name genes in genes.txt as there"
        )
    unknown = [name for name in cohort.classes if name not in released.classes]
    if unknown:
        raise ValueError(
            f"{cohort.name} has classes {unknown}, the model knows {released.classes}; name them in classes.txt as in "
            "the cohort, in the order of the model's outputs, or leave patients out by --drop-classes"
        )
    place = np.array([released.classes.index(name) for name in cohort.classes])
    x = features.transform(cohort, kind, released.genes)
    if released.scale is not None:
        mean, sd = released.scale.to_numpy(np.float32).T
        x = (x - mean) / sd
    return x, place[cohort.labels]


def read_members(path, cohort):
    """Who trained the model, (n,) bool, from a file with one patient a line.

    Patients are named as in the cohort's own file (loaded with ``keep_ids=True``); in a cohort that is known by name,
    by number, from 0. A patient who is not in the cohort (no message names one), or all or none as members, is a
    ValueError.
    """
    path, ids = pathlib.Path(path), cohort.ids
    lines = [line.strip() for line in path.read_text().splitlines()]
    unknown = [number for number, line in enumerate(lines, start=1) if line and line not in set(ids)]
    if unknown:
        raise ValueError(
            f"{path}: {len(unknown)} of {len(lines)} lines name no patient of {cohort.name}, the first is line "
            f"{unknown[0]}; write one patient a line as the cohort's file does, or its row from 0 for a known cohort, "
            "and leave no patient out that trained the model"
        )
    members = np.isin(ids, lines)
    if members.all() or not members.any():
        raise ValueError(
            f"{path}: {members.sum()} of {len(ids)} patients are members; a cohort needs others to compare with"
        )
    return members


def answers(model, x):
    """Logits (1, n, k) of a model: its outputs, or the logarithms of its probabilities."""
    given = model.predict(x, verbose=0)
    return (np.log(np.maximum(given, np.finfo(given.dtype).tiny)) if is_soft(model) else given)[None]


def is_soft(model):
    """Whether a model gives the probabilities of a softmax."""
    last = model.layers[-1]
    return isinstance(last, K.layers.Softmax) or getattr(last, "activation", None) is K.activations.softmax


def refuse_mismatch(logits, labels, members, stated=None):
    """Refuse a model that cannot be the one that its owner means: genes, classes or preprocessing must be others.

    `logits` are (1, n, k). Its accuracy on patients who did not train it must be the one `stated` by its owner; without
    one, it must be right about more members than whoever names the commonest class. Else a ValueError says where to
    look.
    """
    right, who = logits[0].argmax(axis=1) == labels, members if stated is None else ~members
    low, high = metrics.clopper_pearson(right[who].sum(), who.sum(), tail=0.005)
    commonest = np.bincount(labels[members]).max() / members.sum()
    if not low <= stated <= high if stated is not None else low <= commonest:
        wanted = f"the commonest class has {100 * commonest:.0f} % of members"
        wanted = wanted if stated is None else f"its owner says {100 * stated:.0f} %"
        raise ValueError(
            f"the model is right about {100 * right[who].mean():.0f} % of {who.sum()} patients, and {wanted}: "
            "genes.txt or classes.txt are in another order, or --kind is not what it takes in (genes.txt may also hold "
            "mean and sd of each gene); if it is so, give its accuracy on other patients by --accuracy"
        )


def weights(model, x):
    """What `genlib.attacks.on_weights` takes of a network of dense layers with one activation; None of another.

    Products (1, n, h) with the first kernel, the weights behind, and the activation of all layers but the last.
    """
    kinds = []
    for layer in model.layers:
        if isinstance(layer, K.layers.Dense) and layer.use_bias:
            kinds.append(layer.activation)
        elif isinstance(layer, K.layers.Activation) and kinds:
            kinds[-1] = layer.activation
        elif not isinstance(layer, K.layers.InputLayer | K.layers.Dropout | K.layers.Softmax):
            return None
    if len(set(kinds[:-1])) > 1 or not kinds:
        return None
    kernel, *further = model.get_weights()
    return (x @ kernel)[None], [part[None] for part in further], (kinds[:-1] or ["linear"])[0]


def known_start(model, seeds=SEEDS):
    """Try common seeds: the one that gives the start of these weights, and that start, or None twice.

    A kernel after training still looks like its start. One of another seed does not: their correlation is normal with a
    variance of one over the number of weights.

    Examples
    --------
    >>> K.utils.set_random_seed(42)
    >>> known_start(K.Sequential([K.Input((30,)), K.layers.Dense(9)]))[0]
    42
    """
    config, weights = model.to_json(), model.get_weights()
    place = next(i for i, part in enumerate(weights) if part.ndim > 1)
    for seed in seeds:
        K.utils.set_random_seed(seed)
        start = K.models.model_from_json(config).get_weights()
        alike = np.corrcoef(start[place].ravel(), weights[place].ravel())[0, 1] * weights[place].size ** 0.5
        if alike > 6:
            return seed, start
    return None, None


def found(scores, members, labels, classes, reference=()):
    """Members found at one threshold, in all and by class, with exact intervals over patients.

    One target has too few other patients to tell well what 1 in 100 of them is. So the threshold is the score that 1 in
    100 of them exceeds, or, if it is higher, the one that 1 in 100 of `reference` exceeds: scores of shadow models, in
    the target's place by turns, for patients whom they do not know. How many others were accused stands beside.

    Scores, members and labels are (n,); rows are as of `genlib.metrics.attack_table`, metrics `FOUND` and `FALSE`.

    Examples
    --------
    >>> scores, members = np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, False, True, False])
    >>> found(scores, members, np.zeros(4, int), ["A"])["estimate"].tolist()[:2]
    [0.5, 0.0]
    """
    others = np.sort(scores[~members])
    limits = [others[-1 - len(others) // 100]] + ([np.nanquantile(reference, 0.99)] if len(reference) else [])
    groups = {"all": labels >= 0} | {name: labels == k for k, name in enumerate(classes)}
    rows = []
    for group, chosen in groups.items():
        for metric, side in {FOUND: members, FALSE: ~members}.items():
            accused = scores[chosen & side] > max(limits)
            low, high = metrics.clopper_pearson(accused.sum(), max(1, len(accused)), tail=0.025)
            row = {"group": group, "metric": metric, "estimate": accused.sum() / max(1, len(accused))}
            rows.append(row | {"low": float(low), "high": float(high), "n_patients": len(accused), "n_models": 1})
    return pd.DataFrame(rows)


def private_path(path):
    """Path of a file that may name patients, the one place where names leave; in ``outputs/`` it is a ValueError.

    Examples
    --------
    >>> private_path(OUTPUTS / "who.csv")
    Traceback (most recent call last):
    ValueError: who.csv would name patients in outputs/, which is shown to others; choose another path
    """
    path = pathlib.Path(path).resolve()
    if OUTPUTS in path.parents:
        raise ValueError(f"{path.name} would name patients in outputs/, which is shown to others; choose another path")
    return path
