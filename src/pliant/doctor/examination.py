"""What an examination found: as text, as plain values, and as one HTML page that needs nothing from outside."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import Any

from pliant.base.tables import Cells, Table
from pliant.diagnostics.diagnosis import Diagnosis
from pliant.diagnostics.probe import Probe
from pliant.doctor.advice import Advice
from pliant.doctor.findings import Finding

LIMITS = (
    "the probe is short: what only shows over many tasks, or after longer training, it does not see",
    "it compares training losses: how well the network predicts new examples is another question",
    "findings are measures that differ from a fresh network's, not causes: healthy networks differ too",
    "an advice was tried on copies for a few hundred steps at most, with the examples given",
)


@dataclass(frozen=True)
class Examination(Table):
    """Whether a network has lost plasticity, in which layers something differs, and what to try. Prints as one page.

    `verdict` is "yes", "no" or "cannot tell"; `probe` and `diagnosis` hold all that was measured (the latter None where the
    network has no hidden units that can be traced).
    """

    probe: Probe
    diagnosis: Diagnosis | None
    findings: Sequence[Finding]
    advice: Sequence[Advice]
    notes: Sequence[str] = ()

    @property
    def verdict(self) -> str:
        return self.probe.verdict

    @property
    def reason(self) -> str:
        return self.probe.reason

    def records(self) -> list[dict[str, Any]]:
        """One per finding."""
        return [asdict(each) for each in self.findings]

    def to_dict(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "findings": self.records(),
            "advice": [{"title": each.title, "why": each.why, "line": each.line} for each in self.advice],
            "notes": list(self.notes),
            "probe": self.probe.to_dict(),
            "diagnosis": None if self.diagnosis is None else self.diagnosis.to_dict(),
        }

    def plot(self) -> Any:
        """The curves of the probe."""
        return self.probe.plot()

    def table(self) -> tuple[Cells, Sequence[str]]:
        return [("layer", "beside a fresh network"), *((each.group, each.says) for each in self.findings)], ()

    def __str__(self) -> str:
        lines = [f"Is it plasticity? {self.verdict}.", *_wrapped(self.reason), ""]
        for task in self.probe.tasks.values():
            lines += _wrapped(
                f"{task.kind}: {task.answer.answer}, {task.answer.interval} times the area of a fresh copy"
            )
        if self.findings:
            lines += ["", super().__str__()]
        elif self.diagnosis is not None:
            lines += ["", "No layer differs much from a fresh network's."]
        for number, each in enumerate(self.advice):
            lines += ["", f"{'Try first' if number == 0 else 'Then'}: {each.title}", *_wrapped(each.why)]
            lines += [f"    {line}" for line in each.line.splitlines()]
        lines += ["", "What this cannot know", *(part for each in LIMITS for part in _wrapped(each, "- "))]
        return "\n".join([*lines, *(["", *self.notes] if self.notes else [])])

    def to_html(self, path: str | Path | None = None) -> str:
        """The page, with curves; written to `path` if one is given. Needs matplotlib."""
        parts = [
            f"<h1>Is it plasticity? <b class={self.verdict.split()[0]}>{escape(self.verdict)}</b></h1>",
            f"<p>{escape(self.reason)}.</p>",
            _svg(self.plot()),
            "<h2>Layers</h2>",
            self._repr_html_() if self.findings else "<p>No layer differs much from a fresh network's.</p>",
            "<h2>What to try</h2>",
            "<ol>",
            *(
                f"<li><b>{escape(each.title)}</b>: {escape(each.why)}"
                + (f"<pre>{escape(each.line)}</pre>" if each.line else "")
                + "</li>"
                for each in self.advice
            ),
            "</ol>",
            "<h2>What this cannot know</h2>",
            "<ul>",
            *(f"<li>{escape(each)}</li>" for each in LIMITS),
            "</ul>",
            "<h2>The probe</h2>",
            self.probe._repr_html_(),
            *(["<h2>The diagnosis</h2>", self.diagnosis._repr_html_()] if self.diagnosis is not None else []),
            *(f"<p>{escape(each)}</p>" for each in self.notes),
        ]
        page = _PAGE.format(title="Is it plasticity?", body="\n".join(parts))
        if path is not None:
            Path(path).write_text(page, encoding="utf-8")
        return page


def _wrapped(text: str, bullet: str = "") -> list[str]:
    return wrap(text, 100, initial_indent=f"  {bullet}", subsequent_indent=f"  {' ' * len(bullet)}")


def _svg(figure: Any) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg")
    text = file.getvalue()
    return text[text.index("<svg") :]


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b; background: #fff }}
table {{ border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }}
th, td {{ padding: .15rem .7rem .15rem 0; border-bottom: 1px solid #ddd }}
pre {{ background: #f4f4f4; color: #1b1b1b; padding: .5rem .8rem; overflow-x: auto }}
svg {{ max-width: 100%; height: auto; background: #fff }}
b.yes {{ color: #b3261e }} b.no {{ color: #1e6b34 }} b.cannot {{ color: #8a5a00 }}
@media (prefers-color-scheme: dark) {{ body {{ color: #e6e6e6; background: #161616 }} th, td {{ border-color: #444 }} }}
</style></head>
<body>
{body}
</body></html>
"""
