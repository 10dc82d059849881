-- The SharePoint feed: what the watched libraries hold, and what of it each asset has.
--
-- Made when the first SharePoint asset runs, in the schema of the tracking tables. Microsoft Graph
-- tells of a change what an item is now, and not its path; hence the whole tree. What an asset
-- still has to do is nowhere written down: it is the difference of the tree and what it was
-- delivered, so that none of it can get lost.

-- One row for each library. Whoever takes in what changed locks it, after all pages have come.
CREATE TABLE IF NOT EXISTS {schema}.sharepoint_libraries (
    drive_id text PRIMARY KEY,
    name text NOT NULL,
    url text NOT NULL,
    site_id text NOT NULL,
    site_name text NOT NULL,
    site_url text NOT NULL,
    -- Where to ask for what changed since; NULL when everything is to be listed anew.
    delta_link text,
    -- Counts the times that something changed.
    generation bigint NOT NULL DEFAULT 0,
    taken_at timestamp with time zone,
    -- When everything was last listed.
    listed_at timestamp with time zone
);

-- Which library a watch means, by the words it says it in; '' is a site's default library.
CREATE TABLE IF NOT EXISTS {schema}.sharepoint_addresses (
    site text NOT NULL,
    library text NOT NULL,
    drive_id text NOT NULL REFERENCES {schema}.sharepoint_libraries ON DELETE CASCADE,
    PRIMARY KEY (site, library)
);

-- The tree of each library. Folders that were deleted are remembered by their id.
CREATE TABLE IF NOT EXISTS {schema}.sharepoint_items (
    drive_id text NOT NULL REFERENCES {schema}.sharepoint_libraries ON DELETE CASCADE,
    id text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('file', 'folder', 'opaque', 'deleted')),
    parent_id text,
    name text,
    etag text,
    ctag text,
    size bigint,
    created timestamp with time zone,
    modified timestamp with time zone,
    modified_by text,
    url text,
    child_count bigint,
    PRIMARY KEY (drive_id, id)
);

CREATE INDEX IF NOT EXISTS sharepoint_items_folder
    ON {schema}.sharepoint_items (drive_id, parent_id);

-- One row for each asset. Whoever delivers to it locks its row.
CREATE TABLE IF NOT EXISTS {schema}.sharepoint_assets (
    asset_key text PRIMARY KEY,
    -- Tells this database from another one with such tables.
    token uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    -- What it watches, in the words of its definition.
    watch text NOT NULL,
    -- Counts the times that something was delivered.
    deliveries bigint NOT NULL DEFAULT 0,
    delivered_at timestamp with time zone,
    run_id text,
    -- The watch and the generations of its libraries at which nothing was left to do.
    clean text,
    -- How many files were to be delivered when the sensor last looked.
    pending bigint NOT NULL DEFAULT 0,
    -- What was handed to another IO manager, until Dagster's event log says that it was stored.
    claim_id uuid,
    claim jsonb
);

-- What each asset has: the files that were delivered, as they were then.
CREATE TABLE IF NOT EXISTS {schema}.sharepoint_delivered (
    asset_key text NOT NULL REFERENCES {schema}.sharepoint_assets ON DELETE CASCADE,
    drive_id text NOT NULL,
    id text NOT NULL,
    -- NULL when it is to be delivered again whether or not it changed.
    etag text,
    path text NOT NULL,
    url text NOT NULL,
    size bigint NOT NULL,
    created timestamp with time zone,
    modified timestamp with time zone,
    modified_by text,
    PRIMARY KEY (asset_key, drive_id, id)
);

-- Files that an asset failed to read.
CREATE TABLE IF NOT EXISTS {schema}.sharepoint_failures (
    asset_key text NOT NULL REFERENCES {schema}.sharepoint_assets ON DELETE CASCADE,
    drive_id text NOT NULL,
    id text NOT NULL,
    etag text,
    path text NOT NULL,
    url text NOT NULL,
    attempts integer NOT NULL,
    error text NOT NULL,
    failed_at timestamp with time zone NOT NULL,
    -- Left out until it changes; otherwise the run failed.
    quarantined boolean NOT NULL,
    PRIMARY KEY (asset_key, drive_id, id)
);

COMMENT ON TABLE {schema}.sharepoint_libraries IS
    'SharePoint libraries that assets watch, and how far their changes were taken in';
COMMENT ON TABLE {schema}.sharepoint_addresses IS
    'Which library the words of a watch mean';
COMMENT ON TABLE {schema}.sharepoint_items IS
    'Files and folders of the libraries, as of the last change taken in';
COMMENT ON TABLE {schema}.sharepoint_assets IS
    'Assets that watch libraries, and what was last delivered to them';
COMMENT ON TABLE {schema}.sharepoint_delivered IS
    'Files whose contents are in an asset''s table, as they were then';
COMMENT ON TABLE {schema}.sharepoint_failures IS
    'Files that an asset failed to read';
