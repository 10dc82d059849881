"""PostgreSQL, without Dagster and without dataframes: psycopg and Arrow only."""
