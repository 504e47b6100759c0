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
