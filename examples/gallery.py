"""One page of pictures: concepts of the zoo, composed. The same as `python -m poe gallery --html
out/gallery.html`.

Sixteen pictures of each of 18 expressions take about half an hour on one core; a call that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

import os
from pathlib import Path

from poe.cli.gallery import gallery

OUT = Path("out")

if __name__ == "__main__":
    fast = os.environ.get("POE_FAST") == "1"
    OUT.mkdir(exist_ok=True)
    gallery(OUT / "gallery.png", 4 if fast else 16, 0, html=OUT / "gallery.html", brief=fast)
