import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, pearsonr

from genlib import cohorts, features, privacy

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


def test_a_panel_that_a_file_does_not_have_shows_how_the_file_names_its_genes(cohort):
    with pytest.raises(ValueError, match=f"Its genes are called {', '.join(cohort.genes[:3])}; they must be named"):
        features.find_panel(cohort, ["NOPE", "NADA"])


# --- published panels -----------------------------------------------------------------------------------------------


def test_pam50_has_fifty_different_genes():
    genes = features.read_panel("PAM50")
    assert len(genes) == len(set(genes)) == 50
    assert {"ESR1", "ERBB2", "MKI67", "KRT5"} <= set(genes)


def test_former_names_go_both_ways():
    for symbol, others in features.former_symbols().items():
        assert all(symbol in features.former_symbols()[other] for other in others)


def test_every_panel_file_is_one_gene_set_with_its_source():
    for path in features.DATA.glob("*.gmt"):
        name, source, *genes = path.read_text().splitlines()[0].split("\t")
        assert name and "doi" in source and len(genes) > 1


def test_an_unknown_panel_lists_the_known():
    with pytest.raises(ValueError, match="pam50"):
        features.read_panel("oncotype")


def test_a_gene_set_of_a_file_of_ones_own_is_chosen_by_name(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("ONE\thttps://example.org\tESR1\tPGR\nTWO\tnone\tKRT5\tKRT14\tKRT17\n")
    assert features.read_panel(f"{path}#TWO") == ["KRT5", "KRT14", "KRT17"]
    with pytest.raises(ValueError, match="choose one of the 2 gene sets .*ONE, TWO"):
        features.read_panel(str(path))
    with pytest.raises(ValueError, match="ONE, TWO"):
        features.read_panel(f"{path}#THREE")


def test_a_file_with_one_gene_set_needs_no_name(tmp_path):
    path = tmp_path / "thyroid.gmt"
    path.write_text("THYROID\tnone\tTG\tTPO\tPAX8\n\n")
    assert features.read_panel(str(path)) == ["TG", "TPO", "PAX8"]


@pytest.mark.parametrize(
    ("text", "said"), [("", "it is empty"), ("A\tB\n", "line 1 has"), ("A\tB\tC\nESR1\n", "line 2")]
)
def test_a_file_that_is_not_gmt_is_refused_with_its_line(tmp_path, text, said):
    path = tmp_path / "broken.gmt"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        features.read_panel(str(path))


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match="there is no file .*absent.gmt"):
        features.read_panel("/tmp/absent.gmt#SET")


def test_every_gene_of_the_panel_has_an_entrez_and_an_ensembl_id_of_its_own():
    ids = features.gene_ids()
    assert set(ids) == set(features.read_panel("pam50"))
    assert all(len(set(column)) == 50 for column in zip(*ids.values(), strict=True))
    # As NCBI Gene and Ensembl have them.
    assert ids["ERBB2"] == ("2064", "ENSG00000141736") and ids["ESR1"] == ("2099", "ENSG00000091831")


# --- published centroids --------------------------------------------------------------------------------------------


NAMES = ("Basal", "Her2", "LumA", "LumB", "Normal-like")


@pytest.fixture(scope="module")
def subtypes():
    simulated = cohorts.load("simulated", n_patients=60, n_genes=80, n_classes=5, seed=0)
    data = simulated.data.copy()
    data.obs["label"] = data.obs["label"].cat.rename_categories(dict(zip(simulated.classes, NAMES, strict=True)))
    return cohorts.Cohort(simulated.name, data)


def test_centroids_stand_in_the_order_of_the_panels_features(subtypes):
    signature = features.signature(subtypes)
    columns, _ = features.find_panel(subtypes, "pam50")
    symbols = list(subtypes.data.var_names[columns])
    assert signature.centroids.shape == (5, len(symbols))
    # Published: basal tumors lack the estrogen receptor, HER2-enriched ones have much ERBB2.
    assert signature.centroids[:, symbols.index("ESR1")].argmin() == NAMES.index("Basal")
    assert signature.centroids[:, symbols.index("ERBB2")].argmax() == NAMES.index("Her2")


def test_centroids_are_found_for_genes_that_are_called_by_ids(subtypes):
    ids, data = features.gene_ids(), subtypes.data.copy()
    data.var_names = [f"{ids[gene][1]}.7" if gene in ids else gene for gene in data.var_names]
    by_id = features.signature(cohorts.Cohort("by id", data))
    np.testing.assert_array_equal(by_id.centroids, features.signature(subtypes).centroids)


def test_prevalence_is_that_of_the_nurses_health_studies(subtypes):
    published = np.array([15, 14, 46, 18, 8]) / 101
    np.testing.assert_allclose(features.signature(subtypes).prevalence, published, atol=1e-4)


def test_class_weights_have_mean_one_under_the_published_prevalence(subtypes):
    signature = features.signature(subtypes)
    assert signature.prevalence @ signature.class_weights == pytest.approx(1, abs=1e-5)


def test_the_nearest_centroid_is_the_one_with_the_highest_correlation(subtypes):
    signature, x = features.signature(subtypes), features.transform(subtypes, panel="pam50")
    naive = [[pearsonr(profile, centroid).statistic for centroid in signature.centroids] for profile in x]
    np.testing.assert_allclose(signature.nearest(x), naive, atol=1e-5)


def test_the_start_names_the_same_classes_as_the_nearest_centroid(subtypes):
    signature, x = features.signature(subtypes), features.transform(subtypes, panel="pam50")
    kernel, bias = signature.start()
    np.testing.assert_array_equal((x @ kernel + bias).argmax(axis=1), signature.nearest(x).argmax(axis=1))


def test_rank_scores_never_exceed_the_radius_of_the_center(subtypes):
    center = features.signature(subtypes).center()
    norms = np.linalg.norm(features.transform(subtypes, panel="pam50"), axis=1)
    assert norms.max() <= center.radius * (1 + 1e-6)


def test_without_noise_the_center_finds_the_origin_of_simulated_centroids(subtypes):
    # Profiles that are a common baseline plus their class's centroid, half of the variance between the classes.
    signature, rng = features.signature(subtypes), np.random.default_rng(0)
    labels = rng.choice(5, 4000, p=signature.prevalence)
    between = signature.centroids[labels]
    lean = signature.prevalence @ signature.centroids
    spread = np.sqrt(((between - lean) ** 2).sum(axis=1).mean() / between.shape[1])
    baseline = rng.normal(0, 2, between.shape[1])
    profiles = baseline + between + rng.normal(0, spread, between.shape)
    radius = float(np.sqrt((profiles**2).sum(axis=1).mean()))
    profiles *= radius / np.linalg.norm(profiles, axis=1, keepdims=True)
    center = signature.center()
    center = type(center)(center.lean, center.share, radius)
    plan = privacy.Mechanism(clip_norm=1.0, noise=0.0, rate=1.0, steps=1, divisor=len(profiles))
    offset = center.offset(profiles, plan, rng)
    naive = profiles.mean(axis=0)
    assert np.linalg.norm(offset - baseline) < np.linalg.norm(naive - baseline) / 2


def test_classes_without_a_centroid_are_named_and_said_to_be_unavailable():
    other = cohorts.load("simulated", n_patients=60, n_genes=80, n_classes=3, seed=0)
    assert not features.has_signature(other)
    with pytest.raises(ValueError, match="no published centroid of pam50 for class class A"):
        features.signature(other)
    with pytest.raises(ValueError, match="no published centroids: there is no file .*oncotype.centroids.tsv"):
        features.signature(other, panel="oncotype")


def test_centroids_of_ones_own_lie_beside_their_panel(tmp_path, subtypes):
    (tmp_path / "mine.gmt").write_text("MINE\tnone\tESR1\tERBB2\tKRT5\n")
    centroids = pd.DataFrame(np.outer(range(3), range(5)), ["ESR1", "ERBB2", "KRT5"], NAMES, float)
    centroids.loc["prevalence"] = 0.2
    centroids.to_csv(tmp_path / "mine.centroids.tsv", sep="\t")
    panel = str(tmp_path / "mine.gmt")
    assert features.has_signature(subtypes, panel) and features.has_signature(subtypes, f"{panel}#MINE")
    np.testing.assert_allclose(features.signature(subtypes, panel).centroids[2], [-2, 0, 2])
