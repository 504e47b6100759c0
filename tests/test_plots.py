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


def test_an_unmeasurable_estimate_is_left_out_without_failing():
    table = pd.DataFrame({"attack": ["a"], "estimate": [np.nan], "low": [np.nan], "high": [np.nan]})
    assert plots.intervals(table, "attack").axes


@pytest.mark.parametrize("number", range(8))
def test_no_color_is_too_pale_for_print(number):
    red, green, blue = (int(plots.COLORS[number][i : i + 2], 16) / 255 for i in (1, 3, 5))
    assert 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.8


def test_the_audit_shows_every_canary_of_every_run_at_its_bound():
    table = pd.DataFrame({"run": ["a", "a", "b"], "canary": ["x", "y", "x"], "estimate": [0.0, 1.5, 3.0]})
    axes = plots.audited(table, promise=1.0).axes[0]
    shown = {line.get_label(): list(line.get_xdata()) for line in axes.lines}
    assert shown["x"] == [0.0, 3.0] and shown["y"] == [1.5]
    assert shown["promise"] == [1.0, 1.0]


@pytest.fixture
def settings():
    point = {"x_low": 0.6, "x_high": 0.9, "y_low": 0.5, "y_high": 0.7}
    places = [(0.8, 0.51, True, True), (0.7, 0.6, False, False), (0.81, 0.51, False, True), (np.nan, 0.5, False, True)]
    return pd.DataFrame(
        [
            {**point, "x": x, "y": y, "frontier": frontier, "labeled": labeled, "kind": "a", "name": f"setting {i}"}
            for i, (x, y, frontier, labeled) in enumerate(places)
        ]
    )


def test_settings_off_the_frontier_are_faint_and_named_only_when_asked(settings):
    axes = plots.trade_off_points(settings, "kind", "name", "worth", "risk", chance=0.5).axes[0]
    drawn = {tuple(np.asarray(one[0].get_xdata(), float)): one[0].get_alpha() for one in axes.containers}
    assert drawn[(0.8,)] == 1 and drawn[(0.7, 0.81)] < 0.5
    assert [text.get_text() for text in axes.texts] == ["chance", "setting 0", "setting 2"]


def test_labels_of_points_at_one_height_stand_apart_within_the_figure(settings):
    crowd = pd.concat([settings.iloc[[0]]] * 20, ignore_index=True)
    axes = plots.trade_off_points(crowd, "kind", "name", "worth", "risk").axes[0]
    heights = sorted(text.xyann[1] for text in axes.texts)
    assert np.diff(heights).min() > 0.04 and heights[-1] <= 1


def test_a_figure_without_any_measured_setting_does_not_fail(settings):
    assert plots.trade_off_points(settings.iloc[[3]], "kind", "name", "worth", "risk").axes


def test_two_figures_show_a_kind_alike_though_one_lacks_another_kind(settings):
    both = pd.concat([settings.assign(kind="b"), settings])
    first, second = (
        plots.trade_off_points(part, "kind", "name", "worth", "risk", hues=["b", "a"]).axes[0]
        for part in (both, settings)
    )
    seen = [{line.get_label(): line.get_marker() for line in axes.lines} for axes in (first, second)]
    assert seen[0]["a"] == seen[1]["a"] != seen[0]["b"] and "b" not in seen[1]
