"""Each method from the adapter's tensors as they are stored, one task at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, multi_head_attention_forward, relu
from transformers import CLIPModel

from . import attention, image_features, intervention, task_loss, text_features


class Concatenated:
    """Shared and task tokens side by side, and Eq. 2: JSCPT; with one of the two kinds of tokens CoOp and VPT.

    Args:
        clip: the plain base model.
        tensors: of the adapter; of a single-task form the task's slices.
        task: its position.
    """

    def __init__(self, clip: CLIPModel, tensors: dict[str, Tensor], task: int) -> None:
        self.clip, self.tensors, self.task = clip, tensors, task

    def prompts(self, tower: str) -> Tensor:
        """`[depth, n, d]`; n = 0 where the tower has none."""
        shared, own = (self.tensors.get(f"prompts.{tower}_{kind}") for kind in ("shared", "task"))
        parts = [part for part in (shared, None if own is None else own[self.task]) if part is not None]
        if not parts:
            width = getattr(self.clip, f"{tower}_model").config.hidden_size
            return self.clip.logit_scale.new_zeros(1, 0, width)
        return torch.cat(parts, dim=1)

    def selected(self, x: Tensor) -> Tensor:
        """What the head makes of features `[B, D]`: as many, or `[K, B, D]`, K views of each image."""
        if "head.mask" not in self.tensors:
            return x
        parts = [f"head.{mlp}_{part}" for mlp in ("inner", "outer") for part in ("down", "down_bias", "up", "up_bias")]
        return intervention(x, *(self.tensors[part][self.task] for part in ["head.mask", *parts]))

    def penalties(self, x: Tensor, classes: Tensor, labels: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """Terms of the task's penalty, without their weights; x `[B, D]` before the head."""
        return {}

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """x `[B, D]` of the task's images, before the head."""
        return image_features(self.clip, self.prompts("vision"), pixel_values)

    def class_features(self, token_ids: list[list[int]]) -> Tensor:
        """`[C, D]` of the task's classes."""
        return text_features(self.clip, self.prompts("text"), token_ids)


class CLIPAdapter(Concatenated):
    """Two linear maps with ReLUs beside the features themselves, before fixed class texts; all tasks have the same."""

    def selected(self, x):
        down, up = self.tensors["head.down"], self.tensors["head.up"]
        return 0.2 * relu(linear(relu(linear(x, down)), up)) + 0.8 * x


class MaPLe(Concatenated):
    """As published: vision prompts at the end of the sequence, in the first block from before the layer norm on."""

    def prompts(self, tower):
        names = ("text", "weight", "bias")
        if tower == "text":
            return self.tensors["prompts.text"]
        parts = (self.tensors[f"prompts.{name}"] for name in names)
        return torch.stack([linear(*each) for each in zip(*parts, strict=True)])

    def image_features(self, pixel_values):
        vision, prompts = self.clip.vision_model, self.prompts("vision")
        tokens = vision.embeddings(pixel_values)
        tokens = vision.pre_layrnorm(torch.cat([tokens, prompts[0].expand(len(tokens), -1, -1)], dim=1))
        for block, layer in enumerate(vision.encoder.layers):
            if 0 < block < len(prompts):
                deep = prompts[block].expand(len(tokens), -1, -1)
                tokens = torch.cat([tokens[:, : -deep.shape[1]], deep], dim=1)
            tokens = tokens + attention(layer.self_attn, layer.layer_norm1(tokens), causal=False)
            tokens = tokens + layer.mlp(layer.layer_norm2(tokens))
        return self.clip.visual_projection(vision.post_layernorm(tokens[:, 0]))


class MVLPT(Concatenated):
    """UPT, trained for all tasks: torch's own attention over text and vision tokens in one sequence."""

    def prompts(self, tower):
        tensors = self.tensors

        def mapped(tokens: Tensor, name: str) -> Tensor:
            return linear(tokens, tensors[f"prompts.{name}_weight"], tensors[f"prompts.{name}_bias"])

        def normed(tokens: Tensor, name: str) -> Tensor:
            weight, bias = tensors[f"prompts.{name}_weight"], tensors[f"prompts.{name}_bias"]
            return layer_norm(tokens, (128,), weight, bias)

        text, vision = tensors["prompts.text"], tensors["prompts.vision"]
        tokens = torch.cat([mapped(text, "text_in"), *(mapped(block, "vision_in") for block in vision)])
        inner = [tensors[f"prompts.{name}"] for name in ("attention_weight", "attention_bias")]
        output = [tensors[f"prompts.{name}"] for name in ("attended_weight", "attended_bias")]
        same = [normed(tokens, "norm1")] * 3
        tokens = tokens + multi_head_attention_forward(*same, 128, 1, *inner, None, None, False, 0.0, *output)[0]
        wide = mapped(normed(tokens, "norm2"), "wide")
        tokens = tokens + mapped(wide * torch.sigmoid(1.702 * wide), "narrow")
        if tower == "text":
            return mapped(tokens[: len(text)], "text_out")[None]
        return mapped(tokens[len(text) :], "vision_out").view_as(vision)


class MmAP(Concatenated):
    """MmAP-style: torch's own Kronecker products of a group's and a task's source prompts, block by block."""

    def prompts(self, tower):
        tensors, task = self.tensors, self.task
        parts = [("task", task if "prompts.group_source" in tensors else ...)]  # `...` of a single task's slices
        if "prompts.group_source" in tensors:
            groups = tensors["groups"]
            parts.insert(0, ("group", list(dict.fromkeys(groups)).index(groups[task])))
        tokens = []
        for part, index in parts:
            factors, sources = (tensors[f"prompts.{part}_{name}"][index] for name in (tower, "source"))
            products = [torch.kron(factor[None], source) for factor, source in zip(factors, sources, strict=True)]
            tokens.append(torch.stack(products))
        return torch.cat(tokens, dim=1)


class HiPro(Concatenated):
    """HiPro-style: the prompts of the nodes from the root to the task's leaf, one after another."""

    def prompts(self, tower):
        tensors, task = self.tensors, self.task
        leaf = tensors[f"prompts.task_{tower}"]
        if f"prompts.group_{tower}" not in tensors:  # of single tasks' slices
            return leaf
        groups = tensors["groups"]
        names = list(dict.fromkeys(name for path in groups for name in path))
        path = list(groups[task])
        while len(path) < max(map(len, groups)):  # one that is shorter than others repeats its last node
            path.append(path[-1])
        nodes = [tensors[f"prompts.group_{tower}"][names.index(name)] for name in path]
        return torch.cat([*nodes, leaf[task]], dim=1)


class Projected(Concatenated):
    """The summary's variant of JSCPT: P^(k) = W_k P, causal and spurious features, confounders one by one."""

    def prompts(self, tower):
        shared, down, up = (self.tensors[f"prompts.{tower}_{part}"] for part in ("shared", "down", "up"))
        return linear(shared, torch.eye(shared.shape[-1], dtype=shared.dtype) + up[self.task] @ down[self.task])

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Z_c `[B, D]` and Z_s `[B, s]`."""
        tensors = self.tensors
        hidden = gelu(linear(x, tensors["head.down"], tensors["head.down_bias"]))
        return x + linear(hidden, tensors["head.causal_up"]), linear(hidden, tensors["head.spurious_up"])

    def selected(self, x):
        causal, _ = self.parts(x)
        back = self.tensors["head.back"]
        return torch.stack([causal + linear(confounder, back) for confounder in self.tensors["head.bank"]])

    def penalties(self, x, classes, labels):  # noqa: ARG002
        causal, spurious = self.parts(x)
        error = causal + linear(spurious, self.tensors["head.back"]) - x
        rebuilt = torch.stack([e @ e / (each @ each) for e, each in zip(error, x, strict=True)]).mean()
        return {"reconstruction": rebuilt, "decorrelation": squared_correlations(causal, spurious)}


class MTCRL(Concatenated):
    """MT-CRL-style: modules of the features and how much each task takes of them."""

    def modules(self, x: Tensor) -> list[Tensor]:
        """Z_k `[B, r]`, one after the other."""
        return [x @ down.T for down in self.tensors["head.down"]]

    def mixed(self, taken: Tensor, x: Tensor) -> Tensor:
        """x̄ `[B, D]` where a task takes `taken` `[K]` of the modules."""
        pairs = zip(taken, self.modules(x), self.tensors["head.up"], strict=True)
        return sum(weight * (z @ up.T) for weight, z, up in pairs)

    def selected(self, x):
        return self.mixed(torch.sigmoid(self.tensors["head.routing"][self.task]), x)

    def penalties(self, x, classes, labels):
        """Of what concerns all N tasks its N-th part."""
        graph, z = torch.sigmoid(self.tensors["head.routing"]), self.modules(x)
        shares = graph.sum(0) / graph.sum()  # of all that all tasks together take, how much of each module

        def risk(half: slice) -> Callable[[Tensor], Tensor]:
            return lambda taken: task_loss(self.clip, self.mixed(taken, x[half]), classes, labels[half])

        halves = slice(None, len(x) // 2), slice(len(x) // 2, None)
        gradients = [gradient_of(risk(half), graph[self.task]) for half in halves]
        mean = sum(gradients) / len(gradients)
        return {
            "decorrelation": sum(squared_correlations(z[k], z[m]) for m in range(len(z)) for k in range(m)),
            "sparsity": graph.abs().sum() / len(graph),
            "entropy": sum(share * torch.log(share) for share in shares) / len(graph),
            "invariance": sum(((gradient - mean) ** 2).sum() for gradient in gradients),
        }


def gradient_of(risk: Callable[[Tensor], Tensor], taken: Tensor) -> Tensor:
    """∇ R(taken), differentiable once more."""
    return torch.autograd.grad(risk(taken), taken, create_graph=True)[0]


def squared_correlations(one: Tensor, other: Tensor) -> Tensor:
    """Squared correlation coefficients of every feature `[b, p]` with every one `[b, q]`, summed: ‖corr‖²_F."""
    total = one.new_zeros(())
    for first in one.T:
        for second in other.T:
            covariance = ((first - first.mean()) * (second - second.mean())).mean()
            total = total + covariance**2 / ((first.var(correction=0) + 1e-6) * (second.var(correction=0) + 1e-6))
    return total
