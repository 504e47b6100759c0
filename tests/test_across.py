"""What holds over several cohorts, on made-up results with a known answer."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, spearmanr

from genlib import across, results


def made_up(tmp_path, name, seed=0, area=0.8):
    """A run with two classes, and three defenses: one helps, one does nothing, one harms."""
    sizes = {"all": 300, "A": 250, "B": 50}
    first = pd.DataFrame({"metric": "patients", "group": list(sizes), "estimate": list(map(float, sizes.values()))})
    results.record(tmp_path, "01_cohort", first, cohort=name)
    rows = [{"metric": "balanced accuracy", "group": "all", "estimate": 0.7, "low": 0.6, "high": 0.8}]
    rows += [{"metric": "recall", "group": g, "estimate": v, "low": 0, "high": 1} for g, v in (("A", 0.9), ("B", 0.4))]
    results.record(tmp_path, "02_target_model", pd.DataFrame(rows), cohort=name, network="mlp", set="held-out")
    rows = [
        {"metric": metric, "group": g, "set": s, "estimate": area, "low": area - 0.02, "high": area + 0.02}
        for (metric, g), s in [
            (("AUC", "all"), ""),
            (("AUC", "A"), ""),
            (("AUC", "B"), ""),
            (("TPR at FPR 0.01", "all"), ""),
        ]
    ]
    rows.append(
        {
            "metric": "AUC",
            "group": "all",
            "set": "control: membership redrawn",
            "estimate": 0.5,
            "low": 0.4,
            "high": 0.6,
        }
    )
    more = {"attack": "LiRA", "threat_model": "auditor", "network": "mlp"}
    results.record(tmp_path, "03_answers", pd.DataFrame(rows), cohort=name, **more)
    rows = []
    for defense, strength, change in (
        ("none", "", 0),
        ("good", "strength 1", -0.2),
        ("idle", "strength 1", 0.001),
        ("bad", "strength 1", 0.1),
    ):
        one = {"defense": defense, "features": strength, "group": "all"}
        rows.append(
            one
            | {
                "metric": "AUC",
                "set": "strongest",
                "estimate": area + change,
                "low": area + change - 0.02,
                "high": area + change + 0.02,
            }
        )
        rows.append(
            one | {"metric": "balanced accuracy", "set": "held-out", "estimate": 0.7 + change / 10, "low": 0, "high": 1}
        )
    results.record(tmp_path, "06_defenses", pd.DataFrame(rows), cohort=name, network="mlp")
    (tmp_path / "manifest.json").write_text(json.dumps({"run": {"parameters": {"seed": seed, "network": "mlp"}}}))
    return tmp_path


@pytest.fixture
def table(tmp_path):
    runs = []
    for number, (name, seed) in enumerate([("brca", 0), ("brca", 1), ("lgg", 0)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        runs.append(made_up(folder, name, seed, area=0.8 if name == "brca" else 0.7))
    return across.load(runs)


def test_seeds_of_one_cohort_count_once_and_do_not_narrow_its_interval(table):
    risk = across.risks(table)
    area = risk[risk["metric"] == "AUC"].set_index("cohort")
    assert area["estimate"].round(6).to_dict() == {"brca": 0.8, "lgg": 0.7}  # the control is no attack
    assert (area["high"] - area["low"]).round(6).tolist() == [0.04, 0.04]


def test_classes_come_with_their_size_share_and_recall(table):
    exposed = across.exposures(table).set_index(["cohort", "class"])
    assert len(exposed) == 4
    assert exposed.loc[("lgg", "B"), ["patients", "share", "recall", "estimate"]].tolist() == [50, 50 / 300, 0.4, 0.7]


def test_effects_are_differences_with_the_error_of_both_and_holm_over_all(table):
    found = across.effects(table)
    assert len(found) == 6
    good = found[(found["cohort"] == "lgg") & (found["defense"] == "good")].iloc[0]
    assert good["estimate"] == pytest.approx(-0.2)
    assert good["high"] - good["estimate"] == pytest.approx(0.02 * np.sqrt(2))
    assert good["worth"] == pytest.approx(-0.02)
    assert found.groupby("defense")["verdict"].unique().str[0].to_dict() == {
        "good": "lowers", "idle": "no difference", "bad": "raises"
    }  # fmt: skip
    # Holm by hand: the smallest p times 6, the next times 5, ... never falling.
    error = 0.02 / norm.ppf(0.975) * np.sqrt(2)
    plain = 2 * norm.sf(np.abs(found["estimate"]) / error)
    by_hand, running = np.empty(6), 0.0
    for rank, place in enumerate(np.argsort(plain, kind="stable")):
        running = max(running, min(1.0, (6 - rank) * plain[place]))
        by_hand[place] = running
    np.testing.assert_allclose(found["p"], by_hand)


def test_a_defense_of_the_answers_alone_is_called_so(table):
    hides = table["defense"] == "good"
    found = across.effects(table.assign(note=table["note"].where(~hides, "hides only")))
    assert set(found["setting"]) == {"good: 1 (hides only)", "idle: 1", "bad: 1"}


def test_agreement_counts_cohorts_and_leaves_out_what_was_not_tried_everywhere(table):
    found = across.effects(table)
    counted = across.agreement(found[~((found["cohort"] == "lgg") & (found["defense"] == "idle"))])
    assert counted["setting"].tolist() == ["good: 1", "bad: 1"]
    assert counted[["lowers", "no difference", "raises"]].to_numpy().tolist() == [[2, 0, 0], [0, 0, 2]]


def test_without_a_difference_false_verdicts_stay_below_one_table_in_twenty():
    rng = np.random.default_rng(0)
    rows, false = [], 0
    for _ in range(60):
        noise = rng.normal(0, 0.01, 21)
        for i, value in enumerate(0.7 + noise):
            one = {
                "notebook": "06_defenses",
                "note": "",
                "cohort": "a",
                "network": "mlp",
                "group": "all",
                "seed": 0,
            }
            one |= {"defense": "none" if i == 0 else f"d{i}", "features": ""}
            half = 0.01 * norm.ppf(0.975)
            rows.append(
                one
                | {"metric": "AUC", "set": "strongest", "estimate": value, "low": value - half, "high": value + half}
            )
            rows.append(one | {"metric": "balanced accuracy", "set": "held-out", "estimate": 0.5, "low": 0, "high": 1})
        false += (across.effects(pd.DataFrame(rows))["verdict"] != "no difference").any()
        rows = []
    assert false <= 60 * across.TESTED + 3 * np.sqrt(60 * across.TESTED)


def test_rank_correlation_of_one_group_is_spearmans_and_its_p_that_of_all_orders():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 6))
    coefficient, p = across.rank_correlation(x, y, np.zeros(6), n_draws=5000)
    assert coefficient == pytest.approx(spearmanr(x, y)[0])
    all_orders = [abs(spearmanr(x, y[list(order)])[0]) for order in itertools.permutations(range(6))]
    exact = np.mean(np.array(all_orders) >= abs(coefficient) - 1e-12)
    assert p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 5000) + 1e-4)


def test_cohorts_that_differ_as_a_whole_make_no_correlation():
    rng = np.random.default_rng(2)
    groups = np.repeat([0, 1], 20)
    x = rng.normal(size=40) + 10 * groups
    y = rng.normal(size=40) + 10 * groups
    assert spearmanr(x, y)[0] > 0.7
    assert across.rank_correlation(x, y, groups)[1] > 0.05
    assert np.isnan(across.rank_correlation(np.arange(2.0), np.arange(2.0), np.arange(2))[0])
    assert across.rank_correlation(np.ones(4), np.arange(4.0), np.zeros(4))[1] == 1.0
