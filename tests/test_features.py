import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from genlib import cohorts, features, panels

KINDS = ["rank", "log2", "unit"]
PANELS = [None, "pam50", ["ESR1", "ERBB2", "KRT5"]]


@pytest.fixture(scope="module")
def cohort():
    return cohorts.load("simulated", n_patients=40, n_genes=80, n_classes=2, seed=0)


def with_patients(cohort, rows, changed=None):
    data = cohort.data[rows].copy()
    if changed is not None:
        data.X[changed] = np.random.default_rng(1).normal(8, 3, data.n_vars)
    return cohorts.Cohort(cohort.name, data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("panel", PANELS, ids=str)
@settings(max_examples=10, deadline=None)
@given(patient=st.integers(0, 39))
def test_changing_or_removing_a_patient_changes_nobody_else(cohort, kind, panel, patient):
    others = np.delete(np.arange(40), patient)
    whole = features.transform(cohort, kind, panel)[others]
    changed = features.transform(with_patients(cohort, np.arange(40), patient), kind, panel)[others]
    removed = features.transform(with_patients(cohort, others), kind, panel)
    np.testing.assert_array_equal(whole, changed)
    np.testing.assert_array_equal(whole, removed)


@pytest.mark.parametrize("kind", KINDS)
def test_permuting_patients_permutes_their_features(cohort, kind):
    order = np.random.default_rng(0).permutation(40)
    permuted = features.transform(with_patients(cohort, order), kind)
    np.testing.assert_array_equal(permuted, features.transform(cohort, kind)[order])


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_rank_scores_equal_a_naive_count_with_ties_at_their_mean(values):
    d = len(values)
    ranks = [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]
    expected = norm.ppf([(r - 0.5) / d for r in ranks])
    np.testing.assert_allclose(features.rank_scores(np.array([values], float))[0], expected, atol=1e-6)


def test_rank_scores_do_not_see_a_monotone_change_of_scale(cohort):
    values = cohort.expression.astype(float)
    np.testing.assert_array_equal(features.rank_scores(values), features.rank_scores(np.exp2(values / 4)))


def test_unit_profiles_have_length_one_and_keep_their_direction(cohort):
    unit = features.transform(cohort, "unit")
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(unit / unit[:, :1], cohort.expression / cohort.expression[:, :1], rtol=1e-4)


def test_log2_is_the_expression_as_it_is(cohort):
    np.testing.assert_array_equal(features.transform(cohort, "log2"), cohort.expression)


def test_ranks_of_a_panel_are_taken_within_it(cohort):
    scores = features.transform(cohort, panel=["ESR1", "ERBB2", "KRT5"])
    assert np.allclose(np.sort(scores, axis=1), norm.ppf([1 / 6, 3 / 6, 5 / 6]), atol=1e-6)


def test_a_gene_is_found_under_its_former_name(cohort):
    data = cohort.data.copy()
    data.var_names = ["ORC6L" if g == "ORC6" else g for g in data.var_names]
    columns, missing = features.find_panel(cohorts.Cohort("old", data), ["ORC6", "ESR1"])
    assert data.var_names[columns].tolist() == ["ORC6L", "ESR1"] and missing == []


def test_a_panel_of_which_some_genes_are_missing_warns_and_names_them(cohort):
    with pytest.warns(UserWarning, match="NOT-THERE"):
        assert features.transform(cohort, panel=["ESR1", "ERBB2", "NOT-THERE"]).shape == (40, 2)


def test_a_panel_of_which_most_genes_are_missing_is_an_error_that_counts_and_names_them(cohort):
    with pytest.raises(ValueError, match="1 of 3 genes .* NOPE, NADA"):
        features.transform(cohort, panel=["ESR1", "NOPE", "NADA"])


def test_unknown_words_list_the_known(cohort):
    with pytest.raises(ValueError, match="'rank', 'log2' or 'unit'"):
        features.transform(cohort, "ranks")
    with pytest.raises(ValueError, match="known panels: pam50"):
        features.transform(cohort, panel="pam51")


def test_a_reference_centers_and_scales_every_gene_by_numbers_of_others(cohort):
    other = cohorts.load("simulated", n_patients=40, n_genes=80, n_classes=2, seed=1)
    reference = features.reference_of(other, panel="pam50")
    plain = features.transform(cohort, panel="pam50")
    symbols = cohort.data.var_names[features.find_panel(cohort, "pam50")[0]]
    scaled = features.transform(cohort, panel="pam50", reference=reference)
    for column, symbol in enumerate(symbols):
        mean, sd = reference.loc[symbol]
        np.testing.assert_allclose(scaled[:, column], (plain[:, column] - mean) / sd, rtol=1e-4, atol=1e-4)


def test_with_a_reference_a_patient_still_changes_nobody_else(cohort):
    reference = features.reference_of(cohorts.load("simulated", n_patients=40, n_genes=80, n_classes=2, seed=1))
    others = np.arange(1, 40)
    whole = features.transform(cohort, reference=reference)[others]
    removed = features.transform(with_patients(cohort, others), reference=reference)
    np.testing.assert_array_equal(whole, removed)


def test_a_reference_that_lacks_a_gene_or_has_no_spread_is_refused(cohort):
    reference = features.reference_of(cohort, panel="pam50")
    with pytest.raises(ValueError, match="not in the reference: .*ESR1"):
        features.transform(cohort, panel="pam50", reference=reference.drop("ESR1"))
    reference.loc["ESR1", "sd"] = 0.0
    with pytest.raises(ValueError, match="sd that is not above 0"):
        features.transform(cohort, panel="pam50", reference=reference)


def test_a_panel_may_be_a_gene_set_of_a_file(cohort, tmp_path):
    path = tmp_path / "mine.gmt"
    path.write_text("MINE\tnone\tESR1\tERBB2\tKRT5\n")
    by_file = features.transform(cohort, panel=str(path))
    np.testing.assert_array_equal(by_file, features.transform(cohort, panel=["ESR1", "ERBB2", "KRT5"]))


def test_ranks_of_many_patients_are_those_of_each(monkeypatch):
    values = np.random.default_rng(0).integers(0, 9, (23, 30)).astype(np.float32)
    monkeypatch.setattr(features, "PATIENTS", 5)
    in_parts = features.rank_scores(values)
    monkeypatch.setattr(features, "PATIENTS", 100)
    np.testing.assert_array_equal(in_parts, features.rank_scores(values))
    assert in_parts.dtype == np.float32


@pytest.mark.parametrize("form", ["{symbol}", "{id}", "{symbol}_{id}", "{symbol}|{id}"])
@pytest.mark.parametrize("kind", ["csv", "parquet", "h5ad"])
def test_a_panel_is_found_however_a_file_names_its_genes(tmp_path, form, kind):
    ids = {**panels.entrez_ids(), "TG": "7038"}
    former = {"ORC6": "ORC6L"} if form == "{symbol}" else {}
    names = [form.format(symbol=former.get(s, s), id=i) for s, i in ids.items()]
    values = np.random.default_rng(0).normal(8, 1, (24, len(names))).astype(np.float32)
    table = pd.DataFrame(values, columns=names)
    path = tmp_path / f"mine.{kind}"
    if kind == "h5ad":
        anndata.AnnData(table, obs=pd.DataFrame({"type": list("ab") * 12}, index=table.index.astype(str))).write(path)
    else:
        table = table.assign(type=list("ab") * 12)
        table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path, index=False)
    own = cohorts.load(path, label="type")
    columns, missing = features.find_panel(own, "pam50")
    assert missing == [] and "TG" not in own.data.var_names[columns]
    np.testing.assert_allclose(
        own.expression[:, columns[0]], values[:, list(ids).index(panels.read("pam50")[0])], rtol=1e-5
    )
