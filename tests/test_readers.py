"""Files: each form is read right, or refused in one line that names the file and a way out that works."""

import ast
import bz2
import gzip
import io
import re
import time
import zipfile

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from genlib import cohorts, features, readers

N, D = 36, 40
GENES = features.read_panel("pam50")[:D]
NAMES = [f"PX-{i:04d}" for i in range(N)]
CLASSES = [["Basal", "LumA", "LumB"][i % 3] for i in range(N)]
VALUES = np.random.default_rng(0).normal(8, 2, (N, D)).round(3)


def table(**columns):
    """One row a patient: name, class and genes; further columns, or others in their place."""
    frame = pd.DataFrame(VALUES, columns=GENES)
    frame.insert(0, "patient", NAMES)
    frame.insert(1, "subtype", CLASSES)
    return frame.assign(**columns)


def rows_of(frame, index=False):
    return [list(map(str, frame.columns)), *[[str(c) for c in row] for row in frame.itertuples(index=index)]]


def beside(**columns):
    return rows_of(table(**columns))


def matrix(names=NAMES, genes=GENES, values=VALUES):
    return [["gene", *names], *([str(g), *map(str, row)] for g, row in zip(genes, values.T, strict=True))]


def clinical(**columns):
    return rows_of(pd.DataFrame({"sample": NAMES, "subtype": CLASSES}).assign(**columns))


def save(path, rows, separator="\t", before="", encoding="utf-8"):
    text = before + "\n".join(separator.join(map(str, row)) for row in rows) + "\n"
    path.write_bytes(text.encode(encoding))
    return path


def pair(folder, rows=None, about=None, **how):
    """A matrix and its clinical table, as arguments of `load`."""
    path = save(folder / "expr.tsv", rows or matrix(), **how)
    return {"source": path, "clinical": save(folder / "clin.tsv", about or clinical()), "label": "subtype"}


SAMPLES = [f"TCGA-A{i % 3}-{i:04d}-01" for i in range(24)]
KINDS = [["BRAF", "RAS"][i % 2] for i in range(24)]


def study(folder, values=None, genes=GENES, entrez=None, samples=SAMPLES, **files):
    """A cBioPortal study folder of linear values; `files` replace or add some, None leaves one out."""
    folder.mkdir(parents=True, exist_ok=True)
    values = 2 ** VALUES[: len(samples)].T if values is None else values
    frame = pd.DataFrame(values, columns=samples)
    frame.insert(0, "Entrez_Gene_Id", list(entrez or range(1, len(genes) + 1)))
    frame.insert(0, "Hugo_Symbol", list(genes))
    patients = pd.DataFrame({"PATIENT_ID": [s[:12] for s in SAMPLES], "SUBTYPE": KINDS})[::-1]
    about = pd.DataFrame({"SAMPLE_ID": samples, "PATIENT_ID": [s[:12] for s in samples]})
    remarks = "#Patient\tSubtype\n#Identifier\tSubtype\n#STRING\tSTRING\n#1\t1\n"
    texts = {
        "data_mrna_seq_v2_rsem": frame.to_csv(sep="\t", index=False),
        "data_clinical_patient": remarks + patients.to_csv(sep="\t", index=False),
        "data_clinical_sample": remarks + about.to_csv(sep="\t", index=False),
        "data_mrna_seq_v2_rsem_zscores_ref_all_samples": "not read",
    } | files  # fmt: skip
    for name, text in texts.items():
        if text is not None:
            (folder / f"{name}.txt").write_text(text)
    return folder


def h5ad(folder, obs=None, X=VALUES, var=None, **more):
    obs = pd.DataFrame({"subtype": CLASSES} if obs is None else obs, index=NAMES)
    var = pd.DataFrame(index=GENES) if var is None else var
    X = X if scipy.sparse.issparse(X) else np.asarray(X, np.float32)
    anndata.AnnData(X, obs=obs, var=var, **more).write_h5ad(folder / "a.h5ad")
    return {"source": folder / "a.h5ad", "label": "subtype"}


def is_right(cohort, n=N, truth=VALUES):
    """Every patient has the profile and the class that were written; one cell may be another."""
    genes = cohort.genes if set(cohort.genes) & set(GENES) else GENES  # all were called otherwise, in their order
    columns = [GENES.index(g) for g in genes if g in GENES]
    found = cohort.expression[:, [g in GENES for g in genes]]
    differ = (np.abs(found[:, None] - truth[None, :, columns]) > 1e-3).sum(axis=2)
    meant = differ.argmin(axis=1)
    assert len(cohort) == n == len(set(meant))
    assert differ.min(axis=1).max() <= 1 and len(columns) >= D - 1
    assert [cohort.classes[k] for k in cohort.labels] == [CLASSES[i] for i in meant]


def refused(**arguments):
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        cohorts.load(**arguments)
    said = str(raised.value)
    assert "\n" not in said and "px-" not in said.lower() and "tcga-a" not in said.lower()
    return said


# --- forms that are read right --------------------------------------------------------------------------------------


def gct(folder):
    rows = [[row[0], "Description" if i == 0 else row[0], *row[1:]] for i, row in enumerate(matrix())]
    rows = [["Name", *rows[0][1:]], *([f"ENSG{i:011d}.3", *row[1:]] for i, row in enumerate(rows[1:]))]
    return pair(folder, rows, before=f"#1.2\n{D}\t{N}\n")


def geo(folder):
    rows = [[f'"{c}"' if c[0] not in "-0123456789" else c for c in row] for row in matrix()]
    before = '!Series_title\t"a ""quoted"" title; 5\' end"\n' + "".join(
        f"!Sample_characteristics_ch1\t{chr(9).join([chr(34) + 'age: 60' + chr(34)] * N)}\n" for _ in range(80)
    )
    arguments = pair(folder, rows, before=before + "\n!series_matrix_table_begin\n")
    arguments["source"].open("a").write("!series_matrix_table_end\n")
    return arguments


def counts(folder):
    rows = [["Geneid", "Chr", "Start", "End", "Strand", "Length", *(f"/data/{n}.Aligned.out.bam" for n in NAMES)]]
    rows += [[g, "chr1;chr1", "1;5", "3;9", "+;+", 8, *row] for g, row in zip(GENES, VALUES.T, strict=True)]
    return pair(folder, rows, before="# Program:featureCounts\n")


def seurat(folder):
    """What write.csv makes of GetAssayData: quoted names, dots for hyphens, X before digits, no name above genes."""
    rows = matrix([f'"{n.replace("-", ".")}"' for n in NAMES], [f'"{g}"' for g in GENES])
    rows[0][0] = '""'
    return pair(folder, rows, separator=",")


def two_names(folder, column):
    rows = [["gene_id", column, *NAMES]]
    rows += [[f"ENSG{i:011d}.3", row[0], *row[1:]] for i, row in enumerate(matrix()[1:])]
    return pair(folder, rows)


def workbooks(folder):
    arguments = pair(folder)
    for name in ("expr", "clin"):
        frame = pd.read_csv(folder / f"{name}.tsv", sep="\t")
        frame.to_excel(folder / f"{name}.xlsx", index=False)
    return arguments | {"source": folder / "expr.xlsx", "clinical": folder / "clin.xlsx"}


def parquet_folder(folder):
    (folder / "a.parquet").mkdir()
    table().iloc[:20].to_parquet(folder / "a.parquet" / "part-0.parquet", index=False)
    table().iloc[20:].to_parquet(folder / "a.parquet" / "part-1.parquet", index=False)
    return {"source": folder / "a.parquet", "label": "subtype"}


def a_table(folder, separator=",", name="a.csv", rows=None, change=None, **how):
    path = save(folder / name, rows or rows_of(table()), separator, **how)
    if change is not None:
        path.write_bytes(change(path.read_bytes()))
    return {"source": path, "label": "subtype"}


def zipped(content):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as packed:
        packed.writestr("a.csv", content)
    return held.getvalue()


def late_block(folder):
    """More genes than are read at a time; the last one is right too."""
    genes = [*(f"G{i}x" for i in range(1000)), *GENES]
    values = np.hstack([np.random.default_rng(1).normal(8, 2, (N, 1000)).round(3), VALUES])
    return pair(folder, matrix(NAMES, genes, values))


def swapped(folder, named):
    """Samples down, genes across; a square matrix where as many genes as patients are called otherwise."""
    return pair(folder, [list(row) for row in zip(*matrix(NAMES, named), strict=True)])


def wide(folder):
    """So many genes that a line is longer than csv's limit of a field."""
    more = np.random.default_rng(1).normal(8, 2, (N, 13_500)).round(6)
    rows = [[f"S{i}X_{i + 1000}" for i in range(more.shape[1])], *more.tolist()]
    return a_table(folder, rows=[[*row, *beside] for row, beside in zip(rows_of(table()), rows, strict=True)])


def with_models(folder):
    """DepMap's newer form: a running number and columns of ids before the genes."""
    frame = pd.DataFrame(VALUES, columns=[f"{g} ({i + 100})" for i, g in enumerate(GENES)])
    ids = {"": range(N), "SequencingID": [f"CDS-{i}" for i in range(N)], "ModelID": NAMES}
    for i, (name, words) in enumerate(ids.items()):
        frame.insert(i, name, list(words))
    return pair(folder, rows_of(frame)) | {"ignore": "SequencingID"}


def cells(change):
    """The good table with some cells changed."""
    frame = table().astype(object)
    for (row, column), value in change.items():
        frame.loc[row, column] = value
    return rows_of(frame.fillna(""))


def with_names(**names):
    return rows_of(table().rename(columns=names))


def put(rows, i, row):
    """The same with one of them replaced, or left out."""
    return [*rows[:i], *([row] if row is not None else []), *rows[i + 1 :]]


LONE = ['"' * (i == 4) + name + '"' * (i == 9) for i, name in enumerate(NAMES)]
PADDED = [f"{c} " for c in CLASSES]
READ = {
    "table": a_table,
    "tabs in a .csv": lambda f: a_table(f, "\t"),
    "semicolons": lambda f: a_table(f, ";"),
    "decimal commas": lambda f: a_table(f, ";", change=lambda b: b.replace(b".", b",")),
    "decimal commas, whole numbers last": lambda f: a_table(f, ";", rows=cells({(N - 1, "KRT5"): 8}),
                                                            change=lambda b: b.replace(b".", b",")),
    "all in quotes": lambda f: a_table(f, rows=[[f'"{c}"' for c in row] for row in rows_of(table())],
                                       encoding="utf-8-sig", change=lambda b: b.replace(b"\n", b"\r\n")),
    "signs that nobody sees": lambda f: a_table(f, rows=beside(
        subtype=[c + ["", "\u200b", "\u00a0"][i // 3 % 3] for i, c in enumerate(CLASSES)])),
    "a gene called like a clinical column": lambda f: a_table(f, rows=with_names(KRT5="OS9")),
    "a mean beside the samples": lambda f: pair(f, [[*row, "mean" if i == 0 else "9.1"]
                                                    for i, row in enumerate(matrix())]),
    "upper case ending": lambda f: a_table(f, name="MINE.CSV"),
    "text ending": lambda f: a_table(f, "\t", name="a.txt"),
    "braces in the name": lambda f: a_table(f, name="a {v2}.csv"),
    "title lines": lambda f: a_table(f, before="Expression table, log2\n\n"),
    "title with separators": lambda f: a_table(f, before="Expression table" + "," * (D + 1) + "\n"),
    "remarks": lambda f: a_table(f, before="# made by lab X, 2021\n# second, line\n"),
    "byte-order mark": lambda f: a_table(f, encoding="utf-8-sig"),
    "UTF-16": lambda f: a_table(f, encoding="utf-16"),
    "Windows line ends": lambda f: a_table(f, change=lambda b: b.replace(b"\n", b"\r\n")),
    "empty columns": lambda f: a_table(f, change=lambda b: b.replace(b"\n", b",,\n")),
    "trailing separators": lambda f: a_table(f, change=lambda b: b.replace(b"\n", b",\n").replace(b",\n", b"\n", 1)),
    "empty lines": lambda f: a_table(f, change=lambda b: b.replace(b"\n", b"\n\n")),
    "lone quotes": lambda f: a_table(f, rows=beside(patient=LONE)),
    "no end of line": lambda f: a_table(f, change=bytes.strip),
    "gz": lambda f: a_table(f, name="a.csv.gz", change=gzip.compress),
    "plain called gz": lambda f: a_table(f, name="a.csv.gz"),
    "packed without saying so": lambda f: a_table(f, change=gzip.compress),
    "R's header in a table": lambda f: a_table(f, rows=[rows_of(table())[0][1:], *rows_of(table())[1:]]),
    "turned": lambda f: a_table(f, rows=[list(row) for row in zip(*rows_of(table()), strict=True)]),
    "bytes as text": lambda f: a_table(f, rows=rows_of(table(subtype=[f"b'{c}'" for c in CLASSES]))),
    "blanks around": lambda f: a_table(f, rows=beside(patient=[f" {n} " for n in NAMES], subtype=PADDED)),
    "parquet": lambda f: [table().to_parquet(f / "a.parquet"), {"source": f / "a.parquet", "label": "subtype"}][1],
    "parquet, index called as a column": lambda f: [
        table().set_index("patient", drop=False).to_parquet(f / "a.parquet"),
        {"source": f / "a.parquet", "label": "subtype"}][1],
    "parquet folder": parquet_folder,
    "matrix": pair,
    "matrix turned": lambda f: swapped(f, GENES),
    "matrix in parts": late_block,
    "R's header": lambda f: pair(f, [matrix()[0][1:], *matrix()[1:]]),
    "R's header in the clinical table": lambda f: pair(f, about=[clinical()[0][1:], *clinical()[1:]]),
    "R's dots in one class": lambda f: pair(f, matrix([n.replace("-", "-."[i % 3 > 0]) for i, n in enumerate(NAMES)])),
    "another case": lambda f: pair(f, matrix([n.lower() for n in NAMES])),
    "a sign of remarks in a cell": lambda f: pair(f, about=clinical(note=["slide #2"] * N)),
    "a quote in a cell": lambda f: pair(f, about=clinical(note=['"left'] + ['5" thick'] * (N - 1))),
    "samples in a later column": lambda f: pair(f, about=rows_of(table(n=range(N))[["n", "subtype", "patient"]])),
    "rows twice that agree": lambda f: pair(f, about=[*clinical(), *clinical()[1:5]]),
    "GCT": gct, "GEO": geo, "featureCounts": counts, "Seurat": seurat, "workbooks": workbooks,
    "gene_name": lambda f: two_names(f, "gene_name"),
    "gene_symbol": lambda f: two_names(f, "gene_symbol"),
    "counter rows": lambda f: pair(f, [*matrix(), ["__no_feature", *range(N)], ["N_unmapped", *range(N)]]),
    "DepMap": lambda f: swapped(f, [f"{g} ({i + 100})" for i, g in enumerate(GENES)]),
    "DepMap's ids": with_models,
    "long lines": wide,
    "numbers of rows": lambda f: [table().to_csv(f / "a.csv"), {"source": f / "a.csv", "label": "subtype"}][1],
    "h5ad": h5ad,
    "sparse h5ad": lambda f: h5ad(f, X=scipy.sparse.csr_matrix(VALUES.astype(np.float32))),
    "symbols in var": lambda f: h5ad(f, var=pd.DataFrame({"feature_name": GENES}, [f"ENSG{i:011d}" for i in range(D)])),
    "bytes in obs": lambda f: h5ad(f, obs={"subtype": [f"b'{c}'" for c in CLASSES]}),
}  # fmt: skip


@pytest.mark.parametrize("form", READ)
def test_a_form_that_people_have_is_read_right(tmp_path, form, capsys):
    cohort = cohorts.load(**READ[form](tmp_path))
    is_right(cohort)
    assert "PX-" not in capsys.readouterr().out + repr(cohort.data) + str(cohort.notes) + cohort.data.obs.to_csv()
    assert list(cohort.data.obs_names) == [str(i) for i in range(N)] and set(cohort.data.obs) == {"label"}


def test_a_study_folder_runs_with_its_path_and_label_alone(tmp_path, capsys):
    cohort = cohorts.load(study(tmp_path / "thca_tcga"), label="SUBTYPE")
    assert cohort.name == "thca_tcga" and "log2(x + 1) of linear values" in cohort.notes
    np.testing.assert_allclose(cohort.expression, np.log2(2 ** VALUES[:24] + 1), rtol=1e-5)
    assert [cohort.classes[k] for k in cohort.labels] == KINDS and len(set(cohort.sites)) == 3
    said = capsys.readouterr().out
    assert all(f"thca_tcga: {note}\n" in said for note in cohort.notes) and "TCGA-A" not in said
    older = study(tmp_path / "older", data_mrna_seq_v2_rsem=None)
    (older / "data_RNA_Seq_v2_expression_median.txt").write_text(
        (tmp_path / "thca_tcga/data_mrna_seq_v2_rsem.txt").read_text()
    )
    np.testing.assert_array_equal(cohorts.load(older, label="SUBTYPE").expression, cohort.expression)
    (older / "meta_a.txt").write_text("datatype: Z-SCORE\ndata_filename: data_RNA_Seq_v2_expression_median.txt\n")
    assert "found: none" in refused(source=older, label="SUBTYPE")


def test_genes_without_a_symbol_go_by_entrez_id_and_repeated_ones_by_the_most_expressed(tmp_path):
    linear = 2 ** VALUES[:24].T
    values = np.vstack([linear[:4], 10 * linear[:1], linear[1:2] + 1, linear[:1], np.full((1, 24), 7.0), linear[9:10]])
    values[-1, 3] = np.nan
    names, ids = ["A", "B", "C", "D", "A", "", "", "E", "F"], [1, 2, 3, 4, 9, 4242, "", 6, 7]
    cohort = cohorts.load(study(tmp_path / "a", values, names, ids), label="SUBTYPE")
    assert cohort.genes == ["B", "C", "D", "A", "entrez:4242"]
    np.testing.assert_allclose(cohort.expression[:, 3], np.log2(10 * linear[0] + 1), rtol=1e-5)
    for words in ("1 rows without symbol", "1 genes with missing", "1 genes with one value", "of 1 further rows"):
        assert any(note.startswith(words) for note in cohort.notes)


@pytest.mark.parametrize("form", ["{symbol}", "{id}", "{symbol}_{id}", "{symbol} ({id})", "{ensembl}.7"])
def test_a_panel_is_found_however_a_file_names_its_genes(tmp_path, form):
    ids = {**features.gene_ids(), "TG": ("7038", "ENSG00000042832")}
    former = {"ORC6": "ORC6L"} if form == "{symbol}" else {}
    values = np.random.default_rng(0).normal(8, 1, (N, len(ids))).round(4)
    names = [form.format(symbol=former.get(s, s), id=i, ensembl=e) for s, (i, e) in ids.items()]
    frame = pd.DataFrame(values, columns=names)
    frame.assign(subtype=CLASSES).to_csv(tmp_path / "a.csv", index=False)
    own = cohorts.load(tmp_path / "a.csv", label="subtype")
    columns, missing = features.find_panel(own, "pam50")
    assert missing == [] and "TG" not in own.data.var_names[columns]
    np.testing.assert_allclose(own.expression[:, columns[0]], values[:, list(ids).index("ACTR3B")], rtol=1e-5)


def test_a_number_in_a_name_is_an_entrez_id_only_where_the_rest_of_the_name_differs():
    def split(*names):
        return readers.split_names(names, [""] * len(names))

    for names in (["HLA_1", "TP53", "ESR1"], ["gene_0", "gene_1", "gene_2"], ["ILMN_12", "ILMN_13"], ["1", "2", "3"]):
        assert split(*names) == (names, [""] * len(names))
    assert split("2099", "672", "7157") == (["", "", ""], ["2099", "672", "7157"])
    assert split("A|1", "?|2", "B") == (["A", "", "B"], ["1", "2", ""])
    start = time.process_time()
    assert split(*(f"S{i}X_{i}" for i in range(20_000)))[0][-1] == "S19999X"
    assert time.process_time() - start < 6  # linear, where comparing all names took ten times as long
    # Where ids stand in a column of their own, names are names.
    assert readers.split_names(["HLA_1", "HLA_2"], ["10", "11"]) == (["HLA_1", "HLA_2"], ["10", "11"])


@pytest.mark.parametrize(
    "names", [["001", "01", "2"], ["1e1", "10", "2"], ["null", "none", "wild type"], ["+", "-", "+/-"]]
)
def test_classes_stay_as_they_are_written(tmp_path, names):
    save(tmp_path / "a.csv", rows_of(table(subtype=[names[i % 3] for i in range(N)])), ",")
    assert cohorts.load(tmp_path / "a.csv", label="subtype").classes == sorted(names)


# --- who is a patient -----------------------------------------------------------------------------------------------


def tumors_and_normals(prefix, n=24):
    """Tumors of all patients, normal tissue of some, a metastasis of one, two aliquots of another."""
    patients = [f"{prefix}-{i:04d}" for i in range(N)]
    kinds = [(p, "01A") for p in patients] + [(p, "11A") for p in patients[:n]]
    kinds += [(patients[0], "06A"), (patients[1], "01B")] if prefix.startswith("TCGA") else []
    names = [f"{p}-{kind}" if prefix.startswith("TCGA") else f"{p}-{kind[:2]}" for p, kind in kinds]
    values = np.vstack([VALUES, VALUES[: len(kinds) - N] + 1.0])
    about = pd.DataFrame({"sample": names, "_PATIENT": [p for p, _ in kinds]})
    return names, values, about.assign(subtype=[CLASSES[int(p[-4:])] for p, _ in kinds])


@pytest.mark.parametrize("road", ["matrix", "table", "h5ad", "folder"])
def test_of_tcga_barcodes_one_primary_tumor_a_patient_is_kept_on_every_road(tmp_path, road):
    names, values, about = tumors_and_normals("TCGA-ZZ")
    if road == "matrix":
        arguments = pair(tmp_path, matrix(names, GENES, values), rows_of(about))
    elif road == "table":
        frame = pd.DataFrame(values, columns=GENES).assign(subtype=about["subtype"])
        frame.insert(0, "barcode", names)
        arguments = a_table(tmp_path, rows=rows_of(frame))
    elif road == "h5ad":
        obs = about.set_index("sample")
        anndata.AnnData(values.astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES)).write_h5ad(
            tmp_path / "a.h5ad"
        )
        arguments = {"source": tmp_path / "a.h5ad", "label": "subtype"}
    else:
        about = about.rename(columns={"sample": "SAMPLE_ID", "_PATIENT": "PATIENT_ID"}).to_csv(sep="\t", index=False)
        study(tmp_path / "s", values.T, samples=names, data_clinical_patient=None, data_clinical_sample=about)
        (tmp_path / "s/data_mrna_seq_v2_rsem.txt").rename(tmp_path / "s/data_mrna_array.txt")
        arguments = {"source": tmp_path / "s", "label": "subtype"}
    cohort = cohorts.load(**arguments)
    is_right(cohort)
    assert any(note.startswith("24 samples of normal tissue") for note in cohort.notes)
    assert any(note.startswith("1 samples of other tumors") for note in cohort.notes)
    assert "of patients with several samples the first by its barcode is kept (1 left out)" in cohort.notes
    # A mean is of tumors alone: normals are 1 higher in every gene.
    mean = cohorts.load(**arguments, several="mean")
    np.testing.assert_allclose(np.sort(np.abs(mean.expression - cohort.expression).max(axis=1))[:-1], 0, atol=1e-5)


def test_donors_of_gtex_and_patients_of_target_are_told_by_their_names(tmp_path):
    names = [f"GTEX-{i // 2}ABC-0{i % 9}26-SM-5GZ{i}" for i in range(N)]
    about = rows_of(pd.DataFrame({"SAMPID": names, "SMTS": [CLASSES[i // 2] for i in range(N)]}))
    arguments = pair(tmp_path, matrix(names), about) | {"label": "SMTS", "min_class_size": 6}
    assert "18 samples are second ones of a patient" in refused(**arguments)
    assert len(cohorts.load(**arguments, several="first")) == N // 2
    patients = [f"TARGET-20-PABC{chr(65 + i // 10)}{chr(65 + i % 10)}" for i in range(N)]
    names = [*(f"{p}-{'09A' if i % 2 else '03A'}-01R" for i, p in enumerate(patients)), f"{patients[0]}-14A-01R"]
    values = np.vstack([VALUES, VALUES[:1] + 1])
    about = rows_of(pd.DataFrame({"USI": patients, "subtype": CLASSES}))
    cohort = cohorts.load(**pair(tmp_path, matrix(names, GENES, values), about))
    is_right(cohort)
    assert "1 samples of normal tissue or controls" in " ".join(cohort.notes) and cohort.sites is None


def test_other_names_need_their_patients_named_and_then_go_by_the_same_rule(tmp_path):
    names, values, about = tumors_and_normals("PX")
    arguments = pair(tmp_path, matrix(names, GENES, values), rows_of(about))
    assert "Pass patient='_PATIENT'" in refused(**arguments)
    is_right(cohorts.load(**arguments, patient="_PATIENT"))


def test_several_samples_of_a_patient_are_refused_or_merged_by_the_stated_rule(tmp_path):
    names = [*NAMES, "second", "third"]
    values = np.vstack([VALUES, VALUES[0] + 1, VALUES[5] + 3])
    about = pd.DataFrame(
        {"sample": names, "who": [*NAMES, NAMES[0], NAMES[5]], "subtype": [*CLASSES, CLASSES[0], CLASSES[5]]}
    )
    arguments = pair(tmp_path, matrix(names, GENES, values), rows_of(about)) | {"patient": "who"}
    assert "2 samples are second ones" in refused(**arguments)
    is_right(cohorts.load(**arguments, several="first"))
    mean = cohorts.load(**arguments, several="mean").expression
    np.testing.assert_allclose(mean[[0, 1, 5]], VALUES[[0, 1, 5]] + np.array([[0.5], [0], [1.5]]), rtol=1e-5)
    about.loc[N, "subtype"] = "LumA"
    arguments |= pair(tmp_path, matrix(names, GENES, values), rows_of(about))
    assert "1 patients differ in 'subtype'" in refused(**arguments,
                                                       several="mean")  # fmt: skip


def test_orientation_goes_by_the_side_that_names_more_samples(tmp_path):
    # Samples 1 to 36, and genes by Entrez ids of which some are such numbers too.
    names, ids = [str(i + 1) for i in range(N)], [str(2 * i + 1) for i in range(D)]
    about = rows_of(pd.DataFrame({"sample": names, "subtype": CLASSES}))
    for rows in (matrix(names, ids), [list(row) for row in zip(*matrix(names, ids), strict=True)]):
        cohort = cohorts.load(**pair(tmp_path, rows, about))
        np.testing.assert_allclose(cohort.expression, VALUES, rtol=1e-5)
        assert cohort.genes[:2] == ["entrez:1", "entrez:3"]
    tie = [str(i + 1) for i in range(D)]
    assert "cannot be told which are the samples" in refused(**pair(tmp_path, matrix(names, tie), about))
    # Rows V1, V2, ... are in no clinical row, genes 1, 2, ... are: those are no patients.
    values = np.random.default_rng(1).normal(8, 2, (N, 200)).round(3)
    rows = matrix([f"V{n}" for n in names], [str(i + 1) for i in range(200)], values)
    said = refused(**pair(tmp_path, [list(row) for row in zip(*rows, strict=True)], about))
    assert "164 of 200 samples, its columns 38, 39, 40, 41, 42 and 159 more, are not in 'sample' of" in said


def test_names_that_match_in_part_are_refused_unless_that_is_wanted(tmp_path):
    arguments = pair(tmp_path, about=clinical()[:31])
    assert "6 of 36 samples" in refused(**arguments)
    assert len(cohorts.load(**arguments, unmatched="drop")) == 30
    arguments = pair(tmp_path, about=clinical()[:35])
    cohort = cohorts.load(**arguments)
    is_right(cohort, 34)
    assert "34 of 36 samples are in clin.tsv" in cohort.notes
    suffix = pair(tmp_path, about=clinical(sample=[f"{n}-01" for n in NAMES]))
    assert "none of its 36 columns" in refused(**suffix) and "differ by a suffix, as -01" in refused(**suffix)


# --- what is refused, and the way out ---------------------------------------------------------------------------------


def genes(change):
    """The good table with other values."""
    return rows_of(table(**dict(zip(GENES, change(VALUES).T, strict=True))))


def scaled(values):
    return (values - values.mean(axis=0)) / values.std(axis=0)


def beside_signals(ends):
    """A matrix with two columns a sample, as bead arrays have them."""
    p = np.random.default_rng(3).uniform(0, 0.05, VALUES.shape).round(5)
    both = np.stack([VALUES, p], axis=1).reshape(-1, D)
    return matrix([name + end for name in NAMES for end in ends], GENES, both)


LAYERS = {"X": scaled(VALUES), "layers": {"log2": VALUES.astype(np.float32)}}
SMALL = {"subtype": ["T1", "T2", *["T3"] * 5, *(["A", "B"] * 15)[:29]]}
PAIRS = {"donor_id": [f"D{i // 2}" for i in range(N)], "subtype": [CLASSES[i // 2] for i in range(N)]}

# How a table goes wrong, words of the refusal, and how many patients its way out gives as typed (None: mend the file).
REFUSED = {
    "text in a gene": (cells({(4, "KRT5"): "n.d."}), "'KRT5' holds text, first in row 5: 'n.d.'", N),
    "stage, code, yes or no, running number": (
        beside(stage=np.arange(N) % 4, code=pd.factorize(CLASSES)[0], dead=np.arange(N) % 2 > 0, No=range(N)),
        "4 columns seem to hold no expression: dead, stage, code, No", N),
    "survival": (beside(OS_MONTHS=VALUES[:, 0] * 10.1), "seem to hold no expression: OS_MONTHS", N),
    "high": (beside(marker=VALUES[:, 0] * 10.1), "1 of 41 columns reach more than 40", N),
    "hospital": (beside(hospital=["a", "b"] * 18), "'hospital' holds text", N),
    "missing value": (cells({(4, "KRT5"): None}), "1 missing or infinite values in 1 genes: KRT5; at rows 5", N),
    "infinite value": (cells({(4, "KRT5"): 1e300}), "1 missing or infinite values in 1 genes: KRT5", N),
    "code for missing": (cells({(4, "KRT5"): -999}), "values as -999 in KRT5 are a code for missing", N),
    "patient without values": (cells({(4, g): "NA" for g in GENES}), "1 patients have hardly any value, at rows", None),
    "constant gene": (beside(KRT5=3.5), "1 genes have the same value in all patients, as KRT5", N),
    "missing class": (cells({(4, "subtype"): "'--"}), "is missing for 1 patients, at rows 5 ('--)", N - 1),
    "h5ad's nan": (cells({(4, "subtype"): "nan", (7, "subtype"): "[Discrepancy]"}), "2 patients, at rows 5, 8", N - 2),
    "class unknown": (cells({(i, "subtype"): "Unknown" for i in range(0, N, 3)}), "(Unknown)", N - 12),
    "one small class": (beside(**SMALL), "fewer than 10 patients: {'T1': 1, 'T2': 1, 'T3': 5}", 29),
    "numbers and a word": (beside(subtype=["odd", *(str(i % 2) for i in range(N - 1))]), "numeric but for 1", None),
    "measured class": (beside(subtype=VALUES[:, 0]), "holds measurements|has 36 values for 36 patients", None),
    "identifier": (beside(subtype=NAMES), "has 36 values for 36 patients", None),
    "hyphen or blank": (beside(subtype=[c + "- "[i % 2] + "a" for i, c in enumerate(CLASSES)]), "or - . _ only", None),
    "two spellings": (cells({(4, "subtype"): "luma"}), "which differ in case or - . _ only", None),
    "patient twice": (cells({(7, "patient"): "PX-0002"}), "names come more than once at rows 8; keep one", None),
    "patient twice in another case": (cells({(7, "patient"): "px_0002"}), "are those of others but for case", None),
    "patient without a name": (cells({(7, "patient"): ""}), "patients without a name at rows 8", None),
    "profile twice": (cells({(7, g): VALUES[2, i] for i, g in enumerate(GENES)}), "of others, at rows 3, 8", None),
    "gene twice": (with_names(KRT5="KRT14"), "1 names come more than once: KRT14; keep one of each", None),
    "thousands": ([rows_of(table())[0], *([*row[:2], *(f'"1,{c}"' for c in row[2:])] for row in rows_of(table())[1:])],
                  "36 patients and 0 genes are left; 'ACTR3B' holds text, first in row 1", None),
    "all normal": (beside(patient=[f"TCGA-A{i % 3}-{i:04d}-11" for i in range(N)]), "36 samples of normal", None),
    "laboratory": (beside(WBC=VALUES[:, 0]), "seem to hold no expression: WBC", N),
    "linear values": (genes(np.exp2), "pass units='linear'", N),
    "z-scores": (genes(scaled), "standard deviation 1", None),
    "z-scores of a part": (genes(scaled)[:28], "standard deviation 1", None),
    "centered": (genes(lambda values: values - values.mean(axis=0)), "center at 0", None),
    "between 0 and 1": (genes(lambda values: (values - values.min(0)) / np.ptp(values, 0)), "lowest and highest", None),
    "header too long": ([["what", *rows_of(table())[0]], *rows_of(table())[1:]], "has 43 names for 42 columns", None),
    "cut short": ([*rows_of(table())[:-1], rows_of(table())[-1][:9]], "line 37 has 9 fields, its header 42", None),
    **{f"date {name}": (with_names(KRT5=name), f"1 genes are called by dates, as {name}", N) for name in
       ("1-Mar", "Mar-01", "2001-09-01", "1-Mrz", "01. Mrz", "2-set", "3/1/2021", "01.03.2021", "44256", "2-Dez")},
}  # fmt: skip
MATRICES = {
    "class gone": (dict(rows=matrix(NAMES[:35], GENES, VALUES[:35]), about=clinical(subtype=[*CLASSES[:35], "rare"])),
                       "no patient of class rare of 'subtype' is left", 35),
    "clinical rows disagree": (dict(about=[*clinical(), [NAMES[3], "other"]]),
                               "rows 4, 37 name one 'sample' each and differ in 'subtype'", None),
    "clinical column twice": (dict(about=[[*row, row[1]] for row in clinical()]), "comes more than once", None),
    "sample twice": (dict(rows=matrix([*NAMES[:35], NAMES[0]])), "names come more than once at columns 37", None),
    "text": (dict(rows=put(matrix(), 7, [*matrix()[7][:9], "high", *matrix()[7][10:]])),
             "column 10 holds a value that is not a number, first for gene CCNB1: 'high'", None),
    "dates": (dict(rows=matrix(genes=["1-Mar", "1-Mar", *GENES[2:]])), "2 genes are called by dates, as 1-Mar", N),
    "sample without values": (dict(rows=[matrix()[0], *(put(row, 4, "NA") for row in matrix()[1:])]),
                              "1 patients have hardly any value, at columns 5", None),
    "no genes": (dict(rows=matrix()[:1]), "holds only a header", None),
    "unmatched": (dict(about=clinical()[:31]), "6 of 36 samples", 30),
    "signals and p-values": (dict(rows=beside_signals(("", ".Detection Pval"))), "36 of 72 samples", N),
    "signals and p-values called so": (dict(rows=beside_signals((".AVG_Signal", ".Detection Pval"))),
                                       "36 samples are second ones of a patient", N),
}  # fmt: skip
FILES = {
    "scaled h5ad": (lambda f: h5ad(f, **LAYERS), "give the values before that step, as layer='log2'", N),
    "donors twice": (lambda f: h5ad(f, obs=PAIRS) | {"min_class_size": 6}, "'donor_id' names 18 patients for 36", 18),
    "registry's own": (lambda f: a_table(f) | {"label": "subtyp"}, "those of text are: patient, subtype", None),
    "no label": (lambda f: a_table(f) | {"label": None}, "say which column holds each patient's class", None),
    "genes in rows, a patient twice": (lambda f: a_table(f, rows=[list(r) for r in zip(*rows_of(table()), strict=True)],
        change=lambda b: b.replace(b"PX-0007", b"PX-0006")), "1 patient names come more than once at columns 9", None),
    "genes in rows, no label": (lambda f: a_table(f, rows=matrix()), "Where genes are rows", None),
    "LFS": (lambda f: a_table(f, change=lambda b: b"version https://git-lfs.github.com\n"), "git lfs pull", None),
    "web page": (lambda f: a_table(f, change=lambda b: b"<!DOCTYPE html><html>"), "is a web page", None),
    "empty": (lambda f: a_table(f, change=lambda b: b""), "is empty", None),
    "zero byte": (lambda f: a_table(f, change=lambda b: b.replace(b"LumA", b"Lu\0A", 1)), "line 3 holds a zero", None),
    "Latin-1": (lambda f: a_table(f, change=lambda b: b.replace(b"LumA", b"Lum\xe4", 1)), "is not UTF-8", None),
    "gz cut short": (lambda f: a_table(f, change=lambda b: gzip.compress(b)[:600]), "cannot be read", None),
    "zip": (lambda f: a_table(f, name="a.csv.zip", change=zipped), "cannot be read .*must be unpacked", None),
    "bz2": (lambda f: a_table(f, name="a.csv.bz2", change=bz2.compress), "cannot be read .*must be unpacked", None),
    "parquet that is none": (lambda f: a_table(f, name="a.parquet"), "cannot be read as parquet", None),
    "h5ad that is none": (lambda f: a_table(f, name="a.h5ad"), "cannot be read as an AnnData file", None),
    "whole numbers with gaps": (lambda f: [table(hits=pd.array([1, 2, None] * 12, "Int64")).to_parquet(f / "a.parquet"),
        {"source": f / "a.parquet", "label": "subtype"}][1], "seem to hold no expression: hits", N),
    "no file": (lambda f: {"source": f / "none.csv", "label": "x"}, "there is no file", None),
    "no clinical file": (lambda f: pair(f) | {"clinical": f / "none.tsv"}, "there is no file", None),
    "one column": (lambda f: a_table(f, rows=[["a"], ["b"]]), "no table of several columns", None),
    "header only": (lambda f: a_table(f, rows=rows_of(table())[:1]), "holds only a header", None),
    "ignore unknown": (lambda f: a_table(f) | {"ignore": ["age"]}, "no column 'age'", None),
    "two matrices": (lambda f: {"source": study(f / "s", data_mrna_a="x", data_mrna_seq_v2_rsem=None, data_mrna_b="x"),
                     "label": "SUBTYPE"}, "found: data_mrna_a.txt, data_mrna_b.txt", None),
    "no sample table": (lambda f: {"source": study(f / "s", data_clinical_sample=None), "label": "SUBTYPE"},
                        "data_clinical_sample.txt", None),
    "logarithms called RSEM": (lambda f: {"source": study(f / "s", VALUES[:24].T), "label": "SUBTYPE"},
                               "seem to be logarithms already; pass units='log2'", 24),
    "label in both tables": (lambda f: {"source": both_tables(f / "s"), "label": "SUBTYPE"}, "another thing", None),
}  # fmt: skip


def both_tables(folder):
    about = pd.DataFrame({"SAMPLE_ID": SAMPLES, "PATIENT_ID": [s[:12] for s in SAMPLES], "SUBTYPE": CLASSES[1:25]})
    return study(folder, data_clinical_sample=about.to_csv(sep="\t", index=False))


def ways_out(said):
    """The options that a refusal names, as they are typed there."""
    found = re.findall(r"(\w+)=(\[(?:'[^']*'(?:, )?)*\]|'[^']*'|True|\d+)", said.split("; patient= and")[0])
    return [{word: ast.literal_eval(value)} for word, value in found]


@pytest.mark.parametrize("case", [*REFUSED, *MATRICES, *FILES])
def test_what_is_wrong_is_refused_in_a_line_and_its_way_out_works_as_typed(tmp_path, case):
    make, words, n = (REFUSED | MATRICES | FILES)[case]
    if case in FILES:
        arguments = make(tmp_path)
    else:
        arguments = pair(tmp_path, **make) if case in MATRICES else a_table(tmp_path, rows=make)
    first = said = refused(**arguments)
    assert re.search(words, said) or words in said, said
    assert str(tmp_path) in said
    for option in ways_out(first)[1:]:  # each by itself leads on, if only to another question
        try:
            cohorts.load(**arguments | option)
        except ValueError as error:
            assert str(error) != first
    for _ in range(4 if n else 0):  # a way out may lead to the next refusal
        arguments |= ways_out(said)[0]
        try:
            assert len(cohorts.load(**arguments)) == n
            return
        except ValueError as error:
            said = str(error)
    assert n is None, said


@pytest.mark.parametrize(("word", "value", "said"), [
    ("several", "all", "several='all' is not known; choose one of refuse, first, mean"),
    ("units", "counts", "units='counts'"),
    ("label", True, "label: True cannot be; write it in quotes"), ("drop_classes", [False], "write it in quotes"),
    ("min_class_size", "x", "min_class_size: 'x' cannot be; write it like 10"), ("min_class_size", 1, "at least 2"),
    ("drop_constant_genes", "no", "write it like False"), ("drop_class", "B", "unknown option 'drop_class'"),
    ("layer", "raw", "no layer 'raw'; there are: none"), ("drop_classes", ["Her2"], "drop_classes names ['Her2']"),
])  # fmt: skip
def test_options_are_taken_as_they_are_meant_or_refused(tmp_path, word, value, said):
    assert said in refused(**h5ad(tmp_path) | {word: value})
    arguments = a_table(tmp_path, rows=beside(grade=[1 + i % 3 for i in range(N)], age=VALUES[:, 0])) | {
        "label": "grade"
    }
    cohort = cohorts.load(**arguments, drop_classes=3, min_class_size="5", ignore=["age", "subtype"])
    assert (cohort.classes, len(cohort)) == (["1", "2"], 24)
    assert cohorts.load(
        **arguments | {"label": "subtype"}, ignore=("age", "grade"), drop_classes=None
    ).classes == sorted(set(CLASSES))


def test_words_for_missing_are_said_and_can_be_others(tmp_path):
    words = ["Unknown" if i % 3 == 0 else "x" if i % 3 == 1 else "y" for i in range(N)]
    arguments = pair(tmp_path, about=clinical(subtype=words))
    cohort = cohorts.load(**arguments)
    assert (
        cohort.classes == ["x", "y"] and "12 samples whose 'subtype' is missing (Unknown) are left out" in cohort.notes
    )
    assert cohorts.load(**arguments, missing=[]).classes == ["Unknown", "x", "y"]
    assert cohorts.load(**arguments, missing=["X"]).classes == ["Unknown", "y"]


def test_a_class_called_all_is_renamed_for_results_call_everybody_so(tmp_path):
    arguments = a_table(tmp_path, rows=beside(subtype=["all", "aml"] * 18))
    assert cohorts.load(**arguments).classes == ["aml", "class all"]


def test_accents_that_are_composed_and_decomposed_are_one(tmp_path):
    arguments = a_table(tmp_path, rows=beside(subtype=["Na\u00efve", "Nai\u0308ve", "B"] * 12))
    assert cohorts.load(**arguments).classes == ["B", "Na\u00efve"]


# --- anything else ----------------------------------------------------------------------------------------------------


def cell(change):
    return lambda rows, i, j: put(rows, i, [*rows[i][:j], change(rows[i][j]), *rows[i][j + 1 :]])


def ids(change):
    return lambda rows, i, j: [rows[0], *([change(row[0], k), *row[1:]] for k, row in enumerate(rows[1:]))]


# An accident to row i and column j of a table, and those that leave one patient fewer.
ACCIDENTS = {
    "shift": lambda rows, i, j: put(rows, i, ["", *rows[i][:-1]]),
    "drop cell": lambda rows, i, j: put(rows, i, [*rows[i][:j], *rows[i][j + 1 :]]),
    "merge": lambda rows, i, j: put(rows, i, [*rows[i][: j - 1], rows[i][j - 1] + rows[i][j], *rows[i][j + 1 :]]),
    "blank": cell(lambda c: ""), "retype": cell(lambda c: "see note"), "sign": cell(lambda c: "#" + c),
    "comma": cell(lambda c: c.replace(".", ",")), "double": cell(lambda c: c + c), "quote": cell(lambda c: '"' + c),
    "missing word": cell(lambda c: "[Not Available]"), "huge": cell(lambda c: "1e6"),
    "double row": lambda rows, i, j: [*rows[:i], rows[i], *rows[i:]],
    "double column": lambda rows, i, j: [[*row, row[j]] for row in rows],
    "rename row": lambda rows, i, j: put(rows, i, ["other", *rows[i][1:]]),
    "rename column": lambda rows, i, j: put(rows, 0, [*rows[0][:j], "other", *rows[0][j + 1 :]]),
    "date": lambda rows, i, j: put(rows, i, ["1-Mar", *rows[i][1:]]),
    "case": lambda rows, i, j: put(rows, i, [rows[i][0].swapcase(), *rows[i][1:]]),
    "case of all": ids(lambda name, k: name.swapcase()), "suffix": ids(lambda name, k: name + "-01"),
    "numbers": ids(lambda name, k: str(k)), "hyphens": ids(lambda name, k: name.replace("-", ".")),
    "swap rows": lambda rows, i, j: put(put(rows, i, rows[-1]), len(rows) - 1, rows[i]),
    "transpose": lambda rows, i, j: [list(row) for row in zip(*rows, strict=True)],
    "drop header": lambda rows, i, j: rows[1:], "drop row": lambda rows, i, j: put(rows, i, None),
    "cut": lambda rows, i, j: [*rows[:i], rows[i][:j]],
    "blank line": lambda rows, i, j: [*rows[:i], [""] * len(rows[0]), *rows[i:]],
    "header short": lambda rows, i, j: put(rows, 0, rows[0][1:]),
}  # fmt: skip
FEWER = ("drop row", "drop header", "rename row", "rename column", "missing word", "blank", "cut", "date", "retype",
         "merge", "double", "sign", "shift")  # fmt: skip


def spoiled(rows, rng):
    kind, i, j = str(rng.choice(list(ACCIDENTS))), int(rng.integers(1, len(rows))), int(rng.integers(1, len(rows[0])))
    return kind, ACCIDENTS[kind]([list(map(str, row)) for row in rows], i, j)


def spoiled_h5ad(folder, rng):
    """An accident of an AnnData file."""
    data = anndata.AnnData(
        VALUES.astype(np.float32), pd.DataFrame({"subtype": CLASSES}, NAMES), pd.DataFrame(index=GENES)
    )
    i, j = int(rng.integers(1, N)), int(rng.integers(1, D))
    kind = str(
        rng.choice(["value", "code", "name", "gene", "class", "none", "scale", "transpose", "profile", "counts"])
    )
    if kind in ("value", "code"):
        data.X[i, j] = np.nan if kind == "value" else -999
    elif kind == "profile":
        data.X[i] = data.X[i - 1]
    elif kind in ("name", "gene"):
        data.obs_names = [NAMES[i - 1] if kind == "name" and k == i else name for k, name in enumerate(NAMES)]
        data.var_names = [GENES[j - 1] if kind == "gene" and k == j else name for k, name in enumerate(GENES)]
    elif kind in ("class", "none"):
        data.obs["subtype"] = [("nan" if kind == "class" else None) if k == i else c for k, c in enumerate(CLASSES)]
    else:
        data.X = {"scale": scaled, "counts": np.exp2, "transpose": np.array}[kind](data.X)
    (data.T if kind == "transpose" else data).write_h5ad(folder / "a.h5ad")
    return kind, {"source": folder / "a.h5ad", "label": "subtype"}


@pytest.mark.filterwarnings("ignore:(Observation|Variable) names are not unique")
@pytest.mark.parametrize("form", ["table", "matrix", "clinical", "folder", "h5ad"])
def test_of_a_spoiled_file_either_the_right_cohort_comes_or_one_line(tmp_path, form):
    rng = np.random.default_rng([7, len(form)])
    outcomes = []
    for _ in range(42):
        if form == "h5ad":
            kind, arguments = spoiled_h5ad(tmp_path, rng)
        elif form == "folder":
            kind, rows = spoiled(clinical(other=NAMES), rng)
            rows[0] = [{"sample": "SAMPLE_ID", "subtype": "SUBTYPE", "other": "PATIENT_ID"}.get(c, c) for c in rows[0]]
            about = "#a\n#b\n" + "\n".join("\t".join(row) for row in rows)
            folder = study(
                tmp_path / "s", 2**VALUES.T, samples=NAMES, data_clinical_patient=None, data_clinical_sample=about
            )
            arguments = {"source": folder, "label": "SUBTYPE"}
        else:
            kind, rows = spoiled({"table": rows_of(table()), "matrix": matrix(), "clinical": clinical()}[form], rng)
            arguments = a_table(tmp_path, rows=rows) if form == "table" else pair(
                tmp_path, **{"rows" if form == "matrix" else "about": rows})  # fmt: skip
        try:
            cohort = cohorts.load(**arguments)
        except (ValueError, FileNotFoundError) as error:
            said = str(error)
            assert "\n" not in said and "px-" not in said.lower() and str(tmp_path) in said, (kind, said)
            outcomes.append("refused")
        else:
            is_right(cohort, len(cohort), np.log2(2**VALUES + 1) if form == "folder" else VALUES)
            assert len(cohort) == N or (kind in FEWER and len(cohort) == N - 1), (kind, len(cohort))
            assert cohort.classes == sorted(set(CLASSES)), (kind, cohort.classes)
            outcomes.append("right")
    assert outcomes.count("right") >= 3 and outcomes.count("refused") >= 10


def test_one_sample_under_two_names_is_refused(tmp_path):
    """A copy that was measured again at another intensity correlates beyond what two patients do."""
    rng, genes = np.random.default_rng(3), [f"G{i}" for i in range(200)]

    def load():
        rows = [["subtype", *genes], *([f"type {i % 2}", *one] for i, one in enumerate(values.round(4)))]
        return cohorts.load(**a_table(tmp_path, rows=rows))

    values = rng.uniform(2, 14, 200) + rng.normal(0, 1.5, (40, 1)) * rng.normal(0, 1, 200) + rng.normal(0, 1, (40, 200))
    assert load().expression.shape == (40, 200)
    values[7] = values[31] + 0.4 + rng.normal(0, 0.05, 200)
    with pytest.raises(ValueError, match="2 patients have the values of others, at .* keep one of each"):
        load()


def test_natural_logarithms_become_those_of_base_2(tmp_path):
    given = a_table(tmp_path)
    found, plain = cohorts.load(**given, units="ln").expression, cohorts.load(**given).expression
    np.testing.assert_allclose(found, plain / np.log(2), rtol=1e-6)
