"""A worker: the paper's training loop on TRL, PEFT and torch, one episode of five rounds an update.

    python trl_worker.py TASK.json MODEL_FOLDER

It runs in an environment of its own. TASK.json comes from `against_trl.py`: tokenised prompts,
labels, rewards and settings. The loop is that of arXiv 2410.01639, section 3: sample two tokens a
round, and after five rounds one call of `PPOTrainer.step`, which makes one optimiser step.
"""

import json
import random
import statistics
import sys
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer, set_seed
from workers import serve, versions


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    folder = sys.argv[2]
    set_seed(task["seed"])
    chance = random.Random(task["seed"])
    lora = LoraConfig(
        r=task["rank"],
        lora_alpha=task["alpha"],
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        folder, peft_config=lora, torch_dtype=torch.float32, attn_implementation="eager"
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = PPOConfig(
        learning_rate=task["learning_rate"],
        batch_size=task["rounds"],
        mini_batch_size=task["rounds"],
        seed=task["seed"],
    )
    trainer = PPOTrainer(config, model, ref_model=None, tokenizer=tokenizer)
    config.gradient_accumulation_steps = trainer.accelerator.gradient_accumulation_steps = 4
    prompts = [torch.tensor(ids) for ids in task["prompts"]]
    given: list[float] = []  # all scores so far
    labels = task["labels"]
    sampling = {"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": 2}
    sampling |= {"pad_token_id": tokenizer.pad_token_id, "min_length": -1}

    with torch.no_grad():
        logits, _, _ = model(prompts[0][None])
        first = torch.log_softmax(logits[0, -1].float(), -1)[task["first_tokens"]].tolist()

    def update(request: str) -> dict:
        own, other = chance.randrange(2), chance.randrange(2)
        queries, responses, rewards = [], [], []
        counts = {"C": 0, "D": 0, "illegal": 0}
        for _ in range(task["rounds"]):
            query = prompts[(own * 2 + other) * 4 + chance.randrange(4)]
            response = trainer.generate(query, return_prompt=False, **sampling)[0]
            answer = tokenizer.decode(response, skip_special_tokens=True).strip()
            choice = labels.index(answer) if answer in labels else 2
            move = own  # tit-for-tat
            rewards.append(task["rewards"][own * 2 + other][choice][move])
            queries.append(query)
            responses.append(response)
            counts[("C", "D", "illegal")[choice]] += 1
            own, other = (choice if choice < 2 else own), move
        # The paper's use_score_scaling and use_score_norm, which fail in this version of TRL.
        given.extend(rewards)
        mean, scale = statistics.fmean(given), statistics.stdev(given) + 1e-6
        scores = [torch.tensor((reward - mean) / scale) for reward in rewards]
        stats = trainer.step(queries, responses, scores)
        return {"reward": statistics.fmean(rewards), "kl": float(stats["objective/kl"])} | counts

    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    ready = {
        "versions": versions("torch", "trl", "transformers", "peft"),
        "threads": torch.get_num_threads(),
        "first_log_probs": first,
        "trained_parameters": trained,
    }
    serve(ready, update)


if __name__ == "__main__":
    main()
