"""Evaluates a trained adapter, or zero-shot CLIP, on the test images of any task set: see `evaluation.py`.

    python recipes/evaluate.py --adapter outputs/mine --task_set shapes --output_dir outputs/evaluation

The program is in another file because this one bears the name of a library, `evaluate`, which it hides where recipes/
comes first on the import path (`python recipes/train.py` puts it there): `import evaluate` then leads here, and on to
the library.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

if __name__ == "evaluate":
    here = Path(__file__).resolve().parent
    hidden = [(position, place) for position, place in enumerate(sys.path) if Path(place).resolve() == here]
    for _, place in hidden:
        sys.path.remove(place)
    del sys.modules["evaluate"]
    try:
        importlib.import_module("evaluate")  # the import that led here takes what is now found under the name
    finally:
        for position, place in hidden:
            sys.path.insert(position, place)

if __name__ == "__main__":
    from evaluation import main

    main()
