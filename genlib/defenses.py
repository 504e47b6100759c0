"""Defenses at the output: what a hospital shows of a model's answers, as functions from logits to logits.

They train nothing and change nothing inside the model. Whoever gets the model itself is not stopped by any of them;
they are for models that answer questions from afar. A defense that only hides the signal still leaves the predicted
class, so it is judged by what an attacker can do with that too.
"""

import numpy as np
from scipy.special import log_softmax, softmax

# Probability in place of a rounded 0, so that logarithms stay finite: far below what any rounding can tell apart.
NOTHING = 1e-12


def class_only(logits):
    """Show the predicted class alone.

    Parameters
    ----------
    logits : numpy.ndarray
        (M, n, k).

    Returns
    -------
    numpy.ndarray
        (M, n, k) float64, log-probabilities: 0 for the predicted class, the same small value for all others.

    Examples
    --------
    >>> np.exp(class_only(np.array([[[2.0, 1.0, 0.0]]]))).round(3)
    array([[[1., 0., 0.]]])
    """
    return top(logits, 1, confidence=False)


def top(logits, n_shown, confidence=True):
    """Show the most likely classes alone, with their probabilities or without.

    Parameters
    ----------
    logits : numpy.ndarray
        (M, n, k).
    n_shown : int
        Number of classes shown, from 1 to k.
    confidence : bool
        False shows which classes, all as equally likely.

    Returns
    -------
    numpy.ndarray
        (M, n, k) float64, log-probabilities; the rest is spread evenly over the classes that are not shown.

    Raises
    ------
    ValueError
        When `n_shown` is not from 1 to k.

    Examples
    --------
    >>> np.exp(top(np.log([[[0.6, 0.25, 0.1, 0.05]]]), 2)).round(3)
    array([[[0.6  , 0.25 , 0.075, 0.075]]])
    """
    k = logits.shape[2]
    if not 1 <= n_shown <= k:
        raise ValueError(f"n_shown={n_shown}: must be from 1 to the number of classes, {k}")
    probability = softmax(np.asarray(logits, np.float64), axis=2)
    # A stable order, so that classes that tie stay in theirs.
    rank = np.argsort(np.argsort(-probability, axis=2, kind="stable"), axis=2, kind="stable")
    shown = rank < n_shown
    if not confidence:
        return _logs(shown / n_shown)
    rest = (probability * ~shown).sum(axis=2, keepdims=True) / max(1, k - n_shown)
    return _logs(np.where(shown, probability, rest))


def rounded(logits, decimals):
    """Show probabilities rounded to a few decimals.

    Parameters
    ----------
    logits : numpy.ndarray
        (M, n, k).
    decimals : int

    Returns
    -------
    numpy.ndarray
        (M, n, k) float64, log-probabilities.

    References
    ----------
    Shokri et al., "Membership inference attacks against machine learning models", IEEE S&P 2017, section VIII.

    Examples
    --------
    >>> np.exp(rounded(np.log([[[0.84, 0.14, 0.02]]]), 1)).round(3)
    array([[[0.889, 0.111, 0.   ]]])
    """
    return _logs(np.round(softmax(np.asarray(logits, np.float64), axis=2), decimals))


def tempered(logits, temperature):
    """Show softer probabilities: logits over a temperature above 1.

    Parameters
    ----------
    logits : numpy.ndarray
        (M, n, k).
    temperature : float

    Returns
    -------
    numpy.ndarray
        (M, n, k) float64, log-probabilities.

    Raises
    ------
    ValueError
        When the temperature is not above 0.

    References
    ----------
    Shokri et al., IEEE S&P 2017, section VIII.

    Examples
    --------
    >>> np.exp(tempered(np.array([[[2.0, 0.0]]]), temperature=2.0)).round(3)
    array([[[0.731, 0.269]]])
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    return log_softmax(np.asarray(logits, np.float64) / temperature, axis=2)


def noisy(logits, scale, seed):
    """Add Gaussian noise to logits where it does not change the predicted class.

    One draw for each model and patient: who asks again gets the same answer.

    Parameters
    ----------
    logits : numpy.ndarray
        (M, n, k).
    scale : float
        Standard deviation, in nats.
    seed : int

    Returns
    -------
    numpy.ndarray
        (M, n, k) float64, log-probabilities, with the same largest class everywhere.

    Examples
    --------
    >>> logits = np.array([[[2.0, 1.9, 0.0]]])
    >>> noisy(logits, scale=5.0, seed=0).argmax(axis=2)
    array([[0]])
    """
    logits = np.asarray(logits, np.float64)
    moved = logits + np.random.default_rng([seed, 21]).normal(0, scale, logits.shape)
    # The largest value goes to the class that was largest: the two change places.
    named, largest = logits.argmax(axis=2)[..., None], moved.argmax(axis=2)[..., None]
    at_named, at_largest = (np.take_along_axis(moved, place, axis=2) for place in (named, largest))
    np.put_along_axis(moved, largest, at_named, axis=2)
    np.put_along_axis(moved, named, at_largest, axis=2)
    return log_softmax(moved, axis=2)


def _logs(probability):
    probability = np.maximum(probability, NOTHING)
    return np.log(probability / probability.sum(axis=2, keepdims=True))
