"""Photographs a loss test's report and the start page, at the widths of a desktop and a phone, into docs/img:

    make docs && python docs/screenshots.py

Needs Chromium (`apt install chromium`) and Pillow. The report is that of the committed fashion_losses.json.
"""

import functools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

from imbloss.lab.report import write_report

DOCS = Path(__file__).parent
SITE = DOCS.parent / "site"
SIZES = {"desktop": (1280, 1000), "phone": (390, 844)}
COMMAND = (
    "imbloss compare --data fashion-mnist --imbalance-ratio 100 --seeds 3 --epochs 15 --jobs 2 "
    "--loss cross_entropy,focal,class_balanced_focal,balanced_softmax,lade"
)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def photograph(url, name, width, height):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("expected Chromium to be installed: apt install chromium")
    path = DOCS / "img" / f"{name}.png"
    # A window is never narrower than 500 pixels, so a phone's is a frame in a page of ours.
    frame = f'<body style="margin:0"><iframe src="{url}" style="border:0;width:{width}px;height:{height}px"></iframe>'
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "frame.html"
        page.write_text(frame)
        options = "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000"
        size = f"--window-size={max(width, 500)},{height}"
        command = [browser, *options, size, f"--screenshot={path}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(path) as image:
        small = image.convert("RGB").crop((0, 0, width, height)).quantize(128, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    print(path, small.size, path.stat().st_size)


def main():
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.html"
        results = json.loads((DOCS / "fashion_losses.json").read_text())
        write_report(results, report, metric="balanced_accuracy", command=COMMAND)
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SITE))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for size, (width, height) in SIZES.items():
            photograph(report.as_uri(), f"report_{size}", width, height)
            photograph(f"http://127.0.0.1:{server.server_port}/", f"start_{size}", width, height)
        server.shutdown()


if __name__ == "__main__":
    main()
