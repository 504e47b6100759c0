"""The report page: complete, or honest about what it lacks; and it asks no network for anything."""

import html.parser
import json
import pathlib
import re
import shutil
import subprocess

import nbformat
import pytest

from genlib import page, report, results, risk_card
from genlib import run as runs

REFERENCE = pathlib.Path(__file__).parent.parent / "outputs" / "reference"
TABLE = results.read(REFERENCE / "results.csv")


WIDGET = "application/vnd.jupyter.widget-view+json"


class Reader(html.parser.HTMLParser):
    """Collects tags, and sees that they are closed in their order."""

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link", "br", "hr", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(REFERENCE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.ipynb", "html"))
    notebook = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_markdown_cell("# Who are <they>?"),
        nbformat.v4.new_code_cell("1", outputs=[
            nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "figure"}),
            nbformat.v4.new_output("display_data", {WIDGET: {}, "text/plain": "100%"}),
        ]),
    ])  # fmt: skip
    nbformat.write(notebook, folder / "01_cohort.ipynb")
    assert page.write(folder) == []
    return folder


def read(path):
    reader = Reader()
    reader.feed(path.read_text())
    assert reader.open == []
    return reader


def test_the_page_is_whole_and_asks_no_network(run):
    for path in (run / "index.html", run / "html" / "01_cohort.html"):
        tags = read(path).tags
        assert not [tag for tag, _ in tags if tag in ("script", "link", "iframe")]
        sources = [a["src"] for _, a in tags if "src" in a]
        assert sources and all(source.startswith("data:") for source in sources)
        assert all(a.get("alt") for tag, a in tags if tag == "img")
        assert all(a.get("scope") for tag, a in tags if tag == "th")
        assert dict(tags)["html"]["lang"] == "en"
    links = [a["href"] for tag, a in read(run / "index.html").tags if tag == "a"]
    assert links == ["html/01_cohort.html"] and (run / links[0]).exists()


def test_the_answer_is_that_of_the_results(run):
    said = " ".join(page.sentences(TABLE, 0.03))
    exposed = page._exposed(TABLE)
    worst = exposed.loc[exposed["estimate"].idxmax()]
    assert f"Most exposed is {worst['group']} ({worst['n_patients']} patients): {report.percent(worst)}" in said
    decision = report.decision_table(TABLE, 0.03, report.rarest_class(TABLE))
    models = decision[decision["what is shared"] == "model"]
    assert f"Of {len(models)} ways to train a model, {(models['passes'] == 'yes').sum()} leave" in said
    text = "".join(read(run / "index.html").text)
    assert all(one in text for one in page.sentences(TABLE, 0.03))
    assert all(setting in text for setting in decision["setting"])


def test_nothing_passes_a_tolerance_of_nothing():
    assert "0 leave at most 0 of 100 members found." in page.sentences(TABLE, 0.0)[2]


def test_a_run_that_is_not_complete_says_what_is_missing(tmp_path):
    report.select(TABLE, notebook="01_cohort").to_csv(tmp_path / "results.csv", index=False)
    shutil.copy(REFERENCE / "manifest.json", tmp_path)
    lacking = page.write(tmp_path)
    assert lacking == list(page.SECTIONS)
    text = "".join(read(tmp_path / "index.html").text)
    assert text.count("not all notebooks that this needs were run") == len(lacking)
    assert json.loads((REFERENCE / "manifest.json").read_text())["environment"]["time"] in text


class TestTheReference:
    def test_it_is_whole_and_small_and_names_nobody(self):
        files = [path for path in REFERENCE.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) < 15e6
        wanted = [*runs.names(), *runs.APART.values()]
        assert {path.stem for path in REFERENCE.glob("*.ipynb")} == set(wanted)
        assert {path.stem for path in (REFERENCE / "html").iterdir()} == set(wanted)
        for path in files:
            text = path.read_text()
            assert not re.search(r"TCGA-\w\w-\w{4}|/home/|/root/|/tmp/(?!ipykernel)|/Users/", text), path
        for name in wanted:
            cells = nbformat.read(REFERENCE / f"{name}.ipynb", as_version=4).cells
            assert all(cell.execution_count for cell in cells if cell.cell_type == "code" and cell.source.strip())

    def test_its_page_is_the_one_that_its_results_give(self, tmp_path):
        manifest = json.loads((REFERENCE / "manifest.json").read_text())
        assert manifest["results"]["sha256"] == results.file_digest(REFERENCE / "results.csv")
        shutil.copytree(REFERENCE, tmp_path, dirs_exist_ok=True)
        assert page.write(tmp_path) == []
        risk_card.write(tmp_path)
        for name in ("index.html", "risk_card.md", "risk_card.json"):
            assert (tmp_path / name).read_text() == (REFERENCE / name).read_text(), name


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def browse(page_file, tmp_path, *options):
    """Open a page in headless Chromium that can resolve no name, and return the page as it then stands."""
    answer = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}", *options,
         page_file.as_uri()],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-2000:]
    return answer.stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
class TestInABrowser:
    @pytest.mark.parametrize("width", [390, 1100])
    def test_it_fits_the_screen_and_its_figures_are_there(self, run, tmp_path, width):
        # A script of the test's own, since the page has none, writes what the browser made of it into the title. The
        # frame has the width of the screen, which a browser's own window may refuse.
        script = """<script>addEventListener("load", () => { const wide = [...document.images].map(i => i.naturalWidth);
          document.title = [document.documentElement.scrollWidth, innerWidth, Math.min(...wide), wide.length].join(" ");
          parent.document.title = document.title; });</script>"""
        (tmp_path / "page.html").write_text((run / "index.html").read_text().replace("</body>", script + "</body>"))
        frame = tmp_path / "frame.html"
        frame.write_text(f'<title></title><iframe src="page.html" width="{width}" height="800" style="border:0">')
        options = ("--allow-file-access-from-files", "--window-size=1400,900", "--dump-dom")
        seen = re.search(r"<title>(\d+) (\d+) (\d+) (\d+)</title>", browse(frame, tmp_path, *options))
        scroll, inner, narrowest, count = map(int, seen.groups())
        assert scroll <= inner <= width and narrowest > 0 and count == len(page.FIGURES)

    @pytest.mark.parametrize("name", ["05_dp_sgd", "06_defenses"])
    def test_notebooks_with_wide_tables_fit_a_phone(self, tmp_path, name):
        script = "<script>onload = () => { parent.document.title = document.documentElement.scrollWidth; };</script>"
        text = (REFERENCE / "html" / f"{name}.html").read_text()
        (tmp_path / "page.html").write_text(text.replace("</body>", script + "</body>"))
        frame = tmp_path / "frame.html"
        frame.write_text('<title></title><iframe src="page.html" width="390" height="800" style="border:0">')
        options = ("--allow-file-access-from-files", "--window-size=1400,900", "--dump-dom")
        assert int(re.search(r"<title>(\d+)</title>", browse(frame, tmp_path, *options)).group(1)) <= 390

    def test_it_prints(self, run, tmp_path):
        browse(run / "index.html", tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}")
        assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
