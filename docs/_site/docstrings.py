"""The docstrings of this project, which are plain text, as reStructuredText.

An indented block is shown as it stands, and so is a block of aligned columns; `Args:` are fields; what stands in backticks is
code, linked where it is the name of something documented, as is `docs/page.md`; doctests stay doctests.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

NAME = re.compile(r"[A-Za-z_][\w.]*(\(\))?")
COLUMNS = re.compile(r"\S+( \S+)* {3,}\S")
ITEM = re.compile(r"(\*{0,2}[^\W\d]\w*(?:, \*{0,2}[^\W\d]\w*)*): (.*)")


def as_rst(lines: list[str]) -> list[str]:
    """
    >>> for line in as_rst(["Age of `unit`s, |h|.", "", "    u <- η u", "", "Args:", "    h, v: outputs of", "        *units*."]):
    ...     print(line)
    Age of :py:obj:`unit`\\ s, \\|h\\|.
    <BLANKLINE>
    ::
    <BLANKLINE>
        u <- η u
    <BLANKLINE>
    :Parameters:
        * ``h``, ``v``: outputs of \\*units\\*.
    <BLANKLINE>
    """
    shown: list[str] = []
    literal = False
    for block in map(_shown, _blocks(lines)):
        more = literal and block[0] == "::"  # of one block with the lines before
        literal = block[0] == "::"
        shown += [*(block[2:] if more else block), ""]
    return shown


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    block: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line.rstrip())
        elif block:
            yield block
            block = []


def _shown(block: list[str]) -> list[str]:
    if block[0].lstrip().startswith(">>>"):
        return block
    if block[0].startswith("    "):
        return ["::", "", *block]
    if COLUMNS.match(block[0]) and all(COLUMNS.match(line) or line.startswith("  ") for line in block):
        return ["::", "", *(f"    {line}" for line in block)]
    if block[0] == "Args:":
        return [":Parameters:", *(f"    {line}" for line in _list(line[4:] for line in block[1:]))]
    if len(block) > 1 and block[0][0].islower() and all(ITEM.match(line) or line.startswith("    ") for line in block):
        return _list(block)
    return [_inline(line) for line in _joined(block)]


def _joined(block: list[str]) -> list[str]:
    """Each paragraph, and each item of a list, on one line: what is in backticks may go on in the next line."""
    joined: list[str] = []
    for line in block:
        if joined and not re.match(r"\s*([-*]|\d+\.) ", line):
            joined[-1] = f"{joined[-1]} {line.strip()}"
        else:
            joined.append(line)
    return joined


def _list(lines: Iterable[str]) -> list[str]:
    """Of lines `name, name: text`, which may go on in further lines."""
    items: list[tuple[str, str]] = []
    for line in lines:
        if found := ITEM.match(line):
            items.append((found[1], found[2]))
        else:
            name, text = items.pop()
            items.append((name, f"{text} {line.strip()}"))
    return [f"* ``{'``, ``'.join(name.split(', '))}``: {_inline(text)}" for name, text in items]


def _inline(text: str) -> str:
    parts = text.split("`")
    if len(parts) % 2 == 0:
        raise ValueError(f"an odd number of backticks in a docstring: {text}")
    return "".join(_code(part, parts[at + 1]) if at % 2 else _prose(part) for at, part in enumerate(parts))


def _code(code: str, after: str) -> str:
    shown = f":py:obj:`{code}`" if NAME.fullmatch(code) else f"``{code}``"
    return shown + ("\\ " if after[:1].isalnum() else "")


def _prose(text: str) -> str:
    bullet = re.match(r"\s*[-*] ", text)
    start = bullet[0] if bullet else ""
    escaped = re.sub(r"([\\*|_])", r"\\\1", text[len(start) :])
    return start + re.sub(r"\bdocs/([\w/-]+)\.md", r":doc:`/\1`", escaped)


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    ours = what != "data" and not "".join(lines[:1]).startswith("Alias for field")  # not Python's, of a type or a tuple
    lines[:] = as_rst(lines) if ours else []


def _skip(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """What other libraries put into our classes is theirs to document."""
    home = getattr(obj, "__module__", None)
    foreign = isinstance(home, str) and not home.startswith("pliant")
    return True if foreign or name == "model_config" else None


def _bases(app: Any, name: str, obj: Any, options: Any, bases: list[Any]) -> None:
    """Only bases that are documented here."""
    bases[:] = [base for base in bases if getattr(base, "__module__", "").startswith("pliant")]


def setup(app: Any) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", _process)
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-bases", _bases)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
