"""Measures and colours that the demo's drawn world is made of. Colours are (red, green, blue), 0 to 255."""

SUPERSAMPLE = 2  # drawn this much larger, then averaged down, so that edges are smooth
NEAR, FAR = 1.0, 170.0  # metres: what is nearer is clipped, what is farther is not drawn
DETAIL = 75.0  # metres up to which small parts and thin lines are drawn
LANE, SHOULDER = 3.5, 2.4  # widths of a lane and of the shoulder or parking beside the lanes
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


def mix(a, b, share):
    """Colour `a` with `share` (0 to 1) of colour `b` in it."""
    return tuple([p + (q - p) * share for p, q in zip(a, b)])


def whole(colour):
    """The colour as the whole numbers that PIL wants."""
    return tuple([min(int(c), 255) for c in colour])
