"""Opens every page of a built site: `python tests/browser.py site`. Exits with 1, and says what,
where something is broken.

Links, anchors and files are checked in any case. Where there is a chromium, each page is opened in
it, without a window, from a local
server: pictures that do not show, errors of scripts, and what the console says are reported.
`--shots FOLDER` writes pictures of pages.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

PATIENCE = 60  # seconds
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
FLAGS += [
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
]
HARNESS = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><body><script>
const found = [];
async function open(page) {
  const frame = document.createElement("iframe");
  frame.width = 1200; frame.height = 900;
  await new Promise((done) => { frame.onload = done; frame.src = page; document.body.append(frame);
  }); const inside = frame.contentDocument;
  for (const image of inside.images) {
    try { await image.decode(); } catch { }
    if (!image.complete || !image.naturalWidth) found.push(`${page}: picture
    ${image.getAttribute("src")} does not show`);
  }
  if (!inside.body || !inside.body.innerText.trim()) found.push(`${page}: nothing to read`);
  frame.remove();
}
(async () => {
  for (const page of PAGES) await open(page);
  await fetch("/__found__", {method: "POST", body: JSON.stringify(found)});
})();
</script>"""
CONSOLE = re.compile(r"CONSOLE[:(]\d+\)?\] (\".*\", source: \S+.*)$", re.MULTILINE)


class Page(HTMLParser):
    """What a page links to and loads, the names that a link may point at, and its pictures without
    alternative text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.names: set[str] = set()
        self.silent: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value for key, value in attrs if value}
        self.names |= {given[key] for key in ("id", "name") if key in given}
        if "href" in given:
            (self.loads if tag == "link" else self.links).append(given["href"])
        if "src" in given:
            self.loads.append(given["src"])
            if tag == "img" and "alt" not in given:
                self.silent.append(given["src"])


def pages_of(site: Path) -> list[Path]:
    """All pages but the one that servers show for those that are missing, whose paths are
    absolute."""
    return sorted(path for path in site.rglob("*.html") if path.name != "404.html")


def broken_links(site: Path) -> list[str]:
    """Links and files that lead nowhere, files from other servers, pictures without alternative
    text."""
    pages = {path.resolve(): Page(path.read_text()) for path in pages_of(site)}
    broken = []
    for path, page in pages.items():
        where = path.relative_to(site.resolve())
        broken += [
            f"{where}: {load}: loaded from elsewhere"
            for load in page.loads
            if "//" in load and not load.startswith("data:")
        ]
        broken += [f"{where}: {picture}: no alternative text" for picture in page.silent]
        for link in (*page.loads, *page.links):
            target, _, name = link.partition("#")
            if "//" in link or link.startswith(("mailto:", "data:")):
                continue
            file = (path.parent / target.partition("?")[0]).resolve() if target else path
            if not file.is_file() or (name and name not in pages[file].names):
                broken.append(f"{where}: {link}: leads nowhere")
    return broken


def chromium() -> str | None:
    """The browser, or None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def served(site: Path, pages: list[str]) -> Iterator[tuple[str, queue.Queue[list[str]]]]:
    """The address of a server of this folder, whose page `__all__` opens all others, and where it
    puts what that page found."""
    harness = HARNESS.replace("PAGES", json.dumps(pages)).encode()
    answers: queue.Queue[list[str]] = queue.Queue()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/__all__":
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(harness)
            return None

        def do_POST(self) -> None:
            answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(site))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", answers
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def browser(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A browser with a profile of its own, and the file that it logs to; ended in the end."""
    program = chromium()
    assert program is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "log"
        command = [
            program,
            *FLAGS,
            f"--user-data-dir={folder}/profile",
            "--enable-logging=stderr",
            *arguments,
        ]
        with log.open("wb") as errors:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
            try:
                yield process, log
            finally:
                process.terminate()
                process.wait(30)


def seen(site: Path) -> list[str]:
    """What a browser finds wrong: pictures that do not show, empty pages, and all that the console
    says."""
    pages = [str(path.relative_to(site)) for path in pages_of(site)]
    with (
        served(site, pages) as (address, answers),
        browser("--remote-debugging-port=0", f"{address}__all__") as (_, log),
    ):
        try:
            found = answers.get(timeout=PATIENCE)
        except queue.Empty:
            return [
                f"the browser did not get through the pages in {PATIENCE} s: "
                f"{log.read_text(errors='replace')[-2000:]}"
            ]
        return [
            *found,
            *(f"console: {line}" for line in CONSOLE.findall(log.read_text(errors="replace"))),
        ]


def shots(site: Path, folder: Path) -> None:
    """Writes a picture of each page."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = [str(path.relative_to(site)) for path in pages_of(site)]
    with served(site, pages) as (address, _):
        for page in pages:
            picture = (folder / page.replace("/", "_")).with_suffix(".png")
            with browser(
                "--window-size=1200,2400", f"--screenshot={picture}", f"{address}{page}"
            ) as (process, _):
                process.wait(PATIENCE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path, help="the folder that was built")
    parser.add_argument("--shots", type=Path, help="a folder for pictures of the pages")
    arguments = parser.parse_args()
    site, count = arguments.site, len(pages_of(arguments.site))
    if not count:
        parser.error(f"{site} holds no pages: build them with `make docs`")
    broken = broken_links(site)
    if chromium() is None:
        print(
            "skipped: no chromium to open the pages in (on Debian, apt-get install chromium); "
            "links were checked"
        )
    else:
        broken += seen(site)
        if arguments.shots:
            shots(site, arguments.shots)
    print(*broken, f"{count} pages, {len(broken)} faults", sep="\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
