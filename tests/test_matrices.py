"""cBioPortal folders and Xena matrices, as they come."""

import gzip

import numpy as np
import pandas as pd
import pytest

from genlib import cohorts, matrices

N, GENES = 24, ["ESR1", "ERBB2", "GATA3", "KRT5"]
RNG = np.random.default_rng(0)
LINEAR = np.round(2 ** RNG.normal(8, 2, (len(GENES), N)), 4)
SAMPLES = [f"TCGA-A{i % 3}-{i:04d}-01" for i in range(N)]
PATIENTS = [name[:12] for name in SAMPLES]
SUBTYPE = ["THCA_BRAF" if i % 2 else "THCA_RAS" for i in range(N)]
COMMENTS = "#Patient Identifier\tSubtype\n#Identifier\tSubtype\n#STRING\tSTRING\n#1\t1\n"


def study(folder, values=LINEAR, genes=GENES, entrez=(2099, 2064, 2625, 3852), samples=SAMPLES, **files):
    """A cBioPortal study folder; `files` replace or add some, None leaves one out."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(values, columns=samples)
    table.insert(0, "Entrez_Gene_Id", list(entrez))
    table.insert(0, "Hugo_Symbol", list(genes))
    patients = pd.DataFrame({"PATIENT_ID": PATIENTS, "SUBTYPE": SUBTYPE})[::-1]
    texts = {
        "data_mrna_seq_v2_rsem.txt": table.to_csv(sep="\t", index=False),
        "data_clinical_patient.txt": COMMENTS + patients.to_csv(sep="\t", index=False),
        "data_clinical_sample.txt": COMMENTS
        + pd.DataFrame({"SAMPLE_ID": samples, "PATIENT_ID": [s[:12] for s in samples]}).to_csv(sep="\t", index=False),
        "data_mrna_seq_v2_rsem_zscores_ref_all_samples.txt": "not read",
    } | {f"{name}.txt": text for name, text in files.items()}
    for name, text in texts.items():
        if text is not None:
            (folder / name).write_text(text)
    return folder


def test_a_study_folder_runs_with_its_path_and_label_alone(tmp_path):
    cohort = cohorts.load(study(tmp_path / "thca_tcga"), label="SUBTYPE")
    assert cohort.name == "thca_tcga" and cohort.classes == ["THCA_BRAF", "THCA_RAS"] and cohort.genes == GENES
    np.testing.assert_allclose(cohort.expression, np.log2(LINEAR.T + 1), rtol=1e-5)
    assert [cohort.classes[k] for k in cohort.labels] == SUBTYPE
    assert "log2(x + 1)" in cohort.provenance["rules"]
    assert not any("TCGA" in name for name in cohort.data.obs_names)


def test_no_name_of_a_patient_is_printed(tmp_path, capsys):
    cohorts.load(study(tmp_path / "thca"), label="SUBTYPE", site=None)
    assert "TCGA-A" not in capsys.readouterr().out


def test_several_samples_of_a_patient_are_refused_or_merged_by_the_stated_rule(tmp_path):
    samples = SAMPLES[:-2] + [f"{SAMPLES[0][:12]}-06", f"{SAMPLES[2][:12]}-06"]
    folder = study(tmp_path / "thca", samples=samples)
    with pytest.raises(ValueError, match="2 samples are second ones"):
        cohorts.load(folder, label="SUBTYPE")
    first = cohorts.load(folder, label="SUBTYPE", several="first")
    np.testing.assert_allclose(first.expression, np.log2(LINEAR.T[:-2] + 1), rtol=1e-5)
    mean = cohorts.load(folder, label="SUBTYPE", several="mean")
    assert len(mean) == len(first) == N - 2
    np.testing.assert_allclose(mean.expression[0], np.log2((LINEAR[:, 0] + LINEAR[:, -2]) / 2 + 1), rtol=1e-5)
    np.testing.assert_allclose(mean.expression[1], first.expression[1], rtol=1e-5)
    with pytest.raises(ValueError, match="several='all' is not known"):
        cohorts.load(folder, label="SUBTYPE", several="all")


def test_samples_that_disagree_about_the_class_are_not_averaged(tmp_path):
    table = pd.DataFrame({"SAMPLE_ID": SAMPLES, "PATIENT_ID": [PATIENTS[0], *PATIENTS[:-1]], "KIND": SUBTYPE})
    folder = study(tmp_path / "thca", data_clinical_sample=table.to_csv(sep="\t", index=False))
    with pytest.raises(ValueError, match="1 patients differ in 'KIND'"):
        cohorts.load(folder, label="KIND", several="mean")


def test_genes_without_a_symbol_go_by_their_entrez_id_and_repeated_ones_by_the_most_expressed(tmp_path):
    values = np.vstack([LINEAR, 10 * LINEAR[:1], LINEAR[1:2] + 1, LINEAR[:1]])
    names, entrez = [*GENES, "ESR1", "", ""], [2099, 2064, 2625, 3852, 9999, 4242, ""]
    cohort = cohorts.load(study(tmp_path / "thca", values, names, entrez), label="SUBTYPE")
    assert cohort.genes == ["ERBB2", "GATA3", "KRT5", "ESR1", "entrez:4242"]
    np.testing.assert_allclose(cohort.expression[:, 3], np.log2(10 * LINEAR[0] + 1), rtol=1e-5)
    assert "without symbol and Entrez id" in cohort.provenance["rules"]


def test_missing_and_constant_genes_are_left_out_and_it_is_said(tmp_path, capsys):
    values = LINEAR.copy()
    values[0, 3], values[1] = np.nan, 7.0
    cohort = cohorts.load(study(tmp_path / "thca", values), label="SUBTYPE")
    assert cohort.genes == GENES[2:]
    said = capsys.readouterr().out
    assert "1 genes with missing values are left out" in said and "1 genes with one value" in said


def test_logarithms_where_counts_are_expected_and_the_reverse_are_refused(tmp_path):
    with pytest.raises(ValueError, match="seem to be logarithms already; pass units='log2'"):
        cohorts.load(study(tmp_path / "a", np.log2(LINEAR)), label="SUBTYPE")
    kept = cohorts.load(tmp_path / "a", label="SUBTYPE", units="log2")
    np.testing.assert_allclose(kept.expression, np.log2(LINEAR).T, rtol=1e-5)
    with pytest.raises(ValueError, match="which no log2 expression does; pass units='linear'"):
        cohorts.load(study(tmp_path / "b"), label="SUBTYPE", units="log2")
    with pytest.raises(ValueError, match="units='counts' is not known"):
        cohorts.load(tmp_path / "b", label="SUBTYPE", units="counts")


def test_values_below_zero_in_linear_files_are_zero_and_counted(tmp_path):
    values = LINEAR.copy()
    values[0, :2] = -0.5
    cohort = cohorts.load(study(tmp_path / "thca", values), label="SUBTYPE")
    assert (cohort.expression[:2, 0] == 0).all() and "2 values below 0" in cohort.provenance["rules"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"data_mrna_seq_v2_rsem": None}, "found: none"),
        (
            {"data_mrna_seq_v2_rsem": None, "data_mrna_a": "x", "data_mrna_b": "x"},
            "found: data_mrna_a.txt, data_mrna_b",
        ),
        ({"data_clinical_sample": None}, "data_clinical_sample.txt"),
        ({"data_clinical_patient": "#c\nID\tSUBTYPE\np\tx\n"}, "no column PATIENT_ID"),
        ({"data_mrna_seq_v2_rsem": "Hugo_Symbol\tS1\tS1\nA\t1\t2\n"}, "1 samples have more than one column"),
        ({"data_mrna_seq_v2_rsem": "Hugo_Symbol\t" + SAMPLES[0] + "\n"}, "holds no genes"),
        ({"data_mrna_seq_v2_rsem": "Hugo_Symbol\t" + SAMPLES[0] + "\nA\thigh\n"}, "a value is not a number"),
        ({"data_mrna_seq_v2_rsem": "Hugo_Symbol\tother\nA\t1\n"}, "none of its 1 samples"),
    ],
)
def test_a_study_that_is_not_whole_is_named(tmp_path, files, said):
    with pytest.raises(ValueError, match=said):
        cohorts.load(study(tmp_path / "thca", **files), label="SUBTYPE")


def test_a_label_that_is_not_there_names_those_that_are(tmp_path):
    with pytest.raises(ValueError, match="no column 'STAGE' for label; columns: SAMPLE_ID, PATIENT_ID, SUBTYPE"):
        cohorts.load(study(tmp_path / "thca"), label="STAGE")
    with pytest.raises(ValueError, match="say which column holds the class"):
        cohorts.load(study(tmp_path / "thca"))


def xena(folder, turned=False, name="matrix.tsv.gz"):
    table = pd.DataFrame(np.log2(LINEAR + 1), columns=SAMPLES, index=GENES)
    table = table.T if turned else table
    table.index.name = "sample"
    text = table.to_csv(sep="," if ".csv" in name else "\t")
    path = folder / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    clinical = pd.DataFrame({"sample": SAMPLES[::-1], "patient": PATIENTS[::-1], "kind": SUBTYPE[::-1]})
    clinical.to_csv(folder / "phenotype.tsv", sep="\t", index=False)
    return {"source": path, "clinical": folder / "phenotype.tsv", "label": "kind"}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", ["matrix.tsv.gz", "matrix.tsv", "matrix.csv"])
def test_a_matrix_is_read_either_way_round_by_its_names(tmp_path, turned, name):
    cohort = cohorts.load(**xena(tmp_path, turned, name))
    assert cohort.genes == GENES and cohort.name == "matrix"
    np.testing.assert_allclose(cohort.expression, np.log2(LINEAR.T + 1), rtol=1e-5)
    assert [cohort.classes[k] for k in cohort.labels] == SUBTYPE


def test_as_many_genes_as_samples_are_not_mistaken(tmp_path):
    # A square matrix looks the same both ways; its names do not.
    values = RNG.normal(8, 2, (N, N))
    table = pd.DataFrame(values, index=[f"G{i}" for i in range(N)], columns=SAMPLES)
    options = xena(tmp_path)
    for turned in (False, True):
        path = tmp_path / f"square{turned}.tsv"
        (table.T if turned else table).to_csv(path, sep="\t", index_label="id")
        cohort = cohorts.load(**options | {"source": path})
        np.testing.assert_allclose(cohort.expression, values.T, rtol=1e-5)


def test_a_site_is_coded_and_a_patient_column_is_used(tmp_path):
    options = xena(tmp_path)
    table = pd.read_csv(options["clinical"], sep="\t")
    table["hospital"] = ["north", "south"] * (N // 2)
    table.to_csv(options["clinical"], sep="\t", index=False)
    cohort = cohorts.load(**options, site="hospital", patient="patient")
    assert set(cohort.sites) == {0, 1}


def test_many_genes_are_read_in_parts_to_the_same_numbers(tmp_path, monkeypatch):
    whole = cohorts.load(study(tmp_path / "thca"), label="SUBTYPE").expression
    monkeypatch.setattr("genlib.matrices.ROWS", 1)
    np.testing.assert_array_equal(cohorts.load(tmp_path / "thca", label="SUBTYPE").expression, whole)


def test_names_are_split_only_where_the_file_has_that_form():
    assert matrices.split_names(["HLA_1", "TP53", "ESR1"], [""] * 3) == (["HLA_1", "TP53", "ESR1"], [""] * 3)
    assert matrices.split_names(["2099", "672", "7157"], [""] * 3) == ([""] * 3, ["2099", "672", "7157"])
    assert matrices.split_names(["A|1", "?|2", "B"], ["", "", ""]) == (["A", "", "B"], ["1", "2", ""])
    # Where ids stand in a column of their own, names are names.
    assert matrices.split_names(["HLA_1", "HLA_2"], ["10", "11"]) == (["HLA_1", "HLA_2"], ["10", "11"])


def aliquots(tmp_path):
    """PanCanAtlas in small: 30 patients of two types, with normal tissue, a metastasis and a second aliquot."""
    rng = np.random.default_rng(0)
    patients = [f"TCGA-{'AB' if i % 2 else 'CD'}-{i:04d}" for i in range(30)]
    names = [f"{p}-{'03' if i == 4 else '01'}B-11R-A29S-07" for i, p in enumerate(patients)]
    values = rng.lognormal(5, 1, (5, 30))
    values[1, 3], values[2, 5] = -0.4, np.nan
    more = {
        f"{patients[0]}-11A-11R-A29S-07": 1.0,
        f"{patients[1]}-06A-11R-A29S-07": 2.0,
        f"{patients[2]}-01A-11R-A29S-07": 3.0,
    }
    genes = ["?|100130426", "ESR1|2099", "GATA3|2625", "KRT5|3852", "ESR1|9999"]
    table = pd.DataFrame(values, columns=names).assign(**more)[[*more, *names[::-1]]]
    table.insert(0, "gene_id", genes)
    table.to_csv(tmp_path / "pancan.tsv", sep="\t", index=False, na_rep="NA")
    clinical = pd.DataFrame({"bcr_patient_barcode": patients, "type": ["BRCA", "THCA"] * 15})
    return tmp_path / "pancan.tsv", clinical, values, patients


def test_of_aliquots_one_primary_tumor_a_patient_is_kept_by_the_stated_rules(tmp_path, capsys):
    path, clinical, values, patients = aliquots(tmp_path)
    parts = matrices.read_aliquots(path, clinical, label="type", patient="bcr_patient_barcode", units="linear")
    assert parts["genes"] == ["entrez:100130426", "ESR1", "KRT5"]  # a missing value, and the lesser of two rows
    said = capsys.readouterr().out
    assert "2 aliquots of other tissue than a primary tumor are left out, and 1 further ones" in said
    assert "1 genes with missing values are left out" in said and "1 values below 0 are taken as 0" in said
    assert not any(patient in said for patient in patients)
    values[:, 2] = 3.0  # its first aliquot by barcode
    expected = np.log2(np.maximum(values, 0) + 1)
    most = 1 if expected[1].mean() > expected[4].mean() else 4
    # A naive reading, patient by patient, in any order.
    wanted = sorted(tuple(expected[[0, most, 3], i].round(3)) for i in range(30))
    np.testing.assert_allclose(sorted(map(tuple, parts["values"].round(3))), wanted, atol=2e-3)
    assert len(parts["labels"]) == 30 and set(parts["sites"]) == {"AB", "CD"}


def test_a_matrix_without_aliquots_is_refused(tmp_path):
    (tmp_path / "a.tsv").write_text("gene\tp1\tp2\nESR1\t1\t2\n")
    with pytest.raises(ValueError, match="barcode of an aliquot"):
        matrices.read_aliquots(tmp_path / "a.tsv", pd.DataFrame(), label="type", patient="patient")


def matrix_of(tmp_path, suffix="", order=1, index_label=None):
    names = [f"p{i}" for i in range(24)]
    values = np.random.default_rng(0).normal(8, 1, (5, 24)).round(4)
    pd.DataFrame(values, index=list("ABCDE"), columns=names).to_csv(
        tmp_path / "m.tsv", sep="\t", index_label=index_label
    )
    clinical = pd.DataFrame({"sample": [n + suffix for n in names], "type": ["a", "b"] * 12})[::order]
    clinical.to_csv(tmp_path / "c.tsv", sep="\t", index=False)
    return values, clinical


@pytest.mark.parametrize("index_label", [None, "gene"])
def test_a_clinical_table_in_another_order_and_a_nameless_first_column_are_read(tmp_path, index_label):
    values, clinical = matrix_of(tmp_path, order=-1, index_label=index_label)
    cohort = cohorts.load(tmp_path / "m.tsv", clinical=tmp_path / "c.tsv", label="type")
    np.testing.assert_allclose(cohort.expression, values.T, rtol=1e-6)
    assert cohort.genes == list("ABCDE")
    assert [cohort.classes[k] for k in cohort.labels] == list(clinical["type"][::-1])


def test_samples_that_differ_by_a_suffix_are_refused_without_naming_one(tmp_path):
    matrix_of(tmp_path, suffix="-01")
    with pytest.raises(ValueError, match="differ by a suffix, as -01") as error:
        cohorts.load(tmp_path / "m.tsv", clinical=tmp_path / "c.tsv", label="type")
    assert "p0" not in str(error.value)
