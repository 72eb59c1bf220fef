"""An index kept by Chroma, in a folder and on a server that is really started."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inference import E5KorQuADInference
from search import chroma
from search.chroma import ChromaIndex
from search.errors import InferenceError
from search.storage import Model

chromadb = pytest.importorskip("chromadb", reason="Chroma is not installed: pip install -r requirements-search.txt")

PASSAGES = ["서울은 수도이다.", "한라산은 제주도에 있다.", "김치는 발효 음식이다.", "빛은 빠르다."]
LONG = " ".join(f"{number}번째 문장은 서로 다르다." for number in range(60))  # of many windows
MODEL = Model("/models/tuned", "f" * 64)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Chroma server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    program = Path(sys.executable).with_name("chroma")
    command = [str(program), "run", "--path", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as attempt:
                if process.poll() is not None or attempt.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        assert process.poll() is None, "the Chroma server ended by itself"
        yield port
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def engine(toy_model_dir: Path) -> E5KorQuADInference:
    return E5KorQuADInference(toy_model_dir, device="cpu")


@pytest.fixture(params=["folder", "server"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """What `use_chroma` is told."""
    if request.param == "folder":
        return {"path": tmp_path / "chroma"}
    name = request.node.name.replace("[", "-").replace("]", "")
    return {"host": "127.0.0.1", "port": request.getfixturevalue("server"), "collection": name[-60:].strip("_-")}


def without_index(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in result.items() if key != "index"} for result in results]


def check_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [{**result, "score": None} for result in found] == [{**result, "score": None} for result in expected]
    assert [result["score"] for result in found] == pytest.approx([result["score"] for result in expected], abs=1e-5)


def test_what_is_handed_over_is_found_as_before(
    engine: E5KorQuADInference, where: dict[str, Any], toy_model_dir: Path
) -> None:
    metadata = [{"n": {"deep": [1, None]}}, None, None, None, {"제목": "긴 글"}, None]
    engine.build_index([*PASSAGES, LONG, "없앨 글"], ids=["a", "b", "c", "d", "긴", "x"], metadata=metadata)
    engine.remove(["x"])
    expected = without_index(engine.search("59번째 문장은?", top_k=5))
    assert {"긴"} == {result["id"] for result in expected if "span" in result}
    engine.use_chroma(**where)
    check_same(engine.search("59번째 문장은?", top_k=5), expected)
    assert next(result["passage"] for result in expected if result["id"] == "긴") == LONG
    assert [r["passage"] for r in engine.batch_search(["산은?", "빛은?"], top_k=2)[1]] == [
        r["passage"] for r in engine.search("빛은?", [*PASSAGES, LONG], top_k=2)
    ]

    other = E5KorQuADInference(toy_model_dir, device="cpu")  # another process, as it were
    other.use_chroma(**where)
    check_same(other.search("59번째 문장은?", top_k=5), expected)
    other.add(["새 글이다."], ids=["새"])
    assert engine.search("새 글이다.", top_k=6) == other.search("새 글이다.", top_k=6)
    assert len(engine.search("새 글이다.", top_k=99)) == 6
    for top_k in (1, 99):  # what the query says is left out, and the next one is first
        left = engine.search("새 글이다.", top_k=top_k, skip_in_query=True)
        assert [r["passage"] for r in left] == [r["passage"] for r in engine.search("새 글이다.", top_k=99)[1:]][:top_k]
    engine.remove(["긴", "새"])
    assert {result["id"] for result in other.search("산은?", top_k=99)} == {"a", "b", "c", "d"}


def test_ids(engine: E5KorQuADInference, where: dict[str, Any]) -> None:
    engine.use_chroma(**where)
    with pytest.raises(InferenceError, match="no index to search in"):
        engine.search("산은?")
    engine.add(PASSAGES[:2])
    given = [result["id"] for result in engine.search("산은?")]
    assert len(set(given)) == 2 and all(len(passage_id) == 32 for passage_id in given)
    with pytest.raises(InferenceError, match="is in the collection already: remove the old passage first"):
        engine.add(["다른 글"], ids=[given[0]])
    with pytest.raises(InferenceError, match="'x' is not in the collection: nothing was removed"):
        engine.remove([given[0], "x"])
    with pytest.raises(InferenceError, match=r"ids\[1\] is 'a' for the second time"):
        engine.add(["가", "나"], ids=["a", "a"])
    with pytest.raises(InferenceError, match=r"metadata\[0\] must be a dict"):
        engine.add(["가"], metadata=["x"])
    assert len(engine.search("산은?")) == 2
    with pytest.raises(InferenceError, match="Chroma keeps this index: there is nothing to save"):
        engine.save("anywhere")


def test_handing_over_stops_where_a_passage_is_there_already(engine: E5KorQuADInference, tmp_path: Path) -> None:
    engine.build_index(PASSAGES[:2])
    engine.use_chroma(tmp_path / "chroma")
    engine.build_index(PASSAGES[2:])
    index = engine.index
    with pytest.raises(InferenceError, match="'0', '1' are in the collection already"):
        engine.use_chroma(tmp_path / "chroma")
    assert engine.index is index


def test_windows_of_one_passage_do_not_crowd_out_the_others(
    engine: E5KorQuADInference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chroma, "_MORE_WINDOWS", 2)
    monkeypatch.setattr(chroma, "_AT_ONCE", 5)
    engine.use_chroma(tmp_path / "chroma")
    engine.add([LONG * 3, *PASSAGES], ids=["긴", *"abcd"])
    for query in ("3번째 문장은?", "산은?"):
        results = engine.search(query, top_k=5)
        assert {result["id"] for result in results} == {"긴", "a", "b", "c", "d"}
        assert next(result["passage"] for result in results if result["id"] == "긴") == LONG * 3


def test_an_interrupted_add_can_be_repeated(
    engine: E5KorQuADInference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chroma, "_AT_ONCE", 2)
    engine.use_chroma(tmp_path / "chroma")
    engine.add(PASSAGES[:1], ids=["a"])
    collection = engine.index._collection
    upsert, calls = collection.upsert, []

    def stop_at_the_second(**arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise ConnectionError("gone")
        upsert(**arguments)

    monkeypatch.setattr(collection, "upsert", stop_at_the_second)
    with pytest.raises(InferenceError, match="Chroma cannot add the passages: gone"):
        engine.add([LONG], ids=["긴"])
    assert [result["id"] for result in engine.search("59번째 문장은?")] == ["a"]  # what is torn is not shown
    monkeypatch.undo()
    engine.add([LONG], ids=["긴"])
    assert {result["id"] for result in engine.search("59번째 문장은?")} == {"a", "긴"}


def test_another_model_is_refused_with_both_names(tmp_path: Path) -> None:
    def opened(model: Model, name: str = "passages") -> ChromaIndex:
        return ChromaIndex.open(str(tmp_path), None, 0, name, model)

    opened(MODEL)
    opened(Model("/moved", MODEL.fingerprint))
    with pytest.raises(InferenceError, match=r"made with the model /models/tuned \(ffff.*, not with /models/base \(0000"):
        opened(Model("/models/base", "0" * 64))
    opened(Model("/models/base", "0" * 64), "another")
    theirs = chromadb.PersistentClient(str(tmp_path), settings=chromadb.config.Settings(anonymized_telemetry=False))
    theirs.create_collection("theirs")
    with pytest.raises(InferenceError, match="collection 'theirs' holds something else"):
        opened(MODEL, "theirs")


def test_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(InferenceError, match="Chroma cannot be opened: Could not connect to a Chroma server"):
            ChromaIndex.open(None, "127.0.0.1", nobody.getsockname()[1], "passages", MODEL)
    (tmp_path / "file").touch()
    with pytest.raises(InferenceError, match="Chroma cannot be opened: "):
        ChromaIndex.open(str(tmp_path / "file"), None, 0, "passages", MODEL)
    with pytest.raises(InferenceError, match=r"Chroma cannot be opened: .*name"):
        ChromaIndex.open(str(tmp_path), None, 0, "한", MODEL)
    monkeypatch.setitem(sys.modules, "chromadb", None)
    with pytest.raises(InferenceError, match=r"Chroma is not installed: pip install -r requirements-search\.txt"):
        ChromaIndex.open(str(tmp_path), None, 0, "passages", MODEL)
