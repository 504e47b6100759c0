"""Published gene panels and former gene symbols, from the files in ``genlib/data``."""

import pathlib

DATA = pathlib.Path(__file__).parent / "data"


def read(name):
    """Gene symbols of a panel: one that comes with genlib, or a gene set in a GMT file of one's own.

    Parameters
    ----------
    name : str
        ``"pam50"``, or the path of a GMT file, as ``"hallmark.gmt"``; with several sets in it, the wanted one follows
        a ``#``: ``"hallmark.gmt#HALLMARK_ESTROGEN_RESPONSE_EARLY"``.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        When there is no such panel, file or set, or the file is not GMT; names what there is.

    Examples
    --------
    >>> len(read("pam50"))
    50
    """
    if ".gmt" not in name.lower():
        path, wanted = DATA / f"{name.lower()}.gmt", ""
        if not path.exists():
            known = sorted(p.stem for p in DATA.glob("*.gmt"))
            raise ValueError(
                f"unknown panel '{name}'; known panels: {', '.join(known)}; or give a GMT file (FILE.gmt#SET) or a "
                "list of gene symbols"
            )
    else:
        file, _, wanted = name.partition("#")
        path = pathlib.Path(file)
        if not path.exists():
            raise ValueError(f"panel '{name}': there is no file {path}")
    sets = _gene_sets(path)
    if wanted not in sets and (wanted or len(sets) > 1):
        shown = ", ".join(list(sets)[:10])
        raise ValueError(
            f"panel '{name}': choose one of the {len(sets)} gene sets of {path.name} as FILE.gmt#SET: {shown}"
        )
    return sets[wanted] if wanted else next(iter(sets.values()))


def label(panel):
    """Name a panel as results and figures show it: without folders, which say nothing of genes and much of a machine.

    Parameters
    ----------
    panel : str or None
        As in `read`.

    Returns
    -------
    str or None

    Examples
    --------
    >>> label("pam50"), label("../mine/thyroid.gmt"), label("hallmark.gmt#ESTROGEN"), label(None)
    ('pam50', 'thyroid', 'ESTROGEN', None)
    """
    if panel is None or ".gmt" not in panel.lower():
        return panel
    file, _, wanted = panel.partition("#")
    return wanted or pathlib.Path(file).stem


def _gene_sets(path):
    """GMT: one line a gene set, tab-separated: name, source, genes."""
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    broken = [number for number, fields in enumerate(lines, 1) if len(fields) < 3]
    if broken or not lines:
        where = f"line {broken[0]} has" if broken else "it is empty, so there are"
        raise ValueError(f"{path}: {where} fewer than three tab-separated fields; GMT lines are name, source, genes")
    return {fields[0]: [gene.strip() for gene in fields[2:] if gene.strip()] for fields in lines}


def former_symbols():
    """Other names that a gene goes by: current symbol to former ones, and the reverse.

    Examples
    --------
    >>> former_symbols()["ORC6"], former_symbols()["ORC6L"]
    (('ORC6L',), ('ORC6',))
    """
    pairs = [line.split("\t") for line in (DATA / "aliases.tsv").read_text().splitlines()]
    return {symbol: tuple(former) for symbol, *former in pairs} | {old: (new,) for new, *rest in pairs for old in rest}


def entrez_ids():
    """Entrez ids of the genes of the panels that come with genlib, by symbol.

    Examples
    --------
    >>> entrez_ids()["ESR1"]
    '2099'
    """
    return dict(line.split("\t") for line in (DATA / "entrez.tsv").read_text().splitlines())
