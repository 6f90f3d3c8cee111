"""Settings of a machine: where bulk work is computed."""

from typing import Self

from pydantic import model_validator

from rsvlm.settings.checks import Settings, Within, setting, shown


class LocalWorkers(Settings):
    """Processes of this machine that share bulk work: `cluster: {local: {workers: 2}}`."""

    workers: int = setting(
        2,
        "processes, each with the model",
        Within(1, 1024, "no machine has more than 1,024 cores for one process each"),
    )
    threads: int = setting(
        1, "shards at a time in each process", Within(1, 1024, "so many threads of one process wait for each other")
    )


class ClusterSettings(Settings):
    """Where bulk work is computed: said in `user/cluster.yaml` of a study, or by `RSVLM_CLUSTER`.

    It belongs to a machine, not to a study: results are the same bytes, so no stage has it among its parameters.
    """

    cluster: str | dict = setting(
        "none",
        "none, {local: {workers: 2, threads: 1}}, a scheduler's address (tcp://HOST:8786), or a file of dask-jobqueue",
    )

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        self.choice
        return self

    @property
    def choice(self) -> LocalWorkers | str | None:
        """Local workers, an address or a file; None: this process."""
        told = self.cluster
        if isinstance(told, dict):
            if told.keys() != {"local"} or not isinstance(told["local"], dict | None):
                raise ValueError(f"'cluster': {shown(told)}; as a mapping it is {{local: {{workers: 2, threads: 1}}}}")
            return LocalWorkers.of_mapping(told["local"] or {})
        if told == "none":
            return None
        if "://" not in told and not told.endswith((".yaml", ".yml")):
            raise ValueError(
                f"'cluster': {shown(told)} is neither none, nor {{local: {{workers: 2}}}}, nor an address such as "
                "tcp://HOST:8786, nor a file of dask-jobqueue (.yaml)"
            )
        return told
