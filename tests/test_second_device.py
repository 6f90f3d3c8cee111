"""Training, captions, search and dialogue on a device that is not the CPU, without a GPU: other files' tests, run there.

What a GPU refuses is refused (`second_device`): tensors of two devices in one operation, arrays of what was not copied back.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
RUN = {
    "encoders": (
        "test_contrastive.py::test_it_learns_and_saves",
        "test_joined.py::test_both_members_learn_each_by_itself",
        "test_features.py::test_arrays_rows_and_meta",
    ),
    "captioners": (
        "test_captioning.py::test_it_learns_to_caption_and_to_retrieve[bfloat16]",
        "test_captioning.py::test_the_gradient_of_a_drawn_caption_is_its_gain",
        "test_instruction_training.py::test_it_learns_to_answer",
        "test_generation.py::test_captions_do_not_depend_on_the_batch",
        "test_generation.py::test_ret_embeddings_have_length_1_and_see_no_batch",
        "test_dialogue.py::test_ret_brings_the_images_nearest_to_its_embedding",
        "test_dialogue.py::test_a_conversation_keeps_its_context",
    ),
    "vision-language models": (
        "test_vlm.py::test_captions_are_the_models_own[smolvlm-float32]",
        "test_vlm.py::test_captions_are_the_models_own[qwen2_5_vl-float32]",
        "test_vlm_lora.py::test_it_learns_eight_pictures_and_comes_back_from_disk[paligemma]",
    ),
    "commands": (
        "test_front_door.py::test_embed_then_search",
        "test_front_door.py::test_captions_as_a_table",
        "test_command_languages.py::test_a_language_is_given_or_detected_and_english_goes_its_own_way",
        "test_command_languages.py::test_a_scene_is_searched_in_portuguese",
        "test_scenes_captioning.py::test_command",
    ),
}


def run_there(*tests: str) -> subprocess.CompletedProcess:
    named = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1"}
    plain = {name: value for name, value in named.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "second_device", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=TESTS, env=plain, text=True, capture_output=True)


@pytest.mark.parametrize("what", RUN)
def test_it_runs_there(what):
    done = run_there(*RUN[what])
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert passed and int(passed[1]) >= len(RUN[what]) and "skipped" not in done.stdout


def test_what_a_gpu_refuses_is_refused_there(tmp_path):
    (tmp_path / "test_refused.py").write_text(
        "import numpy as np, pytest, torch\n"
        "from rsvlm.models.loading import choose_device\n"
        "def test_it():\n"
        "    there, here = torch.ones(2, 3, device=choose_device('auto')), torch.ones(3)\n"
        "    assert there.device.type == 'elsewhere' and (there + 1).cpu().sum() == 12 and there[torch.tensor([0])].device == there.device\n"
        "    for wrong in (lambda: there + here, lambda: here @ there.T, lambda: torch.stack([here, there[0]]), lambda: here[there[0].long()]):\n"
        "        with pytest.raises(RuntimeError, match='same device'):\n"
        "            wrong()\n"
        "    for wrong in (there.numpy, lambda: np.asarray(there)):\n"
        "        with pytest.raises(TypeError, match='Use Tensor.cpu'):\n"
        "            wrong()\n"
        "def test_nothing():\n"
        "    pass\n"
    )
    done = run_there(str(tmp_path / "test_refused.py"))
    assert "2 passed, 1 error" in done.stdout, done.stdout[-4000:]
    assert "nothing was computed on the second device" in done.stdout
