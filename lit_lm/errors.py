"""Errors in words."""


def first_line(error: BaseException) -> str:
    """First line of an error's message, or the name of its type if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
