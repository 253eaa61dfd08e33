-- Which prefix brought which content: a digest alone gives nobody a right to it.
CREATE TABLE possessions (
    prefix     TEXT    NOT NULL,
    digest     TEXT    NOT NULL,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (prefix, digest)
) WITHOUT ROWID;

INSERT OR IGNORE INTO possessions (prefix, digest, created_ms)
SELECT substr(m.name, 1, instr(m.name, '/') - 1), a.digest, v.created_ms
FROM artifacts a JOIN versions v USING (model_id, number) JOIN models m ON m.id = v.model_id
UNION ALL
SELECT substr(m.name, 1, instr(m.name, '/') - 1), v.component, v.created_ms
FROM versions v JOIN models m ON m.id = v.model_id;
