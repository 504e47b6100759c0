"""What the two READMEs promise works when it is typed."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent


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
