"""Tables of sentences, which are stacked on a phone, each cell under the title of its column; tables of numbers scroll."""

from statistics import mean
from typing import Any

from docutils import nodes

SENTENCE = 30  # characters of a mean cell in the widest column
COLUMNS = 5  # at most


def _stack(app: Any, doctree: nodes.document, page: str) -> None:
    for table in doctree.findall(nodes.table):
        for head, body in zip(table.findall(nodes.thead), table.findall(nodes.tbody), strict=True):
            titles = [cell.astext() for cell in head.findall(nodes.entry)]
            rows = [list(row.findall(nodes.entry)) for row in body.findall(nodes.row)]
            longest = max(mean(len(cell.astext()) for cell in column) for column in zip(*rows, strict=True))
            if len(titles) > COLUMNS or longest < SENTENCE:
                continue
            table["classes"].append("sentences")
            for row in rows:
                for title, cell in zip(titles[1:], row[1:], strict=True):
                    if len(titles) > 2 and title and cell.astext():
                        cell.insert(0, nodes.inline(text=title, classes=["title-on-a-phone"]))


def setup(app: Any) -> dict[str, Any]:
    app.connect("doctree-resolved", _stack)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
