"""What the training of a captioner gave."""

from collections.abc import Sequence
from dataclasses import dataclass

LOSSES = ("loss", "caption_loss", "retrieval_loss", "ret_token_loss")
INSTRUCTION_LOSS = "instruction_loss"  # beside them where there are instructions


@dataclass(frozen=True)
class CaptioningResult:
    """What a training gave."""

    kept_step: int
    steps: int
    trainable_parameters: dict[str, int]  # by kind
    validation: list[dict]  # one row a measurement
    curve: list[dict]  # one row a step
    reward: "RewardResult | None" = None

    @property
    def kept_validation(self) -> dict | None:
        """The measurement at the kept step, if there was one."""
        return row_at(self.validation, self.kept_step)

    def metrics(self) -> dict:
        """What is worth comparing between runs, as JSON values."""
        measured = {
            key: value for key, value in (self.kept_validation or {}).items() if key in (*LOSSES, INSTRUCTION_LOSS)
        }
        return {
            "kept_step": self.kept_step,
            "steps": self.steps,
            "trainable_parameters": sum(self.trainable_parameters.values()),
            "trainable_parameters_by_kind": self.trainable_parameters,
            "validation": measured or None,
            "reward": self.reward.metrics() if self.reward else None,
        }


@dataclass(frozen=True)
class RewardResult:
    """What self-critical training gave."""

    kept_step: int
    steps: int
    validation: list[dict]  # one row a measurement: step, epoch, cider; the first before any step
    curve: list[dict]  # one row a step

    @property
    def kept_validation(self) -> dict | None:
        """The measurement at the kept step, if there was one."""
        return row_at(self.validation, self.kept_step)

    def metrics(self) -> dict:
        """What is worth comparing between runs, as JSON values."""
        before, kept = row_at(self.validation, 0), self.kept_validation
        cider = {"before": before and before["cider"], "kept": kept and kept["cider"]}
        rewards = [row["reward"] for row in self.curve]
        return {
            "kept_step": self.kept_step,
            "steps": self.steps,
            "validation_cider": cider,
            "reward": {"first": rewards[0], "last": rewards[-1]},
        }


def row_at(validation: Sequence[dict], step: int) -> dict | None:
    """The measurement after so many steps."""
    return next((row for row in validation if row["step"] == step), None)
