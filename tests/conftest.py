from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, settings

from pliant.cli import main

pytest.register_assert_rewrite("tests.methods.promises", "tests.methods.runs")
torch.set_num_threads(1)
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")  # an example may take as long as it takes


@pytest.fixture
def pliant(capsys):
    """Run a command in this process: its exit status, output and errors."""

    def command(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return command


def pytest_terminal_summary(terminalreporter):
    """A table of the faults that studies went through (`tests/faults`)."""
    reports = [
        report for each in terminalreporter.stats.values() for report in each if hasattr(report, "user_properties")
    ]
    told = [
        value
        for report in reports
        if getattr(report, "when", "") == "call"
        for kind, value in report.user_properties
        if kind == "fault"
    ]
    if told:
        terminalreporter.section("faults")
    for (name, fault, outcome), times in sorted(Counter(map(tuple, told)).items()):
        terminalreporter.line(f"{fault:45} {name:30} {times:3}  {outcome}")
