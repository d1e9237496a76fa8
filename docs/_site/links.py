"""Links between the pages of the site, files outside `docs/`, and what is documented.

Pages are written to be read where they lie, so a link leads to a file. On the site, files that a page includes are that page,
other files are downloads, and folders are words. Names in code, such as `pliant.diagnose`, lead to the API.
"""

import re
from functools import cache
from os.path import normpath, relpath
from pathlib import Path
from pkgutil import resolve_name
from types import FunctionType
from typing import Any

from docutils import nodes
from sphinx.util.nodes import make_refnode

ROOT = Path(__file__).parents[2]
PAGES = {  # file -> the page that includes it
    "README.md": "docs/overview.md",
    "CHANGELOG.md": "docs/changelog.md",
    "CITATION.cff": "docs/cite.md",
    "CONTRIBUTING.md": "docs/contributing.md",
    "results/README.md": "docs/results.md",
}
LINK = re.compile(r"(!?)\[((?:[^][]|\[[^]]*\])*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_site(text: str, file: str, page: str) -> str:
    """`text` of `file` with links as they are from `page`, both paths from the root of the project.

    >>> on_site("[all](docs/methods/l2.md#l2), [log](CHANGELOG.md), [cases](tests/)", "README.md", "docs/api/index.md")
    '[all](../methods/l2.md#l2), [log](../changelog.md), cases'
    """

    def moved(link: re.Match[str]) -> str:
        image, words, target, place = link.groups(default="")
        if "://" in target:
            return link[0]
        path = normpath(Path(file).parent / target)
        if (ROOT / path).is_dir() or PAGES.get(path) == page:
            return words
        return f"{image}[{words}]({relpath(PAGES.get(path, path), Path(page).parent)}{place})"

    return LINK.sub(moved, text)


def _read_page(app: Any, page: str, source: list[str]) -> None:
    file = str(Path(app.env.doc2path(page)).relative_to(ROOT))
    source[0] = on_site(source[0], file, file)


def _read_included(app: Any, path: Path, page: str, content: list[str]) -> None:
    file = normpath(Path("docs", path))
    content[0] = on_site(content[0], file, str(Path(app.env.doc2path(page)).relative_to(ROOT)))


def _link_names(app: Any, doctree: nodes.document, page: str) -> None:
    objects = app.env.domaindata["py"]["objects"]
    top = {name: found for name in objects if (found := _imported(name)) is not None}
    homes = {_home(found): name for name, found in top.items()}
    short: dict[str, str | None] = {}
    for home, name in homes.items():
        word = home.rpartition(".")[2]
        short[word] = None if word in short else name  # several: none of them is meant
    for literal in list(doctree.findall(nodes.literal)):
        text = literal.astext().removesuffix("()")
        if text.startswith("pliant."):
            name = text if text in objects else homes.get(_home(_imported(text)))
        else:
            name = short.get(text) if text[:1].isupper() else None
        if name is None or isinstance(literal.parent, nodes.reference) or objects[name].docname == page:
            continue
        entry = objects[name]
        reference = make_refnode(app.builder, page, entry.docname, entry.node_id, [], name)
        literal.replace_self(reference)
        reference.append(literal)


@cache
def _imported(name: str) -> Any:
    """The class or function of that name, or None."""
    home, _, word = name.rpartition(".")
    try:
        found = getattr(resolve_name(home), word)  # a function before a module of its name
    except (ImportError, AttributeError, ValueError):
        return None
    return found if isinstance(found, type | FunctionType) and "." not in found.__qualname__ else None


def _home(found: Any) -> str:
    """One name for an object, wherever it was imported from."""
    return f"{found.__module__}.{found.__qualname__}" if found is not None else ""


def setup(app: Any) -> dict[str, Any]:
    app.connect("source-read", _read_page)
    app.connect("include-read", _read_included)
    app.connect("doctree-resolved", _link_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
