"""The answer in a few lines, from the results table alone."""

import dataclasses
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
HIDES = "hides only"  # how notebook 06 notes a defense that changes answers and leaves the model as it is
ANSWERS = "answers only"
APART_IN_04 = ["fault", "tf-privacy", "bank beside tf-privacy"]  # sets that are no settings: a fault, two trainers
SAME_IN_04 = ["from notebook", "promise", "what is shared"]  # say nothing new where all settings are of notebook 05


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


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way of training, or of answering, that was attacked.

    Parameters
    ----------
    source : str
        Notebook that measured it: ``"04"`` or ``"05"``.
    family : str
        What it is drawn with: the features of notebook 05, the kind of defense of notebook 06.
    name : str
    promise : str
        ``"epsilon 4"``, or ``"none"``.
    shared : str
        ``"model"``, or ``"answers only"`` where the defense hides the signal and leaves the model as leaky as it was.
    baseline : bool
        Whether it is its notebook's training without any defense.
    rows : pandas.DataFrame
        What was measured of it: on held-out patients, and by the attacks.
    """

    source: str
    family: str
    name: str
    promise: str
    shared: str
    baseline: bool
    rows: pd.DataFrame

    def words(self):
        """Columns that say in every table which setting this is."""
        return {
            "setting": self.name, "from notebook": self.source, "promise": self.promise, "what is shared": self.shared
        }  # fmt: skip


def settings(table):
    """List every setting with at least one attack against it: those of notebook 05, then those of notebook 06.

    Parameters
    ----------
    table : pandas.DataFrame
        Results with rows of either notebook.

    Returns
    -------
    list of Setting

    Raises
    ------
    ValueError
        When no row of notebook 06 is noted as hiding only: such results would let a leaky model pass.

    Examples
    --------
    >>> from genlib.results import COLUMNS
    >>> settings(pd.DataFrame(columns=COLUMNS))
    []
    """
    return [one for one in [*_trained(table), *_defended(table)] if len(select(one.rows, metric="AUC"))]


def _trained(table):
    rows = select(table, notebook="05_dp_sgd")
    rows = rows[~rows["set"].isin(APART_IN_04)]
    for (features, epsilon), part in rows.groupby(["features", "epsilon"], dropna=False, sort=False):
        promise = "none" if np.isnan(epsilon) else f"epsilon {epsilon:g}"
        baseline = promise == "none" and features == "all genes"
        yield Setting("04", f"04: {features}", f"{features}: {promise}", promise, "model", baseline, part)


def _defended(table):
    rows = select(table, notebook="06_defenses", set=["held-out", "strongest"])
    if len(rows) and not _hides(rows):
        raise ValueError(
            f"no row of 06_defenses is noted '{HIDES}', so nothing tells defenses of the answers from defenses of the "
            "model; these results are older than that note, run the notebook again (./run_all.sh --only 06_defenses)"
        )
    for (defense, features), part in rows.groupby(["defense", "features"], sort=False):
        hides, strength = _hides(part), features.removeprefix("strength ")
        yield Setting(
            source="05",
            family=f"05: {HIDES if hides else 'DP-SGD' if strength.startswith('epsilon ') else 'other training'}",
            name=defense + (f": {strength}" if strength else "") + (f" ({HIDES})" if hides else ""),
            promise=strength if strength.startswith("epsilon ") else "none",
            shared=ANSWERS if hides else "model",
            baseline=defense == "none",
            rows=part,
        )


def _hides(rows):
    return rows["note"].fillna("").str.startswith(HIDES).any()


def best_attack(rows, group="all"):
    """Name the attack with the highest AUC over everybody, among those that were measured on a group.

    Examples
    --------
    >>> rows = pd.DataFrame({"metric": "AUC", "group": "all", "attack": ["a", "b"], "estimate": [0.5, 0.6]})
    >>> best_attack(rows)
    'b'
    """
    measured = list(select(rows, metric="AUC", group=group)["attack"])
    areas = select(rows, metric="AUC", group="all", attack=measured)
    if areas.empty:
        raise LookupError(f"no attack was measured on the group {group!r}")
    return areas.loc[areas["estimate"] == areas["estimate"].max(), "attack"].iloc[0]


def rarest_class(table):
    """Name the class with the fewest patients, from the rows of notebook 01.

    Examples
    --------
    >>> sizes = pd.DataFrame({"group": ["all", "A", "B"], "estimate": [30, 20, 10]})
    >>> rarest_class(sizes.assign(notebook="01_cohort", metric="patients"))
    'B'
    """
    patients = select(table, notebook="01_cohort", metric="patients")
    patients = patients[patients["group"] != "all"]
    if patients.empty:
        raise LookupError("no results of 01_cohort say how many patients a class has; run it first")
    return patients.loc[patients["estimate"].idxmin(), "group"]


def frontier_points(table, x, y, group="all"):
    """Put every setting at a point: a utility, a risk, both with intervals, and whether it is on the frontier.

    A setting is beaten by another that is worth as much or more and gives away as little or less, one of both strictly.
    What shares its answers only does not beat what shares the model. What could not be measured is not on the frontier
    and beats nothing.

    Parameters
    ----------
    table : pandas.DataFrame
        Results with rows of notebooks 05 and 06.
    x, y : str
        Metrics: a utility of held-out patients (more is better) and an attack's (less is better). For each setting the
        attack with the highest AUC over everybody counts, among those that were measured on the group.
    group : str
        Whose: ``"all"`` or a class.

    Returns
    -------
    pandas.DataFrame
        Columns as `Setting.words`, then family, baseline, attack, defense, x, x_low, x_high, y, y_low, y_high,
        frontier, and for the figure label and labeled: those on the frontier and the undefended ones. Rows as in
        `settings_table`.

    Examples
    --------
    >>> from genlib.results import COLUMNS
    >>> frontier_points(pd.DataFrame(columns=COLUMNS), "accuracy", "AUC").empty
    True
    """
    points = []
    for setting in settings(table):
        attack = best_attack(setting.rows, group)
        point = {**setting.words(), "family": setting.family, "baseline": setting.baseline, "attack": attack}
        point["defense"] = setting.rows["defense"].iloc[0]
        worth = one(setting.rows, metric=x, group=group, set="held-out")
        risk = one(setting.rows, metric=y, group=group, attack=attack)
        for axis, row in (("x", worth), ("y", risk)):
            point |= {axis: row["estimate"], f"{axis}_low": row["low"], f"{axis}_high": row["high"]}
        points.append(point)
    for point in points:
        measured = np.isfinite([point["x"], point["y"]]).all()
        point["frontier"] = bool(measured) and not any(_beats(other, point) for other in points)
        point["labeled"] = point["frontier"] or point["baseline"]
        point["label"] = f"{point['setting']} ({point['from notebook']})"
    return pd.DataFrame(points)


def _beats(one, other):
    as_good = one["x"] >= other["x"] and one["y"] <= other["y"]
    as_open = one["what is shared"] != ANSWERS or other["what is shared"] == ANSWERS
    return as_good and as_open and (one["x"], one["y"]) != (other["x"], other["y"])


def baselines(table, rarest):
    """Put the undefended trainings of notebooks 05 and 06 side by side: they differ in members, not in recipe.

    Parameters
    ----------
    table : pandas.DataFrame
        Results with rows of notebooks 05 and 06.
    rarest : str
        Class whose recall is shown.

    Returns
    -------
    pandas.DataFrame
        One row a notebook: how many members and models, what they are worth and give away.

    Examples
    --------
    >>> from genlib.results import COLUMNS
    >>> baselines(pd.DataFrame(columns=COLUMNS), "A").empty
    True
    """
    rows = []
    for setting in settings(table):
        if setting.baseline:
            held_out = select(setting.rows, set="held-out")
            worth, attack = one(held_out, metric="balanced accuracy"), best_attack(setting.rows)
            risk = select(setting.rows, group="all", attack=attack)
            row = {"setting": setting.name, "from notebook": setting.source, "models": worth["n_models"]}
            row["patients judged"], row["members of a model, about"] = worth["n_patients"], worth["n_patients"] // 2
            row["balanced accuracy"] = percent(worth)
            row[f"recall of {rarest}"] = percent(one(held_out, metric="recall", group=rarest))
            row |= {"best attack": attack, "attack AUC": plain(one(risk, metric="AUC"))}
            rows.append(row | {METRICS["TPR at FPR 0.01"]: percent(one(risk, metric="TPR at FPR 0.01"))})
    return pd.DataFrame(rows)


def exposure_table(table, group):
    """Say for every setting what it is worth to one class and how many of its members are recognized.

    Parameters
    ----------
    table : pandas.DataFrame
        Results with rows of notebooks 05 and 06.
    group : str
        A class.

    Returns
    -------
    pandas.DataFrame
        Columns as `Setting.words`, then recall, attack, members recognized (at the threshold that accuses 1 in 100 of
        all non-members; "not measurable" where that rests on too few patients) and AUC within the class.

    Examples
    --------
    >>> from genlib.results import COLUMNS
    >>> exposure_table(pd.DataFrame(columns=COLUMNS), "A").empty
    True
    """
    rows = []
    for setting in settings(table):
        attack = best_attack(setting.rows, group)
        risk = select(setting.rows, group=group, attack=attack)
        recall = one(setting.rows, metric="recall", group=group, set="held-out")
        row = {**setting.words(), f"recall of {group}": percent(recall), "attack": attack}
        row["members recognized"] = percent(one(risk, metric="TPR at the global threshold, FPR 0.01"))
        rows.append({**row, "AUC within the class": plain(one(risk, metric="AUC"))})
    return pd.DataFrame(rows)


def decision_table(table, tolerance, rarest, metric="TPR at FPR 0.01"):
    """Say for every setting whether it stays within a tolerance, the most useful settings first.

    A setting passes when the upper end of the interval of the best attack's rate is at most the tolerance. A defense of
    the answers passes for answers only, never for the model.

    Parameters
    ----------
    table : pandas.DataFrame
        Results with rows of notebooks 05 and 06.
    tolerance : float
        Largest share of members that may be recognized.
    rarest : str
        Class whose recall is shown.
    metric : str
        The rate that is held against the tolerance.

    Returns
    -------
    pandas.DataFrame
        Columns as `Setting.words`, then balanced accuracy, recall of the rarest class, members recognized of 100, and
        passes ("yes", "for answers only", "no" or "not measurable").

    Examples
    --------
    >>> from genlib.results import COLUMNS
    >>> decision_table(pd.DataFrame(columns=COLUMNS), 0.03, "A").empty
    True
    """
    rows = []
    for setting in settings(table):
        worth = one(setting.rows, metric="balanced accuracy", group="all", set="held-out")
        recall = one(setting.rows, metric="recall", group=rarest, set="held-out")
        found = one(setting.rows, metric=metric, group="all", attack=best_attack(setting.rows))
        row = {**setting.words(), "balanced accuracy": percent(worth), f"recall of {rarest}": percent(recall)}
        row["members recognized of 100"] = plain({key: 100 * found[key] for key in ("estimate", "low", "high")}, 1)
        rows.append({**row, "passes": _verdict(found, tolerance, setting.shared), "worth": worth["estimate"]})
    if not rows:
        return pd.DataFrame()
    # By name among equals: how pandas orders ties of one column depends on the processor.
    order = ["worth", "setting", "from notebook"]
    return pd.DataFrame(rows).sort_values(order, ascending=[False, True, True], ignore_index=True).drop(columns="worth")


def _verdict(found, tolerance, shared):
    if not np.isfinite([found["estimate"], found["high"]]).all():
        return "not measurable"
    if found["high"] > tolerance:
        return "no"
    return "for answers only" if shared == ANSWERS else "yes"


def by_setting(table, metric):
    """Keep one metric over everybody, and name each row by its defense and strength in a column `setting`.

    Examples
    --------
    >>> row = {"metric": "AUC", "group": "all", "defense": "L2", "features": "strength 0.1", "estimate": 0.6}
    >>> by_setting(pd.DataFrame([row]), "AUC")["setting"].tolist()
    ['L2: 0.1']
    """
    rows = select(table, metric=metric, group="all")
    return rows.assign(setting=rows["defense"] + rows["features"].str.replace("strength ", ": ", regex=False))


def defenses_table(utility, risk, controls, seconds, group="all"):
    """Put every setting of notebook 06 into one row: what it is worth, what the strongest attack finds, what it took.

    Parameters
    ----------
    utility, risk, controls : pandas.DataFrame
        Rows with the columns defense and features; of `risk` one attack a setting.
    seconds : dict of (str, str) to float
        Time of training, by defense and strength.
    group : str
        ``"all"``, or a class whose recall and members found are shown instead.

    Returns
    -------
    pandas.DataFrame
        Numbers with intervals in words.

    Examples
    --------
    >>> defenses_table(*[pd.DataFrame(columns=["defense", "features", "group"])] * 3, {}).empty
    True
    """
    everybody = group == "all"
    lines = []
    for (defense, features), worth in select(utility, group=group).groupby(["defense", "features"], sort=False):
        strength = features.removeprefix("strength ")
        attack = select(risk, group=group, defense=defense, features=features)
        named = "TPR at FPR 0.01" if everybody else "TPR at the global threshold, FPR 0.01"
        line = {"defense": defense, "strength": strength}
        if everybody:
            line["accuracy"] = percent(one(worth, metric="accuracy"))
            line["balanced accuracy"] = percent(one(worth, metric="balanced accuracy"))
            line["calibration error"] = f"{one(worth, metric='calibration error')['estimate']:.2f}"
        else:
            line["recall"] = percent(one(worth, metric="recall"))
        line["attack AUC"] = plain(one(attack, metric="AUC"))
        line["found at 1 % FPR"] = percent(one(attack, metric=named))
        line["best attack"] = attack["attack"].iloc[0]
        line["control AUC"] = plain(one(controls, metric="AUC", defense=defense, features=features))
        line["training s"] = f"{seconds[defense, strength]:.1f}" if (defense, strength) in seconds else ""
        lines.append(line)
    return pd.DataFrame(lines)


def takeaway(text):
    """Show the one sentence that a section ends with.

    Examples
    --------
    >>> takeaway("half of the members were found.")
    <IPython.core.display.Markdown object>
    """
    display(Markdown(f"**Takeaway:** {text}"))


def settings_table(table):
    """Put every setting into one row: what it is worth and what the best attack finds.

    For each setting the attack with the highest AUC counts: an attacker picks the best one. Its interval is not
    corrected for that choice.

    Parameters
    ----------
    table : pandas.DataFrame
        Results with rows of notebook 05, 06, or both.

    Returns
    -------
    pandas.DataFrame
        Columns as `Setting.words`, then attack, and one column a metric, with intervals in words.

    Examples
    --------
    >>> from genlib.results import COLUMNS
    >>> settings_table(pd.DataFrame(columns=COLUMNS)).empty
    True
    """
    rows = []
    for setting in settings(table):
        whole = select(setting.rows, group="all")
        attack = best_attack(whole)
        row = {**setting.words(), "best attack": attack}
        for metric in ("accuracy", "balanced accuracy"):
            row[METRICS[metric]] = percent(one(whole, metric=metric, set="held-out"))
        row["attack AUC"] = plain(one(whole, metric="AUC", attack=attack))
        for metric in ("TPR at FPR 0.1", "TPR at FPR 0.01"):
            row[METRICS[metric]] = percent(one(whole, metric=metric, attack=attack))
        rows.append(row)
    return pd.DataFrame(rows)


def summary(table):
    """Say the answer of a run in a short table, for the end of ``run_all.sh``: the settings of notebook 05.

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
    'No results of 05_dp_sgd yet; run it for the summary.'
    """
    trained = settings_table(select(table, notebook="05_dp_sgd"))
    if trained.empty:
        return "No results of 05_dp_sgd yet; run it for the summary."
    head = "What a classifier is worth to held-out patients, and what the best of the attacks finds (95 % intervals):"
    return head + "\n" + trained.drop(columns=SAME_IN_04).to_string(index=False)


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
    for name, part in (("results", _answer(table, run_folder)), ("notebooks", _notebooks(timings, run_folder))):
        marks = re.compile(rf"(<!-- {name}:.*?-->\n).*?(<!-- end of {name} -->)", re.S)
        text = marks.sub(lambda found, part=part: f"{found[1]}{part}\n{found[2]}", text)
    return text


def _answer(table, run_folder):
    held_out = select(table, notebook="02_target_model", set="held-out")
    attacks = select(table, notebook="03_answers", threat_model=["auditor", "no shadow models"], set="")
    lira, loss = (one(attacks, attack=a, group="all", metric="TPR at FPR 0.01") for a in ("LiRA", "loss threshold"))
    areas = [plain(one(attacks, attack=a, group="all", metric="AUC")) for a in ("LiRA", "loss threshold")]
    classes = select(attacks, attack="LiRA", metric="TPR at the global threshold, FPR 0.01")
    exposed = classes.loc[classes["estimate"].idxmax()]
    blind = one(attacks, attack="loss threshold", group=exposed["group"], metric=exposed["metric"])
    trained = settings_table(select(table, notebook="05_dp_sgd"))
    private = trained[trained["promise"] != "none"]
    # Epsilon 1, where many would call a promise strong, or what comes next to it.
    quoted = min(private["promise"], key=lambda promise: abs(np.log(float(promise.removeprefix("epsilon ")))))
    strict = private[private["promise"] == quoted].to_dict("records")
    on = [row["setting"].removesuffix(f": {quoted}") for row in strict]
    prices = ", ".join(f"{row['balanced accuracy']} on {name}" for name, row in zip(on, strict, strict=True))
    left = ", ".join(f"{row['attack AUC']} on {name}" for name, row in zip(on, strict, strict=True))
    audited = select(table, notebook="07_audit", attack="audit, many runs").groupby("defense")["estimate"].max()
    refuted = audited > select(table, notebook="07_audit")["epsilon"].max()
    faults = refuted.index.str.startswith("FAULT")
    text = (
        f"On {held_out['n_patients'].max()} patients ({table['cohort'].iloc[0]}), a deep classifier names the subtype "
        f"of {percent(one(held_out, metric='accuracy'))} of held-out patients right; counting every class alike, "
        f"{percent(one(held_out, metric='balanced accuracy'))}. An attacker who uses one threshold on the loss finds "
        f"{percent(loss, 1)} of its members at 1 false accusation in 100 (AUC {areas[1]}; 0.5 is guessing). One who "
        f"trains models of the same kind and asks how the target treats this very patient (LiRA) finds {percent(lira)} "
        f"(AUC {areas[0]}), and {percent(exposed)} of the members of {exposed['group']} ({exposed['n_patients']} "
        f"patients), of whom the loss threshold finds {percent(blind)}. "
        f"Trained with differential privacy at {quoted}, balanced accuracy is {prices}, and the "
        f"best attack that was run there is left with an AUC of {left}. An audit of the training accuses "
        f"{refuted[~faults].sum()} of {(~faults).sum()} correct runs and exposes {refuted[faults].sum()} of "
        f"{faults.sum()} faults that were planted on purpose. In brackets: 95 % intervals over patients and pairs of "
        "models."
    )
    figures = {
        "Members found at 1 % false accusations, by class": "3c_by_class",
        "Balanced accuracy against attack AUC for every setting": "8a_trade_off",
    }
    figure = "\n\n".join(f"![{words}]({run_folder}/figures/{name}.svg)" for words, name in figures.items())
    shown = trained.drop(columns=SAME_IN_04)
    head = "| " + " | ".join(shown.columns) + " |\n|" + "---|" * len(shown.columns)
    rows = "\n".join("| " + " | ".join(row) + " |" for row in shown.astype(str).to_numpy())
    return f"{text}\n\n{figure}\n\n{head}\n{rows}\n"


QUESTIONS = {
    "01_cohort": "Who are the patients, what does the data look like, how to put in another tumor type",
    "02_target_model": "How well does a deep subtype classifier do, and how far does it overfit",
    "03_answers": "Who can be recognized, by which attack, in which subtype",
    "05_dp_sgd": "What does DP-SGD buy and cost at each epsilon, on all genes and on a public panel",
    "06_defenses": "What the other defenses buy and cost under the same attacks",
    "07_audit": "Does the training really give the epsilon it claims, and would the audit notice if not",
    "08_tradeoff": "The privacy-utility frontier, who pays, and what to release",
    "11_cost": "What all this costs in time and memory, beside the alternatives",
    "10_across_cohorts": "What holds over several tumor types",
    "12_sharp_edges": "Where the tools go wrong without a word, each with a reproduction",
}
COMMANDS = {
    "11_cost": "`./run_all.sh cost`",
    "10_across_cohorts": "`./run_all.sh --cohort A,B`",
    "12_sharp_edges": "`./run_all.sh sharp-edges`",
}


def _notebooks(timings, run_folder):
    rows = []
    for name, question in QUESTIONS.items():
        executed = run_folder / f"{name}.ipynb"
        shown = f"[`{name}`]({executed if executed.exists() else f'notebooks/{name}.ipynb'})"
        rows.append(f"| {shown} | {question} | {COMMANDS[name] if name in COMMANDS else f'{timings[name]:.0f} s'} |")
    head = "| notebook, as it ran | question | time (quick, 2 processor cores), or a command of its own |"
    return "\n".join([head, "|---|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    target = pathlib.Path(sys.argv[1])
    with results.atomic_path(target) as part:
        part.write_text(readme(target.read_text(), sys.argv[2]))
