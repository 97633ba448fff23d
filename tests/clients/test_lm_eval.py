"""lm-eval over the API: each item's numbers, and the scores, are those that transformers gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .processes import KEY, PATIENCE, ROOT

TASKS = Path(__file__).with_name("tasks")
UNTIL, MOST = [".", ",", "\n"], 8


@pytest.fixture(scope="module", params=[8, pytest.param(40, marks=pytest.mark.full)])
def run(request, smollm2, tmp_path_factory):
    """The scores, and the samples of each task."""
    folder = tmp_path_factory.mktemp("lm_eval")
    arguments = {
        "model": "smollm2", "base_url": f"{smollm2.url}/v1/completions", "tokenizer_backend": "auto",
        "auth_token": KEY, "num_concurrent": 4, "max_retries": 1, "timeout": int(PATIENCE),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "local-completions",
        "--model_args", ",".join(f"{name}={value}" for name, value in arguments.items()),
        "--tasks", "bestiary_choices,bestiary_answers", "--include_path", str(TASKS),
        "--limit", str(request.param), "--log_samples", "--output_path", str(folder),
    ]  # fmt: skip
    environment = os.environ | {"HF_HOME": str(folder / "hf"), "OPENAI_API_KEY": KEY}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE * 4, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    (results,) = folder.rglob("results_*.json")
    scores = json.loads(results.read_text("utf-8"))["results"]
    samples = {
        task: [
            json.loads(line) for line in next(folder.rglob(f"samples_{task}_*.jsonl")).read_text("utf-8").splitlines()
        ]
        for task in ("bestiary_choices", "bestiary_answers")
    }
    assert all(len(each) == request.param for each in samples.values())
    return scores, samples


def test_log_likelihoods(run, oracle, note):
    scores, samples = run
    items = sorted(samples["bestiary_choices"], key=lambda each: each["doc_id"])
    pairs = [tuple(request.values()) for item in items for request in item["arguments"].values()]
    theirs = oracle.ask("loglikelihood", name="smollm2", pairs=pairs)
    ours = [(float(first), str(second) == "True") for item in items for (((first, second),),) in zip(item["resps"])]
    assert len(ours) == len(theirs) == 3 * len(items)
    worst = max(abs(one[0] - other[0]) for one, other in zip(ours, theirs, strict=True))
    assert worst <= 1e-3
    assert [said for _, said in ours] == [said for _, said in theirs]
    right = 0
    for index, item in enumerate(items):
        three = [value for value, _ in theirs[3 * index : 3 * index + 3]]
        right += three.index(max(three)) == item["doc"]["answer"]
    score = scores["bestiary_choices"]["acc,none"]
    assert score == pytest.approx(right / len(items))
    assert score > 1 / 3
    note(
        f"lm-eval, {len(items)} choices",
        {"ours": score, "transformers": right / len(items), "largest difference": worst},
    )


def test_generated_answers(run, oracle, note):
    scores, samples = run
    items = sorted(samples["bestiary_answers"], key=lambda each: each["doc_id"])
    prompts = [item["arguments"]["gen_args_0"]["arg_0"] for item in items]
    theirs = oracle.ask("greedy", name="smollm2", prompts=prompts, until=UNTIL, max_tokens=MOST)
    assert [item["resps"][0][0] for item in items] == theirs
    right = [text.strip().lower() == item["target"].lower() for text, item in zip(theirs, items, strict=True)]
    score = scores["bestiary_answers"]["exact_match,none"]
    note(f"lm-eval, {len(items)} answers", {"ours": score, "transformers": sum(right) / len(items)})
