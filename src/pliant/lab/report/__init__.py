"""What is said of a study: its status, its rows as one table, summaries of curves."""

from pliant.base.deprecation import renamed

__getattr__ = renamed(__name__, {name: f"{__name__}.status.{name}" for name in ("counts_in_words", "status_lines")})
