"""The memory of a training on several processes of one machine: so many times what each holds, told and refused before it starts."""

import pytest
from test_memory import GB, section, study  # noqa: F401

from rsvlm.study import memory, processes
from rsvlm.study.memory import ESTIMATES, check_memory
from rsvlm.study.processes import training_processes
from rsvlm.training.processes import VARIABLE


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("", (1, 1)),
        ("1", (1, 1)),
        ("3", (3, 3)),
        ("torchrun --standalone --nproc-per-node 4", (4, 4)),
        ("srun torchrun --nnodes 2 --nproc_per_node=4 --rdzv-endpoint HOST:29500", (4, 8)),
        ("torchrun --nproc-per-node auto", None),
        ("torchrun --nnodes 1:4 --nproc-per-node 2", None),
        ("mpirun -n 4 torchrun", None),
    ],
)
def test_how_many_processes_are_asked_for(monkeypatch, told, found):
    assert processes.TRAINING == VARIABLE
    monkeypatch.setenv(VARIABLE, told)
    assert training_processes() == found


@pytest.mark.parametrize("stage", ["adapt_encoder", "finetune_lora"])
def test_so_many_processes_need_so_many_times_what_each_holds(monkeypatch, stage):
    values, lines = section("blue_marble", stage), []
    monkeypatch.setenv(VARIABLE, "3")
    own = ESTIMATES[stage](values | {"batch_size": -(-values["batch_size"] // 3)})
    each = memory.LIBRARIES + sum(part.size for part in own)
    whole = 3 * each + memory.LIBRARIES + own[0].size
    monkeypatch.setattr(memory, "free_memory", lambda: whole + 0.1 * GB)
    check_memory(stage, values, lines.append)
    by = f"{each / GB:,.1f} GB by each of 3 processes (RSVLM_PROCESSES), "
    assert len(lines) == 1 and f"[{stage}] memory: about {whole / GB:,.1f} GB needed: {by}" in lines[0]
    assert (
        each > 0.5 * GB + sum(part.size for part in ESTIMATES[stage](values)) / 3
    )  # no third of it: models are whole in each
    monkeypatch.setattr(memory, "free_memory", lambda: whole - 0.1 * GB)  # one process would fit well
    with pytest.raises(ValueError) as refused:
        check_memory(stage, values, lines.append, file="mine.yaml")
    said = str(refused.value)
    assert said.startswith(f"mine.yaml, section '{stage}': about {whole / GB:,.1f} GB of memory are needed: {by}")
    assert f"but {whole / GB - 0.1:,.1f} GB are free" in said and ", or RSVLM_PROCESSES. The estimate" in said
    monkeypatch.setenv(VARIABLE, "1")
    check_memory(stage, values, lines.append)
    assert "processes" not in lines[-1]


def test_other_stages_run_in_one_process_whatever_trainings_do(monkeypatch):
    lines = []
    for told in ("1", "3"):
        monkeypatch.setenv(VARIABLE, told)
        check_memory("encode_images", section("blue_marble", "encode_images"), lines.append)
    assert lines[0] == lines[1]


def test_each_process_has_a_gpu_of_its_own_and_the_machine_has_all_of_them(monkeypatch):
    monkeypatch.setenv(VARIABLE, "4")
    monkeypatch.setattr(memory, "gpu_memory", lambda: 40 * GB)
    monkeypatch.setattr(memory, "free_memory", lambda: 90 * GB)
    lines, values = [], section("ucm", "adapt_encoder")
    check_memory("adapt_encoder", values, lines.append)
    assert "GPU memory" in lines[0] and "processes" not in lines[0] and "by each of 4 processes" in lines[1]
    monkeypatch.setattr(memory, "free_memory", lambda: 2 * GB)
    with pytest.raises(ValueError, match="of memory are needed: .* by each of 4 processes"):
        check_memory("adapt_encoder", values, lines.append)


def test_a_command_that_does_not_say_how_many_is_not_estimated(monkeypatch):
    monkeypatch.setenv(VARIABLE, "mpirun -n 4 torchrun")
    lines = []
    check_memory("adapt_encoder", section("blue_marble", "adapt_encoder", batch_size=8192), lines.append)
    assert len(lines) == 1 and "not estimated (RSVLM_PROCESSES tells no --nproc-per-node" in lines[0]
