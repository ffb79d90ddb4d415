"""What is said about a scene: captions, questions and their answers.

Everything is a pure function of the scene (and of a random generator that
chooses among phrasings), so the same image always has the same right answers.
"""

from __future__ import annotations

import random

COLOURS = ["red", "yellow", "green", "blue", "purple"]
SHAPES = ["circle", "square", "triangle", "star"]
BACKGROUNDS = ["white", "gray", "black"]
ALPHABET = "ACEHKLMNPRTUWXY3479"

CAPTION_PROMPT = "Describe this image."
CAPTION_PROMPTS = [
    CAPTION_PROMPT, "Describe the image.", "Describe this picture.", "Describe the picture.",
    "What is in this image?", "What is in the image?", "What is shown in this picture?",
    "What do you see?", "Write a caption.", "Caption this image.",
]


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def counted(count: int, colour: str, shape: str) -> str:
    if count > 1:
        return f"{count} {colour} {plural(shape)}"
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}"


def caption(scene) -> str:
    """Groups in colour order, then the background, then the text."""
    parts = [counted(*group) for group in scene.groups]
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    tail = f"the text reads {scene.text.string}." if scene.text else "no text."
    return f"{listed} on a {scene.background} background; {tail}"


def place(x: float, y: float) -> str:
    """x and y are fractions of the image."""
    return f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"


def clear_of_middle(x: float, y: float, margin: float = 0.04) -> bool:
    return abs(x - 0.5) >= margin and abs(y - 0.5) >= margin


def _count(scene, rng):
    present = rng.random() < 0.85
    if present:
        count, colour, shape = rng.choice(scene.groups)
    else:
        colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
        count = sum(n for n, c, s in scene.groups if (c, s) == (colour, shape))
    asked = rng.choice(["one", "one", "shape"]) if present else "one"
    if asked == "shape" and sum(s == shape for _, _, s in scene.groups) == 1:
        noun = plural(shape)
    else:
        noun = f"{colour} {plural(shape)}"
    form = rng.choice(["How many {} are there?", "How many {} are in the image?",
                       "How many {} do you see?", "Count the {}."])
    return form.format(noun), str(count)


def _colour(scene, rng):
    count, colour, shape = rng.choice(scene.groups)
    spelling = rng.choice(["color", "colour"])
    if count == 1:
        form = rng.choice(["What {} is the {}?", "Which {} is the {}?"])
        return form.format(spelling, shape), colour
    form = rng.choice(["What {} are the {}?", "Which {} are the {}?"])
    return form.format(spelling, plural(shape)), colour


def _shape(scene, rng):
    _, colour, shape = rng.choice(scene.groups)
    form = rng.choice(["What shape is {}?", "Which shape is {}?", "What is the {} shape?"])
    return form.format(colour), shape


def _exist(scene, rng):
    if rng.random() < 0.5:
        _, colour, shape = rng.choice(scene.groups)
    else:
        _, colour, shape = rng.choice(scene.groups)
        if rng.random() < 0.5:
            colour = rng.choice(COLOURS)
        else:
            shape = rng.choice(SHAPES)
    found = any((c, s) == (colour, shape) for _, c, s in scene.groups)
    article = "an" if colour[0] in "aeiou" else "a"
    form = rng.choice(["Is there {} {} {}?", "Do you see {} {} {}?", "Can you see {} {} {}?"])
    return form.format(article, colour, shape), "yes" if found else "no"


def _where(scene, rng):
    options = []
    for colour, shape in [(c, s) for n, c, s in scene.groups if n == 1]:
        item = next(i for i in scene.items if (i.colour, i.shape) == (colour, shape))
        spot = item.x / scene.width, item.y / scene.height
        if clear_of_middle(*spot):
            options += [(f"the {colour} {shape}", spot), (f"the {shape}", spot)]
    if scene.text:
        spot = scene.text.centre_x / scene.width, scene.text.centre_y / scene.height
        if clear_of_middle(*spot):
            options += [("the text", spot)] * 3
    if not options:
        return None
    noun, spot = rng.choice(options)
    form = rng.choice(["Where is {}?", "Where do you see {}?", "In which corner is {}?"])
    return form.format(noun), place(*spot)


def _text(scene, rng):
    form = rng.choice(["What does the text say?", "Read the text.", "What is written?",
                       "What text is in the image?", "What is the text?"])
    return form, scene.text.string if scene.text else "no text"


def _background(scene, rng):
    spelling = rng.choice(["color", "colour"])
    form = rng.choice([f"What {spelling} is the background?", f"What is the background {spelling}?",
                       f"Which {spelling} is the background?"])
    return form, scene.background


KINDS = {"count": _count, "colour": _colour, "shape": _shape, "exist": _exist,
         "where": _where, "text": _text, "background": _background}


def ask(scene, kind: str, rng: random.Random):
    """Returns (question, answer), or None when the kind does not apply."""
    return KINDS[kind](scene, rng)


def all_questions(scene, rng: random.Random) -> list[dict]:
    """One question of every kind that applies, in a fixed order."""
    found = []
    for kind in KINDS:
        pair = ask(scene, kind, rng)
        if pair:
            found.append({"kind": kind, "question": pair[0], "answer": pair[1]})
    return found


def corpus() -> list[str]:
    """Texts that contain every word of every prompt and answer (for the tokenizer)."""
    shapes = SHAPES + ["cross"]
    words = [f" {w}" for w in COLOURS[:1] + ["orange"] + COLOURS[1:] + shapes + BACKGROUNDS]
    words += [f" {plural(s)}" for s in shapes]
    forms = list(CAPTION_PROMPTS) + [
        "How many red circles are there?", "How many are in the image?", "How many do you see?",
        "Count the circles.", "What color is the circle?", "Which colour are the circles?",
        "What shape is red?", "Which shape is red?", "What is the red shape?",
        "Is there a circle?", "Is there an orange circle?", "Do you see a circle?",
        "Can you see a circle?", "Where is the text?", "Where do you see the text?",
        "In which corner is the text?", "What does the text say?", "Read the text.",
        "What is written?", "What text is in the image?", "What is the background color?",
        "How many shapes are there?", "Please answer: what letters are on the left?",
        " 3 red circles and a blue square on a white background; the text reads.",
        " an orange star, a red cross and 2 stars; no text.", " yes", " no", " no text",
        " top left", " top right", " bottom left", " bottom right", "USER: \n ASSISTANT:",
    ]
    return words + forms
