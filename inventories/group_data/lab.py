"""The demo's settings: one host, the example application, the lab's own package repository."""

from lab import REPOSITORY, REPOSITORY_KEY

environment = "lab"

# The lab's repository stands in for MongoDB's, which can't be reached here. A company mirror is
# named in the same way.
mongodb_series = "6.0"
mongodb_repository = f"{REPOSITORY}/mongodb/apt"
mongodb_repository_key = REPOSITORY_KEY
mongodb_users = [
    {"name": "grid_user", "database": "urban_grid_ai", "roles": ["readWrite"]},
]
mongodb_collections = [
    {
        "database": "urban_grid_ai",
        "name": "items",
        "indexes": [{"keys": {"created_at": -1}}],
    },
    {
        "database": "urban_grid_ai",
        "name": "meter_readings",
        "timeseries": {"timeField": "timestamp", "metaField": "meter_id", "granularity": "minutes"},
    },
]

app_source = "examples/app"
nginx_frontend = "examples/frontend"

# Where there is a box that trains: what learns from the readings, and what answers from that.
training_source = inference_source = "examples/forecast"
inference_module = "forecast.api:app"
inference_models = ["forecast"]
training_jobs = [
    {
        "name": "forecast",
        "command": ["python", "-m", "forecast.train"],
        "report": ["python", "-m", "forecast.report"],
        "model": "forecast",
    },
]
