"""The notebooks as files, and each of them executed with the smoke profile as a user's command does it."""

import ast
import json
import os
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from genlib import report, results, run
from genlib.__main__ import parse

NOTEBOOKS = sorted(run.NOTEBOOKS.glob("*.ipynb"))
PROFILES = ["smoke", "quick", "full"]


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
class TestEveryNotebook:
    def test_it_holds_no_outputs(self, path):
        code = [cell for cell in read(path).cells if cell.cell_type == "code"]
        assert not any(cell.outputs or cell.execution_count for cell in code)

    def test_it_has_one_cell_of_parameters_and_that_holds_literals_only(self, path):
        tagged = [c for c in read(path).cells if "parameters" in c.metadata.get("tags", [])]
        assert len(tagged) == 1
        for statement in ast.parse(tagged[0].source).body:
            assert isinstance(statement, ast.Assign)
            ast.literal_eval(statement.value)

    def test_its_opening_names_every_parameter(self, path):
        opening = read(path).cells[0].source
        assert opening.startswith("# ")
        assert [name for name in run.parameters_of(path.stem) if f"`{name}`" not in opening] == [] or (
            "as in notebook 02" in opening
        )

    def test_it_says_what_goes_in_and_what_comes_out(self, path):
        opening = read(path).cells[0].source
        assert "**Inputs:**" in opening and "**Outputs:**" in opening

    def test_a_takeaway_is_one_sentence_of_numbers_without_conditions(self, path):
        code = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code")
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "report.takeaway":
                (said,) = node.args
                assert isinstance(said, ast.JoinedStr), ast.unparse(said)
                assert not any(isinstance(part, ast.IfExp) for part in ast.walk(said)), ast.unparse(said)

    def test_it_says_what_was_not_shown(self, path):
        assert any("## What was not shown" in cell.source for cell in read(path).cells)

    def test_every_reference_is_linked_by_its_doi_or_says_that_it_has_none(self, path):
        (references,) = [c.source.split("## References")[1] for c in read(path).cells if "## References" in c.source]
        listed = references.strip().removeprefix("- ").split("\n- ")
        assert listed and all(
            re.search(r"\[doi:(10\.\S+)\]\(https://doi\.org/\1\)$|\(no DOI\)", one.strip().rstrip("."))
            for one in listed
        )

    def test_no_cell_is_longer_than_fifteen_lines(self, path):
        code = [cell for cell in read(path).cells if cell.cell_type == "code"]
        code = [cell.source.splitlines() for cell in code if "parameters" not in cell.metadata.get("tags", [])]
        assert [lines[0] for lines in code if len(lines) > 15] == []


@pytest.mark.parametrize("profile", PROFILES)
def test_every_parameter_of_a_profile_exists_in_a_notebook(profile):
    taken = {name for notebook in run.names() for name in run.parameters_of(notebook)}
    assert set(run.profile(profile)) - taken == {"networks"}  # which networks.recipe reads


def test_every_parameter_that_the_command_passes_exists_in_the_notebook():
    for notebook in run.names():
        passed = run.parameters_for(notebook, {**run.profile("quick"), "seed": 1, "run_folder": "x"})
        assert set(passed) <= set(run.parameters_of(notebook))
        assert {"seed", "run_folder"} <= set(passed)


def test_defaults_of_the_notebooks_are_the_quick_profile():
    quick = run.profile("quick")
    for notebook in run.names():
        for name, written in run.parameters_of(notebook).items():
            if name in quick:
                assert written == quick[name], (notebook, name)


@pytest.mark.slow(300)
@pytest.mark.xdist_group("smoke")
class TestSmokeRun:
    def test_every_notebook_is_executed_without_an_error(self, smoke):
        for notebook in run.names():
            cells = read(smoke / f"{notebook}.ipynb").cells
            code = [cell for cell in cells if cell.cell_type == "code"]
            assert all(cell.execution_count for cell in code if cell.source.strip())
            assert not any(out.output_type == "error" for cell in code for out in cell.outputs)

    def test_no_patient_and_no_machine_is_named(self, smoke):
        for path in [*smoke.glob("*.ipynb"), *smoke.glob("*.csv"), smoke / "manifest.json"]:
            assert not re.search(r"TCGA-\w\w-\w{4}|/home/|/root/|/Users/", path.read_text()), path

    def test_figures_and_results_are_there(self, smoke):
        assert len(list((smoke / "figures").glob("*.svg"))) >= 10
        table = results.load(smoke)
        assert set(table["notebook"]) == set(run.names()) - {"09_report"}
        unmeasured = table[table["estimate"].isna()]
        changes = unmeasured["metric"].str.startswith("change of")  # of rates that are not measurable
        counts = unmeasured.loc[~changes, ["false_positives", "false_positive_patients"]]
        assert len(counts) and (counts.min(axis=1) < 5).all()

    def test_intervals_hold_their_estimates(self, smoke):
        table = results.load(smoke).dropna(subset=["estimate", "low", "high"])
        rates = table[table["metric"].isin(["accuracy", "balanced accuracy", "AUC", "recall"])]
        assert ((rates["low"] <= rates["estimate"] + 1e-9) & (rates["estimate"] <= rates["high"] + 1e-9)).mean() > 0.99

    def test_the_manifest_says_what_made_the_numbers(self, smoke):
        manifest = json.loads((smoke / "manifest.json").read_text())
        assert manifest["environment"]["versions"]["tensorflow"].startswith("2.15")
        assert manifest["run"]["parameters"]["seed"] == 0
        assert manifest["results"]["sha256"] == results.file_digest(smoke / "results.csv")

    def test_a_second_call_runs_nothing_again(self, smoke, capsys):
        run.main(parse(["--profile", "smoke", "--run", smoke.name]))
        assert capsys.readouterr().out.count("finished before, unchanged") == len(run.names())

    def test_cohorts_are_compared_over_finished_runs(self, smoke, tmp_path):
        run.apart("10_across_cohorts", tmp_path, runs=[os.path.relpath(smoke, run.NOTEBOOKS)])
        assert set(results.load(tmp_path, "10_across_cohorts")["cohort"]) == {"simulated"}

    def test_the_saved_target_model_opens_without_genlib(self, smoke):
        import tensorflow as tf

        assert tf.keras.models.load_model(smoke / "target_model" / "model.keras").output_shape == (None, 3)

    def test_every_setting_that_was_trained_is_judged(self, smoke):
        judged = results.decisions(results.load(smoke))["notebook"].value_counts()
        assert judged["05_dp_sgd"] == 2 * (1 + len(run.profile("smoke")["epsilons"]))
        assert judged["06_defenses"] == json.loads((smoke / "manifest.json").read_text())["06_defenses"]["settings"]

    def test_the_page_and_the_card_are_made(self, smoke):
        assert report.write(smoke) == []
        assert "may be shared" in (smoke / "index.html").read_text()
        assert "profile smoke" in (smoke / "risk_card.md").read_text()


@pytest.mark.slow(70)
@pytest.mark.xdist_group("sharp edges")
class TestSharpEdges:
    @pytest.fixture(scope="class")
    def edges(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("sharp-edges")
        run.apart("12_sharp_edges", folder)
        assert (folder / "html" / "12_sharp_edges.html").exists()
        return pd.read_csv(folder / "sharp_edges.csv").set_index(["edge", "row"])["value"]

    def test_each_fault_is_there_and_each_way_around_is_not_at_fault(self, edges):
        norms = edges["longest applied gradient at clip norm 1"]
        assert (norms[["dropout of 0.2", "dropout of 0.5", "Gaussian noise"]] > 1.5).all()
        assert norms[["no dropout", "dropout of 0.5, slow path"]].to_numpy() == pytest.approx(1.0, abs=1e-3)
        assert edges["slow path was taken"].to_dict() == {
            "layers with an Input": 0, "layers without an Input": 1, "filled by add()": 1, "with layer normalization": 1
        }  # fmt: skip
        assert edges["effect of one patient, in clip norms"].to_numpy() == pytest.approx([1.0, 2.0])
        seen = edges["share of audits that see a leak where there is none"]
        assert (seen.filter(like="all thresholds") > 0.05).all() and (seen.filter(like="this study") <= 0.05).all()
        aucs = edges["AUC where nothing leaks"]
        assert (aucs.filter(regex="number of models.*twin as shadow") == 1).all()
        assert (aucs.filter(like="twin left out") - 0.5).abs().max() < 0.02

    def test_the_chances_behind_the_bound_for_shuffling_are_those_of_drawn_sums(self, edges):
        sigma, n_batches, delta = 0.6, 100, 1e-5
        sums = sigma * np.random.default_rng(0).normal(size=(40_000, n_batches))
        reached, wanted = {}, {}
        for patient in (2, 1):
            largest = (sums + patient * (np.arange(n_batches) == 7)).max(axis=1)
            for c in (1.6, 2.0, 2.4):
                reached[patient, c] = (largest >= c).mean()
                wanted[patient, c] = 1 - norm.cdf((c - patient) / sigma) * norm.cdf(c / sigma) ** (n_batches - 1)
        assert reached == pytest.approx(wanted, abs=0.01)
        shown = max(np.log((reached[2, c] - delta) / reached[1, c]) for c in (1.6, 2.0, 2.4))
        stated = edges["epsilon of one epoch, shuffling, at least"]
        assert shown < stated[str(sigma)]
        assert (stated > edges["epsilon of one epoch, Poisson sampling, at most"]).all()
