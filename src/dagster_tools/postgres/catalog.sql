-- Everything one write or one read must know about a table, as one JSON value.
--
-- $1 schema, $2 table, $3 tracking schema, all names as they are stored.
-- One round trip: on a distant server each costs more than the query.
WITH target AS (
    SELECT c.oid, c.relkind, c.relowner, n.nspname
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $1
      AND c.relname = $2
),
attributes AS (
    SELECT a.*
    FROM pg_catalog.pg_attribute AS a
    JOIN target AS t ON t.oid = a.attrelid
    WHERE a.attnum > 0
      AND NOT a.attisdropped
),
-- A domain is stored as its base type, and a domain over a domain as that one's.
storage AS (
    WITH RECURSIVE unwrapped AS (
        SELECT a.attnum, a.atttypid AS type, a.atttypmod AS typmod
        FROM attributes AS a
        UNION ALL
        SELECT u.attnum, y.typbasetype, y.typtypmod
        FROM unwrapped AS u
        JOIN pg_catalog.pg_type AS y ON y.oid = u.type
        WHERE y.typtype = 'd'
    )
    SELECT u.attnum, u.type, u.typmod, y.typtype, y.typname, y.typnamespace, e.typname AS element,
           e.typtype AS element_typtype, e.typnamespace AS element_namespace,
           y.typcategory = 'A' AS is_array
    FROM unwrapped AS u
    JOIN pg_catalog.pg_type AS y ON y.oid = u.type
    LEFT JOIN pg_catalog.pg_type AS e ON e.oid = y.typelem
    WHERE y.typtype <> 'd'
)
SELECT pg_catalog.json_build_object(
    'database', pg_catalog.current_database(),
    'schema_exists', EXISTS (
        SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1
    ),
    'tracking_exists', (
        SELECT pg_catalog.count(*) = 4
        FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = $3
          AND c.relname IN ('assets', 'materializations', 'leftovers', 'watermarks')
    ),
    'postgis', (
        SELECT n.nspname
        FROM pg_catalog.pg_extension AS x
        JOIN pg_catalog.pg_namespace AS n ON n.oid = x.extnamespace
        WHERE x.extname = 'postgis'
    ),
    'kind', (SELECT relkind FROM target),
    'owned', (SELECT pg_catalog.pg_has_role(relowner, 'USAGE') FROM target),
    'row_security', (SELECT pg_catalog.row_security_active(oid) FROM target),
    'columns', (
        SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
            'name', a.attname,
            'type', pg_catalog.format_type(a.atttypid, a.atttypmod),
            'storage', CASE
                WHEN s.typnamespace = 'pg_catalog'::pg_catalog.regnamespace
                 AND (NOT s.is_array
                      OR s.element_namespace = 'pg_catalog'::pg_catalog.regnamespace)
                    THEN pg_catalog.format_type(s.type, s.typmod)
                WHEN s.is_array THEN
                    CASE s.element_typtype WHEN 'e' THEN 'enum' ELSE s.element END || '[]'
                WHEN s.typtype = 'e' THEN 'enum'
                -- PostGIS' geometry says kind, dimensions and SRID in its modifiers.
                ELSE s.typname || coalesce(
                    pg_catalog.substring(pg_catalog.format_type(s.type, s.typmod), '[(][^()]*[)]$'),
                    ''
                )
            END,
            'not_null', a.attnotnull,
            'filled_by_server', a.attgenerated <> '' OR a.attidentity = 'a',
            'has_default', a.atthasdef OR a.attidentity <> '',
            'default', CASE WHEN a.attname = 'materialization_id' THEN (
                SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid)
                FROM pg_catalog.pg_attrdef AS d
                WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum
            ) END
        ) ORDER BY a.attnum)
        FROM attributes AS a
        JOIN storage AS s ON s.attnum = a.attnum
    ),
    'indexes', (
        SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
            'name', c.relname,
            'columns', (
                SELECT pg_catalog.json_agg(a.attname ORDER BY k.position)
                FROM pg_catalog.unnest(i.indkey) WITH ORDINALITY AS k (attnum, position)
                JOIN attributes AS a ON a.attnum = k.attnum
                WHERE k.position <= i.indnkeyatts
            ),
            'unique', i.indisunique,
            'primary', i.indisprimary,
            'valid', i.indisvalid AND i.indimmediate
        ))
        FROM pg_catalog.pg_index AS i
        JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
        JOIN target AS t ON t.oid = i.indrelid
        WHERE i.indexprs IS NULL
          AND i.indpred IS NULL
    ),
    'referencing', (
        SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
            'name', r.conname,
            'columns', (
                SELECT pg_catalog.json_agg(a.attname ORDER BY k.position)
                FROM pg_catalog.unnest(r.confkey) WITH ORDINALITY AS k (attnum, position)
                JOIN attributes AS a ON a.attnum = k.attnum
            ),
            'on_delete', r.confdeltype
        ) ORDER BY r.conname)
        FROM pg_catalog.pg_constraint AS r
        JOIN target AS t ON t.oid = r.confrelid
        WHERE r.contype = 'f'
    ),
    'checks', (
        SELECT pg_catalog.json_agg(pg_catalog.pg_get_constraintdef(r.oid))
        FROM pg_catalog.pg_constraint AS r
        JOIN target AS t ON t.oid = r.conrelid
        WHERE r.contype = 'c'
    )
)
