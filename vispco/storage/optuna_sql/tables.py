"""Optuna's tables as we read and copy them in bulk: schema 12, which Optuna 3.2 to 5 share.

Optuna creates and migrates them and checks their version when a database is opened. Values that only Optuna reads
back stay as they are stored: JSON texts, internal representations of parameters, naive UTC times.
"""

from __future__ import annotations

from optuna.storages._rdb import models
from sqlalchemy import Table

studies: Table = models.StudyModel.__table__
directions: Table = models.StudyDirectionModel.__table__
study_user_attributes: Table = models.StudyUserAttributeModel.__table__
study_system_attributes: Table = models.StudySystemAttributeModel.__table__
trials: Table = models.TrialModel.__table__
trial_user_attributes: Table = models.TrialUserAttributeModel.__table__
trial_system_attributes: Table = models.TrialSystemAttributeModel.__table__
params: Table = models.TrialParamModel.__table__
values: Table = models.TrialValueModel.__table__
intermediate_values: Table = models.TrialIntermediateValueModel.__table__

# What belongs to a trial: table, its own key, and the columns that say the rest.
TRIAL_PARTS: tuple[tuple[Table, str, tuple[str, ...]], ...] = (
    (params, "param_id", ("param_name", "param_value", "distribution_json")),
    (values, "trial_value_id", ("objective", "value", "value_type")),
    (intermediate_values, "trial_intermediate_value_id", ("step", "intermediate_value", "intermediate_value_type")),
    (trial_user_attributes, "trial_user_attribute_id", ("key", "value_json")),
    (trial_system_attributes, "trial_system_attribute_id", ("key", "value_json")),
)
