"""Published gene panels and former gene symbols, from the files in ``genlib/data``."""

import pathlib

DATA = pathlib.Path(__file__).parent / "data"


def read(name):
    """Gene symbols of a panel that comes with genlib (GMT files in ``genlib/data``).

    Examples
    --------
    >>> len(read("pam50"))
    50
    """
    path = DATA / f"{name.lower()}.gmt"
    if not path.exists():
        known = sorted(p.stem for p in DATA.glob("*.gmt"))
        raise ValueError(f"unknown panel '{name}'; known panels: {', '.join(known)}; or give a list of gene symbols")
    # GMT: one line a gene set, tab-separated: name, source, genes.
    return path.read_text().splitlines()[0].split("\t")[2:]


def former_symbols():
    """Other names that a gene goes by: current symbol to former ones, and the reverse.

    Examples
    --------
    >>> former_symbols()["ORC6"], former_symbols()["ORC6L"]
    (('ORC6L',), ('ORC6',))
    """
    pairs = [line.split("\t") for line in (DATA / "aliases.tsv").read_text().splitlines()]
    return {symbol: tuple(former) for symbol, *former in pairs} | {old: (new,) for new, *rest in pairs for old in rest}
