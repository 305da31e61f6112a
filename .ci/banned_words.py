"""Find words in the code and the docs that .ci/banned-words.txt bans; exit 1 if there are any."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
LIST = REPOSITORY / ".ci" / "banned-words.txt"
FILES = (
    *("*.py", "*.lua", "*.js", "*.css", "*.html", "*.sh", "*.md"),
    *("*.toml", "*.yml", "*.yaml", "*.json", "Makefile", "*Dockerfile", "*.service"),
)
#: what quotes old names, the words of prompts, and dashboards' schema
EXCLUDED = (
    "CHANGELOG.md",
    ".ci/",
    "examples/",
    "worker/latentfarm_worker/mini/flow/model/",
    "worker/latentfarm_worker/mini/model/",
    "worker/mini_training/captions.py",
    "worker/mini_training/world.py",
)


def banned() -> list[tuple[re.Pattern[str], str]]:
    """Return the banned expressions with their replacements."""
    lines = [line for line in LIST.read_text().splitlines() if line and not line.startswith("#")]
    pairs = [re.split(r" {2,}", line, maxsplit=1) for line in lines]
    return [(re.compile(expression, re.IGNORECASE), replacement) for expression, replacement in pairs]


def found(name: str, words: list[tuple[re.Pattern[str], str]]) -> list[str]:
    """Return a message for each banned word in a file."""
    lines = (REPOSITORY / name).read_text().splitlines()
    return [
        f"{name}:{number}: {match[0]!r}: write {replacement}"
        for number, line in enumerate(lines, start=1)
        for expression, replacement in words
        for match in expression.finditer(line.replace("_", " "))
    ]


def main() -> int:
    """Print every finding."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *FILES]
    names = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.split()
    words = banned()
    messages = [
        message
        for name in sorted(set(names))
        if not name.startswith(EXCLUDED) and (REPOSITORY / name).is_file()
        for message in found(name, words)
    ]
    print("\n".join(messages))
    return int(bool(messages))


if __name__ == "__main__":
    sys.exit(main())
