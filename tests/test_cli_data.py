"""`pliant data`, as a user types it."""

import pytest

from pliant.cli import main
from pliant.data.catalog import CATALOG
from tests.data.makers import class_folders, digits, zipped
from tests.experiments.small_pictures import make_pictures
from tests.test_cli import HEAVY, modules_of


@pytest.fixture
def pliant(capsys, tmp_path, monkeypatch):
    """Run a command with data sets and a cache of the test's own: its exit status, output and errors."""
    monkeypatch.setenv("PLIANT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PLIANT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()

    def command(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["data", *map(str, arguments)])
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return command


def test_list_says_of_every_set_how_many_images_where_and_on_what_terms(pliant, tmp_path):
    class_folders(tmp_path / "data" / "birds")
    status, said, _ = pliant("list")
    assert status == 0
    lines = {line.split()[0]: line for line in said.splitlines()}
    assert list(lines)[: len(CATALOG) + 1] == [*CATALOG, "birds"]
    assert "70,000 images" in lines["mnist"]
    assert "not here: pliant data fetch mnist" in lines["mnist"]
    assert lines["mnist"].endswith("CC BY-SA 3.0")
    assert "not here: pliant data add imagenet PATH" in lines["imagenet"]
    assert f"not prepared      {tmp_path / 'data' / 'birds'}" in lines["birds"]


def test_list_opens_no_image_so_that_it_answers_at_once():
    assert modules_of(["data", "list"]) & HEAVY == {"numpy", "pooch"}


def test_fetch_checks_what_is_here_and_prints_its_hash(pliant, tmp_path, monkeypatch):
    monkeypatch.setitem(CATALOG, "mnist", digits(tmp_path / "data" / "mnist"))
    status, said, _ = pliant("fetch", "mnist")
    assert status == 0
    assert said.startswith("mnist   6 images + 2 for the test   10 classes   4x4\n  sha256  ")


def test_add_prepares_registers_and_says_what_it_does(pliant, tmp_path):
    path = zipped(class_folders(tmp_path / "pictures"), tmp_path / "flowers-2024.zip")
    status, said, log = pliant("add", "flowers", path)
    assert status == 0
    assert said.startswith("flowers   6 images   3 classes   32x32x3\n  sha256  ")
    assert log == f"preparing 6 images of {path}, once\n"
    _, listed, _ = pliant("list")
    assert f"flowers        6 images          {path}" in listed
    assert pliant("fetch", "flowers")[1].split()[:-2] == said.split()[:-2]


@pytest.mark.parametrize(
    ("command", "fragments"),
    [
        ("", ["Missing command"]),
        ("fetc mnist", ["No such command 'fetc'"]),
        ("fetch", ["Missing argument 'NAME'"]),
        (
            "fetch birdz",
            ["data set 'birdz' (did you mean 'birds'?) is missing; looked for in DATA/birdz.zip, DATA/birdz"],
        ),
        ("fetch ../birds", ["'../birds' cannot name a data set: use letters"]),
        ("fetch imagenet", ["imagenet.zip or imagenet/ is missing", "https://image-net.org/download"]),
        ("fetch fashion-mnist", ["DATA/fashion-mnist/train-images-idx3-ubyte.gz is truncated or damaged"]),
        ("add flowers", ["Missing argument 'PATH'"]),
        ("add flowers DATA/nowhere", ["there is no DATA/nowhere: give a zip or folder of class folders"]),
        ("add flowers DATA/empty", ["DATA/empty holds no images"]),
        ("add mnist DATA/birds", ["'mnist' is read from its published files"]),
        ("add imagenet DATA/birds", ["holds 3 classes, 6 training images", "added under a name of its own"]),
        ("add flowers DATA/broken", ["DATA/broken: 'class0/000.png' cannot be read as an image"]),
    ],
)
def test_a_bad_request_is_one_line_and_exit_2(pliant, tmp_path, command, fragments):
    data = tmp_path / "data"
    class_folders(data / "birds")
    (class_folders(data / "broken") / "class0" / "000.png").write_bytes(b"")
    (data / "empty").mkdir()
    digits(data / "fashion-mnist")
    (data / "fashion-mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b")
    status, _, said = pliant(*command.replace("DATA", str(data)).split())
    assert status == 2
    refusal = said.splitlines()[-1]
    assert refusal.startswith("pliant: ")
    assert all(fragment.replace("DATA", str(data)) in refusal for fragment in fragments), refusal
    assert said.replace(refusal, "").strip() in ("", f"preparing 6 images of {data / 'broken'}, once")


@pytest.mark.parametrize(
    ("command", "fragment"),
    [
        ("continual-imagenet", "class 'class-0' of 'birds' has 26 images, fewer than train_images"),
        (
            "warm-starting --set classes=5",
            "a class of 'birds' has 26 images, and 200 for learning + 50 for test are wanted",
        ),
        ("class-incremental-cifar-100", "'birds' has 6 classes, and 8 are wanted"),
    ],
)
def test_images_too_few_for_the_runs_are_an_error_before_anything_runs(
    command, fragment, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("PLIANT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PLIANT_CACHE", str(tmp_path / "cache"))
    make_pictures(tmp_path / "data" / "birds")
    with pytest.raises(SystemExit) as ended:
        main(["run", *command.split(), "--set", "dataset=birds", "--out", str(tmp_path / "study")])
    assert ended.value.code == 2
    assert fragment in capsys.readouterr().err
    assert not (tmp_path / "study" / "study.json").exists()
