"""Figures in one style: readable in gray print and by the color-blind, every interval drawn, chance in thin gray.

A function here draws numbers that it is given; it computes none.
"""

import pathlib

import matplotlib.pyplot as plt
import numpy as np

# Okabe and Ito's palette, black last, each with a line style and a marker so that gray print works too.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C7A00", "#000000"]
LINES = ["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2))]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
BESIDE = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
BELOW = {"loc": "outside lower center", "fontsize": 8}
# Words in the plot, on white where a line would cross them.
WORDS = {"color": "0.4", "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5}}
# Every defense of the study has its place, so that it looks the same in every figure.
DEFENSES = [
    "none", "DP-SGD", "L2", "dropout", "fewer epochs", "label smoothing", "mixup", "RelaxLoss", "HAMP",
    "HAMP, training alone", "group sparsity", "fewer units", "fewer genes", "public panel", "distillation",
    "self-distillation", "class only", "top classes", "rounding", "temperature", "noise", "none, as many patients",
    "random projection",
]  # fmt: skip


def style():
    """Set the style for all figures that follow."""
    plt.style.use(pathlib.Path(__file__).parent / "data" / "study.mplstyle")


def look(names):
    """Give every name its color, line style and marker: a defense always the same, others by their order.

    Examples
    --------
    >>> look(["LumA", "LumB"])["LumB"]["marker"]
    's'
    >>> look(["none", "mine", "L2"])["L2"] == look(["L2"])["L2"]
    True
    """
    names = list(dict.fromkeys(names))
    others = [name for name in names if name not in DEFENSES]
    order = others if len(others) == len(names) else DEFENSES + others
    looks = {}
    for name in names:
        i = order.index(name)
        turn = (i + i // 8) % 8  # beyond eight names colors come again, each with another marker and line
        looks[name] = {"color": COLORS[i % 8], "linestyle": LINES[turn], "marker": MARKERS[turn]}
    return looks


def _mark(one):
    """A look without its line."""
    return {"marker": one["marker"], "color": one["color"], "ls": ""}


def _line(one):
    """A look without its marker."""
    return {"color": one["color"], "ls": one["linestyle"]}


def _spread(part, value="estimate", low="low", high="high"):
    """Lengths of whiskers, (2, rows)."""
    return np.abs(part[[low, high]].to_numpy(float).T - part[value].to_numpy(float))


def _level(axes, value, words, upright=False):
    """A thin gray line across at a value, with its name at the end."""
    if value is not None:
        (axes.axvline if upright else axes.axhline)(value, color="0.6", lw=0.8)
        place, ha = ((value, 1), "center") if upright else ((0.01, value), "left")
        across = axes.get_xaxis_transform() if upright else axes.get_yaxis_transform()
        axes.text(*place, words, WORDS, transform=across, ha=ha, va="bottom")


def save(figure, run_folder, name):
    """Keep a figure as SVG in the run's ``figures`` folder, for papers; the notebook shows it besides."""
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
    axes.bar_label(axes.barh(names, counts, color=[one["color"] for one in look(names).values()]), padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("patients")
    return figure


def scatter(points, groups, names, axis_names):
    """Draw patients as points (n, 2), with one color and marker for each group (n,) of those that `names` names.

    Examples
    --------
    >>> scatter(np.zeros((2, 2)), np.array([0, 1]), ["A", "B"], ("x", "y")).axes[0].get_ylabel()
    'y'
    """
    figure, axes = plt.subplots(figsize=(5.2, 3.8))
    for k, (name, one) in enumerate(look(names).items()):
        axes.plot(*points[groups == k].T, mew=0, alpha=0.8, label=name, **_mark(one))
    axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
    axes.legend(**BESIDE)
    return figure


def intervals(table, rows, hue=None, xlabel="", chance=None, xlim=None):
    """Draw estimates with their intervals, one line a row of the table, from top to bottom.

    `rows` is the column that names the lines, `hue` one that tells marks apart, several on one line or one on each;
    `xlabel` has its unit, and `chance` is where an attacker who guesses, or a model that guesses, would stand.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"attack": ["loss"], "estimate": [0.6], "low": [0.5], "high": [0.7]})
    >>> intervals(table, "attack", xlabel="AUC").axes[0].get_xlabel()
    'AUC'
    """
    names, hues = list(dict.fromkeys(table[rows])), [""] * len(table) if hue is None else table[hue]
    looks = look(hues)
    apart = 0.22 if table[rows].duplicated().any() else 0.0
    height = 0.3 * len(names) * (max(1, 0.6 * len(looks)) if apart else 1) + 1.0
    figure, axes = plt.subplots(figsize=(5.6, height), layout="constrained")
    _level(axes, chance, "chance" if chance else "no change", upright=True)
    for i, (value, one) in enumerate(looks.items()):
        part = table[[name == value for name in hues]]
        height = np.array([names.index(name) for name in part[rows]]) + (i - (len(looks) - 1) / 2) * apart
        axes.errorbar(part["estimate"], height, xerr=_spread(part), label=value, **_mark(one))
        for place in height[part["estimate"].isna()]:  # a line without a mark says why
            axes.text(0.03, place, "not measurable", WORDS, transform=axes.get_yaxis_transform(), va="center")
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel=xlabel, xlim=xlim, ylim=(len(names) - 0.5, -0.5))
    if hue is not None and len(looks) < len(table):
        figure.legend(ncols=2, **BELOW)  # long names of rows leave no place beside
    return figure


def histograms(values, names, xlabel):
    """Draw the distributions of several samples over each other, as outlines of equal area.

    Examples
    --------
    >>> histograms([np.zeros(3), np.ones(3)], ["members", "non-members"], "signal").axes[0].get_ylabel()
    'share per bin'
    """
    edges = np.histogram_bin_edges(np.concatenate(values), bins=50)
    figure, axes = plt.subplots(figsize=(5.6, 2.8))
    for sample, (name, one) in zip(values, look(names).items(), strict=True):
        share = np.full(len(sample), 1 / len(sample))
        axes.hist(sample, edges, weights=share, histtype="step", label=name, **_line(one))
    axes.set(xlabel=xlabel, ylabel="share per bin")
    axes.legend()
    return figure


def against_epsilon(table, ylabel, reference=None, hue="features", chance=None):
    """Draw a quantity over epsilon with intervals, and what it is without privacy as a level line.

    The table has columns epsilon, estimate, low, high and `hue`, `reference` one row a hue: the same without privacy.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"epsilon": [1.0], "estimate": [0.5], "low": [0.4], "high": [0.6], "features": ["all"]})
    >>> against_epsilon(table, "accuracy").axes[0].get_xscale()
    'log'
    """
    figure, axes = plt.subplots(figsize=(5.6, 3.2))
    _level(axes, chance, "chance")
    looks = look(table[hue])
    for i, (value, one) in enumerate(looks.items()):
        part = table[table[hue] == value].sort_values("epsilon", kind="stable")
        beside = part["epsilon"] * 1.04 ** (i - (len(looks) - 1) / 2)
        axes.errorbar(beside, part["estimate"], yerr=_spread(part), label=f"{value}, DP-SGD", **one)
        if reference is not None:
            level = reference[reference[hue] == value].iloc[0]
            axes.axhline(level["estimate"], lw=0.8, label=f"{value}, not private", **_line(one))
            axes.axhspan(level["low"], level["high"], color=one["color"], alpha=0.06, lw=0)
    axes.set(xscale="log", xlabel="epsilon (smaller: more private)", ylabel=ylabel)
    _plain_ticks(axes, table["epsilon"])
    axes.legend(**BESIDE)
    return figure


def _plain_ticks(axes, values):
    """The very values that were measured, as plain numbers, are easier to read than powers of ten."""
    ticks = sorted(set(values))
    axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    axes.minorticks_off()


def trade_off(points, named, xlabel, ylabel, chance=None, tolerance=None, free=None):
    """Draw settings with their utility to the right and their risk upwards, on a logarithmic axis.

    Parameters
    ----------
    points : pandas.DataFrame
        As `genlib.results.settings` gives them. Rows without both numbers are left out; a risk of 0 is drawn at the
        lower edge.
    named : numpy.ndarray
        (rows,) bool: which are named, with their intervals; the others are drawn small.
    chance, tolerance : float, optional
        Risks that are drawn as level lines.
    free : pandas.DataFrame, optional
        Columns network and estimate: the utility of classifiers that no patient trained, drawn as stars at no risk.

    Examples
    --------
    >>> import pandas as pd
    >>> numbers = {f"{name}{end}": 0.5 for name in ("utility", "risk") for end in ("", "_low", "_high")}
    >>> points = pd.DataFrame([{"setting": "L2 0.1", "defense": "L2", **numbers}])
    >>> trade_off(points, np.array([True]), "accuracy", "members found").axes[0].get_yscale()
    'log'
    """
    figure, axes = plt.subplots(figsize=(7.6, 5.2), layout="constrained")
    points = points.assign(named=np.asarray(named, bool)).dropna(subset=["utility", "risk"])
    floor = min([0.005, *points.loc[points["risk"] > 0, "risk"] / 1.2])
    heights = [name for name in points if name.startswith("risk")]
    points[heights] = points[heights].clip(lower=floor)
    _level(axes, chance, "chance")
    _level(axes, tolerance, "tolerance")
    looks = look(points["defense"])
    for name, one in looks.items():
        part = points[points["defense"] == name]
        axes.plot(part["utility"], part["risk"], label=name, **_mark(one))
        part = part[part["named"]]
        aside, up = (_spread(part, kind, f"{kind}_low", f"{kind}_high") for kind in ("utility", "risk"))
        axes.errorbar(part["utility"], part["risk"], up, aside, ms=7, elinewidth=0.9, **_mark(one))
    for row in () if free is None else free.to_dict("records"):
        axes.plot(row["estimate"], floor, marker="*", ms=13, color="black", ls="", clip_on=False)
        axes.annotate(row["network"], (row["estimate"], floor), (8, 4), textcoords="offset points", size=8)
    axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log", ylim=(floor, None))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.minorticks_off()
    _labels_beside(axes, points[points["named"]])
    if looks:
        figure.legend(ncols=4, **BELOW)
    return figure


def _labels_beside(axes, points):
    """Write labels right of the axes, in the order of their points' heights, each with a thin line to its point."""
    points = points.sort_values(["risk", "utility", "setting"])
    places = axes.transData.transform(points[["utility", "risk"]].to_numpy(float).reshape(-1, 2))
    apart = np.arange(len(points)) * min(0.042, 1 / max(1, len(points)))
    heights = np.maximum.accumulate(axes.transAxes.inverted().transform(places)[:, 1] - apart) + apart
    heights = np.minimum(heights, 1 - apart[::-1])  # too many high ones would leave the top
    thin = {"arrowstyle": "-", "color": "0.55", "lw": 0.5, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 3}
    beside = {"textcoords": "axes fraction", "va": "center", "fontsize": 8, "arrowprops": thin}
    for height, row in zip(heights, points.to_dict("records"), strict=True):
        axes.annotate(row["setting"], (row["utility"], row["risk"]), (1.03, height), **beside)
