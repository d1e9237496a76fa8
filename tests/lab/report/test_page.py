"""The page of a report: what it says, that it holds what the rows hold, and, in a browser, that it works and asks for nothing."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas
import pytest
from numpy.testing import assert_allclose

from pliant.lab.report.page import Origin, page
from pliant.lab.report.page.verdict import verdict
from pliant.lab.report.summary import Asked, summary
from tests.lab.report.test_summary import MEASURED, study
from tests.patience import PATIENCE, until

TOY = f"{Path(__file__).parents[2] / 'toy_experiment.py'}:Toy"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EIGHT = 0.8 + 0.01 * np.random.default_rng(0).normal(size=(8, 5))


@pytest.fixture
def found(tmp_path):
    def of(*studies, asked=None, name="toy"):
        rows = pandas.concat(studies)
        rows = rows.assign(
            run=rows.groupby([*["method", "step_size", "seed"]], sort=False).ngroup(), loss=1 - rows["accuracy"]
        )
        attrs = {"name": name, "profile": "quick", "measured": [*MEASURED, "loss"], "weights": {}, "seconds": 90.0}
        attrs |= {"shares": ["accuracy"], "colors": {"bp": "#D55E00", "cbp": "#000000"}}
        rows.attrs = attrs
        rows.to_parquet(tmp_path / "rows.parquet", index=False, write_page_checksum=True)
        return summary([tmp_path / "rows.parquet"], asked or Asked(parts=5))

    return of


def falling(values):
    return values - 0.05 * np.arange(values.shape[1])


# -- verdict ----------------------------------------------------------------------------------------------------------


def test_the_verdict_names_the_best_what_it_is_ahead_of_and_what_became_worse(found):
    best, ahead, worse = verdict(
        found(study(falling(EIGHT)), study(EIGHT, method="cbp"), study(EIGHT[::-1] - 0.1, method="l2"))
    )
    assert best.startswith(f"Best accuracy (last): cbp, {EIGHT[:, -1].mean():.4f} ± ")
    assert best.endswith("higher is better; 8 seeds.")
    assert ahead.startswith("It is ahead of bp; l2; of the nearest, l2, by 0.1000 ± ")
    assert worse.startswith("Worse at the end than at the beginning: bp (-0.")


def test_what_cannot_be_told_apart_is_said_and_why(found):
    few = [study(EIGHT[:4]), study(EIGHT[:4] - 0.3, method="cbp"), study(EIGHT[3::-1] - 0.3, method="l2")]
    _, same = verdict(found(*few))
    assert same == "It cannot be told from cbp; l2. With 4 seeds no p falls below 0.12."


def test_the_best_was_chosen_with_hindsight_so_p_is_of_all_comparisons(found):
    """Six seeds, all better: p = 2 / 64 = .031, which three comparisons make .094."""
    two = [study(EIGHT[:6]), study(EIGHT[:6] - 0.3, method="cbp")]
    assert "ahead of cbp" in list(verdict(found(*two)))[1]
    assert "cannot be told from cbp; l2" in list(verdict(found(*two, study(EIGHT[:6] - 0.5, method="l2"))))[1]


def test_an_error_is_better_where_it_is_lower_and_diverged_runs_are_counted(found):
    lost = study(EIGHT[:2], method="bp", seeds=[20, 21], status="diverged")
    of_loss = found(study(EIGHT), study(EIGHT - 0.2, method="cbp"), lost, asked=Asked(metric="loss", parts=5))
    best, _, left_out = verdict(of_loss)
    assert best.startswith("Best loss (last): bp, 0.19")
    assert "lower is better" in best
    assert left_out == "2 runs diverged and are left out of every number."


def test_worse_is_judged_by_the_interval_also_where_tables_show_the_standard_error(found):
    """Six falls of mean .0096: the standard error, .0065, excludes zero; the interval, 2.571 times as wide, does not."""
    change = np.array([0.0, 0.0, 0.0, 0.02, 0.0376, 0.0])
    assert change.mean() > change.std(ddof=1) / np.sqrt(6)
    assert change.mean() < 2.571 * change.std(ddof=1) / np.sqrt(6)
    slightly = found(study(0.8 - np.stack([0 * change, change], axis=1)), asked=Asked(spread="error", parts=2))
    assert not any(sentence.startswith("Worse") for sentence in verdict(slightly))


def test_one_curve_and_none_have_a_verdict_too(found):
    assert next(iter(verdict(found(study(EIGHT))))).startswith("bp: accuracy (last) 0.")
    assert list(verdict(found(study(EIGHT, status="diverged")))) == ["No curve has a value yet."]


# -- the file ---------------------------------------------------------------------------------------------------------


def data_of(text):
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])


def test_its_figures_hold_means_and_intervals_of_the_rows(found):
    data = data_of(page(found(study(EIGHT), study(EIGHT - 0.2, method="cbp")), Origin(), 5))
    accuracy, loss = data["figures"]
    assert accuracy["x"] == [1, 2, 3, 4, 5]
    assert_allclose(accuracy["y"][0], EIGHT.mean(0))
    assert_allclose(accuracy["y"][3], EIGHT.mean(0) - 0.2)
    half = 2.364624 * EIGHT.std(0, ddof=1) / np.sqrt(8)  # t(7)
    assert_allclose(accuracy["y"][1], EIGHT.mean(0) - half, rtol=1e-6)
    assert_allclose(loss["y"][2], 1 - EIGHT.mean(0) + half, rtol=1e-6)
    assert [curve["name"] for curve in data["curves"]] == ["bp", "cbp"]


def test_values_that_are_no_numbers_are_gaps_and_columns_without_any_are_left_out(found):
    gaps = EIGHT.copy()
    gaps[0, 2] = np.nan
    one = found(study(gaps))
    one.rows["loss"] = np.nan
    data = data_of(page(one, Origin(), 5))
    assert len(data["figures"]) == 1
    assert [value is None for value in data["figures"][0]["y"][0]] == [False, False, True, False, False]


class Balanced(HTMLParser):
    """Fails where an element is not closed by its own end."""

    ALONE = ("meta", "input")

    def __init__(self):
        super().__init__()
        self.open, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """Closes itself."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_names_are_texts_whatever_they_hold_and_the_page_is_whole(found):
    evil = "</script><b onclick=alert(1)>&\"'"
    origin = Origin(evil, {evil: evil}, evil, evil)
    text = page(found(study(EIGHT, method=evil), study(EIGHT, method="cbp"), name=evil), origin, 5)
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert parser.links == []
    assert "content=\"default-src 'none'; " in text  # the browser is told to ask for nothing
    assert "<b onclick" not in text
    assert text.count("</script>") == 3


def test_a_page_says_where_it_comes_from_and_refreshes_only_if_asked(found):
    one = found(study(EIGHT))
    text = page(one, Origin("does it last?", {"commit": "abc"}, "pliant run toy", "grid of three", refresh=7), 5)
    facts = "<dt>commit</dt><dd>abc</dd>", "<code>pliant run toy</code>"
    for part in ("does it last?", *facts, "grid of three", 'content="7"'):
        assert part in text
    plain = page(one, Origin(), 5)
    assert 'http-equiv="refresh"' not in plain
    assert "How they were chosen was not said: --note TEXT writes it here." in plain


# -- in a browser -----------------------------------------------------------------------------------------------------

ACTIONS = """<script>
const errors = [], later = ms => new Promise(done => setTimeout(done, ms));
window.addEventListener("error", event => errors.push(event.message));
const console_error = console.error; console.error = (...all) => { errors.push(all.join(" ")); console_error(...all); };
window.addEventListener("load", async () => {
  await later(200);
  const canvas = document.querySelector("canvas"), before = canvas.toDataURL();
  document.querySelector(".curves input").click(); await later(200);
  const without = canvas.toDataURL();
  document.querySelector(".curves input").click(); await later(200);
  const plot = document.querySelector(".plot");
  plot.dispatchEvent(new KeyboardEvent("keydown", { key: "End" })); await later(100);
  const read = document.querySelector("output").textContent;
  const column = () => [...document.querySelector("table").tBodies[0].rows].map(row => row.cells[0].textContent);
  const button = document.querySelectorAll("table")[0].querySelectorAll("th button")[4];
  const rows = [column()]; button.click(); rows.push(column()); button.click(); rows.push(column());
  const paper = getComputedStyle(document.body).backgroundColor, swatches = [...document.querySelectorAll(".curves line")];
  const colors = swatches.map(line => getComputedStyle(line).stroke);
  const result = { paper, colors, errors, toggled: before !== without, back: canvas.toDataURL() === before, read, rows,
    requests: performance.getEntriesByType("resource").map(each => each.name), wide: document.documentElement.scrollWidth };
  const out = document.createElement("pre");
  out.id = "result"; out.textContent = JSON.stringify(result); document.body.append(out);
});
</script>"""


COLORS = {  # of the paper, and of bp, cbp (black) and l2 (which has no color of its own, and so the first of all)
    False: ("rgb(255, 255, 255)", ["rgb(213, 94, 0)", "rgb(0, 0, 0)", "rgb(0, 114, 178)"]),
    True: ("rgb(22, 22, 22)", ["rgb(213, 94, 0)", "rgb(102, 102, 102)", "rgb(0, 114, 178)"]),
}


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)")
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_in_a_browser_curves_toggle_tables_sort_keys_read_and_no_request_leaves(width, dark, found, tmp_path):
    text = page(found(study(EIGHT), study(EIGHT - 0.2, method="cbp"), study(EIGHT - 0.1, method="l2")), Origin(), 5)
    file = tmp_path / "page.html"
    file.write_text(text.replace("<style>", ACTIONS + "<style>", 1), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options = ["--blink-settings=preferredColorScheme=0"] if dark else []
    options += [f"--window-size={width},1500", "--virtual-time-budget=10000", "--dump-dom", file.as_uri()]
    dom = subprocess.run([*command, *options], capture_output=True, text=True, timeout=180, check=True).stdout
    result = json.loads(re.search(r'<pre id="result">(.*?)</pre>', dom, re.S)[1])
    assert (result["paper"], result["colors"]) == COLORS[dark]
    assert result["errors"] == []
    assert result["requests"] == []
    assert result["toggled"]
    assert result["back"]
    assert result["read"].startswith("task 5: bp 0.")
    assert result["rows"] == [["bp", "cbp", "l2"], ["cbp", "l2", "bp"], ["bp", "l2", "cbp"]]  # by their last part
    assert result["wide"] <= max(width, 500)  # tables scroll by themselves; Chromium has no narrower window


# -- the command ------------------------------------------------------------------------------------------------------


def test_report_writes_the_page_of_a_study_with_where_it_comes_from(tmp_path, pliant):
    folder, file = tmp_path / "study", tmp_path / "out.html"
    assert pliant("run", TOY, "--profile", "tiny", "--out", folder, "--jobs", "1")[0] == 0
    words = ("--html", file, "--note", "grid of two", "--refresh", "1")  # it has ended: written once
    status, said, _ = pliant("report", folder, *words)
    assert (status, said.split()) == (0, ["page", str(file)])
    text = file.read_text(encoding="utf-8")
    for part in (
        "<dt>versions</dt><dd>python 3",
        "<dt>runs</dt><dd>",
        " 0 not finished",
        "grid of two",
        "toy_experiment.py:Toy --profile tiny --seeds ",
    ):
        assert part in text
    assert 'http-equiv="refresh"' not in text


def test_a_page_that_is_written_again_waits_for_the_first_row(tmp_path, pliant):
    """The study is planned, and nobody runs it until the page has been asked for."""
    folder, file = tmp_path / "s", tmp_path / "page.html"
    assert pliant("run", TOY, "--profile", "tiny", "--out", folder)[0] == 0
    for job in (folder / "jobs").glob("*.sqlite"):
        job.unlink()
    (folder / "jobs.index").unlink(missing_ok=True)
    assert pliant("report", folder, "--html", file)[0] == 2
    command = [sys.executable, "-m", "pliant", "report", str(folder), "--html", str(file), "--refresh", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as writing:
        with pytest.raises(subprocess.TimeoutExpired):
            writing.wait(3)
        assert not file.exists()
        assert pliant("resume", folder)[0] == 0
        until(file.exists)
        assert writing.wait(PATIENCE) == 0


def test_an_export_of_an_earlier_version_has_the_colors_of_its_experiment(tmp_path, pliant):
    """Whose `attrs` held no colors and no shares."""
    rows = study(EIGHT).assign(run=np.arange(40) // 5)
    known = {"name": "permuted-mnist", "profile": "small", "measured": [*MEASURED]}
    rows.attrs = known
    rows.to_parquet(tmp_path / "rows.parquet", index=False, write_page_checksum=True)
    assert pliant("report", tmp_path / "rows.parquet", "--html", tmp_path / "page.html")[0] == 0
    assert "--curve-0:#d55e00;" in (tmp_path / "page.html").read_text()  # of backprop, in all experiments


def test_note_and_refresh_are_of_the_page(tmp_path, pliant, found):
    found(study(EIGHT))
    status, _, why = pliant("report", tmp_path / "rows.parquet", "--note", "x")
    assert (status, "add --html FILE" in why) == (2, True)
