"""tools/readme.py: README.zh-CN.md shows the code blocks that README.md shows, in their order."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```.*?^```$", re.M | re.S)


def taken_over(english: str, chinese: str) -> str:
    blocks = BLOCK.findall(english)
    found = len(BLOCK.findall(chinese))
    if found != len(blocks):
        raise SystemExit(
            f"got {found} code blocks in README.zh-CN.md, wanted as many as in README.md, "
            f"{len(blocks)}: add or remove one where its prose is"
        )
    rest = iter(blocks)
    return BLOCK.sub(lambda _: next(rest), chinese)


if __name__ == "__main__":
    page = ROOT / "README.zh-CN.md"
    page.write_text(taken_over((ROOT / "README.md").read_text(), page.read_text()))
