"""A real vLLM of megabytes on the CPU: a random llama that reads and writes one letter a token.

``make vllm-venv`` makes the environment that it runs in; ``write`` runs there, ``start`` anywhere.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("CONSERVE_VLLM_PYTHON", ROOT / ".venv-vllm/bin/python"))

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD, FEED_FORWARD, CONTEXT = 4, 256, 4, 2, 64, 768, 4096
KV_BYTES_PER_TOKEN = LAYERS * 2 * KV_HEADS * HEAD * 4  # keys and values in single precision
KV_GIB = 1
KV_TOKENS = KV_GIB * 2**30 // KV_BYTES_PER_TOKEN

SPECIAL = ("<unk>", "<s>", "</s>")
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?-_/()"
# A turn's prompt begins with the tokens of the turn before, so that its KV is found again.
TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def write(folder: Path) -> None:
    """Write the model and its tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {piece: i for i, piece in enumerate((*SPECIAL, *LETTERS))}
    letters = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=SPECIAL[0]))
    letters.decoder = decoders.Fuse()
    unknown, begin, end = SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters,
        unk_token=unknown,
        bos_token=begin,
        eos_token=end,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=HIDDEN,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD,
        max_position_embeddings=CONTEXT,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).float()
    with torch.no_grad():
        # As large as in a trained model, so that no two letters are almost equally probable.
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0.0, weight.shape[1] ** -0.5)
        model.lm_head.weight[: len(SPECIAL)] = 0  # letters only
    model.save_pretrained(folder)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Vllm:
    """An engine on a core of its own, with a NixlConnector.

    Args:
        folder: Of the model, and of the engine's log.
        name: Of the log.
        core: That computes; two engines on one core decode a thousand times slower.
    """

    def __init__(self, folder: Path, name: str, core: int) -> None:
        """Start it; it answers after half a minute."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / f"{name}.log"
        transfer = {
            "kv_connector": "NixlConnector",
            "kv_role": "kv_both",
            "kv_buffer_device": "cpu",
        }
        settings = {
            "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
            "VLLM_CPU_OMP_THREADS_BIND": str(core),
            "VLLM_CPU_CI_ENV": "1",
            "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port()),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
        }
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [
                    str(PYTHON),
                    "-m",
                    "vllm.entrypoints.openai.api_server",  # the script vllm asks for another name
                    f"--model={folder / 'model'}",
                    "--served-model-name=tiny",
                    "--dtype=float32",  # the default killed the worker on the CPU that we tried
                    "--enforce-eager",
                    f"--max-model-len={CONTEXT}",
                    "--max-num-seqs=8",
                    "--enable-prompt-tokens-details",
                    "--host=127.0.0.1",
                    f"--port={port}",
                    f"--kv-transfer-config={json.dumps(transfer)}",
                ],
                env={**os.environ, **settings},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def close(self) -> None:
        """Stop it and its workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


if __name__ == "__main__":
    write(Path(sys.argv[1]))
