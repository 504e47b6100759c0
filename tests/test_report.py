import ast

import nbformat
import numpy as np
import pandas as pd
import pytest

from genlib import report, results, run
from genlib.results import COLUMNS

ROOT = run.NOTEBOOKS.parent


def rows(where, worth, aucs, tpr_high=0.2, recall=0.5):
    """Rows of one setting: worth and the recall of class C, and for each attack its AUC and its rates."""
    made = [
        {
            **where,
            "metric": m,
            "set": "held-out",
            "group": g,
            "estimate": value,
            "low": value - 0.1,
            "high": value + 0.1,
        }
        for m, g, value in (
            ("accuracy", "all", worth),
            ("balanced accuracy", "all", worth),
            ("recall", "C", recall),
        )
    ]
    for attack, value in aucs.items():
        one = {**where, "attack": attack, "group": "all"}
        made.append({**one, "metric": "AUC", "estimate": value, "low": value, "high": value})
        for level in ("0.1", "0.01"):
            rate = {"estimate": tpr_high - 0.05, "low": 0.0, "high": tpr_high}
            made.append({**one, "metric": f"TPR at FPR {level}", **rate})
    return made


def of_04(features, epsilon, *measured, **more):
    return rows({"notebook": "05_dp_sgd", "features": features, "epsilon": epsilon}, *measured, **more)


def of_05(defense, strength, worth, auc, note="", **more):
    where = {
        "notebook": "06_defenses",
        "defense": defense,
        "features": strength and f"strength {strength}",
        "note": note,
    }
    made = rows(where, worth, {"RMIA": auc}, **more)
    strongest = [{**row, "set": row.get("set", "strongest")} for row in made]
    weaker = {**where, "attack": "LiRA", "group": "all", "metric": "AUC", "set": "", "estimate": auc - 0.1}
    return [*strongest, weaker, {**weaker, "set": "control", "note": "", "estimate": 0.5}]


@pytest.fixture
def table():
    made = of_04("all genes", np.nan, 0.7, {"loss": 0.6, "trained": 0.65}, tpr_high=0.3)
    made += of_04("pam50", 3.0, 0.65, {"loss": 0.52, "trained": 0.51}, tpr_high=0.12)
    made += of_04("pam50", 1.0, 0.5, {"loss": 0.53, "trained": 0.51}, tpr_high=0.11)
    return pd.DataFrame(made, columns=COLUMNS)


@pytest.fixture
def both(table):
    made = of_05("none", "", 0.69, 0.7, tpr_high=0.3)
    made += of_05("L2", "0.1", 0.66, 0.6, tpr_high=0.15)
    made += of_05("DP-SGD", "epsilon 4", 0.6, 0.55, tpr_high=0.1)
    made += of_05("class only", "", 0.69, 0.51, note="hides only", tpr_high=0.1)
    made += of_05("rounding", "1 decimals", 0.68, 0.6, note="hides only", tpr_high=0.2)
    return pd.concat([table, pd.DataFrame(made, columns=COLUMNS)])  # as notebook 08 does it, with repeated index


def on_frontier(points):
    return set(points.loc[points["frontier"], "setting"])


def test_every_setting_is_judged_by_the_attack_that_finds_most(both):
    attacks = report.settings_table(both)["best attack"].tolist()
    assert attacks == ["trained", "loss", "loss", *["RMIA"] * 5]


def test_every_setting_says_where_it_comes_from_what_it_promises_and_what_is_shared(both):
    said = report.settings_table(both).set_index("setting")[["from notebook", "promise", "what is shared"]]
    assert said.loc["pam50: epsilon 3"].tolist() == ["04", "epsilon 3", "model"]
    assert said.loc["DP-SGD: epsilon 4"].tolist() == ["05", "epsilon 4", "model"]
    assert said.loc["L2: 0.1"].tolist() == ["05", "none", "model"]
    assert said.loc["class only (hides only)"].tolist() == ["05", "none", "answers only"]


def test_the_planted_fault_and_the_control_are_no_settings(both):
    fault = {"notebook": "05_dp_sgd", "features": "all genes", "epsilon": 1.0, "set": "fault", "metric": "AUC"}
    both = pd.concat([both, pd.DataFrame([fault], columns=COLUMNS)])
    assert len(report.settings(both)) == 8
    assert not any((one.rows["set"] == "control").any() for one in report.settings(both))


def test_a_setting_beaten_on_both_counts_is_off_the_frontier(table):
    assert on_frontier(report.frontier_points(table, "balanced accuracy", "AUC")) == {
        "all genes: none",
        "pam50: epsilon 3",
    }


def test_a_defense_that_only_hides_beats_no_model(both):
    # By numbers alone "class only" (0.69, 0.51) beats everything but the undefended training on all genes (0.70, 0.65).
    assert on_frontier(report.frontier_points(both, "balanced accuracy", "AUC")) == {
        "all genes: none",
        "L2: 0.1",
        "pam50: epsilon 3",
        "class only (hides only)",
    }


def test_a_model_beats_what_only_hides(both):
    both.loc[both["defense"].eq("L2") & both["set"].eq("held-out"), "estimate"] = 0.68
    points = report.frontier_points(both[both["defense"] != "class only"], "balanced accuracy", "AUC")
    # The same worth and the same risk: neither beats the other.
    assert "rounding: 1 decimals (hides only)" in on_frontier(points)
    both.loc[both["defense"].eq("L2") & both["set"].eq("held-out"), "estimate"] = 0.685
    points = report.frontier_points(both[both["defense"] != "class only"], "balanced accuracy", "AUC")
    assert "rounding: 1 decimals (hides only)" not in on_frontier(points)


def test_what_cannot_be_measured_is_not_on_the_frontier_and_beats_nothing(table):
    best = table["features"].eq("pam50") & table["epsilon"].eq(3)
    table.loc[best & table["metric"].eq("balanced accuracy"), ["estimate", "low", "high"]] = np.nan
    assert on_frontier(report.frontier_points(table, "balanced accuracy", "AUC")) == {
        "all genes: none",
        "pam50: epsilon 1",
    }


def test_the_frontier_and_the_undefended_trainings_are_named(both):
    points = report.frontier_points(both, "balanced accuracy", "AUC")
    assert set(points.loc[points["baseline"], "label"]) == {"all genes: none (04)", "none (05)"}
    assert (points["labeled"] == (points["frontier"] | points["baseline"])).all()
    assert points["setting"].tolist() == report.settings_table(both)["setting"].tolist()


def test_of_a_class_only_the_attacks_count_that_were_measured_on_it(table):
    within = table[(table["metric"] == "AUC") & (table["attack"] == "trained")].assign(group="C", estimate=0.9)
    points = report.frontier_points(pd.concat([table, within]), "recall", "AUC", group="C")
    assert points["attack"].tolist() == ["trained"] * 3
    assert points["y"].tolist() == [0.9] * 3
    with pytest.raises(LookupError, match="no attack was measured on the group 'D'"):
        report.frontier_points(table, "recall", "AUC", group="D")


def test_results_that_do_not_say_what_only_hides_are_refused(both):
    with pytest.raises(ValueError, match="run the notebook again"):
        report.decision_table(both.assign(note=""), 0.15, "C")


def test_a_setting_passes_when_the_upper_end_of_its_interval_does(table):
    decision = report.decision_table(table, 0.15, "C").set_index("setting")
    assert decision["passes"].to_dict() == {
        "all genes: none": "no",
        "pam50: epsilon 3": "yes",
        "pam50: epsilon 1": "yes",
    }


@pytest.mark.parametrize("tolerance, verdict", [(0.12, "yes"), (0.1199, "no")])
def test_the_tolerance_itself_is_still_tolerated(table, tolerance, verdict):
    decision = report.decision_table(table, tolerance, "C").set_index("setting")
    assert decision.loc["pam50: epsilon 3", "passes"] == verdict


def test_what_only_hides_never_passes_for_the_model(both):
    decision = report.decision_table(both, 1.0, "C")
    hides = decision["setting"].str.endswith("(hides only)")
    assert hides.sum() == 2 and set(decision.loc[hides, "passes"]) == {"for answers only"}
    assert set(decision.loc[~hides, "passes"]) == {"yes"}
    strict = report.decision_table(both, 0.15, "C").set_index("setting")["passes"]
    assert strict["class only (hides only)"] == "for answers only"
    assert strict["rounding: 1 decimals (hides only)"] == "no"


def test_what_cannot_be_measured_does_not_pass(both):
    both.loc[both["metric"].str.startswith("TPR"), ["estimate", "low", "high"]] = np.nan
    decision = report.decision_table(both, 1.0, "C")
    assert set(decision["passes"]) == set(decision["members recognized of 100"]) == {"not measurable"}


def test_the_decision_says_recall_and_members_of_a_hundred(table):
    row = report.decision_table(table, 0.15, "C").iloc[0]
    assert row["recall of C"] == "50 % (40 to 60)"
    assert row["members recognized of 100"] == "25.0 (0.0 to 30.0)"


def test_the_most_useful_setting_comes_first(table):
    decision = report.decision_table(table, 1.0, "C")
    assert decision["setting"].tolist() == ["all genes: none", "pam50: epsilon 3", "pam50: epsilon 1"]


def test_the_undefended_trainings_stand_side_by_side_with_their_members(both):
    both.loc[both["notebook"] == "05_dp_sgd", "n_patients"] = 100
    both.loc[both["notebook"] == "06_defenses", "n_patients"] = 81
    found = report.baselines(both, "C")
    assert found["from notebook"].tolist() == ["04", "05"]
    assert found["members of a model, about"].tolist() == [50, 40]


def test_exposure_of_a_class_falls_back_on_what_can_be_measured(table):
    of_class = table[(table["metric"] == "AUC") & (table["attack"] == "trained")].assign(group="C")
    shared = of_class.assign(metric="TPR at the global threshold, FPR 0.01", estimate=np.nan)
    exposed = report.exposure_table(pd.concat([table, of_class, shared]), "C").iloc[0]
    assert exposed["members recognized"] == "not measurable"
    assert exposed["AUC within the class"] == "0.65 (0.65 to 0.65)"


def test_the_summary_needs_notebook_04_alone(table):
    shown = report.summary(table).splitlines()
    assert len(shown) == 2 + 3 and "from notebook" not in shown[1]


def test_one_refuses_none_and_several(table):
    with pytest.raises(LookupError, match="0 rows"):
        report.one(table, metric="no such metric")
    with pytest.raises(LookupError, match="6 rows"):
        report.one(table, metric="AUC")


def test_no_privacy_is_asked_for_by_none(table):
    assert set(report.select(table, epsilon=None)["features"]) == {"all genes"}


def test_the_readme_says_what_the_reference_run_found(monkeypatch):
    text = (ROOT / "README.md").read_text()
    monkeypatch.chdir(ROOT)
    assert report.readme(text, "outputs/reference") == text


def test_the_order_of_the_decision_table_does_not_hang_on_the_order_of_the_results():
    # Masked answers are worth the same; an unstable sort of so many ties differs between processors.
    table = results.read(ROOT / "outputs" / "reference" / "results.csv")
    masked = report.select(table, notebook="06_defenses", defense="class only")
    table = pd.concat([table, *(masked.assign(defense=f"class only {i}") for i in range(20))], ignore_index=True)
    rarest = report.rarest_class(table)
    found = report.decision_table(table, 0.03, rarest)
    assert not found[["setting", "from notebook"]].duplicated().any()
    worth = found["balanced accuracy"].value_counts()
    assert worth.max() > 16  # what a quicksort leaves to a stable sort
    assert found.equals(report.decision_table(table.iloc[::-1], 0.03, rarest))


def calls(text):
    """Every call of a sort that is not stable by itself, as written: `sort_values` and `argsort`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("sort_values", "argsort"):
                yield node


@pytest.mark.parametrize(
    "path", [*(ROOT / "genlib").glob("*.py"), *run.NOTEBOOKS.glob("*.ipynb")], ids=lambda p: p.name
)
def test_every_order_is_that_of_a_stable_sort(path):
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = nbformat.reads(text, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    for call in calls(text):
        stable = any(k.arg == "kind" and ast.literal_eval(k.value) == "stable" for k in call.keywords)
        # pandas sorts several columns one after the other, which is stable; a list may be built before.
        several = call.func.attr == "sort_values" and call.args and isinstance(call.args[0], ast.List | ast.Name)
        assert stable or several, ast.unparse(call)
