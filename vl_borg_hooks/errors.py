"""Failures that an operator reads: one line, no traceback."""


class OperatorError(Exception):
    """An expected failure.

    `what` says what failed and on what, `hint` what to do about it. `victorialogs` says in
    which state VictoriaLogs is now, if that is known; the command line prints the three as one line.
    """

    exit_status = 1

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.instance = ""
        self.victorialogs = ""

    def __str__(self) -> str:
        """Return one line: instance, what, the state of VictoriaLogs, what to do."""
        text = "; ".join(part for part in (self.what, self.victorialogs, self.hint) if part)
        line = f"{self.instance}: {text}" if self.instance else text
        return printable(line)


class Busy(OperatorError):
    """Another run holds what this one needs, for `seconds` so far."""

    def __init__(self, what: str, *, hint: str, seconds: float) -> None:
        super().__init__(what, hint=hint)
        self.seconds = seconds


class CommandFailed(OperatorError):
    """An external command could not be run, or ended with a status that means failure."""


class InvalidCopy(OperatorError):
    """A staging or extracted copy that is damaged, incomplete or not one of ours."""


def unexpected(error: BaseException) -> OperatorError:
    """Return an error that was not expected, as the operator reads it."""
    return OperatorError(
        f"unexpected {type(error).__name__}: {error}",
        hint="run it again with -v to see where it came from: a plugin, or a bug to report",
    )


def printable(text: str) -> str:
    """Return `text` on one line: control characters and undecodable bytes become escapes."""
    return "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )
