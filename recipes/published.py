"""What the paper (JSCPT, CVPR 2025, Tables 1-4) prints: mean test accuracy of the tasks in %, ViT-B/16.

None of it was measured here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ALONE = ("coop --single_task", "vpt --single_task", "maple --single_task", "clip_adapter --single_task")
TOGETHER = ("coop", "vpt", "maple", "mvlpt", "clip_adapter", "mmap", "jscpt")
FEW_SHOT = ("zero_shot", "coop", "vpt", "maple", "mvlpt", "clip_adapter", "mmap", "jscpt")
ABLATION = ("jscpt_no_feature_selection", "jscpt_no_prompt_scheduling", "jscpt_no_task_scheduling")
ABLATION += ("jscpt_cagrad", "jscpt")


def _row(methods: Sequence[str], means: str, deviations: str = "") -> dict[str, str]:
    """method -> cell; the last methods have deviations, if any has."""
    cells, spread = means.split(), deviations.split()
    plain = len(cells) - len(spread)
    cells = [*cells[:plain], *(f"{mean} ± {each}" for mean, each in zip(cells[plain:], spread, strict=True))]
    return dict(zip(methods, cells, strict=True))


_MULTI = ("zero_shot", *ALONE, *TOGETHER)
PUBLISHED: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "office_home": {
        "10%": _row(
            _MULTI,
            "82.4 84.6 83.5 84.9 83.0 85.0 84.5 85.2 85.2 83.9 85.7 86.5",
            "0.2 0.3 0.4 0.2 0.3 0.3 0.3 0.2 0.2 0.3 0.3",
        ),
        "20%": _row(
            _MULTI,
            "83.1 86.0 84.7 86.1 84.4 86.2 85.2 86.2 86.3 85.0 87.1 87.9",
            "0.4 0.3 0.4 0.3 0.3 0.3 0.3 0.3 0.3 0.2 0.3",
        ),
    },
    "mini_domainnet": {
        "1%": _row(
            _MULTI,
            "83.9 83.4 83.3 83.8 82.8 83.7 83.2 83.8 84.1 83.2 84.4 85.1",
            "0.2 0.2 0.2 0.3 0.3 0.2 0.3 0.2 0.2 0.2 0.2",
        ),
        "2%": _row(
            _MULTI,
            "83.9 84.2 84.1 84.4 83.9 84.7 84.1 85.0 85.2 84.4 85.6 86.4",
            "0.4 0.2 0.3 0.3 0.3 0.3 0.4 0.3 0.3 0.5 0.3",
        ),
    },
    "few_shot": {
        "1 shots": _row(FEW_SHOT, "58.0 64.1 66.0 67.9 67.8 66.6 68.7 70.1"),
        "5 shots": _row(FEW_SHOT, "58.0 71.3 73.3 74.8 74.7 73.2 75.9 77.2"),
        "10 shots": _row(FEW_SHOT, "58.0 75.7 76.7 78.4 77.6 76.9 79.3 80.8"),
        "20 shots": _row(FEW_SHOT, "58.0 78.8 79.6 81.7 81.1 80.3 83.0 84.4"),
    },
    "ablation": {
        "10%": _row(ABLATION, "85.4 86.1 85.9 85.6 86.5"),
        "20%": _row(ABLATION, "87.0 87.3 87.2 87.1 87.9"),
    },
}
