"""How good input is spoiled: bytes, JSON and YAML with what people, disks and programs do to them."""

import json
import math
import random

import yaml

# Values as they may stand in a YAML file.
ODD = """
true | false | yes | ~ | "" | " " | 0 | -1 | 1 | 2 | 3 | 7 | 100000 | 2147483648 | 9223372036854775808
18446744073709551616 | 0.5 | -0.0 | 1.5 | 1e-4 | 1.0e-320 | 1.0e+308 | 1.0e+400 | 1e308 | .nan | .inf
-.inf | nan | inf | "5" | "5.0" | "a" | "a\\nb" | "a\\0b" | "a\\eb" | "\\uD800" | "\\u2028" | "é" | . | ..
../.. | / | a/b | [] | {} | [1] | [a] | [~] | [1, 2] | [0.5, 1] | [1, 1] | [[1]] | [daytime, daytime]
{a: 1} | {1: 2} | {~: 1} | {[1]: 2} | {{a: 1}: 2} | {kind: titok} | {kind: vqgan} | {kind: [1]} | {kind: ~}
&a [*a] | &a {a: *a} | *a | !!binary "a" | !!binary aGVsbG8= | !!set {a} | !!omap [a: 1] | !!pairs [a: 1]
!!int "x" | !!float "y" | !!int 08 | !!bool maybe | !!null 5 | !!str 5 | !!timestamp 5 | !!map 5 | !!seq 5
!!python/object/apply:os.getpid [] | !a 5 | 2024-01-01 | 2024-13-01 | 2024-01-01 25:00:00 | 190:20:30 | 0x1f
0x | 0b2 | 0o17 | 08 | 1_000 | _ | = | << | @a | %a | auto | none | titok | vqgan | vit | conv | bf16 | fp32
arccos | [weather] | [weather, weather] | [colour]
"""
ODD_VALUES = [*(value.strip() for line in ODD.split("\n") for value in line.split(" | ") if value.strip())]
ODD_VALUES += ["9" * 5000, "1e" + "9" * 400, '"' + "a" * 5000 + '"', "[" * 100 + "]" * 100]
ODD_JSON = [None, True, 0, -1, 1, 2, 3, 0.5, 1e308, 100_000, 2**31, 2**63, 10**30, math.nan, math.inf]
ODD_JSON += ["", "a", "a\nb", "a\0b", "\ud800", "..", "/", "5", "x" * 300, "x" * 5000]
ODD_JSON += [[], {}, [1], ["a"], [[]], {"a": 1}, [None]]


def spoil_bytes(rng: random.Random, content: bytes) -> bytes:
    """Other bytes: cut off, flipped, inserted, left out, repeated or swapped."""
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        place = rng.randrange(len(content) + 1)
        # the heads of files say how to read the rest
        place = min(place, rng.randrange(64)) if rng.random() < 0.3 else place
        length = rng.choice((1, 1, 4, 16, 256))
        content = rng.choice(
            (
                content[:place],
                content[:place] + rng.randbytes(length) + content[place:],
                content[:place] + rng.randbytes(length) + content[place + length :],
                content[:place]
                + bytes([rng.choice((0, 127, 128, 255))]) * length
                + content[place + length :],
                content[:place] + content[place + length :],
                content[:place] + content[place : place + length] * 3 + content[place + length :],
            )
        )
    return content


def spoil_json(rng: random.Random, value: object) -> object:
    """A copy of a JSON value with one part replaced, left out, added or put elsewhere."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        copy = value.copy()
        key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
        action = rng.random()
        if action < 0.8:
            copy[key] = spoil_json(rng, copy[key])
        elif action < 0.9:
            del copy[key]
        elif isinstance(copy, dict):
            copy[rng.choice(("a", "", "kind", "width", f"{key}s"))] = rng.choice(ODD_JSON)
        else:
            copy.insert(key, rng.choice(ODD_JSON))
        return copy
    return rng.choice(ODD_JSON)


def spoil_json_text(rng: random.Random, value: object) -> bytes:
    """JSON with odd values, sometimes no JSON at all."""
    content = json.dumps(spoil_json(rng, value) if rng.random() < 0.8 else value).encode()
    if rng.random() < 0.25:
        content = spoil_bytes(rng, content)
    odd = (
        b"[" * 100_000,
        content + content,
        b"\xef\xbb\xbf" + content,
        content.decode(errors="replace").encode("utf-16"),
        b"",
    )
    return rng.choice(odd) if rng.random() < 0.05 else content


def spoil_yaml(rng: random.Random, content: bytes, paths: list[tuple[str, ...]]) -> bytes:
    """A config with an odd value, key or base, or bytes, where any of `paths` may be set."""
    action = rng.random()
    if action < 0.7:
        values = yaml.safe_load(content) or {}
        path = rng.choice([*paths, *[path[:1] for path in paths], ("base",)])
        below = values
        for key in path[:-1]:
            if not isinstance(below.get(key), dict):
                below[key] = {}
            below = below[key]
        below[path[-1]] = "ODD_VALUE"
        text = yaml.safe_dump(values, sort_keys=False)
        return text.replace("ODD_VALUE", rng.choice(ODD_VALUES)).encode("utf-8", "surrogatepass")
    lines = content.splitlines(keepends=True)
    line = rng.randrange(len(lines))
    if action < 0.8:
        odd = rng.choice(ODD_VALUES).encode()
        key, colon, _ = lines[line].partition(b":")
        lines[line] = rng.choice(
            (odd + b": 1\n", key + colon + odd + b"\n", key[:-1] + lines[line][len(key) :])
        )
        return b"".join(lines)
    if action < 0.95:
        return spoil_bytes(rng, content)
    depth = rng.choice((50, 500, 5000))
    odd = (
        b"a: " + b"[" * depth,
        b"a: " + b"{a: " * depth,
        b"a: " + b"- " * depth,
        b"? " * depth,
        b"- a",
        b"5",
        b"",
    )
    encoded = (
        content.decode(errors="ignore").encode("utf-16"),
        b"\xef\xbb\xbf" + content,
        b"# \xe9\n" + content,
    )
    return rng.choice((*odd, *encoded, content + b"---\n" + content, b"\t" + content))
