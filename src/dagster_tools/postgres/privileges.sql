-- What this role may not do, but has to in order to keep an asset in a table, or the SharePoint feed.
--
-- $1 schema, $2 table, $3 tracking schema, all names as they are stored; $1 and $2 are NULL where
-- no table is meant.
-- Returns a purpose, and what is lacking for it as GRANT calls it: INSERT, DELETE ON TABLE s.t.
WITH relations AS (
    SELECT c.oid, n.nspname, c.relname,
           CASE WHEN n.nspname = $1 AND c.relname = $2 THEN 'target' ELSE c.relname END AS part
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2
       OR n.nspname = $3
          AND c.relname IN ('assets', 'materializations', 'leftovers', 'watermarks',
                            'sharepoint_libraries', 'sharepoint_addresses', 'sharepoint_items',
                            'sharepoint_assets', 'sharepoint_delivered', 'sharepoint_failures')
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
           ('watermarks', 'record', 'UPDATE'),
           ('sharepoint_libraries', 'look at the feed', 'SELECT'),
           ('sharepoint_libraries', 'keep the feed', 'INSERT'),
           ('sharepoint_libraries', 'keep the feed', 'UPDATE'),
           ('sharepoint_addresses', 'look at the feed', 'SELECT'),
           ('sharepoint_addresses', 'keep the feed', 'INSERT'),
           ('sharepoint_addresses', 'keep the feed', 'UPDATE'),
           ('sharepoint_addresses', 'keep the feed', 'DELETE'),
           ('sharepoint_items', 'look at the feed', 'SELECT'),
           ('sharepoint_items', 'keep the feed', 'INSERT'),
           ('sharepoint_items', 'keep the feed', 'UPDATE'),
           ('sharepoint_items', 'keep the feed', 'DELETE'),
           ('sharepoint_items', 'deliver', 'SELECT'),
           ('sharepoint_assets', 'look at the feed', 'SELECT'),
           ('sharepoint_assets', 'keep the feed', 'INSERT'),
           ('sharepoint_assets', 'keep the feed', 'UPDATE'),
           ('sharepoint_assets', 'deliver', 'SELECT'),
           ('sharepoint_assets', 'deliver', 'UPDATE'),
           ('sharepoint_delivered', 'look at the feed', 'SELECT'),
           ('sharepoint_delivered', 'keep the feed', 'INSERT'),
           ('sharepoint_delivered', 'keep the feed', 'UPDATE'),
           ('sharepoint_delivered', 'keep the feed', 'DELETE'),
           ('sharepoint_delivered', 'deliver', 'SELECT'),
           ('sharepoint_delivered', 'deliver', 'INSERT'),
           ('sharepoint_delivered', 'deliver', 'DELETE'),
           ('sharepoint_failures', 'look at the feed', 'SELECT'),
           ('sharepoint_failures', 'keep the feed', 'INSERT'),
           ('sharepoint_failures', 'keep the feed', 'UPDATE'),
           ('sharepoint_failures', 'keep the feed', 'DELETE'),
           ('sharepoint_failures', 'deliver', 'SELECT'),
           ('sharepoint_failures', 'deliver', 'DELETE')
),
lacking (purpose, privilege, object) AS (
    SELECT purpose, 'USAGE', pg_catalog.format('SCHEMA %I', n.nspname)
    FROM pg_catalog.pg_namespace AS n
    CROSS JOIN pg_catalog.unnest(CASE n.nspname
        WHEN $1 THEN ARRAY['read'] ELSE ARRAY['look up', 'look at the feed', 'deliver']
    END) AS purpose
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
    SELECT 'keep the feed', 'CREATE', pg_catalog.format('SCHEMA %I', n.nspname)
    FROM pg_catalog.pg_namespace AS n
    WHERE n.nspname = $3
      AND NOT EXISTS (SELECT FROM relations WHERE part = 'sharepoint_libraries')
      AND NOT pg_catalog.has_schema_privilege(n.oid, 'CREATE')
    UNION ALL
    SELECT 'keep the feed', 'TEMPORARY', pg_catalog.format('DATABASE %I', d.datname)
    FROM pg_catalog.pg_database AS d
    WHERE d.datname = pg_catalog.current_database()
      AND NOT pg_catalog.has_database_privilege(d.oid, 'TEMPORARY')
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
