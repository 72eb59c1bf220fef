"""At home in LangChain, LlamaIndex and Chroma: the real packages call the toy model and find what it finds itself."""

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pytest

from inference import E5KorQuADInference

PASSAGES = ["서울은 수도이다.", "한라산은 제주도에 있다.", "김치는 발효 음식이다.", "빛은 빠르다."]


@pytest.fixture(scope="module")
def engine(toy_model_dir: Path) -> E5KorQuADInference:
    return E5KorQuADInference(toy_model_dir, device="cpu")


def test_each_side_has_its_prefix(engine: E5KorQuADInference) -> None:
    one, several = engine.embed_query("수도는?"), engine.embed_documents(PASSAGES)
    assert type(one) is list and type(one[0]) is float and type(several[0][0]) is float
    np.testing.assert_allclose(one, engine.encode_query("수도는?"), atol=1e-6)
    np.testing.assert_allclose(several, engine.encode_passages(PASSAGES), atol=1e-6)
    np.testing.assert_allclose(engine.embed_query(["수도는?"]), [one], atol=1e-6)
    np.testing.assert_allclose(engine(PASSAGES), several, atol=1e-6)
    assert asyncio.run(engine.aembed_query("수도는?")) == one
    assert asyncio.run(engine.aembed_documents(PASSAGES)) == several


def test_langchain(engine: E5KorQuADInference) -> None:
    vectorstores = pytest.importorskip("langchain_core.vectorstores")
    store = vectorstores.InMemoryVectorStore(engine)
    store.add_texts(PASSAGES)
    expected = engine.search("산은?", PASSAGES, top_k=3)
    found = store.similarity_search_with_score("산은?", k=3)
    assert [document.page_content for document, _ in found] == [result["passage"] for result in expected]
    assert [score for _, score in found] == pytest.approx([result["score"] for result in expected], abs=1e-5)
    again = asyncio.run(store.asimilarity_search("산은?", k=3))
    assert [document.page_content for document in again] == [result["passage"] for result in expected]
    retrieved = store.as_retriever(search_kwargs={"k": 1}).invoke("산은?")
    assert retrieved[0].page_content == expected[0]["passage"]


def test_llama_index(engine: E5KorQuADInference) -> None:
    core = pytest.importorskip("llama_index.core")
    langchain = pytest.importorskip("llama_index.embeddings.langchain")
    from llama_index.core.schema import TextNode

    embedding = langchain.LangchainEmbedding(engine)
    assert embedding.model_name == engine.model_name
    index = core.VectorStoreIndex([TextNode(text=text) for text in PASSAGES], embed_model=embedding)
    expected = engine.search("산은?", PASSAGES, top_k=3)
    found = index.as_retriever(similarity_top_k=3).retrieve("산은?")
    assert [node.text for node in found] == [result["passage"] for result in expected]
    assert [node.score for node in found] == pytest.approx([result["score"] for result in expected], abs=1e-5)
    again = asyncio.run(index.as_retriever(similarity_top_k=1).aretrieve("산은?"))
    assert again[0].text == expected[0]["passage"]


def test_chroma_embedding_function(engine: E5KorQuADInference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chromadb = pytest.importorskip("chromadb")
    from chromadb.utils.embedding_functions import known_embedding_functions

    settings = chromadb.config.Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(tmp_path / "chroma"), settings=settings)
    collection = client.create_collection("korean", embedding_function=engine)
    collection.add(ids=list("가나다라"), documents=PASSAGES)
    expected = engine.search("산은?", PASSAGES, top_k=3)

    def check(collection) -> None:
        found = collection.query(query_texts=["산은?", "수도는?"], n_results=3)
        assert found["documents"][0] == [result["passage"] for result in expected]
        scores = [1 - distance for distance in found["distances"][0]]  # of cosines: the function says so itself
        assert scores == pytest.approx([result["score"] for result in expected], abs=1e-5)

    check(collection)
    check(client.get_collection("korean", embedding_function=engine))
    # What the collection remembers is enough to make the function again; a model that is loaded already is that one.
    remembered = client.get_collection("korean", embedding_function=engine).configuration["embedding_function"]
    assert remembered is engine
    copy = shutil.copytree(engine.model_path, tmp_path / "model")
    check(client.get_collection("korean", embedding_function=type(engine).build_from_config({"model_path": str(copy)})))
    # A process that has no such function is told so, and does not search with another.
    monkeypatch.delitem(known_embedding_functions, "korquad-e5")
    with pytest.raises(ValueError, match="korquad-e5 not found"):
        client.get_collection("korean").query(query_texts=["산은?"])
