"""Training on several processes: the weights of one, and checkpoints that any number of them goes on from."""

import json
import signal
import subprocess
import sys

import psutil
import pytest
import torch
import training_cases as cases
from gloo_processes import start
from safetensors.torch import load_file

from rsvlm.models.captioner import load_capret
from rsvlm.models.features import load_features
from rsvlm.models.zoo import load_encoder
from rsvlm.training import captioning, processes
from rsvlm.training.processes import Team, starting_command

torch.set_num_threads(1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_models):
    """Pictures, their table, and a cache that all processes of a test share."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "clip").symlink_to(tiny_models.clip)
    cases.write_pictures(folder).to_json(folder / "table.json", orient="records")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RSVLM_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def alone(folder):
    """What one process gives with the settings of each number of processes."""
    table = cases.read_table(folder)
    return {
        size: cases.adapt(folder / "clip", table, settings, checkpoints=folder / "alone")
        for size, settings in cases.SETTINGS.items()
    }


@pytest.fixture(scope="module")
def captioned(folder):
    """What one process gives of the captioner."""
    return cases.caption(cases.make_features(), checkpoints=folder / "alone")


@pytest.fixture(scope="module")
def found(folder):
    """The folder with what the processes of ``training_cases`` leave."""
    start(cases.__file__, 3, folder)
    return folder


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_end_where_one_does(found, alone, size):
    told = [json.loads((found / f"{size}_{rank}.json").read_text()) for rank in range(size)]
    weights = [load_file(found / f"{size}_{rank}.safetensors") for rank in range(size)]
    cases.same_within_rounding(weights[0], told[0]["curve"], *alone[size][:2])
    for row, right in zip(told[0]["validation"], alone[size][1].validation, strict=True):
        assert row == pytest.approx(right)
    for other in weights[1:]:
        assert all(torch.equal(value, other[name]) for name, value in weights[0].items()), "all hold the same weights"
    assert not list((found / "own").iterdir()), "checkpoints and their lock are gone"


def test_another_number_of_processes_goes_on(found, alone):
    told = json.loads((found / "resumed_0.json").read_text())
    assert any("continuing from step 2" in line for line in told["lines"])
    cases.same_within_rounding(load_file(found / "resumed_0.safetensors"), told["curve"], *alone[3][:2])


@pytest.mark.parametrize("size", [2, 3])
def test_captions_instructions_and_rewards_are_shared_out(found, captioned, size):
    captioner, result, _ = captioned
    told = [json.loads((found / f"captioner_{size}_{rank}.json").read_text()) for rank in range(size)]
    weights = [load_file(found / f"captioner_{size}_{rank}.safetensors") for rank in range(size)]
    for curve, expected in ((told[0]["curve"], result.curve), (told[0]["reward"]["curve"], result.reward.curve)):
        assert len(curve) == len(expected)
        for row, right in zip(curve, expected):
            assert row == pytest.approx(right, rel=1e-4, abs=2e-6)
    assert told[0]["validation"][-1] == pytest.approx(result.validation[-1], rel=1e-4)
    start = cases.make_captioner(cases.make_features()).state_dict()
    for name, value in captioner.trained_state().items():
        moved = (value - start[name]).norm()
        assert (weights[0][name] - value).norm() <= 1e-3 * moved + 1e-7, name
        assert all(torch.equal(weights[0][name], other[name]) for other in weights)


def test_a_language_model_in_parts_trains_as_a_whole_one(found, tmp_path):
    captioner, result, _ = cases.caption(
        cases.make_features(), cases.SHARDED, cases.RewardSettings(), checkpoints=tmp_path
    )
    for rank in range(2):
        told = json.loads((found / f"sharded_{rank}.json").read_text())
        assert len(told["share"]) > 8 and set(told["share"]) == {0.5}
        for row, right in zip(told["curve"], result.curve, strict=True):
            assert row == pytest.approx(right, rel=1e-4, abs=2e-6)
        assert "batch_size: 7 images are no equal parts for 2 processes" in told["refused"][0]
        assert told["refused"][1].startswith("reward_steps: ")
    weights, start = (
        load_file(found / "sharded_0.safetensors"),
        cases.make_captioner(cases.make_features()).state_dict(),
    )
    for name, value in captioner.trained_state().items():
        assert (weights[name] - value).norm() <= 1e-3 * (value - start[name]).norm() + 1e-7, name


def test_chunks_of_the_captioners_batch_give_its_gradients(captioned, tmp_path):
    captioner, result, _ = captioned
    settings = cases.CaptioningSettings(**dict(cases.CAPTIONING) | {"chunk": 2})
    chunked, again, _ = cases.caption(cases.make_features(), settings, checkpoints=tmp_path)
    for row, right in zip([*again.curve, *again.reward.curve], [*result.curve, *result.reward.curve], strict=True):
        assert row == pytest.approx(right, rel=1e-4, abs=2e-6)


def test_what_a_captioner_needs_goes_through_a_folder(captioned, tmp_path, monkeypatch):
    """The work is done here, by one process, after all was written and read as for others."""
    features = cases.make_features()
    cases.write_features(features, tmp_path / "features")
    monkeypatch.setattr(captioning, "starting_command", lambda device: ["torchrun"])

    def here(command, work, folder, device, log):
        assert command == ["torchrun"] and work in processes.WORK
        with monkeypatch.context() as patch:
            patch.setattr(captioning, "starting_command", lambda device: None)
            getattr(captioning, processes.WORK[work][1])(folder, device, log)

    monkeypatch.setattr(captioning, "run_on_processes", here)
    with pytest.raises(ValueError, match="they have to lie in a folder"):
        cases.caption(features)
    read, places = load_features(tmp_path / "features"), {"checkpoints": tmp_path / "own", "save_to": tmp_path / "c"}
    captioner, result, lines = cases.caption(read, notes={"prompting": {}}, **places)
    whole, expected, said = captioned
    assert result == expected and lines == said and not captioner.training
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in captioner.state_dict().items())
    loaded = load_capret(tmp_path / "c", "cpu", merge=False)
    assert loaded.config["prompting"] == {} and loaded.config["kept_step"] == result.kept_step
    assert list((tmp_path / "own").iterdir()) == []


def test_a_killed_process_ends_the_run_and_the_next_goes_on(folder, alone, tmp_path, monkeypatch):
    monkeypatch.setenv(processes.VARIABLE, "2")
    table, encoder = cases.read_table(folder), load_encoder(str(folder / "clip"))
    here = {"checkpoints": tmp_path / "checkpoints", "save_to": tmp_path / "encoder"}

    def kill_the_second(line):
        if line.startswith("epoch 2"):
            for process in psutil.Process().children(recursive=True):
                if "rsvlm.training.processes" in process.cmdline() and process.environ().get("RANK") == "1":
                    process.send_signal(signal.SIGKILL)

    before = psutil.Process().children()  # of other tests
    with pytest.raises(RuntimeError, match="one of its processes died .*from its checkpoint"):
        cases.adapt_encoder(encoder, table, cases.SETTINGS[2], log=kill_the_second, **here)
    assert set(psutil.Process().children()) <= set(before) and not here["save_to"].exists()
    encoder, result, lines = cases.adapt(folder / "clip", table, cases.SETTINGS[2], **here)
    assert [line for line in lines if "continuing from step" not in line] == alone[2][2] != lines, "told as by one"
    cases.same_within_rounding(encoder.state_dict(), result.curve, *alone[2][:2])
    assert load_encoder(here["save_to"]).fingerprint() == encoder.fingerprint()
    assert list(here["checkpoints"].iterdir()) == []


def test_processes_end_with_who_asked_for_them():
    program = "from rsvlm.training.processes import _end_with_starter as end; end()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as running:
        assert running.poll() is None
        running.stdin.close()
        assert running.wait(60) == 1


def test_what_a_process_raised_is_raised_here(tmp_path):
    def raised(message):
        (tmp_path / processes.ERROR).write_text(json.dumps({"message": message}))
        return processes._failure("adapt_encoder", tmp_path)

    diverged = raised({"message": "FloatingPointError: adapt_encoder stopped at step 4: loss nan"})
    assert type(diverged) is FloatingPointError and str(diverged) == "adapt_encoder stopped at step 4: loss nan"
    assert str(raised({"message": "ImageError: a.png: cut short"})) == "ImageError: a.png: cut short"
    gone = raised({"message": "RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer"})
    assert "one of its processes died" in str(gone)


def test_what_starts_processes(monkeypatch):
    for told in ("", "0", "1", " 1 "):
        monkeypatch.setenv(processes.VARIABLE, told)
        assert starting_command(CPU) is None
    monkeypatch.setenv(processes.VARIABLE, "3")
    assert starting_command(CPU)[-2:] == ["--standalone", "--nproc-per-node=3"]
    monkeypatch.setenv(processes.VARIABLE, f"{sys.executable} -m torch.distributed.run --nnodes 2")
    assert starting_command(CPU)[-1] == "2"
    monkeypatch.setenv(processes.VARIABLE, "no-such-program 4")
    with pytest.raises(ValueError, match="RSVLM_PROCESSES: 'no-such-program' is neither a number"):
        starting_command(CPU)
    monkeypatch.setenv(processes.VARIABLE, "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="RSVLM_PROCESSES: 4 processes, but 2 GPUs"):
        starting_command(torch.device("cuda"))


def test_parts_are_whole_and_even():
    for n in (1, 7, 8, 60):
        for size in (1, 2, 3, 5):
            parts = [range(n)[Team(rank, size).part(n)] for rank in range(size)]
            assert [i for part in parts for i in part] == list(range(n))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_fewer_images_than_processes(monkeypatch):
    monkeypatch.setattr(Team, "here", classmethod(lambda cls: cls(0, 3)))
    with pytest.raises(ValueError, match="batch_size: 2 is less than the 3 processes; start 2 or fewer"):
        cases.contrastive.check_batch(2, 100)
