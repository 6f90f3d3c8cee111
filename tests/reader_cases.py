"""Every reader with a small file that it reads, shared by the fuzz of readers: (folder) -> (files to break, reader)."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from rsvlm.data.images import open_image
from rsvlm.data.listings import find_images
from rsvlm.data.readers import list_source
from rsvlm.data.source_translations import read_translation_file
from rsvlm.data.sources import PACKED, parse_source
from rsvlm.data.table import load_table, save_table
from rsvlm.data.table_rows import check_rows
from rsvlm.data.task_files import TWO_IMAGES, load_tasks
from rsvlm.data.translations import load_translations
from rsvlm.files import fingerprint_values, write_json, write_json_lines
from rsvlm.models.features import load_features
from rsvlm.models.instructions import asked_of
from rsvlm.models.loading import read_weights
from rsvlm.scoring.caption_files import one_caption_each, read_caption_lists
from rsvlm.scoring.foreign_files import read_foreign_captions, read_foreign_embeddings
from rsvlm.scoring.instruction_study import read_answers
from rsvlm.scoring.runs import read_captions
from rsvlm.study.config import check_params
from rsvlm.study.studies import study_params, study_text

BOXES = Path(__file__).resolve().parents[1] / "data/raw/boxes"
SPLITS = ("train", "val", "test")
NAMES = [f"{split}_{number}.png" for split in SPLITS for number in (1, 2)]
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
Case = tuple[list[Path], Callable[[], object]]
CASES: dict[str, Callable[[Path], Case]] = {}


def case(make: Callable[[Path], Case]) -> Callable[[Path], Case]:
    CASES[make.__name__] = make
    return make


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def picture(kind: str = "PNG", pixels: np.ndarray = PIXELS) -> bytes:
    made = io.BytesIO()
    Image.fromarray(pixels).save(made, kind)
    return made.getvalue()


def read_source(folder: Path, **source: object) -> Callable[[], None]:
    """A reader of a source: its listing, its images' files and pixels, and whether its rows are those of a table."""
    packed = source["format"] in PACKED
    parsed = parse_source({"name": "s", **({} if packed else {"images": "i"}), **source})

    def read() -> None:
        listing, images, _ = list_source(parsed, str(folder))
        places = [(image, images / image.name) for image in listing.images]
        if listing.missing is None:
            places = [(item.listed, item.path) for item in find_images(listing.images, images)[0]]
        for _, path in places[:2]:
            open_image(path)
        about = ("split", "captions", "label")
        check_rows(
            {"image_id": f"s/{image.name}", "source": "s", "path": str(path)}
            | {key: list(value) if isinstance(value := getattr(image, key), tuple) else value for key in about}
            for image, path in places
            if image.captions
        )

    return read


def pictures(folder: Path, names: list[str] = NAMES) -> list[Path]:
    return [write(folder / "i" / name, picture()) for name in names]


def captions_of(name: str) -> list[str]:
    return [f"a river of {name[:5]}", "two planes, one of them white"]


# Captions


@case
def karpathy(folder: Path) -> Case:
    pictures(folder)
    images = [
        {"filename": name, "imgid": number, "split": name.split("_")[0], "sentids": [2 * number, 2 * number + 1], "label": "river",
         "sentences": [{"raw": text, "tokens": text.replace(",", "").split(), "imgid": number, "sentid": 2 * number + place}
                       for place, text in enumerate(captions_of(name))]}
        for number, name in enumerate(NAMES)
    ]  # fmt: skip
    file = write(folder / "d.json", {"images": images, "dataset": "s"})
    return [file], read_source(folder, format="karpathy", annotations="d.json", labels="field")


@case
def nwpu(folder: Path) -> Case:
    pictures(folder, [f"river/{name}" for name in NAMES])
    entries = [
        {"filename": name, "imgid": number, "split": name.split("_")[0], "raw": "a river", "raw_1": "a wide river"}
        for number, name in enumerate(NAMES)
    ]
    return [write(folder / "d.json", {"river": entries})], read_source(folder, format="nwpu", annotations="d.json")


@case
def coco_captions(folder: Path) -> Case:
    pictures(folder)
    files = {}
    for split in SPLITS:
        images = [{"id": number, "file_name": f"{split}_{number}.png", "width": 24, "height": 24} for number in (1, 2)]
        said = [{"id": number, "image_id": number, "caption": "a river"} for number in (1, 2)]
        files[split] = write(folder / f"{split}.json", {"images": images, "annotations": said}).name
    return [folder / "train.json"], read_source(folder, format="coco_captions", annotations=files)


@case
def retrieval_json(folder: Path) -> Case:
    pictures(folder)
    files = {}
    for split in SPLITS:
        rows = [{"image": f"{split}/{name}", "caption": captions_of(name)} for name in NAMES if split in name]
        files[split] = write(folder / f"{split}.json", rows).name
    return [folder / "test.json"], read_source(folder, format="retrieval_json", annotations=files)


@case
def precomputed(folder: Path) -> Case:
    pictures(folder)
    for split in SPLITS:
        names = [name for name in NAMES if split in name for _ in range(2)]
        write(folder / f"{split}_caps.txt", "".join(f"a river {number}\n" for number, _ in enumerate(names)))
        write(folder / f"{split}_filename.txt", "".join(f"{name}\n" for name in names))
    files = [folder / "train_caps.txt", folder / "train_filename.txt"]
    return files, read_source(folder, format="precomputed", annotations={split: split for split in SPLITS})


@case
def sydney_text(folder: Path) -> Case:
    names = [f"{number}.tif" for number in range(1, 7)]
    for name in names:
        write(folder / "i" / name, picture("TIFF"))
    for place, split in enumerate(SPLITS):
        write(folder / f"{split}.txt", "".join(f"{name}\n" for name in names[2 * place : 2 * place + 2]))
    said = write(folder / "d.txt", "".join(f"{number} a river {number}\n" for number in range(1, 7) for _ in range(2)))
    lists = {split: f"{split}.txt" for split in SPLITS}
    return [said, folder / "val.txt"], read_source(folder, format="sydney_text", annotations="d.txt", splits=lists)


def table_rows() -> list[dict]:
    return [
        {"image": name, "split": name.split("_")[0], "caption_1": "a river", "caption_2": 'a "wide" river, brown', "label": "river"}
        for name in NAMES
    ]  # fmt: skip


def caption_table(folder: Path, name: str, make: Callable[[pd.DataFrame], object]) -> Case:
    pictures(folder)
    made = make(pd.DataFrame(table_rows()))
    file = folder / name
    if isinstance(made, str):
        write(file, made)
    return [file], read_source(folder, format="caption_table", annotations=name)


@case
def table_csv(folder: Path) -> Case:
    return caption_table(folder, "d.csv", lambda table: table.to_csv(index=False))


@case
def table_json(folder: Path) -> Case:
    return caption_table(folder, "d.json", lambda table: table.to_json(orient="records"))


@case
def table_lines(folder: Path) -> Case:
    return caption_table(folder, "d.jsonl", lambda table: table.to_json(orient="records", lines=True))


@case
def table_parquet(folder: Path) -> Case:
    return caption_table(folder, "d.parquet", lambda table: table.to_parquet(folder / "d.parquet"))


@case
def webdataset(folder: Path) -> Case:
    for split in SPLITS:
        with tarfile.open(folder / f"{split}.tar", "w") as tar:
            for name in (name for name in NAMES if split in name):
                stem = name.removesuffix(".png")
                about = json.dumps({"text": captions_of(name), "label": "river"}).encode()
                for ending, data in (("png", picture()), ("txt", b"a river\na lake\n"), ("json", about)):
                    info = tarfile.TarInfo(f"{stem}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    source = {"format": "webdataset", "annotations": "*.tar", "label_column": "label"}
    return [folder / "train.tar"], read_source(folder, **source, caption_columns=["text"])


@case
def hf_dataset(folder: Path) -> Case:
    for split in SPLITS:
        rows = [
            {"image": {"bytes": picture(), "path": name}, "caption": captions_of(name)}
            for name in NAMES
            if split in name
        ]
        pd.DataFrame(rows).to_parquet(folder / f"{split}.parquet")
    source = {"format": "hf_dataset", "annotations": "*.parquet"}
    return [folder / "train.parquet"], read_source(folder, **source)


@case
def image_folder(folder: Path) -> Case:
    pictures(folder)
    rows = [{"file_name": f"i/{row['image']}", "text": row["caption_1"], "split": row["split"]} for row in table_rows()]
    file = write(folder / "metadata.csv", pd.DataFrame(rows).to_csv(index=False))
    return [file], read_source(folder, format="hf_dataset", annotations="metadata.csv")


# Boxes and masks, of the shipped study


def boxes(folder: Path, name: str, pattern: str) -> Case:
    source = next(one for one in study_params("boxes")["aggregate_data"]["sources"] if one["name"].endswith(f"_{name}"))
    shutil.copytree(BOXES / name, folder / name)
    files = sorted((folder / name).glob(pattern))[:2]
    return files, read_source(folder, **{key: value for key, value in source.items() if key != "name"})


@case
def boxes_coco(folder: Path) -> Case:
    return boxes(folder, "coco", "annotations/*_t*.json")


@case
def boxes_voc(folder: Path) -> Case:
    return boxes(folder, "voc", "Annotations/*.xml")


@case
def boxes_dota(folder: Path) -> Case:
    return boxes(folder, "dota", "labelTxt/*.txt")


@case
def boxes_yolo(folder: Path) -> Case:
    return boxes(folder, "yolo", "labels/[!c]*.txt")


@case
def boxes_masks(folder: Path) -> Case:
    return boxes(folder, "masks", "masks_png/*.png")


# Images and weights


def image(folder: Path, name: str, data: bytes) -> Case:
    file = write(folder / name, data)
    return [file], lambda: open_image(file)


for ending, kind in (("png", "PNG"), ("jpg", "JPEG"), ("tif", "TIFF"), ("webp", "WEBP"), ("bmp", "BMP")):
    CASES[f"image_{ending}"] = lambda folder, ending=ending, kind=kind: image(folder, f"a.{ending}", picture(kind))


@case
def weights(folder: Path) -> Case:
    from safetensors.numpy import save_file

    file = folder / "model.safetensors"
    save_file({"a.weight": PIXELS.astype(np.float32), "b": np.ones(3, np.float16)}, file)
    return [file], lambda: read_weights(file, "copy it again")


@case
def features(folder: Path) -> Case:
    ids = [f"s/{name}" for name in NAMES]
    meta = {"image_ids": ids, "views": 1, "grid": 1, "dims": {"pooled": 4, "embedding": 3}}
    write_json(folder / "meta.json", meta | {"image_list_fingerprint": fingerprint_values(ids)})
    write_json(folder / "texts.json", ["a river", "a lake"])
    shapes = {"pooled": (6, 1, 4), "image_embeddings": (6, 3), "text_embeddings": (2, 3), "grid": (6, 1, 1, 4)}
    for name, shape in shapes.items():
        np.save(folder / f"{name}.npy", np.ones(shape, np.float32))
    return [*folder.glob("*.json"), folder / "pooled.npy"], lambda: load_features(folder)


# What stages and people write


def row(name: str) -> dict:
    return {"image_id": f"s/{name}", "source": "s", "split": name.split("_")[0], "path": name, "captions": captions_of(name), "label": None}  # fmt: skip


@case
def image_table(folder: Path) -> Case:
    file = folder / "images.parquet"
    save_table(list(map(row, NAMES)), file)
    return [file], lambda: load_table(file, folder)


@case
def translations(folder: Path) -> Case:
    file, table = folder / "translations.jsonl", pd.DataFrame(map(row, NAMES))
    rows = [
        {"image_id": f"s/{name}", "language": "pt", "captions": ["um rio", None], "how": "machine"} for name in NAMES
    ]
    write_json_lines(file, rows)
    return [file], lambda: load_translations(file, table)


@case
def translation_file(folder: Path) -> Case:
    file = write(folder / "pt.tsv", "a river\tum rio\na lake\tum lago\n")
    return [file], lambda: read_translation_file(file)


@case
def run_captions(folder: Path) -> Case:
    file = folder / "captioner.jsonl"
    write_json_lines(file, [{"image_id": f"s/{name}", "caption": "a river"} for name in NAMES])
    return [file], lambda: read_captions(file)


@case
def tasks(folder: Path) -> Case:
    file = folder / "tasks.jsonl"
    about = {"kind": "yes_no", "instruction": "Is there a river?", "answer": "Yes.", "language": "en", "wording": 0}
    rows = [{"image_id": f"s/{name}", "split": name.split("_")[0], **about} for name in NAMES]
    of_two = {"kind": TWO_IMAGES, "second_image_id": f"s/{NAMES[1]}"}
    write_json_lines(file, [*rows, rows[0] | of_two])
    return [file], lambda: (asked_of(file, "train"), load_tasks(file))


@case
def answers_of_another_model(folder: Path) -> Case:
    file = folder / "vlm" / "answers.jsonl"
    about = {"task_id": "test/presence/1", "instruction": "Is there a river?", "answer": "Yes."}
    write_json_lines(file, [{"image_id": f"s/{name}", **about} for name in NAMES])
    return [file], lambda: read_answers(folder, ["vlm"])


def foreign(folder: Path, name: str, content: object) -> Case:
    file, table = write(folder / name, content), pd.DataFrame(map(row, NAMES))

    def read() -> None:
        one_caption_each(read_caption_lists(file), file)
        read_foreign_captions(file, table, allow_missing=True)

    return [file], read


@case
def captions_object(folder: Path) -> Case:
    return foreign(folder, "c.json", {f"s/{name}": "a river" for name in NAMES})


@case
def captions_coco(folder: Path) -> Case:
    said = [{"image_id": number, "caption": "a river", "id": number} for number, _ in enumerate(NAMES)]
    images = [{"id": number, "file_name": name} for number, name in enumerate(NAMES)]
    return foreign(folder, "c.json", {"images": images, "annotations": said})


@case
def captions_csv(folder: Path) -> Case:
    return foreign(folder, "c.csv", "image,caption\n" + "".join(f"{name},a river\n" for name in NAMES))


@case
def captions_lines(folder: Path) -> Case:
    return foreign(
        folder, "c.jsonl", "".join(json.dumps({"image": name, "caption": "a river"}) + "\n" for name in NAMES)
    )


@case
def vectors_npz(folder: Path) -> Case:
    file, table = folder / "v.npz", pd.DataFrame(map(row, NAMES))
    texts = captions_of(NAMES[0])
    vectors = np.eye(6, 4, dtype=np.float32) + 0.1
    np.savez(
        file, image_ids=np.array(NAMES), image_embeddings=vectors, texts=np.array(texts), text_embeddings=vectors[:2]
    )
    return [file], lambda: read_foreign_embeddings(file, table, texts, allow_missing=True)


@case
def vectors_parquet(folder: Path) -> Case:
    file, table, texts = folder / "v.parquet", pd.DataFrame(map(row, NAMES)), captions_of(NAMES[0])
    rows = [{"image_id": name, "caption": None, "embedding": [1.0, 0.5]} for name in NAMES]
    rows += [{"image_id": None, "caption": text, "embedding": [0.5, 1.0]} for text in texts]
    pd.DataFrame(rows).to_parquet(file)
    return [file], lambda: read_foreign_embeddings(file, table, texts, allow_missing=True)


@case
def parameters(folder: Path) -> Case:
    file = write(folder / "params.yaml", study_text("default"))
    return [file], lambda: check_params(file, folder)
