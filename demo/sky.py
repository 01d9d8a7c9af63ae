"""Light and sky of the drawn world, by time of day and weather."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from demo.look import WHITE, mix, whole

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
