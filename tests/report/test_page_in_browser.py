"""The page in a real browser: its script runs, it draws, and it reacts to pointing, clicking and typing.

Chromium prints the document after the page's script and a probe, which acts as a reader would. Skipped if neither
Chromium nor Chrome is installed.
"""

import dataclasses
import html
import json
import re
import shutil
import subprocess

import pytest
from support.graphs import chain
from support.reports import report_of

from rematpass.commands.plan_file import plan_graph
from rematpass.config import Config
from rematpass.report.page import to_html
from rematpass.report.report import Point, Provenance
from rematpass.units import format_bytes, format_percent, format_seconds

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed"),
]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=4000"
).split()

# <pre id="said"> holds what the probes say, and the errors of any script.
PREPARE = """<pre id="said"></pre><script>
const said = [];
addEventListener("error", (event) => say("error", event.message));
const all = (selector) => [...document.querySelectorAll(selector)], one = (selector) => all(selector)[0];
const texts = (selector) => all(selector).map((e) => e.innerText), over = () => one("#timeline .over");
function say(what, value) {
  said.push([what, value]);
  one("#said").textContent = JSON.stringify(said);
}
function point(x, y, type = "pointermove", more = {}) {
  const r = over().getBoundingClientRect(), at = { clientX: r.left + x * r.width, clientY: r.top + y * r.height };
  over().dispatchEvent(new PointerEvent(type, { ...at, bubbles: true, ...more }));
}
function pixel(x, y) {
  const c = one("#timeline canvas");
  return Array.from(c.getContext("2d").getImageData(Math.round(x * c.width), Math.round(y * c.height), 1, 1).data);
}
</script>"""
PROBE = (
    "<script>setTimeout(() => { try { %s } catch (e) { say('error', String(e)); } say('done', true); }, 300)</script>"
)


def look(report, tmp_path, probe="", width=1300, dark=False):
    """Return the document after the script and the probe, and what the probe said."""
    page = to_html(report).replace("<body>", f"<body>{PREPARE}").replace("</body>", f"{PROBE % probe}</body>")
    file = tmp_path / "page.html"
    file.write_text(page, "utf-8")
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1500", *scheme]
    done = subprocess.run([*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120)
    document = done.stdout
    text = re.search(r'<pre id="said">(.*?)</pre>', document, re.DOTALL)
    assert text, done.stderr[-2000:]
    said = json.loads(text[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">") or "[]")
    assert said[-1] == ["done", True], said
    assert "error" not in dict(said), said
    assert '<html lang="en" data-ready="true">' in document
    return document, dict(said)


@pytest.fixture(scope="module")
def report():
    return report_of()


def test_all_parts_are_drawn(report, tmp_path):
    others = (Point("torch's default", report.chosen.peak, 2 * report.chosen.seconds), *report.others)
    document, _ = look(dataclasses.replace(report, others=others), tmp_path)
    assert document.count('class="rung"') == len(report.frontier)
    assert document.count('class="other"') == len(others)
    assert all(f'id="{part}"' in document for part in ("chosen", "budget", "bound"))
    assert f"this plan, {format_bytes(report.chosen.peak)}" in document
    assert "torch's default" in document
    assert f"<b>{format_bytes(report.timeline.peak)}</b>" in document  # the readout starts at the peak
    assert "no plan can be here (proven)" in document
    assert f"at most {format_percent(report.summary.gap)} above the proven bound for this budget" in document
    assert report.what_more_buys() in document
    assert "saved: recomputing costs" in document
    assert "the whole graph" in document


def test_numbers_are_formatted_as_in_python(report, tmp_path):
    sizes = [0, 1, 1023, 1024, 1536, 1024**2 - 1, 1024**2, 5 * 1024**3, 1024**4, -(3 * 1024**2)]
    times = [0, 1.3e-9, 9.99999e-7, 1e-6, 0.00123456, 0.9999999, 1.0, 75.0]
    probe = f"say('sizes', {sizes}.map(bytes)); say('times', {times}.map(seconds));"
    _, said = look(report, tmp_path, probe)
    assert said["sizes"] == [format_bytes(n) for n in sizes]
    assert said["times"] == [format_seconds(t) for t in times]


def test_pointing_at_a_band_names_the_tensor(report, tmp_path):
    probe = """
      point(0.36, 0.85); say("tip", one("#tip").innerText); say("hidden", one("#tip").hidden);
      point(0.36, 0.01); say("gone", one("#tip").hidden);
    """
    _, said = look(report, tmp_path, probe)
    lines = said["tip"].splitlines()
    values = {v.name: v for v in report.graph.values}
    value = values[lines[0].strip()]
    op = report.graph.ops[report.graph.producer[value.id]]
    assert value.id in {o.value for o in report.occupancy.occupants if o.role == "saved"}
    assert lines[1] == f"{value.dtype}[{', '.join(value.shape)}]"
    assert lines[2].strip() == f"{format_bytes(value.nbytes)}, saved"
    assert f"module {op.module}" in said["tip"]
    assert f"line {op.source.removeprefix('rematpass/')}" in said["tip"]
    assert re.search(r"lives from \S+ to .+, \d+ ops", said["tip"])
    assert (said["hidden"], said["gone"]) == (False, True)


def test_dragging_zooms_and_a_double_click_zooms_out(report, tmp_path):
    probe = """
      const readout = () => { point(0.5, 0.5); return one("#readout").innerText; };
      say("before", readout());
      point(0.6, 0.5, "pointerdown", { pointerType: "mouse" }); point(0.8, 0.5);
      dispatchEvent(new PointerEvent("pointerup")); say("zoomed", readout());
      over().dispatchEvent(new MouseEvent("dblclick")); say("back", readout());
      one("#by-time").click(); say("pressed", one("#by-time").getAttribute("aria-pressed")); say("by time", readout());
    """
    _, said = look(report, tmp_path, probe)
    assert said["before"] == said["back"] != said["zoomed"]
    assert said["pressed"] == "true"
    assert re.match(r"\d+\.\d\d KiB while (forward|backward) runs \w+", said["by time"])


def test_arrow_keys_move_from_the_peak(report, tmp_path):
    probe = """
      const press = (key) => { over().dispatchEvent(new KeyboardEvent("keydown", { key })); return one("#readout"); };
      for (const [what, key] of [["first", "ArrowRight"], ["next", "ArrowRight"], ["back", "ArrowLeft"]])
        say(what, press(key).innerText);
    """
    _, said = look(report, tmp_path, probe)
    assert said["first"].startswith(f"{format_bytes(report.timeline.peak)} while")
    assert said["back"] == said["first"] != said["next"]


def test_values_can_be_searched_filtered_sorted_and_extended(report, tmp_path):
    probe = """
      const cells = (column) => texts(`#values tbody td:nth-child(${column})`);
      const type = (text) => { one("#search").value = text; one("#search").dispatchEvent(new Event("input")); };
      say("at first", cells(1).length); one("#more").click(); say("more", cells(1).length);
      type("blocks.1.mlp"); say("found", cells(4)); type("");
      all("#values th button")[1].click(); say("costs", cells(5));
      all("#fates button").find((b) => b.innerText.includes("saved")).click(); say("reasons", cells(6));
    """
    _, said = look(report, tmp_path, probe)
    assert said["at first"] == 40 < said["more"]
    assert said["found"]
    assert all(text.startswith("blocks.1.mlp") for text in said["found"])
    dearest = max(report.accounts, key=lambda a: a.seconds)
    assert said["costs"][0] == format_seconds(dearest.seconds)
    assert any(text.strip().startswith("recomputed") for text in said["reasons"])
    assert not any(text.strip().startswith("saved") for text in said["reasons"])


def test_modules_fold(report, tmp_path):
    probe = """
      const paths = () => all("#modules tbody tr").map((row) => row.firstChild.title);
      say("open", paths()); one("#modules .fold[aria-expanded=true]").click(); say("folded", paths());
    """
    _, said = look(report, tmp_path, probe)
    assert "blocks.0" in said["open"]
    assert {m for m in said["open"] if m.startswith("blocks.")} & set(said["folded"]) == set()
    assert "blocks" in said["folded"]


def test_light_and_dark_schemes_have_contrast(report, tmp_path):
    probe = """
      const rgb = (e, what) => getComputedStyle(e)[what].match(/[\\d.]+/g).slice(0, 3).map(Number);
      say("page", rgb(document.body, "backgroundColor")); say("ink", rgb(document.body, "color"));
    """
    said = {}
    for dark in (False, True):
        folder = tmp_path / str(dark)
        folder.mkdir()
        said[dark] = look(report, folder, probe, dark=dark)[1]
    light_page, dark_page = (sum(said[dark]["page"]) for dark in (False, True))
    assert light_page > 700 > 150 > dark_page
    assert sum(said[False]["ink"]) < 200 < 600 < sum(said[True]["ink"])


@pytest.mark.parametrize("width", [1600, 1300, 700, 500])
def test_nothing_is_wider_than_the_window(report, tmp_path, width):
    probe = "say('wide', [document.documentElement.scrollWidth, innerWidth]);"
    _, said = look(report, tmp_path, probe, width=width)
    content, window = said["wide"]
    assert content <= window


# The box of each line of text outside of the tables, which scroll; the canvas lists the labels that it wrote.
BOXES = """
  const boxes = [];
  const add = (text, r) => { if (r.right > r.left) boxes.push([text, r.left, r.top, r.right, r.bottom]); };
  for (const root of ["header", "main", "footer"]) {
    const walker = document.createTreeWalker(document.querySelector(root), NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const node = walker.currentNode, range = document.createRange();
      if (!node.data.trim() || node.parentNode.closest("svg, pre, .scroll")) continue;
      range.selectNodeContents(node);
      for (const r of range.getClientRects()) add(node.data.trim(), r);
    }
  }
  for (const text of document.querySelectorAll("svg text")) add(text.textContent, text.getBoundingClientRect());
  const at = document.querySelector("#timeline canvas").getBoundingClientRect();
  const [x, y] = [at.left, at.top];
  for (const b of timeline.labels())
    add(b.text, { left: x + b.left, top: y + b.top, right: x + b.right, bottom: y + b.bottom });
  parent.postMessage(JSON.stringify([innerWidth, document.documentElement.scrollWidth, boxes]), "*");
"""
FRAME = """<!doctype html><html><body style="margin: 0"><pre id="said"></pre>
<iframe src="page.html" style="border: 0; width: %dpx; height: 2400px"></iframe>
<script>addEventListener("message", (event) => { document.querySelector("#said").textContent = event.data; });
</script></body></html>"""


@pytest.mark.parametrize("budget", [0, 0.3, 1])
@pytest.mark.parametrize("width", [420, 700])
def test_no_labels_overlap_in_a_narrow_window(tmp_path, width, budget):
    """In a frame: Chromium's own windows are at least 500 pixels wide."""
    report = report_of(budget=budget)
    others = (Point("torch's default, in our order", report.chosen.peak, 1.01 * report.chosen.seconds), *report.others)
    page = to_html(
        dataclasses.replace(report, others=others, provenance=Provenance.now("a-model-with-a-name", "2.13.0"))
    )
    probe = f"<script>setTimeout(() => {{ {BOXES} }}, 300)</script>"
    (tmp_path / "page.html").write_text(page.replace("</body>", f"{probe}</body>"), "utf-8")
    (tmp_path / "frame.html").write_text(FRAME % width, "utf-8")
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=800,2500", "--dump-dom"]
    done = subprocess.run([*command, (tmp_path / "frame.html").as_uri()], capture_output=True, text=True, timeout=120)
    inner, content, boxes = json.loads(
        html.unescape(re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)[1])
    )
    assert inner == width >= content
    texts = [text for text, *_ in boxes]
    assert f"this plan, {format_bytes(report.chosen.peak)}" in texts
    assert f"peak {format_bytes(report.timeline.peak)}" in texts
    assert [text for text, left, _, right, _ in boxes if left < 0 or right > width] == []
    assert overlaps(boxes) == []


def overlaps(boxes, slack=1.5):
    """Pairs of texts whose boxes share more than ``slack`` pixels in both directions."""
    found = []
    for i, (text, left, top, right, bottom) in enumerate(boxes):
        for other, left2, top2, right2, bottom2 in boxes[:i]:
            if min(right, right2) - max(left, left2) > slack and min(bottom, bottom2) - max(top, top2) > slack:
                found.append((other, text))
    return found


def test_the_overlap_check_finds_an_overlap():
    assert overlaps([["a", 0, 0, 10, 10], ["b", 8, 8, 20, 20], ["c", 9, 20, 30, 30]]) == [("a", "b")]


def test_the_canvas_is_filled_up_to_the_live_bytes(report, tmp_path):
    _, said = look(report, tmp_path, "say('low', pixel(0.4, 0.9)); say('high', pixel(0.15, 0.12));")
    assert said["low"][3] == 255
    assert said["high"][3] == 0


def test_a_graph_of_thousands_of_ops_is_drawn(tmp_path):
    graph = chain(1500, [7 + i % 5 for i in range(1500)])
    config = Config.read({"memory_budget": 0.5, "solver": "chen_sqrt"}, {})
    report = plan_graph(graph, config, "h100").report()
    document, said = look(report, tmp_path, "say('low', pixel(0.5, 0.9)); say('rows', data.runs.length);")
    assert said == {"low": said["low"], "rows": 3000, "done": True}
    assert said["low"][3] == 255
    assert f"<b>{format_bytes(report.timeline.peak)}</b>" in document
