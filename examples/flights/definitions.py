"""A year of flights out of New York, as Dagster assets that live in PostgreSQL.

A function returns a frame, and the frame is a table of the schema `nyc`. An argument is the name of
another asset, and comes from that asset's table. Nothing else is to be written.
"""

import dagster as dg
import geopandas as gpd
import pandas as pd
from data import read, read_month

from dagster_tools import PostgresIOManager, PostgresResource

months = dg.MonthlyPartitionsDefinition(
    start_date="2013-01", end_date="2014-01", fmt="%Y-%m", timezone="America/New_York"
)


@dg.asset(
    metadata={
        "primary_key": "carrier",
        "columns": {"carrier": "char(2)", "name": ("string", "not null")},
    }
)
def airlines() -> pd.DataFrame:
    """Carriers by their two-letter code."""
    return read("airlines.csv")


@dg.asset(
    metadata={
        "primary_key": "faa",
        "columns": {"faa": "char(3)", "name": ("string", "not null"), "alt": "int", "tz": "int"},
    }
)
def airports() -> pd.DataFrame:
    """Airports of the United States, with coordinates and time zone."""
    return read("airports.csv")


@dg.asset(metadata={"columns": {"geometry": "geometry(Point,4326)"}})
def airports_map(airports: pd.DataFrame) -> gpd.GeoDataFrame:
    """Airports as places on the globe, of which Dagster shows a map."""
    places = gpd.points_from_xy(airports["lon"], airports["lat"], crs="EPSG:4326")
    return gpd.GeoDataFrame(airports[["faa", "name"]], geometry=places)


@dg.asset(
    metadata={
        "primary_key": "tailnum",
        # pandas makes integers with gaps floats; here they are integers again.
        "columns": {"year": "int", "engines": "int", "seats": "int", "speed": "int"},
    }
)
def planes() -> pd.DataFrame:
    """Aircraft by tail number."""
    return read("planes.csv")


@dg.asset(
    partitions_def=months,
    metadata={
        "primary_key": ["time_hour", "carrier", "flight"],
        "columns": {
            "dep_time": "int",
            "dep_delay": "int",
            "arr_time": "int",
            "arr_delay": "int",
            "air_time": "int",
        },
    },
)
def flights(context: dg.AssetExecutionContext) -> pd.DataFrame:
    """Flights from New York's three airports; those that were cancelled have no dep_time."""
    return read_month("flights.csv.zip", context.partition_key)


@dg.asset(partitions_def=months, metadata={"primary_key": ["origin", "time_hour"]})
def weather(context: dg.AssetExecutionContext) -> pd.DataFrame:
    """Weather at the three airports, by the hour."""
    return read_month("weather.csv", context.partition_key)


@dg.asset(
    partitions_def=months,
    metadata={"primary_key": ["carrier", "day"], "columns": {"day": "date"}},
    ins={"weather": dg.AssetIn(metadata={"columns": ["origin", "time_hour", "precip"]})},
)
def daily_delays(flights: pd.DataFrame, weather: pd.DataFrame) -> pd.DataFrame:
    """Delays of each carrier and day, with the rain in the hours of its flights."""
    planned = flights.merge(weather, on=["origin", "time_hour"], how="left")
    planned["day"] = pd.to_datetime(planned[["year", "month", "day"]])
    planned["late"] = planned["dep_delay"] > 15
    # The index of the result, carrier and day, becomes columns of the table.
    return planned.groupby(["carrier", "day"]).agg(
        planned=("flight", "size"),
        departed=("dep_time", "count"),
        late=("late", "sum"),
        delay_minutes=("dep_delay", "sum"),
        rain_inches=("precip", "mean"),
    )


@dg.asset(
    metadata={"primary_key": "carrier"},
    # Of the months there are: one that is not loaded yet is no error.
    ins={"daily_delays": dg.AssetIn(metadata={"allow_missing_partitions": True})},
)
def carrier_league(airlines: pd.DataFrame, daily_delays: pd.DataFrame) -> pd.DataFrame:
    """Carriers by how many of their flights left on time; late is more than 15 minutes."""
    rainy_days = daily_delays[daily_delays["rain_inches"] > 0]
    league = airlines.set_index("carrier").assign(
        planned=daily_delays.groupby("carrier")["planned"].sum(),
        late_percent=late_percent(daily_delays),
        late_percent_in_rain=late_percent(rainy_days),
    )
    return league.assign(place=league["late_percent"].rank(method="min").astype(int))


def late_percent(days: pd.DataFrame) -> pd.Series:
    total = days.groupby("carrier")[["departed", "late"]].sum()
    return (100 * total["late"] / total["departed"]).round(1)


defs = dg.Definitions(
    assets=[
        airlines,
        airports,
        airports_map,
        planes,
        flights,
        weather,
        daily_delays,
        carrier_league,
    ],
    resources={
        "io_manager": PostgresIOManager(
            connection=PostgresResource(
                host=dg.EnvVar("PGHOST"),
                port=dg.EnvVar.int("PGPORT"),
                dbname=dg.EnvVar("PGDATABASE"),
                user=dg.EnvVar("PGUSER"),
                password=dg.EnvVar("PGPASSWORD"),
            ),
            schema="nyc",
            # The demo's own server has no PostGIS; with it, leave this out.
            geometry_storage="ewkb",
        )
    },
    # One process for each run, not for each step: these take less time than starting one.
    executor=dg.in_process_executor,
)
