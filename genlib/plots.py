"""Figures in one style: readable in gray print and by the color-blind, every interval drawn, chance in thin gray.

A function here draws numbers that it is given; it computes none.
"""

import itertools
import pathlib

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Okabe and Ito's palette, black last, each with a line style and a marker so that gray print works too.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C7A00", "#000000"]
LINES = ["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2))]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
STYLE = {
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "savefig.bbox": "tight",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    # The same figure gives the same file: no random ids, no date.
    "svg.hashsalt": "genlib",
    "svg.fonttype": "none",
}


def style():
    """Set the style for all figures that follow.

    Examples
    --------
    >>> style()
    """
    plt.rcParams.update(STYLE)


# Kinds of defenses look alike wherever they are drawn; notebook 05's features keep the first places, as in its figures.
FIXED = {"05: other training": 2, "05: DP-SGD": 3, "05: hides only": 4}


def look(names):
    """Give every name its color, line style and marker: names in `FIXED` always the same, others by their order.

    Examples
    --------
    >>> look(["LumA", "LumB"])["LumB"]["marker"]
    's'
    >>> [one["marker"] for one in look(["05: DP-SGD", "04: all genes"]).values()]
    ['D', 'o']
    """
    taken = {FIXED[name] for name in names if name in FIXED}
    free = (i for i in itertools.count() if i % 8 not in taken)
    places = {name: FIXED[name] if name in FIXED else next(free) for name in dict.fromkeys(names)}
    return {
        name: {"color": COLORS[i % 8], "linestyle": LINES[i % 8], "marker": MARKERS[i % 8]}
        for name, i in places.items()
    }


def save(figure, run_folder, name):
    """Keep a figure as SVG in the run's ``figures`` folder, for papers; the notebook shows it besides.

    Examples
    --------
    >>> import tempfile
    >>> figure, axes = plt.subplots()
    >>> save(figure, tempfile.mkdtemp(), "empty").name
    'empty.svg'
    """
    path = pathlib.Path(run_folder) / "figures" / f"{name}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    return path


def class_sizes(names, counts):
    """Draw a bar a class with its number of patients.

    Examples
    --------
    >>> class_sizes(["A", "B"], [10, 20]).axes[0].get_xlabel()
    'patients'
    """
    figure, axes = plt.subplots(figsize=(5, 0.35 * len(names) + 0.8))
    bars = axes.barh(names, counts, color=[look(names)[n]["color"] for n in names])
    axes.bar_label(bars, padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("patients")
    return figure


def scatter(points, groups, names, axis_names):
    """Draw patients as points in two dimensions, one color and marker a group.

    Parameters
    ----------
    points : numpy.ndarray
        (n, 2).
    groups : numpy.ndarray
        (n,) int.
    names : sequence of str
        Name of each group.
    axis_names : (str, str)

    Examples
    --------
    >>> scatter(np.zeros((2, 2)), np.array([0, 1]), ["A", "B"], ("x", "y")).axes[0].get_ylabel()
    'y'
    """
    figure, axes = plt.subplots(figsize=(5.2, 3.8))
    for k, name in enumerate(names):
        one = look(names)[name]
        axes.scatter(
            *points[groups == k].T, s=14, color=one["color"], marker=one["marker"], alpha=0.8, lw=0, label=name
        )
    axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def intervals(table, rows, hue=None, xlabel="", chance=None, xlim=None):
    """Draw estimates with their intervals, one line a row of the table, from top to bottom.

    Parameters
    ----------
    table : pandas.DataFrame
        With columns estimate, low, high.
    rows : str
        Column that names the lines.
    hue : str, optional
        Column that tells marks apart, several on one line or one on each.
    xlabel : str
        With its unit.
    chance : float, optional
        Where an attacker who guesses, or a model that guesses, would stand.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"attack": ["loss"], "estimate": [0.6], "low": [0.5], "high": [0.7]})
    >>> intervals(table, "attack", xlabel="AUC").axes[0].get_xlabel()
    'AUC'
    """
    names = list(dict.fromkeys(table[rows]))
    hues = [None] if hue is None else list(dict.fromkeys(table[hue]))
    apart = 0.22 if table[rows].duplicated().any() else 0.0
    height = 0.3 * len(names) * (max(1, 0.6 * len(hues)) if apart else 1) + 1.0
    figure, axes = plt.subplots(figsize=(5.6, height), layout="constrained")
    if chance is not None:
        axes.axvline(chance, color="0.6", lw=0.8)
        axes.annotate(
            "chance", (chance, 1.0), xycoords=("data", "axes fraction"), color="0.4", ha="center", va="bottom"
        )
    for i, value in enumerate(hues):
        part = table if hue is None else table[table[hue] == value]
        height = np.array([names.index(name) for name in part[rows]]) + (i - (len(hues) - 1) / 2) * apart
        one = look(hues)[value]
        spread = np.abs(part[["low", "high"]].to_numpy(float).T - part["estimate"].to_numpy(float))
        axes.errorbar(
            part["estimate"], height, xerr=spread, fmt=one["marker"], color=one["color"], capsize=2, ms=4, label=value
        )
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel=xlabel, xlim=xlim, ylim=(len(names) - 0.5, -0.5))
    if hue is not None:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)  # long names of rows leave no place beside
    return figure


def histograms(values, names, xlabel):
    """Draw the distributions of several samples over each other, as outlines of equal area.

    Examples
    --------
    >>> histograms([np.zeros(3), np.ones(3)], ["members", "non-members"], "signal").axes[0].get_ylabel()
    'share of patients per bin'
    """
    edges = np.histogram_bin_edges(np.concatenate(values), bins=50)
    figure, axes = plt.subplots(figsize=(5.6, 2.8))
    for sample, (name, one) in zip(values, look(names).items(), strict=True):
        share = np.ones(len(sample)) / len(sample)
        axes.hist(
            sample, edges, weights=share, histtype="step", color=one["color"], ls=one["linestyle"], lw=1.4, label=name
        )
    axes.set(xlabel=xlabel, ylabel="share of patients per bin")
    axes.legend()
    return figure


def roc_curves(curves, floor):
    """Draw ROC curves with both axes logarithmic, where low false positive rates can be read.

    Parameters
    ----------
    curves : dict of str to (numpy.ndarray, numpy.ndarray)
        Name to false and true positive rates.
    floor : float
        Lowest rate to show; below it a rate rests on too few patients.

    Examples
    --------
    >>> line = np.linspace(0, 1, 5)
    >>> roc_curves({"guess": (line, line)}, floor=0.01).axes[0].get_xscale()
    'log'
    """
    figure, axes = plt.subplots(figsize=(5.6, 4.0))
    axes.plot([floor, 1], [floor, 1], color="0.6", lw=0.8)
    axes.annotate("chance", (floor * 1.6, floor * 1.25), color="0.4", rotation=38)
    for name, one in look(curves).items():
        fpr, tpr = curves[name]
        axes.plot(fpr, tpr, color=one["color"], ls=one["linestyle"], lw=1.4, drawstyle="steps-post", label=name)
    axes.set(xscale="log", yscale="log", xlim=(floor, 1), ylim=(floor, 1.05))
    axes.set(xlabel="false positive rate (non-members accused)", ylabel="true positive rate (members found)")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def against_epsilon(table, ylabel, reference=None, hue="features", chance=None):
    """Draw a quantity over epsilon with intervals, and what it is without privacy as a level line.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns epsilon, estimate, low, high and `hue`.
    ylabel : str
    reference : pandas.DataFrame, optional
        One row a hue: the same quantity without privacy.
    hue : str
    chance : float, optional

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"epsilon": [1.0], "estimate": [0.5], "low": [0.4], "high": [0.6], "features": ["all"]})
    >>> against_epsilon(table, "accuracy").axes[0].get_xscale()
    'log'
    """
    hues = list(dict.fromkeys(table[hue]))
    figure, axes = plt.subplots(figsize=(5.6, 3.2))
    if chance is not None:
        axes.axhline(chance, color="0.6", lw=0.8)
        axes.annotate("chance", (1.0, chance), xycoords=("axes fraction", "data"), color="0.4", ha="right", va="bottom")
    for i, value in enumerate(hues):
        part, one = table[table[hue] == value].sort_values("epsilon", kind="stable"), look(hues)[value]
        spread = np.abs(part[["low", "high"]].to_numpy(float).T - part["estimate"].to_numpy(float))
        shifted = part["epsilon"] * 1.04 ** (i - (len(hues) - 1) / 2)
        axes.errorbar(shifted, part["estimate"], yerr=spread, capsize=2, ms=4, lw=1.2, label=f"{value}, DP-SGD", **one)
        if reference is not None:
            level = reference[reference[hue] == value].iloc[0]
            axes.axhline(level["estimate"], color=one["color"], ls=one["linestyle"], lw=0.8)
            axes.axhspan(
                level["low"], level["high"], color=one["color"], alpha=0.1, lw=0, label=f"{value}, not private"
            )
    ticks = sorted(set(table["epsilon"]))
    axes.set(xscale="log", xlabel="epsilon (smaller: more private)", ylabel=ylabel)
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def trade_off_points(table, hue, label, xlabel, ylabel, chance=None, hues=None):
    """Draw settings as crosses of two intervals: what a model is worth against what it gives away.

    Settings off the frontier are drawn faintly. Labels stand beside the figure, since good settings lie close together.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns x, x_low, x_high, y, y_low, y_high, frontier and labeled (bool), `hue` and `label`. Rows without a
        finite x and y are left out.
    hue, label : str
        Columns: the color, and the text for a point.
    xlabel, ylabel : str
    chance : float, optional
        Height of an attacker who guesses.
    hues : sequence of str, optional
        All values of `hue` in their order, so that several figures show them alike.

    Examples
    --------
    >>> import pandas as pd
    >>> point = {"x": 0.8, "x_low": 0.7, "x_high": 0.9, "y": 0.6, "y_low": 0.5, "y_high": 0.7, "f": "all", "t": "3"}
    >>> table = pd.DataFrame([{**point, "frontier": True, "labeled": True}])
    >>> trade_off_points(table, "f", "t", "accuracy", "AUC").axes[0].get_xlabel()
    'accuracy'
    """
    figure, axes = plt.subplots(figsize=(7.6, 5.2), layout="constrained")
    looks = look(list(dict.fromkeys(table[hue] if hues is None else hues)))
    looks = {value: one for value, one in looks.items() if value in set(table[hue])}
    table = table[np.isfinite(table[["x", "y"]].astype(float)).all(axis=1)]
    if chance is not None:
        axes.axhline(chance, color="0.6", lw=0.8)
        axes.annotate("chance", (0, chance), xycoords=("axes fraction", "data"), color="0.4", va="bottom")
    for (value, frontier), part in table.groupby([hue, "frontier"], sort=False):
        _crosses(axes, part, looks[value], faint=not frontier)
    for value, one in looks.items():
        axes.plot([], [], ls="", marker=one["marker"], color=one["color"], ms=5, label=value)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _labels_beside(axes, table[table["labeled"]], label)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _crosses(axes, part, one, faint):
    spread = [np.abs(part[[f"{a}_low", f"{a}_high"]].to_numpy(float).T - part[a].to_numpy(float)) for a in "xy"]
    axes.errorbar(
        part["x"], part["y"], xerr=spread[0], yerr=spread[1], fmt=one["marker"], color=one["color"],
        ms=3.5 if faint else 6, elinewidth=0.4 if faint else 0.9, alpha=0.3 if faint else 1, zorder=2 if faint else 3,
    )  # fmt: skip


def _labels_beside(axes, points, label):
    """Write labels right of the axes, in the order of their points' heights, each with a thin line to its point."""
    low, high = axes.get_ylim()
    points = points.sort_values(["y", "x", label])
    thin = {"arrowstyle": "-", "color": "0.55", "lw": 0.5, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 3}
    gap = min(0.042, 1 / max(1, len(points)))
    heights = []
    for y in (points["y"] - low) / (high - low):
        heights.append(max([y, *(h + gap for h in heights[-1:])]))
    # Too many high ones would leave the top; pushing them down keeps their order.
    for i in range(len(heights) - 1, -1, -1):
        heights[i] = min(heights[i], 1 - gap * (len(heights) - 1 - i))
    for height, row in zip(heights, points.to_dict("records"), strict=True):
        axes.annotate(
            row[label], (row["x"], row["y"]), xytext=(1.03, height), textcoords="axes fraction", va="center",
            fontsize=8, arrowprops=thin,
        )  # fmt: skip
    axes.set_ylim(low, high)


def audited(table, promise, power):
    """Draw what an audit found for each run: one marker a canary, beside the promise and the most it could have found.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns run, canary, estimate: a lower bound on epsilon.
    promise, power : float
        Promised epsilon, and the largest bound that so many models can show.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"run": ["correct"], "canary": ["outlier"], "estimate": [0.0]})
    >>> audited(table, 1.0, 3.0).axes[0].get_xlabel()
    'lower bound on epsilon'
    """
    runs = list(dict.fromkeys(table["run"]))
    names = list(dict.fromkeys(table["canary"]))
    figure, axes = plt.subplots(figsize=(8.0, 0.4 * len(runs) + 1.2))
    axes.axvline(promise, color="black", lw=1.2, label="promise")
    axes.axvline(power, color="0.6", lw=0.8, ls=":", label="most it can show")
    for i, (name, one) in enumerate(look(names).items()):
        part = table[table["canary"] == name]
        place = [runs.index(run) + 0.12 * (i - (len(names) - 1) / 2) for run in part["run"]]
        axes.plot(part["estimate"], place, ls="", marker=one["marker"], color=one["color"], ms=6, label=name)
    axes.set_yticks(range(len(runs)), runs)
    axes.invert_yaxis()
    axes.set(xlabel="lower bound on epsilon", xlim=(-0.1, None))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def lines(table, xlabel, ylabel):
    """Draw one line a column over the table's index, both axes logarithmic.

    Parameters
    ----------
    table : pandas.DataFrame
        Numbers above 0.
    xlabel, ylabel : str
        With their units.

    Examples
    --------
    >>> import pandas as pd
    >>> lines(pd.DataFrame({"a": [1, 2]}, index=[10, 20]), "genes", "seconds").axes[0].get_yscale()
    'log'
    """
    figure, axes = plt.subplots(figsize=(5.6, 3.2))
    for name, one in look(list(table)).items():
        axes.plot(table.index, table[name], ms=4, lw=1.2, label=name, **one)
    axes.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    # The very values that were measured, as plain numbers, are easier to read than powers of ten.
    axes.set_xticks(list(table.index), [f"{value:,g}" for value in table.index])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def sizes_and_risks(table, hue, xlabel, ylabel):
    """Draw classes as points with intervals: how many patients each has, on a logarithmic axis, and its risk.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns patients, class, estimate, low, high, and `hue`.
    hue : str
        Column that tells cohorts apart.
    xlabel, ylabel : str

    Examples
    --------
    >>> import pandas as pd
    >>> one = pd.DataFrame({"patients": [30], "class": ["A"], "estimate": [0.7], "low": [0.6], "high": [0.8]})
    >>> sizes_and_risks(one.assign(run="x"), "run", "patients", "AUC").axes[0].get_xscale()
    'log'
    """
    figure, axes = plt.subplots(figsize=(5.6, 3.6))
    axes.axhline(0.5, color="0.6", lw=0.8)
    for (name, part), one in zip(table.groupby(hue, sort=False), look(table[hue].unique()).values(), strict=True):
        spread = np.abs(part[["low", "high"]].to_numpy(float).T - part["estimate"].to_numpy(float))
        axes.errorbar(
            part["patients"],
            part["estimate"],
            spread,
            fmt=one["marker"],
            color=one["color"],
            capsize=2,
            ms=4,
            label=name,
        )
        for _, row in part.iterrows():
            axes.annotate(row["class"], (row["patients"], row["estimate"]), (4, 3), textcoords="offset points", size=7)
    axes.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
