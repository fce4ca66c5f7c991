"""How a recipe, on one process or several, tells of an error: in one line, once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from safetensors import SafetensorError

from jscpt_peft.choices import printable
from jscpt_peft.training.distributed import give_up, process_index, world_size

console = Console()
# PEFT asks transformers for a property by its old name; nothing that a user of the recipes could change.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)


@contextmanager
def cli_errors() -> Iterator[None]:
    """Within, only the first process prints; an error that a user can mend ends any of them with one line.

    So does Ctrl-C, with the exit code that a shell gives it.
    """
    console.quiet = process_index() > 0
    try:
        yield
    except (ValueError, OSError, ImportError, FloatingPointError, SafetensorError) as error:
        who = f" in process {process_index()} of {world_size()}" if world_size() > 1 else ""
        message = escape(printable(" ".join(str(error).split())))  # the Hub's have several lines
        console.quiet = False
        console.print(f"[bold red]Error{who}:[/] {message}", highlight=False, markup=True, soft_wrap=True)
        give_up(1)
    except KeyboardInterrupt as interrupt:
        said = f"; {interrupt}" if interrupt.args else ": what was under way is not done."
        console.print(f"Interrupted{printable(said)}", highlight=False, markup=False, soft_wrap=True)
        give_up(130)
    finally:
        console.quiet = False


@contextmanager
def told_on_interrupt(said: str) -> Iterator[None]:
    """Within `cli_errors`: Ctrl-C says what is done already, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(said) from None
