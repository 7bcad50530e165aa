"""The base of every error that a user can mend."""


class ConServeGymError(ValueError):
    """Something that was given is not right; the message names it, with file, line or field."""
