"""A view of the results to play with: widgets in JupyterLab, the same figure and table without them elsewhere."""

import os

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display

from genlib import plots, report

# JupyterLab names the open notebook to its kernel; papermill and nbconvert, where nothing could be moved, do not.
SESSION = "JPY_SESSION_NAME"
EVERYBODY, EVERY_DEFENSE = "all", "all"
NAMED = 8  # more names than that cannot be told apart in the figure; the table has them all


def view(table, tolerance, group=EVERYBODY, defense=EVERY_DEFENSE):
    """Put settings in a figure and in the order in which one might release them.

    Parameters
    ----------
    table : pandas.DataFrame
        Results with rows of notebooks 01, 05 and 06.
    tolerance : float
        Largest share of all members that may be recognized, at 1 false accusation in 100.
    group : str
        Whose worth and risk the figure shows: ``"all"`` or a class.
    defense : str
        A family of defenses, as the figure's legend names them, or ``"all"``.

    Returns
    -------
    figure : matplotlib.figure.Figure
        Worth against risk; settings that pass are drawn strongly, and those of them that are worth most are named.
    rows : pandas.DataFrame
        As `genlib.report.decision_table`, with the class's own exposure where one is chosen.

    Raises
    ------
    ValueError
        For a class or a family that the results do not have; lists those they have.

    Examples
    --------
    >>> from genlib.results import COLUMNS
    >>> import pandas as pd
    >>> view(pd.DataFrame(columns=COLUMNS), 0.03, group="A")
    Traceback (most recent call last):
    ValueError: group 'A' is not in the results; choose among all
    """
    _refuse_unknown("group", group, groups(table))
    _refuse_unknown("defense", defense, defenses(table))
    everybody = group == EVERYBODY
    worth = "balanced accuracy" if everybody else "recall"
    points = report.frontier_points(table, x=worth, y="AUC", group=group)
    rows = report.decision_table(table, tolerance, report.rarest_class(table) if everybody else group)
    if not everybody:
        exposed = report.exposure_table(table, group).rename(columns={"members recognized": f"of {group} recognized"})
        rows = rows.merge(exposed[["setting", "from notebook", f"of {group} recognized"]], how="left")
    passing = rows.loc[rows["passes"].isin(["yes", "for answers only"]), ["setting", "from notebook"]]
    named = set(passing.itertuples(index=False, name=None))
    points["frontier"] = [(p["setting"], p["from notebook"]) in named for p in points.to_dict("records")]
    families = points["family"]
    if defense != EVERY_DEFENSE:
        points = points[families == defense].copy()
        rows = rows.merge(points[["setting", "from notebook"]])
    # Ties are broken as in the decision table, so that the settings with a name are the first rows that pass.
    first = points[points["frontier"]].sort_values(["x", "setting", "from notebook"], ascending=[False, True, True])
    points["labeled"] = points.index.isin(first.index[:NAMED])
    whose = "" if everybody else f" of {group}"
    figure = plots.trade_off_points(
        points, "family", "label", f"{worth}{whose} on held-out patients (0 to 1)",
        f"AUC of the best attack{whose.replace(' of', ' within')}", chance=0.5, hues=families,
    )  # fmt: skip
    return figure, rows


def groups(table):
    """List whom a view can be of: everybody, and each class.

    Examples
    --------
    >>> from genlib.results import COLUMNS
    >>> import pandas as pd
    >>> groups(pd.DataFrame(columns=COLUMNS))
    ['all']
    """
    return [EVERYBODY, *sorted(set(table.loc[table["metric"] == "recall", "group"]) - {EVERYBODY})]


def defenses(table):
    """List the families of defenses that a view can be narrowed to.

    Examples
    --------
    >>> from genlib.results import COLUMNS
    >>> import pandas as pd
    >>> defenses(pd.DataFrame(columns=COLUMNS))
    ['all']
    """
    return [EVERY_DEFENSE, *dict.fromkeys(setting.family for setting in report.settings(table))]


def widget(table, tolerance):
    """Build the view with a slider for the tolerance and menus for class and defense.

    Parameters
    ----------
    table : pandas.DataFrame
    tolerance : float
        Where the slider begins.

    Returns
    -------
    ipywidgets.VBox
        Its last child is the output, redrawn when something is moved.

    Examples
    --------
    >>> widget(table, 0.03)  # doctest: +SKIP
    """
    wide = {"style": {"description_width": "10em"}, "layout": ipywidgets.Layout(width="32em")}
    steps = sorted({tolerance, *np.round(np.arange(0.01, 0.105, 0.005), 3), 0.15, 0.2, 0.3, 0.5, 1.0})
    found = {
        "tolerance": ipywidgets.SelectionSlider(
            options=[(f"{100 * step:g} of 100", step) for step in steps], value=tolerance, continuous_update=False,
            description="tolerance", **wide,
        ),
        "group": ipywidgets.Dropdown(options=groups(table), description="patients", **wide),
        "defense": ipywidgets.Dropdown(options=defenses(table), description="defense", **wide),
    }  # fmt: skip

    def draw(**chosen):
        figure, rows = view(table, **chosen)
        display(figure, rows.style.hide(axis="index"))
        plt.close(figure)

    return ipywidgets.VBox([*found.values(), ipywidgets.interactive_output(draw, found)])


def show(table, tolerance):
    """Show the view: with widgets where the notebook is open in JupyterLab, as it stands elsewhere.

    Parameters
    ----------
    table : pandas.DataFrame
    tolerance : float

    Examples
    --------
    >>> show(table, 0.03)  # doctest: +SKIP
    """
    if SESSION in os.environ:
        display(widget(table, tolerance))
        return
    figure, _ = view(table, tolerance)
    display(figure)
    plt.close(figure)


def _refuse_unknown(kind, given, known):
    if given not in known:
        raise ValueError(f"{kind} '{given}' is not in the results; choose among {', '.join(known)}")
