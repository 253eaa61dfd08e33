CREATE TABLE models (
    id           INTEGER PRIMARY KEY,
    name         TEXT    NOT NULL UNIQUE,
    next_version INTEGER NOT NULL DEFAULT 1,
    policy_id    INTEGER,
    created_ms   INTEGER NOT NULL
);

-- Never updated: a version is immutable.
CREATE TABLE versions (
    model_id       INTEGER NOT NULL REFERENCES models (id),
    number         INTEGER NOT NULL,
    digest         TEXT    NOT NULL,
    manifest       TEXT    NOT NULL,
    component      TEXT    NOT NULL,
    signature      TEXT    NOT NULL,
    isolation      TEXT    NOT NULL,
    isolation_note TEXT,
    created_ms     INTEGER NOT NULL,
    PRIMARY KEY (model_id, number)
);

CREATE TABLE artifacts (
    model_id INTEGER NOT NULL,
    number   INTEGER NOT NULL,
    position INTEGER NOT NULL,
    name     TEXT    NOT NULL,
    digest   TEXT    NOT NULL,
    bytes    INTEGER NOT NULL,
    PRIMARY KEY (model_id, number, position),
    FOREIGN KEY (model_id, number) REFERENCES versions (model_id, number)
);

-- The whole history: a change appends. back_id: where a rollback from here returns to.
CREATE TABLE policies (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    model_id   INTEGER NOT NULL REFERENCES models (id),
    action     TEXT    NOT NULL,
    policy     TEXT    NOT NULL,
    back_id    INTEGER REFERENCES policies (id),
    created_ms INTEGER NOT NULL
);

CREATE INDEX policies_by_model ON policies (model_id, id);

CREATE TABLE aliases (
    model_id INTEGER NOT NULL REFERENCES models (id),
    name     TEXT    NOT NULL,
    number   INTEGER NOT NULL,
    PRIMARY KEY (model_id, name)
);
