"""What the pages of methods say of promises and cost, written from the rows of `promises.py` and from the table of costs.

    python -m tests.methods.pages        rewrites what stands between the markers of docs/methods.md and docs/methods/*.md

A page names the rows of `METHODS` that it is about in its first marker, `<!-- generated for: name, name -->`.
"""

import re
from pathlib import Path

from tests.methods.promises import METHODS, PROMISES, row_of

DOCS = Path(__file__).parents[2] / "docs"
OVERVIEW = DOCS / "methods.md"
PAGES = [page for page in sorted((DOCS / "methods").glob("*.md")) if page.stem != "by-construction"]
BLOCK = re.compile(r"(<!-- generated(?: for: ?(.*))? -->\n)(.*?)(<!-- end -->)", flags=re.S)


def words(promise):
    """The name of a promise as a sentence."""
    return promise.__name__.replace("_", " ").replace("grad scaler", "GradScaler")


def sentence(promise):
    """Its name, and what its docstring adds."""
    name = words(promise)
    return " ".join([f"{name[0].upper()}{name[1:]}.", *(promise.__doc__ or "").split()])


def rows_of(page):
    """The rows that a page is about."""
    names = BLOCK.search(page.read_text())[2]
    return [row_of(name) for name in names.split(", ") if name]


def linked(reason, page):
    """A reason that names a file of docs/, with a link to it from `page`."""
    up = "" if page.parent == DOCS else "../"
    return re.sub(r"docs/([\w-]+)\.md", lambda found: f"[{found[1].replace('-', ' ')}]({up}{found[1]}.md)", reason)


# -- a page --------------------------------------------------------------------------------------------------------------


def costs(overview):
    """The rows of the table of costs: page, method, what it keeps, what it adds to a step, or ""."""
    table = overview.split("## Cost\n")[1].split("\n## ")[0]
    found = re.findall(r"^\| \[(.+)\]\(methods/(.+)\.md\) \| (.+?) \|(?: ([^|]+?))? \|.*$", table, flags=re.M)
    return [(page, method, keeps, adds) for method, page, keeps, adds in found]


def cost(page, overview):
    told = [
        f"{method} keeps {keeps}{f', and makes a small step {adds} longer' if adds else ''}."
        for home, method, keeps, adds in costs(overview)
        if home == page.stem
    ]
    return f"**[Cost](../methods.md#cost).** {' '.join(told)}"


def kept(page):
    """What the rows of a page promise, and what not, with the reasons."""
    rows, broken = rows_of(page), {}
    for promise in PROMISES:
        reasons = {row.name: row.cannot[promise.__name__] for row in rows if promise.__name__ in row.cannot}
        for reason in dict.fromkeys(reasons.values()):
            names = tuple(name for name, said in reasons.items() if said == reason)
            broken.setdefault((names, reason), []).append(f"*{words(promise)}*")
    lines = []
    for (names, reason), promises in broken.items():
        of = "" if len(names) == len(rows) else f" (of {' and '.join(names)})"
        lines.append(f"* {', '.join(promises)}{of}: {linked(reason, page)}.")
    head = f"**[Promises](../methods.md#promises).** All {len(PROMISES)} are kept{', but for:' if lines else '.'}"
    return "\n".join([head, *(["", *lines] if lines else [])])


def block_of_page(page, overview):
    return "\n\n".join([cost(page, overview), *([kept(page)] if rows_of(page) else [])])


# -- the overview --------------------------------------------------------------------------------------------------------


def promises_of_all():
    """The promises, and a table of which method keeps which."""
    listed = [f"{number}. {sentence(promise)}" for number, promise in enumerate(PROMISES, start=1)]
    homes = {row.name: page for page in PAGES for row in rows_of(page)}
    table = [
        f"| [{row.name}](methods/{homes[row.name].name}) | {len(PROMISES) - len(row.cannot)} | {exceptions(row)} |"
        for row in METHODS
    ]
    return "\n".join([*listed, "", "| method | keeps | but for |", "|---|---|---|", *table])


def exceptions(row):
    """The numbers of the promises that it does not keep, by reason."""
    numbers = {promise.__name__: number for number, promise in enumerate(PROMISES, start=1)}
    by_reason = {}
    for name, reason in row.cannot.items():
        by_reason.setdefault(reason, []).append(numbers[name])
    told = [f"{', '.join(map(str, sorted(few)))}: {linked(reason, OVERVIEW)}" for reason, few in by_reason.items()]
    return "; ".join(told) or "none: all are kept"


# -- all -----------------------------------------------------------------------------------------------------------------


def written(page):
    """The text of a page with its block as it should be."""
    text, overview = page.read_text(), OVERVIEW.read_text()
    block = promises_of_all() if page == OVERVIEW else block_of_page(page, overview)
    return BLOCK.sub(lambda found: f"{found[1]}\n{block}\n\n{found[4]}", text)


if __name__ == "__main__":
    for each in (OVERVIEW, *PAGES):
        each.write_text(written(each))
