"""Leave out training steps that would harm the model, or stop the run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from align.configs.knobs import SupervisedConfig, TrainingConfig
from align.errors import HealthStop

_RECENT = 50  # steps whose losses give the median
_FEWEST = 10  # losses needed before a step is refused
_IN_A_ROW = 10  # steps left out in a row that end the run


def stop_unless_skipped(config: TrainingConfig, reason: str) -> None:
    """Raise `HealthStop` for a number that is not finite, unless `on_nonfinite` says skip."""
    if config.on_nonfinite == "stop":
        raise HealthStop(f"{reason}; lower learning_rate, or give on_nonfinite=skip")


class Guard:
    """A check for steps to leave out: a loss far above recent ones, or a number that is not finite.

    PaLM (section 5.1) goes back to before a spike and skips some hundred batches. This skips only
    the one batch.

    Attributes:
        recent: losses of the last steps, None for a step that was left out. There is no other
            state.

    Args:
        config: its `max_loss_rise` and `on_nonfinite` say what is left out.
        report: called with the step, the event's name and the reason for a step that is left out.
    """

    def __init__(self, config: SupervisedConfig, report: Callable[[int, str, str], None]):
        self._config, self._report = config, report
        self.recent: list[float | None] = []

    def refuses(self, step: int, loss: float, norm: float) -> bool:
        """Return whether step `step`, counted from 1 as in the log, must be left out; report it.

        Raises:
            HealthStop: a number is not finite and is not to be skipped, or ten steps in a row are
                left out.
        """
        known = [loss for loss in self.recent if loss is not None]
        reason = None
        if not (math.isfinite(loss) and math.isfinite(norm)):
            reason = f"step {step}: the loss is {loss} and the gradient's norm {norm}"
            stop_unless_skipped(self._config, reason)
        elif self._config.max_loss_rise is not None and len(known) >= _FEWEST:
            usual = statistics.median(known)
            if loss > usual + self._config.max_loss_rise:
                reason = (
                    f"step {step}: the loss is {loss:.3f}, and {usual:.3f} is the recent median"
                )
        self.recent = [*self.recent, None if reason else loss][-_RECENT:]
        if self.recent[-_IN_A_ROW:] == [None] * _IN_A_ROW:
            raise HealthStop(f"{reason}; it is the tenth left out in a row; lower learning_rate")
        if reason:
            self._report(step, "step_left_out", reason)
        return reason is not None


class Skips:
    """A counter of iterations in a row without an optimizer step. The tenth ends the run.

    Attributes:
        in_a_row: the count. There is no other state.
    """

    def __init__(self) -> None:
        self.in_a_row = 0

    def count(self, iteration: int, skipped: bool) -> None:
        """Count an iteration; raise `HealthStop` at the tenth in a row that was skipped."""
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if self.in_a_row == _IN_A_ROW:
            raise HealthStop(
                f"iteration {iteration}: the tenth in a row without a step: a number was not"
                " finite, or nothing was left to learn from (the policy was past stop_kl_per_token,"
                " all groups were dropped, or no reward reached min_reward); lower learning_rate,"
                " or choose other prompts"
            )
