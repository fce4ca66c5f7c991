"""What training gave before the redesign of the house, recorded so that it can be compared to 1e-10.

Of the parameters it keeps norms and products with fixed random vectors, which any changed element changes; the
history is kept whole. `PYTHONPATH=tests python tests/reference_run.py` records anew.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import oracles
import torch
from peft import get_peft_model
from safetensors.torch import save_file
from torch import Tensor

from jscpt_peft import JSCPTConfig
from jscpt_peft.data import ImageTaskDataset, image_transform, shapes_task_set
from jscpt_peft.training import JSCPTTrainer, JSCPTTrainingArguments

RECORD = Path(__file__).with_name("reference_run.safetensors")
# The paper's method for three seeds, and one run through every other branch of a step.
RUNS = {
    **{f"seed-{seed}": {"seed": seed} for seed in (1, 2, 3)},
    "other options": {
        "seed": 4,
        "causal_effect": "sigmoid",
        "reference": "complement",
        "affinity": "cosine",
        "affinity_direction": "outgoing",
        "weight_normalization": "none",
        "scheduler_parameterization": "softplus",
        "hessian_parameters": "shared",
        "hypergradient_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "optim": "adamw_torch",
    },
    "cagrad": {"seed": 5, "steps": 10, "gradient_aggregator": "cagrad", "hypergradient_chunk_size": 1},
}
# Columns of the history; `graph_bytes` is a matter of the implementation.
COLUMNS = ("loss", "causal_effect", "alpha", "beta", "prompt_factor", "task_factor", "weight", "affinity")
COLUMNS += ("gradient_cosine", "gradient_norm")
UPPER_COLUMNS = ("step_size", "hypergradient_norm", "dev_loss", "neumann_terms")


def train(seed: int, steps: int = 30, **options) -> dict[str, Tensor]:
    """Trains on `shapes` in float64 with an update of Ω every five steps; name -> what is recorded."""
    data = shapes_task_set(seed=seed, shots=2, spurious_strength=0.9)
    token_ids = {
        task: [[oracles.TINY_SOS, *[(5 * label + 3 * word) % 90 for word in range(1 + label % 3)], oracles.TINY_EOS]
               for label in range(len(names))]
        for task, names in data.class_names.items()
    }  # fmt: skip
    config = JSCPTConfig(
        tasks=data.class_names,
        class_token_ids=token_ids,
        num_shared_tokens=2,
        num_task_tokens=1,
        intervention_hidden=4,
        prompt_init_std=0.3,
        init_seed=seed,
    )
    model = get_peft_model(oracles.tiny_clip(dtype=torch.float64), config)
    augment, plain = (image_transform(32, (0.5,) * 3, (0.25,) * 3, train=train) for train in (True, False))
    with tempfile.TemporaryDirectory() as folder:
        defaults = {"per_device_train_batch_size": 2, "max_steps": steps, "lower_steps": 5, "learning_rate": 0.02}
        defaults |= {"weight_decay": 1e-3, "scheduler_learning_rate": 0.1, "logging_steps": 10, "save_strategy": "no"}
        defaults |= {"use_cpu": True, "disable_tqdm": True, "report_to": []}
        arguments = JSCPTTrainingArguments(output_dir=folder, seed=seed, **{**defaults, **options})
        trainer = JSCPTTrainer(
            model,
            arguments,
            train_dataset=ImageTaskDataset(data.split("train"), augment, seed),
            dev_dataset=ImageTaskDataset(data.split("dev"), plain, seed),
        )
        trainer.train()
        text = Path(folder, "scheduler_history.jsonl").read_text(encoding="utf-8")
    rows = [row for row in map(json.loads, text.splitlines()) if "step" in row]
    updates = [row["scheduler"] for row in rows if row["scheduler"] is not None]
    recorded = {name: _tensor([row[name] for row in rows]) for name in COLUMNS}
    recorded |= {f"scheduler/{name}": _tensor([update[name] for update in updates]) for name in UPPER_COLUMNS}
    recorded |= {f"parameters/{name}": _sketch(each) for name, each in model.task_parameters().items()}
    return {name: tensor.contiguous() for name, tensor in recorded.items()}


def _tensor(values: list) -> Tensor:
    """A column; what is missing (the history's null) is nan."""
    return torch.tensor(json.loads(json.dumps(values).replace("null", "NaN")), dtype=torch.float64)


def _sketch(parameter: Tensor) -> Tensor:
    """`[9]`: the norm, and products with eight random vectors that are always the same."""
    flat = parameter.detach().flatten()
    vectors = torch.randn(8, len(flat), dtype=flat.dtype, generator=torch.Generator().manual_seed(len(flat)))
    return torch.cat([flat.norm()[None], vectors @ flat])


if __name__ == "__main__":
    save_file({f"{run}/{name}": each for run, o in RUNS.items() for name, each in train(**o).items()}, RECORD)
