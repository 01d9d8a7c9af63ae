"""One clip's world: its road, its light, and all things that stand and drive along it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

from demo.look import (
    CARS,
    FAR,
    GREEN,
    LANE,
    LEAVES,
    MEADOWS,
    PAINTS,
    RED,
    ROOFS,
    SHOULDER,
    SUPERSAMPLE,
    WALLS,
    mix,
)
from demo.sky import LIGHTS, paint_sky
from demo.things import barrier, building, car, sign, street_lamp, traffic_light, tree

PANORAMA = 1.7  # width of the painted sky over the width of the picture: room to turn
# lanes each way, metres a second, metres of curve radius, height of hills, metres between cars, kinds of car
SCENES = {
    "city street": ((1, 2, 2), (6, 12), (500, 1500), 1.5, (15, 40), ("car", "car", "van", "van", "lorry")),
    "highway": ((2, 3, 3), (20, 28), (260, 900), 4.5, (20, 60), ("car", "car", "car", "van", "lorry")),
    "residential": ((1,), (5, 9), (240, 700), 4.0, (60, 100), ("car", "car", "van")),
}


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


def along(rng, start, end, low, high):
    """Yield places from `start` to `end`, `low` to `high` metres apart."""
    while start < end:
        yield start
        start += rng.uniform(low, high)
