"""Rows over which MLflow's server does not start unless it is told to use them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from stackops.migration.report import Hazard


@dataclass(frozen=True)
class Switch:
    """A variable of the server's without which MLflow does not start over some rows."""

    variable: str
    tables: tuple[str, ...]
    column: str
    why: str
    fix: str

    def is_on(self, env: Mapping[str, str]) -> bool:
        """Whether the server of this stack has it, as MLflow reads it."""
        return env.get(self.variable, "").lower() in ("true", "1")

    def remedy(self, copied: bool) -> str:
        """Return what to do: a repair needs a copy that can be mended."""
        if self.fix and copied:
            return f"FIX={self.fix}"
        return f"{self.variable}=true, in compose.override.yaml"


ROLLUPS = ("sql_trace_metric_daily_rollups", "sql_span_cost_daily_rollups", "sql_assessment_daily_rollups")
ROLLUP_QUEUE = "sql_trace_rollup_rebuild_queue"
SWITCHES = (
    Switch(
        "MLFLOW_ENABLE_WORKSPACES", ("experiments", "registered_models", "webhooks"), "workspace",
        "in another workspace than 'default', over which the server would not start", "",
    ),
    Switch(
        "MLFLOW_SQL_TRACE_ROLLUPS_ENABLED", ROLLUPS, "",
        "daily sums of traces, over which the server would not start", "rollups",
    ),
)  # fmt: skip


def switched_off(source, moved: Collection[str], env: Mapping[str, str], copied: bool) -> list[Hazard]:
    """Return the rows over which the server of this stack would not start, because it lacks a variable."""
    found = []
    for switch in SWITCHES:
        for name in moved if not switch.is_on(env) else ():
            if name not in switch.tables or (switch.column and switch.column not in source.tables[name]):
                continue
            count = source.total(name, f"{switch.column} <> 'default'" if switch.column else "1 = 1")
            if count:
                remedy = switch.remedy(copied)
                found.append(Hazard("switch", name, switch.column, count, "", switch.why, remedy))
    return found
