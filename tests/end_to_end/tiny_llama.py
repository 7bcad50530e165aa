"""A real engine of megabytes: llama.cpp with a random llama, on a free port of this machine.

``python tests/end_to_end/tiny_llama.py FOLDER`` serves until it is stopped; a port and a folder for
slots may follow.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# As in conf/model/tiny_llama.yaml beside this file.
LAYERS, HIDDEN, HEADS, KV_HEADS, FEED_FORWARD = 4, 256, 8, 4, 768
LETTERS = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?-_/()"
FIRST_LETTER = 259  # after three special tokens and 256 bytes
TOKEN_IDS = (FIRST_LETTER + 1, FIRST_LETTER + len(LETTERS) - 1)

TOKEN_BUDGET, MAX_SEQUENCES, CONTEXT = 512, 8, 4096


def write(path: Path) -> None:
    """Write the model in half precision."""
    import gguf

    random = np.random.default_rng(0)
    head = HIDDEN // HEADS
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)

    kind = gguf.TokenType
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS]
    special = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL, *[kind.BYTE] * 256]
    writer.add_vocab_size(len(pieces))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.encode() for piece in pieces])
    writer.add_token_scores([0.0] * FIRST_LETTER + [-1.0 - i for i in range(len(LETTERS))])
    writer.add_token_types([*special, *[kind.NORMAL] * len(LETTERS)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(False)

    def matrix(rows: int, columns: int) -> np.ndarray:
        values = random.standard_normal((rows, columns)) / np.sqrt(columns)
        return values.astype(np.float16)

    ones = np.ones(HIDDEN, np.float32)
    output = matrix(len(pieces), HIDDEN)
    output[:FIRST_LETTER] = 0  # letters only: half a character is not sent before the other half
    writer.add_tensor("token_embd.weight", matrix(len(pieces), HIDDEN))
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", output)
    for layer in range(LAYERS):
        for name, rows, columns in (
            ("attn_q", HIDDEN, HIDDEN),
            ("attn_k", KV_HEADS * head, HIDDEN),
            ("attn_v", KV_HEADS * head, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN),
            ("ffn_gate", FEED_FORWARD, HIDDEN),
            ("ffn_up", FEED_FORWARD, HIDDEN),
            ("ffn_down", HIDDEN, FEED_FORWARD),
        ):
            writer.add_tensor(f"blk.{layer}.{name}.weight", matrix(rows, columns))
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", ones)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def start(
    folder: Path, port: int = 0, slots: Path | None = None
) -> tuple[subprocess.Popen[str], str]:
    """Serve the model in a process of its own; returns it with its address."""
    log = folder / "server.log"
    with log.open("a") as file:
        arguments = [str(folder), str(port), *([str(slots)] if slots else [])]
        process = subprocess.Popen(
            [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, stderr=file, text=True
        )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address.startswith("http"), log.read_text()[-2000:]
    return process, address


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the model in a process of its own; gives the address."""
    process, address = start(folder)
    try:
        yield address
    finally:
        process.kill()
        process.wait()


def main(folder: Path, port: int = 0, slots: Path | None = None) -> None:
    """Serve until stopped: one thread computes, and a step carries one batch of tokens."""
    import xllamacpp

    model = folder / "tiny.gguf"
    if not model.exists():
        write(model)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.port = port
    if slots is not None:
        parameters.slot_save_path = f"{slots}/"
        parameters.endpoint_slots = parameters.endpoint_metrics = True
    parameters.n_parallel = MAX_SEQUENCES
    parameters.n_ctx = CONTEXT * MAX_SEQUENCES
    parameters.n_batch = parameters.n_ubatch = TOKEN_BUDGET
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.cache_ram_mib = 0  # no copies of idle slots, which would take time between steps
    parameters.fit_params = False
    parameters.verbosity = 1
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]), *map(Path, sys.argv[3:4]))
