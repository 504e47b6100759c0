"""What holds over several cohorts: the results of several runs side by side, with a rule for many comparisons.

Runs of the same cohort and network with other seeds look at the same patients, so they are averaged and count as
one; their interval is not narrowed.
"""

import json
import pathlib

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata, spearmanr
from statsmodels.stats.multitest import multipletests

from genlib import metrics, report, results

WHERE = ["cohort", "network"]
TESTED = 0.05  # chance of any false statement among all comparisons of one table


def load(runs):
    """Read the results of several runs into one table.

    Parameters
    ----------
    runs : sequence of path-like
        Folders of runs.

    Returns
    -------
    pandas.DataFrame
        As `genlib.results.load`, with a column seed; every row has its cohort and network.

    Raises
    ------
    FileNotFoundError
        When a folder holds no results; names the command that makes them.

    Examples
    --------
    >>> load(["no-such-run"])
    Traceback (most recent call last):
    FileNotFoundError: no results of any notebook in no-such-run; run that notebook first ...
    """
    tables = []
    for run in map(pathlib.Path, runs):
        table = results.load(run)
        chosen = json.loads((run / "manifest.json").read_text())["run"]["parameters"]
        table = table.assign(seed=chosen["seed"], network=chosen["network"])
        tables.append(table.assign(cohort=table["cohort"].iloc[0]))
    return pd.concat(tables, ignore_index=True)


def pooled(table, by):
    """Average estimates and ends of intervals over seeds; an interval is not narrowed, since patients are the same.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns estimate, low, high, and those of `by`.
    by : list of str

    Returns
    -------
    pandas.DataFrame
        One row a combination of `by`, in the order of their first rows.

    Examples
    --------
    >>> two = pd.DataFrame({"cohort": "a", "estimate": [0.5, 0.7], "low": [0.4, 0.6], "high": [0.6, 0.8]})
    >>> pooled(two, ["cohort"])["estimate"].round(3).tolist()
    [0.6]
    """
    numbers = table.astype({name: float for name in ("estimate", "low", "high")})
    return numbers.groupby(by, sort=False, dropna=False)[["estimate", "low", "high"]].mean().reset_index()


def risks(table):
    """Say for every cohort and network what its undefended model is worth and gives away.

    Parameters
    ----------
    table : pandas.DataFrame
        From `load`.

    Returns
    -------
    pandas.DataFrame
        Columns cohort, network, metric, estimate, low, high.

    Examples
    --------
    >>> risks(pd.DataFrame(columns=[*results.COLUMNS, "seed"])).empty
    True
    """
    worth = report.select(table, notebook="02_target_model", set="held-out", group="all", metric="balanced accuracy")
    attack = report.select(table, notebook="03_answers", attack="LiRA", group="all", threat_model="auditor")
    attack = attack[~attack["set"].fillna("").str.startswith("control")]
    attack = report.select(attack, metric=["AUC", "TPR at FPR 0.01"])
    return pooled(pd.concat([worth, attack]), [*WHERE, "metric"])


def exposures(table):
    """Say for every class how many patients it has and how far LiRA recognizes its members.

    Parameters
    ----------
    table : pandas.DataFrame
        From `load`.

    Returns
    -------
    pandas.DataFrame
        Columns cohort, network, class, patients, share (of the cohort), recall (held out), and estimate, low,
        high: the AUC within the class.

    Examples
    --------
    >>> exposures(pd.DataFrame(columns=[*results.COLUMNS, "seed"])).empty
    True
    """
    by = [*WHERE, "group"]
    inside = report.select(table, notebook="03_answers", attack="LiRA", metric="AUC", threat_model="auditor")
    inside = pooled(inside[(inside["group"] != "all") & (inside["set"].fillna("") == "")], by)
    sizes = report.select(table, notebook="01_cohort", metric="patients")
    sizes = sizes.drop_duplicates(by).set_index(by)["estimate"]
    recall = report.select(table, notebook="02_target_model", set="held-out", metric="recall")
    recall = pooled(recall, by).set_index(by)["estimate"]
    keys = list(map(tuple, inside[by].to_numpy()))
    inside["patients"] = [int(sizes[key]) for key in keys]
    inside["share"] = [sizes[key] / sizes[(*key[:2], "all")] for key in keys]
    inside["recall"] = [recall[key] for key in keys]
    return inside.rename(columns={"group": "class"})


def rank_correlation(x, y, groups, n_draws=2000, seed=0):
    """Correlate ranks within groups, and say how often shuffling within groups gives as much.

    Values are ranked within their group, so that groups which differ as a whole do not make a correlation. The test is
    the permutation test of Spearman's coefficient, stratified by group.

    Parameters
    ----------
    x, y : numpy.ndarray
        (points,), no missing values.
    groups : numpy.ndarray
        (points,), as the cohort of each class.
    n_draws, seed : int

    Returns
    -------
    coefficient, p : float
        Of -1 to 1, or NaN where no group has two points that differ; share of shuffles (with the data itself) whose
        coefficient is as far from 0 or farther.

    Examples
    --------
    >>> x = np.arange(6.0)
    >>> coefficient, p = rank_correlation(x, -x, np.zeros(6))
    >>> round(coefficient, 3), p < 0.05
    (-1.0, True)
    """
    x, y = _ranks(x, groups), _ranks(y, groups)
    if not np.ptp(x) or not np.ptp(y):
        return float("nan"), 1.0
    found = spearmanr(x, y)[0]
    rng = np.random.default_rng(seed)
    places = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    as_far = 1
    for _ in range(n_draws):
        shuffled = y.copy()
        for place in places:
            shuffled[place] = y[rng.permutation(place)]
        as_far += abs(spearmanr(x, shuffled)[0]) >= abs(found) - 1e-12
    return float(found), as_far / (n_draws + 1)


def correlation_in_words(found):
    """Write a coefficient with its p, or say that it could not be measured.

    Examples
    --------
    >>> correlation_in_words((-0.5, 0.031))
    '-0.50 (p = 0.031)'
    >>> correlation_in_words((float("nan"), 1.0))
    'not measurable'
    """
    return f"{found[0]:.2f} (p = {found[1]:.3f})" if np.isfinite(found[0]) else "not measurable"


def _ranks(values, groups):
    """Rank within the group, from -1 to 1; 0 where a group has one point."""
    ranks = np.zeros(len(values))
    for group in np.unique(groups):
        place = np.flatnonzero(groups == group)
        if len(place) > 1:
            ranks[place] = 2 * (rankdata(np.asarray(values)[place]) - 1) / (len(place) - 1) - 1
    return ranks


def effects(table):
    """Compare every defense with the undefended model of the same cohort: attack AUC and balanced accuracy.

    The attack is the strongest on each. Both intervals are taken as of normal estimates and as independent; the same
    patients and members stand behind both, which makes the comparison cautious. All comparisons of the table are
    corrected together by Holm's rule (Scandinavian Journal of Statistics 6, 1979).

    Parameters
    ----------
    table : pandas.DataFrame
        From `load`, with rows of ``06_defenses``.

    Returns
    -------
    pandas.DataFrame
        One row a cohort, network and setting (with a remark where it hides only): estimate, low, high (change of
        AUC), worth (change of balanced
        accuracy), p (Holm), and verdict: lowers, raises, or no difference.

    Examples
    --------
    >>> effects(pd.DataFrame(columns=[*results.COLUMNS, "seed"])).empty
    True
    """
    rows = report.select(table, notebook="06_defenses", group="all")
    by = [*WHERE, "defense", "features"]
    area = pooled(report.select(rows, set="strongest", metric="AUC"), by).set_index(by)
    worth = pooled(report.select(rows, set="held-out", metric="balanced accuracy"), by).set_index(by)["estimate"]
    hiding = set(
        map(tuple, rows.loc[rows["note"].fillna("").str.startswith(report.HIDES), ["defense", "features"]].to_numpy())
    )
    found = []
    for key, row in area.iterrows():
        start = (*key[:2], "none", "")
        if key != start:
            change = row["estimate"] - area.loc[start, "estimate"]
            apart = norm.ppf(0.5 + metrics.CONFIDENCE / 2)
            error = np.hypot(*((one["high"] - one["low"]) / 2 / apart for one in (row, area.loc[start])))
            low, high = change - apart * error, change + apart * error
            strength = key[3].removeprefix("strength ")
            setting = f"{key[2]}: {strength}" if strength else key[2]
            setting += f" ({report.HIDES})" if key[2:] in hiding else ""
            p = 2 * norm.sf(abs(change) / error) if error else float(change == 0)
            found.append([*key[:2], key[2], setting, change, low, high, worth[key] - worth[start], p])
    columns = [*WHERE, "defense", "setting", "estimate", "low", "high", "worth", "p"]
    found = pd.DataFrame(found, columns=columns)
    if found.empty:
        return found.assign(verdict=[])
    found["p"] = multipletests(found["p"], method="holm")[1]
    sure = found["p"] < TESTED
    lower = found["estimate"] < 0
    return found.assign(verdict=np.where(~sure, "no difference", np.where(lower, "lowers", "raises")))


def agreement(found):
    """Say for every setting in how many cohorts it lowers the risk, changes nothing, or raises it.

    Parameters
    ----------
    found : pandas.DataFrame
        From `effects`.

    Returns
    -------
    pandas.DataFrame
        One row a setting that was tried everywhere, the most helpful first: cohorts that say lowers, no difference and
        raises, the smallest and the largest change of AUC, and the largest loss of balanced accuracy.

    Examples
    --------
    >>> one = {"setting": "L2", "estimate": -0.1, "worth": 0.0, "verdict": "lowers"}
    >>> agreement(pd.DataFrame([one | {"cohort": "a"}, one | {"cohort": "b"}]))["lowers"].tolist()
    [2]
    """
    places = found.groupby([c for c in WHERE if c in found]).ngroups
    rows = []
    for setting, part in found.groupby("setting", sort=False):
        if len(part) == places:
            counts = {verdict: int((part["verdict"] == verdict).sum()) for verdict in VERDICTS}
            changes = {
                "smallest change of AUC": part["estimate"].max(),
                "largest change of AUC": part["estimate"].min(),
            }
            rows.append({"setting": setting, **counts, **changes, "worst change of accuracy": part["worth"].min()})
    table = pd.DataFrame(rows, columns=["setting", *VERDICTS, *AGREEMENT])
    order = [*VERDICTS[:1], "smallest change of AUC", "setting"]
    return table.sort_values(order, ascending=[False, True, True], ignore_index=True)


VERDICTS = ["lowers", "no difference", "raises"]
AGREEMENT = ["smallest change of AUC", "largest change of AUC", "worst change of accuracy"]
