"""Finds the calls in the documentation: commands in fenced blocks, and those in running text."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# In the order in which a newcomer reads: what a page needs, the pages before it have made.
PAGES = (
    ROOT / "README.md",
    *(
        ROOT / "docs" / name
        for name in ("serving.md", "histories.md", "runbook.md", "deploy.md", "vllm.md")
    ),
)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_CALL = re.compile(
    r"^(?:[A-Z_]+=\S+ )*"
    r"(?:export|espalier|accelerate|torchrun|curl|redis-cli|make|pip|python|docker|kill)\b"
)


@dataclass(frozen=True)
class Call:
    """A command line as the documentation has it. `inline`: it stands in running text."""

    page: str
    command: str
    inline: bool


def other_pages() -> list[Path]:
    """Pages beside `PAGES` that have a call."""
    found = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if page not in PAGES]


def calls(page: Path) -> Iterator[Call]:
    """The page's calls from top to bottom."""
    text, name = page.read_text(), page.relative_to(ROOT).as_posix()
    at = 0
    for block in (*_BLOCK.finditer(text), None):
        for span in _SPAN.finditer(text, at, len(text) if block is None else block.start()):
            if _CALL.match(span[1]) and " " in span[1]:
                yield Call(name, span[1], inline=True)
        if block is None:
            return
        for line in block[2].splitlines():
            command = re.sub(r"\s+#.*", "", line).strip()
            if command and _CALL.match(command):
                yield Call(name, command, inline=False)
        at = block.end()


def strange_blocks(page: Path) -> list[str]:
    """First lines of blocks that hold no call: pictures and what commands print."""
    blocks = (match[2].splitlines() for match in _BLOCK.finditer(page.read_text()))
    return [
        lines[0]
        for lines in blocks
        if not all(_CALL.match(line) for line in lines if line.strip() and not line.startswith("#"))
    ]
