"""The privacy-risk card of one model, to go with its model card: what was attacked and found, and what is promised."""

import json
import pathlib

from genlib import report, results

SCHEMA = "genlib privacy-risk card, version 1"
METRICS = {"auc": "AUC", "found_at_fpr_0.1": "TPR at FPR 0.1", "found_at_fpr_0.01": "TPR at FPR 0.01"}
OF_A_CLASS = {"auc": "AUC", "found_at_global_threshold_fpr_0.01": "TPR at the global threshold, FPR 0.01"}
THREAT_MODEL = (
    "Auditor: the attacker holds the model (or all its answers), the profile and the class of the patient in question, "
    "and models trained by the same recipe on random halves of the same cohort. This is the worst case that a data "
    "custodian should assume."
)
NOT_COVERED = [
    "the released model itself: measured were models of a study run; for release one is trained by privacy.release",
    "attacks stronger than those that were run: without a promise, every measured risk is to be read as 'at least'",
    "the choice of this setting among many, made on the same patients: the best of many is flattered",
    "other data about the same patients, and relatives",
]


def write(run_folder, tolerance=0.03):
    """Write ``risk_card.md`` and ``risk_card.json`` for the model of a run that is worth most of those that may go out.

    It is the setting of notebook 05 with a promise that passes the tolerance and has the highest balanced accuracy;
    where none passes, the undefended one, and the card says that it should not be released.

    Parameters
    ----------
    run_folder : path-like
    tolerance : float
        Largest share of members that may be recognized at 1 false accusation in 100.

    Returns
    -------
    dict
        What the JSON file holds.

    Raises
    ------
    LookupError
        When notebooks 01, 02 or 05 have not been run; names what is missing.

    Examples
    --------
    >>> write("outputs/tcga-brca-quick")  # doctest: +SKIP
    """
    run_folder = pathlib.Path(run_folder)
    table = results.read(run_folder / "results.csv")
    manifest = json.loads((run_folder / "manifest.json").read_text())
    for notebook in ("01_cohort", "05_dp_sgd"):
        if report.select(table, notebook=notebook).empty:
            raise LookupError(f"no results of {notebook}; run it first (./run_all.sh --only {notebook})")
    made = card(table, manifest, tolerance)
    for name, text in (("json", json.dumps(made, indent=1) + "\n"), ("md", markdown(made))):
        with results.atomic_path(run_folder / f"risk_card.{name}") as part:
            part.write_text(text)
    return made


def chosen(table, tolerance):
    """Choose the setting that the card is about, and say whether it passes.

    Examples
    --------
    >>> chosen(report.pd.DataFrame(columns=results.COLUMNS), 0.03)
    Traceback (most recent call last):
    LookupError: no setting of notebook 05 was measured
    """
    trained = report.settings(report.select(table, notebook="05_dp_sgd"))
    if not trained:
        raise LookupError("no setting of notebook 05 was measured")
    passing = [one for one in trained if one.promise != "none" and _rate(one)["high"] <= tolerance]
    if passing:
        return max(passing, key=lambda one: _worth(one)["estimate"]), True
    return next(one for one in trained if one.baseline), False


def _rate(setting):
    return report.one(setting.rows, metric="TPR at FPR 0.01", group="all", attack=report.best_attack(setting.rows))


def _worth(setting):
    return report.one(setting.rows, metric="balanced accuracy", group="all", set="held-out")


def card(table, manifest, tolerance):
    """Put the card together.

    Parameters
    ----------
    table : pandas.DataFrame
        Results of a run.
    manifest : dict
        Its manifest.
    tolerance : float

    Returns
    -------
    dict
        Rates are shares from 0 to 1, each with estimate, low and high (95 %); null where it could not be measured.

    Examples
    --------
    >>> card(report.pd.DataFrame(columns=results.COLUMNS), {}, 0.03)
    Traceback (most recent call last):
    LookupError: no setting of notebook 05 was measured
    """
    setting, passes = chosen(table, tolerance)
    cohort, dp = manifest["cohort"], manifest["05_dp_sgd"]
    sizes = report.select(table, notebook="01_cohort", metric="patients")
    sizes = {row["group"]: int(row["estimate"]) for _, row in sizes.iterrows()}
    promised = setting.promise != "none"
    return {
        "schema": SCHEMA,
        "model": {
            "setting": setting.name, "network": str(setting.rows["network"].iloc[0]),
            "members_about": int(dp["nominal members"]), "may_be_released": passes,
            "tolerance": {"members_found": tolerance, "false_positive_rate": 0.01},
        },
        "data": {
            "cohort": cohort["name"], "source": cohort["source"], "license": cohort["license"],
            "limits": cohort.get("limits"), "patients": sizes.pop("all"), "patients_by_class": sizes,
            "genes": int(report.one(table, notebook="01_cohort", metric="genes")["estimate"]),
        },
        "threat_model": THREAT_MODEL,
        "attacks": sorted(set(setting.rows["attack"].dropna()) - {""}),
        "risk": _risk(setting.rows, sizes),
        "utility": {
            name.replace(" ", "_"): _interval(report.one(setting.rows, metric=name, group="all", set="held-out"))
            for name in ("accuracy", "balanced accuracy")
        } | {"recall_by_class": {c: _interval(_recall(setting.rows, c)) for c in sizes}},
        "guarantee": {
            "epsilon": float(setting.promise.removeprefix("epsilon ")), "delta": dp["delta"],
            "statement": dp["statements"][_key(setting)],
        } if promised else None,
        "not_covered": NOT_COVERED,
        "made": {
            "time": manifest["environment"]["time"], "git_commit": manifest["environment"]["git_commit"],
            "results_sha256": manifest["results"]["sha256"], "versions": manifest["environment"]["versions"],
        },
    }  # fmt: skip


def _key(setting):
    return setting.name.replace(": epsilon", ", epsilon")


def _recall(rows, group):
    return report.one(rows, metric="recall", group=group, set="held-out")


def _risk(rows, sizes):
    best = report.best_attack(rows)
    by_class = {}
    for group in sizes:
        attack = report.best_attack(rows, group)
        of_class = report.select(rows, group=group, attack=attack)
        found = {name: _interval(report.one(of_class, metric=metric)) for name, metric in OF_A_CLASS.items()}
        by_class[group] = {"attack": attack, **found}
    whole = report.select(rows, group="all", attack=best)
    overall = {name: _interval(report.one(whole, metric=metric)) for name, metric in METRICS.items()}
    return {"overall": {"attack": best, **overall}, "by_class": by_class}


def _interval(row):
    shown = {name: round(float(row[name]), 4) for name in ("estimate", "low", "high")}
    return shown if all(value == value for value in shown.values()) else None


def markdown(made):
    """Write a card as Markdown, for people.

    Parameters
    ----------
    made : dict
        From `card`.

    Returns
    -------
    str

    Examples
    --------
    >>> _words(None), _words({"estimate": 0.5, "low": 0.25, "high": 0.75})
    ('not measurable', '50 % (25 to 75)')
    """
    model, data, risk, guarantee = (made[part] for part in ("model", "data", "risk", "guarantee"))
    allowed = f"at most {100 * model['tolerance']['members_found']:g} of 100 members found at 1 false accusation in 100"
    verdict = "passes" if model["may_be_released"] else "DOES NOT PASS"
    overall = risk["overall"]
    classes = [
        f"| {name} | {size} | {_words(made['utility']['recall_by_class'][name])} | "
        f"{risk['by_class'][name]['attack']} | "
        f"{_words(risk['by_class'][name]['found_at_global_threshold_fpr_0.01'])} | "
        f"{_plain(risk['by_class'][name]['auc'])} |"
        for name, size in data["patients_by_class"].items()
    ]
    promise = guarantee["statement"] if guarantee else "None. Nothing is promised against attacks that were not run."
    return "\n".join([
        f"# Privacy-risk card: {model['setting']}", "",
        f"**Verdict.** {verdict}: {allowed} (upper end of the 95 % interval, best attack).", "",
        f"**Data.** {data['cohort']}: {data['patients']} patients, {data['genes']} genes, about "
        f"{model['members_about']} members of a model. {data['source']}. License: "
        f"{data['license']}. {data['limits'] or ''}", "",
        f"**Threat model.** {made['threat_model']}", "",
        f"**Attacks.** {', '.join(made['attacks'])}; the strongest here is {overall['attack']}.", "",
        f"**Measured risk.** AUC {_plain(overall['auc'])} (0.5 is guessing). Of its members "
        f"{_words(overall['found_at_fpr_0.01'])} are found at 1 false accusation in 100, and "
        f"{_words(overall['found_at_fpr_0.1'])} at 10.", "",
        f"**Utility.** Accuracy {_words(made['utility']['accuracy'])}, balanced accuracy "
        f"{_words(made['utility']['balanced_accuracy'])}, on held-out patients.", "",
        "| class | patients | named right | attack | members found (1 % of all accused) | AUC within |",
        "|---|---|---|---|---|---|", *classes, "",
        f"**Guarantee.** {promise}", "",
        "**Not covered.**", "", *[f"- {words}" for words in made["not_covered"]], "",
        f"Made {made['made']['time']} with commit {made['made']['git_commit'] or 'not known'}; results sha256 "
        f"{made['made']['results_sha256']}. In brackets: 95 % intervals over patients and pairs of models.", "",
    ])  # fmt: skip


def _words(interval):
    return report.percent(interval) if interval else "not measurable"


def _plain(interval):
    return report.plain(interval) if interval else "not measurable"
