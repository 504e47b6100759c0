"""What counts as the same result, and what does not."""

import pathlib

import numpy as np
import pandas as pd
import pytest

from genlib import results, verify

REFERENCE = results.read(pathlib.Path(__file__).parent.parent / "outputs" / "reference" / "results.csv")


@pytest.mark.parametrize("same_platform", [True, False])
def test_the_reference_is_equal_to_itself_in_any_order(same_platform):
    assert verify.compare(REFERENCE.copy(), REFERENCE, same_platform).empty


def changed(column, value, row=0):
    table = REFERENCE.copy()
    rows = table.index[(table["metric"] == "AUC") & (table["notebook"] == "06_defenses")]
    table.loc[rows[row], column] = value
    return table, table.loc[rows[row]]


def test_on_the_same_platform_the_last_digit_counts():
    table, row = changed("estimate", np.nextafter(changed("estimate", 0)[1]["high"], 1))
    found = verify.compare(table, REFERENCE, same_platform=True)
    assert found["why"].tolist() == ["differs"] and found["estimate"].tolist() == [row["estimate"]]
    assert verify.compare(changed("low", 0.123)[0], REFERENCE, same_platform=True)["why"].tolist() == ["differs"]


def test_elsewhere_the_interval_of_the_reference_counts():
    _, row = changed("estimate", 0)
    inside, _ = changed("estimate", (row["low"] + row["high"]) / 2)
    outside, _ = changed("estimate", row["high"] + 0.01)
    assert verify.compare(inside, REFERENCE, same_platform=False).empty
    assert verify.compare(outside, REFERENCE, same_platform=False)["why"].tolist() == ["outside of the interval"]
    assert verify.compare(changed("estimate", np.nan)[0], REFERENCE, same_platform=False)["why"].tolist() == [
        "outside of the interval"
    ]


def test_rows_that_are_missing_or_added_are_named():
    found = verify.compare(REFERENCE.iloc[1:], REFERENCE, same_platform=False)
    assert found["why"].tolist() == ["missing"] and found["metric"].tolist() == [REFERENCE["metric"].iloc[0]]
    more = pd.concat([REFERENCE, REFERENCE.iloc[[0]].assign(metric="new")])
    assert verify.compare(more, REFERENCE, same_platform=False)["why"].tolist() == ["added"]
    twice = pd.concat([REFERENCE, REFERENCE.iloc[[0]]])
    assert verify.compare(twice, REFERENCE, same_platform=False)["why"].tolist() == ["added"]


def test_another_kind_of_processor_is_another_platform():
    here = results.environment()
    assert verify.same_platform(here, {**here, "time": "another", "git_commit": "another"})
    for word in ("platform", "versions", "processors", "processor"):
        assert not verify.same_platform(here, {**here, word: "another"})
    # An older run did not say what its processor was.
    assert not verify.same_platform(here, {name: value for name, value in here.items() if name != "processor"})
