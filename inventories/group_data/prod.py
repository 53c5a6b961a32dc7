"""Settings of inventories/prod.py. docs/settings.md lists what can be set.

A secret is named here, never written: `Secret("app/sentry_dsn")`. Its value is in secrets/prod.age:

    python -m groundwork.secrets --inventory inventories/prod.py add app/sentry_dsn
"""

from groundwork.secrets import Secret

environment = "production"

# People with sudo, who log in by key; root and passwords are refused. Accounts that never were named
# here, such as the one we connect as, are left alone; to remove somebody, say "state": "absent".
base_administrators = [
    # {"name": "anna", "keys": ["ssh-ed25519 AAAA… anna@laptop"]},
]

nginx_domains = ["app.example.org"]

mongodb_users = [
    {"name": "grid_user", "database": "urban_grid_ai", "roles": ["readWrite"]},
]
mongodb_collections = [
    {
        "database": "urban_grid_ai",
        "name": "meter_readings",
        "timeseries": {"timeField": "timestamp", "metaField": "meter_id", "granularity": "minutes"},
    },
]

# A directory beside deploy.py, or a git repository and what to deploy of it.
app_source = "examples/app"
app_environment = {
    "ALLOWED_ORIGINS": "https://app.example.org",
    "SENTRY_DSN": Secret("app/sentry_dsn"),
}
nginx_frontend = "examples/frontend"
