import pytest

from tests.experiments.small_pictures import make_pictures
from tests.faults.studies import COMMANDS, Subject
from tests.kill_and_resume import finish


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/faults/" in item.path.as_posix():
            item.add_marker(pytest.mark.faults)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_pictures(folder / "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLIANT_DATA", str(folder))
        patch.setenv("PLIANT_CACHE", str(folder / "cache"))
        yield


@pytest.fixture(scope="session")
def in_peace(pictures, tmp_path_factory):
    """What the study of an experiment holds that nothing happened to."""
    known = {}

    def held(name):
        if name not in known:
            folder = tmp_path_factory.mktemp("peace") / "study"
            known[name] = finish(["run", *COMMANDS[name], "--out", str(folder)], folder)
        return known[name]

    return held


@pytest.fixture
def tell(record_property):
    """Notes a fault and what came of it for the table at the end."""

    def note(name, fault, outcome):
        record_property("fault", (name, fault, outcome))

    return note


@pytest.fixture
def subject(name, in_peace, tmp_path, tell):
    return Subject(name, tmp_path / "study", in_peace(name), lambda fault, outcome: tell(name, fault, outcome))
