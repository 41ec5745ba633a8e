"""Our tables as they are now, beside Optuna's in the same database: own prefix, no foreign keys to Optuna's.

A change here needs a migration in :mod:`vispco.storage.migrations`; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()

version = Table("vispco_version", metadata, Column("version", Integer, primary_key=True))

experiments = Table(
    "vispco_experiment",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("spec_text", Text, nullable=False),
    Column("spec_hash", String(32), nullable=False),
    Column("identity", Text, nullable=False),
    Column("facts", Text, nullable=False),
    Column("provenance", Text, nullable=False),
    Column("created", DateTime, nullable=False),
)

# Who drives an experiment; one row per experiment that runs. ``beats`` counts up while the driver lives, so that others
# can watch it move; ``heartbeat`` is the database server's clock, only shown, never compared with another clock.
locks = Table(
    "vispco_lock",
    metadata,
    Column("experiment", String(255), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("process_start", String(64), nullable=False),
    Column("heartbeat", Float, nullable=False),
    Column("beats", Integer, nullable=False, server_default=text("0")),
)

# One row per measured (context, counts); per-sample scores are little-endian float32, tasks in name order.
evaluations = Table(
    "vispco_evaluation",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("split", String(32), nullable=False),
    Column("method", String(255), nullable=False),
    Column("schedule", Text, nullable=False),
    Column("keep_ratio", Text, nullable=False),
    Column("accuracy", Float, nullable=False),
    Column("flops_ratio", Float, nullable=False),
    Column("flops", BigInteger, nullable=False),
    Column("kv_bytes", Float, nullable=False),
    Column("tasks", Text, nullable=False),
    Column("scores", LargeBinary, nullable=False),
    Column("score_counts", Text, nullable=False),
    Column("groups_id", String(32), nullable=False),
    Column("created", DateTime, nullable=False),
)

# Group of each sample, shared by all evaluations of a split.
groups = Table(
    "vispco_groups",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("groups", Text, nullable=False),
)

# Which evaluation answers which question of an experiment: unpruned, no_image, defaults, held-out re-measurements.
links = Table(
    "vispco_link",
    metadata,
    Column("experiment", String(255), nullable=False),
    Column("role", String(64), nullable=False),
    Column("key", String(512).with_variant(Text(), "postgresql"), nullable=False),  # SQLite enforces no length
    Column("split", String(32), nullable=False),
    Column("evaluation", String(32), nullable=False),
    UniqueConstraint("experiment", "role", "key", "split"),
)

# What a gradient search did on its way to a trial, step by step.
steps = Table(
    "vispco_step",
    metadata,
    Column("study", String(512), nullable=False),
    Column("trial_key", String(64), nullable=False),
    Column("step", Integer, nullable=False),
    Column("data", Text, nullable=False),
    UniqueConstraint("study", "trial_key", "step"),
)

# Scores of parts of evaluations that are not finished: little-endian float32, one row per block of a task's samples.
blocks = Table(
    "vispco_block",
    metadata,
    Column("evaluation", String(32), nullable=False),
    Column("task", String(255), nullable=False),
    Column("block", Integer, nullable=False),
    Column("scores", LargeBinary, nullable=False),
    Column("created", DateTime, nullable=False),
    UniqueConstraint("evaluation", "task", "block"),
)

# Who works on what right now, as the driver sees it; the clocks are the driver's.
workers = Table(
    "vispco_worker",
    metadata,
    Column("experiment", String(255), nullable=False),
    Column("worker", String(64), nullable=False),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("doing", Text, nullable=False),
    Column("since", Float, nullable=False),
    Column("done", Integer, nullable=False),
    Column("seen", Float, nullable=False),
    UniqueConstraint("experiment", "worker"),
)
