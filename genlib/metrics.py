"""How well a classifier does and how many training patients an attack finds, each number with an interval.

Intervals are percentile bootstraps over patients and, where there are at least two, over twin pairs of models: the
number of answers that a patient and a pair give is random together, not answer by answer.
"""

import concurrent.futures
import functools
import os

import numpy as np
import pandas as pd
from scipy.special import softmax
from scipy.stats import norm
from sklearn.metrics import davies_bouldin_score, silhouette_samples

CONFIDENCE = 0.95
FPR_LEVELS = (0.1, 0.01, 0.001)
PRIORS = (0.5, 0.1, 0.01)
SLACK = 1 + 1e-9  # a rate is a ratio of counts, so 1 % of 300 must count 3 as within; far below one count
FEWEST_FALSE_POSITIVES = 5
CALIBRATION_BINS = 10
CHUNK = 500_000  # weighted answers that a thread holds at once, so that they stay near the processor


def roc(scores, members):
    """Receiver operating characteristic of an attack, ties taken together.

    Parameters
    ----------
    scores : numpy.ndarray
        Any shape; NaN is left out.
    members : numpy.ndarray
        Same shape, bool.

    Returns
    -------
    fpr, tpr, thresholds : numpy.ndarray
        (number of different scores + 1,) each, from (0, 0) at an infinite threshold to (1, 1).

    Raises
    ------
    ValueError
        When there are no members or no non-members with a score.

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
        self.false_patients, self.n_patients = patients[~who], len(np.unique(patients))
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


@functools.lru_cache(maxsize=4)  # attacks on one bank, and its classes, are measured on the same draws
def _draws(seed, stream, n_draws, n_models, n_patients):
    """Counts of patients (B + 1, n) and of twin pairs (B + 1, pairs): first each once, as the data, then the draws."""
    drawn = _weights(np.random.default_rng([seed, stream]), n_draws, n_models, n_patients)
    counts = tuple(np.vstack([np.ones((1, part.shape[1]), part.dtype), part]) for part in drawn)
    for part in counts:
        part.setflags(write=False)  # what is kept for the next call stays as it was drawn
    return counts


def _weights(rng, n_draws, n_models, n_patients):
    """Bootstrap counts of patients (B, n) and of twin pairs (B, pairs)."""
    n_pairs = -(-n_models // 2)
    patients = rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), n_draws)
    pairs = rng.multinomial(n_pairs, np.full(n_pairs, 1 / n_pairs), n_draws)
    return patients.astype(np.int32), pairs.astype(np.int32)


def attack_table(scores, members, groups=None, group_names=None, n_bootstrap=500, seed=0, level=CONFIDENCE):
    """Measure one attack: AUC, advantage, TPR and PPV at low false positive rates, with intervals, also by group.

    Rates pool all target models. The advantage, a maximum over thresholds, is too large by chance; its interval is the
    bootstrap mirrored at the estimate, which corrects for that. A group is judged twice: at the threshold that gives
    the stated false positive rate over everybody (one attacker, one threshold; rows ``at the global threshold``), and
    at its own.

    Parameters
    ----------
    scores : numpy.ndarray
        (M, n), higher = more likely a member, NaN = not judged.
    members : numpy.ndarray
        (M, n) bool.
    groups : numpy.ndarray, optional
        (n,) int, as the class of each patient.
    group_names : sequence of str, optional
        Name of group 0, 1, ...
    n_bootstrap : int
        Bootstrap draws behind each interval.
    seed : int
    level : float
        Coverage of the intervals; pass 1 - 0.05 / m for a Bonferroni correction over m statements.

    Returns
    -------
    pandas.DataFrame
        Columns group, metric, estimate, low, high, n_patients, n_models, false_positives, false_positive_patients,
        note. Where a rate rests on fewer than five false positives, or on fewer than five patients, `note` says so and
        the estimate is NaN.

    Raises
    ------
    ValueError
        When shapes disagree or nobody, or everybody, is a member.

    References
    ----------
    TPR at low FPR: Carlini et al., "Membership inference attacks from first principles", IEEE S&P 2022, section IV.
    Advantage: Yeom et al., CSF 2018, definition 4. PPV at a prior: Jayaraman et al., PoPETs 2021, section 3.2.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> members = rng.random((4, 100)) < 0.5
    >>> table = attack_table(rng.normal(size=(4, 100)) + 2 * members, members)
    >>> row = table.set_index("metric").loc["AUC"]
    >>> bool(row.low < row.estimate < row.high)
    True
    """
    everybody = _Answers(scores, members)
    scores, members = np.asarray(scores), np.asarray(members)
    n_models, n_patients = members.shape
    patients, pairs = _draws(seed, 8, n_bootstrap, n_models, n_patients)
    values = _measure(everybody, patients, pairs)
    tables = [pd.DataFrame(_rows(values, everybody, everybody, level)).assign(group="all")]
    for k in () if groups is None else np.unique(groups):
        mine = np.flatnonzero(np.broadcast_to(np.asarray(groups) == k, n_patients))
        try:
            answers = _Answers(scores[:, mine], members[:, mine])
        except ValueError:
            continue  # no member or no non-member of this group was judged: there is nothing to measure
        own = _measure(answers, patients.take(mine, axis=1), pairs, values["thresholds"])
        name = str(k) if group_names is None else group_names[k]
        tables.append(pd.DataFrame(_rows(own, answers, everybody, level)).assign(group=name))
    return pd.concat(tables, ignore_index=True).assign(n_models=n_models)


def _measure(answers, patients, pairs, shared=None):
    """Measures by name, one row a draw; also at thresholds `shared` with others, where given."""
    step = max(1, CHUNK // (2 * patients.shape[1] * pairs.shape[1]))

    def part(start):
        drawn = slice(start, start + step)
        table = (pairs[drawn, :, None] * patients[drawn, None, :]).reshape(len(pairs[drawn]), -1)
        return _measure_draws(answers, table, None if shared is None else shared[drawn])

    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        parts = list(pool.map(part, range(0, len(patients), step)))
    return {name: np.concatenate([values[name] for values in parts]) for name in parts[0]}


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
    with np.errstate(invalid="ignore"):
        values |= {"AUC": area / (n_true * n_false), "advantage": gap / (n_true * n_false)}
        values["TPR"] = np.take_along_axis(true, answers.true_above[place], axis=1) / n_true[:, None]
        if shared is not None:
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


def _rows(values, answers, everybody, level):
    """Rows for one group at its own thresholds, and at those of everybody."""
    rows = [_row("AUC", values["AUC"], answers, level)]
    # The largest of many gaps lies above 0 by chance alone, and more so in every draw: as much as the draws lie above
    # the estimate, the estimate lies above the truth. So the draws are mirrored at the estimate.
    gaps = values["advantage"]
    row = _row("advantage", np.r_[gaps[0], 2 * gaps[0] - gaps[1:]], answers, level)
    rows.append({**row, "low": max(0.0, row["low"]), "high": max(row["estimate"], row["high"])})
    for limit, rates in zip(FPR_LEVELS, values["TPR"].T, strict=True):
        support = _false_positives(answers, answers.false_above[answers.allowed(limit)])
        named = {f"TPR at FPR {limit:g}": rates}
        for prior in PRIORS if limit == 0.01 else ():
            named[f"PPV at prior {prior:g}, FPR {limit:g}"] = _ppv(rates, limit, prior)
        rows += [_supported(_row(name, v, answers, level), limit, answers, support) for name, v in named.items()]
    for i, limit in enumerate(FPR_LEVELS if answers is not everybody else ()):
        threshold = everybody.thresholds[everybody.allowed(limit)]
        support = _false_positives(everybody, np.count_nonzero(everybody.false >= threshold))
        for rate in ("TPR", "FPR"):
            row = _row(f"{rate} at the global threshold, FPR {limit:g}", values["global " + rate][:, i], answers, level)
            rows.append(_supported(row, limit, everybody, support))
    return rows


def _ppv(tpr, fpr, prior):
    """Share of true members among those named, if `prior` of all candidates are members and `fpr` is used in full."""
    return tpr * prior / (tpr * prior + fpr * (1 - prior))


def _false_positives(answers, n_named):
    return {"false_positives": n_named, "false_positive_patients": len(np.unique(answers.false_patients[:n_named]))}


def _row(metric, values, answers, level):
    draws = values[1:][np.isfinite(values[1:])]
    tail = 50 * (1 - level)
    low, high = np.percentile(draws, [tail, 100 - tail]) if len(draws) else (np.nan, np.nan)
    row = {"metric": metric, "estimate": values[0], "low": low, "high": high}
    return {**row, "n_patients": answers.n_patients, "note": ""}


def _supported(row, limit, answers, support):
    """Withdraw a rate that rests on too few false positives to mean anything, and say so."""
    allowed = answers.allowed(limit)
    row |= support
    if allowed < FEWEST_FALSE_POSITIVES:
        row["note"] = f"not measurable: {allowed} false positives allowed, fewer than {FEWEST_FALSE_POSITIVES}"
    elif support["false_positive_patients"] < FEWEST_FALSE_POSITIVES:
        row["note"] = (
            f"not measurable: the false positives are {support['false_positive_patients']} patients, fewer than "
            f"{FEWEST_FALSE_POSITIVES}"
        )
    if row["note"]:
        row |= {"estimate": np.nan, "low": np.nan, "high": np.nan}
    return row


def bonferroni_low(table, n_statements=None):
    """Lower ends of intervals that hold for many statements together.

    A bootstrap has too few draws in its far tail, so the interval is widened as that of a normal estimate would be.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns estimate and low, the latter at the usual `CONFIDENCE`.
    n_statements : int, optional
        How many statements hold together; by default one a row.

    Returns
    -------
    numpy.ndarray
        (rows,)

    Examples
    --------
    >>> bonferroni_low(pd.DataFrame({"estimate": [0.5], "low": [0.4]}), n_statements=10).round(3)
    array([0.357])
    """
    miss = 1 - CONFIDENCE
    wider = norm.ppf(1 - miss / 2 / (n_statements or len(table))) / norm.ppf(1 - miss / 2)
    estimate, low = table["estimate"].to_numpy(float), table["low"].to_numpy(float)
    return estimate - wider * (estimate - low)


def utility_table(logits, labels, judged, class_names=None, n_bootstrap=500, seed=0, level=CONFIDENCE):
    """Measure a classifier: accuracy, balanced accuracy, recall per class, Brier score, calibration error.

    Parameters
    ----------
    logits : numpy.ndarray
        (M, n, k).
    labels : numpy.ndarray
        (n,) int.
    judged : numpy.ndarray
        (M, n) bool: whose predictions count, as ``~members`` for held-out patients.
    class_names : sequence of str, optional
    n_bootstrap, seed, level
        As in `attack_table`.

    Returns
    -------
    pandas.DataFrame
        Columns group, metric, estimate, low, high, n_patients, n_models. Values pool all models. Brier score: squared
        distance of the class probabilities to the true class, 0 to 2. Calibration error: over 10 equal bins of the
        highest probability, the mean gap between it and the share correct.

    Raises
    ------
    ValueError
        When shapes disagree or nobody is judged.

    References
    ----------
    Expected calibration error: Guo et al., ICML 2017, equation 3. Brier: Monthly Weather Review 78(1), 1950.

    Examples
    --------
    >>> labels = np.array([0, 1] * 20)
    >>> logits = np.stack([np.stack([1.0 - labels, labels], axis=1)] * 2)
    >>> utility_table(logits, labels, np.ones((2, 40), bool)).set_index("metric").loc["accuracy", "estimate"]
    1.0
    """
    logits, labels, judged = np.asarray(logits, float), np.asarray(labels), np.asarray(judged, bool)
    if logits.shape[:2] != judged.shape or labels.shape != judged.shape[1:] or not judged.any():
        raise ValueError(
            f"shapes disagree or nobody is judged: logits {logits.shape}, labels {labels.shape}, judged {judged.shape}"
        )
    patients, pairs = _draws(seed, 9, n_bootstrap, *judged.shape)
    patients = patients.astype(np.float32)
    models, columns = np.nonzero(judged)
    cells = models // 2 * judged.shape[1] + columns

    def total(values, chosen=slice(None)):
        # Twins share their weight, so what they say of a patient is added up before it is weighted.
        sums = np.bincount(cells, values, pairs.shape[1] * judged.shape[1]).reshape(-1, judged.shape[1])
        return np.einsum("ij,ij->i", patients[:, chosen] @ sums[:, chosen].T.astype(np.float32), pairs, dtype=float)

    # Classes first: the numbers of an answer are then taken together whole rows at a time.
    probability = softmax(np.ascontiguousarray(logits[judged].T), axis=0)
    draws = _utility_draws(probability, labels, columns, total)
    rows = []
    tail = 50 * (1 - level)
    for (k, metric), values in draws.items():
        mirrored = metric == "calibration error"
        # A sum of absolute gaps lies above the truth by chance, and its draws above it: mirrored as the advantage is.
        low, high = np.nanpercentile(2 * values[0] - values[1:] if mirrored else values[1:], [tail, 100 - tail])
        low, high = (max(0.0, low), max(values[0], high)) if mirrored else (low, high)
        group = "all" if k is None else str(k) if class_names is None else class_names[k]
        row = {"group": group, "metric": metric, "estimate": values[0], "low": low, "high": high}
        n_patients = int((judged.any(axis=0) & (True if k is None else labels == k)).sum())
        rows.append({**row, "n_patients": n_patients, "n_models": len(judged)})
    return pd.DataFrame(rows)


def _utility_draws(probability, labels, columns, total):
    """Values by (class or None for all, metric), the first that of the data, then one a draw."""
    true, confidence = labels[columns], probability.max(axis=0)
    correct = (probability.argmax(axis=0) == true).astype(float)
    hits, judged = {}, {}
    for k in np.unique(labels):
        chosen = np.flatnonzero(labels == k)
        hits[k], judged[k] = total(correct, chosen), total(np.ones(len(true)), chosen)
    everybody = sum(judged.values())
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = sum(np.abs(total((confidence - correct) * (bins == b))) for b in np.unique(bins))
    probability[true, np.arange(len(true))] -= 1  # now how far each lies from the true class
    with np.errstate(invalid="ignore"):
        recalls = {k: hits[k] / judged[k] for k in hits}
        return {
            (None, "accuracy"): sum(hits.values()) / everybody,
            (None, "balanced accuracy"): np.nanmean(list(recalls.values()), axis=0),
            (None, "Brier score"): total((probability**2).sum(axis=0)) / everybody,
            (None, "calibration error"): gaps / everybody,
            **{(k, "recall"): recall for k, recall in recalls.items()},
        }


def separation_table(points, labels, judged, n_bootstrap=200, seed=0, level=CONFIDENCE):
    """Measure how well classes lie apart in what models make of patients.

    Parameters
    ----------
    points : sequence of numpy.ndarray
        One (n, h) a model.
    labels : numpy.ndarray
        (n,) int.
    judged : numpy.ndarray
        (M, n) bool: whose points count, as ``~members`` for held-out patients.
    n_bootstrap, seed, level
        As in `attack_table`.

    Returns
    -------
    pandas.DataFrame
        Columns group, metric, estimate, low, high, n_patients, n_models; means over models. Silhouette: -1 to 1, 1 is
        best, each patient's within its own model. Davies-Bouldin index: 0 is best.

    References
    ----------
    Rousseeuw, J Comput Appl Math 20, 1987, equation 1. Davies, Bouldin, IEEE Trans Pattern Anal Mach Intell 1, 1979.

    Examples
    --------
    >>> labels = np.array([0, 1] * 20)
    >>> points = [labels[:, None] + 0.01 * np.random.default_rng(m).normal(size=(40, 3)) for m in range(2)]
    >>> separation_table(points, labels, np.ones((2, 40), bool))["metric"].tolist()
    ['silhouette', 'Davies-Bouldin index']
    """
    labels, judged = np.asarray(labels), np.asarray(judged, bool)
    rng = np.random.default_rng([seed, 26])
    patients, pairs = _weights(rng, n_bootstrap, *judged.shape)
    models = np.repeat(pairs, 2, axis=1)[:, : len(judged)]
    widths = np.zeros(judged.shape)
    for m, mask in enumerate(judged):
        widths[m, mask] = silhouette_samples(points[m][mask], labels[mask])
    silhouettes = ((models @ widths) * patients).sum(axis=1) / ((models @ judged) * patients).sum(axis=1)
    indices = [
        np.average([_davies_bouldin(points[m], labels, judged[m] * count) for m in np.flatnonzero(drawn)],
                   weights=drawn[drawn > 0])
        for count, drawn in zip(patients.astype(int), models, strict=True)
    ]  # fmt: skip
    once = np.mean([_davies_bouldin(points[m], labels, judged[m].astype(int)) for m in range(len(judged))])
    rows = []
    tail = 50 * (1 - level)
    # Patients that are drawn twice make classes look tighter, so the draws of the index lie too low: their spread is
    # used, not their place.
    reach = norm.ppf((1 + level) / 2) * np.std([index for index in indices if np.isfinite(index)])
    ends = {
        "silhouette": np.nanpercentile(silhouettes, [tail, 100 - tail]),
        "Davies-Bouldin index": (once - reach, once + reach),
    }
    for metric, estimate in (("silhouette", widths.sum() / judged.sum()), ("Davies-Bouldin index", once)):
        row = {"group": "all", "metric": metric, "estimate": float(estimate)}
        row |= {"low": float(ends[metric][0]), "high": float(ends[metric][1])}
        rows.append({**row, "n_patients": int(judged.any(axis=0).sum()), "n_models": len(judged)})
    return pd.DataFrame(rows)


def _davies_bouldin(points, labels, counts):
    chosen = np.repeat(np.arange(len(labels)), counts)
    # A class of one patient has no width of its own, and a draw without a class has one class fewer.
    sizes = np.bincount(labels[chosen])
    if (sizes > 1).sum() < 2:
        return np.nan  # a draw of so small a cohort that it says nothing
    chosen = chosen[sizes[labels[chosen]] > 1]
    return davies_bouldin_score(points[chosen], labels[chosen])
