"""A pinhole camera on the drawn road, which paints faces and soft lights from far to near."""

import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from demo.look import NEAR, SUPERSAMPLE, whole

LIGHT_GRID = 4  # the layer of soft light is this much coarser than the picture
HAZE = 120.0  # metres after which 63 % of a colour is lost to the air


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
