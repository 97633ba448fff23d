"""The first Qwen's tokenizer, as data: `qwen.tiktoken`, and what its published class adds to that file."""

from bestiary.api.hooks import TiktokenVocabulary

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"\p{N}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
)

_CHATML = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

QWEN = TiktokenVocabulary(
    file="qwen.tiktoken",
    pattern="|".join(_WORDS),
    special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{index}|>" for index in range(205))),
    eos_token="<|endoftext|>",
    stop_tokens=("<|im_end|>",),
    normalization="NFC",
    chat_template=_CHATML,
)
