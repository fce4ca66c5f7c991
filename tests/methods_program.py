"""One process of two that train every case of `tests/model/test_methods.py`; writes `FOLDER/<rank>.pt`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

from jscpt_peft.training.distributed import process_index

if __name__ == "__main__":
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("cases", Path(__file__).parent / "model" / "test_methods.py")
    cases = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cases)
    folder = Path(sys.argv[1])
    trained = cases.trained_with(2, folder / "pair")
    torch.save(trained, folder / f"{process_index()}.pt")
