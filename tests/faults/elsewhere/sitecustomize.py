"""What Python runs first where this folder is in PYTHONPATH: another machine than there is.

CLOCK_AHEAD=3600   the clock is so many seconds ahead, until the date has been asked for CLOCK_ASKED times: then it is right
NO_LOCKS=1         the file system gives no locks
"""

import datetime
import errno
import fcntl
import os
import time

AHEAD = float(os.environ.get("CLOCK_AHEAD", "0"))
ASKED = int(os.environ.get("CLOCK_ASKED", "0")) or float("inf")

if AHEAD:
    asked = 0
    plain_time, plain_ns, plain_datetime = time.time, time.time_ns, datetime.datetime

    def ahead():
        return AHEAD if asked < ASKED else 0.0

    class Shifted(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            global asked
            found = plain_datetime.now(tz) + datetime.timedelta(seconds=ahead())
            asked += 1
            return found

    time.time = lambda: plain_time() + ahead()
    time.time_ns = lambda: plain_ns() + int(ahead() * 1e9)
    datetime.datetime = Shifted

if os.environ.get("NO_LOCKS"):

    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl.flock = fcntl.lockf = no_locks
