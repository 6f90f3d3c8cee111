"""Looking around in a finished study from a notebook: free-text search, one image with its like, a dialogue."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import ipywidgets as widgets
import pandas as pd
from markupsafe import Markup, escape

from rsvlm import paths
from rsvlm.data.table import load_table, rows_of
from rsvlm.kernels import similarity_topk
from rsvlm.models.captioner import load_captioner
from rsvlm.models.devices import choose_device
from rsvlm.models.dialogue import Reply, reply
from rsvlm.models.encoders import DualEncoder, load_encoder
from rsvlm.models.features import Features, encode_texts, load_features
from rsvlm.models.visual_inputs import read_visual
from rsvlm.scoring.embedding_spaces import load_space
from rsvlm.scoring.runs import read_captions
from rsvlm.viewing.thumbnails import make_thumbnail

THUMBNAIL_PIXELS = 150
NO_CAPTIONER = "No captioner yet: run the stage finetune_lora (notebook 40_finetune_lora), then this cell again."
FIGURE = Markup(
    '<figure style="margin:0;width:150px"><img src="{uri}" alt="{alt}" style="width:150px;border-radius:5px">'
    '<figcaption style="font-size:12px;line-height:1.35;overflow-wrap:anywhere">{score}{name}</figcaption></figure>'
)
STRIP = Markup('<div style="display:flex;flex-wrap:wrap;gap:12px;margin:6px 0">{}</div>')


@dataclass(frozen=True)
class Archive:
    """The images that are searched, with the vectors and captions of the study."""

    table: pd.DataFrame  # indexed by image_id
    features: Features
    device: str
    runs: dict[str, dict[str, str]] = field(default_factory=dict)  # run -> image id -> generated caption

    def __str__(self) -> str:
        counts = self.table["source"].value_counts().sort_index()
        sources = ", ".join(f"{count} of {source}" for source, count in counts.items())
        return f"{len(self.table)} images ({sources}); generated captions: {', '.join(self.runs) or 'none yet'}"

    @property
    def image_ids(self) -> list[str]:
        """The ids of the images, in the table's order."""
        return list(self.table.index)

    @cached_property
    def encoder(self) -> DualEncoder:
        """The encoder that the features come from, loaded at the first search."""
        return load_encoder(str(paths.ENCODER), choose_device(self.device))


def open_archive(split: str | None = "test", device: str = "cpu") -> Archive:
    """The study's images of a split (None: all) with their features and generated captions.

    Raises:
        FileNotFoundError: the stages aggregate_data or encode_images have not run.
        ValueError: the split is not in the table.
    """
    rows = rows_of(load_table(paths.IMAGE_TABLE), split=split).set_index("image_id", drop=False)
    files = sorted(paths.GENERATED.glob("*.jsonl")) if paths.GENERATED.is_dir() else []
    runs = {file.stem: read_captions(file) for file in files}
    own_first = dict(sorted(runs.items(), key=lambda run: (run[0] != "captioner", run[0])))
    return Archive(rows, load_features(paths.FEATURES), device, own_first)


def search_text(archive: Archive, query: str, results: int = 8) -> list[tuple[str, float]]:
    """(image id, cosine) of the images nearest to a text, best first; none for a blank text."""
    if not query.strip():
        return []
    capitalise = bool(archive.features.meta.get("capitalise", True))
    return _nearest(archive, encode_texts(archive.encoder, [query.strip()], capitalise=capitalise), results)


def similar_images(archive: Archive, image_id: str, results: int = 8) -> list[tuple[str, float]]:
    """(image id, cosine) of the other images nearest to one, best first."""
    vector = archive.features.image_embeddings[archive.features.rows([image_id])]
    return [hit for hit in _nearest(archive, vector, results + 1) if hit[0] != image_id][:results]


def show_hits(archive: Archive, hits: Sequence[tuple[str, float | None]]) -> str:
    """HTML of a row of pictures with scores and labels; every text escaped."""
    figures = [_figure(archive, image_id, score) for image_id, score in hits]
    return STRIP.format(Markup("").join(figures)) if figures else "Nothing found."


def describe_image(archive: Archive, image_id: str, results: int = 8) -> str:
    """HTML of one image: what each run says of it, its references, the images most like it."""
    row = archive.table.loc[image_id]
    said = [
        Markup("<li><b>{}</b>: {}</li>").format(run, own[image_id])
        for run, own in archive.runs.items()
        if image_id in own
    ]
    references = [Markup("<li>{}</li>").format(caption) for caption in dict.fromkeys(row["captions"])]
    parts = [
        show_hits(archive, [(image_id, None)]),
        Markup("<b>Generated</b><ul>{}</ul>").format(Markup("").join(said)) if said else "",
        Markup("<b>References</b><ul>{}</ul>").format(Markup("").join(references)),
        Markup("<b>Most like it</b>"),
        show_hits(archive, similar_images(archive, image_id, results)),
    ]
    return Markup("").join(parts)


def search_box(archive: Archive, results: int = 8) -> widgets.Widget:
    """A text field whose text is searched for when Enter is pressed."""
    query = _text_field("Search", "many boats in a harbour")
    shown = widgets.HTML()

    def search(_: object) -> None:
        shown.value = str(show_hits(archive, search_text(archive, query.value, results)))

    query.observe(_safely(search, shown), names="value")
    return widgets.VBox([query, shown])


def image_box(archive: Archive, results: int = 8) -> widgets.Widget:
    """A list of the images; the chosen one is shown with its captions and its like."""
    picker = _picker(archive)
    shown = widgets.HTML()

    def show(_: object) -> None:
        shown.value = str(describe_image(archive, picker.value, results))

    show = _safely(show, shown)
    picker.observe(show, names="value")
    show(None)
    return widgets.VBox([picker, shown])


def dialogue_box(archive: Archive, device: str = "cpu", max_new_tokens: int = 40) -> widgets.Widget:
    """A dialogue with the captioner about images; a line of text where no captioner was trained."""
    if not (paths.CAPTIONER / "config.json").is_file():
        return widgets.HTML(str(escape(NO_CAPTIONER)))
    captioner = load_captioner(paths.CAPTIONER, device, features=archive.features)
    space = load_space(paths.RET_EMBEDDINGS) if paths.RET_EMBEDDINGS.is_dir() else None
    found_in = [image_id for image_id in space.image_ids if image_id in archive.table.index] if space else []
    vectors = space.images(found_in) if found_in else None
    history: list = []
    picker, text, shown = _picker(archive), _text_field("You", "Describe this image."), widgets.HTML()
    give, afresh = widgets.Button(description="Give this image"), widgets.Button(description="Start afresh")

    def add(who: str, what: str) -> None:
        shown.value += str(Markup("<div style='margin:4px 0'><b>{}</b> {}</div>").format(who, what))

    def answer() -> None:
        said: Reply = reply(
            captioner, history, image_ids=found_in, image_embeddings=vectors, max_new_tokens=max_new_tokens
        )
        if said.text:
            history.append(said.text)
        add("Model", said.text or ("(images)" if said.asked_for_images else "(nothing)"))
        if said.image_ids:
            shown.value += str(show_hits(archive, list(zip(said.image_ids, said.scores, strict=True))))

    def give_image(_: object) -> None:
        row = archive.features.rows([picker.value])
        history.append(read_visual(archive.features, row, grid=captioner.settings.grid_cells > 0))
        add("You", Markup(show_hits(archive, [(picker.value, None)])))

    def send(_: object) -> None:
        if text.value.strip():
            history.append(text.value)
            add("You", text.value)
            text.value = ""
            answer()

    def start_afresh(_: object) -> None:
        history.clear()
        shown.value = ""

    give.on_click(_safely(give_image, shown))
    afresh.on_click(start_afresh)
    text.observe(_safely(send, shown), names="value")
    return widgets.VBox([widgets.HBox([picker, give, afresh]), text, shown])


def _nearest(archive: Archive, vector: object, results: int) -> list[tuple[str, float]]:
    items = archive.features.image_embeddings[archive.features.rows(archive.image_ids)]
    scores, indices = similarity_topk(vector, items, min(max(1, results), len(items)))
    return [
        (archive.image_ids[i], float(score)) for i, score in zip(indices[0].tolist(), scores[0].tolist(), strict=True)
    ]


def _figure(archive: Archive, image_id: str, score: float | None) -> Markup:
    row = archive.table.loc[image_id]
    name = f"{row['label']} · {image_id}" if row["label"] else image_id
    shown = "" if score is None else Markup("<b>{}</b> ").format(f"{score:.2f}")
    uri = make_thumbnail(row["path"], THUMBNAIL_PIXELS).uri
    return FIGURE.format(uri=uri, alt=row["captions"][0], score=shown, name=name)


def _picker(archive: Archive) -> widgets.Dropdown:
    labels = [
        f"{label} · {name}" if label else name
        for label, name in zip(archive.table["label"], archive.image_ids, strict=True)
    ]
    return widgets.Dropdown(options=sorted(zip(labels, archive.image_ids, strict=True)), description="Image")


def _text_field(name: str, example: str) -> widgets.Text:
    wide = widgets.Layout(width="36rem", max_width="100%")
    return widgets.Text(description=name, placeholder=example, continuous_update=False, layout=wide)


def _safely(action: Callable[[object], None], shown: widgets.HTML) -> Callable[[object], None]:
    """The action, its errors shown in the widget: JupyterLab hides what a callback raises."""

    def run(event: object) -> None:
        try:
            action(event)
        except (ValueError, OSError, RuntimeError) as error:
            shown.value = str(Markup("<b>{}</b>: {}").format(type(error).__name__, str(error)))

    return run
