"""The sixteen drawers, one for each class: functions of a canvas and a random.Random."""

import math

from canvas import (
    BLACK,
    WHITE,
    blob,
    box,
    curve,
    distance,
    ellipse,
    hsv,
    mostly,
    moved,
    paint,
    palette,
    symmetric,
    tint,
)


def goldfish(canvas, random):
    """A fish from the side: forked veil tail, scales, one round eye."""
    color = mostly(random, [hsv(random.uniform(0.03, 0.08), 0.9, 0.95)], 0.75) or random.choice(
        [hsv(0.01, 0.85, 0.85), hsv(0.12, 0.6, 0.95), (235, 225, 215), (52, 48, 56)])
    fin, dark, height = tint(color, 0.35), tint(color, -0.35), random.uniform(0.34, 0.46)
    spread, droop = random.uniform(0.35, 0.62), random.uniform(-0.1, 0.15)
    tail = curve([(0.38, 0), (0.7, droop - spread), (1, droop - spread * 0.8), (0.78, droop - 0.08),
                  (0.8, droop + 0.1), (1, droop + spread * 0.9), (0.66, droop + spread)])
    back = curve([(-0.3, -height * 0.8), (-0.18, -height - 0.26), (0.12, -height - 0.2),
                  (0.32, -height * 0.5), (0, -height * 0.7)])
    belly = curve([(0, height * 0.8), (0.12, height + 0.26), (0.3, height + 0.16),
                   (0.25, height * 0.6)])
    for outline in (tail, back, belly):
        canvas.fill(outline, fin)
        canvas.line(outline + outline[:1], dark, 0.02)
    for step in range(-3, 4):
        canvas.line([(0.48, step * 0.03), (0.86, droop + step * spread * 0.24)], dark, 0.014)
    body = curve([(-0.9, 0.02), (-0.7, -height * 0.6), (-0.25, -height), (0.2, -height * 0.75),
                  (0.5, -0.1), (0.5, 0.1), (0.2, height * 0.75), (-0.25, height),
                  (-0.72, height * 0.6)])
    canvas.fill(body, color)
    if random.random() < 0.35:
        spot = random.choice([WHITE, (235, 90, 30), BLACK])
        canvas.shade(blob(random, random.uniform(-0.4, 0.2), -0.1, 0.25), spot, 0.9, 0.02)
    for row in range(-3, 4):
        for column in range(-3, 5):
            x, y = column * 0.12 + (row % 2) * 0.06 - 0.04, row * height * 0.24
            if abs(y) < height * (0.82 - max(0, x)):
                canvas.line(ellipse(x, y, 0.07, 0.065, -70, 70), dark, 0.014)
    canvas.shade(ellipse(-0.2, height * 0.9, 0.7, height * 0.5), BLACK, 0.4, 0.12)
    canvas.shade(ellipse(-0.25, -height * 0.6, 0.5, height * 0.25), WHITE, 0.5, 0.08)
    canvas.line(ellipse(-0.62, 0.02, 0.16, height * 0.62, -75, 75), dark, 0.025)
    canvas.fill(curve([(-0.3, 0.1), (-0.02, 0.12), (0.02, 0.34), (-0.16, 0.3)]), fin)
    canvas.fill(ellipse(-0.68, -0.08, 0.085, 0.085), WHITE)
    canvas.fill(ellipse(-0.69, -0.08, 0.055, 0.055), BLACK)
    canvas.line([(-0.88, 0.09), (-0.78, 0.12)], dark, 0.025)


def analog_clock(canvas, random):
    """A dial with hands, ticks or figures, in a round or square case."""
    case, face = palette(random, 2)
    face = mostly(random, [WHITE, (240, 232, 205)]) or random.choice([tint(face, 0.6), BLACK, face])
    ink = BLACK if sum(face) > 380 else WHITE
    square = random.random() < 0.25
    rim = random.uniform(0.78, 0.9)
    if square:
        canvas.fill(box(-0.93, -0.93, 0.93, 0.93), case)
        canvas.shade(box(-0.85, -0.85, 0.85, 0.85), BLACK, 0.3, 0.05)
    else:
        if random.random() < 0.2:
            for side in (-1, 1):
                canvas.fill(ellipse(side * 0.5, -0.82, 0.3, 0.26), tint(case, -0.2))
                canvas.line([(side * 0.5, 0.7), (side * 0.65, 0.98)], tint(case, -0.4), 0.12)
        canvas.fill(ellipse(0, 0, 0.97, 0.97), case)
        canvas.shade(ellipse(-0.15, -0.2, 0.75, 0.75), WHITE, 0.35, 0.1)
    canvas.fill(ellipse(0, 0, rim, rim), tint(case, -0.45))
    canvas.fill(ellipse(0, 0, rim - 0.03, rim - 0.03), face)
    figures = random.random() < 0.55
    for minute in range(60):
        turn, long = math.tau * minute / 60, minute % 5 == 0
        start = rim - (0.16 if long else 0.1)
        if long or random.random() < 0.9:
            canvas.line([(start * math.sin(turn), -start * math.cos(turn)),
                         ((rim - 0.06) * math.sin(turn), -(rim - 0.06) * math.cos(turn))],
                        ink, (0.045 if not figures else 0.03) if long else 0.012)
        if long and figures:
            canvas.write(str(minute // 5 or 12), (rim - 0.27) * math.sin(turn),
                         -(rim - 0.27) * math.cos(turn), 0.15, ink, 0.03)
    hour, minute = random.uniform(0, 12), random.uniform(0, 60)
    accent = random.choice([ink, ink, (200, 30, 30), (30, 60, 150)])
    hands = [(hour / 12, 0.45, 0.085, ink), (minute / 60, 0.68, 0.055, ink)]
    if random.random() < 0.6:
        hands.append((random.random(), 0.7, 0.02, (205, 40, 30)))
    for turn, length, width, color in hands:
        x, y = math.sin(math.tau * turn), -math.cos(math.tau * turn)
        canvas.line([(-0.12 * x, -0.12 * y), (length * x, length * y)], color, width)
    canvas.fill(ellipse(0, 0, 0.065, 0.065), accent)
    if random.random() < 0.5:
        gleam = curve([(-0.6, -0.3), (-0.2, -0.65), (0.3, -0.6), (-0.4, 0.1)])
        canvas.shade(gleam, WHITE, 0.3, 0.03)


def balloon(canvas, random):
    """A hot-air balloon: gores of two to four colours, ropes, a basket."""
    colors = palette(random, random.choice([2, 2, 3, 4]))
    gores, bands = random.choice([6, 8, 10]), 7
    pattern = random.choice([(1, 0), (1, 0), (0, 1), (1, 1), (1, -1)])
    fullness = random.uniform(0.68, 0.8)

    def point(gore, band):
        down = band / bands
        radius = max(0.02, fullness * math.sin(math.pi * (0.02 + down * 0.86)) ** 0.62)
        return radius * math.sin(math.pi * (gore / gores - 0.5)), -0.97 + 1.38 * down

    for rope in (-1, -0.4, 0.4, 1):
        canvas.line([(rope * 0.2, 0.34), (rope * 0.13, 0.78)], (70, 55, 45), 0.018)
    for gore in range(gores):
        for band in range(bands):
            edge = [point(gore, band + step / 6) for step in range(7)]
            far = [point(gore + 1, band + step / 6) for step in range(7)]
            color = colors[(pattern[0] * gore + pattern[1] * band) % len(colors)]
            canvas.fill(edge + far[::-1], color)
            canvas.line(edge, tint(color, -0.3), 0.012)
    canvas.shade(ellipse(-0.25, -0.5, 0.25, 0.32), WHITE, 0.45, 0.12)
    canvas.shade(ellipse(0.75, -0.2, 0.3, 0.8), BLACK, 0.4, 0.15)
    canvas.fill([(-0.15, 0.74), (0.15, 0.74), (0.12, 0.97), (-0.12, 0.97)], (150, 100, 55))
    for row in range(3):
        canvas.line([(-0.14, 0.78 + row * 0.07), (0.14, 0.78 + row * 0.07)], (100, 65, 35), 0.018)


def beacon(canvas, random):
    """A lighthouse on a rock: tapered tower in bands, gallery, lantern, dome."""
    wall, band = mostly(random, [(WHITE, (200, 40, 35)), (WHITE, (200, 40, 35)),
                                 (WHITE, (35, 50, 95))]) or palette(random, 2)
    foot, head, base = random.uniform(0.3, 0.4), random.uniform(0.17, 0.22), 0.8
    count, slant = random.choice([5, 7]), random.choice([0, 0, 0, 0.12])
    if random.random() < 0.6:
        for side in (-1, 1):
            light = (255, 240, 170)
            canvas.glow([(0, -0.66), (side * 1.3, -0.95), (side * 1.3, -0.45)], light, 0.55, 0.03)
    rock = curve([(-0.85, 1.02), (-0.6, 0.8), (-0.25, 0.7), (0.3, 0.72), (0.65, 0.82), (0.9, 1.02)])
    canvas.fill(rock, random.choice([(95, 85, 78), (120, 112, 100), (70, 72, 80)]))
    if random.random() < 0.4:
        canvas.fill(box(0.25, 0.52, 0.75, 0.86), tint(wall, -0.1))
        canvas.fill([(0.18, 0.54), (0.5, 0.32), (0.82, 0.54)], band)

    def half(y):
        return foot + (head - foot) * (base - y) / (base + 0.48)

    canvas.fill([(-head, -0.48), (head, -0.48), (foot, base), (-foot, base)], wall)
    for index in range(0, count, 2):
        top, bottom = (-0.48 + (base + 0.48) * (index + step) / count for step in (0, 1))
        canvas.fill([(-half(top), top), (half(top), min(base, top + slant)),
                     (half(bottom), min(base, bottom + slant)), (-half(bottom), bottom)], band)
    canvas.shade(box(0.06, -0.5, 0.45, base), BLACK, 0.45, 0.08)
    for y in (-0.15, 0.2):
        canvas.fill(box(-0.05, y, 0.05, y + 0.13), (45, 50, 65))
    canvas.fill(box(-0.08, 0.58, 0.08, base), (80, 50, 35))
    metal = random.choice([BLACK, tint(band, -0.5), (75, 80, 85)])
    canvas.fill(box(-head - 0.1, -0.53, head + 0.1, -0.46), metal)
    canvas.fill(box(-0.14, -0.78, 0.14, -0.53), (255, 244, 180))
    for x in (-0.14, -0.05, 0.05, 0.14):
        canvas.line([(x, -0.78), (x, -0.53)], metal, 0.02)
    for x in (-head - 0.08, head + 0.08):
        canvas.line([(x, -0.64), (x, -0.5)], metal, 0.02)
    canvas.line([(-head - 0.08, -0.63), (head + 0.08, -0.63)], metal, 0.02)
    canvas.fill(ellipse(0, -0.77, 0.19, 0.17, 180, 360), random.choice([band, metal]))
    canvas.line([(0, -0.94), (0, -1)], metal, 0.03)


def candle(canvas, random):
    """One or two burning candles, plain or twisted, sometimes in a saucer."""
    places = [(-0.34, 0.88), (0.34, 1.0)] if random.random() < 0.2 else [(0, 1.0)]
    wide = random.uniform(0.2, 0.28) if len(places) == 2 else random.uniform(0.24, 0.36)
    wax = mostly(random, [WHITE, (240, 225, 190), (185, 30, 40)]) or paint(random)
    dish = random.random() < 0.4
    if dish:
        brass = random.choice([(190, 150, 70), (150, 155, 165), paint(random)])
        canvas.fill(ellipse(0, 0.86, 0.9, 0.13), tint(brass, -0.3))
        canvas.fill(ellipse(0, 0.83, 0.86, 0.11), brass)
    for x, tall in places:
        top, foot = 0.85 - 1.25 * tall, 0.84 if dish else 0.94
        canvas.fill([*ellipse(x, foot, wide, 0.06, 0, 180), (x - wide, top), (x + wide, top)], wax)
        if random.random() < 0.3:
            for y in range(12):
                height = top + 0.16 + y * 0.12
                if height < foot - 0.05:
                    canvas.line([(x - wide, height), (x + wide, height - 0.14)],
                                tint(wax, -0.3), 0.025)
        canvas.shade(box(x + wide * 0.3, top, x + wide * 1.4, foot), BLACK, 0.45, 0.06)
        canvas.shade(box(x - wide * 0.8, top, x - wide * 0.5, foot), WHITE, 0.5, 0.03)
        canvas.fill(ellipse(x, top, wide, 0.06), tint(wax, 0.35))
        for drip in (-0.75, -0.2, 0.55):
            if random.random() < 0.7:
                length = random.uniform(0.1, 0.4)
                canvas.line([(x + drip * wide, top + 0.03), (x + drip * wide, top + length)],
                            tint(wax, 0.25), 0.06)
        canvas.line([(x, top), (x + 0.01, top - 0.1)], BLACK, 0.03)
        flame = [(0, -1), (0.32, -0.45), (0.4, 0.1), (0, 0.5), (-0.4, 0.1), (-0.32, -0.45)]
        bend = random.uniform(-12, 12)
        canvas.glow(ellipse(x, top - 0.24, 0.3, 0.38), (255, 200, 90), 0.6, 0.12)
        for size, color in ((0.3, (250, 140, 30)), (0.22, (255, 205, 70)), (0.12, (255, 250, 215))):
            canvas.fill(curve(moved(flame, x, top - 0.06 - size * 0.45, size, bend)), color)


def hourglass(canvas, random):
    """Two glass bulbs with running sand between wooden or metal plates."""
    frame = mostly(random, [(120, 75, 40), (165, 115, 60), (70, 45, 35)], 0.8) or paint(random)
    sand = mostly(random, [(225, 190, 125), (235, 215, 170), (205, 120, 60)]) or paint(random)
    wide, left = random.uniform(0.48, 0.6), random.uniform(0.2, 0.9)
    for side in (-wide - 0.12, wide + 0.12):
        canvas.line([(side, -0.85), (side, 0.85)], tint(frame, -0.3), 0.09)
    bulb = curve([(0.05, 0), (0.16, -0.14), (wide * 0.9, -0.4), (wide, -0.62), (wide * 0.9, -0.86)],
                 closed=False)
    for turn in (1, -1):
        edge = [(x, y * turn) for x, y in bulb]
        canvas.fill(symmetric(edge), (215, 235, 240), 0.45)
        if turn == 1:
            level = -0.12 - 0.55 * left
            canvas.fill(symmetric([(x * 0.93, y) for x, y in edge if y >= level]), sand)
        else:
            level = 0.2 + 0.6 * left
            slope = [(0, level), (wide * 0.4, (level + 0.86) / 2), (wide * 0.85, 0.86)]
            canvas.fill(symmetric(curve(slope, closed=False)), sand)
        for side in (1, -1):
            canvas.line([(x * side, y) for x, y in edge], (150, 175, 185), 0.035)
        canvas.line([(-wide * 0.72, turn * -0.72), (-wide * 0.74, turn * -0.52)], WHITE, 0.05)
    canvas.line([(0, -0.1), (0, 0.8)], sand, 0.035)
    for y in (-0.92, 0.92):
        canvas.fill(box(-wide - 0.22, y - 0.08, wide + 0.22, y + 0.08), frame)
        canvas.line([(-wide - 0.2, y - 0.05), (wide + 0.2, y - 0.05)], tint(frame, 0.35), 0.03)
        canvas.line([(-wide - 0.2, y + 0.06), (wide + 0.2, y + 0.06)], tint(frame, -0.4), 0.03)


def soccer_ball(canvas, random):
    """A ball of twelve pentagons and twenty hexagons, rotated at random in three dimensions."""
    golden = (1 + math.sqrt(5)) / 2
    corners = [corner for a in (-1, 1) for b in (-golden, golden)
               for corner in ((0, a, b), (a, b, 0), (b, 0, a))]
    for first, second in ((0, 1), (1, 2), (0, 2)):
        turn = random.uniform(0, math.tau)
        for index, corner in enumerate(corners):
            corner = list(corner)
            a, b = corner[first], corner[second]
            corner[first] = math.cos(turn) * a - math.sin(turn) * b
            corner[second] = math.sin(turn) * a + math.cos(turn) * b
            corners[index] = tuple(corner)

    def between(one, other, part):
        point = [a + (b - a) * part for a, b in zip(one, other)]
        length = math.hypot(*point)
        return [value / length for value in point]

    def arc(one, other):
        return [between(one, other, step / 6) for step in range(7)]

    def flat(point):
        x, y, depth = point
        rim = 1 if depth >= 0 else math.hypot(x, y)
        return 0.97 * x / rim, 0.97 * y / rim

    panel, patch = mostly(random, [(WHITE, BLACK)], 0.8) or palette(random, 2)
    canvas.fill(ellipse(0, 0, 0.97, 0.97), panel)
    seam = tint(patch, -0.3) if sum(panel) > 380 else tint(panel, -0.5)
    for corner in corners:
        near = [other for other in corners if 0.1 < math.dist(corner, other) < 2.1]
        for other in near:
            line = arc(between(corner, other, 1 / 3), between(corner, other, 1 / 2))
            if line[0][2] > 0:
                canvas.line([flat(point) for point in line if point[2] > -0.05], seam, 0.035)
        thirds = [between(corner, other, 1 / 3) for other in near]
        ring = [thirds.pop()]
        while thirds:
            thirds.sort(key=lambda point: -math.dist(point, ring[-1]))
            ring.append(thirds.pop())
        outline = [point for i in range(5) for point in arc(ring[i], ring[(i + 1) % 5])]
        if any(point[2] > 0.02 for point in outline):
            canvas.fill([flat(point) for point in outline], patch)
    canvas.shade(ellipse(0.6, 0.65, 0.7, 0.6), BLACK, 0.5, 0.25)
    canvas.shade(ellipse(-0.35, -0.4, 0.25, 0.22), WHITE, 0.5, 0.1)
    canvas.line(ellipse(0, 0, 0.96, 0.96), tint(seam, 0.1), 0.02)


def spider_web(canvas, random):
    """Radial threads joined by sagging rings; sometimes with a spider."""
    light = random.random() < 0.85
    thread, halo = ((240, 242, 246), BLACK) if light else ((30, 30, 36), WHITE)
    count, rounds = random.randint(9, 14), random.randint(6, 9)
    hub = random.uniform(-0.15, 0.15), random.uniform(-0.15, 0.15)
    turns = [math.tau * (index + random.uniform(-0.22, 0.22)) / count for index in range(count)]
    reach = [random.uniform(0.88, 1.1) for _ in range(count)]
    canvas.glow(ellipse(*hub, 0.95, 0.95), halo, 0.5, 0.1)

    def point(spoke, radius):
        turn, length = turns[spoke % count], reach[spoke % count] * radius
        return hub[0] * (1 - radius) + length * math.cos(turn), \
            hub[1] * (1 - radius) + length * math.sin(turn)

    width = random.uniform(0.022, 0.034)
    for spoke in range(count):
        canvas.line([point(spoke, 0), point(spoke, 1.15)], thread, width)
        for index in range(1, rounds + 1):
            radius = 0.94 * (index + random.uniform(-0.12, 0.12)) / rounds
            start, end = point(spoke, radius), point(spoke + 1, radius)
            middle = [0.5 * (a + b) * 0.91 + 0.09 * c for a, b, c in zip(start, end, hub)]
            canvas.line(curve([start, middle, end], closed=False), thread, width * 0.85)
    if random.random() < 0.4:
        x, y = point(random.randrange(count), random.uniform(0, 0.4))
        body = random.choice([(60, 35, 25), BLACK, (140, 90, 40)])
        for side in (-1, 1):
            for leg in (-0.16, -0.06, 0.06, 0.16):
                canvas.line([(x, y), (x + side * 0.14, y + leg * 0.9 - 0.04),
                             (x + side * 0.22, y + leg * 1.6)], body, 0.028)
        canvas.fill(ellipse(x, y + 0.07, 0.1, 0.13), body)
        canvas.fill(ellipse(x, y - 0.08, 0.065, 0.065), tint(body, 0.15))


def umbrella(canvas, random):
    """An open umbrella: a dome of gores with a scalloped rim, pole and crook."""
    colors = palette(random, random.choice([2, 2, 2, 3]))
    if random.random() < 0.35:
        colors = colors[:1]
    gores, height = random.choice([5, 6, 7, 8]), random.uniform(0.68, 0.9)
    rim, wood = 0.1, random.choice([BLACK, (110, 70, 40), (170, 170, 175), paint(random)])
    crook = [(0, -0.5), (0, 0.78)] + ellipse(0.14, 0.8, 0.14, 0.16, 180, 20)
    canvas.line(crook, wood, 0.06)
    canvas.line(crook[2:], tint(wood, 0.2), 0.075)

    def rib(gore, part):
        across, down = math.pi * (gore / gores - 0.5), math.pi / 2 * part
        return 0.98 * math.sin(across) * math.sin(down), rim - height * math.cos(down)

    canvas.fill(ellipse(0, rim, 0.95, 0.07), tint(colors[0], -0.6))
    for gore in range(gores):
        left, right = ([rib(side, step / 8) for step in range(9)] for side in (gore, gore + 1))
        start, wide = left[-1][0], right[-1][0] - left[-1][0]
        scallop = [(start + wide * part, rim - wide * part * (1 - part))
                   for part in (0.15, 0.3, 0.5, 0.7, 0.85)]
        color = colors[gore % len(colors)]
        canvas.fill(left + scallop + right[::-1], color)
        canvas.line(left, tint(color, -0.4), 0.02)
        canvas.line([left[-1], *scallop, right[-1]], tint(color, -0.35), 0.02)
    canvas.shade(ellipse(-0.35, -0.4, 0.25, 0.2), WHITE, 0.4, 0.12)
    canvas.shade(ellipse(0.85, 0, 0.4, 0.5), BLACK, 0.35, 0.15)
    canvas.line([(0, rim - height), (0, rim - height - 0.13)], wood, 0.05)


def yawl(canvas, random):
    """A sailing boat with a tall main mast and a small mizzen mast at the stern."""
    hull, stripe = palette(random, 2)
    sail = mostly(random, [WHITE, (240, 230, 205)], 0.75) or paint(random)
    second = random.choice([sail, sail, tint(paint(random), 0.2)])
    mast = random.choice([(110, 75, 45), (190, 190, 195), (60, 50, 45)])
    for x, top in ((0.05, -0.98), (0.66, -0.35)):
        canvas.line([(x, top), (x, 0.52)], mast, 0.04)
    belly = random.uniform(0.03, 0.12)
    sails = [((0.09, -0.92), (0.09, 0.34), (0.58, 0.36), second),
             ((0.01, -0.9), (-0.03, 0.32), (-0.78, 0.4), sail),
             ((0.69, -0.3), (0.69, 0.34), (0.98, 0.34), second)]
    for top, tack, clew, color in sails:
        side = 1 if clew[0] > tack[0] else -1
        middle = (top[0] + clew[0]) / 2 + side * belly, (top[1] + clew[1]) / 2
        outline = [tack, *curve([top, middle, clew], closed=False)]
        canvas.fill(outline, color)
        canvas.line(outline + [tack], tint(color, -0.3), 0.02)
        for part in (0.35, 0.6, 0.8):
            y = top[1] + (tack[1] - top[1]) * part
            canvas.line([(tack[0], y), (tack[0] + (clew[0] - tack[0]) * part, y)],
                        tint(color, -0.18), 0.015)
    canvas.line([(0.05, -0.98), (-0.95, 0.46)], mast, 0.014)
    canvas.fill(curve([(-1, 0.46), (-0.5, 0.5), (0.4, 0.53), (0.92, 0.47)], closed=False)
                + [(0.85, 0.72), (0.6, 0.8), (-0.5, 0.8), (-0.75, 0.7)], hull)
    canvas.line([(-0.86, 0.58), (-0.4, 0.62), (0.4, 0.63), (0.88, 0.58)], stripe, 0.05)
    canvas.fill([(-0.2, 0.5), (-0.14, 0.4), (0.36, 0.41), (0.42, 0.52)], tint(hull, 0.5))
    canvas.shade(box(-1, 0.7, 1, 0.85), BLACK, 0.4, 0.05)
    sea = hsv(random.uniform(0.5, 0.65), random.uniform(0.2, 0.7), random.uniform(0.5, 0.95))
    for row in range(3):
        wave = [(x / 10, 0.82 + row * 0.075 + 0.025 * math.sin(x * 1.6 + row * 2))
                for x in range(-10, 11)]
        canvas.line(wave, tint(sea, 0.5 - 0.3 * row), 0.05)


def crossword_puzzle(canvas, random):
    """A square grid of white and black cells, some of them filled in."""
    count = random.choice([7, 8, 9, 10, 11])
    paper = mostly(random, [WHITE, (240, 234, 215)], 0.8) or tint(paint(random), 0.75)
    ink, pencil = random.choice([BLACK, BLACK, tint(paint(random), -0.7)]), (60, 65, 110)
    filled, cell = random.uniform(0.1, 0.8), 1.84 / count
    canvas.fill(box(-1, -1, 1, 1), paper)
    black = set()
    while len(black) < count * count * 0.2:
        row, column = random.randrange(count), random.randrange(count)
        black |= {(row, column), (count - 1 - row, count - 1 - column)}
    for row in range(count):
        for column in range(count):
            left, top = -0.92 + column * cell, -0.92 + row * cell
            if (row, column) in black:
                canvas.fill(box(left, top, left + cell, top + cell), ink)
            elif random.random() < filled:
                letter = random.choice('ACEHILNOPRTUVX')
                canvas.write(letter, left + cell / 2, top + cell * 0.54, cell * 0.52, pencil,
                             cell * 0.11)
    for index in range(count + 1):
        at = -0.92 + index * cell
        canvas.line([(-0.92, at), (0.92, at)], ink, 0.022)
        canvas.line([(at, -0.92), (at, 0.92)], ink, 0.022)
    if random.random() < 0.3:
        x, y, turn = random.uniform(-0.4, 0.5), random.uniform(-0.2, 0.6), random.uniform(20, 70)
        for outline, color in ((box(0.2, -0.06, 1.1, 0.06), paint(random)),
                               ([(0.2, -0.06), (0.2, 0.06), (0, 0)], (225, 190, 140)),
                               ([(0.07, -0.02), (0.07, 0.02), (0, 0)], BLACK)):
            canvas.fill(moved(outline, x, y, 1, turn), color)


def traffic_light(canvas, random):
    """Three lamps in a housing on a pole or a cable, one of them lit."""
    shell = random.choice([BLACK, (45, 50, 48), (215, 165, 35), (40, 75, 55), (110, 112, 115)])
    wide, lit = random.uniform(0.34, 0.42), random.randrange(3)
    pole = random.choice([(90, 92, 95), (55, 58, 60), (150, 150, 145)])
    if random.random() < 0.6:
        canvas.line([(0, 0.8), (0, 1.4)], pole, 0.14)
    else:
        canvas.line([(0, -0.8), (0, -1.4)], pole, 0.06)
    if random.random() < 0.3:
        board = random.choice([BLACK, WHITE, (215, 165, 35)])
        canvas.fill(box(-wide - 0.15, -1, wide + 0.15, 1), board)
    round_corner = symmetric(ellipse(wide - 0.1, -0.85, 0.1, 0.1, -90, 0)
                             + ellipse(wide - 0.1, 0.85, 0.1, 0.1, 0, 90))
    canvas.fill(round_corner, shell)
    canvas.line(round_corner + round_corner[:1], tint(shell, -0.4), 0.03)
    canvas.shade(box(wide * 0.4, -1, wide * 1.2, 1), BLACK, 0.35, 0.06)
    lamps = ((235, 40, 35), (255, 190, 30), (40, 215, 100))
    radius = random.uniform(0.23, 0.27)
    for index, color in enumerate(lamps):
        y = (index - 1) * 0.61
        canvas.fill(ellipse(0, y, radius + 0.04, radius + 0.04), tint(shell, -0.55))
        canvas.fill(ellipse(0, y, radius, radius), color if index == lit else tint(color, -0.68))
        if index == lit:
            canvas.glow(ellipse(0, y, radius * 1.2, radius * 1.2), color, 0.5, 0.12)
            canvas.fill(ellipse(0, y, radius * 0.95, radius * 0.95), color)
            canvas.shade(ellipse(0, y, radius * 0.5, radius * 0.5), WHITE, 0.75, 0.06)
        else:
            canvas.shade(ellipse(-0.07, y - 0.08, 0.07, 0.05), WHITE, 0.4, 0.03)
        canvas.line(ellipse(0, y, radius + 0.03, radius + 0.03, 185, 355), tint(shell, 0.2), 0.06)


def plate(canvas, random):
    """A plate with a rim, plain or patterned, empty or with food on it."""
    flat, well = random.uniform(0.62, 1), random.uniform(0.58, 0.72)
    glaze = mostly(random, [WHITE, (238, 230, 212)], 0.6) or tint(paint(random), 0.3)
    inside = mostly(random, [glaze, tint(glaze, 0.3)], 0.8) or paint(random)
    trim = palette(random, 2)[0]
    while distance(trim, glaze) < 130:
        trim = paint(random)

    def ring(radius, y=0.0):
        return ellipse(0, y, radius, radius * flat)

    canvas.fill(ring(0.98, 0.05), tint(glaze, -0.45))
    canvas.fill(ring(0.98), tint(glaze, 0.1))
    pattern = random.choice(['plain', 'plain', 'band', 'dots', 'petals', 'edge', 'rays'])
    middle, steps = (0.98 + well) / 2, random.choice([12, 16, 20])
    if pattern == 'band':
        canvas.fill(ring(middle + 0.06), trim)
        canvas.fill(ring(middle - 0.04), glaze)
    elif pattern == 'edge':
        canvas.fill(ring(0.98), trim)
        canvas.fill(ring(0.9), glaze)
    for step in range(steps):
        turn = math.tau * step / steps
        x, y = middle * math.cos(turn), middle * math.sin(turn) * flat
        if pattern == 'dots':
            canvas.fill(ellipse(x, y, 0.06, 0.06 * flat), trim)
        elif pattern == 'petals':
            canvas.fill([(a, b * flat) for a, b in moved(ellipse(0, 0, 0.11, 0.05), x, y / flat, 1,
                                                         math.degrees(turn))], trim)
        elif pattern == 'rays':
            canvas.line([(x * 0.9, y * 0.9), (x * 1.1, y * 1.1)], trim, 0.03)
    canvas.line(ring(0.965), tint(glaze, -0.2), 0.025)
    canvas.fill(ring(well + 0.02), tint(inside, -0.3))
    canvas.fill(ring(well - 0.01, 0.015), inside)
    deep = well * flat
    canvas.shade(ellipse(-0.2, -deep * 0.75, well * 0.7, deep * 0.28), BLACK, 0.25, 0.08)
    canvas.shade(ellipse(0.25, deep * 0.7, well * 0.5, deep * 0.2), WHITE, 0.5, 0.08)
    if random.random() < 0.55:
        _food(canvas, random, flat, well)
    canvas.shade(ellipse(-0.6, -0.55 * flat, 0.22, 0.08), WHITE, 0.8, 0.05)


def _food(canvas, random, flat, well):
    def spot(reach):
        turn, radius = random.uniform(0, math.tau), well * reach * math.sqrt(random.random())
        return radius * math.cos(turn), radius * math.sin(turn) * flat

    dish = random.choice(['peas', 'egg', 'meat', 'pasta', 'biscuits'])
    if dish == 'egg':
        x, y = spot(0.25)
        canvas.fill([(a, b * flat) for a, b in blob(random, x, y, 0.34)], (252, 250, 244))
        canvas.fill(ellipse(x, y, 0.14, 0.14 * flat), (250, 185, 40))
    elif dish == 'pasta':
        color = random.choice([(240, 210, 120), (230, 170, 90)])
        for _ in range(45):
            (x, y), bend = spot(0.7), random.randrange(360)
            strand = ellipse(x, y, 0.14, 0.1 * flat, bend, bend + 200)
            canvas.line(strand, tint(color, random.uniform(-0.35, 0.3)), 0.03)
        canvas.fill(blob(random, 0, 0, 0.16), (185, 50, 30))
    elif dish == 'biscuits':
        color = random.choice([(195, 140, 75), (120, 75, 45), (220, 180, 120)])
        for _ in range(4):
            x, y = spot(0.6)
            canvas.fill(ellipse(x, y + 0.03, 0.17, 0.17 * flat), tint(color, -0.4))
            canvas.fill(ellipse(x, y, 0.17, 0.17 * flat), color)
            for _ in range(4):
                across, down = random.uniform(-0.1, 0.1), random.uniform(-0.08, 0.08) * flat
                canvas.fill(ellipse(x + across, y + down, 0.025, 0.02), (70, 40, 25))
    else:
        if dish == 'meat':
            canvas.fill([(a, b * flat) for a, b in blob(random, -0.15, -0.05, 0.3)], (125, 70, 40))
            canvas.shade(ellipse(-0.2, -0.12, 0.14, 0.07), WHITE, 0.3, 0.05)
        for _ in range(16):
            x, y = spot(0.75)
            color = random.choice([(90, 160, 60), (120, 185, 70), (235, 120, 40)])
            canvas.fill(ellipse(x, y + 0.02, 0.075, 0.07), tint(color, -0.4))
            canvas.fill(ellipse(x, y, 0.07, 0.065), color)


def mushroom(canvas, random):
    """One or two mushrooms: a cap with or without spots, gills, a thick stem."""
    places = [(0, 0, 1.0)] if random.random() < 0.8 else [(0.5, 0.38, 0.55), (-0.22, 0, 0.95)]
    cap = random.choice([(195, 45, 35), (150, 95, 55), (205, 160, 105), (225, 205, 175),
                         (235, 150, 60), (120, 100, 130), (95, 65, 45), (225, 195, 90)])
    stem = random.choice([WHITE, (235, 222, 195), (215, 190, 150)])
    thick, high = random.uniform(0.16, 0.27), random.uniform(0.5, 0.9)
    # Below 1 the cap is flat with a steep edge, above 1 it is pointed.
    sharp = random.choice([0.75, 1, 1, 1.35])
    spotted, grass = random.random() < 0.45, random.random() < 0.5
    for x, y, size in places:
        _toadstool(canvas.inset(x, y, size), random, cap, stem, thick, high, sharp)
        if spotted:
            for _ in range(11):
                turn, out = math.radians(random.uniform(190, 350)), random.uniform(0.1, 0.85)
                spot = blob(random, out * 0.9 * math.cos(turn), out * high * math.sin(turn) - 0.1,
                            random.uniform(0.04, 0.1))
                canvas.inset(x, y, size).fill(spot, (248, 242, 228))
        if grass:
            for blade in range(-7, 8):
                tip = blade * 0.1 + random.uniform(-0.08, 0.08), random.uniform(0.7, 0.88)
                green = hsv(random.uniform(0.2, 0.36), 0.6, random.uniform(0.3, 0.65))
                canvas.inset(x, y, size).line([(blade * 0.08, 1), tip], green, 0.03)


def _toadstool(canvas, random, cap, stem, thick, high, sharp):
    canvas.fill(curve([(-thick * 0.8, -0.1), (thick * 0.8, -0.1), (thick, 0.5), (thick * 1.35, 0.9),
                       (0, 0.97), (-thick * 1.35, 0.9), (-thick, 0.5)]), stem)
    canvas.shade(box(thick * 0.2, -0.1, thick * 1.5, 1), BLACK, 0.4, 0.06)
    canvas.shade(box(-thick, -0.1, thick, 0.15), BLACK, 0.45, 0.06)
    canvas.fill(ellipse(0, 0.0, 0.88, 0.17), tint(stem, -0.25))
    for step in range(-8, 9):
        gill = [(step * 0.02, 0.02), (step * 0.105, 0.13 - abs(step) * 0.012)]
        canvas.line(gill, tint(stem, -0.5), 0.016)
    dome = [(0.92 * a, -0.02 - (high + 0.08) * max(0, -b) ** sharp)
            for a, b in ellipse(0, 0, 1, 1, 180, 360)]
    canvas.fill([*ellipse(0, -0.02, 0.92, 0.1, 0, 180), *dome], cap)
    canvas.shade(ellipse(-0.3, -high * 0.6, 0.35, high * 0.25), WHITE, 0.45, 0.12)
    canvas.shade(ellipse(0.7, -0.1, 0.4, 0.4), BLACK, 0.4, 0.15)


def strawberry(canvas, random):
    """One or two heart-shaped berries with seeds and a green crown."""
    places = [(0, 0, 1.0, 0)]
    if random.random() < 0.15:
        places = [(-0.38, 0.1, 0.68, 18), (0.4, 0, 0.66, -20)]
    wide, shoulder = random.uniform(0.66, 0.82), random.uniform(-0.5, -0.35)
    for place in places:
        color = random.choice([hsv(random.uniform(-0.03, 0.02), 0.88, random.uniform(0.7, 0.92)),
                               hsv(0, 0.85, 0.85), hsv(0.99, 0.85, 0.6), hsv(0.03, 0.7, 0.95)])
        if random.random() < 0.12:
            color = random.choice([(240, 225, 190), (215, 220, 150)])
        _berry(canvas.inset(*place), random, color, wide, shoulder)


def _berry(canvas, random, color, wide, shoulder):
    canvas.fill(curve(symmetric([(0.3, -0.64), (wide * 0.9, shoulder - 0.08), (wide, -0.1),
                                 (wide * 0.66, 0.45), (0.2, 0.93)])), color)
    canvas.shade(ellipse(0.5, 0.35, 0.35, 0.7), BLACK, 0.4, 0.18)
    canvas.shade(ellipse(-0.33, -0.2, 0.2, 0.26), WHITE, 0.5, 0.1)
    for row in range(7):
        y = -0.42 + row * 0.19
        half = wide * (0.92 - max(0, y + 0.05) * 0.85)
        for column in range(-3, 4):
            x = (column + row % 2 * 0.5) * 0.23
            if abs(x) < half - 0.08:
                canvas.fill(ellipse(x, y + 0.015, 0.036, 0.052), tint(color, -0.45))
                canvas.fill(ellipse(x, y, 0.024, 0.04), (245, 215, 120))
    green = hsv(random.uniform(0.24, 0.36), random.uniform(0.5, 0.8), random.uniform(0.4, 0.7))
    canvas.line([(0, -0.6), (random.uniform(-0.15, 0.15), -0.97)], tint(green, -0.2), 0.07)
    for degrees in (-70, 70, -38, 38, 0):
        leaf = canvas.inset(0, -0.62, 1.05, degrees + random.uniform(-8, 8))
        leaf.fill(curve([(0, -0.08), (0.13, 0.16), (0, 0.46), (-0.13, 0.16)]),
                  tint(green, random.uniform(-0.2, 0.2)))
        leaf.line([(0, 0), (0, 0.46)], tint(green, -0.4), 0.018)


def daisy(canvas, random):
    """One or two flowers with narrow petals around a yellow disc, sometimes with stem and leaf."""
    petal = mostly(random, [WHITE, (245, 240, 225)]) or random.choice(
        [(240, 190, 215), (200, 180, 235), (250, 230, 140)])
    eye = hsv(random.uniform(0.1, 0.15), 0.85, random.uniform(0.8, 0.98))
    stem = random.random() < 0.3
    places = [(0, -0.2, 0.78) if stem else (0, 0, 0.98)]
    if random.random() < 0.12:
        places = [(0.45, 0.4, 0.5), (-0.32, -0.3, 0.66)]
    flat = random.uniform(0.7, 1)
    green = hsv(random.uniform(0.22, 0.38), 0.65, random.uniform(0.35, 0.6))
    for x, y, size in places:
        if stem:
            stalk = curve([(x, y), (x * 0.6 + 0.08, (y + 1) / 2), (x * 0.4, 1.05)], closed=False)
            canvas.line(stalk, green, 0.07)
            leaf = canvas.inset(*stalk[11], 1, -30)
            leaf.fill(curve([(0, 0), (0.16, -0.12), (0.46, -0.04), (0.2, 0.1)]), tint(green, 0.12))
        _flower(canvas.inset(x, y, size), random, petal, eye, flat)


def _flower(canvas, random, petal, eye, flat):
    count, heart = random.randint(13, 20), random.uniform(0.24, 0.34)
    for layer in (0.5, 0):
        for index in range(count):
            turn = 360 * (index + layer) / count + random.uniform(-4, 4)
            long, half = random.uniform(0.9, 1), 1.9 / count + 0.025
            outline = curve([(heart * 0.6, 0), (0.6, -half), (long * 0.95, -half * 0.6), (long, 0),
                             (long * 0.95, half * 0.6), (0.6, half)])
            outline = [(x, y * flat) for x, y in moved(outline, 0, 0, 1, turn)]
            canvas.fill(outline, tint(petal, -0.2 if layer else random.uniform(-0.07, 0)))
            canvas.line(outline + outline[:1], tint(petal, -0.4), 0.014)
    canvas.shade(ellipse(0, 0, heart * 1.3, heart * 1.3 * flat), (150, 120, 60), 0.5, 0.06)
    canvas.fill(ellipse(0, 0, heart, heart * flat), eye)
    for _ in range(45):
        turn, out = random.uniform(0, math.tau), heart * 0.95 * math.sqrt(random.random())
        canvas.fill(ellipse(out * math.cos(turn), out * math.sin(turn) * flat, 0.03, 0.03),
                    tint(eye, random.uniform(-0.45, 0.3)))


# ImageNet's class id: (WordNet id, drawer).
CLASSES = {
    1: ('n01443537', goldfish),
    409: ('n02708093', analog_clock),
    417: ('n02782093', balloon),
    437: ('n02814860', beacon),
    470: ('n02948072', candle),
    604: ('n03544143', hourglass),
    805: ('n04254680', soccer_ball),
    815: ('n04275548', spider_web),
    879: ('n04507155', umbrella),
    914: ('n04612504', yawl),
    918: ('n06785654', crossword_puzzle),
    920: ('n06874185', traffic_light),
    923: ('n07579787', plate),
    947: ('n07734744', mushroom),
    949: ('n07745940', strawberry),
    985: ('n11939491', daisy),
}
# Largest rotation in degrees, if it is not 8.
TILT = {crossword_puzzle: 15, daisy: 30, plate: 20, soccer_ball: 180, spider_web: 180,
        strawberry: 20, umbrella: 12}
# Drawers with figures or writing.
NOT_MIRRORED = (analog_clock, crossword_puzzle)
