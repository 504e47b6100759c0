"""The view to play with: it shows what the report says, moved or not, and brings no widget outside a session."""

import pathlib

import ipywidgets
import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from genlib import explore, report, results

TABLE = results.read(pathlib.Path(__file__).parent.parent / "outputs" / "reference" / "results.csv")
TABLE = TABLE[TABLE["notebook"].isin(["01_cohort", "05_dp_sgd", "06_defenses"])]
RAREST = report.rarest_class(TABLE)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_everybody_under_every_defense_is_the_decision_table():
    figure, rows = explore.view(TABLE, 0.03)
    assert rows.equals(report.decision_table(TABLE, 0.03, RAREST))
    names = {text.get_text() for text in figure.axes[0].texts} - {"chance"}
    passing = rows[rows["passes"].isin(["yes", "for answers only"])].head(explore.NAMED)  # the most useful come first
    assert names == {f"{row['setting']} ({row['from notebook']})" for row in passing.to_dict("records")}


def test_a_class_brings_its_own_exposure_and_a_family_its_own_rows():
    for defense in explore.defenses(TABLE)[1:]:
        _, rows = explore.view(TABLE, 0.03, RAREST, defense)
        points = report.frontier_points(TABLE, "recall", "AUC", RAREST)
        assert set(rows["setting"]) == set(points.loc[points["family"] == defense, "setting"])
        exposed = report.exposure_table(TABLE, RAREST).set_index(["setting", "from notebook"])["members recognized"]
        shown = rows.set_index(["setting", "from notebook"])[f"of {RAREST} recognized"]
        assert shown.equals(exposed.loc[shown.index].rename(shown.name))


def test_more_tolerance_never_lets_fewer_pass():
    passing = [
        explore.view(TABLE, tolerance)[1]["passes"].isin(["yes", "for answers only"]).sum()
        for tolerance in (0.0, 0.02, 0.05, 1.0)
    ]
    assert passing == sorted(passing) and passing[0] == 0 and passing[-1] > passing[1]


def test_the_choices_are_those_of_the_results():
    assert explore.groups(TABLE)[0] == "all" and RAREST in explore.groups(TABLE)
    with pytest.raises(ValueError, match=f"group 'nobody' is not in the results; choose among all.*{RAREST}"):
        explore.view(TABLE, 0.03, "nobody")
    with pytest.raises(ValueError, match="defense 'hope' is not in the results"):
        explore.view(TABLE, 0.03, defense="hope")


def test_moving_a_widget_draws_anew(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        explore, "view", lambda table, **chosen: (drawn.append(chosen), plt.figure(), TABLE.head(1))[1:]
    )
    box = explore.widget(TABLE, 0.03)
    slider, group, defense, _ = box.children
    assert drawn == [{"tolerance": 0.03, "group": "all", "defense": "all"}]
    slider.value, group.value, defense.value = 0.05, RAREST, explore.defenses(TABLE)[1]
    assert drawn[-1] == {"tolerance": 0.05, "group": RAREST, "defense": explore.defenses(TABLE)[1]}


@pytest.mark.parametrize("session", [True, False])
def test_widgets_come_in_jupyterlab_only(monkeypatch, session):
    monkeypatch.delenv(explore.SESSION, raising=False)
    if session:
        monkeypatch.setenv(explore.SESSION, "08_tradeoff.ipynb")
    shown = []
    monkeypatch.setattr(explore, "display", lambda *objects: shown.extend(objects))
    explore.show(TABLE, 0.03)
    assert type(shown[-1]) is (ipywidgets.VBox if session else Figure)
