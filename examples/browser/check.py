"""Open the page in a headless Chromium, drop nothing and name a picture, and compare its answers with this library's.

    python examples/browser/check.py FOLDER

FOLDER holds index.html, model.onnx and node_modules/onnxruntime-web. `make browser` makes one, and calls this.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image
from skimage.data import chelsea

import vision_ssm

PICTURE = "cat.png"
NEAR = 2e-3  # of probabilities: pixels are the same, and numbers are shown with five digits


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing of it."""

    extensions_map = {  # noqa: RUF012 - as in the class above
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def answers(folder: Path, address: str) -> dict[str, float]:
    """What the page shows, by class."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no Chromium here: install it (Debian: apt-get install chromium).")
    how = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder.resolve() / 'profile'}"]
    # Time that the page believes to pass: as long as something is loaded or computed it does not.
    page = subprocess.run(
        [chromium, *how, "--virtual-time-budget=120000", "--dump-dom", address],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    ).stdout
    state = re.search(r'<p id="state">(.*?)</p>', page)
    print(f"the page says: {state.group(1) if state else 'nothing'}")
    return {name: float(p) for name, p in re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td></tr>", page)}


def main() -> None:
    """Serve the folder, open the page and compare."""
    folder = Path(sys.argv[1])
    side = vision_ssm.load_model(folder / "model.onnx").info.preprocessing.input_size[1]
    photograph = Image.fromarray(chelsea())
    height = photograph.height
    square = photograph.crop((80, 0, 80 + height, height)).resize((side, side), Image.Resampling.BICUBIC)
    square.save(folder / PICTURE)  # of the model's size: browsers resize in their own ways
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        shown = answers(folder, f"http://127.0.0.1:{server.server_port}/index.html#{PICTURE}")
    finally:
        server.shutdown()
    expected = dict(vision_ssm.predict(folder / "model.onnx", folder / PICTURE, top_k=5).results[0].classes)
    for name, probability in expected.items():
        print(f"{name:12} {probability:.5f} here, {shown.get(name, float('nan')):.5f} in the browser")
    if not shown or any(abs(shown.get(name, -1) - probability) > NEAR for name, probability in expected.items()):
        raise SystemExit("the browser's answers differ.")


if __name__ == "__main__":
    main()
