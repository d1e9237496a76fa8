import pytest

from pliant.cli import main
from tests.experiments.small_pictures import make_pictures


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of data sets with one small set in it, and a cache of its own."""
    folder = tmp_path_factory.mktemp("data")
    make_pictures(folder / "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLIANT_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture
def pliant(capsys):
    """Run a command in this process: its exit status, output and errors."""

    def command(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return command
