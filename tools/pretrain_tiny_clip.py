"""Pretrain the tiny CLIP of `recipes/assets/tiny-clip` on captioned `shapes` scenes and, if there are any, emoji.

    python tools/pretrain_tiny_clip.py --output_dir outputs/tiny-clip --emoji_root ../emoji

Of the emoji it reads only those that `captions.jsonl` assigns to pretraining: the emoji of the tasks stay unseen.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import torch
from captioned_images import CaptionedImages, draw_scenes, read_emoji
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, normalize
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer, HfArgumentParser, set_seed
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from jscpt_peft.data.drawing import IMAGE_SIZE


@dataclass
class PretrainingArguments:
    """Everything that the command line can set."""

    output_dir: str = field(metadata={"help": "Where the model is written."})
    emoji_root: str | None = field(
        default=None, metadata={"help": "A folder made by prepare_emoji.py: pretrain/, tasks/ and captions.jsonl."}
    )
    steps: int = field(default=1500, metadata={"help": "Optimizer steps."})
    batch_size: int = field(default=128, metadata={"help": "Captioned images per step."})
    muon_learning_rate: float = field(default=0.02, metadata={"help": "Peak, for the blocks' matrices."})
    adam_learning_rate: float = field(default=1e-3, metadata={"help": "Peak, for all else."})
    scenes: int = field(default=24000, metadata={"help": "Scenes of `shapes` to draw."})
    emoji_share: float = field(default=0.4, metadata={"help": "Part of a batch that is emoji."})
    vision_width: int = field(default=160, metadata={"help": "Width of the vision tower, a multiple of 32."})
    vision_layers: int = 4
    text_width: int = field(default=128, metadata={"help": "Width of the text tower, a multiple of 32."})
    text_layers: int = 3
    vocabulary_size: int = field(default=2048, metadata={"help": "Tokens of the tokenizer."})
    seed: int = 1
    threads: int = field(default=2, metadata={"help": "CPU threads."})


def train_tokenizer(texts: list[str], size: int) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges are learnt from `texts`; all bytes are in it, so that any string has tokens."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    blank = CLIPTokenizer()
    learner.normalizer = blank.backend_tokenizer.normalizer
    learner.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    learner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = alphabet + [f"{symbol}</w>" for symbol in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    # OpenAI's order: bytes, bytes at a word's end, merges, and [EOS] last, as `argmax` readers of [EOS] expect.
    tokens = dict.fromkeys([*symbols, *("".join(merge) for merge in merges)])
    tokens = [*list(tokens)[: size - 2], "<|startoftext|>", "<|endoftext|>"]
    kept = set(tokens)
    merges = [merge for merge in merges if "".join(merge) in kept]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=merges, model_max_length=77
    )


def build_model(tokenizer: CLIPTokenizer, arguments: PretrainingArguments) -> CLIPModel:
    def tower(width: int, layers: int) -> dict:
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
            "hidden_act": "gelu",
        }

    text = {
        **tower(arguments.text_width, arguments.text_layers),
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        **tower(arguments.vision_width, arguments.vision_layers),
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding.weight[1:] = grid_positions(
            IMAGE_SIZE // 8, arguments.vision_width
        )
    # On a CPU the backward pass of the fused kernel takes twice as long as that of plain matrix products.
    model.set_attn_implementation("eager")
    return model


def grid_positions(side: int, width: int) -> Tensor:
    """Sines and cosines of a patch's row and column, [side * side, width]: a start that knows what is next to what."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    frequencies = 100.0 ** (-torch.arange(width // 4) / (width // 4))
    angles = [place.reshape(-1, 1) * frequencies for place in (columns, rows)]
    return 0.3 * torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


def augment(pixels: Tensor, processor: CLIPImageProcessorPil, generator: torch.Generator) -> Tensor:
    """Move, zoom, mirror and tint uint8 images [B, 3, S, S], each by itself, and normalise them."""
    count = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = uniform(0.85, 1.15) * torch.where(uniform(0, 1) < 0.5, -1, 1)
    affine[:, 1, 1] = uniform(0.85, 1.15)
    affine[:, :, 2] = uniform(-0.12, 0.12, 2)
    grid = affine_grid(affine, list(pixels.shape), align_corners=False)
    images = grid_sample(pixels.float() / 255, grid, padding_mode="border", align_corners=False)
    images = (images * uniform(0.85, 1.15, 3, 1, 1)).clamp(0, 1)
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    return (images - mean[:, None, None]) / std[:, None, None]


def contrastive_loss(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, same: Tensor) -> Tensor:
    """CLIP's symmetric loss; an image matches every caption that reads like its own (`same` [B, B])."""
    logits = logit_scale.exp() * normalize(image_embeds, dim=-1) @ normalize(text_embeds, dim=-1).T
    targets = same.float() / same.sum(dim=1, keepdim=True)
    return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2


def build_optimizers(model: CLIPModel, arguments: PretrainingArguments) -> tuple[list[Optimizer], list[LambdaLR]]:
    """Muon for the matrices of the blocks, AdamW for all else; both with warm-up and cosine decay.

    A small ViT sits on a plateau under AdamW alone: with Muon it needs about a tenth of the images.
    """
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and ".layers." in name]
    others = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or ".layers." not in name]
    optimizers = [
        Muon(matrices, lr=arguments.muon_learning_rate, weight_decay=0.05),
        AdamW(others, lr=arguments.adam_learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    warmup = max(1, arguments.steps // 20)

    def factor(step: int) -> float:
        return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / arguments.steps)))

    return optimizers, [LambdaLR(optimizer, factor) for optimizer in optimizers]


def pretrain(
    model: CLIPModel,
    processor: CLIPProcessor,
    sources: list[tuple[CaptionedImages, int]],
    arguments: PretrainingArguments,
) -> None:
    """Train in place; every batch has `count` images of each (images, count) in `sources`."""
    rng, generator = Random(f"{arguments.seed}/batches"), torch.Generator().manual_seed(arguments.seed)
    optimizers, schedulers = build_optimizers(model, arguments)
    model.train()
    start, losses = time.perf_counter(), []
    for step in range(1, arguments.steps + 1):
        chosen = [(source, rng.randrange(len(source.captions))) for source, count in sources for _ in range(count)]
        pixels = torch.stack([source.pixels[index] for source, index in chosen])
        captions = [rng.choice(source.captions[index]) for source, index in chosen]
        numbers = {caption: number for number, caption in enumerate(captions)}
        identity = torch.tensor([numbers[caption] for caption in captions])
        tokens = processor.tokenizer(captions, padding=True, truncation=True, max_length=48, return_tensors="pt")
        images = augment(pixels, processor.image_processor, generator)
        with torch.autocast("cpu", torch.bfloat16):
            image_embeds = model.get_image_features(pixel_values=images).pooler_output
            text_embeds = model.get_text_features(**tokens).pooler_output
        loss = contrastive_loss(
            image_embeds.float(), text_embeds.float(), model.logit_scale, identity[:, None] == identity
        )
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        model.logit_scale.data.clamp_(max=math.log(100))
        losses.append(loss.item())
        if step % 50 == 0 or step == arguments.steps:
            print(
                f"step {step}/{arguments.steps}  loss {np.mean(losses):.3f}  scale {model.logit_scale.exp():.1f}"
                f"  {time.perf_counter() - start:.0f} s",
                flush=True,
            )
            losses.clear()
    model.eval()


def main(arguments: PretrainingArguments) -> None:
    torch.set_num_threads(arguments.threads)
    emoji_root = None if arguments.emoji_root is None else Path(arguments.emoji_root)
    set_seed(arguments.seed)
    sources = [(draw_scenes(arguments.scenes, arguments.seed), arguments.batch_size)]
    if emoji_root is not None:
        emoji = round(arguments.batch_size * arguments.emoji_share)
        sources = [(sources[0][0], arguments.batch_size - emoji), (read_emoji(emoji_root), emoji)]
    texts = [caption for source, _ in sources for captions in source.captions for caption in captions]
    processor = CLIPProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        ),
        tokenizer=train_tokenizer(texts, arguments.vocabulary_size),
    )
    model = build_model(processor.tokenizer, arguments)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters", flush=True)
    pretrain(model, processor, sources, arguments)
    model.save_pretrained(arguments.output_dir)
    processor.save_pretrained(arguments.output_dir)


if __name__ == "__main__":
    main(HfArgumentParser(PretrainingArguments).parse_args_into_dataclasses()[0])
