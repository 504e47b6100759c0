import numpy as np
import pandas as pd
import pytest

from genlib import report
from genlib.results import COLUMNS
from genlib.study import ROOT


def rows(features, epsilon, worth, aucs, tpr_high=0.2):
    base = {"notebook": "04_dp_sgd", "features": features, "epsilon": epsilon, "group": "all"}
    made = [
        {**base, "metric": m, "set": "held-out", "estimate": worth, "low": worth - 0.1, "high": worth + 0.1}
        for m in ("accuracy", "balanced accuracy")
    ]
    for attack, value in aucs.items():
        made.append({**base, "attack": attack, "metric": "AUC", "estimate": value, "low": value, "high": value})
        for level in ("0.1", "0.01"):
            rate = {"estimate": tpr_high - 0.05, "low": 0.0, "high": tpr_high}
            made.append({**base, "attack": attack, "metric": f"TPR at FPR {level}", **rate})
    return made


@pytest.fixture
def table():
    made = rows("all genes", np.nan, 0.7, {"loss": 0.6, "trained": 0.65}, tpr_high=0.3)
    made += rows("pam50", 3.0, 0.65, {"loss": 0.52, "trained": 0.51}, tpr_high=0.12)
    made += rows("pam50", 1.0, 0.5, {"loss": 0.53, "trained": 0.51}, tpr_high=0.11)
    return pd.DataFrame(made, columns=COLUMNS)


def test_every_setting_is_judged_by_the_attack_that_finds_most(table):
    assert report.settings_table(table)["best attack"].tolist() == ["trained", "loss", "loss"]


def test_a_setting_beaten_on_both_counts_is_dominated(table):
    points = report.frontier_points(table, "balanced accuracy", "AUC")
    assert points.set_index("label")["dominated"].to_dict() == {"none": False, "3": False, "1": True}


def test_a_setting_passes_when_the_upper_end_of_its_interval_does(table):
    decision = report.decision_table(table, tolerance=0.15).set_index("epsilon")
    assert decision["passes"].to_dict() == {"none": "no", "3": "yes", "1": "yes"}


def test_what_cannot_be_measured_does_not_pass(table):
    table.loc[table["metric"].str.startswith("TPR"), ["estimate", "low", "high"]] = np.nan
    assert set(report.decision_table(table, tolerance=0.15)["passes"]) == {"not measurable"}


def test_the_most_useful_setting_comes_first(table):
    assert report.decision_table(table, tolerance=1.0)["epsilon"].tolist() == ["none", "3", "1"]


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
