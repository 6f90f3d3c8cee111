"""Instructions: their truth, balance, splits and wordings, and that nothing in a test was seen in training."""

import json
from collections import Counter

import pandas as pd
import pytest

from rsvlm.data import land_captions
from rsvlm.data.image_facts import Facts, caption_facts, land_facts, table_facts
from rsvlm.data.instruction_kinds import KINDS, NO, SHARES, YES, Table, share_in_words, wordings
from rsvlm.data.instructions import make_tasks, save_tasks
from rsvlm.data.objects import things_in
from rsvlm.data.task_files import load_tasks
from rsvlm.settings import TaskSettings

SCENES = {
    "airplane": ["There are two white airplanes at the airport .", "Two white airplanes are stopped at the airport ."],
    "river": ["A river with some plants on both banks .", "A river goes through a dense forest ."],
    "beach": ["The waves beat on the white sands of a beach .", "A quiet beach with white sand and people ."],
    "tennis court": ["Two tennis courts with some trees .", "There are two tennis courts beside trees ."],
    "harbor": ["Many boats docked at the harbor .", "Lots of boats docked neatly at the harbor ."],
}


def caption_case(images: int = 20) -> list[Facts]:
    """Facts of images with captions, all scenes in all splits."""
    return [
        caption_facts(f"s/{split}{number}", "s", split, captions, label)
        for split in ("train", "val", "test")
        for number in range(images)
        for label, captions in [list(SCENES.items())[number % len(SCENES)]]
    ]


def tile(number: int, split: str, shares: dict[str, float], **more: object) -> Facts:
    """Facts of a tile whose covers are strips from left to right, in the order given."""
    cells, left = [], 0.0
    edges = {}
    for name, share in shares.items():
        edges[name] = (left, left + share)
        left += share
    for column in range(3):
        low, high = column / 3, (column + 1) / 3
        cell = {name: max(0.0, min(high, b) - max(low, a)) * 3 for name, (a, b) in edges.items()}
        cells.append({name: share for name, share in cell.items() if share})
    truth = {
        "shares": dict(sorted(shares.items(), key=lambda pair: -pair[1])),
        "grid": [cells] * 3,
        "coast": "sea" in shares,
        "lakes": 0,
        "islands": 0,
        "climates": {"arid": 1.0},
        "white": 0.0,
    } | more
    row = {"image_id": f"t/{split}{number}", "source": "t", "split": split, "captions": ["Wide grassland."]}
    return land_facts(row, truth)


def land_case(images: int = 20) -> list[Facts]:
    """Facts of tiles in all splits, two thirds of them at the sea."""
    covers = [{"sea": 0.25, "grassland": 0.75}, {"cropland": 0.52, "grassland": 0.48}, {"grassland": 0.3, "sea": 0.7}]
    return [tile(number, split, covers[number % 3]) for split in ("train", "val", "test") for number in range(images)]


# Facts


def test_what_captions_tell():
    facts = caption_facts("a", "s", "test", SCENES["airplane"], "airplane")
    assert facts.present[0] == "airplane" and set(facts.present) == {"airplane", "airport"}
    assert facts.counts == {"airplane": 2} and facts.colours == {"airplane": "white"}
    assert {"boat", "river", "tennis court"} <= facts.absent
    assert not {"runway", "car", "tree", "building"} & facts.absent  # kin, or what captions do not tell
    assert "vehicle" in facts.named


def test_nothing_is_both_there_and_not_there():
    for facts in [*caption_case(), *land_case()]:
        assert not facts.absent & facts.named
        assert set(facts.present) <= facts.named


def test_one_caption_alone_is_not_enough_where_there_are_several():
    facts = caption_facts("a", "s", "test", ["A river.", "A river with a boat."], None)
    assert facts.present == ("river",)
    assert "boat" not in facts.absent and "boat" in facts.named


def test_what_is_denied_is_not_there():
    facts = caption_facts("a", "s", "test", ["An intersection with no cars.", "An intersection."], None)
    assert "car" in facts.absent
    facts = caption_facts("a", "s", "test", ["An intersection with no cars.", "An intersection with cars."], None)
    assert "car" not in facts.absent and "car" not in facts.present


def test_a_label_beside_the_captions_is_left_out():
    facts = caption_facts(
        "a", "s", "test", ["It is a piece of farmland .", "It is a piece of cropland ."], "intersection"
    )
    assert facts.scene is None and facts.present == ("cropland",)
    assert "intersection" not in facts.absent


def test_what_maps_tell():
    facts = tile(1, "test", {"sea": 0.25, "mixed forest": 0.75})
    assert facts.present == ("mixed forest", "sea", "forest", "coast")
    assert facts.places == {"sea": "left"} and facts.climate == "arid"
    assert {"cropland", "island", "snow and ice"} <= facts.absent and "forest" not in facts.absent
    assert "island" not in tile(1, "test", {"sea": 0.25, "mixed forest": 0.75}, islands=2).absent


def test_seasonal_snow_is_no_absent_snow():
    assert "snow and ice" in tile(1, "test", {"grassland": 1.0}).absent
    assert "snow and ice" not in tile(1, "test", {"grassland": 1.0}, white=0.3).absent


def test_what_is_hardly_there_is_asked_for_neither_way():
    facts = tile(1, "test", {"cropland": 0.03, "grassland": 0.97})
    assert "cropland" not in facts.present and "cropland" not in facts.absent


def test_a_corner_a_side_and_a_spread():
    shares = {"sea": 0.1, "grassland": 0.9}
    corner = [[{"sea": 0.9, "grassland": 0.1}, {"grassland": 1.0}, {"grassland": 1.0}], [{"grassland": 1.0}] * 3]
    grid = [corner[0], corner[1], corner[1]]
    assert tile(1, "test", shares, grid=grid).places == {"sea": "top left"}
    even = [[{"sea": 0.1, "grassland": 0.9}] * 3] * 3
    assert tile(1, "test", shares, grid=even).places == {}
    band = [[{"grassland": 1.0}] * 3, [{"sea": 0.3, "grassland": 0.7}] * 3, [{"grassland": 1.0}] * 3]
    assert tile(1, "test", shares, grid=band).places == {}  # from side to side: neither middle nor side


def test_facts_of_a_table_know_their_translations(tmp_path):
    table = pd.DataFrame(
        [
            {
                "image_id": "s/1",
                "source": "s",
                "split": "test",
                "path": "x/1.jpg",
                "captions": ["A river."],
                "label": None,
            }
        ]
    )
    rows = [{"image_id": "s/1", "language": "pt", "captions": ["Um rio.", None], "how": "machine"}]
    (facts,) = table_facts(table, tmp_path / "blue_marble", rows)
    assert facts.translations == {"pt": ("Um rio.",)}


# Wordings


def test_every_kind_has_eight_wordings_of_each_sort():
    forms = {form.partition(":")[0] for form in wordings()}
    assert forms == set(KINDS)
    for form, own in wordings().items():
        assert len(own["train"]) == len(own["held_out"]) == 8, form
        assert len({*own["train"], *own["held_out"]}) == 16, form


def test_shares_are_told_in_the_captions_words():
    for share in [step / 200 for step in range(11, 200)]:
        assert share_in_words(share) == land_captions._share_in_words(share)
    assert SHARES[-1][0] == 0.05


# Tasks


@pytest.mark.parametrize("case", [caption_case, land_case])
def test_tasks_are_true_balanced_and_apart(case):
    facts = {one.image_id: one for one in case()}
    settings = TaskSettings(test_tasks=16, tasks_per_image=5)
    tasks = make_tasks(facts.values(), settings)
    assert {task["split"] for task in tasks} == {"train", "val", "test"}
    for task in tasks:
        own = facts[task["image_id"]]
        assert task["split"] == own.split
        assert "{" not in task["instruction"].partition("keys")[0] and task["answer"]
        assert task["held_out"] == (task["split"] != "train") == (task["wording"] >= 8)
        choices = task["truth"].get("choices")
        if choices:
            assert task["answer"] in choices
        if task["kind"] == "presence":
            thing = task["truth"]["thing"]
            assert thing in (own.present if task["answer"] == YES else own.absent)
    # Of each thing as many with yes as with no
    for split in ("val", "test"):
        asked = [task for task in tasks if task["kind"] == "presence" and task["split"] == split]
        answers = Counter((task["truth"]["thing"], task["answer"]) for task in asked)
        assert answers and all(answers[thing, YES] == answers[thing, NO] for thing, _ in answers)
    by_image = Counter(task["image_id"] for task in tasks if task["split"] == "train")
    assert max(by_image.values()) <= 5
    by_kind = Counter((task["split"], task["kind"]) for task in tasks if task["split"] != "train")
    assert max(by_kind.values()) <= 16 + 2
    assert len({task["task_id"] for task in tasks}) == len(tasks)


def test_a_question_is_asked_in_several_wordings_with_one_answer():
    tasks = [task for task in make_tasks(land_case(), TaskSettings(wordings=3)) if task["split"] == "test"]
    for question in {task["question"] for task in tasks}:
        own = [task for task in tasks if task["question"] == question]
        assert len(own) == len({task["wording"] for task in own}) == 3
        assert len({task["answer"] for task in own}) == len({task["image_id"] for task in own}) == 1


def test_negation_turns_the_answer_of_the_same_image():
    (seen,) = [one for one in land_case(2) if one.split == "test" and "sea" in one.present]
    table = Table({"sea": 9, "grassland": 9, "cropland": 9}, 10)
    answers = {question.words["query"]: question.answer for question in KINDS["negation"](seen, table, _Draw())}
    assert answers["grassland and sea"] == YES and answers["grassland but no sea"] == NO
    assert answers["grassland and cropland"] == NO and answers["grassland but no cropland"] == YES


class _Draw:
    """Draws everything there is."""

    def sample(self, values, count):
        return list(values)


def test_false_premises_are_worded_as_true_ones():
    tasks = [task for task in make_tasks(land_case(), TaskSettings()) if task["kind"] == "false_premise"]
    told = Counter((task["split"], task["truth"]["thing"], task["truth"]["premise"]) for task in tasks)
    assert told and all(told[split, thing, True] == told[split, thing, False] for split, thing, _ in told)
    for task in tasks:
        assert ("no " in task["answer"]) == (not task["truth"]["premise"])


def test_answers_have_the_form_they_are_asked_for():
    tasks = make_tasks([*caption_case(), *land_case()], TaskSettings())
    assert {task["kind"] for task in tasks} == set(KINDS) - {"language"}
    for task in tasks:
        if task["kind"] == "json":
            assert json.loads(task["answer"]) == task["truth"]["value"]
            assert all(f'"{key}"' in task["instruction"] for key in task["truth"]["value"])
        if task["kind"] == "at_most_words":
            assert len(task["answer"].split()) <= task["truth"]["value"]
        if task["kind"] == "one_word":
            assert len(task["answer"].split()) == 1
        if "there" in task["truth"] and task["kind"] != "json":
            assert things_in(task["answer"]) <= set(task["truth"]["there"]), task


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_tasks(make_tasks(caption_case(), TaskSettings()), tmp_path / name, TaskSettings())
    assert (tmp_path / "a" / "tasks.jsonl").read_bytes() == (tmp_path / "b" / "tasks.jsonl").read_bytes()
    other = make_tasks(caption_case(), TaskSettings(seed=1))
    assert other != load_tasks(tmp_path / "a" / "tasks.jsonl")
    test = load_tasks(tmp_path / "a" / "tasks.jsonl", "test")
    assert test and {task["split"] for task in test} == {"test"}


def test_no_kinds_no_tasks(tmp_path):
    settings = TaskSettings(kinds=[])
    about = save_tasks(make_tasks(caption_case(), settings), tmp_path, settings)
    assert about["tasks"] == 0 and load_tasks(tmp_path / "tasks.jsonl") == []


def test_wrong_kinds_and_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="unknown 'presense'; did you mean 'presence'"):
        make_tasks([], TaskSettings(kinds=["presense"]))
    with pytest.raises(FileNotFoundError, match="make_instructions"):
        load_tasks(tmp_path / "tasks.jsonl")
