"""`python -O` changes nothing: no check is an `assert`, so tokens and errors are the same with and without it."""

import runpy
import subprocess
import sys

import torch
import transformers

SCRIPT = """
import sys
from bestiary import LLM, SamplingParams
from bestiary.api.errors import BestiaryError
llm = LLM(sys.argv[1], dtype="float32", skip_tokenizer_init=True, progress=False)
shaped = SamplingParams(temperature=0.9, top_p=0.9, seed=4, max_tokens=8, n=2, logprobs=2)
for output in llm.generate([[5, 6, 7], [8]], shaped, use_tqdm=False):
    print([(each.token_ids, each.finish_reason) for each in output.outputs])
for attempt in (
    lambda: llm.generate([[99]]),
    lambda: llm.generate([[5] * 100]),
    lambda: SamplingParams(top_p=0.0),
    lambda: LLM(sys.argv[1], max_model_length=3),
    lambda: LLM(sys.argv[1], hf_overrides={"hidden_size": -1}),
    lambda: LLM(sys.argv[1], hf_overrides={"intermediate_size": 64}, skip_tokenizer_init=True, progress=False),
    lambda: LLM(sys.argv[1], attention_backend="none", skip_tokenizer_init=True, progress=False),
):
    try:
        attempt()
    except BestiaryError as error:
        print("refused:", error)
    else:
        print("no error")
"""


def test_python_o_changes_nothing(tmp_path, monkeypatch, capsys):
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=50,
        max_position_embeddings=64,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-O", str(script), str(tmp_path)]
    without = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert __debug__, "this process has its assertions"
    monkeypatch.setattr(sys, "argv", ["script.py", str(tmp_path)])
    capsys.readouterr()
    runpy.run_path(str(script))
    assert capsys.readouterr().out == without
    assert without.count("refused:") == 7
