"""The dialogue with a study's captioner: shown in a notebook's cells, or exported as Markdown with its pictures."""

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from IPython.display import HTML, DisplayHandle, display

from rsvlm.files import read_json, whole_folder, write_text
from rsvlm.languages import language_name
from rsvlm.models.answering import ABSTENTION
from rsvlm.models.dialogue import AUTO, Conversation, Seen, Turn, Unclear, context_length
from rsvlm.models.features import Features
from rsvlm.models.foreign_wishes import languages_read
from rsvlm.models.inference import Captioner, training_distances
from rsvlm.models.neighbours import told_with_instructions
from rsvlm.models.prompts import UPRIGHT, choose_view, read_visual, tell_neighbours
from rsvlm.scoring.retrieval import load_space
from rsvlm.viewing.browse import BY_ENCODER, Archive, picture_of, read_file, search_text
from rsvlm.viewing.page import encode_jpeg, make_thumbnail, show_cards
from rsvlm.viewing.plots import shrink

PICTURE_PIXELS, PICTURE_BYTES = 512, 120_000  # of an exported dialogue
CELL_PIXELS = 150
TOLD_ALL = (
    "It answers every instruction, however unsure: the stage score_instructions finds from where on answers are told."
)
TOLD_FROM = 'It says "I can\'t tell" where its answer is one of few and likelier than the next by less than'
PUNCTUATION = re.compile(r"([!-%'-/:;=?@\[-`{-~])")  # these may stand behind a backslash in Markdown; & < > are escaped


def start_dialogue(
    archive: Archive, *, images: int = 3, max_new_tokens: int = 40, ret_bias: float = 0.0
) -> Conversation:
    """A new dialogue with the study's captioner; ``[RET]`` finds images of the archive's split.

    Args:
        images: brought by a ``[RET]``.
        max_new_tokens: longest answer.
        ret_bias: added to the logit of ``[RET]`` where the model is free to choose: higher values bring images sooner.

    Raises:
        FileNotFoundError: no captioner was trained.
    """
    captioner = archive.captioner.model
    space = load_space(folder) if (folder := archive.files.ret_embeddings).is_dir() else None
    split_of = dict(zip(archive.table["image_id"], archive.table["split"], strict=True))
    wanted = (None, archive.split) if archive.split else ("train", "val", "test")
    abstention = archive.files.answers / ABSTENTION
    tell_from = read_json(abstention)["tell_from"] if abstention.is_file() else None
    found = [image_id for image_id in space.image_ids if split_of.get(image_id) in wanted] if space else []
    return Conversation(
        captioner, found, space.images(found) if found else None, look=lambda image_id: look_at(archive, image_id),
        images=images, max_new_tokens=max_new_tokens, ret_bias=ret_bias, tell_from=tell_from, spoken=archive.spoken,
        search=_search_in(archive, images) if archive.has_languages and "dual_encoder" in archive.methods else None,
    )  # fmt: skip


def _search_in(archive: Archive, images: int) -> Callable[[str, str], tuple[list[str], list[float], str]]:
    """What finds images by a description in another language: the archive's head, in the dual encoder's space."""

    def find(description: str, language: str) -> tuple[list[str], list[float], str]:
        found = search_text(archive, description, images, split=archive.split, language=language)
        ids, scores = zip(*found.hits) if found.hits else ((), ())
        note = f"Searched as “{description}” in {language_name(language)}: {BY_ENCODER}."
        return list(ids), list(scores), " ".join([note, *found.notes])

    return find


def look_at(archive: Archive, image_id: str) -> Seen:
    """What the captioner is given of an image of the archive, as in training: the image, and its neighbours' captions.

    Raises:
        ValueError: the image has no features.
    """
    return _look(archive.captioner, archive.features, image_id)


def give_file(talk: Conversation, archive: Archive, content: bytes, name: str) -> Turn:
    """The turn that shows an image file from outside to the model; its picture stays with the archive, for this kernel.

    Raises:
        ValueError: the file is too large or no image; names it.
    """
    image, features = read_file(archive, content, name)
    names = (f"{name} ({number})" if number > 1 else name for number in itertools.count(1))
    image_id = next(one for one in names if one not in archive.outside and one not in archive.table.index)
    turn = talk.give_image(image_id, _look(archive.captioner, features, name))
    archive.outside[image_id] = shrink(image, PICTURE_PIXELS)
    return turn


def _look(captioner: Captioner, features: Features, image_id: str) -> Seen:
    row = features.rows([image_id])
    vectors = features.image_embeddings[row]
    view = choose_view(captioner.generation.view)
    grid = captioner.model.settings.grid_cells > 0
    parts, upright = [read_visual(features, row, view, grid=grid)], read_visual(features, row, UPRIGHT, grid=grid)
    told = captioner.config["prompting"]["neighbour_captions"]
    if told:
        parts.append(tell_neighbours(captioner.pools(vectors, [image_id]).top(told)[image_id]))
    warning = captioner.warning(training_distances(captioner.memory, vectors)[0])
    behind = parts[-1] if told_with_instructions(captioner.config) else ""
    return Seen(tuple(parts), warning, upright, vectors, image_id, behind)


def limits_of(talk: Conversation) -> list[str]:
    """What the model of a dialogue cannot do, in plain sentences."""
    config = talk.captioner.config
    steps = config.get("training", {}).get("steps")
    trained = f" in {steps} steps" if steps else ""
    told = config.get("prompting", {}).get("neighbour_captions", 0)
    kinds = [kind.replace("_", " ") for kind in talk.known.kinds]
    answers = f", and to answer instructions about them ({', '.join(kinds)})" if kinds else ""
    return [
        f"{config.get('language_model', 'The language model')} was trained{trained} to caption images of this study and to "
        f"find them from a caption{answers}, and for nothing else.",
        "It does not count or measure reliably, knows no place, date or name, and says what such captions say even where "
        "the image shows something else. Hold its words against the picture.",
        "A description is made of the last image and your words alone, images are found by your words alone, as in "
        "training. Only where the model is left to decide does it read the whole dialogue, and for that nothing trained it.",
        f"With each image it is told {told} {'caption' if told == 1 else 'captions'} of similar training images, as in "
        "training."
        if told
        else "It sees the image and nothing else.",
        *_spoken(talk),
        f"It reads a few forms of questions, wishes (a list, so many words, JSON) and searches in {', '.join(map(language_name, languages_read()))}, by rule.",
        *([TOLD_ALL if talk.tell_from is None else f"{TOLD_FROM} {talk.tell_from:.2f} nats."] if kinds else []),
        f"A wish for images brings up to {talk.images} of {len(talk.image_ids)}."
        if len(talk.image_ids)
        else "It finds no images yet: the stage generate_captions makes what it finds them by.",
        f"An answer has at most {talk.max_new_tokens} tokens, what is read with it {context_length(talk.captioner)}.",
    ]


def _spoken(talk: Conversation) -> list[str]:
    """In which languages a dialogue describes an image, and who writes them."""
    trained = [language_name(code) for code in talk.known.languages]
    others = [language_name(code) for code in talk.spoken if code not in talk.known.languages]
    told = [f"It was trained to describe an image in {', '.join(trained)}, too."] if trained else []
    if others:
        told.append(
            f"A description in {', '.join(others)} is a caption of a similar training image: no model wrote it."
        )
    return told


def show_image_turn(talk: Conversation, archive: Archive, image_id: str) -> HTML:
    """The turn that shows an image of the archive to the model."""
    return _show_turns([talk.give_image(image_id, look_at(archive, image_id))], archive)


def show_answer(
    talk: Conversation, archive: Archive, text: str, wants: str = AUTO, language: str | None = None
) -> None:
    """Show the model's answer to a text in a notebook, while it is being made; or why there is none.

    Args:
        wants, language: as ``Conversation.ask`` takes them.
    """
    handle: DisplayHandle | None = None
    try:
        for turn in talk.ask(text, wants, language):
            shown = _show_turns([Turn("you", text), turn], archive)
            if handle is None:
                handle = display(shown, display_id=True)
            else:
                handle.update(shown)
    except Unclear as unclear:
        offers = " or ".join(f"wants={wish!r} with {text!r}" for wish, text in unclear.offers)
        words = f"{unclear} {f'Ask again: {offers}.' if offers else ''}"
        display(show_cards([{"head": "Not asked", "words": words, "cards": []}]))


def _show_turns(turns: Sequence[Turn], archive: Archive) -> HTML:
    """Turns with their images."""
    rows = []
    for turn in turns:
        pictures = [make_thumbnail(picture_of(archive, name), CELL_PIXELS) for name in turn.image_ids]
        cards = [
            {"picture": picture, "bold": score, "title": name}
            for picture, (name, score) in zip(pictures, _images_of(turn), strict=True)
        ]
        rows.append({"head": "You" if turn.who == "you" else "Model", "words": noted_words(turn), "cards": cards})
    return show_cards(rows, width=CELL_PIXELS)


def words_of(turn: Turn) -> str:
    """The words of a turn, and in brackets what happened where words do not say it."""
    parts = [turn.text] if turn.text else []
    if turn.asked_for_images:
        parts.append("[brings images]" if turn.image_ids else "[asks for images, but there are none to be found]")
    elif turn.who == "model" and not turn.text:
        parts.append("[no words came]")
    if turn.cut_off:
        parts.append("[cut off]")
    return " ".join(parts) if parts else "[an image]"


def noted_words(turn: Turn) -> str:
    """The same, with what a person is to be told beside them."""
    return f"{words_of(turn)} [{turn.note}]" if turn.note else words_of(turn)


def dialogue_markdown(turns: Sequence[Turn], pictures: dict[str, str]) -> str:
    """The dialogue as Markdown; every text stands as it is, no mark of it means anything.

    Args:
        pictures: image id -> where its picture lies, relative to the file.
    """
    blocks = ["# A dialogue with the captioner"]
    for turn in turns:
        blocks.append(f"**{'You' if turn.who == 'you' else 'Model'}:** {_escaped(noted_words(turn))}")
        for image_id, score in _images_of(turn):
            name = _escaped(image_id)
            blocks.append(f"![{name}]({pictures[image_id]})\n{name}{f' ({score})' if score else ''}")
    return "\n\n".join(blocks) + "\n"


def export_dialogue(turns: Sequence[Turn], archive: Archive, folder: Path) -> Path:
    """The new folder with ``dialogue.md`` and the pictures beside it, written whole.

    Args:
        folder: where dialogues are kept.

    Raises:
        ValueError: nothing was said yet.
    """
    if not turns:
        raise ValueError("the dialogue is empty: there is nothing to export")
    places = (folder / f"dialogue_{number:03d}" for number in itertools.count(1))
    made = next(place for place in places if not place.exists())
    image_ids = list(dict.fromkeys(image_id for turn in turns for image_id in turn.image_ids))
    pictures = {image_id: f"image_{place:02d}.jpg" for place, image_id in enumerate(image_ids, start=1)}
    with whole_folder(made) as scratch:
        for image_id, name in pictures.items():
            picture = shrink(picture_of(archive, image_id), PICTURE_PIXELS)
            (scratch / name).write_bytes(encode_jpeg(picture, PICTURE_BYTES))
        write_text(scratch / "dialogue.md", dialogue_markdown(turns, pictures))
    return made


def _images_of(turn: Turn) -> list[tuple[str, str]]:
    """(image id, its score as text) of a turn's images; those that nobody searched for have none."""
    scores = [f"{score:.2f}" for score in turn.scores] or [""] * len(turn.image_ids)
    return list(zip(turn.image_ids, scores, strict=True))


def _escaped(text: str) -> str:
    plain = PUNCTUATION.sub(r"\\\1", " ".join(text.split()))
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
