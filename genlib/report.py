"""Results in words: tables for readers, and the answer, the page and the card of a run."""

import json
import pathlib

import jinja2
import pandas as pd
import scipy.stats
from IPython.display import HTML, Markdown, display

from genlib import results

GLOBAL = "TPR at the global threshold, FPR 0.01"  # found by one attacker, who has one threshold for all classes


def percent(row, digits=None):
    """Write a rate (estimate, low, high) in percent, by default with a digit below 10 %, or that it is not measurable.

    Examples
    --------
    >>> percent({"estimate": 0.614, "low": 0.58, "high": 0.65})
    '61 % (58 to 65)'
    >>> percent({"estimate": 0.014, "low": 0.008, "high": 0.112})
    '1.4 % (0.8 to 11.2)'
    >>> percent({"estimate": float("nan"), "low": 0, "high": 0})
    'not measurable'
    >>> percent({"estimate": 0.2, "low": 0.2, "high": 0.2})
    '20 %'
    """
    if pd.isna(row["estimate"]):
        return "not measurable"
    digits = (0 if row["estimate"] >= 0.0995 else 1) if digits is None else digits
    estimate, low, high = (f"{100 * row[name]:.{digits}f}" for name in results.INTERVAL)
    return f"{estimate} %" + ("" if row["low"] == row["high"] else f" ({low} to {high})")


def plain(row, digits=2):
    """Write a number with its interval, or say that it could not be measured.

    Examples
    --------
    >>> plain({"estimate": 0.614, "low": 0.58, "high": 0.65})
    '0.61 (0.58 to 0.65)'
    """
    if pd.isna(row["estimate"]):
        return "not measurable"
    return "{} ({} to {})".format(*(f"{row[name]:.{digits}f}" for name in results.INTERVAL))


def takeaway(text):
    """Show the one sentence that a section ends with.

    Examples
    --------
    >>> takeaway("half of the members were found.")
    <IPython.core.display.Markdown object>
    """
    display(Markdown(f"**Takeaway:** {text}"))


def finding(text, supported=True):
    """Show what a figure says as its heading, where intervals bear it; else the section's question stands alone.

    Examples
    --------
    >>> finding("Half of the members are found", supported=False)
    """
    if supported:
        display(Markdown(f"### {text}"))


def folded(table, n_open=10):
    """Show a table in words without its index: the first rows open, the rest folded.

    Examples
    --------
    >>> "<summary>2 more</summary>" in folded(pd.DataFrame({"setting": list("abc")}), n_open=1).data
    True
    """
    table = table.rename_axis(columns=None)  # which would be a second header
    shown, rest = (part.to_html(index=False, border=0, na_rep="") for part in (table[:n_open], table[n_open:]))
    more = f"<details><summary>{len(table) - n_open} more</summary>{rest}</details>"
    return HTML(shown + (more if len(table) > n_open else ""))


def _interval(row, kind):
    """Estimate, low and high of the utility or the risk of a setting."""
    return {"estimate": row[kind], "low": row[f"{kind}_low"], "high": row[f"{kind}_high"]}


def class_sizes(table):
    """Patients of every class, from the rows of notebook 01."""
    patients = results.select(table, notebook="01_cohort", metric="patients")
    return patients[patients["group"] != "all"].set_index("group")["estimate"].astype(int)


def settings_table(table, group="all", risk=results.FOUND):
    """Put every setting of a results table into one row in words, first the classifiers that no patient trained.

    Columns setting, the utility, members found (by the attack of which `risk` is highest; by default at 1 % of the
    group's own non-members accused), attack, AUC (the highest). Of a class, recall stands for balanced accuracy.
    """
    utility = "balanced accuracy" if group == "all" else "recall"
    areas = results.settings(table, utility, "AUC", group).set_index("setting")
    rows = [
        {"setting": row["network"], utility: percent(row), "members found": "no patient trains it"}
        for row in results.baselines(table, utility, group).to_dict("records")
    ]
    for row in results.settings(table, utility, risk, group).to_dict("records"):
        line = {"setting": row["setting"], utility: percent(_interval(row, "utility"))}
        line |= {
            "members found": percent(_interval(row, "risk")),
            "attack": "" if pd.isna(row["risk"]) else row["attack"],
        }
        rows.append(line | {"AUC": plain(_interval(areas.loc[row["setting"]], "risk"))})
    return pd.DataFrame(rows).fillna("")


def decision_table(table, tolerance=0.03, floor=0.5):
    """Say in words of every setting whether its answers and its model may be shared; see `genlib.results.decisions`."""
    rows = []
    for row in results.baselines(table).to_dict("records"):
        useful = row["high"] >= floor
        said, why = ("passes", "") if useful else ("fails", f"; balanced accuracy below {100 * floor:.0f} %")
        rows.append([row["network"], percent(row), "none", said, said, f"no patient trains it{why}"])
    for row in results.decisions(table, tolerance, floor).to_dict("records"):
        rates = [percent(_interval(row, kind)) for kind in ("utility", "risk")]
        rows.append([row["setting"], *rates, row["answers"], row["model"], row["why"]])
    names = ["setting", "balanced accuracy", "members found", "its answers", "the model", "why"]
    return pd.DataFrame(rows, columns=names)


def class_table(table):
    """Say for every class how many patients it has, how well they are classified, and how many members are found.

    Rates in words, by one threshold for everybody, beside the share of the class's own non-members that it accuses.
    """
    answers = results.select(table, notebook="03_answers", control="", attacker=["auditor", "no shadow models"])
    useful = results.select(table, notebook="02_target_model", metric="recall", trainer="bank")
    rows = []
    for name, size in class_sizes(table).items():
        lira = results.select(answers, group=name, attack="LiRA")
        loss = results.one(answers, group=name, attack="loss threshold", metric=GLOBAL)
        rates = [results.one(useful, group=name), loss, results.one(lira, metric=GLOBAL)]
        rates += [results.one(lira, metric=GLOBAL.replace("TPR", "FPR"))]
        rows.append([name, size, *map(percent, rates), plain(results.one(lira, metric="AUC"))])
    names = ["class", "patients", "recall", "found by loss threshold", "found by LiRA"]
    return pd.DataFrame(rows, columns=[*names, "its non-members accused by LiRA", "AUC of LiRA"])


def answer(table, tolerance=0.03, floor=0.5):
    """Answer the study's question in a few sentences: how useful, how leaky, for whom, and what may be shared.

    The lines of the template ``data/answer.md``; `tolerance` and `floor` as in `genlib.results.decisions`. A notebook
    that this needs and that has not been run is a LookupError.
    """
    useful = results.select(table, notebook="02_target_model", group="all", metric="balanced accuracy", control="")
    target = results.one(useful, trainer="bank")
    who = ["auditor", "no shadow models", "outsider, a quarter trains"]
    answers = results.select(table, notebook="03_answers", control="", attacker=who)
    weights = results.select(table, notebook="04_weights", network=target["network"], start="random", control="")
    known = {"attacker": who[:2], "attack": ["span", "LiRA on answers and span"]}
    weights, linear = results.select(weights, **known), results.select(useful, network="linear model")
    models = results.select(results.decisions(table, tolerance, floor), shared="model")
    if models.empty:
        raise LookupError("no setting of notebooks 05 and 06 was measured")
    exposed = results.select(pd.concat([results.select(answers, attack="LiRA"), weights]), metric=GLOBAL)
    exposed = exposed.dropna(subset="estimate")
    best = {name: models[name].iloc[0] for name in ("start", "epsilon")}
    gain = results.select(table, metric="balanced accuracy less that of published centroids", **best)
    values = {
        "target": target,
        "free": results.baselines(table).to_dict("records"),
        "linear": None if linear.empty else linear.iloc[0],
        "answers": results.select(answers, group="all", metric=results.FOUND),
        "weights": results.select(weights, group="all", metric=results.FOUND),
        "exposed": exposed.sort_values("estimate", kind="stable", ascending=False),
        "models": models,
        "gain": None if gain.empty else gain.iloc[0],
        "replaced": _replaced,
        "counted": results.counted(models),
    }
    said = _render("answer.md", **values, one=results.one, select=results.select, tolerance=tolerance, floor=floor)
    return [line for line in said.splitlines() if line]


def _replaced(tpr, fpr=0.01):
    """Bound on finding who of two trained, where `tpr` is that on finding whether one did: twice the distance."""
    return scipy.stats.norm.cdf(2 * scipy.stats.norm.ppf(tpr) - scipy.stats.norm.ppf(fpr))


def summary(table):
    """Say the answer of a run in a few lines, for the end of the command."""
    try:
        return "\n".join(answer(table))
    except LookupError:
        return "No answer yet: it needs notebooks 01 to 06."


def card(table, manifest):
    """Put together the privacy-risk card: of the most useful model that passes, or else of the strictest promise.

    What ``risk_card.json`` holds and the template ``data/risk_card.md`` shows, of a run's results and its manifest.
    Rates are shares from 0 to 1, with the ends of 95 % intervals; null where they could not be measured. Without
    notebooks 01 and 05 it is a LookupError.
    """
    chosen = manifest.get("run", {}).get("parameters", {})
    tolerance, floor = chosen.get("tolerance", 0.03), chosen.get("floor", 0.5)
    decided = results.select(results.decisions(table, tolerance, floor), shared="model", notebook="05_dp_sgd")
    sizes = class_sizes(table)
    if decided.empty or sizes.empty:
        raise LookupError("a card needs the results of notebooks 01 and 05; run them first (./run_all.sh --only 01,05)")
    passing = decided[decided["model"] == "passes"]
    recipe = (passing if len(passing) else decided.sort_values(["epsilon", "setting"])).head(1)
    groups = {"all": (int(sizes.sum()), "balanced accuracy")} | {name: (n, "recall") for name, n in sizes.items()}
    found = [results.settings(table, metric, group=name) for name, (_, metric) in groups.items()]
    found = pd.concat([one[one["setting"] == recipe["setting"].iloc[0]] for one in found])
    found = found.assign(group=list(groups), n_patients=[n for n, _ in groups.values()])
    attacks = results.risks(table).merge(recipe[results.SETTING], on=results.SETTING)
    dp, cohort, made = (manifest[name] for name in ("05_dp_sgd", "cohort", "environment"))
    audited = results.select(table, notebook="07_audit", metric="lower bound on epsilon", control="")
    return {
        "schema": "genlib privacy-risk card, version 3",
        "profile": manifest["run"]["profile"],
        "data": {name: cohort.get(name) for name in ("name", "source", "license", "limits")},
        "members_about": int(dp["nominal members"]),
        "recipe": _records(recipe.assign(bound_of_replacement=_replaced(recipe["bound"].astype(float))))[0],
        "tolerance": {"members_found": tolerance, "false_positive_rate": 0.01, "balanced_accuracy": floor},
        "attacks": [f"{attack} on {shared}" for attack, shared in attacks.groupby(["attack", "shared"]).groups],
        "without_patients": _records(results.baselines(table)[["network", *results.INTERVAL]]),
        "groups": _records(found[["group", "n_patients", *results.UTILITY, "attack", *results.RISK]]),
        "delta": dp["delta"],
        "audited": _records(audited.groupby(["network", "attack", "epsilon"], as_index=False)["estimate"].max()),
        "guarantee": dp["statements"].get(results.label(recipe.iloc[0])),
        "made": {name: made[name] for name in ("time", "git_commit", "versions")} | manifest["results"],
    }  # fmt: skip


def _records(table):
    """Rows as JSON has them."""
    return json.loads(table.to_json(orient="records", double_precision=4))


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
    environment.filters["percent"] = lambda row, kind="": percent(_interval(row, kind) if kind else row)
    environment.filters["plain"] = plain
    return environment.get_template(template).render(**values)


def write(run_folder):
    """Write the page of a run (``index.html``), its notebooks as HTML, and its risk card, from what its folder holds.

    What could not be written, and why, comes back as a list of str.
    """
    import nbconvert  # here and below: two seconds that no notebook need wait for

    run_folder, lacking, files = pathlib.Path(run_folder), [], {}
    manifest = json.loads((run_folder / "manifest.json").read_text())
    shown = {"notebooks": pages(run_folder), "manifest": manifest}
    try:
        made = card(results.read(run_folder / "results.csv"), manifest)
        files = {"risk_card.json": json.dumps(made, indent=1) + "\n", "risk_card.md": _render("risk_card.md", **made)}
        shown["card"] = nbconvert.filters.markdown2html(files["risk_card.md"])
    except LookupError as error:
        lacking.append(f"no risk card: {error.args[0]}")
    report = run_folder / "09_report.ipynb"
    if report.exists():
        files["index.html"] = notebook_page(report, exclude_input=True, **shown)
    else:
        lacking.append("index.html has no answer: 09_report was not run")
        files["index.html"] = _render("page.html", title=run_folder.name, lacking=lacking, **shown)
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
    import nbformat

    return nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].lstrip("# ")


def notebook_page(path, exclude_input=False, **shown):
    """Turn an executed notebook into a page that needs no network, with words for every picture.

    `exclude_input` leaves code out; `shown` is what the template ``data/page.html`` shows besides.
    """
    import nbconvert
    import nbformat

    notebook, heading = nbformat.read(path, as_version=4), title(path)
    if any("injected-parameters" in cell.metadata.get("tags", ()) for cell in notebook.cells):  # those count
        notebook.cells = [cell for cell in notebook.cells if "parameters" not in cell.metadata.get("tags", ())]
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
