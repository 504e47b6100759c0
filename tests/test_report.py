"""What the tables, the page, the card and the README say, on results that were made for it."""

import ast
import html.parser
import json
import pathlib
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from genlib import report, results

ROOT = pathlib.Path(report.__file__).parent.parent
REFERENCE = ROOT / "outputs" / "reference"
WIDGET = "application/vnd.jupyter.widget-view+json"
SIZES = {"A": 90, "B": 10}
TRAINED = {"cohort": "made up", "network": "mlp", "trainer": "bank", "features": "all genes", "start": "random"}


def interval(value, width=0.01):
    return {"estimate": value, "low": value - width, "high": value + width}


def setting(utility, found, shared="model", weights=None, **where):
    """Rows of one setting: its utility, and what LiRA finds of everybody and of the classes (and of weights)."""
    where = TRAINED | {"notebook": "05_dp_sgd", "defense": "none"} | where
    useful = where | {"shared": shared}
    rows = [useful | {"metric": name, "group": "all"} | interval(utility) for name in ("accuracy", "balanced accuracy")]
    rows += [useful | {"metric": "recall", "group": name} | interval(utility) for name in SIZES]
    for handed, rates in (("answers", found), ("model", weights)):
        for group, rate in ({} if rates is None else dict(zip(["all", *SIZES], rates, strict=True))).items():
            of = where | {"shared": handed, "attack": "LiRA" if handed == "answers" else "span", "attacker": "auditor"}
            n = SIZES.get(group, 100)
            rows += [of | {"metric": results.FOUND, "group": group, "n_patients": n} | interval(rate)]
            rows += [of | {"metric": "AUC", "group": group, "n_patients": n} | interval(0.5 + rate)]
    return rows


def table_of(*settings):
    return results.tidy(pd.DataFrame([row for rows in settings for row in rows]))


def free(name, utility):
    row = {"notebook": "02_target_model", "cohort": "made up", "network": name, "defense": "none", "shared": "model"}
    return [row | {"metric": "balanced accuracy", "group": "all"} | interval(utility)]


@pytest.fixture
def table():
    """Notebooks 01 to 05: an undefended model that leaks, and a private one that is proven to be within 3 in 100."""
    first = [{"notebook": "01_cohort", "metric": "patients", "group": g, "estimate": n} for g, n in SIZES.items()]
    target = setting(0.7, None, notebook="02_target_model")
    attacked = []
    for attack, who, rate in (("LiRA", "auditor", 0.3), ("loss threshold", "no shadow models", 0.01)):
        rows = setting(0.7, [rate, rate, 3 * rate], notebook="03_answers")
        rows = [row | {"attack": attack, "attacker": who} for row in rows if "attack" in row]
        same = {results.FOUND: report.GLOBAL}
        rows += [row | {"metric": same[row["metric"]]} for row in rows if row["metric"] in same]
        attacked += rows + [row | {"metric": "FPR at the global threshold, FPR 0.01"} for row in rows[-3:]]
    private = setting(0.65, [0.02, 0.02, 0.2], defense="DP-SGD", epsilon=1.0)
    private = [row | ({"low": 0.0, "bound": 0.026} if row["metric"] == results.FOUND else {}) for row in private]
    return table_of(first, target, free("majority class", 0.5), free("published centroids", 0.6), attacked, private,
                    setting(0.7, [0.3, 0.3, 0.9]))  # fmt: skip


def decided(*settings, tolerance=0.03, floor=0.5):
    (row,) = results.decisions(table_of(*settings), tolerance, floor).to_dict("records")
    return row["answers"], row["model"], row["why"]


# --- verdicts -------------------------------------------------------------------------------------------------------


def test_a_setting_that_passes_on_everybody_fails_on_one_class():
    assert decided(setting(0.7, [0.01, 0.01, 0.3])) == ("fails", "fails", "LiRA finds 30 % of B members")
    assert decided(setting(0.7, [0.01, 0.01, 0.01]))[0] == "passes"


def test_a_setting_below_the_accuracy_floor_is_refused_whatever_its_risk():
    harmless = setting(0.4, [0.0, 0.0, 0.0], weights=[0.0, 0.0, 0.0])
    assert decided(harmless) == ("fails", "fails", "balanced accuracy below 50 %")
    assert decided(harmless, floor=0.395) == ("cannot be told",) * 2 + ("balanced accuracy not surely above 40 %",)
    assert decided(harmless, floor=0.3)[:2] == ("passes", "passes")


def test_a_proven_bound_passes_within_the_tolerance_and_not_above():
    unsure = [row | {"low": 0.0, "high": 0.3} for row in setting(0.7, [0.02, 0.02, 0.02], epsilon=2.0)]
    unsure = [row | interval(0.7) if row["metric"] == "balanced accuracy" else row for row in unsure]
    proven = [row | ({"bound": 0.03} if row["metric"] == results.FOUND else {}) for row in unsure]
    assert decided(proven) == ("passes", "passes", "proven, in or out: at most 3.0 % by any attack")
    above = [row | ({"bound": 0.034} if "bound" in row else {}) for row in proven]
    assert decided(above) == ("cannot be told", "cannot be told", "too few patients: B, A, all")


def test_a_measurement_above_its_bound_fails_in_spite_of_the_bound():
    broken = [row | {"bound": 0.02} for row in setting(0.7, [0.5, 0.5, 0.5], epsilon=2.0)]
    assert decided(broken)[:2] == ("fails", "fails")


def test_the_lower_end_is_corrected_for_all_attacks_and_classes():
    barely = setting(0.7, [0.0415, 0.0415, 0.0415])  # each alone is above 0.03, at 0.0315
    assert decided(barely)[0] == "cannot be told" and decided(barely, tolerance=0.029)[0] == "fails"


def test_a_model_is_judged_by_its_weights_too_and_not_passed_without():
    answers = [0.0, 0.0, 0.0]
    assert decided(setting(0.7, answers)) == ("passes", "cannot be told", "its weights were not attacked")
    assert decided(setting(0.7, answers, weights=answers))[:2] == ("passes", "passes")
    assert decided(setting(0.7, answers, weights=[0.9] * 3)) == ("passes", "fails", "span finds 90 % of all members")


def test_answers_and_weights_are_one_family_so_what_fails_by_its_answers_fails_as_a_model():
    barely = setting(0.7, [0.043] * 3, weights=[0.0] * 3)  # above 0.03 among three statements, not surely among six
    assert decided(barely)[:2] == ("cannot be told", "cannot be told")
    assert decided(setting(0.7, [0.3] * 3, weights=[0.0] * 3))[:2] == ("fails", "fails")


def test_a_defense_that_changes_answers_only_is_never_a_model():
    assert decided(setting(0.7, [0.0] * 3, shared="answers", defense="rounding", strength=1))[:2] == ("passes", "fails")


def test_what_too_few_non_members_stand_behind_cannot_be_told():
    unmeasured = [row | ({} if row["metric"] != results.FOUND or row["group"] != "B" else interval(np.nan))
                  for row in setting(0.7, [0.0, 0.0, 0.0])]  # fmt: skip
    assert decided(unmeasured)[0] == "cannot be told"


def test_controls_faults_and_the_other_trainer_are_no_settings(table):
    others = [
        setting(0.9, [1.0] * 3, control="planted fault", defense="DP-SGD", epsilon=1.0),
        setting(0.9, [1.0] * 3, trainer="tf-privacy", defense="DP-SGD", epsilon=1.0),
    ]
    assert results.settings(pd.concat([table, table_of(*others)])).equals(results.settings(table))


def test_settings_are_told_apart_by_network_and_notebook_only_where_needed():
    settings = [
        setting(0.7, [0.1] * 3, network="softmax"),
        setting(0.7, [0.1] * 3),
        setting(0.7, [0.1] * 3, notebook="06_defenses", defense="L2", strength=0.1),
        setting(0.7, [0.1] * 3, epsilon=1.0, defense="DP-SGD", features="pam50", start="published centroids"),
        setting(0.7, [0.1] * 3, epsilon=4.0, defense="DP-SGD", notebook="06_defenses"),
        setting(0.7, [0.1] * 3, epsilon=4.0, defense="DP-SGD"),
    ]
    assert set(results.settings(table_of(*settings))["setting"]) == {
        "no defense (softmax)", "no defense (mlp)", "L2 0.1", "DP-SGD, epsilon 1, pam50, from published centroids",
        "DP-SGD, epsilon 4 (notebook 05)", "DP-SGD, epsilon 4 (notebook 06)",
    }  # fmt: skip


def test_the_frontier_is_what_a_loop_finds():
    rng = np.random.default_rng(0)
    for _ in range(20):
        n = rng.integers(1, 12)
        points = pd.DataFrame({"utility": rng.integers(0, 4, n) / 4, "risk": rng.integers(0, 4, n) / 4})
        points = points.mask(rng.random(points.shape) < 0.1).assign(shared=rng.choice(["model", "answers"], n))
        naive = []
        for _, one in points.iterrows():
            beaten = one[["utility", "risk"]].isna().any()
            for _, other in points.iterrows():
                better = other["utility"] > one["utility"] or other["risk"] < one["risk"]
                as_good = other["utility"] >= one["utility"] and other["risk"] <= one["risk"]
                beaten |= better and as_good and (other["shared"] == "model" or one["shared"] == "answers")
            naive.append(not beaten)
        assert results.frontier(points).tolist() == naive


# --- tables and sentences -------------------------------------------------------------------------------------------


def test_every_table_begins_with_what_needs_no_patient(table):
    for made in (report.settings_table(table), report.decision_table(table)):
        assert made["setting"].tolist()[:2] == ["majority class", "published centroids"]
    assert report.decision_table(table, floor=0.55)["the model"].tolist() == ["fails", "passes", "passes", "fails"]


def test_the_decision_does_not_hang_on_the_order_of_the_results():
    tied = table_of(*[setting(0.7, [0.0] * 3, defense="class only", strength=i) for i in range(30)])
    assert report.decision_table(tied).equals(report.decision_table(tied.iloc[::-1]))


def test_more_tolerance_never_lets_fewer_pass(table):
    passing = [(results.decisions(table, t)[["answers", "model"]] == "passes").sum().sum() for t in (0, 0.02, 0.03, 1)]
    assert passing == sorted(passing) and passing[0] == 0 < passing[-1]


def test_the_answer_quotes_the_results(table):
    said = report.answer(table)
    assert "balanced accuracy of 70 % (69 to 71)" in said[0] and "published centroids 60 % (59 to 61)" in said[0]
    assert "on the loss 1.0 % (0.0 to 2.0)" in said[1] and "LiRA finds 30 % (29 to 31) with models of" in said[1]
    assert "Most exposed, by the estimate, is B (10 patients): 90 % (89 to 91)" in said[2]
    assert said[3].startswith("Of 2 recipes for a model 1 passes")
    assert "privacy fails in 1, usefulness in 0" in said[3]
    assert "DP-SGD, epsilon 1, balanced accuracy 65 %" in said[4] and "proven, in or out: at most 2.6 %" in said[4]
    assert f"{100 * norm.cdf(2 * norm.ppf(0.026) - norm.ppf(0.01)):.1f} %" in said[4]
    assert report.summary(table).splitlines() == said


def test_a_target_that_did_not_learn_is_not_called_safe(table):
    for utility, said in ((0.705, False), (0.8, True)):
        linear = table_of([row | {"trainer": "scikit-learn"} for row in free("linear model", utility)])
        answer = report.answer(pd.concat([table, linear]))
        assert any("did not learn what can be learned" in sentence for sentence in answer) == said


def test_a_class_is_shown_with_the_share_of_its_own_non_members(table):
    row = report.class_table(table).set_index("class").loc["B"]
    assert row[["patients", "found by LiRA"]].tolist() == [10, "90 % (89 to 91)"]
    assert row["its non-members accused by LiRA"] == "90 % (89 to 91)"


# --- page and card --------------------------------------------------------------------------------------------------


class Reader(html.parser.HTMLParser):
    """Collects tags, and sees that they are closed in their order."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(path.read_text())
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link", "br", "hr", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def run(table, tmp_path):
    for name, part in table.groupby("notebook"):
        results.record(tmp_path, name, part)
    results.merge(tmp_path)
    manifest = {
        "environment": {"time": "today", "git_commit": "abc", "versions": {}}, "results": {"sha256": "123"},
        "run": {"profile": "smoke", "parameters": {"tolerance": 0.03, "floor": 0.5}}, "cohort": {"name": "made up"},
        "05_dp_sgd": {"nominal members": 50, "delta": 1e-5, "statements": {"DP-SGD, epsilon 1": "a promise in words"}},
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    outputs = [{"image/png": "iVBORw0KGgo=", "text/plain": "figure"}, {WIDGET: {}, "text/plain": "100%"}]
    outputs = [nbformat.v4.new_output("display_data", output) for output in outputs]
    for name in ("01_cohort", "09_report"):
        cells = [nbformat.v4.new_markdown_cell("# Who are <they>?\n\n## Section"),
                 nbformat.v4.new_code_cell("secret = 1", outputs=outputs)]  # fmt: skip
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    return tmp_path


def test_the_page_is_whole_without_code_and_asks_no_network(run):
    assert report.write(run) == []
    for path in (run / "index.html", run / "html" / "01_cohort.html"):
        page = Reader(path)
        assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
        sources = [a["src"] for _, a in page.tags if "src" in a]
        assert sources and all(source.startswith("data:") for source in sources)
        assert [a["alt"] for tag, a in page.tags if tag == "img"] == ["Figure: Section"]
        assert dict(page.tags)["html"]["lang"] == "en"
        assert ("secret" in "".join(page.text)) == (path.name != "index.html")
    page = Reader(run / "index.html")
    links = [a["href"] for tag, a in page.tags if tag == "a" and not a["href"].startswith("#")]
    assert links == ["risk_card.md", "risk_card.json", "html/01_cohort.html", "html/09_report.html"]
    assert all((run / link).exists() for link in links)
    summaries = [tag for tag, _ in page.tags if tag == "summary"]
    assert len(summaries) == 2 and "Privacy-risk card: DP-SGD, epsilon 1" in "".join(page.text)
    assert "Who are <they>?" in "".join(page.text) and '"sha256": "123"' in "".join(page.text)


def test_a_run_that_is_not_complete_says_what_is_missing(run):
    (run / "09_report.ipynb").unlink()
    results.select(results.read(run / "results.csv"), notebook="01_cohort").to_csv(run / "results.csv", index=False)
    lacking = report.write(run)
    assert (
        "no risk card: a card needs" in lacking[0] and lacking[1] == "index.html has no answer: 09_report was not run"
    )
    assert lacking[1] in "".join(Reader(run / "index.html").text) and not (run / "risk_card.md").exists()


def test_the_card_is_of_the_model_that_passes_and_says_what_to_do(run):
    report.write(run)
    card, words = json.loads((run / "risk_card.json").read_text()), (run / "risk_card.md").read_text()
    assert card["recipe"]["setting"] == "DP-SGD, epsilon 1" and card["recipe"]["model"] == "passes"
    assert (card["recipe"]["epsilon"], card["delta"], card["recipe"]["bound"]) == (1, 1e-5, 0.026)
    assert card["guarantee"] == "a promise in words"
    assert [one["n_patients"] for one in card["groups"]] == [100, 90, 10] and card["profile"] == "smoke"
    assert "This recipe passes (proven, in or out: at most 2.6 % by any attack)." in words
    assert (
        "published centroids: balanced accuracy 60 % (59 to 61)." in words and "| B | 10 | 65 % (64 to 66) |" in words
    )
    assert "not the weights of this study" in words and "profile smoke" in words


def test_where_nothing_passes_the_card_says_so_of_the_strictest_promise(run):
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["run"]["parameters"]["tolerance"] = 0.001
    card = report.card(results.read(run / "results.csv"), manifest)
    assert card["recipe"]["setting"] == "DP-SGD, epsilon 1" and card["recipe"]["model"] != "passes"


# --- the reference --------------------------------------------------------------------------------------------------


class TestTheReference:
    def test_it_is_whole_and_small_and_names_nobody(self):
        files = [path for path in REFERENCE.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) < 15e6
        linked = {path.stem for path in (ROOT / "notebooks").glob("0*.ipynb")}  # by the page
        wanted = linked | {path.stem for path in (ROOT / "notebooks").glob("1*.ipynb")}
        assert {path.stem for path in REFERENCE.glob("*.ipynb")} == wanted
        assert {path.stem for path in (REFERENCE / "html").iterdir()} == linked
        for path in files:
            text = path.read_text()
            assert not re.search(r"TCGA-\w\w-\w{4}|/home/|/root/|/tmp/(?!ipykernel)|/Users/", text), path
        for name in wanted:
            cells = nbformat.read(REFERENCE / f"{name}.ipynb", as_version=4).cells
            assert all(cell.execution_count for cell in cells if cell.cell_type == "code" and cell.source.strip())

    def test_its_card_is_the_one_that_its_results_give(self):
        manifest = json.loads((REFERENCE / "manifest.json").read_text())
        assert manifest["results"]["sha256"] == results.file_digest(REFERENCE / "results.csv")
        made = report.card(results.read(REFERENCE / "results.csv"), manifest)
        assert json.loads(json.dumps(made)) == json.loads((REFERENCE / "risk_card.json").read_text())


def calls(text):
    """Every call of a sort that is not stable by itself, as written: `sort_values` and `argsort`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("sort_values", "argsort"):
                yield node


@pytest.mark.parametrize(
    "path", [*(ROOT / "genlib").glob("*.py"), *(ROOT / "notebooks").glob("*.ipynb")], ids=lambda p: p.name
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
