import pytest

from tests.experiments.small_pictures import make_pictures


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of data sets with one small set in it, and a cache of its own."""
    folder = tmp_path_factory.mktemp("data")
    make_pictures(folder / "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLIANT_CACHE", str(folder / "cache"))
        yield folder
