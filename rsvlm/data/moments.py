"""Dates as people write them."""

from datetime import date, datetime

import pandas as pd


def moment(value: str | date | datetime | pd.Timestamp, *, last: bool = False) -> pd.Timestamp:
    """A time in UTC, which is meant where no zone is told.

    Args:
        value: ``2024``, ``2024-05``, ``2024-05-31``, ``2024-05-31T10:00:00Z``, or a date or time.
        last: the end of a year, month or day instead of its start.

    Raises:
        ValueError: no date.
    """
    try:
        if isinstance(value, date) and not isinstance(value, datetime):
            value = value.isoformat()
        text = value.strip() if isinstance(value, str) else ""
        if last and text and len(text) <= 10:
            return pd.Period(text).end_time.tz_localize("UTC")
        found = pd.Timestamp(value)
        if pd.isna(found):
            raise ValueError("it is empty")
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{value!r} is no date: write it as 2024, 2024-05 or 2024-05-31 ({error})") from error
    return found.tz_localize("UTC") if found.tzinfo is None else found.tz_convert("UTC")
