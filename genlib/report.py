"""The answer in a few lines, from the results table alone."""

import pathlib
import re
import sys

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from genlib import results

METRICS = {
    "accuracy": "accuracy",
    "balanced accuracy": "balanced accuracy",
    "AUC": "attack AUC",
    "TPR at FPR 0.1": "found at 10 % FPR",
    "TPR at FPR 0.01": "found at 1 % FPR",
}


def percent(row, digits=0):
    """Write a rate with its interval in percent, or say that it could not be measured.

    Parameters
    ----------
    row : mapping
        With estimate, low and high as shares.
    digits : int

    Returns
    -------
    str

    Examples
    --------
    >>> percent({"estimate": 0.614, "low": 0.58, "high": 0.65})
    '61 % (58 to 65)'
    >>> percent({"estimate": float("nan"), "low": 0, "high": 0})
    'not measurable'
    """
    if not np.isfinite(row["estimate"]):
        return "not measurable"
    estimate, low, high = (100 * row[name] for name in ("estimate", "low", "high"))
    return f"{estimate:.{digits}f} % ({low:.{digits}f} to {high:.{digits}f})"


def plain(row, digits=2):
    """Write a number with its interval, or say that it could not be measured.

    Examples
    --------
    >>> plain({"estimate": 0.614, "low": 0.58, "high": 0.65})
    '0.61 (0.58 to 0.65)'
    """
    if not np.isfinite(row["estimate"]):
        return "not measurable"
    return f"{row['estimate']:.{digits}f} ({row['low']:.{digits}f} to {row['high']:.{digits}f})"


def one(table, **where):
    """Pick the one row of a results table that fits.

    Parameters
    ----------
    table : pandas.DataFrame
        Results as `genlib.results.load` gives them.
    **where
        Column to value; ``epsilon=None`` asks for rows without privacy.

    Returns
    -------
    pandas.Series

    Raises
    ------
    LookupError
        When no row fits, or more than one.

    Examples
    --------
    >>> table = pd.DataFrame({"metric": ["AUC", "accuracy"], "estimate": [0.6, 0.9]})
    >>> one(table, metric="accuracy").estimate
    0.9
    """
    found = select(table, **where)
    if len(found) != 1:
        raise LookupError(f"{len(found)} rows of the results fit {where}; there must be one")
    return found.iloc[0]


def select(table, **where):
    """Pick the rows of a results table that fit; a list of values means any of them.

    Examples
    --------
    >>> len(select(pd.DataFrame({"metric": ["AUC", "accuracy"]}), metric=["AUC", "accuracy"]))
    2
    """
    for column, value in where.items():
        if value is None:
            table = table[table[column].isna()]
        else:
            table = table[table[column].isin(value if isinstance(value, (list, tuple)) else [value])]
    return table


def _settings(table):
    """Settings of training with at least one attack against them: features, epsilon in words, their rows."""
    trained = select(table, notebook="04_dp_sgd")
    trained = trained[trained["set"] != "fault"]
    for (features, epsilon), part in trained.groupby(["features", "epsilon"], dropna=False, sort=False):
        if len(select(part, metric="AUC")):
            yield features, "none" if np.isnan(epsilon) else f"{epsilon:g}", part


def best_attack(rows):
    """Name the attack with the highest AUC over everybody.

    Examples
    --------
    >>> rows = pd.DataFrame({"metric": "AUC", "group": "all", "attack": ["a", "b"], "estimate": [0.5, 0.6]})
    >>> best_attack(rows)
    'b'
    """
    areas = select(rows, metric="AUC", group="all")
    return areas.loc[areas["estimate"] == areas["estimate"].max(), "attack"].iloc[0]


def frontier_points(table, x, y, group="all", attack=None):
    """Put every setting at a point: a utility, a risk, both with intervals, and whether another beats it on both.

    Parameters
    ----------
    table : pandas.DataFrame
        Results with rows of notebook 04.
    x, y : str
        Metrics: a utility of held-out patients (more is better) and an attack's (less is better).
    group : str
        Whose: ``"all"`` or a class.
    attack : str, optional
        One attack; by default, for each setting, that with the highest AUC over everybody.

    Returns
    -------
    pandas.DataFrame
        Columns features, label (epsilon or "none"), x, x_low, x_high, y, y_low, y_high, dominated.

    Examples
    --------
    >>> from genlib.results import COLUMNS
    >>> frontier_points(pd.DataFrame(columns=COLUMNS), "accuracy", "AUC").empty
    True
    """
    points = []
    for features, epsilon, part in _settings(table):
        worth = one(part, metric=x, group=group, set="held-out")
        risk = one(part, metric=y, group=group, attack=attack or best_attack(part))
        point = {"features": features, "label": epsilon, "x": worth["estimate"], "y": risk["estimate"]}
        for axis, row in (("x", worth), ("y", risk)):
            point |= {f"{axis}_low": row["low"], f"{axis}_high": row["high"]}
        points.append(point)
    for point in points:
        point["dominated"] = any(
            other["x"] >= point["x"]
            and other["y"] <= point["y"]
            and (other["x"], other["y"]) != (point["x"], point["y"])
            for other in points
        )
    return pd.DataFrame(points)


def decision_table(table, tolerance, metric="TPR at FPR 0.1"):
    """Say for every setting whether it stays within a tolerance, the most useful settings first.

    A setting passes when the upper end of the interval of the best attack's rate is at most the tolerance.

    Parameters
    ----------
    table : pandas.DataFrame
        Results with rows of notebook 04.
    tolerance : float
        Largest share of members that may be found.
    metric : str
        The rate that is held against it.

    Returns
    -------
    pandas.DataFrame
        Columns features, epsilon, balanced accuracy, members found, passes ("yes", "no" or "not measurable").

    Examples
    --------
    >>> from genlib.results import COLUMNS
    >>> decision_table(pd.DataFrame(columns=COLUMNS), 0.1).empty
    True
    """
    rows = []
    for features, epsilon, part in _settings(table):
        worth = one(part, metric="balanced accuracy", group="all", set="held-out")
        found = one(part, metric=metric, group="all", attack=best_attack(part))
        verdict = "not measurable" if not np.isfinite(found["high"]) else "yes" if found["high"] <= tolerance else "no"
        row = {"features": features, "epsilon": epsilon, "balanced accuracy": percent(worth)}
        rows.append({**row, "members found": percent(found), "passes": verdict, "worth": worth["estimate"]})
    if not rows:
        return pd.DataFrame()
    return pd.DataFrame(rows).sort_values("worth", ascending=False, ignore_index=True).drop(columns="worth")


def takeaway(text):
    """Show the one sentence that a section ends with.

    Examples
    --------
    >>> takeaway("half of the members were found.")
    <IPython.core.display.Markdown object>
    """
    display(Markdown(f"**Takeaway:** {text}"))


def settings_table(table):
    """Put every setting of training into one row: what it is worth and what the best attack finds.

    For each setting the attack with the highest AUC counts: an attacker picks the best one. Its interval is not
    corrected for that choice.

    Parameters
    ----------
    table : pandas.DataFrame
        Results with rows of notebook 04.

    Returns
    -------
    pandas.DataFrame
        Columns features, epsilon (text), attack, and one column a metric, with intervals in words.

    Examples
    --------
    >>> from genlib.results import COLUMNS
    >>> settings_table(pd.DataFrame(columns=COLUMNS)).empty
    True
    """
    rows = []
    for features, epsilon, part in _settings(table):
        whole = select(part, group="all")
        attack = best_attack(whole)
        row = {"features": features, "epsilon": epsilon, "best attack": attack}
        for metric in ("accuracy", "balanced accuracy"):
            row[METRICS[metric]] = percent(one(whole, metric=metric, set="held-out"))
        row["attack AUC"] = plain(one(whole, metric="AUC", attack=attack))
        for metric in ("TPR at FPR 0.1", "TPR at FPR 0.01"):
            row[METRICS[metric]] = percent(one(whole, metric=metric, attack=attack))
        rows.append(row)
    return pd.DataFrame(rows)


def summary(table):
    """Say the answer of a run in a short table, for the end of ``run_all.sh``.

    Parameters
    ----------
    table : pandas.DataFrame
        All results of the run.

    Returns
    -------
    str

    Examples
    --------
    >>> from genlib.results import COLUMNS
    >>> summary(pd.DataFrame(columns=COLUMNS))
    'No results of 04_dp_sgd yet; run it for the summary.'
    """
    settings = settings_table(table)
    if settings.empty:
        return "No results of 04_dp_sgd yet; run it for the summary."
    head = "What a classifier is worth to held-out patients, and what the best of the attacks finds (95 % intervals):"
    return head + "\n" + settings.to_string(index=False)


def readme(text, run_folder):
    """Put the answer of a run into a README, between its marks.

    Parameters
    ----------
    text : str
        README with the marks ``<!-- results ... -->`` to ``<!-- end of results -->``, and the same for notebooks.
    run_folder : path-like
        Folder of the run, with results, timings and manifest.

    Returns
    -------
    str
        The README with figure, sentences and tables of this run.

    Raises
    ------
    FileNotFoundError
        When the run is not complete.

    Examples
    --------
    >>> readme("", "no-such-run")
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] No such file or directory: ...
    """
    run_folder = pathlib.Path(run_folder)
    table = results.read(run_folder / "results.csv")
    timings = pd.read_csv(run_folder / "timings.csv").set_index("notebook")["seconds"]
    for name, part in (("results", _answer(table, run_folder)), ("notebooks", _notebooks(timings))):
        marks = re.compile(rf"(<!-- {name}:.*?-->\n).*?(<!-- end of {name} -->)", re.S)
        text = marks.sub(lambda found, part=part: f"{found[1]}{part}\n{found[2]}", text)
    return text


def _answer(table, run_folder):
    held_out = select(table, notebook="02_target_model", set="held-out")
    attacks = select(table, notebook="03_membership_attacks", threat_model=["auditor", "no shadow models"], set="")
    lira, loss = (one(attacks, attack=a, group="all", metric="TPR at FPR 0.01") for a in ("LiRA", "loss threshold"))
    areas = [plain(one(attacks, attack=a, group="all", metric="AUC")) for a in ("LiRA", "loss threshold")]
    classes = select(attacks, attack="LiRA", metric="TPR at the global threshold, FPR 0.01")
    exposed = classes.loc[classes["estimate"].idxmax()]
    blind = one(attacks, attack="loss threshold", group=exposed["group"], metric=exposed["metric"])
    settings = settings_table(table)
    private = settings[settings["epsilon"] != "none"]
    # Epsilon 1, where many would call a promise strong, or what comes next to it.
    quoted = min(private["epsilon"], key=lambda epsilon: abs(np.log(float(epsilon))))
    strict = private[private["epsilon"] == quoted].to_dict("records")
    prices = ", ".join(f"{row['balanced accuracy']} on {row['features']}" for row in strict)
    left = ", ".join(f"{row['attack AUC']} on {row['features']}" for row in strict)
    audited = select(table, notebook="06_audit", attack="audit, many runs").groupby("defense")["estimate"].max()
    refuted = audited > select(table, notebook="06_audit")["epsilon"].max()
    faults = refuted.index.str.startswith("FAULT")
    text = (
        f"On {held_out['n_patients'].max()} patients ({table['cohort'].iloc[0]}), a deep classifier names the subtype "
        f"of {percent(one(held_out, metric='accuracy'))} of held-out patients right; counting every class alike, "
        f"{percent(one(held_out, metric='balanced accuracy'))}. An attacker who uses one threshold on the loss finds "
        f"{percent(loss, 1)} of its members at 1 false accusation in 100 (AUC {areas[1]}; 0.5 is guessing). One who "
        f"trains models of the same kind and asks how the target treats this very patient (LiRA) finds {percent(lira)} "
        f"(AUC {areas[0]}), and {percent(exposed)} of the members of {exposed['group']} ({exposed['n_patients']} "
        f"patients), of whom the loss threshold finds {percent(blind)}. "
        f"Trained with differential privacy at epsilon {strict[0]['epsilon']}, balanced accuracy is {prices}, and the "
        f"best attack that was run there is left with an AUC of {left}. An audit of the training accuses "
        f"{refuted[~faults].sum()} of {(~faults).sum()} correct runs and exposes {refuted[faults].sum()} of "
        f"{faults.sum()} faults that were planted on purpose. In brackets: 95 % intervals over patients and pairs of "
        "models."
    )
    figures = {
        "Members found at 1 % false accusations, by class": "3c_by_class",
        "Balanced accuracy against attack AUC for every setting": "7a_trade_off",
    }
    figure = "\n\n".join(f"![{words}]({run_folder}/figures/{name}.svg)" for words, name in figures.items())
    head = "| " + " | ".join(settings.columns) + " |\n|" + "---|" * len(settings.columns)
    rows = "\n".join("| " + " | ".join(row) + " |" for row in settings.astype(str).to_numpy())
    return f"{text}\n\n{figure}\n\n{head}\n{rows}\n"


QUESTIONS = {
    "01_cohort": "Who are the patients, what does the data look like, how to put in another tumor type",
    "02_target_model": "How well does a deep subtype classifier do, and how far does it overfit",
    "03_membership_attacks": "Who can be recognized, by which attack, in which subtype",
    "04_dp_sgd": "What does DP-SGD buy and cost at each epsilon, on all genes and on a public panel",
    "05_defenses": "What the other defenses buy and cost under the same attacks",
    "06_audit": "Does the training really give the epsilon it claims, and would the audit notice if not",
    "07_tradeoff": "The privacy-utility frontier, who pays, and what to release",
}


def _notebooks(timings):
    rows = [f"| `{name}` | {question} | {timings[name]:.0f} s |" for name, question in QUESTIONS.items()]
    return "\n".join(["| notebook | question | time (quick, 2 processor cores) |", "|---|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    target = pathlib.Path(sys.argv[1])
    with results.atomic_path(target) as part:
        part.write_text(readme(target.read_text(), sys.argv[2]))
