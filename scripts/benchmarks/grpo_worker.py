"""A worker: TRL's GRPOTrainer, one optimiser step over all prompts an update.

    python grpo_worker.py TASK.json MODEL_FOLDER

It runs in an environment of its own. TASK.json comes from `against_grpo.py`. The trainer keeps its
loop; a callback holds it at the beginning of each step until an update is asked for.
"""

import json
import os
import sys
import threading
from pathlib import Path
from queue import Queue

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from workers import serve, versions

AT_ONCE = 8  # answers in a backward pass; more do not fit well


def reward_of(task: dict):
    """The reward function: what is written behind the last cue is the answer."""
    labels, cue = task["labels"], task["cue"].strip()

    def reward(completions: list[str], number: list[int], **_) -> list[float]:
        found = []
        for text, prompt in zip(completions, number, strict=True):
            answer = text.rpartition(cue)[2].strip() if cue in text else ""
            choice = labels.index(answer) if answer in labels else 2
            cell = prompt // 4
            move = cell // 2  # tit-for-tat
            found.append(task["rewards"][cell][choice][move])
        return found

    return reward


class Turns(TrainerCallback):
    """Lets the trainer make a step for each request."""

    def __init__(self):
        self.asked: Queue[str] = Queue()
        self.made: Queue[dict] = Queue()

    def on_step_begin(self, *_, **__) -> None:
        self.asked.get()

    def on_step_end(self, *_, **__) -> None:
        self.made.put({})

    def update(self, request: str) -> dict:
        self.asked.put(request)
        return self.made.get()


def main() -> None:
    task, folder = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [tokenizer(text)["input_ids"] for text in task["texts"]] == task["prompts"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor(task["prompts"][:1]), logits_to_keep=1).logits[0, -1]
        first = torch.log_softmax(logits.float(), -1)[task["first_tokens"]].tolist()
    lora = LoraConfig(
        r=task["rank"],
        lora_alpha=task["alpha"],
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    size = len(task["texts"]) * task["thoughts"]
    config = GRPOConfig(
        output_dir=str(Path(folder) / "trl"),
        learning_rate=task["learning_rate"],
        per_device_train_batch_size=AT_ONCE,
        gradient_accumulation_steps=size // AT_ONCE,
        num_generations=task["thoughts"],
        max_completion_length=task["tokens"],
        temperature=1.0,
        beta=0.02,
        max_steps=10_000,
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    turns = Turns()
    data = {"prompt": task["texts"], "number": list(range(len(task["texts"])))}
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward_of(task),
        args=config,
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[turns],
    )
    ready = {
        "versions": versions("torch", "trl", "transformers", "peft"),
        "threads": torch.get_num_threads(),
        "first_log_probs": first,
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }

    def answer() -> None:
        serve(ready, turns.update)
        os._exit(0)  # nobody asks any more

    threading.Thread(target=answer, daemon=True).start()
    trainer.train()


if __name__ == "__main__":
    main()
