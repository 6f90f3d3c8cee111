"""Where bulk work is computed: what can be said, who says it, and that Dask stays out where nobody does."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_case import tried

from rsvlm.cluster import VARIABLE, Shard, chosen_cluster, map_shards
from rsvlm.settings import LocalWorkers
from rsvlm.study import config, paths

TESTS = Path(__file__).parent


def test_without_a_cluster_dask_is_not_imported():
    program = (
        "import sys; from cluster_case import square; from rsvlm.cluster import Shard, map_shards\n"
        "done = [value for _, value in map_shards(square, [Shard('a', (3, ''))], None, what='w', unit='n', model=10)]\n"
        "assert done == [90]; assert not {'dask', 'distributed'} & set(sys.modules)"
    )
    named = {name: value for name, value in os.environ.items() if name != VARIABLE}
    named["PYTHONPATH"] = f"{TESTS}{os.pathsep}{TESTS.parent}"
    subprocess.run([sys.executable, "-c", program], env=named, check=True)
    for path in (TESTS.parent / "rsvlm").rglob("*.py"):
        heads = [one for one in ast.parse(path.read_text()).body if isinstance(one, ast.Import | ast.ImportFrom)]
        names = {getattr(one, "module", None) or one.names[0].name for one in heads}
        assert not {name.split(".")[0] for name in names} & {"dask", "distributed"}, path


def test_in_this_process_an_error_comes_at_once(tmp_path):
    three = [Shard(f"number {number}", (number, str(tmp_path))) for number in range(3)]
    with pytest.raises(ValueError, match="two is no number"):
        list(map_shards(tried, three, None, what="tries", unit="n"))
    assert (tmp_path / "1").is_file() and (tmp_path / "2").read_text() == "x\n", "one try"
    assert not list(map_shards(tried, [], None, what="tries", unit="n"))


@pytest.mark.parametrize(
    ("told", "choice"),
    [
        ("", None),
        ("none", None),
        ('{"local": {"workers": 3, "threads": 2}}', LocalWorkers(workers=3, threads=2)),
        ('{"local": null}', LocalWorkers()),
        ("tls://there:8786", "tls://there:8786"),
        ("user/slurm.yaml", "user/slurm.yaml"),
    ],
)
def test_what_can_be_chosen(told, choice, monkeypatch):
    monkeypatch.setenv(VARIABLE, told)
    assert chosen_cluster() == choice


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("slurm", "'slurm' is neither none"),
        ('{"lokal": {}}', "as a mapping it is {local: {workers: 2, threads: 1}}"),
        ('{"local": {"workers": 0}}', "'workers' is 0, but must be at least 1"),
        ('{"local": {"worker": 2}}', "did you mean 'workers'"),
        ('{"local"', "RSVLM_CLUSTER="),
    ],
)
def test_what_cannot_be_chosen(told, message, monkeypatch):
    monkeypatch.setenv(VARIABLE, told)
    with pytest.raises(ValueError, match=message):
        chosen_cluster()


def test_a_study_says_it_in_a_file_of_this_machine(scratch_root, monkeypatch):
    paths.find_root.cache_clear()
    monkeypatch.delenv(VARIABLE, raising=False)
    try:
        file = scratch_root / "user" / "cluster.yaml"
        file.parent.mkdir()
        for line, told in (
            ("cluster: {local: {workers: 2}}", '{"local": {"workers": 2}}'),
            ("cluster: tcp://there:8786", "tcp://there:8786"),
            ("cluster: user/slurm.yaml", str(scratch_root / "user" / "slurm.yaml")),
            ("cluster: none", None),
            ("", None),
        ):
            file.write_text(f"# of mine\n{line}\n")
            config.use_cluster()
            assert os.environ.get(VARIABLE) == told
        for line, message in (
            ("cluster: there", "'there' is neither"),
            ("claster: none", "claster"),
            ("- a", "one line"),
        ):
            file.write_text(line)
            with pytest.raises(ValueError, match=f"cluster.yaml: .*{message}"):
                config.use_cluster()
        monkeypatch.setenv(VARIABLE, "tcp://mine:8786")  # of a person, for this run
        config.use_cluster()
        assert os.environ[VARIABLE] == "tcp://mine:8786"
    finally:
        paths.find_root.cache_clear()
