"""Does a run say what the reference says? Every row of both results tables, compared: ``./run_all.sh verify``."""

import json
import pathlib
import sys

import numpy as np

from genlib import results, study

REFERENCE = study.ROOT / "outputs" / "reference"
NAMES = results.KEYS


def compare(table, reference, same_platform):
    """List the rows in which a run differs from the reference beyond what may be.

    Parameters
    ----------
    table, reference : pandas.DataFrame
        Results of a run and of the reference.
    same_platform : bool
        Then estimates and intervals must be equal. Elsewhere sums are rounded otherwise, and training lets that grow,
        so an estimate must lie within the reference's interval (of a row without one: within 1 % of it).

    Returns
    -------
    pandas.DataFrame
        The names of each such row, estimate, reference, low, high, and why: "differs", "outside of the interval",
        "missing" or "added".

    Examples
    --------
    >>> import pandas as pd
    >>> row = pd.DataFrame({name: [""] for name in NAMES} | {"estimate": 0.5, "low": 0.4, "high": 0.6})
    >>> compare(row.assign(estimate=0.55), row, same_platform=False).empty
    True
    >>> compare(row.assign(estimate=0.55), row, same_platform=True)["why"].tolist()
    ['differs']
    """
    left, right = (_numbered(one) for one in (table, reference))
    both = left.merge(right, on=[*NAMES, "time"], how="outer", suffixes=("", " of reference"), indicator=True)
    why = both["_merge"].map({"left_only": "added", "right_only": "missing", "both": ""}).astype(object)
    there = both["_merge"] == "both"
    if same_platform:
        numbers = [both[[n, f"{n} of reference"]].to_numpy(float) for n in ("estimate", "low", "high")]
        equal = np.all([(pair[:, 0] == pair[:, 1]) | np.isnan(pair).all(axis=1) for pair in numbers], axis=0)
        why[there & ~equal] = "differs"
    else:
        why[there & ~_within(both)] = "outside of the interval"
    shown = both.assign(why=why)[why != ""]
    return shown.rename(columns={"estimate of reference": "reference"})[[
        *NAMES, "estimate", "reference", "low of reference", "high of reference", "why",
    ]].reset_index(drop=True)  # fmt: skip


def same_platform(here, there):
    """Say whether two environments compute the same to the last digit: packages, and number and kind of processors.

    Parameters
    ----------
    here, there : dict
        From `genlib.results.environment`.

    Returns
    -------
    bool
        False where one does not say what it was.

    Examples
    --------
    >>> same_platform(results.environment(), results.environment())
    True
    """
    words = ("platform", "versions", "processors", "processor")
    return all(word in here and here[word] == there.get(word) for word in words)


def _numbered(table):
    """Rows of one name are told apart by their order."""
    named = table[[*NAMES, "estimate", "low", "high"]].fillna({name: "" for name in NAMES})
    return named.assign(time=named.groupby(NAMES).cumcount())


def _within(both):
    estimate, wanted = both["estimate"], both["estimate of reference"]
    low, high = both["low of reference"], both["high of reference"]
    slack = 0.01 * wanted.abs()
    low, high = low.fillna(wanted - slack), high.fillna(wanted + slack)
    return ((estimate >= low) & (estimate <= high)) | (estimate.isna() & wanted.isna()) | (estimate == wanted)


def main():
    """Run quick in ``outputs/verify`` and compare it with the reference; exit with 1 when they differ.

    Raises
    ------
    SystemExit
        1 when a row differs, is missing or was added.

    Examples
    --------
    >>> main()  # doctest: +SKIP
    """
    study.main(["--profile", "quick", "--run", "verify"])
    folder = study.ROOT / "outputs" / "verify"
    here, there = (json.loads((one / "manifest.json").read_text())["environment"] for one in (folder, REFERENCE))
    same = same_platform(here, there)
    table, reference = (results.read(pathlib.Path(one) / "results.csv") for one in (folder, REFERENCE))
    found = compare(table, reference, same)
    rule = "must be equal" if same else "must lie in the reference's intervals"
    kind = "the same" if same else "another"
    print(f"\n{len(reference)} rows of the reference; on {kind} platform estimates {rule}: {len(found)} do not.")
    if found.empty:
        return
    for (notebook, why), part in found.groupby(["notebook", "why"], sort=False):
        print(f"\n{notebook}: {len(part)} rows, {why}")
        print(part[["defense", "features", "attack", "group", "metric", "estimate", "reference"]].head(10).to_string())
    print(
        "\nWhy it matters: a row that differs is another result from the same data, seed and parameters. Either code "
        "or packages changed what is computed, or the difference is rounding that training let grow; the intervals say "
        "how much of that the conclusions bear."
    )
    sys.exit(1)


if __name__ == "__main__":
    main()
