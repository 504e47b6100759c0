"""Membership attacks: ``(logits, labels, members) -> scores``, where a higher score means more likely a member.

A score of NaN says "not judged": the patient is in no model's evaluation, or outside the slice of an attack. An attack
never sees a model, and here it never chooses whom it judges by the target's membership.
"""

import collections
import contextlib
import warnings

import numpy as np
from scipy.special import log_softmax, logsumexp
from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack import (
    membership_inference_attack as mia,
)
from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack.data_structures import (
    AttackInputData,
    AttackType,
    SlicingSpec,
)
from tqdm.auto import tqdm

from genlib import metrics

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


def tf_privacy(
    logits,
    labels,
    members,
    attacks=tuple(TF_PRIVACY_ATTACKS),
    slices=("all",),
    seed=0,
    evaluated=None,
    progress=False,
):
    """Run TF-Privacy's membership attacks against every model, on the whole set or on slices of it.

    Threat model: the attacker sees the target's logits for patients with known class. For the trained attackers (the
    last four) it also knows the membership of half of the patients, learns from them what members look like and judges
    the other half; each half is judged once. That is much to know, and it uses no shadow models.

    Parameters
    ----------
    logits : numpy.ndarray
        (M, n, k).
    labels : numpy.ndarray
        (n,) int.
    members : numpy.ndarray
        (M, n) bool.
    attacks : sequence of str
        Names in `TF_PRIVACY_ATTACKS`.
    slices : sequence of str
        Out of ``"all"``, ``"class"`` (one slice a class), ``"correct"`` and ``"wrong"`` (by the target's prediction).
    seed : int
        The trained attackers draw from it.
    evaluated : numpy.ndarray, optional
        (n,) bool, patients to judge; leave reserved patients out here.
    progress : bool
        Show a progress bar.

    Returns
    -------
    dict of (str, str) to numpy.ndarray
        (attack, slice) to scores (M, n) float64, NaN outside the slice; class slices are called ``"class 0"`` and so
        on. Where a slice has fewer than `FEWEST_TO_TRAIN` members or non-members, a trained attacker gives no
        scores (NaN) for it.

    Raises
    ------
    ValueError
        When an attack or slice is unknown, or shapes disagree.

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
    logits, labels, members = _checked(logits, labels, members)
    _refuse_unknown("attack", attacks, TF_PRIVACY_ATTACKS)
    _refuse_unknown("slice", slices, ("all", "class", "correct", "wrong"))
    judged = np.ones(len(labels), bool) if evaluated is None else np.asarray(evaluated)
    scores = {}
    with _quiet():
        for m in tqdm(range(len(members)), desc="TF-Privacy attacks", unit="target", disable=not progress):
            masks = _slice_masks(logits[m], labels, judged, slices)
            for number, (slice_name, mask) in enumerate(masks.items()):
                for attack in attacks:
                    place = scores.setdefault((attack, slice_name), np.full(members.shape, np.nan))
                    with _seeded([seed, m, number]):
                        place[m, mask] = _run_one(attack, logits[m, mask], labels[mask], members[m, mask])
    return scores


def signal(logits, labels):
    """How sure a model is of the true class: its logit minus the log-sum-exp of the other classes' logits.

    Parameters
    ----------
    logits : numpy.ndarray
        (M, n, k).
    labels : numpy.ndarray
        (n,) int.

    Returns
    -------
    numpy.ndarray
        (M, n) float64, in nats; the log-odds of the true class.

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
# A patient's own variance needs so many shadow models a side (Carlini et al. use 32 and more); below, it is pooled.
SHADOWS_FOR_OWN_VARIANCE = 24


def lira(logits, labels, members, variant="online", variance="auto", shadows=None):
    """Likelihood-ratio attack: score how much the target looks like models that know the patient.

    Threat model (auditor): the attacker trained shadow models on random halves of the same cohort, which is the worst
    case
    and what a data custodian should assume. Every model is the target in turn; all others are its shadow models but its
    complement twin, whose members are exactly the target's non-members. With `shadows` the attacker is an outsider.

    Parameters
    ----------
    logits : numpy.ndarray
        (M, n, k).
    labels : numpy.ndarray
        (n,) int.
    members : numpy.ndarray
        (M, n) bool; rows 2j and 2j + 1 are twins.
    variant : {"online", "offline"}
        Online: log N(phi; mu_in, sd_in) - log N(phi; mu_out, sd_out). Offline: (phi - mu_out) / sd_out, a monotone form
        of the paper's Phi of it that does not run into ties at 1.
    variance : {"auto", "patient", "pooled"}
        Standard deviations patient by patient, or one for all patients; ``"auto"``: patient by patient from 24 shadow
        models a side on.
    shadows : (numpy.ndarray, numpy.ndarray), optional
        Logits (S, n, k) and members (S, n) of other models; all of them are shadow models of every target.

    Returns
    -------
    numpy.ndarray
        (M, n) float64, higher = more likely a member; NaN for a patient who is in no shadow model (online) or in all.

    Raises
    ------
    ValueError
        When shapes disagree, an option is unknown, or some patient has fewer than 4 shadow models on a side that the
        variant needs; says how many models are needed.

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
    logits, labels, members = _checked(logits, labels, members)
    _refuse_unknown("variant", [variant], ("online", "offline"))
    _refuse_unknown("variance", [variance], ("auto", "patient", "pooled"))
    phi = signal(logits, labels)
    if shadows is None:
        known, known_members, leave_out = phi, members, True
    else:
        shadow_logits, _, known_members = _checked(shadows[0], labels, shadows[1])
        known, leave_out = signal(shadow_logits, labels), False
    sides = {"out": _side(known, ~known_members, len(phi), leave_out)}
    if variant == "online":
        sides["in"] = _side(known, known_members, len(phi), leave_out)
    fewest = min(_fewest(count) for count, _, _ in sides.values())
    if fewest < FEWEST_SHADOWS:
        raise ValueError(
            f"{variant} LiRA needs at least {FEWEST_SHADOWS} shadow models on a side for every patient, there are "
            f"{fewest}; train at least {2 * FEWEST_SHADOWS + 2} models in twins"
        )
    own = variance == "patient" or (variance == "auto" and fewest >= SHADOWS_FOR_OWN_VARIANCE)
    density = {side: _gaussian(phi, *moments, own) for side, moments in sides.items()}
    if variant == "offline":
        return density["out"][0]
    return density["in"][1] - density["out"][1]


def _side(phi, chosen, n_targets, leave_out):
    """Number, sum and sum of squares of the chosen shadow models' signals, for every target and patient.

    `leave_out` takes the target and its twin out of the sums over all models.
    """
    # Around the patient's mean, so that squares do not drown small variances.
    center = np.mean(phi, axis=0)
    parts = [chosen * (phi - center) ** power for power in range(3)]
    totals = [np.broadcast_to(part.sum(axis=0), (n_targets, part.shape[1])) for part in parts]
    if leave_out:
        totals = [total - part - _of_twin(part) for total, part in zip(totals, parts, strict=True)]
    count, total, squares = totals
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / count
        return count, mean + center, np.maximum(squares - count * mean**2, 0)


def _of_twin(values):
    """Row of the complement twin in place of each row; a last model without a twin has none (zeros)."""
    twins = np.arange(len(values)) ^ 1
    there = twins < len(values)
    swapped = np.zeros_like(values)
    swapped[there] = values[twins[there]]
    return swapped


def _fewest(count):
    """Fewest shadow models of a patient that has any on this side: one that has none gets no score instead."""
    return int(count[count > 0].min()) if (count > 0).any() else 0


def _gaussian(phi, count, mean, squares, own):
    """Standardized distance and log-density (without the constant) of the targets' signals under one side."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if own:
            spread = np.sqrt(squares / count)
        else:
            spread = np.sqrt(np.nansum(squares, axis=1, keepdims=True) / count.sum(axis=1, keepdims=True))
        spread = np.maximum(spread, np.finfo(float).tiny ** 0.25)
        distance = (phi - mean) / spread
        return distance, np.where(count > 0, -np.log(spread) - distance**2 / 2, np.nan)


def rmia(logits, labels, members, variant="online", gamma=1.0, shadows=None):
    """Robust membership inference: score how far the target is surer of this patient than of others.

    Sureness is taken against reference models, and then compared with that of all other patients.

    Threat models as in `lira`.

    Parameters
    ----------
    logits, labels, members, shadows
        As in `lira`.
    variant : {"online", "offline"}
        Online: p(x) is the mean of the reference models that know the patient and of those that do not, equally
        weighted.
        Offline: from those that do not alone, p(x) = ((1 + a) p_out(x) + 1 - a) / 2, with a chosen for each target on
        one
        of its shadow models, never on the target.
    gamma : float
        How many times larger the patient's ratio must be than another's to count. The default of 1 keeps the order of
        all patients; with more, patients of whom every model is sure tie at 0.

    Returns
    -------
    numpy.ndarray
        (M, n) float64: share of other patients z with ratio(x) / ratio(z) >= gamma; NaN as in `lira`.

    Raises
    ------
    ValueError
        As `lira`.

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
    logits, labels, members = _checked(logits, labels, members)
    _refuse_unknown("variant", [variant], ("online", "offline"))
    log_p = _log_likelihood(logits, labels)
    p = np.exp(log_p)
    if shadows is None:
        known, known_members, leave_out = p, members, True
    else:
        shadow_logits, _, known_members = _checked(shadows[0], labels, shadows[1])
        known, leave_out = np.exp(_log_likelihood(shadow_logits, labels)), False
    counts, outside = _side(known, ~known_members, len(p), leave_out)[:2]
    fewest = _fewest(counts)
    if variant == "online":
        counts_in, inside = _side(known, known_members, len(p), leave_out)[:2]
        fewest = min(fewest, _fewest(counts_in))
    if fewest < FEWEST_SHADOWS:
        raise ValueError(
            f"{variant} RMIA needs at least {FEWEST_SHADOWS} shadow models on a side for every patient, there are "
            f"{fewest}; train at least {2 * FEWEST_SHADOWS + 2} models in twins"
        )
    if variant == "online":
        return _share_below(log_p - _log((inside + outside) / 2), gamma)
    constants = _offline_constants(known, known_members, len(p), leave_out, gamma)[:, None]
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
    grid = np.linspace(0, 1, 11)
    best = []
    for target in range(n_targets):
        excluded = {target, target ^ 1} if leave_out else set()
        usable = [s for s in range(len(p)) if s not in excluded]
        player = usable[0]
        rest = [s for s in usable if s not in (player, player ^ 1)]
        outside_members = ~members[rest]
        with np.errstate(invalid="ignore"):
            outside = (p[rest] * outside_members).sum(axis=0) / outside_members.sum(axis=0)
        mixed = ((1 + grid[:, None]) * outside + 1 - grid[:, None]) / 2
        shares = _share_below(_log(p[player]) - _log(mixed), gamma)
        best.append(grid[int(np.argmax([_auc(share, members[player]) for share in shares]))])
    return np.array(best)


def _auc(scores, members):
    judged = ~np.isnan(scores)
    if members[judged].all() or not members[judged].any():
        return 0.5
    return metrics.auc(scores[judged], members[judged])


SIGNALS = ("loss", "confidence", "entropy", "modified entropy")


def threshold(logits, labels, members, signal_name="loss", per_class=False):
    """Judge everybody by one number of the model's output, or each class by a threshold of its own.

    Threat model: the attacker sees the logits; for thresholds per class it also has shadow models, on which it finds,
    for
    each class, how rare such a number is among non-members.

    Parameters
    ----------
    logits, labels, members
        As in `lira`.
    signal_name : {"loss", "confidence", "entropy", "modified entropy"}
        Log-odds of the true class; highest probability; minus the entropy; minus the modified entropy, which also knows
        the true class.
    per_class : bool

    Returns
    -------
    numpy.ndarray
        (M, n) float64. Per class: share of the non-members of that class, over the shadow models, whose number is
        smaller, ties half.

    Raises
    ------
    ValueError
        When the signal is unknown or shapes disagree.

    References
    ----------
    Loss: Yeom et al., CSF 2018. Confidence and entropy: Salem et al., NDSS 2019. Modified entropy and thresholds per
    class: Song and Mittal, USENIX Security 2021, equations 8 and 9.

    Examples
    --------
    >>> logits = np.array([[[0.0, 2.0], [1.0, 0.0]]])
    >>> threshold(logits, np.array([1, 1]), np.array([[True, False]])).round(1)
    array([[ 2., -1.]])
    """
    logits, labels, members = _checked(logits, labels, members)
    _refuse_unknown("signal", [signal_name], SIGNALS)
    values = _signal_values(logits, labels, signal_name)
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


def _signal_values(logits, labels, name):
    if name == "loss":
        return signal(logits, labels)
    logs = log_softmax(np.asarray(logits, np.float64), axis=2)
    p = np.exp(logs)
    if name == "confidence":
        return logs.max(axis=2)
    if name == "entropy":
        return (p * logs).sum(axis=2)
    true = np.arange(logits.shape[2]) == np.asarray(labels)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_rest = np.log1p(-np.minimum(p, 1 - 1e-15))
    return np.where(true, (1 - p) * logs, p * log_rest).sum(axis=2)


def label_only(logits, labels, members, calibrated=True):
    """Judge by the predicted class alone: a model is more often right about patients that it has learned.

    Threat model: the attacker sees only the class that the model names; if calibrated, it also has shadow models of
    which
    it sees the same.

    Parameters
    ----------
    logits, labels, members
        As in `lira`; of the logits only the largest of each row is looked at.
    calibrated : bool
        Take off how often shadow models that do not know the patient are right about it.

    Returns
    -------
    numpy.ndarray
        (M, n) float64.

    References
    ----------
    Gap attack: Yeom et al., CSF 2018; Choquette-Choo et al., "Label-only membership inference attacks", ICML 2021.

    Examples
    --------
    >>> label_only(np.array([[[0.0, 2.0], [1.0, 0.0]]]), np.array([1, 1]), np.array([[True, False]]), calibrated=False)
    array([[1., 0.]])
    """
    logits, labels, members = _checked(logits, labels, members)
    right = (logits.argmax(axis=2) == labels).astype(float)
    if not calibrated:
        return right
    return right - _side(right, ~members, len(right), True)[1]


THREAT_MODELS = ("auditor", "outsider", "label-only", "second sample")


def under(threat_model, logits, labels, members, shadows=None):
    """Attack as somebody who knows and sees just what a threat model says.

    Parameters
    ----------
    threat_model : {"auditor", "outsider", "label-only", "second sample"}
        ``"auditor"``: shadow models on random halves of the same cohort; online LiRA. ``"outsider"``: shadow models on
        patients disjoint from the target's, given by `shadows`; offline LiRA. ``"label-only"``: an auditor who sees
        the predicted class alone. ``"second sample"``: an auditor who holds another measurement of each patient than
        the one that trained, and asks all models about it; `logits` are their answers for those measurements.
    logits, labels, members
        As in `lira`.
    shadows : (numpy.ndarray, numpy.ndarray), optional
        As in `lira`; for the outsider alone.

    Returns
    -------
    numpy.ndarray
        (M, n) float64, higher = more likely a member.

    Raises
    ------
    ValueError
        When the threat model is unknown, an outsider has no shadow models, or another one is given them.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> members = np.repeat(rng.random((8, 30)) < 0.5, 2, axis=0) ^ (np.arange(16) % 2 == 1)[:, None]
    >>> under("auditor", rng.normal(size=(16, 30, 2)), np.zeros(30, int), members).shape
    (16, 30)
    """
    _refuse_unknown("threat model", [threat_model], THREAT_MODELS)
    if (threat_model == "outsider") != (shadows is not None):
        raise ValueError(
            f"threat_model='{threat_model}': an outsider needs shadow models of its own (shadows=...), and nobody else "
            "takes them"
        )
    if threat_model == "label-only":
        return label_only(logits, labels, members)
    if threat_model == "outsider":
        return lira(logits, labels, members, "offline", shadows=shadows)
    return lira(logits, labels, members, variance="pooled" if threat_model == "second sample" else "auto")


def _checked(logits, labels, members):
    logits, labels, members = np.asarray(logits), np.asarray(labels), np.asarray(members)
    if logits.ndim != 3 or logits.shape[:2] != members.shape or labels.shape != members.shape[1:]:
        raise ValueError(
            f"shapes disagree: logits {logits.shape}, labels {labels.shape}, members {members.shape}; they must be "
            "(M, n, k), (n,) and (M, n)"
        )
    return logits, labels, members


def _refuse_unknown(kind, given, known):
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"{kind} {unknown} is not known; choose among {', '.join(known)}")


def _slice_masks(logits, labels, judged, slices):
    correct = logits.argmax(axis=1) == labels
    masks = {
        "all": {"all": judged},
        "correct": {"correct": judged & correct},
        "wrong": {"wrong": judged & ~correct},
    }
    masks["class"] = {f"class {k}": judged & (labels == k) for k in np.unique(labels)}
    return {name: mask for slice_name in slices for name, mask in masks[slice_name].items()}


def _run_one(attack, logits, labels, members):
    fewest = FEWEST_TO_TRAIN if TF_PRIVACY_ATTACKS[attack].is_trained_attack else 1
    if min(members.sum(), (~members).sum()) < fewest:
        return np.full(len(labels), np.nan)
    data = AttackInputData(
        logits_train=logits[members],
        logits_test=logits[~members],
        labels_train=labels[members],
        labels_test=labels[~members],
    )
    answer = mia.run_attacks(data, SlicingSpec(entire_dataset=True), [TF_PRIVACY_ATTACKS[attack]])
    scores = np.full(len(labels), np.nan)
    if answer.single_attack_results:
        scores[members] = answer.single_attack_results[0].membership_scores_train
        scores[~members] = answer.single_attack_results[0].membership_scores_test
    return scores


@contextlib.contextmanager
def _quiet():
    # TF-Privacy's own precision and epsilon bound divide by zero on every call: those two are known and left out.
    # Its attackers repeat other warnings for every cell of their grids: each is said once, with its count.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    known = [w for w in caught if w.category is RuntimeWarning and "tensorflow_privacy" in w.filename]
    rest = collections.Counter((w.category, str(w.message).splitlines()[0]) for w in caught if w not in known)
    for (category, message), count in rest.items():
        warnings.warn(f"TF-Privacy's attackers, {count} times: {message}", category, stacklevel=4)


@contextlib.contextmanager
def _seeded(seed):
    # TF-Privacy and its scikit-learn attackers draw from NumPy's global generator; it is put back as it was.
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(np.random.SeedSequence([*seed, 7]).generate_state(4))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
