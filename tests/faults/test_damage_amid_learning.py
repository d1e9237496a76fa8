"""A study that was killed, and one of whose files was then damaged: resumed it is as it should be, or a line names the file.

With a copy of the file put back, or the job begun anew as the line says, nothing is lost. `tests/faults/test_damage.py` damages
every file of a finished study in every way.
"""

import os
import random
import shutil
import signal

import pytest

from tests.faults.studies import ON_SEVERAL, ran
from tests.faults.test_kills import SEED
from tests.kill_and_resume import content, differing

pytestmark = pytest.mark.slow


def flipped(file, draw):
    data = bytearray(file.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def lengthened(file, draw):
    with open(file, "ab") as end:
        end.write(bytes(4096))


DAMAGES = {
    "a bit flipped": flipped,
    "cut off": lambda file, draw: os.truncate(file, draw.randrange(file.stat().st_size)),
    "emptied": lambda file, draw: os.truncate(file, 0),
    "zeros at the end": lengthened,
    "removed": lambda file, draw: file.unlink(),
}
KINDS = {"job file": "jobs/*.sqlite", "checkpoint": "jobs/*.safetensors", "plan": "study.json"}


@ON_SEVERAL
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_costs_no_row(subject, kind):
    draw = random.Random(SEED)
    with subject.running() as runner:
        os.killpg(runner.pid, signal.SIGKILL)
        runner.wait()
    killed = subject.folder.with_name("killed")
    shutil.copytree(subject.folder, killed)
    for what, damage in DAMAGES.items():
        file = draw.choice(sorted(killed.glob(KINDS[kind])))
        shutil.rmtree(subject.folder)
        shutil.copytree(killed, subject.folder)
        damaged = subject.folder / file.relative_to(killed)
        damage(damaged, draw)
        done = ran(*subject.resume)
        if done.returncode == 0:
            outcome = "did not matter: identical"
        else:
            assert "Traceback" not in done.stderr
            assert str(damaged) in done.stderr or kind == "plan", (what, file, done.stderr)
            outcome = draw.choice(["begun anew", "put back"]) if kind != "plan" else "put back"
            if outcome == "put back":
                shutil.copy2(file, damaged)
            else:
                for each in damaged.parent.glob(f"{file.stem.split('-')[0]}*"):
                    each.unlink()
            again = ran(*subject.resume)
            assert again.returncode == 0, (what, file, again.stderr)
            outcome = f"named, {outcome}: identical"
        assert differing(subject.expected, content(subject.folder)) == 0, (what, file)
        subject.tell(f"SIGKILL, then {kind}: {what}", outcome)
