"""Defenses by another loss, by distillation, and at the output: what a hospital shows of a model's answers.

What Keras has itself (L2, dropout, label smoothing, fewer units or epochs) is a line of Keras and not here.

Distillation shares a model that learned from what other models say, so that it meets its patients at second hand. All
else here is a function from logits (M, n, k) to what is shown, log-probabilities (M, n, k) float64, which changes
nothing inside the model: whoever gets the model itself is not stopped by it. A defense that only hides the signal still
leaves the predicted class, so it is judged by what an attacker can do with that too.
"""

import numpy as np
import tensorflow as tf
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from genlib import bank

K = tf.keras

# Probability in place of a rounded 0, so that logarithms stay finite: far below what any rounding can tell apart.
NOTHING = 1e-12


@K.utils.register_keras_serializable("genlib")
class ConfidencePenalty(K.losses.Loss):
    """Cross-entropy on logits less `strength` times the entropy of the answer, with label smoothing where asked for.

    References
    ----------
    Pereyra et al.: "Regularizing neural networks by penalizing confident output distributions", ICLR workshop 2017.

    Examples
    --------
    >>> round(float(ConfidencePenalty(0.5)(tf.constant([[1.0, 0.0]]), tf.constant([[0.0, 0.0]]))), 4)
    0.3466
    """

    side_by_side = True  # for the bank: the sum of several models' losses has the gradients of each

    def __init__(self, strength, label_smoothing=0.0, **options):
        super().__init__(**options)
        self.strength, self.label_smoothing = strength, label_smoothing

    def call(self, targets, logits):
        """Loss of each patient; targets are one-hot."""
        targets = (1 - self.label_smoothing) * targets + self.label_smoothing / logits.shape[-1]
        log = tf.nn.log_softmax(logits)
        return tf.reduce_sum((self.strength * tf.exp(log) - targets) * log, axis=-1)

    def get_config(self):
        """As Keras wants it."""
        return super().get_config() | {"strength": self.strength, "label_smoothing": self.label_smoothing}


@K.utils.register_keras_serializable("genlib")
class RelaxLoss(K.losses.Loss):
    """Hold to a batch's mean loss instead of going below it.

    Above `target` it is the cross-entropy on logits. Below, by turns of epochs, it is that with the other sign, or the
    cross-entropy with labels that spread what the model is unsure of evenly over the other classes. The bank counts
    epochs; in Keras' own `fit` add ``callbacks=[loss.counter()]``.

    References
    ----------
    Chen, Yu, Fritz: "RelaxLoss: defending membership inference attacks without losing utility", ICLR 2022, algorithm 1.

    Examples
    --------
    >>> float(RelaxLoss(1.0)(tf.constant([[1.0, 0.0]]), tf.constant([[9.0, 0.0]]))) < 0
    True
    """

    side_by_side = True

    def __init__(self, target, **options):
        super().__init__(**options)
        self.target, self.epoch = target, tf.Variable(0, trainable=False)

    def __call__(self, targets, logits, sample_weight=None):
        """Loss of a batch (b, k), or of one batch a model (M, b, k) that weights 1 / size make means."""
        if sample_weight is None:
            sample_weight = tf.ones(tf.shape(logits)[:-1], logits.dtype) / tf.cast(tf.shape(logits)[-2], logits.dtype)
        targets, sample_weight = tf.cast(targets, logits.dtype), tf.cast(sample_weight, logits.dtype)

        def mean_of(labels):
            return tf.reduce_sum(sample_weight * tf.nn.softmax_cross_entropy_with_logits(labels, logits), axis=-1)

        sure = tf.stop_gradient(tf.reduce_sum(targets * tf.nn.softmax(logits), axis=-1, keepdims=True))
        spread = targets * sure + (1 - targets) * (1 - sure) / (logits.shape[-1] - 1)
        right = tf.argmax(logits, axis=-1) == tf.argmax(targets, axis=-1)
        mean, flat = mean_of(targets), mean_of(tf.where(right[..., None], spread, targets))
        below = tf.where(self.epoch % 2 == 0, -mean, flat)
        return tf.reduce_sum(tf.where(mean > self.target, mean, below))

    def counter(self):
        """Callback of Keras' `fit` that counts epochs."""
        return K.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: self.epoch.assign(epoch))

    def get_config(self):
        """As Keras wants it."""
        return super().get_config() | {"target": self.target}


def class_only(logits):
    """Show the predicted class alone: the same small probability for all others.

    Examples
    --------
    >>> np.exp(class_only(np.array([[[2.0, 1.0, 0.0]]]))).round(3)
    array([[[1., 0., 0.]]])
    """
    return top(logits, 1, confidence=False)


def top(logits, n_shown, confidence=True):
    """Show the most likely classes, 1 to k (else ValueError), with their probabilities or all as equally likely.

    The rest is spread evenly over the classes that are not shown.

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
    """Show probabilities rounded to a few decimals: Shokri et al., IEEE S&P 2017, section VIII.

    Examples
    --------
    >>> np.exp(rounded(np.log([[[0.84, 0.14, 0.02]]]), 1)).round(3)
    array([[[0.889, 0.111, 0.   ]]])
    """
    return _logs(np.round(softmax(np.asarray(logits, np.float64), axis=2), decimals))


def tempered(logits, temperature):
    """Show softer probabilities: logits over a temperature (above 0, else ValueError); Shokri et al., as `rounded`.

    Examples
    --------
    >>> np.exp(tempered(np.array([[[2.0, 0.0]]]), temperature=2.0)).round(3)
    array([[[0.731, 0.269]]])
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    return log_softmax(np.asarray(logits, np.float64) / temperature, axis=2)


def noisy(logits, scale, seed):
    """Add Gaussian noise of a standard deviation, in nats, to logits where it does not change the predicted class.

    One draw for each model and patient: who asks again gets the same answer.

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


def ranked(logits):
    """Show the order of the classes alone, as HAMP does: Chen, Pattabiraman, NDSS 2024, section IV-D.

    HAMP shows, in this order, the probabilities that the model gives to some random input. All that they tell of the
    patient is the order; here they are the same for everybody, halved from class to class.

    Examples
    --------
    >>> np.exp(ranked(np.array([[[0.3, 9.0, 0.2]]]))).round(3)
    array([[[0.286, 0.571, 0.143]]])
    """
    rank = np.argsort(np.argsort(-np.asarray(logits), axis=2, kind="stable"), axis=2, kind="stable")
    return _logs(0.5**rank)


def smoothing_for(entropy_share, n_classes):
    """Label smoothing whose targets have a stated entropy, as HAMP chooses its soft labels.

    `entropy_share` is that of a target as a share of the largest there is, log k: from 0 to below 1, else ValueError.
    What comes back is the share a with targets (1 - a) one-hot + a / k.

    References
    ----------
    Chen, Pattabiraman: "Overconfidence is a dangerous thing: mitigating membership inference attacks by enforcing less
    confident prediction", NDSS 2024, section IV-B. There the rest of the loss is a confidence penalty, here that of a
    training, and what is shown afterwards is the order of the classes: `ranked`.

    Examples
    --------
    >>> round(smoothing_for(0.5, n_classes=2), 3)
    0.22
    """
    if not 0 <= entropy_share < 1:
        raise ValueError(f"entropy_share={entropy_share}: must be at least 0 and below 1")

    def missing(smoothing):
        target = np.full(n_classes, smoothing / n_classes)
        target[0] += 1 - smoothing
        return entropy(target) - entropy_share * np.log(n_classes)

    return float(brentq(missing, 0, 1)) if entropy_share else 0.0


def distill(model, x, labels, members, pupils, *, seed, temperature=1.0, **options):
    """Share a student that learned from the model's answers for other patients, and never from a member.

    Parameters
    ----------
    model, x, labels, members, seed, **options
        As in `genlib.bank.train`; the members train the teachers.
    pupils : numpy.ndarray
        (M, n) bool, whom each student learns from; their labels are not used. Whoever has the student may find them.
        Nobody, or a member, is a ValueError.
    temperature : float
        Above 1, the teachers' answers are softened.

    Returns
    -------
    genlib.bank.Trained
        Of the students.

    References
    ----------
    Shejwalkar, Houmansadr: "Membership privacy for machine learning models through knowledge transfer", AAAI 2021,
    equation 3 (there on unlabeled reference data chosen by their entropy; here on all that are given).

    Examples
    --------
    >>> from genlib import membership, networks
    >>> labels, x = np.arange(60) % 2, np.random.default_rng(0).normal(size=(60, 80)).astype(np.float32)
    >>> reserved = membership.reserve(labels, 0.3, seed=0)
    >>> members = membership.paired_halves(labels, n_models=2, seed=0, reserved=reserved)
    >>> pupils = membership.paired_halves(labels, n_models=2, seed=0, reserved=~reserved)
    >>> how = {"seed": 0, "epochs": 2, "batch_size": 8, "progress": False}
    >>> distill(networks.softmax(80, 2), x, labels, members, pupils, **how).logits.shape
    (2, 60, 2)
    """
    if not pupils.any(axis=1).all() or (members & pupils).any():
        raise ValueError("students learn from patients who train no teacher of theirs; see membership.reserve")
    teachers = bank.train(model, x, labels, members, seed=seed, **options).logits
    targets = softmax(teachers.astype(np.float64) / temperature, axis=2).astype(np.float32)
    return bank.train(model, x, labels, pupils, seed=seed + 1, targets=targets, **options)


def self_distill(model, x, labels, members, *, seed, n_parts=10, n_absent=4, **options):
    """Share a student that learned, for each member, from models that had not seen this member (SELENA).

    Parameters
    ----------
    model, x, labels, members, seed, **options
        As in `genlib.bank.train`.
    n_parts, n_absent : int
        Models that teach one student, and how many of them each member is left out of: 1 to below `n_parts`, else
        ValueError.

    Returns
    -------
    genlib.bank.Trained
        Of the students.

    References
    ----------
    Tang et al.: "Mitigating membership inference attacks by self-distillation through a novel ensemble network",
    USENIX Security 2022, algorithms 1 and 2 (there K = 25 and L = 10).

    Examples
    --------
    >>> from genlib import membership, networks
    >>> labels, x = np.arange(40) % 2, np.random.default_rng(0).normal(size=(40, 60)).astype(np.float32)
    >>> members = membership.paired_halves(labels, n_models=2, seed=0)
    >>> how = {"seed": 0, "epochs": 2, "batch_size": 8, "progress": False}
    >>> self_distill(networks.softmax(60, 2), x, labels, members, n_parts=4, n_absent=2, **how).logits.shape
    (2, 40, 2)
    """
    if not 1 <= n_absent < n_parts:
        raise ValueError(f"n_absent={n_absent}: each member is left out of 1 to {n_parts - 1} of {n_parts} models")
    absent = absences(members, n_parts, n_absent, seed)
    for m, part in np.argwhere(~(members[:, None, :] & ~absent).any(axis=2)):
        # In a very small cohort a teacher may be left without anybody; it takes the first member that others were left
        # without besides, whose targets then come from those alone.
        spare = np.flatnonzero(members[m] & (absent[m].sum(axis=0) > 1))
        if not len(spare):
            raise ValueError(f"{int(members[m].sum())} members cannot be spread over {n_parts} teachers; take fewer")
        absent[m, part, spare[0]] = False
    parts = (members[:, None, :] & ~absent).reshape(-1, members.shape[1])
    taught = bank.train(model, x, labels, parts, seed=seed + 2, **options).logits
    answers = softmax(taught.astype(np.float64), axis=2).reshape(*absent.shape, -1)
    targets = (answers * absent[..., None]).sum(axis=1) / absent.sum(axis=1)[..., None]
    return bank.train(model, x, labels, members, seed=seed + 1, targets=targets.astype(np.float32), **options)


def absences(members, n_parts, n_absent, seed):
    """Draw which of a student's teachers each patient is left out of: (M, n_parts, n) bool, `n_absent` True a column.

    Examples
    --------
    >>> absences(np.ones((1, 3), bool), n_parts=5, n_absent=2, seed=0).sum(axis=1)
    array([[2, 2, 2]])
    """
    drawn = np.random.default_rng([seed, 22]).random((len(members), n_parts, members.shape[1]))
    return drawn.argsort(axis=1, kind="stable") < n_absent


def _logs(probability):
    probability = np.maximum(probability, NOTHING)
    return np.log(probability / probability.sum(axis=2, keepdims=True))
