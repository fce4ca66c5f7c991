"""Prompt sources, one file per idea; `PROMPT_SOURCES` names them for `JSCPTConfig(prompts=...)`."""

from .base import PromptSource
from .concatenated import ConcatenatedPrompts
from .coupled import CoupledPrompts
from .grouped import GroupedPrompts
from .kronecker import KroneckerPrompts
from .projected import ProjectedPrompts
from .tree import TreePrompts
from .unified import UnifiedPrompts

PROMPT_SOURCES: dict[str, type[PromptSource]] = {
    "concatenated": ConcatenatedPrompts,
    "coupled": CoupledPrompts,
    "kronecker": KroneckerPrompts,
    "projected": ProjectedPrompts,
    "tree": TreePrompts,
    "unified": UnifiedPrompts,
}
"""Name -> prompt source. A source of one's own is added here before it is used or loaded."""

__all__ = [
    "PROMPT_SOURCES",
    "ConcatenatedPrompts",
    "CoupledPrompts",
    "GroupedPrompts",
    "KroneckerPrompts",
    "ProjectedPrompts",
    "PromptSource",
    "TreePrompts",
    "UnifiedPrompts",
]
