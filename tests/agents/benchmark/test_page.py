"""The page needs nothing but itself, escapes what it is given, and sorts."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from small_benchmark import rows, spec

from conserve_gym.agents.benchmark import comparisons, leaderboard, page
from conserve_gym.agents.benchmark.competitors import Competitor
from conserve_gym.agents.benchmark.playing import Played
from conserve_gym.policy import Reads

EVIL = "<script>alert(1)</script>"
ATTAINED = {"stay": 9.5, "move": 100.0, EVIL: 30.25}
ROWS = rows({name: {1.0: [value, value]} for name, value in ATTAINED.items()})
PLAYWRIGHT = Path.home() / ".cache" / "ms-playwright"
# What a reader would do: click a head, look at the order, and again.
CLICKS = """
<script>
addEventListener("load", () => {
  const table = document.querySelector("table"), told = [];
  for (const name of ["SLO attainment, %", "SLO attainment, %", "policy"]) {
    const head = [...table.querySelectorAll("th")].find(one => one.textContent === name);
    head.click();
    const column = [...head.parentNode.children].indexOf(head);
    told.push([...table.tBodies[0].rows].map(row => row.cells[1].textContent).join("|"));
  }
  document.title = told.join(" // ");
});
</script>
"""


def browser() -> str | None:
    """Return a Chromium, if there is one."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    cached = [*PLAYWRIGHT.glob("*/*/chrome"), *PLAYWRIGHT.glob("*/*/headless_shell")]
    return str(min(cached)) if cached else None


@pytest.fixture
def written(tmp_path: Path) -> Path:
    names = [Competitor(name, name, name, Reads.ARRIVAL, "") for name in ATTAINED]
    asked = spec(tmp_path, clusters=("four",))
    found = Played(asked, names, {}, {}, {})
    board = leaderboard.table(found, ROWS)
    compared = comparisons.table(ROWS, {("four", "talk"): {"best honest": "move"}})
    picture = tmp_path / "one.png"
    picture.write_bytes(b"\x89PNG")
    return page.write(tmp_path, found, board, compared, [f"{EVIL} wins"], {"One": picture})


def test_it_names_no_other_address_and_escapes(written: Path) -> None:
    text = written.read_text("utf-8")
    assert not re.search(r"(https?:)?//[a-z]", text)
    assert set(re.findall(r'(?:src|href)="([^"]{0,10})', text)) == {"data:image"}
    assert EVIL not in text
    assert text.count("&lt;script&gt;alert(1)") >= 3
    body = text[text.index("<body>") :]
    assert body.index("wins") < body.index("<table>")


def test_a_click_on_a_head_sorts(written: Path) -> None:
    chromium = browser()
    if chromium is None:
        pytest.skip("no Chromium here: the page was not opened")
    page_clicked = written.with_name("clicked.html")
    page_clicked.write_text(written.read_text("utf-8").replace("</body>", CLICKS + "</body>"))
    done = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={written.parent / 'profile'}",
            "--dump-dom",
            page_clicked.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (title,) = re.findall(r"<title>(.*?)</title>", done.stdout, flags=re.S)
    down, up, by_name = title.replace("&lt;", "<").replace("&gt;", ">").split(" // ")
    best = "best_in_hindsight †"
    assert up.split("|")[:2] == ["stay", EVIL]  # 9.5 before 30.25 before 100: as numbers
    assert set(up.split("|")[2:]) == {"move", best}
    assert down.split("|")[2:] == [EVIL, "stay"]
    assert by_name.split("|")[1:] == [best, "move", "stay"]
