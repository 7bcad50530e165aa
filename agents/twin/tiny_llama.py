"""A llama of megabytes with random weights, whose every token is a letter.

What it says means nothing; how long it takes is real. A letter is a token, so that prompts have the
length that they are to have, and a conversation's text is cut into the tokens that were generated.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt

from conserve_gym.envs.calibration.derive import Model

LETTERS = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?-_/()"
_FIRST_LETTER = 259  # after three special tokens and 256 bytes
TOKEN_IDS = (_FIRST_LETTER + 1, _FIRST_LETTER + len(LETTERS) - 1)
"""First and last token that stands for a letter."""


def write(path: Path, model: Model, context_tokens: int) -> None:
    """Write a model in half precision, as GGUF.

    Args:
        path: File to write.
        model: Its figures; those of the vocabulary are our own.
        context_tokens: Longest context that it takes.
    """
    import gguf

    logging.getLogger("gguf").setLevel(logging.ERROR)  # it tells of every file
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(context_tokens)
    writer.add_embedding_length(model.hidden)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.intermediate)
    writer.add_head_count(model.query_heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head)
    writer.add_value_length(model.head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(model.head)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)

    kind = gguf.TokenType
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS]
    special = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL, *[kind.BYTE] * 256]
    writer.add_vocab_size(len(pieces))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.encode() for piece in pieces])
    writer.add_token_scores([0.0] * _FIRST_LETTER + [-1.0 - i for i in range(len(LETTERS))])
    writer.add_token_types([*special, *[kind.NORMAL] * len(LETTERS)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(False)

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float16]:
        values = random.standard_normal((rows, columns)) / np.sqrt(columns)
        half: npt.NDArray[np.float16] = values.astype(np.float16)
        return half

    ones = np.ones(model.hidden, np.float32)
    output = matrix(len(pieces), model.hidden)
    output[:_FIRST_LETTER] = 0  # letters only: half a character is not sent before the other half
    writer.add_tensor("token_embd.weight", matrix(len(pieces), model.hidden))
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", output)
    queries, keys = model.query_heads * model.head, model.kv_heads * model.head
    for layer in range(model.layers):
        for name, rows, columns in (
            ("attn_q", queries, model.hidden),
            ("attn_k", keys, model.hidden),
            ("attn_v", keys, model.hidden),
            ("attn_output", model.hidden, queries),
            ("ffn_gate", model.intermediate, model.hidden),
            ("ffn_up", model.intermediate, model.hidden),
            ("ffn_down", model.hidden, model.intermediate),
        ):
            writer.add_tensor(f"blk.{layer}.{name}.weight", matrix(rows, columns))
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", ones)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
