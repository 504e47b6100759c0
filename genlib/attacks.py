"""Membership attacks: ``(logits, labels, members) -> scores``, where a higher score means more likely a member.

A score of NaN says "not judged": the patient is in no model's evaluation, or outside the slice of an attack. An attack
never sees a model, and here it never chooses whom it judges by the target's membership.
"""

import collections
import contextlib
import warnings

import numpy as np
from scipy.special import logsumexp
from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack import (
    membership_inference_attack as mia,
)
from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack.data_structures import (
    AttackInputData,
    AttackType,
    SlicingSpec,
)
from tqdm.auto import tqdm

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
    TensorFlow Privacy, ``membership_inference_attack``; the loss threshold is that of Yeom et al., CSF 2018.

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
