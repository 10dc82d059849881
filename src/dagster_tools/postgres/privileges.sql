-- What this role may not do, but has to in order to keep an asset in a table.
--
-- $1 schema, $2 table, $3 tracking schema, all names as they are stored.
-- Returns a purpose, and what is lacking for it as GRANT calls it: INSERT, DELETE ON TABLE s.t.
WITH relations AS (
    SELECT c.oid, n.nspname, c.relname,
           CASE WHEN n.nspname = $1 AND c.relname = $2 THEN 'target' ELSE c.relname END AS part
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2
       OR n.nspname = $3
          AND c.relname IN ('assets', 'materializations', 'leftovers', 'watermarks')
),
needed (part, purpose, privilege) AS (
    VALUES ('target', 'read', 'SELECT'),
           ('target', 'write', 'INSERT'),
           ('target', 'write', 'DELETE'),
           ('target', 'write', 'UPDATE'),
           ('assets', 'look up', 'SELECT'),
           ('assets', 'record', 'INSERT'),
           ('assets', 'record', 'UPDATE'),
           ('materializations', 'look up', 'SELECT'),
           ('materializations', 'record', 'INSERT'),
           ('leftovers', 'look up', 'SELECT'),
           ('leftovers', 'record', 'INSERT'),
           ('leftovers', 'record', 'DELETE'),
           ('watermarks', 'look up', 'SELECT'),
           ('watermarks', 'record', 'INSERT'),
           ('watermarks', 'record', 'UPDATE')
),
lacking (purpose, privilege, object) AS (
    SELECT CASE n.nspname WHEN $1 THEN 'read' ELSE 'look up' END, 'USAGE',
           pg_catalog.format('SCHEMA %I', n.nspname)
    FROM pg_catalog.pg_namespace AS n
    WHERE n.nspname IN ($1, $3)
      AND NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE')
    UNION ALL
    SELECT CASE n.nspname WHEN $1 THEN 'write' ELSE 'record' END, 'CREATE',
           pg_catalog.format('SCHEMA %I', n.nspname)
    FROM pg_catalog.pg_namespace AS n
    WHERE (n.nspname = $1 AND NOT EXISTS (SELECT FROM relations WHERE part = 'target')
           OR n.nspname = $3 AND NOT EXISTS (SELECT FROM relations WHERE part = 'assets'))
      AND NOT pg_catalog.has_schema_privilege(n.oid, 'CREATE')
    UNION ALL
    SELECT needed.purpose, needed.privilege,
           pg_catalog.format('TABLE %I.%I', r.nspname, r.relname)
    FROM relations AS r
    JOIN needed ON needed.part = r.part
    WHERE NOT CASE needed.privilege
        WHEN 'DELETE' THEN pg_catalog.has_table_privilege(r.oid, needed.privilege)
        ELSE pg_catalog.has_any_column_privilege(r.oid, needed.privilege)
    END
    UNION ALL
    -- Not pg_get_serial_sequence, which fails without USAGE on the schema.
    SELECT 'record', 'USAGE', pg_catalog.format('SEQUENCE %I.%I', r.nspname, s.relname)
    FROM relations AS r
    JOIN pg_catalog.pg_depend AS d ON d.refobjid = r.oid AND d.deptype = 'i'
    JOIN pg_catalog.pg_class AS s ON s.oid = d.objid
    WHERE r.part = 'materializations'
      -- The order of conditions is the planner's, and of anything but a sequence the last fails.
      AND NOT CASE s.relkind
          WHEN 'S' THEN pg_catalog.has_sequence_privilege(s.oid, 'USAGE')
          ELSE true
      END
)
SELECT purpose, pg_catalog.string_agg(privilege, ', ') || ' ON ' || object
FROM lacking
GROUP BY purpose, object
ORDER BY object
