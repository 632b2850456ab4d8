"""Makes a process that finds this directory on its path live at another time of day.

The monotonic clock stays: hosts whose wall clocks disagree still measure the same seconds.
"""

import datetime
import os
import time

_SHIFT_SECONDS = float(os.environ.get("CHAOS_CLOCK_SHIFT_SECONDS") or 0)

_time, _time_ns = time.time, time.time_ns
_datetime = datetime.datetime


class _Meta(type(_datetime)):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _datetime)


class _Shifted(_datetime, metaclass=_Meta):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return _datetime.now(tz) + datetime.timedelta(seconds=_SHIFT_SECONDS)

    @classmethod
    def utcnow(cls) -> datetime.datetime:
        return cls.now(datetime.UTC).replace(tzinfo=None)


if _SHIFT_SECONDS:
    time.time = lambda: _time() + _SHIFT_SECONDS
    time.time_ns = lambda: _time_ns() + int(_SHIFT_SECONDS * 1e9)
    datetime.datetime = _Shifted  # type: ignore[misc]
