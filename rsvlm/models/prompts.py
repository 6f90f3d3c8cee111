"""What the language model is told: instructions for captions and retrieval, with or without neighbours' captions."""

from collections.abc import Sequence

CAPTION_PROMPT = "Caption:"  # the fixed one: used at generation, and for half of the training prompts
CAPTION_PROMPTS = (
    "Describe this image.",
    "A short description:",
    "What does this aerial image show?",
    "Write one sentence about this satellite image.",
    "What can be seen here?",
    "Image description:",
    "Tell me what is in the picture.",
    "This image shows",
)
RETRIEVAL_PROMPTS = (
    "Show me an image:",
    "Find an image of this:",
    "Which image fits?",
    "I am looking for an aerial image.",
)
NEIGHBOURS = "Similar images:"


def caption_prompt(instruction: str = CAPTION_PROMPT, neighbours: Sequence[str] = ()) -> str:
    """The text between an image and its caption.

    >>> caption_prompt("Caption:", ["A river .", "Two roads."])
    'Similar images: A river. Two roads. Caption:'
    """
    if not neighbours:
        return instruction
    return " ".join([NEIGHBOURS, *(as_sentence(caption) for caption in neighbours), instruction])


def as_sentence(caption: str) -> str:
    """The caption with one full stop right behind its last word."""
    return caption.strip().rstrip(".").rstrip() + "."
