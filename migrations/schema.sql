-- 0006
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL,
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

CREATE TABLE store (
	id INTEGER NOT NULL CONSTRAINT ck_store_one_row CHECK (id = 1),
	uuid TEXT NOT NULL,
	created_at TEXT NOT NULL,
	next_version INTEGER NOT NULL,
	CONSTRAINT pk_store PRIMARY KEY (id),
	CONSTRAINT ck_store_next_version CHECK (next_version >= 1)
);

CREATE TABLE runs (
	id INTEGER NOT NULL,
	name TEXT NOT NULL,
	created_at TEXT NOT NULL,
	holder_host TEXT,
	holder_pid BIGINT,
	holder_started_at TEXT,
	CONSTRAINT pk_runs PRIMARY KEY (id),
	CONSTRAINT uq_runs_name UNIQUE (name),
	CONSTRAINT ck_runs_holder CHECK ((holder_host IS NULL) = (holder_pid IS NULL) AND (holder_host IS NULL) = (holder_started_at IS NULL))
);

CREATE TABLE metric_names (
	id INTEGER NOT NULL,
	name TEXT NOT NULL,
	CONSTRAINT pk_metric_names PRIMARY KEY (id),
	CONSTRAINT uq_metric_names_name UNIQUE (name)
);

CREATE TABLE metrics (
	version INTEGER NOT NULL,
	metric_id INTEGER NOT NULL,
	run_id INTEGER NOT NULL,
	state TEXT NOT NULL,
	value DOUBLE,
	CONSTRAINT pk_metrics PRIMARY KEY (version, metric_id),
	CONSTRAINT fk_metrics_run_id_state_version FOREIGN KEY(run_id, state, version) REFERENCES checkpoints (run_id, state, version) DEFERRABLE INITIALLY DEFERRED,
	CONSTRAINT fk_metrics_metric_id FOREIGN KEY(metric_id) REFERENCES metric_names (id)
)
 WITHOUT ROWID
;

CREATE INDEX metrics_by_value ON metrics (metric_id, value, version) WHERE state = 'complete';

CREATE INDEX metrics_by_run_and_value ON metrics (metric_id, run_id, value, version) WHERE state = 'complete';

CREATE TABLE tags (
	name TEXT NOT NULL,
	version INTEGER NOT NULL,
	created_at TEXT NOT NULL,
	CONSTRAINT pk_tags PRIMARY KEY (name),
	CONSTRAINT fk_tags_version FOREIGN KEY(version) REFERENCES checkpoints (version)
)
 WITHOUT ROWID
;

CREATE INDEX tags_by_version ON tags (version);

CREATE TABLE monitors (
	run_id INTEGER NOT NULL,
	metric_id INTEGER NOT NULL,
	mode TEXT NOT NULL,
	CONSTRAINT pk_monitors PRIMARY KEY (run_id, metric_id),
	CONSTRAINT ck_monitors_mode CHECK (mode IN ('min', 'max')),
	CONSTRAINT fk_monitors_run_id FOREIGN KEY(run_id) REFERENCES runs (id),
	CONSTRAINT fk_monitors_metric_id FOREIGN KEY(metric_id) REFERENCES metric_names (id)
)
 WITHOUT ROWID
;

CREATE TABLE published (
	path TEXT NOT NULL,
	run_id INTEGER NOT NULL,
	version INTEGER NOT NULL,
	pending BOOLEAN NOT NULL,
	CONSTRAINT pk_published PRIMARY KEY (path),
	CONSTRAINT fk_published_run_id FOREIGN KEY(run_id) REFERENCES runs (id),
	CONSTRAINT fk_published_version FOREIGN KEY(version) REFERENCES checkpoints (version),
	CONSTRAINT ck_published_pending CHECK (pending IN (0, 1))
)
 WITHOUT ROWID
;

CREATE INDEX published_by_version ON published (version);

CREATE TABLE events (
	id INTEGER NOT NULL,
	at TEXT NOT NULL,
	kind TEXT NOT NULL,
	run_id INTEGER,
	version INTEGER,
	detail TEXT,
	CONSTRAINT pk_events PRIMARY KEY (id),
	CONSTRAINT fk_events_run_id FOREIGN KEY(run_id) REFERENCES runs (id)
);

CREATE INDEX events_by_kind_and_run ON events (kind, run_id);

CREATE INDEX events_by_version ON events (version);

CREATE VIEW checkpoint_metrics AS
SELECT
    checkpoints.version,
    runs.name AS run,
    checkpoints.epoch,
    checkpoints.batch,
    checkpoints.step,
    metric_names.name AS metric,
    metrics.value,
    checkpoints.created_at,
    checkpoints.file,
    checkpoints.state,
    checkpoints.resumable,
    checkpoints.pinned
FROM metrics
JOIN metric_names ON metric_names.id = metrics.metric_id
JOIN checkpoints ON checkpoints.version = metrics.version
JOIN runs ON runs.id = checkpoints.run_id;

CREATE VIEW checkpoint_list AS
SELECT
    checkpoints.version,
    runs.name AS run,
    checkpoints.epoch,
    checkpoints.batch,
    checkpoints.step,
    checkpoints.created_at,
    checkpoints.file,
    checkpoints.nbytes,
    checkpoints.digest,
    checkpoints.format,
    checkpoints.state,
    checkpoints.resumable,
    checkpoints.pinned,
    (
        SELECT group_concat(named.name, ', ')
        FROM (SELECT tags.name FROM tags WHERE tags.version = checkpoints.version ORDER BY tags.name) AS named
    ) AS tags,
    checkpoints.blocked_s,
    checkpoints.total_s
FROM checkpoints
JOIN runs ON runs.id = checkpoints.run_id;

CREATE VIEW metric_ranges AS
SELECT
    extremes.run,
    extremes.metric,
    extremes.min_value,
    (
        SELECT min(metrics.version) FROM metrics
        WHERE metrics.metric_id = extremes.metric_id AND metrics.run_id = extremes.run_id
            AND metrics.state = 'complete' AND metrics.value = extremes.min_value
    ) AS min_version,
    extremes.max_value,
    (
        SELECT min(metrics.version) FROM metrics
        WHERE metrics.metric_id = extremes.metric_id AND metrics.run_id = extremes.run_id
            AND metrics.state = 'complete' AND metrics.value = extremes.max_value
    ) AS max_version
FROM (
    SELECT
        runs.id AS run_id,
        runs.name AS run,
        metric_names.id AS metric_id,
        metric_names.name AS metric,
        (
            SELECT min(metrics.value) FROM metrics
            WHERE metrics.metric_id = metric_names.id AND metrics.run_id = runs.id
                AND metrics.state = 'complete'
        ) AS min_value,
        (
            SELECT max(metrics.value) FROM metrics
            WHERE metrics.metric_id = metric_names.id AND metrics.run_id = runs.id
                AND metrics.state = 'complete'
        ) AS max_value
    FROM runs CROSS JOIN metric_names
) AS extremes
WHERE extremes.min_value IS NOT NULL;

CREATE INDEX published_pending ON published (path) WHERE pending;

CREATE TABLE epochs (
	run_id INTEGER NOT NULL,
	epoch BIGINT NOT NULL,
	version INTEGER NOT NULL,
	batch BIGINT,
	step BIGINT,
	created_at TEXT NOT NULL,
	CONSTRAINT pk_epochs PRIMARY KEY (run_id, epoch),
	CONSTRAINT fk_epochs_run_id FOREIGN KEY(run_id) REFERENCES runs (id)
)
 WITHOUT ROWID
;

CREATE TABLE epoch_metrics (
	run_id INTEGER NOT NULL,
	epoch BIGINT NOT NULL,
	metric_id INTEGER NOT NULL,
	value DOUBLE,
	CONSTRAINT pk_epoch_metrics PRIMARY KEY (run_id, epoch, metric_id),
	CONSTRAINT fk_epoch_metrics_run_id_epoch FOREIGN KEY(run_id, epoch) REFERENCES epochs (run_id, epoch),
	CONSTRAINT fk_epoch_metrics_metric_id FOREIGN KEY(metric_id) REFERENCES metric_names (id)
)
 WITHOUT ROWID
;

CREATE TABLE retention (
	run_id INTEGER NOT NULL,
	policy TEXT NOT NULL,
	event_id INTEGER NOT NULL,
	newest_at TEXT,
	nbytes BIGINT NOT NULL,
	CONSTRAINT pk_retention PRIMARY KEY (run_id),
	CONSTRAINT fk_retention_run_id FOREIGN KEY(run_id) REFERENCES runs (id)
)
 WITHOUT ROWID
;

CREATE VIEW run_history AS
SELECT
    runs.name AS run,
    epochs.epoch,
    epochs.batch,
    epochs.step,
    metric_names.name AS metric,
    epoch_metrics.value,
    epochs.version,
    epochs.created_at
FROM epochs
JOIN runs ON runs.id = epochs.run_id
JOIN epoch_metrics ON epoch_metrics.run_id = epochs.run_id AND epoch_metrics.epoch = epochs.epoch
JOIN metric_names ON metric_names.id = epoch_metrics.metric_id;

CREATE TABLE writers (
	run_id INTEGER NOT NULL,
	token TEXT NOT NULL,
	CONSTRAINT pk_writers PRIMARY KEY (run_id),
	CONSTRAINT fk_writers_run_id FOREIGN KEY(run_id) REFERENCES runs (id)
)
 WITHOUT ROWID
;

CREATE TABLE attempts (
	run_id INTEGER NOT NULL,
	attempt INTEGER NOT NULL,
	started_at TEXT NOT NULL,
	ended_at TEXT,
	host TEXT NOT NULL,
	pid BIGINT NOT NULL,
	boot_id TEXT,
	oom_kills BIGINT,
	command TEXT NOT NULL,
	directory TEXT NOT NULL,
	git_commit TEXT,
	git_dirty BOOLEAN,
	versions TEXT NOT NULL,
	devices TEXT NOT NULL,
	environment TEXT NOT NULL,
	supervised BOOLEAN NOT NULL,
	resumed_from INTEGER,
	batches_lost BIGINT,
	exit_code INTEGER,
	signal TEXT,
	reason TEXT,
	detail TEXT NOT NULL,
	log TEXT,
	diff TEXT,
	CONSTRAINT pk_attempts PRIMARY KEY (run_id, attempt),
	CONSTRAINT ck_attempts_attempt CHECK (attempt >= 1),
	CONSTRAINT ck_attempts_reason CHECK (reason IN ('finished', 'preempted', 'interrupted', 'killed', 'oom', 'disk_full', 'nan', 'exception', 'hang', 'unknown')),
	CONSTRAINT ck_attempts_ended CHECK ((reason IS NULL) = (ended_at IS NULL)),
	CONSTRAINT fk_attempts_run_id FOREIGN KEY(run_id) REFERENCES runs (id),
	CONSTRAINT ck_attempts_git_dirty CHECK (git_dirty IN (0, 1)),
	CONSTRAINT ck_attempts_supervised CHECK (supervised IN (0, 1))
)
 WITHOUT ROWID
;

CREATE VIEW attempt_list AS
SELECT
    runs.name AS run,
    attempts.attempt,
    attempts.started_at,
    attempts.ended_at,
    attempts.reason,
    attempts.exit_code,
    attempts.signal,
    attempts.detail,
    attempts.resumed_from,
    attempts.batches_lost,
    attempts.host,
    attempts.pid,
    attempts.command,
    attempts.directory,
    attempts.git_commit,
    attempts.git_dirty,
    attempts.versions,
    attempts.devices,
    attempts.environment,
    attempts.supervised,
    attempts.log,
    attempts.diff
FROM attempts
JOIN runs ON runs.id = attempts.run_id;

CREATE TABLE checkpoints (
	version INTEGER NOT NULL,
	run_id INTEGER NOT NULL,
	epoch BIGINT NOT NULL,
	batch BIGINT,
	step BIGINT,
	created_at TEXT NOT NULL,
	file TEXT NOT NULL,
	nbytes BIGINT NOT NULL,
	digest TEXT NOT NULL,
	format TEXT NOT NULL,
	state TEXT NOT NULL,
	resumable BOOLEAN NOT NULL,
	pinned BOOLEAN NOT NULL,
	extra TEXT,
	blocked_s DOUBLE,
	total_s DOUBLE,
	CONSTRAINT pk_checkpoints PRIMARY KEY (version),
	CONSTRAINT uq_checkpoints_run_id_state_version UNIQUE (run_id, state, version),
	CONSTRAINT uq_checkpoints_file UNIQUE (file),
	CONSTRAINT ck_checkpoints_version CHECK (version >= 1),
	CONSTRAINT ck_checkpoints_epoch CHECK (epoch >= 0),
	CONSTRAINT ck_checkpoints_batch CHECK (batch >= 0),
	CONSTRAINT ck_checkpoints_step CHECK (step >= 0),
	CONSTRAINT ck_checkpoints_nbytes CHECK (nbytes >= 0),
	CONSTRAINT ck_checkpoints_format CHECK (format IN ('keras', 'weights', 'h5', 'sharded')),
	CONSTRAINT ck_checkpoints_state CHECK (state IN ('complete', 'missing', 'damaged', 'deleting')),
	CONSTRAINT fk_checkpoints_run_id FOREIGN KEY(run_id) REFERENCES runs (id),
	CONSTRAINT ck_checkpoints_resumable CHECK (resumable IN (0, 1)),
	CONSTRAINT ck_checkpoints_pinned CHECK (pinned IN (0, 1))
);

CREATE INDEX checkpoints_by_state ON checkpoints (state, version);

CREATE INDEX resume_points ON checkpoints (state, resumable, version);

CREATE INDEX resume_points_by_run ON checkpoints (run_id, state, resumable, version);

CREATE INDEX checkpoints_by_epoch ON checkpoints (run_id, epoch, version) WHERE state = 'complete';

CREATE INDEX checkpoints_by_step ON checkpoints (run_id, step, version) WHERE state = 'complete';

CREATE INDEX checkpoints_by_time ON checkpoints (run_id, created_at, version) WHERE state = 'complete';

CREATE INDEX unpinned_checkpoints ON checkpoints (run_id, version) WHERE state = 'complete' AND NOT pinned;

INSERT INTO alembic_version (version_num) VALUES ('0006');

