"""Names and text use the field's words: words that were replaced do not come back."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != "log.md")]
WORDS = re.compile(r"\b(told|by heart|of the trade|mend(s|ed|ing)?|not\s+finite)\b", re.IGNORECASE)
BRITISH = re.compile(r"colour|centre\b|\bgrey|licence|behaviour|neighbour|normalis|optimis", re.IGNORECASE)
NAMES = {"some", "found", "told"}


def test_the_patterns_find_what_they_are_for() -> None:
    assert BRITISH.search("a grey centre") and not BRITISH.search("gray center")
    assert WORDS.search("numbers that are not\nfinite") and WORDS.search("Mend it") and not WORDS.search("recommend")


@pytest.mark.parametrize("path", SOURCES + PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_words_of_before(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":  # names of data in strings stay: files of before have them
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        names = {token.string for token in tokens if token.type == tokenize.NAME}
        assert not names & NAMES
        prose = [token.string for token in tokens if token.type == tokenize.COMMENT or token.string.startswith('"""')]
        assert not [word for part in [*prose, *names] for word in BRITISH.findall(part)]
    else:
        assert not BRITISH.findall(text)
    assert not [match[0] for match in WORDS.finditer(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_rows_of_tables_stay_readable(page: Path) -> None:
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert not [row for row in rows if len(row) > 200]
