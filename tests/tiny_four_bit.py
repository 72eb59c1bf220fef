"""A tiny file as the 4-bit copy's: one layer of width 32, a vocabulary of letters."""

import struct

import numpy as np

HIDDEN, FFN, POSITIONS = 32, 64, 16
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"querypasg:", "▁스", "위", "▁스위", "<mask>"]
SCORES = [0.0, 0.0, 0.0, 0.0, *[-2.0] * 11, -3.0, -3.0, -4.0, 0.0]
ROWS = len(PIECES) + 3
TABLE = {ord("\t"): " ", 0x200B: " ", 0x01: "", ord("Ａ"): "A"}


def quantise_q4(weights: np.ndarray) -> bytes:
    """Blocks with scale 1/64 for weights that are whole multiples of it, from -8 to 7 of them."""
    out = b""
    for block in (np.rint(weights.reshape(-1, 32) * 64).astype(int) + 8).tolist():
        out += struct.pack("<e", 1 / 64) + bytes(block[j] | block[j + 16] << 4 for j in range(16))
    return out


def tiny_weights() -> dict[str, np.ndarray]:
    """Reproducible weights on the 4-bit grid; LayerNorms are ones and zeros."""
    rng = np.random.default_rng(0)
    d, f = HIDDEN, FFN
    shapes = {"emb.word": (ROWS, d), "emb.pos": (POSITIONS, d), "emb.type": (2, d), "emb.ln": (d,)}
    layer = {"q": (d, d), "k": (d, d), "v": (d, d), "ao": (d, d), "aln": (d,), "fi": (f, d), "fo": (d, f), "oln": (d,)}
    shapes |= {f"l0.{name}": shape for name, shape in layer.items()}
    weights = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            weights |= {f"{name}.w": np.ones(shape, np.float32), f"{name}.b": np.zeros(shape, np.float32)}
            continue
        matrix = (rng.integers(-8, 8, shape) / 64).astype(np.float32)
        if name.startswith("emb."):
            weights[name] = matrix
        else:
            weights |= {f"{name}.w": matrix, f"{name}.b": np.zeros(shape[0], np.float32)}
    return weights


def tiny_bytes(weights: dict[str, np.ndarray]) -> bytes:
    head = b"E5S1" + struct.pack("<I7ifi", 1, HIDDEN, 1, 2, FFN, ROWS, POSITIONS, 2, 1e-12, 32)
    blobs = [piece.encode() for piece in PIECES]
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, sum(map(len, blobs)))
    head += np.cumsum([0, *map(len, blobs)]).astype("<u4").tobytes() + np.array(SCORES, "<f4").tobytes()
    head += b"".join(blobs)
    table = b"".join(struct.pack(f"<IB{len(to)}I", point, len(to), *map(ord, to)) for point, to in TABLE.items())
    head += struct.pack("<iI", len(TABLE), len(table)) + table + struct.pack("<i", len(weights))
    at = len(head) + sum(2 + len(name) + 21 for name in weights)
    index = body = b""
    for name, matrix in weights.items():
        raw = quantise_q4(matrix) if matrix.ndim == 2 else matrix.tobytes()
        index += struct.pack("<H", len(name)) + name.encode()
        index += struct.pack("<BIQQ", matrix.ndim == 2, matrix.size, at + len(body), len(raw))
        body += raw
    return head + index + body


WEIGHTS = tiny_weights()
BYTES = tiny_bytes(WEIGHTS)
