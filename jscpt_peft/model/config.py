"""`JSCPTConfig`: what an adapter is, as stored in `adapter_config.json`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

from peft import PeftConfig
from peft.utils import CONFIG_NAME

from jscpt_peft.choices import nearest
from jscpt_peft.methods import METHODS, check_single_task, method_fields
from jscpt_peft.reading import one_line, read_json_object
from jscpt_peft.settings import Between, OneOf, Pattern, Rate, Tokens, Width, check_settings, setting

from .class_residual import CLASS_RESIDUALS
from .config_checks import check_tasks, check_templates, check_texts, templates_of
from .groups import checked_groups, path_length
from .heads import FEATURE_HEADS
from .part_options import check_part_options
from .prompts import PROMPT_SOURCES
from .registration import TASK_TYPE, add_peft_type

PEFT_TYPE = add_peft_type("JSCPT")

VISION_INITS = ("normal", "uniform")
CLASS_POSITIONS = ("end", "middle")
TOWERS = {"both": ("vision", "text"), "vision": ("vision",), "text": ("text",)}


@dataclass
class JSCPTConfig(PeftConfig):
    """Configuration of Joint Scheduling of Causal Prompts and Tasks (JSCPT) prompts for a `CLIPModel`.

    Args:
        tasks: task name -> its class names, in the order of the labels. The order of the tasks is that of `task_ids`.
        task_order: names of the tasks in the order of `task_ids`; filled from `tasks`. PEFT stores a configuration
            with sorted keys, so that the order of `tasks` alone would not survive the disk.
        method: name of the method whose settings these are, one of `jscpt_peft.methods.METHODS`; `None`: put together
            by hand. `for_method` sets it.
        single_task: every task has its own copy of what a method lets the tasks share: one run trains them all as N
            separate runs would.
        prompts: where the prompts come from, one of `jscpt_peft.model.prompts.PROMPT_SOURCES`.
        num_shared_tokens: prompt tokens that all tasks share, per prompted block and tower (the paper: 16); those of
            each group or node of `groups`.
        num_task_tokens: prompt tokens of each task's own, per prompted block and tower (the paper: 16).
        groups: for prompts of groups of tasks: task name -> the name of its group (`prompts="kronecker"`) or the list
            of the nodes above it, from the root of a tree on (`prompts="tree"`). `None`: one group of all tasks.
        prompt_depth: number of blocks, from the first, that receive prompts of their own; the last ones are carried on
            as ordinary tokens through the remaining blocks. `None`: every block (the paper).
        towers: `"both"`, `"vision"` or `"text"`: which encoders are prompted.
        class_template: the text of a class, `{}` standing for its name; or task name -> the template of that task, or
            a list of templates, whose class features are averaged.
        class_position: where the class name stands among the text prompts: at the `"end"`, or in the `"middle"`: their
            second half follows it, before the rest of the template (CoOp, MVLPT). The latter needs text prompts of the
            first block alone, and computes half of the prompts anew for every class.
        tokenizer_name_or_path: tokenizer of the class texts; default: the base model's name or path.
        class_token_ids: task name -> one unpadded list of token ids per class, `[SOS]` and `[EOS]` included; with
            several templates one such list per class and template. With `class_position="middle"`, -1 stands once in
            each, where the second half of the prompts belongs. Filled when the adapter is injected unless given;
            stored, so that a loaded adapter needs no tokenizer.
        intervention: what happens to the image features x, one of `jscpt_peft.model.heads.FEATURE_HEADS`:
            `"mask_mlp"`: a mask and two residual MLPs select features (Eq. 2); `"adapter"`: CLIP-Adapter's residual
            network; `"decoupled"`: causal and spurious features with backdoor adjustment; `"modular"`: feature modules
            (MT-CRL-style); `"none"`: x̄ = x.
        intervention_hidden: width of the hidden layer of the two MLPs of Eq. 2, or of the decoupling network.
        intervention_shared: one pair of MLPs for all tasks (each task keeps its own mask) instead of a pair per task.
        num_confounders: K, how many confounders the backdoor adjustment averages over.
        num_modules: K, number of feature modules.
        reconstruction_weight, decorrelation_weight, sparsity_weight, entropy_weight, invariance_weight: of the
            penalties of `"decoupled"` (the first two) and `"modular"` (the last four); see these heads.
        projection_rank: rank of W_k - I with `prompts="projected"`.
        learn_masks: `False` fixes the masks at 0.5 (the paper's "w/o Feature Selection").
        class_residual: a learned residual on the class features z, `ClassResidual`: `"shared"` by all tasks with a
            class of that name, `"task"`: of each task's own, `"both"`, or `"none"`.
        prompt_init: a text such as `"a photo of a"` whose token embeddings, repeated to length, start the shared text
            prompts of every prompted block (with `prompts="coupled"` of the first one); `None`:
            N(0, `prompt_init_std`²) like all other prompts.
        prompt_init_token_ids: token ids of `prompt_init`; filled when the adapter is injected unless given.
        prompt_init_std: standard deviation of the random start of the prompts.
        vision_init: `"uniform"`: vision prompts start from U(-v, v) with v = sqrt(6 / (3p² + d)) for patches of p x p
            pixels and width d, as in VPT; `"normal"`: as all others.
        init_seed: seed of that start; the same on every process.
        target_modules: the modules of the base model that are wrapped; filled for `CLIPModel`.
        base_dimensions: sizes of the base model the adapter was made for; filled when the adapter is injected.

    Raises:
        ValueError: an argument is out of its range; the message names it, its value and the remedy.
    """

    task_type: str | None = setting(TASK_TYPE, "What PEFT chooses the class of the model by.", command_line=False)
    tasks: dict[str, list[str]] = field(
        default_factory=dict, metadata={"help": "Task name -> class names.", "command_line": False}
    )
    task_order: list[str] | None = setting(None, "Order of the tasks.", command_line=False)
    method: Annotated[str, OneOf(METHODS)] | None = setting(
        None, "Method whose settings these are.", command_line=False
    )
    single_task: bool = setting(False, "Every task has its own copy of what tasks share.")
    prompts: Annotated[str, OneOf(PROMPT_SOURCES)] = setting(
        "concatenated", f"Where prompts come from: {', '.join(PROMPT_SOURCES)}."
    )
    num_shared_tokens: Tokens = setting(16, "Prompt tokens that all tasks share, per prompted block.")
    num_task_tokens: Tokens = setting(16, "Prompt tokens of each task, per prompted block.")
    groups: dict[str, str | list[str]] | None = setting(
        None, "Task -> its group (mmap), or the nodes above it (hipro). Default: one group of all.", command_line=False
    )
    prompt_depth: Annotated[int, Between(1, 1000)] | None = setting(
        None, "Blocks with prompts of their own, from the first. Default: all."
    )
    towers: Annotated[str, OneOf(TOWERS)] = setting("both", "Prompted encoders: both, vision or text.")
    class_template: str | dict[str, str | list[str]] = setting("{}.", "Text of a class; {} stands for its name.")
    class_position: Annotated[str, OneOf(CLASS_POSITIONS)] = setting(
        "end", "Class name among the text prompts: end, or middle (with prompts of the first block alone)."
    )
    tokenizer_name_or_path: str | None = setting(None, "Tokenizer of the class texts.", command_line=False)
    class_token_ids: dict[str, list] | None = setting(None, "Token ids of the class texts.", command_line=False)
    intervention: Annotated[str, OneOf(FEATURE_HEADS)] = setting(
        "mask_mlp", f"Head on the features: {', '.join(FEATURE_HEADS)}."
    )
    intervention_hidden: Width = setting(8, "Hidden width of the MLPs of Eq. 2, or of the decoupling network.")
    intervention_shared: bool = setting(False, "One pair of MLPs for all tasks.")
    num_confounders: Width = setting(32, "Confounders of --intervention decoupled.")
    num_modules: Width = setting(8, "Feature modules of --intervention modular.")
    reconstruction_weight: Rate = setting(1.0, "How much rebuilding x counts (decoupled).")
    decorrelation_weight: Rate = setting(1e-4, "How much uncorrelated parts count (decoupled, modular).")
    sparsity_weight: Rate = setting(1e-3, "How much few links from tasks to modules count (modular).")
    entropy_weight: Rate = setting(1e-2, "How much evenly used modules count (modular).")
    invariance_weight: Rate = setting(1.0, "How much invariance over half-batches counts (modular).")
    projection_rank: Width = setting(8, "Rank of the tasks' maps of --prompts projected.")
    learn_masks: bool = setting(True, "Learn the masks of Eq. 2; without, they stay at 0.5.")
    class_residual: Annotated[str, OneOf(CLASS_RESIDUALS)] = setting(
        "none", f"Learned residual on the class features: {', '.join(CLASS_RESIDUALS)}."
    )
    prompt_init: str | None = setting(None, "Words that start the shared text prompts.")
    prompt_init_token_ids: list[int] | None = setting(None, "Token ids of these words.", command_line=False)
    prompt_init_std: Annotated[float, Between(0, 100)] = setting(
        0.02, "Standard deviation of the prompts' random start."
    )
    vision_init: Annotated[str, OneOf(VISION_INITS)] = setting(
        "normal", "Random start of the vision prompts: normal, or uniform as in VPT."
    )
    init_seed: int = setting(0, "Seed of that start.", command_line=False)
    target_modules: Annotated[str, Pattern()] | list[str] | None = setting(
        None, "Wrapped modules.", command_line=False
    )
    base_dimensions: dict[str, int] | None = setting(None, "Sizes of the base model.", command_line=False)

    awaits_weights: ClassVar[bool] = False  # true of a configuration that was read to load its weights

    @classmethod
    def for_method(
        cls, name: str, tasks: dict[str, list[str]], hyperparameters: str = "paper", **overrides: Any
    ) -> JSCPTConfig:
        """The configuration of a method.

        Args:
            name: one of `jscpt_peft.methods.METHODS`.
            tasks: task name -> its class names.
            hyperparameters: `"paper"`: as the JSCPT paper standardises all methods; `"original"`: the method's own.
            overrides: other fields, in the place of the method's.

        Raises:
            TypeError: an override is no field.
            ValueError: there is no such method, or an override would make another method of it.

        Example:
            >>> JSCPTConfig.for_method("coop", tasks={"pets": ["cat", "dog"]}, num_shared_tokens=4).towers
            'text'
        """
        chosen, known = method_fields(name, hyperparameters, **overrides), {each.name for each in fields(cls)}
        for option in overrides.keys() - known:
            raise TypeError(f"`{option}` is no field of `{cls.__name__}`.{nearest(option, known)}")
        return cls(tasks=tasks, method=name, **chosen)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any):
        """As `PeftConfig`'s. The file says no task type, which `AutoPeftModel` would refuse.

        Raises:
            ValueError: there is none, or one of its values is wrong; the message names the file.
        """
        try:
            config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        except (TypeError, ValueError) as error:
            if CONFIG_NAME in str(error):
                raise
            file = Path(str(pretrained_model_name_or_path), subfolder or "", CONFIG_NAME)
            raise ValueError(f"{file}: {one_line(error)}. Get the adapter again, or mend it.") from error
        config.task_type, config.awaits_weights = TASK_TYPE, True
        return config

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> dict[str, Any]:  # noqa: ARG003 (PEFT's form)
        """What `from_pretrained` reads.

        Raises:
            ValueError: it is no mapping in JSON, or of another PEFT method; the message names the file.
        """
        try:
            content = read_json_object(path_json_file)
            if content.get("peft_type") != PEFT_TYPE.value:
                raise ValueError(f"its `peft_type` is {content.get('peft_type')!r}, not {PEFT_TYPE.value!r}")
            return content
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path_json_file} is no adapter's configuration ({one_line(error)}): get the adapter again."
            ) from error

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "task_type": None}

    def __post_init__(self) -> None:
        given, self.task_type = self.task_type, None  # PEFT checks for its own task types
        super().__post_init__()
        self.peft_type, self.task_type = PEFT_TYPE, given
        if given not in (None, TASK_TYPE):  # by it PEFT would choose a class made for language models
            raise ValueError(
                f"`task_type` is {str(given)!r}: a JSCPT adapter is for image classification alone; leave "
                "`task_type` out."
            )
        self.check()

    def check(self) -> None:
        """Raises a `ValueError` where a field is out of its range; fields may have been set since the start."""
        check_settings(self)
        self.task_order = list(self.task_order or self.tasks)
        check_tasks(self.tasks, self.task_order)
        self.tasks = {task: list(self.tasks[task]) for task in self.task_order}
        check_templates(self.class_template, self.tasks)
        if self.class_token_ids is not None:
            check_texts(self.class_token_ids, self.tasks)
            self.class_token_ids = {task: self.class_token_ids[task] for task in self.tasks}
        self.groups = checked_groups(self)
        starts = path_length(self) * self.num_shared_tokens and "text" in TOWERS[self.towers]
        if self.prompt_init is not None and not (starts and self.prompt_init.strip()):
            raise ValueError(
                f"`prompt_init` is {self.prompt_init!r}, `num_shared_tokens` {self.num_shared_tokens} and `towers` "
                f"{self.towers!r}: give words that start shared text prompts, or leave it out."
            )
        if self.method is not None:
            method = METHODS[self.method]
            method_fields(self.method, **{name: getattr(self, name) for name in (*method.structure, *method.at_least)})
            check_single_task(self.method, self.single_task)
        check_part_options(self)

    def templates(self, task: str) -> list[str]:
        """The templates of a task."""
        return templates_of(self.class_template, task)

    @property
    def num_tokens(self) -> int:
        """Prompt tokens that one task sees in a prompted block."""
        return path_length(self) * self.num_shared_tokens + self.num_task_tokens

    @property
    def prompted_towers(self) -> tuple[str, ...]:
        """The towers that receive prompts; none where there are no prompt tokens."""
        return TOWERS[self.towers] if self.num_tokens else ()
