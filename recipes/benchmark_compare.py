"""Whether a benchmark's ratios have worsened since an earlier run."""

from __future__ import annotations

from collections.abc import Sequence

from jscpt_peft.reading import one_line, read_json_object
from jscpt_peft.settings import check_setting

HIGHER_IS_BETTER = ("baseline / ", "peer / ", "fraction of ")
# What two runs of the same code may differ by without any of it showing within one run.
LEAST_NOISE = 0.02
YOUNGER = {"activation_checkpointing": False}  # options, as reports were made before they existed


def noise_of(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Half the range of each ratio over the rounds, in which all variants ran one after the other."""
    return {name: (max(each[name] for each in rounds) - min(each[name] for each in rounds)) / 2 for name in rounds[0]}


def read_report(path: str) -> dict:
    """An earlier report.

    Raises:
        ValueError: there is none, or its ratios are no finite numbers.
    """
    try:
        report = read_json_object(path)
        for part in ("ratios", "noise"):
            check_setting(part, report.get(part), dict[str, float])
        check_setting("arguments", report.get("arguments"), dict)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`compare` {path!r} is no report ({one_line(error)}): give a file that `--case step --json` has written."
        ) from error
    return report


def worsened(before: dict, now: dict) -> list[str]:
    """A sentence per ratio that is worse by more than the noise of both runs and by more than 2 %.

    Raises:
        ValueError: the earlier run had other settings, or its report has no ratios.
    """
    if "ratios" not in before or "ratios" not in now:
        raise ValueError("`compare` needs two reports with ratios, as `--case step` writes them.")
    # Without the baseline the other ratios are the same; a report of an earlier version lacks younger options.
    ignored = ("json", "compare", "repeats", "baseline")
    earlier = YOUNGER | before["arguments"]
    other = [name for name, value in now["arguments"].items() if name not in ignored and earlier.get(name) != value]
    if other:
        raise ValueError(f"`compare`: the earlier run had other settings ({', '.join(other)}): its ratios are others.")
    lines = []
    for name in before["ratios"].keys() & now["ratios"].keys():
        old, new = before["ratios"][name], now["ratios"][name]
        noise = before["noise"].get(name, 0) + now["noise"].get(name, 0)
        worse = old - new if name.startswith(HIGHER_IS_BETTER) else new - old
        if worse > max(noise, LEAST_NOISE * abs(old)):
            lines.append(f"{name} has worsened from {old:.3f} to {new:.3f}, noise {noise:.3f}")
    return sorted(lines)
