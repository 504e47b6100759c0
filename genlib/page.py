"""The report of a run as one page that needs nothing else: open ``outputs/RUN/index.html``, on paper or on a phone."""

import base64
import html
import json
import pathlib
import string

import nbconvert
import nbformat
import numpy as np
import pandas as pd

from genlib import report, results

FIGURES = {
    "8a_trade_off": "What a model is worth (balanced accuracy, to the right) against what it gives away (AUC of the "
    "best attack, upwards), one mark a defense with 95 % intervals; the best place is at the bottom right.",
    "3c_by_class": "Share of members that is found when 1 in 100 of all non-members is accused, for each class, by one "
    "threshold on the loss and by LiRA, with 95 % intervals.",
}
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 Georgia, serif; color: #111; background: #fff; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1, h2, h3 { line-height: 1.2; font-family: system-ui, sans-serif; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #999; }
p.answer { font-size: 1.1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; }
caption { text-align: left; font-style: italic; padding: 0.3rem 0; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 0.6rem; border-bottom: 1px solid #ccc; }
thead th { border-bottom: 2px solid #333; } tr.yes td, tr.yes th { font-weight: bold; }
img { max-width: 100%; height: auto; } figure { margin: 1rem 0; } figcaption { font-size: 0.9rem; color: #333; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.8rem; background: #f4f4f4; padding: 0.5rem; }
a { color: #0046a0; } a.anchor-link { display: none; } td, li { overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { font-size: 15px; padding: 0.6rem; } th, td { padding: 0.2rem 0.4rem; }
  table { display: block; overflow-x: auto; } }
@media print { body { max-width: none; font-size: 10.5pt; } .wide { overflow: visible; } table { font-size: 7.5pt; }
  pre { font-size: 6pt; line-height: 1.2; }
  figure, tr { break-inside: avoid; } a { color: inherit; } details { display: block; } }
"""
PAGE = string.Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")


def write(run_folder, tolerance=0.03):
    """Write the report page of a run, and its notebooks as HTML in the folder ``html`` beside it.

    Parameters
    ----------
    run_folder : path-like
    tolerance : float
        Largest share of members that may be recognized at 1 false accusation in 100, for the decision table.

    Returns
    -------
    list of str
        What the page lacks, in words, because its notebook has not been run.

    Examples
    --------
    >>> write("outputs/tcga-brca-quick")  # doctest: +SKIP
    []
    """
    run_folder = pathlib.Path(run_folder)
    table = results.read(run_folder / "results.csv")
    manifest = json.loads((run_folder / "manifest.json").read_text())
    parts, lacking = [], []
    for name, make in SECTIONS.items():
        try:
            parts.append(make(table, run_folder, tolerance))
        except (LookupError, FileNotFoundError):
            lacking.append(name)
            parts.append(f"<h2>{name}</h2>\n<p>Missing: not all notebooks that this needs were run.</p>")
    cohort = html.escape(str(table["cohort"].iloc[0]))
    body = [f"<h1>Who can be recognized as a training patient? {cohort}</h1>", *parts, _manifest(manifest)]
    with results.atomic_path(run_folder / "index.html") as part:
        part.write_text(PAGE.substitute(title=f"{cohort}: risk and defenses", style=STYLE, body="\n".join(body)))
    return lacking


def sentences(table, tolerance):
    """Answer the study's question in three sentences: how leaky, for whom, and what helps.

    Parameters
    ----------
    table : pandas.DataFrame
        Results of a run.
    tolerance : float
        As in `write`.

    Returns
    -------
    list of str

    Raises
    ------
    LookupError
        When a notebook that this needs has not been run.

    Examples
    --------
    >>> sentences(pd.DataFrame(columns=results.COLUMNS), 0.03)
    Traceback (most recent call last):
    LookupError: 0 rows of the results fit ...
    """
    held_out = report.select(table, notebook="02_target_model", set="held-out", group="all")
    accuracy = report.one(held_out, metric="accuracy")
    lira, loss = (_attack(table, name, metric="TPR at FPR 0.01", group="all") for name in ("LiRA", "loss threshold"))
    exposed = _exposed(table)
    first = exposed.loc[exposed["estimate"].idxmax()] if len(exposed) else None
    decision = report.decision_table(table, tolerance, report.rarest_class(table))
    if decision.empty:
        raise LookupError("no setting of notebooks 05 and 06 was measured")
    return [
        f"A classifier that names {report.percent(accuracy)} of held-out patients right gives away "
        f"{report.percent(lira)} of its members to LiRA at 1 false accusation in 100, where one threshold on "
        f"the loss finds {report.percent(loss)} and guessing 1 % ({accuracy['n_patients']} patients).",
        "In no class could the share that is found be measured."
        if first is None
        else f"Most exposed is {first['group']} ({first['n_patients']} patients): {report.percent(first)} of its "
        "members are found.",
        _what_helps(decision, tolerance),
    ]


def _what_helps(decision, tolerance):
    models = decision[decision["what is shared"] == "model"]
    passing = models[models["passes"] == "yes"]
    words = (
        f"Of {len(models)} ways to train a model, {len(passing)} leave at most {100 * tolerance:g} of 100 members found"
    )
    promised = passing[passing["promise"] != "none"]
    if passing.empty:
        return f"{words}."
    best = (promised if len(promised) else passing).iloc[0]
    kind = (
        "with a promise that holds against every attack" if len(promised) else "none with a promise; the best of them"
    )
    return (
        f"{words}, {len(promised)} of them under differential privacy; worth most {kind} is {best['setting']}, with a "
        f"balanced accuracy of {best['balanced accuracy']}."
        if len(promised)
        else f"{words}, {kind} is {best['setting']}, with a balanced accuracy of {best['balanced accuracy']}."
    )


def _attack(table, attack, **where):
    rows = report.select(table, notebook="03_answers", threat_model=["auditor", "no shadow models"], set="")
    return report.one(rows, attack=attack, **where)


def _exposed(table):
    rows = report.select(table, notebook="03_answers", attack="LiRA", threat_model="auditor", set="")
    return report.select(rows, metric="TPR at the global threshold, FPR 0.01").dropna(subset=["estimate"])


def _answer(table, _, tolerance):
    said = "".join(f'<p class="answer">{html.escape(one)}</p>\n' for one in sentences(table, tolerance))
    return f"<h2>The answer</h2>\n{said}<p>In brackets: 95 % intervals over patients and pairs of models.</p>"


def _figures(_, run_folder, __):
    found = []
    for name, words in FIGURES.items():
        image = base64.b64encode((run_folder / "figures" / f"{name}.svg").read_bytes()).decode()
        alt = html.escape(words, quote=True)
        shown = f'<img alt="{alt}" src="data:image/svg+xml;base64,{image}">'
        found.append(f"<figure>{shown}\n<figcaption>{alt}</figcaption></figure>")
    return "<h2>The trade-off, and who is exposed</h2>\n" + "\n".join(found)


def class_table(table):
    """Say for every class how many patients it has, how well they are named, and how far members are recognized.

    Parameters
    ----------
    table : pandas.DataFrame
        Results with notebooks 01 to 03.

    Returns
    -------
    pandas.DataFrame
        One row a class, rates in words.

    Examples
    --------
    >>> class_table(pd.DataFrame(columns=results.COLUMNS)).empty
    True
    """
    recall = report.select(table, notebook="02_target_model", set="held-out", metric="recall")
    rows = []
    for _, row in recall.iterrows():
        line = {"class": row["group"]}
        sizes = report.select(table, notebook="01_cohort", metric="patients", group=row["group"])
        line["patients"] = f"{report.one(sizes)['estimate']:.0f}"
        line["named right, held out"] = report.percent(row)
        named = "TPR at the global threshold, FPR 0.01"
        line["members found by the loss"] = report.percent(
            _attack(table, "loss threshold", metric=named, group=row["group"])
        )
        line["members found by LiRA"] = report.percent(_attack(table, "LiRA", metric=named, group=row["group"]))
        line["AUC of LiRA within the class"] = report.plain(_attack(table, "LiRA", metric="AUC", group=row["group"]))
        rows.append(line)
    return pd.DataFrame(rows)


def _classes(table, _, __):
    rows = class_table(table)
    if rows.empty:
        raise LookupError("notebook 02 has not been run")
    words = (
        "One attacker with one threshold, which accuses 1 in 100 of all non-members. Not measurable: too few patients."
    )
    return "<h2>Each subtype</h2>\n" + _table(rows, words)


def _decision(table, _, tolerance):
    rows = report.decision_table(table, tolerance, report.rarest_class(table))
    if rows.empty:
        raise LookupError("no setting of notebooks 05 and 06 was measured")
    words = (
        f"What may be released if at most {100 * tolerance:g} of 100 members may be recognized at 1 false accusation "
        "in 100 (upper end of the interval, best attack). A promise is the epsilon of its training; answers only: the "
        "model stays as leaky as it was. Bold: passes."
    )
    return "<h2>What may be released</h2>\n" + _table(rows, words, bold=rows["passes"] == "yes")


def _table(rows, caption, bold=None):
    bold = np.zeros(len(rows), bool) if bold is None else bold
    head = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in rows.columns)
    lines = []
    for (first, *rest), strong in zip(rows.astype(str).to_numpy(), bold, strict=True):
        cells = "".join(f"<td>{html.escape(value)}</td>" for value in rest)
        lines.append(f'<tr{" class=yes" if strong else ""}><th scope="row">{html.escape(first)}</th>{cells}</tr>')
    return (
        f'<div class="wide"><table><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead>\n<tbody>'
        + "\n".join(lines)
        + "</tbody></table></div>"
    )


def _notebooks(_, run_folder, __):
    paths = notebooks(run_folder)
    if not paths:
        raise FileNotFoundError("no executed notebook lies here")
    links = []
    for path in paths:
        question = html.escape(report.QUESTIONS.get(path.stem, ""))
        links.append(f'<li><a href="html/{path.name}">{path.stem}</a> {question}</li>')
    return "<h2>The notebooks, as they ran</h2>\n<ul>\n" + "\n".join(links) + "\n</ul>"


def notebooks(run_folder):
    """Write every executed notebook of a run as HTML, in its folder ``html``.

    Parameters
    ----------
    run_folder : path-like

    Returns
    -------
    list of pathlib.Path
        The pages, in the order of the notebooks.

    Examples
    --------
    >>> notebooks("outputs/tcga-brca-quick")  # doctest: +SKIP
    """
    run_folder, pages = pathlib.Path(run_folder), []
    for path in sorted(path for path in run_folder.glob("[0-9]*.ipynb") if path.stem.count(".") == 0):
        pages.append(run_folder / "html" / f"{path.stem}.html")
        with results.atomic_path(pages[-1]) as part:
            part.write_text(notebook_page(path))
    return pages


def notebook_page(path):
    """Turn an executed notebook into a page that needs no network, with words for every picture.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    str
        HTML.

    Examples
    --------
    >>> notebook_page("outputs/tcga-brca-quick/01_cohort.ipynb")  # doctest: +SKIP
    """
    notebook = nbformat.read(path, as_version=4)
    heading = pathlib.Path(path).stem
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            titles = [line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")]
            heading = titles[-1] if titles else heading
        else:
            cell.metadata["alt"] = f"Figure: {heading}"
            for output in cell.get("outputs", ()):
                # Progress bars are widgets, which would ask a network for their scripts; their text is kept.
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    notebook.metadata.pop("widgets", None)
    body, _ = nbconvert.HTMLExporter(template_name="basic").from_notebook_node(notebook)
    whole = (pathlib.Path(path).parent / "results.csv").exists()
    up = '<p><a href="../index.html">Report of this run</a></p>' if whole else ""
    return PAGE.substitute(title=pathlib.Path(path).stem, style=STYLE, body=up + body)


def _manifest(manifest):
    made = manifest["environment"]
    words = f"Made {made['time']} with commit {made['git_commit'] or 'not known'}."
    return (
        f"<h2>How it was made</h2>\n<p>{html.escape(words)}</p>\n<details open><summary>The manifest</summary>\n"
        f"<pre>{html.escape(json.dumps(manifest, indent=1, sort_keys=True))}</pre></details>"
    )


SECTIONS = {
    "The answer": _answer,
    "The trade-off, and who is exposed": _figures,
    "Each subtype": _classes,
    "What may be released": _decision,
    "The notebooks, as they ran": _notebooks,
}
