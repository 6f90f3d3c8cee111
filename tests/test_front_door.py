"""``import rsvlm`` and the command ``rsvlm``: five lines that work in an empty folder, and one clear line on bad input."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import rsvlm
from rsvlm.cli import app, main
from rsvlm.models.captioner import build_capret
from rsvlm.models.features import encode_pictures
from rsvlm.models.generation import Prompted, caption_log_likelihoods
from rsvlm.models.inference import choose_captions, load_captioner, propose_captions, save_captioner
from rsvlm.models.neighbours import training_memory
from rsvlm.models.tiny import make_tiny_clip
from rsvlm.models.zoo import load_encoder
from rsvlm.settings import Generation

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import lock  # noqa: E402  scripts/lock.py

KINDS = ("A river.", "Many white airplanes.", "A dense forest.")
WEIGHTS = {"pool": 1.0, "samples": 0.5, "likelihood": 1.0}


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another encoder."""
    return load_encoder(str(make_tiny_clip(tmp_path_factory.mktemp("other") / "clip", seed=1)))


@pytest.fixture(scope="module")
def house(tmp_path_factory, tiny_models):
    """A folder with a saved tiny encoder, a tiny captioner trained with nothing, and some pictures."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("front door")
    random = np.random.default_rng(0)
    (folder / "pictures" / "deeper").mkdir(parents=True)
    pictures = [Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(9)]
    for number, picture in enumerate(pictures[:3]):
        picture.save(folder / "pictures" / ("deeper" if number == 2 else "") / f"{number}.png")
    encoder = load_encoder(str(tiny_models.clip))
    encoder.save(folder / "encoder")
    names = [f"made/{number}.png" for number in range(9)]
    features = encode_pictures(encoder, pictures, names, views=2, grid=2)
    features.meta.update(encoder_fingerprint=encoder.fingerprint(), capitalise=True)
    table = pd.DataFrame(
        {"image_id": names, "split": ["test"] * 3 + ["train"] * 6, "captions": [[KINDS[i % 3]] * 2 for i in range(9)]}
    )
    shape = {"device": "cpu", "dtype": "float32", "retrieval_dim": 4, "lora_rank": 2, "lora_alpha": 4.0}
    captioner = build_capret("random:llama", features, [3, 4, 5], **shape)
    captioner.config["prompting"] = {"neighbours": 3, "neighbour_temperature": 0.05, "neighbour_captions": 1}
    save_captioner(
        folder / "captioner",
        captioner,
        training_memory(features, table),
        generation=Generation(beams=2, samples=2, max_new_tokens=5),
        weights=WEIGHTS,
        encoding=features.meta,
        validation=features.image_embeddings[:3],
    )
    return folder, features, table, pictures


def test_five_lines_in_an_empty_folder(house, tmp_path):
    folder = house[0]
    code = f"""
import sys, rsvlm
assert "torch" not in sys.modules and "pandas" not in sys.modules
encoder = rsvlm.load_encoder({str(folder / "encoder")!r})
captioner = rsvlm.load_captioner({str(folder / "captioner")!r}, encoder)
captions = rsvlm.caption(captioner, [{str(folder / "pictures" / "0.png")!r}, {str(folder / "pictures" / "deeper")!r}])
index = rsvlm.build_index(encoder, {str(folder / "pictures")!r})
print(captions.to_json(orient="records"))
print(index.search("two planes beside a hangar", k=2).to_json(orient="records"))
"""
    settings = {name: value for name, value in os.environ.items() if name != "RSVLM_ROOT"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    captions, found = map(json.loads, done.stdout.splitlines()[-2:])
    assert [Path(row["image"]).name for row in captions] == ["0.png", "2.png"]
    assert all(row["caption"] and row["log_probability"] < 0 for row in captions)
    assert [row["rank"] for row in found] == [1, 2] and found[0]["score"] >= found[1]["score"]
    assert not list(tmp_path.iterdir()), "nothing is left in the folder"


def core_packages(folder: Path) -> Path:
    """A folder with links to the packages that ``pip install .`` brings, and no other."""
    folder.mkdir()
    for name in lock.closure(lock.core_requirements()).keys() - {"rsvlm"}:
        found = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(found.locate_file(top))
    return folder


def test_the_wheel_with_its_core_alone_captions_an_image(house, wheel, tmp_path):
    """Unpacked as an installer does, in another folder, without the packages that only extras name."""
    wheel.extractall(tmp_path / "installed")
    core = core_packages(tmp_path / "core")
    assert (core / "torch").exists() and not (core / "dvc").exists() and not (core / "faiss").exists()
    settings = {name: value for name, value in os.environ.items() if name != "RSVLM_ROOT"}
    settings["PYTHONPATH"] = os.pathsep.join(map(str, (tmp_path / "installed", core)))
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-S", "-m", "rsvlm", "caption", house[0] / "captioner", house[0] / "pictures" / "0.png"]
    done = subprocess.run(command, cwd=tmp_path / "empty", env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    head, row = done.stdout.splitlines()
    assert head == "image,caption,log_probability,distance,unlike_training" and "0.png" in row


def test_the_door_shows_what_there_is():
    assert set(rsvlm.__all__) <= set(dir(rsvlm)) and callable(rsvlm.score_retrieval)
    assert "rsvlm.caption(captioner" in rsvlm.__doc__
    with pytest.raises(AttributeError, match="no attribute 'capture'; it has load_encoder"):
        rsvlm.capture


def test_a_saved_captioner_says_what_the_stage_says(house):
    """Notebook 50 and ``caption`` share one way: the same proposals, the same choice."""
    folder, features, table, pictures = house
    captioner = load_captioner(folder / "captioner")
    ids = features.image_ids[:3]
    pools = captioner.pools(features.image_embeddings[:3], ids)
    proposed = propose_captions(captioner.model, features, ids, pools, captioner.generation)
    for own, near, candidates in zip(proposed.own, pools.top(4).values(), proposed.candidates, strict=True):
        assert candidates == list(dict.fromkeys([*own, *near]))  # the captioner's, then the pool's
    expected = choose_captions(proposed.candidates, proposed.judged, WEIGHTS)
    found = rsvlm.caption(captioner, pictures[:3])
    assert found["caption"].tolist() == expected and found["image"].tolist() == ["image 1", "image 2", "image 3"]
    assert captioner.memory.vectors.dtype == np.float16 and len(captioner.memory.captions) == 6
    size = json.loads((folder / "captioner" / "config.json").read_text())["memory"]
    assert size["images"] == 6 and size["captions"] == 12
    assert "6 training images with 12 captions" in (folder / "captioner" / "README.md").read_text()
    ids = found["image"].tolist()
    features = captioner.encode(pictures[:3], ids)
    near = list(captioner.pools(features.image_embeddings, ids).top(1).values())
    alone = [[text] for text in expected]
    likely = caption_log_likelihoods(Prompted(captioner.model, features, ids, "Caption:", near, "mean"), alone)
    assert found["log_probability"].tolist() == pytest.approx([own[0] for own in likely], abs=1e-4)
    silent = rsvlm.caption(replace(captioner, weights=WEIGHTS | {"likelihood": 0.0}), pictures[:3])
    assert (silent["log_probability"] < 0).all()
    arrays = rsvlm.caption(captioner, [np.asarray(one) for one in pictures[:3]])
    assert arrays["caption"].tolist() == expected
    matching = rsvlm.caption(replace(captioner, weights={"likelihood": 0.0, "cosine": 1.0}), pictures[:3])["caption"]
    vectors = features.image_embeddings
    for vector, said, candidates in zip(vectors, matching, proposed.candidates, strict=True):
        assert said == candidates[int(np.argmax(captioner.encode_captions(candidates) @ vector))]


def test_an_image_unlike_anything_in_training_is_told_of(house, tmp_path):
    folder, features, _, pictures = house
    captioner = load_captioner(folder / "captioner")
    memory = features.image_embeddings[3:].astype(np.float16).astype(np.float64)
    cosines = features.image_embeddings[:3] @ memory.T / np.linalg.norm(memory, axis=1)
    distances = 1 - cosines.max(1)
    assert captioner.unlike_above == pytest.approx(np.percentile(distances, 99), abs=1e-5)
    found = rsvlm.caption(captioner, pictures[:4])
    assert found["distance"].tolist() == pytest.approx([*distances, 0], abs=1e-3)  # the last one was trained on
    assert found["unlike_training"].tolist() == (found["distance"] > captioner.unlike_above).tolist()
    assert found["unlike_training"].sum() == 1 and "percentile 99 of 3" in (folder / "captioner/README.md").read_text()
    assert captioner.warning(captioner.unlike_above) == ""
    assert "a guess (cosine distance to the nearest training image 0.900; 99 % of" in captioner.warning(0.9)
    done = run("caption", folder / "captioner", folder / "pictures", "--out", tmp_path / "said.csv")
    assert "1 of 3 images are unlike anything in training" in done.stderr
    assert pd.read_csv(tmp_path / "said.csv")["unlike_training"].sum() == 1


def test_a_captioner_saved_without_validation_images_does_not_say_what_is_unlike(house, tmp_path):
    shutil.copytree(house[0] / "captioner", tmp_path / "captioner")
    config = json.loads((tmp_path / "captioner" / "config.json").read_text())
    assert config.pop("unlike_training")["validation_images"] == 3
    (tmp_path / "captioner" / "config.json").write_text(json.dumps(config))
    captioner = load_captioner(tmp_path / "captioner", house[0] / "encoder")
    found = rsvlm.caption(captioner, house[3][:1])
    assert found["unlike_training"].tolist() == [None] and found["distance"][0] > 0
    assert captioner.warning(2.0) == ""


def test_what_is_drawn_depends_on_the_place_in_the_whole_list(house, monkeypatch):
    """Read a few at a time, an image is captioned as in a study, which takes its whole list at once."""
    folder, _, _, pictures = house
    captioner = load_captioner(folder / "captioner")
    captioner = replace(captioner, weights={"pool": 0.0, "samples": 1.0, "likelihood": 0.0})
    generation = Generation(beams=1, samples=3, pool_candidates=0, max_new_tokens=5, seed=2)
    captioner = replace(captioner, generation=generation)
    names = [f"image {number}" for number in range(1, 8)]
    features = captioner.encode(pictures[:7], names)
    pools = captioner.pools(features.image_embeddings, names)
    whole = propose_captions(captioner.model, features, names, pools, generation)
    expected = choose_captions(whole.candidates, whole.judged, captioner.weights)
    monkeypatch.setattr("rsvlm.models.pictures.A_BLOCK", 3)
    assert rsvlm.caption(captioner, pictures[:7])["caption"].tolist() == expected
    moved = propose_captions(captioner.model, features, names, pools, generation, numbers=range(1, 8))
    assert moved.own != whole.own  # the draws do differ from place to place


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ("nothing.png", FileNotFoundError, "nothing.png: no such file or folder"),
        (np.zeros((4, 4, 5), np.uint8), ValueError, r"shape \(4, 4, 5\) and type uint8: expected"),
        (np.zeros((4, 4, 3)), ValueError, "type float64: expected"),
        (Image.fromarray(np.zeros((4, 4), np.uint16)), ValueError, "mode 'I;16': expected 8 bits a band"),
        (Image.fromarray(np.zeros((4, 4), np.float32)), ValueError, "mode 'F': expected 8 bits a band"),
    ],
)
def test_images_that_are_none(house, images, error, message):
    with pytest.raises(error, match=message):
        rsvlm.caption(load_captioner(house[0] / "captioner"), images)


def test_a_broken_file_stops_or_is_told_of(house, tmp_path):
    captioner = load_captioner(house[0] / "captioner")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no image in this folder"):
        rsvlm.caption(captioner, tmp_path / "empty")
    broken, whole = tmp_path / "broken.png", house[0] / "pictures" / "0.png"
    broken.write_bytes(whole.read_bytes()[:60])
    with pytest.raises(ValueError, match="broken.png"):
        rsvlm.caption(captioner, [broken, whole])
    found = rsvlm.caption(captioner, [broken, whole], unreadable="keep")
    assert found["caption"].isna().tolist() == [True, False] and "broken.png" in found["trouble"][0]
    with pytest.raises(ValueError, match="given twice"):
        rsvlm.caption(captioner, [whole, whole])


def test_a_captioner_that_is_not_whole(house, other, tmp_path):
    folder = house[0]
    with pytest.raises(ValueError, match="made with another encoder"):
        load_captioner(folder / "captioner", other)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_captioner(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="encoder: an encoder, and a captioner is needed: .*captioner.safetensors"):
        load_captioner(folder / "encoder")
    with pytest.raises(ValueError, match="a captioner, and an encoder is needed; .* beside it: .*encoder"):
        load_encoder(str(folder / "captioner"))
    copy = tmp_path / "captioner"
    copy.mkdir()
    for file in (folder / "captioner").iterdir():
        if file.name != "memory.npy":
            (copy / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FileNotFoundError, match="no encoder beside the captioner"):
        load_captioner(copy)
    with pytest.raises(FileNotFoundError, match="memory.npy: missing: run the stage generate_captions again"):
        load_captioner(copy, folder / "encoder")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != "generation"}))
    with pytest.raises(ValueError, match="'generation' is missing: this captioner was trained but not finished"):
        load_captioner(copy, folder / "encoder")


def test_an_index_finds_its_own_images_and_survives_the_disk(house, other, tmp_path):
    folder, _, _, pictures = house
    encoder = load_encoder(str(folder / "encoder"))
    index = rsvlm.build_index(encoder, folder / "pictures")
    for number, name in enumerate(("0.png", "1.png", "deeper/2.png")):
        hit = index.search(pictures[number], k=1).iloc[0]
        assert hit["image"].endswith(name) and hit["score"] == pytest.approx(1, abs=2e-3)
    index.save(tmp_path / "index")
    again = rsvlm.load_index(tmp_path / "index")
    pd.testing.assert_frame_equal(
        again.search(["a river", "a forest"], k=5), index.search(["a river", "a forest"], k=5)
    )
    with pytest.raises(ValueError, match="'skip' is neither 'raise' nor 'keep'"):
        rsvlm.build_index(encoder, folder / "pictures", unreadable="skip")
    both = index.search([rsvlm.Without("a river", "a forest"), rsvlm.Without(pictures[0], pictures[1])], k=9)
    assert both["score"].between(-1, 1).all() and list(both["query"].unique()) == [0, 1]
    assert both[both["query"] == 1].iloc[0]["image"].endswith("0.png")
    assert both.iloc[-1]["image"].endswith("1.png")  # what is left out comes last
    with pytest.raises(ValueError, match="query 1 is blank"):
        index.search(["a", " "])
    with pytest.raises(ValueError, match="made with another encoder"):
        rsvlm.load_index(tmp_path / "index", other)
    with pytest.raises(FileNotFoundError, match="no index here"):
        rsvlm.load_index(tmp_path)


def test_retrieval_of_any_embeddings():
    random = np.random.default_rng(0)
    images = random.normal(size=(20, 8))
    texts = np.repeat(images, 2, axis=0) + 0.01 * random.normal(size=(40, 8))
    own = np.repeat(np.arange(20), 2)
    perfect = rsvlm.score_retrieval(images, texts, own)
    assert perfect["mean_recall"] == 1 and perfect["text_to_image_recall_at_1"] == 1
    shuffled = rsvlm.score_retrieval(images, texts, np.roll(own, 7))
    assert shuffled["mean_recall"] < 0.6
    assert (
        rsvlm.score_retrieval(images, texts, [[row, (row + 1) % 20] for row in own])["image_to_text_recall_at_1"] == 1
    )
    with pytest.raises(ValueError, match=r"positives of text 1: \[20\]; expected rows of the 20 images"):
        rsvlm.score_retrieval(images, texts[:2], [0, 20])
    with pytest.raises(ValueError, match="image 1 and 18 more have no text"):
        rsvlm.score_retrieval(images, texts[:1], [0])


# The command


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def failure(capsys, *arguments):
    """The one line on bad input."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr().err.strip()
    assert stopped.value.code == 1 and "\n" not in said and said.startswith("rsvlm: ")
    return said


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_captions_as_a_table(house, tmp_path, ending):
    out = tmp_path / f"captions.{ending}"
    done = run("caption", house[0] / "captioner", house[0] / "pictures", "--out", out)
    assert done.exit_code == 0, done.output
    read = {"csv": pd.read_csv, "jsonl": lambda path: pd.read_json(path, lines=True), "parquet": pd.read_parquet}[
        ending
    ]
    table = read(out)
    assert len(table) == 3 and table["caption"].notna().all()
    assert list(table) == ["image", "caption", "log_probability", "distance", "unlike_training"]


def test_embed_then_search(house, tmp_path):
    assert run("embed", house[0] / "encoder", house[0] / "pictures", "--out", tmp_path / "index").exit_code == 0
    done = run("search", tmp_path / "index", "a river", "-k", 2)
    assert (
        done.exit_code == 0 and done.stdout.splitlines()[0] == "rank,image,score" and len(done.stdout.splitlines()) == 3
    )
    done = run("search", tmp_path / "index", "--image", house[0] / "pictures" / "1.png", "-k", 1)
    assert "1.png" in done.stdout
    done = run("search", tmp_path / "index", "a river without boats", "-k", 1)
    assert "an encoder reads “without” much as “with”; to leave it out: --without 'boats'\n" in done.stderr
    less = run("search", tmp_path / "index", "a river", "--without", "boats", "-k", 1)
    assert less.exit_code == 0 and "“without”" not in less.stderr and less.stdout != done.stdout
    assert run("search", tmp_path / "index", "a river", "--without", "a river").exit_code == 1
    for wrong in ((), ("a river", "--image", house[0] / "pictures" / "1.png"), ("--image", "none.png")):
        assert run("search", tmp_path / "index", *wrong).exit_code == 1


def test_bad_input_is_told_in_one_line(house, tmp_path, capsys):
    assert "no such folder" in failure(capsys, "caption", tmp_path / "none", house[0] / "pictures")
    assert "written as .csv" in failure(capsys, "caption", house[0] / "captioner", "a.png", "--out", "a.xlsx")
    assert "no index here" in failure(capsys, "search", tmp_path, "a river")
    for command in ("search",), ("scene", "search"):  # who gives the words alone
        assert "a river: no such file or folder; what is searched comes first" in failure(capsys, *command, "a river")
    assert "none.png: no such file" in failure(capsys, "caption", house[0] / "captioner", tmp_path / "none.png")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("not to be lost")
    given = (house[0] / "encoder", house[0] / "pictures", "--out", tmp_path / "mine")
    assert "give another folder" in failure(capsys, "embed", *given)
    assert run("caption").exit_code == 2 and run("--help").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("scene", "embed", "a", "b", "--encoder", "x", "--size", "0"), "--size: a whole number from 1 is needed; got 0"),
        (("scene", "search", "a", "b", "-k", "0"), "--k: a whole number from 1 is needed; got 0"),
        (("search", "a", "b", "-k", "few"), "--k: a whole number from 1 is needed; got few"),
        (("embed", "a", "b", "--batch-size", "9999"), "--batch-size: a whole number from 1 to 4096 is needed; got 9999"),
        (("scene", "archive", "a", "--missing", "go"), "--missing: 'go' is not one of 'raise', 'skip'"),
        (("scene", "embed", "a"), "Missing argument 'OUT'; `rsvlm scene embed --help` tells what there is"),
        (("scene", "serch"), "No such command 'serch'. Did you mean 'search'; `rsvlm scene --help` tells what there is"),
        (("scene", "search", "a", "b", "--what"), "No such option: --what (Possible options: --where); `rsvlm scene search --help` tells what there is"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line_that_names_option_value_and_range(capsys, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2 and capsys.readouterr().err == f"rsvlm: {said}\n"


def test_help_says_what_a_setting_means_and_that_folders_are_made():
    def told(*command) -> str:
        return " ".join(run("scene", *command, "--help").stdout.replace("│", " ").split())

    embed, search, caption = told("embed"), told("search"), told("caption")
    assert "Default: 256." in embed and "an eighth of the scene's longer side" in caption
    assert "auto: 8 bits as they are" in embed and "It is no probability" in search
    for text in (embed, search, caption, told("archive")):
        assert "made" in text and "missing" in text


def test_exit_status_and_help_of_the_command(capsys):
    for arguments, status in ((["scene"], 2), (["scene", "--help"], 0), (["models", "list"], 0), (["data", "nope"], 2)):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert (stopped.value.code or 0) == status, arguments
    assert "Usage: rsvlm scene" in capsys.readouterr().out


SAID = {"a.png": "a river .", "b.png": "a forest ."}
TRUTH = {"a.png": ["a river .", "a wide river ."], "b.png": ["many trees ."]}


def write_captions(folder: Path, form: str) -> tuple[Path, Path]:
    said, truth = folder / f"said.{form.split('_')[-1]}", folder / f"truth.{form.split('_')[-1]}"
    if form == "json":
        said.write_text(json.dumps(SAID))
        truth.write_text(json.dumps(TRUTH))
    elif form == "coco_json":
        said.write_text(json.dumps([{"image_id": image, "caption": text} for image, text in SAID.items()]))
        images = [{"id": number, "file_name": image} for number, image in enumerate(TRUTH)]
        pairs = [(number, text) for number, own in enumerate(TRUTH.values()) for text in own]
        annotations = [{"id": n, "image_id": number, "caption": text} for n, (number, text) in enumerate(pairs)]
        truth.write_text(json.dumps({"images": images, "annotations": annotations}))
    elif form == "jsonl":
        said.write_text(
            "".join(json.dumps({"image_id": image, "caption": text}) + "\n" for image, text in SAID.items())
        )
        truth.write_text("".join(json.dumps({"image": image, "captions": own}) + "\n" for image, own in TRUTH.items()))
    else:
        pd.DataFrame({"filename": SAID.keys(), "caption": SAID.values()}).to_csv(said, index=False)
        wide = [[image, own[0], own[1] if len(own) > 1 else ""] for image, own in TRUTH.items()]
        pd.DataFrame(wide, columns=["filename", "caption_1", "caption_2"]).to_csv(truth, index=False)
    return said, truth


@pytest.mark.parametrize("form", ["json", "coco_json", "jsonl", "csv"])
def test_anyones_captions_are_read(tmp_path, form):
    from rsvlm.scoring.caption_files import one_caption_each, read_caption_lists

    said, truth = write_captions(tmp_path, form)
    assert one_caption_each(read_caption_lists(said), said) == SAID and read_caption_lists(truth) == TRUTH


def test_scores_without_a_study(tmp_path, capsys):
    said, truth = write_captions(tmp_path, "csv")
    done = run("score", said, truth, "--out", tmp_path / "scores.csv")
    assert done.exit_code == 0, done.output
    scores = pd.read_csv(tmp_path / "scores.csv").set_index("metric")["score"]
    direct, shown = (own := rsvlm.score_captions(SAID, TRUTH)).corpus, str(own)
    assert f"CIDEr        {direct['CIDEr']:.4f}" in shown and "SPICE        not run" in shown and "array" not in shown
    assert scores["CIDEr"] == pytest.approx(direct["CIDEr"]) and scores["BLEU-1"] == pytest.approx(direct["BLEU-1"])
    assert "SPICE" not in scores.index
    table = pd.DataFrame({"image": SAID.keys(), "caption": SAID.values()})
    assert rsvlm.score_captions(table, TRUTH).corpus == direct
    assert "2 captions; one an image" in failure(capsys, "score", truth, truth)
    (tmp_path / "x.csv").write_text("name,words\na,b\n")
    assert "none of image_id" in failure(capsys, "score", tmp_path / "x.csv", truth)
    assert "no such file" in failure(capsys, "score", tmp_path / "y.csv", truth)


SPINS = "import os, rsvlm; print(os.environ.get('GOMP_SPINCOUNT'), os.environ['TOKENIZERS_PARALLELISM'])"


@pytest.mark.parametrize(
    "given, told",
    [({}, "10000 false"), ({"GOMP_SPINCOUNT": "7"}, "7 false"), ({"OMP_WAIT_POLICY": "active"}, "None false")],
)
def test_threads_do_not_spin_for_long_unless_told_to(given, told):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "TOKENIZERS_PARALLELISM")
    settings = {key: value for key, value in os.environ.items() if key not in names} | given
    done = subprocess.run([sys.executable, "-c", SPINS], capture_output=True, text=True, env=settings, check=True)
    assert done.stdout.split() == told.split()


KEEPS = """
import sys
import numpy as np
from rsvlm.models.loading import use_threads

def kept():
    pages = lambda: int(open("/proc/self/statm").read().split()[1])
    before, block = pages(), np.ones(8_000_000)
    del block
    return pages() - before

before = kept()
use_threads(0)
print(before, kept())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize("given, keeps", [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "131072"}, False)])
def test_freed_memory_is_kept_once_a_notebook_chose_its_threads(given, keeps):
    settings = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")} | given
    done = subprocess.run([sys.executable, "-c", KEEPS], capture_output=True, text=True, env=settings, check=True)
    before, after = map(int, done.stdout.split())
    assert before < 1000 and (after > 10_000) == keeps, "of 15,625 pages"


@pytest.mark.parametrize(
    ("python", "shell"),
    [
        ("a.tif: give their numbers, bands=[3, 2, 1], or", "a.tif: give their numbers, --bands 3,2,1, or"),
        ("stretch='percentile', or stretch=[low, high]", "--stretch percentile, or --stretch LOW,HIGH"),
        ("or leave out: missing='skip'", "or leave out: --missing skip"),
        ("go on without them: unreadable='keep'", "go on without them: --unreadable keep"),
        ("more than most_windows (400); give a higher most_windows", "more than --most-windows (400); give a higher --most-windows"),
        ("min_valid: a share is needed, most_sentences: 1", "--min-valid: a share is needed, --sentences: 1"),
        ("sizes: whole numbers", "--size: whole numbers"),
        ("views: 3 is none of 1, 2", "--views: 3 is none of 1, 2"),
        ("give online=True to list it", "give --online to list it"),
        ("x/min_valid/a.tif: 4 bands: 1 views", "x/min_valid/a.tif: 4 bands: 1 views"),
    ],
)  # fmt: skip
def test_messages_name_the_options_of_the_shell(python, shell):
    from rsvlm.cli.options import by_options

    assert by_options(python) == shell
