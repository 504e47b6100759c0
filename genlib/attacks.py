"""Membership attacks: ``(logits, labels, members) -> scores``, where a higher score means more likely a member.

Throughout, `logits` are (M, n, k), `labels` (n,) whole numbers from 0 to k - 1, `members` (M, n) bool, and scores (M,
n) float64; what `check` refuses, or an option that is not known, is a ValueError. With shadow models, rows 2j and 2j +
1 are complement twins. A score of NaN says "not judged": outside the slice of an attack, or without shadow models. An
attack never sees a model, and here it never chooses whom it judges by the target's membership.
"""

import contextlib
import functools
import warnings

import numpy as np
import tensorflow as tf
from scipy.special import log_softmax, logsumexp
from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack import (
    membership_inference_attack as mia,
)
from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack.data_structures import (
    AttackInputData,
    AttackType,
    SlicingSpec,
)

from genlib import membership, metrics

TF_PRIVACY_ATTACKS = {
    "loss threshold": AttackType.THRESHOLD_ATTACK,
    "entropy threshold": AttackType.THRESHOLD_ENTROPY_ATTACK,
    "logistic regression": AttackType.LOGISTIC_REGRESSION,
    "multi-layer perceptron": AttackType.MULTI_LAYERED_PERCEPTRON,
    "random forest": AttackType.RANDOM_FOREST,
    "nearest neighbors": AttackType.K_NEAREST_NEIGHBORS,
}

# A trained attacker splits its patients in 2, and its half in 3 to choose its settings: at least one on a side in each.
FEWEST_TO_TRAIN = 6


def tf_privacy(logits, labels, members, attacks=tuple(TF_PRIVACY_ATTACKS), slices=("all",), seed=0):
    """Run TF-Privacy's membership attacks against every model, on the whole set or on slices of it.

    Threat model: the attacker sees the target's logits for patients with known class. For the trained attackers (the
    last four) it also knows the membership of half of the patients, learns from them what members look like and judges
    the other half; each half is judged once. That is much to know, and it uses no shadow models.

    Parameters
    ----------
    logits, labels, members : numpy.ndarray
        Of the patients to judge: leave reserved ones out.
    attacks : sequence of str
        Names in `TF_PRIVACY_ATTACKS`.
    slices : sequence of str
        Out of ``"all"``, ``"class"`` (one slice a class), ``"correct"`` and ``"wrong"`` (by the target's prediction).
    seed : int
        The trained attackers draw from it.

    Returns
    -------
    dict of (str, str) to numpy.ndarray
        (attack, slice) to scores; class slices are called ``"class 0"`` and so on. Where a slice has fewer than
        `FEWEST_TO_TRAIN` members or non-members, a trained attacker gives no scores (NaN) for it.

    References
    ----------
    TensorFlow Privacy, ``membership_inference_attack``; the loss threshold is that of Yeom et al., CSF 2018. Its
    entropy threshold is on the modified entropy of Song and Mittal, USENIX Security 2021, since it is told the labels.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> labels, members = rng.integers(0, 2, 40), rng.random((2, 40)) < 0.5
    >>> scores = tf_privacy(rng.normal(size=(2, 40, 2)), labels, members, attacks=["loss threshold"])
    >>> scores["loss threshold", "all"].shape
    (2, 40)
    """
    logits, labels, members = check(logits, labels, members)
    _refuse_unknown("attack", attacks, TF_PRIVACY_ATTACKS)
    _refuse_unknown("slice", slices, ("all", "class", "correct", "wrong"))
    scores = {}
    with warnings.catch_warnings():
        # TF-Privacy's own precision and epsilon bound divide by zero on every call: those two are known.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=".*tensorflow_privacy")
        for m in range(len(members)):
            masks = _slice_masks(logits[m].argmax(axis=1) == labels, labels, slices)
            for number, (slice_name, mask) in enumerate(masks.items()):
                for attack in attacks:
                    place = scores.setdefault((attack, slice_name), np.full(members.shape, np.nan))
                    with _seeded([seed, m, number]):
                        place[m, mask] = _run_one(attack, logits[m, mask], labels[mask], members[m, mask])
    return scores


def signal(logits, labels):
    """How sure a model is of the true class: its logit minus the log-sum-exp of the others', (M, n) float64, in nats.

    References
    ----------
    Carlini et al., "Membership inference attacks from first principles", IEEE S&P 2022, section V.A.

    Examples
    --------
    >>> signal(np.array([[[2.0, 0.5]]]), np.array([0]))
    array([[1.5]])
    """
    logits = np.asarray(logits, np.float64)
    true = np.arange(logits.shape[2]) == np.asarray(labels)[:, None]
    others = np.where(true, -np.inf, logits)
    return (logits * true).sum(axis=2) - logsumexp(others, axis=2)


FEWEST_SHADOWS = 4


def lira(logits, labels, members, variant="online", variance="pooled", shadows=None):
    """Likelihood-ratio attack on answers: score how much the target looks like models that know the patient.

    Threat model (auditor): the attacker trained shadow models on random halves of the same cohort, which is the worst
    case and what a data custodian should assume. Every model is the target in turn; all others are its shadow models
    but its complement twin, whose members are exactly the target's non-members. With `shadows` the attacker is an
    outsider: logits (S, n, k) and members (S, n) of other models, all of which are shadow models of every target.

    `variant` and `variance` as in `likelihood_ratio`, which also says what is refused. A patient who is in no shadow
    model (online), or in all, gets NaN.

    References
    ----------
    Carlini et al., "Membership inference attacks from first principles", IEEE S&P 2022, algorithm 1 and equation 4.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> members = np.repeat(rng.random((8, 30)) < 0.5, 2, axis=0) ^ (np.arange(16) % 2 == 1)[:, None]
    >>> logits = rng.normal(size=(16, 30, 2)) + 3 * members[:, :, None] * np.array([1.0, 0.0])
    >>> scores = lira(logits, np.zeros(30, int), members)
    >>> bool(scores[members].mean() > scores[~members].mean())
    True
    """
    logits, labels, members = check(logits, labels, members)
    if shadows is not None:
        answers, known = _of_shadows(logits, labels, shadows)
        shadows = signal(answers, labels), known
    return likelihood_ratio(signal(logits, labels), members, variant, variance, shadows)


def likelihood_ratio(signals, members, variant="online", variance="pooled", shadows=None):
    """LiRA on any signal of a model about a patient, or on several together, as answers and weights.

    Parameters
    ----------
    signals : numpy.ndarray
        (M, n), or (M, n, c) for c signals whose joint Gaussian is compared.
    members : numpy.ndarray
        (M, n) bool.
    variant : {"online", "offline"}
        Online: log N(s; mu_in, cov_in) - log N(s; mu_out, cov_out). Offline: (s - mu_out) / sd_out, a monotone form of
        the paper's Phi of it that does not run into ties at 1; of several signals the sum of these distances after
        they are decorrelated, which is best where training moves all of them equally far.
    variance : {"pooled", "patient"}
        One covariance for all patients, or one each, which takes 24 shadow models a side or more.
    shadows : (numpy.ndarray, numpy.ndarray), optional
        Signals and members of other models; all of them are shadow models of every target.

    Raises
    ------
    ValueError
        When some patient has fewer than 4 shadow models on a side that the variant needs; says how many are needed.

    Examples
    --------
    >>> members = np.repeat(np.random.default_rng(0).random((8, 30)) < 0.5, 2, axis=0)
    >>> members[1::2] ^= True
    >>> pair = np.random.default_rng(1).normal(size=(16, 30, 2)) + members[:, :, None]
    >>> likelihood_ratio(pair, members).shape
    (16, 30)
    """
    _refuse_unknown("variant", [variant], ("online", "offline"))
    _refuse_unknown("variance", [variance], ("pooled", "patient"))
    signals = np.asarray(signals, np.float64).reshape(*members.shape, -1)
    known, known_members = (signals, members) if shadows is None else shadows
    known = np.asarray(known, np.float64).reshape(*known_members.shape, -1)
    # Around each patient's mean, so that squares do not drown small variances.
    center = known.mean(axis=0)
    sides = {"in": known_members, "out": ~known_members} if variant == "online" else {"out": ~known_members}
    of = {side: _moments(known - center, chosen, len(signals), shadows is None) for side, chosen in sides.items()}
    _refuse_few(f"{variant} LiRA", [count for count, _, _ in of.values()])
    density = {side: _gaussian(signals - center, *moments, variance == "patient") for side, moments in of.items()}
    return density["out"][0] if variant == "offline" else density["in"][1] - density["out"][1]


def _moments(values, chosen, n_targets, leave_out):
    """Number, mean (M, n, c) and covariance (M, n, c, c) of the chosen shadow models' signals for each target."""
    count, mean = _mean(values, chosen, n_targets, leave_out)
    square = _mean(values[..., None] * values[..., None, :], chosen, n_targets, leave_out)[1]
    return count, mean, square - mean[..., None] * mean[..., None, :]


def _mean(values, chosen, n_targets, leave_out):
    """Number (M, n) and mean (M, n, ...) of the chosen shadow models' values, for every target and patient.

    `leave_out` takes the target and its twin out of the sums over all models.
    """
    weight = chosen.reshape(*chosen.shape, *[1] * (values.ndim - 2)).astype(float)
    parts = weight, np.where(weight, values, 0)
    totals = [np.broadcast_to(part.sum(axis=0), (n_targets, *part.shape[1:])) for part in parts]
    if leave_out:
        totals = [total - part - _of_twin(part) for total, part in zip(totals, parts, strict=True)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return totals[0].reshape(n_targets, -1), totals[1] / totals[0]


def _of_twin(values):
    """Row of the complement twin in place of each row; a last model without a twin has none (zeros)."""
    even = np.concatenate([values, np.zeros_like(values[: len(values) % 2])])
    return even.reshape(-1, 2, *values.shape[1:])[:, ::-1].reshape(even.shape)[: len(values)]


def _refuse_few(attack, counts):
    """Refuse a patient with some shadow models on a side but too few; one that has none gets no score instead."""
    fewest = min(int(count[count > 0].min()) if (count > 0).any() else 0 for count in counts)
    if fewest < FEWEST_SHADOWS:
        raise ValueError(
            f"{attack} needs at least {FEWEST_SHADOWS} shadow models on a side for every patient, there are {fewest}; "
            f"train at least {2 * FEWEST_SHADOWS + 2} models in twins"
        )


def _gaussian(signals, count, mean, covariance, own):
    """Standardized distance and log-density (without the constant) of the targets' signals under one side."""
    if not own:
        weights = count[..., None, None] / count.sum(axis=1)[:, None, None, None]
        covariance = np.nansum(weights * covariance, axis=1, keepdims=True)
    floor = np.finfo(float).tiny ** 0.5
    variances = np.einsum("...ii->...i", np.where(np.isnan(covariance), 0, covariance))
    spread = np.sqrt(np.maximum(variances, floor))
    apart, outer = (signals - mean) / spread, spread[..., None] * spread[..., None, :]
    # A signal that never varies has a variance of 0, or of less by rounding: it is correlated with nothing.
    correlation = np.clip(np.where(np.isnan(covariance), 0, covariance) / outer, -1 + 1e-9, 1 - 1e-9)
    inverse = np.linalg.inv(np.where(np.eye(signals.shape[2], dtype=bool), 1.0, correlation))
    distance = np.einsum("mni,mnij->mn", apart, inverse) / np.sqrt(inverse.sum(axis=(2, 3)))
    square = np.einsum("mni,mnij,mnj->mn", apart, inverse, apart)
    size = np.linalg.slogdet(inverse)[1] / 2 - np.log(spread).sum(axis=2)
    return distance, np.where(count > 0, size - square / 2, np.nan)


def rmia(logits, labels, members, variant="online", gamma=1.0, shadows=None):
    """Robust membership inference: score how far the target is surer of this patient than of others.

    Sureness is taken against reference models, and then compared with that of all other patients: the score is the
    share of others z with ratio(x) / ratio(z) >= `gamma`. The default of 1 keeps the order of all patients; with more,
    patients of whom every model is sure tie at 0. Threat models, arguments and NaN as in `lira`.

    Online, p(x) is the mean of the reference models that know the patient and of those that do not, equally weighted.
    Offline, from those that do not alone, p(x) = ((1 + a) p_out(x) + 1 - a) / 2, with a chosen for each target on one
    of its shadow models, never on the target.

    References
    ----------
    Zarifzadeh, Liu, Shokri: "Low-cost high-power membership inference attacks", ICML 2024, equations 3, 9 and 10.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> members = np.repeat(rng.random((8, 30)) < 0.5, 2, axis=0) ^ (np.arange(16) % 2 == 1)[:, None]
    >>> logits = rng.normal(size=(16, 30, 2)) + 3 * members[:, :, None] * np.array([1.0, 0.0])
    >>> scores = rmia(logits, np.zeros(30, int), members)
    >>> bool(scores[members].mean() > scores[~members].mean())
    True
    """
    logits, labels, members = check(logits, labels, members)
    _refuse_unknown("variant", [variant], ("online", "offline"))
    log_p = _log_likelihood(logits, labels)
    known, known_members = np.exp(log_p), members
    if shadows is not None:
        answers, known_members = _of_shadows(logits, labels, shadows)
        known = np.exp(_log_likelihood(answers, labels))
    counts, outside = _mean(known, ~known_members, len(log_p), shadows is None)
    counts_in, inside = _mean(known, known_members, len(log_p), shadows is None)
    _refuse_few(f"{variant} RMIA", [counts, counts_in] if variant == "online" else [counts])
    if variant == "online":
        return _share_below(log_p - _log((inside + outside) / 2), gamma)
    constants = _offline_constants(known, known_members, len(log_p), shadows is None, gamma)[:, None]
    return _share_below(log_p - _log(((1 + constants) * outside + 1 - constants) / 2), gamma)


def _log_likelihood(logits, labels):
    logs = log_softmax(np.asarray(logits, np.float64), axis=2)
    return np.take_along_axis(logs, np.asarray(labels)[None, :, None], axis=2)[:, :, 0]


def _log(p):
    # A likelihood that all reference models round to 0 counts as the smallest number that can be written.
    return np.log(np.maximum(p, np.finfo(float).tiny))


def _share_below(log_ratio, gamma):
    """For every target and patient, the share of other patients whose ratio is at most the own over gamma."""
    shares = np.full(log_ratio.shape, np.nan)
    for row, share in zip(log_ratio, shares, strict=True):
        judged = np.flatnonzero(~np.isnan(row))
        values = row[judged]
        below = np.searchsorted(np.sort(values), values - np.log(gamma), side="right")
        # A patient is not compared with itself, which only a gamma of at most 1 would count.
        share[judged] = (below - (gamma <= 1)) / max(1, len(judged) - 1)
    return shares


def _offline_constants(p, members, n_targets, leave_out, gamma):
    """For every target the constant a that serves best when one of its shadow models plays the target."""
    grid, best = np.linspace(0, 1, 11), []
    for target in range(n_targets):
        usable = np.setdiff1d(np.arange(len(p)), [target, target ^ 1] if leave_out else [])
        player, rest = usable[0], usable[usable // 2 != usable[0] // 2]
        with np.errstate(invalid="ignore"):
            outside = (p[rest] * ~members[rest]).sum(axis=0) / (~members[rest]).sum(axis=0)
        mixed = ((1 + grid[:, None]) * outside + 1 - grid[:, None]) / 2
        shares, judged = _share_below(_log(p[player]) - _log(mixed), gamma), ~np.isnan(outside)
        known = members[player, judged]
        both = known.any() and not known.all()
        best.append(grid[np.argmax([metrics.auc(share[judged], known) for share in shares])] if both else 0.0)
    return np.array(best)


def threshold(logits, labels, members, per_class=False):
    """Judge everybody by the log-odds of the true class, or each class by a threshold of its own.

    Threat model: the attacker sees the logits; for thresholds per class it also has shadow models, on which it finds,
    for each class, how rare such log-odds are among non-members: the score is the share of them whose log-odds are
    smaller, ties half. Thresholds on the entropy are TF-Privacy's.

    References
    ----------
    Loss: Yeom et al., CSF 2018. Thresholds per class: Song and Mittal, USENIX Security 2021, equation 9.

    Examples
    --------
    >>> logits = np.array([[[0.0, 2.0], [1.0, 0.0]]])
    >>> threshold(logits, np.array([1, 1]), np.array([[True, False]])).round(1)
    array([[ 2., -1.]])
    """
    logits, labels, members = check(logits, labels, members)
    values = signal(logits, labels)
    if not per_class:
        return values
    scores = np.full(values.shape, np.nan)
    for k in np.unique(labels):
        patients = np.flatnonzero(labels == k)
        for target in range(len(values)):
            shadows = [s for s in range(len(values)) if s not in (target, target ^ 1)]
            outside = np.sort(values[np.ix_(shadows, patients)][~members[np.ix_(shadows, patients)]])
            if len(outside):
                ends = [np.searchsorted(outside, values[target, patients], side=side) for side in ("left", "right")]
                scores[target, patients] = np.mean(ends, axis=0) / len(outside)
    return scores


def label_only(logits, labels, members):
    """Judge by the predicted class alone: a model is more often right about patients that it has learned.

    Threat model: the attacker sees only the class that the model names, and that of shadow models: how often those
    that do not know the patient are right is taken off.

    References
    ----------
    Gap attack: Yeom et al., CSF 2018; Choquette-Choo et al., "Label-only membership inference attacks", ICML 2021.

    Examples
    --------
    >>> members = np.array([[True], [False], [False], [False]])
    >>> label_only(np.array([[[0.0, 2.0]], [[1.0, 0.0]], [[1.0, 0.0]], [[1.0, 0.0]]]), np.array([1]), members)[:1]
    array([[1.]])
    """
    logits, labels, members = check(logits, labels, members)
    right = (logits.argmax(axis=2) == labels).astype(float)
    return right - _mean(right, ~members, len(right), True)[1]


# Attacks on weights.

SMALLEST = 1e-9  # eigenvalues of X X^T below this share of their mean count as zero
FIRST_RIDGE = 0.01  # share of the mean diagonal; what is chosen from there hardly depends on it


def span(inside, x, directions, ridge=0.0):
    """Attack on a first kernel: score how far training pushed it along a patient's profile. No shadow models.

    With more features than patients, SGD leaves the first kernel at W = s W_0 + X^T A, where A is zero in the rows of
    all who did not train. So C = (X X^T)^-1 X W is A plus the start's noise. A patient's row of it is projected on the
    direction in which training pushes members of that class, and divided by what it has of noise.

    Threat model: the attacker has the model, and profile and class of each candidate. The null law is known for SGD,
    with momentum and coupled L2, if the start is Gaussian and unknown to the attacker and every member is a candidate:
    with `ridge=0` non-members are N(0, v), v being what is left of the variance of the start's entries, as in the part
    of the kernel that no profile reaches. What members who are no candidates add is not in it. With a ridge, or under
    Adam, no null law is known: non-members whom the attacker knows set the threshold.

    Parameters
    ----------
    inside : numpy.ndarray
        (M, n, h) products X W with the first kernels, without bias: `inside` of `genlib.bank.train`.
    x : numpy.ndarray
        (n, d) profiles of the candidates, and of others to regress on.
    directions : numpy.ndarray
        (M, n, h), of any length, as from the function of this name. Where it is zero the score is 0, that of nothing.
    ridge : float or numpy.ndarray
        Added to X X^T, as a share of its mean diagonal; one for all models or (M,), as `ridges` chooses. Without one,
        profiles that depend on one another are a ValueError.

    Returns
    -------
    numpy.ndarray
        (M, n): <C_i, v_i> / (|v_i| sqrt(((X X^T)^-1)_ii)).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, members = rng.normal(size=(20, 90)), np.arange(20) < 10
    >>> kernel = rng.normal(size=(90, 3)) + x.T @ (members[:, None] * np.array([1.0, 0.0, 0.0]))
    >>> scores = span((x @ kernel)[None], x, np.broadcast_to([1.0, 0.0, 0.0], (1, 20, 3)))
    >>> metrics.auc(scores, members[None]) > 0.9
    True
    """
    coefficients, spread = _solve(inside, x, ridge)
    return _along(coefficients, directions) / np.sqrt(spread)


def left_out(inside, x, ridge=0.0):
    """What all others say of a patient's products with the first kernel: a regression without the patient, (M, n, h).

    It does not hold the patient's own noise, and so does not bias the choice of a direction as `inside` would.
    Arguments as in `span`.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(4, 9))
    >>> others = x[:3] @ np.linalg.lstsq(x[:3], x[:3, :1], rcond=None)[0]  # of what the last patient is no part
    >>> left_out(x[None, :, :1], x)[0, 3] - x[3] @ np.linalg.lstsq(x[:3], others, rcond=None)[0] < 1e-9
    array([ True])
    """
    coefficients, spread = _solve(inside, x, ridge)
    return np.asarray(inside, np.float64) - coefficients / spread[..., None]


def directions(products, further, labels, activation="relu"):
    """Direction in which training pushes a patient's products with the first kernel, (M, n, h) float64.

    The push on the logits is the true class less the probabilities: those of a start that knows nothing, 1 / k, and
    those of the end, averaged. Keras' own derivatives take it back through the layers.

    Parameters
    ----------
    products : numpy.ndarray
        (M, n, h), as from `left_out`.
    further : list of numpy.ndarray
        First bias, then kernel and bias of each further dense layer, with a leading axis M: `further` of
        `genlib.bank.train`.
    labels : numpy.ndarray
        (n,) int, or (M, n) where the attacker does not know the class and takes each model's answer.
    activation : str or callable
        Of all layers but the last, as Keras knows it.

    Examples
    --------
    >>> directions(np.zeros((1, 1, 3)), [np.zeros((1, 3))], np.array([2])).round(2)
    array([[[-0.33, -0.33,  0.67]]])
    """
    with tf.GradientTape() as tape:
        through, _ = _forward(tape, products, further, activation)
    first, answers = through[0], through[-1]
    true = tf.one_hot(np.broadcast_to(labels, answers.shape[:2]), answers.shape[2], dtype=tf.float64)
    push = true - (1 / answers.shape[2] + tf.nn.softmax(answers)) / 2
    return tape.gradient(answers, first, push).numpy()


def ridges(inside, x, directions):
    """Choose a ridge for each model from its weights alone, before anybody is accused: (M,) shares, 1e-6 to 10.

    Where coefficients of mean square t lie under start noise of variance v, the ridge v / t predicts them best. Both
    are read off at a ridge of 0.01: the noise across the directions of training, and along them what exceeds it.
    Arguments as in `span`, with two units or more.

    References
    ----------
    Robinson: "That BLUP is a good thing: the estimation of random effects", Statistical Science 6(1), 1991.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, one = rng.normal(size=(50, 200)), np.eye(30)[0]
    >>> kernel = 0.1 * rng.normal(size=(200, 30)) + 0.1 * x.T @ ((rng.random((50, 1)) < 0.5) * one)
    >>> bool(0.005 < ridges((x @ kernel)[None], x, np.broadcast_to(one, (1, 50, 30)))[0] < 0.02)  # 0.01 is best
    True
    """
    return _ridges(_solve(inside, x, FIRST_RIDGE)[0], x, directions)


def _ridges(coefficients, x, directions):
    values, vectors = _spectrum(x)
    added = FIRST_RIDGE * values.mean()
    along = _along(coefficients, directions) ** 2
    across = ((coefficients**2).sum(axis=2) - along).mean(axis=1) / (coefficients.shape[2] - 1)
    start = across / (values / (values + added) ** 2).mean()
    training = (along.mean(axis=1) - across) / ((vectors**2 @ (values / (values + added))) ** 2).mean()
    start = start / values.mean()
    # A kernel that decayed to nothing has neither, and any ridge finds nothing in it.
    return np.maximum(start / np.maximum(np.maximum(training, 0.1 * start), np.finfo(float).tiny), 1e-6)


def on_weights(inside, x, further, labels, activation="relu", ridge=None):
    """Attack weights from beginning to end: left-out products, directions, ridge, score.

    Arguments as in `span` and `directions`; the ridge is by default chosen for each model by `ridges`.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(20, 90))
    >>> kernel = np.random.default_rng(1).normal(size=(90, 3))
    >>> on_weights((x @ kernel)[None], x, [np.zeros((1, 3))], np.arange(20) % 3).shape
    (1, 20)
    """
    labels, scores = np.broadcast_to(labels, np.shape(inside)[:2]), []
    for start in range(0, len(inside), 8):  # a few models at a time, since each takes several arrays of such a size
        few = slice(start, start + 8)
        coefficients, spread = _solve(inside[few], x, FIRST_RIDGE if ridge is None else ridge)
        others = inside[few] - coefficients / spread[..., None]
        pushes = directions(others, [part[few] for part in further], labels[few], activation)
        if ridge is None:
            coefficients, spread = _solve(inside[few], x, _ridges(coefficients, x, pushes))
        scores.append(_along(coefficients, pushes) / np.sqrt(spread))
    return np.concatenate(scores)


def gradient_norm(inside, x, further, labels, activation="relu"):
    """White-box attack by the length of a patient's gradient of the loss over all weights, short = member; (M, n).

    Parameters as in `on_weights`. It is close to the loss: where that is small, so is the gradient.

    References
    ----------
    Nasr, Shokri, Houmansadr: "Comprehensive privacy analysis of deep learning", IEEE S&P 2019, the gradient alone.

    Examples
    --------
    >>> gradient_norm(np.zeros((1, 1, 2)), np.zeros((1, 3)), [np.zeros((1, 2))], np.array([0])).round(2)
    array([[-0.71]])
    """
    with tf.GradientTape() as tape:
        through, given = _forward(tape, inside, further, activation)
        names = np.broadcast_to(labels, inside.shape[:2])
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(names, through[-1])
    lengths = [1 + np.square(x).sum(axis=1), *[1 + tf.reduce_sum(one**2, axis=2).numpy() for one in given]]
    errors = [tf.reduce_sum(one**2, axis=2).numpy() for one in tape.gradient(loss, through)]
    return -np.sqrt(sum(error * length for error, length in zip(errors, lengths, strict=True)))


def _forward(tape, products, further, activation):
    """What goes into the activations, and what comes out, of M dense networks from their first products on."""
    bias, *rest = (tf.constant(part, tf.float64) for part in further)
    through, given = [tf.constant(products, tf.float64) + bias[:, None]], []
    tape.watch(through[0])
    for kernel, bias in zip(rest[::2], rest[1::2], strict=True):
        given.append(tf.keras.activations.get(activation)(through[-1]))
        through.append(given[-1] @ kernel + bias[:, None])
    return through, given


RIDGES = 10.0 ** np.arange(-3, 2.1, 0.5)


def screen(x, labels):
    """Say who would be exposed, before anything is trained: whom all other patients speak against.

    Ridge regression of the classes (n,) on profiles (n, d), each patient left out in turn, in closed form; its strength
    is the one of `RIDGES` that predicts best so. It needs no model, no shadow models and no membership. What comes back
    is (n,) float64, the highest score of another class less that of the patient's own; higher = more exposed.

    References
    ----------
    The residual of a left-out row: Allen, Technometrics 16(1), 1974. That patients whom models get wrong unless they
    have seen them are exposed: Feldman, "Does learning require memorization?", STOC 2020.

    Examples
    --------
    >>> x = np.array([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0], [-0.1, 1.0], [1.0, 0.0]])
    >>> int(screen(x, np.array([0, 0, 1, 1, 1])).argmax())  # looks like the others' class
    4
    """
    values, vectors = _spectrum(x)
    own = np.eye(int(labels.max()) + 1, dtype=bool)[labels]
    predicted = []
    for ridge in RIDGES:
        kept = values / (values + ridge * values.mean())
        residual = own - (vectors * kept) @ (vectors.T @ own)
        predicted.append(own - residual / (1 - vectors**2 @ kept)[:, None])
    best = min(predicted, key=lambda scores: ((own - scores) ** 2).sum())
    return np.where(own, -np.inf, best).max(axis=1) - best[own]


def _spectrum(x):
    """Eigenvalues (n,) and eigenvectors (n, n) of X X^T."""
    return _decomposed(np.asarray(x).tobytes(), np.asarray(x).dtype.str, len(x))


@functools.lru_cache(maxsize=1)  # the functions above are called for the same profiles one after the other
def _decomposed(content, dtype, n):
    x = np.frombuffer(content, dtype).reshape(n, -1).astype(np.float64)
    return np.linalg.eigh(x @ x.T)


def _solve(inside, x, ridge):
    """Coefficients (M, n, h) of the profiles in the kernels, and the diagonal (M, n) of the inverse behind them."""
    if np.ndim(inside) != 3 or np.shape(inside)[1] != len(x):
        raise ValueError(f"shapes disagree: inside {np.shape(inside)}, x {np.shape(x)}; they must be (M, n, h), (n, d)")
    values, vectors = _spectrum(x)
    if values[0] < SMALLEST * values.mean() and np.min(ridge) <= 0:
        raise ValueError(
            f"ridge={ridge}: {len(x)} profiles with {x.shape[1]} features depend on one another, so no coefficient "
            "is determined; give a ridge above 0, as 0.1, or fewer candidates than features and nobody twice"
        )
    shrunk = 1 / (values + values.mean() * np.broadcast_to(ridge, len(inside))[:, None])
    coefficients = vectors @ (shrunk[..., None] * (vectors.T @ np.asarray(inside, np.float64)))
    return coefficients, shrunk @ (vectors**2).T


def _along(values, directions):
    """Length of (M, n, h) along directions; 0 where there is none."""
    size = np.linalg.norm(directions, axis=2)
    return np.einsum("mih,mih->mi", values, directions) / np.where(size > 0, size, 1)


def check(logits, labels, members):
    """Refuse what an attack would take and answer wrongly, naming the argument, what it holds and the way out.

    Finite logits (M, n, k) of at least two classes, no probabilities; labels (n,), whole numbers from 0 to k - 1;
    members (M, n) bool. All three come back as arrays.

    Examples
    --------
    >>> check(np.array([[[0.9, 0.1]]]), np.array([0]), np.array([[True]]))
    Traceback (most recent call last):
    ValueError: logits hold probabilities: each row is within 0 and 1 and adds up to 1; give their logarithms, ...
    """
    logits, labels, members = np.asarray(logits), np.asarray(labels), np.asarray(members)
    if logits.ndim != 3 or logits.shape[:2] != members.shape or labels.shape != members.shape[1:]:
        raise ValueError(
            f"shapes disagree: logits {logits.shape}, labels {labels.shape}, members {members.shape}; they must be "
            "(M, n, k), (n,) and (M, n)"
        )
    if logits.shape[2] < 2:
        raise ValueError(
            "logits have a single output, as of a sigmoid for two classes; give both classes: np.stack([0 * z, z], "
            "axis=2), z being that output before the sigmoid"
        )
    membership.check(labels, members, logits.shape[2])
    bad = ~np.isfinite(logits)
    if bad.any():
        m, i, k = np.argwhere(bad)[0]
        raise ValueError(
            f"logits of {bad.any(axis=(1, 2)).sum()} of {len(logits)} models are not finite: the first is "
            f"{logits[m, i, k]}, model {m}, row {i}, class {k}; leave out a model that diverged, or lower its learning "
            "rate; take logarithms of probabilities as np.log(np.maximum(p, 1e-30))"
        )
    if logits.min() >= 0 and logits.max() <= 1 and np.allclose(logits.sum(axis=2), 1, atol=1e-3):
        raise ValueError(
            "logits hold probabilities: each row is within 0 and 1 and adds up to 1; give their logarithms, "
            "np.log(np.maximum(p, 1e-30)), or the model's outputs before the softmax"
        )
    return logits, labels, members


def _of_shadows(logits, labels, shadows):
    """Answers and members of shadow models, checked, and that they know the classes of the target."""
    answers, _, known = check(shadows[0], np.zeros_like(labels), shadows[1])
    if answers.shape[2] != logits.shape[2]:
        raise ValueError(
            f"shadows: their models know {answers.shape[2]} classes, the target {logits.shape[2]}; train shadow models "
            "on patients of all of the target's classes"
        )
    return answers, known


def _refuse_unknown(kind, given, known):
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"{kind} {unknown} is not known; choose among {', '.join(known)}")


def _slice_masks(right, labels, slices):
    masks = {"all": {"all": labels >= 0}, "correct": {"correct": right}, "wrong": {"wrong": ~right}}
    masks["class"] = {f"class {k}": labels == k for k in np.unique(labels)}
    return {name: mask for slice_name in slices for name, mask in masks[slice_name].items()}


def _run_one(attack, logits, labels, members):
    scores = np.full(len(labels), np.nan)
    fewest = FEWEST_TO_TRAIN if TF_PRIVACY_ATTACKS[attack].is_trained_attack else 1
    if min(members.sum(), (~members).sum()) < fewest:
        return scores
    data = AttackInputData(
        logits_train=logits[members],
        logits_test=logits[~members],
        labels_train=labels[members],
        labels_test=labels[~members],
    )
    answer = mia.run_attacks(data, SlicingSpec(entire_dataset=True), [TF_PRIVACY_ATTACKS[attack]])
    for one in answer.single_attack_results:
        scores[members], scores[~members] = one.membership_scores_train, one.membership_scores_test
    return scores


@contextlib.contextmanager
def _seeded(seed):
    # TF-Privacy and its scikit-learn attackers draw from NumPy's global generator; it is put back as it was.
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(np.random.SeedSequence([*seed, 7]).generate_state(4))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
