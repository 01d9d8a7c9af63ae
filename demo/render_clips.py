"""Draw short road clips with labels, laid out like BDD100K, for people without the dataset.

    python -m demo.render_clips --out demo_out/videos_and_labels

Each clip is a small world of flat-coloured things (cars, houses, trees, …) along a bending road. A pinhole
camera drives through it and paints it from far to near; at dusk and at night soft lights are added on top.
World coordinates are metres: x to the right of the road's centre, y up from the road, s along the road, and
d = distance ahead of the camera. Colours are (red, green, blue), 0 to 255.
"""

import argparse
import hashlib
import json
import math
import os
import random
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from tqdm import tqdm

from errors import UserError, command

FPS = 30
HOLD = 3  # each drawing is shown for this many frames: 10 drawings a second, at a third of the work
ENCODER = {"crf": "21", "preset": "superfast"}
SUPERSAMPLE = 2  # drawn this much larger, then averaged down, so that edges are smooth
LIGHT_GRID = 4  # the layer of soft light is this much coarser than the picture
PANORAMA = 1.7  # width of the painted sky over the width of the picture: room to turn

NEAR, FAR = 1.0, 170.0  # metres: what is nearer is clipped, what is farther is not drawn
DETAIL = 75.0  # metres up to which small parts and thin lines are drawn
GROUND = [float(d) for d in np.geomspace(800, 1.4, 31)]  # where the ground is cut into strips
HAZE = 120.0  # metres after which 63 % of a colour is lost to the air
LANE, SHOULDER = 3.5, 2.4  # widths of a lane and of the shoulder or parking beside the lanes
DASH_PERIOD, DASH = 9.0, 3.5  # from one lane dash to the next, and the length of one

# With cycles of 4 and 3, every 12 clips show each scene by day, at night and at dusk.
TIMES = ("daytime", "night", "daytime", "dawn/dusk")
WEATHERS = ("clear", "partly cloudy", "overcast")
# lanes each way, metres a second, metres of curve radius, height of hills, metres between cars, kinds of car
SCENES = {
    "city street": ((1, 2, 2), (6, 12), (500, 1500), 1.5, (15, 40), ("car", "car", "van", "van", "lorry")),
    "highway": ((2, 3, 3), (20, 28), (260, 900), 4.5, (20, 60), ("car", "car", "car", "van", "lorry")),
    "residential": ((1,), (5, 9), (240, 700), 4.0, (60, 100), ("car", "car", "van")),
}
# width, height, length, and length of the part before the window: seen from behind, seen from the front
CARS = {"car": (1.8, 1.45, 4.4, 0.7, 1.3), "van": (1.95, 1.95, 4.8, 0.15, 1), "lorry": (2.5, 3.4, 8.5, 0, 0)}

WALLS = [(190, 110, 85), (216, 190, 150), (165, 170, 180), (120, 135, 160), (200, 160, 115), (228, 222, 210)]
WALLS += [(140, 85, 75), (105, 120, 120), (175, 140, 150), (230, 205, 140)]
ROOFS = [(150, 75, 60), (95, 95, 105), (120, 85, 65), (80, 70, 75)]
PAINTS = [(235, 235, 238), (40, 42, 48), (150, 155, 162), (180, 35, 35), (35, 75, 150), (210, 160, 50)]
PAINTS += [(90, 100, 110), (50, 105, 85), (225, 225, 220)]
LEAVES = [(70, 125, 55), (95, 140, 60), (50, 105, 60), (165, 130, 50), (180, 95, 45)]
MEADOWS = [(114, 143, 76), (135, 148, 84), (165, 155, 106), (96, 134, 80)]
GLASS, LIT, PANE, TYRE = (75, 95, 115), (255, 200, 115), (58, 72, 88), (25, 25, 28)
STEEL, RAIL, MARK, YELLOW = (95, 98, 104), (175, 176, 175), (232, 232, 226), (225, 182, 65)
WHITE, WARM, RED, GREEN = (255, 240, 215), (255, 190, 110), (255, 45, 30), (60, 255, 140)

# Skies are colours at the top, in the middle and at the horizon.
DAYS = [
    ((58, 122, 205), (140, 190, 236), (212, 228, 240)),
    ((88, 150, 222), (158, 202, 238), (222, 232, 238)),
]
DUSKS = [
    ((52, 58, 122), (205, 112, 128), (255, 186, 104)),
    ((92, 118, 178), (228, 164, 172), (255, 216, 168)),
]
DUSKS += [((40, 44, 92), (150, 86, 128), (255, 140, 84)), ((66, 96, 150), (220, 170, 130), (255, 222, 130))]
NIGHTS = [((7, 9, 26), (17, 21, 48), low) for low in [(46, 48, 82), (78, 60, 66), (40, 56, 78), (92, 66, 58)]]
# of a time of day: skies, grey of clouds, how much light things get, colour and glow of the sun, headlamps
LIGHTS = {
    "daytime": (DAYS, (196, 199, 203), (1.0, 0.98, 0.95), (255, 248, 222), 0.55, 0.0),
    "dawn/dusk": (DUSKS, (150, 128, 138), (0.66, 0.54, 0.56), (255, 244, 205), 0.55, 0.18),
    "night": (NIGHTS, (38, 36, 44), (0.21, 0.23, 0.33), (235, 235, 215), 0.25, 0.55),
}


def mix(a, b, share):
    """Colour `a` with `share` (0 to 1) of colour `b` in it."""
    return tuple([p + (q - p) * share for p, q in zip(a, b)])


def whole(colour):
    """The colour as the whole numbers that PIL wants."""
    return tuple([min(int(c), 255) for c in colour])


def along(rng, start, end, low, high):
    """Yield places from `start` to `end`, `low` to `high` metres apart."""
    while start < end:
        yield start
        start += rng.uniform(low, high)


# --- one clip's world ---------------------------------------------------------------------------------------


def world_of(rng, attributes, seconds, size):
    """Make up the road, the light, the sky and all things of a clip with these attributes."""
    w = SimpleNamespace(**attributes)
    city, highway = w.scene == "city street", w.scene == "highway"
    lanes, speed, radius, hill, gap, kinds = SCENES[w.scene]
    skies, cloud, w.ambient, w.sun, w.sun_glow, w.lamps = LIGHTS[w.timeofday]
    w.zenith, w.middle, w.horizon = rng.choice(skies)
    if w.weather == "overcast":
        w.zenith, w.middle = mix(w.zenith, cloud, 0.75), mix(w.middle, cloud, 0.75)
        w.horizon, w.ambient = mix(w.horizon, cloud, 0.4), [0.84 * part for part in w.ambient]
    w.sunny = rng.choice((-1, 1))  # which way the sunny walls look: -1 left, 1 right

    w.lanes = rng.choice(lanes)  # each way
    w.median = rng.uniform(0.9, 2.5) if highway else 0.0  # half the width between the two directions
    w.edge = w.median + w.lanes * LANE  # where the lanes end
    w.parking = city or (not highway and rng.random() < 0.5)
    w.half = w.edge + (SHOULDER if highway or w.parking else 0.4)  # where the asphalt ends
    # The way of the road to the side and upwards is a sine: height, length, phase.
    w.bend = (rng.choice((-1, 1)) * 80**2 / rng.uniform(*radius), 80.0, rng.uniform(0, 6.3))
    w.hill = (rng.uniform(0, hill), 75.0, rng.uniform(0, 6.3))
    grey, slab = rng.uniform(78, 116), rng.uniform(150, 185)
    w.asphalt, w.pavement = (grey, grey, grey + 6), None if highway else (slab, slab - 4, slab - 10)
    w.verge = (145, 142, 136) if city else rng.choice(MEADOWS)
    w.speed = rng.uniform(*speed)
    w.ego_x = w.median + (rng.randrange(w.lanes) + 0.5) * LANE + rng.uniform(-0.25, 0.25)
    w.eye = rng.uniform(1.25, 2.3)  # height of the camera
    w.level = rng.uniform(0.49, 0.61)  # where the horizon is in the picture: 0 = top, 1 = bottom
    w.bonnet = rng.random() < 0.3  # is the bonnet of our own car in the picture?

    width, height = (n * SUPERSAMPLE for n in size)
    w.sky = paint_sky(rng, w, int(width * PANORAMA), height, int(height * w.level))
    w.reach = FAR + w.speed * seconds
    w.things = roadside(rng, w, city, highway) + traffic(rng, w, rng.uniform(*gap), kinds)
    return w


def paint_sky(rng, world, width, height, horizon):
    """The far distance as a panorama: sky, sun or moon, clouds, then hills or a skyline."""
    w, h, floor = width // 4, height // 4, horizon / 4  # the sky is smooth: paint it small
    ys, xs = np.mgrid[0:h, 0:w].astype(np.float32)
    ramps = zip(world.horizon, world.middle, world.zenith)
    sky = np.stack([np.interp(1 - ys[:, :1] / floor, (0, 0.4, 1), ramp) for ramp in ramps], axis=-1)
    sky = np.repeat(sky.astype(np.float32), w, axis=1)
    if world.weather != "overcast":
        away = np.hypot(xs - w * rng.uniform(0.3, 0.7), ys - floor * rng.uniform(0.2, 0.75))[..., None] / h
        shine = np.maximum((0.032 - away) * 80, world.sun_glow * np.exp(-away * 7))
        sky += (world.sun - sky) * shine.clip(0, 1)
    image = Image.fromarray(sky.clip(0, 255).astype(np.uint8))

    # A cloud is a heap of puffs: shaded ones below, lit ones on top, both blurred.
    below, top = Image.new("L", (w, h)), Image.new("L", (w, h))
    dense = 70 if world.weather == "overcast" else 225
    for _ in range({"clear": 0, "partly cloudy": 9, "overcast": 16}[world.weather]):
        left, base, size = w * rng.random(), floor * rng.uniform(0.05, 0.75), h * rng.uniform(0.04, 0.1)
        for _ in range(7):
            x, y = left + rng.gauss(0, 1.5) * size, base - rng.random() * 0.5 * size
            r = size * rng.uniform(0.5, 1)
            ImageDraw.Draw(below).ellipse((x - r, y - r * 0.5, x + r, y + r * 0.5), fill=dense)
            ImageDraw.Draw(top).ellipse((x - r, y - r * 0.65, x + r, y + r * 0.1), fill=dense)
    shaded = mix(world.middle, world.horizon, 0.3)
    bright = mix(world.horizon, WHITE, 0.1 if world.lamps else 0.8)
    for layer, tint in ((below, shaded), (top, bright)):
        soft = layer.filter(ImageFilter.GaussianBlur(h * 0.015))
        image.paste(whole(mix(tint, world.zenith, 0.15)), mask=soft)
    image = image.resize((width, height), Image.BILINEAR)

    draw = ImageDraw.Draw(image)
    land = [c * a for c, a in zip(mix((70, 90, 100), world.zenith, 0.4), world.ambient)]
    for nearness in (0.3, 0.55):
        tall, step, phase = height * rng.uniform(0.03, 0.1), height // 20, rng.uniform(0, 6.3)
        profile = []
        for x in range(0, width + step, step):
            if world.scene == "city street":  # towers
                roof = horizon - rng.uniform(0.3, 2.5) * tall
                profile += [(x, roof), (x + step, roof)]
            else:
                swell = sum(math.sin(x / width * k + phase) / k for k in (5, 11))
                profile.append((x, horizon - tall * (1 + 3 * swell)))
        colour = whole(mix(world.horizon, land, nearness))
        draw.polygon([(0, height), *profile, (width, height)], fill=colour)
    return image


# --- the camera ---------------------------------------------------------------------------------------------


class View:
    """One moment of a clip: gathers faces and lights in metres, then paints them all at once."""

    def __init__(self, world, time, size):
        self.world, self.s = world, world.speed * time
        self.width, self.height = (n * SUPERSAMPLE for n in size)
        self.focal, self.horizon = self.height * 0.95, self.height * world.level
        self.faces, self.lights = [], []

    def drift(self, wave, d, sin=math.sin):
        """How far one of the road's two waves has left the straight line ahead after d metres."""
        tall, length, phase = wave
        here = self.s / length + phase
        return tall * (sin(here + d / length) - sin(here) - d / length * math.cos(here))

    def pixels(self, places):
        """For places (x, y, d), an array of shape (n, 3): their pixels, (n, 2), and pixels a metre, (n,)."""
        d = np.maximum(places[:, 2], NEAR)
        x = places[:, 0] + self.drift(self.world.bend, d, np.sin) - self.world.ego_x
        y = places[:, 1] + self.drift(self.world.hill, d, np.sin) - self.world.eye
        scale = self.focal / d
        return np.stack((self.width / 2 + x * scale, self.horizon - y * scale), axis=-1), scale

    def face(self, corners, colour, light=1.0, own=0.0):
        """Add a flat polygon of corners (x, y, d), or the oval between two corners.

        `light` is how much of the sky's light it gets, `own` how much it shines itself, both 0 to 1.
        """
        self.faces.append((corners, colour, light, own))

    def upright(self, x0, x1, y0, y1, d, colour, light=0.85, own=0.0):
        """Add a rectangle that faces us."""
        self.face(((x0, y0, d), (x1, y0, d), (x1, y1, d), (x0, y1, d)), colour, light, own)

    def flat(self, x0, x1, d0, d1, colour, light=1.0, y=0.0):
        """Add a lying rectangle."""
        self.face(((x0, y, d0), (x1, y, d0), (x1, y, d1), (x0, y, d1)), colour, light)

    def box(self, x0, x1, y0, y1, d0, d1, colour, top=None, lean=0.0):
        """Add the sides that we see of a box; its upper side may have another colour and be smaller."""
        near, inset = max(d0, NEAR), 0.35 * lean
        side = 1 if (x0 + x1) / 2 + self.drift(self.world.bend, near) < self.world.ego_x else -1
        x, top_x = (x1, x1 - inset) if side > 0 else (x0, x0 + inset)
        a, b = near + lean, d1 - lean  # from where to where the upper side goes
        light = 0.97 if side == self.world.sunny else 0.7
        self.face(((x, y0, near), (x, y0, d1), (top_x, y1, b), (top_x, y1, a)), colour, light)
        if y1 < 3:
            self.flat(x0 + inset, x1 - inset, a, b, top or colour, y=y1)
        if d0 > 0:
            corners = (x0, y0, near), (x1, y0, near), (x1 - inset, y1, a), (x0 + inset, y1, a)
            self.face(corners, colour, 0.85)

    def ball(self, x, y, d, wide, tall, colour, light=1.0, own=0.0):
        """Add an oval with radii `wide` and `tall`."""
        self.face(((x - wide, y + tall, d), (x + wide, y - tall, d)), colour, light, own)

    def glow(self, x, y, d, wide, tall, colour, strength):
        """Add a soft light with radii `wide` and `tall`: the light of the face added last, its lamp."""
        if self.world.lamps and d > NEAR:
            self.lights.append((x, y, d, wide, tall, *colour, strength, len(self.faces) - 1))

    def picture(self):
        """The picture at its final size."""
        world, room = self.world, self.world.sky.width - self.width
        tall, length, phase = world.bend
        heading = tall / length * math.cos(self.s / length + phase)
        left = int(min(max(room / 2 + heading * self.focal, 0), room))
        image = world.sky.crop((left, 0, left + self.width, self.height))

        all_corners, colour, light, own = zip(*self.faces)
        places = np.array([place for corners in all_corners for place in corners])
        counts = np.array([len(corners) for corners in all_corners])
        starts = np.cumsum(counts) - counts
        points = self.pixels(places)[0]
        d = np.add.reduceat(np.maximum(places[:, 2], NEAR), starts) / counts
        lamp, own = world.lamps * np.exp(-(((d - 7) / 16) ** 2)), np.array(own)
        air = ((1 - np.exp(-d / HAZE)) * (1 - 0.6 * own))[:, None]
        lit = np.array(light)[:, None] * (np.array(world.ambient) + lamp[:, None])
        colour = np.array(colour) * np.maximum(lit, own[:, None]) * (1 - air) + np.array(world.horizon) * air
        colour = colour.clip(0, 255).astype(int)
        inks = (colour << (0, 8, 16)).sum(axis=1).tolist()  # colours as PIL packs them
        draw, flat = ImageDraw.Draw(image), points.ravel().tolist()
        for start, count, ink in zip((starts * 2).tolist(), (counts * 2).tolist(), inks):
            (draw.ellipse if count == 4 else draw.polygon)(flat[start : start + count], fill=ink)

        def shows(light):  # is the middle of its lamp out of the picture, or not painted over?
            n = light[-1]
            u, v = points[starts[n] : starts[n] + counts[n]].mean(axis=0)
            inside = 0 <= u < self.width and 0 <= v < self.height
            return not inside or image.getpixel((int(u), int(v))) == tuple(colour[n])

        lights = [light for light in self.lights if shows(light)]
        if world.bonnet:
            box = (-0.12 * self.width, 0.93 * self.height, 1.12 * self.width, 1.4 * self.height)
            draw.ellipse(box, fill=whole(40 * part for part in world.ambient))
        image = image.reduce(SUPERSAMPLE)
        return ImageChops.screen(image, self.light_layer(lights, image.size)) if lights else image

    def light_layer(self, lights, size):
        """A picture of these soft lights alone."""
        step, lights = LIGHT_GRID * SUPERSAMPLE, np.array(lights, np.float32)
        centre, scale = self.pixels(lights[:, :3])
        radius = lights[:, 3:5] * scale[:, None]
        strength = lights[:, 8] * np.exp(-lights[:, 2] / HAZE)
        strength *= np.minimum(radius[:, 0] / step, 1)  # a light smaller than a cell of the grid is fainter

        def bell(count, axis):  # 1 at the centre of a light; rows are lights, columns cells of the grid
            away = (np.arange(count) + 0.5) * step - centre[:, [axis]]
            return np.exp(-np.minimum((away / np.maximum(radius[:, [axis]], step)) ** 2, 20))

        across, down = bell(self.width // step, 0), bell(self.height // step, 1)
        parts = (lights[:, 5:8] * strength[:, None]).T[:, :, None]  # red, green and blue of every light
        layer = np.stack([(down * part).T @ across for part in parts], axis=-1)
        return Image.fromarray(layer.clip(0, 255).astype(np.uint8)).resize(size, Image.BILINEAR)


# --- what there is to paint: each function paints one thing, d metres ahead ---------------------------------


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


# --- where things stand -------------------------------------------------------------------------------------


@dataclass
class Thing:
    """Something `s` metres along the road and `x` beside it, which moves at `speed` metres a second."""

    s: float
    x: float
    paint: Callable  # of a view, d and x
    length: float = 0.0
    speed: float = 0.0
    under: float = 0.0  # it is painted before things up to this much farther away


def roadside(rng, w, city, highway):
    """What stands beside the road of world `w`, from a little behind the camera on."""
    things = []
    leaves = [*rng.sample(LEAVES[:3], 2), rng.choice(LEAVES)]
    wooded, lamp_gap, lamps_both = rng.uniform(0.3, 1), rng.uniform(22, 34), city or rng.random() < 0.5
    low, high = rng.choice(((6, 12), (9, 20), (14, 34)))  # metres: how tall the city is here

    def add(s, x, kind, **look):
        length = look.get("length", 0.0)
        things.append(Thing(s, x, partial(kind, **look), length, under=length))

    def add_building(s, x, length, tall, deep, roofs, gable=False):
        lit = [rng.random() < 0.45 for _ in range(11)]
        look = {"wall": rng.choice(WALLS), "roof": rng.choice(roofs), "lit": lit, "gable": gable}
        add(s, x, building, length=length, tall=tall, deep=deep, **look)

    def add_tree(s, x, tall, conifer=False):
        add(s, x, tree, tall=tall, leaf=rng.choice(leaves), conifer=conifer)

    for side in (1, -1):
        for s, after in pairwise(along(rng, -25, w.reach, 10, 20)):
            room, x = after - s, side * (w.half + rng.uniform(3.2, 5.5))
            if city:
                add_building(s, x, room - rng.choice((0, 0, 1, 4)), rng.uniform(low, high), 14, PAINTS)
            elif not highway:
                x, tall = x + side * rng.uniform(1.5, 4), rng.choice((3.0, 3.2, 5.8))
                add_building(s, x, room - rng.uniform(2, 4), tall, rng.uniform(7, 10), ROOFS, gable=True)
            elif rng.random() < 0.1:
                add_building(s, x + side * 14, 2 * room, rng.uniform(7, 12), 18, WALLS)
        # Woods beside a highway, else trees along the pavement.
        for s in along(
            rng, rng.uniform(-20, 5), w.reach, *((1, 14 / wooded) if highway else (8, 22 / wooded))
        ):
            if highway:
                add_tree(s, side * (w.half + rng.uniform(5, 24)), rng.uniform(6, 13), rng.random() < 0.4)
            else:
                add_tree(s, side * (w.half + 2.2), rng.uniform(4.5, 8))
        for s in along(rng, -lamp_gap * rng.random(), w.reach, lamp_gap, lamp_gap):
            if side > 0 or lamps_both:
                add(s, side * (w.half + 0.9), street_lamp)
    landmark = rng.uniform(30, 110)
    if city:
        add(landmark, w.half + 1, traffic_light, colour=rng.choice((RED, GREEN, GREEN)))
    if highway:
        if rng.random() < 0.6:
            add(landmark, w.half + 1, sign, boards=rng.choice((1, 2)))
        rails = [-w.half - 0.4, 0, w.half + 0.4] if rng.random() < 0.6 else [0]
        low, high = rng.choice(((0.4, 0.8), (0, 1.0)))
        for s, x in [(s, x) for s in along(rng, -20, w.reach, 6, 6) for x in rails]:
            add(s, x, barrier, low=low, high=high, length=6)
    return things


def traffic(rng, w, gap, kinds):
    """Cars that go our way, cars that come towards us, and parked cars; `gap` metres between them."""
    things = []

    def add(s, x, oncoming, speed, kind):
        paint = partial(car, kind=kind, paint=rng.choice(PAINTS), oncoming=oncoming, driving=speed != 0)
        things.append(Thing(s, x, paint, CARS[kind][2], speed))

    for x in [w.median + (lane + 0.5) * LANE for lane in range(w.lanes)]:
        start, speed = rng.uniform(-8, 25), w.speed * rng.uniform(0.75, 1.2)
        if abs(x - w.ego_x) < LANE / 2:  # our own lane: keep a distance
            start, speed = rng.uniform(11, 32), w.speed * rng.uniform(0.95, 1.05)
        for s in along(rng, start, w.reach, 9 + 0.2 * gap, 9 + 1.2 * gap):
            add(s, x, False, speed, rng.choice(kinds))
        speed = -w.speed * rng.uniform(0.8, 1.1)
        for s in along(rng, rng.uniform(10, 40), 2 * w.reach, 9 + 0.2 * gap, 9 + 1.2 * gap):
            add(s, -x, True, speed, rng.choice(kinds))
    for side in (1, -1):
        for s in along(rng, rng.uniform(-5, 15), w.reach, 5.8, 14):
            if w.parking and rng.random() < 0.75:
                add(s, side * (w.half - 1.15), side < 0, 0, rng.choice(("car", "car", "van")))
    return things


# --- clips and files ----------------------------------------------------------------------------------------


def describe(seed, split, index, seconds, size):
    """Name, attributes and source of chance of one clip of a split; the same arguments give the same clip."""
    digest = hashlib.sha256(repr((seed, split, index, seconds, size)).encode()).hexdigest()
    rng = random.Random(digest)
    scene, timeofday = list(SCENES)[index % len(SCENES)], TIMES[index % len(TIMES)]
    attributes = {"weather": rng.choice(WEATHERS), "scene": scene, "timeofday": timeofday}
    return f"{digest[:8]}-{digest[8:16]}", attributes, rng


def drawings(rng, attributes, seconds, size):
    """Yield the pictures of a clip, HOLD / FPS seconds apart, `size` = (width, height) pixels."""
    world = world_of(rng, attributes, seconds, size)
    for n in range(0, round(seconds * FPS), HOLD):
        view = View(world, n / FPS, size)
        ground(view)
        queue = []
        for thing in world.things:
            d = thing.s + thing.speed * n / FPS - view.s
            if d + thing.length > NEAR and d < FAR:
                away = math.hypot(max(d, 0), thing.x - world.ego_x)
                queue.append((away + thing.under, d, thing))
        for _, d, thing in sorted(queue, key=lambda entry: -entry[0]):
            thing.paint(view, d, thing.x)
        yield view.picture()


def write_clip(folder, seed, split, index, seconds, size):
    """Render one clip into `folder`; it appears there whole or not at all."""
    name, attributes, rng = describe(seed, split, index, seconds, size)
    part = folder / f"{name}.part"
    with av.open(str(part), "w", format="mov") as file:
        stream = file.add_stream("libx264", rate=FPS, options=ENCODER)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.gop_size, stream.thread_count = FPS, 1
        for n, picture in enumerate(drawings(rng, attributes, seconds, size)):
            frame = av.VideoFrame.from_image(picture).reformat(format="yuv420p")
            for frame.pts in range(n * HOLD, (n + 1) * HOLD):
                file.mux(stream.encode(frame))
        file.mux(stream.encode())
    os.replace(part, folder / f"{name}.mov")


@command
def main(argv=None):
    """Render the train and val clips that are missing, then write their labels."""
    parser = argparse.ArgumentParser(description="Draw BDD100K-style road clips with labels.")
    parser.add_argument("--out", type=Path, required=True, help="folder to fill")
    parser.add_argument("--train", type=int, default=3000, help="number of clips (default %(default)s)")
    parser.add_argument("--val", type=int, default=64, help="number of clips (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.2, help="length of a clip (default %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 180), help="pixels (default 320 180)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    args = parser.parse_args(argv)
    size = tuple(args.size)
    if min(args.train, args.val) < 0 or args.workers < 1 or args.seconds * FPS < 1:
        raise UserError("--train and --val must be 0 or more, --workers 1 or more, --seconds 0.04 or more")
    if min(size) < 64 or any(n % 2 for n in size):
        raise UserError(f"--size {size[0]} {size[1]}: give even numbers from 64 on, such as 640 360")

    jobs, labels = [], {}
    for split, count in (("train", args.train), ("val", args.val)):
        folder = args.out / "videos" / split
        folder.mkdir(parents=True, exist_ok=True)
        there, entries = {path.stem for path in folder.glob("*.mov")}, []
        for index in range(count):
            job = (args.seed, split, index, args.seconds, size)
            name, attributes, _ = describe(*job)
            label = {"name": f"{name}.jpg", "attributes": attributes, "timestamp": 10000, "labels": []}
            entries.append(label)
            if name not in there:
                jobs.append((folder, *job))
            there.discard(name)
        if there:
            raise UserError(f"{folder}: has {len(there)} clips of other arguments; remove it or change --out")
        labels[args.out / "labels" / "det_20" / f"det_{split}.json"] = json.dumps(entries, indent=1)

    if jobs:
        os.environ["OMP_NUM_THREADS"] = "1"  # for the workers: each is one thread of numpy
        ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this process to handle
        with ProcessPoolExecutor(args.workers, get_context("spawn"), ignore) as pool:
            list(tqdm(pool.map(write_clip, *zip(*jobs)), total=len(jobs), unit="clip"))
    for path, text in labels.items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".part").write_text(text)
            os.replace(path.with_suffix(".part"), path)
    print(f"{args.out}: {args.train} train and {args.val} val clips, {len(jobs)} of them rendered now")


if __name__ == "__main__":
    main()
