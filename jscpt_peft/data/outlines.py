"""The outlines of the things that `shapes` draws.

An outline is a tuple of closed contours in a box of [-1, 1] by [-1, 1] with y pointing down, as Pillow has it: the
first contour is the thing, those after it are cut out (the hole of a ring, the eye of a fish).
"""

from __future__ import annotations

from math import cos, pi, sin

Contour = tuple[tuple[float, float], ...]
Outline = tuple[Contour, ...]


def _arc(x: float, y: float, radius: float, start: float, stop: float, steps: int = 24) -> Contour:
    """Points of an arc about (x, y), both ends included; angles in turns, clockwise from the right (y points down)."""
    angles = [2 * pi * (start + (stop - start) * step / steps) for step in range(steps + 1)]
    return tuple((x + radius * cos(angle), y + radius * sin(angle)) for angle in angles)


def _circle(x: float, y: float, radius: float) -> Contour:
    return _arc(x, y, radius, 0, 1, steps=36)[:-1]


def _star() -> Contour:
    radii = (1.0, 0.42) * 5
    angles = [2 * pi * (step / 10 - 0.25) for step in range(10)]
    return tuple((radius * cos(angle), radius * sin(angle)) for radius, angle in zip(radii, angles, strict=True))


def _heart() -> Contour:
    angles = [2 * pi * step / 48 for step in range(48)]
    return tuple(
        (
            sin(angle) ** 3,
            -(13 * cos(angle) - 5 * cos(2 * angle) - 2 * cos(3 * angle) - cos(4 * angle)) / 15.5 - 0.12,
        )
        for angle in angles
    )


def _flower() -> Contour:
    angles = [2 * pi * step / 72 for step in range(72)]
    radii = [0.72 + 0.28 * sin(5 * angle) for angle in angles]
    return tuple((radius * cos(angle), radius * sin(angle)) for radius, angle in zip(radii, angles, strict=True))


def _fish() -> Contour:
    body = tuple((0.66 * x + 0.26, 0.52 * y) for x, y in _arc(0, 0, 1, 0.57, 1.43))
    return ((-0.95, -0.55), *body, (-0.95, 0.55), (-0.72, 0.0))


OUTLINES: dict[str, Outline] = {
    "circle": (_circle(0, 0, 0.88),),
    "square": (((-0.78, -0.78), (0.78, -0.78), (0.78, 0.78), (-0.78, 0.78)),),
    "triangle": (((0, -0.9), (0.95, 0.75), (-0.95, 0.75)),),
    "diamond": (((0, -1), (0.62, 0), (0, 1), (-0.62, 0)),),
    "star": (_star(),),
    "heart": (_heart(),),
    "cross": (
        (
            (-0.3, -0.92), (0.3, -0.92), (0.3, -0.3), (0.92, -0.3), (0.92, 0.3), (0.3, 0.3),
            (0.3, 0.92), (-0.3, 0.92), (-0.3, 0.3), (-0.92, 0.3), (-0.92, -0.3), (-0.3, -0.3),
        ),
    ),
    "ring": (_circle(0, 0, 0.92), _circle(0, 0, 0.5)),
    "moon": ((*_arc(0, 0, 0.95, 0.125, 0.875), *_arc(0.38, 0, 0.74, 0.8, 0.2)),),
    "arrow": (((-0.95, -0.26), (0.1, -0.26), (0.1, -0.72), (0.98, 0), (0.1, 0.72), (0.1, 0.26), (-0.95, 0.26)),),
    "lightning bolt": (((0.25, -1), (-0.6, 0.15), (-0.08, 0.15), (-0.3, 1), (0.6, -0.25), (0.06, -0.25), (0.5, -1)),),
    "house": (
        ((0, -0.95), (0.95, -0.15), (0.7, -0.15), (0.7, 0.85), (-0.7, 0.85), (-0.7, -0.15), (-0.95, -0.15)),
        ((-0.2, 0.2), (0.2, 0.2), (0.2, 0.84), (-0.2, 0.84)),
    ),
    "tree": (
        (
            (0, -1), (0.5, -0.4), (0.28, -0.4), (0.72, 0.15), (0.42, 0.15), (0.9, 0.65), (0.18, 0.65), (0.18, 1),
            (-0.18, 1), (-0.18, 0.65), (-0.9, 0.65), (-0.42, 0.15), (-0.72, 0.15), (-0.28, -0.4), (-0.5, -0.4),
        ),
    ),
    "cloud": (
        (
            *_arc(-0.55, 0.2, 0.4, 0.25, 0.72), *_arc(-0.15, -0.15, 0.5, 0.5, 0.88),
            *_arc(0.4, -0.05, 0.36, 0.68, 1.0), *_arc(0.6, 0.25, 0.36, 0.88, 1.25),
        ),
    ),
    "fish": (_fish(), _circle(0.5, -0.14, 0.1)),
    "flower": (_flower(), _circle(0, 0, 0.24)),
}  # fmt: skip
"""Class name -> outline; the order is that of the labels of `shapes`."""
