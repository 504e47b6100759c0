"""The risk card says what the results say, of a model that passes, and of none other."""

import json
import pathlib
import shutil

import pytest

from genlib import report, results, risk_card

REFERENCE = pathlib.Path(__file__).parent.parent / "outputs" / "reference"
TABLE = results.read(REFERENCE / "results.csv")


@pytest.fixture
def run(tmp_path):
    shutil.copy(REFERENCE / "results.csv", tmp_path)
    manifest = json.loads((REFERENCE / "manifest.json").read_text())
    dp = manifest["05_dp_sgd"]
    dp["statements"] = {name: f"words on {name}" for name in dp["noise multipliers"]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_the_card_is_of_the_most_useful_model_with_a_promise_that_passes(run):
    made = risk_card.write(run)
    assert made == json.loads((run / "risk_card.json").read_text())
    decision = report.decision_table(report.select(TABLE, notebook="05_dp_sgd"), 0.03, report.rarest_class(TABLE))
    passing = decision[(decision["passes"] == "yes") & (decision["promise"] != "none")]
    assert made["model"]["setting"] == passing["setting"].iloc[0] and made["model"]["may_be_released"]
    assert f"epsilon {made['guarantee']['epsilon']:g}" == passing["promise"].iloc[0]
    assert made["guarantee"]["statement"].startswith("words on")
    assert made["data"]["patients"] == sum(made["data"]["patients_by_class"].values())
    assert set(made["risk"]["by_class"]) == set(made["data"]["patients_by_class"])


def test_people_read_the_same_numbers(run):
    made = risk_card.write(run)
    text = (run / "risk_card.md").read_text()
    assert report.plain(made["risk"]["overall"]["auc"]) in text
    assert report.percent(made["utility"]["accuracy"]) in text
    assert made["threat_model"] in text and "passes" in text


def test_where_nothing_passes_the_card_says_so_of_the_undefended_model(run):
    made = risk_card.write(run, tolerance=0.0)
    assert made["model"]["setting"] == "all genes: none" and made["guarantee"] is None
    assert "DOES NOT PASS" in (run / "risk_card.md").read_text()


def test_without_notebook_04_there_is_no_card(run):
    report.select(TABLE, notebook=["01_cohort", "02_target_model"]).to_csv(run / "results.csv", index=False)
    with pytest.raises(LookupError, match="no results of 05_dp_sgd; run it first"):
        risk_card.write(run)
    assert not (run / "risk_card.md").exists()
