CREATE TABLE deployments (
    name       TEXT    PRIMARY KEY,
    bounds     TEXT    NOT NULL,
    created_ms INTEGER NOT NULL
);

-- Versions that run elsewhere than in the default deployment.
CREATE TABLE placements (
    model_id   INTEGER NOT NULL,
    number     INTEGER NOT NULL,
    deployment TEXT    NOT NULL REFERENCES deployments (name),
    PRIMARY KEY (model_id, number),
    FOREIGN KEY (model_id, number) REFERENCES versions (model_id, number)
);
