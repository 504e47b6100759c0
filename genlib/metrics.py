"""How well a classifier does and how many training patients an attack finds, each number with an interval.

Intervals are percentile bootstraps over patients and, where there are at least two, over twin pairs of models: the
number of answers that a patient and a pair give is random together, not answer by answer.
"""

import numpy as np
import pandas as pd
from scipy.special import softmax
from scipy.stats import norm
from sklearn.metrics import davies_bouldin_score, silhouette_samples

CONFIDENCE = 0.95
FPR_LEVELS = (0.1, 0.01, 0.001)
PRIORS = (0.5, 0.1, 0.01)
FEWEST_FALSE_POSITIVES = 5
CALIBRATION_BINS = 10
CHUNK = 1_000_000  # weighted answers held at once, so that they stay near the processor


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
    answers = _answers(np.atleast_2d(scores), np.atleast_2d(members))
    true, false = (counts[:, 0] for counts in _cumulative(answers, None))
    return false / false[-1], true / true[-1], np.r_[np.inf, answers.scores[answers.last]]


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
    return float(tpr[_last_within(rates[:, None], fpr)[0]])


class _Answers:
    """Judged (model, patient) answers, sorted from the highest score down; `last` marks the ends of ties."""

    def __init__(self, scores, members, rows, columns):
        order = np.argsort(-scores, kind="stable")
        self.scores, self.members = scores[order], members[order]
        self.pair, self.patient = rows[order] // 2, columns[order]
        self.last = np.flatnonzero(np.r_[self.scores[1:] != self.scores[:-1], True])


def _answers(scores, members, chosen=None):
    scores, members = np.asarray(scores, float), np.asarray(members, bool)
    if scores.shape != members.shape or scores.ndim != 2:
        raise ValueError(f"shapes disagree: scores {scores.shape}, members {members.shape}; both must be (M, n)")
    judged = ~np.isnan(scores) if chosen is None else ~np.isnan(scores) & chosen
    rows, columns = np.nonzero(judged)
    answers = _Answers(scores[judged], members[judged], rows, columns)
    if not (answers.members.any() and not answers.members.all()):
        raise ValueError(
            f"an attack is measured on members and non-members; there are {int(answers.members.sum())} and "
            f"{int((~answers.members).sum())} with a score"
        )
    return answers


def _cumulative(answers, weights):
    """True and false positives from the highest threshold down, (thresholds + 1, B); weights None counts each once."""
    weight = np.ones((len(answers.scores), 1)) if weights is None else weights
    both = []
    for kind in (answers.members, ~answers.members):
        counts = np.cumsum(weight * kind[:, None].astype(weight.dtype), axis=0)
        both.append(np.vstack([np.zeros((1, weight.shape[1]), weight.dtype), counts[answers.last]]))
    return both


def _last_within(fpr, limit):
    # A rate is a ratio of counts, so 1 % of 300 must count 3 as within; the slack is far below one count.
    return (fpr <= limit * (1 + 1e-9)).sum(axis=0) - 1


def _weights(rng, n_draws, n_models, n_patients):
    """Bootstrap counts of patients (B, n) and of twin pairs (B, pairs)."""
    n_pairs = -(-n_models // 2)
    patients = rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), n_draws)
    pairs = rng.multinomial(n_pairs, np.full(n_pairs, 1 / n_pairs), n_draws)
    return patients.astype(np.float32), pairs.astype(np.float32)


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
    rng = np.random.default_rng([seed, 8])
    weights = _weights(rng, n_bootstrap, *np.shape(members))
    everybody = _answers(scores, members)
    rows, thresholds = _measure(everybody, weights, level)
    tables = [pd.DataFrame(rows).assign(group="all")]
    for k in () if groups is None else np.unique(groups):
        name = str(k) if group_names is None else group_names[k]
        chosen = np.broadcast_to(np.asarray(groups) == k, np.shape(scores))
        try:
            answers = _answers(scores, members, chosen)
        except ValueError:
            continue  # no member or no non-member of this group was judged: there is nothing to measure
        own, _ = _measure(answers, weights, level)
        shared = _at_thresholds(answers, everybody, weights, thresholds, level)
        tables.append(pd.DataFrame(own + shared).assign(group=name))
    return pd.concat(tables, ignore_index=True).assign(n_models=len(members))


def _measure(answers, weights, level):
    """Rows for one group at its own thresholds, and the threshold of each FPR level in every draw (first: the data)."""
    estimates, draws = [], []
    for weight in [None, *_weight_chunks(answers, weights)]:
        true, false = _cumulative(answers, weight)
        with np.errstate(invalid="ignore"):
            tpr, fpr = true.astype(float) / true[-1], false.astype(float) / false[-1]
        values = {"AUC": np.trapz(tpr, fpr, axis=0), "advantage": (tpr - fpr).max(axis=0)}
        for limit in FPR_LEVELS:
            place = _last_within(fpr, limit)
            values[_tpr_name(limit)] = tpr[place, np.arange(tpr.shape[1])]
            values["place", limit] = place
        (estimates if weight is None else draws).append(pd.DataFrame(values))
    estimate, draws = estimates[0], pd.concat(draws, ignore_index=True)
    places = {limit: np.r_[estimate["place", limit], draws["place", limit]] for limit in FPR_LEVELS}
    rows = [_row("AUC", estimate["AUC"][0], draws["AUC"], answers, level)]
    # The largest of many gaps lies above 0 by chance alone, and more so in every draw: as much as the draws lie above
    # the estimate, the estimate lies above the truth. So the draws are mirrored at the estimate.
    row = _row("advantage", estimate["advantage"][0], 2 * estimate["advantage"][0] - draws["advantage"], answers, level)
    rows.append({**row, "low": max(0.0, row["low"]), "high": max(row["estimate"], row["high"])})
    for limit in FPR_LEVELS:
        name = _tpr_name(limit)
        support = _false_positives(answers, places[limit][0])
        rows.append(_supported(_row(name, estimate[name][0], draws[name], answers, level), limit, answers, support))
        if limit == 0.01:
            for prior in PRIORS:
                values = [_ppv(v, limit, prior) for v in (estimate[name][0], draws[name])]
                row = _row(f"PPV at prior {prior:g}, FPR {limit:g}", *values, answers, level)
                rows.append(_supported(row, limit, answers, support))
    thresholds = {limit: np.r_[np.inf, answers.scores[answers.last]][place] for limit, place in places.items()}
    return rows, thresholds


def _weight_chunks(answers, weights):
    """Counts of every answer in some draws at a time, (answers, draws): sums along answers then run over whole rows."""
    patients, pairs = (np.ascontiguousarray(part.T) for part in weights)
    step = max(1, CHUNK // len(answers.scores))
    for start in range(0, patients.shape[1], step):
        stop = start + step
        yield patients[answers.patient, start:stop] * pairs[answers.pair, start:stop]


def _at_thresholds(answers, everybody, weights, thresholds, level):
    """TPR and FPR of one group at the thresholds that everybody is judged by."""
    # How many of the group stand at or above each threshold; scores run downwards.
    reach = {limit: np.searchsorted(-answers.scores, -found, side="right") for limit, found in thresholds.items()}
    kinds = {"TPR": answers.members, "FPR": ~answers.members}
    draws = {(name, limit): [] for name in kinds for limit in thresholds}
    start = 1
    for weight in _weight_chunks(answers, weights):
        columns = np.arange(weight.shape[1])
        for name, kind in kinds.items():
            total = np.cumsum(weight * kind[:, None].astype(weight.dtype), axis=0)
            total = np.vstack([np.zeros((1, len(columns)), weight.dtype), total]).astype(float)
            for limit in thresholds:
                with np.errstate(invalid="ignore"):
                    draws[name, limit].append(total[reach[limit][start + columns], columns] / total[-1])
        start += len(columns)
    rows = []
    for limit, found in thresholds.items():
        support = _false_positives(everybody, int((everybody.scores[everybody.last] >= found[0]).sum()))
        for name, kind in kinds.items():
            estimate = kind[: reach[limit][0]].sum() / kind.sum()
            metric = f"{name} at the global threshold, FPR {limit:g}"
            row = _row(metric, estimate, np.concatenate(draws[name, limit]), answers, level)
            rows.append(_supported(row, limit, everybody, support))
    return rows


def _tpr_name(limit):
    return f"TPR at FPR {limit:g}"


def _ppv(tpr, fpr, prior):
    """Share of true members among those named, if `prior` of all candidates are members and `fpr` is used in full."""
    return tpr * prior / (tpr * prior + fpr * (1 - prior))


def _false_positives(answers, place):
    named = answers.last[place - 1] + 1 if place else 0
    wrong = answers.patient[:named][~answers.members[:named]]
    return {"false_positives": len(wrong), "false_positive_patients": len(np.unique(wrong))}


def _row(metric, estimate, draws, answers, level):
    draws = np.asarray(draws, float)
    draws = draws[np.isfinite(draws)]
    tail = 50 * (1 - level)
    low, high = np.percentile(draws, [tail, 100 - tail]) if len(draws) else (np.nan, np.nan)
    n_patients = len(np.unique(answers.patient))
    return {
        "metric": metric,
        "estimate": estimate,
        "low": low,
        "high": high,
        "n_patients": n_patients,
        "note": "",
    }


def _supported(row, limit, answers, support):
    """Withdraw a rate that rests on too few false positives to mean anything, and say so."""
    allowed = int(limit * (1 + 1e-9) * (~answers.members).sum())
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
    rng = np.random.default_rng([seed, 9])
    patients, pairs = _weights(rng, n_bootstrap, *judged.shape)
    models = np.repeat(pairs, 2, axis=1)[:, : len(judged)]
    ones = np.ones((1, 1), np.float32)
    # The first row counts everybody once: the estimate goes the same way as the draws.
    patients = np.vstack([np.broadcast_to(ones, (1, patients.shape[1])), patients])
    models = np.vstack([np.broadcast_to(ones, (1, models.shape[1])), models])

    def total(values):
        return ((models @ (values * judged).astype(np.float32)) * patients).sum(axis=1, dtype=float)

    return _utility_rows(softmax(logits, axis=2), labels, judged, total, class_names, level)


def _utility_rows(probability, labels, judged, total, class_names, level):
    everybody = np.ones(judged.shape)
    correct = probability.argmax(axis=2) == labels
    true = np.eye(probability.shape[2])[labels]
    confidence = probability.max(axis=2)
    recalls = {}
    for k in np.unique(labels):
        with np.errstate(invalid="ignore"):
            recalls[k] = total(correct * (labels == k)) / total(everybody * (labels == k))
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = sum(np.abs(total((confidence - correct) * (bins == b))) for b in range(CALIBRATION_BINS))
    values = {
        ("all", "accuracy"): total(correct) / total(everybody),
        ("all", "balanced accuracy"): np.nanmean(list(recalls.values()), axis=0),
        ("all", "Brier score"): total(((probability - true) ** 2).sum(axis=2)) / total(everybody),
        ("all", "calibration error"): gaps / total(everybody),
    }
    for k, recall in recalls.items():
        values[str(k) if class_names is None else class_names[k], "recall"] = recall
    rows = []
    tail = 50 * (1 - level)
    for (group, metric), draws in values.items():
        mirrored = metric == "calibration error"
        # A sum of absolute gaps lies above the truth by chance, and its draws above it: mirrored as the advantage is.
        low, high = np.nanpercentile(2 * draws[0] - draws[1:] if mirrored else draws[1:], [tail, 100 - tail])
        low, high = (max(0.0, low), max(draws[0], high)) if mirrored else (low, high)
        in_group = (
            True if group == "all" else labels == (int(group) if class_names is None else class_names.index(group))
        )
        n_patients = int((judged.any(axis=0) & in_group).sum())
        row = {"group": group, "metric": metric, "estimate": draws[0], "low": low, "high": high}
        rows.append({**row, "n_patients": n_patients, "n_models": len(judged)})
    return pd.DataFrame(rows)


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
