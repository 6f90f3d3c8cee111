"""A dialogue with the captioner as Markdown: shown in a notebook's cell, or exported with its pictures."""

import re
from collections.abc import Sequence
from pathlib import Path

from IPython.display import HTML, DisplayHandle, display
from markupsafe import Markup

from rsvlm.data.images import open_image
from rsvlm.files import whole_folder, write_text
from rsvlm.models.dialogue import Conversation, Turn, context_length
from rsvlm.models.features import VisualInput, choose_view, read_visual
from rsvlm.models.prompts import caption_prompt
from rsvlm.scoring.retrieval import load_space
from rsvlm.viewing.browse import Archive
from rsvlm.viewing.plots import shrink
from rsvlm.viewing.thumbnails import encode_jpeg, make_thumbnail

PICTURE_PIXELS, PICTURE_BYTES = 512, 120_000  # of an exported dialogue
CELL_PIXELS = 150
PUNCTUATION = re.compile(r"([!-%'-/:;=?@\[-`{-~])")  # these may stand behind a backslash in Markdown; & < > are escaped
FIGURE = Markup(
    '<figure style="margin:0;width:150px"><img src="{uri}" alt="{name}" style="width:150px;border-radius:5px">'
    '<figcaption style="font-size:12px;overflow-wrap:anywhere">{score}{name}</figcaption></figure>'
)


def start_dialogue(
    archive: Archive, *, images: int = 3, max_new_tokens: int = 40, ret_bias: float = 0.0
) -> Conversation:
    """A new dialogue with the study's captioner; ``[RET]`` finds images of the archive's split.

    Args:
        images: brought by a ``[RET]``.
        max_new_tokens: longest answer.
        ret_bias: added to the logit of ``[RET]``: higher values bring images sooner.

    Raises:
        FileNotFoundError: no captioner was trained.
    """
    captioner = archive.captioner.model
    space = load_space(folder) if (folder := archive.files.ret_embeddings).is_dir() else None
    split_of = dict(zip(archive.table["image_id"], archive.table["split"], strict=True))
    wanted = (None, archive.split) if archive.split else ("train", "val", "test")
    found = [image_id for image_id in space.image_ids if split_of.get(image_id) in wanted] if space else []
    return Conversation(
        captioner, found, space.images(found) if found else None, look=lambda image_id: look_at(archive, image_id),
        images=images, max_new_tokens=max_new_tokens, ret_bias=ret_bias,
    )  # fmt: skip


def look_at(archive: Archive, image_id: str) -> list[str | VisualInput]:
    """What the captioner is given of an image of the archive, as in training: the image, and its neighbours' captions.

    Raises:
        ValueError: the image has no features.
    """
    captioner = archive.captioner
    row = archive.features.rows([image_id])
    view = choose_view(captioner.generation.view)
    visual = read_visual(archive.features, row, view, grid=captioner.model.settings.grid_cells > 0)
    told = captioner.config["prompting"]["neighbour_captions"]
    if not told:
        return [visual]
    near = captioner.pools(archive.features.image_embeddings[row], [image_id]).top(told)[image_id]
    return [visual, caption_prompt("", near).strip()]


def limits_of(talk: Conversation) -> list[str]:
    """What the model of a dialogue cannot do, in plain sentences."""
    config = talk.captioner.config
    steps = config.get("training", {}).get("steps")
    trained = f" in {steps} steps" if steps else ""
    told = config.get("prompting", {}).get("neighbour_captions", 0)
    brings = (
        f"brings up to {talk.images} of {len(talk.image_ids)} images" if len(talk.image_ids) else "finds no images yet"
    )
    return [
        f"{config.get('language_model', 'The language model')} was trained{trained} to caption images of this study and to "
        "find them from a caption, and for nothing else.",
        "It does not count or measure reliably, knows no place, date or name, and says what such captions say even where "
        "the image shows something else. Hold its words against the picture.",
        "It was trained on one image at a time: what was said of a first image colours what it says of a second. Start "
        "afresh for another image.",
        f"With each image it is told {told} {'caption' if told == 1 else 'captions'} of similar training images, as in "
        "training."
        if told
        else "It sees the image and nothing else.",
        f"When it emits [RET] it {brings}. An answer has at most {talk.max_new_tokens} tokens, the whole dialogue "
        f"{context_length(talk.captioner)}.",
    ]


def show_image_turn(talk: Conversation, archive: Archive, image_id: str) -> HTML:
    """The turn that shows an image of the archive to the model."""
    turn = talk.give_image(image_id, look_at(archive, image_id))
    return HTML(turn_html(turn, archive))


def show_answer(talk: Conversation, archive: Archive, text: str) -> None:
    """Show the model's answer to a text in a notebook, while it is being made."""
    handle: DisplayHandle | None = None
    for turn in talk.ask(text):
        shown = HTML(turn_html(Turn("you", text), archive) + turn_html(turn, archive))
        if handle is None:
            handle = display(shown, display_id=True)
        else:
            handle.update(shown)


def turn_html(turn: Turn, archive: Archive) -> str:
    """HTML of one turn, its images inline; every text escaped."""
    who = "You" if turn.who == "you" else "Model"
    words = Markup('<div style="margin:4px 0"><b>{}</b> {}</div>').format(who, words_of(turn))
    figures = []
    for image_id, score in zip(turn.image_ids, [*turn.scores, *[None] * len(turn.image_ids)], strict=False):
        uri = make_thumbnail(archive.table.loc[image_id, "path"], CELL_PIXELS).uri
        shown = "" if score is None else Markup("<b>{}</b> ").format(f"{score:.2f}")
        figures.append(FIGURE.format(uri=uri, name=image_id, score=shown))
    row = Markup('<div style="display:flex;flex-wrap:wrap;gap:12px;margin:6px 0">{}</div>')
    return str(words + (row.format(Markup("").join(figures)) if figures else ""))


def words_of(turn: Turn) -> str:
    """The words of a turn, and in brackets what happened where words do not say it."""
    parts = [turn.text] if turn.text else []
    if turn.asked_for_images:
        parts.append("[brings images]" if turn.image_ids else "[asks for images, but there are none to be found]")
    elif turn.who == "model" and not turn.text:
        parts.append("[says nothing]")
    if turn.cut_off:
        parts.append("[cut off]")
    return " ".join(parts) if parts else "[an image]"


def dialogue_markdown(turns: Sequence[Turn], pictures: dict[str, str]) -> str:
    """The dialogue as Markdown; every text stands as it is, no mark of it means anything.

    Args:
        pictures: image id -> where its picture lies, relative to the file.
    """
    blocks = ["# A dialogue with the captioner"]
    for turn in turns:
        blocks.append(f"**{'You' if turn.who == 'you' else 'Model'}:** {_escaped(words_of(turn))}")
        for image_id, score in zip(turn.image_ids, [*turn.scores, *[None] * len(turn.image_ids)], strict=False):
            shown = "" if score is None else f" ({score:.2f})"
            blocks.append(f"![{_escaped(image_id)}]({pictures[image_id]})\n{_escaped(image_id)}{shown}")
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
    taken = {path.name for path in folder.glob("*")} if folder.is_dir() else set()
    number = next(number for number in range(1, len(taken) + 2) if f"dialogue_{number:03d}" not in taken)
    made = folder / f"dialogue_{number:03d}"
    image_ids = list(dict.fromkeys(image_id for turn in turns for image_id in turn.image_ids))
    pictures = {image_id: f"image_{place:02d}.jpg" for place, image_id in enumerate(image_ids, start=1)}
    with whole_folder(made) as scratch:
        for image_id, name in pictures.items():
            picture = shrink(open_image(archive.table.loc[image_id, "path"]), PICTURE_PIXELS)
            (scratch / name).write_bytes(encode_jpeg(picture, PICTURE_BYTES))
        write_text(scratch / "dialogue.md", dialogue_markdown(turns, pictures))
    return made


def _escaped(text: str) -> str:
    plain = PUNCTUATION.sub(r"\\\1", " ".join(text.split()))
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
