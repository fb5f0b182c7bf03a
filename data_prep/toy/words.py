"""Questions, answers and captions about toy videos, and a word-level tokenizer for their small vocabulary."""

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ma2mba.files import atomic_write
from ma2mba.model.conversation import ASSISTANT, END, SYSTEM, USER
from ma2mba.video.synthetic.movie import Movie
from ma2mba.video.synthetic.scenes import BACKGROUNDS, COLOURS, NEEDLE_QUESTION, NEEDLES, PATTERNS, SHAPES, Scene

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
COUNT_QUESTION = "How many scenes were there?"
DESCRIBE = ("Describe the picture.", "What does this show?", "Write a short caption.")
DESCRIBE_SCENE = "Describe this scene."
PAD, UNKNOWN = "<|padding|>", "<|unknown|>"


def order_question(scene: Scene) -> str:
    return f"What followed the {scene.subject}?"


def scene_words(scene: Scene) -> str:
    return f"a {scene.subject} moves over a {scene.pattern} {scene.background} background."


def needle_words(kind: str) -> str:
    return f"a {kind} appears."


def caption(movie: Movie) -> str:
    """Return a caption that names the needle; without a needle, the first scene."""
    return needle_words(movie.needle.kind) if movie.needle else scene_words(movie.scenes[0])


def scene_captions(movie: Movie) -> list[str]:
    """Return one caption per scene. It names the needle if a sampled second of the scene shows it."""
    seen = movie.needle.seconds if movie.needle else []
    words = []
    for scene in movie.scenes:
        text = scene_words(scene)
        if movie.needle and any(scene.start <= k < scene.stop for k in seen):
            text += " " + needle_words(movie.needle.kind)
        words.append(text)
    return words


def questions(movie: Movie) -> list[tuple[str, str, str]]:
    """Return (task, question, answer) for every question about `movie`."""
    asked = [("count", COUNT_QUESTION, NUMBERS[len(movie.scenes)])]
    if movie.needle:
        asked.insert(0, ("needle", NEEDLE_QUESTION, movie.needle.kind))
    for before, after in zip(movie.scenes, movie.scenes[1:], strict=False):
        asked.append(("order", order_question(before), after.subject))
    return asked


def options(task: str) -> list[str]:
    """Return all possible answers of a task."""
    subjects = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    return {"needle": list(NEEDLES), "count": list(NUMBERS[1:]), "order": subjects}[task]


def build_tokenizer() -> Tokenizer:
    """Return a word-level tokenizer of the toy vocabulary: lower case, reversible, `<|endoftext|>` is token 0."""
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    marked = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([marked, pre_tokenizers.Split(Regex(r"[^\w▁]"), "isolated")])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    special = [END, PAD, SYSTEM.split(">")[0] + ">", USER.strip(), ASSISTANT.strip(), UNKNOWN]
    words = {piece for text in _corpus() for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text.lower())}
    tokenizer.model = models.WordLevel({word: i for i, word in enumerate(special + sorted(words))}, unk_token=UNKNOWN)
    tokenizer.add_special_tokens([AddedToken(word, lstrip=True, normalized=False) for word in special])
    return tokenizer


def _corpus() -> list[str]:
    """Return texts that contain every word of the toy vocabulary."""
    lists = [*NEEDLES, *COLOURS, *SHAPES, *BACKGROUNDS, *PATTERNS, *NUMBERS]
    scene = Scene(SHAPES[0], next(iter(COLOURS)), next(iter(BACKGROUNDS)), PATTERNS[0], 0, 1, 0.0, 0.0)
    phrases = [NEEDLE_QUESTION, COUNT_QUESTION, DESCRIBE_SCENE, *DESCRIBE, order_question(scene), scene_words(scene)]
    return [SYSTEM.split(">", 1)[1].removesuffix(END), needle_words("red star"), *phrases, *lists]


def save_tokenizer(path: Path) -> None:
    with atomic_write(path) as file:
        file.write(build_tokenizer().to_str(pretty=True))
