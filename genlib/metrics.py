"""How well a classifier does and how many training patients an attack finds, each number with an interval.

What is measured depends on which patients were there and on which models were trained, not answer by answer. Variances
of attacks come from a bootstrap over patients and over twin pairs of models, those of utility from sums over patients;
the interval of a rate is the exact one of as many patients as that variance speaks of.

Scores and members are (M, n), higher = more likely a member, NaN = not judged. Tables have columns group, metric,
estimate, low, high, n_patients, n_models. Shapes that disagree, and nobody to judge, are a ValueError.
"""

import concurrent.futures
import functools
import os

import numpy as np
import pandas as pd
from scipy.special import betaincinv, ndtr, ndtri, softmax, stdtrit

CONFIDENCE = 0.95
FPR_LEVELS = (0.1, 0.01, 0.001)
PRIORS = (0.5, 0.1, 0.01)
SLACK = 1 + 1e-9  # a rate is a ratio of counts, so 1 % of 300 must count 3 as within; far below one count
FEWEST_FALSE_POSITIVES = 5
CALIBRATION_BINS = 10
CHUNK = 500_000  # weighted answers that a thread holds at once, so that they stay near the processor


def roc(scores, members):
    """Receiver operating characteristic of an attack, ties taken together: fpr, tpr, thresholds.

    From (0, 0) at an infinite threshold to (1, 1), one more than there are different scores. Scores have any shape.

    Examples
    --------
    >>> fpr, tpr, thresholds = roc(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))
    >>> fpr, tpr
    (array([0., 0., 1., 1.]), array([0. , 0.5, 0.5, 1. ]))
    """
    scores, members, *_ = _judged(np.atleast_2d(scores), np.atleast_2d(members))
    last = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True])  # of every tie
    true, false = (np.r_[0, np.cumsum(kind)[last]] for kind in (members, ~members))
    return false / false[-1], true / true[-1], np.r_[np.inf, scores[last]]


def auc(scores, members):
    """Area under the ROC: the chance that a random member scores above a random non-member, ties counted half.

    Examples
    --------
    >>> auc(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))
    0.5
    """
    fpr, tpr, _ = roc(scores, members)
    return float(np.trapz(tpr, fpr))


def tpr_at_fpr(scores, members, fpr):
    """Largest true positive rate whose false positive rate is at most `fpr`; no interpolation.

    Examples
    --------
    >>> tpr_at_fpr(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]), fpr=0.1)
    0.5
    """
    rates, tpr, _ = roc(scores, members)
    return float(tpr[(rates <= fpr * SLACK).sum() - 1])


def _judged(scores, members):
    """Answers that are not NaN, from the highest score down: scores, members, models, patients."""
    scores, members = np.asarray(scores, float), np.asarray(members, bool)
    if scores.shape != members.shape or scores.ndim != 2:
        raise ValueError(f"shapes disagree: scores {scores.shape}, members {members.shape}; both must be (M, n)")
    places = np.flatnonzero(~np.isnan(scores))
    places = places[np.argsort(-scores.ravel()[places], kind="stable")]
    members = members.ravel()[places]
    if not (members.any() and not members.all()):
        raise ValueError(
            f"an attack is measured on members and non-members; there are {int(members.sum())} and "
            f"{int((~members).sum())} with a score"
        )
    return scores.ravel()[places], members, *np.divmod(places, scores.shape[1])


class _Answers:
    """What no bootstrap draw changes: how members (true) and non-members (false) stand to one another.

    Both run from the highest score down. A cell is a patient in a twin pair, whose answers weigh the same in a draw.
    """

    def __init__(self, scores, members):
        found, who, models, patients = _judged(scores, members)
        cells = models // 2 * np.shape(members)[1] + patients
        self.true_cells, self.false_cells = cells[who], cells[~who]
        self.true, self.false = found[who], found[~who]
        self.true_patients, self.false_patients = patients[who], patients[~who]
        self.n_patients = _count(patients)
        # A threshold just above each non-member, and one below everybody: how many stand above it.
        tie_ends = np.searchsorted(-self.true, -self.false, side="right")
        self.true_above = np.r_[np.searchsorted(-self.true, -self.false), len(self.true)]
        self.false_above = np.r_[np.searchsorted(-self.false, -self.false), len(self.false)]
        self.thresholds = np.r_[np.inf, found][self.true_above + self.false_above]
        # The ROC turns at a non-member that stands to the members in another way than the one before.
        moved = (np.diff(self.true_above[:-1]) != 0) | (np.diff(tie_ends) != 0)
        self.turns = np.flatnonzero(np.r_[True, moved])
        self.ties = np.flatnonzero((tie_ends > self.true_above[:-1])[self.turns])
        self.tie_ends = tie_ends[self.turns[self.ties]]

    def allowed(self, limit):
        return int(limit * SLACK * len(self.false))


@functools.lru_cache(maxsize=2)  # attacks on one bank are measured on the same draws
def _draws(seed, n_draws, n_models, n_patients):
    """Weights of patients in twin pairs, (1 + B + B // 4, pairs, n), whole numbers.

    The data come first, everybody once. Then B draws of patients and of pairs, multiplied: they count what an answer
    owes to chance alone three times. Last, to know how much that is, every patient draws pairs of its own.
    """
    rng, n_pairs = np.random.default_rng([seed, 8]), -(-n_models // 2)
    patients = rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), n_draws).astype(np.int16)
    pairs = rng.multinomial(n_pairs, np.full(n_pairs, 1 / n_pairs), n_draws).astype(np.int16)
    own = pairs[rng.integers(n_draws, size=(-(-n_draws // 4), n_patients))].transpose(0, 2, 1)
    drawn = np.vstack([np.ones((1, n_pairs, n_patients), np.int16), pairs[:, :, None] * patients[:, None, :], own])
    drawn.setflags(write=False)  # what is kept for the next call stays as it was drawn
    return drawn


def attack_table(scores, members, groups=None, group_names=None, n_bootstrap=500, seed=0, level=CONFIDENCE):
    """Measure one attack: AUC, advantage, TPR and PPV at low false positive rates, with intervals, also by group.

    Rates pool all target models. A group is judged twice: at the threshold that gives the stated false positive rate
    over everybody (one attacker, one threshold; rows ``at the global threshold``, the group's own false positive rate
    beside the true positive rate), and at its own.

    Patients and twin pairs are drawn together, which gives the right variance but for what single answers owe to
    chance: that is counted three times, so it is measured and taken back twice. A rate, and the AUC, gets the exact
    interval of as many patients as this variance speaks of: 0 found of 34 patients goes up to 10 %. The advantage, a
    maximum over thresholds, is too large by chance; its interval is moved by as much as its draws are.

    Parameters
    ----------
    scores, members : numpy.ndarray
    groups, group_names : optional
        (n,) int, as the class of each patient; name of group 0, 1, ...
    n_bootstrap : int
        Draws of patients and pairs behind each variance, at least 2; a quarter as many again take its inflation back.
    seed : int
    level : float
        Coverage of the intervals; 1 - 0.05 / m corrects for m statements (Bonferroni).

    Returns
    -------
    pandas.DataFrame
        With columns false_positives and false_positive_patients besides. Where the false positives are fewer than five,
        or of fewer than five patients, the rate is NaN.

    References
    ----------
    TPR at low FPR: Carlini et al., "Membership inference attacks from first principles", IEEE S&P 2022, section IV.
    Advantage: Yeom et al., CSF 2018, definition 4. PPV at a prior: Jayaraman et al., PoPETs 2021, section 3.2.
    Draws of two kinds multiplied: Owen, Annals of Applied Statistics 1(2), 2007, theorem 4. Exact intervals with an
    effective number: Korn, Graubard, Survey Methodology 24(2), 1998.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> members = rng.random((4, 100)) < 0.5
    >>> table = attack_table(rng.normal(size=(4, 100)) + 2 * members, members)
    >>> row = table.set_index("metric").loc["AUC"]
    >>> bool(row.low < row.estimate < row.high)
    True
    """
    rows = _attack_rows(scores, members, groups, group_names, n_bootstrap, seed, level)
    return _table(rows, "draws", len(members))


def _attack_rows(scores, members, groups, group_names, n_bootstrap, seed, level):
    """Rows of `attack_table`, and in each the values of all draws."""
    kinds = {"all": _Answers(scores, members)}
    for k in () if groups is None else np.unique(groups):
        try:
            mine = _Answers(np.where(np.asarray(groups) == k, scores, np.nan), members)
        except ValueError:
            continue  # no member or no non-member of this group was judged: there is nothing to measure
        kinds[str(k) if group_names is None else group_names[k]] = mine
    values = _measure(list(kinds.values()), _draws(seed, n_bootstrap, *np.shape(members)))
    tables = [_rows(v, answers, kinds["all"], level) for v, answers in zip(values, kinds.values(), strict=True)]
    return [{"group": group, **row} for group, rows in zip(kinds, tables, strict=True) for row in rows]


def _measure(kinds, weights):
    """For each kind of answers, measures by name, one row a draw; also at the thresholds of the first kind."""
    step = max(1, CHUNK // weights[0].size)

    def part(start):
        table = weights[start : start + step].reshape(-1, weights[0].size)
        first = _measure_draws(kinds[0], table, None)
        return [first, *(_measure_draws(answers, table, first["thresholds"]) for answers in kinds[1:])]

    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        parts = list(pool.map(part, range(0, len(weights), step)))
    return [{name: np.concatenate([p[k][name] for p in parts]) for name in parts[0][k]} for k in range(len(kinds))]


def _measure_draws(answers, table, shared):
    """Take the measures of some draws from the weight of each cell, (draws, cells), in whole numbers to the end."""
    true, false = _cumulative(table, answers.true_cells), _cumulative(table, answers.false_cells)
    n_true, n_false = true[:, -1].astype(np.int64), false[:, -1].astype(np.int64)
    height = true.take(answers.true_above[answers.turns], axis=1, mode="clip")
    right = false.take(np.r_[answers.turns, len(answers.false)], axis=1, mode="clip")
    width = np.diff(right, axis=1)
    # The area above each step of the ROC, and half of what a tie adds to it.
    rise = true.take(answers.tie_ends, axis=1, mode="clip") - height[:, answers.ties]
    area = np.einsum("ij,ij->i", width, height, dtype=np.int64)
    area = area + np.einsum("ij,ij->i", width[:, answers.ties], rise, dtype=np.int64) / 2
    gap = (height * n_false[:, None] - right[:, :-1] * n_true[:, None]).max(axis=1).clip(0)
    allowed = np.floor(np.multiply.outer(n_false, FPR_LEVELS) * SLACK).astype(np.int32)
    place = np.stack([row.searchsorted(most, side="right") for row, most in zip(false, allowed, strict=True)]) - 1
    values = {"thresholds": answers.thresholds[place]}
    shared = values["thresholds"] if shared is None else shared
    with np.errstate(invalid="ignore"):
        values |= {"AUC": area / (n_true * n_false), "advantage": gap / (n_true * n_false)}
        values["TPR"] = np.take_along_axis(true, answers.true_above[place], axis=1) / n_true[:, None]
        for rate, counts, scores in (("TPR", true, answers.true), ("FPR", false, answers.false)):
            reach = np.searchsorted(-scores, -shared, side="right")
            values["global " + rate] = np.take_along_axis(counts, reach, axis=1) / counts[:, -1:]
    return values


def _cumulative(table, cells):
    """Weights of the first 0, 1, ... answers in every draw, (draws, answers + 1)."""
    counts = np.zeros((len(table), len(cells) + 1), np.int32)
    # Whole numbers add up fastest along a row, several times faster than fractions do. No cell lies outside the table:
    # "clip" only spares the check.
    np.cumsum(table.take(cells, axis=1, mode="clip"), axis=1, dtype=np.int32, out=counts[:, 1:])
    return counts


def _spread(values):
    """Bias and variance of a measure from its draws, the chance in single answers counted once."""
    n_draws = 4 * (len(values) - 1) // 5
    drawn, own = (part[np.isfinite(part)] for part in (values[1 : n_draws + 1], values[n_draws + 1 :]))
    inflated = drawn.var() if len(drawn) else 0.0
    if inflated == 0:
        return 0.0, 0.0
    variance = max(inflated / 3, inflated - 2 * (own.var() if len(own) else 0.0))
    return np.sqrt(variance / inflated) * (drawn.mean() - values[0]), variance


def clopper_pearson(successes, trials, tail):
    """Lower and upper bound of a rate, each exceeded with probability `tail` at most; numbers need not be whole.

    Examples
    --------
    >>> low, high = clopper_pearson(0, 34, tail=0.025)
    >>> float(high.round(3))
    0.103
    """
    k = np.asarray(successes, float)
    with np.errstate(invalid="ignore"):
        low = np.where(k > 0, betaincinv(k, trials - k + 1, tail), 0.0)
        high = np.where(k < trials, betaincinv(k + 1, trials - k, 1 - tail), 1.0)
    return low, high


def _interval(rate, variance, n_patients, fewest, level):
    """Exact interval of a rate, with as many patients as its variance speaks of.

    Were every patient always or never a success, that would be `n_patients`. It may be more, by averages over models,
    as far as the fewer of those with a success and those with a failure, `fewest`, let the variance be known.
    """
    tail, n = (1 - level) / 2, n_patients
    if variance > 0 and fewest > 0:
        told = rate * (1 - rate) / variance
        n = min(told, max(n, told * (ndtri(tail) / stdtrit(fewest, tail)) ** 2))
    low, high = clopper_pearson(rate * n, n, tail)
    return {"estimate": rate, "low": float(low), "high": float(high)}


def _attack_rate(draws, patients, n_named, n, level):
    """Row of a rate; `patients` of all its answers, from the highest score down, and how many answers are named."""
    fewest = min(_count(patients[:n_named]), _count(patients[n_named:]))
    return {**_interval(draws[0], _spread(draws)[1], n, fewest, level), "draws": draws}


def _rows(values, answers, everybody, level):
    """Rows for one group at its own thresholds, and at those of everybody."""
    n = answers.n_patients
    area, gaps = values["AUC"], values["advantage"]
    rows = [{"metric": "AUC", **_interval(area[0], _spread(area)[1], n, n - 1, level), "draws": area}]
    # The largest of many gaps lies above 0 by chance alone, and more so in every draw: as much as the draws lie above
    # the estimate, the estimate lies above the truth.
    bias, variance = _spread(gaps)
    low, high = gaps[0] - bias + ndtri([(1 - level) / 2, (1 + level) / 2]) * np.sqrt(variance)
    ends = {"low": max(0.0, low), "high": max(gaps[0], high)}
    rows.append({"metric": "advantage", "estimate": gaps[0], **ends, "draws": gaps})
    for limit, rates in zip(FPR_LEVELS, values["TPR"].T, strict=True):
        place = answers.allowed(limit)
        support = _false_positives(answers, answers.false_above[place])
        rate = _attack_rate(rates, answers.true_patients, answers.true_above[place], n, level)
        rows.append({"metric": f"TPR at FPR {limit:g}", **rate, **support})
        for prior in PRIORS if limit == 0.01 else ():
            worth = {name: _ppv(value, limit, prior) for name, value in rate.items()}
            rows.append({"metric": f"PPV at prior {prior:g}, FPR {limit:g}", **worth, **support})
    for i, limit in enumerate(FPR_LEVELS if answers is not everybody else ()):
        threshold = everybody.thresholds[everybody.allowed(limit)]
        support = _false_positives(everybody, np.count_nonzero(everybody.false >= threshold))
        sides = {"TPR": (answers.true, answers.true_patients), "FPR": (answers.false, answers.false_patients)}
        for rate, (scores, who) in sides.items():
            row = _attack_rate(values["global " + rate][:, i], who, np.count_nonzero(scores >= threshold), n, level)
            rows.append({"metric": f"{rate} at the global threshold, FPR {limit:g}", **row, **support})
    return [{"n_patients": n, **row} for row in rows]


def _table(rows, errors, n_models):
    """Rows without what says how they err together."""
    return pd.DataFrame([{k: v for k, v in row.items() if k != errors} for row in rows]).assign(n_models=n_models)


def _count(patients):
    """Number of distinct patients."""
    return int(np.count_nonzero(np.bincount(patients)))


def _ppv(tpr, fpr, prior):
    """Share of true members among those named, if `prior` of all candidates are members and `fpr` is used in full."""
    return tpr * prior / (tpr * prior + fpr * (1 - prior))


def _false_positives(answers, n_named):
    """What a rate rests on; where that is too little to mean anything, the rate is withdrawn."""
    n_patients = _count(answers.false_patients[:n_named])
    row = {"false_positives": n_named, "false_positive_patients": n_patients}
    few = n_patients < FEWEST_FALSE_POSITIVES
    return row | (dict.fromkeys(("estimate", "low", "high"), np.nan) if few else {})


def bonferroni_low(table, n_statements=None):
    """Lower ends of intervals that hold for many statements together, by default one a row of the table.

    A bootstrap has too few draws in its far tail, so the interval is widened as that of a normal estimate would be.

    Examples
    --------
    >>> bonferroni_low(pd.DataFrame({"estimate": [0.5], "low": [0.4]}), n_statements=10).round(3)
    array([0.357])
    """
    miss = 1 - CONFIDENCE
    wider = ndtri(1 - miss / 2 / (n_statements or len(table))) / ndtri(1 - miss / 2)
    estimate, low = table["estimate"].to_numpy(float), table["low"].to_numpy(float)
    return estimate - wider * (estimate - low)


def utility_table(logits, labels, judged, class_names=None):
    """Measure a classifier: accuracy, balanced accuracy, recall per class, Brier score, calibration error.

    Values pool all models. Brier score: squared distance of the class probabilities to the true class, 0 to 2.
    Calibration error: over 10 equal bins of the highest probability, the mean gap between it and the share correct. The
    95 % intervals are those of another cohort, though all models share this one: a patient counts as one that is judged
    and, as far as halves of the cohort tell, as one that others were trained on.

    Parameters
    ----------
    logits : numpy.ndarray
        (M, n, k).
    labels : numpy.ndarray
        (n,) int.
    judged : numpy.ndarray
        (M, n) bool: whose predictions count, as ``~members`` for held-out patients.
    class_names : sequence of str, optional

    References
    ----------
    Variance over halves as that over cohorts: McCarthy, Review of the International Statistical Institute 37(3), 1969.
    Expected calibration error: Guo et al., ICML 2017, equation 3. Brier: Monthly Weather Review 78(1), 1950.

    Examples
    --------
    >>> labels = np.array([0, 1] * 20)
    >>> logits = np.stack([np.stack([1.0 - labels, labels], axis=1)] * 2)
    >>> utility_table(logits, labels, np.ones((2, 40), bool)).set_index("metric").loc["accuracy", "estimate"]
    1.0
    """
    rows = _utility_rows(logits, labels, judged, class_names)
    return _table(rows, "parts", len(judged))


def _utility_rows(logits, labels, judged, class_names):
    """Rows of `utility_table`, and in each the part that every answer has in the error of the estimate, (M, n)."""
    logits, labels, judged = np.asarray(logits), np.asarray(labels), np.asarray(judged, bool)
    if logits.shape[:2] != judged.shape or labels.shape != judged.shape[1:] or not judged.any():
        raise ValueError(
            f"shapes disagree or nobody is judged: logits {logits.shape}, labels {labels.shape}, judged {judged.shape}"
        )
    # Classes first: the numbers of an answer are then taken together whole rows at a time.
    probability = softmax(np.ascontiguousarray(np.moveaxis(logits, 2, 0)), axis=0)
    confidence, correct = probability.max(axis=0), (probability.argmax(axis=0) == labels).astype(float)
    distance = (probability**2).sum(axis=0) + 1 - 2 * probability[labels, :, np.arange(len(labels))].T
    gaps, bias = _calibration(confidence, correct, judged)
    classes = {k: judged & (labels == k) for k in np.unique(labels[judged.any(axis=0)])}
    recalls = {k: _mean(correct, chosen) for k, chosen in classes.items()}
    balanced = [sum(part) / len(recalls) for part in zip(*recalls.values(), strict=True)]
    found = [("all", "accuracy", judged, *_mean(correct, judged)), ("all", "balanced accuracy", judged, *balanced)]
    found.append(("all", "Brier score", judged, *_mean(distance / 2, judged)))
    found.append(("all", "calibration error", judged, *_mean(gaps, judged)))
    for k, recall in recalls.items():
        found.append((str(k) if class_names is None else class_names[k], "recall", classes[k], *recall))
    rows = []
    for group, metric, chosen, estimate, parts in found:
        mine = np.flatnonzero(chosen.any(axis=0))
        n, own = len(mine), parts.take(mine, axis=1)
        variance = _nested(own, judged.take(mine, axis=1))
        fewest = min((own > 0).any(axis=0).sum(), (own < 0).any(axis=0).sum())
        row = _interval(estimate, variance, n, fewest, CONFIDENCE)
        if metric == "calibration error":
            row["low"] = _interval(max(0.0, estimate - bias), variance, n, fewest, CONFIDENCE)["low"]
        if metric == "Brier score":  # of 0 to 2: its half is taken for a rate
            row, parts = {name: 2 * value for name, value in row.items()}, 2 * parts
        rows.append({"group": group, "metric": metric, **row, "n_patients": n, "parts": parts})
    return rows


def _mean(values, chosen):
    """Mean over the chosen answers, and the part that each has in its error."""
    mean = values[chosen].mean(dtype=float)
    return mean, np.where(chosen, values - mean, 0.0) / chosen.sum()


def _calibration(confidence, correct, judged):
    """Numbers whose mean is the calibration error, and by how much chance alone makes it too large."""
    bins, n = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1), judged.shape[1]
    gaps = np.where(judged, confidence - correct, 0.0)
    places = (bins * n + np.arange(n)).ravel()
    patients = np.bincount(places, gaps.ravel(), CALIBRATION_BINS * n).reshape(-1, n) / judged.sum()
    gap, deviation = patients.sum(axis=1), np.sqrt((patients**2).sum(axis=1))
    # Mean of the size of a normal number, less the size of its mean.
    far = np.abs(gap) / np.maximum(deviation, 1e-300)
    bias = deviation * np.sqrt(2 / np.pi) * np.exp(-(far**2) / 2) - 2 * np.abs(gap) * ndtr(-far)
    return gaps * np.sign(gap)[bins], bias.sum()


def _nested(parts, judged):
    """Variance over cohorts of a sum of parts (M, n), though all models share one cohort.

    A patient moves the sum where it is judged, and where others are judged by models that it trained. The second is
    seen in how models differ beyond the patients that they judge: to draw one half of a cohort varies as much as to
    draw the cohort does. Pairs of patients are counted, each with itself left out, so that chance adds nothing.
    """
    patients, counts = parts.sum(axis=0), judged.sum(axis=0)
    means, often = patients / np.maximum(counts, 1), counts[counts > 0].mean()
    expected, own = (np.where(judged, values, 0.0).sum(axis=1) for values in (means, patients))
    models = parts.sum(axis=1) - expected
    trained = len(parts) * (models @ models - (parts**2).sum() + patients @ means)
    both = 2 * models @ (patients.sum() - 2 * own)
    lost = often / (often - 1) if often > 1 else 0.0  # a patient's mean over few models takes part of their difference
    return patients @ patients + max(0.0, lost * (trained + both))


def attack_difference(scores, baseline, members, groups=None, group_names=None, n_bootstrap=500, seed=0):
    """Compare an attack under two settings on the same patients and twin pairs, as with a defense and without.

    Overlap of two intervals decides nothing, since both move with the same patients. The interval is made of those of
    the two tables, closer together by as much as the two measures rise and fall together over the draws. Arguments as
    in `attack_table`; the estimate is that of `scores` less that of `baseline`, for what both tables measure. `holm`
    corrects the p-values, a further column, of all rows that one sentence speaks of.

    References
    ----------
    Zou, Donner, "Construction of confidence limits about effect measures", Statistics in Medicine 27(10), 2008.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> members, noise = rng.random((8, 200)) < 0.5, rng.normal(size=(8, 200))
    >>> table = attack_difference(noise + 0.8 * members, noise + members, members).set_index("metric")
    >>> row = table.loc["AUC"]
    >>> bool(row.high < 0), bool(row.p_value < 0.001)
    (True, True)
    """
    both = [_attack_rows(s, members, groups, group_names, n_bootstrap, seed, CONFIDENCE) for s in (scores, baseline)]
    return _differences(*both, "draws", lambda draws: _spread(draws)[1]).assign(n_models=len(members))


def utility_difference(logits, baseline, labels, judged, class_names=None):
    """Compare a classifier under two settings on the same patients and models; see `attack_difference`.

    Examples
    --------
    >>> labels = np.array([0, 1] * 20)
    >>> right = np.tile(np.eye(2)[labels], (4, 1, 1))
    >>> table = utility_difference(right[:, :, ::-1], right, labels, np.ones((4, 40), bool))
    >>> row = table.set_index("metric").loc["accuracy"]
    >>> float(row["estimate"]), float(row["high"].round(2))
    (-1.0, -0.88)
    """
    judged = np.asarray(judged, bool)
    both = [_utility_rows(answers, labels, judged, class_names) for answers in (logits, baseline)]
    return _differences(*both, "parts", lambda parts: _nested(parts, judged)).assign(n_models=len(judged))


def _differences(rows, baseline, errors, variance):
    """Differences of rows of one group and metric; the variance of a row, and of a difference, is that of `errors`."""
    found = []
    others = {(row["group"], row["metric"]): row for row in baseline}
    for a in (row for row in rows if (row["group"], row["metric"]) in others):
        b = others[a["group"], a["metric"]]
        own, other = variance(a[errors]), variance(b[errors])
        together = (own + other - variance(a[errors] - b[errors])) / 2
        alike = np.clip(together / np.sqrt(own * other), -1, 1) if own * other > 0 else 0.0
        down, up = (np.array([row["estimate"] - row["low"], row["high"] - row["estimate"]]) for row in (a, b))
        below, above = np.sqrt(np.maximum(0, down**2 + up[::-1] ** 2 - 2 * alike * down * up[::-1]))
        difference = a["estimate"] - b["estimate"]
        row = {name: a[name] for name in ("group", "metric", "n_patients")}
        found.append(row | {"estimate": difference, "low": difference - below, "high": difference + above})
    table = pd.DataFrame(found)
    return table.assign(p_value=p_values(table))


def p_values(table, value=0.0):
    """Two-sided p-values of the statement that what was estimated is `value`, from 95 % intervals.

    The interval is widened as that of a normal estimate would be, so p is below 0.05 where it leaves `value` out.

    Examples
    --------
    >>> p_values(pd.DataFrame({"estimate": [0.5], "low": [0.4], "high": [0.7]}), value=0.4).round(3)
    array([0.05])
    """
    estimate, low, high = (table[name].to_numpy(float) for name in ("estimate", "low", "high"))
    away = np.abs(estimate - value)
    reach = np.where(estimate > value, estimate - low, high - estimate)
    with np.errstate(divide="ignore", invalid="ignore"):
        far = np.where(away > 0, away / reach, away)
    return 2 * ndtr(ndtri((1 - CONFIDENCE) / 2) * far)


def holm(p_values):
    """P-values that hold for all statements together (Holm, Scandinavian Journal of Statistics 6(2), 1979); NaN stay.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    array([0.03, 0.06, 0.06])
    """
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values, kind="stable")
    left = np.isfinite(p_values).sum() - np.arange(len(order))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * left))
    return adjusted
