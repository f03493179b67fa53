"""A worker: lm-eval's loglikelihood requests, each answer after each text, one model after another.

    python lm_eval_worker.py TASK.json MODEL_FOLDER ...

It runs in an environment of its own. TASK.json comes from `against_lm_eval.py`. Of answers
of one token lm-eval itself reads their common text once.
"""

import json
import sys
import time
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from workers import serve, versions

BATCHES = (1, 4, 16)  # texts at once, of which the fastest is taken
TRIED = 32


def main() -> None:
    task, folders = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2:]
    models = [HFLM(pretrained=folder, device="cpu", dtype=torch.float32) for folder in folders]
    requests = [
        Instance("loglikelihood", {}, (text, answer), index)
        for text in task["texts"]
        for index, answer in enumerate(task["answers"])
    ]

    def ask(model: HFLM, some: list[Instance], batch: int) -> list[float]:
        model.batch_size_per_gpu = batch
        return [found for found, _ in model.loglikelihood(some, disable_tqdm=True)]

    few, taken = requests[: TRIED * len(task["answers"])], {}
    for batch in BATCHES:
        began = time.perf_counter()
        ask(models[0], few, batch)
        taken[batch] = time.perf_counter() - began
    best = min(taken, key=lambda batch: taken[batch])
    ready = {"batch": best, "versions": versions("lm_eval", "torch", "transformers")}
    serve(ready, lambda _: {"log_probs": [ask(model, requests, best) for model in models]})


if __name__ == "__main__":
    main()
