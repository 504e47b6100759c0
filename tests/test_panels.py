import pytest

from genlib import panels


def test_pam50_has_fifty_different_genes():
    genes = panels.read("PAM50")
    assert len(genes) == len(set(genes)) == 50
    assert {"ESR1", "ERBB2", "MKI67", "KRT5"} <= set(genes)


def test_former_names_go_both_ways():
    for symbol, others in panels.former_symbols().items():
        assert all(symbol in panels.former_symbols()[other] for other in others)


def test_every_panel_file_is_one_gene_set_with_its_source():
    for path in panels.DATA.glob("*.gmt"):
        name, source, *genes = path.read_text().splitlines()[0].split("\t")
        assert name and "doi" in source and len(genes) > 1


def test_an_unknown_panel_lists_the_known():
    with pytest.raises(ValueError, match="pam50"):
        panels.read("oncotype")


def test_a_gene_set_of_a_file_of_ones_own_is_chosen_by_name(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("ONE\thttps://example.org\tESR1\tPGR\nTWO\tnone\tKRT5\tKRT14\tKRT17\n")
    assert panels.read(f"{path}#TWO") == ["KRT5", "KRT14", "KRT17"]
    with pytest.raises(ValueError, match="choose one of the 2 gene sets .*ONE, TWO"):
        panels.read(str(path))
    with pytest.raises(ValueError, match="ONE, TWO"):
        panels.read(f"{path}#THREE")


def test_a_file_with_one_gene_set_needs_no_name(tmp_path):
    path = tmp_path / "thyroid.gmt"
    path.write_text("THYROID\tnone\tTG\tTPO\tPAX8\n\n")
    assert panels.read(str(path)) == ["TG", "TPO", "PAX8"]


@pytest.mark.parametrize(
    ("text", "said"), [("", "it is empty"), ("A\tB\n", "line 1 has"), ("A\tB\tC\nESR1\n", "line 2")]
)
def test_a_file_that_is_not_gmt_is_refused_with_its_line(tmp_path, text, said):
    path = tmp_path / "broken.gmt"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        panels.read(str(path))


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match="there is no file .*absent.gmt"):
        panels.read("/tmp/absent.gmt#SET")


def test_every_gene_of_the_panel_has_an_entrez_id_of_its_own():
    ids = panels.entrez_ids()
    assert set(ids) == set(panels.read("pam50"))
    assert len(set(ids.values())) == 50
    # As NCBI Gene has them.
    assert {gene: ids[gene] for gene in ("ERBB2", "ESR1", "FOXA1")} == {
        "ERBB2": "2064",
        "ESR1": "2099",
        "FOXA1": "3169",
    }
