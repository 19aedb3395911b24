"""The base of every error a person may meet: what failed, the value met, the value needed, the next step."""


class NightfleetError(Exception):
    """An expected failure. Its text is the whole message an operator reads: cause first, then what to do."""

    def __str__(self) -> str:
        return f"{type(self).__name__}: {super().__str__()}"


class TransientError(NightfleetError):
    """An expected failure that may pass by itself: the scheduler tries the task again. Others fail at once."""
