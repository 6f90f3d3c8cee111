"""A tiny finished study to browse: pictures, captions that want to be code, random models, indexes."""

from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
from PIL import Image

from rsvlm.data.table import load_table, save_table
from rsvlm.files import write_json, write_json_lines
from rsvlm.models.captioner import build_capret
from rsvlm.models.feature_shards import encode_images
from rsvlm.models.features import load_features
from rsvlm.models.inference import save_captioner
from rsvlm.models.neighbours import training_memory
from rsvlm.models.zoo import load_encoder
from rsvlm.settings import Generation
from rsvlm.study import paths
from rsvlm.study.paths import finished_study
from rsvlm.viewing import browse
from rsvlm.viewing.search_index import save_indexes

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
SCRIPT = "<script>document.title='taken'</script>"
NASTY_NAME = "a\"b'<i>&c.png"


def build_study(
    root,
    *,
    test: int = 4,
    train: int = 4,
    nasty_name: bool = False,
    scored: bool = False,
    more_runs: tuple[str, ...] = (),
) -> list[dict]:
    """The rows of test and training pictures, after captions, features and an index of theirs were made in ``root``."""
    rows = []
    for number in range(test + train):
        name = NASTY_NAME if nasty_name and number == 1 else f"{number}.png"
        path = root / name
        Image.fromarray(np.full((32, 32, 3), (30 * number % 255, 90, 240 - 30 * number % 240), dtype=np.uint8)).save(
            path
        )
        rows.append(
            {
                "image_id": f"s/{name}",
                "source": "s",
                "split": "test" if number < test else "train",
                "path": str(path),
                "captions": [f"Caption {number}", SCRIPT],
                "label": "river" if number % 2 else None,
            }
        )
    save_table(rows, paths.IMAGE_TABLE)
    encoder = load_encoder("random:clip")
    encoder.save(paths.ENCODER)
    table = load_table(paths.IMAGE_TABLE)
    encode_images(encoder, table, paths.FEATURES, views=1, grid=0, precision="fp32", log=lambda _: None)
    said = [{"image_id": row["image_id"], "caption": SCRIPT} for row in rows[:test]]
    write_json_lines(paths.GENERATED / "captioner.jsonl", said)
    for run in ("nearest", *more_runs):
        write_json_lines(paths.GENERATED / f"{run}.jsonl", [row | {"caption": f"Caption {test + 1}"} for row in said])
    if scored:
        scores = [
            [
                run,
                "s",
                "test",
                row["image_id"],
                references,
                number % 2 == 0,
                number + (run == "nearest") * 0.5,
                0.1 * number,
            ]
            for run in ("captioner", "nearest")
            for references in ("released", "distinct")
            for number, row in enumerate(rows[:test])
        ]
        columns = ["run", "source", "split", "image_id", "references", "reference_set_seen", "CIDEr", "METEOR"]
        paths.SCORES.mkdir(parents=True)
        pd.DataFrame(scores, columns=columns).to_csv(paths.SCORES / "captions.csv", index=False)
    save_indexes(table, finished_study())
    return rows


def add_captioner() -> None:
    """A random captioner, the test images in its retrieval space, and what the stages chose for both."""
    features, table = load_features(paths.FEATURES), load_table(paths.IMAGE_TABLE)
    training = features.rows(table.loc[table["split"] == "train", "image_id"].tolist())
    tested = table.loc[table["split"] == "test", "image_id"].tolist()
    shape = {"device": "cpu", "dtype": "float32", "retrieval_dim": 4, "lora_rank": 0}
    captioner = build_capret("random:llama", features, training.tolist(), **shape)
    captioner.config["prompting"] = {"neighbours": 3, "neighbour_temperature": 0.05, "neighbour_captions": 1}
    weights = {"pool": 1.0, "samples": 0.0, "likelihood": 1.0}
    generation = Generation(view="upright", beams=2, max_new_tokens=6)
    memory = training_memory(features, table)
    save_captioner(paths.CAPTIONER, captioner, memory, generation=generation, weights=weights, encoding=features.meta)
    paths.RET_EMBEDDINGS.mkdir()
    vectors = np.random.default_rng(0).normal(size=(len(tested), 4)).astype(np.float32)
    np.save(paths.RET_EMBEDDINGS / "image.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    np.save(paths.RET_EMBEDDINGS / "text.npy", np.full((1, 4), 0.5, dtype=np.float32))
    write_json(paths.RET_EMBEDDINGS / "image_ids.json", tested)
    write_json(paths.RET_EMBEDDINGS / "texts.json", ["a"])
    weights = {"dual_encoder": 0.75, "ret": 0.25, "neighbours": 0.5, "hubness": 0.5}
    combined = {"weights": weights, "neighbours": 2, "temperature": 0.05, "hubness_neighbours": 3}
    write_json(paths.METRICS / "score_retrieval.json", {"protocol": {"combined": combined}})
    save_indexes(table, finished_study())


def open_archive() -> browse.Archive:
    """The archive of the study in place."""
    return browse.open_archive(finished_study())


def run_cells(name: str, **parameters: object) -> dict:
    """The names of a notebook after all its cells ran in this process, with these parameters."""
    scope: dict = {}
    for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, name, "exec"), scope)
            if "parameters" in cell.metadata.get("tags", []):
                scope |= parameters
    return scope
