"""PairExample: sentence-transformers' InputExample that knows where it comes from. Imports sentence-transformers."""

from sentence_transformers import InputExample


class PairExample(InputExample):
    """A query and a passage, both with their prefixes: `texts == ["query: ...", "passage: ..."]`.

    Attributes:
        guid: the id of the question that they were made from.
        kind: what they are, one of config.OBJECTIVES.
        answer: the question's answer, cleaned.
        article: index of the article both come from.
    """

    texts: list[str]

    def __init__(self, guid: str, texts: list[str], kind: str, answer: str, article: int):
        super().__init__(guid=guid, texts=texts)
        self.kind = kind
        self.answer = answer
        self.article = article
