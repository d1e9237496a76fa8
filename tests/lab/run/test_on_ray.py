"""What is asked of a Ray cluster before anything runs. Ray itself: tests/integrations/test_ray_study.py."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from pliant.lab import LabError
from pliant.lab.run.on_ray import look, refuse_blind
from tests.kill_and_resume import command

TOY = str(Path(__file__).parents[2] / "toy_experiment.py") + ":Toy"


def sees(folder, token):
    return {"near": look(folder, token)}


def test_a_node_that_sees_the_folder_is_taken_and_no_token_stays(tmp_path):
    refuse_blind(tmp_path, sees)
    assert list(tmp_path.iterdir()) == []


def test_a_node_without_the_folder_is_named(tmp_path):
    def ask(folder, token):
        return sees(folder, token) | {"far": look("/nowhere", token)}

    with pytest.raises(
        LabError, match=r"node far of the Ray cluster does not see .* \(No such file or directory\): put"
    ):
        refuse_blind(tmp_path, ask)
    assert list(tmp_path.iterdir()) == []


def test_a_node_with_a_folder_of_its_own_of_that_name_is_named(tmp_path):
    """It reads another token, or writes one that is not seen here."""
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "study").mkdir()

    def ask(folder, token):
        (other / f"{token}.tmp").write_text((Path(folder) / f"{token}.tmp").read_text())
        return {"far": look(str(other), token)}

    def older(folder, token):
        return {"far": look(folder, token) | {"read": "another"}}

    for answer in (ask, older):
        with pytest.raises(LabError, match=r"node far .* \(it has a folder of that name, and another one\)"):
            refuse_blind(tmp_path / "study", answer)


def test_a_node_with_other_versions_is_named(tmp_path):
    def ask(folder, token):
        answer = look(folder, token)
        return {"far": answer | {"versions": answer["versions"] | {"numpy": "1.0"}}}

    with pytest.raises(LabError, match=r"node far of the Ray cluster has numpy 1\.0, this one .*: rows would differ"):
        refuse_blind(tmp_path, ask)


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_the_line_that_installs_it_is_said_and_nothing_is_made(tmp_path):
    status, said = command(["run", TOY, "--out", str(tmp_path / "s"), "--ray", "local"])
    assert (status, said) == (2, 'pliant: this needs ray: pip install -e ".[ray]" in a clone of Pliant\n')
    assert list(tmp_path.iterdir()) == []
