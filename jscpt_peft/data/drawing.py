"""How a scene of `shapes` is drawn: one thing before a background, with clutter, in one of four drawing styles.

A scene says what is to be seen, `draw_scene` how it looks. Both use nothing but their own `random.Random`, so that a
scene and its image are functions of the scene's key alone. Styles share all geometry and differ in the last step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin
from random import Random

from PIL import Image, ImageChops, ImageDraw

from jscpt_peft.data.outlines import OUTLINES, Contour

IMAGE_SIZE = 64
OVERSAMPLING = 3  # Pillow draws without anti-aliasing
CANVAS = IMAGE_SIZE * OVERSAMPLING
TILE = 4  # pixels a side of a mosaic tile

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "orange": (240, 120, 20),
    "yellow": (242, 190, 25),
    "green": (40, 150, 65),
    "teal": (15, 150, 155),
    "blue": (35, 90, 205),
    "purple": (125, 60, 175),
    "pink": (235, 85, 150),
    "brown": (130, 80, 45),
    "black": (35, 35, 40),
}
BACKGROUNDS = ("plain", "striped", "dotted", "checked")


@dataclass(frozen=True)
class Scene:
    """What is to be seen. `size` is the thing's radius and `x`, `y` its centre as fractions of the image's side,
    `rotation` is in turns; `seed` draws everything that has no name (wobble, grain, the background's phase)."""

    shape: str
    style: str
    background: str
    colour: str
    ground: str
    size: float
    x: float
    y: float
    rotation: float
    clutter: int
    seed: str


def sample_scene(
    seed: str, shape: str, style: str, background: str, max_rotation: float = 0.1, max_clutter: int = 3
) -> Scene:
    """Draw all that the caller leaves open; a pure function of its arguments.

    Args:
        max_rotation: largest tilt to either side, in turns.
        max_clutter: most small things strewn about the main one.
    """
    rng = Random(seed)
    colour = rng.choice(list(COLOURS))
    ground = rng.choice([name for name in COLOURS if name != colour])
    # Mosaic tiles are coarse: a small thing could not be told from another.
    size = rng.uniform(0.34, 0.44) if style == "mosaic" else rng.uniform(0.22, 0.4)
    margin = 0.5 - size
    return Scene(
        shape=shape,
        style=style,
        background=background,
        colour=colour,
        ground=ground,
        size=size,
        x=0.5 + rng.uniform(-margin, margin),
        y=0.5 + rng.uniform(-margin, margin),
        rotation=rng.uniform(-max_rotation, max_rotation),
        clutter=rng.randint(0, max_clutter),
        seed=seed,
    )


def draw_scene(scene: Scene) -> Image.Image:
    """The scene as an RGB image of `IMAGE_SIZE` by `IMAGE_SIZE` pixels."""
    return STYLES[scene.style](scene, Random(f"{scene.seed}/draw"))


def _mix(colour: Colour, other: Colour, share: float) -> Colour:
    return tuple(round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))


def _place(contour: Contour, x: float, y: float, size: float, rotation: float) -> list[tuple[float, float]]:
    """The contour on the canvas: `x`, `y`, `size` as in `Scene`, in pixels of the canvas on return."""
    c, s = cos(2 * pi * rotation) * size * CANVAS, sin(2 * pi * rotation) * size * CANVAS
    return [(x * CANVAS + c * px - s * py, y * CANVAS + s * px + c * py) for px, py in contour]


def _background(kind: str, light: Colour, dark: Colour, rng: Random, coarseness: float = 1.0) -> Image.Image:
    image = Image.new("RGB", (CANVAS, CANVAS), light)
    draw = ImageDraw.Draw(image)
    period = rng.uniform(0.14, 0.22) * CANVAS * coarseness
    phase = rng.uniform(-1, 0) * period
    places = [phase + period * step for step in range(int(CANVAS / period) + 3)]
    if kind == "striped":
        slant = rng.uniform(-1, 1) * CANVAS
        first = -int(abs(slant) / period) - 1
        for step in range(first, len(places) - first):
            x = phase + period * step
            draw.line([(x, 0), (x + slant, CANVAS)], fill=dark, width=round(period * 0.4))
    elif kind == "dotted":
        for row, y in enumerate(places):
            for x in places:
                x += period / 2 * (row % 2)
                draw.ellipse([x, y, x + period * 0.55, y + period * 0.55], fill=dark)
    elif kind == "checked":
        for row, y in enumerate(places):
            for column, x in enumerate(places):
                if (row + column) % 2:
                    draw.rectangle([x, y, x + period, y + period], fill=dark)
    return image


def _things(scene: Scene, rng: Random) -> list[tuple[list[list[tuple[float, float]]], Colour]]:
    """Everything in the scene as (contours on the canvas, colour), from the back to the front; the main thing last."""
    things = []
    for _ in range(scene.clutter):
        outline = OUTLINES[rng.choice(list(OUTLINES))]
        size, angle = rng.uniform(0.06, 0.1), rng.uniform(0, 1)
        # Near the image's rim, where it seldom hides behind the main thing.
        x, y = 0.5 + 0.42 * cos(2 * pi * angle), 0.5 + 0.42 * sin(2 * pi * angle)
        turn = rng.uniform(0, 1)
        colour = COLOURS[rng.choice(list(COLOURS))]
        things.append(([_place(contour, x, y, size, turn) for contour in outline], colour))
    outline = [_place(contour, scene.x, scene.y, scene.size, scene.rotation) for contour in OUTLINES[scene.shape]]
    return [*things, (outline, COLOURS[scene.colour])]


def _filled(contours: list[list[tuple[float, float]]]) -> Image.Image:
    """A mask of the canvas that is 255 inside."""
    mask = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(mask)
    for number, contour in enumerate(contours):
        draw.polygon(contour, fill=0 if number else 255)
    return mask


def _stroked(contours: list[list[tuple[float, float]]], width: int, wobble: float, rng: Random) -> Image.Image:
    """A mask of the canvas that is 255 on the contours, each point moved by up to `wobble` pixels."""
    mask = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(mask)
    for contour in contours:
        moved = [(x + rng.uniform(-wobble, wobble), y + rng.uniform(-wobble, wobble)) for x, y in contour]
        draw.line([*moved, *moved[:2]], fill=255, width=width, joint="curve")
    return mask


def _hatching(angle: float, period: float, width: int) -> Image.Image:
    """A mask of the canvas with parallel lines."""
    mask = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(mask)
    c, s = cos(2 * pi * angle), sin(2 * pi * angle)
    reach = CANVAS * 0.75
    offset = -reach
    while offset < reach:
        x, y = CANVAS / 2 - s * offset, CANVAS / 2 + c * offset
        draw.line([(x - c * reach, y - s * reach), (x + c * reach, y + s * reach)], fill=255, width=width)
        offset += period
    return mask


def _grain(image: Image.Image, strength: float, rng: Random) -> Image.Image:
    """Add a noise between black and white; Pillow's own noise would draw on a global state."""
    noise = Image.frombytes("L", image.size, rng.randbytes(image.width * image.height)).convert("RGB")
    return Image.blend(image, noise, strength)


def _pale_background(scene: Scene, rng: Random, contrast: float = 0.25, coarseness: float = 1.0) -> Image.Image:
    ground, white = COLOURS[scene.ground], (255, 255, 255)
    share = rng.uniform(0.7, 0.85)
    light, dark = _mix(ground, white, share), _mix(ground, white, share - contrast)
    return _background(scene.background, light, dark, rng, coarseness)


def _flat(scene: Scene, rng: Random) -> Image.Image:
    image = _pale_background(scene, rng)
    for contours, colour in _things(scene, rng):
        image.paste(colour, mask=_filled(contours))
    return image.reduce(OVERSAMPLING)


def _outline(scene: Scene, rng: Random) -> Image.Image:
    image = _pale_background(scene, rng)
    width = rng.randint(5, 8)
    for contours, colour in _things(scene, rng):
        image.paste(colour, mask=_stroked(contours, width, 0, rng))
    return image.reduce(OVERSAMPLING)


def _chalk(scene: Scene, rng: Random) -> Image.Image:
    ground, board = COLOURS[scene.ground], (28, 34, 32)
    share = rng.uniform(0.75, 0.9)
    image = _background(scene.background, _mix(ground, board, share), _mix(ground, board, share - 0.3), rng)
    hatching = _hatching(rng.uniform(0, 1), rng.uniform(8, 12), 3)
    for contours, colour in _things(scene, rng):
        strokes = _stroked(contours, 5, 2.5, rng)
        mask = ImageChops.lighter(strokes, ImageChops.multiply(hatching, _filled(contours)))
        image.paste(_mix(colour, (255, 255, 255), 0.55), mask=mask)
    return _grain(image.reduce(OVERSAMPLING), 0.12, rng)


def _mosaic(scene: Scene, rng: Random) -> Image.Image:
    # A tile averages over its square: finer patterns would vanish.
    image = _pale_background(scene, rng, contrast=0.3, coarseness=1.7)
    for contours, colour in _things(scene, rng):
        image.paste(colour, mask=_filled(contours))
    tiles = _grain(image.reduce(TILE * OVERSAMPLING), 0.08, rng)
    tiles = tiles.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(tiles)
    grout = _mix(COLOURS[scene.ground], (245, 245, 240), 0.75)
    for place in range(0, IMAGE_SIZE, TILE):
        draw.line([(place, 0), (place, IMAGE_SIZE)], fill=grout)
        draw.line([(0, place), (IMAGE_SIZE, place)], fill=grout)
    return tiles


STYLES: dict[str, Callable[[Scene, Random], Image.Image]] = {
    "flat": _flat,
    "outline": _outline,
    "chalk": _chalk,
    "mosaic": _mosaic,
}
"""Style name -> how it draws; each style is a task of `shapes`."""
