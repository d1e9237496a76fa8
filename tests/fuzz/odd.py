"""What the fuzzing tests share: how many examples each draws, and odd words.

`make slow` draws 100 of each; PLIANT_FUZZ=5000 draws more. Each run draws others; what failed is drawn first in the next run.
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("PLIANT_FUZZ", "100"))
MANY = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
FEW = settings(MANY, max_examples=max(10, EXAMPLES // 5))  # where an example takes a second

WORDS = [
    *(
        "",
        " ",
        "-",
        "--",
        "=",
        "x=",
        "=x",
        ",",
        ",,",
        "[",
        "]",
        "{",
        "[1",
        "[1,2]",
        "[[1]]",
        '{"a": 1}',
        '{"a"',
        "'",
        '"',
    ),
    *(
        "0",
        "-0",
        "1",
        "-1",
        "1.5",
        "1e400",
        "-1e400",
        "1e-400",
        "1e18",
        "1e19",
        "9" * 30,
        "9" * 5000,
        "0x10",
        "1_000",
        "½",
    ),
    *(
        "nan",
        "inf",
        "-inf",
        "NaN",
        "None",
        "null",
        "true",
        "False",
        "%s",
        "{0}",
        "\u0663",
        "\0",
        "\n",
        "a\nb",
        "\t",
        "\x1b[31m",
    ),
    *("0-", "-5", "5-1", "0-99999999", "1-3", "0,3,7-9", "1/0", "2/1", "1/2", "é", "\u202e", "\ud800", "\ufeff", "😀"),
    *("a" * 3000, ".", "..", "~", "*", "$HOME"),
]

odd_texts = st.one_of(
    st.sampled_from(WORDS),
    st.text(st.characters(exclude_characters="/"), max_size=12),
    st.floats().map(str),
    st.integers().map(str),
)


def a_sentence(said):
    """An error is one line that somebody can read."""
    assert said.strip()
    assert "\n" not in said
    assert len(said) < 1500, said
