"""What the two READMEs promise works when it is typed; `python tests/test_readme.py` writes the answer."""

import pathlib
import re

import nbformat
import pandas as pd
import pytest

from genlib import report, results

ROOT = pathlib.Path(__file__).parent.parent
REFERENCE = ROOT / "outputs" / "reference"
COMMANDS = {
    "10_across_cohorts": "`./run_all.sh --cohort A,B`",
    "11_cost": "`./run_all.sh cost`",
    "12_sharp_edges": "`./run_all.sh sharp-edges`",
    "your_model": "`./run_all.sh judge`",
}


def in_markdown(table):
    rows = [f"| {' | '.join(row)} |" for row in [table.columns, *table.astype(str).to_numpy()]]
    return "\n".join([rows[0], "|---" * len(table.columns) + "|", *rows[1:]])


def answer():
    """What the reference found: sentences, a figure, and eight settings."""
    table = results.read(REFERENCE / "results.csv")
    decision = report.decision_table(table)
    undefended = decision["setting"].str.startswith("none")
    rows = pd.concat([decision[~undefended].head(7), decision[undefended].head(1)])
    words = "\n".join(f"- {sentence}" for sentence in report.answer(table))
    figure = "![Utility and risk of every setting](outputs/reference/figures/8a_trade_off.svg)"
    return f"{words}\n\n{figure}\n\n{in_markdown(rows)}"


def notebooks():
    rows = []
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        executed, link, time = REFERENCE / path.name, f"notebooks/{path.name}", COMMANDS.get(path.stem, "")
        if executed.exists():
            link = f"outputs/reference/{path.name}"
            time = time or f"{nbformat.read(executed, as_version=4).metadata.papermill.duration:.0f} s"
        rows.append([f"[`{path.stem}`]({link})", report.title(path), time])
    return in_markdown(
        pd.DataFrame(rows, columns=["notebook, as it ran", "question", "seconds (quick, 2 cores), or command"])
    )


def written():
    """README with what the reference found between its marks."""
    text = (ROOT / "README.md").read_text()
    for name, part in {"results": answer(), "notebooks": notebooks()}.items():
        marks = re.compile(rf"(<!-- {name}:.*?-->\n).*?(<!-- end of {name} -->)", re.S)
        text = marks.sub(lambda found, part=part: f"{found[1]}{part}\n\n{found[2]}", text)
    return text


def test_it_says_what_the_reference_run_found():
    assert (ROOT / "README.md").read_text() == written()


def test_the_examples_of_genlib_run_as_they_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text, space = (ROOT / "genlib" / "README.md").read_text(), {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "genlib/README.md", "exec"), space)
    assert space["trained"].logits.shape == space["smoothed"].logits.shape == (12, 60, 3)
    assert sorted(space["thyroid"].classes) == ["follicular", "medullary", "papillary"]
    assert "TPR at FPR 0.1" in capsys.readouterr().out


def test_every_room_has_a_line_and_every_line_a_room():
    text = (ROOT / "genlib" / "README.md").read_text()
    named = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE))))
    rooms = {path.stem for path in (ROOT / "genlib").glob("*.py") if not path.stem.startswith("_")}
    assert named == rooms


@pytest.mark.parametrize("name", ["README.md", "genlib/README.md"])
def test_a_file_that_is_named_is_there(name):
    text = (ROOT / name).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    missing = [link for link in links if not (ROOT / name).parent.joinpath(link).exists()]
    assert not missing


if __name__ == "__main__":
    (ROOT / "README.md").write_text(written())
