"""Optuna's tables as we read and copy them in bulk: schema 12, which Optuna 3.2 to 5 share.

Optuna creates and migrates them and checks their version when a database is opened. Values that only Optuna reads
back stay as they are stored: JSON texts, internal representations of parameters, naive UTC times.
"""

from __future__ import annotations

from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import Column, DateTime, Enum, Float, Integer, MetaData, String, Table, Text

_metadata = MetaData()


def _attributes(table: str, key: str, owner: str) -> Table:
    return Table(
        table,
        _metadata,
        Column(key, Integer, primary_key=True),
        Column(owner, Integer),
        Column("key", String(512)),
        Column("value_json", Text),
    )


studies = Table(
    "studies",
    _metadata,
    Column("study_id", Integer, primary_key=True),
    Column("study_name", String(512), nullable=False),
)

directions = Table(
    "study_directions",
    _metadata,
    Column("study_direction_id", Integer, primary_key=True),
    Column("study_id", Integer),
    Column("direction", Enum(StudyDirection, name="studydirection"), nullable=False),
    Column("objective", Integer, nullable=False),
)

study_user_attributes = _attributes("study_user_attributes", "study_user_attribute_id", "study_id")
study_system_attributes = _attributes("study_system_attributes", "study_system_attribute_id", "study_id")

trials = Table(
    "trials",
    _metadata,
    Column("trial_id", Integer, primary_key=True),
    Column("number", Integer),
    Column("study_id", Integer),
    Column("state", Enum(TrialState, name="trialstate"), nullable=False),
    Column("datetime_start", DateTime),
    Column("datetime_complete", DateTime),
)

trial_user_attributes = _attributes("trial_user_attributes", "trial_user_attribute_id", "trial_id")
trial_system_attributes = _attributes("trial_system_attributes", "trial_system_attribute_id", "trial_id")

params = Table(
    "trial_params",
    _metadata,
    Column("param_id", Integer, primary_key=True),
    Column("trial_id", Integer),
    Column("param_name", String(512)),
    Column("param_value", Float(53)),
    Column("distribution_json", Text),
)

values = Table(
    "trial_values",
    _metadata,
    Column("trial_value_id", Integer, primary_key=True),
    Column("trial_id", Integer, nullable=False),
    Column("objective", Integer, nullable=False),
    Column("value", Float(53)),
    Column("value_type", Enum("FINITE", "INF_POS", "INF_NEG", name="trialvaluetype"), nullable=False),
)

intermediate_values = Table(
    "trial_intermediate_values",
    _metadata,
    Column("trial_intermediate_value_id", Integer, primary_key=True),
    Column("trial_id", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("intermediate_value", Float(53)),
    Column(
        "intermediate_value_type",
        Enum("FINITE", "INF_POS", "INF_NEG", "NAN", name="trialintermediatevaluetype"),
        nullable=False,
    ),
)

# What belongs to a trial: table, its own key, and the columns that say the rest.
TRIAL_PARTS: tuple[tuple[Table, str, tuple[str, ...]], ...] = (
    (params, "param_id", ("param_name", "param_value", "distribution_json")),
    (values, "trial_value_id", ("objective", "value", "value_type")),
    (intermediate_values, "trial_intermediate_value_id", ("step", "intermediate_value", "intermediate_value_type")),
    (trial_user_attributes, "trial_user_attribute_id", ("key", "value_json")),
    (trial_system_attributes, "trial_system_attribute_id", ("key", "value_json")),
)
