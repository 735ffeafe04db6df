"""The top of a run's report as a picture: `python -m tools.screenshot RUN_DIR docs/report.png`. Needs Chromium."""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path

from tests.browser import Browser

WIDTH, HEIGHT = 1100, 1240


def main() -> None:
    run, picture = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
        browser.open((run / "report.html").as_uri(), WIDTH)
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT, "scale": 1}
        data = browser.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
    picture.write_bytes(base64.b64decode(data))


if __name__ == "__main__":
    main()
