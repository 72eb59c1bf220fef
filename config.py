"""Settings. (Being written.)"""

QUERY_PREFIX = "query: "
PASSAGE_PREFIX = "passage: "


class ConfigError(ValueError):
    """Settings that cannot work; the message lists all of them."""
