"""What goes wrong in a search, said to the person who searches."""


class InferenceError(ValueError):
    """A search that cannot be done; the message says what is wrong and what to do."""
