"""`JSCPTConfig`: what a JSCPT adapter is, as stored in `adapter_config.json`."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig

from jscpt_peft.choices import check_choice

from .registration import add_peft_type

PEFT_TYPE = add_peft_type("JSCPT")

TOWERS = {"both": ("vision", "text"), "vision": ("vision",), "text": ("text",)}
INTERVENTIONS = ("mask_mlp", "none")


@dataclass
class JSCPTConfig(PeftConfig):
    """Configuration of Joint Scheduling of Causal Prompts and Tasks (JSCPT) prompts for a `CLIPModel`.

    Args:
        tasks: task name -> its class names, in the order of the labels. The order of the tasks is that of `task_ids`.
        task_order: names of the tasks in the order of `task_ids`; filled from `tasks`. PEFT stores a configuration
            with sorted keys, so that the order of `tasks` alone would not survive the disk.
        num_shared_tokens: prompt tokens that all tasks share, per prompted block and tower (the paper: 16).
        num_task_tokens: prompt tokens of each task's own, per prompted block and tower (the paper: 16).
        prompt_depth: number of blocks, from the first, that receive prompts of their own; the last ones are carried on
            as ordinary tokens through the remaining blocks. `None`: every block (the paper).
        towers: `"both"`, `"vision"` or `"text"`: which encoders are prompted.
        class_template: the text of a class, `{}` standing for its name.
        tokenizer_name_or_path: tokenizer of the class texts; default: the base model's name or path.
        class_token_ids: task name -> one unpadded list of token ids a class, `[SOS]` and `[EOS]` included. Filled when
            the adapter is injected unless given; stored, so that a loaded adapter needs no tokenizer.
        intervention: `"mask_mlp"`: a mask and two residual MLPs select features (Eq. 2); `"none"`: x̄ = x.
        intervention_hidden: width of the hidden layer of the two MLPs of Eq. 2.
        intervention_shared: one pair of MLPs for all tasks (each task keeps its own mask) instead of a pair a task.
        learn_masks: `False` fixes the masks at 0.5 (the paper's "w/o Feature Selection").
        prompt_init: a text such as `"a photo of a"` whose token embeddings, repeated to length, start the shared text
            prompts of every prompted block; `None`: N(0, `prompt_init_std`²) like all other prompts.
        prompt_init_token_ids: token ids of `prompt_init`; filled when the adapter is injected unless given.
        prompt_init_std: standard deviation of the random start of the prompts.
        init_seed: seed of that start; the same on every process.
        target_modules: the modules of the base model that are wrapped; filled for `CLIPModel`.
        base_dimensions: sizes of the base model the adapter was made for; filled when the adapter is injected.

    Raises:
        ValueError: an argument is out of its range; the message names it, its value and the remedy.
    """

    tasks: dict[str, list[str]] = field(default_factory=dict)
    task_order: list[str] | None = None
    num_shared_tokens: int = 16
    num_task_tokens: int = 16
    prompt_depth: int | None = None
    towers: str = "both"
    class_template: str = "{}."
    tokenizer_name_or_path: str | None = None
    class_token_ids: dict[str, list[list[int]]] | None = None
    intervention: str = "mask_mlp"
    intervention_hidden: int = 8
    intervention_shared: bool = False
    learn_masks: bool = True
    prompt_init: str | None = None
    prompt_init_token_ids: list[int] | None = None
    prompt_init_std: float = 0.02
    init_seed: int = 0
    target_modules: str | list[str] | None = None
    base_dimensions: dict[str, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        if self.task_type is not None:  # by it PEFT would choose a class of model made for language models
            raise ValueError(
                f"`task_type` must be None, got {str(self.task_type)!r}: a JSCPT adapter is for image classification "
                "alone; leave `task_type` out."
            )
        self._check_tasks()
        check_choice("towers", self.towers, TOWERS)
        check_choice("intervention", self.intervention, INTERVENTIONS)
        for name, minimum in {"num_shared_tokens": 0, "num_task_tokens": 0, "intervention_hidden": 1}.items():
            value = getattr(self, name)
            if value < minimum:
                raise ValueError(f"`{name}` must be at least {minimum}, got {value}.")
        if self.prompt_depth is not None and self.prompt_depth < 1:
            raise ValueError(
                f"`prompt_depth` must be at least 1 or None (every block), got {self.prompt_depth}. For no prompts at "
                "all set `num_shared_tokens` and `num_task_tokens` to 0."
            )
        if "{}" not in self.class_template:
            raise ValueError(f"`class_template` must contain {{}} for the class name, got {self.class_template!r}.")

    def _check_tasks(self) -> None:
        if not self.tasks:
            raise ValueError("`tasks` is empty: give a dict of task name -> list of class names.")
        if not isinstance(self.tasks, dict):
            raise ValueError(f"`tasks` is {self.tasks!r}: give a dict of task name -> list of class names.")
        self.task_order = list(self.task_order or self.tasks)
        if sorted(self.task_order) != sorted(self.tasks):
            raise ValueError(f"`task_order` {self.task_order} must name each of `tasks` {list(self.tasks)} once.")
        for task, names in self.tasks.items():
            # Of a string the letters would be the classes, and a set has no order.
            if not isinstance(names, list | tuple):
                raise ValueError(f"`tasks[{task!r}]` is {names!r}: give a list of class names.")
            if not all(isinstance(name, str) for name in names):
                raise ValueError(f"`tasks[{task!r}]` is {names}: class names are strings.")
            if not names:
                raise ValueError(f"`tasks[{task!r}]` has no class names.")
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"`tasks[{task!r}]` names {repeated} more than once: class names must differ.")
        self.tasks = {task: list(self.tasks[task]) for task in self.task_order}
        if self.class_token_ids is None:
            return
        surplus = sorted(set(self.class_token_ids) - set(self.tasks))
        if surplus:
            raise ValueError(f"`class_token_ids` names {surplus}, which are not among `tasks` {list(self.tasks)}.")
        for task, names in self.tasks.items():
            given = len(self.class_token_ids.get(task, ()))
            if given != len(names):
                raise ValueError(
                    f"`class_token_ids[{task!r}]` has {given} entries for {len(names)} classes: give one list of ids "
                    "a class, or leave `class_token_ids` out."
                )
        self.class_token_ids = {task: self.class_token_ids[task] for task in self.tasks}

    @property
    def num_tokens(self) -> int:
        """Prompt tokens that one task sees in a prompted block."""
        return self.num_shared_tokens + self.num_task_tokens

    @property
    def prompted_towers(self) -> tuple[str, ...]:
        """The towers that receive prompts; none where there are no prompt tokens."""
        return TOWERS[self.towers] if self.num_tokens else ()
