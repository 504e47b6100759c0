import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from genlib import plots


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_colors_are_told_apart_in_gray_by_line_and_marker():
    seen = plots.look(list("abcdefgh")).values()
    assert len({str(one["linestyle"]) for one in seen}) == len({one["marker"] for one in seen}) == 8


def test_the_same_figure_gives_the_same_file(tmp_path):
    files = []
    for name in ("a", "b"):
        plots.style()
        figure = plots.class_sizes(["A", "B"], [1, 2])
        files.append(plots.save(figure, tmp_path, name).read_bytes())
    assert files[0] == files[1]


def test_intervals_draw_the_numbers_that_they_are_given():
    table = pd.DataFrame({"attack": ["a", "b"], "estimate": [0.5, 0.7], "low": [0.4, 0.6], "high": [0.6, 0.9]})
    axes = plots.intervals(table, "attack", xlabel="AUC").axes[0]
    line = axes.containers[0]
    assert line[0].get_xdata().tolist() == [0.5, 0.7]
    ends = [segment[:, 0].tolist() for segment in line[2][0].get_segments()]
    assert np.allclose(ends, [[0.4, 0.6], [0.6, 0.9]])


def test_histogram_shares_add_up_to_one():
    axes = plots.histograms([np.arange(10.0), np.arange(5.0)], ["a", "b"], "x").axes[0]
    edges = axes.patches[0].get_xy()
    assert edges[:, 1].max() <= 1


def test_an_unmeasurable_estimate_is_said_to_be_one():
    table = pd.DataFrame({"attack": ["a", "b"], "estimate": [0.5, np.nan], "low": 0.4, "high": 0.6})
    (said,) = plots.intervals(table, "attack").axes[0].texts
    assert said.get_text() == "not measurable" and said.get_position()[1] == 1


@pytest.mark.parametrize("number", range(8))
def test_no_color_is_too_pale_for_print(number):
    red, green, blue = (int(plots.COLORS[number][i : i + 2], 16) / 255 for i in (1, 3, 5))
    assert 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.8


@pytest.fixture
def points():
    places = [
        ("L2 0.1", "L2", 0.8, 0.05),
        ("mine", "mine", 0.7, 0.2),
        ("L2 1", "L2", 0.6, 0.0),
        ("?", "?", np.nan, 0.1),
    ]
    table = pd.DataFrame(places, columns=["setting", "defense", "utility", "risk"])
    ends = {f"{axis}_{end}": table[axis] for axis in ("utility", "risk") for end in ("low", "high")}
    return table.assign(**ends)


def test_named_settings_have_intervals_and_labels_and_a_risk_of_nothing_lies_at_the_edge(points):
    free = pd.DataFrame({"network": ["majority class"], "estimate": [0.5]})
    named = np.array([True, False, True, True])
    axes = plots.trade_off(points, named, "x", "y", chance=0.01, tolerance=0.03, free=free).axes[0]
    drawn = [one[0].get_xydata().tolist() for one in axes.containers if len(one[0].get_xydata())]
    floor = axes.get_ylim()[0]
    assert drawn == [[[0.8, 0.05], [0.6, floor]]]
    assert [text.get_text() for text in axes.texts] == ["chance", "tolerance", "majority class", "L2 1", "L2 0.1"]
    stars = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "*"]
    assert stars == [[[0.5, floor]]]


def test_labels_of_points_at_one_height_stand_apart_within_the_figure(points):
    crowd = pd.concat([points.iloc[[0]]] * 20, ignore_index=True)
    axes = plots.trade_off(crowd, np.ones(20, bool), "x", "y").axes[0]
    heights = sorted(text.xyann[1] for text in axes.texts)
    assert np.diff(heights).min() > 0.04 and heights[-1] <= 1


def test_a_figure_without_any_measured_setting_does_not_fail(points):
    assert plots.trade_off(points.iloc[[3]], np.array([True]), "x", "y").axes


def test_every_defense_looks_the_same_in_every_figure_and_unlike_all_others():
    alone = {name: plots.look([name])[name] for name in plots.DEFENSES}
    assert plots.look(["mine", *plots.DEFENSES[::-1]]).items() >= alone.items()
    seen = [(one["color"], one["marker"]) for one in plots.look([*plots.DEFENSES, "mine"]).values()]
    assert len(set(seen)) == len(seen)
