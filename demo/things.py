"""What there is to paint along the drawn road: each function paints one thing, d metres ahead."""

import math
from itertools import pairwise

import numpy as np

from demo.look import (
    CARS,
    DETAIL,
    GLASS,
    LANE,
    LIT,
    MARK,
    NEAR,
    PANE,
    RAIL,
    RED,
    STEEL,
    TYRE,
    WARM,
    WHITE,
    YELLOW,
    mix,
)

GROUND = [float(d) for d in np.geomspace(800, 1.4, 31)]  # where the ground is cut into strips
DASH_PERIOD, DASH = 9.0, 3.5  # from one lane dash to the next, and the length of one


def ground(view):
    """The road and the land beside it in strips, from far to near, then the lane dashes."""
    w = view.world
    lines = [(x, YELLOW) for x in ((-w.median - 0.1, w.median + 0.1) if w.median else (-0.2, 0.2))]
    lines += [(-w.edge, MARK), (w.edge, MARK)]
    for far, near in pairwise(GROUND):
        view.flat(-400, 400, near, far, w.verge, 0.95)
        if w.pavement:
            view.flat(-w.half - 3.2, w.half + 3.2, near, far, w.pavement)
        view.flat(-w.half, w.half, near, far, w.asphalt)
        for x, colour in lines if near < DETAIL else []:
            view.flat(x - 0.09, x + 0.09, near, far, colour)
    for n in range(12):
        d = DASH_PERIOD * n - view.s % DASH_PERIOD
        for x in [w.median + lane * LANE for lane in range(1, w.lanes) if d + DASH > NEAR]:
            view.flat(x - 0.09, x + 0.09, d, d + DASH, MARK)
            view.flat(-x - 0.09, -x + 0.09, d, d + DASH, MARK)


def tree(view, d, x, tall, leaf, conifer):
    """A tree `tall` metres high."""
    wide = tall * 0.26
    view.ball(x, 0, d, wide, 0.12, (40, 50, 35), 0.7)  # its shadow
    view.upright(x - 0.03 * tall, x + 0.03 * tall, 0, tall * 0.5, d, (95, 72, 52))
    if conifer:
        for low, high, part in ((0.15, 0.6, 1.0), (0.38, 0.8, 0.78), (0.6, 1.0, 0.55)):
            base = [(x - wide * part, low * tall, d), (x + wide * part, low * tall, d)]
            view.face([*base, (x, high * tall, d)], leaf, 0.62 + 0.3 * low)
    else:
        puffs = (-0.5, 0.55, 0.75, 0.68), (0.5, 0.57, 0.75, 0.74), (0, 0.7, 1, 0.86), (-0.15, 0.78, 0.6, 1)
        for right, up, size, light in puffs:
            view.ball(x + right * wide, up * tall, d, size * wide, size * wide, leaf, light)


def street_lamp(view, d, x):
    """A street lamp with its arm over the road."""
    end = x - math.copysign(2.2, x)
    view.upright(x - 0.09, x + 0.09, 0, 7.5, d, STEEL)
    view.upright(end, x, 7.35, 7.5, d, STEEL)
    view.ball(end, 7.3, d, 0.5, 0.16, WHITE, own=0.9 if view.world.lamps else 0)
    view.glow(end, 7.3, d, 1.5, 1.5, WARM, 0.75)
    view.glow(end, 0, d, 4.5, 0.9, WARM, 0.3)


def building(view, d, x, length, tall, deep, wall, roof, lit, gable):
    """A building with its front at x: a house with a gable roof, or a town block with a shop and an awning.

    `lit` says which windows have light; it is used over and over.
    """
    side, near, far = math.copysign(1, x), max(d, NEAR), d + length
    back, ridge = x + side * deep, (x + side * deep / 2, tall + deep * 0.38)
    height, first = (2.8, 0.9) if gable else (3.4, 1.3)  # of a floor, and of the lowest window sill
    clear = min(max((DETAIL - d) / 40, 0), 1)  # small parts fade with distance

    view.box(min(x, back), max(x, back), 0, tall, d, far, wall)
    # The two faces have places (a, y): a = 0 to 1 along the face, y metres up.
    faces = [(length, lambda a, y: (x, y, d + a * length)), (deep, lambda a, y: (x + side * a * deep, y, d))]
    for wide, spot in faces[: 2 if d > NEAR else 1] if clear else []:
        columns, floors = int(wide / 3.6), int((tall - first + 1) / height)
        for floor, column in np.ndindex(floors, columns):
            a0, a1, y0 = (column + 0.2) / columns, (column + 0.8) / columns, first + floor * height
            y1 = y0 + height * 0.55
            if spot(a1, y0)[2] > NEAR:
                on = view.world.lamps and lit[(floor * 5 + column * 3) % len(lit)]
                pane = mix(wall, LIT if on else GLASS, clear)
                corners = [spot(a0, y0), spot(a1, y0), spot(a1, y1), spot(a0, y1)]
                view.face(corners, pane, 0.95, 0.75 * clear if on else 0)
    if gable:
        if d > NEAR:
            view.face([(x, tall, d), (back, tall, d), (*ridge, d)], wall, 0.85)
        eaves = x - side * 0.5, tall - 0.2
        view.face([(*eaves, near - 0.4), (*eaves, far), (*ridge, far), (*ridge, near - 0.4)], roof, 0.95)
    elif clear:
        awning = [(x, 3.8, near), (x, 3.8, far), (x - side * 1.2, 3.1, far), (x - side * 1.2, 3.1, near)]
        view.face(awning, mix(wall, roof, clear), 0.95)


def car(view, d, x, kind, paint, oncoming, driving):
    """A car, van or lorry, seen from behind, or from the front where `oncoming`."""
    wide, tall, length, *decks = CARS[kind]
    x0, x1, far, d = x - wide / 2, x + wide / 2, d + length, max(d, NEAR)
    belt = tall if kind == "lorry" else tall * 0.62
    view.flat(x0 - 0.25, x1 + 0.25, d - 0.3, far + 0.2, (22, 24, 28), 0.8)  # its shadow
    if d < DETAIL:
        view.box(x0 + 0.05, x1 - 0.05, 0, 0.55, far - 0.9, far - 0.3, TYRE)
        view.box(x0 + 0.05, x1 - 0.05, 0, 0.55, d + 0.4, d + 1.0, TYRE)
    view.box(x0, x1, 0.32, belt, d, far, paint)
    if kind != "lorry":
        front, back = decks[oncoming], decks[not oncoming]
        view.box(x0, x1, belt, tall, d + front, far - back, PANE, top=paint, lean=0.55)
    elif oncoming:
        view.upright(x0 + 0.15, x1 - 0.15, 1.7, 2.8, d, PANE)
    if d < DETAIL:
        view.upright(x0, x1, 0.28, 0.48, d, (45, 46, 50))
        view.upright(x - 0.3, x + 0.3, 0.5, 0.66, d, MARK)
    on = view.world.lamps and driving
    tint, off, size, strength = (WHITE, WHITE, 0.85, 0.8) if oncoming else (RED, (190, 35, 30), 0.5, 0.7)
    for lamp in (x0 + 0.26, x1 - 0.26):
        view.upright(lamp - 0.22, lamp + 0.22, 0.6, 0.82, d, tint if on else off, own=0.95 if on else 0)
        if on:
            view.glow(lamp, 0.72, d, size, size, tint, strength)
            view.glow(lamp, -0.6, d, 0.35, 1.1, tint, 0.3)  # its reflection on the road


def barrier(view, d, x, low, high, length):
    """A piece of guard rail, or of wall where `low` is 0."""
    view.face([(x, low, d), (x, low, d + length), (x, high, d + length), (x, high, d)], RAIL, 0.85)


def sign(view, d, x, boards):
    """A motorway sign across our side of the road, with its outer post at x."""
    for left, right, low in ((-0.15, 0.15, 0), (x - 0.15, x + 0.15, 0), (0, x, 6.8)):
        view.upright(left, right, low, 7.2, d, STEEL)
    for left in [0.9 + 5.2 * n for n in range(boards)]:
        view.upright(left, left + 4.7, 5.2, 8.2, d, MARK, 0.9, 0.3)
        view.upright(left + 0.12, left + 4.58, 5.32, 8.08, d, (15, 110, 75), 0.9, 0.3)
        for y in (6.0, 7.0):
            view.upright(left + 0.6, left + 3.5, y, y + 0.45, d, MARK, 0.9, 0.4)


def traffic_light(view, d, x, colour):
    """Two traffic lights on the arm of a mast at x, with a zebra crossing before them."""
    for n in range(int(view.world.edge / 0.6)):
        left = 0.3 - view.world.edge + 1.2 * n
        view.flat(left, left + 0.6, d - 11, d - 8, MARK)
    view.upright(x - 0.12, x + 0.12, 0, 6, d, STEEL)
    view.upright(x - 6, x, 5.8, 6, d, STEEL)
    for box in (x - 5.6, x - 2.6):
        y = 6.1 if colour == RED else 5.1
        view.upright(box - 0.4, box + 0.4, 4.6, 6.6, d, (40, 42, 40))
        view.ball(box, y, d, 0.3, 0.3, colour, own=1)
        view.glow(box, y, d, 0.8, 0.8, colour, 0.6)
