"""Results in words: tables for readers, and the page, the card and the README's answer of a run."""

import json
import pathlib
import re
import sys

import jinja2
import nbconvert
import nbformat
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from genlib import results

GLOBAL = "TPR at the global threshold, FPR 0.01"  # found by one attacker, who has one threshold for all classes
THREAT_MODEL = (
    "Auditor: the attacker holds what is shared, the profile and the class of the patient in question, and models "
    "trained by the same recipe on random halves of the same cohort. This is the worst case that a data custodian "
    "should assume."
)
NOT_COVERED = [
    "the released model itself: measured were models of a study, whose weights must not leave",
    "attacks stronger than those that were run: without a proven bound, read every measured risk as 'at least'",
    "the choice of this setting among many, made on the same patients: the best of many is flattered",
    "other data about the same patients, and relatives",
]
COMMANDS = {
    "10_across_cohorts": "`./run_all.sh --cohort A,B`",
    "11_cost": "`./run_all.sh cost`",
    "12_sharp_edges": "`./run_all.sh sharp-edges`",
    "your_model": "`./run_all.sh judge`",
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
    estimate, low, high = (100 * row[name] for name in results.INTERVAL)
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


def takeaway(text):
    """Show the one sentence that a section ends with.

    Examples
    --------
    >>> takeaway("half of the members were found.")
    <IPython.core.display.Markdown object>
    """
    display(Markdown(f"**Takeaway:** {text}"))


def _interval(row, kind):
    """Estimate, low and high of the utility or the risk of a setting."""
    return {"estimate": row[kind], "low": row[f"{kind}_low"], "high": row[f"{kind}_high"]}


def rarest_class(table):
    """Name the class with the fewest patients, from the rows of notebook 01.

    Examples
    --------
    >>> sizes = pd.DataFrame({"group": ["all", "A", "B"], "estimate": [30, 20, 10]})
    >>> rarest_class(sizes.assign(notebook="01_cohort", metric="patients"))
    'B'
    """
    sizes = class_sizes(table)
    if sizes.empty:
        raise LookupError("no results of 01_cohort say how many patients a class has; run it first")
    return sizes.idxmin()


def class_sizes(table):
    """Patients of every class, from the rows of notebook 01."""
    patients = results.select(table, notebook="01_cohort", metric="patients")
    return patients[patients["group"] != "all"].set_index("group")["estimate"].astype(int)


def settings_table(table, group="all"):
    """Put every setting into one row in words, first the classifiers that no patient trained.

    Parameters
    ----------
    table : pandas.DataFrame
        Results of a run, or of one notebook.
    group : str
        ``"all"`` or a class: then recall stands for balanced accuracy, and members and non-members are of that class.

    Returns
    -------
    pandas.DataFrame
        Columns setting, the utility, members found (at 1 % of the group's own non-members accused, by the attack that
        finds most), attack, AUC (the highest).

    Examples
    --------
    >>> settings_table(pd.DataFrame(columns=results.COLUMNS)).empty
    True
    """
    utility = "balanced accuracy" if group == "all" else "recall"
    found = results.settings(table, utility, group=group)
    areas = results.settings(table, utility, "AUC", group).set_index("setting")
    rows = [
        {"setting": row["network"], utility: percent(row), "members found": "no patient trains it"}
        for row in results.baselines(table, utility, group).to_dict("records")
    ]
    for row in found.to_dict("records"):
        line = {"setting": row["setting"], utility: percent(_interval(row, "utility"))}
        line |= {"members found": percent(_interval(row, "risk")), "attack": row["attack"]}
        rows.append(line | {"AUC": plain(_interval(areas.loc[row["setting"]], "risk"))})
    return pd.DataFrame(rows).fillna("")


def decision_table(table, tolerance=0.03, floor=0.5):
    """Say in words of every setting whether its answers and its model may be shared; see `genlib.results.decisions`.

    Examples
    --------
    >>> decision_table(pd.DataFrame(columns=results.COLUMNS)).empty
    True
    """
    rows = []
    for row in results.baselines(table).to_dict("records"):
        enough = "passes" if row["high"] >= floor else "fails"
        why = "no patient trains it" + ("" if enough == "passes" else f"; balanced accuracy below {100 * floor:.0f} %")
        line = {"setting": row["network"], "balanced accuracy": percent(row), "members found": "none"}
        rows.append(line | {"its answers": enough, "the model": enough, "why": why})
    for row in results.decisions(table, tolerance, floor).to_dict("records"):
        line = {"setting": row["setting"], "balanced accuracy": percent(_interval(row, "utility"))}
        line |= {"members found": percent(_interval(row, "risk"), 1), "its answers": row["answers"]}
        rows.append(line | {"the model": row["model"], "why": row["why"]})
    return pd.DataFrame(rows)


def class_table(table):
    """Say for every class how many patients it has, how well they are classified, and how many members are found.

    Parameters
    ----------
    table : pandas.DataFrame
        Results with notebooks 01 to 03.

    Returns
    -------
    pandas.DataFrame
        One row a class, rates in words: found by one threshold for everybody, beside the share of the class's own
        non-members that it accuses.

    Examples
    --------
    >>> class_table(pd.DataFrame(columns=results.COLUMNS)).empty
    True
    """
    answers = results.select(table, notebook="03_answers", control="", attacker=["auditor", "no shadow models"])
    useful = results.select(table, notebook="02_target_model", metric="recall", trainer="bank")
    rows = []
    for name, size in class_sizes(table).items():
        of_class = results.select(answers, group=name)
        line = {"class": name, "patients": size}
        line["recall"] = percent(results.one(useful, group=name))
        for attack in ("loss threshold", "LiRA"):
            line[f"found by {attack}"] = percent(results.one(of_class, attack=attack, metric=GLOBAL))
        accused = results.one(of_class, attack="LiRA", metric=GLOBAL.replace("TPR", "FPR"))
        line |= {"its non-members accused by LiRA": percent(accused, 1)}
        rows.append(line | {"AUC of LiRA": plain(results.one(of_class, attack="LiRA", metric="AUC"))})
    return pd.DataFrame(rows)


def answer(table, tolerance=0.03, floor=0.5):
    """Answer the study's question in a few sentences: how useful, how leaky, for whom, and what may be shared.

    Parameters
    ----------
    table : pandas.DataFrame
        Results of a run.
    tolerance, floor : float
        As in `genlib.results.decisions`.

    Returns
    -------
    list of str

    Raises
    ------
    LookupError
        When a notebook that this needs has not been run.

    Examples
    --------
    >>> answer(pd.DataFrame(columns=results.COLUMNS))
    Traceback (most recent call last):
    LookupError: 0 rows of the results fit ...
    """
    useful = results.select(table, notebook="02_target_model", trainer="bank", group="all", metric="balanced accuracy")
    useful = results.one(useful)
    free = " and ".join(f"{row['network']} {percent(row)}" for row in results.baselines(table).to_dict("records"))
    answers = results.select(table, notebook="03_answers", control="", attacker=["auditor", "no shadow models"])
    overall = results.select(answers, group="all", metric=results.FOUND)
    lira, loss = (results.one(overall, attack=name) for name in ("LiRA", "loss threshold"))
    of_weights = results.select(table, notebook="04_weights", network=useful["network"], start="random", control="")
    of_weights = results.select(of_weights, attacker="no shadow models", attack="span")
    classes = pd.concat(
        [results.select(answers, attack="LiRA", metric=GLOBAL), results.select(of_weights, metric=GLOBAL)]
    )
    classes = classes.dropna(subset=["estimate"])
    sentences = [
        f"The undefended {useful['network']} has a balanced accuracy of {percent(useful)} on {useful['n_patients']} "
        f"patients; classifiers that no patient trained: {free}.",
        f"Where 1 non-member in 100 is accused, one threshold on the loss finds {percent(loss, 1)} of its members; an "
        f"attacker with models of their own (LiRA) finds {percent(lira)}.",
    ]
    span = results.select(of_weights, group="all", metric=results.FOUND)
    if len(span):
        sentences.append(
            f"Who holds the model itself and no other reads {percent(span.iloc[0])} of them off its weights."
        )
    linear = results.select(table, notebook="02_target_model", network="linear model", metric="balanced accuracy")
    if (linear["estimate"] > useful["high"]).any():
        sentences.append(
            f"A plain linear model has {percent(linear.iloc[0])}: this target did not learn what can be learned, and a "
            "small risk of it says nothing of a better one."
        )
    if len(classes):
        first = classes.loc[classes["estimate"].idxmax()]
        where = "its weights" if first["shared"] == "model" else "its answers"
        found = f"{percent(first)} found by {where}"
        sentences.append(f"Most exposed is {first['group']} ({first['n_patients']} patients): {found}.")
    return [*sentences, *_what_passes(results.decisions(table, tolerance, floor), tolerance, floor)]


def _what_passes(decided, tolerance, floor):
    models = results.select(decided, shared="model")
    if models.empty:
        raise LookupError("no setting of notebooks 05 and 06 was measured")
    counts = models["model"].value_counts().reindex(["passes", "fails", "cannot be told"], fill_value=0)
    said = [
        f"Of {len(models)} ways to train a model {counts['passes']} may be shared (in every class at most "
        f"{100 * tolerance:g} of 100 members found at 1 false accusation in 100, balanced accuracy at least "
        f"{100 * floor:.0f} %), {counts['fails']} may not, and of {counts['cannot be told']} it cannot be told."
    ]
    passing = models[models["model"] == "passes"]
    if len(passing):
        best = passing.iloc[0]
        words = f"The most useful that passes is {best['setting']}, balanced accuracy "
        said.append(f"{words}{percent(_interval(best, 'utility'))} ({best['why']}).")
    return said


def summary(table):
    """Say the answer of a run in a few lines, for the end of the command.

    Examples
    --------
    >>> summary(pd.DataFrame(columns=results.COLUMNS))
    'No answer yet: it needs notebooks 01 to 06.'
    """
    try:
        return "\n".join(answer(table))
    except LookupError:
        return "No answer yet: it needs notebooks 01 to 06."


def card(table, manifest):
    """Put together the privacy-risk card: of the most useful model that passes, or else of the strictest promise.

    Parameters
    ----------
    table : pandas.DataFrame
        Results of a run.
    manifest : dict
        Its manifest.

    Returns
    -------
    dict
        Rates are shares from 0 to 1, each with estimate, low and high (95 %); null where it could not be measured.

    Raises
    ------
    LookupError
        When notebooks 01 and 05 have not been run.

    Examples
    --------
    >>> card(pd.DataFrame(columns=results.COLUMNS), {})
    Traceback (most recent call last):
    LookupError: a card needs the results of notebooks 01 and 05; run them first ...
    """
    chosen = manifest.get("run", {}).get("parameters", {})
    tolerance, floor = chosen.get("tolerance", 0.03), chosen.get("floor", 0.5)
    decided = results.select(results.decisions(table, tolerance, floor), shared="model", notebook="05_dp_sgd")
    if decided.empty or class_sizes(table).empty:
        raise LookupError("a card needs the results of notebooks 01 and 05; run them first (./run_all.sh --only 01,05)")
    passing = decided[decided["model"] == "passes"]
    setting = (passing if len(passing) else decided.sort_values(["epsilon", "setting"])).iloc[0]
    dp, cohort, made = (manifest[name] for name in ("05_dp_sgd", "cohort", "environment"))
    free = {row["network"]: _shown(row) for row in results.baselines(table).to_dict("records")}
    rows = results.risks(table).merge(setting[results.SETTING].to_frame().T.infer_objects(), on=results.SETTING)
    guarantee = None
    if np.isfinite(setting["epsilon"]):
        guarantee = {"epsilon": float(setting["epsilon"]), "delta": dp["delta"]}
        guarantee["members_found_at_most"] = float(setting["bound"])
        guarantee["statement"] = dp["statements"][results.label(setting)]
    return {
        "schema": "genlib privacy-risk card, version 2",
        "recipe": {name: None if setting[name] != setting[name] else setting[name] for name in setting.index[:10]},
        "verdict": {name: setting[name] for name in ("answers", "model", "why")},
        "tolerance": {"members_found": tolerance, "false_positive_rate": 0.01, "balanced_accuracy": floor},
        "profile": manifest["run"]["profile"],
        "data": {name: cohort.get(name) for name in ("name", "source", "license", "limits")},
        "members_about": int(dp["nominal members"]),
        "threat_model": THREAT_MODEL,
        "attacks": [f"{attack} on {shared}" for attack, shared in rows.groupby(["attack", "shared"]).groups],
        "without_patients": free,
        "overall": _line(table, setting["setting"], "all", "balanced accuracy"),
        "by_class": {
            name: {"patients": int(size), **_line(table, setting["setting"], name, "recall")}
            for name, size in class_sizes(table).items()
        },
        "guarantee": guarantee,
        "not_covered": NOT_COVERED,
        "made": {name: made[name] for name in ("time", "git_commit", "versions")} | manifest["results"],
    }  # fmt: skip


def _line(table, setting, group, utility):
    """Utility and the strongest attack of one setting on one group."""
    row = results.one(results.settings(table, utility, group=group), setting=setting)
    line = {name: _shown(_interval(row, kind)) for name, kind in ((utility, "utility"), ("members found", "risk"))}
    return line | {"attack": row["attack"]}


def _shown(row):
    interval = {name: round(float(row[name]), 4) for name in results.INTERVAL}
    return interval if np.isfinite(list(interval.values())).all() else None


def model_card(run_folder, found):
    """Write what was found of one model of a user's own as ``model_card.json`` and ``model_card.md``."""
    found = {"schema": "genlib model card, version 1", **found, "made": results.environment()}
    results.save_json(pathlib.Path(run_folder, "model_card.json"), found)
    with results.atomic_path(pathlib.Path(run_folder, "model_card.md")) as part:
        part.write_text(_render("model_card.md", **found))


def _render(template, **values):
    folder = jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "data")
    options = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = jinja2.Environment(loader=folder, autoescape=jinja2.select_autoescape(["html"]), **options)
    environment.filters["percent"] = lambda interval: percent(interval) if interval else "not measurable"
    environment.filters["plain"] = plain
    return environment.get_template(template).render(**values)


def write(run_folder):
    """Write the page of a run (``index.html``), its notebooks as HTML, and its risk card.

    Parameters
    ----------
    run_folder : path-like
        With ``results.csv``, ``manifest.json`` and executed notebooks.

    Returns
    -------
    list of str
        What could not be written, and why.

    Examples
    --------
    >>> write("outputs/tcga-brca-quick")  # doctest: +SKIP
    []
    """
    run_folder = pathlib.Path(run_folder)
    manifest = json.loads((run_folder / "manifest.json").read_text())
    lacking, listed = [], pages(run_folder)
    report, shown = run_folder / "09_report.ipynb", {"notebooks": listed, "manifest": manifest}
    if report.exists():
        text = notebook_page(report, exclude_input=True, **shown)
    else:
        lacking.append("index.html has no answer: 09_report was not run")
        text = _render(
            "page.html", title=run_folder.name, body=f"<h1>{run_folder.name}</h1><p>{lacking[0]}</p>", **shown
        )
    files = {"index.html": text}
    try:
        made = card(results.read(run_folder / "results.csv"), manifest)
        files |= {"risk_card.json": json.dumps(made, indent=1) + "\n", "risk_card.md": _render("risk_card.md", **made)}
    except LookupError as error:
        lacking.append(f"no risk card: {error.args[0]}")
    for name, content in files.items():
        with results.atomic_path(run_folder / name) as part:
            part.write_text(content)
    return lacking


def pages(run_folder):
    """Write every executed notebook of a run as HTML in its folder ``html``; return their titles by name."""
    titles = {}
    for path in sorted(pathlib.Path(run_folder).glob("*.ipynb")):
        if "." not in path.stem:  # a notebook that failed or is at work has a second suffix
            titles[path.stem] = title(path)
            with results.atomic_path(path.parent / "html" / f"{path.stem}.html") as part:
                part.write_text(notebook_page(path, up=(path.parent / "results.csv").exists()))
    return titles


def title(path):
    """Title of a notebook: the first line of its first cell."""
    return nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].lstrip("# ")


def notebook_page(path, exclude_input=False, **shown):
    """Turn an executed notebook into a page that needs no network, with words for every picture.

    Parameters
    ----------
    path : path-like
    exclude_input : bool
        Whether code is left out.
    **shown
        What the template ``data/page.html`` shows besides.

    Returns
    -------
    str
        HTML.

    Examples
    --------
    >>> notebook_page("outputs/tcga-brca-quick/01_cohort.ipynb")  # doctest: +SKIP
    """
    notebook = nbformat.read(path, as_version=4)
    heading = title(path)
    for cell in notebook.cells:
        titles = [line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")]
        heading = titles[-1] if titles and cell.cell_type == "markdown" else heading
        cell.metadata["alt"] = f"Figure: {heading}"
        for output in cell.get("outputs", ()):
            # Widgets would ask a network for their scripts; their text is kept.
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    notebook.metadata.pop("widgets", None)
    hidden = {"exclude_input": exclude_input, "exclude_output_prompt": exclude_input}
    body, _ = nbconvert.HTMLExporter(template_name="basic", **hidden).from_notebook_node(notebook)
    return _render("page.html", title=title(path), body=body, **shown)


def readme(text, run_folder):
    """Put the answer of a run and the list of its notebooks into a README, between its marks.

    Parameters
    ----------
    text : str
        README with the marks ``<!-- results ... -->`` to ``<!-- end of results -->``, and the same for notebooks.
    run_folder : path-like
        Folder of the run, with results and timings.

    Returns
    -------
    str

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
    decision = decision_table(table)
    undefended = decision["setting"].str.startswith("none")
    rows = pd.concat([decision[~undefended].head(7), decision[undefended].head(1)])
    words = "\n".join(f"- {sentence}" for sentence in answer(table))
    figure = f"![Utility and risk of every setting]({run_folder}/figures/8a_trade_off.svg)"
    timings = pd.read_csv(run_folder / "timings.csv").set_index("notebook")["seconds"]
    parts = {"results": f"{words}\n\n{figure}\n\n{_markdown(rows)}", "notebooks": _listed(timings, run_folder)}
    for name, part in parts.items():
        marks = re.compile(rf"(<!-- {name}:.*?-->\n).*?(<!-- end of {name} -->)", re.S)
        text = marks.sub(lambda found, part=part: f"{found[1]}{part}\n\n{found[2]}", text)
    return text


def _markdown(table):
    head = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    return "\n".join(head + ["| " + " | ".join(row) + " |" for row in table.astype(str).to_numpy()])


def _listed(timings, run_folder):
    rows = []
    for path in sorted(pathlib.Path(__file__).parent.parent.glob("notebooks/*.ipynb")):
        executed = run_folder / path.name
        link = f"[`{path.stem}`]({executed if executed.exists() else f'notebooks/{path.name}'})"
        time = COMMANDS.get(path.stem) or (f"{timings[path.stem]:.0f} s" if path.stem in timings else "")
        rows.append(
            {"notebook, as it ran": link, "question": title(path), "seconds (quick, 2 cores), or command": time}
        )
    return _markdown(pd.DataFrame(rows))


if __name__ == "__main__":
    target = pathlib.Path(sys.argv[1])
    with results.atomic_path(target) as part:
        part.write_text(readme(target.read_text(), sys.argv[2]))
